//! Opens one shard for writing, in steps between which the log decides whether to go on.
//!
//! ```text
//!   begin     its manifest, which is made if the log was never open with it
//!   lock      every segment that a killed owner's writes may still reach
//!   look      the chain, compared with what log.manifest knows: reads only
//!             (all shards so far, then the opening goes on record)
//!   recover   makes durable what was found, and begins a segment
//! ```
//! A log with damage in any shard of its layout is refused before anything is changed; a manifest may be
//! made, and the last entry of one is written once more as it is. And no segment belongs to an opening
//! that is not on record, so that an older copy of `log.manifest` is seen.

use std::io;

use crate::batch::{Digest, Incarnation};
use crate::io::{Disk, Entry};
use crate::journal::{self, JournalError};
use crate::manifest::{Expected, LogState, ManifestError, SegmentState, ShardManifest, ShardState};
use crate::segment::paths::{self, Name};
use crate::wal::chain::{self, Damage, Examined, Place};
use crate::wal::prepare;
use crate::wal::recovery::{self, Begin, RecoveryError, Start};
use crate::wal::sealed;

/// A shard that is being opened.
pub struct Opening<D: Disk> {
    disk: D,
    place: Place,
    expected: Expected,
    manifest: ShardManifest<D>,
    /// Until it has been looked at.
    locks: Vec<D::File>,
}

/// A shard that was looked at, and not changed.
pub struct Looked<D: Disk> {
    disk: D,
    place: Place,
    manifest: ShardManifest<D>,
    /// What was found.
    pub examined: Examined,
}

/// A shard that can be written to.
pub struct Opened<D: Disk> {
    /// Whose chain it is.
    pub place: Place,
    /// Its manifest, open.
    pub manifest: ShardManifest<D>,
    /// Where it goes on.
    pub start: Start<D::File>,
}

impl<D: Disk> Opening<D> {
    /// Opens its manifest, or makes it.
    pub fn begin(
        disk: &D,
        place: Place,
        expected: Expected,
        incarnation: Incarnation,
    ) -> Result<Opening<D>, ManifestError> {
        let manifest = ShardManifest::open(disk, place, incarnation, expected.manifest)?;
        Ok(Opening { disk: disk.clone(), place, expected, manifest, locks: Vec::new() })
    }

    /// Waits for nobody: `false` if a killed owner's writes are still in flight; try again.
    pub fn lock(&mut self) -> io::Result<bool> {
        let locks = recovery::lock_segments(&self.disk, self.place.shard, &self.manifest)?;
        let locked = locks.is_some();
        self.locks = locks.unwrap_or_default();
        Ok(locked)
    }

    /// Looks at the chain. What is wrong with it is in [`Examined::damage`]. `entries` are the folder's.
    pub fn look(self, entries: &[Entry]) -> io::Result<Looked<D>> {
        let Opening { disk, place, expected, manifest, locks } = self;
        let mut examined = chain::examine_listed(&disk, place, &manifest.state, entries)?;
        compare(&disk, place, &manifest.state, &expected, &mut examined)?;
        // Nothing is in flight any more, and the log's own lock keeps others out; recovery takes the locks of
        // the files that it opens itself.
        drop(locks);
        Ok(Looked { disk, place, manifest, examined })
    }
}

