//! One opening of the log: real shards and real producers, turned by hand in an order that the
//! seed chooses.
//!
//! It plays the driver's loop and the slow worker of the engine, on one thread. What a producer
//! is told goes to the oracle at once, so that a death one step later finds it responsible.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use hanaper_ingest::{AppendError, Backpressure, Intake, Producer, Ticket, WaitError, WaitFor, Waiter};
use hanaper_shards::ack::{GateState, Stopped};
use hanaper_shards::clock::{Clock, ManualClock};
use hanaper_shards::io::sim::SimFile;
use hanaper_shards::io::{Completion, Disk, Io, Wait};
use hanaper_shards::journal::Journal;
use hanaper_shards::manifest::{LogLine, ShardLine, ShardManifest};
use hanaper_shards::shard::{self, Request, Shard, Supply, Turn};
use hanaper_shards::wal::{prepare, recovery, seal};

use crate::model::payload;
use crate::sim::history::History;
use crate::sim::mutant::{TestDisk, TestIo};
use crate::sim::world;

/// Idle time after which a shard stamps, and a little more.
const PAST_STAMP_NS: u64 = 12_000_000;

/// What the slow work knows of one shard.
pub struct Slow {
    pub(crate) shard: u32,
    pub(crate) manifest: ShardManifest<TestDisk>,
    pub(crate) supply: Arc<Supply<SimFile>>,
    /// A seal failed: later ones must not overtake it.
    pub(crate) unsealable: bool,
}

/// One producer, and what it still waits for.
struct Writer {
    producer: Option<Producer>,
    waiter: Waiter,
    id: u32,
    next_seq: u64,
    /// By shard.
    streams: Vec<Option<usize>>,
    waiting: Vec<VecDeque<(u64, Ticket)>>,
}

/// One opening of the log.
pub struct Life {
    pub(crate) disk: TestDisk,
    pub(crate) io: TestIo,
    pub(crate) shards: Vec<Shard<TestIo>>,
    pub(crate) slow: Vec<Slow>,
    pub(crate) prepares: VecDeque<(usize, u64)>,
    pub(crate) seals: VecDeque<(usize, Request)>,
    pub(crate) intake: Arc<Intake>,
    pub(crate) clock: Clock,
    pub(crate) hands: ManualClock,
    pub(crate) journal: Journal<TestDisk>,
    pub(crate) epoch: u64,
    pub(crate) failed: Vec<Option<Stopped>>,
    writers: Vec<Writer>,
    done: Vec<Completion>,
    /// One of so many steps serves the slow work.
    laziness: u64,
    payload_bytes_typical: u64,
}

/// Why a life went no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The machine has stopped.
    Down,
    /// A shard was poisoned.
    Failed,
    /// All steps were made.
    Steps,
}

/// The parts of a [`Life`] that opening makes.
pub(crate) struct Parts {
    pub(crate) disk: TestDisk,
    pub(crate) io: TestIo,
    pub(crate) shards: Vec<Shard<TestIo>>,
    pub(crate) slow: Vec<Slow>,
    pub(crate) intake: Arc<Intake>,
    pub(crate) clock: Clock,
    pub(crate) hands: ManualClock,
    pub(crate) journal: Journal<TestDisk>,
    pub(crate) epoch: u64,
}

impl Life {
    pub(crate) fn new(parts: Parts, h: &mut History) -> Life {
        let Parts { disk, io, shards, slow, intake, clock, hands, journal, epoch } = parts;
        Life {
            failed: vec![None; shards.len()],
            disk,
            io,
            shards,
            slow,
            prepares: VecDeque::new(),
            seals: VecDeque::new(),
            intake,
            clock,
            hands,
            journal,
            epoch,
            writers: Vec::new(),
            done: Vec::new(),
            laziness: h.rng.pick(&[2, 4, 8, 30]),
            payload_bytes_typical: h.rng.pick(&[24, 200, 900]),
        }
    }

    /// Makes so many steps, unless something ends it before.
    pub fn live(&mut self, h: &mut History, steps: u64) -> Result<Ended, String> {
        for _ in 0..steps {
            self.step(h)?;
            if h.world.is_down() {
                return Ok(Ended::Down);
            }
            if self.failed.iter().any(Option::is_some) {
                return Ok(Ended::Failed);
            }
        }
        Ok(Ended::Steps)
    }

