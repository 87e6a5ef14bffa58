//! What the commit path asks of the kernel: one submission with a linked pair for each pipelined commit,
//! no other flush, and no unwritten extent under what it writes.

mod faults;

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use faults::*;
use hanaper::{Backend, Log, WaitFor};

/// Not a test: what the test below runs under strace.
#[test]
fn child_process() {
    play(&[("pipeline", pipelined_load)]);
}

/// A call that strace shows and that does nothing: marks the trace.
fn mark(name: &str) {
    let path = CString::new(format!("/{name}")).unwrap();
    // SAFETY: a string that ends with zero; there is no such file.
    unsafe { libc::access(path.as_ptr(), libc::F_OK) };
}

/// Waits until the last batch has its stamp, so that nothing is in flight and nothing is due.
fn quiet(log: &Log, stamps: u64) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while log.stats().shards[0].stamps < stamps {
        assert!(Instant::now() < deadline, "no stamp");
        std::thread::yield_now();
    }
    // On a slow machine there may have been one in the middle of the load, too, and another is still to come.
    let mut seen = (log.stats().shards[0].commits, Instant::now());
    while seen.1.elapsed() < Duration::from_millis(300) {
        let commits = log.stats().shards[0].commits;
        if commits != seen.0 {
            seen = (commits, Instant::now());
        }
        std::thread::yield_now();
    }
}

/// The child: everything that is gathered goes into the ring as soon as there is one record (nothing is
/// small enough to be done inline), up to four commits at a time.
fn pipelined_load() {
    let folder = PathBuf::from(std::env::var_os(FOLDER).unwrap());
    let log = builder(&folder.join("log"))
        .backend(Backend::Uring)
        .segment_bytes(16 << 20)
        .shards(1)
        .pipeline(4, 1)
        .open()
        .unwrap();
    let mut producer = log.producer().unwrap();
    let ticket = append(&mut producer, b"key", b"first");
    producer.wait(ticket, WaitFor::block()).unwrap();
    quiet(&log, 1);
    let (before, stamps) = (log.stats().shards[0].commits, log.stats().shards[0].stamps);
    mark("hanaper-begin");
    for n in 0..1500u32 {
        let ticket = append(&mut producer, b"key", &n.to_le_bytes().repeat(100));
        // In a burst first, then a few at a time, so that commits are many.
        if n > 1000 && n % 5 == 0 {
            producer.wait(ticket, WaitFor::block()).unwrap();
        }
    }
    producer.flush().unwrap();
    quiet(&log, stamps + 1);
    mark("hanaper-end");
    let after = log.stats().shards[0];
    assert_eq!(after.rotations, 1, "the first segment is large enough for all");
    let mut names = HashMap::new();
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let task = task.unwrap();
        let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        names.insert(task.file_name().into_string().unwrap(), name.trim().to_owned());
    }
    let driver = names.iter().find(|(_, name)| *name == "hanaper-0").expect("a driver thread").0;
    println!("\nDRIVER {driver}\nCOMMITS {}", after.commits - before);
    log.close().unwrap();
}

/// One line of a trace.
struct Call<'a> {
    thread: &'a str,
    name: &'a str,
    args: &'a str,
    result: i64,
}

fn calls(trace: &str) -> Vec<Call<'_>> {
    let mut begun: HashMap<&str, &str> = HashMap::new();
    let mut out = Vec::new();
    for line in trace.lines() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let rest = rest.trim_start();
        if let Some(open) = rest.strip_suffix("<unfinished ...>") {
            begun.insert(thread, open);
            continue;
        }
        let whole = match rest.strip_prefix("<... ") {
            Some(_) => begun.remove(thread).unwrap_or(rest),
            None => rest,
        };
        let Some((name, args)) = whole.split_once('(') else { continue };
        let result =
            rest.rsplit_once("= ").and_then(|(_, r)| r.split(' ').next()?.parse().ok()).unwrap_or(-1);
        out.push(Call { thread, name, args, result });
    }
    out
}

