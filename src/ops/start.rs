//! Starting machines by their unit.

use std::path::PathBuf;
use std::time::Duration;

use super::OpError;
use super::boot::{start_failed, wait_for_boot, wait_for_pid1};
use crate::machine::MachineName;
use crate::sys::bus::jobs::{Goal, Jobs};
use crate::sys::bus::machine1::Registered;
use crate::sys::bus::{Bus, BusError, InTime as _, classify, machine1, systemd1};
use crate::sys::quirks::{Quirk, has};

/// How `start` waits.
#[derive(Clone, Copy, Debug)]
pub struct StartOptions {
    /// Also wait for the guest's own boot.
    pub wait: bool,
    /// For how long at most, the whole of it.
    pub timeout: Duration,
}

impl Default for StartOptions {
    fn default() -> Self {
        Self {
            wait: false,
            timeout: Duration::from_secs(90),
        }
    }
}

/// What `start` found and did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Started {
    /// It runs now.
    Now,
    /// It ran before.
    Already,
}

/// Whether a start would have something to do.
///
/// # Errors
/// As [`start`], before anything is done.
pub async fn is_to_start(bus: &Bus, name: &MachineName) -> Result<bool, OpError> {
    // Registered by whatever: its unit, `systemd-nspawn` in a terminal, another manager.
    match bus.registered(name.as_str()).await {
        // One whose unit is on its way down, or has just got there, is to be started again after that; machined notices
        // a little later.
        Ok(registered) if registered.state != "closing" && bus.is_unit_staying(&registered.unit).await? => {
            return Ok(false);
        }
        Ok(_) | Err(BusError::NoSuchMachine(_)) => {}
        Err(error) => return Err(error.into()),
    }
    find_image_or_drop_in(bus, name).await?;
    Ok(true)
}

/// Starts a machine and waits for its job, and as `options` say for its boot.
///
/// # Errors
/// [`OpError::NoImage`], [`OpError::Job`] with the cause from the journal, [`OpError::TimedOut`], [`OpError::Bus`].
pub async fn start(bus: &Bus, jobs: &Jobs, name: &MachineName, options: StartOptions) -> Result<Started, OpError> {
    let work = async {
        let started = start_unit(bus, jobs, name).await?;
        if options.wait {
            wait_for_boot(bus, name).await?;
        }
        Ok(started)
    };
    tokio::time::timeout(options.timeout, work).await.unwrap_or_else(|_| {
        let state = if options.wait {
            "has not finished booting"
        } else {
            "has not started"
        };
        let hint = format!("see `machinist status {name}`, or wait longer with --timeout");
        Err(OpError::TimedOut {
            name: name.to_string(),
            state,
            after: options.timeout,
            hint,
        })
    })
}

async fn start_unit(bus: &Bus, jobs: &Jobs, name: &MachineName) -> Result<Started, OpError> {
    let unit = name.unit();
    if !is_to_start(bus, name).await? {
        return Ok(Started::Already);
    }
    clear_stale_mount(bus, name).await?;
    let former = bus.former_invocation(&unit).await?;
    let doing = format!("start machine '{name}'");
    let job = bus
        .manager()
        .await?
        .start_unit(&unit, "replace")
        .in_time()
        .await
        .map_err(|error| match classify(&error, systemd1::SERVICE, &doing, &unit) {
            BusError::NoSuchUnit(_) => no_template().into(),
            BusError::Failed { name, .. } if name == "org.freedesktop.systemd1.UnitMasked" => {
                OpError::Masked { unit: unit.clone() }
            }
            other => OpError::from(other),
        })?;
    match jobs.wait(job.as_str(), &unit, Goal::Up).await.as_str() {
        "done" => {}
        result => return Err(start_failed(bus, name, &unit, result, former.as_deref()).await),
    }
    wait_for_pid1(bus, name).await?;
    Ok(Started::Now)
}

