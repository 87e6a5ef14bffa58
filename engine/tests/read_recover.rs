//! Recover: it says what it does, does no more, and what it leaves behind reads and verifies.

mod handmade;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use hanaper::ErrorKind;
use hanaper::read::verify::{Report, VerifyOptions, verify};
use hanaper::read::{Reader, Select, inspect, inspect_segment};
use hanaper::recover::{self, Mode, Who};
use hanaper_shards::io::Disk;
use handmade::{Hand, event, overwrite};

fn check(path: &Path) -> Report {
    verify(path, &VerifyOptions::default(), &mut |f| eprintln!("{f:?}")).unwrap()
}

fn seqs(path: &Path) -> Vec<u64> {
    Reader::open(path).unwrap().replay(Select::default()).map(|r| r.unwrap().producer_seq).collect()
}

fn files(path: &Path, ending: &str) -> BTreeMap<String, Vec<u8>> {
    let all = fs::read_dir(path).unwrap().map(|f| f.unwrap());
    all.map(|f| (f.file_name().into_string().unwrap(), fs::read(f.path()).unwrap()))
        .filter(|(name, _)| name.ends_with(ending))
        .collect()
}

/// Three sealed segments of five batches with two records each, and one that is not sealed.
fn sample() -> Hand {
    let mut hand = Hand::new(1);
    for i in 0..20u64 {
        hand.shards[0].batch(&[event(1, 2 * i, 100 + 2 * i), event(1, 2 * i + 1, 101 + 2 * i)]);
        if i % 5 == 4 && i < 19 {
            hand.shards[0].seal();
        }
    }
    hand.shards[0].stamp();
    hand.die();
    hand
}

#[test]
fn a_whole_log_needs_nothing_and_gets_nothing() {
    let mut hand = sample();
    let before = files(hand.path(), "");
    let plan = recover::plan(hand.path(), Mode::Conservative).unwrap();
    assert_eq!(plan.steps.iter().filter(|s| s.loses).count(), 0);
    assert_eq!(plan.steps[0].row, "blank tail", "opening ends what was not closed");
    assert_eq!(files(hand.path(), ""), before, "a plan changes nothing");
    hand.seal_all();
    assert_eq!(recover::plan(hand.path(), Mode::Conservative).unwrap().steps, []);
    let before = files(hand.path(), ".manifest");
    recover::write(hand.path(), Mode::Conservative).unwrap();
    assert_eq!(files(hand.path(), ".manifest"), before);
}

/// Damage in a sealed segment, in the one that is not sealed, and in both.
#[test]
fn a_loss_on_record_lets_the_log_go_on() {
    for bad in [vec![2], vec![17], vec![0, 4, 12, 16, 18]] {
        let hand = sample();
        for &number in &bad {
            let (index, entry) = hand.shards[0].batches[number as usize];
            overwrite(&hand.file(0, index), entry.offset + 300, |bytes| bytes[0] ^= 1);
        }
        let segments = files(hand.path(), ".segment");
        let plan = recover::plan(hand.path(), Mode::Conservative).unwrap();
        let lost: Vec<_> = plan.steps.iter().filter(|s| s.loses).collect();
        assert_eq!(lost.len(), bad.len(), "{plan:?}");
        for (step, number) in lost.iter().zip(&bad) {
            assert_eq!(step.row, "BATCH-DIGEST");
            assert!(step.place.starts_with(&format!("shard 0 batch {number} ")), "{step:?}");
        }
        assert!(check(hand.path()).failures > 0);
        let done = recover::write(hand.path(), Mode::Conservative).unwrap();
        assert_eq!(done, plan, "it does what it said");
        assert_eq!(files(hand.path(), ".segment"), segments, "no segment is touched");
        let report = check(hand.path());
        assert_eq!((report.failures, report.losses), (0, bad.len() as u64));
        let wanted: Vec<u64> = (0..40).filter(|seq| !bad.contains(&(seq / 2))).collect();
        assert_eq!(seqs(hand.path()), wanted);
        let notices = {
            let reader = Reader::open(hand.path()).unwrap();
            assert_eq!(reader.replay(Select::default()).count(), wanted.len());
            reader.notices()
        };
        assert_eq!(notices.len(), bad.len(), "stepping over is told: {notices:?}");
        // What is on record once is not put there again.
        let again = recover::write(hand.path(), Mode::Conservative).unwrap();
        assert!(again.steps.iter().all(|s| !s.loses), "{again:?}");
    }
}

