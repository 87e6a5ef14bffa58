//! Acknowledgements: how a producer's thread or task learns that its record is durable.
//!
//! Owns one [`LaneAcks`] per lane. The shard is its only writer; any number of threads and
//! futures wait on it. A record is named by its index in the lane, from 0.
//!
//! Promises:
//! - asking costs one load ([`LaneAcks::is_durable`]);
//! - nothing is acknowledged without an [`io::Durable`](crate::io::Durable), and always as a
//!   contiguous prefix of the lane;
//! - no wake-up is lost, and nobody waits for ever: [`LaneAcks::stop`] reaches every waiter, and a
//!   [`LaneEnd`] that is dropped, even by a panic, stops its lane;
//! - the shard pays for a system call only if somebody sleeps for what has just become durable.
//!
//! Refuses: to say "failed". A record that was not acknowledged when its lane stopped is
//! [`WaitError::Indeterminate`]: it may yet be found on disk.
//!
//! ```text
//! shard                                        waiter
//! acked.store(n, Release)                      seen = word
//! fence(SeqCst)                                wanted.fetch_min(index)
//! if n > wanted: wanted = MAX, word += 1,      fence(SeqCst)
//!                futex_wake                    if acked <= index: futex_wait(word == seen)
//! ```
//! Of two SeqCst fences one is first: either the shard sees what is wanted, or the waiter sees
//! what is acknowledged. The word is read *before* the wish is left, so that a shard that
//! erases the wish (on behalf of somebody else) changes the word afterwards, and the sleep ends.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::io::Durable;

pub mod fork;
mod future;
mod port;
mod receipts;
mod sync;

pub use future::WhenDurable;
pub use port::{Gate, GateState, LaneEnd};

use future::Futures;
use receipts::Receipts;
use sync::{AtomicU64, Futex, fence, spin_loop};

/// No sleep is longer, so that a wake-up that is lost below us costs this and no more.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);

/// Where a durable record stands, and the digest of the batch that holds it.
///
/// Keep it, and you can later check the record against the log by yourself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Receipt {
    /// The shard's number.
    pub shard: u32,
    /// The record's sequence number in the shard.
    pub seq: u64,
    /// Number of the batch within the shard.
    pub batch: u64,
    /// BLAKE3 digest of that batch, header and body.
    pub digest: [u8; 32],
}

/// The records of one lane in one batch: contiguous in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AckSpan {
    /// Index in the lane of the first record.
    pub first_index: u64,
    /// Number of records, at least one.
    pub count: u32,
    /// The shard's number.
    pub shard: u32,
    /// Sequence in the shard of the first record.
    pub first_seq: u64,
    /// Number of the batch.
    pub batch: u64,
    /// Digest of the batch.
    pub digest: [u8; 32],
}

/// Why a shard takes and acknowledges nothing more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stopped {
    /// A write or a sync failed, so nothing after it can be promised. Reopen the log: recovery
    /// decides what survived.
    #[error("the shard stopped: {op} failed at offset {offset}: {}; reopen the log to recover", std::io::Error::from_raw_os_error(*.errno))]
    Poisoned {
        /// What failed, such as `fdatasync`.
        op: &'static str,
        /// The system's error number.
        errno: i32,
        /// Where in the segment, in bytes.
        offset: u64,
    },
    /// The log was closed. Everything that it took before was committed.
    #[error("the log is closed")]
    Closed,
    /// The shard's thread ended without a close, or this process is a forked child, which has
    /// no shards. In a child, open no log that the parent has open.
    #[error("the shard's thread is gone")]
    Abandoned,
}

/// Why a wait ended without a [`Receipt`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WaitError {
    /// Not durable yet. The record is still on its way; wait again.
    #[error("not durable within the time given")]
    TimedOut,
    /// The shard stopped first. The record may yet be found on disk; reopen the log and look.
    #[error("the record may or may not be on disk: {0}")]
    Indeterminate(#[source] Stopped),
    /// The record *is* durable. Only its receipt is no longer remembered; ask sooner, or raise
    /// the number of receipts kept per lane.
    #[error("durable, but its receipt is no longer remembered")]
    ReceiptGone,
}

