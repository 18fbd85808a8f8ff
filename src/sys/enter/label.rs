//! The security label of PID 1, and how a process of ours takes it on.
//!
//! Of the modules that give processes labels AppArmor lets a process choose a profile for itself, for good: see
//! apparmor(7), and `/proc/PID/attr` in proc(5). Where another module's labels differ, we stay outside.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;

use nix::libc;

use super::privileges::PrivilegeError;
use crate::machine::text::printable;

/// That of the first module which has one.
const ANY: &str = "current";
const SMACK: &str = "smack/current";
const APPARMOR: &str = "apparmor/current";
/// The longest that the kernel tells, in bytes.
const LONGEST: usize = 4096;

/// A profile of AppArmor to take on.
#[derive(Debug)]
pub(super) struct Label {
    /// As the kernel tells it: `NAME (enforce)`, or `unconfined`.
    wanted: Vec<u8>,
    /// Where this process is told its label, once [`Label::open`] has found it.
    ours: Option<File>,
}

impl Label {
    /// What the process `pid` has and we have not; `None` if there is no such thing.
    pub(super) fn to_take_on(pid: i32) -> Result<Option<Self>, PrivilegeError> {
        let pid = pid.to_string();
        let both = |module| Ok::<_, PrivilegeError>((label(&pid, module)?, label("self", module)?));
        let (any, smack, apparmor) = (both(ANY)?, both(SMACK)?, both(APPARMOR)?);
        let differs = |labels: &(Option<Vec<u8>>, Option<Vec<u8>>)| labels.0 != labels.1;
        let refused = |theirs: Option<Vec<u8>>| Err(refused(&theirs.unwrap_or_default()));
        match apparmor {
            _ if differs(&smack) => refused(smack.0),
            _ if differs(&any) && any != apparmor => refused(any.0),
            (Some(wanted), Some(ours)) if wanted != ours => Ok(Some(Self { wanted, ours: None })),
            (None, None) | (Some(_), Some(_)) => Ok(None),
            (theirs, _) => refused(theirs),
        }
    }

    /// Opens where this process can change its label. To be called as long as `/proc` is the host's, and not before a fork:
    /// only who has opened it may write to it.
    pub(super) fn open(&mut self) -> Result<(), PrivilegeError> {
        let path = format!("/proc/thread-self/attr/{APPARMOR}");
        let file = File::options().read(true).write(true).open(path);
        self.ours = Some(file.map_err(PrivilegeError::io("open the own security label"))?);
        Ok(())
    }

    /// Takes it on, for good, and looks whether the kernel tells it of us as it told it of PID 1. What is executed then gets
    /// what PID 1 would get for it.
    pub(super) fn take_on(self) -> Result<(), PrivilegeError> {
        let file = self.ours.ok_or_else(|| refused(&self.wanted))?;
        let order = [b"changeprofile ", without_mode(&self.wanted)].concat();
        // All of it at once, or the kernel takes none.
        match file.write_at(&order, 0) {
            Ok(written) if written == order.len() => {}
            _ => return Err(refused(&self.wanted)),
        }
        let mut told = vec![0; LONGEST];
        let length = file
            .read_at(&mut told, 0)
            .map_err(PrivilegeError::io("read the own security label"))?;
        if plain(&told[..length]) == self.wanted {
            Ok(())
        } else {
            Err(refused(&self.wanted))
        }
    }
}

fn refused(label: &[u8]) -> PrivilegeError {
    PrivilegeError::Label(printable(&String::from_utf8_lossy(label)))
}

/// What a module says of a process; `None` where there is no such module.
fn label(pid: &str, module: &str) -> Result<Option<Vec<u8>>, PrivilegeError> {
    match fs::read(format!("/proc/{pid}/attr/{module}")) {
        Ok(bytes) => Ok(Some(plain(&bytes).to_vec())),
        // The kernel knows it and it is switched off; or there is none at all.
        Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::EINVAL) => Ok(None),
        Err(error) => Err(PrivilegeError::io("read the security labels")(error)),
    }
}

/// Without what some kernels end it with.
fn plain(label: &[u8]) -> &[u8] {
    let end = label.iter().rposition(|byte| !b"\0\n".contains(byte));
    &label[..end.map_or(0, |end| end + 1)]
}

/// A label as it is asked for: without `(enforce)` and the like behind it.
fn without_mode(label: &[u8]) -> &[u8] {
    let mode = label.windows(2).rposition(|two| two == b" (");
    match mode {
        Some(at) if label.ends_with(b")") => &label[..at],
        _ => label,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_asked_for_without_their_mode() {
        for (label, name) in [
            ("web (enforce)", "web"),
            ("unconfined", "unconfined"),
            ("a b (x) (complain)", "a b (x)"),
            ("web//&:inner:x (mixed)", "web//&:inner:x"),
            ("odd (", "odd ("),
        ] {
            assert_eq!(without_mode(label.as_bytes()), name.as_bytes());
        }
        assert_eq!(plain(b"\n"), b"");
        assert_eq!(plain(b"web (enforce)\n"), b"web (enforce)");
        assert_eq!(plain(b"system_u:object_r:x\0"), b"system_u:object_r:x");
    }

    #[test]
    fn nobody_differs_from_himself() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(Label::to_take_on(own).unwrap().is_none());
    }

    #[test]
    fn what_was_not_opened_is_not_taken_on() {
        let label = Label {
            wanted: b"web (enforce)".to_vec(),
            ours: None,
        };
        assert!(matches!(label.take_on(), Err(PrivilegeError::Label(_))));
    }
}
