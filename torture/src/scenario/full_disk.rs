//! The disk fills: what was accepted becomes durable, the rest is refused, a restart works, and the log goes
//! on by itself when space returns.

use super::{Scenario, Way, finish, open};
use crate::sim::driver::Ended;
use crate::sim::history::{History, Violation};

/// See the module.
pub const SCENARIO: Scenario = Scenario {
    name: "full_disk",
    about: "a disk that fills and empties, with deaths while it is full",
    tell,
};

fn tell(h: &mut History) -> Result<(), Violation> {
    let kills = h.rng.pick(&[0, 50]);
    let way = Way { kills, dies_in_opening: 0, fault: |_| {} };
    let rounds = h.rng.between(1, 3);
    for _ in 0..rounds {
        let mut life = open(h, &way)?;
        let steps = h.rng.between(1, 150);
        life.live(h, steps).map_err(|what| h.violation(what))?;
        let room = h.rng.below(6 * h.settings.segment_bytes);
        let used = life.used_bytes();
        h.set_space(Some(used + room));
        let most = h.rng.pick(&[100, 800]);
        let steps = h.rng.between(50, most);
        let ended = life.live(h, steps).map_err(|what| h.violation(what))?;
        if ended == Ended::Failed {
            return Err(h.violation("a full disk stopped a shard"));
        }
        if h.rng.one_in(2) && !life.drain(h).map_err(|what| h.violation(what))? {
            let waiting = life.waiting();
            return Err(h.violation(format!("{waiting} records were accepted on a full disk and stay there")));
        }
        let back = h.rng.below(3);
        if back == 0 {
            // Space returns while the log is open.
            h.set_space(None);
            goes_on(h, &mut life)?;
        }
        if h.rng.one_in(6) {
            let life = life.close(h).map_err(|what| h.violation(what))?;
            h.die(life, false);
        } else {
            let kill = h.rng.percent(kills);
            h.die(Some(life), kill);
        }
        // The promise stands as soon as a shard has been able to keep a spare. What is opened on a disk that is
        // full already, and dies before there was one, needs room to come back.
        if back == 1 && h.has_reserve() {
            reopens_full(h, kills)?;
        }
        h.set_space(None);
    }
    finish(h, &way)
}

/// With space again, producers are let in without a restart.
fn goes_on(h: &mut History, life: &mut crate::sim::driver::Life) -> Result<(), Violation> {
    for _ in 0..3000 {
        if life.append_some(h, 1) > 0 {
            return Ok(());
        }
        life.round(h).map_err(|what| h.violation(what))?;
        life.serve(h).map_err(|what| h.violation(what))?;
    }
    Err(h.violation("space is back, and producers are still refused"))
}

/// A restart on the full disk works.
fn reopens_full(h: &mut History, kills: u64) -> Result<(), Violation> {
    let Some(mut life) = h.open_through(&mut |_| None, kills)? else {
        return Err(h.violation("a restart on the full disk finds no room for its recovery"));
    };
    let steps = h.rng.below(60);
    life.live(h, steps).map_err(|what| h.violation(what))?;
    let kill = h.rng.percent(kills);
    h.die(Some(life), kill);
    Ok(())
}
