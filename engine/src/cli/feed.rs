//! Lines → producer → acknowledgements, in bounded memory.
//!
//! One thread reads and appends, the other waits for tickets in the order in which they were
//! given. At most [`IN_FLIGHT`] events are between the two, whatever the input's length.
//!
//! Promises: an acknowledgement is printed after its event is durable, never before, and at once
//! even while the input is silent. Every event that was accepted is waited for, also after an
//! interrupt. A line that is refused is said, and costs the others nothing.

use std::io::{self, BufWriter, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{
    Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, channel, sync_channel,
};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use hanaper::{AppendError, Backpressure, Log, Producer, Stopped, Ticket, WaitError, WaitFor, Waiter};
use hdrhistogram::Histogram;

use super::exit::{Exit, Failure, plain, say};
use super::input::{Input, Line, Lines, Source};
use super::key::KeyRule;
use super::numbers::{hex, size};
use super::progress::Progress;
use super::signals::{Interrupts, Ready};

/// Events between the reading thread and the waiting one. Not more than the receipts that a lane
/// remembers (4,096): each event's receipt is still there when its turn comes.
const IN_FLIGHT: usize = 4096;
/// Events handed over at once while input keeps coming.
const CHUNK: usize = 64;
/// One chunk is being filled and one is being waited for.
const CHUNKS: usize = IN_FLIGHT / CHUNK - 2;

/// How to feed.
pub struct Feed<'a> {
    pub key: &'a KeyRule,
    pub payload_bytes_max: usize,
    /// What a full disk lacks.
    pub segment_bytes: u64,
    pub acks: Acks,
    pub progress: &'a Progress,
}

/// Whether each acknowledgement is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acks {
    Silent,
    /// With `file`, where there are several.
    Printed {
        with_file: bool,
    },
}

/// What came of it.
pub struct Fed {
    /// Durable events and the bytes of their payloads.
    pub events: u64,
    pub bytes: u64,
    /// Lines that were not stored.
    pub refused: u64,
    /// Events whose line had no key of the wanted kind.
    pub keyless: u64,
    /// Inputs that could not be opened.
    pub unopened: u64,
    /// From the first read to the last acknowledgement.
    pub elapsed: Duration,
    /// Nanoseconds from append to acknowledgement.
    pub latency: Histogram<u64>,
    pub interrupted: bool,
    /// What ended it early, besides an interrupt.
    pub failure: Option<Failure>,
}

/// Sources, opened one after the other; what cannot be opened is said and passed over.
pub struct Inputs {
    sources: std::iter::Enumerate<std::vec::IntoIter<Source>>,
    next: Option<(usize, Source, Input)>,
    unopened: u64,
}

impl Inputs {
    /// Fails if there is nothing at all to read, so that no log is made for nothing.
    pub fn open(sources: Vec<Source>) -> Result<Inputs, Failure> {
        let mut inputs = Inputs { sources: sources.into_iter().enumerate(), next: None, unopened: 0 };
        inputs.next = inputs.advance();
        match inputs.next {
            Some(_) => Ok(inputs),
            None => Err(Failure { exit: Exit::Usage, message: None }),
        }
    }

    fn advance(&mut self) -> Option<(usize, Source, Input)> {
        for (index, source) in self.sources.by_ref() {
            match source.open() {
                Ok(input) => return Some((index, source, input)),
                Err(failure) => {
                    self.unopened += 1;
                    say(failure.message.unwrap_or_default());
                }
            }
        }
        None
    }
}

impl Iterator for Inputs {
    type Item = (usize, Source, Input);

    fn next(&mut self) -> Option<Self::Item> {
        self.next.take().or_else(|| self.advance())
    }
}

/// An event that was accepted.
struct Pending {
    ticket: Ticket,
    appended: Instant,
    bytes: u64,
    file: usize,
    line: u64,
}

