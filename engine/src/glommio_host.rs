//! glommio as a host: of a driver's loop, alone on its executor, and of the slow work, as two tasks
//! of unequal weight.
//!
//! Everything runs on a thread that [`crate::runtime`] spawned; the executor is made there. Where it
//! cannot be made (io_uring forbidden, too little lockable memory) the same thread does the same
//! work without it, and [`start`] says why.
//!
//! glommio never sees the files of a log: a driver sleeps in its own ring, and the slow work makes
//! blocking calls, which are what its task queues weigh. Of glommio 0.9 these faults are known, and
//! kept away from:
//! - it panics or ends the process where the kernel denies or lacks something: that is looked at first;
//! - it may park although a task could run: a timer ends each wait after [`GUARD`] at the latest;
//! - a waker dropped on a foreign thread races with the end of its task: foreign threads wake by
//!   reference, and all wakers are dropped here (see `SlowQueue::ring`);
//! - DmaFile busy-polls on disks that its probe takes for pollable: no file of its is used.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use glommio::timer::{Timer, sleep};
use glommio::{
    Latency, LocalExecutor, LocalExecutorBuilder, Placement, PoolPlacement, Shares, spawn_local_into,
};
use hanaper_shards::io::Disk;
use io_uring::{IoUring, Probe, opcode};

use crate::slow::{Host, Next, SlowQueue, SlowWorker};

/// A task that should run does so after this long at the latest, whatever the executor does.
const GUARD: Duration = Duration::from_millis(20);
/// Weights of the two trades while both have work.
const PREPARE_SHARES: usize = 100;
const SEAL_SHARES: usize = 800;
/// Registered for glommio's own files, of which there are none. It takes 64 KiB at least.
const IO_MEMORY_BYTES: usize = 64 << 10;
/// Entries of its rings, which carry timers only.
const RING_DEPTH: usize = 16;

/// An executor for the calling thread, which is pinned to `core` if it may be. The error is a
/// clause for people.
pub(crate) fn start(name: &str, core: Option<usize>) -> Result<LocalExecutor, String> {
    check_kernel()?;
    let make = |placement| {
        let make = || {
            LocalExecutorBuilder::new(placement)
                .name(name)
                .io_memory(IO_MEMORY_BYTES)
                .ring_depth(RING_DEPTH)
                // It has nothing to do, and panics where it may not be pinned.
                .blocking_thread_pool_placement(PoolPlacement::Unbound(1))
                .make()
        };
        match catch_unwind(AssertUnwindSafe(make)) {
            Ok(made) => made.map_err(|error| error.to_string()),
            Err(_) => Err("it panicked".to_owned()),
        }
    };
    let pinned = core.and_then(|core| make(Placement::Fixed(core)).ok());
    match pinned {
        Some(executor) => Ok(executor),
        // Refused in some containers: it then runs where the scheduler puts it.
        None => make(Placement::Unbound),
    }
}

/// Looks first, since glommio panics where io_uring is forbidden, and *ends the process* where an
/// operation is missing.
fn check_kernel() -> Result<(), String> {
    let mut supported = Probe::new();
    let ring = IoUring::new(RING_DEPTH as u32).map_err(|error| format!("no io_uring: {error}"))?;
    ring.submitter().register_probe(&mut supported).map_err(|error| format!("no io_uring: {error}"))?;
    let wanted = [
        opcode::Nop::CODE,
        opcode::Readv::CODE,
        opcode::Writev::CODE,
        opcode::Fsync::CODE,
        opcode::ReadFixed::CODE,
        opcode::WriteFixed::CODE,
        opcode::PollAdd::CODE,
        opcode::PollRemove::CODE,
        opcode::SendMsg::CODE,
        opcode::RecvMsg::CODE,
        opcode::Timeout::CODE,
        opcode::TimeoutRemove::CODE,
        opcode::Accept::CODE,
        opcode::LinkTimeout::CODE,
        opcode::Connect::CODE,
        opcode::Fallocate::CODE,
        opcode::OpenAt::CODE,
        opcode::Close::CODE,
        opcode::Statx::CODE,
        opcode::Read::CODE,
        opcode::Write::CODE,
        opcode::Send::CODE,
        opcode::Recv::CODE,
    ];
    match wanted.iter().all(|code| supported.is_supported(*code)) {
        true => Ok(()),
        false => Err("this kernel's io_uring lacks operations that it needs".to_owned()),
    }
}

/// Runs something that blocks, alone on the executor.
pub(crate) fn run_alone<T>(executor: LocalExecutor, body: impl FnOnce() -> T) -> T {
    // A panic goes around the executor: its tasks do not unwind well.
    let ended = executor.run(async { catch_unwind(AssertUnwindSafe(body)) });
    drop(executor);
    ended.unwrap_or_else(|panic| resume_unwind(panic))
}

impl Host for LocalExecutor {
    fn work<D: Disk>(self, worker: SlowWorker<D>) -> SlowWorker<D> {
        let queue = std::sync::Arc::clone(&worker.queue);
        let worker = Rc::new(RefCell::new(worker));
        let ended = self.run(async {
            let task = |shares, name, turn| {
                let weight = glommio::executor().create_task_queue(
                    Shares::Static(shares),
                    Latency::NotImportant,
                    name,
                );
                spawn_local_into(ply(Rc::clone(&worker), turn), weight).expect("the queue was just made")
            };
            let prepare = task(PREPARE_SHARES, "prepare", SlowWorker::prepare_turn as Trade<D>);
            let seal = task(SEAL_SHARES, "seal", SlowWorker::seal_turn);
            (prepare.await, seal.await)
        });
        queue.forget_sleepers();
        drop(self);
        for panicked in [ended.0, ended.1] {
            panicked.unwrap_or_else(|panic| resume_unwind(panic));
        }
        Rc::into_inner(worker).expect("both tasks are over").into_inner()
    }
}

type Trade<D> = fn(&mut SlowWorker<D>) -> Next;

/// Plies one trade until it is done.
async fn ply<D: Disk>(worker: Rc<RefCell<SlowWorker<D>>>, turn: Trade<D>) -> std::thread::Result<()> {
    let queue = std::sync::Arc::clone(&worker.borrow().queue);
    loop {
        // Before the turn looks around: what rings afterwards ends the wait.
        let seen = queue.rings();
        let next = catch_unwind(AssertUnwindSafe(|| turn(&mut worker.borrow_mut())))?;
        match next {
            Next::Again => glommio::executor().yield_task_queue_now().await,
            Next::Rest(rest) => sleep(rest).await,
            Next::Wait(longest) => Rung::new(&queue, seen, longest.min(GUARD)).await,
            Next::Done => return Ok(()),
        }
    }
}

/// Ready when something has rung, or time is up.
struct Rung<'a> {
    queue: &'a SlowQueue,
    seen: u64,
    timer: Timer,
}

impl Rung<'_> {
    fn new(queue: &SlowQueue, seen: u64, longest: Duration) -> Rung<'_> {
        Rung { queue, seen, timer: Timer::new(longest) }
    }
}

impl Future for Rung<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.queue.wake_by(context.waker());
        if self.queue.rings() != self.seen {
            return Poll::Ready(());
        }
        Pin::new(&mut self.timer).poll(context).map(drop)
    }
}
