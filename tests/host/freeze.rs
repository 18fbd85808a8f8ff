//! freeze and thaw: no process of the machine gets time, its unit lives on, and what stops it thaws it first.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use crate::support::{
    Guest, There, agree, alone, holds_within, machine_property, machinist, run, sh, shared, stays, systemd_version,
    unit_property, wait_until,
};

/// A watchdog that does not take minutes to bite.
fn with_watchdog(guest: &Guest, seconds: u32) {
    let directory = format!("/run/systemd/system/{}.d", guest.unit());
    fs::create_dir_all(&directory).unwrap();
    fs::write(
        Path::new(&directory).join("50-test.conf"),
        format!("[Service]\nWatchdogSec={seconds}\n"),
    )
    .unwrap();
    run("systemctl", ["daemon-reload"]).ok();
}

fn without_watchdog(guest: &Guest) {
    fs::remove_dir_all(format!("/run/systemd/system/{}.d", guest.unit())).unwrap();
    run("systemctl", ["daemon-reload"]).ok();
}

/// Whether the kernel says that the group of the machine's leader stands still.
fn is_frozen(guest: &Guest) -> bool {
    let groups = fs::read_to_string(format!("/proc/{}/cgroup", guest.leader())).unwrap();
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/")).unwrap();
    let events = PathBuf::from("/sys/fs/cgroup").join(group).join("cgroup.events");
    fs::read_to_string(events)
        .unwrap()
        .lines()
        .any(|line| line == "frozen 1")
}

/// A guest that counts in a file of its image, as long as it gets time.
fn counting(stem: &str) -> Guest {
    let guest = Guest::busybox(stem);
    let script = "::sysinit:/bin/true\n::respawn:/bin/sh -c 'while :; do echo x >>/ticks; sleep 0.05; done'\n";
    fs::write(guest.image().join("etc/inittab"), script).unwrap();
    guest
}

fn ticks(guest: &Guest) -> u64 {
    fs::metadata(guest.image().join("ticks")).map_or(0, |meta| meta.len())
}

fn ticks_on(guest: &Guest) {
    let before = ticks(guest);
    wait_until("it gets time", || ticks(guest) > before);
}

#[track_caller]
fn state_is(guest: &Guest, state: &str) {
    let name = &guest.name;
    let filter = format!("name={name}");
    let listed = machinist(["list", "--json", "--filter", &filter]).ok().json();
    assert_eq!(listed[0]["state"], state);
    let status = machinist(["status", "--json", name]).ok().json();
    assert_eq!(status[0]["state"], state);
}

#[test]
fn a_frozen_machine_gets_no_time_until_it_is_thawed() {
    let _host = shared();
    let guest = counting("still");
    let name = guest.name.as_str();
    machinist(["freeze", name])
        .status(1)
        .fails_with(&format!("machine '{name}' is not running"), "machinist start");
    guest.start();
    ticks_on(&guest);
    machinist(["thaw", name])
        .ok()
        .stderr_is(&format!("{name} is not frozen\n"));
    machinist(["freeze", name])
        .ok()
        .stdout_is("")
        .stderr_is(&format!("froze {name}\n"));
    assert!(is_frozen(&guest));
    let before = ticks(&guest);
    stays("it gets no time", Duration::from_secs(1), || ticks(&guest) == before);
    state_is(&guest, "frozen");
    let invocation = guest.property("InvocationID");
    machinist(["freeze", name])
        .ok()
        .stderr_is(&format!("{name} is frozen already\n"));
    let again = machinist(["freeze", "--json", name]).ok().json();
    assert_eq!(again, json!([{ "machine": name, "result": "already-frozen" }]));
    machinist(["exec", name, "--", "true"])
        .status(125)
        .quicker_than(Duration::from_secs(20))
        .stderr_has("is frozen")
        .stderr_has(&format!("machinist thaw {name}"));
    let thawed = machinist(["thaw", "--json", name]).ok().json();
    assert_eq!(thawed, json!([{ "machine": name, "result": "thawed" }]));
    ticks_on(&guest);
    state_is(&guest, "running");
    assert_eq!(guest.property("InvocationID"), invocation);
    assert_eq!(guest.property("FreezerState"), "running");
    machinist(["stop", name]).ok();
    machinist(["thaw", name]).status(1).stderr_has("is not running");
    machinist(["freeze", "nosuch"]).status(3);
    machinist(["thaw", "nosuch"]).status(3);
}

