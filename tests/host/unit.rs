//! What stands in drop-ins of a machine's unit: systemd's own answers, and what it does.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::{Guest, machine_property, machinist, newest_entry, run, shared, wait_until};

/// The drop-in of a topic.
fn drop_in(guest: &Guest, topic: &str) -> PathBuf {
    guest.drop_ins().join(format!("50-machinist-{topic}.conf"))
}

#[test]
fn settings_of_the_unit_are_systemds() {
    let _host = shared();
    let guest = Guest::busybox("unset");
    let name = guest.name.as_str();
    let set = [
        "config",
        "set",
        name,
        "restart=on-failure",
        "stop-timeout=1min 10s",
        "slice=shop",
        "description=100 % of the shop",
        "before-start=/bin/true %i",
        "before-start=-/bin/false",
    ];
    machinist(set)
        .args(["--dry-run"])
        .ok()
        .stdout_has(&format!("write '{}'", drop_in(&guest, "restart").display()))
        .stdout_has("have systemd read its unit files anew");
    assert!(!guest.drop_ins().exists());
    machinist(set)
        .ok()
        .stderr_is(&format!("changed {name}; holds from its next start\n"));
    assert_eq!(guest.property("Restart"), "on-failure");
    assert_eq!(guest.property("TimeoutStopUSec"), "1min 10s");
    assert_eq!(guest.property("Slice"), "machine-shop.slice");
    assert_eq!(guest.property("Description"), "100 % of the shop");
    assert_eq!(guest.property("NeedDaemonReload"), "no");
    let before = guest.property("ExecStartPre");
    assert!(before.contains(&format!("argv[]=/bin/true {name} ;")), "{before}");
    assert!(
        before.contains("path=/bin/false ; argv[]=/bin/false ; ignore_errors=yes"),
        "{before}"
    );
    let get = ["config", "get", name, "restart", "stop-timeout", "slice", "description"];
    machinist(get)
        .ok()
        .stdout_is("on-failure\n1min 10s\nshop\n100 % of the shop\n");
    let json = machinist(["config", "get", name, "before-start", "after-stop", "--json"])
        .ok()
        .json();
    assert_eq!(
        json,
        serde_json::json!({"before-start": ["/bin/true %i", "-/bin/false"], "after-stop": null})
    );

    // Nothing is logged about the files.
    run("journalctl", ["--sync"]).ok();
    let said = run("journalctl", ["-q", "-o", "cat", "_PID=1", "-p", "warning"])
        .ok()
        .stdout;
    assert!(!said.contains(name), "{said}");

    guest.start();
    let group = format!("/sys/fs/cgroup/machine.slice/machine-shop.slice/{}", guest.unit());
    assert!(Path::new(&group).exists());
    machinist(["config", "set", name, "restart=always"])
        .ok()
        .stderr_is(&format!("changed {name}\n"));
    machinist(["config", "set", name, "restart=always"])
        .ok()
        .stderr_is(&format!("{name} has these settings already\n"));
    machinist(["config", "unset", name, "restart"]).ok();
    assert_eq!(guest.property("Restart"), "no");
    assert!(!drop_in(&guest, "restart").exists());
    machinist(["config", "undo", name]).ok();
    assert_eq!(guest.property("Restart"), "always");
    machinist(["config", "get", name, "restart"]).ok().stdout_is("always\n");
    machinist(["stop", name]).ok();
    guest.is_down();

    // They go with the machine.
    machinist(["remove", "--yes", name]).ok();
    assert!(!guest.drop_ins().exists());
    assert_eq!(guest.property("Slice"), "machine.slice");
}

#[test]
fn bad_settings_of_the_unit_change_nothing() {
    let _host = shared();
    let guest = Guest::busybox("unbad");
    let name = guest.name.as_str();
    for (setting, said) in [
        ("restart=perhaps", "expected no, on-success"),
        ("stop-timeout=soon", "a time span"),
        ("slice=system.slice", "machine-web.slice"),
        ("description=a\nb", "line break"),
        ("before-start=logger x", "is not an absolute path"),
        ("before-start=/bin/sh -c 'x", "a quote is never closed"),
        ("after-stop=/bin/date +%e", "is no specifier"),
        ("restat=always", "settings of the unit are"),
    ] {
        machinist(["config", "set", name, "slice=a", setting])
            .status(2)
            .stderr_has(said);
        assert!(!guest.drop_ins().exists(), "{setting}");
    }
    machinist(["config", "add", name, "restart=no"])
        .status(2)
        .stderr_has("is no list");
    machinist(["config", "set", "no-such-machine", "restart=no"]).status(3);
    let user = [
        "--reuid=1000",
        "--regid=1000",
        "--clear-groups",
        "machinist",
        "config",
        "set",
        name,
        "restart=no",
    ];
    run("setpriv", user).status(4).stderr_has("config set needs root");
}

