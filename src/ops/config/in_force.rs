//! The settings that a machine runs with, or would: what systemd says of it, and the files, brought together.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::Path;

use serde_json::Value;

use super::files::{SettingsFile, image, of_image};
use crate::machine::MachineName;
use crate::machine::setting::{Origin, Setting, Source, State};
use crate::nspawn::document::Document;
use crate::nspawn::merge::{File, Reader, add_defaults, merge};
use crate::nspawn::switches::CommandLine;
use crate::ops::Places;
use crate::sys::bus::manager::ManagerState;
use crate::sys::bus::systemd1::UnitState;
use crate::sys::bus::{Bus, BusError, Properties};
use crate::sys::drop_ins::loaded;
use crate::sys::files::{changed_at, read_regular};
use crate::sys::unit_files::{Known, read};
use crate::unit::keys::DEFAULTS;
use crate::unit::merge::{Status, Unit};
use crate::unit::value::commands;

/// What was found.
#[derive(Debug)]
pub struct InForce {
    /// Every setting, those of systemd-nspawn first.
    pub settings: Vec<Setting>,
    /// What cannot be read, and so is missing: for people.
    pub missing: Vec<String>,
    /// What is to be said about all of it: for people.
    pub notes: Vec<String>,
}

/// What systemd knows of a machine.
#[derive(Debug)]
pub struct Observed {
    manager: ManagerState,
    unit_name: String,
    unit: UnitState,
    registered: Option<Properties>,
}

impl Observed {
    /// Whether there is a machine of that name now.
    #[must_use]
    pub fn is_registered(&self) -> bool {
        self.registered.is_some()
    }
}

/// Asks systemd and machined, all at once.
pub async fn observe(bus: &Bus, name: &MachineName) -> Result<Observed, BusError> {
    // Nearly always its unit is this one: asked before machined has said so.
    let usual = name.unit();
    let (manager, unit, registered) = futures_util::future::join3(
        bus.manager_state(),
        bus.unit_state_by_path(&usual),
        bus.registered_properties(name.as_str()),
    )
    .await;
    let registered = match registered {
        Ok(registered) => Some(registered),
        Err(BusError::NoSuchMachine(_)) => None,
        Err(error) => return Err(error),
    };
    let other = registered
        .as_ref()
        .map(|registered| registered.string("Unit"))
        .filter(|unit| !unit.is_empty() && *unit != usual);
    let (unit_name, unit) = match other {
        Some(other) => {
            let state = bus.unit_state_by_path(&other).await?;
            (other, state)
        }
        None => (usual, unit?),
    };
    Ok(Observed {
        manager: manager?,
        unit_name,
        unit,
        registered,
    })
}

/// Reads the files, and merges all. With `all` also what nobody has set. Blocks.
#[must_use]
pub fn in_force(name: &MachineName, observed: &Observed, places: &Places, all: bool) -> InForce {
    let (unit, detail) = (&observed.unit.unit, &observed.unit.detail);
    let (mut missing, mut notes) = (Vec::new(), Vec::new());
    let drop_ins = loaded(unit);
    let fragment = unit.string("FragmentPath");
    let need_reload = unit.boolean("NeedDaemonReload");
    let (files, errors) = read(&Known {
        unit: &observed.unit_name,
        fragment: &fragment,
        drop_ins: &drop_ins,
        need_reload,
        loaded_at: observed.manager.loaded_at,
        search_path: &observed.manager.unit_path,
    });
    missing.extend(errors.iter().map(describe));
    let properties: BTreeMap<String, Value> = unit.printable().into_iter().chain(detail.printable()).collect();
    let merged = Unit {
        systemd: observed.manager.version,
        need_reload,
        files: &files,
        properties: &properties,
    };
    let of_unit = merged.settings();
    if need_reload || files.iter().any(|file| file.status == Status::New) {
        notes.push(format!(
            "files of {} were changed since systemd read them: run `systemctl daemon-reload`",
            observed.unit_name
        ));
    }

    let loaded = properties
        .get("ExecStart")
        .map(commands)
        .unwrap_or_default()
        .into_iter()
        .find_map(|words| CommandLine::parse(&words).map(|line| (line, words)));
    let loaded_origin = merged.origin_of(&of_unit, "ExecStart");
    let running = running_command(observed);
    let mut nspawn = Nspawn {
        name,
        places,
        systemd: observed.manager.version,
        started: observed.started(),
        missing: &mut missing,
        notes: &mut notes,
    };
    let mut settings = match (&running, &loaded) {
        (Some((pid, words, line)), loaded) if loaded.as_ref().is_none_or(|(_, other)| other != words) => {
            let origin = Origin {
                kind: Source::Process,
                file: Some(format!("/proc/{pid}/cmdline")),
                line: None,
            };
            let mut rows = nspawn.rows(Some(line), &origin);
            if let Some((next, _)) = loaded {
                let later = nspawn.rows(Some(next), &loaded_origin);
                add_pending(&mut rows, later);
            }
            rows
        }
        (_, Some((line, _))) => nspawn.rows(Some(line), &loaded_origin),
        (_, None) => nspawn.rows(None, &Origin::DEFAULT),
    };
    if running.is_none() && loaded.is_none() {
        notes.push(format!(
            "{name} is not run by systemd-nspawn: only settings of its unit {} are known",
            observed.unit_name
        ));
    } else if all {
        add_defaults(&mut settings, name.as_str(), observed.manager.version);
    }
    let section = if observed.unit_name.ends_with(".scope") {
        "Scope"
    } else {
        "Service"
    };
    let unset = if all {
        merged.defaults(&of_unit, section, DEFAULTS)
    } else {
        Vec::new()
    };
    settings.extend(of_unit);
    settings.extend(unset);
    InForce {
        settings,
        missing,
        notes,
    }
}

