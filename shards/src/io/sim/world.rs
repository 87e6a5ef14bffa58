//! The state of the simulated machine, and the one place where its history is made.
//!
//! An operation is a beginning and an end. [`World::stop_after`] may strike between the two, so that
//! a write is under way, a sync issued and not done, a name changed and its folder not synced.

use std::collections::BTreeMap;
use std::io;

use super::errno;
use super::media::{Media, Rng, What};

/// Beyond this no simulated file goes.
const FILE_BYTES_MAX: u64 = 1 << 40;

/// A failure that is planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A write fails, having reached any of its sectors.
    Write {
        /// Positive.
        errno: i32,
    },
    /// A write ends after so many bytes, down to whole sectors.
    ShortWrite {
        /// Fewer than the write has, or it is no fault.
        bytes: usize,
    },
    /// An fdatasync fails, and what it should have covered is dropped.
    Sync {
        /// Positive.
        errno: i32,
    },
    /// A read fails.
    Read {
        /// Positive.
        errno: i32,
    },
}

/// What a power cut did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Damage {
    /// Sectors written, not flushed, and there all the same.
    pub sectors_kept: u64,
    /// Sectors written, not flushed, and gone.
    pub sectors_lost: u64,
    /// Writes of which a part is there.
    pub writes_torn: u64,
    /// Changes of names that are gone.
    pub names_lost: u64,
}

/// A change of a name.
#[derive(Debug, Clone)]
pub(super) enum Name {
    Link { name: String, inode: u64 },
    Rename { from: String, to: String, inode: u64 },
    Unlink { name: String, inode: u64 },
}

type Names = BTreeMap<String, u64>;

impl Name {
    /// Also where a change that it builds on is lost: then nobody else has the name.
    fn apply(&self, names: &mut Names) {
        let mut unlink = |name: &String, inode: &u64| {
            if names.get(name) == Some(inode) {
                names.remove(name);
            }
        };
        match self {
            Name::Link { .. } => {}
            Name::Rename { from, inode, .. } => unlink(from, inode),
            Name::Unlink { name, inode } => unlink(name, inode),
        }
        if let Name::Link { name: to, inode } | Name::Rename { to, inode, .. } = self {
            names.insert(to.clone(), *inode);
        }
    }
}

/// A commit on its way.
#[derive(Debug, Clone)]
pub(super) struct Flight {
    pub(super) id: u64,
    pub(super) io: u64,
    pub(super) description: u64,
    pub(super) inode: u64,
    pub(super) offset: u64,
    pub(super) data: Vec<u8>,
    pub(super) stage: Stage,
}

#[derive(Debug, Clone)]
pub(super) enum Stage {
    Offered,
    Writing { change: u64, bytes: usize },
    Written { write: i32 },
    Syncing { write: i32, covered: Vec<u64> },
    Done { write: i32, sync: i32 },
}

/// A write of a dead process that has not landed yet.
#[derive(Debug, Clone, Copy)]
struct Late {
    inode: u64,
    description: u64,
    change: u64,
}

#[derive(Debug, Clone, Copy)]
struct Lock {
    description: u64,
    boot: u64,
}

#[derive(Debug, Clone, Default)]
struct Inode {
    media: Media,
    /// Space that belongs to the file, from its start.
    reserved: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Write,
    Sync,
    Read,
}

#[derive(Debug, Clone)]
pub(super) struct World {
    rng: Rng,
    next: u64,
    boot: u64,
    down: bool,
    stop_after: Option<u64>,
    ops: u64,
    trace: u64,
    inodes: BTreeMap<u64, Inode>,
    names: Names,
    firm_names: Names,
    name_changes: Vec<Name>,
    names_are_synced: bool,
    stale_readers: bool,
    locks: BTreeMap<u64, Lock>,
    flights: Vec<Flight>,
    late: Vec<Late>,
    /// The blocking change in whose middle everything stopped: file and change.
    half_done: Option<(u64, u64)>,
    space: Option<u64>,
    /// Per kind: how many there were, and which of them are to fail.
    counts: [u64; 3],
    faults: Vec<(Kind, u64, Fault)>,
    faults_struck: u64,
}

