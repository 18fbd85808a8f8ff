//! Waiting until a machine meets a condition.
//!
//! It is looked at anew whenever systemd, machined or the kernel says that something about it has changed; only what none of
//! them tells is looked for again and again: see [`inside`].

mod inside;
mod watch;

use std::net::IpAddr;

use self::watch::{INTERVAL, Look, Watch};
use super::OpError;
use super::boot::{start_failed, wait_for_pid1};
use super::start::find_machine;
use crate::machine::condition::Condition;
use crate::machine::{MachineName, State};
use crate::sys::bus::{Bus, BusError};

/// What was found when the condition was met.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Met {
    /// The machine's addresses, if they were waited for.
    pub addresses: Option<Vec<IpAddr>>,
}

/// Waits until the machine meets the condition. One that does not run is waited for.
///
/// # Errors
/// [`OpError::NoImage`] if there is no such machine; [`OpError::Option`] if it stops after it was seen to run, or can never
/// meet the condition; [`OpError::Job`] if its start fails.
pub async fn wait_for(bus: &Bus, name: &MachineName, condition: &Condition) -> Result<Met, OpError> {
    find_machine(bus, name).await?;
    let mut watch = Watch::new(bus, name).await?;
    let (mut was_up, mut was_registered) = (false, false);
    let mut before = None;
    loop {
        let look = watch.look().await?;
        // A start may have failed before it was looked at.
        let before = before.get_or_insert_with(|| look.invocation.clone());
        was_up |= !look.invocation.is_empty() && look.invocation != *before;
        let met = match condition {
            Condition::Stopped => look.is_over,
            Condition::Frozen => look.state == State::Frozen,
            Condition::Running => look.state == State::Running && look.registered.is_some(),
            _ => false,
        };
        if met {
            if *condition == Condition::Running {
                // machined says so before the machine's own program is executed.
                wait_for_pid1(bus, name).await?;
            }
            return Ok(Met::default());
        }
        if look.is_over && was_up && *condition != Condition::Stopped {
            return Err(ended(bus, name, &look, was_registered).await);
        }
        was_up |= !look.is_over;
        was_registered |= look.registered.is_some();
        let met = if is_inside(condition) {
            wait_inside(bus, name, condition, &look, &mut watch).await?
        } else {
            None
        };
        match met {
            Some(met) => return Ok(met),
            None => watch.changed(&look).await?,
        }
    }
}

/// Whether the condition is one that a machine meets inside, while it runs.
fn is_inside(condition: &Condition) -> bool {
    matches!(
        condition,
        Condition::Booted | Condition::Address | Condition::Port(_) | Condition::Unit(_)
    )
}

/// Waits as long as the leader lives; `None` if it ended, or there is none.
async fn wait_inside(
    bus: &Bus,
    name: &MachineName,
    condition: &Condition,
    look: &Look,
    watch: &mut Watch<'_>,
) -> Result<Option<Met>, OpError> {
    let (Some(registered), Some(leader)) = (&look.registered, &look.leader) else {
        return Ok(None);
    };
    let end = leader
        .watch()
        .map_err(OpError::path("watch", format!("/proc/{}", leader.pid())))?;
    let wait = inside::wait_for(bus, name, condition, registered, leader);
    let mut wait = std::pin::pin!(wait);
    loop {
        tokio::select! {
            biased;
            _ = end.readable() => return Ok(None),
            met = &mut wait => match met {
                Err(_) if leader.is_ending() => return Ok(None),
                // machined or systemd is on its way up: they do not tell what changed meanwhile.
                Err(OpError::Bus(BusError::Unavailable { .. })) => {
                    tokio::time::sleep(INTERVAL).await;
                    watch.look().await?;
                    let again = inside::wait_for(bus, name, condition, registered, leader);
                    wait.set(again);
                }
                met => return met.map(Some),
            },
            // Taken, so that they do not pile up.
            changed = watch.changed(look) => changed?,
        }
    }
}

/// Why a machine is not waited for any longer.
async fn ended(bus: &Bus, name: &MachineName, look: &Look, was_registered: bool) -> OpError {
    if look.state == State::Failed && !was_registered {
        return start_failed(bus, name, &look.unit, "failed", None).await;
    }
    OpError::Option {
        message: format!("machine '{name}' stopped while it was waited for"),
        hint: format!("see `machinist status {name}`"),
    }
}
