//! The proof of one record: three files, and a check that needs no log, only the log's public key.
//!
//! ```text
//! X.tlog-proof    that the epoch entry is in the tree of a signed checkpoint: C2SP's tlog-proof
//! X.leaf          the epoch entry, as it was hashed
//! X.batch         the batch with the record: header ‖ body ‖ digest, without the padding
//!
//! c2sp.org/tlog-proof@v1
//! extra BASE64                                    of the text below
//! index 7                                         of the entry in the log
//! BASE64                                          hashes from the entry's sibling up, one a line
//!                                                 a blank line, then the checkpoint, a signed note
//! example.com/audit
//! 9
//! …
//!
//! hanaper-record-proof v1                         what `extra` holds
//! shard 0
//! sequence 431
//! batch 12                                        its index in the shard's tree
//! size 13                                         of the shard's tree that the entry names
//! BASE64                                          hashes from the batch's sibling up, one a line
//! ```
//! Format: <https://c2sp.org/tlog-proof>. `extra` is not signed, so nothing in it is believed: each of its fields is
//! compared with what is (see [`check`]). The batch is there whole, because only walking its frames from the header
//! tells a record from bytes that look like one inside a payload; so a proof discloses the record's neighbours. The
//! padding is left out: no digest covers it, and without it whoever checks need not know the disk's block.
//!
//! A text is a tlog-proof if and only if it has these lines in this order, each with its end, with the index in
//! decimal without leading zeros, at most 64 hashes of 32 bytes, base64 padded and canonical, and behind the blank
//! line a signed note. A text is an `extra` of ours if and only if it has these lines, in the same forms. No line
//! is longer than 64 KiB.

use std::fmt;

use base64ct::{Base64, Encoding};
use hanaper_shards::batch::{self, BatchFault};
use hanaper_shards::manifest::hex;
use hanaper_shards::merkle::{self, Frontier, Hash, ProofFault};

use super::Checkpoint;
use super::entry::{ENTRY_BYTES_MAX, Entry, Time, hash, number};
use super::note::{NOTE_BYTES_MAX, Note, SignatureFault, Vkey};
use crate::read::OwnedRecord;
use crate::read::batch::{records, verdict_of};

/// The longest X.tlog-proof.
pub const TLOG_PROOF_BYTES_MAX: usize = NOTE_BYTES_MAX + 2 * LINE_BYTES_MAX;
/// The longest X.leaf.
pub const LEAF_BYTES_MAX: usize = ENTRY_BYTES_MAX;
/// The longest X.batch.
pub const BATCH_BYTES_MAX: usize = batch::HEADER_BYTES + batch::BODY_BYTES_MAX + batch::DIGEST_BYTES;

/// Go's scanner gives up on longer lines.
const LINE_BYTES_MAX: usize = 64 << 10;
/// A tree of 2^64 leaves is not higher.
const HASHES_MAX: usize = Frontier::HASHES_MAX;
const FIRST_LINE: &str = "c2sp.org/tlog-proof@v1";
const EXTRA_FIRST_LINE: &str = "hanaper-record-proof v1";

/// The three files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// X.tlog-proof.
    pub tlog_proof: String,
    /// X.leaf.
    pub leaf: String,
    /// X.batch.
    pub batch: Vec<u8>,
}

/// What a proof proves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proven {
    /// The name that the log signs under.
    pub origin: String,
    /// The checkpoint that was signed.
    pub checkpoint: Checkpoint,
    /// The entry that names the record's batch.
    pub entry: Entry,
    /// The record.
    pub record: OwnedRecord,
}

impl Proven {
    /// When the log's evidence first covered it, as the log's machine told the time.
    pub fn entered(&self) -> Time {
        self.entry.time
    }
}

/// Why three files do not prove a record. None of it can be mended by whoever checks: ask for the proof again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// The key has not signed the checkpoint.
    #[error("BAD-SIGNATURE checkpoint: {0}")]
    Signature(#[from] SignatureFault),
    /// It is another log's.
    #[error("FOREIGN-LOG {place}: {what}")]
    ForeignLog {
        /// In which part.
        place: &'static str,
        /// Whose.
        what: String,
    },
    /// The batch is not whole, or altered.
    #[error("{} batch: {fault}", verdict_of(*.fault))]
    Batch {
        /// What is wrong with it.
        fault: BatchFault,
    },
    /// A field is not what the signed parts lead to, or is not written as it must be.
    #[error("PROOF-MISMATCH {field}: {what}")]
    Mismatch {
        /// Which one.
        field: &'static str,
        /// How.
        what: String,
    },
    /// The batch is the right one, and no record of that sequence is in it.
    #[error("NOT-A-RECORD {seq}: {what}")]
    NotARecord {
        /// The sequence.
        seq: u64,
        /// What is there.
        what: String,
    },
}

