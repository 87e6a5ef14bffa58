//! The epochs on a simulated disk that loses power at every step: no two notes for one size, and no note that was
//! told is ever contradicted.

use std::collections::BTreeMap;

use hanaper::checkpoint::entry::{ClockSource, Entry, Event, Live, ShardLine, Time};
use hanaper::checkpoint::epochs::{self, Entered, Epochs, EpochsError};
use hanaper::checkpoint::note::{Note, SigningKey};
use hanaper_shards::batch::LogId;
use hanaper_shards::io::sim::{SimDisk, SimWorld};
use hanaper_shards::merkle::{Frontier, leaf};

const LOG: LogId = [7; 16];
const ORIGIN: &str = "example.org/log";

/// A number that looks random, the same each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    fn bytes(&mut self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes.fill_with(|| self.below(256) as u8);
        bytes
    }
}

/// What lives outside the machine, and outside the disk.
struct Outside {
    /// Everything that was ever signed, by size, told or not.
    signed: BTreeMap<u64, String>,
    /// The greatest size that was told.
    told: u64,
    /// Periods whose key is erased.
    erased: u64,
    batches: u64,
}

impl Outside {
    /// Signs what is durable. A key that is erased signs nothing.
    fn sign(&mut self, period: u64, entered: Entered) -> Note {
        assert!(period >= self.erased, "period {period} is to sign, and its key is erased");
        let key = SigningKey::from_seed(ORIGIN, &[period as u8 + 1; 32]).unwrap();
        let text = entered.text(ORIGIN);
        let before = self.signed.insert(entered.size(), text.clone());
        assert!(before.is_none_or(|before| before == text), "two trees were signed for {}", entered.size());
        Note::sign(&text, &[&key]).unwrap()
    }
}

fn entry(epochs: &Epochs<SimDisk>, outside: &mut Outside, dice: &mut Dice, closes: bool) -> Entry {
    outside.batches += 1 + dice.below(5);
    let mut tree = Frontier::new();
    tree.push_repeated(leaf(b"batch"), outside.batches);
    let line = ShardLine {
        shard: 0,
        size: outside.batches,
        seqs: outside.batches,
        root: tree.root(),
        head: [dice.below(256) as u8; 32],
        times: None,
        segment: 0,
    };
    let mut events = Vec::new();
    if closes {
        events.push(Event::new("period").with("number", epochs.period() + 1).with("vkey", "some-key"));
    }
    Entry {
        log: LOG,
        epoch: epochs.size(),
        time: Time { wall_ns: dice.below(1000) as i64, uncertainty_ns: None, clock: ClockSource::Unknown },
        period: epochs.period(),
        live: Live { count: 1, first: 0, generation: 0 },
        events,
        roll_call: true,
        shards: vec![line],
    }
}

fn sign(epochs: &mut Epochs<SimDisk>, outside: &mut Outside, entered: Entered) -> Result<(), EpochsError> {
    let note = outside.sign(epochs.period(), entered);
    let noted = epochs.keep(entered, note)?;
    assert!(noted.size() > outside.told);
    outside.told = noted.size();
    Ok(())
}

/// One opening, as the notary does it, until the machine stops.
fn live(disk: &SimDisk, outside: &mut Outside, dice: &mut Dice) -> Result<(), EpochsError> {
    let mut epochs = match Epochs::open(disk, LOG)? {
        Some(epochs) => epochs,
        None => Epochs::create(disk, LOG, dice.bytes())?,
    };
    outside.batches = outside.batches.max(epochs.heads().get(&0).map_or(0, |head| head.size));
    loop {
        if let Some(entered) = epochs.unsigned() {
            sign(&mut epochs, outside, entered)?;
        }
        if epochs.last().is_some_and(|entry| epochs::closes(entry).is_some()) {
            let closed = epochs.period();
            epochs = epochs.next_period(dice.bytes())?;
            outside.erased = epochs.period();
            epochs::compact(disk, LOG, closed, dice.bytes())?;
        }
        let closes = dice.below(4) == 0;
        let entry = entry(&epochs, outside, dice, closes);
        let entered = epochs.enter(&entry, &[])?;
        sign(&mut epochs, outside, entered)?;
    }
}

/// All entries are there up to what was told, and every note agrees with them and with what was signed.
fn check(disk: &SimDisk, outside: &Outside) {
    let mut tree = Frontier::new();
    let mut roots = BTreeMap::new();
    for (expected, period) in epochs::periods(disk).unwrap().into_iter().enumerate() {
        assert_eq!(period, expected as u64, "a period is missing");
        let Some(read) = epochs::read(disk, LOG, period).unwrap() else { continue };
        assert_eq!(read.before, tree, "period {period} begins elsewhere than the one before ended");
        for (_, text) in &read.entries {
            tree.push(leaf(text.as_bytes()));
            roots.insert(tree.size(), tree.root());
        }
        for (size, note) in &read.notes {
            assert_eq!(note.text(), outside.signed[size], "a note that nobody signed");
        }
    }
    assert!(tree.size() >= outside.told, "{} entries were told, and {} are left", outside.told, tree.size());
    for (size, text) in outside.signed.range(..=outside.told) {
        let root = hanaper::checkpoint::Checkpoint::parse(text).unwrap();
        assert_eq!(roots.get(size), Some(root.root()), "the tree of {size} entries is not the one signed");
    }
}

#[test]
fn no_crash_leads_to_two_notes_for_one_size() {
    let mut told = 0;
    for seed in 0..400 {
        let world = SimWorld::new(seed);
        let mut dice = Dice(seed);
        let mut outside = Outside { signed: BTreeMap::new(), told: 0, erased: 0, batches: 0 };
        for _ in 0..8 {
            world.crash_after(dice.below(60));
            let ended = live(&world.disk(), &mut outside, &mut dice);
            assert!(world.is_down(), "seed {seed}: {:?}", ended.err());
            world.crash();
            check(&world.disk(), &outside);
        }
        told += outside.told;
    }
    assert!(told > 2_000, "only {told} notes were told: this shows little");
}
