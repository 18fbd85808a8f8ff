//! A guest's own end of the network: `host0` by DHCP, and names that resolve.

use std::net::IpAddr;

use super::enable::{available, disable, enable};
use super::{GuestNetwork, Init, exists, remove, text};
use crate::nspawn::document::Document;
use crate::nspawn::edit::Edit;
use crate::sys::files::{FileError, Kind, Root};

const NETWORKD: &str = "systemd-networkd.service";
const RESOLVED: &str = "systemd-resolved.service";
const STUB: &str = "../run/systemd/resolve/stub-resolv.conf";

/// What systemd ships as `80-container-host0.network`, for trees that lack it.
const HOST0: &str = "\
# Written by machinist: this distribution does not ship 80-container-host0.network.
[Match]
Kind=veth
Name=host0

[Network]
DHCP=yes
LinkLocalAddressing=yes
LLDP=yes
EmitLLDP=customer-bridge

[DHCP]
UseTimezone=yes
";

/// Makes the guest do its part for `network`.
pub(super) fn configure(
    root: &Root,
    init: &Init,
    network: GuestNetwork,
    notes: &mut Vec<String>,
) -> Result<(), FileError> {
    match (network, init) {
        (GuestNetwork::None, _) => Ok(()),
        (GuestNetwork::Host, _) => leave_to_host(root, init),
        (GuestNetwork::Link, Init::Systemd) if available(root, NETWORKD)? => by_networkd(root, notes),
        (GuestNetwork::Link, _) => by_interfaces(root, init, notes),
    }
}

/// In the host's network the guest may configure nothing, and its resolver would take the host's place at 127.0.0.53. A
/// resolv.conf that is a link is removed: systemd-nspawn then copies the host's, which it does not do over a link.
fn leave_to_host(root: &Root, init: &Init) -> Result<(), FileError> {
    if *init == Init::Systemd {
        disable(root, NETWORKD)?;
        disable(root, RESOLVED)?;
    }
    if root.kind("etc/resolv.conf")? == Some(Kind::Symlink) {
        root.remove_file("etc/resolv.conf")?;
    }
    Ok(())
}

fn by_networkd(root: &Root, notes: &mut Vec<String>) -> Result<(), FileError> {
    const FILE: &str = "systemd/network/80-container-host0.network";
    enable(root, NETWORKD)?;
    if !exists(root, &format!("usr/lib/{FILE}")) && !exists(root, &format!("lib/{FILE}")) {
        root.create_dir_all("etc/systemd/network", 0o755)?;
        root.write(format!("etc/{FILE}"), HOST0.as_bytes(), 0o644)?;
    }
    if available(root, RESOLVED)? {
        enable(root, RESOLVED)?;
        return root.symlink(STUB, "etc/resolv.conf");
    }
    if !exists(root, "etc/resolv.conf") {
        remove(root, "etc/resolv.conf")?;
        notes.push("it has no systemd-resolved and no /etc/resolv.conf: names will not resolve in it".to_owned());
    }
    Ok(())
}

/// ifupdown (Debian before networkd, Alpine, busybox) has one file for all.
fn by_interfaces(root: &Root, init: &Init, notes: &mut Vec<String>) -> Result<(), FileError> {
    const FILE: &str = "etc/network/interfaces";
    let has = |names: &[&str]| {
        names.iter().any(|name| {
            ["usr/sbin", "sbin", "usr/bin", "bin"]
                .iter()
                .any(|dir| exists(root, &format!("{dir}/{name}")))
        })
    };
    // A tree that brings up host0 by itself, as our busybox template does.
    if exists(root, "usr/share/machinist/host0") {
        return Ok(());
    }
    if !has(&["ifup"]) {
        notes.push("it has neither systemd-networkd nor ifupdown: 'host0' stays without an address".to_owned());
        return Ok(());
    }
    if !has(&["dhclient", "udhcpc", "dhcpcd", "pump"]) {
        notes.push("it has no DHCP client: 'host0' stays without an address".to_owned());
    }
    let mut interfaces = text(root, FILE)?.unwrap_or_else(|| "auto lo\niface lo inet loopback\n".to_owned());
    if !interfaces.split_whitespace().any(|word| word == "host0") {
        if !interfaces.ends_with('\n') {
            interfaces.push('\n');
        }
        interfaces.push_str("\nauto host0\niface host0 inet dhcp\n");
        root.create_dir_all("etc/network", 0o755)?;
        root.write(FILE, interfaces.as_bytes(), 0o644)?;
    }
    // Alpine does not enable it by itself. The link is what `rc-update add networking boot` makes.
    if *init != Init::Systemd && exists(root, "etc/init.d/networking") && exists(root, "etc/runlevels/boot") {
        root.symlink("/etc/init.d/networking", "etc/runlevels/boot/networking")?;
    }
    if *init == Init::Systemd && available(root, "networking.service")? {
        enable(root, "networking.service")?;
    }
    Ok(())
}

