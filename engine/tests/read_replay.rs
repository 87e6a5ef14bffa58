//! Replay: everything, once, in order, and nothing that is not known to be durable.

mod handmade;

use std::os::unix::fs::PermissionsExt;

use hanaper::read::{Kind, OwnedRecord, Reader, Select};
use hanaper::{ErrorKind, ReadError};
use hanaper_shards::manifest::{Loss, ShardLine};
use hanaper_shards::segment::header::Origin;
use handmade::{Dice, Event, Hand, WALL, event, overwrite};

fn all(hand: &Hand, select: Select) -> Vec<OwnedRecord> {
    Reader::open(hand.path()).unwrap().replay(select).map(Result::unwrap).collect()
}

/// What came before the error, and the error.
fn until_error(hand: &Hand, select: Select) -> (Vec<OwnedRecord>, Option<ReadError>) {
    let mut records = Vec::new();
    for record in Reader::open(hand.path()).unwrap().replay(select) {
        match record {
            Ok(record) => records.push(record),
            Err(error) => return (records, Some(error)),
        }
    }
    (records, None)
}

fn names(records: &[OwnedRecord]) -> Vec<(u32, u64)> {
    records.iter().map(|r| (r.producer, r.producer_seq)).collect()
}

/// What the log should give: all that was written, by time, shard and sequence.
fn expected(hand: &Hand) -> Vec<(u64, u32, u64, Event)> {
    let mut all: Vec<_> = hand
        .shards
        .iter()
        .flat_map(|s| s.events.iter().map(|(seq, e)| (e.log_time, s.place.shard, *seq, e.clone())))
        .collect();
    all.sort_by_key(|(time, shard, seq, _)| (*time, *shard, *seq));
    all
}

/// Producers whose records wait in lanes for different times, over several shards and segments.
fn busy_log(seed: u64, shards: u32, events: u64) -> Hand {
    let mut hand = Hand::sized(shards, 64 << 10);
    let mut dice = Dice(seed);
    let mut lanes: Vec<Vec<Event>> = vec![Vec::new(); shards as usize];
    let mut seqs = [0u64; 4];
    for time in 0..events {
        let producer = dice.below(4) as u32;
        let seq = &mut seqs[producer as usize];
        lanes[dice.below(u64::from(shards)) as usize].push(event(producer, *seq, 1000 + time));
        *seq += 1;
        if dice.below(8) == 0 {
            let shard = dice.below(u64::from(shards)) as usize;
            let mut batch = std::mem::take(&mut lanes[shard]);
            // Lanes are drained one after the other: in order for each producer, and no more.
            batch.sort_by_key(|e| (e.producer, e.producer_seq));
            hand.shards[shard].batch(&batch);
        }
        if dice.below(40) == 0 {
            hand.shards[dice.below(u64::from(shards)) as usize].stamp();
        }
    }
    for (shard, mut batch) in lanes.into_iter().enumerate() {
        batch.sort_by_key(|e| (e.producer, e.producer_seq));
        hand.shards[shard].batch(&batch);
    }
    hand.die();
    hand
}

#[test]
fn every_record_comes_once_and_in_order() {
    for seed in 0..12 {
        let mut hand = busy_log(seed, 1 + (seed % 4) as u32, 400);
        if seed % 2 == 0 {
            hand.seal_all();
        }
        let found = all(&hand, Select { control: true, ..Select::default() });
        let expected = expected(&hand);
        assert_eq!(found.len(), expected.len(), "seed {seed}");
        for (r, (time, shard, seq, e)) in found.iter().zip(&expected) {
            assert_eq!((r.log_time, r.shard, r.seq), (*time, *shard, *seq), "seed {seed}");
            assert_eq!((&r.key, &r.payload), (&e.key, &e.payload));
            assert_eq!(r.wall_ns, WALL + e.log_time as i64);
            assert_eq!(r.kind == Kind::Control, e.producer == 0);
        }
        for producer in 0..4 {
            let seqs: Vec<u64> =
                found.iter().filter(|r| r.producer == producer).map(|r| r.producer_seq).collect();
            assert!(seqs.iter().copied().eq(0..seqs.len() as u64), "producer {producer} out of order");
        }
        let data = all(&hand, Select::default());
        assert!(data.iter().all(|r| r.kind == Kind::Data));
        assert_eq!(data.len(), found.iter().filter(|r| r.kind == Kind::Data).count());
    }
}

/// A long log streams: what waits does not grow with it.
#[test]
fn what_waits_does_not_grow_with_the_log() {
    let hand = busy_log(7, 3, 6000);
    let reader = Reader::open(hand.path()).unwrap();
    let mut replay = reader.replay(Select::default());
    let mut most = 0;
    while let Some(record) = replay.next() {
        record.unwrap();
        most = most.max(replay.waiting());
    }
    assert!(most < 300, "{most} records waited");
}

