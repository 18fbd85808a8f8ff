//! Cloning a machine: an independent copy of its image, with an identity of its own and the settings of the original.

mod request;

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rustix::fs::{CWD, RenameFlags, renameat_with};

pub use self::request::Request;
use super::carry::{Extent, Names, Plan, is_unit_file, noted};
use super::config::settle;
use super::create::{is_free, make_machines_directory, sync_directory, with_visible_path};
use super::hold_still::Still;
use super::linked::clone::Link;
use super::linked::rest::Source;
use super::linked::{NoUnits, Units, edits_for_own_files};
use super::lock::Lock;
use super::others::{Mention, followers, former_followers};
use super::quota::Copied;
use super::transaction::{Record, Staging, Step, Transaction, Verb, hold};
use super::{OpError, Places, linked, order};
use crate::machine::{Cancel, MachineName, Report};
use crate::sources::guest::renew_identity;
use crate::storage;
use crate::sys::files::{Root, make_writable, shown, sync_filesystem};
use crate::sys::image_lock::{ImageLock, ImageLockError, Sharing};

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cloned {
    /// Where the clone lies.
    pub path: PathBuf,
    /// How it was copied: "btrfs", "reflink", "copy"; or "overlay", where it was not.
    pub storage: &'static str,
    /// The files that it was given besides.
    pub files: Vec<PathBuf>,
}

/// What is done through systemd.
pub trait Systemd: Units {
    /// Refuses a name that machined knows already.
    fn check_free(&self, name: &MachineName) -> Result<(), OpError>;

    /// Whether the machine runs.
    fn is_running(&self, name: &MachineName) -> Result<bool, OpError>;

    /// Holds a machine still that runs on this image.
    fn hold_still(&self, name: &MachineName, image: &Path) -> Result<Still, OpError>;
}

