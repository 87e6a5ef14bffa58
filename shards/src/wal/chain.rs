//! Walks the chain of one shard through its segments, by the decision table. Reads only.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use crate::batch::{Batch, Digest, LogId};
use crate::io::{Access, Disk, Entry};
use crate::manifest::{Loss, SegmentState, ShardState};
use crate::merkle::{self, Frontier};
use crate::segment::footer::IndexEntry;
use crate::segment::header::{Found, Header, Origin, Predecessor};
use crate::segment::paths::{self, Name};
use crate::segment::scan::{Scan, Seen, scan};
use crate::wal::sealed::{header_of, lost_base, lost_times, read_footer, read_sealed, wrong_length};
use crate::wal::table::{Action, By, Claim, Here, decide};

/// Whose chain it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The log.
    pub log: LogId,
    /// Layout generation.
    pub generation: u32,
    /// Shard.
    pub shard: u32,
}

/// What the next batch must say of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chain {
    /// Its number.
    pub number: u64,
    /// Its first sequence.
    pub seq: u64,
    /// Digest of the one before.
    pub previous: Digest,
}

impl Chain {
    /// Before the first batch of a shard.
    pub const START: Chain = Chain { number: 0, seq: 0, previous: [0; 32] };

    fn advance(&mut self, entry: &IndexEntry) {
        self.number = entry.number + 1;
        self.seq = entry.end_seq();
        self.previous = entry.digest;
    }
}

/// Adds batches to the tree of their shard. Of those that are lost nobody knows the leaf: it is the hash of
/// 32 zeros.
pub fn grow(tree: &mut Frontier, batches: &[IndexEntry]) {
    let first = tree.size();
    for entry in batches.iter().skip_while(|e| e.number < first) {
        lose(tree, entry.number);
        tree.push(merkle::leaf(&entry.digest));
    }
}

/// Adds the batches of a segment. Its header says what the tree was before them, and is believed: where something
/// is lost it knows more than what is left. Gives whether the two agree.
pub fn grow_over(tree: &mut Frontier, header: &Header, batches: &[IndexEntry]) -> bool {
    let (known, new) = batches.split_at(batches.partition_point(|e| e.number < header.tree.size()));
    grow(tree, known);
    let agrees = *tree == header.tree;
    *tree = header.tree.clone();
    grow(tree, new);
    agrees
}

/// Adds batches that are lost, up to this one.
fn lose(tree: &mut Frontier, end: u64) {
    tree.push_repeated(merkle::leaf(&[0; 32]), end.saturating_sub(tree.size()));
}

/// Something that was durable and is not what it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Verdict in capitals, stable.
    pub verdict: &'static str,
    /// Where.
    pub place: String,
    /// What it means.
    pub meaning: String,
    /// The batches that are gone, where that is known.
    pub loss: Option<Loss>,
}

/// One segment of the chain.
#[derive(Debug, Clone)]
pub struct Segment {
    /// Index within the shard.
    pub index: u64,
    /// Its header.
    pub header: Header,
    /// Its batches that count.
    pub batches: Vec<IndexEntry>,
    /// Offset after the last of them.
    pub end: u64,
    /// Offset after the last block with data.
    pub nonblank_end: u64,
    /// Length of the file.
    pub file_bytes: u64,
}

/// A segment file that is not part of the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unused {
    /// Index within the shard.
    pub index: u64,
    /// Length of the file.
    pub file_bytes: u64,
    /// Offset after the last block with data.
    pub nonblank_end: u64,
    /// What it is.
    pub what: UnusedKind,
}

/// Why a segment file is not part of the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnusedKind {
    /// Prepared and never begun.
    Spare,
    /// A recovery began it and crashed before anybody saw it: the next one writes it anew.
    UnfinishedRecovery,
    /// Its batches were never acknowledged, or live on in a later segment.
    Void,
}

/// How the chain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// Label of the row.
    pub label: &'static str,
    /// Bytes beyond it that are not zeros, over all segments.
    pub cut_bytes: u64,
}

