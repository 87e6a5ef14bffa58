//! One shard at one moment: what its manifest says, and the chain from its last sealed segment on.
//!
//! A log that somebody writes to changes under the reader's hands. So a view is taken again until
//! the manifest stood still meanwhile, and damage is damage only when it is found twice in the same
//! place.
//!
//! Of a live log only what is below the watermark is shown: the rest may yet be undone by a crash.
//! Of a log without an owner everything that recovery would keep is shown, and it is synced first,
//! so that nothing is shown that only a volatile cache holds.

use std::io;

use hanaper_shards::io::{Access, Disk};
use hanaper_shards::journal;
use hanaper_shards::manifest::{Expected, LogState, Sealed, SegmentState, ShardManifest, ShardState};
use hanaper_shards::segment::footer::IndexEntry;
use hanaper_shards::segment::header::Found;
use hanaper_shards::segment::paths::{self, Name};
use hanaper_shards::segment::scan::scan;
use hanaper_shards::wal::chain::{self, Damage, Examined, Place};
use hanaper_shards::wal::open::{compare, unknown_shard};

use super::disk::ReadOnly;
use crate::error::ReadError;

/// How often a view is taken anew because the log has moved on.
const ATTEMPTS: usize = 32;

/// More shards than any number of layouts ever had; what says otherwise was not written by us.
const SHARDS_MAX: u64 = 1 << 20;

/// Reads `log.manifest`.
pub(crate) fn log_state(disk: &ReadOnly) -> Result<(LogState, journal::Contents), ReadError> {
    let not_a_log =
        |why: &str| ReadError::NotALog { path: disk.path().display().to_string(), why: why.to_owned() };
    let identity = journal::Identity { log: [0; 16], shard: u32::MAX };
    let contents = match journal::read(disk, paths::LOG_MANIFEST, identity) {
        Err(journal::JournalError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Err(not_a_log("it has no log.manifest"));
        }
        other => other?,
    };
    let contents = contents.ok_or_else(|| not_a_log("its log.manifest holds nothing whole"))?;
    let state = LogState::from_lines(&contents.lines).map_err(|source| ReadError::Newer {
        name: paths::LOG_MANIFEST.to_owned(),
        why: format!("{source}: written by a newer program, or by nobody of ours"),
    })?;
    if state.layouts.iter().map(|l| u64::from(l.router.shards)).sum::<u64>() > SHARDS_MAX {
        return Err(ReadError::Newer {
            name: paths::LOG_MANIFEST.to_owned(),
            why: format!("more than {SHARDS_MAX} shards"),
        });
    }
    if state.log != contents.log {
        return Err(ReadError::Damaged {
            verdict: "FOREIGN-LOG",
            place: paths::LOG_MANIFEST.to_owned(),
            meaning: "its genesis names another log than its entries".to_owned(),
        });
    }
    Ok((state, contents))
}

/// Reads `log.manifest`, and lists the folder so that neither is older than the other by a new layout. The third
/// says that `log.manifest` is an older copy: there are files of a shard that it does not know.
pub(crate) fn log_and_names(
    disk: &ReadOnly,
) -> Result<(LogState, journal::Contents, Option<Damage>), ReadError> {
    loop {
        let (state, contents) = log_state(disk)?;
        let names = disk.names().map_err(ReadError::io(disk.path().display().to_string()))?;
        let unknown = unknown_shard(&state, names.iter().map(|name| paths::parse(name)));
        // The owner may have put a layout on record meanwhile, and made its files.
        if unknown.is_none() || log_state(disk)?.0.layouts == state.layouts {
            return Ok((state, contents, unknown));
        }
    }
}

/// Whether a shard stood still while it was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Still {
    Yes,
    /// Its manifest has moved on.
    No,
    /// Its owner came or went.
    Opened,
}

/// One shard at one moment.
#[derive(Debug)]
pub(crate) struct View {
    pub place: Place,
    pub manifest: ShardState,
    /// What `log.manifest` knows of it.
    pub expected: Expected,
    pub examined: Examined,
    /// Somebody writes to it, or a killed owner's writes are still on their way.
    pub live: bool,
    /// What people should know about how it was read.
    pub notices: Vec<String>,
}

impl View {
    /// Takes a view of a shard of this log.
    pub(crate) fn take(disk: &ReadOnly, place: Place, log: &LogState) -> Result<View, ReadError> {
        let mut found = View::once(disk, place, log.expected(place.shard, place.generation))?;
        for _ in 0..ATTEMPTS {
            let (view, still) = &found;
            let settled = view.examined.damage.is_empty() && *still != Still::Opened;
            if settled {
                break;
            }
            // Read before the shard, which may have been opened since.
            let (log, _) = log_state(disk)?;
            let again = View::once(disk, place, log.expected(place.shard, place.generation))?;
            let same = again.1 == Still::Yes && again.0.examined.damage == view.examined.damage;
            found = again;
            if same {
                break;
            }
        }
        Ok(found.0)
    }

