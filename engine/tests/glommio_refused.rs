//! Where glommio does not start the log works all the same, and says so once.
//!
//! Each test takes something from its whole process, so each runs in a process of its own: this
//! program again, told by the environment.

#![cfg(feature = "glommio")]

use std::process::Command;

use hanaper::{Driver, Log, WaitFor};

const TAKE: &str = "HANAPER_TEST_TAKE";

/// Opens, appends, closes; in a child from which `what` has been taken.
fn works_without(what: &str, take: fn()) {
    if std::env::var(TAKE).as_deref() != Ok(what) {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", std::thread::current().name().unwrap(), "--nocapture"])
            .env(TAKE, what)
            .output()
            .unwrap();
        let said =
            format!("{}{}", String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
        assert!(child.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    take();
    let temporary = tempfile::tempdir().unwrap();
    let log = Log::builder(temporary.path().join("log"))
        .state(concat!(env!("CARGO_TARGET_TMPDIR"), "/state"))
        .shards(2)
        .segment_bytes(1 << 20)
        .driver(Driver::Glommio)
        .calibrate(false)
        .open()
        .unwrap();
    let said: Vec<_> = log.notices().iter().filter(|n| n.contains("glommio")).collect();
    assert!(said.len() == 1 && said[0].contains("plain threads"), "{:?}", log.notices());
    assert!(!said[0].contains('\n'));
    let mut producer = log.producer().unwrap();
    let ticket = producer.append(b"key", b"payload").unwrap();
    producer.wait(ticket, WaitFor::block()).unwrap();
    log.close().unwrap();
}

/// glommio wants 512 KiB of lockable memory; a container may allow 64.
#[test]
fn too_little_lockable_memory_is_no_reason_not_to_open() {
    works_without("memory", || {
        let limit = libc::rlimit { rlim_cur: 64 << 10, rlim_max: 64 << 10 };
        // SAFETY: reads one rlimit.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) }, 0);
    });
}

/// As the default seccomp profiles of containers do: `io_uring_setup` answers EPERM. glommio itself
/// would panic.
#[test]
fn a_forbidden_io_uring_is_no_reason_not_to_open() {
    works_without("io_uring", || {
        let op = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
        let mut filter = [
            op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
            op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, libc::SYS_io_uring_setup as u32),
            op(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
            op(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
        ];
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        // SAFETY: no memory is passed.
        assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
        // Threads made from here on inherit it, and the log's are.
        // SAFETY: the program and its filter live through the call.
        let set = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
        assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    });
}
