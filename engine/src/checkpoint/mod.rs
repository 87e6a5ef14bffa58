//! Checkpoints: what the log says about itself, signed, in the formats that other people's tools read.
//!
//! ```text
//! example.com/behind-the-sofa                         origin: which log
//! 20852163                                            size of its tree, in leaves, decimal
//! CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=        base64 of the tree's root
//! ```
//! Format: <https://c2sp.org/tlog-checkpoint@v1.0.0>. It is the text of a signed note ([`note`]); the keys that
//! sign it stand outside the log's folder ([`keys`]). The formats are C2SP's, so nobody needs this program to
//! check a signature.
//!
//! A text is a checkpoint if and only if: every line has its end and no control characters; the origin is not
//! empty; the size has no sign and no leading zeros and is below 2^64; the root is 32 bytes in padded, canonical
//! base64; further lines, which another log may have, are not empty. So one checkpoint has one form.

pub mod entry;
pub mod epochs;
pub mod keys;
pub mod note;
pub mod proof;
pub mod signed;
pub mod tlog;

use base64ct::{Base64, Encoding};

use note::is_plain;

/// The text of a checkpoint: which log, how many leaves, and the root of their tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    origin: String,
    size: u64,
    root: [u8; 32],
    extensions: Vec<String>,
}

/// Why a text is not a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointFault {
    /// Fewer than three lines, a last line without its end, or control characters.
    #[error("not a checkpoint: its text is not three lines or more, each with its end")]
    Lines,
    /// The origin is empty, or no single line without control characters.
    #[error("a checkpoint without an origin")]
    Origin,
    /// The second line is no decimal number below 2^64, without sign and leading zeros.
    #[error("a checkpoint whose size is not a number")]
    Size,
    /// The third line is not the base64 of 32 bytes.
    #[error("a checkpoint whose root is not 32 bytes of base64")]
    Root,
    /// An extension line is empty.
    #[error("a checkpoint with an empty line")]
    Extension,
}

impl Checkpoint {
    /// A checkpoint without extension lines: the format advises against them, and ours have none.
    pub fn new(origin: &str, size: u64, root: [u8; 32]) -> Result<Checkpoint, CheckpointFault> {
        if origin.is_empty() || origin.contains('\n') || !is_plain(origin) {
            return Err(CheckpointFault::Origin);
        }
        Ok(Checkpoint { origin: origin.to_owned(), size, root, extensions: Vec::new() })
    }

    /// Reads the text of a note, which may be another log's.
    pub fn parse(text: &str) -> Result<Checkpoint, CheckpointFault> {
        let lines = text.strip_suffix('\n').filter(|lines| is_plain(lines)).ok_or(CheckpointFault::Lines)?;
        let mut lines = lines.split('\n');
        let (Some(origin), Some(size), Some(root)) = (lines.next(), lines.next(), lines.next()) else {
            return Err(CheckpointFault::Lines);
        };
        // A number can be written in several ways; only the shortest is one.
        let size = size.parse().ok().filter(|number: &u64| number.to_string() == size);
        let size = size.ok_or(CheckpointFault::Size)?;
        let mut root_bytes = [0; 32];
        let root_length = Base64::decode(root, &mut root_bytes).map_err(|_| CheckpointFault::Root)?.len();
        if root_length != root_bytes.len() {
            return Err(CheckpointFault::Root);
        }
        let mut checkpoint = Checkpoint::new(origin, size, root_bytes)?;
        for line in lines {
            if line.is_empty() {
                return Err(CheckpointFault::Extension);
            }
            checkpoint.extensions.push(line.to_owned());
        }
        Ok(checkpoint)
    }

    /// The text to be signed; [`Checkpoint::parse`] reads it.
    pub fn text(&self) -> String {
        let mut text = format!("{}\n{}\n{}\n", self.origin, self.size, Base64::encode_string(&self.root));
        for line in &self.extensions {
            text.push_str(line);
            text.push('\n');
        }
        text
    }

    /// Which log it is.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// How many leaves its tree has.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The root of its tree at that size, as RFC 6962 hashes it.
    pub fn root(&self) -> &[u8; 32] {
        &self.root
    }

    /// Further lines; another log may have some.
    pub fn extensions(&self) -> &[String] {
        &self.extensions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHECKPOINT: &str =
        "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n";

    #[test]
    fn a_checkpoint_has_one_form() {
        let checkpoint = Checkpoint::parse(CHECKPOINT).unwrap();
        assert_eq!((checkpoint.origin(), checkpoint.size()), ("example.com/behind-the-sofa", 20_852_163));
        assert_eq!((checkpoint.root()[0], checkpoint.extensions().len()), (0x0a, 0));
        assert_eq!(checkpoint.text(), CHECKPOINT);
        let empty = Checkpoint::new("log with spaces + more", 0, [0; 32]).unwrap();
        assert_eq!(Checkpoint::parse(&empty.text()), Ok(empty));
        let largest = Checkpoint::new("o", u64::MAX, [0xff; 32]).unwrap();
        assert_eq!(Checkpoint::parse(&largest.text()), Ok(largest));
        let extended = format!("{CHECKPOINT}one\n two \n");
        assert_eq!(Checkpoint::parse(&extended).unwrap().extensions(), ["one", " two "]);
        assert_eq!(Checkpoint::parse(&extended).unwrap().text(), extended);

        let cases = [
            (String::new(), CheckpointFault::Lines),
            ("\n".to_owned(), CheckpointFault::Lines),
            ("o\n1\n".to_owned(), CheckpointFault::Lines),
            (CHECKPOINT.trim_end().to_owned(), CheckpointFault::Lines),
            (CHECKPOINT.replace('\n', "\r\n"), CheckpointFault::Lines),
            (CHECKPOINT.replacen("example.com/behind-the-sofa", "", 1), CheckpointFault::Origin),
            (CHECKPOINT.replacen("20852163", "", 1), CheckpointFault::Size),
            (CHECKPOINT.replacen("20852163", "020852163", 1), CheckpointFault::Size),
            (CHECKPOINT.replacen("20852163", "00", 1), CheckpointFault::Size),
            (CHECKPOINT.replacen("20852163", "+1", 1), CheckpointFault::Size),
            (CHECKPOINT.replacen("20852163", "-1", 1), CheckpointFault::Size),
            (CHECKPOINT.replacen("20852163", "1 ", 1), CheckpointFault::Size),
            (CHECKPOINT.replacen("20852163", "0x1", 1), CheckpointFault::Size),
            (CHECKPOINT.replacen("20852163", "18446744073709551616", 1), CheckpointFault::Size),
            (CHECKPOINT.replacen("2I=", "2J=", 1), CheckpointFault::Root),
            (CHECKPOINT.replacen("2I=", "2I", 1), CheckpointFault::Root),
            (CHECKPOINT.replacen("2I=", "2", 1), CheckpointFault::Root),
            (CHECKPOINT.replacen("CsUY", "", 1), CheckpointFault::Root),
            (CHECKPOINT.replacen("CsUY", "CsUYCsUY", 1), CheckpointFault::Root),
            (format!("{CHECKPOINT}\n"), CheckpointFault::Extension),
            (format!("{CHECKPOINT}one\n\ntwo\n"), CheckpointFault::Extension),
        ];
        for (text, fault) in cases {
            assert_eq!(Checkpoint::parse(&text), Err(fault), "{text:?}");
        }
        for origin in ["", "a\nb", "a\tb"] {
            assert_eq!(Checkpoint::new(origin, 1, [0; 32]), Err(CheckpointFault::Origin));
        }
    }
}
