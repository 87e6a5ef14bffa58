//! The slow work beside the shards: preparing segments ahead of use, and sealing full ones.
//!
//! One worker owns every shard's manifest, so nothing here is shared. It is a plain state machine
//! of two trades, each done a piece at a time: a [`Host`] turns both, and each turn says what to do
//! before the next one. So the same worker runs on a plain thread, or as two tasks of an executor
//! that weighs them.
//!
//! Zero-filling costs as much bandwidth as the ingest itself, so it is paced unless a shard is
//! about to run dry. A disk without room is asked again until it has some; the shards meanwhile
//! accept only what has its place.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use crossbeam_queue::SegQueue;
use hanaper_shards::io::Disk;
use hanaper_shards::manifest::{ShardLine, ShardManifest};
use hanaper_shards::shard::{Request, Supply};
use hanaper_shards::wake::Wake;
use hanaper_shards::wal::prepare::{Preparation, PrepareError, Prepared};
use hanaper_shards::wal::recovery;
use hanaper_shards::wal::seal::{self, SealJob};

/// How soon a disk without room is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// The longest rest after one piece: a disk that hung once is no reason to be late.
const REST_MAX: Duration = Duration::from_millis(20);
/// Until something rings.
const LONG: Duration = Duration::from_secs(3600);

/// What the worker and the drivers share.
pub(crate) struct SlowQueue {
    requests: SegQueue<(usize, Request)>,
    stop: AtomicBool,
    wake: Arc<Wake>,
    /// Counts what has rung, for tasks that must not miss any.
    rings: AtomicU64,
    sleepers: Mutex<Vec<Waker>>,
}

impl SlowQueue {
    pub(crate) fn new() -> std::io::Result<Arc<SlowQueue>> {
        Ok(Arc::new(SlowQueue {
            requests: SegQueue::new(),
            stop: AtomicBool::new(false),
            wake: Wake::new()?,
            rings: AtomicU64::new(0),
            sleepers: Mutex::default(),
        }))
    }

    /// Some requests a segment, so that a lock is good enough.
    pub(crate) fn send(&self, slot: usize, request: Request) {
        self.requests.push((slot, request));
        self.ring();
    }

    /// No further request comes; what is sealed is sealed, what is being prepared is given up.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.ring();
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn ring(&self) {
        self.rings.fetch_add(1, Ordering::SeqCst);
        self.wake.notify();
        for sleeper in self.sleepers().iter() {
            // By reference: the task's own thread is the only one that drops its wakers (see
            // `glommio_host`).
            sleeper.wake_by_ref();
        }
    }

    /// For a thread: sleeps until something rings, at most so long.
    fn sleep(&self, at_most: Duration) {
        self.wake.prepare_sleep();
        if self.requests.is_empty() && !self.is_stopped() {
            self.wake.sleep(at_most);
            // What has rung stays readable, and would end every later sleep at once.
            self.wake.drain();
        }
        self.wake.awake();
    }

    fn sleepers(&self) -> MutexGuard<'_, Vec<Waker>> {
        self.sleepers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For tasks.
#[cfg(feature = "glommio")]
impl SlowQueue {
    /// How often it has rung.
    pub(crate) fn rings(&self) -> u64 {
        self.rings.load(Ordering::SeqCst)
    }

    /// Has this task woken whenever something rings, until [`SlowQueue::forget_sleepers`].
    pub(crate) fn wake_by(&self, waker: &Waker) {
        let mut sleepers = self.sleepers();
        if !sleepers.iter().any(|known| known.will_wake(waker)) {
            sleepers.push(waker.clone());
        }
    }

    /// No task is woken any more.
    pub(crate) fn forget_sleepers(&self) {
        self.sleepers().clear();
    }
}

/// What to do before the next turn of a trade.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Nothing: there is more.
    Again,
    /// Leave the disk alone for so long.
    Rest(Duration),
    /// Sleep until something rings, at most so long.
    Wait(Duration),
    /// No turn any more.
    Done,
}

