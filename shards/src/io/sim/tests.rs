//! That the simulated disk is as unkind as it says. A kinder one hides bugs.

use super::super::conformance::{Rig, run};
use super::super::{CommitFault, Durable};
use super::*;
use crate::aligned::AlignedBuf;
use crate::wake::Wake;
use std::time::Duration;

const BLOCK: usize = 4096;
const SEEDS: u64 = 400;

fn filled(blocks: usize, value: u8) -> AlignedBuf {
    let mut buf = AlignedBuf::zeroed(blocks * BLOCK);
    buf.fill(value);
    buf
}

/// A file of zeros, firm.
fn prepared(disk: &SimDisk, name: &str, blocks: usize) -> SimFile {
    let file = disk.create(name).unwrap();
    disk.write(&file, 0, &filled(blocks, 0)).unwrap();
    disk.sync(&file).unwrap();
    file
}

fn commit(token: u64, file: &SimFile, at: usize, blocks: usize) -> Commit<SimFile> {
    let (offset, bytes) = ((at * BLOCK) as u64, blocks * BLOCK);
    Commit { token, file: file.clone(), offset, bytes, buf: filled(blocks, token as u8), pipelined: true }
}

fn until_done(io: &mut SimIo) -> BTreeMap<u64, Result<Durable, CommitFault>> {
    let mut done = Vec::new();
    while io.in_flight() > 0 {
        io.turn(Wait::AtMost(Duration::from_secs(1)), &mut done).unwrap();
    }
    done.into_iter().map(|completion| (completion.token, completion.result)).collect()
}

fn all(bytes: &[u8], value: u8) -> bool {
    bytes.iter().all(|byte| *byte == value)
}

#[test]
fn sim_conforms() {
    for seed in 0..20 {
        run(|| {
            let world = SimWorld::new(seed);
            let disk = world.disk();
            Rig { io: SimIo::new(disk.clone()), disk, wake: Wake::new().unwrap(), keep: Box::new(world) }
        });
    }
}

/// What was acknowledged survives every power cut, and the rest is torn at sectors: each old or new.
#[test]
fn a_power_cut_tears_what_was_in_flight_and_nothing_else() {
    let (mut torn, mut whole, mut gone, mut reordered) = (0, 0, 0, 0);
    for seed in 0..SEEDS {
        let world = SimWorld::new(seed);
        let disk = world.disk();
        let file = prepared(&disk, "a", 32);
        let mut io = SimIo::new(disk.clone());
        (1..=8).for_each(|token| io.append(commit(token, &file, token as usize * 3, 3)));
        let mut done = Vec::new();
        for _ in 0..seed % 20 {
            io.turn(Wait::No, &mut done).unwrap();
        }
        world.crash();
        assert!(io.turn(Wait::No, &mut done).is_err() && disk.sync(&file).is_err(), "the dead do nothing");
        let bytes = world.seen("a").unwrap();
        assert_eq!(Some(&bytes), world.firm("a").as_ref());
        let acknowledged: Vec<u64> = done.iter().map(|completion| completion.token).collect();
        assert!(done.iter().all(|completion| completion.result.is_ok()));
        let mut sectors_of = [0; 9];
        for token in 1..=8_u64 {
            let place = &bytes[token as usize * 3 * BLOCK..][..3 * BLOCK];
            assert!(place.chunks(512).all(|sector| all(sector, 0) || all(sector, token as u8)));
            sectors_of[token as usize] = place.chunks(512).filter(|sector| all(sector, token as u8)).count();
            if acknowledged.contains(&token) {
                assert!(all(place, token as u8), "seed {seed}: acknowledged and lost");
            } else {
                match sectors_of[token as usize] {
                    0 => gone += 1,
                    24 => whole += 1,
                    _ => torn += 1,
                }
            }
        }
        reordered += usize::from(sectors_of[1..].windows(2).any(|pair| pair[0] == 0 && pair[1] == 24));
    }
    assert!(torn > 50 && whole > 50 && gone > 50 && reordered > 20, "{torn} {whole} {gone} {reordered}");
}

