//! A real folder: names, whole files and their locks, by plain blocking system calls.
//!
//! It owns one directory descriptor, by which name changes are made durable before they return.
//! It promises what [`Disk`] says, on any Linux file system: where the page cache cannot be
//! passed by (tmpfs, some network and FUSE file systems) it says so through [`Folder::direct`]
//! and goes through it. A folder that may only be read can still be opened and read.
//! It refuses to hide a failed sync, and it never retries one that failed.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::{Access, Disk, Entry};
use crate::aligned::{ALIGN_BYTES, AlignedBuf};

/// The least block that is ever used, whatever the device would allow.
const BLOCK_BYTES_MIN: u32 = 4096;

/// A directory of the machine. Clones share it.
#[derive(Clone, Debug)]
pub struct Folder {
    shared: Arc<Shared>,
    block_bytes: u32,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    /// Open for as long as the folder is used: what is synced is this very directory.
    dir: File,
    /// Cleared for good when the file system refuses O_DIRECT.
    direct: AtomicBool,
}

/// An open file of a [`Folder`]. Clones share the open file description, and so its lock.
#[derive(Clone, Debug)]
pub struct FolderFile {
    shared: Arc<Opened>,
}

#[derive(Debug)]
struct Opened {
    file: File,
    direct: bool,
    /// Whether this description holds the exclusive lock, so that asking does not change it.
    locked: AtomicBool,
}

impl AsRawFd for FolderFile {
    fn as_raw_fd(&self) -> RawFd {
        self.shared.file.as_raw_fd()
    }
}

impl FolderFile {
    /// Whether both are the same open file description.
    pub(super) fn same(&self, other: &FolderFile) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }
}

impl Folder {
    /// Opens a directory that exists.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Folder> {
        let path = fs::canonicalize(path)?;
        let dir = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(&path)?;
        let probe = probe_direct(&path)?;
        let physical = physical_block_bytes(&dir.metadata()?).unwrap_or(0);
        let block_bytes = BLOCK_BYTES_MIN.max(probe.align_bytes).max(physical);
        Ok(Folder {
            shared: Arc::new(Shared { path, dir, direct: AtomicBool::new(probe.direct) }),
            block_bytes,
        })
    }

    /// Opens a directory, and makes it first (mode 0700, durable in its parent) if it is not
    /// there. The parent must exist.
    pub fn create(path: impl AsRef<Path>) -> io::Result<Folder> {
        let path = path.as_ref();
        match fs::DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        let folder = Folder::open(path)?;
        // Also if it was there: whoever made it may have died before syncing the parent. A parent
        // that may not be read (it was not we who made the folder) cannot be synced.
        if let Some(parent) = folder.shared.path.parent() {
            match File::open(parent) {
                Ok(parent) => parent.sync_all()?,
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                Err(error) => return Err(error),
            }
        }
        Ok(folder)
    }

    /// The same folder with the larger block that a log in it was made with.
    ///
    /// # Panics
    /// If the block is smaller than the disk's own.
    pub fn with_block_bytes(mut self, block_bytes: u32) -> Folder {
        assert!(block_bytes.is_power_of_two() && block_bytes >= self.block_bytes);
        self.block_bytes = block_bytes;
        self
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// Whether files are written and read past the page cache.
    pub fn direct(&self) -> bool {
        self.shared.direct.load(Ordering::Relaxed)
    }

    fn place(&self, name: &str) -> io::Result<PathBuf> {
        // A name out of a damaged manifest must not lead out of the folder.
        if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is not a file name")));
        }
        Ok(self.shared.path.join(name))
    }

    fn open_with(&self, options: &mut OpenOptions, path: &Path, direct: bool) -> io::Result<FolderFile> {
        // A log has no links to elsewhere, and a FIFO in the folder must not hang whoever opens it.
        let file = options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{} is not a regular file", path.display()),
            ));
        }
        let direct = self.take_direct(&file, direct && self.direct())?;
        Ok(FolderFile { shared: Arc::new(Opened { file, direct, locked: AtomicBool::new(false) }) })
    }

    /// Turns the page cache off for a file. `false` where the file system refuses, from then on
    /// for all files of the folder.
    fn take_direct(&self, file: &File, wanted: bool) -> io::Result<bool> {
        let taken = set_flags(file, wanted)?;
        if wanted && !taken {
            self.shared.direct.store(false, Ordering::Relaxed);
        }
        Ok(taken)
    }

    /// What O_DIRECT would answer with a bare EINVAL.
    fn check_aligned(&self, file: &FolderFile, offset: u64, memory: &[u8]) -> io::Result<()> {
        let block_bytes = u64::from(self.block_bytes);
        if !file.shared.direct
            || (offset.is_multiple_of(block_bytes)
                && (memory.len() as u64).is_multiple_of(block_bytes)
                && memory.as_ptr().addr().is_multiple_of(ALIGN_BYTES))
        {
            return Ok(());
        }
        let text = format!(
            "{} bytes at offset {offset} are not whole aligned blocks of {block_bytes}",
            memory.len()
        );
        Err(io::Error::new(io::ErrorKind::InvalidInput, text))
    }
}

