//! Waiting for a guest: that its PID 1 runs, that its system manager has finished booting.

use std::time::Duration;

use futures_util::StreamExt as _;

use super::OpError;
use super::diagnose::failed_job;
use crate::machine::MachineName;
use crate::sys::bus::{Bus, BusError, systemd1};
use crate::sys::guest::Leader;

/// How long after READY=1 systemd-nspawn's child may take to become PID 1's program.
const EXEC_PATIENCE: Duration = Duration::from_secs(5);

/// Waits until the leader runs the guest's own program instead of systemd-nspawn's preparations.
///
/// systemd-nspawn says READY=1 before that: an image without init fails after its start job has succeeded.
/// Returns the leader's command name; `None` if it cannot be seen.
pub async fn wait_for_pid1(bus: &Bus, name: &MachineName) -> Result<Option<String>, OpError> {
    wait_for_pid1_in(bus, name, name.unit()).await
}

/// The same for a machine that was started in this unit.
pub(super) async fn wait_for_pid1_in(
    bus: &Bus,
    name: &MachineName,
    mut unit: String,
) -> Result<Option<String>, OpError> {
    let deadline = tokio::time::Instant::now() + EXEC_PATIENCE;
    let mut pause = Duration::from_millis(1);
    let mut leader: Option<Leader> = None;
    loop {
        // machined may lag a little behind the unit. Once the leader is known, only the kernel is asked.
        if leader.is_none()
            && let Ok(registered) = bus.registered(name.as_str()).await
        {
            leader = Leader::open(registered.leader);
            unit = registered.unit;
        }
        match leader.as_ref().and_then(Leader::command_name) {
            Some(command) if !is_preparing(&command) => return Ok(Some(command)),
            Some(_) => {}
            // A leader that is gone has a unit that failed, or a successor.
            None if !bus.is_unit_up(&unit).await? => {
                return Err(start_failed(bus, name, &unit, "failed", None).await);
            }
            None => leader = None,
        }
        if tokio::time::Instant::now() >= deadline {
            return Ok(None);
        }
        // There is no signal for execve(2).
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

/// Whether a leader of that command name is still systemd-nspawn's, on its way to become the guest's PID 1.
pub(super) fn is_preparing(command: &str) -> bool {
    // The stub is what `--as-pid2` has as PID 1.
    command.starts_with("systemd-nspawn") || (command.starts_with("(sd-") && command != "(sd-stubinit)")
}

/// Waits until the guest's own systemd says that it has finished booting, through what systemd-nspawn passes on of
/// its sd_notify(3) status: "Container running: Ready." (254 and later), "… Startup finished in …" (before).
///
/// Other guests have booted once their PID 1 runs.
pub async fn wait_for_boot(bus: &Bus, name: &MachineName) -> Result<(), OpError> {
    if wait_for_pid1(bus, name)
        .await?
        .is_some_and(|command| command != "systemd")
    {
        return Ok(());
    }
    let unit = match bus.registered(name.as_str()).await {
        Ok(registered) => registered.unit,
        Err(_) => name.unit(),
    };
    // Only a service of type notify passes on what the guest says: not a scope, nor a shell that somebody sits at.
    let passes_on = unit.ends_with(".service")
        && bus.unit_properties(&unit, "Service", &["Type"]).await?.string("Type") == "notify";
    if !passes_on {
        return Ok(());
    }
    let mut changes = bus.unit_changes(&unit).await?;
    loop {
        let status = bus
            .unit_properties(&unit, "Service", &["StatusText"])
            .await?
            .string("StatusText");
        if has_booted(&status) {
            return Ok(());
        }
        if !bus.is_unit_up(&unit).await? {
            return Err(start_failed(bus, name, &unit, "failed", None).await);
        }
        if changes.next().await.is_none() {
            return Err(OpError::Bus(BusError::Unavailable {
                service: systemd1::SERVICE,
                reason: "the connection was closed".to_owned(),
            }));
        }
    }
}

fn has_booted(status: &str) -> bool {
    status
        .strip_prefix("Container running: ")
        .is_some_and(|guest| guest.starts_with("Ready") || guest.starts_with("Startup finished"))
}

pub(super) async fn start_failed(
    bus: &Bus,
    name: &MachineName,
    unit: &str,
    job_result: &str,
    former: Option<&str>,
) -> OpError {
    let diagnosis = Box::new(failed_job(bus, name.as_str(), unit, job_result, former).await);
    OpError::Job {
        verb: "start",
        name: name.to_string(),
        diagnosis,
    }
}

#[cfg(test)]
mod tests {
    use super::{has_booted, is_preparing};

    #[test]
    fn the_stub_is_a_pid_1() {
        for (command, preparing) in [
            ("systemd-nspawn", true),
            ("(sd-namespace)", true),
            ("(sd-stubinit)", false),
            ("init", false),
        ] {
            assert_eq!(is_preparing(command), preparing, "{command}");
        }
    }

    #[test]
    fn old_and_new_guests_say_it_differently() {
        assert!(has_booted("Container running: Ready."));
        assert!(has_booted("Container running: Startup finished in 812ms."));
        assert!(!has_booted("Container running."));
        assert!(!has_booted("Container running: Starting…"));
        assert!(!has_booted("Ready."));
    }
}
