//! Segments: the files that batches live in.
//!
//! ```text
//! 0           B                                end        cut end          file end
//! +-----------+---------+---------+-----+------+----------+----------------+
//! | header    | batch   | batch   | ... | batch| cut bytes| footer (index) |
//! +-----------+---------+---------+-----+------+----------+----------------+
//! ```
//! B is the format block. A segment that is still written has neither cut bytes nor footer, and
//! zeros (or, recycled, somebody's old bytes) after the last batch. Its header is written together with its
//! first batch; the footer is written lazily once all of it is durable, and its absence is normal.

pub mod footer;
pub mod header;
pub mod paths;
pub mod scan;

/// The least size of a segment that a caller may choose, in bytes; simulations go lower.
pub const SEGMENT_BYTES_MIN: u64 = 1 << 20;
/// The default size of a segment, in bytes.
pub const SEGMENT_BYTES_DEFAULT: u64 = 16 << 20;
