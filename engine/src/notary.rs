//! The thread that makes checkpoints: heads in, an entry to the disk, a signature, a note to the disk, then told.
//!
//! The coordinator decides and the epochs remember; here are the effects, in the order that the types ask for.
//! Commits never wait for any of it: when the disk or a key says no, that is told as trouble, and tried again.
//!
//! A period's key changes at each opening, each hour of it and each 4096 entries, in steps of which a crash may come between any
//! two: the next seed is durable, the entry that names its key is durable, the closing note is durable, the next
//! journal is begun, the old seed is erased. Whatever opens the log next does what is left ([`Notary::settle`]).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_queue::SegQueue;
use hanaper_shards::aligned::AlignedBuf;
use hanaper_shards::batch::LogId;
use hanaper_shards::clock::{Clock, SOURCE_SYNCHRONISED, SOURCE_SYSTEM};
use hanaper_shards::io::disk::{Folder, FolderFile};
use hanaper_shards::io::{Access, Disk};
use hanaper_shards::manifest::{Fenced, LogState, hex};
use hanaper_shards::segment::paths;
use hanaper_shards::shard::{Head, Published};
use hanaper_shards::wake::Wake;
use hanaper_shards::wal::recovery::{Cut, Start};
use sha2::{Digest, Sha256};

use crate::builder::Builder;
use crate::checkpoint::entry::{ClockSource, Event, ShardLine, Time};
use crate::checkpoint::epochs::{self, Entered, Epochs, EpochsError, Period};
use crate::checkpoint::keys::{self, KeyError, Keyring};
use crate::checkpoint::note::{Note, NoteFault, SigningKey};
use crate::checkpoint::signed;
use crate::checkpoint::tlog::{TlogError, TlogView};
use crate::coordinator::Coordinator;
use crate::error::OpenError;
use crate::random;

/// A period lasts so long, and not beyond its opening.
const PERIOD: Duration = Duration::from_secs(3600);
/// Nor does it have more entries, so that its journal stays short.
const PERIOD_ENTRIES: u64 = 4096;
/// The view for other people's tools is at most so far behind.
const VIEW_EVERY: Duration = Duration::from_secs(10);
/// A driver answers within its round; one that has ended never does.
const ANSWER_WAIT: Duration = Duration::from_millis(50);
/// After trouble, it is tried again so soon.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// Where drivers and the notary meet.
pub(crate) struct Desk {
    wanted: Vec<AtomicBool>,
    heads: SegQueue<(usize, Head)>,
    stop: AtomicBool,
    abandon: AtomicBool,
    wake: Arc<Wake>,
}

impl Desk {
    pub(crate) fn new(slots: usize) -> std::io::Result<Arc<Desk>> {
        Ok(Arc::new(Desk {
            wanted: (0..slots).map(|_| AtomicBool::new(false)).collect(),
            heads: SegQueue::new(),
            stop: AtomicBool::new(false),
            abandon: AtomicBool::new(false),
            wake: Wake::new()?,
        }))
    }

    /// For a driver: whether this shard's head is asked for.
    pub(crate) fn is_wanted(&self, slot: usize) -> bool {
        self.wanted[slot].load(Ordering::Acquire)
    }

    /// For a driver: gives it.
    pub(crate) fn give(&self, slot: usize, head: Head) {
        self.heads.push((slot, head));
        self.wanted[slot].store(false, Ordering::Release);
        self.wake.notify();
    }

    /// A last entry and a last note, then the end. All drivers have ended, and given their last heads.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.wake.notify();
    }

    /// The end, as by a crash.
    pub(crate) fn abandon(&self) {
        self.abandon.store(true, Ordering::Release);
        self.stop();
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Sleeps until something is given, at most so long.
    fn sleep(&self, at_most: Duration) {
        self.wake.prepare_sleep();
        if self.heads.is_empty() && !self.is_stopped() {
            self.wake.sleep(at_most);
            self.wake.drain();
        }
        self.wake.awake();
    }
}