/// A sealed segment that is gone, first, in the middle, or last, keeps the log shut only until the loss is on record.
#[test]
fn a_lost_sealed_segment_can_be_put_on_record() {
    for (gone, sealed) in [(0u64, false), (1, false), (2, false), (3, true)] {
        let mut hand = sample();
        if sealed {
            hand.seal_all();
        }
        fs::remove_file(hand.file(0, gone)).unwrap();
        assert!(check(hand.path()).failures > 0);
        let plan = recover::write(hand.path(), Mode::Conservative).unwrap();
        assert!(plan.steps.iter().any(|s| s.row == "MISSING" && s.loses), "{plan:?}");
        let report = check(hand.path());
        assert_eq!((report.failures, report.losses), (0, 1), "segment {gone}");
        let wanted: Vec<u64> = (0..40).filter(|seq| seq / 10 != gone).collect();
        assert_eq!(seqs(hand.path()), wanted);
    }
}

#[test]
fn a_sealed_segment_that_was_cut_short_keeps_what_is_left() {
    for (index, first_lost) in [(1u64, 8u64), (3, 18)] {
        let mut hand = sample();
        hand.seal_all();
        let path = hand.file(0, index);
        let cut = hand.shards[0].batches[first_lost as usize].1.offset;
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(cut).unwrap();
        assert!(check(hand.path()).failures > 0);
        recover::write(hand.path(), Mode::Conservative).unwrap();
        let report = check(hand.path());
        assert_eq!((report.failures, report.losses), (0, 1), "segment {index}");
        let lost = 2 * first_lost..10 * (index + 1);
        assert_eq!(seqs(hand.path()), (0..40).filter(|s| !lost.contains(s)).collect::<Vec<_>>());
    }
}

#[test]
fn what_cannot_be_put_right_is_refused_and_nothing_is_written() {
    let hand = sample();
    // The active segment is gone: nobody knows what was in it.
    fs::remove_file(hand.file(0, 3)).unwrap();
    let before = files(hand.path(), ".manifest");
    let error = recover::write(hand.path(), Mode::Conservative).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Integrity, "{error}");
    assert_eq!(files(hand.path(), ".manifest"), before);
    assert!(recover::plan(hand.path(), Mode::Conservative).unwrap().steps[0].loses);
}

/// What keeps the log shut is said by the plan too, with what remains possible.
#[test]
fn a_plan_does_not_promise_what_writing_would_refuse() {
    // The active segment is gone; the last batches of it are altered, so that nothing says where the loss ends.
    for (gone, advice) in [(true, "nobody knows what was in it"), (false, "nothing intact follows in it")] {
        let hand = sample();
        match gone {
            true => fs::remove_file(hand.file(0, 3)).unwrap(),
            false => {
                for (index, entry) in &hand.shards[0].batches[18..] {
                    overwrite(&hand.file(0, *index), entry.offset + 256, |bytes| bytes[0] ^= 1);
                }
            }
        }
        let plan = recover::plan(hand.path(), Mode::Conservative).unwrap();
        assert!(plan.obstacle.is_some() && plan.needs_a_hand() && plan.loses(), "{plan:?}");
        assert!(plan.steps.iter().all(|step| step.by != Who::Opening), "nothing opens it: {plan:?}");
        assert!(plan.steps.iter().any(|step| step.action.contains(advice)), "{plan:?}");
        let error = recover::write(hand.path(), Mode::Conservative).unwrap_err().to_string();
        assert!(error.contains(advice) && error.contains("nothing was written"), "{error}");
        // It is true that all before it can be read.
        let before = if gone { 30 } else { 36 };
        let read = Reader::open(hand.path()).unwrap().replay(Select::default()).map_while(Result::ok).count();
        assert_eq!(read, before);
    }
}

