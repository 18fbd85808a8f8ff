//! Keys that are pinned to addresses: the files in `/etc/machinist/keys.d`.
//!
//! A pin is a file `NAME.asc`: a line `URL: https://example.org/images`, and armoured public keys below it. What comes from
//! that address or from below it has to be signed by one of these keys. gpg(1) reads the same files.

use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::armour::{self, BEGIN, Block};
use super::{KEYRING_MAX, Keyring, TrustError};
use crate::sources::mirror::hex;
use crate::sources::url::{Url, unescaped};
use crate::sys::files::{FileError, read_regular, write_atomic};

/// How their names end; others are left alone.
const ENDING: &str = "asc";

const HEADER: &str = "# What comes from this address or from below it has to be signed by one of these keys.\n\
                      # See machinist-downloads(7).\n";

/// How many files may have pinned an address before they were edited.
const MANY: u32 = 1000;

/// A pin.
#[derive(Clone, Debug)]
pub struct Pin {
    /// The address.
    pub prefix: Url,
    /// Its file.
    pub path: PathBuf,
    /// The keys.
    pub keyring: Keyring,
}

/// All pins, sorted by their files' names. One that cannot be read is an error: it might be the one that is asked for.
pub fn pins(dir: &Path) -> Result<Vec<Pin>, TrustError> {
    let failed = |error: io::Error| TrustError::File(FileError::io("list", dir)(error));
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let is_hidden = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if path.extension().is_some_and(|ending| ending == ENDING) && !is_hidden {
            paths.push(path);
        }
    }
    paths.sort();
    paths.into_iter().map(|path| read(&path)).collect()
}

/// Reads a pin.
pub fn read(path: &Path) -> Result<Pin, TrustError> {
    let bytes = read_regular(path, KEYRING_MAX)?;
    let bad = |reason: String| TrustError::BadPin {
        path: path.to_owned(),
        reason,
    };
    let text = String::from_utf8_lossy(&bytes);
    let mut prefix = None;
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.starts_with(BEGIN) {
            break;
        }
        match line.split_once(':') {
            _ if line.is_empty() || line.starts_with('#') => {}
            Some(("URL", url)) if prefix.is_none() => {
                let read = url.trim().parse::<Url>();
                prefix = Some(read.map_err(|reason| bad(format!("line {number} has no address: {reason}")))?);
            }
            Some(("URL", _)) => return Err(bad(format!("line {number} is a second URL: line"))),
            _ => return Err(bad(format!("line {number} is no URL: line, no comment and no key"))),
        }
    }
    Ok(Pin {
        prefix: prefix.ok_or_else(|| bad("it has no line `URL: https://…` above the key".to_owned()))?,
        keyring: Keyring::parse(&bytes, path)?,
        path: path.to_owned(),
    })
}

/// Writes a pin: over `over`, or as a file of its own. Returns its path.
pub fn write(dir: &Path, prefix: &Url, keyring: &Keyring, over: Option<&Path>) -> Result<PathBuf, TrustError> {
    // What has this name may pin another address by now: it is edited by hand, too.
    let is_free = |path: &PathBuf| path.symlink_metadata().is_err();
    let free = || {
        let mut names = (0..MANY).map(|number| dir.join(file_name(prefix, number)));
        names.find(is_free)
    };
    let path = over.map(Path::to_owned).or_else(free).unwrap_or_default();
    let key = armour::encode(&keyring.bytes, Block::Keys);
    let text = format!("{HEADER}URL: {prefix}\n\n{key}");
    if text.len() as u64 > KEYRING_MAX {
        return Err(TrustError::BadPin {
            path,
            reason: "it would have too many keys".to_owned(),
        });
    }
    write_atomic(&path, text.as_bytes(), 0o644)?;
    Ok(path)
}

/// A name that tells what it is about, and is another for each address; the first but for `number`.
fn file_name(prefix: &Url, number: u32) -> String {
    let plain = |letter: char| {
        if letter.is_ascii_alphanumeric() || letter == '.' {
            letter
        } else {
            '-'
        }
    };
    let (host, path) = place(prefix);
    let whole = format!("{host}/{}", path.join("/"));
    let words: String = whole.chars().map(plain).take(60).collect();
    let sum = hex(&Sha256::digest(&whole)[..4]);
    let number = if number == 0 {
        String::new()
    } else {
        format!("-{number}")
    };
    format!("{}-{sum}{number}.{ENDING}", words.trim_matches(['-', '.']))
}

/// The pins that count for an address: those of the longest prefix that it lies below.
#[must_use]
pub fn covering<'a>(pins: &'a [Pin], url: &Url) -> Vec<&'a Pin> {
    let (host, path) = place(url);
    let covers = |pin: &&Pin| {
        let (pinned, prefix) = place(&pin.prefix);
        pinned == host && path.starts_with(&prefix)
    };
    let length = |pin: &Pin| place(&pin.prefix).1.len();
    let longest = pins.iter().filter(covers).map(length).max();
    pins.iter()
        .filter(covers)
        .filter(|pin| Some(length(pin)) == longest)
        .collect()
}

/// Whether both are the same address, however it is written.
#[must_use]
pub fn same_place(one: &Url, other: &Url) -> bool {
    place(one) == place(other)
}

