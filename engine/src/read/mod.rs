//! The read side: what a log holds, without touching it.
//!
//! A reader takes no lasting lock, needs no permission to write, and works on a read-only folder,
//! on a copy, and on a log that somebody writes to. Of such a live log it shows what is known to be
//! durable, and nothing that a crash could still undo. Of a log without an owner it shows what
//! recovery would keep.
//!
//! It never skips: what should be there and cannot be read ends the reading with an error. Only
//! losses that are on record are stepped over.

use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use hanaper_shards::io::{Disk, Entry};
use hanaper_shards::manifest::{LogState, ShardManifest};
use hanaper_shards::segment::paths::{self, Name};
use hanaper_shards::wal::chain::Place;

pub(crate) mod acks;
pub(crate) mod batch;
pub(crate) mod check;
pub(crate) mod disk;
pub mod evidence;
pub mod inspect;
pub mod newest;
pub(crate) mod promise;
pub mod prove;
pub mod replay;
mod shard;
mod tree;
pub mod verify;
pub(crate) mod view;

use crate::error::ReadError as Error;
use disk::ReadOnly;
use replay::{Replay, ShardRecords};
use shard::{ShardReader, Wanted};

pub use crate::error::ReadError;
pub use hanaper_shards::record::Kind;
pub use inspect::{
    BatchInspection, Checkpointed, Inspection, SegmentInspection, ShardInspection, inspect, inspect_segment,
};

/// A log that is open for reading.
///
/// Each call that reads shows the log as it is at that moment.
#[derive(Debug)]
pub struct Reader {
    disk: ReadOnly,
    log: LogState,
    notices: Mutex<Vec<String>>,
}

/// Which records are wanted. The default is all data records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Select {
    /// From this wall time on, in nanoseconds since 1970.
    pub from_wall_ns: Option<i64>,
    /// Before this wall time.
    pub to_wall_ns: Option<i64>,
    /// Of this shard only.
    pub shard: Option<u32>,
    /// With these sequences only (of each shard).
    pub seqs: Option<Range<u64>>,
    /// Control records too.
    pub control: bool,
}

/// One record of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedRecord {
    /// Its shard.
    pub shard: u32,
    /// Its sequence in the shard.
    pub seq: u64,
    /// Number of its batch.
    pub batch: u64,
    /// Log time in nanoseconds: never goes back.
    pub log_time: u64,
    /// Wall clock when it was appended, nanoseconds since 1970: may step.
    pub wall_ns: i64,
    /// Data or control.
    pub kind: Kind,
    /// [`hanaper_shards::record::FLAG_UNTERMINATED`], or 0.
    pub flags: u8,
    /// Who appended it; 0 is the log itself.
    pub producer: u32,
    /// Counts that producer's records.
    pub producer_seq: u64,
    /// The routing key.
    pub key: Vec<u8>,
    /// The event's bytes.
    pub payload: Vec<u8>,
}

impl Reader {
    /// Opens a log for reading.
    pub fn open(path: impl AsRef<Path>) -> Result<Reader, Error> {
        let (disk, log) = open(path.as_ref())?;
        Ok(Reader { disk, log, notices: Mutex::default() })
    }

    /// All shards that the log ever had.
    pub fn shards(&self) -> Vec<u32> {
        self.log.shards().map(|(shard, _)| shard).collect()
    }

    /// How many shards the layout in force has.
    pub fn shards_in_force(&self) -> u32 {
        self.log.layout().router.shards
    }

    /// What is selected. Of a chosen shard, in order of its sequence; of all, in order of time, and one
    /// producer's records in the order in which it appended them. Ends after the first error: what came before it is whole.
    pub fn replay(&self, select: Select) -> Replay {
        let wanted = Wanted {
            from_wall_ns: select.from_wall_ns,
            to_wall_ns: select.to_wall_ns,
            seqs: select.seqs.unwrap_or(0..u64::MAX),
            control: select.control,
        };
        if let Some(shard) = select.shard {
            let place = places(&self.log).find(|place| place.shard == shard);
            return Replay::of_one(place.map(|place| self.shard_reader(place, wanted)));
        }
        Replay::new(places(&self.log).map(|place| self.shard_reader(place, wanted.clone())).collect())
    }

    /// Records of one shard, control records too, in order of their sequence. Ends after the first error.
    pub fn shard(&self, shard: u32, seqs: Range<u64>) -> Result<ShardRecords, Error> {
        let place = places(&self.log).find(|p| p.shard == shard).ok_or(Error::NoSuchShard { shard })?;
        let wanted = Wanted { from_wall_ns: None, to_wall_ns: None, seqs, control: true };
        Ok(ShardRecords::new(self.shard_reader(place, wanted)))
    }