impl ProofError {
    /// A word in capitals, stable.
    pub fn verdict(&self) -> &'static str {
        match self {
            ProofError::Signature(_) => "BAD-SIGNATURE",
            ProofError::ForeignLog { .. } => "FOREIGN-LOG",
            ProofError::Batch { fault } => verdict_of(*fault),
            ProofError::Mismatch { .. } => "PROOF-MISMATCH",
            ProofError::NotARecord { .. } => "NOT-A-RECORD",
        }
    }

    /// The field that does not match, if it is that.
    pub fn field(&self) -> Option<&'static str> {
        match self {
            ProofError::Mismatch { field, .. } => Some(field),
            _ => None,
        }
    }
}

fn mismatch(field: &'static str, what: impl Into<String>) -> ProofError {
    ProofError::Mismatch { field, what: what.into() }
}

/// Checks three files against the log's public key.
///
/// From what is signed down to the record, each step held by the one before: the key signed the checkpoint; the
/// checkpoint's root and the hashes lead to the entry at that index; the entry names the shard's tree; that root and
/// the path lead to the batch's digest at that number; the digest covers the batch, and its header says which of its
/// frames is the record of that sequence.
pub fn check(vkey: &Vkey, tlog_proof: &[u8], leaf: &[u8], batch: &[u8]) -> Result<Proven, ProofError> {
    let proof = TlogProof::parse(tlog_proof)?;
    proof.note.verify(vkey)?;
    let proven = follow(&proof, leaf, batch)?;
    if proven.origin != vkey.name() {
        let what = format!("it is of {}, and the key is of {}", proven.origin, vkey.name());
        return Err(ProofError::ForeignLog { place: "checkpoint", what });
    }
    Ok(proven)
}

/// All of the check but the signature.
pub(crate) fn follow(proof: &TlogProof, leaf: &[u8], batch: &[u8]) -> Result<Proven, ProofError> {
    let checkpoint = Checkpoint::parse(proof.note.text());
    let checkpoint = checkpoint.map_err(|fault| mismatch("checkpoint", fault.to_string()))?;
    let text = std::str::from_utf8(leaf).map_err(|_| mismatch("leaf", "it is not UTF-8"))?;
    let entry = Entry::parse(text).map_err(|fault| mismatch("leaf", fault.to_string()))?;
    if entry.epoch != proof.index {
        let what = format!("{}, and the leaf is entry {}", proof.index, entry.epoch);
        return Err(mismatch("index", what));
    }
    let leaf = merkle::leaf(leaf);
    leads_to(checkpoint.root(), &leaf, proof.index, checkpoint.size(), &proof.hashes)
        .map_err(|(range, why)| mismatch(if range { "index" } else { "inclusion" }, why))?;

    let extra = Extra::parse(proof.extra.as_deref().unwrap_or_default())
        .ok_or_else(|| mismatch("extra", "it does not say which record it is about"))?;
    let claim = entry.claim(extra.shard).ok_or_else(|| {
        mismatch("shard", format!("entry {} does not name shard {}", entry.epoch, extra.shard))
    })?;
    if claim.size != extra.size {
        let what = format!("{}, and the entry names {} batches of the shard", extra.size, claim.size);
        return Err(mismatch("size", what));
    }
    // A block of one byte: no padding.
    let opened = batch::open(batch, 1).map_err(|fault| ProofError::Batch { fault })?;
    let h = &opened.header;
    if h.placed_bytes(1) != batch.len() {
        return Err(mismatch("batch", "there are bytes behind its digest"));
    }
    if h.log != entry.log {
        let what = format!("it is of log {}, and the entry is of {}", hex(&h.log), hex(&entry.log));
        return Err(ProofError::ForeignLog { place: "batch", what });
    }
    if h.shard != extra.shard {
        return Err(mismatch("shard", format!("{}, and the batch is of shard {}", extra.shard, h.shard)));
    }
    if h.number != extra.batch {
        return Err(mismatch("batch", format!("{}, and it is batch {}", extra.batch, h.number)));
    }
    leads_to(&claim.root, &merkle::leaf(&opened.digest), extra.batch, claim.size, &extra.path)
        .map_err(|(range, why)| mismatch(if range { "batch" } else { "path" }, why))?;

    let seq = extra.seq;
    if !(h.first_seq..h.end_seq()).contains(&seq) {
        let what = format!("the batch holds the records {}..{}", h.first_seq, h.end_seq());
        return Err(ProofError::NotARecord { seq, what });
    }
    let mut record = None;
    records(h, opened.body, &mut |at, found| {
        if at == seq {
            record = Some(OwnedRecord {
                shard: h.shard,
                seq,
                batch: h.number,
                log_time: found.header.log_time,
                wall_ns: (found.header.log_time as i64).wrapping_add(h.wall_offset_ns()),
                kind: found.header.kind,
                flags: found.header.flags,
                producer: found.header.producer,
                producer_seq: found.header.producer_seq,
                key: found.key.to_vec(),
                payload: found.payload.to_vec(),
            });
        }
    })
    .map_err(|fault| ProofError::NotARecord { seq, what: fault.meaning })?;
    let record = record.expect("every record of the batch was visited");
    Ok(Proven { origin: checkpoint.origin().to_owned(), checkpoint, entry, record })
}