impl<D: Disk> Looked<D> {
    /// Recovers it, and makes its first segment if there is none to go on in. A disk without room for that is
    /// no error: the log opens, and takes nothing before there is room.
    pub fn recover(self, begin: Begin) -> Result<Opened<D>, RecoveryError> {
        let Looked { disk, place, mut manifest, examined } = self;
        let mut start = recovery::recover(&disk, place, &mut manifest, examined, begin)?;
        if start.active.is_none() && start.spares.is_empty() {
            let (index, bytes) = (start.next_index, begin.first_segment_bytes);
            match prepare::prepare(&disk, &mut manifest, place.shard, index, bytes, &mut || true) {
                Ok(prepared) => {
                    start.next_index += 1;
                    start.spares.push(prepared);
                }
                Err(error) if error.is_no_space() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Opened { place, manifest, start })
    }
}

/// Looks at a shard of an earlier layout: nobody writes to it any more, and it is still part of the log.
pub fn look_back<D: Disk>(
    disk: &D,
    place: Place,
    expected: &Expected,
    entries: &[Entry],
) -> Result<Vec<Damage>, ManifestError> {
    let name = paths::shard_manifest(place.shard);
    let gone = |meaning: &str| Damage {
        verdict: "MISSING",
        place: name.clone(),
        meaning: format!("{meaning}, although the log has been open with shard {}", place.shard),
        loss: None,
    };
    let failed = |source| ManifestError::Journal(JournalError::Io { name: name.clone(), source });
    let identity = journal::Identity { log: place.log, shard: place.shard };
    match journal::read(disk, &name, identity) {
        Ok(Some(_)) => {}
        Ok(None) => return Ok(vec![gone("it holds nothing whole")]),
        Err(JournalError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(vec![gone("it is gone")]);
        }
        Err(error) => return Err(error.into()),
    }
    let manifest = ShardManifest::read(disk, place)?;
    let mut examined = chain::examine_listed(disk, place, &manifest, entries).map_err(failed)?;
    compare(disk, place, &manifest, expected, &mut examined).map_err(failed)?;
    Ok(examined.damage)
}

/// A shard's files come after the line that makes the shard: if the line is not there, it is an older
/// `log.manifest` that stands in its place.
pub fn unknown_shard(log: &LogState, names: impl Iterator<Item = Name>) -> Option<Damage> {
    let end = log.layouts.iter().map(|l| u64::from(l.first_shard) + u64::from(l.router.shards)).max();
    let unknown = names.filter_map(|name| match name {
        Name::ShardManifest { shard } | Name::Segment { shard, .. } | Name::Prep { shard, .. } => {
            (u64::from(shard) >= end.unwrap_or(0)).then_some(shard)
        }
        _ => None,
    });
    unknown.min().map(|shard| Damage {
        verdict: "STALE-MANIFEST",
        place: paths::LOG_MANIFEST.to_owned(),
        meaning: format!(
            "there are files of shard {shard}, and it knows no such shard: an older copy of this file stands in its place, or they belong to another log"
        ),
        loss: None,
    })
}

/// Compares what was found with what `log.manifest` knows: files of an older copy are whole in themselves.
/// What does not agree is added to the damage.
pub fn compare<D: Disk>(
    disk: &D,
    place: Place,
    manifest: &ShardState,
    expected: &Expected,
    examined: &mut Examined,
) -> io::Result<()> {
    if !examined.damage.is_empty() {
        // It has not been followed to its end.
        return Ok(());
    }
    if examined.epoch > expected.epoch {
        let meaning = format!(
            "shard {} was written in opening {}, and here the last opening is number {}: an older copy of this file stands in its place",
            place.shard, examined.epoch, expected.epoch
        );
        let place = paths::LOG_MANIFEST.to_owned();
        examined.damage.push(Damage { verdict: "STALE-MANIFEST", place, meaning, loss: None });
    }
    for (what, least) in [("the log was closed with", expected.ended), ("a checkpoint names", expected.named)]
    {
        let Some(least) = least else { continue };
        let Some(last) = least.number.checked_sub(1) else { continue };
        let meaning = if examined.chain.number <= last {
            format!(
                "its chain ends before batch {} (record {}), and {what} batches up to {} (record {}): older copies of its files stand in their place, or the newest are gone",
                examined.chain.number, examined.chain.seq, least.number, least.seq
            )
        } else {
            match digest_of(disk, place, manifest, examined, last)? {
                Some(digest) if digest != least.previous => {
                    format!("its batch {last} is not the one that {what}")
                }
                // `None` is on record as lost, or damage that whoever reads it will meet.
                _ => continue,
            }
        };
        let place = format!("shard {}", place.shard);
        examined.damage.push(Damage { verdict: "ROLLED-BACK", place, meaning, loss: None });
        break;
    }
    Ok(())
}

/// The digest of one batch.
fn digest_of<D: Disk>(
    disk: &D,
    place: Place,
    manifest: &ShardState,
    examined: &Examined,
    number: u64,
) -> io::Result<Option<Digest>> {
    let mut entries = examined.segments.iter().flat_map(|s| &s.batches);
    if let Some(entry) = entries.find(|e| e.number == number) {
        return Ok(Some(entry.digest));
    }
    for (&index, state) in &manifest.segments {
        if let SegmentState::Sealed(sealed) = state
            && sealed.batches.contains(&number)
        {
            let Ok((_, entries)) = sealed::read_sealed(disk, place, index, sealed)? else { return Ok(None) };
            return Ok(entries.iter().find(|e| e.number == number).map(|e| e.digest));
        }
    }
    Ok(None)
}