/// Appends every line of every input and waits until all are durable.
pub fn feed(
    log: &Log,
    mut inputs: Inputs,
    names: &[String],
    interrupts: &mut Interrupts,
    feed: &Feed<'_>,
) -> Result<Fed, Failure> {
    let producer = log.producer().map_err(|error| Failure::new(Exit::Io, error.to_string()))?;
    let waiter = producer.waiter();
    let (send, receive) = sync_channel(CHUNKS);
    let stopped = AtomicBool::new(false);
    let appender = thread::current();
    let mut intake = Intake {
        producer,
        chunk: Vec::with_capacity(CHUNK),
        send,
        interrupts,
        feed,
        stopped: &stopped,
        key: Vec::new(),
        refused: 0,
        keyless: 0,
    };
    let started = Instant::now();
    let (tell, told) = channel();
    let (end, refused, keyless, waited) = thread::scope(|scope| {
        let acks = Acknowledger { waiter, names, feed, appender, stopped: &stopped };
        scope.spawn(move || {
            let waited = acks.run(&receive);
            tell.send(waited).expect("the other side waits for it");
        });
        let end = intake.take(&mut inputs);
        let Intake { producer, send, interrupts, refused, keyless, .. } = intake;
        // No more can follow: the acknowledger ends after what it has.
        drop(send);
        let waited = loop {
            match told.recv_timeout(SIGNAL_PAUSE) {
                Ok(waited) => break waited,
                // A first interrupt changes nothing any more, but only from then on a second
                // one ends the process.
                Err(RecvTimeoutError::Timeout) => interrupts.seen(),
                Err(RecvTimeoutError::Disconnected) => panic!("the acknowledging thread panicked"),
            };
        };
        drop(producer);
        (end, refused, keyless, waited)
    });
    let elapsed = started.elapsed();
    let interrupted = matches!(end, End::Interrupted);
    // A log that stopped explains whatever else went wrong.
    let failure = match (waited.stopped, end) {
        (Some(why), _) => Some(stopped_failure(&why, waited.events, waited.indeterminate)),
        (None, End::Failed(failure)) => Some(failure),
        (None, _) => waited.stdout,
    };
    Ok(Fed {
        events: waited.events,
        bytes: waited.bytes,
        refused,
        keyless,
        unopened: inputs.unopened,
        elapsed,
        latency: waited.latency,
        interrupted,
        failure,
    })
}

/// How the reading ended.
enum End {
    Whole,
    Interrupted,
    Failed(Failure),
}

/// The reading and appending side.
struct Intake<'a, 'i> {
    producer: Producer,
    chunk: Vec<Pending>,
    send: SyncSender<Vec<Pending>>,
    interrupts: &'i mut Interrupts,
    feed: &'a Feed<'a>,
    /// Set by the acknowledger when the log has stopped, or nobody reads the acknowledgements.
    stopped: &'a AtomicBool,
    key: Vec<u8>,
    refused: u64,
    keyless: u64,
}

impl Intake<'_, '_> {
    fn take(&mut self, inputs: &mut Inputs) -> End {
        for (file, source, mut input) in inputs.by_ref() {
            let ended = self.take_one(file, &source, &mut input);
            self.hand_over();
            if let Err(end) = ended {
                return end;
            }
        }
        End::Whole
    }

