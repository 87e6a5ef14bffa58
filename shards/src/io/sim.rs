//! A simulated machine: one folder, its disk with a volatile cache, processes that die.
//!
//! [`SimWorld`] owns the disk, the seed and all faults; [`SimDisk`] and [`SimIo`] are what code under
//! test gets to see of it. The same seed and the same calls give the same history, as long as one
//! thread makes them.
//!
//! It promises to be no kinder than a real disk:
//! - A flush makes firm exactly those writes of its own file that had completed when it was issued.
//! - [`SimWorld::crash`] keeps any part of everything else, sector by sector, and loses names whose
//!   folder was not synced. Commits in flight tear.
//! - [`SimWorld::kill`] loses nothing of the cache, but writes in flight land at any later time, and
//!   the lock of their description is held until they have.
//! - A failed fdatasync drops what it should have covered; a later success proves nothing.
//!
//! It refuses to go on after a death: whoever is left of an earlier process gets EIO.
//! Rot is for the test to plant ([`SimWorld::edit`]), and time is simulated elsewhere.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::fold::fold;
use super::{Access, Commit, Completion, Disk, Entry, Io, Wait};
use crate::aligned::ALIGN_BYTES;

mod media;
mod world;

pub use world::{Damage, Fault};
use world::{Flight, Name, Stage, World};

/// The machine. Clones are the same one.
#[derive(Clone)]
pub struct SimWorld {
    world: Arc<Mutex<World>>,
}

/// The folder, as one process has it. Clones belong to the same process.
#[derive(Clone)]
pub struct SimDisk {
    world: Arc<Mutex<World>>,
    boot: u64,
    block_bytes: u32,
}

/// An open file description.
#[derive(Clone)]
pub struct SimFile {
    description: Arc<Description>,
}

struct Description {
    world: Arc<Mutex<World>>,
    boot: u64,
    id: u64,
    inode: u64,
    access: Access,
}

impl Drop for Description {
    fn drop(&mut self) {
        locked(&self.world).close(self.boot, self.inode, self.id);
    }
}

/// A thread that panicked in a test leaves the world as good as any.
fn locked(world: &Mutex<World>) -> MutexGuard<'_, World> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SimWorld {
    /// A machine with an empty folder.
    pub fn new(seed: u64) -> SimWorld {
        SimWorld { world: Arc::new(Mutex::new(World::new(seed))) }
    }

    /// The folder for a process that starts now. It works until the next death.
    pub fn disk(&self) -> SimDisk {
        SimDisk { world: Arc::clone(&self.world), boot: self.lock().boot(), block_bytes: 4096 }
    }

    /// As [`SimWorld::disk`], on a device with larger blocks.
    pub fn disk_with_block(&self, block_bytes: u32) -> SimDisk {
        assert!(block_bytes >= 4096 && block_bytes.is_power_of_two(), "a block of {block_bytes} bytes");
        SimDisk { block_bytes, ..self.disk() }
    }

    /// Power cut and restart.
    pub fn crash(&self) -> Damage {
        self.lock().crash()
    }

    /// All processes die, the kernel lives on.
    pub fn kill(&self) {
        self.lock().kill();
    }

    /// Lets all writes of killed processes land.
    pub fn settle(&self) {
        self.lock().settle();
    }

    /// Stops everything in the middle of the `ops`-th operation from now (0: the next one): from
    /// then on all calls fail with EIO, until [`SimWorld::crash`] or [`SimWorld::kill`] says what it was.
    pub fn crash_after(&self, ops: u64) {
        self.lock().stop_after(Some(ops));
    }

    /// Whether [`SimWorld::crash_after`] has struck.
    pub fn is_down(&self) -> bool {
        self.lock().is_down()
    }

    /// Operations so far that [`SimWorld::crash_after`] counts: writes, syncs, lengths, names.
    pub fn ops(&self) -> u64 {
        self.lock().ops()
    }

    /// Has the `nth` operation of the fault's kind from now (0: the next one) fail. Forgotten at
    /// a death.
    pub fn inject(&self, nth: u64, fault: Fault) {
        self.lock().inject(nth, fault);
    }

    /// Injected faults that have struck so far.
    pub fn faults_struck(&self) -> u64 {
        self.lock().faults_struck()
    }

    /// All files together may have so many bytes, or any number.
    pub fn set_space(&self, bytes: Option<u64>) {
        self.lock().set_space(bytes);
    }

    /// For a mutant: name changes return without being durable.
    pub fn forget_name_syncs(&self, forget: bool) {
        self.lock().forget_name_syncs(forget);
    }

    /// Has [`Access::Read`] see old pages of what is not flushed, as beside O_DIRECT writes.
    pub fn stale_readers(&self, stale: bool) {
        self.lock().stale_readers(stale);
    }

    /// A number over everything that has happened: equal histories, equal numbers.
    pub fn trace(&self) -> u64 {
        self.lock().trace()
    }

    /// The names in the folder, as reads see it.
    pub fn names(&self) -> Vec<String> {
        self.lock().names().keys().cloned().collect()
    }

    /// A file's content, as reads see it.
    pub fn seen(&self, name: &str) -> Option<Vec<u8>> {
        self.lock().media(name).map(|media| media.seen().to_vec())
    }

    /// A file's content, as far as it survives for certain.
    pub fn firm(&self, name: &str) -> Option<Vec<u8>> {
        self.lock().media(name).map(|media| media.firm().to_vec())
    }

    /// Rot, or a file that was tampered with: changes what is seen and what is firm. `false` if
    /// there is no such file.
    pub fn edit(&self, name: &str, mut edit: impl FnMut(&mut Vec<u8>)) -> bool {
        self.lock().media_mut(name).map(|media| media.edit(&mut edit)).is_some()
    }

    /// The file is gone, durably and behind everybody's back.
    pub fn lose(&self, name: &str) {
        self.lock().lose(name);
    }

    /// A machine of its own with the same disk and another future. Nothing may be in flight.
    pub fn fork(&self, seed: u64) -> SimWorld {
        SimWorld { world: Arc::new(Mutex::new(self.lock().fork(seed))) }
    }

    fn lock(&self) -> MutexGuard<'_, World> {
        locked(&self.world)
    }
}

