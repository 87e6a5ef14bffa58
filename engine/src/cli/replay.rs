//! `replay`: what the log holds, in time order; one producer's events in the order in which it
//! appended them.

use std::io::{self, BufWriter, Write};

use clap::{Args, ValueEnum};
use hanaper::read::{Kind, OwnedRecord, Reader, Select};
use hanaper_shards::record::FLAG_UNTERMINATED;

use super::exit::{Exit, Failure, Outcome, say};
use super::numbers::base64;
use super::{Global, time};

/// Print what the log holds.
///
/// All shards come in the order of their log time, merged; with --shard that shard alone comes in the
/// order of its sequence. --from and --to mean the time at which hanaper took an event, by the wall clock;
/// what time an event says of itself is not looked at.
///
/// One producer's events come back in the order in which they were appended, whatever the number
/// of shards: after `append FILE`, `replay --output raw` gives FILE. Reads a live log, a copy or a
/// read-only mount; never writes.
///
/// Losses that are on record (see `hanaper recover`) are stepped over, each is said, and the exit code
/// is 3.
///
/// Raw output ends each event with an LF; only behind the very last one it is left out, if `append` found
/// none there. An event that itself
/// holds an LF (none made by `append` does) reads as two lines: take ndjson where that matters.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  hanaper replay --log ./audit > events.ndjson
  hanaper replay --log ./audit --from 2026-11-25T09:00:00Z --to 2026-11-25T10:00:00Z
  hanaper replay --log ./audit --output ndjson | jq -r .payload
  hanaper replay --log ./audit --output ndjson --events     without what happened to the log itself")]
pub struct ReplayArgs {
    /// Events that were taken from this time on (RFC 3339, to the nanosecond)
    #[arg(long, value_name = "TIME")]
    from: Option<String>,

    /// Events that were taken before this time
    #[arg(long, value_name = "TIME")]
    to: Option<String>,

    /// Only this shard, in the order of its sequence
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = shard_number)]
    shard: Option<u32>,

    /// raw: the events' bytes, each with an LF; ndjson: one object a line; json: one array
    ///
    /// An object has shard, seq, time, kind, key and payload. Where bytes are not UTF-8 there is
    /// payload_base64 in place of payload, and key_base64 in place of key. `--json` alone means
    /// ndjson.
    #[arg(long, value_name = "FORM")]
    output: Option<Form>,

    /// Events only, without the control records that say what happened to the log itself (raw output
    /// never has them)
    #[arg(long)]
    events: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    Raw,
    Ndjson,
    Json,
}

fn shard_number(text: &str) -> Result<u32, String> {
    text.parse()
        .map_err(|_| "a shard's number is 0, 1, 2 and so on (`hanaper inspect` lists them)".to_owned())
}

pub fn run(global: &Global, args: ReplayArgs) -> Outcome {
    let log = global.need_log()?;
    if global.json && args.output == Some(Form::Raw) {
        return Err(Failure::usage(
            "--json and --output raw: raw is no JSON; leave --json out, or say --output ndjson or --output json",
        ));
    }
    let form = args.output.unwrap_or(if global.json { Form::Ndjson } else { Form::Raw });
    let instant =
        |flag, text: &Option<String>| text.as_deref().map(|text| time::parse(flag, text)).transpose();
    let select = Select {
        from_wall_ns: instant("--from", &args.from)?,
        to_wall_ns: instant("--to", &args.to)?,
        shard: args.shard,
        seqs: None,
        control: !args.events && form != Form::Raw,
    };
    if let (Some(from), Some(to)) = (select.from_wall_ns, select.to_wall_ns)
        && from > to
    {
        return Err(Failure::usage("--from lies after --to: nothing can be between them"));
    }
    let reader = Reader::open(&log).map_err(super::read_failure)?;
    if let Some(shard) = args.shard
        && !reader.shards().contains(&shard)
    {
        let shards: Vec<String> = reader.shards().iter().map(u32::to_string).collect();
        return Err(Failure::usage(format!(
            "--shard {shard}: this log has no such shard; it has {}",
            shards.join(", ")
        )));
    }
    let mut out = BufWriter::with_capacity(256 << 10, io::stdout().lock());
    let mut first = true;
    // The LF that the last event came without: it is due once another one follows.
    let mut due = false;
    let printed = (|| {
        for record in reader.replay(select) {
            // What comes before a bad place is whole, and is printed before the place is named.
            let record = match record {
                Ok(record) => record,
                Err(error) => {
                    out.flush().map_err(Failure::stdout)?;
                    return Err(super::read_failure(error));
                }
            };
            print(&mut out, form, &record, first, &mut due).map_err(Failure::stdout)?;
            first = false;
        }
        if form == Form::Json {
            out.write_all(if first { b"[]\n" } else { b"\n]\n" }).map_err(Failure::stdout)?;
        }
        out.flush().map_err(Failure::stdout)
    })();
    // Dropping the writer would try once more to write to whoever has gone.
    let _ = out.into_parts();
    for notice in reader.notices() {
        say(notice);
    }
    printed?;
    // What came out is whole but for what is on record as lost, which was said.
    let losses = reader.losses(args.shard).map_err(super::read_failure)?;
    Ok(if losses.is_empty() { Exit::Done } else { Exit::Loss })
}

