//! The newest checkpoint of each log that was verified here, kept in the user's state folder: the next time, the
//! log must have grown from it. One file for each origin.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use hanaper::checkpoint::Checkpoint;
use hanaper::checkpoint::note::Note;
use sha2::{Digest, Sha256};

use super::exit::{Failure, plain};

/// Where the checkpoint of this origin is kept.
fn place(state: &Path, origin: &str) -> PathBuf {
    let name: String = Sha256::digest(origin).iter().take(16).map(|b| format!("{b:02x}")).collect();
    state.join("seen").join(name)
}

/// The checkpoint that was kept, if there is one.
pub fn recall(state: &Path, origin: &str) -> Result<Option<Note>, Failure> {
    let path = place(state, origin);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Failure::usage(format!("{}: {}", path.display(), plain(&error)))),
    };
    let remove = "it was kept here when the log was verified last; remove it to begin anew";
    let note =
        Note::parse(&bytes).map_err(|e| Failure::usage(format!("{}: {e}; {remove}", path.display())))?;
    match Checkpoint::parse(note.text()) {
        Ok(checkpoint) if checkpoint.origin() == origin => Ok(Some(note)),
        _ => Err(Failure::usage(format!("{}: not a checkpoint of {origin}; {remove}", path.display()))),
    }
}

/// Keeps a checkpoint. A folder that cannot be written to is no failure of the check: it is said, and that is all.
pub fn keep(state: &Path, note: &Note) -> Result<(), String> {
    let Ok(checkpoint) = Checkpoint::parse(note.text()) else { return Ok(()) };
    let path = place(state, checkpoint.origin());
    let folder = path.parent().expect("it is within the state folder");
    let write = || {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let new = path.with_extension(format!("{}.new", std::process::id()));
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(note.to_string().as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &path)
    };
    write().map_err(|error: std::io::Error| {
        format!("the checkpoint is not remembered for the next time: {}: {}", path.display(), plain(&error))
    })
}
