//! Renaming a machine: its image in one rename, and with it all that is said of it elsewhere.
//!
//! What is said of the new name is written before the image has it, and what was said of the old one is removed after. A
//! list among the papers of a staging directory says which image it was: a sweep looks where that is now, and takes back, or finishes.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};

use super::carry::{Extent, Names, Plan, noted};
use super::clone::lock_both;
use super::config::settle;
use super::create::{is_free, make_machines_directory, sync_directory, with_visible_path};
use super::linked::{LinkUnits, NoUnits, Units};
use super::others::{Mention, mentions};
use super::protect::refuse_protected;
use super::remove::{Target, journal_links};
use super::transaction::{Record, Staging, Step, Transaction, Verb, hold};
use super::{OpError, Places, linked, order};
use crate::machine::{Cancel, MachineName, Report};
use crate::sources::guest;
use crate::sys::files::{ReadOnly, Root, identity_of, make_read_only, make_writable, shown, write_atomic};
use crate::sys::image_lock::{ImageLock, Sharing};

/// The list, among the papers of a staging directory.
const LIST: &str = "rename.json";

/// What is to be renamed.
#[derive(Clone, Debug)]
pub struct Request {
    /// The machine's name.
    pub from: MachineName,
    /// Its new name.
    pub to: MachineName,
    /// The directory entry that makes its image visible.
    pub image: PathBuf,
    /// The version of the systemd that runs it.
    pub systemd: u32,
}

impl Request {
    /// Where the image will lie: beside where it is.
    #[must_use]
    pub fn target(&self) -> PathBuf {
        let is_raw = self.image.extension().is_some_and(|end| end == "raw");
        let name = if is_raw {
            format!("{}.raw", self.to)
        } else {
            self.to.to_string()
        };
        self.image.with_file_name(name)
    }
}

/// What is done through systemd.
pub trait Systemd: Units {
    /// Refuses a name that machined knows already.
    fn check_free(&self, name: &MachineName) -> Result<(), OpError>;

    /// Refuses a machine that runs.
    fn check_stopped(&self, name: &MachineName) -> Result<(), OpError>;

    /// Has systemd read its unit files anew, and forget that the machine failed.
    fn forget(&self, name: &MachineName, reload: bool) -> Result<(), OpError>;
}

/// What a sweep has to know.
#[derive(Debug, Serialize, Deserialize)]
struct List {
    to: String,
    image: PathBuf,
    target: PathBuf,
    /// As [`identity_of`].
    identity: (u64, u64),
    read_only: Option<ReadOnly>,
    journal: Vec<PathBuf>,
}

