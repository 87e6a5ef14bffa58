//! Noticing `fork()` without a syscall per look.
//!
//! A forked child has a copy of every lane, and no shard that would ever empty one. So a child
//! must be told so, or it would wait for ever. libc calls a handler in each child; the handler
//! counts. A child made by a raw `clone` syscall escapes it.

use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

static FORKS: AtomicU32 = AtomicU32::new(0);

/// How many forks lie between this process and the first one that asked.
#[inline]
pub fn generation() -> u32 {
    FORKS.load(Relaxed)
}

/// Starts the counting, once per process.
pub(super) fn watch() {
    static WATCH: Once = Once::new();
    WATCH.call_once(|| {
        // SAFETY: the handler only touches an atomic, which is allowed in a child of a process
        // with many threads. Failure (no memory) leaves forks unnoticed, which is the state
        // before this call.
        unsafe {
            libc::pthread_atfork(None, None, Some(count));
        }
    });
}

extern "C" fn count() {
    FORKS.fetch_add(1, Relaxed);
}
