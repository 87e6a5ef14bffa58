//! What a shard and its producers share beside the bytes: the shard's end of a lane, and the
//! gate that says whether the shard takes anything.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, SeqCst};
use std::sync::atomic::{AtomicU8, AtomicU64, fence};
use std::sync::{Arc, OnceLock};

use super::{LaneAcks, Stopped};
use crate::lane::LaneConsumer;

const OPEN: u8 = 0;
const NO_SPACE: u8 = 1;
const STOPPED: u8 = 2;

/// Whether a shard takes records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateState {
    /// It does.
    Open,
    /// Not now: no prepared space. It opens by itself when space returns.
    NoSpace,
    /// Never again in this opening of the log.
    Stopped(Stopped),
}

/// One per shard, read by all of its producers before each append.
///
/// A record that passed an open gate has a place: the shard raises `NoSpace` while there is
/// still prepared space for all that its lanes can hold.
#[derive(Debug, Default)]
pub struct Gate {
    state: AtomicU8,
    why: OnceLock<Stopped>,
}

impl Gate {
    /// An open gate.
    pub fn new() -> Arc<Gate> {
        Arc::new(Gate::default())
    }

    /// One load.
    #[inline]
    pub fn is_open(&self) -> bool {
        self.state.load(Relaxed) == OPEN
    }

    /// Open or not, and why.
    pub fn state(&self) -> GateState {
        match self.state.load(Acquire) {
            OPEN => GateState::Open,
            NO_SPACE => GateState::NoSpace,
            _ => GateState::Stopped(*self.why.get().expect("the reason comes before the state")),
        }
    }

    /// Shard: raises or lowers the flag for want of space. Has no effect once stopped.
    pub fn set_no_space(&self, no_space: bool) {
        let (from, to) = if no_space { (OPEN, NO_SPACE) } else { (NO_SPACE, OPEN) };
        let _ = self.state.compare_exchange(from, to, AcqRel, Relaxed);
    }

    /// Shard: takes nothing more, for ever. The first reason stays.
    ///
    /// A producer may have passed the gate just before. So the order is: stop the gate, *then*
    /// take the queue of new lanes a last time, then drain the lanes (closing) or
    /// [`LaneAcks::stop`] them (poisoned). A producer that makes a lane looks at the gate once more
    /// after handing it over and before the first record, so no lane with a record is missed.
    pub fn stop(&self, why: Stopped) {
        let _ = self.why.set(why);
        self.state.store(STOPPED, SeqCst);
        fence(SeqCst);
    }

    /// Producer: whether the gate is stopped, after a new lane was handed over.
    pub fn is_stopped_after_handover(&self) -> bool {
        fence(SeqCst);
        self.state.load(SeqCst) == STOPPED
    }
}

/// The shard's end of a lane. Travels once, through the shard's queue of new lanes.
///
/// Dropping it stops the lane, so that a shard that dies leaves nobody waiting.
pub struct LaneEnd {
    /// The records.
    pub consumer: LaneConsumer,
    /// Where their acknowledgements go.
    pub acks: Arc<LaneAcks>,
    /// The producer's number, from 1.
    pub producer: u32,
    /// Capacity of the lane in bytes: what must be promised for it.
    pub lane_bytes: usize,
    /// Appends that this producer was refused at this shard, so far.
    pub refused: Arc<AtomicU64>,
}

impl Drop for LaneEnd {
    fn drop(&mut self) {
        // No effect on what is acknowledged, nor on a lane that was stopped with a reason.
        self.acks.stop(Stopped::Abandoned);
    }
}

impl std::fmt::Debug for LaneEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LaneEnd")
            .field("producer", &self.producer)
            .field("lane_bytes", &self.lane_bytes)
            .finish_non_exhaustive()
    }
}
