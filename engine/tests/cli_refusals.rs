//! What cannot be done: one clear sentence, and the documented exit code.
#![cfg(feature = "cli")]

mod support;

use std::fs;
use std::io::{BufReader, Write};
use std::path::Path;

use support::{
    Place, SmallDisk, bare, crc32c, feed, is_root, line, rest, run, run_with, signal, skip, spawn,
    wait_for_word,
};

const READERS: [&str; 4] = ["replay", "verify", "inspect", "checkpoint"];

#[test]
fn a_folder_that_is_not_a_log_is_named() {
    let place = Place::new();
    fs::create_dir(place.log()).unwrap();
    fs::write(place.log().join("holiday.jpg"), b"not a log").unwrap();
    let name = place.log().display().to_string();
    for verb in READERS {
        run(&mut place.hanaper(&[verb])).refused(2, &[&name]);
    }
    // And no log is begun among somebody's files.
    run_with(&mut place.hanaper(&["append"]), b"one\n").refused(2, &[&name]);
    assert_eq!(fs::read_dir(place.log()).unwrap().count(), 1);
}

#[test]
fn a_log_that_is_not_there_is_named_by_those_who_read() {
    let place = Place::new();
    for verb in READERS {
        run(&mut place.hanaper(&[verb])).refused(2, &[&place.log().display().to_string()]);
    }
    assert!(!place.log().exists(), "reading made something");
}

#[test]
fn without_a_log_the_user_is_told_how_to_name_one() {
    for verb in ["append", "replay", "verify", "inspect", "recover"] {
        run(bare().arg(verb)).refused(2, &["--log", "HANAPER_LOG"]);
    }
}

/// A program must not guess at a format that it does not know.
#[test]
fn a_log_of_a_newer_format_version_is_refused_and_left_alone() {
    let place = Place::new();
    place.append(b"one\n");
    let manifest = place.log().join("log.manifest");
    let mut bytes = fs::read(&manifest).unwrap();
    // The header of the first entry: version at 12, its CRC over 12..256 at 8.
    assert_eq!(bytes[12..14], [1, 0]);
    bytes[12..14].copy_from_slice(&[2, 0]);
    let crc = crc32c(&bytes[12..256]);
    bytes[8..12].copy_from_slice(&crc.to_le_bytes());
    fs::write(&manifest, &bytes).unwrap();
    run_with(&mut place.hanaper(&["append"]), b"two\n").refused(5, &["version 2", "newer"]);
    for verb in ["replay", "verify", "inspect", "recover"] {
        run(&mut place.hanaper(&[verb])).refused(5, &["version 2", "newer"]);
    }
    assert_eq!(fs::read(&manifest).unwrap(), bytes);
}

/// Nor at a segment's: it is not damaged, this program is too old for it.
#[test]
fn a_segment_of_a_newer_format_version_is_refused_and_left_alone() {
    let place = Place::new();
    let mut killed = spawn(&mut place.hanaper(&["append", "--acks", "--shards", "1"]));
    let mut stdin = killed.stdin.take().unwrap();
    stdin.write_all(b"one\n").unwrap();
    line(&mut BufReader::new(killed.stdout.take().unwrap()));
    signal(&killed, libc::SIGKILL);
    drop(killed.finish());
    let segment = place.log().join("shard-0000-0000000000.segment");
    let mut bytes = fs::read(&segment).unwrap();
    // Magic, CRC32C of 12..480, version.
    assert_eq!(bytes[12..14], [1, 0]);
    bytes[12..14].copy_from_slice(&[2, 0]);
    let crc = crc32c(&bytes[12..480]);
    bytes[8..12].copy_from_slice(&crc.to_le_bytes());
    fs::write(&segment, &bytes).unwrap();
    run_with(&mut place.hanaper(&["append", "--shards", "1"]), b"two\n").refused(5, &["version 2", "newer"]);
    run(&mut place.hanaper(&["recover"])).refused(5, &["version 2", "newer"]);
    run(bare().arg("inspect").arg(&segment)).refused(5, &["version 2", "newer"]);
    assert!(fs::read(&segment).unwrap() == bytes);
}