/// A disk whose flush covers what completes later, or another file, hides acknowledgements out of order.
#[test]
fn a_flush_covers_what_had_completed_in_its_own_file() {
    let mut lost = [0; 3];
    for seed in 0..SEEDS {
        let world = SimWorld::new(seed);
        let disk = world.disk();
        let (a, b) = (prepared(&disk, "a", 4), prepared(&disk, "b", 4));
        disk.write(&a, 0, &filled(1, 1)).unwrap();
        disk.write(&b, 0, &filled(1, 2)).unwrap();
        disk.sync(&a).unwrap();
        disk.write(&a, BLOCK as u64, &filled(1, 3)).unwrap();
        world.crash();
        let (a, b) = (world.seen("a").unwrap(), world.seen("b").unwrap());
        assert!(all(&a[..BLOCK], 1));
        lost[0] += usize::from(!all(&b[..BLOCK], 2));
        lost[1] += usize::from(!all(&a[BLOCK..2 * BLOCK], 3));
        lost[2] += usize::from(all(&b[..BLOCK], 2));
    }
    assert!(lost.iter().all(|count| *count > 20), "{lost:?}");
}

/// The fdatasync of one commit must not vouch for the write of another that was still under way.
#[test]
fn a_sync_in_flight_does_not_cover_a_write_in_flight() {
    let mut seen = 0;
    for seed in 0..SEEDS {
        let world = SimWorld::new(seed);
        let disk = world.disk();
        let file = prepared(&disk, "a", 4);
        let mut io = SimIo::new(disk.clone());
        io.append(commit(1, &file, 0, 1));
        io.append(commit(2, &file, 1, 1));
        let mut done = Vec::new();
        while done.is_empty() {
            io.turn(Wait::No, &mut done).unwrap();
        }
        if done.len() == 1 {
            let other = 3 - done[0].token;
            world.crash();
            seen += usize::from(!all(
                &world.seen("a").unwrap()[(other as usize - 1) * BLOCK..][..BLOCK],
                other as u8,
            ));
        }
    }
    assert!(seen > 50, "{seen}");
}

/// A name is durable when the call returns, and anything before that.
#[test]
fn names_are_lost_only_before_their_call_returns() {
    let mut outcomes = BTreeMap::new();
    for seed in 0..SEEDS {
        let world = SimWorld::new(seed);
        let disk = world.disk();
        prepared(&disk, "old", 1);
        disk.create("safe").unwrap();
        let before = world.ops();
        world.crash_after(seed % 4);
        let renamed = disk.rename("safe", "old").and_then(|()| disk.create("new"));
        assert_eq!(renamed.is_err(), world.is_down());
        assert_eq!(world.ops() - before, seed % 4 + 1);
        world.crash();
        let names = world.names().join(" ");
        assert!(["old safe", "old", "new old"].contains(&names.as_str()), "{names}");
        assert!(seed % 4 < 2 || !names.contains("safe"), "the rename had returned");
        *outcomes.entry((seed % 4, names)).or_insert(0) += 1;
    }
    // Twice the rename half done, either way; then the creation.
    assert_eq!(outcomes.len(), 8, "{outcomes:?}");
}

/// The mutant that forgets to sync the folder must be able to lose a file that it relies on.
#[test]
fn without_name_syncs_names_vanish() {
    let lost = (0..SEEDS).filter(|seed| {
        let world = SimWorld::new(*seed);
        world.forget_name_syncs(true);
        prepared(&world.disk(), "a", 1);
        world.crash();
        world.names().is_empty()
    });
    assert!(lost.count() > 50);
}

