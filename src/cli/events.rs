//! `machinist events`

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use tokio::sync::mpsc;

use super::complete;
use super::context::Ctx;
use super::error::CliError;
use crate::machine::text::printable;
use crate::machine::{MachineName, State};
use crate::output::{data, json_line, time, until_closed};
use crate::sys::bus::events::Signal;
use crate::sys::bus::{Bus, BusError};
use crate::sys::guest::Leader;
use crate::sys::watch::{Change, watch};

/// Show what happens to machines, as it happens
///
/// One line for each: machines that appear and go, their states, jobs of their units, and for root their addresses. What
/// there is before is not told. Names may be those of machines to come; without any, all machines are told. Ctrl-C ends it;
/// when the system bus or systemd-machined restarts, it says so and goes on.
///
/// With --json each line is an object: time, machine, event ("appeared", "gone", "state", "job" or "address"), and state
/// ("opening", "running", "frozen", "closing", "stopped" or "failed"), result (of a job that is over, or of a unit that
/// failed), job ("start", "stop" …), unit, leader, address, added (false of an address that is lost); null where it has none.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist events                 All machines
  machinist events web 'ci-*'      Some, also those to come
  machinist events --json | jq -r 'select(.state == \"failed\").machine'")]
pub(super) struct Args {
    /// Machines, or patterns of names
    #[arg(value_name = "NAME", add = complete::all())]
    names: Vec<String>,
}

/// How long to wait until the bus is tried again.
const PAUSE: Duration = Duration::from_secs(1);
/// How many jobs are known at most: those whose end was missed are forgotten.
const JOBS_MAX: usize = 4096;

/// What is told.
#[derive(Debug, Default, Serialize)]
struct Event {
    time: String,
    machine: String,
    #[serde(rename = "event")]
    what: &'static str,
    state: Option<State>,
    result: Option<String>,
    job: Option<String>,
    unit: Option<String>,
    leader: Option<u32>,
    address: Option<IpAddr>,
    added: Option<bool>,
}

impl Event {
    /// What people read.
    fn words(&self) -> String {
        let result = self.result.as_deref();
        match self.what {
            "appeared" => match self.leader {
                Some(leader) => format!("has appeared, leader {leader}"),
                None => "has appeared".to_owned(),
            },
            "gone" => "has gone".to_owned(),
            "state" => match (self.state, result) {
                (Some(State::Failed), Some(result)) => format!("has failed ({result})"),
                (Some(State::Failed), None) => "has failed".to_owned(),
                (state, _) => format!("is {}", state.map_or("?", State::as_str)),
            },
            "job" => format!(
                "job {}: {}",
                self.job.as_deref().unwrap_or("?"),
                result.unwrap_or("queued")
            ),
            _ => {
                let address = self.address.map_or_else(String::new, |address| address.to_string());
                let verb = if self.added == Some(false) { "has lost" } else { "has" };
                format!("{verb} address {address}")
            }
        }
    }
}

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let names = patterns(&args.names)?;
    let mut watcher = Watcher::new(ctx, names);
    let bus = Bus::system(false).await?;
    watcher.bus = Some(ctx.bus().await?.clone());
    let closed = tokio::task::spawn_blocking(until_closed);
    tokio::select! {
        result = watcher.watch(bus) => result.map(|()| 0),
        _ = closed => Err(std::io::Error::from(std::io::ErrorKind::BrokenPipe).into()),
    }
}

/// The patterns that a machine's name must match, one of them.
pub(super) fn patterns(names: &[String]) -> Result<Vec<glob::Pattern>, CliError> {
    let pattern = |name: &String| {
        if !name.contains(['*', '?', '[']) {
            name.parse::<MachineName>()?;
        }
        glob::Pattern::new(name)
            .map_err(|error| CliError::usage(format!("pattern '{}' is not valid: {error}", printable(name))))
    };
    names.iter().map(pattern).collect()
}

struct Watcher<'a> {
    ctx: &'a Ctx,
    names: Vec<glob::Pattern>,
    /// For questions: signals come by another connection.
    bus: Option<Bus>,
    /// The units that machines run in.
    units: HashMap<String, String>,
    leaders: HashMap<String, u32>,
    states: HashMap<String, State>,
    /// What jobs do.
    jobs: HashMap<u32, String>,
    changes: mpsc::Sender<(String, Change)>,
    heard: Option<mpsc::Receiver<(String, Change)>>,
}

impl<'a> Watcher<'a> {
    fn new(ctx: &'a Ctx, names: Vec<glob::Pattern>) -> Self {
        let (changes, heard) = mpsc::channel(64);
        Self {
            ctx,
            names,
            bus: None,
            units: HashMap::new(),
            leaders: HashMap::new(),
            states: HashMap::new(),
            jobs: HashMap::new(),
            changes,
            heard: Some(heard),
        }
    }

