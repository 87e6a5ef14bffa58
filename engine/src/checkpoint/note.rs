//! Signed notes, and the keys that sign and verify them.
//!
//! ```text
//! example.com/behind-the-sofa                         text: lines, each with its end
//! 20852163
//! CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=
//!                                                     a blank line: the last one of the note
//! — example.com/behind-the-sofa Az3grlgtzPICa5…Q8=    signature lines: an em dash, the key's name,
//!                                                     base64(4 bytes of key id ‖ signature)
//! ```
//! Format: <https://c2sp.org/signed-note@v1.0.0>. Key ids are the
//! first 4 bytes of SHA-256(name ‖ 0x0A ‖ 0x01 ‖ public key); signatures are Ed25519 over the text with its last
//! line end, without the blank line. A key that verifies is handed on as a *vkey*:
//! `<name>+<key id in hex>+<base64(0x01 ‖ public key)>`.
//!
//! A note is valid if and only if: it is UTF-8 of at most 1 MiB without control characters below U+0020 but line
//! feeds; its last blank line has text before it, and behind it 1 to 100 signature lines and nothing else; a
//! name is not empty and has no Unicode space and no `+`; the base64 is padded and canonical, and holds more
//! than the key id. So one note has one form: what was parsed is given back byte for byte. Lines of unknown
//! keys are kept and ignored.
//!
//! Parsing proves nothing; [`Note::verify`] does.

use std::fmt;

use base64ct::{Base64, Encoding};
use ed25519_dalek::{Signature, Signer, VerifyingKey};
use hanaper_shards::manifest::{hex, unhex};
use sha2::{Digest, Sha256};

/// The largest note that is parsed or made, in bytes.
pub const NOTE_BYTES_MAX: usize = 1 << 20;
/// The most signature lines of a note; as many as Go's `sumdb/note` takes.
pub const SIGNATURES_MAX: usize = 100;

/// The signature type that stands before an Ed25519 key.
const ED25519: u8 = 0x01;
/// What a signature line begins with: an em dash and a space.
const LINE_START: &str = "— ";

/// A text and the signatures below it. The form is right; whether a signature is, [`Note::verify`] says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    text: String,
    signatures: Vec<SignatureLine>,
}

/// One signature of a note, by whatever key and of whatever kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignatureLine {
    /// The name of the key.
    pub name: String,
    /// The id of the key. With the name it says which key it is, and proves nothing.
    pub key_id: [u8; 4],
    /// The signature, 1 byte at least; for an Ed25519 key, 64.
    pub signature: Vec<u8>,
}

/// Why bytes are not a note, or why a text cannot become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoteFault {
    /// Longer than [`NOTE_BYTES_MAX`].
    #[error("a note of more than 1 MiB")]
    TooLarge,
    /// Not UTF-8, or with a control character other than the line feed.
    #[error("a note that is not UTF-8 without control characters")]
    Text,
    /// The text, or the whole note, does not end with a line feed.
    #[error("a note whose last line has no end")]
    Unended,
    /// No blank line, or nothing behind it.
    #[error("a note without signatures")]
    Unsigned,
    /// More than [`SIGNATURES_MAX`] signature lines.
    #[error("a note with more than 100 signatures")]
    TooManySignatures,
    /// Something behind the last blank line that is no signature line.
    #[error("line {line} of the note's signatures is not one")]
    SignatureLine {
        /// Counted from 1, from the last blank line on.
        line: usize,
    },
}

/// Why a note does not count as signed by a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureFault {
    /// No line with the name and the id of this key: it never signed, or its line was taken out.
    #[error("no signature by {key}")]
    Absent {
        /// The key that was looked for, as a vkey.
        key: String,
    },
    /// A line claims to be by this key, and does not sign this text. Reject the whole note.
    #[error("the signature by {key} does not match the text")]
    Bad {
        /// The key that the line names, as a vkey.
        key: String,
    },
}

