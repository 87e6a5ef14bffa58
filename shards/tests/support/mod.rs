//! Builds the files of one shard by hand, batch by batch, as a crash or a hostile hand could have
//! left them, and opens them as the engine does.

#![allow(dead_code)] // Each test program uses its part.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use hanaper_shards::aligned::AlignedBuf;
use hanaper_shards::batch::{self, HEADER_BYTES, Incarnation, LogId, placed_bytes};
use hanaper_shards::clock::Anchor;
use hanaper_shards::io::Disk;
use hanaper_shards::io::disk::{Folder, FolderFile};
use hanaper_shards::journal;
use hanaper_shards::manifest::{ShardLine, ShardManifest};
use hanaper_shards::merkle::Frontier;
use hanaper_shards::record::{self, Kind};
use hanaper_shards::segment::footer::IndexEntry;
use hanaper_shards::segment::header::{Carried, Header, Origin, Predecessor};
use hanaper_shards::segment::paths;
use hanaper_shards::wal::chain::{self, Chain, Examined, Place};
use hanaper_shards::wal::recovery::{self, Begin, RecoveryError, Start};
use hanaper_shards::wal::seal::{self, SealJob};

pub const LOG: LogId = [0x10; 16];
pub const PLACE: Place = Place { log: LOG, generation: 0, shard: 0 };
pub const SEGMENT_BYTES: u64 = 128 << 10;
pub const BLOCK: usize = 4096;

/// A body of three blocks, so that a batch can be torn in its midst.
pub const LONG: usize = 2 * BLOCK + 1000;
/// A batch that fits one block.
pub const SHORT: usize = 100;

/// The folder of one shard.
pub struct Rig {
    dir: tempfile::TempDir,
    pub folder: Folder,
}

impl Rig {
    /// A shard that has its manifest, and no segment.
    pub fn new() -> Rig {
        let dir = tempfile::tempdir().expect("a folder for temporary files");
        let folder = Folder::open(dir.path()).unwrap();
        assert_eq!(folder.block_bytes() as usize, BLOCK, "these tests lay files out for blocks of 4096");
        let rig = Rig { dir, folder };
        drop(rig.manifest());
        rig
    }

    /// With these segments.
    pub fn with(drafts: &[&Draft]) -> Rig {
        let rig = Rig::new();
        drafts.iter().for_each(|d| rig.write(d));
        rig
    }

    pub fn manifest(&self) -> ShardManifest<Folder> {
        ShardManifest::open(&self.folder, PLACE, [0xEE; 16], false).unwrap()
    }

    pub fn path(&self, index: u64) -> PathBuf {
        self.named(&paths::segment(PLACE.shard, index))
    }

    pub fn named(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Puts a segment into the folder, and on record.
    pub fn write(&self, draft: &Draft) {
        std::fs::write(self.path(draft.header.index), &draft.bytes).unwrap();
        self.record(draft.header.index);
    }

    /// A prepared segment that was never begun.
    pub fn spare(&self, index: u64) {
        std::fs::write(self.path(index), vec![0; SEGMENT_BYTES as usize]).unwrap();
        self.record(index);
    }

    fn record(&self, index: u64) {
        let mut manifest = self.manifest();
        if !manifest.state.segments.contains_key(&index) {
            manifest.append(&[ShardLine::Segment { index, bytes: SEGMENT_BYTES }]).unwrap();
        }
    }

    /// Overwrites a piece of a file.
    pub fn poke(&self, index: u64, at: usize, bytes: &[u8]) {
        let file = std::fs::OpenOptions::new().write(true).open(self.path(index)).unwrap();
        file.write_all_at(bytes, at as u64).unwrap();
    }

    /// Flips one bit of a file.
    pub fn flip(&self, index: u64, at: usize) {
        let byte = std::fs::read(self.path(index)).unwrap()[at];
        self.poke(index, at, &[byte ^ 1]);
    }

    /// Seals a segment, as the slow work does.
    pub fn seal(&self, draft: &Draft) {
        let job = SealJob {
            header: draft.header.clone(),
            batches: draft.batches.clone(),
            end: draft.end as u64,
            cut_end: draft.end as u64,
        };
        seal::seal(&self.folder, &mut self.manifest(), &job).unwrap();
    }

    pub fn examine(&self) -> Examined {
        chain::examine(&self.folder, PLACE, &self.manifest().state).unwrap()
    }

    /// Opens the shard for writing. `life` makes the incarnation.
    pub fn recover(&self, life: u8) -> Result<Start<FolderFile>, RecoveryError> {
        let mut manifest = self.manifest();
        let locks = recovery::lock_segments(&self.folder, PLACE.shard, &manifest).unwrap();
        assert!(locks.is_some(), "somebody still holds a segment");
        let examined = chain::examine(&self.folder, PLACE, &manifest.state).unwrap();
        drop(locks);
        let begin = Begin {
            incarnation: [life; 16],
            epoch: u64::from(life),
            wall_ns: 0,
            first_segment_bytes: SEGMENT_BYTES,
        };
        recovery::recover(&self.folder, PLACE, &mut manifest, examined, begin)
    }

    /// All that is in the folder.
    pub fn contents(&self) -> BTreeMap<String, Vec<u8>> {
        let files = self.folder.list().unwrap().into_iter();
        files.map(|e| (e.name.clone(), std::fs::read(self.named(&e.name)).unwrap())).collect()
    }

    /// Puts a file of an earlier [`Rig::contents`] back.
    pub fn restore(&self, name: &str, contents: &BTreeMap<String, Vec<u8>>) {
        std::fs::write(self.named(name), &contents[name]).unwrap();
    }

    /// The manifest without its last lines, if those call segments void: a crash before they were written.
    pub fn forget_void_lines(&self) {
        let name = paths::shard_manifest(PLACE.shard);
        let identity = journal::Identity { log: LOG, shard: PLACE.shard };
        let contents = journal::read(&self.folder, &name, identity).unwrap().unwrap();
        let last = contents.lines.iter().rev().take_while(|line| line.starts_with("void ")).count();
        // One line an entry, one block an entry.
        let file = std::fs::OpenOptions::new().write(true).open(self.named(&name)).unwrap();
        file.write_all_at(&vec![0; last * BLOCK], contents.end - (last * BLOCK) as u64).unwrap();
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.folder.list().unwrap().iter().map(|e| e.bytes).sum()
    }
}

/// A segment as it is written, batch after batch.
#[derive(Clone)]
pub struct Draft {
    pub header: Header,
    pub bytes: Vec<u8>,
    /// Where the next batch goes.
    pub end: usize,
    pub batches: Vec<IndexEntry>,
    /// What the next batch must say.
    pub chain: Chain,
}

impl Draft {
    /// The first segment of the shard.
    pub fn first() -> Draft {
        Draft::begin(0, Origin::Rotation, None, Chain::START, 0, Vec::new(), Frontier::new())
    }

