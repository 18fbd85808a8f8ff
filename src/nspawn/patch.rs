//! Which bytes change when an assignment is replaced, deleted or added.

use std::ops::Range;

use super::document::{Document, Item, Kind};
use super::line::{BOM, Line, Lines, is_space, trim, trim_start};

/// Bytes to be put in place of a range of the file.
pub(super) type Patch = (Range<usize>, Vec<u8>);

impl Document {
    /// Puts patches that do not overlap in place; says whether any byte changed.
    pub(super) fn patch(&mut self, mut patches: Vec<Patch>) -> bool {
        if patches.is_empty() {
            return false;
        }
        patches.sort_by_key(|(range, _)| (range.start, range.end));
        let mut bytes = Vec::with_capacity(self.as_bytes().len() + 64);
        let mut done = 0;
        for (range, new) in patches {
            bytes.extend_from_slice(&self.as_bytes()[done..range.start]);
            bytes.extend_from_slice(&new);
            done = range.end;
        }
        bytes.extend_from_slice(&self.as_bytes()[done..]);
        let changed = bytes != self.as_bytes();
        if changed {
            *self = Self::from_bytes(bytes);
        }
        changed
    }

    /// The physical lines of an item.
    pub(super) fn lines_of(&self, item: &Item) -> impl Iterator<Item = Line<'_>> {
        let end = item.span.end;
        Lines::from(self.as_bytes(), item.span.start, item.first_line).take_while(move |line| line.start < end)
    }

    /// Another value for an assignment: `Key=` and the white space around it stay, a continuation becomes one line, and
    /// comments inside it come after it.
    pub(super) fn replace(&self, item: &Item, key: &str, value: &str) -> Patch {
        let lines: Vec<Line<'_>> = self.lines_of(item).collect();
        let mut comments: Vec<u8> = Vec::new();
        for line in lines.iter().filter(|line| line.is_comment()) {
            comments.extend_from_slice(line.content);
            comments.extend_from_slice(line.ending);
        }
        let Some(first) = lines.first() else {
            return (item.span.clone(), Vec::new());
        };
        let mut new = Vec::new();
        if let Some(at) = first.content.iter().position(|&b| b == b'=') {
            let tail = &first.content[at + 1..];
            let blank = tail.len() - trim_start(tail).len();
            new.extend_from_slice(&first.content[..=at]);
            if !trim(tail).is_empty() {
                new.extend_from_slice(&tail[..blank]);
            }
        } else {
            let content = first.content.strip_prefix(BOM).unwrap_or(first.content);
            new.extend_from_slice(&first.content[..first.content.len() - content.len()]);
            new.extend_from_slice(key.as_bytes());
            new.push(b'=');
        }
        new.extend_from_slice(value.as_bytes());
        let last = lines.last().filter(|_| comments.is_empty()).unwrap_or(first);
        if lines.len() == 1 {
            let kept = first.content.len() - trimmed_end(first.content);
            new.extend_from_slice(&first.content[first.content.len() - kept..]);
        }
        new.extend_from_slice(last.ending);
        new.extend_from_slice(&comments);
        (item.span.clone(), new)
    }

    /// Takes the lines of an assignment away, but not the comments between them nor the byte order mark.
    pub(super) fn delete(&self, item: &Item) -> Vec<Patch> {
        self.lines_of(item)
            .filter(|line| !line.is_comment())
            .map(|line| {
                let keeps_bom = line.content.starts_with(BOM);
                let new = if keeps_bom {
                    [BOM, line.ending].concat()
                } else {
                    Vec::new()
                };
                (line.start..line.end().min(item.span.end), new)
            })
            .collect()
    }

    /// A new assignment at the end of the last section of that name, or in a new section.
    pub(super) fn insert(&self, section: &str, key: &str, value: &str) -> Vec<Patch> {
        let text = format!("{key}={value}");
        let items = self.items();
        let is_header = |item: &Item| matches!(&item.kind, Kind::Header(name) if **name == *section);
        let Some(header) = items.iter().rposition(is_header) else {
            return self.append_section(section, &text);
        };
        let after = items[header + 1..]
            .iter()
            .position(|item| matches!(item.kind, Kind::Header(_)));
        let end = after.map_or(items.len(), |at| header + 1 + at);
        self.insert_after(&items[end - 1], &text)
    }

    /// A new line behind an item and the comments that follow it directly, unless they lead the next header.
    pub(super) fn insert_after(&self, item: &Item, text: &str) -> Vec<Patch> {
        let mut at = item.span.end;
        let number = item.first_line + self.lines_of(item).count();
        let mut end_of_comments = at;
        let mut next = None;
        for line in Lines::from(self.as_bytes(), at, number) {
            if !line.is_comment() {
                next = Some(line);
                break;
            }
            end_of_comments = line.end();
        }
        if !item.open && next.is_none_or(|line| line.is_blank()) {
            at = end_of_comments;
        }
        let ending = self.ending_before(at);
        let mut new = Vec::new();
        if !self.ends_line(at) {
            new.extend_from_slice(ending);
        }
        if item.open {
            // Without an empty line the new one would belong to the continuation.
            new.extend_from_slice(ending);
        }
        new.extend_from_slice(text.as_bytes());
        if self.ends_line(at) || at < self.as_bytes().len() {
            new.extend_from_slice(ending);
        }
        vec![(at..at, new)]
    }

    fn append_section(&self, section: &str, text: &str) -> Vec<Patch> {
        let end = self.as_bytes().len();
        let ending = self.ending_before(end);
        let mut new = Vec::new();
        let is_empty = trim(self.as_bytes().strip_prefix(BOM).unwrap_or(self.as_bytes())).is_empty();
        if !self.ends_line(end) {
            new.extend_from_slice(ending);
        }
        let blank_before = self
            .lines()
            .last()
            .is_none_or(|line| line.is_blank() && !line.ending.is_empty());
        let open = self.items().last().is_some_and(|item| item.open);
        if open || (!blank_before && !is_empty) {
            new.extend_from_slice(ending);
        }
        for line in [&format!("[{section}]"), text] {
            new.extend_from_slice(line.as_bytes());
            new.extend_from_slice(ending);
        }
        vec![(end..end, new)]
    }

    /// Whether a line begins at this offset.
    fn ends_line(&self, at: usize) -> bool {
        let before = &self.as_bytes()[..at];
        before.is_empty() || before == BOM || matches!(before.last(), Some(b'\n' | b'\r' | 0))
    }

    /// The line ending in use before this offset, or the first in the file.
    fn ending_before(&self, at: usize) -> &[u8] {
        let usable = |line: &Line<'_>| matches!(line.ending, b"\n" | b"\r\n" | b"\r");
        let first = self.lines().find(usable);
        let before = self.lines().take_while(|line| line.start < at).filter(usable).last();
        before.or(first).map_or(b"\n", |line| line.ending)
    }
}

/// The length without white space at the end.
fn trimmed_end(bytes: &[u8]) -> usize {
    bytes.len() - bytes.iter().rev().take_while(|&&b| is_space(b)).count()
}
