//! What an insider with root can do to a log, and what `verify` says of it.
//!
//! Each attack mends every layer that it has the means for, and exactly one verdict convicts it: the layers below
//! are green. What no verdict can see without an anchor is shown too, with the anchor that sees it.

mod forger;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use forger::{Forger, Keys};
use hanaper::checkpoint::note::{Note, Vkey};
use hanaper::read::evidence::Anchors;
use hanaper::read::verify::{Finding, VerifyOptions, verify};
use hanaper::{Log, WaitFor};

/// A log that was opened three times, with events in two shards.
struct Scene {
    _temporary: tempfile::TempDir,
    log: PathBuf,
    state: PathBuf,
    /// The log's true key.
    vkey: Vkey,
    /// Checkpoints that somebody kept, one of each opening.
    kept: Vec<Note>,
}

fn scene() -> Scene {
    let temporary = tempfile::tempdir().unwrap();
    let (log, state) = (temporary.path().join("log"), temporary.path().join("state"));
    let mut kept = Vec::new();
    let mut vkey = None;
    for opening in 0..3 {
        let builder = Log::builder(&log).state(&state).shards(2).segment_bytes(1 << 20).lane_bytes(64 << 10);
        let open =
            builder.calibrate(false).pin(false).checkpoint_every(Duration::from_millis(1)).open().unwrap();
        let mut producer = open.producer().unwrap();
        let mut last = None;
        for event in 0..40 {
            let payload = format!("opening {opening} event {event:02}: paid 100");
            let ticket = producer.append(format!("{event}").as_bytes(), payload.as_bytes()).unwrap();
            last = Some(producer.wait(ticket, WaitFor::block()).unwrap());
        }
        let last = last.unwrap();
        let covered = open.wait_checkpointed(&last, Duration::from_secs(5));
        assert!(covered, "{last:?} {:?}", open.evidence());
        kept.push(Note::parse(open.evidence().note.unwrap().as_bytes()).unwrap());
        vkey = open.vkey().map(|vkey| Vkey::parse(vkey).unwrap());
        drop(producer);
        assert_eq!(open.close().unwrap().notices, [""; 0]);
    }
    Scene { _temporary: temporary, log, state, vkey: vkey.unwrap(), kept }
}

fn findings(log: &Path, anchors: Anchors<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let options = VerifyOptions { anchors, ..VerifyOptions::default() };
    verify(log, &options, &mut |finding| findings.push(finding)).unwrap();
    findings
}

/// The verdicts that fail.
fn verdicts(log: &Path, anchors: Anchors<'_>) -> BTreeSet<&'static str> {
    findings(log, anchors).iter().filter(|f| f.fails).map(|f| f.verdict).collect()
}

fn unanchored(s: &Scene) -> BTreeSet<&'static str> {
    verdicts(&s.log, Anchors::default())
}

fn with_key(s: &Scene) -> BTreeSet<&'static str> {
    verdicts(&s.log, Anchors { vkey: Some(&s.vkey), checkpoints: Vec::new() })
}

fn with_checkpoints(s: &Scene) -> BTreeSet<&'static str> {
    verdicts(&s.log, Anchors { vkey: Some(&s.vkey), checkpoints: s.kept.iter().collect() })
}

fn only(verdict: &'static str) -> BTreeSet<&'static str> {
    BTreeSet::from([verdict])
}

/// The shard that has an event, and the event.
fn event(s: &Scene, opening: u32) -> (u32, String) {
    let text = format!("opening {opening} event 37: paid 100");
    let has = |shard: &u32| {
        let segments = Forger::new(&s.log).segments(*shard);
        segments.iter().any(|p| fs::read(p).unwrap().windows(text.len()).any(|w| w == text.as_bytes()))
    };
    (Forger::new(&s.log).shards().into_iter().find(has).unwrap(), text)
}

/// Changes an event of this opening, and mends the shard up to its tree.
fn edited(s: &Scene, opening: u32) -> Forger {
    let (shard, text) = event(s, opening);
    let mut forger = Forger::new(&s.log);
    forger.edit_record(shard, text.as_bytes(), text.replace("100", "999").as_bytes());
    forger.mend_shard(shard);
    forger
}

#[test]
fn a_log_that_nobody_touched() {
    let s = scene();
    assert_eq!(findings(&s.log, Anchors { vkey: Some(&s.vkey), checkpoints: s.kept.iter().collect() }), []);
    // A forger that changes nothing writes what was there, so what it changes is all that differs.
    let mut forger = Forger::new(&s.log);
    let before: Vec<_> = all_files(&s.log);
    forger.shards().into_iter().for_each(|shard| forger.mend_shard(shard));
    forger.mend_epochs(0, None, |_| None);
    assert!(all_files(&s.log) == before);
}

fn all_files(log: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(log).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_file());
    let mut files: Vec<_> = entries.map(|p| (p.clone(), fs::read(p).unwrap())).collect();
    files.sort();
    files
}

