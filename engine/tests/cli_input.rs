//! Bad and odd input to `append`: what is refused is named, and everything else is stored.
#![cfg(feature = "cli")]

mod support;

use std::io::Write;

use support::{Place, is_root, run, run_with, skip, spawn};

#[test]
fn a_missing_file_is_named_and_no_log_is_made_for_it() {
    let place = Place::new();
    let missing = place.path("missing.log");
    run(place.hanaper(&["append"]).arg(&missing)).refused(2, &[missing.to_str().unwrap(), "no such file"]);
    assert!(!place.log().exists());
}

/// One bad name among several must not cost the events of the others.
#[test]
fn a_missing_file_does_not_keep_the_others_out() {
    let place = Place::new();
    let (a, b) = (place.file("a", b"one\n"), place.file("b", b"two\n"));
    let missing = place.path("missing");
    let mut command = place.hanaper(&["append"]);
    run(command.arg(&a).arg(&missing).arg(&b)).refused(2, &["missing", "no such file"]);
    assert_eq!(place.replay(), b"one\ntwo\n");
}

#[test]
fn an_unreadable_file_is_named() {
    use std::os::unix::fs::PermissionsExt;
    if is_root() {
        return skip("root may read every file");
    }
    let place = Place::new();
    let file = place.file("secret", b"one\n");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o000)).unwrap();
    run(place.hanaper(&["append"]).arg(&file)).refused(2, &["secret", "permission denied"]);
}

#[test]
fn a_folder_as_input_is_named() {
    let place = Place::new();
    let folder = place.path("folder");
    std::fs::create_dir(&folder).unwrap();
    run(place.hanaper(&["append"]).arg(&folder)).refused(2, &["folder", "is a directory"]);
}

#[test]
fn a_line_over_the_limit_is_refused_by_its_number_and_all_else_is_stored() {
    let place = Place::new();
    let mut input = b"first\n".to_vec();
    input.extend(vec![b'x'; (1 << 19) + 1]);
    input.extend(b"\nthird\n");
    input.extend(vec![b'y'; 3 << 20]);
    let file = place.file("long", &input);
    let run = run(place.hanaper(&["append", "--json"]).arg(&file));
    run.refused(2, &["long, line 2", "524289 bytes", "payload_bytes_max = 524288"]);
    run.refused(2, &["long, line 4", "3145728 bytes"]);
    let summary: serde_json::Value = serde_json::from_slice(&run.out).unwrap();
    assert_eq!(summary["events"], 2);
    assert_eq!(summary["refused"], 2);
    assert_eq!(place.replay(), b"first\nthird\n");
    place.verify();
}

/// The limit itself still fits, and so does what is set.
#[test]
fn a_line_of_the_limit_is_stored() {
    let place = Place::new();
    let mut input = vec![b'x'; 1 << 20];
    input.push(b'\n');
    let mut command = place.hanaper(&["append", "--segment-bytes", "8MiB"]);
    let run = run_with(&mut command, &input);
    assert_eq!(run.code, 0, "{}", run.err);
    assert!(place.replay() == input);

    let place = Place::new();
    let limit = run_with(&mut place.hanaper(&["append", "--payload-bytes-max", "4"]), b"12345\n1234\n");
    limit.refused(2, &["standard input, line 1", "payload_bytes_max = 4"]);
    assert_eq!(place.replay(), b"1234\n");
}

#[test]
fn binary_lines_come_back_as_they_were() {
    let place = Place::new();
    let mut input: Vec<u8> = (0..=255).filter(|byte| *byte != b'\n').collect();
    input.extend(b"\n\x00\n\xff\xfe\xfd\n");
    place.append(&input);
    assert_eq!(place.replay(), input);
    let run = run(&mut place.hanaper(&["replay", "--output", "ndjson", "--events"]));
    let last = run.text().lines().last().unwrap();
    let last: serde_json::Value = serde_json::from_str(last).unwrap();
    assert_eq!(last["payload_base64"], "//79");
    assert!(last.get("payload").is_none());
}

/// An empty line is an event of no bytes, not nothing.
#[test]
fn empty_lines_are_events() {
    let place = Place::new();
    let input = b"\n\none\n\n";
    place.append(input);
    assert_eq!(place.replay(), input);
}

#[test]
fn an_empty_input_is_no_event() {
    let place = Place::new();
    place.append(b"");
    assert_eq!(place.replay(), b"");
    place.verify();
}

/// It comes back without one, and what is appended later is a line of its own all the same.
#[test]
fn a_last_line_without_lf_comes_back_without_one() {
    let place = Place::new();
    place.append(b"one\ntwo");
    assert_eq!(place.replay(), b"one\ntwo");
    place.append(b"three\n");
    assert_eq!(place.replay(), b"one\ntwo\nthree\n");
}

#[test]
fn crlf_keeps_its_cr() {
    let place = Place::new();
    place.append(b"one\r\n\r\ntwo\r\n");
    assert_eq!(place.replay(), b"one\r\n\r\ntwo\r\n");
}

/// The order is one producer's, whatever the number of shards and whatever the keys.
#[test]
fn lines_come_back_in_order_through_several_shards() {
    let input: String = (0..5000).map(|n| format!("{{\"n\":{n},\"who\":\"p{}\"}}\n", n % 7)).collect();
    for (shards, key) in [("1", "line"), ("2", "json:/who"), ("4", "line"), ("4", "field:1")] {
        let place = Place::new();
        let mut command = place.hanaper(&["append", "--shards", shards, "--key", key]);
        let run = run_with(&mut command, input.as_bytes());
        assert_eq!(run.code, 0, "{}", run.err);
        assert!(place.replay() == input.as_bytes(), "{shards} shards, key {key}");
    }
}

/// An event must not be dropped over a routing rule.
#[test]
fn a_line_without_its_key_is_stored_and_counted() {
    let place = Place::new();
    let input = b"{\"who\":\"ada\"}\nnot json\n{}\n";
    let run = run_with(&mut place.hanaper(&["append", "--key", "json:/who"]), input);
    run.refused(0, &["2 lines", "no key"]);
    assert_eq!(place.replay(), input);
}

/// Input that is larger than memory must be no problem, so what is held may not grow with it.
#[test]
fn a_hundred_megabytes_on_stdin_in_bounded_memory() {
    const LINES: usize = 400_000;
    let place = Place::new();
    let mut child = spawn(place.hanaper(&["append", "--json"]).env("HANAPER_SEGMENT_BYTES", "16MiB"));
    let mut stdin = child.stdin.take().unwrap();
    let line = |n: usize| format!("{n:0>8} {}\n", "e".repeat(250));
    let mut chunk = String::new();
    for n in 0..LINES {
        chunk.push_str(&line(n));
        if chunk.len() > 1 << 20 {
            stdin.write_all(chunk.as_bytes()).unwrap();
            chunk.clear();
        }
    }
    stdin.write_all(chunk.as_bytes()).unwrap();
    // The input is still open: the process is there, with the most that it has needed so far.
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    drop(stdin);
    let run = child.finish();
    assert_eq!(run.code, 0, "{}", run.err);
    let summary: serde_json::Value = serde_json::from_slice(&run.out).unwrap();
    assert_eq!(summary["events"], LINES);
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak_kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak_kib < 96 << 10, "{peak_kib} KiB at most were held");

    let replayed = place.replay();
    let mut lines = replayed.split_inclusive(|byte| *byte == b'\n');
    for n in 0..LINES {
        assert!(lines.next() == Some(line(n).as_bytes()), "line {n}");
    }
    assert_eq!(lines.next(), None);
}