/// Without its manifest nothing says what a shard must have: opening refuses, and nothing ends by itself.
#[test]
fn a_manifest_that_is_gone_is_named_and_nothing_is_promised() {
    for (name, altered) in [
        ("shard-0000.manifest", false),
        ("shard-0000.manifest", true),
        ("log.manifest", false),
        ("log.manifest", true),
    ] {
        let hand = sample();
        match altered {
            true => overwrite(&hand.path().join(name), 100, |bytes| bytes[0] ^= 1),
            false => fs::remove_file(hand.path().join(name)).unwrap(),
        }
        let plan = recover::plan(hand.path(), Mode::Conservative).unwrap();
        assert_eq!(plan.steps.len(), 1, "{plan:?}");
        let step = &plan.steps[0];
        assert_eq!((step.place.as_str(), step.by, step.loses), (name, Who::Hand, true), "{plan:?}");
        assert!(step.action.contains("restore the file from a copy"), "{step:?}");
        let before = files(hand.path(), "");
        let error = recover::write(hand.path(), Mode::Conservative).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Integrity, "{error}");
        assert!(error.to_string().contains("restore the file from a copy"), "{error}");
        assert_eq!(files(hand.path(), ""), before);
    }
}

/// A loss can hide another: the last sealed segment leads to what is behind it.
#[test]
fn damage_behind_a_loss_is_found_and_put_on_record_with_it() {
    let hand = sample();
    fs::remove_file(hand.file(0, 2)).unwrap();
    let (index, entry) = hand.shards[0].batches[17];
    overwrite(&hand.file(0, index), entry.offset + 300, |bytes| bytes[0] ^= 1);
    let plan = recover::write(hand.path(), Mode::Conservative).unwrap();
    assert!(!plan.needs_a_hand() && plan.loses(), "{plan:?}");
    let report = check(hand.path());
    assert_eq!((report.failures, report.losses), (0, 2));
    let wanted: Vec<u64> = (0..40).filter(|seq| !(20..30).contains(seq) && seq / 2 != 17).collect();
    assert_eq!(seqs(hand.path()), wanted);
}

/// What is lost lies between what opening keeps in place and what it copies forward: the segment that it
/// begins must name the batch that it really begins with.
#[test]
fn a_loss_at_the_edge_of_what_is_durable_lets_the_log_go_on() {
    let mut hand = Hand::new(1);
    for i in 0..5u64 {
        hand.shards[0].batch(&[event(1, i, 100 + i)]);
    }
    // This one says that all before it is durable; whether it is itself, nothing says, so it is copied.
    hand.shards[0].stamp();
    hand.die();
    let (index, entry) = hand.shards[0].batches[4];
    overwrite(&hand.file(0, index), entry.offset + 300, |bytes| bytes[0] ^= 1);
    recover::write(hand.path(), Mode::Conservative).unwrap();
    for opening in 1..4u64 {
        let log = hanaper::Log::builder(hand.path())
            .state(hand.beside("state"))
            .segment_bytes(1 << 20)
            .lane_bytes(64 << 10)
            .calibrate(false)
            .pin(false)
            .open()
            .unwrap();
        let mut producer = log.producer().unwrap();
        let ticket = producer.append(b"", b"after the loss").unwrap();
        let receipt = producer.wait(ticket, hanaper::WaitFor::block()).unwrap();
        assert!(receipt.seq >= 5, "a lost sequence was given out again");
        // Also through a crash, with that batch not yet stamped.
        match opening {
            1 => drop((producer, log)),
            _ => _ = log.close().unwrap(),
        }
        let report = check(hand.path());
        assert_eq!((report.failures, report.losses), (0, 1), "after opening {opening}");
        assert_eq!(seqs(hand.path())[..4], [0, 1, 2, 3]);
        assert_eq!(seqs(hand.path()).len() as u64, 4 + opening);
    }
}

