//! The global log as other people's tools read it: C2SP's static tiles, in the folder `tlog`.
//!
//! ```text
//! tlog/checkpoint            the newest note
//! tlog/tile/entries/000      entries 0..256, each behind its length in two bytes, big-endian
//! tlog/tile/0/000            their leaf hashes
//! tlog/tile/1/000            roots of 256 tiles of level 0, and so on
//! tlog/tile/0/001.p/17       the first 17 of a tile that is not full
//! ```
//! Format: <https://c2sp.org/tlog-tiles>. A number is written in groups of three digits, all but the last with an
//! `x` before them: 1234067 is `x001/x234/067`.
//!
//! The view is derived: nothing in it is synced, nothing is believed, and a missing file is written again. Tiles
//! come before the checkpoint that needs them, and each file is put in place whole.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use hanaper_shards::batch::LogId;
use hanaper_shards::io::disk::Folder;
use hanaper_shards::merkle::{Frontier, Hash, leaf};
use hanaper_shards::segment::paths;

use super::epochs::{self, EpochsError};

/// Hashes or entries in a full tile.
pub const TILE_WIDTH: u64 = 256;
/// Levels of the tree in one level of tiles.
const TILE_LEVELS: u32 = 8;

/// Why the view was not written.
#[derive(Debug, thiserror::Error)]
pub enum TlogError {
    /// The file system said no.
    #[error("{path}: {source}")]
    Io {
        /// File or folder.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// The epochs cannot be read.
    #[error(transparent)]
    Epochs(#[from] EpochsError),
}

/// The view, while the log is open for writing.
pub struct TlogView {
    folder: PathBuf,
    log: LogId,
    tree: Frontier,
    /// By level of tiles: the hashes of the last tile, which is not full, and its number.
    tails: Vec<(u64, Vec<Hash>)>,
    /// The entries of the last bundle, which is not full.
    bundle: Vec<u8>,
}

impl TlogView {
    /// Begins a view that has nothing yet: [`TlogView::advance`] writes what is missing.
    pub fn open(log_folder: &Path, _disk: &Folder, log: LogId) -> Result<TlogView, TlogError> {
        let folder = log_folder.join(paths::TLOG);
        Ok(TlogView { folder, log, tree: Frontier::new(), tails: Vec::new(), bundle: Vec::new() })
    }

    /// Writes the tiles of a tree of this size, then its note.
    pub fn advance(&mut self, disk: &Folder, size: u64, note: &str) -> Result<(), TlogError> {
        if self.tree.size() >= size {
            return Ok(());
        }
        let failed = |source| TlogError::Io { path: self.folder.clone(), source };
        let mut periods = epochs::periods(disk).map_err(failed)?;
        // Periods are short and many: those before the last that begins at or before our size have nothing new.
        let mut first_needed = 0;
        for (i, &period) in periods.iter().enumerate().rev() {
            let Some(read) = epochs::read(disk, self.log, period)? else { continue };
            if read.before.size() <= self.tree.size() {
                first_needed = i;
                break;
            }
        }
        for period in periods.split_off(first_needed) {
            let Some(read) = epochs::read(disk, self.log, period)? else { continue };
            for (entry, text) in &read.entries {
                if entry.epoch == self.tree.size() && entry.epoch < size {
                    self.push(text)?;
                }
            }
        }
        for (level, (index, hashes)) in self.tails.iter().enumerate() {
            if !hashes.is_empty() {
                let name = tile_path(&level.to_string(), *index, hashes.len() as u64);
                self.write(&name, &hashes.concat())?;
            }
        }
        let width = self.tree.size() % TILE_WIDTH;
        if width > 0 {
            self.write(&tile_path("entries", self.tree.size() / TILE_WIDTH, width), &self.bundle)?;
        }
        self.write("checkpoint", note.as_bytes())
    }

    fn push(&mut self, text: &str) -> Result<(), TlogError> {
        let length = u16::try_from(text.len()).expect("no entry is longer");
        self.bundle.extend_from_slice(&length.to_be_bytes());
        self.bundle.extend_from_slice(text.as_bytes());
        let number = self.tree.size();
        let mut nodes = Vec::new();
        self.tree.push_telling(leaf(text.as_bytes()), &mut |node, hash| nodes.push((node, *hash)));
        for (node, hash) in nodes.into_iter().filter(|(node, _)| node.level % TILE_LEVELS == 0) {
            let level = (node.level / TILE_LEVELS) as usize;
            if self.tails.len() == level {
                self.tails.push((0, Vec::new()));
            }
            let (index, hashes) = &mut self.tails[level];
            hashes.push(hash);
            if hashes.len() as u64 == TILE_WIDTH {
                let (full, number) = (std::mem::take(hashes), *index);
                *index += 1;
                self.write(&tile_path(&level.to_string(), number, TILE_WIDTH), &full.concat())?;
            }
        }
        if (number + 1).is_multiple_of(TILE_WIDTH) {
            let bundle = std::mem::take(&mut self.bundle);
            self.write(&tile_path("entries", number / TILE_WIDTH, TILE_WIDTH), &bundle)?;
        }
        Ok(())
    }

    /// Puts a file in place, whole.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), TlogError> {
        let path = self.folder.join(name);
        let failed = |source| TlogError::Io { path: path.clone(), source };
        let parent = path.parent().expect("it is within the folder");
        fs::create_dir_all(parent).map_err(failed)?;
        let temporary = parent.join(".new");
        fs::write(&temporary, bytes).map_err(failed)?;
        fs::rename(&temporary, &path).map_err(failed)
    }
}

/// Path of a tile below `tlog`; `level` is a number or `entries`, `width` how many of its 256 it has.
pub fn tile_path(level: &str, index: u64, width: u64) -> String {
    let mut groups = vec![format!("{:03}", index % 1000)];
    let mut rest = index / 1000;
    while rest > 0 {
        groups.push(format!("x{:03}", rest % 1000));
        rest /= 1000;
    }
    groups.reverse();
    let partial = if width < TILE_WIDTH { format!(".p/{width}") } else { String::new() };
    format!("tile/{level}/{}{partial}", groups.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_the_specification() {
        assert_eq!(tile_path("0", 1_234_067, 256), "tile/0/x001/x234/067");
        assert_eq!(tile_path("3", 0, 17), "tile/3/000.p/17");
        assert_eq!(tile_path("entries", 1000, 1), "tile/entries/x001/000.p/1");
    }
}
