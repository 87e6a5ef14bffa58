//! The verbs that a person meets first, and those around the log.
#![cfg(feature = "cli")]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use support::{Place, bare, run, run_with};

/// The README's first command.
#[test]
fn try_appends_verifies_replays_and_compares() {
    let place = Place::new();
    let tried = run(bare().arg("try").env("TMPDIR", place.path("")));
    assert_eq!(tried.code, 0, "{}{}", tried.text(), tried.err);
    for word in [
        "500 events",
        "all events appended at once",
        "durable",
        "self-consistent",
        "anchor: none",
        "same bytes",
    ] {
        assert!(tried.text().contains(word), "{word}:\n{}", tried.text());
    }
    assert_eq!(fs::read_dir(place.path("")).unwrap().count(), 0, "it left something behind");
}

#[test]
fn try_takes_a_file_and_keeps_a_log_that_was_named() {
    let place = Place::new();
    let file = place.file("mine.log", b"one\r\n\n\xfftwo\nthree");
    let kept = place.path("kept");
    let tried = run(bare().args(["try", "--json", "--log"]).arg(&kept).arg(&file));
    assert_eq!(tried.code, 0, "{}", tried.err);
    let told: serde_json::Value = serde_json::from_slice(&tried.out).unwrap();
    assert_eq!(told["events"], 4);
    assert_eq!(told["identical"], true);
    assert_eq!(told["anchor"], "none");
    let replayed = run(bare().args(["replay", "--log"]).arg(&kept));
    assert_eq!(replayed.out, b"one\r\n\n\xfftwo\nthree");
    // It never writes into a log that somebody has.
    run(bare().args(["try", "--log"]).arg(&kept)).refused(2, &["kept", "new folder"]);
    run(bare().args(["try", "missing.log"])).refused(2, &["missing.log", "no such file"]);
    run(bare().args(["try", "-"])).refused(2, &["reads its input twice", "name a regular file"]);
}

/// The sample says of itself that it is one, and is what its generator prints.
#[test]
fn the_sample_is_labelled() {
    let sample = include_str!("../sample/audit.ndjson");
    assert_eq!(sample.lines().count(), 500);
    for line in sample.lines() {
        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(event["sample"], true);
    }
}

#[test]
fn config_says_where_each_value_came_from() {
    let place = Place::new();
    fs::create_dir(place.log()).unwrap();
    fs::write(place.log().join("hanaper.toml"), "\nlane_bytes = \"64KiB\"\n").unwrap();
    let mut command = place.hanaper(&["config", "--json", "--backend", "posix"]);
    let config = run(&mut command);
    assert_eq!(config.code, 0, "{}", config.err);
    let mut found = 0;
    for line in config.text().lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let expected = match line["key"].as_str().unwrap() {
            "lane_bytes" => (serde_json::json!(65536), "file"),
            "shards" => (serde_json::json!(2), "environment"),
            "backend" => (serde_json::json!("posix"), "flag"),
            "pin" => (serde_json::json!(true), "default"),
            _ => continue,
        };
        found += 1;
        assert_eq!((line["value"].clone(), line["layer"].as_str().unwrap()), expected);
    }
    assert_eq!(found, 4);
}

#[test]
fn completions_and_man_pages_name_every_verb() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish"] {
        let printed = run(bare().args(["completions", shell]));
        assert_eq!(printed.code, 0);
        assert!(printed.text().contains("verify"), "{shell}");
    }
    let out = place.path("man1");
    assert_eq!(run(bare().args(["man", "--out"]).arg(&out)).code, 0);
    for page in ["hanaper.1", "hanaper-append.1", "hanaper-replay.1", "hanaper-verify.1"] {
        let text = fs::read_to_string(out.join(page)).unwrap();
        assert!(text.starts_with(".ie"), "{page} is no man page");
    }
    assert!(run(bare().args(["man", "append"])).text().contains("hanaper\\-append"));
    run(bare().args(["man", "apend"])).refused(2, &["apend"]);
}

/// Every verb prints JSON where it is asked to.
#[test]
fn completions_and_man_pages_come_as_json_too() {
    let object = |args: &[&str]| -> serde_json::Value {
        let printed = run(bare().args(args));
        assert_eq!(printed.code, 0, "{}", printed.err);
        serde_json::from_slice(&printed.out).unwrap()
    };
    let script = object(&["completions", "bash", "--json"]);
    assert_eq!(script["shell"], "bash");
    assert!(script["script"].as_str().unwrap().contains("verify"));
    let page = object(&["man", "append", "--json"]);
    assert_eq!(page["page"], "hanaper-append.1");
    assert!(page["text"].as_str().unwrap().starts_with(".ie"));
    assert_eq!(object(&["man", "--json"])["page"], "hanaper.1");
    let place = Place::new();
    let written = run(bare().args(["man", "--json", "--out"]).arg(place.path("man1")));
    for line in written.text().lines() {
        let page: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(fs::metadata(page["path"].as_str().unwrap()).unwrap().len() > 0);
    }
    assert!(written.text().lines().count() >= 9);
}

