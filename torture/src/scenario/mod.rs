//! The stories: each file is one, and says what must hold in it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::sim::history::{History, Tally, Violation};
use crate::sim::mutant::Mutant;
use crate::sim::rng::Rng;

pub mod crash;
pub mod crash_in_recovery;
pub mod failed_sync;
pub mod full_disk;
pub mod kill;
pub mod recycled;
pub mod short_write;

/// One story.
#[derive(Clone, Copy)]
pub struct Scenario {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it does, in a line.
    pub about: &'static str,
    /// Tells it once.
    tell: fn(&mut History) -> Result<(), Violation>,
}

/// All of them.
pub const ALL: [Scenario; 7] = [
    crash::SCENARIO,
    kill::SCENARIO,
    crash_in_recovery::SCENARIO,
    failed_sync::SCENARIO,
    short_write::SCENARIO,
    full_disk::SCENARIO,
    recycled::SCENARIO,
];

impl Scenario {
    /// Runs one history. Gives what happened and the number that stands for it.
    pub fn run(&self, seed: u64, mutant: Mutant) -> Result<(Tally, u64), Violation> {
        let told = catch_unwind(AssertUnwindSafe(|| {
            let mut history = History::new(self.name, seed, mutant);
            (self.tell)(&mut history)?;
            Ok(history.end())
        }));
        told.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
            Err(Violation { scenario: self.name, seed, what: format!("panicked: {text}") })
        })
    }

    /// Runs many, from `seed` on; stops at the first violation.
    pub fn run_many(&self, seed: u64, count: u64, mutant: Mutant) -> Result<Tally, Violation> {
        let mut sum = Tally::default();
        for i in 0..count {
            sum.add(&self.run(seed.wrapping_add(i), mutant)?.0);
        }
        Ok(sum)
    }
}

/// How the lives of a history go.
struct Way {
    /// Deaths in a hundred that are kills and not power cuts.
    kills: u64,
    /// Attempts to open in a hundred that end in a death.
    dies_in_opening: u64,
    /// Before each life: what is to fail in it.
    fault: fn(&mut History),
}

/// One to four lives that end badly, then one that is closed, then a look at what is left.
fn lives(h: &mut History, way: &Way) -> Result<(), Violation> {
    let deaths = h.rng.between(1, 4);
    for _ in 0..deaths {
        one_life(h, way)?;
    }
    finish(h, way)
}

fn open(h: &mut History, way: &Way) -> Result<Box<crate::sim::driver::Life>, Violation> {
    let mut fuse = |rng: &mut Rng| rng.percent(way.dies_in_opening).then(|| rng.below(60));
    let life = h.open_through(&mut fuse, way.kills)?;
    life.ok_or_else(|| h.violation("no space to open the log, on an endless disk"))
}

fn one_life(h: &mut History, way: &Way) -> Result<(), Violation> {
    (way.fault)(h);
    let mut life = open(h, way)?;
    (way.fault)(h);
    if h.rng.one_in(2) {
        let ops = h.rng.pick(&[20, 80, 300]);
        let ops = h.rng.below(ops);
        h.world.crash_after(ops);
    }
    let most = h.rng.pick(&[10, 60, 200, 400]);
    let steps = h.rng.between(1, most);
    let ended = life.live(h, steps).map_err(|what| h.violation(what))?;
    if ended == crate::sim::driver::Ended::Failed {
        let rounds = h.rng.below(6);
        life.linger(h, rounds).map_err(|what| h.violation(what))?;
    } else if h.rng.one_in(12) {
        let left = life.close(h).map_err(|what| h.violation(what))?;
        if left.is_some() || h.rng.one_in(2) {
            let kill = h.rng.percent(way.kills);
            h.die(left, kill);
        }
        return Ok(());
    }
    let kill = h.rng.percent(way.kills);
    h.die(Some(life), kill);
    Ok(())
}

/// Opens, closes, and opens once more: what was acknowledged is there, and nothing needs recovery.
fn finish(h: &mut History, way: &Way) -> Result<(), Violation> {
    let honest = Way { dies_in_opening: 0, fault: |_| {}, ..*way };
    let mut life = open(h, &honest)?;
    let steps = h.rng.below(20);
    life.live(h, steps).map_err(|what| h.violation(what))?;
    if !life.drain(h).map_err(|what| h.violation(what))? {
        return Err(h.violation("what was accepted does not become durable, on an endless disk"));
    }
    life.close(h).map_err(|what| h.violation(what))?;
    if h.rng.one_in(2) {
        h.die(None, false);
    }
    let life = open(h, &honest)?;
    h.die(Some(life), false);
    Ok(())
}