/// A killed owner's write must not surprise its successor: the lock keeps it out until it has landed.
#[test]
fn writes_of_the_killed_land_late_and_hold_the_lock() {
    let (mut late, mut held) = (0, 0);
    for seed in 0..SEEDS {
        let world = SimWorld::new(seed);
        let disk = world.disk();
        let file = prepared(&disk, "a", 8);
        disk.write(&file, 0, &filled(1, 9)).unwrap();
        assert!(disk.try_lock(&file).unwrap());
        let mut io = SimIo::new(disk.clone());
        (1..=4).for_each(|token| io.append(commit(token, &file, token as usize, 1)));
        for _ in 0..3 {
            io.turn(Wait::No, &mut Vec::new()).unwrap();
        }
        world.kill();
        let after_death = world.seen("a").unwrap();
        assert!(all(&after_death[..BLOCK], 9), "the cache is kept");
        let successor = world.disk();
        let again = successor.open("a", Access::Write).unwrap();
        held += usize::from(successor.is_locked(&again).unwrap());
        // The dead letting go of their handles changes nothing.
        drop((io, file));
        while !successor.try_lock(&again).unwrap() {}
        let landed = world.seen("a").unwrap();
        late += usize::from(landed != after_death);
        world.settle();
        assert_eq!(world.seen("a").unwrap(), landed, "something landed under the successor's lock");
    }
    assert!(late > 50 && held > 50, "{late} {held}");
}

/// A failed fdatasync may have dropped dirty pages, so a later success proves nothing.
#[test]
fn a_failed_sync_drops_what_it_should_have_covered() {
    let (mut lost, mut forgotten) = (0, 0);
    for seed in 0..SEEDS {
        let world = SimWorld::new(seed);
        let disk = world.disk();
        let file = prepared(&disk, "a", 4);
        world.inject(0, Fault::Sync { errno: libc::EIO });
        let mut io = SimIo::new(disk.clone());
        io.append(commit(1, &file, 0, 2));
        assert_eq!(until_done(&mut io)[&1], Err(CommitFault::Sync { errno: libc::EIO }));
        disk.sync(&file).unwrap();
        forgotten += usize::from(!all(&world.seen("a").unwrap()[..2 * BLOCK], 1));
        world.crash();
        lost += usize::from(!all(&world.seen("a").unwrap()[..2 * BLOCK], 1));
        assert_eq!(world.faults_struck(), 1);
    }
    assert!(lost > 100 && forgotten > 50, "{lost} {forgotten}");
}

#[test]
fn injected_faults_strike_the_nth_of_their_kind() {
    let world = SimWorld::new(7);
    let disk = world.disk();
    let file = prepared(&disk, "a", 8);
    world.inject(1, Fault::Write { errno: libc::ENOSPC });
    world.inject(2, Fault::ShortWrite { bytes: 1000 });
    world.inject(0, Fault::Read { errno: libc::EIO });
    let mut io = SimIo::new(disk.clone());
    let mut results = Vec::new();
    for token in 1..=4 {
        io.append(commit(token, &file, token as usize, 1));
        results.extend(until_done(&mut io).into_values());
    }
    assert!(results[0].is_ok() && results[3].is_ok());
    assert_eq!(results[1], Err(CommitFault::Write { errno: libc::ENOSPC }));
    assert_eq!(results[2], Err(CommitFault::ShortWrite { written: 512, wanted: BLOCK as u64 }));
    let mut block = AlignedBuf::zeroed(BLOCK);
    assert!(disk.read(&file, 0, &mut block).is_err());
    disk.read(&file, 3 * BLOCK as u64, &mut block).unwrap();
    assert!(all(&block[..512], 3) && all(&block[512..], 0));
}

#[test]
fn a_full_disk_refuses_what_is_new_and_takes_what_is_reserved() {
    let world = SimWorld::new(1);
    let disk = world.disk();
    let file = disk.create("a").unwrap();
    disk.allocate(&file, 8 * BLOCK as u64).unwrap();
    world.set_space(Some(8 * BLOCK as u64));
    let other = disk.create("b").unwrap();
    let full = |result: io::Result<()>| result.unwrap_err().raw_os_error() == Some(libc::ENOSPC);
    assert!(full(disk.write(&other, 0, &filled(1, 1))) && full(disk.allocate(&other, 1)));
    assert_eq!(disk.bytes(&other).unwrap(), 0);
    disk.write(&file, 7 * BLOCK as u64, &filled(1, 1)).unwrap();
    disk.remove("a").unwrap();
    disk.allocate(&other, 8 * BLOCK as u64).unwrap();
}

