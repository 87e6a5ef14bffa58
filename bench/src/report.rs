//! The figures of a run, for people and for programs.

use std::fmt::Write as _;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::load::Measured;
use crate::median;
use crate::raw::Way;

/// A round of load and the rounds of the bare primitives right after it.
#[derive(Debug)]
pub struct Round {
    /// The engine's.
    pub measured: Measured,
    /// The yardsticks that are to be had here.
    pub raw: Vec<(Way, Histogram<u64>)>,
    /// Bytes that the engine wrote to the disk.
    pub bytes: u64,
    /// Commits that it wrote them in.
    pub commits: u64,
}

/// All rounds, and what else is known about the run.
#[derive(Debug)]
pub struct Report {
    /// As one line each, in this order.
    pub about: Vec<(&'static str, String)>,
    /// Rounds, warmed up.
    pub rounds: Vec<Round>,
    /// Block of the yardsticks in bytes.
    pub raw_bytes: usize,
    /// What reading the clock costs within each append's figure, in nanoseconds.
    pub clock_ns: f64,
    /// The share of appends that made a system call, if it could be found out.
    pub calls: Option<f64>,
}

const APPEND: [(&str, f64); 3] = [("p50", 50.0), ("p99", 99.0), ("p99.9", 99.9)];

impl Report {
    /// Median over rounds.
    pub fn over(&self, figure: impl Fn(&Round) -> f64) -> f64 {
        median(self.rounds.iter().map(figure))
    }

    fn raw_over(&self, way: Way, figure: impl Fn(&Histogram<u64>) -> f64) -> Option<f64> {
        let figures: Vec<f64> = self
            .rounds
            .iter()
            .filter_map(|r| r.raw.iter().find(|(w, _)| *w == way))
            .map(|(_, h)| figure(h))
            .collect();
        (!figures.is_empty()).then(|| median(figures))
    }

    /// The yardstick whose median of medians is least.
    pub fn fastest(&self) -> Option<Way> {
        let p50 = |way| self.raw_over(way, |h| at(h, 50.0));
        let known = Way::ALL.into_iter().filter_map(|way| Some((way, p50(way)?)));
        known.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(way, _)| way)
    }

    /// Engine divided by the fastest yardstick of the same round.
    fn ratio(&self, way: Way, percentile: f64) -> f64 {
        self.over(|round| {
            let raw = round.raw.iter().find(|(w, _)| *w == way);
            raw.map_or(f64::NAN, |(_, h)| at(&round.measured.durable, percentile) / at(h, percentile))
        })
    }

    /// The engine's commits (or bytes) in a second, divided by what the yardstick does one by one.
    fn rate_ratio(&self, way: Way, amount: impl Fn(&Round) -> f64, each: f64) -> f64 {
        self.over(|round| {
            let raw = round.raw.iter().find(|(w, _)| *w == way);
            raw.map_or(f64::NAN, |(_, h)| {
                amount(round) / round.measured.elapsed.as_secs_f64() / (each * 1e9 / h.mean())
            })
        })
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let mut line = |name: &str, text: String| {
            let _ = writeln!(out, "{name:<10} {text}");
        };
        for (name, text) in &self.about {
            line(name, text.clone());
        }
        let append =
            APPEND.map(|(name, p)| format!("{name} {:.0}", self.over(|r| at(&r.measured.append, p))));
        line("append", format!("{} ns (of which the clock {:.0})", append.join("  "), self.clock_ns));
        let durable =
            APPEND.map(|(name, p)| format!("{name} {:.1}", self.over(|r| at(&r.measured.durable, p) / 1e3)));
        line("durable", format!("{} µs", durable.join("  ")));
        line(
            "rate",
            format!(
                "{:.0} events/s in {:.0} commits/s of {:.1} KiB",
                self.over(|r| r.measured.events as f64 / r.measured.elapsed.as_secs_f64()),
                self.over(|r| r.commits as f64 / r.measured.elapsed.as_secs_f64()),
                self.over(|r| r.bytes as f64 / r.commits.max(1) as f64 / 1024.0),
            ),
        );
        for way in Way::ALL {
            let Some(p50) = self.raw_over(way, |h| at(h, 50.0) / 1e3) else {
                line("raw", format!("{:<20} not to be had here", way.name()));
                continue;
            };
            let p99 = self.raw_over(way, |h| at(h, 99.0) / 1e3).unwrap_or(f64::NAN);
            let rate = self.raw_over(way, |h| 1e9 / h.mean()).unwrap_or(f64::NAN);
            line(
                "raw",
                format!(
                    "{:<20} p50 {p50:.1}  p99 {p99:.1} µs, {rate:.0}/s of {:.1} KiB, one by one",
                    way.name(),
                    self.raw_bytes as f64 / 1024.0
                ),
            );
        }
        if let Some(way) = self.fastest() {
            line(
                "ratio",
                format!(
                    "durable ÷ {}: p50 {:.2}  p99 {:.2}; commits/s {:.2}; bytes/s {:.2}",
                    way.name(),
                    self.ratio(way, 50.0),
                    self.ratio(way, 99.0),
                    self.rate_ratio(way, |r| r.commits as f64, 1.0),
                    self.rate_ratio(way, |r| r.bytes as f64, self.raw_bytes as f64),
                ),
            );
        }
        let events = |r: &Round| r.measured.events.max(1) as f64;
        line(
            "cost",
            format!(
                "{:.4} allocations an append; {}; switches an event {:.3} voluntary, {:.3} not; cpu {:.2} µs an event; {} refused",
                self.over(|r| r.measured.allocations as f64 / events(r)),
                self.calls.map_or("system calls not counted here".to_owned(), |share| format!(
                    "{:.2} % of appends made a system call",
                    share * 100.0
                )),
                self.over(|r| r.measured.usage.voluntary as f64 / events(r)),
                self.over(|r| r.measured.usage.involuntary as f64 / events(r)),
                self.over(|r| r.measured.usage.cpu.as_secs_f64() * 1e6 / events(r)),
                self.rounds.iter().map(|r| r.measured.refused).sum::<u64>(),
            ),
        );
        out
    }