/// How long to wait, and how: asleep, or spinning for a while first.
///
/// ```
/// # use hanaper_shards::ack::WaitFor;
/// # use std::time::Duration;
/// let how = WaitFor::block(); // until it is settled
/// let how = WaitFor::at_most(Duration::from_millis(50));
/// let how = WaitFor::block().spinning(Duration::from_micros(100)); // spares a wake-up, burns a core
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitFor {
    spin: Duration,
    timeout: Option<Duration>,
}

impl WaitFor {
    /// Sleep until the record is durable or the shard has stopped.
    pub const fn block() -> WaitFor {
        WaitFor { spin: Duration::ZERO, timeout: None }
    }

    /// Give up with [`WaitError::TimedOut`] after this long.
    pub const fn at_most(timeout: Duration) -> WaitFor {
        WaitFor { spin: Duration::ZERO, timeout: Some(timeout) }
    }

    /// Spin for the first part of the wait. Worth it only where a core is to spare.
    pub const fn spinning(self, spin: Duration) -> WaitFor {
        WaitFor { spin, ..self }
    }
}

/// Where the blocked threads of one producer sleep, for all of its lanes.
pub struct Waiters {
    futex: Futex,
    /// Forks before this producer was made.
    born: u32,
}

impl Waiters {
    /// For a new producer.
    pub fn new() -> Arc<Waiters> {
        fork::watch();
        Arc::new(Waiters { futex: Futex::new(), born: fork::generation() })
    }

    /// Whether this is a forked child's copy: nobody will ever acknowledge anything here.
    #[inline]
    pub fn is_forked_copy(&self) -> bool {
        fork::generation() != self.born
    }

    #[cold]
    fn wake_all(&self) {
        // After the wish was erased, see the module's drawing.
        self.futex.word().fetch_add(1, SeqCst);
        self.futex.wake_all();
    }
}

/// Keeps what the shard writes apart from what waiters write.
#[repr(align(128))]
struct Apart<T>(T);

/// The acknowledgements of one lane.
pub struct LaneAcks {
    /// Count of acknowledged records: those with a lower index are durable.
    acked: Apart<AtomicU64>,
    /// The least index that a sleeping thread waits for; `u64::MAX` if nobody sleeps.
    wanted: Apart<AtomicU64>,
    stopped: OnceLock<Stopped>,
    waiters: Arc<Waiters>,
    receipts: Receipts,
    futures: Futures,
}

impl LaneAcks {
    /// For a new lane of the producer whose threads sleep in `waiters`. At least the newest
    /// `receipts` receipts are remembered (rounded up to a power of two).
    pub fn new(waiters: Arc<Waiters>, receipts: usize) -> Arc<LaneAcks> {
        Arc::new(LaneAcks {
            acked: Apart(AtomicU64::new(0)),
            wanted: Apart(AtomicU64::new(u64::MAX)),
            stopped: OnceLock::new(),
            waiters,
            receipts: Receipts::new(receipts),
            futures: Futures::new(),
        })
    }

    // The shard's side.

    /// Records that these spans are durable. They are visible at once; [`LaneAcks::wake`], due
    /// soon after, ends the waiting of those who sleep.
    ///
    /// # Panics
    /// If a span does not begin where the one before it ended: acknowledging out of order would
    /// promise a record that a crash could still lose. Only the lane's shard may call this.
    pub fn acknowledge(&self, proof: &Durable, spans: &[AckSpan]) {
        let _: &Durable = proof;
        let mut acked = self.acked.0.load(Relaxed);
        for span in spans {
            assert!(span.first_index == acked && span.count > 0, "acknowledged out of order");
            self.receipts.push(span);
            acked += u64::from(span.count);
        }
        self.acked.0.store(acked, Release);
    }

