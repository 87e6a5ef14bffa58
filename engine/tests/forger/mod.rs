//! An insider with root: changes a closed log in place, and recomputes whatever has no key.
//!
//! It knows the format from its pages, and shares no code with what it attacks: offsets, checksums, trees and
//! signatures are its own. All that it writes has the length of what was there.

#![allow(dead_code)] // Each test takes what it needs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use base64ct::{Base64, Encoding};
use ed25519_dalek::Signer;
use sha2::{Digest, Sha256};

const BLOCK: usize = 4096;
type Hash = [u8; 32];

fn u32_at(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The tree of RFC 6962, by its definition.
fn root(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => Sha256::digest([]).into(),
        [one] => *one,
        _ => {
            let (left, right) = leaves.split_at(1 << (leaves.len() - 1).ilog2());
            Sha256::new()
                .chain_update([1])
                .chain_update(root(left))
                .chain_update(root(right))
                .finalize()
                .into()
        }
    }
}

fn leaf(data: &[u8]) -> Hash {
    Sha256::new().chain_update([0]).chain_update(data).finalize().into()
}

/// Roots of the perfect trees, the greatest first.
fn frontier(leaves: &[Hash]) -> Vec<Hash> {
    let (mut hashes, mut rest) = (Vec::new(), leaves);
    while !rest.is_empty() {
        let (perfect, behind) = rest.split_at(1 << rest.len().ilog2());
        hashes.push(root(perfect));
        rest = behind;
    }
    hashes
}

/// Offsets of the batches in a file, up to `end`.
fn batches(file: &[u8], first: usize, end: usize) -> Vec<usize> {
    let mut found = Vec::new();
    let mut at = first;
    while at < end {
        if &file[at..at + 8] != b"HNPRBTCH" {
            at += BLOCK;
            continue;
        }
        found.push(at);
        at += (256 + u32_at(file, at + 76) + 32).next_multiple_of(BLOCK);
    }
    found
}

/// Offsets of the records in a batch, with their lengths.
fn records(file: &[u8], batch: usize) -> Vec<(usize, usize)> {
    let (mut at, end) = (batch + 256, batch + 256 + u32_at(file, batch + 76));
    let mut found = Vec::new();
    while at < end {
        let key = u16::from_le_bytes(file[at + 8..at + 10].try_into().unwrap()) as usize;
        let length = (32 + key + u32_at(file, at + 4)).next_multiple_of(8);
        found.push((at, length));
        at += length;
    }
    found
}

fn payload(file: &[u8], record: usize) -> std::ops::Range<usize> {
    let key = u16::from_le_bytes(file[record + 8..record + 10].try_into().unwrap()) as usize;
    record + 32 + key..record + 32 + key + u32_at(file, record + 4)
}

/// Mends the checksums of all records of a batch.
fn mend_records(file: &mut [u8], batch: usize) {
    let incarnation: [u8; 16] = file[batch + 32..batch + 48].try_into().unwrap();
    let first = u64_at(file, batch + 64);
    for (i, (at, length)) in records(file, batch).into_iter().enumerate() {
        let seq = first + i as u64;
        let bytes = [&incarnation[..], &seq.to_le_bytes(), &file[at + 4..at + length]].concat();
        file[at..at + 4].copy_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
    }
}

/// Chains a batch to the one before, and mends its header's checksum and its digest, which it gives.
fn mend_batch(file: &mut [u8], batch: usize, previous: &Hash) -> Hash {
    file[batch + 160..batch + 192].copy_from_slice(previous);
    let crc = crc32c::crc32c(&file[batch + 12..batch + 256]);
    file[batch + 8..batch + 12].copy_from_slice(&crc.to_le_bytes());
    let end = batch + 256 + u32_at(file, batch + 76);
    let digest = *blake3::hash(&file[batch..end]).as_bytes();
    file[end..end + 32].copy_from_slice(&digest);
    digest
}

