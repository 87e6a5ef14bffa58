//! The atomics of this module, and its futex: the machine's own, or loom's under `cfg(loom)`.

#[cfg(not(loom))]
pub(super) use machine::*;
#[cfg(loom)]
pub(super) use model::*;

#[cfg(not(loom))]
mod machine {
    pub(in crate::ack) use std::hint::spin_loop;
    pub(in crate::ack) use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, fence};
    use std::time::Duration;

    /// A word that threads sleep on.
    pub(in crate::ack) struct Futex(AtomicU32);

    impl Futex {
        pub(in crate::ack) fn new() -> Futex {
            Futex(AtomicU32::new(0))
        }

        pub(in crate::ack) fn word(&self) -> &AtomicU32 {
            &self.0
        }

        /// Sleeps unless the word is no longer `seen`; returns on a wake-up, a signal, the
        /// timeout, or for no reason at all.
        pub(in crate::ack) fn sleep(&self, seen: u32, timeout: Option<Duration>) {
            let timeout = timeout.map(|t| libc::timespec {
                tv_sec: t.as_secs().try_into().unwrap_or(libc::time_t::MAX),
                tv_nsec: t.subsec_nanos().into(),
            });
            let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
            // SAFETY: the word outlives the call, and so does the timeout, which may be null.
            unsafe {
                libc::syscall(
                    libc::SYS_futex,
                    self.0.as_ptr(),
                    libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
                    seen,
                    timeout,
                );
            }
        }

        /// Ends the sleep of everybody.
        pub(in crate::ack) fn wake_all(&self) {
            // SAFETY: the word is ours; waking has no other effect on memory.
            unsafe {
                libc::syscall(
                    libc::SYS_futex,
                    self.0.as_ptr(),
                    libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG,
                    i32::MAX,
                );
            }
        }
    }
}

#[cfg(loom)]
mod model {
    pub(in crate::ack) use loom::hint::spin_loop;
    pub(in crate::ack) use loom::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, fence};
    use loom::sync::{Condvar, Mutex};
    use std::sync::atomic::Ordering::SeqCst;
    use std::time::Duration;

    /// The kernel's futex in loom's terms: comparing the word and going to sleep are one step.
    pub(in crate::ack) struct Futex {
        word: AtomicU32,
        bucket: Mutex<()>,
        sleepers: Condvar,
    }

    impl Futex {
        pub(in crate::ack) fn new() -> Futex {
            Futex { word: AtomicU32::new(0), bucket: Mutex::new(()), sleepers: Condvar::new() }
        }

        pub(in crate::ack) fn word(&self) -> &AtomicU32 {
            &self.word
        }

        pub(in crate::ack) fn sleep(&self, seen: u32, _timeout: Option<Duration>) {
            let bucket = self.bucket.lock().unwrap();
            if self.word.load(SeqCst) == seen {
                drop(self.sleepers.wait(bucket).unwrap());
            }
        }

        pub(in crate::ack) fn wake_all(&self) {
            let _bucket = self.bucket.lock().unwrap();
            self.sleepers.notify_all();
        }
    }
}
