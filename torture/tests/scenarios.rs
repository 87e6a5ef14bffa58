//! Every scenario, some thousand histories in all; the long runs are the binary's.

use hanaper_torture::scenario::{ALL, Scenario};
use hanaper_torture::sim::mutant::Mutant;

fn named(name: &str) -> Scenario {
    *ALL.iter().find(|s| s.name == name).expect("a scenario of that name")
}

fn holds(name: &str) {
    let count = std::env::var("HANAPER_TORTURE_ITERATIONS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(if name == "full_disk" { 100 } else { 250 });
    match named(name).run_many(1, count, Mutant::None) {
        // A run in which nothing happened would prove nothing.
        Ok(tally) => assert!(tally.recoveries > count / 2 && tally.acknowledged > 10 * count, "{tally:?}"),
        Err(violation) => panic!("{violation}"),
    }
}

macro_rules! hold {
    ($($name:ident),*) => { $(#[test] fn $name() { holds(stringify!($name)); })* };
}

hold!(crash, kill, crash_in_recovery, failed_sync, short_write, full_disk, recycled);

/// A seed that fails must fail again, or nobody can find out why.
#[test]
fn one_seed_is_one_history() {
    for scenario in ALL {
        for seed in 1000..1010 {
            let first = scenario.run(seed, Mutant::None).unwrap();
            assert_eq!(scenario.run(seed, Mutant::None).unwrap(), first, "{} {seed}", scenario.name);
            assert_ne!(scenario.run(seed + 1, Mutant::None).unwrap().1, first.1);
        }
    }
}

/// A planted bug that goes free would mean that a real one may, too.
fn convicts(mutant: Mutant, name: &str) {
    let guilty = (1..3000).find_map(|seed| named(name).run(seed, mutant).err());
    let violation = guilty.unwrap_or_else(|| panic!("{mutant:?} goes free in {name}"));
    println!("{mutant:?}: {violation}");
}

#[test]
fn acknowledging_before_the_sync_is_convicted() {
    convicts(Mutant::AckBeforeSync, "crash");
    convicts(Mutant::AckBeforeSync, "kill");
}

#[test]
fn acknowledging_after_a_fault_is_convicted() {
    convicts(Mutant::AckAfterFault, "failed_sync");
    convicts(Mutant::AckAfterFault, "short_write");
}

#[test]
fn blocking_syncs_that_do_nothing_are_convicted() {
    convicts(Mutant::NoFileSync, "crash");
}

#[test]
fn names_that_are_not_durable_are_convicted() {
    convicts(Mutant::NoNameSync, "crash");
}

#[test]
fn a_recovery_that_forgets_a_batch_is_convicted() {
    convicts(Mutant::DropsLastBatch, "crash");
}

#[test]
fn a_recovery_that_trusts_the_cache_is_convicted() {
    convicts(Mutant::TrustsTheCache, "kill");
}

#[test]
fn a_recovery_that_does_not_wait_for_late_writes_is_convicted() {
    convicts(Mutant::NoLock, "kill");
}

#[test]
fn a_failed_sync_that_is_passed_over_is_convicted() {
    convicts(Mutant::SyncNeverFails, "failed_sync");
}

/// Bugs that the simulation found, by the seed that showed each first. A seed names another history as soon as
/// the code makes another step, so each is also told in words.
mod found {
    use super::*;

    fn mended(name: &str, seeds: &[u64]) {
        for &seed in seeds {
            named(name).run(seed, Mutant::None).unwrap_or_else(|violation| panic!("{violation}"));
        }
    }

    /// A control record between two visits to one lane, in one batch: receipts named the wrong sequence.
    #[test]
    fn receipts_behind_a_control_record() {
        mended("crash", &[8, 15, 33, 135]);
    }

    /// The last sealed segment held no records, so log time began at its records' greatest time: zero.
    #[test]
    fn log_time_behind_a_segment_of_stamps() {
        mended("crash", &[285]);
        mended("kill", &[76]);
    }

    /// A producer whose clock stands still goes ahead of it; the last sealed segment had lower times than the one before.
    #[test]
    fn log_time_behind_a_producer_ahead_of_its_clock() {
        mended("recycled", &[9_101_188]);
    }

    /// A power cut between the truncation of a superseded recovery and its line in the manifest: the next
    /// recovery took the short file for its own, and refused for ever.
    #[test]
    fn a_superseded_recovery_that_was_cut_short() {
        mended("crash_in_recovery", &[113, 139, 145]);
    }

    /// A kill within a rename, then an opening that put the name on record, then a power cut.
    #[test]
    fn a_name_that_was_seen_and_not_durable() {
        mended("kill", &[133, 306]);
        mended("crash_in_recovery", &[538, 560]);
    }

    /// A failed sync of a manifest, a restart that read the entry out of the page cache, then a power cut.
    #[test]
    fn a_manifest_entry_that_only_seemed_to_be_there() {
        mended("failed_sync", &[15, 19, 27, 33, 51]);
    }

    /// The sync of the second commit failed and dropped the first one's pages; the first one's sync succeeded,
    /// and was heard of before the failure.
    #[test]
    fn a_failed_sync_that_took_an_earlier_commit_with_it() {
        mended("failed_sync", &[284]);
    }
}