/// The keys of a log.
pub struct Keys {
    pub name: String,
    identity: ed25519_dalek::SigningKey,
    periods: BTreeMap<u64, ed25519_dalek::SigningKey>,
}

impl Keys {
    /// Stolen out of the state folder: the identity, and the periods that are still there.
    pub fn steal(state: &Path) -> Keys {
        let folder = fs::read_dir(state)
            .unwrap()
            .map(|e| e.unwrap().path())
            .find(|p| p.join("identity.seed").exists());
        let folder = folder.unwrap();
        let read = |name: &str| {
            let text = fs::read_to_string(folder.join(name)).unwrap();
            let field = |key: &str| text.lines().find_map(|l| l.strip_prefix(key)).unwrap().trim().to_owned();
            let seed: [u8; 32] = Base64::decode_vec(&field("seed ")).unwrap().try_into().unwrap();
            (field("name "), ed25519_dalek::SigningKey::from_bytes(&seed))
        };
        let (name, identity) = read("identity.seed");
        let mut periods = BTreeMap::new();
        for period in 0..100 {
            let file = format!("period-{period}.seed");
            if folder.join(&file).exists() {
                periods.insert(period, read(&file).1);
            }
        }
        Keys { name, identity, periods }
    }

    /// Fresh ones under this name, for all periods.
    pub fn fresh(name: &str) -> Keys {
        let key = |seed: u8| ed25519_dalek::SigningKey::from_bytes(&[seed; 32]);
        Keys {
            name: name.to_owned(),
            identity: key(200),
            periods: (0..100).map(|p| (p, key(p as u8 + 1))).collect(),
        }
    }

    /// The same identity, and other keys for all periods.
    pub fn with_fresh_periods(self) -> Keys {
        Keys { periods: Keys::fresh(&self.name).periods, ..self }
    }

    /// With which it signs for periods of which it has no key.
    fn period(&self, period: u64) -> ed25519_dalek::SigningKey {
        self.periods.get(&period).cloned().unwrap_or_else(|| ed25519_dalek::SigningKey::from_bytes(&[77; 32]))
    }

    fn id(name: &str, key: &ed25519_dalek::SigningKey) -> [u8; 4] {
        let hash = Sha256::new()
            .chain_update(name)
            .chain_update([b'\n', 1])
            .chain_update(key.verifying_key().as_bytes())
            .finalize();
        hash[..4].try_into().unwrap()
    }

    fn vkey(name: &str, key: &ed25519_dalek::SigningKey) -> String {
        let public = [&[1][..], key.verifying_key().as_bytes()].concat();
        format!("{name}+{}+{}", hex(&Keys::id(name, key)), Base64::encode_string(&public))
    }

    pub fn identity_vkey(&self) -> String {
        Keys::vkey(&self.name, &self.identity)
    }

    fn period_vkey(&self, period: u64) -> String {
        Keys::vkey(&format!("{}/period/{period}", self.name), &self.period(period))
    }

    fn note(&self, size: u64, root: &Hash, period: u64) -> String {
        let text = format!("{}\n{size}\n{}\n", self.name, Base64::encode_string(root));
        let line = |name: String, key: &ed25519_dalek::SigningKey| {
            let signature = [&Keys::id(&name, key)[..], &key.sign(text.as_bytes()).to_bytes()].concat();
            format!("\u{2014} {name} {}\n", Base64::encode_string(&signature))
        };
        let period_name = format!("{}/period/{period}", self.name);
        format!(
            "{text}\n{}{}",
            line(self.name.clone(), &self.identity),
            line(period_name, &self.period(period))
        )
    }
}

/// A closed log under attack.
pub struct Forger {
    pub log: PathBuf,
    /// Digests of each shard's batches, as they are now.
    digests: BTreeMap<u32, Vec<Hash>>,
}

