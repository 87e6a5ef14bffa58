//! The keys of one log, in a folder of their own, outside the log's.
//!
//! ```text
//! <state>/<log id in hex>/   0700
//!     identity.seed          0600   the identity key; its name is the log's origin
//!     period-<p>.seed        0600   the key of period p; its name is <origin>/period/<p>
//!     lock                   held by flock while something is made or erased
//!     *.seed.tmp             what a crash left; never read, and overwritten by the next try
//! ```
//! A key file is text of at most 512 bytes, valid if and only if it is exactly this, the seed being the base64 of
//! the 32 bytes that RFC 8032 calls the private key:
//! ```text
//! hanaper-key v1
//! name <name>
//! seed <base64>
//! ```
//! Promised: a key is on disk before anybody gets it, and after a crash at any point a file holds a whole key, or
//! there is none (a file of zeros is one whose erasure was interrupted). A key file that others than its owner may
//! use is refused. Seeds in memory are overwritten with zeros once they are not needed.
//!
//! Not promised: that an erased seed leaves no trace of itself below the file system. Flash, copy-on-write and
//! snapshots keep old blocks. Neither is memory kept out of swap and core dumps here; that is the program's part.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64ct::{Base64, Encoding};
use hanaper_shards::batch::LogId;
use hanaper_shards::manifest::hex;
use zeroize::Zeroizing;

use crate::checkpoint::note::{SigningKey, is_name, is_name_char};
use crate::error::ErrorKind;
use crate::random;

/// The longest origin, in bytes.
pub const ORIGIN_BYTES_MAX: usize = 255;

/// The longest key file. Within one sector of a disk, so that an interrupted overwrite leaves all or nothing.
const FILE_BYTES_MAX: usize = 512;
const SEED_BASE64_BYTES: usize = 44;
const PERIOD_SUFFIX_BYTES_MAX: usize = "/period/18446744073709551615".len();
const HEAD: &str = "hanaper-key v1\nname ";
const SEED: &str = "\nseed ";
const _: () = assert!(
    HEAD.len() + ORIGIN_BYTES_MAX + PERIOD_SUFFIX_BYTES_MAX + SEED.len() + SEED_BASE64_BYTES + "\n".len()
        <= FILE_BYTES_MAX
);

const IDENTITY: &str = "identity.seed";
const LOCK: &str = "lock";

/// The keys of one log.
#[derive(Debug)]
pub struct Keyring {
    folder: PathBuf,
    identity: SigningKey,
}

/// Why keys were not made, read or erased.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// There are keys already, and new ones would be another log's to everybody who knows the old ones.
    #[error("{}: this log has its keys already", path.display())]
    Exists {
        /// The file of the identity key.
        path: PathBuf,
    },
    /// No key here: name the right state folder, or bring back the copy of the keys.
    #[error("{}: no key of this log; name the folder that has it with --state or HANAPER_STATE", path.display())]
    Missing {
        /// The folder or the file that is not there.
        path: PathBuf,
    },
    /// Others than its owner may use it.
    #[error("{0}: open to others than its owner (mode {mode:03o}); chmod {should_be:o} {0}", path.display())]
    Exposed {
        /// The folder or the file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// The permission bits that it must have.
        should_be: u32,
    },
    /// What stands in the file is not the key that belongs there: bring back the copy of the keys.
    #[error("{}: {why}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Not a name for a key: choose another one.
    #[error(
        "{origin:?} is no origin: 1 to {ORIGIN_BYTES_MAX} bytes without spaces, `+` and control characters"
    )]
    Origin {
        /// What was asked for.
        origin: String,
    },
    /// Nothing says where the state folder is.
    #[error("no home folder to keep keys in; set HANAPER_STATE, or name a folder with --state")]
    NoHome,
    /// The system said no.
    #[error("{}: {source}", path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

impl KeyError {
    /// What the caller can do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            KeyError::Exists { .. } | KeyError::Missing { .. } | KeyError::Malformed { .. } => {
                ErrorKind::Usage
            }
            KeyError::Origin { .. } | KeyError::NoHome => ErrorKind::Usage,
            KeyError::Exposed { .. } => ErrorKind::Refused,
            KeyError::Io { .. } => ErrorKind::Io,
        }
    }

    fn io(path: &Path) -> impl FnOnce(io::Error) -> KeyError {
        |source| KeyError::Io { path: path.to_owned(), source }
    }
}

