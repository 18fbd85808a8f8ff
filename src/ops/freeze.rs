//! Freezing machines and thawing them.
//!
//! systemd does it to the whole unit, where that is safe. Where it would kill the unit, or hold more than the machine, only
//! the control groups of the machine's processes are frozen, and not that of systemd-nspawn.

use std::fs;
use std::path::Path;
use std::pin::pin;
use std::time::{Duration, Instant};

use super::OpError;
use super::hold_still::guard_of;
use super::start::find_running;
use crate::machine::MachineName;
use crate::sys::bus::machine1::Registered;
use crate::sys::bus::systemd1::UnitState;
use crate::sys::bus::{Bus, InTime as _, classify, systemd1};
use crate::sys::freezer::{Group, directory_of, groups_in};
use crate::sys::guest::Leader;
use crate::sys::quirks::{Quirk, has};

/// How long processes may take to stand still, or to go on.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked again: the kernel tells no more than that something has changed.
const INTERVAL: Duration = Duration::from_millis(5);
/// How often it is looked whether systemd has done what it has not answered.
const LOOK: Duration = Duration::from_millis(250);
/// How much longer than a copy the unit may last that thaws the machine after it.
const GUARD_ENDS: Duration = Duration::from_secs(2);

/// What [`freeze`] or [`thaw`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is so now.
    Now,
    /// It was so before.
    Already,
}

/// What is frozen.
enum Way {
    /// The whole unit, by systemd.
    Unit,
    /// Control groups of the machine's processes in this directory, by us.
    Groups(Vec<Group>),
}

/// A machine that runs.
struct Running {
    registered: Registered,
    state: UnitState,
}

impl Running {
    async fn find(bus: &Bus, name: &MachineName) -> Result<Self, OpError> {
        let registered = find_running(bus, name).await?;
        let state = bus.unit_state(&registered.unit).await?;
        Ok(Self { registered, state })
    }

    fn is_frozen(&self) -> bool {
        self.state.is_frozen() || is_leader_frozen(self.registered.leader)
    }

    /// What is to be frozen.
    ///
    /// # Errors
    /// Why it cannot be.
    async fn way(&self, bus: &Bus, name: &MachineName) -> Result<Way, OpError> {
        let unit = self.registered.unit.as_str();
        let detail = &self.state.detail;
        let is_watched = detail.number("WatchdogUSec").is_some_and(|limit| limit > 0)
            && has(bus.systemd_version().await?, Quirk::WatchdogKillsFrozen);
        let unsafe_because = if is_watched {
            "systemd's watchdog would kill its unit"
        } else if self.shares_its_unit() {
            "its unit holds others, too, that would be frozen with it"
        } else if self.state.unit.boolean("CanFreeze") {
            return Ok(Way::Unit);
        } else {
            "systemd cannot freeze its unit"
        };
        let groups = directory_of(self.registered.leader).map(|directory| groups_in(&directory));
        match groups {
            Some(Ok(groups)) => Ok(Way::Groups(groups)),
            _ => Err(refuse(
                "freeze",
                name,
                &format!("{unsafe_because}, and its processes have no control groups of systemd-nspawn"),
                format!("see `systemctl status {unit}`"),
            )),
        }
    }

    /// Whether more than the machine is in its unit: a login, or we ourselves.
    fn shares_its_unit(&self) -> bool {
        let detail = &self.state.detail;
        let group = detail.string("ControlGroup");
        let ours = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let ours = ours.lines().find_map(|line| line.strip_prefix("0::"));
        let holds_us = !group.is_empty() && ours.is_some_and(|ours| Path::new(ours).starts_with(group));
        holds_us || detail.string("Slice").starts_with("user-")
    }

    /// Refuses what is on its way up or down: systemd would, too.
    fn check_is_up(&self, name: &MachineName) -> Result<(), OpError> {
        let active = self.state.unit.string("ActiveState");
        let has_job = self.state.unit.begins_with_number("Job");
        if matches!(active.as_str(), "active" | "reloading") && !has_job && self.registered.state != "closing" {
            return Ok(());
        }
        let reason = "it is being started or stopped";
        let hint = format!("try again after that; see `machinist status {name}`");
        Err(refuse("freeze", name, reason, hint))
    }
}

fn is_leader_frozen(leader: u32) -> bool {
    Leader::open(leader).is_some_and(|leader| leader.is_frozen())
}

fn refuse(verb: &str, name: &MachineName, reason: &str, hint: String) -> OpError {
    OpError::Option {
        message: format!("cannot {verb} machine '{name}': {reason}"),
        hint,
    }
}

