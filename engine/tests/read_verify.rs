//! Verify: no damage passes, and nothing honest fails.

mod handmade;

use std::fs;
use std::path::Path;

use hanaper::read::verify::{Finding, Report, VerifyOptions, verify};
use hanaper_shards::batch;
use hanaper_shards::io::Disk;
use hanaper_shards::manifest::{Loss, ShardLine, hex};
use hanaper_shards::segment::header::Origin;
use hanaper_shards::segment::paths;
use handmade::{Hand, event, overwrite};

fn check(path: &Path) -> (Report, Vec<Finding>) {
    check_with(path, None)
}

fn check_with(path: &Path, acks: Option<&Path>) -> (Report, Vec<Finding>) {
    let mut findings = Vec::new();
    let options = VerifyOptions { acks: acks.map(Into::into), ..VerifyOptions::default() };
    let report = verify(path, &options, &mut |finding| findings.push(finding)).unwrap();
    assert_eq!(report.failures, findings.iter().filter(|f| f.fails).count() as u64);
    (report, findings)
}

/// The verdicts that fail, in order, each once.
fn failing(path: &Path) -> Vec<&'static str> {
    let mut verdicts: Vec<_> = check(path).1.into_iter().filter(|f| f.fails).map(|f| f.verdict).collect();
    verdicts.dedup();
    verdicts
}

/// Three shards' worth of records in sealed segments, and some that are not sealed.
fn sample(sealed: bool) -> Hand {
    let mut hand = Hand::new(2);
    for shard in 0..2 {
        for i in 0..12u64 {
            let seq = 3 * i;
            let events: Vec<_> = (0..3).map(|k| event(shard as u32 + 1, seq + k, 100 + seq + k)).collect();
            hand.shards[shard].batch(&events);
            if i % 4 == 3 {
                hand.shards[shard].seal();
            }
        }
        hand.shards[shard].batch(&[event(shard as u32 + 1, 36, 200)]);
        hand.shards[shard].batch(&[event(shard as u32 + 1, 37, 201)]);
        hand.shards[shard].stamp();
    }
    if sealed {
        hand.seal_all();
    }
    hand.die();
    hand
}

#[test]
fn a_whole_log_passes_without_a_word() {
    for sealed in [true, false] {
        let hand = sample(sealed);
        let (report, findings) = check(hand.path());
        assert_eq!(findings, []);
        assert_eq!((report.shards, report.segments, report.batches, report.records), (2, 8, 30, 76));
        assert_eq!((report.unstamped_batches, report.live, report.losses), (0, false, 0));
    }
}

/// One wrong bit anywhere in a sealed log is found: no byte is outside the check.
#[test]
fn no_byte_of_a_sealed_log_is_outside_the_check() {
    let hand = sample(true);
    let mut places: Vec<(String, u64)> = Vec::new();
    for entry in hand.disk.list().unwrap() {
        if let paths::Name::Segment { shard: 0, index } = paths::parse(&entry.name) {
            // Every field of the header, of a batch, of a record and of the footer; some padding.
            let batch = 4096;
            places.extend((0..520).step_by(13).map(|at| (entry.name.clone(), at)));
            places.extend([4095, 2000].map(|at| (entry.name.clone(), at)));
            if index == 0 {
                places.extend((0..470).step_by(7).map(|at| (entry.name.clone(), batch + at)));
            }
            places.extend((0..900).step_by(23).map(|at| (entry.name.clone(), entry.bytes - 1 - at)));
            places.extend((0..600).step_by(29).map(|at| (entry.name.clone(), entry.bytes - 4096 + at)));
        }
    }
    for (name, at) in places {
        let path = hand.path().join(&name);
        overwrite(&path, at, |bytes| bytes[0] ^= 0x10);
        let (report, findings) = check(hand.path());
        assert!(report.failures > 0, "{name} byte {at}: {findings:?}");
        overwrite(&path, at, |bytes| bytes[0] ^= 0x10);
    }
    assert_eq!(failing(hand.path()), [""; 0]);
}

