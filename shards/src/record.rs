//! The record: one event as it stands in a lane, in a batch and on disk.
//!
//! ```text
//! offset  bytes  field
//!      0      4  crc32c of all that follows, padding included, seeded: see [`Seal`]
//!      4      4  payload length
//!      8      2  key length
//!     10      1  kind: 1 data, 2 control
//!     11      1  flags: bit 0 = unterminated (see [`FLAG_UNTERMINATED`]); the others are zero
//!     12      4  producer (0: the log itself)
//!     16      8  producer's sequence, from 0
//!     24      8  log time, nanoseconds
//!     32      k  key
//!   32+k      p  payload
//!   ...   0..=7  zero padding to a multiple of 8
//! ```
//! Integers are little-endian. A record's shard sequence is not in it: it is the first sequence
//! of its batch plus its index. The CRC is seeded with the incarnation of the segment and with
//! that sequence, so that an old record in a recycled segment, or one in the wrong place, does
//! not pass.
//!
//! Valid if and only if: the lengths stay within the body, kind and flags are known, the padding is
//! zero, and the CRC matches.

use crc32c::crc32c_append;

/// Length of the record header.
pub const HEADER_BYTES: usize = 32;
/// The longest key.
pub const KEY_BYTES_MAX: usize = 1024;
/// The longest payload that any setting allows.
pub const PAYLOAD_BYTES_MAX: usize = 16 << 20;

/// The event was the last line of an input, and no line end followed it. So a text that was appended
/// line by line comes back byte for byte.
pub const FLAG_UNTERMINATED: u8 = 1;

/// What a record is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// An event of a caller.
    Data = 1,
    /// Something that happened to the log itself; the payload is one line of text.
    Control = 2,
}

/// The fields of a record header, without its CRC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Length of the payload in bytes.
    pub payload_bytes: u32,
    /// Length of the key in bytes.
    pub key_bytes: u16,
    /// Data or control.
    pub kind: Kind,
    /// [`FLAG_UNTERMINATED`] or 0.
    pub flags: u8,
    /// The producer that appended it; 0 is the log itself.
    pub producer: u32,
    /// Counts the records of this producer (in this opening of the log), from 0.
    pub producer_seq: u64,
    /// Log time in nanoseconds.
    pub log_time: u64,
}

/// A record in somebody's buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// The header's fields.
    pub header: Header,
    /// The routing key.
    pub key: &'a [u8],
    /// The event's bytes.
    pub payload: &'a [u8],
}

/// Why bytes are not a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordFault {
    /// The header or what it announces does not fit into the bytes that are there.
    #[error("a record that reaches beyond its batch")]
    Truncated,
    /// Kind, flags or key length have no meaning.
    #[error("a record header without meaning")]
    Header,
    /// The padding is not zero.
    #[error("data in a record's padding")]
    Padding,
    /// The checksum does not match.
    #[error("a record whose CRC does not match")]
    Crc,
}

/// Length of a whole record with its padding.
#[inline]
pub const fn encoded_bytes(key_bytes: usize, payload_bytes: usize) -> usize {
    (HEADER_BYTES + key_bytes + payload_bytes).next_multiple_of(8)
}

impl Header {
    /// Length of the whole record with its padding.
    #[inline]
    pub fn encoded_bytes(&self) -> usize {
        encoded_bytes(self.key_bytes as usize, self.payload_bytes as usize)
    }

    /// Writes the header, with a zero CRC ([`Seal::seal`] fills it in), and zeroes the padding.
    /// `into` is the whole record.
    #[inline]
    pub fn write(&self, into: &mut [u8]) {
        let end = HEADER_BYTES + self.key_bytes as usize + self.payload_bytes as usize;
        into[end..].fill(0);
        let head: &mut [u8; HEADER_BYTES] = (&mut into[..HEADER_BYTES]).try_into().expect("a whole header");
        head[0..4].copy_from_slice(&[0; 4]);
        head[4..8].copy_from_slice(&self.payload_bytes.to_le_bytes());
        head[8..10].copy_from_slice(&self.key_bytes.to_le_bytes());
        head[10] = self.kind as u8;
        head[11] = self.flags;
        head[12..16].copy_from_slice(&self.producer.to_le_bytes());
        head[16..24].copy_from_slice(&self.producer_seq.to_le_bytes());
        head[24..32].copy_from_slice(&self.log_time.to_le_bytes());
    }

