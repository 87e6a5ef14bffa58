use hanaper_shards::batch::{Digest, Header};
use hanaper_shards::clock::Anchor;
use hanaper_shards::record::{self, Kind};
use proptest::prelude::*;

use super::*;
use crate::checkpoint::entry::{ClockSource, Live, ShardLine};
use crate::checkpoint::note::SigningKey;

const LOG: [u8; 16] = [0x11; 16];
const SHARD: u32 = 1;
/// Records in each batch of the sample.
const RECORDS: u64 = 3;
const ORIGIN: &str = "example.com/audit";

fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(ORIGIN, &[seed; 32]).unwrap()
}

/// A log of two shards in memory, with seven batches in one of them, and nine entries.
struct Sample {
    batches: Vec<Vec<u8>>,
    digests: Vec<Digest>,
    entries: Vec<String>,
}

/// Batches of each entry's shard: the sixth entry is the first that names the fifth batch.
const NAMED: [u64; 9] = [0, 1, 1, 2, 4, 6, 6, 7, 7];

fn sample() -> Sample {
    let payloads = |batch: u64| {
        let payload = |i: u64| format!("event {}", RECORDS * batch + i).into_bytes();
        (0..RECORDS).map(payload).collect::<Vec<_>>()
    };
    let mut sample = Sample { batches: Vec::new(), digests: Vec::new(), entries: Vec::new() };
    for number in 0..7 {
        sample.add(&payloads(number));
    }
    sample.enter();
    sample
}

impl Sample {
    fn add(&mut self, payloads: &[Vec<u8>]) {
        let number = self.batches.len() as u64;
        let bytes = batch_of(number, self.digests.last().copied().unwrap_or_default(), payloads);
        self.digests.push(bytes[bytes.len() - 32..].try_into().unwrap());
        self.batches.push(bytes);
    }

    fn enter(&mut self) {
        self.entries =
            NAMED.iter().enumerate().map(|(epoch, size)| self.entry(epoch as u64, *size)).collect();
    }

    fn leaves(&self) -> Vec<Hash> {
        self.digests.iter().map(|digest| merkle::leaf(digest)).collect()
    }

    fn entry(&self, epoch: u64, size: u64) -> String {
        let line = ShardLine {
            shard: SHARD,
            size,
            seqs: RECORDS * size,
            root: root(&self.leaves()[..size as usize]),
            head: size.checked_sub(1).map_or([0; 32], |last| self.digests[last as usize]),
            times: None,
            segment: 0,
        };
        let entry = Entry {
            log: LOG,
            epoch,
            time: Time {
                wall_ns: 1_764_000_000_000_000_000 + epoch as i64,
                uncertainty_ns: Some(1_500_000),
                clock: ClockSource::Synchronised,
            },
            period: 0,
            live: Live { count: 2, first: 0, generation: 0 },
            events: Vec::new(),
            roll_call: false,
            shards: vec![line],
        };
        entry.text()
    }

    fn extra(&self, seq: u64) -> Extra {
        let batch = seq / RECORDS;
        let size = NAMED[self.epoch(seq)];
        let path = path(&self.leaves()[..size as usize], batch as usize);
        Extra { shard: SHARD, seq, batch, size, path }
    }

    fn epoch(&self, seq: u64) -> usize {
        NAMED.iter().position(|size| *size > seq / RECORDS).unwrap()
    }

    /// With another `extra` than it should have, if one is given.
    fn proof(&self, seq: u64, extra: Option<&Extra>, keys: &[&SigningKey]) -> Proof {
        let epoch = self.epoch(seq);
        let leaves: Vec<Hash> = self.entries.iter().map(|text| merkle::leaf(text.as_bytes())).collect();
        let checkpoint = Checkpoint::new(ORIGIN, leaves.len() as u64, root(&leaves)).unwrap();
        let own = self.extra(seq);
        let tlog_proof = TlogProof {
            extra: Some(extra.unwrap_or(&own).to_string().into_bytes()),
            index: epoch as u64,
            hashes: path(&leaves, epoch),
            note: Note::sign(&checkpoint.text(), keys).unwrap(),
        };
        Proof {
            tlog_proof: tlog_proof.to_string(),
            leaf: self.entries[epoch].clone(),
            batch: self.batches[(seq / RECORDS) as usize].clone(),
        }
    }
}

