//! Pipes that close, signals that arrive, acknowledgements that somebody waits for.
#![cfg(feature = "cli")]

mod support;

use std::collections::HashSet;
use std::io::{BufReader, Read, Write};

use support::{Place, code, feed, line, rest, run, run_with, signal, spawn};

fn numbered(count: u64) -> String {
    (1..=count).map(|n| format!("{n}\n")).collect()
}

/// `replay | head` is no failure, and nothing to say anything about.
#[test]
fn a_closed_pipe_ends_replay_quietly() {
    let place = Place::new();
    place.append(numbered(200_000).as_bytes());
    for output in ["raw", "ndjson", "json"] {
        let mut child = spawn(&mut place.hanaper(&["replay", "--output", output]));
        let mut stdout = child.stdout.take().unwrap();
        stdout.read_exact(&mut [0; 64]).unwrap();
        drop(stdout);
        let stderr = rest(child.stderr.take().unwrap());
        assert_eq!((code(&child.wait().unwrap()), stderr.as_str()), (0, ""), "{output}");
    }
    for args in [&["verify"][..], &["inspect"], &["config"], &["--help"], &["man"]] {
        let mut child = spawn(&mut place.hanaper(args));
        drop(child.stdout.take());
        let stderr = rest(child.stderr.take().unwrap());
        assert_eq!((code(&child.wait().unwrap()), stderr.as_str()), (0, ""), "{args:?}");
    }
}

/// Events whose acknowledgements nobody gets are not taken without a word: what was accepted is durable,
/// its count is said, and the rest is still to be appended.
#[test]
fn closed_acknowledgements_end_append_with_what_was_accepted() {
    let place = Place::new();
    let input = numbered(3_000_000);
    let mut child = spawn(&mut place.hanaper(&["append", "--acks", "--json"]));
    feed(&mut child, input.clone().into_bytes());
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    assert!(line(&mut stdout).starts_with("{\"line\":1,"));
    drop(stdout);
    let stderr = rest(child.stderr.take().unwrap());
    assert_eq!(code(&child.wait().unwrap()), 4, "{stderr}");
    assert_eq!(stderr.matches("no longer printed").count(), 1, "{stderr}");
    let (before, _) = stderr.split_once(" events (").unwrap();
    let said: u64 = before.rsplit(' ').next().unwrap().replace(',', "").parse().unwrap();
    assert!(said < 3_000_000, "{stderr}");
    assert!(place.replay() == numbered(said).as_bytes(), "not the first {said} lines");
    place.verify();
}

#[test]
fn a_stdout_that_cannot_be_written_is_said() {
    let place = Place::new();
    place.append(b"one\n");
    let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
    let run = |args: &[&str]| {
        let mut command = place.hanaper(args);
        let output = command.stdout(full()).output().unwrap();
        (code(&output.status), String::from_utf8(output.stderr).unwrap())
    };
    let (exit, said) = run(&["replay"]);
    assert_eq!(exit, 4);
    assert!(said.contains("standard output cannot be written"), "{said}");
}

/// Each acknowledgement comes at once, while the input is still open and silent.
#[test]
fn acknowledgements_do_not_wait_for_more_input() {
    let place = Place::new();
    let mut child = spawn(&mut place.hanaper(&["append", "--acks"]));
    let mut stdin = child.stdin.take().unwrap();
    let mut acks = BufReader::new(child.stdout.take().unwrap());
    for n in 1..=50 {
        writeln!(stdin, "event {n}").unwrap();
        let ack: serde_json::Value = serde_json::from_str(&line(&mut acks)).unwrap();
        assert_eq!(ack["line"], n);
        assert_eq!(ack["batch"].as_str().unwrap().len(), 64);
        assert!(ack.get("file").is_none());
    }
    drop(stdin);
    assert!(child.wait().unwrap().success());
}

/// With several files each line is named by its file, and (shard, sequence) is never given twice.
#[test]
fn acknowledgements_name_file_line_and_place() {
    let place = Place::new();
    let (a, b) = (place.file("a", numbered(3000).as_bytes()), place.file("b", b"x\ny\nz"));
    let run = run(place.hanaper(&["append", "--acks", "--json"]).arg(&a).arg(&b));
    assert_eq!(run.code, 0, "{}", run.err);
    let (acks, summary) = run.text().trim_end().rsplit_once('\n').unwrap();
    let summary: serde_json::Value = serde_json::from_str(summary).unwrap();
    let fields: Vec<_> = summary.as_object().unwrap().keys().cloned().collect();
    let mut expected = [
        "events",
        "bytes",
        "shards",
        "seconds",
        "events_per_s",
        "p50_us",
        "p99_us",
        "p999_us",
        "refused",
        "recovered",
    ];
    expected.sort_unstable();
    let mut sorted = fields;
    sorted.sort_unstable();
    assert_eq!(sorted, expected);
    assert_eq!(summary["events"], 3003);

    let mut lines = HashSet::new();
    let mut places = HashSet::new();
    for ack in acks.lines() {
        let ack: serde_json::Value = serde_json::from_str(ack).unwrap();
        let name = ack["file"].as_str().unwrap().to_owned();
        assert!(lines.insert((name, ack["line"].as_u64().unwrap())));
        assert!(places.insert((ack["shard"].as_u64().unwrap(), ack["seq"].as_u64().unwrap())));
    }
    assert_eq!(lines.len(), 3003);
    assert!(lines.contains(&(b.display().to_string(), 3)));
    let path = place.file("acks", acks.as_bytes());
    let verified = support::run(place.hanaper(&["verify", "--acks"]).arg(&path));
    assert_eq!(verified.code, 0, "{}{}", verified.text(), verified.err);
}

