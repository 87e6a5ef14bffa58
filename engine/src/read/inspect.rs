//! What lies where, in plain structs. Judges nothing: [`super::verify`] does.

use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;

use hanaper_shards::aligned::AlignedBuf;
use hanaper_shards::batch::{self, Digest};
use hanaper_shards::io::{Access, Disk};
use hanaper_shards::manifest::{LogLine, LogState, Sealed, SegmentState, hex};
use hanaper_shards::segment::footer::IndexEntry;
use hanaper_shards::segment::header::Found;
use hanaper_shards::segment::paths::{self, Name};
use hanaper_shards::segment::scan::scan;
use hanaper_shards::wal::chain::UnusedKind;
use hanaper_shards::wal::sealed;

use super::check::header_of;
use super::disk::ReadOnly;
use super::promise;
use super::view::View;
use super::{Kind, Reader, Select};
use crate::checkpoint::epochs::{self, Period};
use crate::error::ReadError;
use crate::lock::Owner;

/// A log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// Its identity, in hexadecimal.
    pub log_id: String,
    /// Number of the layout in force.
    pub generation: u32,
    /// Openings for writing so far.
    pub epoch: u64,
    /// The process that has it open for writing.
    pub owner_pid: Option<u32>,
    /// Whether the file system keeps the space that was prepared for the log.
    pub space_promise: bool,
    /// How commits reach the disk, as its last opening put it on record; `None` if nothing says so (yet).
    pub primitive: Option<String>,
    /// Whether the folder lies on a file system in memory, gone with a reboot.
    pub volatile: bool,
    /// How far it is covered by what it says of itself; `None` if it has no epochs.
    pub checkpointed: Option<Checkpointed>,
    /// Its shards, those of earlier layouts included.
    pub shards: Vec<ShardInspection>,
}

/// How far a log is covered by epoch entries. Whether they are right is for [`super::verify`] to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpointed {
    /// Number of entries.
    pub entries: u64,
    /// Number of the current key period.
    pub period: u64,
    /// When the newest one was made, nanoseconds since 1970; 0 if the period has none yet.
    pub wall_ns: i64,
    /// Batches behind what it names.
    pub beyond_batches: u64,
    /// Records behind that.
    pub beyond_records: u64,
}

/// A shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardInspection {
    /// Its number.
    pub shard: u32,
    /// Whether it belongs to the layout in force.
    pub live: bool,
    /// What keeps its chain from being followed to the end, if something does: then the numbers below say
    /// only how far it was followed.
    pub damage: Option<String>,
    /// The last batch that is known to be durable.
    pub durable_batch: Option<u64>,
    /// Number of the next batch.
    pub next_batch: u64,
    /// Sequence of the next record.
    pub next_seq: u64,
    /// Bytes in segments that are not sealed.
    pub unsealed_bytes: u64,
    /// Losses on record, as batches and records: what readers step over.
    pub losses: Vec<(Range<u64>, Range<u64>)>,
    /// Its segments by index; those that were removed are left out.
    pub segments: Vec<SegmentInspection>,
}

/// A segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentInspection {
    /// Its index within the shard.
    pub index: u64,
    /// File name.
    pub name: String,
    /// `sealed`, `active`, `unsealed`, `spare`, `void`, `unfinished recovery`, `missing`, `damaged` or `unreached`.
    pub state: &'static str,
    /// Length of the file.
    pub bytes: u64,
    /// Offset after the last batch.
    pub end: u64,
    /// Batches.
    pub batches: u64,
    /// Records.
    pub records: u64,
    /// How many of its records are on record as lost.
    pub lost_records: u64,
    /// Sequence of its first record.
    pub first_seq: u64,
    /// Least wall time of a record, nanoseconds since 1970.
    pub from_wall_ns: Option<i64>,
    /// Greatest wall time of a record.
    pub to_wall_ns: Option<i64>,
}