/// Where the slow work runs.
pub(crate) trait Host {
    /// Turns both trades of the worker until both are done.
    fn work<D: Disk>(self, worker: SlowWorker<D>) -> SlowWorker<D>;
}

/// The thread that calls.
pub(crate) struct PlainThread;

impl Host for PlainThread {
    fn work<D: Disk>(self, mut worker: SlowWorker<D>) -> SlowWorker<D> {
        loop {
            let preparing = worker.prepare_turn();
            // A shard that waits for its next segment comes before one that was sealed late.
            if preparing == Next::Again {
                continue;
            }
            match (preparing, worker.seal_turn()) {
                // Sealing is a rest of the zero-filling, too.
                (_, Next::Again | Next::Rest(_)) | (Next::Again, _) => {}
                (Next::Done, Next::Done) => return worker,
                (Next::Rest(rest), _) => std::thread::sleep(rest),
                (Next::Wait(one), Next::Wait(other)) => worker.queue.sleep(one.min(other)),
                // It was stopped between the two turns.
                (Next::Done, Next::Wait(_)) | (Next::Wait(_), Next::Done) => {}
            }
        }
    }
}

/// One shard, as the worker knows it.
pub(crate) struct SlowShard<D: Disk> {
    pub(crate) shard: u32,
    pub(crate) manifest: ShardManifest<D>,
    pub(crate) supply: Arc<Supply<D::File>>,
    pub(crate) wake: Arc<Wake>,
    pub(crate) segment_bytes: u64,
}

/// The worker.
pub(crate) struct SlowWorker<D: Disk> {
    pub(crate) disk: D,
    pub(crate) shards: Vec<SlowShard<D>>,
    pub(crate) queue: Arc<SlowQueue>,
    pub(crate) notices: Vec<String>,
    prepares: VecDeque<(usize, u64)>,
    /// The first of `prepares`, if it has been begun.
    preparation: Option<Preparation<D::File>>,
    ask_again: Option<Instant>,
    begun: VecDeque<(usize, u64)>,
    seals: VecDeque<(usize, Box<SealJob>)>,
    /// Shards whose seals failed: later ones must not overtake them.
    unsealable: Vec<usize>,
}

impl<D: Disk> SlowWorker<D> {
    pub(crate) fn new(disk: D, shards: Vec<SlowShard<D>>, queue: Arc<SlowQueue>) -> SlowWorker<D> {
        SlowWorker {
            disk,
            shards,
            queue,
            notices: Vec::new(),
            prepares: VecDeque::new(),
            preparation: None,
            ask_again: None,
            begun: VecDeque::new(),
            seals: VecDeque::new(),
            unsealable: Vec::new(),
        }
    }

    /// One piece of the segment that is being prepared.
    pub(crate) fn prepare_turn(&mut self) -> Next {
        if self.queue.is_stopped() {
            self.prepares.clear();
            if let Some(Err(error)) = self.preparation.take().map(|p| p.abandon(&self.disk)) {
                self.notices.push(error.to_string());
            }
            return Next::Done;
        }
        self.take_requests();
        if let Some(left) = self.ask_again.and_then(|at| at.checked_duration_since(Instant::now())) {
            return Next::Wait(left);
        }
        let Some(&(slot, index)) = self.prepares.front() else { return Next::Wait(LONG) };
        let begun = Instant::now();
        match self.piece(slot, index) {
            Ok(None) => {}
            Ok(Some(prepared)) => {
                self.prepares.pop_front();
                self.ask_again = None;
                self.shards[slot].supply.prepared.push(prepared);
                self.tell(slot, false);
            }
            // Nothing more can be put on record in that shard, however often it is tried: it goes on in what it has.
            Err(error @ PrepareError::Manifest(_)) => {
                self.notices.push(error.to_string());
                self.prepares.retain(|(of, _)| *of != slot);
                self.shards[slot].supply.broken.store(true, Ordering::Release);
                self.tell(slot, false);
            }
            Err(error) => {
                // Anything but a full disk is asked again too: the shard says what it lacks.
                let text = error.to_string();
                if !error.is_no_space() && self.notices.last() != Some(&text) {
                    self.notices.push(text);
                }
                self.ask_again = Some(Instant::now() + ASK_AGAIN);
                self.tell(slot, true);
                // Whoever stands behind it in the queue has no room either.
                for at in 0..self.prepares.len() {
                    self.tell(self.prepares[at].0, true);
                }
            }
        }
        // Three times as much rest as work, while the shard has room: zeros that run at the disk's full speed
        // made the first commits after opening ten times slower.
        match self.shards[slot].supply.hungry.load(Ordering::Acquire) {
            true => Next::Again,
            false => Next::Rest((3 * begun.elapsed()).min(REST_MAX)),
        }
    }

