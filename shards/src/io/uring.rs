//! The commit path by io_uring: a write and an fdatasync linked behind it, in one system call.
//!
//! It owns a ring and everything that is in flight in it: file and buffer of a commit belong to
//! the kernel until *both* completions have come, and are given back only then, even by `Drop`.
//! It promises [`Io`]'s contract on kernels from 5.6 on; what newer ones offer is taken by trying,
//! never by version. It refuses to leave the thread that made it, for the ring has one issuer.
//!
//! A chain ends where a submission ends. When the kernel takes fewer entries than it was offered,
//! a pair may be split, and its fdatasync may run before or beside its write. Then that
//! fdatasync counts for nothing, and another one is issued once the write has completed.
//!
//! With `inline`, a commit that comes alone and in no hurry to compute is performed by the two
//! blocking calls of [`super::posix`], which are faster than a ring on many disks.
//!
//! Sleeping: the wake-up descriptor is polled within the ring, so that one wait covers all.

use std::collections::VecDeque;
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::squeue::{Entry, Flags};
use io_uring::{IoUring, Probe, opcode, types};

use super::disk::{Folder, FolderFile};
use super::fold::fold;
use super::posix::{commit_blocking, poll};
use super::{Commit, Completion, Io, Wait};
use crate::wake::Wake;

/// Room for this many pairs and one poll in one submission; more wait for the next.
const PAIRS: usize = 31;
const ENTRIES: u32 = 64;
const _: () = assert!(2 * PAIRS < ENTRIES as usize);

/// For so long a kernel short of memory may refuse what it is offered before the ring is called broken.
const REFUSED_MAX: Duration = Duration::from_secs(10);

/// user_data of the poll. Others are a slot, and below it two bits for the [`Part`].
const POLL: u64 = u64::MAX;

/// Which operation of a commit an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Write = 0,
    /// The fdatasync linked behind the write.
    Sync = 1,
    /// The fdatasync that is issued after the write of a split pair.
    SecondSync = 2,
}

fn user_data(slot: usize, part: Part) -> u64 {
    (slot as u64) << 2 | part as u64
}

fn slot_and_part(user_data: u64) -> (usize, Part) {
    let part = match user_data & 3 {
        0 => Part::Write,
        1 => Part::Sync,
        2 => Part::SecondSync,
        _ => unreachable!("no entry has such user data: {user_data:#x}"),
    };
    ((user_data >> 2) as usize, part)
}

/// A commit whose entries are in the ring.
struct Flight {
    commit: Commit<FolderFile>,
    write: Option<i32>,
    sync: Option<i32>,
    second_sync: Option<i32>,
    split: bool,
}

/// A linked write and fdatasync per commit.
pub struct UringIo {
    ring: IoUring,
    disk: Folder,
    wake: Arc<Wake>,
    inline: bool,
    /// Appended, not yet in the submission queue.
    waiting: VecDeque<Commit<FolderFile>>,
    flights: Vec<Option<Flight>>,
    free: Vec<usize>,
    flying: usize,
    /// Split pairs whose write has completed and whose second fdatasync is to be issued.
    owed_syncs: VecDeque<usize>,
    /// user_data of what is in the submission queue and was not taken yet, oldest first.
    offered: VecDeque<u64>,
    refused_since: Option<Instant>,
    poll_armed: bool,
    split_pairs: u64,
    /// SINGLE_ISSUER: the ring works only for the thread that made it.
    _not_send: PhantomData<Rc<()>>,
}

impl UringIo {
    /// Makes a ring for the calling thread. `inline`: lone commits are performed by blocking calls.
    pub fn new(disk: Folder, wake: Arc<Wake>, inline: bool) -> io::Result<UringIo> {
        let ring = build_ring()?;
        Ok(UringIo {
            ring,
            disk,
            wake,
            inline,
            waiting: VecDeque::new(),
            flights: Vec::new(),
            free: Vec::new(),
            flying: 0,
            owed_syncs: VecDeque::new(),
            offered: VecDeque::new(),
            refused_since: None,
            poll_armed: false,
            split_pairs: 0,
            _not_send: PhantomData,
        })
    }