    /// For programs: medians over rounds, latencies in nanoseconds.
    pub fn json(&self) -> Value {
        let latencies = |of: &dyn Fn(&Round) -> &Histogram<u64>| {
            json!({
                "p50": self.over(|r| at(of(r), 50.0)),
                "p99": self.over(|r| at(of(r), 99.0)),
                "p99.9": self.over(|r| at(of(r), 99.9)),
                "max": self.rounds.iter().map(|r| of(r).max()).max(),
            })
        };
        let raw = Way::ALL.into_iter().filter_map(|way| {
            Some(json!({
                "way": way.name(),
                "p50_ns": self.raw_over(way, |h| at(h, 50.0))?,
                "p99_ns": self.raw_over(way, |h| at(h, 99.0))?,
                "per_second": self.raw_over(way, |h| 1e9 / h.mean())?,
            }))
        });
        let fastest = self.fastest();
        let events = |r: &Round| r.measured.events.max(1) as f64;
        json!({
            "about": self.about.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect::<serde_json::Map<_, _>>(),
            "rounds": self.rounds.len(),
            "append_ns": latencies(&|r| &r.measured.append),
            "append_clock_ns": self.clock_ns,
            "durable_ns": latencies(&|r| &r.measured.durable),
            "events_per_second": self.over(|r| r.measured.events as f64 / r.measured.elapsed.as_secs_f64()),
            "commits_per_second": self.over(|r| r.commits as f64 / r.measured.elapsed.as_secs_f64()),
            "bytes_per_commit": self.over(|r| r.bytes as f64 / r.commits.max(1) as f64),
            "raw_bytes": self.raw_bytes,
            "raw": raw.collect::<Vec<_>>(),
            "fastest": fastest.map(Way::name),
            "ratio_p50": fastest.map(|way| self.ratio(way, 50.0)),
            "ratio_p99": fastest.map(|way| self.ratio(way, 99.0)),
            "allocations_per_append": self.over(|r| r.measured.allocations as f64 / events(r)),
            "appends_with_system_call": self.calls,
            "switches_voluntary_per_event": self.over(|r| r.measured.usage.voluntary as f64 / events(r)),
            "switches_involuntary_per_event": self.over(|r| r.measured.usage.involuntary as f64 / events(r)),
            "cpu_us_per_event": self.over(|r| r.measured.usage.cpu.as_secs_f64() * 1e6 / events(r)),
            "refused": self.rounds.iter().map(|r| r.measured.refused).sum::<u64>(),
        })
    }
}

fn at(histogram: &Histogram<u64>, percentile: f64) -> f64 {
    histogram.value_at_percentile(percentile) as f64
}
