//! Text that is signed in one file with its signature, see RFC 9580, section 7.
//!
//! It is taken apart here, strictly, and checked as a signature over a file: what is used is what was checked, and nothing that
//! stands around it.

use super::armour::BEGIN;

const BEGIN_TEXT: &str = "-----BEGIN PGP SIGNED MESSAGE-----";
const BEGIN_SIGNATURE: &str = "-----BEGIN PGP SIGNATURE-----";
const END_SIGNATURE: &str = "-----END PGP SIGNATURE-----";

/// A text and its signature, still armoured.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Clear {
    /// As it was signed: lines without blanks at their ends, joined by carriage returns and line feeds.
    pub(super) text: String,
    pub(super) signature: String,
}

/// Whether a file is such a text, or means to be one.
pub(super) fn is_clear(bytes: &[u8]) -> bool {
    bytes.starts_with(BEGIN_TEXT.as_bytes())
}

/// Takes it apart. Text around it is refused.
pub(super) fn split(bytes: &[u8]) -> Result<Clear, &'static str> {
    const CUT: &str = "it ends before its signature does";
    let all = std::str::from_utf8(bytes).map_err(|_| "it is no text")?;
    let mut lines = all.lines().map(|line| line.trim_end_matches([' ', '\t', '\r']));
    if lines.next() != Some(BEGIN_TEXT) {
        return Err("it does not begin with what is signed");
    }
    loop {
        match lines.next().ok_or(CUT)? {
            "" => break,
            header if header.starts_with("Hash: ") => {}
            _ => return Err("it has an unknown header"),
        }
    }
    let mut text = Vec::new();
    loop {
        match lines.next().ok_or(CUT)? {
            BEGIN_SIGNATURE => break,
            line if line.starts_with(BEGIN) => return Err("it has more than one block"),
            line if line.starts_with('-') => {
                text.push(line.strip_prefix("- ").ok_or("it has a line that is not escaped")?);
            }
            line => text.push(line),
        }
    }
    let mut signature = vec![BEGIN_SIGNATURE];
    loop {
        let line = lines.next().ok_or(CUT)?;
        signature.push(line);
        if line == END_SIGNATURE {
            break;
        }
    }
    if lines.any(|line| !line.is_empty()) {
        return Err("it has something behind its signature");
    }
    Ok(Clear {
        text: text.join("\r\n"),
        signature: signature.join("\n") + "\n",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = include_str!("fixtures/list.clear");

    #[test]
    fn text_and_signature_are_told_apart() {
        let clear = split(LIST.as_bytes()).unwrap();
        // The last line has no end of its own; here it is an empty one.
        assert_eq!(clear.text, "one\r\n- two\r\nthree\r\n");
        assert!(clear.signature.starts_with(BEGIN_SIGNATURE) && clear.signature.ends_with("-----\n"));
        assert_eq!(split(LIST.replace('\n', "\r\n").as_bytes()), Ok(clear));
        assert!(is_clear(LIST.as_bytes()) && !is_clear(b"\n") && !is_clear(&LIST.as_bytes()[1..]));
    }

    #[test]
    fn nothing_may_stand_around_it() {
        for bad in [
            format!("x\n{LIST}"),
            format!("{LIST}x\n"),
            format!("{LIST}{LIST}"),
            LIST.replace("Hash: SHA256", "Hash: SHA256\nevil"),
            LIST.replace("- - two", "- two\n-three"),
            LIST.replace("three", BEGIN_TEXT),
            LIST.replace("-----END", "----END"),
            LIST[..40].to_owned(),
        ] {
            assert!(split(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
