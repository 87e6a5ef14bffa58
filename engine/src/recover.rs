//! Damage, and what can be done about it.
//!
//! A torn tail needs no help: opening the log ends it. What was durable and is gone or altered makes opening
//! refuse, and somebody has to decide. [`plan`] says what is wrong, what opening would do, and what
//! [`write()`] would put on record as lost; with that on record the log opens, and readers step over the loss.
//! [`segment()`] mends one segment file into a new one.
//!
//! It never changes a segment, and it refuses where a part of the damage would stay in the way: then
//! nothing is written at all.

use std::path::Path;

use hanaper_shards::io::disk::Folder;
use hanaper_shards::io::{Access, Disk};
use hanaper_shards::manifest::{Loss, ShardLine, ShardManifest, ShardState};
use hanaper_shards::segment::paths;
use hanaper_shards::wal::chain::{self, Damage, Examined, Place, UnusedKind};
use hanaper_shards::wal::recovery;

use crate::error::{OpenError, ReadError};
use crate::lock::Lock;
use crate::read::acks::ShardAcks;
use crate::read::check::ShardCheck;
use crate::read::disk::ReadOnly;
use crate::read::view::View;
use crate::read::{self, OwnedRecord};

mod segment;

pub use segment::segment;

/// How much is kept of what is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// What digests prove.
    #[default]
    Conservative,
    /// Also single records whose own checksum holds inside a batch whose digest does not. Only
    /// [`segment()`] gives them out, each named, and never as part of the log.
    Aggressive,
}

/// One thing that is done, or would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The verdict, or the row of the decision table.
    pub row: &'static str,
    /// Where.
    pub place: String,
    /// What is done.
    pub action: String,
    /// Why.
    pub why: String,
    /// Whether something that was durable is lost or in question.
    pub loses: bool,
}

/// What is done, or would be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// In the order of the log.
    pub steps: Vec<Step>,
    /// Single records that were salvaged out of damaged batches.
    pub salvaged: Vec<OwnedRecord>,
}

/// What was found of one shard.
struct Found {
    place: Place,
    manifest: ShardState,
    live: bool,
    failed: Vec<Damage>,
    /// The chain once the losses are on record.
    after: Examined,
}

/// Says what opening the log would do, and what [`write()`] would. Writes nothing.
pub fn plan(path: impl AsRef<Path>, _mode: Mode) -> Result<Plan, ReadError> {
    let (_, found) = look(path.as_ref())?;
    Ok(Plan { steps: found.iter().flat_map(steps).collect(), salvaged: Vec::new() })
}

/// Puts losses on record, so that the log can be opened again. Takes the log's lock; touches no segment.
pub fn write(path: impl AsRef<Path>, _mode: Mode) -> Result<Plan, ReadError> {
    let (disk, found) = look(path.as_ref())?;
    if found.iter().any(|shard| shard.live) {
        return Err(ReadError::Owned { path: disk.path().display().to_string() });
    }
    if let Some(obstacle) = found.iter().find_map(|shard| shard.after.damage.first()) {
        let Damage { verdict, place, meaning, .. } = obstacle.clone();
        let meaning = format!("{meaning}; {}; nothing was written", advice(obstacle));
        return Err(ReadError::Damaged { verdict, place, meaning });
    }
    let name = disk.path().display().to_string();
    let folder = Folder::open(disk.path()).map_err(ReadError::io(&*name))?;
    let _lock = Lock::take(disk.path()).map_err(|error| match error {
        OpenError::Owned { .. } => ReadError::Owned { path: name.clone() },
        OpenError::Io { source, .. } => ReadError::Io { name: paths::LOCK.to_owned(), source },
        other => ReadError::Refused { name: name.clone(), why: other.to_string() },
    })?;
    for shard in found.iter().filter(|shard| !losses(shard).is_empty()) {
        put_on_record(&folder, shard)?;
    }
    Ok(Plan { steps: found.iter().flat_map(steps).collect(), salvaged: Vec::new() })
}

/// Under the lock, and only if the shard is still what the plan was made for.
fn put_on_record(folder: &Folder, shard: &Found) -> Result<(), ReadError> {
    let name = paths::shard_manifest(shard.place.shard);
    let changed =
        || ReadError::Refused { name: name.clone(), why: "the log has changed meanwhile; try again".into() };
    folder.open(&name, Access::Read).map_err(ReadError::io(&*name))?;
    // It exists, so no new incarnation is used.
    let mut manifest = ShardManifest::open(folder, shard.place, [0; 16], true)?;
    if manifest.state != shard.manifest {
        return Err(changed());
    }
    let locks =
        recovery::lock_segments(folder, shard.place.shard, &manifest).map_err(ReadError::io(&*name))?;
    if locks.is_none() {
        return Err(ReadError::Owned { path: folder.path().display().to_string() });
    }
    let mut state = manifest.state.clone();
    state.losses.extend(losses(shard).into_iter().map(|(loss, _)| loss));
    let examined = chain::examine(folder, shard.place, &state).map_err(ReadError::io(&*name))?;
    if !examined.damage.is_empty() {
        return Err(changed());
    }
    let lines: Vec<ShardLine> = losses(shard)
        .into_iter()
        .map(|(loss, verdict)| ShardLine::Loss { loss, reason: verdict.to_ascii_lowercase() })
        .collect();
    Ok(manifest.append(&lines)?)
}

