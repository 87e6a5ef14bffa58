//! What could go wrong between an event and its receipt.

mod shard;

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use hanaper_ingest::*;
use shard::*;

const MOMENT: WaitFor = WaitFor::at_most(Duration::from_millis(1));
const LONG: Duration = Duration::from_secs(600);
const POISONED: Stopped = Stopped::Poisoned { op: "write", errno: libc::EIO, offset: 4096 };
const FULL: AppendError = AppendError::Backpressure(Backpressure::LaneFull);
const NO_SPACE: AppendError = AppendError::Backpressure(Backpressure::NoSpace);
const NO_BUFFERS: AppendError = AppendError::Backpressure(Backpressure::LargeBuffers);

fn fill(producer: &mut Producer) -> Vec<Ticket> {
    let mut tickets = Vec::new();
    loop {
        match producer.append(b"k", &[7; 100]) {
            Ok(ticket) => tickets.push(ticket),
            Err(error) => {
                assert_eq!(error, FULL);
                return tickets;
            }
        }
    }
}

struct Unpark(thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

#[test]
fn an_event_becomes_a_record_and_a_receipt() {
    let (mut shard, intake) = one(small());
    let mut producer = intake.producer().unwrap();
    let ticket = producer.append(b"order", b"approved").unwrap();
    assert_eq!((ticket.producer(), ticket.lane(), ticket.index()), (1, 0, 0));
    assert!(!producer.is_durable(ticket));
    assert_eq!(producer.wait(ticket, MOMENT), Err(WaitError::TimedOut));
    shard.take();
    assert!(!producer.is_durable(ticket), "taken is not durable");
    shard.acknowledge();
    assert!(producer.is_durable(ticket));
    let receipt = producer.wait(ticket, WaitFor::block()).unwrap();
    assert_eq!((receipt.shard, receipt.seq, receipt.batch), (0, 0, 0));
    let taken = &shard.taken[0];
    assert_eq!((&taken.key[..], &taken.payload[..]), (&b"order"[..], &b"approved"[..]));
    assert_eq!((taken.producer, taken.producer_seq), (1, 0));
    assert!(taken.log_time >= 1_000);
}

/// Empty keys and payloads are events too, and the longest key is one.
#[test]
fn the_shortest_and_the_longest() {
    let (mut shard, intake) = one(Limits { payload_bytes_max: 5000, ..small() });
    let mut producer = intake.producer().unwrap();
    producer.append(b"", b"").unwrap();
    producer.append(&[1; 1024], b"").unwrap();
    producer.append(&[1; 1024], &[2; 5000]).unwrap();
    let too_long = AppendError::KeyTooLong { bytes: 1025, max: 1024 };
    assert_eq!(producer.append(&[1; 1025], b""), Err(too_long));
    let too_large = AppendError::TooLarge { bytes: 5001, max: 5000 };
    assert_eq!(producer.append(b"", &[2; 5001]), Err(too_large));
    assert_eq!(producer.try_claim(b"", 5001).map(|_| ()), Err(too_large));
    shard.turn();
    assert_eq!(shard.refused(), 0, "a mistake is not backpressure");
    let sizes: Vec<_> = shard.taken.iter().map(|t| (t.key.len(), t.payload.len())).collect();
    assert_eq!(sizes, [(0, 0), (1024, 0), (1024, 5000)]);
}

#[test]
fn a_key_keeps_to_its_shard_and_the_sequence_counts_across() {
    let mut shards = [0, 1, 2].map(Shard::new);
    let intake = intake_of(&shards.each_ref(), small());
    let mut producer = intake.producer().unwrap();
    let keys: Vec<String> = (0..9).map(|i| format!("key-{i}")).collect();
    for round in 0..3 {
        for key in &keys {
            producer.append(key.as_bytes(), &[round]).unwrap();
        }
    }
    let mut all = Vec::new();
    for shard in &mut shards {
        shard.turn();
        for key in &keys {
            let rounds: Vec<u8> =
                shard.taken.iter().filter(|t| t.key == key.as_bytes()).map(|t| t.payload[0]).collect();
            assert!(rounds.is_empty() || rounds == [0, 1, 2], "{rounds:?}");
        }
        all.append(&mut shard.taken);
    }
    all.sort_by_key(|taken| taken.producer_seq);
    let seqs: Vec<u64> = all.iter().map(|t| t.producer_seq).collect();
    assert_eq!(seqs, Vec::from_iter(0..27));
    assert!(all.windows(2).all(|two| two[0].log_time < two[1].log_time), "strictly rising");
    producer.flush().unwrap();
}

#[test]
fn a_full_lane_refuses_and_counts_and_takes_again() {
    let (mut shard, intake) = one(small());
    let mut producer = intake.producer().unwrap();
    let tickets = fill(&mut producer);
    assert!(producer.try_claim(b"k", 100).is_err());
    let patience = Duration::from_millis(2);
    assert_eq!(producer.append_within(b"k", &[7; 100], patience), Err(FULL));
    shard.turn();
    assert_eq!(shard.refused(), 3, "one each: append, claim, append within");
    let next = producer.append_within(b"k", b"after", patience).unwrap();
    assert_eq!(next.index(), tickets.len() as u64, "a refused append used no index");
    shard.turn();
    assert_eq!(shard.taken.last().unwrap().producer_seq, tickets.len() as u64, "nor a sequence");
    assert_eq!(shard.taken.len(), tickets.len() + 1);
}

/// Waiting for room sleeps until the commit, and then appends.
#[test]
fn patience_outlasts_a_full_lane() {
    let (shard, intake) = one(small());
    let mut producer = intake.producer().unwrap();
    let before = fill(&mut producer).len();
    let shard = thread::scope(|scope| {
        let appending = scope.spawn(|| {
            for _ in 0..1_000 {
                producer.append_within(b"k", &[7; 100], LONG).unwrap();
            }
            producer.flush().unwrap();
        });
        let running = shard.run();
        appending.join().unwrap();
        running.close()
    });
    assert_eq!(shard.taken.len(), before + 1_000);
}

#[test]
fn a_claim_is_written_in_place_and_nothing_until_its_commit() {
    let (mut shard, intake) = one(small());
    let mut producer = intake.producer().unwrap();
    let mut aborted = producer.try_claim(b"lost", 8).unwrap();
    aborted.copy_from_slice(b"not this");
    drop(aborted);
    std::mem::forget(producer.try_claim(b"leaked", 800).unwrap());
    assert_eq!(shard.turn(), 0);
    let mut claim = producer.try_claim(b"kept", 4).unwrap();
    claim.copy_from_slice(b"this");
    assert_eq!(&*claim, b"this");
    let ticket = claim.commit();
    assert_eq!(ticket.index(), 0, "neither abort nor leak used an index");
    shard.turn();
    let taken = &shard.taken[0];
    assert_eq!((&taken.key[..], &taken.payload[..]), (&b"kept"[..], &b"this"[..]));
    assert_eq!((taken.producer_seq, shard.taken.len()), (0, 1));
}

/// Log time is that of the commit: a claim held for long must not put an old time behind newer ones.
#[test]
fn time_is_read_at_the_commit() {
    let mut shard = Shard::new(0);
    let (clock, hands) = hanaper_shards::clock::Clock::manual(10);
    let router = hanaper_shards::router::Router { seed: 0, shards: 1 };
    let intake = Intake::new(router, vec![shard.port()], clock, small());
    let mut producer = intake.producer().unwrap();
    let claim = producer.try_claim(b"k", 0).unwrap();
    hands.advance(100);
    claim.commit();
    shard.turn();
    assert_eq!(shard.taken[0].log_time, 110);
}

/// A record above a quarter of the lane goes boxed; budget and lane bound how many.
#[test]
fn large_records_pass_through_their_budget() {
    let (mut shard, intake) = one(Limits { large_bytes: 50_000, ..small() });
    let mut producer = intake.producer().unwrap();
    let large: Vec<u8> = (0..20_000).map(|i| i as u8).collect();
    let first = producer.append(b"a", &large).unwrap();
    let small = producer.append(b"b", b"between").unwrap();
    let mut claim = producer.try_claim(b"c", large.len()).unwrap();
    claim.copy_from_slice(&large);
    let second = claim.commit();
    assert_eq!([first.index(), small.index(), second.index()], [0, 1, 2]);
    assert_eq!(producer.append(b"d", &large), Err(NO_BUFFERS));
    let mut other = intake.producer().unwrap();
    assert_eq!(other.append(b"d", &large), Err(NO_BUFFERS), "one budget for all");
    assert!(producer.append(b"e", b"small ones pass").is_ok());
    shard.take();
    assert_eq!(other.append(b"d", &large), Err(NO_BUFFERS), "taken is not durable");
    shard.acknowledge();
    let claim = other.try_claim(b"d", large.len()).unwrap();
    drop(claim);
    other.append(b"d", &large).unwrap();
    other.append(b"e", &large).unwrap();
    assert_eq!(other.append(b"f", &large), Err(NO_BUFFERS));
    shard.turn();
    assert_eq!(shard.refused(), 4);
    let keys: Vec<_> = shard.taken.iter().map(|t| t.key[0]).collect();
    assert_eq!(keys, *b"abcede");
    assert!(shard.taken.iter().filter(|t| t.payload.len() > 100).all(|t| t.payload == large));
}

/// Else a record above the whole budget would be refused for ever.
#[test]
fn a_single_large_record_always_fits() {
    let (mut shard, intake) = one(Limits { large_bytes: 1, ..small() });
    let mut producer = intake.producer().unwrap();
    producer.append(b"k", &[1; 30_000]).unwrap();
    assert_eq!(producer.append(b"k", &[1; 30_000]), Err(NO_BUFFERS));
    shard.turn();
    producer.append(b"k", &[1; 30_000]).unwrap();
}

/// What a stopped shard never took must not hold the budget of the others.
#[test]
fn a_stopped_lane_gives_its_large_budget_back() {
    let mut shards = [0, 1].map(Shard::new);
    let intake = intake_of(&shards.each_ref(), Limits { large_bytes: 40_000, ..small() });
    let mut producer = intake.producer().unwrap();
    let (mut dead, mut alive) = (Vec::new(), Vec::new());
    for key in (0u8..=255).map(|k| [k]) {
        let ticket = producer.append(&key, b"").unwrap();
        if ticket.lane() == 0 {
            dead = key.to_vec()
        } else {
            alive = key.to_vec()
        }
        shards.iter_mut().for_each(|shard| _ = shard.turn());
    }
    producer.append(&dead, &[1; 30_000]).unwrap();
    assert_eq!(producer.append(&alive, &[1; 30_000]), Err(NO_BUFFERS));
    shards[0].stop(POISONED);
    producer.append(&alive, &[1; 30_000]).unwrap();
}

#[test]
fn a_full_lane_refuses_large_records_too() {
    let (mut shard, intake) = one(small());
    let mut producer = intake.producer().unwrap();
    // The smallest record takes 40 bytes with its word: 16 of the 4096 are left, and a boxed
    // record would take 24.
    while producer.append(b"", b"").is_ok() {}
    assert_eq!(producer.append(b"k", &[1; 30_000]), Err(FULL));
    shard.turn();
    producer.append(b"k", &[1; 30_000]).unwrap();
}

#[test]
fn a_batch_is_seen_at_its_end() {
    let (mut shard, intake) = one(Limits::default());
    let mut producer = intake.producer().unwrap();
    let payloads: Vec<[u8; 8]> = (0..100u64).map(u64::to_le_bytes).collect();
    let events = payloads.iter().map(|p| (&b"k"[..], &p[..]));
    let mut seen_early = 0;
    let tickets = producer.append_batch(events.inspect(|_| seen_early += shard.take())).unwrap();
    assert_eq!(seen_early, 0);
    assert_eq!(tickets.iter().map(Ticket::index).collect::<Vec<_>>(), Vec::from_iter(0..100));
    assert_eq!(shard.turn(), 100);
    assert!(shard.taken.iter().zip(&payloads).all(|(taken, payload)| taken.payload == payload));
    assert!(tickets.iter().all(|&ticket| producer.is_durable(ticket)));
}

/// The lane fills up in the middle: the first part is on its way, and is told.
#[test]
fn a_batch_can_end_early() {
    let (mut shard, intake) = one(small());
    let mut producer = intake.producer().unwrap();
    let events = std::iter::repeat_n((&b"k"[..], &[5u8; 100][..]), 1_000);
    let BatchError { accepted, error } = producer.append_batch(events).unwrap_err();
    assert_eq!(error, FULL);
    assert!(!accepted.is_empty());
    assert_eq!(shard.turn(), accepted.len());
    assert_eq!(shard.refused(), 1);
    assert!(producer.is_durable(*accepted.last().unwrap()));
    // A large record within a batch keeps its place.
    let events = [(&b"1"[..], &b"x"[..]), (b"2", &[1; 20_000]), (b"3", b"y")];
    producer.append_batch(events).unwrap();
    shard.taken.clear();
    shard.turn();
    let keys: Vec<_> = shard.taken.iter().map(|t| t.key[0]).collect();
    assert_eq!(keys, *b"123");
}

/// A batch far longer than the lane must get through while the shard works beside it.
#[test]
fn a_long_batch_does_not_hide_behind_its_end() {
    let (mut shard, intake) = one(small());
    let mut producer = intake.producer().unwrap();
    let mut most = 0;
    let events = (0..1_000).map(|_| (&b"k"[..], &[5u8; 100][..]));
    let tickets = producer.append_batch(events.inspect(|_| most = most.max(shard.turn()))).unwrap();
    assert_eq!(tickets.len(), 1_000);
    assert!(most > 1, "and still several at a time");
}

/// The iterator is a caller's code.
#[test]
fn a_panic_within_a_batch_publishes_what_was_appended() {
    let (mut shard, intake) = one(small());
    let mut producer = intake.producer().unwrap();
    let mut tickets = Vec::new();
    let events =
        (0..5).map(|i| if i == 3 { resume_unwind(Box::new("lost")) } else { (&b"k"[..], &b"v"[..]) });
    let result = catch_unwind(AssertUnwindSafe(|| producer.append_batch_into(events, &mut tickets)));
    assert!(result.is_err());
    assert_eq!((tickets.len(), shard.turn()), (3, 3));
    assert!(producer.is_durable(tickets[2]));
}

#[test]
fn want_of_space_is_refused_and_ends() {
    let (mut shard, intake) = one(small());
    let mut producer = intake.producer().unwrap();
    shard.gate().set_no_space(true);
    assert_eq!(producer.append(b"k", b"v"), Err(NO_SPACE));
    assert_eq!(shard.turn(), 0);
    assert_eq!(shard.lanes(), 0, "no lane, whose space would have to be promised");
    thread::scope(|scope| {
        let appending = scope.spawn(|| producer.append_within(b"k", b"v", LONG));
        shard.gate().set_no_space(false);
        assert!(appending.join().unwrap().is_ok());
    });
    assert_eq!(shard.turn(), 1);
    assert_eq!(shard.refused(), 1, "counted before there was a lane, told with it");
}

#[test]
fn stopping_reaches_every_waiter_and_every_append() {
    let (mut shard, intake) = one(small());
    let mut producer = intake.producer().unwrap();
    let safe = producer.append(b"k", b"safe").unwrap();
    shard.turn();
    let lost = producer.append(b"k", b"lost").unwrap();
    let indeterminate = Err(WaitError::Indeterminate(POISONED));
    let waiter = producer.waiter();
    thread::scope(|scope| {
        let blocked = scope.spawn(|| waiter.wait(lost, WaitFor::block()));
        let spinning = scope.spawn(|| waiter.wait(lost, WaitFor::block().spinning(LONG)));
        let polling = scope.spawn(|| block_on(waiter.durable(lost)));
        shard.take();
        shard.stop(POISONED);
        for thread in [blocked, spinning, polling] {
            assert_eq!(thread.join().unwrap().map(|_| ()), indeterminate);
        }
    });
    assert!(producer.wait(safe, MOMENT).is_ok());
    assert!(!producer.is_durable(lost));
    assert_eq!(producer.flush(), indeterminate);
    let stopped = AppendError::Stopped(POISONED);
    assert_eq!(producer.append(b"k", b"more"), Err(stopped));
    assert_eq!(producer.append_within(b"k", b"more", LONG), Err(stopped));
    assert_eq!(producer.try_claim(b"k", 3).map(|_| ()), Err(stopped));
    let mut late = intake.producer().unwrap();
    assert_eq!(late.append(b"k", b"v"), Err(stopped));
}

/// A shard that dies without a word: its lanes are dropped with it, and appends find out.
#[test]
fn a_dead_shard_is_noticed_by_those_who_wait_for_room() {
    let (mut shard, intake) = one(small());
    let mut producer = intake.producer().unwrap();
    let ticket = producer.append(b"k", b"v").unwrap();
    shard.take();
    drop(shard);
    let abandoned = Err(WaitError::Indeterminate(Stopped::Abandoned));
    assert_eq!(producer.wait(ticket, WaitFor::block()).map(|_| ()), abandoned);
    let error = loop {
        if let Err(error) = producer.append_within(b"k", &[0; 100], LONG) {
            break error;
        }
    };
    assert_eq!(error, AppendError::Stopped(Stopped::Abandoned));
}

/// A lane that was handed over and never taken is stopped with its port.
#[test]
fn a_lane_in_the_queue_is_stopped_too() {
    let (shard, intake) = one(small());
    let mut producer = intake.producer().unwrap();
    let ticket = producer.append(b"k", b"v").unwrap();
    shard.port().stop(Stopped::Abandoned);
    let abandoned = Err(WaitError::Indeterminate(Stopped::Abandoned));
    assert_eq!(producer.wait(ticket, WaitFor::block()).map(|_| ()), abandoned);
}

#[test]
fn a_dropped_producer_leaves_its_work_behind() {
    let (mut shard, intake) = one(small());
    let mut producer = intake.producer().unwrap();
    let ticket = producer.append(b"k", b"last words").unwrap();
    let waiter = producer.waiter();
    let future = producer.durable(ticket);
    drop(producer);
    assert_eq!(waiter.wait(ticket, MOMENT), Err(WaitError::TimedOut));
    shard.turn();
    assert_eq!(shard.taken[0].payload, b"last words");
    assert!(waiter.wait(ticket, WaitFor::block()).is_ok());
    assert!(block_on(future).is_ok());
    shard.turn();
    assert_eq!(shard.lanes(), 0, "its lane is over");
    assert!(waiter.wait(ticket, WaitFor::block()).is_ok(), "its receipts are not");
}

/// A sleeping shard must hear that a producer has gone, or it keeps the lane for ever.
#[test]
fn a_sleeping_shard_hears_of_a_dropped_producer() {
    let (shard, intake) = one(small());
    let wake = shard.port().wake;
    let mut producer = intake.producer().unwrap();
    producer.append(b"k", b"v").unwrap();
    wake.drain();
    wake.prepare_sleep();
    drop(producer);
    let mut poll = libc::pollfd { fd: wake.fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd, which outlives the call.
    let readable = unsafe { libc::poll(&mut poll, 1, 0) };
    assert_eq!(readable, 1, "the eventfd tells of it");
}

/// A shard that stops while a producer makes its first lane: either the append is refused, or the
/// ticket resolves. Nobody waits for a lane that nobody saw.
#[test]
fn stopping_races_with_the_first_append() {
    for _ in 0..2_000 {
        let (mut shard, intake) = one(small());
        let mut producer = intake.producer().unwrap();
        thread::scope(|scope| {
            let appending = scope.spawn(|| {
                let appended = producer.append(b"k", b"v");
                appended.map(|ticket| producer.wait(ticket, WaitFor::block()))
            });
            shard.stop(POISONED);
            match appending.join().unwrap() {
                Err(error) => assert_eq!(error, AppendError::Stopped(POISONED)),
                Ok(waited) => assert_eq!(waited, Err(WaitError::Indeterminate(POISONED))),
            }
        });
    }
}

#[test]
fn a_panic_in_a_claim_loses_the_claim_alone() {
    let (mut shard, intake) = one(small());
    let mut producer = intake.producer().unwrap();
    let died = thread::spawn(move || {
        producer.append(b"k", b"before").unwrap();
        let mut claim = producer.try_claim(b"k", 4).unwrap();
        claim.copy_from_slice(b"half");
        resume_unwind(Box::new("a dying thread"));
    });
    assert!(died.join().is_err());
    shard.turn();
    let payloads: Vec<_> = shard.taken.iter().map(|t| &t.payload[..]).collect();
    assert_eq!(payloads, [b"before"]);
    assert_eq!((shard.lanes(), intake.producers()), (0, 0));
}

#[test]
fn producers_are_bounded_and_numbered_once() {
    let (_shard, intake) = one(Limits { producers_max: 2, ..small() });
    let first = intake.producer().unwrap();
    let second = intake.producer().unwrap();
    let too_many = ProducerError::TooMany { max: 2, setting: "producers_max" };
    assert_eq!(intake.producer().map(|_| ()), Err(too_many));
    assert!(too_many.to_string().contains("producers_max"));
    drop(first);
    let third = intake.producer().unwrap();
    assert_eq!((second.id(), third.id()), (2, 3), "no number comes back");
    intake.close();
    drop(third);
    assert_eq!(intake.producer().map(|_| ()), Err(ProducerError::Closed));
}

#[test]
fn receipts_leave_the_window_and_durability_does_not() {
    let (mut shard, intake) = one(Limits { receipts: 2, ..small() });
    let mut producer = intake.producer().unwrap();
    let tickets: Vec<_> = (0..4)
        .map(|_| {
            let ticket = producer.append(b"k", b"v").unwrap();
            shard.turn();
            ticket
        })
        .collect();
    assert_eq!(producer.wait(tickets[0], MOMENT), Err(WaitError::ReceiptGone));
    assert!(producer.is_durable(tickets[0]));
    assert!(producer.wait(tickets[2], MOMENT).is_ok());
    producer.flush().unwrap();
}

/// A ticket that is taken to the wrong producer would be answered from another's lane.
#[test]
#[should_panic(expected = "a ticket of producer 1 was given to producer 2")]
fn a_foreign_ticket_is_not_answered() {
    let (_shard, intake) = one(small());
    let ticket = intake.producer().unwrap().append(b"k", b"v").unwrap();
    intake.producer().unwrap().is_durable(ticket);
}

/// In a child there is no shard: every call must return, and say why.
#[test]
fn a_forked_child_is_told() {
    let (mut shard, intake) = one(small());
    let mut producer = intake.producer().unwrap();
    let ticket = producer.append(b"k", b"v").unwrap();
    // SAFETY: the child works on its copy without allocating, and leaves by `_exit`.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let told = producer.append(b"k", b"v") == Err(AppendError::Stopped(Stopped::Abandoned))
            && producer.try_claim(b"k", 1).is_err()
            && producer.flush() == Err(WaitError::Indeterminate(Stopped::Abandoned))
            && producer.wait(ticket, WaitFor::block()).is_err();
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(if told { 7 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: our own child, and a place for its status.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 7, "{status:#x}");
    producer.append(b"k", b"w").unwrap();
    assert_eq!(shard.turn(), 2, "the parent goes on");
}

/// Two producers, two sleeping and waking shards, all ways of appending and waiting at once.
#[test]
fn nothing_is_lost_swapped_or_forgotten() {
    const EVENTS: u64 = 20_000;
    let shards = [0, 1].map(Shard::new);
    let intake = intake_of(&shards.each_ref(), Limits { large_bytes: 100_000, ..small() });
    let running = shards.map(Shard::run);
    thread::scope(|scope| {
        for _ in 0..2 {
            let mut producer = intake.producer().unwrap();
            scope.spawn(move || {
                for number in 0..EVENTS {
                    let key = [(number % 16) as u8];
                    let mut payload = [(number % 251) as u8; 3000];
                    payload[..8].copy_from_slice(&number.to_le_bytes());
                    let length = if number % 500 == 0 { 3000 } else { 8 + number as usize % 200 };
                    let ticket = producer.append_within(&key, &payload[..length], LONG).unwrap();
                    match number % 97 {
                        0 => assert!(producer.wait(ticket, WaitFor::block()).is_ok()),
                        1 => assert!(block_on(producer.durable(ticket)).is_ok()),
                        2 => producer.flush().unwrap(),
                        _ => {}
                    }
                }
                producer.flush().unwrap();
            });
        }
    });
    let shards = running.map(Running::close);
    let mut all: Vec<_> = shards.iter().flat_map(|shard| &shard.taken).collect();
    assert_eq!(all.len() as u64, 2 * EVENTS);
    for shard in &shards {
        for producer in 1..=2 {
            let seqs = shard.taken.iter().filter(|t| t.producer == producer).map(|t| t.producer_seq);
            assert!(seqs.is_sorted_by(|a, b| a < b), "each lane in order");
        }
    }
    all.sort_by_key(|taken| (taken.producer, taken.producer_seq));
    for (at, taken) in all.iter().enumerate() {
        let number = at as u64 % EVENTS;
        assert_eq!(taken.producer_seq, number);
        assert_eq!(taken.key, [(number % 16) as u8]);
        assert_eq!(taken.payload[..8], number.to_le_bytes());
        assert!(taken.payload[8..].iter().all(|&byte| byte == (number % 251) as u8));
    }
    for two in all.windows(2).filter(|two| two[0].producer == two[1].producer) {
        assert!(two[0].log_time < two[1].log_time);
    }
}
