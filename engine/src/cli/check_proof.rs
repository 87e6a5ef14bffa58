//! `check-proof`: the check of a record's proof, without the log.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use hanaper::checkpoint::proof::{
    BATCH_BYTES_MAX, LEAF_BYTES_MAX, ProofError, Proven, TLOG_PROOF_BYTES_MAX, check,
};
use hanaper_shards::manifest::hex;
use hanaper_shards::record::FLAG_UNTERMINATED;
use serde::Serialize;

use super::exit::{Exit, Failure, Outcome, plain};
use super::prove::{RecordName, file};
use super::{Global, print_json, replay, time, verify};

/// Check the proof of a record with nothing but the log's public key.
///
/// Reads PREFIX.tlog-proof, PREFIX.leaf and PREFIX.batch, as `prove` writes them; no log is needed. Everything is
/// followed from the signature down: checkpoint, entry, the shard's tree, the batch, and the frames in it up to the
/// record.
///
/// It proves that whoever has the key signed a log with this record in this place. It does not prove that the log
/// has only one history (keep checkpoints, and `verify --checkpoint`), nor that the clock was right.
///
/// --output raw prints the event alone, with an LF. Exit code: 0 if it is proven, 1 if not, and the verdict says why
/// (BAD-SIGNATURE, FOREIGN-LOG, BATCH-DIGEST, NOT-A-RECORD, PROOF-MISMATCH with the name of the field), 2 if a file
/// is not there or the key is none.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  hanaper check-proof order-4711 --pub audit.vkey
  hanaper check-proof order-4711 --pub audit.vkey --record 0:431    is it the record that I was told?
  hanaper check-proof order-4711 --pub audit.vkey --output raw | jq .")]
pub struct CheckProofArgs {
    /// What the three files' names begin with
    #[arg(value_name = "PREFIX", value_hint = clap::ValueHint::FilePath)]
    prefix: PathBuf,

    /// The log's public key, as `keys list` prints it, or a file that has it
    #[arg(long = "pub", value_name = "VKEY")]
    vkey: String,

    /// The record that the proof must be of
    #[arg(long, value_name = "SHARD:SEQ")]
    record: Option<RecordName>,

    /// raw: the event's bytes, with an LF; json: one object (so does --json)
    #[arg(long, value_name = "FORM")]
    output: Option<Form>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    Raw,
    Json,
}

#[derive(Serialize)]
struct Refused<'a> {
    result: &'static str,
    verdict: &'a str,
    field: Option<&'a str>,
    meaning: String,
}

pub fn run(global: &Global, args: CheckProofArgs) -> Outcome {
    if global.json && args.output == Some(Form::Raw) {
        return Err(Failure::usage("--json and --output raw: raw is no JSON; leave one of them out"));
    }
    let json = global.json || args.output == Some(Form::Json);
    let vkey = verify::read_vkey(&args.vkey)?;
    let read = |ending, most| read(&file(&args.prefix, ending), most);
    let tlog_proof = read(".tlog-proof", TLOG_PROOF_BYTES_MAX)?;
    let leaf = read(".leaf", LEAF_BYTES_MAX)?;
    let batch = read(".batch", BATCH_BYTES_MAX)?;
    let checked = check(&vkey, &tlog_proof, &leaf, &batch).and_then(|proven| is_it(args.record, proven));
    match checked {
        Ok(proven) => print(&proven, args.output, json).map_err(Failure::stdout)?,
        Err(error) => {
            if json {
                let (verdict, field) = (error.verdict(), error.field());
                print_json(&Refused { result: "refused", verdict, field, meaning: error.to_string() })?;
            }
            return Err(Failure::new(Exit::Violation, error.to_string()));
        }
    }
    Ok(Exit::Done)
}

fn is_it(wanted: Option<RecordName>, proven: Proven) -> Result<Proven, ProofError> {
    let record = &proven.record;
    let mismatch = |field, what| Err(ProofError::Mismatch { field, what });
    match wanted {
        Some(name) if name.shard != record.shard => {
            mismatch("shard", format!("it proves a record of shard {}, not of {}", record.shard, name.shard))
        }
        Some(name) if name.seq != record.seq => {
            mismatch("sequence", format!("it proves record {}, not {}", record.seq, name.seq))
        }
        _ => Ok(proven),
    }
}

/// Reads a file of a proof. One byte more than is allowed is enough to refuse it.
fn read(path: &Path, most: usize) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(most as u64 + 1).read_to_end(&mut bytes));
    match read {
        Ok(_) => Ok(bytes),
        Err(error) => {
            let exit = match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::IsADirectory => Exit::Usage,
                _ => Exit::Io,
            };
            Err(Failure::new(exit, format!("{}: {}", path.display(), plain(&error))))
        }
    }
}

fn print(proven: &Proven, form: Option<Form>, json: bool) -> io::Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    let Proven { origin, checkpoint, entry, record } = proven;
    let entered = time::format(entry.time.wall_ns);
    if json {
        write!(
            out,
            "{{\"result\":\"proven\",\"origin\":{},\"log\":\"{}\",\"batch\":{},\"epoch\":{},\"entered\":\"{entered}\",\"size\":{},\"record\":",
            serde_json::to_string(origin).map_err(io::Error::from)?,
            hex(&entry.log),
            record.batch,
            entry.epoch,
            checkpoint.size(),
        )?;
        replay::object(&mut out, record)?;
        writeln!(out, "}}")?;
    } else if form == Some(Form::Raw) {
        out.write_all(&record.payload)?;
        if record.flags & FLAG_UNTERMINATED == 0 {
            out.write_all(b"\n")?;
        }
    } else {
        writeln!(out, "proven: record {} of shard {} of {origin}", record.seq, record.shard)?;
        writeln!(out, "taken: {}, in batch {}", time::format(record.wall_ns), record.batch)?;
        writeln!(out, "entered: {entered}, as entry {} of {}", entry.epoch, checkpoint.size())?;
        writeln!(out, "key: {}", record.key.escape_ascii())?;
        writeln!(out, "payload: {}", record.payload.escape_ascii())?;
    }
    out.flush()
}
