//! Parts of a log put back from an older copy: each is whole in itself, and together they are not the log.

use std::fs;
use std::path::Path;

use hanaper::read::verify::{Finding, VerifyOptions, verify};
use hanaper::read::{Reader, Select};
use hanaper::{Log, WaitFor};

fn builder(folder: &Path) -> hanaper::Builder {
    Log::builder(folder)
        .state(concat!(env!("CARGO_TARGET_TMPDIR"), "/state"))
        .segment_bytes(1 << 20)
        .lane_bytes(64 << 10)
        .calibrate(false)
        .pin(false)
        .shards(2)
}

/// Opens the log, appends some records to both shards, and closes it.
fn session(folder: &Path) {
    write(builder(folder));
}

/// The same without keys: what somebody can make of an older copy who has only that.
fn unsigned_session(folder: &Path) {
    write(builder(folder).checkpoints(false));
}

fn write(builder: hanaper::Builder) {
    let log = builder.open().unwrap();
    let mut producer = log.producer().unwrap();
    for n in 0..40u32 {
        let ticket = producer.append(&n.to_le_bytes(), b"an event").unwrap();
        producer.wait(ticket, WaitFor::block()).unwrap();
    }
    drop(producer);
    let closed = log.close().unwrap();
    assert_eq!(closed.notices, [""; 0]);
}

fn reopen(folder: &Path) {
    let closed = builder(folder).open().unwrap().close().unwrap();
    assert_eq!(closed.notices, [""; 0]);
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            // The view for other people's tools: derived.
            continue;
        }
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// Removes what has such a name, and puts the older copies back.
fn roll_back(log: &Path, older: &Path, prefix: &str) {
    let named = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with(prefix);
    for entry in fs::read_dir(log).unwrap().map(Result::unwrap).filter(named) {
        fs::remove_file(entry.path()).unwrap();
    }
    let Ok(older) = fs::read_dir(older) else { return };
    for entry in older.map(Result::unwrap).filter(named) {
        fs::copy(entry.path(), log.join(entry.file_name())).unwrap();
    }
}

/// A log that was opened twice, and a copy from between.
struct Scene {
    _temporary: tempfile::TempDir,
    log: std::path::PathBuf,
    older: std::path::PathBuf,
}

fn scene() -> Scene {
    let temporary = tempfile::tempdir().unwrap();
    let (log, older) = (temporary.path().join("log"), temporary.path().join("older"));
    session(&log);
    copy(&log, &older);
    session(&log);
    assert_eq!(findings(&log), [], "a log that is whole");
    Scene { _temporary: temporary, log, older }
}

fn findings(log: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    verify(log, &VerifyOptions::default(), &mut |finding| findings.push(finding)).unwrap();
    findings
}

/// Verify names it, reading does not end as if all had been there, and no opening builds on it.
fn is_refused(log: &Path, verdict: &str) {
    let found = findings(log);
    let failing: Vec<_> = found.iter().filter(|f| f.fails).map(|f| f.verdict).collect();
    // The epochs say so too, where they are newer.
    let by_epochs = ["SHARD-ROOT", "MISSING", "SHARD-VANISHED"];
    assert!(failing.contains(&verdict), "{found:#?}");
    assert!(failing.iter().all(|v| *v == verdict || by_epochs.contains(v)), "{found:#?}");
    let before: Vec<_> = names(log);
    let error = builder(log).open().map(|_| ()).unwrap_err().to_string();
    assert!(error.contains(verdict) || verdict == "SHARD-VANISHED", "{error}");
    assert_eq!(names(log), before, "a refused opening changes nothing");
    let records: Result<Vec<_>, _> =
        Reader::open(log).and_then(|reader| reader.replay(Select::default()).collect());
    assert!(records.is_err(), "all records were read, and some are missing");
}

