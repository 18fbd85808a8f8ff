//! How the machine's own systemd is: asked at its private socket, see [`super::transient`]. What it says is hostile.

use zbus::{OwnedObjectPath, OwnedVariant};

use super::EnterError;
use super::transient::{MANAGER, MANAGER_PATH, SERVICE, from_bus};
use super::unit::connect;
use crate::sys::bus::systemd1::UnitRow;
use crate::sys::guest::Leader;

/// What gives the links of a machine their addresses; the first is what images of today have.
const NETWORK: [&str; 6] = [
    "systemd-networkd.service",
    "NetworkManager.service",
    "networking.service",
    "dhcpcd.service",
    "connman.service",
    "wicked.service",
];

/// How long the name of a unit can be.
const NAME_MAX: usize = 255;

/// What it says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// `SystemState`: "running", "starting", "degraded" …
    pub state: String,
    /// Units that have failed.
    pub failed: Vec<String>,
    /// Units with a job that runs, and does not wait for another.
    pub running: Vec<String>,
    /// Whether something is active that gives links their addresses.
    pub has_network: bool,
}

/// A row of `ListJobs`: number, unit, type, state, and two paths.
type JobRow = (u32, String, String, String, OwnedObjectPath, OwnedObjectPath);

/// A name as long as systemd lets one be.
fn short(name: &str) -> String {
    name.chars().take(NAME_MAX).collect()
}

/// Asks it.
///
/// # Errors
/// [`EnterError::Refused`] if no systemd listens in the machine; any other if it hangs up.
pub async fn health(leader: &Leader, machine_unit: &str) -> Result<Health, EnterError> {
    // Signals of no unit are heard.
    let bus = connect(leader, machine_unit, MANAGER_PATH).await?;
    let failed = |error: zbus::Error| from_bus(&error);
    let units = async |states: &[&str], names: &[&str]| {
        let arguments = (states, names);
        let reply = bus.call_method(
            Some(SERVICE),
            MANAGER_PATH,
            Some(MANAGER),
            "ListUnitsByPatterns",
            &arguments,
        );
        let rows = reply.await?.body().deserialize::<Vec<UnitRow>>()?;
        Ok::<_, zbus::Error>(rows)
    };
    let properties = Some("org.freedesktop.DBus.Properties");
    let state = bus.call_method(
        Some(SERVICE),
        MANAGER_PATH,
        properties,
        "Get",
        &(MANAGER, "SystemState"),
    );
    let state = state
        .await
        .map_err(failed)?
        .body()
        .deserialize::<OwnedVariant>()
        .map_err(failed)?;
    let jobs = bus.call_method(Some(SERVICE), MANAGER_PATH, Some(MANAGER), "ListJobs", &());
    let jobs = jobs
        .await
        .map_err(failed)?
        .body()
        .deserialize::<Vec<JobRow>>()
        .map_err(failed)?;
    let broken = units(&["failed"], &[]).await.map_err(failed)?;
    let network = units(&["active", "activating", "reloading"], &NETWORK)
        .await
        .map_err(failed)?;
    Ok(Health {
        state: String::try_from(state).unwrap_or_default(),
        failed: broken.into_iter().map(|row| short(&row.0)).collect(),
        running: jobs
            .into_iter()
            .filter(|job| job.3 == "running")
            .map(|job| short(&job.1))
            .collect(),
        has_network: !network.is_empty(),
    })
}
