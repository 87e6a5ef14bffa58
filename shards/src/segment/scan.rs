//! Looks at every block of a segment and says what is there, without judging it.
//!
//! The scan goes to the end of the file even after a bad block: a later header that is still good
//! may say that what is bad here was once durable. [`crate::wal`] judges.

use std::io;

use super::header::{Found, Header};
use crate::aligned::AlignedBuf;
use crate::batch::{self, Batch, BatchFault, Digest};
use crate::io::Disk;

/// How much is read at a time, at least, unless there is less.
const WINDOW_BYTES: usize = 1 << 20;

/// A batch header with a good CRC that was found at some block of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Where.
    pub offset: u64,
    /// Its header.
    pub header: batch::Header,
    /// The digest, if the whole batch is intact.
    pub digest: Result<Digest, BatchFault>,
}

impl Seen {
    /// Offset after it.
    pub fn end(&self, block_bytes: u32) -> u64 {
        self.offset + self.header.placed_bytes(block_bytes) as u64
    }
}

/// What a segment's blocks hold.
#[derive(Debug, Clone)]
pub struct Scan {
    /// The first block.
    pub header: Found,
    /// Every batch header in it, in order of offset. A batch that is intact hides what lies in its body.
    pub seen: Vec<Seen>,
    /// Offset after the last block that is not all zeros.
    pub nonblank_end: u64,
    /// Offsets of blocks with data that belong to no intact batch, as ranges.
    pub loose: Vec<(u64, u64)>,
    /// Length of the file.
    pub file_bytes: u64,
}

impl Scan {
    /// What was seen at this very offset.
    pub fn at(&self, offset: u64) -> Option<&Seen> {
        self.seen.binary_search_by_key(&offset, |s| s.offset).ok().map(|i| &self.seen[i])
    }

    /// Whether the block at this offset is all zeros (or beyond the file).
    pub fn is_blank(&self, offset: u64) -> bool {
        offset >= self.nonblank_end
            || (self.at(offset).is_none()
                && !self.loose.iter().any(|&(from, to)| (from..to).contains(&offset)))
    }
}

/// Scans a segment up to `limit` (or its end). `visit` sees each intact batch as it goes by.
pub fn scan<D: Disk>(
    disk: &D,
    file: &D::File,
    limit: u64,
    visit: &mut dyn FnMut(u64, &Batch<'_>),
) -> io::Result<Scan> {
    let block = u64::from(disk.block_bytes());
    let file_bytes = disk.bytes(file)?;
    let limit = limit.min(file_bytes);
    let window_bytes = WINDOW_BYTES.min((limit as usize).next_multiple_of(block as usize));
    let mut window = Window { buf: AlignedBuf::zeroed(window_bytes), from: 0, filled: 0 };
    let first = window.at(disk, file, 0, block as usize)?;
    let header = if first.len() < block as usize { Found::Blank } else { Header::read(first) };
    let mut out = Scan { header, seen: Vec::new(), nonblank_end: 0, loose: Vec::new(), file_bytes };
    if out.header != Found::Blank {
        out.nonblank_end = block;
    }
    let mut at = block;
    while at < limit {
        let bytes = window.at(disk, file, at, block as usize)?;
        if bytes.len() < block as usize {
            // A file whose length is no multiple of the block has been shortened by somebody.
            if bytes.iter().any(|&b| b != 0) {
                // Whole blocks, since a footer may have to follow.
                out.loose.push((at, at + block));
                out.nonblank_end = at + block;
            }
            break;
        }
        if bytes[..8] == [0; 8] && bytes.iter().all(|&b| b == 0) {
            at += block;
            continue;
        }
        let mut next = at + block;
        match batch::Header::read(bytes) {
            Ok(header) => {
                let placed = header.placed_bytes(block as u32);
                let digest = if at + placed as u64 > limit {
                    Err(BatchFault::Truncated)
                } else {
                    let whole = window.at(disk, file, at, placed)?;
                    batch::open(whole, block as u32).map(|batch| {
                        visit(at, &batch);
                        batch.digest
                    })
                };
                if digest.is_ok() {
                    next = at + placed as u64;
                } else {
                    out.loose.push((at, next));
                }
                out.seen.push(Seen { offset: at, header, digest });
            }
            Err(_) => match out.loose.last_mut() {
                Some(last) if last.1 == at => last.1 = next,
                _ => out.loose.push((at, next)),
            },
        }
        out.nonblank_end = next;
        at = next;
    }
    Ok(out)
}

/// A read-ahead buffer over one file.
struct Window {
    buf: AlignedBuf,
    from: u64,
    filled: usize,
}

impl Window {
    /// `bytes` bytes at `offset`, fewer at the end of the file.
    fn at<D: Disk>(&mut self, disk: &D, file: &D::File, offset: u64, bytes: usize) -> io::Result<&[u8]> {
        let inside = offset >= self.from && offset + bytes as u64 <= self.from + self.filled as u64;
        if !inside {
            if self.buf.len() < bytes {
                self.buf = AlignedBuf::zeroed(bytes.next_multiple_of(WINDOW_BYTES));
            }
            self.from = offset;
            self.filled = disk.read(file, offset, &mut self.buf)?;
        }
        let start = (offset - self.from) as usize;
        let end = (start + bytes).min(self.filled);
        Ok(&self.buf[start.min(end)..end])
    }
}
