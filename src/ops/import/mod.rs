//! A machine out of an archive: the same one again, if `export` wrote it, and what systemd can make of those of others.
//!
//! An archive is a stranger's. Its tree is unpacked path-safely beside the images; what it asks for besides is rebuilt out of what
//! is known ([`settings`]), and what reaches beyond the machine is left out unless somebody says that the archive is trusted.
//! Nothing is visible before all sums fit.

mod foreign;
pub(super) mod image;
mod incus;
pub(super) mod layout;
mod lxc;
mod names;
mod receive;
mod settings;

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rustix::fs::{CWD, RenameFlags, renameat_with};

use self::layout::Archive;
pub use self::layout::Kind;
use self::receive::{Found, about, foreign, receive, unfit};
use super::carry::Plan;
use super::clone::Systemd;
use super::create::{is_free, make_machines_directory, sync_directory, with_visible_path};
use super::lock::Lock;
use super::transaction::{Record, Staging, Step, Transaction, Verb, hold};
use super::{OpError, Places};
use crate::machine::{Cancel, MachineName, Report};
use crate::sources::SourceError;
use crate::sources::guest::{adopt, rename, renew_identity};
use crate::sources::tarball::bundle;
use crate::storage;
use crate::sys::files::{Root, shown, sync_filesystem};

/// What standard input is called.
const STDIN: &str = "standard input";

/// Where an archive comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Standard input.
    Stdin,
    /// A file.
    File(PathBuf),
    /// An image in an OCI layout: what comes behind `oci:`, and all of it for messages.
    Layout(String, PathBuf),
}

impl Source {
    fn label(&self) -> &Path {
        match self {
            Self::Stdin => Path::new(STDIN),
            Self::File(path) | Self::Layout(_, path) => path,
        }
    }

    /// What stands behind `oci:`.
    #[must_use]
    pub fn layout(text: &str) -> Self {
        Self::Layout(text.to_owned(), format!("oci:{text}").into())
    }

    fn open(&self) -> Result<File, OpError> {
        let opened = match self {
            Self::Stdin => io::stdin().as_fd().try_clone_to_owned().map(File::from),
            Self::File(path) | Self::Layout(_, path) => crate::sources::archive::open(path),
        };
        opened.map_err(OpError::path("open", self.label()))
    }
}

/// What is to be imported.
#[derive(Clone, Debug)]
pub struct Request {
    /// The archive.
    pub source: Source,
    /// What it is to be called.
    pub name: MachineName,
    /// Whether it gets what reaches beyond the machine.
    pub trusts: bool,
    /// Whether it gets an identity of its own.
    pub new_identity: bool,
    /// The version of the systemd that is to run it.
    pub systemd: u32,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// Who made the archive.
    pub kind: Kind,
    /// Where the machine lies.
    pub path: PathBuf,
    /// The files that it was given besides.
    pub files: Vec<PathBuf>,
    /// What reaches beyond the machine, as lines.
    pub reaching: Vec<String>,
}

/// The name that an archive has for its machine; that of the file, if it has none.
///
/// # Errors
/// If the file cannot be read, or its name is no machine's.
pub fn name_of(source: &Source, cancel: &Cancel) -> Result<MachineName, OpError> {
    let (mut archive, path) = (Archive::new(true), source.label());
    let bundle = match image::glance(source, &mut archive, cancel)? {
        Some(bundle) => bundle,
        None => bundle::read(source.open()?, path, None, &mut archive, &(), cancel).map_err(SourceError::from)?,
    };
    let former = match archive.kind {
        Some(Kind::Machinist) => Some(about(&bundle).map_err(|error| unfit(source, &error))?.name),
        kind => kind
            .and_then(|kind| foreign(kind, &bundle))
            .and_then(|found| found.name),
    };
    if let Some(name) = former.and_then(|name| name.parse().ok()) {
        return Ok(name);
    }
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    let endings = [".tar", ".tgz", ".txz", ".tzst", ".tbz2"].into_iter();
    let end = endings.filter_map(|ending| file.rfind(ending)).max();
    let stem = end.map_or(&*file, |end| &file[..end]);
    stem.parse().map_err(|_| OpError::Option {
        message: format!("'{}' does not say what the machine is to be called", shown(path)),
        hint: "name it: `machinist import FILE NAME`".to_owned(),
    })
}