/// Makes the clone, or leaves everything as it was. Blocks.
pub fn clone(
    request: &Request,
    places: &Places,
    systemd: &dyn Systemd,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Cloned, OpError> {
    make_machines_directory(&places.machines)?;
    // Who starts after the machine by its priority will start after the clone, too.
    let _order = match order::placed(&request.source, places).priority {
        Some(_) => Some(order::lock(places, report, cancel)?),
        None => None,
    };
    let _locks = lock_both(&request.source, &request.name, places, report, cancel)?;
    // A change of settings that was killed is no part of them.
    if settle(&request.source, places)? {
        systemd.reload()?;
    }
    is_free(&request.name, places)?;
    systemd.check_free(&request.name)?;
    request.can_be_cloned()?;
    linked::make_visible(&request.source, places, systemd)?;
    // Held until the copy is made: it is not to be started meanwhile. A running one is locked by systemd-nspawn.
    let image_lock = match ImageLock::take(&request.image, &places.image_locks(), Sharing::Exclusive) {
        Err(ImageLockError::InUse { .. }) if systemd.is_running(&request.source)? => None,
        lock => Some(lock?),
    };
    let running = image_lock.is_none();
    request.can_run(running)?;
    let is_linked = request.linked && !storage::for_directory(&places.machines)?.shares();
    if !is_linked {
        return make(request, None, running, places, systemd, report, cancel);
    }
    request.can_be_linked(running)?;
    let source = Source {
        name: &request.source,
        image: &request.image,
        systemd: request.systemd,
    };
    // Until its units name its layers.
    let _layers = linked::lock(places, report, cancel)?;
    let link = Link::prepare(&source, &request.name, places, systemd, report, cancel);
    let made = link.and_then(|link| make(request, Some(link), running, places, systemd, report, cancel));
    if made.is_err() {
        // The first error is the one to be told.
        let _ = linked::sweep(places, report);
    }
    made
}

/// Makes it of a source that does not change meanwhile, or is to be held still.
fn make(
    request: &Request,
    link: Option<Link>,
    running: bool,
    places: &Places,
    systemd: &dyn Systemd,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Cloned, OpError> {
    let storage = match &link {
        Some(_) => "overlay",
        None => storage::for_directory(&places.machines)?.name(),
    };
    let work = Work::plan(request, places, running, link)?;
    work.steps(systemd, report, cancel)
        .run(report, cancel)
        .map_err(|error| with_visible_path(error, &places.machines))?;
    for warning in &work.plan.warnings {
        report.warn(warning);
    }
    Ok(Cloned {
        path: request.target(places),
        storage,
        files: work.plan.files.iter().map(|file| file.to.clone()).collect(),
    })
}

impl Systemd for NoUnits {
    fn check_free(&self, _: &MachineName) -> Result<(), OpError> {
        Ok(())
    }

    fn is_running(&self, _: &MachineName) -> Result<bool, OpError> {
        Ok(false)
    }

    fn hold_still(&self, name: &MachineName, _: &Path) -> Result<Still, OpError> {
        Err(OpError::NotRunning { name: name.to_string() })
    }
}

/// What [`clone`] would do, one line per step, and what there is to be warned of; touches nothing.
pub fn plan(request: &Request, running: bool, places: &Places) -> Result<(Vec<String>, Vec<String>), OpError> {
    is_free(&request.name, places)?;
    request.can_be_cloned()?;
    request.can_run(running)?;
    let is_linked = request.linked && !storage::for_directory(&places.machines)?.shares();
    if is_linked {
        request.can_be_linked(running)?;
    }
    let work = Work::plan(request, places, running, None)?;
    let mut steps = work.steps(&NoUnits, &(), &Cancel::default()).describe();
    if is_linked {
        // Layers have no names before they are made.
        let copy = work.copy_step();
        for step in steps.iter_mut().filter(|step| **step == copy) {
            *step = linked::clone::describe(&request.source, &request.name);
        }
    }
    Ok((steps, work.plan.warnings.clone()))
}

/// Takes back what a killed clone wrote outside of its staging directory.
pub fn take_back(record: &Record, papers: &Path, places: &Places, systemd: &dyn Systemd) -> Result<(), OpError> {
    // As long as its files are there, whoever changes a priority has others follow it.
    let _order = order::lock(places, &(), &Cancel::default())?;
    let _lock = Lock::wait(&places.runtime, &record.name, &(), &Cancel::default())?;
    let written = noted(papers)?;
    linked::clone::unmount(written.iter().map(|file| file.to.as_path()), places, systemd)?;
    for file in &written {
        file.take_back()?;
    }
    for follower in former_followers(&record.name.parse()?, places)? {
        follower.write()?;
    }
    if !written.is_empty() {
        systemd.reload()?;
    }
    let _layers = linked::lock(places, &(), &Cancel::default())?;
    linked::sweep(places, &()).map(drop)
}

/// Locks two names, in an order that is the same for all.
pub(super) fn lock_both(
    one: &MachineName,
    other: &MachineName,
    places: &Places,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<[Lock; 2], OpError> {
    let (first, second) = if one < other { (one, other) } else { (other, one) };
    let lock = |name: &MachineName| Lock::wait(&places.runtime, name.as_str(), report, cancel);
    Ok([lock(first)?, lock(second)?])
}

/// All that is needed for the steps.
struct Work<'a> {
    request: &'a Request,
    places: &'a Places,
    plan: Plan,
    followers: Vec<Mention>,
    /// What makes it a linked one.
    link: Option<Link>,
    /// How many bytes of the disk the clone may take, too.
    quota: Option<Copied>,
    /// Whether the machine has to be held still.
    running: bool,
    staging: Mutex<Option<Staging>>,
    still: Mutex<Option<Still>>,
}

impl<'a> Work<'a> {
    fn plan(request: &'a Request, places: &'a Places, running: bool, link: Option<Link>) -> Result<Self, OpError> {
        let edits = match &link {
            Some(link) => link.edits.clone(),
            // What was given to its users for its layers stays theirs, and is systemd-nspawn's to map again.
            None if linked::top(&request.source, places).is_some() => edits_for_own_files(),
            None => Vec::new(),
        };
        let names = Names {
            from: &request.source,
            to: &request.name,
            edits: &edits,
        };
        let extent = if request.keep_identity {
            Extent::LikeWithIdentity
        } else {
            Extent::Like
        };
        let mut plan = Plan::make(names, &request.image, &places.machines, extent, places)?;
        if let Some(link) = &link {
            link.add_to(&mut plan);
        }
        Ok(Self {
            plan,
            followers: followers(&request.source, &request.name, places)?,
            // What it shares is nobody's to be counted.
            quota: if link.is_none() {
                Copied::of(&request.image, request.limit)
            } else {
                None
            },
            link,
            request,
            places,
            running,
            staging: Mutex::default(),
            still: Mutex::default(),
        })
    }

    fn tree(&self) -> Result<PathBuf, OpError> {
        // Steps run in their order: the staging directory is there.
        let staging = hold(&self.staging);
        let staging = staging.as_ref().map(Staging::tree);
        staging.ok_or_else(|| OpError::Setting("internal error: no staging directory".into()))
    }

    fn steps<'b>(&'b self, systemd: &'b dyn Systemd, report: &'b dyn Report, cancel: &'b Cancel) -> Transaction<'b> {
        let (source, name) = (&self.request.source, &self.request.name);
        let mut steps = Transaction::default();
        let machines = &self.places.machines;
        let describe = format!("make a hidden directory in '{}'", shown(machines));
        let make = Step::new(describe, move || {
            let record = Record {
                verb: Verb::Clone,
                name: name.to_string(),
                settings: None,
                unit: None,
            };
            let staging = Staging::create(self.places, &record, report, cancel)?;
            self.plan.note(&staging)?;
            if self.link.is_some() {
                Link::make_place(&staging)?;
            }
            *hold(&self.staging) = Some(staging);
            Ok(())
        });
        steps.step(make.undo(move || {
            hold(&self.staging)
                .take()
                .map_or(Ok(()), |mut staging| staging.discard())
        }));
        if self.running {
            let freeze = Step::new(format!("hold machine '{source}' still"), move || {
                report.phase(&format!("holding {source} still"));
                *hold(&self.still) = Some(systemd.hold_still(source, &self.request.image)?);
                Ok(())
            });
            steps.step(freeze.undo(move || {
                hold(&self.still).take();
                Ok(())
            }));
        }
        if let Some(link) = &self.link {
            self.settings_steps(&mut steps, systemd);
            link.shift(&mut steps, systemd);
        } else {
            steps.step(Step::new(self.copy_step(), move || self.copy(report, cancel)));
        }
        if self.running {
            steps.step(Step::new(
                format!("let machine '{source}' go on"),
                move || match hold(&self.still).take() {
                    Some(still) => still.end(source),
                    None => Ok(()),
                },
            ));
        }
        let identity = if self.request.keep_identity {
            "keep its identity: do not run both at once in one network".to_owned()
        } else {
            format!("give it an identity of its own: machine ID, keys, leases; host name '{name}' if it was '{source}'")
        };
        steps.step(Step::new(identity, move || self.renew(report)));
        if let Some(quota) = &self.quota {
            steps.step(Step::new(quota.describe(), move || quota.limit(&self.tree()?)));
        }
        steps.step(Step::new("write everything to disk", move || {
            report.phase("writing to disk");
            Ok(sync_filesystem(machines)?)
        }));
        if self.link.is_none() {
            self.settings_steps(&mut steps, systemd);
        }
        let image = self.request.target(self.places);
        steps.step(Step::new(format!("rename it to '{}'", shown(&image)), move || {
            self.show(&image, report)
        }));
        if let Some(link) = &self.link {
            link.mount(&mut steps, systemd, report);
        }
        steps
    }

    fn copy_step(&self) -> String {
        format!("copy '{}'", shown(&self.request.image))
    }

    /// Writes the settings, and has systemd read them.
    fn settings_steps<'b>(&'b self, steps: &mut Transaction<'b>, systemd: &'b dyn Systemd) {
        let has_units = self.plan.has_unit_files(self.places);
        if has_units {
            // When everything that follows is undone.
            let nothing = Step::new(
                format!("give '{}' the settings of '{}'", self.request.name, self.request.source),
                || Ok(()),
            );
            steps.step(nothing.undo(move || systemd.reload()));
        }
        for file in &self.plan.files {
            steps.step(file.step());
        }
        for follower in &self.followers {
            steps.step(follower.step(&format!("name '{}'", self.request.name)));
        }
        if has_units {
            let new = self.link.as_ref().filter(|link| {
                let others = self.plan.files.iter().filter(|file| !link.has(&file.to));
                self.followers.is_empty() && !others.into_iter().any(|file| is_unit_file(&file.to, self.places))
            });
            steps.step(Step::new("have systemd read its unit files", move || match new {
                Some(link) => systemd.read_new(&link.names()),
                None => systemd.reload(),
            }));
        }
    }

    fn copy(&self, report: &dyn Report, cancel: &Cancel) -> Result<(), OpError> {
        // What a machine that stands still wrote.
        sync_filesystem(&self.request.image)?;
        let tree = self.tree()?;
        if self.request.is_disk_image() {
            report.phase("copying the disk image");
            return Ok(storage::copy_disk_image(&self.request.image, &tree, cancel)?);
        }
        let image = self.request.image.canonicalize();
        let image = image.map_err(OpError::path("look at", &self.request.image))?;
        if let Some(quota) = &self.quota {
            let directory = tree.parent().unwrap_or(&self.places.machines);
            quota.prepare(directory, &self.request.name, self.places, report, cancel)?;
        }
        storage::for_directory(&self.places.machines)?.copy(&image, &tree, report, cancel)?;
        if let Some(quota) = &self.quota {
            quota.lift(&tree, report)?;
        }
        // A read-only image is a fine original; what is made of it is to be changed.
        let _ = make_writable(&tree);
        Ok(())
    }

    fn renew(&self, report: &dyn Report) -> Result<(), OpError> {
        if self.request.keep_identity {
            return Ok(());
        }
        report.phase("renewing its identity");
        let (source, name) = (self.request.source.as_str(), self.request.name.as_str());
        let tree = self.tree()?;
        let renew = || -> Result<_, OpError> { Ok(renew_identity(&Root::open(&tree)?, source, name)?) };
        let notes = match &self.link {
            Some(link) => link.seen(&tree, renew)?,
            None => renew(),
        };
        for note in notes? {
            report.warn(&note);
        }
        Ok(())
    }

    fn show(&self, image: &Path, report: &dyn Report) -> Result<(), OpError> {
        renameat_with(CWD, self.tree()?, CWD, image, RenameFlags::NOREPLACE)
            .map_err(|errno| OpError::path("rename the clone to", image)(errno.into()))?;
        // The machine exists from here on: what follows must not fail the verb.
        if let Err(error) = sync_directory(&self.places.machines) {
            report.warn(&error.to_string());
        }
        if let Some(Err(error)) = hold(&self.staging).take().map(|mut staging| staging.discard()) {
            report.warn(&error.to_string());
        }
        Ok(())
    }
}
