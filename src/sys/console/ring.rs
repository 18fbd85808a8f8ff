//! The last of what was shown.

/// How much is kept, in bytes.
pub(super) const KEPT: usize = 1 << 20;

/// Bytes by their number since the beginning, of which the last [`KEPT`] are there.
#[derive(Debug)]
pub(super) struct Ring {
    bytes: Vec<u8>,
    end: u64,
}

impl Ring {
    pub(super) fn new() -> Self {
        Self {
            bytes: Vec::new(),
            end: 0,
        }
    }

    /// The number after that of the last byte.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// The number of the first byte that is still there.
    pub(super) fn start(&self) -> u64 {
        self.end - self.bytes.len() as u64
    }

    pub(super) fn push(&mut self, mut bytes: &[u8]) {
        if self.bytes.len() < KEPT {
            let fits = bytes.len().min(KEPT - self.bytes.len());
            self.bytes.extend_from_slice(&bytes[..fits]);
            self.end += fits as u64;
            bytes = &bytes[fits..];
        }
        while !bytes.is_empty() {
            let place = Self::place(self.end);
            let fits = bytes.len().min(KEPT - place);
            self.bytes[place..place + fits].copy_from_slice(&bytes[..fits]);
            self.end += fits as u64;
            bytes = &bytes[fits..];
        }
    }

    /// Some bytes from a number on, no more than `most`; none at the end.
    pub(super) fn from(&self, number: u64, most: usize) -> &[u8] {
        let left = usize::try_from(self.end.saturating_sub(number)).unwrap_or(usize::MAX);
        let place = Self::place(number);
        let count = left.min(most).min(self.bytes.len().saturating_sub(place));
        self.bytes.get(place..place + count).unwrap_or_default()
    }

    /// Where the byte of that number is.
    fn place(number: u64) -> usize {
        usize::try_from(number % KEPT as u64).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(ring: &Ring) -> Vec<u8> {
        let (mut at, mut found) = (ring.start(), Vec::new());
        while at < ring.end() {
            let some = ring.from(at, 1000);
            assert!(!some.is_empty());
            found.extend_from_slice(some);
            at += some.len() as u64;
        }
        found
    }

    #[test]
    fn the_last_bytes_are_there() {
        let mut ring = Ring::new();
        assert!(all(&ring).is_empty());
        let text: Vec<u8> = (0..=250).cycle().take(KEPT * 2 + 12345).collect();
        for piece in text.chunks(4097) {
            ring.push(piece);
        }
        assert_eq!(ring.end(), text.len() as u64);
        assert_eq!(all(&ring), text[text.len() - KEPT..]);
        assert_eq!(ring.from(ring.end(), 10), b"");
        let mut small = Ring::new();
        small.push(b"abc");
        assert_eq!((all(&small), small.start()), (b"abc".to_vec(), 0));
        small.push(&text);
        assert_eq!(all(&small), text[text.len() - KEPT..]);
    }
}