    /// The disk underneath.
    pub fn disk(&self) -> &Folder {
        &self.disk
    }

    /// How many pairs the kernel has split so far; each cost a second fdatasync.
    pub fn split_pairs(&self) -> u64 {
        self.split_pairs
    }

    /// Has the kernel's workers for this ring run on these cores only. They inherit the pinning of
    /// the thread otherwise, and every fdatasync then competes with the shard that waits for it.
    pub fn workers_on(&self, cores: &[usize]) -> io::Result<()> {
        // SAFETY: all-zero is the empty set.
        let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        for core in cores.iter().filter(|core| **core < libc::CPU_SETSIZE as usize) {
            // SAFETY: the core is within the set's size.
            unsafe { libc::CPU_SET(*core, &mut set) };
        }
        self.ring.submitter().register_iowq_aff(&set)
    }

    /// Moves waiting work into the submission queue, as far as there is room for whole pairs.
    fn fill(&mut self) {
        let mut queue = self.ring.submission();
        while let Some(slot) = self.owed_syncs.front().copied() {
            let flight = self.flights[slot].as_ref().expect("a sync is owed to a commit in flight");
            let sync = sync_entry(&flight.commit.file, slot, Part::SecondSync);
            // SAFETY: no memory is passed, and the flight keeps the descriptor open until this entry's completion.
            if unsafe { queue.push(&sync) }.is_err() {
                return;
            }
            self.offered.push_back(user_data(slot, Part::SecondSync));
            self.owed_syncs.pop_front();
        }
        // One entry is kept free for the poll.
        while queue.capacity() - queue.len() > 2 && self.flying < PAIRS {
            let Some(commit) = self.waiting.pop_front() else {
                return;
            };
            let slot = self.free.pop().unwrap_or(self.flights.len());
            let fd = types::Fd(commit.file.as_raw_fd());
            let write = opcode::Write::new(fd, commit.buf.as_ptr(), commit.bytes as u32)
                .offset(commit.offset)
                .build()
                .flags(Flags::IO_LINK)
                .user_data(user_data(slot, Part::Write));
            let sync = sync_entry(&commit.file, slot, Part::Sync);
            let flight = Flight { commit, write: None, sync: None, second_sync: None, split: false };
            if slot == self.flights.len() {
                self.flights.push(Some(flight));
            } else {
                self.flights[slot] = Some(flight);
            }
            self.flying += 1;
            // SAFETY: buffer (on the heap: moving the flight does not move it) and descriptor are
            // kept by the flight until both completions have come; nobody else has access.
            unsafe { queue.push_multiple(&[write, sync]) }.expect("room for a pair was seen above");
            self.offered.extend([user_data(slot, Part::Write), user_data(slot, Part::Sync)]);
        }
    }

    fn arm_poll(&mut self) {
        if self.poll_armed {
            return;
        }
        let poll =
            opcode::PollAdd::new(types::Fd(self.wake.fd()), libc::POLLIN as u32).build().user_data(POLL);
        // SAFETY: no memory is passed, and `self.wake` keeps the descriptor open as long as the ring.
        if unsafe { self.ring.submission().push(&poll) }.is_ok() {
            self.offered.push_back(POLL);
            self.poll_armed = true;
        }
    }