fn print(
    out: &mut impl Write,
    form: Form,
    record: &OwnedRecord,
    first: bool,
    due: &mut bool,
) -> io::Result<()> {
    match form {
        Form::Raw => {
            if std::mem::replace(due, record.flags & FLAG_UNTERMINATED != 0) {
                out.write_all(b"\n")?;
            }
            out.write_all(&record.payload)?;
            if *due { Ok(()) } else { out.write_all(b"\n") }
        }
        Form::Ndjson => {
            object(out, record)?;
            out.write_all(b"\n")
        }
        Form::Json => {
            out.write_all(if first { b"[\n" } else { b",\n" })?;
            object(out, record)
        }
    }
}

/// One record as an object, without a line end.
pub fn object(out: &mut impl Write, record: &OwnedRecord) -> io::Result<()> {
    let kind = match record.kind {
        Kind::Data => "data",
        Kind::Control => "control",
    };
    write!(
        out,
        "{{\"shard\":{},\"seq\":{},\"time\":\"{}\",\"kind\":\"{kind}\",",
        record.shard,
        record.seq,
        time::format(record.wall_ns)
    )?;
    text(out, "key", &record.key)?;
    out.write_all(b",")?;
    text(out, "payload", &record.payload)?;
    out.write_all(b"}")
}

/// `"name":"…"`, or `"name_base64":"…"` where the bytes are not UTF-8.
fn text(out: &mut impl Write, name: &str, bytes: &[u8]) -> io::Result<()> {
    match std::str::from_utf8(bytes) {
        Ok(text) => {
            write!(out, "\"{name}\":")?;
            serde_json::to_writer(out, text).map_err(io::Error::from)
        }
        Err(_) => write!(out, "\"{name}_base64\":\"{}\"", base64(bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &[u8], payload: &[u8]) -> OwnedRecord {
        OwnedRecord {
            shard: 3,
            seq: 12,
            batch: 1,
            log_time: 5,
            wall_ns: 1,
            kind: Kind::Data,
            flags: 0,
            producer: 1,
            producer_seq: 0,
            key: key.to_vec(),
            payload: payload.to_vec(),
        }
    }

    fn printed(form: Form, records: &[OwnedRecord]) -> String {
        let mut out = Vec::new();
        let mut due = false;
        for (i, record) in records.iter().enumerate() {
            print(&mut out, form, record, i == 0, &mut due).unwrap();
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn an_object_has_the_documented_fields() {
        assert_eq!(
            printed(Form::Ndjson, &[record(b"k\"1", "z\n\u{1}ü".as_bytes())]),
            "{\"shard\":3,\"seq\":12,\"time\":\"1970-01-01T00:00:00.000000001Z\",\
             \"kind\":\"data\",\"key\":\"k\\\"1\",\"payload\":\"z\\n\\u0001ü\"}\n"
        );
    }

    /// Bytes that are not UTF-8 must come out whole, not with replacement characters.
    #[test]
    fn binary_goes_out_as_base64() {
        let text = printed(Form::Ndjson, &[record(b"\xff", b"\x00\xfe")]);
        assert!(text.contains("\"key_base64\":\"/w==\",\"payload_base64\":\"AP4=\"}"), "{text}");
        assert!(!text.contains("\"payload\""), "{text}");
    }

    #[test]
    fn json_is_one_array() {
        let text = printed(Form::Json, &[record(b"a", b"1"), record(b"b", b"2")]) + "\n]\n";
        let array: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(array[1]["payload"], "2");
    }
}
