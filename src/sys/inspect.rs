//! All about one machine, for `status`.

use std::path::Path;

use super::bus::machine1::Registered;
use super::bus::systemd1::UnitState;
use super::bus::{Bus, BusError};
use super::cgroup::Cgroup;
use super::files::Root;
use super::guest::{Leader, os_release};
use super::journal;
use super::machines::{addresses_of, os_of};
use super::quota::quota_of;
use crate::machine::status::{JournalLine, Namespace, Process, Status, UidShift, Usage};
use crate::machine::{Cancel, MachineName, Seen, State};

/// The kinds of namespaces that a machine can have of its own, see namespaces(7).
const NAMESPACES: &[&str] = &["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];

/// What `inspect` also looks at.
#[derive(Clone, Copy, Debug)]
pub struct Detail {
    /// Its namespaces.
    pub namespaces: bool,
    /// That many of the last lines of its journal.
    pub journal_lines: u32,
}

/// Everything about a machine, running or not.
pub async fn inspect(bus: &Bus, name: &MachineName, detail: Detail) -> Result<Status, BusError> {
    let registered = match bus.registered(name.as_str()).await {
        Ok(registered) => Some(registered),
        Err(BusError::NoSuchMachine(_)) => None,
        Err(error) => return Err(error),
    };
    let unit = registered
        .as_ref()
        .map_or_else(|| name.unit(), |registered| registered.unit.clone());
    let state = bus.unit_state(&unit).await?;
    let found = bus.find_image_state(name.as_str()).await?;
    let disk = match &found {
        Some(image) => quota_of(image).await,
        None => Usage::default(),
    };
    let image = found.map(|image| image.path);
    let leader = registered
        .as_ref()
        .and_then(|registered| Leader::open(registered.leader));
    let (os, addresses) = match &registered {
        Some(registered) => {
            let (os, addresses) = (os_of(bus, &[registered]).await, addresses_of(bus, &[registered]).await);
            (
                os.into_iter().next().unwrap_or_default(),
                addresses.into_iter().next().unwrap_or_default(),
            )
        }
        None => (os_of_image(image.clone()).await, Seen::None),
    };
    let processes = if registered.is_some() {
        processes(bus, &unit, &state).await
    } else {
        Vec::new()
    };
    let lines = if detail.journal_lines > 0 {
        journal_of(&unit, detail.journal_lines).await
    } else {
        Vec::new()
    };
    let text = |value: String| Some(value).filter(|value| !value.is_empty());
    Ok(Status {
        name: name.to_string(),
        state: state_of(registered.as_ref(), leader.as_ref(), &state),
        class: registered
            .as_ref()
            .and_then(|registered| text(registered.class.clone())),
        service: registered
            .as_ref()
            .and_then(|registered| text(registered.service.clone())),
        since: registered
            .as_ref()
            .and_then(|registered| registered.since)
            .and_then(rfc3339),
        leader: registered
            .as_ref()
            .map(|registered| registered.leader)
            .filter(|pid| *pid > 0),
        leader_command: leader.as_ref().and_then(Leader::command_name),
        result: text(state.detail.string("Result")).filter(|result| result != "success"),
        status_text: text(state.detail.string("StatusText")).filter(|_| registered.is_some()),
        enabled: state.unit.string("UnitFileState").starts_with("enabled"),
        os,
        addresses,
        private_network: leader
            .as_ref()
            .and_then(|leader| leader.shares("net"))
            .map(|shared| !shared),
        uid_shift: leader
            .as_ref()
            .and_then(Leader::uid_shift)
            .map(|(base, count)| UidShift { base, count }),
        namespaces: leader.as_ref().filter(|_| detail.namespaces).map(namespaces),
        settings: settings_of(name, image.as_deref()),
        image,
        drop_ins: state.unit.strings("DropInPaths"),
        memory: usage(&state, "MemoryCurrent", "memory.peak", "MemoryMax"),
        tasks: usage(&state, "TasksCurrent", "pids.peak", "TasksMax"),
        cpu: usage(&state, "CPUUsageNSec", "", "CPUQuotaPerSecUSec"),
        disk,
        control_group: text(state.detail.string("ControlGroup")),
        processes,
        journal: lines,
        unit,
    })
}

/// Where a machine is in its life.
pub(crate) fn state_of(registered: Option<&Registered>, leader: Option<&Leader>, unit: &UnitState) -> State {
    match registered {
        // Without systemd only the machine's own groups are frozen.
        Some(_) if unit.is_frozen() || leader.is_some_and(Leader::is_frozen) => State::Frozen,
        // machined knows only of its leader's end, not that it was asked to go.
        Some(_) if unit.unit.string("ActiveState") == "deactivating" => State::Closing,
        Some(registered) => match registered.state.as_str() {
            "opening" => State::Opening,
            "closing" => State::Closing,
            _ => State::Running,
        },
        None => match unit.unit.string("ActiveState").as_str() {
            "failed" => State::Failed,
            "activating" | "active" | "reloading" => State::Opening,
            "deactivating" => State::Closing,
            _ => State::Stopped,
        },
    }
}

/// The peak is the kernel's own, as `limit` shows it: systemd tells that of memory from 256 on, and of tasks never.
fn usage(state: &UnitState, current: &str, peak: &str, limit: &str) -> Usage {
    let group = Cgroup::of(&state.detail.string("ControlGroup"));
    Usage {
        current: state.detail.number(current),
        peak: group.and_then(|group| group.counter(peak)),
        limit: state.detail.number(limit),
    }
}

async fn os_of_image(image: Option<String>) -> Seen<crate::machine::OsRelease> {
    let Some(image) = image else { return Seen::None };
    super::bounded::ask(move || os_release(&Root::open(Path::new(&image)).ok()?)).await
}

async fn processes(bus: &Bus, unit: &str, state: &UnitState) -> Vec<Process> {
    let own = state.detail.string("ControlGroup");
    let rows = bus.unit_processes(unit).await.unwrap_or_default();
    rows.into_iter()
        .map(|(group, pid, command)| {
            let control_group = group
                .strip_prefix(&own)
                .unwrap_or(&group)
                .trim_start_matches('/')
                .to_owned();
            Process {
                control_group,
                pid,
                command,
            }
        })
        .collect()
}

fn namespaces(leader: &Leader) -> Vec<Namespace> {
    NAMESPACES
        .iter()
        .filter_map(|kind| {
            let shared = leader.shares(kind)?;
            Some(Namespace {
                kind: (*kind).to_owned(),
                id: leader.namespace_id(kind)?,
                shared,
            })
        })
        .collect()
}

/// The file that systemd-nspawn takes its settings from: the first of these, see systemd.nspawn(5).
fn settings_of(name: &MachineName, image: Option<&str>) -> Option<String> {
    let file = format!("{name}.nspawn");
    let beside = image.and_then(|image| Path::new(image).parent());
    [
        Some(Path::new("/etc/systemd/nspawn")),
        Some(Path::new("/run/systemd/nspawn")),
        beside,
    ]
    .into_iter()
    .flatten()
    .map(|directory| directory.join(&file))
    .find(|path| path.exists())
    .map(|path| path.display().to_string())
}

async fn journal_of(unit: &str, lines: u32) -> Vec<JournalLine> {
    let unit = unit.to_owned();
    let read = tokio::task::spawn_blocking(move || journal::of_unit(&unit, &lines.to_string(), &Cancel::default()));
    let lines = read.await.ok().and_then(Result::ok).unwrap_or_default();
    lines
        .into_iter()
        .map(|line| JournalLine {
            time: rfc3339(line.time).unwrap_or_default(),
            identifier: line.identifier,
            message: line.message,
        })
        .collect()
}

/// µs since 1970 as RFC 3339.
fn rfc3339(micros: u64) -> Option<String> {
    jiff::Timestamp::from_microsecond(i64::try_from(micros).ok()?)
        .ok()
        .map(|time| time.to_string())
}
