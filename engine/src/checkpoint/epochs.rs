//! The control WAL: epoch entries and the notes on them, one journal for each key period.
//!
//! ```text
//! begin period=P size=N frontier=HEX,HEX…      the global tree before the period; `-` if it is empty
//! head shard 0 size=… …                        where each live shard stood then: a line as entries have
//! entry LF text                                an epoch entry, the next leaf of the tree
//! note LF text                                 a signed note: the checkpoint of all entries before it
//! settings LF text                             settings that an entry names by their digest
//! ```
//! Each record of a journal is one of these. The order is a promise, and the types keep it: an entry is durable
//! before it is signed ([`Entered`]), and a note before anybody is told ([`Noted`]). So no crash leads to two notes
//! for one size: after one, what was entered and not signed is signed first.
//!
//! The last entry of a period names the key of the next, and is signed by both. Then the next journal is begun,
//! and the old one is written anew in less space: all entries, and of the notes the last, and those at a
//! multiple of 256 entries.

use std::collections::BTreeMap;
use std::io;

use hanaper_shards::batch::{Incarnation, LogId};
use hanaper_shards::io::Disk;
use hanaper_shards::journal::{self, Identity, Journal, JournalError};
use hanaper_shards::manifest::{hex, unhex};
use hanaper_shards::merkle::{self, Frontier, Hash};
use hanaper_shards::segment::paths::{self, Name};

use super::Checkpoint;
use super::entry::{Entry, ShardLine};
use super::note::Note;

/// In place of a shard's number in the headers of these journals.
pub const JOURNAL_SHARD: u32 = u32::MAX - 1;
/// Of a closed period the notes at multiples of so many entries are kept: whole tiles.
const NOTES_EVERY: u64 = 256;
/// Lines that are written anew go in entries of about this much.
const CHUNK_BYTES: usize = 1 << 20;

/// Why epochs cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum EpochsError {
    /// The journal says no.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// What it holds is not what was written.
    #[error("{name}: {what}")]
    Damaged {
        /// File name.
        name: String,
        /// What is wrong.
        what: String,
    },
}

/// All that the journal of one period says.
#[derive(Debug, Clone)]
pub struct Period {
    /// Its number.
    pub number: u64,
    /// The global tree before it.
    pub before: Frontier,
    /// The global tree after its last entry.
    pub tree: Frontier,
    /// Where each live shard stands.
    pub heads: BTreeMap<u32, ShardLine>,
    /// Its entries, with their texts.
    pub entries: Vec<(Entry, String)>,
    /// Its notes, with the sizes that they are for.
    pub notes: Vec<(u64, Note)>,
    /// Texts of settings.
    pub settings: Vec<String>,
    /// Bytes at its end that were never finished.
    pub torn_bytes: u64,
    /// Bytes that it takes.
    pub bytes: u64,
}

/// An entry that is durable, and may be signed. Only [`Epochs`] makes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entered {
    size: u64,
    root: Hash,
}

/// A note that is durable, and may be told. Only [`Epochs::keep`] makes one.
#[derive(Debug, Clone)]
pub struct Noted {
    size: u64,
    note: Note,
}

impl Entered {
    /// Size of the tree with it.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// What is to be signed.
    pub fn text(&self, origin: &str) -> String {
        Checkpoint::new(origin, self.size, self.root).expect("the origin was checked with its key").text()
    }
}

impl Noted {
    /// Size of the tree that it is for.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The note.
    pub fn note(&self) -> &Note {
        &self.note
    }
}

/// The epochs of a log, open for appending.
pub struct Epochs<D: Disk> {
    disk: D,
    log: LogId,
    journal: Journal<D>,
    period: u64,
    /// Entries before it.
    first: u64,
    tree: Frontier,
    heads: BTreeMap<u32, ShardLine>,
    /// Size that the last note is for.
    noted: u64,
    /// The last entry, if it is of this period.
    last: Option<Entry>,
}

/// Numbers of the periods that have a journal, in rising order.
pub fn periods<D: Disk>(disk: &D) -> io::Result<Vec<u64>> {
    let number = |name: &String| match paths::parse(name) {
        Name::Epochs { period } => Some(period),
        _ => None,
    };
    let mut periods: Vec<u64> = disk.names()?.iter().filter_map(number).collect();
    periods.sort_unstable();
    Ok(periods)
}

