//! Names of settings that are left out, told to people: the first of them, and how many more there are.

use std::fmt;

use crate::machine::text::printable;

/// How many are named, and how many are told apart.
const NAMED: usize = 10;
const TOLD_APART: usize = 100;

/// Characters of a name that are shown.
const SHOWN: usize = 80;

/// Names that a stranger has given, each once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Names {
    names: Vec<String>,
    /// Those that there was no place for.
    more: usize,
}

impl Names {
    /// Notes one.
    pub(super) fn note(&mut self, name: &str) {
        let mut name: String = printable(name).chars().take(SHOWN + 1).collect();
        if let Some((end, _)) = name.char_indices().nth(SHOWN) {
            name.truncate(end);
            name.push('…');
        }
        if self.names.contains(&name) {
            return;
        }
        if self.names.len() < TOLD_APART {
            self.names.push(name);
        } else {
            self.more += 1;
        }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.names.len() + self.more
    }
}

impl Extend<String> for Names {
    fn extend<T: IntoIterator<Item = String>>(&mut self, names: T) {
        names.into_iter().for_each(|name| self.note(&name));
    }
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = &self.names[..self.names.len().min(NAMED)];
        f.write_str(&named.join(", "))?;
        match self.count() - named.len() {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_are_named_and_all_are_counted() {
        let mut names = Names::default();
        names.extend(["a", "b", "a"].map(str::to_owned));
        assert_eq!((names.to_string().as_str(), names.count()), ("a, b", 2));
        names.extend((0..2000).map(|number| number.to_string()));
        assert_eq!(names.to_string(), "a, b, 0, 1, 2, 3, 4, 5, 6, 7 and 1992 more");
        let mut hostile = Names::default();
        hostile.note(&format!("\x1b[31m\u{202e}{}", "ä".repeat(1 << 20)));
        let shown = hostile.to_string();
        assert!(
            shown.starts_with("\\u{1b}[31m\\u{202e}ä") && shown.ends_with("ä…"),
            "{shown}"
        );
        assert!(shown.chars().count() == 81, "{shown}");
    }
}
