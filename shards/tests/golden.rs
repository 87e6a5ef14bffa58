//! A log of format version 1, written once and committed: it must stay readable as it is.
//!
//! The format is not declared stable yet. When it changes on purpose, write the log anew:
//! `cargo test -p hanaper-shards --test golden -- --ignored write_the_golden_log`
//!
//! Shard 0 was closed: two sealed segments. Shard 1 crashed twice: a segment with a torn tail, sealed, with cut
//! bytes; a void one; and a recovery's segment that carries batches and is still written.

mod support;

use std::fmt::Write;
use std::path::PathBuf;

use hanaper_shards::aligned::AlignedBuf;
use hanaper_shards::batch;
use hanaper_shards::io::disk::{Folder, FolderFile};
use hanaper_shards::io::{Access, Disk};
use hanaper_shards::journal::{self, Identity, Journal};
use hanaper_shards::manifest::{
    Fenced, Layout, LogLine, LogState, SegmentState, ShardLine, ShardManifest, ShardState, hex,
};
use hanaper_shards::record::{self, Kind};
use hanaper_shards::router::Router;
use hanaper_shards::segment::footer::IndexEntry;
use hanaper_shards::segment::paths;
use hanaper_shards::wal::chain::{self, Chain, Place};
use hanaper_shards::wal::recovery::{self, Begin, RecoveryError, Start};
use hanaper_shards::wal::seal::{self, SealJob};
use hanaper_shards::wal::sealed;
use support::{BLOCK, LOG, next_header};

/// As small as they can be: most of a segment that is still written is zeros.
const SEGMENT_BYTES: u64 = 40 << 10;

fn place(shard: u32) -> Place {
    Place { log: LOG, generation: 0, shard }
}

fn golden() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/log")
}

/// What the log holds, one line a record: what must be read.
fn listing() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/records.txt")
}

/// Key and payload of one event: all lengths of padding, no key, the longest key, no payload, a large one.
fn event(shard: u32, seq: u64) -> (Vec<u8>, Vec<u8>) {
    let key = match seq % 5 {
        0 => Vec::new(),
        1 => vec![b'k'; record::KEY_BYTES_MAX],
        n => format!("account-{n}").into_bytes(),
    };
    let length = match seq % 7 {
        0 => 0,
        6 => 3000,
        n => n * 3,
    };
    let payload = (0..length).map(|i| (i * 7 + seq + u64::from(shard)) as u8).collect();
    (key, payload)
}

/// A batch with so many events, and a control record before them.
fn encode(header: batch::Header, count: u64) -> Vec<u8> {
    let seal = record::Seal::new(&header.incarnation);
    let mut body = Vec::new();
    for i in 0..count {
        let seq = header.first_seq + i;
        let control = i == 0 && header.number == 0;
        let (key, payload) = match control {
            true => (Vec::new(), b"opened epoch=1 pid=1 shards=2 primitive=none".to_vec()),
            false => event(header.shard, seq),
        };
        let fields = record::Header {
            payload_bytes: payload.len() as u32,
            key_bytes: key.len() as u16,
            kind: if control { Kind::Control } else { Kind::Data },
            flags: if seq == 9 { record::FLAG_UNTERMINATED } else { 0 },
            producer: u32::from(!control),
            producer_seq: seq,
            log_time: header.time_min + i,
        };
        let mut bytes = vec![0; fields.encoded_bytes()];
        record::write(&fields, &key, &payload, &mut bytes);
        seal.seal(seq, &mut bytes);
        body.extend(bytes);
    }
    let header = batch::Header {
        count: count as u32,
        body_bytes: body.len() as u32,
        time_max: header.time_min + count.saturating_sub(1),
        ..header
    };
    // A stamp holds no records, and so no times.
    let header = if count == 0 { batch::Header { time_min: 0, time_max: 0, ..header } } else { header };
    let mut bytes = vec![0; batch::placed_bytes(body.len(), BLOCK as u32)];
    bytes[batch::HEADER_BYTES..batch::HEADER_BYTES + body.len()].copy_from_slice(&body);
    batch::seal(&header, &mut bytes);
    bytes
}

