//! Starting and stopping the units of linked machines, through systemd.

use crate::ops::OpError;
use crate::sys::bus::jobs::Jobs;
use crate::sys::bus::{Bus, BusError, classify, systemd1};

/// Starts units, one after the other.
///
/// # Errors
/// [`OpError::Option`] if one does not start.
pub async fn start(bus: &Bus, units: &[String]) -> Result<(), OpError> {
    let jobs = Jobs::subscribe(bus).await?;
    for unit in units {
        let job = bus.manager().await?.start_unit(unit, "replace").await;
        let job = job.map_err(|error| classify(&error, systemd1::SERVICE, &format!("start unit {unit}"), unit))?;
        ended_well(unit, "start", &jobs.wait(job.as_str()).await)?;
    }
    Ok(())
}

/// Stops units, one after the other; one that systemd does not know is down.
///
/// # Errors
/// [`OpError::Option`] if one does not stop.
pub async fn stop(bus: &Bus, units: &[String]) -> Result<(), OpError> {
    let jobs = Jobs::subscribe(bus).await?;
    for unit in units {
        let job = bus.manager().await?.stop_unit(unit, "replace").await;
        let job = match job.map_err(|error| classify(&error, systemd1::SERVICE, &format!("stop unit {unit}"), unit)) {
            Err(BusError::NoSuchUnit(_)) => continue,
            job => job?,
        };
        ended_well(unit, "stop", &jobs.wait(job.as_str()).await)?;
    }
    Ok(())
}

fn ended_well(unit: &str, verb: &str, result: &str) -> Result<(), OpError> {
    match result {
        "done" | "skipped" => Ok(()),
        result => Err(OpError::Option {
            message: format!("systemd could not {verb} unit {unit}: {result}"),
            hint: format!("see `systemctl status {unit}`"),
        }),
    }
}
