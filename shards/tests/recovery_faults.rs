//! What crashes, old contents, and hands that move files make of a shard, and what opening it then does.

mod support;

use std::os::unix::fs::FileExt;

use hanaper_shards::batch::Digest;
use hanaper_shards::manifest::{SegmentState, ShardManifest};
use hanaper_shards::segment::paths;
use hanaper_shards::wal::chain::{self, Damage, Place, UnusedKind};
use hanaper_shards::wal::recovery::RecoveryError;
use support::*;

/// The refusal, after which not a byte of the folder may be altered.
fn refused(rig: &Rig) -> Vec<Damage> {
    let before = rig.contents();
    let damage = match rig.recover(0x52) {
        Err(RecoveryError::Damaged(damage)) => damage,
        Err(error) => panic!("{error}"),
        Ok(start) => panic!("opened, with {:?}", start.recovered),
    };
    assert!(rig.contents() == before, "a refused open wrote something");
    damage
}

fn verdicts(rig: &Rig) -> Vec<&'static str> {
    refused(rig).iter().map(|d| d.verdict).collect()
}

/// Digests of all batches that count, by number.
fn shown(rig: &Rig) -> Vec<Digest> {
    let found = rig.examine();
    assert!(found.damage.is_empty(), "{:?}", found.damage);
    let mut digests = Vec::new();
    for segment in &found.segments {
        // A segment's carried batches stand in for those that its predecessor lost to it.
        digests.truncate(segment.header.first_batch as usize);
        digests.extend(segment.batches.iter().map(|e| e.digest));
    }
    digests
}

/// Where a tear leaves its mark.
#[derive(Clone, Copy, Debug)]
enum Tear {
    /// Nothing from here on reached the disk.
    From(usize),
    /// This one sector did not, though later ones did.
    Sector(usize),
    /// A bit of this byte is wrong.
    Bit(usize),
}

impl Tear {
    fn strike(self, rig: &Rig, index: u64, end: usize) {
        match self {
            Tear::From(at) => rig.poke(index, at, &vec![0; end - at]),
            Tear::Sector(at) => rig.poke(index, at, &[0; 512]),
            Tear::Bit(at) => rig.flip(index, at),
        }
    }

    fn at(self) -> usize {
        let (Tear::From(at) | Tear::Sector(at) | Tear::Bit(at)) = self;
        at
    }
}

/// Torn in the last two batches, opened, appended to, torn in the same way again, opened again: what lies
/// before the tear is kept with its digests, and what lies behind it never comes back.
#[test]
fn a_tail_torn_anywhere_keeps_what_lies_before_it() {
    let draft = Draft::first().batch(SHORT, 0).batch(SHORT, 1).batch(LONG, 2).batch(LONG, 2);
    let from = draft.at(2);
    let sectors = (from..draft.end).step_by(512);
    let mut tears: Vec<Tear> = sectors.flat_map(|at| [Tear::From(at), Tear::Sector(at)]).collect();
    tears.extend((from..draft.end).step_by(997).map(Tear::Bit));
    // All bytes that matter within the first header, its digest's first, and the last byte of all.
    tears.extend([8, 16, 32, 48, 56, 96, 104, 160, 255, 256].map(|at| Tear::Bit(from + at)));
    tears.push(Tear::Bit(draft.end - 1));
    // Each waits for the disk most of the time.
    std::thread::scope(|scope| {
        for part in tears.chunks(tears.len().div_ceil(8)) {
            scope.spawn(|| part.iter().for_each(|tear| tear_and_open(&draft, *tear)));
        }
    });
}

