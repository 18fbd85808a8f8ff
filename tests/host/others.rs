//! Machines that somebody else runs: by hand, in units of their own, virtual ones.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::support::{
    Guest, PATIENCE, There, agree, holds_within, machine_property, machinist, nspawn_in, run, sh, shared,
    unit_property, wait_until,
};

#[test]
fn a_machine_in_a_scope_is_listed_and_can_be_stopped() {
    let _host = shared();
    for verb in ["stop", "terminate"] {
        let guest = Guest::busybox("scope");
        let (name, image) = (&guest.name, guest.image());
        let unit = format!("test-{name}.service");
        nspawn_in(&unit, &image, name, &[]);
        wait_until("it is registered", || {
            machine_property(name, "State").as_deref() == Some("running")
        });
        // "machine-NAME.scope", and "NAME.scope" from 258 on.
        let scope = machine_property(name, "Unit").unwrap_or_default();
        assert!(scope.ends_with(".scope"), "{scope}");
        agree(name, There::Running);
        machinist(["start", name])
            .ok()
            .stderr_is(&format!("{name} is running already\n"));
        machinist([verb, name]).ok().quicker_than(Duration::from_secs(20));
        assert_eq!(machine_property(name, "State"), None);
        agree(name, There::Stopped);
        let down = || ["inactive", "failed"].contains(&unit_property(&unit, "ActiveState").as_str());
        let is_down = holds_within(PATIENCE, down);
        run("systemctl", ["stop", &unit]).any();
        run("systemctl", ["reset-failed", &unit]).any();
        assert!(is_down, "its supervisor is still there after {verb}");
    }
}

#[test]
fn images_of_the_system_and_hidden_ones_are_left_alone() {
    let _host = shared();
    let vendor = Path::new("/usr/local/lib/machines/vendor");
    fs::create_dir_all(vendor.join("usr")).expect("an image");
    machinist(["remove", "-y", "vendor"])
        .status(1)
        .stderr_has("belongs to the system");
    assert!(vendor.exists());
    fs::remove_dir_all(vendor).expect("removed");
    let hidden = Path::new("/var/lib/machines/.hidden");
    fs::create_dir_all(hidden).expect("an image");
    for verb in [&["images"] as &[&str], &["list", "-a"]] {
        machinist(verb).ok().lacks("hidden");
    }
    fs::remove_dir(hidden).expect("removed");
}

#[test]
fn a_masked_unit_is_told_and_stops_no_other() {
    let _host = shared();
    let (masked, other) = (Guest::busybox("masked"), Guest::busybox("other"));
    run("systemctl", ["mask", &masked.unit()]).ok();
    for verb in ["start", "enable"] {
        machinist([verb, &masked.name]).status(1).fails_with(
            &format!("unit {} is masked", masked.unit()),
            &format!("systemctl unmask {}", masked.unit()),
        );
    }
    machinist(["enable", &masked.name, &other.name]).status(1);
    let enabled = run("systemctl", ["is-enabled", &other.unit()]).any();
    run("systemctl", ["unmask", &masked.unit()]).ok();
    assert_eq!(enabled.stdout, "enabled\n");
    machinist(["disable", &other.name]).ok();
}

#[test]
fn an_enablement_for_this_boot_is_not_enough() {
    let _host = shared();
    let guest = Guest::busybox("runtime");
    let state = || run("systemctl", ["is-enabled", &guest.unit()]).any().stdout;
    run("systemctl", ["enable", "--runtime", &guest.unit()]).ok();
    assert_eq!(state(), "enabled-runtime\n");
    machinist(["enable", &guest.name]).ok();
    assert_eq!(state(), "enabled\n");
    machinist(["disable", &guest.name]).ok();
    assert_eq!(state(), "disabled\n");
}

