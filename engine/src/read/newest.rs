//! What a log has signed last, and which keys it says that it signs with.
//!
//! Only what is needed for that is read and compared: the period that the note is in, and the first. Whether all
//! the rest holds, [`super::verify`] says.

use std::path::Path;

use hanaper_shards::batch::LogId;
use hanaper_shards::merkle;

use super::disk::ReadOnly;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::epochs::{self, EpochsError, Period};
use crate::checkpoint::note::{Note, Vkey};
use crate::error::ReadError;

/// The newest checkpoint of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Newest {
    /// The signed note.
    pub note: Note,
    /// What it says: the text of the note.
    pub checkpoint: Checkpoint,
    /// Wall clock of its newest entry, nanoseconds since 1970; `None` if the period before holds it.
    pub wall_ns: Option<i64>,
}

/// The keys that a log names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    /// The long-lived one: its name is the log's origin.
    pub identity: Vkey,
    /// Number and key of the current period.
    pub period: Option<(u64, Vkey)>,
}

/// The newest checkpoint; `None` if there is none yet. One that names another tree than that of the entries before
/// it, or that the log's own identity has not signed, is damage.
pub fn newest(path: impl AsRef<Path>) -> Result<Option<Newest>, ReadError> {
    let (disk, log) = super::open(path.as_ref())?;
    newest_of(&disk, log.log)
}

/// The keys that the log's entries name; `None` if it has none yet. What a log says of itself proves nothing:
/// compare it with what its owner gave you.
pub fn keys(path: impl AsRef<Path>) -> Result<Option<Keys>, ReadError> {
    let (disk, log) = super::open(path.as_ref())?;
    let Some(identity) = identity(&disk, log.log)? else { return Ok(None) };
    let mut named = None;
    for number in periods(&disk)?.into_iter().rev() {
        let Some(period) = read_period(&disk, log.log, number)? else { continue };
        // The next one is begun once it is named, so a crash may leave it without a file.
        named = period.next().and_then(|(next, vkey)| Some((next, Vkey::parse(vkey).ok()?)));
        if named.is_none() && number > 0 {
            let before = read_period(&disk, log.log, number - 1)?;
            named = before.and_then(|before| Some((number, Vkey::parse(before.next()?.1).ok()?)));
        } else if named.is_none() {
            named = key_of(&period, "period").map(|vkey| (0, vkey));
        }
        break;
    }
    Ok(Some(Keys { identity, period: named }))
}

/// Which log it is: what its keys are kept by.
pub fn log_id(path: impl AsRef<Path>) -> Result<LogId, ReadError> {
    Ok(super::open(path.as_ref())?.1.log)
}

/// The log's identity, as its first entry names it.
pub(crate) fn identity(disk: &ReadOnly, log: LogId) -> Result<Option<Vkey>, ReadError> {
    if !periods(disk)?.contains(&0) {
        return Ok(None);
    }
    Ok(read_period(disk, log, 0)?.and_then(|first| key_of(&first, "genesis")))
}

pub(crate) fn newest_of(disk: &ReadOnly, log: LogId) -> Result<Option<Newest>, ReadError> {
    for number in periods(disk)?.into_iter().rev() {
        let Some(period) = read_period(disk, log, number)? else { continue };
        // A period that has just begun has no note yet: the closing one of the period before is the newest.
        let Some((size, note)) = period.notes.iter().max_by_key(|(size, _)| *size) else { continue };
        let damaged = |verdict, meaning: &str| ReadError::Damaged {
            verdict,
            place: format!("note on {size} entries"),
            meaning: meaning.to_owned(),
        };
        let checkpoint = Checkpoint::parse(note.text()).expect("it was read as one");
        let mut tree = period.before.clone();
        let mut wall_ns = None;
        for (entry, text) in period.entries.iter().take_while(|(entry, _)| entry.epoch < *size) {
            tree.push(merkle::leaf(text.as_bytes()));
            wall_ns = Some(entry.time.wall_ns);
        }
        if (tree.size(), tree.root()) != (checkpoint.size(), *checkpoint.root()) {
            let meaning = "it names another tree than that of the entries before it";
            return Err(damaged("CHECKPOINT-ROOT", meaning));
        }
        let Some(identity) = identity(disk, log)? else {
            return Err(damaged("EPOCHS", "no entry names the log's identity"));
        };
        if checkpoint.origin() != identity.name() {
            return Err(damaged("FOREIGN-LOG", &format!("it is of {}", checkpoint.origin())));
        }
        if note.verify(&identity).is_err() {
            return Err(damaged("BAD-SIGNATURE", "the log's identity has not signed it"));
        }
        return Ok(Some(Newest { note: note.clone(), checkpoint, wall_ns }));
    }
    Ok(None)
}

/// Numbers of the periods, in rising order.
pub(crate) fn periods(disk: &ReadOnly) -> Result<Vec<u64>, ReadError> {
    epochs::periods(disk).map_err(ReadError::io(disk.path().display().to_string()))
}

pub(crate) fn read_period(disk: &ReadOnly, log: LogId, number: u64) -> Result<Option<Period>, ReadError> {
    epochs::read(disk, log, number).map_err(|error| match error {
        EpochsError::Journal(error) => error.into(),
        EpochsError::Damaged { name, what } => {
            ReadError::Damaged { verdict: "EPOCHS", place: name, meaning: what }
        }
    })
}

fn key_of(period: &Period, word: &str) -> Option<Vkey> {
    let (entry, _) = period.entries.first()?;
    Vkey::parse(entry.events(word).next()?.get("vkey")?).ok()
}