impl World {
    pub(super) fn new(seed: u64) -> World {
        World {
            rng: Rng(seed),
            next: 0,
            boot: 0,
            down: false,
            stop_after: None,
            ops: 0,
            trace: seed,
            inodes: BTreeMap::new(),
            names: Names::new(),
            firm_names: Names::new(),
            name_changes: Vec::new(),
            names_are_synced: true,
            stale_readers: false,
            locks: BTreeMap::new(),
            flights: Vec::new(),
            late: Vec::new(),
            half_done: None,
            space: None,
            counts: [0; 3],
            faults: Vec::new(),
            faults_struck: 0,
        }
    }

    pub(super) fn boot(&self) -> u64 {
        self.boot
    }

    pub(super) fn is_down(&self) -> bool {
        self.down
    }

    pub(super) fn ops(&self) -> u64 {
        self.ops
    }

    pub(super) fn trace(&self) -> u64 {
        self.trace
    }

    pub(super) fn names(&self) -> &Names {
        &self.names
    }

    pub(super) fn faults_struck(&self) -> u64 {
        self.faults_struck
    }

    pub(super) fn stop_after(&mut self, ops: Option<u64>) {
        self.stop_after = ops;
    }

    pub(super) fn set_space(&mut self, bytes: Option<u64>) {
        self.space = bytes;
    }

    pub(super) fn forget_name_syncs(&mut self, forget: bool) {
        self.names_are_synced = !forget;
    }

    pub(super) fn stale_readers(&mut self, stale: bool) {
        self.stale_readers = stale;
    }

    pub(super) fn inject(&mut self, nth: u64, fault: Fault) {
        let kind = match fault {
            Fault::Write { .. } | Fault::ShortWrite { .. } => Kind::Write,
            Fault::Sync { .. } => Kind::Sync,
            Fault::Read { .. } => Kind::Read,
        };
        self.faults.push((kind, self.counts[kind as usize] + nth, fault));
    }

    /// Identities of everything: descriptions, inodes, flights, changes.
    pub(super) fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(super) fn new_inode(&mut self) -> u64 {
        let inode = self.fresh();
        self.inodes.insert(inode, Inode::default());
        inode
    }

    pub(super) fn media(&self, name: &str) -> Option<&Media> {
        self.names.get(name).map(|inode| &self.inodes[inode].media)
    }

    pub(super) fn media_mut(&mut self, name: &str) -> Option<&mut Media> {
        let inode = self.names.get(name)?;
        self.inodes.get_mut(inode).map(|inode| &mut inode.media)
    }

    pub(super) fn lose(&mut self, name: &str) {
        self.names.remove(name);
        self.firm_names.remove(name);
    }

    pub(super) fn bytes(&self, inode: u64) -> u64 {
        self.inodes[&inode].media.seen().len() as u64
    }

    /// Whether a process may do anything at all.
    pub(super) fn check(&self, boot: u64) -> io::Result<()> {
        if boot == self.boot && !self.down { Ok(()) } else { Err(errno(libc::EIO)) }
    }

    fn note(&mut self, what: u64, value: u64) {
        for word in [what, value] {
            self.trace = (self.trace ^ word).wrapping_mul(0x0000_0100_0000_01B3).rotate_left(23);
        }
    }

    /// Counts an operation. `true` if everything stops in the middle of it.
    fn strikes(&mut self) -> bool {
        self.ops += 1;
        if self.rng.one_in(8) {
            self.land_one();
        }
        match &mut self.stop_after {
            None => return false,
            Some(0) => self.down = true,
            Some(left) => *left -= 1,
        }
        self.down
    }

    fn fault(&mut self, kind: Kind) -> Option<Fault> {
        let count = self.counts[kind as usize];
        self.counts[kind as usize] += 1;
        let index = self.faults.iter().position(|(of, nth, _)| *of == kind && *nth == count)?;
        self.faults_struck += 1;
        Some(self.faults.swap_remove(index).2)
    }

    /// Takes the space for a file up to `end`.
    fn reserve(&mut self, inode: u64, end: u64) -> io::Result<()> {
        if end > FILE_BYTES_MAX {
            return Err(errno(libc::EFBIG));
        }
        let more = end.saturating_sub(self.inodes[&inode].reserved);
        if let Some(space) = self.space
            && more > 0
        {
            let used: u64 = self.names.values().map(|inode| self.inodes[inode].reserved).sum();
            if used + more > space {
                return Err(errno(libc::ENOSPC));
            }
        }
        self.of(inode).reserved += more;
        Ok(())
    }