impl Note {
    /// Signs a text, which must end with a line feed, with one line for each key in the order given. A key that
    /// is given twice signs once.
    pub fn sign(text: &str, keys: &[&SigningKey]) -> Result<Note, NoteFault> {
        if !is_plain(text) {
            return Err(NoteFault::Text);
        }
        if !text.ends_with('\n') {
            return Err(NoteFault::Unended);
        }
        let mut signatures: Vec<SignatureLine> = Vec::with_capacity(keys.len());
        for key in keys {
            if !signatures.iter().any(|line| line.claims(&key.vkey)) {
                signatures.push(key.sign(text));
            }
        }
        if signatures.is_empty() {
            return Err(NoteFault::Unsigned);
        }
        if signatures.len() > SIGNATURES_MAX {
            return Err(NoteFault::TooManySignatures);
        }
        let note = Note { text: text.to_owned(), signatures };
        if note.to_string().len() > NOTE_BYTES_MAX {
            return Err(NoteFault::TooLarge);
        }
        Ok(note)
    }

    /// Reads a whole note.
    pub fn parse(bytes: &[u8]) -> Result<Note, NoteFault> {
        if bytes.len() > NOTE_BYTES_MAX {
            return Err(NoteFault::TooLarge);
        }
        let note = std::str::from_utf8(bytes).ok().filter(|note| is_plain(note)).ok_or(NoteFault::Text)?;
        // A text may hold blank lines, and even something that looks like signatures; the last blank line counts.
        let blank = note.rfind("\n\n").ok_or(NoteFault::Unsigned)?;
        let (text, lines) = (&note[..blank + 1], &note[blank + 2..]);
        if lines.is_empty() {
            return Err(NoteFault::Unsigned);
        }
        let lines = lines.strip_suffix('\n').ok_or(NoteFault::Unended)?;
        let mut signatures = Vec::new();
        for line in lines.split('\n') {
            if signatures.len() == SIGNATURES_MAX {
                return Err(NoteFault::TooManySignatures);
            }
            let fault = NoteFault::SignatureLine { line: signatures.len() + 1 };
            signatures.push(SignatureLine::parse(line).ok_or(fault)?);
        }
        Ok(Note { text: text.to_owned(), signatures })
    }

    /// What is signed: the lines above the blank line, the last one with its end.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The signature lines, in their order.
    pub fn signatures(&self) -> &[SignatureLine] {
        &self.signatures
    }

    /// Whether this key signed this text. The first line with the key's name and id decides, and further ones
    /// are ignored, as Go's `sumdb/note` does.
    pub fn verify(&self, key: &Vkey) -> Result<(), SignatureFault> {
        let Some(line) = self.signatures.iter().find(|line| line.claims(key)) else {
            return Err(SignatureFault::Absent { key: key.to_string() });
        };
        // Strict: keys and commitments of small order verify more than one text, and would make a signature
        // that its owner can disown.
        let matches = Signature::from_slice(&line.signature)
            .is_ok_and(|signature| key.key.verify_strict(self.text.as_bytes(), &signature).is_ok());
        if matches { Ok(()) } else { Err(SignatureFault::Bad { key: key.to_string() }) }
    }
}

/// The note, byte for byte as it was signed or parsed.
impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.text)?;
        self.signatures.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

impl SignatureLine {
    fn parse(line: &str) -> Option<SignatureLine> {
        let (name, base64) = line.strip_prefix(LINE_START)?.split_once(' ')?;
        let bytes = Base64::decode_vec(base64).ok()?;
        let (key_id, signature) = bytes.split_first_chunk()?;
        let good = is_name(name) && !signature.is_empty();
        good.then(|| SignatureLine { name: name.to_owned(), key_id: *key_id, signature: signature.to_vec() })
    }

    /// Whether the line says that it is by this key.
    fn claims(&self, key: &Vkey) -> bool {
        self.name == key.name && self.key_id == key.key_id
    }
}