/// Looks at every shard. It reads all of the log: damage in a sealed segment is not seen otherwise.
fn look(path: &Path) -> Result<(ReadOnly, Vec<Found>), ReadError> {
    let (disk, log) = read::open(path)?;
    let mut found = Vec::new();
    for place in read::places(&log) {
        let view = View::take(&disk, place, &log)?;
        let mut ignore = |_| {};
        let mut check = ShardCheck::new(&disk, ShardAcks::default(), &mut ignore);
        check.run(&view)?;
        let failed = check.failed;
        let mut state = view.manifest.clone();
        state.losses.extend(failed.iter().filter_map(|d| d.loss.clone()));
        let name = format!("shard {}", place.shard);
        let mut after = chain::examine(&disk, place, &state).map_err(ReadError::io(name))?;
        after.compare(place, &state, &view.expected);
        found.push(Found { place, manifest: view.manifest, live: view.live, failed, after });
    }
    Ok((disk, found))
}

/// What is to be put on record, each once.
fn losses(shard: &Found) -> Vec<(Loss, &'static str)> {
    let mut losses: Vec<(Loss, &'static str)> = Vec::new();
    for damage in &shard.failed {
        if let Some(loss) = &damage.loss
            && !shard.manifest.losses.contains(loss)
            && !losses.iter().any(|(known, _)| known == loss)
        {
            losses.push((loss.clone(), damage.verdict));
        }
    }
    losses
}

fn steps(shard: &Found) -> Vec<Step> {
    let mut steps: Vec<Step> = shard
        .failed
        .iter()
        .map(|damage| Step {
            row: damage.verdict,
            place: damage.place.clone(),
            action: match &damage.loss {
                Some(l) => format!(
                    "put batches {}..{} (records {}..{}) on record as lost",
                    l.batches.start, l.batches.end, l.seqs.start, l.seqs.end
                ),
                None => advice(damage).to_owned(),
            },
            why: damage.meaning.clone(),
            loses: true,
        })
        .collect();
    if !shard.live && shard.after.damage.is_empty() {
        steps.extend(opening(shard));
    }
    steps
}

/// What cannot be put right by a line in a manifest.
fn advice(damage: &Damage) -> &'static str {
    match damage.verdict {
        "FOOTER" | "LENGTH" | "INDEX" => {
            "mend the segment into a new file (--input, --output), and put that into its place"
        }
        "STRAY" => "move it elsewhere",
        _ => "restore the file from a copy",
    }
}

/// What the next opening does by itself.
fn opening(shard: &Found) -> Vec<Step> {
    let after = &shard.after;
    let mut steps = Vec::new();
    let kept = |e: &hanaper_shards::segment::footer::IndexEntry| e.number < after.watermark;
    if !after.segments.is_empty() {
        let carried = after.segments.iter().flat_map(|s| &s.batches).filter(|e| !kept(e)).count();
        let last = after
            .segments
            .iter()
            .rev()
            .find_map(|s| s.batches.iter().rev().find(|e| kept(e)).map(|e| (s, e)));
        let (place, end) = match last {
            Some((s, e)) => (paths::segment(shard.place.shard, s.index), e.end(s.header.block_bytes)),
            None => (format!("shard {}", shard.place.shard), 0),
        };
        let action = match carried {
            0 => format!("opening ends it at offset {end} and goes on in a fresh segment"),
            n => format!(
                "opening ends it at offset {end}, copies {n} batches behind that forward, and goes on in a fresh segment"
            ),
        };
        let why = match after.end.cut_bytes {
            0 => "the log was not closed".to_owned(),
            n => format!("{n} bytes behind the last batch were never acknowledged"),
        };
        steps.push(Step { row: after.end.label, place, action, why, loses: false });
    }
    for unused in &after.unused {
        let (row, action, why) = match unused.what {
            UnusedKind::Spare => continue,
            UnusedKind::UnfinishedRecovery => (
                "unfinished recovery",
                "opening writes it anew",
                "a recovery was cut short before anybody saw what it wrote",
            ),
            UnusedKind::Void => (
                "void",
                "opening puts it on record as void, and keeps it as it is",
                "none of its batches was acknowledged, or they live on in a later segment",
            ),
        };
        steps.push(Step {
            row,
            place: paths::segment(shard.place.shard, unused.index),
            action: action.to_owned(),
            why: why.to_owned(),
            loses: false,
        });
    }
    steps
}
