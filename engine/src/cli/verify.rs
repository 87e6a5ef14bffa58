//! `verify`: everything that must exist does, unaltered; and what that does not prove.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use hanaper::checkpoint::Checkpoint;
use hanaper::checkpoint::keys;
use hanaper::checkpoint::note::{Note, Vkey};
use hanaper::read::evidence::{self, Anchors};
use hanaper::read::verify::{Finding, Report, VerifyOptions, verify};
use serde::Serialize;

use super::Global;
use super::exit::{Exit, Failure, Outcome, say};
use super::numbers::{count, size};
use super::progress::Progress;
use super::remember;

use super::time;

/// Check that everything that must exist does, unaltered.
///
/// Reads every byte of every file: record checksums, batch digests, the chain of batches, the
/// segments and the manifests that say which of them must exist, the epochs, their trees and the
/// signatures on them. Prints one line a finding (VERDICT place: what it means), then what was
/// covered, what was not, and the anchor.
///
/// Without an anchor outside the log (its public key, a checkpoint that somebody kept) a log can only
/// be self-consistent: whoever can rewrite the whole folder can make another one that is. The newest
/// checkpoint is remembered in the state folder, and the next time the log must have grown from it. Findings that merely inform
/// (a torn tail that was never acknowledged) leave the exit code 0.
///
/// Works on a read-only mount, on a copy, and while the log is being written.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  hanaper verify --log ./audit
  hanaper verify --log ./audit --pub audit.vkey             was it signed with this key?
  hanaper verify --log ./audit --checkpoint kept.note       has it grown from this one?
  hanaper append --log ./audit --acks events.ndjson > acks.ndjson
  hanaper verify --log ./audit --acks acks.ndjson    is everything acknowledged still there?")]
pub struct VerifyArgs {
    /// Acknowledgements that `append --acks` printed: each must still be found as it was
    ///
    /// FILE may be - for standard input. A torn last line is passed over, and said; a file without any
    /// acknowledgement is refused.
    #[arg(long, value_name = "FILE")]
    acks: Option<PathBuf>,

    /// The log's public key, as `keys list` prints it, or a file that has it
    #[arg(long = "pub", value_name = "VKEY")]
    vkey: Option<String>,

    /// A checkpoint that somebody kept: the log must have grown from it
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    checkpoint: Vec<PathBuf>,

    /// Folder that remembers the newest checkpoint [default: HANAPER_STATE, else ~/.local/state/hanaper]
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    state: Option<PathBuf>,

    /// Neither hold the log against the checkpoint that was remembered, nor remember the newest
    #[arg(long)]
    forget: bool,
}

#[derive(Serialize)]
struct FindingLine<'a> {
    verdict: &'a str,
    place: &'a str,
    meaning: &'a str,
    fails: bool,
}

#[derive(Serialize)]
struct SummaryLine {
    result: &'static str,
    shards: u64,
    segments: u64,
    batches: u64,
    records: u64,
    bytes: u64,
    failures: u64,
    /// How many of the failures are parts that were not looked at.
    unchecked: u64,
    /// How many of the failures are files of somebody else.
    strays: u64,
    losses: u64,
    acks: u64,
    torn_ack: bool,
    unstamped_batches: u64,
    live: bool,
    /// Entries of the global log; each is a checkpoint's newest once.
    epochs: u64,
    /// Batches and records behind what the newest entry names.
    beyond_batches: u64,
    beyond_records: u64,
    /// When the newest entry was made.
    checkpointed: Option<String>,
    vkey: Option<String>,
    /// Since when whoever has had this machine could have rewritten what came since.
    exposed_since: Option<String>,
    anchor: String,
}

/// Runs the check, printing findings as they come. Used by `try` as well.
pub fn check(
    log: &std::path::Path,
    acks: Option<PathBuf>,
    anchors: Anchors<'_>,
    found: &mut dyn FnMut(Finding),
) -> Result<Report, Failure> {
    let progress = Progress::bytes("verifying", Some(0));
    let report = |done: u64, total: u64| progress.set(done, total);
    let options = VerifyOptions { acks, anchors, progress: Some(&report) };
    verify(log, &options, found).map_err(super::read_failure)
}