/// Reads the journal of one period. `None` if it holds nothing whole.
pub fn read<D: Disk>(disk: &D, log: LogId, period: u64) -> Result<Option<Period>, EpochsError> {
    let name = paths::epochs(period);
    let identity = Identity { log, shard: JOURNAL_SHARD };
    match journal::read(disk, &name, identity)? {
        Some(contents) => Period::from_contents(log, period, contents).map(Some),
        None => Ok(None),
    }
}

impl Period {
    fn from_contents(log: LogId, number: u64, contents: journal::Contents) -> Result<Period, EpochsError> {
        let name = paths::epochs(number);
        let damaged = |what: String| EpochsError::Damaged { name: name.clone(), what };
        let mut lines = contents.lines.into_iter();
        let before = lines.next().and_then(|line| parse_begin(&line, number));
        let before = before.ok_or_else(|| damaged("it does not begin with this period".to_owned()))?;
        let mut period = Period {
            number,
            tree: before.clone(),
            before,
            heads: BTreeMap::new(),
            entries: Vec::new(),
            notes: Vec::new(),
            settings: Vec::new(),
            torn_bytes: contents.torn_bytes,
            bytes: contents.end,
        };
        for line in lines {
            let at = period.tree.size();
            if let Some(head) = line.strip_prefix("head shard ") {
                let head = ShardLine::parse(head).ok_or_else(|| damaged("a head that is none".to_owned()))?;
                period.heads.insert(head.shard, head);
            } else if let Some(text) = line.strip_prefix("entry\n") {
                let entry = Entry::parse(text).map_err(|fault| damaged(format!("entry {at}: {fault}")))?;
                if (entry.log, entry.epoch, entry.period) != (log, at, number) {
                    return Err(damaged(format!(
                        "entry {at} is entry {} of log {}, period {}",
                        entry.epoch,
                        hex(&entry.log),
                        entry.period
                    )));
                }
                period.tree.push(merkle::leaf(text.as_bytes()));
                follow(&mut period.heads, &entry);
                period.entries.push((entry, text.to_owned()));
            } else if let Some(text) = line.strip_prefix("note\n") {
                let note =
                    Note::parse(text.as_bytes()).map_err(|fault| damaged(format!("a note: {fault}")))?;
                let checkpoint = Checkpoint::parse(note.text());
                let checkpoint = checkpoint.map_err(|fault| damaged(format!("a note: {fault}")))?;
                period.notes.push((checkpoint.size(), note));
            } else if let Some(text) = line.strip_prefix("settings\n") {
                period.settings.push(text.to_owned());
            } else {
                return Err(damaged("a line that no program of this version writes".to_owned()));
            }
        }
        Ok(period)
    }

    /// What the last entry says of the next period, if it closes this one: its number and its key.
    pub fn next(&self) -> Option<(u64, &str)> {
        closes(&self.entries.last()?.0)
    }
}

/// The number and the key of the next period, if this entry closes its own.
pub fn closes(entry: &Entry) -> Option<(u64, &str)> {
    let event = entry.events("period").next()?;
    let number = event.get("number")?.parse().ok()?;
    // The first entry names the period that it is itself in.
    (number != entry.period).then_some((number, event.get("vkey")?))
}

/// What is known of the shards after an entry.
fn follow(heads: &mut BTreeMap<u32, ShardLine>, entry: &Entry) {
    for shard in &entry.shards {
        heads.insert(shard.shard, shard.clone());
    }
    heads.retain(|shard, _| entry.live.has(*shard));
}

impl<D: Disk> Epochs<D> {
    /// Begins the epochs of a log that has none.
    pub fn create(disk: &D, log: LogId, incarnation: Incarnation) -> Result<Epochs<D>, EpochsError> {
        Self::begin(disk, log, 0, Frontier::new(), BTreeMap::new(), incarnation)
    }

