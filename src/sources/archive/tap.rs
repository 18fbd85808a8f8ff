//! The sum of a part of what is read: exactly what was consumed, however far ahead was read.

use std::io::{self, BufRead, Read};
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest as _, Sha256};

use crate::sources::sum::Sum;

/// What was read since the last reset, as its sum and its number of bytes.
#[derive(Clone, Debug, Default)]
pub struct Tap(Arc<Mutex<(Sha256, u64)>>);

impl Tap {
    /// Begins anew.
    pub fn reset(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Default::default();
    }

    /// The sum, and how many bytes it is of.
    #[must_use]
    pub fn sum(&self) -> (Sum, u64) {
        let (sum, bytes) = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        (Sum::from_digest(sum), bytes)
    }

    fn add(&self, bytes: &[u8]) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.0.update(bytes);
        state.1 += bytes.len() as u64;
    }
}

/// A reader that is added up.
pub(super) struct Tapped<R> {
    pub(super) inner: R,
    pub(super) tap: Tap,
}

impl<R: BufRead> Read for Tapped<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buf)?;
        self.tap.add(&buf[..read]);
        Ok(read)
    }
}

impl<R: BufRead> BufRead for Tapped<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        // It is there already: nothing is read for this, and nothing can fail.
        if let Ok(bytes) = self.inner.fill_buf() {
            self.tap.add(&bytes[..amount.min(bytes.len())]);
        }
        self.inner.consume(amount);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_consumed_counts_and_no_more() {
        let tap = Tap::default();
        let mut tapped = Tapped {
            inner: &b"xabcy"[..],
            tap: tap.clone(),
        };
        tapped.read_exact(&mut [0]).unwrap();
        tap.reset();
        tapped.fill_buf().unwrap();
        tapped.consume(2);
        tapped.read_exact(&mut [0]).unwrap();
        let (sum, bytes) = tap.sum();
        let of_abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!((sum.to_string().as_str(), bytes), (of_abc, 3));
    }
}