pub fn run(global: &Global, args: VerifyArgs) -> Outcome {
    let log = global.need_log()?;
    let with_acks = args.acks.is_some();
    let vkey = args.vkey.as_deref().map(read_vkey).transpose()?;
    let kept = args.checkpoint.iter().map(|file| read_note(file)).collect::<Result<Vec<Note>, _>>()?;
    // Without a home folder nothing is remembered, and nothing else is amiss.
    let state = args.state.or_else(|| keys::default_state().ok()).filter(|_| !args.forget);
    let origin = evidence::origin(&log);
    let remembered = match (&state, &origin) {
        (Some(state), Some(origin)) => remember::recall(state, origin)?,
        _ => None,
    };
    let mut anchor = Vec::new();
    if vkey.is_some() {
        anchor.push("vkey");
    }
    if !kept.is_empty() {
        anchor.push("checkpoint");
    }
    if remembered.is_some() {
        anchor.push("remembered checkpoint");
    }
    let checkpoints = kept.iter().chain(&remembered).collect();
    let anchors = Anchors { vkey: vkey.as_ref(), checkpoints };
    let mut broken: Option<io::Error> = None;
    let mut unchecked = 0;
    let mut out = io::stdout().lock();
    let report = check(&log, args.acks, anchors, &mut |finding| {
        unchecked += u64::from(finding.fails && finding.verdict == NOT_COVERED);
        let meaning = meaning(&finding);
        let result = match global.json {
            true => serde_json::to_string(&FindingLine {
                verdict: finding.verdict,
                place: &finding.place,
                meaning,
                fails: finding.fails,
            })
            .map_err(io::Error::from)
            .and_then(|line| writeln!(out, "{line}")),
            false => writeln!(out, "{} {}: {meaning}", finding.verdict, finding.place),
        };
        if let Err(error) = result {
            broken.get_or_insert(error);
        }
    })?;
    // The exit code says what was found even if nobody reads the words.
    let exit = if report.failures > 0 { Exit::Violation } else { Exit::Done };
    if exit == Exit::Done
        && let (Some(state), Some(note)) = (&state, &report.evidence.newest)
        && let Err(trouble) = remember::keep(state, note)
    {
        say(trouble);
    }
    let printed = match (broken, global.json) {
        (Some(error), _) => Err(error),
        (None, true) => serde_json::to_string(&summary(&report, unchecked, &anchor))
            .map_err(io::Error::from)
            .and_then(|line| writeln!(out, "{line}")),
        (None, false) => write!(out, "{}", words(&report, unchecked, with_acks, &anchor)),
    };
    match printed {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe && exit == Exit::Done => {
            Err(Failure::stdout(error))
        }
        _ => Ok(exit),
    }
}

/// A public key, or a file that begins with one.
pub fn read_vkey(text: &str) -> Result<Vkey, Failure> {
    let from_file = std::fs::read_to_string(text).ok();
    let line = from_file.as_deref().and_then(|file| file.lines().next()).unwrap_or(text);
    Vkey::parse(line.trim()).map_err(|error| Failure::usage(format!("--pub {text}: {error}")))
}

fn read_note(file: &std::path::Path) -> Result<Note, Failure> {
    let named = |what: String| Failure::usage(format!("--checkpoint {}: {what}", file.display()));
    let bytes = std::fs::read(file).map_err(|error| named(super::exit::plain(&error).to_string()))?;
    let note = Note::parse(&bytes).map_err(|fault| named(fault.to_string()))?;
    Checkpoint::parse(note.text()).map_err(|fault| named(fault.to_string()))?;
    Ok(note)
}

/// The verdict that something was not looked at: it fails, and is no violation by itself.
const NOT_COVERED: &str = "NOT-COVERED";

/// What a finding means, without the verdict and the place where its words begin with them again: what
/// cannot be read tells its place by itself.
pub fn meaning(finding: &Finding) -> &str {
    let again = format!("{} {}: ", finding.verdict, finding.place);
    finding.meaning.strip_prefix(&again).unwrap_or(&finding.meaning)
}

fn summary(report: &Report, unchecked: u64, anchor: &[&str]) -> SummaryLine {
    let evidence = &report.evidence;
    SummaryLine {
        result: match report.failures {
            0 if anchor.is_empty() => "self-consistent",
            0 => "verified",
            _ => "violated",
        },
        shards: u64::from(report.shards),
        segments: report.segments,
        batches: report.batches,
        records: report.records,
        bytes: report.bytes,
        failures: report.failures,
        unchecked,
        strays: report.strays,
        losses: report.losses,
        acks: report.acks,
        torn_ack: report.torn_ack,
        unstamped_batches: report.unstamped_batches,
        live: report.live,
        epochs: evidence.entries,
        beyond_batches: report.beyond_batches,
        beyond_records: report.beyond_records,
        checkpointed: (evidence.entries > 0).then(|| time::format(evidence.wall_ns)),
        vkey: evidence.vkey.as_ref().map(Vkey::to_string),
        exposed_since: evidence.period.map(|(_, since)| time::format(since)),
        anchor: if anchor.is_empty() { "none".to_owned() } else { anchor.join(", ") },
    }
}

