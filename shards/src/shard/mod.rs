//! One shard: lanes in, batches to the disk, acknowledgements out.
//!
//! A shard owns its lanes' ends, its segment, its chain and its watermarks, and shares nothing of
//! them. It is a plain state machine: the driver calls [`Shard::turn`] and hands it completions;
//! time comes from its [`Clock`], chance and slow work from outside ([`Request`], [`Supply`]).
//!
//! Watermarks, always: received >= written >= durable >= acknowledged.
//! A failed write or sync poisons the segment: nothing is acknowledged after it and nothing is
//! retried in place. Reopening the log decides what survived.

mod batcher;
mod space;
#[cfg(all(test, not(loom)))]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam_queue::SegQueue;

use crate::ack::{AckSpan, Gate, GateState, LaneEnd, Stopped};
use crate::aligned::AlignedBuf;
use crate::batch::Digest;
use crate::batch::{self, Incarnation};
use crate::clock::Clock;
use crate::io::{Commit, CommitFault, Completion, Disk, Durable, Io};
use crate::merkle::{self, Frontier};
use crate::record::{self, Kind};
use crate::segment::footer::{self, IndexEntry};
use crate::segment::header::{Header, Origin, Predecessor};
use crate::wal::chain::{Chain, Place};
use crate::wal::prepare::Prepared;
use crate::wal::recovery::{Active, Start};
use crate::wal::seal::SealJob;

use batcher::Building;

/// What a shard is told once.
#[derive(Debug, Clone)]
pub struct Config {
    /// Log, layout generation, shard.
    pub place: Place,
    /// Format block in bytes.
    pub block_bytes: u32,
    /// Length of new segments in bytes.
    pub segment_bytes: u64,
    /// The longest record in bytes, header and padding included.
    pub record_bytes_max: usize,
    /// Number of this opening of the log.
    pub epoch: u64,
    /// Top bits of its commits' tokens, so that several shards can share a ring.
    pub slot: u16,
    /// Size of a lane in bytes, for those that are on their way.
    pub lane_bytes: usize,
    /// How many commits may be in flight.
    pub depth_max: usize,
    /// A further commit is opened only when this much is gathered.
    pub pipeline_bytes: usize,
    /// How long without traffic before the last batches get their stamp, in nanoseconds.
    pub stamp_after_ns: u64,
}

/// Hashing that is put off until waiters are woken is done in pieces of so many batches.
const FRESH_MAX: usize = 16;

/// The durable part of a shard's chain, at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// What comes after it.
    pub chain: Chain,
    /// The tree of all batches in it.
    pub tree: Frontier,
    /// Least and greatest log time of the records that became durable since the head before this one.
    pub times: Option<(u64, u64)>,
    /// Index of the segment that is written to, or that was last.
    pub segment: u64,
}

/// The longest commit in bytes, unless it is one single record.
pub const COMMIT_BYTES_MAX: usize = 1 << 20;

/// What the slow work gives a shard.
pub struct Supply<F> {
    /// Segments that are ready.
    pub prepared: SegQueue<Prepared<F>>,
    /// Set by the slow work while the disk has no room for another segment.
    pub no_space: AtomicBool,
    /// Set by the slow work when it can put no further segment on record: none will ever come.
    pub broken: AtomicBool,
    /// Set by the shard while it has no segment to go on in: preparing then is not paced.
    pub hungry: AtomicBool,
}

impl<F> Default for Supply<F> {
    fn default() -> Self {
        Supply {
            prepared: SegQueue::new(),
            no_space: false.into(),
            broken: false.into(),
            hungry: false.into(),
        }
    }
}

/// What a shard wants from the slow work.
#[derive(Debug)]
pub enum Request {
    /// One more prepared segment with this index. Each is answered once, in order; without room on the
    /// disk the answer waits, and [`Supply::no_space`] says so.
    Prepare {
        /// Its index.
        index: u64,
    },
    /// The first batch of this segment is durable: that goes on record, at leisure.
    Begun {
        /// Its index.
        index: u64,
    },
    /// This segment is full and durable.
    Seal(Box<SealJob>),
}

