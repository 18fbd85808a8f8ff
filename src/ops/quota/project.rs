//! The project of an image: its number stands in the image's own root directory, and nowhere else.

use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::QuotaError;
use crate::machine::MachineName;
use crate::ops::{OpError, Places};
use crate::sys::quota::Tree;

/// The first number of a machine's project. Below are those that people give, and from 2^31 on those of systemd's own
/// quotas of services.
const FIRST: u32 = 1 << 30;
/// How many there are.
const COUNT: u32 = 1 << 30;
/// How many numbers are tried: more are never in use one after the other.
const TRIES: u32 = 4096;

/// A tree on a filesystem that limits projects.
#[derive(Debug)]
pub(super) struct Project {
    pub(super) tree: Tree,
    /// Where it lies, by no link.
    pub(super) root: PathBuf,
    /// Its number, if it is in a project of its own.
    pub(super) own: Option<u32>,
}

impl Project {
    pub(super) fn of(root: PathBuf, tree: Tree, places: &Places) -> Result<Self, OpError> {
        let found = tree.project().filter(|project| *project > 0);
        let own = match found {
            Some(project) if !of_others(&tree, places)?.contains(&project) => Some(project),
            _ => None,
        };
        Ok(Self { tree, root, own })
    }

    /// Its number, or a free one.
    pub(super) fn number(&self, name: &MachineName, places: &Places) -> Result<u32, OpError> {
        match self.own {
            Some(project) => Ok(project),
            None => free_number(&self.tree, name, places),
        }
    }
}

/// A number for a machine's project that nothing is in on the filesystem of `tree`, the same for the same name if it is free.
pub(super) fn free_number(tree: &Tree, name: &MachineName, places: &Places) -> Result<u32, OpError> {
    let taken = of_others(tree, places)?;
    let digest = Sha256::digest(name.as_str());
    let start = digest
        .iter()
        .take(4)
        .fold(0, |number, byte| (number << 8) | u32::from(*byte));
    for number in (0..TRIES).map(|step| FIRST + start.wrapping_add(step) % COUNT) {
        let usage = tree
            .usage(number)
            .map_err(OpError::path("read the quotas of", &places.machines))?;
        if usage.files == 0 && usage.used == 0 && !taken.contains(&number) {
            return Ok(number);
        }
    }
    Err(QuotaError::NoNumber.into())
}

/// Whether a number is one that [`free_number`] gives.
pub(super) fn is_ours(project: u32) -> bool {
    (FIRST..FIRST + COUNT).contains(&project)
}

/// The projects of all other images, those that are being made included.
fn of_others(tree: &Tree, places: &Places) -> Result<Vec<u32>, OpError> {
    let failed = || OpError::path("look at", &places.machines);
    let own = tree.identity().map_err(|error| failed()(error))?;
    let entries = places
        .all_machines()
        .filter_map(|directory| fs::read_dir(directory).ok());
    let trees = entries
        .flatten()
        .flatten()
        .filter_map(|entry| Tree::open(&entry.path()).ok());
    let others = trees.filter(|other| {
        let found = other.identity().ok();
        // Each filesystem has projects of its own.
        found.is_some_and(|(device, inode)| device == own.0 && inode != own.1)
    });
    Ok(others.filter_map(|other| other.project()).collect())
}

/// Takes the limit off the project of a tree that is going to be removed. What fails leaves a limit for nothing.
pub(in crate::ops) fn forget(tree: &Path) {
    let Ok(tree) = Tree::open(tree) else { return };
    if let Some(project) = tree.project().filter(|project| is_ours(*project)) {
        let _ = tree.limit(project, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_between_those_of_people_and_those_of_systemd() {
        assert!(!is_ours(1000) && is_ours(1 << 30) && is_ours((1 << 31) - 1) && !is_ours(1 << 31));
    }
}
