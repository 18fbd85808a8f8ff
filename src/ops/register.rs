//! Telling systemd-machined of a container or virtual machine that something else has started.
//!
//! machined takes the unit of the leader for the machine: what it kills and waits for. Where that unit holds others, too, or
//! there is none, the machine's processes get a scope of their own. Not by machined's CreateMachine(), which moves only
//! the leader.

use zbus::wire::Variant;

use super::OpError;
use crate::machine::MachineName;
use crate::machine::text::printable;
use crate::sys::bus::jobs::{Goal, Jobs};
use crate::sys::bus::systemd1::Property;
use crate::sys::bus::{Bus, BusError};
use crate::sys::family::{Process, family, is_thread, unit_of};
use crate::sys::guest::Leader;

/// How often it is looked for processes that were started while the others were moved.
const ROUNDS: usize = 20;
/// As many as a machine's own unit may have.
const TASKS_MAX: u64 = 16_384;

/// What is to be registered.
#[derive(Clone, Debug)]
pub struct Request {
    /// Under this name.
    pub name: MachineName,
    /// Its first process, by its number on the host.
    pub leader: u32,
    /// Not a container, but a virtual machine.
    pub is_vm: bool,
}

/// How it is to be done.
#[derive(Debug)]
pub struct Plan {
    request: Request,
    /// Held from the first look on: nothing is done to another process of that number.
    leader: Leader,
    way: Way,
}

#[derive(Debug, PartialEq, Eq)]
enum Way {
    /// It has a unit of its own.
    Unit(String),
    /// It gets this scope, and these processes go there.
    Scope(String, Vec<u32>),
}

impl Plan {
    /// The unit that the machine is going to be in.
    #[must_use]
    pub fn unit(&self) -> &str {
        match &self.way {
            Way::Unit(unit) | Way::Scope(unit, _) => unit,
        }
    }

    /// What is going to be done.
    #[must_use]
    pub fn steps(&self) -> Vec<String> {
        let mut steps = Vec::new();
        if let Way::Scope(unit, processes) = &self.way {
            let list: Vec<String> = processes.iter().map(ToString::to_string).collect();
            steps.push(format!("move processes {} into a new unit {unit}", list.join(", ")));
        }
        let class = class_of(&self.request);
        let (name, leader) = (&self.request.name, self.request.leader);
        steps.push(format!(
            "register {class} '{name}' with systemd-machined: leader {leader}, unit {}",
            self.unit()
        ));
        steps
    }
}

fn class_of(request: &Request) -> &'static str {
    if request.is_vm { "vm" } else { "container" }
}

fn refuse(request: &Request, reason: &str, hint: impl Into<String>) -> OpError {
    OpError::Option {
        message: format!("cannot register machine '{}': {reason}", request.name),
        hint: hint.into(),
    }
}

/// Looks at what is to be registered.
///
/// # Errors
/// Why it cannot be.
pub async fn plan(bus: &Bus, request: Request) -> Result<Plan, OpError> {
    let leader = check_leader(&request)?;
    match bus.registered(request.name.as_str()).await {
        Err(BusError::NoSuchMachine(_)) => {}
        Err(error) => return Err(error.into()),
        Ok(registered) => {
            let reason = format!("there is a machine of that name, whose leader is {}", registered.leader);
            return Err(refuse(&request, &reason, "choose another name; see `machinist list`"));
        }
    }
    let all = Process::all();
    let find = |pid: u32| all.iter().find(|process| process.pid == pid);
    let (Some(first), Some(host)) = (find(request.leader), find(1)) else {
        return Err(gone(&request));
    };
    if !request.is_vm {
        check_container(&request, first, host.namespace, &all)?;
    }
    let members = family(&all, first, host.namespace);
    if members.iter().any(|member| member.pid == std::process::id()) {
        return Err(refuse(
            &request,
            "machinist itself is one of its processes",
            "run it from outside",
        ));
    }
    if let Some(other) = bus.machine_of(request.leader).await? {
        let reason = format!("process {} belongs to machine '{}'", request.leader, printable(&other));
        return Err(refuse(&request, &reason, format!("see `machinist status {other}`")));
    }
    let way = match own_unit(bus, first, &members).await? {
        Some(unit) => Way::Unit(unit),
        None => scope(&request, &members)?,
    };
    if !leader.is_alive() {
        return Err(gone(&request));
    }
    Ok(Plan { request, leader, way })
}

