//! start, stop, restart, terminate, enable, disable: what systemd says after each.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::support::{
    Guest, There, agree, alone, machine_property, machinist, run, sh, shared, stays, wait_until, write_program,
};

/// A guest that says of itself that it is systemd, never finishes booting, and ignores every request.
fn never_boots(stem: &str) -> Guest {
    let guest = Guest::deaf(stem);
    write_program(
        &guest.image().join("usr/lib/systemd/systemd"),
        "#!/bin/sh\nwhile :; do sleep 1; done\n",
    );
    guest
}

#[test]
fn start_waits_for_its_job_and_is_idempotent() {
    let _host = shared();
    let guest = Guest::busybox("start");
    let name = &guest.name;
    agree(name, There::Stopped);
    machinist(["start", name])
        .ok()
        .stdout_is("")
        .stderr_is(&format!("started {name}\n"));
    assert_eq!(guest.property("ActiveState"), "active");
    assert_eq!(machine_property(name, "State").as_deref(), Some("running"));
    assert_eq!(machine_property(name, "Unit"), Some(guest.unit()));
    let init = fs::read_to_string(format!("/proc/{}/comm", guest.leader())).expect("reading comm");
    assert_eq!(init, "init\n", "PID 1 runs when start returns");
    agree(name, There::Running);

    let invocation = guest.property("InvocationID");
    machinist(["start", name])
        .ok()
        .stderr_is(&format!("{name} is running already\n"));
    let again = machinist(["start", name, "--json"]).ok();
    assert_eq!(again.json(), json!([{ "machine": name, "result": "already-running" }]));
    assert_eq!(again.stderr, "");
    assert_eq!(guest.property("InvocationID"), invocation);
}

#[test]
fn start_without_an_image_is_status_3() {
    let _host = shared();
    let guest = Guest::new("absent");
    let name = &guest.name;
    machinist(["start", name]).status(3).fails_with(
        &format!("no machine or image '{name}'"),
        &format!("machinist create {name} debian:stable"),
    );
    let error = machinist(["start", name, "--json"]).status(3).json_error();
    assert_eq!(error["kind"], "not-found");
    machinist(["stop", name]).status(3).stderr_has(name);
    machinist(["terminate", name]).status(3).stderr_has(name);
    agree(name, There::Nowhere);
}

#[test]
fn start_of_several_goes_on_after_a_failure() {
    let _host = shared();
    let (one, two) = (Guest::busybox("several"), Guest::busybox("several"));
    let missing = Guest::new("several");
    let output = machinist(["start", &one.name, &missing.name, &two.name, "--json"]).status(1);
    let results = output.json();
    let result = |name: &str| {
        results
            .as_array()
            .unwrap()
            .iter()
            .find(|row| row["machine"] == name)
            .unwrap()["result"]
            .clone()
    };
    assert_eq!(result(&one.name), "started");
    assert_eq!(result(&two.name), "started");
    assert_eq!(result(&missing.name), "failed");
    agree(&one.name, There::Running);
    agree(&two.name, There::Running);
    agree(&missing.name, There::Nowhere);
}

#[test]
fn a_pattern_stands_for_the_machines_it_matches() {
    let _host = shared();
    let one = Guest::busybox("glob");
    let two = Guest::named(format!("{}x", one.name));
    crate::support::make_busybox_image(&two.image());
    let pattern = format!("{}*", one.name);
    machinist(["start", &pattern]).ok();
    agree(&one.name, There::Running);
    agree(&two.name, There::Running);
    machinist(["terminate", &pattern]).ok();
    one.is_down();
    two.is_down();
    machinist(["terminate", &pattern])
        .status(3)
        .fails_with(&format!("no machine matches '{pattern}'"), "list -a");
}

#[test]
fn dry_runs_touch_nothing() {
    let _host = shared();
    let guest = Guest::busybox("dry");
    let name = &guest.name;
    for verb in ["start", "stop", "restart", "terminate", "enable", "disable"] {
        machinist([verb, "nosuch", "--dry-run"]).status(3);
    }
    machinist(["start", name, "--dry-run"])
        .ok()
        .stdout_has(&format!("start unit {}", guest.unit()));
    for verb in ["stop", "terminate"] {
        let nothing = format!("nothing: {name} is not running\n");
        machinist([verb, name, "--dry-run"]).ok().stdout_is(&nothing);
    }
    agree(name, There::Stopped);
    machinist(["enable", name, "--now", "--dry-run"])
        .ok()
        .stdout_has(&format!("enable unit {}", guest.unit()));
    assert_eq!(
        run("systemctl", ["is-enabled", &guest.unit()]).any().stdout,
        "disabled\n"
    );
    agree(name, There::Stopped);
    guest.start();
    for verb in ["stop", "restart", "terminate"] {
        let plan = machinist([verb, name, "--dry-run"]).ok();
        assert!(plan.stdout.contains(&guest.unit()), "{plan:?}");
    }
    machinist(["restart", "--inside", name, "--dry-run"])
        .ok()
        .stdout_has(name);
    agree(name, There::Running);
    assert_eq!(guest.property("NRestarts"), "0");
}