/// A shard that is being written, without threads, clock or chance.
struct Writer {
    folder: Folder,
    place: Place,
    manifest: ShardManifest<Folder>,
    start: Start<FolderFile>,
    life: u8,
    epoch: u64,
}

impl Writer {
    fn open(folder: &Folder, shard: u32, life: u8, epoch: u64) -> Writer {
        let place = place(shard);
        let mut manifest = ShardManifest::open(folder, place, [0xB0 + shard as u8; 16], false).unwrap();
        let examined = chain::examine(folder, place, &manifest.state).unwrap();
        let begin = Begin {
            incarnation: [life; 16],
            epoch,
            wall_ns: 1_700_000_000_000_000_000,
            first_segment_bytes: SEGMENT_BYTES,
        };
        let start = recovery::recover(folder, place, &mut manifest, examined, begin).unwrap();
        Writer { folder: folder.clone(), place, manifest, start, life, epoch }
    }

    /// A segment that is ready.
    fn spare(&mut self) -> (u64, FolderFile) {
        let index = self.start.next_index;
        self.start.next_index += 1;
        let file = self.folder.create(&paths::segment(self.place.shard, index)).unwrap();
        self.folder.allocate(&file, SEGMENT_BYTES).unwrap();
        self.manifest.append(&[ShardLine::Segment { index, bytes: SEGMENT_BYTES }]).unwrap();
        (index, file)
    }

    /// Begins a segment, as a rotation does, when so many batches were durable; the one before is sealed.
    fn rotate(&mut self, durable: u64) {
        if let Some(old) = self.start.active.take() {
            self.start.predecessor = Some(hanaper_shards::segment::header::Predecessor {
                index: old.header.index,
                incarnation: old.header.incarnation,
                end: old.offset,
            });
            let job =
                SealJob { end: old.offset, cut_end: old.offset, header: old.header, batches: old.batches };
            seal::seal(&self.folder, &mut self.manifest, &job).unwrap();
        }
        let (index, file) = self.spare();
        self.life += 1;
        let header = hanaper_shards::segment::header::Header {
            log: LOG,
            incarnation: [self.life; 16],
            generation: 0,
            shard: self.place.shard,
            index,
            segment_bytes: SEGMENT_BYTES,
            block_bytes: BLOCK as u32,
            origin: hanaper_shards::segment::header::Origin::Rotation,
            first_batch: self.start.chain.number,
            first_seq: self.start.chain.seq,
            durable,
            predecessor: self.start.predecessor,
            previous: self.start.chain.previous,
            epoch: self.epoch,
            wall_ns: 1_700_000_000_000_000_000,
            log_time: 1_700_000_000_000_000_000,
            carried: Vec::new(),
            tree: self.start.tree.clone(),
        };
        let mut block = AlignedBuf::zeroed(BLOCK);
        header.write(&mut block[..BLOCK]);
        self.folder.write(&file, 0, &block[..BLOCK]).unwrap();
        self.start.active = Some(recovery::Active {
            file,
            header,
            offset: BLOCK as u64,
            batches: Vec::new(),
            bytes: SEGMENT_BYTES,
        });
    }

    /// Appends a batch of so many records; the batch before it is known to be durable up to `durable`.
    fn batch(&mut self, count: u64, durable: u64) {
        let active = self.start.active.as_mut().unwrap();
        let mut header = next_header(&active.header, &self.start.chain, active.offset);
        header.durable = durable;
        header.time_min = 1_700_000_000_000_000_000 + 1000 * header.number;
        header.anchor.log_time = header.time_min;
        header.anchor.wall_ns = header.time_min as i64 + 77;
        let bytes = encode(header, count);
        let mut buf = AlignedBuf::zeroed(bytes.len());
        buf[..bytes.len()].copy_from_slice(&bytes);
        self.folder.write(&active.file, active.offset, &buf[..bytes.len()]).unwrap();
        let batch = batch::open(&bytes, BLOCK as u32).unwrap();
        let entry = IndexEntry::new(active.offset, &batch.header, batch.digest);
        active.offset += bytes.len() as u64;
        active.batches.push(entry);
        chain::grow(&mut self.start.tree, &[entry]);
        self.start.chain = Chain { number: entry.number + 1, seq: entry.end_seq(), previous: entry.digest };
    }

