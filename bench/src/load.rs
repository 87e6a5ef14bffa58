//! Producers that append and wait.
//!
//! Each keeps so many events in flight: with one it is a closed loop, with many it goes on until the
//! window is full and then waits for the oldest. Neither has a schedule to fall behind of, so
//! latencies are as they were seen, with nothing to correct for. A window's event counts as durable
//! when its producer next looks, which is after each append.

use std::collections::VecDeque;
use std::sync::Barrier;
use std::time::Duration;

use anyhow::{Context as _, bail};
use hanaper::{AppendError, Log, Producer, Ticket, WaitError, WaitFor};
use hanaper_shards::clock::Clock;
use hdrhistogram::Histogram;

use crate::syscalls::Watch;
use crate::usage::Usage;

/// Accounts that events are about: enough for every shard to get its share.
const KEYS: u64 = 64;
/// Longer than any run: a producer that spins does nothing else.
const ALWAYS: Duration = Duration::from_secs(3600);

/// What producers do.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Threads, each with a producer.
    pub producers: usize,
    /// Length of a payload in bytes.
    pub event_bytes: usize,
    /// Events that each keeps in flight.
    pub in_flight: usize,
    /// Whether they spin while they wait, or sleep.
    pub spin: bool,
}

/// What came of a round.
#[derive(Debug, Clone)]
pub struct Measured {
    /// Nanoseconds of the call.
    pub append: Histogram<u64>,
    /// Nanoseconds from before the append until it was seen to be durable.
    pub durable: Histogram<u64>,
    /// Events that became durable.
    pub events: u64,
    /// Appends that backpressure refused.
    pub refused: u64,
    /// Allocations within appends.
    pub allocations: u64,
    /// From the first append until the last event was durable.
    pub elapsed: Duration,
    /// Of the whole process.
    pub usage: Usage,
}

/// Producers with their histograms, which last over the rounds.
pub struct Crew {
    load: Load,
    clock: Clock,
    hands: Vec<Hand>,
}

struct Hand {
    producer: Producer,
    payload: Vec<u8>,
    keys: Vec<[u8; 8]>,
    /// By shard; within a shard they become durable in order.
    window: Vec<VecDeque<(Ticket, u64)>>,
    waiting: usize,
    next: u64,
    append: Histogram<u64>,
    durable: Histogram<u64>,
    events: u64,
    refused: u64,
    allocations: u64,
    how: WaitFor,
}

impl Crew {
    /// Makes the producers.
    pub fn new(log: &Log, load: Load) -> anyhow::Result<Crew> {
        let hands: anyhow::Result<Vec<Hand>> = (0..load.producers).map(|n| Hand::new(log, load, n)).collect();
        Ok(Crew { load, clock: Clock::start(0), hands: hands? })
    }

    /// Appends for so long, then waits for the rest. `allocations` counts those of the calling thread.
    pub fn round(&mut self, duration: Duration, allocations: fn() -> u64) -> anyhow::Result<Measured> {
        let barrier = Barrier::new(self.hands.len() + 1);
        let (load, clock) = (self.load, &self.clock);
        let before = Usage::now();
        let (begun, ended) = std::thread::scope(|scope| {
            let barrier = &barrier;
            let threads: Vec<_> = self
                .hands
                .iter_mut()
                .map(|hand| {
                    scope.spawn(move || {
                        barrier.wait();
                        hand.work(load, clock, duration, allocations)
                    })
                })
                .collect();
            barrier.wait();
            let begun = clock.now();
            let ended: anyhow::Result<Vec<u64>> =
                threads.into_iter().map(|t| t.join().expect("a producer's thread panicked")).collect();
            (begun, ended)
        });
        let ended = ended?.into_iter().max().unwrap_or(begun);
        let mut measured = Measured {
            append: crate::histogram(),
            durable: crate::histogram(),
            events: 0,
            refused: 0,
            allocations: 0,
            elapsed: Duration::from_nanos(ended.saturating_sub(begun).max(1)),
            usage: Usage::now().since(&before),
        };
        for hand in &mut self.hands {
            measured.append.add(&hand.append).expect("equal bounds");
            measured.durable.add(&hand.durable).expect("equal bounds");
            measured.events += std::mem::take(&mut hand.events);
            measured.refused += std::mem::take(&mut hand.refused);
            measured.allocations += std::mem::take(&mut hand.allocations);
            hand.append.reset();
            hand.durable.reset();
        }
        Ok(measured)
    }

