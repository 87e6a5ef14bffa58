//! Exit codes, and failures as the command line tells them: one sentence and one code.

use std::io;
use std::process::ExitCode;

use hanaper::ErrorKind;

/// What the process says by its exit code. Scripts rely on the numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done, and whole.
    Done = 0,
    /// An integrity violation was found.
    Violation = 1,
    /// Usage, settings or input is wrong; what was not refused is stored.
    Usage = 2,
    /// Recovered, with loss that is listed.
    Loss = 3,
    /// I/O failed, or the log is owned by another process.
    Io = 4,
    /// Refused by policy.
    Refused = 5,
    /// Interrupted; what was accepted is durable.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

impl From<ErrorKind> for Exit {
    fn from(kind: ErrorKind) -> Exit {
        match kind {
            ErrorKind::Integrity => Exit::Violation,
            ErrorKind::Usage => Exit::Usage,
            ErrorKind::Io | ErrorKind::Owned => Exit::Io,
            ErrorKind::Refused => Exit::Refused,
        }
    }
}

/// The table for `--help`.
pub const TABLE: &str = "\
Exit codes:
  0    done, and whole
  1    integrity violation found (also: a log was not opened because of one)
  2    usage, settings or input is wrong (what was not refused is stored)
  3    recovered, with loss that is listed
  4    I/O failed, or another process owns the log
  5    refused by policy
  130  interrupted; what was accepted is durable (append, try)";

/// Why a verb ended early.
#[derive(Debug)]
pub struct Failure {
    pub exit: Exit,
    /// One sentence; nothing where nothing needs saying.
    pub message: Option<String>,
}

/// How a verb ends.
pub type Outcome = Result<Exit, Failure>;

impl Failure {
    pub fn new(exit: Exit, message: impl Into<String>) -> Failure {
        Failure { exit, message: Some(message.into()) }
    }

    pub fn usage(message: impl Into<String>) -> Failure {
        Failure::new(Exit::Usage, message)
    }

    /// Standard output could not be written. A reader that has seen enough (`| head`) is no
    /// failure, and nothing is said about it.
    pub fn stdout(error: io::Error) -> Failure {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Failure { exit: Exit::Done, message: None };
        }
        Failure::new(Exit::Io, format!("standard output cannot be written: {error}"))
    }
}

/// Says one sentence on stderr. A closed stderr is nobody's business.
pub fn say(message: impl std::fmt::Display) {
    use std::io::Write;
    let _ = writeln!(io::stderr(), "hanaper: {}", without_numbers(message.to_string()));
}

/// The message of a system error.
pub fn plain(error: &io::Error) -> String {
    without_numbers(error.to_string())
}

/// Cuts Rust's ` (os error 2)`, which says nothing that the words before it do not.
fn without_numbers(mut text: String) -> String {
    while let Some(start) = text.find(" (os error ") {
        let Some(end) = text[start..].find(')') else { break };
        text.replace_range(start..=start + end, "");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_error_is_told_in_words() {
        let error = io::Error::from_raw_os_error(libc::ENOENT);
        assert_eq!(plain(&error), "No such file or directory");
        let text = format!("a: {error}, b: {error}; (os error ");
        assert_eq!(
            without_numbers(text),
            "a: No such file or directory, b: No such file or directory; (os error "
        );
    }
}
