//! The limit of an image for a copy of it, which is made where nobody sees it yet.

use std::path::Path;
use std::sync::Mutex;

use super::project::free_number;
use super::{PROJECTS_LOCK, QuotaError, refuse_above};
use crate::machine::text::bytes;
use crate::machine::{Cancel, MachineName, Report};
use crate::ops::lock::Lock;
use crate::ops::survey::mount_of;
use crate::ops::transaction::hold;
use crate::ops::{OpError, Places};
use crate::storage;
use crate::sys::files::enter_project;
use crate::sys::quota::{Support, Tree};

/// What keeps the limit of the copy.
#[derive(Clone, Copy, Debug)]
enum Keeper {
    Subvolume,
    Project(u32),
}

/// A limit that a copy is to have, too. It is set last: an image that takes all it may is copied, too.
#[derive(Debug)]
pub(in crate::ops) struct Copied {
    limit: u64,
    /// `None` as long as there is none, or if there can be none.
    keeper: Mutex<Option<Keeper>>,
}

impl Copied {
    /// The limit of an image, which is that of machined for a subvolume.
    pub(in crate::ops) fn of(image: &Path, of_subvolume: Option<u64>) -> Option<Self> {
        Some(Self {
            limit: of_subvolume.or_else(|| limit_of_project(image))?,
            keeper: Mutex::default(),
        })
    }

    /// What [`limit`](Self::limit) does.
    pub(in crate::ops) fn describe(&self) -> String {
        format!("limit what it takes of the disk to {}", bytes(self.limit))
    }

    /// Before the copy is made in `directory`.
    pub(in crate::ops) fn prepare(
        &self,
        directory: &Path,
        name: &MachineName,
        places: &Places,
        report: &dyn Report,
        cancel: &Cancel,
    ) -> Result<(), OpError> {
        let keeper = if storage::for_directory(directory)?.name() == "btrfs" {
            Ok(Keeper::Subvolume)
        } else {
            enter_new(directory, name, places, report, cancel).map(Keeper::Project)
        };
        match keeper {
            Ok(keeper) => *hold(&self.keeper) = Some(keeper),
            Err(OpError::Quota(reason)) => report.warn(&format!("the clone has no limit of the disk: {reason}")),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// After it was made: a snapshot has the limit of what it is a snapshot of.
    pub(in crate::ops) fn lift(&self, tree: &Path, report: &dyn Report) -> Result<(), OpError> {
        if !matches!(*hold(&self.keeper), Some(Keeper::Subvolume)) {
            return Ok(());
        }
        let open = Tree::open(tree).map_err(OpError::path("open", tree))?;
        if let Err(error) = open.limit_subvolume(None) {
            report.warn(&format!("the clone has no limit of the disk: {error}"));
            *hold(&self.keeper) = None;
        }
        Ok(())
    }

    /// When all is written.
    pub(in crate::ops) fn limit(&self, tree: &Path) -> Result<(), OpError> {
        let open = Tree::open(tree).map_err(OpError::path("open", tree))?;
        let limited = match *hold(&self.keeper) {
            Some(Keeper::Subvolume) => open.limit_subvolume(Some(self.limit)),
            Some(Keeper::Project(project)) => open.limit(project, Some(self.limit)),
            None => Ok(()),
        };
        limited.map_err(OpError::path("limit", tree))
    }
}

fn limit_of_project(image: &Path) -> Option<u64> {
    let tree = Tree::open(image).ok()?;
    tree.usage(tree.project()?).ok()?.limit
}

/// Puts a directory, in which a machine's tree is going to be made, into a project of its own; its number.
fn enter_new(
    directory: &Path,
    name: &MachineName,
    places: &Places,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<u32, OpError> {
    let tree = Tree::open(directory).map_err(OpError::path("open", directory))?;
    let mount = || mount_of(directory).map_err(OpError::path("look at", directory));
    match tree.support() {
        Support::Enforced => refuse_above(directory)?,
        Support::Counted => return Err(QuotaError::NotEnforced(mount()?).into()),
        Support::None => return Err(QuotaError::Off(mount()?).into()),
    }
    let _lock = Lock::wait_for_all(&places.runtime, PROJECTS_LOCK, report, cancel)?;
    let number = free_number(&tree, name, places)?;
    // What it was for a machine that is gone.
    tree.limit(number, None).map_err(OpError::path("limit", directory))?;
    enter_project(directory, number)?;
    Ok(number)
}
