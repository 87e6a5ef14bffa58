//! Lines out of files and standard input, in bounded memory.
//!
//! A line is everything up to an LF, without the LF; a CR before it belongs to the line. Bytes
//! after the last LF are a line too. A line over the limit is skipped and counted, never held.

use std::fs::File;
use std::io::{self, Read};
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::path::{Path, PathBuf};

use super::exit::{Exit, Failure, plain};

/// Where lines come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    Stdin,
    File(PathBuf),
    /// What the program carries within itself.
    Sample(&'static [u8]),
}

impl Source {
    /// `-` is standard input, and so is no argument at all.
    pub fn all(files: &[PathBuf]) -> Vec<Source> {
        if files.is_empty() {
            return vec![Source::Stdin];
        }
        files
            .iter()
            .map(|file| match file.as_os_str() == "-" {
                true => Source::Stdin,
                false => Source::File(file.clone()),
            })
            .collect()
    }

    pub fn name(&self) -> String {
        match self {
            Source::Stdin => "-".to_owned(),
            Source::File(path) => path.display().to_string(),
            Source::Sample(_) => "sample".to_owned(),
        }
    }

    /// The place of a line, for people.
    pub fn place(&self, line: u64) -> String {
        match self {
            Source::Stdin => format!("standard input, line {line}"),
            _ => format!("{}, line {line}", self.name()),
        }
    }

    /// Its length, where it is known beforehand.
    pub fn bytes(&self) -> Option<u64> {
        match self {
            Source::Stdin => None,
            Source::Sample(bytes) => Some(bytes.len() as u64),
            Source::File(path) => path.metadata().ok().filter(|m| m.is_file()).map(|m| m.len()),
        }
    }

    pub fn open(&self) -> Result<Input, Failure> {
        match self {
            Source::Stdin => {
                // SAFETY: descriptor 0 is open for the life of the process (Rust's runtime sees
                // to it), and ManuallyDrop keeps it from being closed here. The buffer of
                // `io::stdin` is not used, since `poll` could not see what it holds.
                let file = ManuallyDrop::new(unsafe { File::from_raw_fd(0) });
                Ok(Input::Stdin(file))
            }
            Source::File(path) => Ok(Input::File(open(path)?)),
            Source::Sample(bytes) => Ok(Input::Sample(bytes)),
        }
    }
}

fn open(path: &Path) -> Result<File, Failure> {
    let wrong = |what: &str| Failure::new(Exit::Usage, format!("{}: {what}", path.display()));
    let file = File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => wrong("there is no such file"),
        io::ErrorKind::PermissionDenied => wrong("it may not be read: permission denied"),
        _ => wrong(&format!("it cannot be opened: {}", plain(&error))),
    })?;
    if file.metadata().is_ok_and(|m| m.is_dir()) {
        return Err(wrong("it is a directory; name the files in it"));
    }
    Ok(file)
}

/// An open source.
pub enum Input {
    Stdin(ManuallyDrop<File>),
    File(File),
    Sample(&'static [u8]),
}

impl Input {
    /// What to poll for more; nothing where a read never waits.
    pub fn fd(&self) -> Option<RawFd> {
        match self {
            Input::Stdin(file) => Some(file.as_raw_fd()),
            Input::File(file) => Some(file.as_raw_fd()),
            Input::Sample(_) => None,
        }
    }
}

impl Read for Input {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Input::Stdin(file) => file.read(buf),
            Input::File(file) => file.read(buf),
            Input::Sample(bytes) => bytes.read(buf),
        }
    }
}

/// One line.
#[derive(Debug, PartialEq, Eq)]
pub enum Line<'a> {
    Whole(&'a [u8]),
    /// It had this many bytes, more than the limit, and they were skipped.
    TooLong(u64),
}

/// Cuts what is read into lines. Holds one buffer and at most one line.
pub struct Lines {
    buf: Box<[u8]>,
    start: usize,
    end: usize,
    /// The beginning of a line whose end has not been read yet.
    partial: Vec<u8>,
    /// That line's length so far. More than `partial` holds once it is over the limit.
    partial_bytes: u64,
    /// The line given out last lies in `partial`, which is to be emptied.
    spent: bool,
    line_bytes_max: usize,
    number: u64,
}

const READ_BYTES: usize = 128 << 10;

impl Lines {
    pub fn new(line_bytes_max: usize) -> Lines {
        Lines {
            buf: vec![0; READ_BYTES].into_boxed_slice(),
            start: 0,
            end: 0,
            partial: Vec::new(),
            partial_bytes: 0,
            spent: false,
            line_bytes_max,
            number: 0,
        }
    }

    /// How many lines were given out.
    pub fn count(&self) -> u64 {
        self.number
    }

