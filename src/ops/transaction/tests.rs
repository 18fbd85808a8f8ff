use std::fs::File;
use std::path::PathBuf;
use std::sync::Mutex;

use nix::fcntl::{Flock, FlockArg};

use super::*;
use crate::sys::staging::RECORD;

fn places(root: &Path) -> Places {
    let places = Places {
        machines: root.join("machines"),
        other_machines: vec![root.join("elsewhere")],
        runtime: root.join("run"),
        state: root.join("state"),
        ..Places::default()
    };
    fs::create_dir(&places.machines).unwrap();
    places
}

fn record(verb: Verb, settings: Option<PathBuf>) -> Record {
    Record {
        verb,
        name: "web".into(),
        settings,
        unit: None,
    }
}

#[test]
fn a_failure_undoes_in_reverse_and_keeps_the_first_error() {
    let log = Mutex::new(Vec::new());
    let note = |word: &'static str| {
        log.lock().unwrap().push(word);
        Ok(())
    };
    let mut transaction = Transaction::default();
    transaction.step(Step::new("one", || note("+1")).undo(|| note("-1")));
    transaction.step(Step::new("two", || note("+2")).undo(|| Err(OpError::Setting("no".into()))));
    transaction.step(Step::new("three", || Err(OpError::Setting("broken".into()))).undo(|| note("-3")));
    transaction.step(Step::new("four", || note("+4")));
    assert_eq!(transaction.describe(), ["one", "two", "three", "four"]);
    let error = transaction.run(&(), &Cancel::default()).unwrap_err();
    assert_eq!(error.to_string(), "broken");
    assert_eq!(*log.lock().unwrap(), ["+1", "+2", "-3", "-1"]);
}

#[test]
fn cancelling_undoes() {
    let cancel = Cancel::default();
    let undone = Mutex::new(false);
    let mut transaction = Transaction::default();
    transaction.step(
        Step::new("one", || {
            cancel.cancel();
            Ok(())
        })
        .undo(|| {
            *undone.lock().unwrap() = true;
            Ok(())
        }),
    );
    transaction.step(Step::new("two", || panic!("must not run")));
    assert!(matches!(transaction.run(&(), &cancel), Err(OpError::Cancelled(_))));
    assert!(*undone.lock().unwrap());
}

#[test]
fn what_nobody_owns_is_swept_and_what_is_owned_is_not() {
    let root = tempfile::tempdir().unwrap();
    let places = places(root.path());
    let settings = root.path().join("web.nspawn");
    let cancel = Cancel::default();
    let owned = Staging::create(&places, &record(Verb::Create, None), &(), &cancel).unwrap();
    let killed = Staging::create(&places, &record(Verb::Create, Some(settings.clone())), &(), &cancel).unwrap();
    fs::create_dir_all(killed.tree().join("etc")).unwrap();
    fs::write(killed.paper("settings"), "[Exec]\n").unwrap();
    fs::write(&settings, "[Exec]\n").unwrap();
    let left = killed.directory().to_owned();
    killed.die();
    let swept = sweep(&places, &|_, _| Ok(()), &(), &cancel).unwrap();
    assert_eq!(swept, ["half-made machine 'web'"]);
    assert!(!left.exists() && !settings.exists() && owned.directory().exists());
    drop(owned);
    assert_eq!(fs::read_dir(&places.machines).unwrap().count(), 0);
}

#[test]
fn settings_that_an_administrator_changed_stay() {
    let root = tempfile::tempdir().unwrap();
    let places = places(root.path());
    let settings = root.path().join("web.nspawn");
    let cancel = Cancel::default();
    let killed = Staging::create(&places, &record(Verb::Create, Some(settings.clone())), &(), &cancel).unwrap();
    fs::create_dir(killed.tree()).unwrap();
    fs::write(killed.paper("settings"), "[Exec]\n").unwrap();
    fs::write(&settings, "[Exec]\n# mine\n").unwrap();
    killed.die();
    sweep(&places, &|_, _| Ok(()), &(), &cancel).unwrap();
    assert!(settings.exists());
}

#[test]
fn a_removal_beside_an_image_elsewhere_is_swept() {
    let root = tempfile::tempdir().unwrap();
    let places = places(root.path());
    let elsewhere = Places {
        machines: places.other_machines[0].clone(),
        ..places.clone()
    };
    fs::create_dir(&elsewhere.machines).unwrap();
    let cancel = Cancel::default();
    let killed = Staging::create(&elsewhere, &record(Verb::Remove, None), &(), &cancel).unwrap();
    fs::create_dir(killed.tree()).unwrap();
    killed.die();
    assert_eq!(
        sweep(&places, &|_, _| Ok(()), &(), &cancel).unwrap(),
        ["half-removed machine 'web'"]
    );
    assert_eq!(fs::read_dir(&elsewhere.machines).unwrap().count(), 0);
}

