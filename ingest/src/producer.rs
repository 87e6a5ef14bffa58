//! The writing side: one producer, its lanes, its claims.
//!
//! Owns the producer's end of one lane per shard that it has written to. Writes records; waits
//! for nothing and nobody, unless asked to.
//!
//! # A producer's life
//! | what happens | what becomes of its events |
//! |---|---|
//! | it is dropped with events in its lanes | all are committed; a [`Waiter`] can still wait for them |
//! | its thread panics, also within a claim | as above: unwinding drops the claim, which leaves nothing behind, then the producer |
//! | a claim or the producer is leaked (`mem::forget`) | the claim leaves nothing behind; the lanes of a leaked producer stay, and it counts against `producers_max` until the log is closed |
//! | the process exits, or is killed, without closing the log | what was acknowledged is safe; of the rest, recovery keeps what reached the disk whole |
//! | the log is closed | what was appended before is committed; later appends answer [`Stopped::Closed`] |
//! | its shard stops after an error | appends answer [`Stopped::Poisoned`]; what was not acknowledged is indeterminate |
//! | `fork()` | the parent goes on. In the child it is a copy without a shard: appends and waits answer [`Stopped::Abandoned`] at once, and dropping it touches nothing. A child made by a raw `clone` system call goes unnoticed: use no producer there |

use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use hanaper_shards::ack::{Gate, LaneAcks, LaneEnd, Receipt, Stopped, WaitError, WaitFor, WhenDurable, fork};
use hanaper_shards::lane::{self, LaneProducer, lane};
use hanaper_shards::record::{FLAG_UNTERMINATED, HEADER_BYTES};
use hanaper_shards::router::Router;
use hanaper_shards::wake::Wake;

use crate::admission::{LargeBudget, LargeHold, refusal};
use crate::event::{Stamp, copy_key, record_bytes, write_record};
use crate::{AppendError, Backpressure, BatchError, Intake, Ticket, Waiter};

/// Room that the word of any boxed record fits into; see [`hanaper_shards::lane`].
const BOXED_FRAME_BYTES: usize = 16;
/// How often [`Producer::append_within`] looks again when nothing will tell it that space is back.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// Appends events to the log. One per thread: it can move to another thread, but not be shared.
///
/// The calls that append are here; those that wait also exist on [`Waiter`], for other threads.
pub struct Producer {
    stamp: Stamp,
    // Copies of what every append looks at.
    router: Router,
    payload_bytes_max: usize,
    born: u32,
    intake: Arc<Intake>,
    /// By the shard's place in the layout.
    outlets: Box<[Outlet]>,
    waiter: Waiter,
    id: u32,
    not_sync: PhantomData<Cell<()>>,
}

/// This producer's way to one shard.
struct Outlet {
    /// Made at the first append to the shard.
    lane: Option<OpenLane>,
    gate: Arc<Gate>,
    wake: Arc<Wake>,
    refused: Arc<AtomicU64>,
}

struct OpenLane {
    records: LaneProducer,
    /// Index of the next record.
    next_index: u64,
    /// Bytes committed and not yet published: the batch that is being appended.
    staged_bytes: usize,
    acks: Arc<LaneAcks>,
}

impl Producer {
    pub(crate) fn new(intake: Arc<Intake>, id: u32) -> Producer {
        let outlets = intake.ports.iter().map(|port| Outlet {
            lane: None,
            gate: Arc::clone(&port.gate),
            wake: Arc::clone(&port.wake),
            refused: Arc::default(),
        });
        Producer {
            stamp: Stamp::new(id, intake.clock.clone()),
            router: intake.router,
            payload_bytes_max: intake.limits.payload_bytes_max,
            born: fork::generation(),
            outlets: outlets.collect(),
            waiter: Waiter::new(id, intake.ports.len()),
            intake,
            id,
            not_sync: PhantomData,
        }
    }

