//! A log's folder as readers see it: nothing that writes is in it.
//!
//! It promises that no reader creates, changes, renames or locks anything for longer than a
//! question takes, and it counts what is read. A log that was copied to a device with a larger
//! block than its own keeps its own, and is then read through the page cache.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hanaper_shards::aligned::AlignedBuf;
use hanaper_shards::io::disk::{Folder, FolderFile};
use hanaper_shards::io::{Access, Disk, Entry};
use hanaper_shards::segment::header::{Found, Header};
use hanaper_shards::segment::paths::{self, Name};

/// The folder of a log, for reading.
#[derive(Clone, Debug)]
pub(crate) struct ReadOnly {
    folder: Folder,
    block_bytes: u32,
    /// The device cannot read single blocks of this log past the page cache.
    buffered: bool,
    bytes_read: Arc<AtomicU64>,
}

impl ReadOnly {
    pub(crate) fn open(path: &Path) -> io::Result<ReadOnly> {
        let folder = Folder::open(path)?;
        let block_bytes = block_bytes(&folder)?;
        Ok(ReadOnly::with_block(folder, block_bytes))
    }

    /// For one segment file, of whatever log.
    pub(crate) fn for_file(folder: &Path, name: &str) -> io::Result<ReadOnly> {
        let folder = Folder::open(folder)?;
        let file = folder.open(name, Access::ReadDirect)?;
        let block_bytes = block_bytes_of(&folder, &file).unwrap_or(folder.block_bytes());
        Ok(ReadOnly::with_block(folder, block_bytes))
    }

    fn with_block(folder: Folder, block_bytes: u32) -> ReadOnly {
        let buffered = block_bytes < folder.block_bytes();
        ReadOnly { folder, block_bytes, buffered, bytes_read: Arc::default() }
    }

    /// Bytes read so far, through all clones.
    pub(crate) fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Whether somebody holds the lock on this file. Where nobody can tell, somebody does: too
    /// little is then shown rather than too much.
    pub(crate) fn is_held(&self, name: &str) -> io::Result<bool> {
        match self.open(name, Access::Read) {
            Ok(file) => Ok(self.is_locked(&file).unwrap_or(true)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// The log's own block, which any of its segments tells; the device's, if there is none yet.
fn block_bytes(folder: &Folder) -> io::Result<u32> {
    for name in folder.names()? {
        if !matches!(paths::parse(&name), Name::Segment { .. }) {
            continue;
        }
        match folder.open(&name, Access::ReadDirect) {
            Ok(file) => {
                if let Some(bytes) = block_bytes_of(folder, &file) {
                    return Ok(bytes);
                }
            }
            // The owner removed it meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(folder.block_bytes())
}

/// What a segment's header says. What cannot be read here is reported by whoever needs it.
fn block_bytes_of(folder: &Folder, file: &FolderFile) -> Option<u32> {
    let mut block = AlignedBuf::zeroed(folder.block_bytes() as usize);
    let filled = folder.read(file, 0, &mut block).ok()?;
    // The header's own 4096 bytes suffice; behind them stands a batch, if the blocks are small.
    let Found::Good(header) = Header::read(&block[..filled.min(4096)]) else { return None };
    let bytes = header.block_bytes;
    (bytes.is_power_of_two() && (4096..=1 << 20).contains(&bytes)).then_some(bytes)
}

fn refused() -> io::Error {
    io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "a reader never writes")
}

impl Disk for ReadOnly {
    type File = FolderFile;

    fn block_bytes(&self) -> u32 {
        self.block_bytes
    }
    fn names(&self) -> io::Result<Vec<String>> {
        self.folder.names()
    }
    fn list(&self) -> io::Result<Vec<Entry>> {
        self.folder.list()
    }
    fn open(&self, name: &str, access: Access) -> io::Result<FolderFile> {
        match access {
            Access::Write => Err(refused()),
            _ if self.buffered => self.folder.open(name, Access::Read),
            _ => self.folder.open(name, access),
        }
    }
    fn create(&self, _: &str) -> io::Result<FolderFile> {
        Err(refused())
    }
    fn allocate(&self, _: &FolderFile, _: u64) -> io::Result<()> {
        Err(refused())
    }
    fn read(&self, file: &FolderFile, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let filled = self.folder.read(file, offset, into)?;
        self.bytes_read.fetch_add(filled as u64, Ordering::Relaxed);
        Ok(filled)
    }
    fn write(&self, _: &FolderFile, _: u64, _: &[u8]) -> io::Result<()> {
        Err(refused())
    }
    fn sync(&self, file: &FolderFile) -> io::Result<()> {
        self.folder.sync(file)
    }
    fn truncate(&self, _: &FolderFile, _: u64) -> io::Result<()> {
        Err(refused())
    }
    fn bytes(&self, file: &FolderFile) -> io::Result<u64> {
        self.folder.bytes(file)
    }
    fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        Err(refused())
    }
    fn remove(&self, _: &str) -> io::Result<()> {
        Err(refused())
    }
    fn sync_names(&self) -> io::Result<()> {
        Err(refused())
    }
    fn try_lock(&self, _: &FolderFile) -> io::Result<bool> {
        Err(refused())
    }
    fn is_locked(&self, file: &FolderFile) -> io::Result<bool> {
        self.folder.is_locked(file)
    }
}