/// Whoever edits a record and mends its checksums still has the digest against him.
#[test]
fn an_edited_batch_is_named_and_the_rest_is_checked_too() {
    let hand = sample(true);
    let (_, entry) = hand.shards[0].batches[1];
    for wrong in [entry.offset, hand.shards[0].batches[2].1.offset] {
        overwrite(&hand.file(0, 0), wrong + 256 + 40, |bytes| bytes[0] ^= 1);
    }
    let (report, findings) = check(hand.path());
    let fails: Vec<_> = findings.iter().filter(|f| f.fails).map(|f| (f.verdict, f.place.as_str())).collect();
    let place = |n: u64, at: u64| format!("shard 0 batch {n} (shard-0000-0000000000.segment offset {at})");
    let second = hand.shards[0].batches[2].1.offset;
    assert_eq!(fails[0], ("BATCH-DIGEST", place(1, entry.offset).as_str()), "{findings:?}");
    // The two stand together, so one gap in the chain names both.
    assert!(fails.len() <= 2, "{fails:?} {second}");
    assert_eq!(report.batches, 28);
}

/// A batch whose digest was mended too breaks the chain, and the footer's index.
#[test]
fn a_resealed_batch_breaks_the_chain() {
    let hand = sample(true);
    let (_, entry) = hand.shards[0].batches[1];
    overwrite(&hand.file(0, 0), entry.offset, |bytes| {
        let placed = &mut bytes[..4096];
        let header = batch::Header::read(placed).unwrap();
        placed[256 + 60] ^= 1;
        batch::seal(&header, placed);
    });
    let verdicts = failing(hand.path());
    assert!(verdicts.contains(&"BATCH-NUMBER") || verdicts.contains(&"INDEX"), "{verdicts:?}");
}

#[test]
fn what_is_gone_is_missing() {
    for index in 0..3 {
        let hand = sample(false);
        fs::remove_file(hand.file(0, index)).unwrap();
        assert!(failing(hand.path()).contains(&"MISSING"), "sealed segment {index}");
    }
    let hand = sample(false);
    fs::remove_file(hand.file(0, 3)).unwrap();
    assert_eq!(failing(hand.path()), ["MISSING"], "the active segment");
    let hand = sample(true);
    fs::remove_file(hand.path().join(paths::shard_manifest(1))).unwrap();
    assert_eq!(failing(hand.path()), ["MISSING"], "a shard's manifest");
    let hand = sample(true);
    fs::remove_file(hand.path().join(paths::LOG_MANIFEST)).unwrap();
    assert_eq!(failing(hand.path()), ["MANIFEST"], "the log's manifest");
    let hand = sample(true);
    for entry in hand.disk.list().unwrap().iter().filter(|e| e.name.starts_with("shard-0001")) {
        fs::remove_file(hand.path().join(&entry.name)).unwrap();
    }
    assert_eq!(failing(hand.path()), ["SHARD-VANISHED"]);
}

/// A segment deleted together with its line: the numbers do not go on.
#[test]
fn a_segment_that_the_manifest_forgot_is_missing_all_the_same() {
    let mut hand = sample(true);
    let lines: Vec<ShardLine> = [0u64, 2, 3]
        .iter()
        .flat_map(|&index| {
            let state = &hand.shards[0].manifest.state.segments[&index];
            let hanaper_shards::manifest::SegmentState::Sealed(sealed) = state else { panic!() };
            [
                ShardLine::Segment { index, bytes: sealed.bytes },
                ShardLine::Sealed { index, sealed: sealed.clone() },
            ]
        })
        .collect();
    fs::remove_file(hand.path().join(paths::shard_manifest(0))).unwrap();
    let place = hand.shards[0].place;
    let mut forged =
        hanaper_shards::manifest::ShardManifest::open(&hand.disk, place, [10; 16], false).unwrap();
    forged.append(&lines).unwrap();
    hand.shards[0].manifest = forged;
    fs::remove_file(hand.file(0, 1)).unwrap();
    let verdicts = failing(hand.path());
    assert_eq!(verdicts, ["MISSING"], "{verdicts:?}");
}

