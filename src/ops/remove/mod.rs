//! Removing machines: the image vanishes in one rename, what an administrator wrote goes to the trash.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use self::image::{Hidden, hide};
pub(super) use self::journal::journal_links;
use self::settings::{put_away, settings_of};
use super::linked::{LinkUnits, NoUnits, Units};
use super::lock::Lock;
use super::transaction::{Step, Transaction, hold};
use super::{OpError, Places, linked};
use crate::machine::{Cancel, MachineName, Report};
use crate::sys::files::shown;
use crate::sys::image_lock::{ImageLock, Sharing};

mod image;
mod journal;
mod settings;

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
pub trait Systemd: Units {
    /// Makes the machine start at boot, or not; no error if it is so already.
    fn set_autostart(&self, name: &MachineName, enabled: bool) -> Result<(), OpError>;

    /// Forgets that the machine failed, if it did, and with `reload` also the drop-ins that are gone.
    fn forget(&self, name: &MachineName, reload: bool) -> Result<(), OpError>;
}

/// Removes a machine that does not run. Blocks.
///
/// # Errors
/// Before the image is renamed everything stays; after that the machine is gone, and what could not be removed is left
/// to the next sweep.
pub fn remove(
    target: &Target,
    places: &Places,
    systemd: &dyn Systemd,
    still_free: &(dyn Fn() -> Result<(), OpError> + Sync),
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Removed, OpError> {
    let removed = Mutex::default();
    // First of all: what whoever has it now leaves is to go as well.
    let lock = Lock::wait(&places.runtime, target.name.as_str(), report, cancel)?;
    let steps = transaction(target, places, systemd, still_free, report, cancel, &removed);
    steps.run(report, cancel)?;
    drop(lock);
    Ok(removed.into_inner().unwrap_or_else(PoisonError::into_inner))
}

impl Systemd for NoUnits {
    fn set_autostart(&self, _: &MachineName, _: bool) -> Result<(), OpError> {
        Ok(())
    }

    fn forget(&self, _: &MachineName, _: bool) -> Result<(), OpError> {
        Ok(())
    }
}

/// What [`remove`] would do, one line per step.
#[must_use]
pub fn plan(target: &Target, places: &Places) -> Vec<String> {
    let (removed, cancel) = (Mutex::default(), Cancel::default());
    transaction(target, places, &NoUnits, &|| Ok(()), &(), &cancel, &removed).describe()
}

fn transaction<'a>(
    target: &'a Target,
    places: &'a Places,
    systemd: &'a dyn Systemd,
    still_free: &'a (dyn Fn() -> Result<(), OpError> + Sync),
    report: &'a dyn Report,
    cancel: &'a Cancel,
    removed: &'a Mutex<Removed>,
) -> Transaction<'a> {
    let name = &target.name;
    let mut steps = Transaction::default();
    let image_lock = Mutex::new(None);
    steps.step(Step::new(
        format!("lock the image of '{name}' and check that it does not run"),
        move || {
            still_free()?;
            // A machine of any name may run on it.
            if let Some(image) = &target.image {
                *hold(&image_lock) = Some(ImageLock::take(image, &places.image_locks(), Sharing::Exclusive)?);
            }
            Ok(())
        },
    ));
    let linked = LinkUnits::existing(name, places);
    if let Some(linked) = &linked {
        let (mounted, overlay) = (linked.names(), [linked.overlay.clone()]);
        let unmount = Step::new(format!("unmount the layers of '{name}'"), move || {
            systemd.stop_units(&mounted)
        });
        steps.step(unmount.undo(move || systemd.start_units(&overlay)));
    }
    let staging: Arc<Mutex<Option<Hidden>>> = Arc::default();
    if let Some(image) = &target.image {
        let (hidden, shown_again) = (Arc::clone(&staging), Arc::clone(&staging));
        steps.step(
            Step::new(format!("take image '{}' out of sight", shown(image)), move || {
                *hold(&hidden) = Some(hide(name, image, places, report, cancel)?);
                Ok(())
            })
            .undo(move || match hold(&shown_again).take() {
                Some(hidden) => hidden.put_back(image),
                None => Ok(()),
            }),
        );
    }
    if target.enabled {
        let disable = Step::new(format!("disable unit {}", name.unit()), move || {
            systemd.set_autostart(name, false)
        });
        steps.step(disable.undo(move || systemd.set_autostart(name, true)));
    }
    let mut settings = settings_of(name, places);
    if let Some(linked) = &linked {
        steps.step(linked.forget_link());
        let files = linked.files.iter().map(|(path, _)| path.clone());
        let files: Vec<PathBuf> = files.filter(|path| !settings.contains(path)).collect();
        settings.extend(files);
    }
    // Limits of `systemctl set-property` would hold for the next machine of that name.
    let reload = linked.is_some()
        || settings
            .iter()
            .any(|path| path.is_dir() || path.extension().is_some_and(|end| end == "conf"));
    for path in settings {
        steps.step(put_away(name, path, places, removed));
    }
    // A machine that gets the name later must not get settings of this one back by an undo.
    let history = places.history(name);
    if history.is_dir() {
        steps.step(put_away(name, history, places, removed));
    }
    for link in journal_links(target, places) {
        steps.step(Step::new(
            format!("remove journal link '{}'", shown(&link)),
            move || fs::remove_file(&link).map_err(OpError::path("remove", &link)),
        ));
    }
    // It leads to a terminal of the host, or to /dev/null.
    let terminal = places.runtime.join("console").join(format!("{name}.tty"));
    if fs::symlink_metadata(&terminal).is_ok() {
        steps.step(Step::new(format!("remove '{}'", shown(&terminal)), move || {
            let _ = fs::remove_file(&terminal);
            Ok(())
        }));
    }
    // A failed unit stays loaded, and with it a machine that is gone.
    steps.step(Step::new(
        format!("have systemd forget unit {}", name.unit()),
        move || systemd.forget(name, reload),
    ));
    if target.image.is_some() {
        steps.step(Step::new("delete its files", move || {
            report.phase("deleting its files");
            // The machine is gone already: what cannot be deleted stays hidden, and is no failure of the verb.
            if let Some(Err(error)) = hold(&staging).take().map(Hidden::delete) {
                report.warn(&format!(
                    "some of its files could not be deleted, `machinist clean` tries again: {error}"
                ));
            }
            Ok(())
        }));
    }
    if linked.is_some() {
        steps.step(Step::new("remove the layers that no machine needs", move || {
            let swept = linked::lock(places, report, cancel).and_then(|_lock| linked::sweep(places, report));
            if let Err(error) = swept {
                report.warn(&error.to_string());
            }
            Ok(())
        }));
    }
    steps
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Machines without layers: nothing is mounted.
    macro_rules! no_units {
        ($type:ty) => {
            impl Units for $type {
                fn reload(&self) -> Result<(), OpError> {
                    NoUnits.reload()
                }

                fn read_new(&self, units: &[String]) -> Result<(), OpError> {
                    NoUnits.read_new(units)
                }

                fn start_units(&self, units: &[String]) -> Result<(), OpError> {
                    NoUnits.start_units(units)
                }

                fn stop_units(&self, units: &[String]) -> Result<(), OpError> {
                    NoUnits.stop_units(units)
                }
            }
        };
    }

    /// Says no to the last thing that can fail.
    struct Refuses;
    no_units!(Refuses);
    impl Systemd for Refuses {
        fn set_autostart(&self, name: &MachineName, enabled: bool) -> Result<(), OpError> {
            if enabled {
                Ok(())
            } else {
                Err(OpError::Setting(format!("{name} stays enabled")))
            }
        }

        fn forget(&self, _: &MachineName, _: bool) -> Result<(), OpError> {
            Ok(())
        }
    }
    struct Obeys;
    no_units!(Obeys);
    impl Systemd for Obeys {
        fn set_autostart(&self, _: &MachineName, _: bool) -> Result<(), OpError> {
            Ok(())
        }

        fn forget(&self, _: &MachineName, _: bool) -> Result<(), OpError> {
            Ok(())
        }
    }

    fn host(root: &Path) -> (Places, Target) {
        let places = Places {
            machines: root.join("machines"),
            other_machines: Vec::new(),
            settings: root.join("nspawn"),
            runtime_settings: root.join("run-nspawn"),
            units: root.join("units"),
            other_units: Vec::new(),
            control: root.join("system.control"),
            runtime_control: root.join("run-system.control"),
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
        let set_property = &places.all_drop_ins(&name)[1];
        fs::create_dir_all(set_property).unwrap();
        fs::write(set_property.join("50-MemoryMax.conf"), "[Service]\nMemoryMax=50M\n").unwrap();
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

    /// Lets a later step fail: the journal link is gone when its turn comes.
    struct TakesLink(PathBuf);
    no_units!(TakesLink);
    impl Systemd for TakesLink {
        fn set_autostart(&self, _: &MachineName, _: bool) -> Result<(), OpError> {
            let _ = fs::remove_file(&self.0);
            Ok(())
        }

        fn forget(&self, _: &MachineName, _: bool) -> Result<(), OpError> {
            Ok(())
        }
    }

    #[test]
    fn what_an_administrator_wrote_is_kept() {
        let root = tempfile::tempdir().unwrap();
        let (places, target) = host(root.path());
        let link = places.journal.join("0123");
        std::os::unix::fs::symlink(target.image.as_ref().unwrap().join("var/log/journal/0123"), &link).unwrap();
        let removed = remove(&target, &places, &Obeys, &|| Ok(()), &(), &Cancel::default()).unwrap();
        let [settings, drop_ins, properties] = &removed.kept[..] else {
            panic!("{:?}", removed.kept)
        };
        assert!(removed.kept.iter().all(|path| path.starts_with(places.trash())));
        assert!(settings.ends_with("web.nspawn"));
        assert_eq!(fs::read_to_string(settings).unwrap(), "[Exec]\n# mine\n");
        assert!(drop_ins.join("mine.conf").exists());
        assert!(properties.join("50-MemoryMax.conf").exists());
        assert!(fs::symlink_metadata(link).is_err());
        assert_eq!(fs::read_dir(&places.machines).unwrap().count(), 0);
    }

    #[test]
    fn secrets_go_and_come_back_as_private_as_they_were() {
        use std::os::unix::fs::PermissionsExt as _;
        let root = tempfile::tempdir().unwrap();
        let (places, target) = host(root.path());
        let secret = places.secrets(&target.name).join("token");
        fs::create_dir_all(secret.parent().unwrap()).unwrap();
        fs::write(&secret, "encrypted").unwrap();
        let link = places.journal.join("0123");
        std::os::unix::fs::symlink(target.image.as_ref().unwrap().join("var/log/journal/0123"), &link).unwrap();
        remove(&target, &places, &TakesLink(link), &|| Ok(()), &(), &Cancel::default()).unwrap_err();
        assert_eq!(fs::read_to_string(&secret).unwrap(), "encrypted");
        assert_eq!(fs::metadata(&secret).unwrap().permissions().mode() & 0o777, 0o600);
        let removed = remove(&target, &places, &Obeys, &|| Ok(()), &(), &Cancel::default()).unwrap();
        assert!(!secret.parent().unwrap().exists());
        assert!(!removed.kept.iter().any(|path| path.ends_with("token")), "{removed:?}");
    }

    #[test]
    fn what_another_verb_is_about_to_write_goes_as_well() {
        let root = tempfile::tempdir().unwrap();
        let (places, target) = host(root.path());
        let other = Lock::wait(&places.runtime, "web", &(), &Cancel::default()).unwrap();
        let secret = places.secrets(&target.name).join("token");
        std::thread::scope(|scope| {
            let (told, waits) = std::sync::mpsc::channel();
            let report = Tells(told);
            let (places, target) = (&places, &target);
            let removing = scope.spawn(move || remove(target, places, &Obeys, &|| Ok(()), &report, &Cancel::default()));
            waits.recv().unwrap();
            fs::create_dir_all(secret.parent().unwrap()).unwrap();
            fs::write(&secret, "encrypted").unwrap();
            drop(other);
            removing.join().unwrap().unwrap();
        });
        assert!(!secret.parent().unwrap().exists());
    }

    /// Passes on that something is waited for.
    struct Tells(std::sync::mpsc::Sender<()>);
    impl Report for Tells {
        fn phase(&self, name: &str) {
            if name.starts_with("waiting") {
                let _ = self.0.send(());
            }
        }
        fn progress(&self, _: u64, _: Option<u64>) {}
        fn warn(&self, _: &str) {}
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

    #[test]
    fn a_late_failure_puts_each_file_back_where_it_was() {
        let root = tempfile::tempdir().unwrap();
        let (places, target) = host(root.path());
        let link = places.journal.join("0123");
        std::os::unix::fs::symlink(target.image.as_ref().unwrap().join("var/log/journal/0123"), &link).unwrap();
        let everywhere = [&places.settings, &places.runtime_settings, &places.machines];
        for (text, directory) in ["trusted", "of this boot", "untrusted"].iter().zip(everywhere) {
            fs::create_dir_all(directory).unwrap();
            fs::write(directory.join("web.nspawn"), text).unwrap();
        }
        remove(&target, &places, &TakesLink(link), &|| Ok(()), &(), &Cancel::default()).unwrap_err();
        for (text, directory) in ["trusted", "of this boot", "untrusted"].iter().zip(everywhere) {
            assert_eq!(fs::read_to_string(directory.join("web.nspawn")).unwrap(), *text);
        }
        assert!(places.drop_ins(&target.name).join("mine.conf").exists());
        assert_eq!(fs::read_dir(places.trash()).unwrap().count(), 0);
    }
}
