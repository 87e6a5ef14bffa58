//! Reads sealed segments: by their footers, and what is left to know where one is damaged or lost.

use std::collections::BTreeSet;
use std::io;

use crate::aligned::AlignedBuf;
use crate::batch::Digest;
use crate::io::{Access, Disk};
use crate::manifest::{Loss, Sealed, SegmentState, ShardState};
use crate::segment::footer::{self, FooterFault, IndexEntry, SUMMARY_BYTES, Summary};
use crate::segment::header::{Found, Header, Predecessor};
use crate::segment::paths;
use crate::segment::scan::scan;
use crate::wal::chain::{Chain, Damage, Place};

/// Reads what the manifest says is sealed: header, footer and index, all compared with it.
pub fn read_sealed<D: Disk>(
    disk: &D,
    place: Place,
    index: u64,
    sealed: &Sealed,
) -> io::Result<Result<(Summary, Vec<IndexEntry>), Damage>> {
    let name = paths::segment(place.shard, index);
    let damaged = |verdict, meaning: String| {
        let loss = Loss { batches: sealed.batches.clone(), seqs: sealed.seqs.clone() };
        Ok(Err(Damage { verdict, place: name.clone(), meaning, loss: Some(loss) }))
    };
    let file = match disk.open(&name, Access::Read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return damaged(
                "MISSING",
                format!(
                    "a sealed segment is gone, with {} batches from {} on ({} records from {} on)",
                    sealed.batches.end.saturating_sub(sealed.batches.start),
                    sealed.batches.start,
                    sealed.seqs.end.saturating_sub(sealed.seqs.start),
                    sealed.seqs.start
                ),
            );
        }
        other => other?,
    };
    let file_bytes = disk.bytes(&file)?;
    if file_bytes != sealed.bytes {
        return Ok(Err(wrong_length(place, index, file_bytes, sealed)));
    }
    match read_footer(disk, &file, file_bytes)? {
        Ok((summary, entries, digest)) => {
            let same = digest == sealed.digest
                && summary.log == place.log
                && summary.shard == place.shard
                && summary.index == index;
            if same {
                Ok(Ok((summary, entries)))
            } else {
                damaged(
                    "FOOTER",
                    "the footer is whole, but is not the one that the manifest sealed".to_owned(),
                )
            }
        }
        Err(fault) => damaged("FOOTER", fault.to_string()),
    }
}

/// Reads a footer, if the file has one.
#[allow(clippy::type_complexity)]
pub fn read_footer<D: Disk>(
    disk: &D,
    file: &D::File,
    file_bytes: u64,
) -> io::Result<Result<(Summary, Vec<IndexEntry>, Digest), FooterFault>> {
    let block = u64::from(disk.block_bytes());
    if file_bytes < block || !file_bytes.is_multiple_of(block) {
        return Ok(Err(FooterFault::Absent));
    }
    let mut last = AlignedBuf::zeroed(block as usize);
    disk.read(file, file_bytes - block, &mut last)?;
    let tail = &last[block as usize - SUMMARY_BYTES..block as usize];
    let summary = match Summary::read(tail, file_bytes, block as u32) {
        Ok(summary) => summary,
        Err(fault) => return Ok(Err(fault)),
    };
    let bytes = (file_bytes - summary.footer_offset) as usize;
    let mut whole = AlignedBuf::zeroed(bytes);
    let filled = disk.read(file, summary.footer_offset, &mut whole[..bytes])?;
    if filled < bytes {
        return Ok(Err(FooterFault::Damaged));
    }
    Ok(footer::decode(&whole[..bytes], &summary).map(|(entries, digest)| (summary, entries, digest)))
}

pub(super) fn wrong_length(place: Place, index: u64, bytes: u64, sealed: &Sealed) -> Damage {
    Damage {
        verdict: "LENGTH",
        place: paths::segment(place.shard, index),
        meaning: format!("{bytes} bytes; the manifest sealed it with {}", sealed.bytes),
        loss: Some(Loss { batches: sealed.batches.clone(), seqs: sealed.seqs.clone() }),
    }
}

/// The end of a sealed segment that cannot be read, and whose end is on record as lost: what is left of it
/// and the segment behind it say which life of the file it was and how it ended. If neither is
/// there, the chain goes on without a digest to lean on; the loss on record is why.
pub(super) fn lost_base<D: Disk>(
    disk: &D,
    place: Place,
    index: u64,
    sealed: &Sealed,
    present: &BTreeSet<u64>,
) -> io::Result<(Option<Predecessor>, Chain)> {
    let mut base = Predecessor { index, incarnation: [0; 16], end: sealed.end };
    let mut chain = Chain { number: sealed.batches.end, seq: sealed.seqs.end, previous: [0; 32] };
    for &later in present.range(index..) {
        let file = disk.open(&paths::segment(place.shard, later), Access::ReadDirect)?;
        let mut block = AlignedBuf::zeroed(disk.block_bytes() as usize);
        disk.read(&file, 0, &mut block)?;
        let Found::Good(header) = Header::read(&block) else { continue };
        if (header.log, header.generation, header.shard) != (place.log, place.generation, place.shard) {
            continue;
        }
        if later == index {
            base.incarnation = header.incarnation;
        }
        let continues = (header.first_batch, header.first_seq) == (chain.number, chain.seq);
        if let Some(p) = header.predecessor.filter(|p| continues && (p.index, p.end) == (index, sealed.end)) {
            base = p;
            chain.previous = header.previous;
        }
    }
    Ok((Some(base), chain))
}

/// The greatest log time that can still be found where the last sealed segment is lost: in what is left
/// of it, and in the last sealed segment that is whole. Log time must not go back.
pub(super) fn lost_times<D: Disk>(
    disk: &D,
    place: Place,
    manifest: &ShardState,
    left: Option<u64>,
) -> io::Result<u64> {
    let mut time_max = 0;
    if let Some(index) = left {
        let file = disk.open(&paths::segment(place.shard, index), Access::ReadDirect)?;
        let found = scan(disk, &file, u64::MAX, &mut |_, _| {})?;
        for h in found.seen.iter().map(|s| &s.header).filter(|h| (h.log, h.shard) == (place.log, place.shard))
        {
            time_max = h.time_max.max(h.anchor.log_time).max(time_max);
        }
    }
    for (&index, state) in manifest.segments.iter().rev() {
        let SegmentState::Sealed(sealed) = state else { continue };
        if let Ok((summary, _)) = read_sealed(disk, place, index, sealed)? {
            let begun = header_of(disk, place, index)?.map_or(0, |h| h.log_time);
            return Ok(time_max.max(summary.time_max).max(begun));
        }
    }
    Ok(time_max)
}

/// A segment's header, if it is there and can be read.
pub(super) fn header_of<D: Disk>(disk: &D, place: Place, index: u64) -> io::Result<Option<Header>> {
    let file = match disk.open(&paths::segment(place.shard, index), Access::Read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let mut block = AlignedBuf::zeroed(disk.block_bytes() as usize);
    disk.read(&file, 0, &mut block)?;
    Ok(match Header::read(&block) {
        Found::Good(header) if (header.log, header.shard) == (place.log, place.shard) => Some(*header),
        _ => None,
    })
}