    fn step(&mut self, h: &mut History) -> Result<(), String> {
        if h.rng.one_in(self.laziness) {
            self.serve(h)?;
            return Ok(());
        }
        match h.rng.below(16) {
            0..=5 => {
                let count = h.rng.between(1, 6);
                self.append_some(h, count);
                Ok(())
            }
            6..=12 => self.round(h),
            13 => {
                self.hands.advance(h.rng.below(4_000_000));
                Ok(())
            }
            14 => {
                self.hands.advance(PAST_STAMP_NS);
                if h.rng.one_in(8) {
                    // A wall clock that jumps moves nothing that matters.
                    self.hands.set_wall_offset(h.rng.any() as i64 >> 20);
                }
                self.round(h)
            }
            _ => {
                self.come_and_go(h);
                Ok(())
            }
        }
    }

    fn come_and_go(&mut self, h: &mut History) {
        let living = self.writers.iter().filter(|w| w.producer.is_some()).count() as u64;
        if living >= h.settings.producers_max || (living > 1 && h.rng.one_in(3)) {
            let leaver = h.rng.below(self.writers.len() as u64) as usize;
            self.writers[leaver].producer = None;
        }
        if living < h.settings.producers_max {
            self.new_writer(h);
        }
    }

    fn new_writer(&mut self, h: &mut History) {
        let Ok(producer) = self.intake.producer() else { return };
        let shards = h.settings.shards as usize;
        self.writers.push(Writer {
            waiter: producer.waiter(),
            id: producer.id(),
            producer: Some(producer),
            next_seq: 0,
            streams: vec![None; shards],
            waiting: vec![VecDeque::new(); shards],
        });
    }

    /// Appends some records from one producer. Gives how many were accepted.
    pub fn append_some(&mut self, h: &mut History, count: u64) -> u64 {
        if !self.writers.iter().any(|w| w.producer.is_some()) {
            self.new_writer(h);
        }
        let living: Vec<usize> =
            (0..self.writers.len()).filter(|&i| self.writers[i].producer.is_some()).collect();
        let Some(&chosen) = living.get(h.rng.below(living.len().max(1) as u64) as usize) else { return 0 };
        let writer = &mut self.writers[chosen];
        let producer = writer.producer.as_mut().expect("one of the living");
        let mut accepted = 0;
        for _ in 0..count {
            let id = h.model.next_id();
            let mut key = id.to_le_bytes().to_vec();
            let longer = if h.rng.one_in(50) { 1016 } else { h.rng.below(24) };
            key.extend((0..longer).map(|i| i as u8));
            let bytes = match h.rng.below(40) {
                0 => h.settings.payload_bytes_max as u64,
                1 => h.rng.below(h.settings.payload_bytes_max as u64),
                2 => 0,
                _ => h.rng.below(2 * self.payload_bytes_typical),
            } as usize;
            let bytes = bytes.min(h.settings.payload_bytes_max);
            match producer.append(&key, &payload(id, bytes)) {
                Ok(ticket) => {
                    let at = ticket.lane() as usize;
                    let base = self.clock.now();
                    let stream = *writer.streams[at].get_or_insert_with(|| h.model.stream(at, base));
                    h.model.was_written(stream, writer.id, writer.next_seq, key, bytes);
                    writer.next_seq += 1;
                    writer.waiting[at].push_back((id, ticket));
                    accepted += 1;
                }
                Err(error) => {
                    h.tally.no_space += u64::from(error == AppendError::Backpressure(Backpressure::NoSpace));
                    h.model.was_refused();
                }
            }
        }
        accepted
    }

    /// One round of the driver's loop.
    pub fn round(&mut self, h: &mut History) -> Result<(), String> {
        for slot in 0..self.shards.len() {
            self.turn(slot);
        }
        let wait = if h.rng.one_in(6) { Wait::AtMost(Duration::from_millis(1)) } else { Wait::No };
        self.reap(h, wait)
    }

    fn turn(&mut self, slot: usize) -> Turn {
        let turn = self.shards[slot].turn(&mut self.io);
        for request in self.shards[slot].take_requests() {
            match request {
                Request::Prepare { index } => self.prepares.push_back((slot, index)),
                seal => self.seals.push_back((slot, seal)),
            }
        }
        turn
    }

