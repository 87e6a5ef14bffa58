//! The library as an embedder uses it, on real files.

use std::sync::Arc;
use std::time::Duration;

use hanaper::read::{Kind, Reader, Select};
use hanaper::{
    AppendError, Backend, Backpressure, Driver, Log, Producer, Receipt, Ticket, WaitError, WaitFor,
};

fn builder(folder: &std::path::Path) -> hanaper::Builder {
    // Small segments, so that rotation is part of every test; no calibration, so that opening is quick.
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

#[test]
fn receipts_name_each_event_once_and_in_order_on_both_backends() {
    for backend in [Backend::Auto, Backend::Posix] {
        let folder = tempfile::tempdir().unwrap();
        let mut last: Option<Receipt> = None;
        for opening in 0..3u64 {
            let log = builder(folder.path()).backend(backend).shards(1).open().unwrap();
            assert_eq!(log.epoch(), opening + 1);
            assert!(log.recovered().is_empty(), "it was closed cleanly");
            let mut producer = log.producer().unwrap();
            for n in 0..300u32 {
                let ticket = append(&mut producer, b"key", &n.to_le_bytes().repeat(2000));
                let receipt = producer.wait(ticket, WaitFor::block()).unwrap();
                assert!(producer.is_durable(ticket));
                if let Some(last) = last {
                    assert!(
                        receipt.seq > last.seq && receipt.batch >= last.batch,
                        "{last:?} then {receipt:?}"
                    );
                }
                last = Some(receipt);
            }
            assert!(log.stats().shards[0].rotations >= 2, "several segments were used");
            let report = log.close().unwrap();
            assert!(report.notices.is_empty(), "{:?}", report.notices);
        }
    }
}

#[test]
fn many_producers_on_more_shards_than_cores() {
    let folder = tempfile::tempdir().unwrap();
    let log = Arc::new(builder(folder.path()).shards(5).open().unwrap());
    let threads: Vec<_> = (0..6u32)
        .map(|p| {
            let log = Arc::clone(&log);
            std::thread::spawn(move || {
                let mut producer = log.producer().unwrap();
                let mut tickets = Vec::new();
                for n in 0..2000u32 {
                    let key = [p as u8, (n % 17) as u8];
                    tickets.push(append(&mut producer, &key, &vec![p as u8; (n % 700) as usize]));
                }
                producer.flush().unwrap();
                let mut seen = std::collections::HashSet::new();
                for ticket in tickets.iter().rev().take(100) {
                    let receipt = producer.wait(*ticket, WaitFor::block()).unwrap();
                    assert!(seen.insert((receipt.shard, receipt.seq)), "one sequence for two events");
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|t| t.join().unwrap());
    let log = Arc::into_inner(log).unwrap();
    let durable: u64 = log.stats().shards.iter().map(|s| s.durable).sum();
    assert!(durable >= 12_000);
    log.close().unwrap();
}

#[test]
fn an_abandoned_log_is_recovered_and_keeps_what_was_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let mut last_seq = None;
    for _ in 0..4 {
        let log = builder(folder.path()).shards(1).open().unwrap();
        let mut producer = log.producer().unwrap();
        for n in 0..200u32 {
            let ticket = append(&mut producer, b"k", &n.to_le_bytes());
            let receipt = producer.wait(ticket, WaitFor::block()).unwrap();
            assert!(last_seq < Some(receipt.seq), "a sequence was given out twice");
            last_seq = Some(receipt.seq);
        }
        drop(log);
        let ticket = producer.append(b"k", b"too late");
        assert!(ticket.is_err(), "a log that is gone takes nothing");
    }
    let log = builder(folder.path()).open().unwrap();
    assert_eq!(log.recovered().len(), 1);
    log.close().unwrap();
}

#[test]
fn closing_refuses_later_appends_and_settles_every_ticket() {
    let folder = tempfile::tempdir().unwrap();
    let log = builder(folder.path()).shards(2).open().unwrap();
    let mut producer = log.producer().unwrap();
    let tickets: Vec<Ticket> = (0..50u32).map(|n| append(&mut producer, &n.to_le_bytes(), b"x")).collect();
    log.close().unwrap();
    for ticket in tickets {
        producer.wait(ticket, WaitFor::at_most(Duration::from_secs(5))).unwrap();
    }
    assert!(matches!(producer.append(b"a", b"b"), Err(AppendError::Stopped(_))));
}

#[test]
fn an_idle_log_writes_one_stamp_and_then_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let log = builder(folder.path()).shards(1).open().unwrap();
    let mut producer = log.producer().unwrap();
    let stamps = |log: &Log| log.stats().shards[0].stamps;
    let wait_for = |count: u64| {
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while stamps(&log) < count && std::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
    };
    // The words of the opening have theirs.
    wait_for(1);
    let ticket = append(&mut producer, b"k", b"v");
    producer.wait(ticket, WaitFor::block()).unwrap();
    wait_for(2);
    let commits = log.stats().shards[0].commits;
    // Three times as long as a stamp is waited for: a shard that went on stamping would show.
    std::thread::sleep(Duration::from_millis(40));
    assert_eq!(stamps(&log), 2);
    assert!(log.stats().shards[0].commits <= commits + 1);
    log.close().unwrap();
}

#[test]
fn a_log_with_other_shards_is_refused_or_resharded() {
    let folder = tempfile::tempdir().unwrap();
    let log = builder(folder.path()).shards(2).open().unwrap();
    let mut producer = log.producer().unwrap();
    for n in 0..100u32 {
        append(&mut producer, &n.to_le_bytes(), b"before");
    }
    log.close().unwrap();
    let refused = builder(folder.path()).shards(3).open().err().unwrap();
    assert_eq!(refused.exit_code(), 2, "{refused}");
    let log = builder(folder.path()).shards(3).reshard(true).open().unwrap();
    assert_eq!(log.shards(), 3);
    let mut producer = log.producer().unwrap();
    let ticket = append(&mut producer, b"k", b"after");
    let receipt = producer.wait(ticket, WaitFor::block()).unwrap();
    assert!(receipt.shard >= 2, "shard numbers are never reused");
    log.close().unwrap();
    assert_eq!(builder(folder.path()).open().unwrap().shards(), 3);
}

#[test]
fn a_second_writer_is_told_who_has_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let log = builder(folder.path()).shards(1).open().unwrap();
    let refused = builder(folder.path()).open().err().unwrap();
    assert_eq!(refused.exit_code(), 4);
    assert!(refused.to_string().contains(&std::process::id().to_string()), "{refused}");
    log.close().unwrap();
    builder(folder.path()).open().unwrap().close().unwrap();
}

#[test]
fn wrong_settings_name_themselves() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let refused = |b: hanaper::Builder, name: &str| {
        let error = b.open().err().unwrap();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains(name), "{error}");
    };
    refused(builder(&path).shards(0), "shards");
    refused(builder(&path).shards(257), "shards");
    refused(builder(&path).segment_bytes(12345), "segment_bytes");
    refused(builder(&path).lane_bytes(1000), "lane_bytes");
    refused(builder(&path).payload_bytes_max(17 << 20), "payload_bytes_max");
    // Also where it is what nobody would have had to say.
    let one_mib = builder(&path).segment_bytes(1 << 20).payload_bytes_max(1 << 20);
    refused(one_mib, "make it 131072 or less, or segment_bytes 8388608 at least");
    refused(builder(&path).create(false), "no such log");
    assert!(!path.exists(), "a refused open leaves nothing");
    std::fs::write(folder.path().join("letter.txt"), "dear").unwrap();
    refused(builder(folder.path()), "not a log");
}

