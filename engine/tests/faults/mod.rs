//! A process that appends and keeps what was acknowledged, and what must hold after it has died.
//!
//! The test program runs itself again: the test `child_process` does nothing unless it is told to by
//! [`ROLE`]. An acknowledgement is one `write` to a file, so it outlives the process that made it.

#![allow(dead_code)] // Each test program uses its part.

use std::collections::VecDeque;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hanaper::read::verify::{VerifyOptions, verify};
use hanaper::read::{Kind, Reader, Select};
use hanaper::{AppendError, Backend, Backpressure, Builder, Log, Producer, Ticket, WaitError, WaitFor};

pub const ROLE: &str = "HANAPER_TEST_ROLE";
pub const FOLDER: &str = "HANAPER_TEST_FOLDER";
pub const BACKEND: &str = "HANAPER_TEST_BACKEND";
/// Events that each thread of the child appends; without it, it goes on until it is killed.
pub const EVENTS: &str = "HANAPER_TEST_EVENTS";
/// The longest payload.
pub const PAYLOAD: &str = "HANAPER_TEST_PAYLOAD";

/// Where one log lies, what was acknowledged, and what its processes said.
pub struct Scene {
    pub dir: tempfile::TempDir,
    log: PathBuf,
}

impl Scene {
    pub fn new() -> Scene {
        let dir = tempfile::tempdir().unwrap();
        Scene { log: dir.path().join("log"), dir }
    }

    pub fn log(&self) -> PathBuf {
        self.log.clone()
    }

    /// For a log that lies on another disk; only the parent knows.
    pub fn log_at(&mut self, log: PathBuf) {
        self.log = log;
    }

    pub fn acks(&self) -> PathBuf {
        self.dir.path().join("acks")
    }