    /// Wakes the threads and futures that wait for what is acknowledged by now.
    #[inline]
    pub fn wake(&self) {
        fence(SeqCst);
        let acked = self.acked.0.load(Relaxed);
        if acked > self.wanted.0.load(Relaxed) {
            self.wanted.0.swap(u64::MAX, SeqCst);
            self.waiters.wake_all();
        }
        self.futures.wake(acked);
    }

    /// Ends the lane: whoever waits, now or later, for what is not acknowledged learns why. The
    /// first reason stays. The shard acknowledges nothing after this.
    pub fn stop(&self, why: Stopped) {
        let _ = self.stopped.set(why);
        fence(SeqCst);
        self.wanted.0.swap(u64::MAX, SeqCst);
        self.waiters.wake_all();
        self.futures.wake(u64::MAX);
    }

    // The waiters' side.

    /// Count of acknowledged records; those with a lower index are durable.
    #[inline]
    pub fn acked(&self) -> u64 {
        self.acked.0.load(Acquire)
    }

    /// Whether the record is durable: one load.
    #[inline]
    pub fn is_durable(&self, index: u64) -> bool {
        self.acked() > index
    }

    /// Why the lane has ended, if it has.
    pub fn stopped(&self) -> Option<Stopped> {
        self.stopped.get().copied()
    }

    /// Waits until the record is durable, and says where it stands.
    pub fn wait(&self, index: u64, how: WaitFor) -> Result<Receipt, WaitError> {
        self.wait_durable(index, how)?;
        self.receipt(index)
    }

    /// Waits until the record is durable; asks for no receipt.
    #[inline]
    pub fn wait_durable(&self, index: u64, how: WaitFor) -> Result<(), WaitError> {
        if self.is_durable(index) {
            return Ok(());
        }
        self.wait_long(index, how)
    }

    /// The same as a future.
    pub fn when_durable(self: &Arc<Self>, index: u64) -> WhenDurable {
        WhenDurable::new(Arc::clone(self), index)
    }

    /// The receipt of a record that is known to be durable.
    fn receipt(&self, index: u64) -> Result<Receipt, WaitError> {
        self.receipts.get(index).ok_or(WaitError::ReceiptGone)
    }

    /// Durable, never to be known, or `None` as long as it is open.
    fn settled(&self, index: u64) -> Option<Result<(), WaitError>> {
        if self.is_durable(index) {
            return Some(Ok(()));
        }
        if self.waiters.is_forked_copy() {
            return Some(Err(WaitError::Indeterminate(Stopped::Abandoned)));
        }
        let why = self.stopped()?;
        // The last acknowledgement may have come between the two looks.
        if self.is_durable(index) {
            return Some(Ok(()));
        }
        Some(Err(WaitError::Indeterminate(why)))
    }

    #[cold]
    fn wait_long(&self, index: u64, how: WaitFor) -> Result<(), WaitError> {
        let began = Instant::now();
        let spin = how.timeout.map_or(how.spin, |timeout| how.spin.min(timeout));
        while !spin.is_zero() && began.elapsed() < spin {
            // Reading the time costs as much as some fifty looks.
            for _ in 0..64 {
                if let Some(settled) = self.settled(index) {
                    return settled;
                }
                spin_loop();
            }
        }
        loop {
            let seen = self.waiters.futex.word().load(SeqCst);
            self.wanted.0.fetch_min(index, SeqCst);
            fence(SeqCst);
            if let Some(settled) = self.settled(index) {
                return settled;
            }
            let left = how.timeout.map(|timeout| timeout.saturating_sub(began.elapsed()));
            if left == Some(Duration::ZERO) {
                return Err(WaitError::TimedOut);
            }
            self.waiters.futex.sleep(seen, Some(left.map_or(LONGEST_SLEEP, |left| left.min(LONGEST_SLEEP))));
        }
    }
}

impl std::fmt::Debug for LaneAcks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LaneAcks").field("acked", &self.acked()).finish_non_exhaustive()
    }
}

#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(all(test, not(loom)))]
mod tests;
