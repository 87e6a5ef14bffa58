//! The footer of a sealed segment: its index, and in the last 512 bytes of the file its summary.
//!
//! ```text
//! index entry, 88 bytes, one a batch            summary, the last 512 bytes of the file
//! offset  bytes  field                          offset  bytes  field
//!      0      8  offset of the batch                 0      8  magic "HNPRFOOT"
//!      8      8  batch number                        8      4  crc32c of bytes 12..480
//!     16      8  first sequence                     12      2  format version, 1
//!     24      4  count of records                   14      2  reserved
//!     28      4  length of the body                 16     16  log id
//!     32      8  least log time                     32     16  incarnation
//!     40      8  greatest log time                  48      4  generation
//!     48      8  wall clock minus log time, ns      52      4  shard
//!     56     32  digest                             56      8  segment index
//! The index stands at `footer offset`,              64      8  first batch
//! then zeros, then the summary.                     72      8  end batch
//!                                                   80      8  first sequence
//!                                                   88      8  end sequence
//!                                                   96     16  least, greatest log time
//!                                                  112     16  least, greatest wall time (signed)
//!                                                  128      8  end: offset after the last batch
//!                                                  136      8  cut end: offset after the cut bytes
//!                                                  144      8  footer offset
//!                                                  152      8  records
//!                                                  160     32  digest of the last batch
//!                                                  192      8  number of batches (index entries)
//!                                                  200    280  reserved
//!                                                  480     32  BLAKE3 of index ‖ bytes 0..480
//! ```
//! Times of a segment without records are 0. Valid if and only if: magic, version, CRC and digest
//! hold, what is reserved and the gap are zero, and the offsets are in order and within the file.

use crate::batch::{self, Digest, Fields, Incarnation, LogId};

/// Length of one index entry.
pub const ENTRY_BYTES: usize = 88;
/// Length of the summary.
pub const SUMMARY_BYTES: usize = 512;
const MAGIC: &[u8; 8] = b"HNPRFOOT";

/// Where one batch is, and what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexEntry {
    /// Offset of the batch in the segment.
    pub offset: u64,
    /// Batch number.
    pub number: u64,
    /// Sequence of its first record.
    pub first_seq: u64,
    /// Number of records.
    pub count: u32,
    /// Length of the body.
    pub body_bytes: u32,
    /// Least log time.
    pub time_min: u64,
    /// Greatest log time.
    pub time_max: u64,
    /// Wall clock minus log time, in nanoseconds.
    pub wall_offset_ns: i64,
    /// The batch's digest.
    pub digest: Digest,
}

impl IndexEntry {
    /// For a batch at this offset.
    pub fn new(offset: u64, header: &batch::Header, digest: Digest) -> IndexEntry {
        IndexEntry {
            offset,
            number: header.number,
            first_seq: header.first_seq,
            count: header.count,
            body_bytes: header.body_bytes,
            time_min: header.time_min,
            time_max: header.time_max,
            wall_offset_ns: header.wall_offset_ns(),
            digest,
        }
    }

    /// Sequence after its last record.
    pub fn end_seq(&self) -> u64 {
        self.first_seq + u64::from(self.count)
    }

    /// Offset after the batch.
    pub fn end(&self, block_bytes: u32) -> u64 {
        self.offset + batch::placed_bytes(self.body_bytes as usize, block_bytes) as u64
    }

    /// Wall time of a log time of this batch.
    pub fn wall_ns(&self, log_time: u64) -> i64 {
        (log_time as i64).wrapping_add(self.wall_offset_ns)
    }
}

/// The summary of a sealed segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// The log.
    pub log: LogId,
    /// This life of the file.
    pub incarnation: Incarnation,
    /// Layout generation.
    pub generation: u32,
    /// Shard.
    pub shard: u32,
    /// Index within the shard.
    pub index: u64,
    /// First batch number.
    pub first_batch: u64,
    /// Batch number after the last.
    pub end_batch: u64,
    /// First sequence.
    pub first_seq: u64,
    /// Sequence after the last.
    pub end_seq: u64,
    /// Least log time.
    pub time_min: u64,
    /// Greatest log time.
    pub time_max: u64,
    /// Least wall time.
    pub wall_min: i64,
    /// Greatest wall time.
    pub wall_max: i64,
    /// Offset after the last batch.
    pub end: u64,
    /// Offset after the bytes that recovery cut off; equal to `end` when there are none.
    pub cut_end: u64,
    /// Where the index stands.
    pub footer_offset: u64,
    /// Number of records.
    pub records: u64,
    /// Number of batches; less than the range of numbers where some are lost.
    pub batches: u64,
    /// Digest of the last batch (of the one before the segment when it is empty).
    pub last_digest: Digest,
}

