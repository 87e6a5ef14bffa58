//! Which commit path this disk and this kernel want, found by trying.
//!
//! It owns nothing that outlasts [`choose`], which leaves the folder as it found it. It promises a
//! choice that works here, with one clear sentence for whatever was wanted and could not be had.
//! It measures for some milliseconds, on an idle disk at best: a hint, never a benchmark.

use std::io;
use std::time::{Duration, Instant};

use super::disk::{Folder, FolderFile};
use super::posix::{commit_blocking, write_dsync};
use super::uring::UringIo;
use super::{Access, Commit, Completion, Disk, Io, Wait};
use crate::aligned::AlignedBuf;
use crate::wake::Wake;

/// The file that is written to while measuring. A killed process may leave it; the next one uses it.
pub const CALIBRATE_NAME: &str = ".calibrate";

/// Blocks of the file. Each is overwritten several times.
const BLOCKS: u64 = 64;
const ROUNDS_MIN: u32 = 9;
const ROUNDS_MAX: u32 = 200;
/// For all primitives together, unless [`ROUNDS_MIN`] takes longer.
const BUDGET: Duration = Duration::from_millis(12);

/// Which commit path is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backend {
    /// io_uring if it works here, else posix.
    #[default]
    Auto,
    /// io_uring, or an error.
    Uring,
    /// Two plain system calls.
    Posix,
}

/// What was chosen.
#[derive(Debug)]
pub struct Chosen {
    /// [`Backend::Uring`] or [`Backend::Posix`], never `Auto`.
    pub backend: Backend,
    /// For [`UringIo::new`]: lone commits are faster by two blocking calls.
    pub inline: bool,
    /// For [`super::posix::PosixIo::with_dsync`]: one call with RWF_DSYNC is clearly faster than two.
    pub dsync: bool,
    /// One clear line each, for people.
    pub notices: Vec<String>,
    /// Median times of a lone commit of one block.
    pub p50s: P50s,
}

/// Median times of a lone commit of one block; `None` if it was not or could not be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct P50s {
    /// pwrite + fdatasync.
    pub pair: Option<Duration>,
    /// A linked write and fdatasync in a ring.
    pub linked: Option<Duration>,
    /// pwritev2 with RWF_DSYNC.
    pub dsync: Option<Duration>,
}

/// Chooses a commit path for `folder`; `Err` only if io_uring is insisted on and cannot be had.
///
/// Call it under the log's lock, before the shards start: two at once would share the file. The
/// ring of a shard must be made again, by the thread that drives it.
pub fn choose(folder: &Folder, preferred: Backend) -> io::Result<Chosen> {
    choose_by(folder, preferred, measure)
}

/// The same without measuring: for tests, and for who opens a log very often.
pub fn choose_unmeasured(folder: &Folder, preferred: Backend) -> io::Result<Chosen> {
    choose_by(folder, preferred, |_, _| Ok(P50s::default()))
}

fn choose_by(
    folder: &Folder,
    preferred: Backend,
    measure: impl FnOnce(&Folder, Option<UringIo>) -> io::Result<P50s>,
) -> io::Result<Chosen> {
    let mut notices = Vec::new();
    let mut ring = None;
    if preferred != Backend::Posix {
        match Wake::new().and_then(|wake| UringIo::new(folder.clone(), wake, false)) {
            Ok(made) => ring = Some(made),
            Err(error) => {
                let reason = why_no_ring(&error);
                if preferred == Backend::Uring {
                    return Err(io::Error::new(error.kind(), reason));
                }
                notices.push(format!("{reason}; using pwrite+fdatasync instead"));
            }
        }
    }
    if !folder.direct() {
        notices.push("this file system knows no O_DIRECT; writing through the page cache".into());
    }
    let mut backend = if ring.is_some() { Backend::Uring } else { Backend::Posix };
    let p50s = match measure(folder, ring) {
        Ok(p50s) => p50s,
        Err(error) => {
            notices.push(format!(
                "the disk could not be calibrated ({error}): commits take the way that is the fastest on most disks, \
                 and are as durable by it"
            ));
            P50s::default()
        }
    };
    if backend == Backend::Uring && p50s.pair.is_some() && p50s.linked.is_none() {
        let reason = "io_uring can be set up here, and yet a linked write and fdatasync fails";
        if preferred == Backend::Uring {
            return Err(io::Error::other(reason));
        }
        notices.push(format!("{reason}; using pwrite+fdatasync instead"));
        backend = Backend::Posix;
    }
    let inline = match (p50s.pair, p50s.linked) {
        (Some(pair), Some(linked)) => pair <= linked,
        // Two calls beat the ring for a lone commit wherever it was measured.
        _ => true,
    };
    // RWF_DSYNC proves less (its own bytes only), so it must be worth it.
    let dsync = matches!((p50s.pair, p50s.dsync), (Some(pair), Some(dsync)) if dsync < pair * 3 / 4);
    Ok(Chosen { backend, inline, dsync, notices, p50s })
}

