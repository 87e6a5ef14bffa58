//! An fdatasync fails, and what it should have covered is dropped or only seems to be there: nothing more
//! is acknowledged, every waiter learns it, and the next opening decides what survived.

use hanaper_shards::io::sim::Fault;

use super::{Scenario, Way, lives};
use crate::sim::history::History;

/// See the module.
pub const SCENARIO: Scenario = Scenario {
    name: "failed_sync",
    about: "failed syncs in commits, preparation, sealing, manifests and recovery",
    tell: |h| lives(h, &Way { kills: 50, dies_in_opening: 10, fault }),
};

fn fault(h: &mut History) {
    if h.rng.one_in(3) {
        return;
    }
    let most = h.rng.pick(&[8, 30, 100]);
    let nth = h.rng.below(most);
    h.world.inject(nth, Fault::Sync { errno: h.rng.pick(&[libc::EIO, libc::ENOSPC]) });
}
