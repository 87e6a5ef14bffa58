//! Decides what to send where: facts in, commands out, no I/O, no clock.
//!
//! Invariants, whatever the order of facts and however often one is repeated:
//! - a copy counts only after it was read back with the right digest;
//! - segments of a shard are replicated in order: `replicated` is the contiguous prefix at the quorum;
//! - a local segment is offered for reclaiming only below `replicated`;
//! - after a crash, telling it all facts again repeats work, and never skips any.

use std::collections::{BTreeMap, BTreeSet};

/// A sealed segment, named by its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sealed {
    /// Index within the shard.
    pub index: u64,
    /// Digest that the manifest sealed.
    pub digest: [u8; 32],
}

/// A place that copies go to, by its number in the settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Store(pub u16);

/// Something that has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fact {
    /// A segment was sealed locally.
    Sealed(Sealed),
    /// A store has taken all of it; nothing is proven yet.
    Uploaded(Store, u64),
    /// It was read back from the store, with this digest.
    ReadBack(Store, u64, [u8; 32]),
    /// A command about it failed; it is asked for again.
    Failed(Store, u64),
}

/// Something to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Command {
    /// Send the segment to the store, under a name that holds its digest.
    Upload(Store, Sealed),
    /// Read it back from the store, and tell the digest.
    ReadBack(Store, Sealed),
    /// The store gave back other bytes than it was given: name it to a person. Never retried by itself.
    Accuse(Store, Sealed),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Copy {
    /// To be sent.
    Wanted,
    /// The command is out.
    Sending,
    /// Sent; to be read back.
    Sent,
    /// The command is out.
    Reading,
    /// Read back, and right.
    Verified,
    /// Read back, and wrong.
    Liar,
}

/// The plan for one shard.
#[derive(Debug, Clone)]
pub struct Planner {
    stores: Vec<Store>,
    quorum: usize,
    in_flight_max: usize,
    segments: BTreeMap<u64, (Sealed, Vec<Copy>)>,
    accused: BTreeSet<(u64, Store)>,
    /// Segments below this index are at the quorum.
    replicated: u64,
    first: Option<u64>,
}

impl Planner {
    /// `quorum` of these stores must hold a verified copy; at most `in_flight_max` commands are out for each store.
    ///
    /// # Panics
    /// If the quorum is zero or more than there are stores: the engine checks settings where they come in.
    pub fn new(stores: Vec<Store>, quorum: usize, in_flight_max: usize) -> Planner {
        assert!((1..=stores.len()).contains(&quorum) && in_flight_max > 0);
        Planner {
            stores,
            quorum,
            in_flight_max,
            segments: BTreeMap::new(),
            accused: BTreeSet::new(),
            replicated: 0,
            first: None,
        }
    }

    /// Takes a fact. What it does not know, or knows already, changes nothing.
    pub fn tell(&mut self, fact: Fact) {
        match fact {
            Fact::Sealed(sealed) => {
                let copies = vec![Copy::Wanted; self.stores.len()];
                self.segments.entry(sealed.index).or_insert((sealed, copies));
                self.first = Some(self.first.map_or(sealed.index, |f| f.min(sealed.index)));
            }
            Fact::Uploaded(store, index) => self.step(store, index, |copy, _| match copy {
                Copy::Wanted | Copy::Sending => Copy::Sent,
                other => other,
            }),
            Fact::ReadBack(store, index, digest) => self.step(store, index, |copy, sealed| match copy {
                Copy::Verified | Copy::Liar => copy,
                _ if digest == sealed.digest => Copy::Verified,
                _ => Copy::Liar,
            }),
            Fact::Failed(store, index) => self.step(store, index, |copy, _| match copy {
                Copy::Sending => Copy::Wanted,
                Copy::Reading => Copy::Sent,
                other => other,
            }),
        }
        self.advance();
    }

    fn step(&mut self, store: Store, index: u64, next: impl Fn(Copy, &Sealed) -> Copy) {
        let Some(at) = self.stores.iter().position(|&s| s == store) else { return };
        if let Some((sealed, copies)) = self.segments.get_mut(&index) {
            copies[at] = next(copies[at], sealed);
        }
    }

    fn advance(&mut self) {
        let Some(first) = self.first else { return };
        let mut end = first.max(self.replicated);
        while self.segments.get(&end).is_some_and(|(_, copies)| self.verified(copies) >= self.quorum) {
            end += 1;
        }
        assert!(end >= self.replicated, "what was replicated stays replicated");
        self.replicated = end;
    }

    fn verified(&self, copies: &[Copy]) -> usize {
        copies.iter().filter(|c| **c == Copy::Verified).count()
    }

