//! Logs made by hand, byte for byte, so that readers are tested without the engine that they check.
#![allow(dead_code)] // Each test file uses its part.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use hanaper_shards::aligned::AlignedBuf;
use hanaper_shards::batch::{self, Digest, LogId};
use hanaper_shards::clock::Anchor;
use hanaper_shards::io::disk::{Folder, FolderFile};
use hanaper_shards::io::{Access, Disk};
use hanaper_shards::journal::{Identity, Journal};
use hanaper_shards::manifest::{Layout, LogLine, ShardManifest};
use hanaper_shards::merkle::Frontier;
use hanaper_shards::record::{self, Kind};
use hanaper_shards::router::Router;
use hanaper_shards::segment::footer::IndexEntry;
use hanaper_shards::segment::header::{Header, Origin, Predecessor};
use hanaper_shards::segment::paths;
use hanaper_shards::wal::chain::{self, Chain, Place};
use hanaper_shards::wal::prepare::prepare;
use hanaper_shards::wal::seal::{self, SealJob};

pub const LOG: LogId = [0xA1; 16];
/// Wall time of log time 0.
pub const WALL: i64 = 1_700_000_000_000_000_000;

/// One record to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub producer: u32,
    pub producer_seq: u64,
    pub log_time: u64,
    pub key: Vec<u8>,
    pub payload: Vec<u8>,
}

pub fn event(producer: u32, producer_seq: u64, log_time: u64) -> Event {
    Event {
        producer,
        producer_seq,
        log_time,
        key: format!("key-{producer}").into_bytes(),
        payload: format!("event {producer_seq} of producer {producer}").into_bytes(),
    }
}

/// A folder with a log in it.
pub struct Hand {
    temporary: tempfile::TempDir,
    pub disk: Folder,
    pub shards: Vec<HandShard>,
}

impl Hand {
    pub fn new(shards: u32) -> Hand {
        Hand::sized(shards, 256 << 10)
    }

    pub fn sized(shards: u32, segment_bytes: u64) -> Hand {
        let temporary = tempfile::tempdir().unwrap();
        let disk = Folder::create(temporary.path().join("log")).unwrap();
        let lines = [
            LogLine::Genesis { log: LOG, block_bytes: 4096, created: WALL },
            LogLine::Layout(Layout { generation: 0, first_shard: 0, router: Router { seed: 0, shards } }),
            LogLine::Opened { epoch: 1, pid: 1, wall: WALL },
        ];
        let identity = Identity { log: LOG, shard: u32::MAX };
        Journal::create(&disk, paths::LOG_MANIFEST, identity, [9; 16], &lines.map(|l| l.write())).unwrap();
        let shards = (0..shards).map(|shard| HandShard::new(&disk, shard, segment_bytes)).collect();
        Hand { temporary, disk, shards }
    }

    pub fn path(&self) -> &Path {
        self.disk.path()
    }

    pub fn file(&self, shard: u32, index: u64) -> PathBuf {
        self.path().join(paths::segment(shard, index))
    }

    /// A place beside the log's folder.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.temporary.path().join(name)
    }

    /// Gives up all locks, as a killed owner does.
    pub fn die(&mut self) {
        for shard in &mut self.shards {
            if let Some(active) = &mut shard.active {
                active.lock = None;
            }
        }
    }

    pub fn seal_all(&mut self) {
        for shard in &mut self.shards {
            shard.seal();
        }
    }
}

/// One shard that is being written by hand.
pub struct HandShard {
    disk: Folder,
    pub place: Place,
    pub manifest: ShardManifest<Folder>,
    pub chain: Chain,
    pub predecessor: Option<Predecessor>,
    pub active: Option<HandSegment>,
    pub next_index: u64,
    pub segment_bytes: u64,
    /// What the next batch says is durable; all before it if `None`.
    pub durable: Option<u64>,
    pub wall_offset: i64,
    /// The greatest log time so far.
    log_time: u64,
    /// Every batch so far, and the segment that it is in.
    pub batches: Vec<(u64, IndexEntry)>,
    /// Every record so far, with its sequence.
    pub events: Vec<(u64, Event)>,
}

pub struct HandSegment {
    pub header: Header,
    pub offset: u64,
    pub batches: Vec<IndexEntry>,
    file: FolderFile,
    lock: Option<FolderFile>,
}

impl HandShard {
    fn new(disk: &Folder, shard: u32, segment_bytes: u64) -> HandShard {
        let place = Place { log: LOG, generation: 0, shard };
        HandShard {
            disk: disk.clone(),
            place,
            manifest: ShardManifest::open(disk, place, [10 + shard as u8; 16], false).unwrap(),
            chain: Chain::START,
            predecessor: None,
            active: None,
            next_index: 0,
            segment_bytes,
            durable: None,
            wall_offset: WALL,
            log_time: 0,
            batches: Vec::new(),
            events: Vec::new(),
        }
    }

    /// The tree of all batches so far.
    fn tree(&self) -> Frontier {
        let mut tree = Frontier::new();
        let entries: BTreeMap<u64, IndexEntry> = self.batches.iter().map(|(_, e)| (e.number, *e)).collect();
        chain::grow(&mut tree, &entries.range(..self.chain.number).map(|(_, e)| *e).collect::<Vec<_>>());
        tree
    }