    /// The segment after `self`, begun by a rotation.
    pub fn rotated(&self, durable: u64) -> Draft {
        Draft::begin(
            self.header.index + 1,
            Origin::Rotation,
            Some(self.as_predecessor(self.end)),
            self.chain,
            durable,
            Vec::new(),
            self.tree(self.batches.len()),
        )
    }

    /// The shard's tree after so many batches of this segment.
    pub fn tree(&self, batches: usize) -> Frontier {
        let mut tree = self.header.tree.clone();
        chain::grow(&mut tree, &self.batches[..batches]);
        tree
    }

    /// A segment that a recovery began: it ends `self` after `kept` batches, and carries the next `carried`.
    pub fn recovered(&self, index: u64, kept: usize, carried: usize) -> Draft {
        let chain = kept.checked_sub(1).map_or_else(
            || self.chain_before(),
            |last| {
                let e = &self.batches[last];
                Chain { number: e.number + 1, seq: e.end_seq(), previous: e.digest }
            },
        );
        let taken = &self.batches[kept..kept + carried];
        let ranges = taken.first().map(|first| Carried {
            incarnation: self.header.incarnation,
            first: first.number,
            end: first.number + carried as u64,
        });
        let predecessor = match kept {
            0 => self.header.predecessor,
            _ => Some(self.as_predecessor(self.batches[kept - 1].end(BLOCK as u32) as usize)),
        };
        let mut draft = Draft::begin(
            index,
            Origin::Recovery,
            predecessor,
            chain,
            chain.number,
            ranges.into_iter().collect(),
            self.tree(kept + carried),
        );
        for entry in taken {
            let bytes = self.bytes[entry.offset as usize..entry.end(BLOCK as u32) as usize].to_vec();
            draft.put(&bytes);
        }
        draft
    }

    fn begin(
        index: u64,
        origin: Origin,
        predecessor: Option<Predecessor>,
        chain: Chain,
        durable: u64,
        carried: Vec<Carried>,
        tree: Frontier,
    ) -> Draft {
        let header = Header {
            log: LOG,
            incarnation: incarnation(index),
            generation: PLACE.generation,
            shard: PLACE.shard,
            index,
            segment_bytes: SEGMENT_BYTES,
            block_bytes: BLOCK as u32,
            origin,
            first_batch: chain.number,
            first_seq: chain.seq,
            durable,
            predecessor,
            previous: chain.previous,
            epoch: 1,
            wall_ns: 1_000,
            log_time: 1_000,
            carried,
            tree,
        };
        let mut draft =
            Draft { header, bytes: vec![0; SEGMENT_BYTES as usize], end: BLOCK, batches: Vec::new(), chain };
        draft.write_header();
        draft
    }

    /// After a change to `header`.
    pub fn write_header(&mut self) {
        self.header.write(&mut self.bytes[..BLOCK]);
    }

    fn chain_before(&self) -> Chain {
        Chain { number: self.header.first_batch, seq: self.header.first_seq, previous: self.header.previous }
    }

