//! One batch as readers judge it: is it the one that stood here, and are its records whole?

use hanaper_shards::batch::{self, Batch, BatchFault};
use hanaper_shards::record::{self, Record, RecordFault};
use hanaper_shards::segment::footer::IndexEntry;
use hanaper_shards::wal::chain::Place;

/// A verdict and what it means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub verdict: &'static str,
    pub meaning: String,
}

impl Fault {
    pub(crate) fn new(verdict: &'static str, meaning: impl Into<String>) -> Fault {
        Fault { verdict, meaning: meaning.into() }
    }
}

/// The verdict on bytes that should be a batch.
pub(crate) fn verdict_of(fault: BatchFault) -> &'static str {
    match fault {
        BatchFault::NoHeader | BatchFault::Truncated => "BATCH-MISSING",
        BatchFault::Unknown { .. } => "ALGORITHM",
        BatchFault::Header | BatchFault::Digest => "BATCH-DIGEST",
        BatchFault::Padding => "PADDING",
    }
}

/// Opens the batch that the index says stands here.
pub(crate) fn open<'a>(
    bytes: &'a [u8],
    block_bytes: u32,
    place: Place,
    entry: &IndexEntry,
) -> Result<Batch<'a>, Fault> {
    let batch =
        batch::open(bytes, block_bytes).map_err(|fault| Fault::new(verdict_of(fault), fault.to_string()))?;
    let h = &batch.header;
    if h.log != place.log {
        return Err(Fault::new("FOREIGN-LOG", "a batch of another log stands here"));
    }
    if (h.generation, h.shard) != (place.generation, place.shard) {
        return Err(Fault::new("FOREIGN-SHARD", format!("a batch of shard {} stands here", h.shard)));
    }
    if h.number != entry.number {
        return Err(Fault::new("BATCH-NUMBER", format!("batch {} stands here", h.number)));
    }
    if IndexEntry::new(entry.offset, h, batch.digest) != *entry {
        return Err(Fault::new(
            "BATCH-DIGEST",
            "an intact batch stands here, and it is not the one in the index",
        ));
    }
    Ok(batch)
}

/// Gives every record of an intact batch with its sequence, or says what is wrong with them.
pub(crate) fn records<'a>(
    header: &batch::Header,
    body: &'a [u8],
    visit: &mut dyn FnMut(u64, &Record<'a>),
) -> Result<(), Fault> {
    let seal = record::Seal::new(&header.incarnation);
    let mut rest = body;
    for seq in header.first_seq..header.end_seq() {
        let (record, bytes) = seal.open(seq, rest).map_err(|fault| {
            let verdict = match fault {
                RecordFault::Crc => "RECORD-CRC",
                RecordFault::Padding => "PADDING",
                RecordFault::Header | RecordFault::Truncated => "RECORD",
            };
            Fault::new(verdict, format!("record {seq}: {fault}"))
        })?;
        // Replay merges by these bounds: a record outside of them would come out of order.
        if !(header.time_min..=header.time_max).contains(&record.header.log_time) {
            return Err(Fault::new("TIME-RANGE", format!("record {seq} lies outside its batch's times")));
        }
        visit(seq, &record);
        rest = &rest[bytes..];
    }
    if rest.is_empty() {
        Ok(())
    } else {
        Err(Fault::new("RECORD", format!("{} bytes behind the last record of the batch", rest.len())))
    }
}