/// What a failed setup means, and the way out.
fn why_no_ring(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            "io_uring is forbidden here, by a seccomp profile (containers: allow io_uring_setup, \
             io_uring_enter and io_uring_register, for example with --security-opt seccomp=PROFILE) or by \
             the sysctl kernel.io_uring_disabled (0 allows it)"
                .into()
        }
        Some(libc::ENOSYS) => "this kernel has no io_uring (Linux 6.1 or newer has what is needed)".into(),
        Some(libc::ENOMEM) => {
            "io_uring found too little lockable memory (raise the limit `ulimit -l` to 512 KiB or more)"
                .into()
        }
        Some(libc::EMFILE | libc::ENFILE) => {
            "io_uring needs one more open file than is allowed (raise `ulimit -n`)".into()
        }
        Some(libc::EINVAL | libc::EOPNOTSUPP) => {
            "this kernel's io_uring is too old (Linux 6.1 or newer has what is needed)".into()
        }
        _ => format!("io_uring cannot be set up ({error})"),
    }
}

fn measure(folder: &Folder, ring: Option<UringIo>) -> io::Result<P50s> {
    let file = match folder.create(CALIBRATE_NAME) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            folder.open(CALIBRATE_NAME, Access::Write)?
        }
        other => other?,
    };
    let measured = measure_in(folder, &file, ring);
    let removed = folder.remove(CALIBRATE_NAME);
    let p50s = measured?;
    removed.map(|()| p50s)
}

fn measure_in(folder: &Folder, file: &FolderFile, ring: Option<UringIo>) -> io::Result<P50s> {
    let block_bytes = folder.block_bytes() as usize;
    folder.write(file, 0, &AlignedBuf::zeroed(BLOCKS as usize * block_bytes))?;
    folder.sync(file)?;
    let mut bench = Bench { file, block_bytes, ring, buf: Some(AlignedBuf::zeroed(block_bytes)), next: 0 };
    let mut samples: [Vec<Duration>; 3] = Default::default();
    let mut able = [true, bench.ring.is_some(), true];
    let started = Instant::now();
    for round in 0..ROUNDS_MAX {
        // In turn, so that a busy moment of the disk strikes all alike.
        for (way, samples) in samples.iter_mut().enumerate() {
            let before = Instant::now();
            // What fails once is not used: no RWF_DSYNC here, or a sandbox that allows half a ring.
            able[way] = able[way] && bench.commit(way);
            if able[way] {
                samples.push(before.elapsed());
            }
        }
        if round + 1 >= ROUNDS_MIN && started.elapsed() >= BUDGET {
            break;
        }
    }
    let [pair, linked, dsync] =
        std::array::from_fn(|way| if able[way] { median(&mut samples[way]) } else { None });
    Ok(P50s { pair, linked, dsync })
}

fn median(samples: &mut [Duration]) -> Option<Duration> {
    samples.sort_unstable();
    samples.get(samples.len() / 2).copied()
}

struct Bench<'a> {
    file: &'a FolderFile,
    block_bytes: usize,
    ring: Option<UringIo>,
    buf: Option<AlignedBuf>,
    next: u64,
}

