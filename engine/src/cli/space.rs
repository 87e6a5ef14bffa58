//! Whether a new log has a chance on its disk. A log that is there waits for space; one that could never begin
//! would wait for ever.

use std::path::Path;

use hanaper::read::{self, ReadError, Reader};
use hanaper_shards::io::disk;

use super::exit::{Exit, Failure};
use super::numbers::{count, size};
use crate::settings::Settings;

/// For each shard: the segment that is written, the one that is kept for a recovery, and its manifest.
const SEGMENTS: u64 = 2;
const MANIFEST_BYTES: u64 = 256 << 10;

/// Fails if there is no log in this folder yet and the disk has no room for the first segments of one.
pub fn for_a_new_log(folder: &Path, settings: &Settings) -> Result<(), Failure> {
    let is_new =
        matches!(Reader::open(folder), Err(ReadError::NotALog { .. })) && read::could_begin(folder).is_ok();
    let Some(free) = is_new.then(|| free_bytes(folder)).flatten() else { return Ok(()) };
    let cores = || std::thread::available_parallelism().map_or(1, usize::from).min(256) as u32;
    let shards = u64::from(settings.shards().unwrap_or_else(cores));
    let needed = shards * (SEGMENTS * settings.segment_bytes() + MANIFEST_BYTES) + MANIFEST_BYTES;
    if free >= needed {
        return Ok(());
    }
    Err(Failure::new(
        Exit::Io,
        format!(
            "{}: there is no space for a new log: {} with segments of {} need {}, and {} are free; free some, or say \
             fewer --shards or smaller --segment-bytes",
            folder.display(),
            count(shards, "shard"),
            size(settings.segment_bytes()),
            size(needed),
            size(free)
        ),
    ))
}

/// What this user may still write there, or where the folder would be made.
fn free_bytes(folder: &Path) -> Option<u64> {
    let there =
        folder.ancestors().map(|path| if path.as_os_str().is_empty() { Path::new(".") } else { path });
    let there = there.into_iter().find(|path| path.is_dir())?;
    disk::free_bytes(there).ok()?
}
