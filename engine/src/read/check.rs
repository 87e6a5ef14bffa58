//! Checks one shard from its first batch to its last, and says what is wrong with it.
//!
//! Sealed segments are read once, from front to back and past the page cache, and walked by the
//! same decision table as recovery uses. The chain of digests is carried from one to the next.
//! After damage the check goes on with the next batch that is intact, so that all of it is listed.

use std::collections::BTreeMap;
use std::ops::Range;

use hanaper_shards::aligned::AlignedBuf;
use hanaper_shards::clock::Anchor;
use hanaper_shards::io::{Access, Disk};
use hanaper_shards::manifest::{Loss, Sealed, SegmentState};
use hanaper_shards::segment::footer::{self, IndexEntry, Summary};
use hanaper_shards::segment::header::{Found, Header, Origin, Predecessor};
use hanaper_shards::segment::paths;
use hanaper_shards::segment::scan::scan;
use hanaper_shards::wal::chain::{self, Chain, Damage, Place, UnusedKind, Walk};
use hanaper_shards::wal::sealed;
use hanaper_shards::wal::table::{Action, By};

use super::acks::{Missing, ShardAcks};
use super::batch::{Fault, open, records};
use super::disk::ReadOnly;
use super::evidence::Claims;
use super::tree::TreeCheck;
use super::verify::{Finding, Report};
use super::view::View;
use crate::error::ReadError;
use crate::words;

/// So many places of one segment or chain are listed; then the rest of it is given up, and that is said.
const DAMAGE_MAX: usize = 100;
/// Progress is told this often.
const PROGRESS_BYTES: u64 = 4 << 20;

/// One shard that is being checked.
pub(crate) struct ShardCheck<'a> {
    pub disk: &'a ReadOnly,
    pub acks: ShardAcks,
    pub tell: &'a mut dyn FnMut(Told),
    pub report: Report,
    /// All that failed, with what is lost by it where that is known.
    pub failed: Vec<Damage>,
    /// Where the chain ended when the log was last closed.
    ended: Option<Chain>,
    trees: TreeCheck,
}

/// What a check says while it runs.
pub(crate) enum Told {
    Found(Finding),
    /// So many bytes of the folder are done.
    Bytes(u64),
}

/// Where the chain stands between two segments.
struct Position {
    chain: Chain,
    /// Unknown after a segment that could not be read.
    digest_known: bool,
    /// The segment before, if it could be read.
    predecessor: Option<Predecessor>,
    /// Index of the segment before, readable or not.
    index: Option<u64>,
}

