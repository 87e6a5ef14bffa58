//! hanaper-bench: what the log costs, beside what the disk costs.
//!
//! A run interleaves rounds of load on a log with rounds of the bare system calls that a commit is
//! made of, at the same block size on the same file system. So a busy moment of the machine strikes
//! both, and the ratio of the two says more than either. Figures are medians over rounds.

pub mod load;
pub mod raw;
pub mod report;
pub mod syscalls;
pub mod usage;

use hdrhistogram::Histogram;

/// Nanoseconds, 1 ns to 100 s, to three digits; its memory never grows.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 100_000_000_000, 3).expect("sound bounds")
}

/// The middle one of some figures; of an even count, the lower of the two.
pub fn median(figures: impl IntoIterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.into_iter().collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
}