fn batch_of(number: u64, previous: Digest, payloads: &[Vec<u8>]) -> Vec<u8> {
    let first_seq = RECORDS * number;
    let frames: Vec<u8> =
        payloads.iter().enumerate().flat_map(|(i, p)| frame(first_seq + i as u64, p)).collect();
    let mut bytes = vec![0; batch::HEADER_BYTES + frames.len() + batch::DIGEST_BYTES];
    bytes[batch::HEADER_BYTES..batch::HEADER_BYTES + frames.len()].copy_from_slice(&frames);
    let header = Header {
        log: LOG,
        incarnation: [0x22; 16],
        generation: 0,
        shard: SHARD,
        number,
        first_seq,
        count: payloads.len() as u32,
        body_bytes: frames.len() as u32,
        time_min: 5,
        time_max: 5,
        durable: number,
        offset: 4096,
        anchor: Anchor { log_time: 5, wall_ns: 1_764_000_000_000_000_000, uncertainty_ns: 7, source: 1 },
        previous,
    };
    batch::seal(&header, &mut bytes);
    bytes
}

/// A whole record as it stands in a batch.
fn frame(seq: u64, payload: &[u8]) -> Vec<u8> {
    let header = record::Header {
        payload_bytes: payload.len() as u32,
        key_bytes: 3,
        kind: Kind::Data,
        flags: 0,
        producer: 1,
        producer_seq: seq,
        log_time: 5,
    };
    let mut bytes = vec![0; header.encoded_bytes()];
    record::write(&header, b"ada", payload, &mut bytes);
    record::Seal::new(&[0x22; 16]).seal(seq, &mut bytes);
    bytes
}

/// MTH of RFC 6962, word for word.
fn root(leaves: &[Hash]) -> Hash {
    match leaves.len() {
        0 => merkle::empty(),
        1 => leaves[0],
        n => merkle::node(&root(&leaves[..split(n)]), &root(&leaves[split(n)..])),
    }
}

/// PATH of RFC 6962, word for word.
fn path(leaves: &[Hash], index: usize) -> Vec<Hash> {
    if leaves.len() == 1 {
        return Vec::new();
    }
    let (left, right) = leaves.split_at(split(leaves.len()));
    match index.checked_sub(left.len()) {
        None => [path(left, index), vec![root(right)]].concat(),
        Some(index) => [path(right, index), vec![root(left)]].concat(),
    }
}

fn split(n: usize) -> usize {
    1 << (n - 1).ilog2()
}

fn check_all(proof: &Proof) -> Result<Proven, ProofError> {
    check(key(1).vkey(), proof.tlog_proof.as_bytes(), proof.leaf.as_bytes(), &proof.batch)
}

/// What an error says, in two words.
fn verdict(result: Result<Proven, ProofError>) -> (&'static str, Option<&'static str>) {
    let error = result.unwrap_err();
    let told = error.to_string();
    assert!(told.starts_with(error.verdict()), "{told}");
    (error.verdict(), error.field())
}

const fn field(name: &'static str) -> (&'static str, Option<&'static str>) {
    ("PROOF-MISMATCH", Some(name))
}

#[test]
fn every_record_is_proven_and_comes_out_as_it_went_in() {
    let sample = sample();
    for seq in 0..7 * RECORDS {
        let proof = sample.proof(seq, None, &[&key(1)]);
        let proven = check_all(&proof).unwrap();
        assert_eq!((proven.record.shard, proven.record.seq), (SHARD, seq));
        assert_eq!(proven.record.key, b"ada");
        assert_eq!(proven.record.payload, format!("event {seq}").into_bytes());
        assert_eq!(proven.record.wall_ns, 1_764_000_000_000_000_000);
        assert_eq!((proven.origin.as_str(), proven.checkpoint.size()), (ORIGIN, 9));
        assert_eq!(proven.entry.epoch, sample.epoch(seq) as u64);
        assert!(proof.tlog_proof.lines().all(|line| line.len() < 64 << 10));
    }
}