/// A sealed segment of which nothing is left can be put on record as a whole, however it came to that.
#[test]
fn a_sealed_segment_that_is_emptied_can_be_put_on_record() {
    for bytes in [0usize, 1, 4096] {
        let hand = sample();
        fs::write(hand.file(0, 1), vec![0; bytes]).unwrap();
        let plan = recover::write(hand.path(), Mode::Conservative).unwrap();
        assert!(plan.loses(), "{plan:?}");
        let report = check(hand.path());
        assert_eq!((report.failures, report.losses), (0, 1), "{bytes} bytes are left of it");
        let wanted: Vec<u64> = (0..40).filter(|seq| !(10..20).contains(seq)).collect();
        assert_eq!(seqs(hand.path()), wanted);
    }
}

/// Zeros behind a sealed segment hide its footer from those who look for it at the end.
#[test]
fn a_sealed_segment_that_was_made_longer_is_mended() {
    let hand = sample();
    let sealed = fs::read(hand.file(0, 1)).unwrap();
    let mut longer = sealed.clone();
    longer.resize(sealed.len() + 8192, 0);
    fs::write(hand.file(0, 1), &longer).unwrap();
    let mended = hand.beside("mended.segment");
    recover::segment(hand.file(0, 1), &mended, Mode::Conservative).unwrap();
    assert!(fs::read(&mended).unwrap() == sealed);
}

/// A loss on record, and then the batch behind it rots as well.
#[test]
fn damage_that_grows_beside_a_loss_can_be_put_on_record() {
    let hand = sample();
    for (round, number) in [7usize, 8, 6, 17, 18].into_iter().enumerate() {
        let (index, entry) = hand.shards[0].batches[number];
        overwrite(&hand.file(0, index), entry.offset + 300, |bytes| bytes[0] ^= 1);
        let plan = recover::write(hand.path(), Mode::Conservative).unwrap();
        assert!(!plan.needs_a_hand() && plan.loses(), "{plan:?}");
        let report = check(hand.path());
        assert_eq!(report.failures, 0, "after round {round}");
    }
    let wanted: Vec<u64> = (0..40).filter(|seq| ![6, 7, 8, 17, 18].contains(&(seq / 2))).collect();
    assert_eq!(seqs(hand.path()), wanted);
}

/// A manifest that was cut short at an entry is whole by itself: what it no longer names tells.
#[test]
fn segments_that_the_manifest_does_not_name_are_told() {
    let hand = sample();
    let stray = hand.path().join("shard-0000-0000000009.segment");
    fs::copy(hand.file(0, 3), &stray).unwrap();
    fs::write(hand.path().join("shard-0000-0000000010.segment"), vec![0; 65_536]).unwrap();
    let plan = recover::plan(hand.path(), Mode::Conservative).unwrap();
    let told: Vec<_> =
        plan.steps.iter().filter(|step| step.row == "STRAY").map(|step| &*step.place).collect();
    assert_eq!(told, ["shard-0000-0000000009.segment"], "{plan:?}");
}

/// Some bytes behind the digest of a batch.
fn spoil_padding(hand: &Hand, number: usize) {
    let (index, entry) = hand.shards[0].batches[number];
    overwrite(&hand.file(0, index), entry.end(4096) - 1, |bytes| bytes[0] = 0x10);
}