/// Watermarks and counters for other threads to read.
#[derive(Debug, Default)]
pub struct Published {
    /// Records taken out of lanes.
    pub received: AtomicU64,
    /// Records submitted to the disk.
    pub written: AtomicU64,
    /// Records known durable.
    pub durable: AtomicU64,
    /// Records acknowledged (control records included).
    pub acknowledged: AtomicU64,
    /// Batches known durable, as a count from the beginning of the shard.
    pub durable_batches: AtomicU64,
    /// Commits that ended well.
    pub commits: AtomicU64,
    /// Bytes written by them.
    pub bytes: AtomicU64,
    /// Segments begun.
    pub rotations: AtomicU64,
    /// Times that a full segment had to wait for the next one.
    pub stalls: AtomicU64,
    /// Durable batches without records, written only to note the watermark.
    pub stamps: AtomicU64,
}

impl Published {
    fn add(counter: &AtomicU64, n: u64) {
        // One writer, so a plain read-modify-write without a locked instruction.
        counter.store(counter.load(Ordering::Relaxed) + n, Ordering::Relaxed);
    }
}

/// What a turn did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It moved records; call again soon.
    Busy,
    /// Nothing to do before this log time, unless a lane, a completion or a prepared segment comes.
    IdleUntil(Option<u64>),
    /// Closed, and all is durable: never call it again.
    Done,
}

struct LaneSlot {
    end: LaneEnd,
    /// Index of the next record that leaves the lane.
    next_index: u64,
    /// Records that left the lane and are not acknowledged.
    pending: u64,
    refused_reported: u64,
    to_wake: bool,
}

struct InFlight {
    token: u64,
    batches: u64,
    records: u64,
    bytes: usize,
    /// Index of the segment that it goes to.
    segment: u64,
    offset: u64,
    spans: Vec<(usize, AckSpan)>,
    digests: Vec<Digest>,
    /// Where the chain stands after it.
    end: Chain,
    times: Option<(u64, u64)>,
    stamp: bool,
    result: Option<Result<Durable, CommitFault>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    /// No more is taken; what was accepted becomes durable.
    Closing,
    /// The last words are in flight.
    Stamping,
    Done,
    Failed(Stopped),
}

/// One shard. See the module.
pub struct Shard<I: Io> {
    config: Config,
    clock: Clock,
    lanes: Vec<Option<LaneSlot>>,
    new_lanes: Arc<SegQueue<LaneEnd>>,
    gate: Arc<Gate>,
    supply: Arc<Supply<<I::Disk as Disk>::File>>,
    published: Arc<Published>,
    requests: Vec<Request>,

    state: State,
    chain: Chain,
    /// The end of the contiguous durable prefix.
    durable: Chain,
    /// The tree of the batches in it, but for `fresh`, the newest of them: hashing can wait.
    tree: Frontier,
    fresh: Vec<Digest>,
    /// Least and greatest log time of what became durable since the last [`Shard::head`].
    head_times: Option<(u64, u64)>,
    /// Index of the segment that is written to, or that was last.
    segment: u64,
    /// Whether a batch that holds records is not yet covered by a later `durable`.
    unstamped: bool,
    last_traffic: u64,
    /// The greatest log time of all records so far.
    log_time_max: u64,
    predecessor: Option<Predecessor>,
    active: Option<Active<<I::Disk as Disk>::File>>,
    /// A segment that was rotated out while batches of it were in flight, with the batch count at its end.
    closing: VecDeque<(u64, SealJob)>,
    spares: VecDeque<Prepared<<I::Disk as Disk>::File>>,
    preparing: usize,
    next_index: u64,
    incarnations: Box<dyn FnMut() -> Incarnation>,