fn tear_and_open(draft: &Draft, tear: Tear) {
    let torn_batch = if tear.at() < draft.at(3) { 2 } else { 3 };
    let rig = Rig::with(&[draft]);
    rig.spare(1);
    tear.strike(&rig, 0, draft.end);
    // Zeros where there were zeros tear nothing.
    let torn = std::fs::read(rig.path(0)).unwrap();
    let place = |b: usize| draft.at(b)..draft.batches[b].end(BLOCK as u32) as usize;
    let whole = (0..4).find(|&b| torn[place(b)] != draft.bytes[place(b)]).unwrap_or(4);
    let mut start = rig.recover(1).unwrap_or_else(|e| panic!("{tear:?}: {e}"));
    let digests: Vec<Digest> = draft.batches[..whole].iter().map(|e| e.digest).collect();
    assert_eq!(shown(&rig), digests, "{tear:?}");
    // Appended to, and the last of it torn as before, relative to where it begins.
    append(&rig, &mut start, SHORT, whole as u64);
    let kept = shown(&rig);
    let last = append(&rig, &mut start, LONG, whole as u64 + 1);
    let index = start.active.as_ref().unwrap().header.index;
    drop(start);
    let shift = |at: usize| (at - draft.at(torn_batch)) % (3 * BLOCK) + last.offset as usize;
    let again = match tear {
        Tear::From(at) => Tear::From(shift(at)),
        Tear::Sector(at) => Tear::Sector(shift(at)),
        Tear::Bit(at) => Tear::Bit(shift(at)),
    };
    let before = std::fs::read(rig.path(index)).unwrap();
    again.strike(&rig, index, last.end(BLOCK as u32) as usize);
    let altered = before != std::fs::read(rig.path(index)).unwrap();
    let start = rig.recover(2).unwrap_or_else(|e| panic!("{tear:?} again: {e}"));
    let survived = shown(&rig);
    assert_eq!(survived[..kept.len()], kept, "{tear:?} again");
    assert_eq!(survived.len(), kept.len() + usize::from(!altered), "{tear:?} again");
    assert_eq!(start.chain.number as usize, survived.len());
}

/// A recycled file: behind this life's batches, and under the torn one, stands what an older life of the
/// same shard left there, with good checksums and numbers that would fit.
#[test]
fn an_older_life_in_a_recycled_file_is_never_taken_for_the_tail() {
    let whole = Draft::first().batch(SHORT, 0).batch(SHORT, 1).batch(LONG, 1);
    let mut old_life = Draft::first();
    old_life.header.incarnation = [0x0D; 16];
    for _ in 0..6 {
        old_life.push(SHORT, 0);
    }
    // (a) the old life goes on where the new one ends
    let mut behind = whole.clone();
    let from = behind.end;
    behind.bytes[from..from + BLOCK].copy_from_slice(&old_life.bytes[old_life.at(3)..][..BLOCK]);
    let rig = Rig::with(&[&behind]);
    let found = rig.examine();
    assert_eq!((found.end.label, found.chain.number), ("stale tail", 3));
    // (b) the last batch never arrived, and the old life's third stands in its place
    let mut instead = whole.clone();
    let (from, end) = (instead.at(2), instead.end);
    instead.lose(from..end);
    instead.bytes[from..from + BLOCK].copy_from_slice(&old_life.bytes[old_life.at(2)..][..BLOCK]);
    // (c) only its first block arrived; the old life shows through in the others
    let mut under = whole.clone();
    let from = under.at(2) + BLOCK;
    under.bytes[from..from + BLOCK].copy_from_slice(&old_life.bytes[old_life.at(2)..][..BLOCK]);
    for (draft, label) in [(&instead, "stale tail"), (&under, "torn tail")] {
        let rig = Rig::with(&[draft]);
        let found = rig.examine();
        assert_eq!((found.end.label, found.chain.number), (label, 2));
        let start = rig.recover(1).unwrap();
        assert_eq!(start.chain.number, 2);
        drop(start);
        assert_eq!(shown(&rig), [whole.batches[0].digest, whole.batches[1].digest]);
    }
    // What the old life says of its own durability is still true, and moves nothing here: it is lower.
    // But an old batch over one that was durable is damage.
    let rig = Rig::with(&[&whole.clone().batch(SHORT, 3)]);
    rig.poke(0, whole.at(1), &old_life.bytes[old_life.at(1)..][..BLOCK]);
    assert_eq!(verdicts(&rig), ["STALE"]);
}