    fn reap(&mut self, h: &mut History, wait: Wait) -> Result<(), String> {
        let mut done = std::mem::take(&mut self.done);
        if let Err(error) = self.io.turn(wait, &mut done) {
            return if h.world.is_down() { Ok(()) } else { Err(format!("the ring is broken: {error}")) };
        }
        let mut told = Ok(());
        shard::deliver(&mut done, |slot, completion| {
            let slot = usize::from(slot);
            self.shards[slot].complete(completion);
            if told.is_ok() {
                told = self.hear(h, slot);
            }
        });
        told?;
        self.done = done;
        self.shards.iter_mut().for_each(Shard::wake_waiters);
        Ok(())
    }

    /// What there is to hear after a completion.
    fn hear(&mut self, h: &mut History, slot: usize) -> Result<(), String> {
        self.listen(h, slot)?;
        if self.failed[slot].is_none()
            && let Some(why) = self.shards[slot].failure()
        {
            self.failed[slot] = Some(why);
            self.expect_told(h, slot, why)?;
        }
        Ok(())
    }

    /// What producers hear of by now.
    fn listen(&mut self, h: &mut History, slot: usize) -> Result<(), String> {
        for writer in &mut self.writers {
            while let Some(&(id, ticket)) = writer.waiting[slot].front() {
                if !writer.waiter.is_durable(ticket) {
                    break;
                }
                if let Some(why) = self.failed[slot] {
                    return Err(format!("record {id} was acknowledged after the shard had stopped: {why}"));
                }
                match writer.waiter.wait(ticket, WaitFor::at_most(Duration::ZERO)) {
                    Ok(receipt) => h.model.was_acked(id, receipt)?,
                    Err(error) => return Err(format!("record {id} is durable, and its receipt is: {error}")),
                }
                writer.waiting[slot].pop_front();
            }
        }
        Ok(())
    }

    /// After a failure, whoever waits must learn it.
    fn expect_told(&mut self, h: &mut History, slot: usize, why: Stopped) -> Result<(), String> {
        // Lanes that the shard had not taken yet hear of it at its next turn.
        self.turn(slot);
        h.tally.poisoned += 1;
        for writer in &mut self.writers {
            for &(id, ticket) in &writer.waiting[slot] {
                let told = writer.waiter.wait(ticket, WaitFor::at_most(Duration::ZERO));
                if told != Err(WaitError::Indeterminate(why)) {
                    return Err(format!("record {id} waits for a shard that has stopped ({why}): {told:?}"));
                }
            }
        }
        match self.shards[slot].gate_state() {
            GateState::Stopped(_) => Ok(()),
            open => Err(format!("the shard has stopped, and its gate is {open:?}")),
        }
    }

    /// After a failure: turns on, as the driver does. Nothing more may be acknowledged.
    pub fn linger(&mut self, h: &mut History, rounds: u64) -> Result<(), String> {
        for _ in 0..rounds {
            if h.world.is_down() {
                break;
            }
            self.round(h)?;
            for slot in 0..self.shards.len() {
                self.listen(h, slot)?;
            }
            let count = h.rng.below(3);
            self.append_some(h, count);
        }
        Ok(())
    }

    /// Does one piece of the slow work. Gives whether there was any that could be done.
    pub fn serve(&mut self, h: &mut History) -> Result<bool, String> {
        // A disk without room is asked again now and then.
        let waits = self.prepares.front().is_some_and(|&(slot, _)| {
            self.slow[slot].supply.no_space.load(std::sync::atomic::Ordering::Relaxed)
        });
        if let Some((slot, index)) = self.prepares.front().copied()
            && (!waits || h.rng.one_in(3))
        {
            let settled = self.prepare(h, slot, index);
            if settled {
                self.prepares.pop_front();
            }
            if settled || self.seals.is_empty() {
                return Ok(settled);
            }
        }
        Ok(self.settle_segment(h))
    }

    /// Puts the next segment on record as begun, or seals it. Gives whether there was one.
    fn settle_segment(&mut self, h: &mut History) -> bool {
        let Some((slot, request)) = self.seals.pop_front() else { return false };
        let slow = &mut self.slow[slot];
        match request {
            Request::Seal(job) if !slow.unsealable => {
                h.tally.seals += 1;
                slow.unsealable = seal::seal(&self.disk, &mut slow.manifest, &job).is_err();
            }
            // A failure is met again by whoever seals it.
            Request::Begun { index } => drop(slow.manifest.append(&[ShardLine::Begun { index }])),
            _ => {}
        }
        true
    }