#[test]
fn start_wait_of_busybox_returns_when_its_init_runs() {
    let _host = shared();
    let guest = Guest::busybox("waitbb");
    machinist(["start", &guest.name, "--wait"])
        .ok()
        .quicker_than(Duration::from_secs(15));
    agree(&guest.name, There::Running);
}

#[test]
fn start_wait_of_a_guest_that_never_boots_times_out_with_124() {
    let _host = shared();
    let guest = never_boots("noboot");
    let name = &guest.name;
    machinist(["start", name, "--wait", "--timeout", "3"])
        .status(124)
        .fails_with(
            &format!("machine '{name}' has not finished booting after 3 s"),
            "--timeout",
        )
        .quicker_than(Duration::from_secs(10));
    // It is left as it is: it may still come up.
    agree(name, There::Running);
    let error = machinist(["restart", "--force", name, "--wait", "--timeout", "2", "--json"])
        .status(124)
        .json_error();
    assert_eq!(error["kind"], "timed-out");
}

/// The clock of systemd's monotonic timestamps, s.
fn seconds_up() -> f64 {
    let text = fs::read_to_string("/proc/uptime").expect("reading the uptime");
    let seconds = text.split(' ').next().expect("a number");
    seconds.parse().expect("seconds")
}

#[test]
fn stop_powers_off_and_is_idempotent() {
    let _host = shared();
    let guest = Guest::busybox("stop");
    let name = &guest.name;
    guest.start();
    let before = seconds_up();
    machinist(["stop", name])
        .ok()
        .stderr_is(&format!("stopped {name}\n"))
        .quicker_than(Duration::from_secs(20));
    guest.is_down();
    assert_eq!(guest.property("Result"), "success");
    // It is asked at once: that it listens is not told by the masks of its signals.
    let asked: f64 = guest.property("ActiveExitTimestampMonotonic").parse().expect("µs");
    assert!(asked / 1e6 - before < 4.0, "{asked} µs after {before} s");
    agree(name, There::Stopped);
    machinist(["stop", name])
        .ok()
        .stderr_is(&format!("{name} is not running\n"));
    machinist(["terminate", name])
        .ok()
        .stderr_is(&format!("{name} is not running\n"));
    let again = machinist(["stop", name, "--json"]).ok();
    assert_eq!(again.json(), json!([{ "machine": name, "result": "already-stopped" }]));
}

#[test]
fn stop_of_a_deaf_guest_times_out_and_force_leaves_nothing() {
    let _host = shared();
    let guest = Guest::deaf("deaf");
    let name = &guest.name;
    guest.start();
    machinist(["stop", name, "--timeout", "1"]).status(124).fails_with(
        &format!("machine '{name}' has not stopped after 1 s"),
        &format!("machinist stop --force {name}"),
    );
    machinist(["stop", name, "--timeout", "0.5", "--force"])
        .ok()
        .stderr_is(&format!("{name} did not power off in time and was taken down\n"))
        .quicker_than(Duration::from_secs(10));
    guest.is_down();
    agree(name, There::Stopped);
    guest.start();
    agree(name, There::Running);
}

#[test]
fn terminate_is_at_once_and_leaves_nothing() {
    let _host = shared();
    let guest = Guest::deaf("term");
    guest.start();
    machinist(["terminate", &guest.name])
        .ok()
        .stderr_is(&format!("terminated {}\n", guest.name))
        .quicker_than(Duration::from_secs(8));
    guest.is_down();
    agree(&guest.name, There::Stopped);
}

#[test]
fn a_unit_that_always_restarts_stays_down() {
    let _host = shared();
    let guest = Guest::busybox("always");
    guest.write_drop_in("[Service]\nRestart=always\nRestartSec=100ms\n");
    for verb in ["stop", "terminate"] {
        guest.start();
        assert_eq!(guest.property("Restart"), "always");
        machinist([verb, &guest.name]).ok();
        guest.is_down();
        stays("the unit is down", Duration::from_secs(1), || {
            ["inactive", "failed"].contains(&guest.property("ActiveState").as_str())
        });
        agree(&guest.name, There::Stopped);
    }
}