    /// A view, and whether the shard stood still meanwhile.
    fn once(disk: &ReadOnly, place: Place, expected: Expected) -> Result<(View, Still), ReadError> {
        let failed = || ReadError::io(format!("shard {}", place.shard));
        let before = ShardManifest::read(disk, place)?;
        let live_before = is_live(disk, place.shard, &before).map_err(failed())?;
        let mut notices = Vec::new();
        if !live_before {
            sync(disk, place.shard, &before, &mut notices).map_err(failed())?;
        }
        let mut attempts = 0..ATTEMPTS;
        let mut examined = loop {
            match chain::examine(disk, place, &before) {
                Ok(examined) => break examined,
                // Removed by its owner between the listing and the opening.
                Err(error) if error.kind() == io::ErrorKind::NotFound && attempts.next().is_some() => {}
                Err(error) => return Err(failed()(error)),
            }
        };
        let live = is_live(disk, place.shard, &before).map_err(failed())?;
        // If it came alive meanwhile, what was read may be in doubt: it counts as live until taken again.
        let is_live = live || live_before;
        if !is_live {
            compare(disk, place, &before, &expected, &mut examined).map_err(failed())?;
        }
        if expected.manifest && before.segments.is_empty() && !has_manifest(disk, place)? {
            examined.damage.push(Damage {
                verdict: "MISSING",
                place: paths::shard_manifest(place.shard),
                meaning: "the shard's manifest is gone or holds nothing whole, although the log has been open with it".to_owned(),
                loss: None,
            });
        }
        let still = match live == live_before {
            false => Still::Opened,
            // Without damage nobody asks.
            true if examined.damage.is_empty() => Still::Yes,
            true if ShardManifest::read(disk, place)? == before => Still::Yes,
            true => Still::No,
        };
        Ok((View { place, manifest: before, expected, examined, live: is_live, notices }, still))
    }

    /// Of an unsealed segment, the batches that may be shown.
    pub(crate) fn shown<'a>(&self, segment: &'a chain::Segment) -> &'a [IndexEntry] {
        if !self.live {
            return &segment.batches;
        }
        let stamped = segment.batches.partition_point(|e| e.number < self.examined.watermark);
        &segment.batches[..stamped]
    }

    /// The damage that is not in a sealed segment before the last one.
    pub(crate) fn tail_damage(&self) -> Option<&Damage> {
        let last = self.last_sealed();
        self.examined.damage.iter().rev().find(|d| {
            !self.manifest.segments.iter().any(|(&index, state)| {
                matches!(state, SegmentState::Sealed(_))
                    && Some(index) != last
                    && d.place == paths::segment(self.place.shard, index)
            })
        })
    }

    /// The sealed segments in the order of their batches.
    pub(crate) fn sealed_in_order(&self) -> Vec<(u64, &Sealed)> {
        let sealed = self.manifest.segments.iter().filter_map(|(&index, state)| match state {
            SegmentState::Sealed(sealed) => Some((index, sealed)),
            _ => None,
        });
        let mut sealed: Vec<_> = sealed.collect();
        sealed.sort_by_key(|(index, s)| (s.batches.start, *index));
        sealed
    }

    /// Index of the last sealed segment.
    pub(crate) fn last_sealed(&self) -> Option<u64> {
        self.manifest
            .segments
            .iter()
            .rev()
            .find_map(|(&i, s)| matches!(s, SegmentState::Sealed(_)).then_some(i))
    }
}

/// Whether its manifest is there, and holds something whole.
fn has_manifest(disk: &ReadOnly, place: Place) -> Result<bool, ReadError> {
    let identity = journal::Identity { log: place.log, shard: place.shard };
    match journal::read(disk, &paths::shard_manifest(place.shard), identity) {
        Ok(contents) => Ok(contents.is_some()),
        Err(journal::JournalError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

/// Whether some segment may still be written to, or somebody has the log open.
fn is_live(disk: &ReadOnly, shard: u32, manifest: &ShardState) -> io::Result<bool> {
    if disk.is_held(paths::LOCK)? {
        return Ok(true);
    }
    for name in unsealed(disk, shard, manifest)? {
        if disk.is_held(&name)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn unsealed(disk: &ReadOnly, shard: u32, manifest: &ShardState) -> io::Result<Vec<String>> {
    let names = disk.names()?.into_iter().filter_map(|name| {
        let Name::Segment { shard: s, index } = paths::parse(&name) else { return None };
        let open = matches!(manifest.segments.get(&index), None | Some(SegmentState::Exists { .. }));
        (s == shard && open).then_some(name)
    });
    Ok(names.collect())
}

/// Whether a segment file holds nothing at all. A crash between renaming a spare and putting it on record
/// leaves such a one.
pub(crate) fn is_blank(disk: &ReadOnly, name: &str) -> Result<bool, ReadError> {
    let file = match disk.open(name, Access::ReadDirect) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        other => other.map_err(ReadError::io(name))?,
    };
    let found = scan(disk, &file, u64::MAX, &mut |_, _| {}).map_err(ReadError::io(name))?;
    Ok(found.header == Found::Blank && found.nonblank_end == 0)
}

/// Whether a segment is on record by now: of a log with an owner it may have been made since the manifest
/// was read.
pub(crate) fn is_listed_now(disk: &ReadOnly, place: Place, index: u64) -> Result<bool, ReadError> {
    Ok(ShardManifest::read(disk, place)?.segments.contains_key(&index))
}

/// A dead owner's last writes may be in the page cache or in the device's. On disk they are what
/// recovery will find; a mount that cannot sync cannot lose them by our reading either.
fn sync(disk: &ReadOnly, shard: u32, manifest: &ShardState, notices: &mut Vec<String>) -> io::Result<()> {
    for name in unsealed(disk, shard, manifest)? {
        let file = match disk.open(&name, Access::ReadDirect) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        if let Err(error) = disk.sync(&file) {
            notices.push(format!(
                "{name}: could not be synced before it was read ({error}); its last batches may not survive a power cut"
            ));
        }
    }
    Ok(())
}