    /// The producer's number, from 1. It stands in each of its records, and is not used again in
    /// this opening of the log.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Appends one event: copies it into the lane of its key's shard, and returns at once. The
    /// event is durable when the ticket says so.
    ///
    /// An error means that nothing was written. [`AppendError::Backpressure`] may be retried, see
    /// [`Producer::append_within`]; each refusal is counted, and the log records how many there
    /// were.
    #[inline]
    pub fn append(&mut self, key: &[u8], payload: &[u8]) -> Result<Ticket, AppendError> {
        let at = self.router.route(key) as usize;
        self.offer::<false>(at, key, payload).map_err(|error| self.refused(at, error))
    }

    /// Appends one event, waiting at most `patience` for backpressure to end. Sleeps until
    /// the shard's next commit when the lane is full, and looks again every millisecond when
    /// the disk is.
    pub fn append_within(
        &mut self,
        key: &[u8],
        payload: &[u8],
        patience: Duration,
    ) -> Result<Ticket, AppendError> {
        let at = self.router.route(key) as usize;
        let began = Instant::now();
        loop {
            let why = match self.offer::<false>(at, key, payload) {
                Err(AppendError::Backpressure(why)) => why,
                settled => return settled,
            };
            let left = patience.saturating_sub(began.elapsed());
            if left.is_zero() {
                return Err(self.refused(at, why.into()));
            }
            self.outlets[at].await_relief(why, left);
        }
    }

