//! The batch: the unit of durability, of integrity and of replication.
//!
//! ```text
//! offset  bytes  field
//!      0      8  magic "HNPRBTCH"
//!      8      4  crc32c of bytes 12..256
//!     12      2  format version, 1
//!     14      1  digest algorithm, 1 = BLAKE3
//!     15      1  reserved
//!     16     16  log id
//!     32     16  incarnation of the segment it was first written to
//!     48      4  layout generation
//!     52      4  shard
//!     56      8  batch number: its index in the shard's whole life
//!     64      8  first sequence
//!     72      4  count of records
//!     76      4  length of the body
//!     80     16  least and greatest log time in it (both 0 when it is empty)
//!     96      8  durable: count of batches known durable when this one was submitted
//!    104      8  offset in the segment it was first written to
//!    112      8  anchor: log time
//!    120      8  anchor: wall clock, nanoseconds since 1970 (signed)
//!    128      4  anchor: uncertainty, nanoseconds
//!    132      1  anchor: source of the clock
//!    133      3  reserved: codec, cipher suite, retention class
//!    136      4  reserved: key id
//!    140     12  reserved: nonce
//!    152      8  reserved: tenant
//!    160     32  digest of the batch before (zero for number 0)
//!    192     64  reserved
//!    256      n  body: records, each padded to 8
//!  256+n     32  digest = BLAKE3(header ‖ body)
//!    ...         zero padding to the block
//! ```
//! What is reserved is zero. Integers are little-endian.
//!
//! Valid if and only if: magic, version, algorithm and header CRC hold, what is reserved and the padding
//! are zero, the body fits, and the digest matches. Whether it belongs *here* (segment, chain,
//! sequence) is the reader's question: see [`crate::wal`].

use crate::clock::Anchor;

/// Length of the header.
pub const HEADER_BYTES: usize = 256;
/// Length of a digest.
pub const DIGEST_BYTES: usize = 32;
/// A batch takes no further record once its body has reached this; one larger record goes alone.
pub const BODY_BYTES_TARGET: usize = 64 << 10;
/// The longest body: one record of the longest key and payload.
pub const BODY_BYTES_MAX: usize =
    crate::record::encoded_bytes(crate::record::KEY_BYTES_MAX, crate::record::PAYLOAD_BYTES_MAX);

const MAGIC: &[u8; 8] = b"HNPRBTCH";
/// Version of the format, in every header.
pub const FORMAT_VERSION: u16 = 1;
const BLAKE3: u8 = 1;

/// A BLAKE3 digest.
pub type Digest = [u8; DIGEST_BYTES];

/// Identity of a log: random, made once.
pub type LogId = [u8; 16];

/// Identity of one life of one segment file: random, made each time that a segment is begun.
pub type Incarnation = [u8; 16];

/// The fields of a batch header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The log.
    pub log: LogId,
    /// Incarnation of the segment that it was first written to.
    pub incarnation: Incarnation,
    /// Layout generation.
    pub generation: u32,
    /// Shard.
    pub shard: u32,
    /// Index of the batch in the shard's life.
    pub number: u64,
    /// Sequence of the first record (of the next one, when the batch is empty).
    pub first_seq: u64,
    /// Number of records.
    pub count: u32,
    /// Length of the body.
    pub body_bytes: u32,
    /// Least log time.
    pub time_min: u64,
    /// Greatest log time.
    pub time_max: u64,
    /// Number of batches of the contiguous durable prefix when this one was submitted.
    pub durable: u64,
    /// Where it was first written.
    pub offset: u64,
    /// Pairs log time with the wall clock.
    pub anchor: Anchor,
    /// Digest of the batch before.
    pub previous: Digest,
}

/// Why bytes are not a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BatchFault {
    /// No batch header is here at all.
    #[error("no batch header")]
    NoHeader,
    /// A version or algorithm that this program does not know, under a good CRC.
    #[error("a batch of format version {version}, algorithm {algorithm}, which this program does not know")]
    Unknown {
        /// The version found.
        version: u16,
        /// The algorithm found.
        algorithm: u8,
    },
    /// Reserved bytes are set, or lengths make no sense.
    #[error("a batch header without meaning")]
    Header,
    /// It reaches beyond what is there.
    #[error("a batch that reaches beyond its segment")]
    Truncated,
    /// The digest does not match.
    #[error("a batch whose digest does not match")]
    Digest,
    /// The padding is not zero.
    #[error("data in a batch's padding")]
    Padding,
}

