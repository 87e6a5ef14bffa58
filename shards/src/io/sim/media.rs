//! What a simulated disk holds of one file: what reads see, what is firm, and what lies between.
//!
//! Firm content survives a power cut. Everything else is a list of changes, and of each of them a
//! power cut keeps what it likes, sector by sector. A flush makes firm exactly the changes that
//! it was issued for.

/// What a device writes whole or not at all.
pub(super) const SECTOR_BYTES: usize = 512;

/// SplitMix64: small, seeded, the same everywhere.
#[derive(Debug, Clone)]
pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Below `bound`, which is not zero. The bias is of no account here.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub(super) fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    pub(super) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

#[derive(Debug, Clone)]
pub(super) enum What {
    Write {
        offset: usize,
        data: Vec<u8>,
    },
    /// At least so long.
    Grow(usize),
    /// At most so long.
    Cut(usize),
}

#[derive(Debug, Clone)]
struct Change {
    id: u64,
    what: What,
    /// Completed changes are seen by reads, and covered by the next flush.
    completed: bool,
}

/// How much of the changes that no flush covered a power cut kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) sectors_kept: u64,
    pub(super) sectors_lost: u64,
    pub(super) writes_torn: u64,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Media {
    seen: Vec<u8>,
    firm: Vec<u8>,
    /// Completed ones first, in the order of their completion.
    changes: Vec<Change>,
}

impl Media {
    pub(super) fn seen(&self) -> &[u8] {
        &self.seen
    }

    pub(super) fn firm(&self) -> &[u8] {
        &self.firm
    }

    /// Both at once, as rot does it.
    pub(super) fn edit(&mut self, edit: &mut dyn FnMut(&mut Vec<u8>)) {
        edit(&mut self.seen);
        edit(&mut self.firm);
    }

    pub(super) fn begin(&mut self, id: u64, what: What) {
        self.changes.push(Change { id, what, completed: false });
    }

    pub(super) fn complete(&mut self, id: u64) {
        let index = self.position(id);
        let mut change = self.changes.remove(index);
        apply(&mut self.seen, &change.what);
        change.completed = true;
        let place = self.changes.iter().filter(|other| other.completed).count();
        self.changes.insert(place, change);
    }

    /// Completes the first `bytes` of a write, down to whole sectors.
    pub(super) fn complete_short(&mut self, id: u64, bytes: usize) {
        let index = self.position(id);
        if let What::Write { data, .. } = &mut self.changes[index].what {
            data.truncate(bytes / SECTOR_BYTES * SECTOR_BYTES);
        }
        self.complete(id);
    }

    /// Ends a change of a dying process, of which so many quarters are done.
    pub(super) fn end_early(&mut self, id: u64, quarters: usize) {
        let index = self.position(id);
        match &mut self.changes[index].what {
            What::Write { data, .. } => {
                let bytes = data.len() * quarters / 4;
                self.complete_short(id, bytes);
            }
            _ if quarters == 0 => drop(self.changes.remove(index)),
            _ => self.complete(id),
        }
    }

    /// A write that failed has reached any of its sectors, and will reach no more.
    pub(super) fn fail(&mut self, id: u64, rng: &mut Rng, fresh: &mut dyn FnMut() -> u64) {
        let index = self.position(id);
        let What::Write { offset, data } = self.changes.remove(index).what else {
            return;
        };
        for (sector, data) in data.chunks(SECTOR_BYTES).enumerate() {
            if rng.one_in(2) {
                let id = fresh();
                self.begin(id, What::Write { offset: offset + sector * SECTOR_BYTES, data: data.to_vec() });
                self.complete(id);
            }
        }
    }

    fn position(&self, id: u64) -> usize {
        self.changes.iter().position(|change| change.id == id).expect("the change is under way")
    }

    /// What a flush that is issued now will cover.
    pub(super) fn completed(&self) -> Vec<u64> {
        self.changes.iter().filter(|change| change.completed).map(|change| change.id).collect()
    }

    pub(super) fn flush(&mut self, covered: &[u64]) {
        let firm = &mut self.firm;
        self.changes.retain(|change| {
            let covers = covered.contains(&change.id);
            if covers {
                apply(firm, &change.what);
            }
            !covers
        });
    }

