//! Progress bars: on stderr, only on a terminal, gone when the work is done.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar, or nothing where stderr is no terminal.
pub struct Progress(ProgressBar);

impl Progress {
    /// Over `bytes`, or without an end where that is unknown.
    pub fn bytes(what: &'static str, bytes: Option<u64>) -> Progress {
        // indicatif draws nothing by itself where stderr is no terminal.
        let bar = ProgressBar::with_draw_target(bytes, ProgressDrawTarget::stderr_with_hz(10));
        let template = match bytes {
            Some(_) => "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
            None => "{msg} {spinner} {bytes} {bytes_per_sec}",
        };
        bar.set_style(ProgressStyle::with_template(template).expect("a template that parses"));
        bar.set_message(what);
        if !bar.is_hidden() {
            bar.enable_steady_tick(Duration::from_millis(100));
        }
        Progress(bar)
    }

    pub fn advance(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    pub fn set(&self, done: u64, total: u64) {
        self.0.set_length(total);
        self.0.set_position(done);
    }

    /// Says one sentence on stderr without tearing the bar.
    pub fn say(&self, message: impl std::fmt::Display) {
        self.0.suspend(|| super::exit::say(message));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
