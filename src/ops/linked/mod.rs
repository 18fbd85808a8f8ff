//! Machines that lie on layers: where the filesystem cannot share files between copies, a linked clone shares them this way.
//!
//! What a machine was when it was cloned becomes a layer that never changes again; the machine itself and its clone go on in
//! layers of their own on top of it. So either of them can be changed, renamed and removed as it likes. systemd mounts
//! them, by units that name the layer on top, see [`crate::unit::layers`]; these files are all that is known of a link.

pub mod changed;
pub(super) mod clone;
pub mod flatten;
pub(super) mod rest;
pub mod units;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{DirEntryExt as _, MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

use super::carry::{Names, Plan};
use super::config::files::of_machine;
use super::lock::Lock;
use super::transaction::Step;
use super::{OpError, Places, owned};
use crate::machine::{Cancel, MachineName, Report};
use crate::nspawn::document::Document;
use crate::nspawn::edit::Edit;
use crate::nspawn::settings::Settings;
use crate::nspawn::switches::switches_of;
use crate::nspawn::users::{PrivateUsers, UserRange};
use crate::storage::layers::{DEPTH_MAX, Layers};
use crate::sys::bus::Bus;
use crate::sys::files::{identity_of, shown};
use crate::sys::overlay::{Shift, can_shift, mounter};
use crate::unit::layers::{Lower, Mounts, mount_unit, options_of, place_of, top_of};
use rest::is_place;

/// The lock of whoever makes layers, or removes those that nobody needs.
const LOCK: &str = ".layers";
/// How long the options of a mount may be, so that they fit into a page.
const OPTIONS_MAX: usize = 4000;
/// Which other unit wants the mounts, so that the files of machines that do not run are seen after a boot, too.
const WANTED_BY: &str = "multi-user.target";

/// What is done through systemd.
pub trait Units: Sync {
    /// Has systemd read its unit files anew.
    fn reload(&self) -> Result<(), OpError>;

    /// Has systemd read the files of these units, which are new. It reads what it does not know when that is started; a
    /// reload of everything takes most of the time of a clone.
    fn read_new(&self, units: &[String]) -> Result<(), OpError>;

    /// Starts these units, in this order; no error for one that is up.
    fn start_units(&self, units: &[String]) -> Result<(), OpError>;

    /// Stops these units, in this order; no error for one that is down, or unknown.
    fn stop_units(&self, units: &[String]) -> Result<(), OpError>;
}

/// For a plan: nothing is done.
#[derive(Debug)]
pub struct NoUnits;

impl Units for NoUnits {
    fn reload(&self) -> Result<(), OpError> {
        Ok(())
    }

    fn read_new(&self, _: &[String]) -> Result<(), OpError> {
        Ok(())
    }

    fn start_units(&self, _: &[String]) -> Result<(), OpError> {
        Ok(())
    }

    fn stop_units(&self, _: &[String]) -> Result<(), OpError> {
        Ok(())
    }
}

/// Takes the lock of the layers. Blocks.
pub(super) fn lock(places: &Places, report: &dyn Report, cancel: &Cancel) -> Result<Lock, OpError> {
    Lock::wait_saying_why(&places.runtime, LOCK, "works with layers", report, cancel)
}

/// The unit that mounts a linked machine.
fn overlay_file(name: &MachineName, places: &Places) -> PathBuf {
    places.units.join(mount_unit(&places.image(name)))
}

/// Whether there is an image that nothing is mounted on, and nothing is to be: whatever units say, it is what it is.
fn is_plain(image: &Path) -> bool {
    let device = |path: &Path| fs::symlink_metadata(path).ok().map(|found| found.dev());
    let Some(own) = device(image) else { return false };
    !is_place(image) && image.parent().and_then(device) == Some(own)
}

/// The layer that is on top of a machine; `None` if it does not lie on layers.
#[must_use]
pub fn top(name: &MachineName, places: &Places) -> Option<String> {
    if is_plain(&places.image(name)) {
        return None;
    }
    let text = fs::read_to_string(overlay_file(name, places)).ok()?;
    layer_of(&text, places)
}

/// The layer on top that a unit names.
fn layer_of(text: &str, places: &Places) -> Option<String> {
    let top = top_of(text)?;
    let id = top.file_name()?.to_str()?;
    (Layers::at(places.layers()).directory(id) == top).then(|| id.to_owned())
}

/// The units of a linked machine, for a new text or one that there is.
pub(super) struct LinkUnits {
    /// Each file, and what it says.
    pub(super) files: Vec<(PathBuf, String)>,
    /// The link that has it mounted at boot, and where it leads.
    pub(super) wants: (PathBuf, PathBuf),
    /// The units that shift layers.
    pub(super) shifts: Vec<String>,
    /// The unit that mounts the machine.
    pub(super) overlay: String,
    /// The directories that the overlay is laid over, the nearest first.
    pub(super) lowers: Vec<PathBuf>,
}

impl LinkUnits {
    /// Those of a machine whose layer on top is `top`, and whose users are `users`.
    pub(super) fn of(
        name: &MachineName,
        top: &str,
        users: Option<UserRange>,
        places: &Places,
    ) -> Result<Self, OpError> {
        let layers = Layers::at(places.layers());
        Self::with(name, top, places, |id| Ok(layers.shift(id, users)?))
    }