impl Bench<'_> {
    /// One commit by way 0 (two calls), 1 (ring) or 2 (RWF_DSYNC). `false` if that does not work.
    fn commit(&mut self, way: usize) -> bool {
        let Some(buf) = self.buf.take() else {
            return false;
        };
        self.next += 1;
        let commit = Commit {
            token: 0,
            file: self.file.clone(),
            offset: self.next % BLOCKS * self.block_bytes as u64,
            bytes: self.block_bytes,
            buf,
            pipelined: true,
        };
        let Completion { buf, result, .. } = match (way, &mut self.ring) {
            (1, Some(ring)) => {
                let mut done = Vec::new();
                ring.append(commit);
                while done.is_empty() {
                    if ring.turn(Wait::AtMost(Duration::from_secs(1)), &mut done).is_err() {
                        // The buffer stays with the ring; a new one serves the others.
                        self.buf = Some(AlignedBuf::zeroed(self.block_bytes));
                        return false;
                    }
                }
                done.pop().expect("not empty")
            }
            (2, _) => {
                let written = write_dsync(&commit);
                self.buf = Some(commit.buf);
                return written == self.block_bytes as i32;
            }
            _ => commit_blocking(commit),
        };
        self.buf = Some(buf);
        result.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> (tempfile::TempDir, Folder) {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::open(temporary.path()).unwrap();
        (temporary, folder)
    }

    #[test]
    fn the_choice_leaves_nothing_behind() {
        let (_keep, folder) = folder();
        for preferred in [Backend::Auto, Backend::Posix] {
            // As a killed process leaves it.
            folder.create(CALIBRATE_NAME).unwrap();
            let chosen = choose(&folder, preferred).unwrap();
            eprintln!("{chosen:?}");
            assert_ne!(chosen.backend, Backend::Auto);
            assert!(chosen.p50s.pair.is_some());
            assert_eq!(chosen.p50s.linked.is_some(), chosen.backend == Backend::Uring);
            assert!(folder.list().unwrap().is_empty());
        }
    }

    /// A disk that cannot be measured (full, read-only) is no reason not to start.
    #[test]
    fn without_a_measurement_there_is_a_choice_all_the_same() {
        let (keep, folder) = folder();
        drop(keep);
        let chosen = choose(&folder, Backend::Auto).unwrap();
        assert_eq!(chosen.p50s, P50s::default());
        assert!(chosen.notices.iter().any(|notice| notice.contains("calibrated")), "{:?}", chosen.notices);
    }

    /// Each way to be without io_uring is told in one sentence that names the way out.
    #[test]
    fn what_is_missing_is_said_with_the_way_out() {
        for (errno, way_out) in [
            (libc::EPERM, "kernel.io_uring_disabled"),
            (libc::ENOSYS, "6.1"),
            (libc::ENOMEM, "ulimit -l"),
            (libc::EMFILE, "ulimit -n"),
        ] {
            let text = why_no_ring(&io::Error::from_raw_os_error(errno));
            assert!(text.contains(way_out) && !text.contains('\n'), "{text}");
        }
    }

    /// As the default profile of a container does it, for this thread only.
    fn forbid_io_uring(errno: i32) -> io::Result<()> {
        let load_number = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
        let jump = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
        let give = libc::BPF_RET | libc::BPF_K;
        let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
        let mut steps = [
            step(load_number, 0, 0, 0),
            step(jump, 0, 1, libc::SYS_io_uring_setup as u32),
            step(give, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32),
            step(give, 0, 0, libc::SECCOMP_RET_ALLOW),
        ];
        let filter = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
        // SAFETY: the filter and its steps live for the whole call, which copies them.
        let set = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) == 0
        };
        if set { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// The first run in a container: the log works, and says what it does without.
    #[test]
    fn without_io_uring_the_choice_is_posix_and_says_why() {
        for errno in [libc::EPERM, libc::ENOSYS] {
            let run = move || {
                if let Err(error) = forbid_io_uring(errno) {
                    eprintln!("SKIPPED: no seccomp here: {error}");
                    return;
                }
                let (_keep, folder) = folder();
                let chosen = choose(&folder, Backend::Auto).unwrap();
                assert_eq!((chosen.backend, chosen.p50s.linked), (Backend::Posix, None));
                let reason = why_no_ring(&io::Error::from_raw_os_error(errno));
                assert!(chosen.notices[0].starts_with(&reason), "{:?}", chosen.notices);
                assert_eq!(choose(&folder, Backend::Uring).unwrap_err().to_string(), reason);
            };
            std::thread::spawn(run).join().unwrap();
        }
    }
}
