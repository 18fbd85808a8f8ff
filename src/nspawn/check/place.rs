//! Where in a file something stands.

use std::ops::Range;

use crate::nspawn::document::{Document, FaultKind, Kind};
use crate::nspawn::line::{BOM, Lines, trim, trim_start};

/// A place in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The line, counted from 1: of a continued assignment the first.
    pub line: usize,
    /// The first character in it that is meant, counted from 1.
    pub column: usize,
    /// The line that systemd names in its messages: of a continued assignment the last.
    pub systemd_line: usize,
    /// The bytes of the file that are meant, all in one line.
    pub bytes: Range<usize>,
}

/// What of an assignment is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Line,
    Key,
    Value,
}

impl Document {
    /// The place of an item, or of a part of it, on its first line.
    pub(super) fn place(&self, index: usize, part: Part) -> Place {
        let item = &self.items()[index];
        let line = Lines::from(self.as_bytes(), item.span.start, item.first_line).next();
        let content = line.map_or(&[][..], |line| line.content);
        let text = content.strip_prefix(BOM).unwrap_or(content);
        let offset_in = |part: &[u8]| part.as_ptr() as usize - content.as_ptr() as usize;
        let whole = trim(text);
        let meant = match (part, text.iter().position(|&b| b == b'=')) {
            (Part::Key, Some(at)) => trim(&text[..at]),
            // The value of a continued assignment may begin in a later line.
            (Part::Value, Some(at)) if !matches!(trim(&text[at + 1..]), [] | [b'\\']) => trim(&text[at + 1..]),
            _ => whole,
        };
        let at = if meant.is_empty() {
            content.len() - trim_start(content).len()
        } else {
            offset_in(meant)
        };
        let start = item.span.start + at;
        Place {
            line: item.first_line,
            column: String::from_utf8_lossy(&content[..at]).chars().count() + 1,
            // It counts a line when it has read it.
            systemd_line: match item.kind {
                Kind::Fault(FaultKind::TooLong) => item.line - 1,
                _ => item.line,
            },
            bytes: start..start + meant.len(),
        }
    }
}
