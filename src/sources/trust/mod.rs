//! Who vouches for what comes from elsewhere: OpenPGP signatures, keyrings, and keys that are pinned to addresses.
//!
//! `armour`, `packets` and `clear` read what OpenPGP is made of, without I/O; `gpgv` has signatures checked; `pins` are the keys in
//! `/etc/machinist/keys.d`.

mod armour;
mod clear;
mod error;
mod gpgv;
mod packets;
mod pins;
#[cfg(test)]
mod tests;

use std::fmt;
use std::fs::File;
use std::path::Path;

pub use error::{Refusal, TrustError};
pub use packets::Key;
pub use pins::{Pin, covering, pins, read as read_pin, same_place, write as write_pin};

use self::armour::Block;
use self::gpgv::{LINE_MAX, Over};
use crate::machine::Cancel;
use crate::machine::text::printable;
use crate::sys::files::{read_regular, shown};

/// The largest keyring, and the largest signature, in bytes.
const KEYRING_MAX: u64 = 4 << 20;
pub(super) const SIGNATURE_MAX: u64 = 64 << 10;

/// Public keys that are trusted.
#[derive(Clone)]
pub struct Keyring {
    /// As OpenPGP has them, without armour.
    bytes: Vec<u8>,
    /// The keys.
    pub keys: Vec<Key>,
    /// What it is called, with its quotes.
    name: String,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyring")
            .field("name", &self.name)
            .field("keys", &self.keys)
            .finish_non_exhaustive()
    }
}

impl Keyring {
    /// The keys of a file, armoured or not.
    pub fn read(path: &Path) -> Result<Self, TrustError> {
        Self::parse(&read_regular(path, KEYRING_MAX)?, path)
    }

    /// The same, of what was read from it.
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Self, TrustError> {
        let refused = |reason| TrustError::NoKeyring {
            path: path.to_owned(),
            reason,
        };
        let bytes = if bytes.get(8..12) == Some(b"KBXf") {
            bytes.to_vec()
        } else {
            armour::decode(bytes, Block::Keys).map_err(refused)?
        };
        Ok(Self {
            keys: packets::keys(&bytes).map_err(refused)?,
            bytes,
            name: format!("'{}'", shown(path)),
        })
    }

    /// What it is called, with its quotes.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its fingerprints, sorted.
    #[must_use]
    pub fn fingerprints(&self) -> Vec<&str> {
        let mut all: Vec<&str> = self.keys.iter().map(|key| key.fingerprint.as_str()).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Whether both have the same bytes.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }

    /// These and those of the other.
    #[must_use]
    pub(super) fn with(mut self, other: &Self) -> Self {
        self.bytes.extend(&other.bytes);
        self.keys.extend(other.keys.iter().cloned());
        self.name = format!("{} and {}", self.name, other.name);
        self
    }
}

/// One signature or several over the same.
#[derive(Clone, Debug)]
pub(super) struct Signature {
    bytes: Vec<u8>,
}

impl Signature {
    /// Of a file, armoured or not.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        if bytes.len() as u64 > SIGNATURE_MAX {
            return Err("it is too large");
        }
        let bytes = armour::decode(bytes, Block::Signature)?;
        packets::are_signatures(&bytes)?;
        Ok(Self { bytes })
    }

    /// Who has signed the file `data`: by a key of each keyring. `names` are what the file and the signature are called.
    pub(super) fn check(
        &self,
        data: &File,
        keyrings: &[Keyring],
        names: (&str, &str),
        cancel: &Cancel,
    ) -> Result<Signer, TrustError> {
        self.check_as(Over::File, data, keyrings, names, cancel)
    }

    fn check_as(
        &self,
        over: Over,
        data: &File,
        keyrings: &[Keyring],
        names: (&str, &str),
        cancel: &Cancel,
    ) -> Result<Signer, TrustError> {
        let mut signer = None;
        for keyring in keyrings {
            let found = gpgv::check(self, data, over, keyring, cancel)?.map_err(|refusal| TrustError::Refused {
                url: names.0.to_owned(),
                signature: names.1.to_owned(),
                refusal,
            })?;
            signer = signer.or(Some(found));
        }
        signer.ok_or_else(|| TrustError::NoKey {
            url: names.0.to_owned(),
        })
    }

    /// The same, of a text.
    pub(super) fn check_bytes(
        &self,
        data: &[u8],
        keyrings: &[Keyring],
        names: (&str, &str),
        cancel: &Cancel,
    ) -> Result<Signer, TrustError> {
        if data.split(|byte| *byte == b'\n').any(|line| line.len() > LINE_MAX) {
            return Err(TrustError::NoSignature {
                signature: names.1.to_owned(),
                reason: "its text has lines that are too long for its signature to be checked",
            });
        }
        self.check_as(Over::Text, &gpgv::held(data)?, keyrings, names, cancel)
    }
}

/// What a text says that is signed in one file with its signature, and by whom; `None` if it is no such file.
pub(super) fn signed_text(
    bytes: &[u8],
    keyrings: &[Keyring],
    url: &str,
    cancel: &Cancel,
) -> Result<Option<(String, Signer)>, TrustError> {
    if !clear::is_clear(bytes) {
        return Ok(None);
    }
    let refused = |reason| TrustError::NoSignature {
        signature: url.to_owned(),
        reason,
    };
    let clear = clear::split(bytes).map_err(refused)?;
    let signature = Signature::parse(clear.signature.as_bytes()).map_err(refused)?;
    let signer = signature.check_bytes(clear.text.as_bytes(), keyrings, (url, url), cancel)?;
    Ok(Some((clear.text, signer)))
}

/// Who has signed something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signer {
    /// Of the primary key.
    fingerprint: String,
    /// What the key says whose it is.
    user: Option<String>,
}

impl fmt::Display for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.user {
            Some(user) => write!(f, "{} ({})", printable(user), printable(&self.fingerprint)),
            None => write!(f, "{}", printable(&self.fingerprint)),
        }
    }
}
