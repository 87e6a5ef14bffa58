//! The one place where the results of a write and a sync become a proof of durability.

use std::io;

/// On disk, and covered by a completed flush: an fdatasync that began after the write had completed,
/// or the one that RWF_DSYNC makes of a write itself. Only [`fold`] makes one.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Durable(());

/// Why a commit is not known to be durable. It may still be found on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CommitFault {
    /// The write failed.
    #[error("write failed: {}", io::Error::from_raw_os_error(*.errno))]
    Write {
        /// The errno, positive.
        errno: i32,
    },
    /// Fewer bytes were written than were given.
    #[error("short write: {written} of {wanted} bytes")]
    ShortWrite {
        /// Bytes written.
        written: u64,
        /// Bytes given.
        wanted: u64,
    },
    /// The write was whole and the fdatasync failed: the kernel may have dropped the pages, so a
    /// later success proves nothing.
    #[error("fdatasync failed: {}", io::Error::from_raw_os_error(*.errno))]
    Sync {
        /// The errno, positive.
        errno: i32,
    },
}

/// Folds the raw results of one pair, as the kernel gives them: bytes or zero, or a negated errno.
///
/// A short write breaks the link, and the fdatasync then reports ECANCELED. So both results
/// matter, and neither alone proves durability.
pub fn fold(wanted: usize, write: i32, sync: i32) -> Result<Durable, CommitFault> {
    if write < 0 {
        return Err(CommitFault::Write { errno: -write });
    }
    if write as usize != wanted {
        return Err(CommitFault::ShortWrite { written: write as u64, wanted: wanted as u64 });
    }
    if sync != 0 {
        return Err(CommitFault::Sync { errno: sync.abs() });
    }
    Ok(Durable(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durable_only_if_the_write_is_whole_and_the_sync_succeeded() {
        assert!(fold(4096, 4096, 0).is_ok());
        assert_eq!(fold(4096, -5, -125), Err(CommitFault::Write { errno: 5 }));
        assert_eq!(fold(4096, -5, 0), Err(CommitFault::Write { errno: 5 }));
        assert_eq!(fold(4096, 512, -125), Err(CommitFault::ShortWrite { written: 512, wanted: 4096 }));
        assert_eq!(fold(4096, 512, 0), Err(CommitFault::ShortWrite { written: 512, wanted: 4096 }));
        assert_eq!(fold(4096, 0, 0), Err(CommitFault::ShortWrite { written: 0, wanted: 4096 }));
        assert_eq!(fold(4096, 8192, 0), Err(CommitFault::ShortWrite { written: 8192, wanted: 4096 }));
        assert_eq!(fold(4096, 4096, -5), Err(CommitFault::Sync { errno: 5 }));
        assert_eq!(fold(4096, 4096, -125), Err(CommitFault::Sync { errno: 125 }));
    }
}
