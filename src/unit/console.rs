//! The console of a machine that can be typed into: its systemd-nspawn is connected to a terminal of the host, which a unit
//! beside the machine's keeps open. No I/O.
//!
//! `%i` is the machine's name in both units.

use std::path::PathBuf;

use crate::machine::MachineName;
use crate::nspawn::edit::Edit;

/// What the program is called that keeps a terminal, as argument 0.
pub const JOB: &str = "machinist: console";

/// Where terminals and sockets are.
pub const DIRECTORY: &str = "/run/machinist/console";

/// `StandardInput=` and `StandardOutput=` of a machine with such a console. Not `tty`: that needs a terminal to start at all, and
/// this does with /dev/null, to which it leads when nothing keeps the terminal.
pub const TERMINAL: &str = "file:/run/machinist/console/%i.tty";

/// `StandardInput=` without.
pub const NOTHING: &str = "null";

/// The unit that keeps the terminal of a machine.
#[must_use]
pub fn unit(name: &MachineName) -> String {
    format!("machinist-console@{name}.service")
}

/// The unit that keeps the terminal of the machine that runs in a unit, if that may have one.
#[must_use]
pub fn unit_beside(machine: &str) -> Option<String> {
    let stem = machine.strip_suffix(".service")?;
    let name = ["systemd-nspawn@", "machinist-run-"]
        .iter()
        .find_map(|prefix| stem.strip_prefix(prefix))?;
    Some(format!("machinist-console@{name}.service"))
}

/// The link to the terminal of a machine.
#[must_use]
pub fn terminal(name: &MachineName) -> PathBuf {
    PathBuf::from(format!("{DIRECTORY}/{name}.tty"))
}

/// Where the unit listens for those who want to type.
#[must_use]
pub fn socket(name: &MachineName) -> PathBuf {
    PathBuf::from(format!("{DIRECTORY}/{name}.socket"))
}

/// What a drop-in has beside `StandardInput=`: (section, key, value).
pub(super) const BESIDE: [(&str, &str, &str); 4] = [
    ("Service", "StandardOutput", TERMINAL),
    ("Service", "StandardError", "journal"),
    ("Unit", "Wants", "machinist-console@%i.service"),
    ("Unit", "After", "machinist-console@%i.service"),
];

/// The edits that go along with `StandardInput=`.
#[must_use]
pub fn companions(interactive: bool) -> Vec<Edit> {
    let edit = |(section, key, value): (&str, &str, &str)| {
        let (section, key, value) = (section.to_owned(), key.to_owned(), value.to_owned());
        if interactive {
            Edit::Append { section, key, value }
        } else {
            let value = Some(value);
            Edit::Remove { section, key, value }
        }
    };
    BESIDE.into_iter().map(edit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_of_machines_have_one_beside_them() {
        for (machine, beside) in [
            ("systemd-nspawn@web-1.service", Some("machinist-console@web-1.service")),
            ("machinist-run-try.service", Some("machinist-console@try.service")),
            ("machine-x.scope", None),
            ("lxc@a.service", None),
        ] {
            assert_eq!(unit_beside(machine).as_deref(), beside);
        }
        let name: MachineName = "web-1".parse().unwrap();
        assert_eq!(unit(&name), "machinist-console@web-1.service");
        assert_eq!(
            format!("file:{}", terminal(&name).display()),
            TERMINAL.replace("%i", "web-1")
        );
    }
}
