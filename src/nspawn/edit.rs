//! Changes to a .nspawn file as values, applied to as few lines as possible.

use std::ops::Range;

use super::document::{Document, Item, Kind};
use super::line::{BOM, LINE_MAX, Line, Lines, trim};
use super::schema::{self, Key};
use super::settings::effective_values;
use super::value::{ValueType, quoted};
use super::words::{Quoting, split_words};

/// A change to one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// Makes this the only value. An empty one writes `Key=`.
    Set {
        /// The section, without brackets.
        section: String,
        /// The key.
        key: String,
        /// The value.
        value: String,
    },
    /// Adds a value to a list, unless it is there; the same as `Set` for a key that is no list.
    Add {
        /// The section, without brackets.
        section: String,
        /// The key.
        key: String,
        /// The value.
        value: String,
    },
    /// Removes one value, or all of them.
    Remove {
        /// The section, without brackets.
        section: String,
        /// The key.
        key: String,
        /// The value, or every assignment of the key.
        value: Option<String>,
    },
    /// Brings back systemd's default: removes every assignment of the key, and of the old name that sets the same thing.
    Reset {
        /// The section, without brackets.
        section: String,
        /// The key.
        key: String,
    },
}

/// Why an edit is refused. The document is unchanged then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// Not letters, digits and `-`.
    #[error("{} is no name of a section or key: only letters, digits and '-' are allowed", quoted(.name))]
    Name {
        /// What was given.
        name: String,
    },
    /// A line break would make two lines of it, and no key takes control characters.
    #[error("the value {} contains a line break or another control character", quoted(.value))]
    Control {
        /// What was given.
        value: String,
    },
    /// A backslash at the end of a line continues it, and nothing can be written instead.
    #[error("the value {} ends in a backslash, which would join the next line to it", quoted(.value))]
    TrailingBackslash {
        /// What was given.
        value: String,
    },
    /// systemd reads lines below 1 MiB only.
    #[error("the value is {length} bytes long, a line must stay below {LINE_MAX}")]
    TooLong {
        /// Its length.
        length: usize,
    },
    /// The file is broken in a way that makes systemd refuse it.
    #[error("line {line} must be repaired first: {reason}")]
    Broken {
        /// The line.
        line: usize,
        /// What is wrong with it.
        reason: super::document::FaultKind,
    },
}

/// Whether a value can be written into a file at all.
pub(super) fn check_value(value: &str) -> Result<(), EditError> {
    let owned = || value.to_owned();
    if value.chars().any(char::is_control) {
        return Err(EditError::Control { value: owned() });
    }
    if value.len() >= LINE_MAX / 2 {
        return Err(EditError::TooLong { length: value.len() });
    }
    let backslashes = value.bytes().rev().take_while(|&b| b == b'\\').count();
    if backslashes % 2 == 1 { Err(EditError::TrailingBackslash { value: owned() }) } else { Ok(()) }
}

fn check_name(name: &str) -> Result<(), EditError> {
    let sound = !name.is_empty() && name.len() <= 256 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if sound { Ok(()) } else { Err(EditError::Name { name: name.to_owned() }) }
}

/// Bytes to be put in place of a range of the file.
type Patch = (Range<usize>, Vec<u8>);

