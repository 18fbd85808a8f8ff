//! Limiting what a machine's image takes of the disk: on btrfs by machined, elsewhere by a project of its own.
//!
//! The limit is set last, when every file is in the project: who was killed before left no limit, and the next call
//! completes it.

mod copy;
mod error;
mod project;

use std::path::{Path, PathBuf};
use std::sync::Mutex;

pub(super) use self::copy::Copied;
pub use self::error::QuotaError;
pub(super) use self::project::forget;
use self::project::{Project, free_number};
use super::config::files::of_machine;
use super::linked::top;
use super::lock::Lock;
use super::survey::mount_of;
use super::transaction::{Step, Transaction, hold};
use super::{OpError, Places};
use crate::machine::quota::{Keeper, Quota};
use crate::machine::text::bytes;
use crate::machine::{Cancel, MachineName, Report};
use crate::nspawn::document::Document;
use crate::nspawn::names::boolean;
use crate::nspawn::settings::Settings;
use crate::sys::bus::machine1::ImageState;
use crate::sys::files::{enter_project, mark_tree, shown};
use crate::sys::quota::{Support, Tree};

/// Guards the choice of a project's number.
const PROJECTS_LOCK: &str = ".projects";

/// What is limited.
#[derive(Clone, Debug)]
pub struct Order {
    /// The machine.
    pub name: MachineName,
    /// How many bytes it may take.
    pub limit: Option<u64>,
    /// The version of systemd.
    pub systemd: u32,
    /// Without root only machined is asked, and polkit decides.
    pub is_root: bool,
}

/// What is done through systemd.
pub trait Systemd: Sync {
    /// What machined knows of the machine's image.
    fn image(&self, name: &MachineName) -> Result<ImageState, OpError>;

    /// Limits an image that is a subvolume.
    fn limit(&self, name: &MachineName, limit: Option<u64>) -> Result<(), OpError>;
}

/// What came of an order.
#[derive(Debug, Default)]
pub struct Done {
    /// Whether anything is other than before.
    pub changed: bool,
    /// How it is now.
    pub quota: Quota,
    /// Whether the machine's root may write beyond the limit.
    pub root_may_exceed: bool,
    /// Subvolumes in the image, which have a quota of their own or none.
    pub subvolumes: Vec<PathBuf>,
}

/// What keeps the quota of an image.
#[derive(Debug)]
enum Place {
    /// btrfs, by machined.
    Subvolume,
    Project(Project),
}

impl Place {
    fn of(name: &MachineName, image: &ImageState, places: &Places) -> Result<Self, OpError> {
        let path = Path::new(&image.path);
        let mount = || mount_of(path).map_err(denied("look at", path));
        match image.kind.as_str() {
            "subvolume" if image.used.is_some() => Ok(Self::Subvolume),
            "subvolume" => Err(QuotaError::NotCounted(mount()?).into()),
            "directory" if top(name, places).is_some() => Err(QuotaError::Linked { name: name.clone() }.into()),
            "directory" => {
                let root = path.canonicalize().map_err(denied("look at", path))?;
                let tree = Tree::open(&root).map_err(denied("open", path))?;
                let mount = mount()?;
                match tree.support() {
                    _ if mount.filesystem == "btrfs" => Err(QuotaError::Plain { name: name.clone() }.into()),
                    Support::None => Err(QuotaError::Off(mount).into()),
                    Support::Counted => Err(QuotaError::NotEnforced(mount).into()),
                    Support::Enforced => {
                        refuse_above(&root)?;
                        Ok(Self::Project(Project::of(root, tree, places)?))
                    }
                }
            }
            _ => Err(QuotaError::DiskImage.into()),
        }
    }
}