impl Keyring {
    /// Makes the identity key of a log, and its folder below `state`. The key is durable on return.
    pub fn create(state: &Path, log: &LogId, origin: &str) -> Result<Keyring, KeyError> {
        if !is_origin(origin) {
            return Err(KeyError::Origin { origin: origin.to_owned() });
        }
        let folder = state.join(hex(log));
        make_folder(&folder)?;
        check_folder(&folder)?;
        let _lock = lock(&folder)?;
        let path = folder.join(IDENTITY);
        // Whatever stands under the name, whole or not, is not to be replaced.
        match fs::symlink_metadata(&path) {
            Ok(_) => return Err(KeyError::Exists { path }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(KeyError::io(&path)(error)),
        }
        let identity = write_new_key(&folder, IDENTITY, origin)?;
        Ok(Keyring { folder, identity })
    }

    /// Reads the identity key of a log.
    pub fn open(state: &Path, log: &LogId) -> Result<Keyring, KeyError> {
        let folder = state.join(hex(log));
        check_folder(&folder)?;
        let path = folder.join(IDENTITY);
        let identity = read_key(&path)?.ok_or_else(|| KeyError::Missing { path: path.clone() })?;
        if !is_origin(identity.vkey().name()) {
            let why = format!("its name has more than {ORIGIN_BYTES_MAX} bytes");
            return Err(KeyError::Malformed { path, why });
        }
        Ok(Keyring { folder, identity })
    }

    /// Where they stand.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The long-lived key. Its name is the log's origin.
    pub fn identity(&self) -> &SigningKey {
        &self.identity
    }

    /// The key of a period, made if there is none. It is durable on return.
    pub fn make_period(&self, period: u64) -> Result<SigningKey, KeyError> {
        let _lock = lock(&self.folder)?;
        if let Some(key) = self.period(period)? {
            // Whoever made it may have been killed before its name was durable.
            sync_folder(&self.folder)?;
            return Ok(key);
        }
        write_new_key(&self.folder, &period_file(period), &self.period_name(period))
    }

    /// The key of a period; `None` if it was never made, or erased.
    pub fn period(&self, period: u64) -> Result<Option<SigningKey>, KeyError> {
        let path = self.folder.join(period_file(period));
        let key = read_key(&path)?;
        match &key {
            Some(other) if other.vkey().name() != self.period_name(period) => {
                let why = format!("it is the key of {:?}", other.vkey().name());
                Err(KeyError::Malformed { path, why })
            }
            _ => Ok(key),
        }
    }

    /// Overwrites the key of a period and removes it. Without a key there is nothing to do, and that is fine.
    pub fn erase_period(&self, period: u64) -> Result<(), KeyError> {
        let _lock = lock(&self.folder)?;
        let file = period_file(period);
        erase(&temporary(&self.folder, &file))?;
        erase(&self.folder.join(file))?;
        // Also when nothing was there: an earlier try may have been killed before this.
        sync_folder(&self.folder)
    }

    /// The periods that have a file, in rising order. One whose erasure was interrupted is among them, so that
    /// it can be erased again; [`Keyring::period`] gives no key for it.
    pub fn periods(&self) -> Result<Vec<u64>, KeyError> {
        let mut periods = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(KeyError::io(&self.folder))? {
            let name = entry.map_err(KeyError::io(&self.folder))?.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix("period-")?.strip_suffix(".seed"));
            let period = number.and_then(|number| number.parse().ok());
            // A number may be written in several ways, a file's name only in one.
            periods.extend(period.filter(|&period| name.to_str() == Some(&period_file(period))));
        }
        periods.sort_unstable();
        Ok(periods)
    }

    fn period_name(&self, period: u64) -> String {
        format!("{}/period/{period}", self.identity.vkey().name())
    }
}

/// Where keys are kept if nobody says otherwise: `HANAPER_STATE`, else `$XDG_STATE_HOME/hanaper`, else
/// `~/.local/state/hanaper`.
pub fn default_state() -> Result<PathBuf, KeyError> {
    state_from(&|name| std::env::var_os(name).map(PathBuf::from))
}

