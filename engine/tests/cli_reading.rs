//! What the readers say, word by word where people were misled by it once.
#![cfg(feature = "cli")]

mod handmade;
mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};

use handmade::{Hand, event, overwrite};
use support::{Place, Run, bare, line, run, run_with, signal, skip, spawn, until};

fn json(run: &Run) -> serde_json::Value {
    serde_json::from_str(run.text().lines().last().unwrap()).unwrap()
}

fn hanaper(hand: &Hand, args: &[&str]) -> Run {
    run(bare().args(args).env("HANAPER_LOG", hand.path()))
}

/// Six batches in two sealed segments.
fn sealed() -> Hand {
    let mut hand = Hand::new(1);
    for i in 0..6 {
        hand.shards[0].batch(&[event(1, i, 100 + i)]);
        if i == 2 {
            hand.shards[0].seal();
        }
    }
    hand.seal_all();
    hand
}

/// A killed writer's last batches were acknowledged, and recovery copied them forward. What it left behind
/// must not be called unacknowledged.
#[test]
fn what_recovery_copied_forward_is_not_called_unacknowledged() {
    for _ in 0..40 {
        let place = Place::new();
        let mut child = spawn(&mut place.hanaper(&["append", "--acks", "--shards", "1"]));
        let mut stdin = child.stdin.take().unwrap();
        let mut acks = BufReader::new(child.stdout.take().unwrap());
        stdin.write_all(b"one\n").unwrap();
        line(&mut acks);
        until("the first record to be stamped", || place.replay() == b"one\n");
        stdin.write_all(b"two\n").unwrap();
        line(&mut acks);
        signal(&child, libc::SIGKILL);
        drop(child.finish());
        let again = run_with(&mut place.hanaper(&["append", "--shards", "1", "--json"]), b"three\n");
        assert_eq!(again.code, 0, "{}", again.err);
        // What was recovered is said, to people and to machines.
        again.refused(0, &["recovered shard 0, which had not been closed", "shard-0000-"]);
        let told = &json(&again)["recovered"][0];
        assert_eq!(told["shard"], 0);
        let verified = run(&mut place.hanaper(&["verify"]));
        assert_eq!(verified.code, 0, "{}", verified.text());
        assert_eq!(place.replay(), b"one\ntwo\nthree\n");
        let cut = verified.text().lines().find(|line| line.starts_with("CUT "));
        // The stamp may have come before the kill; then nothing was in doubt.
        let (Some(cut), false) = (cut, told["carried_count"] == 0) else { continue };
        assert!(cut.contains("on in shard-0000-") && cut.contains("where recovery copied them"), "{cut}");
        return;
    }
    panic!("in forty kills nothing was carried forward");
}

/// However many records a kill left in the last second: the newest opening is found.
#[test]
fn the_primitive_is_known_after_a_recovery_and_a_clean_close() {
    let place = Place::new();
    let mut child = spawn(&mut place.hanaper(&["append", "--acks", "--shards", "1"]));
    let mut stdin = child.stdin.take().unwrap();
    let acks = BufReader::new(child.stdout.take().unwrap());
    let writer = std::thread::spawn(move || {
        stdin.write_all(&b"an event\n".repeat(40_000)).unwrap();
        stdin
    });
    assert_eq!(acks.lines().take(40_000).count(), 40_000);
    signal(&child, libc::SIGKILL);
    drop(child.finish());
    drop(writer.join().unwrap());
    let again = run_with(&mut place.hanaper(&["append", "--shards", "1"]), b"last\n");
    assert_eq!(again.code, 0, "{}", again.err);
    let inspected = json(&run(&mut place.hanaper(&["inspect", "--json"])));
    assert!(inspected["primitive"].is_string(), "{inspected}");
}

/// The digest holds: nothing is altered, and nothing is lost.
#[test]
fn data_in_the_padding_is_called_that() {
    let hand = sealed();
    let (index, entry) = hand.shards[0].batches[1];
    overwrite(&hand.file(0, index), entry.end(4096) - 1, |bytes| bytes[0] ^= 1);
    for verb in ["verify", "recover"] {
        let told = hanaper(&hand, &[verb]);
        let padding = told.text().lines().find(|line| line.starts_with("PADDING ")).unwrap().to_owned();
        assert!(padding.contains("nothing is lost"), "{padding}");
        assert!(!padding.contains("altered") && !padding.contains("final end"), "{padding}");
    }
}

/// A loss on record is seen wherever somebody looks, and its ends are the records that are lost.
#[test]
fn a_loss_is_counted_and_named_by_its_first_and_last() {
    let hand = sealed();
    for number in [0, 1] {
        let (index, entry) = hand.shards[0].batches[number];
        overwrite(&hand.file(0, index), entry.offset + 300, |bytes| bytes[0] ^= 1);
    }
    assert_eq!(hanaper(&hand, &["recover", "--write"]).code, 3);
    let verified = hanaper(&hand, &["verify"]);
    let losses: Vec<_> = verified.text().lines().filter(|line| line.starts_with("LOSS ")).collect();
    assert!(losses.iter().all(|loss| !loss.contains("..")), "{losses:?}");
    let inspected = json(&hanaper(&hand, &["inspect", "--json"]));
    assert_eq!(inspected["lost_records"], 2);
    let shard = &inspected["shards"][0];
    assert_eq!(shard["losses"][0]["first_seq"], 0);
    let lost: Vec<_> =
        shard["segments"].as_array().unwrap().iter().map(|s| s["lost_records"].clone()).collect();
    assert_eq!(lost, [2, 0]);
    let words = hanaper(&hand, &["inspect"]);
    assert!(words.text().contains("lost           2 records"), "{}", words.text());
}

