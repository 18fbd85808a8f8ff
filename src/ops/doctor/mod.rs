//! What on this host keeps machines from working: one function for each cause, grouped by where it lies.

pub(super) mod images;
mod kernel;
pub(super) mod network;
pub(super) mod services;
pub(super) mod settings;

use serde::Serialize;

use super::survey::mount_of;
use super::{OpError, Places};
use crate::machine::Cancel;
use crate::machine::trouble::{Trouble, error, note, warning};
use crate::storage::for_directory;
use crate::sys::bus::Bus;

/// The host in a few words, and what is wrong with it, the worst first.
#[derive(Clone, Debug, Serialize)]
pub struct Checkup {
    /// The version of systemd.
    pub systemd: u32,
    /// The kernel's release.
    pub kernel: String,
    /// What is mounted where images lie, as mount(8) calls it; `None` if it cannot be told.
    pub filesystem: Option<String>,
    /// How images are copied there: "btrfs", "reflink" or "copy"; `None` without root.
    pub storage: Option<&'static str>,
    /// How many machines run.
    pub running: usize,
    /// What was found.
    pub troubles: Vec<Trouble>,
}

/// Looks at all that is known to go wrong. What may not be read without root is left out.
///
/// # Errors
/// Where systemd itself cannot be asked.
pub async fn examine(bus: &Bus, places: &Places, cancel: &Cancel) -> Result<Checkup, OpError> {
    let systemd = bus.systemd_version().await?;
    // Where machined is not there, that is what is told.
    let running: Vec<String> = bus
        .machines()
        .await
        .unwrap_or_default()
        .into_iter()
        .map(|row| row.0)
        .collect();
    let mut troubles = services::look(bus, places).await?;
    let (count, places, cancel) = (running.len(), places.clone(), cancel.clone());
    let look = move || {
        let mut found = kernel::look();
        found.extend(network::look(&running));
        found.extend(images::look(&places, &cancel));
        found.extend(settings::look(systemd, &places));
        let filesystem = mount_of(&places.machines).ok().map(|mount| mount.filesystem);
        let is_root = nix::unistd::geteuid().is_root();
        let storage = for_directory(&places.machines).ok().filter(|_| is_root);
        (found, filesystem, storage.map(|storage| storage.name()))
    };
    let looked = tokio::task::spawn_blocking(look).await;
    let (found, filesystem, storage) = looked.map_err(|error| OpError::Setting(error.to_string()))?;
    troubles.extend(found);
    troubles.sort_by_key(|trouble| trouble.severity);
    Ok(Checkup {
        systemd,
        kernel: kernel::release(),
        filesystem,
        storage,
        running: count,
        troubles,
    })
}