    /// The same; `shift` says how the owners of a layer are shifted.
    fn with(
        name: &MachineName,
        top: &str,
        places: &Places,
        shift: impl Fn(&str) -> Result<Option<Shift>, OpError>,
    ) -> Result<Self, OpError> {
        let layers = Layers::at(places.layers());
        let below = layers.below(top)?;
        let mut lowers = Vec::new();
        let mounts = places.runtime.join("layers").join(name.as_str());
        for (height, id) in (0..below.len()).rev().zip(&below) {
            // Counted from below, where nothing changes.
            let place = |shift: Shift| (mounts.join(height.to_string()), shift.maps());
            lowers.push(Lower {
                tree: layers.tree(id),
                shifted: shift(id)?.map(place),
            });
        }
        let is_shifted = lowers.iter().any(|lower| lower.shifted.is_some());
        let helper = if is_shifted && !can_shift()? {
            let helper = mounter().ok_or_else(|| OpError::Option {
                message: "mount(8) of this host cannot shift owners, and systemd does not find machinist-helper"
                    .to_owned(),
                hint: "install machinist as a package, or clone with --full".to_owned(),
            })?;
            Some(helper)
        } else {
            None
        };
        let (image, directory) = (places.image(name), layers.directory(top));
        let mounts = Mounts {
            name,
            image: &image,
            top: &directory,
            below: &lowers,
            helper: helper.as_deref(),
        };
        let (overlay, text) = mounts.overlay();
        if options_of(&text).len() > OPTIONS_MAX || below.len() > DEPTH_MAX {
            return Err(OpError::Option {
                message: format!(
                    "machine '{name}' would lie on {} layers, which are too many",
                    below.len()
                ),
                hint: "make the machine that is cloned independent first: `machinist clone --flatten NAME`".to_owned(),
            });
        }
        let shifts = mounts.shifts();
        let mut files: Vec<_> = shifts
            .iter()
            .map(|(unit, text)| (places.units.join(unit), text.clone()))
            .collect();
        let names = shifts.into_iter().map(|(unit, _)| unit).collect();
        files.push((places.units.join(&overlay), text));
        let link = places.units.join(format!("{WANTED_BY}.wants")).join(&overlay);
        let leads_to = Path::new("..").join(&overlay);
        Ok(Self {
            files,
            wants: (link, leads_to),
            shifts: names,
            overlay,
            lowers: lowers.iter().map(|lower| lower.seen().to_owned()).collect(),
        })
    }

    /// Those that there are, whether they have an effect or not.
    pub(super) fn existing(name: &MachineName, places: &Places) -> Option<Self> {
        let file = overlay_file(name, places);
        layer_of(&fs::read_to_string(&file).ok()?, places)?;
        let overlay = mount_unit(&places.image(name));
        let ours = mount_unit(&places.runtime.join("layers").join(name.as_str()).join(""));
        let prefix = ours.trim_end_matches(".mount").to_owned();
        let mut files = vec![];
        let mut shifts = vec![];
        for entry in fs::read_dir(&places.units).ok()?.flatten() {
            let unit = entry.file_name().to_string_lossy().into_owned();
            if unit.starts_with(&prefix) && (unit.ends_with(".mount") || unit.ends_with(".service")) {
                files.push((entry.path(), fs::read_to_string(entry.path()).unwrap_or_default()));
                shifts.push(unit);
            }
        }
        files.push((file.clone(), fs::read_to_string(&file).unwrap_or_default()));
        Some(Self {
            files,
            wants: (
                places.units.join(format!("{WANTED_BY}.wants")).join(&overlay),
                Path::new("..").join(&overlay),
            ),
            shifts,
            overlay,
            lowers: Vec::new(),
        })
    }

