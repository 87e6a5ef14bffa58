//! What is let in: the limits, the answers to who is refused, and the budget of large records.
//!
//! Every refusal is an answer, given at once and before anything was written. What may be
//! retried is [`AppendError::Backpressure`]; nothing else is.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam_queue::SegQueue;
use hanaper_shards::ack::{Gate, GateState, LaneAcks, LaneEnd, Stopped};
use hanaper_shards::clock::Clock;
use hanaper_shards::record::PAYLOAD_BYTES_MAX;
use hanaper_shards::router::Router;
use hanaper_shards::wake::Wake;

use crate::Producer;

/// Limits of what producers may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Size of each lane, a power of two. There is one per producer and shard that it uses.
    pub lane_bytes: usize,
    /// Longest payload in bytes, at most 16 MiB.
    pub payload_bytes_max: usize,
    /// Producers that may exist at a time.
    pub producers_max: u32,
    /// Bytes of all large records (longer than a quarter of a lane) that are not durable yet. A
    /// single one is always let in, however long.
    pub large_bytes: usize,
    /// Receipts that each lane remembers, at least.
    pub receipts: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            lane_bytes: 256 << 10,
            payload_bytes_max: 1 << 20,
            producers_max: 1024,
            large_bytes: 64 << 20,
            receipts: 4096,
        }
    }
}

/// What must pass before an event that was refused is let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Backpressure {
    /// The shard is behind by a whole lane. There is room after the next commit.
    #[error("the lane is full; retry after the next commit")]
    LaneFull,
    /// The disk is full, or segments are not prepared fast enough. It ends by itself when space
    /// is there.
    #[error("no prepared space on disk; retry when there is some")]
    NoSpace,
    /// Too many large records are on their way to the disk.
    #[error("too many large records in flight; retry when some are durable")]
    LargeBuffers,
}

/// Why an event was not appended. Nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// Not now; retry later. The refusal is counted, and the log will tell how many there were.
    #[error(transparent)]
    Backpressure(#[from] Backpressure),
    /// The payload is longer than `payload_bytes_max` allows.
    #[error("a payload of {bytes} bytes; the limit payload_bytes_max is {max}")]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The key is longer than the format allows.
    #[error("a key of {bytes} bytes; the longest is {max}")]
    KeyTooLong {
        /// Its length.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The key's shard takes nothing more in this opening of the log.
    #[error(transparent)]
    Stopped(Stopped),
}

impl AppendError {
    /// Whether the same append may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, AppendError::Backpressure(_))
    }
}

/// Why the rest of a batch was not appended. See [`Producer::append_batch`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("after {} events of the batch: {error}", accepted.len())]
pub struct BatchError {
    /// Tickets of the events that were appended, the first ones. They are on their way.
    pub accepted: Vec<crate::Ticket>,
    /// Why the next event was refused.
    #[source]
    pub error: AppendError,
}

/// Why there is no new producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProducerError {
    /// As many as the setting allows exist. Drop one, or raise the setting.
    #[error("{max} producers exist already; raise the setting {setting}")]
    TooMany {
        /// The limit.
        max: u32,
        /// The setting's name.
        setting: &'static str,
    },
    /// The log is closed, or closing.
    #[error("the log is closed")]
    Closed,
}

/// How producers reach one shard.
#[derive(Clone)]
pub struct ShardPort {
    /// The shard's number.
    pub shard: u32,
    /// Where new lanes go. The shard takes them from here.
    pub new_lanes: Arc<SegQueue<LaneEnd>>,
    /// Wakes the shard's driver.
    pub wake: Arc<Wake>,
    /// Whether the shard takes anything.
    pub gate: Arc<Gate>,
}

impl ShardPort {
    /// For whoever runs the shard, when it is over (best from a guard that also runs on a panic):
    /// refuses all appends from now on, and stops the lanes that the shard has not taken yet.
    pub fn stop(&self, why: Stopped) {
        self.gate.stop(why);
        while let Some(end) = self.new_lanes.pop() {
            end.acks.stop(why);
        }
    }
}

/// What all producers of one log share. Built by the engine.
pub struct Intake {
    pub(crate) router: Router,
    pub(crate) ports: Box<[ShardPort]>,
    pub(crate) clock: Clock,
    pub(crate) limits: Limits,
    pub(crate) large: Arc<LargeBudget>,
    producers: AtomicU32,
    /// Number of the next producer. None is used twice in one opening of the log.
    next_producer: AtomicU32,
    closed: AtomicBool,
}

