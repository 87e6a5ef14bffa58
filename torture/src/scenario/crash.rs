//! Power cuts at any operation of the disk, now and then in the middle of an opening.

use super::{Scenario, Way, lives};

/// See the module.
pub const SCENARIO: Scenario = Scenario {
    name: "crash",
    about: "power cuts: what was not flushed survives in any part, or not at all",
    tell: |h| lives(h, &Way { kills: 0, dies_in_opening: 15, fault: |_| {} }),
};