#[test]
fn windows_of_wall_time_and_of_sequences() {
    let hand = busy_log(3, 3, 900);
    let expected = expected(&hand);
    for (from, to) in [(1000, 1900), (1200, 1201), (1450, 1500), (0, 1000), (1899, 5000)] {
        let select = Select {
            from_wall_ns: Some(WALL + from),
            to_wall_ns: Some(WALL + to),
            control: true,
            ..Select::default()
        };
        let times: Vec<u64> = all(&hand, select).iter().map(|r| r.log_time).collect();
        let wanted: Vec<u64> =
            expected.iter().map(|e| e.0).filter(|t| (from as u64..to as u64).contains(t)).collect();
        assert_eq!(times, wanted, "{from}..{to}");
    }
    for seqs in [0..1, 50..60, 100..101, 0..10_000, 5000..6000] {
        for shard in 0..3 {
            let select =
                Select { shard: Some(shard), seqs: Some(seqs.clone()), control: true, ..Select::default() };
            let mut found: Vec<u64> = all(&hand, select).iter().map(|r| r.seq).collect();
            found.sort_unstable();
            let of_shard = &hand.shards[shard as usize].events;
            let wanted: Vec<u64> = of_shard.iter().map(|e| e.0).filter(|s| seqs.contains(s)).collect();
            assert_eq!(found, wanted);
            let reader = Reader::open(hand.path()).unwrap();
            let in_order = reader.shard(shard, seqs.clone()).unwrap();
            assert_eq!(in_order.map(|r| r.unwrap().seq).collect::<Vec<_>>(), wanted);
        }
    }
    let none = Reader::open(hand.path()).unwrap().shard(3, 0..1);
    assert!(matches!(none, Err(ReadError::NoSuchShard { shard: 3 })));
}

/// Who asks for a minute out of a hundred must not wait for all of them.
#[test]
fn a_hundredth_reads_a_few_hundredths() {
    let mut hand = Hand::sized(2, 4 << 20);
    for time in 0..1000u64 {
        let mut e = event(1, time, 1000 + time);
        e.payload = vec![b'x'; 60_000];
        hand.shards[(time % 2) as usize].batch(&[e]);
    }
    hand.seal_all();
    let bytes: u64 =
        std::fs::read_dir(hand.path()).unwrap().map(|f| f.unwrap().metadata().unwrap().len()).sum();
    let reader = Reader::open(hand.path()).unwrap();
    let window =
        Select { from_wall_ns: Some(WALL + 1500), to_wall_ns: Some(WALL + 1510), ..Select::default() };
    let before = reader.bytes_read();
    assert_eq!(reader.replay(window).map(Result::unwrap).count(), 10);
    let read = reader.bytes_read() - before;
    assert!(read * 100 <= bytes * 3, "{read} of {bytes} bytes");
    let seqs = Select { seqs: Some(250..255), ..Select::default() };
    let before = reader.bytes_read();
    assert_eq!(reader.replay(seqs).map(Result::unwrap).count(), 10);
    let read = reader.bytes_read() - before;
    assert!(read * 100 <= bytes * 3, "{read} of {bytes} bytes");
}

/// What is not known to be durable may yet be undone: a reader who saw it would have seen a ghost.
#[test]
fn of_a_live_log_only_what_is_stamped_is_shown() {
    let mut hand = Hand::new(1);
    let shard = &mut hand.shards[0];
    shard.batch(&[event(1, 0, 10)]);
    shard.batch(&[event(1, 1, 11)]);
    shard.durable = Some(1);
    shard.batch(&[event(1, 2, 12)]);
    assert_eq!(names(&all(&hand, Select::default())), [(1, 0)]);
    hand.shards[0].durable = Some(3);
    hand.shards[0].stamp();
    assert_eq!(names(&all(&hand, Select::default())), [(1, 0), (1, 1), (1, 2)]);
    hand.shards[0].batch(&[event(1, 3, 13)]);
    assert_eq!(all(&hand, Select::default()).len(), 3);
    // Nobody writes any more: what recovery would keep is shown.
    hand.die();
    assert_eq!(all(&hand, Select::default()).len(), 4);
}

/// The lock file alone says that somebody is at work, even while no segment is locked.
#[test]
fn a_held_lock_file_makes_it_live() {
    use hanaper_shards::io::Disk;
    let mut hand = Hand::new(1);
    hand.shards[0].batch(&[event(1, 0, 10)]);
    hand.die();
    assert_eq!(all(&hand, Select::default()).len(), 1);
    let lock = hand.disk.create("lock").unwrap();
    assert_eq!(all(&hand, Select::default()).len(), 1);
    assert!(hand.disk.try_lock(&lock).unwrap());
    assert_eq!(all(&hand, Select::default()).len(), 0);
}

#[test]
fn a_torn_tail_is_no_error() {
    let mut hand = Hand::new(1);
    let shard = &mut hand.shards[0];
    shard.batch(&[event(1, 0, 10)]);
    shard.batch(&[event(1, 1, 11)]);
    let last = shard.batches[1].1.offset;
    hand.die();
    overwrite(&hand.file(0, 0), last + 300, |bytes| bytes[0] ^= 1);
    let (records, error) = until_error(&hand, Select::default());
    assert_eq!((names(&records), error.is_none()), (vec![(1, 0)], true));
}