    /// Tells what happens, for good. The first time it fails where there is no bus; later it waits for it.
    async fn watch(&mut self, bus: Bus) -> Result<(), CliError> {
        let mut heard = self.heard.take().unwrap_or_else(|| mpsc::channel(1).1);
        let mut signals = bus.signals().await?;
        self.look(true).await?;
        loop {
            let signal = tokio::select! {
                signal = signals.next() => signal,
                Some((machine, change)) = heard.recv() => {
                    self.notice(machine, change)?;
                    continue;
                }
            };
            match signal {
                Some(Signal::Restarted) => {
                    self.ctx.voice.status("systemd has been executed anew");
                    signals = self.reconnect().await;
                    self.catch_up().await;
                }
                Some(signal) => self.hear(signal).await?,
                None => {
                    self.ctx
                        .voice
                        .warning("the system bus has gone; waiting until it is back");
                    signals = self.reconnect().await;
                    self.ctx.voice.status("the system bus is back");
                    self.catch_up().await;
                }
            }
        }
    }

    /// Tells what was missed meanwhile.
    async fn catch_up(&mut self) {
        if let Err(error) = self.look(false).await {
            error.show(self.ctx.voice);
        }
    }

    async fn reconnect(&mut self) -> crate::sys::bus::events::Signals {
        loop {
            if let Ok(listener) = Bus::system(false).await
                && let Ok(signals) = listener.signals().await
                && let Ok(bus) = Bus::system(false).await
            {
                self.bus = Some(bus);
                return signals;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn bus(&self) -> Result<Bus, BusError> {
        let missing = || BusError::Unavailable {
            service: "the system bus",
            reason: "it is gone".to_owned(),
        };
        self.bus.clone().ok_or_else(missing)
    }

    /// Looks at all machines: what is new since the last time is told, but the first time nothing is.
    async fn look(&mut self, quiet: bool) -> Result<(), CliError> {
        let bus = self.bus()?;
        let rows: Vec<String> = bus.machines().await?.into_iter().map(|row| row.0).collect();
        let gone: Vec<String> = self
            .leaders
            .keys()
            .filter(|name| !rows.contains(name))
            .cloned()
            .collect();
        for name in gone {
            self.leave(name)?;
        }
        for name in rows {
            self.come(name, quiet).await?;
        }
        let mut units = bus.template_units().await?;
        // Units that are not loaded are down.
        let down: Vec<_> = self
            .states
            .keys()
            .filter(|name| !units.iter().any(|unit| unit.0 == **name))
            .cloned()
            .collect();
        units.extend(down.into_iter().map(|name| (name, "inactive".to_owned())));
        for (name, active) in units {
            let Some(state) = state_of(&active) else { continue };
            if quiet {
                self.states.entry(name).or_insert(state);
            } else {
                let unit = format!("systemd-nspawn@{name}.service");
                self.change(name, unit, state).await?;
            }
        }
        Ok(())
    }

    async fn hear(&mut self, signal: Signal) -> Result<(), CliError> {
        match signal {
            Signal::Machine { name, came: true } => self.come(name, false).await,
            Signal::Machine { name, came: false } => self.leave(name),
            Signal::Unit { unit, changed } => {
                let Some(state) = state_of(&changed.string("ActiveState")) else {
                    return Ok(());
                };
                match self.machine_of(&unit) {
                    Some(name) => self.change(name, unit, state).await,
                    None => Ok(()),
                }
            }
            Signal::Job { id, path, unit, result } => {
                let Some(machine) = self.machine_of(&unit).filter(|name| self.wants(name)) else {
                    return Ok(());
                };
                let job = match &result {
                    Some(_) => self.jobs.remove(&id),
                    None => self.bus()?.job_type(&path).await,
                };
                if result.is_none() {
                    if self.jobs.len() >= JOBS_MAX {
                        self.jobs.clear();
                    }
                    self.jobs.extend(job.clone().map(|job| (id, job)));
                }
                self.tell(Event {
                    machine,
                    what: "job",
                    job,
                    result,
                    unit: Some(unit),
                    ..Event::default()
                })
            }
            // It is for whoever listens.
            Signal::Restarted => Ok(()),
            Signal::Machined { present } => {
                let what = if present { "has started" } else { "has ended" };
                self.ctx.voice.status(&format!("systemd-machined {what}"));
                Ok(())
            }
        }
    }

    async fn come(&mut self, machine: String, quiet: bool) -> Result<(), CliError> {
        if machine == ".host" || !self.wants(&machine) {
            return Ok(());
        }
        let (mut unit, mut leader) = (None, None);
        // It may be gone already.
        if let Ok(registered) = self.bus()?.registered(&machine).await {
            (unit, leader) = (Some(registered.unit), Some(registered.leader).filter(|pid| *pid > 0));
        }
        if leader.is_some() && self.leaders.get(&machine) == leader.as_ref() {
            return Ok(());
        }
        self.leaders.insert(machine.clone(), leader.unwrap_or(0));
        let other = unit.clone().filter(|unit| MachineName::of_unit(unit).is_none());
        self.units.extend(other.map(|unit| (unit, machine.clone())));
        if let Some(leader) = leader.and_then(Leader::open) {
            let frozen = quiet && leader.is_frozen();
            if frozen {
                self.states.insert(machine.clone(), State::Frozen);
            }
            let (name, heard) = (machine.clone(), self.changes.clone());
            let tell = move |change| heard.blocking_send((name.clone(), change)).is_ok();
            // It has a thread of its own, which enters the machine's network namespace.
            std::thread::spawn(move || watch(&leader, frozen, !quiet, tell));
        }
        if quiet {
            return Ok(());
        }
        self.tell(Event {
            machine,
            what: "appeared",
            unit,
            leader,
            ..Event::default()
        })
    }

    fn leave(&mut self, machine: String) -> Result<(), CliError> {
        self.leaders.remove(&machine);
        self.tell(Event {
            machine,
            what: "gone",
            ..Event::default()
        })
    }

    /// What the kernel says of a machine that runs.
    fn notice(&mut self, machine: String, change: Change) -> Result<(), CliError> {
        let event = Event {
            machine,
            ..Event::default()
        };
        let (address, added) = match change {
            Change::Has(address) => (address, true),
            Change::Lost(address) => (address, false),
            Change::Frozen(frozen) => {
                let (from, to) = if frozen {
                    (State::Running, State::Frozen)
                } else {
                    (State::Frozen, State::Running)
                };
                // One that is killed is thawed, too.
                if self.states.get(&event.machine).is_some_and(|state| *state != from) {
                    return Ok(());
                }
                self.states.insert(event.machine.clone(), to);
                return self.tell(Event {
                    what: "state",
                    state: Some(to),
                    ..event
                });
            }
        };
        self.tell(Event {
            what: "address",
            address: Some(address),
            added: Some(added),
            ..event
        })
    }

    async fn change(&mut self, machine: String, unit: String, state: State) -> Result<(), CliError> {
        if !self.wants(&machine) {
            return Ok(());
        }
        let down = matches!(state, State::Stopped | State::Failed);
        // The kernel says when it is thawed.
        if state == State::Running && self.states.get(&machine) == Some(&State::Frozen) {
            return Ok(());
        }
        let former = self.states.insert(machine.clone(), state);
        if former == Some(state) || (former.is_none() && state == State::Stopped) {
            return Ok(());
        }
        if state == State::Stopped {
            self.states.remove(&machine);
        }
        if down {
            self.units.remove(&unit);
        }
        let result = match (state, self.bus()) {
            (State::Failed, Ok(bus)) => {
                let found = bus.unit_properties(&unit, "Service", &["Result"]).await;
                found.ok().map(|found| found.string("Result"))
            }
            _ => None,
        };
        self.tell(Event {
            machine,
            what: "state",
            state: Some(state),
            result,
            unit: Some(unit),
            ..Event::default()
        })
    }

    fn machine_of(&self, unit: &str) -> Option<String> {
        let of_template = || MachineName::of_unit(unit).map(|name| name.to_string());
        self.units.get(unit).cloned().or_else(of_template)
    }

    fn wants(&self, machine: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|pattern| pattern.matches(machine))
    }

    fn tell(&self, mut event: Event) -> Result<(), CliError> {
        if !self.wants(&event.machine) {
            return Ok(());
        }
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let now = u64::try_from(now.as_micros()).unwrap_or(0);
        if self.ctx.voice.json {
            event.time = time::rfc3339(now);
            return Ok(json_line(&event)?);
        }
        let (name, words) = (printable(&event.machine), printable(&event.words()));
        Ok(data(&format!("{} {name} {words}\n", time::short(now)))?)
    }
}

/// The state of a machine whose unit is in this `ActiveState`. Whether it is frozen the kernel says.
fn state_of(active: &str) -> Option<State> {
    Some(match active {
        "active" | "reloading" | "refreshing" => State::Running,
        "activating" => State::Opening,
        "deactivating" => State::Closing,
        "inactive" => State::Stopped,
        "failed" => State::Failed,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_have_the_states_of_machines() {
        assert_eq!(state_of("active"), Some(State::Running));
        assert_eq!(state_of("failed"), Some(State::Failed));
        assert_eq!(state_of(""), None);
    }

    #[test]
    fn each_event_has_its_words() {
        let event = |what| Event {
            what,
            ..Event::default()
        };
        let words = [
            Event {
                leader: Some(7),
                ..event("appeared")
            },
            event("gone"),
            Event {
                state: Some(State::Failed),
                result: Some("exit-code".into()),
                ..event("state")
            },
            Event {
                job: Some("start".into()),
                ..event("job")
            },
            Event {
                address: "10.0.0.2".parse().ok(),
                added: Some(false),
                ..event("address")
            },
        ]
        .map(|event| event.words());
        let wanted = [
            "has appeared, leader 7",
            "has gone",
            "has failed (exit-code)",
            "job start: queued",
            "has lost address 10.0.0.2",
        ];
        assert_eq!(words, wanted);
    }
}
