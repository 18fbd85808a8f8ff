//! Holding a running machine still while its files are copied.
//!
//! Its control groups are frozen, but not that of systemd-nspawn, which has to tell systemd's watchdog that it lives: on 252
//! the freezer of units holds that, too. systemd thaws them when we die, by a transient unit that waits at a pipe of ours and
//! whose `ExecStopPost=` runs whatever ends it.

use std::io::PipeWriter;
use std::path::Path;
use std::time::{Duration, Instant};

use zbus::Fd;

use super::OpError;
use crate::machine::MachineName;
use crate::sys::bus::jobs::{Goal, Jobs};
use crate::sys::bus::machine1::Registered;
use crate::sys::bus::systemd1::{Property, command};
use crate::sys::bus::{Bus, BusError};
use crate::sys::freezer::{Group, directory_of, groups_in};

/// How long processes may take to stand still: one that waits for a disk cannot be stopped.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked again.
const INTERVAL: Duration = Duration::from_millis(5);

/// A machine whose processes stand still, until this is dropped or we die.
#[derive(Debug)]
pub struct Still {
    /// Those that were not frozen before.
    groups: Vec<Group>,
    /// Closed by our death.
    _alive: PipeWriter,
}

/// Whether a shell takes the path of the group's file for what it is between quotes, as all names that systemd gives.
fn is_plain(group: &Group) -> bool {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/._-:@\\".contains(byte);
    group.file().as_os_str().as_encoded_bytes().iter().all(is_plain)
}

/// The unit that thaws a machine: as long as it runs, the machine is held still.
pub(super) fn guard_of(name: &str) -> String {
    format!("machinist-thaw-{name}.service")
}

impl Still {
    /// Whether it has stood still all the time: nobody thawed, stopped or restarted it.
    fn has_held(&self) -> bool {
        self.groups.iter().all(Group::is_frozen)
    }

    /// Lets machine `name` go on.
    ///
    /// # Errors
    /// If it did not stand still all the time: what was copied meanwhile may be torn.
    pub fn end(self, name: &MachineName) -> Result<(), OpError> {
        if self.has_held() {
            return Ok(());
        }
        Err(OpError::Option {
            message: format!("machine '{name}' did not stand still: somebody thawed or stopped it"),
            hint: "try again".to_owned(),
        })
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        for group in &self.groups {
            // A machine that was stopped has none. What fails here, the unit does.
            let _ = group.set(false);
        }
    }
}

/// Holds a machine still that runs on this image.
///
/// # Errors
/// [`OpError::Option`] if it is no container of systemd-nspawn, or does not stand still.
pub async fn hold_still(bus: &Bus, jobs: &Jobs, image: &Path, registered: &Registered) -> Result<Still, OpError> {
    let name = registered.name.as_str();
    let refuse = |reason: &str| OpError::Option {
        message: format!("machine '{name}' is running, and cannot be held still while it is copied: {reason}"),
        hint: format!("stop it first: `machinist stop {name}`"),
    };
    let same = Path::new(&registered.root_directory).canonicalize().ok() == image.canonicalize().ok();
    if !same {
        return Err(refuse("it runs on another image, and another machine runs on this one"));
    }
    let unit = directory_of(registered.leader).ok_or_else(|| refuse("it has no control groups of systemd-nspawn"))?;
    let mut groups = groups_in(&unit).map_err(OpError::path("read", &unit))?;
    groups.retain(|group| !group.is_held());
    if !groups.iter().all(is_plain) {
        return Err(refuse("one of its control groups has a name that is not systemd's"));
    }
    let (reader, alive) = std::io::pipe().map_err(OpError::path("make a pipe for", &unit))?;
    let guard = guard_of(name);
    let begun = Instant::now();
    // First: from here on it is thawed, whatever becomes of us.
    let job = loop {
        let pipe = reader.try_clone().map_err(OpError::path("make a pipe for", &unit))?;
        match bus
            .start_transient(&guard, &properties(name, &groups, pipe.into()))
            .await
        {
            // That of a call before us thaws the machine yet: it must not do so later.
            Err(BusError::Failed { name, .. }) if name.ends_with(".UnitExists") && begun.elapsed() < PATIENCE => {
                tokio::time::sleep(INTERVAL).await;
            }
            started => break started?,
        }
    };
    drop(reader);
    match jobs.wait(&job, &guard, Goal::Up).await.as_str() {
        "done" => {}
        result => return Err(refuse(&format!("unit {guard} did not start ({result})"))),
    }
    let still = Still { groups, _alive: alive };
    for group in &still.groups {
        group.set(true).map_err(OpError::path("freeze by", group.file()))?;
    }
    let begun = Instant::now();
    while !still.has_held() {
        if begun.elapsed() > PATIENCE {
            return Err(refuse(
                "some of its processes do not stop, such as those that wait for a disk",
            ));
        }
        tokio::time::sleep(INTERVAL).await;
    }
    Ok(still)
}

/// The unit that thaws.
fn properties(name: &str, groups: &[Group], pipe: std::os::fd::OwnedFd) -> Vec<Property> {
    let shell = |script: &str| command("/bin/sh", &["sh", "-c", script].map(str::to_owned));
    // A group that is gone needs no thawing. Not by variables, nor with semicolons: see `command`.
    let thaw = groups
        .iter()
        .map(|group| format!("echo 0 >'{}' || :", group.file().display()));
    let thaw: Vec<String> = thaw.collect();
    vec![
        (
            "Description".to_owned(),
            format!("Thaws machine {name} when machinist has copied it").into(),
        ),
        ("Type".to_owned(), "exec".into()),
        ("CollectMode".to_owned(), "inactive-or-failed".into()),
        ("ExecStart".to_owned(), shell("read -r line || :")),
        ("ExecStopPost".to_owned(), shell(&thaw.join("\n"))),
        ("StandardInputFileDescriptor".to_owned(), Fd::from(pipe).into()),
        ("StandardError".to_owned(), "null".into()),
    ]
}