/// Room that the footer of so many batches takes, at most.
pub fn placed_bytes(batches: u64, block_bytes: u32) -> u64 {
    (batches * ENTRY_BYTES as u64 + SUMMARY_BYTES as u64).next_multiple_of(u64::from(block_bytes))
}

/// Why bytes are not a footer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FooterFault {
    /// There is none: normal for a segment that was not sealed.
    #[error("no footer")]
    Absent,
    /// There is one, and it is damaged.
    #[error("a footer whose digest does not match")]
    Damaged,
}

/// The whole footer with its digest, which names the sealed segment's contents in the manifest: it
/// covers every batch's digest.
pub fn encode(summary: &Summary, index: &[IndexEntry], block_bytes: u32) -> (Vec<u8>, Digest) {
    let mut bytes = vec![0; placed_bytes(index.len() as u64, block_bytes) as usize];
    for (entry, into) in index.iter().zip(bytes.chunks_exact_mut(ENTRY_BYTES)) {
        into[0..8].copy_from_slice(&entry.offset.to_le_bytes());
        into[8..16].copy_from_slice(&entry.number.to_le_bytes());
        into[16..24].copy_from_slice(&entry.first_seq.to_le_bytes());
        into[24..28].copy_from_slice(&entry.count.to_le_bytes());
        into[28..32].copy_from_slice(&entry.body_bytes.to_le_bytes());
        into[32..40].copy_from_slice(&entry.time_min.to_le_bytes());
        into[40..48].copy_from_slice(&entry.time_max.to_le_bytes());
        into[48..56].copy_from_slice(&entry.wall_offset_ns.to_le_bytes());
        into[56..88].copy_from_slice(&entry.digest);
    }
    let index_bytes = index.len() * ENTRY_BYTES;
    let at = bytes.len() - SUMMARY_BYTES;
    let (before, s) = bytes.split_at_mut(at);
    s[0..8].copy_from_slice(MAGIC);
    s[12..14].copy_from_slice(&batch::FORMAT_VERSION.to_le_bytes());
    s[16..32].copy_from_slice(&summary.log);
    s[32..48].copy_from_slice(&summary.incarnation);
    s[48..52].copy_from_slice(&summary.generation.to_le_bytes());
    s[52..56].copy_from_slice(&summary.shard.to_le_bytes());
    let numbers = [
        summary.index,
        summary.first_batch,
        summary.end_batch,
        summary.first_seq,
        summary.end_seq,
        summary.time_min,
        summary.time_max,
        summary.wall_min as u64,
        summary.wall_max as u64,
        summary.end,
        summary.cut_end,
        summary.footer_offset,
        summary.records,
    ];
    for (number, into) in numbers.iter().zip(s[56..160].chunks_exact_mut(8)) {
        into.copy_from_slice(&number.to_le_bytes());
    }
    s[160..192].copy_from_slice(&summary.last_digest);
    s[192..200].copy_from_slice(&summary.batches.to_le_bytes());
    let crc = crc32c::crc32c(&s[12..480]);
    s[8..12].copy_from_slice(&crc.to_le_bytes());
    let digest = digest_of(&before[..index_bytes], s);
    s[480..512].copy_from_slice(&digest);
    (bytes, digest)
}

fn digest_of(index: &[u8], summary: &[u8]) -> Digest {
    *blake3::Hasher::new().update(index).update(&summary[..480]).finalize().as_bytes()
}

impl Summary {
    /// Reads the last [`SUMMARY_BYTES`] of a file; the digest over the index is not checked.
    pub fn read(bytes: &[u8], file_bytes: u64, block_bytes: u32) -> Result<Summary, FooterFault> {
        let s = bytes.get(..SUMMARY_BYTES).ok_or(FooterFault::Absent)?;
        if &s[0..8] != MAGIC {
            return Err(FooterFault::Absent);
        }
        let f = Fields(s);
        if f.u32(8) != crc32c::crc32c(&s[12..480])
            || f.u32(12) != u32::from(batch::FORMAT_VERSION)
            || s[200..480].iter().any(|&b| b != 0)
        {
            return Err(FooterFault::Damaged);
        }
        let summary = Summary {
            log: f.array(16),
            incarnation: f.array(32),
            generation: f.u32(48),
            shard: f.u32(52),
            index: f.u64(56),
            first_batch: f.u64(64),
            end_batch: f.u64(72),
            first_seq: f.u64(80),
            end_seq: f.u64(88),
            time_min: f.u64(96),
            time_max: f.u64(104),
            wall_min: f.u64(112) as i64,
            wall_max: f.u64(120) as i64,
            end: f.u64(128),
            cut_end: f.u64(136),
            footer_offset: f.u64(144),
            records: f.u64(152),
            batches: f.u64(192),
            last_digest: f.array(160),
        };
        let batches = summary.batches;
        // A batch takes a block at least, so a count that does not fit the file is damage, and no
        // length from the file is ever allocated unchecked.
        let fits = batches <= file_bytes / u64::from(block_bytes)
            && summary.end <= summary.cut_end
            && summary.cut_end <= summary.footer_offset
            && summary.footer_offset.checked_add(placed_bytes(batches, block_bytes)) == Some(file_bytes)
            && summary.first_seq <= summary.end_seq
            && summary.end_batch.checked_sub(summary.first_batch).is_some_and(|range| batches <= range);
        if fits { Ok(summary) } else { Err(FooterFault::Damaged) }
    }
}

