//! What keeps machines from working, as people read it.

use std::fmt::Write as _;

use crate::machine::trouble::{Severity, Trouble};

/// What is wrong, where that is to be seen, and what mends it. `lead` stands before it: "also, ".
#[must_use]
pub fn lines(lead: &str, trouble: &Trouble) -> String {
    let mut text = format!("{lead}{}: {}\n", trouble.severity.as_str(), trouble.cause);
    for seen in &trouble.evidence {
        let _ = writeln!(text, "  seen: {seen}");
    }
    for hint in &trouble.hints {
        let _ = writeln!(text, "  hint: {hint}");
    }
    text
}

/// How many there are: notes do not count.
#[must_use]
pub fn counted(troubles: &[Trouble]) -> String {
    let count = |severity| troubles.iter().filter(|trouble| trouble.severity == severity).count();
    let plural = |number: usize, what: &str| format!("{number} {what}{}", if number == 1 { "" } else { "s" });
    match (count(Severity::Error), count(Severity::Warning)) {
        (0, 0) => "Nothing is wrong.".to_owned(),
        (errors, warnings) => format!("{}, {}.", plural(errors, "error"), plural(warnings, "warning")),
    }
}