    /// The next line that has been read to its end, and its number from 1. `None`:
    /// [`Lines::fill`] first.
    pub fn next_line(&mut self) -> Option<(u64, Line<'_>)> {
        self.forget_spent();
        let unread = &self.buf[self.start..self.end];
        let Some(at) = unread.iter().position(|byte| *byte == b'\n') else {
            let (from, to) = (self.start, self.end);
            self.keep_partial(from, to);
            self.start = self.end;
            return None;
        };
        let (from, to) = (self.start, self.start + at);
        self.start = to + 1;
        self.number += 1;
        if self.partial_bytes == 0 && at <= self.line_bytes_max {
            return Some((self.number, Line::Whole(&self.buf[from..to])));
        }
        self.keep_partial(from, to);
        Some((self.number, self.take_partial()))
    }

    /// After the end of the input: the line that no LF ended, if there is one.
    pub fn last_line(&mut self) -> Option<(u64, Line<'_>)> {
        self.forget_spent();
        if self.partial_bytes == 0 {
            return None;
        }
        self.number += 1;
        Some((self.number, self.take_partial()))
    }

    /// Reads more. Zero is the end of the input.
    pub fn fill(&mut self, input: &mut impl Read) -> io::Result<usize> {
        debug_assert_eq!(self.start, self.end, "lines are taken out before more is read");
        loop {
            match input.read(&mut self.buf) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => {
                    self.start = 0;
                    self.end = *result.as_ref().unwrap_or(&0);
                    return result;
                }
            }
        }
    }

    fn keep_partial(&mut self, from: usize, to: usize) {
        self.partial_bytes += (to - from) as u64;
        if self.partial_bytes <= self.line_bytes_max as u64 {
            self.partial.extend_from_slice(&self.buf[from..to]);
        } else {
            self.partial = Vec::new();
        }
    }

    fn take_partial(&mut self) -> Line<'_> {
        self.spent = true;
        if self.partial_bytes <= self.line_bytes_max as u64 {
            Line::Whole(&self.partial)
        } else {
            Line::TooLong(self.partial_bytes)
        }
    }

    fn forget_spent(&mut self) {
        if self.spent {
            self.spent = false;
            self.partial.clear();
            self.partial_bytes = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives out its bytes in pieces of `step`, as a pipe may.
    struct Drip<'a>(&'a [u8], usize);

    impl Read for Drip<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let n = self.1.min(self.0.len()).min(buf.len());
            buf[..n].copy_from_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            Ok(n)
        }
    }

    fn lines_of(bytes: &[u8], step: usize, max: usize) -> Vec<Result<Vec<u8>, u64>> {
        let mut input = Drip(bytes, step);
        let mut lines = Lines::new(max);
        let mut out = Vec::new();
        let own = |line: Line<'_>| match line {
            Line::Whole(bytes) => Ok(bytes.to_vec()),
            Line::TooLong(bytes) => Err(bytes),
        };
        loop {
            while let Some((number, line)) = lines.next_line() {
                out.push(own(line));
                assert_eq!(number, out.len() as u64);
            }
            if lines.fill(&mut input).unwrap() == 0 {
                break;
            }
        }
        out.extend(lines.last_line().map(|(_, line)| own(line)));
        assert_eq!(lines.count(), out.len() as u64);
        out
    }

    /// Where a read happens to end must not change what the lines are.
    #[test]
    fn lines_are_the_same_however_the_bytes_arrive() {
        let text = b"one\r\n\n\xff\x00two\nexactly8\nnine bytes\n\nlast";
        for step in 1..=text.len() {
            assert_eq!(
                lines_of(text, step, 8),
                vec![
                    Ok(b"one\r".to_vec()),
                    Ok(vec![]),
                    Ok(b"\xff\x00two".to_vec()),
                    Ok(b"exactly8".to_vec()),
                    Err(10),
                    Ok(vec![]),
                    Ok(b"last".to_vec()),
                ],
                "step {step}"
            );
        }
    }

    #[test]
    fn ends_of_input() {
        assert!(lines_of(b"", 1, 8).is_empty());
        assert_eq!(lines_of(b"\n", 1, 8), vec![Ok(vec![])]);
        assert_eq!(lines_of(b"123456789", 2, 8), vec![Err(9)]);
    }

    /// A line of gigabytes costs no memory.
    #[test]
    fn a_line_over_the_limit_is_not_held() {
        let mut lines = Lines::new(16);
        let mut input = io::repeat(b'x').take(10 << 20);
        while lines.fill(&mut input).unwrap() > 0 {
            assert!(lines.next_line().is_none());
            assert!(lines.partial.capacity() <= READ_BYTES);
        }
        assert_eq!(lines.last_line(), Some((1, Line::TooLong(10 << 20))));
    }
}
