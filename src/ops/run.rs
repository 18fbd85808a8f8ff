//! Running a machine without a unit file: a transient unit with the settings of a machine and some of its own.

pub mod scratch;
mod unit;
mod wait;

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use super::boot::{start_failed, wait_for_pid1_in};
use super::config::files::of_machine;
use super::console::is_kept;
use super::limit::properties as limit_properties;
use super::start::clear_stale_mount;
use super::stop::{Stopped, let_end, stop_in};
use super::{OpError, Places};
use crate::limit;
use crate::machine::MachineName;
use crate::nspawn::document::Document;
use crate::nspawn::edit::Edit;
use crate::nspawn::settings::Settings;
use crate::nspawn::switches::switches_of;
use crate::nspawn::users::PrivateUsers;
use crate::sys::bus::Bus;
use crate::sys::bus::jobs::{Goal, Jobs};
use scratch::{Vanishes, View};
use unit::{command_line, inherited, of_unit, with_console};
pub use wait::{Ended, wait_for_end};

/// How long a machine may take to end by itself.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is to run.
#[derive(Clone, Debug)]
pub struct Request {
    /// The name that it is registered by.
    pub name: MachineName,
    /// The machine whose settings and limits it has.
    pub like: MachineName,
    /// The copy that it runs in; `None` for the image itself.
    pub copy: Option<PathBuf>,
    /// How the copy is mounted, if it is none.
    pub view: Option<View>,
    /// How the copy goes without us.
    pub vanishes: Option<Vanishes>,
    /// Whether it boots; otherwise it waits for what enters it.
    pub boots: bool,
    /// Changes to those settings.
    pub edits: Vec<Edit>,
    /// Limits beside those of the machine.
    pub limits: Vec<limit::Assignment>,
    /// When it is stopped at the latest, µs after its start.
    pub at_most: Option<u64>,
}

impl Request {
    /// The transient unit.
    #[must_use]
    pub fn unit(&self) -> String {
        unit_of(&self.name)
    }
}

pub(super) fn unit_of(name: &MachineName) -> String {
    format!("machinist-run-{name}.service")
}

/// What the settings say of a program in the machine.
#[derive(Debug, Default)]
pub struct Own {
    /// `User=`
    pub user: Option<String>,
    /// `WorkingDirectory=`
    pub directory: Option<PathBuf>,
    /// `Environment=`
    pub environment: Vec<(OsString, OsString)>,
}

impl Own {
    fn of(settings: &Settings) -> Self {
        let pair = |text: &str| text.split_once('=').map(|(name, value)| (name.into(), value.into()));
        Self {
            user: settings.value("Exec", "User").map(str::to_owned),
            directory: settings.value("Exec", "WorkingDirectory").map(PathBuf::from),
            environment: settings
                .values("Exec", "Environment")
                .iter()
                .filter_map(|value| pair(&value.value))
                .collect(),
        }
    }
}

/// What its settings say of private users.
///
/// # Errors
/// As [`launch`], for settings.
pub fn private_users(request: &Request, systemd: u32, places: &Places) -> Result<PrivateUsers, OpError> {
    let settings = settings(request, systemd, places)?;
    Ok(PrivateUsers::of_switches(&switches_of(&settings)))
}

/// A unit of ours on its way up.
#[derive(Debug)]
pub struct Launched {
    job: String,
    own: Own,
}

/// Starts it. One that does not boot ends when the other end of the pipe is closed: also by our death. After an error
/// nothing of ours runs: a unit of that name is another's.
///
/// # Errors
/// [`OpError::Option`] for settings that systemd does not take.
pub async fn launch(bus: &Bus, request: &Request, pipe: Option<OwnedFd>, places: &Places) -> Result<Launched, OpError> {
    let systemd = bus.systemd_version().await?;
    let settings = settings(request, systemd, places)?;
    let of_machine = bus.unit_state(&request.like.unit()).await?;
    let mut properties = inherited(&of_machine);
    for (name, setting) in limit_properties(&request.limits, &crate::sys::bus::Properties::default()) {
        properties.retain(|(known, _)| known != name);
        properties.push((name.to_owned(), (&setting).into()));
    }
    if request.boots {
        // How long its guest may take to power off.
        let limit = of_machine.detail.get("TimeoutStopUSec");
        properties.extend(limit.map(|limit| ("TimeoutStopUSec".to_owned(), limit)));
    }
    let words = command_line(request, &settings);
    properties.extend(of_unit(request, words, pipe, systemd, places));
    if request.boots && is_kept(bus).await? {
        properties.retain(|(known, _)| known != "StandardOutput");
        properties.extend(with_console(&request.name));
    }
    clear_stale_mount(bus, &request.name).await?;
    let job = bus.start_transient(&request.unit(), &properties).await?;
    let own = Own::of(&settings);
    Ok(Launched { job, own })
}

