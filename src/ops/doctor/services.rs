//! What systemd says of the services that machines need.

use std::path::Path;

use super::{error, note, warning};
use crate::machine::MachineName;
use crate::machine::text::printable;
use crate::machine::trouble::Trouble;
use crate::ops::Places;
use crate::sys::autostart::Autostart;
use crate::sys::bus::{Bus, BusError};

const MACHINED: &str = "systemd-machined.service";
const NETWORKD: &str = "systemd-networkd.service";
const TEMPLATE: &str = "systemd-nspawn@.service";
const TARGET: &str = "machines.target";
/// What systemd-networkd gives the host's end of a machine's link.
const VE_NETWORK: &str = "80-container-ve.network";
/// See systemd.network(5).
const NETWORK_PATH: [&str; 4] = [
    "/etc/systemd/network",
    "/run/systemd/network",
    "/usr/local/lib/systemd/network",
    "/usr/lib/systemd/network",
];

pub(super) async fn look(bus: &Bus, places: &Places) -> Result<Vec<Trouble>, BusError> {
    let mut found = Vec::new();
    found.extend(machined(bus).await?);
    found.extend(template(bus).await);
    found.extend(networkd(bus).await?);
    found.extend(link_settings());
    found.extend(at_boot(bus).await?);
    found.extend(firewalld(bus).await?);
    found.extend(failed(bus).await?);
    found.extend(journal(places));
    Ok(found)
}

pub(in crate::ops) async fn machined(bus: &Bus) -> Result<Option<Trouble>, BusError> {
    let state = bus.unit_state(MACHINED).await?.unit.string("LoadState");
    Ok(match state.as_str() {
        "masked" => Some(
            error(
                "machined-masked",
                "systemd-machined is masked: no machine can be registered",
            )
            .hint(format!("`systemctl unmask {MACHINED}`")),
        ),
        "not-found" => {
            Some(error("machined-missing", "systemd-machined is not installed").hint("`apt install systemd-container`"))
        }
        _ => None,
    })
}

pub(in crate::ops) async fn template(bus: &Bus) -> Option<Trouble> {
    match bus.unit_file_state(TEMPLATE).await {
        Ok(state) if state.starts_with("masked") => Some(
            error("template-masked", format!("{TEMPLATE} is masked: no machine starts"))
                .hint(format!("`systemctl unmask {TEMPLATE}`")),
        ),
        Ok(_) => None,
        Err(_) => Some(
            error("template-missing", format!("there is no {TEMPLATE}: no machine starts"))
                .hint("`apt install systemd-container`"),
        ),
    }
}

pub(in crate::ops) async fn networkd(bus: &Bus) -> Result<Option<Trouble>, BusError> {
    let unit = bus.unit_state(NETWORKD).await?.unit;
    let (load, active) = (unit.string("LoadState"), unit.string("ActiveState"));
    let trouble = |what: &str| {
        warning(
            "networkd-off",
            format!("systemd-networkd {what}: machines with a network of their own get no address"),
        )
        .seen(format!("{NETWORKD} is {active}"))
    };
    Ok(match (load.as_str(), active.as_str()) {
        (_, "active" | "activating" | "reloading") => None,
        ("not-found", _) => Some(trouble("is not installed").hint("`apt install systemd-networkd`")),
        ("masked", _) => Some(trouble("is masked").hint(format!(
            "`systemctl unmask {NETWORKD}`, and `systemctl enable --now {NETWORKD}`"
        ))),
        _ => Some(trouble("does not run").hint(format!("`systemctl enable --now {NETWORKD}`"))),
    })
}

/// Without this file nobody gives the host's end of a machine's link an address.
pub(in crate::ops) fn link_settings() -> Option<Trouble> {
    let mut files = NETWORK_PATH
        .iter()
        .map(|directory| Path::new(directory).join(VE_NETWORK));
    let file = files.find(|path| path.symlink_metadata().is_ok());
    let trouble = |what: String| {
        warning(
            "network-file-off",
            format!("{what}: the host's ends of machines' links get no address"),
        )
    };
    match file {
        None => Some(trouble(format!("there is no {VE_NETWORK}")).hint("install systemd-networkd again")),
        Some(path) if path.canonicalize().is_ok_and(|path| path == Path::new("/dev/null")) => {
            let shown = path.display();
            Some(
                trouble(format!("{VE_NETWORK} is masked"))
                    .seen(format!("{shown} leads to /dev/null"))
                    .hint(format!("`rm {shown}`, and `networkctl reload`")),
            )
        }
        Some(_) => None,
    }
}

/// Machines that are enabled are wanted by a target that is to be enabled itself.
pub(in crate::ops) async fn at_boot(bus: &Bus) -> Result<Option<Trouble>, BusError> {
    let autostart = Autostart::read(&bus.unit_search_path().await?);
    let images = bus.images().await.unwrap_or_default();
    let names = images.iter().filter_map(|row| row.0.parse::<MachineName>().ok());
    let enabled: Vec<String> = names
        .filter(|name| autostart.is_enabled(&name.unit()))
        .map(|name| name.to_string())
        .collect();
    let state = bus.unit_file_state(TARGET).await.unwrap_or_default();
    if enabled.is_empty()
        || matches!(
            state.as_str(),
            "enabled" | "enabled-runtime" | "static" | "linked" | "alias"
        )
    {
        return Ok(None);
    }
    Ok(Some(
        error(
            "machines-target-off",
            format!("{TARGET} is {state}: no machine starts at boot"),
        )
        .seen(format!("enabled for that: {}", printable(&enabled.join(", "))))
        .hint(format!("`systemctl enable {TARGET}`")),
    ))
}

pub(in crate::ops) async fn firewalld(bus: &Bus) -> Result<Option<Trouble>, BusError> {
    let active = bus.unit_state("firewalld.service").await?.unit.string("ActiveState");
    Ok((active == "active").then(|| {
        warning(
            "firewalld",
            "firewalld runs: unless told otherwise, it keeps machines from getting addresses and reaching others",
        )
        .hint("`firewall-cmd --permanent --zone=trusted --add-interface=ve-+`, and `firewall-cmd --reload`")
    }))
}

/// Machines whose last run has failed.
async fn failed(bus: &Bus) -> Result<Vec<Trouble>, BusError> {
    let units = bus.template_units().await?.into_iter();
    let failed = units.filter(|(_, active)| active == "failed");
    Ok(failed
        .map(|(name, _)| {
            let name = printable(&name);
            warning("machine-failed", format!("machine '{name}' has failed"))
                .of(name.clone())
                .hint(format!("`machinist why {name}` shows why, and what mends it"))
        })
        .collect())
}

/// What machinist did, and why machines failed, is asked of the journal.
fn journal(places: &Places) -> Option<Trouble> {
    (!places.journal.is_dir()).then(|| {
        note(
            "journal-volatile",
            "the journal is lost at each boot, and with it `machinist history`",
        )
        .seen(format!("there is no {}", places.journal.display()))
        .hint(format!(
            "`mkdir {} && systemctl kill -s SIGUSR1 systemd-journald`",
            places.journal.display()
        ))
    })
}
