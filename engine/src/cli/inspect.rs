//! `inspect`: what lies where, and how far each shard has come. Judges nothing: `verify` does.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use hanaper::read::{
    BatchInspection, Inspection, SegmentInspection, ShardInspection, inspect, inspect_segment,
};
use hanaper::words::span;
use serde::Serialize;

use super::exit::{Exit, Failure, Outcome, say};
use super::numbers::{count, grouped, hex, size};
use super::table::table;
use super::{Global, print_json, time};

/// Show segments, states and watermarks; with SEGMENT, that segment's batches.
///
/// For the log: its identity, who has it open, whether space is promised before events are
/// accepted, and which way commits took from its last opening on. For each shard: how far it is durable, its segments,
/// the losses that are on record, and the tail that is not sealed yet. Judges nothing: that is what `verify` is for.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  hanaper inspect --log ./audit
  hanaper inspect ./audit/shard-0000-0000000000.segment
  hanaper inspect --log ./audit --json | jq '.shards[].segments[].state'")]
pub struct InspectArgs {
    /// A segment file, whose batches are wanted
    segment: Option<PathBuf>,
}

pub fn run(global: &Global, args: InspectArgs) -> Outcome {
    match args.segment {
        Some(segment) => batches(global, &segment),
        None => log(global),
    }
}

#[derive(Serialize)]
struct LogObject<'a> {
    log_id: &'a str,
    layout_generation: u32,
    epoch: u64,
    owner_pid: Option<u32>,
    space_promise: bool,
    primitive: Option<&'a str>,
    volatile: bool,
    /// Epoch entries, when the newest was made, and what is behind it.
    epochs: u64,
    checkpointed: Option<String>,
    beyond_batches: u64,
    beyond_records: u64,
    /// On record as lost, in all shards.
    lost_records: u64,
    shards: Vec<ShardObject<'a>>,
}

#[derive(Serialize)]
struct ShardObject<'a> {
    shard: u32,
    live: bool,
    damage: Option<&'a str>,
    durable_batch: Option<u64>,
    next_batch: u64,
    next_seq: u64,
    unsealed_bytes: u64,
    losses: Vec<LossObject>,
    segments: Vec<SegmentObject<'a>>,
}

#[derive(Serialize)]
struct LossObject {
    first_batch: u64,
    batches: u64,
    first_seq: u64,
    records: u64,
}

#[derive(Serialize)]
struct SegmentObject<'a> {
    index: u64,
    name: &'a str,
    state: &'a str,
    bytes: u64,
    end: u64,
    batches: u64,
    records: u64,
    lost_records: u64,
    first_seq: u64,
    from: Option<String>,
    to: Option<String>,
}

fn log(global: &Global) -> Outcome {
    let inspection = inspect(&global.need_log()?).map_err(super::read_failure)?;
    match global.json {
        true => print_json(&object(&inspection))?,
        false => print(&words(&inspection))?,
    }
    Ok(Exit::Done)
}

fn object(log: &Inspection) -> LogObject<'_> {
    LogObject {
        log_id: &log.log_id,
        layout_generation: log.generation,
        epoch: log.epoch,
        owner_pid: log.owner_pid,
        space_promise: log.space_promise,
        primitive: log.primitive.as_deref(),
        volatile: log.volatile,
        epochs: log.checkpointed.as_ref().map_or(0, |c| c.entries),
        checkpointed: log.checkpointed.as_ref().filter(|c| c.wall_ns != 0).map(|c| time::format(c.wall_ns)),
        beyond_batches: log.checkpointed.as_ref().map_or(0, |c| c.beyond_batches),
        beyond_records: log.checkpointed.as_ref().map_or(0, |c| c.beyond_records),
        lost_records: lost_records(log),
        shards: log.shards.iter().map(shard_object).collect(),
    }
}

fn lost_records(log: &Inspection) -> u64 {
    log.shards
        .iter()
        .flat_map(|shard| &shard.losses)
        .map(|(_, seqs)| seqs.end.saturating_sub(seqs.start))
        .sum()
}

fn shard_object(shard: &ShardInspection) -> ShardObject<'_> {
    ShardObject {
        shard: shard.shard,
        live: shard.live,
        damage: shard.damage.as_deref(),
        durable_batch: shard.durable_batch,
        next_batch: shard.next_batch,
        next_seq: shard.next_seq,
        unsealed_bytes: shard.unsealed_bytes,
        losses: shard
            .losses
            .iter()
            .map(|(batches, seqs)| LossObject {
                first_batch: batches.start,
                batches: batches.end.saturating_sub(batches.start),
                first_seq: seqs.start,
                records: seqs.end.saturating_sub(seqs.start),
            })
            .collect(),
        segments: shard.segments.iter().map(segment_object).collect(),
    }
}

fn segment_object(segment: &SegmentInspection) -> SegmentObject<'_> {
    SegmentObject {
        index: segment.index,
        name: &segment.name,
        state: segment.state,
        bytes: segment.bytes,
        end: segment.end,
        batches: segment.batches,
        records: segment.records,
        lost_records: segment.lost_records,
        first_seq: segment.first_seq,
        from: segment.from_wall_ns.map(time::format),
        to: segment.to_wall_ns.map(time::format),
    }
}