/// What is known of one shard's chain, from its last sealed segment on.
#[derive(Debug, Clone)]
pub struct Examined {
    /// The last sealed segment.
    pub base: Option<Predecessor>,
    /// The chain at the base.
    pub base_chain: Chain,
    /// The segments after it, in chain order.
    pub segments: Vec<Segment>,
    /// What comes after the last batch.
    pub chain: Chain,
    /// The tree of all batches up to there.
    pub tree: Frontier,
    /// Count of batches that are known to have been durable.
    pub watermark: u64,
    /// The greatest log time seen.
    pub log_time_max: u64,
    /// Segment files that do not belong to the chain.
    pub unused: Vec<Unused>,
    /// How it ended.
    pub end: End,
    /// What is wrong. A chain with damage must not be written to.
    pub damage: Vec<Damage>,
    /// The least index that no segment has had.
    pub next_index: u64,
    /// The latest opening that any of these segments belongs to.
    pub epoch: u64,
}

/// A segment file that was read.
struct File {
    header: Option<Header>,
    scan: Scan,
}

/// Examines a shard from its last sealed segment on.
pub fn examine<D: Disk>(disk: &D, place: Place, manifest: &ShardState) -> io::Result<Examined> {
    examine_listed(disk, place, manifest, &disk.list()?)
}

/// The same, where somebody has listed the folder and nobody changes it.
pub fn examine_listed<D: Disk>(
    disk: &D,
    place: Place,
    manifest: &ShardState,
    entries: &[Entry],
) -> io::Result<Examined> {
    let mut damage = Vec::new();
    let lengths = entries.iter().filter_map(|entry| match paths::parse(&entry.name) {
        Name::Segment { shard, index } if shard == place.shard => Some((index, entry.bytes)),
        _ => None,
    });
    let lengths: BTreeMap<u64, u64> = lengths.collect();
    let present: BTreeSet<u64> = lengths.keys().copied().collect();
    let last_sealed = manifest.segments.iter().rev().find_map(|(&index, state)| match state {
        SegmentState::Sealed(sealed) => Some((index, sealed)),
        _ => None,
    });
    for (&index, state) in manifest.segments.iter().filter(|(index, _)| !present.contains(index)) {
        let loss = match state {
            // Nothing in a void one counts, so nothing is lost with it; `verify` tells.
            SegmentState::Retired | SegmentState::Void => continue,
            // Read below.
            SegmentState::Sealed(_) if last_sealed.is_some_and(|(last, _)| last == index) => continue,
            SegmentState::Sealed(sealed) if manifest.is_lost(&sealed.batches) => continue,
            SegmentState::Sealed(s) => Some(Loss { batches: s.batches.clone(), seqs: s.seqs.clone() }),
            SegmentState::Exists { .. } => None,
        };
        damage.push(Damage {
            verdict: "MISSING",
            place: paths::segment(place.shard, index),
            meaning: "the manifest says that this segment exists".to_owned(),
            loss,
        });
    }
    // A sealed segment is not read again before the log goes on, but for the last; its length is looked at.
    for (&index, state) in &manifest.segments {
        if let (SegmentState::Sealed(s), Some(&bytes)) = (state, lengths.get(&index))
            && bytes != s.bytes
            && last_sealed.is_none_or(|(last, _)| last != index)
            && !manifest.losses.iter().any(|l| l.batches.end == s.batches.end)
        {
            damage.push(wrong_length(place, index, bytes, s));
        }
    }
    let next_index = manifest.segments.keys().chain(&present).max().map_or(0, |i| i + 1);

    let mut out = Examined {
        base: None,
        base_chain: Chain::START,
        segments: Vec::new(),
        chain: Chain::START,
        tree: Frontier::new(),
        watermark: 0,
        log_time_max: 0,
        unused: Vec::new(),
        end: End { label: "blank tail", cut_bytes: 0 },
        damage,
        next_index,
        epoch: 0,
    };
    if let Some((index, sealed)) = last_sealed {
        match read_sealed(disk, place, index, sealed)? {
            Ok((summary, entries)) => {
                out.chain =
                    Chain { number: summary.end_batch, seq: summary.end_seq, previous: summary.last_digest };
                // A segment without records still says when it was begun.
                let header = header_of(disk, place, index)?;
                out.log_time_max = header.as_ref().map_or(0, |h| h.log_time).max(summary.time_max);
                out.epoch = header.as_ref().map_or(0, |h| h.epoch);
                out.tree = header.map(|h| h.tree).unwrap_or_default();
                grow(&mut out.tree, &entries);
                lose(&mut out.tree, summary.end_batch);
                out.base = Some(Predecessor { index, incarnation: summary.incarnation, end: summary.end });
            }
            Err(_) if manifest.losses.iter().any(|l| l.batches.end == sealed.batches.end) => {
                (out.base, out.chain) = lost_base(disk, place, index, sealed, &present)?;
                out.tree = header_of(disk, place, index)?.map(|h| h.tree).unwrap_or_default();
                lose(&mut out.tree, out.chain.number);
                out.log_time_max =
                    lost_times(disk, place, manifest, present.contains(&index).then_some(index))?;
            }
            Err(d) => {
                out.damage.push(d);
                return Ok(out);
            }
        }
    }
    out.base_chain = out.chain;
    out.watermark = out.chain.number;

    let mut files = BTreeMap::new();
    for &index in &present {
        let counts = matches!(manifest.segments.get(&index), None | Some(SegmentState::Exists { .. }));
        if !counts || last_sealed.is_some_and(|(sealed, _)| index <= sealed) {
            continue;
        }
        let file = disk.open(&paths::segment(place.shard, index), Access::ReadDirect)?;
        if let Some(SegmentState::Exists { bytes: made }) = manifest.segments.get(&index)
            && lengths[&index] > *made
        {
            // Not read, since it may be as long as somebody likes.
            out.damage.push(not_as_made(place, index, lengths[&index], *made));
            continue;
        }
        files.insert(index, read_unsealed(disk, place, index, &file, &mut out.damage)?);
    }
    for (&index, file) in &files {
        if file.header.is_none() && manifest.begun.contains(&index) && out.damage.is_empty() {
            out.damage.push(Damage {
                verdict: "SEGMENT-HEADER",
                place: paths::segment(place.shard, index),
                meaning: "it holds durable batches, and its header is gone".to_owned(),
                loss: None,
            });
        }
        // A header inside a payload must not raise the watermark; nobody knows a segment's incarnation who has
        // not read it. Where the segment's own header is lost, any batch of this shard speaks for it.
        let ours = file.scan.seen.iter().filter(|s| {
            let h = &s.header;
            let admitted = file.header.as_ref().is_none_or(|header| header.admits(&h.incarnation, h.number));
            h.log == place.log && h.shard == place.shard && admitted
        });
        for seen in ours {
            out.watermark = out.watermark.max(seen.header.durable);
            out.log_time_max = out.log_time_max.max(seen.header.time_max).max(seen.header.anchor.log_time);
        }
        if let Some(header) = &file.header {
            out.watermark = out.watermark.max(header.durable);
            out.log_time_max = out.log_time_max.max(header.log_time);
            out.epoch = out.epoch.max(header.epoch);
        }
    }
    follow(disk.block_bytes(), place, manifest, &files, &mut out);
    for segment in &out.segments {
        // A segment has its whole length before it is used, and only sealing gives back what is left: footer first.
        if let Some(SegmentState::Exists { bytes: made }) = manifest.segments.get(&segment.index)
            && segment.file_bytes < *made
            && !is_superseded(disk.block_bytes(), place, segment, &files)
            && !is_being_sealed(disk, place, segment)?
        {
            out.damage.push(not_as_made(place, segment.index, segment.file_bytes, *made));
        }
    }
    Ok(out)
}

