//! Tickets, and waiting for them.

use std::sync::{Arc, OnceLock};

use hanaper_shards::ack::{LaneAcks, Receipt, WaitError, WaitFor, Waiters, WhenDurable};

/// Names one appended event: a producer, one of its lanes, and the index in it.
///
/// Sixteen bytes, `Copy`, and worth something only together with its [`Producer`](crate::Producer)
/// or a [`Waiter`] of it, in this opening of the log. What lasts is the [`Receipt`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket {
    producer: u32,
    lane: u16,
    index: u64,
}

const _: () = assert!(size_of::<Ticket>() == 16);

impl Ticket {
    #[inline]
    pub(crate) fn new(producer: u32, lane: usize, index: u64) -> Ticket {
        Ticket { producer, lane: lane as u16, index }
    }

    /// The producer's number, from 1.
    pub fn producer(&self) -> u32 {
        self.producer
    }

    /// The shard's place in the layout, from 0.
    pub fn lane(&self) -> u16 {
        self.lane
    }

    /// Counts the events of this producer to this shard, from 0. Acknowledgement is in this
    /// order: a durable ticket's predecessors in its lane are durable too.
    pub fn index(&self) -> u64 {
        self.index
    }
}

/// What a producer shares with those who wait for its events.
struct Shared {
    producer: u32,
    waiters: Arc<Waiters>,
    /// By the shard's place in the layout; filled when the lane is made.
    lanes: Box<[OnceLock<Arc<LaneAcks>>]>,
}

/// Waits for one producer's tickets, from any thread. Cheap to clone.
///
/// It outlives the producer: what was appended before is still committed, and can be waited for.
///
/// ```
/// # use hanaper_ingest::{Producer, WaitFor};
/// # fn example(producer: &mut Producer) -> Result<(), Box<dyn std::error::Error>> {
/// let ticket = producer.append(b"alice", b"logged in")?;
/// let waiter = producer.waiter();
/// std::thread::spawn(move || waiter.wait(ticket, WaitFor::block()));
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Waiter {
    shared: Arc<Shared>,
}

impl Waiter {
    pub(crate) fn new(producer: u32, shards: usize) -> Waiter {
        let lanes = (0..shards).map(|_| OnceLock::new()).collect();
        Waiter { shared: Arc::new(Shared { producer, waiters: Waiters::new(), lanes }) }
    }

    /// Makes the acknowledgements of a new lane.
    pub(crate) fn add_lane(&self, lane: usize, receipts: usize) -> Arc<LaneAcks> {
        let acks = LaneAcks::new(Arc::clone(&self.shared.waiters), receipts);
        let set = self.shared.lanes[lane].set(Arc::clone(&acks));
        assert!(set.is_ok(), "a lane is made once");
        acks
    }

    #[inline]
    fn acks(&self, ticket: Ticket) -> &Arc<LaneAcks> {
        assert!(
            ticket.producer == self.shared.producer,
            "a ticket of producer {} was given to producer {}",
            ticket.producer,
            self.shared.producer
        );
        self.shared.lanes[ticket.lane as usize].get().expect("a ticket comes after its lane")
    }

    /// Whether the event is durable: on disk, and covered by a completed sync. One load, no
    /// waiting; `false` also when its shard has stopped before.
    ///
    /// # Panics
    /// If another producer gave the ticket out, as all methods here.
    #[inline]
    pub fn is_durable(&self, ticket: Ticket) -> bool {
        self.acks(ticket).is_durable(ticket.index)
    }

    /// Waits until the event is durable, and says where it stands.
    ///
    /// Ends with [`WaitError::TimedOut`] (wait again, the event is still on its way),
    /// [`WaitError::Indeterminate`] (the shard stopped first; reopen the log to find out) or
    /// [`WaitError::ReceiptGone`] (durable long ago; only the newest receipts are remembered).
    pub fn wait(&self, ticket: Ticket, how: WaitFor) -> Result<Receipt, WaitError> {
        self.acks(ticket).wait(ticket.index, how)
    }

    /// The same as a future, for any executor. It allocates once, if it has to wait at all, and
    /// may outlive waiter and producer.
    pub fn durable(&self, ticket: Ticket) -> WhenDurable {
        self.acks(ticket).when_durable(ticket.index)
    }
}

impl std::fmt::Debug for Waiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiter").field("producer", &self.shared.producer).finish_non_exhaustive()
    }
}