/// Only a unit that an administrator changed may run from somewhere else than an image.
pub(crate) async fn find_image_or_drop_in(bus: &Bus, name: &MachineName) -> Result<(), OpError> {
    let Err(missing) = find_image(bus, name).await else {
        return Ok(());
    };
    if !matches!(missing, OpError::NoImage { .. }) {
        return Err(missing);
    }
    let unit = bus.unit_state(&name.unit()).await?.unit;
    if unit.string("LoadState") == "not-found" {
        return Err(no_template().into());
    }
    if unit.strings("DropInPaths").is_empty() {
        Err(missing)
    } else {
        Ok(())
    }
}

fn no_template() -> BusError {
    let reason = "there is no unit systemd-nspawn@.service".to_owned();
    BusError::Unavailable {
        service: machine1::SERVICE,
        reason,
    }
}

/// Whether there is anything of that name: a running machine, an image, or a unit that failed.
pub(crate) async fn find_machine(bus: &Bus, name: &MachineName) -> Result<(), OpError> {
    match bus.registered(name.as_str()).await {
        Ok(_) => return Ok(()),
        Err(BusError::NoSuchMachine(_)) => {}
        Err(error) => return Err(error.into()),
    }
    match find_image(bus, name).await {
        Err(OpError::NoImage { .. }) if bus.unit_state(&name.unit()).await?.unit.string("ActiveState") == "failed" => {
            Ok(())
        }
        found => found,
    }
}

/// What machined knows of a machine that runs.
///
/// # Errors
/// [`OpError::NotRunning`] if there is an image only, [`OpError::NoImage`] if there is none.
pub(crate) async fn find_running(bus: &Bus, name: &MachineName) -> Result<Registered, OpError> {
    match bus.registered(name.as_str()).await {
        Err(BusError::NoSuchMachine(_)) => {
            find_image(bus, name).await?;
            Err(OpError::NotRunning { name: name.to_string() })
        }
        registered => Ok(registered?),
    }
}

/// Whether machined finds an image of that name.
pub(crate) async fn find_image(bus: &Bus, name: &MachineName) -> Result<(), OpError> {
    let found = bus.machined().await?.get_image(name.as_str()).await;
    match found.map_err(|error| classify(&error, machine1::SERVICE, "look up images", name.as_str())) {
        Ok(_) => Ok(()),
        Err(BusError::NoSuchImage(_)) => Err(OpError::NoImage { name: name.to_string() }),
        Err(error) => Err(error.into()),
    }
}

/// Unmounts what a killed supervisor left behind and what would make the start fail: see [`Quirk::StaleUnixExport`].
pub(super) async fn clear_stale_mount(bus: &Bus, name: &MachineName) -> Result<(), OpError> {
    let directory = PathBuf::from("/run/systemd/nspawn");
    let path = if has(bus.systemd_version().await?, Quirk::StaleUnixExport) {
        directory.join("unix-export").join(name.as_str())
    } else {
        // machined unmounts it, but not before the machine is known to have ended.
        directory.join(name.as_str()).join("unix-export")
    };
    // Nothing there is the rule, and costs one look.
    if !path.exists() || !is_mount_point(&path) || !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    // A machine on its way up has mounted it, and is not registered yet.
    for unit in [name.unit(), super::run::unit_of(name)] {
        if bus.is_unit_up(&unit).await? {
            return Ok(());
        }
    }
    let detach = nix::mount::MntFlags::MNT_DETACH | nix::mount::MntFlags::UMOUNT_NOFOLLOW;
    match nix::mount::umount2(&path, detach) {
        // Or somebody was quicker.
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {
            // As systemd-nspawn does; one that cannot be removed harms nobody.
            let _ = std::fs::remove_dir(&path);
            Ok(())
        }
        Err(errno) => Err(OpError::path("unmount", &path)(errno.into())),
    }
}

/// Whether something is mounted there, by comparing mount ids with the parent's.
fn is_mount_point(path: &std::path::Path) -> bool {
    use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
    let id = |path: &std::path::Path| {
        statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::MNT_ID)
            .ok()
            .map(|stat| stat.stx_mnt_id)
    };
    match (id(path), path.parent().and_then(id)) {
        (Some(own), Some(above)) => own != above,
        _ => false,
    }
}
