//! The one place that spawns and pins threads.
//!
//! A driver thread owns a ring and hosts one shard or several. It never depends on an executor's
//! parking: it sleeps in its own ring, and a producer's wake-up ends that sleep.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use hanaper_ingest::ShardPort;
use hanaper_shards::ack::Stopped;
use hanaper_shards::clock::Clock;
use hanaper_shards::io::disk::{Folder, FolderFile};
use hanaper_shards::io::posix::PosixIo;
use hanaper_shards::io::uring::UringIo;
use hanaper_shards::io::{Io, Wait};
use hanaper_shards::shard::{self, Head, Shard, Turn};
use hanaper_shards::wake::Wake;
use hanaper_shards::wal::chain::Chain;
use hanaper_shards::wal::prepare::Prepared;

use crate::builder::{Driver, FailurePolicy};
#[cfg(feature = "glommio")]
use crate::glommio_host;
use crate::notary::{Desk, Notary};
use crate::slow::{Host, PlainThread, SlowQueue, SlowWorker};

/// No sleep is longer, whatever the clock says: if a wake-up were ever lost, this is what it would cost.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);

/// What the engine tells its drivers.
#[derive(Default)]
pub(crate) struct Orders {
    pub(crate) close: AtomicBool,
    /// Stop at once, as a crash would.
    pub(crate) abandon: AtomicBool,
}

/// One shard on its way to a driver thread.
pub(crate) struct Seat<I: Io> {
    /// Index in the layout, which is also the slow worker's.
    pub(crate) slot: usize,
    pub(crate) port: ShardPort,
    pub(crate) make: Box<dyn FnOnce() -> Shard<I> + Send>,
}

/// How one shard ended.
pub(crate) struct Ended {
    pub(crate) slot: usize,
    pub(crate) failure: Option<Stopped>,
    /// Where its chain ends; durable if nothing failed.
    pub(crate) chain: Chain,
    /// The durable part of its chain.
    pub(crate) head: Head,
    pub(crate) spares: Vec<Prepared<FolderFile>>,
}

/// What a driver thread needs.
pub(crate) struct Drive {
    pub(crate) wake: Arc<Wake>,
    pub(crate) clock: Clock,
    pub(crate) orders: Arc<Orders>,
    pub(crate) slow: Arc<SlowQueue>,
    pub(crate) on_failure: Arc<FailurePolicy>,
    pub(crate) spin: Duration,
    pub(crate) slice: Option<Duration>,
    /// Where heads are asked for.
    pub(crate) desk: Option<Arc<Desk>>,
}

/// The commit path that calibration chose, made on the thread that will use it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Path {
    Uring { inline: bool },
    Posix { dsync: bool },
}

/// A commit path that can be made where it is used.
pub(crate) trait MakeIo: Io<Disk = Folder> + Sized {
    fn make(path: Path, folder: Folder, wake: Arc<Wake>) -> std::io::Result<Self>;
}

impl MakeIo for UringIo {
    fn make(path: Path, folder: Folder, wake: Arc<Wake>) -> std::io::Result<UringIo> {
        UringIo::new(folder, wake, matches!(path, Path::Uring { inline: true }))
    }
}

impl MakeIo for PosixIo {
    fn make(path: Path, folder: Folder, wake: Arc<Wake>) -> std::io::Result<PosixIo> {
        Ok(PosixIo::new(folder, wake).with_dsync(matches!(path, Path::Posix { dsync: true })))
    }
}

/// Cores that this process may use, in the order in which drivers take them: the last ones first, since
/// threads of others gather on the first (`docs/decisions/0017`).
pub(crate) fn cores() -> Vec<core_affinity::CoreId> {
    let mut cores = core_affinity::get_core_ids().unwrap_or_default();
    cores.reverse();
    cores
}

/// A thread that was spawned, and why it runs without glommio although that was wanted.
pub(crate) struct Spawned<T> {
    pub(crate) handle: JoinHandle<T>,
    pub(crate) refused: Option<String>,
}