/// Nothing authenticates `extra`, so nothing in it may be believed.
#[test]
fn each_field_of_extra_is_held_against_what_is_signed() {
    let sample = sample();
    let seq = 4 * RECORDS + 1;
    let with = |change: &dyn Fn(&mut Extra)| {
        let mut extra = sample.extra(seq);
        change(&mut extra);
        check_all(&sample.proof(seq, Some(&extra), &[&key(1)]))
    };
    assert!(with(&|_| {}).is_ok());
    for shard in [0, 2, u32::MAX] {
        assert_eq!(verdict(with(&|e| e.shard = shard)), field("shard"), "{shard}");
    }
    for other in [0, 4 * RECORDS - 1, 5 * RECORDS, u64::MAX] {
        assert_eq!(verdict(with(&|e| e.seq = other)), ("NOT-A-RECORD", None), "{other}");
    }
    // Another record of this very batch is as well proven, and the checker says which one it is.
    assert_eq!(with(&|e| e.seq = seq + 1).unwrap().record.seq, seq + 1);
    for batch in [0, 3, 5, 6, u64::MAX] {
        assert_eq!(verdict(with(&|e| e.batch = batch)), field("batch"), "{batch}");
    }
    for size in [0, 4, 5, 7, u64::MAX] {
        assert_eq!(verdict(with(&|e| e.size = size)), field("size"), "{size}");
    }
    for i in 0..sample.extra(seq).path.len() {
        assert_eq!(verdict(with(&|e| e.path[i][31] ^= 1)), field("path"), "{i}");
        assert_eq!(verdict(with(&|e| _ = e.path.remove(i))), field("path"), "{i}");
        assert_eq!(verdict(with(&|e| e.path.insert(i, [0; 32]))), field("path"), "{i}");
    }
    assert_eq!(verdict(with(&|e| e.path.swap(0, 1))), field("path"));

    let proof = sample.proof(seq, None, &[&key(1)]);
    let extra_line = proof.tlog_proof.lines().nth(1).unwrap();
    let none =
        Proof { tlog_proof: proof.tlog_proof.replace(&format!("{extra_line}\n"), ""), ..proof.clone() };
    assert_eq!(verdict(check_all(&none)), field("extra"));
    let foreign =
        Proof { tlog_proof: proof.tlog_proof.replace(extra_line, "extra aGVsbG8="), ..proof.clone() };
    assert_eq!(verdict(check_all(&foreign)), field("extra"));
    for index in ["4", "6", "8", "9", "18446744073709551615"] {
        let other = Proof {
            tlog_proof: proof.tlog_proof.replace("index 5", &format!("index {index}")),
            ..proof.clone()
        };
        assert_eq!(verdict(check_all(&other)), field("index"), "{index}");
    }
}

/// Whoever may append can put a whole frame into a payload, with a good checksum: it is no record.
#[test]
fn a_frame_within_a_payload_is_no_record() {
    let mut sample = sample();
    sample.batches.truncate(4);
    sample.digests.truncate(4);
    // The forged record would be the one behind the last of this batch, or one of those that are there.
    let forged = |seq| frame(seq, b"pay 1000000 to mallory");
    let (last, next) = (5 * RECORDS - 1, 5 * RECORDS);
    let payload = [forged(next), forged(last), b"end".to_vec()].concat();
    sample.add(&[b"a".to_vec(), payload, b"c".to_vec()]);
    (0..2).for_each(|_| sample.add(&[b"d".to_vec(), b"e".to_vec(), b"f".to_vec()]));
    sample.enter();
    let seq = 4 * RECORDS + 1;
    assert!(check_all(&sample.proof(seq, None, &[&key(1)])).unwrap().record.payload.ends_with(b"end"));
    let extra = Extra { seq: next, ..sample.extra(seq) };
    assert_eq!(verdict(check_all(&sample.proof(seq, Some(&extra), &[&key(1)]))), ("NOT-A-RECORD", None));
    assert_eq!(check_all(&sample.proof(last, None, &[&key(1)])).unwrap().record.payload, b"c");

    // A batch around the forged frame has another digest.
    let mut proof = sample.proof(seq, None, &[&key(1)]);
    proof.batch =
        batch_of(4, sample.digests[3], &[b"a".to_vec(), b"pay 1000000 to mallory".to_vec(), b"c".to_vec()]);
    assert_eq!(verdict(check_all(&proof)), field("path"));
    // One with the digest that is signed is not whole.
    let digest = proof.batch.len() - 32;
    proof.batch[digest..].copy_from_slice(&sample.digests[4]);
    assert_eq!(verdict(check_all(&proof)), ("BATCH-DIGEST", None));
}