fn names(log: &Path) -> Vec<(String, u64)> {
    let entry = |e: fs::DirEntry| (e.file_name().into_string().unwrap(), e.metadata().unwrap().len());
    let mut names: Vec<_> = fs::read_dir(log).unwrap().map(|e| entry(e.unwrap())).collect();
    names.sort();
    names
}

#[test]
fn an_older_log_manifest() {
    let s = scene();
    roll_back(&s.log, &s.older, "log.manifest");
    is_refused(&s.log, "STALE-MANIFEST");
}

#[test]
fn an_older_shard() {
    let s = scene();
    roll_back(&s.log, &s.older, "shard-0001");
    is_refused(&s.log, "ROLLED-BACK");
    // With its newer files back all is well again.
    unsigned_session(&s.older);
    assert_eq!(findings(&s.older), []);
}

/// A shard with another history, as long as the true one or longer.
#[test]
fn another_history_of_a_shard() {
    for sessions in [1, 2] {
        let s = scene();
        (0..sessions).for_each(|_| unsigned_session(&s.older));
        // Their last opening is the same, or its number would tell.
        (1..sessions).for_each(|_| reopen(&s.log));
        roll_back(&s.log, &s.older, "shard-0001");
        is_refused(&s.log, "ROLLED-BACK");
    }
}

#[test]
fn a_shard_that_is_gone() {
    let s = scene();
    for shard in ["shard-0000", "shard-0001"] {
        roll_back(&s.log, &s.log.join("nothing"), shard);
        is_refused(&s.log, "SHARD-VANISHED");
    }
}

/// An older `log.manifest` that knows fewer shards: those that it does not know would pass for strays.
#[test]
fn a_log_manifest_from_before_there_were_more_shards() {
    let s = scene();
    let older = fs::read(s.log.join("log.manifest")).unwrap();
    builder(&s.log).shards(3).reshard(true).open().unwrap().close().unwrap();
    let current = fs::read(s.log.join("log.manifest")).unwrap();
    fs::write(s.log.join("log.manifest"), older).unwrap();
    let before = names(&s.log);
    is_refused(&s.log, "STALE-MANIFEST");
    for shards in [2, 3, 5] {
        let error = builder(&s.log).shards(shards).reshard(true).open().map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("STALE-MANIFEST"), "{error}");
    }
    assert!(Reader::open(&s.log).is_err());
    assert!(hanaper::recover::write(&s.log, hanaper::recover::Mode::Conservative).is_err());
    assert_eq!(names(&s.log), before, "a refused opening changes nothing");
    fs::write(s.log.join("log.manifest"), current).unwrap();
    assert_eq!(findings(&s.log), []);
}

/// Nobody writes to the shards of an earlier layout, and they are part of the log all the same.
#[test]
fn a_shard_of_an_earlier_layout_is_looked_at_too() {
    let s = scene();
    builder(&s.log).shards(3).reshard(true).open().unwrap().close().unwrap();
    let manifest = s.log.join("shard-0001.manifest");
    let whole = fs::read(&manifest).unwrap();
    let mut altered = whole.clone();
    altered[4096 + 300] ^= 1;
    for content in [None, Some(&[][..]), Some(&altered)] {
        match content {
            Some(content) => fs::write(&manifest, content).unwrap(),
            None => fs::remove_file(&manifest).unwrap(),
        }
        let error = builder(&s.log).shards(3).open().map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), hanaper::ErrorKind::Integrity, "{error}");
    }
    fs::write(&manifest, &whole).unwrap();
    let segment = names(&s.log).into_iter().find(|(n, _)| n.starts_with("shard-0001-")).unwrap().0;
    let content = fs::read(s.log.join(&segment)).unwrap();
    fs::remove_file(s.log.join(&segment)).unwrap();
    assert!(builder(&s.log).shards(3).open().is_err());
    fs::write(s.log.join(&segment), content).unwrap();
    builder(&s.log).shards(3).open().unwrap().close().unwrap();
}

/// What an older copy of the whole folder lacks, only somebody who kept an acknowledgement can know.
#[test]
fn an_older_copy_of_all_of_it_is_whole() {
    let s = scene();
    assert_eq!(findings(&s.older), []);
}

