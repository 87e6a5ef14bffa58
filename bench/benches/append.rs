//! An append on the producer's side, into a lane that has room. The lane is emptied outside of the
//! time, by the same thread: what another core's reading costs is in `hanaper bench`.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use crossbeam_queue::SegQueue;
use hanaper_ingest::{Intake, Limits, Producer, ShardPort};
use hanaper_shards::ack::{Gate, LaneEnd};
use hanaper_shards::clock::Clock;
use hanaper_shards::router::Router;
use hanaper_shards::wake::Wake;

/// Appends between two emptyings: the lane holds them all.
const CHUNK: u64 = 256;

struct Rig {
    producer: Producer,
    lane: LaneEnd,
}

impl Rig {
    fn new() -> Rig {
        let new_lanes = Arc::new(SegQueue::new());
        let port = ShardPort {
            shard: 0,
            new_lanes: Arc::clone(&new_lanes),
            wake: Wake::new().expect("an eventfd"),
            gate: Gate::new(),
        };
        let limits = Limits { lane_bytes: 4 << 20, ..Limits::default() };
        let intake = Intake::new(Router { seed: 1, shards: 1 }, vec![port], Clock::start(1), limits);
        let mut producer = intake.producer().expect("the first one");
        producer.append(b"acct-042", b"").expect("an open gate");
        let mut rig = Rig { producer, lane: new_lanes.pop().expect("made by the first append") };
        rig.empty();
        rig
    }

    fn empty(&mut self) {
        while self.lane.consumer.peek().is_some() {
            self.lane.consumer.pop();
        }
        self.lane.consumer.release();
    }

    fn time(&mut self, appends: u64, mut chunk: impl FnMut(&mut Producer)) -> Duration {
        let mut spent = Duration::ZERO;
        for _ in 0..appends.div_ceil(CHUNK) {
            let begun = Instant::now();
            chunk(&mut self.producer);
            spent += begun.elapsed();
            self.empty();
        }
        // Criterion asked for a number that need not be whole chunks.
        spent.mul_f64(appends as f64 / (appends.div_ceil(CHUNK) * CHUNK) as f64)
    }
}

fn appends(c: &mut Criterion) {
    let mut group = c.benchmark_group("append");
    for bytes in [64, 256, 4096] {
        let payload = vec![7; bytes];
        let mut rig = Rig::new();
        group.bench_function(format!("append/{bytes}"), |b| {
            b.iter_custom(|appends| {
                rig.time(appends, |producer| {
                    for _ in 0..CHUNK {
                        black_box(producer.append(b"acct-042", black_box(&payload)).expect("room"));
                    }
                })
            });
        });
        let mut tickets = Vec::with_capacity(CHUNK as usize);
        group.bench_function(format!("append_batch/{bytes}"), |b| {
            b.iter_custom(|appends| {
                rig.time(appends, |producer| {
                    tickets.clear();
                    let events =
                        std::iter::repeat_n((&b"acct-042"[..], black_box(&payload[..])), CHUNK as usize);
                    producer.append_batch_into(events, &mut tickets).expect("room");
                })
            });
        });
    }
    group.finish();
}

criterion_group!(benches, appends);
criterion_main!(benches);
