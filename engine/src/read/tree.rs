//! Compares the tree of a shard's batches with what segment headers and epoch entries name, batch by batch.

use hanaper_shards::merkle::{self, Frontier};
use hanaper_shards::segment::footer::IndexEntry;
use hanaper_shards::wal::chain::Chain;

use super::evidence::Claims;
use super::verify::Finding;
use crate::checkpoint::entry::Claim;
use crate::words;

/// The tree of one shard while its batches go by.
pub(crate) struct TreeCheck {
    /// Of all batches so far; `None` behind a loss.
    tree: Option<Frontier>,
    /// What the segment's header names, until the batches are there.
    named: Option<Frontier>,
    /// What the epochs say of it.
    claims: Option<Claims>,
    /// Entries whose tree could not be computed, since batches before are lost.
    uncomputed: u64,
    /// Batches and records that the newest entry covers.
    covered: (u64, u64),
    /// What was found since it was last taken.
    pub(crate) found: Vec<Finding>,
}

impl TreeCheck {
    /// Without claims only headers are compared.
    pub(crate) fn new(claims: Option<Claims>) -> TreeCheck {
        let tree = Some(Frontier::new());
        TreeCheck { tree, named: None, claims, uncomputed: 0, covered: (0, 0), found: Vec::new() }
    }

    /// A segment begins, and its header names this tree.
    pub(crate) fn segment(&mut self, named: &Frontier) {
        self.named = Some(named.clone());
    }

    /// The next batch, of the segment of this name.
    pub(crate) fn batch(&mut self, name: &str, entry: &IndexEntry) {
        self.reached(name, entry.number);
        self.tree = self.tree.take().filter(|tree| tree.size() == entry.number);
        if let Some(tree) = &mut self.tree {
            tree.push(merkle::leaf(&entry.digest));
        }
        while let Some(claim) = self.claims.as_mut().and_then(|claims| claims.next_up_to(entry.number + 1)) {
            self.claimed(name, entry, &claim);
        }
    }

    /// All batches before this number have gone by: if the header names their tree, it is compared, and believed,
    /// since behind a loss it knows more.
    pub(crate) fn reached(&mut self, name: &str, number: u64) {
        let Some(named) = self.named.take_if(|named| named.size() == number) else { return };
        if self.tree.as_ref().is_some_and(|tree| tree.size() == number && *tree != named) {
            let meaning = "its header names another tree than that of the batches before it";
            self.say("SHARD-TREE", name.to_owned(), meaning.to_owned(), true);
        }
        self.tree = Some(named);
    }

    /// Compares what an epoch says of the shard with its batches up to this one.
    fn claimed(&mut self, name: &str, entry: &IndexEntry, claim: &Claim) {
        let Some(tree) = self.tree.as_ref().filter(|tree| tree.size() == claim.size) else {
            // Of none there is nothing to say; of what is lost it was said.
            self.uncomputed += u64::from(claim.size > 0);
            return;
        };
        if (tree.root(), entry.end_seq(), entry.digest) != (claim.root, claim.seqs, claim.head) {
            let place = format!("{name} batch {}", entry.number);
            let meaning =
                format!("epoch {} names another tree of the shard's batches up to here", claim.epoch);
            self.say("SHARD-ROOT", place, meaning, true);
        }
        self.covered = (claim.size, claim.seqs);
    }

    /// The chain has ended: what the epochs name and is not there. Gives the batches and records behind what they
    /// name.
    pub(crate) fn finish(&mut self, shard: u32, end: &Chain) -> (u64, u64) {
        let mut gone: Option<Claim> = None;
        while let Some(claim) = self.claims.as_mut().and_then(|claims| claims.next_up_to(u64::MAX)) {
            if claim.size > end.number {
                gone = Some(claim);
            } else {
                self.uncomputed += u64::from(claim.size > 0);
            }
        }
        if let Some(claim) = gone {
            let place = format!("shard {shard} {}", words::span("batch", &(end.number..claim.size)));
            let meaning = format!("epoch {} names them, and they are not in the log", claim.epoch);
            self.say("MISSING", place, meaning, true);
        }
        if self.uncomputed > 0 {
            let meaning = format!(
                "{} entries name trees that cannot be computed, since batches before are lost or damaged",
                self.uncomputed
            );
            self.say("UNCOMPUTED", format!("shard {shard}"), meaning, false);
        }
        (end.number.saturating_sub(self.covered.0), end.seq.saturating_sub(self.covered.1))
    }

    fn say(&mut self, verdict: &'static str, place: String, meaning: String, fails: bool) {
        self.found.push(Finding { verdict, place, meaning, fails });
    }
}
