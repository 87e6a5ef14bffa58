//! What can go wrong at the public edge, and what it means for a caller: [`ErrorKind`].

use std::io;
use std::path::PathBuf;

use crate::checkpoint::epochs::EpochsError;
use crate::checkpoint::keys::KeyError;
use hanaper_shards::ack::Stopped;
use hanaper_shards::journal::JournalError;
use hanaper_shards::manifest::ManifestError;
use hanaper_shards::wal::chain::Damage;
use hanaper_shards::wal::prepare::PrepareError;
use hanaper_shards::wal::recovery::RecoveryError;

use crate::words;

/// What a caller can do about an error. The numbers of [`ErrorKind::exit_code`] are relied upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// Something that was durable is gone or altered: look at it with `verify` and `recover`.
    Integrity,
    /// The request makes no sense for this log: change it.
    Usage,
    /// The system said no: repair what it names, and try again.
    Io,
    /// Another process has the log open for writing: end it, or wait.
    Owned,
    /// Refused by policy, for instance because a newer program wrote the log.
    Refused,
}

impl ErrorKind {
    /// The exit code of a program that ends with this.
    pub fn exit_code(self) -> u8 {
        match self {
            ErrorKind::Integrity => 1,
            ErrorKind::Usage => 2,
            ErrorKind::Io | ErrorKind::Owned => 4,
            ErrorKind::Refused => 5,
        }
    }
}

/// Why a log, or a part of it, was not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// There is no log here.
    #[error("{path}: not a log: {why}")]
    NotALog {
        /// The folder or file that was named.
        path: String,
        /// What is missing.
        why: String,
    },
    /// The log has no such shard.
    #[error("the log has no shard {shard}")]
    NoSuchShard {
        /// The shard that was asked for.
        shard: u32,
    },
    /// A file that the caller named besides the log cannot be used.
    #[error("{name}: {why}")]
    Argument {
        /// The file.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// Something that was durable is gone or altered. What was given out before it is whole.
    #[error("{verdict} {place}: {meaning}")]
    Damaged {
        /// Verdict in capitals, stable.
        verdict: &'static str,
        /// Where.
        place: String,
        /// What it means.
        meaning: String,
    },
    /// The system said no.
    #[error("{name}: {source}{}", io_advice(source))]
    Io {
        /// File or folder.
        name: String,
        /// What it said.
        source: io::Error,
    },
    /// Another process has the log open for writing.
    #[error("{path}: another process has the log open for writing; end it first")]
    Owned {
        /// The log's folder.
        path: String,
    },
    /// A newer program wrote it.
    #[error("{name}: {why}")]
    Newer {
        /// The file.
        name: String,
        /// What is not known.
        why: String,
    },
    /// It would overwrite something.
    #[error("{name}: {why}")]
    Refused {
        /// The file.
        name: String,
        /// Why not.
        why: String,
    },
}

impl ReadError {
    /// What the caller can do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            ReadError::NotALog { .. } | ReadError::NoSuchShard { .. } | ReadError::Argument { .. } => {
                ErrorKind::Usage
            }
            ReadError::Damaged { .. } => ErrorKind::Integrity,
            ReadError::Io { .. } => ErrorKind::Io,
            ReadError::Owned { .. } => ErrorKind::Owned,
            ReadError::Newer { .. } | ReadError::Refused { .. } => ErrorKind::Refused,
        }
    }

    /// The exit code of a program that ends with this.
    pub fn exit_code(&self) -> u8 {
        self.kind().exit_code()
    }

    pub(crate) fn io(name: impl Into<String>) -> impl FnOnce(io::Error) -> ReadError {
        move |source| ReadError::Io { name: name.into(), source }
    }
}

impl From<Damage> for ReadError {
    fn from(damage: Damage) -> ReadError {
        let meaning = words::meaning(&damage);
        let Damage { verdict, place, .. } = damage;
        if verdict == "VERSION" {
            return ReadError::Newer { name: place, why: meaning };
        }
        ReadError::Damaged { verdict, place, meaning }
    }
}

