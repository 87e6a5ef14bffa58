//! What the engine does around a shard, on the simulated disk: the log's manifest, recovery under
//! the locks, and reading everything back.

use std::io;

use hanaper_shards::aligned::AlignedBuf;
use hanaper_shards::batch;
use hanaper_shards::io::sim::SimFile;
use hanaper_shards::io::{Access, Disk};
use hanaper_shards::journal::{self, Journal, JournalError};
use hanaper_shards::manifest::{Expected, Layout, LogLine, LogState, SegmentState, ShardManifest};
use hanaper_shards::record::Seal;
use hanaper_shards::router::Router;
use hanaper_shards::segment::footer::IndexEntry;
use hanaper_shards::segment::paths;
use hanaper_shards::wal::chain::{self, Examined, Place, UnusedKind};
use hanaper_shards::wal::open::{Looked, Opened, Opening};
use hanaper_shards::wal::prepare::Prepared;
use hanaper_shards::wal::recovery::{Begin, RecoveryError};
use hanaper_shards::wal::sealed;

use crate::model::{FoundBatch, FoundRecord};
use crate::sim::mutant::{Mutant, TestDisk};
use crate::sim::rng::Rng;

/// Why an opening came to nothing.
#[derive(Debug)]
pub enum Failed {
    /// A killed owner's writes are still in flight.
    Locked,
    /// No room for the segment that a recovery needs.
    NoSpace(String),
    /// Anything else.
    Other(String),
}

impl Failed {
    fn other(error: impl std::fmt::Display) -> Failed {
        Failed::Other(error.to_string())
    }
}

/// Opens the log's manifest, or makes it.
pub fn open_log(
    disk: &TestDisk,
    shards: u32,
    rng: &mut Rng,
) -> Result<(Journal<TestDisk>, LogState), Failed> {
    let identity = journal::Identity { log: [0; 16], shard: u32::MAX };
    let found = match Journal::open(disk, paths::LOG_MANIFEST, identity) {
        Err(JournalError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => None,
        other => other.map_err(Failed::other)?,
    };
    if let Some((journal, contents)) = found {
        let state = LogState::from_lines(&contents.lines).map_err(Failed::other)?;
        return Ok((journal, state));
    }
    let log = rng.identity();
    let layout = Layout { generation: 0, first_shard: 0, router: Router { seed: rng.any(), shards } };
    let lines =
        [LogLine::Genesis { log, block_bytes: disk.block_bytes(), created: 0 }, LogLine::Layout(layout)];
    let texts: Vec<String> = lines.iter().map(LogLine::write).collect();
    let identity = journal::Identity { log, shard: u32::MAX };
    let journal = Journal::create(disk, paths::LOG_MANIFEST, identity, rng.identity(), &texts)
        .map_err(Failed::other)?;
    let mut state = LogState::default();
    lines.iter().for_each(|line| state.apply(line));
    Ok((journal, state))
}

/// Looks at one shard, as the engine does it.
pub fn look_at(
    disk: &TestDisk,
    place: Place,
    expected: Expected,
    mutant: Mutant,
    rng: &mut Rng,
) -> Result<Looked<TestDisk>, Failed> {
    let mut opening = Opening::begin(disk, place, expected, rng.identity()).map_err(Failed::other)?;
    if mutant != Mutant::NoLock && !opening.lock().map_err(Failed::other)? {
        return Err(Failed::Locked);
    }
    let entries = disk.list().map_err(Failed::other)?;
    let mut looked = opening.look(&entries).map_err(Failed::other)?;
    if let Some(damage) = looked.examined.damage.first() {
        return Err(Failed::Other(format!("{} {}: {}", damage.verdict, damage.place, damage.meaning)));
    }
    err(mutant, &mut looked.examined);
    Ok(looked)
}

/// Recovers it.
pub fn recover(looked: Looked<TestDisk>, begin: Begin) -> Result<Opened<TestDisk>, Failed> {
    looked.recover(begin).map_err(|error| match error {
        RecoveryError::Prepare(error) if error.is_no_space() => Failed::NoSpace(error.to_string()),
        other => Failed::other(other),
    })
}

/// The planted mistakes of recovery.
fn err(mutant: Mutant, examined: &mut Examined) {
    match mutant {
        Mutant::TrustsTheCache => examined.watermark = examined.chain.number,
        Mutant::DropsLastBatch => {
            if let Some(last) = examined.segments.last_mut().and_then(|s| s.batches.pop()) {
                let before = examined.segments.iter().flat_map(|s| &s.batches).last();
                let base = examined.base_chain.previous;
                examined.chain.previous = before.map_or(base, |b| b.digest);
                examined.chain.number = last.number;
                examined.chain.seq = last.first_seq;
                examined.watermark = examined.watermark.min(last.number);
            }
        }
        _ => {}
    }
}

/// Fills a spare with an old life of the shard, as recycling would leave it: its first block is blank,
/// behind it stand batches that once were good. Gives `false` if there is no old segment to take.
pub fn prepare_recycled(
    disk: &TestDisk,
    manifest: &ShardManifest<TestDisk>,
    shard: u32,
    spare: &Prepared<SimFile>,
    rng: &mut Rng,
) -> io::Result<bool> {
    let old: Vec<u64> = manifest
        .state
        .segments
        .iter()
        .filter_map(|(&i, s)| matches!(s, SegmentState::Sealed(_)).then_some(i))
        .collect();
    if old.is_empty() {
        return Ok(false);
    }
    let from = disk.open(&paths::segment(shard, rng.pick(&old)), Access::Read)?;
    let block = disk.block_bytes() as usize;
    let mut content = AlignedBuf::zeroed(spare.bytes as usize);
    disk.read(&from, 0, &mut content)?;
    content[..block].fill(0);
    disk.write(&spare.file, 0, &content[..spare.bytes as usize])?;
    disk.sync(&spare.file)?;
    Ok(true)
}

/// Whether the shard has a spare segment of this length at least.
pub fn has_spare(disk: &TestDisk, place: Place, bytes: u64) -> bool {
    let Ok(manifest) = ShardManifest::read(disk, place) else { return false };
    chain::examine(disk, place, &manifest)
        .is_ok_and(|e| e.unused.iter().any(|u| u.what == UnusedKind::Spare && u.file_bytes >= bytes))
}

/// Reads all batches of a shard: the sealed segments by their footers, the rest by the chain.
pub fn read_back(disk: &TestDisk, place: Place) -> Result<(Vec<FoundBatch>, Examined), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let manifest = ShardManifest::read(disk, place).map_err(|e| text(&e))?;
    let mut out = Vec::new();
    for (&index, state) in &manifest.segments {
        let SegmentState::Sealed(sealed) = state else { continue };
        let (_, entries) = sealed::read_sealed(disk, place, index, sealed)
            .map_err(|e| text(&e))?
            .map_err(|damage| format!("sealed segment {index}: {}: {}", damage.verdict, damage.meaning))?;
        read_batches(disk, place, index, &entries, &mut out)?;
    }
    let examined = chain::examine(disk, place, &manifest).map_err(|e| text(&e))?;
    if let Some(damage) = examined.damage.first() {
        return Err(format!("after recovery: {} {}: {}", damage.verdict, damage.place, damage.meaning));
    }
    for segment in &examined.segments {
        read_batches(disk, place, segment.index, &segment.batches, &mut out)?;
    }
    Ok((out, examined))
}