    fn seal_old(&mut self) {
        for job in std::mem::take(&mut self.start.to_seal) {
            seal::seal(&self.folder, &mut self.manifest, &job).unwrap();
        }
    }
}

/// Writes the committed log anew. Only for a change of the format.
#[test]
#[ignore = "overwrites the committed log"]
fn write_the_golden_log() {
    let path = golden();
    let _gone = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    let folder = Folder::open(&path).unwrap();

    let identity = Identity { log: LOG, shard: u32::MAX };
    let layout = Layout { generation: 0, first_shard: 0, router: Router { seed: 7, shards: 2 } };
    let first = [
        LogLine::Genesis { log: LOG, block_bytes: BLOCK as u32, created: 1_700_000_000_000_000_000 },
        LogLine::Layout(layout),
    ];
    let texts: Vec<String> = first.iter().map(LogLine::write).collect();
    let mut log = Journal::create(&folder, paths::LOG_MANIFEST, identity, [0xAA; 16], &texts).unwrap();
    let mut say = |lines: &[LogLine]| {
        let texts: Vec<String> = lines.iter().map(LogLine::write).collect();
        log.append(&texts).unwrap();
    };
    say(&[LogLine::Opened { epoch: 1, pid: 1, wall: 1_700_000_000_000_000_000 }]);

    let mut closed = Writer::open(&folder, 0, 0x10, 1);
    closed.rotate(0);
    for (count, durable) in [(1, 0), (7, 0), (3, 1), (0, 3)] {
        closed.batch(count, durable);
    }
    closed.rotate(4);
    for (count, durable) in [(2, 4), (1, 5), (0, 6)] {
        closed.batch(count, durable);
    }
    let active = closed.start.active.take().unwrap();
    let job = SealJob {
        end: active.offset,
        cut_end: active.offset,
        header: active.header,
        batches: active.batches,
    };
    seal::seal(&folder, &mut closed.manifest, &job).unwrap();
    say(&[
        LogLine::Ended { shard: 0, chain: closed.start.chain },
        LogLine::Ended { shard: 1, chain: Chain::START },
        LogLine::Closed { epoch: 1, wall: 1_700_000_000_000_000_001, epochs: 0 },
    ]);
    say(&[LogLine::Opened { epoch: 2, pid: 2, wall: 1_700_000_000_000_000_002 }]);

    // The first life: batch 3 is torn, and the segment after it was begun all the same.
    let mut first = Writer::open(&folder, 1, 0x20, 2);
    first.rotate(0);
    for (count, durable) in [(1, 0), (4, 1), (2, 1), (7, 1)] {
        first.batch(count, durable);
    }
    let torn = first.start.active.as_ref().unwrap().batches[3].offset;
    let old = first.start.active.take().unwrap();
    first.start.predecessor = Some(hanaper_shards::segment::header::Predecessor {
        index: old.header.index,
        incarnation: old.header.incarnation,
        end: old.offset,
    });
    first.rotate(1);
    first.batch(1, 1);
    let zeros = AlignedBuf::zeroed(BLOCK);
    folder.write(&old.file, torn + BLOCK as u64, &zeros[..BLOCK]).unwrap();
    first.spare();
    drop((first, old));
    say(&[LogLine::Fenced(Fenced { shard: 1, op: "fdatasync".into(), errno: 5, offset: 4096 })]);
    say(&[LogLine::Opened { epoch: 3, pid: 3, wall: 1_700_000_000_000_000_003 }]);
    // The second life recovers, seals the old segment with its cut bytes, goes on, and crashes.
    let mut second = Writer::open(&folder, 1, 0x30, 3);
    second.seal_old();
    for (count, durable) in [(3, 3), (1, 4), (0, 5)] {
        second.batch(count, durable);
    }
    drop(second);

    // Room that was allocated ahead is not kept in the repository.
    for shard in [None, Some(0), Some(1)] {
        let name = shard.map_or(paths::LOG_MANIFEST.to_owned(), paths::shard_manifest);
        let identity = Identity { log: LOG, shard: shard.unwrap_or(u32::MAX) };
        let end = journal::read(&folder, &name, identity).unwrap().unwrap().end;
        std::fs::File::options().write(true).open(path.join(name)).unwrap().set_len(end).unwrap();
    }
    std::fs::write(listing(), records(&folder)).unwrap();
}