#[test]
fn restart_is_a_new_run_and_starts_what_is_down() {
    let _host = shared();
    let guest = Guest::busybox("again");
    let name = &guest.name;
    machinist(["restart", name]).ok();
    agree(name, There::Running);
    let (leader, invocation) = (guest.leader(), guest.property("InvocationID"));
    machinist(["restart", name, "--wait"])
        .ok()
        .stderr_is(&format!("restarted {name}\n"));
    assert_ne!(guest.leader(), leader);
    assert_ne!(guest.property("InvocationID"), invocation);
    assert_eq!(guest.property("NRestarts"), "0", "systemd did not do it by itself");
    agree(name, There::Running);
}

/// Asserts that a unit that is bound to the machine's survives a reboot from inside.
fn reboots_in_its_unit(guest: &Guest, wait: bool) {
    let name = &guest.name;
    let (leader, invocation) = (guest.leader(), guest.property("InvocationID"));
    let mut words = vec!["restart", "--inside", name];
    words.extend(wait.then_some("--wait"));
    machinist(words).ok().stderr_is(&format!("rebooted {name}\n"));
    assert_ne!(guest.property("InvocationID"), invocation);
    assert_ne!(guest.leader(), leader);
    assert_eq!(guest.property("ActiveState"), "active");
    assert_eq!(
        guest.property("NRestarts"),
        "1",
        "the guest asked for it, nobody stopped the unit"
    );
    agree(name, There::Running);
}

#[test]
fn restart_inside_keeps_the_unit_of_busybox() {
    let _host = shared();
    let guest = Guest::busybox("inside");
    machinist(["restart", "--inside", &guest.name])
        .status(1)
        .stderr_has("is not running");
    guest.start();
    reboots_in_its_unit(&guest, false);
}

#[test]
fn a_reboot_that_cannot_come_up_says_why() {
    let _host = shared();
    let guest = Guest::busybox("inbad");
    guest.start();
    guest.write_settings("[Network]\nBridge=nosuchbr4\n");
    machinist(["restart", "--inside", &guest.name])
        .status(1)
        .stderr_has("bridge 'nosuchbr4' does not exist")
        .quicker_than(Duration::from_secs(30));
    guest.is_down();
}

#[test]
fn a_frozen_machine_can_be_stopped() {
    let _host = shared();
    for verb in ["stop", "terminate"] {
        let guest = Guest::busybox("frozen");
        guest.start();
        run("systemctl", ["freeze", &guest.unit()]).ok();
        assert_eq!(guest.property("FreezerState"), "frozen");
        let listed = machinist(["list", "--json", "--filter", &format!("name={}", guest.name)])
            .ok()
            .json();
        assert_eq!(listed[0]["state"], "frozen");
        machinist([verb, &guest.name])
            .ok()
            .quicker_than(Duration::from_secs(20));
        guest.is_down();
    }
}

#[test]
fn enable_and_disable_agree_with_systemctl() {
    let _host = shared();
    let guest = Guest::busybox("enable");
    let name = &guest.name;
    let is_enabled = || {
        run("systemctl", ["is-enabled", &guest.unit()])
            .any()
            .stdout
            .trim()
            .to_owned()
    };
    let listed = || {
        machinist(["list", "-a", "--json", "--filter", &format!("name={name}")])
            .ok()
            .json()[0]["enabled"]
            .clone()
    };
    assert_eq!((is_enabled().as_str(), listed()), ("disabled", json!(false)));
    machinist(["enable", name])
        .ok()
        .stderr_is(&format!("{name} starts at boot\n"));
    assert_eq!((is_enabled().as_str(), listed()), ("enabled", json!(true)));
    assert_eq!(
        run("systemctl", ["is-enabled", "machines.target"]).ok().stdout,
        "enabled\n"
    );
    assert!(
        Path::new("/etc/systemd/system/machines.target.wants")
            .join(guest.unit())
            .exists()
    );
    agree(name, There::Stopped);
    machinist(["enable", name])
        .ok()
        .stderr_is(&format!("{name} starts at boot already\n"));
    machinist(["disable", name]).ok();
    assert_eq!((is_enabled().as_str(), listed()), ("disabled", json!(false)));
    let again = machinist(["disable", name, "--json"]).ok().json();
    assert_eq!(again[0]["result"], "already-disabled");

    machinist(["enable", "--now", name]).ok();
    assert_eq!(is_enabled(), "enabled");
    agree(name, There::Running);
    machinist(["disable", "--now", name]).ok();
    assert_eq!(is_enabled(), "disabled");
    guest.is_down();
    machinist(["enable", "no-such-machine"])
        .status(3)
        .stderr_has("no-such-machine");
}