impl From<JournalError> for ReadError {
    fn from(error: JournalError) -> ReadError {
        match error {
            JournalError::Io { name, source } => ReadError::Io { name, source },
            JournalError::Damaged { name, entry, offset } => ReadError::Damaged {
                verdict: "MANIFEST",
                place: name,
                meaning: format!("entry {entry} at offset {offset} is gone or altered"),
            },
            JournalError::Foreign { name } => ReadError::Damaged {
                verdict: "FOREIGN-LOG",
                place: name,
                meaning: "it belongs to another log or shard".to_owned(),
            },
            JournalError::Unknown { name, version } => ReadError::Newer {
                name,
                why: format!("format version {version} is newer than this program knows"),
            },
        }
    }
}

impl From<ManifestError> for ReadError {
    fn from(error: ManifestError) -> ReadError {
        match error {
            ManifestError::Missing { name } => ReadError::io(name)(io::Error::new(
                io::ErrorKind::NotFound,
                "the shard's manifest is missing or empty, although the log has been open before",
            )),
            ManifestError::Journal(error) => error.into(),
            ManifestError::Line { name, source } => ReadError::Newer {
                name,
                why: format!("{source}: written by a newer program, or by nobody of ours"),
            },
        }
    }
}

/// Why a log was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder is not there, and making one was not asked for.
    #[error("{0}: no such log")]
    Missing(PathBuf),
    /// The folder holds something else.
    #[error(
        "{path}: not a log: it has files, such as {such_as}, and no log.manifest; name a new or an empty folder"
    )]
    NotALog {
        /// The folder.
        path: PathBuf,
        /// One of its files.
        such_as: String,
    },
    /// The folder is not there, nor the one above it.
    #[error("{0}: there is no folder above it; make that first, or name another")]
    NoParent(PathBuf),
    /// The folder holds a log whose manifest is gone.
    #[error(
        "{0}: it has segments of a log, and their log.manifest is gone; restore that from a copy \
         (`hanaper recover` says what can be done)"
    )]
    ManifestGone(PathBuf),
    /// A setting that makes no sense.
    #[error("{0}")]
    Setting(String),
    /// The log has another number of shards.
    #[error(
        "the log has {have} {}, not {wanted}; open it with {have}, or reshard it (--reshard)",
        if *have == 1 { "shard" } else { "shards" }
    )]
    Shards {
        /// What it has.
        have: u32,
        /// What was asked for.
        wanted: u32,
    },
    /// Another process has it open for writing.
    #[error("{path}: already open for writing by {owner}; close it there first (readers need not)")]
    Owned {
        /// The log.
        path: PathBuf,
        /// Who.
        owner: String,
    },
    /// A killed owner's writes did not land in time.
    #[error("{0}: writes of a killed owner are still in flight after 5 s; try again")]
    StillInFlight(PathBuf),
    /// Something that was durable is gone or altered; nothing was written.
    #[error("{path}: {source}; `hanaper recover` says what can be done")]
    Damaged {
        /// The log.
        path: PathBuf,
        /// What.
        source: RecoveryError,
    },
    /// A manifest is damaged, foreign or newer.
    #[error("{path}: {source}{}", manifest_advice(source))]
    Manifest {
        /// The log.
        path: PathBuf,
        /// What.
        source: ManifestError,
    },
    /// The keys that sign its checkpoints.
    #[error("{path}: {source}")]
    Keys {
        /// The log.
        path: PathBuf,
        /// What about them.
        source: KeyError,
    },
    /// This is an older copy of the log: going on would sign another history.
    #[error(
        "{path}: ROLLBACK: {what}; restore the newest copy, or begin another log in a new folder, since going on here would sign a second history"
    )]
    Rollback {
        /// The log.
        path: PathBuf,
        /// What says so.
        what: String,
    },
    /// What it says of itself in its epochs cannot be read.
    #[error("{path}: {source}; restore the file from a copy")]
    Epochs {
        /// The log.
        path: PathBuf,
        /// What.
        source: EpochsError,
    },
    /// The disk or the system said no.
    #[error("{path}: {source}{}", io_advice(source))]
    Io {
        /// The log.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

impl OpenError {
    /// What kind it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            OpenError::Missing(_)
            | OpenError::NotALog { .. }
            | OpenError::NoParent(_)
            | OpenError::Setting(_)
            | OpenError::Shards { .. } => ErrorKind::Usage,
            OpenError::Owned { .. } => ErrorKind::Owned,
            // A file where the log's folder should be: another name helps, another try does not.
            OpenError::Io { source, .. } if source.kind() == io::ErrorKind::NotADirectory => ErrorKind::Usage,
            OpenError::StillInFlight(_) | OpenError::Io { .. } => ErrorKind::Io,
            // The segment is not damaged: this program is too old for it.
            OpenError::Damaged { source: RecoveryError::Damaged(damage), .. }
                if damage.first().is_some_and(|d| d.verdict == "VERSION") =>
            {
                ErrorKind::Refused
            }
            OpenError::Damaged { .. } | OpenError::ManifestGone(_) => ErrorKind::Integrity,
            OpenError::Keys { source, .. } => source.kind(),
            OpenError::Rollback { .. } => ErrorKind::Refused,
            OpenError::Epochs { source, .. } => match source {
                EpochsError::Journal(JournalError::Io { .. }) => ErrorKind::Io,
                EpochsError::Journal(JournalError::Unknown { .. }) => ErrorKind::Refused,
                EpochsError::Journal(_) | EpochsError::Damaged { .. } => ErrorKind::Integrity,
            },
            OpenError::Manifest { source, .. } => match source {
                ManifestError::Missing { .. } => ErrorKind::Integrity,
                ManifestError::Journal(JournalError::Io { .. }) => ErrorKind::Io,
                ManifestError::Journal(JournalError::Unknown { .. }) | ManifestError::Line { .. } => {
                    ErrorKind::Refused
                }
                ManifestError::Journal(_) => ErrorKind::Integrity,
            },
        }
    }

    /// The exit code that the command line gives it.
    pub fn exit_code(&self) -> u8 {
        self.kind().exit_code()
    }

    pub(crate) fn from_recovery(path: PathBuf, source: RecoveryError) -> OpenError {
        match source {
            RecoveryError::Damaged(mut damage) => {
                damage.iter_mut().for_each(|d| d.meaning = words::meaning(d));
                OpenError::Damaged { path, source: RecoveryError::Damaged(damage) }
            }
            RecoveryError::Manifest(source) | RecoveryError::Prepare(PrepareError::Manifest(source)) => {
                OpenError::Manifest { path, source }
            }
            RecoveryError::Io { name, source }
            | RecoveryError::Prepare(PrepareError::Io { name, source }) => {
                let source = io::Error::new(source.kind(), format!("{name}: {source}"));
                OpenError::Io { path, source }
            }
            RecoveryError::Prepare(PrepareError::Stopped) => {
                OpenError::Io { path, source: io::Error::other("preparation was stopped") }
            }
        }
    }
}

