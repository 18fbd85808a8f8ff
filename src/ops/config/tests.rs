//! Changes of settings in a directory of their own: no systemd is asked.

use std::os::unix::fs::MetadataExt as _;

use super::history::{History, Written};
use super::*;
use crate::nspawn::assignment::parse_assignment;
use crate::unit::key;

/// A change of one machine.
fn change(
    wanted: &Change,
    places: &Places,
    reload: Reload<'_>,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Changed, OpError> {
    let mut changed = change_all(std::slice::from_ref(wanted), places, reload, report, cancel)?;
    assert_eq!(changed.len(), 1);
    Ok(changed.remove(0))
}

struct Host {
    root: tempfile::TempDir,
    places: Places,
}

impl Host {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let places = Places {
            machines: at("machines"),
            other_machines: Vec::new(),
            settings: at("etc"),
            runtime_settings: at("run"),
            runtime: at("lock"),
            state: at("state"),
            units: at("units"),
            other_units: vec![],
            control: at("system.control"),
            runtime_control: at("run.control"),
            unit_path: ["system.control", "run.control", "units", "lib"].map(at).into(),
            ..Places::default()
        };
        fs::create_dir_all(places.machines.join("web")).unwrap();
        fs::create_dir_all(&places.settings).unwrap();
        Self { root, places }
    }

    fn file(&self) -> PathBuf {
        self.places.settings.join("web.nspawn")
    }

    fn text(&self) -> String {
        fs::read_to_string(self.file()).unwrap()
    }

    fn wanted(words: &[&str]) -> Change {
        let edits = words.iter().map(|word| {
            let setting = parse_assignment(word).unwrap();
            setting.into_edit()
        });
        Change {
            name: "web".parse().unwrap(),
            wanted: Wanted::Edits {
                settings: edits.collect(),
                drop_ins: Vec::new(),
            },
            what: format!("set {}", words.join(" ")),
            systemd: 257,
        }
    }

    fn set(&self, words: &[&str]) -> Result<Changed, OpError> {
        change(&Self::wanted(words), &self.places, &|| Ok(()), &(), &Cancel::default())
    }

    fn undo(&self, number: Option<u32>) -> Result<Changed, OpError> {
        let wanted = Change {
            wanted: Wanted::Undo {
                number,
                then: Vec::new(),
            },
            what: "undo".to_owned(),
            ..Self::wanted(&[])
        };
        change(&wanted, &self.places, &|| Ok(()), &(), &Cancel::default())
    }
}

#[test]
fn a_change_is_written_once() {
    let host = Host::new();
    let first = host.set(&["Exec.KillSignal=SIGUSR2"]).unwrap();
    assert_eq!(first.number, Some(1));
    assert_eq!(
        host.text(),
        "# Settings of machine 'web', see systemd.nspawn(5).\n\n[Exec]\nKillSignal=SIGUSR2\n"
    );
    let before = fs::metadata(host.file()).unwrap();
    assert_eq!(before.mode() & 0o777, 0o644);
    let again = host.set(&["Exec.KillSignal=SIGUSR2"]).unwrap();
    let after = fs::metadata(host.file()).unwrap();
    assert_eq!(again.number, None);
    assert_eq!(
        (before.ino(), before.mtime_nsec(), before.ctime_nsec()),
        (after.ino(), after.mtime_nsec(), after.ctime_nsec())
    );
}

#[test]
fn what_systemd_would_not_take_changes_nothing() {
    let host = Host::new();
    let text = "[Network]\nBridge=br0\n# mine\n";
    fs::write(host.file(), text).unwrap();
    for (words, reason) in [
        (&["Network.Zone=lab"][..], "cannot be combined"),
        (
            &["Exec.User=a", "Exec.RestrictAddressFamilies=AF_UNIX"],
            "needs systemd 261",
        ),
        (&["Exec.Parameters=/bin/sh"], "Parameters= has no effect"),
    ] {
        let error = host.set(words).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
        assert_eq!(host.text(), text);
    }
    // What was wrong before is no reason to refuse something else.
    fs::write(host.file(), "[Network]\nBridge=br0\nZone=lab\nNonsense=1\n").unwrap();
    host.set(&["Exec.User=a"]).unwrap();
    fs::write(host.file(), "[Exec\n").unwrap();
    let error = host.set(&["Exec.User=a"]).unwrap_err();
    assert!(error.to_string().contains("line 1 must be repaired first"), "{error}");
    assert_eq!(error.hints(), ["see `machinist config check web`"]);
    assert_eq!(host.text(), "[Exec\n");
    assert_eq!(fs::read_dir(&host.places.settings).unwrap().count(), 1);
}

