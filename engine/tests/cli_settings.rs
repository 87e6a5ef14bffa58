//! Settings as a person meets them: what is in force, what is refused, and with which way out.
#![cfg(feature = "cli")]

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use support::{Place, bare, is_root, run, run_with, skip};

/// Who sets a limit must not find it lowered in silence; who sets none gets what fits.
#[test]
fn an_explicit_payload_limit_is_refused_and_not_lowered() {
    let place = Place::new();
    for args in [["append", "--payload-bytes-max=1MiB"], ["config", "--payload-bytes-max=1MiB"]] {
        run_with(&mut place.hanaper(&args), b"one\n").refused(
            2,
            &["--payload-bytes-max 1MiB", "segment_bytes is 4MiB", "512KiB or less", "--segment-bytes 8MiB"],
        );
    }
    run(place.hanaper(&["append"]).env("HANAPER_PAYLOAD_BYTES_MAX", "16MiB"))
        .refused(2, &["HANAPER_PAYLOAD_BYTES_MAX=16MiB", "--segment-bytes 128MiB"]);
    assert!(!place.log().exists());
    let config = run(&mut place.hanaper(&["config"]));
    assert!(config.text().contains("payload_bytes_max = 524288 "), "{}", config.text());
}

/// The number of shards in force is the log's own where nobody set one.
#[test]
fn config_shows_the_shards_of_the_log_that_is_there() {
    let place = Place::new();
    place.append(b"one\n");
    let shards = |args: &[&str]| {
        let config = run(place.hanaper(&["config", "--json"]).args(args).env_remove("HANAPER_SHARDS"));
        assert_eq!(config.code, 0, "{}", config.err);
        let line = config.text().lines().find(|line| line.contains("\"shards\"")).unwrap().to_owned();
        serde_json::from_str::<serde_json::Value>(&line).unwrap()
    };
    let own = shards(&[]);
    assert_eq!((&own["value"], &own["layer"]), (&2.into(), &"log".into()));
    assert!(own.get("in_log").is_none());
    let other = shards(&["--shards", "3"]);
    assert_eq!((&other["value"], &other["layer"], &other["in_log"]), (&3.into(), &"flag".into(), &2.into()));
    let words = run(&mut place.hanaper(&["config", "--shards", "3"]));
    assert!(words.text().contains("--shards; the log has 2, and `append` refuses"), "{}", words.text());
}

/// One cause, one code: a file, somebody's folder, no folder above.
#[test]
fn config_refuses_what_append_refuses() {
    let place = Place::new();
    let file = place.file("events.log", b"one\n");
    fs::create_dir(place.path("photos")).unwrap();
    fs::write(place.path("photos/holiday.jpg"), b"x").unwrap();
    for verb in ["config", "append", "verify"] {
        run(bare().arg(verb).arg("--log").arg(&file)).refused(2, &["events.log"]);
    }
    for verb in ["config", "append"] {
        run(bare().arg(verb).arg("--log").arg(place.path("photos")))
            .refused(2, &["not a log", "such as holiday.jpg"]);
    }
    for verb in ["append", "replay", "verify", "inspect"] {
        run(bare().arg(verb).arg("--log").arg(place.path("no/folder"))).refused(2, &["no/folder"]);
    }
}

/// A program of another user, where root may be one.
fn as_nobody(args: &[&str], log: &Path) -> Option<Command> {
    let program = bare();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(program.get_program());
    let works = Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .arg(program.get_program())
        .arg("--version")
        .output();
    works.ok().filter(|output| output.status.success())?;
    command.args(args).arg("--log").arg(log).stdin(std::process::Stdio::null());
    Some(command)
}

/// A folder that may not be read is no mistake in the settings, whoever asks.
#[test]
fn a_folder_that_may_not_be_read_is_one_cause_with_one_code() {
    if !is_root() {
        return skip("only root can become somebody else");
    }
    let place = Place::new();
    place.append(b"one\n");
    for verb in ["append", "config", "replay", "verify", "inspect", "recover"] {
        let Some(mut command) = as_nobody(&[verb], &place.log()) else {
            return skip("no setpriv here, or the program is out of its reach");
        };
        let refused = run(&mut command);
        refused.refused(4, &["ermission denied"]);
        assert!(!refused.err.contains("--config"), "{verb}: {}", refused.err);
    }
}

/// Those who read need no settings: a mistake in them is worth a word, and no more.
#[test]
fn readers_warn_of_settings_that_do_not_exist_and_go_on() {
    let place = Place::new();
    place.append(b"one\n");
    fs::write(place.log().join("hanaper.toml"), "segment_byte = 1\n").unwrap();
    for args in [&["replay"][..], &["verify"], &["inspect"], &["recover"]] {
        let read = run(place.hanaper(args).env("HANAPER_SHARD", "1"));
        assert_eq!(read.code, 0, "{}", read.err);
        read.refused(0, &["HANAPER_SHARD: there is no such variable (did you mean HANAPER_SHARDS?)"]);
        read.refused(0, &["hanaper.toml:1", "segment_byte", "goes on"]);
    }
    for args in [&["append"][..], &["config"], &["recover", "--write"], &["try"]] {
        run(place.hanaper(args).env("HANAPER_SHARD", "1")).refused(2, &["HANAPER_SHARD", "unset it"]);
    }
    for args in [&["man"][..], &["completions", "bash"]] {
        let text = run(place.hanaper(args).env("HANAPER_SHARD", "1"));
        assert_eq!((text.code, text.err.as_str()), (0, ""));
    }
    fs::remove_file(place.log().join("hanaper.toml")).unwrap();
    // The variable is known; the folder has no key of this log.
    run(place.hanaper(&["append"]).env("HANAPER_STATE", "somewhere")).refused(2, &["somewhere", "--state"]);
}

/// Each of these once sent its reader to the wrong place.
#[test]
fn a_wrong_number_is_named_with_what_would_do() {
    let place = Place::new();
    let file = place.file("wrong.toml", b"pin = true\nshards = two\n");
    run(&mut place.hanaper(&["append", "--shards", "-1"])).refused(2, &["--shards -1", "from 1 to 256"]);
    run(&mut place.hanaper(&["replay", "--shard", "x"])).refused(2, &["--shard", "0, 1, 2", "replay --help"]);
    run(&mut place.hanaper(&["append", "--segment-bytes", "16MB"]))
        .refused(2, &["--segment-bytes 16MB", "multiple of 64KiB", "MiB"]);
    run(&mut place.hanaper(&["replay", "--from", "1600-01-01T00:00:00Z"]))
        .refused(2, &["--from 1600", "1677"]);
    run(place.hanaper(&["append", "--config"]).arg(&file))
        .refused(2, &["wrong.toml:2: shards = two", "from 1 to 256"]);
    run(&mut place.hanaper(&["append", "--ack", "replicated"])).refused(2, &["replicated", "durable"]);
    run(&mut place.hanaper(&["verify", "--nothing"])).refused(2, &["`hanaper verify --help`"]);
}

/// What a setting may be is offered where it is typed.
#[test]
fn completions_offer_the_words_of_a_setting() {
    let bash = run(bare().args(["completions", "bash"]));
    for words in ["auto uring posix", "threads glommio", "return abort", "true false"] {
        assert!(bash.text().contains(words), "{words}");
    }
    assert!(!bash.text().contains("replicated"));
    run(bare().args(["config", "--backend", "aio"]))
        .refused(2, &["--backend aio: it must be auto, uring or posix"]);
}
