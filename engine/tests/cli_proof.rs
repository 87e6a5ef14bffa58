//! `checkpoint`, `keys`, `prove` and `check-proof`, as their users run them.
#![cfg(feature = "cli")]

mod support;

use std::fs;
use std::io::{BufReader, Write};
use std::path::Path;

use hanaper::checkpoint::keys::Keyring;
use hanaper::checkpoint::note::{Note, Vkey};
use hanaper::checkpoint::proof::check;
use hanaper::read::prove::{ProveError, prove};
use hanaper::read::{Reader, Select, newest};
use serde_json::Value;
use support::{Place, Run, bare, line, run, run_with, signal, skip, spawn, until};

fn json(run: &Run) -> Value {
    serde_json::from_slice(&run.out).unwrap_or_else(|e| panic!("{e}: {}{}", run.text(), run.err))
}

/// The first key that `keys list` prints, in a file.
fn vkey_file(place: &Place) -> std::path::PathBuf {
    let keys = run(&mut place.hanaper(&["keys", "list"]));
    assert_eq!((keys.code, keys.err.as_str()), (0, ""));
    place.file("audit.vkey", &keys.out)
}

fn prove_to(place: &Place, record: &str, prefix: &str) -> Run {
    run(place.hanaper(&["prove", record, "--output"]).arg(place.path(prefix)))
}

/// Without the log, its settings and its folder.
fn check_proof(place: &Place, prefix: &str, args: &[&str]) -> Run {
    run(bare()
        .arg("check-proof")
        .arg(place.path(prefix))
        .arg("--pub")
        .arg(place.path("audit.vkey"))
        .args(args))
}

/// Every record of a log is proven, control records too. Gives their number.
fn all_are_proven(log: &Path, vkey: &Vkey) -> usize {
    let records = Reader::open(log).unwrap().replay(Select { control: true, ..Select::default() });
    let mut count = 0;
    for record in records {
        let record = record.unwrap();
        let proof = prove(log, record.shard, record.seq).unwrap();
        let proven = check(vkey, proof.tlog_proof.as_bytes(), proof.leaf.as_bytes(), &proof.batch).unwrap();
        assert_eq!(proven.record, record);
        count += 1;
    }
    count
}

fn identity(log: &Path) -> Vkey {
    newest::keys(log).unwrap().unwrap().identity
}

/// The file of the nth sealed segment of shard 0.
fn sealed(log: &Path, n: usize) -> std::path::PathBuf {
    let shards = hanaper::read::inspect(log).unwrap().shards;
    let sealed = shards[0].segments.iter().filter(|s| s.state == "sealed" && s.batches > 0).nth(n);
    log.join(&sealed.unwrap().name)
}

/// Two shards and three openings; the log is gone when the proofs are checked.
#[test]
fn records_are_proven_without_the_log() {
    let place = Place::new();
    for session in 0..3 {
        let events: String = (0..40).map(|i| format!("session {session} event {i}\n")).collect();
        place.append(events.as_bytes());
    }
    vkey_file(&place);
    let replayed = run(&mut place.hanaper(&["replay", "--output", "ndjson", "--events"]));
    let records: Vec<Value> =
        replayed.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(records.len(), 120);
    let chosen: Vec<&Value> = records.iter().step_by(17).collect();
    let proofs: Vec<Value> = chosen
        .iter()
        .enumerate()
        .map(|(i, record)| {
            let name = format!("{}:{}", record["shard"], record["seq"]);
            json(&run(place
                .hanaper(&["prove", &name, "--json", "--output"])
                .arg(place.path(&format!("p{i}")))))
        })
        .collect();
    // Proving leaves the log as it is.
    place.verify();
    fs::remove_dir_all(place.log()).unwrap();
    for (i, (record, proof)) in chosen.iter().zip(&proofs).enumerate() {
        let prefix = format!("p{i}");
        let proven = json(&check_proof(&place, &prefix, &["--json"]));
        assert_eq!((&proven["result"], &proven["record"]), (&"proven".into(), *record));
        assert_eq!((&proven["epoch"], &proven["size"]), (&proof["epoch"], &proof["size"]));
        assert!(proof["files"][0].as_str().unwrap().ends_with(&format!("{prefix}.tlog-proof")));
        let raw = check_proof(&place, &prefix, &["--output", "raw"]);
        assert_eq!(
            (raw.code, raw.text()),
            (0, format!("{}\n", record["payload"].as_str().unwrap()).as_str())
        );
        let words = check_proof(&place, &prefix, &[]);
        assert!(words.text().starts_with("proven: record "), "{}", words.text());
        let name = format!("{}:{}", record["shard"], record["seq"]);
        assert_eq!(check_proof(&place, &prefix, &["--record", &name]).code, 0);
        check_proof(&place, &prefix, &["--record", "0:99999"]).refused(1, &["PROOF-MISMATCH"]);
    }
    let shards: std::collections::BTreeSet<_> = chosen.iter().map(|r| r["shard"].as_u64()).collect();
    assert_eq!(shards.len(), 2, "records of both shards were chosen");
}

