//! What an append must not cost: allocations and system calls.

mod shard;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use hanaper_ingest::*;
use hanaper_shards::clock::Clock;
use hanaper_shards::router::Router;
use shard::*;

/// Counts the allocations of each thread.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: passes every call on to the system's allocator, unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of this thread during `work`.
fn allocations(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

/// A producer whose lane exists, and a shard that keeps no copies.
fn ready(limits: Limits) -> (Shard, Producer) {
    let (mut shard, intake) = one(limits);
    shard.keep = false;
    let mut producer = intake.producer().unwrap();
    producer.append(b"k", b"v").unwrap();
    shard.turn();
    (shard, producer)
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| drop(std::hint::black_box(Box::new(5)))), 1);
}

#[test]
fn appending_allocates_nothing() {
    let (mut shard, mut producer) = ready(Limits::default());
    let mut tickets = Vec::with_capacity(100);
    let counted = allocations(|| {
        for _ in 0..1_000 {
            let ticket = producer.append(b"order-4711", &[1; 256]).unwrap();
            let mut claim = producer.try_claim(b"order-4711", 256).unwrap();
            claim.fill(2);
            claim.commit();
            tickets.clear();
            let events = std::iter::repeat_n((&b"k"[..], &[3; 64][..]), 100);
            producer.append_batch_into(events, &mut tickets).unwrap();
            assert!(!producer.is_durable(ticket));
            shard.turn();
            assert!(producer.is_durable(ticket));
            producer.wait(ticket, WaitFor::block()).unwrap();
            producer.flush().unwrap();
        }
        // Refusals and timeouts are no reason to allocate either.
        let refused = loop {
            if let Err(error) = producer.append(b"k", &[0; 256]) {
                break error;
            }
        };
        assert!(refused.is_retryable());
        let patience = Duration::from_micros(10);
        assert_eq!(producer.append_within(b"k", &[0; 256], patience), Err(refused));
    });
    assert_eq!(counted, 0);
}

/// A future that has to wait allocates once, however often it is polled; one that need not, never.
#[test]
fn waiting_as_a_future_allocates_once() {
    let (mut shard, mut producer) = ready(Limits::default());
    let mut cx = Context::from_waker(Waker::noop());
    let ticket = producer.append(b"k", b"v").unwrap();
    let mut future = pin!(producer.durable(ticket));
    let polling = allocations(|| {
        for _ in 0..10 {
            assert!(future.as_mut().poll(&mut cx).is_pending());
        }
    });
    assert_eq!(polling, 1);
    shard.turn();
    let resolving = allocations(|| {
        assert!(matches!(future.as_mut().poll(&mut cx), Poll::Ready(Ok(_))));
        assert!(pin!(producer.durable(ticket)).poll(&mut cx).is_ready());
    });
    assert_eq!(resolving, 0);
}

/// A child process in which the kernel kills whoever makes a system call. It is made by a raw
/// clone, which the fork detection does not see, so that it appends as its parent would.
#[test]
fn appending_makes_no_system_call() {
    let mut shard = Shard::new(0);
    let machine = Clock::start(1);
    // Where the clock itself needs a system call there is nothing to prove about it.
    let clock = if machine.source_name().contains("tsc") { machine } else { Clock::manual(1).0 };
    let router = Router { seed: 3, shards: 1 };
    let intake = Intake::new(router, vec![shard.port()], clock, Limits::default());
    let mut producer = intake.producer().unwrap();
    producer.append(b"k", b"v").unwrap();
    shard.turn();

    let appends = |producer: &mut Producer| {
        let mut good = true;
        for _ in 0..500 {
            good &= producer.append(b"order-4711", &[1; 256]).is_ok();
            good &= producer.try_claim(b"k", 8).map(Claim::commit).is_ok();
        }
        good
    };
    assert_eq!(in_a_cell(|| appends(&mut producer)), End::Exited(0));
    let sleeps = || {
        std::thread::sleep(Duration::from_nanos(1));
        true
    };
    assert_eq!(in_a_cell(sleeps), End::Killed, "or the cell would prove nothing");
}

#[derive(Debug, PartialEq, Eq)]
enum End {
    Exited(i32),
    Killed,
}

fn in_a_cell(work: impl FnOnce() -> bool) -> End {
    let allow_exit_alone = [
        // Load the system call's number; exit is allowed, all else kills.
        libc::sock_filter { code: 0x20, jt: 0, jf: 0, k: 0 },
        libc::sock_filter { code: 0x15, jt: 0, jf: 1, k: libc::SYS_exit as u32 },
        libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW },
        libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: libc::SECCOMP_RET_KILL_PROCESS },
    ];
    let program =
        libc::sock_fprog { len: allow_exit_alone.len() as u16, filter: allow_exit_alone.as_ptr().cast_mut() };
    // SAFETY: as fork; the child allocates nothing and leaves by `exit`.
    let child = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
    if child == 0 {
        // SAFETY: confines the child to `exit`, then calls that.
        unsafe {
            let closed = libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) == 0;
            let code = if closed { i32::from(!work()) } else { 2 };
            libc::syscall(libc::SYS_exit, code);
        }
        unreachable!();
    }
    let mut status = 0;
    // SAFETY: our own child, and a place for its status.
    let ended = unsafe { libc::waitpid(child as libc::pid_t, &mut status, 0) };
    assert_eq!(i64::from(ended), child);
    match libc::WIFEXITED(status) {
        true => End::Exited(libc::WEXITSTATUS(status)),
        false => End::Killed,
    }
}
