//! The tiles of a real log, read by somebody else's implementation of transparency logs.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hanaper::checkpoint::Checkpoint;
use hanaper::checkpoint::note::Note;
use hanaper::checkpoint::proof::TlogProof;
use hanaper::read::prove::prove;
use hanaper::{Log, WaitFor};
use tlog_tiles::tile::{Tile, TileHashReader, TileReader};
use tlog_tiles::tlog::{self, Error, Hash};

/// Our layout is C2SP's, `tile/L/N`; the crate's own paths are those of Go's sumdb, `tile/H/L/N`.
struct Tiles(PathBuf);

impl Tiles {
    fn path(&self, tile: &Tile) -> PathBuf {
        self.0.join("tile").join(tile.path().strip_prefix("tile/8/").unwrap())
    }
}

impl TileReader for Tiles {
    fn height(&self) -> u8 {
        8
    }
    fn read_tiles(&self, tiles: &[Tile]) -> Result<Vec<Vec<u8>>, Error> {
        tiles.iter().map(|tile| fs::read(self.path(tile)).map_err(|_| Error::InvalidTile)).collect()
    }
    fn save_tiles(&self, _: &[Tile], _: &[Vec<u8>]) {}
}

fn checkpoint(log: &Path) -> (u64, Hash) {
    let note = Note::parse(&fs::read(log.join("tlog/checkpoint")).unwrap()).unwrap();
    let checkpoint = Checkpoint::parse(note.text()).unwrap();
    (checkpoint.size(), Hash(*checkpoint.root()))
}

/// The entries, out of their bundles.
fn entries(log: &Path, size: u64) -> Vec<Vec<u8>> {
    let mut entries = Vec::new();
    while (entries.len() as u64) < size {
        let bundle = entries.len() / 256;
        let width = (size - entries.len() as u64).min(256);
        let partial = if width < 256 { format!(".p/{width}") } else { String::new() };
        let bytes = fs::read(log.join(format!("tlog/tile/entries/{bundle:03}{partial}"))).unwrap();
        let mut rest = &bytes[..];
        while let Some((length, more)) = rest.split_first_chunk() {
            let (entry, more) = more.split_at(usize::from(u16::from_be_bytes(*length)));
            entries.push(entry.to_vec());
            rest = more;
        }
    }
    assert_eq!(entries.len() as u64, size);
    entries
}

/// Appends until so many entries have been signed, and closes the log.
fn grow(folder: &Path, size: u64) {
    let builder = Log::builder(folder)
        .state(concat!(env!("CARGO_TARGET_TMPDIR"), "/state"))
        .segment_bytes(1 << 20)
        .lane_bytes(64 << 10)
        .calibrate(false)
        .pin(false)
        .shards(2)
        .checkpoint_every(Duration::from_millis(1));
    let log = builder.open().unwrap();
    let mut producer = log.producer().unwrap();
    for n in 0u64.. {
        let ticket = producer.append(&n.to_le_bytes(), b"an event").unwrap();
        let receipt = producer.wait(ticket, WaitFor::block()).unwrap();
        assert!(log.wait_checkpointed(&receipt, Duration::from_secs(60)), "{:?}", log.evidence());
        if log.evidence().size >= size {
            break;
        }
    }
    drop(producer);
    assert_eq!(log.close().unwrap().notices, [""; 0]);
}

/// More than a tile of entries, in two openings: every inclusion, and the consistency between the two.
#[test]
fn another_implementation_reads_the_tiles() {
    let temporary = tempfile::tempdir().unwrap();
    let log = temporary.path().join("log");
    grow(&log, 5);
    let (old_size, old_root) = checkpoint(&log);
    grow(&log, 300);
    let (size, root) = checkpoint(&log);
    assert!(old_size >= 5 && size > 256, "{old_size} {size}");

    let tiles = Tiles(log.join("tlog"));
    let reader = TileHashReader::new(size, root, &tiles);
    assert_eq!(tlog::tree_hash(size, &reader).unwrap(), root);
    let entries = entries(&log, size);
    for (index, entry) in entries.iter().enumerate() {
        let index = index as u64;
        let proof = tlog::prove_record(size, index, &reader).unwrap();
        tlog::check_record(&proof, size, root, index, tlog::record_hash(entry)).unwrap();
    }
    let proof = tlog::prove_tree(size, old_size, &reader).unwrap();
    tlog::check_tree(&proof, size, root, old_size, old_root).unwrap();
    assert!(tlog::check_tree(&proof, size, root, old_size, Hash([7; 32])).is_err());
    let old = TileHashReader::new(old_size, old_root, &tiles);
    assert_eq!(tlog::tree_hash(old_size, &old).unwrap(), old_root);

    // Proofs of ours, checked by it.
    for (shard, seq) in [(0, 0), (1, 1), (0, 20)] {
        let proof = prove(&log, shard, seq).unwrap();
        let ours = TlogProof::parse(proof.tlog_proof.as_bytes()).unwrap();
        let hashes: Vec<Hash> = ours.hashes.iter().map(|hash| Hash(*hash)).collect();
        let leaf = tlog::record_hash(proof.leaf.as_bytes());
        tlog::check_record(&hashes, size, root, ours.index, leaf).unwrap();
        assert_eq!(entries[ours.index as usize], proof.leaf.as_bytes());
    }

    // Any tile that was altered is refused, full or not. The reader of 0.2 lets some pass that are not needed for
    // the root (it counts parts of the root where it means tiles), so that what is made of them is checked, too.
    let last = Tile::from_index(8, tlog::stored_hash_index(0, size - 1)).parent(0, size).unwrap();
    for (tile, index) in [(Tile::new(8, 0, 0, 256, false), 1), (last, size - 1)] {
        let path = tiles.path(&tile);
        let whole = fs::read(&path).unwrap();
        let mut altered = whole.clone();
        altered[0] ^= 1;
        fs::write(&path, altered).unwrap();
        let leaf = tlog::record_hash(&entries[index as usize]);
        let checked = tlog::prove_record(size, index, &reader)
            .and_then(|proof| tlog::check_record(&proof, size, root, index, leaf));
        assert!(checked.is_err(), "{}", path.display());
        fs::write(&path, whole).unwrap();
    }
    let mut entry = entries[7].clone();
    *entry.last_mut().unwrap() ^= 1;
    let proof = tlog::prove_record(size, 7, &reader).unwrap();
    assert!(tlog::check_record(&proof, size, root, 7, tlog::record_hash(&entry)).is_err());
}
