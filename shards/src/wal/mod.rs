//! One shard's write-ahead log: how it is read, and what a crash makes of it.
//!
//! [`table`] is the decision table, [`chain`] walks the segments by it, [`recovery`] makes what it
//! found durable before anybody sees it, [`open`] puts the two in order, [`prepare`] makes segments
//! ready ahead of use, [`seal`] finishes the ones that are full, and [`sealed`] reads those.

pub mod chain;
pub mod open;
pub mod prepare;
pub mod recovery;
pub mod seal;
pub mod sealed;
pub mod table;
