//! Runs the program as its users do: by its name, its arguments, its exit code and its words.
#![allow(dead_code)] // Each test file uses its part.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Output, Stdio};

/// A folder of its own for each test, gone afterwards.
pub struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Place {
        Place { folder: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Where this test's log lies.
    pub fn log(&self) -> PathBuf {
        self.path("log")
    }

    pub fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// The program, on this test's log.
    pub fn hanaper<S: AsRef<std::ffi::OsStr>>(&self, args: &[S]) -> Command {
        let mut command = bare();
        command.args(args).env("HANAPER_LOG", self.log());
        command
    }

    /// Stores these bytes, and expects that to work.
    pub fn append(&self, bytes: &[u8]) {
        let run = run_with(&mut self.hanaper(&["append"]), bytes);
        assert_eq!(run.code, 0, "{}", run.err);
    }

    /// What raw replay gives.
    pub fn replay(&self) -> Vec<u8> {
        let run = run(&mut self.hanaper(&["replay", "--output", "raw"]));
        assert_eq!(run.code, 0, "{}", run.err);
        run.out
    }

    /// The log is whole.
    pub fn verify(&self) {
        let run = run(&mut self.hanaper(&["verify"]));
        assert_eq!(run.code, 0, "{}{}", run.text(), run.err);
    }
}

/// Waits for something that must come to pass.
pub fn until(what: &str, mut is: impl FnMut() -> bool) {
    let began = std::time::Instant::now();
    while !is() {
        assert!(began.elapsed() < std::time::Duration::from_secs(60), "waited a minute for {what}");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

/// The program, without anything that this machine's user has set; segments are small, so that
/// tests that make many logs need neither the time nor the room for large ones.
pub fn bare() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hanaper"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("HANAPER_") {
            command.env_remove(name);
        }
    }
    command.env("HANAPER_STATE", concat!(env!("CARGO_TARGET_TMPDIR"), "/state"));
    command.env("HANAPER_SEGMENT_BYTES", "4MiB").env("HANAPER_SHARDS", "2").stdin(Stdio::null());
    command
}

/// How a run ended.
pub struct Run {
    /// 128 + the signal's number, if one ended it.
    pub code: i32,
    pub out: Vec<u8>,
    pub err: String,
}

impl Run {
    fn of(output: Output) -> Run {
        Run { code: code(&output.status), out: output.stdout, err: String::from_utf8(output.stderr).unwrap() }
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.out).unwrap()
    }

    /// The exit code, and one sentence on stderr that has all these words.
    #[track_caller]
    pub fn refused(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "{}", self.err);
        let sentences = self.sentences();
        assert!(
            sentences.iter().any(|sentence| words.iter().all(|word| sentence.contains(word))),
            "no sentence has {words:?}:\n{}",
            self.err
        );
        assert!(!self.err.contains("panicked"), "{}", self.err);
        assert!(!self.err.contains("os error"), "{}", self.err);
    }

    /// What was said, line by line; each begins with the program's name.
    #[track_caller]
    pub fn sentences(&self) -> Vec<&str> {
        self.err
            .lines()
            .map(|line| {
                line.strip_prefix("hanaper: ").unwrap_or_else(|| panic!("{line:?} of {:?}", self.err))
            })
            .collect()
    }
}

pub fn code(status: &std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap())
}

pub fn run(command: &mut Command) -> Run {
    Run::of(command.output().unwrap())
}

/// Runs it with these bytes on its standard input.
pub fn run_with(command: &mut Command, input: &[u8]) -> Run {
    let mut child = spawn(command);
    feed(&mut child, input.to_vec());
    child.finish()
}

/// Writes these bytes to its standard input and closes it, meanwhile. It may end before it has
/// read everything.
pub fn feed(child: &mut Running, input: Vec<u8>) {
    let mut stdin = child.stdin.take().unwrap();
    std::thread::spawn(move || drop(stdin.write_all(&input)));
}

/// A program that runs; it is ended if its test fails, so that nothing waits for it for ever.
pub struct Running(Option<Child>);

