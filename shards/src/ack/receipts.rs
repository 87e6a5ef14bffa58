//! The newest acknowledgements of one lane, for those who ask which place a record got.
//!
//! A ring of spans, not of records: what one lane has in one batch is contiguous in the lane
//! and in the shard, so the shard writes 64 bytes per batch instead of per record. A span holds
//! at least one record; a ring of n spans therefore covers at least the n newest records.
//!
//! Each slot is a seqlock whose stamp is the first index of its span. Indices only rise, so a
//! stamp never comes back, and two equal stamps around the reading of the fields prove that the
//! fields belong together. One writer; any number of readers, which never make it wait.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::sync::{AtomicU64, fence};
use super::{AckSpan, Receipt};

/// Nobody has written here yet; an index is stored plus one.
#[cfg(loom)]
const EMPTY: u64 = 0;
/// The fields are being changed.
const WRITING: u64 = u64::MAX;

#[repr(align(64))]
struct Slot {
    stamp: AtomicU64,
    first_seq: AtomicU64,
    batch: AtomicU64,
    shard_and_count: AtomicU64,
    digest: [AtomicU64; 4],
}

pub(super) struct Receipts {
    slots: Box<[Slot]>,
    /// Spans ever written.
    written: AtomicU64,
}

impl Receipts {
    /// Remembers at least the `records` newest records.
    pub(super) fn new(records: usize) -> Receipts {
        Receipts { slots: slots(records.max(1).next_power_of_two()), written: AtomicU64::new(0) }
    }

    fn slot(&self, span: u64) -> &Slot {
        &self.slots[span as usize & (self.slots.len() - 1)]
    }

    /// One writer only; two at once would mix up receipts.
    pub(super) fn push(&self, span: &AckSpan) {
        let number = self.written.load(Relaxed);
        let slot = self.slot(number);
        slot.stamp.store(WRITING, Relaxed);
        // Whoever sees one of the stores below also sees that the slot was being written.
        fence(Release);
        slot.first_seq.store(span.first_seq, Relaxed);
        slot.batch.store(span.batch, Relaxed);
        slot.shard_and_count.store(u64::from(span.shard) << 32 | u64::from(span.count), Relaxed);
        for (word, bytes) in slot.digest.iter().zip(span.digest.as_chunks::<8>().0) {
            word.store(u64::from_le_bytes(*bytes), Relaxed);
        }
        slot.stamp.store(span.first_index + 1, Release);
        self.written.store(number + 1, Release);
    }

    /// The receipt of an index that the caller has seen acknowledged; `None` if it left the window.
    pub(super) fn get(&self, index: u64) -> Option<Receipt> {
        let end = self.written.load(Acquire);
        // Overwritten already? Then so is everything before it, and the index is before its end.
        let newest = self.read(end - 1)?;
        if newest.first_index <= index {
            return receipt(&newest, index);
        }
        let past = newest.first_index + u64::from(newest.count);
        // Wanted: the last span that begins at or before the index. Slots that the writer has
        // meanwhile taken for newer spans are the oldest ones: they count as "before".
        let before = |span: u64| {
            let stamp = self.slot(span).stamp.load(Acquire);
            stamp == WRITING || stamp <= index + 1 || stamp > past
        };
        let oldest = end.saturating_sub(self.slots.len() as u64);
        // Waiters ask for what is new, so gallop backwards first.
        let (mut low, mut high, mut step) = (end - 1, end - 1, 1);
        while !before(low) {
            if low == oldest {
                return None;
            }
            high = low;
            low = low.saturating_sub(step).max(oldest);
            step *= 2;
        }
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if before(middle) { low = middle } else { high = middle }
        }
        receipt(&self.read(low)?, index)
    }

    fn read(&self, span: u64) -> Option<AckSpan> {
        let slot = self.slot(span);
        let stamp = slot.stamp.load(Acquire);
        if stamp == WRITING {
            return None;
        }
        let shard_and_count = slot.shard_and_count.load(Relaxed);
        let mut digest = [0; 32];
        for (word, bytes) in slot.digest.iter().zip(digest.as_chunks_mut::<8>().0) {
            *bytes = word.load(Relaxed).to_le_bytes();
        }
        let read = AckSpan {
            first_index: stamp - 1,
            count: shard_and_count as u32,
            shard: (shard_and_count >> 32) as u32,
            first_seq: slot.first_seq.load(Relaxed),
            batch: slot.batch.load(Relaxed),
            digest,
        };
        fence(Acquire);
        (slot.stamp.load(Relaxed) == stamp).then_some(read)
    }
}

