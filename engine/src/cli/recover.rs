//! `recover`: says what it would cut or rebuild, and why; does it only when told to.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use hanaper::recover::{self, Mode, Plan};
use serde::Serialize;

use super::exit::{Exit, Failure, Outcome, say};
use super::numbers::count;
use super::{Global, print_json};

/// Say what a repair would cut or rebuild, and do it with --write.
///
/// A torn tail that was never acknowledged needs none of this: opening the log ends it. `recover`
/// is for damage at or below what is known to be durable, where opening refuses.
///
/// Never changes a segment: --write puts what is lost on record in the manifest, and with that the
/// log opens again and readers step over the loss. Where a part of the damage would stay in the way
/// nothing is written at all. With --input and --output one segment file is mended into a new file.
///
/// Exit code: 0 if there was nothing to do or nothing was lost, 1 if damage was found and nothing
/// was written, 3 if it was recovered with the loss that is listed.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  hanaper recover --log ./audit             what is damaged, and what would be done?
  hanaper recover --log ./audit --write     do it
  hanaper recover --input damaged.segment --output mended.segment")]
pub struct RecoverArgs {
    /// Do it
    #[arg(long, conflicts_with = "input")]
    write: bool,

    /// conservative: keep what digests prove; aggressive: also single records whose own checksum
    /// holds inside a batch whose digest fails, each marked salvaged
    #[arg(long, value_name = "MODE", default_value = "conservative")]
    mode: How,

    /// A segment file to repair
    #[arg(long, value_name = "SEGMENT", requires = "output")]
    input: Option<PathBuf>,

    /// The new file for what is left of it; it must not exist
    #[arg(long, value_name = "SEGMENT", requires = "input")]
    output: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum How {
    Conservative,
    Aggressive,
}

#[derive(Serialize)]
struct StepObject<'a> {
    row: &'a str,
    place: &'a str,
    action: &'a str,
    why: &'a str,
    loses: bool,
    done: bool,
}

pub fn run(global: &Global, args: RecoverArgs) -> Outcome {
    let mode = match args.mode {
        How::Conservative => Mode::Conservative,
        How::Aggressive => Mode::Aggressive,
    };
    let (plan, done) = match (&args.input, &args.output) {
        (Some(input), Some(output)) => {
            if output.exists() {
                return Err(Failure::usage(format!(
                    "--output {}: it exists already; name a new file",
                    output.display()
                )));
            }
            (recover::segment(input, output, mode), true)
        }
        _ => {
            let log = global.need_log()?;
            match args.write {
                true => (recover::write(&log, mode), true),
                false => (recover::plan(&log, mode), false),
            }
        }
    };
    let plan = plan.map_err(|error| Failure::new(error.kind().into(), error.to_string()))?;
    print(global, &plan, done)?;
    if let (false, Some(output)) = (plan.salvaged.is_empty(), &args.output) {
        say(format!(
            "{} salvaged into {}.salvaged: not proven by a digest, and not part of the log",
            count(plan.salvaged.len() as u64, "record"),
            output.display()
        ));
    }
    let loses = plan.steps.iter().any(|step| step.loses);
    Ok(match (loses, done) {
        (false, _) => Exit::Done,
        (true, false) => Exit::Violation,
        (true, true) => Exit::Loss,
    })
}

fn print(global: &Global, plan: &Plan, done: bool) -> Result<(), Failure> {
    if global.json {
        for step in &plan.steps {
            print_json(&StepObject {
                row: step.row,
                place: &step.place,
                action: &step.action,
                why: &step.why,
                loses: step.loses,
                done,
            })?;
        }
        return Ok(());
    }
    if plan.steps.is_empty() {
        say("nothing to recover");
        return Ok(());
    }
    let mut out = io::stdout().lock();
    for step in &plan.steps {
        let loss = if step.loses { "LOSS " } else { "" };
        writeln!(out, "{loss}{} {}: {} ({})", step.row, step.place, step.action, step.why)
            .map_err(Failure::stdout)?;
    }
    if !done {
        say("nothing was changed; --write does it");
    }
    Ok(())
}