#[test]
fn a_pipelined_commit_is_one_linked_pair_and_nothing_else_flushes() {
    if !have_strace() || !have_uring() {
        return;
    }
    let scene = Scene::new();
    let trace = scene.dir.path().join("trace");
    let options = [
        "-o",
        trace.to_str().unwrap(),
        "-e",
        "trace=io_uring_enter,fsync,fdatasync,sync_file_range,sync,syncfs,msync,pwrite64,pwritev,pwritev2,write,access",
    ];
    let output = scene.child("pipeline", "uring", &options).output().unwrap();
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{out}\n{}", String::from_utf8_lossy(&output.stderr));
    let said = |word: &str| out.lines().find_map(|l| l.strip_prefix(word)).unwrap().trim().to_owned();
    let (driver, commits) = (said("DRIVER"), said("COMMITS").parse::<i64>().unwrap());
    let text = std::fs::read_to_string(&trace).unwrap();
    let all = calls(&text);
    let place = |name: &str| all.iter().position(|c| c.name == "access" && c.args.contains(name)).unwrap();
    let window = &all[place("hanaper-begin")..place("hanaper-end")];
    let on_driver: Vec<&Call> = window.iter().filter(|c| c.thread == driver).collect();
    let enters: Vec<&&Call> = on_driver.iter().filter(|c| c.name == "io_uring_enter").collect();
    assert!(enters.iter().all(|c| c.result >= 0 || c.result == -1), "a broken trace");
    // A pair is two entries; the odd one is the poll for the wake-up.
    let submissions: Vec<i64> = enters.iter().map(|c| c.result).filter(|&taken| taken >= 2).collect();
    let pairs: i64 = submissions.iter().map(|taken| taken / 2).sum();
    eprintln!(
        "{commits} commits, {pairs} pairs in {} submissions, {} enters",
        submissions.len(),
        enters.len()
    );
    assert!(commits >= 50, "the load was not a load");
    assert_eq!(pairs, commits, "each commit is one write and one linked fdatasync");
    assert!(submissions.len() as i64 <= commits, "no pair is submitted in pieces");
    let others: Vec<&str> =
        on_driver.iter().map(|c| c.name).filter(|&n| n != "io_uring_enter" && n != "access").collect();
    assert!(others.is_empty(), "the driver made other calls on the commit path: {others:?}");
}

const UNWRITTEN: u32 = 0x800;

/// Logical ranges of a file, with their flags; `None` where the file system does not tell.
fn extents(path: &Path) -> Option<Vec<(std::ops::Range<u64>, u32)>> {
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Extent {
        logical: u64,
        physical: u64,
        length: u64,
        reserved64: [u64; 2],
        flags: u32,
        reserved: [u32; 3],
    }
    const COUNT: usize = 512;
    #[repr(C)]
    struct Map {
        start: u64,
        length: u64,
        flags: u32,
        mapped: u32,
        count: u32,
        reserved: u32,
        extents: [Extent; COUNT],
    }
    const FS_IOC_FIEMAP: libc::c_ulong = 0xC020_660B;
    let nothing =
        Extent { logical: 0, physical: 0, length: 0, reserved64: [0; 2], flags: 0, reserved: [0; 3] };
    let mut map = Map {
        start: 0,
        length: u64::MAX,
        flags: 0,
        mapped: 0,
        count: COUNT as u32,
        reserved: 0,
        extents: [nothing; COUNT],
    };
    let file = std::fs::File::open(path).unwrap();
    // SAFETY: the kernel writes at most `count` extents behind the header, and there is room for them.
    if unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP, &raw mut map) } != 0 {
        eprintln!("SKIPPED: this file system maps no extents ({})", std::io::Error::last_os_error());
        return None;
    }
    assert!((map.mapped as usize) < COUNT, "more extents than there is room for");
    let found = &map.extents[..map.mapped as usize];
    Some(found.iter().map(|e| (e.logical..e.logical + e.length, e.flags)).collect())
}

/// A commit into an unwritten extent would journal the extent's change: twice the latency.
#[test]
fn no_unwritten_extent_is_under_a_commit() {
    let scene = Scene::new();
    // That the map can show one at all.
    let probe = scene.dir.path().join("probe");
    let file = std::fs::File::create(&probe).unwrap();
    // SAFETY: no memory is passed.
    if unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, 1 << 20) } != 0 {
        eprintln!("SKIPPED: no fallocate here");
        return;
    }
    let Some(found) = extents(&probe) else { return };
    if !found.iter().any(|(_, flags)| flags & UNWRITTEN != 0) {
        eprintln!("SKIPPED: this file system has no unwritten extents");
        return;
    }
    for backend in [Backend::Auto, Backend::Posix] {
        let scene = Scene::new();
        let log = builder(&scene.log()).backend(backend).shards(1).open().unwrap();
        let mut producer = log.producer().unwrap();
        // Into the third segment, so that those that were prepared beside the commits are seen too.
        while log.stats().shards[0].rotations < 3 {
            append(&mut producer, b"key", &[5; 3000]);
        }
        producer.flush().unwrap();
        let mut seen = 0;
        for entry in std::fs::read_dir(scene.log()).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|x| x != "segment") {
                continue;
            }
            let Some(found) = extents(&path) else { return };
            let unwritten: Vec<_> = found.iter().filter(|(_, flags)| flags & UNWRITTEN != 0).collect();
            // Spares too: they are where the next commits go.
            assert!(unwritten.is_empty(), "{}: {unwritten:?}", path.display());
            seen += 1;
        }
        assert!(seen >= 3);
        drop(producer);
        log.close().unwrap();
    }
}
