//! Log time: nanoseconds that only go forward, cheap enough to be read for every record.
//!
//! Two clocks, kept apart. *Log time* starts at a base that the caller chooses (above all that
//! was recovered) and from there follows the machine's monotonic clock: a wall clock that jumps
//! moves nothing. *Wall time* is what people ask for; an [`Anchor`] pairs the two, and each batch
//! carries one.
//!
//! Promises: [`Clock::now`] never returns less than the base nor `u64::MAX`. Read twice by one
//! thread it does not go back, but two readings may be equal: who needs them strictly rising
//! takes max(last + 1, now), as producers do. Readings of several threads agree to within the
//! offset between their cores' counters (the kernel checks that it is negligible).
//!
//! Where the processor's counter (TSC) runs at a fixed rate through all idle states and the
//! kernel itself keeps time by it, `now` is `rdtsc`, one multiplication and one shift; the rate
//! is measured once per process, in about four milliseconds. Elsewhere it is CLOCK_MONOTONIC.
//! Each anchor compares the two; if they drift apart (a suspended machine may reset its counter),
//! this clock follows CLOCK_MONOTONIC from then on, without going below what it last told.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// The wall clock belongs to nothing known.
pub const SOURCE_UNKNOWN: u8 = 0;
/// The system clock, which nobody vouches for.
pub const SOURCE_SYSTEM: u8 = 1;
/// The system clock, which the kernel says is synchronised (NTP, PTP).
pub const SOURCE_SYNCHRONISED: u8 = 2;

/// The same instant on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Anchor {
    /// Log time in nanoseconds.
    pub log_time: u64,
    /// Wall clock: nanoseconds since 1970-01-01 UTC, negative before it.
    pub wall_ns: i64,
    /// How far `wall_ns` may be off. `u32::MAX` means that much (4.3 s) or more, or that nobody knows.
    pub uncertainty_ns: u32,
    /// [`SOURCE_UNKNOWN`], [`SOURCE_SYSTEM`] or [`SOURCE_SYNCHRONISED`].
    pub source: u8,
}

/// The clock of one log. Clones are the same clock.
#[derive(Clone)]
pub struct Clock {
    inner: Arc<Inner>,
}

struct Inner {
    base: u64,
    source: Source,
}

enum Source {
    Machine(Machine),
    Manual(Arc<Hands>),
}

impl Clock {
    /// A clock that shows `base` now and goes with the machine's monotonic clock. The first call
    /// in a process takes some milliseconds, to measure the counter's rate.
    pub fn start(base: u64) -> Clock {
        Clock::with(base, Source::Machine(Machine::start(counter_rate())))
    }

    /// A clock that stands at `base` until it is moved by hand: for simulation.
    pub fn manual(base: u64) -> (Clock, ManualClock) {
        let hands = Arc::new(Hands { elapsed: AtomicU64::new(0), wall_offset: AtomicI64::new(0) });
        (Clock::with(base, Source::Manual(Arc::clone(&hands))), ManualClock { hands })
    }

    fn with(base: u64, source: Source) -> Clock {
        Clock { inner: Arc::new(Inner { base: base.min(u64::MAX - 1), source }) }
    }

    /// Log time in nanoseconds.
    #[inline]
    pub fn now(&self) -> u64 {
        let elapsed = match &self.inner.source {
            Source::Machine(machine) => machine.elapsed(),
            Source::Manual(hands) => hands.elapsed.load(Ordering::Relaxed),
        };
        self.inner.base.saturating_add(elapsed).min(u64::MAX - 1)
    }