    /// This program again, in this role.
    pub fn child(&self, role: &str, backend: &str, strace: &[&str]) -> Command {
        let me = std::env::current_exe().unwrap();
        let mut command = match strace {
            [] => Command::new(me),
            options => {
                let mut command = Command::new("strace");
                command.args(["-f", "-qq"]).args(options).arg(me);
                command
            }
        };
        command.args(["--exact", "child_process", "--nocapture", "--test-threads=1"]);
        command.env(ROLE, role).env(FOLDER, self.dir.path()).env(BACKEND, backend);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// What must hold whenever nobody has the log open: it verifies, and every acknowledged record is
    /// there, in its batch; no sequence is there twice, none is left out, and payloads are what they were.
    /// Gives the number of acknowledgements.
    pub fn check(&self, when: &str) -> u64 {
        // Killed before the first acknowledgement there is nothing to hold against the log, which is refused.
        let any = std::fs::read(self.acks()).is_ok_and(|kept| kept.contains(&b'\n'));
        let acks = any.then(|| self.acks());
        let options = VerifyOptions { acks, ..VerifyOptions::default() };
        let mut findings = Vec::new();
        let report = verify(self.log(), &options, &mut |f| findings.push(f)).unwrap();
        findings.retain(|f| f.fails);
        assert!(findings.is_empty() && report.failures == 0, "{when}: {findings:#?}");
        let reader = Reader::open(self.log()).unwrap();
        for shard in reader.shards() {
            let mut last = std::collections::HashMap::new();
            let records = reader.shard(shard, 0..u64::MAX).unwrap();
            for (seq, record) in records.enumerate() {
                let record = record.unwrap();
                assert_eq!(record.seq, seq as u64, "{when}: sequences of shard {shard}");
                if record.kind == Kind::Data {
                    let event =
                        Event::read(&record.payload).unwrap_or_else(|| panic!("{when}: an altered payload"));
                    let before = last.insert(event.who, event.n);
                    assert!(before < Some(event.n), "{when}: one event twice, or out of order");
                }
            }
        }
        report.acks
    }

    /// Waits until a killed owner is gone. A kill of strace reaches the program below it a moment later.
    pub fn until_nobody_owns_it(&self) {
        let began = std::time::Instant::now();
        while hanaper::read::inspect(self.log()).unwrap().owner_pid.is_some() {
            assert!(began.elapsed() < std::time::Duration::from_secs(20), "the killed owner is still there");
            std::thread::yield_now();
        }
    }

    /// Opens and closes it, as whoever starts the service again would.
    pub fn reopen(&self, backend: Backend, when: &str) {
        let log = builder(&self.log()).backend(backend).open().unwrap_or_else(|e| panic!("{when}: {e}"));
        let report = log.close().unwrap_or_else(|e| panic!("{when}: {e}"));
        assert!(report.notices.is_empty(), "{when}: {:?}", report.notices);
    }

    /// All control records, as text.
    pub fn words(&self) -> Vec<String> {
        let select = Select { control: true, ..Select::default() };
        let records = Reader::open(self.log()).unwrap().replay(select);
        let control = records.map(Result::unwrap).filter(|r| r.kind == Kind::Control);
        control.map(|r| String::from_utf8(r.payload).unwrap()).collect()
    }
}

/// Small segments, so that rotation is part of everything; opened quickly.
pub fn builder(log: &Path) -> Builder {
    Log::builder(log)
        .state(concat!(env!("CARGO_TARGET_TMPDIR"), "/state"))
        .segment_bytes(1 << 20)
        .lane_bytes(64 << 10)
        .calibrate(false)
        .pin(false)
}

pub fn backend(name: &str) -> Backend {
    match name {
        "posix" => Backend::Posix,
        "uring" => Backend::Uring,
        _ => Backend::Auto,
    }
}

/// Whether io_uring can be had here; says so if not.
pub fn have_uring() -> bool {
    let dir = tempfile::tempdir().unwrap();
    match builder(&dir.path().join("log")).backend(Backend::Uring).shards(1).open() {
        Ok(log) => log.close().is_ok(),
        Err(error) => {
            eprintln!("SKIPPED: {error}");
            false
        }
    }
}

/// Whether strace works here; says so if not. Where CI has it, it must work.
pub fn have_strace() -> bool {
    let run = |args: &[&str]| {
        Command::new("strace").args(args).stdout(Stdio::null()).stderr(Stdio::null()).status()
    };
    if let Err(error) = run(&["--version"]) {
        eprintln!("SKIPPED: strace is not there ({error}); install it to run this test");
        return false;
    }
    let works = run(&["-f", "-qq", "-o", "/dev/null", "true"]).is_ok_and(|s| s.success());
    if !works {
        let ci = std::env::var("CI").is_ok_and(|v| v == "true");
        assert!(!ci, "strace is installed and does not work; CI must run this test");
        eprintln!("SKIPPED: strace may not trace here (ptrace is forbidden?)");
    }
    works
}

/// What a child's payload says of itself.
#[derive(Debug, PartialEq, Eq)]
pub struct Event {
    /// Process and thread.
    pub who: (u32, u32),
    pub n: u64,
}

impl Event {
    pub fn write(&self, bytes: usize) -> Vec<u8> {
        let mut payload = Vec::with_capacity(bytes.max(16));
        payload.extend(self.who.0.to_le_bytes());
        payload.extend(self.who.1.to_le_bytes());
        payload.extend(self.n.to_le_bytes());
        let mut x = self.n ^ u64::from(self.who.0) << 32;
        while payload.len() < bytes {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            payload.push((x >> 56) as u8);
        }
        payload
    }

    pub fn read(payload: &[u8]) -> Option<Event> {
        let u32_at = |at: usize| Some(u32::from_le_bytes(payload.get(at..at + 4)?.try_into().ok()?));
        let n = u64::from_le_bytes(payload.get(8..16)?.try_into().ok()?);
        let event = Event { who: (u32_at(0)?, u32_at(4)?), n };
        (event.write(payload.len()) == payload).then_some(event)
    }
}

/// Runs the role that this process was started for, if any; it does not outlive its parent, or the
/// tracer between them.
pub fn play(roles: &[(&str, fn())]) {
    let Ok(role) = std::env::var(ROLE) else { return };
    // SAFETY: no memory is passed.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    let (_, body) = roles.iter().find(|(name, _)| *name == role).expect("a known role");
    body();
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|v| v.parse().unwrap())
}

/// The child's side: two threads append to two shards and keep what is acknowledged.
pub fn append_and_acknowledge() {
    let folder = PathBuf::from(std::env::var_os(FOLDER).unwrap());
    let backend = backend(&std::env::var(BACKEND).unwrap());
    let log = builder(&folder.join("log")).backend(backend).shards(2).open().unwrap();
    let acks = std::fs::OpenOptions::new().create(true).append(true).open(folder.join("acks")).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (producer, acks) = (log.producer().unwrap(), &acks);
            scope.spawn(move || append_events(producer, acks, thread));
        }
    });
    log.close().unwrap();
}

