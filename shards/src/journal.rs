//! A small append-only file of text lines, each durable before the call returns.
//!
//! The manifests are journals. A journal is batches, as in a segment, from offset 0 on, without a
//! segment header: each append is one batch of control records, one line each. The batches chain, so a damaged entry
//! in the middle is seen; a torn one at the end was never acknowledged and is stepped over, never
//! overwritten.
//!
//! Room is allocated ahead, so that the last words of a full disk still fit.

use std::io;

use crate::aligned::AlignedBuf;
use crate::batch::{self, Digest, Incarnation, LogId};
use crate::clock::Anchor;
use crate::io::Disk;
use crate::record::{self, Kind};

/// How much is allocated ahead.
const AHEAD_BYTES: u64 = 256 << 10;
const READ_BLOCK_BYTES: usize = 4096;
/// A journal longer than this was not written by us.
const BYTES_MAX: u64 = 1 << 30;
/// From here to that length nothing is appended, so that what was written can always be read.
const FULL_BYTES: u64 = 1 << 20;

/// What identifies a journal's batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The log; all zero while it is still to be learnt from the journal.
    pub log: LogId,
    /// The shard, or `u32::MAX` for the log's own manifest.
    pub shard: u32,
}

/// Why a journal cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The disk said no.
    #[error("{name}: {source}")]
    Io {
        /// File name.
        name: String,
        /// What it said.
        source: io::Error,
    },
    /// An entry that was once durable is damaged.
    #[error("{name}: entry {entry} at offset {offset} is damaged")]
    Damaged {
        /// File name.
        name: String,
        /// Number of the entry, from 0.
        entry: u64,
        /// Where it should be.
        offset: u64,
    },
    /// It belongs to another log or shard.
    #[error("{name}: belongs to another log or shard")]
    Foreign {
        /// File name.
        name: String,
    },
    /// It was written by a newer program.
    #[error(
        "{name}: format version {version} is newer than this program knows (it knows {})",
        batch::FORMAT_VERSION
    )]
    Unknown {
        /// File name.
        name: String,
        /// The version found.
        version: u16,
    },
}

/// What a journal says.
#[derive(Debug, Clone)]
pub struct Contents {
    /// The lines, in order.
    pub lines: Vec<String>,
    /// The log that it belongs to.
    pub log: LogId,
    /// Its own incarnation.
    incarnation: Incarnation,
    entries: u64,
    seq: u64,
    previous: Digest,
    /// The last entry as it stands in the file, and where.
    last: (u64, Vec<u8>),
    /// Offset after the last block that is not zeros.
    pub end: u64,
    /// Torn bytes at the end, never acknowledged.
    pub torn_bytes: u64,
}

/// A journal that is open for appending.
pub struct Journal<D: Disk> {
    disk: D,
    file: D::File,
    name: String,
    identity: Identity,
    incarnation: Incarnation,
    entries: u64,
    seq: u64,
    previous: Digest,
    end: u64,
    allocated: u64,
    /// An append failed after it may have reached the disk; only opening it again tells.
    poisoned: bool,
}

/// Reads a journal. `None` if there is no valid entry at all.
pub fn read<D: Disk>(disk: &D, name: &str, identity: Identity) -> Result<Option<Contents>, JournalError> {
    let failed = |source| JournalError::Io { name: name.to_owned(), source };
    let file = disk.open(name, crate::io::Access::ReadDirect).map_err(failed)?;
    read_file(disk, &file, name, identity)
}