#[test]
fn large_records_go_alone_and_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let log = builder(folder.path()).segment_bytes(16 << 20).shards(1).open().unwrap();
    let mut producer = log.producer().unwrap();
    let too_large = producer.append(b"k", &vec![0; (1 << 20) + 1]);
    assert!(matches!(too_large, Err(AppendError::TooLarge { .. })), "{too_large:?}");
    for n in 0..20u8 {
        let ticket = append(&mut producer, b"k", &vec![n; 1 << 20]);
        append(&mut producer, b"k", b"small");
        producer.wait(ticket, WaitFor::block()).unwrap();
    }
    producer.flush().unwrap();
    log.close().unwrap();
}

/// The lane is smaller than what is appended, and nobody waits: backpressure, counted and put on record.
#[test]
fn refused_appends_are_counted_and_nothing_accepted_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let log = builder(folder.path()).shards(1).lane_bytes(4096).open().unwrap();
    let mut producer = log.producer().unwrap();
    let (mut accepted, mut refused) = (Vec::new(), 0);
    while refused < 10 {
        match producer.append(b"k", &[7; 512]) {
            Ok(ticket) => accepted.push(ticket),
            Err(AppendError::Backpressure(Backpressure::LaneFull | Backpressure::NoSpace)) => refused += 1,
            Err(error) => panic!("{error}"),
        }
    }
    producer.flush().unwrap();
    assert!(accepted.iter().all(|t| producer.is_durable(*t)));
    log.close().unwrap();
    // And that is on record.
    let select = Select { control: true, ..Select::default() };
    let records = Reader::open(folder.path()).unwrap().replay(select).map(Result::unwrap);
    let words = records.map(|r| String::from_utf8_lossy(&r.payload).into_owned());
    let counts = words.filter_map(|w| w.strip_prefix("refused producer=1 count=")?.parse::<u64>().ok());
    assert_eq!(counts.sum::<u64>(), refused);
}

