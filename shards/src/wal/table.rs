//! The decision table of recovery: what stands at one position of the chain, and what follows.
//!
//! Three things are known of a position: what is there ([`Here`]), whether a batch must be there
//! because it was once known to be durable (`below`), and whether somebody says where this
//! segment ends ([`Claim`]). Each combination finds exactly one row; a test walks them all.

/// What stands at a position, compared with what the chain expects there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Here {
    /// The next batch of the chain, intact.
    Valid,
    /// Zeros, or the end of the file.
    Blank,
    /// Data, and no batch header.
    Garbage,
    /// A header of this segment whose batch is not whole.
    Torn,
    /// A batch of another life of this file, or one that this segment does not admit.
    Stale,
    /// An intact batch of this segment that does not continue the chain: wrong number, sequence, predecessor or place.
    OutOfChain,
    /// A batch of another log, layout or shard.
    Foreign,
}

impl Here {
    /// All of them.
    pub const ALL: [Here; 7] =
        [Here::Valid, Here::Blank, Here::Garbage, Here::Torn, Here::Stale, Here::OutOfChain, Here::Foreign];
}

/// Who says where this segment ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum By {
    /// The next segment's header, written while batches before it may have been in flight.
    Rotation,
    /// The next segment's header, written by a recovery that had read this segment: final.
    Recovery,
    /// The manifest and the footer, written when all of it was durable: final.
    Seal,
}

/// Where the named end is, seen from this position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Claim {
    /// Nobody names an end.
    None,
    /// Right here.
    Here(By),
    /// Further on.
    Later(By),
    /// It was passed: it lies inside a batch.
    Passed(By),
}

impl Claim {
    /// All of them.
    pub const ALL: [Claim; 10] = [
        Claim::None,
        Claim::Here(By::Rotation),
        Claim::Here(By::Recovery),
        Claim::Here(By::Seal),
        Claim::Later(By::Rotation),
        Claim::Later(By::Recovery),
        Claim::Later(By::Seal),
        Claim::Passed(By::Rotation),
        Claim::Passed(By::Recovery),
        Claim::Passed(By::Seal),
    ];

    /// Compares a named end with a position.
    pub fn at(named: Option<(u64, By)>, position: u64) -> Claim {
        match named {
            None => Claim::None,
            Some((end, by)) if end == position => Claim::Here(by),
            Some((end, by)) if end > position => Claim::Later(by),
            Some((_, by)) => Claim::Passed(by),
        }
    }
}

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// It is the next batch; go on behind it.
    Accept,
    /// This segment ends here; go on in the one that names this end.
    Cross,
    /// The log ends here. What lies beyond was never acknowledged.
    Tail,
    /// Something that was durable is gone or altered. Repair or refuse; never cut.
    Damage,
}

/// One row: a label, whom it is for, what follows.
pub struct Row {
    /// For people, tests and control records.
    pub label: &'static str,
    /// Whether the row is for this combination.
    pub matches: fn(Here, bool, Claim) -> bool,
    /// What follows.
    pub action: Action,
}

/// The table.
pub const ROWS: [Row; 11] = [
    Row {
        label: "next batch",
        matches: |here, _, claim| here == Here::Valid && matches!(claim, Claim::None | Claim::Later(_)),
        action: Action::Accept,
    },
    // Whatever stands at a named end is void, a batch that would fit included: it cannot come back.
    Row { label: "named end", matches: |_, _, claim| matches!(claim, Claim::Here(_)), action: Action::Cross },
    Row {
        label: "named end inside a batch",
        matches: |_, _, claim| matches!(claim, Claim::Passed(_)),
        action: Action::Damage,
    },
    Row {
        label: "hole below the watermark",
        matches: |here, below, claim| {
            here != Here::Valid && below && matches!(claim, Claim::None | Claim::Later(By::Rotation))
        },
        action: Action::Damage,
    },
    // Seals and recoveries name an end only when all before it is durable.
    Row {
        label: "hole before a final end",
        matches: |here, _, claim| {
            here != Here::Valid && matches!(claim, Claim::Later(By::Recovery | By::Seal))
        },
        action: Action::Damage,
    },
    // The next segment's first write overtook the last ones of this segment.
    Row {
        label: "rotation not reached",
        matches: |here, below, claim| here != Here::Valid && !below && claim == Claim::Later(By::Rotation),
        action: Action::Tail,
    },
    Row {
        label: "blank tail",
        matches: |here, below, claim| here == Here::Blank && !below && claim == Claim::None,
        action: Action::Tail,
    },
    Row {
        label: "torn tail",
        matches: |here, below, claim| {
            matches!(here, Here::Torn | Here::Garbage) && !below && claim == Claim::None
        },
        action: Action::Tail,
    },
    Row {
        label: "stale tail",
        matches: |here, below, claim| here == Here::Stale && !below && claim == Claim::None,
        action: Action::Tail,
    },
    Row {
        label: "broken chain in the tail",
        matches: |here, below, claim| here == Here::OutOfChain && !below && claim == Claim::None,
        action: Action::Tail,
    },
    Row {
        label: "foreign tail",
        matches: |here, below, claim| here == Here::Foreign && !below && claim == Claim::None,
        action: Action::Tail,
    },
];

/// Finds the row.
pub fn decide(here: Here, below: bool, claim: Claim) -> &'static Row {
    ROWS.iter().find(|row| (row.matches)(here, below, claim)).expect("the table is complete: a test walks it")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two rows for one state would make the order of the table part of its meaning.
    #[test]
    fn every_combination_finds_exactly_one_row() {
        let mut used = [false; ROWS.len()];
        for here in Here::ALL {
            for below in [false, true] {
                for claim in Claim::ALL {
                    let rows: Vec<usize> =
                        (0..ROWS.len()).filter(|&i| (ROWS[i].matches)(here, below, claim)).collect();
                    assert_eq!(rows.len(), 1, "{here:?} below={below} {claim:?}: {rows:?}");
                    used[rows[0]] = true;
                }
            }
        }
        assert_eq!(used, [true; ROWS.len()], "a row that no state finds");
    }

    /// The promise itself, stated apart from the rows.
    #[test]
    fn nothing_below_the_watermark_is_ever_cut() {
        for here in Here::ALL {
            for claim in Claim::ALL {
                assert_ne!(decide(here, true, claim).action, Action::Tail, "{here:?} {claim:?}");
            }
        }
    }
}