/// How commits reach the disk stands in the log, and is shown from there, open or not.
#[test]
fn inspect_tells_the_primitive_of_the_last_opening() {
    let place = Place::new();
    let primitive = || {
        let inspected = run(&mut place.hanaper(&["inspect", "--json"]));
        assert_eq!(inspected.code, 0, "{}", inspected.err);
        let log: serde_json::Value = serde_json::from_slice(&inspected.out).unwrap();
        log["primitive"].as_str().map(str::to_owned)
    };
    let open = |backend: &str| {
        let stored = run_with(&mut place.hanaper(&["append", "--backend", backend]), b"one\n");
        assert_eq!(stored.code, 0, "{}", stored.err);
        let kept = run(&mut place.hanaper(&["replay", "--output", "ndjson"]));
        let opened = kept.text().lines().rfind(|line| line.contains("\"payload\":\"opened ")).unwrap();
        let (_, after) = opened.split_once("primitive=").unwrap();
        after.split(['"', ' ']).next().unwrap().to_owned()
    };
    // Two openings: it is the newest that counts.
    open("auto");
    let named = open("posix");
    assert_eq!(primitive(), Some(named.clone()));
    let words = run(&mut place.hanaper(&["inspect"]));
    assert!(
        words.text().contains(&format!("primitive      {named}, when it was last open")),
        "{}",
        words.text()
    );
    assert!(words.text().contains("space promise  "), "{}", words.text());
}

/// A person can learn from the help: each verb of the log shows by example how it is called.
#[test]
fn every_help_has_examples() {
    let log =
        ["append", "replay", "verify", "inspect", "recover", "checkpoint", "prove", "check-proof", "keys"];
    for verb in log.into_iter().chain(["config", "try", "completions", "man"]) {
        let help = run(bare().args([verb, "--help"]));
        assert_eq!(help.code, 0);
        assert!(help.text().contains("Examples:\n  "), "{verb}:\n{}", help.text());
        assert!(help.text().contains(&format!("hanaper {verb}")), "{verb}:\n{}", help.text());
    }
    // The long text, not the line of the overview.
    assert!(run(bare().args(["append", "--help"])).text().contains("exit code is 130"));
    let help = run(bare().arg("--help"));
    assert!(help.text().contains("130  interrupted"), "{}", help.text());
}

/// `hanaper NAME …` is `hanaper-NAME …`: with its arguments, its exit code, and the log's name.
#[test]
fn an_unknown_verb_runs_the_program_of_that_name() {
    let place = Place::new();
    let folder = place.path("bin");
    fs::create_dir(&folder).unwrap();
    let program = folder.join("hanaper-greet");
    fs::write(&program, "#!/bin/sh\necho \"$HANAPER_LOG $*\"\nexit 7\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = bare();
    command.env("PATH", format!("{}:/usr/bin:/bin", folder.display()));
    let greeted = run(command.args(["--log", "/some/log", "greet", "--loud", "world"]));
    assert_eq!(greeted.code, 7, "{}", greeted.err);
    assert_eq!(greeted.text(), "/some/log --loud world\n");
}

/// What happened to the log itself comes along, unless only events are wanted.
#[test]
fn ndjson_has_the_control_records_too() {
    let place = Place::new();
    place.append(b"one\n");
    let kinds = |args: &[&str]| -> Vec<String> {
        let replayed = run(place.hanaper(&["replay", "--output", "ndjson"]).args(args));
        let kind = |line: &str| {
            let object: serde_json::Value = serde_json::from_str(line).unwrap();
            object["kind"].as_str().unwrap().to_owned()
        };
        replayed.text().lines().map(kind).collect()
    };
    assert_eq!(kinds(&["--events"]), ["data"]);
    assert!(kinds(&[]).iter().filter(|kind| *kind == "control").count() >= 2, "opened and closed");
}

/// Times select events: what lies before --from or from --to on stays out.
#[test]
fn replay_takes_a_span_of_time() {
    let place = Place::new();
    place.append(b"one\n");
    let object = run(&mut place.hanaper(&["replay", "--output", "ndjson", "--events"]));
    let object: serde_json::Value = serde_json::from_slice(&object.out).unwrap();
    let time = object["time"].as_str().unwrap();
    assert_eq!(object["kind"], "data");
    let replay = |args: &[&str]| {
        let replayed = run(place.hanaper(&["replay"]).args(args));
        assert_eq!(replayed.code, 0, "{}", replayed.err);
        replayed.out
    };
    assert_eq!(replay(&["--from", time]), b"one\n");
    assert_eq!(replay(&["--to", time]), b"");
    assert_eq!(replay(&["--from", "1999-01-01T00:00:00Z", "--to", "2000-01-01T00:00:00Z"]).len(), 0);
}
