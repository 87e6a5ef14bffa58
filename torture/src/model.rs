//! The oracle: what was written, what was acknowledged, what a recovery has shown.
//!
//! It knows nothing of segments. After each recovery it is given every batch of every shard and
//! says what is missing, altered, doubled, out of order, or from nobody. Records that were written
//! and not acknowledged may be there or not; once a recovery has shown them, they stay.

use hanaper_shards::ack::Receipt;
use hanaper_shards::batch::Digest;
use hanaper_shards::record::Kind;

use crate::sim::rng::{Rng, mixed};

/// A batch as it was read back.
pub struct FoundBatch {
    /// Its number.
    pub number: u64,
    /// Its first sequence.
    pub first_seq: u64,
    /// Its digest, recomputed.
    pub digest: Digest,
    /// The digest that it names as that of the one before.
    pub previous: Digest,
    /// Its records.
    pub records: Vec<FoundRecord>,
}

/// A record as it was read back.
pub struct FoundRecord {
    /// Data or control.
    pub kind: Kind,
    /// Who wrote it.
    pub producer: u32,
    /// Counts that producer's records.
    pub producer_seq: u64,
    /// Its time.
    pub log_time: u64,
    /// Its key.
    pub key: Vec<u8>,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// One record that a producer's append has accepted.
struct Written {
    stream: usize,
    /// Its place in the stream.
    place: usize,
    producer: u32,
    producer_seq: u64,
    key: Vec<u8>,
    payload_bytes: usize,
    receipt: Option<Receipt>,
}

/// What one producer wrote to one shard in one opening of the log, in order.
#[derive(Default)]
struct Stream {
    shard: usize,
    records: Vec<usize>,
    acked: usize,
    log_time_base: u64,
}

/// See the module.
pub struct Model {
    /// By record id; `None` for what was offered and refused.
    records: Vec<Option<Written>>,
    streams: Vec<Stream>,
    /// Per shard, the digests of the batches that the last recovery showed.
    shown: Vec<Vec<Digest>>,
    trace: u64,
    /// Records accepted, acknowledged, refused.
    pub written: u64,
    /// Of these, acknowledged.
    pub acked: u64,
    /// Refused.
    pub refused: u64,
}

/// What a check found besides violations.
#[derive(Debug, Clone, Copy, Default)]
pub struct Checked {
    /// Records there although nobody had been told that they are durable.
    pub unacked: u64,
    /// The greatest log time.
    pub log_time_max: u64,
}

/// The payload of a record: worked out from its id, so that it need not be remembered.
pub fn payload(id: u64, bytes: usize) -> Vec<u8> {
    let mut rng = Rng::new(mixed(id ^ 0x5EED));
    let mut out = Vec::with_capacity(bytes + 8);
    while out.len() < bytes {
        out.extend_from_slice(&rng.any().to_le_bytes());
    }
    out.truncate(bytes);
    out
}

impl Model {
    /// For a log with so many shards.
    pub fn new(shards: usize) -> Model {
        Model {
            records: Vec::new(),
            streams: Vec::new(),
            shown: vec![Vec::new(); shards],
            trace: 0,
            written: 0,
            acked: 0,
            refused: 0,
        }
    }

    /// Goes into the trace of the history.
    pub fn note(&mut self, value: u64) {
        self.trace = mixed(self.trace.rotate_left(7) ^ value);
    }

    /// A number over everything that was noted.
    pub fn trace(&self) -> u64 {
        self.trace
    }

    /// A producer that begins to write to a shard, at this log time.
    pub fn stream(&mut self, shard: usize, log_time_base: u64) -> usize {
        self.streams.push(Stream { shard, log_time_base, ..Stream::default() });
        self.streams.len() - 1
    }

    /// The id of the next record to be offered; it stands in the record's key.
    pub fn next_id(&self) -> u64 {
        self.records.len() as u64
    }

    /// The record `next_id` was refused.
    pub fn was_refused(&mut self) {
        self.records.push(None);
        self.refused += 1;
        self.note(1);
    }

    /// The record `next_id` was accepted into this stream. Gives its id.
    pub fn was_written(
        &mut self,
        stream: usize,
        producer: u32,
        producer_seq: u64,
        key: Vec<u8>,
        payload_bytes: usize,
    ) -> u64 {
        let id = self.next_id();
        let place = self.streams[stream].records.len();
        self.streams[stream].records.push(id as usize);
        self.records.push(Some(Written {
            stream,
            place,
            producer,
            producer_seq,
            key,
            payload_bytes,
            receipt: None,
        }));
        self.written += 1;
        self.note(2 ^ id << 8);
        id
    }