/// Another recovery wrote the same into another segment, and gave this one's space back; a crash came before the
/// line that calls it void.
fn is_superseded(block_bytes: u32, place: Place, segment: &Segment, files: &BTreeMap<u64, File>) -> bool {
    let instead = |(&index, file): (&u64, &File)| {
        file.header.as_ref().is_some_and(|h| {
            index != segment.index
                && h.origin == Origin::Recovery
                && (h.first_batch, h.predecessor) == (segment.header.first_batch, segment.header.predecessor)
                && is_finished(block_bytes, place, file, h)
        })
    };
    segment.header.origin == Origin::Recovery && files.iter().any(instead)
}

fn is_being_sealed<D: Disk>(disk: &D, place: Place, segment: &Segment) -> io::Result<bool> {
    let file = disk.open(&paths::segment(place.shard, segment.index), Access::ReadDirect)?;
    Ok(read_footer(disk, &file, segment.file_bytes)?.is_ok())
}

fn not_as_made(place: Place, index: u64, bytes: u64, made: u64) -> Damage {
    Damage {
        verdict: "LENGTH",
        place: paths::segment(place.shard, index),
        meaning: format!("{bytes} bytes; it was made with {made}"),
        loss: None,
    }
}

fn read_unsealed<D: Disk>(
    disk: &D,
    place: Place,
    index: u64,
    file: &D::File,
    damage: &mut Vec<Damage>,
) -> io::Result<File> {
    /// A spare is not read to its end: its first blocks tell.
    const SPARE_BYTES: u64 = 256 << 10;
    let mut ignore = |_: u64, _: &Batch<'_>| {};
    let mut found = scan(disk, file, SPARE_BYTES, &mut ignore)?;
    if found.nonblank_end > 0 {
        found = scan(disk, file, u64::MAX, &mut ignore)?;
    }
    let mut complain = |verdict, meaning: String| {
        damage.push(Damage { verdict, place: paths::segment(place.shard, index), meaning, loss: None });
    };
    let header = match &found.header {
        Found::Good(header) => {
            if header.log != place.log {
                complain("FOREIGN-LOG", "a segment of another log".to_owned());
                None
            } else if (header.shard, header.index) != (place.shard, index) {
                complain(
                    "FOREIGN-SHARD",
                    format!("its header says shard {} segment {}", header.shard, header.index),
                );
                None
            } else {
                Some((**header).clone())
            }
        }
        Found::Unknown(version) => {
            complain("VERSION", format!("format version {version} is newer than this program knows"));
            None
        }
        Found::Blank | Found::Bad => None,
    };
    // A crash between a footer and its line in the manifest: the footer is no cut tail.
    if let Some(header) = &header
        && let Ok((summary, _, _)) = read_footer(disk, file, found.nonblank_end)?
        && summary.incarnation == header.incarnation
        && found.nonblank_end > u64::from(disk.block_bytes())
    {
        found.nonblank_end = summary.cut_end;
    }
    Ok(File { header, scan: found })
}