impl Document {
    /// Applies one edit; says whether any byte changed.
    ///
    /// Lines that the edit does not concern, comments, order, line endings and the byte order mark stay as they are. The
    /// key need not be in the schema; one that is not counts as no list.
    pub fn apply(&mut self, edit: &Edit) -> Result<bool, EditError> {
        let (Edit::Set { section, key, .. }
        | Edit::Add { section, key, .. }
        | Edit::Remove { section, key, .. }
        | Edit::Reset { section, key }) = edit;
        check_name(section)?;
        check_name(key)?;
        if let Some(fault) = self.fatal() {
            return Err(EditError::Broken { line: fault.line, reason: fault.kind });
        }
        let known = schema::find(section, key);
        let patches = match edit {
            Edit::Set { value, .. } => self.set(section, key, sound(value)?, known),
            Edit::Add { value, .. } if known.is_some_and(Key::is_list) => {
                self.add(section, key, sound(value)?, known)
            }
            Edit::Add { value, .. } => self.set(section, key, sound(value)?, known),
            Edit::Remove { value: Some(value), .. } => self.remove(section, key, value.trim(), known),
            Edit::Remove { value: None, .. } => self.remove_all(section, key),
            Edit::Reset { .. } => {
                let mut patches = self.remove_all(section, key);
                for other in schema::KEYS.iter().filter(|other| other.section == section) {
                    if other.replaced_by == Some(key) || known.is_some_and(|k| k.replaced_by == Some(other.name)) {
                        patches.extend(self.remove_all(section, other.name));
                    }
                }
                patches
            }
        };
        Ok(self.patch(patches))
    }

    fn patch(&mut self, mut patches: Vec<Patch>) -> bool {
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

    /// Items of one key in order, with their values.
    fn assignments(&self, section: &str, key: &str) -> Vec<(&Item, String, usize)> {
        self.entries_of(section, key)
            .map(|entry| (&self.items()[entry.index], entry.value.to_owned(), entry.index))
            .collect()
    }

    fn set(&self, section: &str, key: &str, value: &str, known: Option<&'static Key>) -> Vec<Patch> {
        let assignments = self.assignments(section, key);
        let Some((last, last_value, last_index)) = assignments.last() else {
            return self.insert(section, key, value);
        };
        let Some(known) = known else {
            return if last_value == value { Vec::new() } else { vec![self.replace(last, key, value)] };
        };
        let effective = effective_values(self, known);
        let wanted = known.value.keep(value, schema::NEWEST_SYSTEMD).0;
        if !value.is_empty() && !wanted.is_empty() && effective.iter().map(|v| &v.value).eq(&wanted) {
            return Vec::new();
        }
        if value.is_empty() && effective.is_empty() && last_value.is_empty() {
            return Vec::new();
        }
        // A start mode that says yes cannot be taken back by a later line: the first assignment is the one in force.
        let sticky = matches!((section, key), ("Exec", "Boot" | "ProcessTwo"));
        let target = effective.last().map_or(*last_index, |value| value.index);
        let mut patches = Vec::new();
        for (item, _, index) in &assignments {
            let in_force = effective.iter().any(|value| value.index == *index);
            if *index == target {
                patches.push(self.replace(item, key, value));
            } else if (in_force && known.is_list()) || sticky {
                patches.extend(self.delete(item));
            }
        }
        // A reset that stood behind the target would undo it.
        if last_value.is_empty() && *last_index != target {
            patches.extend(self.delete(last));
        }
        patches
    }

    fn add(&self, section: &str, key: &str, value: &str, known: Option<&'static Key>) -> Vec<Patch> {
        let Some(known) = known else { return self.insert(section, key, value) };
        let effective = effective_values(self, known);
        let wanted = known.value.keep(value, schema::NEWEST_SYSTEMD).0;
        if !wanted.is_empty() && wanted.iter().all(|word| effective.iter().any(|v| &v.value == word)) {
            return Vec::new();
        }
        match self.assignments(section, key).last() {
            Some((item, ..)) => self.insert_after(item, &format!("{key}={value}")),
            None => self.insert(section, key, value),
        }
    }

    fn remove(&self, section: &str, key: &str, value: &str, known: Option<&'static Key>) -> Vec<Patch> {
        let mut patches = Vec::new();
        for (item, text, _) in self.assignments(section, key) {
            if text == value {
                patches.extend(self.delete(item));
                continue;
            }
            let Some(words) = known.and_then(|known| word_list(known.value, &text)) else { continue };
            let kept: Vec<&str> = words.iter().map(String::as_str).filter(|word| *word != value).collect();
            if kept.is_empty() {
                patches.extend(self.delete(item));
            } else if kept.len() < words.len() {
                patches.push(self.replace(item, key, &kept.join(" ")));
            }
        }
        patches
    }

    fn remove_all(&self, section: &str, key: &str) -> Vec<Patch> {
        self.assignments(section, key).iter().flat_map(|(item, ..)| self.delete(item)).collect()
    }

    /// The physical lines of an item.
    fn lines_of(&self, item: &Item) -> impl Iterator<Item = Line<'_>> {
        let end = item.span.end;
        Lines::from(self.as_bytes(), item.span.start, item.first_line).take_while(move |line| line.start < end)
    }

