//! The contract of [`Io`] and [`Disk`] as one body of checks that every implementation must pass.
//!
//! It owns no implementation: a caller hands over fresh [`Rig`]s. It promises that what passes here
//! can be exchanged under a shard. What it cannot see is whether a flush reached the medium; that
//! takes the simulated disk or a real power cut.

use std::any::Any;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::{Access, Commit, CommitFault, Completion, Disk, Io, Wait};
use crate::aligned::AlignedBuf;
use crate::wake::Wake;

/// So long sleeps only somebody whose wake-up was lost.
const LOST: Duration = Duration::from_secs(60);

/// An implementation with an empty folder of its own.
pub struct Rig<I: Io> {
    /// What is checked.
    pub io: I,
    /// Its disk.
    pub disk: I::Disk,
    /// What it sleeps on.
    pub wake: Arc<Wake>,
    /// Dropped last: a temporary folder, say.
    pub keep: Box<dyn Any>,
}

/// Checks everything, each on a rig of its own.
pub fn run<I: Io>(make: impl Fn() -> Rig<I>) {
    disk_keeps_names_and_bytes(&make().disk);
    disk_locks_a_description(&make().disk);
    lone_commits_are_durable_and_readable(make());
    everything_in_flight_completes_once(make());
    a_fault_strikes_its_own_commit_only(make());
    a_wake_up_before_the_sleep_is_not_lost(make());
    a_wake_up_ends_the_sleep(make());
    a_completion_ends_the_sleep(make());
    sleep_without_any_event_ends(make());
    dropping_waits_for_what_is_in_flight(make());
}

type File<I> = <<I as Io>::Disk as Disk>::File;

impl<I: Io> Rig<I> {
    fn prepared(&self, name: &str, blocks: usize) -> File<I> {
        let file = self.disk.create(name).unwrap();
        let zeros = AlignedBuf::zeroed(blocks * self.block());
        self.disk.allocate(&file, zeros.len() as u64).unwrap();
        self.disk.write(&file, 0, &zeros).unwrap();
        self.disk.sync(&file).unwrap();
        file
    }

    fn block(&self) -> usize {
        self.disk.block_bytes() as usize
    }

    fn commit(
        &self,
        token: u64,
        file: &File<I>,
        at: usize,
        blocks: usize,
        pipelined: bool,
    ) -> Commit<File<I>> {
        // One block more than is written: the rest of a buffer must stay out of the file.
        let mut buf = AlignedBuf::zeroed((blocks + 1) * self.block());
        buf.fill(pattern(token));
        let (offset, bytes) = ((at * self.block()) as u64, blocks * self.block());
        Commit { token, file: file.clone(), offset, bytes, buf, pipelined }
    }

    fn finish(&mut self, done: &mut Vec<Completion>) {
        while self.io.in_flight() > 0 {
            self.io.nudge();
            self.io.turn(Wait::AtMost(LOST), done).unwrap();
        }
    }

    fn bytes_of(&self, file: &File<I>, blocks: usize) -> AlignedBuf {
        let mut bytes = AlignedBuf::zeroed(blocks * self.block());
        assert_eq!(self.disk.read(file, 0, &mut bytes).unwrap(), blocks * self.block());
        bytes
    }
}

fn pattern(token: u64) -> u8 {
    (token % 251) as u8 + 1
}

fn all(bytes: &[u8], value: u8) -> bool {
    bytes.iter().all(|byte| *byte == value)
}

fn lone_commits_are_durable_and_readable<I: Io>(mut rig: Rig<I>) {
    let file = rig.prepared("a", 8);
    for (token, pipelined) in [(1 << 48, false), (u64::MAX, true), (0, false)] {
        let mut done = Vec::new();
        rig.io.append(rig.commit(token, &file, 2, 3, pipelined));
        assert_eq!(rig.io.in_flight(), 1);
        rig.finish(&mut done);
        assert_eq!(done.len(), 1);
        assert_eq!(done[0].token, token);
        assert!(done[0].result.is_ok(), "{:?}", done[0].result);
        let (bytes, block) = (rig.bytes_of(&file, 8), rig.block());
        assert!(all(&bytes[2 * block..5 * block], pattern(token)));
        assert!(all(&bytes[..2 * block], 0) && all(&bytes[5 * block..], 0));
    }
}

