//! Waking a driver thread that sleeps, at no cost while it is awake.
//!
//! One [`Wake`] per driver. The handshake, in which neither side may miss the other:
//!
//! ```text
//!   producer                                  driver
//!   publish work (Release)                    drain, look at all lanes and queues: nothing
//!   notify: barrier                           prepare_sleep: sleeping = true; barrier
//!           if sleeping: take it down,        look again: something? awake, and go on
//!              write the eventfd              sleep until the eventfd is readable; awake
//! ```
//! If the driver's second look misses the work, then its barrier came before the producer's, so
//! the producer sees `sleeping` and writes; and the eventfd remembers a write that comes before
//! the sleep. The first producer to take `sleeping` down writes, the others need not.
//!
//! The producer's barrier stands on the append path, so it is made free: the driver's is a
//! `membarrier(PRIVATE_EXPEDITED)`, which makes every running thread of the process pass a full
//! barrier, and the producer's only holds the compiler. Where membarrier is missing or refused,
//! both are SeqCst fences.
//!
//! Wake-ups may be spurious. The eventfd carries no data: drain it *before* looking at the lanes.

use std::io;
#[cfg(not(loom))]
use std::os::fd::AsRawFd;
use std::os::fd::RawFd;
use std::sync::atomic::compiler_fence;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::lane::sync::{AtomicU8, Line, Ordering, fence};

/// The driver sleeps, or is about to.
const SLEEPING: u8 = 1;
/// There is no membarrier: producers fence.
const FENCED: u8 = 2;

/// Wakes one driver thread. Shared by the driver and all who give it work.
pub struct Wake {
    /// Read at every append, written only around a sleep: on a line of its own it stays in every
    /// producer's cache.
    state: Line<AtomicU8>,
    signal: Signal,
}

impl Wake {
    /// A new wake-up, with an eventfd of its own. Fails if the process has no descriptor left.
    pub fn new() -> io::Result<Arc<Wake>> {
        Wake::with(if membarrier_registered() { 0 } else { FENCED })
    }

    fn with(state: u8) -> io::Result<Arc<Wake>> {
        Ok(Arc::new(Wake { state: Line(AtomicU8::new(state)), signal: Signal::new()? }))
    }

    /// For a producer, after it has published its work with Release: wakes the driver if it
    /// sleeps. While the driver is awake this is one load and no system call.
    #[inline]
    pub fn notify(&self) {
        compiler_fence(std::sync::atomic::Ordering::SeqCst);
        if self.state.0.load(Ordering::Relaxed) != 0 {
            self.notify_slowly();
        }
    }

    #[cold]
    #[inline(never)]
    fn notify_slowly(&self) {
        // With membarrier the fence is not needed, and a sleeping driver costs more than it.
        fence(Ordering::SeqCst);
        if self.state.0.load(Ordering::Relaxed) & SLEEPING == 0 {
            return;
        }
        // One of several producers wins, so that a burst costs one system call.
        if self.state.0.fetch_and(!SLEEPING, Ordering::AcqRel) & SLEEPING != 0 {
            self.signal.raise();
        }
    }

    /// For the driver, which has nothing to do: from now on producers write the eventfd. The
    /// driver then looks again at *all* that can hold work, and only then sleeps.
    pub fn prepare_sleep(&self) {
        let before = self.state.0.fetch_or(SLEEPING, Ordering::SeqCst);
        if before & FENCED != 0 {
            fence(Ordering::SeqCst);
        } else if !membarrier() {
            // It worked when it was registered: a seccomp filter came later. From now on
            // producers fence. One that has already looked may have work in its store buffer
            // still, so this once the driver does not sleep.
            self.state.0.fetch_or(FENCED, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            self.signal.raise();
        }
    }

    /// For the driver: it is awake, producers need not write. Called after each
    /// [`Wake::prepare_sleep`], whether it slept or not.
    #[inline]
    pub fn awake(&self) {
        self.state.0.fetch_and(!SLEEPING, Ordering::Relaxed);
    }

    /// The eventfd, to be polled for reading along with whatever else the driver waits for. It
    /// lives as long as this.
    pub fn fd(&self) -> RawFd {
        self.signal.fd()
    }

    /// Empties the eventfd, so that it can be polled again. Never blocks.
    pub fn drain(&self) {
        self.signal.drain();
    }

    /// Sleeps until the eventfd is readable, at most this long. For a driver that waits for
    /// nothing else.
    pub fn sleep(&self, at_most: Duration) {
        self.signal.wait(at_most);
    }
}

impl std::fmt::Debug for Wake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Wake(fd {})", self.fd())
    }
}

