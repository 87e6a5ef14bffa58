//! The segment header: the first block of a segment.
//!
//! ```text
//! offset  bytes  field
//!      0      8  magic "HNPRSEGM"
//!      8      4  crc32c of bytes 12..480
//!     12      2  format version, 1
//!     14      1  origin: 1 rotation, 2 recovery
//!     15      1  number of carried ranges, 0..=6
//!     16     16  log id
//!     32     16  incarnation
//!     48      4  layout generation
//!     52      4  shard
//!     56      8  index of the segment within the shard
//!     64      8  length of the segment when it was prepared
//!     72      4  format block B
//!     76      4  reserved
//!     80      8  first batch number
//!     88      8  first sequence
//!     96      8  durable: count of batches known durable when this header was written
//!    104      8  index of the predecessor (2^64-1: none)
//!    112     16  incarnation of the predecessor
//!    128      8  offset at which the predecessor ends
//!    136     32  digest of the last batch before this segment (zero: none)
//!    168      8  epoch: counts the openings of the log for writing
//!    176      8  wall clock, nanoseconds since 1970 (signed)
//!    184      8  log time
//!    192    192  carried ranges, 32 bytes each: incarnation 16, first batch 8, end batch 8
//!    384      8  size of the shard's tree, n
//!    392     88  reserved
//!    480     32  BLAKE3 of bytes 0..480 ‖ the tree's frontier
//!    512  32 * k  the tree's frontier: a hash for each bit that is set in n, the highest first
//!    ...         zero to the block
//! ```
//! A *carried* range are batches that recovery copied forward byte for byte out of a segment
//! whose end was in doubt; they keep the incarnation that they were born with.
//!
//! The *tree* is that of the shard's batches before this segment, or, where recovery begins one, of
//! those that it carries forward too: what comes later can be added without what comes before.
//!
//! Valid if and only if magic, version, CRC and digest hold, and what is reserved is zero.

use crate::batch::{Digest, Fields, Incarnation, LogId};
use crate::merkle::Frontier;

/// Length of what the header uses of its block.
pub const HEADER_BYTES: usize = 512;
const MAGIC: &[u8; 8] = b"HNPRSEGM";
const CARRIED_MAX: usize = 6;

/// Why a segment was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Origin {
    /// The one before was full, aged or closed; batches of it may still be in flight.
    Rotation = 1,
    /// Recovery ended the one before: the end that it names is final.
    Recovery = 2,
}

/// Batches that were copied forward out of another segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Carried {
    /// The incarnation that they were written under.
    pub incarnation: Incarnation,
    /// First batch number.
    pub first: u64,
    /// Batch number after the last.
    pub end: u64,
}

/// Where the chain comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Predecessor {
    /// Index of that segment.
    pub index: u64,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// Where it ends; what lies beyond is void for ever.
    pub end: u64,
}

/// The fields of a segment header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
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
    /// Length of the file when it was prepared.
    pub segment_bytes: u64,
    /// Format block.
    pub block_bytes: u32,
    /// Why it was begun.
    pub origin: Origin,
    /// First batch number.
    pub first_batch: u64,
    /// First sequence.
    pub first_seq: u64,
    /// Batches known durable when this was written.
    pub durable: u64,
    /// The segment before, unless this is the first.
    pub predecessor: Option<Predecessor>,
    /// Digest of the last batch before.
    pub previous: Digest,
    /// Openings of the log so far.
    pub epoch: u64,
    /// Wall clock.
    pub wall_ns: i64,
    /// Log time.
    pub log_time: u64,
    /// What recovery copied into it.
    pub carried: Vec<Carried>,
    /// The shard's tree, of all batches before those that are written to it anew.
    pub tree: Frontier,
}

/// What the first block of a segment holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Zeros: prepared and never begun.
    Blank,
    /// Something that is no valid header.
    Bad,
    /// A header of a format version that this program does not know.
    Unknown(u16),
    /// A valid header.
    Good(Box<Header>),
}

impl Header {
    /// The most ranges that one header can carry.
    pub const CARRIED_MAX: usize = CARRIED_MAX;