/// A completion that is lost, doubled or given the buffer of another would acknowledge wrongly.
fn everything_in_flight_completes_once<I: Io>(mut rig: Rig<I>) {
    let files = ["a", "b", "c"].map(|name| rig.prepared(name, 200));
    let (mut expected, mut done) = (BTreeMap::new(), Vec::new());
    for token in 0..150_u64 {
        let (file, at) = ((token % 3) as usize, (token / 3) as usize * 4);
        let commit = rig.commit(token, &files[file], at, 1 + (token % 4) as usize, token % 5 != 0);
        expected.insert(token, (commit.buf.as_ptr().addr(), commit.buf.len(), file, at, commit.bytes));
        rig.io.append(commit);
        // Bursts of several sizes, some larger than any ring's room.
        if token % 7 == 0 || token > 130 {
            rig.io.turn(Wait::No, &mut done).unwrap();
        }
        assert_eq!(rig.io.in_flight() + done.len(), token as usize + 1);
    }
    rig.finish(&mut done);
    assert_eq!(done.len(), expected.len());
    let bytes = files.each_ref().map(|file| rig.bytes_of(file, 200));
    for completion in &done {
        let (address, length, file, at, written) =
            expected.remove(&completion.token).expect("no token twice");
        assert!(completion.result.is_ok(), "{completion:?}");
        assert_eq!((completion.buf.as_ptr().addr(), completion.buf.len()), (address, length));
        assert!(all(&completion.buf, pattern(completion.token)));
        let start = at * rig.block();
        assert!(all(&bytes[file][start..start + written], pattern(completion.token)));
    }
    let mut nothing = Vec::new();
    rig.io.turn(Wait::No, &mut nothing).unwrap();
    assert!(nothing.is_empty());
}

/// A write that failed is a fault of its own commit, brings the buffer back, and leaves the others.
fn a_fault_strikes_its_own_commit_only<I: Io>(mut rig: Rig<I>) {
    let file = rig.prepared("a", 8);
    let read_only = rig.disk.open("a", Access::ReadDirect).unwrap();
    for pipelined in [false, true] {
        for alone in [true, false] {
            let mut done = Vec::new();
            let mut bad =
                vec![rig.commit(10, &read_only, 1, 1, pipelined), rig.commit(11, &file, 1, 1, pipelined)];
            // Its end is beyond what any file system can hold.
            bad[1].offset = i64::MAX as u64 / rig.block() as u64 * rig.block() as u64;
            for commit in bad {
                rig.io.append(commit);
                if alone {
                    rig.finish(&mut done);
                }
            }
            if !alone {
                rig.io.append(rig.commit(12, &file, 4, 1, pipelined));
            }
            rig.finish(&mut done);
            done.sort_by_key(|completion| completion.token);
            assert_eq!(done[0].result, Err(CommitFault::Write { errno: libc::EBADF }));
            assert!(matches!(done[1].result, Err(CommitFault::Write { .. })), "{:?}", done[1].result);
            assert!(done.iter().all(|completion| all(&completion.buf, pattern(completion.token))));
            if !alone {
                assert!(done[2].result.is_ok());
            }
            assert!(all(&rig.bytes_of(&file, 2), 0));
        }
    }
}

fn a_wake_up_before_the_sleep_is_not_lost<I: Io>(mut rig: Rig<I>) {
    let mut done = Vec::new();
    for _ in 0..10 {
        rig.wake.prepare_sleep();
        rig.wake.notify();
        sleep_well(&mut rig.io, &mut done);
        rig.wake.awake();
    }
    assert!(done.is_empty());
}

/// The race of sleeping and waking, a few hundred times over.
fn a_wake_up_ends_the_sleep<I: Io>(mut rig: Rig<I>) {
    const ROUNDS: u32 = 300;
    let file = rig.prepared("a", 4);
    let (asleep, wake) = (Arc::new(AtomicU32::new(0)), Arc::clone(&rig.wake));
    let seen = Arc::clone(&asleep);
    let ringer = std::thread::spawn(move || {
        for round in 1..=ROUNDS {
            while seen.load(Ordering::Acquire) < round {
                std::thread::yield_now();
            }
            // Sometimes before the sleep, sometimes well within it.
            (0..round % 7 * 20).for_each(|_| std::hint::spin_loop());
            wake.notify();
        }
    });
    let mut done = Vec::new();
    for round in 1..=ROUNDS {
        if round % 3 == 0 {
            rig.io.append(rig.commit(u64::from(round), &file, 1, 1, true));
        }
        rig.wake.prepare_sleep();
        asleep.store(round, Ordering::Release);
        sleep_well(&mut rig.io, &mut done);
        rig.wake.awake();
    }
    ringer.join().unwrap();
    rig.finish(&mut done);
    assert_eq!(done.len(), ROUNDS as usize / 3);
}

fn sleep_well<I: Io>(io: &mut I, done: &mut Vec<Completion>) {
    let started = Instant::now();
    io.turn(Wait::AtMost(LOST), done).unwrap();
    assert!(started.elapsed() < LOST, "the wake-up was lost");
}

