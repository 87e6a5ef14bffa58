//! One history: a machine, a log on it, and its lives one after the other, all from one seed.

use std::sync::Arc;

use crossbeam_queue::SegQueue;
use hanaper_ingest::{Intake, Limits, ShardPort};
use hanaper_shards::ack::Gate;
use hanaper_shards::clock::Clock;
use hanaper_shards::io::Disk;
use hanaper_shards::io::sim::SimWorld;
use hanaper_shards::manifest::LogLine;
use hanaper_shards::merkle::{self, Frontier};
use hanaper_shards::record;
use hanaper_shards::shard::{Config, Published, Shard, Supply};
use hanaper_shards::wake::Wake;
use hanaper_shards::wal::chain::Place;
use hanaper_shards::wal::recovery::Begin;

use crate::model::Model;
use crate::sim::driver::{Life, Parts, Slow};
use crate::sim::mutant::{Mutant, TestDisk, TestIo};
use crate::sim::rng::{Rng, mixed};
use crate::sim::world::{self, Failed};

/// A promise that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The scenario's name.
    pub scenario: &'static str,
    /// Running that scenario with this seed once shows it again.
    pub seed: u64,
    /// What was found.
    pub what: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} seed {}: {}", self.scenario, self.seed, self.what)
    }
}

macro_rules! tally {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What happened, in numbers: only what really hit counts.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct Tally {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Tally {
            /// Adds another one.
            pub fn add(&mut self, other: &Tally) {
                $(self.$name += other.$name;)*
            }

            /// Names and numbers, in order.
            pub fn list(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }
        }
    };
}

tally! {
    /// Histories that were run to their end.
    histories,
    /// Power cuts.
    power_cuts,
    /// Kills.
    kills,
    /// Deaths while the log was being opened.
    deaths_in_opening,
    /// Openings that succeeded.
    openings,
    /// Shards that were recovered, in such openings.
    recoveries,
    /// Batches that recoveries copied forward.
    batches_carried,
    /// Bytes beyond the ends that recoveries found.
    bytes_cut,
    /// Openings that had to wait for a killed owner's writes.
    waits_for_locks,
    /// Sectors that power cuts lost.
    sectors_lost,
    /// Sectors not flushed, that survived.
    sectors_kept,
    /// Writes that power cuts tore.
    writes_torn,
    /// Changes of names that power cuts lost.
    names_lost,
    /// Injected failures that struck.
    faults_struck,
    /// Shards that stopped after one.
    poisoned,
    /// Openings that a failure of the disk ended.
    openings_failed,
    /// Openings for which the disk had no room.
    openings_without_space,
    /// Records accepted.
    written,
    /// Records acknowledged.
    acknowledged,
    /// Records refused.
    refused,
    /// Of these, for want of space.
    no_space,
    /// Records that survived unacknowledged, summed over recoveries.
    survived_unacknowledged,
    /// Segments prepared.
    prepares,
    /// Of these, with old batches in them.
    recycled,
    /// Segments that were to be sealed.
    seals,
    /// Clean closes.
    clean_closes,
    /// Records checked, summed over recoveries.
    records_checked,
}

/// Sizes and limits of one history.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Shards of the log.
    pub shards: u32,
    /// Length of segments.
    pub segment_bytes: u64,
    /// Length of those that opening must make itself.
    pub first_segment_bytes: u64,
    /// Capacity of lanes.
    pub lane_bytes: usize,
    /// The longest payload.
    pub payload_bytes_max: usize,
    /// Bytes of large records on their way.
    pub large_bytes: usize,
    /// Producers at a time.
    pub producers_max: u64,
    /// Commits in flight.
    pub depth_max: usize,
    /// What must be gathered for a further commit.
    pub pipeline_bytes: usize,
    /// Whether some segments come with old batches in them.
    pub recycles: bool,
}

impl Settings {
    fn choose(rng: &mut Rng) -> Settings {
        Settings {
            shards: rng.pick(&[1, 1, 2]),
            segment_bytes: 64 << 10,
            first_segment_bytes: rng.pick(&[48 << 10, 64 << 10]),
            lane_bytes: rng.pick(&[4096, 8192]),
            payload_bytes_max: rng.pick(&[600, 3000, 16 << 10]),
            // One large record at a time.
            large_bytes: 1,
            producers_max: rng.between(1, 4),
            depth_max: rng.pick(&[1, 2, 4, 4]),
            pipeline_bytes: rng.pick(&[1, 4096, 8192]),
            recycles: false,
        }
    }
}

/// How an opening went.
pub enum Opening {
    /// The log is open, and what it shows was checked.
    Open(Box<Life>),
    /// The machine stopped meanwhile.
    Down,
    /// A killed owner's writes are still in flight: try again.
    Locked,
    /// No room for the segment that a recovery needs.
    NoSpace,
    /// An injected failure ended it.
    Faulted,
}

