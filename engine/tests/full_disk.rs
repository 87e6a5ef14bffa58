//! A disk that is really full: a small file system of its own on a loop device.
//!
//! What is accepted has its place, so all of it becomes durable; what has none is refused, by type. The log
//! opens on the full disk, and goes on by itself as soon as there is room.

mod faults;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use faults::*;
use hanaper::{AppendError, Backend, Backpressure, Log, Producer, Ticket, WaitFor};

/// A mounted file system, unmounted at the end.
struct SmallDisk {
    scene: Scene,
    device: String,
}

impl SmallDisk {
    /// `None`, and says why, where this may not be done.
    fn new(mib: u64) -> Option<SmallDisk> {
        let scene = Scene::new();
        let image = scene.dir.path().join("image");
        File::create(&image).unwrap().set_len(mib << 20).unwrap();
        let run = |program: &str, args: &[&str]| -> Result<String, String> {
            let output = Command::new(program).args(args).output().map_err(|e| format!("{program}: {e}"))?;
            match output.status.success() {
                true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
                false => Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim())),
            }
        };
        let image = image.to_str().unwrap();
        let skipped = |why: String| eprintln!("SKIPPED: no small disk can be had here ({why})");
        run("mkfs.ext4", &["-q", "-F", "-m", "0", "-O", "^has_journal", image]).map_err(skipped).ok()?;
        let device = run("losetup", &["-f", "--show", image]).map_err(skipped).ok()?;
        let mut disk = SmallDisk { scene, device };
        std::fs::create_dir(disk.mount()).unwrap();
        if let Err(why) = run("mount", &[&disk.device, disk.mount().to_str().unwrap()]) {
            skipped(why);
            disk.unmount();
            return None;
        }
        disk.scene.log_at(disk.mount().join("log"));
        Some(disk)
    }

    fn mount(&self) -> PathBuf {
        self.scene.dir.path().join("disk")
    }

    fn hog(&self) -> File {
        File::options().create(true).append(true).open(self.mount().join("hog")).unwrap()
    }

    /// Takes so much.
    fn take(&self, mib: usize) {
        self.hog().write_all(&vec![0x55; mib << 20]).unwrap();
    }

    /// Takes whatever is left, to the last block.
    fn fill(&self) {
        let mut hog = self.hog();
        for size in [1 << 16, 4096, 512] {
            while hog.write_all(&vec![0x55; size]).is_ok() {}
        }
        let _full = hog.sync_all();
    }

    fn make_room(&self) {
        std::fs::remove_file(self.mount().join("hog")).unwrap();
    }

    fn unmount(&mut self) {
        let _gone = Command::new("umount").arg(self.mount()).output();
        let _gone = Command::new("losetup").args(["-d", &self.device]).output();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        self.unmount();
    }
}

fn open(log: &Path, backend: Backend) -> Log {
    builder(log).backend(backend).shards(1).open().unwrap()
}

/// Appends until there is no room; gives the tickets of all that was accepted.
fn append_until_full(producer: &mut Producer, event: &mut Event) -> Vec<Ticket> {
    let mut tickets = Vec::new();
    let mut refused_since: Option<Instant> = None;
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        assert!(Instant::now() < deadline, "the disk does not get full");
        match producer.append(b"key", &event.write(2500)) {
            Ok(ticket) => {
                event.n += 1;
                tickets.push(ticket);
                refused_since = None;
            }
            Err(AppendError::Backpressure(Backpressure::NoSpace)) => {
                // It is said, too, while a segment is merely not ready yet.
                if refused_since.get_or_insert_with(Instant::now).elapsed() > Duration::from_millis(300) {
                    return tickets;
                }
                std::thread::yield_now();
            }
            Err(AppendError::Backpressure(_)) => std::thread::yield_now(),
            Err(error) => panic!("a full disk is backpressure, and not: {error}"),
        }
    }
}