#[test]
fn a_machine_that_dies_is_started_again() {
    let _host = shared();
    let guest = Guest::busybox("unauto");
    let name = guest.name.as_str();
    machinist(["config", "set", name, "restart=on-failure"]).ok();
    guest.start();
    // Its init dies; then its supervisor, which leaves everything behind.
    for whom in ["init", "supervisor"] {
        let (invocation, leader) = (guest.property("InvocationID"), guest.leader().to_string());
        if whom == "init" {
            run("kill", ["-KILL", &leader]).ok();
        } else {
            run("systemctl", ["kill", "--kill-whom=main", "-s", "KILL", &guest.unit()]).ok();
        }
        wait_until("it runs again", || {
            guest.property("ActiveState") == "active" && guest.property("InvocationID") != invocation
        });
        wait_until("machined has the new one", || {
            machine_property(name, "Leader").is_some_and(|now| now != leader)
        });
    }
    machinist(["stop", name]).ok();
    guest.is_down();
    machinist(["start", name]).ok();
}

#[test]
fn the_guest_gets_its_stop_signal() {
    let _host = shared();
    let guest = Guest::deaf("unsig");
    let name = guest.name.as_str();
    machinist(["config", "set", name, "stop-signal=SIGUSR2"]).ok();
    assert_eq!(
        machinist(["config", "get", name, "Exec.KillSignal"]).ok().stdout,
        "SIGUSR2\n"
    );
    machinist(["config", "get", name, "stop-signal"])
        .ok()
        .stdout_is("SIGUSR2\n");
    guest.start();
    // Deaf to what systemd-nspawn sends otherwise.
    let stopped = machinist(["stop", name, "--timeout", "20"]).ok();
    assert!(stopped.took.as_secs() < 15, "{stopped:?}");
    guest.is_down();
}

#[test]
fn a_stop_timeout_ends_the_patience() {
    let _host = shared();
    let guest = Guest::deaf("untime");
    let name = guest.name.as_str();
    machinist(["config", "set", name, "stop-timeout=2s"]).ok();
    guest.start();
    let stopped = run("systemctl", ["stop", &guest.unit()]).any();
    assert!((2..15).contains(&stopped.took.as_secs()), "{stopped:?}");
    assert_ne!(guest.property("ActiveState"), "active");
}

#[test]
fn a_stop_waits_as_long_as_the_unit_does() {
    let _host = shared();
    let guest = Guest::deaf("unlong");
    let name = guest.name.as_str();
    let planned = |words: &[&str], text: &str| {
        machinist(["stop", name, "--dry-run"].iter().chain(words))
            .ok()
            .stdout_is(&format!("stop unit {}, wait {text}\n", guest.unit()));
    };
    guest.start();
    machinist(["config", "set", name, "stop-timeout=10min"]).ok();
    planned(&[], "up to 610 s");
    planned(&["--timeout", "7"], "up to 7 s");
    machinist(["config", "set", name, "stop-timeout=infinity"]).ok();
    planned(&["--force"], "as long as it takes");
    machinist(["config", "set", name, "stop-timeout=5s"]).ok();
    planned(&["--force"], "up to 90 s, then take it down");
    assert_eq!(guest.property("TimeoutStopUSec"), "5s");
    machinist(["terminate", name]).ok();
}

#[test]
fn hooks_run_on_the_host_at_their_time() {
    let _host = shared();
    let guest = Guest::busybox("unhook");
    let name = guest.name.as_str();
    let log = format!("/root/{name}.log");
    let hook =
        |when: &str| format!("{when}=/bin/sh -c 'echo {when} %i $$(machinectl show %i -p State --value) >>{log}'");
    machinist([
        "config",
        "set",
        name,
        &hook("before-start"),
        &hook("after-start"),
        &hook("after-stop"),
    ])
    .ok();
    guest.start();
    machinist(["stop", name]).ok();
    let text = fs::read_to_string(&log).unwrap();
    fs::remove_file(&log).unwrap();
    assert_eq!(
        text,
        format!("before-start {name}\nafter-start {name} running\nafter-stop {name}\n")
    );
    // What fails before the start keeps it from starting, and that is said.
    machinist(["config", "set", name, "before-start=/bin/false"]).ok();
    let cause = "a command that its unit runs before or after the start failed (1/FAILURE)";
    machinist(["start", name]).status(1).fails_with(
        &format!("cannot start machine '{name}': {cause}"),
        &format!("machinist config get {name} before-start"),
    );
}

