//! The epoch entry: a leaf of the log's global tree, and what a checkpoint is a checkpoint of.
//!
//! ```text
//! hanaper-epoch v1
//! log 11111111111111111111111111111111
//! epoch 7
//! time 1764000000000000000 uncertainty=1500000 clock=synchronised
//! period 2
//! shards 2 first=0 generation=0
//! event start opening=3
//! roll-call
//! shard 0 size=12 seqs=431 root=BASE64 head=BASE64 times=1764000000000001000..1764000000000002000 segment=1
//! shard 1 size=9 seqs=377 root=BASE64 head=BASE64 times=none segment=0
//! ```
//! Its number is its index in the tree. `time` is nanoseconds since 1970, how far off that may be (`unknown` if
//! nobody says) and who says so. `shards` are those that are live, numbered from `first`. A `shard` line names one
//! that has changed since the last entry that named it: how many batches and records it has, the root of its tree
//! and the digest of its last batch (zeros if it has none), the least and greatest log time of the records that
//! are new, and the segment that is written to. After `roll-call` all live shards are named.
//!
//! A text is an entry if and only if it has these lines in this order, each with its end, with single spaces, with
//! numbers in decimal without leading zeros, with base64 padded and canonical, shards in rising order and live, at
//! least one of what the roll call asks for, events as below, and 65,535 bytes at most. So one entry has one form.
//!
//! An event is a word of `a..z` and `-`, and pairs of a word and a value of printable ASCII without spaces.

use std::fmt::Write;

use base64ct::{Base64, Encoding};
use hanaper_shards::batch::{Digest, LogId};
use hanaper_shards::manifest::{hex, unhex};
use hanaper_shards::merkle::Hash;

/// Tiles prefix an entry with 16 bits of length.
pub const ENTRY_BYTES_MAX: usize = 65_535;
const FIRST_LINE: &str = "hanaper-epoch v1";

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The log.
    pub log: LogId,
    /// Index of the entry in the global tree.
    pub epoch: u64,
    /// When it was made.
    pub time: Time,
    /// Number of the key period that it was made in.
    pub period: u64,
    /// The live shards.
    pub live: Live,
    /// What happened to the log.
    pub events: Vec<Event>,
    /// Whether all live shards are named.
    pub roll_call: bool,
    /// Those that are named, in rising order.
    pub shards: Vec<ShardLine>,
}

/// A moment on the wall clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time {
    /// Nanoseconds since 1970.
    pub wall_ns: i64,
    /// How far off it may be; `None` if nobody says.
    pub uncertainty_ns: Option<u32>,
    /// Who says so.
    pub clock: ClockSource,
}

/// Who says how right a clock is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockSource {
    /// Nobody.
    Unknown,
    /// The system's clock, which nothing keeps.
    System,
    /// The system's clock, which the kernel says is kept.
    Synchronised,
}

/// Shards `first..first + count` of one layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Live {
    /// How many.
    pub count: u32,
    /// The first of them.
    pub first: u32,
    /// Generation of their layout.
    pub generation: u32,
}

/// Where a shard stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardLine {
    /// Its number.
    pub shard: u32,
    /// Its batches: the size of its tree.
    pub size: u64,
    /// Its records.
    pub seqs: u64,
    /// Root of its tree.
    pub root: Hash,
    /// Digest of its last batch.
    pub head: Hash,
    /// Least and greatest log time of the records that are new.
    pub times: Option<(u64, u64)>,
    /// The segment that is written to.
    pub segment: u64,
}

/// What one entry says of one shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Number of the entry.
    pub epoch: u64,
    /// Batches: the size of the shard's tree.
    pub size: u64,
    /// Records.
    pub seqs: u64,
    /// Root of the shard's tree.
    pub root: Hash,
    /// Digest of its last batch.
    pub head: Digest,
}

/// Something that happened to the log itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What.
    pub word: String,
    /// More of it.
    pub pairs: Vec<(String, String)>,
}

/// A text that is no entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an epoch entry: {what} in line {line}")]
pub struct EntryFault {
    what: &'static str,
    line: usize,
}

impl Event {
    /// An event without pairs; [`Event::with`] adds them.
    pub fn new(word: &str) -> Event {
        Event { word: word.to_owned(), pairs: Vec::new() }
    }

    /// One more pair. Spaces and what cannot be printed become `_`.
    pub fn with(mut self, key: &str, value: impl std::fmt::Display) -> Event {
        let plain = |c: char| if c.is_ascii_graphic() { c } else { '_' };
        let value: String = value.to_string().chars().map(plain).collect();
        let value = if value.is_empty() { "_".to_owned() } else { value };
        self.pairs.push((key.to_owned(), value));
        self
    }

