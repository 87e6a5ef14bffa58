//! The operating page names every verdict that the program can give.

use std::collections::BTreeSet;
use std::path::Path;

/// Words in capitals between quotes, in the files that judge.
fn verdicts(path: &Path, found: &mut BTreeSet<String>) {
    if path.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            verdicts(&entry.unwrap().path(), found);
        }
        return;
    }
    for piece in std::fs::read_to_string(path).unwrap().split('"').skip(1).step_by(2) {
        let capitals = piece.chars().all(|c| c.is_ascii_uppercase() || c == '-');
        if capitals && piece.len() > 2 && piece.starts_with(|c: char| c.is_ascii_uppercase()) {
            found.insert(piece.to_owned());
        }
    }
}

#[test]
fn the_operating_page_names_every_verdict() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = BTreeSet::new();
    for place in ["src/read", "src/recover.rs", "src/recover", "../shards/src/wal"] {
        verdicts(&root.join(place), &mut found);
    }
    assert!(found.len() > 30 && found.contains("BATCH-DIGEST"), "{found:?}");
    let page = std::fs::read_to_string(root.join("../docs/operating.md")).unwrap();
    let missing: Vec<_> = found.iter().filter(|verdict| !page.contains(&format!("`{verdict}`"))).collect();
    assert!(missing.is_empty(), "docs/operating.md does not name {missing:?}");
}
