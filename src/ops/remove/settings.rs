//! The settings: ours are removed, an administrator's go to the trash.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::{Removed, hold};
use crate::machine::MachineName;
use crate::ops::transaction::Step;
use crate::ops::{OpError, Places, owned};
use crate::sys::files::shown;

/// A machine's settings: its .nspawn files, its unit's drop-ins, and its secrets.
pub(super) fn settings_of(name: &MachineName, places: &Places) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for directory in [&places.settings, &places.runtime_settings, &places.machines] {
        found.push(directory.join(format!("{name}.nspawn")));
    }
    // What `config` and `limit` had set: what is left of their directory after them goes with the last.
    let control = [&places.units, &places.control, &places.runtime_control];
    let control = control.map(|place| place.join(format!("{}.d", name.unit())));
    let drop_ins = control.iter().filter_map(|directory| fs::read_dir(directory).ok());
    let drop_ins = drop_ins.flatten().flatten().map(|entry| entry.path());
    let (ours, others): (Vec<_>, Vec<_>) = drop_ins.partition(|path| owned::is_ours(path));
    let is_ours = |directory: &PathBuf| {
        control.contains(directory) && !others.iter().any(|path| path.parent() == Some(directory))
    };
    found.extend(ours);
    found.extend(
        places
            .all_drop_ins(name)
            .into_iter()
            .filter(|directory| !is_ours(directory)),
    );
    // After the drop-in that loads them.
    let secrets = fs::read_dir(places.secrets(name)).into_iter().flatten().flatten();
    found.extend(secrets.map(|entry| entry.path()));
    found.retain(|path| fs::symlink_metadata(path).is_ok());
    found
}

/// Moves a file or directory to `TRASH/NAME-XXXXXX/` (mode 0700: settings may hold secrets).
fn to_trash(name: &MachineName, path: &Path, places: &Places) -> Result<PathBuf, OpError> {
    let trash = places.trash();
    let private = fs::DirBuilder::new().recursive(true).mode(0o700).create(&trash);
    private.map_err(OpError::path("create", &trash))?;
    let directory = tempfile::Builder::new().prefix(&format!("{name}-")).tempdir_in(&trash);
    let directory = directory.map_err(OpError::path("create a directory in", &trash))?;
    let kept = directory.path().join(path.file_name().unwrap_or_default());
    move_to(path, &kept)?;
    // Until here an error takes the directory with it.
    let _ = directory.keep();
    Ok(kept)
}

/// A rename, across filesystems if it must be.
fn move_to(from: &Path, to: &Path) -> Result<(), OpError> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            copy(from, to)?;
            let removed = if from.is_dir() {
                fs::remove_dir_all(from)
            } else {
                fs::remove_file(from)
            };
            removed.map_err(OpError::path("remove", from))
        }
        result => result.map_err(OpError::path("move", from)),
    }
}

/// A file, or a directory of files: what drop-ins are.
fn copy(from: &Path, to: &Path) -> Result<(), OpError> {
    if !from.is_dir() {
        return fs::copy(from, to).map(drop).map_err(OpError::path("copy", from));
    }
    fs::create_dir_all(to).map_err(OpError::path("create", to))?;
    for entry in fs::read_dir(from).map_err(OpError::path("read", from))?.flatten() {
        copy(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}

/// Removes a file of ours, and moves one of the administrator's to the trash.
pub(super) fn put_away<'a>(
    name: &'a MachineName,
    path: PathBuf,
    places: &'a Places,
    removed: &'a Mutex<Removed>,
) -> Step<'a> {
    let back = path.clone();
    // Secrets are never kept, not even where the filesystem cannot say whose they are.
    let is_secret = path.starts_with(places.secrets(name)) && path.is_file();
    if is_secret || owned::is_ours(&path) {
        let bytes: Arc<Mutex<Option<Vec<u8>>>> = Arc::default();
        let kept = Arc::clone(&bytes);
        return Step::new(format!("remove '{}'", shown(&path)), move || {
            *hold(&bytes) = Some(fs::read(&path).map_err(OpError::path("read", &path))?);
            fs::remove_file(&path).map_err(OpError::path("remove", &path))?;
            // A directory of drop-ins or secrets that is empty now; any other has more in it.
            let of_machine = path.parent().filter(|directory| {
                directory.extension().is_some_and(|end| end == "d") || *directory == places.secrets(name)
            });
            let _ = of_machine.map(fs::remove_dir);
            Ok(())
        })
        .undo(move || match hold(&kept).take() {
            Some(bytes) if !back.exists() && is_secret => owned::write_private(&back, &bytes),
            Some(bytes) if !back.exists() => owned::write(&back, &bytes),
            _ => Ok(()),
        });
    }
    // Of its own: settings of the administrator, of this boot and beside the image all have the same file name.
    let slot: Arc<Mutex<Option<PathBuf>>> = Arc::default();
    let kept = Arc::clone(&slot);
    Step::new(format!("move '{}' to the trash", shown(&path)), move || {
        let in_trash = to_trash(name, &path, places)?;
        hold(removed).kept.push(in_trash.clone());
        *hold(&slot) = Some(in_trash);
        Ok(())
    })
    .undo(move || match hold(&kept).take() {
        Some(in_trash) if !back.exists() => {
            move_to(&in_trash, &back)?;
            hold(removed).kept.retain(|path| *path != in_trash);
            // Made for this one file.
            let _ = in_trash.parent().map(fs::remove_dir);
            Ok(())
        }
        _ => Ok(()),
    })
}
