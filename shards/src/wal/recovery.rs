//! Makes what a crash left behind durable, before anybody sees it, and writes to no block of an old
//! segment that holds data: a footer may follow the end, and zeros at the end of the file be given back.
//!
//! Recovery begins a fresh segment whose header names its predecessor and where that ends. The
//! batches above the watermark are copied forward into it byte for byte, since acknowledgements
//! may already name their digests. One fdatasync; then the log goes on. What lies beyond the
//! named end is void for ever. A crash in here leaves an unfinished successor, which the next
//! recovery writes anew, so a crash loop uses no space.

use std::io;

use crate::aligned::AlignedBuf;
use crate::batch::{self, Incarnation};
use crate::io::{Access, Disk};
use crate::manifest::{SegmentState, ShardLine, ShardManifest};
use crate::merkle::Frontier;
use crate::segment::footer::IndexEntry;
use crate::segment::header::{Carried, Header, Origin, Predecessor};
use crate::segment::paths::{self, Name};
use crate::wal::chain::{Chain, Damage, Examined, Place, Segment, UnusedKind};
use crate::wal::prepare::{self, PrepareError, Prepared};
use crate::wal::seal::SealJob;

/// What recovery needs from outside: time and chance.
#[derive(Debug, Clone, Copy)]
pub struct Begin {
    /// A fresh random incarnation.
    pub incarnation: Incarnation,
    /// Number of this opening of the log.
    pub epoch: u64,
    /// Wall clock, nanoseconds.
    pub wall_ns: i64,
    /// Length of a segment that must be made before the log can go on. It may be shorter than those
    /// that are prepared beside the commits, so that opening does not wait for its zeros.
    pub first_segment_bytes: u64,
}

/// A segment that is being written.
#[derive(Debug)]
pub struct Active<F> {
    /// The open, locked file.
    pub file: F,
    /// Its header, already on disk.
    pub header: Header,
    /// Where the next batch goes.
    pub offset: u64,
    /// Its batches so far.
    pub batches: Vec<IndexEntry>,
    /// Length of the file.
    pub bytes: u64,
}

/// Where a shard goes on.
#[derive(Debug)]
pub struct Start<F> {
    /// What the next batch must say.
    pub chain: Chain,
    /// The tree of all batches before it.
    pub tree: Frontier,
    /// The segment before the next one, if none is active.
    pub predecessor: Option<Predecessor>,
    /// The segment to go on in, after a recovery.
    pub active: Option<Active<F>>,
    /// Spares that were prepared by an earlier opening.
    pub spares: Vec<Prepared<F>>,
    /// Old segments that are complete now and want their footers.
    pub to_seal: Vec<SealJob>,
    /// The least index that no segment has had.
    pub next_index: u64,
    /// The greatest log time of the shard.
    pub log_time_max: u64,
    /// What was recovered, if the log was not closed cleanly.
    pub recovered: Option<Recovered>,
    /// What it cut off: it stays where it is, and does not count.
    pub cut: Vec<Cut>,
}

impl<F> Start<F> {
    /// Index of the segment that is gone on in, or that was last.
    pub fn segment(&self) -> u64 {
        let active = self.active.as_ref().map(|active| active.header.index);
        active.or(self.predecessor.map(|p| p.index)).unwrap_or(0)
    }
}

/// Bytes of a segment that a recovery cut off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// Index of the segment.
    pub segment: u64,
    /// Where they stand.
    pub bytes: std::ops::Range<u64>,
}

/// What a recovery did, for the control record and for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// Which row ended the chain.
    pub label: &'static str,
    /// The watermark that was written down.
    pub watermark: u64,
    /// Batches above it that were copied forward.
    pub carried: std::ops::Range<u64>,
    /// The predecessor and where it ends; `None` if nothing was durable.
    pub predecessor: Option<Predecessor>,
    /// Bytes beyond the end that are void now.
    pub cut_bytes: u64,
    /// Index of the segment that was begun.
    pub segment: u64,
}

/// Why a shard cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// Something that was durable is gone or altered; nothing was written.
    #[error("{} {}: {}", .0[0].verdict, .0[0].place, .0[0].meaning)]
    Damaged(Vec<Damage>),
    /// The disk said no.
    #[error("{name}: {source}")]
    Io {
        /// File or folder.
        name: String,
        /// What it said.
        source: io::Error,
    },
    /// No room for the segment that a recovery needs.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// The manifest could not be written.
    #[error(transparent)]
    Manifest(#[from] crate::manifest::ManifestError),
}

