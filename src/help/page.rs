//! A page as a list of blocks, from Markdown.

use pulldown_cmark::{Event, HeadingLevel, Parser, Tag, TagEnd};

/// What stands below the other on a page.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Block {
    /// What the page is about.
    Title(String),
    Heading(String),
    Paragraph(Vec<Span>),
    /// One of a list.
    Item(Vec<Span>),
    /// Lines that are shown as they are.
    Code(String),
}

/// What stands beside the other in a line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Span {
    Text(String),
    Code(String),
}

pub(super) fn blocks(markdown: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut spans = Vec::new();
    for event in Parser::new(markdown) {
        match event {
            Event::Text(text) => spans.push(Span::Text(text.into_string())),
            Event::Code(code) => spans.push(Span::Code(code.into_string())),
            Event::SoftBreak | Event::HardBreak => spans.push(Span::Text(" ".to_owned())),
            Event::Start(Tag::Heading { .. } | Tag::Paragraph | Tag::Item | Tag::CodeBlock(_)) => spans.clear(),
            Event::End(TagEnd::Heading(HeadingLevel::H1)) => blocks.push(Block::Title(plain(&mut spans))),
            Event::End(TagEnd::Heading(_)) => blocks.push(Block::Heading(plain(&mut spans))),
            Event::End(TagEnd::Paragraph) => blocks.push(Block::Paragraph(std::mem::take(&mut spans))),
            Event::End(TagEnd::Item) => blocks.push(Block::Item(std::mem::take(&mut spans))),
            Event::End(TagEnd::CodeBlock) => blocks.push(Block::Code(plain(&mut spans))),
            _ => {}
        }
    }
    blocks
}

fn plain(spans: &mut Vec<Span>) -> String {
    let text = spans.drain(..).map(|span| match span {
        Span::Text(text) | Span::Code(text) => text,
    });
    text.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_told_apart() {
        let text = |text: &str| Span::Text(text.to_owned());
        let markdown = "# About\n\nOne\n`two  2`.\n\n## More\n\n- a\n  b\n- c\n\n```console\n$ x\n\n$ y\n```\n";
        let expected = [
            Block::Title("About".into()),
            Block::Paragraph(vec![text("One"), text(" "), Span::Code("two  2".into()), text(".")]),
            Block::Heading("More".into()),
            Block::Item(vec![text("a"), text(" "), text("b")]),
            Block::Item(vec![text("c")]),
            Block::Code("$ x\n\n$ y\n".into()),
        ];
        assert_eq!(blocks(markdown), expected);
    }
}