/// What to do where the system's own words do not tell.
fn io_advice(error: &io::Error) -> &'static str {
    match error.kind() {
        // The others have said more than the system does.
        _ if error.raw_os_error().is_none() => "",
        io::ErrorKind::PermissionDenied => "; run it as a user who may use this folder, or name another",
        io::ErrorKind::ReadOnlyFilesystem => "; a log there can be read, and not be written",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "; free some space, then try again",
        _ if error.raw_os_error() == Some(libc::EIO) => {
            "; ask the kernel's log about the disk before anything else"
        }
        _ => "",
    }
}

/// What to do about a manifest that is gone or altered.
fn manifest_advice(error: &ManifestError) -> &'static str {
    match error {
        ManifestError::Missing { .. }
        | ManifestError::Journal(JournalError::Damaged { .. } | JournalError::Foreign { .. }) => {
            "; restore it from a copy (`hanaper recover` says what can be done)"
        }
        _ => "",
    }
}

/// Why a log was not closed as it should be. What was acknowledged is durable all the same.
#[derive(Debug, thiserror::Error)]
pub enum CloseError {
    /// A shard had stopped: what it had accepted and not acknowledged may be lost.
    #[error("shard {shard}: {why}")]
    Stopped {
        /// The shard.
        shard: u32,
        /// Why.
        why: Stopped,
    },
    /// A thread of the log panicked.
    #[error("a thread of the log panicked: {0}")]
    Panicked(String),
    /// The manifest could not say that the log was closed; the next open recovers.
    #[error("the log could not be marked as closed: {0}")]
    Manifest(#[from] ManifestError),
}

impl CloseError {
    /// What kind it is.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Io
    }
}
