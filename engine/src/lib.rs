//! hanaper: the audit log that does not lose what it acknowledged.
//!
//! An event is acknowledged only once a completed fdatasync covers it. To embed the log:
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! use hanaper::{Log, WaitFor};
//!
//! let log = Log::builder(folder.path().join("audit"))
//!     .shards(1)
//! #     .state(folder.path().join("keys"))
//!     .open()?;
//! let mut producer = log.producer()?; // one per thread
//! let ticket = producer.append(b"account-7", b"order 4711 accepted")?; // answers at once
//! let receipt = producer.wait(ticket, WaitFor::block())?; // durable from here on
//! println!("shard {} sequence {}", receipt.shard, receipt.seq);
//! log.close()?; // says whether everything went well; a drop could not
//! # Ok(())
//! # }
//! ```
//!
//! Appending answers at once, with a [`Ticket`] or with [`Backpressure`]. A ticket is waited for, polled (one
//! load), or awaited by any executor. [`read::Reader`] gives the records back, over a live log too.

pub mod builder;
pub mod checkpoint;
pub mod coordinator;
pub mod engine;
pub mod error;
#[cfg(feature = "glommio")]
mod glommio_host;
pub mod lock;
mod notary;
mod open;
mod random;
pub mod read;
pub mod recover;
mod runtime;
mod slice;
mod slow;
pub mod words;

pub use builder::{Backend, Builder, Driver, FailurePolicy};
pub use engine::{CloseReport, Log, ShardStats, Snapshot};
pub use error::{CloseError, ErrorKind, OpenError, ReadError};
pub use hanaper_ingest::{
    AppendError, Backpressure, BatchError, Claim, Producer, ProducerError, Receipt, Stopped, Ticket,
    WaitError, WaitFor, Waiter, WhenDurable,
};
pub use notary::Evidence;

/// The README's example must compile, as everything that is shown to people.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;
