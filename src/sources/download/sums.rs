//! Files of checksums that stand beside a download, as sha256sum(1), sha512sum(1) and others write them.

use crate::sources::digest::Digest;

/// The largest of them, in bytes: mirrors have thousands of lines.
pub(super) const MAX: u64 = 4 << 20;

/// The sum of the file `name` in a list; `None` if it has none, or more than one.
pub(super) fn of_file(list: &[u8], name: &str) -> Option<Digest> {
    let mut found = entries(list).filter(|(_, named)| named.rsplit('/').next() == Some(name));
    let sum = found.next()?.0;
    found.all(|(other, _)| other == sum).then_some(sum)
}

/// The sum in a file that is about one other file; `None` if it has none, or more than one.
pub(super) fn of_its_file(list: &[u8], name: &str) -> Option<Digest> {
    if let Some(sum) = of_file(list, name) {
        return Some(sum);
    }
    let mut sums = entries(list).map(|(sum, _)| sum);
    let sum = sums.next()?;
    sums.next().is_none().then_some(sum)
}

/// The same, for a list that is signed: one that names another file is about that, whatever it is called here.
pub(super) fn of_no_other_file(list: &[u8], name: &str) -> Option<Digest> {
    let is_alone = entries(list).all(|(_, named)| named.is_empty());
    if is_alone {
        of_its_file(list, name)
    } else {
        of_file(list, name)
    }
}

/// Sums and the names behind them, which are empty where a sum stands alone.
fn entries(list: &[u8]) -> impl Iterator<Item = (Digest, String)> {
    let text = String::from_utf8_lossy(list).into_owned();
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.into_iter().filter_map(|line| {
        let line = line.trim();
        // As BSD and `sha256sum --tag` write it.
        let tagged = ["SHA256 (", "SHA512 ("].iter().find_map(|tag| line.strip_prefix(tag));
        if let Some(rest) = tagged {
            let (name, sum) = rest.rsplit_once(") = ")?;
            return Some((Digest::from_hex(sum)?, name.to_owned()));
        }
        let (sum, name) = line.split_once([' ', '\t']).unwrap_or((line, ""));
        let name = name.trim_start().trim_start_matches('*');
        Some((Digest::from_hex(sum)?, name.to_owned()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_found_in_every_form() {
        let (a, b) = ("a".repeat(64), "b".repeat(64));
        let of = |list: &str, name: &str| of_file(list.as_bytes(), name).map(Digest::hex);
        let list = format!("-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\n\n{a}  other.tar\n{b} *./x/web.tar\n");
        assert_eq!(of(&list, "web.tar"), Some(b.clone()));
        assert_eq!(of(&list, "tar"), None);
        assert_eq!(
            of(&format!("SHA256 (web (1).tar) = {a}\n"), "web (1).tar"),
            Some(a.clone())
        );
        assert_eq!(of(&format!("{a}  web.tar\n{b}  web.tar\n"), "web.tar"), None);
        assert_eq!(of("<html>", "web.tar"), None);
        let long = "c".repeat(128);
        assert_eq!(of(&format!("{long}  web.tar\n"), "web.tar"), Some(long.clone()));
        assert_eq!(
            of(&format!("SHA512 (web.tar) = {long}\n"), "web.tar"),
            Some(long.clone())
        );
        assert_eq!(of(&format!("{}  web.tar\n", &long[..96]), "web.tar"), None);
        let alone = |list: &str| of_its_file(list.as_bytes(), "web.tar").map(Digest::hex);
        assert_eq!(alone(&format!("{a}\n")), Some(a.clone()));
        assert_eq!(alone(&format!("{a}  build/output.tar\n")), Some(a.clone()));
        assert_eq!(alone(&format!("{a}  x\n{b}  y\n")), None);
        assert_eq!(alone(&format!("{a}  x\n{b}  web.tar\n")), Some(b));
        assert_eq!(alone(""), None);
        let signed = |list: &str| of_no_other_file(list.as_bytes(), "web.tar").map(Digest::hex);
        assert_eq!(signed(&format!("{a}\n")), Some(a.clone()));
        assert_eq!(signed(&format!("{a}  build/web.tar\n")), Some(a.clone()));
        assert_eq!(signed(&format!("{a}  build/output.tar\n")), None);
        assert_eq!(signed(""), None);
    }
}