/// Bytes that are free to this process on the file system of a folder, at this moment. `None` if it does not say.
pub fn free_bytes(folder: &Path) -> io::Result<Option<u64>> {
    let path = std::ffi::CString::new(folder.as_os_str().as_bytes())?;
    let mut answer = MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: the path ends in a zero, and the answer is memory of the right type.
    let result = unsafe { libc::statvfs(path.as_ptr(), answer.as_mut_ptr()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all-zero is a valid statvfs, and the kernel has filled it in.
    let answer = unsafe { answer.assume_init() };
    #[allow(clippy::unnecessary_cast)] // Their types differ from one architecture to the next.
    let free = (answer.f_bavail as u64).saturating_mul(answer.f_frsize as u64);
    Ok((answer.f_blocks > 0).then_some(free))
}

impl Disk for Folder {
    type File = FolderFile;

    fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for found in fs::read_dir(&self.shared.path)? {
            let found = found?;
            match found.file_type() {
                Ok(kind) if kind.is_file() => names.push(found.file_name().to_string_lossy().into_owned()),
                Ok(_) => {}
                // Removed since it was read: by an owner at work, if we are a reader.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        names.sort();
        Ok(names)
    }

    fn list(&self) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for found in fs::read_dir(&self.shared.path)? {
            let found = found?;
            // DirEntry::metadata does not follow links.
            let metadata = match found.metadata() {
                Ok(metadata) => metadata,
                // Removed since it was read: by an owner at work, if we are a reader.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if metadata.is_file() {
                entries.push(Entry {
                    name: found.file_name().to_string_lossy().into_owned(),
                    bytes: metadata.len(),
                });
            }
        }
        entries.sort();
        Ok(entries)
    }

    fn open(&self, name: &str, access: Access) -> io::Result<FolderFile> {
        let path = self.place(name)?;
        let write = access == Access::Write;
        self.open_with(OpenOptions::new().read(true).write(write), &path, access != Access::Read)
    }

    fn create(&self, name: &str) -> io::Result<FolderFile> {
        let path = self.place(name)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let file = self.open_with(&mut options, &path, true)?;
        if let Err(error) = self.sync_names() {
            // The name may or may not be on disk; at least nobody finds it in this life.
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        Ok(file)
    }

    fn allocate(&self, file: &FolderFile, bytes: u64) -> io::Result<()> {
        let before = self.bytes(file)?;
        let fd = file.as_raw_fd();
        let length = libc::off_t::try_from(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
        if length == 0 {
            return Ok(());
        }
        // The system call and not posix_fallocate: where it is not supported, glibc would write
        // one byte into each block instead.
        // SAFETY: no memory is passed.
        let reserved = retry(|| unsafe { libc::fallocate(fd, 0, 0, length) });
        match reserved {
            Ok(_) => Ok(()),
            Err(error) => {
                if error.raw_os_error() == Some(libc::EOPNOTSUPP) {
                    return if bytes > before { file.shared.file.set_len(bytes) } else { Ok(()) };
                }
                // A failed allocation leaves a half-sized file. The first error says more than
                // one from taking it back.
                let _ = file.shared.file.set_len(before);
                Err(error)
            }
        }
    }

    fn read(&self, file: &FolderFile, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        self.check_aligned(file, offset, into)?;
        let mut done = 0;
        while done < into.len() {
            let from = done;
            match file.shared.file.read_at(&mut into[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            if done == into.len() {
                break;
            }
            // Short: at the end of the file, or interrupted. Past the page cache the next read
            // must begin at a whole block again.
            if offset + done as u64 >= self.bytes(file)? {
                break;
            }
            if file.shared.direct {
                done -= done % self.block_bytes as usize;
                if done == from {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the file changes its length while it is read",
                    ));
                }
            }
        }
        Ok(done)
    }

    fn write(&self, file: &FolderFile, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.check_aligned(file, offset, bytes)?;
        let mut done = 0;
        while done < bytes.len() {
            match file.shared.file.write_at(&bytes[done..], offset + done as u64) {
                Ok(0) => return Err(short_write(done, bytes.len())),
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            // The rest is tried, for the error that it names; only whole blocks can be.
            if done < bytes.len() && file.shared.direct && !done.is_multiple_of(self.block_bytes as usize) {
                return Err(short_write(done, bytes.len()));
            }
        }
        Ok(())
    }

    fn sync(&self, file: &FolderFile) -> io::Result<()> {
        file.shared.file.sync_data()
    }

    fn truncate(&self, file: &FolderFile, bytes: u64) -> io::Result<()> {
        file.shared.file.set_len(bytes)?;
        file.shared.file.sync_all()
    }

    fn bytes(&self, file: &FolderFile) -> io::Result<u64> {
        Ok(file.shared.file.metadata()?.len())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.place(from)?, self.place(to)?)?;
        self.sync_names()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.place(name)?)?;
        self.sync_names()
    }

    fn sync_names(&self) -> io::Result<()> {
        self.shared.dir.sync_all()
    }

    fn try_lock(&self, file: &FolderFile) -> io::Result<bool> {
        // Somebody who merely asks (`is_locked`) holds the shared lock for a moment, and that
        // moment must not look like an owner.
        for _ in 0..100 {
            match file.shared.file.try_lock() {
                Ok(()) => {
                    file.shared.locked.store(true, Ordering::Release);
                    return Ok(true);
                }
                Err(fs::TryLockError::Error(error)) => return Err(error),
                Err(fs::TryLockError::WouldBlock) => {}
            }
            if owned_by_somebody(&file.shared.file)? {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(false)
    }

    fn is_locked(&self, file: &FolderFile) -> io::Result<bool> {
        // Asking for the shared lock would turn our own exclusive one into it.
        if file.shared.locked.load(Ordering::Acquire) {
            return Ok(true);
        }
        owned_by_somebody(&file.shared.file)
    }
}

/// Whether another description holds the exclusive lock. The caller's holds none.
fn owned_by_somebody(file: &File) -> io::Result<bool> {
    match file.try_lock_shared() {
        Ok(()) => {
            file.unlock()?;
            Ok(false)
        }
        Err(fs::TryLockError::WouldBlock) => Ok(true),
        Err(fs::TryLockError::Error(error)) => Err(error),
    }
}

fn short_write(written: usize, wanted: usize) -> io::Error {
    io::Error::new(io::ErrorKind::WriteZero, format!("short write: {written} of {wanted} bytes"))
}

/// Repeats a system call for as long as a signal cuts it off before it did anything.
fn retry(mut call: impl FnMut() -> libc::c_int) -> io::Result<libc::c_int> {
    loop {
        let result = call();
        if result >= 0 {
            return Ok(result);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Sets O_DIRECT; `false` if the file system knows no such thing.
/// Turns the page cache off if that is wanted, and gives whether it is off. And no call may come back
/// without having waited: that was for the opening alone, and io_uring would take it for the writes too.
fn set_flags(file: &File, direct: bool) -> io::Result<bool> {
    let fd = file.as_raw_fd();
    // SAFETY: no memory is passed.
    let flags = retry(|| unsafe { libc::fcntl(fd, libc::F_GETFL) })?;
    let flags = flags & !libc::O_NONBLOCK;
    // SAFETY: no memory is passed.
    let set = |flags: libc::c_int| retry(|| unsafe { libc::fcntl(fd, libc::F_SETFL, flags) });
    if direct {
        match set(flags | libc::O_DIRECT) {
            Ok(_) => return Ok(true),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {}
            Err(error) => return Err(error),
        }
    }
    set(flags)?;
    Ok(false)
}

struct DirectProbe {
    direct: bool,
    /// Least alignment of offset and length, 0 if nobody says.
    align_bytes: u32,
}

/// Asks the file system itself, by a nameless file if one can be made, else by one that is there.
fn probe_direct(path: &Path) -> io::Result<DirectProbe> {
    let nameless =
        OpenOptions::new().read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE).open(path);
    let (file, writable) = match nameless {
        Ok(file) => (file, true),
        // Read-only, or no such thing on this file system.
        Err(_) => match any_regular_file(path) {
            Some(file) => (file, false),
            // Nothing to ask: each open tries again.
            None => {
                return Ok(DirectProbe { direct: true, align_bytes: 0 });
            }
        },
    };
    if !set_flags(&file, true)? {
        return Ok(DirectProbe { direct: false, align_bytes: 0 });
    }
    let (offset_align, memory_align) = direct_alignment(&file).unwrap_or((0, 0));
    let mut block = AlignedBuf::zeroed(BLOCK_BYTES_MIN.max(offset_align) as usize);
    // Some take the flag and then refuse the access.
    let tried = if writable { file.write_at(&block, 0) } else { file.read_at(&mut block, 0) };
    let refused = tried.is_err_and(|error| error.raw_os_error() == Some(libc::EINVAL));
    let direct = !refused && memory_align as usize <= ALIGN_BYTES;
    Ok(DirectProbe { direct, align_bytes: if direct { offset_align } else { 0 } })
}

fn any_regular_file(path: &Path) -> Option<File> {
    fs::read_dir(path)
        .ok()?
        .flatten()
        .filter(|found| found.file_type().is_ok_and(|kind| kind.is_file()))
        .find_map(|found| File::open(found.path()).ok())
}

/// What statx tells of direct I/O: alignment of offsets and lengths, and of memory.
fn direct_alignment(file: &File) -> Option<(u32, u32)> {
    let mut answer = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is an empty C string, and the answer is memory of the right type.
    let result = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            answer.as_mut_ptr(),
        )
    };
    // SAFETY: all-zero is a valid statx, and the kernel has filled it in.
    let answer = unsafe { answer.assume_init() };
    let told = result == 0 && answer.stx_mask & libc::STATX_DIOALIGN != 0;
    (told && answer.stx_dio_offset_align.is_power_of_two())
        .then_some((answer.stx_dio_offset_align, answer.stx_dio_mem_align))
}

/// The unit that the device writes without reading, if the folder is on a plain block device.
fn physical_block_bytes(metadata: &fs::Metadata) -> Option<u32> {
    let (major, minor) = (libc::major(metadata.dev()), libc::minor(metadata.dev()));
    let device = format!("/sys/dev/block/{major}:{minor}");
    // A partition has its queue one floor up.
    let text = fs::read_to_string(format!("{device}/queue/physical_block_size"))
        .or_else(|_| fs::read_to_string(format!("{device}/../queue/physical_block_size")))
        .ok()?;
    // Some virtual devices claim megabytes; a lone commit must not cost that much.
    text.trim().parse().ok().filter(|bytes: &u32| bytes.is_power_of_two() && *bytes <= 64 << 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn folder() -> (tempfile::TempDir, Folder) {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::create(temporary.path().join("log")).unwrap();
        (temporary, folder)
    }

    #[test]
    fn the_block_is_at_least_4096_and_a_power_of_two() {
        let (_keep, folder) = folder();
        assert!(folder.block_bytes() >= 4096 && folder.block_bytes().is_power_of_two());
    }

    #[test]
    fn what_is_made_is_private() {
        let (_keep, folder) = folder();
        folder.create("a").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(folder.path()), 0o700);
        assert_eq!(mode(&folder.path().join("a")), 0o600);
    }

    /// A folder on a file system without O_DIRECT is a folder all the same.
    #[test]
    fn tmpfs_is_used_through_the_page_cache() {
        let Ok(temporary) = tempfile::tempdir_in("/dev/shm") else {
            eprintln!("SKIPPED: no /dev/shm");
            return;
        };
        let folder = Folder::open(temporary.path()).unwrap();
        let file = folder.create("a").unwrap();
        // Linux takes O_DIRECT on tmpfs from 6.6 on, and refuses it before.
        eprintln!("tmpfs, direct: {}", folder.direct());
        let mut block = AlignedBuf::zeroed(4096);
        block.fill(7);
        folder.write(&file, 0, &block).unwrap();
        folder.sync(&file).unwrap();
        block.fill(0);
        assert_eq!(folder.read(&file, 0, &mut block).unwrap(), 4096);
        assert!(block.iter().all(|byte| *byte == 7));
    }

    /// Foreign names and odd things in the folder lead nowhere.
    #[test]
    fn only_regular_files_of_the_folder_are_seen_and_opened() {
        let (_keep, folder) = folder();
        folder.create("b").unwrap();
        folder.create("a").unwrap();
        fs::create_dir(folder.path().join("dir")).unwrap();
        std::os::unix::fs::symlink("a", folder.path().join("link")).unwrap();
        let names: Vec<_> = folder.list().unwrap().into_iter().map(|entry| entry.name).collect();
        assert_eq!(names, ["a", "b"]);
        for name in ["link", "dir", "../log/a", "", ".."] {
            assert!(folder.open(name, Access::Read).is_err(), "{name:?}");
        }
    }

    /// A full disk must not leave a half-sized file that looks prepared.
    #[test]
    fn failed_allocation_leaves_the_length() {
        let (_keep, folder) = folder();
        let file = folder.create("a").unwrap();
        folder.allocate(&file, 8192).unwrap();
        assert!(folder.allocate(&file, 1 << 46).is_err());
        assert_eq!(folder.bytes(&file).unwrap(), 8192);
        folder.allocate(&file, 4096).unwrap();
        assert_eq!(folder.bytes(&file).unwrap(), 8192);
    }

    /// Asking must neither take the lock, nor weaken our own, nor refuse the next owner.
    #[test]
    fn asking_for_the_lock_changes_nothing() {
        let (_keep, folder) = folder();
        let owner = folder.create("a").unwrap();
        let reader = folder.open("a", Access::Read).unwrap();
        assert!(!folder.is_locked(&reader).unwrap());
        assert!(folder.try_lock(&owner).unwrap());
        assert!(folder.is_locked(&owner).unwrap());
        assert!(folder.is_locked(&reader).unwrap());
        let second = folder.open("a", Access::Write).unwrap();
        assert!(!folder.try_lock(&second).unwrap());
        let clone = owner.clone();
        drop(owner);
        assert!(!folder.try_lock(&second).unwrap(), "a clone holds it still");
        drop(clone);
        assert!(folder.try_lock(&second).unwrap());
    }

    /// The end of a file need not be a whole block, and reading past it is not an error.
    #[test]
    fn reads_end_where_the_file_ends() {
        let (_keep, folder) = folder();
        fs::write(folder.path().join("a"), vec![1; 5000]).unwrap();
        for access in [Access::Read, Access::ReadDirect, Access::Write] {
            let file = folder.open("a", access).unwrap();
            let mut memory = AlignedBuf::zeroed(4 * folder.block_bytes() as usize);
            assert_eq!(folder.read(&file, 0, &mut memory).unwrap(), 5000, "{access:?}");
            let beyond = 4 * u64::from(folder.block_bytes());
            assert_eq!(folder.read(&file, beyond, &mut memory).unwrap(), 0, "{access:?}");
        }
    }

    #[test]
    fn a_folder_that_may_only_be_read_is_read() {
        let (_keep, folder) = folder();
        fs::write(folder.path().join("a"), vec![1; 4096]).unwrap();
        let block_bytes = folder.block_bytes() as usize;
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o500)).unwrap();
        let reading = Folder::open(folder.path()).unwrap();
        let file = reading.open("a", Access::ReadDirect).unwrap();
        assert_eq!(reading.read(&file, 0, &mut AlignedBuf::zeroed(block_bytes)).unwrap(), 4096);
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
    }
}