fn state_from(variable: &dyn Fn(&str) -> Option<PathBuf>) -> Result<PathBuf, KeyError> {
    if let Some(state) = variable("HANAPER_STATE").filter(|path| !path.as_os_str().is_empty()) {
        return Ok(state);
    }
    // The XDG base directory specification: a relative path is to be ignored.
    let absolute = |name| variable(name).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")));
    Ok(state.ok_or(KeyError::NoHome)?.join("hanaper"))
}

/// The origin of a log for which nobody chose one: `hanaper.local/<host>/<first 8 hex digits of the log's id>`.
pub fn default_origin(log: &LogId) -> String {
    let host = fs::read("/proc/sys/kernel/hostname").unwrap_or_default();
    origin_on(&String::from_utf8_lossy(&host), log)
}

fn origin_on(host: &str, log: &LogId) -> String {
    let clean = |c: char| if is_name_char(c) && c != char::REPLACEMENT_CHARACTER { c } else { '-' };
    let host: String = host.trim().chars().map(clean).collect();
    let host = if host.is_empty() { "localhost" } else { &host };
    format!("hanaper.local/{host}/{}", hex(&log[..4]))
}

fn is_origin(origin: &str) -> bool {
    is_name(origin) && origin.len() <= ORIGIN_BYTES_MAX
}

fn period_file(period: u64) -> String {
    format!("period-{period}.seed")
}

fn temporary(folder: &Path, file: &str) -> PathBuf {
    folder.join(format!("{file}.tmp"))
}

/// Makes a folder for its owner alone, and those above it that are not there, each durable.
fn make_folder(folder: &Path) -> Result<(), KeyError> {
    let parent = match folder.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let make = || DirBuilder::new().mode(0o700).create(folder);
    let mut made = make();
    if made.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        make_folder(parent)?;
        made = make();
    }
    match made {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(KeyError::io(folder)(error)),
        _ => sync_folder(parent),
    }
}

fn check_folder(folder: &Path) -> Result<(), KeyError> {
    let metadata = fs::metadata(folder).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => KeyError::Missing { path: folder.to_owned() },
        _ => KeyError::io(folder)(error),
    })?;
    check_mode(folder, &metadata, 0o700)
}

fn check_mode(path: &Path, metadata: &fs::Metadata, should_be: u32) -> Result<(), KeyError> {
    let mode = metadata.mode() & 0o777;
    if mode & 0o077 == 0 { Ok(()) } else { Err(KeyError::Exposed { path: path.to_owned(), mode, should_be }) }
}

/// One process at a time makes or erases keys, so a temporary file that is found belongs to nobody.
fn lock(folder: &Path) -> Result<File, KeyError> {
    let path = folder.join(LOCK);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&path)
        .map_err(KeyError::io(&path))?;
    file.lock().map_err(KeyError::io(&path))?;
    Ok(file)
}

/// Makes a key out of chance. It is whole and durable before it has its file's name, and the name is durable
/// before the key is given out.
fn write_new_key(folder: &Path, file: &str, name: &str) -> Result<SigningKey, KeyError> {
    let seed = Zeroizing::new(random::bytes());
    let key = SigningKey::from_seed(name, &seed).expect("an origin, and what begins with one, is a name");
    let (temporary, path) = (temporary(folder, file), folder.join(file));
    // A crash may have left one, with a seed in it that nobody ever used.
    erase(&temporary)?;
    let mut text = Zeroizing::new([0; FILE_BYTES_MAX]);
    let text = encode(name, &seed, &mut text);
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&temporary)
        .and_then(|mut file| file.write_all(text).and_then(|()| file.sync_all()))
        .map_err(KeyError::io(&temporary))?;
    fs::rename(&temporary, &path).map_err(KeyError::io(&path))?;
    sync_folder(folder)?;
    Ok(key)
}

/// Overwrites a file with zeros, and removes it. The folder is the caller's to sync.
fn erase(path: &Path) -> Result<(), KeyError> {
    let mut file = match open_no_follow(path, OpenOptions::new().write(true)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened.map_err(KeyError::io(path))?,
    };
    // In place. Truncating it first would give its blocks back to the file system with the seed in them.
    file.metadata()
        .and_then(|metadata| io::copy(&mut io::repeat(0).take(metadata.len()), &mut file))
        .and_then(|_| file.sync_all())
        .and_then(|()| fs::remove_file(path))
        .map_err(KeyError::io(path))
}

