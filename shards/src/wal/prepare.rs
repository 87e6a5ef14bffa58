//! Makes segments ready ahead of use: allocated, zero-filled, named, and on record.
//!
//! Unwritten extents would double the latency of a commit, and appending nearly so. The order is:
//! zero, sync, rename, sync the folder, manifest line durable; only then is the segment used.

use std::io;

use crate::aligned::AlignedBuf;
use crate::io::{Access, Disk};
use crate::manifest::{ManifestError, ShardLine, ShardManifest};
use crate::segment::paths;

/// Zeroed this much at a time; between two pieces the caller may pace or stop.
pub const CHUNK_BYTES: usize = 1 << 20;

/// A segment that is ready to be begun.
#[derive(Debug, Clone)]
pub struct Prepared<F> {
    /// Its index within the shard.
    pub index: u64,
    /// The open file; it holds the lock that in-flight writes keep.
    pub file: F,
    /// Its length.
    pub bytes: u64,
}

/// Why no segment was prepared.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The disk said no; `ENOSPC` and `EDQUOT` among others. Nothing is left behind.
    #[error("cannot prepare {name}: {source}")]
    Io {
        /// File name.
        name: String,
        /// What it said.
        source: io::Error,
    },
    /// The manifest could not be written.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The caller stopped it.
    #[error("preparation was stopped")]
    Stopped,
}