/// What a digest proves is not lost because of what stands behind it.
#[test]
fn a_batch_with_data_in_its_padding_is_kept() {
    for number in [7usize, 17] {
        let hand = sample();
        let index = hand.shards[0].batches[number].0;
        let whole = fs::read(hand.file(0, index)).unwrap();
        spoil_padding(&hand, number);
        assert!(check(hand.path()).failures > 0);
        // For the log: nothing is put on record as lost, and it is said how the segment is mended.
        let plan = recover::plan(hand.path(), Mode::Conservative).unwrap();
        let steps: Vec<_> = plan.steps.iter().filter(|step| step.row == "PADDING").collect();
        assert_eq!(steps.len(), 1, "{plan:?}");
        assert!(
            !plan.loses() && steps[0].by == Who::Hand && steps[0].action.contains("--output"),
            "{plan:?}"
        );
        let before = files(hand.path(), ".manifest");
        let _refused_where_it_keeps_the_log_shut = recover::write(hand.path(), Mode::Conservative);
        assert_eq!(files(hand.path(), ".manifest"), before);
        // For the segment: it is the very file that it was.
        let output = hand.beside("mended.segment");
        let plan = recover::segment(hand.file(0, index), &output, Mode::Conservative).unwrap();
        let steps: Vec<_> = plan.steps.iter().map(|step| (step.row, step.loses)).collect();
        assert_eq!(steps, [("PADDING", false)], "{plan:?}");
        assert!(plan.steps[0].place.starts_with(&format!("shard 0 batch {number} ")), "{plan:?}");
        assert!(fs::read(&output).unwrap() == whole);
        fs::rename(&output, hand.file(0, index)).unwrap();
        assert_eq!(check(hand.path()).failures, 0);
        assert_eq!(seqs(hand.path()), (0..40).collect::<Vec<_>>());
    }
}

/// A payload may look like a batch, and a batch with data in its padding may be long.
#[test]
fn the_body_of_a_batch_that_is_kept_hides_what_lies_in_it() {
    let mut hand = Hand::new(1);
    hand.shards[0].batch(&[event(1, 0, 100)]);
    let inner = hand.file(0, 0);
    let inner = fs::read(inner).unwrap()[4096..8192].to_vec();
    let mut outer = event(1, 1, 101);
    // Behind header, record header and key, the copy begins where the next block does.
    let at = 4096 - 256 - hanaper_shards::record::HEADER_BYTES - outer.key.len();
    outer.payload = vec![b' '; at + inner.len()];
    outer.payload[at..].copy_from_slice(&inner);
    hand.shards[0].batch(&[outer]);
    hand.shards[0].batch(&[event(1, 2, 102)]);
    hand.shards[0].stamp();
    hand.die();
    let whole = fs::read(hand.file(0, 0)).unwrap();
    assert!(whole[12_288..16_384] == inner, "the copy stands where a batch could");
    spoil_padding(&hand, 1);
    let output = hand.beside("mended.segment");
    let plan = recover::segment(hand.file(0, 0), &output, Mode::Conservative).unwrap();
    assert_eq!(plan.steps.iter().map(|step| step.row).collect::<Vec<_>>(), ["PADDING"], "{plan:?}");
    assert!(fs::read(&output).unwrap() == whole);
}

/// A footer that is not the one that was sealed stands in the way of readers: no loss is recovered by that.
#[test]
fn what_recover_leaves_to_a_hand_is_said() {
    let hand = sample();
    let path = hand.file(0, 1);
    let bytes = fs::metadata(&path).unwrap().len();
    overwrite(&path, bytes - 11, |bytes| bytes[0] ^= 1);
    let (index, entry) = hand.shards[0].batches[2];
    overwrite(&hand.file(0, index), entry.offset + 300, |bytes| bytes[0] ^= 1);
    let plan = recover::write(hand.path(), Mode::Conservative).unwrap();
    let by = |row| plan.steps.iter().find(|step| step.row == row).map(|step| step.by);
    assert_eq!(by("BATCH-DIGEST"), Some(Who::Recover), "{plan:?}");
    assert_eq!(by("FOOTER"), Some(Who::Hand), "{plan:?}");
    let report = check(hand.path());
    assert_eq!((report.failures, report.losses), (1, 1));
}

#[test]
fn a_log_that_somebody_writes_to_is_left_alone() {
    let mut hand = Hand::new(1);
    hand.shards[0].batch(&[event(1, 0, 10)]);
    let error = recover::write(hand.path(), Mode::Conservative).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Owned, "a segment is locked: {error}");
    hand.die();
    let lock = hand.disk.create("lock").unwrap();
    assert!(hand.disk.try_lock(&lock).unwrap());
    let error = recover::write(hand.path(), Mode::Conservative).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Owned, "the log is locked: {error}");
}

