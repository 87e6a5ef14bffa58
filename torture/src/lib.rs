//! hanaper-torture: breaks the log on purpose, and checks that nothing acknowledged is lost.
//!
//! This is the simulation tier. The **real** shard, recovery, preparation, sealing and producers run
//! on a simulated disk ([`hanaper_shards::io::sim`]) and a clock that is moved by hand; one thread
//! turns everything, and one seed chooses everything. The same seed gives the same history, bit
//! for bit.
//!
//! [`model`] is the oracle: what was written, what was acknowledged, what was shown. [`sim`] runs
//! one opening of the log after another and kills each. [`scenario`] holds the stories, one a
//! file; a seed that failed once becomes a named test beside them.
//!
//! What it cannot see: threads (nothing here is concurrent), the kernel's own file systems, and
//! faults of the link between two requests of a ring, which the seam hides. The engine's threads,
//! folder lock and command line are not in it either; its opening sequence is followed by hand.

pub mod model;
pub mod scenario;
pub mod sim;