/// Kills leave batches that recovery carries forward, and tails that it cuts.
#[test]
fn every_record_is_proven_after_kills_and_recoveries() {
    let place = Place::new();
    for _ in 0..3 {
        let mut child = spawn(&mut place.hanaper(&["append", "--acks"]));
        let mut stdin = child.stdin.take().unwrap();
        let mut acks = BufReader::new(child.stdout.take().unwrap());
        for i in 0..20 {
            writeln!(stdin, "event {i}").unwrap();
            assert!(line(&mut acks).contains("seq"));
        }
        stdin.write_all(&b"in flight\n".repeat(30)).unwrap();
        signal(&child, libc::SIGKILL);
        child.finish();
    }
    place.append(b"last\n");
    let vkey = identity(&place.log());
    assert!(all_are_proven(&place.log(), &vkey) > 61);
    // A log of fewer and of more shards: the earlier ones have ended.
    assert_eq!(run_with(&mut place.hanaper(&["append", "--shards", "3", "--reshard"]), b"more\n").code, 0);
    all_are_proven(&place.log(), &vkey);
    place.verify();
}

/// While it is written, a record is proven as soon as a checkpoint covers it, and not before.
#[test]
fn a_live_log_proves_what_is_covered() {
    let place = Place::new();
    let mut child = spawn(&mut place.hanaper(&["append", "--acks"]));
    let mut stdin = child.stdin.take().unwrap();
    let mut acks = BufReader::new(child.stdout.take().unwrap());
    for n in 0..3 {
        writeln!(stdin, "event {n}").unwrap();
        let ack: Value = serde_json::from_str(&line(&mut acks)).unwrap();
        let (name, prefix) = (format!("{}:{}", ack["shard"], ack["seq"]), format!("p{n}"));
        until("a checkpoint", || {
            let proved = prove_to(&place, &name, &prefix);
            if proved.code != 0 {
                proved.refused(5, &["is not covered yet", "checkpoint"]);
            }
            proved.code == 0
        });
        vkey_file(&place);
        let proven = json(&check_proof(&place, &prefix, &["--json"]));
        assert_eq!(proven["record"]["payload"], format!("event {n}"));
    }
    drop(stdin);
    assert_eq!(child.finish().code, 0);
    all_are_proven(&place.log(), &identity(&place.log()));
}

