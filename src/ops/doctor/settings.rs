//! What machines' settings say that systemd does not heed.

use std::path::Path;

use super::{note, warning};
use crate::machine::MachineName;
use crate::machine::text::printable;
use crate::machine::trouble::Trouble;
use crate::nspawn::check::{Finding, Severity};
use crate::nspawn::document::Document;
use crate::nspawn::schema::{KEYS, NEWEST_SYSTEMD, OLDEST_SYSTEMD};
use crate::ops::Places;
use crate::ops::config::files::{SettingsFile, all_names, of_machine};
use crate::ops::config::findings::{Viewpoint, findings};
use crate::ops::config::users::HostUsers;
use crate::sys::files::shown;

pub(super) fn look(systemd: u32, places: &Places) -> Vec<Trouble> {
    let users = HostUsers::default();
    let machines = all_names(places).into_iter();
    let of_machines = machines.filter_map(|name| wrong(&name, systemd, &users, places));
    of_machines.chain(version(systemd)).collect()
}

/// The errors of the file that is read for a machine, and one that is not.
fn wrong(name: &MachineName, systemd: u32, users: &HostUsers, places: &Places) -> Option<Trouble> {
    let files = of_machine(name, places);
    let (file, others) = files.split_first()?;
    let check = format!("`machinist config check {name}`");
    if let Some(hidden) = others.first() {
        let trouble = warning(
            "settings-hidden",
            format!("a file of settings for machine '{name}' is not read"),
        );
        let seen = format!("systemd finds '{}' before '{}'", shown(&file.path), shown(&hidden.path));
        return Some(trouble.of(name.as_str()).seen(seen).hint("remove one of the two"));
    }
    let errors: Vec<Finding> = found_in(file, name, systemd, users, places)
        .into_iter()
        .filter(|finding| finding.severity == Severity::Error)
        .collect();
    let first = errors.first()?;
    let (code, what) = if file.trusted {
        ("settings-wrong", "does not heed")
    } else {
        ("settings-untrusted", "does not trust")
    };
    let mut trouble = warning(code, format!("systemd {what} some settings of machine '{name}'"));
    trouble = trouble.of(name.as_str()).seen(place(&file.path, first));
    if errors.len() > 1 {
        trouble = trouble.seen(format!("and {} more", errors.len() - 1));
    }
    Some(trouble.hint(format!("{check} shows the lines, and what to do")))
}

fn found_in(file: &SettingsFile, name: &MachineName, systemd: u32, users: &HostUsers, places: &Places) -> Vec<Finding> {
    let Ok(bytes) = file.read() else { return Vec::new() };
    let view = Viewpoint {
        systemd,
        trusted: file.trusted,
        machine: Some(name),
        on_this_host: Some(users),
    };
    findings(&Document::from_bytes(bytes), view, places)
}

pub(in crate::ops) fn place(path: &Path, finding: &Finding) -> String {
    let line = finding
        .place
        .as_ref()
        .map_or_else(String::new, |place| format!(":{}", place.line));
    format!("{}{line}: {}", shown(path), printable(&finding.message))
}

/// What this systemd does not know yet.
fn version(systemd: u32) -> Option<Trouble> {
    if systemd < OLDEST_SYSTEMD {
        let trouble = super::error(
            "systemd-too-old",
            format!("systemd {systemd} is older than {OLDEST_SYSTEMD}"),
        );
        return Some(trouble.hint("upgrade the host"));
    }
    let newer: Vec<String> = KEYS
        .iter()
        .filter(|key| !key.known_to(systemd))
        .map(|key| format!("{} ({})", key.path(), key.since))
        .collect();
    (!newer.is_empty()).then(|| {
        note(
            "systemd-older",
            format!("systemd {systemd} does not know some settings of {NEWEST_SYSTEMD}"),
        )
        .seen(newer.join(", "))
    })
}
