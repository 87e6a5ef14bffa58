//! Checks that everything that must exist does, unaltered.
//!
//! What must exist is said by the manifests; every file of the folder is accounted for. Every byte
//! of a sealed segment is read: header, batches with their digests and their chain, records with
//! their checksums, padding, footer. Of the chain behind them all that recovery would keep is checked,
//! and what no later stamp covers is counted apart.
//!
//! One line a finding. What fails is damage; what does not fail is worth knowing: a torn tail that
//! was never acknowledged, losses on record, a clock that stepped.
//!
//! It proves that the log is consistent in itself. Whoever can rewrite the whole folder can make
//! another one that is.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use hanaper_shards::io::{Disk, Entry};
use hanaper_shards::journal::{self, Identity};
use hanaper_shards::manifest::SegmentState;
use hanaper_shards::segment::paths::{self, Name};
use hanaper_shards::wal::chain::Place;

use super::acks::{self, ShardAcks};
use super::check::{ShardCheck, Told};
use super::disk::ReadOnly;
use super::evidence::{self, Anchors, Claims, Evidence};
use super::view::{self, View};
use crate::error::{ErrorKind, ReadError};
use crate::words;

/// What to check besides the log itself.
#[derive(Default)]
pub struct VerifyOptions<'a> {
    /// A file of acknowledgements that somebody kept (`-` is standard input): each must be found as it was given.
    pub acks: Option<PathBuf>,
    /// A public key and checkpoints that come from elsewhere.
    pub anchors: Anchors<'a>,
    /// Told from time to time how many bytes are done, and of how many.
    pub progress: Option<&'a dyn Fn(u64, u64)>,
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// A word in capitals, stable: `BATCH-DIGEST`, `MISSING`, …
    pub verdict: &'static str,
    /// Where.
    pub place: String,
    /// What it means.
    pub meaning: String,
    /// Whether the log is not what it was.
    pub fails: bool,
}

/// What was covered, and how it ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Shards, those of earlier layouts included.
    pub shards: u32,
    /// Segments with batches.
    pub segments: u64,
    /// Batches that are whole and in their place.
    pub batches: u64,
    /// Records in them.
    pub records: u64,
    /// Bytes of all that.
    pub bytes: u64,
    /// Findings that fail.
    pub failures: u64,
    /// How many of them are files in the folder that were never the log's.
    pub strays: u64,
    /// Losses that are on record.
    pub losses: u64,
    /// Acknowledgements that were looked for.
    pub acks: u64,
    /// Whether the last line of their file was torn, and passed over.
    pub torn_ack: bool,
    /// Batches with records at the end of a shard that no later stamp covers.
    pub unstamped_batches: u64,
    /// Somebody was writing to it.
    pub live: bool,
    /// Batches behind what the newest epoch entry names.
    pub beyond_batches: u64,
    /// Records behind that.
    pub beyond_records: u64,
    /// What the log says of itself, as far as it is right.
    pub evidence: Evidence,
}

impl Report {
    fn add(&mut self, shard: &Report) {
        self.shards += 1;
        self.segments += shard.segments;
        self.batches += shard.batches;
        self.records += shard.records;
        self.bytes += shard.bytes;
        self.failures += shard.failures;
        self.losses += shard.losses;
        self.unstamped_batches += shard.unstamped_batches;
        self.beyond_batches += shard.beyond_batches;
        self.beyond_records += shard.beyond_records;
        self.live |= shard.live;
    }
}

