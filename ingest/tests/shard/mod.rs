//! A shard without a disk: takes records out of lanes, and acknowledges them when told to.
#![allow(dead_code)] // Each test binary uses a part of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::*};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_queue::SegQueue;
use hanaper_ingest::{Intake, Limits, ShardPort, Stopped};
use hanaper_shards::ack::{AckSpan, Gate, LaneEnd};
use hanaper_shards::clock::Clock;
use hanaper_shards::io::fold::fold;
use hanaper_shards::record;
use hanaper_shards::router::Router;
use hanaper_shards::wake::Wake;

/// A record that a shard has taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    pub producer: u32,
    pub producer_seq: u64,
    pub log_time: u64,
    pub key: Vec<u8>,
    pub payload: Vec<u8>,
}

struct OpenEnd {
    end: LaneEnd,
    acknowledged: u64,
    /// Taken and not acknowledged.
    pending: u32,
}

pub struct Shard {
    port: ShardPort,
    lanes: Vec<OpenEnd>,
    pub taken: Vec<Taken>,
    pub keep: bool,
    next_seq: u64,
    batch: u64,
}

impl Shard {
    pub fn new(shard: u32) -> Shard {
        let port = ShardPort {
            shard,
            new_lanes: Arc::new(SegQueue::new()),
            wake: Wake::new().expect("an eventfd"),
            gate: Gate::new(),
        };
        Shard { port, lanes: Vec::new(), taken: Vec::new(), keep: true, next_seq: 0, batch: 0 }
    }

    pub fn port(&self) -> ShardPort {
        self.port.clone()
    }

    pub fn gate(&self) -> &Gate {
        &self.port.gate
    }

    /// Takes what is in the lanes; how many records.
    pub fn take(&mut self) -> usize {
        while let Some(end) = self.port.new_lanes.pop() {
            self.lanes.push(OpenEnd { end, acknowledged: 0, pending: 0 });
        }
        let mut count = 0;
        for lane in &mut self.lanes {
            while let Some(bytes) = lane.end.consumer.peek() {
                let (record, whole) = record::split(bytes).expect("a well-formed record");
                assert_eq!(whole, bytes.len());
                assert_eq!(bytes[..4], [0; 4], "the shard puts the CRC");
                assert_eq!(record.header.producer, lane.end.producer);
                if self.keep {
                    self.taken.push(Taken {
                        producer: record.header.producer,
                        producer_seq: record.header.producer_seq,
                        log_time: record.header.log_time,
                        key: record.key.to_vec(),
                        payload: record.payload.to_vec(),
                    });
                }
                lane.end.consumer.pop();
                lane.pending += 1;
                count += 1;
            }
            lane.end.consumer.release();
        }
        count
    }

    /// Acknowledges what was taken, as one batch.
    pub fn acknowledge(&mut self) {
        let proof = fold(4096, 4096, 0).expect("a good commit");
        for lane in &mut self.lanes {
            if lane.pending == 0 {
                continue;
            }
            let span = AckSpan {
                first_index: lane.acknowledged,
                count: lane.pending,
                shard: self.port.shard,
                first_seq: self.next_seq,
                batch: self.batch,
                digest: [self.batch as u8; 32],
            };
            lane.end.acks.acknowledge(&proof, &[span]);
            self.next_seq += u64::from(lane.pending);
            lane.acknowledged += u64::from(lane.pending);
            lane.pending = 0;
        }
        self.batch += 1;
        for lane in &self.lanes {
            lane.end.acks.wake();
        }
        self.lanes.retain_mut(|lane| !lane.end.consumer.producer_gone() || !lane.end.consumer.is_empty());
    }

    pub fn turn(&mut self) -> usize {
        let count = self.take();
        self.acknowledge();
        count
    }

    pub fn lanes(&self) -> usize {
        self.lanes.len()
    }

    /// Refusals that the producers of the open lanes have counted.
    pub fn refused(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.end.refused.load(Relaxed)).sum()
    }

    pub fn stop(&mut self, why: Stopped) {
        self.port.stop(why);
        for lane in &self.lanes {
            lane.end.acks.stop(why);
        }
    }

    /// Runs it on a thread, as a driver would: sleeps when there is nothing to do. Ends with a
    /// clean close.
    pub fn run(mut self) -> Running {
        let ends = Arc::new(AtomicBool::new(false));
        let wake = Arc::clone(&self.port.wake);
        let thread = thread::spawn({
            let ends = Arc::clone(&ends);
            move || {
                loop {
                    let closing = ends.load(Acquire);
                    if closing {
                        self.port.gate.stop(Stopped::Closed);
                    }
                    if self.turn() > 0 {
                        continue;
                    }
                    if closing {
                        self.stop(Stopped::Closed);
                        return self;
                    }
                    self.port.wake.prepare_sleep();
                    if self.turn() == 0 && !ends.load(Acquire) {
                        // Long enough that a lost wake-up would be noticed as a hanging test.
                        self.port.wake.sleep(Duration::from_secs(600));
                    }
                    self.port.wake.awake();
                    self.port.wake.drain();
                }
            }
        });
        Running { ends, wake, thread }
    }
}

pub struct Running {
    ends: Arc<AtomicBool>,
    wake: Arc<Wake>,
    thread: JoinHandle<Shard>,
}

impl Running {
    pub fn close(self) -> Shard {
        self.ends.store(true, Release);
        self.wake.notify();
        self.thread.join().expect("the shard's thread")
    }
}

/// Small lanes, so that the edges are near.
pub fn small() -> Limits {
    Limits { lane_bytes: 4096, payload_bytes_max: 64 << 10, ..Limits::default() }
}

pub fn intake_of(shards: &[&Shard], limits: Limits) -> Arc<Intake> {
    let router = Router { seed: 1, shards: shards.len() as u32 };
    let ports = shards.iter().map(|shard| shard.port()).collect();
    Intake::new(router, ports, Clock::start(1_000), limits)
}

pub fn one(limits: Limits) -> (Shard, Arc<Intake>) {
    let shard = Shard::new(0);
    let intake = intake_of(&[&shard], limits);
    (shard, intake)
}
