//! How a log is opened: every setting, its default and its limits, in one place.

use std::path::PathBuf;
use std::time::Duration;

use hanaper_ingest::Limits;
use hanaper_shards::ack::Stopped;
use hanaper_shards::record;
use hanaper_shards::segment::{SEGMENT_BYTES_DEFAULT, SEGMENT_BYTES_MIN};

pub use hanaper_shards::io::probe::Backend;

use crate::engine::Log;
use crate::error::OpenError;
use crate::read;

/// The most shards that may be open at a time.
pub const SHARDS_MAX: u32 = 256;

/// What hosts the shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Driver {
    /// Plain threads, each pinned to a core.
    #[default]
    Threads,
    /// A glommio executor per core (needs the feature `glommio`).
    Glommio,
}

/// What happens, besides the error that every waiter gets, when a write or a sync has failed.
#[derive(Default)]
pub enum FailurePolicy {
    /// Nothing.
    #[default]
    Return,
    /// This is called, once a shard, on its driver's thread.
    Call(Box<dyn Fn(&Stopped) + Send + Sync>),
    /// The process is aborted.
    Abort,
}

impl std::fmt::Debug for FailurePolicy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            FailurePolicy::Return => "Return",
            FailurePolicy::Call(_) => "Call",
            FailurePolicy::Abort => "Abort",
        })
    }
}

/// Opens a log. Made by [`Log::builder`].
#[derive(Debug)]
pub struct Builder {
    pub(crate) path: PathBuf,
    pub(crate) shards: Option<u32>,
    pub(crate) reshard: bool,
    pub(crate) segment_bytes: u64,
    pub(crate) limits: Limits,
    /// `None`: as much as the segment allows, up to the default.
    payload_bytes_max: Option<usize>,
    pub(crate) driver: Driver,
    pub(crate) backend: Backend,
    pub(crate) on_failure: FailurePolicy,
    pub(crate) create: bool,
    pub(crate) pin: bool,
    pub(crate) spin: Option<Duration>,
    pub(crate) slice: Option<Duration>,
    pub(crate) depth_max: usize,
    pub(crate) pipeline_bytes: usize,
    pub(crate) calibrate: bool,
    pub(crate) checkpoints: bool,
    pub(crate) checkpoint_every: Duration,
    pub(crate) state: Option<PathBuf>,
    pub(crate) origin: Option<String>,
}

impl Builder {
    pub(crate) fn new(path: PathBuf) -> Builder {
        Builder {
            path,
            shards: None,
            reshard: false,
            segment_bytes: SEGMENT_BYTES_DEFAULT,
            limits: Limits::default(),
            payload_bytes_max: None,
            driver: Driver::default(),
            backend: Backend::Auto,
            on_failure: FailurePolicy::default(),
            create: true,
            pin: true,
            spin: None,
            slice: Some(Duration::from_micros(150)),
            depth_max: 4,
            pipeline_bytes: 64 << 10,
            calibrate: true,
            checkpoints: true,
            checkpoint_every: Duration::from_secs(1),
            state: None,
            origin: None,
        }
    }

    /// Whether checkpoints are made: signed notes on all that is durable, which other people's tools check.
    /// Default: yes.
    pub fn checkpoints(mut self, checkpoints: bool) -> Builder {
        self.checkpoints = checkpoints;
        self
    }

    /// The least time between two checkpoints. Default 1 s; an idle log makes one every ten minutes.
    pub fn checkpoint_every(mut self, every: Duration) -> Builder {
        self.checkpoint_every = every;
        self
    }

    /// The folder of keys, which is never the log's own or within it. Default: `HANAPER_STATE`, else
    /// `$XDG_STATE_HOME/hanaper`, else `~/.local/state/hanaper`. Each log has a folder of its own there.
    pub fn state(mut self, folder: impl Into<PathBuf>) -> Builder {
        self.state = Some(folder.into());
        self
    }

    /// The name under which this log signs, for its first opening: like a URL without its scheme, and unique.
    /// Default: `hanaper.local/<host>/<first 8 of the log id>`.
    pub fn origin(mut self, origin: impl Into<String>) -> Builder {
        self.origin = Some(origin.into());
        self
    }

    /// The settings in force as a text, one a line: what an epoch entry names by its digest.
    pub(crate) fn settings_text(&self, shards: u32) -> String {
        format!(
            "shards = {shards}\nsegment_bytes = {}\nlane_bytes = {}\npayload_bytes_max = {}\nproducers_max = {}\ncheckpoint_every_ms = {}\non_failure = {:?}\n",
            self.segment_bytes,
            self.limits.lane_bytes,
            self.limits.payload_bytes_max,
            self.limits.producers_max,
            self.checkpoint_every.as_millis(),
            self.on_failure
        )
    }

    /// Number of shards, 1 to 256. Default: what the log has, or one per core for a new log.
    pub fn shards(mut self, shards: u32) -> Builder {
        self.shards = Some(shards);
        self
    }

    /// Whether a log with another number of shards is given the wanted one.
    pub fn reshard(mut self, reshard: bool) -> Builder {
        self.reshard = reshard;
        self
    }

    /// Length of new segments in bytes, a multiple of 64 KiB, 1 MiB at least. Default 16 MiB.
    pub fn segment_bytes(mut self, bytes: u64) -> Builder {
        self.segment_bytes = bytes;
        self
    }

