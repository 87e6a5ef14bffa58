//! The lane against a model, at its edges, and under two real threads.
//!
//! The model finds wrong bookkeeping; loom (`loom_tests`) finds wrong orderings; the threads
//! here find what neither was asked about.

use std::collections::VecDeque;
use std::thread;

use proptest::prelude::*;

use super::*;

fn push(producer: &mut LaneProducer, bytes: &[u8]) -> bool {
    match producer.try_claim(bytes.len()) {
        Some(mut claim) => {
            claim.copy_from_slice(bytes);
            claim.commit();
            true
        }
        None => false,
    }
}

fn take(consumer: &mut LaneConsumer) -> Option<Vec<u8>> {
    let bytes = consumer.peek().map(<[u8]>::to_vec)?;
    consumer.pop();
    Some(bytes)
}

#[derive(Debug, Clone)]
enum Step {
    /// Claim that many bytes, fill them, and commit at once, later, or never.
    Claim(usize, Fate),
    Boxed(usize),
    Publish,
    /// Peek that many times, then pop.
    Take(usize),
    Release,
    IsEmpty,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Commit,
    CommitLater,
    Abort,
    Leak,
}

const CAPACITY: usize = 4096;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let bytes = prop_oneof![1..=40_usize, 1..=CAPACITY / 4, Just(CAPACITY / 4)];
    let fate = prop_oneof![
        4 => Just(Fate::Commit),
        4 => Just(Fate::CommitLater),
        1 => Just(Fate::Abort),
        1 => Just(Fate::Leak)
    ];
    prop::collection::vec(
        prop_oneof![
            8 => (bytes, fate).prop_map(|(bytes, fate)| Step::Claim(bytes, fate)),
            2 => (0..3000_usize).prop_map(Step::Boxed),
            2 => Just(Step::Publish),
            8 => (1..3_usize).prop_map(Step::Take),
            3 => Just(Step::Release),
            1 => Just(Step::IsEmpty),
        ],
        0..400,
    )
}

/// What a lane is, without a ring: queues of records, and the length of what stands in between.
#[derive(Default)]
struct Model {
    committed: VecDeque<Vec<u8>>,
    published: VecDeque<Vec<u8>>,
    /// Where the next frame would start, and the ends of frames in order: enough to say exactly
    /// when the ring is full.
    tail: usize,
    ends: VecDeque<usize>,
    popped_end: usize,
    head: usize,
}

impl Model {
    /// The end of a frame with this payload, if there is room for it.
    fn room(&self, payload_bytes: usize) -> Option<usize> {
        let whole = 8 + payload_bytes.next_multiple_of(8);
        let to_end = CAPACITY - self.tail % CAPACITY;
        let start = if whole <= to_end { self.tail } else { self.tail + to_end };
        let end = start + whole;
        (end - self.head <= CAPACITY).then_some(end)
    }

    fn commit(&mut self, end: usize, record: Vec<u8>) {
        self.tail = end;
        self.ends.push_back(end);
        self.committed.push_back(record);
    }

    fn publish(&mut self) {
        self.published.append(&mut self.committed);
    }
}