    /// Writes the header over the whole of `block`.
    pub fn write(&self, block: &mut [u8]) {
        assert!(self.carried.len() <= CARRIED_MAX);
        block.fill(0);
        block[0..8].copy_from_slice(MAGIC);
        block[12..14].copy_from_slice(&crate::batch::FORMAT_VERSION.to_le_bytes());
        block[14] = self.origin as u8;
        block[15] = self.carried.len() as u8;
        block[16..32].copy_from_slice(&self.log);
        block[32..48].copy_from_slice(&self.incarnation);
        block[48..52].copy_from_slice(&self.generation.to_le_bytes());
        block[52..56].copy_from_slice(&self.shard.to_le_bytes());
        block[56..64].copy_from_slice(&self.index.to_le_bytes());
        block[64..72].copy_from_slice(&self.segment_bytes.to_le_bytes());
        block[72..76].copy_from_slice(&self.block_bytes.to_le_bytes());
        block[80..88].copy_from_slice(&self.first_batch.to_le_bytes());
        block[88..96].copy_from_slice(&self.first_seq.to_le_bytes());
        block[96..104].copy_from_slice(&self.durable.to_le_bytes());
        let none = Predecessor { index: u64::MAX, incarnation: [0; 16], end: 0 };
        let predecessor = self.predecessor.unwrap_or(none);
        block[104..112].copy_from_slice(&predecessor.index.to_le_bytes());
        block[112..128].copy_from_slice(&predecessor.incarnation);
        block[128..136].copy_from_slice(&predecessor.end.to_le_bytes());
        block[136..168].copy_from_slice(&self.previous);
        block[168..176].copy_from_slice(&self.epoch.to_le_bytes());
        block[176..184].copy_from_slice(&self.wall_ns.to_le_bytes());
        block[184..192].copy_from_slice(&self.log_time.to_le_bytes());
        for (carried, into) in self.carried.iter().zip(block[192..384].chunks_exact_mut(32)) {
            into[0..16].copy_from_slice(&carried.incarnation);
            into[16..24].copy_from_slice(&carried.first.to_le_bytes());
            into[24..32].copy_from_slice(&carried.end.to_le_bytes());
        }
        block[384..392].copy_from_slice(&self.tree.size().to_le_bytes());
        let frontier = HEADER_BYTES..HEADER_BYTES + 32 * self.tree.hashes().len();
        for (hash, into) in self.tree.hashes().iter().zip(block[frontier.clone()].chunks_exact_mut(32)) {
            into.copy_from_slice(hash);
        }
        let crc = crc32c::crc32c(&block[12..480]);
        block[8..12].copy_from_slice(&crc.to_le_bytes());
        let digest = digest_of(&block[..480], &block[frontier]);
        block[480..512].copy_from_slice(&digest);
    }

    /// Reads the first block of a segment.
    pub fn read(block: &[u8]) -> Found {
        if block.iter().all(|&b| b == 0) {
            return Found::Blank;
        }
        Self::read_nonblank(block).unwrap_or(Found::Bad)
    }

