//! Entries of a journal, and the form in which they come through a pipe: see "Journal Export Format" in systemd.io.

use std::io::{self, BufRead, BufReader, Read};
use std::ops::Range;

/// The longest value of a field that is kept, in bytes; the rest is cut.
pub(super) const VALUE_MAX: usize = 1 << 20;
/// The longest name of a field, as journald has it.
pub(super) const NAME_MAX: usize = 64;
/// An entry has no more fields than that: what journald takes, twice.
pub(super) const FIELDS_MAX: usize = 2048;
/// An entry that has come to this takes no further fields.
pub(super) const ENTRY_MAX: usize = 4 << 20;

/// When it was said, in µs since 1970.
pub const TIME: &str = "__REALTIME_TIMESTAMP";
/// What a journal calls the entry.
pub const CURSOR: &str = "__CURSOR";
/// Not from a journal, but about it: what went wrong with reading it. No field of a journal begins so.
pub(super) const NOTE: &str = "__MACHINIST_NOTE";
/// Not from a journal: everything that was there when reading began has been told.
pub(super) const CAUGHT_UP: &str = "__MACHINIST_CAUGHT_UP";

/// One entry of a journal. Nothing in it is trusted: who wrote it may have been a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// µs since 1970; 0 if it does not say.
    pub time: u64,
    bytes: Vec<u8>,
    fields: Vec<(Range<usize>, Range<usize>)>,
}

impl Entry {
    /// Its fields in their order: (name, value). A name may come more than once.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.fields.iter().filter_map(|(name, value)| {
            let name = std::str::from_utf8(&self.bytes[name.clone()]).ok()?;
            Some((name, &self.bytes[value.clone()]))
        })
    }

    /// The first value of a field.
    #[must_use]
    pub fn get(&self, wanted: &str) -> Option<&[u8]> {
        let found = self
            .fields
            .iter()
            .find(|(name, _)| &self.bytes[name.clone()] == wanted.as_bytes());
        found.map(|(_, value)| &self.bytes[value.clone()])
    }

    /// The first value of a field as text, lossily.
    #[must_use]
    pub fn text(&self, wanted: &str) -> Option<String> {
        self.get(wanted)
            .map(|value| String::from_utf8_lossy(value).into_owned())
    }

    /// How many bytes it takes, about.
    #[must_use]
    pub fn size(&self) -> usize {
        self.bytes.len() + self.fields.len() * size_of::<(Range<usize>, Range<usize>)>() + size_of::<Self>()
    }

    fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    fn push(&mut self, name: &[u8], value: &[u8]) {
        if self.fields.len() >= FIELDS_MAX || self.bytes.len() + name.len() + value.len() > ENTRY_MAX {
            return;
        }
        if name == TIME.as_bytes() && self.time == 0 {
            let text = std::str::from_utf8(value).unwrap_or_default();
            self.time = text.parse().unwrap_or_default();
        }
        let start = self.bytes.len();
        self.bytes.extend_from_slice(name);
        let middle = self.bytes.len();
        self.bytes.extend_from_slice(value);
        self.fields.push((start..middle, middle..self.bytes.len()));
    }
}

/// Appends one field in the export format.
pub(super) fn write_field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    // Only printable text without line breaks may come as a line.
    if value.iter().all(|byte| *byte >= b' ' || *byte == b'\t') {
        out.push(b'=');
    } else {
        out.push(b'\n');
        out.extend_from_slice(&(value.len() as u64).to_le_bytes());
    }
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// Whether it is a name that journald gives or takes: nothing else leaves a journal, and nothing can pass for a field of ours.
pub(super) fn is_name(name: &[u8]) -> bool {
    let ordinary = |byte: &u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || *byte == b'_';
    (1..=NAME_MAX).contains(&name.len()) && !name.starts_with(b"__") && name.iter().all(ordinary)
}

/// Reads entries from a pipe; what is too long is cut, so that no writer can fill the memory.
pub(super) struct Entries<R> {
    input: BufReader<R>,
    line: Vec<u8>,
    /// Bytes and fields of the last entry: the next one is about as large.
    last: (usize, usize),
}

impl<R: Read> Entries<R> {
    pub(super) fn new(input: R) -> Self {
        Self {
            input: BufReader::with_capacity(64 << 10, input),
            line: Vec::new(),
            last: (0, 0),
        }
    }

    /// Whether the next entry may have to be waited for.
    pub(super) fn may_wait(&self) -> bool {
        !self.input.buffer().contains(&b'\n')
    }