proptest! {
    /// Every frame comes out once, whole and in order; an aborted or leaked claim never; and a
    /// claim is refused exactly when there is no room.
    #[test]
    fn behaves_as_a_queue(steps in steps()) {
        let (mut producer, mut consumer) = lane(CAPACITY);
        let mut model = Model::default();
        for (n, step) in steps.into_iter().enumerate() {
            match step {
                Step::Claim(bytes, fate) => {
                    let record: Vec<u8> = (0..bytes).map(|i| (n + i) as u8).collect();
                    let room = model.room(bytes);
                    let claim = producer.try_claim(bytes);
                    prop_assert_eq!(claim.is_some(), room.is_some());
                    let (Some(mut claim), Some(end)) = (claim, room) else { continue };
                    prop_assert_eq!(claim.len(), bytes);
                    prop_assert!(claim.as_ptr().cast::<u64>().is_aligned());
                    claim.copy_from_slice(&record);
                    match fate {
                        Fate::Commit => claim.commit(),
                        Fate::CommitLater => claim.commit_later(),
                        Fate::Abort => drop(claim),
                        Fate::Leak => _ = std::mem::ManuallyDrop::new(claim),
                    }
                    if matches!(fate, Fate::Commit | Fate::CommitLater) {
                        model.commit(end, record);
                    }
                    if fate == Fate::Commit {
                        model.publish();
                    }
                }
                Step::Boxed(bytes) => {
                    let record: Vec<u8> = (0..bytes).map(|i| (n * 3 + i) as u8).collect();
                    let room = model.room(BOXED_BYTES);
                    match (producer.try_push_boxed(record.clone().into()), room) {
                        (Ok(()), Some(end)) => {
                            model.commit(end, record);
                            model.publish();
                        }
                        (Err(back), None) => prop_assert_eq!(&*back, &record[..]),
                        (pushed, room) => prop_assert!(false, "{pushed:?}, {room:?}"),
                    }
                }
                Step::Publish => {
                    producer.publish();
                    model.publish();
                }
                Step::Take(looks) => {
                    for _ in 0..looks {
                        prop_assert_eq!(consumer.peek(), model.published.front().map(|r| &r[..]));
                    }
                    if model.published.pop_front().is_some() {
                        consumer.pop();
                        model.popped_end = model.ends.pop_front().expect("one end a frame");
                    }
                }
                Step::Release => {
                    consumer.release();
                    model.head = model.popped_end;
                }
                Step::IsEmpty => prop_assert_eq!(consumer.is_empty(), model.published.is_empty()),
            }
        }
        // A producer that goes leaves what it committed.
        drop(producer);
        model.publish();
        prop_assert!(consumer.producer_gone());
        for record in model.published {
            prop_assert_eq!(take(&mut consumer), Some(record));
        }
        prop_assert!(consumer.is_empty());
    }
}

/// The largest frame and the worst place for it: a claim must never be refused for ever.
#[test]
fn an_empty_lane_takes_any_frame_wherever_it_stands() {
    for gap in (8..=CAPACITY).step_by(8) {
        let (mut producer, mut consumer) = lane(CAPACITY);
        let mut left = gap;
        while left > 0 {
            let whole = left.min(512);
            // A frame of `whole` bytes with its word; one of 8 would have no payload.
            if whole == 8 {
                break;
            }
            assert!(push(&mut producer, &vec![1; whole - 8]));
            take(&mut consumer).expect("just pushed");
            consumer.release();
            left -= whole;
        }
        let largest = producer.frame_bytes_max();
        assert!(push(&mut producer, &vec![2; largest]), "gap {gap}");
        assert_eq!(take(&mut consumer), Some(vec![2; largest]));
    }
}

/// Popped is not given back: the shard may still need the bytes' place until it releases.
#[test]
fn popped_space_is_free_only_after_release() {
    let (mut producer, mut consumer) = lane(CAPACITY);
    while push(&mut producer, &[7; 120]) {}
    while take(&mut consumer).is_some() {}
    assert!(!push(&mut producer, &[7; 120]));
    consumer.release();
    assert!(push(&mut producer, &[7; 120]));
}

#[test]
fn a_batch_is_seen_all_at_once() {
    let (mut producer, mut consumer) = lane(CAPACITY);
    for n in 0..3 {
        let mut claim = producer.try_claim(1).expect("room");
        claim[0] = n;
        claim.commit_later();
    }
    assert!(consumer.is_empty() && consumer.peek().is_none());
    producer.publish();
    assert_eq!(
        (0..3).map(|_| take(&mut consumer)).collect::<Vec<_>>(),
        [Some(vec![0]), Some(vec![1]), Some(vec![2])]
    );
}

/// A large record stands among the others, in order, and is freed wherever its lane ends: popped,
/// peeked only, never seen, or pushed after the consumer had gone. (The ring counts its boxes and
/// asserts at its end.)
#[test]
fn boxed_records_keep_their_place_and_are_freed() {
    let large = |n: u8| vec![n; 100_000].into_boxed_slice();
    let (mut producer, mut consumer) = lane(CAPACITY);
    assert!(push(&mut producer, &[1]));
    producer.try_push_boxed(large(2)).expect("room");
    producer.try_push_boxed(Box::default()).expect("room for an empty one");
    assert!(push(&mut producer, &[3]));
    for n in 4..8 {
        producer.try_push_boxed(large(n)).expect("room");
    }
    assert_eq!(take(&mut consumer), Some(vec![1]));
    assert_eq!(take(&mut consumer).map(|r| (r[0], r.len())), Some((2, 100_000)));
    assert_eq!(take(&mut consumer), Some(vec![]));
    assert_eq!(take(&mut consumer), Some(vec![3]));
    assert_eq!(consumer.peek().map(|r| r[0]), Some(4));
    drop(consumer);
    assert!(producer.is_closed());
    producer.try_push_boxed(large(8)).expect("room");
    while producer.try_push_boxed(large(9)).is_ok() {}
}