    /// Pairs log time with the wall clock. Once a second it also asks the kernel how well that
    /// is synchronised; meant to be called per batch, not per record.
    pub fn anchor(&self) -> Anchor {
        match &self.inner.source {
            Source::Machine(machine) => {
                machine.check();
                let before = self.now();
                let wall_ns = system_ns(libc::CLOCK_REALTIME);
                let after = self.now();
                let width = after.saturating_sub(before);
                let (source, uncertainty_ns) = machine.synchronisation();
                Anchor {
                    log_time: before + width / 2,
                    wall_ns,
                    // A thread that was interrupted between the readings knows less.
                    uncertainty_ns: uncertainty_ns
                        .saturating_add(u32::try_from(width / 2).unwrap_or(u32::MAX)),
                    source,
                }
            }
            Source::Manual(hands) => {
                let log_time = self.now();
                let wall_ns = i64::try_from(log_time)
                    .unwrap_or(i64::MAX)
                    .saturating_add(hands.wall_offset.load(Ordering::Relaxed));
                Anchor { log_time, wall_ns, uncertainty_ns: 0, source: SOURCE_SYSTEM }
            }
        }
    }

    /// What drives it, for people: `tsc`, `monotonic` or `manual`.
    pub fn source_name(&self) -> &'static str {
        match &self.inner.source {
            Source::Machine(machine)
                if machine.rate.is_some() && !machine.distrusted.load(Ordering::Relaxed) =>
            {
                "tsc"
            }
            Source::Machine(_) => "monotonic",
            Source::Manual(_) => "manual",
        }
    }
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Clock({}, {})", self.source_name(), self.now())
    }
}

/// Moves a clock of [`Clock::manual`]. Clones move the same one.
#[derive(Clone)]
pub struct ManualClock {
    hands: Arc<Hands>,
}

struct Hands {
    elapsed: AtomicU64,
    wall_offset: AtomicI64,
}

impl ManualClock {
    /// Lets time pass, on both clocks.
    pub fn advance(&self, ns: u64) {
        let later = |elapsed: u64| Some(elapsed.saturating_add(ns));
        let _ = self.hands.elapsed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, later);
    }

    /// Sets how far the wall clock is ahead of log time (behind, if negative): a jump. At first
    /// they are equal.
    pub fn set_wall_offset(&self, ns: i64) {
        self.hands.wall_offset.store(ns, Ordering::Relaxed);
    }
}

/// The machine's monotonic time since the start of one clock.
struct Machine {
    /// `None`: the counter is of no use here.
    rate: Option<Rate>,
    counter_at_start: u64,
    monotonic_at_start: u64,
    /// Set once and for ever when the counter has parted from CLOCK_MONOTONIC.
    distrusted: AtomicBool,
    /// Then added to the CLOCK_MONOTONIC time since the start, so as not to go back.
    ahead: AtomicU64,
    /// When the kernel was last asked about synchronisation, CLOCK_MONOTONIC.
    asked_at: AtomicU64,
    /// Its answer: the uncertainty, `u32::MAX` if it does not vouch for the clock.
    error_max_ns: AtomicU32,
}

/// What the counter may be off from CLOCK_MONOTONIC before it is distrusted: a millisecond, and
/// one part in 512 of the time elapsed (NTP slews by at most 1/2000).
const DRIFT_NS: u64 = 1_000_000;
const DRIFT_PARTS: u64 = 512;
const ASK_EVERY_NS: u64 = 1_000_000_000;

impl Machine {
    fn start(rate: Option<Rate>) -> Machine {
        let (counter_at_start, monotonic_at_start) = sample();
        Machine {
            rate,
            counter_at_start,
            monotonic_at_start,
            distrusted: AtomicBool::new(false),
            ahead: AtomicU64::new(0),
            asked_at: AtomicU64::new(0),
            error_max_ns: AtomicU32::new(u32::MAX),
        }
    }

    #[inline]
    fn elapsed(&self) -> u64 {
        match self.rate {
            // Acquire: then `ahead` is in place.
            Some(rate) if !self.distrusted.load(Ordering::Acquire) => self.by_counter(rate),
            _ => self.by_kernel(),
        }
    }

    #[inline]
    fn by_counter(&self, rate: Rate) -> u64 {
        // Another core's counter may stand a few ticks behind the one that was read at the start.
        rate.ns(counter().saturating_sub(self.counter_at_start))
    }

