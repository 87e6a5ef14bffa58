//! The steps of opening a log: its folder, its manifest, its shards, and another layout.

use std::collections::BTreeMap;
use std::path::Path as FsPath;
use std::time::{Duration, Instant};

use hanaper_shards::clock::Clock;
use hanaper_shards::io::Disk;
use hanaper_shards::io::disk::Folder;
use hanaper_shards::journal::{self, Journal, JournalError};
use hanaper_shards::manifest::{Layout, LogLine, LogState, ManifestError, SegmentState, ShardManifest};
use hanaper_shards::router::Router;
use hanaper_shards::segment::paths::{self, Name};
use hanaper_shards::wal::chain::{Chain, Place};
use hanaper_shards::wal::open::{self, Looked, Opened, Opening};
use hanaper_shards::wal::recovery::{self, Begin, RecoveryError};
use hanaper_shards::wal::sealed;

use crate::builder::Builder;
use crate::checkpoint::entry::{Event, ShardLine};
use crate::engine::append;
use crate::error::OpenError;
use crate::notary;
use crate::random;
use crate::read;
use crate::runtime;

/// How long the writes of a killed owner are waited for.
const IN_FLIGHT_WAIT: Duration = Duration::from_secs(5);

/// The segment that opening itself must zero is short, so that opening is quick; the next ones, made
/// beside the commits, have the full length.
fn first_segment_bytes(builder: &Builder) -> u64 {
    const FIRST_BYTES: u64 = 16 << 20;
    let longest_record = 8 * (builder.limits.payload_bytes_max as u64).next_multiple_of(64 << 10) + (1 << 20);
    builder.segment_bytes.min(FIRST_BYTES.max(longest_record))
}

