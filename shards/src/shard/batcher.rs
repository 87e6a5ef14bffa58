//! Gathers records out of the lanes into batches, ready for one commit.
//!
//! A batch takes records until its body reaches the target; a larger record goes alone. A commit
//! is one batch or several, one after the other in one buffer, and, when a segment begins, that
//! segment's header before them.

use super::*;

/// The longest commit, unless it is one single record: so recovery finds room for what is in doubt.
fn commit_bytes_max(config: &Config) -> usize {
    COMMIT_BYTES_MAX.min(config.segment_bytes as usize / 8)
}

/// Bytes of the buffers that are kept for reuse.
pub(super) fn buffer_bytes(config: &Config) -> usize {
    // The header's block, and a last batch that was begun just below the limit.
    commit_bytes_max(config) + 2 * batch::BODY_BYTES_TARGET + config.block_bytes as usize
}

/// A commit that is being gathered.
pub(super) struct Building {
    buf: AlignedBuf,
    block_bytes: usize,
    seal: record::Seal,
    /// Where the batches begin: behind the segment's header, if it goes along.
    header_bytes: usize,
    batches: Vec<Part>,
    /// Sequence of the next record.
    next_seq: u64,
    spans: Vec<(usize, AckSpan)>,
    digests: Vec<Digest>,
    records: u64,
}

/// One batch of a commit.
struct Part {
    /// Where its header goes in the buffer.
    at: usize,
    body_bytes: usize,
    first_seq: u64,
    count: u32,
    time_min: u64,
    time_max: u64,
    /// Its spans begin here.
    first_span: usize,
}

/// A commit that is ready for the disk.
pub(super) struct SealedCommit {
    pub(super) buf: AlignedBuf,
    pub(super) bytes: usize,
    pub(super) batches: u64,
    pub(super) records: u64,
    pub(super) spans: Vec<(usize, AckSpan)>,
    pub(super) digests: Vec<Digest>,
    /// Least and greatest log time.
    pub(super) times: Option<(u64, u64)>,
}

impl Building {
    pub(super) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// Bytes that it takes on disk.
    pub(super) fn bytes(&self) -> usize {
        self.batches.last().map_or(self.header_bytes, |part| part.at + self.placed(part.body_bytes))
    }

    fn placed(&self, body_bytes: usize) -> usize {
        batch::placed_bytes(body_bytes, self.block_bytes as u32)
    }

    pub(super) fn begin_batch(&mut self) {
        self.batches.push(Part {
            at: self.bytes(),
            body_bytes: 0,
            first_seq: self.next_seq,
            count: 0,
            time_min: 0,
            time_max: 0,
            first_span: self.spans.len(),
        });
    }

    /// What the commit would take with one more record of this length.
    fn bytes_with(&self, record_bytes: usize) -> usize {
        match self.batches.last() {
            Some(part) if part.takes(record_bytes) => part.at + self.placed(part.body_bytes + record_bytes),
            _ => self.bytes() + self.placed(record_bytes),
        }
    }

    /// Batches that it would have with one more record of this length.
    fn batches_with(&self, record_bytes: usize) -> u64 {
        let joins = self.batches.last().is_some_and(|part| part.takes(record_bytes));
        self.batches.len() as u64 + u64::from(!joins)
    }

    /// Copies one record in, and puts its checksum.
    fn push(&mut self, bytes: &[u8], log_time: u64) {
        if !self.batches.last().is_some_and(|part| part.takes(bytes.len())) {
            self.begin_batch();
        }
        let seq = self.next_seq;
        let part = self.batches.last_mut().expect("just made");
        let at = part.at + batch::HEADER_BYTES + part.body_bytes;
        let end = at + bytes.len();
        if self.buf.len() < end + batch::DIGEST_BYTES + self.block_bytes {
            let mut larger = AlignedBuf::zeroed(end + batch::DIGEST_BYTES + self.block_bytes);
            larger[..at].copy_from_slice(&self.buf[..at]);
            self.buf = larger;
        }
        let into = &mut self.buf[at..end];
        into.copy_from_slice(bytes);
        self.seal.seal(seq, into);
        part.body_bytes += bytes.len();
        part.time_min = if part.count == 0 { log_time } else { part.time_min.min(log_time) };
        part.time_max = part.time_max.max(log_time);
        part.count += 1;
        self.next_seq += 1;
        self.records += 1;
    }