/// A batch that was signed and whose frames make no sense proves none of its records.
#[test]
fn a_batch_whose_frames_do_not_add_up_proves_nothing() {
    let mut sample = sample();
    let mut broken = sample.batches[6].clone();
    let digest = broken.len() - 32;
    broken[digest - 8] ^= 1;
    let header = Header::read(&broken).unwrap();
    let hash = batch::seal(&header, &mut broken);
    (sample.batches[6], sample.digests[6]) = (broken, hash);
    sample.enter();
    let proof = sample.proof(6 * RECORDS, None, &[&key(1)]);
    assert_eq!(verdict(check_all(&proof)), ("NOT-A-RECORD", None));
}

#[test]
fn the_parts_of_two_proofs_do_not_make_a_third() {
    let sample = sample();
    let (one, other) = (sample.proof(1, None, &[&key(1)]), sample.proof(4 * RECORDS, None, &[&key(1)]));
    let mixed = Proof { batch: other.batch.clone(), ..one.clone() };
    assert_eq!(verdict(check_all(&mixed)), field("batch"));
    let mixed = Proof { leaf: other.leaf.clone(), ..one.clone() };
    assert_eq!(verdict(check_all(&mixed)), field("index"));
    let mixed = Proof { tlog_proof: other.tlog_proof, ..one.clone() };
    assert_eq!(verdict(check_all(&mixed)), field("index"));
    // An entry that says it is the sixth, and is not the one that was signed.
    let mixed = Proof { leaf: sample.entry(1, 2), ..one.clone() };
    assert_eq!(verdict(check_all(&mixed)), field("inclusion"));
    // What stands in another log's checkpoint is not in this one's.
    let mut longer = one.clone();
    longer.batch.extend_from_slice(&[0; 8]);
    assert_eq!(verdict(check_all(&longer)), field("batch"));
    longer.leaf.push('\n');
    assert_eq!(verdict(check_all(&longer)), field("leaf"));
}

#[test]
fn only_the_logs_own_key_counts() {
    let sample = sample();
    let with = |keys: &[&SigningKey], vkey: &Vkey| {
        let proof = sample.proof(1, None, keys);
        check(vkey, proof.tlog_proof.as_bytes(), proof.leaf.as_bytes(), &proof.batch)
    };
    let (ours, stranger) = (key(1), key(2));
    let period = SigningKey::from_seed("example.com/audit/period/3", &[3; 32]).unwrap();
    assert!(with(&[&ours, &period], ours.vkey()).is_ok());
    assert_eq!(verdict(with(&[&stranger], ours.vkey())), ("BAD-SIGNATURE", None));
    assert_eq!(verdict(with(&[&ours], stranger.vkey())), ("BAD-SIGNATURE", None));
    // A key that signed it and whose log it is not, as a witness has.
    assert_eq!(verdict(with(&[&ours, &period], period.vkey())), ("FOREIGN-LOG", None));
    let proof = sample.proof(1, None, &[&ours]);
    let grown = Proof { tlog_proof: proof.tlog_proof.replace("\n9\n", "\n10\n"), ..proof };
    assert_eq!(verdict(check_all(&grown)), ("BAD-SIGNATURE", None));
}

