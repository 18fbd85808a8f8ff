//! "Did you mean …?" for section and key names.

use super::schema::{KEYS, SECTIONS};

/// The known `Section.Key` nearest to what was written, if any is near.
///
/// A right key in the wrong section, or without one, counts as near.
pub(super) fn nearest_key(section: &str, key: &str) -> Option<String> {
    let wanted = key.to_lowercase();
    let section = section.to_lowercase();
    let length = wanted.chars().count();
    let allowed = (length / 3).clamp(1, 3);
    KEYS.iter()
        .filter(|known| known.name.len().abs_diff(length) <= allowed)
        .filter_map(|known| {
            let off = distance(&wanted, &known.name.to_lowercase());
            let elsewhere = usize::from(known.section.to_lowercase() != section);
            (off <= allowed).then(|| (2 * off + elsewhere, known.path()))
        })
        .min_by_key(|(off, _)| *off)
        .map(|(_, path)| path)
}

/// The known section nearest to what was written, if any is near.
pub(super) fn nearest_section(section: &str) -> Option<&'static str> {
    let wanted = section.trim().to_lowercase();
    SECTIONS
        .into_iter()
        .map(|known| (distance(&wanted, &known.to_lowercase()), known))
        .filter(|(off, _)| *off <= 2)
        .min_by_key(|(off, _)| *off)
        .map(|(_, known)| known)
}

/// Edit distance that counts two swapped neighbours once. What is far too long to be a typo is not measured.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(65).collect(), b.chars().collect());
    if a.len() > 64 {
        return usize::MAX / 4;
    }
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let mut least = (above[j] + usize::from(x != y)).min(above[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && a[i - 1] == *y && b[j - 1] == *x {
                least = least.min(before[j - 1] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typos_find_their_key() {
        for (section, key, found) in [
            ("Network", "Brigde", Some("Network.Bridge")),
            ("Exec", "Bridge", Some("Network.Bridge")),
            ("Network", "bridge", Some("Network.Bridge")),
            ("Files", "BindReadonly", Some("Files.BindReadOnly")),
            ("Network", "MacVLAN", Some("Network.MACVLAN")),
            ("", "Prot", Some("Network.Port")),
            ("Exec", "Nonsense", None),
        ] {
            assert_eq!(nearest_key(section, key).as_deref(), found, "{section}.{key}");
        }
        assert_eq!(nearest_section("exec"), Some("Exec"));
        assert_eq!(nearest_section("Netwrok"), Some("Network"));
        assert_eq!(nearest_section("Service"), None);
    }
}
