//! Readers beside an engine at work: no false alarm, no ghost, and what is mended opens again.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hanaper::read::verify::{Finding, Report, VerifyOptions, verify};
use hanaper::read::{Kind, Reader, Select, inspect, inspect_segment};
use hanaper::recover::{self, Mode};
use hanaper::{AppendError, Backend, ErrorKind, Log, Producer, Ticket, WaitFor};
use hanaper_shards::manifest::hex;
use hanaper_shards::segment::paths;

fn builder(folder: &Path) -> hanaper::Builder {
    Log::builder(folder)
        .state(concat!(env!("CARGO_TARGET_TMPDIR"), "/state"))
        .segment_bytes(1 << 20)
        .lane_bytes(64 << 10)
        .calibrate(false)
        .pin(false)
}

fn append(producer: &mut Producer, key: &[u8], payload: &[u8]) -> Ticket {
    loop {
        match producer.append(key, payload) {
            Ok(ticket) => return ticket,
            Err(AppendError::Backpressure(_)) => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
}

fn check(path: &Path) -> (Report, Vec<Finding>) {
    let mut findings = Vec::new();
    let report = verify(path, &VerifyOptions::default(), &mut |f| findings.push(f)).unwrap();
    (report, findings)
}

/// Segments are begun, sealed and cut to length under the reader's hands. What a false alarm costs is
/// that nobody believes the next one.
#[test]
fn no_false_alarm_over_a_log_that_rotates() {
    for backend in [Backend::Auto, Backend::Posix] {
        let folder = tempfile::tempdir().unwrap();
        let log = builder(folder.path()).shards(2).backend(backend).open().unwrap();
        let stop = AtomicBool::new(false);
        let durable = AtomicU64::new(0);
        let mut looks = 0;
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut producer = log.producer().unwrap();
                let mut n = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    let mut last = None;
                    for _ in 0..200 {
                        let payload = [&n.to_le_bytes()[..], &[b'x'; 900]].concat();
                        last = Some(append(&mut producer, &n.to_le_bytes(), &payload));
                        n += 1;
                    }
                    producer.wait(last.unwrap(), WaitFor::block()).unwrap();
                    durable.store(n, Ordering::Release);
                }
                n
            });
            // Also when a look panics: the scope waits for the writer.
            let _stops = StopsOnDrop(&stop);
            while looks < 8 || durable.load(Ordering::Acquire) < 15_000 {
                let (report, findings) = check(folder.path());
                let bad: Vec<_> = findings.iter().filter(|f| f.fails).collect();
                assert!(bad.is_empty(), "look {looks}: {bad:?}");
                assert!(report.live);
                let mut last = [None; 2];
                for record in Reader::open(folder.path()).unwrap().replay(Select::default()) {
                    let record = record.unwrap();
                    let n = u64::from_le_bytes(record.payload[..8].try_into().unwrap());
                    assert_eq!(n, record.producer_seq);
                    let before: &mut Option<u64> = &mut last[record.shard as usize];
                    assert!(before.is_none_or(|b| b < n), "out of order");
                    *before = Some(n);
                }
                inspect(folder.path()).unwrap();
                looks += 1;
            }
            stop.store(true, Ordering::Relaxed);
            let written = writer.join().unwrap();
            assert!(written >= 15_000);
        });
        log.close().unwrap();
        let (report, findings) = check(folder.path());
        assert_eq!((findings, report.live, report.unstamped_batches), (vec![], false, 0));
    }
}

/// Restarts, abandoned logs, another number of shards: all of it honest, none of it a failure.
#[test]
fn an_eventful_life_passes() {
    let folder = tempfile::tempdir().unwrap();
    let mut acks = String::new();
    let mut count = 0;
    for life in 0..8u32 {
        let shards = if life < 5 { 2 } else { 3 };
        let log = builder(folder.path()).shards(shards).reshard(true).open().unwrap();
        let mut producer = log.producer().unwrap();
        let tickets: Vec<Ticket> = (0..700u32)
            .map(|n| append(&mut producer, &n.to_le_bytes(), &vec![b'a' + life as u8; n as usize % 3000]))
            .collect();
        for ticket in tickets {
            let r = producer.wait(ticket, WaitFor::block()).unwrap();
            acks.push_str(&format!(
                "{{\"shard\":{},\"seq\":{},\"batch\":\"{}\"}}\n",
                r.shard,
                r.seq,
                hex(&r.digest)
            ));
            count += 1;
        }
        match life % 3 {
            0 => drop(producer),
            _ => {
                // In flight, and never waited for.
                for n in 0..50u32 {
                    append(&mut producer, &n.to_le_bytes(), b"late");
                }
            }
        }
        if life % 2 == 0 {
            drop(log.close())
        } else {
            drop(log)
        }
        let file = folder.path().with_extension("acks");
        std::fs::write(&file, &acks).unwrap();
        let mut findings = Vec::new();
        let options = VerifyOptions { acks: Some(file.clone()), ..VerifyOptions::default() };
        let report = verify(folder.path(), &options, &mut |f| findings.push(f)).unwrap();
        std::fs::remove_file(file).unwrap();
        let bad: Vec<_> = findings.iter().filter(|f| f.fails).collect();
        assert!(bad.is_empty(), "life {life}: {bad:?}");
        assert_eq!(report.acks, count);
        assert_eq!(report.shards, if life < 5 { 2 } else { 5 });
        let plan = recover::plan(folder.path(), Mode::Conservative).unwrap();
        assert!(plan.steps.iter().all(|s| !s.loses), "{plan:?}");
    }
    let records = Reader::open(folder.path()).unwrap().replay(Select::default());
    let data = records.map(|r| r.unwrap()).filter(|r| r.kind == Kind::Data && r.payload != b"late").count();
    assert_eq!(data, 8 * 700);
}