    /// The value of a pair.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.pairs.iter().find_map(|(k, value)| (k == key).then_some(value.as_str()))
    }

    /// Length of its line, with its end.
    pub fn line_bytes(&self) -> usize {
        "event ".len()
            + self.word.len()
            + 1
            + self.pairs.iter().map(|(k, v)| k.len() + v.len() + 2).sum::<usize>()
    }

    fn write(&self, text: &mut String) {
        text.push_str("event ");
        text.push_str(&self.word);
        for (key, value) in &self.pairs {
            write!(text, " {key}={value}").expect("a string takes all");
        }
        text.push('\n');
    }

    fn parse(line: &str) -> Option<Event> {
        let is_word = |w: &str| {
            !w.is_empty() && w.bytes().all(|b| b.is_ascii_lowercase() || b"-_0123456789".contains(&b))
        };
        let mut parts = line.split(' ');
        let word = parts.next().filter(|word| is_word(word))?.to_owned();
        let pair = |part: &str| {
            let (key, value) = part.split_once('=')?;
            let good = is_word(key) && !value.is_empty() && value.bytes().all(|b| b.is_ascii_graphic());
            good.then(|| (key.to_owned(), value.to_owned()))
        };
        Some(Event { word, pairs: parts.map(pair).collect::<Option<_>>()? })
    }
}

impl ShardLine {
    /// Its line, with its end.
    pub fn text(&self) -> String {
        let mut text = String::new();
        self.write(&mut text);
        text
    }

    fn write(&self, text: &mut String) {
        let ShardLine { shard, size, seqs, segment, .. } = self;
        let (root, head) = (Base64::encode_string(&self.root), Base64::encode_string(&self.head));
        let times = self.times.map_or_else(|| "none".to_owned(), |(least, most)| format!("{least}..{most}"));
        writeln!(
            text,
            "shard {shard} size={size} seqs={seqs} root={root} head={head} times={times} segment={segment}"
        )
        .expect("a string takes all");
    }

    /// Reads what follows `shard `.
    pub(super) fn parse(line: &str) -> Option<ShardLine> {
        let mut parts = line.split(' ');
        let shard = number(parts.next()?)?;
        let mut field = |key: &str| parts.next()?.strip_prefix(key)?.strip_prefix('=');
        let line = ShardLine {
            shard,
            size: number(field("size")?)?,
            seqs: number(field("seqs")?)?,
            root: hash(field("root")?)?,
            head: hash(field("head")?)?,
            times: match field("times")? {
                "none" => None,
                times => {
                    let (least, most) = times.split_once("..")?;
                    Some((number(least)?, number(most)?)).filter(|(least, most)| least <= most)
                }
            },
            segment: number(field("segment")?)?,
        };
        parts.next().is_none().then_some(line)
    }
}

impl Entry {
    /// The text: the leaf's data.
    pub fn text(&self) -> String {
        let mut text = self.opening();
        self.events.iter().for_each(|event| event.write(&mut text));
        if self.roll_call {
            text.push_str("roll-call\n");
        }
        self.shards.iter().for_each(|shard| shard.write(&mut text));
        text
    }

    fn opening(&self) -> String {
        let Time { wall_ns, uncertainty_ns, clock } = self.time;
        let uncertainty = uncertainty_ns.map_or_else(|| "unknown".to_owned(), |ns| ns.to_string());
        let Live { count, first, generation } = self.live;
        format!(
            "{FIRST_LINE}\nlog {}\nepoch {}\ntime {wall_ns} uncertainty={uncertainty} clock={}\nperiod {}\nshards {count} first={first} generation={generation}\n",
            hex(&self.log),
            self.epoch,
            clock.name(),
            self.period
        )
    }

    /// Bytes that are left for events.
    pub fn room(&self) -> usize {
        ENTRY_BYTES_MAX.saturating_sub(self.text().len())
    }

