//! Every row of the decision table on real files: a state that only this row decides, what is found,
//! what recovery makes of it, and that nothing which was durable is cut.
//!
//! Take a row away, or change what follows from it, and its test here fails.

mod support;

use std::collections::BTreeMap;

use hanaper_shards::io::{Access, Disk};
use hanaper_shards::manifest::ShardState;
use hanaper_shards::segment::header::Origin;
use hanaper_shards::segment::scan::scan;
use hanaper_shards::wal::chain::{self, Chain, Examined, Walk};
use hanaper_shards::wal::recovery::RecoveryError;
use hanaper_shards::wal::table::{Action, By, ROWS};
use support::*;

/// A row without a test here fails this one.
#[test]
fn every_row_has_its_test_here() {
    let tested = [
        "next batch",
        "named end",
        "named end inside a batch",
        "hole below the watermark",
        "hole before a final end",
        "rotation not reached",
        "blank tail",
        "torn tail",
        "stale tail",
        "broken chain in the tail",
        "foreign tail",
    ];
    assert_eq!(ROWS.iter().map(|r| r.label).collect::<Vec<_>>(), tested);
    let here = include_str!("recovery_rows.rs");
    for label in tested {
        let name = format!("fn row_{}", label.replace(' ', "_"));
        assert!(here.contains(&name), "no test {name}");
    }
}

/// Recovers, and sees to it that old segments are as they were: at most zeros at their ends are cut off.
/// What one recovery shows, the next one shows again.
fn recover_and_check(rig: &Rig, found: &Examined) -> hanaper_shards::wal::recovery::Recovered {
    let before = rig.contents();
    let digests = |examined: &Examined| -> BTreeMap<u64, [u8; 32]> {
        examined.segments.iter().flat_map(|s| s.batches.iter().map(|e| (e.number, e.digest))).collect()
    };
    let start = rig.recover(0x51).unwrap();
    let recovered = start.recovered.clone().expect("it was not closed");
    assert_eq!(recovered.label, found.end.label);
    assert_eq!(recovered.cut_bytes, found.end.cut_bytes);
    assert!(recovered.carried.start <= found.watermark, "nothing below the watermark is left behind");
    assert_eq!(recovered.carried.end, found.chain.number, "all that is intact goes on");
    let after = rig.contents();
    for (name, old) in before.iter().filter(|(name, _)| name.ends_with(".segment")) {
        let Some(new) = after.get(name) else {
            assert!(old.iter().all(|&b| b == 0), "{name} had data and is gone");
            continue;
        };
        if old.iter().all(|&b| b == 0) {
            continue;
        }
        assert!(new.len() <= old.len(), "{name} has grown");
        assert!(new[..] == old[..new.len()], "{name}: recovery wrote to an old segment");
        assert!(old[new.len()..].iter().all(|&b| b == 0), "{name}: recovery cut data off");
    }
    drop(start);
    let again = rig.examine();
    assert!(again.damage.is_empty(), "{:?}", again.damage);
    assert_eq!(again.chain, found.chain);
    let (shown, now) = (digests(found), digests(&again));
    assert!(shown.iter().all(|(number, digest)| now.get(number) == Some(digest)), "{shown:?} became {now:?}");
    recovered
}

/// Refused, and not a byte of the folder is altered.
fn refused(rig: &Rig) -> Vec<hanaper_shards::wal::chain::Damage> {
    let before = rig.contents();
    let damage = match rig.recover(0x52) {
        Err(RecoveryError::Damaged(damage)) => damage,
        Err(error) => panic!("{error}"),
        Ok(start) => panic!("opened, with {:?}", start.recovered),
    };
    assert!(rig.contents() == before, "a refused open wrote something");
    damage
}

/// The label of the row that found the damage, which its meaning begins with.
fn refused_by(rig: &Rig, label: &str, verdict: &str) -> hanaper_shards::wal::chain::Damage {
    let damage = refused(rig);
    assert_eq!(damage.len(), 1, "{damage:?}");
    assert_eq!(damage[0].verdict, verdict, "{damage:?}");
    assert!(damage[0].meaning.starts_with(&format!("{label}:")), "{damage:?}");
    damage.into_iter().next().unwrap()
}