/// The state that a crash in the middle of writing the successor leaves, for each amount that got through.
#[test]
fn a_crash_loop_in_recovery_uses_no_space() {
    let draft = Draft::first().batch(SHORT, 0).batch(LONG, 1).batch(LONG, 1).batch(SHORT, 1);
    let rig = Rig::with(&[&draft]);
    let manifest = paths::shard_manifest(PLACE.shard);
    let mut bytes = None;
    let mut target = None;
    for life in 0..50u8 {
        let prepared = rig.contents();
        let start = rig.recover(life + 1).unwrap();
        let index = start.active.as_ref().unwrap().header.index;
        assert_eq!(*target.get_or_insert(index), index, "loop {life} took another file");
        let recovered = start.recovered.as_ref().unwrap();
        assert_eq!(recovered.carried, 1..4);
        drop(start);
        assert_eq!(shown(&rig), draft.batches.iter().map(|e| e.digest).collect::<Vec<_>>());
        assert_eq!(rig.contents().keys().len(), 3, "one old segment, one new, and the manifest");
        // The crash: header only, or the header and more and more of what is carried; the manifest as
        // it was before the predecessors were settled.
        let through = BLOCK + usize::from(life % 7) * BLOCK;
        let written = std::fs::read(rig.path(index)).unwrap();
        rig.poke(index, through, &vec![0; written.len() - through]);
        if life > 0 {
            rig.restore(&manifest, &prepared);
        }
        let now = rig.bytes();
        assert!(now <= *bytes.get_or_insert(now), "loop {life}: the folder grew to {now}");
    }
    let examined = rig.examine();
    assert_eq!(examined.unused.len(), 1);
    assert_eq!(examined.unused[0].what, UnusedKind::UnfinishedRecovery);
}

/// The same when the crash comes after the successor is durable and before the old ones are settled: it
/// is finished, so it counts, and the next recovery needs one more file at most.
#[test]
fn a_crash_before_the_predecessors_are_settled_is_harmless() {
    let draft = Draft::first().batch(SHORT, 0).batch(LONG, 1).batch(LONG, 1);
    let rig = Rig::with(&[&draft]);
    rig.spare(1);
    rig.spare(2);
    let digests: Vec<Digest> = draft.batches.iter().map(|e| e.digest).collect();
    for life in 0..10 {
        let start = rig.recover(life + 1).unwrap();
        assert_eq!(start.chain, draft.chain);
        drop(start);
        rig.forget_void_lines();
        assert_eq!(shown(&rig), digests, "after loop {life}");
        assert!(rig.contents().keys().len() <= 4);
    }
}

#[test]
fn a_finished_recovery_survives_the_next_one() {
    let mut draft = Draft::first().batch(SHORT, 0).batch(SHORT, 1).batch(LONG, 1).batch(SHORT, 1);
    draft.tear(3);
    let rig = Rig::with(&[&draft]);
    let mut digests: Vec<Digest> = draft.batches[..3].iter().map(|e| e.digest).collect();
    for life in 1..8 {
        let mut start = rig.recover(life).unwrap();
        assert_eq!(shown(&rig), digests, "opening {life}");
        // One life in two acknowledges something before it dies, without a stamp.
        if life % 2 == 0 {
            digests.push(append(&rig, &mut start, SHORT, digests.len() as u64).digest);
        }
    }
    assert_eq!(shown(&rig), digests);
}

/// What recovery took out of the chain is on record, so that no later state of the disk brings it back.
#[test]
fn void_segments_are_put_on_record() {
    let mut full = Draft::first().batch(SHORT, 0).batch(SHORT, 1).batch(LONG, 1);
    let next = full.rotated(1).batch(SHORT, 1);
    full.tear(2);
    let rig = Rig::with(&[&full, &next]);
    drop(rig.recover(1).unwrap());
    let state = rig.manifest().state;
    assert_eq!(state.segments[&1], SegmentState::Void);
    assert!(matches!(state.segments[&0], SegmentState::Exists { .. }), "it keeps batch 0");
    // The predecessor's last batch turns up whole after all (a cache that held it back): it stays void.
    let whole = Draft::first().batch(SHORT, 0).batch(SHORT, 1).batch(LONG, 1);
    rig.poke(0, whole.at(2), &whole.bytes[whole.at(2)..whole.end]);
    let found = rig.examine();
    assert_eq!((found.damage.len(), found.chain.number), (0, 2), "a zombie came back");
}