    /// Room for a payload of exactly `payload_bytes`, to be written in place and committed: saves
    /// the copy of [`Producer::append`]. The key chooses the lane. One claim at a time.
    ///
    /// The room holds arbitrary bytes, perhaps those of an earlier event: write all of it.
    ///
    /// ```
    /// # use hanaper_ingest::{AppendError, Producer, Ticket};
    /// fn append_number(producer: &mut Producer, number: u64) -> Result<Ticket, AppendError> {
    ///     let mut claim = producer.try_claim(b"numbers", 8)?;
    ///     claim.copy_from_slice(&number.to_le_bytes());
    ///     Ok(claim.commit())
    /// }
    /// ```
    #[inline]
    pub fn try_claim(&mut self, key: &[u8], payload_bytes: usize) -> Result<Claim<'_>, AppendError> {
        let at = self.router.route(key) as usize;
        self.claim(at, key, payload_bytes, true)
    }

    /// Appends many events, and makes them visible to each shard together: cheaper than one by
    /// one. Returns their tickets, in order. See [`Producer::append_batch_into`], which allocates
    /// nothing.
    ///
    /// A batch is no transaction: its events are appended in order until one is refused. The error
    /// holds the tickets of those before it, which are on their way.
    ///
    /// ```
    /// # use hanaper_ingest::{BatchError, Producer};
    /// # fn example(producer: &mut Producer) -> Result<(), BatchError> {
    /// let tickets = producer.append_batch([(&b"alice"[..], &b"in"[..]), (b"bob", b"out")])?;
    /// # Ok(()) }
    /// ```
    pub fn append_batch<'a>(
        &mut self,
        events: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Result<Vec<Ticket>, BatchError> {
        let events = events.into_iter();
        let mut accepted = Vec::with_capacity(events.size_hint().0);
        match self.append_batch_into(events, &mut accepted) {
            Ok(()) => Ok(accepted),
            Err(error) => Err(BatchError { accepted, error }),
        }
    }

    /// As [`Producer::append_batch`], with the tickets added to a list of the caller's: one for
    /// each event that was appended, also when the end is an error.
    pub fn append_batch_into<'a>(
        &mut self,
        events: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
        tickets: &mut Vec<Ticket>,
    ) -> Result<(), AppendError> {
        // The iterator is a caller's code. If it panics, what was appended is still published.
        let batch = Publish(self);
        for (key, payload) in events {
            let at = batch.0.router.route(key) as usize;
            let staged = batch.0.offer::<true>(at, key, payload);
            tickets.push(staged.map_err(|error| batch.0.refused(at, error))?);
        }
        Ok(())
    }

    /// Whether the event is durable: one load. See [`Waiter::is_durable`].
    #[inline]
    pub fn is_durable(&self, ticket: Ticket) -> bool {
        self.waiter.is_durable(ticket)
    }

    /// Waits until the event is durable. See [`Waiter::wait`].
    pub fn wait(&self, ticket: Ticket, how: WaitFor) -> Result<Receipt, WaitError> {
        self.waiter.wait(ticket, how)
    }

    /// The same as a future. See [`Waiter::durable`].
    pub fn durable(&self, ticket: Ticket) -> WhenDurable {
        self.waiter.durable(ticket)
    }

    /// For waiting from other threads.
    pub fn waiter(&self) -> Waiter {
        self.waiter.clone()
    }

    /// Waits until everything that this producer has appended is durable.
    ///
    /// If a shard has stopped, the others are still waited for; then the error is returned.
    pub fn flush(&mut self) -> Result<(), WaitError> {
        let mut result = Ok(());
        for lane in self.outlets.iter().filter_map(|outlet| outlet.lane.as_ref()) {
            if let Some(last) = lane.next_index.checked_sub(1) {
                result = result.and(lane.acks.wait_durable(last, WaitFor::block()));
            }
        }
        result
    }

    /// The same for the last line of a text that does not end in a line end, so that the text comes
    /// back byte for byte from a raw replay.
    pub fn append_unterminated(&mut self, key: &[u8], payload: &[u8]) -> Result<Ticket, AppendError> {
        self.stamp.next_flags = FLAG_UNTERMINATED;
        let ticket = self.append(key, payload);
        // A refused event must not leave its mark on the next one.
        self.stamp.next_flags = 0;
        ticket
    }

    /// The append itself. A refusal is not counted yet. With `STAGE` the shard sees the record only
    /// after [`OpenLane::publish`].
    #[inline(always)]
    fn offer<const STAGE: bool>(
        &mut self,
        at: usize,
        key: &[u8],
        payload: &[u8],
    ) -> Result<Ticket, AppendError> {
        let bytes = record_bytes(key.len(), payload.len(), self.payload_bytes_max)?;
        self.admit(at)?;
        let Outlet { lane: Some(lane), wake, .. } = &mut self.outlets[at] else {
            unreachable!("admit makes the lane");
        };
        if bytes > lane.records.frame_bytes_max() {
            return self.offer_large(at, key, payload);
        }
        let Some(mut frame) = lane.records.try_claim(bytes) else {
            return Err(lane_refusal(&lane.acks));
        };
        let header = self.stamp.next(key.len(), payload.len());
        write_record(&header, key, payload, &mut frame);
        if STAGE {
            frame.commit_later();
            lane.staged_bytes += bytes;
            // A batch longer than the lane must not fill it while the shard sees nothing of it.
            if lane.staged_bytes >= lane.records.frame_bytes_max() {
                lane.publish(wake);
            }
        } else {
            frame.commit();
            wake.notify();
        }
        Ok(next_ticket(self.id, at, &mut lane.next_index))
    }

    #[cold]
    fn offer_large(&mut self, at: usize, key: &[u8], payload: &[u8]) -> Result<Ticket, AppendError> {
        // The caller counts.
        let mut claim = self.claim(at, key, payload.len(), false)?;
        claim.copy_from_slice(payload);
        Ok(claim.commit())
    }

    #[inline(always)]
    fn claim(
        &mut self,
        at: usize,
        key: &[u8],
        payload_bytes: usize,
        counts: bool,
    ) -> Result<Claim<'_>, AppendError> {
        let bytes = record_bytes(key.len(), payload_bytes, self.payload_bytes_max)?;
        let admitted = self.admit(at);
        let Outlet { lane, wake, refused, .. } = &mut self.outlets[at];
        let room = admitted.and_then(|()| {
            let lane = lane.as_mut().expect("admit makes the lane");
            let OpenLane { records, next_index, acks, .. } = lane;
            let room = if bytes <= records.frame_bytes_max() {
                records.try_claim(bytes).map(Room::Lane).ok_or_else(|| lane_refusal(acks))
            } else {
                Room::large(bytes, records, acks, &self.intake.large)
            };
            room.map(|room| (room, next_index, &*acks))
        });
        let (room, next_index, acks) = room.inspect_err(|error| {
            if counts && error.is_retryable() {
                refused.fetch_add(1, Relaxed);
            }
        })?;
        let payload = HEADER_BYTES + key.len()..HEADER_BYTES + key.len() + payload_bytes;
        let stamp = &mut self.stamp;
        let mut claim = Claim { room, payload, stamp, next_index, acks, wake, producer: self.id, at };
        copy_key(key, &mut claim.room.record()[HEADER_BYTES..HEADER_BYTES + key.len()]);
        Ok(claim)
    }

    #[inline]
    fn is_forked_copy(&self) -> bool {
        fork::generation() != self.born
    }

    /// Whether the shard takes anything from us; makes the lane if it does and there is none.
    #[inline]
    fn admit(&mut self, at: usize) -> Result<(), AppendError> {
        let outlet = &self.outlets[at];
        if outlet.lane.is_some() && outlet.gate.is_open() && !self.is_forked_copy() {
            return Ok(());
        }
        self.admit_slowly(at)
    }

    #[cold]
    fn admit_slowly(&mut self, at: usize) -> Result<(), AppendError> {
        if self.is_forked_copy() {
            return Err(AppendError::Stopped(Stopped::Abandoned));
        }
        let outlet = &mut self.outlets[at];
        if let Some(refusal) = refusal(&outlet.gate) {
            return Err(refusal);
        }
        if outlet.lane.is_some() {
            return Ok(());
        }
        let lane_bytes = self.intake.limits.lane_bytes;
        let (records, consumer) = lane(lane_bytes);
        let acks = self.waiter.add_lane(at, self.intake.limits.receipts);
        self.intake.ports[at].new_lanes.push(LaneEnd {
            consumer,
            acks: Arc::clone(&acks),
            producer: self.id,
            lane_bytes,
            refused: Arc::clone(&outlet.refused),
        });
        outlet.wake.notify();
        outlet.lane = Some(OpenLane { records, next_index: 0, staged_bytes: 0, acks });
        // A shard that stopped meanwhile may not have seen this lane; a record in it could be
        // waited for for ever. See `Gate::stop`.
        if outlet.gate.is_stopped_after_handover() {
            return refusal(&outlet.gate).map_or(Ok(()), Err);
        }
        Ok(())
    }

    /// Counts backpressure.
    #[cold]
    fn refused(&self, at: usize, error: AppendError) -> AppendError {
        if error.is_retryable() {
            self.outlets[at].refused.fetch_add(1, Relaxed);
        }
        error
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        let forked = self.is_forked_copy();
        for outlet in &mut self.outlets {
            // Publishes what is committed, and tells the shard that no more will come.
            if outlet.lane.take().is_some() && !forked {
                outlet.wake.notify();
            }
        }
        self.intake.producer_left();
    }
}