fn a_completion_ends_the_sleep<I: Io>(mut rig: Rig<I>) {
    let file = rig.prepared("a", 4);
    let mut done = Vec::new();
    rig.io.append(rig.commit(1, &file, 0, 4, true));
    while done.is_empty() {
        sleep_well(&mut rig.io, &mut done);
    }
    assert_eq!(rig.io.in_flight(), 0);
}

fn sleep_without_any_event_ends<I: Io>(mut rig: Rig<I>) {
    let mut done = Vec::new();
    for longest in [Duration::ZERO, Duration::from_nanos(1), Duration::from_millis(3)] {
        rig.io.turn(Wait::AtMost(longest), &mut done).unwrap();
        rig.io.nudge();
    }
    assert!(done.is_empty());
}

/// Freed memory that the kernel still reads would end up in the log.
fn dropping_waits_for_what_is_in_flight<I: Io>(rig: Rig<I>) {
    let file = rig.prepared("a", 64);
    let commits: Vec<_> =
        (0..16).map(|token| rig.commit(token, &file, token as usize * 4, 4, true)).collect();
    let (block, Rig { mut io, disk, keep, .. }) = (rig.block(), rig);
    let mut done = Vec::new();
    commits.into_iter().for_each(|commit| io.append(commit));
    io.turn(Wait::No, &mut done).unwrap();
    drop(io);
    // Takes the place of the buffers, if they were freed.
    let others: Vec<_> = (0..16)
        .map(|_| {
            let mut other = AlignedBuf::zeroed(5 * block);
            other.fill(0xFF);
            other
        })
        .collect();
    let mut bytes = AlignedBuf::zeroed(64 * block);
    assert_eq!(disk.read(&file, 0, &mut bytes).unwrap(), 64 * block);
    for (index, unit) in bytes.chunks(block).enumerate() {
        assert!(all(unit, 0) || all(unit, pattern(index as u64 / 4)), "block {index}");
    }
    drop((others, keep));
}

fn disk_keeps_names_and_bytes<D: Disk>(disk: &D) {
    let block = disk.block_bytes() as usize;
    let names = |disk: &D| -> Vec<(String, u64)> {
        disk.list().unwrap().into_iter().map(|entry| (entry.name, entry.bytes)).collect()
    };
    assert!(block >= 4096 && block.is_power_of_two());
    assert_eq!(kind(disk.open("a", Access::Write)), Some(io::ErrorKind::NotFound));
    let b = disk.create("b").unwrap();
    let a = disk.create("a").unwrap();
    assert_eq!(kind(disk.create("a")), Some(io::ErrorKind::AlreadyExists));
    let mut two = AlignedBuf::zeroed(2 * block);
    two.fill(5);
    disk.write(&a, block as u64, &two).unwrap();
    disk.sync(&a).unwrap();
    assert_eq!(names(disk), [("a".into(), 3 * block as u64), ("b".into(), 0)]);

    let mut four = AlignedBuf::zeroed(4 * block);
    four.fill(9);
    for access in [Access::Read, Access::ReadDirect, Access::Write] {
        let again = disk.open("a", access).unwrap();
        assert_eq!(disk.read(&again, 0, &mut four).unwrap(), 3 * block);
        // What lies behind the end of the file is anything: ext4 clears it past the page cache.
        assert!(all(&four[..block], 0) && all(&four[block..3 * block], 5));
        assert_eq!(disk.read(&again, 64 * block as u64, &mut two).unwrap(), 0);
        assert_eq!(disk.write(&again, 0, &four[..block]).is_ok(), access == Access::Write);
        assert_eq!(disk.bytes(&again).unwrap(), 3 * block as u64);
    }

    disk.allocate(&b, 8 * block as u64).unwrap();
    assert_eq!(disk.bytes(&b).unwrap(), 8 * block as u64);
    assert_eq!(disk.read(&b, 7 * block as u64, &mut two[..block]).unwrap(), block);
    assert!(all(&two[..block], 0));
    disk.allocate(&b, block as u64).unwrap();
    assert_eq!(disk.bytes(&b).unwrap(), 8 * block as u64, "an allocation never shortens");
    disk.truncate(&b, block as u64).unwrap();

    // The open file goes on under its new name, and replaces what had it.
    disk.rename("b", "a").unwrap();
    assert_eq!(names(disk), [("a".into(), block as u64)]);
    disk.write(&b, 0, &two[block..]).unwrap();
    let renamed = disk.open("a", Access::ReadDirect).unwrap();
    assert_eq!(disk.read(&renamed, 0, &mut two[..block]).unwrap(), block);
    assert!(all(&two, 5));
    disk.remove("a").unwrap();
    assert_eq!(kind(disk.remove("a")), Some(io::ErrorKind::NotFound));
    assert_eq!(kind(disk.rename("a", "b")), Some(io::ErrorKind::NotFound));
    assert!(names(disk).is_empty());
    // Removed, and yet open.
    assert_eq!(disk.read(&renamed, 0, &mut two[..block]).unwrap(), block);
}

