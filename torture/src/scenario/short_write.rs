//! Writes fail or end early: never acknowledged, and the sync behind them counts for nothing.

use hanaper_shards::io::sim::Fault;

use super::{Scenario, Way, lives};
use crate::sim::history::History;

/// See the module.
pub const SCENARIO: Scenario = Scenario {
    name: "short_write",
    about: "short and failed writes, and failed reads, anywhere",
    tell: |h| lives(h, &Way { kills: 50, dies_in_opening: 10, fault }),
};

fn fault(h: &mut History) {
    if h.rng.one_in(3) {
        return;
    }
    let most = h.rng.pick(&[8, 30, 100]);
    let nth = h.rng.below(most);
    let fault = match h.rng.below(8) {
        0..=3 => Fault::ShortWrite { bytes: h.rng.below(9000) as usize },
        4..=6 => Fault::Write { errno: h.rng.pick(&[libc::EIO, libc::ENOSPC, libc::EDQUOT]) },
        _ => Fault::Read { errno: libc::EIO },
    };
    h.world.inject(nth, fault);
}
