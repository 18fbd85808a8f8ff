//! Why a machine does not run, or cannot be reached: what systemd, the journal, the settings, the image, the network and the
//! machine's own systemd say, joined into one cause and what else there is.
//!
//! Each thing that is known to go wrong is looked for where another verb looks for it, too: [`super::diagnose`] for the journal of a
//! failed start, [`super::doctor`] for the host, [`super::config::findings`] for the settings.

mod ended;
mod image;
mod inside;
mod network;
mod running;
mod settings;
mod story;
mod unit;

use std::path::PathBuf;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;
use tokio::task::spawn_blocking;

use self::settings::Checked;
use super::config::files;
use super::diagnose::Diagnosis;
use super::doctor::services;
use super::{OpError, Places};
use crate::machine::text::printable;
use crate::machine::trouble::{Trouble, error, note, warning};
use crate::machine::{Cancel, MachineName, State};
use crate::sys::autostart::Autostart;
use crate::sys::bus::machine1::Registered;
use crate::sys::bus::systemd1::UnitState;
use crate::sys::bus::{Bus, BusError};
use crate::sys::guest::Leader;
use crate::sys::inspect::state_of;
use crate::sys::journal::Line;
use crate::sys::logs::sync;

/// How much of a line of the journal is shown, in characters.
const LINE_MAX: usize = 500;

/// What there is to say about one machine; also the JSON schema.
#[derive(Clone, Debug, Serialize)]
pub struct Answer {
    /// Its name.
    pub name: String,
    /// Where it is in its life.
    pub state: State,
    /// The unit it runs in, or would run in.
    pub unit: String,
    /// Its addresses that others can reach; empty if it has none of its own, `None` if that cannot be told.
    pub addresses: Option<Vec<String>>,
    /// The cause first, and what else there is.
    pub troubles: Vec<Trouble>,
}

/// What is known of a machine.
struct Facts<'a> {
    bus: &'a Bus,
    name: &'a MachineName,
    places: &'a Places,
    systemd: u32,
    registered: Option<Registered>,
    leader: Option<Leader>,
    unit: String,
    state: UnitState,
    image: Option<PathBuf>,
    enabled: bool,
    /// Whether systemd-machined answers.
    machined: bool,
}

/// Finds out why a machine does not run, or cannot be reached. What may not be read without root is left out.
///
/// # Errors
/// [`OpError::NoImage`] if there is nothing of that name; where systemd itself cannot be asked.
pub async fn explain(bus: &Bus, name: &MachineName, places: &Places, cancel: &Cancel) -> Result<Answer, OpError> {
    let manager = bus.manager_state().await?;
    let (registered, machined) = match bus.registered(name.as_str()).await {
        Ok(registered) => (Some(registered), None),
        Err(BusError::NoSuchMachine(_)) => (None, None),
        Err(error @ BusError::Unavailable { .. }) => (None, Some(without_machined(bus, error).await?)),
        Err(error) => return Err(error.into()),
    };
    let unit = registered
        .as_ref()
        .map(|registered| registered.unit.clone())
        .filter(|unit| !unit.is_empty())
        .unwrap_or_else(|| name.unit());
    let state = bus.unit_state(&unit).await?;
    // What has come to this state may not be in the journal's files yet.
    let waiting = cancel.clone();
    let _ = spawn_blocking(move || sync(&waiting)).await;
    let leader = registered
        .as_ref()
        .and_then(|registered| Leader::open(registered.leader));
    let facts = Facts {
        bus,
        name,
        places,
        systemd: manager.version,
        leader,
        // Who may not look into the directory of images is told by systemd-machined.
        image: match bus.find_image_path(name.as_str()).await {
            Ok(path) => path.map(PathBuf::from),
            Err(_) => files::image(name, places),
        },
        enabled: Autostart::read(&manager.unit_path).is_enabled(&name.unit()),
        machined: machined.is_none(),
        registered,
        unit,
        state,
    };
    facts.check_is_known()?;
    let state = state_of(facts.registered.as_ref(), facts.leader.as_ref(), &facts.state);
    let (mut troubles, addresses) = match state {
        State::Opening | State::Running | State::Frozen if facts.registered.is_some() => {
            running::look(&facts, state).await?
        }
        _ => (unit::not_running(&facts).await?, Some(Vec::new())),
    };
    if facts.registered.is_none() {
        let checked = Checked::of(&facts).await;
        // Settings that could not be read, or that a drop-in has instead, tell nothing.
        let is_whole = checked.is_some() && !facts.drop_ins().iter().any(|path| sets_command(path));
        let found = settings::look(&facts, checked).await;
        if is_whole {
            settings::mended(&mut troubles, &found, &facts);
        }
        troubles = joined(troubles, found);
        troubles = joined(troubles, image::look(&facts, cancel).await);
    }
    if let Some(first) = machined {
        troubles.insert(0, first);
    }
    for trouble in &mut troubles {
        trouble.machine = Some(name.to_string());
    }
    Ok(Answer {
        name: name.to_string(),
        state,
        unit: facts.unit,
        addresses,
        troubles,
    })
}