    /// Reads a text.
    pub fn parse(text: &str) -> Result<Entry, EntryFault> {
        let whole = text.strip_suffix('\n').filter(|_| text.len() <= ENTRY_BYTES_MAX);
        let whole = whole.ok_or(EntryFault { what: "no end, or too much,", line: 1 })?;
        let mut lines = Lines { rest: whole.split('\n').peekable(), line: 0 };
        lines.exact(FIRST_LINE, "another first line")?;
        let log = lines.read("log ", "no log", unhex::<16>)?;
        let epoch = lines.read("epoch ", "no epoch", number)?;
        let time = lines.read("time ", "no time", Time::parse)?;
        let period = lines.read("period ", "no period", number)?;
        let live = lines.read("shards ", "no count of shards", Live::parse)?;
        let mut events = Vec::new();
        while lines.is_next("event ") {
            events.push(lines.read("event ", "a malformed event", Event::parse)?);
        }
        let roll_call = lines.is_next("roll-call");
        if roll_call {
            lines.exact("roll-call", "a malformed roll call")?;
        }
        let mut shards: Vec<ShardLine> = Vec::new();
        while lines.rest.peek().is_some() {
            let last = shards.last().map(|s| s.shard);
            let in_order = |s: &ShardLine| last.is_none_or(|last| last < s.shard) && live.has(s.shard);
            let shard =
                lines.read("shard ", "a malformed shard, or one that is not live or not in order,", |s| {
                    ShardLine::parse(s).filter(in_order)
                })?;
            shards.push(shard);
        }
        if roll_call && shards.len() != live.count as usize {
            return Err(EntryFault { what: "a roll call that leaves shards out,", line: lines.line });
        }
        let entry = Entry { log, epoch, time, period, live, events, roll_call, shards };
        // What was read leniently above has another form.
        if entry.text() != text {
            return Err(EntryFault { what: "another form than the one there is,", line: 1 });
        }
        Ok(entry)
    }

    /// Events of this kind.
    pub fn events<'a>(&'a self, word: &'a str) -> impl Iterator<Item = &'a Event> {
        self.events.iter().filter(move |event| event.word == word)
    }

    /// What it says of this shard: where it stands, or where it has ended with its layout.
    pub fn claim(&self, shard: u32) -> Option<Claim> {
        let line = self.shards.iter().find(|line| line.shard == shard).map(|line| Claim {
            epoch: self.epoch,
            size: line.size,
            seqs: line.seqs,
            root: line.root,
            head: line.head,
        });
        let ended = || {
            let event = self.events("ended").find(|e| e.get("shard") == Some(shard.to_string().as_str()))?;
            Some(Claim {
                epoch: self.epoch,
                size: number(event.get("size")?)?,
                seqs: number(event.get("seqs")?)?,
                root: unhex(event.get("root")?)?,
                head: unhex(event.get("head")?)?,
            })
        };
        line.or_else(ended)
    }
}

impl ClockSource {
    fn name(self) -> &'static str {
        match self {
            ClockSource::Unknown => "unknown",
            ClockSource::System => "system",
            ClockSource::Synchronised => "synchronised",
        }
    }
}

impl Time {
    fn parse(text: &str) -> Option<Time> {
        let mut parts = text.split(' ');
        let wall_ns = parts.next()?.parse().ok()?;
        let uncertainty_ns = match parts.next()?.strip_prefix("uncertainty=")? {
            "unknown" => None,
            ns => Some(number(ns)?),
        };
        let clock = match parts.next()?.strip_prefix("clock=")? {
            "unknown" => ClockSource::Unknown,
            "system" => ClockSource::System,
            "synchronised" => ClockSource::Synchronised,
            _ => return None,
        };
        parts.next().is_none().then_some(Time { wall_ns, uncertainty_ns, clock })
    }
}

impl Live {
    /// Whether this shard is one of them.
    pub fn has(&self, shard: u32) -> bool {
        shard >= self.first && u64::from(shard) < u64::from(self.first) + u64::from(self.count)
    }

    fn parse(text: &str) -> Option<Live> {
        let mut parts = text.split(' ');
        let count = number(parts.next()?)?;
        let first = number(parts.next()?.strip_prefix("first=")?)?;
        let generation = number(parts.next()?.strip_prefix("generation=")?)?;
        parts.next().is_none().then_some(Live { count, first, generation })
    }
}

struct Lines<'a> {
    rest: std::iter::Peekable<std::str::Split<'a, char>>,
    line: usize,
}

impl<'a> Lines<'a> {
    fn is_next(&mut self, prefix: &str) -> bool {
        self.rest.peek().is_some_and(|line| line.starts_with(prefix))
    }

