//! Numbers, sizes and time spans as systemd writes them.

/// An integer as `safe_atoi()` and `safe_atou()` read it: decimal, `0x`, `0o`, `0b`, a leading 0 for octal, a sign.
pub(super) fn integer(text: &str) -> Option<i128> {
    let text = text.trim_start_matches([' ', '\t', '\n', '\r']);
    let radix_of = |text: &str, marks: [&str; 2]| marks.iter().find_map(|m| text.strip_prefix(m).map(str::to_owned));
    if let Some(digits) = radix_of(text, ["0b", "0B"]) {
        return digits_of(&digits, 2);
    }
    if let Some(digits) = radix_of(text, ["0o", "0O"]) {
        return digits_of(&digits, 8);
    }
    let (negative, magnitude) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let value = if let Some(digits) = radix_of(magnitude, ["0x", "0X"]) {
        digits_of(&digits, 16)
    } else if magnitude.len() > 1 && magnitude.starts_with('0') {
        digits_of(&magnitude[1..], 8)
    } else {
        digits_of(magnitude, 10)
    }?;
    Some(if negative { -value } else { value })
}

/// An integer within bounds.
pub(crate) fn integer_in(text: &str, low: i128, high: i128) -> Option<i128> {
    integer(text).filter(|value| (low..=high).contains(value))
}

fn digits_of(digits: &str, radix: u32) -> Option<i128> {
    let plain = !digits.is_empty() && digits.len() <= 70 && digits.chars().all(|c| c.is_digit(radix));
    plain.then(|| i128::from_str_radix(digits, radix).ok()).flatten()
}

/// Bytes, to the base of 1024: `10G`, `1.5M`, `1G 512M` (`parse_size()`).
pub(crate) fn size(text: &str) -> Option<u64> {
    amount(text, 1024)
}

/// What is counted to the base of 1000, as bytes a second are: `10M` is ten million (`parse_size()`).
pub(crate) fn decimal(text: &str) -> Option<u64> {
    amount(text, 1000)
}

fn amount(text: &str, base: u64) -> Option<u64> {
    const SUFFIXES: [(&str, u32); 8] = [
        ("E", 6),
        ("P", 5),
        ("T", 4),
        ("G", 3),
        ("M", 2),
        ("K", 1),
        ("B", 0),
        ("", 0),
    ];
    let mut rest = text;
    let mut total = 0u64;
    let mut first = 0;
    loop {
        rest = rest.trim_start_matches([' ', '\t', '\n', '\r']);
        let (whole, after) = take_digits(rest.strip_prefix('+').unwrap_or(rest))?;
        let (fraction, after) = take_fraction(after);
        rest = after.trim_start_matches([' ', '\t', '\n', '\r']);
        let found = SUFFIXES[first..]
            .iter()
            .position(|(suffix, _)| rest.starts_with(suffix))?
            + first;
        let (suffix, power) = SUFFIXES[found];
        rest = &rest[suffix.len()..];
        let unit = base.pow(power);
        let part = u128::from(whole) * u128::from(unit) + scaled(fraction, unit);
        total = total.checked_add(u64::try_from(part).ok()?)?;
        if rest.is_empty() {
            return Some(total);
        }
        first = found + 1;
    }
}

