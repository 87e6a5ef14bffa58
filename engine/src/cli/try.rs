//! `try`: the first minute. The same code as the verbs that it stands for, in friendly words.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use hanaper::read::evidence::Anchors;
use hanaper::read::{OwnedRecord, ReadError, Reader, Select};
use serde::Serialize;

use super::append::Summary;
use super::exit::{Exit, Failure, Outcome, plain, say};
use super::feed::{Acks, Feed, Inputs, feed};
use super::input::{Line, Lines, Source};
use super::key::KeyRule;
use super::numbers::{count, size};
use super::progress::Progress;
use super::signals::Interrupts;
use super::{Global, SettingFlags, builder, space, verify};

/// Made-up audit events, made by `scripts/make-sample` and labelled so in each line.
const SAMPLE: &[u8] = include_bytes!("../../sample/audit.ndjson");

/// The first minute: append, verify, replay and compare, in a log of its own.
///
/// Makes a log in a temporary folder (or in the new folder that --log names), stores FILE in it,
/// one event a line, shows what became durable and how fast, verifies the log, replays it and
/// compares what comes out with what went in. Without FILE it takes a small sample of made-up
/// audit events. HANAPER_LOG is not looked at: this never writes into a log that you have.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  hanaper try
  hanaper try /var/log/syslog
  hanaper try --shards 4 --log ./first events.ndjson    and keep the log")]
pub struct TryArgs {
    /// The file to store, one event a line
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,

    #[command(flatten)]
    settings: SettingFlags,
}

#[derive(Serialize)]
struct Told<'a> {
    log: String,
    input: &'a str,
    #[serde(flatten)]
    append: &'a Summary,
    violations: u64,
    replayed: u64,
    identical: bool,
    anchor: &'static str,
}

/// A log's folder, removed in the end if it was only borrowed.
struct Folder {
    path: PathBuf,
    keep: bool,
}

impl Folder {
    fn make(named: Option<&Path>) -> Result<Folder, Failure> {
        if let Some(path) = named {
            let used = fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some());
            if used {
                return Err(Failure::usage(format!(
                    "--log {}: there is something in it already, and `try` wants a log of its \
                     own; name a new folder",
                    path.display()
                )));
            }
            return Ok(Folder { path: path.to_owned(), keep: true });
        }
        let base = std::env::temp_dir();
        for attempt in 0..1000 {
            let path = base.join(format!("hanaper-try-{}-{attempt}", std::process::id()));
            match fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Folder { path, keep: false }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    return Err(Failure::new(
                        Exit::Io,
                        format!(
                            "no folder can be made in {}: {}; name one with --log DIR",
                            base.display(),
                            plain(&error)
                        ),
                    ));
                }
            }
        }
        Err(Failure::new(Exit::Io, format!("{} is full of old trials", base.display())))
    }
}

impl Folder {
    /// Beside the log, as keys are never within one.
    fn keys(&self) -> PathBuf {
        self.path.with_extension("keys")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        for path in [self.path.clone(), self.keys()] {
            match fs::remove_dir_all(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    say(format!("{}: cannot be removed: {}", path.display(), plain(&error)));
                }
                _ => {}
            }
        }
    }
}

