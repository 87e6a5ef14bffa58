//! Ranges and damage as people read them. Machines get first and count, or half-open ranges in code.

use std::ops::Range;

use hanaper_shards::wal::chain::Damage;

/// `batch 1`, `batches 1 to 3`: the last one is meant, too. `one` is `batch` or `record`.
pub fn span(one: &str, range: &Range<u64>) -> String {
    let many = if one.ends_with("ch") { "es" } else { "s" };
    match range.end.saturating_sub(range.start) {
        0 => format!("no {one}"),
        1 => format!("{one} {}", range.start),
        _ => format!("{one}{many} {} to {}", range.start, range.end - 1),
    }
}

/// `record 1`, `records 1 to 439 (439 records)`
pub fn records(seqs: &Range<u64>) -> String {
    match seqs.end.saturating_sub(seqs.start) {
        0 | 1 => span("record", seqs),
        n => format!("{} ({n} records)", span("record", seqs)),
    }
}

/// What damage means. A batch whose digest holds is not altered, whichever row of recovery's table refuses it.
pub(crate) fn meaning(damage: &Damage) -> String {
    match damage.verdict {
        "PADDING" => {
            "data where zeros must be, behind a batch whose digest holds: nothing is lost".to_owned()
        }
        _ => damage.meaning.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A range that is read as if its end belonged to it must not name one that does not.
    #[test]
    fn a_range_names_its_last_one() {
        assert_eq!(span("batch", &(1..2)), "batch 1");
        assert_eq!(span("batch", &(1..4)), "batches 1 to 3");
        assert_eq!(span("batch", &(4..4)), "no batch");
        assert_eq!(records(&(1..440)), "records 1 to 439 (439 records)");
        assert_eq!(records(&(7..8)), "record 7");
    }
}