#[test]
fn a_frozen_machine_survives_its_watchdog() {
    let _host = shared();
    let guest = counting("dog");
    with_watchdog(&guest, 3);
    guest.start();
    assert_eq!(guest.property("WatchdogUSec"), "3s");
    let invocation = guest.property("InvocationID");
    machinist(["freeze", &guest.name]).ok();
    stays("it lives", Duration::from_secs(10), || {
        guest.property("ActiveState") == "active" && guest.property("InvocationID") == invocation
    });
    assert!(is_frozen(&guest));
    machinist(["thaw", &guest.name]).ok();
    ticks_on(&guest);
    machinist(["stop", &guest.name]).ok();
    guest.is_down();
    without_watchdog(&guest);
}

#[test]
fn quirk_watchdog_kills_frozen() {
    let _host = shared();
    let guest = Guest::busybox("bite");
    with_watchdog(&guest, 3);
    guest.start();
    run("systemctl", ["freeze", &guest.unit()]).ok();
    let bites = holds_within(Duration::from_secs(12), || guest.property("Result") == "watchdog");
    assert_eq!(
        bites,
        crate::quirks::here(machinist::sys::quirks::Quirk::WatchdogKillsFrozen)
    );
    run("systemctl", ["thaw", &guest.unit()]).any();
    run("systemctl", ["kill", "-s", "KILL", &guest.unit()]).any();
    without_watchdog(&guest);
}

#[test]
fn what_stops_a_frozen_machine_thaws_it_first() {
    let _host = shared();
    let guest = Guest::busybox("thaws");
    let name = guest.name.as_str();
    let soon = Duration::from_secs(25);
    for verb in [
        &["stop"] as &[&str],
        &["terminate"],
        &["restart"],
        &["restart", "--inside"],
    ] {
        machinist(["start", name]).ok();
        let (invocation, _) = (guest.property("InvocationID"), machinist(["freeze", name]).ok());
        machinist(verb.iter().chain(&[name])).ok().quicker_than(soon);
        if verb[0] == "restart" {
            agree(name, There::Running);
            assert_ne!(guest.property("InvocationID"), invocation);
            state_is(&guest, "running");
        } else {
            guest.is_down();
        }
    }
    machinist(["freeze", name]).ok();
    machinist(["remove", "--yes", "--force", name]).ok().quicker_than(soon);
    agree(name, There::Nowhere);
}

#[test]
fn a_debian_goes_on_as_it_was() {
    let _host = shared();
    let guest = Guest::debian("ice");
    let name = guest.name.as_str();
    machinist(["start", "--wait", name]).ok();
    let boot = guest.inside(["cat", "/proc/sys/kernel/random/boot_id"]).ok().stdout;
    machinist(["freeze", name]).ok();
    // The guest has groups of its own inside.
    assert!(is_frozen(&guest));
    state_is(&guest, "frozen");
    machinist(["thaw", name]).ok();
    assert_eq!(
        guest.inside(["cat", "/proc/sys/kernel/random/boot_id"]).ok().stdout,
        boot
    );
    let state = run("systemctl", ["-M", name, "is-system-running"]).any().stdout;
    assert_eq!(state, "running\n");
    machinist(["freeze", name]).ok();
    machinist(["stop", name]).ok().quicker_than(Duration::from_secs(60));
    guest.is_down();
    assert_eq!(guest.property("Result"), "success");
}

#[test]
fn machines_of_scopes_are_frozen_by_systemd() {
    let _host = shared();
    let guest = Guest::busybox("icescope");
    let (name, image) = (guest.name.as_str(), guest.image());
    let (unit, image) = (format!("test-{name}.service"), image.to_string_lossy().into_owned());
    let nspawn = ["systemd-nspawn", "-q", "-b", "-D", &image, "-M", name];
    run("systemd-run", ["-q", "--unit", &unit].iter().chain(&nspawn)).ok();
    wait_until("it is registered", || {
        machine_property(name, "State").as_deref() == Some("running")
    });
    let scope = machine_property(name, "Unit").unwrap();
    wait_until("its scope has started", || {
        unit_property(&scope, "ActiveState") == "active" && unit_property(&scope, "Job").is_empty()
    });
    machinist(["freeze", "--dry-run", name])
        .ok()
        .stdout_is(&format!("freeze unit {scope}\n"));
    machinist(["freeze", name]).ok();
    assert_eq!(unit_property(&scope, "FreezerState"), "frozen");
    state_is(&guest, "frozen");
    machinist(["thaw", "--dry-run", name])
        .ok()
        .stdout_is(&format!("thaw unit {scope}\n"));
    machinist(["thaw", name]).ok();
    assert_eq!(unit_property(&scope, "FreezerState"), "running");
    machinist(["freeze", name]).ok();
    machinist(["terminate", name]).ok();
    run("systemctl", ["stop", &unit]).any();
    run("systemctl", ["reset-failed", &unit]).any();
}