fn tail(rig: &Rig, label: &str, batches: u64) -> Examined {
    let found = rig.examine();
    assert!(found.damage.is_empty(), "{:?}", found.damage);
    assert_eq!((found.end.label, found.chain.number), (label, batches));
    found
}

/// Walks one segment under an end that its seal names. Opening never does: it trusts a footer.
fn walk_sealed(rig: &Rig, draft: &Draft, end: usize) -> Walk {
    let name = hanaper_shards::segment::paths::segment(PLACE.shard, draft.header.index);
    let file = rig.folder.open(&name, Access::ReadDirect).unwrap();
    let scan = scan(&rig.folder, &file, u64::MAX, &mut |_, _| {}).unwrap();
    let named = Some((end as u64, By::Seal));
    chain::walk(BLOCK as u32, PLACE, &draft.header, &scan, Chain::START, 0, named, &ShardState::default())
}

#[test]
fn row_next_batch() {
    let draft = Draft::first().batch(SHORT, 0).batch(LONG, 0).batch(SHORT, 2);
    let rig = Rig::with(&[&draft]);
    let found = tail(&rig, "blank tail", 3);
    assert_eq!(found.segments[0].batches, draft.batches);
    assert_eq!((found.watermark, found.chain), (2, draft.chain));
    let recovered = recover_and_check(&rig, &found);
    assert_eq!((recovered.watermark, recovered.carried), (2, 2..3));
    // On the way to an end that somebody names, too.
    let next = draft.rotated(2).batch(SHORT, 3);
    let found = tail(&Rig::with(&[&draft, &next]), "blank tail", 4);
    assert_eq!(found.segments.len(), 2);
}

#[test]
fn row_named_end() {
    // A recovery ended the segment after batch 1 and carried nothing: batch 2 is intact, it would
    // fit, and it must not come back.
    let mut old = Draft::first().batch(SHORT, 0).batch(SHORT, 0).batch(SHORT, 0);
    let new = old.recovered(1, 2, 0);
    let rig = Rig::with(&[&old, &new]);
    let found = tail(&rig, "blank tail", 2);
    assert_eq!(found.segments[0].batches, old.batches[..2], "a batch beyond the named end came back");
    assert_eq!(found.segments.len(), 2);
    recover_and_check(&rig, &found);
    // A rotation's end is crossed, and a seal's.
    let full = Draft::first().batch(SHORT, 0).batch(SHORT, 1);
    let next = full.rotated(2).batch(SHORT, 2);
    let rig = Rig::with(&[&full, &next]);
    assert_eq!(tail(&rig, "blank tail", 3).segments[0].end, full.end as u64);
    let walk = walk_sealed(&rig, &full, full.end);
    assert_eq!((walk.action, walk.label, walk.entries.len()), (Action::Cross, "named end", 2));
    // Whatever lies beyond, rubbish included.
    let at = old.at(2);
    old.lose(at..old.end);
    old.bytes[at..at + 100].fill(0x77);
    tail(&Rig::with(&[&old, &new]), "blank tail", 2);
}

#[test]
fn row_named_end_inside_a_batch() {
    for origin in [Origin::Recovery, Origin::Rotation] {
        let old = Draft::first().batch(SHORT, 0).batch(LONG, 1);
        let mut new = old.rotated(1);
        new.header.origin = origin;
        new.header.predecessor.as_mut().unwrap().end -= BLOCK as u64;
        new.write_header();
        let rig = Rig::with(&[&old, &new]);
        let damage = refused(&rig);
        assert!(damage[0].meaning.starts_with("named end inside a batch:"), "{damage:?}");
    }
    let old = Draft::first().batch(SHORT, 0).batch(LONG, 1);
    let walk = walk_sealed(&Rig::with(&[&old]), &old, old.end - BLOCK);
    assert_eq!((walk.action, walk.label), (Action::Damage, "named end inside a batch"));
}

