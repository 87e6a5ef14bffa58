//! An event on its way into a record: how long it gets, and what its producer stamps on it.
//!
//! The record's layout is [`hanaper_shards::record`]'s. The CRC stays zero here; the shard fills
//! it in, since it depends on the segment.

use hanaper_shards::clock::Clock;
use hanaper_shards::record::{HEADER_BYTES, Header, KEY_BYTES_MAX, Kind, encoded_bytes};

use crate::AppendError;

/// Length of the event's record, if its key and payload are of a length that is let in.
#[inline]
pub(crate) fn record_bytes(
    key_bytes: usize,
    payload_bytes: usize,
    payload_bytes_max: usize,
) -> Result<usize, AppendError> {
    if key_bytes > KEY_BYTES_MAX {
        return Err(AppendError::KeyTooLong { bytes: key_bytes, max: KEY_BYTES_MAX });
    }
    if payload_bytes > payload_bytes_max {
        return Err(AppendError::TooLarge { bytes: payload_bytes, max: payload_bytes_max });
    }
    Ok(encoded_bytes(key_bytes, payload_bytes))
}

/// Writes the event as a record into `into`, which is exactly as long as the record.
#[inline]
pub(crate) fn write_record(header: &Header, key: &[u8], payload: &[u8], into: &mut [u8]) {
    copy_key(key, &mut into[HEADER_BYTES..HEADER_BYTES + key.len()]);
    let start = HEADER_BYTES + key.len();
    into[start..start + payload.len()].copy_from_slice(payload);
    header.write(into);
}

/// Many keys are so short that calling a copying routine costs more than the copy.
#[inline]
pub(crate) fn copy_key(key: &[u8], into: &mut [u8]) {
    match key.len() {
        // Two copies of eight bytes reach both ends.
        bytes @ 8..=16 => {
            let (first, last) = (key.first_chunk::<8>(), key.last_chunk::<8>());
            into[..8].copy_from_slice(first.expect("8 or more"));
            into[bytes - 8..bytes].copy_from_slice(last.expect("8 or more"));
        }
        _ => into.copy_from_slice(key),
    }
}

/// What a producer stamps on its records: its number, its sequence, and the time.
pub(crate) struct Stamp {
    producer: u32,
    next_seq: u64,
    /// Flags of the next record only.
    pub(crate) next_flags: u8,
    last_time: u64,
    clock: Clock,
}

impl Stamp {
    pub(crate) fn new(producer: u32, clock: Clock) -> Stamp {
        Stamp { producer, next_seq: 0, next_flags: 0, last_time: 0, clock }
    }

    /// The header of the next record, which must now be committed: the sequence has no gaps.
    #[inline]
    pub(crate) fn next(&mut self, key_bytes: usize, payload_bytes: usize) -> Header {
        // Two records within one tick of the clock still differ.
        self.last_time = self.clock.now().max(self.last_time + 1);
        let producer_seq = self.next_seq;
        self.next_seq += 1;
        Header {
            payload_bytes: payload_bytes as u32,
            key_bytes: key_bytes as u16,
            kind: Kind::Data,
            flags: std::mem::take(&mut self.next_flags),
            producer: self.producer,
            producer_seq,
            log_time: self.last_time,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A clock that stands still must not give two records one time.
    #[test]
    fn time_rises_even_when_the_clock_stands() {
        let (clock, hands) = Clock::manual(50);
        let mut stamp = Stamp::new(7, clock);
        let times: Vec<u64> = (0..3).map(|_| stamp.next(0, 0).log_time).collect();
        assert_eq!(times, [50, 51, 52]);
        hands.advance(100);
        let next = stamp.next(1, 2);
        assert_eq!((next.producer, next.producer_seq, next.log_time), (7, 3, 150));
        assert_eq!((next.key_bytes, next.payload_bytes), (1, 2));
    }

    #[test]
    fn keys_of_all_lengths_are_copied() {
        let key: [u8; 40] = std::array::from_fn(|at| at as u8 + 1);
        for bytes in 0..=40 {
            let mut into = vec![0; bytes];
            copy_key(&key[..bytes], &mut into);
            assert_eq!(into, key[..bytes]);
        }
    }

    #[test]
    fn what_is_too_long_is_told_the_limit() {
        assert_eq!(record_bytes(1024, 10, 10), Ok(1072));
        let key = AppendError::KeyTooLong { bytes: 1025, max: 1024 };
        assert_eq!(record_bytes(1025, 0, 10), Err(key));
        let payload = AppendError::TooLarge { bytes: 11, max: 10 };
        assert_eq!(record_bytes(0, 11, 10), Err(payload));
    }
}