#[test]
fn a_removal_is_finished_before_its_record_goes() {
    let root = tempfile::tempdir().unwrap();
    let places = places(root.path());
    let cancel = Cancel::default();
    let killed = Staging::create(&places, &record(Verb::Remove, None), &(), &cancel).unwrap();
    // An image may be a link, and lead nowhere from here.
    std::os::unix::fs::symlink("nowhere", killed.tree()).unwrap();
    let (left, papers) = (killed.directory().to_owned(), killed.papers().to_owned());
    killed.die();
    let refuses = |_: &Record, _: &Path| Err(OpError::Setting("no".into()));
    assert_eq!(sweep(&places, &refuses, &(), &cancel).unwrap(), Vec::<String>::new());
    assert!(papers.join(RECORD).exists());
    let finishes = |record: &Record, _: &Path| {
        assert_eq!(record.name, "web");
        assert!(papers.join(RECORD).exists() && left.join(TREE).is_symlink());
        // Nobody else sweeps it meanwhile.
        assert!(leftovers(&places).is_empty());
        Ok(())
    };
    assert_eq!(
        sweep(&places, &finishes, &(), &cancel).unwrap(),
        ["half-removed machine 'web'"]
    );
    assert!(!left.exists() && !papers.exists());
}

#[test]
fn what_a_unit_runs_in_is_its_own() {
    let root = tempfile::tempdir().unwrap();
    let places = places(root.path());
    let cancel = Cancel::default();
    let of_run = Record {
        unit: Some("machinist-run-web.service".into()),
        ..record(Verb::Run, None)
    };
    let staging = Staging::create(&places, &of_run, &(), &cancel).unwrap();
    let directory = staging.directory().to_owned();
    // The unit shares the lock, and has it when we have gone.
    let shared = Flock::lock(File::open(staging.paper(RECORD)).unwrap(), FlockArg::LockShared).unwrap();
    staging.leave();
    assert!(leftovers(&places).is_empty());
    // It is about to start again, and has not.
    drop(shared);
    let is_up = |record: &Record, _: &Path| {
        assert_eq!(record, &of_run);
        let name = record.name.clone();
        Err(OpError::Running { name })
    };
    assert_eq!(sweep(&places, &is_up, &(), &cancel).unwrap(), Vec::<String>::new());
    let is_unknown = |_: &Record, _: &Path| Err(OpError::Setting("no bus".into()));
    assert_eq!(sweep(&places, &is_unknown, &(), &cancel).unwrap(), Vec::<String>::new());
    assert!(directory.exists());
    assert_eq!(
        sweep(&places, &|_, _| Ok(()), &(), &cancel).unwrap(),
        ["copy of machine 'web'"]
    );
    assert!(!directory.exists());
}

#[test]
fn papers_tell_what_a_tree_was_that_systemd_tmpfiles_removed() {
    let root = tempfile::tempdir().unwrap();
    let places = places(root.path());
    let cancel = Cancel::default();
    let cut = |verb, settings: Option<&Path>| {
        let killed = Staging::create(&places, &record(verb, settings.map(Path::to_owned)), &(), &cancel).unwrap();
        fs::write(killed.paper("settings"), "[Exec]\n").unwrap();
        fs::remove_dir_all(killed.directory()).unwrap();
        killed.die();
    };
    let swept = |asked: usize| {
        let calls = Mutex::new(0);
        let finish = |_: &Record, papers: &Path| {
            assert!(papers.join("settings").exists());
            *calls.lock().unwrap() += 1;
            Ok(())
        };
        let swept = sweep(&places, &finish, &(), &cancel).unwrap();
        assert_eq!(*calls.lock().unwrap(), asked, "{swept:?}");
        assert_eq!(fs::read_dir(places.papers()).unwrap().count(), 0);
        swept
    };
    let settings = root.path().join("web.nspawn");
    fs::write(&settings, "[Exec]\n").unwrap();
    cut(Verb::Create, Some(&settings));
    assert_eq!(swept(0), ["half-made machine 'web'"]);
    assert!(!settings.exists());
    for (verb, what) in [
        (Verb::Clone, "half-made machine 'web'"),
        (Verb::Remove, "half-removed machine 'web'"),
    ] {
        cut(verb, None);
        assert_eq!(swept(1), [what]);
    }
    // The image is there: all was done, or nothing.
    fs::create_dir(places.machines.join("web")).unwrap();
    fs::write(&settings, "[Exec]\n").unwrap();
    cut(Verb::Create, Some(&settings));
    cut(Verb::Clone, None);
    cut(Verb::Remove, None);
    assert_eq!(swept(0).len(), 3);
    assert!(settings.exists());
}

#[test]
fn a_directory_that_has_lost_its_papers_goes() {
    let root = tempfile::tempdir().unwrap();
    let places = places(root.path());
    let directory = places.machines.join(".#machinist-create-web-x");
    fs::create_dir_all(directory.join(TREE)).unwrap();
    // Settings that are being written.
    let file = places.machines.join(".#machinist-0123456789abcdef");
    fs::write(&file, "").unwrap();
    let swept = sweep(&places, &|_, _| Ok(()), &(), &Cancel::default()).unwrap();
    assert!(file.exists());
    assert_eq!(swept, [format!("leftover '{}'", directory.display())]);
    assert!(!directory.exists());
}