/// All that was accepted is durable. Waits, without end if need be within the test's time.
fn all_durable(producer: &Producer, tickets: &[Ticket]) {
    for ticket in tickets.iter().rev().take(3000) {
        match producer.wait(*ticket, WaitFor::at_most(Duration::from_secs(20))) {
            Ok(_) | Err(hanaper::WaitError::ReceiptGone) => {}
            Err(error) => panic!("accepted, and yet: {error}"),
        }
    }
}

/// Appends one event as soon as it is taken.
fn goes_on(producer: &mut Producer, event: &mut Event) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        assert!(Instant::now() < deadline, "there is room, and it does not go on");
        match producer.append(b"key", &event.write(2500)) {
            Ok(ticket) => {
                event.n += 1;
                producer.wait(ticket, WaitFor::at_most(Duration::from_secs(20))).unwrap();
                return;
            }
            Err(AppendError::Backpressure(_)) => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
}

fn full_disk(backend: Backend) {
    let Some(disk) = SmallDisk::new(24) else { return };
    let scene = &disk.scene;
    let mut event = Event { who: (1, 1), n: 0 };

    // A neighbour has some of it, the log fills the rest, and the neighbour takes what is left.
    disk.take(6);
    let log = open(&scene.log(), backend);
    let mut producer = log.producer().unwrap();
    let tickets = append_until_full(&mut producer, &mut event);
    assert!(tickets.len() > 1000, "{} events on 24 MiB", tickets.len());
    all_durable(&producer, &tickets);
    disk.fill();
    let tickets = append_until_full(&mut producer, &mut event);
    all_durable(&producer, &tickets);
    // It goes on by itself when the neighbour leaves.
    disk.make_room();
    goes_on(&mut producer, &mut event);
    disk.fill();
    let tickets = append_until_full(&mut producer, &mut event);
    all_durable(&producer, &tickets);
    drop(producer);
    log.close().unwrap();
    scene.check("filled, emptied, closed");
    assert_eq!(data_records(scene), event.n);
    let words = scene.words();
    for word in ["space_ran_out", "space_came_back "] {
        assert!(words.iter().any(|w| w.starts_with(word)), "no {word} in {words:?}");
    }

    // Opened on the full disk after a close, abandoned there, opened again.
    disk.fill();
    let log = open(&scene.log(), backend);
    let mut producer = log.producer().unwrap();
    let tickets = append_until_full(&mut producer, &mut event);
    all_durable(&producer, &tickets);
    disk.make_room();
    goes_on(&mut producer, &mut event);
    disk.fill();
    let tickets = append_until_full(&mut producer, &mut event);
    all_durable(&producer, &tickets);
    drop(producer);
    drop(log);
    disk.fill();
    scene.check("abandoned on a full disk");
    let log = open(&scene.log(), backend);
    let mut producer = log.producer().unwrap();
    let tickets = append_until_full(&mut producer, &mut event);
    all_durable(&producer, &tickets);
    disk.make_room();
    goes_on(&mut producer, &mut event);
    drop(producer);
    log.close().unwrap();
    scene.check("opened on a full disk, with room again");
    assert_eq!(data_records(scene), event.n);
}

fn data_records(scene: &Scene) -> u64 {
    let reader = hanaper::read::Reader::open(scene.log()).unwrap();
    reader.replay(hanaper::read::Select::default()).map(Result::unwrap).count() as u64
}

#[test]
fn a_full_disk_loses_nothing_and_heals_posix() {
    full_disk(Backend::Posix);
}

#[test]
fn a_full_disk_loses_nothing_and_heals_io_uring() {
    if have_uring() {
        full_disk(Backend::Uring);
    }
}