    pub fn as_predecessor(&self, end: usize) -> Predecessor {
        Predecessor { index: self.header.index, incarnation: self.header.incarnation, end: end as u64 }
    }

    /// One record of `payload_bytes` in a batch of its own.
    pub fn batch(mut self, payload_bytes: usize, durable: u64) -> Draft {
        self.push(payload_bytes, durable);
        self
    }

    pub fn push(&mut self, payload_bytes: usize, durable: u64) {
        let bytes = self.forge(payload_bytes, |h| h.durable = durable);
        self.put(&bytes);
    }

    /// The next batch, but for what `change` alters; digest and checksums are as they should be.
    pub fn forge(&self, payload_bytes: usize, change: impl FnOnce(&mut batch::Header)) -> Vec<u8> {
        let mut header = next_header(&self.header, &self.chain, self.end as u64);
        change(&mut header);
        encode(header, payload_bytes)
    }

    /// Appends an intact batch.
    pub fn put(&mut self, bytes: &[u8]) {
        let batch = batch::open(bytes, BLOCK as u32).unwrap();
        let entry = IndexEntry::new(self.end as u64, &batch.header, batch.digest);
        self.bytes[self.end..self.end + bytes.len()].copy_from_slice(bytes);
        self.end += bytes.len();
        self.chain = Chain { number: entry.number + 1, seq: entry.end_seq(), previous: entry.digest };
        self.batches.push(entry);
    }

    /// Where a batch stands.
    pub fn at(&self, batch: usize) -> usize {
        self.batches[batch].offset as usize
    }

    /// Zeros in place of a range: what never reached the disk.
    pub fn lose(&mut self, range: std::ops::Range<usize>) {
        self.bytes[range].fill(0);
    }

    /// Flips a bit within a batch's body.
    pub fn tear(&mut self, batch: usize) {
        let at = self.at(batch) + HEADER_BYTES + 40;
        self.bytes[at] ^= 1;
    }
}

/// Each segment of a rig has an incarnation of its own.
pub fn incarnation(index: u64) -> Incarnation {
    let mut incarnation = [0xA0; 16];
    incarnation[..8].copy_from_slice(&index.to_le_bytes());
    incarnation
}

/// The header that a shard would write for its next batch of one record.
pub fn next_header(segment: &Header, chain: &Chain, offset: u64) -> batch::Header {
    let log_time = 10_000 + chain.number;
    batch::Header {
        log: segment.log,
        incarnation: segment.incarnation,
        generation: segment.generation,
        shard: segment.shard,
        number: chain.number,
        first_seq: chain.seq,
        count: 1,
        body_bytes: 0,
        time_min: log_time,
        time_max: log_time,
        durable: 0,
        offset,
        anchor: Anchor { log_time, wall_ns: log_time as i64 + 5, uncertainty_ns: 1, source: 1 },
        previous: chain.previous,
    }
}

/// A whole batch with one record, whose payload tells its sequence.
pub fn encode(header: batch::Header, payload_bytes: usize) -> Vec<u8> {
    let body_bytes = record::encoded_bytes(3, payload_bytes);
    let mut bytes = vec![0; placed_bytes(body_bytes, BLOCK as u32)];
    let payload: Vec<u8> =
        header.first_seq.to_le_bytes().iter().copied().cycle().take(payload_bytes).collect();
    let body = &mut bytes[HEADER_BYTES..HEADER_BYTES + body_bytes];
    let fields = record::Header {
        payload_bytes: payload_bytes as u32,
        key_bytes: 3,
        kind: Kind::Data,
        flags: 0,
        producer: 1,
        producer_seq: header.first_seq,
        log_time: header.time_min,
    };
    record::write(&fields, b"key", &payload, body);
    record::Seal::new(&header.incarnation).seal(header.first_seq, body);
    batch::seal(&batch::Header { body_bytes: body_bytes as u32, ..header }, &mut bytes);
    bytes
}

/// Appends one batch to the segment that a recovery began, durably, as a shard does.
pub fn append(rig: &Rig, start: &mut Start<FolderFile>, payload_bytes: usize, durable: u64) -> IndexEntry {
    let active = start.active.as_mut().expect("recovery began a segment");
    let header = batch::Header { durable, ..next_header(&active.header, &start.chain, active.offset) };
    let bytes = encode(header, payload_bytes);
    let mut buf = AlignedBuf::zeroed(bytes.len());
    buf[..bytes.len()].copy_from_slice(&bytes);
    rig.folder.write(&active.file, active.offset, &buf[..bytes.len()]).unwrap();
    rig.folder.sync(&active.file).unwrap();
    let batch = batch::open(&bytes, BLOCK as u32).unwrap();
    let entry = IndexEntry::new(active.offset, &batch.header, batch.digest);
    active.offset += bytes.len() as u64;
    active.batches.push(entry);
    start.chain = Chain { number: entry.number + 1, seq: entry.end_seq(), previous: entry.digest };
    entry
}