fn read_batches(
    disk: &TestDisk,
    place: Place,
    index: u64,
    entries: &[IndexEntry],
    out: &mut Vec<FoundBatch>,
) -> Result<(), String> {
    let at = |what: &dyn std::fmt::Display| format!("segment {index}: {what}");
    let file = disk.open(&paths::segment(place.shard, index), Access::ReadDirect).map_err(|e| at(&e))?;
    let bytes = disk.bytes(&file).map_err(|e| at(&e))? as usize;
    let mut content = AlignedBuf::zeroed(bytes);
    disk.read(&file, 0, &mut content).map_err(|e| at(&e))?;
    for entry in entries {
        let batch =
            batch::open(&content[entry.offset as usize..bytes], disk.block_bytes()).map_err(|e| at(&e))?;
        if batch.digest != entry.digest {
            return Err(at(&format!("batch {} is not the one that the index names", entry.number)));
        }
        let seal = Seal::new(&batch.header.incarnation);
        let mut records = Vec::with_capacity(batch.header.count as usize);
        let mut body = batch.body;
        while !body.is_empty() {
            let seq = batch.header.first_seq + records.len() as u64;
            let (record, length) = seal.open(seq, body).map_err(|e| at(&e))?;
            records.push(FoundRecord {
                kind: record.header.kind,
                producer: record.header.producer,
                producer_seq: record.header.producer_seq,
                log_time: record.header.log_time,
                key: record.key.to_vec(),
                payload: record.payload.to_vec(),
            });
            body = &body[length..];
        }
        if records.len() as u32 != batch.header.count {
            return Err(at(&format!("batch {} counts its records wrong", entry.number)));
        }
        out.push(FoundBatch {
            number: batch.header.number,
            first_seq: batch.header.first_seq,
            digest: batch.digest,
            previous: batch.header.previous,
            records,
        });
    }
    Ok(())
}
