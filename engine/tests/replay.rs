//! What goes in through the engine comes out through the reader: all, once, in order, over a live log too.

use std::time::Duration;

use hanaper::read::{Kind, Reader, Select};
use hanaper::{AppendError, Log, Producer, WaitFor};

fn builder(folder: &std::path::Path) -> hanaper::Builder {
    Log::builder(folder)
        .state(concat!(env!("CARGO_TARGET_TMPDIR"), "/state"))
        .segment_bytes(1 << 20)
        .lane_bytes(64 << 10)
        .calibrate(false)
        .pin(false)
}

fn append(producer: &mut Producer, key: &[u8], payload: &[u8]) {
    loop {
        match producer.append(key, payload) {
            Ok(_) => return,
            Err(AppendError::Backpressure(_)) => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
}

fn payloads(folder: &std::path::Path, select: Select) -> Vec<Vec<u8>> {
    let reader = Reader::open(folder).unwrap();
    reader.replay(select).map(|r| r.unwrap()).filter(|r| r.kind == Kind::Data).map(|r| r.payload).collect()
}

fn lines(count: usize) -> Vec<Vec<u8>> {
    (0..count).map(|n| format!("line {n} {}", "x".repeat(n * 7 % 400)).into_bytes()).collect()
}

#[test]
fn one_producers_events_come_back_in_order_whatever_the_shards() {
    for shards in [1, 2, 4] {
        let folder = tempfile::tempdir().unwrap();
        let lines = lines(20_000);
        for half in lines.chunks(lines.len() / 2) {
            let log = builder(folder.path()).shards(shards).open().unwrap();
            let mut producer = log.producer().unwrap();
            for line in half {
                append(&mut producer, &line[..line.len().min(9)], line);
            }
            log.close().unwrap();
        }
        assert!(payloads(folder.path(), Select::default()) == lines, "{shards} shards");
    }
}

#[test]
fn a_log_that_was_abandoned_is_read_as_recovery_would_leave_it() {
    let folder = tempfile::tempdir().unwrap();
    let log = builder(folder.path()).shards(2).open().unwrap();
    let mut producer = log.producer().unwrap();
    let lines = lines(3000);
    for line in &lines {
        append(&mut producer, line, line);
    }
    producer.flush().unwrap();
    drop(log);
    assert!(payloads(folder.path(), Select::default()) == lines);
    builder(folder.path()).open().unwrap().close().unwrap();
    assert!(payloads(folder.path(), Select::default()) == lines);
}

/// What is acknowledged shows up while the log is being written, at the latest after its stamp.
#[test]
fn a_live_log_shows_what_is_durable_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let log = builder(folder.path()).shards(2).open().unwrap();
    let mut producer = log.producer().unwrap();
    let lines = lines(500);
    for (n, line) in lines.iter().enumerate() {
        append(&mut producer, line, line);
        if n % 50 == 0 {
            let seen = payloads(folder.path(), Select::default());
            // Each shard shows a prefix of its own events; so all in all a part of them, in order.
            let mut rest = lines[..=n].iter();
            assert!(
                seen.iter().all(|s| rest.any(|l| l == s)),
                "a record that was not appended, or out of order"
            );
        }
    }
    producer.flush().unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while payloads(folder.path(), Select::default()) != lines {
        assert!(std::time::Instant::now() < deadline, "acknowledged events do not show up");
    }
    log.close().unwrap();
}

#[test]
fn what_happens_to_the_log_is_in_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let log = builder(folder.path()).shards(1).open().unwrap();
    let mut producer = log.producer().unwrap();
    let ticket = producer.append(b"k", b"v").unwrap();
    producer.wait(ticket, WaitFor::block()).unwrap();
    drop(log);
    builder(folder.path()).open().unwrap().close().unwrap();
    let reader = Reader::open(folder.path()).unwrap();
    let words: Vec<String> = reader
        .replay(Select { control: true, ..Select::default() })
        .map(|r| r.unwrap())
        .filter(|r| r.kind == Kind::Control)
        .map(|r| String::from_utf8(r.payload).unwrap())
        .collect();
    let first: Vec<&str> = words.iter().map(|w| w.split(' ').next().unwrap()).collect();
    assert_eq!(first, ["opened", "recovered", "opened", "closed"], "{words:?}");
}

#[test]
fn a_window_of_time_gives_just_its_events() {
    let folder = tempfile::tempdir().unwrap();
    let log = builder(folder.path()).shards(2).open().unwrap();
    let mut producer = log.producer().unwrap();
    for line in lines(5000) {
        append(&mut producer, &line, &line);
    }
    log.close().unwrap();
    let reader = Reader::open(folder.path()).unwrap();
    let times: Vec<i64> = reader.replay(Select::default()).map(|r| r.unwrap().wall_ns).collect();
    let (from, to) = (times[1000], times[3000]);
    let select = || Select { from_wall_ns: Some(from), to_wall_ns: Some(to), ..Select::default() };
    let got: Vec<i64> = reader.replay(select()).map(|r| r.unwrap().wall_ns).collect();
    let want: Vec<i64> = times.iter().copied().filter(|t| (from..to).contains(t)).collect();
    assert!(got == want, "{} against {}", got.len(), want.len());
}