/// What `recover --write` puts on record lets the engine open the log, and what it then writes verifies.
#[test]
fn a_mended_log_opens_goes_on_and_verifies() {
    for what in ["active batch", "sealed batch", "first sealed", "last sealed", "short last sealed"] {
        let folder = tempfile::tempdir().unwrap();
        let log = builder(folder.path()).shards(1).open().unwrap();
        let mut producer = log.producer().unwrap();
        for n in 0..4000u32 {
            let ticket = append(&mut producer, b"k", &[&n.to_le_bytes()[..], &[b'x'; 900]].concat());
            if n % 100 == 99 {
                producer.wait(ticket, WaitFor::block()).unwrap();
            }
        }
        drop(producer);
        if what == "active batch" {
            drop(log)
        } else {
            drop(log.close().unwrap())
        }
        let state = inspect(folder.path()).unwrap().shards.remove(0);
        let sealed: Vec<_> = state.segments.iter().filter(|s| s.state == "sealed").collect();
        let last = sealed.last().unwrap();
        let file = |index| folder.path().join(paths::segment(0, index));
        let flip = |path: &Path, at: u64| {
            let mut bytes = std::fs::read(path).unwrap();
            bytes[at as usize] ^= 1;
            std::fs::write(path, bytes).unwrap();
        };
        match what {
            // The first batch with events in it: what is said of the log itself is not counted below.
            "active batch" | "sealed batch" => {
                let wanted = if what == "active batch" { "unsealed" } else { "sealed" };
                let mut segments = state.segments.iter().filter(|s| s.state == wanted);
                let (index, at) = segments
                    .find_map(|s| {
                        let batches = inspect_segment(file(s.index)).unwrap();
                        let found = batches.iter().find(|b| b.records > 3)?;
                        (Some(found.number) < state.durable_batch).then_some((s.index, found.offset))
                    })
                    .unwrap();
                flip(&file(index), at + 300);
            }
            "first sealed" => std::fs::remove_file(file(sealed[0].index)).unwrap(),
            "last sealed" => std::fs::remove_file(file(last.index)).unwrap(),
            _ => {
                let to = std::fs::OpenOptions::new().write(true).open(file(last.index)).unwrap();
                to.set_len(last.end / 2 / 4096 * 4096).unwrap();
            }
        }
        assert!(check(folder.path()).0.failures > 0, "{what}");
        let whole = || {
            Reader::open(folder.path()).unwrap().replay(Select::default()).take_while(Result::is_ok).count()
        };
        if what != "sealed batch" {
            let refused = builder(folder.path()).open();
            assert_eq!(refused.err().map(|e| e.kind()), Some(ErrorKind::Integrity), "{what}");
        }
        let done = recover::write(folder.path(), Mode::Conservative).unwrap();
        assert!(done.steps.iter().any(|s| s.loses), "{what}");
        let before = whole();
        assert!(before > 1000 && before < 4000, "{what}: {before}");
        for life in 0..2 {
            let log = builder(folder.path()).open().unwrap();
            let mut producer = log.producer().unwrap();
            let ticket = append(&mut producer, b"k", b"after");
            producer.wait(ticket, WaitFor::block()).unwrap();
            if life == 0 {
                drop(log)
            } else {
                drop(log.close().unwrap())
            }
            let (report, findings) = check(folder.path());
            let bad: Vec<_> = findings.iter().filter(|f| f.fails).collect();
            assert!(bad.is_empty() && report.losses > 0, "{what}: {bad:?}");
        }
        assert_eq!(whole(), before + 2, "{what}");
    }
}

/// A log that nobody wrote to is a log, and whole.
#[test]
fn a_fresh_log_passes() {
    let folder = tempfile::tempdir().unwrap();
    let log = builder(folder.path()).shards(3).open().unwrap();
    let (report, findings) = check(folder.path());
    assert!(report.live && findings.iter().all(|f| !f.fails), "{findings:?}");
    let owner = inspect(folder.path()).unwrap().owner_pid;
    assert_eq!(owner, Some(std::process::id()));
    log.close().unwrap();
    assert_eq!(check(folder.path()).1, []);
    assert_eq!(inspect(folder.path()).unwrap().owner_pid, None);
}

/// Readers ask whether somebody has the log open, by a shared lock for a moment. That is no reason to refuse
/// an opening.
#[test]
fn readers_do_not_keep_an_owner_out() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path().join("log");
    let open = || {
        hanaper::Log::builder(&folder)
            .state(concat!(env!("CARGO_TARGET_TMPDIR"), "/state"))
            .segment_bytes(1 << 20)
            .calibrate(false)
            .pin(false)
            .open()
    };
    open().unwrap().close().unwrap();
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let lock = std::fs::File::open(folder.join("lock")).unwrap();
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                // Asked far more often than readers ask, and for as short a time.
                if lock.try_lock_shared().is_ok() {
                    lock.unlock().unwrap();
                }
            }
        });
        let refused = (0..20).find_map(|_| match open() {
            Ok(log) => log.close().err().map(|e| e.to_string()),
            Err(error) => Some(error.to_string()),
        });
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(refused, None);
    });
}

/// Ends a writer whose reader is over, however that ended.
struct StopsOnDrop<'a>(&'a AtomicBool);

impl Drop for StopsOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
