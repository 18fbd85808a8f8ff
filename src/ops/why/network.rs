//! Whether a machine that runs can be reached, and why not: its addresses, the two ends of its link, what the host does for
//! it, and what does it inside.

use std::fs;
use std::net::IpAddr;

use super::inside::Inside;
use super::settings::Checked;
use super::{Facts, error, note, warning};
use crate::machine::Seen;
use crate::machine::trouble::{Severity, Trouble};
use crate::ops::OpError;
use crate::ops::doctor::{network, services};
use crate::sys::guest::Leader;
use crate::sys::guest_network::is_reachable;
use crate::sys::machines::addresses_of;
use crate::sys::netlink::interface_index;

/// How long a machine may take to get an address, in µs.
const SOON: u64 = 15_000_000;
/// What the kernel makes in each network namespace of its own accord.
const NO_LINKS: [&str; 11] = [
    "lo", "sit0", "tunl0", "gre0", "gretap0", "erspan0", "ip6tnl0", "ip6gre0", "ip_vti0", "ip6_vti0", "dummy0",
];
/// What systemd-nspawn calls the machine's end of its link.
const LINK: &str = "host0";

/// The addresses of a machine.
#[derive(Clone, Debug)]
pub(super) enum Addresses {
    /// It has the host's network.
    Hosts,
    /// Its own.
    Own(Vec<IpAddr>),
}

impl Addresses {
    /// Those that others can reach.
    pub(super) fn reachable(self) -> Vec<String> {
        match self {
            Self::Hosts => Vec::new(),
            Self::Own(list) => list
                .iter()
                .filter(|address| is_reachable(address))
                .map(ToString::to_string)
                .collect(),
        }
    }
}

/// Reads them; `None` if they cannot be told.
pub(super) async fn addresses(facts: &Facts<'_>) -> Option<Addresses> {
    let registered = facts.registered.as_ref()?;
    if registered.class != "container" {
        return None;
    }
    if facts.leader.as_ref().and_then(|leader| leader.shares("net")) == Some(true) {
        return Some(Addresses::Hosts);
    }
    match addresses_of(facts.bus, &[registered]).await.into_iter().next() {
        Some(Seen::Value(list)) => Some(Addresses::Own(list)),
        _ => None,
    }
}

/// Why it has none that others can reach; if it has, what on the host keeps it from reaching others.
pub(super) async fn look(
    facts: &Facts<'_>,
    addresses: Option<&Addresses>,
    inside: Option<&Inside>,
) -> Result<Vec<Trouble>, OpError> {
    let Some(Addresses::Own(list)) = addresses else {
        return Ok(Vec::new());
    };
    let of_host = {
        let running = vec![facts.name.to_string()];
        let look = tokio::task::spawn_blocking(move || network::look(&running));
        look.await.unwrap_or_default()
    };
    let interfaces = facts.leader.as_ref().and_then(Leader::interfaces);
    let has = |wanted: fn(&String) -> bool| interfaces.as_ref().is_none_or(|all| all.iter().any(wanted));
    if list.iter().any(is_reachable) {
        // Only what comes by the host's own link is forwarded by it.
        return Ok(if has(|name| name == LINK) { of_host } else { Vec::new() });
    }
    if !has(|name| !NO_LINKS.contains(&name.as_str())) {
        return Ok(vec![no_link(facts).await]);
    }
    let mut found = Vec::new();
    // Whoever is on the bridge answers there.
    let is_bridged = interface_index(&format!("vb-{}", facts.name)).is_some();
    if has(|name| name == LINK) && !is_bridged {
        found.extend(services::networkd(facts.bus).await?);
        found.extend(services::link_settings());
        found.extend(unmanaged(facts));
        found.extend(services::firewalld(facts.bus).await?);
        found.extend(of_host.into_iter().filter(|trouble| trouble.code == "forwarding-off"));
    }
    for trouble in &mut found {
        trouble.severity = Severity::Error;
    }
    found.truncate(1);
    let own = no_address(facts, list, inside, !found.is_empty());
    found.extend(own);
    Ok(found)
}

/// Nothing leads out of its network.
async fn no_link(facts: &Facts<'_>) -> Trouble {
    let name = facts.name;
    let trouble = error("no-link", "it has a network of its own, and no link to anywhere");
    let checked = Checked::of(facts).await;
    let seen = checked.as_ref().and_then(|checked| checked.seen("host0-dropped"));
    let trouble = trouble.seen(seen.unwrap_or_else(|| "its only network interface is 'lo'".to_owned()));
    trouble.hint(format!(
        "`machinist config set {name} Network.VirtualEthernet=yes`, and `machinist restart {name}`"
    ))
}

/// What systemd-networkd says of the host's end, see sd-network.
fn unmanaged(facts: &Facts<'_>) -> Option<Trouble> {
    let link = format!("ve-{}", facts.name);
    // Longer names are hashed.
    let index = (link.len() <= 15).then(|| interface_index(&link)).flatten()?;
    let path = format!("/run/systemd/netif/links/{index}");
    let state = fs::read_to_string(&path).ok()?;
    let line = state.lines().find(|line| line.starts_with("ADMIN_STATE="))?;
    (line == "ADMIN_STATE=unmanaged").then(|| {
        error(
            "link-unmanaged",
            format!("systemd-networkd leaves '{link}' alone, the host's end of its link"),
        )
        .seen(format!("{path}: {line}"))
        .hint(format!(
            "see `networkctl status {link}` for which file says so; `networkctl reload` after it is mended"
        ))
    })
}

/// What is to be done inside, where nothing on the host is to blame.
fn no_address(facts: &Facts<'_>, list: &[IpAddr], inside: Option<&Inside>, explained: bool) -> Option<Trouble> {
    if explained {
        return None;
    }
    let name = facts.name;
    let shown: Vec<String> = list.iter().map(ToString::to_string).collect();
    let seen = if shown.is_empty() {
        "it has no address at all".to_owned()
    } else {
        format!("it has only {}", shown.join(", "))
    };
    let since = facts.registered.as_ref().and_then(|registered| registered.since);
    let is_young = since.is_some_and(|since| super::now().saturating_sub(since) < SOON);
    let has_network = inside.is_none_or(|inside| inside.has_network);
    let alone = list
        .iter()
        .any(|address| matches!(address, IpAddr::V4(address) if address.is_link_local()));
    Some(if !has_network {
        error(
            "guest-network-off",
            "it has no address: nothing in it sets up its network",
        )
        .seen("its systemd runs neither systemd-networkd nor another of its kind")
        .seen(seen)
        .hint(format!(
            "`machinist exec {name} -- systemctl enable --now systemd-networkd`"
        ))
    } else if is_young {
        note("no-address-yet", "it has just been started, and has no address yet")
            .seen(seen)
            .hint(format!("`machinist wait --for address {name}`"))
    } else if alone {
        warning(
            "link-local-only",
            "it has asked for an address, and nobody has given it one",
        )
        .seen(seen)
        .hint("see `networkctl status -a` and the firewall for who answers DHCP: UDP ports 67 and 68")
    } else {
        let how = if inside.is_some() {
            "networkctl status"
        } else {
            "ip addr"
        };
        error("no-address", "it has no address that others can reach")
            .seen(seen)
            .hint(format!(
                "see `machinist exec {name} -- {how}`, and give '{LINK}' one by DHCP"
            ))
    })
}