/// Waits until it can be entered.
///
/// # Errors
/// [`OpError::Job`] with the cause from the journal.
pub async fn arrive(bus: &Bus, jobs: &Jobs, request: &Request, launched: Launched) -> Result<Own, OpError> {
    let unit = request.unit();
    match jobs.wait(&launched.job, &unit, Goal::Up).await.as_str() {
        "done" => {}
        result => return Err(start_failed(bus, &request.name, &unit, result, None).await),
    }
    wait_for_pid1_in(bus, &request.name, unit.clone()).await?;
    // The name may be another's if ours has ended by itself.
    let registered = bus.registered(request.name.as_str()).await?;
    if registered.unit != unit {
        let name = request.name.to_string();
        return Err(OpError::NotRunning { name });
    }
    Ok(launched.own)
}

/// What [`launch`] would do, one line.
///
/// # Errors
/// As [`launch`], for settings.
pub async fn plan(bus: &Bus, request: &Request, places: &Places) -> Result<String, OpError> {
    let settings = settings(request, bus.systemd_version().await?, places)?;
    let words = shell_words::join(command_line(request, &settings));
    Ok(format!("start the transient unit {}: {words}", request.unit()))
}

/// Waits for the end of a machine whose pipe was closed; one that does not go is taken down.
pub async fn end(bus: &Bus, jobs: &Jobs, name: &MachineName) -> Result<(), OpError> {
    let_end(bus, jobs, name, &unit_of(name), PATIENCE).await?;
    clear_stale_mount(bus, name).await
}

/// Asks a machine that has booted to power off, and waits for that.
///
/// # Errors
/// [`OpError::TimedOut`] if it does not in time.
pub async fn power_off(bus: &Bus, jobs: &Jobs, name: &MachineName) -> Result<Stopped, OpError> {
    stop_in(bus, jobs, name, &unit_of(name)).await
}

/// Takes it down at once.
pub async fn take_down(bus: &Bus, jobs: &Jobs, name: &MachineName) -> Result<(), OpError> {
    let_end(bus, jobs, name, &unit_of(name), Duration::ZERO).await?;
    clear_stale_mount(bus, name).await
}

/// The settings of the machine that it is like, and the changes.
fn settings(request: &Request, systemd: u32, places: &Places) -> Result<Settings, OpError> {
    let file = of_machine(&request.like, places).into_iter().next();
    let (mut document, trusted) = match &file {
        Some(file) => (Document::from_bytes(file.read()?), file.trusted),
        None => (Document::parse(b""), true),
    };
    if !trusted {
        document.comment_out_untrusted();
    }
    if request.copy.is_some() {
        // What only one machine can have; what is asked for here comes after it.
        for (section, key) in [("Network", "Port"), ("Exec", "MachineID")] {
            let (section, key) = (section.to_owned(), key.to_owned());
            let removed = document.apply(&Edit::Reset { section, key });
            removed.map_err(|error| OpError::Setting(error.to_string()))?;
        }
    }
    for edit in &request.edits {
        let applied = document.apply(edit);
        applied.map_err(|error| OpError::Setting(error.to_string()))?;
    }
    let settings = Settings::effective(&document, systemd, true);
    match settings.fatal() {
        None => Ok(settings),
        Some(fatal) => Err(OpError::Option {
            message: format!(
                "systemd refuses the settings of machine '{}': {}",
                request.like, fatal.reason
            ),
            hint: format!("see `machinist config check {}`", request.like),
        }),
    }
}