/// One line a record: shard, sequence, batch, its digest, kind, log time, key and payload by their lengths and
/// digest.
fn records(folder: &Folder) -> String {
    let mut out = String::new();
    for shard in [0, 1] {
        for (number, bytes) in batches(folder, shard) {
            let batch = batch::open(&bytes, BLOCK as u32).unwrap();
            assert_eq!(batch.header.number, number);
            let seal = record::Seal::new(&batch.header.incarnation);
            let mut body = batch.body;
            let mut seq = batch.header.first_seq;
            if body.is_empty() {
                writeln!(out, "{shard} stamp batch={number} digest={}", hex(&batch.digest)).unwrap();
            }
            while !body.is_empty() {
                let (record, length) = seal.open(seq, body).unwrap();
                let h = record.header;
                let content = blake3::Hasher::new().update(record.key).update(record.payload).finalize();
                writeln!(
                    out,
                    "{shard} seq={seq} batch={number} digest={} {:?} flags={} producer={} producer_seq={} log_time={} key={} payload={} content={}",
                    hex(&batch.digest), h.kind, h.flags, h.producer, h.producer_seq, h.log_time, h.key_bytes, h.payload_bytes,
                    hex(&content.as_bytes()[..8])
                )
                .unwrap();
                if h.kind == Kind::Data {
                    assert_eq!(
                        (record.key.to_vec(), record.payload.to_vec()),
                        event(shard, seq),
                        "{shard} {seq}"
                    );
                }
                seq += 1;
                body = &body[length..];
            }
            assert_eq!(seq, batch.header.end_seq());
        }
    }
    out
}

/// Every batch of a shard that counts, by number, as it stands on disk.
fn batches(folder: &Folder, shard: u32) -> std::collections::BTreeMap<u64, Vec<u8>> {
    let place = place(shard);
    let manifest = ShardManifest::read(folder, place).unwrap();
    let mut out = std::collections::BTreeMap::new();
    let mut take = |index: u64, entries: &[IndexEntry]| {
        let file = folder.open(&paths::segment(shard, index), Access::Read).unwrap();
        for entry in entries {
            let mut buf = AlignedBuf::zeroed((entry.end(BLOCK as u32) - entry.offset) as usize);
            folder.read(&file, entry.offset, &mut buf).unwrap();
            out.insert(entry.number, buf.to_vec());
        }
    };
    for (&index, state) in &manifest.segments {
        if let SegmentState::Sealed(sealed) = state {
            let (_, entries) = sealed::read_sealed(folder, place, index, sealed).unwrap().unwrap();
            take(index, &entries);
        }
    }
    let examined = chain::examine(folder, place, &manifest).unwrap();
    assert!(examined.damage.is_empty(), "{:?}", examined.damage);
    for segment in &examined.segments {
        take(segment.index, &segment.batches);
    }
    out
}