    fn prepare(&mut self, h: &mut History, slot: usize, index: u64) -> bool {
        let bytes = h.settings.segment_bytes;
        let slow = &mut self.slow[slot];
        let done = prepare::prepare(&self.disk, &mut slow.manifest, slow.shard, index, bytes, &mut || true);
        let full = match done {
            Ok(prepared) => {
                h.tally.prepares += 1;
                let recycled = h.settings.recycles
                    && h.rng.one_in(2)
                    && world::prepare_recycled(&self.disk, &slow.manifest, slow.shard, &prepared, &mut h.rng)
                        .unwrap_or(false);
                h.tally.recycled += u64::from(recycled);
                slow.supply.prepared.push(prepared);
                false
            }
            Err(_) => true,
        };
        slow.supply.no_space.store(full, std::sync::atomic::Ordering::Release);
        !full
    }

    /// Records that were accepted and are not acknowledged.
    pub fn waiting(&self) -> usize {
        self.writers.iter().flat_map(|w| &w.waiting).map(VecDeque::len).sum()
    }

    /// Runs until all that was accepted is acknowledged; `false` if that does not come to pass.
    pub fn drain(&mut self, h: &mut History) -> Result<bool, String> {
        for _ in 0..4000 {
            if self.waiting() == 0 || h.world.is_down() {
                return Ok(true);
            }
            if self.failed.iter().any(Option::is_some) {
                return Ok(true);
            }
            self.round(h)?;
            self.serve(h)?;
            self.hands.advance(100_000);
        }
        Ok(false)
    }

    /// A clean close. Afterwards everything that was accepted is durable; or the machine is down, and the life
    /// is given back: it must be dropped after the machine has died, not before.
    pub fn close(mut self: Box<Self>, h: &mut History) -> Result<Option<Box<Self>>, String> {
        self.intake.close();
        self.shards.iter_mut().for_each(Shard::close);
        let mut over = vec![false; self.shards.len()];
        for rounds in 0.. {
            for (slot, over) in over.iter_mut().enumerate() {
                *over |= self.turn(slot) == Turn::Done;
            }
            if over.iter().all(|&o| o) {
                break;
            }
            self.reap(h, Wait::No)?;
            self.serve(h)?;
            self.hands.advance(100_000);
            if h.world.is_down() {
                return Ok(Some(self));
            }
            if rounds > 20_000 {
                return Err("closing does not end".to_owned());
            }
        }
        for slot in 0..self.shards.len() {
            self.listen(h, slot)?;
        }
        let failed = self.shards.iter().find_map(Shard::failure);
        if failed.is_none() && self.waiting() > 0 {
            return Err(format!("closed, and {} records were never acknowledged", self.waiting()));
        }
        self.prepares.clear();
        while self.settle_segment(h) {}
        let mut clean = failed.is_none() && !self.slow.iter().any(|s| s.unsealable);
        for (shard, slow) in self.shards.iter_mut().zip(&mut self.slow) {
            for spare in shard.take_spares() {
                let retired =
                    recovery::retire(&self.disk, slow.shard, &mut slow.manifest, spare.index, "unused");
                clean &= retired.is_ok();
            }
        }
        if failed.is_none() {
            // As the engine does it: also if something could not be sealed or removed.
            let ended = self.shards.iter().zip(&self.slow);
            let ended = ended.map(|(s, slow)| LogLine::Ended { shard: slow.shard, chain: s.chain() });
            let mut lines: Vec<String> = ended.map(|line| line.write()).collect();
            lines.push(LogLine::Closed { epoch: self.epoch, wall: 0, epochs: 0 }.write());
            clean &= self.journal.append(&lines).is_ok();
        }
        if h.world.is_down() {
            return Ok(Some(self));
        }
        if clean {
            h.tally.clean_closes += 1;
            h.closed_cleanly = true;
        } else if failed.is_none() && !h.was_faulted() && h.space_is_endless {
            return Err("nothing went wrong, and the close was not clean".to_owned());
        }
        h.bury(*self);
        Ok(None)
    }

    /// Bytes of all files, as the folder lists them.
    pub fn used_bytes(&self) -> u64 {
        self.disk.list().map_or(0, |entries| entries.iter().map(|e| e.bytes).sum())
    }
}
