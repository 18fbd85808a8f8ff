//! The files in nspawn-examples/ do what they say: each is given to a machine, which starts.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::{Guest, alone, machine_property, machinist, run, shared, suite, wait_until, write_program};

const EXAMPLES: &str = "/opt/machinist/src/nspawn-examples";

/// Gives a machine the settings of an example; nothing is to be said about them on a host that is ready.
#[track_caller]
fn give(guest: &Guest, example: &str) {
    let text = fs::read_to_string(format!("{EXAMPLES}/{example}.nspawn")).expect("an example");
    guest.write_settings(&text);
    machinist(["config", "check", "--strict", &guest.name])
        .ok()
        .stdout_is("");
}

/// Starts it, and asks machined.
#[track_caller]
fn starts(guest: &Guest) {
    machinist(["start", "--wait", &guest.name]).ok();
    assert_eq!(machine_property(&guest.name, "State").as_deref(), Some("running"));
}

/// A Debian with the settings of an example, running.
#[track_caller]
fn debian_with(example: &str) -> Guest {
    let guest = Guest::debian("ex");
    give(&guest, example);
    starts(&guest);
    guest
}

/// A machine of busybox with the settings of an example, running. It answers no request: only its init is another one.
#[track_caller]
fn busybox_with(example: &str) -> Guest {
    let guest = Guest::deaf("ex");
    give(&guest, example);
    starts(&guest);
    guest
}

/// First and length of the range of user ids that the guest's root has on the host.
fn user_ids(guest: &Guest) -> (u64, u64) {
    let map = fs::read_to_string(format!("/proc/{}/uid_map", guest.leader())).expect("its map");
    let numbers: Vec<u64> = map
        .split_whitespace()
        .map(|word| word.parse().expect("a number"))
        .collect();
    (numbers[1], numbers[2])
}

/// Its links, as the kernel lists them.
fn links(guest: &Guest) -> Vec<String> {
    let leader = guest.leader().to_string();
    let listed = run("nsenter", ["-t", &leader, "-n", "ip", "-j", "link"]).ok().json();
    names(&listed)
}

fn names(links: &Value) -> Vec<String> {
    let links = links.as_array().expect("an array");
    links
        .iter()
        .map(|link| link["ifname"].as_str().expect("a name").to_owned())
        .collect()
}

fn has_link(name: &str) -> bool {
    run("ip", ["link", "show", name]).any().status == 0
}

fn same_namespace(guest: &Guest, name: &str) -> bool {
    let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{name}")).expect("a namespace");
    of(&guest.leader().to_string()) == of("self")
}

/// What an example wants of the host; it is gone with this, if it was not there before.
struct Prepared(Vec<PathBuf>);

impl Prepared {
    /// Directories that end in `/`, or files that are empty.
    fn places(places: &[&str]) -> Self {
        let mut made = Vec::new();
        for place in places {
            let path = PathBuf::from(place);
            if path.exists() {
                continue;
            }
            if place.ends_with('/') {
                fs::create_dir_all(&path).expect("a directory");
            } else {
                fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
                fs::write(&path, "").expect("a file");
            }
            made.push(path);
        }
        Self(made)
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        for path in &self.0 {
            let _ = fs::remove_file(path).or_else(|_| fs::remove_dir_all(path));
        }
    }
}