    /// Losses on record, as a shard and its records: what replay steps over. Of one shard, or of all.
    pub fn losses(&self, shard: Option<u32>) -> Result<Vec<(u32, Range<u64>)>, Error> {
        let mut losses = Vec::new();
        for place in places(&self.log).filter(|p| shard.is_none_or(|shard| shard == p.shard)) {
            let manifest = ShardManifest::read(&self.disk, place)?;
            losses.extend(manifest.losses.into_iter().map(|loss| (place.shard, loss.seqs)));
        }
        Ok(losses)
    }

    /// What people should know about how it was read: losses that were stepped over, a folder that
    /// could not be synced.
    pub fn notices(&self) -> Vec<String> {
        self.notices.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Bytes read from the disk so far.
    pub fn bytes_read(&self) -> u64 {
        self.disk.bytes_read()
    }

    fn shard_reader(&self, place: Place, wanted: Wanted) -> ShardReader {
        let mut notices = self.notices.lock().unwrap_or_else(PoisonError::into_inner);
        ShardReader::new(&self.disk, place, &self.log, wanted, &mut notices)
    }
}

/// Opens the folder of a log and reads its manifest.
pub(crate) fn open(path: &Path) -> Result<(ReadOnly, LogState), Error> {
    let disk = folder(path)?;
    match view::log_and_names(&disk) {
        Ok((_, _, Some(stale))) => Err(stale.into()),
        Ok((log, ..)) => Ok((disk, log)),
        Err(Error::NotALog { .. }) if was_a_log(path) => Err(Error::Damaged {
            verdict: "MISSING",
            place: paths::LOG_MANIFEST.to_owned(),
            meaning:
                "the folder has segments of a log, and the manifest that says which must be there is gone"
                    .to_owned(),
        }),
        Err(error) => Err(error),
    }
}

/// Whether a log could be begun in this folder: it is not there yet, or has no files of somebody else.
pub fn could_begin(path: &Path) -> Result<(), Error> {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        _ => {}
    }
    let names = folder(path)?.names().map_err(Error::io(path.display().to_string()))?;
    match in_the_way(&names) {
        None => Ok(()),
        Some(name) => Err(Error::NotALog {
            path: path.display().to_string(),
            why: format!("it has files, such as {name}, and no log.manifest"),
        }),
    }
}

/// The first file that keeps a log from being begun beside it.
pub(crate) fn in_the_way(names: &[String]) -> Option<&String> {
    let harmless =
        |name: &&String| matches!(paths::parse(name), Name::Ignored | Name::Lock | Name::Calibrate);
    names.iter().filter(|name| !harmless(name)).min()
}

/// Whether a folder without a whole `log.manifest` has files that only a log has.
pub(crate) fn was_a_log(path: &Path) -> bool {
    let ours = |entry: Entry| {
        matches!(paths::parse(&entry.name), Name::Segment { .. } | Name::ShardManifest { .. })
            && entry.bytes > 0
    };
    ReadOnly::open(path).and_then(|disk| disk.list()).is_ok_and(|all| all.into_iter().any(ours))
}

/// A segment file somewhere: its folder, and its name there.
pub(crate) fn segment_file(path: &Path) -> Result<(ReadOnly, String), Error> {
    let named = || path.display().to_string();
    let not_one = |why: &str| Error::Argument { name: named(), why: why.to_owned() };
    if path.is_dir() {
        return Err(not_one("it is a folder, not a segment file; a log's folder is named with --log"));
    }
    let name =
        path.file_name().and_then(|name| name.to_str()).ok_or_else(|| not_one("not the name of a file"))?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if matches!(paths::parse(name), Name::LogManifest | Name::ShardManifest { .. }) {
        return Err(not_one(
            "it is a manifest, not a segment file; `hanaper inspect --log DIR` shows what the manifests say",
        ));
    }
    let disk = ReadOnly::for_file(folder, name).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => not_one("there is no such file"),
        std::io::ErrorKind::InvalidInput => not_one("it is not a segment file"),
        _ if error.raw_os_error() == Some(libc::ELOOP) => {
            not_one("it is a symbolic link; name the file itself")
        }
        _ => Error::io(named())(error),
    })?;
    Ok((disk, name.to_owned()))
}

pub(crate) fn folder(path: &Path) -> Result<ReadOnly, Error> {
    use std::io::ErrorKind::{NotADirectory, NotFound};
    let not_a_log = |why: &str| Error::NotALog { path: path.display().to_string(), why: why.to_owned() };
    ReadOnly::open(path).map_err(|error| match error.kind() {
        NotFound => not_a_log("there is no such folder"),
        NotADirectory => not_a_log("it is not a folder"),
        _ => Error::io(path.display().to_string())(error),
    })
}

/// Every shard that the log ever had, and where its chain belongs.
pub(crate) fn places(log: &LogState) -> impl Iterator<Item = Place> + '_ {
    log.shards().map(|(shard, generation)| Place { log: log.log, generation, shard })
}
