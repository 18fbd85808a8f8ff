//! A tree that ran under another manager, as a machine: what systemd-nspawn wants of it, and the name of its link.

use super::init::{Init, detect_init, make_bootable};
use super::{Guest, GuestError, fit, text};
use crate::sys::files::{FileError, Kind, Root, shown};

/// What a machine's link is called inside, see `--network-veth` in systemd-nspawn(1).
const LINK: &str = "host0";

/// Directories with files about links, and how these end.
const PLACES: [(&str, &str); 4] = [
    ("etc/network/interfaces.d", ""),
    ("etc/systemd/network", ".network"),
    ("etc/netplan", ".yaml"),
    ("etc/NetworkManager/system-connections", ".nmconnection"),
];

/// Directories where each link has a file of its name.
const SCRIPTS: [&str; 2] = ["etc/sysconfig/network-scripts", "etc/sysconfig/network"];

/// Has a tree boot here and power off when it is told to, and what it sets up for the link `link` (as `eth0`) it does for
/// `host0`. All else stays as it is.
pub fn adopt(root: &Root, link: Option<&str>) -> Result<Guest, GuestError> {
    let init = detect_init(root)?;
    let mut notes = fit::misfits(root, &init);
    if init == Init::None {
        notes.push("it has no init, and does not boot: `machinist run` takes its programs".to_owned());
    }
    root.create_dir_all("etc", 0o755)?;
    make_bootable(root, &init, &mut notes)?;
    if let Some(link) = link {
        let changed = rename_link(root, link)?;
        if !changed.is_empty() {
            let files: Vec<String> = changed.iter().map(|file| format!("'/{}'", shown(file))).collect();
            notes.push(format!(
                "its link {link} is called {LINK} here, and so it is now in {}",
                files.join(", ")
            ));
        }
    }
    Ok(Guest { init, notes })
}

/// Renames a link wherever it is set up; returns the files that say so.
fn rename_link(root: &Root, link: &str) -> Result<Vec<String>, FileError> {
    let mut files = vec!["etc/network/interfaces".to_owned()];
    for (directory, end) in PLACES {
        let names = root.list(directory).unwrap_or_default();
        let names = names.iter().filter_map(|name| name.to_str());
        files.extend(
            names
                .filter(|name| name.ends_with(end))
                .map(|name| format!("{directory}/{name}")),
        );
    }
    let mut changed = Vec::new();
    for file in files {
        if let Some(text) = told_anew(root, &file, link)? {
            let mode = root.mode(&file)?.unwrap_or(0o600);
            root.write(&file, text.as_bytes(), mode & 0o777)?;
            changed.push(file);
        }
    }
    for directory in SCRIPTS {
        let (old, new) = (format!("{directory}/ifcfg-{link}"), format!("{directory}/ifcfg-{LINK}"));
        if root.kind(&new)?.is_none()
            && let Some(text) = told_anew(root, &old, link)?
        {
            let mode = root.mode(&old)?.unwrap_or(0o600);
            root.write(&new, text.as_bytes(), mode & 0o777)?;
            root.remove_file(&old)?;
            changed.push(new);
        }
    }
    Ok(changed)
}

/// A file with the link's new name; `None` if it says nothing of the link, knows the new name already, or is no text.
fn told_anew(root: &Root, file: &str, link: &str) -> Result<Option<String>, FileError> {
    // A link would be replaced, and what it leads to would not know.
    if root.kind(file)? != Some(Kind::File) {
        return Ok(None);
    }
    let Ok(Some(text)) = text(root, file) else {
        return Ok(None);
    };
    if text.contains(LINK) {
        return Ok(None);
    }
    // ifupdown makes VLANs by their names alone.
    let with_vlans = file.starts_with("etc/network/");
    let told = renamed(&text, link, with_vlans);
    Ok(Some(told).filter(|told| *told != text))
}

/// A text in which a link has its new name wherever the old one stands as a word, but in comments.
fn renamed(text: &str, link: &str, with_vlans: bool) -> String {
    let is_part = |letter: char| letter.is_ascii_alphanumeric() || "_-.@/".contains(letter);
    let goes_on = |letter: char| is_part(letter) && !(with_vlans && letter == '.');
    let mut told = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        if line.trim_start().starts_with(['#', ';']) {
            told.push_str(line);
            continue;
        }
        let mut done = 0;
        for (at, _) in line.match_indices(link) {
            let end = at + link.len();
            if line[..at].ends_with(is_part) || line[end..].starts_with(goes_on) {
                continue;
            }
            told.push_str(&line[done..at]);
            told.push_str(LINK);
            done = end;
        }
        told.push_str(&line[done..]);
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_renamed_as_a_word() {
        let interfaces = "# eth0\nauto eth0 eth01 eth0:1\niface eth0.5 inet static\n  up ip link set dev eth0 up\n";
        let told = "# eth0\nauto host0 eth01 host0:1\niface host0.5 inet static\n  up ip link set dev host0 up\n";
        assert_eq!(renamed(interfaces, "eth0", true), told);
        let netplan = "network:\n  ethernets:\n    eth0: {dhcp4: true}\n  vlans:\n    eth0.5: {id: 5, link: eth0}\n";
        let told = "network:\n  ethernets:\n    host0: {dhcp4: true}\n  vlans:\n    eth0.5: {id: 5, link: host0}\n";
        assert_eq!(renamed(netplan, "eth0", false), told);
        assert_eq!(
            renamed("Name=eth0\nName=br-eth0\n", "eth0", false),
            "Name=host0\nName=br-eth0\n"
        );
    }
}