/// Checks a log. An error means that it could not be checked; damage is a [`Finding`] that fails.
pub fn verify(
    path: impl AsRef<Path>,
    options: &VerifyOptions<'_>,
    found: &mut dyn FnMut(Finding),
) -> Result<Report, ReadError> {
    // First, so that all that they speak of was durable before the log is looked at.
    let kept = options.acks.as_deref().map(acks::read).transpose()?.unwrap_or_default();
    let mut acks = kept.shards;
    let disk = super::folder(path.as_ref())?;
    let mut report = Report { acks: kept.count, torn_ack: kept.torn, ..Report::default() };
    let mut say = |report: &mut Report, finding: Finding| {
        report.failures += u64::from(finding.fails);
        found(finding);
    };
    let taken = taken_names(&disk)?;
    for name in &taken {
        let meaning = "a file of the log should stand here, and this is none; move it elsewhere";
        say(&mut report, fails("STRAY", name, meaning));
    }
    if taken.iter().any(|n| matches!(paths::parse(n), Name::LogManifest | Name::Lock)) {
        say(&mut report, fails("NOT-COVERED", paths::LOG_MANIFEST, "nothing of the log was checked"));
        return Ok(report);
    }
    // Read before the folder: what it names is there by then.
    let state = view::log_and_names(&disk);
    let entries = disk.list().map_err(ReadError::io(disk.path().display().to_string()))?;
    let (log, contents, stale) = match state {
        Ok(read) => read,
        Err(error) if error.kind() == ErrorKind::Integrity || holds_a_log(&error, &entries) => {
            let meaning = format!("{error}; nothing else of the log was checked");
            say(&mut report, fails("MANIFEST", paths::LOG_MANIFEST, meaning));
            return Ok(report);
        }
        Err(error) => return Err(error),
    };
    if let Some(stale) = stale {
        let meaning = format!("{}; those files were not checked, and must not be removed", stale.meaning);
        say(&mut report, fails(stale.verdict, stale.place, meaning));
    }
    torn(&mut report, &mut say, paths::LOG_MANIFEST, contents.torn_bytes);
    report.bytes += contents.end;
    for f in &log.fenced {
        let place = format!("shard {}", f.shard);
        let meaning = format!(
            "it stopped after a failed {} (errno {}, offset {}): nothing was acknowledged from there on",
            f.op, f.errno, f.offset
        );
        say(&mut report, notes("FENCED", place, meaning));
    }

    // Before the shards, so that all that it names was durable when those are looked at.
    let mut told = Vec::new();
    report.evidence = evidence::check(&disk, &log, &options.anchors, &mut |finding| told.push(finding))?;
    told.into_iter().for_each(|finding| say(&mut report, finding));
    report.bytes += report.evidence.bytes;
    let places: Vec<Place> = super::places(&log).collect();
    let mut shards = Vec::new();
    for place in &places {
        let name = paths::shard_manifest(place.shard);
        if taken.iter().any(|n| belongs_to(n, place.shard)) {
            let meaning = "it was not checked, since something else stands in the place of one of its files";
            say(&mut report, fails("NOT-COVERED", format!("shard {}", place.shard), meaning));
            continue;
        }
        if !entries.iter().any(|e| e.name == name) {
            if has_segments(&entries, place.shard) {
                say(
                    &mut report,
                    fails(
                        "MISSING",
                        name,
                        "the manifest of a shard that has segments is gone; they were not checked",
                    ),
                );
            } else {
                shards.push((*place, None));
            }
            continue;
        }
        let identity = Identity { log: place.log, shard: place.shard };
        match journal::read(&disk, &name, identity) {
            Ok(contents) => {
                torn(&mut report, &mut say, &name, contents.as_ref().map_or(0, |c| c.torn_bytes));
                report.bytes += contents.map_or(0, |c| c.end);
            }
            Err(error) => {
                let error = ReadError::from(error);
                if error.kind() == ErrorKind::Io {
                    return Err(error);
                }
                say(
                    &mut report,
                    fails("MANIFEST", name, format!("{error}; nothing of shard {} was checked", place.shard)),
                );
                continue;
            }
        }
        match View::take(&disk, *place, &log) {
            Ok(view) => shards.push((*place, Some(view))),
            Err(error) if error.kind() == ErrorKind::Io => return Err(error),
            Err(error) => {
                say(
                    &mut report,
                    fails("MANIFEST", name, format!("{error}; nothing of shard {} was checked", place.shard)),
                );
            }
        }
    }
    files(&disk, &shards, &mut report, &mut say)?;

    let jobs: Vec<Job> = shards
        .into_iter()
        .map(|(place, view)| {
            let acks = acks.remove(&place.shard).unwrap_or_default();
            Job { acks, place, view, entries: report.evidence.entries }
        })
        .collect();
    for (shard, mut left) in acks {
        let mut runs = Vec::new();
        left.finish(&mut |m| runs.push((m.first, m.end)));
        for (first, end) in runs {
            let place = format!("shard {shard} {}", words::span("record", &(first..end)));
            say(
                &mut report,
                fails(
                    "ACKED-MISSING",
                    place,
                    "acknowledged, and the log has no such shard, or it cannot be read",
                ),
            );
        }
    }
    let total = total_bytes(&entries, &jobs);
    let results = run(&disk, jobs, total, options.progress, found)?;
    vanished(&log, &results, &mut report, found);
    for result in &results {
        report.add(&result.report);
    }
    Ok(report)
}

fn fails(verdict: &'static str, place: impl Into<String>, meaning: impl Into<String>) -> Finding {
    Finding { verdict, place: place.into(), meaning: meaning.into(), fails: true }
}

