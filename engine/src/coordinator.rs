//! Decides when an epoch entry is due, and what it says.
//!
//! A plain state machine: it knows no disk, no key and no clock. Heads of shards and events come in, and an entry
//! comes out. Heads are given by the shards themselves, and speak of what is durable there, so an entry never
//! names anything else. What an entry took up is kept until somebody says that the entry is durable, so nothing is
//! lost by a disk that fails in between.
//!
//! An entry is due a second after the last one if there is something new, and every ten minutes if there is not.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use hanaper_shards::batch::LogId;
use hanaper_shards::shard::Head;

use crate::checkpoint::entry::{Entry, Event, Live, ShardLine, Time};

/// Without news there is an entry so often: the log says that it lives.
pub const HEARTBEAT: Duration = Duration::from_secs(600);

/// The coordinator of one log. See the module.
pub struct Coordinator {
    log: LogId,
    live: Live,
    every: Duration,
    /// What the last durable entry says of each live shard.
    named: BTreeMap<u32, ShardLine>,
    /// Newer than that.
    heads: BTreeMap<u32, ShardLine>,
    events: VecDeque<Event>,
    /// The entry that is on its way to the disk, and how many of the events are in it.
    drafted: Option<(Entry, usize)>,
    /// When the last entry was made.
    last: Option<Duration>,
}

impl Coordinator {
    /// For the live shards of a log, from what its last entry said of them. `every`: the least time between two
    /// entries.
    pub fn new(log: LogId, live: Live, every: Duration, named: BTreeMap<u32, ShardLine>) -> Coordinator {
        Coordinator {
            log,
            live,
            every,
            named,
            heads: BTreeMap::new(),
            events: VecDeque::new(),
            drafted: None,
            last: None,
        }
    }

    /// Takes the head of a shard.
    ///
    /// # Panics
    /// If the shard has shrunk.
    pub fn head(&mut self, shard: u32, head: &Head) {
        assert!(self.live.has(shard), "shard {shard} is not live");
        assert_eq!(head.tree.size(), head.chain.number, "a leaf for each batch");
        let known = self.heads.get(&shard).or(self.named.get(&shard));
        assert!(
            known.is_none_or(|k| k.size <= head.chain.number && k.seqs <= head.chain.seq),
            "a shard shrank"
        );
        let before = self.heads.get(&shard).and_then(|h| h.times);
        let times = match (before, head.times) {
            (Some((a, b)), Some((c, d))) => Some((a.min(c), b.max(d))),
            (one, other) => one.or(other),
        };
        let line = ShardLine {
            shard,
            size: head.chain.number,
            seqs: head.chain.seq,
            root: head.tree.root(),
            head: head.chain.previous,
            times,
            segment: head.segment,
        };
        self.heads.insert(shard, line);
    }

    /// Takes an event; the next entry tells it.
    pub fn say(&mut self, event: Event) {
        self.events.push_back(event);
    }

    /// The same, before all that wait; once, if it waits already.
    pub fn say_first(&mut self, event: Event) {
        self.events.retain(|waiting| waiting.word != event.word);
        self.events.push_front(event);
    }

    /// Whether there is something that no durable entry says.
    pub fn has_news(&self) -> bool {
        let new = |head: &ShardLine| self.named.get(&head.shard).is_none_or(|named| named.size < head.size);
        !self.events.is_empty() || self.heads.values().any(new)
    }

    /// Batches of a shard that the last durable entry names.
    pub fn named(&self, shard: u32) -> u64 {
        self.named.get(&shard).map_or(0, |line| line.size)
    }

    /// When the next entry is due, on the clock that [`Coordinator::draft`] is told. `moved`: shards have gone on since
    /// they gave their heads.
    pub fn due(&self, moved: bool) -> Duration {
        let after = if moved || self.has_news() { self.every } else { HEARTBEAT };
        self.last.map_or(Duration::ZERO, |last| last + after)
    }

    /// An entry of all that is new; of all live shards with `roll_call`, if all have given a head at least once. What
    /// it says stays here until [`Coordinator::entered`].
    pub fn draft(&mut self, now: Duration, time: Time, epoch: u64, period: u64, roll_call: bool) -> &Entry {
        self.last = Some(now);
        let live = self.live.first..self.live.first + self.live.count;
        let line = |shard: u32| {
            let unchanged = || self.named.get(&shard).map(|named| ShardLine { times: None, ..named.clone() });
            self.heads.get(&shard).cloned().or_else(unchanged)
        };
        let all: Option<Vec<ShardLine>> = live.map(line).collect();
        let changed = |head: &&ShardLine| {
            self.named.get(&head.shard).is_none_or(|n| n.size < head.size || n.segment != head.segment)
        };
        let (roll_call, shards) = match all.filter(|_| roll_call) {
            Some(all) => (true, all),
            None => (false, self.heads.values().filter(changed).cloned().collect()),
        };
        let mut entry = Entry {
            log: self.log,
            epoch,
            time,
            period,
            live: self.live,
            events: Vec::new(),
            roll_call,
            shards,
        };
        let mut room = entry.room();
        for event in &self.events {
            // What has no room comes with the next one.
            let Some(left) = room.checked_sub(event.line_bytes()) else { break };
            room = left;
            entry.events.push(event.clone());
        }
        let told = entry.events.len();
        &self.drafted.insert((entry, told)).0
    }

