//! Looking at machines and images: what machined, systemd, the kernel and the guests say, joined.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use futures_util::future::{join, join_all, join3, join4};

use super::autostart::Autostart;
use super::bounded::{ask, ask_each};
use super::bus::machine1::{ImageRow, MachineRow, Registered, SERVICE};
use super::bus::{Bus, BusError, classify};
use super::files::{Root, tree_size};
use super::guest::{AddressReader, Leader, os_release};
use super::quota::quota_of;
use crate::machine::status::Usage;
use crate::machine::{Cancel, Image, Machine, OsRelease, Seen, State};

/// Which of a machine's fields are wanted: what is not, is not fetched.
#[derive(Clone, Copy, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "a set of fields")]
pub struct Wanted {
    /// `os`
    pub os: bool,
    /// `addresses`
    pub addresses: bool,
    /// `enabled`
    pub enabled: bool,
    /// `leader`, `unit`, `since`, and whether it is frozen.
    pub state: bool,
    /// `disk`
    pub disk: bool,
}

/// All registered machines, and with `all` also images that do not run and units that failed; sorted by name.
pub async fn machines(bus: &Bus, wanted: Wanted, all: bool) -> Result<Vec<Machine>, BusError> {
    let look_images = async { if all { bus.images().await } else { Ok(Vec::new()) } };
    let look_units = async {
        if all || wanted.state {
            bus.template_units().await
        } else {
            Ok(Vec::new())
        }
    };
    let look_enabled = async {
        if wanted.enabled {
            bus.unit_search_path().await.map(|path| Some(Autostart::read(&path)))
        } else {
            Ok(None)
        }
    };
    let (rows, images, units, autostart) = join4(bus.machines(), look_images, look_units, look_enabled).await;
    let (mut machines, units) = (running(bus, rows?, wanted).await, units?);
    for machine in &mut machines {
        // machined knows only of the leader's end, not that the machine was asked to go.
        let leaves = |(name, active): &(String, String)| *name == machine.name && active == "deactivating";
        if machine.state == State::Running && units.iter().any(leaves) {
            machine.state = State::Closing;
        }
    }
    if all {
        let mut stopped = stopped(images?, units);
        stopped.retain(|name, _| !machines.iter().any(|machine| machine.name == *name));
        machines.extend(idle(stopped, wanted).await);
    }
    if let Some(autostart) = autostart? {
        for machine in &mut machines {
            machine.enabled = is_enabled(&autostart, &machine.name);
        }
    }
    if wanted.disk {
        let used = join_all(machines.iter().map(|machine| disk_of(bus, &machine.name))).await;
        for (machine, used) in machines.iter_mut().zip(used) {
            machine.disk = used;
        }
    }
    machines.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(machines)
}

/// What a machine takes of the disk, and may; nothing of one whose image machined does not know, or does not tell in time.
async fn disk_of(bus: &Bus, name: &str) -> Usage {
    let look = async { bus.find_image_state(name).await.ok().flatten() };
    match tokio::time::timeout(super::bounded::PATIENCE, look).await {
        Ok(Some(image)) => quota_of(&image).await,
        _ => Usage::default(),
    }
}