fn gone(request: &Request) -> OpError {
    let reason = format!("there is no process {}", request.leader);
    refuse(
        request,
        &reason,
        "the leader is a container's first process, by its number on the host: `lsns -t pid`",
    )
}

/// Takes hold of it.
fn check_leader(request: &Request) -> Result<Leader, OpError> {
    let pid = request.leader;
    if pid == 1 {
        return Err(refuse(request, "process 1 is the host's own init", "see `lsns -t pid`"));
    }
    if is_thread(pid) {
        let reason = format!("{pid} is a thread, and no process");
        return Err(refuse(request, &reason, format!("see Tgid in /proc/{pid}/status")));
    }
    let leader = Leader::open(pid).ok_or_else(|| gone(request))?;
    if Process::read(pid).is_some_and(|process| process.of_kernel) {
        let reason = format!("process {pid} is a thread of the kernel");
        return Err(refuse(request, &reason, "see `lsns -t pid`"));
    }
    Ok(leader)
}

/// A container has a PID namespace of its own, and its leader is the first process there: with it all others end.
fn check_container(request: &Request, first: &Process, host: u64, all: &[Process]) -> Result<(), OpError> {
    let pid = first.pid;
    if first.namespace == host {
        // The one that made the namespace stays outside of it.
        let child = all
            .iter()
            .find(|process| process.parent == pid && process.namespace != host && process.inner == 1);
        let reason = format!("process {pid} is in the host's own PID namespace");
        let hint = child.map_or_else(
            || "a container's first process has one of its own: see `lsns -t pid`".to_owned(),
            |child| {
                format!(
                    "the container's first process is its child: `machinist register {} --leader {}`",
                    request.name, child.pid
                )
            },
        );
        return Err(refuse(request, &reason, hint));
    }
    if first.inner == 1 {
        return Ok(());
    }
    let init = all
        .iter()
        .find(|process| process.namespace == first.namespace && process.inner == 1);
    let reason = format!("process {pid} is not the first one of its PID namespace");
    let hint = init.map_or_else(
        || "see `lsns -t pid`".to_owned(),
        |init| format!("that is `machinist register {} --leader {}`", request.name, init.pid),
    );
    Err(refuse(request, &reason, hint))
}