/// How many bytes a batch with this body takes on disk.
#[inline]
pub const fn placed_bytes(body_bytes: usize, block_bytes: u32) -> usize {
    (HEADER_BYTES + body_bytes + DIGEST_BYTES).next_multiple_of(block_bytes as usize)
}

impl Header {
    fn write(&self, into: &mut [u8; HEADER_BYTES]) {
        into.fill(0);
        into[0..8].copy_from_slice(MAGIC);
        into[12..14].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        into[14] = BLAKE3;
        into[16..32].copy_from_slice(&self.log);
        into[32..48].copy_from_slice(&self.incarnation);
        into[48..52].copy_from_slice(&self.generation.to_le_bytes());
        into[52..56].copy_from_slice(&self.shard.to_le_bytes());
        into[56..64].copy_from_slice(&self.number.to_le_bytes());
        into[64..72].copy_from_slice(&self.first_seq.to_le_bytes());
        into[72..76].copy_from_slice(&self.count.to_le_bytes());
        into[76..80].copy_from_slice(&self.body_bytes.to_le_bytes());
        into[80..88].copy_from_slice(&self.time_min.to_le_bytes());
        into[88..96].copy_from_slice(&self.time_max.to_le_bytes());
        into[96..104].copy_from_slice(&self.durable.to_le_bytes());
        into[104..112].copy_from_slice(&self.offset.to_le_bytes());
        into[112..120].copy_from_slice(&self.anchor.log_time.to_le_bytes());
        into[120..128].copy_from_slice(&self.anchor.wall_ns.to_le_bytes());
        into[128..132].copy_from_slice(&self.anchor.uncertainty_ns.to_le_bytes());
        into[132] = self.anchor.source;
        into[160..192].copy_from_slice(&self.previous);
        let crc = crc32c::crc32c(&into[12..]);
        into[8..12].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads a header and checks its own CRC; the digest is not looked at.
    pub fn read(bytes: &[u8]) -> Result<Header, BatchFault> {
        let head: &[u8; HEADER_BYTES] =
            bytes.get(..HEADER_BYTES).ok_or(BatchFault::NoHeader)?.try_into().expect("just cut to size");
        let f = Fields(head);
        if &head[0..8] != MAGIC || f.u32(8) != crc32c::crc32c(&head[12..]) {
            return Err(BatchFault::NoHeader);
        }
        let version = u16::from_le_bytes([head[12], head[13]]);
        if version != FORMAT_VERSION || head[14] != BLAKE3 {
            return Err(BatchFault::Unknown { version, algorithm: head[14] });
        }
        let header = Header {
            log: f.array(16),
            incarnation: f.array(32),
            generation: f.u32(48),
            shard: f.u32(52),
            number: f.u64(56),
            first_seq: f.u64(64),
            count: f.u32(72),
            body_bytes: f.u32(76),
            time_min: f.u64(80),
            time_max: f.u64(88),
            durable: f.u64(96),
            offset: f.u64(104),
            anchor: Anchor {
                log_time: f.u64(112),
                wall_ns: f.u64(120) as i64,
                uncertainty_ns: f.u32(128),
                source: head[132],
            },
            previous: f.array(160),
        };
        let reserved = head[15] != 0 || head[133..160].iter().chain(&head[192..]).any(|&b| b != 0);
        // Every record takes 32 bytes at least, and sequences and numbers never wrap.
        let sane = header.body_bytes as usize <= BODY_BYTES_MAX
            && u64::from(header.count) * crate::record::HEADER_BYTES as u64 <= u64::from(header.body_bytes)
            && header.first_seq.checked_add(u64::from(header.count)).is_some()
            && header.number < u64::MAX
            && header.durable <= header.number;
        if reserved || !sane {
            return Err(BatchFault::Header);
        }
        Ok(header)
    }

    /// How many bytes it takes on disk.
    pub fn placed_bytes(&self, block_bytes: u32) -> usize {
        placed_bytes(self.body_bytes as usize, block_bytes)
    }

    /// Sequence after its last record.
    pub fn end_seq(&self) -> u64 {
        self.first_seq + u64::from(self.count)
    }

    /// What to add to a log time of this batch to get wall time, in nanoseconds.
    pub fn wall_offset_ns(&self) -> i64 {
        self.anchor.wall_ns.wrapping_sub(self.anchor.log_time as i64)
    }
}

/// Little-endian fields at fixed offsets.
pub(crate) struct Fields<'a>(pub &'a [u8]);