/// The stop comes in the middle of any operation, and nothing works until somebody says what it was.
#[test]
fn a_stop_strikes_at_every_operation() {
    let work = |disk: SimDisk| -> io::Result<()> {
        let file = disk.create("a")?;
        disk.allocate(&file, 4 * BLOCK as u64)?;
        disk.write(&file, 0, &filled(2, 1))?;
        disk.sync(&file)?;
        let mut io = SimIo::new(disk.clone());
        io.append(commit(2, &file, 2, 1));
        while io.in_flight() > 0 {
            io.turn(Wait::AtMost(Duration::from_secs(1)), &mut Vec::new())?;
        }
        disk.rename("a", "b")?;
        disk.truncate(&file, BLOCK as u64)?;
        disk.remove("b")
    };
    let free = SimWorld::new(0);
    work(free.disk()).unwrap();
    let ops = free.ops();
    for stop in 0..ops {
        for (seed, killed) in (0..20).flat_map(|seed| [(seed, true), (seed, false)]) {
            let world = SimWorld::new(seed);
            world.crash_after(stop);
            let disk = world.disk();
            assert!(work(disk.clone()).is_err() && world.is_down());
            assert!(disk.list().is_err() && world.disk().list().is_err());
            if killed {
                world.kill()
            } else {
                let _ = world.crash();
            }
            let successor = world.disk();
            assert!(successor.list().is_ok() && disk.list().is_err());
        }
    }
    let world = SimWorld::new(0);
    world.crash_after(ops);
    work(world.disk()).unwrap();
}

/// A seed that fails must fail again.
#[test]
fn equal_seeds_make_equal_histories() {
    let history = |seed| {
        let world = SimWorld::new(seed);
        for round in 0..6 {
            let disk = world.disk();
            let file = disk.open("a", Access::Write).unwrap_or_else(|_| prepared(&disk, "a", 16));
            let mut io = SimIo::new(disk.clone());
            (1..=6).for_each(|token| io.append(commit(token + round, &file, token as usize * 2, 2)));
            for _ in 0..4 {
                io.turn(Wait::No, &mut Vec::new()).unwrap();
            }
            if round % 2 == 0 {
                world.kill()
            } else {
                let _ = world.crash();
            }
        }
        (world.trace(), world.seen("a"), world.firm("a"))
    };
    for seed in 0..50 {
        assert_eq!(history(seed), history(seed));
    }
    assert_ne!(history(1).0, history(2).0);
}

/// One state, several futures: each fork is a world of its own.
#[test]
fn a_fork_does_not_touch_its_origin() {
    let world = SimWorld::new(3);
    let file = prepared(&world.disk(), "a", 1);
    let fork = world.fork(4);
    assert!(fork.edit("a", |bytes| bytes[5] ^= 1) && !fork.edit("b", |_| ()));
    fork.lose("a");
    assert!(all(&world.seen("a").unwrap(), 0) && fork.names().is_empty());
    assert_eq!(world.disk().bytes(&file).unwrap(), BLOCK as u64);
}

/// Who reads the active segment through the page cache may be shown old pages.
#[test]
fn buffered_readers_may_be_shown_old_pages() {
    let world = SimWorld::new(5);
    let disk = world.disk();
    let file = prepared(&disk, "a", 4);
    world.stale_readers(true);
    disk.write(&file, 0, &filled(4, 1)).unwrap();
    let read = |access| {
        let mut bytes = AlignedBuf::zeroed(4 * BLOCK);
        disk.read(&disk.open("a", access).unwrap(), 0, &mut bytes).unwrap();
        bytes.chunks(512).filter(|sector| all(sector, 0)).count()
    };
    assert_eq!((read(Access::ReadDirect), read(Access::Write)), (0, 0));
    assert!(read(Access::Read) > 0);
    disk.sync(&file).unwrap();
    assert_eq!(read(Access::Read), 0);
}