fn notes(verdict: &'static str, place: impl Into<String>, meaning: impl Into<String>) -> Finding {
    Finding { fails: false, ..fails(verdict, place, meaning) }
}

/// A folder without `log.manifest` that has segments was a log once.
fn holds_a_log(error: &ReadError, entries: &[Entry]) -> bool {
    matches!(error, ReadError::NotALog { .. })
        && entries.iter().any(|e| {
            matches!(paths::parse(&e.name), Name::Segment { .. } | Name::ShardManifest { .. }) && e.bytes > 0
        })
}

fn has_segments(entries: &[Entry], shard: u32) -> bool {
    entries.iter().any(|e| matches!(paths::parse(&e.name), Name::Segment { shard: s, .. } if s == shard))
}

fn torn(report: &mut Report, say: &mut dyn FnMut(&mut Report, Finding), name: &str, bytes: u64) {
    if bytes > 0 {
        let meaning = format!("{bytes} bytes at its end belong to an entry that was never finished");
        say(report, notes("TAIL", name, meaning));
    }
}

type Shards = [(Place, Option<View>)];

/// Accounts for every name in the folder.
fn files(
    disk: &ReadOnly,
    shards: &Shards,
    report: &mut Report,
    say: &mut dyn FnMut(&mut Report, Finding),
) -> Result<(), ReadError> {
    let folder = disk.path().display().to_string();
    for found in std::fs::read_dir(disk.path()).map_err(ReadError::io(&*folder))? {
        let found = found.map_err(ReadError::io(&*folder))?;
        let name = found.file_name().to_string_lossy().into_owned();
        let parsed = paths::parse(&name);
        if parsed == Name::Ignored {
            continue;
        }
        match found.file_type() {
            Ok(kind) if kind.is_file() => {}
            // It was named before all others.
            Ok(_) if parsed != Name::Stray => continue,
            Ok(_) => {}
            // The owner removed it meanwhile.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(ReadError::io(name)(error)),
        }
        let ours = match parsed {
            Name::LogManifest | Name::Lock | Name::Calibrate => true,
            Name::Epochs { .. } | Name::EpochsPrep { .. } | Name::Tlog => true,
            // Of a shard that came while this was read, or that `log.manifest` should know: that was said.
            Name::ShardManifest { .. } | Name::Prep { .. } | Name::Segment { .. } => true,
            Name::Ignored | Name::Stray => false,
        };
        if !ours {
            report.strays += u64::from(parsed == Name::Stray);
            say(report, fails("STRAY", name, "it is not a file of this log; move it elsewhere"));
            continue;
        }
        let of_dead =
            |shard| shards.iter().any(|(p, v)| p.shard == shard && v.as_ref().is_some_and(|v| !v.live));
        if let Name::Prep { shard, .. } = parsed
            && of_dead(shard)
        {
            let meaning =
                "a segment that was being prepared when the log was killed; opening the log removes it";
            say(report, notes("LEFTOVER", name, meaning));
            continue;
        }
        let Name::Segment { shard, index } = parsed else { continue };
        let Some(view) = shards.iter().find_map(|(p, v)| v.as_ref().filter(|_| p.shard == shard)) else {
            continue;
        };
        match view.manifest.segments.get(&index) {
            Some(SegmentState::Retired) => {
                if found.path().exists() {
                    say(
                        report,
                        notes(
                            "RETIRED",
                            name,
                            "on record as removed, and still here; opening the log removes it",
                        ),
                    );
                }
            }
            Some(_) => {}
            // A crash between renaming a spare and putting it on record leaves a blank one.
            None => {
                let blank = view::is_blank(disk, &name)?;
                if view::is_listed_now(disk, view.place, index)? {
                    continue;
                }
                if !blank {
                    say(report, fails("STRAY", name, "a segment with data that the manifest does not name"));
                } else if of_dead(shard) {
                    let meaning = "a prepared segment that is not on record yet; opening the log takes it";
                    say(report, notes("LEFTOVER", name, meaning));
                }
            }
        }
    }
    Ok(())
}

/// Names of files of a log that something else has: a folder, a link, a pipe.
pub(crate) fn taken_names(disk: &ReadOnly) -> Result<Vec<String>, ReadError> {
    let folder = disk.path().display().to_string();
    let mut taken = Vec::new();
    for found in std::fs::read_dir(disk.path()).map_err(ReadError::io(&*folder))? {
        let found = found.map_err(ReadError::io(&*folder))?;
        let name = found.file_name().to_string_lossy().into_owned();
        // The view of other people's tools is a folder, and nothing else may stand there.
        let wrong = |kind: std::fs::FileType| match paths::parse(&name) {
            Name::Ignored | Name::Stray => false,
            Name::Tlog => !kind.is_dir(),
            _ => !kind.is_file(),
        };
        if found.file_type().is_ok_and(wrong) {
            taken.push(name);
        }
    }
    taken.sort();
    Ok(taken)
}