    fn begin(
        disk: &D,
        log: LogId,
        period: u64,
        tree: Frontier,
        heads: BTreeMap<u32, ShardLine>,
        incarnation: Incarnation,
    ) -> Result<Epochs<D>, EpochsError> {
        let identity = Identity { log, shard: JOURNAL_SHARD };
        let mut lines = vec![begin_line(period, &tree)];
        lines.extend(heads.values().map(head_line));
        let journal = Journal::create(disk, &paths::epochs(period), identity, incarnation, &lines)?;
        let noted = tree.size();
        let first = noted;
        Ok(Epochs { disk: disk.clone(), log, journal, period, first, tree, heads, noted, last: None })
    }

    /// Opens the epochs of a log for appending; all that it says is durable then. `None` if there are none.
    pub fn open(disk: &D, log: LogId) -> Result<Option<Epochs<D>>, EpochsError> {
        let listed = |source| JournalError::Io { name: "the log's folder".to_owned(), source };
        let periods = periods(disk).map_err(listed)?;
        // A crash while a closed period was written anew leaves it half made; it is whole under its own name.
        for name in disk.names().map_err(listed)?.iter().filter(|n| is_prep(n)) {
            disk.remove(name).map_err(listed)?;
        }
        let identity = Identity { log, shard: JOURNAL_SHARD };
        // A crash while a journal is made leaves one that holds nothing; it is made again.
        for period in periods.into_iter().rev() {
            let name = paths::epochs(period);
            let Some((journal, contents)) = Journal::open(disk, &name, identity)? else { continue };
            let read = Period::from_contents(log, period, contents)?;
            let noted = read.notes.iter().map(|(size, _)| *size).max().unwrap_or(read.before.size());
            return Ok(Some(Epochs {
                disk: disk.clone(),
                log,
                journal,
                period,
                first: read.before.size(),
                tree: read.tree,
                heads: read.heads,
                noted,
                last: read.entries.into_iter().next_back().map(|(entry, _)| entry),
            }));
        }
        Ok(None)
    }

    /// Number of the period.
    pub fn period(&self) -> u64 {
        self.period
    }

    /// Number of entries.
    pub fn size(&self) -> u64 {
        self.tree.size()
    }

    /// Number of entries of this period.
    pub fn entries(&self) -> u64 {
        self.tree.size() - self.first
    }

    /// Where each live shard stands, by the last entry that named it.
    pub fn heads(&self) -> &BTreeMap<u32, ShardLine> {
        &self.heads
    }

    /// The last entry, if it is of this period.
    pub fn last(&self) -> Option<&Entry> {
        self.last.as_ref()
    }

    /// What is durable and has no note.
    pub fn unsigned(&self) -> Option<Entered> {
        (self.noted < self.tree.size()).then(|| self.entered())
    }

    fn entered(&self) -> Entered {
        Entered { size: self.tree.size(), root: self.tree.root() }
    }

    /// Makes an entry durable. After an error only opening the epochs again tells whether it is.
    ///
    /// # Panics
    /// If the entry is not the next one, or the one before has no note.
    pub fn enter(&mut self, entry: &Entry, settings: &[String]) -> Result<Entered, EpochsError> {
        assert!(self.unsigned().is_none(), "an entry behind one that has no note");
        assert_eq!((entry.log, entry.epoch, entry.period), (self.log, self.tree.size(), self.period));
        for shard in &entry.shards {
            let before = self.heads.get(&shard.shard);
            assert!(before.is_none_or(|b| b.size <= shard.size && b.seqs <= shard.seqs), "a shard shrank");
        }
        let text = entry.text();
        debug_assert_eq!(Entry::parse(&text).as_ref(), Ok(entry));
        let mut lines: Vec<String> = settings.iter().map(|text| format!("settings\n{text}")).collect();
        lines.push(format!("entry\n{text}"));
        self.journal.append(&lines)?;
        self.tree.push(merkle::leaf(text.as_bytes()));
        follow(&mut self.heads, entry);
        self.last = Some(entry.clone());
        Ok(self.entered())
    }

    /// Makes the note of what was entered durable.
    pub fn keep(&mut self, entered: Entered, note: Note) -> Result<Noted, EpochsError> {
        assert_eq!(entered, self.entered(), "a note on what is no longer the newest entry");
        self.journal.append(&[format!("note\n{note}")])?;
        self.noted = entered.size;
        Ok(Noted { size: entered.size, note })
    }