/// A manifest that was emptied is not a log that was never made: no new one is begun over its segments.
#[test]
fn an_emptied_log_manifest() {
    for bytes in [&[][..], &[0; 4096]] {
        let s = scene();
        fs::write(s.log.join("log.manifest"), bytes).unwrap();
        let before = names(&s.log);
        let error = builder(&s.log).open().map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), hanaper::ErrorKind::Integrity, "{error}");
        assert_eq!(names(&s.log), before);
    }
}

/// An older copy of all of it, opened where the newer one was signed: going on would sign a second history.
#[test]
fn an_older_copy_is_not_opened_where_newer_entries_were_signed() {
    let s = scene();
    let before = names(&s.older);
    let error = builder(&s.older).open().map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("ROLLBACK"), "{error}");
    assert_eq!((error.kind(), error.exit_code()), (hanaper::ErrorKind::Refused, 5));
    assert_eq!(names(&s.older), before);
    // A copy from within the same key period: the keys say nothing, what was signed does.
    let temporary = tempfile::tempdir().unwrap();
    let (log, copied) = (temporary.path().join("log"), temporary.path().join("copied"));
    let open = || builder(&log).checkpoint_every(std::time::Duration::from_millis(1)).open().unwrap();
    session(&log);
    let running = open();
    let mut producer = running.producer().unwrap();
    let mut append = || {
        let ticket = producer.append(b"key", b"event").unwrap();
        let receipt = producer.wait(ticket, WaitFor::block()).unwrap();
        assert!(running.wait_checkpointed(&receipt, std::time::Duration::from_secs(60)));
    };
    append();
    copy(&log, &copied);
    append();
    drop(producer);
    drop(running);
    let error = builder(&copied).open().map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("ROLLBACK"), "{error}");
    open().close().unwrap();
    assert!(findings(&log).iter().all(|f| !f.fails));
}

/// The last batch of a killed log: no stamp covers it, so when it is torn it looks as if it had never been
/// acknowledged. A checkpoint that names it knows better.
#[test]
fn a_torn_tail_that_a_checkpoint_names_is_no_tail() {
    for checkpoints in [true, false] {
        let temporary = tempfile::tempdir().unwrap();
        let log = temporary.path().join("log");
        let open = || {
            let every = std::time::Duration::from_millis(1);
            builder(&log).shards(1).checkpoints(checkpoints).checkpoint_every(every).open()
        };
        let running = open().unwrap();
        let mut producer = running.producer().unwrap();
        let mut receipt = None;
        for _ in 0..20 {
            let ticket = producer.append(b"key", b"event").unwrap();
            receipt = Some(producer.wait(ticket, WaitFor::block()).unwrap());
        }
        let receipt = receipt.unwrap();
        assert_eq!(running.wait_checkpointed(&receipt, std::time::Duration::from_secs(60)), checkpoints);
        drop(producer);
        drop(running);
        // The batch with the last event, and whatever came behind it, is gone: as far as the disk can tell, it was
        // torn.
        let segment = log.join("shard-0000-0000000000.segment");
        let mut content = fs::read(&segment).unwrap();
        let last = content
            .chunks(4096)
            .position(|block| block.starts_with(b"HNPRBTCH") && block[56..64] == receipt.batch.to_le_bytes());
        content[last.unwrap() * 4096..].fill(0);
        fs::write(&segment, content).unwrap();
        match checkpoints {
            true => {
                let error = open().map(|_| ()).unwrap_err();
                assert!(error.to_string().contains("ROLLED-BACK"), "{error}");
                let found = findings(&log);
                assert!(found.iter().any(|f| f.verdict == "MISSING" && f.fails), "{found:?}");
            }
            // Nothing else knows of it: that is what the durability page says of the last batches.
            false => open().unwrap().close().map(|_| ()).unwrap(),
        }
    }
}
