//! `append`: events in, one a line; ends when all are durable.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::exit::{Exit, Failure, Outcome, plain, say};
use super::feed::{Acks, Fed, Feed, Inputs, feed};
use super::input::Source;
use super::key::KeyRule;
use super::numbers::{count, grouped};
use super::progress::Progress;
use super::signals::Interrupts;
use super::{Global, SettingFlags, builder};

/// Store events, one a line, and end when all are durable.
///
/// Each line of each FILE (or of standard input) is one event. Its bytes are kept exactly, less
/// the LF: they may be binary, empty, or end in a CR. Bytes after the last LF are an event too.
///
/// A line over payload_bytes_max is refused with its number, everything else is stored, and the
/// exit code is 2. SIGINT and SIGTERM end the reading; what was accepted becomes durable, its
/// count is printed, and the exit code is 130.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  hanaper append --log ./audit events.ndjson
  tail -F app.log | hanaper append --log ./audit --acks
  hanaper append --log ./audit --shards 4 --key json:/user/id events.ndjson
  hanaper append --log ./audit --json a.log b.log
      {\"events\":1200,\"bytes\":96000,\"shards\":2,\"seconds\":0.02,\"events_per_s\":60000.0,
       \"p50_us\":210.1,\"p99_us\":480.6,\"p999_us\":612.0,\"refused\":0}")]
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

    /// When an event counts as acknowledged
    #[arg(long, value_name = "LEVEL", default_value = "durable",
          value_parser = ["durable", "shadow", "checkpointed", "replicated"])]
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
}

impl Summary {
    pub fn new(fed: &Fed, shards: u32) -> Summary {
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
    if args.ack != "durable" {
        return Err(Failure::usage(format!(
            "--ack {}: this version acknowledges when an event is durable; leave --ack out",
            args.ack
        )));
    }
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
    let log = builder(&log, &settings)
        .reshard(args.reshard)
        .open()
        .map_err(|error| Failure::new(error.kind().into(), error.to_string()))?;
    for notice in log.notices() {
        say(notice);
    }
    let shards = log.shards();
    let fed = {
        let progress = Progress::bytes("appending", known_bytes);
        let acks = match args.acks {
            true => Acks::Printed { with_file: names.len() > 1 },
            false => Acks::Silent,
        };
        let how = Feed {
            key: &args.key,
            payload_bytes_max: settings.payload_bytes_max(),
            acks,
            progress: &progress,
        };
        feed(&log, inputs, &names, &mut interrupts, &how)?
    };
    let closed = log.close();
    let summary = Summary::new(&fed, shards);
    let printed = match global.json {
        true => super::print_json(&summary),
        false => Ok(()),
    };
    if fed.interrupted || !global.json {
        let interrupted = if fed.interrupted { "interrupted: " } else { "" };
        say(format!("{interrupted}{}", summary.sentence()));
    }
    if fed.keyless > 0 {
        say(format!("{} had no key by that rule; stored with an empty one", count(fed.keyless, "line")));
    }
    if let Some(failure) = fed.failure {
        return Err(failure);
    }
    closed.map_err(|error| {
        Failure::new(
            Exit::Io,
            format!("every event counted above is durable, but closing the log failed: {error}"),
        )
    })?;
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