/// Nothing says that any batch of three segments is durable: all that is intact is carried, out of all three.
#[test]
fn two_rotations_in_doubt_are_carried_together() {
    let first = Draft::first().batch(SHORT, 0).batch(SHORT, 0).batch(SHORT, 1);
    let second = first.rotated(1).batch(SHORT, 1).batch(LONG, 1);
    let third = second.rotated(1).batch(SHORT, 1);
    let rig = Rig::with(&[&first, &second, &third]);
    let start = rig.recover(9).unwrap();
    assert_eq!(start.recovered.as_ref().unwrap().carried, 1..6);
    let carried = &start.active.as_ref().unwrap().header.carried;
    let ranges: Vec<_> = carried.iter().map(|c| (c.incarnation, c.first..c.end)).collect();
    assert_eq!(ranges, [(incarnation(0), 1..3), (incarnation(1), 3..5), (incarnation(2), 5..6)]);
    drop(start);
    let all = [&first, &second, &third].into_iter().flat_map(|d| &d.batches);
    let digests: Vec<Digest> = all.map(|e| e.digest).collect();
    assert_eq!(shown(&rig), digests);
    for index in [1, 2] {
        assert_eq!(rig.manifest().state.segments[&index], SegmentState::Void);
    }
    // And once more, now out of a segment that itself carries three ranges.
    let mut start = rig.recover(10).unwrap();
    append(&rig, &mut start, SHORT, 1);
    drop(start);
    let start = rig.recover(11).unwrap();
    assert_eq!(start.recovered.as_ref().unwrap().carried, 1..7);
    drop(start);
    assert_eq!(shown(&rig)[..6], digests);
}

#[test]
fn a_missing_segment_is_named() {
    let full = Draft::first().batch(SHORT, 0).batch(SHORT, 1);
    let next = full.rotated(2).batch(SHORT, 2);
    for gone in [0, 1] {
        let rig = Rig::with(&[&full, &next]);
        std::fs::remove_file(rig.path(gone)).unwrap();
        let damage = refused(&rig);
        assert!(
            damage.iter().any(|d| d.verdict == "MISSING" && d.place == paths::segment(0, gone)),
            "{damage:?}"
        );
        // The same when it was sealed.
        let rig = Rig::with(&[&full, &next]);
        rig.seal(&full);
        std::fs::remove_file(rig.path(gone)).unwrap();
        assert_eq!(refused(&rig)[0].place, paths::segment(0, gone));
    }
    // A segment that was removed on purpose is not missed.
    let rig = Rig::with(&[&full, &next]);
    rig.spare(2);
    let retire = |m: &mut ShardManifest<_>| {
        hanaper_shards::wal::recovery::retire(&rig.folder, 0, m, 2, "unused").unwrap();
    };
    retire(&mut rig.manifest());
    assert!(rig.examine().damage.is_empty());
}

