//! SHA-256 sums: as users and publishers write them, and of what is read.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest, Sha256};

/// The SHA-256 sum of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sum([u8; 32]);

/// What is no sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a SHA-256 sum has 64 hexadecimal digits")]
pub struct NoSum;

impl Sum {
    /// Of these bytes.
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self::from_digest(Sha256::new_with_prefix(bytes))
    }

    /// Of what was added up.
    pub(crate) fn from_digest(sum: Sha256) -> Self {
        Self(sum.finalize().into())
    }
}

impl FromStr for Sum {
    type Err = NoSum;

    fn from_str(text: &str) -> Result<Self, NoSum> {
        let mut bytes = [0; 32];
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(NoSum);
        }
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).map_err(|_| NoSum)?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Adds up whatever is read through it. Clones share the reader and the sum.
#[derive(Debug)]
pub(super) struct Summed<R>(Arc<Mutex<(R, Sha256)>>);

impl<R> Clone for Summed<R> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<R: Read> Summed<R> {
    pub(super) fn new(reader: R) -> Self {
        Self(Arc::new(Mutex::new((reader, Sha256::new()))))
    }

    /// Reads what is left, and returns the sum of everything.
    pub(super) fn finish(&self) -> io::Result<Sum> {
        io::copy(&mut self.clone(), &mut io::sink())?;
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Sum::from_digest(state.1.clone()))
    }
}

impl<R: Read> Read for Summed<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (reader, sum) = &mut *state;
        let n = reader.read(buf)?;
        sum.update(&buf[..n]);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OF_ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn sums_are_read_and_shown() {
        let sum: Sum = OF_ABC.to_uppercase().parse().unwrap();
        assert_eq!(sum.to_string(), OF_ABC);
        for bad in [
            "",
            "ba78",
            &OF_ABC[1..],
            &format!("{OF_ABC}0"),
            &OF_ABC.replace('b', "g"),
            &"é".repeat(32),
        ] {
            assert_eq!(bad.parse::<Sum>(), Err(NoSum), "{bad}");
        }
    }

    #[test]
    fn what_nobody_reads_counts_too() {
        let mut summed = Summed::new(&b"abc"[..]);
        summed.clone().read_exact(&mut [0]).unwrap();
        assert_eq!(summed.finish().unwrap().to_string(), OF_ABC);
        assert_eq!(summed.read(&mut [0]).unwrap(), 0);
    }
}