/// Reads a whole footer: `bytes` begins at the footer offset and ends with the file.
pub fn decode(bytes: &[u8], summary: &Summary) -> Result<(Vec<IndexEntry>, Digest), FooterFault> {
    let index_bytes = summary.batches as usize * ENTRY_BYTES;
    let gap_end = bytes.len().checked_sub(SUMMARY_BYTES).ok_or(FooterFault::Damaged)?;
    let index = bytes.get(..index_bytes).ok_or(FooterFault::Damaged)?;
    let gap = bytes.get(index_bytes..gap_end).ok_or(FooterFault::Damaged)?;
    let tail = &bytes[gap_end..];
    let digest = digest_of(index, tail);
    if digest != tail[480..512] || gap.iter().any(|&b| b != 0) {
        return Err(FooterFault::Damaged);
    }
    let entries = index
        .chunks_exact(ENTRY_BYTES)
        .map(|bytes| {
            let f = Fields(bytes);
            IndexEntry {
                offset: f.u64(0),
                number: f.u64(8),
                first_seq: f.u64(16),
                count: f.u32(24),
                body_bytes: f.u32(28),
                time_min: f.u64(32),
                time_max: f.u64(40),
                wall_offset_ns: f.u64(48) as i64,
                digest: f.array(56),
            }
        })
        .collect();
    Ok((entries, digest))
}

/// The summary of a segment with this header and these batches. `file_end` is where the footer
/// will stand: the cut end, or the end.
pub fn summarise(header: &super::header::Header, index: &[IndexEntry], end: u64, cut_end: u64) -> Summary {
    let with_records = || index.iter().filter(|e| e.count > 0);
    let records = index.iter().map(|e| u64::from(e.count)).sum::<u64>();
    Summary {
        log: header.log,
        incarnation: header.incarnation,
        generation: header.generation,
        shard: header.shard,
        index: header.index,
        first_batch: header.first_batch,
        end_batch: index.last().map_or(header.first_batch, |e| e.number + 1),
        first_seq: header.first_seq,
        end_seq: index.last().map_or(header.first_seq, IndexEntry::end_seq),
        time_min: with_records().map(|e| e.time_min).min().unwrap_or(0),
        time_max: with_records().map(|e| e.time_max).max().unwrap_or(0),
        wall_min: with_records().map(|e| e.wall_ns(e.time_min)).min().unwrap_or(0),
        wall_max: with_records().map(|e| e.wall_ns(e.time_max)).max().unwrap_or(0),
        end,
        cut_end,
        footer_offset: cut_end,
        records,
        batches: index.len() as u64,
        last_digest: index.last().map_or(header.previous, |e| e.digest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (Summary, Vec<IndexEntry>) {
        let entry = |n: u64| IndexEntry {
            offset: 4096 * (n + 1),
            number: n + 10,
            first_seq: 3 * n,
            count: 3,
            body_bytes: 120,
            time_min: 100 * n + 1,
            time_max: 100 * n + 50,
            wall_offset_ns: -7,
            digest: [n as u8; 32],
        };
        let index: Vec<_> = (0..60).map(entry).collect();
        let summary = Summary {
            log: [1; 16],
            incarnation: [2; 16],
            generation: 0,
            shard: 1,
            index: 2,
            first_batch: 10,
            end_batch: 70,
            first_seq: 0,
            end_seq: 180,
            time_min: 1,
            time_max: 5950,
            wall_min: -6,
            wall_max: 5943,
            end: 4096 * 61,
            cut_end: 4096 * 61,
            footer_offset: 4096 * 61,
            records: 180,
            batches: 60,
            last_digest: [59; 32],
        };
        (summary, index)
    }

    #[test]
    fn comes_back_as_it_went_and_any_flipped_bit_is_seen() {
        let (summary, index) = sample();
        let (mut bytes, digest) = encode(&summary, &index, 4096);
        let file_bytes = summary.footer_offset + bytes.len() as u64;
        let read = |bytes: &[u8]| {
            let read = Summary::read(&bytes[bytes.len() - SUMMARY_BYTES..], file_bytes, 4096)?;
            let (entries, digest) = decode(bytes, &read)?;
            Ok::<_, FooterFault>((read, entries, digest))
        };
        assert_eq!(read(&bytes).unwrap(), (summary, index, digest));
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&bytes).is_err(), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
