//! What `docs/verify-without-us.md` says, done: its commands are taken from it word for word, and run by other people's
//! tools on logs that the program has just made. They find those right, and refuse each that was tampered with.

mod support;

use std::fs;
use std::io::{BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use hanaper_shards::{batch, record};
use support::{Place, feed, line, run, run_with, spawn};

const BLOCK: usize = 4096;
/// The key of the specification's example: nobody's here.
const ANOTHER_KEY: &str = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k";

/// Somebody's key that has the name of `vkey`.
fn same_name(vkey: &str) -> String {
    use hanaper::checkpoint::note::SigningKey;
    let name = vkey.split('+').next().unwrap();
    SigningKey::from_seed(name, &[7; 32]).unwrap().vkey().to_string()
}

/// The block of this language under this heading.
fn block(heading: &str, language: &str) -> String {
    let page =
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/verify-without-us.md")).unwrap();
    let section = page.split("\n## ").find(|s| s.lines().next() == Some(heading));
    let section = section.unwrap_or_else(|| panic!("the page has no heading {heading}"));
    let opening = format!("\n```{language}\n");
    let (_, block) = section.split_once(&opening).unwrap_or_else(|| panic!("no {language} under {heading}"));
    block.split_once("\n```\n").expect("a block ends").0.to_owned() + "\n"
}

/// Whether a tool can be run. One that is installed and cannot is a failure where nobody looks at what was skipped.
fn has(tool: &str, argument: &str) -> bool {
    if Command::new(tool).arg(argument).output().is_ok_and(|ran| ran.status.success()) {
        return true;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let installed = std::env::split_paths(&path).any(|folder| folder.join(tool).is_file());
    assert!(
        !(installed && std::env::var("CI").is_ok_and(|ci| ci == "true")),
        "{tool} is installed and does not run"
    );
    support::skip(&format!("{tool} is not here, so what the page says of it was not run"));
    false
}

/// A log that was closed, killed, recovered and closed again; and a copy from right after the kill.
struct Scene {
    place: Place,
    log: PathBuf,
    killed: PathBuf,
    /// The checkpoint of the first close, which somebody kept.
    kept: PathBuf,
    vkey: String,
}

static SCENE: LazyLock<Scene> = LazyLock::new(Scene::new);

impl Scene {
    fn new() -> Scene {
        let place = Place::new();
        let append = || {
            let mut command = place.hanaper(&["append", "--acks", "--checkpoint-every-ms", "10"]);
            command.env("HANAPER_SHARDS", "3").env("HANAPER_SEGMENT_BYTES", "1MiB");
            command
        };
        let events = |n: usize| {
            (0..n).map(|i| format!("event {i} of somebody who did something\n")).collect::<String>()
        };
        let closed = run_with(&mut append(), events(20_000).as_bytes());
        assert_eq!(closed.code, 0, "{}", closed.err);
        let kept = place.path("kept");
        fs::copy(place.log().join("tlog/checkpoint"), &kept).unwrap();
        let mut child = spawn(&mut append());
        let mut stdin = child.stdin.take().unwrap();
        let writer = std::thread::spawn(move || while stdin.write_all(events(500).as_bytes()).is_ok() {});
        let mut acks = BufReader::new(child.stdout.take().unwrap());
        (0..3000).for_each(|_| assert!(!line(&mut acks).is_empty()));
        child.kill().unwrap();
        child.wait().unwrap();
        writer.join().unwrap();
        let (log, killed) = (place.log(), place.path("killed"));
        copy(&log, &killed);
        let mut last = spawn(&mut append());
        feed(&mut last, events(700).into_bytes());
        let closed = last.finish();
        assert_eq!(closed.code, 0, "{}", closed.err);
        assert!(log.join("epochs-0000000002.journal").exists(), "a period for each opening");
        let verified = run(&mut place.hanaper(&["verify", "--json"]));
        assert_eq!(verified.code, 0, "{}{}", verified.text(), verified.err);
        let vkey = verified.text().split_once("\"vkey\":\"").unwrap().1.split('"').next().unwrap().to_owned();
        Scene { place, log, killed, kept, vkey }
    }

    /// A copy to be tampered with.
    fn copied(&self) -> tempfile::TempDir {
        let folder = tempfile::tempdir_in(self.place.path("")).unwrap();
        copy(&self.log, folder.path());
        folder
    }

    fn shell(&self, heading: &str, log: &Path, vkey: &str) -> Output {
        let script = block(heading, "sh");
        let mut command = Command::new("sh");
        command.arg("-ec").arg(script).env("LOG", log).env("VKEY", vkey).env("TMPDIR", self.place.path(""));
        command.output().unwrap()
    }

    fn python(&self, log: &Path, vkey: &str) -> Output {
        self.python_with(log, vkey, &self.kept)
    }

    fn python_with(&self, log: &Path, vkey: &str, kept: &Path) -> Output {
        let page = self.place.path(&format!("check-{:?}.py", std::thread::current().id()));
        fs::write(&page, block("Python", "python")).unwrap();
        Command::new("python3").arg(page).arg(log).arg(vkey).arg(kept).output().unwrap()
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => {
                fs::copy(entry.path(), target).unwrap();
            }
        }
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[track_caller]
fn passes(output: &Output, words: &str) {
    assert!(output.status.success() && said(output).contains(words), "{}", said(output));
}

#[track_caller]
fn refuses(output: &Output, words: &str) {
    assert!(!output.status.success() && said(output).contains(words), "not {words:?}: {}", said(output));
}

/// Changes a file of a log.
fn change(file: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(file).unwrap();
    let before = bytes.clone();
    change(&mut bytes);
    assert!(bytes != before, "{} is as it was", file.display());
    fs::write(file, bytes).unwrap();
}

fn find(bytes: &[u8], wanted: &[u8]) -> usize {
    bytes.windows(wanted.len()).position(|w| w == wanted).expect("it is there")
}

/// Where batches begin.
fn batches(bytes: &[u8]) -> Vec<usize> {
    let is_batch = |at: &usize| batch::open(&bytes[*at..], BLOCK as u32).is_ok();
    (0..bytes.len()).step_by(BLOCK).filter(is_batch).collect()
}

/// Changes a byte of the last record of a batch, counted from the record's end, and mends all checksums and the digest,
/// as somebody would who knows the format.
fn forge(bytes: &mut [u8], at: usize, change: impl FnOnce(&mut [u8])) {
    let (header, placed) = {
        let batch = batch::open(&bytes[at..], BLOCK as u32).unwrap();
        (batch.header.clone(), batch.header.placed_bytes(BLOCK as u32))
    };
    let bytes = &mut bytes[at..at + placed];
    let number = |at: usize, length: usize, bytes: &[u8]| {
        bytes[at..at + length].iter().rev().fold(0usize, |n, &b| n << 8 | usize::from(b))
    };
    let mut record = batch::HEADER_BYTES;
    for _ in 1..header.count {
        record += record::encoded_bytes(number(record + 8, 2, bytes), number(record + 4, 4, bytes));
    }
    let (key, payload) = (number(record + 8, 2, bytes), number(record + 4, 4, bytes));
    let length = record::encoded_bytes(key, payload);
    change(&mut bytes[record + 32 + key..record + 32 + key + payload]);
    let seq = header.first_seq + u64::from(header.count) - 1;
    record::Seal::new(&header.incarnation).seal(seq, &mut bytes[record..record + length]);
    batch::seal(&header, bytes);
}

fn newest_epochs(log: &Path) -> PathBuf {
    let names = fs::read_dir(log).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    log.join(names.filter(|n| n.starts_with("epochs-") && n.ends_with(".journal")).max().unwrap())
}

fn first_segment(log: &Path) -> PathBuf {
    log.join("shard-0001-0000000000.segment")
}

fn newest_segment(log: &Path) -> PathBuf {
    let names = fs::read_dir(log).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    log.join(names.filter(|n| n.starts_with("shard-0001-")).max().unwrap())
}

/// Another character of base64 in place of this one.
fn another(c: u8) -> u8 {
    if c == b'A' { b'B' } else { b'A' }
}

#[test]
fn openssl_checks_both_signatures() {
    if !has("openssl", "version") {
        return;
    }
    let scene = &*SCENE;
    let good = scene.shell("OpenSSL", &scene.log, &scene.vkey);
    passes(&good, "Signature Verified Successfully");
    assert_eq!(said(&good).matches("Signature Verified Successfully").count(), 2);
    let failed = |log: &Path, vkey: &str| assert!(!scene.shell("OpenSSL", log, vkey).status.success());
    failed(&scene.log, ANOTHER_KEY);
    failed(&scene.log, &same_name(&scene.vkey));
    // The root, and a signature of each key.
    let note = fs::read_to_string(scene.log.join("tlog/checkpoint")).unwrap();
    let lines: Vec<usize> = note.match_indices('\n').map(|(at, _)| at).collect();
    for end in [lines[2], lines[4], lines[5]] {
        let copied = scene.copied();
        change(&copied.path().join("tlog/checkpoint"), |note| note[end - 9] = another(note[end - 9]));
        failed(copied.path(), &scene.vkey);
    }
}

#[test]
fn b3sum_recomputes_a_digest() {
    if !has("b3sum", "--version") {
        return;
    }
    let scene = &*SCENE;
    passes(&scene.shell("b3sum", &scene.log, &scene.vkey), "computed ");
    let copied = scene.copied();
    change(&copied.path().join("shard-0000-0000000000.segment"), |bytes| bytes[BLOCK + 300] ^= 1);
    refuses(&scene.shell("b3sum", copied.path(), &scene.vkey), "computed ");
}

#[test]
fn python_finds_logs_right() {
    if !has("python3", "--version") {
        return;
    }
    let scene = &*SCENE;
    for log in [&scene.log, &scene.killed] {
        passes(&scene.python(log, &scene.vkey), "all that was looked at is right");
    }
    refuses(&scene.python(&scene.log, ANOTHER_KEY), "a note of another log");
    refuses(&scene.python(&scene.log, &same_name(&scene.vkey)), "another key");
    // Against what somebody kept: a log that ends earlier, and another history.
    let newest = scene.log.join("tlog/checkpoint");
    passes(&scene.python_with(&scene.log, &scene.vkey, &newest), "all that was looked at is right");
    refuses(&scene.python_with(&scene.killed, &scene.vkey, &newest), "a kept note is on");
    let text = fs::read_to_string(&scene.kept).unwrap();
    let root = text.lines().nth(2).unwrap();
    let other = scene.place.file("other", text.replace(root, &format!("AAAA{}", &root[4..])).as_bytes());
    refuses(&scene.python_with(&scene.log, &scene.vkey, &other), "another history");
}

/// What was done to a log, and what Python says of it.
type Tampering = (fn(&Path), &'static str);

#[test]
fn python_refuses_what_was_tampered_with() {
    if !has("python3", "--version") {
        return;
    }
    let cases: [Tampering; 13] = [
        // A payload, with all checksums left; with the digest mended; and in the last batch, so that the chain holds.
        (|log| change(&first_segment(log), |b| b[BLOCK + 300] ^= 1), "is gone, altered or out of the chain"),
        (|log| change(&first_segment(log), |b| forge(b, BLOCK, |payload| payload[0] ^= 1)), "REFUSED: shard"),
        (
            |log| {
                change(&newest_segment(log), |b| {
                    let last = batches(b)
                        .into_iter()
                        .rfind(|&at| batch::open(&b[at..], BLOCK as u32).unwrap().header.count > 0);
                    let at = last.unwrap();
                    forge(b, at, |payload| payload[0] ^= 1);
                    // The stamp behind it, if there is one, is chained to it again.
                    let digest = batch::open(&b[at..], BLOCK as u32).unwrap().digest;
                    for later in batches(b).into_iter().filter(|&later| later > at) {
                        let mut header = batch::open(&b[later..], BLOCK as u32).unwrap().header;
                        header.previous = digest;
                        batch::seal(&header, &mut b[later..later + BLOCK]);
                    }
                });
            },
            "names another tree",
        ),
        // An entry, as it is and mended.
        (
            |log| {
                change(&newest_epochs(log), |b| {
                    let at = find(b, b"event stop opening=") + 19;
                    b[at] ^= 1;
                });
            },
            "is gone or altered",
        ),
        (
            |log| {
                change(&newest_epochs(log), |b| {
                    let at = batches(b)[1];
                    forge(b, at, |entry| {
                        let digit = find(entry, b" seqs=") + 6;
                        entry[digit] ^= 1;
                    });
                });
            },
            "is gone or altered",
        ),
        // The newest note: its root, and each signature.
        (|log| alter_note(log, 2), "the root of the note"),
        (|log| alter_note(log, 4), "the signature of"),
        (|log| alter_note(log, 5), "/period/"),
        // What is gone.
        (|log| fs::remove_file(newest_segment(log)).unwrap(), "is missing"),
        (|log| fs::remove_file(log.join("epochs-0000000001.journal")).unwrap(), "of period 1 are missing"),
        (|log| fs::remove_file(newest_epochs(log)).unwrap(), "and the log was closed with"),
        (|log| fs::remove_file(log.join("shard-0002.manifest")).unwrap(), "is missing"),
        // A whole shard, with the manifest of another.
        (
            |log| {
                fs::copy(log.join("shard-0000.manifest"), log.join("shard-0002.manifest")).unwrap();
            },
            "is of another journal",
        ),
    ];
    let scene = &*SCENE;
    for (tamper, words) in cases {
        let copied = scene.copied();
        tamper(copied.path());
        let output = scene.python(copied.path(), &scene.vkey);
        refuses(&output, words);
        refuses(&output, "REFUSED: ");
        assert_eq!(output.status.code(), Some(1));
    }
}

/// Alters what ends in this line of the newest note, and mends the journal.
fn alter_note(log: &Path, line: usize) {
    change(&newest_epochs(log), |b| {
        let at = *batches(b).last().unwrap();
        forge(b, at, |note| {
            assert!(note.starts_with(b"note\n"));
            let ends: Vec<usize> = (5..note.len()).filter(|&at| note[at] == b'\n').collect();
            note[ends[line] - 9] = another(note[ends[line] - 9]);
        });
    });
}

#[test]
fn gos_packages_check_the_view() {
    if !has("go", "version") {
        return;
    }
    let packages = Path::new("/usr/share/gocode/src/golang.org/x/mod/sumdb");
    if !packages.exists() {
        return support::skip("Debian's golang-golang-x-mod-dev is not here, so Go checked nothing");
    }
    let scene = &*SCENE;
    let source = scene.place.file("check.go", block("Go", "go").as_bytes());
    let program = scene.place.path("check-in-go");
    let mut build = Command::new("go");
    build
        .args(["build", "-o"])
        .arg(&program)
        .arg(source)
        .env("GO111MODULE", "off")
        .env("GOPATH", "/usr/share/gocode");
    let built = build.env("GOCACHE", scene.place.path("go")).output().unwrap();
    passes(&built, "");
    let go =
        |log: &Path, vkey: &str| Command::new(&program).arg(log.join("tlog")).arg(vkey).output().unwrap();
    passes(&go(&scene.log, &scene.vkey), "signed by ");
    refuses(&go(&scene.log, ANOTHER_KEY), "no verifiable signatures");
    let newest = newest_bundle(&scene.log);
    let copied = scene.copied();
    change(&copied.path().join(&newest), |bytes| {
        let at = bytes.len() - 3;
        bytes[at] ^= 1;
    });
    refuses(&go(copied.path(), &scene.vkey), "do not have the root");
    let copied = scene.copied();
    change(&copied.path().join("tlog/checkpoint"), |note| {
        let end = find(note, b"\n\n");
        note[end - 9] = another(note[end - 9]);
    });
    refuses(&go(copied.path(), &scene.vkey), "invalid signature");
}

/// The widest partial bundle of entries, by its name below the log.
fn newest_bundle(log: &Path) -> PathBuf {
    let bundles = Path::new("tlog/tile/entries/000.p");
    let widths =
        fs::read_dir(log.join(bundles)).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    bundles.join(widths.map(|w| w.parse::<u32>().unwrap()).max().unwrap().to_string())
}