    /// Offers the submission queue to the kernel, and waits for one completion at most so long.
    fn enter(&mut self, wait: Option<Duration>) -> io::Result<()> {
        let result = match wait {
            None => self.ring.submit(),
            Some(longest) if self.ring.params().is_feature_ext_arg() => {
                let longest = types::Timespec::from(longest.min(Duration::from_secs(3600)));
                let args = types::SubmitArgs::new().timespec(&longest);
                self.ring.submitter().submit_with_args(1, &args)
            }
            Some(longest) => {
                let fd = self.ring.as_raw_fd();
                self.ring.submit().and_then(|taken| poll(fd, longest).map(|_| taken))
            }
        };
        self.account()?;
        match result.map_err(|error| (error.raw_os_error(), error)) {
            Ok(_) => Ok(()),
            // Time is up; a signal; more completions are to be reaped first; no memory just now.
            Err((Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN), _)) => Ok(()),
            Err((_, error)) => Err(error),
        }
    }

    /// Looks at how many entries the kernel really took, and finds the pair that was split.
    fn account(&mut self) -> io::Result<()> {
        let left = self.ring.submission().len();
        let taken = self.offered.len() - left;
        self.offered.drain(..taken);
        if let Some(next) = self.offered.front().copied()
            && next != POLL
            && let (slot, Part::Sync) = slot_and_part(next)
            && let Some(flight) = self.flights[slot].as_mut()
            && !flight.split
        {
            flight.split = true;
            self.split_pairs += 1;
        }
        if left == 0 || taken > 0 {
            self.refused_since = None;
            return Ok(());
        }
        let since = *self.refused_since.get_or_insert_with(Instant::now);
        if since.elapsed() < REFUSED_MAX {
            std::thread::yield_now();
            return Ok(());
        }
        Err(io::Error::other(
            "io_uring has refused all submissions for seconds; reopen with the posix backend",
        ))
    }

    /// Takes completions off the queue. `true` if somebody rang.
    fn reap(&mut self, done: &mut Vec<Completion>) -> io::Result<bool> {
        let mut rung = false;
        loop {
            let Some(entry) = self.ring.completion().next() else {
                break;
            };
            if entry.user_data() == POLL {
                self.poll_armed = false;
                if entry.result() < 0 {
                    return Err(io::Error::from_raw_os_error(-entry.result()));
                }
                self.wake.drain();
                rung = true;
            } else {
                self.record(entry.user_data(), entry.result(), done);
            }
        }
        Ok(rung)
    }

    fn record(&mut self, user_data: u64, result: i32, done: &mut Vec<Completion>) {
        let (slot, part) = slot_and_part(user_data);
        let flight = self.flights[slot].as_mut().expect("a completion belongs to a commit in flight");
        let whole = flight.commit.bytes as i32;
        let earlier = match part {
            Part::Write => flight.write.replace(result),
            Part::Sync => flight.sync.replace(result),
            Part::SecondSync => flight.second_sync.replace(result),
        };
        assert!(earlier.is_none(), "the kernel completed one entry twice: {part:?} of slot {slot}");
        let sync = match (flight.write, flight.sync, flight.second_sync, flight.split) {
            (Some(_), Some(sync), _, false) => sync,
            (Some(write), Some(_), None, true) if write == whole => {
                // Pushed only now that the first sync is out of the way too, so that a flight
                // has one entry at most beyond its pair.
                self.owed_syncs.push_back(slot);
                return;
            }
            // A success of the first proves nothing, but its failure may have dropped the pages.
            (Some(_), Some(first), second, true) if first == 0 || first == -libc::ECANCELED => {
                second.unwrap_or(-libc::ECANCELED)
            }
            (Some(_), Some(first), _, true) => first,
            _ => return,
        };
        let flight = self.flights[slot].take().expect("it was there above");
        self.free.push(slot);
        self.flying -= 1;
        let write = flight.write.expect("matched above");
        let Commit { token, buf, bytes, .. } = flight.commit;
        done.push(Completion { token, buf, result: fold(bytes, write, sync) });
    }

    fn owes_nothing(&mut self) -> bool {
        let queue = self.ring.submission();
        queue.is_empty() && !queue.taskrun() && !queue.cq_overflow()
    }
}

impl Io for UringIo {
    type Disk = Folder;

    fn append(&mut self, commit: Commit<FolderFile>) {
        assert!(
            commit.bytes <= commit.buf.len(),
            "a commit of {} bytes out of a buffer of {}",
            commit.bytes,
            commit.buf.len()
        );
        self.waiting.push_back(commit);
    }

