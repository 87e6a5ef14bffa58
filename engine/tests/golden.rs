//! The committed log of the format, as a reader of the library sees it. Its exact records are checked in
//! `shards/tests/golden.rs`, which also says how to write it anew.

use hanaper::read::verify::{VerifyOptions, verify};
use hanaper::read::{Kind, Reader, Select};

#[test]
fn the_golden_log_verifies_and_replays() {
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../shards/tests/golden");
    let expected = std::fs::read_to_string(golden.join("records.txt")).unwrap();
    // A copy: a reader needs to write nothing, and what is committed must not depend on that.
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(golden.join("log")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    let mut findings = Vec::new();
    let report = verify(copy.path(), &VerifyOptions::default(), &mut |f| findings.push(f)).unwrap();
    findings.retain(|f| f.fails);
    assert!(findings.is_empty(), "{findings:#?}");
    assert_eq!((report.shards, report.failures), (2, 0));

    let select = Select { control: true, ..Select::default() };
    let records: Vec<_> = Reader::open(copy.path()).unwrap().replay(select).map(Result::unwrap).collect();
    let listed = expected.lines().filter(|line| !line.contains(" stamp ")).count();
    assert_eq!(records.len(), listed);
    assert!(records.is_sorted_by_key(|r| r.log_time));
    for record in &records {
        let kind = if record.kind == Kind::Data { "Data" } else { "Control" };
        let start = format!("{} seq={} batch={} ", record.shard, record.seq, record.batch);
        let line = expected.lines().find(|l| l.starts_with(&start)).unwrap_or_else(|| panic!("no {start}"));
        let lengths = format!(" key={} payload={} ", record.key.len(), record.payload.len());
        assert!(line.contains(kind) && line.contains(&lengths), "{line}\n{record:?}");
        assert!(line.contains(&format!(" log_time={} ", record.log_time)));
        assert_eq!(record.wall_ns, record.log_time as i64 + 77);
    }
}
