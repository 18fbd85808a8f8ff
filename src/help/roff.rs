//! A page as man(7) has it.

use roff::{Inline, Roff, bold, roman};

use super::page::{Block, Span};

/// The page `name` of section 7.
pub(super) fn render(name: &str, about: &str, blocks: &[Block]) -> String {
    let mut page = Roff::new();
    let version = concat!("machinist ", env!("CARGO_PKG_VERSION"));
    // An empty argument is one only in quotes.
    page.control("TH", [name, "7", "\"\"", version]);
    page.control("SH", ["NAME"]);
    page.text([roman(format!("{name} - {about}"))]);
    for block in blocks {
        match block {
            Block::Title(_) => drop(page.control("SH", ["DESCRIPTION"])),
            Block::Heading(heading) => drop(page.control("SH", [heading.as_str()])),
            Block::Paragraph(spans) => drop(page.control("PP", []).text(inlines(spans))),
            Block::Item(spans) => drop(page.control("IP", ["\\(bu", "2"]).text(inlines(spans))),
            Block::Code(code) => {
                page.control("PP", []).control("RS", ["4"]).control("nf", []);
                for line in code.lines() {
                    page.text([roman(line)]);
                }
                page.control("fi", []).control("RE", []);
            }
        }
    }
    page.render()
}

fn inlines(spans: &[Span]) -> Vec<Inline> {
    let inline = |span: &Span| match span {
        Span::Text(text) => roman(text.as_str()),
        Span::Code(code) => bold(code.as_str()),
    };
    spans.iter().map(inline).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_page_is_a_request_to_roff() {
        let blocks = [
            Block::Title("About".into()),
            Block::Paragraph(vec![Span::Text(".so /etc/passwd or 'so'".into())]),
            Block::Code(".br\n$ x -y\n".into()),
        ];
        let page = render("machinist-x", "About", &blocks);
        let version = env!("CARGO_PKG_VERSION");
        let expected = format!(
            ".TH machinist-x 7 \"\" \"machinist {version}\"\n.SH NAME\nmachinist\\-x \\- About\n.SH DESCRIPTION\n.PP\n\
             \\&.so /etc/passwd or \\*(Aqso\\*(Aq\n.PP\n.RS 4\n.nf\n\\&.br\n$ x \\-y\n.fi\n.RE\n"
        );
        assert!(page.ends_with(&expected), "{page}");
    }
}
