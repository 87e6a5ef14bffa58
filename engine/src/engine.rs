//! A log that is open for writing: what is opened, in which order, and how it is closed.

use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_queue::SegQueue;
use hanaper_ingest::{Intake, Producer, ProducerError, ShardPort};
use hanaper_shards::ack::{Gate, Receipt, Stopped};
use hanaper_shards::clock::Clock;
use hanaper_shards::io::Disk;
use hanaper_shards::io::disk::{Folder, FolderFile, free_bytes};
use hanaper_shards::io::posix::PosixIo;
use hanaper_shards::io::probe::{self, Backend, Chosen};
use hanaper_shards::io::uring::UringIo;
use hanaper_shards::journal::Journal;
use hanaper_shards::manifest::{Fenced, Layout, LogLine, ManifestError};
use hanaper_shards::record;
use hanaper_shards::shard::{Config, Published, Shard, Supply};
use hanaper_shards::wake::Wake;
use hanaper_shards::wal::chain::Place;
use hanaper_shards::wal::open::Opened;
use hanaper_shards::wal::recovery::{Recovered, Start};

use crate::builder::Builder;
use crate::checkpoint::entry::{Event, Live};
use crate::coordinator::Coordinator;
use crate::error::{CloseError, OpenError};
use crate::lock::Lock;
use crate::notary::{self, Board, Commission, Desk, Evidence, Notary};
use crate::open::{look_at, old_log_time, open_folder, open_manifest, recover, reshard};
use crate::random;
use crate::read;
use crate::runtime::{self, Drive, Ended, MakeIo, Orders, Path, Seat};
use crate::slow::{SlowQueue, SlowShard, SlowWorker};

/// A log that is open for writing.
///
/// [`Log::close`] makes everything durable and says so. Dropping it without that is like a crash:
/// what was acknowledged is safe, what was not may be gone, and the next open recovers.
pub struct Log {
    path: PathBuf,
    intake: Arc<Intake>,
    orders: Arc<Orders>,
    wakes: Vec<Arc<Wake>>,
    drivers: Vec<JoinHandle<Vec<Ended>>>,
    slow_queue: Arc<SlowQueue>,
    slow: Option<JoinHandle<SlowWorker<Folder>>>,
    journal: Option<Journal<Folder>>,
    desk: Option<Arc<Desk>>,
    notary: Option<JoinHandle<Vec<String>>>,
    board: Arc<Board>,
    vkey: Option<String>,
    layout: Layout,
    epoch: u64,
    chosen: Chosen,
    published: Vec<Arc<Published>>,
    recovered: Vec<(u32, Recovered)>,
    /// Held for as long as the log is open.
    _lock: Lock,
}

/// What a clean close found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CloseReport {
    /// Records made durable in this opening, control records included.
    pub records: u64,
    /// What did not go as it should, and cost nothing that was accepted.
    pub notices: Vec<String>,
}

/// Counters of one shard, at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ShardStats {
    pub shard: u32,
    pub received: u64,
    pub written: u64,
    pub durable: u64,
    pub acknowledged: u64,
    pub commits: u64,
    pub bytes: u64,
    pub rotations: u64,
    pub stalls: u64,
    pub stamps: u64,
}

/// Counters of a log, at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// One per shard.
    pub shards: Vec<ShardStats>,
    /// Producers that exist.
    pub producers: u32,
}

impl Log {
    /// Begins to open the log in this folder.
    pub fn builder(path: impl Into<PathBuf>) -> Builder {
        Builder::new(path.into())
    }

