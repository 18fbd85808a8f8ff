//! Making text from elsewhere safe to show.

/// `text` with everything that could steer a terminal written as `\u{…}`: control characters (ESC, C1 and line
/// breaks among them) and the bidirectional overrides of Unicode. What guests say goes through this before it is shown.
#[must_use]
pub fn printable(text: &str) -> String {
    let hostile = |c: char| c.is_control() || is_hostile(c);
    replace(text, hostile, |c, shown| shown.extend(c.escape_default()))
}

/// Escapes what could steer a terminal and is not ASCII's own control characters, in the way of `write`.
pub(crate) fn escape(text: &str, write: impl Fn(char, &mut String)) -> String {
    replace(text, is_hostile, write)
}

/// DEL, C1, and the bidirectional marks and overrides of Unicode.
fn is_hostile(c: char) -> bool {
    matches!(c, '\u{7f}'..='\u{9f}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn replace(text: &str, hostile: impl Fn(char) -> bool, write: impl Fn(char, &mut String)) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut shown, c| {
        if hostile(c) {
            write(c, &mut shown);
        } else {
            shown.push(c);
        }
        shown
    })
}

/// A number of bytes as systemd prints it: powers of 1024, one digit after the point, "1.5G".
#[must_use]
pub fn bytes(number: u64) -> String {
    const UNITS: [(&str, u32); 6] = [("E", 60), ("P", 50), ("T", 40), ("G", 30), ("M", 20), ("K", 10)];
    for (unit, shift) in UNITS {
        if number >> shift > 0 {
            let tenths = (u128::from(number) * 10) >> shift;
            return format!("{}.{}{unit}", tenths / 10, tenths % 10);
        }
    }
    format!("{number}B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_sequences_are_defused() {
        assert_eq!(printable("a\x1b[2Jb\u{202e}c\n"), "a\\u{1b}[2Jb\\u{202e}c\\n");
        assert_eq!(printable("Grüße 日本"), "Grüße 日本");
    }

    #[test]
    fn bytes_are_powers_of_1024() {
        assert_eq!(
            [bytes(0), bytes(1023), bytes(1024), bytes(1536), bytes(10 << 30)],
            ["0B", "1023B", "1.0K", "1.5K", "10.0G"]
        );
        assert_eq!(bytes(u64::MAX), "15.9E");
    }
}
