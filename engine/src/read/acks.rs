//! Acknowledgements that somebody kept, one JSON object a line, held against what is in the log.
//!
//! ```text
//! {"line":12,"shard":0,"seq":5,"batch":"4f…"}
//! ```
//! Each says: the record with this sequence of this shard is durable, in the batch with this digest.
//! Other fields are ignored. The summary with which `append --acks --json` ends says nothing of single records,
//! and is passed over. A last line without its end was torn by a crash of whoever kept them, and
//! says nothing.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use hanaper_shards::batch::Digest;
use hanaper_shards::manifest::unhex;

use crate::error::ReadError;

/// The longest line that is an acknowledgement; longer ones are somebody else's file.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// Acknowledged records of one batch with sequences one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Run {
    first: u64,
    end: u64,
    digest: Digest,
}

/// What is missing of what was acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Missing {
    pub first: u64,
    pub end: u64,
    pub digest: Digest,
    /// The batch that holds these sequences now, if any does.
    pub instead: Option<Digest>,
}

/// The acknowledgements of one shard, to be held against its batches in order of their sequence.
#[derive(Debug, Default)]
pub(crate) struct ShardAcks {
    runs: Vec<Run>,
    at: usize,
}

impl ShardAcks {
    /// Notes one acknowledgement.
    fn add(&mut self, seq: u64, digest: Digest) {
        match self.runs.last_mut() {
            Some(run) if run.end == seq && run.digest == digest => run.end += 1,
            _ => self.runs.push(Run { first: seq, end: seq + 1, digest }),
        }
    }

    fn sort(&mut self) {
        self.runs.sort_unstable();
    }

    /// An intact batch. They must come in order of their sequence.
    pub(crate) fn see(
        &mut self,
        first_seq: u64,
        end_seq: u64,
        digest: &Digest,
        missing: &mut dyn FnMut(Missing),
    ) {
        while let Some(run) = self.runs.get_mut(self.at) {
            if run.first < first_seq {
                // Nothing that came before held them.
                let end = run.end.min(first_seq);
                missing(Missing { first: run.first, end, digest: run.digest, instead: None });
                run.first = end;
            } else if run.first < end_seq {
                let end = run.end.min(end_seq);
                if run.digest != *digest {
                    missing(Missing { first: run.first, end, digest: run.digest, instead: Some(*digest) });
                }
                run.first = end;
            } else {
                return;
            }
            if run.first < run.end {
                // Its rest may overlap with runs behind it (a line kept twice, two batches claimed for
                // one record), so it goes back into its place among them.
                let mut i = self.at;
                while i + 1 < self.runs.len() && self.runs[i + 1] < self.runs[i] {
                    self.runs.swap(i, i + 1);
                    i += 1;
                }
            } else {
                self.at += 1;
            }
        }
    }

    /// After the last batch: what is left was acknowledged and is nowhere.
    pub(crate) fn finish(&mut self, missing: &mut dyn FnMut(Missing)) {
        for run in &self.runs[self.at.min(self.runs.len())..] {
            missing(Missing { first: run.first, end: run.end, digest: run.digest, instead: None });
        }
        self.runs.clear();
    }
}

/// Acknowledgements that somebody kept.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    pub shards: BTreeMap<u32, ShardAcks>,
    pub count: u64,
    /// The last line was torn by a crash of whoever kept them, and says nothing.
    pub torn: bool,
}

/// Reads a file of acknowledgements; `-` is standard input. One without any is refused: it proves nothing, and
/// would look as if it did.
pub(crate) fn read(path: &Path) -> Result<Kept, ReadError> {
    if path.as_os_str() == "-" {
        return from_lines(&mut std::io::stdin().lock(), "standard input");
    }
    let name = path.display().to_string();
    let file = File::open(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            ReadError::Argument { name: name.clone(), why: "there is no such file".to_owned() }
        }
        _ => ReadError::io(&*name)(error),
    })?;
    if file.metadata().is_ok_and(|metadata| metadata.is_dir()) {
        let why = "it is a folder; name the file that `append --acks` printed".to_owned();
        return Err(ReadError::Argument { name, why });
    }
    from_lines(&mut BufReader::with_capacity(256 << 10, file), &name)
}