/// Locks every segment of the shard that may still be written. `None` if a killed owner's writes
/// are still in flight: try again. Recovery reads only under these locks.
pub fn lock_segments<D: Disk>(
    disk: &D,
    shard: u32,
    manifest: &ShardManifest<D>,
) -> io::Result<Option<Vec<D::File>>> {
    let mut locks = Vec::new();
    for name in disk.names()? {
        let Name::Segment { shard: s, index } = paths::parse(&name) else { continue };
        let open = matches!(manifest.state.segments.get(&index), None | Some(SegmentState::Exists { .. }));
        if s != shard || !open {
            continue;
        }
        let file = disk.open(&name, Access::Write)?;
        if !disk.try_lock(&file)? {
            return Ok(None);
        }
        locks.push(file);
    }
    Ok(Some(locks))
}

/// Opens a shard for writing, from what [`crate::wal::chain::examine`] found under the locks. The caller has
/// let go of them, and holds the log's own lock: nobody else opens segments for writing.
pub fn recover<D: Disk>(
    disk: &D,
    place: Place,
    manifest: &mut ShardManifest<D>,
    examined: Examined,
    begin: Begin,
) -> Result<Start<D::File>, RecoveryError> {
    let failed = |name: String| move |source| RecoveryError::Io { name, source };
    if !examined.damage.is_empty() {
        return Err(RecoveryError::Damaged(examined.damage));
    }
    clear_leftovers(disk, place.shard, manifest, &examined)?;
    let mut start = Start {
        chain: examined.chain,
        tree: examined.tree.clone(),
        predecessor: examined.base,
        active: None,
        spares: Vec::new(),
        to_seal: Vec::new(),
        next_index: examined.next_index,
        log_time_max: examined.log_time_max,
        recovered: None,
        cut: Vec::new(),
    };
    let mut spares = Vec::new();
    for unused in &examined.unused {
        if unused.what != UnusedKind::Void && unused.file_bytes < begin.first_segment_bytes {
            // Prepared under another setting, or cut short: not worth keeping. A finished recovery that a
            // later one superseded looks unfinished, and has given its space back if a crash came before
            // the line that calls it void.
            retire(disk, place.shard, manifest, unused.index, "too_short")?;
            continue;
        }
        let wanted = match unused.what {
            UnusedKind::Spare | UnusedKind::UnfinishedRecovery => true,
            UnusedKind::Void => false,
        };
        if wanted {
            let name = paths::segment(place.shard, unused.index);
            let spare =
                prepare::reopen(disk, place.shard, unused.index, unused.file_bytes).map_err(failed(name))?;
            // An unfinished recovery comes first, so that a crash loop uses no space.
            let first = unused.what == UnusedKind::UnfinishedRecovery;
            spares.extend(spare.map(|s| (!first, s)));
        }
    }
    spares.sort_by_key(|(order, s)| (*order, s.index));
    let mut spares: Vec<_> = spares.into_iter().map(|(_, s)| s).collect();
    let in_doubt =
        !examined.segments.is_empty() || examined.unused.iter().any(|u| u.what != UnusedKind::Spare);
    if in_doubt {
        // Twice what is in doubt, so that there is room to go on.
        let needed = 2 * carried_bytes(&examined, disk.block_bytes());
        let fitting = spares.iter().position(|s| s.bytes >= needed);
        let target = match fitting {
            Some(at) => spares.remove(at),
            None => {
                let index = start.next_index;
                start.next_index += 1;
                let bytes = begin.first_segment_bytes.max(needed.next_multiple_of(64 << 10));
                prepare::prepare(disk, manifest, place.shard, index, bytes, &mut || true)?
            }
        };
        let index = target.index;
        // What stays in place will be sealed, and nobody looks for a chain below the last sealed index.
        let kept = examined.segments.iter().filter(|s| !kept_in(s, examined.watermark).is_empty());
        for kept in kept.map(|s| s.index).chain(examined.base.map(|p| p.index)) {
            assert!(index > kept, "a recovery goes into segment {index}, and segment {kept} before it stays");
        }
        write_successor(disk, place, &examined, begin, target, &mut start)?;
        manifest.append(&[ShardLine::Begun { index }])?;
        settle_predecessors(disk, place, manifest, &examined, &mut start)?;
    }
    // Spares that a rotation will use must come after the active one in index, so that names tell the order.
    let floor = start.active.as_ref().map_or(0, |a| a.header.index + 1);
    let (keep, drop): (Vec<_>, Vec<_>) = spares.into_iter().partition(|s| s.index >= floor);
    for spare in drop {
        retire(disk, place.shard, manifest, spare.index, "unused")?;
    }
    start.spares = keep;
    Ok(start)
}