    pub(crate) fn open(builder: Builder) -> Result<Log, OpenError> {
        let path = builder.path.clone();
        let io = |source| OpenError::Io { path: path.clone(), source };
        let mut folder = open_folder(&builder)?;
        let lock = Lock::take(&path)?;
        let (mut journal, mut state) = open_manifest(&folder, &builder)?;
        if state.block_bytes < folder.block_bytes() {
            let (disk, log) = (folder.block_bytes(), state.block_bytes);
            return Err(OpenError::Setting(format!(
                "{}: this disk needs blocks of {disk} bytes, and the log was made with {log}; read it here, or write it on a disk like its own",
                path.display()
            )));
        }
        folder = folder.with_block_bytes(state.block_bytes);
        let mut ended_shards = Vec::new();
        if let Some(wanted) = builder.shards
            && wanted != state.layout().router.shards
        {
            if !builder.reshard {
                return Err(OpenError::Shards { have: state.layout().router.shards, wanted });
            }
            (journal, state, ended_shards) = reshard(&folder, journal, state, wanted, &builder)?;
        }
        let layout = *state.layout();
        let epoch = state.epoch + 1;
        let clock_wall = Clock::start(0).anchor().wall_ns;

        let (keys, named) = match builder.checkpoints {
            true => Some(notary::begin(&folder, &builder, &state)?).unzip(),
            false => (None, None),
        };
        let looked = look_at(&folder, &path, &state, &layout, &named.clone().unwrap_or_default())?;
        // What can fail for reasons of its own comes before anything is changed.
        let mut chosen = if builder.calibrate {
            probe::choose(&folder, builder.backend).map_err(io)?
        } else {
            probe::choose_unmeasured(&folder, builder.backend).map_err(io)?
        };

        if read::promise::is_volatile(&path) {
            chosen.notices.push(
                "this folder lies on a file system in memory: durable means here until a reboot or a power cut"
                    .to_owned(),
            );
        }
        let driver_path = match chosen.backend {
            Backend::Posix => Path::Posix { dsync: chosen.dsync },
            _ => Path::Uring { inline: chosen.inline },
        };
        let cores = runtime::cores();
        let drivers = (layout.router.shards as usize).min(cores.len().max(1));
        let wakes: Vec<Arc<Wake>> =
            (0..drivers).map(|_| Wake::new()).collect::<Result<_, _>>().map_err(io)?;
        let slow_queue = SlowQueue::new().map_err(io)?;
        let desk =
            keys.is_some().then(|| Desk::new(layout.router.shards as usize)).transpose().map_err(io)?;
        // On record before any segment belongs to it, and only if nothing is damaged.
        let opened_line = LogLine::Opened { epoch, pid: std::process::id(), wall: clock_wall };
        let fenced_before = std::mem::take(&mut state.fenced);
        append(&mut journal, &[opened_line])
            .map_err(|source| OpenError::Manifest { path: path.clone(), source })?;
        let mut opened = recover(&path, looked, epoch, clock_wall, &builder)?;
        let log_time_max =
            opened.iter().map(|o| o.start.log_time_max).max().unwrap_or(0).max(old_log_time(&folder, &state));
        let clock = Clock::start((log_time_max + 1).max(u64::try_from(clock_wall).unwrap_or(0)));

        let opened_at = clock.now();
        // Where nobody says, there may be room.
        let free_bytes = free_bytes(&path).ok().flatten().unwrap_or(u64::MAX);
        let room_for_another = free_bytes >= u64::from(layout.router.shards) * builder.segment_bytes;
        let mut start = vec![Event::new("start").with("opening", epoch).with("pid", std::process::id())];
        start.append(&mut ended_shards);
        let mut cuts = Vec::new();
        let mut shard_wakes = Vec::new();
        let mut ports = Vec::new();
        let mut slow_shards = Vec::new();
        let mut published = Vec::new();
        let mut recovered = Vec::new();
        let mut seats: Vec<Vec<SeatPlan>> = (0..drivers).map(|_| Vec::new()).collect();
        for (slot, opened) in opened.drain(..).enumerate() {
            let Opened { place, manifest, start: begin } = opened;
            recovered.extend(begin.recovered.clone().map(|r| (place.shard, r)));
            let wake = Arc::clone(&wakes[slot % drivers]);
            shard_wakes.push(Arc::clone(&wake));
            cuts.extend(notary::cuts(place.shard, &begin));
            if let Some(desk) = &desk {
                // So the first entry names every shard, however late its driver begins.
                desk.give(slot, notary::first_head(&begin));
            }
            let supply = Arc::new(Supply::default());
            let spares = begin.spares.len() - usize::from(begin.active.is_none() && !begin.spares.is_empty());
            if spares == 0 && !room_for_another {
                // Nothing is taken before there is a segment for a recovery, too.
                supply.no_space.store(true, Ordering::Relaxed);
            }
            let port = ShardPort {
                shard: place.shard,
                new_lanes: Arc::new(SegQueue::new()),
                wake: Arc::clone(&wake),
                gate: Gate::new(),
            };
            if begin.active.is_none() && begin.spares.is_empty() {
                port.gate.set_no_space(true);
            }
            published.push(Arc::new(Published::default()));
            slow_shards.push(SlowShard {
                shard: place.shard,
                manifest,
                supply: Arc::clone(&supply),
                wake,
                segment_bytes: builder.segment_bytes,
            });
            let mut words = vec![format!(
                "opened epoch={epoch} pid={} shards={} primitive={}",
                std::process::id(),
                layout.router.shards,
                driver_path.name()
            )];
            for f in fenced_before.iter().filter(|f| f.shard == place.shard) {
                words.push(format!("fenced op={} errno={} offset={}", f.op, f.errno, f.offset));
                start.push(notary::fenced(f));
            }
            seats[slot % drivers].push(SeatPlan {
                slot,
                config: config(&folder, place, slot, epoch, &builder),
                start: begin,
                port: port.clone(),
                supply,
                published: Arc::clone(&published[slot]),
                words,
                opened_at,
            });
            ports.push(port);
        }
        // A spinning thread of the same real-time priority would keep a pinned driver from its core for ever.
        let realtime = crate::slice::is_realtime();
        if builder.pin && realtime {
            chosen.notices.push(
                "drivers are not pinned to cores, since this process runs in a real-time class".to_owned(),
            );
        }
        let pin = builder.pin && !realtime;
        let orders = Arc::new(Orders::default());
        let settings = builder.settings_text(layout.router.shards);
        let on_failure = Arc::new(builder.on_failure);
        let spin = builder.spin.unwrap_or(Duration::from_micros(if cores.len() > 1 { 50 } else { 0 }));
        let mut handles = Vec::new();
        let mut refused = None;
        for (i, plans) in seats.into_iter().enumerate() {
            let drive = Drive {
                wake: Arc::clone(&wakes[i]),
                clock: clock.clone(),
                orders: Arc::clone(&orders),
                slow: Arc::clone(&slow_queue),
                on_failure: Arc::clone(&on_failure),
                spin,
                slice: builder.slice,
                desk: desk.clone(),
            };
            let core = pin.then(|| cores.get(i).copied()).flatten();
            let name = format!("hanaper-{i}");
            let (host, folder, clock) = (builder.driver, folder.clone(), clock.clone());
            let handle = match driver_path {
                Path::Uring { .. } => {
                    let seats = plans.into_iter().map(|p| p.seat::<UringIo>(&clock)).collect();
                    runtime::spawn_driver(name, host, core, driver_path, folder, seats, drive)
                }
                Path::Posix { .. } => {
                    let seats = plans.into_iter().map(|p| p.seat::<PosixIo>(&clock)).collect();
                    runtime::spawn_driver(name, host, core, driver_path, folder, seats, drive)
                }
            };
            match handle {
                Ok(spawned) => {
                    refused = refused.or(spawned.refused);
                    handles.push(spawned.handle);
                }
                Err(source) => {
                    runtime::abandon(&orders, &wakes, handles);
                    return Err(io(source));
                }
            }
        }
        let worker = SlowWorker::new(folder.clone(), slow_shards, Arc::clone(&slow_queue));
        let slow = match runtime::spawn_slow(worker) {
            Ok(slow) => slow,
            Err(source) => {
                runtime::abandon(&orders, &wakes, handles);
                return Err(io(source));
            }
        };
        // Once, whatever it was that did not get its executor.
        if let Some(why) = refused.or(slow.refused) {
            chosen.notices.push(format!("glommio does not start here ({why}); using plain threads instead"));
        }
        let board = Arc::new(Board::default());
        let vkey = keys.as_ref().map(|keys| keys.identity().vkey().to_string());
        let notary = keys.zip(named).zip(desk.clone()).map(|((keys, named), desk)| {
            let live = Live {
                count: layout.router.shards,
                first: layout.first_shard,
                generation: layout.generation,
            };
            let commission = Commission {
                disk: folder.clone(),
                path: path.clone(),
                log: state.log,
                keys,
                coordinator: Coordinator::new(state.log, live, builder.checkpoint_every, named),
                first_shard: layout.first_shard,
                desk,
                board: Arc::clone(&board),
                published: published.clone(),
                wakes: shard_wakes,
                clock: clock.clone(),
                every: builder.checkpoint_every,
                start,
                cuts,
                end: Event::new("stop").with("opening", epoch),
                settings,
            };
            Notary::new(commission)
        });
        let intake = Intake::new(layout.router, ports, clock, builder.limits);
        let mut log = Log {
            path: path.clone(),
            intake,
            orders,
            wakes,
            drivers: handles,
            slow_queue,
            slow: Some(slow.handle),
            journal: Some(journal),
            desk,
            notary: None,
            board,
            vkey,
            layout,
            epoch,
            chosen,
            published,
            recovered,
            _lock: lock,
        };
        // If it does not start, dropping the log ends all the others.
        log.notary = notary.map(runtime::spawn_notary).transpose().map_err(io)?;
        Ok(log)
    }