impl Intake {
    /// `ports` are in the order of the layout, one per shard of the router.
    ///
    /// # Panics
    /// If they are not as many, or the limits are none that a lane or the format can keep: the
    /// engine checks settings where they come in.
    pub fn new(router: Router, ports: Vec<ShardPort>, clock: Clock, limits: Limits) -> Arc<Intake> {
        assert!(ports.len() == router.shards as usize && ports.len() <= usize::from(u16::MAX));
        assert!(limits.lane_bytes.is_power_of_two() && limits.payload_bytes_max <= PAYLOAD_BYTES_MAX);
        Arc::new(Intake {
            router,
            ports: ports.into(),
            clock,
            limits,
            large: Arc::new(LargeBudget::new(limits.large_bytes)),
            producers: AtomicU32::new(0),
            next_producer: AtomicU32::new(1),
            closed: AtomicBool::new(false),
        })
    }

    /// A new producer, with a number of its own.
    pub fn producer(self: &Arc<Self>) -> Result<Producer, ProducerError> {
        if self.closed.load(Acquire) {
            return Err(ProducerError::Closed);
        }
        let max = self.limits.producers_max;
        let too_many = ProducerError::TooMany { max, setting: "producers_max" };
        let admitted = |now: u32| (now < max).then(|| now + 1);
        self.producers.fetch_update(AcqRel, Acquire, admitted).map_err(|_| too_many)?;
        let Ok(id) = self.next_producer.fetch_update(Relaxed, Relaxed, |id| id.checked_add(1)) else {
            self.producer_left();
            return Err(too_many);
        };
        Ok(Producer::new(Arc::clone(self), id))
    }

    /// Producers that exist.
    pub fn producers(&self) -> u32 {
        self.producers.load(Acquire)
    }

    /// The limits as they were given.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// No new producers from now on. The gates refuse the appends of those that exist.
    pub fn close(&self) {
        self.closed.store(true, Release);
    }

    pub(crate) fn producer_left(&self) {
        self.producers.fetch_sub(1, AcqRel);
    }
}

impl std::fmt::Debug for Intake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Intake")
            .field("router", &self.router)
            .field("limits", &self.limits)
            .field("producers", &self.producers())
            .finish_non_exhaustive()
    }
}

/// What a gate that is not open answers to an append.
pub(crate) fn refusal(gate: &Gate) -> Option<AppendError> {
    match gate.state() {
        GateState::Open => None,
        GateState::NoSpace => Some(Backpressure::NoSpace.into()),
        GateState::Stopped(why) => Some(AppendError::Stopped(why)),
    }
}

/// How much heap the large records of all producers may hold until they are durable.
///
/// A lock is good enough: each of them costs an allocation and the copying of 64 KiB or more.
pub(crate) struct LargeBudget {
    bytes_max: usize,
    held: Mutex<Held>,
}

struct Held {
    bytes: usize,
    in_flight: Vec<InFlight>,
}

struct InFlight {
    acks: Arc<LaneAcks>,
    index: u64,
    bytes: usize,
}

impl LargeBudget {
    fn new(bytes_max: usize) -> LargeBudget {
        LargeBudget { bytes_max, held: Mutex::new(Held { bytes: 0, in_flight: Vec::new() }) }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// A single record always fits, or one above the whole budget would be refused for ever.
    fn fits(&self, bytes: usize, bytes_max: usize) -> bool {
        self.bytes == 0 || self.bytes + bytes <= bytes_max
    }

    /// Gives back what is durable, and what its shard will never take.
    fn sweep(&mut self) {
        let mut freed = 0;
        self.in_flight.retain(|one| {
            let over = one.acks.is_durable(one.index) || one.acks.stopped().is_some();
            freed += if over { one.bytes } else { 0 };
            !over
        });
        self.bytes -= freed;
    }
}

/// A share of the budget; given back when dropped.
pub(crate) struct LargeHold {
    budget: Arc<LargeBudget>,
    bytes: usize,
}

impl LargeHold {
    /// Takes `bytes` out of the budget, or nothing.
    pub(crate) fn take(budget: &Arc<LargeBudget>, bytes: usize) -> Option<LargeHold> {
        let mut held = budget.lock();
        if !held.fits(bytes, budget.bytes_max) {
            held.sweep();
        }
        if !held.fits(bytes, budget.bytes_max) {
            return None;
        }
        held.bytes += bytes;
        Some(LargeHold { budget: Arc::clone(budget), bytes })
    }

    /// The record is in its lane: the share is given back once it is durable.
    pub(crate) fn until_durable(mut self, acks: &Arc<LaneAcks>, index: u64) {
        let bytes = std::mem::take(&mut self.bytes);
        let one = InFlight { acks: Arc::clone(acks), index, bytes };
        self.budget.lock().in_flight.push(one);
    }
}

impl Drop for LargeHold {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.budget.lock().bytes -= self.bytes;
        }
    }
}