pub(crate) fn open_folder(builder: &Builder) -> Result<Folder, OpenError> {
    let path = &builder.path;
    let io = |source| OpenError::Io { path: path.clone(), source };
    match std::fs::metadata(path) {
        Ok(meta) if !meta.is_dir() => {
            Err(io(std::io::Error::new(std::io::ErrorKind::NotADirectory, "not a folder")))
        }
        Ok(_) => {
            let folder = Folder::open(path).map_err(io)?;
            let names = folder.names().map_err(io)?;
            let is_log = names.iter().any(|name| paths::parse(name) == Name::LogManifest);
            if let Some(name) = read::in_the_way(&names).filter(|_| !is_log) {
                return Err(OpenError::NotALog { path: path.clone(), such_as: name.clone() });
            }
            if !is_log && !builder.create {
                return Err(OpenError::Missing(path.clone()));
            }
            Ok(folder)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && builder.create => Folder::create(path)
            .map_err(|source| match source.kind() {
                std::io::ErrorKind::NotFound if !has_parent(path) => OpenError::NoParent(path.clone()),
                _ => io(source),
            }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(OpenError::Missing(path.clone())),
        Err(error) => Err(io(error)),
    }
}

fn has_parent(path: &FsPath) -> bool {
    path.parent().is_none_or(|parent| parent.as_os_str().is_empty() || parent.is_dir())
}

pub(crate) fn open_manifest(
    folder: &Folder,
    builder: &Builder,
) -> Result<(Journal<Folder>, LogState), OpenError> {
    let manifest = |source: ManifestError| OpenError::Manifest { path: builder.path.clone(), source };
    let identity = journal::Identity { log: [0; 16], shard: u32::MAX };
    let found = match Journal::open(folder, paths::LOG_MANIFEST, identity) {
        Err(JournalError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => None,
        other => other.map_err(|e| manifest(e.into()))?,
    };
    if let Some((journal, contents)) = found {
        let state = LogState::from_lines(&contents.lines).map_err(|source| {
            manifest(ManifestError::Line { name: paths::LOG_MANIFEST.to_owned(), source })
        })?;
        if state.log != contents.log {
            let name = paths::LOG_MANIFEST.to_owned();
            return Err(manifest(JournalError::Foreign { name }.into()));
        }
        return Ok((journal, state));
    }
    // A manifest that holds nothing whole is a crash in the making of a log, unless there is more of one.
    let names = folder.names().map_err(|source| OpenError::Io { path: builder.path.clone(), source })?;
    let ours =
        |name: &String| matches!(paths::parse(name), Name::Segment { .. } | Name::ShardManifest { .. });
    if names.iter().any(ours) {
        return Err(OpenError::ManifestGone(builder.path.clone()));
    }
    let shards = builder.shards.unwrap_or_else(|| (runtime::cores().len() as u32).clamp(1, 256));
    let log: [u8; 16] = random::bytes();
    let layout = Layout {
        generation: 0,
        first_shard: 0,
        router: Router { seed: u64::from_le_bytes(random::bytes()), shards },
    };
    let created = Clock::start(0).anchor().wall_ns;
    let genesis = LogLine::Genesis { log, block_bytes: folder.block_bytes(), created };
    let lines = [genesis, LogLine::Layout(layout)];
    let identity = journal::Identity { log, shard: u32::MAX };
    let texts: Vec<String> = lines.iter().map(LogLine::write).collect();
    let journal = Journal::create(folder, paths::LOG_MANIFEST, identity, random::bytes(), &texts)
        .map_err(|e| manifest(e.into()))?;
    let mut state = LogState::default();
    lines.iter().for_each(|line| state.apply(line));
    Ok((journal, state))
}

/// Looks at all shards, each on a thread of its own, and changes nothing that was ever written to.
pub(crate) fn look_at(
    folder: &Folder,
    path: &FsPath,
    state: &LogState,
    layout: &Layout,
    named: &BTreeMap<u32, ShardLine>,
) -> Result<Vec<Looked<Folder>>, OpenError> {
    let io = |source| OpenError::Io { path: path.to_owned(), source };
    // Nobody else makes or removes files of a log that this process has locked.
    let entries = folder.list().map_err(io)?;
    if let Some(damage) = open::unknown_shard(state, entries.iter().map(|e| paths::parse(&e.name))) {
        return Err(OpenError::from_recovery(path.to_owned(), RecoveryError::Damaged(vec![damage])));
    }
    let looked = each_at_once(layout.shards().collect(), |shard| {
        let place = Place { log: state.log, generation: layout.generation, shard };
        let mut expected = state.expected(shard, layout.generation);
        expected.named = named.get(&shard).map(|n| Chain { number: n.size, seq: n.seqs, previous: n.head });
        let mut opening = Opening::begin(folder, place, expected, random::bytes())
            .map_err(|source| OpenError::Manifest { path: path.to_owned(), source })?;
        let deadline = Instant::now() + IN_FLIGHT_WAIT;
        while !opening.lock().map_err(io)? {
            if Instant::now() > deadline {
                return Err(OpenError::StillInFlight(path.to_owned()));
            }
            // The kernel says nothing when a dead process's last write lands; flock has no time limit.
            std::thread::sleep(Duration::from_millis(2));
        }
        opening.look(&entries).map_err(io)
    })?;
    let mut damage: Vec<_> = looked.iter().flat_map(|l| l.examined.damage.clone()).collect();
    let earlier = state.shards().filter(|(shard, _)| !layout.shards().contains(shard)).collect();
    let looked_back = each_at_once(earlier, |(shard, generation)| {
        let place = Place { log: state.log, generation, shard };
        open::look_back(folder, place, &state.expected(shard, generation), &entries)
            .map_err(|source| OpenError::Manifest { path: path.to_owned(), source })
    })?;
    damage.extend(looked_back.into_iter().flatten());
    if !damage.is_empty() {
        return Err(OpenError::from_recovery(path.to_owned(), RecoveryError::Damaged(damage)));
    }
    Ok(looked)
}

/// Recovers all shards: opening takes as long as the slowest.
pub(crate) fn recover(
    path: &FsPath,
    looked: Vec<Looked<Folder>>,
    epoch: u64,
    wall_ns: i64,
    builder: &Builder,
) -> Result<Vec<Opened<Folder>>, OpenError> {
    each_at_once(looked, |looked| {
        let begin = Begin {
            incarnation: random::bytes(),
            epoch,
            wall_ns,
            first_segment_bytes: first_segment_bytes(builder),
        };
        looked.recover(begin).map_err(|source| OpenError::from_recovery(path.to_owned(), source))
    })
}

/// As many at once as there are cores; in order, or the first error.
fn each_at_once<T: Send, U: Send, E: Send>(
    items: Vec<T>,
    one: impl Fn(T) -> Result<U, E> + Sync,
) -> Result<Vec<U>, E> {
    let mut out = Vec::with_capacity(items.len());
    let mut items = items.into_iter();
    let at_once = runtime::cores().len().max(1);
    loop {
        let group: Vec<T> = items.by_ref().take(at_once).collect();
        if group.is_empty() {
            return Ok(out);
        }
        let done: Vec<Result<U, E>> = std::thread::scope(|scope| {
            let threads: Vec<_> = group.into_iter().map(|item| scope.spawn(|| one(item))).collect();
            threads.into_iter().map(|t| t.join().expect("opening a shard does not panic")).collect()
        });
        for done in done {
            out.push(done?);
        }
    }
}

/// The greatest log time in shards of earlier layouts, so that time goes on rising.
pub(crate) fn old_log_time(folder: &Folder, state: &LogState) -> u64 {
    let newest = |(shard, generation)| {
        let place = Place { log: state.log, generation, shard };
        let manifest = ShardManifest::read(folder, place).ok()?;
        let (&index, SegmentState::Sealed(sealed)) =
            manifest.segments.iter().rev().find(|(_, s)| matches!(s, SegmentState::Sealed(_)))?
        else {
            return None;
        };
        Some(sealed::read_sealed(folder, place, index, sealed).ok()?.ok()?.0.time_max)
    };
    let live = state.layout().shards();
    state.shards().filter(|(shard, _)| !live.contains(shard)).filter_map(newest).max().unwrap_or(0)
}

/// Closes every shard of the old layout, then puts the new one on record.
pub(crate) fn reshard(
    folder: &Folder,
    journal: Journal<Folder>,
    state: LogState,
    shards: u32,
    builder: &Builder,
) -> Result<(Journal<Folder>, LogState, Vec<Event>), OpenError> {
    let path = &builder.path;
    let old = *state.layout();
    let named = match builder.checkpoints {
        true => notary::named(folder, path, state.log)?,
        false => BTreeMap::new(),
    };
    let looked = look_at(folder, path, &state, &old, &named)?;
    drop(journal);
    let wall_ns = Clock::start(0).anchor().wall_ns;
    let (mut ended, mut events) = (Vec::new(), Vec::new());
    for mut opened in recover(path, looked, state.epoch, wall_ns, builder)? {
        let shard = opened.place.shard;
        let mut jobs = std::mem::take(&mut opened.start.to_seal);
        jobs.extend(opened.start.active.take().map(hanaper_shards::shard::seal_job));
        for job in &jobs {
            hanaper_shards::wal::seal::seal(folder, &mut opened.manifest, job).map_err(|error| {
                OpenError::Io { path: path.clone(), source: std::io::Error::other(error.to_string()) }
            })?;
        }
        for spare in std::mem::take(&mut opened.start.spares) {
            recovery::retire(folder, shard, &mut opened.manifest, spare.index, "resharded")
                .map_err(|source| OpenError::from_recovery(path.clone(), source))?;
        }
        ended.push(LogLine::Ended { shard, chain: opened.start.chain });
        events.push(notary::ended(shard, &opened.start));
    }
    let (mut journal, mut state) = open_manifest(folder, builder)?;
    let mut lines = ended;
    lines.push(LogLine::Layout(Layout {
        generation: old.generation + 1,
        first_shard: old.first_shard + old.router.shards,
        router: Router { seed: old.router.seed, shards },
    }));
    append(&mut journal, &lines).map_err(|source| OpenError::Manifest { path: path.clone(), source })?;
    lines.iter().for_each(|line| state.apply(line));
    Ok((journal, state, events))
}