/// A host and a path, alike for all ways to write them: with https or without, with the usual port, in capital letters,
/// with `%XX`, with `.` and `..`.
fn place(url: &Url) -> (String, Vec<String>) {
    let (scheme, rest) = url.as_str().split_once("://").unwrap_or_default();
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let host = host.to_ascii_lowercase();
    // A port that is none is the usual one, for who asks.
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, port.parse::<u16>().ok()),
        _ => (host.as_str(), None),
    };
    let usual = if scheme == "https" { 443 } else { 80 };
    let name = name.trim_end_matches('.');
    let host = match port.filter(|port| *port != usual) {
        Some(port) => format!("{name}:{port}"),
        None => name.to_owned(),
    };
    let mut names: Vec<String> = Vec::new();
    for name in String::from_utf8_lossy(&unescaped(path)).split('/') {
        match name {
            "" | "." => {}
            ".." => drop(names.pop()),
            name => names.push(name.to_owned()),
        }
    }
    (host, names)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const ALICE: &str = include_str!("fixtures/alice.asc");
    const MALLORY: &str = include_str!("fixtures/mallory.asc");

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    fn keyring(text: &str) -> Keyring {
        Keyring::parse(text.as_bytes(), Path::new("k")).unwrap()
    }

    #[test]
    fn a_pin_is_written_and_read() {
        let dir = tempfile::tempdir().unwrap();
        assert!(pins(&dir.path().join("none")).unwrap().is_empty());
        let address = url("https://Example.org/images/a b".replace(' ', "%20").as_str());
        let path = write(dir.path(), &address, &keyring(ALICE), None).unwrap();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        assert!(
            name.starts_with("example.org-images-a-b-") && name.ends_with(".asc"),
            "{name}"
        );
        let found = pins(dir.path()).unwrap();
        assert_eq!((found.len(), &found[0].prefix), (1, &address));
        assert_eq!(
            found[0].keyring.fingerprints(),
            ["444F1465971BA27BC5C078101366B69B99F043E6"]
        );
        // One that was edited is another's by now.
        let edited = fs::read_to_string(&path).unwrap().replace("/images/", "/other/");
        fs::write(&path, &edited).unwrap();
        let second = write(dir.path(), &address, &keyring(MALLORY), None).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), edited);
        fs::remove_file(second).unwrap();
        fs::write(&path, edited.replace("/other/", "/images/")).unwrap();
        // By hand, and what is no pin.
        fs::write(dir.path().join("mine.asc"), format!("URL: http://h\n{MALLORY}")).unwrap();
        fs::write(dir.path().join(".mine.asc"), "x").unwrap();
        fs::write(dir.path().join("README"), "x").unwrap();
        assert_eq!(pins(dir.path()).unwrap().len(), 2);
        for (text, reason) in [
            (ALICE.to_owned(), "it has no line `URL:"),
            (
                format!("URL: http://a\nURL: http://b\n{ALICE}"),
                "line 2 is a second URL",
            ),
            (format!("Url: http://a\n{ALICE}"), "line 1 is no URL: line"),
            (
                format!("# x\nURL: ftp://a\n{ALICE}"),
                "line 2 has no address: only http",
            ),
            ("URL: http://a\n".to_owned(), "no OpenPGP keys"),
        ] {
            fs::write(dir.path().join("mine.asc"), text).unwrap();
            let error = pins(dir.path()).unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains("mine.asc"), "{error}");
        }
    }

    #[test]
    fn an_address_lies_below_a_prefix_however_it_is_written() {
        let pin = |text: &str| Pin {
            prefix: url(text),
            path: text.into(),
            keyring: keyring(ALICE),
        };
        let pins = [
            pin("https://example.org/images/"),
            pin("http://example.org/images/old"),
            pin("https://h:8443"),
        ];
        let of = |text: &str| -> Vec<String> {
            let found = covering(&pins, &url(text));
            found.iter().map(|pin| pin.path.display().to_string()).collect()
        };
        for text in [
            "https://example.org/images/a.tar",
            "https://example.org/images",
            "http://u:p@EXAMPLE.org:80/images/a.tar?x",
            "https://example.org:443//x/../images/./%61.tar",
            "https://example.org./%69mages%2Fa.tar",
            "https://example.org:/images/a.tar",
            "https://example.org:0443/images/a.tar",
            "https://example.org.:+443/images/a.tar",
            "https://example.org:99999/images/a.tar",
        ] {
            assert_eq!(of(text), ["https://example.org/images/"], "{text}");
        }
        assert_eq!(
            of("https://example.org/images/old/a.tar"),
            ["http://example.org/images/old"]
        );
        assert_eq!(of("https://h:8443/x"), ["https://h:8443"]);
        for text in [
            "https://example.org/imagesque/a.tar",
            "https://example.org/images/../a.tar",
            "https://example.org:8443/images/a.tar",
            "https://example.com/images/a.tar",
            "https://h/x",
        ] {
            assert_eq!(of(text), [""; 0], "{text}");
        }
        assert!(same_place(&url("http://H/a/"), &url("https://h/a")));
        assert_ne!(file_name(&url("http://h/a-b"), 0), file_name(&url("http://h/a/b"), 0));
    }
}