fn receipt(span: &AckSpan, index: u64) -> Option<Receipt> {
    let at = index.checked_sub(span.first_index)?;
    (at < u64::from(span.count)).then_some(Receipt {
        shard: span.shard,
        seq: span.first_seq + at,
        batch: span.batch,
        digest: span.digest,
    })
}

/// Zero pages straight from the kernel: a lane that is hardly used costs hardly any memory.
#[cfg(not(loom))]
fn slots(count: usize) -> Box<[Slot]> {
    let zeroed = Box::<[Slot]>::new_zeroed_slice(count);
    // SAFETY: a slot is made of integers, for which all bits zero is a value (an empty slot).
    unsafe { zeroed.assume_init() }
}

#[cfg(loom)]
fn slots(count: usize) -> Box<[Slot]> {
    let slot = || Slot {
        stamp: AtomicU64::new(EMPTY),
        first_seq: AtomicU64::new(0),
        batch: AtomicU64::new(0),
        shard_and_count: AtomicU64::new(0),
        digest: std::array::from_fn(|_| AtomicU64::new(0)),
    };
    (0..count).map(|_| slot()).collect()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn span(first_index: u64, count: u32, batch: u64) -> AckSpan {
        let mut digest = [0; 32];
        for chunk in digest.as_chunks_mut::<8>().0 {
            *chunk = batch.to_le_bytes();
        }
        AckSpan { first_index, count, shard: 7, first_seq: first_index * 3, batch, digest }
    }

    proptest! {
        /// Every index of the window has the receipt of its span, every older one none.
        #[test]
        fn finds_what_is_in_the_window(window in 1usize..40, counts in prop::collection::vec(1u32..9, 1..120)) {
            let receipts = Receipts::new(window);
            let (mut next, mut owner) = (0, Vec::new());
            for (batch, &count) in counts.iter().enumerate() {
                receipts.push(&span(next, count, batch as u64));
                owner.extend((0..count).map(|_| batch));
                next += u64::from(count);
            }
            let kept = window.next_power_of_two().min(counts.len());
            for (index, &batch) in owner.iter().enumerate() {
                let got = receipts.get(index as u64);
                if batch + kept < counts.len() {
                    prop_assert_eq!(got, None);
                } else {
                    let first = owner.iter().position(|&b| b == batch).unwrap();
                    let wanted = span(first as u64, counts[batch], batch as u64);
                    prop_assert_eq!(got, receipt(&wanted, index as u64));
                    prop_assert!(got.is_some());
                }
            }
        }
    }

    /// A reader beside a writer that laps it gets a whole receipt or none, never a mixture.
    #[test]
    fn never_a_mixture() {
        use std::sync::atomic::AtomicBool;
        let receipts = Receipts::new(8);
        receipts.push(&span(0, 2, 0));
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for batch in 1..200_000 {
                    receipts.push(&span(batch * 2, 2, batch));
                }
                done.store(true, Release);
            });
            let mut found = 0u64;
            while !done.load(Acquire) {
                let newest = receipts.written.load(Acquire) * 2;
                let index = newest.saturating_sub(1 + newest % 16);
                if let Some(got) = receipts.get(index) {
                    found += 1;
                    assert_eq!(got.batch, index / 2);
                    assert_eq!(got.seq, index / 2 * 6 + index % 2);
                    assert_eq!(got.digest, span(0, 1, got.batch).digest);
                }
            }
            let last = receipts.get(199_999 * 2).expect("nobody writes any more");
            assert_eq!(last.batch, 199_999);
            assert!(found > 0 || cfg!(miri));
        });
    }
}
