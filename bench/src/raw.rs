//! The bare system calls that a commit is made of, without a line of the engine: the yardstick.
//!
//! One block at a time, one in flight, going round a zero-filled file that is opened past the page
//! cache, as a prepared segment is.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use hanaper_shards::aligned::AlignedBuf;
use hdrhistogram::Histogram;
use io_uring::squeue::Flags;
use io_uring::{IoUring, opcode, types};

const FILE_BYTES: usize = 64 << 20;

/// A way to write a block and know that it is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Two system calls.
    Pair,
    /// One, with RWF_DSYNC.
    Dsync,
    /// A write and an fdatasync linked in a ring, submitted and waited for in one system call.
    Linked,
}

impl Way {
    /// All.
    pub const ALL: [Way; 3] = [Way::Pair, Way::Dsync, Way::Linked];

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Way::Pair => "pwrite+fdatasync",
            Way::Dsync => "pwritev2 RWF_DSYNC",
            Way::Linked => "io_uring linked",
        }
    }
}

/// The file, and what writes to it.
pub struct Raw {
    file: File,
    ring: Option<IoUring>,
    buf: AlignedBuf,
    block_bytes: usize,
    at: usize,
}

impl Raw {
    /// Makes the file in `folder`.
    pub fn new(folder: &Path, block_bytes: usize) -> io::Result<Raw> {
        let path = folder.join("raw");
        let open = |flags| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .custom_flags(flags)
                .open(&path)
        };
        // Where the file system knows no O_DIRECT the engine goes through the page cache too.
        let file = open(libc::O_DIRECT).or_else(|_| open(0))?;
        let zeros = AlignedBuf::zeroed(1 << 20);
        for at in (0..FILE_BYTES).step_by(zeros.len()) {
            file.write_all_at(&zeros, at as u64)?;
        }
        file.sync_all()?;
        let mut buf = AlignedBuf::zeroed(block_bytes);
        buf.fill(0x5a);
        Ok(Raw { file, ring: IoUring::new(8).ok(), buf, block_bytes, at: 0 })
    }

    /// Commits for so long; latencies in nanoseconds. `None` if this way is not to be had here.
    pub fn time(&mut self, way: Way, duration: Duration) -> io::Result<Option<Histogram<u64>>> {
        if way == Way::Linked && self.ring.is_none() {
            return Ok(None);
        }
        let mut latencies = crate::histogram();
        let begun = Instant::now();
        while begun.elapsed() < duration {
            self.at =
                if self.at + 2 * self.block_bytes > FILE_BYTES { 0 } else { self.at + self.block_bytes };
            self.buf[0] = self.buf[0].wrapping_add(1);
            let before = Instant::now();
            match self.commit(way) {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(None),
                Err(error) => return Err(error),
            }
            latencies.saturating_record(before.elapsed().as_nanos() as u64);
        }
        Ok(Some(latencies))
    }

    fn commit(&mut self, way: Way) -> io::Result<()> {
        let fd = self.file.as_raw_fd();
        let bytes = &self.buf[..self.block_bytes];
        let at = self.at as i64;
        match way {
            Way::Pair => {
                // SAFETY: the kernel reads `bytes`, borrowed for the whole call.
                whole(unsafe { libc::pwrite64(fd, bytes.as_ptr().cast(), bytes.len(), at) }, bytes.len())?;
                // SAFETY: no memory is passed.
                whole(unsafe { libc::fdatasync(fd) } as isize, 0)
            }
            Way::Dsync => {
                let vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
                // SAFETY: the kernel reads `bytes` through the one vector; both live for the whole call.
                let written = unsafe { libc::pwritev2(fd, &raw const vector, 1, at, libc::RWF_DSYNC) };
                whole(written, bytes.len())
            }
            Way::Linked => {
                let ring = self.ring.as_mut().expect("looked at before");
                let write = opcode::Write::new(types::Fd(fd), bytes.as_ptr(), bytes.len() as u32)
                    .offset(at as u64)
                    .build()
                    .flags(Flags::IO_LINK)
                    .user_data(bytes.len() as u64);
                let sync =
                    opcode::Fsync::new(types::Fd(fd)).flags(types::FsyncFlags::DATASYNC).build().user_data(0);
                // SAFETY: buffer and descriptor outlive both completions, which are waited for here.
                unsafe { ring.submission().push_multiple(&[write, sync]) }
                    .map_err(|_| io::Error::other("no room in the ring"))?;
                let mut missing = 2;
                let mut failed = Ok(());
                while missing > 0 {
                    match ring.submit_and_wait(missing) {
                        Err(error) if error.raw_os_error() != Some(libc::EINTR) => return Err(error),
                        _ => {}
                    }
                    for entry in ring.completion() {
                        missing -= 1;
                        let result = entry.result();
                        if result != entry.user_data() as i32 {
                            let error = match result {
                                errno if errno < 0 => io::Error::from_raw_os_error(-errno),
                                _ => io::ErrorKind::WriteZero.into(),
                            };
                            failed = Err(error);
                        }
                    }
                }
                failed
            }
        }
    }
}

fn whole(result: isize, wanted: usize) -> io::Result<()> {
    match result {
        done if done == wanted as isize => Ok(()),
        failed if failed < 0 => Err(io::Error::last_os_error()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}