#[test]
fn enable_also_enables_the_target() {
    let _host = alone();
    let guest = Guest::busybox("target");
    run("systemctl", ["disable", "machines.target"]).ok();
    machinist(["enable", &guest.name]).ok();
    assert_eq!(
        run("systemctl", ["is-enabled", "machines.target"]).ok().stdout,
        "enabled\n"
    );
    let wanted = run("systemctl", ["list-dependencies", "--plain", "multi-user.target"])
        .ok()
        .stdout;
    assert!(wanted.contains(&guest.unit()), "not wanted at boot:\n{wanted}");
}

#[test]
fn debian_boots_reboots_and_powers_off() {
    let _host = shared();
    let guest = Guest::debian("deb");
    let name = &guest.name;
    machinist(["start", name, "--wait"]).ok();
    let status = guest.property("StatusText");
    assert!(
        status.contains("Ready") || status.contains("Startup finished"),
        "StatusText is {status:?}"
    );
    let state = run("systemctl", ["-M", name, "is-system-running"]).any().stdout;
    assert_eq!(state, "running\n");
    let boot_id = guest.inside(["journalctl", "--list-boots", "-q"]).any().stdout;
    reboots_in_its_unit(&guest, true);
    assert_eq!(
        run("systemctl", ["-M", name, "is-system-running"]).any().stdout,
        "running\n"
    );
    assert_ne!(guest.inside(["journalctl", "--list-boots", "-q"]).any().stdout, boot_id);
    machinist(["stop", name]).ok().quicker_than(Duration::from_secs(30));
    guest.is_down();
    assert_eq!(guest.property("Result"), "success");
    agree(name, There::Stopped);
}

#[test]
fn one_bad_name_hides_no_other() {
    let _host = shared();
    let guest = Guest::busybox("seen");
    let missing = "nosuch-machine";
    let name = guest.name.as_str();
    let status = machinist(["status", missing, name]).status(1);
    assert!(status.stdout.starts_with(name), "{status:?}");
    status.stderr_has(&format!("no machine or image '{missing}'"));
    let shown = machinist(["show", "-p", "Name", "--value", missing, name]).status(1);
    assert_eq!(shown.stdout, format!("{name}\n"));
    machinist(["status", missing]).status(3);
}

#[test]
fn a_guest_that_does_not_listen_yet_is_stopped() {
    let _host = shared();
    let guest = Guest::busybox("early");
    let name = guest.name.as_str();
    // A slow disk, or many machines that start at once: init has not got to its signal handlers. The kernel drops what
    // comes before.
    let init = guest.image().join("sbin/init");
    fs::remove_file(&init).expect("removing init");
    write_program(&init, "#!/bin/sh\nsleep 2\nexec /bin/busybox init\n");
    guest.start();
    machinist(["stop", "--timeout", "20", name]).ok();
    guest.is_down();
    assert_eq!(guest.property("Result"), "success");
    guest.start();
    reboots_in_its_unit(&guest, false);
}

#[test]
fn a_machine_on_its_way_down_is_started_again() {
    let _host = shared();
    let guest = Guest::deaf("again");
    let name = &guest.name;
    guest.start();
    let supervisor = guest.property("MainPID");
    let stop = machinist(["stop", "--timeout", "60", name]).spawn();
    wait_until("it is on its way down", || {
        guest.property("ActiveState") == "deactivating"
    });
    let stopping = guest.property("Job");
    machinist(["list", "--format", "csv", "--columns", "name,state"])
        .ok()
        .stdout_has(&format!("{name},closing"));
    let start = machinist(["start", "--wait", name]).spawn();
    wait_until("its start waits for that", || guest.property("Job") != stopping);
    // The second request makes a supervisor end its guest; its successor is to get none.
    sh("while kill \"$1\" 2>/dev/null; do sleep 0.1; done", [&supervisor]).ok();
    let started = start.wait();
    assert_eq!(started.status, 0, "{started:?}");
    stop.wait();
    agree(name, There::Running);
}

#[test]
fn a_reader_that_has_gone_is_no_error() {
    let _host = shared();
    let script = "{ sleep 0.5; status=0; machinist \"$@\" || status=$?; echo \"$status\" >&2; } | true";
    for words in [vec!["man"], vec!["images"], vec!["list", "--json"]] {
        sh(script, &words).ok().stderr_is("141\n");
    }
}
