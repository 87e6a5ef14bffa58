//! Finishes a segment whose batches are all durable: footer, unused space back, manifest line.
//!
//! Lazy on purpose: rotation never waits for it, and a segment without a footer is normal.

use crate::batch::Digest;
use crate::io::{Access, Disk};
use crate::manifest::{ManifestError, Sealed, ShardLine, ShardManifest};
use crate::segment::footer::{self, IndexEntry};
use crate::segment::header::Header;
use crate::segment::paths;

/// What there is to seal.
#[derive(Debug, Clone)]
pub struct SealJob {
    /// The segment's header.
    pub header: Header,
    /// Its batches, in order; all are durable.
    pub batches: Vec<IndexEntry>,
    /// Offset after the last of them.
    pub end: u64,
    /// Offset after what recovery cut off behind it; `end` if nothing.
    pub cut_end: u64,
}

/// Why a segment was not sealed. It stays as it is, and the next open tries again.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The disk said no.
    #[error("cannot seal {name}: {source}")]
    Io {
        /// File name.
        name: String,
        /// What it said.
        source: std::io::Error,
    },
    /// The manifest could not be written.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

/// Seals one segment; gives the digest of its footer.
pub fn seal<D: Disk>(disk: &D, manifest: &mut ShardManifest<D>, job: &SealJob) -> Result<Digest, SealError> {
    let name = paths::segment(job.header.shard, job.header.index);
    let failed = |source| SealError::Io { name: name.clone(), source };
    let summary = footer::summarise(&job.header, &job.batches, job.end, job.cut_end);
    let (bytes, digest) = footer::encode(&summary, &job.batches, job.header.block_bytes);
    let file_bytes = job.cut_end + bytes.len() as u64;
    let file = disk.open(&name, Access::Write).map_err(failed)?;
    let mut buf = crate::aligned::AlignedBuf::zeroed(bytes.len());
    buf[..bytes.len()].copy_from_slice(&bytes);
    disk.write(&file, job.cut_end, &buf[..bytes.len()]).map_err(failed)?;
    disk.sync(&file).map_err(failed)?;
    disk.truncate(&file, file_bytes).map_err(failed)?;
    let sealed = Sealed {
        bytes: file_bytes,
        end: job.end,
        cut_end: job.cut_end,
        batches: summary.first_batch..summary.end_batch,
        seqs: summary.first_seq..summary.end_seq,
        digest,
    };
    manifest.append(&[ShardLine::Sealed { index: job.header.index, sealed }])?;
    Ok(digest)
}
