//! Segments that come with batches of an earlier life of the same shard, at the same offsets and with good
//! checksums: none of them may come back.

use super::{Scenario, Way, lives};

/// See the module.
pub const SCENARIO: Scenario = Scenario {
    name: "recycled",
    about: "segments full of old batches, with power cuts and kills",
    tell: |h| {
        h.settings.recycles = true;
        lives(h, &Way { kills: 30, dies_in_opening: 15, fault: |_| {} })
    },
};
