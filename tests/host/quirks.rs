//! What differs between systemd's versions: each test fails when a quirk goes away, or comes to another version.

use std::fs;

use machinist::sys::quirks::{Quirk, TABLE, has};

use crate::support::{
    Guest, PATIENCE, There, agree, machine_property, machinist, newest_entry, run, shared, systemd_version, wait_until,
};

pub(crate) fn here(quirk: Quirk) -> bool {
    has(systemd_version(), quirk)
}

#[test]
fn every_quirk_is_watched() {
    let source = [include_str!("quirks.rs"), include_str!("freeze.rs")].concat();
    for entry in TABLE {
        assert!(
            source.contains(&format!("fn {}()", entry.watched_by)),
            "nothing watches {:?}",
            entry.quirk
        );
    }
}

#[test]
fn quirk_stale_unix_export() {
    let _host = shared();
    let guest = Guest::busybox("stale");
    let name = &guest.name;
    guest.start();
    run("systemctl", ["kill", "--kill-whom=main", "-s", "KILL", &guest.unit()]).ok();
    wait_until("the unit has failed", || guest.property("ActiveState") == "failed");
    wait_until("machined has forgotten it", || {
        machine_property(name, "State").is_none()
    });
    let export = format!(" /run/systemd/nspawn/unix-export/{name} ");
    let is_mounted = || fs::read_to_string("/proc/self/mounts").unwrap().contains(&export);
    assert_eq!(
        is_mounted(),
        here(Quirk::StaleUnixExport),
        "the mount of a killed supervisor"
    );
    let plain = run("systemctl", ["start", &guest.unit()]).any().status;
    assert_eq!(
        plain != 0,
        here(Quirk::StaleUnixExport),
        "systemctl start after it: status {plain}"
    );
    // By force, as its init may not listen yet, and nothing else can start while a machine stops.
    run("systemctl", ["kill", "-s", "KILL", &guest.unit()]).any();
    wait_until("the unit has failed again", || {
        guest.property("ActiveState") == "failed"
    });
    run("umount", ["-l", export.trim()]).any();
    run("systemctl", ["start", &guest.unit()]).ok();
    run("systemctl", ["kill", "--kill-whom=main", "-s", "KILL", &guest.unit()]).ok();
    wait_until("the unit has failed", || guest.property("ActiveState") == "failed");
    wait_until("machined has forgotten it", || {
        machine_property(name, "State").is_none()
    });
    // Ours gets over it everywhere.
    machinist(["start", name]).ok().stderr_is(&format!("started {name}\n"));
    agree(name, There::Running);
    machinist(["stop", name]).ok();
    guest.is_down();
}

#[test]
fn quirk_errors_look_like_console() {
    let _host = shared();
    let guest = Guest::busybox("cons");
    guest.write_settings("[Network]\nBridge=nosuchbr9\n");
    run("systemctl", ["start", &guest.unit()]).status(1);
    run("journalctl", ["--sync"]).ok();
    let unit = format!("_SYSTEMD_UNIT={}", guest.unit());
    let lines = run("journalctl", ["-q", "-o", "json", &unit]).ok().stdout;
    let mut lines = lines
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let said = lines
        .rfind(|line| line["MESSAGE"].as_str().is_some_and(|text| text.contains("nosuchbr9")))
        .unwrap();
    let told_apart = said["_TRANSPORT"] == "journal" && said["PRIORITY"] == "3";
    assert_eq!(!told_apart, here(Quirk::ErrorsLookLikeConsole), "{said}");
}

#[test]
fn quirk_os_release_needs_auth() {
    let _host = shared();
    let guest = Guest::busybox("auth");
    guest.start();
    let (path, name) = ("/org/freedesktop/machine1", "org.freedesktop.machine1");
    let call = [
        "busctl",
        "call",
        name,
        path,
        "org.freedesktop.machine1.Manager",
        "GetMachineOSRelease",
        "s",
        &guest.name,
    ];
    let user = ["--reuid=1000", "--regid=1000", "--clear-groups"];
    let output = run("setpriv", user.iter().chain(&call)).any();
    assert_eq!(output.status != 0, here(Quirk::OsReleaseNeedsAuth), "{output:?}");
}

#[test]
fn quirk_stop_while_frozen() {
    let _host = shared();
    let guest = Guest::busybox("ice");
    guest.start();
    run("systemctl", ["freeze", &guest.unit()]).ok();
    let output = run("systemctl", ["stop", &guest.unit()]).within(PATIENCE).any();
    assert_eq!(output.status != 0, here(Quirk::StopRefusedWhileFrozen), "{output:?}");
    assert_eq!(
        guest.property("ActiveState") == "active",
        here(Quirk::StopRefusedWhileFrozen)
    );
    run("systemctl", ["thaw", &guest.unit()]).any();
}

#[test]
fn what_a_verb_did_is_in_the_journal() {
    let _host = shared();
    let guest = Guest::new("audit");
    let name = guest.name.as_str();
    let entry = |verb: &str| {
        let matches = [format!("MACHINE={name}"), format!("MACHINIST_VERB={verb}")];
        newest_entry(&matches).unwrap_or_else(|| panic!("no entry of {verb}"))
    };
    let check = |verb: &str, result: &str, message: &str| {
        let entry = entry(verb);
        assert_eq!(
            (&entry["MACHINIST_RESULT"], &entry["SYSLOG_IDENTIFIER"]),
            (&result.into(), &"machinist".into()),
            "{entry}"
        );
        assert!(
            entry["MESSAGE"].as_str().is_some_and(|text| text.contains(message)),
            "{entry}"
        );
    };
    machinist(["create", name, "template:busybox"]).ok();
    check("create", "done", "done");
    machinist(["create", name, "template:busybox"])
        .status(1)
        .stderr_has("exists already");
    for verb in ["start", "stop", "restart", "terminate", "enable", "disable"] {
        machinist([verb, name]).ok();
        check(verb, "done", "done");
    }
    guest.write_settings("[Network]\nBridge=nosuchbr8\n");
    machinist(["start", name]).status(1).stderr_has("nosuchbr8");
    check("start", "failed", "bridge 'nosuchbr8' does not exist");
    machinist(["remove", "-y", name]).ok();
    check("remove", "done", "done");
    machinist(["start", name]).status(3).stderr_has(name);
    check("start", "failed", "no machine or image");
}