impl std::fmt::Debug for Producer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Producer").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Publishes what a batch has staged, also when the batch ends by a panic.
struct Publish<'a>(&'a mut Producer);

impl Drop for Publish<'_> {
    fn drop(&mut self) {
        for outlet in &mut self.0.outlets {
            if let Some(lane) = outlet.lane.as_mut().filter(|lane| lane.staged_bytes > 0) {
                lane.publish(&outlet.wake);
            }
        }
    }
}

impl Outlet {
    /// Waits until a refused append is worth another try.
    fn await_relief(&self, why: Backpressure, at_most: Duration) {
        match (&self.lane, why) {
            (Some(lane), Backpressure::LaneFull) => {
                let oldest = lane.acks.acked();
                if oldest < lane.next_index {
                    // Whatever it ends with, the next try finds out.
                    let _ = lane.acks.wait_durable(oldest, WaitFor::at_most(at_most));
                } else {
                    // All is durable, and the shard is about to give the space back.
                    std::thread::yield_now();
                }
            }
            // The end of these is announced by nobody.
            _ => std::thread::sleep(at_most.min(LOOK_AGAIN)),
        }
    }
}

impl OpenLane {
    fn publish(&mut self, wake: &Wake) {
        self.records.publish();
        self.staged_bytes = 0;
        wake.notify();
    }
}