    building: Option<Building>,
    in_flight: VecDeque<InFlight>,
    buffers: Vec<AlignedBuf>,
    span_buffers: Vec<Vec<(usize, AckSpan)>>,
    digest_buffers: Vec<Vec<Digest>>,
    next_token: u64,
    next_lane: usize,
    /// Control records that wait for their turn, with their log times.
    words: VecDeque<(u64, String)>,
    words_seq: u64,
    words_time: u64,
    stalled: bool,
    /// The commit that is being gathered takes no more before it is submitted.
    full: bool,
    gate_closed: bool,
    /// The disk has said no, and there is no spare for a recovery.
    scarce: bool,
    no_space_since: Option<u64>,
}

impl<I: Io> Shard<I> {
    /// A shard that goes on where recovery left it.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        config: Config,
        start: Start<<I::Disk as Disk>::File>,
        clock: Clock,
        new_lanes: Arc<SegQueue<LaneEnd>>,
        gate: Arc<Gate>,
        supply: Arc<Supply<<I::Disk as Disk>::File>>,
        published: Arc<Published>,
        incarnations: Box<dyn FnMut() -> Incarnation>,
    ) -> Shard<I> {
        let segment = start.segment();
        let mut requests: Vec<Request> =
            start.to_seal.into_iter().map(|job| Request::Seal(Box::new(job))).collect();
        requests.reserve(4);
        published.durable_batches.store(start.chain.number, Ordering::Relaxed);
        let mut shard = Shard {
            lanes: Vec::new(),
            new_lanes,
            gate_closed: gate.state() == GateState::NoSpace,
            gate,
            supply,
            published,
            requests,
            state: State::Running,
            durable: start.chain,
            tree: start.tree,
            fresh: Vec::with_capacity(FRESH_MAX),
            head_times: None,
            segment,
            chain: start.chain,
            // What recovery carried forward is durable, but no header on disk says so yet.
            unstamped: start.recovered.is_some(),
            last_traffic: clock.now(),
            log_time_max: start.log_time_max,
            predecessor: start.predecessor,
            active: start.active,
            closing: VecDeque::new(),
            spares: start.spares.into(),
            preparing: 0,
            next_index: start.next_index,
            incarnations,
            building: None,
            in_flight: VecDeque::new(),
            buffers: Vec::new(),
            span_buffers: Vec::new(),
            digest_buffers: Vec::new(),
            next_token: 0,
            next_lane: 0,
            words: VecDeque::new(),
            words_seq: 0,
            words_time: start.log_time_max,
            stalled: false,
            full: false,
            scarce: false,
            no_space_since: None,
            clock,
            config,
        };
        if let Some(recovered) = start.recovered {
            let (segment, end) =
                recovered.predecessor.map_or(("none".to_owned(), 0), |p| (p.index.to_string(), p.end));
            let line = format!(
                "recovered ended_segment={segment} end={end} reason={} watermark={} carried={}..{} cut_bytes={} into={}",
                recovered.label.replace(' ', "_"),
                recovered.watermark,
                recovered.carried.start,
                recovered.carried.end,
                recovered.cut_bytes,
                recovered.segment
            );
            shard.say_at(0, line);
        }
        shard
    }

    /// Writes a control record: one line about something that happened to the log itself.
    pub fn say(&mut self, line: String) {
        self.say_at(self.clock.now(), line);
    }

    /// Writes a control record about something that happened at this log time, or right after the last one if
    /// that was later.
    pub fn say_at(&mut self, log_time: u64, line: String) {
        self.words_time = log_time.max(self.words_time + 1);
        self.words.push_back((self.words_time, line));
    }

    /// What the slow work should do, since the last call.
    pub fn take_requests(&mut self) -> std::vec::Drain<'_, Request> {
        self.requests.drain(..)
    }

    /// Takes no more; what was accepted becomes durable, then [`Turn::Done`].
    pub fn close(&mut self) {
        if self.state == State::Running {
            // The order matters: gate, then new lanes, then a last drain (see `Gate::stop`).
            self.gate.stop(Stopped::Closed);
            self.state = State::Closing;
            self.last_traffic = self.clock.now();
        }
    }

    /// Whether it takes no more.
    pub fn is_closing(&self) -> bool {
        self.state != State::Running
    }

    /// Where its chain ends. Once it is [`Turn::Done`] without a failure, all of that is durable.
    pub fn chain(&self) -> Chain {
        self.chain
    }

    /// Why it stopped, if a write or a sync failed.
    pub fn failure(&self) -> Option<Stopped> {
        match self.state {
            State::Failed(why) => Some(why),
            _ => None,
        }
    }

    /// Whether something came that has not been taken. For the driver, before it sleeps.
    pub fn has_work(&mut self) -> bool {
        match self.state {
            State::Done => return false,
            // It takes nothing any more, and tells whoever comes why.
            State::Failed(_) => return !self.new_lanes.is_empty(),
            State::Running | State::Closing | State::Stamping => {}
        }
        // What a shard cannot take at the moment (no room, commits in flight) is no reason to stay awake.
        !self.supply.prepared.is_empty()
            || !self.new_lanes.is_empty()
            || (self.may_take() && !self.lanes_are_empty())
    }

    fn may_take(&self) -> bool {
        self.may_begin() && !self.full
    }

    fn lanes_are_empty(&mut self) -> bool {
        self.new_lanes.is_empty() && !self.lanes.iter_mut().flatten().any(|l| !l.end.consumer.is_empty())
    }

    /// One turn: lanes, space, commits. Then the driver submits, calls [`Shard::wake_waiters`], and reaps.
    pub fn turn(&mut self, io: &mut I) -> Turn {
        if let State::Failed(why) = self.state {
            self.stop_new_lanes(why);
            return if self.in_flight.is_empty() { Turn::Done } else { Turn::IdleUntil(None) };
        }
        if self.state == State::Done {
            return Turn::Done;
        }
        self.take_lanes();
        self.take_supply();
        self.watch_space();
        if self.failure().is_some() {
            return Turn::IdleUntil(None);
        }
        let mut busy = false;
        loop {
            busy |= self.gather();
            if !self.may_commit() || !self.commit(io) {
                break;
            }
            busy = true;
        }
        self.drop_finished_lanes();
        if self.state != State::Running {
            return self.close_turn(io, busy);
        }
        if busy {
            return Turn::Busy;
        }
        self.stamp_when_due(io)
    }

    /// Takes one completion of [`Io::turn`].
    pub fn complete(&mut self, completion: Completion) {
        if completion.buf.len() <= batcher::buffer_bytes(&self.config) && self.buffers.len() < 8 {
            self.buffers.push(completion.buf);
        }
        let slot = self.in_flight.iter_mut().find(|c| c.token == completion.token);
        slot.expect("a completion of a commit in flight").result = Some(completion.result);
        if let State::Failed(_) = self.state {
            self.in_flight.retain(|c| c.result.is_none());
            return;
        }
        while let Some(Some(_)) = self.in_flight.front().map(|c| c.result.as_ref()) {
            let commit = self.in_flight.pop_front().expect("just seen");
            match commit.result.as_ref().expect("just seen") {
                Ok(proof) => self.acknowledge(proof, &commit),
                Err(fault) => {
                    let fault = *fault;
                    self.poison(fault, commit.offset);
                    return;
                }
            }
            let InFlight { mut spans, mut digests, .. } = commit;
            spans.clear();
            self.span_buffers.push(spans);
            digests.clear();
            self.digest_buffers.push(digests);
        }
        // A later commit failed while an earlier one is still out: its segment is given up now.
        if let Some((fault, offset)) =
            self.in_flight.iter().find_map(|c| c.result.as_ref()?.as_ref().err().map(|f| (*f, c.offset)))
        {
            self.poison(fault, offset);
        }
    }

    fn acknowledge(&mut self, proof: &Durable, commit: &InFlight) {
        assert_eq!(self.durable.number + commit.batches, commit.end.number, "acknowledged out of order");
        self.durable = commit.end;
        self.fresh.extend_from_slice(&commit.digests);
        self.head_times = match (self.head_times, commit.times) {
            (Some((a, b)), Some((c, d))) => Some((a.min(c), b.max(d))),
            (one, other) => one.or(other),
        };
        let p = &self.published;
        Published::add(&p.durable, commit.records);
        Published::add(&p.commits, 1);
        Published::add(&p.stamps, u64::from(commit.stamp));
        Published::add(&p.bytes, commit.bytes as u64);
        p.durable_batches.store(self.durable.number, Ordering::Release);
        for (slot, span) in &commit.spans {
            let lane = self.lanes[*slot].as_mut().expect("a lane outlives its records");
            lane.end.acks.acknowledge(proof, std::slice::from_ref(span));
            lane.pending -= u64::from(span.count);
            lane.to_wake = true;
        }
        Published::add(&self.published.acknowledged, commit.records);
        self.unstamped = !commit.stamp || !self.in_flight.is_empty();
        if commit.offset == 0 {
            self.requests.push(Request::Begun { index: commit.segment });
        }
        while self.closing.front().is_some_and(|(end, _)| *end <= self.durable.number) {
            let (_, job) = self.closing.pop_front().expect("just seen");
            self.requests.push(Request::Seal(Box::new(job)));
        }
        self.check_watermarks();
    }

    /// Wakes whoever waits for what was acknowledged since the last call. Apart from
    /// [`Shard::complete`], so that the next commit can be submitted first.
    pub fn wake_waiters(&mut self) {
        for lane in self.lanes.iter_mut().flatten().filter(|l| l.to_wake) {
            lane.to_wake = false;
            lane.end.acks.wake();
        }
        if self.fresh.len() >= FRESH_MAX {
            self.grow_tree();
        }
    }

    fn grow_tree(&mut self) {
        for digest in self.fresh.drain(..) {
            self.tree.push(merkle::leaf(&digest));
        }
        assert_eq!(self.tree.size(), self.durable.number, "a leaf for each durable batch");
    }

    /// Where the durable part of its chain stands, and what became of it since the last call.
    pub fn head(&mut self) -> Head {
        self.grow_tree();
        let (times, segment) = (self.head_times.take(), self.segment);
        Head { chain: self.durable, tree: self.tree.clone(), times, segment }
    }

    /// The disk broke its word: nothing is acknowledged from here on, whatever it says later.
    fn poison(&mut self, fault: CommitFault, offset: u64) {
        let (op, errno) = match fault {
            CommitFault::Write { errno } => ("write", errno),
            CommitFault::ShortWrite { .. } => ("write (short)", libc::EIO),
            CommitFault::Sync { errno } => ("fdatasync", errno),
        };
        self.fail(Stopped::Poisoned { op, errno, offset });
    }

    /// Stops for good; every waiter learns why.
    pub fn fail(&mut self, why: Stopped) {
        self.state = State::Failed(why);
        self.gate.stop(why);
        self.building = None;
        self.in_flight.retain(|c| c.result.is_none());
        for lane in self.lanes.iter().flatten() {
            lane.end.acks.stop(why);
        }
        self.stop_new_lanes(why);
    }

    fn stop_new_lanes(&mut self, why: Stopped) {
        while let Some(end) = self.new_lanes.pop() {
            end.acks.stop(why);
        }
    }

    fn take_lanes(&mut self) {
        while let Some(end) = self.new_lanes.pop() {
            let slot = LaneSlot { end, next_index: 0, pending: 0, refused_reported: 0, to_wake: false };
            match self.lanes.iter().position(Option::is_none) {
                Some(free) => self.lanes[free] = Some(slot),
                None => self.lanes.push(Some(slot)),
            }
        }
    }

    fn take_supply(&mut self) {
        while let Some(prepared) = self.supply.prepared.pop() {
            self.preparing -= 1;
            // Names tell the order of segments, and recovery relies on it.
            assert!(self.spares.back().is_none_or(|last| last.index < prepared.index), "spares out of order");
            self.spares.push_back(prepared);
        }
    }

    /// A lane whose producer is gone, and whose last record is acknowledged, is forgotten.
    fn drop_finished_lanes(&mut self) {
        for slot in &mut self.lanes {
            let finished = slot.as_mut().is_some_and(|lane| {
                // The order matters: gone first, then empty, or a last record could slip through.
                lane.pending == 0 && lane.end.consumer.producer_gone() && lane.end.consumer.is_empty()
            });
            let heard = slot.as_ref().is_some_and(|lane| {
                lane.refused_reported == lane.end.refused.load(Ordering::Relaxed) && !lane.to_wake
            });
            if finished && heard {
                *slot = None;
            }
        }
    }

    /// Notes how many appends a producer was refused, once the pressure on its lane has ended.
    fn report_refusals(&mut self) -> bool {
        let mut said = Vec::new();
        // While the gate is shut, an empty lane is no end of the pressure, and room is scarce.
        if self.gate_closed {
            return false;
        }
        for lane in self.lanes.iter_mut().flatten() {
            let refused = lane.end.refused.load(Ordering::Relaxed);
            if refused > lane.refused_reported && lane.pending == 0 && lane.end.consumer.is_empty() {
                let line = format!(
                    "refused producer={} count={}",
                    lane.end.producer,
                    refused - lane.refused_reported
                );
                lane.refused_reported = refused;
                said.push(line);
            }
        }
        let any = !said.is_empty();
        said.into_iter().for_each(|line| self.say(line));
        any
    }

    /// Whether what is gathered may go to the disk now.
    fn may_commit(&self) -> bool {
        let Some(building) = &self.building else { return false };
        if building.is_empty() {
            return false;
        }
        let in_flight_bytes: usize = self.in_flight.iter().map(|c| c.bytes).sum();
        match self.in_flight.len() {
            0 => true,
            n if n >= self.config.depth_max => false,
            // So recovery finds no more in doubt than it can carry forward.
            _ if (in_flight_bytes + building.bytes()) as u64 > self.config.segment_bytes / 4 => false,
            _ => building.bytes() >= self.config.pipeline_bytes,
        }
    }

    /// Seals what is gathered and hands it to the disk.
    fn commit(&mut self, io: &mut I) -> bool {
        let Some(building) = self.building.take() else { return false };
        self.full = false;
        let pipelined = !self.in_flight.is_empty() || building.bytes() >= self.config.pipeline_bytes;
        let anchor = self.clock.anchor();
        let active = self.active.as_mut().expect("a building has its segment");
        let offset = active.offset;
        let durable = self.durable.number;
        let sealed =
            building.seal(&self.config, active, &mut self.chain, durable, anchor, &mut || io.nudge());
        active.offset += sealed.bytes as u64;
        self.log_time_max = sealed.times.map_or(0, |(_, greatest)| greatest).max(self.log_time_max);
        let segment = active.header.index;
        let token = (u64::from(self.config.slot) << 48) | self.next_token;
        self.next_token = (self.next_token + 1) & ((1 << 48) - 1);
        let file = active.file.clone();
        Published::add(&self.published.written, sealed.records);
        self.in_flight.push_back(InFlight {
            token,
            batches: sealed.batches,
            records: sealed.records,
            bytes: sealed.bytes,
            segment,
            offset,
            spans: sealed.spans,
            digests: sealed.digests,
            end: self.chain,
            times: sealed.times,
            stamp: sealed.records == 0,
            result: None,
        });
        self.last_traffic = self.clock.now();
        io.append(Commit { token, file, offset, bytes: sealed.bytes, buf: sealed.buf, pipelined });
        true
    }

    /// Writes an empty batch, so that the last acknowledged one is covered by a watermark on disk.
    fn stamp(&mut self, io: &mut I) -> bool {
        if self.building.is_none() {
            self.building = self.begin_building(0);
        }
        let Some(building) = &mut self.building else { return false };
        building.begin_batch();
        self.commit(io)
    }

    fn stamp_when_due(&mut self, io: &mut I) -> Turn {
        if self.report_refusals() {
            return Turn::Busy;
        }
        if !self.unstamped || !self.in_flight.is_empty() {
            return Turn::IdleUntil(None);
        }
        let due = self.last_traffic + self.config.stamp_after_ns;
        if self.clock.now() < due {
            return Turn::IdleUntil(Some(due));
        }
        if self.stamp(io) { Turn::Busy } else { Turn::IdleUntil(None) }
    }

    fn close_turn(&mut self, io: &mut I, busy: bool) -> Turn {
        let drained = !busy
            && self.in_flight.is_empty()
            && self.building.is_none()
            && self.words.is_empty()
            && self.lanes_are_empty();
        if busy {
            return Turn::Busy;
        }
        if !drained {
            // Nothing moved and nothing is in flight: what is left finds no room in any segment.
            let stuck = self.in_flight.is_empty() && self.building.as_ref().is_none_or(Building::is_empty);
            return if stuck { self.close_without_room() } else { Turn::IdleUntil(None) };
        }
        if self.state == State::Closing {
            self.state = State::Stamping;
            self.report_refusals();
            self.say(format!("closed epoch={}", self.config.epoch));
            return Turn::Busy;
        }
        if self.unstamped && self.active.is_some() && self.stamp(io) {
            return Turn::Busy;
        }
        for lane in self.lanes.iter().flatten() {
            lane.end.acks.stop(Stopped::Closed);
        }
        if let Some(active) = self.active.take() {
            self.requests.push(Request::Seal(Box::new(seal_job(active))));
        }
        self.state = State::Done;
        Turn::Done
    }

    /// The last records find no room: a segment is coming, or none can.
    fn close_without_room(&mut self) -> Turn {
        let full = self.supply.no_space.load(Ordering::Acquire);
        if self.lanes_are_empty() && (full || self.preparing == 0) {
            // Only words about the log itself are left, and nobody waits for them.
            self.words.clear();
            self.building = None;
            return Turn::Busy;
        }
        if full || self.supply.broken.load(Ordering::Acquire) {
            // What is in the lanes cannot become durable any more.
            self.fail(Stopped::Poisoned { op: "prepare", errno: libc::ENOSPC, offset: 0 });
            return Turn::Done;
        }
        if self.preparing == 0 {
            // Records longer than a lane are not in the promise of space; what was accepted gets its place all
            // the same.
            self.request_segment();
        }
        Turn::IdleUntil(None)
    }

    fn check_watermarks(&self) {
        let p = &self.published;
        let [received, written, durable, acknowledged] =
            [&p.received, &p.written, &p.durable, &p.acknowledged].map(|c| c.load(Ordering::Relaxed));
        assert!(
            received >= written && written >= durable && durable >= acknowledged,
            "watermarks out of order"
        );
    }

    /// Spares that are left, for `Config`-driven cleaning up at close.
    pub fn take_spares(&mut self) -> Vec<Prepared<<I::Disk as Disk>::File>> {
        self.take_supply();
        self.spares.drain(..).collect()
    }

    /// The gate's state as producers see it.
    pub fn gate_state(&self) -> GateState {
        self.gate.state()
    }
}

/// Hands completions to the shards whose slots their tokens carry. A failed sync may have dropped what
/// an earlier commit wrote, and that one's own sync then finds nothing to do and succeeds; so failures
/// are heard of first.
pub fn deliver(done: &mut Vec<Completion>, mut give: impl FnMut(u16, Completion)) {
    done.sort_by_key(|completion| completion.result.is_ok());
    for completion in done.drain(..) {
        give((completion.token >> 48) as u16, completion);
    }
}

/// What sealing a segment needs to know of it.
pub fn seal_job<F>(active: Active<F>) -> SealJob {
    SealJob { end: active.offset, cut_end: active.offset, header: active.header, batches: active.batches }
}
