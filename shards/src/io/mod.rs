//! What a shard asks of a disk, at the level of meaning and not of syscalls.
//!
//! Two seams. [`Disk`] is the slow one: names, whole files, blocking calls; recovery,
//! preparation, sealing and journals use it. [`Io`] is the fast one: "write this, then
//! fdatasync it, and tell me once both are true". One [`Io`] belongs to one driver thread,
//! which may host several shards.
//!
//! Buffers move in and come back with the completion, because the kernel owns them
//! meanwhile. There is no `dyn`, no `async` and no `Send` bound on [`Io`].
//!
//! Three implementations keep one contract, and `conformance` tests all of them:
//! `uring` (linked pair), `posix` (pwrite + fdatasync), `sim` (torn at will).

use std::io;
use std::time::Duration;

use crate::aligned::AlignedBuf;

#[cfg(any(test, feature = "sim"))]
pub mod conformance;
pub mod disk;
pub mod fold;
pub mod posix;
pub mod probe;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
pub mod uring;

pub use fold::{CommitFault, Durable};

/// A name in the log's folder, and how long its file is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// File name, without the folder.
    pub name: String,
    /// Length in bytes.
    pub bytes: u64,
}

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Through the page cache: for what is sealed.
    Read,
    /// Past the page cache where the file system can: for what may still be written, since a
    /// buffered reader could be shown stale pages of it.
    ReadDirect,
    /// Reading and writing, past the page cache where the file system can.
    Write,
}

/// The folder of a log: names and whole files, blocking.
///
/// Every call that changes a name returns only when the folder itself is durable.
/// Offsets, lengths and buffers of [`Disk::read`] and [`Disk::write`] are multiples of
/// [`Disk::block_bytes`], and the memory is aligned to it (see [`AlignedBuf`]).
pub trait Disk: Clone + Send + Sync + 'static {
    /// An open file. Clones share one open file description, and so its lock.
    type File: Clone + Send + Sync + 'static;

    /// The least unit that may be written: max(4096, physical block, direct-I/O alignment).
    fn block_bytes(&self) -> u32;
    /// The names of all regular files of the folder, sorted. For a log of many files this is much cheaper
    /// than [`Disk::list`].
    fn names(&self) -> io::Result<Vec<String>>;
    /// All regular files of the folder, sorted by name.
    fn list(&self) -> io::Result<Vec<Entry>>;
    /// Opens what exists.
    fn open(&self, name: &str, access: Access) -> io::Result<Self::File>;
    /// Makes a new empty file (`AlreadyExists` otherwise), for writing. The name is durable on return.
    fn create(&self, name: &str) -> io::Result<Self::File>;
    /// Reserves space up to `bytes` and sets the length, without writing. On failure the length
    /// is what it was.
    fn allocate(&self, file: &Self::File, bytes: u64) -> io::Result<()>;
    /// Reads as much as there is; fewer bytes only at the end of the file.
    fn read(&self, file: &Self::File, offset: u64, into: &mut [u8]) -> io::Result<usize>;
    /// Writes all of it, or fails (a short write is an error here).
    fn write(&self, file: &Self::File, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// fdatasync.
    fn sync(&self, file: &Self::File) -> io::Result<()>;
    /// Cuts or extends to `bytes` and makes that durable (fsync).
    fn truncate(&self, file: &Self::File, bytes: u64) -> io::Result<()>;
    /// Length in bytes.
    fn bytes(&self, file: &Self::File) -> io::Result<u64>;
    /// Renames and syncs the folder.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Unlinks and syncs the folder.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes all names in the folder durable, also what a process that died meanwhile changed: whoever
    /// builds on names that it found calls this first.
    fn sync_names(&self) -> io::Result<()>;
    /// Takes the exclusive lock of the open file description, `false` if somebody has it. A
    /// killed owner's writes in flight still hold it.
    fn try_lock(&self, file: &Self::File) -> io::Result<bool>;
    /// Whether somebody holds the exclusive lock; takes nothing that outlives the call.
    fn is_locked(&self, file: &Self::File) -> io::Result<bool>;
}

/// One group commit: write `buf[..bytes]` at `offset`, then fdatasync the file.
#[derive(Debug)]
pub struct Commit<F> {
    /// Given back with the completion. A shard puts its slot into the top 16 bits, so that several can share a ring.
    pub token: u64,
    /// The file; it must have been opened with [`Access::Write`].
    pub file: F,
    /// Where in the file; a multiple of the block.
    pub offset: u64,
    /// How many bytes of the buffer; a multiple of the block.
    pub bytes: usize,
    /// The bytes. They come back with the completion, whatever happens.
    pub buf: AlignedBuf,
    /// Whether more is gathered already, so that the shard would rather go on computing. Without
    /// it, the implementation may take the blocking pair if that is faster on this disk.
    pub pipelined: bool,
}

/// The end of one [`Commit`].
#[derive(Debug)]
pub struct Completion {
    /// The commit's token.
    pub token: u64,
    /// The commit's buffer.
    pub buf: AlignedBuf,
    /// Durable, or what went wrong.
    pub result: Result<Durable, CommitFault>,
}

/// How long [`Io::turn`] may sleep when no completion is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Not at all.
    No,
    /// Until a completion or a wake-up, at most this long.
    AtMost(Duration),
}

/// The commit path of one driver thread.
///
/// Contract (see `conformance`): every commit that was submitted completes exactly once and
/// brings its buffer back; `Ok` only if its own write was whole and an fdatasync of its file
/// that began after that write had completed succeeded; completions may come out of order; a
/// wake-up ([`crate::wake::Wake::notify`]) ends a sleep, and one that comes before the sleep is not lost.
pub trait Io {
    /// The blocking side of the same disk.
    type Disk: Disk;

    /// Takes a commit. It is started by the next [`Io::turn`] at the latest.
    fn append(&mut self, commit: Commit<<Self::Disk as Disk>::File>);
    /// Starts what was appended, then reaps completions into `done`; sleeps only if there is none
    /// yet. An error means that the ring itself is broken.
    fn turn(&mut self, wait: Wait, done: &mut Vec<Completion>) -> io::Result<()>;
    /// Whether the next [`Io::turn`] performs what was appended itself, instead of starting it. Then
    /// waiters are better woken before it than after.
    fn will_block(&self) -> bool {
        false
    }
    /// Commits that are with the disk, started or not.
    fn in_flight(&self) -> usize;
    /// Lets the kernel run the work that it owes this thread (the fdatasync of a link is started
    /// by the submitter's task work). Cheap when there is none. Called between the stages of a
    /// turn and within long hashing.
    fn nudge(&mut self) {}
}
