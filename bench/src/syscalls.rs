//! Whether a piece of work makes a system call, found out by the kernel.
//!
//! Linux can hand a thread's system calls back to it as signals (syscall user dispatch, 5.11). The
//! handler counts one, then lets the thread through until the next piece of work. So this counts
//! *pieces that made a call*, and costs nothing while there is none.

use std::cell::Cell;
use std::marker::PhantomData;

#[cfg(target_arch = "x86_64")]
const PR_SET_SYSCALL_USER_DISPATCH: libc::c_int = 59;
const ALLOW: u8 = 0;
#[cfg(target_arch = "x86_64")]
const BLOCK: u8 = 1;

thread_local! {
    /// Read by the kernel at each system call of this thread.
    static SELECTOR: Cell<u8> = const { Cell::new(ALLOW) };
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

/// Watches the thread that made it.
pub struct Watch {
    _this_thread: PhantomData<*const ()>,
}

impl Watch {
    /// `None` where this cannot be done: another architecture, an older kernel, a sandbox.
    #[cfg(target_arch = "x86_64")]
    pub fn new() -> Option<Watch> {
        let selector = SELECTOR.with(Cell::as_ptr);
        // SAFETY: the handler touches two thread-locals without destructors and its own context; the
        // selector lives as long as the thread.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_call as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            if libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) != 0 {
                return None;
            }
            if libc::prctl(PR_SET_SYSCALL_USER_DISPATCH, 1, 0, 0, selector) != 0 {
                return None;
            }
        }
        Some(Watch { _this_thread: PhantomData })
    }

    /// See above.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn new() -> Option<Watch> {
        None
    }

    /// Does the work; gives whether it made a system call.
    #[cfg(target_arch = "x86_64")]
    pub fn calls<T>(&self, work: impl FnOnce() -> T) -> (T, bool) {
        let before = CALLS.get();
        SELECTOR.set(BLOCK);
        let done = work();
        SELECTOR.set(ALLOW);
        (done, CALLS.get() != before)
    }

    /// See above.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn calls<T>(&self, work: impl FnOnce() -> T) -> (T, bool) {
        let _ = (&CALLS, &SELECTOR);
        (work(), false)
    }
}

#[cfg(target_arch = "x86_64")]
impl Drop for Watch {
    fn drop(&mut self) {
        // SAFETY: no memory is passed.
        unsafe { libc::prctl(PR_SET_SYSCALL_USER_DISPATCH, 0, 0, 0, 0) };
    }
}

#[cfg(target_arch = "x86_64")]
extern "C" fn on_call(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    SELECTOR.set(ALLOW);
    CALLS.set(CALLS.get() + 1);
    let context: *mut libc::ucontext_t = context.cast();
    // SAFETY: the kernel's context of this signal. It has put the registers back as they were before
    // the call, so that the instruction, two bytes long, can be run once more.
    unsafe { (*context).uc_mcontext.gregs[libc::REG_RIP as usize] -= 2 };
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_seen_and_made() {
        let Some(watch) = Watch::new() else {
            eprintln!("SKIPPED: no syscall user dispatch here");
            return;
        };
        let (sum, called) = watch.calls(|| std::hint::black_box(1) + 1);
        assert_eq!((sum, called), (2, false));
        // SAFETY: no memory is passed.
        let (pid, called) = watch.calls(|| unsafe { libc::syscall(libc::SYS_getpid) });
        assert_eq!((pid, called), (i64::from(std::process::id()), true));
        drop(watch);
        assert!(std::fs::exists("/proc").unwrap(), "calls work as before");
    }
}
