//! All shards' records in one order: by log time, then shard, then sequence.
//!
//! One producer's log times rise strictly over all its shards, so its records come out in the
//! order in which it appended them. Within a shard the records of several producers may stand out
//! of order by as much as they waited in their lanes. So a record is given out once its time is
//! below everything that has not been read yet; that much is held in memory and no more.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::OwnedRecord;
use super::shard::ShardReader;
use crate::error::ReadError;

/// Records in time order; of a shard that was chosen, in order of its sequence. Ends after the first error.
pub struct Replay {
    /// One shard by itself has an order of its own.
    alone: Option<ShardRecords>,
    shards: Vec<ShardReader>,
    /// What was read and must wait for something earlier, by time, shard and sequence.
    waiting: BinaryHeap<Reverse<(u64, u32, u64, usize)>>,
    /// The records themselves; moving them about in the heap would be dear.
    records: Vec<Option<OwnedRecord>>,
    free: Vec<usize>,
    /// The earliest unread record's time, and the shard that it is in.
    unread: Option<(u64, usize)>,
    failed: bool,
}

impl Replay {
    pub(crate) fn new(shards: Vec<ShardReader>) -> Replay {
        let unread = earliest_unread(&shards);
        Replay {
            alone: None,
            shards,
            waiting: BinaryHeap::new(),
            records: Vec::new(),
            free: Vec::new(),
            unread,
            failed: false,
        }
    }

    pub(crate) fn of_one(shard: Option<ShardReader>) -> Replay {
        Replay { alone: shard.map(ShardRecords::new), ..Replay::new(Vec::new()) }
    }

    /// How many records are held because something earlier may still come.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }
}

fn earliest_unread(shards: &[ShardReader]) -> Option<(u64, usize)> {
    shards.iter().enumerate().filter_map(|(i, s)| Some((s.time_min()?, i))).min()
}

impl Iterator for Replay {
    type Item = Result<OwnedRecord, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(alone) = &mut self.alone {
            return alone.next();
        }
        while !self.failed {
            let unread = self.unread;
            let first = self.waiting.peek().map(|Reverse((time, ..))| *time);
            // Not at equality: the order among equals is by shard and sequence.
            let ready = first.is_some_and(|time| unread.is_none_or(|(least, _)| time < least));
            if ready {
                let Reverse((.., slot)) = self.waiting.pop()?;
                self.free.push(slot);
                return self.records[slot].take().map(Ok);
            }
            let (_, i) = unread?;
            let (waiting, records, free) = (&mut self.waiting, &mut self.records, &mut self.free);
            let read = self.shards[i].read_batch(&mut |record| {
                let key = (record.log_time, record.shard, record.seq);
                let slot = free.pop().unwrap_or(records.len());
                if slot == records.len() {
                    records.push(None);
                }
                records[slot] = Some(record);
                waiting.push(Reverse((key.0, key.1, key.2, slot)));
            });
            if let Err(error) = read {
                self.failed = true;
                return Some(Err(error));
            }
            self.unread = earliest_unread(&self.shards);
        }
        None
    }
}

/// One shard's records in order of their sequence. Ends after the first error.
pub struct ShardRecords {
    shard: ShardReader,
    batch: VecDeque<OwnedRecord>,
    failed: bool,
}

impl ShardRecords {
    pub(crate) fn new(shard: ShardReader) -> ShardRecords {
        ShardRecords { shard, batch: VecDeque::new(), failed: false }
    }
}

impl Iterator for ShardRecords {
    type Item = Result<OwnedRecord, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(record) = self.batch.pop_front() {
                return Some(Ok(record));
            }
            if self.failed {
                return None;
            }
            let batch = &mut self.batch;
            match self.shard.read_batch(&mut |record| batch.push_back(record)) {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => {
                    self.failed = true;
                    batch.clear();
                    return Some(Err(error));
                }
            }
        }
    }
}