/// Refuses to touch a machine that `clone` holds still: it is thawed when that is done.
async fn check_is_not_copied(bus: &Bus, verb: &str, name: &MachineName) -> Result<(), OpError> {
    let begun = Instant::now();
    loop {
        if !bus.is_unit_up(&guard_of(name.as_str())).await? {
            return Ok(());
        }
        if begun.elapsed() > GUARD_ENDS {
            break;
        }
        tokio::time::sleep(INTERVAL).await;
    }
    let reason = "it stands still while it is copied, and goes on after that";
    Err(refuse(
        verb,
        name,
        reason,
        "wait until `machinist clone` has ended".to_owned(),
    ))
}

fn need_root(verb: &'static str) -> Result<(), OpError> {
    if nix::unistd::geteuid().is_root() {
        Ok(())
    } else {
        Err(OpError::NeedsRoot { verb })
    }
}

/// What [`freeze`] would do, in words; `None` if it is frozen.
pub async fn plan_freeze(bus: &Bus, name: &MachineName) -> Result<Option<String>, OpError> {
    check_is_not_copied(bus, "freeze", name).await?;
    let running = Running::find(bus, name).await?;
    if running.is_frozen() {
        return Ok(None);
    }
    running.check_is_up(name)?;
    Ok(Some(match running.way(bus, name).await? {
        Way::Unit => format!("freeze unit {}", running.registered.unit),
        Way::Groups(groups) => format!("write 1 to {}: not to the unit's, which is not safe", files(&groups)),
    }))
}

/// What [`thaw`] would do, in words; `None` if it is not frozen.
pub async fn plan_thaw(bus: &Bus, name: &MachineName) -> Result<Option<String>, OpError> {
    check_is_not_copied(bus, "thaw", name).await?;
    let running = Running::find(bus, name).await?;
    if running.state.is_frozen() {
        return Ok(Some(format!("thaw unit {}", running.registered.unit)));
    }
    let held = held_of(running.registered.leader);
    Ok((!held.is_empty()).then(|| format!("write 0 to {}", files(&held))))
}

/// The files of control groups, in words.
fn files(groups: &[Group]) -> String {
    let files: Vec<String> = groups.iter().map(|group| group.file().display().to_string()).collect();
    files.join(" and ")
}

/// The control groups of a machine that were frozen without systemd.
fn held_of(leader: u32) -> Vec<Group> {
    let groups = directory_of(leader).and_then(|directory| groups_in(&directory).ok());
    groups.into_iter().flatten().filter(Group::is_held).collect()
}

/// Freezes a machine and waits until all its processes stand still.
///
/// # Errors
/// [`OpError::NotRunning`], [`OpError::NoImage`]; [`OpError::Option`] if it cannot be frozen, with the reason.
pub async fn freeze(bus: &Bus, name: &MachineName) -> Result<Change, OpError> {
    check_is_not_copied(bus, "freeze", name).await?;
    let running = Running::find(bus, name).await?;
    if running.is_frozen() {
        // Somebody else's request may not have come to its end.
        let still = comes_to(|| is_leader_frozen(running.registered.leader)).await;
        return still.then_some(Change::Already).ok_or_else(|| does_not_stop(name));
    }
    running.check_is_up(name)?;
    match running.way(bus, name).await? {
        Way::Unit => freeze_unit(bus, name, &running.registered.unit).await?,
        Way::Groups(groups) => freeze_groups(name, &groups).await?,
    }
    Ok(Change::Now)
}

async fn freeze_unit(bus: &Bus, name: &MachineName, unit: &str) -> Result<(), OpError> {
    let manager = bus.manager().await?;
    let Err(error) = answered(bus, unit, "frozen", manager.freeze_unit(unit).in_time()).await? else {
        return Ok(());
    };
    let error = classify(&error, systemd1::SERVICE, &format!("freeze machine '{name}'"), unit);
    // systemd answers when all stand still, and goes on waiting when nobody waits for the answer.
    let state = bus.unit_properties(unit, "Unit", &["FreezerState"]).await?;
    if state.string("FreezerState") == "freezing" {
        thaw_unit(bus, name, unit).await?;
        return Err(does_not_stop(name));
    }
    Err(error.into())
}

/// Waits for systemd's answer to a call that brings a unit into this state of the freezer.
///
/// Where it reloads at that moment, it does what it was asked for and forgets to answer: so it is looked whether the state
/// has been reached, too.
async fn answered(
    bus: &Bus,
    unit: &str,
    wanted: &str,
    call: impl Future<Output = zbus::Result<()>>,
) -> Result<zbus::Result<()>, OpError> {
    let mut call = pin!(call);
    let mut was_so = false;
    loop {
        if let Ok(answer) = tokio::time::timeout(LOOK, &mut call).await {
            return Ok(answer);
        }
        let state = bus.unit_properties(unit, "Unit", &["FreezerState"]).await?;
        let is_so = state.string("FreezerState") == wanted;
        // The answer may have been on its way.
        if is_so && was_so {
            return Ok(Ok(()));
        }
        was_so = is_so;
    }
}