    /// All of them as they are stopped: the mount of the machine first.
    pub(super) fn names(&self) -> Vec<String> {
        std::iter::once(&self.overlay).chain(&self.shifts).cloned().collect()
    }

    /// Has them written with other files.
    pub(super) fn add_to(&self, plan: &mut Plan) {
        for (path, text) in &self.files {
            plan.add(path, text);
        }
        let (link, leads_to) = &self.wants;
        plan.add_link(link, leads_to);
    }

    /// Removes the files, the link first: what is not there any more is no error.
    pub(super) fn remove(&self) -> Result<(), OpError> {
        remove_file(&self.wants.0)?;
        self.files.iter().try_for_each(|(path, _)| remove_file(path))
    }

    /// Writes the files, and the link.
    pub(super) fn write(&self) -> Result<(), OpError> {
        for (path, text) in &self.files {
            owned::write(path, text.as_bytes())?;
        }
        let (link, leads_to) = &self.wants;
        make_link(link, leads_to)
    }

    /// The step that has the machine mounted at boot no more.
    pub(super) fn forget_link<'a>(&self) -> Step<'a> {
        let (link, leads_to) = self.wants.clone();
        let back = link.clone();
        let remove = Step::new(format!("remove '{}'", shown(&link)), move || remove_file(&link));
        remove.undo(move || make_link(&back, &leads_to))
    }
}

/// As [`identity_of`], of the directory that a linked machine is mounted on, which the mount covers.
pub(super) fn place_identity(image: &Path) -> Result<(u64, u64), OpError> {
    let directory = image.parent().unwrap_or(Path::new("/"));
    let found = identity_of(directory).and_then(|(filesystem, _)| {
        let mut entries = fs::read_dir(directory)?.flatten();
        let own = entries.find(|entry| Some(entry.file_name().as_os_str()) == image.file_name());
        own.map(|entry| (filesystem, entry.ino()))
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    });
    found.map_err(OpError::path("look at", image))
}

/// The unit that is to be started before the files of a linked machine are seen; `None` if they are, or it is not one.
fn unseen(name: &MachineName, places: &Places) -> Option<String> {
    let image = places.image(name);
    let unit = || mount_unit(&image);
    (is_place(&image) && top(name, places).is_some()).then(unit)
}

/// Has the files of a linked machine be seen; nothing for any other. Blocks.
pub(super) fn make_visible(name: &MachineName, places: &Places, units: &dyn Units) -> Result<(), OpError> {
    unseen(name, places).map_or(Ok(()), |unit| units.start_units(&[unit]))
}

/// The same for a verb that is to look into an image.
pub async fn show(bus: &Bus, name: &MachineName, places: &Places) -> Result<(), OpError> {
    match unseen(name, places) {
        Some(unit) => units::start(bus, &[unit]).await,
        None => Ok(()),
    }
}

/// What a machine's settings say of private users.
fn private_users(name: &MachineName, systemd: u32, places: &Places) -> Result<PrivateUsers, OpError> {
    let file = of_machine(name, places).into_iter().next();
    let (mut document, trusted) = match &file {
        Some(file) => (Document::from_bytes(file.read()?), file.trusted),
        None => (Document::parse(b""), true),
    };
    if !trusted {
        document.comment_out_untrusted();
    }
    let settings = Settings::effective(&document, systemd, true);
    Ok(PrivateUsers::of_switches(&switches_of(&settings)))
}

/// The users of a linked machine, `None` for the host's; and whether its settings say so.
fn users_of(
    name: &MachineName,
    top: &str,
    systemd: u32,
    places: &Places,
) -> Result<(Option<UserRange>, bool), OpError> {
    let tree = Layers::at(places.layers()).tree(top);
    let owner = fs::metadata(&tree).map_err(OpError::path("look at", &tree))?.uid();
    match (private_users(name, systemd, places)?, UserRange::of_owner(owner)) {
        (PrivateUsers::No, _) => Ok((None, true)),
        (PrivateUsers::Plain(range), _) => Ok((Some(range), true)),
        // Killed before it was said: whose its layer is systemd-nspawn picks.
        (PrivateUsers::Mapped(range), _) | (PrivateUsers::Pick, Some(range)) => Ok((Some(range), false)),
        (PrivateUsers::Pick | PrivateUsers::Other, _) => Err(OpError::Option {
            message: format!("machine '{name}' lies on layers, and its settings do not say any more whose they are"),
            hint: format!("`machinist config undo {name}` brings PrivateUsers=FIRST:COUNT back"),
        }),
    }
}

/// The units of a linked machine that is to have another name.
pub(super) fn renamed(names: Names<'_>, systemd: u32, places: &Places) -> Result<LinkUnits, OpError> {
    let top = top(names.from, places).ok_or_else(|| OpError::NoImage {
        name: names.from.to_string(),
    })?;
    let (users, _) = users_of(names.from, &top, systemd, places)?;
    LinkUnits::of(names.to, &top, users, places)
}

/// The edits that give a linked machine its users, and leave its files as they are.
pub(super) fn edits_for(users: UserRange) -> Vec<Edit> {
    vec![
        Edit::set("Exec", "PrivateUsers", users.to_string()),
        Edit::set("Files", "PrivateUsersOwnership", "off".to_owned()),
    ]
}

/// The edits that let systemd-nspawn choose them again, for a machine whose files are its own.
pub(super) fn edits_for_own_files() -> Vec<Edit> {
    vec![
        Edit::set("Exec", "PrivateUsers", "pick".to_owned()),
        Edit::remove("Files", "PrivateUsersOwnership", Some("off".to_owned())),
    ]
}

fn make_link(link: &Path, leads_to: &Path) -> Result<(), OpError> {
    if let Some(directory) = link.parent() {
        fs::create_dir_all(directory).map_err(OpError::path("create", directory))?;
    }
    match symlink(leads_to, link) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(OpError::path("link", link)(error)),
        _ => Ok(()),
    }
}