/// What [`import`] would do, one line per step, and what it would say; reads the archive, and touches nothing.
pub fn plan(
    request: &Request,
    places: &Places,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<(Vec<String>, Vec<String>), OpError> {
    is_free(&request.name, places)?;
    let found = receive(request, None, places, report, cancel)?;
    let lines = said(request, &found, places);
    let work = Work::new(request, places);
    let mut steps = work.steps(&super::linked::NoUnits, &(), cancel).describe();
    let files = found.wishes.files(&request.name, request.trusts, places)?;
    let at = steps.len() - 1;
    steps.splice(at..at, files.iter().map(|(path, _)| format!("write '{}'", shown(path))));
    Ok((steps, lines))
}

/// Makes the machine, or leaves everything as it was. Blocks.
pub fn import(
    request: &Request,
    places: &Places,
    systemd: &dyn Systemd,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Imported, OpError> {
    let work = Work::new(request, places);
    work.steps(systemd, report, cancel)
        .run(report, cancel)
        .map_err(|error| with_visible_path(error, &places.machines))?;
    let slots = work
        .slots
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let found = slots.found.as_ref();
    Ok(Imported {
        kind: found.map_or(Kind::Tar, |found| found.kind),
        path: places.image(&request.name),
        files: slots.plan.files.iter().map(|file| file.to.clone()).collect(),
        reaching: found.map(|found| reaching(request, found, places)).unwrap_or_default(),
    })
}

/// What the steps hand on to each other.
#[derive(Default)]
struct Slots {
    lock: Option<Lock>,
    staging: Option<Staging>,
    found: Option<Found>,
    plan: Plan,
}

struct Work<'a> {
    request: &'a Request,
    places: &'a Places,
    slots: Mutex<Slots>,
}

impl<'a> Work<'a> {
    fn new(request: &'a Request, places: &'a Places) -> Self {
        Self {
            request,
            places,
            slots: Mutex::default(),
        }
    }

    fn tree(&self) -> Result<PathBuf, OpError> {
        // Steps run in their order: the staging directory is there.
        let slots = hold(&self.slots);
        let tree = slots.staging.as_ref().map(Staging::tree);
        tree.ok_or_else(|| OpError::Setting("internal error: no staging directory".into()))
    }

    fn steps<'b>(&'b self, systemd: &'b dyn Systemd, report: &'b dyn Report, cancel: &'b Cancel) -> Transaction<'b> {
        let (name, places) = (&self.request.name, self.places);
        let mut steps = Transaction::default();
        let lock = format!("lock the name '{name}' and check that it is free");
        steps.step(Step::new(lock, move || {
            make_machines_directory(&places.machines)?;
            hold(&self.slots).lock = Some(Lock::wait(&places.runtime, name.as_str(), report, cancel)?);
            is_free(name, places)?;
            systemd.check_free(name)
        }));
        let make = format!("make a hidden directory in '{}'", shown(&places.machines));
        let make = Step::new(make, move || {
            // What is written besides is taken back as that of a clone is.
            let record = Record {
                verb: Verb::Clone,
                name: name.to_string(),
                settings: None,
                unit: None,
            };
            let staging = Staging::create(places, &record, report, cancel)?;
            hold(&self.slots).staging = Some(staging);
            Ok(())
        });
        steps.step(make.undo(move || {
            let staging = hold(&self.slots).staging.take();
            staging.map_or(Ok(()), |mut staging| staging.discard())
        }));
        let unpack = format!("unpack '{}' and compare its sums", shown(self.request.source.label()));
        steps.step(Step::new(unpack, move || self.unpack(report, cancel)));
        let adopt = "have it boot under systemd-nspawn, if another manager had it";
        steps.step(Step::new(adopt, move || self.adopt(report)));
        let identity = if self.request.new_identity {
            "give it an identity of its own: machine ID, keys, leases".to_owned()
        } else {
            format!("keep its identity; host name '{name}' if it was the machine's")
        };
        steps.step(Step::new(identity, move || self.identify(report)));
        steps.step(Step::new("write everything to disk", move || {
            report.phase("writing to disk");
            Ok(sync_filesystem(&places.machines)?)
        }));
        let write = Step::new("write its settings, as far as they are granted", move || {
            let slots = hold(&self.slots);
            if let Some(staging) = &slots.staging {
                slots.plan.note(staging)?;
            }
            slots.plan.write()?;
            self.reload(&slots.plan, systemd)
        });
        steps.step(write.undo(move || {
            let slots = hold(&self.slots);
            slots.plan.take_back()?;
            self.reload(&slots.plan, systemd)
        }));
        let image = places.image(name);
        let show = format!("rename it to '{}'", shown(&image));
        steps.step(Step::new(show, move || self.show(&image, report)));
        steps
    }

    fn reload(&self, plan: &Plan, systemd: &dyn Systemd) -> Result<(), OpError> {
        if plan.has_unit_files(self.places) {
            systemd.reload()?;
        }
        Ok(())
    }

    fn unpack(&self, report: &dyn Report, cancel: &Cancel) -> Result<(), OpError> {
        let (tree, places) = (self.tree()?, self.places);
        storage::for_directory(&places.machines)?.create(&tree)?;
        let found = receive(self.request, Some(&tree), places, report, cancel)?;
        // First, as it refuses more of them than anybody would read.
        found.wishes.files(&self.request.name, self.request.trusts, places)?;
        for line in said(self.request, &found, places) {
            report.warn(&line);
        }
        hold(&self.slots).found = Some(found);
        Ok(())
    }

    fn adopt(&self, report: &dyn Report) -> Result<(), OpError> {
        let tree = self.tree()?;
        let mut slots = hold(&self.slots);
        let Slots {
            found: Some(found),
            plan,
            ..
        } = &mut *slots
        else {
            return Ok(());
        };
        if found.kind != Kind::Machinist {
            let guest = adopt(&Root::open(&tree)?, found.link.as_deref())?;
            for note in &guest.notes {
                report.warn(note);
            }
            if let Some(signal) = guest.init.kill_signal() {
                found.wishes.power_off(signal);
            }
        }
        for (path, text) in found
            .wishes
            .files(&self.request.name, self.request.trusts, self.places)?
        {
            plan.add(&path, &text);
        }
        Ok(())
    }

    fn identify(&self, report: &dyn Report) -> Result<(), OpError> {
        let (root, name) = (Root::open(&self.tree()?)?, self.request.name.as_str());
        let former = hold(&self.slots).found.as_ref().and_then(|found| found.former.clone());
        let former = former.unwrap_or_default();
        if self.request.new_identity {
            for note in renew_identity(&root, &former, name)? {
                report.warn(&note);
            }
        } else if !former.is_empty() && former != name {
            rename(&root, &former, name)?;
        }
        Ok(())
    }

    fn show(&self, image: &Path, report: &dyn Report) -> Result<(), OpError> {
        renameat_with(CWD, self.tree()?, CWD, image, RenameFlags::NOREPLACE)
            .map_err(|errno| OpError::path("rename the new image to", image)(errno.into()))?;
        // The machine exists from here on: what follows must not fail the verb.
        if let Err(error) = sync_directory(&self.places.machines) {
            report.warn(&error.to_string());
        }
        let staging = hold(&self.slots).staging.take();
        if let Some(Err(error)) = staging.map(|mut staging| staging.discard()) {
            report.warn(&error.to_string());
        }
        Ok(())
    }
}

/// What reaches beyond the machine, as lines of a diff.
fn reaching(request: &Request, found: &Found, places: &Places) -> Vec<String> {
    let asked = found.wishes.asked.iter().filter(|asked| asked.reaches);
    asked.map(|asked| asked.line(&request.name, places)).collect()
}

/// What there is to be said of its settings.
fn said(request: &Request, found: &Found, places: &Places) -> Vec<String> {
    let mut lines = reaching(request, found, places);
    if !lines.is_empty() {
        lines.insert(
            0,
            if request.trusts {
                "it gets settings that reach beyond the machine, as --trust-settings says:".to_owned()
            } else {
                "left out what reaches beyond the machine, which --trust-settings would take:".to_owned()
            },
        );
    }
    let ignored = &found.wishes.ignored;
    match ignored.count() {
        0 => {}
        1 => lines.push(format!("one setting means nothing here, and is left out: {ignored}")),
        count => lines.push(format!(
            "{count} settings mean nothing here, and are left out: {ignored}"
        )),
    }
    if found.wishes.asked.iter().any(|asked| asked.key == "Priority") {
        lines.push(format!(
            "who starts before it by its priority is not known yet: give it again with `machinist order {} --priority N`",
            request.name
        ));
    }
    lines
}
