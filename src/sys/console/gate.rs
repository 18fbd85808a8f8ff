//! What systemd-nspawn would take for itself.

/// `^]`: systemd-nspawn kills its machine when it is typed three times within a second, and newer ones know other sequences that
/// begin with two.
const ESCAPE: u8 = 0x1d;

/// Lets no two of them pass one after the other, whoever types them. However much time is between them: what counts for
/// systemd-nspawn is when it reads them, and while it is frozen it reads nothing.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// One has passed, and nothing else since then.
    escaped: bool,
}

impl Gate {
    /// Appends what may pass.
    pub(super) fn pass(&mut self, keys: &[u8], passed: &mut Vec<u8>) {
        for key in keys {
            let is_escape = *key == ESCAPE;
            if !(is_escape && self.escaped) {
                passed.push(*key);
            }
            self.escaped = is_escape;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_escapes_come_together() {
        let mut gate = Gate::default();
        let mut pass = |keys: &[u8]| {
            let mut passed = Vec::new();
            gate.pass(keys, &mut passed);
            passed
        };
        assert_eq!(pass(b"a\x1d\x1d\x1db\x1d"), b"a\x1db\x1d");
        assert_eq!(pass(b"\x1d"), b"");
        assert_eq!(pass(b"\x1d\x1d"), b"");
        assert_eq!(pass(b"\x1dr"), b"r");
        assert_eq!(pass(b"\x1d"), b"\x1d");
    }
}
