//! Digests of files, as lists of checksums have them, and as the parts of an image are known by: see "Digests" in the
//! specification of the OCI's images.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, Read, Seek as _};

use sha2::{Digest as _, Sha256, Sha512};

use crate::machine::Cancel;
use crate::sources::source::shown;
use crate::sources::sum::Sum;

/// Bytes that are read at once.
const BUFFER: usize = 256 << 10;

/// A digest of a kind that is registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Digest {
    /// `sha256:…`
    Sha256(Sum),
    /// `sha512:…`
    Sha512([u8; 64]),
}

impl Digest {
    /// Reads one; an error completes the sentence "the manifest …".
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let found = match text.split_once(':') {
            Some(("sha256", hex)) => hex.parse().ok().map(Self::Sha256),
            Some(("sha512", hex)) => sha512(hex).map(Self::Sha512),
            Some((other, _)) if !other.is_empty() && other.len() < 20 => {
                return Err(format!(
                    "has a digest of the kind '{}': only sha256 and sha512 are known",
                    shown(other)
                ));
            }
            _ => None,
        };
        found.ok_or_else(|| format!("has the invalid digest '{}'", shown(text)))
    }

    /// One whose kind is told by its length, as in a list of checksums.
    pub(super) fn from_hex(hex: &str) -> Option<Self> {
        hex.parse()
            .map(Self::Sha256)
            .ok()
            .or_else(|| sha512(hex).map(Self::Sha512))
    }

    /// One of the same kind, of these bytes.
    pub(super) fn of_kind(self, bytes: &[u8]) -> Self {
        match self {
            Self::Sha256(_) => Self::Sha256(Sum::of(bytes)),
            Self::Sha512(_) => Self::Sha512(Sha512::digest(bytes).into()),
        }
    }

    /// Reads a file to its end: one of the same kind, and its SHA-256 sum, which it can be known by from now on. `None` if the
    /// caller gave up.
    pub(super) fn of_file(self, file: &mut File, cancel: &Cancel) -> io::Result<Option<(Self, Sum)>> {
        let (mut short, mut long) = (Sha256::new(), Sha512::new());
        let mut buffer = vec![0; BUFFER];
        loop {
            if cancel.is_cancelled() {
                return Ok(None);
            }
            let read = match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            short.update(&buffer[..read]);
            if matches!(self, Self::Sha512(_)) {
                long.update(&buffer[..read]);
            }
        }
        file.rewind()?;
        let sum = Sum::from_digest(short);
        let found = match self {
            Self::Sha256(_) => Self::Sha256(sum),
            Self::Sha512(_) => Self::Sha512(long.finalize().into()),
        };
        Ok(Some((found, sum)))
    }

    /// The name of its kind, as it stands before the colon.
    pub(super) fn kind(self) -> &'static str {
        match self {
            Self::Sha256(_) => "sha256",
            Self::Sha512(_) => "sha512",
        }
    }

    /// What stands behind the colon.
    pub(super) fn hex(self) -> String {
        match self {
            Self::Sha256(sum) => sum.to_string(),
            Self::Sha512(bytes) => bytes.iter().fold(String::new(), |mut hex, byte| {
                let _ = write!(hex, "{byte:02x}");
                hex
            }),
        }
    }

    /// As people call it.
    pub(super) fn called(self) -> &'static str {
        match self {
            Self::Sha256(_) => "SHA-256",
            Self::Sha512(_) => "SHA-512",
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind(), self.hex())
    }
}

fn sha512(hex: &str) -> Option<[u8; 64]> {
    if hex.len() != 128 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; 64];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    const OF_ABC: &str = "sha512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
                          2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f";

    #[test]
    fn both_kinds_are_compared_and_no_other() {
        let long = Digest::parse(OF_ABC).unwrap();
        assert_eq!((long.to_string().as_str(), long.of_kind(b"abc")), (OF_ABC, long));
        let short = Digest::Sha256(Sum::of(b"abc"));
        assert_eq!(Digest::parse(&short.to_string()), Ok(short));
        assert_eq!(Digest::parse(&OF_ABC.to_uppercase().replace("SHA", "sha")), Ok(long));
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"abc").unwrap();
        for digest in [long, short] {
            file.rewind().unwrap();
            let found = digest.of_file(&mut file, &Cancel::default()).unwrap();
            assert_eq!(found, Some((digest, Sum::of(b"abc"))));
        }
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "abc");
        for other in ["md5:x", "sha384:00", "sha1:../x", "multihash+base58:x"] {
            assert!(
                Digest::parse(other)
                    .unwrap_err()
                    .contains("only sha256 and sha512 are known")
            );
        }
        let cut = &OF_ABC[..OF_ABC.len() - 1];
        for bad in [
            "",
            "sha512:",
            "sha256:../../etc/passwd",
            ":x",
            cut,
            &OF_ABC.replace('d', "g"),
        ] {
            assert!(Digest::parse(bad).unwrap_err().contains("invalid digest"), "{bad}");
        }
    }
}