    /// The entry that was drafted is durable.
    pub fn entered(&mut self) {
        let (entry, told) = self.drafted.take().expect("an entry was drafted");
        self.events.drain(..told);
        for line in entry.shards {
            if self.heads.get(&line.shard).is_some_and(|head| head.size == line.size) {
                self.heads.remove(&line.shard);
            }
            self.named.insert(line.shard, line);
        }
    }

    /// After a failure the epochs were opened again, and have so many entries: whether the drafted one is among
    /// them.
    pub fn resume(&mut self, size: u64) {
        match &self.drafted {
            Some((entry, _)) if entry.epoch < size => self.entered(),
            _ => self.drafted = None,
        }
    }
}

#[cfg(test)]
mod tests {
    use hanaper_shards::merkle::Frontier;
    use hanaper_shards::wal::chain::Chain;

    use super::*;
    use crate::checkpoint::entry::ClockSource;

    const EVERY: Duration = Duration::from_secs(1);
    const TIME: Time = Time { wall_ns: 5, uncertainty_ns: None, clock: ClockSource::Unknown };

    fn coordinator() -> Coordinator {
        let live = Live { count: 2, first: 0, generation: 0 };
        Coordinator::new([1; 16], live, EVERY, BTreeMap::new())
    }

    fn head(batches: u64, times: Option<(u64, u64)>) -> Head {
        let mut tree = Frontier::new();
        (0..batches).for_each(|i| tree.push([i as u8; 32]));
        let chain = Chain { number: batches, seq: 10 * batches, previous: [batches as u8; 32] };
        Head { chain, tree, times, segment: 0 }
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn an_entry_says_what_is_new_and_says_it_once() {
        let mut c = coordinator();
        assert_eq!(c.due(false), Duration::ZERO);
        c.head(0, &head(3, Some((5, 9))));
        c.head(0, &head(4, Some((2, 7))));
        c.say(Event::new("start"));
        let entry = c.draft(at(1), TIME, 0, 0, false).clone();
        assert_eq!(
            entry.shards.iter().map(|s| (s.shard, s.size, s.times)).collect::<Vec<_>>(),
            [(0, 4, Some((2, 9)))]
        );
        assert_eq!(entry.events, [Event::new("start")]);
        // Until it is durable it would be said again.
        assert_eq!(c.draft(at(2), TIME, 0, 0, false).shards, entry.shards);
        c.head(1, &head(1, None));
        c.entered();
        assert_eq!((c.named(0), c.named(1), c.has_news()), (4, 0, true));
        let entry = c.draft(at(3), TIME, 1, 0, false).clone();
        assert_eq!(entry.shards.iter().map(|s| s.shard).collect::<Vec<_>>(), [1]);
        assert_eq!(entry.events, []);
        c.entered();
        assert!(!c.has_news());
        assert_eq!(c.due(false), at(3) + HEARTBEAT);
        assert_eq!(c.due(true), at(3) + EVERY);
        c.head(1, &head(2, None));
        assert_eq!(c.due(false), at(3) + EVERY);
    }

    #[test]
    fn a_roll_call_names_all_or_is_none() {
        let mut c = coordinator();
        c.head(1, &head(2, None));
        assert!(!c.draft(at(0), TIME, 0, 0, true).roll_call, "shard 0 has given no head");
        c.head(0, &head(0, None));
        let entry = c.draft(at(0), TIME, 0, 0, true);
        assert!(entry.roll_call && entry.shards.len() == 2);
        c.entered();
        let again = c.draft(at(1), TIME, 1, 0, true);
        assert_eq!(again.shards.iter().map(|s| s.size).collect::<Vec<_>>(), [0, 2]);
    }

    #[test]
    fn a_failure_loses_nothing_and_repeats_nothing() {
        for durable in [false, true] {
            let mut c = coordinator();
            c.head(0, &head(3, None));
            c.say(Event::new("start"));
            c.draft(at(0), TIME, 7, 0, false);
            c.resume(if durable { 8 } else { 7 });
            assert_eq!(c.has_news(), !durable);
        }
    }

    #[test]
    fn events_without_room_wait() {
        let mut c = coordinator();
        for i in 0..3000 {
            c.say(Event::new("cut").with("number", i).with("reason", "x".repeat(30)));
        }
        let mut told = 0;
        while c.has_news() {
            let entry = c.draft(at(0), TIME, 0, 0, false).clone();
            assert_eq!(Entry::parse(&entry.text()).as_ref(), Ok(&entry));
            assert_eq!(entry.events[0].get("number"), Some(told.to_string().as_str()));
            told += entry.events.len();
            c.entered();
        }
        assert_eq!(told, 3000);
    }

    #[test]
    #[should_panic(expected = "shrank")]
    fn a_shard_never_shrinks() {
        let mut c = coordinator();
        c.head(0, &head(3, None));
        c.head(0, &head(2, None));
    }
}