    fn read_nonblank(block: &[u8]) -> Option<Found> {
        let head = block.get(..HEADER_BYTES)?;
        let f = Fields(head);
        if &head[0..8] != MAGIC || f.u32(8) != crc32c::crc32c(&head[12..480]) {
            return None;
        }
        let version = u16::from_le_bytes(f.array(12));
        if version != crate::batch::FORMAT_VERSION {
            return Some(Found::Unknown(version));
        }
        let tree_size = f.u64(384);
        let frontier_end = HEADER_BYTES + 32 * tree_size.count_ones() as usize;
        let frontier = block.get(HEADER_BYTES..frontier_end)?;
        if digest_of(&head[..480], frontier) != head[480..512] {
            return None;
        }
        let origin = match head[14] {
            1 => Origin::Rotation,
            2 => Origin::Recovery,
            _ => return None,
        };
        let carried_count = head[15] as usize;
        let unused = 192 + 32 * carried_count;
        let zeros = [&head[76..80], head.get(unused..384)?, &head[392..480], &block[frontier_end..]];
        let reserved = zeros.iter().any(|bytes| bytes.iter().any(|&b| b != 0));
        if carried_count > CARRIED_MAX || reserved {
            return None;
        }
        let carried = head[192..unused]
            .chunks_exact(32)
            .map(|range| {
                let f = Fields(range);
                Carried { incarnation: f.array(0), first: f.u64(16), end: f.u64(24) }
            })
            .collect();
        let hashes = frontier.chunks_exact(32).map(|hash| Fields(hash).array(0)).collect();
        let tree = Frontier::from_parts(tree_size, hashes)?;
        let predecessor = Predecessor { index: f.u64(104), incarnation: f.array(112), end: f.u64(128) };
        Some(Found::Good(Box::new(Header {
            log: f.array(16),
            incarnation: f.array(32),
            generation: f.u32(48),
            shard: f.u32(52),
            index: f.u64(56),
            segment_bytes: f.u64(64),
            block_bytes: f.u32(72),
            origin,
            first_batch: f.u64(80),
            first_seq: f.u64(88),
            durable: f.u64(96),
            predecessor: (predecessor.index != u64::MAX).then_some(predecessor),
            previous: f.array(136),
            epoch: f.u64(168),
            wall_ns: f.u64(176) as i64,
            log_time: f.u64(184),
            carried,
            tree,
        })))
    }

    /// Whether a batch of this incarnation and number may stand in this segment.
    pub fn admits(&self, incarnation: &Incarnation, number: u64) -> bool {
        let carried =
            self.carried.iter().any(|c| &c.incarnation == incarnation && (c.first..c.end).contains(&number));
        carried || (incarnation == &self.incarnation && number >= self.carried_end())
    }

    /// Batch number after the last carried one; the first batch if none was carried.
    pub fn carried_end(&self) -> u64 {
        self.carried.last().map_or(self.first_batch, |c| c.end)
    }
}

fn digest_of(head: &[u8], frontier: &[u8]) -> Digest {
    *blake3::Hasher::new().update(head).update(frontier).finalize().as_bytes()
}

/// A frontier of any size has room in the smallest block.
const _: () = assert!(HEADER_BYTES + 32 * Frontier::HASHES_MAX <= 4096);

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Header {
        let mut tree = Frontier::new();
        (0..6).for_each(|i| tree.push([i; 32]));
        Header {
            log: [1; 16],
            incarnation: [2; 16],
            generation: 3,
            shard: 4,
            index: 5,
            segment_bytes: 1 << 20,
            block_bytes: 4096,
            origin: Origin::Recovery,
            first_batch: 6,
            first_seq: 7,
            durable: 6,
            predecessor: Some(Predecessor { index: 4, incarnation: [8; 16], end: 8192 }),
            previous: [9; 32],
            epoch: 10,
            wall_ns: -11,
            log_time: 12,
            carried: vec![Carried { incarnation: [8; 16], first: 6, end: 9 }],
            tree,
        }
    }

    #[test]
    fn comes_back_as_it_went_and_any_flipped_bit_is_seen() {
        let mut block = vec![0; 4096];
        sample().write(&mut block);
        assert_eq!(Header::read(&block), Found::Good(Box::new(sample())));
        for bit in 0..block.len() * 8 {
            block[bit / 8] ^= 1 << (bit % 8);
            assert!(!matches!(Header::read(&block), Found::Good(_)), "bit {bit}");
            block[bit / 8] ^= 1 << (bit % 8);
        }
        assert_eq!(Header::read(&[0; 4096]), Found::Blank);
    }

    #[test]
    fn only_its_own_and_its_carried_batches_are_admitted() {
        let header = sample();
        assert!(header.admits(&[8; 16], 6) && header.admits(&[8; 16], 8));
        assert!(!header.admits(&[8; 16], 9), "a zombie beyond what was carried");
        assert!(header.admits(&[2; 16], 9));
        assert!(!header.admits(&[2; 16], 8), "its own cannot come before the carried");
    }
}