impl<'a> ShardCheck<'a> {
    pub(crate) fn new(
        disk: &'a ReadOnly,
        acks: ShardAcks,
        claims: Option<Claims>,
        tell: &'a mut dyn FnMut(Told),
    ) -> ShardCheck<'a> {
        ShardCheck {
            disk,
            acks,
            tell,
            report: Report::default(),
            failed: Vec::new(),
            ended: None,
            trees: TreeCheck::new(claims),
        }
    }

    fn say(
        &mut self,
        verdict: &'static str,
        place: impl Into<String>,
        meaning: impl Into<String>,
        fails: bool,
    ) {
        let (place, meaning) = (place.into(), meaning.into());
        if fails {
            self.damage(Damage { verdict, place, meaning, loss: None });
        } else {
            (self.tell)(Told::Found(Finding { verdict, place, meaning, fails }));
        }
    }

    fn damage(&mut self, damage: Damage) {
        self.report.failures += 1;
        let meaning = words::meaning(&damage);
        let Damage { verdict, place, .. } = damage.clone();
        (self.tell)(Told::Found(Finding { verdict, place, meaning, fails: true }));
        self.failed.push(damage);
    }

    /// Checks a shard.
    pub(crate) fn run(&mut self, view: &View) -> Result<(), ReadError> {
        let place = view.place;
        self.report.live = view.live;
        self.ended = view.expected.ended;
        for notice in &view.notices {
            self.say("UNSYNCED", format!("shard {}", place.shard), notice, false);
        }
        for loss in &view.manifest.losses {
            self.report.losses += 1;
            let meaning = format!("lost, and on record as lost: {}", words::records(&loss.seqs));
            let batches = format!("shard {} {}", place.shard, words::span("batch", &loss.batches));
            self.say("LOSS", batches, meaning, false);
        }
        let mut at = Position { chain: Chain::START, digest_known: true, predecessor: None, index: None };
        for (index, sealed) in view.sealed_in_order() {
            self.sealed(view, index, sealed, &mut at)?;
        }
        self.unsealed(view, &at)?;
        (self.report.beyond_batches, self.report.beyond_records) =
            self.trees.finish(place.shard, &view.examined.chain);
        self.tell_trees();
        self.beside(view)?;
        let mut lost = Vec::new();
        self.acks.finish(&mut |m| lost.push(m));
        self.missing(place.shard, &lost);
        Ok(())
    }

    /// A shard that has no manifest yet: nothing can be in it.
    pub(crate) fn without_manifest(&mut self, place: Place) {
        let mut lost = Vec::new();
        self.acks.finish(&mut |m| lost.push(m));
        self.missing(place.shard, &lost);
    }

    /// One sealed segment.
    fn sealed(
        &mut self,
        view: &View,
        index: u64,
        sealed: &Sealed,
        at: &mut Position,
    ) -> Result<(), ReadError> {
        let place = view.place;
        let name = paths::segment(place.shard, index);
        let lost = |batches: Range<u64>| view.manifest.is_lost(&batches);
        if sealed.batches.start != at.chain.number || sealed.seqs.start != at.chain.seq {
            let gap = at.chain.number..sealed.batches.start;
            if gap.is_empty() || !lost(gap.clone()) {
                let meaning = format!(
                    "the manifest goes on with batch {} (record {}) where batch {} (record {}) should be: a sealed segment is missing from it",
                    sealed.batches.start, sealed.seqs.start, at.chain.number, at.chain.seq
                );
                self.say(
                    "MISSING",
                    match gap.is_empty() {
                        true => format!("shard {} batch {}", place.shard, gap.start),
                        false => format!("shard {} {}", place.shard, words::span("batch", &gap)),
                    },
                    meaning,
                    true,
                );
            }
            *at = Position { digest_known: false, predecessor: None, index: None, ..*at };
            at.chain = Chain { number: sealed.batches.start, seq: sealed.seqs.start, previous: [0; 32] };
        }
        let after = Chain { number: sealed.batches.end, seq: sealed.seqs.end, previous: [0; 32] };
        let unreadable =
            Position { chain: after, digest_known: false, predecessor: None, index: Some(index) };
        let footer = sealed::read_sealed(self.disk, place, index, sealed).map_err(ReadError::io(&*name))?;
        let footer = match footer {
            Ok(footer) => Some(footer),
            // It was named with the losses.
            Err(_) if lost(sealed.batches.clone()) => {
                *at = unreadable;
                return Ok(());
            }
            Err(damage) if damage.verdict == "MISSING" => {
                self.damage(damage);
                *at = unreadable;
                return Ok(());
            }
            // Part of it is on record as lost, and that may well be why.
            Err(_) if view.manifest.losses.iter().any(|l| l.batches.end == sealed.batches.end) => None,
            Err(damage) => {
                // Its batches may be whole all the same: the walk tells which are lost.
                self.damage(Damage { loss: None, ..damage });
                None
            }
        };
        let file = match self.disk.open(&name, Access::ReadDirect) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                *at = unreadable;
                return Ok(());
            }
            other => other.map_err(ReadError::io(&*name))?,
        };
        let file_bytes = self.disk.bytes(&file).map_err(ReadError::io(&*name))?;
        if let Some((summary, _)) = &footer {
            self.summary_says(&name, summary, sealed);
        }

        // One pass: blocks, digests and records.
        let mut faults: BTreeMap<u64, Fault> = BTreeMap::new();
        let mut steps = ClockSteps::default();
        let mut told = 0;
        let tell = &mut *self.tell;
        let found = scan(self.disk, &file, sealed.end, &mut |offset, batch| {
            if let Err(fault) = records(&batch.header, batch.body, &mut |_, _| {}) {
                faults.insert(offset, fault);
            }
            steps.see(batch.header.number, &batch.header.anchor);
            if offset >= told + PROGRESS_BYTES {
                tell(Told::Bytes(offset - told));
                told = offset;
            }
        })
        .map_err(ReadError::io(&*name))?;
        (self.tell)(Told::Bytes(file_bytes.saturating_sub(told)));
        self.report.bytes += file_bytes;
        self.report.segments += 1;

        // Without header and footer nothing in it can be proven.
        let unproven =
            footer.is_none().then(|| Loss { batches: sealed.batches.clone(), seqs: sealed.seqs.clone() });
        let Some(header) = self.header(&name, place, index, &found.header, unproven) else {
            *at = unreadable;
            if let Some((summary, index)) = &footer {
                // The manifest names the footer, and the footer every batch: that much can still be proven.
                let (whole, altered): (Vec<_>, Vec<_>) = index
                    .iter()
                    .partition(|e| found.at(e.offset).is_some_and(|seen| seen.digest == Ok(e.digest)));
                self.batches(place, &name, &whole, &faults);
                for entry in altered {
                    self.say(
                        "BATCH-DIGEST",
                        batch_place(place, &name, &entry),
                        "it is altered or gone",
                        true,
                    );
                }
                at.chain.previous = summary.last_digest;
                at.digest_known = true;
            }
            return Ok(());
        };
        self.link(&name, &header, at, footer.as_ref().map(|f| &f.0));
        self.trees.segment(&header.tree);
        let mut start = at.chain;
        if !at.digest_known {
            // What came before cannot be read, so the header's word is the best there is.
            start.previous = header.previous;
        }
        let block = self.disk.block_bytes();
        let mut manifest = view.manifest.clone();
        let mut walk;
        loop {
            let named_end = Some((sealed.end, By::Seal));
            walk =
                chain::walk(block, place, &header, &found, start, sealed.batches.end, named_end, &manifest);
            let Some(damage) = walk.damage.take() else { break };
            let rest = Loss {
                batches: walk.chain.number..sealed.batches.end,
                seqs: walk.chain.seq..sealed.seqs.end,
            };
            if manifest.losses.contains(&rest) {
                break;
            }
            // Where nothing intact follows, all up to the sealed end is gone.
            let loss = damage.loss.clone().unwrap_or(rest);
            let known = manifest.losses.contains(&loss);
            if known || loss.batches.is_empty() || loss.seqs.start > loss.seqs.end {
                self.damage(damage);
                break;
            }
            if manifest.losses.len() - view.manifest.losses.len() >= DAMAGE_MAX {
                let rest = walk.chain.number..sealed.batches.end;
                let meaning = format!("not checked: {}", words::span("batch", &rest));
                self.say("NOT-COVERED", &*name, meaning, true);
                break;
            }
            manifest.losses.push(loss.clone());
            self.damage(Damage { loss: Some(loss), ..damage });
        }
        let crossed = walk.action == Action::Cross;
        self.batches(place, &name, &walk.entries, &faults);
        if let Some((summary, index)) = &footer {
            self.index_says(&name, &header, summary, index, &walk, &manifest.losses);
        }
        self.clock_steps(&name, &steps);
        if sealed.cut_end > sealed.end {
            let behind = format!("{} bytes behind offset {}", sealed.cut_end - sealed.end, sealed.end);
            let meaning = match carried_from(self.disk, view, index) {
                Some((carried, into)) => format!(
                    "{behind}: recovery ended the segment there; {} live{} on in {into}, where recovery copied them, and \
                     what else is there was never acknowledged",
                    words::span("batch", &carried),
                    if carried.end - carried.start == 1 { "s" } else { "" }
                ),
                None => format!("{behind} were never acknowledged; recovery ended the segment there"),
            };
            self.say("CUT", &*name, meaning, false);
        }
        if crossed && (walk.chain.number, walk.chain.seq) != (after.number, after.seq) {
            let meaning = format!(
                "it ends with batch {} and record {}; the manifest sealed it up to batch {} and record {}",
                walk.chain.number, walk.chain.seq, after.number, after.seq
            );
            self.say("SEQUENCE", &*name, meaning, true);
        }
        let predecessor = Predecessor { index, incarnation: header.incarnation, end: sealed.end };
        let previous = match (&footer, crossed) {
            (_, true) => Some(walk.chain.previous),
            (Some((summary, _)), _) => Some(summary.last_digest),
            _ => None,
        };
        *at = Position {
            chain: Chain { previous: previous.unwrap_or_default(), ..after },
            digest_known: previous.is_some(),
            predecessor: Some(predecessor),
            index: Some(index),
        };
        Ok(())
    }

    /// Whether the manifest and the footer agree.
    fn summary_says(&mut self, name: &str, summary: &Summary, sealed: &Sealed) {
        let same = (summary.first_batch..summary.end_batch) == sealed.batches
            && (summary.first_seq..summary.end_seq) == sealed.seqs
            && (summary.end, summary.cut_end) == (sealed.end, sealed.cut_end);
        if !same {
            self.say(
                "FOOTER",
                name,
                "its footer and the manifest name different batches, records or ends",
                true,
            );
        }
    }

    /// `loss` is what is lost if it cannot be read.
    fn header(
        &mut self,
        name: &str,
        place: Place,
        index: u64,
        found: &Found,
        loss: Option<Loss>,
    ) -> Option<Header> {
        let (verdict, meaning) = match found {
            Found::Good(h) if h.log != place.log => {
                ("FOREIGN-LOG", "it is a segment of another log".to_owned())
            }
            Found::Good(h) if (h.generation, h.shard, h.index) != (place.generation, place.shard, index) => (
                "FOREIGN-SHARD",
                format!("its header says layout {} shard {} segment {}", h.generation, h.shard, h.index),
            ),
            Found::Good(h) => return Some((**h).clone()),
            Found::Unknown(version) => {
                ("VERSION", format!("format version {version} is newer than this program knows"))
            }
            Found::Blank => ("SEGMENT-HEADER", "its header is gone (zeros)".to_owned()),
            Found::Bad => ("SEGMENT-HEADER", "its header is altered".to_owned()),
        };
        let meaning = format!("{meaning}; its batches are proven by its footer alone, if at all");
        self.damage(Damage { verdict, place: name.to_owned(), meaning, loss });
        None
    }

    /// Whether a segment continues the one before it.
    fn link(&mut self, name: &str, header: &Header, at: &Position, summary: Option<&Summary>) {
        if summary.is_some_and(|s| s.incarnation != header.incarnation) {
            self.say("SEGMENT-HEADER", name, "header and footer are of different lives of this file", true);
        }
        if (header.first_batch, header.first_seq) != (at.chain.number, at.chain.seq) {
            let meaning = format!(
                "it begins with batch {} and record {} where batch {} and record {} should be",
                header.first_batch, header.first_seq, at.chain.number, at.chain.seq
            );
            self.say("SEGMENT-CHAIN", name, meaning, true);
        }
        if at.digest_known && header.previous != at.chain.previous {
            self.say("SEGMENT-CHAIN", name, "it names another last batch of the segment before", true);
        }
        let names_it = match (&at.predecessor, at.index, &header.predecessor) {
            (Some(expected), _, named) => named.as_ref() == Some(expected),
            (None, Some(index), named) => named.as_ref().is_some_and(|p| p.index == index),
            (None, None, named) => !at.digest_known || named.is_none(),
        };
        if !names_it {
            self.say(
                "SEGMENT-CHAIN",
                name,
                "it names another segment, or another end of it, as the one before",
                true,
            );
        }
    }

    /// Counts batches that are in the chain, and says what is wrong with their records.
    fn batches(&mut self, place: Place, name: &str, entries: &[IndexEntry], faults: &BTreeMap<u64, Fault>) {
        let mut lost = Vec::new();
        for entry in entries {
            self.trees.batch(name, entry);
            self.report.batches += 1;
            self.report.records += u64::from(entry.count);
            let ended = self.ended.filter(|ended| ended.number == entry.number + 1);
            if ended.is_some_and(|ended| (ended.seq, ended.previous) != (entry.end_seq(), entry.digest)) {
                let meaning = "it is intact, and not the last batch that the log was closed with";
                self.say("ROLLED-BACK", batch_place(place, name, entry), meaning, true);
            }
            self.acks.see(entry.first_seq, entry.end_seq(), &entry.digest, &mut |m| lost.push(m));
            if let Some(fault) = faults.get(&entry.offset) {
                self.say(fault.verdict, batch_place(place, name, entry), &*fault.meaning, true);
            }
        }
        self.missing(place.shard, &lost);
        if let Some(last) = entries.last() {
            self.trees.reached(name, last.number + 1);
        }
        self.tell_trees();
    }

    /// Says what the tree was found to be.
    fn tell_trees(&mut self) {
        for found in std::mem::take(&mut self.trees.found) {
            self.say(found.verdict, found.place, found.meaning, found.fails);
        }
    }

    fn missing(&mut self, shard: u32, lost: &[Missing]) {
        for m in lost {
            let digest = hanaper_shards::manifest::hex(&m.digest[..8]);
            let meaning = match &m.instead {
                Some(other) => format!(
                    "acknowledged in the batch {digest}…, and now in the batch {}…",
                    hanaper_shards::manifest::hex(&other[..8])
                ),
                None => format!("acknowledged in the batch {digest}…, and not in the log"),
            };
            let place = format!("shard {shard} {}", words::span("record", &(m.first..m.end)));
            self.say("ACKED-MISSING", place, meaning, true);
        }
    }

    /// Whether the footer's index is what was walked.
    fn index_says(
        &mut self,
        name: &str,
        header: &Header,
        summary: &Summary,
        index: &[IndexEntry],
        walk: &Walk,
        losses: &[Loss],
    ) {
        let gone = |number: u64| losses.iter().any(|l| l.batches.contains(&number));
        // Beyond its last batch nothing was walked; if that was too early, it has been said.
        let not_walked = walk.chain.number;
        let mut walked = walk.entries.iter().peekable();
        let mut wrong = None;
        for entry in index {
            if walked.next_if(|w| *w == entry).is_none() && !gone(entry.number) && entry.number < not_walked {
                wrong.get_or_insert(entry.number);
            }
        }
        if wrong.is_none() {
            wrong = walked.next().map(|w| w.number);
        }
        if let Some(number) = wrong {
            self.say("INDEX", name, format!("its index and its batches differ from batch {number} on"), true);
        } else if footer::summarise(header, index, summary.end, summary.cut_end) != *summary {
            self.say("FOOTER", name, "its summary does not follow from its index", true);
        }
    }

    fn clock_steps(&mut self, name: &str, steps: &ClockSteps) {
        if let Some((number, by_ns)) = steps.first {
            let meaning = format!(
                "the wall clock was set back by {} ms before batch {number}{}; the order of records does not depend on it",
                by_ns / 1_000_000,
                if steps.count > 1 {
                    format!(" (and {} more times in this segment)", steps.count - 1)
                } else {
                    String::new()
                }
            );
            self.say("TIME-REGRESSION", name, meaning, false);
        }
    }

    /// The chain from the last sealed segment on.
    fn unsealed(&mut self, view: &View, at: &Position) -> Result<(), ReadError> {
        let place = view.place;
        let is_sealed = |name: &str| {
            view.manifest
                .segments
                .iter()
                .any(|(&i, s)| matches!(s, SegmentState::Sealed(_)) && paths::segment(place.shard, i) == name)
        };
        let mut examined = view.examined.clone();
        let mut manifest = view.manifest.clone();
        let base_lost = examined
            .damage
            .iter()
            .any(|d| Some(&d.place) == view.last_sealed().map(|i| paths::segment(place.shard, i)).as_ref());
        if base_lost {
            // It was named above; what it leaves unchecked is named here.
            self.say(
                "NOT-COVERED",
                format!("shard {}", place.shard),
                "segments behind the last sealed one were not checked, since nothing leads to them",
                true,
            );
        }
        let mut listed: Vec<Damage> = Vec::new();
        loop {
            for damage in &examined.damage {
                if !is_sealed(&damage.place) && !listed.contains(damage) {
                    self.damage(damage.clone());
                    listed.push(damage.clone());
                }
            }
            let loss = examined.damage.last().and_then(|d| d.loss.clone());
            match loss {
                Some(loss) if !base_lost && !manifest.losses.contains(&loss) && listed.len() < DAMAGE_MAX => {
                    manifest.losses.push(loss);
                }
                _ => break,
            }
            examined = chain::examine(self.disk, place, &manifest)
                .map_err(ReadError::io(format!("shard {}", place.shard)))?;
        }
        let mut at = Position {
            chain: at.chain,
            digest_known: at.digest_known,
            predecessor: at.predecessor,
            index: at.index,
        };
        let mut unstamped: Option<Range<u64>> = None;
        for segment in &examined.segments {
            let name = paths::segment(place.shard, segment.index);
            let gap = Loss {
                batches: at.chain.number..segment.header.first_batch,
                seqs: at.chain.seq..segment.header.first_seq,
            };
            if manifest.losses.contains(&gap) {
                let first = (segment.header.first_batch, segment.header.first_seq);
                at.chain = Chain { number: first.0, seq: first.1, previous: [0; 32] };
                at.digest_known = false;
            }
            self.link(&name, &segment.header, &at, None);
            self.trees.segment(&segment.header.tree);
            // Of a live log, what is above the watermark may be half written.
            let (known, above) =
                segment.batches.split_at(segment.batches.partition_point(|e| e.number < examined.watermark));
            for entry in above.iter().filter(|e| e.count > 0) {
                self.report.unstamped_batches += 1;
                let range = unstamped.get_or_insert(entry.number..entry.number);
                range.end = entry.number + 1;
            }
            let checked = if view.live { known } else { &segment.batches };
            let faults = self.reread(place, &name, checked)?;
            self.batches(place, &name, checked, &faults);
            if view.live {
                // They are acknowledged perhaps, and there, but not yet stamped.
                let mut lost = Vec::new();
                for entry in above {
                    self.acks.see(entry.first_seq, entry.end_seq(), &entry.digest, &mut |m| lost.push(m));
                }
                self.missing(place.shard, &lost);
                // What an epoch names is durable, whatever the stamps say.
                above.iter().for_each(|entry| self.trees.batch(&name, entry));
                self.tell_trees();
            }
            self.report.segments += 1;
            self.report.bytes += segment.end;
            (self.tell)(Told::Bytes(segment.file_bytes));
            let chain = match segment.batches.last() {
                Some(last) => Chain { number: last.number + 1, seq: last.end_seq(), previous: last.digest },
                None => at.chain,
            };
            let predecessor = Predecessor {
                index: segment.index,
                incarnation: segment.header.incarnation,
                end: segment.end,
            };
            at = Position {
                chain,
                digest_known: true,
                predecessor: Some(predecessor),
                index: Some(segment.index),
            };
        }
        if let Some(range) = unstamped.filter(|_| !view.live) {
            self.say(
                "UNSTAMPED",
                format!("shard {} {}", place.shard, words::span("batch", &range)),
                "nothing later says that they are durable: had one of them rotted, it would look like a torn tail",
                false,
            );
        }
        if examined.end.cut_bytes > 0 && !view.live && examined.damage.is_empty() {
            let meaning = format!(
                "{}: {} bytes behind its last batch were never acknowledged; opening the log ends it there",
                examined.end.label, examined.end.cut_bytes
            );
            self.say("TAIL", format!("shard {}", place.shard), meaning, false);
        }
        for unused in &examined.unused {
            let name = paths::segment(place.shard, unused.index);
            let meaning = match unused.what {
                UnusedKind::Spare => None,
                UnusedKind::UnfinishedRecovery => {
                    Some("a recovery was cut short before anybody saw it; the next one writes it anew")
                }
                UnusedKind::Void => Some(
                    "none of its batches counts: they were never acknowledged, or live on in a later segment",
                ),
            };
            (self.tell)(Told::Bytes(unused.file_bytes));
            // A superseded recovery gives its space back before the line that calls it void is on record, and a
            // crash may come between.
            if unused.what == UnusedKind::Spare {
                self.promised(view, unused.index, unused.file_bytes)?;
            }
            if let Some(meaning) = meaning.filter(|_| !view.live) {
                self.say(
                    "VOID",
                    name,
                    format!("{meaning} ({} bytes, not covered)", unused.nonblank_end),
                    false,
                );
            }
        }
        Ok(())
    }

    /// A segment was made with its whole length before it was used, and only sealing gives back what is left.
    fn promised(&mut self, view: &View, index: u64, file_bytes: u64) -> Result<(), ReadError> {
        let Some(SegmentState::Exists { bytes }) = view.manifest.segments.get(&index) else { return Ok(()) };
        if file_bytes >= *bytes {
            return Ok(());
        }
        let name = paths::segment(view.place.shard, index);
        let file = self.disk.open(&name, Access::ReadDirect).map_err(ReadError::io(&*name))?;
        let file_bytes = self.disk.bytes(&file).map_err(ReadError::io(&*name))?;
        if sealed::read_footer(self.disk, &file, file_bytes).map_err(ReadError::io(&*name))?.is_err() {
            self.say("LENGTH", name, format!("{file_bytes} bytes; it was made with {bytes}"), true);
        }
        Ok(())
    }

    /// Reads batches that `examine` accepted once more, for their records.
    fn reread(
        &mut self,
        place: Place,
        name: &str,
        entries: &[IndexEntry],
    ) -> Result<BTreeMap<u64, Fault>, ReadError> {
        let mut faults = BTreeMap::new();
        if entries.is_empty() {
            return Ok(faults);
        }
        let block = self.disk.block_bytes();
        let file = self.disk.open(name, Access::ReadDirect).map_err(ReadError::io(name))?;
        let mut buf = AlignedBuf::zeroed(1 << 20);
        let mut window = 0..0;
        let mut steps = ClockSteps::default();
        for entry in entries {
            let placed = (entry.end(block) - entry.offset) as usize;
            if buf.len() < placed {
                buf = AlignedBuf::zeroed(placed);
                window = 0..0;
            }
            if entry.offset < window.start || entry.end(block) > window.end {
                let filled = self.disk.read(&file, entry.offset, &mut buf).map_err(ReadError::io(name))?;
                window = entry.offset..entry.offset + filled as u64;
            }
            let from = (entry.offset - window.start) as usize;
            let to = (from + placed).min((window.end - window.start) as usize);
            let checked = open(&buf[from..to], block, place, entry).and_then(|batch| {
                steps.see(batch.header.number, &batch.header.anchor);
                records(&batch.header, batch.body, &mut |_, _| {})
            });
            if let Err(fault) = checked {
                faults.insert(entry.offset, fault);
            }
        }
        self.clock_steps(name, &steps);
        Ok(faults)
    }

    /// What the manifest names besides the chain.
    fn beside(&mut self, view: &View) -> Result<(), ReadError> {
        for (&index, _) in view.manifest.segments.iter().filter(|(_, state)| **state == SegmentState::Void) {
            let name = paths::segment(view.place.shard, index);
            match self.disk.open(&name, Access::Read) {
                Ok(_) => self.say(
                    "VOID",
                    name,
                    "on record as void: none of its batches counts (not covered)",
                    false,
                ),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    self.say("CUT-BYTES", name, "what recovery had cut off was kept here, and is gone", true);
                }
                Err(error) => return Err(ReadError::io(name)(error)),
            }
        }
        Ok(())
    }
}