/// The line without its end.
impl fmt::Display for SignatureLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = [&self.key_id, self.signature.as_slice()].concat();
        write!(f, "{LINE_START}{} {}", self.name, Base64::encode_string(&bytes))
    }
}

/// A named Ed25519 key that verifies: what a log's owner hands to whoever checks the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vkey {
    name: String,
    key_id: [u8; 4],
    key: VerifyingKey,
}

/// Why something is not a verifier key. What helps is another name, or the vkey from its owner again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VkeyError {
    /// Not three parts with a `+` between them, or a part that is not written as it must be.
    #[error("not a verifier key: <name>+<8 hex digits in lower case>+<base64>")]
    Malformed,
    /// A name is not empty, and has no spaces, no `+` and no control characters.
    #[error("the name of a key must not be empty, nor hold spaces, `+` or control characters")]
    Name,
    /// The key is of a type that this program does not verify.
    #[error("a verifier key of type {0:#04x}; only Ed25519 (0x01) is known here")]
    Type(u8),
    /// The id is not that of this name and this public key: one of the three was altered.
    #[error("a verifier key whose id does not match its name and public key")]
    KeyId,
    /// The 32 bytes are no point of the curve, or one with which anybody can sign.
    #[error("32 bytes that are no Ed25519 public key")]
    PublicKey,
}

impl Vkey {
    /// A key from its name and the 32 bytes of RFC 8032.
    pub fn new(name: &str, public_key: &[u8; 32]) -> Result<Vkey, VkeyError> {
        if !is_name(name) {
            return Err(VkeyError::Name);
        }
        let key = VerifyingKey::from_bytes(public_key).map_err(|_| VkeyError::PublicKey)?;
        if key.is_weak() {
            return Err(VkeyError::PublicKey);
        }
        Ok(Vkey { name: name.to_owned(), key_id: key_id(name, ED25519, public_key), key })
    }

    /// Reads what `Display` writes.
    pub fn parse(text: &str) -> Result<Vkey, VkeyError> {
        // Only the base64 can hold further `+`.
        let mut parts = text.splitn(3, '+');
        let (Some(name), Some(id), Some(base64)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(VkeyError::Malformed);
        };
        let id: [u8; 4] = unhex(id).ok_or(VkeyError::Malformed)?;
        let bytes = Base64::decode_vec(base64).map_err(|_| VkeyError::Malformed)?;
        let (&kind, public_key) = bytes.split_first().ok_or(VkeyError::Malformed)?;
        if !is_name(name) {
            return Err(VkeyError::Name);
        }
        if kind != ED25519 {
            return Err(VkeyError::Type(kind));
        }
        if id != key_id(name, kind, public_key) {
            return Err(VkeyError::KeyId);
        }
        Vkey::new(name, public_key.try_into().map_err(|_| VkeyError::PublicKey)?)
    }

    /// The name; a log's origin, for the log's identity key.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The 4 bytes that signature lines carry.
    pub fn key_id(&self) -> [u8; 4] {
        self.key_id
    }
}

/// The vkey, as every tool for signed notes takes it.
impl fmt::Display for Vkey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = [ED25519; 33];
        bytes[1..].copy_from_slice(self.key.as_bytes());
        write!(f, "{}+{}+{}", self.name, hex(&self.key_id), Base64::encode_string(&bytes))
    }
}

/// A named Ed25519 key that signs. Its seed is overwritten with zeros when it is dropped; `Debug` shows the name.
pub struct SigningKey {
    vkey: Vkey,
    // In a box, so that moving the key leaves no copy of the seed behind, which nobody would overwrite.
    key: Box<ed25519_dalek::SigningKey>,
}

impl SigningKey {
    /// A key from its name and its seed, the 32 bytes that RFC 8032 calls the private key.
    pub fn from_seed(name: &str, seed: &[u8; 32]) -> Result<SigningKey, VkeyError> {
        let key = Box::new(ed25519_dalek::SigningKey::from_bytes(seed));
        Ok(SigningKey { vkey: Vkey::new(name, key.verifying_key().as_bytes())?, key })
    }