fn belongs_to(name: &str, shard: u32) -> bool {
    match paths::parse(name) {
        Name::ShardManifest { shard: s } | Name::Segment { shard: s, .. } => s == shard,
        _ => false,
    }
}

/// One shard's check.
struct Job {
    place: Place,
    /// `None` if it has no manifest yet.
    view: Option<View>,
    acks: ShardAcks,
    /// Entries that may speak of it.
    entries: u64,
}

struct Done {
    place: Place,
    has_manifest: bool,
    report: Report,
}

enum Message {
    Told(Told),
    Done(Box<Result<Done, ReadError>>),
}

/// Checks the shards, as many at once as there are cores.
fn run(
    disk: &ReadOnly,
    jobs: Vec<Job>,
    total: u64,
    progress: Option<&dyn Fn(u64, u64)>,
    found: &mut dyn FnMut(Finding),
) -> Result<Vec<Done>, ReadError> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(jobs.len());
    let jobs: Vec<Mutex<Option<Job>>> = jobs.into_iter().map(|job| Mutex::new(Some(job))).collect();
    let next = AtomicUsize::new(0);
    let mut done = Vec::new();
    let mut failed = None;
    std::thread::scope(|scope| {
        // Bounded, so that findings by the million wait for whoever prints them.
        let (sender, receiver) = mpsc::sync_channel(1024);
        for _ in 0..threads {
            let sender = sender.clone();
            let (jobs, next) = (&jobs, &next);
            scope.spawn(move || {
                while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let job = job.lock().ok().and_then(|mut job| job.take()).expect("each is taken once");
                    let result = check(disk, job, &sender);
                    if sender.send(Message::Done(Box::new(result))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let mut bytes = 0;
        for message in receiver {
            match message {
                Message::Told(Told::Found(finding)) => found(finding),
                Message::Told(Told::Bytes(more)) => {
                    bytes += more;
                    if let Some(progress) = progress {
                        progress(bytes.min(total), total);
                    }
                }
                Message::Done(result) => match *result {
                    Ok(shard) => done.push(shard),
                    Err(error) => failed = Some(error),
                },
            }
        }
    });
    done.sort_by_key(|d| d.place.shard);
    failed.map_or(Ok(done), Err)
}

fn check(disk: &ReadOnly, job: Job, sender: &mpsc::SyncSender<Message>) -> Result<Done, ReadError> {
    // Whoever listens has gone only if he panicked; then nothing matters any more.
    let mut tell = |told| drop(sender.send(Message::Told(told)));
    let claims = Claims::new(disk, job.place.log, job.place.shard, job.entries)?;
    let mut check = ShardCheck::new(disk, job.acks, Some(claims), &mut tell);
    match &job.view {
        Some(view) => check.run(view)?,
        None => check.without_manifest(job.place),
    }
    Ok(Done { place: job.place, has_manifest: job.view.is_some(), report: check.report })
}

/// A shard without manifest and segments was never opened, or is gone as a whole. A crash while the
/// log or a layout is made leaves the first, so it is the second only if its layout was ever open.
fn vanished(
    log: &hanaper_shards::manifest::LogState,
    results: &[Done],
    report: &mut Report,
    found: &mut dyn FnMut(Finding),
) {
    for gone in results.iter().filter(|d| !d.has_manifest) {
        if log.expected(gone.place.shard, gone.place.generation).manifest {
            report.failures += 1;
            found(fails(
                "SHARD-VANISHED",
                format!("shard {}", gone.place.shard),
                "its manifest and all its segments are gone, although the log has been open with it",
            ));
        }
    }
}

/// What the check will read.
fn total_bytes(entries: &[Entry], jobs: &[Job]) -> u64 {
    let counts = |name: &str| match paths::parse(name) {
        Name::Segment { shard, index } => jobs.iter().filter_map(|j| j.view.as_ref()).any(|v| {
            v.place.shard == shard
                && !matches!(
                    v.manifest.segments.get(&index),
                    Some(SegmentState::Void | SegmentState::Retired)
                )
        }),
        _ => false,
    };
    entries.iter().filter(|e| counts(&e.name)).map(|e| e.bytes).sum()
}