/// A link of the host's, gone with this.
struct Link(&'static str);

impl Link {
    fn new<const N: usize>(name: &'static str, kind: [&str; N]) -> Option<Self> {
        if has_link(name) {
            return None;
        }
        run("ip", ["link", "add", name, "type"]).args(kind).ok();
        run("ip", ["link", "set", name, "up"]).ok();
        Some(Self(name))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        run("ip", ["link", "delete", self.0]).any();
    }
}

#[test]
fn every_example_is_started() {
    suite();
    let source = include_str!("nspawn_examples.rs");
    let mut count = 0;
    for entry in fs::read_dir(EXAMPLES).expect("the examples") {
        let path = entry.expect("an example").path();
        let name = path.file_stem().and_then(|name| name.to_str()).expect("a name");
        assert!(source.contains(&format!("\"{name}\")")), "nobody starts {name}");
        count += 1;
    }
    assert!(count >= 12, "{count} examples");
}

#[test]
fn private_services_have_a_link_and_users_of_their_own() {
    let _host = alone();
    let guest = debian_with("private-service");
    assert_eq!(links(&guest), ["lo", "host0"]);
    let (first, count) = user_ids(&guest);
    assert!(first >= 65536 && count == 65536, "{first} {count}");
    // The port leads in as soon as there is an address to lead to, by a map of systemd's.
    wait_until("port 8080 leads to port 80", || {
        let rules = run("nft", ["list", "ruleset"]).ok().stdout;
        rules
            .lines()
            .any(|line| line.contains("tcp . 8080") && line.contains(". 80"))
    });
}

#[test]
fn bridges_and_zones_join() {
    let _host = alone();
    let bridge = Link::new("br0", ["bridge"]);
    let guest = busybox_with("bridge");
    let listed = run("ip", ["-j", "link", "show", "master", "br0"]).ok().json();
    assert_eq!(names(&listed), [format!("vb-{}", guest.name)]);
    drop(guest);
    drop(bridge);

    let (one, other) = (busybox_with("zone"), busybox_with("zone"));
    let listed = run("ip", ["-j", "link", "show", "master", "vz-lab"]).ok().json();
    let mut joined = names(&listed);
    joined.sort();
    let mut wanted = [&one, &other].map(|guest| format!("vb-{}", guest.name));
    wanted.sort();
    assert_eq!(joined, wanted);
    drop((one, other));
    // systemd-nspawn removes it where /sys shows that nobody is on it; in a host without a /sys of its own it stays.
    run("ip", ["link", "delete", "vz-lab"]).any();
}

#[test]
fn macvlans_are_on_the_card_of_the_host() {
    let _host = alone();
    let _card = Link::new("eth0", ["veth", "peer", "name", "eth0-end"]);
    let guest = busybox_with("macvlan");
    assert_eq!(links(&guest), ["lo", "mv-eth0"]);
}

#[test]
fn the_hosts_network_is_shared() {
    let _host = shared();
    let guest = busybox_with("host-network");
    assert!(same_namespace(&guest, "net"));
    assert!(!same_namespace(&guest, "user"));
}

#[test]
fn busybox_stops_when_it_is_told_to() {
    let _host = shared();
    let guest = Guest::deaf("ex");
    give(&guest, "busybox");
    starts(&guest);
    assert_eq!(links(&guest), ["lo", "host0"]);
    // Without its KillSignal= this takes 90 seconds, and then the supervisor is killed.
    machinist(["stop", "--timeout", "60", &guest.name]).ok();
    assert_eq!(guest.property("Result"), "success");
}

#[test]
fn a_ci_job_has_its_status_and_leaves_nothing() {
    let _host = alone();
    let _places = Prepared::places(&["/srv/ci/src/", "/srv/ci/out/"]);
    let guest = Guest::deaf("ex");
    let job = |status: u32| format!("#!/bin/sh\npwd >/out/where; cat source >/out/built; echo >/mark; exit {status}\n");
    fs::write("/srv/ci/src/source", "text").expect("a source");
    fs::set_permissions("/srv/ci/out", fs::Permissions::from_mode(0o777)).expect("a mode");
    for status in [0, 3] {
        write_program(&guest.image().join("usr/bin/make"), &job(status));
        give(&guest, "ci-runner");
        run("systemctl", ["start", &guest.unit()]).any();
        wait_until("the job has ended", || {
            ["inactive", "failed"].contains(&guest.property("ActiveState").as_str())
        });
        assert_eq!(guest.property("ExecMainStatus"), status.to_string());
        assert_eq!(fs::read_to_string("/srv/ci/out/where").expect("a result"), "/src\n");
        assert_eq!(fs::read_to_string("/srv/ci/out/built").expect("a result"), "text");
        assert!(!guest.image().join("mark").exists(), "it wrote into the image");
        fs::remove_file("/srv/ci/out/built").expect("a result");
        run("systemctl", ["reset-failed", &guest.unit()]).any();
    }
}

#[test]
fn engines_inside_get_many_users() {
    let _host = shared();
    let guest = debian_with("containers-inside");
    assert_eq!(user_ids(&guest), (1_048_576, 1_048_576));
    guest.inside(["test", "-c", "/dev/fuse"]).ok();
    // PID 1's own filter lets the keyring be used: ENOSYS would be the filter's.
    // As far as a unit of this host may itself.
    let keyctl = ["perl", "-e", "exit(syscall(250, 0, -3, 0) < 0)"];
    let on_host = run("systemd-run", ["-q", "--wait"].iter().chain(&keyctl)).any().status;
    machinist(["exec", &guest.name, "--"]).args(keyctl).status(on_host);
}

#[test]
fn a_desktop_program_is_its_users() {
    let _host = alone();
    let _places = Prepared::places(&[
        "/run/user/1000/wayland-0",
        "/run/user/1000/pulse/native",
        "/home/me/Downloads/",
    ]);
    let guest = Guest::debian("ex");
    sh_in_image(&guest, "useradd -u 1000 -m app");
    run("chown", ["1000", "/home/me/Downloads"]).ok();
    let program = "#!/bin/sh\n(id -un; ls $WAYLAND_DISPLAY) >/home/app/Downloads/page\nexec sleep 1000\n";
    write_program(&guest.image().join("usr/bin/firefox"), program);
    give(&guest, "desktop-app");
    run("systemctl", ["start", &guest.unit()]).ok();
    assert_eq!(machine_property(&guest.name, "State").as_deref(), Some("running"));
    assert!(same_namespace(&guest, "net") && same_namespace(&guest, "user"));
    let page = Path::new("/home/me/Downloads/page");
    wait_until("the program has loaded a page", || {
        fs::read_to_string(page).is_ok_and(|text| text == "app\n/run/host-wayland/wayland-0\n")
    });
    assert_eq!(fs::metadata(page).expect("the page").uid(), 1000);
}

fn sh_in_image(guest: &Guest, script: &str) {
    run("chroot", [guest.image().to_str().expect("a path"), "sh", "-c", script]).ok();
}

#[test]
fn a_graphics_card_is_shown() {
    let _host = alone();
    let _places = Prepared::places(&["/dev/dri/card0"]);
    let guest = busybox_with("gpu");
    guest.inside(["/bin/busybox", "test", "-e", "/dev/dri/card0"]).ok();
    assert!(same_namespace(&guest, "user"));
}

#[test]
fn nested_machines_have_what_they_need() {
    let _host = shared();
    let guest = busybox_with("nested-nspawn");
    assert!(same_namespace(&guest, "user"));
    let bounding = |pid: &str| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a status");
        let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
        line.expect("capabilities").trim().to_owned()
    };
    assert_eq!(bounding(&guest.leader().to_string()), bounding("1"));
    guest.inside(["/bin/busybox", "test", "-c", "/dev/net/tun"]).ok();
}

