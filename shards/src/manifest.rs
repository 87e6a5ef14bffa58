//! What must exist: the manifest of the log, and one per shard. Both are journals of text lines.
//!
//! A line is a word and `key=value` pairs, separated by single spaces; values have no spaces.
//!
//! ```text
//! log.manifest
//!   genesis version=1 log=HEX digest=blake3 block=4096 created=UNIX_NS
//!   layout generation=0 first_shard=0 shards=2 seed=0 reduction=multiply_shift
//!   opened epoch=1 pid=4711 wall=UNIX_NS
//!   fenced shard=0 op=fdatasync errno=5 offset=8192
//!   ended shard=0 batches=12 seqs=431 digest=HEX   what it held when the log was closed
//!   closed epoch=1 wall=UNIX_NS
//! shard-0000.manifest
//!   shard log=HEX generation=0 shard=0
//!   segment index=0 bytes=67108864            exists from here on, with space promised
//!   begun index=0                             its first batch is durable
//!   sealed index=0 bytes=8192 end=8192 cut_end=8192 batches=0..1 seqs=0..7 digest=HEX
//!   void index=1 reason=superseded            kept as it is; no batch of it counts
//!   retired index=2 reason=unused             unlinked
//!   loss batches=5..7 seqs=40..52 reason=damage
//! ```
//! Order: the file is prepared and renamed, the folder is synced, the line is durable, and only
//! then is it used. Headers decide where a segment ends, the manifest decides what must exist.
//! A word that this program does not know is an error: it was written by a newer one.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::batch::{Digest, Incarnation, LogId};
use crate::io::Disk;
use crate::journal::{self, Journal, JournalError};
use crate::router::Router;
use crate::segment::paths;
use crate::wal::chain::{Chain, Place};

/// A line that means nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("manifest line not understood: {0:?}")]
pub struct LineError(pub String);

/// One way of spreading keys over shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Counts layouts, from 0.
    pub generation: u32,
    /// Number of its first shard; shard numbers are never reused.
    pub first_shard: u32,
    /// Hash, seed and reduction.
    pub router: Router,
}

impl Layout {
    /// The numbers of its shards.
    pub fn shards(&self) -> Range<u32> {
        self.first_shard..self.first_shard + self.router.shards
    }
}

/// What `log.manifest` says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogState {
    /// Identity of the log.
    pub log: LogId,
    /// Format block of all its segments, in bytes.
    pub block_bytes: u32,
    /// All layouts, the one in force last.
    pub layouts: Vec<Layout>,
    /// Number of the last opening for writing.
    pub epoch: u64,
    /// Whether that opening was closed.
    pub closed: bool,
    /// Process of the last opening.
    pub pid: u32,
    /// Whether the layout in force was ever opened: from then on each of its shards has a manifest.
    pub layout_opened: bool,
    /// Where each shard's chain ended when the log was last closed: it never ends before that again.
    pub ended: BTreeMap<u32, Chain>,
    /// Shards that stopped in that opening, because their segment could not be written or synced.
    pub fenced: Vec<Fenced>,
    /// Epoch entries with a note when it was last closed: so many there must be.
    pub epochs: u64,
}

/// A segment that was given up after a failed write or sync.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fenced {
    /// The shard.
    pub shard: u32,
    /// What failed.
    pub op: String,
    /// The system's error number.
    pub errno: i32,
    /// Where in the segment.
    pub offset: u64,
}

/// What `log.manifest` knows of a shard. A shard whose files say less was put back from an older copy;
/// if they say more, `log.manifest` was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// Whether it must have a manifest.
    pub manifest: bool,
    /// Where its chain ended when the log was last closed.
    pub ended: Option<Chain>,
    /// Where its chain stood, at least, when it was last named by a checkpoint.
    pub named: Option<Chain>,
    /// Number of the last opening: no segment belongs to a later one.
    pub epoch: u64,
}

/// One line of `log.manifest`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum LogLine {
    Genesis { log: LogId, block_bytes: u32, created: i64 },
    Layout(Layout),
    Opened { epoch: u64, pid: u32, wall: i64 },
    Fenced(Fenced),
    Ended { shard: u32, chain: Chain },
    Closed { epoch: u64, wall: i64, epochs: u64 },
}

