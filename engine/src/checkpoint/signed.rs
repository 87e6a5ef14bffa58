//! The newest checkpoint that this machine has signed for a log, remembered beside its keys.
//!
//! A log that was restored from an older copy would sign other trees of sizes that were signed before. Whoever
//! kept one of those would see a forked log, so it is not opened. The file is put in place whole and is not synced:
//! it may lag behind, and then sees less.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::Checkpoint;
use super::note::Note;

const NAME: &str = "newest";

/// Remembers a note.
pub fn write(keys: &Path, note: &Note) -> io::Result<()> {
    let new = keys.join("newest.new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(note.to_string().as_bytes())?;
    fs::rename(&new, keys.join(NAME))
}

/// What was remembered; nothing if it cannot be read as a checkpoint.
pub fn read(keys: &Path) -> Option<Checkpoint> {
    let note = Note::parse(&fs::read(keys.join(NAME)).ok()?).ok()?;
    Checkpoint::parse(note.text()).ok()
}
