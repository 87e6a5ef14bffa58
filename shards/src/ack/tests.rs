//! What could go wrong between a shard and those who wait for it.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU64 as Count, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;

use super::*;
use crate::io::fold::fold;

fn proof() -> Durable {
    fold(4096, 4096, 0).expect("a whole write and a good sync")
}

fn span(first_index: u64, count: u32) -> AckSpan {
    AckSpan {
        first_index,
        count,
        shard: 3,
        first_seq: 100 + first_index,
        batch: first_index,
        digest: [first_index as u8; 32],
    }
}

fn acks() -> Arc<LaneAcks> {
    LaneAcks::new(Waiters::new(), 64)
}

const POISONED: Stopped = Stopped::Poisoned { op: "fdatasync", errno: libc::EIO, offset: 8192 };
const MOMENT: WaitFor = WaitFor::at_most(Duration::from_millis(1));

/// Counts how often it was woken.
#[derive(Default)]
struct Bell(Count);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

fn poll(future: &mut WhenDurable, bell: &Arc<Bell>) -> Poll<Result<Receipt, WaitError>> {
    let waker = Waker::from(Arc::clone(bell));
    pin!(future).poll(&mut Context::from_waker(&waker))
}

#[test]
fn a_receipt_names_the_place() {
    let acks = acks();
    acks.acknowledge(&proof(), &[span(0, 4), span(4, 2)]);
    assert_eq!(acks.acked(), 6);
    assert!(acks.is_durable(5) && !acks.is_durable(6));
    let receipt = acks.wait(5, WaitFor::block()).unwrap();
    let wanted = Receipt { shard: 3, seq: 105, batch: 4, digest: [4; 32] };
    assert_eq!(receipt, wanted);
}

/// A gap would promise a record that a crash can still lose.
#[test]
#[should_panic(expected = "out of order")]
fn a_gap_is_refused() {
    acks().acknowledge(&proof(), &[span(0, 4), span(5, 1)]);
}

#[test]
fn a_wait_can_time_out_and_be_taken_up_again() {
    let acks = acks();
    assert_eq!(acks.wait(0, MOMENT), Err(WaitError::TimedOut));
    let spinning = MOMENT.spinning(Duration::from_secs(3600));
    assert_eq!(acks.wait(0, spinning), Err(WaitError::TimedOut));
    let none = WaitFor::at_most(Duration::ZERO);
    assert_eq!(acks.wait(0, none), Err(WaitError::TimedOut));
    acks.acknowledge(&proof(), &[span(0, 1)]);
    assert_eq!(acks.wait(0, none).unwrap().seq, 100);
}

/// An absurd timeout must not overflow into an immediate return or a failed syscall that spins.
#[test]
fn the_longest_timeout_waits() {
    let acks = acks();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| acks.wait(0, WaitFor::at_most(Duration::MAX)));
        acks.acknowledge(&proof(), &[span(0, 1)]);
        acks.wake();
        assert!(waiting.join().unwrap().is_ok());
    });
}

/// Durable stays durable when the receipt is forgotten, and is not called lost.
#[test]
fn an_old_receipt_leaves_the_window() {
    let acks = LaneAcks::new(Waiters::new(), 2);
    for index in 0..5 {
        acks.acknowledge(&proof(), &[span(index, 1)]);
    }
    assert_eq!(acks.wait(0, MOMENT), Err(WaitError::ReceiptGone));
    assert_eq!(acks.wait_durable(0, MOMENT), Ok(()));
    assert!(acks.wait(3, MOMENT).is_ok() && acks.wait(4, MOMENT).is_ok());
}

