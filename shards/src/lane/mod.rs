//! The lane: a ring of bytes from one producer to one shard.
//!
//! A lane carries *frames*, each a contiguous run of bytes, from the one [`LaneProducer`] to the
//! one [`LaneConsumer`], in order, without locks, allocation or system calls. What the bytes mean
//! is not its business.
//!
//! ```text
//!   position    0                                             capacity
//!               | word | payload  | word | payload | ... | SKIP |....|
//!                  ^                                ^
//!                  head: given back by the consumer |
//!                                                   tail: published by the producer
//!
//!   word, 8 bytes:   low half   length of the payload in bytes
//!                    high half  0 INLINE: the payload follows, padded to 8
//!                               1 BOXED:  what follows owns a record on the heap
//!                               2 SKIP:   nothing here; the next frame is at the ring's start
//! ```
//! Positions count bytes since the lane's birth and never wrap (2^64 bytes outlast the machine);
//! the offset in the ring is the position modulo the capacity. Everything is a multiple of 8, so
//! a SKIP always has room. A payload is at most a quarter of the capacity: then the longest skip
//! and the longest frame fit into an empty ring together, and a claim cannot be refused for ever.
//!
//! Promises:
//! - A frame is seen whole or not at all, in the order of the commits.
//! - `tail` is stored with Release after the bytes and loaded with Acquire before them; `head`
//!   is stored with Release after the last read and loaded with Acquire before the next write.
//!   So the bytes between `head` and `tail` belong to the consumer and the others to the
//!   producer, and nobody reads what somebody writes.
//! - Each side keeps a copy of the other's index and looks again only when the copy will not do.
//! - A claim that is dropped, leaked, or lost with its thread changes nothing.
//! - What was committed outlives its producer: a producer that is dropped publishes first, then
//!   says that it is gone. Whatever no consumer takes is freed with the lane.
//!
//! It refuses a second producer or consumer (neither end can be cloned), and it wakes nobody:
//! see [`crate::wake`].

mod consumer;
mod producer;
pub(crate) mod sync;

#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(all(test, not(loom)))]
mod tests;

pub use consumer::LaneConsumer;
pub use producer::{Claim, LaneProducer};

use sync::{Arc, AtomicBool, AtomicU64, Line, Memory, Ordering, UNIT_BYTES};

/// The smallest lane.
pub const LANE_BYTES_MIN: usize = 4096;
/// The largest lane.
pub const LANE_BYTES_MAX: usize = 1 << 30;

/// A new lane. `bytes` is a power of two, from [`LANE_BYTES_MIN`] to [`LANE_BYTES_MAX`].
///
/// # Panics
/// If `bytes` is anything else: settings are checked where they are read.
pub fn lane(bytes: usize) -> (LaneProducer, LaneConsumer) {
    assert!(
        bytes.is_power_of_two() && (LANE_BYTES_MIN..=LANE_BYTES_MAX).contains(&bytes),
        "a lane of {bytes} bytes: it must be a power of two from {LANE_BYTES_MIN} to {LANE_BYTES_MAX}"
    );
    ends(bytes)
}

fn ends(bytes: usize) -> (LaneProducer, LaneConsumer) {
    let ring = Arc::new(Ring {
        tail: Line(AtomicU64::new(0)),
        head: Line(AtomicU64::new(0)),
        fixed: Line(Fixed {
            memory: Memory::zeroed(bytes),
            capacity: bytes,
            producer_gone: AtomicBool::new(false),
            consumer_gone: AtomicBool::new(false),
            #[cfg(test)]
            boxes: std::sync::atomic::AtomicIsize::new(0),
        }),
    });
    (LaneProducer::new(Arc::clone(&ring)), LaneConsumer::new(ring))
}

/// A lane of any power of two from 64 bytes: loom's time grows with every unit.
#[cfg(all(test, loom))]
pub(crate) fn lane_for_models(bytes: usize) -> (LaneProducer, LaneConsumer) {
    ends(bytes)
}

/// What both ends share.
struct Ring {
    /// Written by the producer.
    tail: Line<AtomicU64>,
    /// Written by the consumer.
    head: Line<AtomicU64>,
    /// Read by both, written once in a lane's life.
    fixed: Line<Fixed>,
}

struct Fixed {
    memory: Memory,
    capacity: usize,
    producer_gone: AtomicBool,
    consumer_gone: AtomicBool,
    /// Boxes that the ring owns, counted to show that none is lost or freed twice.
    #[cfg(test)]
    boxes: std::sync::atomic::AtomicIsize,
}

/// What a frame's word says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Frame {
    /// That many bytes follow.
    Inline(usize),
    /// A box follows.
    Boxed,
    /// The next frame is at the start of the ring.
    Skip,
}

const KIND_SHIFT: u32 = 32;
const BOXED: u64 = 1;
const SKIP: u64 = 2;

/// A BOXED frame's payload is the box's own pointer, address and length.
type RawRecord = *mut [u8];
const BOXED_BYTES: usize = size_of::<RawRecord>();
const _: () = assert!(align_of::<RawRecord>() <= UNIT_BYTES && BOXED_BYTES <= 16);
const _: () = assert!(size_of::<u64>() == UNIT_BYTES);
const _: () = assert!(LANE_BYTES_MAX < 1 << KIND_SHIFT, "lengths fit the low half of a word");