async fn freeze_groups(name: &MachineName, groups: &[Group]) -> Result<(), OpError> {
    need_root("freezing a machine that this systemd cannot freeze safely")?;
    let freeze = async {
        for group in groups {
            group.set(true).map_err(OpError::path("freeze by", group.file()))?;
        }
        let still = comes_to(|| groups.iter().all(Group::is_frozen)).await;
        still.then_some(()).ok_or_else(|| does_not_stop(name))
    };
    let frozen = freeze.await;
    if frozen.is_err() {
        for group in groups {
            // Of a machine that has stopped there is none.
            let _ = group.set(false);
        }
    }
    frozen
}

/// Whether it gets to be so soon.
async fn comes_to(condition: impl Fn() -> bool) -> bool {
    let begun = Instant::now();
    while !condition() {
        if begun.elapsed() > PATIENCE {
            return false;
        }
        tokio::time::sleep(INTERVAL).await;
    }
    true
}

fn does_not_stop(name: &MachineName) -> OpError {
    let reason = "some of its processes do not stop, such as those that wait for a disk";
    refuse("freeze", name, reason, format!("see `machinist status {name}`"))
}

/// Thaws a machine, whoever has frozen it, and waits until it goes on.
///
/// # Errors
/// As [`freeze`]; [`OpError::Option`] if something above its unit is frozen.
pub async fn thaw(bus: &Bus, name: &MachineName) -> Result<Change, OpError> {
    check_is_not_copied(bus, "thaw", name).await?;
    let running = match Running::find(bus, name).await {
        Err(stopped @ OpError::NotRunning { .. }) => return thaw_rest(bus, name, stopped).await,
        running => running?,
    };
    let leader = running.registered.leader;
    // A freeze that was killed may have come halfway.
    if !running.is_frozen() && held_of(leader).is_empty() {
        return Ok(Change::Already);
    }
    release(bus, name, &running.registered.unit, &running.state, Some(leader)).await?;
    let goes_on = comes_to(|| !is_leader_frozen(leader)).await;
    goes_on
        .then_some(Change::Now)
        .ok_or_else(|| frozen_above(name, &running.state))
}

/// Thaws the unit of a machine that was killed while it was frozen: its systemd-nspawn stands still yet.
async fn thaw_rest(bus: &Bus, name: &MachineName, stopped: OpError) -> Result<Change, OpError> {
    let unit = name.unit();
    let state = bus.unit_state(&unit).await?;
    if !state.is_frozen() {
        return Err(stopped);
    }
    release(bus, name, &unit, &state, None).await?;
    Ok(Change::Now)
}

/// Thaws what is to stop: frozen, it cannot. What `clone` holds still is left to it.
pub(super) async fn release(
    bus: &Bus,
    name: &MachineName,
    unit: &str,
    state: &UnitState,
    leader: Option<u32>,
) -> Result<(), OpError> {
    match state.unit.string("FreezerState").as_str() {
        // Since 256 systemd tells that.
        "frozen-by-parent" | "freezing-by-parent" => return Err(frozen_above(name, state)),
        "frozen" | "freezing" => thaw_unit(bus, name, unit).await?,
        _ => {}
    }
    let held = leader.map(held_of).unwrap_or_default();
    if held.is_empty() || bus.is_unit_up(&guard_of(name.as_str())).await? {
        return Ok(());
    }
    need_root("thawing a machine that was frozen without systemd")?;
    for group in held {
        group.set(false).map_err(OpError::path("thaw by", group.file()))?;
    }
    Ok(())
}

async fn thaw_unit(bus: &Bus, name: &MachineName, unit: &str) -> Result<(), OpError> {
    let doing = format!("thaw machine '{name}'");
    let manager = bus.manager().await?;
    let thawed = answered(bus, unit, "running", manager.thaw_unit(unit).in_time()).await?;
    thawed.map_err(|error| classify(&error, systemd1::SERVICE, &doing, unit).into())
}

fn frozen_above(name: &MachineName, state: &UnitState) -> OpError {
    let slice = state.detail.string("Slice");
    let reason = "a slice that its unit is in is frozen";
    let hint = format!("thaw that: `systemctl thaw {slice}`, or the slice above it");
    refuse("thaw", name, reason, hint)
}