pub fn run(global: &Global, args: TryArgs) -> Outcome {
    let source = match &args.file {
        None => Source::Sample(SAMPLE),
        Some(file) if file.as_os_str() == "-" || !file.metadata().is_ok_and(|m| is_again(&m)) => {
            // The sentence of a missing file or a folder is the better one.
            if file.as_os_str() != "-" {
                Source::File(file.clone()).open()?;
            }
            return Err(Failure::usage(format!(
                "{}: `try` reads its input twice, to compare; name a regular file, or use \
                 `hanaper append`",
                file.display()
            )));
        }
        Some(file) => Source::File(file.clone()),
    };
    let inputs = Inputs::open(vec![source.clone()])?;
    let mut interrupts = Interrupts::block().map_err(|error| {
        Failure::new(Exit::Io, format!("signals cannot be waited for: {}", plain(&error)))
    })?;
    let folder = Folder::make(global.log.as_deref())?;
    let mut settings = global.settings(Some(&folder.path), &args.settings)?;
    // A small input should not wait for large segments, nor fill a small /tmp with them.
    if source.bytes().is_some_and(|bytes| bytes < 64 << 20) {
        settings.default_segment_to("8MiB");
    }
    space::for_a_new_log(&folder.path, &settings)?;
    let payload_bytes_max = settings.payload_bytes_max();

    let mut tell = Teller { quiet: global.json };
    let input = source.name();
    tell.line(&match source {
        Source::Sample(_) => format!(
            "hanaper try: a sample of made-up audit events, {} (name a FILE to try your own)\n",
            size(SAMPLE.len() as u64)
        ),
        _ => format!("hanaper try: {input}, {}\n", size(source.bytes().unwrap_or(0))),
    })?;

    let mut builder = builder(&folder.path, &settings);
    if !folder.keep && settings.text("state").is_none() {
        // Keys of a log that nobody keeps.
        builder = builder.state(folder.keys());
    }
    let log = builder.open().map_err(|error| Failure::new(error.kind().into(), error.to_string()))?;
    let shards = log.shards();
    tell.line(&format!(
        "append   into {}, {}, commits by {}",
        folder.path.display(),
        count(u64::from(shards), "shard"),
        log.primitive()
    ))?;
    for notice in log.notices() {
        tell.line(&format!("         note: {notice}"))?;
    }
    let fed = {
        let progress = Progress::bytes("appending", source.bytes());
        let segment_bytes = settings.segment_bytes();
        let (key, acks) = (&KeyRule::Line, Acks::Silent);
        let how = Feed { key, payload_bytes_max, segment_bytes, acks, progress: &progress };
        feed(&log, inputs, std::slice::from_ref(&input), &mut interrupts, &how)?
    };
    let closed = log.close();
    let summary = Summary::new(&fed, shards, Vec::new());
    if let Some(failure) = fed.failure {
        return Err(failure);
    }
    closed.map_err(|error| Failure::new(Exit::Io, error.to_string()))?;
    let (all, rest) = summary
        .sentence()
        .split_once("; ")
        .map_or_else(|| (summary.sentence(), None), |(all, rest)| (all.to_owned(), Some(rest.to_owned())));
    tell.line(&format!("         {all}"))?;
    if let Some(rest) = rest {
        tell.line(&format!("         {rest} (all events appended at once: they queue)"))?;
    }
    if fed.interrupted {
        return Ok(Exit::Interrupted);
    }

    let started = Instant::now();
    let mut findings = Vec::new();
    let report = verify::check(&folder.path, None, Anchors::default(), &mut |finding| {
        findings.push(format!("{} {}: {}", finding.verdict, finding.place, verify::meaning(&finding)));
    })?;
    for finding in &findings {
        tell.line(&format!("         {finding}"))?;
    }
    tell.line(&format!(
        "verify   {}, {}, {}: {}, {:.3} s (anchor: none)",
        count(report.segments, "segment"),
        count(report.batches, "batch"),
        count(report.records, "record"),
        if report.failures == 0 { "self-consistent" } else { "NOT as it was written" },
        started.elapsed().as_secs_f64()
    ))?;

    let started = Instant::now();
    let reader = Reader::open(&folder.path).map_err(super::read_failure)?;
    let mut replayed = 0;
    let records = reader.replay(Select::default()).inspect(|_| replayed += 1);
    let difference = compare(&source, payload_bytes_max, records)?;
    tell.line(&format!(
        "replay   {} came back, {:.3} s",
        count(replayed, "event"),
        started.elapsed().as_secs_f64()
    ))?;
    tell.line(&format!(
        "compare  {}",
        match &difference {
            None if fed.refused > 0 => format!(
                "the same bytes in the same order, but for the {} refused above",
                count(fed.refused, "line")
            ),
            None => "the same bytes in the same order".to_owned(),
            Some(difference) => format!("DIFFERENT: {difference}"),
        }
    ))?;
    tell.line(&match folder.keep {
        true => format!("\nThe log is kept. Next: hanaper inspect --log {}", folder.path.display()),
        false => "\nThe log is removed again; --log DIR keeps it. Next: hanaper append --help".to_owned(),
    })?;
    if global.json {
        super::print_json(&Told {
            log: folder.path.display().to_string(),
            input: &input,
            append: &summary,
            violations: report.failures,
            replayed,
            identical: difference.is_none(),
            anchor: "none",
        })?;
    }
    Ok(if report.failures > 0 || difference.is_some() {
        Exit::Violation
    } else if fed.refused > 0 {
        Exit::Usage
    } else {
        Exit::Done
    })
}

fn is_again(metadata: &fs::Metadata) -> bool {
    metadata.is_file()
}

/// The first difference between the input's lines and the records, if there is one.
fn compare(
    source: &Source,
    payload_bytes_max: usize,
    mut records: impl Iterator<Item = Result<OwnedRecord, ReadError>>,
) -> Result<Option<String>, Failure> {
    let mut input = source.open()?;
    let mut lines = Lines::new(payload_bytes_max);
    let mut next = |number: u64, line: &Line<'_>| -> Result<Option<String>, Failure> {
        let Line::Whole(bytes) = line else {
            return Ok(None);
        };
        Ok(match records.next().transpose().map_err(super::read_failure)? {
            None => Some(format!("the log ends before line {number}")),
            Some(record) if record.payload != *bytes => {
                let (shard, seq) = (record.shard, record.seq);
                Some(format!("line {number} is not what came back as {shard}:{seq}"))
            }
            Some(_) => None,
        })
    };
    loop {
        while let Some((number, line)) = lines.next_line() {
            if let Some(difference) = next(number, &line)? {
                return Ok(Some(difference));
            }
        }
        let read = lines
            .fill(&mut input)
            .map_err(|error| Failure::new(Exit::Io, format!("{}: {}", source.name(), plain(&error))))?;
        if read == 0 {
            break;
        }
    }
    if let Some((number, line)) = lines.last_line()
        && let Some(difference) = next(number, &line)?
    {
        return Ok(Some(difference));
    }
    let extra = records.next().transpose().map_err(super::read_failure)?;
    Ok(extra.map(|_| "the log has more events than the input has lines".to_owned()))
}

/// Says how it goes, unless JSON is wanted.
struct Teller {
    quiet: bool,
}

impl Teller {
    fn line(&mut self, line: &str) -> Result<(), Failure> {
        if self.quiet {
            return Ok(());
        }
        writeln!(io::stdout(), "{line}").map_err(Failure::stdout)
    }
}
