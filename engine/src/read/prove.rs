//! Makes the proof of one record out of a log's folder ([`crate::checkpoint::proof`] says what that is).
//!
//! It reads only, on a live log too. The checkpoint is the newest; the entry is the earliest that names the record's
//! batch, so that the proof says how soon the log was bound to it. Both trees are walked leaf by leaf from where a
//! segment header or a period's first line tells what was before, and only the hashes of the two paths are held: some
//! hundred, however long the log is. What is given out has been followed from the checkpoint down to the record.

use std::collections::BTreeMap;
use std::path::Path;

use hanaper_shards::aligned::AlignedBuf;
use hanaper_shards::batch::{DIGEST_BYTES, HEADER_BYTES, LogId};
use hanaper_shards::io::{Access, Disk};
use hanaper_shards::manifest::Sealed;
use hanaper_shards::merkle::{self, Frontier, Hash, Node};
use hanaper_shards::segment::footer::IndexEntry;
use hanaper_shards::segment::header::Header;
use hanaper_shards::segment::paths;
use hanaper_shards::wal::chain::{Place, Segment};
use hanaper_shards::wal::sealed;

use super::check::header_of;
use super::disk::ReadOnly;
use super::newest::{Newest, newest_of, periods, read_period};
use super::shard::check_places;
use super::view::View;
use crate::checkpoint::entry::Claim;
use crate::checkpoint::proof::{Extra, Proof, TlogProof, follow};
use crate::error::{ErrorKind, ReadError};
use crate::words;

/// More batches than this are not taken for lost one by one.
const LOST_MAX: u64 = 1 << 16;

/// Why there is no proof.
#[derive(Debug, thiserror::Error)]
pub enum ProveError {
    /// The log cannot be read, or is damaged where the proof comes from.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The shard has fewer records: name one that is there.
    #[error("shard {shard} has no record {seq}: {}", if *end == 0 { "it has none".to_owned() } else { format!("its last is {}", end - 1) })]
    NoSuchRecord {
        /// The shard.
        shard: u32,
        /// What was asked for.
        seq: u64,
        /// Records of the shard.
        end: u64,
    },
    /// It is on record as lost, or what its path needs is: there will never be a proof.
    #[error("shard {shard} record {seq}: {what}")]
    Lost {
        /// The shard.
        shard: u32,
        /// The record.
        seq: u64,
        /// What is lost.
        what: String,
    },
    /// No checkpoint covers it yet: ask again when one does.
    #[error("shard {shard} record {seq} is not covered yet: {when}")]
    NotCovered {
        /// The shard.
        shard: u32,
        /// The record.
        seq: u64,
        /// What covers it, and when.
        when: &'static str,
    },
}

impl ProveError {
    /// What the caller can do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            ProveError::Read(error) => error.kind(),
            ProveError::NoSuchRecord { .. } => ErrorKind::Usage,
            ProveError::Lost { .. } => ErrorKind::Integrity,
            ProveError::NotCovered { .. } => ErrorKind::Refused,
        }
    }
}