    /// The share of appends that make a system call, over so many by one producer with the same
    /// window, or as many as a slow disk takes in two seconds. `None` where it cannot be found out.
    pub fn share_with_calls(&mut self, appends: u64) -> anyhow::Result<Option<f64>> {
        let (load, clock) = (self.load, &self.clock);
        let hand = &mut self.hands[0];
        // On a thread of its own, as all producers are.
        std::thread::scope(|scope| {
            let counting = scope.spawn(move || {
                let Some(watch) = Watch::new() else { return Ok(None) };
                let (mut with, mut done) = (0u64, 0u64);
                let deadline = clock.now() + 2_000_000_000;
                while done < appends && clock.now() < deadline {
                    let (appended, called) = watch.calls(|| hand.append(clock));
                    with += u64::from(called);
                    done += 1;
                    if !appended?.1 {
                        hand.wait_out()?;
                    }
                    hand.wait_for_room(load.in_flight, clock)?;
                }
                hand.wait_for_room(1, clock)?;
                Ok(Some(with as f64 / done as f64))
            });
            counting.join().expect("a producer's thread panicked")
        })
    }
}

impl Hand {
    fn new(log: &Log, load: Load, n: usize) -> anyhow::Result<Hand> {
        let window = (0..log.shards()).map(|_| VecDeque::with_capacity(load.in_flight)).collect();
        let key = |k: u64| {
            let mut key = *b"acct-000";
            key[5..].copy_from_slice(format!("{k:03}").as_bytes());
            key
        };
        Ok(Hand {
            producer: log.producer()?,
            payload: (0..load.event_bytes).map(|i| b'a' + ((i + n) % 26) as u8).collect(),
            keys: (0..KEYS).map(|k| key((k + n as u64) % 1000)).collect(),
            window,
            waiting: 0,
            next: 0,
            append: crate::histogram(),
            durable: crate::histogram(),
            events: 0,
            refused: 0,
            allocations: 0,
            how: if load.spin { WaitFor::block().spinning(ALWAYS) } else { WaitFor::block() },
        })
    }

    /// Gives when its last event was durable.
    fn work(
        &mut self,
        load: Load,
        clock: &Clock,
        duration: Duration,
        allocations: fn() -> u64,
    ) -> anyhow::Result<u64> {
        let deadline = clock.now() + duration.as_nanos() as u64;
        loop {
            let before = allocations();
            let (at, appended) = self.append(clock)?;
            self.allocations += allocations() - before;
            if at >= deadline {
                break;
            }
            if !appended {
                self.refused += 1;
                self.wait_out()?;
            }
            self.wait_for_room(load.in_flight, clock)?;
        }
        self.wait_for_room(1, clock)?;
        Ok(clock.now())
    }

    /// Gives the time before it, and whether there was room.
    fn append(&mut self, clock: &Clock) -> anyhow::Result<(u64, bool)> {
        let key = &self.keys[(self.next % KEYS) as usize];
        let before = clock.now();
        let ticket = match self.producer.append(key, &self.payload) {
            Ok(ticket) => ticket,
            Err(AppendError::Backpressure(_)) => return Ok((before, false)),
            Err(error) => return Err(error).context("append"),
        };
        self.append.saturating_record(clock.now().saturating_sub(before));
        self.window[usize::from(ticket.lane())].push_back((ticket, before));
        self.waiting += 1;
        self.next += 1;
        Ok((before, true))
    }

    /// Waits for backpressure to end.
    fn wait_out(&mut self) -> anyhow::Result<()> {
        match self.waiting {
            // Not a yield: in a real-time class that would keep the shard's thread from its core.
            0 => std::thread::sleep(Duration::from_micros(100)),
            _ => self.wait_for_oldest()?,
        }
        Ok(())
    }

    /// Waits until fewer than `in_flight` are.
    fn wait_for_room(&mut self, in_flight: usize, clock: &Clock) -> anyhow::Result<()> {
        self.take_durable(clock);
        while self.waiting >= in_flight {
            self.wait_for_oldest()?;
            self.take_durable(clock);
        }
        Ok(())
    }

    fn wait_for_oldest(&mut self) -> anyhow::Result<()> {
        let oldest = self.window.iter().filter_map(VecDeque::front).min_by_key(|(_, at)| *at);
        let Some((ticket, _)) = oldest else { return Ok(()) };
        match self.producer.wait(*ticket, self.how) {
            // Durable so long ago that only its receipt is gone.
            Ok(_) | Err(WaitError::ReceiptGone) => Ok(()),
            Err(error) => bail!(error),
        }
    }

    fn take_durable(&mut self, clock: &Clock) {
        let mut now = None;
        for lane in &mut self.window {
            while let Some((ticket, at)) = lane.front()
                && self.producer.is_durable(*ticket)
            {
                let now = *now.get_or_insert_with(|| clock.now());
                self.durable.saturating_record(now.saturating_sub(*at));
                self.events += 1;
                self.waiting -= 1;
                lane.pop_front();
            }
        }
    }
}