    /// Notes that the record just pushed is the lane's record `index`.
    fn owe(&mut self, lane: usize, index: u64, shard: u32) {
        let first_span = self.batches.last().expect("a record was pushed").first_span;
        let seq = self.next_seq - 1;
        match self.spans[first_span..].last_mut() {
            // A control record may have come between two visits to the lane.
            Some((l, span)) if *l == lane && span.first_seq + u64::from(span.count) == seq => span.count += 1,
            _ => self.spans.push((
                lane,
                AckSpan { first_index: index, count: 1, shard, first_seq: seq, batch: 0, digest: [0; 32] },
            )),
        }
    }

    /// Writes headers and digests, advances the chain, and adds to the segment's index.
    pub(super) fn seal<F>(
        mut self,
        config: &Config,
        active: &mut Active<F>,
        chain: &mut Chain,
        durable: u64,
        anchor: crate::clock::Anchor,
        nudge: &mut dyn FnMut(),
    ) -> SealedCommit {
        let bytes = self.bytes();
        if self.header_bytes > 0 {
            active.header.write(&mut self.buf[..self.header_bytes]);
        }
        let parts = std::mem::take(&mut self.batches);
        for (i, part) in parts.iter().enumerate() {
            let offset = active.offset + part.at as u64;
            let header = batch::Header {
                log: config.place.log,
                incarnation: active.header.incarnation,
                generation: config.place.generation,
                shard: config.place.shard,
                number: chain.number,
                first_seq: part.first_seq,
                count: part.count,
                body_bytes: part.body_bytes as u32,
                time_min: part.time_min,
                time_max: part.time_max,
                durable,
                offset,
                anchor,
                previous: chain.previous,
            };
            assert_eq!(part.first_seq, chain.seq, "sequences are contiguous");
            let end = part.at + batch::placed_bytes(part.body_bytes, self.block_bytes as u32);
            let digest = batch::seal(&header, &mut self.buf[part.at..end]);
            let last_span = parts.get(i + 1).map_or(self.spans.len(), |next| next.first_span);
            for (_, span) in &mut self.spans[part.first_span..last_span] {
                span.batch = chain.number;
                span.digest = digest;
            }
            active.batches.push(IndexEntry::new(offset, &header, digest));
            self.digests.push(digest);
            chain.number += 1;
            chain.seq += u64::from(part.count);
            chain.previous = digest;
            // Hashing 64 KiB takes tens of microseconds, and the sync of a commit in flight may be
            // waiting for this thread.
            nudge();
        }
        let timed = || parts.iter().filter(|part| part.count > 0);
        let least = timed().map(|part| part.time_min).min();
        SealedCommit {
            times: least.zip(timed().map(|part| part.time_max).max()),
            bytes,
            batches: parts.len() as u64,
            records: self.records,
            spans: self.spans,
            digests: self.digests,
            buf: self.buf,
        }
    }
}

impl Part {
    fn takes(&self, record_bytes: usize) -> bool {
        self.count == 0 || self.body_bytes + record_bytes <= batch::BODY_BYTES_TARGET
    }
}