    /// Another value for an assignment: `Key=` and the white space around it stay, a continuation becomes one line, and
    /// comments inside it come after it.
    fn replace(&self, item: &Item, key: &str, value: &str) -> Patch {
        let lines: Vec<Line<'_>> = self.lines_of(item).collect();
        let mut comments: Vec<u8> = Vec::new();
        for line in lines.iter().filter(|line| line.is_comment()) {
            comments.extend_from_slice(line.content);
            comments.extend_from_slice(line.ending);
        }
        let Some(first) = lines.first() else { return (item.span.clone(), Vec::new()) };
        let mut new = Vec::new();
        match first.content.iter().position(|&b| b == b'=') {
            Some(at) => {
                let tail = &first.content[at + 1..];
                let blank = tail.len() - super::line::trim_start(tail).len();
                new.extend_from_slice(&first.content[..=at]);
                if !trim(tail).is_empty() {
                    new.extend_from_slice(&tail[..blank]);
                }
            }
            None => {
                let content = first.content.strip_prefix(BOM).unwrap_or(first.content);
                new.extend_from_slice(&first.content[..first.content.len() - content.len()]);
                new.extend_from_slice(key.as_bytes());
                new.push(b'=');
            }
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
    fn delete(&self, item: &Item) -> Vec<Patch> {
        self.lines_of(item)
            .filter(|line| !line.is_comment())
            .map(|line| {
                let keeps_bom = line.content.starts_with(BOM);
                let new = if keeps_bom { [BOM, line.ending].concat() } else { Vec::new() };
                (line.start..line.end().min(item.span.end), new)
            })
            .collect()
    }

    /// A new assignment at the end of the last section of that name, or in a new section.
    fn insert(&self, section: &str, key: &str, value: &str) -> Vec<Patch> {
        let text = format!("{key}={value}");
        let items = self.items();
        let is_header = |item: &Item| matches!(&item.kind, Kind::Header(name) if **name == *section);
        let Some(header) = items.iter().rposition(is_header) else { return self.append_section(section, &text) };
        let after = items[header + 1..].iter().position(|item| matches!(item.kind, Kind::Header(_)));
        let end = after.map_or(items.len(), |at| header + 1 + at);
        self.insert_after(&items[end - 1], &text)
    }

    /// A new line behind an item and the comments that follow it directly, unless they lead the next header.
    fn insert_after(&self, item: &Item, text: &str) -> Vec<Patch> {
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
        let blank_before = self.lines().last().is_none_or(|line| line.is_blank() && !line.ending.is_empty());
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

fn sound(value: &str) -> Result<&str, EditError> {
    let value = value.trim_matches([' ', '\t']);
    check_value(value)?;
    Ok(value)
}

/// The words of a value that is a plain list of words.
fn word_list(kind: ValueType, value: &str) -> Option<Vec<String>> {
    let plain = matches!(kind, ValueType::Capabilities | ValueType::UserNames | ValueType::InterfacePairs)
        || (matches!(kind, ValueType::Words | ValueType::Environment) && !value.contains(['"', '\'']));
    (plain && !value.contains('\\')).then(|| split_words(value, Quoting::Escapes, None).ok()).flatten()
}

/// The length without white space at the end.
fn trimmed_end(bytes: &[u8]) -> usize {
    bytes.len() - bytes.iter().rev().take_while(|&&b| super::line::is_space(b)).count()
}