/// Many threads on many indices of two lanes, one futex word: each returns, with its receipt.
#[test]
fn every_sleeper_is_woken() {
    const RECORDS: u64 = 2_000;
    let waiters = Waiters::new();
    let lanes = [0, 1].map(|_| LaneAcks::new(Arc::clone(&waiters), 4096));
    thread::scope(|scope| {
        for acks in &lanes {
            for start in 0..3 {
                scope.spawn(move || {
                    for index in (start..RECORDS).step_by(3) {
                        let how = match index % 2 {
                            0 => WaitFor::block(),
                            _ => WaitFor::block().spinning(Duration::from_micros(20)),
                        };
                        assert_eq!(acks.wait(index, how).unwrap().seq, 100 + index);
                    }
                });
            }
            scope.spawn(move || {
                for index in 0..RECORDS {
                    acks.acknowledge(&proof(), &[span(index, 1)]);
                    acks.wake();
                    if index % 7 == 0 {
                        thread::yield_now();
                    }
                }
            });
        }
    });
}

#[test]
fn stopping_reaches_sleepers_futures_and_latecomers() {
    let waiters = Waiters::new();
    let acks = LaneAcks::new(Arc::clone(&waiters), 64);
    acks.acknowledge(&proof(), &[span(0, 1)]);
    let bell = Arc::new(Bell::default());
    let mut future = acks.when_durable(1);
    assert!(poll(&mut future, &bell).is_pending());
    thread::scope(|scope| {
        let sleepers: Vec<_> = (1..4)
            .map(|index| {
                scope.spawn({
                    let acks = &acks;
                    move || acks.wait(index, WaitFor::block())
                })
            })
            .collect();
        acks.stop(POISONED);
        for sleeper in sleepers {
            assert_eq!(sleeper.join().unwrap(), Err(WaitError::Indeterminate(POISONED)));
        }
    });
    assert_eq!(bell.0.load(SeqCst), 1);
    let lost = Err(WaitError::Indeterminate(POISONED));
    assert_eq!(poll(&mut future, &bell), Poll::Ready(lost));
    assert_eq!(acks.wait(9, WaitFor::block()), lost);
    assert_eq!(poll(&mut acks.when_durable(9), &bell), Poll::Ready(lost));
    assert!(acks.wait(0, WaitFor::block()).is_ok(), "what was acknowledged stays so");
    acks.stop(Stopped::Closed);
    assert_eq!(acks.stopped(), Some(POISONED), "the first reason stays");
}

#[test]
fn a_future_is_woken_once_its_record_is_durable() {
    let acks = acks();
    let (early, late) = (Arc::new(Bell::default()), Arc::new(Bell::default()));
    let mut second = acks.when_durable(1);
    let mut first = acks.when_durable(0);
    assert!(poll(&mut second, &late).is_pending());
    assert!(poll(&mut first, &early).is_pending());
    acks.acknowledge(&proof(), &[span(0, 1)]);
    acks.wake();
    assert_eq!((early.0.load(SeqCst), late.0.load(SeqCst)), (1, 0));
    assert!(matches!(poll(&mut first, &early), Poll::Ready(Ok(r)) if r.seq == 100));
    acks.acknowledge(&proof(), &[span(1, 1)]);
    acks.wake();
    assert_eq!(late.0.load(SeqCst), 1);
    assert!(matches!(poll(&mut second, &late), Poll::Ready(Ok(r)) if r.seq == 101));
}

/// A task that moved to another executor must be woken there.
#[test]
fn the_last_waker_counts() {
    let acks = acks();
    let (old, new) = (Arc::new(Bell::default()), Arc::new(Bell::default()));
    let mut future = acks.when_durable(0);
    assert!(poll(&mut future, &old).is_pending());
    assert!(poll(&mut future, &new).is_pending());
    acks.acknowledge(&proof(), &[span(0, 1)]);
    acks.wake();
    assert_eq!((old.0.load(SeqCst), new.0.load(SeqCst)), (0, 1));
}

/// A future that was given up neither wakes its task nor keeps it alive, and the others go on.
#[test]
fn a_dropped_future_lets_its_task_go() {
    let acks = acks();
    let bell = Arc::new(Bell::default());
    let mut given_up = acks.when_durable(0);
    let mut kept = acks.when_durable(0);
    assert!(poll(&mut given_up, &bell).is_pending());
    assert!(poll(&mut kept, &bell).is_pending());
    drop(given_up);
    assert_eq!(Arc::strong_count(&bell), 2, "ours and the kept future's");
    acks.acknowledge(&proof(), &[span(0, 1)]);
    acks.wake();
    assert_eq!(bell.0.load(SeqCst), 1);
}

