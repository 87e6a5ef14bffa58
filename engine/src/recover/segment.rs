//! Mends one segment file into a new one.
//!
//! Batches that digests prove come out byte for byte where they stood, with zeros in their padding, whatever
//! was in it; what is lost is zeros. The footer is built anew from them: if no batch is lost it is the very
//! footer that the manifest sealed, and the new file can take the old one's place.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use hanaper_shards::aligned::AlignedBuf;
use hanaper_shards::batch::{self, BatchFault, DIGEST_BYTES, HEADER_BYTES, Incarnation};
use hanaper_shards::io::disk::FolderFile;
use hanaper_shards::io::{Access, Disk};
use hanaper_shards::manifest::{Loss, ShardState, hex};
use hanaper_shards::record::{self, Seal};
use hanaper_shards::segment::footer::{self, FooterFault, IndexEntry};
use hanaper_shards::segment::header::{Found, Header};
use hanaper_shards::segment::scan::{Scan, scan};
use hanaper_shards::wal::chain::{self, Chain, Damage, Place, Walk};
use hanaper_shards::wal::sealed;
use hanaper_shards::wal::table::{Action, By};

use super::{Mode, Plan, Step, Who};
use crate::error::ReadError;
use crate::read::disk::ReadOnly;
use crate::read::{self, OwnedRecord};
use crate::words;

/// So many damaged places of one file are worked around.
const DAMAGE_MAX: usize = 1000;

/// Mends a segment file into `output`, which must not exist. Salvaged records go into a text file beside
/// it, one JSON object a line, named like it with `.salvaged` behind.
pub fn segment(input: impl AsRef<Path>, output: impl AsRef<Path>, mode: Mode) -> Result<Plan, ReadError> {
    let (input, output) = (input.as_ref(), output.as_ref());
    let (disk, name) = read::segment_file(input)?;
    let mut salvage_name = output.as_os_str().to_owned();
    salvage_name.push(".salvaged");
    let salvage_file = PathBuf::from(salvage_name);
    for new in [output, &salvage_file] {
        if new.symlink_metadata().is_ok() {
            return Err(ReadError::Refused {
                name: new.display().to_string(),
                why: "it exists already; name a new file".into(),
            });
        }
    }
    let failed = || ReadError::io(input.display().to_string());
    let source = Source { file: disk.open(&name, Access::ReadDirect).map_err(failed())?, disk };
    let mended = source.mend(&name, mode).map_err(|error| error.unwrap_or_else(failed()))?;
    write_new(output, |file| source.copy(&mended, file))
        .map_err(ReadError::io(output.display().to_string()))?;
    if !mended.plan.salvaged.is_empty() {
        write_new(&salvage_file, |file| list(&mended.plan.salvaged, file))
            .map_err(ReadError::io(salvage_file.display().to_string()))?;
    }
    Ok(mended.plan)
}

/// Makes a new file, whole and durable or not at all.
fn write_new(path: &Path, fill: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let done = fill(&mut file).and_then(|()| file.sync_all()).and_then(|()| {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()
    });
    if done.is_err() {
        // What could not be finished must not pass for a mended file.
        let _ = std::fs::remove_file(path);
    }
    done
}

fn list(salvaged: &[OwnedRecord], file: &mut File) -> io::Result<()> {
    let mut out = io::BufWriter::new(file);
    for r in salvaged {
        writeln!(
            out,
            "{{\"shard\":{},\"seq\":{},\"batch\":{},\"log_time\":{},\"producer\":{},\"producer_seq\":{},\"kind\":{},\"key_hex\":\"{}\",\"payload_hex\":\"{}\"}}",
            r.shard,
            r.seq,
            r.batch,
            r.log_time,
            r.producer,
            r.producer_seq,
            r.kind as u8,
            hex(&r.key),
            hex(&r.payload)
        )?;
    }
    out.flush()
}

/// The damaged file.
struct Source {
    disk: ReadOnly,
    file: FolderFile,
}

/// What comes out of it.
struct Mended {
    plan: Plan,
    entries: Vec<IndexEntry>,
    /// Offset after the last batch.
    end: u64,
    /// Offset after the bytes that a recovery had cut off.
    cut_end: u64,
    /// The new footer, if it gets one.
    footer: Option<Vec<u8>>,
    file_bytes: u64,
}

