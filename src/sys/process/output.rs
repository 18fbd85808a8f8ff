//! What a child prints: captured or logged, with its last lines for errors.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};

use super::child::{Chunk, Stream};

/// How many of the last lines of output an error carries.
pub(super) const TAIL_LINES: usize = 12;
/// The longest line that an error carries, in characters; the rest is cut.
const TAIL_WIDTH: usize = 300;
/// Captured output beyond this many bytes is thrown away.
pub(super) const CAPTURE_MAX: usize = 4 << 20;
/// The outputs of a child, as they are collected.
#[derive(Default)]
pub(super) struct Collected {
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
    line: Vec<u8>,
    last: VecDeque<String>,
    pub(super) log_error: Option<io::Error>,
}

impl Collected {
    pub(super) fn take(&mut self, (stream, bytes): Chunk, log: Option<&mut File>, watch: &mut dyn FnMut(&str)) {
        let Some(log) = log else {
            let store = match stream {
                Stream::Out => &mut self.stdout,
                Stream::Err => &mut self.stderr,
            };
            let room = CAPTURE_MAX.saturating_sub(store.len());
            store.extend_from_slice(&bytes[..bytes.len().min(room)]);
            return;
        };
        if let Err(error) = log.write_all(&bytes) {
            // A log that cannot be written must not stop a child that can go on; it is an error at the end.
            self.log_error.get_or_insert(error);
        }
        for byte in bytes {
            match byte {
                b'\n' => self.flush_line(watch),
                _ if self.line.len() < 4096 => self.line.push(byte),
                _ => {}
            }
        }
    }

    pub(super) fn flush_line(&mut self, watch: &mut dyn FnMut(&str)) {
        if self.line.is_empty() {
            return;
        }
        // What a terminal would show of a line redrawn with carriage returns is its last version.
        let line = String::from_utf8_lossy(&self.line).into_owned();
        self.line.clear();
        let line = line.trim_end_matches('\r').rsplit('\r').next().unwrap_or_default();
        watch(line);
        if !line.trim().is_empty() {
            self.last.push_back(printable(line));
            if self.last.len() > TAIL_LINES {
                self.last.pop_front();
            }
        }
    }

    pub(super) fn tail(&self, logged: bool) -> Vec<String> {
        if logged {
            return self.last.iter().cloned().collect();
        }
        let whole = if self.stderr.is_empty() {
            &self.stdout
        } else {
            &self.stderr
        };
        let text = String::from_utf8_lossy(whole);
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        let first = lines.len().saturating_sub(TAIL_LINES);
        lines[first..].iter().map(|line| printable(line)).collect()
    }
}

/// One line, cut to [`TAIL_WIDTH`], with control characters escaped: a program's words may carry terminal sequences.
pub(crate) fn printable(line: &str) -> String {
    let mut shown = String::new();
    for character in line.trim_end().chars().take(TAIL_WIDTH) {
        match character {
            '\t' => shown.push(' '),
            c if c.is_control() => shown.extend(c.escape_default()),
            c => shown.push(c),
        }
    }
    shown
}
