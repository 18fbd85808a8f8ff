//! OpenPGP's armour: bytes as lines of base64, see RFC 9580, section 6.

use crate::sources::url::base64;

/// What is in the armour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Block {
    /// Public keys.
    Keys,
    /// Signatures.
    Signature,
}

impl Block {
    fn label(self) -> &'static str {
        match self {
            Self::Keys => "PUBLIC KEY BLOCK",
            Self::Signature => "SIGNATURE",
        }
    }
}

/// How a block begins, whatever is in it.
pub(super) const BEGIN: &str = "-----BEGIN PGP ";

/// What is in a file, armoured or not; of several blocks one after the other. Text around them is left out.
pub(super) fn decode(bytes: &[u8], block: Block) -> Result<Vec<u8>, &'static str> {
    // The first bit of every packet is set, and no letter's.
    if bytes.first().is_some_and(|byte| byte & 0x80 != 0) {
        return Ok(bytes.to_vec());
    }
    let text = std::str::from_utf8(bytes).map_err(|_| "it is neither OpenPGP nor text")?;
    let mut lines = text.lines().map(str::trim_end);
    let (mut out, mut found) = (Vec::new(), false);
    let begin = format!("{BEGIN}{}-----", block.label());
    while let Some(line) = lines.next() {
        if !line.starts_with(BEGIN) {
            continue;
        }
        if line.contains("PRIVATE KEY") {
            return Err("it is a secret key: nobody but its owner may have it");
        }
        if line != begin {
            return Err("it has another kind of OpenPGP block");
        }
        found = true;
        out.extend(one(&mut lines, block)?);
    }
    if found { Ok(out) } else { Err("it is no OpenPGP file") }
}

/// The rest of a block, behind its first line.
fn one<'a>(lines: &mut impl Iterator<Item = &'a str>, block: Block) -> Result<Vec<u8>, &'static str> {
    const CUT: &str = "its armour has no end";
    let end = format!("-----END PGP {}-----", block.label());
    // Headers such as "Comment:" end at an empty line.
    loop {
        match lines.next().ok_or(CUT)? {
            "" => break,
            header if header.contains(": ") || header.ends_with(':') => {}
            _ => return Err("its armour is damaged"),
        }
    }
    let (mut digits, mut sum) = (String::new(), None);
    loop {
        match lines.next().ok_or(CUT)? {
            line if line == end => break,
            line => match line.strip_prefix('=') {
                Some(text) if text.len() == 4 && sum.is_none() => sum = Some(from_base64(text)?),
                _ if sum.is_none() => digits.push_str(line),
                _ => return Err("its armour is damaged"),
            },
        }
    }
    let bytes = from_base64(&digits)?;
    if sum.is_some_and(|sum| sum != crc24(&bytes)) {
        return Err("its armour is damaged: the checksum differs");
    }
    Ok(bytes)
}

/// Armours bytes.
pub(super) fn encode(bytes: &[u8], block: Block) -> String {
    let label = block.label();
    let mut text = format!("{BEGIN}{label}-----\n\n");
    // 48 bytes are 64 digits.
    for line in bytes.chunks(48) {
        text.push_str(&base64(line));
        text.push('\n');
    }
    text + &format!("={}\n-----END PGP {label}-----\n", base64(&crc24(bytes)))
}

fn from_base64(text: &str) -> Result<Vec<u8>, &'static str> {
    const BAD: &str = "its armour is damaged: that is no base64";
    let digits = text.trim_end_matches('=');
    if text.len() - digits.len() > 2 || !text.len().is_multiple_of(4) {
        return Err(BAD);
    }
    let mut bytes = Vec::with_capacity(digits.len() / 4 * 3 + 3);
    let (mut bits, mut count) = (0_u32, 0);
    for digit in digits.bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return Err(BAD),
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count).to_be_bytes()[3]);
            bits &= (1 << count) - 1;
        }
    }
    Ok(bytes)
}

/// See RFC 9580, section 6.1.1.
fn crc24(bytes: &[u8]) -> [u8; 3] {
    let mut crc = 0x00b7_04ce_u32;
    for byte in bytes {
        crc ^= u32::from(*byte) << 16;
        for _ in 0..8 {
            crc <<= 1;
            if crc & 0x0100_0000 != 0 {
                crc ^= 0x0186_4cfb;
            }
        }
    }
    let [_, a, b, c] = crc.to_be_bytes();
    [a, b, c]
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: &str = include_str!("fixtures/alice.asc");

    #[test]
    fn armour_is_taken_off_and_put_on() {
        let bytes = decode(ALICE.as_bytes(), Block::Keys).unwrap();
        assert_eq!(encode(&bytes, Block::Keys), ALICE);
        assert_eq!(decode(&bytes, Block::Keys).unwrap(), bytes);
        let around = format!("# mine\nURL: x\n{}\nmore\n{ALICE}", ALICE.replace('\n', "\r\n"));
        assert_eq!(decode(around.as_bytes(), Block::Keys).unwrap(), bytes.repeat(2));
        let header = ALICE.replacen("\n\n", "\nComment: x\nVersion: y\n\n", 1);
        assert_eq!(decode(header.as_bytes(), Block::Keys).unwrap(), bytes);
        for length in 0..100 {
            let bytes: Vec<u8> = (0..length).collect();
            assert_eq!(
                decode(encode(&bytes, Block::Signature).as_bytes(), Block::Signature).unwrap(),
                bytes
            );
        }
    }

    #[test]
    fn what_is_damaged_or_something_else_is_refused() {
        for (bad, reason) in [
            (String::new(), "no OpenPGP file"),
            ("<!doctype html>".to_owned(), "no OpenPGP file"),
            ("\u{1}\u{ff}".to_owned(), "no OpenPGP file"),
            (ALICE.replace("fhnS", "fhnT"), "checksum differs"),
            (ALICE.replace("dLTj9", "dLTk9"), "checksum differs"),
            (ALICE.replace("dLTj9", "d Tj9"), "no base64"),
            (ALICE.replace("dLTj9", "déTj"), "no base64"),
            (ALICE[..200].to_owned(), "no end"),
            (ALICE.replace("PUBLIC", "PRIVATE"), "secret key"),
            (ALICE.replace("PUBLIC KEY BLOCK", "SIGNATURE"), "another kind"),
            (ALICE.replace("\n\n", "\n"), "damaged"),
        ] {
            let error = decode(bad.as_bytes(), Block::Keys).unwrap_err();
            assert!(error.contains(reason), "{bad}: {error}");
        }
        assert_eq!(decode(b"\x01\xff", Block::Keys), Err("it is neither OpenPGP nor text"));
    }
}