/// Proves a record of a log, by its shard and its sequence there.
pub fn prove(path: impl AsRef<Path>, shard: u32, seq: u64) -> Result<Proof, ProveError> {
    let (disk, log) = super::open(path.as_ref())?;
    let place = super::places(&log).find(|place| place.shard == shard);
    let place = place.ok_or(ReadError::NoSuchShard { shard })?;
    // Before the shard, so that all that it covers was durable when that is looked at.
    let newest = newest_of(&disk, log.log)?;
    let view = View::take(&disk, place, &log)?;
    let pieces = pieces(&view);
    let (at, found) = find(&disk, &view, &pieces, seq)?;
    let number = found.number;
    let when = match (&newest, view.live) {
        (None, false) => "the log has no checkpoint; opening it with checkpoints on makes one",
        (None, true) => "the log has no checkpoint yet, or checkpoints are off",
        (Some(_), true) => {
            "the next checkpoint covers it, and comes within checkpoint_every_ms (1 s unless set otherwise)"
        }
        (Some(_), false) => {
            "the log was not closed since it was appended; opening it makes a checkpoint that covers it"
        }
    };
    let not_covered = ProveError::NotCovered { shard, seq, when };
    let Some(newest) = newest else { return Err(not_covered) };
    let Some(covering) = covering(&disk, log.log, shard, number, &newest)? else { return Err(not_covered) };
    let Covering { claim, .. } = &covering;

    let lost = || ProveError::Lost {
        shard,
        seq,
        what: "batches beside it are lost, and with them what its path in the tree needs".to_owned(),
    };
    let hashes = entry_path(&disk, log.log, &covering, newest.checkpoint.size())?;
    let path = batch_path(&disk, &view, &pieces, at, number, claim.size)?.ok_or_else(lost)?;
    let batch = read_batch(&disk, place, &pieces[at], &found)?;
    let extra = Extra { shard, seq, batch: number, size: claim.size, path };
    let proof = TlogProof {
        extra: Some(extra.to_string().into_bytes()),
        index: claim.epoch,
        hashes,
        note: newest.note,
    };
    match follow(&proof, covering.leaf.as_bytes(), &batch) {
        Ok(_) => Ok(Proof { tlog_proof: proof.to_string(), leaf: covering.leaf, batch }),
        // A lost batch's leaf is not known for certain.
        Err(error) if error.field() == Some("path") && !view.manifest.losses.is_empty() => Err(lost()),
        Err(error) => Err(ReadError::Damaged {
            verdict: if error.field() == Some("path") { "SHARD-ROOT" } else { error.verdict() },
            place: format!("shard {shard} batch {number}"),
            meaning: format!("the log does not hold together here: {error}"),
        }
        .into()),
    }
}

/// A segment with batches, in chain order.
struct Piece<'a> {
    index: u64,
    what: What<'a>,
}

enum What<'a> {
    Sealed(&'a Sealed),
    Unsealed(&'a Segment),
}

fn pieces(view: &View) -> Vec<Piece<'_>> {
    let sealed = view.sealed_in_order().into_iter();
    let sealed = sealed.map(|(index, sealed)| Piece { index, what: What::Sealed(sealed) });
    let unsealed = view.examined.segments.iter();
    let unsealed = unsealed.map(|segment| Piece { index: segment.index, what: What::Unsealed(segment) });
    sealed.chain(unsealed).collect()
}

impl Piece<'_> {
    fn name(&self, place: Place) -> String {
        paths::segment(place.shard, self.index)
    }

    fn batches(&self, disk: &ReadOnly, place: Place) -> Result<Vec<IndexEntry>, ReadError> {
        match self.what {
            What::Unsealed(segment) => Ok(segment.batches.clone()),
            What::Sealed(sealed) => {
                let read = sealed::read_sealed(disk, place, self.index, sealed);
                let (_, entries) = read.map_err(ReadError::io(self.name(place)))??;
                Ok(entries)
            }
        }
    }

    fn header(&self, disk: &ReadOnly, place: Place) -> Option<Header> {
        let header = match self.what {
            What::Unsealed(segment) => return Some(segment.header.clone()),
            What::Sealed(_) => header_of(disk, &self.name(place))?,
        };
        ((header.log, header.shard, header.index) == (place.log, place.shard, self.index)).then_some(header)
    }

    fn block_bytes(&self, disk: &ReadOnly) -> u32 {
        match self.what {
            What::Unsealed(segment) => segment.header.block_bytes,
            What::Sealed(_) => disk.block_bytes(),
        }
    }
}