/// Why a lane has no room: for now, or because nobody will ever empty it. (A shard that dies stops
/// the lane, see [`LaneEnd`].)
#[cold]
fn lane_refusal(acks: &LaneAcks) -> AppendError {
    acks.stopped().map_or(Backpressure::LaneFull.into(), AppendError::Stopped)
}

#[inline]
fn next_ticket(producer: u32, lane: usize, next_index: &mut u64) -> Ticket {
    let index = *next_index;
    *next_index += 1;
    Ticket::new(producer, lane, index)
}

/// Room for one event, made by [`Producer::try_claim`]. It dereferences to the payload.
///
/// Nothing is in the log, and no sequence number is used, until [`Claim::commit`]. Dropping the
/// claim gives the room back.
#[must_use = "a claim that is not committed leaves nothing in the log"]
pub struct Claim<'a> {
    room: Room<'a>,
    /// Where in the record the payload stands.
    payload: Range<usize>,
    stamp: &'a mut Stamp,
    next_index: &'a mut u64,
    acks: &'a Arc<LaneAcks>,
    wake: &'a Wake,
    producer: u32,
    at: usize,
}

enum Room<'a> {
    Lane(lane::Claim<'a>),
    Large { record: Box<[u8]>, records: &'a mut LaneProducer, hold: LargeHold },
}

impl<'a> Room<'a> {
    #[cold]
    fn large(
        bytes: usize,
        records: &'a mut LaneProducer,
        acks: &LaneAcks,
        budget: &Arc<LargeBudget>,
    ) -> Result<Room<'a>, AppendError> {
        // A claim that is dropped changes nothing, and room that is there stays: only we write.
        if records.try_claim(BOXED_FRAME_BYTES).is_none() {
            return Err(lane_refusal(acks));
        }
        let hold = LargeHold::take(budget, bytes).ok_or(Backpressure::LargeBuffers)?;
        Ok(Room::Large { record: vec![0; bytes].into(), records, hold })
    }

    #[inline]
    fn record(&mut self) -> &mut [u8] {
        match self {
            Room::Lane(frame) => frame,
            Room::Large { record, .. } => record,
        }
    }
}

impl Claim<'_> {
    /// Appends the event. Its log time is now, not that of the claim.
    #[inline]
    pub fn commit(mut self) -> Ticket {
        let key_bytes = self.payload.start - HEADER_BYTES;
        self.stamp.next(key_bytes, self.payload.len()).write(self.room.record());
        let ticket = next_ticket(self.producer, self.at, self.next_index);
        match self.room {
            Room::Lane(frame) => frame.commit(),
            Room::Large { record, records, hold } => {
                records.try_push_boxed(record).expect("the room was found when it was claimed");
                hold.until_durable(self.acks, ticket.index());
            }
        }
        self.wake.notify();
        ticket
    }
}

impl Deref for Claim<'_> {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        let record: &[u8] = match &self.room {
            Room::Lane(frame) => frame,
            Room::Large { record, .. } => record,
        };
        &record[self.payload.clone()]
    }
}

impl DerefMut for Claim<'_> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        let payload = self.payload.clone();
        &mut self.room.record()[payload]
    }
}

impl std::fmt::Debug for Claim<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Claim").field("payload_bytes", &self.payload.len()).finish_non_exhaustive()
    }
}