/// Renames a machine that does not run, or leaves everything as it was. Blocks.
pub fn rename(
    request: &Request,
    places: &Places,
    systemd: &dyn Systemd,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<(), OpError> {
    make_machines_directory(&places.machines)?;
    let _order = order::lock(places, report, cancel)?;
    let _locks = lock_both(&request.from, &request.to, places, report, cancel)?;
    // A change of settings that was killed is no part of them.
    if settle(&request.from, places)? {
        systemd.forget(&request.from, true)?;
    }
    is_free(&request.to, places)?;
    systemd.check_free(&request.to)?;
    refuse_protected(&request.from, places)?;
    systemd.check_stopped(&request.from)?;
    linked::make_visible(&request.from, places, systemd)?;
    // A machine of any name may run on it.
    let _image_lock = ImageLock::take(&request.image, &places.image_locks(), Sharing::Exclusive)?;
    // Who looks for layers that nobody needs sees the units of the one name or the other.
    let _layers = match linked::top(&request.from, places) {
        Some(_) => Some(linked::lock(places, report, cancel)?),
        None => None,
    };
    let work = Work::plan(request, places)?;
    work.steps(systemd, report, cancel)
        .run(report, cancel)
        .map_err(|error| with_visible_path(error, &places.machines))
}

impl Systemd for NoUnits {
    fn check_free(&self, _: &MachineName) -> Result<(), OpError> {
        Ok(())
    }

    fn check_stopped(&self, _: &MachineName) -> Result<(), OpError> {
        Ok(())
    }

    fn forget(&self, _: &MachineName, _: bool) -> Result<(), OpError> {
        Ok(())
    }
}

/// What [`rename`] would do, one line per step; touches nothing.
pub fn plan(request: &Request, places: &Places) -> Result<Vec<String>, OpError> {
    is_free(&request.to, places)?;
    let work = Work::plan(request, places)?;
    Ok(work.steps(&NoUnits, &(), &Cancel::default()).describe())
}

/// Takes back a killed renaming whose image still has its old name, and finishes one whose image has the new one.
pub fn finish(record: &Record, papers: &Path, places: &Places, systemd: &dyn Systemd) -> Result<(), OpError> {
    let path = papers.join(LIST);
    let Ok(text) = fs::read(&path) else {
        // Killed before there was anything to list.
        return Ok(());
    };
    let list: List = serde_json::from_slice(&text).map_err(|error| OpError::path("read", &path)(error.into()))?;
    let (from, to): (MachineName, MachineName) = (record.name.parse()?, list.to.parse()?);
    let _order = order::lock(places, &(), &Cancel::default())?;
    let _locks = lock_both(&from, &to, places, &(), &Cancel::default())?;
    let identities = |path: &Path| [identity_of(path).ok(), linked::place_identity(path).ok()];
    // Linked, it may be mounted on again.
    let is_it = |path: &Path| identities(path).contains(&Some(list.identity));
    // XFS has another number after a boot where its device has.
    let may_be_it = |path: &Path| {
        identities(path)
            .iter()
            .flatten()
            .any(|found| found.1 == list.identity.1)
    };
    let is_there = |path: &Path, other: &Path| is_it(path) || (fs::symlink_metadata(other).is_err() && may_be_it(path));
    let written = noted(papers)?;
    let is_back = !is_there(&list.target, &list.image);
    if is_back && !is_there(&list.image, &list.target) {
        // Its filesystem may not be mounted: what was written for either name is needed when it is.
        return Err(OpError::Option {
            message: format!(
                "its image is neither '{}' nor '{}' (is it mounted?); if it is gone for good, remove '{}'",
                shown(&list.image),
                shown(&list.target),
                shown(papers)
            ),
            hint: String::new(),
        });
    }
    if is_back {
        linked::clone::unmount(written.iter().map(|file| file.to.as_path()), places, systemd)?;
        for file in &written {
            file.take_back()?;
        }
        if let Some(how) = list.read_only {
            make_read_only(&list.image, how);
        }
        systemd.forget(&to, true)?;
        return linked::make_visible(&from, places, systemd);
    }
    systemd.reload()?;
    linked::make_visible(&to, places, systemd)?;
    rename_inside(&list.target, &from, &to)?;
    if let Some(how) = list.read_only {
        make_read_only(&list.target, how);
    }
    for file in written.iter().filter(|file| file.from != file.to) {
        file.remove_former()?;
    }
    if let Some(former) = LinkUnits::existing(&from, places) {
        systemd.stop_units(&former.names())?;
        former.remove()?;
    }
    for mention in mentions(&from, &to, places)? {
        mention.write()?;
    }
    move_history(&from, &to, places)?;
    for link in &list.journal {
        point_journal_link(link, &list.image, &list.target)?;
    }
    systemd.forget(&from, true)
}

struct Work<'a> {
    request: &'a Request,
    places: &'a Places,
    plan: Plan,
    others: Vec<Mention>,
    /// What mounts it, by its former name and by its new one.
    linked: Option<(LinkUnits, LinkUnits)>,
    journal: Vec<PathBuf>,
    staging: Mutex<Option<Staging>>,
    /// How the image was read-only: such a one cannot be renamed.
    read_only: Mutex<Option<ReadOnly>>,
}