    /// Size of each lane in bytes, a power of two from 4 KiB on. Default 256 KiB.
    pub fn lane_bytes(mut self, bytes: usize) -> Builder {
        self.limits.lane_bytes = bytes;
        self
    }

    /// The longest payload in bytes, at most 16 MiB. Default 1 MiB, or an eighth of the segment if that is less.
    pub fn payload_bytes_max(mut self, bytes: usize) -> Builder {
        self.payload_bytes_max = Some(bytes);
        self
    }

    /// The most producers at a time. Default 1,024.
    pub fn producers_max(mut self, producers: u32) -> Builder {
        self.limits.producers_max = producers;
        self
    }

    /// What hosts the shards. Default: plain threads.
    pub fn driver(mut self, driver: Driver) -> Builder {
        self.driver = driver;
        self
    }

    /// The commit path. Default: io_uring where it can be had.
    pub fn backend(mut self, backend: Backend) -> Builder {
        self.backend = backend;
        self
    }

    /// What happens besides the error when a shard stops. Default: nothing.
    pub fn on_failure(mut self, policy: FailurePolicy) -> Builder {
        self.on_failure = policy;
        self
    }

    /// Whether a log that is not there is made. Default: yes.
    pub fn create(mut self, create: bool) -> Builder {
        self.create = create;
        self
    }

    /// Whether driver threads are pinned to cores. Default: yes.
    pub fn pin(mut self, pin: bool) -> Builder {
        self.pin = pin;
        self
    }

    /// How long an idle driver looks for more before it sleeps. Default: 50 µs, or not at all on a
    /// single core.
    pub fn spin(mut self, spin: Duration) -> Builder {
        self.spin = Some(spin);
        self
    }

    /// Scheduling slice of the driver threads, on kernels that know it; `None` leaves it alone. Default: 150 µs.
    pub fn slice(mut self, slice: Option<Duration>) -> Builder {
        self.slice = slice;
        self
    }

    /// Commits that a shard may have in flight, and how many bytes must be gathered before another
    /// one is opened. Default: 4, and 64 KiB.
    pub fn pipeline(mut self, depth_max: usize, gathered_bytes: usize) -> Builder {
        self.depth_max = depth_max;
        self.pipeline_bytes = gathered_bytes;
        self
    }

    /// Whether the primitives are timed at open, for some milliseconds. Default: yes.
    pub fn calibrate(mut self, calibrate: bool) -> Builder {
        self.calibrate = calibrate;
        self
    }

    /// Opens the log, recovering it if it was not closed. Refuses, and changes nothing, if something
    /// that was durable is gone or altered, as far as opening reads: the manifests, and each shard of the
    /// layout in force from its last sealed segment on. [`crate::read::verify`] reads all.
    pub fn open(mut self) -> Result<Log, OpenError> {
        self.check()?;
        Log::open(self).map_err(|error| match error {
            // A log that lost its manifest is damaged; somebody's other files are a mistake.
            OpenError::NotALog { path, .. } if read::was_a_log(&path) => OpenError::ManifestGone(path),
            other => other,
        })
    }

    fn check(&mut self) -> Result<(), OpenError> {
        let wrong = |text: String| Err(OpenError::Setting(text));
        if let Some(shards) = self.shards
            && !(1..=SHARDS_MAX).contains(&shards)
        {
            return wrong(format!("shards is {shards}; it must be 1 to {SHARDS_MAX}"));
        }
        if self.segment_bytes < SEGMENT_BYTES_MIN || !self.segment_bytes.is_multiple_of(64 << 10) {
            return wrong(format!(
                "segment_bytes is {}; it must be a multiple of 65536, and {SEGMENT_BYTES_MIN} at least",
                self.segment_bytes
            ));
        }
        let lane = self.limits.lane_bytes;
        if !lane.is_power_of_two() || !(4096..=1 << 30).contains(&lane) {
            return wrong(format!("lane_bytes is {lane}; it must be a power of two from 4096 to 1 GiB"));
        }
        let longest = (self.segment_bytes / 8) as usize;
        let payload =
            self.payload_bytes_max.unwrap_or_else(|| Limits::default().payload_bytes_max.min(longest));
        if payload > record::PAYLOAD_BYTES_MAX {
            return wrong(format!(
                "payload_bytes_max is {payload}; it may be {} at most",
                record::PAYLOAD_BYTES_MAX
            ));
        }
        if payload > longest {
            return wrong(format!(
                "payload_bytes_max is {payload}; it may be an eighth of segment_bytes at most: make it {longest} or \
                 less, or segment_bytes {} at least",
                (8 * payload as u64).next_multiple_of(64 << 10)
            ));
        }
        self.limits.payload_bytes_max = payload;
        if self.limits.producers_max == 0 {
            return wrong("producers_max is 0; it must be 1 at least".to_owned());
        }
        if !(1..=64).contains(&self.depth_max) {
            return wrong(format!("the pipeline's depth is {}; it must be 1 to 64", self.depth_max));
        }
        if self.driver == Driver::Glommio && !cfg!(feature = "glommio") {
            return wrong("the glommio driver is not in this build (feature `glommio`)".to_owned());
        }
        Ok(())
    }
}
