//! Every file name of a log, once.
//!
//! ```text
//! log.manifest                      identity, layouts, openings
//! lock                              who has the log open for writing
//! shard-0000.manifest               what must exist of shard 0
//! shard-0000-0000000000.segment     segment 0 of shard 0
//! shard-0000-0000000001.prep        a segment that is being prepared
//! epochs-0000000000.journal         epoch entries and notes of key period 0
//! epochs-0000000000.prep            the same, being written anew in less space
//! tlog                              a folder: what other people's tools read
//! ```

/// The log's own manifest.
pub const LOG_MANIFEST: &str = "log.manifest";
/// Lock and owner of the log.
pub const LOCK: &str = "lock";
/// The file on which primitives are timed; it may be left by a kill, and is then used again.
pub const CALIBRATE: &str = ".calibrate";
/// The folder of tiles, entries and the latest checkpoint: derived, and not synced.
pub const TLOG: &str = "tlog";
/// Names that are nobody's business: settings, and what file systems put into their roots.
pub const IGNORED: [&str; 2] = ["hanaper.toml", "lost+found"];

/// What a file name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name {
    /// `log.manifest`
    LogManifest,
    /// `lock`
    Lock,
    /// `.calibrate`
    Calibrate,
    /// A shard's manifest.
    ShardManifest {
        /// Its shard.
        shard: u32,
    },
    /// A segment.
    Segment {
        /// Its shard.
        shard: u32,
        /// Its index within the shard.
        index: u64,
    },
    /// A segment in preparation.
    Prep {
        /// Its shard.
        shard: u32,
        /// The index that it will have.
        index: u64,
    },
    /// The epochs of a key period.
    Epochs {
        /// Its number.
        period: u64,
    },
    /// The epochs of a period in preparation.
    EpochsPrep {
        /// Its number.
        period: u64,
    },
    /// `tlog`
    Tlog,
    /// A name from [`IGNORED`].
    Ignored,
    /// Not ours.
    Stray,
}

/// Name of a shard's manifest.
pub fn shard_manifest(shard: u32) -> String {
    format!("shard-{shard:04}.manifest")
}

/// Name of a segment.
pub fn segment(shard: u32, index: u64) -> String {
    format!("shard-{shard:04}-{index:010}.segment")
}

/// Name of a segment in preparation.
pub fn prep(shard: u32, index: u64) -> String {
    format!("shard-{shard:04}-{index:010}.prep")
}

/// Name of the epochs of a key period.
pub fn epochs(period: u64) -> String {
    format!("epochs-{period:010}.journal")
}

/// Name of the epochs of a key period in preparation.
pub fn epochs_prep(period: u64) -> String {
    format!("epochs-{period:010}.prep")
}

/// Reads a name. Only the spelling that the functions above produce is ours.
pub fn parse(name: &str) -> Name {
    match name {
        LOG_MANIFEST => return Name::LogManifest,
        LOCK => return Name::Lock,
        CALIBRATE => return Name::Calibrate,
        TLOG => return Name::Tlog,
        _ if IGNORED.contains(&name) => return Name::Ignored,
        _ => {}
    }
    let ours = || {
        if let Some(rest) = name.strip_prefix("epochs-") {
            let (period, ending) = rest.split_once('.')?;
            let period: u64 = period.parse().ok()?;
            return match ending {
                "journal" => Some(Name::Epochs { period }),
                "prep" => Some(Name::EpochsPrep { period }),
                _ => None,
            };
        }
        let (shard, rest) = name.strip_prefix("shard-")?.split_at_checked(4)?;
        let shard: u32 = shard.parse().ok()?;
        if rest == ".manifest" {
            return Some(Name::ShardManifest { shard });
        }
        let (index, ending) = rest.strip_prefix('-')?.split_once('.')?;
        let index: u64 = index.parse().ok()?;
        match ending {
            "segment" => Some(Name::Segment { shard, index }),
            "prep" => Some(Name::Prep { shard, index }),
            _ => None,
        }
    };
    let Some(parsed) = ours() else { return Name::Stray };
    let canonical = match parsed {
        Name::ShardManifest { shard } => shard_manifest(shard),
        Name::Segment { shard, index } => segment(shard, index),
        Name::Prep { shard, index } => prep(shard, index),
        Name::Epochs { period } => epochs(period),
        Name::EpochsPrep { period } => epochs_prep(period),
        _ => return Name::Stray,
    };
    if canonical == name { parsed } else { Name::Stray }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        assert_eq!(parse(&segment(3, 12)), Name::Segment { shard: 3, index: 12 });
        assert_eq!(parse(&prep(0, u64::MAX)), Name::Prep { shard: 0, index: u64::MAX });
        assert_eq!(parse(&epochs(7)), Name::Epochs { period: 7 });
        assert_eq!(parse(&epochs_prep(u64::MAX)), Name::EpochsPrep { period: u64::MAX });
        assert_eq!(parse("epochs-7.journal"), Name::Stray);
        assert_eq!(parse(&shard_manifest(9999)), Name::ShardManifest { shard: 9999 });
        for stray in [
            "shard-0.manifest",
            "shard-0000-1.segment",
            "shard-+001-0000000001.segment",
            "x",
            "",
            "shard-é000.manifest",
        ] {
            assert_eq!(parse(stray), Name::Stray, "{stray}");
        }
    }
}