/// Reading failed, or something else did.
enum Failure {
    Io(io::Error),
    Read(ReadError),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Io(error)
    }
}

impl Failure {
    fn unwrap_or_else(self, io: impl FnOnce(io::Error) -> ReadError) -> ReadError {
        match self {
            Failure::Io(error) => io(error),
            Failure::Read(error) => error,
        }
    }
}

impl Source {
    fn mend(&self, name: &str, mode: Mode) -> Result<Mended, Failure> {
        let block = self.disk.block_bytes();
        let mut file_bytes = self.disk.bytes(&self.file)?;
        let mut footer = sealed::read_footer(&self.disk, &self.file, file_bytes)?;
        if footer.is_err() {
            // It may have zeros behind it that were not there when it was sealed.
            let data_end = scan(&self.disk, &self.file, u64::MAX, &mut |_, _| {})?.nonblank_end;
            if let Ok(found) = sealed::read_footer(&self.disk, &self.file, data_end)? {
                (footer, file_bytes) = (Ok(found), data_end);
            }
        }
        let sealed_end = footer.as_ref().ok().map(|(summary, ..)| summary.end);
        let mut found = scan(&self.disk, &self.file, sealed_end.unwrap_or(u64::MAX), &mut |_, _| {})?;
        let padded = self.forgive_padding(&mut found)?;
        let Found::Good(header) = &found.header else {
            return Err(Failure::Read(ReadError::Damaged {
                verdict: "SEGMENT-HEADER",
                place: name.to_owned(),
                meaning: "its header is gone or altered, and without it nothing says what belongs to it"
                    .to_owned(),
            }));
        };
        let mut plan = Plan::default();
        let (walk, losses) =
            self.walk(header, &found, footer.as_ref().ok().map(|(summary, ..)| summary), &mut plan);
        for entry in walk.entries.iter().filter(|e| padded.contains(&e.offset)) {
            plan.steps.push(Step {
                row: "PADDING",
                place: format!(
                    "shard {} batch {} ({name} offset {})",
                    header.shard, entry.number, entry.offset
                ),
                action: "kept, with zeros in its padding".to_owned(),
                why: "its digest holds; there is data behind it, where zeros must be".to_owned(),
                loses: false,
                by: Who::Recover,
            });
        }
        if mode == Mode::Aggressive {
            for (at, loss) in &losses {
                self.salvage(header, &found, &walk.entries, *at, loss, &mut plan)?;
            }
        }
        // A segment that was not sealed keeps its length and gets no footer.
        let was_sealed = match &footer {
            Ok(_) | Err(FooterFault::Damaged) => true,
            Err(FooterFault::Absent) => file_bytes != header.segment_bytes,
        };
        let end = sealed_end.unwrap_or(walk.end);
        if !was_sealed {
            if walk.action == Action::Tail && found.nonblank_end > end {
                plan.steps.push(Step {
                    row: walk.label,
                    place: format!("{name} offset {end}"),
                    action: "left out".to_owned(),
                    why: format!("{} bytes that nothing says were ever durable", found.nonblank_end - end),
                    loses: false,
                    by: Who::Recover,
                });
            }
            return Ok(Mended { plan, entries: walk.entries, end, cut_end: end, footer: None, file_bytes });
        }
        let cut_end = match &footer {
            Ok((summary, ..)) => summary.cut_end,
            Err(_) => {
                // The old footer had an entry for each batch, lost or not.
                let batches = walk.chain.number - header.first_batch;
                let stood =
                    file_bytes.checked_sub(footer::placed_bytes(batches, block)).filter(|&at| at >= end);
                stood.unwrap_or(end).max(end)
            }
        };
        let entire = losses.is_empty() && footer.is_ok();
        if !entire {
            let why = match &footer {
                Ok(_) => "it named batches that are lost".to_owned(),
                Err(fault) => format!("{fault}, in a segment that had been sealed"),
            };
            let action = "built anew from the batches".to_owned();
            let place = name.to_owned();
            plan.steps.push(Step { row: "FOOTER", place, action, why, loses: false, by: Who::Recover });
        }
        let summary = footer::summarise(header, &walk.entries, end, cut_end);
        let (bytes, _) = footer::encode(&summary, &walk.entries, block);
        let file_bytes = cut_end + bytes.len() as u64;
        Ok(Mended { plan, entries: walk.entries, end, cut_end, footer: Some(bytes), file_bytes })
    }

