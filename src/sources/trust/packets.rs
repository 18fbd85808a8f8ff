//! What OpenPGP data is made of, as far as it has to be known before a program checks it: see RFC 9580, section 4.

use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};

use crate::sources::mirror::hex;

/// Tags of packets.
const SIGNATURE: u8 = 2;
const SECRET_KEY: u8 = 5;
const PUBLIC_KEY: u8 = 6;
const SECRET_SUBKEY: u8 = 7;
const USER_ID: u8 = 13;
/// What stands in a file of public keys besides: signatures, trust, subkeys, attributes, padding; and what is private.
const OF_KEYS: &[u8] = &[SIGNATURE, 10, 12, 14, 17, 21, 60, 61, 62, 63];

const DAMAGED: &str = "it is damaged";

/// A public key.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Key {
    /// In hexadecimal, upper case.
    pub fingerprint: String,
    /// Whose it says it is: names and addresses, as they stand in it.
    pub users: Vec<String>,
}

/// The keys in a keyring.
pub(super) fn keys(bytes: &[u8]) -> Result<Vec<Key>, &'static str> {
    if bytes.get(8..12) == Some(b"KBXf") {
        return Err("it is a keybox: have its keys written out with `gpg --export`");
    }
    let mut keys: Vec<Key> = Vec::new();
    for packet in Packets(bytes) {
        let (tag, body) = packet?;
        match (tag, keys.last_mut()) {
            (PUBLIC_KEY, _) => keys.push(Key {
                fingerprint: fingerprint(body)?,
                users: Vec::new(),
            }),
            (SECRET_KEY | SECRET_SUBKEY, _) => return Err("it is a secret key: nobody but its owner may have it"),
            (USER_ID, Some(key)) => key.users.push(String::from_utf8_lossy(body).into_owned()),
            (tag, Some(_)) if OF_KEYS.contains(&tag) => {}
            _ => return Err("it has something else than public keys"),
        }
    }
    if keys.is_empty() { Err("it is empty") } else { Ok(keys) }
}

/// Demands that there is nothing but signatures: a whole signed message has its own idea of what was signed.
pub(super) fn are_signatures(bytes: &[u8]) -> Result<(), &'static str> {
    let mut packets = Packets(bytes).peekable();
    if packets.peek().is_none() {
        return Err("it is empty");
    }
    packets.try_for_each(|packet| match packet? {
        (SIGNATURE, _) => Ok(()),
        _ => Err("it has something else than signatures"),
    })
}

/// See RFC 9580, section 5.5.4; version 5 is GnuPG's own.
fn fingerprint(key: &[u8]) -> Result<String, &'static str> {
    let length = u32::try_from(key.len()).map_err(|_| DAMAGED)?.to_be_bytes();
    let (algorithm, begin) = match key.first() {
        Some(4) if length[..2] == [0, 0] => (&SHA1_FOR_LEGACY_USE_ONLY, [&[0x99], &length[2..]].concat()),
        Some(5) => (&SHA256, [&[0x9a], &length[..]].concat()),
        Some(6) => (&SHA256, [&[0x9b], &length[..]].concat()),
        Some(2 | 3) => return Err("it has a key of a kind that is no longer safe"),
        _ => return Err(DAMAGED),
    };
    let sum = digest(algorithm, &[&begin, key].concat());
    Ok(hex(sum.as_ref()).to_uppercase())
}

/// Tags and bodies, until the end or the first error.
struct Packets<'a>(&'a [u8]);

impl<'a> Iterator for Packets<'a> {
    type Item = Result<(u8, &'a [u8]), &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let Some((tag, body, rest)) = split(self.0) else {
            self.0 = &[];
            return Some(Err(DAMAGED));
        };
        self.0 = rest;
        Some(Ok((tag, body)))
    }
}

/// The tag and the body of the first packet, and what follows. Neither keys nor signatures have lengths in parts.
fn split(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&head, rest) = bytes.split_first()?;
    let number = |bytes: &[u8]| bytes.iter().fold(0_usize, |sum, byte| sum << 8 | usize::from(*byte));
    if head & 0x80 == 0 {
        return None;
    }
    let (tag, length, rest) = if head & 0x40 != 0 {
        let (&first, after) = rest.split_first()?;
        let (length, rest) = match first {
            0..=191 => (usize::from(first), after),
            192..=223 => {
                let (&second, after) = after.split_first()?;
                (((usize::from(first) - 192) << 8) + usize::from(second) + 192, after)
            }
            255 => (number(after.get(..4)?), &after[4..]),
            224..=254 => return None,
        };
        (head & 0x3f, length, rest)
    } else {
        let size = match head & 3 {
            0 => 1,
            1 => 2,
            2 => 4,
            _ => return None,
        };
        (head >> 2 & 0xf, number(rest.get(..size)?), &rest[size..])
    };
    (length <= rest.len()).then(|| (tag, &rest[..length], &rest[length..]))
}

#[cfg(test)]
mod tests {
    use super::super::armour::{Block, decode};
    use super::*;

    fn key(name: &str) -> Vec<u8> {
        let text = match name {
            "alice" => include_str!("fixtures/alice.asc"),
            _ => include_str!("fixtures/revoked.asc"),
        };
        decode(text.as_bytes(), Block::Keys).unwrap()
    }

    #[test]
    fn keys_are_known_by_their_fingerprints() {
        let both = [key("alice"), key("revoked")].concat();
        let found = keys(&both).unwrap();
        assert_eq!(found[0].fingerprint, "444F1465971BA27BC5C078101366B69B99F043E6");
        assert_eq!(found[0].users, ["Alice <alice@example.org>"]);
        assert_eq!(found[1].fingerprint, "3FBB9BE5CEE4C30E363D069C9CD13DAE58270E1E");
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn what_is_no_key_or_no_signature_is_refused() {
        let alice = key("alice");
        assert_eq!(keys(&[]), Err("it is empty"));
        assert_eq!(are_signatures(&[]), Err("it is empty"));
        assert_eq!(keys(&alice[..alice.len() - 1]), Err(DAMAGED));
        assert_eq!(
            keys(&[&[0; 8][..], b"KBXf"].concat()).unwrap_err().split(':').next(),
            Some("it is a keybox")
        );
        assert!(are_signatures(&alice).unwrap_err().contains("something else"));
        let signature = include_str!("fixtures/data.alice.asc");
        let signature = decode(signature.as_bytes(), Block::Signature).unwrap();
        assert_eq!(are_signatures(&signature.repeat(2)), Ok(()));
        assert!(keys(&signature).unwrap_err().contains("something else"));
        // Literal data behind it, as in a whole signed message.
        assert!(are_signatures(&[&signature[..], &[0xcb, 1, b'b']].concat()).is_err());
        // A secret key, lengths in parts, of unknown length, and beyond the end.
        assert!(keys(&[0xc5, 1, 4]).unwrap_err().contains("secret key"));
        for bad in [
            &[0xc6, 0xe0, 4][..],
            &[0x9b, 4],
            &[0xc6, 0xff, 0xff, 0xff, 0xff, 0xff, 4],
            &[0xc6],
            &[0x06, 1, 4],
        ] {
            assert_eq!(keys(bad), Err(DAMAGED), "{bad:?}");
        }
        assert!(keys(&[0xc6, 1, 3]).unwrap_err().contains("no longer safe"));
    }
}