    fn by_kernel(&self) -> u64 {
        let elapsed = monotonic_ns().saturating_sub(self.monotonic_at_start);
        elapsed.saturating_add(self.ahead.load(Ordering::Relaxed))
    }

    /// Compares the counter with the kernel's clock, and leaves it if they have parted.
    fn check(&self) {
        let Some(rate) = self.rate else { return };
        if self.distrusted.load(Ordering::Relaxed) {
            return;
        }
        // The kernel's reading lies between the counter's two, however long we were interrupted.
        let before = self.by_counter(rate);
        let kernel = monotonic_ns().saturating_sub(self.monotonic_at_start);
        let after = self.by_counter(rate);
        let allowed = DRIFT_NS + kernel / DRIFT_PARTS;
        if before <= kernel.saturating_add(allowed) && kernel <= after.saturating_add(allowed) {
            return;
        }
        // If it ran ahead, that lead stays: log time does not go back. If it fell behind, the
        // kernel's clock is above all that it has told. The first to find out decides.
        let lead = after.saturating_sub(kernel);
        let _ = self.ahead.compare_exchange(0, lead, Ordering::Relaxed, Ordering::Relaxed);
        self.distrusted.store(true, Ordering::Release);
    }

    fn synchronisation(&self) -> (u8, u32) {
        let now = monotonic_ns();
        let asked_at = self.asked_at.load(Ordering::Relaxed);
        let due = asked_at == 0 || now.saturating_sub(asked_at) >= ASK_EVERY_NS;
        // Several may ask at once; that is harmless, and all get the same answer.
        if due {
            self.error_max_ns.store(kernel_error_max_ns(), Ordering::Relaxed);
            self.asked_at.store(now, Ordering::Relaxed);
        }
        match self.error_max_ns.load(Ordering::Relaxed) {
            u32::MAX => (SOURCE_SYSTEM, u32::MAX),
            error_max_ns => (SOURCE_SYNCHRONISED, error_max_ns),
        }
    }
}

/// Nanoseconds per tick of the counter, in units of 2^-40.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rate(u64);

impl Rate {
    const SHIFT: u32 = 40;
    /// Between 100 MHz and 20 GHz: anything else was not measured but interrupted.
    const PLAUSIBLE: std::ops::RangeInclusive<u64> = (1 << Rate::SHIFT) / 20..=10 << Rate::SHIFT;

    fn between(from: (u64, u64), to: (u64, u64)) -> Option<Rate> {
        let ticks = to.0.checked_sub(from.0).filter(|&ticks| ticks > 0)?;
        let ns = to.1.checked_sub(from.1)?;
        let rate = u64::try_from(((ns as u128) << Rate::SHIFT) / ticks as u128).ok()?;
        Rate::PLAUSIBLE.contains(&rate).then_some(Rate(rate))
    }

    #[inline]
    fn ns(self, ticks: u64) -> u64 {
        ((ticks as u128 * self.0 as u128) >> Rate::SHIFT) as u64
    }
}

/// The counter's rate, measured at the first call; `None` where it cannot be a clock.
fn counter_rate() -> Option<Rate> {
    static RATE: OnceLock<Option<Rate>> = OnceLock::new();
    *RATE.get_or_init(|| if counter_is_invariant() { measure() } else { None })
}

fn measure() -> Option<Rate> {
    let pause = || std::thread::sleep(std::time::Duration::from_millis(2));
    let first = sample();
    pause();
    let middle = sample();
    pause();
    let last = sample();
    // Two halves that disagree say that something is wrong with the counter or the measurement.
    let (early, late) = (Rate::between(first, middle)?, Rate::between(middle, last)?);
    if early.0.abs_diff(late.0) > early.0 / 1000 {
        return None;
    }
    Rate::between(first, last)
}