/// Has the guest ask these servers for names, whatever DHCP says.
pub(super) fn name_servers(
    root: &Root,
    init: &Init,
    network: GuestNetwork,
    servers: &[IpAddr],
    notes: &mut Vec<String>,
) -> Result<(), FileError> {
    const DIRECTORY: &str = "etc/systemd/resolved.conf.d";
    let servers: Vec<String> = servers.iter().map(IpAddr::to_string).collect();
    if *init == Init::Systemd && network == GuestNetwork::Link && available(root, RESOLVED)? {
        root.create_dir_all(DIRECTORY, 0o755)?;
        // Without the domain the link's own servers are asked as well.
        let text = format!("[Resolve]\nDNS={}\nDomains=~.\n", servers.join(" "));
        return root.write(format!("{DIRECTORY}/machinist.conf"), text.as_bytes(), 0o644);
    }
    let lines: Vec<String> = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    root.write("etc/resolv.conf", lines.concat().as_bytes(), 0o644)?;
    if network == GuestNetwork::Link {
        notes.push(
            "it has no systemd-resolved: its DHCP client may put other name servers into /etc/resolv.conf".to_owned(),
        );
    }
    Ok(())
}

/// Takes the hardware addresses out of a copy's settings, which only one machine may have, and tells of static addresses:
/// these were chosen, and only who chose them knows another.
pub(super) fn forget_addresses(root: &Root, notes: &mut Vec<String>) -> Result<(), FileError> {
    const NETWORKD_FILES: &str = "etc/systemd/network";
    const INTERFACES: &str = "etc/network/interfaces";
    let is_one = |name: &&str| [".network", ".link", ".netdev"].iter().any(|end| name.ends_with(end));
    let names = root.list(NETWORKD_FILES).unwrap_or_default();
    for name in names.iter().filter_map(|name| name.to_str()).filter(is_one) {
        let path = format!("{NETWORKD_FILES}/{name}");
        // What is no text of a sound size networkd does not read either.
        let Ok(Some(text)) = text(root, &path) else { continue };
        let mut document = Document::parse(text.as_bytes());
        let addresses = [("Network", "Address"), ("Address", "Address")];
        let fixed = addresses
            .iter()
            .any(|(section, key)| document.entries_of(section, key).any(|entry| !entry.value.is_empty()));
        if fixed {
            notes.push(format!("both have the static address in '/{path}': change one of them"));
        }
        let edits = ["Link", "NetDev"].map(|section| Edit::remove(section, "MACAddress", None));
        let changed = edits.iter().filter(|edit| document.apply(edit) == Ok(true)).count();
        if changed > 0 {
            root.write(&path, document.as_bytes(), 0o644)?;
        }
    }
    let Ok(Some(found)) = text(root, INTERFACES) else {
        return Ok(());
    };
    let first = |line: &str| line.split_whitespace().next().unwrap_or_default().to_owned();
    if found.lines().any(|line| first(line) == "address") {
        notes.push(format!(
            "both have the static address in '/{INTERFACES}': change one of them"
        ));
    }
    let kept: Vec<&str> = found.lines().filter(|line| first(line) != "hwaddress").collect();
    if kept.len() < found.lines().count() {
        root.write(INTERFACES, (kept.join("\n") + "\n").as_bytes(), 0o644)?;
    }
    Ok(())
}
