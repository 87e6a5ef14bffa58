//! hanaper-ingest: from a caller's event to a lane, and back as an acknowledgement.
//!
//! An *event* is a key and a payload, both plain bytes. A [`Producer`], one per thread, appends
//! it: the key chooses the shard, the event is copied as a record into the producer's own lane to
//! that shard, and the caller gets a [`Ticket`] at once. The shard commits what has gathered in
//! its lanes; when the record is on disk and covered by a completed sync, the ticket resolves to
//! a [`Receipt`].
//!
//! ```
//! use std::time::Duration;
//! use hanaper_ingest::{AppendError, Producer, WaitFor};
//!
//! fn approve(producer: &mut Producer) -> Result<(), Box<dyn std::error::Error>> {
//!     // Returns in nanoseconds. The event is not durable yet.
//!     let ticket = producer.append(b"order-4711", b"approved by alice")?;
//!
//!     // Asking costs one load; waiting sleeps until the disk has it.
//!     if !producer.is_durable(ticket) {
//!         let receipt = producer.wait(ticket, WaitFor::block())?;
//!         println!("shard {} sequence {}", receipt.shard, receipt.seq);
//!     }
//!
//!     // A full lane is an answer, not a wait: nothing was written.
//!     match producer.append(b"order-4712", b"rejected by bob") {
//!         Ok(_ticket) => {}
//!         Err(AppendError::Backpressure(why)) => {
//!             println!("{why}");
//!             producer.append_within(b"order-4712", b"rejected by bob", Duration::from_secs(1))?;
//!         }
//!         Err(other) => return Err(other.into()),
//!     }
//!
//!     // Everything that this producer has appended.
//!     producer.flush()?;
//!     Ok(())
//! }
//! ```
//!
//! # What is promised
//! - Events with one key, appended by one producer, are in the log in the order of the appends.
//!   Across keys or producers there is no order but that of log time, which rises strictly
//!   within a producer.
//! - [`Producer::append`] never blocks, and while the shard is awake it makes no system call. It
//!   allocates nothing, except for the first event to a shard (the lane is made then) and for
//!   events longer than a quarter of the lane.
//! - What was not acknowledged when a shard stopped is *indeterminate*, never "failed": it may
//!   be found on disk.
//!
//! Files: `event` measures an event and stamps its record, `admission` decides what is let in,
//! `producer` writes, `ticket` waits.

mod admission;
mod event;
mod producer;
mod ticket;

pub use admission::{AppendError, Backpressure, BatchError, Intake, Limits, ProducerError, ShardPort};
pub use producer::{Claim, Producer};
pub use ticket::{Ticket, Waiter};

pub use hanaper_shards::ack::{Receipt, Stopped, WaitError, WaitFor, WhenDurable};