/// If no batch is lost, the mended file is the very file that was sealed.
#[test]
fn a_footer_is_built_anew_as_it_was() {
    let hand = sample();
    let path = hand.file(0, 1);
    let whole = fs::read(&path).unwrap();
    let output = hand.beside("mended.segment");
    for (at, wrong) in [(10, 0x55), (300, 0x55), (511, 0), (4000, 0x55)] {
        let mut damaged = whole.clone();
        let from = whole.len() - 1 - at;
        damaged[from..from + 8.min(at)].fill(wrong);
        fs::write(&path, &damaged).unwrap();
        assert!(check(hand.path()).failures > 0, "{at}");
        let plan = recover::segment(&path, &output, Mode::Conservative).unwrap();
        assert_eq!(
            plan.steps.iter().map(|s| (s.row, s.loses)).collect::<Vec<_>>(),
            [("FOOTER", false)],
            "{at}"
        );
        assert_eq!(fs::read(&output).unwrap(), whole, "{at}");
        fs::rename(&output, &path).unwrap();
        assert_eq!(check(hand.path()).failures, 0);
    }
}

#[test]
fn a_damaged_segment_comes_out_without_its_damage() {
    for (index, number) in [(1u64, 7usize), (3, 17)] {
        let hand = sample();
        let path = hand.file(0, index);
        let entry = hand.shards[0].batches[number].1;
        // The second record is hit; the first is whole.
        overwrite(&path, entry.offset + 256 + 100, |bytes| bytes[0] ^= 1);
        let before = fs::read(&path).unwrap();
        let output = hand.beside("out.segment");
        let plan = recover::segment(&path, &output, Mode::Conservative).unwrap();
        assert!(plan.steps[0].loses && plan.steps[0].row == "BATCH-DIGEST");
        assert!(plan.salvaged.is_empty());
        let mended = inspect_segment(&output).unwrap();
        let expected: Vec<u64> = hand.shards[0]
            .batches
            .iter()
            .filter(|(i, e)| *i == index && e.number != number as u64)
            .map(|(_, e)| e.number)
            .collect();
        assert_eq!(mended.iter().map(|b| b.number).collect::<Vec<_>>(), expected);
        assert!(mended.iter().all(|b| b.fault.is_none()));
        assert_eq!(fs::read(&path).unwrap(), before, "the original is never touched");
        // It never overwrites anything.
        let error = recover::segment(&path, &output, Mode::Conservative).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);

        let output = hand.beside("aggressive.segment");
        let plan = recover::segment(&path, &output, Mode::Aggressive).unwrap();
        let salvaged: Vec<_> = plan.salvaged.iter().map(|r| (r.seq, r.producer_seq, r.log_time)).collect();
        let first = 2 * number as u64;
        assert_eq!(salvaged, [(first, first, 100 + first)]);
        assert_eq!(plan.steps.iter().filter(|s| s.row == "SALVAGED").count(), 1);
        let text = fs::read_to_string(hand.beside("aggressive.segment.salvaged")).unwrap();
        assert_eq!(text.lines().count(), 1);
    }
}

/// Records are found again behind a place where the lengths cannot be trusted.
#[test]
fn salvage_finds_its_way_past_broken_lengths() {
    let mut hand = Hand::new(1);
    let events: Vec<_> = (0..10).map(|i| event(1, i, 100 + i)).collect();
    hand.shards[0].batch(&events);
    hand.shards[0].batch(&[event(1, 10, 110)]);
    hand.shards[0].stamp();
    hand.die();
    let path = hand.file(0, 0);
    let entry = hand.shards[0].batches[0].1;
    let record = hanaper_shards::record::encoded_bytes(events[0].key.len(), events[0].payload.len()) as u64;
    // The batch's own header too.
    overwrite(&path, entry.offset + 40, |bytes| bytes[0] ^= 1);
    for bad in [2, 3, 7] {
        overwrite(&path, entry.offset + 256 + bad * record, |bytes| bytes[..16].fill(0xFF));
    }
    let plan = recover::segment(&path, hand.beside("out"), Mode::Aggressive).unwrap();
    let found: Vec<u64> = plan.salvaged.iter().map(|r| r.seq).collect();
    assert_eq!(found, [0, 1, 4, 5, 6, 8, 9]);
}

