//! The same life of a log on every driver: what hosts the shards must not show.

use std::time::Duration;

use hanaper::{AppendError, Backend, Builder, Driver, Log, WaitFor};

const SEGMENT_BYTES: u64 = 1 << 20;

fn builder(folder: &std::path::Path, driver: Driver, backend: Backend) -> Builder {
    Log::builder(folder)
        .state(concat!(env!("CARGO_TARGET_TMPDIR"), "/state"))
        .shards(2)
        .segment_bytes(SEGMENT_BYTES)
        .driver(driver)
        .backend(backend)
        .calibrate(false)
}

/// Appends some megabytes from several threads and waits for each event. Segments must be prepared
/// and sealed beside it, or the appends end in backpressure for ever.
fn ingest(log: &Log, threads: u32, events: u64) {
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let mut producer = log.producer().unwrap();
            scope.spawn(move || {
                let payload = [thread as u8; 2000];
                let mut last = None;
                for event in 0..events {
                    let key = (event % 7).to_le_bytes();
                    match producer.append_within(&key, &payload, Duration::from_secs(60)) {
                        Ok(ticket) => last = Some(ticket),
                        Err(AppendError::Backpressure(why)) => panic!("no relief in a minute: {why}"),
                        Err(other) => panic!("{other}"),
                    }
                }
                producer.flush().unwrap();
                let receipt = producer.wait(last.unwrap(), WaitFor::block()).unwrap();
                assert!(producer.is_durable(last.unwrap()) && receipt.shard < 2);
            });
        }
    });
}

fn life_on(driver: Driver, backend: Backend) {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path().join("log");
    let log = builder(&folder, driver, backend).open().unwrap();
    if let Some(notice) = log.notices().iter().find(|n| n.contains("glommio")) {
        eprintln!("SKIPPED on glommio, and run on plain threads: {notice}");
    }
    ingest(&log, 3, 2000);
    let stats = log.stats();
    assert_eq!(stats.producers, 0);
    let rotations: u64 = stats.shards.iter().map(|s| s.rotations).sum();
    assert!(rotations >= 10, "12 MB in segments of one: {stats:?}");
    let report = log.close().unwrap();
    assert!(report.records >= 6000 && report.notices.is_empty(), "{report:?}");
    // Sealed: shorter than a segment by what was not used, and nothing half-prepared beside it.
    for entry in std::fs::read_dir(&folder).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        assert!(!name.contains("prep"), "{name}");
    }

    // Dropped like that it is a crash, and what was acknowledged is there.
    let log = builder(&folder, driver, backend).open().unwrap();
    assert!(log.recovered().is_empty(), "it was closed");
    ingest(&log, 1, 100);
    let acknowledged = log.stats().shards.iter().map(|s| s.acknowledged).sum::<u64>();
    assert!(acknowledged >= 100);
    drop(log);
    let log = builder(&folder, driver, backend).open().unwrap();
    assert!(!log.recovered().is_empty(), "it was not closed");
    ingest(&log, 2, 100);
    log.close().unwrap();
}

#[test]
fn a_life_on_threads_with_io_uring() {
    life_on(Driver::Threads, Backend::Auto);
}

#[test]
fn a_life_on_threads_with_system_calls() {
    life_on(Driver::Threads, Backend::Posix);
}

#[cfg(feature = "glommio")]
#[test]
fn a_life_on_glommio_with_io_uring() {
    life_on(Driver::Glommio, Backend::Auto);
}

#[cfg(feature = "glommio")]
#[test]
fn a_life_on_glommio_with_system_calls() {
    life_on(Driver::Glommio, Backend::Posix);
}
