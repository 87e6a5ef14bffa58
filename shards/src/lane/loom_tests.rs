//! The lane under loom: every interleaving and every reordering that the memory model allows.
//!
//! Each 8-byte unit of the ring is tracked, so that a model fails not only on a wrong byte but
//! on any access that the other side's access does not happen before or after.

use loom::thread;

use super::*;

/// The smallest ring: payloads up to 16 bytes, two large frames or a few small ones.
const TINY: usize = 64;

/// A model in which a thread may be interrupted at most three times where it need not be: what
/// goes wrong here, goes wrong with fewer.
fn check(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

fn push(producer: &mut LaneProducer, bytes: &[u8]) {
    loop {
        if let Some(mut claim) = producer.try_claim(bytes.len()) {
            claim.copy_from_slice(bytes);
            claim.commit();
            return;
        }
        thread::yield_now();
    }
}

/// Waits for the next frame.
fn take(consumer: &mut LaneConsumer) -> Vec<u8> {
    loop {
        if let Some(bytes) = consumer.peek() {
            let bytes = bytes.to_vec();
            consumer.pop();
            return bytes;
        }
        thread::yield_now();
    }
}

/// Bytes before the tail; a frame is whole when it is seen.
#[test]
fn loom_publication() {
    check(|| {
        let (mut producer, mut consumer) = lane_for_models(TINY);
        let writer = thread::spawn(move || {
            push(&mut producer, b"one");
            push(&mut producer, b"two, longer");
        });
        assert_eq!(take(&mut consumer), b"one");
        assert_eq!(take(&mut consumer), b"two, longer");
        assert!(consumer.peek().is_none());
        writer.join().unwrap();
    });
}

/// Reads before the head: what the producer writes on its second round is read no more. The
/// second frame does not fit before the end, so it also skips.
#[test]
fn loom_wrap_and_full() {
    check(|| {
        let (mut producer, mut consumer) = lane_for_models(TINY);
        let writer = thread::spawn(move || {
            // 24 bytes each with their words: the third stands at 0 again, behind a skip of 16,
            // and waits for the first to be released.
            for n in 0..4 {
                push(&mut producer, &[n; 16]);
            }
        });
        for n in 0..4 {
            assert_eq!(take(&mut consumer), [n; 16]);
            consumer.release();
        }
        writer.join().unwrap();
        assert!(consumer.is_empty());
    });
}

/// A refused claim costs nothing: full, then empty, then full again.
#[test]
fn loom_full_then_empty() {
    check(|| {
        let (mut producer, mut consumer) = lane_for_models(TINY);
        push(&mut producer, &[1; 16]);
        push(&mut producer, &[2; 16]);
        let reader = thread::spawn(move || {
            // Whatever the producer does meanwhile, these two come first.
            assert_eq!(take(&mut consumer), [1; 16]);
            assert_eq!(take(&mut consumer), [2; 16]);
            consumer.release();
            consumer
        });
        let early = producer.try_claim(16).map(Claim::commit).is_some();
        let mut consumer = reader.join().unwrap();
        if !early {
            producer.try_claim(16).expect("all of it was released").commit();
        }
        assert_eq!(consumer.peek().map(<[u8]>::len), Some(16));
    });
}

/// What is aborted is never seen, and its bytes may be claimed again while the consumer looks.
#[test]
fn loom_abort() {
    check(|| {
        let (mut producer, mut consumer) = lane_for_models(TINY);
        let writer = thread::spawn(move || {
            let mut claim = producer.try_claim(5).unwrap();
            claim.copy_from_slice(b"never");
            drop(claim);
            push(&mut producer, b"ever");
        });
        assert_eq!(take(&mut consumer), b"ever");
        assert!(consumer.peek().is_none());
        writer.join().unwrap();
    });
}

/// Between commit and publish there is nothing to see; then all of it.
#[test]
fn loom_commit_later() {
    check(|| {
        let (mut producer, mut consumer) = lane_for_models(TINY);
        let writer = thread::spawn(move || {
            for n in 0..2 {
                let mut claim = producer.try_claim(1).unwrap();
                claim[0] = n;
                claim.commit_later();
            }
            producer.publish();
            producer
        });
        assert_eq!(take(&mut consumer), [0]);
        assert_eq!(consumer.peek(), Some(&[1][..]));
        writer.join().unwrap();
    });
}

/// A record changes hands once, whoever ends first; the ring asserts that none is left. Loom
/// itself asserts that the ring is freed.
#[test]
fn loom_boxed_is_freed_once() {
    check(|| {
        let (mut producer, mut consumer) = lane_for_models(TINY);
        let writer = thread::spawn(move || {
            producer.try_push_boxed(vec![1; 40].into()).unwrap();
            producer.try_push_boxed(vec![2; 40].into()).unwrap();
            let _ = producer.try_push_boxed(vec![3; 40].into());
        });
        if let Some(bytes) = consumer.peek() {
            assert_eq!(bytes, [1; 40]);
            consumer.pop();
        }
        // Peeked and not popped: still the ring's.
        if let Some(bytes) = consumer.peek() {
            assert_eq!(bytes.len(), 40);
        }
        drop(consumer);
        writer.join().unwrap();
    });
}

/// Gone, then empty: a producer's last frame is not overlooked.
#[test]
fn loom_last_words() {
    check(|| {
        let (mut producer, mut consumer) = lane_for_models(TINY);
        let writer = thread::spawn(move || {
            let mut claim = producer.try_claim(4).unwrap();
            claim.copy_from_slice(b"last");
            claim.commit_later();
            // Dropped without publish.
        });
        while !consumer.producer_gone() {
            thread::yield_now();
        }
        assert!(!consumer.is_empty());
        assert_eq!(take(&mut consumer), b"last");
        assert!(consumer.is_empty());
        writer.join().unwrap();
    });
}

/// The canary: a publication without Release must fail, or loom sees nothing of the above.
#[test]
#[should_panic(expected = "Causality violation")]
fn loom_sees_a_missing_release() {
    check(|| {
        let (mut producer, mut consumer) = lane_for_models(TINY);
        let writer = thread::spawn(move || {
            let mut claim = producer.try_claim(4).unwrap();
            claim.copy_from_slice(b"lost");
            claim.commit_later();
            producer.ring.tail.0.store(producer.tail, Ordering::Relaxed);
            // Not dropped here: that would publish properly.
            producer
        });
        assert_eq!(take(&mut consumer), b"lost");
        writer.join().unwrap();
    });
}