/// Microseconds: `5min 20s`, `1.5h`, `infinity`; a bare number counts `unit` microseconds (`parse_time()`).
///
/// `infinity` is [`u64::MAX`].
pub(crate) fn time_span(text: &str, unit: u64) -> Option<u64> {
    const SECOND: u64 = 1_000_000;
    const UNITS: [(&str, u64); 30] = [
        ("seconds", SECOND),
        ("second", SECOND),
        ("sec", SECOND),
        ("s", SECOND),
        ("minutes", 60 * SECOND),
        ("minute", 60 * SECOND),
        ("min", 60 * SECOND),
        ("months", 2_629_800 * SECOND),
        ("month", 2_629_800 * SECOND),
        ("M", 2_629_800 * SECOND),
        ("msec", 1000),
        ("ms", 1000),
        ("m", 60 * SECOND),
        ("hours", 3600 * SECOND),
        ("hour", 3600 * SECOND),
        ("hr", 3600 * SECOND),
        ("h", 3600 * SECOND),
        ("days", 86_400 * SECOND),
        ("day", 86_400 * SECOND),
        ("d", 86_400 * SECOND),
        ("weeks", 604_800 * SECOND),
        ("week", 604_800 * SECOND),
        ("w", 604_800 * SECOND),
        ("years", 31_557_600 * SECOND),
        ("year", 31_557_600 * SECOND),
        ("y", 31_557_600 * SECOND),
        ("usec", 1),
        ("us", 1),
        ("µs", 1),
        ("μs", 1),
    ];
    let space = [' ', '\t', '\n', '\r'];
    let trimmed = text.trim_matches(space);
    if trimmed == "infinity" {
        return Some(u64::MAX);
    }
    let mut rest = trimmed;
    let mut total = 0u64;
    while !rest.is_empty() {
        rest = rest.strip_prefix('+').unwrap_or(rest);
        let (whole, after) = take_digits(rest).or_else(|| rest.starts_with('.').then_some((0, rest)))?;
        let pointed = after.starts_with('.');
        let (fraction, after) = take_fraction(after);
        if (pointed && fraction.is_empty()) || whole > u64::MAX / 2 {
            return None;
        }
        let spaced = after.trim_start_matches(space);
        let named = UNITS.iter().find(|(name, _)| spaced.starts_with(name));
        let (factor, remaining) = named.map_or((unit, spaced), |(name, factor)| (*factor, &spaced[name.len()..]));
        // "12.34.56" is refused, "12.34 .56" is not.
        if named.is_none() && spaced.len() == after.len() && !after.is_empty() {
            return None;
        }
        let part = u128::from(whole) * u128::from(factor) + scaled(fraction, factor);
        total = total.checked_add(u64::try_from(part).ok()?)?;
        rest = remaining.trim_start_matches(space);
    }
    (!trimmed.is_empty()).then_some(total)
}

fn take_digits(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..end].parse().ok()?, &text[end..]))
}

fn take_fraction(text: &str) -> (&str, &str) {
    text.strip_prefix('.').map_or(("", text), |digits| {
        let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
        digits.split_at(end)
    })
}

/// The digits behind the point, times `unit`; more than 18 of them change nothing.
fn scaled(fraction: &str, unit: u64) -> u128 {
    let mut part = 0u128;
    let mut whole = 1u128;
    for digit in fraction.bytes().take(18) {
        part = part * 10 + u128::from(digit - b'0');
        whole *= 10;
    }
    part * u128::from(unit) / whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_have_c_prefixes() {
        for (text, value) in [
            ("10", 10),
            ("0x1F", 31),
            ("010", 8),
            ("0b11", 3),
            ("0o17", 15),
            ("-5", -5),
            ("+7", 7),
            ("0", 0),
        ] {
            assert_eq!(integer(text), Some(value), "{text}");
        }
        for text in ["", "08", "0x", "1 ", "abc", "--1", "1.5", "ä"] {
            assert_eq!(integer(text), None, "{text}");
        }
    }

    #[test]
    fn sizes_are_to_the_base_of_1024() {
        assert_eq!(size("1K"), Some(1024));
        assert_eq!(size("1.5M"), Some(1_572_864));
        assert_eq!(size("1G 512M"), Some((1 << 30) + (512 << 20)));
        assert_eq!(size("20"), Some(20));
        assert_eq!((decimal("1K"), decimal("1.5M")), (Some(1000), Some(1_500_000)));
        for text in ["", "K", "1X", "-1", "1M 1G", "16E", "1 2"] {
            assert_eq!(size(text), None, "{text}");
        }
    }

    #[test]
    fn time_spans_have_units() {
        assert_eq!(time_span("5min 20s", 1_000_000), Some(320_000_000));
        assert_eq!(time_span("1.5", 1_000_000), Some(1_500_000));
        assert_eq!(time_span("30", 1), Some(30));
        assert_eq!(time_span("infinity", 1), Some(u64::MAX));
        for text in ["", "5 parsecs", "-1s", "1.2.3", "s", "5.", "18446744073709551615"] {
            assert_eq!(time_span(text, 1), None, "{text}");
        }
    }
}