    /// Lets batches count whose digest holds, whatever stands behind it up to the block: they are proven.
    /// Gives their offsets.
    fn forgive_padding(&self, found: &mut Scan) -> io::Result<Vec<u64>> {
        let block = self.disk.block_bytes();
        let damaged: Vec<(u64, u64)> = found
            .seen
            .iter()
            .filter(|seen| seen.digest == Err(BatchFault::Padding))
            .map(|seen| (seen.offset, seen.end(block)))
            .collect();
        let mut forgiven = Vec::new();
        for (at, end) in damaged {
            // It may lie in the body of one that was forgiven before.
            let Some(i) = found.seen.iter().position(|seen| seen.offset == at) else { continue };
            let mut buf = AlignedBuf::zeroed((end - at) as usize);
            let bytes = (end - at) as usize;
            self.disk.read(&self.file, at, &mut buf[..bytes])?;
            let proven = HEADER_BYTES + found.seen[i].header.body_bytes as usize + DIGEST_BYTES;
            buf[proven..bytes].fill(0);
            let Ok(whole) = batch::open(&buf[..bytes], block) else { continue };
            found.seen[i].digest = Ok(whole.digest);
            // An intact batch hides what lies in its body.
            found.seen.retain(|seen| seen.offset <= at || seen.offset >= end);
            for range in found.loose.iter_mut().filter(|range| range.0 >= at && range.0 < end) {
                *range = (end, range.1.max(end));
            }
            found.loose.retain(|&(from, to)| from < to);
            found.nonblank_end = found.nonblank_end.max(end);
            forgiven.push(at);
        }
        Ok(forgiven)
    }

    /// Walks the segment around all that is damaged. Gives the losses, each with the offset where it begins.
    fn walk(
        &self,
        header: &Header,
        found: &Scan,
        summary: Option<&footer::Summary>,
        plan: &mut Plan,
    ) -> (Walk, Vec<(u64, Loss)>) {
        let place = Place { log: header.log, generation: header.generation, shard: header.shard };
        let start = Chain { number: header.first_batch, seq: header.first_seq, previous: header.previous };
        let ours = found.seen.iter().filter(|s| header.admits(&s.header.incarnation, s.header.number));
        let stamped = ours.map(|s| s.header.durable).max().unwrap_or(0);
        let watermark = summary.map_or(stamped, |s| s.end_batch).max(header.durable);
        let named_end = summary.map(|s| (s.end, By::Seal));
        let mut state = ShardState::default();
        let mut losses = Vec::new();
        loop {
            let block = self.disk.block_bytes();
            let walk = chain::walk(block, place, header, found, start, watermark, named_end, &state);
            let Some(damage) = &walk.damage else { return (walk, losses) };
            let rest = summary
                .map(|s| Loss { batches: walk.chain.number..s.end_batch, seqs: walk.chain.seq..s.end_seq });
            let loss =
                damage.loss.clone().or(rest).filter(|l| !l.batches.is_empty() && l.seqs.start <= l.seqs.end);
            plan.steps.push(step(damage, loss.as_ref()));
            let ended = damage.loss.is_none() || losses.len() >= DAMAGE_MAX;
            if let Some(loss) = loss {
                losses.push((walk.end, loss.clone()));
                state.losses.push(loss);
            }
            if ended {
                return (walk, losses);
            }
        }
    }