/// A batch of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchInspection {
    /// Its number.
    pub number: u64,
    /// Where it stands.
    pub offset: u64,
    /// How much room it takes.
    pub bytes: u64,
    /// Sequence of its first record.
    pub first_seq: u64,
    /// Records.
    pub records: u64,
    /// The last batch that was known to be durable when it was written.
    pub durable: Option<u64>,
    /// Least wall time of a record; of the batch itself, if it has none.
    pub from_wall_ns: i64,
    /// Greatest wall time of a record.
    pub to_wall_ns: i64,
    /// Its digest; zeros if it is not whole.
    pub digest: Digest,
    /// Why it does not count, if it does not.
    pub fault: Option<String>,
}

/// The last key period that holds anything. What cannot be read is for `verify` to name.
fn newest_period(disk: &ReadOnly, log: &LogState) -> Result<Option<Period>, ReadError> {
    let periods = epochs::periods(disk).map_err(ReadError::io(disk.path().display().to_string()))?;
    Ok(periods.into_iter().rev().find_map(|period| epochs::read(disk, log.log, period).ok().flatten()))
}

fn checkpointed(period: &Period, shards: &[ShardInspection]) -> Checkpointed {
    let (mut batches, mut records) = (0, 0);
    for shard in shards.iter().filter(|shard| shard.live) {
        let head = period.heads.get(&shard.shard);
        batches += shard.next_batch.saturating_sub(head.map_or(0, |head| head.size));
        records += shard.next_seq.saturating_sub(head.map_or(0, |head| head.seqs));
    }
    Checkpointed {
        entries: period.tree.size(),
        period: period.number,
        wall_ns: period.entries.last().map_or(0, |(entry, _)| entry.time.wall_ns),
        beyond_batches: batches,
        beyond_records: records,
    }
}

/// Looks at a log.
pub fn inspect(path: impl AsRef<Path>) -> Result<Inspection, ReadError> {
    let (disk, log) = super::open(path.as_ref())?;
    let held = disk.is_held(paths::LOCK).map_err(ReadError::io(paths::LOCK))?;
    // Before the shards, so that these are not behind what it names.
    let newest = newest_period(&disk, &log)?;
    let mut shards = Vec::new();
    for place in super::places(&log) {
        let view = View::take(&disk, place, &log)?;
        shards.push(shard(&disk, &view, place.generation == log.layout().generation)?);
    }
    let checkpointed = newest.map(|period| checkpointed(&period, &shards));
    let primitive = primitive(&disk, &log, &shards)?;
    let a_segment =
        shards.iter().flat_map(|s: &ShardInspection| &s.segments).next().map(|s| disk.path().join(&s.name));
    Ok(Inspection {
        log_id: hex(&log.log),
        generation: log.layout().generation,
        epoch: log.epoch,
        owner_pid: held.then(|| Owner::read(disk.path()).map_or(log.pid, |owner| owner.pid)),
        space_promise: promise::is_kept(disk.path(), a_segment.as_deref()),
        primitive,
        checkpointed,
        volatile: promise::is_volatile(disk.path()),
        shards,
    })
}

