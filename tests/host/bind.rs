//! bind: what the machine's own kernel view says is mounted in it, and what its settings say.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;

use crate::cp::Scratch;
use crate::support::{Guest, machinist, run, shared, unique, wait_until};

/// How often something is mounted at a place of the machine.
#[track_caller]
fn mounts(guest: &Guest, place: &str) -> usize {
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", guest.leader())).expect("its mounts");
    mounts
        .lines()
        .filter(|line| line.split(' ').nth(4) == Some(place))
        .count()
}

#[test]
fn a_directory_of_the_host_is_seen_at_once() {
    let _host = shared();
    let guest = Guest::busybox("bdlive");
    let name = guest.name.as_str();
    guest.start();
    let scratch = Scratch::new();
    let source = scratch.path("shared");
    fs::create_dir(&source).unwrap();
    fs::write(format!("{source}/file"), "from the host\n").unwrap();
    let machine = |words: &[&str]| machinist([&["bind", name], words].concat());
    let inside = |script: &str| guest.inside(["/bin/sh", "-c", script]);

    machine(&[&source, "/made/here", "--dry-run"]).ok().stdout_is(&format!(
        "mount '{source}' on '/made/here' in the running machine '{name}'\n"
    ));
    assert_eq!(mounts(&guest, "/made/here"), 0);
    machine(&[&source, "/made/here"])
        .ok()
        .stderr_has(&format!("{name} has {source} on /made/here"));
    assert_eq!(mounts(&guest, "/made/here"), 1);
    inside("cat /made/here/file").ok().stdout_is("from the host\n");
    // Twice is once.
    machine(&[&source, "/made/here"]).ok().stderr_has("already");
    assert_eq!(mounts(&guest, "/made/here"), 1);
    // Users: root is root on either side, whatever the machine's users are on the host.
    inside("echo inside >/made/here/new; /bin/busybox stat -c %u:%g /made/here/file")
        .ok()
        .stdout_is("0:0\n");
    let new = fs::metadata(format!("{source}/new")).unwrap();
    assert_eq!((new.uid(), new.gid()), (0, 0));
    let map = fs::read_to_string(format!("/proc/{}/uid_map", guest.leader())).unwrap();
    assert_ne!(
        map.split_whitespace().nth(1),
        Some("0"),
        "the machine has no private users"
    );
    // To be read only, in the place of what was there.
    machine(&[&source, "/made/here", "--ro"]).ok();
    assert_eq!(mounts(&guest, "/made/here"), 1);
    inside("echo no >/made/here/file").status(1).stderr_has("Read-only");
    // A file, by JSON.
    let made = machinist(["bind", "--json", name, "/etc/hostname", "/root/name"])
        .ok()
        .json();
    assert_eq!(
        (&made[0]["result"], &made[0]["destination"]),
        (&"bound".into(), &"/root/name".into()),
        "{made}"
    );
    let hostname = fs::read_to_string("/etc/hostname").unwrap();
    inside("cat /root/name").ok().stdout_is(&hostname);
    machine(&[&source, "/root/name"])
        .status(1)
        .stderr_has("'/root/name' is a regular file");
    // What is mounted in it is seen, too.
    fs::create_dir(format!("{source}/sub")).unwrap();
    run("mount", ["-t", "tmpfs", "tmpfs", &format!("{source}/sub")]).ok();
    fs::write(format!("{source}/sub/deep"), "deep\n").unwrap();
    let deep = machine(&[&source, "/deep"]).any();
    let seen = inside("cat /deep/sub/deep").any();
    run("umount", [format!("{source}/sub")]).ok();
    assert_eq!(deep.status, 0, "{deep:?}");
    seen.stdout_is("deep\n");
    // What the machine mounts there is not seen on the host, and root of it cannot make writable what is not.
    inside("/bin/busybox mkdir -p /deep/own && /bin/busybox mount -t tmpfs own /deep/own").ok();
    let ours = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!ours.contains("/own "), "the machine mounts on the host: {ours}");
    inside("/bin/busybox mount -o remount,bind,rw /made/here; echo no >/made/here/file").status(1);
    assert_eq!(fs::read_to_string(format!("{source}/file")).unwrap(), "from the host\n");

    // And away.
    machinist(["bind", "--remove", name, "/made/here"]).ok();
    assert_eq!(mounts(&guest, "/made/here"), 0);
    machinist(["bind", "--remove", name, "/made/here"])
        .ok()
        .stderr_has("has nothing of the host");
    machinist(["bind", "--remove", name, "/no/such"]).ok();
    // No settings were written for any of it, and the host has none of these mounts.
    let settings = fs::read_to_string(guest.settings()).unwrap();
    assert!(!settings.contains("Bind"), "{settings}");
    let ours = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!ours.contains("/made/here") && !ours.contains("/root/name "), "{ours}");
}