impl SimDisk {
    fn lock(&self) -> MutexGuard<'_, World> {
        locked(&self.world)
    }

    fn describe(&self, id: u64, inode: u64, access: Access) -> SimFile {
        let (world, boot) = (Arc::clone(&self.world), self.boot);
        SimFile { description: Arc::new(Description { world, boot, id, inode, access }) }
    }

    /// The simulation is stricter than the real folder: what is wrong here is our own mistake.
    fn assert_aligned(&self, offset: u64, memory: &[u8]) {
        let block_bytes = u64::from(self.block_bytes);
        assert!(
            offset.is_multiple_of(block_bytes)
                && (memory.len() as u64).is_multiple_of(block_bytes)
                && memory.as_ptr().addr().is_multiple_of(ALIGN_BYTES),
            "{} bytes at offset {offset} are not whole aligned blocks of {block_bytes}",
            memory.len()
        );
    }
}

fn errno(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

impl Disk for SimDisk {
    type File = SimFile;

    fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let world = self.lock();
        world.check(self.boot)?;
        Ok(world.names().keys().cloned().collect())
    }

    fn list(&self) -> io::Result<Vec<Entry>> {
        let world = self.lock();
        world.check(self.boot)?;
        let entry = |(name, inode): (&String, &u64)| Entry { name: name.clone(), bytes: world.bytes(*inode) };
        Ok(world.names().iter().map(entry).collect())
    }

    fn open(&self, name: &str, access: Access) -> io::Result<SimFile> {
        let mut world = self.lock();
        world.check(self.boot)?;
        let inode = *world.names().get(name).ok_or_else(|| errno(libc::ENOENT))?;
        let id = world.fresh();
        drop(world);
        Ok(self.describe(id, inode, access))
    }

    fn create(&self, name: &str) -> io::Result<SimFile> {
        let mut world = self.lock();
        world.check(self.boot)?;
        if world.names().contains_key(name) {
            return Err(errno(libc::EEXIST));
        }
        let inode = world.new_inode();
        world.change_names(self.boot, Name::Link { name: name.into(), inode })?;
        let id = world.fresh();
        drop(world);
        Ok(self.describe(id, inode, Access::Write))
    }

    fn allocate(&self, file: &SimFile, bytes: u64) -> io::Result<()> {
        file.writable()?;
        self.lock().allocate(self.boot, file.description.inode, bytes)
    }

    fn read(&self, file: &SimFile, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        self.assert_aligned(offset, into);
        self.lock().read(
            self.boot,
            file.description.inode,
            offset,
            into,
            file.description.access == Access::Read,
        )
    }

    fn write(&self, file: &SimFile, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.assert_aligned(offset, bytes);
        file.writable()?;
        let written = self.lock().write(self.boot, file.description.inode, offset, bytes)?;
        if written == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    fn sync(&self, file: &SimFile) -> io::Result<()> {
        self.lock().sync(self.boot, file.description.inode)
    }

    fn truncate(&self, file: &SimFile, bytes: u64) -> io::Result<()> {
        file.writable()?;
        let mut world = self.lock();
        world.truncate(self.boot, file.description.inode, bytes)?;
        world.sync(self.boot, file.description.inode)
    }

    fn bytes(&self, file: &SimFile) -> io::Result<u64> {
        let world = self.lock();
        world.check(self.boot)?;
        Ok(world.bytes(file.description.inode))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut world = self.lock();
        world.check(self.boot)?;
        let inode = *world.names().get(from).ok_or_else(|| errno(libc::ENOENT))?;
        world.change_names(self.boot, Name::Rename { from: from.into(), to: to.into(), inode })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut world = self.lock();
        world.check(self.boot)?;
        let inode = *world.names().get(name).ok_or_else(|| errno(libc::ENOENT))?;
        world.change_names(self.boot, Name::Unlink { name: name.into(), inode })
    }

    fn sync_names(&self) -> io::Result<()> {
        self.lock().sync_names(self.boot)
    }

    fn try_lock(&self, file: &SimFile) -> io::Result<bool> {
        self.lock().try_lock(self.boot, file.description.inode, file.description.id)
    }

    fn is_locked(&self, file: &SimFile) -> io::Result<bool> {
        self.lock().is_locked(self.boot, file.description.inode)
    }
}

impl SimFile {
    fn writable(&self) -> io::Result<()> {
        if self.description.access == Access::Write { Ok(()) } else { Err(errno(libc::EBADF)) }
    }
}

/// The commit path of a simulated driver. Its commits go on a step at a time, in an order that the
/// seed chooses, whenever it is called. It never sleeps: [`Wait::AtMost`] runs the disk until
/// something is done, or until a wake-up that the seed makes up.
pub struct SimIo {
    disk: SimDisk,
    id: u64,
    waiting: Vec<Commit<SimFile>>,
    flying: BTreeMap<u64, Commit<SimFile>>,
}

impl SimIo {
    /// A commit path for the process that has `disk`.
    pub fn new(disk: SimDisk) -> SimIo {
        let id = disk.lock().fresh();
        SimIo { disk, id, waiting: Vec::new(), flying: BTreeMap::new() }
    }

    fn start(&mut self, world: &mut World) {
        for commit in self.waiting.drain(..) {
            self.disk.assert_aligned(commit.offset, &commit.buf[..commit.bytes]);
            let id = world.fresh();
            world.start(Flight {
                id,
                io: self.id,
                description: commit.file.description.id,
                inode: commit.file.description.inode,
                offset: commit.offset,
                data: commit.buf[..commit.bytes].to_vec(),
                stage: match commit.file.writable() {
                    Ok(()) => Stage::Offered,
                    Err(_) => Stage::Done { write: -libc::EBADF, sync: -libc::ECANCELED },
                },
            });
            self.flying.insert(id, commit);
        }
    }
}

impl Io for SimIo {
    type Disk = SimDisk;

    fn append(&mut self, commit: Commit<SimFile>) {
        assert!(
            commit.bytes <= commit.buf.len(),
            "a commit of {} bytes out of a buffer of {}",
            commit.bytes,
            commit.buf.len()
        );
        self.waiting.push(commit);
    }

    fn turn(&mut self, wait: Wait, done: &mut Vec<Completion>) -> io::Result<()> {
        let world = Arc::clone(&self.disk.world);
        let mut world = locked(&world);
        world.check(self.disk.boot)?;
        self.start(&mut world);
        let ended = world.run(self.id, matches!(wait, Wait::AtMost(_)));
        // The files are closed behind the lock, which closing takes.
        drop(world);
        for (id, write, sync) in ended? {
            let Commit { token, buf, bytes, file, .. } =
                self.flying.remove(&id).expect("each flight ends once");
            drop(file);
            done.push(Completion { token, buf, result: fold(bytes, write, sync) });
        }
        Ok(())
    }

    fn in_flight(&self) -> usize {
        self.waiting.len() + self.flying.len()
    }

    fn nudge(&mut self) {
        let mut world = self.disk.lock();
        if world.check(self.disk.boot).is_ok() {
            world.nudge(self.id);
        }
    }
}

impl Drop for SimIo {
    /// As with a real ring: what was started is waited for, unless the process is dead.
    fn drop(&mut self) {
        let mut world = self.disk.lock();
        if world.check(self.disk.boot).is_ok() {
            world.finish(self.id);
        }
    }
}

#[cfg(test)]
mod tests;
