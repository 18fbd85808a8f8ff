//! A page as text.

use std::fmt::Write as _;

use super::page::{Block, Span};

const WIDTH: usize = 80;
/// Stands for a blank at which no line is broken.
const HARD_BLANK: &str = "\u{a0}";

pub(super) fn render(blocks: &[Block]) -> String {
    let bold = anstyle::Style::new().bold();
    let mut text = String::new();
    let mut before: Option<&Block> = None;
    for block in blocks {
        // The items of a list stand together.
        if before.is_some_and(|before| !matches!((before, block), (Block::Item(_), Block::Item(_)))) {
            text.push('\n');
        }
        match block {
            Block::Title(heading) | Block::Heading(heading) => drop(writeln!(text, "{bold}{heading}{bold:#}")),
            Block::Paragraph(spans) => fill(&mut text, "  ", "  ", spans),
            Block::Item(spans) => fill(&mut text, "  - ", "    ", spans),
            Block::Code(code) => {
                for line in code.lines() {
                    let _ = writeln!(text, "      {line}");
                }
            }
        }
        before = Some(block);
    }
    text
}

/// Breaks text into lines. A piece of code stays whole.
fn fill(text: &mut String, first: &str, others: &str, spans: &[Span]) {
    let whole: String = spans
        .iter()
        .map(|span| match span {
            Span::Text(text) => text.clone(),
            Span::Code(code) => format!("`{}`", code.replace(' ', HARD_BLANK)),
        })
        .collect();
    let mut line = first.to_owned();
    let mut is_empty = true;
    for word in whole.split(' ').filter(|word| !word.is_empty()) {
        if !is_empty && line.chars().count() + 1 + word.chars().count() > WIDTH {
            let _ = writeln!(text, "{line}");
            others.clone_into(&mut line);
            is_empty = true;
        }
        if !is_empty {
            line.push(' ');
        }
        line.push_str(&word.replace(HARD_BLANK, " "));
        is_empty = false;
    }
    let _ = writeln!(text, "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_broken_outside_of_code() {
        let mut text = String::new();
        let code = Span::Code("machinist exec web -- id".into());
        fill(
            &mut text,
            "- ",
            "  ",
            &[Span::Text("word ".repeat(12)), code, Span::Text(", end".into())],
        );
        let expected = format!(
            "- {}\n  `machinist exec web -- id`, end\n",
            "word ".repeat(12).trim_end()
        );
        assert_eq!(text, expected);
    }
}
