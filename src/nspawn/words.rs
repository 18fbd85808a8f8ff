//! Splitting a value into words, as systemd's `extract_first_word()` does with the flags that .nspawn keys use.

/// How quotes and backslashes are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Quoting {
    /// Quotes are ordinary characters, a backslash takes the next character as it is.
    Escapes,
    /// Quotes group, a backslash takes the next character as it is.
    QuotesAndEscapes,
    /// Quotes group, a backslash is an ordinary character.
    Quotes,
}

/// A quote without its partner, or a backslash with nothing behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unbalanced;

/// Words between runs of white space or of `extra`.
pub(super) fn split_words(text: &str, quoting: Quoting, extra: Option<char>) -> Result<Vec<String>, Unbalanced> {
    split_words_partially(text, quoting, extra).map_err(|(_, unbalanced)| unbalanced)
}

/// Like [`split_words`], with the words before the fault, which some of systemd's parsers keep.
pub(super) fn split_words_partially(
    text: &str,
    quoting: Quoting,
    extra: Option<char>,
) -> Result<Vec<String>, (Vec<String>, Unbalanced)> {
    let is_separator = |c: char| matches!(c, ' ' | '\t' | '\n' | '\r') || Some(c) == extra;
    let mut words = Vec::new();
    let mut scanner = Scanner::new(text, quoting);
    loop {
        scanner.skip(is_separator);
        if scanner.at_end() {
            return Ok(words);
        }
        match scanner.word(is_separator) {
            Ok(word) => words.push(word),
            Err(unbalanced) => return Err((words, unbalanced)),
        }
    }
}

/// Fields between single colons, empty ones included; a backslash takes the next character as it is.
pub(super) fn split_fields(text: &str) -> Result<Vec<String>, Unbalanced> {
    let mut fields = Vec::new();
    let mut rest = Some(text);
    while let Some(text) = rest {
        let (field, after) = split_field(text)?;
        fields.push(field);
        rest = after;
    }
    Ok(fields)
}

/// The first field and, if there is a colon after it, everything behind that as it stands.
pub(super) fn split_field(text: &str) -> Result<(String, Option<&str>), Unbalanced> {
    let mut scanner = Scanner::new(text, Quoting::Escapes);
    let field = scanner.word(|c| c == ':')?;
    Ok((field, scanner.rest.strip_prefix(':')))
}

struct Scanner<'a> {
    rest: &'a str,
    quoting: Quoting,
}

impl<'a> Scanner<'a> {
    fn new(rest: &'a str, quoting: Quoting) -> Self {
        Self { rest, quoting }
    }

    fn at_end(&self) -> bool {
        self.rest.is_empty()
    }

    fn skip(&mut self, separator: impl Fn(char) -> bool) {
        self.rest = self.rest.trim_start_matches(separator);
    }

    /// Everything up to the next separator outside quotes, which stays in `rest`.
    fn word(&mut self, separator: impl Fn(char) -> bool) -> Result<String, Unbalanced> {
        let mut word = String::new();
        let mut quote = None;
        let mut chars = self.rest.char_indices();
        while let Some((at, c)) = chars.next() {
            match (quote, c) {
                (_, '\\') if self.quoting != Quoting::Quotes => word.push(chars.next().ok_or(Unbalanced)?.1),
                (Some(open), _) if open == c => quote = None,
                (None, '\'' | '"') if self.quoting != Quoting::Escapes => quote = Some(c),
                (None, _) if separator(c) => {
                    self.rest = &self.rest[at..];
                    return Ok(word);
                }
                _ => word.push(c),
            }
        }
        self.rest = "";
        if quote.is_some() { Err(Unbalanced) } else { Ok(word) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_group_words() {
        let words = |s| split_words(s, Quoting::Quotes, None);
        assert_eq!(words(" a  'b c' d\"e\"f \\n ").unwrap(), ["a", "b c", "def", "\\n"]);
        assert_eq!(words("a 'b"), Err(Unbalanced));
        assert_eq!(words("''").unwrap(), [""]);
        assert!(words("").unwrap().is_empty());
    }

    #[test]
    fn colons_separate_fields() {
        assert_eq!(split_fields("/a:/b").unwrap(), ["/a", "/b"]);
        assert_eq!(split_fields(r"/a\:b::").unwrap(), ["/a:b", "", ""]);
        assert_eq!(split_fields("").unwrap(), [""]);
        assert_eq!(split_fields("/a\\"), Err(Unbalanced));
        assert_eq!(split_field("/a:b:c").unwrap(), ("/a".to_owned(), Some("b:c")));
        assert_eq!(split_field("/a:").unwrap(), ("/a".to_owned(), Some("")));
    }
}