/// Removes what a crash left half-made: files in preparation, and files that were retired already.
fn clear_leftovers<D: Disk>(
    disk: &D,
    shard: u32,
    manifest: &mut ShardManifest<D>,
    examined: &Examined,
) -> Result<(), RecoveryError> {
    let failed = |name: String| move |source| RecoveryError::Io { name, source };
    // A killed owner may have died between a rename and its sync: what is put on record must be there after
    // a power cut, too.
    disk.sync_names().map_err(failed("the log's folder".into()))?;
    for name in disk.names().map_err(failed("the log's folder".into()))? {
        let gone = match paths::parse(&name) {
            Name::Prep { shard: s, .. } => s == shard,
            Name::Segment { shard: s, index } => {
                s == shard && manifest.state.segments.get(&index) == Some(&SegmentState::Retired)
            }
            _ => false,
        };
        if gone {
            disk.remove(&name).map_err(failed(name))?;
        }
    }
    // A crash between the rename and the manifest line leaves a spare that is not on record.
    let unlisted: Vec<_> = examined
        .unused
        .iter()
        .filter(|u| !manifest.state.segments.contains_key(&u.index))
        .map(|u| ShardLine::Segment { index: u.index, bytes: u.file_bytes })
        .collect();
    Ok(manifest.append(&unlisted)?)
}

/// Removes a segment for good: the line first, so that a missing file is never a surprise.
pub fn retire<D: Disk>(
    disk: &D,
    shard: u32,
    manifest: &mut ShardManifest<D>,
    index: u64,
    reason: &str,
) -> Result<(), RecoveryError> {
    manifest.append(&[ShardLine::Retired { index, reason: reason.to_owned() }])?;
    let name = paths::segment(shard, index);
    disk.remove(&name).map_err(|source| RecoveryError::Io { name, source })
}

/// Where the part that stays in place ends: after the last batch below the watermark.
fn kept_end(examined: &Examined, block_bytes: u32) -> Option<Predecessor> {
    let mut predecessor = examined.base;
    for segment in &examined.segments {
        let kept = kept_in(segment, examined.watermark);
        let Some(last) = kept.last() else { break };
        let end = last.end(block_bytes);
        predecessor =
            Some(Predecessor { index: segment.index, incarnation: segment.header.incarnation, end });
        if kept.len() < segment.batches.len() {
            break;
        }
    }
    predecessor
}

/// What a successor's header and the batches that it must carry take.
fn carried_bytes(examined: &Examined, block_bytes: u32) -> u64 {
    let in_doubt = examined.segments.iter().flat_map(|s| &s.batches[kept_in(s, examined.watermark).len()..]);
    u64::from(block_bytes) + in_doubt.map(|e| e.end(block_bytes) - e.offset).sum::<u64>()
}

fn kept_in(segment: &Segment, watermark: u64) -> &[IndexEntry] {
    let kept = segment.batches.partition_point(|e| e.number < watermark);
    &segment.batches[..kept]
}