/// Spawns one driver thread for these seats.
pub(crate) fn spawn_driver<I: MakeIo + 'static>(
    name: String,
    host: Driver,
    core: Option<core_affinity::CoreId>,
    path: Path,
    folder: Folder,
    seats: Vec<Seat<I>>,
    drive: Drive,
) -> std::io::Result<Spawned<Vec<Ended>>> {
    let body = move || {
        if let Some(slice) = drive.slice {
            // Refused on older kernels and in some containers: only the tail on a busy machine is worse.
            let _given: bool = crate::slice::set_for_current(slice);
        }
        let guard = Guard(seats.iter().map(|s| s.port.clone()).collect());
        let mut slots = Vec::new();
        let mut shards = Vec::new();
        for seat in seats {
            slots.push(seat.slot);
            shards.push((seat.make)());
        }
        let ended = match I::make(path, folder, Arc::clone(&drive.wake)) {
            Ok(mut io) => run(&mut io, &mut shards, &slots, &drive),
            Err(error) => {
                fail_all(&mut shards, "io_uring_setup", &error);
                end(&mut shards, &slots)
            }
        };
        drop(guard);
        ended
    };
    let pinned = move || {
        if let Some(core) = core {
            // Refused in some containers: the thread then runs where the scheduler puts it.
            let _pinned: bool = core_affinity::set_for_current(core);
        }
        body()
    };
    match host {
        Driver::Threads => {
            let handle = std::thread::Builder::new().name(name).spawn(pinned)?;
            Ok(Spawned { handle, refused: None })
        }
        #[cfg(feature = "glommio")]
        Driver::Glommio => on_glommio(name, core, move |executor| match executor {
            Some(executor) => glommio_host::run_alone(executor, pinned),
            None => pinned(),
        }),
        #[cfg(not(feature = "glommio"))]
        Driver::Glommio => unreachable!("the builder refuses it"),
    }
}

/// Ends drivers whose log did not come to be: they must not hold its segments.
pub(crate) fn abandon(orders: &Orders, wakes: &[Arc<Wake>], drivers: Vec<JoinHandle<Vec<Ended>>>) {
    orders.abandon.store(true, Ordering::Release);
    wakes.iter().for_each(|wake| wake.notify());
    for driver in drivers {
        // Why the opening failed says more than how a driver ended.
        drop(driver.join());
    }
}

/// Spawns the thread of the slow work: on glommio where that is built in and starts.
pub(crate) fn spawn_slow(worker: SlowWorker<Folder>) -> std::io::Result<Spawned<SlowWorker<Folder>>> {
    let name = "hanaper-slow".to_owned();
    #[cfg(feature = "glommio")]
    return on_glommio(name, None, move |executor| match executor {
        Some(executor) => executor.work(worker),
        None => PlainThread.work(worker),
    });
    #[cfg(not(feature = "glommio"))]
    {
        let handle = std::thread::Builder::new().name(name).spawn(move || PlainThread.work(worker))?;
        Ok(Spawned { handle, refused: None })
    }
}

/// Spawns a thread, has it make an executor, and waits until that has started or refused.
#[cfg(feature = "glommio")]
fn on_glommio<T: Send + 'static>(
    name: String,
    core: Option<core_affinity::CoreId>,
    body: impl FnOnce(Option<glommio::LocalExecutor>) -> T + Send + 'static,
) -> std::io::Result<Spawned<T>> {
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    let handle = std::thread::Builder::new().name(name.clone()).spawn(move || {
        let started = glommio_host::start(&name, core.map(|core| core.id));
        let (executor, refused) = match started {
            Ok(executor) => (Some(executor), None),
            Err(why) => (None, Some(why)),
        };
        // Nobody hears it only if the opening itself is over.
        let _ = tell.send(refused);
        body(executor)
    })?;
    // A thread that panicked while starting says so when it is joined.
    let refused = told.recv().unwrap_or(None);
    Ok(Spawned { handle, refused })
}

/// Spawns the thread that makes checkpoints. It is pinned nowhere: the drivers have taken the last cores.
pub(crate) fn spawn_notary(notary: Notary) -> std::io::Result<JoinHandle<Vec<String>>> {
    std::thread::Builder::new().name("hanaper-notary".to_owned()).spawn(move || notary.run())
}

/// Refuses producers when the thread is over, also by a panic: nobody waits for ever.
struct Guard(Vec<ShardPort>);

impl Drop for Guard {
    fn drop(&mut self) {
        for port in &self.0 {
            port.stop(Stopped::Abandoned);
        }
    }
}

fn fail_all<I: Io>(shards: &mut [Shard<I>], op: &'static str, error: &std::io::Error) {
    let errno = error.raw_os_error().unwrap_or(libc::EIO);
    for shard in shards {
        shard.fail(Stopped::Poisoned { op, errno, offset: 0 });
    }
}

fn end<I: Io<Disk = Folder>>(shards: &mut [Shard<I>], slots: &[usize]) -> Vec<Ended> {
    let ended = |(shard, &slot): (&mut Shard<I>, &usize)| Ended {
        slot,
        failure: shard.failure(),
        chain: shard.chain(),
        head: shard.head(),
        spares: shard.take_spares(),
    };
    shards.iter_mut().zip(slots).map(ended).collect()
}