fn from_lines(input: &mut dyn BufRead, name: &str) -> Result<Kept, ReadError> {
    let mut torn = false;
    let mut shards: BTreeMap<u32, ShardAcks> = BTreeMap::new();
    let mut count = 0;
    let mut line = Vec::new();
    for number in 1u64.. {
        line.clear();
        let read = std::io::Read::take(&mut *input, LINE_BYTES_MAX).read_until(b'\n', &mut line);
        if read.map_err(ReadError::io(name))? == 0 {
            break;
        }
        let whole = line.last() == Some(&b'\n');
        let text = line.trim_ascii();
        if text.is_empty() {
            continue;
        }
        match ack(text) {
            Some((shard, seq, digest)) => {
                shards.entry(shard).or_default().add(seq, digest);
                count += 1;
            }
            None if is_summary(text) => {}
            // Only the beginning of an acknowledgement is one that was torn.
            None if !whole && line.len() < LINE_BYTES_MAX as usize && text[0] == b'{' => {
                torn = true;
                break;
            }
            None => {
                return Err(ReadError::Argument {
                    name: name.to_owned(),
                    why: format!("line {number} is no acknowledgement with shard, seq and batch"),
                });
            }
        }
    }
    shards.values_mut().for_each(ShardAcks::sort);
    if count == 0 {
        let why = match torn {
            true => "it holds no acknowledgement but a torn line; name the file that `append --acks` printed",
            false => "it holds no acknowledgement; name the file that `append --acks` printed",
        };
        return Err(ReadError::Argument { name: name.to_owned(), why: why.to_owned() });
    }
    Ok(Kept { shards, count, torn })
}

/// One acknowledgement out of one JSON object.
fn ack(line: &[u8]) -> Option<(u32, u64, Digest)> {
    let (mut shard, mut seq, mut batch) = (None, None, None);
    fields(line, &mut |key, value| match key {
        "shard" => shard = value.parse().ok(),
        "seq" => seq = value.parse().ok().filter(|&seq: &u64| seq < u64::MAX),
        "batch" => batch = string(value).and_then(|(hex, _)| unhex(hex)),
        _ => {}
    })?;
    Some((shard?, seq?, batch?))
}

/// Whether this is the summary of an `append`, whole: how many events, how fast, and no single one.
fn is_summary(line: &[u8]) -> bool {
    let mut seen = (false, false, false);
    let whole = fields(line, &mut |key, _| match key {
        "events" => seen.0 = true,
        "events_per_s" => seen.1 = true,
        "seq" | "batch" => seen.2 = true,
        _ => {}
    });
    whole.is_some() && seen == (true, true, false)
}

/// The fields of one JSON object; `None` if it is none.
fn fields<'a>(line: &'a [u8], visit: &mut dyn FnMut(&'a str, &'a str)) -> Option<()> {
    let text = std::str::from_utf8(line).ok()?;
    let mut rest = text.strip_prefix('{')?.trim_start();
    loop {
        let (key, after) = string(rest)?;
        let after = after.trim_start().strip_prefix(':')?.trim_start();
        let (value, after) = value(after)?;
        visit(key, value);
        rest = after.trim_start();
        match rest.strip_prefix(',') {
            Some(more) => rest = more.trim_start(),
            None => return (rest == "}").then_some(()),
        }
    }
}

/// A JSON string at the start of `text`, without its quotes and with its escapes as they are, and what follows.
fn string(text: &str) -> Option<(&str, &str)> {
    let inner = text.strip_prefix('"')?;
    let mut escaped = false;
    for (i, byte) in inner.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return Some((&inner[..i], &inner[i + 1..])),
            _ => {}
        }
    }
    None
}