    /// A producer, for one thread.
    pub fn producer(&self) -> Result<Producer, ProducerError> {
        self.intake.producer()
    }

    /// The log's folder.
    pub fn path(&self) -> &FsPath {
        &self.path
    }

    /// Number of shards.
    pub fn shards(&self) -> u32 {
        self.layout.router.shards
    }

    /// Counts the openings of this log for writing.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The commit path in force.
    pub fn primitive(&self) -> &'static str {
        match self.chosen.backend {
            Backend::Posix => Path::Posix { dsync: self.chosen.dsync }.name(),
            _ => Path::Uring { inline: self.chosen.inline }.name(),
        }
    }

    /// One clear line each about what could not be had here, and what is done instead.
    pub fn notices(&self) -> &[String] {
        &self.chosen.notices
    }

    /// What opening recovered, by shard; empty if the log had been closed.
    pub fn recovered(&self) -> &[(u32, Recovered)] {
        &self.recovered
    }

    /// The public key of this log, one line: whoever has it can check what the log says of itself. `None` if
    /// checkpoints are off.
    pub fn vkey(&self) -> Option<&str> {
        self.vkey.as_deref()
    }

    /// The newest checkpoint, what it covers, and what keeps a newer one from being made.
    pub fn evidence(&self) -> Evidence {
        self.board.read()
    }

    /// Waits until a checkpoint covers an event; `false` if none does after that time, and at once if checkpoints
    /// are off.
    pub fn wait_checkpointed(&self, receipt: &Receipt, at_most: Duration) -> bool {
        let slot = receipt.shard.checked_sub(self.layout.first_shard).filter(|_| self.vkey.is_some());
        slot.is_some_and(|slot| self.board.wait(slot as usize, receipt.batch + 1, at_most))
    }

    /// Counters, as they are now.
    pub fn stats(&self) -> Snapshot {
        let get = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let shards = self.layout.shards().zip(&self.published).map(|(shard, p)| ShardStats {
            shard,
            received: get(&p.received),
            written: get(&p.written),
            durable: get(&p.durable),
            acknowledged: get(&p.acknowledged),
            commits: get(&p.commits),
            bytes: get(&p.bytes),
            rotations: get(&p.rotations),
            stalls: get(&p.stalls),
            stamps: get(&p.stamps),
        });
        Snapshot { shards: shards.collect(), producers: self.intake.producers() }
    }

    /// Takes no more, makes everything that was accepted durable, seals, and marks the log as closed.
    pub fn close(mut self) -> Result<CloseReport, CloseError> {
        self.intake.close();
        self.orders.close.store(true, Ordering::Release);
        let (ended, panicked) = self.join_drivers();
        self.slow_queue.stop();
        let mut report = CloseReport { notices: self.end_notary(&ended), ..CloseReport::default() };
        let shard_at = |slot: usize| self.layout.first_shard + slot as u32;
        let mut ended_lines: Vec<LogLine> =
            ended.iter().map(|e| LogLine::Ended { shard: shard_at(e.slot), chain: e.chain }).collect();
        let worker = self.slow.take().map(JoinHandle::join);
        let failures: Vec<(u32, Stopped)> =
            ended.iter().filter_map(|e| Some((shard_at(e.slot), e.failure?))).collect();
        match worker {
            Some(Ok(mut worker)) => {
                for e in ended {
                    if e.failure.is_none() {
                        worker.retire(e.slot, e.spares);
                    }
                }
                report.notices.append(&mut worker.notices);
            }
            Some(Err(panic)) => return Err(CloseError::Panicked(panic_text(&panic))),
            None => {}
        }
        if let Some(text) = panicked {
            return Err(CloseError::Panicked(text));
        }
        let mut journal = self.journal.take().expect("closed once");
        if let Some((shard, why)) = failures.first().copied() {
            let lines: Vec<String> =
                failures.iter().filter_map(|(shard, why)| fenced_line(*shard, why)).collect();
            if let Err(error) = journal.append(&lines) {
                // The disk that failed the shard may well fail this; the error itself says more.
                report.notices.push(error.to_string());
            }
            return Err(CloseError::Stopped { shard, why });
        }
        let wall = Clock::start(0).anchor().wall_ns;
        ended_lines.push(LogLine::Closed { epoch: self.epoch, wall, epochs: self.board.read().size });
        append(&mut journal, &ended_lines).map_err(CloseError::Manifest)?;
        report.records = self.published.iter().map(|p| p.acknowledged.load(Ordering::Relaxed)).sum();
        Ok(report)
    }

    /// Has the last checkpoint made, from the last heads.
    fn end_notary(&mut self, ended: &[Ended]) -> Vec<String> {
        let Some((desk, notary)) = self.desk.take().zip(self.notary.take()) else { return Vec::new() };
        ended.iter().for_each(|e| desk.give(e.slot, e.head.clone()));
        desk.stop();
        notary.join().unwrap_or_else(|panic| vec![panic_text(&panic)])
    }

    fn join_drivers(&mut self) -> (Vec<Ended>, Option<String>) {
        self.wakes.iter().for_each(|wake| wake.notify());
        let mut ended = Vec::new();
        let mut panicked = None;
        for driver in self.drivers.drain(..) {
            match driver.join() {
                Ok(ends) => ended.extend(ends),
                Err(panic) => panicked = Some(panic_text(&panic)),
            }
        }
        (ended, panicked)
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        if self.slow.is_none() {
            return;
        }
        self.orders.abandon.store(true, Ordering::Release);
        let _abandoned = self.join_drivers();
        if let Some((desk, notary)) = self.desk.take().zip(self.notary.take()) {
            desk.abandon();
            let _abandoned = notary.join();
        }
        self.slow_queue.stop();
        if let Some(slow) = self.slow.take() {
            let _abandoned = slow.join();
        }
    }
}

