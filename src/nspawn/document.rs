//! A .nspawn file as it lies on disk, and as systemd's `config_parse()` reads it.

use std::ops::Range;

use super::line::{BOM, LINE_MAX, Lines, trim};

/// A .nspawn file: every byte of it, and the sections and assignments systemd sees in it.
///
/// Any bytes at all make a document; what systemd would refuse shows up in [`Document::faults`]. [`Document::as_bytes`]
/// gives the input back byte for byte.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Document {
    bytes: Vec<u8>,
    items: Vec<Item>,
}

/// Something systemd acts on: a header, an assignment, or a line it complains about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) kind: Kind,
    /// The physical lines, comments inside a continuation included.
    pub(super) span: Range<usize>,
    /// First physical line.
    pub(super) first_line: usize,
    /// The line that systemd names in its messages: the last physical one.
    pub(super) line: usize,
    /// A continuation that the end of the file cut off.
    pub(super) open: bool,
}

impl Item {
    pub(super) fn entry<'a>(&self, index: usize, section: Option<&'a str>, key: &'a str, value: &'a str) -> Entry<'a> {
        Entry {
            section,
            key,
            value,
            line: self.line,
            first_line: self.first_line,
            index,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Header(Box<str>),
    Entry {
        key: Box<str>,
        value: Box<str>,
    },
    Fault(FaultKind),
    /// White space that the end of the file cut off in a continuation: nothing to systemd, but in the way of edits.
    Blank,
}

/// An assignment `Key=Value`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The section it stands in; `None` before the first header, where systemd ignores it.
    pub section: Option<&'a str>,
    /// The key, without white space around it.
    pub key: &'a str,
    /// The value with continuations joined, without white space around it.
    pub value: &'a str,
    /// The line that systemd names in its messages: the last physical one.
    pub line: usize,
    /// The first physical line, the same unless the assignment is continued.
    pub first_line: usize,
    pub(super) index: usize,
}

/// A line that systemd ignores or fails on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault<'a> {
    /// The section it stands in.
    pub section: Option<&'a str>,
    /// The line that systemd names in its messages; of a line that is too long it names the one before.
    pub line: usize,
    /// What is wrong.
    pub kind: FaultKind,
}

/// What is wrong with the form of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum FaultKind {
    /// Fatal: systemd refuses the whole file.
    #[error("the line is not valid UTF-8, or contains a code point that Unicode sets aside")]
    NotUtf8,
    /// Fatal: `[` without `]` at the end.
    #[error("the section header has no ']' at the end")]
    UnclosedHeader,
    /// Fatal: quotes, backslashes or control characters between the brackets; since systemd 262 nothing or wildcards, too.
    #[error("the section header is empty, or contains a quote, a backslash, a wildcard or a control character")]
    UnsafeHeader,
    /// Fatal: see [`LINE_MAX`].
    #[error("the line is longer than 1 MiB")]
    TooLong,
    /// The line is ignored.
    #[error("there is no '=' in the line")]
    MissingEquals,
    /// The line is ignored.
    #[error("there is no key before '='")]
    MissingKey,
}

impl FaultKind {
    /// Whether nspawn refuses to start on it, instead of ignoring the line.
    #[must_use]
    pub fn is_fatal(self) -> bool {
        !matches!(self, Self::MissingEquals | Self::MissingKey)
    }
}

impl Document {
    /// Reads any bytes. Linear in their number.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Self {
        Self::from_bytes(bytes.to_vec())
    }

    /// Reads any bytes without copying them.
    #[must_use]
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        let items = read_items(&bytes);
        Self { bytes, items }
    }

    /// The file, byte for byte.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The physical lines; concatenated they are [`Document::as_bytes`].
    #[must_use]
    pub fn lines(&self) -> Lines<'_> {
        Lines::new(&self.bytes)
    }

    /// All assignments in order, in known sections and in others.
    pub fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        self.with_sections()
            .filter_map(|(index, section, item)| match &item.kind {
                Kind::Entry { key, value } => Some(item.entry(index, section, key, value)),
                _ => None,
            })
    }

    /// The assignments of one key, in order. Case matters, as it does to systemd.
    pub fn entries_of<'a>(&'a self, section: &'a str, key: &'a str) -> impl Iterator<Item = Entry<'a>> {
        self.entries()
            .filter(move |entry| entry.section == Some(section) && entry.key == key)
    }

    /// Section headers with their line numbers, repetitions included.
    pub fn sections(&self) -> impl Iterator<Item = (&str, usize)> {
        self.items.iter().filter_map(|item| match &item.kind {
            Kind::Header(name) => Some((&**name, item.line)),
            _ => None,
        })
    }

    /// Lines that systemd ignores for their form, or that make it refuse the file.
    pub fn faults(&self) -> impl Iterator<Item = Fault<'_>> {
        self.with_sections().filter_map(|(_, section, item)| match item.kind {
            Kind::Fault(kind) => Some(Fault {
                section,
                line: item.line,
                kind,
            }),
            _ => None,
        })
    }

    /// The first line on which systemd gives up; then no setting of the file is in force and the machine does not start.
    #[must_use]
    pub fn fatal(&self) -> Option<Fault<'_>> {
        self.faults().find(|fault| fault.kind.is_fatal())
    }

    pub(super) fn items(&self) -> &[Item] {
        &self.items
    }

    /// The items with their places and the sections they stand in; a header stands in its own.
    pub(super) fn with_sections(&self) -> impl Iterator<Item = (usize, Option<&str>, &Item)> {
        self.items.iter().enumerate().scan(None, |section, (index, item)| {
            if let Kind::Header(name) = &item.kind {
                *section = Some(&**name);
            }
            Some((index, *section, item))
        })
    }
}