/// What is to hold from the next start and does not now.
fn add_pending(rows: &mut Vec<Setting>, later: Vec<Setting>) {
    let reason = "the command line of the unit was changed after the machine was started: it holds from the next start";
    let what = |row: &Setting| (row.section.clone(), row.key.clone(), row.value.clone());
    let holds = |row: &&Setting| row.state == State::InForce;
    let now: HashSet<_> = rows.iter().filter(holds).map(what).collect();
    let new = later
        .into_iter()
        .filter(|row| row.state == State::InForce && !now.contains(&what(row)))
        .map(|row| row.but(State::Pending, "after-restart", reason));
    rows.extend(new);
}

fn describe(error: &crate::sys::files::FileError) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// The process that runs the machine, if it is systemd-nspawn, with the words of its command line.
fn running_command(observed: &Observed) -> Option<(u64, Vec<String>, CommandLine)> {
    let registered = observed.registered.as_ref();
    let supervisor = match observed.unit.detail.number("MainPID").filter(|pid| *pid > 0) {
        Some(pid) => pid,
        // In a scope it is the parent of the machine's first process.
        None => parent(registered?.number("Leader")?)?,
    };
    let bytes = read_regular(Path::new(&format!("/proc/{supervisor}/cmdline")), 1 << 20).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let words: Vec<String> = text.split_terminator('\0').map(str::to_owned).collect();
    let line = CommandLine::parse(&words)?;
    Some((supervisor, words, line))
}

fn parent(pid: u64) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    line.trim().parse().ok()
}

impl Observed {
    /// When the machine that runs now was started, in µs since 1970.
    fn started(&self) -> Option<u64> {
        let up = self.registered.is_some() || self.unit.is_up();
        let main = self
            .unit
            .detail
            .number("ExecMainStartTimestamp")
            .filter(|time| *time > 0);
        let registered = || self.registered.as_ref()?.number("Timestamp");
        main.or_else(registered).filter(|_| up)
    }
}

/// What is needed to read the .nspawn files of a command line.
struct Nspawn<'a> {
    name: &'a MachineName,
    places: &'a Places,
    systemd: u32,
    started: Option<u64>,
    missing: &'a mut Vec<String>,
    notes: &'a mut Vec<String>,
}

impl Nspawn<'_> {
    fn rows(&mut self, command: Option<&CommandLine>, origin: &Origin) -> Vec<Setting> {
        let named = command.and_then(|line| line.machine.as_deref()?.parse().ok());
        let name: &MachineName = named.as_ref().unwrap_or(self.name);
        let files = match command.and_then(|line| line.root.as_deref()) {
            Some(root) => of_image(name, Some(Path::new(root)), self.places),
            None => of_image(name, image(name, self.places).as_deref(), self.places),
        };
        let read: Vec<(String, bool, bool, Document)> = files.iter().filter_map(|file| self.read(file)).collect();
        let files: Vec<File<'_>> = read
            .iter()
            .map(|(path, trusted, changed, document)| File {
                path,
                document,
                trusted: *trusted,
                changed: *changed,
            })
            .collect();
        let reader = Reader {
            systemd: self.systemd,
            command,
            origin,
        };
        merge(&reader, &files)
    }

    fn read(&mut self, file: &SettingsFile) -> Option<(String, bool, bool, Document)> {
        let path = file.path.to_string_lossy().into_owned();
        match file.read() {
            Ok(bytes) => {
                let changed = self
                    .started
                    .is_some_and(|started| changed_at(&file.path) > Some(started));
                if changed {
                    self.notes.push(format!(
                        "'{path}' was changed after {} was started: it holds from the next start",
                        self.name
                    ));
                }
                Some((path, file.trusted, changed, Document::from_bytes(bytes)))
            }
            Err(error) => {
                let text = format!("{}; its settings are missing here", describe(&error));
                if !self.missing.contains(&text) {
                    self.missing.push(text);
                }
                None
            }
        }
    }
}