    fn of(&mut self, inode: u64) -> &mut Inode {
        self.inodes.get_mut(&inode).expect("a file that is open or named")
    }

    pub(super) fn change_names(&mut self, boot: u64, change: Name) -> io::Result<()> {
        self.check(boot)?;
        let strikes = self.strikes();
        self.note(1, self.names.len() as u64);
        change.apply(&mut self.names);
        self.name_changes.push(change);
        if strikes {
            return Err(errno(libc::EIO));
        }
        self.sync_names(boot)
    }

    pub(super) fn sync_names(&mut self, boot: u64) -> io::Result<()> {
        self.check(boot)?;
        if !self.names_are_synced {
            return Ok(());
        }
        if self.strikes() {
            return Err(errno(libc::EIO));
        }
        for change in self.name_changes.drain(..) {
            change.apply(&mut self.firm_names);
        }
        Ok(())
    }

    /// Begins a change of a file, and ends it unless everything stops meanwhile.
    fn change(&mut self, inode: u64, what: What) -> io::Result<u64> {
        let change = self.fresh();
        self.of(inode).media.begin(change, what);
        if self.strikes() {
            self.half_done = Some((inode, change));
            return Err(errno(libc::EIO));
        }
        Ok(change)
    }

    pub(super) fn allocate(&mut self, boot: u64, inode: u64, bytes: u64) -> io::Result<()> {
        self.check(boot)?;
        self.reserve(inode, bytes)?;
        let change = self.change(inode, What::Grow(bytes as usize))?;
        self.of(inode).media.complete(change);
        self.note(2, bytes);
        Ok(())
    }

    pub(super) fn truncate(&mut self, boot: u64, inode: u64, bytes: u64) -> io::Result<()> {
        self.check(boot)?;
        if bytes > FILE_BYTES_MAX {
            return Err(errno(libc::EFBIG));
        }
        // A longer file has a hole at its end.
        let longer = bytes > self.bytes(inode);
        let what = if longer { What::Grow(bytes as usize) } else { What::Cut(bytes as usize) };
        let change = self.change(inode, what)?;
        let of = self.of(inode);
        of.media.complete(change);
        of.reserved = of.reserved.min(bytes);
        self.note(3, bytes);
        Ok(())
    }

    pub(super) fn read(
        &mut self,
        boot: u64,
        inode: u64,
        offset: u64,
        into: &mut [u8],
        buffered: bool,
    ) -> io::Result<usize> {
        self.check(boot)?;
        if let Some(Fault::Read { errno: number }) = self.fault(Kind::Read) {
            return Err(errno(number));
        }
        let media = &self.inodes[&inode].media;
        let rest = media.seen().get(offset.min(FILE_BYTES_MAX) as usize..).unwrap_or_default();
        let count = rest.len().min(into.len());
        into[..count].copy_from_slice(&rest[..count]);
        if buffered && self.stale_readers {
            media.stale(offset as usize, &mut into[..count], &mut self.rng);
        }
        Ok(count)
    }

    /// Ends a write that has begun; bytes, or an errno.
    fn end_write(&mut self, inode: u64, change: u64, bytes: usize) -> io::Result<usize> {
        let fault = self.fault(Kind::Write);
        self.note(4, bytes as u64 ^ inode << 32);
        match fault {
            Some(Fault::Write { errno: number }) => {
                let (rng, next) = (&mut self.rng, &mut self.next);
                let mut fresh = || {
                    *next += 1;
                    *next
                };
                let inode = self.inodes.get_mut(&inode).expect("a write has its file");
                inode.media.fail(change, rng, &mut fresh);
                Err(errno(number))
            }
            Some(Fault::ShortWrite { bytes: short }) if short < bytes => {
                self.of(inode).media.complete_short(change, short);
                Ok(short / super::media::SECTOR_BYTES * super::media::SECTOR_BYTES)
            }
            _ => {
                self.of(inode).media.complete(change);
                Ok(bytes)
            }
        }
    }

    pub(super) fn write(&mut self, boot: u64, inode: u64, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        self.check(boot)?;
        self.reserve(inode, offset.saturating_add(bytes.len() as u64))?;
        let change = self.change(inode, What::Write { offset: offset as usize, data: bytes.to_vec() })?;
        self.end_write(inode, change, bytes.len())
    }