impl<I: Io> Shard<I> {
    /// Moves what is in the lanes into the commit that is being gathered; `true` if anything moved.
    pub(super) fn gather(&mut self) -> bool {
        let mut moved = self.gather_words();
        self.full = false;
        let lanes = self.lanes.len();
        for turn in 0..lanes {
            // Round robin, so that no producer starves the others when a commit is full.
            let slot = (self.next_lane + turn) % lanes;
            if self.lanes[slot].is_none() {
                continue;
            }
            let (any, full) = self.gather_lane(slot);
            moved |= any;
            if full {
                // The next commit begins with the lane after this one, unless this one got nothing.
                self.next_lane = if any { slot + 1 } else { slot };
                self.full = true;
                break;
            }
        }
        moved
    }

    fn gather_words(&mut self) -> bool {
        let mut moved = false;
        if self.words_wait() {
            return false;
        }
        while let Some((_, line)) = self.words.front() {
            let bytes = record::encoded_bytes(0, line.len());
            if !self.room_for(bytes) {
                break;
            }
            let (log_time, line) = self.words.pop_front().expect("just seen");
            let header = record::Header {
                payload_bytes: line.len() as u32,
                key_bytes: 0,
                kind: Kind::Control,
                flags: 0,
                producer: 0,
                producer_seq: self.words_seq,
                log_time,
            };
            self.words_seq += 1;
            let mut encoded = vec![0; bytes];
            record::write(&header, &[], line.as_bytes(), &mut encoded);
            self.building.as_mut().expect("there is room").push(&encoded, header.log_time);
            Published::add(&self.published.received, 1);
            moved = true;
        }
        moved
    }

    /// Gives whether anything moved, and whether the commit is full.
    fn gather_lane(&mut self, slot: usize) -> (bool, bool) {
        let mut moved = 0;
        let mut full = false;
        loop {
            let lane = self.lanes[slot].as_mut().expect("checked by the caller");
            let Some(bytes) = lane.end.consumer.peek().map(<[u8]>::len) else { break };
            if !self.room_for(bytes) {
                full = true;
                break;
            }
            let lane = self.lanes[slot].as_mut().expect("still there");
            let building = self.building.as_mut().expect("there is room");
            let record = lane.end.consumer.peek().expect("just seen");
            let log_time = u64::from_le_bytes(record[24..32].try_into().expect("8 bytes"));
            building.push(record, log_time);
            building.owe(slot, lane.next_index, self.config.place.shard);
            lane.end.consumer.pop();
            lane.next_index += 1;
            lane.pending += 1;
            moved += 1;
        }
        if moved > 0 {
            self.lanes[slot].as_mut().expect("still there").end.consumer.release();
            Published::add(&self.published.received, moved);
        }
        (moved > 0, full)
    }

    /// Makes sure that a record of this length has a place in the commit that is being gathered,
    /// beginning one, and a segment for it, if need be.
    fn room_for(&mut self, record_bytes: usize) -> bool {
        if self.building.is_none() {
            self.building = self.begin_building(record_bytes);
        }
        let (Some(building), Some(active)) = (&self.building, &self.active) else { return false };
        let bytes = building.bytes_with(record_bytes);
        let alone = building.is_empty();
        let batches = active.batches.len() as u64 + building.batches_with(record_bytes);
        (alone || bytes <= commit_bytes_max(&self.config))
            && active.offset + bytes as u64 + footer::placed_bytes(batches, self.config.block_bytes)
                <= active.bytes
    }

    /// Whether a commit can be begun at all.
    pub(super) fn may_begin(&self) -> bool {
        self.building.is_some() || self.active.is_some() || self.may_rotate()
    }

