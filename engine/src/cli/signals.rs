//! SIGINT, SIGTERM and SIGHUP as something to wait for beside input, never as an interruption.
//!
//! The signals are blocked and read from a signalfd. A handler with a flag would have a gap
//! between the look at the flag and the `read` that then sleeps; `poll` over both descriptors has
//! none.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// SIGINT, SIGTERM and SIGHUP, as far as they are not ignored (`nohup`), blocked in this thread and in all that it starts from here on.
pub struct Interrupts {
    fd: OwnedFd,
    seen: bool,
}

/// What ended a wait for input.
#[derive(Debug, PartialEq, Eq)]
pub enum Ready {
    Input,
    Interrupt,
    /// Neither, for as long as was allowed.
    Quiet,
}

impl Interrupts {
    /// Call it before the first thread is started: threads inherit the mask.
    pub fn block() -> io::Result<Interrupts> {
        let set = set();
        // SAFETY: `set` is an initialised signal set that outlives both calls.
        let fd = unsafe {
            let failed = libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
            if failed != 0 {
                return Err(io::Error::from_raw_os_error(failed));
            }
            libc::signalfd(-1, &set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: signalfd just returned this descriptor, and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Interrupts { fd, seen: false })
    }

    /// Whether one has arrived. Does not wait.
    pub fn seen(&mut self) -> bool {
        if !self.seen && poll(&mut [readable(self.fd.as_raw_fd())], 0).is_ok_and(|n| n > 0) {
            self.take();
        }
        self.seen
    }

    /// Waits until `input` can be read (or is at its end), an interrupt arrives or the time is
    /// over. Without an input there is nothing to wait for.
    pub fn wait_for(&mut self, input: Option<RawFd>, timeout_ms: i32) -> io::Result<Ready> {
        let Some(input) = input.filter(|_| !self.seen) else {
            return Ok(if self.seen() { Ready::Interrupt } else { Ready::Input });
        };
        let mut fds = [readable(self.fd.as_raw_fd()), readable(input)];
        let ready = poll(&mut fds, timeout_ms)?;
        if fds[0].revents != 0 {
            self.take();
            return Ok(Ready::Interrupt);
        }
        Ok(if ready == 0 { Ready::Quiet } else { Ready::Input })
    }

    /// From the first interrupt on the signals act as usual again: whoever does not want to
    /// wait until all that was accepted is durable presses Ctrl-C once more.
    fn take(&mut self) {
        self.seen = true;
        let mut info = std::mem::MaybeUninit::<libc::signalfd_siginfo>::uninit();
        let set = set();
        // SAFETY: the buffer has room for the one record asked for; the first signal has to be
        // consumed before unblocking, or it would end the process at once.
        unsafe {
            libc::read(self.fd.as_raw_fd(), info.as_mut_ptr().cast(), size_of::<libc::signalfd_siginfo>());
            libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
        }
    }
}

fn set() -> libc::sigset_t {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set that the other calls then change.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            if !is_ignored(signal) {
                libc::sigaddset(set.as_mut_ptr(), signal);
            }
        }
        set.assume_init()
    }
}

/// Whether whoever started this process wants it to live through that signal. Blocked, it would arrive
/// all the same.
fn is_ignored(signal: i32) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action the call only fills in the old one, and all-zero is a valid one.
    unsafe {
        libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

fn readable(fd: RawFd) -> libc::pollfd {
    libc::pollfd { fd, events: libc::POLLIN, revents: 0 }
}

/// How many descriptors are ready.
fn poll(fds: &mut [libc::pollfd], timeout_ms: i32) -> io::Result<usize> {
    loop {
        // SAFETY: the pointer and the length are those of one live slice.
        let n = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout_ms) };
        if n >= 0 {
            return Ok(n as usize);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