/// The key in a file; `None` if there is no file, or if its erasure was interrupted.
fn read_key(path: &Path) -> Result<Option<SigningKey>, KeyError> {
    let malformed = |why: &str| KeyError::Malformed { path: path.to_owned(), why: why.to_owned() };
    let file = match open_no_follow(path, OpenOptions::new().read(true)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
            return Err(malformed("a symbolic link, where a key file must stand itself"));
        }
        opened => opened.map_err(KeyError::io(path))?,
    };
    let metadata = file.metadata().map_err(KeyError::io(path))?;
    if !metadata.is_file() {
        return Err(malformed("not a file"));
    }
    check_mode(path, &metadata, 0o600)?;
    // A buffer that does not grow, so it leaves no copies behind; and one byte more than any key file has.
    let mut buffer = Zeroizing::new([0; FILE_BYTES_MAX + 1]);
    let mut length = 0;
    loop {
        match (&file).read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(KeyError::io(path)(error)),
        }
    }
    let text = &buffer[..length];
    if length > 0 && text.iter().all(|&byte| byte == 0) {
        return Ok(None);
    }
    decode(text).map(Some).ok_or_else(|| malformed("not a whole key file of the form hanaper-key v1"))
}

/// Opens a file that is there, and no symbolic link. Does not wait for the other end of a pipe.
fn open_no_follow(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)
}

fn sync_folder(folder: &Path) -> Result<(), KeyError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(KeyError::io(folder))
}

/// The text of a key file.
fn encode<'a>(name: &str, seed: &[u8; 32], into: &'a mut [u8; FILE_BYTES_MAX]) -> &'a [u8] {
    let mut base64 = Zeroizing::new([0; SEED_BASE64_BYTES]);
    let base64 = Base64::encode(seed, base64.as_mut_slice()).expect("44 characters for 32 bytes");
    let mut rest = into.as_mut_slice();
    for part in [HEAD, name, SEED, base64, "\n"] {
        rest.write_all(part.as_bytes()).expect("a name that is no longer than it may be");
    }
    let left = rest.len();
    &into[..FILE_BYTES_MAX - left]
}

