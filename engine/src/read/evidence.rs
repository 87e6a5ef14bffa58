//! Checks what the log says of itself: its epochs, their signatures, and that they follow from each other.
//!
//! All periods are read in order, one at a time, so memory does not grow with the log. What they say of the shards
//! is compared when those are read (`Claims`). With a public key or a checkpoint from elsewhere the log is held
//! against that; without, it is consistent in itself and no more.

use std::collections::{BTreeMap, VecDeque};

use hanaper_shards::batch::LogId;
use hanaper_shards::manifest::LogState;
use hanaper_shards::merkle::{self, Frontier};
use hanaper_shards::segment::paths;

use super::disk::ReadOnly;
use super::verify::Finding;
use super::view;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::entry::{Claim, Entry, ShardLine};
use crate::checkpoint::epochs::{self, EpochsError, Period};
use crate::checkpoint::note::{Note, SignatureFault, Vkey};
use crate::coordinator::HEARTBEAT;
use crate::error::ReadError;

/// What the log is held against.
#[derive(Default)]
pub struct Anchors<'a> {
    /// The log's public key, from whoever runs it.
    pub vkey: Option<&'a Vkey>,
    /// Checkpoints of this log that somebody kept: each must be one that this log has grown from.
    pub checkpoints: Vec<&'a Note>,
}

/// What was found out about the epochs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Evidence {
    /// Number of entries.
    pub entries: u64,
    /// The newest checkpoint, if all about it is right.
    pub newest: Option<Note>,
    /// The identity that the log names, `None` if it has no epochs.
    pub vkey: Option<Vkey>,
    /// Wall clock of the newest entry, nanoseconds since 1970.
    pub wall_ns: i64,
    /// Number of the current period, and the wall clock of the entry that began it: whoever has had this machine
    /// since could have rewritten what came since.
    pub period: Option<(u64, i64)>,
    /// Bytes that all of it takes.
    pub bytes: u64,
}

/// The name that the log signs under, if it has epochs that can be read: what a kept checkpoint is looked up by.
pub fn origin(path: impl AsRef<std::path::Path>) -> Option<String> {
    let (disk, log) = super::open(path.as_ref()).ok()?;
    let first = epochs::read(&disk, log.log, 0).ok()??;
    let (entry, _) = first.entries.first()?;
    Some(entry.events("genesis").next()?.get("origin")?.to_owned())
}

/// The log's epochs, while they are checked.
struct Check<'a> {
    disk: &'a ReadOnly,
    log: &'a LogState,
    anchors: &'a Anchors<'a>,
    say: &'a mut dyn FnMut(Finding),
    identity: Option<Vkey>,
    /// The key of the period, as the entry before it has named it.
    period_key: Option<Vkey>,
    tree: Frontier,
    heads: BTreeMap<u32, ShardLine>,
    /// Checkpoints from elsewhere, that the tree has not reached yet.
    waiting: Vec<Checkpoint>,
    last_ns: Option<i64>,
    stopped: bool,
    out: Evidence,
}

/// Checks the epochs of a log that is read by `disk`.
pub(crate) fn check(
    disk: &ReadOnly,
    log: &LogState,
    anchors: &Anchors<'_>,
    say: &mut dyn FnMut(Finding),
) -> Result<Evidence, ReadError> {
    let periods = epochs::periods(disk).map_err(ReadError::io(disk.path().display().to_string()))?;
    let mut check = Check {
        disk,
        log,
        anchors,
        say,
        identity: None,
        period_key: None,
        tree: Frontier::new(),
        heads: BTreeMap::new(),
        waiting: Vec::new(),
        last_ns: None,
        stopped: true,
        out: Evidence::default(),
    };
    check.kept_checkpoints();
    let last = periods.last().copied();
    for (expected, &period) in periods.iter().enumerate() {
        if period != expected as u64 {
            check.fails("MISSING", paths::epochs(expected as u64), "the epochs of a key period are gone");
            break;
        }
        if !check.period(period, Some(period) == last)? {
            check.fails(
                "NOT-COVERED",
                paths::epochs(period),
                "what is behind it in the epochs was not checked",
            );
            break;
        }
    }
    check.finish()
}

