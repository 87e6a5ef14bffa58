//! What the lane and the wake-up take from the platform, and what loom puts in its place.
//!
//! Under `--cfg loom` the atomics, the [`Arc`] and every 8-byte unit of the ring's [`Memory`]
//! are loom's: a unit that is read without having been published, or written while the other
//! side may still read it, fails the model.

use std::io;
use std::ptr::NonNull;

#[cfg(loom)]
pub(crate) use loom::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering, fence},
};
#[cfg(not(loom))]
pub(crate) use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering, fence},
};

use crate::aligned::AlignedBuf;

/// Every frame starts at a multiple of this, and is as long as a multiple of it.
pub(crate) const UNIT_BYTES: usize = 8;

/// Two cache lines of its own: the adjacent-line prefetcher fetches lines in pairs, so that one
/// line between two writers is not enough.
#[repr(align(128))]
pub(crate) struct Line<T>(pub(crate) T);

/// The ring's bytes. Both ends share it; who may touch which unit is the ring's affair.
pub(crate) struct Memory {
    start: NonNull<u8>,
    bytes: usize,
    // Only keeps the allocation: it is not dereferenced again, because a reference to the whole
    // would alias what the two ends hold.
    _owner: AlignedBuf,
    locked: std::sync::atomic::AtomicBool,
    #[cfg(loom)]
    units: Box<[loom::cell::UnsafeCell<()>]>,
}

// SAFETY: plain bytes. Whoever touches them does it through the unsafe methods below and
// promises there that nobody else does.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Zeroed, and so also faulted in.
    pub(crate) fn zeroed(bytes: usize) -> Memory {
        let mut owner = AlignedBuf::zeroed(bytes);
        let start = NonNull::new(owner.as_mut_ptr()).expect("a buffer has an address");
        Memory {
            start,
            bytes,
            _owner: owner,
            locked: std::sync::atomic::AtomicBool::new(false),
            #[cfg(loom)]
            units: (0..bytes / UNIT_BYTES).map(|_| loom::cell::UnsafeCell::new(())).collect(),
        }
    }

    /// The address of `bytes` bytes from `offset` on, which the caller is about to write.
    ///
    /// # Safety
    /// The range lies within the memory, and nobody else touches it while the caller uses the
    /// pointer.
    #[inline]
    pub(crate) unsafe fn to_write(&self, offset: usize, bytes: usize) -> NonNull<u8> {
        debug_assert!(offset + bytes <= self.bytes);
        #[cfg(loom)]
        for unit in self.touched(offset, bytes) {
            unit.with_mut(|_| ());
        }
        // SAFETY: within the allocation, says the caller.
        unsafe { self.start.add(offset) }
    }

    /// The address of `bytes` bytes from `offset` on, which the caller is about to read.
    ///
    /// # Safety
    /// The range lies within the memory, and nobody writes to it while the caller uses the
    /// pointer.
    #[inline]
    pub(crate) unsafe fn to_read(&self, offset: usize, bytes: usize) -> NonNull<u8> {
        debug_assert!(offset + bytes <= self.bytes);
        #[cfg(loom)]
        for unit in self.touched(offset, bytes) {
            unit.with(|_| ());
        }
        // SAFETY: within the allocation, says the caller.
        unsafe { self.start.add(offset) }
    }

    #[cfg(loom)]
    fn touched(&self, offset: usize, bytes: usize) -> &[loom::cell::UnsafeCell<()>] {
        &self.units[offset / UNIT_BYTES..(offset + bytes).div_ceil(UNIT_BYTES)]
    }

    /// Keeps the memory from being paged out, until it is freed.
    pub(crate) fn lock(&self) -> io::Result<()> {
        // SAFETY: mlock reads nothing and changes no byte; the range is our allocation.
        if unsafe { libc::mlock(self.start.as_ptr().cast(), self.bytes) } != 0 {
            return Err(io::Error::last_os_error());
        }
        self.locked.store(true, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if *self.locked.get_mut() {
            // The pages are all ours (page-aligned, whole pages), so nobody else loses a lock.
            // SAFETY: as for mlock. A failure leaves freed memory locked, which costs only memory.
            unsafe { libc::munlock(self.start.as_ptr().cast(), self.bytes) };
        }
    }
}