    /// A failed fdatasync: the pages count as clean from now on, whether they were written or not.
    pub(super) fn flush_failed(&mut self, covered: &[u64], rng: &mut Rng) {
        let mut lost = std::mem::take(&mut self.changes);
        self.changes = lost.extract_if(.., |change| !covered.contains(&change.id)).collect();
        for change in &lost {
            survive(&mut self.firm, &change.what, fate(rng), rng, &mut Kept::default());
        }
        // The page cache may go on showing them, or forget them.
        if rng.one_in(2) {
            self.seen.clone_from(&self.firm);
            for change in self.changes.iter().filter(|change| change.completed) {
                apply(&mut self.seen, &change.what);
            }
        }
    }

    /// A power cut: of all that no flush covered, any part survives.
    pub(super) fn crash(&mut self, rng: &mut Rng) -> Kept {
        let mut kept = Kept::default();
        let mut changes = std::mem::take(&mut self.changes);
        // The device writes in any order; a cut of the length keeps its place.
        if rng.one_in(2) && !changes.iter().any(|change| matches!(change.what, What::Cut(_))) {
            rng.shuffle(&mut changes);
        }
        // Half of the time all share a fate: everything gone, everything there.
        let common = rng.one_in(2).then(|| if rng.one_in(2) { Fate::Lost } else { Fate::Whole });
        for change in &changes {
            let fate = common.unwrap_or_else(|| fate(rng));
            survive(&mut self.firm, &change.what, fate, rng, &mut kept);
        }
        self.seen.clone_from(&self.firm);
        kept
    }

    /// What a reader with old pages sees of a sector: the firm content of it, if there is any.
    pub(super) fn stale(&self, offset: usize, into: &mut [u8], rng: &mut Rng) {
        for (sector, into) in into.chunks_mut(SECTOR_BYTES).enumerate() {
            let start = offset + sector * SECTOR_BYTES;
            if let Some(old) = self.firm.get(start..start + into.len())
                && rng.one_in(2)
            {
                into.copy_from_slice(old);
            }
        }
    }
}

fn apply(content: &mut Vec<u8>, what: &What) {
    match what {
        What::Write { offset, data } => put(content, *offset, data),
        What::Grow(bytes) if content.len() < *bytes => content.resize(*bytes, 0),
        What::Grow(_) => {}
        What::Cut(bytes) => content.truncate(*bytes),
    }
}

fn put(content: &mut Vec<u8>, offset: usize, data: &[u8]) {
    let end = offset + data.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[offset..end].copy_from_slice(data);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Lost,
    Whole,
    /// Up to a sector.
    Prefix,
    /// From a sector on.
    Suffix,
    /// Each sector for itself.
    Scattered,
}

fn fate(rng: &mut Rng) -> Fate {
    [Fate::Lost, Fate::Whole, Fate::Prefix, Fate::Suffix, Fate::Scattered][rng.below(5)]
}

fn survive(firm: &mut Vec<u8>, what: &What, fate: Fate, rng: &mut Rng, kept: &mut Kept) {
    let What::Write { offset, data } = what else {
        // A length is one thing: it is there or not.
        if fate == Fate::Whole || (fate != Fate::Lost && rng.one_in(2)) {
            apply(firm, what);
        }
        return;
    };
    let sectors = data.len().div_ceil(SECTOR_BYTES);
    let edge = rng.below(sectors + 1);
    let before = kept.sectors_kept;
    for (sector, data) in data.chunks(SECTOR_BYTES).enumerate() {
        let survives = match fate {
            Fate::Lost => false,
            Fate::Whole => true,
            Fate::Prefix => sector < edge,
            Fate::Suffix => sector >= edge,
            Fate::Scattered => rng.one_in(2),
        };
        if survives {
            put(firm, offset + sector * SECTOR_BYTES, data);
            kept.sectors_kept += 1;
        } else {
            kept.sectors_lost += 1;
        }
    }
    let survived = kept.sectors_kept - before;
    kept.writes_torn += u64::from(survived > 0 && survived < sectors as u64);
}
