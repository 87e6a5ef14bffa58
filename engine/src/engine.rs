//! A log that is open for writing: what is opened, in which order, and how it is closed.

use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_queue::SegQueue;
use hanaper_ingest::{Intake, Producer, ProducerError, ShardPort};
use hanaper_shards::ack::{Gate, Stopped};
use hanaper_shards::clock::Clock;
use hanaper_shards::io::Disk;
use hanaper_shards::io::disk::{Folder, FolderFile};
use hanaper_shards::io::posix::PosixIo;
use hanaper_shards::io::probe::{self, Backend, Chosen};
use hanaper_shards::io::uring::UringIo;
use hanaper_shards::journal::{self, Journal, JournalError};
use hanaper_shards::manifest::{
    Fenced, Layout, LogLine, LogState, ManifestError, SegmentState, ShardManifest,
};
use hanaper_shards::record;
use hanaper_shards::router::Router;
use hanaper_shards::segment::paths::{self, Name};
use hanaper_shards::shard::{Config, Published, Shard, Supply};
use hanaper_shards::wake::Wake;
use hanaper_shards::wal::chain::{self, Place};
use hanaper_shards::wal::open::{self, Looked, Opened, Opening};
use hanaper_shards::wal::recovery::{self, Begin, Recovered, RecoveryError, Start};

use crate::builder::Builder;
use crate::error::{CloseError, OpenError};
use crate::lock::Lock;
use crate::random;
use crate::read;
use crate::runtime::{self, Drive, Ended, MakeIo, Orders, Path, Seat};
use crate::slow::{SlowQueue, SlowShard, SlowWorker};