    fn turn(&mut self, wait: Wait, done: &mut Vec<Completion>) -> io::Result<()> {
        let before = done.len();
        if self.will_block() {
            let commit = self.waiting.pop_front().expect("one is waiting");
            done.push(commit_blocking(commit));
            return Ok(());
        }
        let mut rung = self.reap(done)?;
        let started = Instant::now();
        loop {
            self.fill();
            let sleep = match wait {
                Wait::AtMost(longest) if done.len() == before && !rung => {
                    longest.checked_sub(started.elapsed())
                }
                _ => None,
            };
            match sleep {
                Some(longest) => {
                    self.arm_poll();
                    self.enter(Some(longest))?;
                }
                None if self.owes_nothing() => return Ok(()),
                None => self.enter(None)?,
            }
            rung |= self.reap(done)?;
            // A write's own completion ends a wait too, and gives nothing back yet: go on. What
            // was appended beyond the ring's room is started as soon as there is room.
            let more = !self.owed_syncs.is_empty() || (!self.waiting.is_empty() && self.flying < PAIRS);
            if sleep.is_none() && (!more || self.refused_since.is_some()) {
                return Ok(());
            }
        }
    }

    fn will_block(&self) -> bool {
        self.inline && self.flying == 0 && self.waiting.len() == 1 && !self.waiting[0].pipelined
    }

    fn in_flight(&self) -> usize {
        self.waiting.len() + self.flying
    }

    fn nudge(&mut self) {
        if self.ring.submission().taskrun() {
            // Its error, if any, comes again with the next turn.
            let _ = self.enter(None);
        }
    }
}

impl Drop for UringIo {
    /// Waits for what is in flight: its buffers are the kernel's. What was never started is dropped.
    fn drop(&mut self) {
        self.waiting.clear();
        let mut done = Vec::new();
        while self.flying > 0 {
            self.fill();
            let alive = self.enter(Some(Duration::from_secs(1))).and_then(|()| self.reap(&mut done));
            if alive.is_err() {
                // Nobody can say when the kernel is done. Freed memory would be written into the
                // log as soon as it is used for something else, so it is never freed.
                self.flights.drain(..).for_each(std::mem::forget);
                return;
            }
            done.clear();
        }
    }
}

fn sync_entry(file: &FolderFile, slot: usize, part: Part) -> Entry {
    opcode::Fsync::new(types::Fd(file.as_raw_fd()))
        .flags(types::FsyncFlags::DATASYNC)
        .build()
        .user_data(user_data(slot, part))
}

