//! Real processes, really killed: at random moments, and at named points in the middle of a system call.
//! What was acknowledged is there afterwards, unaltered, and once.

mod faults;

use std::os::unix::process::ExitStatusExt;
use std::process::Child;
use std::time::{Duration, Instant};

use faults::*;
use hanaper::Backend;

/// Not a test: what the tests below run.
#[test]
fn child_process() {
    play(&[("append", append_and_acknowledge), ("fail", append_until_it_fails)]);
}

/// Waits for the end of a process; `false` if it had to be killed for being late.
fn ended(child: &mut Child, longest: Duration) -> bool {
    let deadline = Instant::now() + longest;
    while Instant::now() < deadline {
        if child.try_wait().unwrap().is_some() {
            return true;
        }
        // Nothing tells the parent but asking.
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    false
}

fn kill_at_random(name: &str, backend: Backend) {
    let scene = Scene::new();
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    eprintln!("seed {seed}");
    let mut x = seed;
    let started = Instant::now();
    let mut acked = 0;
    let mut kills = 0;
    while kills < 5 || (kills < 25 && started.elapsed() < Duration::from_secs(4)) {
        x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        // From the first moments of its life, in which it recovers, to several rotations.
        let life = Duration::from_micros(1000 + (x >> 33) % 150_000);
        let mut child = scene.child("append", name, &[]).spawn().unwrap();
        std::thread::sleep(life);
        child.kill().unwrap();
        let status = child.wait().unwrap();
        let when = format!("kill {kills} after {life:?}, seed {seed}");
        assert_eq!(status.signal(), Some(libc::SIGKILL), "{when}: it ended by itself: {status}");
        kills += 1;
        if !scene.log().join("log.manifest").exists() {
            continue;
        }
        // Before anybody recovers it, and after.
        if kills % 3 == 0 {
            scene.reopen(backend, &when);
            acked = scene.check(&when);
        }
    }
    scene.reopen(backend, "at the end");
    acked = acked.max(scene.check("at the end"));
    let sizes: u64 =
        std::fs::read_dir(scene.log()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
    eprintln!("{kills} kills, {acked} acknowledged, {} KiB", sizes >> 10);
    assert!(acked > 0, "no process lived long enough to acknowledge anything");
}

#[test]
fn killed_at_random_moments_posix() {
    kill_at_random("posix", Backend::Posix);
}

#[test]
fn killed_at_random_moments_io_uring() {
    if have_uring() {
        kill_at_random("uring", Backend::Uring);
    }
}

/// Runs a child that dies on entering the n-th call of this name (counted in each of its threads), or
/// ends by itself because it makes fewer. Gives whether it died.
fn killed_at(scene: &Scene, call: &str, n: u32, settings: &[(&str, &str)]) -> bool {
    let inject = format!("inject={call}:signal=SIGKILL:when={n}");
    let trace = format!("trace={call}");
    let mut command = scene.child("append", "posix", &["-o", "/dev/null", "-e", &trace, "-e", &inject]);
    let mut child = command.envs(settings.iter().copied()).spawn().unwrap();
    assert!(ended(&mut child, Duration::from_secs(30)), "{call} {n}: it hangs");
    let output = child.wait_with_output().unwrap();
    let died = output.status.signal() == Some(libc::SIGKILL);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(died || output.status.success(), "{call} {n}: {}\n{text}", output.status);
    let when = format!("killed at {call} number {n}");
    if scene.log().join("log.manifest").exists() {
        scene.reopen(Backend::Posix, &when);
        scene.check(&when);
    }
    died
}

/// Between the write and the sync of a commit; and, since other threads sync too, in the middle of
/// opening, preparing and sealing.
#[test]
fn killed_after_the_write_and_before_the_sync() {
    if !have_strace() {
        return;
    }
    let scene = Scene::new();
    for n in [1, 2, 3, 4, 5, 6, 12, 25, 60, 61] {
        assert!(killed_at(&scene, "fdatasync", n, &[]), "fewer than {n} syncs");
    }
}

/// With 20 KiB an event, a segment takes some forty commits: these end in the first write of the second
/// segment, before it and after it, or in what the slow work does for it.
#[test]
fn killed_in_rotation() {
    if !have_strace() {
        return;
    }
    let settings = [(PAYLOAD, "40000")];
    let mut rotated = 0;
    let scene = Scene::new();
    for (call, ns) in [
        ("pwrite64", vec![20, 30, 36, 40, 44, 60]),
        ("fdatasync", vec![28, 33, 38, 50]),
        ("rename", vec![2, 3]),
        ("fallocate", vec![3]),
    ] {
        for n in ns {
            assert!(killed_at(&scene, call, n, &settings), "fewer than {n} calls of {call}");
            let files = std::fs::read_dir(scene.log()).unwrap();
            let segments =
                files.filter(|e| e.as_ref().unwrap().path().extension().is_some_and(|x| x == "segment"));
            rotated = rotated.max(segments.count());
        }
    }
    assert!(rotated >= 4, "no segment was ever filled");
}

/// Killed, and killed again while the next process recovers: at its first writes, syncs, and where it
/// settles the old segments.
#[test]
fn killed_in_recovery() {
    if !have_strace() {
        return;
    }
    let scene = Scene::new();
    for (call, n) in [
        ("pwrite64", 1),
        ("pwrite64", 2),
        ("pwrite64", 3),
        ("fdatasync", 1),
        ("fdatasync", 2),
        ("fdatasync", 3),
        ("ftruncate", 1),
        ("fsync", 1),
        ("rename", 1),
    ] {
        // One that dies in full flight leaves something to recover.
        let mut child = scene.child("append", "posix", &[]).spawn().unwrap();
        let acked = || std::fs::metadata(scene.acks()).map_or(0, |m| m.len());
        let before = acked();
        let deadline = Instant::now() + Duration::from_secs(20);
        while acked() == before {
            assert!(Instant::now() < deadline, "it acknowledges nothing");
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        killed_at(&scene, call, n, &[(EVENTS, "20")]);
    }
}

#[test]
fn killed_in_close() {
    if !have_strace() {
        return;
    }
    // The footer's file is cut to its length, spares are unlinked, and the folder is synced after each.
    for (call, ns) in [("ftruncate", 1..3), ("unlink", 1..5), ("fsync", 1..6)] {
        let scene = Scene::new();
        let mut died = 0;
        for n in ns {
            died += u32::from(killed_at(&scene, call, n, &[(EVENTS, "30")]));
        }
        assert!(died > 0, "{call}: it always closed, and died of nothing");
    }
}

/// A call that fails, once, on the driver's thread.
fn failing(inject: &str, op: &str) {
    if !have_strace() {
        return;
    }
    let scene = Scene::new();
    let call = inject.split(':').next().unwrap();
    let (trace, inject) = (format!("trace={call}"), format!("inject={inject}"));
    let mut command = scene.child("fail", "posix", &["-o", "/dev/null", "-e", &trace, "-e", &inject]);
    let mut child = command.spawn().unwrap();
    let in_time = ended(&mut child, Duration::from_secs(40));
    let output = child.wait_with_output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(in_time && output.status.success(), "{}\n{out}\n{err}", output.status);
    let said = |word: &str| {
        let line = out.lines().find_map(|l| l.strip_prefix(word));
        line.unwrap_or_else(|| panic!("no {word} in {out}\n{err}")).trim().to_owned()
    };
    assert!(said("TOLD").contains(op), "{out}");
    assert!(said("CLOSE").contains(op), "{out}");
    for waited in said("WAITED").split(' ') {
        assert!(waited.parse::<u64>().unwrap() < 1000, "a waiter was told after {waited} ms");
    }
    // The next open recovers, and says in the log what had happened.
    scene.reopen(Backend::Posix, inject.as_str());
    scene.check(inject.as_str());
    let words = scene.words();
    let fenced = words.iter().find(|w| w.starts_with("fenced ")).unwrap_or_else(|| panic!("{words:?}"));
    assert!(fenced.contains(&op.replace(' ', "_")), "{fenced}");
    assert!(words.iter().any(|w| w.starts_with("recovered ")), "{words:?}");
}

#[test]
fn a_failed_sync_reaches_every_waiter_and_the_log() {
    failing("fdatasync:error=EIO:when=40", "fdatasync");
}

#[test]
fn a_failed_write_reaches_every_waiter_and_the_log() {
    failing("pwrite64:error=EIO:when=40", "write");
}

#[test]
fn a_short_write_reaches_every_waiter_and_the_log() {
    failing("pwrite64:retval=512:when=40", "write (short)");
}

/// No segment can be prepared any more: nothing accepted is lost, and nothing waits for ever.
#[test]
fn a_disk_without_room_for_a_segment_loses_nothing() {
    if !have_strace() {
        return;
    }
    let scene = Scene::new();
    // The opening needs three in each thread; from the fourth on there is no room.
    let inject = "inject=fallocate:error=ENOSPC:when=4+";
    let options = ["-o", "/dev/null", "-e", "trace=fallocate", "-e", inject];
    let mut child = scene.child("append", "posix", &options).env(PAYLOAD, "20000").spawn().unwrap();
    // It takes what fits, and then refuses; it is killed there.
    let acked = || std::fs::metadata(scene.acks()).map_or(0, |m| m.len());
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut before = (acked(), Instant::now());
    while Instant::now() < deadline && (before.0 == 0 || before.1.elapsed() < Duration::from_millis(400)) {
        std::thread::sleep(Duration::from_millis(5));
        if acked() != before.0 {
            before = (acked(), Instant::now());
        }
    }
    assert!(child.try_wait().unwrap().is_none(), "it ended by itself: {:?}", child.wait_with_output());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(Instant::now() < deadline, "it never ran out of space");
    scene.until_nobody_owns_it();
    scene.reopen(Backend::Posix, "after it ran out of space");
    assert!(scene.check("after it ran out of space") > 0);
    let words = scene.words();
    assert!(words.iter().any(|w| w == "space_ran_out"), "{words:?}");
}