/// The loop of `config_parse()`: comments first, then one byte order mark, then continuations.
fn read_items(bytes: &[u8]) -> Vec<Item> {
    let mut items = Vec::new();
    let mut bom_seen = false;
    let mut in_section = false;
    let mut pending: Option<Pending> = None;
    let mut last = 0;
    for line in Lines::new(bytes) {
        last = line.number;
        if line.content.len() >= LINE_MAX {
            items.push(Item {
                kind: Kind::Fault(FaultKind::TooLong),
                span: line.start..line.end(),
                first_line: line.number,
                line: line.number,
                open: false,
            });
            continue;
        }
        if line.is_comment() {
            continue;
        }
        let mut content = line.content;
        if !bom_seen && let Some(rest) = content.strip_prefix(BOM) {
            content = rest;
            bom_seen = true;
        }
        let continues = line.continues();
        if !continues && pending.is_none() {
            push_item(
                &mut items,
                &mut in_section,
                content,
                line.start..line.end(),
                line.number,
                line.number,
            );
            continue;
        }
        let open = pending.get_or_insert_with(|| Pending {
            text: Vec::new(),
            start: line.start,
            line: line.number,
        });
        open.text.extend_from_slice(content);
        if continues {
            if let Some(backslash) = open.text.last_mut() {
                *backslash = b' ';
            }
        } else if let Some(open) = pending.take() {
            push_item(
                &mut items,
                &mut in_section,
                &open.text,
                open.start..line.end(),
                open.line,
                line.number,
            );
        }
    }
    if let Some(open) = pending {
        let before = items.len();
        // systemd counts one line more when the end of the file ends a continuation.
        push_item(
            &mut items,
            &mut in_section,
            &open.text,
            open.start..bytes.len(),
            open.line,
            last + 1,
        );
        match items.get_mut(before) {
            Some(item) => item.open = true,
            None => items.push(Item {
                kind: Kind::Blank,
                span: open.start..bytes.len(),
                first_line: open.line,
                line: last + 1,
                open: true,
            }),
        }
    }
    items
}

/// A continued line whose end is not reached yet.
struct Pending {
    text: Vec<u8>,
    start: usize,
    line: usize,
}

/// One logical line: `parse_line()` of systemd up to the point where the key is looked up.
fn push_item(
    items: &mut Vec<Item>,
    in_section: &mut bool,
    text: &[u8],
    span: Range<usize>,
    first_line: usize,
    line: usize,
) {
    if text.len() > LINE_MAX {
        items.push(Item {
            kind: Kind::Fault(FaultKind::TooLong),
            span,
            first_line,
            line,
            open: false,
        });
        return;
    }
    let text = trim(text);
    if text.is_empty() {
        return;
    }
    let kind = match std::str::from_utf8(text) {
        Err(_) => Kind::Fault(FaultKind::NotUtf8),
        Ok(text) if text.chars().any(is_noncharacter) => Kind::Fault(FaultKind::NotUtf8),
        Ok(text) if text.starts_with('[') => match header(text) {
            Ok(name) => {
                *in_section = true;
                Kind::Header(name.into())
            }
            Err(fault) => Kind::Fault(fault),
        },
        Ok(text) => match text.split_once('=') {
            // Before the first header systemd does not look further than this.
            _ if !*in_section => {
                let (key, value) = text.split_once('=').unwrap_or((text, ""));
                entry(key, value)
            }
            None => Kind::Fault(FaultKind::MissingEquals),
            Some(("", _)) => Kind::Fault(FaultKind::MissingKey),
            Some((key, value)) => entry(key, value),
        },
    };
    items.push(Item {
        kind,
        span,
        first_line,
        line,
        open: false,
    });
}

/// Code points that Unicode sets aside and that systemd refuses like broken bytes.
pub(super) fn is_noncharacter(c: char) -> bool {
    let code = u32::from(c);
    (0xFDD0..=0xFDEF).contains(&code) || code & 0xFFFE == 0xFFFE
}

fn entry(key: &str, value: &str) -> Kind {
    let space = [' ', '\t', '\n', '\r'];
    Kind::Entry {
        key: key.trim_matches(space).into(),
        value: value.trim_matches(space).into(),
    }
}

/// The name in a header; systemd does not trim it.
fn header(text: &str) -> Result<&str, FaultKind> {
    let inner = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .ok_or(FaultKind::UnclosedHeader)?;
    if inner
        .bytes()
        .any(|b| b < b' ' || matches!(b, b'"' | b'\'' | b'\\' | 0x7F))
    {
        return Err(FaultKind::UnsafeHeader);
    }
    Ok(inner)
}