/// The counter and CLOCK_MONOTONIC at the same instant, as nearly as some tries allow.
fn sample() -> (u64, u64) {
    (0..16)
        .map(|_| {
            let before = counter();
            let ns = monotonic_ns();
            let width = counter().saturating_sub(before);
            (width, (before + width / 2, ns))
        })
        .min_by_key(|&(width, _)| width)
        .map(|(_, pair)| pair)
        .expect("sixteen tries")
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn counter() -> u64 {
    // SAFETY: every x86-64 has it. (A process that forbids it to itself, PR_SET_TSC, dies here,
    // and in the kernel's vDSO clocks too.)
    unsafe { std::arch::x86_64::_rdtsc() }
}

#[cfg(not(target_arch = "x86_64"))]
#[inline]
fn counter() -> u64 {
    0
}

/// The same rate in all power states, and trusted by the kernel, which watches it and compares cores.
fn counter_is_invariant() -> bool {
    if !cfg!(target_arch = "x86_64") {
        return false;
    }
    let kernel_uses_it =
        std::fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource")
            .is_ok_and(|name| name.trim() == "tsc");
    kernel_uses_it && std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| flags_say_invariant(&text))
}

fn flags_say_invariant(cpuinfo: &str) -> bool {
    let Some(flags) = cpuinfo.lines().find(|line| line.starts_with("flags")) else {
        return false;
    };
    let has = |wanted: &str| flags.split_ascii_whitespace().any(|flag| flag == wanted);
    has("constant_tsc") && has("nonstop_tsc")
}

#[inline]
fn monotonic_ns() -> u64 {
    system_ns(libc::CLOCK_MONOTONIC).unsigned_abs()
}

#[inline]
fn system_ns(clock: libc::clockid_t) -> i64 {
    let mut at = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a writable timespec. It cannot fail for the two clocks that we ask for.
    unsafe { libc::clock_gettime(clock, &mut at) };
    at.tv_sec.saturating_mul(1_000_000_000).saturating_add(at.tv_nsec)
}

