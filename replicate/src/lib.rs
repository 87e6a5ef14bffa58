//! hanaper-replicate: sealed segments to other places, and the knowledge of what is safely there.
//!
//! So far this crate holds the [`planner`] alone: the rules by which a sealed segment is sent, read back,
//! counted towards a quorum, and at last given up locally. No store is attached to it yet.

pub mod planner;
