//! `append`: events in, one a line; ends when all are durable.

use std::path::PathBuf;

use clap::Args;
use hanaper::Log;
use hanaper::words::span;
use hanaper_shards::segment::paths;
use hanaper_shards::wal::recovery::Recovered;
use serde::Serialize;

use super::exit::{Exit, Failure, Outcome, plain, say};
use super::feed::{Acks, Fed, Feed, Inputs, feed};
use super::input::Source;
use super::key::KeyRule;
use super::numbers::{count, grouped};
use super::progress::Progress;
use super::signals::Interrupts;
use super::{Global, SettingFlags, builder, space};

/// Store events, one a line, and end when all are durable.
///
/// Each line of each FILE (or of standard input) is one event. Its bytes are kept exactly, less
/// the LF: they may be binary, empty, or end in a CR. Bytes after the last LF are an event too.
///
/// A line over payload_bytes_max is refused with its number, everything else is stored, and the
/// exit code is 2. SIGINT, SIGTERM and SIGHUP end the reading; what was accepted becomes durable, its
/// count is printed, and the exit code is 130. So does whoever closes the output of --acks, with exit
/// code 4.
///
/// On a full disk it says so and waits for space, for as long as it takes; Ctrl-C ends it. Where there is
/// not even room for a new log's first segments it ends at once, with exit code 4.
///
/// If the log was not closed, what recovery did is said first, a line for each shard.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  hanaper append --log ./audit events.ndjson
  tail -F app.log | hanaper append --log ./audit --acks
  hanaper append --log ./audit --shards 4 --key json:/user/id events.ndjson
  hanaper append --log ./audit --json a.log b.log
      {\"events\":1200,\"bytes\":96000,\"shards\":2,\"seconds\":0.02,\"events_per_s\":60000.0,
       \"p50_us\":210.1,\"p99_us\":480.6,\"p999_us\":612.0,\"refused\":0,\"recovered\":[]}")]
pub struct AppendArgs {
    /// Files to read; - (or none) is standard input
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,

    /// What chooses an event's shard: line, json:/POINTER or field:N
    ///
    /// `line` (the default) is the line's number and spreads lines evenly. `json:/user/id` is
    /// the value that an RFC 6901 pointer finds in a line of JSON. `field:3` is the third word.
    /// Events with one key stay in one shard. A line without the part that is asked for is
    /// stored with an empty key, and the count of such lines is said.
    #[arg(long, value_name = "RULE", default_value = "line")]
    key: KeyRule,

    /// When an event counts as acknowledged: once a completed sync covers it on the disk
    // There is one level; scripts may say that they rely on it.
    #[allow(dead_code)]
    #[arg(long, value_name = "LEVEL", default_value = "durable", value_parser = ["durable"])]
    ack: String,

    /// Print {"line":…,"shard":…,"seq":…,"batch":DIGEST} for each event once it is durable
    ///
    /// Never before, and at once even while the input is silent. With several files there is
    /// "file" too, and lines count from 1 in each.
    #[arg(long)]
    acks: bool,

    /// Give an existing log another number of shards (with --shards)
    #[arg(long)]
    reshard: bool,

    #[command(flatten)]
    settings: SettingFlags,
}

/// The fields of `append --json`, in this order.
#[derive(Debug, Serialize)]
pub struct Summary {
    pub events: u64,
    pub bytes: u64,
    pub shards: u32,
    pub seconds: f64,
    pub events_per_s: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub refused: u64,
    /// What opening the log recovered; empty if it had been closed.
    pub recovered: Vec<RecoveredShard>,
}

/// One shard that had not been closed.
#[derive(Debug, Serialize)]
pub struct RecoveredShard {
    shard: u32,
    /// The row of recovery's table.
    reason: &'static str,
    /// The segment that it goes on in.
    segment: u64,
    /// Batches that were copied into it.
    carried_first: u64,
    carried_count: u64,
    /// Behind the last intact batch; never acknowledged.
    cut_bytes: u64,
}

impl RecoveredShard {
    fn all(log: &Log) -> Vec<RecoveredShard> {
        let one = |(shard, r): &(u32, Recovered)| RecoveredShard {
            shard: *shard,
            reason: r.label,
            segment: r.segment,
            carried_first: r.carried.start,
            carried_count: r.carried.end.saturating_sub(r.carried.start),
            cut_bytes: r.cut_bytes,
        };
        log.recovered().iter().map(one).collect()
    }