#[test]
fn row_hole_below_the_watermark() {
    // Batch 1 is bad, and the header of batch 2 says that it was durable: corruption, and no tail.
    let mut draft = Draft::first().batch(SHORT, 0).batch(LONG, 0).batch(SHORT, 2);
    draft.tear(1);
    let rig = Rig::with(&[&draft]);
    let damage = refused_by(&rig, "hole below the watermark", "BATCH-DIGEST");
    let loss = damage.loss.expect("the next intact batch tells how much is gone");
    assert_eq!((loss.batches, loss.seqs), (1..2, 1..2));
    // Zeros, rubbish and an older life's batch in that place are no better.
    let intact = Draft::first().batch(SHORT, 0).batch(SHORT, 0).batch(SHORT, 2);
    let at = intact.at(1);
    let stale = Draft::first().batch(SHORT, 0).forge(SHORT, |h| h.incarnation = [0x0D; 16]);
    let foreign = Draft::first().batch(SHORT, 0).forge(SHORT, |h| h.log = [0xF0; 16]);
    let repeated = intact.bytes[intact.at(0)..][..BLOCK].to_vec();
    for (bytes, verdict) in [
        (vec![0; BLOCK], "BATCH-MISSING"),
        (vec![0x5A; BLOCK], "BATCH-MISSING"),
        (stale, "STALE"),
        (foreign, "FOREIGN-LOG"),
        (repeated, "BATCH-NUMBER"),
    ] {
        let rig = Rig::with(&[&intact]);
        rig.poke(0, at, &bytes);
        refused_by(&rig, "hole below the watermark", verdict);
    }
    // A rotation's end further on changes nothing about it.
    let mut full = Draft::first().batch(SHORT, 0).batch(SHORT, 0);
    let next = full.rotated(2);
    full.tear(1);
    refused_by(&Rig::with(&[&full, &next]), "hole below the watermark", "BATCH-DIGEST");
}

/// The scan goes on behind a bad batch, into later segments too: a header there may be the only one that
/// knows that the bad batch was durable.
#[test]
fn a_later_header_raises_the_watermark_over_a_bad_batch() {
    let mut full = Draft::first().batch(SHORT, 0).batch(LONG, 0).batch(SHORT, 0);
    let next = full.rotated(0).batch(SHORT, 1).batch(SHORT, 2);
    full.tear(1);
    let rig = Rig::with(&[&full, &next]);
    assert_eq!(rig.examine().watermark, 2);
    refused_by(&rig, "hole below the watermark", "BATCH-DIGEST");
    // The same one segment on.
    let second = full.rotated(0).batch(SHORT, 0);
    let third = second.rotated(0).batch(SHORT, 2);
    refused_by(&Rig::with(&[&full, &second, &third]), "hole below the watermark", "BATCH-DIGEST");
    // A header whose batch is itself torn still tells the truth about what was durable before.
    let mut torn = full.rotated(0).batch(LONG, 2);
    torn.tear(0);
    refused_by(&Rig::with(&[&full, &torn]), "hole below the watermark", "BATCH-DIGEST");
}

#[test]
fn row_hole_before_a_final_end() {
    // No watermark says that batch 1 was durable, but a recovery read the segment and kept it.
    let mut old = Draft::first().batch(SHORT, 0).batch(LONG, 0).batch(SHORT, 0);
    let mut new = old.recovered(1, 3, 0);
    new.header.durable = 0;
    new.write_header();
    old.tear(1);
    let rig = Rig::with(&[&old, &new]);
    assert_eq!(rig.examine().watermark, 0);
    refused_by(&rig, "hole before a final end", "BATCH-DIGEST");
    let walk = walk_sealed(&rig, &old, old.end);
    assert_eq!((walk.action, walk.label), (Action::Damage, "hole before a final end"));
}

#[test]
fn row_rotation_not_reached() {
    // The successor's first write overtook the predecessor's last one. Nothing of either was acknowledged.
    let mut full = Draft::first().batch(SHORT, 0).batch(SHORT, 1).batch(LONG, 1);
    let next = full.rotated(1).batch(SHORT, 1).batch(SHORT, 1);
    full.tear(2);
    let rig = Rig::with(&[&full, &next]);
    let found = tail(&rig, "rotation not reached", 2);
    assert_eq!(found.watermark, 1);
    assert_eq!(found.end.cut_bytes, (full.end - full.at(2) + next.end) as u64);
    let recovered = recover_and_check(&rig, &found);
    assert_eq!(recovered.carried, 1..2);
    assert_eq!(recovered.predecessor, Some(full.as_predecessor(full.at(1))));
    let void = &rig.manifest().state.segments[&1];
    assert_eq!(*void, hanaper_shards::manifest::SegmentState::Void, "what was not reached is put on record");
    // The same with zeros, since the last batch never began to arrive.
    full.lose(full.at(2)..full.end);
    let rig = Rig::with(&[&full, &next]);
    let found = tail(&rig, "rotation not reached", 2);
    recover_and_check(&rig, &found);
}