/// How long the writes of a killed owner are waited for.
const IN_FLIGHT_WAIT: Duration = Duration::from_secs(5);

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
        if let Some(wanted) = builder.shards
            && wanted != state.layout().router.shards
        {
            if !builder.reshard {
                return Err(OpenError::Shards { have: state.layout().router.shards, wanted });
            }
            (journal, state) = reshard(&folder, journal, state, wanted, &builder)?;
        }
        let layout = *state.layout();
        let epoch = state.epoch + 1;
        let clock_wall = Clock::start(0).anchor().wall_ns;

        let looked = look_at(&folder, &path, &state, &layout)?;
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
        let room_for_another =
            folder.free_bytes().map_err(io)? >= u64::from(layout.router.shards) * builder.segment_bytes;
        let mut ports = Vec::new();
        let mut slow_shards = Vec::new();
        let mut published = Vec::new();
        let mut recovered = Vec::new();
        let mut seats: Vec<Vec<SeatPlan>> = (0..drivers).map(|_| Vec::new()).collect();
        for (slot, opened) in opened.drain(..).enumerate() {
            let Opened { place, manifest, start } = opened;
            recovered.extend(start.recovered.clone().map(|r| (place.shard, r)));
            let wake = Arc::clone(&wakes[slot % drivers]);
            let supply = Arc::new(Supply::default());
            let spares = start.spares.len() - usize::from(start.active.is_none() && !start.spares.is_empty());
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
            if start.active.is_none() && start.spares.is_empty() {
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
            }
            seats[slot % drivers].push(SeatPlan {
                slot,
                config: config(&folder, place, slot, epoch, &builder),
                start,
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
        let intake = Intake::new(layout.router, ports, clock, builder.limits);
        Ok(Log {
            path,
            intake,
            orders,
            wakes,
            drivers: handles,
            slow_queue,
            slow: Some(slow.handle),
            journal: Some(journal),
            layout,
            epoch,
            chosen,
            published,
            recovered,
            _lock: lock,
        })
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
        let mut report = CloseReport::default();
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
                report.notices = worker.notices;
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
        ended_lines.push(LogLine::Closed { epoch: self.epoch, wall });
        append(&mut journal, &ended_lines).map_err(CloseError::Manifest)?;
        report.records = self.published.iter().map(|p| p.acknowledged.load(Ordering::Relaxed)).sum();
        Ok(report)
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
        self.slow_queue.stop();
        if let Some(slow) = self.slow.take() {
            let _abandoned = slow.join();
        }
    }
}

/// Makes lines durable, all or none.
fn append(journal: &mut Journal<Folder>, lines: &[LogLine]) -> Result<(), ManifestError> {
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

/// The segment that opening itself must zero is short, so that opening is quick; the next ones, made
/// beside the commits, have the full length.
fn first_segment_bytes(builder: &Builder) -> u64 {
    const FIRST_BYTES: u64 = 16 << 20;
    let longest_record = 8 * (builder.limits.payload_bytes_max as u64).next_multiple_of(64 << 10) + (1 << 20);
    builder.segment_bytes.min(FIRST_BYTES.max(longest_record))
}

fn open_folder(builder: &Builder) -> Result<Folder, OpenError> {
    let path = &builder.path;
    let io = |source| OpenError::Io { path: path.clone(), source };
    match std::fs::metadata(path) {
        Ok(meta) if !meta.is_dir() => {
            Err(io(std::io::Error::new(std::io::ErrorKind::NotADirectory, "not a folder")))
        }
        Ok(_) => {
            let folder = Folder::open(path).map_err(io)?;
            let names = folder.names().map_err(io)?;
            let is_log = names.iter().any(|name| paths::parse(name) == Name::LogManifest);
            if let Some(name) = read::in_the_way(&names).filter(|_| !is_log) {
                return Err(OpenError::NotALog { path: path.clone(), such_as: name.clone() });
            }
            if !is_log && !builder.create {
                return Err(OpenError::Missing(path.clone()));
            }
            Ok(folder)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && builder.create => Folder::create(path)
            .map_err(|source| match source.kind() {
                std::io::ErrorKind::NotFound if !has_parent(path) => OpenError::NoParent(path.clone()),
                _ => io(source),
            }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(OpenError::Missing(path.clone())),
        Err(error) => Err(io(error)),
    }
}

fn has_parent(path: &FsPath) -> bool {
    path.parent().is_none_or(|parent| parent.as_os_str().is_empty() || parent.is_dir())
}

fn open_manifest(folder: &Folder, builder: &Builder) -> Result<(Journal<Folder>, LogState), OpenError> {
    let manifest = |source: ManifestError| OpenError::Manifest { path: builder.path.clone(), source };
    let identity = journal::Identity { log: [0; 16], shard: u32::MAX };
    let found = match Journal::open(folder, paths::LOG_MANIFEST, identity) {
        Err(JournalError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => None,
        other => other.map_err(|e| manifest(e.into()))?,
    };
    if let Some((journal, contents)) = found {
        let state = LogState::from_lines(&contents.lines).map_err(|source| {
            manifest(ManifestError::Line { name: paths::LOG_MANIFEST.to_owned(), source })
        })?;
        if state.log != contents.log {
            let name = paths::LOG_MANIFEST.to_owned();
            return Err(manifest(JournalError::Foreign { name }.into()));
        }
        return Ok((journal, state));
    }
    // A manifest that holds nothing whole is a crash in the making of a log, unless there is more of one.
    let names = folder.names().map_err(|source| OpenError::Io { path: builder.path.clone(), source })?;
    let ours =
        |name: &String| matches!(paths::parse(name), Name::Segment { .. } | Name::ShardManifest { .. });
    if names.iter().any(ours) {
        return Err(OpenError::ManifestGone(builder.path.clone()));
    }
    let shards = builder.shards.unwrap_or_else(|| (runtime::cores().len() as u32).clamp(1, 256));
    let log: [u8; 16] = random::bytes();
    let layout = Layout {
        generation: 0,
        first_shard: 0,
        router: Router { seed: u64::from_le_bytes(random::bytes()), shards },
    };
    let created = Clock::start(0).anchor().wall_ns;
    let genesis = LogLine::Genesis { log, block_bytes: folder.block_bytes(), created };
    let lines = [genesis, LogLine::Layout(layout)];
    let identity = journal::Identity { log, shard: u32::MAX };
    let texts: Vec<String> = lines.iter().map(LogLine::write).collect();
    let journal = Journal::create(folder, paths::LOG_MANIFEST, identity, random::bytes(), &texts)
        .map_err(|e| manifest(e.into()))?;
    let mut state = LogState::default();
    lines.iter().for_each(|line| state.apply(line));
    Ok((journal, state))
}

/// Looks at all shards, each on a thread of its own, and changes nothing that was ever written to.
fn look_at(
    folder: &Folder,
    path: &FsPath,
    state: &LogState,
    layout: &Layout,
) -> Result<Vec<Looked<Folder>>, OpenError> {
    let io = |source| OpenError::Io { path: path.to_owned(), source };
    // Nobody else makes or removes files of a log that this process has locked.
    let entries = folder.list().map_err(io)?;
    if let Some(damage) = open::unknown_shard(state, entries.iter().map(|e| paths::parse(&e.name))) {
        return Err(OpenError::from_recovery(path.to_owned(), RecoveryError::Damaged(vec![damage])));
    }
    let looked = each_at_once(layout.shards().collect(), |shard| {
        let place = Place { log: state.log, generation: layout.generation, shard };
        let expected = state.expected(shard, layout.generation);
        let mut opening = Opening::begin(folder, place, expected, random::bytes())
            .map_err(|source| OpenError::Manifest { path: path.to_owned(), source })?;
        let deadline = Instant::now() + IN_FLIGHT_WAIT;
        while !opening.lock().map_err(io)? {
            if Instant::now() > deadline {
                return Err(OpenError::StillInFlight(path.to_owned()));
            }
            // The kernel says nothing when a dead process's last write lands; flock has no time limit.
            std::thread::sleep(Duration::from_millis(2));
        }
        opening.look(&entries).map_err(io)
    })?;
    let mut damage: Vec<_> = looked.iter().flat_map(|l| l.examined.damage.clone()).collect();
    let earlier = state.shards().filter(|(shard, _)| !layout.shards().contains(shard)).collect();
    let looked_back = each_at_once(earlier, |(shard, generation)| {
        let place = Place { log: state.log, generation, shard };
        open::look_back(folder, place, &state.expected(shard, generation), &entries)
            .map_err(|source| OpenError::Manifest { path: path.to_owned(), source })
    })?;
    damage.extend(looked_back.into_iter().flatten());
    if !damage.is_empty() {
        return Err(OpenError::from_recovery(path.to_owned(), RecoveryError::Damaged(damage)));
    }
    Ok(looked)
}

/// Recovers all shards: opening takes as long as the slowest.
fn recover(
    path: &FsPath,
    looked: Vec<Looked<Folder>>,
    epoch: u64,
    wall_ns: i64,
    builder: &Builder,
) -> Result<Vec<Opened<Folder>>, OpenError> {
    each_at_once(looked, |looked| {
        let begin = Begin {
            incarnation: random::bytes(),
            epoch,
            wall_ns,
            first_segment_bytes: first_segment_bytes(builder),
        };
        looked.recover(begin).map_err(|source| OpenError::from_recovery(path.to_owned(), source))
    })
}

/// As many at once as there are cores; in order, or the first error.
fn each_at_once<T: Send, U: Send, E: Send>(
    items: Vec<T>,
    one: impl Fn(T) -> Result<U, E> + Sync,
) -> Result<Vec<U>, E> {
    let mut out = Vec::with_capacity(items.len());
    let mut items = items.into_iter();
    let at_once = runtime::cores().len().max(1);
    loop {
        let group: Vec<T> = items.by_ref().take(at_once).collect();
        if group.is_empty() {
            return Ok(out);
        }
        let done: Vec<Result<U, E>> = std::thread::scope(|scope| {
            let threads: Vec<_> = group.into_iter().map(|item| scope.spawn(|| one(item))).collect();
            threads.into_iter().map(|t| t.join().expect("opening a shard does not panic")).collect()
        });
        for done in done {
            out.push(done?);
        }
    }
}

/// The greatest log time in shards of earlier layouts, so that time goes on rising.
fn old_log_time(folder: &Folder, state: &LogState) -> u64 {
    let newest = |(shard, generation)| {
        let place = Place { log: state.log, generation, shard };
        let manifest = ShardManifest::read(folder, place).ok()?;
        let (&index, SegmentState::Sealed(sealed)) =
            manifest.segments.iter().rev().find(|(_, s)| matches!(s, SegmentState::Sealed(_)))?
        else {
            return None;
        };
        Some(chain::read_sealed(folder, place, index, sealed).ok()?.ok()?.0.time_max)
    };
    let live = state.layout().shards();
    state.shards().filter(|(shard, _)| !live.contains(shard)).filter_map(newest).max().unwrap_or(0)
}

/// Closes every shard of the old layout, then puts the new one on record.
fn reshard(
    folder: &Folder,
    journal: Journal<Folder>,
    state: LogState,
    shards: u32,
    builder: &Builder,
) -> Result<(Journal<Folder>, LogState), OpenError> {
    let path = &builder.path;
    let old = *state.layout();
    let looked = look_at(folder, path, &state, &old)?;
    drop(journal);
    let wall_ns = Clock::start(0).anchor().wall_ns;
    let mut ended = Vec::new();
    for mut opened in recover(path, looked, state.epoch, wall_ns, builder)? {
        let shard = opened.place.shard;
        let mut jobs = std::mem::take(&mut opened.start.to_seal);
        jobs.extend(opened.start.active.take().map(hanaper_shards::shard::seal_job));
        for job in &jobs {
            hanaper_shards::wal::seal::seal(folder, &mut opened.manifest, job).map_err(|error| {
                OpenError::Io { path: path.clone(), source: std::io::Error::other(error.to_string()) }
            })?;
        }
        for spare in std::mem::take(&mut opened.start.spares) {
            recovery::retire(folder, shard, &mut opened.manifest, spare.index, "resharded")
                .map_err(|source| OpenError::from_recovery(path.clone(), source))?;
        }
        ended.push(LogLine::Ended { shard, chain: opened.start.chain });
    }
    let (mut journal, mut state) = open_manifest(folder, builder)?;
    let mut lines = ended;
    lines.push(LogLine::Layout(Layout {
        generation: old.generation + 1,
        first_shard: old.first_shard + old.router.shards,
        router: Router { seed: old.router.seed, shards },
    }));
    append(&mut journal, &lines).map_err(|source| OpenError::Manifest { path: path.clone(), source })?;
    lines.iter().for_each(|line| state.apply(line));
    Ok((journal, state))
}
