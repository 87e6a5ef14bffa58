//! What the kernel has on record about this process.

use std::time::Duration;

/// Context switches and processor time, as sums since the process began.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// Threads that went to sleep.
    pub voluntary: u64,
    /// Threads that were put aside for others.
    pub involuntary: u64,
    /// Processor time, user and system.
    pub cpu: Duration,
}

impl Usage {
    /// Now, over all threads.
    pub fn now() -> Usage {
        // SAFETY: all-zero is a valid rusage, and the call fills it in.
        let usage = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
            usage
        };
        let time = |t: libc::timeval| Duration::new(t.tv_sec as u64, t.tv_usec as u32 * 1000);
        Usage {
            voluntary: usage.ru_nvcsw as u64,
            involuntary: usage.ru_nivcsw as u64,
            cpu: time(usage.ru_utime) + time(usage.ru_stime),
        }
    }

    /// What came since.
    pub fn since(&self, before: &Usage) -> Usage {
        Usage {
            voluntary: self.voluntary - before.voluntary,
            involuntary: self.involuntary - before.involuntary,
            cpu: self.cpu - before.cpu,
        }
    }
}

/// Load average over a minute: whether others are at work on this machine.
pub fn load_average() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(f64::NAN)
}

/// The kernel's release.
pub fn kernel() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}
