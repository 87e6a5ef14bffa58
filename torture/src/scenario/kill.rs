//! Kills and power cuts in any order: the cache survives a kill, writes in flight land late, and
//! the power cut after it takes what nobody has flushed since.

use super::{Scenario, Way, lives};

/// See the module.
pub const SCENARIO: Scenario = Scenario {
    name: "kill",
    about: "kills, with writes that land late, mixed with power cuts",
    tell: |h| lives(h, &Way { kills: 70, dies_in_opening: 15, fault: |_| {} }),
};
