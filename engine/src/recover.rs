//! Damage, and what can be done about it.
//!
//! A torn tail needs no help: opening the log ends it. What was durable and is gone or altered makes opening
//! refuse, and somebody has to decide. [`plan`] says what is wrong, what opening would do, and what
//! [`write()`] would put on record as lost; with that on record the log opens, and readers step over the loss.
//! [`segment()`] mends one segment file into a new one.
//!
//! It never changes a segment, and it refuses where a part of the damage would stay in the way: then
//! nothing is written at all. That is so for a manifest that is gone, for a missing segment that was not
//! sealed, and for a loss with nothing intact behind it in its segment: nobody knows where such a loss ends.

use std::path::Path;

use hanaper_shards::io::disk::Folder;
use hanaper_shards::io::{Access, Disk};
use hanaper_shards::journal::{self, Identity};
use hanaper_shards::manifest::{LogState, Loss, ManifestError, ShardLine, ShardManifest, ShardState};
use hanaper_shards::segment::paths::{self, Name};
use hanaper_shards::wal::chain::{self, Damage, Examined, Place, UnusedKind};
use hanaper_shards::wal::open::compare;
use hanaper_shards::wal::recovery;

use crate::error::{OpenError, ReadError};
use crate::lock::Lock;
use crate::read::acks::ShardAcks;
use crate::read::check::ShardCheck;
use crate::read::disk::ReadOnly;
use crate::read::view::{self, View};
use crate::read::{self, OwnedRecord};
use crate::words;

mod segment;

pub use segment::segment;

/// So often a shard is looked at anew because what was found would be put on record. Each time shows what
/// the loss before had hidden.
const LOOKS_MAX: usize = 16;

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

/// Who does a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// [`write()`] or [`segment()`].
    Recover,
    /// The next opening of the log.
    Opening,
    /// Somebody, by hand: nothing here can.
    Hand,
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
    /// Who does it.
    pub by: Who,
}

/// What is done, or would be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// In the order of the log.
    pub steps: Vec<Step>,
    /// Single records that were salvaged out of damaged batches.
    pub salvaged: Vec<OwnedRecord>,
    /// Why [`write()`] refuses, if it does.
    pub obstacle: Option<String>,
}

impl Plan {
    /// Whether something is wrong that only somebody's hand can put right.
    pub fn needs_a_hand(&self) -> bool {
        self.steps.iter().any(|step| step.by == Who::Hand)
    }

    /// Whether something that was durable is lost or in question.
    pub fn loses(&self) -> bool {
        self.steps.iter().any(|step| step.loses)
    }
}

/// What was found of a log.
struct Log {
    disk: ReadOnly,
    /// Shards without a manifest that can be read.
    without_manifest: Vec<Damage>,
    shards: Vec<Found>,
    /// What nobody of ours has put there. It is in nobody's way.
    strays: Vec<Damage>,
}

/// What was found of one shard.
struct Found {
    place: Place,
    manifest: ShardState,
    live: bool,
    /// All that is wrong.
    failed: Vec<Damage>,
    /// What of it stays wrong once the losses are on record.
    left: Vec<Damage>,
    /// The chain once the losses are on record.
    after: Examined,
}

/// Says what opening the log would do, and what [`write()`] would. Writes nothing.
pub fn plan(path: impl AsRef<Path>, _mode: Mode) -> Result<Plan, ReadError> {
    Ok(planned(&look(path.as_ref())?))
}

/// Puts losses on record, so that the log can be opened again. Takes the log's lock; touches no segment.
pub fn write(path: impl AsRef<Path>, _mode: Mode) -> Result<Plan, ReadError> {
    let log = look(path.as_ref())?;
    let disk = &log.disk;
    if log.shards.iter().any(|shard| shard.live) {
        return Err(ReadError::Owned { path: disk.path().display().to_string() });
    }
    if let Some(obstacle) = obstacle(&log) {
        let Damage { verdict, place, meaning, .. } = obstacle.clone();
        let meaning = format!("{meaning}; {}; nothing was written", advice(obstacle));
        return Err(ReadError::Damaged { verdict, place, meaning });
    }
    let name = disk.path().display().to_string();
    let folder = Folder::open(disk.path()).map_err(ReadError::io(&*name))?;
    // The log's own block, which may be larger than this disk's.
    let folder = if disk.block_bytes() > folder.block_bytes() {
        folder.with_block_bytes(disk.block_bytes())
    } else {
        folder
    };
    let _lock = Lock::take(disk.path()).map_err(|error| match error {
        OpenError::Owned { .. } => ReadError::Owned { path: name.clone() },
        OpenError::Io { source, .. } => ReadError::Io { name: name.clone(), source },
        other => ReadError::Refused { name: name.clone(), why: other.to_string() },
    })?;
    for shard in log.shards.iter().filter(|shard| !losses(shard).is_empty()) {
        put_on_record(&folder, shard)?;
    }
    Ok(planned(&log))
}