#[test]
fn a_wait_has_its_time_limit() {
    let folder = tempfile::tempdir().unwrap();
    let log = builder(folder.path()).shards(1).open().unwrap();
    let mut producer = log.producer().unwrap();
    let ticket = append(&mut producer, b"k", b"v");
    match producer.wait(ticket, WaitFor::at_most(Duration::ZERO)) {
        Ok(_) | Err(WaitError::TimedOut) => {}
        Err(error) => panic!("{error}"),
    }
    producer.wait(ticket, WaitFor::block()).unwrap();
    log.close().unwrap();
}

#[test]
fn the_glommio_driver_is_there_or_says_that_it_is_not() {
    let folder = tempfile::tempdir().unwrap();
    match builder(folder.path()).driver(Driver::Glommio).shards(1).open() {
        Ok(log) => {
            let mut producer = log.producer().unwrap();
            let ticket = append(&mut producer, b"k", b"v");
            producer.wait(ticket, WaitFor::block()).unwrap();
            log.close().unwrap();
        }
        Err(error) => assert!(error.to_string().contains("glommio"), "{error}"),
    }
}

/// What looks like a spare may be a segment that has lost its front, or all of it.
#[test]
fn a_segment_that_was_begun_is_no_spare_when_it_is_blank() {
    for zeroed in [4096, 512 << 10, 1 << 20] {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().join("log");
        let log = builder(&folder).shards(1).open().unwrap();
        let mut producer = log.producer().unwrap();
        for _ in 0..30 {
            let ticket = append(&mut producer, b"k", &[7; 20_000]);
            producer.wait(ticket, WaitFor::block()).unwrap();
        }
        let on_record = || {
            let bytes = std::fs::read(folder.join("shard-0000.manifest")).unwrap();
            bytes.windows(13).any(|piece| piece == b"begun index=0")
        };
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while !on_record() {
            assert!(std::time::Instant::now() < deadline, "the segment is never on record as begun");
            std::thread::yield_now();
        }
        // As a crash would.
        drop((producer, log));
        let file = folder.join("shard-0000-0000000000.segment");
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[..zeroed].fill(0);
        std::fs::write(&file, &bytes).unwrap();
        let mut findings = Vec::new();
        hanaper::read::verify::verify(&folder, &Default::default(), &mut |f| findings.push(f)).unwrap();
        assert!(findings.iter().any(|f| f.fails), "{zeroed} bytes of zeros: {findings:?}");
        let refused = builder(&folder).open().map(|_| ()).unwrap_err();
        assert_eq!(refused.kind(), hanaper::ErrorKind::Integrity, "{refused}");
    }
}

