//! The commit path by two plain system calls, where io_uring is forbidden or slower.
//!
//! It owns the commits that were appended and not yet performed: a [`turn`](Io::turn) performs all of
//! them, blocking, and gives them back in the order in which they came. So nothing is ever in
//! flight between turns. Writes to one file share one fdatasync, which begins after all of them
//! have completed. It sleeps on the wake-up descriptor alone.
//!
//! With [`PosixIo::with_dsync`] a lone commit is one `pwritev2(RWF_DSYNC)`. That proves the bytes
//! of this write, and nothing that was written to the file by other means and not yet synced.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use super::disk::{Folder, FolderFile};
use super::fold::fold;
use super::{Commit, Completion, Io, Wait};
use crate::wake::Wake;

/// pwrite + fdatasync, in turn.
pub struct PosixIo {
    disk: Folder,
    wake: Arc<Wake>,
    waiting: Vec<Commit<FolderFile>>,
    dsync: bool,
}

impl PosixIo {
    /// A commit path on `disk` that sleeps on `wake`.
    pub fn new(disk: Folder, wake: Arc<Wake>) -> PosixIo {
        PosixIo { disk, wake, waiting: Vec::new(), dsync: false }
    }

    /// Lets a lone commit be one call with RWF_DSYNC, where calibration found that faster.
    pub fn with_dsync(mut self, dsync: bool) -> PosixIo {
        self.dsync = dsync;
        self
    }

    /// The disk underneath.
    pub fn disk(&self) -> &Folder {
        &self.disk
    }

    fn perform(&mut self, done: &mut Vec<Completion>) {
        if self.dsync && self.waiting.len() == 1 {
            let commit = self.waiting.pop().expect("one is waiting");
            let write = write_dsync(&commit);
            done.push(complete(commit, write, 0));
            return;
        }
        let writes: Vec<i32> = self.waiting.iter().map(write_once).collect();
        // One sync for each file of which something was written whole. Few files, so no map.
        let mut syncs: Vec<(usize, i32)> = Vec::new();
        for (index, commit) in self.waiting.iter().enumerate() {
            let seen = syncs.iter().any(|(first, _)| self.waiting[*first].file.same(&commit.file));
            if !seen && writes[index] == commit.bytes as i32 {
                syncs.push((index, sync_once(&commit.file)));
            }
        }
        let results: Vec<(i32, i32)> = self
            .waiting
            .iter()
            .zip(writes)
            .map(|(commit, write)| {
                let sync = syncs.iter().find(|(first, _)| self.waiting[*first].file.same(&commit.file));
                (write, sync.map_or(-libc::ECANCELED, |(_, result)| *result))
            })
            .collect();
        done.extend(
            self.waiting.drain(..).zip(results).map(|(commit, (write, sync))| complete(commit, write, sync)),
        );
    }
}

impl Io for PosixIo {
    type Disk = Folder;

    fn append(&mut self, commit: Commit<FolderFile>) {
        assert!(
            commit.bytes <= commit.buf.len(),
            "a commit of {} bytes out of a buffer of {}",
            commit.bytes,
            commit.buf.len()
        );
        self.waiting.push(commit);
    }

    fn turn(&mut self, wait: Wait, done: &mut Vec<Completion>) -> io::Result<()> {
        if !self.waiting.is_empty() {
            self.perform(done);
            return Ok(());
        }
        if let Wait::AtMost(longest) = wait
            && poll(self.wake.fd(), longest)?
        {
            self.wake.drain();
        }
        Ok(())
    }

    fn will_block(&self) -> bool {
        !self.waiting.is_empty()
    }

    fn in_flight(&self) -> usize {
        self.waiting.len()
    }
}

/// Performs one commit here and now.
pub(super) fn commit_blocking(commit: Commit<FolderFile>) -> Completion {
    let write = write_once(&commit);
    // A sync after a short write would prove nothing, and ECANCELED is what a broken link says.
    let sync = if write == commit.bytes as i32 { sync_once(&commit.file) } else { -libc::ECANCELED };
    complete(commit, write, sync)
}

fn complete(commit: Commit<FolderFile>, write: i32, sync: i32) -> Completion {
    Completion { token: commit.token, result: fold(commit.bytes, write, sync), buf: commit.buf }
}

/// One pwrite; bytes, or a negated errno. The rest of a short write is not tried: the fault is
/// reported, and the segment given up.
fn write_once(commit: &Commit<FolderFile>) -> i32 {
    let bytes = &commit.buf[..commit.bytes];
    result(|| {
        // SAFETY: the kernel reads `bytes`, which are borrowed for the whole call.
        unsafe {
            libc::pwrite64(commit.file.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), commit.offset as i64)
        }
    })
}

/// One pwritev2 with RWF_DSYNC; bytes, or a negated errno.
pub(super) fn write_dsync(commit: &Commit<FolderFile>) -> i32 {
    let bytes = &commit.buf[..commit.bytes];
    let vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    result(|| {
        // SAFETY: the kernel reads `bytes` through the one vector; both live for the whole call.
        unsafe {
            libc::pwritev2(
                commit.file.as_raw_fd(),
                &raw const vector,
                1,
                commit.offset as i64,
                libc::RWF_DSYNC,
            )
        }
    })
}

/// One fdatasync; zero, or a negated errno.
fn sync_once(file: &FolderFile) -> i32 {
    // SAFETY: no memory is passed.
    result(|| unsafe { libc::fdatasync(file.as_raw_fd()) } as isize)
}

/// A system call in the form of a ring's completion. A signal that cut it off before it did
/// anything is not a fault: what follows is a whole call of its own.
fn result(mut call: impl FnMut() -> isize) -> i32 {
    loop {
        let result = call();
        if result >= 0 {
            return i32::try_from(result).unwrap_or(i32::MAX);
        }
        let errno = io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
        if errno != libc::EINTR {
            return -errno;
        }
    }
}

/// Sleeps until the descriptor is readable; `false` if it was not.
pub(super) fn poll(fd: RawFd, longest: Duration) -> io::Result<bool> {
    let timeout = timespec(longest);
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd, a timeout, and no signal mask.
    match unsafe { libc::ppoll(&raw mut poll, 1, &raw const timeout, std::ptr::null()) } {
        count if count >= 0 => Ok(count > 0),
        // A signal may end the sleep early: whoever sleeps looks around anyway.
        _ => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            error => Err(error),
        },
    }
}

/// A relative time that every kernel takes: at most an hour, after which anybody may look around.
fn timespec(longest: Duration) -> libc::timespec {
    let longest = longest.min(Duration::from_secs(3600));
    libc::timespec {
        tv_sec: longest.as_secs() as libc::time_t,
        tv_nsec: longest.subsec_nanos() as libc::c_long,
    }
}