impl Frame {
    #[inline]
    fn word(self) -> u64 {
        match self {
            Frame::Inline(bytes) => bytes as u64,
            Frame::Boxed => (BOXED << KIND_SHIFT) | BOXED_BYTES as u64,
            Frame::Skip => SKIP << KIND_SHIFT,
        }
    }

    #[inline]
    fn of(word: u64) -> Frame {
        match word >> KIND_SHIFT {
            0 => Frame::Inline(word as usize),
            BOXED => Frame::Boxed,
            SKIP => Frame::Skip,
            _ => not_a_frame(word),
        }
    }

    /// Bytes of the ring that it takes, with its word and padding; a skip's depends on its place.
    #[inline]
    fn whole_bytes(payload_bytes: usize) -> usize {
        UNIT_BYTES + payload_bytes.next_multiple_of(UNIT_BYTES)
    }
}

#[cold]
#[inline(never)]
fn not_a_frame(word: u64) -> ! {
    panic!("lane: {word:#018x} is not a frame: somebody wrote into memory that is not theirs")
}

impl Ring {
    #[inline]
    fn capacity(&self) -> usize {
        self.fixed.0.capacity
    }

    #[inline]
    fn memory(&self) -> &Memory {
        &self.fixed.0.memory
    }

    #[inline]
    fn offset(&self, position: u64) -> usize {
        position as usize & (self.capacity() - 1)
    }

    /// # Safety
    /// `position` is a multiple of 8, and the 8 bytes there are the caller's to write.
    #[inline]
    unsafe fn write_word(&self, position: u64, frame: Frame) {
        // SAFETY: the caller's promise; a unit never straddles the end of the ring.
        unsafe {
            let at = self.memory().to_write(self.offset(position), UNIT_BYTES);
            at.cast::<u64>().write(frame.word());
        }
    }

    /// # Safety
    /// A frame starts at `position`, and it is the caller's to read.
    #[inline]
    unsafe fn read_word(&self, position: u64) -> Frame {
        // SAFETY: the caller's promise; a unit never straddles the end of the ring.
        unsafe {
            let at = self.memory().to_read(self.offset(position), UNIT_BYTES);
            Frame::of(at.cast::<u64>().read())
        }
    }

    /// Moves a record into the payload at `position`.
    ///
    /// # Safety
    /// [`BOXED_BYTES`] bytes there, contiguous, are the caller's to write.
    unsafe fn put_box(&self, position: u64, record: Box<[u8]>) {
        // SAFETY: the caller's promise. The pointer is stored as such, with its provenance.
        unsafe {
            let at = self.memory().to_write(self.offset(position), BOXED_BYTES);
            at.cast::<RawRecord>().write(Box::into_raw(record));
        }
        #[cfg(test)]
        self.fixed.0.boxes.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }

    /// The record that the frame at `position` owns.
    ///
    /// # Safety
    /// A BOXED payload is there, the caller's to read, and its box has not been taken.
    unsafe fn peek_box(&self, position: u64) -> RawRecord {
        // SAFETY: the caller's promise: `put_box` wrote it.
        unsafe {
            let at = self.memory().to_read(self.offset(position), BOXED_BYTES);
            at.cast::<RawRecord>().read()
        }
    }

    /// Moves the record out of the frame.
    ///
    /// # Safety
    /// As [`Ring::peek_box`]; and the caller sees to it that nobody takes it again.
    unsafe fn take_box(&self, position: u64) -> Box<[u8]> {
        #[cfg(test)]
        assert!(self.fixed.0.boxes.fetch_sub(1, std::sync::atomic::Ordering::Relaxed) > 0, "taken twice");
        // SAFETY: it came from `Box::into_raw`, and this is the one time that it is taken.
        unsafe { Box::from_raw(self.peek_box(position)) }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // A model that has failed must not fail again on its way out.
        #[cfg(loom)]
        if std::thread::panicking() {
            return;
        }
        // Both ends are gone: the producer published everything, the consumer gave back exactly
        // what it popped. What lies between was never taken, and may own records.
        let tail = self.tail.0.load(Ordering::Relaxed);
        let mut at = self.head.0.load(Ordering::Relaxed);
        while at < tail {
            // SAFETY: we are alone, and between head and tail there are whole frames.
            let payload_bytes = match unsafe { self.read_word(at) } {
                Frame::Inline(bytes) => bytes,
                Frame::Boxed => {
                    // SAFETY: as above, and each frame is visited once.
                    drop(unsafe { self.take_box(at + UNIT_BYTES as u64) });
                    BOXED_BYTES
                }
                Frame::Skip => {
                    at = at.next_multiple_of(self.capacity() as u64);
                    continue;
                }
            };
            at += Frame::whole_bytes(payload_bytes) as u64;
        }
        #[cfg(test)]
        if !std::thread::panicking() {
            assert_eq!(*self.fixed.0.boxes.get_mut(), 0, "records lost with their lane");
        }
    }
}