async fn running(bus: &Bus, rows: Vec<MachineRow>, wanted: Wanted) -> Vec<Machine> {
    let known = join_all(rows.iter().map(|(name, .., path)| async move {
        if !(wanted.state || wanted.os || wanted.addresses) {
            return Ok(None);
        }
        match bus.registered_at(name, path.as_str()).await {
            // Gone between the two calls.
            Err(BusError::NoSuchMachine(_)) => Err(()),
            other => Ok(other.ok()),
        }
    }))
    .await;
    let (mut machines, mut registered) = (Vec::new(), Vec::new());
    for ((name, class, service, _), known) in rows.into_iter().zip(known) {
        let Ok(known) = known else { continue };
        if let Some(known) = known {
            registered.push((machines.len(), known));
        }
        machines.push(Machine {
            class: Some(class),
            service: Some(service).filter(|s| !s.is_empty()),
            ..blank(name, State::Running)
        });
    }
    let known: Vec<&Registered> = registered.iter().map(|(_, known)| known).collect();
    let look_os = async {
        if wanted.os {
            os_of(bus, &known).await
        } else {
            Vec::new()
        }
    };
    let look_addresses = async {
        if wanted.addresses {
            addresses_of(bus, &known).await
        } else {
            Vec::new()
        }
    };
    // On this thread, while two others read what guests and namespaces say.
    let look_states = async { known.iter().map(|known| state_of(known, wanted)).collect::<Vec<_>>() };
    let (os, addresses, states) = join3(look_os, look_addresses, look_states).await;
    let (mut os, mut addresses) = (os.into_iter(), addresses.into_iter());
    for ((at, known), state) in registered.iter().zip(states) {
        let machine = &mut machines[*at];
        machine.state = state;
        machine.leader = Some(known.leader).filter(|pid| *pid > 0);
        machine.since = known.since;
        machine.unit = Some(known.unit.clone()).filter(|unit| !unit.is_empty());
        machine.os = os.next().unwrap_or_default();
        machine.addresses = addresses.next().unwrap_or_default();
    }
    machines
}

fn blank(name: String, state: State) -> Machine {
    Machine {
        name,
        state,
        class: None,
        service: None,
        unit: None,
        leader: None,
        since: None,
        os: Seen::None,
        addresses: Seen::None,
        enabled: None,
        disk: Usage::default(),
        labels: BTreeMap::new(),
    }
}

fn state_of(registered: &Registered, wanted: Wanted) -> State {
    let frozen = wanted.state && Leader::open(registered.leader).is_some_and(|leader| leader.is_frozen());
    match registered.state.as_str() {
        _ if frozen => State::Frozen,
        "opening" => State::Opening,
        "closing" => State::Closing,
        _ => State::Running,
    }
}

/// os-release of each by a path-safe read of its leader's root; without the right to it, what machined reads for us.
pub async fn os_of(bus: &Bus, machines: &[&Registered]) -> Vec<Seen<OsRelease>> {
    if !may_look_into_processes() {
        return join_all(machines.iter().map(|registered| os_from_machined(bus, registered))).await;
    }
    // Only a container's processes are the guest's own.
    let leader = |registered: &&Registered| (registered.class == "container").then_some(registered.leader);
    ask_each(machines.iter().map(leader).collect(), || {
        |leader: Option<u32>| os_release(&Leader::open(leader?)?.root()?)
    })
    .await
}

async fn os_from_machined(bus: &Bus, registered: &Registered) -> Seen<OsRelease> {
    if registered.class != "container" {
        return Seen::None;
    }
    let Ok(machined) = bus.machined().await else {
        return Seen::None;
    };
    let call = machined.get_machine_os_release(&registered.name);
    match tokio::time::timeout(super::bounded::PATIENCE, call).await {
        Ok(Ok(fields)) => {
            let text: String = fields
                .iter()
                .map(|(key, value)| format!("{key}={}", shell_words::quote(value)))
                .collect::<Vec<_>>()
                .join("\n");
            Seen::Value(OsRelease::parse(&text))
        }
        Ok(Err(_)) => Seen::None,
        Err(_) => Seen::TimedOut,
    }
}

/// Addresses of each by netlink in its leader's namespace; without the right to it, what machined finds for us.
pub async fn addresses_of(bus: &Bus, machines: &[&Registered]) -> Vec<Seen<Vec<IpAddr>>> {
    if !may_look_into_processes() {
        return join_all(
            machines
                .iter()
                .map(|registered| addresses_from_machined(bus, &registered.name)),
        )
        .await;
    }
    ask_each(machines.iter().map(|registered| registered.leader).collect(), || {
        let reader = AddressReader::new();
        move |leader: u32| reader.as_ref()?.read(&Leader::open(leader)?)
    })
    .await
}