    /// What to do now; each command is given once, until it fails.
    pub fn commands(&mut self) -> Vec<Command> {
        let mut out = Vec::new();
        for (at, &store) in self.stores.iter().enumerate() {
            let busy = |c: &Copy| matches!(c, Copy::Sending | Copy::Reading);
            let mut in_flight = self.segments.values().filter(|(_, copies)| busy(&copies[at])).count();
            for (sealed, copies) in self.segments.values_mut() {
                if copies[at] == Copy::Liar && self.accused.insert((sealed.index, store)) {
                    out.push(Command::Accuse(store, *sealed));
                }
                if in_flight == self.in_flight_max {
                    continue;
                }
                let (next, command) = match copies[at] {
                    Copy::Wanted => (Copy::Sending, Command::Upload(store, *sealed)),
                    Copy::Sent => (Copy::Reading, Command::ReadBack(store, *sealed)),
                    _ => continue,
                };
                copies[at] = next;
                in_flight += 1;
                out.push(command);
            }
        }
        out
    }

    /// Segments below this index are held by a quorum of stores, verified: what a checkpoint that is
    /// published may cover, and what may be reclaimed locally where policy allows it.
    pub fn replicated(&self) -> u64 {
        self.replicated
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(index: u64) -> Sealed {
        Sealed { index, digest: [index as u8; 32] }
    }

    fn settle(planner: &mut Planner, honest: impl Fn(Store) -> bool) -> Vec<Command> {
        let mut accusations = Vec::new();
        loop {
            let commands = planner.commands();
            if commands.is_empty() {
                return accusations;
            }
            for command in commands {
                match command {
                    Command::Upload(store, s) => planner.tell(Fact::Uploaded(store, s.index)),
                    Command::ReadBack(store, s) => {
                        let digest = if honest(store) { s.digest } else { [0xEE; 32] };
                        planner.tell(Fact::ReadBack(store, s.index, digest));
                    }
                    Command::Accuse(..) => accusations.push(command),
                }
            }
        }
    }

    #[test]
    fn an_upload_alone_counts_for_nothing() {
        let mut planner = Planner::new(vec![Store(0), Store(1)], 2, 4);
        planner.tell(Fact::Sealed(sealed(0)));
        for command in planner.commands() {
            let Command::Upload(store, s) = command else { panic!("{command:?}") };
            planner.tell(Fact::Uploaded(store, s.index));
        }
        assert_eq!(planner.replicated(), 0);
        settle(&mut planner, |_| true);
        assert_eq!(planner.replicated(), 1);
    }

    #[test]
    fn a_liar_is_named_and_does_not_count() {
        let mut planner = Planner::new(vec![Store(0), Store(1), Store(2)], 2, 1);
        (0..5).for_each(|i| planner.tell(Fact::Sealed(sealed(i))));
        let accused = settle(&mut planner, |store| store != Store(1));
        assert_eq!(accused.len(), 5);
        assert_eq!(planner.replicated(), 5, "two honest ones are a quorum");
        let mut planner = Planner::new(vec![Store(0), Store(1)], 2, 1);
        planner.tell(Fact::Sealed(sealed(0)));
        settle(&mut planner, |store| store != Store(1));
        assert_eq!(planner.replicated(), 0);
    }

    #[test]
    fn a_gap_holds_back_what_comes_after_it() {
        let mut planner = Planner::new(vec![Store(0)], 1, 8);
        (0..3).for_each(|i| planner.tell(Fact::Sealed(sealed(i))));
        for i in [0, 2] {
            planner.tell(Fact::ReadBack(Store(0), i, sealed(i).digest));
        }
        assert_eq!(planner.replicated(), 1);
        planner.tell(Fact::ReadBack(Store(0), 1, sealed(1).digest));
        assert_eq!(planner.replicated(), 3);
    }

    #[test]
    fn what_failed_is_asked_for_again_and_facts_may_repeat() {
        let mut planner = Planner::new(vec![Store(0)], 1, 1);
        planner.tell(Fact::Sealed(sealed(0)));
        assert_eq!(planner.commands(), [Command::Upload(Store(0), sealed(0))]);
        assert_eq!(planner.commands(), []);
        planner.tell(Fact::Failed(Store(0), 0));
        assert_eq!(planner.commands(), [Command::Upload(Store(0), sealed(0))]);
        for _ in 0..2 {
            planner.tell(Fact::Uploaded(Store(0), 0));
            planner.tell(Fact::Sealed(sealed(0)));
        }
        assert_eq!(planner.commands(), [Command::ReadBack(Store(0), sealed(0))]);
        for _ in 0..2 {
            planner.tell(Fact::ReadBack(Store(0), 0, sealed(0).digest));
        }
        assert_eq!((planner.replicated(), planner.commands().len()), (1, 0));
    }
}
