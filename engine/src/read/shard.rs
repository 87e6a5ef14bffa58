//! One shard's records in order of their sequence: sealed segments by their footers, then the chain
//! of those that are not sealed.
//!
//! It reads only the segments and batches that can hold what is wanted. It holds the index of one
//! segment, and of that one some hundred kilobytes at a time. Damage in what must be read ends it with an error, at its
//! place: what was given out before is whole.

use std::collections::VecDeque;
use std::ops::Range;

use hanaper_shards::aligned::AlignedBuf;
use hanaper_shards::batch;
use hanaper_shards::io::disk::FolderFile;
use hanaper_shards::io::{Access, Disk};
use hanaper_shards::manifest::{LogState, Loss, Sealed};
use hanaper_shards::segment::footer::{IndexEntry, SUMMARY_BYTES, Summary};
use hanaper_shards::segment::header::Found;
use hanaper_shards::segment::paths;
use hanaper_shards::segment::scan::scan;
use hanaper_shards::wal::chain::{self, Chain, Place};
use hanaper_shards::wal::sealed;
use hanaper_shards::wal::table::By;

use super::OwnedRecord;
use super::batch::{Fault, open, records};
use super::disk::ReadOnly;
use super::view::View;
use crate::error::ReadError;
use crate::words;

/// Batches that stand one behind the other are read together, up to this much.
const WINDOW_BYTES: u64 = 256 << 10;

/// What is wanted of a shard.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    /// Wall time, from here on.
    pub from_wall_ns: Option<i64>,
    /// Wall time, before this.
    pub to_wall_ns: Option<i64>,
    pub seqs: Range<u64>,
    /// Control records too.
    pub control: bool,
}

impl Wanted {
    fn has_seqs(&self, seqs: Range<u64>) -> bool {
        seqs.start < self.seqs.end && self.seqs.start < seqs.end
    }

    fn has_walls(&self, least: i64, greatest: i64) -> bool {
        self.from_wall_ns.is_none_or(|from| greatest >= from) && self.to_wall_ns.is_none_or(|to| least < to)
    }

    fn has_batch(&self, e: &IndexEntry) -> bool {
        e.count > 0
            && self.has_seqs(e.first_seq..e.end_seq())
            && self.has_walls(e.wall_ns(e.time_min), e.wall_ns(e.time_max))
    }
}

/// A shard that is being read.
pub(crate) struct ShardReader {
    disk: ReadOnly,
    place: Place,
    wanted: Wanted,
    /// What is on record as lost: stepped over.
    losses: Vec<Loss>,
    pieces: VecDeque<Piece>,
    opened: Option<Opened>,
}

/// Part of a shard that is still to be read.
struct Piece {
    /// Least log time in it, and in all pieces behind it.
    time_min: u64,
    what: What,
}

enum What {
    Sealed {
        index: u64,
        sealed: Sealed,
    },
    Unsealed {
        index: u64,
        block_bytes: u32,
        batches: Vec<IndexEntry>,
    },
    /// Here something should be that cannot be read.
    Broken(ReadError),
}

/// The segment that is being read.
struct Opened {
    name: String,
    file: FolderFile,
    block_bytes: u32,
    /// The wanted batches.
    entries: Vec<IndexEntry>,
    /// For each of them, the least log time from it on.
    time_mins: Vec<u64>,
    next: usize,
    window: AlignedBuf,
    window_from: u64,
    window_bytes: usize,
}

impl ShardReader {
    /// Sees what there is. Whatever cannot be read becomes an error at its place.
    pub(crate) fn new(
        disk: &ReadOnly,
        place: Place,
        log: &LogState,
        wanted: Wanted,
        notices: &mut Vec<String>,
    ) -> ShardReader {
        let mut plan = Plan { pieces: VecDeque::new(), losses: Vec::new(), time_max: 0 };
        if let Err(error) = plan.make(disk, place, log, &wanted, notices) {
            // Nobody knows the times of what is missing. It is named once all before it was given out.
            let time_min = plan.time_max.saturating_add(1);
            plan.pieces.push_back(Piece { time_min, what: What::Broken(error) });
        }
        let Plan { mut pieces, losses, .. } = plan;
        let mut least = u64::MAX;
        for piece in pieces.iter_mut().rev() {
            least = least.min(piece.time_min);
            piece.time_min = least;
        }
        ShardReader { disk: disk.clone(), place, wanted, losses, pieces, opened: None }
    }

    /// The least log time of all that is still to be read; `None` when nothing is.
    pub(crate) fn time_min(&self) -> Option<u64> {
        let opened = self.opened.as_ref().and_then(|o| o.time_mins.get(o.next));
        let pieces = self.pieces.front().map(|p| &p.time_min);
        opened.into_iter().chain(pieces).min().copied()
    }