/// Follows the chain from the base through the files that were read.
fn follow(
    block_bytes: u32,
    place: Place,
    manifest: &ShardState,
    files: &BTreeMap<u64, File>,
    out: &mut Examined,
) {
    let mut current = out.base;
    let mut stopped_in: Option<u64> = None;
    while let Some((index, file, header)) = successor(block_bytes, place, current, files) {
        if out.segments.iter().any(|s| s.index == index) {
            out.damage.push(Damage {
                verdict: "LOOP",
                place: paths::segment(place.shard, index),
                meaning: "the chain of segments leads back to itself".to_owned(),
                loss: None,
            });
            return;
        }
        let named_by_next = end_named_for(block_bytes, place, index, header, files);
        let walk =
            walk(block_bytes, place, header, &file.scan, out.chain, out.watermark, named_by_next, manifest);
        out.chain = walk.chain;
        let tree_agrees = grow_over(&mut out.tree, header, &walk.entries);
        lose(&mut out.tree, walk.chain.number);
        out.segments.push(Segment {
            index,
            header: header.clone(),
            batches: walk.entries,
            end: walk.end,
            nonblank_end: file.scan.nonblank_end,
            file_bytes: file.scan.file_bytes,
        });
        out.end.label = walk.label;
        if !tree_agrees && manifest.losses.is_empty() {
            out.damage.push(Damage {
                verdict: "SHARD-TREE",
                place: paths::segment(place.shard, index),
                meaning: "its header names another tree than that of the batches before it".to_owned(),
                loss: None,
            });
            return;
        }
        match walk.action {
            Action::Cross => {
                current = Some(Predecessor { index, incarnation: header.incarnation, end: walk.end });
            }
            Action::Damage => {
                out.damage.push(walk.damage.expect("damage says what it is"));
                return;
            }
            _ => {
                stopped_in = Some(index);
                break;
            }
        }
    }
    if out.tree.size() != out.chain.number {
        out.damage.push(Damage {
            verdict: "SHARD-TREE",
            place: format!("shard {}", place.shard),
            meaning: format!("it has {} leaves for {} batches", out.tree.size(), out.chain.number),
            loss: None,
        });
        return;
    }
    if out.chain.number < out.watermark {
        let number = out.chain.number;
        out.damage.push(Damage {
            verdict: "MISSING",
            place: format!("shard {} batch {number}", place.shard),
            meaning: format!(
                "{} batches from {number} on were durable and are not here",
                out.watermark - number
            ),
            loss: None,
        });
        return;
    }
    for (&index, file) in files {
        let in_chain = out.segments.iter().find(|s| s.index == index);
        let nonblank_end = file.scan.nonblank_end;
        if let Some(segment) = in_chain {
            if stopped_in == Some(index) {
                out.end.cut_bytes += nonblank_end.saturating_sub(segment.end);
            }
            continue;
        }
        let own_batches = |h: &Header| file.scan.seen.iter().any(|s| s.header.incarnation == h.incarnation);
        let what = match &file.header {
            None if nonblank_end == 0 => UnusedKind::Spare,
            Some(h) if h.origin == Origin::Recovery && !own_batches(h) => UnusedKind::UnfinishedRecovery,
            _ => UnusedKind::Void,
        };
        if what == UnusedKind::Void {
            out.end.cut_bytes += nonblank_end;
        }
        out.unused.push(Unused { index, file_bytes: file.scan.file_bytes, nonblank_end, what });
    }
}

