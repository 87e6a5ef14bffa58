//! hanaper-shards: bytes, durably, in order.
//!
//! This crate knows nothing of events, policies, threads or networks. A [`shard`] takes
//! records out of [`lane`]s, gathers them into a [`batch`], commits it to a [`segment`] through
//! [`io`], and acknowledges through [`ack`] what is durable. After a crash [`wal::recovery`]
//! decides what survived.
//!
//! Watermarks, per shard and always: received >= written >= durable >= acknowledged.

pub mod ack;
pub mod aligned;
pub mod batch;
pub mod clock;
pub mod io;
pub mod journal;
pub mod lane;
pub mod manifest;
pub mod merkle;
pub mod record;
pub mod router;
pub mod segment;
pub mod shard;
pub mod wake;
pub mod wal;