impl Forger {
    pub fn new(log: &Path) -> Forger {
        let mut forger = Forger { log: log.to_owned(), digests: BTreeMap::new() };
        for shard in forger.shards() {
            let digests = forger.read_digests(shard);
            forger.digests.insert(shard, digests);
        }
        forger
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(&self.log).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    pub fn shards(&self) -> Vec<u32> {
        let names = self.names();
        let manifest = |n: &String| n.strip_prefix("shard-")?.strip_suffix(".manifest")?.parse().ok();
        names.iter().filter_map(manifest).collect()
    }

    /// Segment files of a shard, in order.
    pub fn segments(&self, shard: u32) -> Vec<PathBuf> {
        let prefix = format!("shard-{shard:04}-");
        let ours = |n: &&String| n.starts_with(&prefix) && n.ends_with(".segment");
        self.names().iter().filter(ours).map(|n| self.log.join(n)).collect()
    }

    pub fn periods(&self) -> Vec<PathBuf> {
        self.names().iter().filter(|n| n.starts_with("epochs-")).map(|n| self.log.join(n)).collect()
    }

    fn end(file: &[u8]) -> usize {
        u64_at(file, file.len() - 512 + 128) as usize
    }

    fn read_digests(&self, shard: u32) -> Vec<Hash> {
        let mut digests = Vec::new();
        for path in self.segments(shard) {
            let file = fs::read(path).unwrap();
            for at in batches(&file, BLOCK, Forger::end(&file)) {
                let end = at + 256 + u32_at(&file, at + 76);
                digests.push(file[end..end + 32].try_into().unwrap());
            }
        }
        digests
    }

    /// Changes the first payload of a shard that says `from`, with its checksum mended.
    pub fn edit_record(&self, shard: u32, from: &[u8], to: &[u8]) {
        assert_eq!(from.len(), to.len());
        for path in self.segments(shard) {
            let mut file = fs::read(&path).unwrap();
            for batch in batches(&file, BLOCK, Forger::end(&file)) {
                for (record, _) in records(&file, batch) {
                    let range = payload(&file, record);
                    if &file[range.clone()] == from {
                        file[range].copy_from_slice(to);
                        mend_records(&mut file, batch);
                        fs::write(&path, file).unwrap();
                        return;
                    }
                }
            }
        }
        panic!("no such record");
    }

    /// Mends digests, chain, trees, footers and manifests of a shard.
    pub fn mend_shard(&mut self, shard: u32) {
        let (mut previous, mut digests, mut seals) = ([0; 32], Vec::new(), BTreeMap::new());
        for path in self.segments(shard) {
            let mut file = fs::read(&path).unwrap();
            let end = Forger::end(&file);
            let size = u64_at(&file, 384) as usize;
            let leaves: Vec<Hash> = digests.iter().map(|d: &Hash| leaf(d)).collect();
            assert_eq!(size, leaves.len(), "a log that was closed each time");
            file[136..168].copy_from_slice(&previous);
            let hashes = frontier(&leaves).concat();
            file[512..512 + hashes.len()].copy_from_slice(&hashes);
            let crc = crc32c::crc32c(&file[12..480]);
            file[8..12].copy_from_slice(&crc.to_le_bytes());
            let digest = *blake3::hash(&[&file[..480], &hashes].concat()).as_bytes();
            file[480..512].copy_from_slice(&digest);
            let summary = file.len() - 512;
            let index = u64_at(&file, summary + 144) as usize;
            for (i, batch) in batches(&file, BLOCK, end).into_iter().enumerate() {
                previous = mend_batch(&mut file, batch, &previous);
                digests.push(previous);
                file[index + 88 * i + 56..index + 88 * i + 88].copy_from_slice(&previous);
            }
            file[summary + 160..summary + 192].copy_from_slice(&previous);
            let crc = crc32c::crc32c(&file[summary + 12..summary + 480]);
            file[summary + 8..summary + 12].copy_from_slice(&crc.to_le_bytes());
            let entries = u64_at(&file, summary + 192) as usize;
            let covered = [&file[index..index + 88 * entries], &file[summary..summary + 480]].concat();
            let digest = *blake3::hash(&covered).as_bytes();
            file[summary + 480..].copy_from_slice(&digest);
            seals.insert(u64_at(&file, 56), digest);
            fs::write(path, file).unwrap();
        }
        self.digests.insert(shard, digests.clone());
        self.edit_journal(&format!("shard-{shard:04}.manifest"), |line| {
            let index = line.strip_prefix("sealed index=")?.split(' ').next()?.parse().ok()?;
            let (kept, _) = line.rsplit_once("digest=")?;
            Some(format!("{kept}digest={}", hex(&seals[&index])))
        });
        self.edit_journal("log.manifest", |line| {
            let rest = line.strip_prefix(&format!("ended shard={shard} batches="))?;
            let batches: usize = rest.split(' ').next()?.parse().ok()?;
            let (kept, _) = line.rsplit_once("digest=")?;
            Some(format!("{kept}digest={}", hex(&digests[batches - 1])))
        });
    }

    /// Changes lines of a journal for others of the same length, and mends its checksums and its chain.
    pub fn edit_journal(&self, name: &str, mut change: impl FnMut(&str) -> Option<String>) {
        let path = self.log.join(name);
        let mut file = fs::read(&path).unwrap();
        let mut previous = [0; 32];
        let length = file.len();
        for batch in batches(&file, 0, length) {
            for (record, _) in records(&file, batch) {
                let range = payload(&file, record);
                let line = String::from_utf8(file[range.clone()].to_vec()).unwrap();
                if let Some(changed) = change(&line) {
                    assert_eq!(changed.len(), line.len(), "{line} {changed}");
                    file[range].copy_from_slice(changed.as_bytes());
                }
            }
            mend_records(&mut file, batch);
            previous = mend_batch(&mut file, batch, &previous);
        }
        fs::write(path, file).unwrap();
    }

    /// The lines of a journal.
    pub fn lines(&self, name: &str) -> Vec<String> {
        let mut lines = Vec::new();
        self.edit_journal(name, |line| {
            lines.push(line.to_owned());
            None
        });
        lines
    }

    /// Writes a journal anew, as one entry with these lines.
    pub fn rewrite_journal(&self, name: &str, lines: &[String]) {
        let path = self.log.join(name);
        let old = fs::read(&path).unwrap();
        let mut file = old[..256].to_vec();
        for (i, line) in lines.iter().enumerate() {
            let mut record = vec![0; (32 + line.len()).next_multiple_of(8)];
            record[4..8].copy_from_slice(&(line.len() as u32).to_le_bytes());
            record[10] = 2;
            record[16..24].copy_from_slice(&(i as u64).to_le_bytes());
            record[32..32 + line.len()].copy_from_slice(line.as_bytes());
            file.extend(record);
        }
        let body = (file.len() - 256) as u32;
        file[56..72].fill(0);
        file[72..76].copy_from_slice(&(lines.len() as u32).to_le_bytes());
        file[76..80].copy_from_slice(&body.to_le_bytes());
        file[96..112].fill(0);
        file.resize((file.len() + 32).next_multiple_of(BLOCK), 0);
        mend_records(&mut file, 0);
        mend_batch(&mut file, 0, &[0; 32]);
        fs::write(path, file).unwrap();
    }

    /// Drops the last entries of a journal, from the first of which a line is one of these on.
    pub fn cut_journal(&self, name: &str, from: impl Fn(&str) -> bool) {
        let path = self.log.join(name);
        let mut file = fs::read(&path).unwrap();
        let length = file.len();
        let says = |file: &[u8], batch: usize| {
            records(file, batch)
                .iter()
                .any(|(r, _)| from(std::str::from_utf8(&file[payload(file, *r)]).unwrap()))
        };
        let at =
            batches(&file, 0, length).into_iter().find(|batch| says(&file, *batch)).expect("such a line");
        file[at..].fill(0);
        fs::write(path, file).unwrap();
    }

    /// Rewrites the epochs so that they name the shards' batches as they are now, from this period on. Entries before
    /// it stay as they are. With keys the notes are signed anew, without they are left alone.
    pub fn mend_epochs(
        &mut self,
        from: u64,
        keys: Option<&Keys>,
        mut change: impl FnMut(&str) -> Option<String>,
    ) {
        let digests = self.digests.clone();
        let mut leaves: Vec<Hash> = Vec::new();
        for (period, path) in self.periods().iter().enumerate() {
            let period = period as u64;
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            // Of a period that was written anew all entries come before the notes.
            let before = leaves.clone();
            let mut entries = Vec::new();
            self.edit_journal(&name, |line| {
                let text = line.strip_prefix("entry\n");
                if period < from {
                    entries.extend(text.map(|t| leaf(t.as_bytes())));
                    return None;
                }
                if let Some(text) = text {
                    let text = change(text).unwrap_or_else(|| text.to_owned());
                    let text = renew_entry(&text, &digests, keys);
                    entries.push(leaf(text.as_bytes()));
                    return Some(format!("entry\n{text}"));
                }
                None
            });
            leaves.extend(entries);
            if period < from {
                continue;
            }
            self.edit_journal(&name, |line| {
                if let Some(rest) = line.strip_prefix("begin ") {
                    let (kept, _) = rest.split_once("frontier=")?;
                    let hashes: Vec<String> = frontier(&before).iter().map(|h| hex(h)).collect();
                    return (!hashes.is_empty())
                        .then(|| format!("begin {kept}frontier={}", hashes.join(",")));
                }
                if let Some(head) = line.strip_prefix("head ") {
                    return Some(format!("head {}", renew_shard(head, &digests)));
                }
                let note = line.strip_prefix("note\n")?;
                let size: usize = note.lines().nth(1)?.parse().ok()?;
                Some(format!("note\n{}", keys?.note(size as u64, &root(&leaves[..size]), period)))
            });
        }
    }
}

/// A shard's line for its batches as they are now.
fn renew_shard(line: &str, digests: &BTreeMap<u32, Vec<Hash>>) -> String {
    let field = |key: &str| line.split(' ').find_map(|part| part.strip_prefix(key)).unwrap();
    let shard: u32 = line.split(' ').nth(1).unwrap().parse().unwrap();
    let size: usize = field("size=").parse().unwrap();
    let leaves: Vec<Hash> = digests[&shard][..size].iter().map(|d| leaf(d)).collect();
    let head = size.checked_sub(1).map_or([0; 32], |last| digests[&shard][last]);
    line.replace(field("root="), &Base64::encode_string(&root(&leaves)))
        .replace(field("head="), &Base64::encode_string(&head))
}

fn renew_entry(text: &str, digests: &BTreeMap<u32, Vec<Hash>>, keys: Option<&Keys>) -> String {
    let mut out = String::new();
    for line in text.lines() {
        let vkey = line.split(' ').find_map(|part| part.strip_prefix("vkey="));
        let line = match (vkey, keys) {
            _ if line.starts_with("shard ") => renew_shard(line, digests),
            (Some(vkey), Some(keys)) if line.starts_with("event genesis") => {
                line.replace(vkey, &keys.identity_vkey())
            }
            (Some(vkey), Some(keys)) => {
                let number = line.split("number=").nth(1).unwrap().split(' ').next().unwrap();
                let number: u64 = number.parse().unwrap();
                // Of what it has no key, the name stays.
                let known = keys.periods.contains_key(&number);
                if known { line.replace(vkey, &keys.period_vkey(number)) } else { line.to_owned() }
            }
            _ => line.to_owned(),
        };
        out.push_str(&line);
        out.push('\n');
    }
    out
}