    /// Reads on: gives the wanted records of the next batch, in order. `false` at the end.
    pub(crate) fn read_batch(&mut self, give: &mut dyn FnMut(OwnedRecord)) -> Result<bool, ReadError> {
        loop {
            if let Some(opened) = &mut self.opened {
                if opened.next < opened.entries.len() {
                    opened.read(&self.disk, self.place, &self.wanted, give)?;
                    return Ok(true);
                }
                self.opened = None;
            }
            let Some(piece) = self.pieces.pop_front() else { return Ok(false) };
            self.opened = Some(self.open(piece.what)?);
        }
    }

    fn open(&self, what: What) -> Result<Opened, ReadError> {
        let (index, block_bytes, batches, access) = match what {
            What::Broken(error) => return Err(error),
            What::Sealed { index, sealed } => {
                let name = paths::segment(self.place.shard, index);
                let read = sealed::read_sealed(&self.disk, self.place, index, &sealed)
                    .map_err(ReadError::io(name))?;
                let (_, entries) = read.map_err(ReadError::from)?;
                (index, self.disk.block_bytes(), entries, Access::Read)
            }
            What::Unsealed { index, block_bytes, batches } => {
                (index, block_bytes, batches, Access::ReadDirect)
            }
        };
        let name = paths::segment(self.place.shard, index);
        let file = self.disk.open(&name, access).map_err(ReadError::io(&*name))?;
        let file_bytes = self.disk.bytes(&file).map_err(ReadError::io(&*name))?;
        check_places(&batches, block_bytes, file_bytes).map_err(|fault| ReadError::Damaged {
            verdict: fault.verdict,
            place: name.clone(),
            meaning: fault.meaning,
        })?;
        let is_lost = |e: &IndexEntry| self.losses.iter().any(|l| l.batches.contains(&e.number));
        let entries: Vec<_> =
            batches.into_iter().filter(|e| self.wanted.has_batch(e) && !is_lost(e)).collect();
        let mut time_mins: Vec<u64> = entries.iter().map(|e| e.time_min).collect();
        for i in (0..time_mins.len().saturating_sub(1)).rev() {
            time_mins[i] = time_mins[i].min(time_mins[i + 1]);
        }
        Ok(Opened {
            name,
            file,
            block_bytes,
            entries,
            time_mins,
            next: 0,
            window: AlignedBuf::zeroed(WINDOW_BYTES as usize),
            window_from: 0,
            window_bytes: 0,
        })
    }
}

/// The pieces that can hold what is wanted.
struct Plan {
    pieces: VecDeque<Piece>,
    losses: Vec<Loss>,
    /// The greatest log time of all that was seen.
    time_max: u64,
}

impl Plan {
    /// Lists them. After an error, those before it are listed.
    fn make(
        &mut self,
        disk: &ReadOnly,
        place: Place,
        log: &LogState,
        wanted: &Wanted,
        notices: &mut Vec<String>,
    ) -> Result<(), ReadError> {
        let view = View::take(disk, place, log)?;
        notices.extend(view.notices.iter().cloned());
        self.losses = view.manifest.losses.clone();
        for loss in self.losses.iter().filter(|l| wanted.has_seqs(l.seqs.clone())) {
            notices.push(format!(
                "shard {}, lost and on record as lost: {}",
                place.shard,
                words::records(&loss.seqs)
            ));
        }
        let mut at = (0, 0);
        for (index, sealed) in view.sealed_in_order() {
            let gap = at.0..sealed.batches.start;
            let seqs = at.1..sealed.seqs.start;
            let joins = gap.is_empty() && gap.start == gap.end && seqs.start == seqs.end;
            let known = !gap.is_empty() && view.manifest.is_lost(&gap);
            if !joins && !known && wanted.has_seqs(at.1..seqs.end.max(at.1 + 1)) {
                return Err(missing(place, gap, seqs));
            }
            at = (sealed.batches.end, sealed.seqs.end);
            if wanted.has_seqs(sealed.seqs.clone()) {
                self.sealed(disk, &view, index, sealed, wanted)?;
            }
        }
        for segment in &view.examined.segments {
            let shown = view.shown(segment);
            self.batches(segment.index, segment.header.block_bytes, shown, wanted);
        }
        // What the damage hides may be anything behind the last batch that was found.
        let seen = at.1.max(view.examined.chain.seq);
        match view.tail_damage() {
            Some(damage) if wanted.seqs.end > seen => Err(damage.clone().into()),
            _ => Ok(()),
        }
    }

