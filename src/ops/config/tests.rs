//! Changes of settings in a directory of their own: no systemd is asked.

use std::os::unix::fs::MetadataExt as _;

use super::*;
use crate::nspawn::assignment::parse_assignment;

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
            wanted: Wanted::Edits(edits.collect()),
            what: format!("set {}", words.join(" ")),
            systemd: 257,
        }
    }

    fn set(&self, words: &[&str]) -> Result<Changed, OpError> {
        change(&Self::wanted(words), &self.places, &(), &Cancel::default())
    }

    fn undo(&self, number: Option<u32>) -> Result<Changed, OpError> {
        let wanted = Change {
            wanted: Wanted::Undo(number),
            what: "undo".to_owned(),
            ..Self::wanted(&[])
        };
        change(&wanted, &self.places, &(), &Cancel::default())
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
    let plan = Plan::make(&change, &host.places).unwrap();
    fs::write(host.file(), "[Exec]\nBoot=yes\n").unwrap();
    let run = |plan: &Plan| {
        let number = Mutex::default();
        let steps = plan.steps(&change, &host.places, &number);
        steps.run(&(), &Cancel::default()).unwrap_err().to_string()
    };
    assert!(run(&plan).contains("changed by somebody else"));
    assert_eq!(host.text(), "[Exec]\nBoot=yes\n");
    fs::remove_file(host.file()).unwrap();
    assert!(run(&plan).contains("changed by somebody else"));
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