impl PrepareError {
    /// Whether space may come back by itself.
    pub fn is_no_space(&self) -> bool {
        matches!(self, PrepareError::Io { source, .. }
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}

/// One segment that is being prepared, piece by piece, so that whoever hosts the work can rest,
/// do something else, or stop in between.
///
/// A method that fails has given the space back; nothing is left to do with the preparation then.
/// One that is dropped in the middle leaves its file to the next open, as a crash would.
#[derive(Debug)]
pub struct Preparation<F> {
    shard: u32,
    index: u64,
    bytes: u64,
    file: F,
    /// Zeroed up to here.
    at: u64,
    zeros: AlignedBuf,
}

impl<F: Clone> Preparation<F> {
    /// Makes the file, and reserves its space.
    pub fn begin<D: Disk<File = F>>(
        disk: &D,
        shard: u32,
        index: u64,
        bytes: u64,
    ) -> Result<Preparation<F>, PrepareError> {
        let prep = paths::prep(shard, index);
        let failed = |source| PrepareError::Io { name: prep.clone(), source };
        // A crash may have left one; its contents mean nothing.
        match disk.remove(&prep) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let file = disk.create(&prep).map_err(failed)?;
        let zeros = AlignedBuf::zeroed(CHUNK_BYTES.min(bytes as usize));
        let preparation = Preparation { shard, index, bytes, file, at: 0, zeros };
        let reserved = disk.allocate(&preparation.file, bytes);
        preparation.or_give_back(disk, reserved)?;
        Ok(preparation)
    }

    /// Zeroes one more piece. `false` if there was none left: then it can be finished.
    pub fn step<D: Disk<File = F>>(&mut self, disk: &D) -> Result<bool, PrepareError> {
        let piece = (self.zeros.len() as u64).min(self.bytes - self.at);
        if piece == 0 {
            return Ok(false);
        }
        let written = disk.write(&self.file, self.at, &self.zeros[..piece as usize]);
        self.or_give_back(disk, written)?;
        self.at += piece;
        Ok(true)
    }

    /// Makes the zeros durable, gives the file its name, and puts it on record.
    ///
    /// # Panics
    /// If not all is zeroed: an unwritten segment must not pass for a prepared one.
    pub fn finish<D: Disk<File = F>>(
        self,
        disk: &D,
        manifest: &mut ShardManifest<D>,
    ) -> Result<Prepared<F>, PrepareError> {
        assert_eq!(self.at, self.bytes, "finished before it was filled");
        let named = self.name_it(disk);
        self.or_give_back(disk, named)?;
        // If that fails the file stays: the line may have reached the disk all the same, and then it must be there.
        manifest.append(&[ShardLine::Segment { index: self.index, bytes: self.bytes }])?;
        Ok(Prepared { index: self.index, file: self.file, bytes: self.bytes })
    }

    /// Gives it up, and its space back.
    pub fn abandon<D: Disk<File = F>>(self, disk: &D) -> Result<(), PrepareError> {
        let name = paths::prep(self.shard, self.index);
        disk.remove(&name).map_err(|source| PrepareError::Io { name, source })
    }

    fn name_it<D: Disk<File = F>>(&self, disk: &D) -> io::Result<()> {
        disk.sync(&self.file)?;
        if !disk.try_lock(&self.file)? {
            return Err(io::Error::other("somebody else has locked it"));
        }
        disk.rename(&paths::prep(self.shard, self.index), &paths::segment(self.shard, self.index))
    }

    fn or_give_back<D: Disk<File = F>>(&self, disk: &D, done: io::Result<()>) -> Result<(), PrepareError> {
        done.map_err(|source| {
            let name = paths::prep(self.shard, self.index);
            // If even this fails, the next open does it; the first error says more.
            let _ = disk.remove(&name);
            PrepareError::Io { name, source }
        })
    }
}

/// Prepares one segment. `go_on` is asked after each piece of zeros.
pub fn prepare<D: Disk>(
    disk: &D,
    manifest: &mut ShardManifest<D>,
    shard: u32,
    index: u64,
    bytes: u64,
    go_on: &mut dyn FnMut() -> bool,
) -> Result<Prepared<D::File>, PrepareError> {
    let mut preparation = Preparation::begin(disk, shard, index, bytes)?;
    while preparation.step(disk)? {
        if !go_on() {
            preparation.abandon(disk)?;
            return Err(PrepareError::Stopped);
        }
    }
    preparation.finish(disk, manifest)
}

/// Opens a spare that an earlier opening of the log had prepared. `None` if somebody has locked it.
pub fn reopen<D: Disk>(
    disk: &D,
    shard: u32,
    index: u64,
    bytes: u64,
) -> io::Result<Option<Prepared<D::File>>> {
    let file = disk.open(&paths::segment(shard, index), Access::Write)?;
    Ok(disk.try_lock(&file)?.then_some(Prepared { index, file, bytes }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::sim::{SimDisk, SimWorld};
    use crate::wal::chain::Place;

    const BYTES: u64 = 4 << 20;

    fn world() -> (SimWorld, SimDisk, ShardManifest<SimDisk>) {
        let world = SimWorld::new(1);
        let disk = world.disk();
        let place = Place { log: [7; 16], generation: 0, shard: 3 };
        let manifest = ShardManifest::open(&disk, place, [1; 16], false).unwrap();
        (world, disk, manifest)
    }

    /// Until the end nobody may take it for a segment: a recovery would read unwritten extents.
    #[test]
    fn only_the_finished_one_has_a_segments_name() {
        let (world, disk, mut manifest) = world();
        let mut preparation = Preparation::begin(&disk, 3, 5, BYTES).unwrap();
        let mut pieces = 0;
        while preparation.step(&disk).unwrap() {
            pieces += 1;
            assert!(!world.names().contains(&paths::segment(3, 5)));
        }
        assert_eq!(pieces, BYTES as usize / CHUNK_BYTES);
        let prepared = preparation.finish(&disk, &mut manifest).unwrap();
        assert_eq!((prepared.index, prepared.bytes), (5, BYTES));
        let firm = world.firm(&paths::segment(3, 5)).expect("durable under its name");
        assert!(firm.len() as u64 == BYTES && firm.iter().all(|byte| *byte == 0));
        assert!(disk.is_locked(&prepared.file).unwrap());
        assert!(manifest.state.segments.contains_key(&5));
    }

    /// A disk that is full is asked again and again; each try must leave it as it was.
    #[test]
    fn what_was_not_finished_gives_its_space_back() {
        let (world, disk, mut manifest) = world();
        let before = world.names();
        world.set_space(Some(BYTES / 2));
        let full = Preparation::begin(&disk, 3, 5, BYTES).err().expect("no space");
        assert!(full.is_no_space(), "{full}");
        assert_eq!(world.names(), before);
        world.set_space(None);
        let mut pieces = 0;
        let mut go_on = || {
            pieces += 1;
            pieces < 2
        };
        let stopped = prepare(&disk, &mut manifest, 3, 5, BYTES, &mut go_on);
        assert!(matches!(stopped, Err(PrepareError::Stopped)));
        assert_eq!(world.names(), before);
        prepare(&disk, &mut manifest, 3, 5, BYTES, &mut || true).unwrap();
    }

    #[test]
    #[should_panic = "before it was filled"]
    fn half_of_one_cannot_be_finished() {
        let (_world, disk, mut manifest) = world();
        let mut preparation = Preparation::begin(&disk, 3, 5, BYTES).unwrap();
        preparation.step(&disk).unwrap();
        let _ = preparation.finish(&disk, &mut manifest);
    }
}
