//! Every interleaving of a shard with those who wait for it, on small cases.
//! Run with `RUSTFLAGS="--cfg loom" cargo test -p hanaper-shards --release ack::loom`.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Wake, Waker};

use loom::sync::{Condvar, Mutex};
use loom::thread;

use super::*;
use crate::io::fold::fold;

fn proof() -> Durable {
    fold(4096, 4096, 0).expect("a whole write and a good sync")
}

fn span(first_index: u64) -> AckSpan {
    let seq = first_index * 10;
    AckSpan { first_index, count: 1, shard: 3, first_seq: seq, batch: seq, digest: [seq as u8; 32] }
}

/// The least executor.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Bell(Mutex<bool>, Condvar);
    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            *self.0.lock().unwrap() = true;
            self.1.notify_one();
        }
    }
    let bell = Arc::new(Bell(Mutex::new(false), Condvar::new()));
    let waker = Waker::from(Arc::clone(&bell));
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        let mut rung = bell.0.lock().unwrap();
        while !*rung {
            rung = bell.1.wait(rung).unwrap();
        }
        *rung = false;
    }
}

/// Loom reports a deadlock if a sleeper is ever left behind.
#[test]
fn a_sleeper_is_never_left_behind() {
    loom::model(|| {
        let acks = LaneAcks::new(Waiters::new(), 1);
        let waiter = thread::spawn({
            let acks = Arc::clone(&acks);
            move || assert_eq!(acks.wait_durable(0, WaitFor::block()), Ok(()))
        });
        acks.acknowledge(&proof(), &[span(0)]);
        acks.wake();
        waiter.join().unwrap();
    });
}

/// The first wake-up erases the wish of whoever wants the second record: the word must tell.
#[test]
fn an_erased_wish_is_left_again() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let acks = LaneAcks::new(Waiters::new(), 1);
        let waiters = [0, 1].map(|index| {
            let acks = Arc::clone(&acks);
            thread::spawn(move || assert_eq!(acks.wait_durable(index, WaitFor::block()), Ok(())))
        });
        for index in 0..2 {
            acks.acknowledge(&proof(), &[span(index)]);
            acks.wake();
        }
        for waiter in waiters {
            waiter.join().unwrap();
        }
    });
}

#[test]
fn a_future_is_never_left_behind() {
    loom::model(|| {
        let acks = LaneAcks::new(Waiters::new(), 1);
        let waiter = thread::spawn({
            let acks = Arc::clone(&acks);
            move || assert!(block_on(acks.when_durable(0)).is_ok())
        });
        acks.acknowledge(&proof(), &[span(0)]);
        acks.wake();
        waiter.join().unwrap();
    });
}

#[test]
fn stopping_leaves_nobody_behind() {
    loom::model(|| {
        let acks = LaneAcks::new(Waiters::new(), 1);
        let waiter = thread::spawn({
            let acks = Arc::clone(&acks);
            move || acks.wait_durable(0, WaitFor::block())
        });
        acks.stop(Stopped::Closed);
        let lost = Err(WaitError::Indeterminate(Stopped::Closed));
        assert_eq!(waiter.join().unwrap(), lost);
    });
}

/// A reader of a slot that is being overwritten gets its own receipt or none.
#[test]
fn a_receipt_is_never_a_mixture() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let acks = LaneAcks::new(Waiters::new(), 1);
        acks.acknowledge(&proof(), &[span(0)]);
        let reader = thread::spawn({
            let acks = Arc::clone(&acks);
            move || match acks.wait(0, WaitFor::block()) {
                Ok(receipt) => assert_eq!((receipt.seq, receipt.batch, receipt.digest), (0, 0, [0; 32])),
                Err(error) => assert_eq!(error, WaitError::ReceiptGone),
            }
        });
        acks.acknowledge(&proof(), &[span(1)]);
        reader.join().unwrap();
    });
}