fn words(log: &Inspection) -> String {
    let mut text = format!(
        "log            {}\nlayout         generation {}, epoch {}\nowner          {}\n\
         space promise  {}\nprimitive      {}\n",
        log.log_id,
        log.generation,
        log.epoch,
        log.owner_pid.map_or("nobody".to_owned(), |pid| format!("process {pid}")),
        match log.space_promise {
            true => "yes",
            false => "no: what is prepared may not be there when it is written to",
        },
        match (&log.primitive, log.owner_pid) {
            (Some(primitive), Some(_)) => primitive.clone(),
            (Some(primitive), None) => format!("{primitive}, when it was last open"),
            (None, _) => "not known: no opening has said so yet".to_owned(),
        },
    );
    if log.volatile {
        text.push_str("file system    in memory: the log is gone with a reboot or a power cut\n");
    }
    text.push_str(&match &log.checkpointed {
        None => "checkpointed   nothing: no epoch entry was made\n".to_owned(),
        Some(c) => format!(
            "checkpointed   {}{}; behind that {} in {}\n",
            count(c.entries, "epoch entry"),
            if c.wall_ns == 0 { String::new() } else { format!(", up to {}", time::format(c.wall_ns)) },
            count(c.beyond_records, "record"),
            count(c.beyond_batches, "batch")
        ),
    });
    let losses: usize = log.shards.iter().map(|shard| shard.losses.len()).sum();
    if losses > 0 {
        text.push_str(&format!(
            "lost           {}, in {} on record\n",
            count(lost_records(log), "record"),
            count(losses as u64, "loss")
        ));
    }
    for shard in &log.shards {
        text.push_str(&format!(
            "\nshard {}{}: {}, next batch {}, next sequence {}, unsealed tail {}\n",
            shard.shard,
            if shard.live { "" } else { " (closed by a reshard)" },
            match shard.durable_batch {
                Some(batch) => format!("known durable up to batch {}", grouped(batch)),
                None if shard.damage.is_some() => "how far it is durable is not known".to_owned(),
                None => "nothing durable yet".to_owned(),
            },
            grouped(shard.next_batch),
            grouped(shard.next_seq),
            size(shard.unsealed_bytes),
        ));
        if let Some(damage) = &shard.damage {
            text.push_str(&format!("damage: {damage} (`hanaper verify` lists all there is)\n"));
        }
        for (batches, seqs) in &shard.losses {
            let (batches, records) = (span("batch", batches), span("record", seqs));
            text.push_str(&format!("lost, and on record as lost: {batches}, {records}\n"));
        }
        let rows: Vec<Vec<String>> = shard
            .segments
            .iter()
            .map(|segment| {
                let at = |wall_ns: Option<i64>| wall_ns.map(time::format).unwrap_or_default();
                vec![
                    segment.name.clone(),
                    segment.state.to_owned(),
                    grouped(segment.bytes),
                    grouped(segment.end),
                    grouped(segment.batches),
                    grouped(segment.records),
                    grouped(segment.lost_records),
                    grouped(segment.first_seq),
                    at(segment.from_wall_ns),
                    at(segment.to_wall_ns),
                ]
            })
            .collect();
        text.push_str(&table(
            &["segment", "state", "bytes", "end", "batches", "records", "lost", "first seq", "from", "to"],
            &rows,
        ));
    }
    text
}

#[derive(Serialize)]
struct BatchObject<'a> {
    number: u64,
    offset: u64,
    bytes: u64,
    first_seq: u64,
    records: u64,
    durable: Option<u64>,
    from: String,
    to: String,
    digest: String,
    fault: Option<&'a str>,
}

fn batches(global: &Global, segment: &Path) -> Outcome {
    let batches = inspect_segment(segment).map_err(super::read_failure)?;
    if global.json {
        for batch in &batches {
            print_json(&batch_object(batch))?;
        }
        return Ok(Exit::Done);
    }
    let rows: Vec<Vec<String>> = batches
        .iter()
        .map(|batch| {
            vec![
                grouped(batch.number),
                grouped(batch.offset),
                grouped(batch.bytes),
                grouped(batch.first_seq),
                grouped(batch.records),
                batch.durable.map(grouped).unwrap_or_default(),
                time::format(batch.from_wall_ns),
                hex(&batch.digest[..8]),
                batch.fault.clone().unwrap_or_else(|| "whole".to_owned()),
            ]
        })
        .collect();
    if rows.is_empty() {
        say(format!("{}: no batch is in it", segment.display()));
    }
    print(&table(
        &["batch", "offset", "bytes", "first seq", "records", "durable", "from", "digest", "state"],
        &rows,
    ))?;
    Ok(Exit::Done)
}

fn batch_object(batch: &BatchInspection) -> BatchObject<'_> {
    BatchObject {
        number: batch.number,
        offset: batch.offset,
        bytes: batch.bytes,
        first_seq: batch.first_seq,
        records: batch.records,
        durable: batch.durable,
        from: time::format(batch.from_wall_ns),
        to: time::format(batch.to_wall_ns),
        digest: hex(&batch.digest),
        fault: batch.fault.as_deref(),
    }
}

fn print(text: &str) -> Result<(), Failure> {
    io::stdout().write_all(text.as_bytes()).map_err(Failure::stdout)
}