/// Makes lines durable, all or none.
pub(crate) fn append(journal: &mut Journal<Folder>, lines: &[LogLine]) -> Result<(), ManifestError> {
    let texts: Vec<String> = lines.iter().map(LogLine::write).collect();
    Ok(journal.append(&texts)?)
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

fn fenced_line(shard: u32, why: &Stopped) -> Option<String> {
    let Stopped::Poisoned { op, errno, offset } = why else { return None };
    let op = op.replace(' ', "_");
    Some(LogLine::Fenced(Fenced { shard, op, errno: *errno, offset: *offset }).write())
}

/// A shard on its way to its thread.
struct SeatPlan {
    slot: usize,
    config: Config,
    start: Start<FolderFile>,
    port: ShardPort,
    supply: Arc<Supply<FolderFile>>,
    published: Arc<Published>,
    words: Vec<String>,
    opened_at: u64,
}

impl SeatPlan {
    fn seat<I: MakeIo + 'static>(self, clock: &Clock) -> Seat<I> {
        let clock = clock.clone();
        let port = self.port.clone();
        let make = move || {
            let mut shard = Shard::new(
                self.config,
                self.start,
                clock,
                self.port.new_lanes,
                self.port.gate,
                self.supply,
                self.published,
                Box::new(random::bytes),
            );
            // Before any event, although the thread may begin after the first of them.
            for line in self.words {
                shard.say_at(self.opened_at, line);
            }
            shard
        };
        Seat { slot: self.slot, port, make: Box::new(make) }
    }
}

fn config(folder: &Folder, place: Place, slot: usize, epoch: u64, builder: &Builder) -> Config {
    Config {
        place,
        block_bytes: folder.block_bytes(),
        segment_bytes: builder.segment_bytes,
        record_bytes_max: record::encoded_bytes(record::KEY_BYTES_MAX, builder.limits.payload_bytes_max),
        epoch,
        slot: slot as u16,
        lane_bytes: builder.limits.lane_bytes,
        // Through the page cache the kernel tells a failed write-back to one sync only: one commit at a time.
        depth_max: if folder.direct() { builder.depth_max } else { 1 },
        pipeline_bytes: builder.pipeline_bytes,
        stamp_after_ns: 10_000_000,
    }
}
