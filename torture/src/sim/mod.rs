//! One simulated machine and the log on it, from one opening to the next.

pub mod driver;
pub mod history;
pub mod mutant;
pub mod rng;
pub mod world;

pub use history::{History, Opening, Tally, Violation};
