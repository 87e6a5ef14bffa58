//! Closing on a disk that is full: it ends, whatever is left of the last segment.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::*;
use crate::ack::Gate;
use crate::clock::Clock;
use crate::io::sim::{SimDisk, SimIo, SimWorld};
use crate::io::{Disk, Io, Wait};
use crate::manifest::Expected;
use crate::wal::chain::{Chain, Place};
use crate::wal::open::Opening;
use crate::wal::recovery::Begin;
use crossbeam_queue::SegQueue;

const SEGMENT_BYTES: u64 = 64 << 10;
const PLACE: Place = Place { log: [7; 16], generation: 0, shard: 0 };

/// A shard that has one segment, and gets no other.
fn shard_with_one_segment(disk: &SimDisk) -> Shard<SimIo> {
    let expected = Expected { manifest: false, ended: None, named: None, epoch: 1 };
    let mut opening = Opening::begin(disk, PLACE, expected, [1; 16]).unwrap();
    assert!(opening.lock().unwrap());
    let begin = Begin { incarnation: [2; 16], epoch: 1, wall_ns: 0, first_segment_bytes: SEGMENT_BYTES };
    let entries = disk.list().unwrap();
    let opened = opening.look(&entries).unwrap().recover(begin).unwrap();
    let config = Config {
        place: PLACE,
        block_bytes: disk.block_bytes(),
        segment_bytes: SEGMENT_BYTES,
        record_bytes_max: 4096,
        epoch: 1,
        slot: 0,
        lane_bytes: 4096,
        depth_max: 4,
        pipeline_bytes: 64 << 10,
        stamp_after_ns: 10_000_000,
    };
    let supply = Arc::new(Supply::default());
    let (clock, _) = Clock::manual(1000);
    let mut lives = 2;
    let incarnations = Box::new(move || {
        lives += 1;
        [lives; 16]
    });
    Shard::new(
        config,
        opened.start,
        clock,
        Arc::new(SegQueue::new()),
        Gate::new(),
        supply,
        Arc::new(Published::default()),
        incarnations,
    )
}

fn turn(shard: &mut Shard<SimIo>, io: &mut SimIo) -> Turn {
    let turn = shard.turn(io);
    for request in shard.take_requests() {
        // Nobody answers: the disk has no room.
        drop::<Request>(request);
    }
    let mut done = Vec::new();
    io.turn(Wait::No, &mut done).unwrap();
    deliver(&mut done, |_, completion| shard.complete(completion));
    turn
}

/// However much of the last segment is left, the last words of the log fit or are dropped: nobody waits for
/// them, and whoever closes would wait for ever.
#[test]
fn closing_ends_wherever_the_last_segment_stands() {
    let mut dropped = 0;
    for words in 1..16 {
        let world = SimWorld::new(1);
        let disk = world.disk();
        let mut io = SimIo::new(disk.clone());
        let mut shard = shard_with_one_segment(&disk);
        for word in 0..words {
            shard.say(format!("{word} {}", "x".repeat(2500)));
            for _ in 0..20 {
                turn(&mut shard, &mut io);
            }
            // It has begun its segment; from here on the disk is full.
            shard.supply.no_space.store(true, Ordering::Relaxed);
        }
        shard.close();
        let ended = (0..1000).any(|_| turn(&mut shard, &mut io) == Turn::Done);
        assert!(ended, "after {words} records the close does not end");
        assert_eq!(shard.failure(), None);
        // `closed epoch=1` is the last of them, if it found room.
        let complete = shard.chain().seq == words + 1;
        dropped += u64::from(!complete);
        assert_ne!(shard.chain(), Chain::START);
    }
    assert!(dropped > 0, "no segment was ever too full: this test shows nothing");
}

/// A shard that has stopped must not keep its driver awake for what it will never take.
#[test]
fn a_shard_that_has_stopped_has_no_work() {
    let world = SimWorld::new(1);
    let disk = world.disk();
    let mut io = SimIo::new(disk.clone());
    let mut shard = shard_with_one_segment(&disk);
    turn(&mut shard, &mut io);
    let spare = crate::wal::prepare::Prepared {
        index: 99,
        file: disk.create("spare").unwrap(),
        bytes: SEGMENT_BYTES,
    };
    shard.supply.prepared.push(spare);
    assert!(shard.has_work(), "a prepared segment is work");
    shard.fail(Stopped::Abandoned);
    assert!(!shard.has_work());
}

/// Where no segment can be put on record any more, nobody may wait for one for ever.
#[test]
fn a_shard_that_gets_no_segment_any_more_stops_and_says_so() {
    let world = SimWorld::new(1);
    let disk = world.disk();
    let mut io = SimIo::new(disk.clone());
    let mut shard = shard_with_one_segment(&disk);
    turn(&mut shard, &mut io);
    assert_eq!(shard.failure(), None);
    shard.supply.broken.store(true, Ordering::Relaxed);
    turn(&mut shard, &mut io);
    assert!(matches!(shard.failure(), Some(Stopped::Poisoned { .. })), "{:?}", shard.failure());
}

/// What happened at some time is told with that time, however much later the shard gets to it; and never before what
/// was told before.
#[test]
fn a_word_keeps_the_time_at_which_it_was_true() {
    let world = SimWorld::new(1);
    let disk = world.disk();
    let mut io = SimIo::new(disk.clone());
    let mut shard = shard_with_one_segment(&disk);
    shard.say_at(7, "opened".to_owned());
    shard.say_at(3, "and then".to_owned());
    for _ in 0..20 {
        turn(&mut shard, &mut io);
    }
    let first = shard.active.as_ref().unwrap().batches[0];
    assert_eq!((first.count, first.time_min, first.time_max), (2, 7, 8));
}
