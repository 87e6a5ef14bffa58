//! `verify`: everything that must exist does, unaltered; and what that does not prove.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use hanaper::read::verify::{Finding, Report, VerifyOptions, verify};
use serde::Serialize;

use super::Global;
use super::exit::{Exit, Failure, Outcome};
use super::numbers::{count, size};
use super::progress::Progress;

/// Check that everything that must exist does, unaltered.
///
/// Reads every byte of every file: record checksums, batch digests, the chain of batches, the
/// segments and the manifests that say which of them must exist. Prints one line a finding
/// (VERDICT place: what it means), then what was covered, what was not, and the anchor.
///
/// Without an anchor outside the log (a published checkpoint) a log can only be self-consistent:
/// whoever can rewrite the whole folder can make another one that is. Findings that merely inform
/// (a torn tail that was never acknowledged) leave the exit code 0.
///
/// Works on a read-only mount, on a copy, and while the log is being written.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  hanaper verify --log ./audit
  hanaper append --log ./audit --acks events.ndjson > acks.ndjson
  hanaper verify --log ./audit --acks acks.ndjson    is everything acknowledged still there?")]
pub struct VerifyArgs {
    /// Acknowledgements that `append --acks` printed: each must still be found as it was
    #[arg(long, value_name = "FILE")]
    acks: Option<PathBuf>,
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
    losses: u64,
    acks: u64,
    unstamped_batches: u64,
    live: bool,
    anchor: &'static str,
}

/// Runs the check, printing findings as they come. Used by `try` as well.
pub fn check(
    log: &std::path::Path,
    acks: Option<PathBuf>,
    found: &mut dyn FnMut(Finding),
) -> Result<Report, Failure> {
    let progress = Progress::bytes("verifying", Some(0));
    let report = |done: u64, total: u64| progress.set(done, total);
    let options = VerifyOptions { acks, progress: Some(&report) };
    verify(log, &options, found).map_err(super::read_failure)
}

pub fn run(global: &Global, args: VerifyArgs) -> Outcome {
    let log = global.need_log()?;
    if let Some(acks) = &args.acks
        && let Err(error) = std::fs::File::open(acks)
    {
        let error = super::exit::plain(&error);
        return Err(Failure::usage(format!("--acks {}: {error}", acks.display())));
    }
    let with_acks = args.acks.is_some();
    let mut broken: Option<io::Error> = None;
    let mut out = io::stdout().lock();
    let report = check(&log, args.acks, &mut |finding| {
        let result = match global.json {
            true => serde_json::to_string(&FindingLine {
                verdict: finding.verdict,
                place: &finding.place,
                meaning: &finding.meaning,
                fails: finding.fails,
            })
            .map_err(io::Error::from)
            .and_then(|line| writeln!(out, "{line}")),
            false => writeln!(out, "{} {}: {}", finding.verdict, finding.place, finding.meaning),
        };
        if let Err(error) = result {
            broken.get_or_insert(error);
        }
    })?;
    // The exit code says what was found even if nobody reads the words.
    let exit = if report.failures > 0 { Exit::Violation } else { Exit::Done };
    let printed = match (broken, global.json) {
        (Some(error), _) => Err(error),
        (None, true) => serde_json::to_string(&summary(&report))
            .map_err(io::Error::from)
            .and_then(|line| writeln!(out, "{line}")),
        (None, false) => write!(out, "{}", words(&report, with_acks)),
    };
    match printed {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe && exit == Exit::Done => {
            Err(Failure::stdout(error))
        }
        _ => Ok(exit),
    }
}

fn summary(report: &Report) -> SummaryLine {
    SummaryLine {
        result: if report.failures > 0 { "violated" } else { "self-consistent" },
        shards: u64::from(report.shards),
        segments: report.segments,
        batches: report.batches,
        records: report.records,
        bytes: report.bytes,
        failures: report.failures,
        losses: report.losses,
        acks: report.acks,
        unstamped_batches: report.unstamped_batches,
        live: report.live,
        anchor: "none",
    }
}

/// What was covered, what was not, and the anchor.
fn words(report: &Report, with_acks: bool) -> String {
    let mut text = String::new();
    let verdict = match report.failures {
        0 => "the log is self-consistent".to_owned(),
        n => format!("{} found: the log is not as it was written", count(n, "violation")),
    };
    text.push_str(&format!("{verdict}\n"));
    text.push_str(&format!(
        "covered: {}, {}, {}, {}, {}: record checksums, batch digests and their chain, segments, \
         manifests{}\n",
        count(u64::from(report.shards), "shard"),
        count(report.segments, "segment"),
        count(report.batches, "batch"),
        count(report.records, "record"),
        size(report.bytes),
        match with_acks {
            true => format!(", and {} that somebody kept", count(report.acks, "acknowledgement")),
            false => String::new(),
        },
    ));
    let mut missing = Vec::new();
    if report.losses > 0 {
        missing
            .push(format!("{} on record: what was lost is not there to check", count(report.losses, "loss")));
    }
    if report.unstamped_batches > 0 {
        missing.push(format!(
            "{} at the end have no later stamp: had they rotted, it would look like a torn tail",
            count(report.unstamped_batches, "batch")
        ));
    }
    if report.live {
        missing.push("what is being written meanwhile".to_owned());
    }
    if !with_acks {
        missing.push("whether a tail was cut that somebody holds acknowledgements for (--acks)".to_owned());
    }
    missing.push("who wrote it: nothing is signed".to_owned());
    text.push_str(&format!("not covered: {}\n", missing.join("; ")));
    text.push_str(
        "anchor: none (self-consistent: whoever can rewrite the whole folder can make another \
         log that is)\n",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without an anchor the check proves less than people hope, and must not say more.
    #[test]
    fn without_an_anchor_nothing_is_called_verified() {
        let report = Report { shards: 1, records: 5, ..Report::default() };
        let text = words(&report, false);
        assert!(text.contains("self-consistent"), "{text}");
        assert!(text.contains("anchor: none"), "{text}");
        assert!(!text.to_lowercase().contains("verified"), "{text}");
        assert!(!words(&Report { failures: 1, ..report }, false).contains("is self-consistent\n"));
    }
}
