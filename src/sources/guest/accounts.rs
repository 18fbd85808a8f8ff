//! Root's account: its password and who may log in by ssh.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use super::{GuestError, text};
use crate::sys::files::{FileError, Root};

/// Public keys in the form of `authorized_keys`, one a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorizedKeys(Vec<String>);

impl AuthorizedKeys {
    /// Reads the contents of a `.pub` or `authorized_keys` file; `from` names it in errors.
    pub fn parse(text: &str, from: &str) -> Result<Self, GuestError> {
        const KINDS: &[&str] = &["ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-"];
        let bad = |reason| GuestError::BadSshKey {
            from: from.to_owned(),
            reason,
        };
        if text.contains("PRIVATE KEY") {
            return Err(bad("it is a private key"));
        }
        let lines: Vec<String> = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(str::to_owned)
            .collect();
        let is_key = |line: &String| {
            let words: Vec<&str> = line.split_whitespace().collect();
            // Options may stand before the kind, and quoted words in them may have spaces.
            words
                .windows(2)
                .any(|pair| KINDS.iter().any(|kind| pair[0].starts_with(kind)) && pair[1].starts_with("AAAA"))
        };
        match lines.as_slice() {
            [] => Err(bad("it is empty")),
            lines if lines.iter().all(is_key) && !text.contains('\0') => Ok(Self(lines.to_vec())),
            _ => Err(bad("a line in it is no public key")),
        }
    }
}

impl fmt::Display for AuthorizedKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

/// Adds the keys to those of whose home it is, without doubling any.
pub(super) fn authorize(root: &Root, keys: &AuthorizedKeys, home: &str) -> Result<(), FileError> {
    let (directory, file) = (format!("{home}/.ssh"), format!("{home}/.ssh/authorized_keys"));
    root.create_dir_all(home, 0o700)?;
    root.create_dir_all(&directory, 0o700)?;
    root.chmod(&directory, 0o700)?;
    let mut all = text(root, &file)?.unwrap_or_default();
    if !all.is_empty() && !all.ends_with('\n') {
        all.push('\n');
    }
    for key in &keys.0 {
        if !all.lines().any(|line| line.trim() == key) {
            all.push_str(key);
            all.push('\n');
        }
    }
    root.write(&file, all.as_bytes(), 0o600)
}

/// Sets root's password, or locks it: `*` and not `!`, which some sshd builds take for a locked account, keys included.
pub(super) fn set_root_password(root: &Root, hash: Option<&str>) -> Result<(), FileError> {
    let Some(passwd) = text(root, "etc/passwd")? else {
        return Ok(());
    };
    // A password in passwd itself, or an empty one, would win over shadow.
    let shadowed = set_field(&passwd, 1, "x", None);
    if shadowed != passwd {
        root.write("etc/passwd", shadowed.as_bytes(), 0o644)?;
    }
    let days = today().to_string();
    let field = hash.unwrap_or("*");
    let shadow = text(root, "etc/shadow")?;
    let mode = if shadow.is_some() { 0o640 } else { 0o600 };
    let shadow = shadow.unwrap_or_default();
    let mut changed = set_field(&shadow, 1, field, hash.is_some().then_some(days.as_str()));
    if !changed.lines().any(|line| line.starts_with("root:")) {
        changed = format!("root:{field}:{days}:0:99999:7:::\n{changed}");
    }
    if changed == shadow {
        return Ok(());
    }
    root.write("etc/shadow", changed.as_bytes(), mode)
}

/// Today as shadow(5) counts: in days since 1970.
pub(super) fn today() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_secs() / 86_400
}

/// Replaces a field of root's line, and the one after it if `next` is given; other lines stay as they are.
fn set_field(file: &str, index: usize, value: &str, next: Option<&str>) -> String {
    let mut lines: Vec<String> = file.lines().map(str::to_owned).collect();
    for line in lines.iter_mut().filter(|line| line.starts_with("root:")) {
        let mut fields: Vec<&str> = line.split(':').collect();
        if let Some(field) = fields.get_mut(index) {
            *field = value;
        }
        if let (Some(next), Some(field)) = (next, fields.get_mut(index + 1)) {
            *field = next;
        }
        *line = fields.join(":");
    }
    // The empty last "line" ends the file with a newline.
    lines.push(String::new());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_told_from_other_files() {
        let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ me@here";
        assert_eq!(AuthorizedKeys::parse(key, "k").unwrap().to_string(), format!("{key}\n"));
        let options = format!("# c\n\nfrom=\"10.0.0.0/8\",command=\"a b\" {key}\n");
        assert!(AuthorizedKeys::parse(&options, "k").is_ok());
        for bad in [
            "",
            "# c\n",
            "-----BEGIN OPENSSH PRIVATE KEY-----\n",
            "hello world",
            "ssh-rsa",
            &format!("{key}\nx y"),
        ] {
            assert!(AuthorizedKeys::parse(bad, "k").is_err(), "{bad:?}");
        }
    }

    #[test]
    fn only_roots_field_changes() {
        let shadow = "root:$6$x:0:0:99999:7:::\ndaemon:*:1:0:99999:7:::\nrooty:a:1\n";
        assert_eq!(set_field(shadow, 1, "*", None), shadow.replace("$6$x", "*"));
        assert_eq!(
            set_field(shadow, 1, "$y$z", Some("20000")),
            shadow.replace("$6$x:0", "$y$z:20000")
        );
    }
}
