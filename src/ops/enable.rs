//! Starting at boot: the unit is wanted by machines.target, see systemd-nspawn(1) and machinectl(1).

use super::OpError;
use super::start::find_image;
use crate::machine::MachineName;
use crate::sys::bus::{Bus, BusError, classify, systemd1};

/// The target that starts machines at boot.
const TARGET: &str = "machines.target";

/// Whether anything changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// Links were made or removed.
    Yes,
    /// It was so already.
    No,
}

/// Makes machines start at boot, and machines.target too. One reload for all of them.
pub async fn enable(bus: &Bus, names: &[MachineName]) -> Result<Changed, OpError> {
    for name in names {
        find_image(bus, name).await?;
    }
    let mut units: Vec<String> = names.iter().map(MachineName::unit).collect();
    // Without the target in multi-user.target nothing starts at boot, whatever it wants.
    if !is_enabled(&bus.unit_file_state(TARGET).await?) {
        units.push(TARGET.to_owned());
    }
    let files: Vec<&str> = units.iter().map(String::as_str).collect();
    let manager = bus.manager().await?;
    let (_, changes) = manager
        .enable_unit_files(&files, false, false)
        .await
        .map_err(|error| explain(&error, "enable", names))?;
    settle(bus, !changes.is_empty()).await
}

/// Makes machines not start at boot. machines.target stays as it is: others may want it.
pub async fn disable(bus: &Bus, names: &[MachineName]) -> Result<Changed, OpError> {
    for name in names {
        // What was removed may still be enabled; only a name that nothing knows is an error.
        let known = is_enabled(&bus.unit_file_state(&name.unit()).await.unwrap_or_default());
        if !known {
            find_image(bus, name).await?;
        }
    }
    disable_units(bus, names).await
}

/// As [`disable`], of names that need no image any more.
pub(crate) async fn disable_units(bus: &Bus, names: &[MachineName]) -> Result<Changed, OpError> {
    let units: Vec<String> = names.iter().map(MachineName::unit).collect();
    let files: Vec<&str> = units.iter().map(String::as_str).collect();
    let changes = bus
        .manager()
        .await?
        .disable_unit_files(&files, false)
        .await
        .map_err(|error| explain(&error, "disable", names))?;
    settle(bus, !changes.is_empty()).await
}

/// Whether a `UnitFileState` means that the unit starts at boot.
#[must_use]
pub fn is_enabled(state: &str) -> bool {
    matches!(state, "enabled" | "enabled-runtime")
}

async fn settle(bus: &Bus, changed: bool) -> Result<Changed, OpError> {
    if !changed {
        return Ok(Changed::No);
    }
    let reloaded = bus.manager().await?.reload().await;
    reloaded.map_err(|error| classify(&error, systemd1::SERVICE, "reload systemd", ""))?;
    Ok(Changed::Yes)
}

fn explain(error: &zbus::Error, verb: &str, names: &[MachineName]) -> BusError {
    let list = names.iter().map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ");
    classify(error, systemd1::SERVICE, &format!("{verb} machine {list}"), "systemd-nspawn@.service")
}

#[cfg(test)]
mod tests {
    use super::is_enabled;

    #[test]
    fn only_enabled_is_enabled() {
        assert!(is_enabled("enabled") && is_enabled("enabled-runtime"));
        assert!(!["disabled", "masked", "static", "indirect", ""].iter().any(|state| is_enabled(state)));
    }
}