impl<'a> Work<'a> {
    fn plan(request: &'a Request, places: &'a Places) -> Result<Self, OpError> {
        let names = Names {
            from: &request.from,
            to: &request.to,
            edits: &[],
        };
        let beside = request.image.parent().unwrap_or(&places.machines);
        let target = Target {
            name: request.from.clone(),
            image: Some(request.image.clone()),
            enabled: false,
        };
        let mut plan = Plan::make(names, &request.image, beside, Extent::Same, places)?;
        let former = LinkUnits::existing(&request.from, places);
        let linked = match former.filter(|_| linked::top(&request.from, places).is_some()) {
            Some(former) => Some((former, linked::renamed(names, request.systemd, places)?)),
            None => None,
        };
        if let Some((_, new)) = &linked {
            new.add_to(&mut plan);
        }
        Ok(Self {
            plan,
            linked,
            others: mentions(&request.from, &request.to, places)?,
            journal: journal_links(&target, places),
            request,
            places,
            staging: Mutex::default(),
            read_only: Mutex::default(),
        })
    }

    fn steps<'b>(&'b self, systemd: &'b dyn Systemd, report: &'b dyn Report, cancel: &'b Cancel) -> Transaction<'b> {
        let Request { from, to, image, .. } = self.request;
        let target = self.request.target();
        let mut steps = Transaction::default();
        let describe = format!(
            "note in a hidden directory in '{}' what is going to be done",
            shown(&self.places.machines)
        );
        let note = Step::new(describe, move || self.note(report, cancel));
        steps.step(note.undo(move || self.discard()));
        // When everything that follows is undone.
        let nothing = Step::new(format!("give '{to}' the settings of '{from}'"), || Ok(()));
        steps.step(nothing.undo(move || systemd.forget(to, true)));
        for file in &self.plan.files {
            steps.step(file.step());
        }
        if let Some((former, _)) = &self.linked {
            let (mounted, overlay) = (former.names(), [former.overlay.clone()]);
            let unmount = Step::new(format!("unmount '{}'", shown(image)), move || {
                systemd.stop_units(&mounted)
            });
            steps.step(unmount.undo(move || systemd.start_units(&overlay)));
        }
        let (there, back) = (target.clone(), target.clone());
        let describe = format!("rename '{}' to '{}'", shown(image), shown(&target));
        let step = Step::new(describe, move || self.rename_image(&there));
        steps.step(step.undo(move || self.rename_back(&back)));
        if let Some((_, new)) = &self.linked {
            let (mounted, overlay) = (new.names(), [new.overlay.clone()]);
            let mount = Step::new(format!("mount '{}'", shown(&target)), move || {
                systemd.reload()?;
                systemd.start_units(&overlay)
            });
            steps.step(mount.undo(move || systemd.stop_units(&mounted)));
        }
        let (inside, back) = (target.clone(), target.clone());
        let describe = format!("make the host name in it '{to}' if it was '{from}'");
        let step = Step::new(describe, move || self.change_inside(&inside, from, to));
        steps.step(step.undo(move || self.change_inside(&back, to, from)));
        for file in self.plan.files.iter().filter(|file| file.from != file.to) {
            steps.step(file.remove_former());
        }
        if let Some((former, _)) = &self.linked {
            let remove = Step::new(format!("remove the units that mounted '{}'", shown(image)), move || {
                former.remove()
            });
            steps.step(remove.undo(move || former.write()));
        }
        for other in &self.others {
            steps.step(other.step(&format!("name '{to}'")));
        }
        if self.places.history(from).is_dir() {
            let step = Step::new("keep the list of its changes", move || {
                move_history(from, to, self.places)
            });
            steps.step(step.undo(move || move_history(to, from, self.places)));
        }
        for link in &self.journal {
            let (new, former) = (target.clone(), target.clone());
            let describe = format!("point journal link '{}' to it", shown(link));
            let step = Step::new(describe, move || point_journal_link(link, image, &new));
            steps.step(step.undo(move || point_journal_link(link, &former, image)));
        }
        steps.step(Step::new("have systemd read its unit files anew", move || {
            systemd.forget(from, true)
        }));
        steps.step(Step::new("remove the hidden directory", move || {
            // It is done: what is left is for the next sweep.
            if let Err(error) = self.discard() {
                report.warn(&error.to_string());
            }
            Ok(())
        }));
        steps
    }

