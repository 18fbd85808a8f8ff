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
mod settings;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rustix::fs::{CWD, RenameFlags, renameat_with};

pub use self::layout::Kind;
use self::layout::{Archive, INCUS_INDEX};
use self::settings::Wishes;
use super::carry::Plan;
use super::clone::Systemd;
use super::create::{is_free, make_machines_directory, sync_directory, with_visible_path};
use super::export::output::part_of;
use super::lock::Lock;
use super::transaction::{Record, Staging, Step, Transaction, Verb, hold};
use super::{OpError, Places};
use crate::machine::manifest::{ABOUT, About, MANIFEST, Manifest, ManifestError, Part, TREE};
use crate::machine::{Cancel, MachineName, Report};
use crate::sources::SourceError;
use crate::sources::guest::{rename, renew_identity};
use crate::sources::tarball::bundle::{self, Bundle};
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

/// What an archive has besides its tree.
struct Found {
    kind: Kind,
    /// What the machine was called, if it says so.
    former: Option<String>,
    wishes: Wishes,
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
    Ok(Imported {
        kind: slots.kind.unwrap_or(Kind::Tar),
        path: places.image(&request.name),
        files: slots.plan.files.iter().map(|file| file.to.clone()).collect(),
        reaching: slots.reaching,
    })
}

/// What the steps hand on to each other.
#[derive(Default)]
struct Slots {
    lock: Option<Lock>,
    staging: Option<Staging>,
    kind: Option<Kind>,
    former: Option<String>,
    reaching: Vec<String>,
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
        let files = found.wishes.files(&self.request.name, self.request.trusts, places)?;
        for line in said(self.request, &found, places) {
            report.warn(&line);
        }
        let mut slots = hold(&self.slots);
        for (path, text) in files {
            slots.plan.add(&path, &text);
        }
        slots.reaching = reaching(self.request, &found, places);
        slots.kind = Some(found.kind);
        slots.former = found.former;
        Ok(())
    }

    fn identify(&self, report: &dyn Report) -> Result<(), OpError> {
        let (root, name) = (Root::open(&self.tree()?)?, self.request.name.as_str());
        let former = hold(&self.slots).former.clone().unwrap_or_default();
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

/// Reads the archive, and compares it with its manifest; the tree goes into `target`, or nowhere.
fn receive(
    request: &Request,
    target: Option<&Path>,
    places: &Places,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Found, OpError> {
    let source = &request.source;
    let mut archive = Archive::new(false);
    let image = image::receive(source, target, &places.machines, &mut archive, report, cancel)?;
    let is_image = image.is_some();
    let bundle = match image {
        Some(bundle) => bundle,
        None => bundle::read(source.open()?, source.label(), target, &mut archive, report, cancel)
            .map_err(|error| SourceError::from(error).full_at(&places.machines))?,
    };
    // An image is nothing else: it has come so far only with what is said of it.
    let kind = archive.kind.filter(|_| !is_image);
    let kind = kind.unwrap_or(if is_image { Kind::Machinist } else { Kind::Tar });
    let mut found = match kind {
        Kind::Machinist => {
            let about = check_sums(&bundle).map_err(|error| unfit(source, &error))?;
            Found {
                kind,
                former: Some(about.name),
                wishes: Wishes::of_members(&bundle.members, request.systemd)?,
            }
        }
        _ => {
            let foreign = foreign(kind, &bundle).unwrap_or_default();
            if foreign.left().count() > 0 {
                report.warn(&format!("left out, as systemd has nothing like it: {}", foreign.left()));
            }
            if foreign.starts_at_boot {
                report.warn(&format!(
                    "it started with its host there, and does not here: `machinist enable {}` has it do so",
                    request.name
                ));
            }
            Found {
                kind,
                former: foreign.machine_name().map(|name| name.to_string()),
                wishes: foreign.wishes(request.systemd),
            }
        }
    };
    check_tree(source, kind, &bundle, target)?;
    if bundle.extracted.skipped_devices > 0 {
        let count = bundle.extracted.skipped_devices;
        report.warn(&format!(
            "{count} device nodes were left out: systemd-nspawn makes those that a machine may have"
        ));
    }
    if request.new_identity {
        found.wishes.forget_identity();
    }
    if let Some(former) = &found.former {
        found.wishes.rename(former, &request.name);
    }
    Ok(found)
}

/// Refuses what is no root filesystem.
fn check_tree(source: &Source, kind: Kind, bundle: &Bundle, target: Option<&Path>) -> Result<(), OpError> {
    let has_usr = match target {
        Some(target) => Root::open(target)?.resolve("usr").is_ok(),
        None => bundle.extracted.entries > 0,
    };
    if has_usr {
        return Ok(());
    }
    let hint = match kind {
        Kind::Incus => {
            "of a container, made without --optimized-storage, `incus export` has one; a virtual machine has none"
        }
        Kind::Image => "of a split image of incus the root filesystem is the other file",
        _ => {
            "see what it has with `tar -tvf FILE | less`; of another archive a part is taken by `machinist create --subtree`"
        }
    };
    Err(OpError::Option {
        message: format!(
            "archive '{}' has no root filesystem: there is no /usr in it",
            shown(source.label())
        ),
        hint: hint.to_owned(),
    })
}

fn unfit(source: &Source, error: &ManifestError) -> OpError {
    let hint = match error {
        ManifestError::TooNew { .. } => "import it with that version",
        _ => "it is cut off, damaged or was changed: fetch it again, or export the machine anew",
    };
    OpError::Option {
        message: format!("archive '{}' cannot be taken: {error}", shown(source.label())),
        hint: hint.to_owned(),
    }
}

fn member<'a>(bundle: &'a Bundle, path: &str) -> Option<&'a [u8]> {
    let found = bundle.members.iter().find(|member| member.path == path);
    found.map(|member| member.bytes.as_slice())
}

fn about(bundle: &Bundle) -> Result<About, ManifestError> {
    About::parse(member(bundle, ABOUT).ok_or(ManifestError::Missing(ABOUT))?)
}

/// Compares all parts with the manifest.
fn check_sums(bundle: &Bundle) -> Result<About, ManifestError> {
    let about = about(bundle)?;
    let manifest = Manifest::parse(member(bundle, MANIFEST).ok_or(ManifestError::Missing(MANIFEST))?)?;
    let others = bundle.members.iter().filter(|member| member.path != MANIFEST);
    let mut found: BTreeMap<String, Part> = others
        .map(|member| (member.path.clone(), part_of(&member.bytes)))
        .collect();
    if let Some((sum, size)) = bundle.tree {
        let sha256 = sum.to_string();
        found.insert(TREE.to_owned(), Part { sha256, size });
    }
    manifest.check(&about, &found)?;
    Ok(about)
}

/// What another tool says of its container.
fn foreign(kind: Kind, bundle: &Bundle) -> Option<foreign::Foreign> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match kind {
        Kind::Incus => Some(incus::read(&text(member(bundle, INCUS_INDEX)?))),
        Kind::Lxc => Some(lxc::read(&text(&bundle.members.first()?.bytes))),
        Kind::Machinist | Kind::Image | Kind::Tar => None,
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