#[test]
fn a_record_edited_and_its_checksum_mended() {
    let s = scene();
    let (shard, text) = event(&s, 1);
    Forger::new(&s.log).edit_record(shard, text.as_bytes(), text.replace("100", "999").as_bytes());
    assert_eq!(unanchored(&s), only("BATCH-DIGEST"));
}

#[test]
fn a_shard_chained_anew() {
    let s = scene();
    edited(&s, 1);
    assert_eq!(unanchored(&s), only("SHARD-ROOT"));
}

#[test]
fn the_epochs_written_anew_without_a_key() {
    let s = scene();
    edited(&s, 1).mend_epochs(0, None, |_| None);
    assert_eq!(unanchored(&s), only("CHECKPOINT-ROOT"));
}

/// Whoever can rewrite the whole folder can make another log that is consistent. Only an anchor tells.
#[test]
fn everything_written_anew_with_other_keys() {
    let s = scene();
    let keys = Keys::fresh(s.vkey.name());
    edited(&s, 1).mend_epochs(0, Some(&keys), |_| None);
    assert_eq!(unanchored(&s), BTreeSet::new());
    assert_eq!(with_key(&s), only("WRONG-KEY"));
    let remembered = Anchors { vkey: None, checkpoints: s.kept.iter().collect() };
    assert_eq!(verdicts(&s.log, remembered), only("FORKED"));
}

/// The identity names the first period's key, and each period that of the next. So whoever has the identity can write
/// all of it anew from the first entry on, whatever was erased, and no public key tells. Any checkpoint that somebody
/// kept does, the very first one too: it fixes the key of the first period.
#[test]
fn everything_written_anew_with_the_stolen_identity() {
    let s = scene();
    let keys = Keys::steal(&s.state).with_fresh_periods();
    edited(&s, 1).mend_epochs(0, Some(&keys), |_| None);
    assert_eq!(with_key(&s), BTreeSet::new());
    let first = Anchors { vkey: Some(&s.vkey), checkpoints: vec![&s.kept[0]] };
    assert_eq!(verdicts(&s.log, first), only("FORKED"));
}

/// The key of the current period is the machine's, so who has that can rewrite what came since it began: that is
/// the exposure that verify prints. A checkpoint that left the machine meanwhile tells.
#[test]
fn the_current_period_written_anew_with_the_stolen_key() {
    let s = scene();
    let keys = Keys::steal(&s.state);
    // The entry that began the last period is the last of the period before: it is signed by an erased key.
    edited(&s, 2).mend_epochs(2, Some(&keys), |_| None);
    assert_eq!(with_key(&s), BTreeSet::new());
    assert_eq!(with_checkpoints(&s), only("FORKED"));
}

#[test]
fn a_past_period_written_anew_with_the_stolen_key() {
    let s = scene();
    let keys = Keys::steal(&s.state);
    edited(&s, 1).mend_epochs(1, Some(&keys), |_| None);
    assert_eq!(with_key(&s), only("PERIOD-SIGNATURE"));
}

#[test]
fn a_closing_checkpoint_is_gone() {
    let s = scene();
    let forger = Forger::new(&s.log);
    let name = forger.periods()[0].file_name().unwrap().to_str().unwrap().to_owned();
    // A closed period is one entry of the journal, so its last note is cut out of it byte for byte.
    let closing = forger.lines(&name).into_iter().rfind(|l| l.starts_with("note\n")).unwrap();
    forger.edit_journal(&name, |line| {
        (line == closing).then(|| "settings\n".to_owned() + &"#".repeat(line.len() - 9))
    });
    assert_eq!(unanchored(&s), only("UNSIGNED-PERIOD"));
}

/// Cut back into a past period, and gone on with from there with the keys that are left.
#[test]
fn truncated_into_a_past_period_and_continued() {
    let s = scene();
    let forger = Forger::new(&s.log);
    let periods = forger.periods();
    // The middle period is gone, and the last one follows the first.
    fs::remove_file(&periods[1]).unwrap();
    assert_eq!(unanchored(&s), only("MISSING"));
    fs::rename(&periods[2], &periods[1]).unwrap();
    let found = unanchored(&s);
    assert!(found.contains("EPOCHS") || found.contains("PERIOD-CHAIN"), "{found:?}");
}