/// What may be read by root only.
fn denied(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> OpError {
    let path = path.to_owned();
    move |error| {
        if error.kind() == std::io::ErrorKind::PermissionDenied && !nix::unistd::geteuid().is_root() {
            OpError::NeedsRoot { verb: "quota" }
        } else {
            OpError::path(action, path)(error)
        }
    }
}

/// Whether the machine's root has `CAP_SYS_RESOURCE` of the host: then quotas do not hold for it but on XFS. With private users, as
/// in the template unit, it has that of its own user namespace.
fn has_resource_capability(name: &MachineName, image: &Path, systemd: u32, places: &Places) -> bool {
    if mount_of(image).is_ok_and(|mount| mount.filesystem == "xfs") {
        return false;
    }
    let Some(file) = of_machine(name, places).into_iter().next() else {
        return false;
    };
    let Ok(bytes) = file.read() else { return false };
    let settings = Settings::effective(&Document::from_bytes(bytes), systemd, file.trusted);
    let users = settings.values("Exec", "PrivateUsers").last();
    let is_private = users.is_none_or(|users| boolean(&users.value) != Some(false));
    let dropped = settings.values("Exec", "DropCapability");
    let is_dropped = dropped
        .iter()
        .flat_map(|value| value.value.split_whitespace())
        .any(|name| ["CAP_SYS_RESOURCE", "all"].contains(&name));
    !is_private && !is_dropped
}

/// The kernel renames nothing into a directory that hands its project on, if it is in another.
fn refuse_above(root: &Path) -> Result<(), OpError> {
    let Some(directory) = root.parent() else { return Ok(()) };
    let above = Tree::open(directory).map_err(denied("open", directory))?;
    match above.project() {
        Some(project) => Err(QuotaError::Above {
            directory: directory.to_owned(),
            project,
        }
        .into()),
        None => Ok(()),
    }
}

/// The quota of an image. That none is possible is no failure. Blocks.
pub fn look(name: &MachineName, image: &ImageState, places: &Places) -> Result<Quota, OpError> {
    let found = Quota {
        machine: name.to_string(),
        path: image.path.clone(),
        ..Quota::default()
    };
    let of_image = Quota {
        limit: image.limit,
        used: image.used,
        ..found.clone()
    };
    match Place::of(name, image, places) {
        Ok(Place::Subvolume) => Ok(Quota {
            kept_by: Some(Keeper::Btrfs),
            ..of_image
        }),
        Ok(Place::Project(project)) => {
            let Some(number) = project.own else {
                return Ok(Quota {
                    kept_by: Some(Keeper::Project),
                    ..found
                });
            };
            let usage = project
                .tree
                .usage(number)
                .map_err(denied("read the quota of", &project.root))?;
            Ok(Quota {
                limit: usage.limit,
                // Without a limit, it may be that not all files are in the project.
                used: usage.limit.is_some().then_some(usage.used),
                kept_by: Some(Keeper::Project),
                project: Some(number),
                ..found
            })
        }
        Err(OpError::Quota(error)) => Ok(Quota {
            reason: Some(error.to_string()),
            ..if error == QuotaError::DiskImage {
                of_image
            } else {
                found
            }
        }),
        Err(error) => Err(error),
    }
}

/// Limits a machine's image, running or not, or leaves it as it was. Blocks.
pub fn set(
    order: &Order,
    places: &Places,
    systemd: &dyn Systemd,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Done, OpError> {
    let name = &order.name;
    let _lock = if order.is_root {
        Some(Lock::wait(&places.runtime, name.as_str(), report, cancel)?)
    } else {
        None
    };
    let image = systemd.image(name)?;
    let work = Work::plan(order, &image, places)?;
    let steps = work.steps(systemd, report, cancel);
    let changed = !steps.is_empty();
    steps.run(report, cancel)?;
    let image = systemd.image(name)?;
    let subvolumes = match &work.place {
        Some(Place::Subvolume) if order.limit.is_some() => Tree::open(Path::new(&image.path))
            .map(|tree| tree.subvolumes().into_iter().map(PathBuf::from).collect())
            .unwrap_or_default(),
        _ => Vec::new(),
    };
    let is_limited = order.limit.is_some() && matches!(work.place, Some(Place::Project(_)));
    Ok(Done {
        changed,
        root_may_exceed: is_limited && has_resource_capability(name, Path::new(&image.path), order.systemd, places),
        quota: match work.place {
            // machined may tell of what it has looked at before.
            Some(Place::Subvolume) => Quota {
                limit: order.limit,
                ..look(name, &image, places)?
            },
            _ => look(name, &image, places)?,
        },
        subvolumes,
    })
}

/// What [`set`] would do, one line per step; touches nothing. Blocks.
pub fn plan(order: &Order, places: &Places, systemd: &dyn Systemd) -> Result<Vec<String>, OpError> {
    let image = systemd.image(&order.name)?;
    let work = Work::plan(order, &image, places)?;
    Ok(work.steps(systemd, &(), &Cancel::default()).describe())
}

/// All that is needed for the steps.
struct Work<'a> {
    order: &'a Order,
    places: &'a Places,
    /// `None` if there is no limit, and cannot be one.
    place: Option<Place>,
    former: Option<u64>,
    /// The number of the project that it is in, or will be.
    number: Mutex<u32>,
}

impl<'a> Work<'a> {
    fn plan(order: &'a Order, image: &ImageState, places: &'a Places) -> Result<Self, OpError> {
        let place = match Place::of(&order.name, image, places) {
            Err(OpError::Quota(_)) if order.limit.is_none() => None,
            Err(OpError::Quota(reason)) => {
                return Err(OpError::NoQuota {
                    name: order.name.to_string(),
                    reason,
                });
            }
            place => Some(place?),
        };
        let (number, former) = match &place {
            Some(Place::Project(project)) => {
                if !order.is_root {
                    return Err(OpError::NeedsRoot { verb: "quota" });
                }
                let number = project.number(&order.name, places)?;
                let usage = project.tree.usage(number);
                let usage = usage.map_err(OpError::path("read the quota of", &project.root))?;
                // What a machine of this number left is no limit of this one.
                (number, usage.limit.filter(|_| project.own.is_some()))
            }
            Some(Place::Subvolume) => (0, image.limit),
            None => (0, None),
        };
        Ok(Self {
            order,
            places,
            place,
            former,
            number: Mutex::new(number),
        })
    }

    fn steps<'b>(&'b self, systemd: &'b dyn Systemd, report: &'b dyn Report, cancel: &'b Cancel) -> Transaction<'b> {
        let (name, limit) = (&self.order.name, self.order.limit);
        let mut steps = Transaction::default();
        // The kernel counts in blocks.
        let as_kept = |limit: Option<u64>| limit.map(|bytes| bytes.next_multiple_of(crate::sys::quota::BLOCK));
        match &self.place {
            Some(Place::Subvolume) if limit != self.former => {
                let words = match limit {
                    Some(limit) => format!("have systemd-machined limit image '{name}' to {}", bytes(limit)),
                    None => format!("have systemd-machined take the limit off image '{name}'"),
                };
                steps.step(Step::new(words, move || systemd.limit(name, limit)));
            }
            Some(Place::Project(project)) if as_kept(limit) != self.former => {
                if self.former.is_none() {
                    self.enter(&mut steps, project, report, cancel);
                }
                let number = *hold(&self.number);
                let words = match limit {
                    Some(limit) => format!("limit project {number} to {}", bytes(limit)),
                    None => format!("take the limit off project {number}"),
                };
                steps.step(Step::new(words, move || {
                    let given = project.tree.limit(*hold(&self.number), limit);
                    given.map_err(OpError::path("limit", &project.root))
                }));
            }
            _ => {}
        }
        steps
    }

    /// Puts everything into the project. That is not taken back: without a limit it means nothing.
    fn enter<'b>(
        &'b self,
        steps: &mut Transaction<'b>,
        project: &'b Project,
        report: &'b dyn Report,
        cancel: &'b Cancel,
    ) {
        let root = &project.root;
        if project.own.is_none() {
            let words = format!("put '{}' into project {}", shown(root), *hold(&self.number));
            steps.step(Step::new(words, move || {
                let _lock = Lock::wait_for_all(&self.places.runtime, PROJECTS_LOCK, report, cancel)?;
                let number = free_number(&project.tree, &self.order.name, self.places)?;
                *hold(&self.number) = number;
                // What it was for a machine that is gone.
                let cleared = project.tree.limit(number, None);
                cleared.map_err(OpError::path("limit", root))?;
                Ok(enter_project(root, number)?)
            }));
        }
        let words = format!("put everything in '{}' into it, too", shown(root));
        steps.step(Step::new(words, move || {
            report.phase("putting its files into a project");
            Ok(mark_tree(root, *hold(&self.number), cancel)?)
        }));
    }
}