#[test]
fn what_is_no_proof_is_refused_with_its_verdict() {
    let place = Place::new();
    place.append(b"one\ntwo\nthree\n");
    vkey_file(&place);
    let record = Reader::open(place.log()).unwrap().replay(Select::default()).next().unwrap().unwrap();
    let name = format!("{}:{}", record.shard, record.seq);
    assert_eq!(prove_to(&place, &name, "p").code, 0);
    prove_to(&place, &name, "p").refused(5, &["p.tlog-proof", "name another prefix"]);
    prove_to(&place, "0:4711", "q").refused(2, &["shard 0 has no record 4711", "its last is"]);
    prove_to(&place, "9:0", "q").refused(2, &["no shard 9"]);
    prove_to(&place, "4711", "q").refused(2, &["SHARD:SEQ"]);
    assert!(!place.path("q.leaf").exists());

    let altered = |ending: &str, alter: &dyn Fn(&mut Vec<u8>)| {
        let path = place.path(&format!("p{ending}"));
        let whole = fs::read(&path).unwrap();
        let mut bytes = whole.clone();
        alter(&mut bytes);
        fs::write(&path, bytes).unwrap();
        let checked = check_proof(&place, "p", &["--json"]);
        fs::write(&path, whole).unwrap();
        assert_eq!(checked.code, 1, "{}", checked.err);
        let told = json(&checked);
        assert!(checked.err.contains(told["verdict"].as_str().unwrap()), "{}", checked.err);
        (told["verdict"].as_str().unwrap().to_owned(), told["field"].as_str().map(str::to_owned))
    };
    let mismatch = |field: &str| ("PROOF-MISMATCH".to_owned(), Some(field.to_owned()));
    assert_eq!(altered(".batch", &|b| b[300] ^= 1), ("BATCH-DIGEST".to_owned(), None));
    assert_eq!(altered(".batch", &|b| b.clear()), ("BATCH-MISSING".to_owned(), None));
    assert_eq!(altered(".leaf", &|b| b.truncate(20)), mismatch("leaf"));
    assert_eq!(altered(".leaf", &|b| b.resize(1 << 20, b'\n')), mismatch("leaf"));
    assert_eq!(altered(".tlog-proof", &|b| b.truncate(40)), mismatch("tlog-proof"));
    assert_eq!(altered(".tlog-proof", &|b| b.resize(8 << 20, b'\n')), mismatch("tlog-proof"));
    assert_eq!(check_proof(&place, "p", &[]).code, 0);

    fs::remove_file(place.path("p.leaf")).unwrap();
    check_proof(&place, "p", &[]).refused(2, &["p.leaf", "No such file"]);
    let other = Place::new();
    other.append(b"one\n");
    let stranger = run(&mut other.hanaper(&["keys", "list"]));
    assert_eq!(prove_to(&place, &name, "r").code, 0);
    run(bare()
        .arg("check-proof")
        .arg(place.path("r"))
        .args(["--pub", stranger.text().lines().next().unwrap()]))
    .refused(1, &["BAD-SIGNATURE", "no signature by"]);
    run(bare().arg("check-proof").arg(place.path("r")).args(["--pub", "nonsense"]))
        .refused(2, &["--pub nonsense"]);
}

/// What was lost cannot be proven, and all around it can.
#[test]
fn a_lost_record_has_no_proof_and_its_neighbours_have() {
    let place = Place::new();
    for n in 0..4 {
        let run =
            run_with(&mut place.hanaper(&["append", "--shards", "1"]), format!("event {n}\n").as_bytes());
        assert_eq!(run.code, 0, "{}", run.err);
    }
    let records = |log: &Path| -> Vec<_> {
        let select = Select { control: true, ..Select::default() };
        Reader::open(log).unwrap().replay(select).map(Result::unwrap).collect()
    };
    let before = records(&place.log());
    let segment = sealed(&place.log(), 1);
    let mut bytes = fs::read(&segment).unwrap();
    bytes[4096 + 300] ^= 1;
    fs::write(&segment, bytes).unwrap();
    let damaged = before.iter().find(|r| prove(place.log(), 0, r.seq).is_err()).unwrap();
    prove_to(&place, &format!("0:{}", damaged.seq), "p").refused(1, &["BATCH-DIGEST"]);
    assert_eq!(run(&mut place.hanaper(&["recover", "--write"])).code, 3);
    prove_to(&place, &format!("0:{}", damaged.seq), "p").refused(3, &["lost and on record as lost"]);
    let more = run_with(&mut place.hanaper(&["append", "--shards", "1"]), b"behind the loss\n");
    assert_eq!(more.code, 0, "{}", more.err);
    let vkey = identity(&place.log());
    assert_eq!(all_are_proven(&place.log(), &vkey), records(&place.log()).len());
    assert!(matches!(prove(place.log(), 0, damaged.seq), Err(ProveError::Lost { .. })));
}