    fn note(&self, report: &dyn Report, cancel: &Cancel) -> Result<(), OpError> {
        let image = &self.request.image;
        let found = fs::symlink_metadata(image).map_err(OpError::path("look at", image))?;
        let record = Record {
            verb: Verb::Rename,
            name: self.request.from.to_string(),
            settings: None,
            unit: None,
        };
        let staging = Staging::create(self.places, &record, report, cancel)?;
        // Of a link nothing is read-only but where it leads.
        let read_only = (!found.is_symlink()).then(|| make_writable(image)).flatten();
        if let Some(how) = read_only {
            // Until its turn comes.
            make_read_only(image, how);
        }
        *hold(&self.read_only) = read_only;
        let list = List {
            to: self.request.to.to_string(),
            image: image.clone(),
            target: self.request.target(),
            identity: match &self.linked {
                Some(_) => linked::place_identity(image)?,
                None => identity_of(image).map_err(OpError::path("look at", image))?,
            },
            read_only,
            journal: self.journal.clone(),
        };
        self.plan.note(&staging)?;
        let path = staging.paper(LIST);
        let text = serde_json::to_vec(&list).map_err(|error| OpError::path("write", &path)(error.into()))?;
        write_atomic(&path, &text, 0o600)?;
        *hold(&self.staging) = Some(staging);
        Ok(())
    }

    fn discard(&self) -> Result<(), OpError> {
        hold(&self.staging)
            .take()
            .map_or(Ok(()), |mut staging| staging.discard())
    }

    fn rename_image(&self, target: &Path) -> Result<(), OpError> {
        let image = &self.request.image;
        if hold(&self.read_only).is_some() {
            let _ = make_writable(image);
        }
        let renamed = renameat_with(CWD, image, CWD, target, RenameFlags::NOREPLACE);
        renamed.map_err(|errno| OpError::path("rename the image to", target)(errno.into()))?;
        sync_directory(target.parent().unwrap_or(&self.places.machines))
    }

    fn rename_back(&self, target: &Path) -> Result<(), OpError> {
        let image = &self.request.image;
        if fs::symlink_metadata(image).is_err() {
            fs::rename(target, image).map_err(OpError::path("rename back", target))?;
        }
        if let Some(how) = *hold(&self.read_only) {
            make_read_only(image, how);
        }
        Ok(())
    }

    /// Changes the host name of an image, which is read-only again afterwards if it was.
    fn change_inside(&self, image: &Path, former: &MachineName, new: &MachineName) -> Result<(), OpError> {
        let how = *hold(&self.read_only);
        if how.is_some() {
            let _ = make_writable(image);
        }
        let changed = rename_inside(image, former, new);
        if let Some(how) = how {
            make_read_only(image, how);
        }
        changed
    }
}

/// Changes the host name of an image that is a directory, if it was that of the machine.
fn rename_inside(image: &Path, former: &MachineName, new: &MachineName) -> Result<(), OpError> {
    // What a link leads to may be anybody's.
    let is_directory = fs::symlink_metadata(image).is_ok_and(|found| found.is_dir());
    if !is_directory {
        return Ok(());
    }
    let _ = make_writable(image);
    Ok(guest::rename(&Root::open(image)?, former.as_str(), new.as_str())?)
}

/// Moves the former settings, if they were not moved yet.
fn move_history(from: &MachineName, to: &MachineName, places: &Places) -> Result<(), OpError> {
    let (history, target) = (places.history(from), places.history(to));
    if !history.is_dir() {
        return Ok(());
    }
    // That of a machine that had the name before is not this one's.
    if target.is_dir() {
        fs::remove_dir_all(&target).map_err(OpError::path("remove", &target))?;
    }
    fs::rename(&history, &target).map_err(OpError::path("rename", &history))
}

/// Has a link that leads into an image lead into where that is now.
fn point_journal_link(link: &Path, from: &Path, to: &Path) -> Result<(), OpError> {
    let Ok(leads_to) = fs::read_link(link) else {
        return Ok(());
    };
    let Ok(rest) = leads_to.strip_prefix(from) else {
        return Ok(());
    };
    fs::remove_file(link).map_err(OpError::path("remove", link))?;
    symlink(to.join(rest), link).map_err(OpError::path("link", link))
}