/// Crashes on a full disk, one after the other. The first opening has the segment that was kept for it. When
/// that is used up, an opening may be refused for want of space, by that name, and then alters nothing:
/// the log is whole, and opens as soon as there is room.
#[test]
fn crashes_in_a_row_on_a_full_disk() {
    let Some(disk) = SmallDisk::new(24) else { return };
    let mut event = Event { who: (1, 1), n: 0 };
    disk.take(6);
    let log = open(&disk.scene.log(), Backend::Posix);
    let mut producer = log.producer().unwrap();
    let tickets = append_until_full(&mut producer, &mut event);
    all_durable(&producer, &tickets);
    drop(log);
    for crash in 0..4 {
        disk.fill();
        match builder(&disk.scene.log()).backend(Backend::Posix).shards(1).open() {
            Ok(log) => drop(log),
            Err(error) => {
                assert!(crash > 0, "the first opening has its segment: {error}");
                assert_eq!(error.exit_code(), 4);
                assert!(error.to_string().contains("No space left"), "{error}");
                eprintln!("crash {crash}: {error}");
            }
        }
        disk.scene.check("after a crash on a full disk");
    }
    disk.make_room();
    let log = open(&disk.scene.log(), Backend::Posix);
    let mut producer = log.producer().unwrap();
    goes_on(&mut producer, &mut event);
    log.close().unwrap();
    disk.scene.check("with room again");
    assert_eq!(data_records(&disk.scene), event.n);
}

/// Checkpoints need room too. Without it commits go on, it is said, and with room it goes on by itself.
#[test]
fn checkpoints_wait_for_room_and_commits_do_not() {
    let Some(disk) = SmallDisk::new(24) else { return };
    let scene = &disk.scene;
    let every = Duration::from_millis(1);
    let log = builder(&scene.log()).shards(1).checkpoint_every(every).open().unwrap();
    let mut producer = log.producer().unwrap();
    let mut event = Event { who: (1, 1), n: 0 };
    goes_on(&mut producer, &mut event);
    disk.fill();
    let deadline = Instant::now() + Duration::from_secs(60);
    // The journal has some room ahead: one event an entry, until that is used up.
    while log.evidence().trouble.is_none() {
        assert!(Instant::now() < deadline, "{:?}", log.evidence());
        let size = log.evidence().size;
        let ticket = producer.append(b"key", &event.write(100)).unwrap();
        event.n += 1;
        producer.wait(ticket, WaitFor::block()).unwrap();
        while log.evidence().size == size && log.evidence().trouble.is_none() && Instant::now() < deadline {
            std::thread::yield_now();
        }
    }
    let trouble = log.evidence().trouble.unwrap();
    assert!(trouble.contains("no newer checkpoint") && trouble.contains("epochs-"), "{trouble}");
    let ticket = producer.append(b"key", &event.write(100)).unwrap();
    let receipt = producer.wait(ticket, WaitFor::block()).unwrap();
    disk.make_room();
    assert!(log.wait_checkpointed(&receipt, Duration::from_secs(60)));
    assert_eq!(log.evidence().trouble, None);
    drop(producer);
    let notices = log.close().unwrap().notices;
    assert!(notices.iter().any(|n| n.contains("no newer checkpoint")), "{notices:?}");
    scene.check("checkpoints had waited for room");
}

/// One segment finds room and a second does not: nothing is taken, since a crash could not be recovered from.
#[test]
fn nothing_is_taken_without_a_segment_for_a_recovery() {
    let Some(disk) = SmallDisk::new(8) else { return };
    let scene = &disk.scene;
    // What the first segment, the manifests and the keys take, and not another segment.
    let free = || hanaper_shards::io::disk::free_bytes(&disk.mount()).unwrap().unwrap();
    while free() > (1 << 20) + (900 << 10) {
        disk.hog().write_all(&[0x55; 4096]).unwrap();
    }
    disk.hog().sync_all().unwrap();
    let log = builder(&scene.log()).shards(1).checkpoints(false).open().unwrap();
    let mut producer = log.producer().unwrap();
    let until = Instant::now() + Duration::from_millis(500);
    while Instant::now() < until {
        let refused = producer.append(b"key", b"event").unwrap_err();
        assert!(matches!(refused, AppendError::Backpressure(Backpressure::NoSpace)), "{refused}");
        std::thread::yield_now();
    }
    disk.make_room();
    let mut event = Event { who: (1, 1), n: 0 };
    goes_on(&mut producer, &mut event);
    drop(producer);
    log.close().unwrap();
    scene.check("with room for a recovery");
}