impl Check<'_> {
    fn fails(&mut self, verdict: &'static str, place: impl Into<String>, meaning: impl Into<String>) {
        (self.say)(Finding { verdict, place: place.into(), meaning: meaning.into(), fails: true });
    }

    fn notes(&mut self, verdict: &'static str, place: impl Into<String>, meaning: impl Into<String>) {
        (self.say)(Finding { verdict, place: place.into(), meaning: meaning.into(), fails: false });
    }

    /// Reads the checkpoints that somebody kept; what is none was said.
    fn kept_checkpoints(&mut self) {
        for note in self.anchors.checkpoints.clone() {
            match Checkpoint::parse(note.text()) {
                Ok(checkpoint) => self.waiting.push(checkpoint),
                Err(fault) => self.fails("CHECKPOINT", "the checkpoint given", fault.to_string()),
            }
        }
        self.waiting.sort_by_key(|checkpoint| std::cmp::Reverse(checkpoint.size()));
    }

    /// One period: `false` if nothing behind it can be checked.
    fn period(&mut self, number: u64, is_last: bool) -> Result<bool, ReadError> {
        let name = paths::epochs(number);
        let read = match epochs::read(self.disk, self.log.log, number) {
            Ok(read) => read,
            Err(EpochsError::Journal(error)) => {
                let error = ReadError::from(error);
                if error.kind() == crate::ErrorKind::Io {
                    return Err(error);
                }
                self.fails("EPOCHS", name, error.to_string());
                return Ok(false);
            }
            Err(EpochsError::Damaged { what, .. }) => {
                self.fails("EPOCHS", name, what);
                return Ok(false);
            }
        };
        let Some(period) = read else {
            if is_last {
                let meaning = "it holds nothing yet: its owner is making it, or died doing so";
                self.notes("UNSIGNED", name, meaning);
            } else {
                self.fails("EPOCHS", name, "it holds nothing whole");
            }
            return Ok(is_last);
        };
        self.out.bytes += period.bytes;
        if period.before != self.tree {
            self.fails("PERIOD-CHAIN", &*name, "it does not begin where the period before it ends");
            return Ok(false);
        }
        if number > 0 && self.period_key.is_none() {
            self.fails("PERIOD-CHAIN", &*name, "no entry of the period before has named its key");
            return Ok(false);
        }
        if number == 0 && !self.genesis(&period) {
            return Ok(false);
        }
        // The entry that names its key is the last of the period before, but for the first of all.
        let own = period.entries.first().map(|(entry, _)| entry.time.wall_ns).filter(|_| number == 0);
        self.out.period = Some((number, own.unwrap_or(self.out.wall_ns)));
        let mut notes: VecDeque<&(u64, Note)> = period.notes.iter().collect();
        let mut newest = None;
        for (entry, text) in &period.entries {
            self.entry(entry);
            self.tree.push(merkle::leaf(text.as_bytes()));
            self.reached();
            while let Some((_, note)) = notes.pop_front_if(|(size, _)| *size <= self.tree.size()) {
                newest = self.note(&period, note).then_some(note).or(newest);
            }
        }
        for (size, _) in notes {
            let meaning = format!("a note on {size} entries, and there are {}", self.tree.size());
            self.fails("CHECKPOINT-ROOT", &*name, meaning);
        }
        if let Some(note) = newest {
            self.out.newest = Some(note.clone());
        }
        self.closed(&period, is_last);
        Ok(true)
    }

    /// The first entry names the keys.
    fn genesis(&mut self, period: &Period) -> bool {
        let name = paths::epochs(0);
        let Some((entry, _)) = period.entries.first() else {
            // A crash before the first entry of all.
            return true;
        };
        let key = |word: &'static str| {
            let event = entry.events(word).next()?;
            Vkey::parse(event.get("vkey")?).ok()
        };
        let (identity, first) = (key("genesis"), key("period"));
        let (Some(identity), Some(first)) = (identity, first) else {
            self.fails("EPOCHS", name, "its first entry does not name the log's keys");
            return false;
        };
        if self.anchors.vkey.is_some_and(|wanted| *wanted != identity) {
            let meaning = format!("the log names the key {identity}, which is not the one given");
            self.fails("WRONG-KEY", name, meaning);
        }
        self.identity = Some(identity.clone());
        self.out.vkey = Some(identity);
        self.period_key = Some(first);
        true
    }

    fn entry(&mut self, entry: &Entry) {
        let place = format!("epoch {}", entry.epoch);
        let live = entry.live;
        let known = |log: &LogState| {
            log.layouts.iter().any(|l| {
                (l.first_shard, l.router.shards, l.generation) == (live.first, live.count, live.generation)
            })
        };
        // The owner may have put another layout on record meanwhile.
        if !known(self.log) && !view::log_state(self.disk).is_ok_and(|(now, _)| known(&now)) {
            self.fails(
                "SHARD-VANISHED",
                &*place,
                "it names other live shards than any layout of the log has",
            );
        }
        for shard in &entry.shards {
            let before = self.heads.insert(shard.shard, shard.clone());
            if before.is_some_and(|b| b.size > shard.size || b.seqs > shard.seqs) {
                let at = format!("{place} shard {}", shard.shard);
                self.fails("SHARD-SHRANK", at, "it has fewer batches or records than an entry before said");
            }
        }
        let wall = entry.time.wall_ns;
        if let Some(last) = self.last_ns.replace(wall) {
            if wall < last {
                let meaning =
                    format!("it was made {} ms before the entry before it", (last - wall) / 1_000_000);
                self.notes("TIME-REGRESSION", &*place, meaning);
            }
            // An entry is late where the disk was; twice the heartbeat is silence.
            if !self.stopped && wall - last > 2 * HEARTBEAT.as_nanos() as i64 {
                let meaning = format!(
                    "no entry for {} s before it, and the log had not been stopped",
                    (wall - last) / 1_000_000_000
                );
                self.notes("SILENT", &*place, meaning);
            }
        }
        self.stopped = entry.events("stop").next().is_some();
        self.out.wall_ns = wall;
    }

    /// Compares the tree with checkpoints from elsewhere of this size.
    fn reached(&mut self) {
        while let Some(checkpoint) = self.waiting.pop_if(|c| c.size() <= self.tree.size()) {
            let same = checkpoint.size() == self.tree.size() && *checkpoint.root() == self.tree.root();
            if checkpoint.size() > 0 && !same {
                let meaning = "a checkpoint that was kept elsewhere names another tree of this size: there are two histories";
                self.fails("FORKED", format!("epoch {}", checkpoint.size() - 1), meaning);
            }
        }
    }

    /// One note: whether it is right.
    fn note(&mut self, period: &Period, note: &Note) -> bool {
        let place = format!("note on {} entries", self.tree.size());
        let checkpoint = Checkpoint::parse(note.text()).expect("it was read as one");
        let (Some(identity), Some(key)) = (self.identity.clone(), self.period_key.clone()) else {
            self.fails("EPOCHS", place, "a note before the first entry");
            return false;
        };
        if checkpoint.origin() != identity.name() {
            self.fails("FOREIGN-LOG", &*place, format!("it is of {}", checkpoint.origin()));
            return false;
        }
        if checkpoint.size() != self.tree.size() || *checkpoint.root() != self.tree.root() {
            self.fails(
                "CHECKPOINT-ROOT",
                &*place,
                "it names another tree than that of the entries before it",
            );
            return false;
        }
        let mut good = true;
        for (key, verdict, whose) in [
            (&identity, "BAD-SIGNATURE", "the log's identity".to_owned()),
            (&key, "PERIOD-SIGNATURE", format!("period {}", period.number)),
        ] {
            if let Err(fault) = note.verify(key) {
                let what = match fault {
                    SignatureFault::Absent { .. } => "is missing",
                    SignatureFault::Bad { .. } => "is wrong",
                };
                self.fails(verdict, &*place, format!("the signature of {whose} {what}"));
                good = false;
            }
        }
        good
    }

    /// Whether the period ends as it should.
    fn closed(&mut self, period: &Period, is_last: bool) {
        let name = paths::epochs(period.number);
        let noted = period.notes.iter().map(|(size, _)| *size).max().unwrap_or(period.before.size());
        let unsigned = self.tree.size().saturating_sub(noted);
        match period.next() {
            Some((number, vkey)) if number == period.number + 1 => match Vkey::parse(vkey) {
                Ok(vkey) => self.period_key = Some(vkey),
                Err(error) => self.fails("PERIOD-CHAIN", &*name, format!("the next key: {error}")),
            },
            _ if is_last => {}
            _ => {
                self.period_key = None;
                self.fails("PERIOD-CHAIN", &*name, "its last entry does not name the next period");
            }
        }
        match unsigned {
            0 => {}
            1 if is_last => {
                let meaning = "no note is on it: a crash came between, and the next opening signs it";
                self.notes("UNSIGNED", format!("epoch {}", self.tree.size() - 1), meaning);
            }
            n => {
                let meaning = format!("its last {n} entries have no note");
                self.fails("UNSIGNED-PERIOD", name, meaning);
            }
        }
    }

    fn finish(mut self) -> Result<Evidence, ReadError> {
        self.out.entries = self.tree.size();
        if self.tree.size() < self.log.epochs {
            let meaning = format!(
                "the log was closed with {} entries, and {} are left",
                self.log.epochs,
                self.tree.size()
            );
            self.fails("MISSING", "epochs", meaning);
        }
        for checkpoint in std::mem::take(&mut self.waiting) {
            let meaning = format!(
                "a checkpoint that was kept elsewhere is on {} entries, and the log has {}",
                checkpoint.size(),
                self.tree.size()
            );
            self.fails("TRUNCATED", "epochs", meaning);
        }
        if let Some(vkey) = self.anchors.vkey {
            if self.identity.is_none() {
                let meaning = format!("nothing in the log is signed, with {vkey} or any key");
                self.fails("UNSIGNED-PERIOD", "epochs", meaning);
            }
            for note in self.anchors.checkpoints.clone() {
                if note.verify(vkey).is_err() {
                    self.fails("BAD-SIGNATURE", "the checkpoint given", "the key given has not signed it");
                }
            }
        }
        Ok(self.out)
    }
}