/// The segment that continues `current`. A finished recovery wins over the rotation that it ended,
/// and the newest over older ones.
fn successor(
    block_bytes: u32,
    place: Place,
    current: Option<Predecessor>,
    files: &BTreeMap<u64, File>,
) -> Option<(u64, &File, &Header)> {
    let named = |h: &Header| match (current, h.predecessor) {
        (None, None) => true,
        (Some(c), Some(p)) => (c.index, c.incarnation) == (p.index, p.incarnation),
        _ => false,
    };
    let candidates =
        || files.iter().rev().filter_map(|(&i, f)| f.header.as_ref().filter(|h| named(h)).map(|h| (i, f, h)));
    let end_fits = |h: &Header| match (current, h.predecessor) {
        (Some(c), Some(p)) => c.end == p.end,
        _ => true,
    };
    candidates()
        .find(|(_, f, h)| {
            h.origin == Origin::Recovery && end_fits(h) && is_finished(block_bytes, place, f, h)
        })
        .or_else(|| candidates().find(|(_, _, h)| h.origin == Origin::Rotation && end_fits(h)))
}

/// The end that some later segment names for this one.
fn end_named_for(
    block_bytes: u32,
    place: Place,
    index: u64,
    header: &Header,
    files: &BTreeMap<u64, File>,
) -> Option<(u64, By)> {
    let named = |f: &File| {
        let h = f.header.as_ref()?;
        let p = h.predecessor.filter(|p| (p.index, p.incarnation) == (index, header.incarnation))?;
        match h.origin {
            Origin::Recovery if is_finished(block_bytes, place, f, h) => Some((p.end, By::Recovery)),
            Origin::Recovery => None,
            Origin::Rotation => Some((p.end, By::Rotation)),
        }
    };
    let ends: Vec<_> = files.values().rev().filter_map(named).collect();
    ends.iter().find(|(_, by)| *by == By::Recovery).or(ends.first()).copied()
}

/// Whether recovery had written all that it carried into this segment. Before that nobody saw it.
fn is_finished(block_bytes: u32, place: Place, file: &File, header: &Header) -> bool {
    let mut chain = Chain { number: header.first_batch, seq: header.first_seq, previous: header.previous };
    let mut at = u64::from(block_bytes);
    while chain.number < header.carried_end() {
        if observe(&file.scan, at, header, place, &chain) != Here::Valid {
            return false;
        }
        let (entry, next) = entry_at(&file.scan, at, block_bytes);
        chain.advance(&entry);
        at = next;
    }
    true
}

/// What stands at a position, compared with what the chain expects there.
pub fn observe(scan: &Scan, at: u64, header: &Header, place: Place, chain: &Chain) -> Here {
    let Some(seen) = scan.at(at) else {
        return if scan.is_blank(at) { Here::Blank } else { Here::Garbage };
    };
    let h = &seen.header;
    if (h.log, h.generation, h.shard) != (place.log, place.generation, place.shard) {
        return Here::Foreign;
    }
    let own = h.incarnation == header.incarnation;
    if !own && !header.admits(&h.incarnation, h.number) {
        return Here::Stale;
    }
    if seen.digest.is_err() {
        return Here::Torn;
    }
    let in_place = !own || h.offset == at;
    let continues = (h.number, h.first_seq, h.previous) == (chain.number, chain.seq, chain.previous);
    if in_place && continues && header.admits(&h.incarnation, h.number) {
        Here::Valid
    } else {
        Here::OutOfChain
    }
}

fn entry_at(scan: &Scan, at: u64, block_bytes: u32) -> (IndexEntry, u64) {
    let seen = scan.at(at).expect("observed as valid");
    let digest = seen.digest.expect("observed as valid");
    (IndexEntry::new(at, &seen.header, digest), seen.end(block_bytes))
}

/// How the walk through one segment went.
pub struct Walk {
    /// The batches that count.
    pub entries: Vec<IndexEntry>,
    /// Offset after the last of them.
    pub end: u64,
    /// The chain after them.
    pub chain: Chain,
    /// What follows: never [`Action::Accept`].
    pub action: Action,
    /// Label of the row that said so.
    pub label: &'static str,
    /// What is wrong, with [`Action::Damage`].
    pub damage: Option<Damage>,
}

