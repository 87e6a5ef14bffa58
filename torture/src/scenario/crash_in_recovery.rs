//! Most attempts to open the log die in the middle of it, which must neither lose anything nor use space.

use super::{Scenario, Way, lives};
use crate::sim::history::{History, Opening, Violation};

/// See the module.
pub const SCENARIO: Scenario = Scenario {
    name: "crash_in_recovery",
    about: "deaths within opening and recovery, one after the other",
    tell: |h| {
        if h.rng.one_in(4) {
            return crash_loop(h);
        }
        lives(h, &Way { kills: 30, dies_in_opening: 75, fault: |_| {} })
    },
};

/// Bytes of all files.
fn used(h: &History) -> u64 {
    h.world.names().iter().filter_map(|name| h.world.seen(name)).map(|content| content.len() as u64).sum()
}

/// A machine that dies in each opening, for many openings: what the folder grows by is bounded for each death.
fn crash_loop(h: &mut History) -> Result<(), Violation> {
    // A recovery that was finished, and whose opening died later, is superseded by the next one; its carried
    // batches and three lines of the manifest stay.
    const A_DEATH_BYTES: u64 = 32 << 10;
    let way = Way { kills: 30, dies_in_opening: 0, fault: |_| {} };
    let mut life = super::open(h, &way)?;
    let steps = h.rng.between(20, 200);
    life.live(h, steps).map_err(|what| h.violation(what))?;
    h.die(Some(life), false);
    let before = used(h);
    let mut deaths = 0;
    while deaths < 40 {
        deaths += 1;
        let ops = h.rng.below(24);
        let kill = h.rng.percent(30);
        h.world.crash_after(ops);
        match h.open()? {
            Opening::Open(life) => {
                // It got through: whoever opens a log may use a segment.
                h.die(Some(life), kill);
                break;
            }
            _ => h.die(None, kill),
        }
    }
    let after = used(h);
    let shards = u64::from(h.settings.shards);
    // At any time: one recovery, one in preparation, and room ahead in the manifests.
    let once = 2 * h.settings.segment_bytes + (512 << 10);
    if after > before + shards * (once + deaths * A_DEATH_BYTES) {
        return Err(h.violation(format!("{deaths} deaths in opening made {before} bytes {after}")));
    }
    super::finish(h, &way)
}