/// Without systemd-machined nothing is known of what runs, and why that is so is the answer.
async fn without_machined(bus: &Bus, error: BusError) -> Result<Trouble, OpError> {
    let found = services::machined(bus).await?;
    found
        .map(|trouble| trouble.seen(printable(&error.to_string())))
        .ok_or(OpError::Bus(error))
}

impl Facts<'_> {
    /// Who has only settings, or is to start at boot, has a name, too: its image may have gone.
    fn check_is_known(&self) -> Result<(), OpError> {
        let has_entry = |entry: String| self.places.machines.join(entry).is_symlink();
        let is_known = self.registered.is_some()
            || self.image.is_some()
            || self.enabled
            || self.state.unit.string("ActiveState") != "inactive"
            || has_entry(self.name.to_string())
            || has_entry(format!("{}.raw", self.name))
            || !files::of_machine(self.name, self.places).is_empty()
            || !self.drop_ins().is_empty();
        if is_known {
            Ok(())
        } else {
            let name = self.name.to_string();
            Err(OpError::NoImage { name })
        }
    }

    /// The drop-ins of its own: others are for all machines.
    fn drop_ins(&self) -> Vec<String> {
        let own = format!("{}.d/", self.name.unit());
        let mut all = self.state.unit.strings("DropInPaths");
        all.retain(|path| path.contains(&own));
        all
    }
}

/// Whether a drop-in has another command for the machine than the template: then the settings are not all there is.
fn sets_command(path: &str) -> bool {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().any(|line| line.trim_start().starts_with("ExecStart="))
}

/// Adds what was found elsewhere. What is the same as the first is where that is to be seen, too.
fn joined(mut all: Vec<Trouble>, found: Vec<Trouble>) -> Vec<Trouble> {
    for trouble in found {
        match all.iter_mut().find(|known| known.code == trouble.code) {
            Some(known) => {
                for seen in trouble.evidence {
                    if !known.evidence.contains(&seen) {
                        known.evidence.push(seen);
                    }
                }
                known.severity = known.severity.min(trouble.severity);
            }
            None => all.push(trouble),
        }
    }
    // What comes first is the cause, however bad the rest is.
    if let Some(rest) = all.get_mut(1..) {
        rest.sort_by_key(|trouble| trouble.severity);
    }
    all
}

/// What a failed start shows, with the time of its line in the journal.
fn diagnosed(diagnosis: Diagnosis) -> Trouble {
    let mut trouble = error(diagnosis.code, diagnosis.cause);
    let message = diagnosis
        .line
        .as_ref()
        .map(|line| printable(line.message.trim()))
        .unwrap_or_default();
    if let Some(line) = &diagnosis.line {
        trouble = trouble.seen(stamped(line));
    }
    for seen in diagnosis.evidence {
        if message.is_empty() || !seen.ends_with(&message) {
            trouble = trouble.seen(seen);
        }
    }
    let of_others = diagnosis
        .hints
        .into_iter()
        .filter(|hint| !hint.contains("machinist why "));
    of_others.fold(trouble, Trouble::hint)
}

/// A line of the journal as journalctl shows it.
fn stamped(line: &Line) -> String {
    let message: String = line.message.trim().chars().take(LINE_MAX).collect();
    let (message, who) = (printable(&message), printable(&line.identifier));
    format!("{} {who}: {message}", clock(line.time))
}

/// µs since 1970 in the host's time zone, as journalctl prints it.
fn clock(micros: u64) -> String {
    let time = i64::try_from(micros)
        .ok()
        .and_then(|micros| Timestamp::from_microsecond(micros).ok());
    time.map_or_else(String::new, |time| {
        time.to_zoned(TimeZone::system()).strftime("%b %d %H:%M:%S").to_string()
    })
}

/// µs since 1970.
fn now() -> u64 {
    u64::try_from(Timestamp::now().as_microsecond()).unwrap_or(0)
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_found_twice_is_told_once() {
        let first = error("missing-bridge", "bridge 'br0' does not exist").seen("the journal");
        let same = warning("missing-bridge", "there is no bridge").seen("web.nspawn:2");
        let all = joined(vec![first, note("a", "x")], vec![same, error("disk-full", "full")]);
        let codes: Vec<&str> = all.iter().map(|trouble| trouble.code).collect();
        assert_eq!(codes, ["missing-bridge", "disk-full", "a"]);
        assert_eq!(all[0].evidence, ["the journal", "web.nspawn:2"]);
        assert_eq!(all[0].severity, crate::machine::trouble::Severity::Error);
    }

    #[test]
    fn the_line_of_the_journal_is_told_once() {
        let line = Line {
            time: 1_700_000_000_000_000,
            identifier: "systemd-nspawn".to_owned(),
            transport: "journal".to_owned(),
            priority: 3,
            pid: 7,
            unit: String::new(),
            message: "Failed to x".to_owned(),
        };
        let trouble = diagnosed(Diagnosis {
            code: "x",
            cause: "x failed".to_owned(),
            evidence: vec![
                "unit a failed (exit-code)".to_owned(),
                "systemd-nspawn: Failed to x".to_owned(),
            ],
            hints: Vec::new(),
            line: Some(line),
        });
        assert_eq!(trouble.evidence.len(), 2, "{trouble:?}");
        assert!(trouble.evidence[0].ends_with(" systemd-nspawn: Failed to x"));
    }
}