    fn piece(&mut self, slot: usize, index: u64) -> Result<Option<Prepared<D::File>>, PrepareError> {
        let s = &mut self.shards[slot];
        let mut preparation = match self.preparation.take() {
            Some(begun) => begun,
            None => Preparation::begin(&self.disk, s.shard, index, s.segment_bytes)?,
        };
        if preparation.step(&self.disk)? {
            self.preparation = Some(preparation);
            return Ok(None);
        }
        preparation.finish(&self.disk, &mut s.manifest).map(Some)
    }

    /// Tells a shard that something came, or that nothing can.
    fn tell(&self, slot: usize, no_space: bool) {
        let s = &self.shards[slot];
        s.supply.no_space.store(no_space, Ordering::Release);
        s.wake.notify();
    }

    /// One segment is put on record as begun, or sealed.
    pub(crate) fn seal_turn(&mut self) -> Next {
        // Looked at before the requests: none comes after it.
        let stopped = self.queue.is_stopped();
        self.take_requests();
        if let Some((slot, index)) = self.begun.pop_front() {
            self.note_begun(slot, index);
            return Next::Again;
        }
        match self.seals.pop_front() {
            Some((slot, job)) => {
                self.seal(slot, &job);
                Next::Again
            }
            None if stopped => Next::Done,
            None => Next::Wait(LONG),
        }
    }

    fn note_begun(&mut self, slot: usize, index: u64) {
        let s = &mut self.shards[slot];
        if let Err(error) = s.manifest.append(&[ShardLine::Begun { index }]) {
            // Without it, a segment whose front is lost looks like one that was never used; nothing else hangs on it.
            self.notices.push(error.to_string());
        }
    }

    fn seal(&mut self, slot: usize, job: &SealJob) {
        if self.unsealable.contains(&slot) {
            return;
        }
        let s = &mut self.shards[slot];
        if let Err(error) = seal::seal(&self.disk, &mut s.manifest, job) {
            // Durable all the same; the next open seals it.
            self.notices.push(error.to_string());
            self.unsealable.push(slot);
        }
    }

    fn take_requests(&mut self) {
        while let Some((slot, request)) = self.queue.requests.pop() {
            match request {
                Request::Prepare { index } => self.prepares.push_back((slot, index)),
                Request::Begun { index } => self.begun.push_back((slot, index)),
                Request::Seal(job) => self.seals.push_back((slot, job)),
            }
        }
    }

    /// At a clean close: spares give their space back.
    pub(crate) fn retire(&mut self, slot: usize, spares: Vec<Prepared<D::File>>) {
        let s = &mut self.shards[slot];
        let mut all = spares;
        while let Some(spare) = s.supply.prepared.pop() {
            all.push(spare);
        }
        for spare in all {
            if let Err(error) = recovery::retire(&self.disk, s.shard, &mut s.manifest, spare.index, "unused")
            {
                self.notices.push(error.to_string());
            }
        }
    }
}