    fn take_one(&mut self, file: usize, source: &Source, input: &mut Input) -> Result<(), End> {
        let mut lines = Lines::new(self.feed.payload_bytes_max);
        loop {
            while let Some((number, line)) = lines.next_line() {
                self.accept(file, source, number, &line, false)?;
            }
            // What was accepted must not wait for its acknowledgement until more input comes.
            self.hand_over();
            self.wait_for(input)?;
            match lines.fill(input) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => {
                    let place = source.place(lines.count() + 1);
                    let error = plain(&error);
                    return Err(End::Failed(Failure::new(
                        Exit::Io,
                        format!("{place}: cannot be read: {error}; the lines before it are stored"),
                    )));
                }
            }
        }
        if let Some((number, line)) = lines.last_line() {
            self.accept(file, source, number, &line, true)?;
        }
        Ok(())
    }

    fn wait_for(&mut self, input: &Input) -> Result<(), End> {
        loop {
            self.check()?;
            match self.interrupts.wait_for(input.fd(), LOOK_AGAIN_MS) {
                Ok(Ready::Input) => return Ok(()),
                Ok(Ready::Interrupt) => return Err(End::Interrupted),
                Ok(Ready::Quiet) => {}
                Err(error) => {
                    return Err(End::Failed(Failure::new(
                        Exit::Io,
                        format!("cannot wait for input: {}", plain(&error)),
                    )));
                }
            }
        }
    }

    /// Whether to go on: no interrupt, and the log has not stopped meanwhile.
    fn check(&mut self) -> Result<(), End> {
        if self.interrupts.seen() {
            return Err(End::Interrupted);
        }
        match self.stopped.load(Ordering::Acquire) {
            // The acknowledger knows why, and says it: the log has stopped, or nobody reads.
            true => Err(End::Whole),
            false => Ok(()),
        }
    }

    fn accept(
        &mut self,
        file: usize,
        source: &Source,
        number: u64,
        line: &Line<'_>,
        unterminated: bool,
    ) -> Result<(), End> {
        let payload = match line {
            Line::Whole(payload) => *payload,
            Line::TooLong(bytes) => {
                self.refuse(source, number, *bytes);
                return Ok(());
            }
        };
        if !self.feed.key.extract(number, payload, &mut self.key) {
            self.keyless += 1;
        }
        let mut told_no_space = false;
        let mut no_space_since: Option<Instant> = None;
        loop {
            let appended = Instant::now();
            let offered = if unterminated {
                self.producer.append_unterminated(&self.key, payload)
            } else {
                self.producer.append(&self.key, payload)
            };
            match offered {
                Ok(ticket) => {
                    if told_no_space {
                        self.feed.progress.say("there is space again: going on");
                    }
                    let bytes = payload.len() as u64;
                    self.chunk.push(Pending { ticket, appended, bytes, file, line: number });
                    if self.chunk.len() >= CHUNK {
                        self.hand_over();
                    }
                    return Ok(());
                }
                Err(AppendError::Backpressure(pressure)) => {
                    self.hand_over();
                    self.check()?;
                    let no_space = matches!(pressure, Backpressure::NoSpace);
                    // A segment that is merely not zeroed yet is there in a moment; a full disk stays full.
                    let waiting = no_space.then(|| *no_space_since.get_or_insert(appended));
                    let long = waiting.is_some_and(|since| since.elapsed() > NO_SPACE_TOLD_AFTER);
                    if long && !told_no_space {
                        told_no_space = true;
                        let place = source.place(number);
                        self.feed.progress.say(format!(
                            "no space for another segment: waiting at {place} until {} are free for each shard; \
                             what was accepted is becoming durable, and Ctrl-C ends with that",
                            size(self.feed.segment_bytes)
                        ));
                    }
                    // The acknowledger unparks this thread when events have become durable, and
                    // with that there is room in a lane. Nobody tells of room on the disk.
                    thread::park_timeout(if no_space { NO_SPACE_PAUSE } else { FULL_PAUSE });
                }
                Err(AppendError::TooLarge { .. }) => {
                    self.refuse(source, number, payload.len() as u64);
                    return Ok(());
                }
                Err(AppendError::Stopped(why)) => {
                    return Err(End::Failed(Failure::new(
                        Exit::Io,
                        format!(
                            "{why}; run `hanaper verify`, then append the rest, \
                             from {}",
                            source.place(number)
                        ),
                    )));
                }
                Err(error) => {
                    return Err(End::Failed(Failure::new(
                        Exit::Io,
                        format!("{}: {error}", source.place(number)),
                    )));
                }
            }
        }
    }

    fn refuse(&mut self, source: &Source, number: u64, bytes: u64) {
        self.refused += 1;
        let limit = self.feed.payload_bytes_max;
        self.feed.progress.say(format!(
            "{}: it has {bytes} bytes, more than payload_bytes_max = {limit}, and was not stored; \
             all else is (raise it with --payload-bytes-max, at most 16MiB)",
            source.place(number)
        ));
    }

    /// Gives what was accepted to the acknowledger, and waits while it has too much already.
    fn hand_over(&mut self) {
        if self.chunk.is_empty() {
            return;
        }
        let mut chunk = std::mem::replace(&mut self.chunk, Vec::with_capacity(CHUNK));
        loop {
            match self.send.try_send(chunk) {
                Ok(()) => return,
                Err(TrySendError::Full(back)) => {
                    chunk = back;
                    // It may be stdout's reader that is slow: a first interrupt must be seen
                    // here too, since only from then on a second one ends the process.
                    self.interrupts.seen();
                    thread::park_timeout(FULL_PAUSE);
                }
                Err(TrySendError::Disconnected(_)) => {
                    unreachable!("the acknowledger stays until the sender is dropped")
                }
            }
        }
    }
}

/// How often a stopped log is looked for while the input is silent.
const LOOK_AGAIN_MS: i32 = 250;
/// How often signals are looked for while the last acknowledgements are waited for.
const SIGNAL_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause at a full lane or a full hand-over; an acknowledgement ends it sooner.
const FULL_PAUSE: Duration = Duration::from_millis(1);
/// The pause at a full disk.
const NO_SPACE_PAUSE: Duration = Duration::from_millis(5);
const NO_SPACE_TOLD_AFTER: Duration = Duration::from_secs(1);

/// Latencies above an hour are counted as an hour.
const LATENCY_NS_MAX: u64 = 3_600_000_000_000;