#[test]
fn links_of_the_machine_lead_nowhere_else() {
    let _host = shared();
    let guest = Guest::busybox("bdlink");
    let name = guest.name.as_str();
    let scratch = Scratch::new();
    let (source, there) = (scratch.path("source"), unique("there"));
    fs::create_dir(&source).unwrap();
    // /out is / of the machine, and never of the host.
    symlink("/", guest.image().join("out")).unwrap();
    symlink("../../../../..", guest.image().join("up")).unwrap();
    guest.start();
    machinist(["bind", name, &source, &format!("/out/{there}")]).ok();
    machinist(["bind", name, &source, &format!("/up/root/{there}")]).ok();
    assert_eq!(mounts(&guest, &format!("/{there}")), 1);
    assert_eq!(mounts(&guest, &format!("/root/{there}")), 1);
    for place in [format!("/{there}"), format!("/root/{there}")] {
        assert!(!Path::new(&place).exists(), "'{place}' was made on the host");
    }
    machinist(["bind", "--remove", name, &format!("/out/{there}")]).ok();
    assert_eq!(mounts(&guest, &format!("/{there}")), 0);
}

#[test]
fn what_persists_is_there_after_a_restart() {
    let _host = shared();
    let guest = Guest::busybox("bdkeep");
    let name = guest.name.as_str();
    let scratch = Scratch::new();
    let (one, two) = (scratch.path("one"), scratch.path("two"));
    for source in [&one, &two] {
        fs::create_dir(source).unwrap();
        fs::write(format!("{source}/file"), source).unwrap();
    }
    let settings = || fs::read_to_string(guest.settings()).unwrap();
    let reads = |path: &str| guest.inside(["/bin/cat", path]).ok().stdout;
    // Not running: only with --persist.
    machinist(["bind", name, &one, "/one"])
        .status(1)
        .stderr_has("--persist")
        .stderr_has("is not running");
    machinist(["bind", name, &one, "/one", "--persist", "--ro"])
        .ok()
        .stderr_has("next start");
    assert!(
        settings().contains(&format!("BindReadOnly={one}:/one:idmap\n")),
        "{}",
        settings()
    );
    machinist(["bind", name, &one, "/one", "--persist", "--ro"])
        .ok()
        .stderr_has("already");
    guest.start();
    assert_eq!(reads("/one/file"), one);
    guest.inside(["/bin/sh", "-c", "echo no >/one/file"]).status(1);
    // Running: at once, and after a restart.
    machinist(["bind", name, &two, "/two", "--persist"]).ok();
    assert_eq!(reads("/two/file"), two);
    machinist(["restart", name]).ok();
    wait_until("it runs again", || mounts(&guest, "/two") == 1);
    assert_eq!(reads("/two/file"), two);
    assert_eq!(mounts(&guest, "/one"), 1);
    // Another on the same place takes it over.
    machinist(["bind", "--remove", name, "/one"])
        .ok()
        .stderr_has("after a restart");
    machinist(["bind", "--remove", name, "/one"])
        .status(1)
        .stderr_has("systemd-nspawn mounted it");
    machinist(["bind", name, &two, "/one", "--persist"]).ok();
    assert_eq!(reads("/one/file"), two);
    assert!(!settings().contains("BindReadOnly"), "{}", settings());
    machinist(["bind", "--remove", name, "/one", "--dry-run"])
        .ok()
        .stdout_has("unmount '/one'");
    machinist(["bind", "--remove", name, "/one"]).ok();
    machinist(["bind", "--remove", name, "/two"]).ok();
    assert!(!settings().contains("Bind"), "{}", settings());
    machinist(["restart", name]).ok();
    assert_eq!(mounts(&guest, "/one") + mounts(&guest, "/two"), 0);
}

#[test]
fn what_cannot_be_mounted_is_refused() {
    let _host = shared();
    let guest = Guest::busybox("bdbad");
    let name = guest.name.as_str();
    guest.start();
    let gone = unique("gone");
    machinist(["bind", &gone, "/etc"]).status(3);
    machinist(["bind", name, "/no/such"])
        .status(1)
        .stderr_has("cannot find '/no/such'");
    machinist(["bind", name, "/etc", "etc"])
        .status(2)
        .stderr_has("no absolute path");
    machinist(["bind", name, "/etc", "/"]).status(2);
    machinist(["bind", name, "/etc", "/a:b", "--persist"])
        .status(1)
        .stderr_has("cannot stand in the settings");
    machinist(["bind", "--remove", name, "/a", "/b"]).status(2);
    run("setpriv", ["--reuid=65534", "machinist", "bind", name, "/etc"]).status(4);
    // proc shows its files as nobody else's.
    machinist(["bind", name, "/proc", "/root/proc"])
        .status(1)
        .stderr_has("private users")
        .stderr_has("cp -a");
    assert_eq!(mounts(&guest, "/root/proc"), 0);
}

#[test]
fn a_debian_machine_without_private_users_has_it_as_it_is() {
    let _host = shared();
    let guest = Guest::debian("bddeb");
    let name = guest.name.as_str();
    guest.write_settings("[Exec]\nPrivateUsers=no\n");
    machinist(["start", "--wait", name]).ok();
    let scratch = Scratch::new();
    let source = scratch.path("d");
    fs::create_dir(&source).unwrap();
    std::os::unix::fs::chown(&source, Some(1000), Some(1001)).unwrap();
    machinist(["bind", name, &source, "/run/shared", "--persist"]).ok();
    guest
        .inside(["stat", "-c", "%u:%g", "/run/shared"])
        .ok()
        .stdout_is("1000:1001\n");
    let settings = fs::read_to_string(guest.settings()).unwrap();
    assert!(settings.contains(&format!("Bind={source}:/run/shared\n")), "{settings}");
    machinist(["bind", "--remove", name, "/run/shared"]).ok();
    assert_eq!(mounts(&guest, "/run/shared"), 0);
}
