//! Whether space that was allocated stays ours when it is written to.
//!
//! Copy-on-write file systems write somewhere else each time, and network file systems promise nothing, so only
//! those are believed that are known to write in place. Thinly provisioned devices below them cannot be
//! seen from here.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

const EXT: i64 = 0xEF53;
const XFS: i64 = 0x5846_5342;
const TMPFS: i64 = 0x0102_1994;
const RAMFS: i64 = 0x8584_58F6;
const BTRFS: i64 = 0x9123_683E;
const NOCOW: libc::c_long = 0x0080_0000;

/// For a folder and a file in it.
pub(super) fn is_kept(folder: &Path, file: Option<&Path>) -> bool {
    let Ok(folder) = File::open(folder) else { return false };
    match kind(&folder) {
        Some(EXT | XFS | TMPFS) => true,
        Some(BTRFS) => file.and_then(|f| File::open(f).ok()).is_some_and(|f| is_nocow(&f)),
        _ => false,
    }
}

/// Whether this folder lies in memory, gone with a reboot.
pub(crate) fn is_volatile(folder: &Path) -> bool {
    File::open(folder).is_ok_and(|folder| matches!(kind(&folder), Some(TMPFS | RAMFS)))
}

fn kind(file: &File) -> Option<i64> {
    let mut answer = std::mem::MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: the descriptor is open, and the answer is memory of the right type.
    let result = unsafe { libc::fstatfs(file.as_raw_fd(), answer.as_mut_ptr()) };
    // SAFETY: all-zero is a valid statfs, and the kernel has filled it in.
    let answer = unsafe { answer.assume_init() };
    #[allow(clippy::unnecessary_cast)] // Its type differs from one architecture to the next.
    (result == 0).then_some(answer.f_type as i64)
}

fn is_nocow(file: &File) -> bool {
    let mut flags: libc::c_long = 0;
    // SAFETY: the request writes one long at most.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::FS_IOC_GETFLAGS as _, &mut flags) };
    result == 0 && flags & NOCOW != 0
}
