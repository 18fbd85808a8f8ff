//! Labels: `key=value`, of which systemd knows nothing.

use std::collections::BTreeMap;

use super::OWN_SECTION;
use crate::nspawn::edit::{Edit, check_value};

/// The key in [`OWN_SECTION`].
pub const KEY: &str = "Label";

/// A label, or one that is to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// Its name.
    pub key: String,
    /// Its value; empty if it is to go.
    pub value: String,
}

impl Label {
    /// Reads `KEY=VALUE`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (key, value) = text
            .split_once('=')
            .ok_or_else(|| format!("'{}' is not of the form KEY=VALUE", text.escape_debug()))?;
        let (key, value) = (key.trim(), value.trim());
        let sound = key.starts_with(|c: char| c.is_ascii_alphanumeric())
            && key.len() <= 100
            && key
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/'));
        if !sound {
            return Err(format!(
                "'{}' is no name of a label: letters, digits, '.', '_', '-' and '/' are allowed",
                key.escape_debug()
            ));
        }
        check_value(value).map_err(|error| error.to_string())?;
        let (key, value) = (key.to_owned(), value.to_owned());
        Ok(Self { key, value })
    }

    /// The edit that sets it, or takes it away.
    #[must_use]
    pub fn edit(&self) -> Edit {
        Edit::Field {
            section: OWN_SECTION.to_owned(),
            key: KEY.to_owned(),
            field: self.key.clone(),
            value: Some(self.value.clone()).filter(|value| !value.is_empty()),
        }
    }
}

/// Labels from the values of [`KEY`]; what is none is left out.
#[must_use]
pub fn read(values: &[String]) -> BTreeMap<String, String> {
    let labels = values.iter().filter_map(|value| Label::parse(value).ok());
    labels.map(|label| (label.key, label.value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nspawn::document::Document;

    #[test]
    fn labels_are_set_in_place_and_taken_away() {
        let mut document = Document::parse(b"# mine\n[X-Machinist]\nLabel=a=1\nLabel=b=2\nLabel=a=3\n");
        let mut apply = |text: &str| {
            let changed = document.apply(&Label::parse(text).unwrap().edit()).unwrap();
            (changed, String::from_utf8(document.as_bytes().to_vec()).unwrap())
        };
        assert_eq!(apply("a=4").1, "# mine\n[X-Machinist]\nLabel=a=4\nLabel=b=2\n");
        assert!(!apply("a=4").0);
        assert_eq!(
            apply("c.d/e=x=y").1,
            "# mine\n[X-Machinist]\nLabel=a=4\nLabel=b=2\nLabel=c.d/e=x=y\n"
        );
        assert_eq!(apply("b=").1, "# mine\n[X-Machinist]\nLabel=a=4\nLabel=c.d/e=x=y\n");
        let values: Vec<String> = document
            .entries_of(OWN_SECTION, KEY)
            .map(|e| e.value.to_owned())
            .collect();
        let labels = read(&values);
        assert_eq!(labels.get("c.d/e").map(String::as_str), Some("x=y"));
        for text in ["a", "=b", "-a=b", "a b=c", "a=b\nc", "é=1", "a=x\\"] {
            assert!(Label::parse(text).is_err(), "{text:?}");
        }
    }
}
