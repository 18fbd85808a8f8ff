//! Physical lines of a .nspawn file, split as systemd's `read_line()` splits them.

/// The longest line that systemd reads; at this many bytes and more the whole file is refused (`LONG_LINE_MAX`).
pub const LINE_MAX: usize = 1024 * 1024;

/// The UTF-8 byte order mark; systemd skips one at the start of a line.
pub(super) const BOM: &[u8] = b"\xEF\xBB\xBF";

/// One physical line: [`start`](Line::start) + `content` + `ending`, nothing lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// Line number, counted from 1.
    pub number: usize,
    /// Offset of the first byte in the file.
    pub start: usize,
    /// The bytes before the line ending.
    pub content: &'a [u8],
    /// The line ending: `\n`, `\r`, NUL, or a run of them without repetition such as `\r\n`; empty at the end of the file.
    pub ending: &'a [u8],
}

impl Line<'_> {
    /// Offset of the first byte of the next line.
    #[must_use]
    pub fn end(&self) -> usize {
        self.start + self.content.len() + self.ending.len()
    }

    /// Whether systemd skips the line as a comment: `#` or `;` after optional white space.
    #[must_use]
    pub fn is_comment(&self) -> bool {
        matches!(trim_start(self.content).first(), Some(b'#' | b';'))
    }

    /// Whether there is nothing but white space.
    #[must_use]
    pub fn is_blank(&self) -> bool {
        trim_start(self.content).is_empty()
    }

    /// Whether a backslash at the end joins the next line to this one: an odd number of them, `\\` is an escaped one.
    #[must_use]
    pub(super) fn continues(&self) -> bool {
        self.content.iter().rev().take_while(|&&b| b == b'\\').count() % 2 == 1
    }
}

/// Iterator over the physical lines of a file.
#[derive(Clone, Debug)]
pub struct Lines<'a> {
    bytes: &'a [u8],
    offset: usize,
    number: usize,
}

impl<'a> Lines<'a> {
    /// The lines of `bytes`, in order.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self::from(bytes, 0, 1)
    }

    /// The lines of `bytes` from `offset`, which must be the start of line `number`.
    pub(super) fn from(bytes: &'a [u8], offset: usize, number: usize) -> Self {
        Self { bytes, offset, number }
    }
}

impl<'a> Iterator for Lines<'a> {
    type Item = Line<'a>;

    fn next(&mut self) -> Option<Line<'a>> {
        let rest = self.bytes.get(self.offset..).filter(|rest| !rest.is_empty())?;
        let length = rest.iter().position(|&b| ending_bit(b) != 0).unwrap_or(rest.len());
        let (content, after) = rest.split_at(length);
        let ending = &after[..ending_length(after)];
        let line = Line {
            number: self.number,
            start: self.offset,
            content,
            ending,
        };
        self.offset = line.end();
        self.number += 1;
        Some(line)
    }
}

/// One bit for each kind of line ending, none for other bytes.
fn ending_bit(byte: u8) -> u8 {
    match byte {
        b'\n' => 1,
        b'\r' => 2,
        0 => 4,
        _ => 0,
    }
}

/// How many of the first bytes make up one line ending: no marker twice, and nothing after a NUL.
fn ending_length(bytes: &[u8]) -> usize {
    let mut seen = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        let bit = ending_bit(byte);
        if bit == 0 || seen & (bit | 4) != 0 {
            return at;
        }
        seen |= bit;
    }
    bytes.len()
}

/// White space as systemd's parser means it (`WHITESPACE`).
pub(super) fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// Without white space at the start.
pub(super) fn trim_start(bytes: &[u8]) -> &[u8] {
    let skip = bytes.iter().take_while(|&&b| is_space(b)).count();
    &bytes[skip..]
}

/// Without white space at both ends (`strstrip()`).
pub(super) fn trim(bytes: &[u8]) -> &[u8] {
    let bytes = trim_start(bytes);
    let skip = bytes.iter().rev().take_while(|&&b| is_space(b)).count();
    &bytes[..bytes.len() - skip]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endings(bytes: &[u8]) -> Vec<(&[u8], &[u8])> {
        Lines::new(bytes).map(|l| (l.content, l.ending)).collect()
    }

    #[test]
    fn every_mix_of_line_endings_is_split_as_systemd_does() {
        assert_eq!(
            endings(b"a\r\nb\n\rc"),
            [(&b"a"[..], &b"\r\n"[..]), (b"b", b"\n\r"), (b"c", b"")]
        );
        assert_eq!(endings(b"a\n\nb"), [(&b"a"[..], &b"\n"[..]), (b"", b"\n"), (b"b", b"")]);
        assert_eq!(
            endings(b"a\0\nb\r\n\0\0"),
            [(&b"a"[..], &b"\0"[..]), (b"", b"\n"), (b"b", b"\r\n\0"), (b"", b"\0")]
        );
        assert!(endings(b"").is_empty());
    }

    #[test]
    fn an_odd_backslash_continues() {
        let line = |s: &'static str| Lines::new(s.as_bytes()).next().unwrap();
        assert!(line("a\\").continues());
        assert!(!line("a\\\\").continues());
        assert!(line("a\\\\\\").continues());
        assert!(!line("a\\ ").continues());
    }
}