fn append_events(mut producer: Producer, mut acks: &std::fs::File, thread: u32) {
    let events = setting(EVENTS).unwrap_or(u64::MAX);
    let longest = setting(PAYLOAD).unwrap_or(3000);
    let mut out: VecDeque<Ticket> = VecDeque::new();
    for n in 0..events {
        let event = Event { who: (std::process::id(), thread), n };
        let payload = event.write((n.wrapping_mul(0x9E37_79B9) % longest) as usize);
        out.push_back(append(&mut producer, &n.to_le_bytes(), &payload));
        // Some wait for each, some have several out.
        let allowed = if thread == 0 { 0 } else { 7 };
        while out.len() > allowed || (n + 1 == events && !out.is_empty()) {
            let ticket = out.pop_front().unwrap();
            let receipt = producer.wait(ticket, WaitFor::block()).unwrap();
            let batch: String = receipt.digest.iter().map(|b| format!("{b:02x}")).collect();
            let line =
                format!("{{\"shard\":{},\"seq\":{},\"batch\":\"{batch}\"}}\n", receipt.shard, receipt.seq);
            acks.write_all(line.as_bytes()).unwrap();
        }
    }
}

/// Appends, and tries again while there is no room.
pub fn append(producer: &mut Producer, key: &[u8], payload: &[u8]) -> Ticket {
    loop {
        match producer.append(key, payload) {
            Ok(ticket) => return ticket,
            Err(AppendError::Backpressure(Backpressure::LaneFull | Backpressure::NoSpace)) => {
                std::thread::yield_now()
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// The child's side of the failing disk: appends until a shard stops, and says what it saw. The words are
/// read by the parent.
pub fn append_until_it_fails() {
    use std::sync::{Arc, Mutex};
    use std::time::Instant;
    let folder = PathBuf::from(std::env::var_os(FOLDER).unwrap());
    let told: Arc<Mutex<Option<(Instant, String)>>> = Arc::default();
    let tell = Arc::clone(&told);
    let policy = hanaper::FailurePolicy::Call(Box::new(move |why| {
        *tell.lock().unwrap() = Some((Instant::now(), why.to_string()));
    }));
    let log =
        builder(&folder.join("log")).backend(Backend::Posix).shards(1).on_failure(policy).open().unwrap();
    let mut producer = log.producer().unwrap();
    // Somebody who waits on another thread learns it, too.
    let (send, receive) = std::sync::mpsc::channel();
    let waiter = producer.waiter();
    let other = std::thread::spawn(move || {
        let mut last = None;
        for ticket in receive {
            last = Some(waiter.wait(ticket, WaitFor::block()));
            if last.as_ref().is_some_and(Result::is_err) {
                break;
            }
        }
        (Instant::now(), last)
    });
    let deadline = Instant::now() + std::time::Duration::from_secs(20);
    let mut event = Event { who: (std::process::id(), 0), n: 0 };
    let error = loop {
        assert!(Instant::now() < deadline, "nothing failed");
        let ticket = match producer.append(b"key", &event.write(900)) {
            Ok(ticket) => ticket,
            Err(AppendError::Backpressure(_)) => continue,
            Err(AppendError::Stopped(why)) => panic!("stopped ({why}) before a waiter was told"),
            Err(error) => panic!("{error}"),
        };
        event.n += 1;
        let _ = send.send(ticket);
        match producer.wait(ticket, WaitFor::block()) {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    let heard = Instant::now();
    drop(send);
    assert!(matches!(error, WaitError::Indeterminate(_)), "{error}");
    let (other_heard, other_error) = other.join().unwrap();
    assert!(matches!(other_error, Some(Err(WaitError::Indeterminate(_)))), "{other_error:?}");
    let after = producer.append(b"key", b"later");
    assert!(matches!(after, Err(AppendError::Stopped(_))), "{after:?}");
    let close = log.close().expect_err("closing does not hide it");
    let (called, words) = told.lock().unwrap().take().expect("the failure policy was called");
    let late = |at: Instant| at.saturating_duration_since(called).as_millis();
    println!("\nTOLD {words}\nCLOSE {close}\nWAITED {} {}", late(heard), late(other_heard));
}
