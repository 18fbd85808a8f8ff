//! The layers that linked machines rest on: directories that never change again but for the one on top.
//!
//! Each layer is a directory of its own, which nobody but root enters. They are not beside the images: `machinectl clean` takes
//! a name with a dot in front for an image that it may remove, and systemd-tmpfiles removes `.#…` there at boot.
//!
//! ```text
//! /var/lib/machinist/layers/ID/tree    what is in it
//!                              work    the kernel's own, while it is on top
//!                              below   a link to the layer that it lies on, if any
//!                              sealed  a link that is as old as the last change; not of one on top
//! ```
//!
//! Whose layer is on top stands in the unit that mounts it; what no such unit names, and no layer lies on, is rubbish. See the
//! kernel's Documentation/filesystems/overlayfs.rst.

use std::fs::{self, DirBuilder, Permissions, set_permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use super::overlay::{copy_attributes, shift_to};
use super::{StorageError, create_directory};
use crate::machine::Cancel;
use crate::nspawn::users::UserRange;
use crate::sys::files::{change_time, changed_since, remove_tree};
use crate::sys::overlay::{Shift, TREE, WORK};

/// The link to the layer below.
const BELOW: &str = "below";
/// The link that says since when nothing in the tree has changed. It leads to the number of the tree's inode: what comes from a
/// backup was written later, and is another tree.
const SEALED: &str = "sealed";
/// How many may lie on one another: the kernel takes their paths on one page.
pub const DEPTH_MAX: usize = 24;

/// The layers in a directory.
#[derive(Clone, Debug)]
pub struct Layers {
    root: PathBuf,
}

impl Layers {
    /// Those that are there.
    #[must_use]
    pub fn at(root: PathBuf) -> Self {
        Self { root }
    }

    /// Whether a directory can become a layer by a rename: both are on one mount.
    pub fn is_on_mount_of(&self, directory: &Path) -> Result<bool, StorageError> {
        let mount = |path: &Path| {
            let found = statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID);
            found
                .map(|found| found.stx_mnt_id)
                .map_err(StorageError::io("look at", path))
        };
        self.make_root()?;
        Ok(mount(&self.root)? == mount(directory)?)
    }

    fn make_root(&self) -> Result<(), StorageError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.root);
        made.map_err(StorageError::io("create directory", &self.root))?;
        // What is in it belongs to users of machines.
        set_permissions(&self.root, Permissions::from_mode(0o700))
            .map_err(StorageError::io("set the mode of", &self.root))
    }

    /// The directory of one.
    #[must_use]
    pub fn directory(&self, id: &str) -> PathBuf {
        self.root.join(id)
    }

    /// What is in it.
    #[must_use]
    pub fn tree(&self, id: &str) -> PathBuf {
        self.directory(id).join(TREE)
    }

    /// The kernel's own directory.
    #[must_use]
    pub fn work(&self, id: &str) -> PathBuf {
        self.directory(id).join(WORK)
    }

    /// The names of all that there are.
    pub fn all(&self) -> Result<Vec<String>, StorageError> {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(StorageError::io("read", &self.root)(error)),
        };
        let mut names: Vec<String> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort();
        Ok(names)
    }

    /// Makes an empty layer, on top of another one if there is `below`; its name begins with `stem`.
    pub fn create(&self, stem: &str, below: Option<&str>) -> Result<String, StorageError> {
        self.make_root()?;
        let directory = tempfile::Builder::new()
            .prefix(&format!("{stem}-"))
            .rand_bytes(8)
            .tempdir_in(&self.root)
            .map_err(StorageError::io("create a directory in", &self.root))?;
        for name in [TREE, WORK] {
            create_directory(&directory.path().join(name))?;
        }
        if let Some(below) = below {
            let link = directory.path().join(BELOW);
            symlink(Path::new("..").join(below), &link).map_err(StorageError::io("link", &link))?;
        }
        let directory = directory.keep();
        let name = directory.file_name().unwrap_or_default();
        Ok(name.to_string_lossy().into_owned())
    }

    /// The layers below one, the nearest first.
    ///
    /// # Errors
    /// [`StorageError::Io`], not found, if one of them is missing.
    pub fn below(&self, id: &str) -> Result<Vec<String>, StorageError> {
        match self.known_below(id)? {
            (chain, None) => Ok(chain),
            (_, Some(missing)) => Err(StorageError::io("find layer", &missing)(io::Error::from(
                io::ErrorKind::NotFound,
            ))),
        }
    }

    /// The same, as far as they are there; and the first that is missing.
    pub fn known_below(&self, id: &str) -> Result<(Vec<String>, Option<PathBuf>), StorageError> {
        let mut chain: Vec<String> = Vec::new();
        let mut link = self.directory(id).join(BELOW);
        loop {
            let leads_to = match fs::read_link(&link) {
                Ok(leads_to) => leads_to,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((chain, None)),
                Err(error) => return Err(StorageError::io("read", &link)(error)),
            };
            let name = leads_to.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.is_empty() || chain.len() > DEPTH_MAX || !self.tree(name).is_dir() {
                return Ok((chain, Some(self.directory(name))));
            }
            chain.push(name.to_owned());
            link = self.directory(name).join(BELOW);
        }
    }

    /// Whether nothing was changed since the layer was made.
    pub fn is_empty(&self, id: &str) -> Result<bool, StorageError> {
        let tree = self.tree(id);
        let mut entries = fs::read_dir(&tree).map_err(StorageError::io("read", &tree))?;
        Ok(entries.next().is_none())
    }

    /// What says since when nothing in a layer was to change.
    #[must_use]
    pub fn seal_of(&self, id: &str) -> PathBuf {
        self.directory(id).join(SEALED)
    }

    /// What it says of the tree as it is.
    fn mark_of(&self, id: &str) -> Result<PathBuf, StorageError> {
        let tree = self.tree(id);
        let found = fs::metadata(&tree).map_err(StorageError::io("look at", &tree))?;
        Ok(PathBuf::from(found.ino().to_string()))
    }

    /// Notes that from now on nothing in a layer is to change, unless that was noted before.
    pub fn seal(&self, id: &str) -> Result<(), StorageError> {
        let (seal, mark) = (self.seal_of(id), self.mark_of(id)?);
        if fs::read_link(&seal).is_ok_and(|leads_to| leads_to == mark) {
            return Ok(());
        }
        match fs::remove_file(&seal) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StorageError::io("remove", &seal)(error)),
            _ => symlink(mark, &seal).map_err(StorageError::io("link", &seal)),
        }
    }

    /// Something in a layer that was changed since it was sealed; `None` if nothing was, or if that cannot be told. Blocks, and looks
    /// at every file.
    pub fn changed(&self, id: &str, cancel: &Cancel) -> Result<Option<PathBuf>, StorageError> {
        let (seal, mark) = (self.seal_of(id), self.mark_of(id)?);
        if !fs::read_link(&seal).is_ok_and(|leads_to| leads_to == mark) {
            return Ok(None);
        }
        let moment = change_time(&seal).map_err(StorageError::io("look at", &seal))?;
        Ok(changed_since(&self.tree(id), moment, cancel)?)
    }

    /// How the owners of a layer's files are to be shifted to be `users`; `None` if they are theirs.
    pub fn shift(&self, id: &str, users: Option<UserRange>) -> Result<Option<Shift>, StorageError> {
        let tree = self.tree(id);
        users.map_or(Ok(None), |users| {
            shift_to(users, &tree)
                .map_err(|error| StorageError::io("shift the owners of", &tree)(io::Error::other(error)))
        })
    }

    /// Gives the root directory of an empty layer what that of a tree has; its owner shifted.
    pub fn begin(&self, id: &str, like: &Path, shift: Option<Shift>) -> Result<(), StorageError> {
        copy_attributes(like, &self.tree(id), shift)
    }

    /// Removes a layer that nothing lies on.
    pub fn remove(&self, id: &str) -> Result<(), StorageError> {
        // The link last: as long as it is there, what is below counts as used by a rest of this.
        let directory = self.directory(id);
        for name in [WORK, TREE] {
            remove_tree(&directory.join(name))?;
        }
        remove_tree(&directory)?;
        // With the last of them.
        let _ = fs::remove_dir(&self.root);
        Ok(())
    }
}