#[test]
fn a_file_beside_the_image_is_copied_and_gains_no_rights() {
    let host = Host::new();
    let beside = host.places.machines.join("web.nspawn");
    fs::write(&beside, "[Exec]\nBoot=yes\nCapability=all\n").unwrap();
    // Nothing to do, nothing to copy.
    assert_eq!(host.set(&["Exec.Boot=yes"]).unwrap().number, None);
    assert!(!host.file().exists());
    let changed = host.set(&["Exec.User=me"]).unwrap();
    assert_eq!(host.text(), "[Exec]\nBoot=yes\n#Capability=all\nUser=me\n");
    assert!(changed.notes[0].starts_with("copied '"), "{:?}", changed.notes);
    assert!(changed.notes[1].starts_with("1 settings that systemd did not heed"));
    assert_eq!(
        fs::read_to_string(&beside).unwrap(),
        "[Exec]\nBoot=yes\nCapability=all\n"
    );
    host.undo(None).unwrap();
    assert!(!host.file().exists());
}

#[test]
fn changes_are_taken_back_one_after_the_other_and_nothing_is_lost() {
    let host = Host::new();
    fs::write(host.file(), "# by hand\n").unwrap();
    let original = host.text();
    host.set(&["Exec.User=a"]).unwrap();
    let one = host.text();
    host.set(&["Exec.User=b"]).unwrap();
    assert_eq!(host.undo(None).unwrap().number, Some(3));
    assert_eq!(host.text(), one);
    // The administrator goes on in between.
    fs::write(host.file(), format!("{one}# more by hand\n")).unwrap();
    let undone = host.undo(None).unwrap();
    assert_eq!(host.text(), original);
    assert_eq!(
        undone.notes,
        [
            "took back change 1: set Exec.User=a",
            "the settings were changed after that, too; `machinist config undo web 4` brings them back"
        ]
    );
    let error = host.undo(None).unwrap_err().to_string();
    assert_eq!(error, "there is no change of machine 'web' to take back");
    host.undo(Some(4)).unwrap();
    assert_eq!(host.text(), format!("{one}# more by hand\n"));
    // Its change is in force again, and can be taken back again.
    host.undo(None).unwrap();
    assert_eq!(host.text(), original);
    assert!(host.undo(Some(99)).unwrap_err().to_string().contains("no change 99"));
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!(mode(&host.places.history(&"web".parse().unwrap())), 0o700);
}

#[test]
fn two_at_once_both_land() {
    let host = Host::new();
    std::thread::scope(|scope| {
        for number in 0..8 {
            let host = &host;
            scope.spawn(move || host.set(&[&format!("Files.Bind=/tmp:/{number}")]).unwrap());
        }
    });
    for number in 0..8 {
        assert!(
            host.text().contains(&format!("Bind=/tmp:/{number}\n")),
            "{}",
            host.text()
        );
    }
}