/// A file where the log's folder should be is one mistake, whoever is asked.
#[test]
fn a_file_in_place_of_a_log_is_named() {
    let place = Place::new();
    let file = place.file("events.log", b"one\n");
    for verb in ["append", "replay", "verify", "inspect", "recover", "try"] {
        for log in [file.clone(), file.join("below")] {
            let run = run(bare().arg(verb).arg("--log").arg(&log));
            run.refused(2, &["events.log"]);
        }
    }
    assert_eq!(fs::read(&file).unwrap(), b"one\n");
}

#[test]
fn inspect_refuses_what_is_no_segment() {
    let place = Place::new();
    place.append(b"one\n");
    let file = place.file("events.log", &b"one\n".repeat(5000));
    for args in [&["inspect"][..], &["inspect", "--json"]] {
        let refused = run(bare().args(args).arg(&file));
        refused.refused(2, &["events.log", "not a segment file"]);
        assert_eq!(refused.text(), "");
    }
    run(bare().arg("inspect").arg(place.file("empty", b""))).refused(2, &["empty", "not a segment file"]);
    run(bare().arg("inspect").arg(place.log())).refused(2, &["it is a folder", "--log"]);
    run(bare().arg("inspect").arg(place.path("nowhere"))).refused(2, &["nowhere", "no such file"]);
    let link = place.path("link");
    std::os::unix::fs::symlink(place.log().join("shard-0000-0000000000.segment"), &link).unwrap();
    run(bare().arg("inspect").arg(&link)).refused(2, &["link", "it is a symbolic link"]);
}

/// A misspelt variable would be a setting that silently does nothing.
#[test]
fn a_misspelt_variable_is_refused_before_anything_is_made() {
    let place = Place::new();
    for verb in ["append", "config"] {
        run(place.hanaper(&[verb]).env("HANAPER_SHARD", "1"))
            .refused(2, &["HANAPER_SHARD: there is no such variable (did you mean HANAPER_SHARDS?)"]);
    }
    assert!(!place.log().exists());
    // Set to nothing is not set.
    let run = run_with(place.hanaper(&["append"]).env("HANAPER_SHARD", ""), b"one\n");
    assert_eq!(run.code, 0, "{}", run.err);
}

#[test]
fn one_shard_is_one_shard() {
    let place = Place::new();
    let run = run_with(&mut place.hanaper(&["append", "--shards", "1"]), b"one\n");
    assert_eq!(run.code, 0, "{}", run.err);
    run_with(&mut place.hanaper(&["append"]), b"two\n").refused(2, &["the log has 1 shard, not 2"]);
}

/// Acknowledgements come with the summary of their append behind them.
#[test]
fn kept_acknowledgements_may_end_with_a_summary_and_be_torn_at_the_end() {
    let place = Place::new();
    let acks = run_with(&mut place.hanaper(&["append", "--acks", "--json"]), b"one\ntwo\n");
    assert_eq!(acks.text().lines().count(), 3);
    let verify = |kept: &[u8]| {
        let file = place.file("acks", kept);
        run(place.hanaper(&["verify", "--json", "--acks"]).arg(&file))
    };
    let counted = |run: &support::Run| {
        let last: serde_json::Value = serde_json::from_str(run.text().lines().last().unwrap()).unwrap();
        (run.code, last["acks"].as_u64().unwrap())
    };
    assert_eq!(counted(&verify(&acks.out)), (0, 2));
    let torn = acks.text().rsplit_once("\n{").unwrap().0;
    assert_eq!(counted(&verify(&torn.as_bytes()[..torn.len() - 5])), (0, 1));
    let within = acks.text().replacen("\"seq\":", "\"s", 1);
    verify(within.as_bytes()).refused(2, &["line 1 is no acknowledgement"]);
    verify(b"hello").refused(2, &["line 1 is no acknowledgement"]);
    run(place.hanaper(&["verify", "--acks"]).arg(place.log())).refused(2, &["it is a folder"]);
}

/// Contradictions are answered, not decided in silence.
#[test]
fn json_and_raw_is_a_contradiction() {
    let place = Place::new();
    place.append(b"one\n");
    let raw = run(&mut place.hanaper(&["replay", "--json", "--output", "raw"]));
    raw.refused(2, &["--json", "--output raw", "--output ndjson"]);
    assert_eq!(raw.text(), "");
    assert_eq!(run(&mut place.hanaper(&["replay", "--json", "--output", "json"])).code, 0);
}