    /// Reads a header; says nothing about the CRC.
    pub fn read(bytes: &[u8]) -> Result<Header, RecordFault> {
        let head: &[u8; HEADER_BYTES] =
            bytes.get(..HEADER_BYTES).ok_or(RecordFault::Truncated)?.try_into().expect("just cut to size");
        let header = Header {
            payload_bytes: u32::from_le_bytes(head[4..8].try_into().expect("4 bytes")),
            key_bytes: u16::from_le_bytes(head[8..10].try_into().expect("2 bytes")),
            kind: match head[10] {
                1 => Kind::Data,
                2 => Kind::Control,
                _ => return Err(RecordFault::Header),
            },
            flags: head[11],
            producer: u32::from_le_bytes(head[12..16].try_into().expect("4 bytes")),
            producer_seq: u64::from_le_bytes(head[16..24].try_into().expect("8 bytes")),
            log_time: u64::from_le_bytes(head[24..32].try_into().expect("8 bytes")),
        };
        let fits =
            header.key_bytes as usize <= KEY_BYTES_MAX && header.payload_bytes as usize <= PAYLOAD_BYTES_MAX;
        if header.flags & !FLAG_UNTERMINATED != 0 || !fits {
            return Err(RecordFault::Header);
        }
        Ok(header)
    }
}

/// Writes a whole record, CRC still zero, into `into`, which is exactly `encoded_bytes` long.
pub fn write(header: &Header, key: &[u8], payload: &[u8], into: &mut [u8]) {
    assert_eq!(key.len(), header.key_bytes as usize);
    assert_eq!(payload.len(), header.payload_bytes as usize);
    into[HEADER_BYTES..HEADER_BYTES + key.len()].copy_from_slice(key);
    into[HEADER_BYTES + key.len()..HEADER_BYTES + key.len() + payload.len()].copy_from_slice(payload);
    header.write(into);
}

/// Puts and checks record CRCs for one segment incarnation.
#[derive(Debug, Clone, Copy)]
pub struct Seal {
    incarnation_crc: u32,
}

impl Seal {
    /// For the segment with this incarnation.
    pub fn new(incarnation: &[u8; 16]) -> Seal {
        Seal { incarnation_crc: crc32c_append(0, incarnation) }
    }

    #[inline]
    fn crc(&self, seq: u64, record: &[u8]) -> u32 {
        crc32c_append(crc32c_append(self.incarnation_crc, &seq.to_le_bytes()), record)
    }

    /// Fills in the CRC of a record whose header has been written. `record` is whole, with padding.
    #[inline]
    pub fn seal(&self, seq: u64, record: &mut [u8]) {
        let crc = self.crc(seq, &record[4..]);
        record[..4].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads the first record of `bytes` and how long it is, all checked.
    pub fn open<'a>(&self, seq: u64, bytes: &'a [u8]) -> Result<(Record<'a>, usize), RecordFault> {
        let (record, whole) = split(bytes)?;
        let stored = u32::from_le_bytes(bytes[..4].try_into().expect("4 bytes"));
        if self.crc(seq, &bytes[4..whole]) != stored {
            return Err(RecordFault::Crc);
        }
        Ok((record, whole))
    }
}

/// The first record of `bytes` and its length with padding; everything is checked but the CRC.
pub fn split(bytes: &[u8]) -> Result<(Record<'_>, usize), RecordFault> {
    let header = Header::read(bytes)?;
    let whole = header.encoded_bytes();
    let record = bytes.get(..whole).ok_or(RecordFault::Truncated)?;
    let key_end = HEADER_BYTES + header.key_bytes as usize;
    let payload_end = key_end + header.payload_bytes as usize;
    if record[payload_end..].iter().any(|&b| b != 0) {
        return Err(RecordFault::Padding);
    }
    Ok((
        Record { header, key: &record[HEADER_BYTES..key_end], payload: &record[key_end..payload_end] },
        whole,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample(key: &[u8], payload: &[u8]) -> Vec<u8> {
        let header = Header {
            payload_bytes: payload.len() as u32,
            key_bytes: key.len() as u16,
            kind: Kind::Data,
            flags: 0,
            producer: 3,
            producer_seq: 9,
            log_time: 77,
        };
        let mut bytes = vec![0xAA; header.encoded_bytes()];
        write(&header, key, payload, &mut bytes);
        bytes
    }

    proptest! {
        #[test]
        fn comes_back_as_it_went(key in prop::collection::vec(any::<u8>(), 0..64), payload in prop::collection::vec(any::<u8>(), 0..300), seq: u64) {
            let seal = Seal::new(&[5; 16]);
            let mut bytes = sample(&key, &payload);
            seal.seal(seq, &mut bytes);
            let (record, whole) = seal.open(seq, &bytes).unwrap();
            prop_assert_eq!(whole, bytes.len());
            prop_assert_eq!(record.key, &key[..]);
            prop_assert_eq!(record.payload, &payload[..]);
        }

        /// Another sequence, another incarnation, any flipped bit: refused.
        #[test]
        fn any_flipped_bit_is_seen(payload in prop::collection::vec(any::<u8>(), 0..80), bit: prop::sample::Index) {
            let seal = Seal::new(&[5; 16]);
            let mut bytes = sample(b"key", &payload);
            seal.seal(8, &mut bytes);
            prop_assert!(seal.open(9, &bytes).is_err());
            prop_assert!(Seal::new(&[6; 16]).open(8, &bytes).is_err());
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(seal.open(8, &bytes).is_err());
        }

        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), seq: u64) {
            let _ = Seal::new(&[0; 16]).open(seq, &bytes);
        }
    }
}