/// What the kernel says of the wall clock's error; `u32::MAX` if it is not synchronised, or if
/// we may not ask.
fn kernel_error_max_ns() -> u32 {
    // SAFETY: all zeroes is a valid timex, and `modes` 0 only reads.
    let mut answer: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: a writable timex.
    let state = unsafe { libc::adjtimex(&mut answer) };
    if state < 0 || state == libc::TIME_ERROR || answer.status & libc::STA_UNSYNC != 0 {
        return u32::MAX;
    }
    // In microseconds.
    u32::try_from(answer.maxerror.saturating_mul(1000)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A base above the wall clock, or near the end of time, must hold just the same.
    #[test]
    fn never_below_its_base_nor_at_the_end_of_time() {
        for base in [0, 1, 1 << 62, u64::MAX - 1, u64::MAX] {
            let clock = Clock::start(base);
            for _ in 0..1000 {
                assert!(clock.now() >= base.min(u64::MAX - 1));
                assert!(clock.now() < u64::MAX);
            }
        }
    }

    #[test]
    fn does_not_go_back_in_one_thread() {
        let clock = Clock::start(5);
        let mut last = 0;
        for _ in 0..200_000 {
            let now = clock.now();
            assert!(now >= last);
            last = now;
        }
    }

    /// A wrong multiplier would show as a drift from CLOCK_MONOTONIC, which `check` looks for.
    #[test]
    fn keeps_with_the_kernels_clock() {
        let clock = Clock::start(0);
        let name = clock.source_name();
        // CLOCK_MONOTONIC before and after brackets what the clock may show.
        let Source::Machine(machine) = &clock.inner.source else { unreachable!() };
        let began = machine.monotonic_at_start;
        for _ in 0..50 {
            let least = monotonic_ns() - began;
            let shown = clock.now();
            let most = monotonic_ns() - began;
            assert!(shown + 100_000 + least / DRIFT_PARTS >= least, "{shown} is before {least}");
            assert!(shown <= most + 100_000 + most / DRIFT_PARTS, "{shown} is after {most}");
            std::thread::yield_now();
        }
        let _ = clock.anchor();
        assert_eq!(clock.source_name(), name, "a good counter must stay trusted");
    }

    /// A counter that ran ahead of the kernel's clock, and one that was reset, are both left, and
    /// time goes on from where it was.
    #[test]
    fn a_counter_that_parts_from_the_kernel_is_left() {
        let Some(rate) = counter_rate() else { return };
        let ahead = |machine: &mut Machine| {
            machine.counter_at_start = machine.counter_at_start.saturating_sub(1 << 36)
        };
        let reset = |machine: &mut Machine| {
            machine.monotonic_at_start = machine.monotonic_at_start.saturating_sub(1 << 36);
            machine.counter_at_start = u64::MAX;
        };
        let wrongs: [&dyn Fn(&mut Machine); 2] = [&ahead, &reset];
        for go_wrong in wrongs {
            let mut machine = Machine::start(Some(rate));
            go_wrong(&mut machine);
            let clock = Clock::with(100, Source::Machine(machine));
            let before = clock.now();
            assert_eq!(clock.source_name(), "tsc");
            let anchor = clock.anchor();
            assert_eq!(clock.source_name(), "monotonic");
            assert!(anchor.log_time >= before);
            assert!(clock.now() >= anchor.log_time);
        }
    }

    /// Whoever converts with an anchor gets the wall clock back.
    #[test]
    fn an_anchor_pairs_the_clocks() {
        let clock = Clock::start(1_000);
        let wall_before = system_ns(libc::CLOCK_REALTIME);
        let log_before = clock.now();
        let anchor = clock.anchor();
        assert!((log_before..=clock.now()).contains(&anchor.log_time));
        assert!((wall_before..=system_ns(libc::CLOCK_REALTIME)).contains(&anchor.wall_ns));
        match anchor.source {
            SOURCE_SYSTEM => assert_eq!(anchor.uncertainty_ns, u32::MAX),
            source => assert_eq!(source, SOURCE_SYNCHRONISED),
        }
    }

    #[test]
    fn a_manual_clock_moves_by_hand_only() {
        let (clock, hand) = Clock::manual(10);
        assert_eq!((clock.now(), clock.clone().now()), (10, 10));
        hand.advance(5);
        hand.set_wall_offset(-100);
        assert_eq!(
            clock.anchor(),
            Anchor { log_time: 15, wall_ns: -85, uncertainty_ns: 0, source: SOURCE_SYSTEM }
        );
        hand.advance(u64::MAX);
        assert_eq!(clock.now(), u64::MAX - 1);
    }

    #[test]
    fn a_rate_is_measured_or_refused() {
        // 2.5 GHz for a second, and then for a century: no overflow, no loss that shows.
        let rate = Rate::between((7, 9), (2_500_000_007, 1_000_000_009)).expect("a plausible rate");
        assert!(rate.ns(2_500_000_000).abs_diff(1_000_000_000) <= 1);
        let century_ns = 3_155_760_000_000_000_000_u64;
        assert!(rate.ns(century_ns / 10 * 25).abs_diff(century_ns) < century_ns / 1_000_000_000);
        // Still, backwards, or impossible.
        assert_eq!(Rate::between((5, 0), (5, 10)), None);
        assert_eq!(Rate::between((9, 0), (5, 10)), None);
        assert_eq!(Rate::between((0, 10), (100, 5)), None);
        assert_eq!(Rate::between((0, 0), (10, 1_000_000)), None);
        assert_eq!(Rate::between((0, 0), (1_000_000, 10)), None);
    }

    #[test]
    fn both_flags_are_needed() {
        let cpu = |flags: &str| format!("processor\t: 0\nflags\t\t: {flags}\n");
        assert!(flags_say_invariant(&cpu("fpu tsc constant_tsc nonstop_tsc")));
        assert!(!flags_say_invariant(&cpu("fpu tsc constant_tsc nonstop_tsc_s3")));
        assert!(!flags_say_invariant(&cpu("tsc nonstop_tsc")));
        assert!(!flags_say_invariant("Features : fp asimd"));
    }
}