/// What a thread leaves that dies inside a claim: what it had committed, and nothing else.
#[test]
fn a_panic_in_a_claim_leaves_only_what_was_committed() {
    let (mut producer, mut consumer) = lane(CAPACITY);
    let died = thread::spawn(move || {
        let mut claim = producer.try_claim(4).expect("room");
        claim.copy_from_slice(b"good");
        claim.commit_later();
        let mut claim = producer.try_claim(4).expect("room");
        claim.copy_from_slice(b"half");
        std::panic::resume_unwind(Box::new("as if the caller's serialiser had panicked"));
    })
    .join();
    assert!(died.is_err());
    assert!(consumer.producer_gone());
    assert_eq!(take(&mut consumer), Some(b"good".to_vec()));
    assert!(consumer.is_empty());
}

#[test]
#[should_panic(expected = "a frame no lane of this size takes")]
fn a_frame_that_can_never_fit_is_not_called_full() {
    let (mut producer, _consumer) = lane(CAPACITY);
    let _ = producer.try_claim(CAPACITY / 4 + 1);
}

#[test]
#[should_panic(expected = "a frame no lane of this size takes")]
fn an_empty_frame_is_refused() {
    let (mut producer, _consumer) = lane(CAPACITY);
    let _ = producer.try_claim(0);
}

#[test]
#[should_panic(expected = "pop follows peek")]
fn nobody_pops_what_nobody_has_seen() {
    let (mut producer, mut consumer) = lane(CAPACITY);
    assert!(push(&mut producer, &[1]));
    consumer.pop();
}

#[test]
fn only_powers_of_two_within_bounds_are_lanes() {
    for bytes in [0, 2048, 4097, 3 << 12, LANE_BYTES_MAX << 1] {
        assert!(std::panic::catch_unwind(|| lane(bytes)).is_err(), "{bytes}");
    }
}

/// Locked or refused by the limit, the lane works and is freed.
#[test]
fn locking_is_only_about_paging() {
    let (mut producer, mut consumer) = lane(CAPACITY);
    let _ = producer.lock_memory();
    assert!(push(&mut producer, b"x"));
    assert_eq!(take(&mut consumer), Some(b"x".to_vec()));
}

/// Two threads, lengths and publishing by chance, some boxed, a small ring so that it is always
/// full or empty: the stream comes through.
#[test]
fn two_threads_pass_a_stream() {
    const FRAMES: u64 = 200_000;
    let (mut producer, mut consumer) = lane(CAPACITY);
    // A linear congruence that both sides step: the lengths need no channel of their own.
    let next = |x: u64| x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    let bytes_of = |x: u64| 1 + (x >> 40) as usize % 300;
    let is_boxed = |x: u64| (x >> 33).is_multiple_of(61);

    let writer = thread::spawn(move || {
        let mut x = 1;
        for n in 0..FRAMES {
            x = next(x);
            let record = vec![n as u8; bytes_of(x)];
            if is_boxed(x) {
                let mut record = record.into_boxed_slice();
                while let Err(back) = producer.try_push_boxed(record) {
                    record = back;
                    thread::yield_now();
                }
                continue;
            }
            loop {
                if let Some(mut claim) = producer.try_claim(record.len()) {
                    claim.copy_from_slice(&record);
                    if (x >> 50).is_multiple_of(4) {
                        claim.commit()
                    } else {
                        claim.commit_later()
                    }
                    break;
                }
                // Full, perhaps of what the other side cannot see yet.
                producer.publish();
                thread::yield_now();
            }
        }
    });

    let mut x = 1;
    let mut n = 0;
    loop {
        // In this order: gone, then empty.
        let gone = consumer.producer_gone();
        while let Some(bytes) = consumer.peek() {
            x = next(x);
            assert_eq!(bytes.len(), bytes_of(x));
            assert!(bytes.iter().all(|&b| b == n as u8), "frame {n}");
            consumer.pop();
            n += 1;
            if n % 3 == 0 {
                consumer.release();
            }
        }
        consumer.release();
        if gone {
            break;
        }
        thread::yield_now();
    }
    assert_eq!(n, FRAMES);
    assert!(consumer.is_empty());
    writer.join().expect("the writer ends well");
}