/// Starts it with all three streams as pipes.
pub fn spawn(command: &mut Command) -> Running {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Running(Some(command.spawn().unwrap()))
}

impl Running {
    /// Waits until it ends; what was not taken of its output is in the result.
    pub fn finish(mut self) -> Run {
        Run::of(self.0.take().unwrap().wait_with_output().unwrap())
    }
}

impl std::ops::Deref for Running {
    type Target = Child;

    fn deref(&self) -> &Child {
        self.0.as_ref().unwrap()
    }
}

impl std::ops::DerefMut for Running {
    fn deref_mut(&mut self) -> &mut Child {
        self.0.as_mut().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Reads lines until one has this word, and gives it back with the reader.
#[track_caller]
pub fn wait_for_word(from: ChildStderr, word: &str) -> (String, BufReader<ChildStderr>) {
    let mut reader = BufReader::new(from);
    let mut seen = String::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap() == 0 {
            panic!("it ended without saying {word:?}:\n{seen}");
        }
        if line.contains(word) {
            return (line, reader);
        }
        seen.push_str(&line);
    }
}

/// One line of a child's output.
pub fn line(reader: &mut impl BufRead) -> String {
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    line
}

pub fn rest(mut reader: impl Read) -> String {
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    text
}

/// Sends a signal to a child that this test started.
pub fn signal(child: &Child, signal: i32) {
    // SAFETY: a plain system call on the process that `child` stands for and that was not
    // waited for yet, so that its number cannot belong to another one.
    let sent = unsafe { libc::kill(child.id() as libc::pid_t, signal) };
    assert_eq!(sent, 0);
}

pub fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions.
    unsafe { libc::geteuid() == 0 }
}

/// Says that a test cannot run here. Visible with `--nocapture`, and in a failing run.
pub fn skip(why: &str) {
    eprintln!("SKIPPED: {why}");
}

/// A file system in memory of a given size, in a mount namespace of its own that needs no root.
pub struct SmallDisk {
    holder: Child,
    path: PathBuf,
}

impl SmallDisk {
    /// `None` where user namespaces are forbidden.
    pub fn new(at: &Place, size: &str) -> Option<SmallDisk> {
        let folder = at.path("disk");
        std::fs::create_dir(&folder).unwrap();
        let script = "mount -t tmpfs -o size=\"$1\" none \"$2\" && echo ready && cat";
        let mut holder = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", size])
            .arg(&folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let ready = line(&mut BufReader::new(holder.stdout.take().unwrap())) == "ready\n";
        let disk = SmallDisk { holder, path: folder };
        let entered = disk.inside(&Command::new("true")).status().is_ok_and(|status| status.success());
        (ready && entered).then_some(disk)
    }

    /// Where a log on it lies, for a program inside.
    pub fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// A file on it, as this test's own process reaches it.
    pub fn outside(&self, name: &str) -> PathBuf {
        let root = format!("/proc/{}/root{}", self.holder.id(), self.path.display());
        PathBuf::from(root).join(name)
    }

    /// The same command where the disk is. It keeps its process number, so that it can be
    /// signalled.
    pub fn inside(&self, command: &Command) -> Command {
        let mut entered = Command::new("nsenter");
        entered.args(["--user", "--mount", "--preserve-credentials", "--target"]);
        entered.arg(self.holder.id().to_string()).arg("--").arg(command.get_program());
        entered.args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => entered.env(name, value),
                None => entered.env_remove(name),
            };
        }
        entered.stdin(Stdio::null());
        entered
    }

    /// The program, on the log of this disk, with small segments and one shard.
    pub fn hanaper(&self, args: &[&str]) -> Command {
        let mut command = bare();
        command.args(args).env("HANAPER_LOG", self.log());
        command.env("HANAPER_SEGMENT_BYTES", "1MiB").env("HANAPER_SHARDS", "1");
        self.inside(&command)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        self.holder.wait().unwrap();
    }
}

/// CRC32C, bit by bit: slow, and written independently of what it checks.
pub fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}