/// A tree that was signed with somebody else's batch in it, as whoever has the keys could make one.
#[test]
fn a_batch_says_itself_where_it_belongs() {
    let with = |change: &dyn Fn(&mut Header)| {
        let mut sample = sample();
        let mut header = Header::read(&sample.batches[6]).unwrap();
        change(&mut header);
        sample.digests[6] = batch::seal(&header, &mut sample.batches[6]);
        sample.enter();
        verdict(check_all(&sample.proof(6 * RECORDS, None, &[&key(1)])))
    };
    assert_eq!(with(&|header| header.log = [0x33; 16]), ("FOREIGN-LOG", None));
    assert_eq!(with(&|header| header.shard = 0), field("shard"));
    assert_eq!(with(&|header| header.number = 8), field("batch"));
    assert_eq!(with(&|header| header.first_seq += 1), ("NOT-A-RECORD", None));
    assert_eq!(with(&|header| header.count -= 1), ("NOT-A-RECORD", None));
    assert_eq!(with(&|header| header.incarnation = [0x44; 16]), ("NOT-A-RECORD", None));
}

/// C2SP's text, word for word where it gives forms.
#[test]
fn a_tlog_proof_has_one_form() {
    let note = Note::sign("o\n1\nx\n", &[&key(1)]).unwrap();
    let hash = Base64::encode_string(&[7; 32]);
    let text = |head: &str| format!("{head}\n{note}");
    let first = "c2sp.org/tlog-proof@v1\n";
    for head in [
        format!("{first}index 0\n"),
        format!("{first}index 18446744073709551615\n{hash}\n{hash}\n"),
        format!("{first}extra \nindex 5\n"),
        format!("{first}extra aGVsbG8=\nindex 5\n{hash}\n"),
        format!("{first}index 5\n{}", format!("{hash}\n").repeat(64)),
    ] {
        let text = text(&head);
        assert_eq!(TlogProof::parse(text.as_bytes()).unwrap().to_string(), text);
    }
    for head in [
        String::new(),
        first.to_owned(),
        format!("{first}index 05\n"),
        format!("{first}index +5\n"),
        format!("{first}index -1\n"),
        format!("{first}index 18446744073709551616\n"),
        format!("{first}index 5 \n"),
        format!("{first}index 5\r\n"),
        format!("{first}extra aGVsbG8\nindex 5\n"),
        format!("{first}extra aGVsbG9=\nindex 5\n"),
        format!("{first}index 5\nextra aGVsbG8=\n"),
        format!("{first}extra aGVsbG8=\nextra aGVsbG8=\nindex 5\n"),
        format!("{first}extra {}\nindex 5\n", "AAAA".repeat(20_000)),
        format!("{first}index 5\n{}\n", &hash[..40]),
        format!("{first}index 5\n{hash}{hash}\n"),
        format!("{first}index 5\n{}", format!("{hash}\n").repeat(65)),
        "c2sp.org/tlog-proof@v2\nindex 5\n".to_owned(),
        format!(" {first}index 5\n"),
    ] {
        assert_eq!(
            TlogProof::parse(text(&head).as_bytes()).unwrap_err().field(),
            Some("tlog-proof"),
            "{head:?}"
        );
    }
    let unsigned = format!("{first}index 5\n\no\n1\nx\n");
    assert_eq!(TlogProof::parse(unsigned.as_bytes()).unwrap_err().field(), Some("checkpoint"));
    let huge = format!("{first}index 5\n\n{}", "x\n".repeat(1 << 20));
    assert!(TlogProof::parse(huge.as_bytes()).is_err());
}

#[test]
fn extra_has_one_form() {
    let text = sample().extra(14).to_string();
    assert_eq!(Extra::parse(text.as_bytes()).unwrap().to_string(), text);
    let changes = [
        ("v1", "v2"),
        ("shard 1", "shard 01"),
        ("sequence ", "seq "),
        ("\nbatch", "\n\nbatch"),
        ("size 6", "size +6"),
    ];
    for (from, to) in changes {
        assert_eq!(Extra::parse(text.replacen(from, to, 1).as_bytes()), None, "{to}");
    }
    for other in
        [format!("{text}\n"), format!("{text} "), text.trim_end().to_owned(), text.replace('\n', "\r\n")]
    {
        assert_eq!(Extra::parse(other.as_bytes()), None, "{other:?}");
    }
}