/// Walks one segment, position by position.
#[allow(clippy::too_many_arguments)]
pub fn walk(
    block_bytes: u32,
    place: Place,
    header: &Header,
    scan: &Scan,
    mut chain: Chain,
    watermark: u64,
    named_end: Option<(u64, By)>,
    manifest: &ShardState,
) -> Walk {
    let mut entries = Vec::new();
    let mut at = u64::from(block_bytes);
    loop {
        let here = observe(scan, at, header, place, &chain);
        let row = decide(here, chain.number < watermark, Claim::at(named_end, at));
        let mut damage = None;
        match row.action {
            Action::Accept => {
                let (entry, next) = entry_at(scan, at, block_bytes);
                chain.advance(&entry);
                entries.push(entry);
                at = next;
                continue;
            }
            Action::Damage => {
                // A loss that is on record is stepped over; the chain goes on with what the next intact
                // batch says of itself.
                if let Some(resumed) = step_over(scan, at, header, place, &chain, manifest) {
                    chain = resumed.1;
                    at = resumed.0;
                    continue;
                }
                damage = Some(describe(scan, at, header, place, &chain, here, row.label));
            }
            Action::Cross | Action::Tail => {}
        }
        return Walk { entries, end: at, chain, action: row.action, label: row.label, damage };
    }
}

fn step_over(
    scan: &Scan,
    at: u64,
    header: &Header,
    place: Place,
    chain: &Chain,
    manifest: &ShardState,
) -> Option<(u64, Chain)> {
    // It may stand right here, if what is lost was in the segment before.
    let behind = &scan.seen[scan.seen.partition_point(|s| s.offset < at)..];
    // Damage may have grown since a loss was put on record: the shortest that leads on is taken.
    let mut ends: Vec<u64> = manifest.losses_with(chain.number).map(|loss| loss.batches.end).collect();
    ends.sort_unstable();
    let resumed = |seen: &Seen| Chain {
        number: seen.header.number,
        seq: seen.header.first_seq,
        previous: seen.header.previous,
    };
    ends.into_iter().find_map(|end| {
        let candidates = behind.iter().filter(|s| s.header.number == end);
        candidates
            .map(|seen| (seen.offset, resumed(seen)))
            .find(|(offset, chain)| observe(scan, *offset, header, place, chain) == Here::Valid)
    })
}

fn describe(
    scan: &Scan,
    at: u64,
    header: &Header,
    place: Place,
    chain: &Chain,
    here: Here,
    label: &'static str,
) -> Damage {
    let number = chain.number;
    let verdict = match here {
        Here::Torn => match scan.at(at).map(|s| s.digest) {
            Some(Err(crate::batch::BatchFault::Padding)) => "PADDING",
            _ => "BATCH-DIGEST",
        },
        Here::Blank | Here::Garbage => "BATCH-MISSING",
        Here::Stale => "STALE",
        Here::OutOfChain => "BATCH-NUMBER",
        Here::Foreign => match scan.at(at) {
            Some(s) if s.header.log != place.log => "FOREIGN-LOG",
            _ => "FOREIGN-SHARD",
        },
        Here::Valid => "CLAIM",
    };
    let behind = &scan.seen[scan.seen.partition_point(|s| s.offset <= at)..];
    let resumed = behind.iter().find(|s| {
        s.header.number > number
            && observe(
                scan,
                s.offset,
                header,
                place,
                &Chain { number: s.header.number, seq: s.header.first_seq, previous: s.header.previous },
            ) == Here::Valid
    });
    Damage {
        verdict,
        place: format!(
            "shard {} batch {number} ({} offset {at})",
            place.shard,
            paths::segment(place.shard, header.index)
        ),
        meaning: format!(
            "{label}: the batch that was durable here is {}",
            match here {
                Here::Torn => "altered",
                Here::Blank => "gone (zeros)",
                Here::Garbage => "overwritten",
                Here::Stale => "replaced by one of an earlier life of this file",
                Here::OutOfChain => "replaced by one that does not continue the chain",
                Here::Foreign => "replaced by one of another log or shard",
                Here::Valid => "cut by a named end",
            }
        ),
        loss: resumed.map(|s| Loss { batches: number..s.header.number, seqs: chain.seq..s.header.first_seq }),
    }
}