/// The best ring that this kernel makes. Newer flags are given up one by one.
fn build_ring() -> io::Result<IoUring> {
    let mut last = io::Error::from_raw_os_error(libc::EINVAL);
    for level in (0..4).rev() {
        let mut builder = IoUring::builder();
        builder.setup_clamp().dontfork();
        if level >= 1 {
            builder.setup_submit_all(); // 5.18
        }
        if level >= 2 {
            builder.setup_coop_taskrun().setup_taskrun_flag(); // 5.19
        }
        if level >= 3 {
            builder.setup_single_issuer(); // 6.0
        }
        match builder.build(ENTRIES) {
            Ok(ring) => {
                check_ring(&ring)?;
                return Ok(ring);
            }
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

/// A sandbox may let a ring be made and forbid what it is for.
fn check_ring(ring: &IoUring) -> io::Result<()> {
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let able = [opcode::Write::CODE, opcode::Fsync::CODE, opcode::PollAdd::CODE]
        .iter()
        .all(|code| probe.is_supported(*code));
    if !able || !ring.params().is_feature_nodrop() || ring.params().sq_entries() < ENTRIES {
        return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{CommitFault, Disk};
    use super::*;
    use crate::aligned::AlignedBuf;

    fn rig() -> Option<(tempfile::TempDir, UringIo, FolderFile)> {
        let temporary = tempfile::tempdir().unwrap();
        let disk = Folder::open(temporary.path()).unwrap();
        let file = disk.create("a").unwrap();
        disk.write(&file, 0, &AlignedBuf::zeroed(16 << 12)).unwrap();
        disk.sync(&file).unwrap();
        match UringIo::new(disk, Wake::new().unwrap(), false) {
            Ok(io) => Some((temporary, io, file)),
            Err(error) => {
                eprintln!("SKIPPED: io_uring is not available here: {error}");
                None
            }
        }
    }

    fn commit(file: &FolderFile, token: u64) -> Commit<FolderFile> {
        let mut buf = AlignedBuf::zeroed(4096);
        buf.fill(token as u8 + 1);
        Commit { token, file: file.clone(), offset: token << 12, bytes: 4096, buf, pipelined: true }
    }

    /// Has the kernel take only so many entries, as it does when it is short of memory.
    fn take(io: &mut UringIo, count: u32) {
        // SAFETY: no argument is passed.
        let taken = unsafe { io.ring.submitter().enter::<libc::sigset_t>(count, 0, 0, None) };
        assert_eq!(taken.unwrap(), count as usize);
        io.account().unwrap();
    }

    /// The fdatasync of a split pair runs beside its write and proves nothing: acknowledging on it
    /// would acknowledge what a power cut takes away.
    #[test]
    fn a_split_pair_is_synced_again_after_its_write() {
        let Some((_keep, mut io, file)) = rig() else {
            return;
        };
        (0..3).for_each(|token| io.append(commit(&file, token)));
        io.fill();
        take(&mut io, 3);
        assert_eq!(io.split_pairs(), 1);
        let second = |io: &UringIo| {
            io.flights.iter().flatten().find(|flight| flight.split).map(|flight| flight.commit.token)
        };
        assert_eq!(second(&io), Some(1), "the pair of the fourth entry");
        let mut done = Vec::new();
        while io.in_flight() > 0 {
            io.turn(Wait::AtMost(Duration::from_secs(60)), &mut done).unwrap();
            for flight in io.flights.iter().flatten().filter(|flight| flight.split) {
                assert!(flight.second_sync.is_none(), "it completes with its second sync");
            }
        }
        assert_eq!((done.len(), io.split_pairs()), (3, 1));
        assert!(done.iter().all(|completion| completion.result.is_ok()));
    }

    /// Whichever way the completions of a split pair come in.
    #[test]
    fn the_first_sync_of_a_split_pair_counts_for_nothing() {
        let Some((_keep, mut io, file)) = rig() else {
            return;
        };
        let flight = |split| {
            Some(Flight { commit: commit(&file, 1), write: None, sync: None, second_sync: None, split })
        };
        for (parts, expected) in [
            ([(Part::Sync, 0), (Part::Write, 4096), (Part::SecondSync, 0)], Ok(())),
            (
                [(Part::Write, 4096), (Part::Sync, 0), (Part::SecondSync, -5)],
                Err(CommitFault::Sync { errno: 5 }),
            ),
            (
                [(Part::Write, 4096), (Part::Sync, -5), (Part::SecondSync, 0)],
                Err(CommitFault::Sync { errno: 5 }),
            ),
        ] {
            (io.flights, io.free, io.flying) = (vec![flight(true)], vec![], 1);
            let mut done = Vec::new();
            for (part, result) in parts {
                assert!(done.is_empty());
                io.record(user_data(0, part), result, &mut done);
            }
            io.owed_syncs.clear();
            assert_eq!(done.pop().unwrap().result.map(drop), expected);
        }
        // No second sync is owed to a write that failed.
        (io.flights, io.free, io.flying) = (vec![flight(true)], vec![], 1);
        let mut done = Vec::new();
        io.record(user_data(0, Part::Write), 512, &mut done);
        io.record(user_data(0, Part::Sync), 0, &mut done);
        assert_eq!(done[0].result, Err(CommitFault::ShortWrite { written: 512, wanted: 4096 }));
        assert!(io.owed_syncs.is_empty());
    }

    /// A second ring or an odd mask must not hurt the commits.
    #[test]
    fn workers_can_be_kept_to_cores() {
        let Some((_keep, mut io, file)) = rig() else {
            return;
        };
        match io.workers_on(&[0]) {
            Ok(()) => {}
            Err(error) => eprintln!("SKIPPED: workers cannot be placed: {error}"),
        }
        io.append(commit(&file, 2));
        let mut done = Vec::new();
        while io.in_flight() > 0 {
            io.turn(Wait::AtMost(Duration::from_secs(60)), &mut done).unwrap();
        }
        assert!(done[0].result.is_ok());
    }
}