#[test]
fn segments_in_the_wrong_place() {
    let hand = sample(true);
    let names = |index| hand.file(0, index);
    let third = fs::read(names(1)).unwrap();
    // An old segment over a new one, of the same length or not.
    fs::write(names(2), third).unwrap();
    let verdicts = failing(hand.path());
    assert!(verdicts.contains(&"FOREIGN-SHARD") && verdicts.contains(&"FOOTER"), "{verdicts:?}");

    let hand = sample(true);
    fs::copy(hand.file(1, 0), hand.file(0, 0)).unwrap();
    let verdicts = failing(hand.path());
    assert!(verdicts.contains(&"FOREIGN-SHARD"), "{verdicts:?}");
}

#[test]
fn every_file_is_accounted_for() {
    let hand = sample(true);
    for ours in ["hanaper.toml", "lock", ".calibrate", "shard-0000-0000000009.prep"] {
        fs::write(hand.path().join(ours), "x").unwrap();
    }
    fs::create_dir(hand.path().join("lost+found")).unwrap();
    // A spare that was renamed and not yet put on record.
    fs::write(hand.file(0, 9), vec![0; 64 << 10]).unwrap();
    assert_eq!(failing(hand.path()), [""; 0]);
    for (stray, verdict, place) in [
        ("notes.txt", "STRAY", "notes.txt"),
        ("shard-0000-0000000009.old", "STRAY", "shard-0000-0000000009.old"),
        // A shard that `log.manifest` does not know: more likely that is not the newest.
        ("shard-0007.manifest", "STALE-MANIFEST", "log.manifest"),
        ("shard-0005-0000000000.segment", "STALE-MANIFEST", "log.manifest"),
    ] {
        let path = hand.path().join(stray);
        fs::write(&path, "x").unwrap();
        let (_, findings) = check(hand.path());
        let strays: Vec<_> = findings.iter().filter(|f| f.fails).collect();
        assert_eq!((strays.len(), strays[0].verdict, strays[0].place.as_str()), (1, verdict, place));
        fs::remove_file(path).unwrap();
    }
    fs::create_dir(hand.path().join("folder")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", hand.path().join("link")).unwrap();
    assert_eq!(check(hand.path()).0.failures, 2);
    fs::remove_dir(hand.path().join("folder")).unwrap();
    fs::remove_file(hand.path().join("link")).unwrap();
    fs::copy(hand.file(0, 1), hand.file(0, 9)).unwrap();
    assert!(failing(hand.path()).contains(&"STRAY"), "a segment with data that nobody named");
}

/// Something else may stand where a file of the log should: it is named, and nothing is read through it.
#[test]
fn a_name_that_is_taken_by_no_file_is_a_stray() {
    for name in ["log.manifest", "lock", "shard-0001.manifest", "shard-0001-0000000000.segment"] {
        let hand = sample(true);
        let path = hand.path().join(name);
        let elsewhere = hand.path().parent().unwrap().join("elsewhere");
        // The lock is made by openings, and this log never had one.
        if path.exists() {
            fs::rename(&path, &elsewhere).unwrap();
        }
        fs::create_dir(&path).unwrap();
        assert_eq!(failing(hand.path()), ["STRAY", "NOT-COVERED"], "{name} is a folder");
        fs::remove_dir(&path).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        assert_eq!(failing(hand.path()), ["STRAY", "NOT-COVERED"], "{name} is a link");
    }
}

/// What a kill leaves half-made is told, so that nobody wonders, and fails nothing.
#[test]
fn what_was_being_prepared_is_told() {
    let hand = sample(false);
    fs::write(hand.path().join("shard-0000-0000000009.prep"), "x").unwrap();
    fs::write(hand.file(1, 9), vec![0; 64 << 10]).unwrap();
    let (report, findings) = check(hand.path());
    let told: Vec<_> = findings.iter().map(|f| (f.verdict, f.place.as_str())).collect();
    assert!(told.contains(&("LEFTOVER", "shard-0000-0000000009.prep")), "{told:?}");
    assert!(told.contains(&("LEFTOVER", "shard-0001-0000000009.segment")), "{told:?}");
    assert_eq!(report.failures, 0);
}

/// What was never acknowledged may be torn, and what a recycled file held before may stand behind it.
#[test]
fn an_honest_tail_passes() {
    let mut hand = Hand::new(1);
    let shard = &mut hand.shards[0];
    for i in 0..5 {
        shard.batch(&[event(1, i, 10 + i)]);
    }
    let end = shard.batches[4].1.offset;
    hand.die();
    let whole = fs::read(hand.file(0, 0)).unwrap();
    let (report, findings) = check(hand.path());
    assert_eq!((report.unstamped_batches, report.failures), (1, 0));
    assert_eq!(findings.iter().map(|f| f.verdict).collect::<Vec<_>>(), ["UNSTAMPED"]);
    for tear in [end, end + 100, end + 300] {
        overwrite(&hand.file(0, 0), tear, |bytes| bytes[..100].fill(0x55));
        let (report, findings) = check(hand.path());
        assert_eq!((report.failures, report.records), (0, 4), "{findings:?}");
        assert!(findings.iter().any(|f| f.verdict == "TAIL"));
        fs::write(hand.file(0, 0), &whole).unwrap();
    }
    // A crash tears; it does not make a prepared file shorter.
    fs::write(hand.file(0, 0), &whole[..end as usize]).unwrap();
    assert_eq!(failing(hand.path()), ["LENGTH"]);
    // Below the watermark it is no tail.
    fs::write(hand.file(0, 0), &whole).unwrap();
    overwrite(&hand.file(0, 0), end - 4096, |bytes| bytes[..100].fill(0x55));
    assert!(check(hand.path()).0.failures > 0);
}

#[test]
fn damage_in_the_unsealed_chain_is_listed_to_its_end() {
    let mut hand = Hand::new(1);
    for i in 0..9 {
        hand.shards[0].batch(&[event(1, i, 10 + i)]);
    }
    hand.shards[0].stamp();
    hand.die();
    for bad in [2, 5] {
        let at = hand.shards[0].batches[bad].1.offset;
        overwrite(&hand.file(0, 0), at + 300, |bytes| bytes[0] ^= 1);
    }
    let (report, findings) = check(hand.path());
    let fails: Vec<_> = findings.iter().filter(|f| f.fails).collect();
    assert_eq!(fails.len(), 2, "{findings:?}");
    assert!(fails[0].place.starts_with("shard 0 batch 2 ") && fails[1].place.starts_with("shard 0 batch 5 "));
    assert_eq!(report.records, 7);
}

/// A loss that somebody has looked at and put on record is told, and fails no more.
#[test]
fn a_loss_on_record_does_not_fail() {
    let mut hand = Hand::new(1);
    for i in 0..5 {
        hand.shards[0].batch(&[event(1, i, 10 + i)]);
    }
    hand.die();
    let at = hand.shards[0].batches[2].1.offset;
    overwrite(&hand.file(0, 0), at + 300, |bytes| bytes[0] ^= 1);
    assert_eq!(failing(hand.path()), ["BATCH-DIGEST"]);
    let loss = Loss { batches: 2..3, seqs: 2..3 };
    hand.shards[0].manifest.append(&[ShardLine::Loss { loss, reason: "damage".into() }]).unwrap();
    let (report, findings) = check(hand.path());
    assert_eq!((report.failures, report.losses, report.batches), (0, 1, 4));
    assert!(findings.iter().any(|f| f.verdict == "LOSS" && !f.fails));
}

#[test]
fn a_recovered_log_passes_and_its_cut_bytes_are_told() {
    let mut hand = Hand::new(1);
    let shard = &mut hand.shards[0];
    shard.batch(&[event(1, 0, 10)]);
    let (chain, predecessor) = (shard.chain, shard.predecessor);
    shard.batch(&[event(1, 1, 11)]);
    let active = shard.active.take().unwrap();
    (shard.chain, shard.predecessor) = (chain, predecessor);
    let job = hanaper_shards::wal::seal::SealJob {
        end: chain_end(&active.batches[..1]),
        cut_end: active.offset,
        batches: active.batches[..1].to_vec(),
        header: active.header,
    };
    hanaper_shards::wal::seal::seal(&hand.disk, &mut shard.manifest, &job).unwrap();
    shard.begin(Origin::Recovery);
    shard.batch(&[event(2, 0, 12)]);
    shard.stamp();
    shard.seal();
    let (report, findings) = check(hand.path());
    assert_eq!(findings.iter().map(|f| (f.verdict, f.fails)).collect::<Vec<_>>(), [("CUT", false)]);
    assert_eq!((report.batches, report.records), (3, 2));
}

fn chain_end(batches: &[hanaper_shards::segment::footer::IndexEntry]) -> u64 {
    batches.last().unwrap().end(4096)
}

#[test]
fn acknowledgements_are_held_against_the_log() {
    let hand = sample(false);
    let lines: Vec<String> = hand
        .shards
        .iter()
        .flat_map(|s| {
            let shard = s.place.shard;
            s.batches.iter().flat_map(move |(_, b)| {
                (b.first_seq..b.end_seq()).map(move |seq| {
                    format!(
                        "{{\"line\":1,\"shard\":{},\"seq\":{seq},\"batch\":\"{}\"}}\n",
                        shard,
                        hex(&b.digest)
                    )
                })
            })
        })
        .collect();
    let file = hand.beside("acks");
    fs::write(&file, lines.concat() + "{\"line\":77,\"sha").unwrap();
    let (report, findings) = check_with(hand.path(), Some(&file));
    assert_eq!((report.failures, report.acks), (0, 76), "{findings:?}");
    // The tail is cut where no stamp covers it: without acknowledgements nobody can tell.
    let entries: Vec<_> = hand.shards[0].batches.iter().map(|(_, e)| *e).collect();
    let cut = entries[13].offset;
    overwrite(&hand.file(0, 3), cut, |bytes| bytes.fill(0));
    assert_eq!(failing(hand.path()), [""; 0]);
    let (_, findings) = check_with(hand.path(), Some(&file));
    let fails: Vec<_> = findings.iter().filter(|f| f.fails).map(|f| (f.verdict, f.place.as_str())).collect();
    assert_eq!(fails, [("ACKED-MISSING", "shard 0 record 37")]);
    // Another batch in its place, a record that never was, a shard that never was.
    let forged = [
        "{\"shard\":1,\"seq\":4,\"batch\":\"ZZ\"}",
        "{\"shard\":1,\"seq\":400,\"batch\":\"ZZ\"}",
        "{\"shard\":9,\"seq\":4,\"batch\":\"ZZ\"}",
    ];
    for line in forged {
        fs::write(&file, line.replace("ZZ", &"ab".repeat(32))).unwrap();
        let (report, findings) = check_with(hand.path(), Some(&file));
        assert_eq!(report.failures, 1, "{findings:?}");
    }
}

/// Of a log that is being written, what is in flight is nobody's failure.
#[test]
fn a_live_log_passes() {
    let mut hand = Hand::new(1);
    let shard = &mut hand.shards[0];
    shard.batch(&[event(1, 0, 10)]);
    shard.batch(&[event(1, 1, 11)]);
    let last = shard.batches[1].1.offset;
    overwrite(&hand.file(0, 0), last + 300, |bytes| bytes[..8].fill(1));
    let (report, findings) = check(hand.path());
    assert_eq!((report.live, report.failures), (true, 0));
    assert_eq!(findings, []);
}

/// Progress ends at its end, whatever the log looks like.
#[test]
fn progress_comes_to_its_end() {
    for sealed in [true, false] {
        let hand = sample(sealed);
        let last = std::cell::Cell::new((0, 0));
        let progress = |done, total| {
            assert!(last.get().0 <= done && done <= total);
            last.set((done, total));
        };
        verify(
            hand.path(),
            &VerifyOptions { progress: Some(&progress), ..VerifyOptions::default() },
            &mut |_| {},
        )
        .unwrap();
        let (done, total) = last.get();
        assert!(total > 0 && done == total, "{done} of {total}");
    }
}

/// Whatever the bytes are: no panic, no record that was not written, and no silence about what is missing.
#[test]
fn whatever_is_done_to_it_nothing_false_comes_out() {
    use hanaper::read::{OwnedRecord, Reader, Select, inspect, inspect_segment};
    use hanaper::recover::{self, Mode};
    let hand = sample(false);
    let files: Vec<(String, Vec<u8>)> = hand
        .disk
        .list()
        .unwrap()
        .into_iter()
        .map(|e| (e.name.clone(), fs::read(hand.path().join(e.name)).unwrap()))
        .collect();
    let all = |path: &Path| -> (Vec<OwnedRecord>, bool) {
        let Ok(reader) = Reader::open(path) else { return (Vec::new(), true) };
        let mut records = Vec::new();
        for record in reader.replay(Select::default()) {
            match record {
                Ok(record) => records.push(record),
                Err(_) => return (records, true),
            }
        }
        (records, false)
    };
    let whole = all(hand.path()).0;
    assert_eq!(whole.len(), 76);
    let mut dice = handmade::Dice(13);
    // In memory where there is such a folder: nothing here is about durability.
    let place = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let copy = place.path().join("copy");
    let rounds = std::env::var("HANAPER_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(40);
    for round in 0..rounds {
        let _ = fs::remove_dir_all(&copy);
        fs::create_dir(&copy).unwrap();
        let mut damaged: Vec<Vec<u8>> = files.iter().map(|(_, bytes)| bytes.clone()).collect();
        let mut done = Vec::new();
        for _ in 0..1 + dice.below(3) {
            let file = dice.below(files.len() as u64) as usize;
            let bytes = &mut damaged[file];
            // Most of a spare file is zeros; the interesting part comes first.
            let length = (bytes.len() as u64).min(40 << 10);
            let at = dice.below(length.max(1)) as usize;
            let how = dice.below(6);
            done.push((files[file].0.as_str(), how, at));
            match how {
                _ if bytes.is_empty() => {}
                0 => bytes.truncate(at),
                1 => bytes.truncate(at / 4096 * 4096),
                2 => {
                    let to = (at + 1 + dice.below(9000) as usize).min(bytes.len());
                    bytes[at..to].fill(dice.below(256) as u8);
                }
                3 => {
                    let (from, block) = (dice.below(length / 4096 + 1) as usize * 4096, at / 4096 * 4096);
                    if from + 4096 <= bytes.len() && block + 4096 <= bytes.len() {
                        bytes.copy_within(from..from + 4096, block);
                    }
                }
                _ => bytes[at] ^= 1 << dice.below(8),
            }
        }
        for ((name, _), bytes) in files.iter().zip(&damaged) {
            fs::write(copy.join(name), bytes).unwrap();
        }
        let mut findings = Vec::new();
        let verified = verify(&copy, &VerifyOptions::default(), &mut |f| findings.push(f));
        let (records, failed) = all(&copy);
        let mut rest = whole.iter();
        for record in &records {
            assert!(
                rest.any(|w| w == record),
                "round {round}: a record that was not written, or out of order"
            );
        }
        let fails = verified.as_ref().map_or(true, |report| report.failures > 0);
        assert!(fails || !failed, "round {round}: replay fails on what verify lets pass: {findings:?}");
        // Zeros over all that no later stamp covers look like a log that ends there: on one disk, without
        // acknowledgements, nobody can tell.
        let undecidable =
            done.iter().any(|(name, how, _)| name.ends_with("3.segment") && [2, 3].contains(how));
        let silent = !fails && findings.is_empty() && !undecidable;
        assert!(
            !silent || records == whole,
            "round {round}: records are missing and nobody says so: {done:?}"
        );
        let _ = inspect(&copy);
        let planned = recover::plan(&copy, Mode::Aggressive);
        for (name, _) in files.iter().filter(|(name, _)| name.ends_with(".segment")) {
            let _ = inspect_segment(copy.join(name));
            let out = place.path().join("out");
            if round % 4 == 0 && recover::segment(copy.join(name), &out, Mode::Aggressive).is_ok() {
                fs::remove_file(&out).unwrap();
                let _ = fs::remove_file(place.path().join("out.salvaged"));
            }
        }
        if planned.is_ok() && recover::write(&copy, Mode::Conservative).is_ok() {
            let (after, failed) = all(&copy);
            assert!(!failed || fails, "round {round}");
            assert!(after.len() >= records.len(), "round {round}: putting a loss on record lost something");
        }
    }
}