#[test]
fn a_machine_in_a_unit_with_more_than_itself_is_not_frozen() {
    let _host = shared();
    let name = format!("much-{}", std::process::id());
    let unit = format!("test-{name}.service");
    // Registered by the very unit that freezes: systemd would hold us, too. In a file: a `$` of a transient unit's command is
    // another after a reload.
    let script = "sleep 1000 & pid=$!; busctl call org.freedesktop.machine1 /org/freedesktop/machine1 \
                  org.freedesktop.machine1.Manager RegisterMachine sayssus \"$1\" 0 test container $pid '' >/dev/null; \
                  status=0; machinist freeze \"$1\" || status=$?; kill $pid; exit $status";
    let file = format!("/run/{unit}.sh");
    fs::write(&file, script).expect("a script");
    let words = ["-q", "--wait", "--pipe", "--unit", &unit, "bash", &file, &name];
    let frozen = run("systemd-run", words).within(Duration::from_secs(60)).any();
    fs::remove_file(&file).expect("the script goes");
    assert_eq!(frozen.status, 1, "{frozen:?}");
    frozen
        .stderr_has("its unit holds others, too")
        .stderr_has("systemctl status");
}

#[test]
fn a_frozen_slice_is_named() {
    let _host = shared();
    let guest = Guest::busybox("slice");
    let name = guest.name.as_str();
    let slice = format!("{}.slice", name.replace('-', "_"));
    guest.write_drop_in(&format!("[Service]\nSlice={slice}\n"));
    guest.start();
    run("systemctl", ["freeze", &slice]).ok();
    let frozen = machinist(["freeze", name]).any();
    let thaw = machinist(["thaw", name]).within(Duration::from_secs(60)).any();
    run("systemctl", ["thaw", &slice]).ok();
    frozen.stderr_is(&format!("{name} is frozen already\n"));
    if systemd_version() < 256 {
        // It freezes each unit of the slice, and each can be thawed by itself.
        assert_eq!(thaw.status, 0, "{thaw:?}");
    } else {
        assert_eq!(thaw.status, 1, "{thaw:?}");
        thaw.stderr_has("a slice that its unit is in is frozen")
            .stderr_has(&slice);
    }
    wait_until("it goes on", || !is_frozen(&guest));
}

#[test]
fn freezing_needs_permission() {
    let _host = shared();
    let guest = Guest::busybox("icedeny");
    guest.start();
    for verb in ["freeze", "thaw"] {
        if verb == "thaw" {
            machinist(["freeze", &guest.name]).ok();
        }
        run("runuser", ["-u", "nobody", "--", "machinist", verb, &guest.name]).status(4);
    }
    run(
        "runuser",
        [
            "-u",
            "nobody",
            "--",
            "machinist",
            "exec",
            "-t",
            &guest.name,
            "--",
            "true",
        ],
    )
    .status(125)
    .quicker_than(Duration::from_secs(20))
    .stderr_has("is frozen");
    assert!(is_frozen(&guest));
    machinist(["thaw", &guest.name]).ok();
}

#[test]
fn an_answer_that_a_reload_loses_is_not_waited_for() {
    let _host = alone();
    let guest = Guest::busybox("icelost");
    guest.start();
    let storms =
        "touch \"$1\"; for _ in $(seq 300); do [ -e \"$1\" ] || break; systemctl daemon-reload; sleep 0.02; done";
    let mark = format!("/run/{}.storms", guest.name);
    let storm = sh(storms, [&mark]).spawn();
    wait_until("systemd reloads", || Path::new(&mark).exists());
    for _ in 0..10 {
        for (verb, frozen) in [("freeze", true), ("thaw", false)] {
            let patient = Duration::from_secs(60);
            machinist([verb, &guest.name]).within(patient).ok();
            assert_eq!(is_frozen(&guest), frozen);
        }
    }
    fs::remove_file(&mark).expect("a mark");
    storm.wait();
}
