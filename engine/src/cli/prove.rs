//! `prove`: three files that prove one record.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;
use hanaper::checkpoint::Checkpoint;
use hanaper::checkpoint::proof::TlogProof;
use hanaper::read::prove::{ProveError, prove};
use serde::Serialize;

use super::exit::{Exit, Failure, Outcome, plain, say};
use super::{Global, print_json};

/// Prove that one record is in the log, to somebody who has nothing but its public key.
///
/// Writes three files: PREFIX.tlog-proof (that an entry of the log is in a signed checkpoint, in the format
/// c2sp.org/tlog-proof@v1), PREFIX.leaf (that entry, which names the shard's tree) and PREFIX.batch (the batch with
/// the record). `check-proof` checks them without the log.
///
/// The whole batch goes along, since only walking it from its header tells a record from bytes that look like one:
/// whoever gets the proof reads the record's neighbours in the batch, too.
///
/// Reads only, also while the log is being written.
///
/// Exit code: 0 if the files were written, 1 if the log is damaged there, 2 if there is no such record, 3 if it is
/// on record as lost, 5 if no checkpoint covers it yet or a file of that name is there already. --json prints one
/// object: shard, seq, epoch, size and files.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  hanaper prove 0:431 --log ./audit --output order-4711
  hanaper check-proof order-4711 --pub audit.vkey")]
pub struct ProveArgs {
    /// The record: its shard and its sequence there, as acknowledgements and `replay --output ndjson` name them
    #[arg(value_name = "SHARD:SEQ")]
    record: RecordName,

    /// What the three files' names begin with
    #[arg(long, value_name = "PREFIX", value_hint = clap::ValueHint::FilePath)]
    output: PathBuf,
}

/// `SHARD:SEQ`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordName {
    pub shard: u32,
    pub seq: u64,
}

impl FromStr for RecordName {
    type Err = String;

    fn from_str(text: &str) -> Result<RecordName, String> {
        let parse = || {
            let (shard, seq) = text.split_once(':')?;
            Some(RecordName { shard: shard.parse().ok()?, seq: seq.parse().ok()? })
        };
        parse().ok_or_else(|| "it must be SHARD:SEQ, such as 0:431".to_owned())
    }
}

#[derive(Serialize)]
struct Object {
    shard: u32,
    seq: u64,
    /// The entry that names its batch.
    epoch: u64,
    /// Entries under the checkpoint.
    size: u64,
    files: [String; 3],
}

/// The file of a proof with this ending.
pub fn file(prefix: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(prefix);
    name.push(ending);
    name.into()
}

pub fn run(global: &Global, args: ProveArgs) -> Outcome {
    let log = global.need_log()?;
    let RecordName { shard, seq } = args.record;
    let files = [".tlog-proof", ".leaf", ".batch"].map(|ending| file(&args.output, ending));
    if let Some(there) = files.iter().find(|file| file.symlink_metadata().is_ok()) {
        let what = "it is there already; name another prefix";
        return Err(Failure::new(Exit::Refused, format!("{}: {what}", there.display())));
    }
    let proof = prove(&log, shard, seq).map_err(|error| match &error {
        ProveError::Lost { .. } => Failure::new(Exit::Loss, error.to_string()),
        _ => Failure::new(error.kind().into(), error.to_string()),
    })?;
    for (path, bytes) in files.iter().zip([proof.tlog_proof.as_bytes(), proof.leaf.as_bytes(), &proof.batch])
    {
        let mut new = OpenOptions::new();
        let written = new.write(true).create_new(true).open(path).and_then(|mut file| file.write_all(bytes));
        written.map_err(|error| {
            let exit = match error.kind() {
                // No folder there: another name helps, another try does not.
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Exit::Usage,
                _ => Exit::Io,
            };
            Failure::new(exit, format!("{}: cannot be written: {}", path.display(), plain(&error)))
        })?;
    }
    let own = "it was just made";
    let tlog_proof = TlogProof::parse(proof.tlog_proof.as_bytes()).expect(own);
    let size = Checkpoint::parse(tlog_proof.note.text()).expect(own).size();
    let files = files.map(|file| file.display().to_string());
    match global.json {
        true => print_json(&Object { shard, seq, epoch: tlog_proof.index, size, files })?,
        false => say(format!(
            "record {seq} of shard {shard} is proven by {}: entry {} under a checkpoint of {size}",
            files.join(", "),
            tlog_proof.index
        )),
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_has_a_shard_and_a_sequence() {
        assert_eq!("3:12".parse(), Ok(RecordName { shard: 3, seq: 12 }));
        for text in ["", "3", ":", "3:", ":12", "3:12:1", "-1:3", "3:-1", "4294967296:0", "a:b"] {
            assert!(text.parse::<RecordName>().is_err(), "{text}");
        }
        // Not an extension that would replace one of the prefix.
        assert_eq!(file(Path::new("a.b"), ".leaf"), Path::new("a.b.leaf"));
    }
}