fn kind<T>(result: io::Result<T>) -> Option<io::ErrorKind> {
    result.err().map(|error| error.kind())
}

fn disk_locks_a_description<D: Disk>(disk: &D) {
    let owner = disk.create("a").unwrap();
    let (reader, second) = (disk.open("a", Access::Read).unwrap(), disk.open("a", Access::Write).unwrap());
    assert!(!disk.is_locked(&reader).unwrap());
    assert!(disk.try_lock(&owner).unwrap());
    assert!(disk.try_lock(&owner.clone()).unwrap(), "a clone is the same description");
    assert!(disk.is_locked(&reader).unwrap() && disk.is_locked(&owner).unwrap());
    assert!(!disk.try_lock(&second).unwrap());
    let clone = owner.clone();
    drop(owner);
    assert!(!disk.try_lock(&second).unwrap());
    drop(clone);
    assert!(!disk.is_locked(&reader).unwrap());
    assert!(disk.try_lock(&second).unwrap());
}

#[cfg(test)]
mod tests {
    use super::super::disk::Folder;
    use super::super::posix::PosixIo;
    use super::super::uring::UringIo;
    use super::*;

    fn rig<I: Io<Disk = Folder>>(make: impl Fn(Folder, Arc<Wake>) -> I) -> impl Fn() -> Rig<I> {
        move || {
            let temporary = tempfile::tempdir().unwrap();
            let disk = Folder::create(temporary.path().join("log")).unwrap();
            let wake = Wake::new().unwrap();
            Rig { io: make(disk.clone(), Arc::clone(&wake)), disk, wake, keep: Box::new(temporary) }
        }
    }

    /// Containers often forbid io_uring; that must be seen in the output, and fail nothing.
    fn with_uring(check: impl Fn(bool)) {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::open(temporary.path()).unwrap();
        if let Err(error) = UringIo::new(folder, Wake::new().unwrap(), false) {
            eprintln!("SKIPPED: io_uring is not available here: {error}");
            return;
        }
        check(false);
        check(true);
    }

    #[test]
    fn uring_conforms() {
        with_uring(|inline| run(rig(|disk, wake| UringIo::new(disk, wake, inline).unwrap())));
    }

    #[test]
    fn posix_conforms() {
        run(rig(PosixIo::new));
        run(rig(|disk, wake| PosixIo::new(disk, wake).with_dsync(true)));
    }

    /// A write that ends short must be told apart from a whole one, and what is beyond a limit
    /// must be a fault. The limit holds for a whole process, so this one runs itself again.
    #[test]
    fn short_writes_are_faults() {
        const LIMITED: &str = "HANAPER_TEST_FILE_LIMIT";
        const BLOCKS: u64 = 6;
        if std::env::var_os(LIMITED).is_none() {
            let name = std::thread::current().name().expect("tests are named").to_owned();
            let mut again = std::process::Command::new(std::env::current_exe().unwrap());
            let output = again.args(["--exact", &name, "--nocapture"]).env(LIMITED, "1").output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
            return;
        }
        let make_posix = rig(PosixIo::new);
        let block = make_posix().block() as u64;
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: a plain struct is written and read, and a signal is ignored.
        unsafe {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            assert_eq!(libc::getrlimit(libc::RLIMIT_FSIZE, &raw mut limit), 0);
            limit.rlim_cur = BLOCKS * block;
            assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit), 0);
        }
        strike_the_limit(make_posix());
        strike_the_limit(rig(|disk, wake| PosixIo::new(disk, wake).with_dsync(true))());
        with_uring(|inline| strike_the_limit(rig(|disk, wake| UringIo::new(disk, wake, inline).unwrap())()));
    }

    /// Six blocks are allowed: four are there, and two of the next four fit.
    fn strike_the_limit<I: Io>(mut rig: Rig<I>) {
        let file = rig.prepared("a", 4);
        let (block, mut done) = (rig.block() as u64, Vec::new());
        for pipelined in [false, true] {
            rig.io.append(rig.commit(1, &file, 4, 4, pipelined));
            rig.finish(&mut done);
            rig.io.append(rig.commit(2, &file, 6, 1, pipelined));
            rig.finish(&mut done);
            let results: Vec<_> = done.drain(..).map(|completion| completion.result.unwrap_err()).collect();
            assert_eq!(results[0], CommitFault::ShortWrite { written: 2 * block, wanted: 4 * block });
            assert_eq!(results[1], CommitFault::Write { errno: libc::EFBIG });
        }
    }
}