#[test]
fn row_blank_tail() {
    let draft = Draft::first().batch(SHORT, 0).batch(SHORT, 1);
    let rig = Rig::with(&[&draft]);
    let found = tail(&rig, "blank tail", 2);
    assert_eq!(found.end.cut_bytes, 0);
    recover_and_check(&rig, &found);
    // A file that ends right behind the last batch was longer before.
    let rig = Rig::with(&[&draft]);
    let file = std::fs::OpenOptions::new().write(true).open(rig.path(0)).unwrap();
    file.set_len(draft.end as u64).unwrap();
    assert_eq!(refused(&rig)[0].verdict, "LENGTH");
}

#[test]
fn row_torn_tail() {
    let mut draft = Draft::first().batch(SHORT, 0).batch(SHORT, 1).batch(LONG, 1);
    let (at, end) = (draft.at(2), draft.end);
    draft.tear(2);
    let rig = Rig::with(&[&draft]);
    let found = tail(&rig, "torn tail", 2);
    assert_eq!(found.end.cut_bytes, (end - at) as u64);
    let recovered = recover_and_check(&rig, &found);
    assert_eq!(recovered.carried, 1..2);
    // Its header is lost, the rest arrived.
    draft.lose(at..at + 512);
    let rig = Rig::with(&[&draft]);
    let found = tail(&rig, "torn tail", 2);
    recover_and_check(&rig, &found);
}

#[test]
fn row_stale_tail() {
    // A recycled file: where this life's batches end, an older life's go on. Same log, same shard, good
    // checksums, even the number, the sequence and the predecessor that would be next.
    let mut draft = Draft::first().batch(SHORT, 0).batch(SHORT, 1);
    let old = draft.forge(SHORT, |h| h.incarnation = [0x0D; 16]);
    let at = draft.end;
    draft.bytes[at..at + old.len()].copy_from_slice(&old);
    let rig = Rig::with(&[&draft]);
    let found = tail(&rig, "stale tail", 2);
    assert_eq!(found.end.cut_bytes, old.len() as u64);
    let recovered = recover_and_check(&rig, &found);
    assert_eq!(recovered.carried, 1..2);
}

#[test]
fn row_broken_chain_in_the_tail() {
    let draft = Draft::first().batch(SHORT, 0).batch(SHORT, 1);
    type Change = fn(&mut hanaper_shards::batch::Header);
    let changes: [(&str, Change); 4] = [
        ("number", |h| h.number += 1),
        ("sequence", |h| h.first_seq += 1),
        ("predecessor", |h| h.previous[7] ^= 1),
        ("place", |h| h.offset += BLOCK as u64),
    ];
    for (what, change) in changes {
        let mut draft = draft.clone();
        let bytes = draft.forge(SHORT, change);
        let at = draft.end;
        draft.bytes[at..at + bytes.len()].copy_from_slice(&bytes);
        let rig = Rig::with(&[&draft]);
        let found = rig.examine();
        assert_eq!((found.end.label, found.chain.number), ("broken chain in the tail", 2), "{what}");
        recover_and_check(&rig, &found);
    }
}

#[test]
fn row_foreign_tail() {
    type Change = fn(&mut hanaper_shards::batch::Header);
    let changes: [Change; 3] = [|h| h.log = [0xF0; 16], |h| h.shard = 9, |h| h.generation = 9];
    for change in changes {
        let mut draft = Draft::first().batch(SHORT, 0).batch(SHORT, 1);
        let bytes = draft.forge(SHORT, change);
        let at = draft.end;
        draft.bytes[at..at + bytes.len()].copy_from_slice(&bytes);
        let rig = Rig::with(&[&draft]);
        let found = tail(&rig, "foreign tail", 2);
        recover_and_check(&rig, &found);
    }
}