    /// Ends a sync that was issued for `covered`.
    fn end_sync(&mut self, inode: u64, covered: &[u64]) -> io::Result<()> {
        let fault = self.fault(Kind::Sync);
        self.note(5, covered.len() as u64 ^ inode << 32);
        let media = &mut self.inodes.get_mut(&inode).expect("a sync has its file").media;
        if let Some(Fault::Sync { errno: number }) = fault {
            media.flush_failed(covered, &mut self.rng);
            return Err(errno(number));
        }
        media.flush(covered);
        Ok(())
    }

    pub(super) fn sync(&mut self, boot: u64, inode: u64) -> io::Result<()> {
        self.check(boot)?;
        let covered = self.of(inode).media.completed();
        if self.strikes() {
            return Err(errno(libc::EIO));
        }
        self.end_sync(inode, &covered)
    }

    pub(super) fn try_lock(&mut self, boot: u64, inode: u64, description: u64) -> io::Result<bool> {
        self.check(boot)?;
        let held = self.locks.entry(inode).or_insert(Lock { description, boot });
        let ours = held.description == description;
        if !ours && self.rng.one_in(4) {
            // So that whoever waits for a dead owner gets the lock some time.
            self.land_one();
        }
        Ok(ours)
    }

    pub(super) fn is_locked(&mut self, boot: u64, inode: u64) -> io::Result<bool> {
        self.check(boot)?;
        Ok(self.locks.contains_key(&inode))
    }

    /// The last handle of a description is gone. The dead have left that to the kernel.
    pub(super) fn close(&mut self, boot: u64, inode: u64, description: u64) {
        if boot == self.boot && self.locks.get(&inode).is_some_and(|lock| lock.description == description) {
            self.locks.remove(&inode);
        }
    }

    pub(super) fn start(&mut self, flight: Flight) {
        self.flights.push(flight);
    }

    /// Goes on with the commits of one driver, and gives out those that have ended: flight, result
    /// of the write, result of the sync.
    pub(super) fn run(&mut self, io: u64, wait: bool) -> io::Result<Vec<(u64, i32, i32)>> {
        let mut steps = if wait { usize::MAX } else { self.rng.below(5) };
        while steps > 0 && !self.down && self.step(io) {
            steps -= 1;
            // Once something has ended, or somebody rings, whoever waits comes back.
            let ended = wait && self.flights.iter().any(|flight| flight.io == io && flight.stage.ended());
            if (ended && self.rng.one_in(2)) || (wait && self.rng.one_in(64)) {
                break;
            }
        }
        if self.down {
            return Err(errno(libc::EIO));
        }
        let ended = self.flights.extract_if(.., |flight| flight.io == io && flight.stage.ended());
        Ok(ended
            .map(|flight| match flight.stage {
                Stage::Done { write, sync } => (flight.id, write, sync),
                _ => unreachable!("it has ended"),
            })
            .collect())
    }

    pub(super) fn nudge(&mut self, io: u64) {
        if self.rng.one_in(2) {
            self.step(io);
        }
    }

    pub(super) fn finish(&mut self, io: u64) {
        while !self.down && self.step(io) {}
        if !self.down {
            self.flights.retain(|flight| flight.io != io);
        }
    }

    /// One step of one commit; `false` if there is nothing to go on with.
    fn step(&mut self, io: u64) -> bool {
        let going = |flight: &Flight| flight.io == io && !flight.stage.ended();
        let count = self.flights.iter().filter(|flight| going(flight)).count();
        if count == 0 {
            return false;
        }
        let chosen = self.rng.below(count);
        let (index, _) = self
            .flights
            .iter()
            .enumerate()
            .filter(|(_, flight)| going(flight))
            .nth(chosen)
            .expect("counted above");
        let Flight { inode, offset, .. } = self.flights[index];
        let bytes = self.flights[index].data.len();
        let stage = match self.flights[index].stage.clone() {
            Stage::Offered => match self.reserve(inode, offset.saturating_add(bytes as u64)) {
                Err(error) => Stage::broken(error),
                Ok(()) => {
                    let (change, data) = (self.fresh(), std::mem::take(&mut self.flights[index].data));
                    let what = What::Write { offset: offset as usize, data };
                    self.of(inode).media.begin(change, what);
                    Stage::Writing { change, bytes }
                }
            },
            Stage::Writing { change, bytes } => {
                if self.strikes() {
                    return false;
                }
                match self.end_write(inode, change, bytes) {
                    Err(error) => Stage::broken(error),
                    // A short write breaks the link.
                    Ok(written) if written < bytes => {
                        Stage::Done { write: written as i32, sync: -libc::ECANCELED }
                    }
                    Ok(written) => Stage::Written { write: written as i32 },
                }
            }
            Stage::Written { write } => Stage::Syncing { write, covered: self.of(inode).media.completed() },
            Stage::Syncing { write, covered } => {
                if self.strikes() {
                    return false;
                }
                match self.end_sync(inode, &covered) {
                    Ok(()) => Stage::Done { write, sync: 0 },
                    Err(error) => Stage::Done { write, sync: negated(&error) },
                }
            }
            Stage::Done { .. } => unreachable!("only what goes on is chosen"),
        };
        self.flights[index].stage = stage;
        true
    }