/// Writes the successor: header and carried batches in one write, one fdatasync.
fn write_successor<D: Disk>(
    disk: &D,
    place: Place,
    examined: &Examined,
    begin: Begin,
    target: Prepared<D::File>,
    start: &mut Start<D::File>,
) -> Result<(), RecoveryError> {
    let block = disk.block_bytes();
    let predecessor = kept_end(examined, block);
    let mut header = Header {
        log: place.log,
        incarnation: begin.incarnation,
        generation: place.generation,
        shard: place.shard,
        index: target.index,
        segment_bytes: target.bytes,
        block_bytes: block,
        origin: Origin::Recovery,
        first_batch: examined.chain.number,
        first_seq: examined.chain.seq,
        durable: examined.chain.number,
        predecessor,
        previous: examined.chain.previous,
        epoch: begin.epoch,
        wall_ns: begin.wall_ns,
        log_time: examined.log_time_max,
        carried: Vec::new(),
        tree: examined.tree.clone(),
    };
    let mut bytes = vec![0; block as usize];
    let mut batches = Vec::new();
    for segment in &examined.segments {
        let name = paths::segment(place.shard, segment.index);
        let io = |source| RecoveryError::Io { name: name.clone(), source };
        let kept = kept_in(segment, examined.watermark).len();
        if kept == segment.batches.len() {
            continue;
        }
        let file = disk.open(&name, Access::ReadDirect).map_err(io)?;
        for entry in &segment.batches[kept..] {
            let number = entry.number;
            let placed = batch::placed_bytes(entry.body_bytes as usize, block);
            let mut buf = AlignedBuf::zeroed(placed);
            let filled = disk.read(&file, entry.offset, &mut buf[..placed]).map_err(io)?;
            let batch = batch::open(&buf[..filled], block)
                .ok()
                .filter(|b| b.digest == entry.digest && b.header.number == number)
                .ok_or_else(|| {
                    io(io::Error::other(format!(
                        "batch {number} reads differently from one time to the next"
                    )))
                })?;
            if batches.is_empty() {
                // Not what follows the last batch that stays: a loss on record may lie between the two.
                header.first_batch = number;
                header.first_seq = batch.header.first_seq;
                header.durable = number;
                header.previous = batch.header.previous;
            }
            match header.carried.last_mut() {
                Some(c) if c.incarnation == batch.header.incarnation => c.end = number + 1,
                _ => header.carried.push(Carried {
                    incarnation: batch.header.incarnation,
                    first: number,
                    end: number + 1,
                }),
            }
            batches.push(IndexEntry { offset: bytes.len() as u64, ..*entry });
            bytes.extend_from_slice(&buf[..placed]);
        }
    }
    let name = paths::segment(place.shard, target.index);
    let io = |source| RecoveryError::Io { name: name.clone(), source };
    if header.carried.len() > Header::CARRIED_MAX || bytes.len() as u64 > target.bytes / 2 {
        return Err(io(io::Error::other("more batches are in doubt than a shard ever has in flight")));
    }
    header.write(&mut bytes[..block as usize]);
    let mut buf = AlignedBuf::zeroed(bytes.len());
    buf[..bytes.len()].copy_from_slice(&bytes);
    disk.write(&target.file, 0, &buf[..bytes.len()]).map_err(io)?;
    disk.sync(&target.file).map_err(io)?;
    start.recovered = Some(Recovered {
        label: examined.end.label,
        watermark: examined.watermark,
        carried: header.first_batch..header.carried_end(),
        predecessor,
        cut_bytes: examined.end.cut_bytes,
        segment: target.index,
    });
    start.predecessor = predecessor;
    start.active =
        Some(Active { file: target.file, header, offset: bytes.len() as u64, batches, bytes: target.bytes });
    Ok(())
}

/// The old segments: complete ones want a footer, superseded ones are put on record as void.
fn settle_predecessors<D: Disk>(
    disk: &D,
    place: Place,
    manifest: &mut ShardManifest<D>,
    examined: &Examined,
    start: &mut Start<D::File>,
) -> Result<(), RecoveryError> {
    let failed = |name: String| move |source| RecoveryError::Io { name, source };
    let active_index = start.active.as_ref().map(|a| a.header.index);
    let mut void: Vec<(u64, u64, &str)> = Vec::new();
    for segment in &examined.segments {
        let kept = kept_in(segment, examined.watermark);
        if kept.is_empty() {
            void.push((segment.index, segment.nonblank_end, "superseded"));
            continue;
        }
        let last = kept.last().expect("not empty");
        let end = last.end(segment.header.block_bytes);
        if segment.nonblank_end > end {
            start.cut.push(Cut { segment: segment.index, bytes: end..segment.nonblank_end });
        }
        start.to_seal.push(SealJob {
            header: segment.header.clone(),
            batches: kept.to_vec(),
            end,
            cut_end: segment.nonblank_end.max(end),
        });
    }
    for unused in &examined.unused {
        if unused.what == UnusedKind::Void && Some(unused.index) != active_index {
            void.push((unused.index, unused.nonblank_end, "not_reached"));
        }
    }
    for (index, nonblank_end, reason) in void {
        let name = paths::segment(place.shard, index);
        let file = disk.open(&name, Access::Write).map_err(failed(name.clone()))?;
        disk.truncate(&file, nonblank_end).map_err(failed(name))?;
        start.cut.push(Cut { segment: index, bytes: 0..nonblank_end });
        manifest.append(&[ShardLine::Void { index, reason: reason.to_owned() }])?;
    }
    Ok(())
}