    /// The key that verifies what this one signs.
    pub fn vkey(&self) -> &Vkey {
        &self.vkey
    }

    /// The signature line for the text of a note. [`Note::sign`] makes a whole note.
    pub fn sign(&self, text: &str) -> SignatureLine {
        let signature = self.key.sign(text.as_bytes()).to_bytes().to_vec();
        SignatureLine { name: self.vkey.name.clone(), key_id: self.vkey.key_id, signature }
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("name", &self.vkey.name).finish_non_exhaustive()
    }
}

/// Whether a name may stand in a signature line.
pub(super) fn is_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(is_name_char)
}

/// Whether the name of a key may have this character. Unicode's White_Space, of which Go's `unicode.IsSpace`
/// and `char::is_whitespace` both speak, has the line feed too.
pub(super) fn is_name_char(c: char) -> bool {
    c != '+' && !c.is_whitespace() && c >= ' '
}

/// Whether a note may hold this text: the line feed is the only control character below U+0020.
pub(super) fn is_plain(text: &str) -> bool {
    text.bytes().all(|b| b >= b' ' || b == b'\n')
}

fn key_id(name: &str, kind: u8, public_key: &[u8]) -> [u8; 4] {
    let digest =
        Sha256::new().chain_update(name).chain_update([b'\n', kind]).chain_update(public_key).finalize();
    *digest.first_chunk().expect("a digest has 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Checkpoint;
    use proptest::prelude::*;
    use signed_note::Verifier as _;

    // The examples of Go's golang.org/x/mod/sumdb/note, with the seeds out of its tests.
    const NEUMANN: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
    const NEUMANN_SEED: &str = "gQoUAtUUbI2E8kQzMPVAgOv5juF9nHT2JS/F1ccoMXM=";
    const TEXT: &str = "If you think cryptography is the answer to your problem,\n\
        then you don't know what your problem is.\n";
    const NEUMANN_LINE: &str = "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";
    const ROOT_LINE: &str = "— EnochRoot rwz+eBzmZa0SO3NbfRGzPCpDckykFXSdeX+MNtCOXm2/5n2tiOHp+vAF1aGrQ5ovTG01oOTGwnWLox33WWd1RvMc+QQ=\n";
    const CHECKPOINT: &str =
        "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n";

    fn neumann() -> SigningKey {
        let mut seed = [0; 32];
        Base64::decode(NEUMANN_SEED, &mut seed).unwrap();
        SigningKey::from_seed("PeterNeumann", &seed).unwrap()
    }

    fn enoch() -> SigningKey {
        SigningKey::from_seed("EnochRoot", &[0; 32]).unwrap()
    }

    fn parse(text: &str) -> Result<Note, NoteFault> {
        Note::parse(text.as_bytes())
    }

    #[test]
    fn the_examples_of_gos_package_come_out_byte_for_byte() {
        let (neumann, enoch) = (neumann(), enoch());
        assert_eq!(neumann.vkey().to_string(), NEUMANN);
        assert_eq!(Vkey::parse(NEUMANN).as_ref(), Ok(neumann.vkey()));
        let note = Note::sign(TEXT, &[&neumann, &enoch, &neumann]).unwrap();
        assert_eq!(note.to_string(), format!("{TEXT}\n{NEUMANN_LINE}{ROOT_LINE}"));
        assert_eq!(parse(&note.to_string()), Ok(note.clone()));
        assert_eq!(note.verify(neumann.vkey()).and(note.verify(enoch.vkey())), Ok(()));
    }

    #[test]
    fn the_example_of_the_specification_verifies() {
        let key =
            Vkey::parse("example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k").unwrap();
        let note = "This is an example message.\n\n— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n";
        assert_eq!(parse(note).unwrap().verify(&key), Ok(()));
        assert_eq!((key.name(), key.key_id()), ("example.com/foo", [0x53, 0x0d, 0x90, 0x3a]));
    }

    #[test]
    fn a_text_may_hold_blank_lines_and_old_signatures() {
        let key = enoch();
        let nested = Note::sign(TEXT, &[&neumann()]).unwrap().to_string();
        for text in [nested.as_str(), "\n", "\n\n\n", "a\n\n", "\n\n— \n", "é\u{7f}\u{85}\n"] {
            let note = Note::sign(text, &[&key]).unwrap();
            let again = parse(&note.to_string()).unwrap();
            assert_eq!((again.text(), again.verify(key.vkey())), (text, Ok(())));
        }
    }

    #[test]
    fn what_the_specification_or_go_refuses_is_refused() {
        let line = NEUMANN_LINE;
        let start = &line[..line.len() - 2]; // without `=` and the line's end
        let cases = [
            (String::new(), NoteFault::Unsigned),
            ("\n".to_owned(), NoteFault::Unsigned),
            (line.to_owned(), NoteFault::Unsigned),
            (format!("\n{line}"), NoteFault::Unsigned),
            (format!("{TEXT}{line}"), NoteFault::Unsigned),
            (format!("{TEXT}\n"), NoteFault::Unsigned),
            (format!("{TEXT}\n{line}\n"), NoteFault::Unsigned),
            (format!("{TEXT}\n{}", line.trim_end()), NoteFault::Unended),
            (format!("{TEXT}\n{line}x"), NoteFault::Unended),
            (format!("{TEXT}\n{line}x\n"), NoteFault::SignatureLine { line: 2 }),
            (format!("{TEXT}\r\n{line}"), NoteFault::Text),
            (format!("{TEXT}\t\n{line}"), NoteFault::Text),
            (format!("{TEXT}\0\n{line}"), NoteFault::Text),
            (format!("{TEXT}\n{}\r\n", line.trim_end()), NoteFault::Text),
            (format!("{TEXT}\n{line}").replacen("em,", "em,\u{1f}", 1), NoteFault::Text),
            (format!("{TEXT}\n{}", line.repeat(101)), NoteFault::TooManySignatures),
            (format!("{}\n\n{line}", "x".repeat(NOTE_BYTES_MAX)), NoteFault::TooLarge),
        ];
        for (text, fault) in cases {
            assert_eq!(parse(&text), Err(fault), "{:?}", &text[..text.len().min(300)]);
        }
        assert_eq!(Note::parse(&[b"\xff\n\n", line.as_bytes()].concat()), Err(NoteFault::Text));
        assert_eq!(Note::parse(&[b"\xed\xa0\x80\n\n", line.as_bytes()].concat()), Err(NoteFault::Text));
        let bad_lines = [
            line.replacen('—', "-", 1),    // a hyphen
            line.replacen("— ", "—", 1),   // no space
            line.replacen("— ", "—  ", 1), // an empty name
            line.replacen("PeterNeumann", "P+N", 1),
            line.replacen("PeterNeumann", "Peter Neumann", 1),
            line.replacen("PeterNeumann", "Peter\u{a0}N", 1),
            line.replacen("PeterNeumann", "Peter\u{2003}N", 1),
            line.replacen("PeterNeumann", "Peter\u{85}N", 1),
            line.replacen(" x08", "  x08", 1),
            line.replacen("x08go", "x08_o", 1), // another alphabet
            format!("{start}\n"),               // no padding
            format!("{start}==\n"),
            format!("{}N=\n", &start[..start.len() - 1]), // bits behind the end: a second form of the same bytes
            format!("{} \n", line.trim_end()),
            format!(" {line}"),
            "— PeterNeumann x08gow==\n".to_owned(), // a key id and nothing behind it
            "— PeterNeumann x08g\n".to_owned(),
            "— PeterNeumann \n".to_owned(),
            "— PeterNeumann\n".to_owned(),
        ];
        for bad in &bad_lines {
            assert_eq!(parse(&format!("{TEXT}\n{bad}")), Err(NoteFault::SignatureLine { line: 1 }), "{bad}");
            let second = format!("{TEXT}\n{line}{bad}{line}");
            assert_eq!(parse(&second), Err(NoteFault::SignatureLine { line: 2 }), "{bad}");
        }
        assert!(parse(&format!("{TEXT}\n{}", line.repeat(100))).is_ok());
        assert!(parse(&format!("{TEXT}\n— PeterNeumann x08goAB=\n")).is_err(), "bits behind the end");
        assert!(parse(&format!("{TEXT}\n— PeterNeumann x08goAA=\n")).is_ok(), "of some other kind");
    }

    #[test]
    fn only_what_can_be_parsed_is_signed() {
        let key = enoch();
        assert_eq!(Note::sign("", &[&key]), Err(NoteFault::Unended));
        assert_eq!(Note::sign("no end", &[&key]), Err(NoteFault::Unended));
        assert_eq!(Note::sign("a\tb\n", &[&key]), Err(NoteFault::Text));
        assert_eq!(Note::sign(TEXT, &[]), Err(NoteFault::Unsigned));
        assert_eq!(Note::sign(&("x".repeat(NOTE_BYTES_MAX - 1) + "\n"), &[&key]), Err(NoteFault::TooLarge));
        let keys: Vec<_> = (0..=SIGNATURES_MAX as u8)
            .map(|i| SigningKey::from_seed(&format!("k{i}"), &[i; 32]).unwrap())
            .collect();
        let mut all: Vec<_> = keys.iter().collect();
        assert_eq!(Note::sign(TEXT, &all), Err(NoteFault::TooManySignatures));
        all.pop();
        let note = Note::sign(TEXT, &all).unwrap();
        assert_eq!(parse(&note.to_string()), Ok(note));
    }

    /// Absent and bad are two verdicts: the one is a key that never signed, the other an altered note.
    #[test]
    fn a_missing_signature_is_told_from_a_bad_one() {
        let (peter, enoch) = (neumann(), enoch());
        let note = parse(&format!("{TEXT}\n{NEUMANN_LINE}")).unwrap();
        assert_eq!(note.verify(enoch.vkey()), Err(SignatureFault::Absent { key: enoch.vkey().to_string() }));
        let bad = Err(SignatureFault::Bad { key: NEUMANN.to_owned() });
        let altered = parse(&format!("{}\n{NEUMANN_LINE}", TEXT.replace("don't", "do"))).unwrap();
        assert_eq!(altered.verify(peter.vkey()), bad);
        // Another key of that name is another key.
        let namesake = SigningKey::from_seed("PeterNeumann", &[7; 32]).unwrap();
        assert!(matches!(note.verify(namesake.vkey()), Err(SignatureFault::Absent { .. })));
        // Name and id are claimed, the signature is another's, or of another length.
        for signature in [enoch.sign(TEXT).signature, vec![0; 63], vec![0; 65], vec![0]] {
            let line = SignatureLine { signature, ..peter.sign(TEXT) };
            assert_eq!(parse(&format!("{TEXT}\n{line}\n")).unwrap().verify(peter.vkey()), bad);
        }
    }

    /// As in Go: whatever comes behind a key's first line changes nothing, in either direction.
    #[test]
    fn the_first_line_of_a_key_decides() {
        let key = neumann();
        let good = key.sign(TEXT);
        let bad = key.sign("something else\n");
        let good_first = parse(&format!("{TEXT}\n{good}\n{bad}\n{good}\n")).unwrap();
        assert_eq!(good_first.verify(key.vkey()), Ok(()));
        let bad_first = parse(&format!("{TEXT}\n{ROOT_LINE}{bad}\n{good}\n")).unwrap();
        assert!(matches!(bad_first.verify(key.vkey()), Err(SignatureFault::Bad { .. })));
    }

    #[test]
    fn no_bit_can_be_flipped_in_silence() {
        let keys = [neumann(), enoch()];
        let text = Checkpoint::new("example.com/log", 7, [9; 32]).unwrap().text();
        let note = Note::sign(&text, &[&keys[0], &keys[1]]).unwrap().to_string().into_bytes();
        for bit in 0..note.len() * 8 {
            let mut flipped = note.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let Ok(parsed) = Note::parse(&flipped) else { continue };
            assert_eq!(parsed.to_string().as_bytes(), flipped);
            let accepted: Vec<_> = keys.iter().filter(|key| parsed.verify(key.vkey()).is_ok()).collect();
            // A flip in one key's line leaves the other's signature of the same text.
            assert!(accepted.len() < keys.len(), "bit {bit}");
            assert!(accepted.is_empty() || parsed.text() == text, "bit {bit}");
        }
    }

    #[test]
    fn vkeys_that_are_not_exactly_right_are_refused() {
        let cases = [
            ("", VkeyError::Malformed),
            ("PeterNeumann", VkeyError::Malformed),
            ("PeterNeumann+c74f20a3", VkeyError::Malformed),
            ("PeterNeumann+c74f20a3+", VkeyError::Malformed),
            ("PeterNeumann+C74F20A3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW", VkeyError::Malformed),
            ("PeterNeumann+c74f20a+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW", VkeyError::Malformed),
            ("PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10T", VkeyError::Malformed),
            ("PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW\n", VkeyError::Malformed),
            ("+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW", VkeyError::Name),
            ("Peter Neumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW", VkeyError::Name),
            ("PeterNeumann+c74f20a3+BBpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW", VkeyError::Type(4)),
            ("PeterNeumann+c74f20a4+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW", VkeyError::KeyId),
            ("EnochRoot+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW", VkeyError::KeyId),
            ("PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TX", VkeyError::KeyId),
        ];
        for (text, error) in cases {
            assert_eq!(Vkey::parse(text), Err(error), "{text}");
        }
        let short = format!(
            "a+{}+{}",
            hex(&key_id("a", 1, &[7; 31])),
            Base64::encode_string(&[[1].as_slice(), &[7; 31]].concat())
        );
        assert_eq!(Vkey::parse(&short), Err(VkeyError::PublicKey));
        for name in ["", "a b", "a+b", "a\nb", "a\u{1}b", "a\u{3000}b", "\u{feff} "] {
            assert_eq!(Vkey::new(name, &[0x99; 32]), Err(VkeyError::Name), "{name:?}");
            assert!(matches!(SigningKey::from_seed(name, &[1; 32]), Err(VkeyError::Name)));
        }
    }

    /// Under a key of small order, one signature fits every text.
    #[test]
    fn a_key_with_which_anybody_can_sign_is_no_key() {
        let mut identity = [0; 32];
        identity[0] = 1;
        for weak in [[0; 32], identity] {
            assert_eq!(Vkey::new("weak", &weak), Err(VkeyError::PublicKey));
        }
        let mut off_the_curve = [0; 32];
        off_the_curve[0] = 2;
        assert_eq!(Vkey::new("none", &off_the_curve), Err(VkeyError::PublicKey));
    }

    #[test]
    fn a_signing_key_shows_its_name_only() {
        assert_eq!(format!("{:?}", enoch()), "SigningKey { name: \"EnochRoot\", .. }");
    }

    fn verify_elsewhere(note: &str, vkey: &str) -> bool {
        let key = signed_note::StandardVerifier::new(vkey).unwrap();
        let known = signed_note::VerifierList::new(vec![Box::new(key)]);
        signed_note::Note::from_bytes(note.as_bytes()).is_ok_and(|note| note.verify(&known).is_ok())
    }

    #[test]
    fn another_implementation_verifies_ours_and_refuses_a_tampered_one() {
        let keys = [
            SigningKey::from_seed("example.com/log", &[3; 32]).unwrap(),
            SigningKey::from_seed("example.com/log/period/0", &[4; 32]).unwrap(),
        ];
        let text = Checkpoint::new("example.com/log", 4711, [5; 32]).unwrap().text();
        let note = Note::sign(&text, &[&keys[0], &keys[1]]).unwrap().to_string();
        for key in &keys {
            let vkey = key.vkey().to_string();
            let theirs = signed_note::StandardVerifier::new(&vkey).unwrap();
            assert_eq!(
                (theirs.name(), theirs.key_id().to_be_bytes()),
                (key.vkey().name(), key.vkey().key_id())
            );
            assert!(verify_elsewhere(&note, &vkey));
            assert!(!verify_elsewhere(&note.replacen("4711", "4712", 1), &vkey));
            assert!(!verify_elsewhere(&note, &enoch().vkey().to_string()));
        }
    }

    #[test]
    fn ours_verifies_what_another_implementation_signed() {
        let seed = [1u8; 32];
        let vkey = SigningKey::from_seed("example.com/other", &seed).unwrap().vkey().clone();
        let secret = Base64::encode_string(&[[ED25519].as_slice(), &seed].concat());
        let skey = format!("PRIVATE+KEY+example.com/other+{}+{secret}", hex(&vkey.key_id()));
        let signer = signed_note::StandardSigner::new(&skey).unwrap();
        let mut theirs = signed_note::Note::new(CHECKPOINT.as_bytes(), &[]).unwrap();
        theirs.add_sigs(&[&signer]).unwrap();
        let bytes = theirs.to_bytes();
        let note = Note::parse(&bytes).unwrap();
        assert_eq!(note.to_string().as_bytes(), bytes);
        assert_eq!(note.verify(&vkey), Ok(()));
        assert!(Checkpoint::parse(note.text()).is_ok());
    }

    /// Whatever bytes come in: no panic, one form, and no note that the other implementation reads differently.
    fn parse_and_compare(bytes: &[u8]) {
        let ours = Note::parse(bytes);
        if let Ok(note) = &ours {
            assert_eq!(note.to_string().as_bytes(), bytes);
            let theirs = signed_note::Note::from_bytes(bytes).expect("what is a note here is one there");
            assert_eq!(theirs.text(), note.text().as_bytes());
        }
        if let Ok(text) = std::str::from_utf8(bytes) {
            if let Ok(checkpoint) = Checkpoint::parse(text) {
                assert_eq!(checkpoint.text(), text);
            }
            if let Ok(vkey) = Vkey::parse(text) {
                assert_eq!(vkey.to_string(), text);
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_given_back(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            parse_and_compare(&bytes);
        }

        #[test]
        fn pieces_in_any_order_are_refused_or_given_back(
            pieces in proptest::collection::vec(
                proptest::sample::select(vec![
                    "\n", "\n\n", "— ", "PeterNeumann", "+", " ", "=", "A", "x08goAA=", "c74f20a3", "0", "1",
                    NEUMANN_LINE, ROOT_LINE, TEXT, CHECKPOINT, NEUMANN, "\u{85}", "é", "\r", "\0",
                ]),
                0..12,
            )
        ) {
            parse_and_compare(pieces.concat().as_bytes());
        }

        #[test]
        fn a_changed_note_is_refused_or_given_back(
            at in any::<proptest::sample::Index>(),
            cut in 0usize..4,
            put in proptest::collection::vec(any::<u8>(), 0..4),
        ) {
            let mut bytes = format!("{TEXT}\n{NEUMANN_LINE}{ROOT_LINE}").into_bytes();
            let from = at.index(bytes.len());
            let to = (from + cut).min(bytes.len());
            bytes.splice(from..to, put);
            parse_and_compare(&bytes);
        }

        #[test]
        fn any_plain_text_is_signed_verified_and_parsed(text in "[^\\x00-\\x09\\x0b-\\x1f]{0,80}") {
            let key = enoch();
            let note = Note::sign(&(text + "\n"), &[&key]).unwrap();
            let again = Note::parse(note.to_string().as_bytes()).unwrap();
            prop_assert_eq!(&again, &note);
            prop_assert_eq!(again.verify(key.vkey()), Ok(()));
        }
    }
}
