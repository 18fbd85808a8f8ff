//! What makes a guest itself: its name, its machine ID, its keys.

use super::enable::enable;
use super::{Init, exists, remove, text};
use crate::sys::files::{FileError, Kind, Root};

/// Makes new ssh host keys at the first boot. Distributions that do this themselves are left to it.
const SSH_KEYS_UNIT: &str = "\
# Written by machinist: the keys that came with the image were removed.
[Unit]
Description=Make ssh host keys of this machine's own
Before=ssh.service ssh.socket sshd.service sshd.socket
ConditionPathExistsGlob=!/etc/ssh/ssh_host_*_key

[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -A

[Install]
WantedBy=multi-user.target
";
const SSH_KEYS_NAME: &str = "machinist-ssh-keys.service";

/// Writes `/etc/hostname`, and the name into `/etc/hosts` so that it resolves without any network.
pub(super) fn name_guest(root: &Root, hostname: &str) -> Result<(), FileError> {
    let former = text(root, "etc/hostname").ok().flatten().unwrap_or_default();
    root.write("etc/hostname", format!("{hostname}\n").as_bytes(), 0o644)?;
    let hosts = match text(root, "etc/hosts") {
        Ok(hosts) => hosts,
        // Not worth failing over: the guest works without it.
        Err(FileError::NotUtf8 { .. } | FileError::TooLarge { .. }) => return Ok(()),
        Err(error) => return Err(error),
    };
    let hosts = hosts.unwrap_or_else(|| "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned());
    let named = add_name(&hosts, former.trim(), hostname);
    if named != hosts || !exists(root, "etc/hosts") {
        root.write("etc/hosts", named.as_bytes(), 0o644)?;
    }
    Ok(())
}

/// The same for a copy, if its host name is the former machine's: one that was chosen stays.
pub(super) fn rename_guest(root: &Root, former: &str, name: &str) -> Result<(), FileError> {
    let is_former = matches!(text(root, "etc/hostname"), Ok(Some(found)) if found.trim() == former);
    if is_former { name_guest(root, name) } else { Ok(()) }
}

/// Directories of what was leased from the network to this machine, and of the ids that it asked by.
const LEASES: &[&str] = &[
    "var/lib/dhcp",
    "var/lib/dhclient",
    "var/lib/dhcpcd",
    "var/db/dhcpcd",
    "var/lib/NetworkManager",
    "var/lib/systemd/network",
];

/// Removes the leases that a copy must not ask for again, and the ids that a DHCP server knows the original by.
pub(super) fn forget_leases(root: &Root) -> Result<(), FileError> {
    let is_one = |name: &str| {
        let endings = [".lease", ".leases", ".lease6", ".leases6"];
        endings.iter().any(|ending| name.ends_with(ending)) || matches!(name, "duid" | "secret" | "secret_key")
    };
    for directory in LEASES {
        // What is no directory, or leads nowhere, has none.
        let names = root.list(directory).unwrap_or_default();
        for name in names
            .iter()
            .filter_map(|name| name.to_str())
            .filter(|name| is_one(name))
        {
            remove(root, &format!("{directory}/{name}"))?;
        }
    }
    remove(root, "etc/dhcpcd.duid")
}

/// Puts `name` on 127.0.1.1, Debian's custom, in place of the tree's former name, unless some line has it already.
fn add_name(hosts: &str, former: &str, name: &str) -> String {
    let names = |line: &str| -> Vec<String> {
        let entry = line.split('#').next().unwrap_or_default();
        entry.split_whitespace().map(str::to_owned).collect()
    };
    let mut lines: Vec<String> = hosts
        .lines()
        .filter(|line| {
            let words = names(line);
            let old = words.first().is_some_and(|address| address == "127.0.1.1")
                && words.iter().skip(1).any(|word| word == former && word != name);
            !old
        })
        .map(str::to_owned)
        .collect();
    if !lines
        .iter()
        .any(|line| names(line).iter().skip(1).any(|word| word == name))
    {
        let place = lines
            .iter()
            .position(|line| line.starts_with("127."))
            .map_or(0, |index| index + 1);
        lines.insert(place, format!("127.0.1.1\t{name}"));
    }
    lines.push(String::new());
    lines.join("\n")
}

/// Removes everything by which one copy of a tree could be taken for another.
pub(crate) fn forget_identity(root: &Root) -> Result<(), FileError> {
    if exists(root, "usr/lib/systemd/systemd")
        || exists(root, "lib/systemd/systemd")
        || root.kind("etc/machine-id")?.is_some()
    {
        // Empty and not "uninitialized": systemd makes an ID at the next boot, and does not take it for a first boot with
        // its presets, which would undo what is enabled here.
        root.write("etc/machine-id", b"", 0o444)?;
    }
    if root.kind("var/lib/dbus/machine-id")?.is_some() {
        root.symlink("/etc/machine-id", "var/lib/dbus/machine-id")?;
    }
    for file in [
        "var/lib/systemd/random-seed",
        "var/lib/systemd/credential.secret",
        "var/lib/urandom/random-seed",
        "var/lib/random-seed",
        "etc/.pwd.lock",
    ] {
        remove(root, file)?;
    }
    for name in host_keys(root)? {
        remove(root, &format!("etc/ssh/{name}"))?;
    }
    Ok(())
}

fn host_keys(root: &Root) -> Result<Vec<String>, FileError> {
    if root.kind("etc/ssh")?.is_none() || !exists(root, "etc/ssh/.") {
        return Ok(Vec::new());
    }
    let names = root.list("etc/ssh")?;
    Ok(names
        .iter()
        .filter_map(|name| name.to_str())
        .filter(|name| name.starts_with("ssh_host_") && (name.ends_with("_key") || name.ends_with("_key.pub")))
        .map(str::to_owned)
        .collect())
}

/// Sees to it that an ssh server gets new keys.
pub(super) fn renew_ssh_keys(root: &Root, init: &Init, notes: &mut Vec<String>) -> Result<(), FileError> {
    if !exists(root, "usr/sbin/sshd") {
        return Ok(());
    }
    // Fedora and Arch. Debian's own sshd-keygen.service only runs at what systemd takes for a first boot.
    let own = ["sshd-keygen.target", "sshdgenkeys.service"]
        .iter()
        .any(|unit| exists(root, &format!("usr/lib/systemd/system/{unit}")));
    match init {
        Init::Systemd if own => Ok(()),
        Init::Systemd => {
            let path = format!("etc/systemd/system/{SSH_KEYS_NAME}");
            root.create_dir_all("etc/systemd/system", 0o755)?;
            root.write(&path, SSH_KEYS_UNIT.as_bytes(), 0o644)?;
            enable(root, SSH_KEYS_NAME)
        }
        _ => {
            if root.kind("etc/ssh")? == Some(Kind::Directory) {
                notes.push("its ssh host keys were removed: run `ssh-keygen -A` in it".to_owned());
            }
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::add_name;

    #[test]
    fn hosts_gets_the_name_once() {
        let hosts = "127.0.0.1\tlocalhost\n# c\n::1 localhost\n";
        let named = add_name(hosts, "", "web");
        assert_eq!(named, "127.0.0.1\tlocalhost\n127.0.1.1\tweb\n# c\n::1 localhost\n");
        assert_eq!(add_name(&named, "web", "web"), named);
        assert_eq!(add_name(&named, "web", "db"), named.replace("web", "db"));
        assert_eq!(add_name("10.0.0.1 web\n", "", "web"), "10.0.0.1 web\n");
    }
}