/// A copy, since whoever reads must not be able to alter what is committed.
fn copy() -> (tempfile::TempDir, Folder) {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(golden()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let folder = Folder::open(dir.path()).unwrap();
    (dir, folder)
}

#[test]
fn the_golden_log_reads_as_it_was_written() {
    let (_dir, folder) = copy();
    let expected = std::fs::read_to_string(listing()).unwrap();
    let found = records(&folder);
    for (found, expected) in found.lines().zip(expected.lines()) {
        assert_eq!(found, expected);
    }
    assert_eq!(found.lines().count(), expected.lines().count());
    assert!(expected.lines().count() > 25);
}

#[test]
fn the_golden_manifests_read_as_they_were_written() {
    let (_dir, folder) = copy();
    let identity = Identity { log: [0; 16], shard: u32::MAX };
    let lines = journal::read(&folder, paths::LOG_MANIFEST, identity).unwrap().unwrap().lines;
    assert_eq!(
        lines,
        [
            "genesis version=1 log=10101010101010101010101010101010 digest=blake3 block=4096 created=1700000000000000000",
            "layout generation=0 first_shard=0 shards=2 seed=7 reduction=multiply_shift",
            "opened epoch=1 pid=1 wall=1700000000000000000",
            "ended shard=0 batches=7 seqs=14 digest=205d6b7458054e7a19546723d5d8581ae0f4d45bf443752181bb084cf09dc121",
            "ended shard=1 batches=0 seqs=0 digest=0000000000000000000000000000000000000000000000000000000000000000",
            "closed epoch=1 wall=1700000000000000001",
            "opened epoch=2 pid=2 wall=1700000000000000002",
            "fenced shard=1 op=fdatasync errno=5 offset=4096",
            "opened epoch=3 pid=3 wall=1700000000000000003",
        ]
    );
    let state = LogState::from_lines(&lines).unwrap();
    assert_eq!((state.log, state.epoch, state.closed), (LOG, 3, false));
    let kinds = |shard| -> Vec<&str> {
        let state: ShardState = ShardManifest::read(&folder, place(shard)).unwrap();
        let kind = |s: &SegmentState| match s {
            SegmentState::Exists { .. } => "exists",
            SegmentState::Sealed(s) if s.cut_end > s.end => "sealed, cut",
            SegmentState::Sealed(_) => "sealed",
            SegmentState::Void => "void",
            SegmentState::Retired => "retired",
        };
        state.segments.values().map(kind).collect()
    };
    assert_eq!(kinds(0), ["sealed", "sealed"]);
    assert_eq!(kinds(1), ["sealed, cut", "void", "exists"]);
}

/// It is not only readable: both shards go on from it.
#[test]
fn the_golden_log_opens_for_writing() {
    let (_dir, folder) = copy();
    let before = [batches(&folder, 0), batches(&folder, 1)];
    for shard in [0, 1] {
        let mut writer = Writer::open(&folder, shard, 0x40, 4);
        assert_eq!(writer.start.recovered.is_some(), shard == 1);
        writer.seal_old();
        let number = writer.start.chain.number;
        if writer.start.active.is_none() {
            writer.rotate(number);
        }
        writer.batch(2, number);
        drop(writer);
        let mut after = batches(&folder, shard);
        assert!(after.remove(&number).is_some());
        assert!(after == before[shard as usize], "batches of shard {shard} were altered");
    }
}

/// One altered byte anywhere in what was durable is seen.
#[test]
fn an_altered_golden_log_is_refused() {
    let (dir, folder) = copy();
    let name = dir.path().join(paths::segment(1, 2));
    let bytes = std::fs::read(&name).unwrap();
    // Its first own batch, which a later one says was durable.
    let at = BLOCK * 4 + 300;
    let mut altered = bytes.clone();
    altered[at] ^= 1;
    std::fs::write(&name, altered).unwrap();
    let mut manifest = ShardManifest::open(&folder, place(1), [0; 16], true).unwrap();
    let examined = chain::examine(&folder, place(1), &manifest.state).unwrap();
    assert_eq!(examined.damage.len(), 1, "{:?}", examined.end);
    let begin = Begin { incarnation: [1; 16], epoch: 9, wall_ns: 0, first_segment_bytes: SEGMENT_BYTES };
    let refused = recovery::recover(&folder, place(1), &mut manifest, examined, begin);
    assert!(matches!(refused, Err(RecoveryError::Damaged(_))));
}