#[test]
fn an_entry_that_says_less_than_one_before() {
    let s = scene();
    let keys = Keys::steal(&s.state);
    let mut forger = Forger::new(&s.log);
    let shrink = |text: &str| {
        let line = text.lines().find(|l| l.starts_with("shard 0 ") && text.contains("event stop"))?;
        let seqs = line.split(' ').find_map(|part| part.strip_prefix("seqs="))?;
        let fewer = format!("{:0>1$}", 1, seqs.len()).replace('0', "1");
        Some(text.replace(line, &line.replace(&format!("seqs={seqs} "), &format!("seqs={fewer} "))))
    };
    forger.mend_epochs(2, Some(&keys), shrink);
    let found = with_key(&s);
    assert!(found.contains("SHARD-SHRANK"), "{found:?}");
}

#[test]
fn a_shard_left_out_of_the_roll_call() {
    let s = scene();
    let keys = Keys::steal(&s.state);
    let mut forger = Forger::new(&s.log);
    let leave_out = |text: &str| {
        text.contains("event stop").then(|| text.replacen("shards 2 first=0", "shards 2 first=1", 1))
    };
    forger.mend_epochs(2, Some(&keys), leave_out);
    let found = with_key(&s);
    assert!(found.contains("EPOCHS") || found.contains("SHARD-VANISHED"), "{found:?}");
}

#[test]
fn a_signature_altered() {
    let s = scene();
    let forger = Forger::new(&s.log);
    let periods = forger.periods();
    let name = periods.last().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
    for (line_number, verdict) in [(4, "BAD-SIGNATURE"), (5, "PERIOD-SIGNATURE")] {
        let before = fs::read(forger.log.join(&name)).unwrap();
        let mut done = false;
        forger.edit_journal(&name, |line| {
            let note = line.strip_prefix("note\n").filter(|_| !std::mem::replace(&mut done, true))?;
            let mut lines: Vec<String> = note.lines().map(str::to_owned).collect();
            let line = &mut lines[line_number];
            // A digit in the middle of the signature.
            let at = line.len() - 40;
            let other = if line.as_bytes()[at] == b'A' { "B" } else { "A" };
            line.replace_range(at..=at, other);
            Some(format!("note\n{}\n", lines.join("\n")))
        });
        assert_eq!(unanchored(&s), only(verdict));
        fs::write(forger.log.join(&name), before).unwrap();
    }
}

/// A tail that was cut off with all that named it, and the note that was the newest at that time put back: only who
/// kept a newer checkpoint can tell.
#[test]
fn the_newest_opening_is_gone_as_if_it_had_never_been() {
    let s = scene();
    let older = Scene { kept: s.kept[..2].to_vec(), ..cut_back(&s, 2, &s.kept[1]) };
    assert_eq!(with_checkpoints(&older), BTreeSet::new());
    let newer = Scene { kept: s.kept.clone(), ..older };
    assert_eq!(with_checkpoints(&newer), only("TRUNCATED"));
}

/// The same log without its last opening, made by cutting every file back to this note.
fn cut_back(s: &Scene, openings: u64, note: &Note) -> Scene {
    let size = hanaper::checkpoint::Checkpoint::parse(note.text()).unwrap().size();
    let temporary = tempfile::tempdir().unwrap();
    let log = temporary.path().join("log");
    fs::create_dir(&log).unwrap();
    for (path, content) in all_files(&s.log) {
        fs::write(log.join(path.file_name().unwrap()), content).unwrap();
    }
    let forger = Forger::new(&log);
    forger.cut_journal("log.manifest", |line| line.starts_with(&format!("closed epoch={openings} ")));
    for shard in forger.shards() {
        let last = forger.segments(shard).pop().unwrap();
        let index: u64 =
            last.file_stem().unwrap().to_str().unwrap().rsplit('-').next().unwrap().parse().unwrap();
        fs::remove_file(&last).unwrap();
        forger.cut_journal(&format!("shard-{shard:04}.manifest"), |line| {
            line.starts_with(&format!("segment index={index} "))
        });
    }
    // The period before was closed by that opening, with an entry that nobody has to have seen.
    let periods = forger.periods();
    fs::remove_file(periods.last().unwrap()).unwrap();
    let name = periods[periods.len() - 2].file_name().unwrap().to_str().unwrap().to_owned();
    let lines = forger.lines(&name);
    let number = |line: &String| line.split("\nepoch ").nth(1)?.split('\n').next()?.parse::<u64>().ok();
    let mut kept: Vec<String> =
        lines.iter().filter(|l| number(l).is_none_or(|n| n < size)).cloned().collect();
    kept.retain(|line| !line.starts_with("note\n"));
    kept.push(format!("note\n{note}"));
    forger.rewrite_journal(&name, &kept);
    Scene { _temporary: temporary, log, state: s.state.clone(), vkey: s.vkey.clone(), kept: Vec::new() }
}