/// What the epochs say of one shard, in rising order; read period by period.
pub(crate) struct Claims {
    disk: ReadOnly,
    log: LogId,
    shard: u32,
    /// Entries that were there when the shards were looked at.
    entries: u64,
    periods: VecDeque<u64>,
    queue: VecDeque<Claim>,
}

impl Claims {
    /// Of the first `entries` entries.
    pub(crate) fn new(disk: &ReadOnly, log: LogId, shard: u32, entries: u64) -> Result<Claims, ReadError> {
        let periods = epochs::periods(disk).map_err(ReadError::io(disk.path().display().to_string()))?;
        Ok(Claims {
            disk: disk.clone(),
            log,
            shard,
            entries,
            periods: periods.into(),
            queue: VecDeque::new(),
        })
    }

    /// The next one, if it is on no more than so many batches. A period that cannot be read was said, and has none.
    pub(crate) fn next_up_to(&mut self, size: u64) -> Option<Claim> {
        while self.queue.is_empty() {
            let period = self.periods.pop_front()?;
            let Ok(Some(read)) = epochs::read(&self.disk, self.log, period) else { continue };
            let entries = read.entries.iter().map(|(entry, _)| entry).filter(|e| e.epoch < self.entries);
            self.queue.extend(entries.filter_map(|entry| entry.claim(self.shard)));
        }
        self.queue.pop_front_if(|claim| claim.size <= size)
    }
}