#[test]
fn a_file_that_changes_or_vanishes_meanwhile_is_not_overwritten() {
    let host = Host::new();
    fs::write(host.file(), "[Exec]\n").unwrap();
    let change = Host::wanted(&["Exec.User=a"]);
    let changes = [change.clone()];
    let numbers = [Mutex::default()];
    let plans = plans(&changes, &host.places, &numbers).unwrap();
    fs::write(host.file(), "[Exec]\nBoot=yes\n").unwrap();
    let run = |plans: &[(Plan, Work<'_>)]| {
        let steps = plan::steps(plans, &|| Ok(()));
        steps.run(&(), &Cancel::default()).unwrap_err().to_string()
    };
    assert!(run(&plans).contains("changed by somebody else"));
    assert_eq!(host.text(), "[Exec]\nBoot=yes\n");
    fs::remove_file(host.file()).unwrap();
    assert!(run(&plans).contains("changed by somebody else"));
    assert!(!host.file().exists());
    // A change that was not made is none to take back.
    assert!(History::of(&change.name, &host.places).entries().unwrap().is_empty());
}

#[test]
fn what_is_no_file_stays_as_it_is() {
    let host = Host::new();
    fs::create_dir(host.file()).unwrap();
    let error = host.set(&["Exec.User=a"]).unwrap_err().to_string();
    assert!(error.contains("it is a directory"), "{error}");
    fs::remove_dir(host.file()).unwrap();
    // An administrator may keep it elsewhere.
    let elsewhere = host.root.path().join("elsewhere");
    fs::write(&elsewhere, "[Exec]\n").unwrap();
    std::os::unix::fs::symlink(&elsewhere, host.file()).unwrap();
    host.set(&["Exec.User=a"]).unwrap();
    assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "[Exec]\nUser=a\n");
    assert!(host.file().is_symlink());
}

/// A change of the unit's settings, and of the .nspawn file if there are words for it.
fn of_unit(name: &str, value: &str, words: &[&str]) -> Change {
    let key = key::find(name).unwrap();
    let edits = key.set(key.encode(value).unwrap());
    let mut change = Host::wanted(words);
    if let Wanted::Edits { drop_ins, .. } = &mut change.wanted {
        drop_ins.extend(edits.into_iter().map(|edit| (key.topic, edit)));
    }
    change
}

#[test]
fn a_drop_in_is_written_and_taken_back() {
    let host = Host::new();
    let reloads = std::sync::atomic::AtomicU32::new(0);
    let reload = || {
        reloads.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        Ok(())
    };
    let run = |wanted: &Change| change(wanted, &host.places, &reload, &(), &Cancel::default()).unwrap();
    let slice = of_unit("slice", "shop", &[]);
    let file = host.places.drop_ins(&slice.name).join("50-machinist-start.conf");
    assert_eq!(run(&slice).number, Some(1));
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.ends_with("\n\n[Service]\nSlice=machine-shop.slice\n"), "{text}");
    assert_eq!(run(&slice).number, None);
    assert_eq!(reloads.load(std::sync::atomic::Ordering::SeqCst), 1);
    // What an administrator adds stays, and so does the file.
    fs::write(&file, format!("{text}# mine\n")).unwrap();
    assert_eq!(run(&of_unit("slice", "db", &[])).number, Some(2));
    assert!(
        fs::read_to_string(&file)
            .unwrap()
            .ends_with("Slice=machine-db.slice\n# mine\n")
    );
    let undo = |number| {
        let wanted = Wanted::Undo {
            number,
            then: Vec::new(),
        };
        let what = "undo".to_owned();
        run(&Change {
            wanted,
            what,
            ..Host::wanted(&[])
        })
    };
    undo(None);
    assert_eq!(fs::read_to_string(&file).unwrap(), format!("{text}# mine\n"));
    undo(Some(1));
    assert!(!file.exists() && !file.parent().unwrap().exists());
}

#[test]
fn another_file_that_wins_is_named() {
    let host = Host::new();
    let run = |wanted: &Change| change(wanted, &host.places, &|| Ok(()), &(), &Cancel::default()).unwrap();
    let name = "web".parse().unwrap();
    let theirs = host.places.drop_ins(&name).join("99-mine.conf");
    fs::create_dir_all(theirs.parent().unwrap()).unwrap();
    fs::write(&theirs, "[Service]\nRestart=no\nExecStartPre=\n").unwrap();
    let notes = run(&of_unit("restart", "always", &[])).notes;
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(
        notes[0].contains("Restart= of '") && notes[0].ends_with("99-mine.conf' wins"),
        "{notes:?}"
    );
    let notes = run(&of_unit("stop-timeout", "9s", &[])).notes;
    assert!(notes.is_empty(), "{notes:?}");
    let first = host
        .root
        .path()
        .join("system.control/systemd-nspawn@web.service.d/50-machinist-start.conf");
    fs::create_dir_all(first.parent().unwrap()).unwrap();
    fs::write(&first, "").unwrap();
    let notes = run(&of_unit("slice", "shop", &[])).notes;
    assert!(notes[0].contains("has no effect: systemd finds"), "{notes:?}");
    assert_eq!(
        fs::read_to_string(&theirs).unwrap(),
        "[Service]\nRestart=no\nExecStartPre=\n"
    );
}