impl LogLine {
    /// The line's text.
    pub fn write(&self) -> String {
        match self {
            LogLine::Genesis { log, block_bytes, created } => {
                format!(
                    "genesis version=1 log={} digest=blake3 block={block_bytes} created={created}",
                    hex(log)
                )
            }
            LogLine::Layout(l) => format!(
                "layout generation={} first_shard={} shards={} seed={} reduction=multiply_shift",
                l.generation, l.first_shard, l.router.shards, l.router.seed
            ),
            LogLine::Opened { epoch, pid, wall } => format!("opened epoch={epoch} pid={pid} wall={wall}"),
            LogLine::Fenced(f) => {
                format!("fenced shard={} op={} errno={} offset={}", f.shard, f.op, f.errno, f.offset)
            }
            LogLine::Ended { shard, chain } => format!(
                "ended shard={shard} batches={} seqs={} digest={}",
                chain.number,
                chain.seq,
                hex(&chain.previous)
            ),
            LogLine::Closed { epoch, wall, epochs: 0 } => format!("closed epoch={epoch} wall={wall}"),
            LogLine::Closed { epoch, wall, epochs } => {
                format!("closed epoch={epoch} wall={wall} epochs={epochs}")
            }
        }
    }

    /// Reads a line.
    pub fn read(line: &str) -> Result<LogLine, LineError> {
        let parse = || {
            let (word, f) = Pairs::split(line)?;
            Some(match word {
                "genesis" if f.get("version")? == "1" && f.get("digest")? == "blake3" => {
                    let block_bytes: u32 = f.number("block")?;
                    let sane = block_bytes.is_power_of_two() && (4096..=1 << 20).contains(&block_bytes);
                    sane.then_some(LogLine::Genesis {
                        log: unhex(f.get("log")?)?,
                        block_bytes,
                        created: f.number("created")?,
                    })?
                }
                "layout" if f.get("reduction")? == "multiply_shift" => {
                    let shards = f.number("shards")?;
                    let first_shard: u32 = f.number("first_shard")?;
                    first_shard.checked_add(shards)?;
                    let router = Router { seed: f.number("seed")?, shards };
                    (shards > 0).then_some(LogLine::Layout(Layout {
                        generation: f.number("generation")?,
                        first_shard,
                        router,
                    }))?
                }
                "opened" => LogLine::Opened {
                    epoch: f.number("epoch")?,
                    pid: f.number("pid")?,
                    wall: f.number("wall")?,
                },
                "fenced" => LogLine::Fenced(Fenced {
                    shard: f.number("shard")?,
                    op: f.get("op")?.to_owned(),
                    errno: f.number("errno")?,
                    offset: f.number("offset")?,
                }),
                "ended" => LogLine::Ended {
                    shard: f.number("shard")?,
                    chain: Chain {
                        number: f.number("batches")?,
                        seq: f.number("seqs")?,
                        previous: unhex(f.get("digest")?)?,
                    },
                },
                "closed" => LogLine::Closed {
                    epoch: f.number("epoch")?,
                    wall: f.number("wall")?,
                    // None were made, or by a program that made none.
                    epochs: match f.get("epochs") {
                        None => 0,
                        Some(_) => f.number("epochs")?,
                    },
                },
                _ => return None,
            })
        };
        parse().ok_or_else(|| LineError(line.to_owned()))
    }
}

impl LogState {
    /// Folds the lines of the file.
    pub fn from_lines(lines: &[String]) -> Result<LogState, LineError> {
        let mut state = LogState::default();
        for line in lines {
            state.apply(&LogLine::read(line)?);
        }
        if state.layouts.is_empty() {
            return Err(LineError("no layout".to_owned()));
        }
        Ok(state)
    }

    /// Folds one line.
    pub fn apply(&mut self, line: &LogLine) {
        match line {
            LogLine::Genesis { log, block_bytes, .. } => {
                self.log = *log;
                self.block_bytes = *block_bytes;
            }
            LogLine::Layout(layout) => {
                self.layouts.push(*layout);
                self.layout_opened = false;
            }
            LogLine::Opened { epoch, pid, .. } => {
                self.epoch = *epoch;
                self.pid = *pid;
                self.closed = false;
                self.layout_opened = true;
                self.fenced.clear();
            }
            LogLine::Fenced(fenced) => self.fenced.push(fenced.clone()),
            LogLine::Ended { shard, chain } => _ = self.ended.insert(*shard, *chain),
            LogLine::Closed { epochs, .. } => {
                self.closed = true;
                self.epochs = self.epochs.max(*epochs);
            }
        }
    }