/// The eventfd.
#[cfg(not(loom))]
struct Signal(std::os::fd::OwnedFd);

#[cfg(not(loom))]
impl Signal {
    fn new() -> io::Result<Signal> {
        use std::os::fd::FromRawFd;
        // SAFETY: no memory is involved.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just opened, and nobody else knows it.
        Ok(Signal(unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) }))
    }

    fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    fn raise(&self) {
        let one: u64 = 1;
        // EAGAIN means that the counter is full, so that the eventfd is readable as it should
        // be. Nothing else can happen to an eventfd that is open.
        // SAFETY: eight readable bytes.
        unsafe { libc::write(self.fd(), (&raw const one).cast(), 8) };
    }

    fn drain(&self) {
        let mut count: u64 = 0;
        // EAGAIN means that it was empty. One read takes the whole count.
        // SAFETY: eight writable bytes.
        unsafe { libc::read(self.fd(), (&raw mut count).cast(), 8) };
    }

    fn wait(&self, at_most: Duration) {
        let mut poll = libc::pollfd { fd: self.fd(), events: libc::POLLIN, revents: 0 };
        let limit = libc::timespec {
            tv_sec: at_most.as_secs().min(i32::MAX as u64) as libc::time_t,
            tv_nsec: at_most.subsec_nanos() as _,
        };
        // A signal or an error ends the sleep early, which is only a spurious wake-up.
        // SAFETY: one pollfd and one timespec, alive through the call; no signal mask.
        unsafe { libc::ppoll(&mut poll, 1, &limit, std::ptr::null()) };
    }
}

/// In place of the eventfd: a sleep without end, so that loom reports a lost wake-up as a deadlock.
#[cfg(loom)]
struct Signal {
    raised: loom::sync::Mutex<bool>,
    changed: loom::sync::Condvar,
}

#[cfg(loom)]
impl Signal {
    fn new() -> io::Result<Signal> {
        Ok(Signal { raised: loom::sync::Mutex::new(false), changed: loom::sync::Condvar::new() })
    }

    fn fd(&self) -> RawFd {
        -1
    }

    fn raise(&self) {
        *self.raised.lock().unwrap() = true;
        self.changed.notify_one();
    }

    fn drain(&self) {
        *self.raised.lock().unwrap() = false;
    }

    fn wait(&self, _: Duration) {
        let mut raised = self.raised.lock().unwrap();
        while !*raised {
            raised = self.changed.wait(raised).unwrap();
        }
    }
}

/// Whether this process may use membarrier; registers it at the first question.
fn membarrier_registered() -> bool {
    // Loom has no membarrier, and models the fences.
    if cfg!(loom) {
        return false;
    }
    static REGISTERED: OnceLock<bool> = OnceLock::new();
    *REGISTERED
        .get_or_init(|| membarrier_call(libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED) && membarrier())
}

/// A full barrier on every running thread of this process, the caller included.
fn membarrier() -> bool {
    membarrier_call(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED)
}