fn read_file<D: Disk>(
    disk: &D,
    file: &D::File,
    name: &str,
    identity: Identity,
) -> Result<Option<Contents>, JournalError> {
    let failed = |source| JournalError::Io { name: name.to_owned(), source };
    // Read by the least block there is: entries that were written in larger ones are followed by zeros,
    // which are stepped over, so a journal can be read on any disk.
    let block = READ_BLOCK_BYTES;
    let file_bytes = disk.bytes(file).map_err(failed)?;
    if file_bytes > BYTES_MAX {
        return Err(failed(io::Error::other("longer than any manifest can be")));
    }
    let mut bytes = AlignedBuf::zeroed(file_bytes as usize);
    let filled = disk.read(file, 0, &mut bytes).map_err(failed)?;
    let bytes = &bytes[..filled];
    let mut out: Option<Contents> = None;
    let mut at = 0;
    let mut nonblank_end = 0;
    let mut good_end = 0;
    while at + block <= bytes.len() {
        if bytes[at..at + block].iter().all(|&b| b == 0) {
            at += block;
            continue;
        }
        nonblank_end = at + block;
        let damaged = |entry| JournalError::Damaged { name: name.to_owned(), entry, offset: at as u64 };
        let batch = match batch::open(&bytes[at..], block as u32) {
            Ok(batch) => batch,
            Err(batch::BatchFault::Unknown { version, .. }) => {
                return Err(JournalError::Unknown { name: name.to_owned(), version });
            }
            Err(_) => {
                at += block;
                continue;
            }
        };
        let foreign = batch.header.shard != identity.shard
            || (identity.log != [0; 16] && batch.header.log != identity.log)
            || out
                .as_ref()
                .is_some_and(|c| c.incarnation != batch.header.incarnation || c.log != batch.header.log);
        if foreign {
            return Err(JournalError::Foreign { name: name.to_owned() });
        }
        let expected = out.as_ref().map_or((0, [0; 32]), |c| (c.entries, c.previous));
        if (batch.header.number, batch.header.previous) != expected {
            return Err(damaged(expected.0));
        }
        let contents = out.get_or_insert_with(|| Contents {
            lines: Vec::new(),
            log: batch.header.log,
            incarnation: batch.header.incarnation,
            entries: 0,
            seq: 0,
            previous: [0; 32],
            last: (0, Vec::new()),
            end: 0,
            torn_bytes: 0,
        });
        let seal = record::Seal::new(&batch.header.incarnation);
        let mut body = batch.body;
        while !body.is_empty() {
            let (record, length) = seal.open(contents.seq, body).map_err(|_| damaged(contents.entries))?;
            let line = std::str::from_utf8(record.payload).map_err(|_| damaged(contents.entries))?;
            contents.lines.push(line.to_owned());
            contents.seq += 1;
            body = &body[length..];
        }
        contents.entries += 1;
        contents.previous = batch.digest;
        let placed = batch.header.placed_bytes(block as u32);
        contents.last = (at as u64, bytes[at..at + placed].to_vec());
        at += placed;
        nonblank_end = at;
        good_end = at;
    }
    // Less than a block behind the last one is nobody's entry, and not nothing: `verify` tells.
    let beyond = if bytes[at..].iter().any(|&b| b != 0) { bytes.len() - at } else { 0 };
    if let Some(contents) = &mut out {
        // The next entry begins at a block of this disk.
        contents.end = (nonblank_end as u64).next_multiple_of(u64::from(disk.block_bytes()));
        contents.torn_bytes = (nonblank_end - good_end + beyond) as u64;
    }
    Ok(out)
}