/// The leader's unit, if it holds nothing else: but the leader's parent, which started it and waits for it.
async fn own_unit(bus: &Bus, first: &Process, members: &[&Process]) -> Result<Option<String>, OpError> {
    let Some(unit) = unit_of(&first.control_group) else {
        return Ok(None);
    };
    let is_there = |member: &&Process| unit_of(&member.control_group) == Some(unit);
    if !members.iter().all(is_there) {
        return Ok(None);
    }
    let processes = match bus.unit_processes(unit).await {
        Ok(processes) => processes,
        // No unit, but a directory that is called so.
        Err(BusError::NoSuchUnit(_)) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let is_member = |pid: u32| members.iter().any(|member| member.pid == pid);
    // One that has been started since is its own, too, if the others are; other children of the parent are not.
    let is_its = |now: &Process| is_member(now.pid) || is_member(now.parent) || now.pid == first.parent;
    let known = |pid: &u32| Process::read(*pid).is_none_or(|now| now.pid != 1 && is_its(&now));
    Ok(processes.iter().all(|(_, pid, _)| known(pid)).then(|| unit.to_owned()))
}

/// A scope for its processes, unless they have control groups for themselves: these would be lost.
fn scope(request: &Request, members: &[&Process]) -> Result<Way, OpError> {
    let mut groups: Vec<&str> = members.iter().map(|member| member.control_group.as_str()).collect();
    groups.sort_unstable();
    groups.dedup();
    if let [one, other, ..] = groups[..] {
        let reason = format!(
            "its processes are in several control groups, such as '{}' and '{}', which are no unit of its own: limits and \
             freezing would not reach all of them, and moved away they would lose their own",
            printable(one),
            printable(other)
        );
        let hint = "start it in a unit of its own: `systemd-run -p Delegate=yes …`";
        return Err(refuse(request, &reason, hint));
    }
    let mut processes: Vec<u32> = members.iter().map(|member| member.pid).collect();
    processes.sort_unstable();
    Ok(Way::Scope(format!("machine-{}.scope", request.name), processes))
}

/// Registers it.
///
/// # Errors
/// What systemd or machined does not take; or its leader has ended.
pub async fn register(bus: &Bus, jobs: &Jobs, plan: &Plan) -> Result<(), OpError> {
    let request = &plan.request;
    if let Way::Scope(unit, _) = &plan.way {
        let job = bus.start_transient(unit, &properties(request)).await;
        let job = match job {
            Err(_) if !plan.leader.is_alive() => return Err(gone(request)),
            job => job?,
        };
        let result = jobs.wait(&job, unit, Goal::Up).await;
        if !plan.leader.is_alive() {
            return Err(gone(request));
        }
        if result != "done" {
            let reason = format!("its new unit {unit} did not start ({result})");
            return Err(refuse(request, &reason, format!("see `systemctl status {unit}`")));
        }
        gather(bus, request, unit).await?;
    }
    if !plan.leader.is_alive() {
        return Err(gone(request));
    }
    let (name, class) = (request.name.as_str(), class_of(request));
    match bus.register_machine(name, class, request.leader).await {
        Err(_) if !plan.leader.is_alive() => return Err(gone(request)),
        registered => registered?,
    }
    // Its number may be another's by now.
    if !plan.leader.is_alive() {
        let _ = bus.unregister_machine(name).await;
        return Err(gone(request));
    }
    Ok(())
}

/// Has the others come after, also those that were started while some were moved.
async fn gather(bus: &Bus, request: &Request, unit: &str) -> Result<(), OpError> {
    for _ in 0..ROUNDS {
        let all = Process::all();
        let find = |pid: u32| all.iter().find(|process| process.pid == pid);
        let (Some(first), Some(host)) = (find(request.leader), find(1)) else {
            return Err(gone(request));
        };
        let members = family(&all, first, host.namespace);
        let outside = members
            .iter()
            .filter(|member| unit_of(&member.control_group) != Some(unit));
        let outside: Vec<u32> = outside.map(|member| member.pid).collect();
        if outside.is_empty() {
            return Ok(());
        }
        // systemd moves none if one has ended meanwhile; which one, the next round tells.
        if bus.attach_processes(unit, &outside).await.is_err() {
            for pid in outside {
                let _ = bus.attach_processes(unit, &[pid]).await;
            }
        }
    }
    let reason = format!("not all of its processes can be moved into {unit}");
    Err(refuse(
        request,
        &reason,
        format!("see `systemctl status {unit}`, and try again when it is at rest"),
    ))
}

/// As those of the scopes that machined makes, and delegated as a machine's own unit is. The leader goes there first: of
/// several one might have ended, and there would be no scope.
fn properties(request: &Request) -> Vec<Property> {
    let kind = if request.is_vm { "Virtual Machine" } else { "Container" };
    let property = |name: &str, value: Variant<'static>| (name.to_owned(), value);
    vec![
        property("Description", format!("{kind} {}", request.name).into()),
        property("Slice", "machine.slice".into()),
        property("Delegate", true.into()),
        property("CollectMode", "inactive-or-failed".into()),
        property("TasksMax", TASKS_MAX.into()),
        property("PIDs", vec![request.leader].into()),
    ]
}
