//! `checkpoint`: the newest signed note.

use std::io::Write;

use clap::Args;
use hanaper::read::newest;
use serde::Serialize;

use super::exit::{Exit, Failure, Outcome};
use super::numbers::base64;
use super::{Global, print_json, time};

/// Print the newest checkpoint: a signed note on all that the log says of itself.
///
/// A checkpoint that somebody else keeps is what makes a later change evident: `verify --checkpoint` demands that
/// the log has grown from it, and other people's tools for signed notes check its signature. Keep it where whoever
/// runs the log cannot reach it.
///
/// Only the note, its own entries and the signature of the log's identity are looked at; `verify` checks all.
///
/// Exit code: 0 if it was printed, 1 if it is not what the log's entries say, 5 if there is none yet.
/// --json prints one object: origin, size, root, time and note.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  hanaper checkpoint --log ./audit > kept.note
  hanaper verify --log ./audit --checkpoint kept.note     has the log grown from it?
  hanaper checkpoint --log ./audit --json | jq .size")]
pub struct CheckpointArgs {}

#[derive(Serialize)]
struct Object {
    origin: String,
    /// Entries.
    size: u64,
    root: String,
    /// When its newest entry was made.
    time: Option<String>,
    note: String,
}

pub fn run(global: &Global, _: CheckpointArgs) -> Outcome {
    let log = global.need_log()?;
    let Some(newest) = newest::newest(&log).map_err(super::read_failure)? else {
        let why = "no checkpoint yet: they are off, or nothing has been signed";
        return Err(Failure::new(Exit::Refused, format!("{}: {why}", log.display())));
    };
    let note = newest.note.to_string();
    if global.json {
        print_json(&Object {
            origin: newest.checkpoint.origin().to_owned(),
            size: newest.checkpoint.size(),
            root: base64(newest.checkpoint.root()),
            time: newest.wall_ns.map(time::format),
            note,
        })?;
    } else {
        std::io::stdout().write_all(note.as_bytes()).map_err(Failure::stdout)?;
    }
    Ok(Exit::Done)
}