fn planned(log: &Log) -> Plan {
    let lost = log.without_manifest.iter().map(by_hand);
    Plan {
        steps: lost.chain(log.shards.iter().flat_map(steps)).chain(log.strays.iter().map(by_hand)).collect(),
        salvaged: Vec::new(),
        obstacle: obstacle(log).map(|d| format!("{} {}: {}", d.verdict, d.place, words::meaning(d))),
    }
}

/// What would keep the log shut with all losses on record.
fn obstacle(log: &Log) -> Option<&Damage> {
    log.without_manifest.first().or_else(|| log.shards.iter().find_map(|shard| shard.after.damage.first()))
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
fn look(path: &Path) -> Result<Log, ReadError> {
    let (disk, state) = match read::open(path) {
        Err(ReadError::Damaged { verdict, place, meaning }) => {
            let disk = read::folder(path)?;
            let without_manifest = vec![Damage { verdict, place, meaning, loss: None }];
            return Ok(Log { disk, without_manifest, shards: Vec::new(), strays: Vec::new() });
        }
        other => other?,
    };
    let mut log = Log { disk, without_manifest: Vec::new(), shards: Vec::new(), strays: Vec::new() };
    for place in read::places(&state) {
        match lost_manifest(&log.disk, &state, place)? {
            Some(damage) => log.without_manifest.push(damage),
            None => log.shards.push(look_at(&log.disk, place, &state)?),
        }
    }
    log.strays = strays(&log)?;
    Ok(log)
}

/// Files that no manifest names.
fn strays(log: &Log) -> Result<Vec<Damage>, ReadError> {
    let failed = || ReadError::io(log.disk.path().display().to_string());
    let taken = read::verify::taken_names(&log.disk)?;
    let mut strays: Vec<Damage> = taken
        .into_iter()
        .map(|place| Damage {
            verdict: "STRAY",
            place,
            meaning: "a file of the log should stand here, and this is none".to_owned(),
            loss: None,
        })
        .collect();
    for entry in std::fs::read_dir(log.disk.path()).map_err(failed())? {
        let place = entry.map_err(failed())?.file_name().to_string_lossy().into_owned();
        let meaning = match paths::parse(&place) {
            Name::Stray => "it is not a file of this log",
            Name::Segment { shard, index } => {
                let Some(found) = log.shards.iter().find(|found| found.place.shard == shard) else {
                    continue;
                };
                // An owner may have come meanwhile, and put it on record.
                if found.manifest.segments.contains_key(&index)
                    || view::is_blank(&log.disk, &place)?
                    || view::is_listed_now(&log.disk, found.place, index)?
                {
                    continue;
                }
                "a segment with data that the manifest does not name"
            }
            _ => continue,
        };
        strays.push(Damage { verdict: "STRAY", place, meaning: meaning.to_owned(), loss: None });
    }
    strays.sort_by(|a, b| a.place.cmp(&b.place));
    Ok(strays)
}

/// What is wrong with a shard's manifest, if it is gone or altered. Without it nothing says which segments
/// must be there, so nothing that is found of the shard proves anything.
fn lost_manifest(disk: &ReadOnly, log: &LogState, place: Place) -> Result<Option<Damage>, ReadError> {
    let name = paths::shard_manifest(place.shard);
    let identity = Identity { log: place.log, shard: place.shard };
    let damage = |verdict, meaning| Ok(Some(Damage { verdict, place: name.clone(), meaning, loss: None }));
    match journal::read(disk, &name, identity) {
        Ok(Some(_)) => Ok(None),
        Err(journal::JournalError::Io { source, .. }) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(ReadError::io(name)(source))
        }
        Ok(None) | Err(journal::JournalError::Io { .. }) => {
            let entries = disk.list().map_err(ReadError::io(disk.path().display().to_string()))?;
            let has_segments = entries.iter().any(
                |e| matches!(paths::parse(&e.name), Name::Segment { shard, .. } if shard == place.shard),
            );
            match has_segments || log.expected(place.shard, place.generation).manifest {
                true => {
                    damage("MISSING", "the shard's manifest is gone, or nothing whole is in it".to_owned())
                }
                false => Ok(None),
            }
        }
        Err(error) => match ReadError::from(ManifestError::from(error)) {
            ReadError::Damaged { verdict, meaning, .. } => damage(verdict, meaning),
            error => Err(error),
        },
    }
}