    /// Begins the next period: the last entry has named it, and has its note.
    pub fn next_period(self, incarnation: Incarnation) -> Result<Epochs<D>, EpochsError> {
        assert!(self.unsigned().is_none(), "a period ends with its closing note");
        let next = self.last.as_ref().and_then(closes).map(|(number, _)| number);
        assert_eq!(next, Some(self.period + 1), "a period ends with the entry that names the next");
        let Epochs { disk, log, journal, period, tree, heads, .. } = self;
        drop(journal);
        Self::begin(&disk, log, period + 1, tree, heads, incarnation)
    }
}

/// Writes a closed period anew, in less space; by a crash it stays as it is.
pub fn compact<D: Disk>(
    disk: &D,
    log: LogId,
    period: u64,
    incarnation: Incarnation,
) -> Result<(), EpochsError> {
    let name = paths::epochs(period);
    let prep = paths::epochs_prep(period);
    let failed = |source| JournalError::Io { name: prep.clone(), source };
    let Some(read) = read(disk, log, period)? else { return Ok(()) };
    let mut lines = vec![begin_line(period, &read.before)];
    let identity = Identity { log, shard: JOURNAL_SHARD };
    let contents = journal::read(disk, &name, identity)?.map(|c| c.lines).unwrap_or_default();
    lines.extend(contents.into_iter().skip(1).take_while(|line| line.starts_with("head shard ")));
    lines.extend(read.settings.iter().map(|text| format!("settings\n{text}")));
    lines.extend(read.entries.iter().map(|(_, text)| format!("entry\n{text}")));
    let notes = read.notes.iter().filter(|(size, _)| is_kept(*size, &read));
    lines.extend(notes.map(|(_, note)| format!("note\n{note}")));
    match disk.remove(&prep) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error).into()),
        _ => {}
    }
    let mut chunks = chunks(&lines, CHUNK_BYTES).into_iter();
    let mut journal = Journal::create(disk, &prep, identity, incarnation, chunks.next().unwrap_or(&[]))?;
    for chunk in chunks {
        journal.append(chunk)?;
    }
    journal.finish()?;
    disk.rename(&prep, &name).map_err(failed)?;
    Ok(())
}

fn is_prep(name: &str) -> bool {
    matches!(paths::parse(name), Name::EpochsPrep { .. })
}

/// Whether the note at this size is kept when its period is over.
fn is_kept(size: u64, period: &Period) -> bool {
    size == period.tree.size() || size.is_multiple_of(NOTES_EVERY)
}

/// Cuts lines into runs of about so many bytes.
fn chunks(lines: &[String], bytes: usize) -> Vec<&[String]> {
    let mut chunks = Vec::new();
    let (mut first, mut sum) = (0, 0);
    for (i, line) in lines.iter().enumerate() {
        if i > first && sum + line.len() > bytes {
            chunks.push(&lines[first..i]);
            (first, sum) = (i, 0);
        }
        sum += line.len();
    }
    chunks.push(&lines[first..]);
    chunks
}

fn begin_line(period: u64, tree: &Frontier) -> String {
    let hashes: Vec<String> = tree.hashes().iter().map(|hash| hex(hash)).collect();
    let frontier = if hashes.is_empty() { "-".to_owned() } else { hashes.join(",") };
    format!("begin period={period} size={} frontier={frontier}", tree.size())
}

fn head_line(head: &ShardLine) -> String {
    format!("head {}", head.text().trim_end())
}

/// The tree before the period.
fn parse_begin(line: &str, period: u64) -> Option<Frontier> {
    let rest = line.strip_prefix("begin period=")?;
    let (number, rest) = rest.split_once(" size=")?;
    let (size, frontier) = rest.split_once(" frontier=")?;
    let hashes = match frontier {
        "-" => Vec::new(),
        // At most so many as a size can have.
        hashes if hashes.len() <= 65 * Frontier::HASHES_MAX => {
            hashes.split(',').map(unhex).collect::<Option<Vec<Hash>>>()?
        }
        _ => return None,
    };
    let tree = Frontier::from_parts(size.parse().ok()?, hashes)?;
    (number == period.to_string() && begin_line(period, &tree) == line).then_some(tree)
}