    fn read<T>(
        &mut self,
        prefix: &str,
        what: &'static str,
        read: impl FnOnce(&'a str) -> Option<T>,
    ) -> Result<T, EntryFault> {
        self.line += 1;
        let line = self.rest.next().and_then(|line| line.strip_prefix(prefix));
        line.and_then(read).ok_or(EntryFault { what, line: self.line })
    }

    fn exact(&mut self, wanted: &str, what: &'static str) -> Result<(), EntryFault> {
        self.read(wanted, what, |rest| rest.is_empty().then_some(()))
    }
}

/// A number that has one form only.
pub(super) fn number<N: std::str::FromStr + ToString>(text: &str) -> Option<N> {
    text.parse().ok().filter(|number: &N| number.to_string() == text)
}

pub(super) fn hash(text: &str) -> Option<Hash> {
    let mut hash = [0; 32];
    (Base64::decode(text, &mut hash).ok()?.len() == hash.len()).then_some(hash)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shard(number: u32) -> ShardLine {
        ShardLine {
            shard: number,
            size: 12,
            seqs: 431,
            root: [1; 32],
            head: [2; 32],
            times: (number > 0).then_some((5, 9)),
            segment: 1,
        }
    }

    fn sample() -> Entry {
        Entry {
            log: [0x11; 16],
            epoch: 7,
            time: Time { wall_ns: -5, uncertainty_ns: Some(1_500_000), clock: ClockSource::Synchronised },
            period: 2,
            live: Live { count: 2, first: 4, generation: 1 },
            events: vec![Event::new("start").with("opening", 3), Event::new("stop")],
            roll_call: true,
            shards: vec![shard(4), shard(5)],
        }
    }

    #[test]
    fn an_entry_has_one_form() {
        let mut entry = sample();
        let text = entry.text();
        assert_eq!(Entry::parse(&text).as_ref(), Ok(&entry));
        for (from, to) in [
            ("epoch 7", "epoch 07"),
            ("epoch 7", "epoch +7"),
            ("uncertainty=1500000", "uncertainty=-1"),
            ("clock=synchronised", "clock=mine"),
            ("period 2\n", ""),
            ("event start", "event Start"),
            ("opening=3", "opening="),
            ("opening=3", "opening=3 "),
            ("opening=3", "opening=3  x=1"),
            ("shard 4", "shard 5"),
            ("shard 4", "shard 3"),
            ("roll-call\n", "roll-call \n"),
            ("times=5..9", "times=9..5"),
            ("segment=1\n", "segment=1 more=2\n"),
            ("AQEB", "AQE"),
            ("11111111", "1111111A"),
            ("hanaper-epoch v1", "hanaper-epoch v2"),
        ] {
            let altered = text.replacen(from, to, 1);
            assert_ne!(altered, text, "{from}");
            assert!(Entry::parse(&altered).is_err(), "{from:?} as {to:?}: {altered}");
        }
        assert!(Entry::parse(text.trim_end()).is_err());
        entry.shards.pop();
        assert!(Entry::parse(&entry.text()).is_err(), "a roll call leaves nobody out");
        entry.roll_call = false;
        assert!(Entry::parse(&entry.text()).is_ok());
    }

    #[test]
    fn the_most_shards_have_room() {
        let max = |n: u32| ShardLine {
            shard: u32::MAX - n,
            size: u64::MAX,
            seqs: u64::MAX,
            times: Some((u64::MAX - 1, u64::MAX)),
            segment: u64::MAX,
            ..shard(0)
        };
        let live = Live { count: 256, first: u32::MAX - 255, generation: u32::MAX };
        let shards = (0..256).rev().map(max).collect();
        let entry = Entry { live, shards, events: Vec::new(), epoch: u64::MAX, ..sample() };
        assert!(entry.room() > 1500, "{}", entry.room());
        assert_eq!(Entry::parse(&entry.text()), Ok(entry));
    }

    #[test]
    fn an_events_length_is_known_before_it_is_written() {
        let event = Event::new("cut").with("reason", "torn tail").with("bytes", 12).with("empty", "");
        let mut text = String::new();
        event.write(&mut text);
        assert_eq!(
            (text.as_str(), event.line_bytes()),
            ("event cut reason=torn_tail bytes=12 empty=_\n", text.len())
        );
    }

    proptest! {
        #[test]
        fn whatever_is_read_is_written_the_same(text in "(?s).{0,300}", at in 0usize..400, with in "(?s).{0,3}") {
            if let Ok(entry) = Entry::parse(&text) {
                prop_assert_eq!(entry.text(), text);
            }
            let mut altered = sample().text();
            let at = at.min(altered.len());
            altered.insert_str(at, &with);
            if let Ok(entry) = Entry::parse(&altered) {
                prop_assert_eq!(entry.text(), altered);
            }
        }
    }
}