    /// Looks for single records where batches are lost.
    fn salvage(
        &self,
        header: &Header,
        found: &Scan,
        kept: &[IndexEntry],
        at: u64,
        loss: &Loss,
        plan: &mut Plan,
    ) -> io::Result<()> {
        let next = kept.iter().find(|e| e.offset > at);
        let until = next.map_or(found.nonblank_end, |e| e.offset);
        let mut buf = AlignedBuf::zeroed(until.saturating_sub(at) as usize);
        let filled = self.disk.read(&self.file, at, &mut buf)?;
        let bytes = &buf[..filled.min(until.saturating_sub(at) as usize)];
        // The batch's own header may be good still; else it was most likely born here.
        let seen = found.at(at).map(|s| &s.header).filter(|h| h.number == loss.batches.start);
        let incarnation = seen.map_or(header.incarnation, |h| h.incarnation);
        let offset = seen.map(|h| h.wall_offset_ns()).or(next.map(|e| e.wall_offset_ns)).unwrap_or(0);
        for (seq, record) in single_records(&incarnation, bytes, loss) {
            plan.steps.push(Step {
                row: "SALVAGED",
                place: format!("shard {} record {seq}", header.shard),
                action: "written beside the new segment".to_owned(),
                why: "its own checksum holds; that of its batch does not".to_owned(),
                loses: false,
                by: Who::Recover,
            });
            let h = record.header;
            plan.salvaged.push(OwnedRecord {
                shard: header.shard,
                seq,
                batch: loss.batches.start,
                log_time: h.log_time,
                wall_ns: (h.log_time as i64).wrapping_add(offset),
                kind: h.kind,
                flags: h.flags,
                producer: h.producer,
                producer_seq: h.producer_seq,
                key: record.key.to_vec(),
                payload: record.payload.to_vec(),
            });
        }
        Ok(())
    }

    fn copy(&self, mended: &Mended, out: &mut File) -> io::Result<()> {
        out.set_len(mended.file_bytes)?;
        let block = u64::from(self.disk.block_bytes());
        let mut ranges = vec![(0, block, block)];
        // What is behind a digest is zeros, as it is in a new file.
        let proven = |e: &IndexEntry| (HEADER_BYTES + e.body_bytes as usize + DIGEST_BYTES) as u64;
        ranges.extend(mended.entries.iter().map(|e| (e.offset, e.end(block as u32), e.offset + proven(e))));
        ranges.push((mended.end, mended.cut_end, mended.cut_end));
        let mut buf = AlignedBuf::zeroed(1 << 20);
        for (from, to, kept_to) in ranges {
            let mut at = from;
            while at < to {
                let piece = (buf.len() as u64).min(to - at) as usize;
                let filled = self.disk.read(&self.file, at, &mut buf[..piece])?;
                if filled < piece {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the segment became shorter while it was read",
                    ));
                }
                let kept = (piece as u64).min(kept_to.saturating_sub(at)) as usize;
                out.write_all_at(&buf[..kept], at)?;
                at += piece as u64;
            }
        }
        if let Some(footer) = &mended.footer {
            out.write_all_at(footer, mended.cut_end)?;
        }
        Ok(())
    }
}

fn step(damage: &Damage, loss: Option<&Loss>) -> Step {
    Step {
        row: damage.verdict,
        place: damage.place.clone(),
        action: match loss {
            Some(l) => format!(
                "left out, with zeros in their place: {}, {}",
                words::span("batch", &l.batches),
                words::records(&l.seqs)
            ),
            None => "all behind it is left out".to_owned(),
        },
        why: words::meaning(damage),
        loses: true,
        by: Who::Recover,
    }
}

/// Records whose checksum holds, somewhere in these bytes, with rising sequences out of the loss.
fn single_records<'a>(
    incarnation: &Incarnation,
    bytes: &'a [u8],
    loss: &Loss,
) -> Vec<(u64, record::Record<'a>)> {
    let seal = Seal::new(incarnation);
    let mut out = Vec::new();
    let mut at = HEADER_BYTES;
    let mut next_seq = loss.seqs.start;
    let mut skipped = 0u64;
    while at + record::HEADER_BYTES <= bytes.len() && next_seq < loss.seqs.end {
        // A record takes 32 bytes at least, so only so many can have been passed over.
        let last = (next_seq + skipped / record::HEADER_BYTES as u64).min(loss.seqs.end - 1);
        let plausible = record::split(&bytes[at..]).is_ok();
        let hit = (next_seq..=last)
            .filter(|_| plausible)
            .find_map(|seq| seal.open(seq, &bytes[at..]).ok().map(|(record, length)| (seq, record, length)));
        match hit {
            Some((seq, record, length)) => {
                out.push((seq, record));
                next_seq = seq + 1;
                skipped = 0;
                at += length;
            }
            None => {
                at += 8;
                skipped += 8;
            }
        }
    }
    out
}