/// The loop of a driver: turn every shard, submit, wake, reap, and sleep when there is nothing.
fn run<I: Io<Disk = Folder>>(
    io: &mut I,
    shards: &mut [Shard<I>],
    slots: &[usize],
    drive: &Drive,
) -> Vec<Ended> {
    let mut done = Vec::new();
    let mut told = vec![false; shards.len()];
    let spin_ns = drive.spin.as_nanos() as u64;
    let mut idle_since = drive.clock.now();
    loop {
        if drive.orders.abandon.load(Ordering::Acquire) {
            for shard in shards.iter_mut() {
                shard.fail(Stopped::Abandoned);
            }
            return end(shards, slots);
        }
        if drive.orders.close.load(Ordering::Acquire) {
            shards.iter_mut().for_each(Shard::close);
        }
        let mut busy = false;
        let mut due: Option<u64> = None;
        let mut finished = 0;
        for (i, shard) in shards.iter_mut().enumerate() {
            match shard.turn(io) {
                Turn::Busy => busy = true,
                Turn::IdleUntil(at) => due = due.into_iter().chain(at).min(),
                Turn::Done => finished += 1,
            }
            for request in shard.take_requests() {
                drive.slow.send(slots[i], request);
            }
            if let Some(why) = shard.failure()
                && !std::mem::replace(&mut told[i], true)
            {
                tell(&drive.on_failure, &why);
            }
        }
        if finished == shards.len() {
            return end(shards, slots);
        }
        // The next ready commit goes to the disk before anybody is woken, unless that would block.
        if io.will_block() {
            shards.iter_mut().for_each(Shard::wake_waiters);
        }
        let Ok(reaped) = step(io, Wait::No, shards, slots, &mut done) else { return end(shards, slots) };
        shards.iter_mut().for_each(Shard::wake_waiters);
        give_heads(shards, slots, drive);
        if busy || reaped {
            idle_since = drive.clock.now();
            continue;
        }
        if drive.clock.now().saturating_sub(idle_since) < spin_ns {
            std::hint::spin_loop();
            continue;
        }
        drive.wake.prepare_sleep();
        let nothing = !shards.iter_mut().any(Shard::has_work)
            && !drive.orders.abandon.load(Ordering::Acquire)
            && !head_is_wanted(slots, drive)
            && (!drive.orders.close.load(Ordering::Acquire) || io.in_flight() > 0 || closing_waits(shards));
        if nothing {
            let now = drive.clock.now();
            let due = due.map_or(LONGEST_SLEEP, |at| Duration::from_nanos(at.saturating_sub(now)));
            let slept = step(io, Wait::AtMost(due.min(LONGEST_SLEEP)), shards, slots, &mut done);
            if slept.is_err() {
                return end(shards, slots);
            }
        }
        drive.wake.awake();
        idle_since = drive.clock.now();
    }
}

/// Gives the heads that are asked for.
fn give_heads<I: Io>(shards: &mut [Shard<I>], slots: &[usize], drive: &Drive) {
    let Some(desk) = &drive.desk else { return };
    for (shard, &slot) in shards.iter_mut().zip(slots) {
        if desk.is_wanted(slot) {
            desk.give(slot, shard.head());
        }
    }
}

fn head_is_wanted(slots: &[usize], drive: &Drive) -> bool {
    drive.desk.as_ref().is_some_and(|desk| slots.iter().any(|&slot| desk.is_wanted(slot)))
}

/// Whether closing has been seen by every shard, so that only the disk or a segment is waited for.
fn closing_waits<I: Io>(shards: &[Shard<I>]) -> bool {
    shards.iter().all(Shard::is_closing)
}

/// Submits and reaps. Gives whether anything completed; after an error nothing ever will, and every shard
/// has stopped.
fn step<I: Io<Disk = Folder>>(
    io: &mut I,
    wait: Wait,
    shards: &mut [Shard<I>],
    slots: &[usize],
    done: &mut Vec<hanaper_shards::io::Completion>,
) -> std::io::Result<bool> {
    if let Err(error) = io.turn(wait, done) {
        fail_all(shards, "io_uring_enter", &error);
        return Err(error);
    }
    let any = !done.is_empty();
    shard::deliver(done, |slot, completion| {
        let at =
            slots.iter().position(|&s| s == usize::from(slot)).expect("a token carries its shard's slot");
        shards[at].complete(completion);
    });
    Ok(any)
}

fn tell(policy: &FailurePolicy, why: &Stopped) {
    match policy {
        FailurePolicy::Return => {}
        FailurePolicy::Call(call) => call(why),
        FailurePolicy::Abort => {
            eprintln!("hanaper: {why}; aborting, as the failure policy says");
            std::process::abort();
        }
    }
}

impl Path {
    /// For people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Path::Uring { inline: true } => "io_uring_linked,lone_by_pwrite+fdatasync",
            Path::Uring { inline: false } => "io_uring_linked",
            Path::Posix { dsync: true } => "pwritev2_RWF_DSYNC",
            Path::Posix { dsync: false } => "pwrite+fdatasync",
        }
    }
}
