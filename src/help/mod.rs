//! Longer documents: one Markdown file a topic, shown as text by `machinist help TOPIC`, and installed as manual pages of
//! section 7. No I/O.
//!
//! A page is made of a first heading that says what it is about, of headings of level 2, paragraphs, lists of one level,
//! code in lines, and blocks of code.

mod page;
mod roff;
mod text;

/// A topic: its name and its page.
#[derive(Clone, Copy, Debug)]
pub struct Topic {
    /// As it is typed.
    pub name: &'static str,
    markdown: &'static str,
}

/// All topics, in the order they are listed.
pub const TOPICS: &[Topic] = &[
    Topic {
        name: "security",
        markdown: include_str!("security.md"),
    },
    Topic {
        name: "downloads",
        markdown: include_str!("downloads.md"),
    },
];

/// The topic of that name.
#[must_use]
pub fn topic(name: &str) -> Option<Topic> {
    TOPICS.iter().copied().find(|topic| topic.name == name)
}

impl Topic {
    /// What it is about, in a line: the page's first heading.
    #[must_use]
    pub fn about(&self) -> &'static str {
        let first = self.markdown.lines().next().unwrap_or_default();
        first.trim_start_matches('#').trim()
    }

    /// The page for a terminal or a pipe, 80 columns wide; headings are bold.
    #[must_use]
    pub fn text(&self) -> String {
        text::render(&page::blocks(self.markdown))
    }

    /// The name of its manual page, without the section.
    #[must_use]
    pub fn page_name(&self) -> String {
        format!("machinist-{}", self.name)
    }

    /// The page as man(7) has it.
    #[must_use]
    pub fn roff(&self) -> String {
        roff::render(&self.page_name(), self.about(), &page::blocks(self.markdown))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words of letters and figures, whatever stands between them.
    fn words(text: &str) -> Vec<&str> {
        let is_word = |c: char| c.is_alphanumeric();
        text.split(|c| !is_word(c)).filter(|word| !word.is_empty()).collect()
    }

    #[test]
    fn no_word_of_a_page_is_lost() {
        for topic in TOPICS {
            let fences = |line: &&str| !line.starts_with("```");
            let source: Vec<&str> = topic.markdown.lines().filter(fences).collect();
            let source = source.join("\n");
            let text = anstream::adapter::strip_str(&topic.text()).to_string();
            assert_eq!(words(&text), words(&source), "{}", topic.name);

            // What is not the page's own: macros, fonts, the apostrophe.
            let page = topic.roff();
            let lines = page.lines().filter_map(|line| match line.strip_prefix(".SH ") {
                Some(heading) => Some(heading),
                None => (!line.starts_with('.')).then_some(line),
            });
            let page = lines.skip(2).collect::<Vec<_>>().join("\n");
            let page = page
                .replace("\\fB", "")
                .replace("\\fR", "")
                .replace("\\*(Aq", "'")
                .replacen("DESCRIPTION\n", "", 1);
            let body = source.split_once('\n').unwrap().1;
            assert_eq!(words(&page), words(body), "{}", topic.name);
        }
    }

    #[test]
    fn text_is_80_columns_wide_but_for_code() {
        for topic in TOPICS {
            let text = anstream::adapter::strip_str(&topic.text()).to_string();
            let long = text.lines().find(|line| line.chars().count() > 80);
            assert_eq!(long, None, "{}", topic.name);
            assert!(!text.contains('\u{a0}') && !text.contains("\n\n\n"), "{}", topic.name);
        }
    }
}