    /// What a shard's own files must hold at least.
    pub fn expected(&self, shard: u32, generation: u32) -> Expected {
        Expected {
            manifest: generation < self.layout().generation || self.layout_opened,
            ended: self.ended.get(&shard).copied(),
            epoch: self.epoch,
            named: None,
        }
    }

    /// The layout in force.
    pub fn layout(&self) -> &Layout {
        self.layouts.last().expect("checked when it was read")
    }

    /// Every shard that ever was, with its layout generation.
    pub fn shards(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.layouts.iter().flat_map(|l| l.shards().map(move |s| (s, l.generation)))
    }
}

/// What a sealed segment must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// Length of the file.
    pub bytes: u64,
    /// Offset after the last batch.
    pub end: u64,
    /// Offset after the cut bytes.
    pub cut_end: u64,
    /// Batch numbers.
    pub batches: Range<u64>,
    /// Sequences.
    pub seqs: Range<u64>,
    /// Digest of the footer, which covers every batch's digest.
    pub digest: Digest,
}

/// What the manifest says of one segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SegmentState {
    /// It exists; its header says the rest.
    Exists {
        /// Length promised.
        bytes: u64,
    },
    /// Complete, with a footer.
    Sealed(Sealed),
    /// It exists, but none of its batches counts.
    Void,
    /// It was removed on purpose.
    Retired,
}

/// Batches that are known to be lost, and that readers step over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// Batch numbers.
    pub batches: Range<u64>,
    /// Sequences.
    pub seqs: Range<u64>,
}

/// One line of a shard's manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ShardLine {
    Shard { log: LogId, generation: u32, shard: u32 },
    Segment { index: u64, bytes: u64 },
    Begun { index: u64 },
    Sealed { index: u64, sealed: Sealed },
    Void { index: u64, reason: String },
    Retired { index: u64, reason: String },
    Loss { loss: Loss, reason: String },
}

impl ShardLine {
    /// The line's text.
    pub fn write(&self) -> String {
        match self {
            ShardLine::Shard { log, generation, shard } => {
                format!("shard log={} generation={generation} shard={shard}", hex(log))
            }
            ShardLine::Segment { index, bytes } => format!("segment index={index} bytes={bytes}"),
            ShardLine::Begun { index } => format!("begun index={index}"),
            ShardLine::Sealed { index, sealed: s } => format!(
                "sealed index={index} bytes={} end={} cut_end={} batches={}..{} seqs={}..{} digest={}",
                s.bytes,
                s.end,
                s.cut_end,
                s.batches.start,
                s.batches.end,
                s.seqs.start,
                s.seqs.end,
                hex(&s.digest)
            ),
            ShardLine::Void { index, reason } => format!("void index={index} reason={reason}"),
            ShardLine::Retired { index, reason } => format!("retired index={index} reason={reason}"),
            ShardLine::Loss { loss: l, reason } => format!(
                "loss batches={}..{} seqs={}..{} reason={reason}",
                l.batches.start, l.batches.end, l.seqs.start, l.seqs.end
            ),
        }
    }

    /// Reads a line.
    pub fn read(line: &str) -> Result<ShardLine, LineError> {
        let parse = || {
            let (word, f) = Pairs::split(line)?;
            let reason = || f.get("reason").map(str::to_owned);
            Some(match word {
                "shard" => ShardLine::Shard {
                    log: unhex(f.get("log")?)?,
                    generation: f.number("generation")?,
                    shard: f.number("shard")?,
                },
                "segment" => ShardLine::Segment { index: f.number("index")?, bytes: f.number("bytes")? },
                "begun" => ShardLine::Begun { index: f.number("index")? },
                "sealed" => ShardLine::Sealed {
                    index: f.number("index")?,
                    sealed: Sealed {
                        bytes: f.number("bytes")?,
                        end: f.number("end")?,
                        cut_end: f.number("cut_end")?,
                        batches: f.range("batches")?,
                        seqs: f.range("seqs")?,
                        digest: unhex(f.get("digest")?)?,
                    },
                },
                "void" => ShardLine::Void { index: f.number("index")?, reason: reason()? },
                "retired" => ShardLine::Retired { index: f.number("index")?, reason: reason()? },
                "loss" => ShardLine::Loss {
                    loss: Loss { batches: f.range("batches")?, seqs: f.range("seqs")? },
                    reason: reason()?,
                },
                _ => return None,
            })
        };
        parse().ok_or_else(|| LineError(line.to_owned()))
    }
}

