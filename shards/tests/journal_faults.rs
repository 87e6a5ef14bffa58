//! Journals on real files: what a crash leaves at the end is stepped over, what was durable must be there.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use hanaper_shards::io::disk::Folder;
use hanaper_shards::journal::{self, Identity, Journal, JournalError};

const NAME: &str = "shard-0003.manifest";
const IDENTITY: Identity = Identity { log: [4; 16], shard: 3 };
const BLOCK: usize = 4096;

struct Rig {
    dir: tempfile::TempDir,
    folder: Folder,
}

/// A journal with three entries: one line, two lines, and one that takes two blocks.
fn rig() -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::open(dir.path()).unwrap();
    let mut journal = Journal::create(&folder, NAME, IDENTITY, [9; 16], &["one".to_owned()]).unwrap();
    journal.append(&["two a".to_owned(), "two b".to_owned()]).unwrap();
    journal.append(&["three ".repeat(1000)]).unwrap();
    Rig { dir, folder }
}

/// Where the entries stand.
const AT: [usize; 4] = [0, BLOCK, 2 * BLOCK, 4 * BLOCK];

impl Rig {
    fn path(&self) -> PathBuf {
        self.dir.path().join(NAME)
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.path()).unwrap()
    }

    fn poke(&self, at: usize, bytes: &[u8]) {
        let file = std::fs::OpenOptions::new().write(true).open(self.path()).unwrap();
        file.write_all_at(bytes, at as u64).unwrap();
    }

    fn read(&self) -> Result<Vec<String>, JournalError> {
        let lines = journal::read(&self.folder, NAME, IDENTITY)?.map(|c| c.lines);
        // Opening to write must see just the same.
        let opened = Journal::open(&self.folder, NAME, IDENTITY)?.map(|(_, c)| c.lines);
        assert_eq!(lines, opened);
        Ok(lines.unwrap_or_default())
    }
}

#[test]
fn a_torn_last_entry_is_stepped_over_and_never_overwritten() {
    let whole = rig().bytes();
    let tears = (AT[2]..AT[3]).step_by(512).flat_map(|at| [(at, AT[3] - at), (at, 512)]);
    for (at, count) in tears {
        let rig = rig();
        rig.poke(at, &vec![0; count]);
        let torn = rig.bytes();
        if torn[..AT[3]] == whole[..AT[3]] {
            // There were only zeros.
            continue;
        }
        assert_eq!(rig.read().unwrap(), ["one", "two a", "two b"], "lost {count} bytes at {at}");
        let (mut journal, contents) = Journal::open(&rig.folder, NAME, IDENTITY).unwrap().unwrap();
        journal.append(&["instead".to_owned()]).unwrap();
        journal.append(&["and more".to_owned()]).unwrap();
        assert_eq!(rig.read().unwrap(), ["one", "two a", "two b", "instead", "and more"]);
        let now = rig.bytes();
        assert!(
            now[..contents.end as usize] == torn[..contents.end as usize],
            "the torn entry was overwritten"
        );
    }
}

#[test]
fn a_damaged_entry_before_others_is_refused() {
    for (entry, &start) in AT.iter().enumerate().take(2) {
        for at in (start..start + 400).step_by(9) {
            let rig = rig();
            let was = rig.bytes()[at];
            rig.poke(at, &[was ^ 0x10]);
            let error = rig.read().unwrap_err();
            assert!(
                matches!(error, JournalError::Damaged { entry: e, .. } if e == entry as u64),
                "byte {at}: {error}"
            );
        }
        let rig = rig();
        rig.poke(start, &[0; BLOCK]);
        assert!(matches!(rig.read().unwrap_err(), JournalError::Damaged { .. }), "zeros in the middle");
    }
    // Two entries that changed places, and one that is there twice.
    let rig = rig();
    let bytes = rig.bytes();
    rig.poke(AT[0], &bytes[AT[1]..AT[2]]);
    rig.poke(AT[1], &bytes[AT[0]..AT[1]]);
    assert!(matches!(rig.read().unwrap_err(), JournalError::Damaged { .. }));
    rig.poke(0, &bytes);
    rig.poke(AT[3], &bytes[AT[1]..AT[2]]);
    assert!(matches!(rig.read().unwrap_err(), JournalError::Damaged { .. }));
}

#[test]
fn somebody_elses_journal_is_refused() {
    for other in [Identity { log: [5; 16], ..IDENTITY }, Identity { shard: 4, ..IDENTITY }] {
        let rig = rig();
        let read = journal::read(&rig.folder, NAME, other);
        assert!(matches!(read, Err(JournalError::Foreign { .. })), "{read:?}");
        assert!(matches!(Journal::open(&rig.folder, NAME, other), Err(JournalError::Foreign { .. })));
    }
    // An entry of another journal behind ours.
    let (ours, theirs) = (rig(), tempfile::tempdir().unwrap());
    let folder = Folder::open(theirs.path()).unwrap();
    Journal::create(&folder, NAME, IDENTITY, [8; 16], &["one".to_owned()]).unwrap();
    let entry = std::fs::read(theirs.path().join(NAME)).unwrap();
    ours.poke(AT[3], &entry[..BLOCK]);
    assert!(matches!(ours.read().unwrap_err(), JournalError::Foreign { .. }));
}

#[test]
fn a_newer_version_is_refused_by_its_number() {
    let rig = rig();
    let mut header = rig.bytes()[AT[1]..AT[1] + 256].to_vec();
    header[12] = 7;
    let crc = crc32c::crc32c(&header[12..]);
    header[8..12].copy_from_slice(&crc.to_le_bytes());
    rig.poke(AT[1], &header);
    assert!(matches!(rig.read().unwrap_err(), JournalError::Unknown { version: 7, .. }));
}

/// A crash before the first entry was durable: the file is there, and nothing was promised.
#[test]
fn a_journal_without_an_entry_is_begun_anew() {
    let rig = rig();
    rig.poke(0, &vec![0; AT[3]]);
    assert!(journal::read(&rig.folder, NAME, IDENTITY).unwrap().is_none());
    let first = ["again".to_owned()];
    Journal::create(&rig.folder, NAME, IDENTITY, [7; 16], &first).unwrap();
    assert_eq!(rig.read().unwrap(), first);
    assert!(
        Journal::create(&rig.folder, NAME, IDENTITY, [6; 16], &first).is_err(),
        "one that has entries is kept"
    );
}