/// What was accepted becomes durable and is counted; the rest was never promised to anybody.
fn interrupted_by(which: i32) {
    let place = Place::new();
    let mut child = spawn(&mut place.hanaper(&["append", "--acks"]));
    // More than it can take before the signal, which comes after the first hundred.
    feed(&mut child, numbered(3_000_000).into_bytes());
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut acks = 0;
    let mut next = |stdout: &mut BufReader<_>| {
        let ack = line(stdout);
        if ack.is_empty() {
            return false;
        }
        acks += 1;
        let ack: serde_json::Value = serde_json::from_str(&ack).unwrap();
        assert_eq!(ack["line"], acks);
        true
    };
    for _ in 0..100 {
        assert!(next(&mut stdout));
    }
    signal(&child, which);
    while next(&mut stdout) {}
    let stderr = rest(child.stderr.take().unwrap());
    assert_eq!(code(&child.wait().unwrap()), 130, "{stderr}");
    assert!(stderr.contains("interrupted: "), "{stderr}");
    let said: String = stderr
        .split("interrupted: ")
        .nth(1)
        .unwrap()
        .chars()
        .take_while(|c| c.is_ascii_digit() || *c == ',')
        .filter(char::is_ascii_digit)
        .collect();
    assert_eq!(said, acks.to_string(), "{stderr}");
    assert!(place.replay() == numbered(acks).as_bytes(), "not the first {acks} lines");
    place.verify();
}

#[test]
fn sigint_finishes_what_was_accepted() {
    interrupted_by(libc::SIGINT);
}

#[test]
fn sigterm_finishes_what_was_accepted() {
    interrupted_by(libc::SIGTERM);
}

#[test]
fn sighup_finishes_what_was_accepted() {
    interrupted_by(libc::SIGHUP);
}

/// `nohup hanaper append` goes on when its terminal is gone.
#[test]
fn an_ignored_sighup_stays_ignored() {
    let place = Place::new();
    let program = place.hanaper(&["append", "--acks"]);
    let mut nohup = std::process::Command::new("sh");
    nohup.args(["-c", "trap '' HUP; exec \"$0\" append --acks"]).arg(program.get_program());
    for (name, value) in program.get_envs() {
        match value {
            Some(value) => nohup.env(name, value),
            None => nohup.env_remove(name),
        };
    }
    let mut child = spawn(&mut nohup);
    let mut stdin = child.stdin.take().unwrap();
    let mut acks = BufReader::new(child.stdout.take().unwrap());
    stdin.write_all(b"one\n").unwrap();
    line(&mut acks);
    signal(&child, libc::SIGHUP);
    stdin.write_all(b"two\n").unwrap();
    assert!(line(&mut acks).starts_with("{\"line\":2,"));
    drop(stdin);
    assert_eq!(code(&child.wait().unwrap()), 0);
}

/// A signal while the input is silent must not wait for the next line.
#[test]
fn an_interrupt_ends_a_silent_input() {
    let place = Place::new();
    let mut child = spawn(&mut place.hanaper(&["append", "--acks"]));
    let mut stdin = child.stdin.take().unwrap();
    let mut acks = BufReader::new(child.stdout.take().unwrap());
    stdin.write_all(b"one\nhalf a line").unwrap();
    line(&mut acks);
    signal(&child, libc::SIGINT);
    let stderr = rest(child.stderr.take().unwrap());
    assert_eq!(code(&child.wait().unwrap()), 130);
    assert!(stderr.contains("interrupted: 1 event "), "{stderr}");
    assert_eq!(place.replay(), b"one\n");
    drop(stdin);
}

#[test]
fn an_append_after_an_interrupt_goes_on() {
    let place = Place::new();
    place.append(b"one\n");
    let run = run_with(&mut place.hanaper(&["append"]), b"two\n");
    assert_eq!(run.code, 0, "{}", run.err);
    assert_eq!(place.replay(), b"one\ntwo\n");
}