/// What could not be written is named: the log, not the file of the lock.
#[test]
fn a_repair_on_a_read_only_mount_names_the_folder() {
    let hand = sealed();
    let (index, entry) = hand.shards[0].batches[0];
    overwrite(&hand.file(0, index), entry.offset + 300, |bytes| bytes[0] ^= 1);
    let mount = "mount --bind \"$1\" \"$1\" && mount -o remount,bind,ro \"$1\" || exit 77; exec \"$0\" recover --write";
    let program = bare();
    let mut command = std::process::Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", mount]);
    command.arg(program.get_program()).arg(hand.path()).env("HANAPER_LOG", hand.path());
    match command.output() {
        Ok(output) if !matches!(output.status.code(), Some(1 | 77)) => {}
        _ => return skip("no user namespaces here: no read-only mount"),
    }
    run(&mut command).refused(4, &[&hand.path().display().to_string(), "can be read, and not be written"]);
}

/// One shard by itself has its own order, whatever the clocks of its producers said.
#[test]
fn a_chosen_shard_comes_in_order_of_its_sequence() {
    let mut hand = Hand::new(1);
    hand.shards[0].batch(&[event(1, 0, 300), event(2, 0, 100), event(3, 0, 200)]);
    hand.seal_all();
    let seqs = |args: &[&str]| -> Vec<u64> {
        let replayed = hanaper(&hand, &[&["replay", "--output", "ndjson"], args].concat());
        assert_eq!(replayed.code, 0, "{}", replayed.err);
        let seq =
            |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["seq"].as_u64().unwrap();
        replayed.text().lines().map(seq).collect()
    };
    assert_eq!(seqs(&["--shard", "0"]), [0, 1, 2]);
    assert_eq!(seqs(&[]), [1, 2, 0]);
}

/// Two files without a last LF are two lines, not one.
#[test]
fn only_the_very_last_line_comes_without_its_lf() {
    let place = Place::new();
    let (a, b) = (place.file("a", b"first\nlast"), place.file("b", b"alone"));
    assert_eq!(run(place.hanaper(&["append"]).arg(&a).arg(&b)).code, 0);
    assert_eq!(place.replay(), b"first\nlast\nalone");
    place.append(b"more\n");
    assert_eq!(place.replay(), b"first\nlast\nalone\nmore\n");
}

/// Nothing that was looked for is nothing that was found.
#[test]
fn acknowledgements_that_are_none_prove_nothing() {
    let place = Place::new();
    let acks = run_with(&mut place.hanaper(&["append", "--acks"]), b"one\ntwo\n");
    let verify = |file: &str, input: &[u8]| run_with(&mut place.hanaper(&["verify", "--acks", file]), input);
    verify("/dev/null", b"").refused(2, &["/dev/null", "holds no acknowledgement"]);
    verify("-", b"").refused(2, &["standard input", "holds no acknowledgement"]);
    verify("-", &acks.out[..20]).refused(2, &["holds no acknowledgement but a torn line"]);
    let whole = verify("-", &acks.out);
    assert_eq!(whole.code, 0, "{}", whole.err);
    assert!(whole.text().contains("2 acknowledgements"), "{}", whole.text());
    assert!(!whole.text().contains("torn and says nothing"));
    let torn = verify("-", &acks.out[..acks.out.len() - 9]);
    assert_eq!(torn.code, 0, "{}", torn.err);
    assert!(torn.text().contains("1 acknowledgement that"), "{}", torn.text());
    assert!(torn.text().contains("torn and says nothing"), "{}", torn.text());
}

/// An editor's swap file is in the way, and says nothing about the log.
#[test]
fn a_stray_file_is_named_and_counted_apart() {
    let place = Place::new();
    place.append(b"one\n");
    fs::write(place.log().join(".hanaper.toml.swp"), b"x").unwrap();
    let verified = run(&mut place.hanaper(&["verify"]));
    assert_eq!(verified.code, 1);
    assert!(verified.text().contains("STRAY .hanaper.toml.swp"), "{}", verified.text());
    assert!(
        verified.text().contains("is self-consistent, and its folder holds 1 file"),
        "{}",
        verified.text()
    );
    let summary = json(&run(&mut place.hanaper(&["verify", "--json"])));
    assert_eq!((&summary["failures"], &summary["strays"]), (&1.into(), &1.into()));
}

#[test]
fn a_manifest_is_no_segment() {
    let place = Place::new();
    place.append(b"one\n");
    let copy = place.path("copy");
    fs::copy(place.log().join("log.manifest"), &copy).unwrap();
    for file in [place.log().join("log.manifest"), place.log().join("shard-0000.manifest"), copy] {
        run(bare().arg("inspect").arg(&file)).refused(2, &["manifest", "not a segment file"]);
    }
}

/// What is there is not overwritten: one cause, one code.
#[test]
fn a_file_that_would_be_overwritten_is_refused() {
    let hand = sealed();
    let there = hand.beside("there.segment");
    fs::write(&there, b"mine").unwrap();
    run(bare().arg("recover").arg("--input").arg(hand.file(0, 0)).arg("--output").arg(&there))
        .refused(5, &["there.segment", "name a new file"]);
    assert_eq!(fs::read(&there).unwrap(), b"mine");
    let place = Place::new();
    fs::create_dir(place.path("man1")).unwrap();
    place.file("man1/hanaper-append.1", b"mine");
    let man = || run(bare().args(["man", "--out"]).arg(place.path("man1")));
    man().refused(5, &["hanaper-append.1", "no page of hanaper"]);
    assert_eq!(fs::read_dir(place.path("man1")).unwrap().count(), 1, "some were written");
    fs::remove_file(place.path("man1/hanaper-append.1")).unwrap();
    assert_eq!((man().code, man().code), (0, 0), "its own pages are replaced");
}
