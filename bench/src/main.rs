//! `hanaper bench`: load on a log and the bare system calls, in turns.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::{Parser, ValueEnum};
use hanaper::{Backend, Driver, Log, Snapshot};
use hanaper_bench::load::{Crew, Load};
use hanaper_bench::raw::{Raw, Way};
use hanaper_bench::report::{Report, Round};
use hanaper_bench::{median, usage};
use hanaper_shards::clock::Clock;

/// Counts the allocations of each thread.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: passes every call on to the system's allocator, unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Measures a log, and beside it the bare system calls that a commit is made of.
///
/// Rounds of the one and of the other take turns, and figures are medians over rounds, so that other
/// work on the machine strikes both alike. With --in-flight 1 each producer waits for each event
/// (closed loop); with more it keeps so many on their way.
#[derive(Debug, Parser)]
#[command(name = "hanaper-bench", version)]
struct Args {
    /// Make checkpoints, as a log does by default.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    checkpoints: bool,

    /// Time under load in all, such as 5s or 800ms.
    #[arg(long, default_value = "5s", value_parser = duration)]
    duration: Duration,
    /// Threads that append.
    #[arg(long, default_value_t = 1)]
    producers: usize,
    /// Payload of an event in bytes.
    #[arg(long, default_value_t = 256)]
    event_size: usize,
    /// Shards.
    #[arg(long, default_value_t = 1)]
    shards: u32,
    /// Events that each producer keeps in flight.
    #[arg(long, default_value_t = 1)]
    in_flight: usize,
    /// How producers wait.
    #[arg(long, value_enum, default_value_t = Waiting::Block)]
    wait: Waiting,
    /// What hosts the shards.
    #[arg(long, value_enum, default_value_t = Host::Threads)]
    driver: Host,
    /// The commit path.
    #[arg(long, value_enum, default_value_t = Commit::Auto)]
    backend: Commit,
    /// Rounds that the time is cut into; one more comes first, to warm up.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Folder of the log, which must not exist and is left behind. Default: one that is removed, here.
    #[arg(long, value_name = "DIR")]
    log: Option<PathBuf>,
    /// Lane size in bytes, a power of two. Default: what the events in flight need, 262144 at least.
    #[arg(long, value_name = "BYTES")]
    lane_bytes: Option<usize>,
    /// How long an idle driver looks for more before it sleeps. Default: the log's.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    driver_spin: Option<Duration>,
    /// Commits that a shard may have in flight. Default: the log's.
    #[arg(long, value_name = "N")]
    depth: Option<usize>,
    /// Whether driver threads are pinned to cores.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    pin: bool,
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Waiting {
    Spin,
    Block,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Host {
    Threads,
    Glommio,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Commit {
    Auto,
    Uring,
    Posix,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    ensure!(
        args.producers > 0 && args.in_flight > 0 && args.rounds > 0,
        "producers, in-flight and rounds begin at 1"
    );
    let here = tempfile::Builder::new().prefix("hanaper-bench-").tempdir_in(match &args.log {
        Some(log) => log.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(".".as_ref()),
        None => ".".as_ref(),
    })?;
    let folder = args.log.clone().unwrap_or_else(|| here.path().join("log"));
    ensure!(!folder.exists(), "{} is there already; a bench makes its own log", folder.display());
    let log = open(&args, folder)?;
    let report = measure(&args, &log, here.path())?;
    log.close()?;
    match args.json {
        true => println!("{}", report.json()),
        false => print!("{}", report.text()),
    }
    Ok(())
}

fn open(args: &Args, folder: PathBuf) -> anyhow::Result<Log> {
    let in_flight_bytes = args.in_flight * (args.event_size + 64);
    let lane_bytes = args.lane_bytes.unwrap_or((2 * in_flight_bytes).next_power_of_two().max(256 << 10));
    let state = folder.with_extension("keys");
    let mut builder = Log::builder(folder)
        .state(state)
        .checkpoints(args.checkpoints)
        .shards(args.shards)
        .lane_bytes(lane_bytes)
        .producers_max(args.producers as u32 + 1)
        .pin(args.pin)
        .driver(match args.driver {
            Host::Threads => Driver::Threads,
            Host::Glommio => Driver::Glommio,
        })
        .backend(match args.backend {
            Commit::Auto => Backend::Auto,
            Commit::Uring => Backend::Uring,
            Commit::Posix => Backend::Posix,
        });
    if let Some(spin) = args.driver_spin {
        builder = builder.spin(spin);
    }
    if let Some(depth) = args.depth {
        builder = builder.pipeline(depth, 64 << 10);
    }
    Ok(builder.open()?)
}

fn measure(args: &Args, log: &Log, folder: &std::path::Path) -> anyhow::Result<Report> {
    let load = Load {
        producers: args.producers,
        event_bytes: args.event_size,
        in_flight: args.in_flight,
        spin: matches!(args.wait, Waiting::Spin),
    };
    let mut crew = Crew::new(log, load)?;
    let one = args.duration / args.rounds as u32;
    let load_before = usage::load_average();
    // Makes lanes and first segments, and tells how long a commit is.
    let before = sums(&log.stats());
    crew.round(one.min(Duration::from_secs(1)), || ALLOCATIONS.get())?;
    let after = sums(&log.stats());
    let typical = (after.0 - before.0) / (after.1 - before.1).max(1);
    // To the nearest: the header of a first segment is no part of a typical commit.
    let raw_bytes = ((typical as usize + 2048) / 4096 * 4096).clamp(4096, 1 << 20);
    let mut raw = Raw::new(folder, raw_bytes).context("the file of the bare system calls")?;
    let mut rounds = Vec::new();
    for _ in 0..args.rounds {
        let before = sums(&log.stats());
        let measured = crew.round(one, || ALLOCATIONS.get())?;
        let after = sums(&log.stats());
        let mut yardsticks = Vec::new();
        for way in Way::ALL {
            let timed = raw.time(way, (one / 4).max(Duration::from_millis(50)))?;
            yardsticks.extend(timed.map(|latencies| (way, latencies)));
        }
        rounds.push(Round {
            measured,
            raw: yardsticks,
            bytes: after.0 - before.0,
            commits: after.1 - before.1,
        });
    }
    let calls = crew.share_with_calls(2_000)?;
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let waiting = if load.spin { "spinning" } else { "blocking" };
    let stats = log.stats();
    let sum = |of: fn(&hanaper::ShardStats) -> u64| stats.shards.iter().map(of).sum::<u64>();
    let mut about = vec![
        (
            "load",
            format!(
                "{} producers, {} B events, {} in flight each, {waiting}; {} shards on {:?}",
                load.producers, load.event_bytes, load.in_flight, args.shards, args.driver
            ),
        ),
        ("path", log.primitive().to_owned()),
        (
            "machine",
            format!(
                "{cores} cores, Linux {}, load average {load_before:.2} before and {:.2} after",
                usage::kernel(),
                usage::load_average()
            ),
        ),
        ("rounds", format!("{} of {:?}, medians over them", args.rounds, one)),
        ("segments", format!("{} begun, {} stalls", sum(|s| s.rotations), sum(|s| s.stalls))),
    ];
    about.extend(log.notices().iter().map(|notice| ("notice", notice.clone())));
    Ok(Report { about, rounds, raw_bytes, clock_ns: clock_ns(), calls })
}

fn sums(stats: &Snapshot) -> (u64, u64) {
    stats.shards.iter().fold((0, 0), |(bytes, commits), s| (bytes + s.bytes, commits + s.commits))
}

/// What two readings of the clock one after the other are apart.
fn clock_ns() -> f64 {
    let clock = Clock::start(0);
    let runs = (0..9).map(|_| {
        let begun = clock.now();
        for _ in 0..10_000 {
            std::hint::black_box(clock.now());
        }
        (clock.now() - begun) as f64 / 10_000.0
    });
    median(runs)
}

fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().map_err(|_| format!("{text:?} is not a time such as 5s"))?;
    let seconds = match unit {
        "s" => number,
        "ms" => number / 1e3,
        "us" | "µs" => number / 1e6,
        "m" | "min" => number * 60.0,
        _ => return Err(format!("{text:?} needs a unit: us, ms, s or m")),
    };
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}