/// A waker is a caller's code and runs on the shard's thread.
#[test]
fn a_panicking_waker_harms_nobody_else() {
    struct Broken;
    impl Wake for Broken {
        fn wake(self: Arc<Self>) {
            std::panic::resume_unwind(Box::new("a broken executor"));
        }
    }
    let acks = acks();
    let bell = Arc::new(Bell::default());
    let (mut bad, mut good) = (acks.when_durable(0), acks.when_durable(1));
    let broken = Waker::from(Arc::new(Broken));
    assert!(pin!(&mut bad).poll(&mut Context::from_waker(&broken)).is_pending());
    assert!(poll(&mut good, &bell).is_pending());
    acks.acknowledge(&proof(), &[span(0, 2)]);
    acks.wake();
    assert_eq!(bell.0.load(SeqCst), 1);
}

/// Futures polled by real threads that park, against a real acknowledger.
#[test]
fn no_future_is_forgotten() {
    struct Unpark(thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    const RECORDS: u64 = 3_000;
    let acks = LaneAcks::new(Waiters::new(), 4096);
    thread::scope(|scope| {
        for start in 0..3 {
            let acks = &acks;
            scope.spawn(move || {
                let waker = Waker::from(Arc::new(Unpark(thread::current())));
                for index in (start..RECORDS).step_by(3) {
                    let mut future = pin!(acks.when_durable(index));
                    let receipt = loop {
                        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
                            Poll::Ready(receipt) => break receipt.unwrap(),
                            Poll::Pending => thread::park(),
                        }
                    };
                    assert_eq!(receipt.seq, 100 + index);
                }
            });
        }
        for index in 0..RECORDS {
            acks.acknowledge(&proof(), &[span(index, 1)]);
            acks.wake();
            if index % 5 == 0 {
                thread::yield_now();
            }
        }
    });
}

/// A shard that dies drops its ends, and with them must end every wait.
#[test]
fn a_dropped_end_abandons_its_lane() {
    let (_producer, consumer) = crate::lane::lane(4096);
    let acks = acks();
    let end =
        LaneEnd { consumer, acks: Arc::clone(&acks), producer: 1, lane_bytes: 4096, refused: Arc::default() };
    thread::scope(|scope| {
        let waiting = scope.spawn(|| acks.wait(0, WaitFor::block()));
        let shard = scope.spawn(move || {
            let _end = end;
            std::panic::resume_unwind(Box::new("a dying shard"));
        });
        assert!(shard.join().is_err());
        let lost = Err(WaitError::Indeterminate(Stopped::Abandoned));
        assert_eq!(waiting.join().unwrap(), lost);
    });
}

#[test]
fn a_stopped_gate_stays_stopped() {
    let gate = Gate::new();
    assert!(gate.is_open());
    gate.set_no_space(true);
    assert_eq!(gate.state(), GateState::NoSpace);
    gate.set_no_space(false);
    assert_eq!(gate.state(), GateState::Open);
    gate.stop(POISONED);
    gate.set_no_space(true);
    gate.set_no_space(false);
    gate.stop(Stopped::Closed);
    assert_eq!(gate.state(), GateState::Stopped(POISONED));
    assert!(!gate.is_open() && gate.is_stopped_after_handover());
}

/// A forked child has copies of the lanes and no shard: it must be told, not wait for ever.
#[test]
fn a_forked_child_does_not_wait() {
    let acks = acks();
    // SAFETY: the child calls nothing but loads and `_exit`.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let told =
            acks.wait_durable(0, WaitFor::block()) == Err(WaitError::Indeterminate(Stopped::Abandoned));
        // SAFETY: ends the child without running the parent's exit handlers.
        unsafe { libc::_exit(if told { 7 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: our own child, and a place for its status.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 7);
    assert_eq!(acks.wait(0, MOMENT), Err(WaitError::TimedOut), "the parent goes on");
}