impl Fields<'_> {
    pub(crate) fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        self.0[at..at + N].try_into().expect("N bytes")
    }
    pub(crate) fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }
    pub(crate) fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.array(at))
    }
}

/// Completes a batch in place: `into` is its whole room on disk, with the body already at
/// [`HEADER_BYTES`]. Writes header, digest and padding, and gives the digest.
pub fn seal(header: &Header, into: &mut [u8]) -> Digest {
    let body_end = HEADER_BYTES + header.body_bytes as usize;
    header.write((&mut into[..HEADER_BYTES]).try_into().expect("a whole header"));
    let digest: Digest = *blake3::hash(&into[..body_end]).as_bytes();
    into[body_end..body_end + DIGEST_BYTES].copy_from_slice(&digest);
    into[body_end + DIGEST_BYTES..].fill(0);
    digest
}

/// A batch in somebody's buffer, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch<'a> {
    /// The header.
    pub header: Header,
    /// The records.
    pub body: &'a [u8],
    /// The digest.
    pub digest: Digest,
}

/// Reads the batch at the start of `bytes`; everything about the batch itself is checked, but
/// not the records in its body.
pub fn open(bytes: &[u8], block_bytes: u32) -> Result<Batch<'_>, BatchFault> {
    let header = Header::read(bytes)?;
    let placed = bytes.get(..header.placed_bytes(block_bytes)).ok_or(BatchFault::Truncated)?;
    let body_end = HEADER_BYTES + header.body_bytes as usize;
    let digest: Digest = placed[body_end..body_end + DIGEST_BYTES].try_into().expect("32 bytes");
    if blake3::hash(&placed[..body_end]).as_bytes() != &digest {
        return Err(BatchFault::Digest);
    }
    if placed[body_end + DIGEST_BYTES..].iter().any(|&b| b != 0) {
        return Err(BatchFault::Padding);
    }
    Ok(Batch { header, body: &placed[HEADER_BYTES..body_end], digest })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn header(number: u64) -> Header {
        Header {
            log: [1; 16],
            incarnation: [2; 16],
            generation: 0,
            shard: 0,
            number,
            first_seq: 10 * number,
            count: 0,
            body_bytes: 0,
            time_min: 0,
            time_max: 0,
            durable: 0,
            offset: 4096,
            anchor: Anchor { log_time: 5, wall_ns: 6, uncertainty_ns: 7, source: 1 },
            previous: [3; 32],
        }
    }

    fn sealed(body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0xEE; placed_bytes(body.len(), 4096)];
        bytes[HEADER_BYTES..HEADER_BYTES + body.len()].copy_from_slice(body);
        seal(&Header { body_bytes: body.len() as u32, ..header(4) }, &mut bytes);
        bytes
    }

    proptest! {
        #[test]
        fn comes_back_as_it_went(body in prop::collection::vec(any::<u8>(), 0..9000)) {
            let bytes = sealed(&body);
            prop_assert_eq!(bytes.len() % 4096, 0);
            let batch = open(&bytes, 4096).unwrap();
            prop_assert_eq!(batch.body, &body[..]);
            prop_assert_eq!(&batch.header, &Header { body_bytes: body.len() as u32, ..header(4) });
        }

        #[test]
        fn any_flipped_bit_is_seen(body in prop::collection::vec(any::<u8>(), 0..5000), bit: prop::sample::Index) {
            let mut bytes = sealed(&body);
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(open(&bytes, 4096).is_err());
        }

        #[test]
        fn never_panics(mut bytes in prop::collection::vec(any::<u8>(), 0..700), mend: bool) {
            if mend && bytes.len() >= HEADER_BYTES {
                bytes[0..8].copy_from_slice(MAGIC);
                bytes[12..15].copy_from_slice(&[1, 0, 1]);
                let crc = crc32c::crc32c(&bytes[12..HEADER_BYTES]);
                bytes[8..12].copy_from_slice(&crc.to_le_bytes());
            }
            let _ = open(&bytes, 4096);
        }
    }

    /// A whole batch of its own may be shorter than what is announced: never read past the end.
    #[test]
    fn a_batch_cut_short_is_truncated() {
        let bytes = sealed(&[7; 5000]);
        assert_eq!(open(&bytes[..4096], 4096), Err(BatchFault::Truncated));
    }
}