/// With a whole segment gone, what stood on the path of others may be gone, too: that is said, and nothing wrong is.
#[test]
fn a_lost_segment_takes_no_other_proof_with_it_than_it_must() {
    let place = Place::new();
    let append = |bytes: &[u8]| {
        let run = run_with(&mut place.hanaper(&["append", "--shards", "1"]), bytes);
        assert_eq!(run.code, 0, "{}", run.err);
    };
    (0..5).for_each(|n| append(format!("event {n}\n").as_bytes()));
    fs::remove_file(sealed(&place.log(), 2)).unwrap();
    assert_eq!(run(&mut place.hanaper(&["recover", "--write"])).code, 3);
    append(b"behind the loss\n");
    let vkey = identity(&place.log());
    let (mut proven, mut lost) = (0, 0);
    for record in Reader::open(place.log()).unwrap().replay(Select { control: true, ..Select::default() }) {
        let record = record.unwrap();
        match prove(place.log(), 0, record.seq) {
            Ok(proof) => {
                let parts = (proof.tlog_proof.as_bytes(), proof.leaf.as_bytes(), &proof.batch);
                assert_eq!(check(&vkey, parts.0, parts.1, parts.2).unwrap().record, record);
                proven += 1;
            }
            Err(ProveError::Lost { .. }) => lost += 1,
            Err(error) => panic!("record {}: {error}", record.seq),
        }
    }
    assert!(proven > lost && proven >= 5, "{proven} {lost}");
}

#[test]
fn a_checkpoint_is_printed_and_can_be_held_against_the_log() {
    let place = Place::new();
    let none = run_with(&mut place.hanaper(&["append", "--checkpoints", "false"]), b"one\n");
    assert_eq!(none.code, 0, "{}", none.err);
    run(&mut place.hanaper(&["checkpoint"])).refused(5, &["no checkpoint yet"]);
    run(&mut place.hanaper(&["keys", "list"])).refused(5, &["no key yet"]);
    prove_to(&place, "0:0", "p").refused(5, &["is not covered yet", "the log has no checkpoint"]);

    place.append(b"two\n");
    let printed = run(&mut place.hanaper(&["checkpoint"]));
    let note = Note::parse(&printed.out).unwrap();
    note.verify(&identity(&place.log())).unwrap();
    let object = json(&run(&mut place.hanaper(&["checkpoint", "--json"])));
    assert_eq!(object["note"], printed.text());
    let lines: Vec<&str> = printed.text().lines().collect();
    assert_eq!((&object["origin"], &object["root"]), (&lines[0].into(), &lines[2].into()));
    assert_eq!(object["size"].to_string(), lines[1]);
    assert!(object["time"].is_string());

    let kept = place.file("kept.note", &printed.out);
    place.append(b"three\n");
    let verified = run(place.hanaper(&["verify", "--forget", "--checkpoint"]).arg(&kept));
    assert_eq!(verified.code, 0, "{}{}", verified.text(), verified.err);
    assert_ne!(run(&mut place.hanaper(&["checkpoint"])).out, printed.out, "the newest is printed");
}

#[test]
fn keys_are_those_that_sign_and_a_copy_says_whose_word_it_is() {
    let place = Place::new();
    place.append(b"one\n");
    let keys = run(&mut place.hanaper(&["keys", "list"]));
    let listed: Vec<Vkey> = keys.text().lines().map(|line| Vkey::parse(line).unwrap()).collect();
    let note = Note::parse(&run(&mut place.hanaper(&["checkpoint"])).out).unwrap();
    assert_eq!(listed.len(), 2);
    listed.iter().for_each(|key| note.verify(key).unwrap());
    let object = json(&run(&mut place.hanaper(&["keys", "list", "--json"])));
    assert_eq!((&object["identity"], &object["from"]), (&listed[0].to_string().into(), &"keys".into()));
    assert_eq!(object["period_vkey"], listed[1].to_string());

    let nowhere = place.path("no-state");
    let elsewhere = run(place.hanaper(&["keys", "list", "--state"]).arg(&nowhere));
    assert_eq!((elsewhere.code, &elsewhere.out), (0, &keys.out));
    assert!(elsewhere.err.contains("what the log says of itself"), "{}", elsewhere.err);
    assert!(!nowhere.exists(), "listing makes nothing");
    // Whoever rewrote the log has other keys than its owner.
    let id = newest::log_id(place.log()).unwrap();
    Keyring::create(&place.path("other"), &id, "example.com/other").unwrap();
    run(place.hanaper(&["keys", "list", "--state"]).arg(place.path("other"))).refused(1, &["WRONG-KEY"]);
}