/// What was sealed is held against the manifest: footer, length, contents of the index.
#[test]
fn a_sealed_segment_that_is_not_the_one_on_record_is_refused() {
    let full = Draft::first().batch(SHORT, 0).batch(SHORT, 1);
    let next = full.rotated(2).batch(SHORT, 2).batch(SHORT, 3);
    let sealed = || {
        let rig = Rig::with(&[&full, &next]);
        rig.seal(&full);
        assert!(rig.examine().damage.is_empty());
        rig
    };
    let length = |rig: &Rig| std::fs::metadata(rig.path(0)).unwrap().len();

    let rig = sealed();
    rig.poke(0, length(&rig) as usize - BLOCK, &[0; BLOCK]);
    assert_eq!(verdicts(&rig), ["FOOTER"], "its footer is gone");
    let rig = sealed();
    rig.flip(0, full.end + 20);
    assert_eq!(verdicts(&rig), ["FOOTER"], "its index is damaged");
    for shorter in [1, 512, BLOCK as u64] {
        let rig = sealed();
        let file = std::fs::OpenOptions::new().write(true).open(rig.path(0)).unwrap();
        file.set_len(length(&rig) - shorter).unwrap();
        assert_eq!(verdicts(&rig), ["LENGTH"], "shortened by {shorter}");
    }
    // An older copy of the file, from before it was sealed, and one that was sealed otherwise.
    let rig = sealed();
    std::fs::write(rig.path(0), &full.bytes).unwrap();
    assert_eq!(verdicts(&rig), ["LENGTH"], "a copy from before the seal");
    let rig = sealed();
    let other = Rig::new();
    let short = Draft::first().batch(SHORT, 0).batch(SHORT + 1, 1);
    other.write(&short);
    other.seal(&short);
    std::fs::copy(other.path(0), rig.path(0)).unwrap();
    assert_eq!(verdicts(&rig), ["FOOTER"], "another history of the same length");
}

#[test]
fn two_segments_that_changed_places_are_refused() {
    let first = Draft::first().batch(SHORT, 0).batch(SHORT, 1);
    let second = first.rotated(2).batch(SHORT, 2).batch(SHORT, 3);
    let third = second.rotated(4).batch(SHORT, 4);
    let swap = |rig: &Rig, a: u64, b: u64| {
        let aside = rig.named("aside");
        std::fs::rename(rig.path(a), &aside).unwrap();
        std::fs::rename(rig.path(b), rig.path(a)).unwrap();
        std::fs::rename(aside, rig.path(b)).unwrap();
    };
    let rig = Rig::with(&[&first, &second, &third]);
    swap(&rig, 0, 1);
    assert!(verdicts(&rig).starts_with(&["FOREIGN-SHARD", "FOREIGN-SHARD"]));
    let rig = Rig::with(&[&first, &second, &third]);
    rig.seal(&first);
    rig.seal(&second);
    swap(&rig, 0, 1);
    assert_eq!(verdicts(&rig), ["FOOTER"]);
}

#[test]
fn what_belongs_elsewhere_is_refused() {
    let full = Draft::first().batch(SHORT, 0);
    type Change = fn(&mut Draft);
    let changes: [(&str, Change); 3] = [
        ("FOREIGN-LOG", |d| d.header.log = [0xF0; 16]),
        ("FOREIGN-SHARD", |d| d.header.shard = 7),
        ("FOREIGN-SHARD", |d| d.header.index = 7),
    ];
    for (verdict, change) in changes {
        let mut next = full.rotated(1).batch(SHORT, 1);
        let rig = Rig::with(&[&full, &next]);
        change(&mut next);
        next.write_header();
        rig.poke(1, 0, &next.bytes[..BLOCK]);
        assert_eq!(verdicts(&rig)[0], verdict);
    }
    // A whole shard under another's name.
    let rig = Rig::with(&[&full]);
    let other = Place { shard: 1, ..PLACE };
    let from = rig.named(&paths::shard_manifest(0));
    std::fs::copy(from, rig.named(&paths::shard_manifest(1))).unwrap();
    let error = ShardManifest::open(&rig.folder, other, [1; 16], true).err().unwrap().to_string();
    assert!(error.contains("another log or shard"), "{error}");
}

#[test]
fn a_newer_format_is_refused_by_its_version() {
    let full = Draft::first().batch(SHORT, 0);
    let rig = Rig::with(&[&full, &full.rotated(1).batch(SHORT, 1)]);
    let mut block = std::fs::read(rig.path(1)).unwrap()[..BLOCK].to_vec();
    block[12] = 2;
    let crc = crc32c::crc32c(&block[12..480]);
    block[8..12].copy_from_slice(&crc.to_le_bytes());
    rig.poke(1, 0, &block);
    let damage = refused(&rig);
    assert_eq!(damage[0].verdict, "VERSION");
    assert!(damage[0].meaning.contains("version 2"), "{damage:?}");
}