/// Whether this leaf leads to this root; if not, whether it lies outside of the tree, and why.
fn leads_to(root: &Hash, leaf: &Hash, index: u64, size: u64, path: &[Hash]) -> Result<(), (bool, String)> {
    match merkle::root_from_inclusion(leaf, index, size, path) {
        Ok(found) if found == *root => Ok(()),
        Ok(_) => Err((false, format!("{}, not to the one that is named", ProofFault::Root))),
        Err(fault) => Err((fault == ProofFault::Range, format!("{fault} ({index} of {size})"))),
    }
}

/// A tlog-proof, of whatever log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlogProof {
    /// What the application adds. Nothing authenticates it.
    pub extra: Option<Vec<u8>>,
    /// Index of the leaf.
    pub index: u64,
    /// From the leaf's sibling up.
    pub hashes: Vec<Hash>,
    /// The checkpoint.
    pub note: Note,
}

impl TlogProof {
    /// Reads a whole one.
    pub fn parse(bytes: &[u8]) -> Result<TlogProof, ProofError> {
        let bad = |what: &str| mismatch("tlog-proof", what);
        if bytes.len() > TLOG_PROOF_BYTES_MAX {
            return Err(bad("it is too long"));
        }
        let text = std::str::from_utf8(bytes).map_err(|_| bad("it is not UTF-8"))?;
        let (head, note) = text.split_once("\n\n").ok_or_else(|| bad("it has no blank line"))?;
        let mut lines = head.split('\n').peekable();
        if lines.next() != Some(FIRST_LINE) {
            return Err(bad("its first line is not c2sp.org/tlog-proof@v1"));
        }
        if text.split('\n').any(|line| line.len() > LINE_BYTES_MAX) {
            return Err(bad("it has a line of more than 64 KiB"));
        }
        let extra = lines.next_if(|line| line.starts_with("extra "));
        let extra = extra.map(|line| Base64::decode_vec(&line["extra ".len()..]).ok());
        let extra = match extra {
            Some(None) => return Err(bad("its extra data is no base64")),
            Some(extra) => extra,
            None => None,
        };
        let index = lines.next().and_then(|line| number(line.strip_prefix("index ")?));
        let index = index.ok_or_else(|| bad("it has no index"))?;
        let hashes = hashes(lines).ok_or_else(|| bad("a line is no hash, or there are too many"))?;
        let note = Note::parse(note.as_bytes()).map_err(|fault| mismatch("checkpoint", fault.to_string()))?;
        Ok(TlogProof { extra, index, hashes, note })
    }
}

/// The text; [`TlogProof::parse`] reads it.
impl fmt::Display for TlogProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{FIRST_LINE}")?;
        if let Some(extra) = &self.extra {
            writeln!(f, "extra {}", Base64::encode_string(extra))?;
        }
        writeln!(f, "index {}", self.index)?;
        self.hashes.iter().try_for_each(|hash| writeln!(f, "{}", Base64::encode_string(hash)))?;
        write!(f, "\n{}", self.note)
    }
}

/// What our proofs say in `extra`: which record, and the way from its batch to the root of its shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extra {
    /// The shard.
    pub shard: u32,
    /// The record's sequence.
    pub seq: u64,
    /// Number of its batch.
    pub batch: u64,
    /// Size of the shard's tree.
    pub size: u64,
    /// From the batch's sibling up.
    pub path: Vec<Hash>,
}

impl Extra {
    /// Reads one. `None` if it is not one.
    pub fn parse(bytes: &[u8]) -> Option<Extra> {
        let mut lines = std::str::from_utf8(bytes).ok()?.strip_suffix('\n')?.split('\n');
        if lines.next() != Some(EXTRA_FIRST_LINE) {
            return None;
        }
        let mut field = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ');
        Some(Extra {
            shard: number(field("shard")?)?,
            seq: number(field("sequence")?)?,
            batch: number(field("batch")?)?,
            size: number(field("size")?)?,
            path: hashes(lines)?,
        })
    }
}

/// The text; [`Extra::parse`] reads it.
impl fmt::Display for Extra {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Extra { shard, seq, batch, size, path } = self;
        writeln!(f, "{EXTRA_FIRST_LINE}\nshard {shard}\nsequence {seq}\nbatch {batch}\nsize {size}")?;
        path.iter().try_for_each(|hash| writeln!(f, "{}", Base64::encode_string(hash)))
    }
}

/// One hash a line, no more than a path can have.
fn hashes<'a>(lines: impl Iterator<Item = &'a str>) -> Option<Vec<Hash>> {
    let mut hashes = Vec::new();
    for line in lines {
        if hashes.len() == HASHES_MAX {
            return None;
        }
        hashes.push(hash(line)?);
    }
    Some(hashes)
}

#[cfg(test)]
mod tests;
