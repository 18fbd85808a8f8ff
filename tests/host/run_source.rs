//! run of what is no machine yet, and what is kept of a run.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::run::{copies, is_gone, unit_property};
use crate::run_boot::{boot, copy_goes, init_of};
use crate::support::{
    Guest, MACHINES, There, agree, guest_suite, images_of_machined, machinist, sh, shared, unique, wait_until,
};

#[test]
fn a_source_is_run_and_gone() {
    let _host = shared();
    let name = unique("rbsrc");
    let ran = machinist([
        "run",
        "template:busybox",
        "--name",
        &name,
        "--network",
        "none",
        "--",
        "sh",
        "-c",
        "hostname; ls /sys/class/net; exit 3",
    ])
    .status(3);
    assert_eq!(ran.stdout, format!("{name}\nlo\n"), "{ran:?}");
    assert!(copies(&name).is_empty());
    is_gone(&name);
    // A tarball, without a name of ours; and one that has no init.
    let tar = format!("/root/{name}.tar.gz");
    let guest = Guest::busybox("rbtar");
    fs::remove_file(guest.image().join("sbin/init")).unwrap();
    sh("tar -C \"$1\" -czf \"$2\" .", [guest.image().as_os_str(), tar.as_ref()]).ok();
    machinist(["run", &tar, "--", "sh", "-c", "hostname >/root/x; cat /root/x"])
        .ok()
        .stdout_has(&format!("{name}-"));
    machinist(["run", &tar]).status(125).stderr_has("has no init");
    fs::remove_file(guest.image().join("bin/sh")).unwrap();
    sh("tar -C \"$1\" -czf \"$2\" .", [guest.image().as_os_str(), tar.as_ref()]).ok();
    machinist(["run", &tar, "--", "true"])
        .status(125)
        .stderr_has(&format!("there is no /bin/sh in '{tar}'"));
    fs::remove_file(&tar).unwrap();
    machinist(["run", &tar, "--", "true"]).status(125).stderr_has(&tar);
    assert!(!images_of_machined().iter().any(|image| image.starts_with(&name)));
    // It boots, here and without us.
    let running = boot(&["run", "template:busybox", "--name", &name]);
    assert_eq!(init_of(&name), "init\n");
    agree(&name, There::WithoutImage);
    running.signal(Signal::SIGTERM);
    assert_eq!(running.wait().status, 0);
    assert!(copies(&name).is_empty());
    machinist(["run", "-d", "template:busybox", "--name", &name]).ok();
    assert_eq!(copies(&name).len(), 1);
    machinist(["stop", &name]).ok();
    copy_goes(&name);
    is_gone(&name);
    // A name that is taken, also by settings.
    let other = guest.name.as_str();
    let taken = ["run", "template:busybox", "--name", other, "--", "true"];
    machinist(taken).status(125).stderr_has("exists already");
    fs::remove_dir_all(guest.image()).unwrap();
    machinist(taken).status(125).stderr_has(".nspawn");
    // Interrupted at any time.
    for after in [10, 60, 120, 200, 300] {
        let running = machinist(["run", "template:busybox", "--name", &name, "--", "sleep", "600"]).spawn();
        thread::sleep(Duration::from_millis(after));
        running.signal(Signal::SIGINT);
        let ran = running.wait();
        assert!([130, 125].contains(&ran.status), "{ran:?}");
        assert!(copies(&name).is_empty(), "after {after} ms: {ran:?}");
        is_gone(&name);
    }
}

#[test]
fn a_debian_is_made_for_one_command() {
    let _host = shared();
    // Whoever bootstraps first, the others copy.
    drop(Guest::debian("rbfirst"));
    let source = format!("debian:{}", guest_suite());
    let name = unique("rbdebian");
    let script = "hostname; . /etc/os-release; echo $VERSION_CODENAME; ls -d /sys/class/net/host0";
    let ran = machinist(["run", &source, "--name", &name, "--", "sh", "-c", script]).ok();
    let seen = format!("{name}\n{}\n/sys/class/net/host0\n", guest_suite());
    assert_eq!(ran.stdout, seen, "{ran:?}");
    assert!(copies(&name).is_empty());
    is_gone(&name);
    let running = boot(&["run", &source, "--name", &name, "--network", "host"]);
    assert_eq!(init_of(&name), "systemd\n");
    wait_until("it has booted", || {
        let state = machinist(["exec", &name, "--", "systemctl", "is-system-running"]).any();
        ["running\n", "degraded\n"].contains(&state.stdout.as_str())
    });
    running.signal(Signal::SIGINT);
    assert_eq!(running.wait().status, 0);
    assert!(copies(&name).is_empty());
    is_gone(&name);
}

#[test]
fn what_is_kept_is_a_machine() {
    let _host = shared();
    let made = Guest::new("rbkept");
    let name = made.name.as_str();
    machinist([
        "run",
        "template:busybox",
        "--keep",
        "--name",
        name,
        "--",
        "sh",
        "-c",
        "echo mine >/root/here; exit 5",
    ])
    .status(5);
    agree(name, There::Stopped);
    assert_eq!(fs::read_to_string(made.image().join("root/here")).unwrap(), "mine\n");
    let settings = fs::read_to_string(made.settings()).unwrap();
    assert!(settings.contains("KillSignal=SIGUSR2"), "{settings}");
    made.start();
    machinist(["stop", name]).ok();
    // A copy, with the settings of the machine.
    machinist(["limit", name, "tasks=66"]).ok();
    let copied = Guest::new("rbcopied");
    let copy = copied.name.as_str();
    machinist(["run", "-x", name, "--keep", "--name", copy, "-d"]).ok();
    assert_eq!(unit_property(copy, "TasksMax"), "66");
    assert_eq!(init_of(copy), "init\n");
    agree(copy, There::Running);
    machinist(["exec", copy, "--", "cat", "/root/here"])
        .ok()
        .stdout_is("mine\n");
    machinist(["stop", copy]).ok();
    agree(copy, There::Stopped);
    is_gone(copy);
    machinist(["run", "-x", name, "--keep", "--name", copy, "--", "true"])
        .status(125)
        .stderr_has("exists already");
    // What fails to run is there nevertheless, and that is said.
    let other = Guest::new("rbthere");
    let words = [
        "run",
        "template:busybox",
        "--keep",
        "--name",
        &other.name,
        "--bind",
        "/no/such/place",
        "--",
        "true",
    ];
    let hint = format!("`machinist remove {}` removes it", other.name);
    machinist(words).status(125).stderr_has(&hint);
    agree(&other.name, There::Stopped);
    assert!(copies(name).is_empty() && Path::new(MACHINES).join(name).is_dir());
    // Plans touch nothing.
    for words in [
        &["run", name, "--dry-run"] as &[&str],
        &["run", "-d", "-x", name, "--dry-run", "--", "true"],
        &["run", "template:busybox", "--dry-run"],
        &["run", "template:busybox", "--keep", "--name", "rbplan", "--dry-run"],
        &["run", "-x", name, "--keep", "--name", "rbplan", "--dry-run", "--json"],
    ] {
        let planned = machinist(words.iter().copied()).ok();
        assert!(
            planned.stdout.contains("start the transient unit machinist-run-"),
            "{planned:?}"
        );
    }
    agree("rbplan", There::Nowhere);
    assert!(copies(name).is_empty());
}
