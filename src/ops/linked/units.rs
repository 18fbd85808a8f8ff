//! Starting and stopping the units of linked machines, through systemd.

use std::time::Duration;

use crate::ops::OpError;
use crate::ops::enable::reload;
use crate::ops::needed::why_not_started;
use crate::sys::bus::jobs::{Goal, Jobs};
use crate::sys::bus::{Bus, BusError, InTime as _, classify, systemd1};

/// Has systemd read anew what there is, if it knows any of these units already. Such a one is stopped: what it has mounted
/// is what another file of that name said.
pub async fn read_new(bus: &Bus, units: &[String]) -> Result<(), OpError> {
    let mut known = Vec::new();
    for unit in units {
        if bus.former_invocation(unit).await?.is_some() {
            known.push(unit.clone());
        }
    }
    if known.is_empty() {
        return Ok(());
    }
    stop(bus, &known).await?;
    reload(bus).await
}

/// Starts units, one after the other.
///
/// # Errors
/// [`OpError::Needed`] with the reason if one does not start.
pub async fn start(bus: &Bus, units: &[String]) -> Result<(), OpError> {
    let jobs = Jobs::subscribe(bus).await?;
    for unit in units {
        let job = bus.manager().await?.start_unit(unit, "replace").in_time().await;
        let job = job.map_err(|error| classify(&error, systemd1::SERVICE, &format!("start unit {unit}"), unit))?;
        let result = jobs.wait(job.as_str(), unit, Goal::Up).await;
        if let Err(error) = ended_well(unit, "start", &result) {
            return Err(match why_not_started(bus, unit, &result).await? {
                Some(diagnosis) => OpError::Needed {
                    unit: unit.clone(),
                    diagnosis: Box::new(diagnosis),
                },
                None => error,
            });
        }
    }
    Ok(())
}

/// How often a unit is stopped that does not stop, and how long it is waited between: what is mounted is busy for a moment
/// whenever somebody looks at images, as machined does.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(100);

/// Stops units, one after the other; one that systemd does not know is down.
///
/// # Errors
/// [`OpError::Option`] if one does not stop.
pub async fn stop(bus: &Bus, units: &[String]) -> Result<(), OpError> {
    let jobs = Jobs::subscribe(bus).await?;
    for unit in units {
        let mut tries = 1;
        loop {
            let job = bus.manager().await?.stop_unit(unit, "replace").in_time().await;
            let job = match job.map_err(|error| classify(&error, systemd1::SERVICE, &format!("stop unit {unit}"), unit))
            {
                Err(BusError::NoSuchUnit(_)) => break,
                job => job?,
            };
            match ended_well(unit, "stop", &jobs.wait(job.as_str(), unit, Goal::Down).await) {
                Err(_) if tries < TRIES => tries += 1,
                result => break result?,
            }
            tokio::time::sleep(PAUSE).await;
        }
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