fn remove_file(path: &Path) -> Result<(), OpError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(OpError::path("remove", path)(error)),
        _ => Ok(()),
    }
}

/// The layers that no machine needs.
pub fn unused(places: &Places) -> Result<Vec<PathBuf>, OpError> {
    let layers = Layers::at(places.layers());
    let mut unused: BTreeSet<String> = layers.all()?.into_iter().collect();
    if unused.is_empty() {
        return Ok(Vec::new());
    }
    let prefix = mount_unit(&places.machines).replace(".mount", "-");
    let entries = fs::read_dir(&places.units).map_err(OpError::path("read", &places.units))?;
    for entry in entries {
        let path = entry.map_err(OpError::path("read", &places.units))?.path();
        let unit = path.file_name().unwrap_or_default().to_string_lossy();
        if !unit.starts_with(&*prefix) || !unit.ends_with(".mount") {
            continue;
        }
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            // Its machine was removed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            // Whose it is nobody knows.
            Err(error) => return Err(OpError::path("read", &path)(error)),
        };
        let Some(top) = layer_of(&text, places) else { continue };
        // Left by who was killed before it was mounted, or after it was not any more.
        if place_of(&text).is_some_and(|image| is_plain(&image)) {
            continue;
        }
        // One that was lost does not make the others rubbish.
        let (below, _) = layers.known_below(&top)?;
        for id in below.into_iter().chain([top]) {
            unused.remove(&id);
        }
    }
    Ok(unused.into_iter().map(|id| layers.directory(&id)).collect())
}

/// Removes the layers that no machine needs, for who has locked the layers: how many. What cannot be removed is reported, and
/// left to the next time.
pub(super) fn sweep(places: &Places, report: &dyn Report) -> Result<Vec<PathBuf>, OpError> {
    let layers = Layers::at(places.layers());
    let mut swept = Vec::new();
    for directory in unused(places)? {
        let id = directory.file_name().unwrap_or_default().to_string_lossy();
        match layers.remove(&id) {
            Ok(()) => swept.push(directory),
            Err(error) => report.warn(&format!("cannot remove layer '{}': {error}", shown(&directory))),
        }
    }
    Ok(swept)
}