#[test]
fn what_an_administrator_wrote_wins_and_stays() {
    let _host = shared();
    let guest = Guest::busybox("unadm");
    let name = guest.name.as_str();
    fs::create_dir_all(guest.drop_ins()).unwrap();
    let theirs = guest.drop_ins().join("99-mine.conf");
    fs::write(&theirs, "[Service]\nRestart=on-abort\n").unwrap();
    machinist(["config", "set", name, "restart=always"])
        .ok()
        .stderr_has(&format!("'{}' wins", theirs.display()));
    assert_eq!(guest.property("Restart"), "on-abort");
    // One truth: what has no effect holds at no time.
    let said = machinist(["config", "set", name, "restart=always"]).ok().stderr;
    assert!(said.contains("it has no effect\n") && !said.contains("holds"), "{said}");
    let ours = drop_in(&guest, "restart");
    let rows = machinist(["config", "set", name, "restart=always", "--json"])
        .ok()
        .json();
    let overridden = serde_json::json!([{ "key": "Restart", "file": ours, "by": theirs }]);
    assert_eq!(
        (&rows[0]["holds"], &rows[0]["overridden"]),
        (&serde_json::Value::Null, &overridden)
    );
    let rows = machinist(["config", "set", name, "restart=always", "stop-timeout=9s", "--json"])
        .ok()
        .json();
    assert_eq!(
        (&rows[0]["holds"], &rows[0]["overridden"]),
        (&"now".into(), &overridden)
    );
    // One that systemd does not read at all, as it finds another of its name.
    let mask = guest.limits()[0].join("50-machinist-stop.conf");
    fs::create_dir_all(mask.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink("/dev/null", &mask).unwrap();
    let rows = machinist(["config", "set", name, "stop-timeout=8s", "--json"])
        .ok()
        .json();
    assert_eq!(rows[0]["overridden"][0]["by"], mask.to_str().unwrap());
    assert_eq!(rows[0]["holds"], serde_json::Value::Null);
    assert_ne!(guest.property("TimeoutStopUSec"), "8s");
    fs::remove_file(&mask).unwrap();
    machinist(["config", "get", name, "restart"])
        .ok()
        .stdout_is("on-abort\n");
    fs::remove_file(&theirs).unwrap();
    // An edit of our own file is kept, whatever is changed in it.
    let ours = drop_in(&guest, "restart");
    let text = fs::read_to_string(&ours).unwrap();
    fs::write(&ours, format!("{text}# mine\nRestartSec=7\n")).unwrap();
    machinist(["config", "set", name, "restart=on-failure"]).ok();
    assert_eq!(guest.property("Restart"), "on-failure");
    assert_eq!(guest.property("RestartUSec"), "7s");
    assert!(fs::read_to_string(&ours).unwrap().contains("# mine\n"));
    machinist(["remove", "--yes", name])
        .ok()
        .stderr_has("kept what was not machinist's");
    assert!(!guest.drop_ins().exists());
}

#[test]
fn a_killed_change_of_two_files_is_made_or_not() {
    let _host = shared();
    let guest = Guest::busybox("unkill");
    let name = guest.name.as_str();
    let before = fs::read_to_string(guest.settings()).unwrap();
    let set = ["config", "set", name, "Exec.User=root", "slice=shop"];
    // Keep, write the drop-in, write the settings, reload, note that it is complete.
    for step in 0..5 {
        machinist(set)
            .env("MACHINIST_DIE_AT_STEP", step.to_string())
            .status(128 + 9);
        machinist(["config", "set", name, "Exec.KillSignal=SIGUSR2"]).ok();
        assert_eq!(fs::read_to_string(guest.settings()).unwrap(), before, "step {step}");
        assert!(!drop_in(&guest, "start").exists(), "step {step}");
        assert_eq!(guest.property("Slice"), "machine.slice", "step {step}");
    }
    machinist(set).ok();
    assert_eq!(guest.property("Slice"), "machine-shop.slice");
    machinist(["config", "undo", name]).ok();
    assert_eq!(fs::read_to_string(guest.settings()).unwrap(), before);
    assert_eq!(guest.property("Slice"), "machine.slice");
    // One file, written and not yet read.
    machinist(["config", "set", name, "slice=shop"])
        .env("MACHINIST_DIE_AT_STEP", "2")
        .status(128 + 9);
    machinist(["config", "set", name, "slice=shop"]).ok();
    assert_eq!(guest.property("Slice"), "machine-shop.slice");
    let entry = newest_entry(&[format!("MACHINE={name}"), "MACHINIST_VERB=config set".to_owned()]).unwrap();
    assert_eq!(entry["MACHINIST_RESULT"], "done", "{entry}");
}
