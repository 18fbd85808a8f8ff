//! What an image is called in a catalogue: `DISTRO/RELEASE[/VARIANT]`.

use std::fmt;
use std::str::FromStr;

use super::CatalogueError;
use crate::machine::text::printable;

/// The longest that is taken, in bytes.
const MAX_LENGTH: usize = 128;

/// A name as the user writes it behind `images:`, lexically valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageName(String);

impl FromStr for ImageName {
    type Err = CatalogueError;

    fn from_str(text: &str) -> Result<Self, CatalogueError> {
        let is_word = |word: &str| {
            let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '+' | ':');
            word.starts_with(|c: char| c.is_ascii_alphanumeric()) && word.chars().all(fits)
        };
        if text.len() <= MAX_LENGTH && text.split('/').all(is_word) {
            Ok(Self(text.to_owned()))
        } else {
            let given: String = text.chars().take(MAX_LENGTH).collect();
            Err(CatalogueError::BadName {
                given: printable(&given),
            })
        }
    }
}

impl ImageName {
    /// As it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
