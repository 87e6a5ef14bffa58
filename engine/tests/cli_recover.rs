//! Recover at the command line, and what other verbs say of a loss: steps, summaries, exit codes.
#![cfg(feature = "cli")]

mod handmade;
mod support;

use std::fs;

use handmade::{Hand, event, overwrite};
use support::{Run, bare, run};

/// Three segments, the first two of them sealed, of five batches with one event each.
fn sample() -> Hand {
    let mut hand = Hand::new(1);
    for i in 0..15u64 {
        hand.shards[0].batch(&[event(1, i, 100 + i)]);
        if i % 5 == 4 && i < 14 {
            hand.shards[0].seal();
        }
    }
    hand.shards[0].stamp();
    hand.die();
    hand
}

fn hanaper(hand: &Hand, args: &[&str]) -> Run {
    run(bare().args(args).env("HANAPER_LOG", hand.path()))
}

fn damage(hand: &Hand, number: usize) {
    let (index, entry) = hand.shards[0].batches[number];
    overwrite(&hand.file(0, index), entry.offset + 300, |bytes| bytes[0] ^= 1);
}

/// The objects, of which the last is the summary.
fn objects(run: &Run) -> Vec<serde_json::Value> {
    run.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn nothing_to_do_is_a_summary_too() {
    let mut hand = sample();
    hand.seal_all();
    let whole = hanaper(&hand, &["recover", "--json"]);
    assert_eq!((whole.code, whole.err.as_str()), (0, ""));
    let summary = &objects(&whole)[0];
    assert_eq!((summary["result"].as_str(), summary["steps"].as_u64()), (Some("whole"), Some(0)));
    assert_eq!(summary["written"], false);
    hanaper(&hand, &["recover"]).refused(0, &["nothing to recover"]);
}

/// Opening does it, so the words must not send anybody to --write.
#[test]
fn a_log_that_was_not_closed_needs_no_write() {
    let hand = sample();
    let plan = hanaper(&hand, &["recover"]);
    plan.refused(0, &["nothing is to be put on record", "opening the log does the rest"]);
    assert!(!plan.err.contains("--write"), "{}", plan.err);
}

#[test]
fn a_loss_goes_from_found_to_recovered_to_stepped_over() {
    let hand = sample();
    damage(&hand, 2);
    let plan = hanaper(&hand, &["recover"]);
    plan.refused(1, &["nothing was changed; --write puts on record what is lost"]);
    assert!(plan.text().starts_with("LOSS BATCH-DIGEST shard 0 batch 2 "), "{}", plan.text());
    let written = hanaper(&hand, &["recover", "--write", "--json"]);
    assert_eq!(written.code, 3, "{}", written.err);
    let objects = objects(&written);
    assert_eq!((objects[0]["by"].as_str(), objects[0]["done"].as_bool()), (Some("recover"), Some(true)));
    let summary = objects.last().unwrap();
    assert_eq!(summary["result"], "recovered");
    assert_eq!((summary["losing"].as_u64(), summary["by_hand"].as_u64()), (Some(1), Some(0)));
    assert_eq!(summary["written"], true);
    // It is on record: nothing is left to do, and whoever reads is told that it is not all.
    assert_eq!(hanaper(&hand, &["recover"]).code, 0);
    let replayed = hanaper(&hand, &["replay"]);
    replayed.refused(3, &["shard 0, lost and on record as lost: record 2"]);
    assert_eq!(replayed.text().lines().count(), 14);
    assert_eq!(hanaper(&hand, &["replay", "--shard", "0", "--output", "json"]).code, 3);
    let verified = hanaper(&hand, &["verify"]);
    assert_eq!(verified.code, 0, "{}", verified.text());
    assert!(verified.text().contains("not covered: 1 loss on record"), "{}", verified.text());
}

/// Advice that would not help is worse than none.
#[test]
fn what_keeps_the_log_shut_is_said_with_what_to_do() {
    for (name, words) in [
        ("shard-0000.manifest", "nothing says what must be there"),
        ("log.manifest", "nothing says what must be there"),
        ("shard-0000-0000000002.segment", "nobody knows what was in it"),
    ] {
        let hand = sample();
        fs::remove_file(hand.path().join(name)).unwrap();
        let plan = hanaper(&hand, &["recover"]);
        plan.refused(1, &["--write would change nothing while this stands", name]);
        assert!(plan.text().contains(&format!("LOSS MISSING {name}: restore the file from a copy")));
        assert!(plan.text().contains(words), "{}", plan.text());
        assert!(!plan.text().contains("opening"), "{}", plan.text());
        hanaper(&hand, &["recover", "--write"]).refused(1, &[name, words, "nothing was written"]);
        let json = objects(&hanaper(&hand, &["recover", "--json"]));
        assert_eq!(json.last().unwrap()["result"], "damaged");
        assert_eq!(json[0]["by"], "hand");
    }
}

/// One cause, one exit code: a log whose manifest is gone is damage for whoever comes to it.
#[test]
fn a_log_without_its_manifest_is_damage_for_every_verb() {
    let hand = sample();
    fs::remove_file(hand.path().join("log.manifest")).unwrap();
    for verb in ["append", "replay", "verify", "inspect", "recover"] {
        let run = hanaper(&hand, &[verb]);
        assert_eq!(run.code, 1, "{verb}: {}{}", run.text(), run.err);
        assert!(format!("{}{}", run.text(), run.err).contains("log.manifest"), "{verb}");
    }
    assert!(!hand.path().join("log.manifest").exists(), "a new one must not hide the loss");
}

/// A segment that is only to be mended by hand is no loss, and not recovered either.
#[test]
fn padding_is_left_to_a_hand_and_then_mended_without_loss() {
    let hand = sample();
    let (index, entry) = hand.shards[0].batches[2];
    overwrite(&hand.file(0, index), entry.end(4096) - 1, |bytes| bytes[0] ^= 1);
    hanaper(&hand, &["recover", "--write"]).refused(1, &["1 step above is left for a hand"]);
    let (from, to) = (hand.file(0, index), hand.beside("mended.segment"));
    let mended = run(bare().arg("recover").arg("--input").arg(&from).arg("--output").arg(&to));
    assert_eq!((mended.code, mended.err.as_str()), (0, ""));
    assert!(mended.text().starts_with("PADDING shard 0 batch 2 "), "{}", mended.text());
    fs::rename(&to, &from).unwrap();
    assert_eq!(hanaper(&hand, &["verify"]).code, 0);
}

/// What could not be looked at is not one more violation.
#[test]
fn the_parts_that_were_not_checked_are_counted_apart() {
    let hand = sample();
    fs::remove_file(hand.file(0, 1)).unwrap();
    let verified = hanaper(&hand, &["verify"]);
    assert_eq!(verified.code, 1);
    let text = verified.text();
    assert!(text.contains("NOT-COVERED shard 0: "), "{text}");
    assert!(text.contains("1 violation found"), "{text}");
    assert!(text.contains("not covered: 1 part that is named above"), "{text}");
}

#[test]
fn a_damaged_manifest_is_named_once_in_its_finding() {
    for name in ["log.manifest", "shard-0000.manifest"] {
        let hand = sample();
        overwrite(&hand.path().join(name), 100, |bytes| bytes[0] ^= 1);
        for args in [&["verify"][..], &["verify", "--json"]] {
            let verified = hanaper(&hand, args);
            assert_eq!(verified.code, 1);
            assert_eq!(verified.text().matches("MANIFEST").count(), 1, "{}", verified.text());
        }
    }
}

#[test]
fn aggressive_says_where_it_makes_a_difference() {
    let hand = sample();
    hanaper(&hand, &["recover", "--mode", "aggressive"]).refused(0, &["--input and --output"]);
}

/// `verify` sends people here: what it calls wrong must not be "nothing to recover".
#[test]
fn a_stray_file_is_named_and_in_nobodys_way() {
    let mut hand = sample();
    hand.seal_all();
    fs::write(hand.path().join("notes.txt"), b"mine").unwrap();
    damage(&hand, 2);
    hanaper(&hand, &["recover", "--write"]).refused(1, &["1 step above is left for a hand"]);
    let plan = hanaper(&hand, &["recover"]);
    assert_eq!(plan.code, 1);
    assert_eq!(plan.text(), "STRAY notes.txt: move it elsewhere (it is not a file of this log)\n");
    fs::remove_file(hand.path().join("notes.txt")).unwrap();
    assert_eq!(hanaper(&hand, &["recover"]).code, 0);
}

/// Numbers that only say how far damage let it look must not pass for the log's.
#[test]
fn inspect_says_what_kept_it_from_looking_further() {
    for name in ["shard-0000-0000000001.segment", "shard-0000.manifest"] {
        let hand = sample();
        fs::remove_file(hand.path().join(name)).unwrap();
        let words = hanaper(&hand, &["inspect"]);
        assert_eq!(words.code, 0, "{}", words.err);
        assert!(words.text().contains(&format!("damage: MISSING {name}: ")), "{}", words.text());
        assert!(!words.text().contains("nothing durable yet"), "{}", words.text());
        let object = &objects(&hanaper(&hand, &["inspect", "--json"]))[0];
        assert!(object["shards"][0]["damage"].as_str().unwrap().contains(name));
    }
}

#[test]
fn a_segment_with_nothing_wrong_is_said_to_be_so() {
    let hand = sample();
    let output = hand.beside("same.segment");
    let same = run(bare().arg("recover").arg("--input").arg(hand.file(0, 0)).arg("--output").arg(&output));
    same.refused(0, &["nothing is wrong with it", "same.segment"]);
    assert!(fs::read(&output).unwrap() == fs::read(hand.file(0, 0)).unwrap());
}

#[test]
fn an_output_without_a_folder_is_named() {
    let hand = sample();
    let output = hand.beside("nowhere").join("mended.segment");
    let refused = run(bare().arg("recover").arg("--input").arg(hand.file(0, 0)).arg("--output").arg(&output));
    refused.refused(2, &["mended.segment", "there is no folder", "make it first"]);
}