    /// The record was acknowledged.
    pub fn was_acked(&mut self, id: u64, receipt: Receipt) -> Result<(), String> {
        let written = self.records[id as usize].as_mut().expect("only what was accepted has a ticket");
        let stream = &mut self.streams[written.stream];
        if written.receipt.is_some()
            || written.place != stream.acked
            || receipt.shard as usize != stream.shard
        {
            return Err(format!("record {id} was acknowledged twice, out of order, or by another shard"));
        }
        stream.acked += 1;
        written.receipt = Some(receipt);
        self.acked += 1;
        self.note(3 ^ id << 8 ^ receipt.seq << 32);
        Ok(())
    }

    /// Checks all batches of one shard, as one recovery shows them, and remembers them as shown.
    pub fn check(&mut self, shard: usize, found: &[FoundBatch]) -> Result<Checked, String> {
        self.check_chain(shard, found)?;
        let mut checked = Checked::default();
        // How far each stream was found.
        let mut reached = vec![0usize; self.streams.len()];
        for batch in found {
            for (i, record) in batch.records.iter().enumerate() {
                checked.log_time_max = checked.log_time_max.max(record.log_time);
                if record.kind == Kind::Control {
                    if record.producer != 0 || std::str::from_utf8(&record.payload).is_err() {
                        return Err(format!("batch {} holds a control record of nobody", batch.number));
                    }
                    continue;
                }
                let at = (batch.first_seq + i as u64, batch);
                checked.unacked += u64::from(self.check_record(shard, record, at, &mut reached)?);
            }
        }
        for (stream, &reached) in self.streams.iter().zip(&reached) {
            if stream.shard == shard && reached < stream.acked {
                let id = stream.records[reached];
                let receipt = self.records[id].as_ref().and_then(|w| w.receipt).expect("acknowledged");
                return Err(format!(
                    "LOST: record {id} was acknowledged as sequence {} in batch {}, and is gone; {} batches are there",
                    receipt.seq,
                    receipt.batch,
                    found.len()
                ));
            }
        }
        self.shown[shard] = found.iter().map(|b| b.digest).collect();
        let last = found.last().map_or(0, |b| u64::from_le_bytes(b.digest[..8].try_into().expect("8 bytes")));
        self.note(4 ^ last);
        Ok(checked)
    }

    fn check_chain(&self, shard: usize, found: &[FoundBatch]) -> Result<(), String> {
        let (mut seq, mut previous) = (0, [0; 32]);
        for (number, batch) in (0..).zip(found) {
            if (batch.number, batch.first_seq, batch.previous) != (number, seq, previous) {
                return Err(format!("batch {} stands where batch {number} belongs", batch.number));
            }
            seq += batch.records.len() as u64;
            previous = batch.digest;
        }
        let shown = &self.shown[shard];
        if let Some(number) = (0..shown.len()).find(|&i| found.get(i).map(|b| b.digest) != Some(shown[i])) {
            let now = if number < found.len() { "another" } else { "gone" };
            return Err(format!("LOST: an earlier recovery showed batch {number}, and it is {now} now"));
        }
        Ok(())
    }

    /// Gives whether it is there without having been acknowledged.
    fn check_record(
        &self,
        shard: usize,
        record: &FoundRecord,
        (seq, batch): (u64, &FoundBatch),
        reached: &mut [usize],
    ) -> Result<bool, String> {
        let id = record.key.get(..8).map(|k| u64::from_le_bytes(k.try_into().expect("8 bytes")));
        let written = id.and_then(|id| self.records.get(usize::try_from(id).ok()?)?.as_ref());
        let (Some(id), Some(written)) = (id, written) else {
            return Err(format!("sequence {seq} holds a record that nobody wrote: {id:?}"));
        };
        let stream = &self.streams[written.stream];
        let same = (record.producer, record.producer_seq) == (written.producer, written.producer_seq)
            && record.key == written.key
            && record.payload == payload(id, written.payload_bytes);
        if stream.shard != shard || !same {
            return Err(format!("record {id} at sequence {seq} is altered"));
        }
        if reached[written.stream] != written.place {
            return Err(format!(
                "record {id} at sequence {seq} is doubled or out of its producer's order: it is number {} and {} was due",
                written.place, reached[written.stream]
            ));
        }
        if record.log_time < stream.log_time_base {
            return Err(format!("record {id} at sequence {seq} is older than its opening of the log"));
        }
        reached[written.stream] += 1;
        let Some(receipt) = written.receipt else { return Ok(true) };
        if (receipt.seq, receipt.batch, receipt.digest) != (seq, batch.number, batch.digest) {
            return Err(format!(
                "record {id} was acknowledged as sequence {} in batch {}, and is sequence {seq} in batch {}, or the digest differs",
                receipt.seq, receipt.batch, batch.number
            ));
        }
        Ok(false)
    }
}