#[test]
fn a_log_opened_twice_names_the_owner_and_readers_are_welcome() {
    let place = Place::new();
    let mut owner = spawn(&mut place.hanaper(&["append", "--acks"]));
    let mut stdin = owner.stdin.take().unwrap();
    let mut acks = BufReader::new(owner.stdout.take().unwrap());
    stdin.write_all(b"one\n").unwrap();
    assert!(line(&mut acks).starts_with("{\"line\":1,"));
    let pid = owner.id().to_string();
    run_with(&mut place.hanaper(&["append"]), b"two\n").refused(4, &[&pid]);
    // Readers see what a stamp on disk covers, which comes a moment after the acknowledgement.
    support::until("the acknowledged record to be shown", || place.replay() == b"one\n");
    place.verify();
    stdin.write_all(b"three\n").unwrap();
    drop(stdin);
    assert!(owner.wait().unwrap().success());
    assert_eq!(place.replay(), b"one\nthree\n");
}

#[test]
fn no_shards_at_all_is_refused_before_anything_is_made() {
    let place = Place::new();
    for shards in ["0", "257", "-1", "two"] {
        let run = run_with(place.hanaper(&["append"]).arg(format!("--shards={shards}")), b"one\n");
        run.refused(2, &[&format!("--shards {shards}"), "1 to 256"]);
    }
    run_with(place.hanaper(&["append"]).env("HANAPER_SHARDS", "0"), b"one\n")
        .refused(2, &["HANAPER_SHARDS=0"]);
    assert!(!place.log().exists());
}

/// Another shard count would send keys elsewhere, so that takes a word.
#[test]
fn another_shard_count_needs_reshard() {
    let place = Place::new();
    place.append(b"one\n");
    run_with(&mut place.hanaper(&["append", "--shards", "3"]), b"two\n").refused(2, &["--reshard"]);
    let run = run_with(&mut place.hanaper(&["append", "--shards", "3", "--reshard"]), b"two\n");
    assert_eq!(run.code, 0, "{}", run.err);
    assert_eq!(place.replay(), b"one\ntwo\n");
    place.verify();
}

#[test]
fn a_wrong_flag_or_verb_is_answered_with_the_right_one() {
    let place = Place::new();
    run(&mut place.hanaper(&["append", "--shard", "2"])).refused(2, &["--shard", "--shards"]);
    run(&mut place.hanaper(&["apend"])).refused(2, &["apend", "hanaper append"]);
    run(&mut place.hanaper(&["append", "--key", "colour"])).refused(2, &["colour", "json:/POINTER"]);
    run(&mut place.hanaper(&["append", "--ack", "replicated"])).refused(2, &["replicated", "--ack"]);
    run(&mut place.hanaper(&["replay", "--from", "noon"])).refused(2, &["--from noon", "RFC 3339"]);
    run(&mut place.hanaper(&["replay", "--output", "xml"])).refused(2, &["xml", "raw, ndjson, json"]);
}

#[test]
fn a_shard_that_is_not_there_is_named() {
    let place = Place::new();
    place.append(b"one\n");
    run(&mut place.hanaper(&["replay", "--shard", "9"])).refused(2, &["--shard 9", "0, 1"]);
}

#[test]
fn a_wrong_settings_file_is_named_with_its_line() {
    let place = Place::new();
    place.append(b"one\n");
    fs::write(place.log().join("hanaper.toml"), "pin = true\nsegment_byte = 1\n").unwrap();
    run_with(&mut place.hanaper(&["append"]), b"two\n")
        .refused(2, &["hanaper.toml:2", "segment_byte", "segment_bytes"]);
    let missing = place.path("missing.toml");
    run(place.hanaper(&["config", "--config"]).arg(&missing)).refused(2, &["missing.toml"]);
}

#[test]
fn a_read_only_folder_can_be_read_and_not_written() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    // A place where not even root can make a folder.
    let run = run_with(bare().args(["append", "--log", "/proc/self/hanaper-test"]), b"one\n");
    run.refused(4, &["/proc/self/hanaper-test"]);
    if is_root() {
        return skip("root may write into read-only folders");
    }
    place.append(b"one\n");
    let set = |mode: u32, path: &Path| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    for entry in fs::read_dir(place.log()).unwrap() {
        set(0o400, &entry.unwrap().path());
    }
    set(0o500, &place.log());
    run_with(&mut place.hanaper(&["append"]), b"two\n").refused(4, &[&place.log().display().to_string()]);
    assert_eq!(place.replay(), b"one\n");
    place.verify();
    set(0o700, &place.log());
}

