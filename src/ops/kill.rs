//! Signals to the processes of machines.

use super::OpError;
use super::start::find_running;
use crate::machine::MachineName;
use crate::machine::signal::Signal;
use crate::sys::bus::Bus;
use crate::sys::guest::Leader;

/// When a signal has its effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signalled {
    /// At once.
    Now,
    /// The machine is frozen: not before it is thawed.
    WhenThawed,
}

/// Sends a signal to `whom` of a machine: "leader" or "all".
pub async fn kill(bus: &Bus, name: &MachineName, whom: &str, signal: Signal) -> Result<Signalled, OpError> {
    let registered = find_running(bus, name).await?;
    let frozen = Leader::open(registered.leader).is_some_and(|leader| leader.is_frozen());
    bus.kill_machine(name.as_str(), whom, signal.number()).await?;
    // What is frozen can be killed, and nothing else.
    let waits = frozen && signal != Signal::KILL;
    Ok(if waits { Signalled::WhenThawed } else { Signalled::Now })
}