/// The waiting side.
struct Acknowledger<'a> {
    waiter: Waiter,
    names: &'a [String],
    feed: &'a Feed<'a>,
    appender: Thread,
    stopped: &'a AtomicBool,
}

/// What it has seen.
struct Waited {
    events: u64,
    bytes: u64,
    indeterminate: u64,
    latency: Histogram<u64>,
    stopped: Option<Stopped>,
    stdout: Option<Failure>,
}

impl Acknowledger<'_> {
    fn run(self, chunks: &Receiver<Vec<Pending>>) -> Waited {
        let mut out = BufWriter::with_capacity(64 << 10, io::stdout());
        let mut waited = Waited {
            events: 0,
            bytes: 0,
            indeterminate: 0,
            latency: Histogram::new_with_max(LATENCY_NS_MAX, 3).expect("a valid range"),
            stopped: None,
            stdout: None,
        };
        loop {
            let chunk = match chunks.try_recv() {
                Ok(chunk) => chunk,
                Err(TryRecvError::Disconnected) => break,
                Err(TryRecvError::Empty) => {
                    self.flush(&mut out, &mut waited);
                    match chunks.recv() {
                        Ok(chunk) => chunk,
                        Err(_) => break,
                    }
                }
            };
            let mut bytes = 0;
            for pending in &chunk {
                if !self.waiter.is_durable(pending.ticket) {
                    // Whoever reads the acknowledgements gets those that are due.
                    self.flush(&mut out, &mut waited);
                }
                self.wait(pending, &mut out, &mut waited);
                bytes += pending.bytes + 1;
            }
            self.feed.progress.advance(bytes);
            self.appender.unpark();
        }
        self.flush(&mut out, &mut waited);
        waited
    }

    fn wait(&self, pending: &Pending, out: &mut impl Write, waited: &mut Waited) {
        let receipt = match self.waiter.wait(pending.ticket, WaitFor::block()) {
            Ok(receipt) => Some(receipt),
            // Durable, which is what matters; only its place is not remembered any more.
            Err(WaitError::ReceiptGone) => None,
            Err(WaitError::Indeterminate(why)) => {
                waited.indeterminate += 1;
                waited.stopped.get_or_insert(why);
                self.stopped.store(true, Ordering::Release);
                return;
            }
            Err(WaitError::TimedOut) => unreachable!("a wait without a timeout"),
        };
        let nanoseconds = u64::try_from(pending.appended.elapsed().as_nanos()).unwrap_or(u64::MAX);
        waited.latency.saturating_record(nanoseconds);
        waited.events += 1;
        waited.bytes += pending.bytes;
        let Acks::Printed { with_file } = self.feed.acks else {
            return;
        };
        if waited.stdout.is_some() {
            return;
        }
        let Some(receipt) = receipt else {
            self.feed.progress.say(format!(
                "line {}: it is durable, but its receipt is no longer there to print",
                pending.line
            ));
            return;
        };
        let file = match with_file {
            true => format!("\"file\":{},", serde_json::json!(self.names[pending.file])),
            false => String::new(),
        };
        let result = writeln!(
            out,
            "{{{file}\"line\":{},\"shard\":{},\"seq\":{},\"batch\":\"{}\"}}",
            pending.line,
            receipt.shard,
            receipt.seq,
            hex(&receipt.digest)
        );
        self.note(result, waited);
    }

    fn flush(&self, out: &mut impl Write, waited: &mut Waited) {
        if waited.stdout.is_none() {
            let result = out.flush();
            self.note(result, waited);
        }
    }

    /// Events whose acknowledgements nobody gets would be stored for nobody to know of: no more are taken, and
    /// those that were accepted become durable.
    fn note(&self, result: io::Result<()>, waited: &mut Waited) {
        let Err(error) = result else { return };
        self.feed.progress.say(format!(
            "standard output cannot be written ({}): acknowledgements are no longer printed; what was accepted is \
             becoming durable, and no more is taken",
            plain(&error)
        ));
        waited.stdout = Some(Failure { exit: Exit::Io, message: None });
        self.stopped.store(true, Ordering::Release);
    }
}

fn stopped_failure(why: &Stopped, durable: u64, indeterminate: u64) -> Failure {
    Failure::new(
        Exit::Io,
        format!(
            "{}; of what was accepted {durable} are durable, and {indeterminate} \
             may or may not be found on disk: run `hanaper verify` and `hanaper replay` to see",
            why
        ),
    )
}