/// Not even the first segments fit. That is said at once with what would do, nothing is made, and the log
/// begins as soon as there is space.
#[test]
fn no_space_for_the_first_segments_is_said_at_once() {
    let place = Place::new();
    let Some(disk) = SmallDisk::new(&place, "16m") else {
        return skip("no user namespaces here: no small disk");
    };
    let ballast = disk.outside("ballast");
    fs::write(&ballast, vec![1; (16 << 20) - (256 << 10)]).unwrap();
    run(&mut disk.hanaper(&["append"]))
        .refused(4, &["no space for a new log", "2.5 MiB", "fewer --shards or smaller --segment-bytes"]);
    assert!(!disk.outside("log").exists());
    fs::remove_file(&ballast).unwrap();
    let stored = run(&mut disk.hanaper(&["append"]));
    assert_eq!(stored.code, 0, "{}", stored.err);
    // It is a file system in memory, which no sync makes durable.
    stored.refused(0, &["in memory", "until a reboot"]);
    assert!(run(&mut disk.hanaper(&["inspect"])).text().contains("in memory"));
    assert_eq!(run(&mut disk.hanaper(&["verify"])).code, 0);
}

/// Numbered lines of a hundred bytes.
fn lines(from: u64, count: u64) -> String {
    (from..from + count).map(|n| format!("{n:0>99}\n")).collect()
}

/// A full disk is back-pressure: what was accepted becomes durable, it is said once, and the
/// append goes on by itself as soon as there is space, without a restart.
#[test]
fn a_full_disk_is_waited_for_and_goes_on_when_there_is_space() {
    let place = Place::new();
    let Some(disk) = SmallDisk::new(&place, "48m") else {
        return skip("no user namespaces here: no small disk");
    };
    let ballast = disk.outside("ballast");
    fs::write(&ballast, vec![1; 24 << 20]).unwrap();
    let input = lines(0, 200_000);
    let mut child = spawn(&mut disk.hanaper(&["append", "--json"]));
    feed(&mut child, input.clone().into_bytes());
    let (said, stderr) = wait_for_word(child.stderr.take().unwrap(), "no space");
    assert!(said.contains("standard input, line "), "{said}");
    assert!(said.contains("1.0 MiB are free") && said.contains("Ctrl-C"), "{said}");
    fs::remove_file(&ballast).unwrap();
    let after = rest(stderr);
    assert!(after.contains("space again"), "{after}");
    let ended = child.finish();
    assert_eq!(ended.code, 0);
    let replayed = run(&mut disk.hanaper(&["replay"]));
    assert!(replayed.out == input.as_bytes(), "what came back is not what went in");
    assert_eq!(run(&mut disk.hanaper(&["verify"])).code, 0);
}

/// Whoever does not want to wait for space presses Ctrl-C: what was accepted is durable, and the
/// log opens on the full disk.
#[test]
fn an_append_that_waits_for_space_can_be_interrupted() {
    let place = Place::new();
    let Some(disk) = SmallDisk::new(&place, "24m") else {
        return skip("no user namespaces here: no small disk");
    };
    let mut child = spawn(&mut disk.hanaper(&["append", "--json"]));
    feed(&mut child, lines(0, 400_000).into_bytes());
    let (_, stderr) = wait_for_word(child.stderr.take().unwrap(), "no space");
    signal(&child, libc::SIGINT);
    let after = rest(stderr);
    assert!(after.contains("interrupted: "), "{after}");
    let ended = child.finish();
    assert_eq!(ended.code, 130);
    let summary: serde_json::Value = serde_json::from_slice(&ended.out).unwrap();
    let events = summary["events"].as_u64().unwrap();
    assert!(events > 0);
    let replayed = run(&mut disk.hanaper(&["replay"]));
    assert!(replayed.out == lines(0, events).as_bytes(), "not the first {events} lines");
    assert_eq!(run(&mut disk.hanaper(&["verify"])).code, 0);
    // A restart on the full disk works; there is merely nothing to append.
    let again = run(&mut disk.hanaper(&["append"]));
    assert_eq!(again.code, 0, "{}", again.err);
}
