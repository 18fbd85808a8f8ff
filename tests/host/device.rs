//! Devices: what the machine can do with them at once, after a restart, and no longer.

use std::fs;
use std::path::PathBuf;

use crate::support::{Guest, machinist, run, shared, unique};

/// A device of the host that gives zeros, until this is dropped.
struct Zero(PathBuf);

impl Zero {
    fn new(mode: &str) -> Self {
        let path = PathBuf::from(format!("/dev/{}", unique("zero")));
        run("mknod", ["-m", mode, path.to_str().unwrap(), "c", "1", "5"]).ok();
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Zero {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Whether a process of the machine can read from the device.
fn usable(guest: &Guest, path: &str) -> bool {
    let script = format!("busybox dd if={path} bs=4 count=1 2>/dev/null | busybox wc -c");
    machinist(["exec", &guest.name, "--", "/bin/sh", "-c", &script])
        .any()
        .stdout
        .trim()
        == "4"
}

#[test]
fn a_device_is_there_at_once_and_after_a_restart() {
    let _host = shared();
    let guest = Guest::busybox("dev");
    let (name, zero) = (guest.name.as_str(), Zero::new("666"));
    guest.start();
    assert!(!usable(&guest, zero.path()));
    let before = fs::read_to_string(guest.settings()).unwrap();
    machinist(["device", "add", name, zero.path(), "--dry-run"])
        .ok()
        .stdout_has(&format!("write '{}'", guest.settings().display()))
        .stdout_has("50-machinist-device.conf'")
        .stdout_has(&format!("make '{}' in the running machine", zero.path()));
    assert_eq!(fs::read_to_string(guest.settings()).unwrap(), before);
    machinist(["device", "add", name, zero.path()])
        .ok()
        .stderr_is(&format!("{name} may use {}\n", zero.path()));
    assert!(usable(&guest, zero.path()), "at once");
    let allowed = guest.property("DeviceAllow");
    assert!(
        allowed.lines().any(|line| line == format!("{} rw", zero.path())),
        "{allowed}"
    );
    assert!(
        fs::read_to_string(guest.settings())
            .unwrap()
            .contains(&format!("Bind={}\n", zero.path()))
    );
    machinist(["device", "add", name, zero.path()])
        .ok()
        .stderr_has("already");
    machinist(["restart", name]).ok();
    assert!(usable(&guest, zero.path()), "after a restart");
    machinist(["device", "list", name, "--json"]).ok().stdout_is(&format!(
        "[{{\"allowed\":\"rw\",\"device\":\"{}\",\"name\":null,\"present\":true,\"read_only\":false}}]\n",
        zero.path()
    ));
    // Mounted now, and taken away all the same.
    let removed = machinist(["device", "remove", name, zero.path(), "--json"]).ok().json();
    assert_eq!(
        (&removed[0]["result"], &removed[0]["holds"]),
        (&"removed".into(), &"now".into())
    );
    assert!(!usable(&guest, zero.path()));
    assert!(!guest.property("DeviceAllow").contains(zero.path()));
    assert!(!fs::read_to_string(guest.settings()).unwrap().contains("Bind"));
    assert!(!guest.drop_ins().exists());
    machinist(["device", "remove", name, zero.path()])
        .ok()
        .stderr_has("was not given");
    machinist(["restart", name]).ok();
    assert!(!usable(&guest, zero.path()));
    // Both files come back together.
    machinist(["stop", name]).ok();
    machinist(["config", "undo", name]).ok();
    guest.start();
    assert!(usable(&guest, zero.path()), "after an undo");
    machinist(["stop", name]).ok();
}

#[test]
fn bundles_say_what_they_expose() {
    let _host = shared();
    let guest = Guest::busybox("devbun");
    let name = guest.name.as_str();
    machinist(["device", "add", name, "@tun"])
        .ok()
        .stderr_has("/dev/net/tun exposes tun and tap interfaces");
    machinist(["device", "add", name, "@fuse", "--ro"]).ok();
    guest.start();
    machinist([
        "exec",
        name,
        "--",
        "/bin/sh",
        "-c",
        "test -c /dev/net/tun && test -c /dev/fuse",
    ])
    .ok();
    let allowed = guest.property("DeviceAllow");
    assert!(allowed.lines().any(|line| line == "/dev/fuse r"), "{allowed}");
    machinist([
        "device",
        "list",
        name,
        "--columns",
        "name,read_only,allowed",
        "--no-legend",
    ])
    .ok()
    .stdout_is("@fuse yes r\n@tun  no  rw\n");
    machinist(["device", "add", name, "@fuse"]).ok();
    machinist([
        "device",
        "list",
        name,
        "--columns",
        "name,read_only,allowed",
        "--no-legend",
    ])
    .ok()
    .stdout_is("@fuse no rw\n@tun  no rw\n");
    machinist(["stop", name]).ok();
    machinist(["remove", "--yes", name]).ok();
    assert!(!guest.drop_ins().exists());
}

#[test]
fn what_is_no_device_is_refused() {
    let _host = shared();
    let guest = Guest::busybox("devbad");
    let name = guest.name.as_str();
    let before = fs::read_to_string(guest.settings()).unwrap();
    for (device, status, said) in [
        (
            "/dev/no-such-device",
            1,
            "there is no device '/dev/no-such-device' on this host",
        ),
        ("/dev/stdin", 1, "is a link"),
        ("/dev/shm", 1, "is no device"),
        ("/etc/passwd", 2, "is no device"),
        ("/dev/../etc/passwd", 2, "is no device"),
        ("@nothing", 2, "there are @fuse, @gpu, @kvm, @tun"),
    ] {
        machinist(["device", "add", name, device])
            .status(status)
            .stderr_has(said);
    }
    assert_eq!(fs::read_to_string(guest.settings()).unwrap(), before);
    assert!(!guest.drop_ins().exists());
    machinist(["device", "add", "no-such-machine", "/dev/null"]).status(3);
    machinist(["device", "list", "no-such-machine"]).status(3);
    let closed = Zero::new("600");
    machinist(["device", "add", name, closed.path()])
        .ok()
        .stderr_has("is not for everybody");
}

/// A guest that puts a link where the device's directory is to be: nothing outside of it changes.
#[test]
fn a_hostile_guest_leads_nowhere() {
    let _host = shared();
    let guest = Guest::busybox("devlink");
    let name = guest.name.as_str();
    let (outside, below) = (format!("/root/{name}"), format!("/dev/{name}"));
    fs::create_dir(&outside).unwrap();
    fs::create_dir(&below).unwrap();
    let zero = format!("{below}/zero");
    run("mknod", ["-m", "666", &zero, "c", "1", "5"]).ok();
    guest.start();
    guest.inside(["/bin/busybox", "ln", "-s", &outside, &below]).ok();
    let link = format!("/proc/{}/root{below}", guest.leader());
    assert_eq!(fs::read_link(&link).unwrap(), PathBuf::from(&outside));
    // The settings are changed all the same, and the next start is systemd-nspawn's.
    let said = machinist(["device", "add", name, &zero]).ok();
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "{said:?}");
    said.stderr_has("its /dev cannot be changed while it runs")
        .stderr_has("there it is seen after a restart");
    fs::remove_dir(&outside).unwrap();
    fs::remove_dir_all(&below).unwrap();
}

#[test]
fn several_machines_get_a_device() {
    let _host = shared();
    let guests = ["devs-a", "devs-b"].map(Guest::busybox);
    let names = guests.each_ref().map(|guest| guest.name.as_str());
    let zero = Zero::new("666");
    machinist(["device", "add", names[0], "no-such-machine", names[1], zero.path()])
        .status(1)
        .stderr_has("no-such-machine");
    let allows = |guest: &Guest| guest.property("DeviceAllow").contains(zero.path());
    assert!(guests.iter().all(allows));
    machinist(["device", "remove", names[0], names[1], zero.path()]).ok();
    assert!(!guests.iter().any(allows));
    machinist(["device", "add", names[0]]).status(2);
}