/// Never silently: what is whole before the bad place is given out, then the place is named.
#[test]
fn damage_ends_the_replay_where_it_is() {
    let mut hand = busy_log(1, 2, 300);
    hand.seal_all();
    let whole = all(&hand, Select::default());
    let (index, bad) = hand.shards[0].batches.iter().filter(|(_, e)| e.count > 0).nth(10).copied().unwrap();
    overwrite(&hand.file(0, index), bad.offset + 260, |bytes| bytes[0] ^= 0x80);
    let (records, error) = until_error(&hand, Select::default());
    assert_eq!(records[..], whole[..records.len()], "a prefix of what is whole");
    assert!(!records.is_empty() && records.len() < whole.len());
    let error = error.expect("damage is never passed over");
    assert_eq!((error.kind(), error.exit_code()), (ErrorKind::Integrity, 1));
    assert!(error.to_string().starts_with(&format!("BATCH-DIGEST shard 0 batch {}", bad.number)), "{error}");
    // What does not need the bad batch does not stumble over it.
    assert!(until_error(&hand, Select { shard: Some(1), ..Select::default() }).1.is_none());
    let before = Select { shard: Some(0), seqs: Some(0..bad.first_seq), ..Select::default() };
    assert!(until_error(&hand, before).1.is_none());
    let within = Select { shard: Some(0), seqs: Some(bad.first_seq..bad.first_seq + 1), ..Select::default() };
    assert!(until_error(&hand, within).1.is_some());
}

#[test]
fn a_missing_segment_is_named() {
    for (gone, begin) in [(0, false), (1, false), (2, true)] {
        let mut hand = Hand::new(1);
        for index in 0..3 {
            hand.shards[0].batch(&[event(1, 2 * index, 10 + index)]);
            if index < 2 || !begin {
                hand.shards[0].seal();
            }
        }
        hand.die();
        std::fs::remove_file(hand.file(0, gone)).unwrap();
        let (records, error) = until_error(&hand, Select::default());
        assert_eq!(records.len() as u64, gone);
        assert!(error.unwrap().to_string().starts_with("MISSING"), "segment {gone}");
    }
}

/// A hole below the watermark is no tail, even in a segment that was never sealed.
#[test]
fn damage_below_the_watermark_is_an_error() {
    let mut hand = Hand::new(1);
    for i in 0..5 {
        hand.shards[0].batch(&[event(1, i, 10 + i)]);
    }
    hand.die();
    let bad = hand.shards[0].batches[2].1.offset;
    overwrite(&hand.file(0, 0), bad + 300, |bytes| bytes[0] ^= 1);
    let (records, error) = until_error(&hand, Select::default());
    assert_eq!(names(&records), [(1, 0), (1, 1)]);
    assert!(error.unwrap().to_string().starts_with("BATCH-DIGEST shard 0 batch 2"));
    // Once the loss is on record, the rest is read.
    let loss = Loss { batches: 2..3, seqs: 2..3 };
    hand.shards[0].manifest.append(&[ShardLine::Loss { loss, reason: "damage".into() }]).unwrap();
    assert_eq!(names(&all(&hand, Select::default())), [(1, 0), (1, 1), (1, 3), (1, 4)]);
}

#[test]
fn a_recovered_log_reads_on_behind_the_named_end() {
    let mut hand = Hand::new(1);
    let shard = &mut hand.shards[0];
    shard.batch(&[event(1, 0, 10)]);
    let (chain, predecessor) = (shard.chain, shard.predecessor);
    shard.batch(&[event(1, 1, 11)]);
    // A recovery that did not see the second batch ended the segment before it.
    (shard.chain, shard.predecessor) = (chain, predecessor);
    shard.events.pop();
    shard.begin(Origin::Recovery);
    shard.batch(&[event(2, 0, 12)]);
    hand.die();
    assert_eq!(names(&all(&hand, Select::default())), [(1, 0), (2, 0)]);
}

/// Readers need no permission to write, and leave nothing behind.
#[test]
fn a_folder_that_may_only_be_read_and_a_copy() {
    let mut hand = busy_log(2, 2, 200);
    hand.die();
    let whole = all(&hand, Select::default());
    let copy = hand.beside("copy");
    std::fs::create_dir(&copy).unwrap();
    for file in std::fs::read_dir(hand.path()).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), copy.join(file.file_name())).unwrap();
        std::fs::set_permissions(copy.join(file.file_name()), std::fs::Permissions::from_mode(0o400))
            .unwrap();
    }
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o500)).unwrap();
    let names = |folder| {
        let files = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap());
        let mut all: Vec<_> =
            files.map(|f| (f.file_name(), f.metadata().unwrap().modified().unwrap())).collect();
        all.sort();
        all
    };
    let before = names(&copy);
    let read: Vec<_> = Reader::open(&copy).unwrap().replay(Select::default()).map(Result::unwrap).collect();
    assert_eq!(read, whole);
    assert_eq!(names(&copy), before);
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn what_is_no_log_is_refused_as_a_mistake() {
    let empty = tempfile::tempdir().unwrap();
    for path in [empty.path().to_owned(), empty.path().join("nothing"), "/dev/null".into()] {
        let error = Reader::open(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage, "{error}");
    }
}