/// What is known of a log's evidence, at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Evidence {
    /// The newest checkpoint that may be told: a signed note.
    pub note: Option<String>,
    /// How many entries it covers.
    pub size: u64,
    /// Batches that it covers, by the shard's place in the layout.
    pub batches: Vec<u64>,
    /// Wall clock of its newest entry, nanoseconds since 1970.
    pub wall_ns: i64,
    /// Why there is no newer one, if something is wrong.
    pub trouble: Option<String>,
}

/// Where the newest checkpoint is told.
#[derive(Default)]
pub(crate) struct Board {
    evidence: Mutex<Evidence>,
    changed: Condvar,
}

impl Board {
    pub(crate) fn read(&self) -> Evidence {
        self.lock().clone()
    }

    /// Waits until this many batches of a shard are covered; `false` after that time.
    pub(crate) fn wait(&self, slot: usize, batches: u64, at_most: Duration) -> bool {
        let covered = |e: &mut Evidence| e.batches.get(slot).is_none_or(|&b| b < batches);
        let waited = self.changed.wait_timeout_while(self.lock(), at_most, covered);
        let (evidence, _) = waited.unwrap_or_else(PoisonError::into_inner);
        evidence.batches.get(slot).is_some_and(|&b| b >= batches)
    }

    fn change(&self, change: impl FnOnce(&mut Evidence)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Evidence> {
        self.evidence.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the notary is told once.
pub(crate) struct Commission {
    pub(crate) disk: Folder,
    pub(crate) path: PathBuf,
    pub(crate) log: LogId,
    pub(crate) keys: Keyring,
    pub(crate) coordinator: Coordinator,
    pub(crate) first_shard: u32,
    pub(crate) desk: Arc<Desk>,
    pub(crate) board: Arc<Board>,
    pub(crate) published: Vec<Arc<Published>>,
    /// By shard, its driver's.
    pub(crate) wakes: Vec<Arc<Wake>>,
    pub(crate) clock: Clock,
    pub(crate) every: Duration,
    /// What the first entry of this opening says.
    pub(crate) start: Vec<Event>,
    /// What recovery has cut off, by shard: the first entry tells it too.
    pub(crate) cuts: Vec<(u32, Cut, String)>,
    /// What the last one says.
    pub(crate) end: Event,
    /// Text of the settings in force.
    pub(crate) settings: String,
}

/// What opening needs of the evidence: the keys, made if the log has no epochs yet, and what the newest entry says
/// of each live shard.
pub(crate) fn begin(
    disk: &Folder,
    builder: &Builder,
    state: &LogState,
) -> Result<(Keyring, BTreeMap<u32, ShardLine>), OpenError> {
    let (path, log) = (&builder.path, state.log);
    let failed = |source| OpenError::Keys { path: path.clone(), source };
    // Read once: by its 4096th entry the journal of a period takes tens of megabytes.
    let period = last_period(disk, path, log)?;
    let folder = match &builder.state {
        Some(folder) => folder.clone(),
        None => keys::default_state().map_err(failed)?,
    };
    let has_epochs = epochs::periods(disk).is_ok_and(|periods| !periods.is_empty());
    let keys = match Keyring::open(&folder, &log) {
        Err(KeyError::Missing { .. }) if !has_epochs => {
            let origin = builder.origin.clone().unwrap_or_else(|| keys::default_origin(&log));
            Keyring::create(&folder, &log, &origin)
        }
        other => other,
    };
    let keys = keys.map_err(failed)?;
    match has_gone_back(period.as_ref(), state, &keys).map_err(failed)? {
        Some(what) => Err(OpenError::Rollback { path: path.clone(), what }),
        None => Ok((keys, period.map(|period| period.heads).unwrap_or_default())),
    }
}

/// Whether this machine has signed more of this log than is here.
fn has_gone_back(
    period: Option<&Period>,
    state: &LogState,
    keys: &Keyring,
) -> Result<Option<String>, KeyError> {
    let size = period.map_or(0, |period| period.tree.size());
    if size < state.epochs {
        return Ok(Some(format!("it has {size} epoch entries, and was closed with {}", state.epochs)));
    }
    let Some(period) = period else { return Ok(None) };
    if let Some(newest) = signed::read(keys.folder()).filter(|newest| newest.size() > size) {
        return Ok(Some(format!("it has {size} epoch entries, and {} were signed here", newest.size())));
    }
    // A key is erased when the next period has begun; and only the very first entry comes before its key.
    if size > 0 && keys.period(period.number)?.is_none() {
        return Ok(Some(format!("it ends in key period {}, whose key has been erased since", period.number)));
    }
    Ok(None)
}

/// What the newest entry says of each live shard.
pub(crate) fn named(disk: &Folder, path: &Path, log: LogId) -> Result<BTreeMap<u32, ShardLine>, OpenError> {
    Ok(last_period(disk, path, log)?.map(|period| period.heads).unwrap_or_default())
}

/// The last period that holds anything.
fn last_period(disk: &Folder, path: &Path, log: LogId) -> Result<Option<Period>, OpenError> {
    let failed = |source| OpenError::Epochs { path: path.to_owned(), source };
    let periods = epochs::periods(disk).map_err(|source| OpenError::Io { path: path.to_owned(), source })?;
    for period in periods.into_iter().rev() {
        if let Some(read) = epochs::read(disk, log, period).map_err(failed)? {
            return Ok(Some(read));
        }
    }
    Ok(None)
}

/// Where a shard stands before its driver has begun.
pub(crate) fn first_head(start: &Start<FolderFile>) -> Head {
    let segment = start.segment();
    Head { chain: start.chain, tree: start.tree.clone(), times: None, segment }
}

/// What a recovery has cut off.
pub(crate) fn cuts(shard: u32, start: &Start<FolderFile>) -> Vec<(u32, Cut, String)> {
    let label = start.recovered.as_ref().map_or("recovery", |r| r.label);
    start.cut.iter().map(|cut| (shard, cut.clone(), label.to_owned())).collect()
}

fn cut_event(disk: &Folder, shard: u32, cut: &Cut, reason: &str) -> Event {
    let event = Event::new("cut")
        .with("shard", shard)
        .with("segment", cut.segment)
        .with("from", cut.bytes.start)
        .with("bytes", cut.bytes.end - cut.bytes.start);
    let event = match digest_of(disk, shard, cut) {
        Ok(digest) => event.with("sha256", hex(&digest)),
        // Told all the same: without its digest nobody can say later whether it was altered.
        Err(error) => event.with("unread", error),
    };
    event.with("reason", reason)
}

fn digest_of(disk: &Folder, shard: u32, cut: &Cut) -> std::io::Result<[u8; 32]> {
    let file = disk.open(&paths::segment(shard, cut.segment), Access::ReadDirect)?;
    let mut digest = Sha256::new();
    let mut buf = AlignedBuf::zeroed(1 << 20);
    let mut at = cut.bytes.start;
    while at < cut.bytes.end {
        let wanted = (cut.bytes.end - at).min(buf.len() as u64) as usize;
        let filled = disk.read(&file, at, &mut buf[..wanted])?;
        if filled == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        digest.update(&buf[..filled]);
        at += filled as u64;
    }
    Ok(digest.finalize().into())
}

/// A shard that gave its segment up.
pub(crate) fn fenced(f: &Fenced) -> Event {
    let event = Event::new("fenced").with("shard", f.shard).with("op", &f.op);
    event.with("errno", f.errno).with("offset", f.offset)
}

/// A shard whose layout is over.
pub(crate) fn ended(shard: u32, start: &Start<FolderFile>) -> Event {
    Event::new("ended")
        .with("shard", shard)
        .with("size", start.chain.number)
        .with("seqs", start.chain.seq)
        .with("root", hex(&start.tree.root()))
        .with("head", hex(&start.chain.previous))
}

/// The thread's state.
pub(crate) struct Notary {
    c: Commission,
    /// `None` after an error: only opening them again tells what is durable.
    epochs: Option<Epochs<Folder>>,
    key: Option<(u64, SigningKey)>,
    view: Option<TlogView>,
    began: Instant,
    period_began: Instant,
    viewed: Option<Instant>,
    /// Until this opening is on record, nothing else is.
    started: bool,
    /// Keys of periods that are over may be left.
    keys_left: bool,
    settings: Vec<String>,
    notices: Vec<String>,
}

/// Why a checkpoint was not made.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Epochs(#[from] EpochsError),
    #[error(transparent)]
    Keys(#[from] KeyError),
    #[error(transparent)]
    Note(#[from] NoteFault),
    #[error("the key of period {0} is gone, and what was entered with it cannot be signed")]
    KeyGone(u64),
}

impl Notary {
    pub(crate) fn new(commission: Commission) -> Notary {
        let now = Instant::now();
        Notary {
            c: commission,
            epochs: None,
            key: None,
            view: None,
            began: now,
            period_began: now,
            viewed: None,
            started: false,
            keys_left: true,
            settings: Vec::new(),
            notices: Vec::new(),
        }
    }

    /// Makes checkpoints until it is stopped; gives what went wrong.
    pub(crate) fn run(mut self) -> Vec<String> {
        loop {
            if self.c.desk.abandon.load(Ordering::Acquire) {
                return self.notices;
            }
            let last = self.c.desk.is_stopped();
            let done = if last { self.finish() } else { self.turn() };
            let wait = match done {
                Ok(wait) => wait,
                Err(trouble) => {
                    self.tell(&trouble);
                    TRY_AGAIN
                }
            };
            if last {
                return self.notices;
            }
            self.c.desk.sleep(wait);
        }
    }

    /// One round: gives how long nothing is due.
    fn turn(&mut self) -> Result<Duration, Trouble> {
        self.start()?;
        let entries = self.epochs.as_ref().map_or(0, Epochs::entries);
        if self.period_began.elapsed() >= PERIOD || entries >= PERIOD_ENTRIES {
            self.collect(true);
            self.change_period()?;
        }
        if self.left() == Duration::ZERO {
            self.collect(false);
            self.epoch(false)?;
        }
        if self.viewed.is_none_or(|at| at.elapsed() >= VIEW_EVERY) {
            self.refresh_view();
        }
        // Whether there is something new is looked at once a tick.
        Ok(self.left().min(self.c.every))
    }

    /// How long until an entry is due.
    fn left(&self) -> Duration {
        let moved = self.slots().any(|slot| self.is_behind(slot));
        self.c.coordinator.due(moved).saturating_sub(self.began.elapsed())
    }

    /// The last entry of this opening.
    fn finish(&mut self) -> Result<Duration, Trouble> {
        self.start()?;
        self.take_heads();
        let end = self.c.end.clone();
        self.c.coordinator.say(end);
        while self.c.coordinator.has_news() {
            self.epoch(true)?;
        }
        self.refresh_view();
        Ok(Duration::ZERO)
    }

    /// Puts this opening on record: a new period, or the first entry of all.
    fn start(&mut self) -> Result<(), Trouble> {
        self.settle()?;
        if self.started {
            return Ok(());
        }
        self.collect(true);
        self.settings = vec![self.c.settings.clone()];
        let mut events = std::mem::take(&mut self.c.start);
        for (shard, cut, reason) in std::mem::take(&mut self.c.cuts) {
            events.push(cut_event(&self.c.disk, shard, &cut, &reason));
        }
        events.push(Event::new("settings").with("sha256", hex(&Sha256::digest(&self.c.settings))));
        events.into_iter().for_each(|event| self.c.coordinator.say(event));
        match self.epochs.as_ref().is_some_and(|e| e.size() == 0) {
            true => self.begin_first_period()?,
            false => self.change_period()?,
        }
        self.started = true;
        Ok(())
    }

    /// Opens the epochs, and does what a crash or an error has left undone.
    fn settle(&mut self) -> Result<(), Trouble> {
        if self.epochs.is_none() {
            let (disk, log) = (&self.c.disk, self.c.log);
            let epochs = match Epochs::open(disk, log)? {
                Some(epochs) => epochs,
                None => Epochs::create(disk, log, random::bytes())?,
            };
            self.c.coordinator.resume(epochs.size());
            self.epochs = Some(epochs);
        }
        let epochs = self.epochs.as_ref().expect("just opened");
        if let Some(entered) = epochs.unsigned() {
            self.sign(entered)?;
        }
        self.step_into_next_period()?;
        if self.keys_left {
            self.erase_old_keys()?;
        }
        Ok(())
    }

    /// One entry, and its checkpoint.
    fn epoch(&mut self, roll_call: bool) -> Result<(), Trouble> {
        self.settle()?;
        let time = self.time();
        let now = self.began.elapsed();
        let epochs = self.epochs.as_mut().expect("settled");
        let (size, period) = (epochs.size(), epochs.period());
        let entry = self.c.coordinator.draft(now, time, size, period, roll_call);
        let entered = match epochs.enter(entry, &self.settings) {
            Ok(entered) => entered,
            Err(error) => {
                self.epochs = None;
                return Err(error.into());
            }
        };
        self.c.coordinator.entered();
        self.settings.clear();
        self.sign(entered)
    }

    /// Signs what is durable, makes the note durable, and tells it.
    fn sign(&mut self, entered: Entered) -> Result<(), Trouble> {
        let period = self.epochs.as_ref().expect("something was entered").period();
        let text = entered.text(self.c.keys.identity().vkey().name());
        self.load_period_key(period)?;
        let (_, key) = self.key.as_ref().expect("just loaded");
        let note = Note::sign(&text, &[self.c.keys.identity(), key])?;
        let epochs = self.epochs.as_mut().expect("something was entered");
        let noted = match epochs.keep(entered, note) {
            Ok(noted) => noted,
            Err(error) => {
                self.epochs = None;
                return Err(error.into());
            }
        };
        if let Err(error) = signed::write(self.c.keys.folder(), noted.note()) {
            // It protects from an older copy only, and lags behind at worst.
            self.notices.push(format!(
                "{}: the newest checkpoint is not remembered: {error}",
                self.c.keys.folder().display()
            ));
        }
        let wall_ns = epochs.last().map_or(0, |entry| entry.time.wall_ns);
        let covered = (0..self.c.published.len() as u32)
            .map(|slot| self.c.coordinator.named(self.c.first_shard + slot));
        let covered: Vec<u64> = covered.collect();
        self.c.board.change(|evidence| {
            *evidence = Evidence {
                note: Some(noted.note().to_string()),
                size: noted.size(),
                batches: covered,
                wall_ns,
                trouble: None,
            };
        });
        Ok(())
    }

    fn load_period_key(&mut self, period: u64) -> Result<(), Trouble> {
        if self.key.as_ref().is_none_or(|(of, _)| *of != period) {
            // Only the first period of all has a key that no entry has named before.
            let key = match period {
                0 if self.epochs.as_ref().is_some_and(|e| e.size() <= 1) => Some(self.c.keys.make_period(0)?),
                _ => self.c.keys.period(period)?,
            };
            self.key = Some((period, key.ok_or(Trouble::KeyGone(period))?));
        }
        Ok(())
    }

    /// The first entry of all names the keys that sign it.
    fn begin_first_period(&mut self) -> Result<(), Trouble> {
        self.name_period(0)?;
        let identity = self.c.keys.identity().vkey();
        let genesis = Event::new("genesis").with("origin", identity.name()).with("vkey", identity);
        self.c.coordinator.say_first(genesis.with("digest", "blake3"));
        self.epoch(true)
    }

    fn name_period(&mut self, number: u64) -> Result<(), Trouble> {
        let key = self.c.keys.make_period(number)?;
        self.c.coordinator.say_first(Event::new("period").with("number", number).with("vkey", key.vkey()));
        Ok(())
    }

    /// Names the key of the next period, closes this one, and goes on in the next.
    fn change_period(&mut self) -> Result<(), Trouble> {
        self.settle()?;
        let next = self.epochs.as_ref().expect("settled").period() + 1;
        self.name_period(next)?;
        self.epoch(true)?;
        self.step_into_next_period()?;
        self.period_began = Instant::now();
        Ok(())
    }

    /// If the last entry closes the period, goes on in the next.
    fn step_into_next_period(&mut self) -> Result<(), Trouble> {
        let closing =
            self.epochs.take_if(|epochs| epochs.last().is_some_and(|e| epochs::closes(e).is_some()));
        let Some(epochs) = closing else { return Ok(()) };
        let closed = epochs.period();
        self.epochs = Some(epochs.next_period(random::bytes())?);
        self.keys_left = true;
        self.erase_old_keys()?;
        Ok(epochs::compact(&self.c.disk, self.c.log, closed, random::bytes())?)
    }

    /// Whoever takes the machine from here on can sign for this period only.
    fn erase_old_keys(&mut self) -> Result<(), Trouble> {
        let period = self.epochs.as_ref().expect("settled").period();
        for old in self.c.keys.periods()?.into_iter().filter(|old| *old < period) {
            self.c.keys.erase_period(old)?;
        }
        self.keys_left = false;
        Ok(())
    }

    /// The view is derived: where it cannot be written it lags behind, and no checkpoint waits for it.
    fn refresh_view(&mut self) {
        self.viewed = Some(Instant::now());
        if let Err(error) = self.write_view() {
            self.view = None;
            let text = format!("tlog/ lags behind: {error}");
            if self.notices.last() != Some(&text) {
                self.notices.push(text);
            }
        }
    }

    fn write_view(&mut self) -> Result<(), TlogError> {
        let evidence = self.c.board.read();
        let Some(note) = evidence.note else { return Ok(()) };
        let view = match &mut self.view {
            Some(view) => view,
            none => none.insert(TlogView::open(&self.c.path, &self.c.disk, self.c.log)?),
        };
        view.advance(&self.c.disk, evidence.size, &note)
    }

    fn slots(&self) -> std::ops::Range<usize> {
        0..self.c.published.len()
    }

    fn is_behind(&self, slot: usize) -> bool {
        let durable = self.c.published[slot].durable_batches.load(Ordering::Acquire);
        durable > self.c.coordinator.named(self.c.first_shard + slot as u32)
    }

    /// Asks the drivers for heads, of all shards or of those that have moved.
    fn collect(&mut self, all: bool) {
        let asked: Vec<usize> = self.slots().filter(|&slot| all || self.is_behind(slot)).collect();
        for &slot in &asked {
            self.c.desk.wanted[slot].store(true, Ordering::SeqCst);
            self.c.wakes[slot].notify();
        }
        let deadline = Instant::now() + ANSWER_WAIT;
        loop {
            self.take_heads();
            let left = deadline.saturating_duration_since(Instant::now());
            let waiting = asked.iter().any(|&slot| self.c.desk.is_wanted(slot));
            if !waiting || left.is_zero() || self.c.desk.is_stopped() {
                // What was given between the two is there.
                return self.take_heads();
            }
            self.c.desk.sleep(left);
        }
    }

    fn take_heads(&mut self) {
        while let Some((slot, head)) = self.c.desk.heads.pop() {
            self.c.coordinator.head(self.c.first_shard + slot as u32, &head);
        }
    }

    fn time(&self) -> Time {
        let anchor = self.c.clock.anchor();
        Time {
            wall_ns: anchor.wall_ns,
            uncertainty_ns: Some(anchor.uncertainty_ns).filter(|&ns| ns != u32::MAX),
            clock: match anchor.source {
                SOURCE_SYNCHRONISED => ClockSource::Synchronised,
                SOURCE_SYSTEM => ClockSource::System,
                _ => ClockSource::Unknown,
            },
        }
    }

    fn tell(&mut self, trouble: &Trouble) {
        let text = format!("no newer checkpoint: {trouble}");
        if self.notices.last() != Some(&text) {
            self.notices.push(text.clone());
        }
        self.c.board.change(|evidence| evidence.trouble = Some(text));
    }
}
