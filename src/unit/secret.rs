//! Secrets: credentials of a machine's unit which the command line of systemd-nspawn hands on, see systemd.exec(5) and
//! `--load-credential=` in systemd-nspawn(1).
//!
//! The template unit hands none on, and no .nspawn file can say it: the command line has to be set anew, with a switch more
//! for each. What it was made from stands beside it, so that a change of that is noticed.

use std::fmt;
use std::str::FromStr;

use super::command::{check, without_prefixes};

/// The key in [`super::OWN_SECTION`] that keeps the command line which ours was made from.
pub const FROM: &str = "CommandLine";

/// The longest name: systemd makes files of them.
const NAME_MAX: usize = 200;

/// The name of a secret, in the machine and in its unit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key(String);

impl Key {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a command line has a credential of that name.
    fn is_handed_on_by(&self, command: &str) -> bool {
        let has = |switch: &str| command.contains(&format!("-credential{switch}{}:", self.0));
        has("=") || has(" ")
    }

    /// The switch of systemd-nspawn: what is no path there is a credential of its own.
    fn switch(&self) -> String {
        format!("--load-credential={0}:{0}", self.0)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Key {
    type Err = String;

    /// Less than `credential_name_valid()` takes: nothing that would have to be quoted in a unit file.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'@' | b'+');
        let begins = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
        if begins && text.len() <= NAME_MAX && text.bytes().all(plain) {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!(
                "'{}' is no name of a secret: letters, digits, '.', '_', '-', '@' and '+' are allowed, {NAME_MAX} at most, \
                 and a letter, digit or '_' at the beginning",
                text.escape_debug()
            ))
        }
    }
}

/// The command line with a switch for each key, at the place where no other word can end the switches.
pub fn with_switches(command: &str, keys: &[Key]) -> Result<String, String> {
    let first = command.split([' ', '\t']).next().unwrap_or_default();
    let (program, is_renamed) = without_prefixes(first);
    let is_nspawn = program.rsplit('/').next() == Some("systemd-nspawn");
    // The template has no path before it: systemd looks for the program itself.
    let is_one =
        check(&format!("/{}", program_on(command))).is_ok() && !command.split_whitespace().any(|word| word == ";");
    if let Some(key) = keys.iter().find(|key| key.is_handed_on_by(command)) {
        return Err(format!("its unit's command line hands on a credential '{key}' already"));
    }
    if !is_nspawn || is_renamed || !is_one {
        return Err("its unit's command line is no plain one of systemd-nspawn".to_owned());
    }
    let (head, tail) = command.split_at(first.len());
    let mut words = vec![head.to_owned()];
    words.extend(keys.iter().map(Key::switch));
    Ok(words.join(" ") + tail)
}

/// What [`with_switches`] made its result from, if it did, with these keys.
#[must_use]
pub fn without_switches(command: &str, keys: &[Key]) -> String {
    let (first, tail) = command.split_at(command.find([' ', '\t']).unwrap_or(command.len()));
    let mut tail = tail;
    for key in keys {
        let switch = format!(" {}", key.switch());
        let rest = tail.strip_prefix(switch.as_str());
        tail = rest
            .filter(|rest| rest.is_empty() || rest.starts_with([' ', '\t']))
            .unwrap_or(tail);
    }
    format!("{first}{tail}")
}

/// The command line from its program on, without special characters and leading slashes.
fn program_on(command: &str) -> &str {
    without_prefixes(command).0.trim_start_matches('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(names: &[&str]) -> Vec<Key> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn names_need_no_quotes() {
        for name in ["token", "ssh.authorized_keys.root", "_x", "a-b+c@d", &"a".repeat(200)] {
            assert_eq!(name.parse::<Key>().map(|key| key.to_string()), Ok(name.to_owned()));
        }
        for name in [
            "",
            ".",
            "..",
            ".x",
            "-x",
            "a/b",
            "a:b",
            "a b",
            "a%i",
            "a\"",
            "$a",
            "é",
            "a\n",
            "../x",
            "a;b",
            "a\\b",
            &"a".repeat(201),
        ] {
            assert!(name.parse::<Key>().is_err(), "{name:?}");
        }
    }

    #[test]
    fn switches_come_first_and_go_again() {
        let keys = keys(&["a", "a.b"]);
        for (command, wanted) in [
            (
                "systemd-nspawn --quiet --machine=%i",
                "systemd-nspawn --load-credential=a:a --load-credential=a.b:a.b --quiet --machine=%i",
            ),
            (
                "-/usr/bin/systemd-nspawn -D /x -- /bin/sh",
                "-/usr/bin/systemd-nspawn --load-credential=a:a --load-credential=a.b:a.b -D /x -- /bin/sh",
            ),
            (
                "systemd-nspawn",
                "systemd-nspawn --load-credential=a:a --load-credential=a.b:a.b",
            ),
        ] {
            assert_eq!(with_switches(command, &keys).as_deref(), Ok(wanted));
            assert_eq!(without_switches(wanted, &keys), command);
            assert_eq!(without_switches(command, &keys), command);
        }
        assert_eq!(
            without_switches("systemd-nspawn --load-credential=a:ab", &keys),
            "systemd-nspawn --load-credential=a:ab"
        );
    }

    #[test]
    fn what_is_no_plain_command_line_is_refused() {
        for command in [
            "",
            "systemd-nspawn --set-credential=a:x",
            "systemd-nspawn --load-credential a:/etc/a",
            "/bin/sh -c 'systemd-nspawn -D /x'",
            "@systemd-nspawn x --quiet",
            "\"systemd-nspawn\" --quiet",
            "systemd-nspawn --quiet ; /bin/true",
            "systemd-nspawn 'x",
            "env systemd-nspawn",
        ] {
            assert!(with_switches(command, &keys(&["a"])).is_err(), "{command}");
        }
    }
}