impl<D: Disk> Journal<D> {
    /// Makes a new journal whose first entry is `lines`; durable on return. The file may be left
    /// over from a crash before any entry was: it is then taken.
    pub fn create(
        disk: &D,
        name: &str,
        identity: Identity,
        incarnation: Incarnation,
        lines: &[String],
    ) -> Result<Journal<D>, JournalError> {
        let failed = |source| JournalError::Io { name: name.to_owned(), source };
        let file = match disk.create(name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let file = disk.open(name, crate::io::Access::Write).map_err(failed)?;
                if read_file(disk, &file, name, identity)?.is_some() {
                    return Err(failed(error));
                }
                disk.truncate(&file, 0).map_err(failed)?;
                // Who made it may have died before the name was durable.
                disk.sync_names().map_err(failed)?;
                file
            }
            other => other.map_err(failed)?,
        };
        let mut journal = Journal {
            disk: disk.clone(),
            file,
            name: name.to_owned(),
            identity,
            incarnation,
            entries: 0,
            seq: 0,
            previous: [0; 32],
            end: 0,
            allocated: 0,
            poisoned: false,
        };
        journal.append(lines)?;
        Ok(journal)
    }

    /// Opens a journal that exists, to append to it.
    pub fn open(
        disk: &D,
        name: &str,
        identity: Identity,
    ) -> Result<Option<(Journal<D>, Contents)>, JournalError> {
        let failed = |source| JournalError::Io { name: name.to_owned(), source };
        let file = disk.open(name, crate::io::Access::Write).map_err(failed)?;
        let Some(contents) = read_file(disk, &file, name, identity)? else { return Ok(None) };
        // What was read may still be in a volatile cache; nobody builds on it before it is durable. A sync alone
        // does not make it so: if the last append's sync had failed, the kernel takes its pages for clean and
        // goes on showing them. So that entry is written once more, the very same bytes.
        let (at, entry) = &contents.last;
        let mut again = AlignedBuf::zeroed(entry.len().next_multiple_of(disk.block_bytes() as usize));
        again[..entry.len()].copy_from_slice(entry);
        if at.is_multiple_of(u64::from(disk.block_bytes())) {
            disk.write(&file, *at, &again).map_err(failed)?;
        }
        disk.sync(&file).map_err(failed)?;
        let mut journal = Journal {
            disk: disk.clone(),
            allocated: disk.bytes(&file).map_err(failed)?,
            file,
            name: name.to_owned(),
            identity: Identity { log: contents.log, ..identity },
            incarnation: contents.incarnation,
            entries: contents.entries,
            seq: contents.seq,
            previous: contents.previous,
            end: contents.end,
            poisoned: false,
        };
        journal.reserve_ahead();
        Ok(Some((journal, contents)))
    }

    /// Appends lines as one entry, all or none; durable on return.
    pub fn append(&mut self, lines: &[String]) -> Result<(), JournalError> {
        let failed = |name: &str, source| JournalError::Io { name: name.to_owned(), source };
        if self.poisoned {
            return Err(failed(
                &self.name,
                io::Error::other("an earlier append to it failed; reopen the log"),
            ));
        }
        if self.end > BYTES_MAX - FULL_BYTES {
            return Err(failed(
                &self.name,
                io::Error::other("it has grown to its greatest length; go on in a new log"),
            ));
        }
        let body_bytes: usize = lines.iter().map(|l| record::encoded_bytes(0, l.len())).sum();
        let block = self.disk.block_bytes();
        let placed = batch::placed_bytes(body_bytes, block);
        let mut buf = AlignedBuf::zeroed(placed);
        let seal = record::Seal::new(&self.incarnation);
        let mut at = batch::HEADER_BYTES;
        for (i, line) in lines.iter().enumerate() {
            let header = record::Header {
                payload_bytes: line.len() as u32,
                key_bytes: 0,
                kind: Kind::Control,
                flags: 0,
                producer: 0,
                producer_seq: self.seq + i as u64,
                log_time: 0,
            };
            let into = &mut buf[at..at + header.encoded_bytes()];
            record::write(&header, &[], line.as_bytes(), into);
            seal.seal(self.seq + i as u64, into);
            at += header.encoded_bytes();
        }
        let header = batch::Header {
            log: self.identity.log,
            incarnation: self.incarnation,
            generation: 0,
            shard: self.identity.shard,
            number: self.entries,
            first_seq: self.seq,
            count: lines.len() as u32,
            body_bytes: body_bytes as u32,
            time_min: 0,
            time_max: 0,
            durable: self.entries,
            offset: self.end,
            anchor: Anchor::default(),
            previous: self.previous,
        };
        let digest = batch::seal(&header, &mut buf[..placed]);
        if self.end + placed as u64 > self.allocated {
            let wanted = self.end + placed as u64;
            self.disk.allocate(&self.file, wanted).map_err(|e| failed(&self.name, e))?;
            self.allocated = wanted;
        }
        let wrote =
            self.disk.write(&self.file, self.end, &buf[..placed]).and_then(|()| self.disk.sync(&self.file));
        self.poisoned = wrote.is_err();
        wrote.map_err(|e| failed(&self.name, e))?;
        self.end += placed as u64;
        self.entries += 1;
        self.seq += lines.len() as u64;
        self.previous = digest;
        self.reserve_ahead();
        Ok(())
    }

    /// Gives back the room that was allocated ahead: nothing is appended any more.
    pub fn finish(self) -> Result<(), JournalError> {
        let failed = |source| JournalError::Io { name: self.name.clone(), source };
        self.disk.truncate(&self.file, self.end).map_err(failed)?;
        self.disk.sync(&self.file).map_err(failed)
    }

    /// Allocates room for later entries. A failure is no error yet: what is there suffices for now.
    fn reserve_ahead(&mut self) {
        if self.allocated.saturating_sub(self.end) < AHEAD_BYTES / 2 {
            let wanted = self.end + AHEAD_BYTES;
            if self.disk.allocate(&self.file, wanted).is_ok() {
                self.allocated = wanted;
            }
        }
    }
}
