//! Waiting for an acknowledgement without a thread: [`WhenDurable`], and the shard's list of
//! who is to be woken. No executor is assumed.
//!
//! A future parks itself on a lock-free stack ([`Arrivals`]) and then looks again; the shard
//! publishes an acknowledgement and then takes the stack. With a SeqCst fence on either side
//! one of the two always sees the other. From then on only the shard touches its list.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::ptr;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::task::{Context, Poll, Waker};

use super::sync::{AtomicPtr, AtomicU64, fence};
use super::{LaneAcks, Receipt, WaitError};

/// One waiting future, shared between it and the shard.
struct Parked {
    index: u64,
    waker: Mutex<Option<Waker>>,
    next: AtomicPtr<Parked>,
}

impl Parked {
    /// Puts a waker in and returns the old one; both are cloned and dropped outside of the lock.
    fn swap(&self, waker: Option<Waker>) -> Option<Waker> {
        std::mem::replace(&mut *self.waker.lock().unwrap_or_else(PoisonError::into_inner), waker)
    }

    fn wake(&self) {
        let waker = match self.waker.try_lock() {
            Ok(mut waker) => waker.take(),
            Err(TryLockError::Poisoned(waker)) => waker.into_inner().take(),
            // The future is about to leave another waker, and looks again after that. So the
            // shard need not wait for a thread that may have lost its core.
            Err(TryLockError::WouldBlock) => None,
        };
        if let Some(waker) = waker {
            // A waker is a caller's code. Its panic must not take the shard with it.
            let _ = catch_unwind(AssertUnwindSafe(|| waker.wake()));
        }
    }
}

/// Futures that parked since the shard looked last: a stack that is only ever taken whole, so
/// that no node can come back while somebody looks at it.
struct Arrivals(AtomicPtr<Parked>);

impl Arrivals {
    fn push(&self, parked: Arc<Parked>) {
        let node = Arc::into_raw(parked).cast_mut();
        let mut head = self.0.load(Relaxed);
        loop {
            // SAFETY: the stack's reference, made by `into_raw`, keeps the node alive, and it is
            // not on the stack yet.
            unsafe { (*node).next.store(head, Relaxed) };
            match self.0.compare_exchange_weak(head, node, Release, Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.0.load(Relaxed).is_null()
    }

    fn take(&self, mut each: impl FnMut(Arc<Parked>)) {
        let mut node = self.0.swap(ptr::null_mut(), Acquire);
        while !node.is_null() {
            // SAFETY: `push` gave its reference to the stack, and the swap has taken the whole
            // stack, so this reference is ours alone.
            let parked = unsafe { Arc::from_raw(node) };
            node = parked.next.load(Relaxed);
            each(parked);
        }
    }
}

impl Drop for Arrivals {
    fn drop(&mut self) {
        self.take(drop);
    }
}

/// Soonest first.
struct ByIndex(Arc<Parked>);

impl PartialEq for ByIndex {
    fn eq(&self, other: &Self) -> bool {
        self.0.index == other.0.index
    }
}
impl Eq for ByIndex {}
impl PartialOrd for ByIndex {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for ByIndex {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        Reverse(self.0.index).cmp(&Reverse(other.0.index))
    }
}

/// All futures that wait for one lane.
pub(super) struct Futures {
    arrivals: Arrivals,
    /// Only the shard takes this lock; it is here so that `LaneAcks` can be shared.
    waiting: Mutex<BinaryHeap<ByIndex>>,
    /// The least index in `waiting`, `u64::MAX` if there is none.
    soonest: AtomicU64,
}

impl Futures {
    pub(super) fn new() -> Futures {
        Futures {
            arrivals: Arrivals(AtomicPtr::new(ptr::null_mut())),
            waiting: Mutex::new(BinaryHeap::new()),
            soonest: AtomicU64::new(u64::MAX),
        }
    }

    /// Wakes every future whose index is below `acked`. The caller has fenced.
    #[inline]
    pub(super) fn wake(&self, acked: u64) {
        if self.arrivals.is_empty() && self.soonest.load(Relaxed) >= acked {
            return;
        }
        self.wake_below(acked);
    }

    #[cold]
    fn wake_below(&self, acked: u64) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        self.arrivals.take(|parked| waiting.push(ByIndex(parked)));
        while waiting.peek().is_some_and(|first| first.0.index < acked) {
            let ready = waiting.pop().expect("just seen");
            ready.0.wake();
        }
        self.soonest.store(waiting.peek().map_or(u64::MAX, |first| first.0.index), Relaxed);
    }
}

/// Resolves once a record is durable. Made by [`LaneAcks::when_durable`].
///
/// Allocates at its first poll if it has to wait, and never again. Dropping it gives nothing
/// up but the waiting: the record itself stays on its way. Any executor will do.
#[must_use = "a future waits only when it is polled"]
pub struct WhenDurable {
    acks: Arc<LaneAcks>,
    index: u64,
    parked: Option<Arc<Parked>>,
}

impl WhenDurable {
    pub(super) fn new(acks: Arc<LaneAcks>, index: u64) -> WhenDurable {
        WhenDurable { acks, index, parked: None }
    }
}

impl Future for WhenDurable {
    type Output = Result<Receipt, WaitError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if let Some(settled) = this.acks.settled(this.index) {
            return Poll::Ready(settled.and_then(|()| this.acks.receipt(this.index)));
        }
        let waker = Some(cx.waker().clone());
        match &this.parked {
            Some(parked) => drop(parked.swap(waker)),
            None => {
                let parked = Arc::new(Parked {
                    index: this.index,
                    waker: Mutex::new(waker),
                    next: AtomicPtr::new(ptr::null_mut()),
                });
                this.parked = Some(Arc::clone(&parked));
                this.acks.futures.arrivals.push(parked);
            }
        }
        // Against the fence in `LaneAcks::wake`: the shard sees this waker, or we see its word.
        fence(SeqCst);
        match this.acks.settled(this.index) {
            Some(settled) => Poll::Ready(settled.and_then(|()| this.acks.receipt(this.index))),
            None => Poll::Pending,
        }
    }
}

impl Drop for WhenDurable {
    fn drop(&mut self) {
        // The shard keeps the node until its index comes; the task should not be kept with it.
        if let Some(parked) = &self.parked {
            drop(parked.swap(None));
        }
    }
}

impl std::fmt::Debug for WhenDurable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WhenDurable").field("index", &self.index).finish_non_exhaustive()
    }
}