async fn addresses_from_machined(bus: &Bus, name: &str) -> Seen<Vec<IpAddr>> {
    match tokio::time::timeout(super::bounded::PATIENCE, addresses_by_machined(bus, name)).await {
        Ok(addresses) => addresses.ok().into(),
        Err(_) => Seen::TimedOut,
    }
}

/// What machined finds in a machine's network namespace.
pub(crate) async fn addresses_by_machined(bus: &Bus, name: &str) -> Result<Vec<IpAddr>, BusError> {
    let doing = format!("read the addresses of machine '{name}'");
    let rows = bus.machined().await?.get_machine_addresses(name).await;
    let rows = rows.map_err(|error| classify(&error, SERVICE, &doing, name))?;
    Ok(rows.into_iter().filter_map(|(_, bytes)| address(&bytes)).collect())
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

fn may_look_into_processes() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Names that do not run: all images, and template units that are on their way or failed.
fn stopped(images: Vec<ImageRow>, units: Vec<(String, String)>) -> BTreeMap<String, State> {
    let mut names: BTreeMap<String, State> = images.into_iter().map(|row| (row.0, State::Stopped)).collect();
    for (name, active) in units {
        let state = match active.as_str() {
            "failed" => State::Failed,
            "activating" | "active" | "reloading" => State::Opening,
            "deactivating" => State::Closing,
            _ => continue,
        };
        names.insert(name, state);
    }
    names
}

async fn idle(stopped: BTreeMap<String, State>, wanted: Wanted) -> Vec<Machine> {
    let os = if wanted.os && may_look_into_processes() {
        let paths = stopped
            .keys()
            .map(|name| Path::new("/var/lib/machines").join(name))
            .collect();
        ask_each(paths, || |path: PathBuf| os_release(&Root::open(&path).ok()?)).await
    } else {
        Vec::new()
    };
    let mut os = os.into_iter();
    let machines = stopped.into_iter().map(|(name, state)| Machine {
        unit: Some(format!("systemd-nspawn@{name}.service")),
        os: os.next().unwrap_or_default(),
        ..blank(name, state)
    });
    machines.collect()
}

fn is_enabled(autostart: &Autostart, name: &str) -> Option<bool> {
    // Names that cannot be an instance of the template are never enabled.
    let name: crate::machine::MachineName = name.parse().ok()?;
    Some(autostart.is_enabled(&name.unit()))
}

/// All images, sorted by name; sizes counted only `with_size`, each within the patience of tables, and limits looked up only
/// `with_limit`.
pub async fn images(bus: &Bus, with_size: bool, with_limit: bool) -> Result<Vec<Image>, BusError> {
    let (rows, machines) = join(bus.images(), bus.machines()).await;
    let running: Vec<String> = machines?.into_iter().map(|row| row.0).collect();
    let images = rows?
        .into_iter()
        .map(|(name, kind, read_only, created, modified, usage, object)| {
            let running = &running;
            async move {
                let state = bus.image_at(object.as_str(), &name).await.unwrap_or_default();
                let path = state.path.clone();
                let known = |number: u64| Some(number).filter(|n| *n != u64::MAX);
                let quota = if with_size || with_limit {
                    quota_of(&state).await
                } else {
                    Usage::default()
                };
                let size = match known(usage).filter(|_| kind != "directory").or(quota.current) {
                    Some(bytes) => Seen::Value(bytes),
                    None if with_size && !path.is_empty() => size_of(path.clone()).await,
                    None => Seen::None,
                };
                let used_by = running.contains(&name).then(|| name.clone());
                let time = |micros: u64| known(micros).filter(|n| *n > 0);
                Image {
                    kind,
                    storage: None,
                    read_only,
                    size,
                    limit: quota.limit,
                    created: time(created),
                    modified: time(modified),
                    used_by,
                    path,
                    name,
                }
            }
        });
    let mut images = join_all(images).await;
    images.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(images)
}

async fn size_of(path: String) -> Seen<u64> {
    let cancel = Cancel::default();
    let inner = cancel.clone();
    let size = ask(move || tree_size(Path::new(&path), &inner).ok()).await;
    // The thread that is still counting stops.
    cancel.cancel();
    size
}