/// Any JSON value at the start of `text`, and what follows.
fn value(text: &str) -> Option<(&str, &str)> {
    let mut depth = 0usize;
    let mut at = 0;
    loop {
        let rest = &text[at..];
        match rest.bytes().next()? {
            b'"' => {
                let (_, after) = string(rest)?;
                at = text.len() - after.len();
                if depth == 0 {
                    return Some(text.split_at(at));
                }
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth == 0 => return Some((text[..at].trim_end(), rest)),
            b'}' | b']' => {
                depth -= 1;
                if depth == 0 {
                    return Some(text.split_at(at + 1));
                }
            }
            b',' if depth == 0 => return Some((text[..at].trim_end(), rest)),
            _ => {}
        }
        at += rest.chars().next()?.len_utf8();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hanaper_shards::manifest::hex;

    fn read_text(text: &str) -> Result<Kept, ReadError> {
        from_lines(&mut text.as_bytes(), "acks")
    }

    fn check(acks: &mut ShardAcks, batches: &[(u64, u64, u8)]) -> Vec<(u64, u64, Option<u8>)> {
        let mut out = Vec::new();
        let mut missing = |m: Missing| out.push((m.first, m.end, m.instead.map(|d| d[0])));
        for &(first, end, digest) in batches {
            acks.see(first, end, &[digest; 32], &mut missing);
        }
        acks.finish(&mut missing);
        out
    }

    fn line(shard: u32, seq: u64, digest: u8) -> String {
        format!("{{\"line\":1,\"shard\":{shard},\"seq\":{seq},\"batch\":\"{}\"}}\n", hex(&[digest; 32]))
    }

    #[test]
    fn lines_are_read_whatever_else_is_in_them() {
        let digest = hex(&[7; 32]);
        let extra = format!(
            "{{ \"file\" : \"a,\\\"}}é\", \"x\":{{\"seq\":[1,{{\"a\":\"]\"}}]}}, \"seq\": 5 ,\"batch\":\"{digest}\",\"shard\":2,\"b\":null }}"
        );
        assert_eq!(ack(extra.as_bytes()), Some((2, 5, [7; 32])));
        for bad in [
            "{}",
            "{\"shard\":1}",
            "[]",
            "{\"shard\":1,\"seq\":-1,\"batch\":\"00\"}",
            "{\"shard\":1,\"seq\":2,\"batch\":",
        ] {
            assert_eq!(ack(bad.as_bytes()), None, "{bad}");
        }
    }

    /// Whoever kept the acknowledgements may have been killed while writing the last one.
    #[test]
    fn a_torn_last_line_says_nothing_and_any_other_is_an_error() {
        let good = line(0, 0, 1);
        assert_eq!(read_text(&format!("{good}{{\"line\":2,\"sh")).unwrap().count, 1);
        assert!(read_text(&format!("{good}{{\"line\":2,\"sh")).unwrap().torn);
        assert!(!read_text(&good).unwrap().torn);
        assert_eq!(read_text(good.trim_end()).unwrap().count, 1);
        for none in ["", "\n\n", "{\"line\":2,\"sh"] {
            let refused = read_text(none).unwrap_err().to_string();
            assert!(refused.contains("holds no acknowledgement"), "{refused}");
        }
        assert!(matches!(
            read_text(&format!("{good}{{\"line\":2,\"sh\n{good}")),
            Err(ReadError::Argument { .. })
        ));
        assert!(matches!(read_text("something else\n"), Err(ReadError::Argument { .. })));
    }

    /// `append --acks --json > acks` ends with its summary; several runs may stand in one file.
    #[test]
    fn the_summary_of_an_append_is_passed_over() {
        let summary =
            "{\"events\":1,\"bytes\":3,\"shards\":2,\"seconds\":0.1,\"events_per_s\":10.0,\"refused\":0}\n";
        let good = line(0, 0, 1);
        assert_eq!(read_text(&format!("{good}{summary}")).unwrap().count, 1);
        assert_eq!(read_text(&format!("{good}{summary}{}{summary}", line(1, 4, 2))).unwrap().count, 2);
        assert_eq!(read_text(&format!("{good}{}", &summary[..20])).unwrap().count, 1, "torn");
        for other in ["{\"events\":1}\n", "{\"events\":1,\"events_per_s\":1,\"seq\":5}\n", "[1]\n"] {
            assert!(
                matches!(read_text(&format!("{good}{other}")), Err(ReadError::Argument { .. })),
                "{other}"
            );
        }
    }

    /// A file that was never one of acknowledgements must not pass for one that was torn.
    #[test]
    fn a_last_line_of_something_else_is_an_error() {
        for other in ["hello", "17"] {
            assert!(matches!(read_text(other), Err(ReadError::Argument { .. })), "{other}");
            assert!(
                matches!(read_text(&(line(0, 0, 1) + other)), Err(ReadError::Argument { .. })),
                "{other}"
            );
        }
    }

    #[test]
    fn what_is_missing_is_found_before_between_within_and_after() {
        let text: String =
            [(1, 9), (2, 9), (5, 1), (6, 1), (7, 2), (9, 3), (20, 4)].map(|(s, d)| line(0, s, d)).concat();
        let mut acks = read_text(&text).unwrap().shards.remove(&0).unwrap();
        let found = check(&mut acks, &[(2, 7, 1), (7, 8, 2), (8, 10, 5)]);
        assert_eq!(found, [(1, 2, None), (2, 3, Some(1)), (9, 10, Some(5)), (20, 21, None)]);
    }

    /// A line kept twice is no loss; two batches claimed for one record cannot both be right.
    #[test]
    fn overlapping_runs_are_each_held_against_the_log() {
        let order = [(0, 1), (1, 1), (2, 1), (1, 1), (2, 1), (3, 1), (1, 8)];
        let text: String = order.map(|(s, d)| line(0, s, d)).concat();
        let mut acks = read_text(&text).unwrap().shards.remove(&0).unwrap();
        assert_eq!(
            check(&mut acks, &[(0, 2, 1), (2, 3, 2), (3, 4, 1)]),
            [(1, 2, Some(1)), (2, 3, Some(2)), (2, 3, Some(2))]
        );
    }
}