/// Which batch a record is in, and the place of its segment among the pieces.
fn find(
    disk: &ReadOnly,
    view: &View,
    pieces: &[Piece<'_>],
    seq: u64,
) -> Result<(usize, IndexEntry), ProveError> {
    let place = view.place;
    let shard = place.shard;
    if let Some(loss) = view.manifest.losses.iter().find(|loss| loss.seqs.contains(&seq)) {
        let what = format!("lost and on record as lost, with {}", words::records(&loss.seqs));
        return Err(ProveError::Lost { shard, seq, what });
    }
    for (i, piece) in pieces.iter().enumerate() {
        if matches!(piece.what, What::Sealed(sealed) if !sealed.seqs.contains(&seq)) {
            continue;
        }
        let batches = piece.batches(disk, place)?;
        if let Some(found) = batches.iter().find(|e| (e.first_seq..e.end_seq()).contains(&seq)) {
            return Ok((i, *found));
        }
    }
    let end = view.examined.chain.seq;
    let damage = match seq >= end {
        true => view.tail_damage(),
        false => view.examined.damage.first(),
    };
    match damage {
        Some(damage) => Err(ReadError::from(damage.clone()).into()),
        None if seq >= end => Err(ProveError::NoSuchRecord { shard, seq, end }),
        None => Err(ReadError::Damaged {
            verdict: "MISSING",
            place: format!("shard {shard} record {seq}"),
            meaning: "no segment holds it".to_owned(),
        }
        .into()),
    }
}

/// The earliest entry under a checkpoint that names a batch.
struct Covering {
    period: u64,
    claim: Claim,
    leaf: String,
}

fn covering(
    disk: &ReadOnly,
    log: LogId,
    shard: u32,
    batch: u64,
    newest: &Newest,
) -> Result<Option<Covering>, ReadError> {
    let mut earliest = None;
    for number in periods(disk)?.into_iter().rev() {
        let Some(period) = read_period(disk, log, number)? else { continue };
        let under = period.entries.into_iter().take_while(|(e, _)| e.epoch < newest.checkpoint.size());
        let mut names_less = false;
        for (entry, leaf) in under {
            let Some(claim) = entry.claim(shard) else { continue };
            if claim.size > batch {
                earliest = Some(Covering { period: number, claim, leaf });
                break;
            }
            names_less = true;
        }
        // Whatever is older names no more.
        if names_less {
            break;
        }
    }
    Ok(earliest)
}

/// From the entry up to the checkpoint's root.
fn entry_path(disk: &ReadOnly, log: LogId, from: &Covering, size: u64) -> Result<Vec<Hash>, ReadError> {
    let mut gather: Option<Gather> = None;
    let index = from.claim.epoch;
    for number in periods(disk)?.into_iter().filter(|number| *number >= from.period) {
        let Some(period) = read_period(disk, log, number)? else { continue };
        let gather = gather.get_or_insert_with(|| Gather::new(period.before.clone(), index, size));
        for (entry, text) in &period.entries {
            if entry.epoch == gather.tree.size() && entry.epoch < size {
                gather.push(merkle::leaf(text.as_bytes()));
            }
        }
    }
    gather.and_then(|gather| gather.path(index, size)).ok_or_else(|| ReadError::Damaged {
        verdict: "MISSING",
        place: "epochs".to_owned(),
        meaning: format!("not all entries between {index} and {size} are there"),
    })
}

/// From the batch up to the root of the shard's tree. `None` if hashes that it needs are lost.
fn batch_path(
    disk: &ReadOnly,
    view: &View,
    pieces: &[Piece<'_>],
    at: usize,
    batch: u64,
    size: u64,
) -> Result<Option<Vec<Hash>>, ReadError> {
    let place = view.place;
    // The header of its own segment may know of later batches already, where recovery carried some forward.
    let start = (0..=at).rev().find_map(|i| {
        let header = pieces[i].header(disk, place).filter(|header| header.tree.size() <= batch)?;
        Some((i, header.tree))
    });
    let (first, tree) = start.unwrap_or((0, Frontier::new()));
    let mut gather = Gather::new(tree, batch, size);
    for piece in &pieces[first..] {
        if gather.tree.size() >= size {
            break;
        }
        let batches = match piece.batches(disk, place) {
            Ok(batches) => batches,
            // The headers behind it may know what it held.
            Err(ReadError::Damaged { .. }) if !view.manifest.losses.is_empty() => Vec::new(),
            Err(error) => return Err(error),
        };
        gather.segment(piece.header(disk, place).as_ref(), &batches);
    }
    Ok(gather.path(batch, size))
}

/// The batch without its padding.
fn read_batch(
    disk: &ReadOnly,
    place: Place,
    piece: &Piece<'_>,
    entry: &IndexEntry,
) -> Result<Vec<u8>, ReadError> {
    let name = piece.name(place);
    let block_bytes = piece.block_bytes(disk);
    let damaged = |fault: super::batch::Fault| ReadError::Damaged {
        verdict: fault.verdict,
        place: format!("shard {} batch {} ({name} offset {})", place.shard, entry.number, entry.offset),
        meaning: fault.meaning,
    };
    // Past the page cache: what is on the disk counts.
    let file = disk.open(&name, Access::ReadDirect).map_err(ReadError::io(&*name))?;
    let file_bytes = disk.bytes(&file).map_err(ReadError::io(&*name))?;
    check_places(std::slice::from_ref(entry), block_bytes, file_bytes).map_err(damaged)?;
    let bytes = (entry.end(block_bytes) - entry.offset) as usize;
    let mut buf = AlignedBuf::zeroed(bytes);
    let filled = disk.read(&file, entry.offset, &mut buf[..bytes]).map_err(ReadError::io(&*name))?;
    super::batch::open(&buf[..filled], block_bytes, place, entry).map_err(damaged)?;
    Ok(buf[..HEADER_BYTES + entry.body_bytes as usize + DIGEST_BYTES].to_vec())
}

/// A tree that grows, and the hashes that the path of one leaf needs.
struct Gather {
    tree: Frontier,
    wanted: BTreeMap<Node, Option<Hash>>,
}

impl Gather {
    /// For the path of leaf `index` in the tree of `size` leaves, from a tree that does not have that leaf yet.
    fn new(tree: Frontier, index: u64, size: u64) -> Gather {
        let nodes = merkle::inclusion_nodes(index, size).unwrap_or_default();
        let wanted = nodes.into_iter().flatten().map(|node| (node, None)).collect();
        let mut gather = Gather { tree: Frontier::new(), wanted };
        gather.jump(tree);
        gather
    }

    fn push(&mut self, leaf: Hash) {
        let Gather { tree, wanted } = self;
        tree.push_telling(leaf, &mut |node, hash| {
            if let Some(place) = wanted.get_mut(&node) {
                *place = Some(*hash);
            }
        });
    }

    /// Goes on from another tree. Its perfect trees are among the hashes: those on the left of a leaf are what
    /// its path needs.
    fn jump(&mut self, tree: Frontier) {
        for (node, hash) in tree.nodes().zip(tree.hashes()) {
            if let Some(place) = self.wanted.get_mut(&node) {
                *place = Some(*hash);
            }
        }
        self.tree = tree;
    }

    /// Adds the batches of a segment. Its header says what the tree was before them; see [`chain::grow_over`].
    fn segment(&mut self, header: Option<&Header>, batches: &[IndexEntry]) {
        let before = header.map_or(0, |header| header.tree.size());
        let (known, new) = batches.split_at(batches.partition_point(|e| e.number < before));
        self.grow(known);
        if let Some(header) = header.filter(|header| header.tree != self.tree) {
            self.jump(header.tree.clone());
        }
        self.grow(new);
    }

    fn grow(&mut self, batches: &[IndexEntry]) {
        let first = self.tree.size();
        for entry in batches.iter().skip_while(|e| e.number < first) {
            let lost = entry.number.saturating_sub(self.tree.size());
            // Where nobody knows a batch, its leaf is the hash of 32 zeros.
            let unknown = merkle::leaf(&[0; 32]);
            match lost <= LOST_MAX {
                true => (0..lost).for_each(|_| self.push(unknown)),
                false => self.tree.push_repeated(unknown, lost),
            }
            self.push(merkle::leaf(&entry.digest));
        }
    }

    fn path(&self, index: u64, size: u64) -> Option<Vec<Hash>> {
        let look_up = |node| self.wanted.get(&node).copied().flatten().ok_or(());
        merkle::inclusion(index, size, look_up).ok().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever tree it begins with, and whatever comes at once, the path is the one of the definition.
    #[test]
    fn a_path_is_gathered_from_any_beginning() {
        let leaves: Vec<Hash> = (0..70u32).map(|i| merkle::leaf(&i.to_le_bytes())).collect();
        let tree_of = |size: u64| {
            let mut tree = Frontier::new();
            leaves[..size as usize].iter().for_each(|leaf| tree.push(*leaf));
            tree
        };
        for size in 1..=70u64 {
            let root = tree_of(size).root();
            for index in 0..size {
                for first in [0, index / 2, index] {
                    let mut gather = Gather::new(tree_of(first), index, size);
                    leaves[first as usize..size as usize].iter().for_each(|leaf| gather.push(*leaf));
                    let path = gather.path(index, size).unwrap();
                    let found = merkle::root_from_inclusion(&leaves[index as usize], index, size, &path);
                    assert_eq!(found, Ok(root), "{index} of {size}, from {first}");
                }
            }
            let gather = Gather::new(tree_of(0), 0, size);
            assert_eq!(gather.path(0, size).is_some(), size == 1, "a path without its hashes");
        }
    }
}
