//! Asks the scheduler for short slices, so that a driver that wakes up gets its core soon.
//!
//! On a busy machine the default slice let a commit's tail wait for milliseconds; a slice of 150 µs
//! brought that to a fraction (EEVDF, Linux 6.12 and newer). Older kernels ignore it.

use std::time::Duration;

/// `struct sched_attr` of the kernel, first version.
#[repr(C)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime_ns: u64,
    deadline_ns: u64,
    period_ns: u64,
}

/// Whether the calling thread runs in a real-time class (and the threads that it spawns).
pub(crate) fn is_realtime() -> bool {
    // SAFETY: plain system call about the calling thread.
    matches!(unsafe { libc::sched_getscheduler(0) }, libc::SCHED_FIFO | libc::SCHED_RR)
}

/// Gives the calling thread this slice in its default class; `false` if the kernel would not.
pub(crate) fn set_for_current(slice: Duration) -> bool {
    // Keeps whatever niceness the thread was given.
    // SAFETY: plain system call about the calling thread.
    let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    let attr = SchedAttr {
        size: size_of::<SchedAttr>() as u32,
        policy: libc::SCHED_OTHER as u32,
        flags: 0,
        nice,
        priority: 0,
        runtime_ns: slice.as_nanos() as u64,
        deadline_ns: 0,
        period_ns: 0,
    };
    // Somebody who gave the process a real-time class meant it.
    // SAFETY: plain system call about the calling thread.
    if unsafe { libc::sched_getscheduler(0) } != libc::SCHED_OTHER {
        return false;
    }
    // SAFETY: the kernel reads `size` bytes of a valid structure.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &attr, 0) == 0 }
}