    fn sealed(
        &mut self,
        disk: &ReadOnly,
        view: &View,
        index: u64,
        sealed: &Sealed,
        wanted: &Wanted,
    ) -> Result<(), ReadError> {
        let mut found = summary(disk, view.place, index, sealed);
        if found.is_ok() && self.losses.iter().any(|l| touch(&l.batches, &sealed.batches)) {
            // Its index may be part of what was lost.
            let name = paths::segment(view.place.shard, index);
            let read = sealed::read_sealed(disk, view.place, index, sealed).map_err(ReadError::io(name))?;
            found = read.map(|(summary, _)| summary).map_err(ReadError::from);
        }
        match found {
            Ok(summary) => {
                self.time_max = summary.time_max.max(self.time_max);
                if wanted.has_walls(summary.wall_min, summary.wall_max) {
                    let what = What::Sealed { index, sealed: sealed.clone() };
                    self.pieces.push_back(Piece { time_min: summary.time_min, what });
                }
                Ok(())
            }
            Err(_) if view.manifest.is_lost(&sealed.batches) => Ok(()),
            // Part of it is on record as lost, its footer among it: the rest is found by its chain.
            Err(error) if self.losses.iter().any(|l| sealed.batches.contains(&l.batches.start)) => {
                let batches = walk_sealed(disk, view, index, sealed)?.ok_or(error)?;
                self.batches(index, disk.block_bytes(), &batches, wanted);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn batches(&mut self, index: u64, block_bytes: u32, batches: &[IndexEntry], wanted: &Wanted) {
        self.time_max = batches.iter().map(|e| e.time_max).fold(self.time_max, u64::max);
        let batches: Vec<_> = batches.iter().filter(|e| wanted.has_batch(e)).copied().collect();
        if let Some(time_min) = batches.iter().map(|e| e.time_min).min() {
            self.pieces.push_back(Piece { time_min, what: What::Unsealed { index, block_bytes, batches } });
        }
    }
}

fn touch(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

/// The batches of a sealed segment without its footer: what its header and its chain prove, with nothing
/// missing but what is on record as lost.
fn walk_sealed(
    disk: &ReadOnly,
    view: &View,
    index: u64,
    sealed: &Sealed,
) -> Result<Option<Vec<IndexEntry>>, ReadError> {
    let place = view.place;
    let name = paths::segment(place.shard, index);
    let file = disk.open(&name, Access::ReadDirect).map_err(ReadError::io(&*name))?;
    let found = scan(disk, &file, sealed.end, &mut |_, _| {}).map_err(ReadError::io(&*name))?;
    let Found::Good(header) = &found.header else { return Ok(None) };
    let is_it = (header.log, header.generation, header.shard, header.index)
        == (place.log, place.generation, place.shard, index)
        && (header.first_batch, header.first_seq) == (sealed.batches.start, sealed.seqs.start);
    if !is_it {
        return Ok(None);
    }
    let start = Chain { number: header.first_batch, seq: header.first_seq, previous: header.previous };
    let named_end = Some((sealed.end, By::Seal));
    let block = disk.block_bytes();
    let walk =
        chain::walk(block, place, header, &found, start, sealed.batches.end, named_end, &view.manifest);
    let rest = Loss { batches: walk.chain.number..sealed.batches.end, seqs: walk.chain.seq..sealed.seqs.end };
    let complete = walk.damage.is_none() || view.manifest.losses.contains(&rest);
    Ok(complete.then_some(walk.entries))
}

fn missing(place: Place, batches: Range<u64>, seqs: Range<u64>) -> ReadError {
    ReadError::Damaged {
        verdict: "MISSING",
        place: format!("shard {} {}", place.shard, words::span("batch", &batches)),
        meaning: format!("no sealed segment holds what should be here, {}", words::records(&seqs)),
    }
}

/// Only the summary of a sealed segment: one block. Its digest must be the one in the manifest.
fn summary(disk: &ReadOnly, place: Place, index: u64, sealed: &Sealed) -> Result<Summary, ReadError> {
    let name = paths::segment(place.shard, index);
    let damaged = |verdict, meaning: String| ReadError::Damaged { verdict, place: name.clone(), meaning };
    let block = u64::from(disk.block_bytes());
    let file = match disk.open(&name, Access::Read) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(damaged(
                "MISSING",
                format!(
                    "sealed segment with {}, {}, is gone",
                    words::span("batch", &sealed.batches),
                    words::records(&sealed.seqs)
                ),
            ));
        }
        other => other.map_err(ReadError::io(&*name))?,
    };
    let bytes = disk.bytes(&file).map_err(ReadError::io(&*name))?;
    if bytes != sealed.bytes || bytes < block || !bytes.is_multiple_of(block) {
        return Err(damaged(
            "LENGTH",
            format!("{bytes} bytes; the manifest sealed it with {}", sealed.bytes),
        ));
    }
    let mut last = AlignedBuf::zeroed(block as usize);
    disk.read(&file, bytes - block, &mut last[..block as usize]).map_err(ReadError::io(&*name))?;
    let tail = &last[block as usize - SUMMARY_BYTES..block as usize];
    let summary =
        Summary::read(tail, bytes, block as u32).map_err(|fault| damaged("FOOTER", fault.to_string()))?;
    if tail[480..512] != sealed.digest {
        return Err(damaged("FOOTER", "it is not the footer that the manifest sealed".to_owned()));
    }
    Ok(summary)
}

/// No offset and no length out of a file is followed unchecked.
pub(super) fn check_places(entries: &[IndexEntry], block_bytes: u32, file_bytes: u64) -> Result<(), Fault> {
    let block = u64::from(block_bytes);
    let mut at = block;
    for entry in entries {
        let sane = entry.body_bytes as usize <= batch::BODY_BYTES_MAX
            && entry.offset.is_multiple_of(block)
            && entry.offset >= at
            && entry.offset < file_bytes
            && entry.end(block_bytes) <= file_bytes
            && entry.first_seq.checked_add(u64::from(entry.count)).is_some();
        if !sane {
            return Err(Fault::new(
                "FOOTER",
                format!("its index entry of batch {} makes no sense", entry.number),
            ));
        }
        at = entry.end(block_bytes);
    }
    Ok(())
}

impl Opened {
    /// Gives the wanted records of the next batch.
    fn read(
        &mut self,
        disk: &ReadOnly,
        place: Place,
        wanted: &Wanted,
        give: &mut dyn FnMut(OwnedRecord),
    ) -> Result<(), ReadError> {
        let entry = self.entries[self.next];
        self.next += 1;
        let block_bytes = self.block_bytes;
        let at = self.fetch(disk, &entry)?;
        if open(&self.window[at..self.window_bytes], block_bytes, place, &entry).is_err() {
            // Page cache and device may disagree for a moment: what is read again past the cache counts.
            self.fetch_again(disk, &entry)?;
        }
        let at = (entry.offset - self.window_from) as usize;
        let damaged = |fault: Fault| ReadError::Damaged {
            verdict: fault.verdict,
            place: format!(
                "shard {} batch {} ({} offset {})",
                place.shard, entry.number, self.name, entry.offset
            ),
            meaning: fault.meaning,
        };
        let batch = open(&self.window[at..self.window_bytes], block_bytes, place, &entry).map_err(damaged)?;
        records(&batch.header, batch.body, &mut |seq, record| {
            let log_time = record.header.log_time;
            let wall_ns = entry.wall_ns(log_time);
            let is_wanted = wanted.seqs.contains(&seq)
                && wanted.has_walls(wall_ns, wall_ns)
                && (wanted.control || record.header.kind == super::Kind::Data);
            if is_wanted {
                give(OwnedRecord {
                    shard: place.shard,
                    seq,
                    batch: entry.number,
                    log_time,
                    wall_ns,
                    kind: record.header.kind,
                    flags: record.header.flags,
                    producer: record.header.producer,
                    producer_seq: record.header.producer_seq,
                    key: record.key.to_vec(),
                    payload: record.payload.to_vec(),
                });
            }
        })
        .map_err(damaged)
    }

    /// Brings a batch into the window, and as many of those behind it as fit. Gives where it stands there.
    fn fetch(&mut self, disk: &ReadOnly, entry: &IndexEntry) -> Result<usize, ReadError> {
        let end = entry.end(self.block_bytes);
        let inside = entry.offset >= self.window_from && end <= self.window_from + self.window_bytes as u64;
        if !inside {
            let mut until = end;
            for next in &self.entries[self.next..] {
                let longer = next.end(self.block_bytes);
                if next.offset != until || longer - entry.offset > WINDOW_BYTES {
                    break;
                }
                until = longer;
            }
            self.fill(disk, &self.file.clone(), entry.offset, (until - entry.offset) as usize)?;
        }
        Ok((entry.offset - self.window_from) as usize)
    }

    fn fetch_again(&mut self, disk: &ReadOnly, entry: &IndexEntry) -> Result<(), ReadError> {
        let file = disk.open(&self.name, Access::ReadDirect).map_err(ReadError::io(&*self.name))?;
        self.fill(disk, &file, entry.offset, (entry.end(self.block_bytes) - entry.offset) as usize)
    }

    fn fill(&mut self, disk: &ReadOnly, file: &FolderFile, from: u64, bytes: usize) -> Result<(), ReadError> {
        if self.window.len() < bytes {
            self.window = AlignedBuf::zeroed(bytes);
        }
        let filled = disk.read(file, from, &mut self.window[..bytes]).map_err(ReadError::io(&*self.name))?;
        self.window_from = from;
        self.window_bytes = filled;
        Ok(())
    }
}
