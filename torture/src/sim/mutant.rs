//! Planted bugs: the disk and the commit path with one lie each, and recoveries with one mistake.
//!
//! They exist so that tests can show that the scenarios convict them. [`Mutant::None`] passes
//! everything through unchanged, and is what every honest run uses.

use std::io;

use hanaper_shards::aligned::AlignedBuf;
use hanaper_shards::io::fold::fold;
use hanaper_shards::io::sim::{SimDisk, SimFile, SimIo};
use hanaper_shards::io::{Access, Commit, Completion, Disk, Entry, Io, Wait};

/// One planted bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// None.
    None,
    /// The commit path reports a commit as durable when it has only been handed over.
    AckBeforeSync,
    /// The commit path reports failed and short writes and failed syncs as durable.
    AckAfterFault,
    /// Blocking syncs do nothing.
    NoFileSync,
    /// A change of a name returns before the folder is durable.
    NoNameSync,
    /// Recovery forgets the last batch that it has found.
    DropsLastBatch,
    /// Recovery trusts all that it reads, instead of copying forward what is above the watermark.
    TrustsTheCache,
    /// Recovery does not wait for the writes of a killed owner.
    NoLock,
    /// A failed blocking sync is reported as good.
    SyncNeverFails,
}

impl Mutant {
    /// All of them, without [`Mutant::None`].
    pub const ALL: [Mutant; 8] = [
        Mutant::AckBeforeSync,
        Mutant::AckAfterFault,
        Mutant::NoFileSync,
        Mutant::NoNameSync,
        Mutant::DropsLastBatch,
        Mutant::TrustsTheCache,
        Mutant::NoLock,
        Mutant::SyncNeverFails,
    ];
}

/// A simulated disk with a planted bug, or without.
#[derive(Clone)]
pub struct TestDisk {
    inner: SimDisk,
    mutant: Mutant,
}

impl TestDisk {
    /// The disk as this process has it.
    pub fn new(inner: SimDisk, mutant: Mutant) -> TestDisk {
        TestDisk { inner, mutant }
    }
}

impl Disk for TestDisk {
    type File = SimFile;

    fn block_bytes(&self) -> u32 {
        self.inner.block_bytes()
    }
    fn names(&self) -> io::Result<Vec<String>> {
        self.inner.names()
    }
    fn list(&self) -> io::Result<Vec<Entry>> {
        self.inner.list()
    }
    fn open(&self, name: &str, access: Access) -> io::Result<SimFile> {
        self.inner.open(name, access)
    }
    fn create(&self, name: &str) -> io::Result<SimFile> {
        self.inner.create(name)
    }
    fn allocate(&self, file: &SimFile, bytes: u64) -> io::Result<()> {
        self.inner.allocate(file, bytes)
    }
    fn read(&self, file: &SimFile, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        self.inner.read(file, offset, into)
    }
    fn write(&self, file: &SimFile, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.inner.write(file, offset, bytes)
    }
    fn sync(&self, file: &SimFile) -> io::Result<()> {
        match self.mutant {
            Mutant::NoFileSync => Ok(()),
            Mutant::SyncNeverFails => self.inner.sync(file).or(Ok(())),
            _ => self.inner.sync(file),
        }
    }
    fn truncate(&self, file: &SimFile, bytes: u64) -> io::Result<()> {
        self.inner.truncate(file, bytes)
    }
    fn bytes(&self, file: &SimFile) -> io::Result<u64> {
        self.inner.bytes(file)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.inner.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.inner.remove(name)
    }
    fn sync_names(&self) -> io::Result<()> {
        self.inner.sync_names()
    }
    fn try_lock(&self, file: &SimFile) -> io::Result<bool> {
        self.inner.try_lock(file)
    }
    fn is_locked(&self, file: &SimFile) -> io::Result<bool> {
        self.inner.is_locked(file)
    }
}

/// A simulated commit path with a planted bug, or without.
pub struct TestIo {
    inner: SimIo,
    mutant: Mutant,
    /// Completions made up at once, with buffers of their own.
    early: Vec<Completion>,
    arrived: Vec<Completion>,
}

impl TestIo {
    /// The commit path of the process that has `disk`.
    pub fn new(disk: &TestDisk) -> TestIo {
        let inner = SimIo::new(disk.inner.clone());
        TestIo { inner, mutant: disk.mutant, early: Vec::new(), arrived: Vec::new() }
    }
}

impl Io for TestIo {
    type Disk = TestDisk;

    fn append(&mut self, commit: Commit<SimFile>) {
        if self.mutant == Mutant::AckBeforeSync {
            self.early.push(Completion {
                token: commit.token,
                buf: AlignedBuf::zeroed(commit.buf.len()),
                result: fold(1, 1, 0),
            });
        }
        self.inner.append(commit);
    }

    fn turn(&mut self, wait: Wait, done: &mut Vec<Completion>) -> io::Result<()> {
        self.inner.turn(wait, &mut self.arrived)?;
        match self.mutant {
            Mutant::AckBeforeSync => {
                self.arrived.clear();
                done.append(&mut self.early);
            }
            Mutant::AckAfterFault => {
                let good = |completion: Completion| Completion { result: fold(1, 1, 0), ..completion };
                done.extend(self.arrived.drain(..).map(good));
            }
            _ => done.append(&mut self.arrived),
        }
        Ok(())
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight().max(self.early.len())
    }

    fn nudge(&mut self) {
        self.inner.nudge();
    }
}