/// What a shard's manifest says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShardState {
    /// Every segment that was ever made, by index.
    pub segments: BTreeMap<u64, SegmentState>,
    /// Segments whose first batch is known to be durable: one of them that looks blank is no spare.
    pub begun: BTreeSet<u64>,
    /// Every known loss.
    pub losses: Vec<Loss>,
}

impl ShardState {
    /// Folds the lines of the file, which must be of this log and shard.
    pub fn from_lines(lines: &[String], log: &LogId, shard: u32) -> Result<ShardState, LineError> {
        let mut state = ShardState::default();
        for text in lines {
            let line = ShardLine::read(text)?;
            if let ShardLine::Shard { log: l, shard: s, .. } = &line
                && (l != log || *s != shard)
            {
                return Err(LineError(text.clone()));
            }
            state.apply(&line);
        }
        Ok(state)
    }

    /// Folds one line.
    pub fn apply(&mut self, line: &ShardLine) {
        match line {
            ShardLine::Shard { .. } => {}
            ShardLine::Segment { index, bytes } => {
                self.segments.insert(*index, SegmentState::Exists { bytes: *bytes });
            }
            ShardLine::Begun { index } => _ = self.begun.insert(*index),
            ShardLine::Sealed { index, sealed } => {
                self.segments.insert(*index, SegmentState::Sealed(sealed.clone()));
            }
            ShardLine::Void { index, .. } => {
                self.segments.insert(*index, SegmentState::Void);
            }
            ShardLine::Retired { index, .. } => {
                self.segments.insert(*index, SegmentState::Retired);
            }
            ShardLine::Loss { loss, .. } => self.losses.push(loss.clone()),
        }
    }

    /// Whether one loss on record covers all of these batches.
    pub fn is_lost(&self, batches: &Range<u64>) -> bool {
        self.losses.iter().any(|l| l.batches.start <= batches.start && batches.end <= l.batches.end)
    }

    /// The losses that this batch belongs to.
    pub fn losses_with(&self, number: u64) -> impl Iterator<Item = &Loss> {
        self.losses.iter().filter(move |l| l.batches.contains(&number))
    }
}

/// A shard's manifest, open for appending: its journal and what it says.
pub struct ShardManifest<D: Disk> {
    journal: Journal<D>,
    /// What it says.
    pub state: ShardState,
}

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Its file is damaged, foreign, newer or unreadable.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// It is gone, or holds nothing valid, although the log has been open before.
    #[error("{name}: the shard's manifest is missing or empty, although the log has been open before")]
    Missing {
        /// File name.
        name: String,
    },
    /// A line that this program does not know.
    #[error("{name}: {source}")]
    Line {
        /// File name.
        name: String,
        /// The line.
        source: LineError,
    },
}

