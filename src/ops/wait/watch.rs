//! A machine as it is now, and when to look again.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use tokio::io::unix::AsyncFd;
use tokio::time::sleep;

use crate::machine::{MachineName, State};
use crate::ops::OpError;
use crate::sys::bus::machine1::{Registered, SERVICE as MACHINED};
use crate::sys::bus::{Bus, BusError, systemd1};
use crate::sys::guest::Leader;
use crate::sys::inspect::state_of;

/// How long machined or systemd may be away: they are started anew when packages are upgraded.
const AWAY: Duration = Duration::from_secs(10);
/// How often it is looked again where nothing is told.
pub(super) const INTERVAL: Duration = Duration::from_millis(100);

/// What a machine is at one moment.
#[derive(Debug)]
pub(super) struct Look {
    /// What machined knows.
    pub(super) registered: Option<Registered>,
    /// Its leader, if that lives.
    pub(super) leader: Option<Leader>,
    /// The unit that it runs in, ran in last, or would run in.
    pub(super) unit: String,
    /// The unit's run, or its last one; empty if systemd knows of none.
    pub(super) invocation: String,
    pub(super) state: State,
    /// It is down and stays so: not between the two halves of a restart.
    pub(super) is_over: bool,
}

/// All that tells of changes of a machine.
pub(super) struct Watch<'a> {
    bus: &'a Bus,
    name: &'a MachineName,
    machined: BoxStream<'static, ()>,
    unit: String,
    unit_changes: BoxStream<'static, ()>,
    /// Of the leader of this number.
    freezer: Option<(u32, AsyncFd<OwnedFd>)>,
}

impl<'a> Watch<'a> {
    pub(super) async fn new(bus: &'a Bus, name: &'a MachineName) -> Result<Self, OpError> {
        bus.subscribe().await?;
        let unit = name.unit();
        Ok(Self {
            machined: bus.machine_changes(name.as_str()).await?,
            unit_changes: bus.unit_changes(&unit).await?.map(drop).boxed(),
            bus,
            name,
            unit,
            freezer: None,
        })
    }

    /// Looks at the machine. What changes after this is told by [`Watch::changed`].
    pub(super) async fn look(&mut self) -> Result<Look, OpError> {
        let begun = Instant::now();
        loop {
            match self.try_to_look().await {
                Err(OpError::Bus(BusError::Unavailable { .. })) if begun.elapsed() < AWAY => sleep(INTERVAL).await,
                look => return look,
            }
        }
    }

    async fn try_to_look(&mut self) -> Result<Look, OpError> {
        let registered = match self.bus.registered(self.name.as_str()).await {
            Ok(registered) => Some(registered),
            Err(BusError::NoSuchMachine(_)) => None,
            Err(error) => return Err(error.into()),
        };
        if let Some(Registered { unit, .. }) = &registered
            && *unit != self.unit
            && !unit.is_empty()
        {
            self.unit.clone_from(unit);
            self.unit_changes = self.bus.unit_changes(&self.unit).await?.map(drop).boxed();
        }
        let leader = registered
            .as_ref()
            .and_then(|registered| Leader::open(registered.leader));
        let leader = leader.filter(|leader| !leader.is_ending());
        // Before it is looked at: what changes in between is seen.
        self.watch_freezer(leader.as_ref());
        let state = self.bus.unit_state(&self.unit).await?;
        Ok(Look {
            state: state_of(registered.as_ref(), leader.as_ref(), &state),
            is_over: registered.is_none() && state.is_over(),
            unit: self.unit.clone(),
            invocation: state.unit.hex("InvocationID"),
            registered,
            leader,
        })
    }

    fn watch_freezer(&mut self, leader: Option<&Leader>) {
        let pid = leader.map(Leader::pid);
        if self.freezer.as_ref().map(|(pid, _)| *pid) != pid {
            self.freezer = leader.and_then(|leader| Some((leader.pid(), leader.watch_freezer()?)));
        }
    }

    /// Returns when something may have changed since that look.
    pub(super) async fn changed(&mut self, since: &Look) -> Result<(), OpError> {
        let opening = since.registered.is_some() && since.state == State::Opening;
        let freezer = async {
            match &self.freezer {
                Some((_, events)) => {
                    if let Ok(mut ready) = events.readable().await {
                        ready.clear_ready();
                    }
                }
                None => std::future::pending().await,
            }
        };
        let told = tokio::select! {
            told = self.machined.next() => told.ok_or(MACHINED),
            told = self.unit_changes.next() => told.ok_or(systemd1::SERVICE),
            () = freezer => Ok(()),
            // machined does not tell when a machine's scope has started.
            () = sleep(INTERVAL), if opening => Ok(()),
        };
        told.map_err(|service| {
            let reason = "the connection to the bus was closed".to_owned();
            OpError::Bus(BusError::Unavailable { service, reason })
        })
    }
}