/// The page shows what the code makes.
#[test]
fn the_page_has_a_proof_that_holds() {
    let page = include_str!("../../../../docs/format/proof.md");
    let sample = sample();
    let seq = 4 * RECORDS + 1;
    let proof = sample.proof(seq, None, &[&key(1)]);
    let parts = [proof.tlog_proof, proof.leaf, sample.extra(seq).to_string(), key(1).vkey().to_string()];
    let missing: Vec<_> = parts.iter().filter(|part| !page.contains(part.as_str())).collect();
    assert!(missing.is_empty(), "docs/format/proof.md lacks:\n{}", parts.join("\n"));
}

/// All three files, one after the other, and where each begins.
fn joined(proof: &Proof) -> (Vec<u8>, [usize; 2]) {
    let tlog_proof = proof.tlog_proof.as_bytes();
    let bytes = [tlog_proof, proof.leaf.as_bytes(), &proof.batch].concat();
    (bytes, [tlog_proof.len(), tlog_proof.len() + proof.leaf.len()])
}

proptest! {
    #[test]
    fn no_flipped_bit_proves_the_same(bit: prop::sample::Index, seq in 0..7 * RECORDS) {
        let proof = sample().proof(seq, None, &[&key(1)]);
        let proven = check_all(&proof).unwrap();
        let (mut bytes, [leaf, batch]) = joined(&proof);
        let bit = bit.index(bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        let again = check(key(1).vkey(), &bytes[..leaf], &bytes[leaf..batch], &bytes[batch..]);
        // A neighbour in the batch is as well proven.
        prop_assert!(again.is_err() || again.is_ok_and(|other| other.record.seq != proven.record.seq));
    }

    #[test]
    fn nothing_cut_short_proves_anything(at: prop::sample::Index, which in 0usize..3) {
        let mut proof = sample().proof(7, None, &[&key(1)]);
        match which {
            0 => proof.tlog_proof = String::from_utf8_lossy(&proof.tlog_proof.as_bytes()[..at.index(proof.tlog_proof.len())]).into_owned(),
            1 => proof.leaf.truncate(at.index(proof.leaf.len())),
            _ => proof.batch.truncate(at.index(proof.batch.len())),
        }
        prop_assert!(check_all(&proof).is_err());
    }

    #[test]
    fn whatever_comes_never_panics(
        bytes in prop::collection::vec(any::<u8>(), 0..600),
        from: prop::sample::Index,
        which in 0usize..4,
    ) {
        let proof = sample().proof(7, None, &[&key(1)]);
        let parts = [proof.tlog_proof.as_bytes(), proof.leaf.as_bytes(), &proof.batch];
        let parts: Vec<Vec<u8>> = (0..3).map(|i| {
            let mut part = parts[i].to_vec();
            if i == which || which == 3 {
                let at = from.index(part.len());
                let end = (at + bytes.len()).min(part.len());
                part.splice(at..end, bytes.iter().copied());
            }
            part
        }).collect();
        let _ = check(key(1).vkey(), &parts[0], &parts[1], &parts[2]);
        let _ = follow(&TlogProof::parse(proof.tlog_proof.as_bytes()).unwrap(), &parts[1], &parts[2]);
        let _ = TlogProof::parse(&bytes);
        let _ = Extra::parse(&bytes);
    }

    #[test]
    fn whatever_is_read_is_written_the_same(at: prop::sample::Index, with in "[ -~\n]{0,3}") {
        let mut text = sample().proof(7, None, &[&key(1)]).tlog_proof;
        let at = at.index(text.len());
        if text.is_char_boundary(at) && text.is_char_boundary((at + 1).min(text.len())) {
            text.replace_range(at..(at + 1).min(text.len()), &with);
        }
        if let Ok(proof) = TlogProof::parse(text.as_bytes()) {
            prop_assert_eq!(proof.to_string(), text);
        }
    }
}