fn decode(text: &[u8]) -> Option<SigningKey> {
    if text.len() > FILE_BYTES_MAX {
        return None;
    }
    let text = std::str::from_utf8(text).ok()?.strip_prefix(HEAD)?.strip_suffix('\n')?;
    let (name, base64) = text.split_once(SEED)?;
    let mut seed = Zeroizing::new([0; 32]);
    let length = Base64::decode(base64, seed.as_mut_slice()).ok()?.len();
    if length != seed.len() {
        return None;
    }
    SigningKey::from_seed(name, &seed).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, symlink};

    const LOG: LogId = [0xab, 0xcd, 0xef, 0x01, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
    const ORIGIN: &str = "hanaper.local/host/abcdef01";

    fn keys() -> (tempfile::TempDir, Keyring) {
        let state = tempfile::tempdir().unwrap();
        let keys = Keyring::create(state.path(), &LOG, ORIGIN).unwrap();
        (state, keys)
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    /// Puts a file as a key file would stand there.
    fn put(path: &Path, bytes: &[u8]) {
        fs::write(path, bytes).unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
    }

    fn vkey(key: &SigningKey) -> String {
        key.vkey().to_string()
    }

    #[test]
    fn keys_come_back_and_are_their_owners_alone() {
        let outer = tempfile::tempdir().unwrap();
        let state = outer.path().join("a/b");
        let made = Keyring::create(&state, &LOG, ORIGIN).unwrap();
        let period = made.make_period(0).unwrap();
        let folder = state.join("abcdef0105060708090a0b0c0d0e0f10");
        for path in [state.as_path(), &outer.path().join("a"), &folder] {
            assert_eq!(mode(path), 0o700, "{}", path.display());
        }
        for file in ["identity.seed", "period-0.seed", "lock"] {
            assert_eq!(mode(&folder.join(file)), 0o600, "{file}");
        }
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 3, "nothing temporary is left");

        let opened = Keyring::open(&state, &LOG).unwrap();
        assert_eq!(vkey(opened.identity()), vkey(made.identity()));
        assert_eq!(opened.identity().vkey().name(), ORIGIN);
        assert_eq!(vkey(&opened.period(0).unwrap().unwrap()), vkey(&period));
        assert_eq!(period.vkey().name(), format!("{ORIGIN}/period/0"));
        assert_ne!(vkey(&opened.make_period(1).unwrap()), vkey(&period));
        let text = fs::read_to_string(folder.join("identity.seed")).unwrap();
        let lines: Vec<_> = text.split('\n').collect();
        assert_eq!((lines[0], lines[1], lines.len()), ("hanaper-key v1", &*format!("name {ORIGIN}"), 4));
        assert!(!format!("{opened:?}").contains(lines[2].strip_prefix("seed ").unwrap()));
    }

    /// New keys under the old name would be a fork to everybody who knows the old ones.
    #[test]
    fn keys_are_never_replaced() {
        let (state, keys) = keys();
        let again = Keyring::create(state.path(), &LOG, "another");
        assert!(matches!(again, Err(KeyError::Exists { .. })));
        // Nor what is left of them.
        let path = keys.folder.join(IDENTITY);
        for rest in [b"".as_slice(), b"hanaper-key v1\n", &[0; 99]] {
            put(&path, rest);
            assert!(matches!(Keyring::create(state.path(), &LOG, ORIGIN), Err(KeyError::Exists { .. })));
            assert_eq!(fs::read(&path).unwrap(), rest);
        }
    }

    #[test]
    fn of_several_who_make_keys_at_once_one_does() {
        let state = tempfile::tempdir().unwrap();
        let make = || Keyring::create(state.path(), &LOG, ORIGIN).ok().map(|keys| vkey(keys.identity()));
        let made: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(make)).collect();
            threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
        });
        let keys = Keyring::open(state.path(), &LOG).unwrap();
        assert_eq!(made, [vkey(keys.identity())]);
        let periods: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..4).map(|_| scope.spawn(|| vkey(&keys.make_period(3).unwrap()))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(periods.iter().all(|key| *key == periods[0]));
    }

    #[test]
    fn missing_keys_are_named_with_a_way_out() {
        let (state, keys) = keys();
        let missing = |log: &LogId| match Keyring::open(state.path(), log) {
            Err(error @ KeyError::Missing { .. }) => error.to_string(),
            other => panic!("{other:?}"),
        };
        assert!(missing(&[1; 16]).contains("01010101"));
        fs::remove_file(keys.folder.join(IDENTITY)).unwrap();
        let text = missing(&LOG);
        assert!(text.contains("identity.seed") && text.contains("HANAPER_STATE"), "{text}");
    }

    #[test]
    fn a_key_that_others_may_read_is_refused() {
        let (state, keys) = keys();
        keys.make_period(2).unwrap();
        let refused = |path: &Path, bad: u32, good: u32, read: &dyn Fn() -> Result<(), KeyError>| {
            fs::set_permissions(path, Permissions::from_mode(bad)).unwrap();
            let error = read().unwrap_err();
            assert!(matches!(error, KeyError::Exposed { .. }), "{error}");
            assert!(error.to_string().ends_with(&format!("chmod {good:o} {}", path.display())), "{error}");
            fs::set_permissions(path, Permissions::from_mode(good)).unwrap();
            read().unwrap();
        };
        let open = || Keyring::open(state.path(), &LOG).map(drop);
        for bad in [0o640, 0o604, 0o620, 0o644, 0o666] {
            refused(&keys.folder.join(IDENTITY), bad, 0o600, &open);
            refused(&keys.folder.join("period-2.seed"), bad, 0o600, &|| keys.period(2).map(drop));
        }
        refused(&keys.folder, 0o750, 0o700, &open);
        refused(&keys.folder, 0o701, 0o700, &open);
    }

    #[test]
    fn what_is_not_a_whole_key_is_an_error_that_names_the_file() {
        let (state, keys) = keys();
        keys.make_period(1).unwrap();
        let path = keys.folder.join("period-1.seed");
        let whole = fs::read_to_string(&path).unwrap();
        let identity = fs::read_to_string(keys.folder.join(IDENTITY)).unwrap();
        let mut bad: Vec<String> = (0..whole.len()).map(|length| whole[..length].to_owned()).collect();
        bad.extend([
            whole.clone() + "\n",
            whole.clone() + "x",
            whole.clone() + "\0",
            whole.replacen("v1", "v2", 1),
            whole.replace('\n', "\r\n"),
            whole.replacen("seed ", "seed  ", 1),
            whole.replacen("seed ", "seed AAAA", 1),
            whole.replacen("host", "ho st", 1),
            whole.replacen("host", "ho+st", 1),
            whole.replacen("host", "guest", 1),
            whole.replacen("/period/1", "/period/2", 1),
            whole.clone() + &"\0".repeat(2 * FILE_BYTES_MAX),
            whole.replacen("host", &"h".repeat(FILE_BYTES_MAX), 1),
            identity,
        ]);
        for text in bad {
            put(&path, text.as_bytes());
            for error in [keys.period(1).unwrap_err(), keys.make_period(1).unwrap_err()] {
                assert!(matches!(error, KeyError::Malformed { .. }), "{text:?}");
                assert!(error.to_string().contains("period-1.seed"));
            }
            put(&keys.folder.join(IDENTITY), text.as_bytes());
            let opened = Keyring::open(state.path(), &LOG);
            assert!(matches!(opened, Err(KeyError::Malformed { .. })) || decode(text.as_bytes()).is_some());
            assert_eq!(fs::read(&path).unwrap(), text.as_bytes(), "nothing was put in its place");
        }
        put(&path, b"\xff");
        assert!(matches!(keys.period(1), Err(KeyError::Malformed { .. })));
    }

    #[test]
    fn a_link_or_a_folder_is_not_a_key() {
        let (_state, keys) = keys();
        let elsewhere = tempfile::NamedTempFile::new().unwrap();
        keys.make_period(1).unwrap();
        fs::rename(keys.folder.join("period-1.seed"), elsewhere.path()).unwrap();
        let whole = fs::read(elsewhere.path()).unwrap();
        symlink(elsewhere.path(), keys.folder.join("period-1.seed")).unwrap();
        assert!(matches!(keys.period(1), Err(KeyError::Malformed { .. })));
        assert!(keys.erase_period(1).is_err());
        // What is written is never written through a link.
        symlink(elsewhere.path(), keys.folder.join("period-2.seed.tmp")).unwrap();
        assert!(keys.make_period(2).is_err());
        assert_eq!(fs::read(elsewhere.path()).unwrap(), whole);
        fs::create_dir(keys.folder.join("period-3.seed")).unwrap();
        assert!(matches!(keys.period(3), Err(KeyError::Malformed { .. })));
    }

    /// Each state in which a crash can leave the two files, while a key is made and while it is erased.
    #[test]
    fn after_a_crash_there_is_a_whole_key_or_none() {
        let (_state, keys) = keys();
        keys.make_period(9).unwrap();
        let path = keys.folder.join("period-9.seed");
        let temporary = keys.folder.join("period-9.seed.tmp");
        let whole = fs::read(&path).unwrap();
        let old = vkey(&keys.period(9).unwrap().unwrap());
        let other = fs::read_to_string(&path).unwrap().replacen("seed ", "seed A", 1).into_bytes();
        let zeros = vec![0; whole.len()];
        type Content<'a> = Option<&'a [u8]>;
        // (temporary file, file, whether the key is there)
        let states: [(Content, Content, bool); 10] = [
            (None, None, false),
            (Some(b""), None, false),
            (Some(&whole[..40]), None, false),
            (Some(&whole), None, false),
            (Some(&zeros), None, false),
            (None, Some(&whole), true),
            (Some(&other), Some(&whole), true),
            (None, Some(&zeros), false),
            (Some(&whole), Some(&zeros), false),
            (Some(&zeros), Some(&zeros), false),
        ];
        for (case, (left, file, there)) in states.into_iter().enumerate() {
            let arrange = || {
                for (path, content) in [(&temporary, left), (&path, file)] {
                    let _ = fs::remove_file(path);
                    if let Some(content) = content {
                        put(path, content);
                    }
                }
            };
            arrange();
            assert_eq!(keys.period(9).unwrap().is_some(), there, "{case}");
            assert_eq!(keys.periods().unwrap().len(), usize::from(file.is_some()), "{case}");
            let made = vkey(&keys.make_period(9).unwrap());
            assert_eq!(made == old, there, "{case}: a key that was there is kept, another one is new");
            assert_eq!(vkey(&keys.period(9).unwrap().unwrap()), made, "{case}");
            arrange();
            keys.erase_period(9).unwrap();
            assert!(keys.period(9).unwrap().is_none(), "{case}");
            assert!(!path.exists() && !temporary.exists(), "{case}");
        }
    }

    #[test]
    fn an_erased_seed_is_overwritten_and_gone() {
        let (_state, keys) = keys();
        keys.make_period(4).unwrap();
        // Another name of the same bytes shows what became of them.
        let witness = keys.folder.join("witness");
        fs::hard_link(keys.folder.join("period-4.seed"), &witness).unwrap();
        let length = fs::read(&witness).unwrap().len();
        keys.erase_period(4).unwrap();
        assert_eq!(fs::read(&witness).unwrap(), vec![0; length]);
        assert!(keys.period(4).unwrap().is_none());
        keys.erase_period(4).unwrap();
        keys.erase_period(5).unwrap();
        assert!(keys.periods().unwrap().is_empty());
    }

    #[test]
    fn periods_are_listed_in_order() {
        let (_state, keys) = keys();
        for period in [10, 9, 0, u64::MAX] {
            keys.make_period(period).unwrap();
        }
        for stray in
            ["period-01.seed", "period-+1.seed", "period-1.seed.tmp", "period-.seed", "period-2", "x"]
        {
            put(&keys.folder.join(stray), b"");
        }
        assert_eq!(keys.periods().unwrap(), [0, 9, 10, u64::MAX]);
    }

    #[test]
    fn the_longest_origin_has_periods_too_and_a_longer_one_is_refused() {
        let state = tempfile::tempdir().unwrap();
        let longest = "o".repeat(ORIGIN_BYTES_MAX);
        let keys = Keyring::create(state.path(), &LOG, &longest).unwrap();
        keys.make_period(u64::MAX).unwrap();
        assert!(Keyring::open(state.path(), &LOG).unwrap().period(u64::MAX).unwrap().is_some());
        for origin in ["", "a b", "a+b", "a\nb", &(longest + "o")] {
            let refused = Keyring::create(state.path(), &[7; 16], origin);
            assert!(matches!(refused, Err(KeyError::Origin { .. })), "{origin:?}");
        }
        assert!(!state.path().join(hex(&[7; 16])).exists());
    }

    #[test]
    fn a_key_file_has_a_longest_length() {
        let file = |name_bytes| format!("{HEAD}{}{SEED}{}=\n", "n".repeat(name_bytes), "A".repeat(43));
        let longest = FILE_BYTES_MAX - file(0).len();
        assert!(decode(file(longest).as_bytes()).is_some());
        assert!(decode(file(longest + 1).as_bytes()).is_none());
    }

    #[test]
    fn the_state_folder_is_found_or_asked_for() {
        let find = |set: &[(&str, &str)]| {
            let set = set.to_owned();
            state_from(&|name| {
                set.iter().find(|(key, _)| *key == name).map(|(_, value)| PathBuf::from(value))
            })
        };
        let home = ("HOME", "/home/a");
        let cases: [(&[(&str, &str)], &str); 6] = [
            (&[home], "/home/a/.local/state/hanaper"),
            (&[home, ("XDG_STATE_HOME", "/s")], "/s/hanaper"),
            (&[home, ("XDG_STATE_HOME", "s")], "/home/a/.local/state/hanaper"),
            (&[home, ("XDG_STATE_HOME", "/s"), ("HANAPER_STATE", "/k")], "/k"),
            (&[home, ("HANAPER_STATE", "")], "/home/a/.local/state/hanaper"),
            (&[("HANAPER_STATE", "k")], "k"),
        ];
        for (set, state) in cases {
            assert_eq!(find(set).unwrap(), Path::new(state), "{set:?}");
        }
        for set in [&[][..], &[("HOME", "")]] {
            let error = find(set).unwrap_err();
            assert!(matches!(error, KeyError::NoHome) && error.to_string().contains("HANAPER_STATE"));
        }
    }

    #[test]
    fn the_default_origin_is_a_name_whatever_the_host_is_called() {
        assert_eq!(origin_on("db-7.example\n", &LOG), "hanaper.local/db-7.example/abcdef01");
        assert_eq!(origin_on("a b+c\u{fffd}\u{85}d\n", &LOG), "hanaper.local/a-b-c--d/abcdef01");
        assert_eq!(origin_on("\n", &LOG), "hanaper.local/localhost/abcdef01");
        assert!(is_origin(&default_origin(&LOG)));
    }
}