impl<D: Disk> ShardManifest<D> {
    /// Opens a shard's manifest, or makes it, unless it `must_exist`: whoever could begin a lost manifest
    /// anew would never miss what was only on record there.
    pub fn open(
        disk: &D,
        place: Place,
        incarnation: Incarnation,
        must_exist: bool,
    ) -> Result<ShardManifest<D>, ManifestError> {
        let name = paths::shard_manifest(place.shard);
        let identity = journal::Identity { log: place.log, shard: place.shard };
        let exists = match Journal::open(disk, &name, identity) {
            Err(JournalError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => None,
            other => other?,
        };
        if let Some((journal, contents)) = exists {
            let state = ShardState::from_lines(&contents.lines, &place.log, place.shard)
                .map_err(|source| ManifestError::Line { name, source })?;
            return Ok(ShardManifest { journal, state });
        }
        if must_exist {
            return Err(ManifestError::Missing { name });
        }
        let first = ShardLine::Shard { log: place.log, generation: place.generation, shard: place.shard };
        let journal = Journal::create(disk, &name, identity, incarnation, &[first.write()])?;
        Ok(ShardManifest { journal, state: ShardState::default() })
    }

    /// Reads a shard's manifest; what does not exist says nothing.
    pub fn read(disk: &D, place: Place) -> Result<ShardState, ManifestError> {
        let name = paths::shard_manifest(place.shard);
        let identity = journal::Identity { log: place.log, shard: place.shard };
        let contents = match journal::read(disk, &name, identity) {
            Err(JournalError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => None,
            other => other?,
        };
        let lines = contents.map_or_else(Vec::new, |c| c.lines);
        ShardState::from_lines(&lines, &place.log, place.shard)
            .map_err(|source| ManifestError::Line { name, source })
    }

    /// Makes lines durable, all or none.
    pub fn append(&mut self, lines: &[ShardLine]) -> Result<(), ManifestError> {
        if lines.is_empty() {
            return Ok(());
        }
        let texts: Vec<String> = lines.iter().map(ShardLine::write).collect();
        self.journal.append(&texts)?;
        for line in lines {
            self.state.apply(line);
        }
        Ok(())
    }
}

/// The `key=value` pairs of a line.
struct Pairs<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Pairs<'a> {
    fn split(line: &'a str) -> Option<(&'a str, Pairs<'a>)> {
        let mut words = line.split(' ');
        let word = words.next()?;
        let pairs = words.map(|w| w.split_once('=')).collect::<Option<Vec<_>>>()?;
        Some((word, Pairs(pairs)))
    }

    fn get(&self, key: &str) -> Option<&'a str> {
        self.0.iter().find(|(k, _)| *k == key).map(|(_, v)| *v)
    }

    fn number<T: std::str::FromStr>(&self, key: &str) -> Option<T> {
        self.get(key)?.parse().ok()
    }

    fn range(&self, key: &str) -> Option<Range<u64>> {
        let (start, end) = self.get(key)?.split_once("..")?;
        let range = start.parse().ok()?..end.parse().ok()?;
        (range.start <= range.end).then_some(range)
    }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Reads what [`hex`] writes.
pub fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let bytes = text.as_bytes();
    if bytes.len() != 2 * N || bytes.iter().any(|b| !matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_come_back_as_they_went() {
        let sealed = Sealed { bytes: 9, end: 8, cut_end: 8, batches: 1..2, seqs: 3..4, digest: [5; 32] };
        let lines = [
            ShardLine::Shard { log: [7; 16], generation: 1, shard: 2 },
            ShardLine::Segment { index: 3, bytes: 4 },
            ShardLine::Begun { index: 3 },
            ShardLine::Sealed { index: 3, sealed },
            ShardLine::Void { index: 4, reason: "superseded".into() },
            ShardLine::Retired { index: 5, reason: "unused".into() },
            ShardLine::Loss { loss: Loss { batches: 5..6, seqs: 1..9 }, reason: "damage".into() },
        ];
        for line in lines {
            assert_eq!(ShardLine::read(&line.write()), Ok(line));
        }
        let lines = [
            LogLine::Genesis { log: [9; 16], block_bytes: 4096, created: -1 },
            LogLine::Layout(Layout { generation: 0, first_shard: 0, router: Router { seed: 1, shards: 2 } }),
            LogLine::Opened { epoch: 1, pid: 2, wall: 3 },
            LogLine::Fenced(Fenced { shard: 1, op: "fdatasync".into(), errno: 5, offset: 4096 }),
            LogLine::Ended { shard: 1, chain: Chain { number: 12, seq: 431, previous: [3; 32] } },
            LogLine::Closed { epoch: 1, wall: 4, epochs: 0 },
            LogLine::Closed { epoch: 2, wall: 5, epochs: 7 },
        ];
        for line in lines {
            assert_eq!(LogLine::read(&line.write()), Ok(line));
        }
    }

    proptest! {
        #[test]
        fn never_panics(line in "\\PC{0,60}") {
            let _ = (ShardLine::read(&line), LogLine::read(&line));
        }
    }
}