/// A signature that was altered on the disk is not handed on.
#[test]
fn an_altered_entry_is_not_given_out() {
    let place = Place::new();
    place.append(b"one\n");
    let mut files = fs::read_dir(place.log()).unwrap().map(|entry| entry.unwrap().path());
    let epochs =
        files.find(|path| path.file_name().unwrap().to_string_lossy().starts_with("epochs")).unwrap();
    let mut bytes = fs::read(&epochs).unwrap();
    let at = bytes.windows(7).position(|w| w == b"genesis").unwrap();
    bytes[at] ^= 1;
    fs::write(&epochs, bytes).unwrap();
    for args in [&["checkpoint"][..], &["keys", "list"]] {
        assert_eq!(run(&mut place.hanaper(args)).code, 1, "{args:?}");
    }
    assert_eq!(prove_to(&place, "0:0", "p").code, 1);
}

/// What stands between these lines of the page.
fn on_the_page(begin: &str) -> &'static str {
    let page = include_str!("../../docs/format/proof.md");
    page.split_once(begin).unwrap().1.split_once("```").unwrap().0
}

/// The page says how to check a proof by hand: with OpenSSL, b3sum and Python's standard library.
#[test]
fn a_proof_is_checked_by_hand_as_the_page_says() {
    let has =
        |name| std::process::Command::new(name).arg("--version").output().is_ok_and(|o| o.status.success());
    if !["python3", "b3sum", "openssl", "xxd"].into_iter().all(has) {
        return skip("python3, b3sum, openssl or xxd is missing: a proof is not checked by hand");
    }
    let place = Place::new();
    (0..3).for_each(|n| place.append(format!("event {n}\nanother\n").as_bytes()));
    vkey_file(&place);
    let record = Reader::open(place.log()).unwrap().replay(Select::default()).nth(2).unwrap().unwrap();
    assert_eq!(prove_to(&place, &format!("{}:{}", record.shard, record.seq), "X").code, 0);
    let script = place.file("by-hand.py", on_the_page("```python\n").as_bytes());
    let by_hand = |program: &str, args: &[&std::ffi::OsStr]| {
        let folder = script.parent().unwrap();
        run(std::process::Command::new(program).args(args).current_dir(folder))
    };
    let python = || by_hand("python3", &[script.as_os_str(), "X".as_ref()]);
    let openssl = || by_hand("sh", &["-ec".as_ref(), on_the_page("```sh\n").as_ref()]);
    let told = python();
    assert_eq!(told.code, 0, "{}", told.err);
    assert!(told.text().contains("event 1"), "{}", told.text());
    let signed = openssl();
    assert!(
        signed.code == 0 && signed.text().contains("Verified Successfully"),
        "{}{}",
        signed.text(),
        signed.err
    );

    for (file, at) in [("X.batch", 300), ("X.leaf", 60)] {
        let whole = fs::read(place.path(file)).unwrap();
        let mut altered = whole.clone();
        altered[at] ^= 1;
        fs::write(place.path(file), altered).unwrap();
        assert_ne!(python().code, 0, "{file}");
        fs::write(place.path(file), whole).unwrap();
    }
    let text = fs::read_to_string(place.path("X.tlog-proof")).unwrap();
    let origin = origin_of(&text);
    fs::write(place.path("X.tlog-proof"), text.replacen(&format!("\n\n{origin}\n"), "\n\nanother\n", 1))
        .unwrap();
    assert_ne!(openssl().code, 0, "a note that was not signed");
}

fn origin_of(tlog_proof: &str) -> &str {
    tlog_proof.split_once("\n\n").unwrap().1.lines().next().unwrap()
}
