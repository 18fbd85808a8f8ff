//! The root password of a new guest: read from a file or standard input, hashed at once, never shown.

mod sha512;

use std::fmt;
use std::fs::File;
use std::io::{self, Read};

use yescrypt::PasswordHasher;
use zeroize::Zeroizing;

/// The longest input read, in bytes.
const PASSWORD_MAX: usize = 1024;

/// A root password's hashes as `/etc/shadow` takes them; its `Debug` shows nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash {
    yescrypt: String,
    /// For a login that has its own crypt(3): busybox knows yescrypt only since 1.38.
    sha512: String,
}

/// Why there is no password.
#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    /// Reading failed.
    #[error("cannot read the root password from '{from}'")]
    Read {
        /// A file's name, or "standard input".
        from: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The first line has nothing in it.
    #[error("the root password in '{from}' is empty")]
    Empty {
        /// A file's name, or "standard input".
        from: String,
    },
    /// More than 1 KiB.
    #[error("the root password in '{from}' is longer than {PASSWORD_MAX} bytes")]
    TooLong {
        /// A file's name, or "standard input".
        from: String,
    },
    /// A byte that no login can send.
    #[error("the root password in '{from}' has a NUL byte in it")]
    Nul {
        /// A file's name, or "standard input".
        from: String,
    },
    /// No random salt, or no memory.
    #[error("cannot hash the root password: {reason}")]
    Hash {
        /// What the library said.
        reason: String,
    },
}

impl PasswordError {
    /// Commands that mend it.
    #[must_use]
    pub fn hints(&self) -> Vec<String> {
        match self {
            Self::Empty { .. } => vec!["leave `--root-password-file` out to keep root locked".to_owned()],
            _ => Vec::new(),
        }
    }
}

impl PasswordHash {
    /// Takes the first line of `input` (its newline cut off) and hashes it by yescrypt, as Debian's `passwd` does.
    /// `from` names the input in errors. Memory that held the password is overwritten.
    pub fn read(input: &mut dyn Read, from: &str) -> Result<Self, PasswordError> {
        let from = || from.to_owned();
        // Filled to its capacity and no further: a vector that grows leaves copies of the password behind.
        let mut bytes = Zeroizing::new(vec![0; PASSWORD_MAX + 2]);
        let mut length = 0;
        let end = loop {
            if let Some(end) = bytes[..length].iter().position(|byte| *byte == b'\n') {
                break end;
            }
            if length == bytes.len() {
                break length;
            }
            match input.read(&mut bytes[length..]) {
                Ok(0) => break length,
                Ok(count) => length += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(PasswordError::Read { from: from(), source }),
            }
        };
        let line = &bytes[..end];
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        match line {
            [] => Err(PasswordError::Empty { from: from() }),
            _ if line.len() > PASSWORD_MAX => Err(PasswordError::TooLong { from: from() }),
            _ if line.contains(&0) => Err(PasswordError::Nul { from: from() }),
            _ => Self::hash(line),
        }
    }

    fn hash(password: &[u8]) -> Result<Self, PasswordError> {
        let failed = |reason: String| PasswordError::Hash { reason };
        let yescrypt = yescrypt::Yescrypt::default()
            .hash_password(password)
            .map_err(|error| failed(error.to_string()))?;
        let mut random = [0; 16];
        File::open("/dev/urandom")
            .and_then(|mut file| file.read_exact(&mut random))
            .map_err(|error| failed(format!("no random numbers: {error}")))?;
        Ok(Self {
            yescrypt: yescrypt.as_str().to_owned(),
            sha512: sha512::crypt(password, &sha512::salt(random)),
        })
    }

    /// The field for `/etc/shadow` of a usual guest: `$y$j9T$SALT$HASH`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.yescrypt
    }

    /// The field for a guest whose login is busybox': `$6$SALT$HASH`.
    #[must_use]
    pub fn for_busybox(&self) -> &str {
        &self.sha512
    }
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordHash(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<PasswordHash, PasswordError> {
        PasswordHash::read(&mut &*bytes, "file")
    }

    #[test]
    fn hashes_the_first_line_only() {
        use yescrypt::PasswordVerifier;
        for input in [&b"secret\nmore"[..], b"secret", b"secret\r\n"] {
            let hash = read(input).unwrap();
            assert!(hash.as_str().starts_with("$y$j9T$"), "{}", hash.as_str());
            yescrypt::Yescrypt::default()
                .verify_password(b"secret", hash.as_str())
                .unwrap();
            assert!(!format!("{hash:?}").contains("$y$"));
        }
        assert_ne!(read(b"secret").unwrap(), read(b"secret").unwrap(), "no salt");
    }

    #[test]
    fn refuses_what_is_no_password() {
        assert!(matches!(read(b""), Err(PasswordError::Empty { .. })));
        assert!(matches!(read(b"\nsecret"), Err(PasswordError::Empty { .. })));
        assert!(matches!(read(b"a\0b\n"), Err(PasswordError::Nul { .. })));
        assert!(matches!(read(&[b'x'; 5000]), Err(PasswordError::TooLong { .. })));
        assert!(matches!(
            read(&[b'x'; PASSWORD_MAX + 1]),
            Err(PasswordError::TooLong { .. })
        ));
        assert!(read(&[b'x'; PASSWORD_MAX]).is_ok());
    }
}