    /// The next entry; `None` at the end.
    pub(super) fn next(&mut self) -> io::Result<Option<Entry>> {
        let mut entry = Entry {
            time: 0,
            bytes: Vec::with_capacity(self.last.0),
            fields: Vec::with_capacity(self.last.1),
        };
        loop {
            self.take_lines(&mut entry);
            let whole = self.read_line()?;
            if self.line.is_empty() {
                if !whole {
                    // What is cut off in the middle is no entry.
                    return Ok(None);
                }
                if entry.is_empty() {
                    continue;
                }
                self.last = (entry.bytes.len(), entry.fields.len());
                return Ok(Some(entry));
            }
            if let Some(at) = self.line.iter().position(|byte| *byte == b'=') {
                entry.push(&self.line[..at], &self.line[at + 1..]);
                continue;
            }
            let mut size = [0; 8];
            self.input.read_exact(&mut size)?;
            let size = u64::from_le_bytes(size);
            let kept = size.min(VALUE_MAX as u64);
            let mut value = Vec::new();
            self.input.by_ref().take(kept).read_to_end(&mut value)?;
            io::copy(&mut self.input.by_ref().take(size - kept), &mut io::sink())?;
            self.input.read_exact(&mut [0])?;
            entry.push(&self.line, &value);
        }
    }

    /// Takes fields that are lines and have been read, where they lie: most are.
    fn take_lines(&mut self, entry: &mut Entry) {
        let mut used = 0;
        let read = self.input.buffer();
        for line in read.split_inclusive(|byte| *byte == b'\n') {
            let (Some(at), Some(line)) = (line.iter().position(|byte| *byte == b'='), line.strip_suffix(b"\n")) else {
                break;
            };
            if line.len() > VALUE_MAX {
                break;
            }
            entry.push(&line[..at], &line[at + 1..]);
            used += line.len() + 1;
        }
        self.input.consume(used);
    }

    /// The next line without its end; false if there is none. What is longer than a field may be is thrown away.
    fn read_line(&mut self) -> io::Result<bool> {
        self.line.clear();
        let limit = (VALUE_MAX + NAME_MAX + 1) as u64;
        let count = self.input.by_ref().take(limit).read_until(b'\n', &mut self.line)?;
        if self.line.last() == Some(&b'\n') {
            self.line.pop();
        } else if count as u64 == limit {
            skip_line(&mut self.input)?;
        } else {
            self.line.clear();
            return Ok(false);
        }
        Ok(true)
    }
}

fn skip_line(input: &mut impl BufRead) -> io::Result<()> {
    loop {
        let buffer = input.fill_buf()?;
        let (count, done) = match buffer.iter().position(|byte| *byte == b'\n') {
            Some(at) => (at + 1, true),
            None => (buffer.len(), buffer.is_empty()),
        };
        input.consume(count);
        if done {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Vec<Entry> {
        let mut entries = Entries::new(bytes);
        std::iter::from_fn(|| entries.next().unwrap()).collect()
    }

    #[test]
    fn fields_come_back_as_they_were_written() {
        let mut bytes = Vec::new();
        for (name, value) in [
            ("__REALTIME_TIMESTAMP", "17"),
            ("MESSAGE", "a=b"),
            ("MESSAGE", "two\nlines"),
        ] {
            write_field(&mut bytes, name.as_bytes(), value.as_bytes());
        }
        bytes.extend_from_slice(b"\n\n\nMESSAGE=next\n\n");
        let entries = read(&bytes);
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0].time, 17);
        let fields: Vec<_> = entries[0].fields().skip(1).collect();
        assert_eq!(fields, [("MESSAGE", b"a=b".as_slice()), ("MESSAGE", b"two\nlines")]);
        assert_eq!(entries[1].text("MESSAGE").as_deref(), Some("next"));
        assert_eq!(entries[1].get("PRIORITY"), None);
    }

    #[test]
    fn what_is_too_long_is_cut() {
        let mut bytes = b"MESSAGE=".to_vec();
        bytes.resize(3 * VALUE_MAX, b'x');
        bytes.extend_from_slice(b"\nA=1\n\n");
        let entries = read(&bytes);
        assert!(entries[0].size() < 2 * VALUE_MAX);
        assert_eq!(entries[0].get("A"), Some(b"1".as_slice()));
        let mut bytes = b"MESSAGE\n".to_vec();
        bytes.extend_from_slice(&(2 * VALUE_MAX as u64).to_le_bytes());
        bytes.resize(bytes.len() + 2 * VALUE_MAX, b'\n');
        bytes.extend_from_slice(b"\nA=1\n\n");
        let entries = read(&bytes);
        assert_eq!(entries[0].get("MESSAGE").map(<[u8]>::len), Some(VALUE_MAX));
        assert_eq!(entries[0].get("A"), Some(b"1".as_slice()));
    }

    #[test]
    fn an_entry_without_its_end_is_none() {
        assert!(read(b"MESSAGE=half\n").is_empty());
        assert!(read(b"MESSAGE=half").is_empty());
        assert!(Entries::new(b"MESSAGE\n\x05\0".as_slice()).next().is_err());
    }

    #[test]
    fn names_are_those_of_journald() {
        assert!(is_name(b"MESSAGE") && is_name(b"_PID") && is_name(b"A1"));
        for name in [b"".as_slice(), b"__CURSOR", b"message", b"A B", b"A\n", &[b'A'; 65]] {
            assert!(!is_name(name), "{name:?}");
        }
    }
}