    fn land_one(&mut self) {
        if !self.late.is_empty() {
            let index = self.rng.below(self.late.len());
            let late = self.late.remove(index);
            self.land(late);
        }
    }

    fn land(&mut self, late: Late) {
        self.of(late.inode).media.complete(late.change);
        self.note(6, late.inode);
        self.release_dead_locks();
    }

    pub(super) fn settle(&mut self) {
        while !self.late.is_empty() {
            self.land_one();
        }
    }

    /// A dead owner's lock is held by its writes in flight only.
    fn release_dead_locks(&mut self) {
        let (boot, late) = (self.boot, &self.late);
        self.locks.retain(|_, lock| {
            lock.boot == boot || late.iter().any(|late| late.description == lock.description)
        });
    }

    pub(super) fn kill(&mut self) {
        // A blocking call ends before its process does, done or cut short.
        if let Some((inode, change)) = self.half_done.take() {
            let share = self.rng.below(5);
            self.of(inode).media.end_early(change, share);
        }
        for flight in std::mem::take(&mut self.flights) {
            let Flight { inode, description, .. } = flight;
            match flight.stage {
                Stage::Writing { change, .. } => self.late.push(Late { inode, description, change }),
                // A sync that was issued may still be done; one that was linked may still be issued.
                Stage::Syncing { covered, .. } if self.rng.one_in(2) => self.of(inode).media.flush(&covered),
                Stage::Written { .. } if self.rng.one_in(2) => {
                    let covered = self.of(inode).media.completed();
                    self.of(inode).media.flush(&covered);
                }
                _ => {}
            }
        }
        self.die();
        self.release_dead_locks();
        self.note(7, self.late.len() as u64);
        if self.rng.one_in(2) {
            self.land_one();
        }
    }

    pub(super) fn crash(&mut self) -> Damage {
        self.flights.clear();
        self.late.clear();
        self.half_done = None;
        self.die();
        self.locks.clear();
        let mut damage = Damage::default();
        for change in std::mem::take(&mut self.name_changes) {
            if self.rng.one_in(2) {
                damage.names_lost += 1;
            } else {
                change.apply(&mut self.firm_names);
            }
        }
        self.names = self.firm_names.clone();
        let names = &self.names;
        self.inodes.retain(|inode, _| names.values().any(|named| named == inode));
        for inode in self.inodes.values_mut() {
            let kept = inode.media.crash(&mut self.rng);
            inode.reserved = inode.media.seen().len() as u64;
            damage.sectors_kept += kept.sectors_kept;
            damage.sectors_lost += kept.sectors_lost;
            damage.writes_torn += kept.writes_torn;
        }
        self.note(8, damage.sectors_kept << 32 | damage.sectors_lost);
        damage
    }

    /// What a power cut and a kill have in common.
    fn die(&mut self) {
        self.boot += 1;
        self.down = false;
        self.stop_after = None;
        self.faults.clear();
    }

    pub(super) fn fork(&self, seed: u64) -> World {
        assert!(
            self.flights.is_empty() && self.late.is_empty(),
            "a world is forked while nothing is in flight"
        );
        World { rng: Rng(seed), ..self.clone() }
    }
}

impl Stage {
    fn ended(&self) -> bool {
        matches!(self, Stage::Done { .. })
    }

    fn broken(error: io::Error) -> Stage {
        Stage::Done { write: negated(&error), sync: -libc::ECANCELED }
    }
}

fn negated(error: &io::Error) -> i32 {
    -error.raw_os_error().unwrap_or(libc::EIO)
}
