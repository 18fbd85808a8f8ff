//! Findings about a text file, with the line and a caret, as compilers show them.

use std::io::{self, Write as _};
use std::ops::Range;

use annotate_snippets::{AnnotationKind, Level, Origin, Renderer, Snippet};

use crate::machine::text::printable;

/// How much of what is meant, and of the line behind it, is shown, in bytes. What stands before gives the column.
const LONGEST: usize = 200;

/// Something to be told about a file.
#[derive(Clone, Debug)]
pub struct Diagnostic<'a> {
    /// The file's name.
    pub file: &'a str,
    /// An error, or else a warning.
    pub is_error: bool,
    /// One word for scripts.
    pub code: &'a str,
    /// What is wrong.
    pub message: &'a str,
    /// What to do.
    pub hint: Option<&'a str>,
    /// Where; `None` if it is about the whole file.
    pub spot: Option<Spot<'a>>,
}

/// A part of a line.
#[derive(Clone, Debug)]
pub struct Spot<'a> {
    /// The whole file.
    pub text: &'a [u8],
    /// The bytes that are meant, all in one line.
    pub bytes: Range<usize>,
    /// Their line, counted from 1.
    pub line: usize,
}

/// Writes them to stdout, in colours if that is a terminal that wants them.
pub fn show(diagnostics: &[Diagnostic<'_>]) -> io::Result<()> {
    let mut out = anstream::stdout().lock();
    diagnostics
        .iter()
        .try_for_each(|diagnostic| writeln!(out, "{}\n", render(diagnostic)))
}

fn render(diagnostic: &Diagnostic<'_>) -> String {
    let level = if diagnostic.is_error {
        Level::ERROR
    } else {
        Level::WARNING
    };
    let title = level.primary_title(printable(diagnostic.message)).id(diagnostic.code);
    let file = printable(diagnostic.file);
    let mut group = match &diagnostic.spot {
        None => title.element(Origin::path(file)),
        Some(spot) => {
            let (line, meant) = excerpt(spot);
            title.element(
                Snippet::source(line)
                    .path(file)
                    .line_start(spot.line)
                    .annotation(AnnotationKind::Primary.span(meant)),
            )
        }
    };
    if let Some(hint) = diagnostic.hint {
        group = group.element(Level::HELP.with_name("hint").message(printable(hint)));
    }
    Renderer::styled().render(&[group])
}

/// The line with nothing in it that steers a terminal, cut behind what is meant, and where that is in it.
fn excerpt(spot: &Spot<'_>) -> (String, Range<usize>) {
    let is_end = |b: &u8| matches!(b, b'\n' | b'\r' | 0);
    let (before, rest) = spot.text.split_at(spot.bytes.start);
    let start = before.iter().rposition(is_end).map_or(0, |at| at + 1);
    let before = &before[start..];
    let (meant, behind) = rest.split_at(spot.bytes.len().min(LONGEST));
    let behind = behind.split(is_end).next().unwrap_or_default();
    let behind = &behind[..behind.len().min(LONGEST)];
    // One character for each, so that the caret stays where it belongs.
    let safe = |bytes: &[u8]| -> String {
        let text = String::from_utf8_lossy(bytes);
        let plain = |c: char| c == '\t' || printable(c.encode_utf8(&mut [0; 4])).len() == c.len_utf8();
        text.chars().map(|c| if plain(c) { c } else { '\u{fffd}' }).collect()
    };
    let (before, meant, behind) = (safe(before), safe(meant), safe(behind));
    let range = before.len()..before.len() + meant.len();
    (before + &meant + &behind, range)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(file: &str, text: &[u8], bytes: Range<usize>, line: usize) -> String {
        let spot = Spot { text, bytes, line };
        let diagnostic = Diagnostic {
            file,
            is_error: true,
            code: "bad-value",
            message: "it is wrong",
            hint: Some("mend it"),
            spot: Some(spot),
        };
        anstream::adapter::strip_str(&render(&diagnostic)).to_string()
    }

    #[test]
    fn the_caret_stands_below_what_is_meant() {
        assert_eq!(
            plain("a.nspawn", b"[Exec]\nBoot=perhaps\n", 12..19, 2),
            "error[bad-value]: it is wrong
 --> a.nspawn:2:6
  |
2 | Boot=perhaps
  |      ^^^^^^^
  |
  = hint: mend it"
        );
    }

    #[test]
    fn nothing_in_a_line_steers_the_terminal_and_long_ones_are_cut() {
        let shown = plain("x\x1b[2J", b"\x1b[2J\xff=\xe2\x80\xae", 0..5, 1);
        assert!(!shown.contains(['\x1b', '\u{202e}']), "{shown:?}");
        let long = "x".repeat(1 << 20);
        let shown = plain("a", long.as_bytes(), 500_000..600_000, 1);
        assert!(
            shown.contains("a:1:500001") && shown.len() < 1000,
            "{} {shown:.2000}",
            shown.len()
        );
    }
}
