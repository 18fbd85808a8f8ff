//! Removing machines: the image vanishes in one rename, what an administrator wrote goes to the trash.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::lock::Lock;
use super::transaction::{Record, Staging, Step, Transaction, Verb};
use super::{OpError, Places, owned};
use crate::machine::{Cancel, MachineName, Report};
use crate::sys::files::{Root, set_immutable, shown};

/// What is there to remove.
#[derive(Clone, Debug)]
pub struct Target {
    /// The machine.
    pub name: MachineName,
    /// Its image; `None` if only settings are left of it.
    pub image: Option<PathBuf>,
    /// Whether it starts at boot.
    pub enabled: bool,
}

/// What [`remove`] did besides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Where an administrator's files are now.
    pub kept: Vec<PathBuf>,
}

/// What is done through systemd.
pub trait Autostart: Sync {
    /// Makes the machine start at boot, or not; no error if it is so already.
    fn set(&self, name: &MachineName, enabled: bool) -> Result<(), OpError>;
}

/// Removes a machine that does not run. Blocks.
///
/// # Errors
/// Before the image is renamed everything stays; after that the machine is gone, and what could not be removed is left
/// to the next sweep.
pub fn remove(
    target: &Target,
    places: &Places,
    autostart: &dyn Autostart,
    still_free: &(dyn Fn() -> Result<(), OpError> + Sync),
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Removed, OpError> {
    let removed = Mutex::default();
    transaction(target, places, autostart, still_free, report, cancel, &removed).run(report, cancel)?;
    Ok(removed.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// What [`remove`] would do, one line per step.
#[must_use]
pub fn plan(target: &Target, places: &Places) -> Vec<String> {
    struct Nothing;
    impl Autostart for Nothing {
        fn set(&self, _: &MachineName, _: bool) -> Result<(), OpError> {
            Ok(())
        }
    }
    let (removed, cancel) = (Mutex::default(), Cancel::default());
    transaction(target, places, &Nothing, &|| Ok(()), &(), &cancel, &removed).describe()
}

fn transaction<'a>(
    target: &'a Target,
    places: &'a Places,
    autostart: &'a dyn Autostart,
    still_free: &'a (dyn Fn() -> Result<(), OpError> + Sync),
    report: &'a dyn Report,
    cancel: &'a Cancel,
    removed: &'a Mutex<Removed>,
) -> Transaction<'a> {
    let name = &target.name;
    let mut steps = Transaction::default();
    let lock = Mutex::new(None);
    steps.step(Step::new(
        format!("lock the name '{name}' and check that it does not run"),
        move || {
            let held = Lock::wait(&places.runtime, name.as_str(), report, cancel)?;
            *hold(&lock) = Some(held);
            still_free()
        },
    ));
    let staging: Arc<Mutex<Option<Hidden>>> = Arc::default();
    if let Some(image) = &target.image {
        let (hidden, shown_again) = (Arc::clone(&staging), Arc::clone(&staging));
        steps.step(
            Step::new(format!("take image '{}' out of sight", shown(image)), move || {
                *hold(&hidden) = Some(hide(name, image, places, report, cancel)?);
                Ok(())
            })
            .undo(move || match hold(&shown_again).take() {
                Some(mut hidden) => {
                    fs::rename(hidden.staging.tree(), image).map_err(OpError::path("put back", image))?;
                    let _ = hidden.was_immutable && set_immutable(image, true);
                    hidden.staging.discard()
                }
                None => Ok(()),
            }),
        );
    }
    if target.enabled {
        let disable = Step::new(format!("disable unit {}", name.unit()), move || {
            autostart.set(name, false)
        });
        steps.step(disable.undo(move || autostart.set(name, true)));
    }
    for path in settings_of(name, places) {
        steps.step(put_away(name, path, places, removed));
    }
    for link in journal_links(target, places) {
        steps.step(Step::new(
            format!("remove journal link '{}'", shown(&link)),
            move || fs::remove_file(&link).map_err(OpError::path("remove", &link)),
        ));
    }
    if target.image.is_some() {
        steps.step(Step::new("delete its files", move || {
            report.phase("deleting its files");
            // The machine is gone already: what cannot be deleted stays hidden, and is no failure of the verb.
            if let Some(Err(error)) = hold(&staging).take().map(|mut hidden| hidden.staging.discard()) {
                report.warn(&format!(
                    "some of its files could not be deleted, `machinist clean` tries again: {error}"
                ));
            }
            Ok(())
        }));
    }
    steps
}

/// Removes a file of ours, and moves one of the administrator's to the trash.
fn put_away<'a>(name: &'a MachineName, path: PathBuf, places: &'a Places, removed: &'a Mutex<Removed>) -> Step<'a> {
    if owned::is_ours(&path) {
        let bytes: Arc<Mutex<Vec<u8>>> = Arc::default();
        let (kept, back) = (Arc::clone(&bytes), path.clone());
        return Step::new(format!("remove '{}'", shown(&path)), move || {
            *hold(&bytes) = fs::read(&path).map_err(OpError::path("read", &path))?;
            fs::remove_file(&path).map_err(OpError::path("remove", &path))
        })
        .undo(move || {
            if back.exists() {
                Ok(())
            } else {
                owned::write(&back, &hold(&kept))
            }
        });
    }
    let back = path.clone();
    Step::new(format!("move '{}' to the trash", shown(&path)), move || {
        let kept = to_trash(name, &path, places)?;
        hold(removed).kept.push(kept);
        Ok(())
    })
    .undo(move || {
        let mut removed = hold(removed);
        match removed
            .kept
            .iter()
            .position(|kept| kept.file_name() == back.file_name())
        {
            Some(at) if !back.exists() => move_to(&removed.kept.remove(at), &back),
            _ => Ok(()),
        }
    })
}

fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An image out of sight.
struct Hidden {
    staging: Staging,
    /// How machined makes a directory read-only where there is no btrfs: such a one cannot be renamed.
    was_immutable: bool,
}

/// Renames the image into a staging directory, whose record says that it is to be removed.
fn hide(
    name: &MachineName,
    image: &Path,
    places: &Places,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Hidden, OpError> {
    let record = Record {
        verb: Verb::Remove,
        name: name.to_string(),
        settings: None,
    };
    // Beside the image, wherever that is: only there is it one rename.
    let beside = image.parent().unwrap_or(&places.machines).to_owned();
    let there = Places {
        machines: beside,
        ..places.clone()
    };
    let mut staging = Staging::create(&there, &record, report, cancel)?;
    let mut renamed = fs::rename(image, staging.tree());
    let is_refused = matches!(&renamed, Err(error) if error.kind() == io::ErrorKind::PermissionDenied);
    let was_immutable = is_refused && set_immutable(image, false);
    if was_immutable {
        renamed = fs::rename(image, staging.tree());
    }
    match renamed {
        Ok(()) => Ok(Hidden { staging, was_immutable }),
        Err(error) => {
            let _ = was_immutable && set_immutable(image, true);
            staging.discard()?;
            Err(OpError::NotRemovable {
                path: image.to_owned(),
                reason: error.to_string(),
            })
        }
    }
}

/// A machine's settings: its .nspawn files, and its unit's drop-ins.
fn settings_of(name: &MachineName, places: &Places) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for directory in [&places.settings, &places.runtime_settings, &places.machines] {
        found.push(directory.join(format!("{name}.nspawn")));
    }
    found.push(places.drop_ins(name));
    found.retain(|path| fs::symlink_metadata(path).is_ok());
    found
}