    /// Begins a commit; in the next segment if this one has no room for `record_bytes`.
    pub(super) fn begin_building(&mut self, record_bytes: usize) -> Option<Building> {
        let block = self.config.block_bytes;
        let placed = batch::placed_bytes(record_bytes, block) as u64;
        let fits = self.active.as_ref().is_some_and(|a| {
            a.offset + placed + footer::placed_bytes(a.batches.len() as u64 + 1, block) <= a.bytes
        });
        if !fits && !self.rotate() {
            return None;
        }
        let active = self.active.as_ref().expect("there is one now");
        // A record that no segment is long enough for would stand in its lane for ever.
        assert!(
            u64::from(block) + placed + footer::placed_bytes(1, block) <= active.bytes,
            "a segment of {} bytes is too short for a record of {record_bytes}",
            active.bytes
        );
        let header_bytes = if active.offset == 0 { block as usize } else { 0 };
        let buf = self.buffers.pop().unwrap_or_else(|| AlignedBuf::zeroed(buffer_bytes(&self.config)));
        Some(Building {
            buf,
            block_bytes: block as usize,
            seal: record::Seal::new(&active.header.incarnation),
            header_bytes,
            batches: Vec::new(),
            next_seq: self.chain.seq,
            spans: self.span_buffers.pop().unwrap_or_default(),
            digests: self.digest_buffers.pop().unwrap_or_default(),
            records: 0,
        })
    }

    /// Words about the log itself do not take the last segment of a full disk; events that were accepted do.
    pub(super) fn words_wait(&self) -> bool {
        self.scarce && self.active.is_none() && self.state == State::Running
    }

    fn may_rotate(&self) -> bool {
        // Batches in doubt may span two segments, and no more.
        let current = self.active.as_ref().map(|a| a.header.index);
        // The last spare is a recovery's, once the disk has no room for another. After a close there is none.
        let kept = self.state == State::Running && self.active.is_some();
        let reserve = usize::from(kept && self.supply.no_space.load(Ordering::Acquire));
        self.spares.len() > reserve && self.in_flight.iter().all(|c| Some(c.segment) == current)
    }

    /// Goes on in the next prepared segment. Its header travels with its first batch, in one write.
    fn rotate(&mut self) -> bool {
        if !self.may_rotate() {
            if !self.stalled {
                self.stalled = true;
                Published::add(&self.published.stalls, 1);
            }
            return false;
        }
        self.stalled = false;
        let spare = self.spares.pop_front().expect("just seen");
        assert!(self.active.as_ref().is_none_or(|a| a.header.index < spare.index), "segments out of order");
        if let Some(old) = self.active.take() {
            self.predecessor = Some(Predecessor {
                index: old.header.index,
                incarnation: old.header.incarnation,
                end: old.offset,
            });
            let end_batch = self.chain.number;
            if end_batch <= self.durable.number {
                self.requests.push(Request::Seal(Box::new(seal_job(old))));
            } else {
                self.closing.push_back((end_batch, seal_job(old)));
            }
        }
        let anchor = self.clock.anchor();
        // Of all batches so far: those in flight are named by the next ones as if they were durable, too.
        self.grow_tree();
        let mut tree = self.tree.clone();
        self.in_flight.iter().flat_map(|c| &c.digests).for_each(|digest| tree.push(merkle::leaf(digest)));
        let header = Header {
            log: self.config.place.log,
            incarnation: (self.incarnations)(),
            generation: self.config.place.generation,
            shard: self.config.place.shard,
            index: spare.index,
            segment_bytes: spare.bytes,
            block_bytes: self.config.block_bytes,
            origin: Origin::Rotation,
            first_batch: self.chain.number,
            first_seq: self.chain.seq,
            durable: self.durable.number,
            predecessor: self.predecessor,
            previous: self.chain.previous,
            epoch: self.config.epoch,
            wall_ns: anchor.wall_ns,
            // Producers whose clock stood still go ahead of it, and who opens the log next may look no further back.
            log_time: anchor.log_time.max(self.log_time_max),
            carried: Vec::new(),
            tree,
        };
        Published::add(&self.published.rotations, 1);
        self.segment = header.index;
        let room = (spare.bytes / u64::from(self.config.block_bytes)).min(4096) as usize;
        self.active = Some(Active {
            file: spare.file,
            header,
            offset: 0,
            batches: Vec::with_capacity(room),
            bytes: spare.bytes,
        });
        true
    }
}