#[test]
fn of_several_files_all_change_or_none() {
    let host = Host::new();
    fs::write(host.file(), "[Exec]\n").unwrap();
    let both = of_unit("slice", "shop", &["Exec.User=a"]);
    let drop_in = host.places.drop_ins(&both.name).join("50-machinist-start.conf");
    let nothing = |host: &Host| {
        assert_eq!(host.text(), "[Exec]\n");
        assert!(!drop_in.exists());
    };
    // systemd does not answer.
    let refuse = || Err(OpError::Setting("no".into()));
    change(&both, &host.places, &refuse, &(), &Cancel::default()).unwrap_err();
    nothing(&host);
    assert!(History::of(&both.name, &host.places).entries().unwrap().is_empty());
    // Killed after the first of two: the next call takes that back.
    let plan = Plan::make(&both, &host.places).unwrap();
    let files: Vec<_> = plan
        .files
        .iter()
        .map(|file| Written {
            file: &file.key,
            former: None,
            former_as: None,
            new: Some(b"[Service]\n"),
        })
        .collect();
    History::of(&both.name, &host.places)
        .push("killed", &files, true, None)
        .unwrap();
    fs::create_dir_all(drop_in.parent().unwrap()).unwrap();
    fs::write(&drop_in, "[Service]\n").unwrap();
    assert!(settle(&both.name, &host.places).unwrap());
    nothing(&host);
    change(&both, &host.places, &|| Ok(()), &(), &Cancel::default()).unwrap();
    assert!(host.text().contains("User=a") && drop_in.exists());
    let wanted = Wanted::Undo {
        number: None,
        then: Vec::new(),
    };
    let undo = Change {
        wanted,
        ..Host::wanted(&[])
    };
    change(&undo, &host.places, &|| Ok(()), &(), &Cancel::default()).unwrap();
    nothing(&host);
}

#[test]
fn of_several_machines_all_change_or_none() {
    let host = Host::new();
    let of = |name: &str| Change {
        name: name.parse().unwrap(),
        ..of_unit("slice", "shop", &[])
    };
    let changes = [of("web"), of("db")];
    let file = |at: usize| host.places.drop_ins(&changes[at].name).join("50-machinist-start.conf");
    let run = |reload: Reload<'_>| change_all(&changes, &host.places, reload, &(), &Cancel::default());
    let steps = plan(&changes, &host.places).unwrap();
    let reloads = steps.iter().filter(|step| step.starts_with("have systemd")).count();
    assert_eq!((steps.len(), reloads), (5, 1), "{steps:?}");
    let nothing = || {
        for (at, change) in changes.iter().enumerate() {
            assert!(!file(at).exists());
            assert!(History::of(&change.name, &host.places).entries().unwrap().is_empty());
        }
    };
    // systemd does not answer; then the second directory is none.
    run(&|| Err(OpError::Setting("no".into()))).unwrap_err();
    nothing();
    fs::create_dir_all(&host.places.units).unwrap();
    fs::write(host.places.drop_ins(&changes[1].name), "").unwrap();
    run(&|| Ok(())).unwrap_err();
    nothing();
    fs::remove_file(host.places.drop_ins(&changes[1].name)).unwrap();
    let changed = run(&|| Ok(())).unwrap();
    assert!(changed.iter().all(|changed| changed.number == Some(1)));
    assert!(file(0).exists() && file(1).exists());
}