/// What the newest opening said of itself. Each shard of the layout has its control record
/// `opened epoch=… primitive=…`, among the first that it wrote then, and each opening begins a segment of its
/// own: that segment's header leads to it.
fn primitive(
    disk: &ReadOnly,
    log: &LogState,
    shards: &[ShardInspection],
) -> Result<Option<String>, ReadError> {
    /// More than recovery ever carries forward: so many records may stand before it in its segment.
    const RECORDS_MAX: usize = 1 << 18;
    let (_, contents) = super::view::log_state(disk)?;
    let opened = contents.lines.iter().rev().find_map(|line| match LogLine::read(line) {
        Ok(LogLine::Opened { epoch, .. }) => Some(epoch),
        _ => None,
    });
    let Some(epoch) = opened else { return Ok(None) };
    let start = format!("opened epoch={epoch} ");
    let reader = Reader { disk: disk.clone(), log: log.clone(), notices: Mutex::default() };
    for shard in shards.iter().filter(|shard| shard.live) {
        let begun: Vec<_> = shard.segments.iter().filter(|s| s.batches > 0).collect();
        let older = |segment: &&SegmentInspection| {
            header_of(disk, &segment.name).is_none_or(|header| header.epoch < epoch)
        };
        let Some(first) = begun.get(begun.partition_point(older)) else { continue };
        let seqs = Some(first.first_seq..u64::MAX);
        let select = Select { seqs, shard: Some(shard.shard), control: true, ..Select::default() };
        // Damage is for others to tell: what comes before it may do.
        let records = reader.replay(select).take(RECORDS_MAX).map_while(Result::ok);
        let found = records.filter(|record| record.kind == Kind::Control).find_map(|record| {
            let text = String::from_utf8(record.payload).ok()?;
            text.strip_prefix(&start)?
                .split(' ')
                .find_map(|f| f.strip_prefix("primitive="))
                .map(str::to_owned)
        });
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

fn shard(disk: &ReadOnly, view: &View, live: bool) -> Result<ShardInspection, ReadError> {
    let examined = &view.examined;
    let shard = view.place.shard;
    let failed = || ReadError::io(format!("shard {shard}"));
    let mut segments = Vec::new();
    let mut indexes: Vec<u64> = view.manifest.segments.keys().copied().collect();
    indexes.extend(examined.segments.iter().map(|s| s.index));
    indexes.extend(examined.unused.iter().map(|u| u.index));
    indexes.sort_unstable();
    indexes.dedup();
    let sizes = disk.list().map_err(failed())?;
    let manifest = paths::shard_manifest(shard);
    let damage = match sizes.iter().any(|e| e.name == manifest) || indexes.is_empty() {
        true => examined.damage.first().map(|d| format!("{} {}: {}", d.verdict, d.place, d.meaning)),
        false => Some(format!("MISSING {manifest}: it is gone, and nothing else says what must be there")),
    };
    for index in indexes {
        let name = paths::segment(shard, index);
        let bytes = sizes.iter().find(|e| e.name == name).map(|e| e.bytes);
        let mut found = SegmentInspection {
            index,
            name,
            state: "missing",
            bytes: bytes.unwrap_or(0),
            end: 0,
            batches: 0,
            records: 0,
            lost_records: 0,
            first_seq: 0,
            from_wall_ns: None,
            to_wall_ns: None,
        };
        let state = view.manifest.segments.get(&index);
        match state {
            Some(SegmentState::Retired) => continue,
            Some(SegmentState::Sealed(sealed)) => {
                found.state = if bytes.is_some() {
                    sealed_state(disk, view, index, sealed, &mut found)?
                } else {
                    "missing"
                };
            }
            Some(SegmentState::Void) if bytes.is_some() => found.state = "void",
            _ => {
                if let Some(segment) = examined.segments.iter().find(|s| s.index == index) {
                    let last = examined.segments.last().is_some_and(|s| s.index == index);
                    found.state = if last && view.live { "active" } else { "unsealed" };
                    found.end = segment.end;
                    found.first_seq = segment.header.first_seq;
                    describe(&segment.batches, &mut found);
                } else if let Some(unused) = examined.unused.iter().find(|u| u.index == index) {
                    found.end = unused.nonblank_end;
                    found.state = match unused.what {
                        UnusedKind::Spare => "spare",
                        UnusedKind::UnfinishedRecovery => "unfinished recovery",
                        UnusedKind::Void => "void",
                    };
                } else if bytes.is_some() {
                    // Damage before it keeps the chain from being followed to it.
                    found.state = "unreached";
                }
            }
        }
        segments.push(found);
    }
    Ok(ShardInspection {
        shard,
        live,
        damage,
        durable_batch: examined.watermark.checked_sub(1),
        next_batch: examined.chain.number,
        next_seq: examined.chain.seq,
        losses: view.manifest.losses.iter().map(|l| (l.batches.clone(), l.seqs.clone())).collect(),
        unsealed_bytes: examined.segments.iter().map(|s| s.end).sum(),
        segments,
    })
}

fn sealed_state(
    disk: &ReadOnly,
    view: &View,
    index: u64,
    sealed: &Sealed,
    found: &mut SegmentInspection,
) -> Result<&'static str, ReadError> {
    found.end = sealed.end;
    found.first_seq = sealed.seqs.start;
    found.batches = sealed.batches.end - sealed.batches.start;
    found.records = sealed.seqs.end - sealed.seqs.start;
    let within =
        |lost: &Range<u64>| lost.end.min(sealed.seqs.end).saturating_sub(lost.start.max(sealed.seqs.start));
    found.lost_records = view.manifest.losses.iter().map(|loss| within(&loss.seqs)).sum();
    let name = found.name.clone();
    match sealed::read_sealed(disk, view.place, index, sealed).map_err(ReadError::io(name))? {
        Ok((_, entries)) => {
            describe(&entries, found);
            Ok("sealed")
        }
        Err(_) => Ok("damaged"),
    }
}

/// Counts and times of some batches.
fn describe(entries: &[IndexEntry], found: &mut SegmentInspection) {
    let with_records = || entries.iter().filter(|e| e.count > 0);
    found.batches = entries.len() as u64;
    found.records = entries.iter().map(|e| u64::from(e.count)).sum();
    found.from_wall_ns = with_records().map(|e| e.wall_ns(e.time_min)).min();
    found.to_wall_ns = with_records().map(|e| e.wall_ns(e.time_max)).max();
}

/// Looks at one segment file, wherever it is: every batch header in it, in order of offset. A spare has none.
pub fn inspect_segment(path: impl AsRef<Path>) -> Result<Vec<BatchInspection>, ReadError> {
    let path = path.as_ref();
    let (disk, name) = super::segment_file(path)?;
    let failed = || ReadError::io(path.display().to_string());
    let file = disk.open(&name, Access::ReadDirect).map_err(failed())?;
    let file_bytes = disk.bytes(&file).map_err(failed())?;
    let footer = sealed::read_footer(&disk, &file, file_bytes).map_err(failed())?.ok();
    let until = footer.as_ref().map_or(u64::MAX, |(summary, ..)| summary.cut_end);
    let found = scan(&disk, &file, until, &mut |_, _| {}).map_err(failed())?;
    let header = match &found.header {
        Found::Good(header) => Some(header),
        Found::Unknown(version) => {
            let why = format!("format version {version} is newer than this program knows");
            return Err(ReadError::Newer { name: path.display().to_string(), why });
        }
        Found::Blank | Found::Bad => None,
    };
    // Manifests are made of batches, too; a segment begins with its header.
    let mut block = AlignedBuf::zeroed(disk.block_bytes() as usize);
    let filled = disk.read(&file, 0, &mut block).map_err(failed())?;
    if header.is_none() && batch::Header::read(&block[..filled]).is_ok() {
        let why = "it is not a segment file: it begins with a batch, as a manifest does".to_owned();
        return Err(ReadError::Argument { name: path.display().to_string(), why });
    }
    let spare =
        found.nonblank_end == 0 && file_bytes > 0 && matches!(paths::parse(&name), Name::Segment { .. });
    if header.is_none() && found.seen.is_empty() && !spare {
        let why = "it is not a segment file: neither a segment's header nor any batch is in it".to_owned();
        return Err(ReadError::Argument { name: path.display().to_string(), why });
    }
    let batches = found.seen.iter().map(|seen| {
        let h = &seen.header;
        let entry = IndexEntry::new(seen.offset, h, seen.digest.unwrap_or_default());
        let wall = |log_time: u64| if h.count > 0 { entry.wall_ns(log_time) } else { h.anchor.wall_ns };
        let beyond = footer.as_ref().is_some_and(|(summary, ..)| seen.offset >= summary.end);
        let fault = match (&seen.digest, header) {
            (Err(fault), _) => Some(fault.to_string()),
            _ if beyond => Some("cut: it lies beyond the end of its segment".to_owned()),
            (_, Some(header)) if !header.admits(&h.incarnation, h.number) => {
                Some("stale: of an earlier life of this file".to_owned())
            }
            _ => None,
        };
        BatchInspection {
            number: h.number,
            offset: seen.offset,
            bytes: h.placed_bytes(disk.block_bytes()) as u64,
            first_seq: h.first_seq,
            records: u64::from(h.count),
            durable: h.durable.checked_sub(1),
            from_wall_ns: wall(h.time_min),
            to_wall_ns: wall(h.time_max),
            digest: entry.digest,
            fault,
        }
    });
    Ok(batches.collect())
}
