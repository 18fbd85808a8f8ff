//! A failed start shows its cause and what mends it.

use std::fs;
use std::sync::{Mutex, PoisonError};

use crate::support::{
    Guest, There, agree, alone, machinist, nspawn_in, run, sh, shared, unique, unit_property, wait_until,
};

/// Starts it, and demands status 1, this cause and this hint; nothing may run after it.
#[track_caller]
fn fails_to_start(guest: &Guest, cause: &str, hint: &str) {
    // Of two supervisors that die in the same millisecond journald may not tell whose words were whose.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let name = &guest.name;
    let output = machinist(["start", name]).status(1);
    drop(turn);
    let output = output.fails_with(&format!("cannot start machine '{name}': {cause}"), hint);
    let said = format!("  caused by: unit {} failed (", guest.unit());
    assert!(output.stderr.contains(&said), "the unit is not named\n{output:?}");
    guest.is_down();
}

#[test]
fn a_missing_bridge_is_named() {
    let _host = shared();
    let guest = Guest::busybox("nobr");
    guest.write_settings("[Network]\nBridge=nosuchbr0\n");
    fails_to_start(
        &guest,
        "bridge 'nosuchbr0' does not exist",
        "ip link add nosuchbr0 type bridge",
    );
    let error = machinist(["start", &guest.name, "--json"]).status(1).json_error();
    assert_eq!(error["kind"], "failed");
    assert_eq!(
        error["message"],
        format!(
            "cannot start machine '{}': bridge 'nosuchbr0' does not exist",
            guest.name
        )
    );
    assert!(error["causes"][0].as_str().unwrap().contains(&guest.unit()));
    assert!(error["hints"][0].as_str().unwrap().contains("nosuchbr0"));
}

#[test]
fn an_image_in_use_is_told() {
    let _host = shared();
    let guest = Guest::deaf("busy");
    let (unit, other) = (format!("test-{}.service", guest.name), unique("busy"));
    nspawn_in(&unit, &guest.image(), &other, &["--register=no", "--keep-unit"]);
    let supervisor = unit_property(&unit, "MainPID");
    wait_until("the other guest runs", || {
        run("pgrep", ["-P", &supervisor]).any().status == 0
    });
    fails_to_start(&guest, "its image is in use by another process", "machinectl list");
    run("systemctl", ["kill", "-s", "KILL", &unit]).ok();
    run("systemctl", ["stop", &unit]).any();
    run("systemctl", ["reset-failed", &unit]).any();
    run("umount", ["-l", &format!("/run/systemd/nspawn/unix-export/{other}")]).any();
}

#[test]
fn a_missing_init_is_told() {
    let _host = shared();
    let guest = Guest::busybox("noinit");
    fs::remove_file(guest.image().join("sbin/init")).unwrap();
    // systemd-nspawn takes a shell where there is no init.
    fs::remove_file(guest.image().join("bin/sh")).unwrap();
    fails_to_start(&guest, "there is no init in its image", "systemd-sysv");
}

#[test]
fn a_tree_that_is_no_system_is_told() {
    let _host = shared();
    let guest = Guest::new("notos");
    fs::create_dir_all(guest.image().join("data")).unwrap();
    fails_to_start(&guest, "its image holds no operating system", "os-release");
}

#[test]
fn settings_that_do_not_parse_are_told_with_their_line() {
    let _host = shared();
    let guest = Guest::busybox("parse");
    guest.write_settings("[Exec]\nBoot=yes\n[Network\nBridge=x\n");
    let output = machinist(["start", &guest.name]).status(1);
    let file = guest.settings();
    let place = format!("{}:3", file.display());
    let first = output.stderr.lines().next().unwrap_or_default();
    assert!(
        first.starts_with(&format!(
            "error: cannot start machine '{}': its settings do not parse: ",
            guest.name
        )),
        "{output:?}"
    );
    assert!(first.contains(&place), "{output:?}");
    output.stderr_has("hint: mend the named line");
    guest.is_down();
}

#[test]
fn a_missing_bind_source_is_named() {
    let _host = shared();
    let guest = Guest::busybox("nobind");
    guest.write_settings("[Files]\nBind=/no/such/place:/mnt\n");
    fails_to_start(&guest, "'/no/such/place' does not exist on this host", "Bind=");
}

#[test]
fn a_missing_interface_is_named() {
    let _host = shared();
    let guest = Guest::busybox("nomac");
    guest.write_settings("[Network]\nMACVLAN=nosucheth7\n");
    fails_to_start(&guest, "network interface 'nosucheth7' does not exist", "ip link");
}

#[test]
fn starting_too_often_is_told() {
    // systemd 252 forgets how often a unit was started when another test has it read its files anew.
    let _host = alone();
    let guest = Guest::busybox("often");
    guest.write_drop_in("[Unit]\nStartLimitIntervalSec=1h\nStartLimitBurst=1\n");
    // A unit that failed is remembered with its counter; one that stopped well is forgotten.
    guest.write_settings("[Network]\nBridge=nosuchbr2\n");
    machinist(["start", &guest.name]).status(1).stderr_has("nosuchbr2");
    guest.write_settings("[Exec]\nKillSignal=SIGUSR2\n");
    let output = machinist(["start", &guest.name]).status(1);
    let message = format!(
        "cannot start machine '{}': it was started too often in a short time",
        guest.name
    );
    output.fails_with(&message, &format!("systemctl reset-failed {}", guest.unit()));
    run("systemctl", ["reset-failed", &guest.unit()]).ok();
    guest.start();
}

#[test]
fn a_failed_machine_is_listed_as_failed() {
    let _host = shared();
    let guest = Guest::busybox("failed");
    guest.write_settings("[Network]\nBridge=nosuchbr1\n");
    machinist(["start", &guest.name]).status(1).stderr_has("nosuchbr1");
    let rows = machinist(["list", "-a", "--json", "--filter", &format!("name={}", guest.name)])
        .ok()
        .json();
    assert_eq!(
        (&rows[0]["state"], guest.property("ActiveState").as_str()),
        (&"failed".into(), "failed")
    );
    guest.write_settings("[Exec]\nKillSignal=SIGUSR2\n");
    guest.start();
    agree(&guest.name, There::Running);
}

#[test]
fn without_machined_the_status_is_5_and_says_what_to_install() {
    struct Masked;
    impl Drop for Masked {
        fn drop(&mut self) {
            run("systemctl", ["unmask", "--runtime", "systemd-machined.service"]).any();
            run("systemctl", ["start", "systemd-machined.service"]).any();
        }
    }
    let _host = alone();
    let guest = Guest::busybox("masked");
    let masked = Masked;
    run("systemctl", ["mask", "--runtime", "systemd-machined.service"]).ok();
    sh("systemctl stop systemd-machined.service systemd-machined.socket 2>/dev/null || systemctl stop systemd-machined.service", [""]).ok();
    let name = guest.name.as_str();
    for words in [
        vec!["start", name],
        vec!["stop", name],
        vec!["list"],
        vec!["images"],
        vec!["show", name],
        vec!["create", "masked-new", "template:busybox"],
        vec!["remove", "-y", name],
    ] {
        let output = machinist(&words).status(5);
        assert!(
            output.stderr.starts_with("error: systemd-machined is not available: "),
            "{output:?}"
        );
        output.stderr_has("hint: install it with `apt install systemd-container`");
    }
    let error = machinist(["list", "--json"]).status(5).json_error();
    assert_eq!(error["kind"], "unavailable");
    drop(masked);
    agree(name, There::Stopped);
    agree("masked-new", There::Nowhere);
}