fn membarrier_call(command: libc::c_int) -> bool {
    // SAFETY: no memory is involved; a kernel that does not know the command says so.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::AtomicU64;
    use std::time::Instant;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn is_raised(wake: &Wake) -> bool {
        let mut poll = libc::pollfd { fd: wake.fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd, alive through the call.
        unsafe { libc::poll(&mut poll, 1, 0) == 1 }
    }

    /// While the driver is awake nobody writes; once it sleeps, exactly the first does.
    #[test]
    fn only_a_sleeper_is_woken_and_once() {
        for state in [0, FENCED] {
            let wake = Wake::with(state).expect("an eventfd");
            wake.notify();
            assert!(!is_raised(&wake));
            wake.prepare_sleep();
            wake.notify();
            assert!(is_raised(&wake));
            wake.drain();
            wake.notify();
            assert!(!is_raised(&wake), "the second found it taken down");
            wake.awake();
            wake.prepare_sleep();
            wake.awake();
            wake.notify();
            assert!(!is_raised(&wake));
        }
    }

    /// The eventfd remembers: a wake-up between the last look and the sleep ends the sleep.
    #[test]
    fn a_wake_up_before_the_sleep_is_not_lost() {
        let wake = Wake::new().expect("an eventfd");
        wake.prepare_sleep();
        wake.notify();
        let began = Instant::now();
        wake.sleep(LONG);
        assert!(began.elapsed() < LONG);
        wake.drain();
        wake.sleep(Duration::ZERO);
    }

    /// The one reordering that all of this is about, provoked: the producer's store still in its
    /// store buffer while it loads `sleeping`, and the driver between the two. Both sides start
    /// together, each delayed by a sweep of some nanoseconds. (Needs two processors to show
    /// anything; without the membarrier it fails within some thousand rounds.)
    #[test]
    fn the_barriers_meet() {
        const ROUNDS: u64 = 30_000;
        let wait_for = |word: &AtomicU64, n: u64| {
            for spins in 0_u32.. {
                if word.load(Ordering::Acquire) == n {
                    return;
                }
                if spins % 1024 == 1023 {
                    std::thread::yield_now();
                } else {
                    std::hint::spin_loop();
                }
            }
        };
        let dawdle = |turns: u64| (0..turns).for_each(|turn| _ = std::hint::black_box(turn));
        for state in [FENCED, if membarrier_registered() { 0 } else { FENCED }] {
            let wake = Wake::with(state).expect("an eventfd");
            let [go, work, done]: [Arc<Line<AtomicU64>>; 3] =
                std::array::from_fn(|_| Arc::new(Line(AtomicU64::new(0))));
            let producer = {
                let (wake, go, work, done) =
                    (Arc::clone(&wake), Arc::clone(&go), Arc::clone(&work), Arc::clone(&done));
                std::thread::spawn(move || {
                    for n in 1..=ROUNDS {
                        wait_for(&go.0, n);
                        // In the cache, so that the load overtakes the store.
                        std::hint::black_box(wake.state.0.load(Ordering::Relaxed));
                        dawdle(n % 61);
                        work.0.store(n, Ordering::Release);
                        wake.notify();
                        done.0.store(n, Ordering::Release);
                    }
                })
            };
            for n in 1..=ROUNDS {
                go.0.store(n, Ordering::Release);
                dawdle(n % 257);
                wake.prepare_sleep();
                let seen = work.0.load(Ordering::Acquire) == n;
                wait_for(&done.0, n);
                assert!(seen || is_raised(&wake), "round {n}: asleep with work");
                wake.awake();
                wake.drain();
            }
            producer.join().expect("the producer ends well");
        }
    }

    /// Two real producers, a driver that sleeps whenever it can, both kinds of barrier: if it
    /// ever slept with work waiting, the last round would take a minute and fail.
    #[test]
    fn a_driver_never_sleeps_with_work() {
        const ROUNDS: u64 = 20_000;
        for state in [FENCED, if membarrier_registered() { 0 } else { FENCED }] {
            let wake = Wake::with(state).expect("an eventfd");
            let work: Arc<[AtomicU64; 2]> = Arc::default();
            let done: Arc<[AtomicU64; 2]> = Arc::default();
            let producers = [0, 1].map(|i| {
                let (wake, work, done) = (Arc::clone(&wake), Arc::clone(&work), Arc::clone(&done));
                std::thread::spawn(move || {
                    for n in 1..=ROUNDS {
                        work[i].store(n, Ordering::Release);
                        wake.notify();
                        // Let the driver fall asleep now and then.
                        while n % 4 == 0 && done[i].load(Ordering::Acquire) < n {
                            std::thread::yield_now();
                        }
                    }
                })
            });
            let mut seen = [0; 2];
            let look = |seen: &mut [u64; 2]| {
                let now = [0, 1].map(|i| work[i].load(Ordering::Acquire));
                let found = *seen != now;
                *seen = now;
                (0..2).for_each(|i| done[i].store(now[i], Ordering::Release));
                found
            };
            while seen != [ROUNDS; 2] {
                wake.drain();
                if look(&mut seen) {
                    continue;
                }
                wake.prepare_sleep();
                if !look(&mut seen) {
                    let began = Instant::now();
                    wake.sleep(LONG);
                    assert!(began.elapsed() < LONG, "slept with work, at {seen:?}");
                }
                wake.awake();
            }
            producers.into_iter().for_each(|p| p.join().expect("a producer ends well"));
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::sync::atomic::AtomicU64;
    use loom::thread;

    use super::*;
    use crate::lane::{LaneConsumer, lane_for_models};

    fn check(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(preemptions);
        builder.check(model);
    }

    /// What a driver does with its lanes, until it has taken that many frames.
    fn drive(wake: &Wake, lanes: &mut [LaneConsumer], mut frames: usize) {
        while frames > 0 {
            wake.drain();
            for lane in &mut *lanes {
                while lane.peek().is_some() {
                    lane.pop();
                    frames -= 1;
                }
                lane.release();
            }
            if frames == 0 {
                return;
            }
            wake.prepare_sleep();
            if lanes.iter_mut().all(|lane| lane.is_empty()) {
                // Without end: a lost wake-up is a deadlock, which loom reports.
                wake.sleep(Duration::MAX);
            }
            wake.awake();
        }
    }

    #[test]
    fn loom_never_asleep_with_work() {
        check(3, || {
            let wake = Wake::new().unwrap();
            let (mut producer, consumer) = lane_for_models(64);
            let theirs = Arc::clone(&wake);
            let writer = thread::spawn(move || {
                for _ in 0..2 {
                    producer.try_claim(8).unwrap().commit();
                    theirs.notify();
                }
            });
            drive(&wake, &mut [consumer], 2);
            writer.join().unwrap();
        });
    }

    /// The second producer may rely on the first one's write, which need not have happened yet.
    /// (Three threads: a third preemption would take minutes and found nothing.)
    #[test]
    fn loom_two_producers() {
        check(2, || {
            let wake = Wake::new().unwrap();
            let mut lanes = Vec::new();
            let writers: Vec<_> = (0..2)
                .map(|_| {
                    let (mut producer, consumer) = lane_for_models(64);
                    lanes.push(consumer);
                    let wake = Arc::clone(&wake);
                    thread::spawn(move || {
                        producer.try_claim(8).unwrap().commit();
                        wake.notify();
                    })
                })
                .collect();
            drive(&wake, &mut lanes, 2);
            writers.into_iter().for_each(|w| w.join().unwrap());
        });
    }

    /// The canary: without the producer's fence the wake-up can be lost, and loom must say so.
    #[test]
    #[should_panic(expected = "deadlock")]
    fn loom_sees_a_missing_fence() {
        check(3, || {
            let wake = Wake::new().unwrap();
            let work = Arc::new(AtomicU64::new(0));
            let (theirs, their_work) = (Arc::clone(&wake), Arc::clone(&work));
            let writer = thread::spawn(move || {
                their_work.store(1, Ordering::Release);
                if theirs.state.0.load(Ordering::Relaxed) & SLEEPING != 0 {
                    theirs.signal.raise();
                }
            });
            wake.prepare_sleep();
            if work.load(Ordering::Acquire) == 0 {
                wake.sleep(Duration::MAX);
            }
            wake.awake();
            writer.join().unwrap();
        });
    }
}
