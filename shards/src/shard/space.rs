//! The promise of space: a record is accepted only against room that is already prepared.
//!
//! `room` is what is left in the active segment and in the spares, without the last one, which is
//! kept for a recovery. `need` is all that the lanes can hold, with headers and padding, and what is
//! gathered. When room falls below need, the gate closes; what was accepted still fits. It closes too
//! when the disk has said no and there is no spare for a recovery.

use super::*;

/// Segments prepared ahead.
pub(super) const SPARES: usize = 2;

impl<I: Io> Shard<I> {
    /// Room that may be used without touching the spare that a recovery would need, in bytes.
    fn room(&self) -> u64 {
        let block = u64::from(self.config.block_bytes);
        // The footer takes its share: an entry for each batch, and what is promised comes in full ones.
        let usable = |bytes: u64| bytes - bytes / block * footer::ENTRY_BYTES as u64 / 2 - 2 * block;
        let active = self.active.as_ref().map_or(0, |a| {
            let footer = footer::placed_bytes(a.batches.len() as u64 + 1, self.config.block_bytes);
            a.bytes.saturating_sub(a.offset + footer)
        });
        // Before the first segment is begun, the first spare is that segment.
        let kept = usize::from(self.active.is_some());
        let spares: u64 = self.spares.iter().rev().skip(kept).map(|s| usable(s.bytes)).sum();
        active + spares
    }

    /// What must still fit when the gate closes now, in bytes.
    fn need(&self) -> u64 {
        let block = u64::from(self.config.block_bytes);
        // A lane's worth in full batches wastes a third at most; a claim that was open when the
        // gate closed may come alone. Two more lanes may be on their way.
        let lane = |bytes: u64| bytes + bytes / 2 + 4 * block;
        let lanes: u64 = self.lanes.iter().flatten().map(|l| lane(l.end.lane_bytes as u64)).sum();
        let gathered = self.building.as_ref().map_or(0, |b| b.bytes() as u64);
        lanes
            + 2 * lane(self.config.lane_bytes as u64)
            + self.config.record_bytes_max as u64
            + gathered
            + 16 * block
    }

    pub(super) fn request_segment(&mut self) {
        self.requests.push(Request::Prepare { index: self.next_index });
        self.next_index += 1;
        self.preparing += 1;
    }

    /// Asks for segments ahead of use, and opens or closes the gate.
    pub(super) fn watch_space(&mut self) {
        let per_spare = self.config.segment_bytes / 2;
        let wanted = (SPARES as u64).max(self.need().div_ceil(per_spare) + 1) as usize;
        let wanted = wanted + usize::from(self.active.is_none());
        if self.state != State::Running {
            return;
        }
        while self.spares.len() + self.preparing < wanted {
            self.request_segment();
        }
        // Accepted is only what has its place already, so the gate closes even while a segment is merely
        // not ready yet. It becomes a control record when the disk has said no.
        let (room, need) = (self.room(), self.need());
        // Without a spare for a recovery, a crash on the full disk could not be recovered from before there
        // is room; so nothing is begun, and nothing more is taken, until there is one again.
        let reserved = self.spares.len() > usize::from(self.active.is_none());
        self.scarce = !reserved && (self.scarce || self.supply.no_space.load(Ordering::Acquire));
        let closed = self.scarce || room < need;
        if closed && self.supply.broken.load(Ordering::Acquire) {
            // No segment will come, so producers would wait for ever. What was taken and is not durable is told
            // so, as after any failure.
            self.fail(Stopped::Poisoned { op: "append to the manifest", errno: libc::EIO, offset: 0 });
            return;
        }
        // The last spare is a recovery's, so appends are refused before there is none.
        let hungry = closed || room < 2 * need;
        if hungry != self.supply.hungry.load(Ordering::Relaxed) {
            self.supply.hungry.store(hungry, Ordering::Release);
        }
        if closed != self.gate_closed {
            // Only on a change: producers read this line before every append.
            self.gate_closed = closed;
            self.gate.set_no_space(closed);
        }
        let full = closed && self.supply.no_space.load(Ordering::Acquire);
        match (full, self.no_space_since) {
            (true, None) => {
                self.no_space_since = Some(self.clock.now());
                self.say("space_ran_out".to_owned());
            }
            (false, Some(since)) if !closed => {
                self.no_space_since = None;
                self.say(format!("space_came_back after_ns={}", self.clock.now() - since));
            }
            _ => {}
        }
    }
}