#[test]
fn limits_of_a_removed_machine_are_not_inherited() {
    let _host = shared();
    let guest = Guest::busybox("limits");
    run("systemctl", ["set-property", &guest.unit(), "TasksMax=77"]).ok();
    assert_eq!(guest.property("TasksMax"), "77");
    machinist(["remove", "-y", &guest.name]).ok().stderr_has("/trash/");
    assert_ne!(guest.property("TasksMax"), "77");
}

#[test]
fn a_virtual_machine_is_left_alone() {
    let _host = shared();
    let unit = format!("test-vm-{}.scope", std::process::id());
    let name = format!("vm-{}", std::process::id());
    let scope = "systemd-run -q --scope --unit \"$1\" sleep 1000 >/dev/null 2>&1 & echo $!";
    let pid = sh(scope, [&unit]).ok().stdout.trim().to_owned();
    wait_until("the scope is there", || unit_property(&unit, "ActiveState") == "active");
    // name, id, service, class, leader, root directory
    let register = ["call", "org.freedesktop.machine1", "/org/freedesktop/machine1"];
    let method = ["org.freedesktop.machine1.Manager", "RegisterMachine", "sayssus"];
    let arguments = [name.as_str(), "0", "test", "vm", &pid, ""];
    run("busctl", register.iter().chain(&method).chain(&arguments)).ok();
    for verb in [&["stop", &name] as &[&str], &["restart", "--inside", &name]] {
        machinist(verb).status(1).stderr_has("it is a virtual machine");
    }
    machinist(["stop", "vm-*"]).status(3);
    let state = unit_property(&unit, "ActiveState");
    machinist(["terminate", &name]).any();
    run("systemctl", ["stop", &unit]).any();
    assert_eq!(state, "active");
}

#[test]
fn a_machine_in_a_unit_of_others_is_waited_for() {
    let _host = shared();
    let guest = Guest::busybox("foreign");
    let (name, image) = (&guest.name, guest.image());
    let unit = format!("test-{name}.service");
    let nspawn = ["systemd-nspawn", "-q", "-b", "--keep-unit", "-M", name, "-D"];
    let service = ["-q", "--unit", &unit, "-p", "Slice=machine.slice", "-p", "Delegate=yes"];
    run(
        "systemd-run",
        service.iter().chain(&nspawn).map(OsStr::new).chain([image.as_os_str()]),
    )
    .ok();
    wait_until("it is registered", || {
        machine_property(name, "Unit").as_deref() == Some(&unit)
    });
    machinist(["start", "--wait", name])
        .ok()
        .quicker_than(Duration::from_secs(20))
        .stderr_is(&format!("{name} is running already\n"));
    machinist(["terminate", name]).ok();
    run("systemctl", ["stop", &unit]).any();
    run("systemctl", ["reset-failed", &unit]).any();
}

#[test]
fn what_could_not_be_started_again_is_not_restarted() {
    let _host = shared();
    let guest = Guest::busybox("elsewhere");
    let (name, image) = (&guest.name, guest.image());
    let unit = format!("test-{name}.service");
    let nspawn = ["systemd-nspawn", "-q", "-b", "-M", name, "-D"];
    let words = ["-q", "--unit", &unit].into_iter().chain(nspawn).map(OsStr::new);
    run("systemd-run", words.chain([image.as_os_str()])).ok();
    wait_until("it is registered", || {
        machine_property(name, "State").as_deref() == Some("running")
    });
    let leader = machine_property(name, "Leader");
    for words in [vec!["restart", name], vec!["restart", "--dry-run", name]] {
        machinist(words)
            .status(1)
            .stderr_has("not in its own unit")
            .stderr_has("restart --inside");
    }
    assert_eq!(machine_property(name, "Leader"), leader);
    let scope = machine_property(name, "Unit").unwrap_or_default();
    machinist(["terminate", "--dry-run", name])
        .ok()
        .stdout_is(&format!("take unit {scope} down at once\n"));
    machinist(["terminate", name]).ok();
    run("systemctl", ["stop", &unit]).any();
    run("systemctl", ["reset-failed", &unit]).any();
}
