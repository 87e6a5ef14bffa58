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

use super::Checkpoint;
use super::epochs::{self, EpochsError};
use super::note::Note;

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
    /// Goes on with the view that is there, if its right edge is that of the log; else it is made anew.
    pub fn open(log_folder: &Path, disk: &Folder, log: LogId) -> Result<TlogView, TlogError> {
        let folder = log_folder.join(paths::TLOG);
        let fresh = TlogView { folder, log, tree: Frontier::new(), tails: Vec::new(), bundle: Vec::new() };
        Ok(fresh.resumed(disk)?.unwrap_or(fresh))
    }

    /// The view that is there; `None` if there is none, or not this log's.
    fn resumed(&self, disk: &Folder) -> Result<Option<TlogView>, TlogError> {
        let read = |name: &str| fs::read(self.folder.join(name)).ok();
        let checkpoint = read("checkpoint").and_then(|bytes| Note::parse(&bytes).ok());
        let Some(checkpoint) = checkpoint.and_then(|note| Checkpoint::parse(note.text()).ok()) else {
            return Ok(None);
        };
        let size = checkpoint.size();
        let Some(tree) = self.tree_at(disk, size)? else { return Ok(None) };
        let (mut tails, mut edge) = (Vec::new(), Vec::new());
        let mut above = size;
        while above > 0 {
            let (index, width) = (above / TILE_WIDTH, above % TILE_WIDTH);
            let tile = match width {
                0 => Some(Vec::new()),
                _ => read(&tile_path(&tails.len().to_string(), index, width)),
            };
            let Some(tile) = tile.filter(|tile| tile.len() as u64 == 32 * width) else { return Ok(None) };
            let hashes: Vec<Hash> = tile.chunks_exact(32).map(|h| h.try_into().expect("32 bytes")).collect();
            let mut perfect = Frontier::new();
            hashes.iter().for_each(|hash| perfect.push(*hash));
            edge.splice(0..0, perfect.hashes().iter().copied());
            tails.push((index, hashes));
            above = index;
        }
        let width = size % TILE_WIDTH;
        let bundle = match width {
            0 => Vec::new(),
            _ => read(&tile_path("entries", size / TILE_WIDTH, width)).unwrap_or_default(),
        };
        let entries: Option<Vec<Hash>> = entries(&bundle).map(|entries| entries.map(leaf).collect());
        let same = edge == tree.hashes() && entries.as_ref() == tails.first().map(|(_, hashes)| hashes);
        Ok(same.then(|| TlogView { folder: self.folder.clone(), log: self.log, tree, tails, bundle }))
    }

    /// The log's tree at this size; `None` if it has fewer entries.
    fn tree_at(&self, disk: &Folder, size: u64) -> Result<Option<Frontier>, TlogError> {
        let failed = |source| TlogError::Io { path: self.folder.clone(), source };
        for period in epochs::periods(disk).map_err(failed)?.into_iter().rev() {
            let Some(read) = epochs::read(disk, self.log, period)? else { continue };
            if read.before.size() > size {
                continue;
            }
            let mut tree = read.before;
            let missing = (size - tree.size()) as usize;
            read.entries.iter().take(missing).for_each(|(_, text)| tree.push(leaf(text.as_bytes())));
            return Ok(Some(tree).filter(|tree| tree.size() == size));
        }
        Ok(None)
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

/// The entries of a bundle, if their lengths add up.
fn entries(bundle: &[u8]) -> Option<impl Iterator<Item = &[u8]>> {
    let mut found = Vec::new();
    let mut rest = bundle;
    while !rest.is_empty() {
        let (length, behind) = rest.split_at_checked(2)?;
        let length = u16::from_be_bytes(length.try_into().expect("two bytes"));
        let (entry, behind) = behind.split_at_checked(usize::from(length))?;
        found.push(entry);
        rest = behind;
    }
    Some(found.into_iter())
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
    use std::collections::BTreeMap;

    use super::super::entry::{ClockSource, Entry, Event, Live, Time};
    use super::super::epochs::Epochs;
    use super::super::note::SigningKey;
    use super::*;

    #[test]
    fn paths_are_those_of_the_specification() {
        assert_eq!(tile_path("0", 1_234_067, 256), "tile/0/x001/x234/067");
        assert_eq!(tile_path("3", 0, 17), "tile/3/000.p/17");
        assert_eq!(tile_path("entries", 1000, 1), "tile/entries/x001/000.p/1");
    }

    /// A view that was left off is gone on with, at every size at which it can have been left off; and one that was
    /// altered, or is another log's, is made anew. Either way it has the same files as one made at once.
    #[test]
    fn a_view_is_gone_on_with_or_made_anew() {
        let temporary = tempfile::tempdir().unwrap();
        let log = temporary.path().join("log");
        let disk = Folder::create(&log).unwrap();
        let key = SigningKey::from_seed("example.org/log", &[1; 32]).unwrap();
        let mut epochs = Epochs::create(&disk, [7; 16], [8; 16]).unwrap();
        let mut notes = Vec::new();
        for epoch in 0..600 {
            let entry = Entry {
                log: [7; 16],
                epoch,
                time: Time { wall_ns: 0, uncertainty_ns: None, clock: ClockSource::Unknown },
                period: 0,
                live: Live { count: 1, first: 0, generation: 0 },
                events: vec![Event::new("test").with("number", epoch)],
                roll_call: false,
                shards: Vec::new(),
            };
            let entered = epochs.enter(&entry, &[]).unwrap();
            let note = Note::sign(&entered.text("example.org/log"), &[&key]).unwrap();
            notes.push(epochs.keep(entered, note).unwrap().note().to_string());
        }
        let at_once = |size: u64| {
            let _gone = fs::remove_dir_all(log.join("tlog"));
            let mut view = TlogView::open(&log, &disk, [7; 16]).unwrap();
            view.advance(&disk, size, &notes[size as usize - 1]).unwrap();
            files(&log.join("tlog"))
        };
        for (left_off, end) in
            [(1, 2), (17, 300), (255, 256), (256, 257), (256, 600), (511, 512), (512, 600), (600, 600)]
        {
            let wanted = at_once(end);
            at_once(left_off);
            let resumed = TlogView::open(&log, &disk, [7; 16]).unwrap();
            assert_eq!(resumed.tree.size(), left_off, "it was not made anew");
            let mut resumed = resumed;
            resumed.advance(&disk, end, &notes[end as usize - 1]).unwrap();
            let now = files(&log.join("tlog"));
            assert!(wanted.iter().all(|(name, bytes)| now.get(name) == Some(bytes)), "{left_off} to {end}");
        }
        at_once(300);
        let tile = log.join("tlog").join(tile_path("0", 1, 44));
        let mut bytes = fs::read(&tile).unwrap();
        bytes[5] ^= 1;
        fs::write(&tile, bytes).unwrap();
        assert_eq!(
            TlogView::open(&log, &disk, [7; 16]).unwrap().tree.size(),
            0,
            "an altered tile is not gone on with"
        );
    }

    fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            match entry.is_dir() {
                true => found.append(&mut files(&entry)),
                false => _ = found.insert(entry.clone(), fs::read(entry).unwrap()),
            }
        }
        found
    }
}
