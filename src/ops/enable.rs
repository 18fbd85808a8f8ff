//! Starting at boot: the unit is wanted by machines.target, see systemd-nspawn(1) and machinectl(1).

use std::collections::BTreeMap;

use super::OpError;
use super::start::find_image;
use crate::machine::MachineName;
use crate::sys::bus::{Bus, BusError, InTime as _, classify, systemd1};

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

/// What came of each name.
pub type Outcomes = BTreeMap<MachineName, Result<Changed, OpError>>;

/// Makes machines start at boot, and machines.target too: one call and one reload for all of them. A name without an
/// image is an error of its own and does not stop the others.
pub async fn enable(bus: &Bus, names: &[MachineName]) -> Result<Outcomes, OpError> {
    let mut outcomes = Outcomes::new();
    let mut wanted = Vec::new();
    for name in names {
        let outcome = match find_image(bus, name).await {
            Ok(()) => match bus.unit_file_state(&name.unit()).await?.as_str() {
                "enabled" => Ok(Changed::No),
                // systemd would refuse all of them for this one.
                "masked" | "masked-runtime" => Err(OpError::Masked { unit: name.unit() }),
                // "enabled-runtime" is so until the next boot only.
                _ => {
                    wanted.push(name.unit());
                    Ok(Changed::Yes)
                }
            },
            Err(error) => Err(error),
        };
        outcomes.insert(name.clone(), outcome);
    }
    // Without the target in multi-user.target nothing starts at boot, whatever it wants.
    if bus.unit_file_state(TARGET).await? != "enabled" && outcomes.values().any(Result::is_ok) {
        wanted.push(TARGET.to_owned());
    }
    if !wanted.is_empty() {
        link(bus, &wanted, names).await?;
    }
    Ok(outcomes)
}

/// Makes machines not start at boot, likewise. machines.target stays as it is: others may want it.
pub async fn disable(bus: &Bus, names: &[MachineName]) -> Result<Outcomes, OpError> {
    let mut outcomes = Outcomes::new();
    let mut wanted = Vec::new();
    for name in names {
        // The image may be gone and the link still there: only a name that nothing knows is an error.
        let outcome = if is_enabled(&bus.unit_file_state(&name.unit()).await?) {
            wanted.push(name.clone());
            Ok(Changed::Yes)
        } else {
            find_image(bus, name).await.map(|()| Changed::No)
        };
        outcomes.insert(name.clone(), outcome);
    }
    if !wanted.is_empty() {
        disable_units(bus, &wanted).await?;
    }
    Ok(outcomes)
}

/// Makes the links of these machines, whether there is an image or not: one that is being removed is out of sight.
pub(crate) async fn enable_units(bus: &Bus, names: &[MachineName]) -> Result<(), OpError> {
    let units: Vec<String> = names.iter().map(MachineName::unit).collect();
    link(bus, &units, names).await
}

async fn link(bus: &Bus, units: &[String], names: &[MachineName]) -> Result<(), OpError> {
    let files: Vec<&str> = units.iter().map(String::as_str).collect();
    let enabled = bus
        .manager()
        .await?
        .enable_unit_files(&files, false, false)
        .in_time()
        .await;
    enabled.map_err(|error| explain(&error, "enable", names))?;
    reload(bus).await
}

/// Removes the links of these machines, whether they are there or not.
pub(crate) async fn disable_units(bus: &Bus, names: &[MachineName]) -> Result<(), OpError> {
    let units: Vec<String> = names.iter().map(MachineName::unit).collect();
    let files: Vec<&str> = units.iter().map(String::as_str).collect();
    // Those of `systemctl enable --runtime`, too.
    for runtime in [false, true] {
        let disabled = bus.manager().await?.disable_unit_files(&files, runtime).in_time().await;
        disabled.map_err(|error| explain(&error, "disable", names))?;
    }
    reload(bus).await
}

/// Whether a `UnitFileState` means that there are links to the unit.
#[must_use]
pub fn is_enabled(state: &str) -> bool {
    matches!(state, "enabled" | "enabled-runtime")
}

/// Has systemd read its unit files anew.
pub(crate) async fn reload(bus: &Bus) -> Result<(), OpError> {
    let reloaded = bus.manager().await?.reload().in_time().await;
    reloaded.map_err(|error| classify(&error, systemd1::SERVICE, "reload systemd", "").into())
}

fn explain(error: &zbus::Error, verb: &str, names: &[MachineName]) -> BusError {
    let list = names
        .iter()
        .map(|name| format!("'{name}'"))
        .collect::<Vec<_>>()
        .join(", ");
    classify(
        error,
        systemd1::SERVICE,
        &format!("{verb} machine {list}"),
        "systemd-nspawn@.service",
    )
}

#[cfg(test)]
mod tests {
    use super::is_enabled;

    #[test]
    fn only_enabled_is_enabled() {
        assert!(is_enabled("enabled") && is_enabled("enabled-runtime"));
        assert!(
            !["disabled", "masked", "static", "indirect", ""]
                .iter()
                .any(|state| is_enabled(state))
        );
    }
}