/// A header that is gone takes its segment out of the chain; if anything knows that there was more, that is damage.
#[test]
fn a_lost_segment_header_is_damage_as_soon_as_anything_was_durable() {
    let full = Draft::first().batch(SHORT, 0).batch(SHORT, 1);
    let next = full.rotated(2).batch(SHORT, 2).batch(SHORT, 3);
    let rig = Rig::with(&[&full, &next]);
    rig.poke(1, 0, &[0; BLOCK]);
    assert_eq!(verdicts(&rig), ["BATCH-MISSING"]);
    let rig = Rig::with(&[&full]);
    rig.poke(0, 0, &[0; BLOCK]);
    assert_eq!(verdicts(&rig), ["MISSING"]);
    // The successor's first write arrived without its header: nothing of it was ever acknowledged.
    let next = full.rotated(1).batch(SHORT, 1);
    let rig = Rig::with(&[&full, &next]);
    rig.poke(1, 0, &[0; BLOCK]);
    let start = rig.recover(1).unwrap();
    assert_eq!(start.chain, full.chain);
    drop(start);
    assert_eq!(rig.manifest().state.segments[&1], SegmentState::Void);
}

/// A segment has its whole length before it is used: no crash shortens it, whatever its batches say.
#[test]
fn a_shortened_active_segment_is_damage() {
    let draft = Draft::first().batch(SHORT, 0).batch(SHORT, 1).batch(LONG, 1);
    for length in [draft.at(2) + 700, draft.at(1), BLOCK] {
        let rig = Rig::with(&[&draft]);
        let file = std::fs::OpenOptions::new().write(true).open(rig.path(0)).unwrap();
        file.set_len(length as u64).unwrap();
        assert_eq!(verdicts(&rig), ["LENGTH"], "cut to {length}");
    }
    // The successor's header knows that both were durable.
    let next = draft.rotated(3).batch(SHORT, 3);
    let rig = Rig::with(&[&draft, &next]);
    let file = std::fs::OpenOptions::new().write(true).open(rig.path(0)).unwrap();
    file.set_len(draft.at(2) as u64).unwrap();
    assert_eq!(verdicts(&rig), ["BATCH-MISSING", "LENGTH"]);
}

/// A killed owner's write is still on its way: its lock is what recovery waits for.
#[test]
fn recovery_waits_for_the_lock_of_a_segment() {
    let draft = Draft::first().batch(SHORT, 0);
    let rig = Rig::with(&[&draft]);
    let owner = std::fs::OpenOptions::new().write(true).open(rig.path(0)).unwrap();
    owner.lock().unwrap();
    let manifest = rig.manifest();
    let lock = || hanaper_shards::wal::recovery::lock_segments(&rig.folder, 0, &manifest).unwrap();
    assert!(lock().is_none());
    owner.write_all_at(&[0; 1], SEGMENT_BYTES - 1).unwrap();
    drop(owner);
    assert!(lock().is_some());
}

/// A segment file that no line of the manifest names: a crash between its rename and its line.
#[test]
fn a_spare_that_is_not_on_record_is_taken() {
    let draft = Draft::first().batch(SHORT, 0);
    let rig = Rig::with(&[&draft]);
    std::fs::write(rig.path(1), vec![0; SEGMENT_BYTES as usize]).unwrap();
    std::fs::write(rig.named(&paths::prep(0, 2)), [0; 100]).unwrap();
    let start = rig.recover(1).unwrap();
    assert_eq!(start.active.as_ref().unwrap().header.index, 1);
    assert!(!rig.named(&paths::prep(0, 2)).exists(), "what was half prepared is removed");
    assert!(rig.manifest().state.segments.contains_key(&1));
    let name = chain::examine(&rig.folder, PLACE, &rig.manifest().state).unwrap();
    assert!(name.damage.is_empty());
}