#[test]
fn own_ranges_are_taken_as_they_are() {
    // Linked machines are given the first range that is free, which is this one.
    let _host = alone();
    let guest = Guest::deaf("ex");
    let image = guest.image();
    run("chown", ["-R", "524288:524288", image.to_str().expect("a path")]).ok();
    give(&guest, "own-uid-range");
    starts(&guest);
    assert_eq!(user_ids(&guest), (524_288, 65536));
    let owner = fs::metadata(format!("/proc/{}/root/etc", guest.leader()))
        .expect("a directory")
        .uid();
    assert_eq!(owner, 524_288);
    guest.inside(["/bin/sh", "-c", "echo >/etc/mine"]).ok();
    assert_eq!(fs::metadata(image.join("etc/mine")).expect("a file").uid(), 524_288);
}

#[test]
fn an_appliance_keeps_only_its_data() {
    let _host = alone();
    let _places = Prepared::places(&["/srv/appliance/"]);
    let guest = Guest::debian("ex");
    fs::create_dir(guest.image().join("srv/data")).expect("a mount point");
    give(&guest, "read-only-appliance");
    starts(&guest);
    let kind = |place: &str| guest.inside(["stat", "-f", "-c", "%T", place]).ok().stdout;
    assert_eq!(kind("/var"), "tmpfs\n");
    assert_eq!(kind("/tmp"), "tmpfs\n");
    guest.inside(["sh", "-c", "! echo >/usr/x"]).ok();
    guest.inside(["sh", "-c", "echo kept >/srv/data/file"]).ok();
    let kept = Path::new("/srv/appliance/file");
    assert_eq!(fs::read_to_string(kept).expect("the data"), "kept\n");
    assert_eq!(fs::metadata(kept).expect("the data").uid(), 0);
}

#[test]
fn managed_users_come_from_systemd() {
    let _host = shared();
    if suite() != "forky" {
        // It says itself what it needs.
        let guest = Guest::deaf("ex");
        let text = fs::read_to_string(format!("{EXAMPLES}/managed-users.nspawn")).expect("an example");
        guest.write_settings(&text);
        machinist(["config", "check", &guest.name])
            .status(1)
            .stdout_has("RestrictAddressFamilies");
        return;
    }
    if !Path::new("/run/systemd/io.systemd.NamespaceResource").exists() {
        let guest = Guest::deaf("ex");
        give(&guest, "managed-users");
        machinist(["start", &guest.name]).status(1).stderr_has("nsresourced");
        return;
    }
    let guest = busybox_with("managed-users");
    let (first, count) = user_ids(&guest);
    assert!(first >= 65536 && count == 65536, "{first} {count}");
}
