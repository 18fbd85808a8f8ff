//! What a machine comes to meet while it runs: its boot, its network, its own units.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::Met;
use crate::machine::MachineName;
use crate::machine::condition::Condition;
use crate::machine::text::printable;
use crate::ops::OpError;
use crate::ops::boot::{wait_for_boot, wait_for_pid1};
use crate::sys::bus::machine1::Registered;
use crate::sys::bus::{Bus, BusError};
use crate::sys::enter::EnterError;
use crate::sys::enter::unit::{Came, wait_for_unit};
use crate::sys::guest::Leader;
use crate::sys::guest_network::{accepts, is_reachable, watch_addresses};
use crate::sys::machines::addresses_by_machined;

/// The first and the longest pause between two looks at what nobody tells.
const PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long the systemd of a machine may say nothing before it is given up.
const SILENCE: Duration = Duration::from_secs(60);

/// Pauses that double up to the longest.
struct Pause(Duration);

impl Pause {
    fn new() -> Self {
        Self(PAUSE)
    }

    async fn pause(&mut self) {
        sleep(self.0).await;
        self.0 = (self.0 * 2).min(LONGEST_PAUSE);
    }
}

/// Waits for a condition of the machine with this leader. Who calls sees to it that the leader lives.
pub(super) async fn wait_for(
    bus: &Bus,
    name: &MachineName,
    condition: &Condition,
    registered: &Registered,
    leader: &Leader,
) -> Result<Met, OpError> {
    if registered.class != "container" {
        let (verb, name) = ("look into", name.to_string());
        return Err(OpError::NotContainer { verb, name });
    }
    match condition {
        Condition::Address => {
            let addresses = wait_for_address(bus, name, leader).await?;
            let addresses = Some(addresses);
            return Ok(Met { addresses });
        }
        Condition::Port(port) => wait_for_port(leader, *port).await?,
        Condition::Unit(unit) => wait_for_own_unit(bus, name, registered, leader, unit).await?,
        _ => wait_for_boot(bus, name).await?,
    }
    Ok(Met::default())
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

async fn wait_for_address(bus: &Bus, name: &MachineName, leader: &Leader) -> Result<Vec<IpAddr>, OpError> {
    let usable = |addresses: &Vec<IpAddr>| addresses.iter().any(is_reachable);
    let shared = || OpError::Option {
        message: format!("machine '{name}' gets no address of its own: it has the host's network"),
        hint: "wait for a port or a unit of it: `--for port=N`, `--for unit=NAME`".to_owned(),
    };
    if leader.shares("net") == Some(true) {
        return Err(shared());
    }
    let mut told = is_root().then(|| watch_addresses(leader)).flatten();
    while let Some(addresses) = &mut told {
        match addresses.recv().await {
            Some(addresses) if usable(&addresses) => return Ok(addresses),
            Some(_) => {}
            None => told = None,
        }
    }
    // machined tells no changes to those who may not look for themselves.
    let mut pause = Pause::new();
    loop {
        match addresses_by_machined(bus, name.as_str()).await {
            Ok(addresses) if usable(&addresses) => return Ok(addresses),
            Ok(_) | Err(BusError::Unavailable { .. }) => {}
            Err(BusError::Failed { name, .. }) if name.ends_with(".NoPrivateNetworking") => return Err(shared()),
            Err(error) => return Err(error.into()),
        }
        pause.pause().await;
    }
}

/// There is no signal for listen(2).
async fn wait_for_port(leader: &Leader, port: u16) -> Result<(), OpError> {
    if !is_root() {
        return Err(OpError::NeedsRoot {
            verb: "waiting for a port, for which the machine's network is entered,",
        });
    }
    let mut pause = Pause::new();
    while !accepts(leader, port).await {
        pause.pause().await;
    }
    Ok(())
}

/// Asks until the machine's systemd answers: it may not listen yet, or execute itself anew.
async fn ask_for_unit(registered: &Registered, leader: &Leader, unit: &str) -> Result<Came, EnterError> {
    let mut pause = Pause::new();
    let mut silent_since = Instant::now();
    loop {
        let asked = Instant::now();
        match wait_for_unit(leader, &registered.unit, unit).await {
            Err(EnterError::Refused(_) | EnterError::Failed(_)) if silent_since.elapsed() < SILENCE => {}
            came => return came,
        }
        // It has answered, and hung up after that.
        if asked.elapsed() > LONGEST_PAUSE {
            (silent_since, pause) = (Instant::now(), Pause::new());
        }
        pause.pause().await;
    }
}

async fn wait_for_own_unit(
    bus: &Bus,
    name: &MachineName,
    registered: &Registered,
    leader: &Leader,
    unit: &str,
) -> Result<(), OpError> {
    if !is_root() {
        return Err(OpError::NeedsRoot {
            verb: "waiting for a unit of a machine",
        });
    }
    let refuse = |message: String, hint: String| Err(OpError::Option { message, hint });
    if wait_for_pid1(bus, name).await?.is_some_and(|init| init != "systemd") {
        return refuse(
            format!("machine '{name}' has no units: its init is not systemd"),
            "wait for a port of it: `--for port=N`".to_owned(),
        );
    }
    let came = loop {
        // Who enters a frozen machine stands still with it.
        let mut pause = Pause::new();
        while leader.is_frozen() {
            pause.pause().await;
        }
        match ask_for_unit(registered, leader, unit).await {
            Ok(came) => break came,
            // It was frozen meanwhile.
            Err(_) if leader.is_frozen() => {}
            Err(error) => {
                return refuse(
                    format!("cannot ask the systemd of machine '{name}': {error}"),
                    format!("see `machinist status {name}`"),
                );
            }
        }
    };
    let shown = printable(unit);
    match came {
        Came::Up => Ok(()),
        Came::Failed => refuse(
            format!("unit {shown} of machine '{name}' failed"),
            format!("see `machinist exec {name} -- systemctl status {shown}`"),
        ),
        Came::Unloadable(state) => refuse(
            format!(
                "unit {shown} of machine '{name}' cannot start: it is {}",
                state.replace('-', " ")
            ),
            format!("see `machinist exec {name} -- systemctl list-unit-files`"),
        ),
    }
}