    /// For people.
    fn sentence(&self) -> String {
        let into = paths::segment(self.shard, self.segment);
        let carried = match self.carried_count {
            0 => format!("it goes on in {into}"),
            n => {
                let batches = span("batch", &(self.carried_first..self.carried_first + n));
                let were = if n == 1 { "was" } else { "were" };
                format!("{batches} {were} copied into {into}, where it goes on")
            }
        };
        let cut = match self.cut_bytes {
            0 => "nothing was cut".to_owned(),
            n => {
                format!("{} behind its last batch were never acknowledged and are cut off", count(n, "byte"))
            }
        };
        format!("recovered shard {}, which had not been closed: {carried}; {cut}", self.shard)
    }
}

impl Summary {
    pub fn new(fed: &Fed, shards: u32, recovered: Vec<RecoveredShard>) -> Summary {
        let seconds = fed.elapsed.as_secs_f64();
        let us = |quantile: f64| tenths(fed.latency.value_at_quantile(quantile) as f64 / 1_000.0);
        Summary {
            events: fed.events,
            bytes: fed.bytes,
            shards,
            seconds: (seconds * 1e6).round() / 1e6,
            events_per_s: tenths(fed.events as f64 / seconds.max(1e-9)),
            p50_us: us(0.50),
            p99_us: us(0.99),
            p999_us: us(0.999),
            refused: fed.refused,
            recovered,
        }
    }

    /// For people.
    pub fn sentence(&self) -> String {
        let verb = if self.events == 1 { "is" } else { "are" };
        let mut text = format!(
            "{} ({}) {verb} durable in {}, {:.3} s, {} events/s",
            count(self.events, "event"),
            count(self.bytes, "byte"),
            count(u64::from(self.shards), "shard"),
            self.seconds,
            grouped(self.events_per_s as u64),
        );
        if self.events > 0 {
            text.push_str(&format!(
                "; from append to durable: p50 {} µs, p99 {} µs, p99.9 {} µs",
                self.p50_us, self.p99_us, self.p999_us
            ));
        }
        text
    }
}

fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

pub fn run(global: &Global, args: AppendArgs) -> Outcome {
    let log = global.need_log()?;
    let settings = global.settings(Some(&log), &args.settings)?;
    if args.reshard && settings.shards().is_none() {
        return Err(Failure::usage("--reshard: say how many shards there shall be, with --shards N"));
    }
    // Before the log starts its threads: they inherit the mask.
    let mut interrupts = Interrupts::block().map_err(|error| {
        Failure::new(Exit::Io, format!("signals cannot be waited for: {}", plain(&error)))
    })?;
    let sources = Source::all(&args.files);
    let names: Vec<String> = sources.iter().map(Source::name).collect();
    let known_bytes = sources.iter().map(Source::bytes).sum();
    let inputs = Inputs::open(sources)?;
    space::for_a_new_log(&log, &settings)?;
    let log = builder(&log, &settings)
        .reshard(args.reshard)
        .open()
        .map_err(|error| Failure::new(error.kind().into(), error.to_string()))?;
    for notice in log.notices() {
        say(notice);
    }
    if let (1, Some(vkey)) = (log.epoch(), log.vkey()) {
        say(format!(
            "this log signs as {vkey}; keep that line where nobody who can write here can change it"
        ));
    }
    let shards = log.shards();
    let recovered = RecoveredShard::all(&log);
    recovered.iter().for_each(|shard| say(shard.sentence()));
    let fed = {
        let progress = Progress::bytes("appending", known_bytes);
        let acks = match args.acks {
            true => Acks::Printed { with_file: names.len() > 1 },
            false => Acks::Silent,
        };
        let how = Feed {
            key: &args.key,
            payload_bytes_max: settings.payload_bytes_max(),
            segment_bytes: settings.segment_bytes(),
            acks,
            progress: &progress,
        };
        feed(&log, inputs, &names, &mut interrupts, &how)?
    };
    let closed = log.close();
    let summary = Summary::new(&fed, shards, recovered);
    let printed = match global.json {
        true => super::print_json(&summary),
        false => Ok(()),
    };
    if fed.interrupted || fed.failure.is_some() || !global.json {
        let interrupted = if fed.interrupted { "interrupted: " } else { "" };
        say(format!("{interrupted}{}", summary.sentence()));
    }
    if fed.keyless > 0 {
        say(format!("{} had no key by that rule; stored with an empty one", count(fed.keyless, "line")));
    }
    if let Some(failure) = fed.failure {
        return Err(failure);
    }
    let closed = closed.map_err(|error| {
        Failure::new(
            Exit::Io,
            format!("every event counted above is durable, but closing the log failed: {error}"),
        )
    })?;
    // What did not go as it should, and cost no event.
    closed.notices.iter().for_each(say);
    Ok(if fed.interrupted {
        Exit::Interrupted
    } else if let Err(failure) = printed
        && failure.exit != Exit::Done
    {
        return Err(failure);
    } else if fed.refused + fed.unopened > 0 {
        Exit::Usage
    } else {
        Exit::Done
    })
}