    /// Begins the next segment. What was active stays as it is.
    pub fn begin(&mut self, origin: Origin) {
        let index = self.next_index;
        self.next_index += 1;
        let made =
            prepare(&self.disk, &mut self.manifest, self.place.shard, index, self.segment_bytes, &mut || {
                true
            });
        let prepared = made.unwrap();
        let block = self.disk.block_bytes();
        let mut incarnation = [self.place.shard as u8; 16];
        incarnation[8..].copy_from_slice(&(index + 1).to_le_bytes());
        let header = Header {
            log: self.place.log,
            incarnation,
            generation: self.place.generation,
            shard: self.place.shard,
            index,
            segment_bytes: self.segment_bytes,
            block_bytes: block,
            origin,
            first_batch: self.chain.number,
            first_seq: self.chain.seq,
            durable: self.durable.unwrap_or(self.chain.number),
            predecessor: self.predecessor,
            previous: self.chain.previous,
            epoch: 1,
            wall_ns: WALL,
            log_time: 0,
            carried: Vec::new(),
            tree: self.tree(),
        };
        let mut buf = AlignedBuf::zeroed(block as usize);
        header.write(&mut buf[..block as usize]);
        let file = self.disk.open(&paths::segment(self.place.shard, index), Access::Write).unwrap();
        self.disk.write(&file, 0, &buf[..block as usize]).unwrap();
        self.predecessor = Some(Predecessor { index, incarnation, end: u64::from(block) });
        self.active = Some(HandSegment {
            header,
            offset: u64::from(block),
            batches: Vec::new(),
            file,
            lock: Some(prepared.file),
        });
    }

    /// Writes one batch; begins a segment if there is none, or the active one has no room.
    pub fn batch(&mut self, events: &[Event]) -> Digest {
        let body_bytes: usize =
            events.iter().map(|e| record::encoded_bytes(e.key.len(), e.payload.len())).sum();
        let block = self.disk.block_bytes();
        let placed = batch::placed_bytes(body_bytes, block);
        let room = self.active.as_ref().map_or(0, |a| self.segment_bytes - a.offset);
        if room < (placed + 4 * block as usize) as u64 {
            self.seal();
            self.begin(Origin::Rotation);
        }
        let active = self.active.as_mut().unwrap();
        let mut buf = AlignedBuf::zeroed(placed);
        let seal = record::Seal::new(&active.header.incarnation);
        let mut at = batch::HEADER_BYTES;
        for (i, e) in events.iter().enumerate() {
            let header = record::Header {
                payload_bytes: e.payload.len() as u32,
                key_bytes: e.key.len() as u16,
                kind: if e.producer == 0 { Kind::Control } else { Kind::Data },
                flags: 0,
                producer: e.producer,
                producer_seq: e.producer_seq,
                log_time: e.log_time,
            };
            let into = &mut buf[at..at + header.encoded_bytes()];
            record::write(&header, &e.key, &e.payload, into);
            seal.seal(self.chain.seq + i as u64, into);
            at += header.encoded_bytes();
        }
        let times = || events.iter().map(|e| e.log_time);
        let time_max = times().max().unwrap_or(0);
        self.log_time = self.log_time.max(time_max);
        let log_time = self.log_time;
        let header = batch::Header {
            log: self.place.log,
            incarnation: active.header.incarnation,
            generation: self.place.generation,
            shard: self.place.shard,
            number: self.chain.number,
            first_seq: self.chain.seq,
            count: events.len() as u32,
            body_bytes: body_bytes as u32,
            time_min: times().min().unwrap_or(0),
            time_max,
            durable: self.durable.unwrap_or(self.chain.number),
            offset: active.offset,
            anchor: Anchor {
                log_time,
                wall_ns: self.wall_offset + log_time as i64,
                uncertainty_ns: 0,
                source: 1,
            },
            previous: self.chain.previous,
        };
        let digest = batch::seal(&header, &mut buf[..placed]);
        self.disk.write(&active.file, active.offset, &buf[..placed]).unwrap();
        let entry = IndexEntry::new(active.offset, &header, digest);
        active.batches.push(entry);
        active.offset += placed as u64;
        self.predecessor.as_mut().unwrap().end = active.offset;
        self.batches.push((active.header.index, entry));
        for (i, e) in events.iter().enumerate() {
            self.events.push((self.chain.seq + i as u64, e.clone()));
        }
        self.chain = Chain { number: header.number + 1, seq: header.end_seq(), previous: digest };
        digest
    }

    /// An empty batch: it says only what is durable.
    pub fn stamp(&mut self) {
        self.batch(&[]);
    }

    /// Seals the active segment, if there is one.
    pub fn seal(&mut self) {
        let Some(active) = self.active.take() else { return };
        let job = SealJob {
            end: active.offset,
            cut_end: active.offset,
            header: active.header,
            batches: active.batches,
        };
        seal::seal(&self.disk, &mut self.manifest, &job).unwrap();
    }
}

/// Changes a file at some offset.
pub fn overwrite(path: &Path, offset: u64, change: impl FnOnce(&mut [u8])) {
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes[offset as usize..]);
    std::fs::write(path, bytes).unwrap();
}

/// Small numbers that look random, the same each time.
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}