/// Looks at one shard, and again with what was found on record, until that shows nothing more.
fn look_at(disk: &ReadOnly, place: Place, log: &LogState) -> Result<Found, ReadError> {
    let mut view = View::take(disk, place, log)?;
    let manifest = view.manifest.clone();
    let mut failed: Vec<Damage> = Vec::new();
    for _ in 0..LOOKS_MAX {
        let left = check(disk, &view)?;
        if let Some(newer) = left.iter().find(|damage| damage.verdict == "VERSION") {
            return Err(newer.clone().into());
        }
        for damage in &left {
            if !failed.contains(damage) {
                failed.push(damage.clone());
            }
        }
        let mut new: Vec<Loss> = left.iter().filter_map(recordable).cloned().collect();
        new.retain(|loss| !view.manifest.losses.contains(loss));
        if new.is_empty() {
            let View { live, examined: after, .. } = view;
            return Ok(Found { place, manifest, live, failed, left, after });
        }
        view.manifest.losses.extend(new);
        view.examined = chain::examine(disk, place, &view.manifest)
            .map_err(ReadError::io(format!("shard {}", place.shard)))?;
        compare(disk, place, &view.manifest, &view.expected, &mut view.examined)
            .map_err(ReadError::io(format!("shard {}", place.shard)))?;
    }
    let meaning = "more damage than can be put on record at once; mend its segments one by one".to_owned();
    Err(ReadError::Damaged { verdict: "NOT-COVERED", place: format!("shard {}", place.shard), meaning })
}

fn check(disk: &ReadOnly, view: &View) -> Result<Vec<Damage>, ReadError> {
    let mut ignore = |_| {};
    let mut check = ShardCheck::new(disk, ShardAcks::default(), None, &mut ignore);
    check.run(view)?;
    Ok(check.failed)
}

/// The loss that may be put on record for some damage. A batch whose digest holds is not lost, whatever
/// stands in its padding: the segment can be mended without any loss.
fn recordable(damage: &Damage) -> Option<&Loss> {
    let loss = damage.loss.as_ref()?;
    let single = loss.batches.end - loss.batches.start == 1;
    (damage.verdict != "PADDING" || !single).then_some(loss)
}

/// What is to be put on record, each once.
fn losses(shard: &Found) -> Vec<(Loss, &'static str)> {
    let mut losses: Vec<(Loss, &'static str)> = Vec::new();
    for damage in &shard.failed {
        if let Some(loss) = recordable(damage)
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
        .map(|damage| match recordable(damage) {
            _ if shard.left.contains(damage) => by_hand(damage),
            Some(l) => Step {
                action: format!(
                    "put {}, {}, on record as lost",
                    words::span("batch", &l.batches),
                    words::records(&l.seqs)
                ),
                by: Who::Recover,
                ..by_hand(damage)
            },
            None => Step {
                action: "settled by the loss that is put on record".to_owned(),
                loses: false,
                by: Who::Recover,
                ..by_hand(damage)
            },
        })
        .collect();
    if !shard.live && shard.after.damage.is_empty() {
        steps.extend(opening(shard));
    }
    steps
}

fn by_hand(damage: &Damage) -> Step {
    Step {
        row: damage.verdict,
        place: damage.place.clone(),
        action: advice(damage).to_owned(),
        why: words::meaning(damage),
        loses: !matches!(damage.verdict, "PADDING" | "STRAY"),
        by: Who::Hand,
    }
}

/// What to do about that which cannot be put right by a line in a manifest.
fn advice(damage: &Damage) -> &'static str {
    let whose = damage.place.as_str();
    match damage.verdict {
        "FOOTER" | "LENGTH" | "INDEX" | "PADDING" => {
            "mend the segment into a new file (recover --input, --output), and put that into its place"
        }
        "ROLLED-BACK" => {
            "put the newest copy of all this shard's files back; the missing records were acknowledged, so no others may take their numbers"
        }
        "STALE-MANIFEST" => "put the newest copy of log.manifest back",
        "STRAY" if whose.ends_with(".segment") => {
            "restore the shard's manifest from a copy, if that was cut short; if not, move the segment elsewhere"
        }
        "STRAY" => "move it elsewhere",
        "MISSING" if whose.ends_with(".manifest") => {
            "restore the file from a copy; without it nothing says what must be there, so nothing can be put on record"
        }
        "MISSING" if whose.ends_with(".segment") => {
            "restore the file from a copy; without it nobody knows what was in it, nothing if it was a spare or else \
             all from here on, so it cannot be put on record: the log can be read up to there, and not opened again"
        }
        "MISSING" | "BATCH-DIGEST" | "BATCH-MISSING" | "BATCH-NUMBER" | "STALE" => {
            "restore the segment from a copy; nothing intact follows in it to say where the loss ends, so it cannot \
             be put on record: the log can be read up to there, and not opened again"
        }
        "LOSS" => {
            "restore the segment from a copy; opening cannot go on behind a loss at the end of what is known to be \
             durable, so it is not put on record: the log can be read up to there, and not opened again"
        }
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
                "opening ends it at offset {end}, copies {n} {} behind that forward, and goes on in a fresh segment",
                if n == 1 { "batch" } else { "batches" }
            ),
        };
        let why = match after.end.cut_bytes {
            0 => "the log was not closed".to_owned(),
            n => format!("the {n} bytes behind the last batch were never acknowledged"),
        };
        steps.push(Step { row: after.end.label, place, action, why, loses: false, by: Who::Opening });
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
            by: Who::Opening,
        });
    }
    steps
}
