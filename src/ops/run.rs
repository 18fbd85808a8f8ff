//! Running a machine without a unit file: a transient unit with the settings of a machine and some of its own.

pub mod scratch;

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use zbus::Fd;

use super::boot::{start_failed, wait_for_pid1};
use super::config::files::of_machine;
use super::limit::properties as limit_properties;
use super::start::clear_stale_mount;
use super::stop::let_end;
use super::{OpError, Places};
use crate::limit;
use crate::machine::MachineName;
use crate::nspawn::document::Document;
use crate::nspawn::edit::Edit;
use crate::nspawn::settings::Settings;
use crate::nspawn::switches::switches_of;
use crate::nspawn::users::PrivateUsers;
use crate::sys::bus::Bus;
use crate::sys::bus::jobs::Jobs;
use crate::sys::bus::systemd1::{Property, Setting, UnitState, command};
use crate::sys::files::shown;
use scratch::View;

/// What runs a machine.
const NSPAWN: &str = "/usr/bin/systemd-nspawn";

/// What keeps the machine up while other processes enter it: a shell that reads until its input ends.
const IDLE: [&str; 3] = ["/bin/sh", "-c", "read -r line || :"];

/// How long a machine may take to end by itself.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is to run.
#[derive(Debug)]
pub struct Request {
    /// The name that it is registered by.
    pub name: MachineName,
    /// The machine whose settings and limits it has.
    pub like: MachineName,
    /// The copy that it runs in; `None` for the image itself.
    pub copy: Option<PathBuf>,
    /// How the copy is mounted, if it is none.
    pub view: Option<View>,
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
/// As [`start`], for settings.
pub fn private_users(request: &Request, systemd: u32, places: &Places) -> Result<PrivateUsers, OpError> {
    let settings = settings(request, systemd, places)?;
    Ok(PrivateUsers::of_switches(&switches_of(&settings)))
}

/// Starts it, and waits until it can be entered. It ends when the other end of the pipe is closed: also by our death.
///
/// # Errors
/// [`OpError::Option`] for settings that systemd does not take, [`OpError::Job`] with the cause from the journal.
pub async fn start(bus: &Bus, jobs: &Jobs, request: &Request, pipe: OwnedFd, places: &Places) -> Result<Own, OpError> {
    let settings = settings(request, bus.systemd_version().await?, places)?;
    let of_machine = bus.unit_state(&request.like.unit()).await?;
    let mut properties = inherited(&of_machine);
    for (name, setting) in limit_properties(&request.limits, &crate::sys::bus::Properties::default()) {
        properties.retain(|(known, _)| known != name);
        properties.push((name.to_owned(), (&setting).into()));
    }
    let words = command_line(request, &settings);
    let (program, words) = match &request.view {
        None => (Path::new(NSPAWN), words),
        Some(view) => (
            view.mounter.as_path(),
            view.overlay.words(&places.image_locks(), NSPAWN, words),
        ),
    };
    properties.extend(of_unit(request, program, &words, pipe));
    let unit = request.unit();
    clear_stale_mount(bus, &request.name).await?;
    let job = bus.start_transient(&unit, &properties).await?;
    match jobs.wait(&job).await.as_str() {
        "done" => {}
        result => return Err(start_failed(bus, &request.name, &unit, result, None).await),
    }
    wait_for_pid1(bus, &request.name).await?;
    // The name may be another's if ours has ended by itself.
    let registered = bus.registered(request.name.as_str()).await?;
    if registered.unit != unit {
        let name = request.name.to_string();
        return Err(OpError::NotRunning { name });
    }
    Ok(Own::of(&settings))
}

/// What [`start`] would do, and what comes after it, one line per step.
///
/// # Errors
/// As [`start`], for settings.
pub async fn plan(bus: &Bus, request: &Request, places: &Places) -> Result<Vec<String>, OpError> {
    let settings = settings(request, bus.systemd_version().await?, places)?;
    let words = shell_words::join(command_line(request, &settings));
    let copy = request.copy.as_ref();
    let mut steps = Vec::new();
    steps.extend(copy.map(|copy| {
        let (like, copy) = (&request.like, shown(copy));
        format!("copy the image of '{like}' to '{copy}', or lay an overlay over it where a copy takes long")
    }));
    steps.push(format!("start the transient unit {}: {words}", request.unit()));
    steps.push(format!("run the command in machine '{}'", request.name));
    steps.push("stop the unit".to_owned());
    steps.extend(copy.map(|_| "remove the copy".to_owned()));
    Ok(steps)
}

/// Waits for the end of a machine whose pipe was closed; one that does not go is taken down.
pub async fn end(bus: &Bus, jobs: &Jobs, name: &MachineName) -> Result<(), OpError> {
    let_end(bus, jobs, name, &unit_of(name), PATIENCE).await
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

/// What a program is told at its start: who enters the machine is told otherwise.
const OF_PAYLOADS: [&str; 6] = [
    "--user=",
    "--chdir=",
    "--setenv=",
    "--kill-signal=",
    "--notify-ready=",
    "--link-journal=",
];

/// The words of systemd-nspawn: what the template unit's say, but that the settings are among them and no file is read. An
/// image of its own it finds by the name, and heeds that it is read-only.
fn command_line(request: &Request, settings: &Settings) -> Vec<String> {
    let mut words = [
        "systemd-nspawn",
        "--quiet",
        "--keep-unit",
        "--settings=no",
        "--as-pid2",
        "--console=pipe",
        "--link-journal=no",
    ]
    .map(str::to_owned)
    .to_vec();
    words.push(format!("--machine={}", request.name));
    words.extend(
        request
            .copy
            .iter()
            .map(|copy| format!("--directory={}", copy.display())),
    );
    let is_payloads = |word: &String| OF_PAYLOADS.iter().any(|switch| word.starts_with(switch));
    let users = request.view.as_ref().and_then(|view| view.users);
    let is_others = |word: &String| users.is_some() && PrivateUsers::is_switch(word);
    let switches = switches_of(settings).into_iter();
    words.extend(switches.filter(|word| !is_payloads(word) && !is_others(word)));
    words.extend(users.into_iter().flat_map(PrivateUsers::switches_for));
    words.push("--".to_owned());
    words.extend(IDLE.map(str::to_owned));
    words
}

/// What the machine's own unit has: the template's device policy of this systemd, the slice, limits, who may be talked to.
/// Not what belongs to its start: commands before and after it, credentials.
fn inherited(machine: &UnitState) -> Vec<Property> {
    let names = [
        "Slice",
        "DevicePolicy",
        "DeviceAllow",
        "TasksMax",
        "DelegateSubgroup",
        "IPAddressAllow",
        "IPAddressDeny",
        "Nice",
        "OOMScoreAdjust",
        "ManagedOOMSwap",
        "ManagedOOMMemoryPressure",
    ];
    let limits = limit::KEYS.iter().filter(|key| key.is_property());
    let is_set = |name: &str| match machine.detail.setting(name) {
        // Nothing is protected unless somebody says so; saying 0 would hide what the slice says.
        Some(Setting::Number(0)) => name.ends_with("Max") || name.ends_with("High"),
        Some(Setting::Number(number)) => number != u64::MAX,
        Some(Setting::Bytes(bytes)) => !bytes.is_empty(),
        Some(Setting::Pairs(pairs)) => !pairs.is_empty(),
        setting => setting.is_some(),
    };
    let limits = limits.map(limit::Key::property).filter(|name| is_set(name));
    let mut properties: Vec<Property> = names
        .into_iter()
        .chain(limits)
        .filter_map(|name| Some((name.to_owned(), machine.detail.get(name)?)))
        .collect();
    properties.sort_by(|a, b| a.0.cmp(&b.0));
    properties.dedup_by(|a, b| a.0 == b.0);
    properties
}

/// What makes it a machine's unit, as systemd-nspawn@.service is; nothing in its command line is expanded.
fn of_unit(request: &Request, program: &Path, words: &[String], pipe: OwnedFd) -> Vec<Property> {
    let description = format!("Container {}, by machinist run", request.name);
    let mut properties: Vec<Property> = vec![
        ("Description".to_owned(), description.into()),
        ("Type".to_owned(), "notify".into()),
        ("KillMode".to_owned(), "mixed".into()),
        ("Delegate".to_owned(), true.into()),
        // It is forgotten at its end, and not before we have seen why it failed.
        ("CollectMode".to_owned(), "inactive-or-failed".into()),
        ("AddRef".to_owned(), true.into()),
        ("ExecStart".to_owned(), command(&program.display().to_string(), words)),
        ("StandardInputFileDescriptor".to_owned(), Fd::from(pipe).into()),
        // What systemd-nspawn has to say. Nothing of the host's that the machine could change.
        ("StandardOutput".to_owned(), "journal".into()),
        ("StandardError".to_owned(), "journal".into()),
        // Also where it is started by way of us.
        ("SyslogIdentifier".to_owned(), "systemd-nspawn".into()),
    ];
    properties.extend(request.at_most.map(|span| ("RuntimeMaxUSec".to_owned(), span.into())));
    properties
}