#[test]
fn what_is_no_segment_is_refused() {
    let hand = sample();
    let not = hand.beside("not");
    for contents in [vec![], vec![7; 100], vec![0; 9000], vec![7; 9000]] {
        fs::write(&not, contents).unwrap();
        assert_eq!(
            recover::segment(&not, hand.beside("o"), Mode::Aggressive).unwrap_err().kind(),
            ErrorKind::Integrity
        );
        let error = inspect_segment(&not).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage, "{error}");
        assert!(!hand.beside("o").exists());
    }
    // A spare is a segment file all the same, with nothing in it yet.
    let spare = hand.beside("shard-0000-0000000009.segment");
    fs::write(&spare, vec![0; 65_536]).unwrap();
    assert_eq!(inspect_segment(&spare).unwrap(), []);
    let missing = recover::segment(hand.beside("nowhere"), hand.beside("o"), Mode::Conservative);
    assert_eq!(missing.unwrap_err().kind(), ErrorKind::Usage);
}

#[test]
fn inspect_tells_what_lies_where() {
    let hand = sample();
    let log = inspect(hand.path()).unwrap();
    assert_eq!((log.owner_pid, log.generation, log.shards.len()), (None, 0, 1));
    let shard = &log.shards[0];
    assert_eq!((shard.durable_batch, shard.next_batch, shard.next_seq), (Some(19), 21, 40));
    assert_eq!(log.primitive, None, "nobody has put on record how it was written");
    let states: Vec<_> = shard.segments.iter().map(|s| (s.index, s.state, s.batches, s.records)).collect();
    assert_eq!(
        states,
        [(0, "sealed", 5, 10), (1, "sealed", 5, 10), (2, "sealed", 5, 10), (3, "unsealed", 6, 10)]
    );
    assert_eq!(shard.segments[1].from_wall_ns, Some(handmade::WALL + 110));
    fs::remove_file(hand.file(0, 1)).unwrap();
    assert_eq!(inspect(hand.path()).unwrap().shards[0].segments[1].state, "missing");
    let batches = inspect_segment(hand.file(0, 3)).unwrap();
    assert_eq!(batches.len(), 6);
    assert_eq!((batches[5].number, batches[5].records, batches[5].durable), (20, 0, Some(19)));
}

/// The index of a footer is damaged, its summary is whole, and with it goes a batch, or all of the segment.
#[test]
fn a_loss_together_with_a_footers_index_is_stepped_over() {
    for whole_segment in [false, true] {
        let hand = sample();
        let (index, last) = hand.shards[0].batches[9];
        let file = hand.file(0, index);
        overwrite(&file, last.end(4096) + 10, |bytes| bytes[0] ^= 1);
        if whole_segment {
            overwrite(&file, 100, |bytes| bytes[0] ^= 1);
        } else {
            overwrite(&file, last.offset, |bytes| bytes[..(last.end(4096) - last.offset) as usize].fill(0));
        }
        let plan = recover::write(hand.path(), Mode::Conservative).unwrap();
        assert!(plan.loses() && !plan.needs_a_hand(), "{plan:?}");
        let report = check(hand.path());
        assert_eq!((report.failures, report.losses), (0, 1));
        let lost = if whole_segment { 10..20 } else { 18..20 };
        let wanted: Vec<u64> = (0..40).filter(|seq| !lost.contains(seq)).collect();
        assert_eq!(seqs(hand.path()), wanted);
    }
}
