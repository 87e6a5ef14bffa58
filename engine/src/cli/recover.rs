//! `recover`: says what it would cut or rebuild, and why; does it only when told to.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use hanaper::recover::{self, Mode, Plan, Who};
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
/// (a manifest that is gone, a segment that was not sealed and is gone, a loss with nothing intact
/// behind it in its segment) nothing is written at all. With --input and --output one segment file is
/// mended into a new file; a batch whose digest holds is kept, whatever stands in its padding.
///
/// Exit code: 0 if there was nothing to do or nothing was lost, 1 if damage was found and nothing
/// was written or something is left for a hand to do, 3 if it was recovered with the loss that is
/// listed, 5 if the file that --output names is there already.
///
/// --json prints one object a step, and last a summary: result (whole, damaged or recovered), steps,
/// losing, by_hand, salvaged and written.
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

impl RecoverArgs {
    /// Whether it changes a log.
    pub fn writes(&self) -> bool {
        self.write
    }
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
    /// recover, opening or hand
    by: &'static str,
    done: bool,
}

#[derive(Serialize)]
struct SummaryObject {
    result: &'static str,
    steps: usize,
    losing: usize,
    by_hand: usize,
    salvaged: usize,
    written: bool,
}

pub fn run(global: &Global, args: RecoverArgs) -> Outcome {
    let mode = match args.mode {
        How::Conservative => Mode::Conservative,
        How::Aggressive => Mode::Aggressive,
    };
    let (plan, done) = match (&args.input, &args.output) {
        (Some(input), Some(output)) => {
            if output.exists() {
                return Err(Failure::new(
                    Exit::Refused,
                    format!("--output {}: it exists already; name a new file", output.display()),
                ));
            }
            let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty());
            if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
                return Err(Failure::usage(format!(
                    "--output {}: there is no folder {}; make it first",
                    output.display(),
                    folder.display()
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
    let plan = plan.map_err(super::read_failure)?;
    let exit = match (plan.needs_a_hand(), plan.loses(), done) {
        (true, ..) | (_, true, false) => Exit::Violation,
        (false, true, true) => Exit::Loss,
        (false, false, _) => Exit::Done,
    };
    match global.json {
        true => print_objects(&plan, exit, done)?,
        false => print(&plan)?,
    }
    if args.mode == How::Aggressive && args.output.is_none() {
        say("--mode aggressive gives out single records of one segment: name it with --input and --output; \
             for a whole log both modes are the same");
    }
    if let Some(output) = &args.output {
        if plan.steps.is_empty() && !global.json {
            say(format!("nothing is wrong with it: {} has the same bytes", output.display()));
        }
        if !plan.salvaged.is_empty() {
            say(format!(
                "{} salvaged into {}.salvaged: not proven by a digest, and not part of the log",
                count(plan.salvaged.len() as u64, "record"),
                output.display()
            ));
        }
    } else if !global.json {
        say(last_word(&plan, done));
    }
    Ok(exit)
}

/// What was or would be done, in all. Where the advice is to open the log or to write, that must help.
fn last_word(plan: &Plan, done: bool) -> String {
    if plan.steps.is_empty() {
        return "nothing to recover".to_owned();
    }
    if let Some(obstacle) = &plan.obstacle {
        return format!(
            "nothing was changed, and --write would change nothing while this stands: {obstacle}"
        );
    }
    let by = |who| plan.steps.iter().filter(|step| step.by == who).count() as u64;
    let mut words = match (by(Who::Recover), done) {
        (0, _) => "nothing is to be put on record".to_owned(),
        (_, true) => {
            "what is lost is on record now: the log opens again, and readers step over it".to_owned()
        }
        (_, false) => "nothing was changed; --write puts on record what is lost".to_owned(),
    };
    if by(Who::Hand) > 0 {
        words.push_str(&format!("; {} above is left for a hand to do", count(by(Who::Hand), "step")));
    } else if by(Who::Opening) > 0 {
        words.push_str("; opening the log does the rest by itself");
    }
    words
}

fn print_objects(plan: &Plan, exit: Exit, done: bool) -> Result<(), Failure> {
    for step in &plan.steps {
        let by = match step.by {
            Who::Recover => "recover",
            Who::Opening => "opening",
            Who::Hand => "hand",
        };
        print_json(&StepObject {
            row: step.row,
            place: &step.place,
            action: &step.action,
            why: &step.why,
            loses: step.loses,
            by,
            done: done && step.by == Who::Recover,
        })?;
    }
    print_json(&SummaryObject {
        result: match exit {
            Exit::Violation => "damaged",
            Exit::Loss => "recovered",
            _ => "whole",
        },
        steps: plan.steps.len(),
        losing: plan.steps.iter().filter(|step| step.loses).count(),
        by_hand: plan.steps.iter().filter(|step| step.by == Who::Hand).count(),
        salvaged: plan.salvaged.len(),
        written: done && plan.steps.iter().any(|step| step.by == Who::Recover),
    })
}

fn print(plan: &Plan) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    for step in &plan.steps {
        let loss = if step.loses { "LOSS " } else { "" };
        writeln!(out, "{loss}{} {}: {} ({})", step.row, step.place, step.action, step.why)
            .map_err(Failure::stdout)?;
    }
    Ok(())
}
