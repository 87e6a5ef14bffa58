//! Who has the log open for writing: one process at a time.
//!
//! The lock is flock on the file `lock`, so it ends with its owner, however that dies. The file's text
//! tells people who it is. Readers never take it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use hanaper_shards::segment::paths;

use crate::error::OpenError;

/// How long a lock whose owner is dead is waited for.
const DEAD_OWNER_WAIT: Duration = Duration::from_secs(5);

/// The lock of a log, held until it is dropped.
#[derive(Debug)]
pub(crate) struct Lock(#[allow(dead_code)] File);

impl Lock {
    /// Takes the lock of the log in this folder.
    pub(crate) fn take(folder: &Path) -> Result<Lock, OpenError> {
        let io = |source| OpenError::Io { path: folder.to_owned(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(folder.join(paths::LOCK))
            .map_err(io)?;
        let deadline = Instant::now() + DEAD_OWNER_WAIT;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::Error(source)) => return Err(io(source)),
                Err(TryLockError::WouldBlock) => {}
            }
            // Readers ask whether there is an owner by a shared lock, for a moment. Whoever can share it too has
            // met a question, not an owner; and asks again.
            if file.try_lock_shared().is_ok() && Instant::now() < deadline {
                file.unlock().map_err(io)?;
                std::thread::yield_now();
                continue;
            }
            let owner = Owner::read(folder);
            let alive = owner.as_ref().is_none_or(Owner::is_alive);
            if alive || Instant::now() > deadline {
                let owner = owner.map_or_else(|| "another process".to_owned(), |o| o.to_string());
                return Err(OpenError::Owned { path: folder.to_owned(), owner });
            }
            // A process that was just killed still has its files; nothing tells when it lets go.
            std::thread::sleep(Duration::from_millis(2));
        }
        // In place and of fixed length, so that it needs no new block on a full disk. It is for people: the
        // lock is flock's, and a log without this text is locked as well.
        let text = format!("pid={}\nname={}\n", std::process::id(), own_name());
        let written = file.rewind().and_then(|()| file.write_all(format!("{text:<127}\n").as_bytes()));
        match written {
            Err(error) if !matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
                return Err(io(error));
            }
            _ => {}
        }
        Ok(Lock(file))
    }
}

fn own_name() -> String {
    let name = std::fs::read_to_string("/proc/self/comm").unwrap_or_default();
    name.trim().to_owned()
}

/// What the lock file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Process number.
    pub pid: u32,
    /// Name of the program.
    pub name: String,
}

impl Owner {
    /// Reads the lock file; it names the last owner, whether it lives or not.
    pub fn read(folder: &Path) -> Option<Owner> {
        let mut text = String::new();
        File::open(folder.join(paths::LOCK)).ok()?.take(4096).read_to_string(&mut text).ok()?;
        let field = |key: &str| text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix('='));
        Some(Owner { pid: field("pid")?.parse().ok()?, name: field("name").unwrap_or("").trim().to_owned() })
    }

    /// Whether a process of this number is there (in this process's view of the system) and not a zombie.
    pub fn is_alive(&self) -> bool {
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)) else { return false };
        // After the name in parentheses comes the state.
        let state = stat.rsplit_once(')').map_or("", |(_, rest)| rest.trim_start());
        !state.starts_with(['Z', 'X'])
    }
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {} ({})", self.pid, self.name)
    }
}