/// See the module.
pub struct History {
    scenario: &'static str,
    seed: u64,
    /// Chance.
    pub rng: Rng,
    /// The machine.
    pub world: SimWorld,
    /// The oracle.
    pub model: Model,
    /// What happened.
    pub tally: Tally,
    /// Sizes.
    pub settings: Settings,
    pub(crate) closed_cleanly: bool,
    pub(crate) space_is_endless: bool,
    mutant: Mutant,
    wake: Arc<Wake>,
    log_time: u64,
    faults_before: u64,
}

impl History {
    /// An empty machine.
    pub fn new(scenario: &'static str, seed: u64, mutant: Mutant) -> History {
        let name = scenario.bytes().fold(0, |sum, byte| mixed(sum ^ u64::from(byte)));
        let mut rng = Rng::new(mixed(seed) ^ name);
        let world = SimWorld::new(rng.any());
        world.forget_name_syncs(mutant == Mutant::NoNameSync);
        let settings = Settings::choose(&mut rng);
        History {
            scenario,
            seed,
            world,
            model: Model::new(settings.shards as usize),
            tally: Tally::default(),
            settings,
            closed_cleanly: false,
            space_is_endless: true,
            mutant,
            wake: Wake::new().expect("an eventfd"),
            log_time: 1_000,
            faults_before: 0,
            rng,
        }
    }

    /// Says how much room the disk has.
    pub fn set_space(&mut self, bytes: Option<u64>) {
        self.space_is_endless = bytes.is_none();
        self.world.set_space(bytes);
    }

    /// Whether each shard has a spare for its next recovery. For a log that nobody has open.
    pub fn has_reserve(&mut self) -> bool {
        self.world.settle();
        let disk = TestDisk::new(self.world.disk(), Mutant::None);
        let Ok((_, state)) = world::open_log(&disk, self.settings.shards, &mut self.rng) else {
            return false;
        };
        (0..self.settings.shards).all(|shard| {
            let place = Place { log: state.log, generation: 0, shard };
            world::has_spare(&disk, place, self.settings.first_segment_bytes)
        })
    }

    /// A violation of this history.
    pub fn violation(&self, what: impl Into<String>) -> Violation {
        Violation { scenario: self.scenario, seed: self.seed, what: what.into() }
    }

    /// Opens the log, and checks what it shows.
    pub fn open(&mut self) -> Result<Opening, Violation> {
        let struck = self.world.faults_struck();
        match self.try_open() {
            Ok(life) => Ok(Opening::Open(Box::new(life))),
            Err(_) if self.world.is_down() => {
                self.tally.deaths_in_opening += 1;
                Ok(Opening::Down)
            }
            Err(Failed::Locked) => Ok(Opening::Locked),
            Err(Failed::NoSpace(_) | Failed::Other(_)) if self.world.faults_struck() > struck => {
                self.tally.openings_failed += 1;
                Ok(Opening::Faulted)
            }
            Err(Failed::NoSpace(_)) => {
                self.tally.openings_without_space += 1;
                Ok(Opening::NoSpace)
            }
            Err(Failed::Other(what)) => Err(self.violation(what)),
        }
    }

    fn try_open(&mut self) -> Result<Life, Failed> {
        let other = |error: &dyn std::fmt::Display| Failed::Other(error.to_string());
        let disk = TestDisk::new(self.world.disk(), self.mutant);
        let (mut journal, state) = world::open_log(&disk, self.settings.shards, &mut self.rng)?;
        let epoch = state.epoch + 1;
        let begin = |rng: &mut Rng| Begin {
            incarnation: rng.identity(),
            epoch,
            wall_ns: self.log_time as i64,
            first_segment_bytes: self.settings.first_segment_bytes,
        };
        let mut looked = Vec::new();
        for shard in 0..self.settings.shards {
            let place = Place { log: state.log, generation: 0, shard };
            let expected = state.expected(shard, 0);
            looked.push(world::look_at(&disk, place, expected, self.mutant, &mut self.rng)?);
        }
        journal.append(&[LogLine::Opened { epoch, pid: 1, wall: 0 }.write()]).map_err(|e| other(&e))?;
        let mut opened = Vec::new();
        for looked in looked {
            let begin = begin(&mut self.rng);
            opened.push(world::recover(looked, begin)?);
        }
        for one in &opened {
            let slot = one.place.shard as usize;
            let (found, examined) = world::read_back(&disk, one.place).map_err(Failed::Other)?;
            if examined.chain != one.start.chain {
                return Err(Failed::Other("recovery goes on elsewhere than its log ends".to_owned()));
            }
            let mut tree = Frontier::new();
            found.iter().for_each(|batch| tree.push(merkle::leaf(&batch.digest)));
            if tree != one.start.tree {
                return Err(Failed::Other(
                    "recovery goes on with another tree than that of its batches".to_owned(),
                ));
            }
            let checked = self.model.check(slot, &found).map_err(Failed::Other)?;
            if checked.log_time_max > one.start.log_time_max {
                return Err(Failed::Other("log time will go back".to_owned()));
            }
            self.tally.records_checked += found.iter().map(|b| b.records.len() as u64).sum::<u64>();
            self.tally.survived_unacknowledged += checked.unacked;
            self.log_time = self.log_time.max(one.start.log_time_max + 1);
            if let Some(recovered) = &one.start.recovered {
                if self.closed_cleanly {
                    return Err(Failed::Other(format!("closed cleanly, and recovered: {recovered:?}")));
                }
                self.tally.recoveries += 1;
                self.tally.batches_carried += recovered.carried.end - recovered.carried.start;
                self.tally.bytes_cut += recovered.cut_bytes;
            }
        }
        self.closed_cleanly = false;
        self.tally.openings += 1;
        let (clock, hands) = Clock::manual(self.log_time);
        let mut ports = Vec::new();
        let mut slow = Vec::new();
        let mut shards = Vec::new();
        for one in opened {
            let supply = Arc::new(Supply::default());
            let port = ShardPort {
                shard: one.place.shard,
                new_lanes: Arc::new(SegQueue::new()),
                wake: Arc::clone(&self.wake),
                gate: Gate::new(),
            };
            if one.start.active.is_none() && one.start.spares.is_empty() {
                port.gate.set_no_space(true);
            }
            let mut chance = Rng::new(self.rng.any());
            let mut shard = Shard::new(
                self.config(&disk, one.place, epoch),
                one.start,
                clock.clone(),
                Arc::clone(&port.new_lanes),
                Arc::clone(&port.gate),
                Arc::clone(&supply),
                Arc::new(Published::default()),
                Box::new(move || chance.identity()),
            );
            shard.say(format!("opened epoch={epoch}"));
            shards.push(shard);
            slow.push(Slow { shard: one.place.shard, manifest: one.manifest, supply, unsealable: false });
            ports.push(port);
        }
        let limits = Limits {
            lane_bytes: self.settings.lane_bytes,
            payload_bytes_max: self.settings.payload_bytes_max,
            large_bytes: self.settings.large_bytes,
            receipts: 1024,
            ..Limits::default()
        };
        let intake = Intake::new(state.layout().router, ports, clock.clone(), limits);
        let io = TestIo::new(&disk);
        Ok(Life::new(Parts { disk, io, shards, slow, intake, clock, hands, journal, epoch }, self))
    }