/// Moves a file or directory to `TRASH/NAME-XXXXXX/` (mode 0700: settings may hold secrets).
fn to_trash(name: &MachineName, path: &Path, places: &Places) -> Result<PathBuf, OpError> {
    let trash = places.trash();
    let private = fs::DirBuilder::new().recursive(true).mode(0o700).create(&trash);
    private.map_err(OpError::path("create", &trash))?;
    let directory = tempfile::Builder::new().prefix(&format!("{name}-")).tempdir_in(&trash);
    let directory = directory
        .map_err(OpError::path("create a directory in", &trash))?
        .keep();
    let kept = directory.join(path.file_name().unwrap_or_default());
    move_to(path, &kept)?;
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

/// Links from the host's journal into the image's, which `--link-journal=` made.
fn journal_links(target: &Target, places: &Places) -> Vec<PathBuf> {
    let Some(image) = target.image.as_deref().filter(|image| image.is_dir()) else {
        return Vec::new();
    };
    let machine_id = Root::open(image)
        .and_then(|root| root.read_to_string("etc/machine-id", 64))
        .unwrap_or_default();
    let id = machine_id.trim();
    let is_id = id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    let inside = image.join("var/log/journal");
    let Ok(entries) = fs::read_dir(&places.journal) else {
        return Vec::new();
    };
    entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let Ok(leads_to) = fs::read_link(path) else {
                return false;
            };
            let named = is_id && path.file_name() == Some(&OsString::from(id));
            leads_to.starts_with(&inside) || named
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Says no to the last thing that can fail.
    struct Refuses;
    impl Autostart for Refuses {
        fn set(&self, name: &MachineName, enabled: bool) -> Result<(), OpError> {
            if enabled {
                Ok(())
            } else {
                Err(OpError::Setting(format!("{name} stays enabled")))
            }
        }
    }
    struct Obeys;
    impl Autostart for Obeys {
        fn set(&self, _: &MachineName, _: bool) -> Result<(), OpError> {
            Ok(())
        }
    }

    fn host(root: &Path) -> (Places, Target) {
        let places = Places {
            machines: root.join("machines"),
            settings: root.join("nspawn"),
            runtime_settings: root.join("run-nspawn"),
            units: root.join("units"),
            runtime: root.join("run"),
            state: root.join("state"),
            journal: root.join("journal"),
            ..Places::default()
        };
        let name: MachineName = "web".parse().unwrap();
        let image = places.image(&name);
        fs::create_dir_all(image.join("etc")).unwrap();
        fs::create_dir_all(&places.settings).unwrap();
        fs::create_dir_all(places.drop_ins(&name)).unwrap();
        fs::create_dir_all(&places.journal).unwrap();
        fs::write(places.drop_ins(&name).join("mine.conf"), "[Service]\n").unwrap();
        fs::write(places.settings_file(&name), "[Exec]\n# mine\n").unwrap();
        (
            places,
            Target {
                name,
                image: Some(image),
                enabled: true,
            },
        )
    }

    #[test]
    fn what_an_administrator_wrote_is_kept() {
        let root = tempfile::tempdir().unwrap();
        let (places, target) = host(root.path());
        let link = places.journal.join("0123");
        std::os::unix::fs::symlink(target.image.as_ref().unwrap().join("var/log/journal/0123"), &link).unwrap();
        let removed = remove(&target, &places, &Obeys, &|| Ok(()), &(), &Cancel::default()).unwrap();
        let [settings, drop_ins] = &removed.kept[..] else {
            panic!("{:?}", removed.kept)
        };
        assert!(removed.kept.iter().all(|path| path.starts_with(places.trash())));
        assert!(settings.ends_with("web.nspawn"));
        assert_eq!(fs::read_to_string(settings).unwrap(), "[Exec]\n# mine\n");
        assert!(drop_ins.join("mine.conf").exists());
        assert!(fs::symlink_metadata(link).is_err());
        assert_eq!(fs::read_dir(&places.machines).unwrap().count(), 0);
    }

    #[test]
    fn a_refusal_leaves_everything() {
        let root = tempfile::tempdir().unwrap();
        let (places, target) = host(root.path());
        let error = remove(&target, &places, &Refuses, &|| Ok(()), &(), &Cancel::default()).unwrap_err();
        assert_eq!(error.to_string(), "web stays enabled");
        assert!(target.image.unwrap().join("etc").exists());
        assert!(places.settings_file(&target.name).exists() && places.drop_ins(&target.name).exists());
        assert_eq!(fs::read_dir(&places.machines).unwrap().count(), 1);
    }
}
