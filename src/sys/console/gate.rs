//! What systemd-nspawn would take for itself.

use std::time::{Duration, Instant};

/// `^]`: systemd-nspawn kills its machine when it is typed three times within a second, and newer ones know other sequences that
/// begin with two.
const ESCAPE: u8 = 0x1d;
/// Within which it counts, with time to spare for a slow systemd-nspawn.
const TIME: Duration = Duration::from_secs(3);

/// Lets no two of them pass one after the other, whoever types them.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// When one has passed, and nothing else since then.
    escaped: Option<Instant>,
}

impl Gate {
    /// Appends what may pass.
    pub(super) fn pass(&mut self, keys: &[u8], now: Instant, passed: &mut Vec<u8>) {
        for key in keys {
            if *key != ESCAPE {
                self.escaped = None;
            } else if self.escaped.is_some_and(|before| now.duration_since(before) < TIME) {
                continue;
            } else {
                self.escaped = Some(now);
            }
            passed.push(*key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_escapes_come_together() {
        let (mut gate, begun) = (Gate::default(), Instant::now());
        let mut pass = |keys: &[u8], after: u64| {
            let mut passed = Vec::new();
            gate.pass(keys, begun + Duration::from_secs(after), &mut passed);
            passed
        };
        assert_eq!(pass(b"a\x1d\x1d\x1db\x1d", 0), b"a\x1db\x1d");
        assert_eq!(pass(b"\x1d", 1), b"");
        assert_eq!(pass(b"\x1dr", 2), b"r");
        assert_eq!(pass(b"\x1d", 2), b"\x1d");
        assert_eq!(pass(b"\x1d", 6), b"\x1d");
    }
}