    fn config(&self, disk: &TestDisk, place: Place, epoch: u64) -> Config {
        Config {
            place,
            block_bytes: disk.block_bytes(),
            segment_bytes: self.settings.segment_bytes,
            record_bytes_max: record::encoded_bytes(record::KEY_BYTES_MAX, self.settings.payload_bytes_max),
            epoch,
            slot: place.shard as u16,
            lane_bytes: self.settings.lane_bytes,
            depth_max: self.settings.depth_max,
            pipeline_bytes: self.settings.pipeline_bytes,
            stamp_after_ns: 10_000_000,
        }
    }

    /// The log's time goes on from where this life's clock stands.
    pub(crate) fn bury(&mut self, life: Life) {
        self.log_time = self.log_time.max(life.clock.now());
        drop(life);
    }

    /// Whether an injected failure struck since the last death.
    pub(crate) fn was_faulted(&self) -> bool {
        self.world.faults_struck() > self.faults_before
    }

    /// A power cut (or a kill): the world first, so that nothing ends in an orderly way.
    pub fn die(&mut self, life: Option<Box<Life>>, kill: bool) {
        let struck = self.world.faults_struck();
        self.tally.faults_struck += struck - self.faults_before;
        self.faults_before = struck;
        if kill {
            self.world.kill();
            self.tally.kills += 1;
        } else {
            let damage = self.world.crash();
            self.tally.power_cuts += 1;
            self.tally.sectors_lost += damage.sectors_lost;
            self.tally.sectors_kept += damage.sectors_kept;
            self.tally.writes_torn += damage.writes_torn;
            self.tally.names_lost += damage.names_lost;
        }
        if let Some(life) = life {
            self.bury(*life);
        }
    }

    /// Opens the log however often it takes; `fuse` says, for each attempt, after how many operations of
    /// the disk the machine stops, and `kills` how many deaths in a hundred are kills.
    pub fn open_through(
        &mut self,
        fuse: &mut dyn FnMut(&mut Rng) -> Option<u64>,
        kills: u64,
    ) -> Result<Option<Box<Life>>, Violation> {
        for attempt in 0..400 {
            if attempt < 8
                && let Some(ops) = fuse(&mut self.rng)
            {
                self.world.crash_after(ops);
            }
            match self.open()? {
                Opening::Open(life) => return Ok(Some(life)),
                Opening::NoSpace => return Ok(None),
                Opening::Down | Opening::Faulted => {
                    let kill = self.rng.percent(kills);
                    self.die(None, kill);
                }
                Opening::Locked => {
                    self.tally.waits_for_locks += 1;
                    if self.rng.one_in(30) {
                        self.world.settle();
                    }
                }
            }
        }
        Err(self.violation("the log does not open"))
    }

    /// The end: what was found, and a number that stands for the whole history.
    pub fn end(mut self) -> (Tally, u64) {
        self.tally.histories = 1;
        self.tally.faults_struck += self.world.faults_struck() - self.faults_before;
        self.tally.written = self.model.written;
        self.tally.acknowledged = self.model.acked;
        self.tally.refused = self.model.refused;
        (self.tally, mixed(self.world.trace() ^ self.model.trace()))
    }
}
