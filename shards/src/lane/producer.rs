//! The writing end of a lane.

use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use super::sync::{Arc, Ordering, UNIT_BYTES};
use super::{BOXED_BYTES, Frame, Ring};

/// The writing end of a lane. It can go to another thread, and has no second owner.
///
/// Dropping it publishes what was committed, then tells the consumer
/// ([`LaneConsumer::producer_gone`](super::LaneConsumer::producer_gone)). In a child after
/// `fork` the lane is a copy that nobody reads.
pub struct LaneProducer {
    pub(super) ring: Arc<Ring>,
    /// End of the last committed frame; what lies beyond the shared tail is not yet visible.
    pub(super) tail: u64,
    /// A copy of the shared head, perhaps old: the space that it shows as free is free.
    head: u64,
    /// Longest payload of a frame.
    frame_bytes_max: usize,
}

impl LaneProducer {
    pub(super) fn new(ring: Arc<Ring>) -> LaneProducer {
        let frame_bytes_max = ring.capacity() / 4;
        LaneProducer { ring, tail: 0, head: 0, frame_bytes_max }
    }

    /// Size of the ring, words and padding of frames included.
    #[inline]
    pub fn capacity_bytes(&self) -> usize {
        self.ring.capacity()
    }

    /// The longest frame that can be claimed, a quarter of the ring. Longer records go boxed.
    #[inline]
    pub fn frame_bytes_max(&self) -> usize {
        self.frame_bytes_max
    }

    /// Room for a frame of exactly `bytes` bytes, contiguous and aligned to 8, or `None` while
    /// the lane is full. Its contents are arbitrary (old frames, or zero).
    ///
    /// # Panics
    /// If `bytes` is zero or above [`LaneProducer::frame_bytes_max`]: waiting would not help.
    #[inline]
    pub fn try_claim(&mut self, bytes: usize) -> Option<Claim<'_>> {
        assert!(bytes.wrapping_sub(1) < self.frame_bytes_max, "a frame no lane of this size takes");
        let at = self.place(Frame::whole_bytes(bytes))?;
        let offset = self.ring.offset(at + UNIT_BYTES as u64);
        // SAFETY: `place` found these bytes contiguous, beyond the tail and not beyond the head
        // plus the capacity: they are ours until a tail beyond them is published, and the claim
        // holds the only path to that.
        let payload = unsafe { self.ring.memory().to_write(offset, bytes) };
        Some(Claim { lane: self, at, payload, bytes })
    }

    /// Moves a record that is too long for a frame into the lane and publishes it, and all that
    /// was committed before it. The consumer sees its bytes as it sees any frame's. Gives the
    /// record back while the lane is full.
    pub fn try_push_boxed(&mut self, record: Box<[u8]>) -> Result<(), Box<[u8]>> {
        let Some(at) = self.place(Frame::whole_bytes(BOXED_BYTES)) else {
            return Err(record);
        };
        // SAFETY: `place` found these bytes, as in `try_claim`; `append` follows at once, so the
        // box has an owner again.
        unsafe { self.ring.put_box(at + UNIT_BYTES as u64, record) };
        self.append(at, Frame::Boxed, BOXED_BYTES);
        self.publish();
        Ok(())
    }

    /// Shows the consumer everything that was committed. One store.
    #[inline]
    pub fn publish(&mut self) {
        // Release: the frames' bytes come before the tail that gives them away.
        self.ring.tail.0.store(self.tail, Ordering::Release);
    }

    /// Whether the consumer is gone: nobody will read what is written from now on.
    pub fn is_closed(&self) -> bool {
        self.ring.fixed.0.consumer_gone.load(Ordering::Acquire)
    }

    /// The same as dropping it: publishes, then says that nothing more will come.
    pub fn close(self) {}

    /// Keeps the ring from being paged out, as far as RLIMIT_MEMLOCK allows.
    pub fn lock_memory(&self) -> io::Result<()> {
        self.ring.memory().lock()
    }

    /// Where a frame of `whole` bytes can stand: at the tail, or at the start of the ring when
    /// what is left before its end is too short.
    #[inline]
    fn place(&mut self, whole: usize) -> Option<u64> {
        let capacity = self.ring.capacity();
        let to_end = capacity - self.ring.offset(self.tail);
        let at = if whole <= to_end { self.tail } else { self.tail + to_end as u64 };
        let end = at + whole as u64;
        if end - self.head > capacity as u64 && !self.frees(end) {
            return None;
        }
        Some(at)
    }

    /// Looks at the shared head again: about once a round of the ring, and whenever it is full.
    #[cold]
    #[inline(never)]
    fn frees(&mut self, end: u64) -> bool {
        // Acquire: the consumer's reads come before the writes that follow here.
        self.head = self.ring.head.0.load(Ordering::Acquire);
        end - self.head <= self.ring.capacity() as u64
    }

    /// Makes the frame at `at`, whose payload is written, the last one; not yet visible.
    #[inline]
    fn append(&mut self, at: u64, frame: Frame, payload_bytes: usize) {
        // SAFETY: `place` gave `at`, so the units from the tail up to the frame's end are ours.
        unsafe {
            if at != self.tail {
                self.ring.write_word(self.tail, Frame::Skip);
            }
            self.ring.write_word(at, frame);
        }
        self.tail = at + Frame::whole_bytes(payload_bytes) as u64;
    }
}

impl Drop for LaneProducer {
    fn drop(&mut self) {
        self.publish();
        // Release: whoever sees the flag also sees the last tail.
        self.ring.fixed.0.producer_gone.store(true, Ordering::Release);
    }
}

impl fmt::Debug for LaneProducer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LaneProducer({} bytes, tail {})", self.capacity_bytes(), self.tail)
    }
}

/// Room in a lane, to be filled and committed. Dropping it, or leaking it, changes nothing.
#[must_use = "a claim that is not committed leaves nothing in the lane"]
pub struct Claim<'a> {
    lane: &'a mut LaneProducer,
    /// Position of the frame's word.
    at: u64,
    // Not a reference: it would still be alive, as an argument of `commit`, when the consumer
    // already reads the bytes.
    payload: NonNull<u8>,
    bytes: usize,
}

impl Claim<'_> {
    /// Publishes the frame, and all that was committed before it.
    #[inline]
    pub fn commit(self) {
        self.finish().publish();
    }

    /// Commits the frame; the consumer sees it after the next [`LaneProducer::publish`] (or
    /// commit). For batches: one store of the shared tail instead of one a frame.
    #[inline]
    pub fn commit_later(self) {
        self.finish();
    }

    #[inline]
    fn finish<'a>(self) -> &'a mut LaneProducer
    where
        Self: 'a,
    {
        // Under loom the bytes count as written here too, not only when they were claimed.
        #[cfg(loom)]
        // SAFETY: still ours, see `try_claim`.
        unsafe {
            let offset = self.lane.ring.offset(self.at + UNIT_BYTES as u64);
            self.lane.ring.memory().to_write(offset, self.bytes);
        }
        self.lane.append(self.at, Frame::Inline(self.bytes), self.bytes);
        self.lane
    }
}

impl Deref for Claim<'_> {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: initialised when the ring was made, and ours until the commit (`try_claim`).
        unsafe { std::slice::from_raw_parts(self.payload.as_ptr(), self.bytes) }
    }
}

impl DerefMut for Claim<'_> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and the borrow is unique.
        unsafe { std::slice::from_raw_parts_mut(self.payload.as_ptr(), self.bytes) }
    }
}

impl fmt::Debug for Claim<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Claim({} bytes)", self.bytes)
    }
}
