//! The reading end of a lane.

use std::fmt;

use super::sync::{Arc, Ordering, UNIT_BYTES};
use super::{BOXED_BYTES, Frame, Ring};

/// The reading end of a lane. It can go to another thread, and has no second owner.
///
/// Three steps, so that reading, freeing and telling the producer can happen at three moments:
/// [`LaneConsumer::peek`], [`LaneConsumer::pop`], [`LaneConsumer::release`].
pub struct LaneConsumer {
    ring: Arc<Ring>,
    /// Everything before it is popped. It may stand on a SKIP.
    at: u64,
    /// The frame that was peeked and not yet popped.
    peeked: Option<Peeked>,
    /// A copy of the shared tail, perhaps old: the frames before it are published.
    tail: u64,
}

#[derive(Clone, Copy)]
struct Peeked {
    /// Position of the payload.
    payload: u64,
    /// Its length in the ring.
    bytes: usize,
    /// Whether the payload owns a record instead of being one.
    boxed: bool,
}

impl LaneConsumer {
    pub(super) fn new(ring: Arc<Ring>) -> LaneConsumer {
        LaneConsumer { ring, at: 0, peeked: None, tail: 0 }
    }

    /// The next published frame, inline or boxed alike. It stays the next one until it is popped.
    #[inline]
    pub fn peek(&mut self) -> Option<&[u8]> {
        let peeked = match self.peeked {
            Some(peeked) => peeked,
            None => self.find()?,
        };
        self.peeked = Some(peeked);
        // SAFETY: a published frame is ours until it is released, and the slice borrows us, so
        // it ends before that. A box is alive until its frame is popped.
        unsafe {
            if peeked.boxed {
                return Some(&*self.ring.peek_box(peeked.payload));
            }
            let start = self.ring.memory().to_read(self.ring.offset(peeked.payload), peeked.bytes);
            Some(std::slice::from_raw_parts(start.as_ptr(), peeked.bytes))
        }
    }

    /// Done with the peeked frame; frees its record if it was boxed. The producer does not get
    /// the space yet.
    ///
    /// # Panics
    /// If no frame is peeked: nobody may pop what nobody has seen.
    #[inline]
    pub fn pop(&mut self) {
        let peeked = self.peeked.take().expect("pop follows peek");
        // Under loom the last read of the frame is here, not at the peek.
        #[cfg(loom)]
        // SAFETY: still ours: published and not released.
        unsafe {
            self.ring.memory().to_read(self.ring.offset(peeked.payload), peeked.bytes);
        }
        self.at = peeked.payload + peeked.bytes.next_multiple_of(UNIT_BYTES) as u64;
        if peeked.boxed {
            // SAFETY: peeked, so published and ours; `at` is beyond it, so nobody takes it again.
            drop(unsafe { self.ring.take_box(peeked.payload) });
        }
    }

    /// Gives the space of all popped frames back to the producer. One store.
    #[inline]
    pub fn release(&mut self) {
        // Release: our reads come before the writes of a producer that sees this head.
        self.ring.head.0.store(self.at, Ordering::Release);
    }

    /// Whether nothing is published that is not popped. Looks at the shared tail, whatever the
    /// copy says: this is the question to ask between
    /// [`Wake::prepare_sleep`](crate::wake::Wake::prepare_sleep) and sleeping.
    #[inline]
    pub fn is_empty(&mut self) -> bool {
        // Acquire: the frames' bytes come after it.
        self.tail = self.ring.tail.0.load(Ordering::Acquire);
        self.at == self.tail
    }

    /// Size of the ring, words and padding of frames included.
    #[inline]
    pub fn capacity_bytes(&self) -> usize {
        self.ring.capacity()
    }

    /// Whether the producer is gone. Its last frames may still be here: the lane is finished
    /// when this is true and *afterwards* [`LaneConsumer::is_empty`] is.
    #[inline]
    pub fn producer_gone(&self) -> bool {
        // Acquire: the tail that the producer published last is visible after it.
        self.ring.fixed.0.producer_gone.load(Ordering::Acquire)
    }

    /// The next frame, past a SKIP if need be; looks at the shared tail only when all that the
    /// copy shows is popped.
    #[inline]
    fn find(&mut self) -> Option<Peeked> {
        if self.at == self.tail && self.is_empty() {
            return None;
        }
        // SAFETY: `at` stands on a frame before the published tail.
        let mut frame = unsafe { self.ring.read_word(self.at) };
        let mut word_at = self.at;
        if frame == Frame::Skip {
            // A skip is published together with the frame that it makes room for.
            word_at = self.at.next_multiple_of(self.ring.capacity() as u64);
            assert!(word_at < self.tail, "lane: a skip without its frame");
            // SAFETY: published, as just checked.
            frame = unsafe { self.ring.read_word(word_at) };
        }
        let payload = word_at + UNIT_BYTES as u64;
        let peeked = match frame {
            Frame::Inline(bytes) => Peeked { payload, bytes, boxed: false },
            Frame::Boxed => Peeked { payload, bytes: BOXED_BYTES, boxed: true },
            Frame::Skip => panic!("lane: a skip at the start of the ring"),
        };
        // The slice that `peek` makes rests on this length, so it is checked in release too.
        assert!(payload + peeked.bytes as u64 <= self.tail, "lane: a frame beyond the published tail");
        Some(peeked)
    }
}

impl Drop for LaneConsumer {
    fn drop(&mut self) {
        // What was popped is not ours to free again; what was not, is freed with the ring.
        self.release();
        self.ring.fixed.0.consumer_gone.store(true, Ordering::Release);
    }
}

impl fmt::Debug for LaneConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LaneConsumer({} bytes, at {})", self.capacity_bytes(), self.at)
    }
}