/// A shard's thread may begin after the first event was stamped; what opening says still comes first.
#[test]
fn what_opening_says_comes_before_what_came_after() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path().join("log");
    for round in 0..8u32 {
        let log = builder(&folder).shards(4).open().unwrap();
        let mut producer = log.producer().unwrap();
        for n in 0..32u32 {
            append(&mut producer, &n.to_le_bytes(), &round.to_le_bytes());
        }
        drop(producer);
        log.close().unwrap();
    }
    let reader = Reader::open(&folder).unwrap();
    let mut openings = [0u32; 4];
    let mut events = 0;
    for record in reader.replay(Select { control: true, ..Select::default() }) {
        let record = record.unwrap();
        match record.kind {
            Kind::Control => {
                openings[record.shard as usize] += u32::from(record.payload.starts_with(b"opened "));
            }
            Kind::Data => {
                let round = u32::from_le_bytes(record.payload[..].try_into().unwrap());
                assert_eq!(openings[record.shard as usize], round + 1, "an event comes before its opening");
                events += 1;
            }
        }
    }
    assert_eq!((openings, events), ([8; 4], 8 * 32));
}

/// An opening reads the last sealed segment only; that an older one was cut short it sees all the same.
#[test]
fn an_older_segment_of_another_length_is_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path().join("log");
    for _ in 0..3 {
        let log = builder(&folder).shards(1).open().unwrap();
        let mut producer = log.producer().unwrap();
        append(&mut producer, b"key", b"event");
        drop(producer);
        log.close().unwrap();
    }
    let first = folder.join("shard-0000-0000000000.segment");
    let whole = std::fs::read(&first).unwrap();
    for bytes in [0, 10, whole.len() - 1, whole.len() + 4096] {
        let mut altered = whole.clone();
        altered.resize(bytes, 0);
        std::fs::write(&first, altered).unwrap();
        let error = builder(&folder).open().map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("LENGTH shard-0000-0000000000.segment"), "{bytes}: {error}");
    }
    std::fs::write(&first, &whole).unwrap();
    builder(&folder).open().unwrap().close().unwrap();
    std::fs::write(&first, b"").unwrap();
    hanaper::recover::write(&folder, hanaper::recover::Mode::Conservative).unwrap();
    builder(&folder).open().unwrap().close().unwrap();
}

/// A segment has its whole length before it is used, and keeps it until it is sealed. Shorter than that it has
/// lost what was in it, and no crash does that.
#[test]
fn an_unsealed_segment_of_another_length_is_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path().join("log");
    let log = builder(&folder).shards(1).open().unwrap();
    let mut producer = log.producer().unwrap();
    for _ in 0..30 {
        let ticket = append(&mut producer, b"key", &[7; 5000]);
        producer.wait(ticket, WaitFor::block()).unwrap();
    }
    drop(producer);
    drop(log);
    let first = folder.join("shard-0000-0000000000.segment");
    let whole = std::fs::read(&first).unwrap();
    for bytes in
        [0u64, 4096, 8192, 20_000, 65_536, whole.len() as u64 - 4096, whole.len() as u64 + 1, 40 << 30]
    {
        std::fs::File::options().write(true).open(&first).unwrap().set_len(bytes).unwrap();
        let error = builder(&folder).open().map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), hanaper::ErrorKind::Integrity, "{bytes} bytes: {error}");
        std::fs::write(&first, &whole).unwrap();
    }
    builder(&folder).open().unwrap().close().unwrap();
}

#[test]
fn a_lock_that_is_a_link_is_not_followed() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path().join("log");
    builder(&folder).open().unwrap().close().unwrap();
    let target = folder.join("shard-0000.manifest");
    let before = std::fs::read(&target).unwrap();
    std::fs::remove_file(folder.join("lock")).unwrap();
    std::os::unix::fs::symlink(&target, folder.join("lock")).unwrap();
    assert!(builder(&folder).open().is_err());
    assert!(std::fs::read(&target).unwrap() == before);
}