/// Where the wall clock went back from one batch to the next. Honest clocks step, so it is told and no more.
#[derive(Default)]
struct ClockSteps {
    last: Option<Anchor>,
    first: Option<(u64, u64)>,
    count: u64,
}

impl ClockSteps {
    fn see(&mut self, number: u64, anchor: &Anchor) {
        if let Some(last) = self.last.replace(*anchor) {
            let back = last.wall_ns.saturating_sub(anchor.wall_ns);
            let known =
                |a: &Anchor| if a.uncertainty_ns == u32::MAX { 0 } else { i64::from(a.uncertainty_ns) };
            if back > known(&last) + known(anchor) {
                self.first.get_or_insert((number, back as u64));
                self.count += 1;
            }
        }
    }
}

/// The batches that a recovery copied out of this segment into the next, and that one's name. What stood
/// behind the end of this one was then in doubt, and may well have been acknowledged.
fn carried_from(disk: &ReadOnly, view: &View, index: u64) -> Option<(Range<u64>, String)> {
    for (&next, state) in view.manifest.segments.range(index + 1..) {
        // What an earlier attempt carried does not count.
        if matches!(state, SegmentState::Void | SegmentState::Retired) {
            continue;
        }
        let name = paths::segment(view.place.shard, next);
        let Some(header) = header_of(disk, &name) else { continue };
        if header.predecessor.is_some_and(|p| p.index == index) {
            let carried = header.first_batch..header.carried_end();
            return (header.origin == Origin::Recovery && !carried.is_empty()).then_some((carried, name));
        }
    }
    None
}

/// The header of a segment, if it is there and whole.
pub(crate) fn header_of(disk: &ReadOnly, name: &str) -> Option<Header> {
    let file = disk.open(name, Access::ReadDirect).ok()?;
    let mut block = AlignedBuf::zeroed(disk.block_bytes() as usize);
    let filled = disk.read(&file, 0, &mut block).ok()?;
    match Header::read(&block[..filled]) {
        Found::Good(header) => Some(*header),
        _ => None,
    }
}

fn batch_place(place: Place, name: &str, entry: &IndexEntry) -> String {
    format!("shard {} batch {} ({name} offset {})", place.shard, entry.number, entry.offset)
}
