//! What keeps packets from and to machines.

use std::fs;

use serde_json::Value;

use super::warning;
use crate::machine::Cancel;
use crate::machine::trouble::Trouble;
use crate::sys::netlink::interface_index;
use crate::sys::process::{Program, program_exists};

const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

pub(in crate::ops) fn look(running: &[String]) -> Vec<Trouble> {
    [forwarding(running), dropped()].into_iter().flatten().collect()
}

/// systemd-networkd turns it on for the link of a machine; others turn it off again.
fn forwarding(running: &[String]) -> Option<Trouble> {
    // Names of interfaces have 15 letters; longer ones are hashed.
    let link = running
        .iter()
        .map(|name| format!("ve-{name}"))
        .find(|link| link.len() <= 15 && interface_index(link).is_some())?;
    let text = fs::read_to_string(FORWARD).ok()?;
    (text.trim() == "0").then(|| {
        warning(
            "forwarding-off",
            "the host forwards no packets: machines reach nothing but it",
        )
        .seen(format!("{FORWARD} is 0, and there is {link}"))
        .hint("`sysctl net.ipv4.ip_forward=1`, and take what turns it off out of /etc/sysctl.d")
    })
}

/// Docker and others drop what is forwarded and not for them.
fn dropped() -> Option<Trouble> {
    if !nix::unistd::geteuid().is_root() || !program_exists("nft") {
        return None;
    }
    let asked = Program::new("nft")
        .args(["--json", "list", "chains"])
        .run(&Cancel::default());
    let rules: Value = serde_json::from_slice(&asked.ok()?.stdout).ok()?;
    let text = |chain: &Value, key: &str| chain[key].as_str().unwrap_or_default().to_owned();
    let chains = rules["nftables"].as_array()?.iter().map(|row| &row["chain"]);
    let chain = chains
        .filter(|chain| text(chain, "hook") == "forward" && text(chain, "policy") == "drop")
        .find(|chain| ["ip", "inet"].contains(&text(chain, "family").as_str()))?;
    let (family, table, name) = (text(chain, "family"), text(chain, "table"), text(chain, "name"));
    let mends = if table == "filter" && name == "FORWARD" {
        // Docker's own place for rules of others.
        "`iptables -I DOCKER-USER -i ve-+ -j ACCEPT` and `iptables -I DOCKER-USER -o ve-+ -j ACCEPT`, if it is Docker's"
            .to_owned()
    } else {
        format!("`nft insert rule {family} {table} {name} iifname \"ve-*\" accept`, and the same for oifname")
    };
    Some(
        warning(
            "forward-drop",
            "the firewall drops forwarded packets: machines reach nothing but the host, unless a rule lets them",
        )
        .seen(format!("chain {name} of table {family} {table} has the policy drop"))
        .hint(mends),
    )
}
