//! Encrypted credentials, see systemd-creds(1). The values go through pipes, never onto a command line or a disk. Blocks.

use zeroize::Zeroizing;

use super::process::{ProcessError, Program};
use crate::machine::Cancel;

const PROGRAM: &str = "systemd-creds";

/// Encrypts a value under a name, with the host's key or what else systemd has; base64, as unit files refer to it.
pub fn encrypt(name: &str, value: &[u8], cancel: &Cancel) -> Result<Vec<u8>, ProcessError> {
    let program = Program::new(PROGRAM).args(["encrypt", &format!("--name={name}"), "-", "-"]);
    Ok(program.stdin(value).run(cancel)?.stdout)
}

/// Decrypts what [`encrypt`] made; `None` if that cannot be done, whatever the reason.
#[must_use]
pub fn decrypt(name: &str, encrypted: &[u8], cancel: &Cancel) -> Option<Zeroizing<Vec<u8>>> {
    let program = Program::new(PROGRAM).args(["decrypt", &format!("--name={name}"), "-", "-"]);
    let output = program.stdin(encrypted).run(cancel).ok()?;
    Some(Zeroizing::new(output.stdout))
}