/// What was covered, what was not, and the anchor.
fn words(report: &Report, unchecked: u64, with_acks: bool, anchor: &[&str]) -> String {
    let mut text = String::new();
    // A file that was never the log's says nothing about the log.
    let strays = match report.strays {
        0 => String::new(),
        n => format!(", and its folder holds {} of somebody else (STRAY)", count(n, "file")),
    };
    let verdict = match report.failures.saturating_sub(unchecked + report.strays) {
        0 if unchecked == 0 && anchor.is_empty() => "the log is self-consistent".to_owned(),
        0 if unchecked == 0 => "the log is verified against the anchor below".to_owned(),
        0 => "the log could not be checked as a whole".to_owned(),
        n => format!("{} found: the log is not as it was written", count(n, "violation")),
    };
    text.push_str(&format!("{verdict}{strays}\n"));
    text.push_str(&format!(
        "covered: {}, {}, {}, {}, {}: record checksums, batch digests and their chain, segments, \
         manifests{}{}\n",
        count(u64::from(report.shards), "shard"),
        count(report.segments, "segment"),
        count(report.batches, "batch"),
        count(report.records, "record"),
        size(report.bytes),
        match with_acks {
            true => format!(", and {} that somebody kept", count(report.acks, "acknowledgement")),
            false => String::new(),
        },
        match report.evidence.entries {
            0 => String::new(),
            n => format!(", {} and the signatures on them", count(n, "epoch entry")),
        },
    ));
    let evidence = &report.evidence;
    if evidence.entries > 0 {
        text.push_str(&format!(
            "checkpointed: up to {}; behind that {} in {}\n",
            time::format(evidence.wall_ns),
            count(report.beyond_records, "record"),
            count(report.beyond_batches, "batch")
        ));
    }
    if let Some((period, since)) = evidence.period {
        text.push_str(&format!(
            "exposure: period {period}, since {}: whoever has had this machine since then could have rewritten what came since; whoever has the identity key, all that no kept checkpoint covers\n",
            time::format(since)
        ));
    }
    let mut missing = Vec::new();
    if unchecked > 0 {
        missing.push(format!("{} that is named above ({NOT_COVERED})", count(unchecked, "part")));
    }
    if report.losses > 0 {
        missing
            .push(format!("{} on record: what was lost is not there to check", count(report.losses, "loss")));
    }
    if report.unstamped_batches > 0 {
        let have = if report.unstamped_batches == 1 { "has" } else { "have" };
        missing.push(format!(
            "{} at the end {have} no later stamp: had they rotted, it would look like a torn tail",
            count(report.unstamped_batches, "batch")
        ));
    }
    if report.torn_ack {
        missing.push("the last line of the acknowledgements, which is torn and says nothing".to_owned());
    }
    if report.live {
        missing.push("what is being written meanwhile".to_owned());
    }
    if !with_acks {
        missing.push("whether a tail was cut that somebody holds acknowledgements for (--acks)".to_owned());
    }
    if evidence.vkey.is_none() {
        missing.push("who wrote it: nothing is signed".to_owned());
    }
    text.push_str(&format!("not covered: {}\n", missing.join("; ")));
    if let Some(vkey) = &evidence.vkey {
        text.push_str(&format!("key: {vkey}\n"));
    }
    match anchor {
        [] => text.push_str(
            "anchor: none (self-consistent: whoever can rewrite the whole folder can make another \
             log that is)\n",
        ),
        anchor => text.push_str(&format!("anchor: {}\n", anchor.join(", "))),
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without an anchor the check proves less than people hope, and must not say more.
    #[test]
    fn without_an_anchor_nothing_is_called_verified() {
        let report = Report { shards: 1, records: 5, ..Report::default() };
        let text = words(&report, 0, false, &[]);
        assert!(text.contains("self-consistent"), "{text}");
        assert!(text.contains("anchor: none"), "{text}");
        assert!(!text.to_lowercase().contains("verified"), "{text}");
        assert!(!words(&Report { failures: 1, ..report }, 0, false, &[]).contains("is self-consistent\n"));
    }

    /// What was not looked at is counted as that, and not as one more violation.
    #[test]
    fn what_was_not_covered_is_no_violation_of_its_own() {
        let report = Report { shards: 1, failures: 2, ..Report::default() };
        let text = words(&report, 1, false, &[]);
        assert!(text.starts_with("1 violation found"), "{text}");
        assert!(text.contains("not covered: 1 part that is named above"), "{text}");
        let stray = Report { failures: 1, strays: 1, ..Report::default() };
        let text = words(&stray, 0, false, &[]);
        assert!(
            text.starts_with("the log is self-consistent, and its folder holds 1 file of somebody"),
            "{text}"
        );
        let text = words(&report, 2, false, &[]);
        assert!(text.starts_with("the log could not be checked as a whole"), "{text}");
    }

    #[test]
    fn a_finding_says_its_verdict_and_place_once() {
        let finding = |meaning: &str| Finding {
            verdict: "MANIFEST",
            place: "log.manifest".to_owned(),
            meaning: meaning.to_owned(),
            fails: true,
        };
        assert_eq!(meaning(&finding("MANIFEST log.manifest: entry 0 is gone")), "entry 0 is gone");
        assert_eq!(meaning(&finding("entry 0 is gone")), "entry 0 is gone");
    }
}
