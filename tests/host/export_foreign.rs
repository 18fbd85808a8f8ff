//! import: containers of other managers.

use std::fs;
use std::time::Duration;

use crate::clone::read;
use crate::create::traces;
use crate::export::Shelf;
use crate::support::{Guest, There, agree, machinist, make_busybox_image, sh, shared};

/// A container of another tool: a tree, whose users are shifted, and files beside it.
fn fixture(shelf: &Shelf, files: &[(&str, &str)], rootfs: &str) {
    let tree = shelf.0.join("c").join(rootfs);
    fs::create_dir_all(&tree).unwrap();
    make_busybox_image(&tree);
    // Without what systemd-nspawn wants, and with a link of another name.
    fs::remove_file(tree.join("etc/os-release")).unwrap();
    fs::remove_file(tree.join("usr/lib/os-release")).unwrap();
    fs::create_dir(tree.join("etc/network")).unwrap();
    fs::write(
        tree.join("etc/network/interfaces"),
        "auto lo eth0\niface eth0 inet dhcp\n",
    )
    .unwrap();
    for (path, text) in files {
        let path = shelf.0.join("c").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    sh(
        "echo mine >\"$1/root/file\"; chown -hR 1000000:1000000 \"$1\"; chown 1000033 \"$1/root/file\"",
        [&tree],
    )
    .ok();
}

/// It starts, has what it had, knows its link, and powers off when it is told to.
fn boots_and_stops(guest: &Guest) {
    guest.start();
    machinist(["exec", &guest.name, "--", "cat", "/root/file"])
        .ok()
        .stdout_is("mine\n");
    let interfaces = machinist(["exec", &guest.name, "--", "cat", "/etc/network/interfaces"]);
    interfaces.ok().stdout_is("auto lo host0\niface host0 inet dhcp\n");
    machinist(["exec", &guest.name, "--", "ip", "link", "show", "host0"]).ok();
    // Not killed after the 90 s of its unit.
    machinist(["stop", &guest.name])
        .ok()
        .quicker_than(Duration::from_secs(30));
    assert_eq!(guest.property("Result"), "success");
}

#[test]
fn what_incus_exports_is_a_machine_again() {
    let _host = shared();
    let guest = Guest::new("exi");
    let shelf = Shelf::new(&guest);
    let index = format!(
        "name: {}\nbackend: dir\npool: default\noptimized: false\ntype: container\nconfig:\n  container:\n    \
         architecture: x86_64\n    expanded_config:\n      limits.memory: 512MiB\n      limits.processes: \"200\"\n      \
         security.privileged: \"true\"\n      raw.lxc: |-\n        lxc.x = 1\n      boot.autostart: \"true\"\n      environment.COLOUR: blue\n    expanded_devices:\n      data:\n        \
         path: /data\n        source: /root\n        type: disk\n      eth0:\n        name: eth0\n        network: incusbr0\n        \
         type: nic\n      root:\n        path: /\n        pool: default\n        \
         type: disk\n    name: {0}\n",
        guest.name
    );
    let files = [
        ("backup/index.yaml", index.as_str()),
        ("backup/container/backup.yaml", "container: {}\n"),
        ("backup/container/metadata.yaml", "architecture: x86_64\n"),
    ];
    fixture(&shelf, &files, "backup/container/rootfs");
    let file = shelf.path("backup.tar.gz");
    // In the order of `incus export`.
    sh(
        "tar --numeric-owner -C \"$1/c\" -czf \"$2\" backup/index.yaml backup/container",
        [&shelf.path(""), &file],
    )
    .ok();
    let output = machinist(["import", &file]).ok();
    assert!(
        output.stderr.contains("[Exec] PrivateUsers=no") && output.stderr.contains("Bind=/root:/data"),
        "{output:?}"
    );
    assert!(
        output
            .stderr
            .contains("left out, as systemd has nothing like it: raw.lxc\n"),
        "{output:?}"
    );
    let enable = format!("`machinist enable {}`", guest.name);
    assert!(output.stderr.contains(&enable), "{output:?}");
    agree(&guest.name, There::Stopped);
    assert_eq!(
        (guest.property("MemoryMax"), guest.property("TasksMax")),
        ((512 << 20).to_string(), "200".into())
    );
    assert_eq!(
        sh("stat -c %u:%g \"$1\" \"$1/root/file\"", [guest.image()]).ok().stdout,
        "0:0\n33:0\n"
    );
    for told in [
        "no os-release file",
        "its link eth0 is called host0 here",
        "'/etc/network/interfaces'",
    ] {
        assert!(output.stderr.contains(told), "no {told} in {output:?}");
    }
    boots_and_stops(&guest);
    guest.start();
    let environment = read(format!("/proc/{}/environ", guest.leader()));
    assert!(environment.contains("COLOUR=blue"), "{environment}");
    // An image in one file, in the order of `incus image export`.
    let (other, image) = (Guest::new("exm"), shelf.path("image.tar.gz"));
    fixture(&shelf, &[("metadata.yaml", "architecture: x86_64\n")], "rootfs");
    let pack = "tar --numeric-owner -C \"$1/c\" -czf \"$2\" metadata.yaml rootfs";
    sh(pack, [&shelf.path(""), &image]).ok();
    machinist(["import", &image, &other.name]).ok();
    agree(&other.name, There::Stopped);
    assert!(!other.image().join("metadata.yaml").exists());
    boots_and_stops(&other);
}

#[test]
fn a_container_of_lxc_is_a_machine_again() {
    let _host = shared();
    let guest = Guest::new("exx");
    let shelf = Shelf::new(&guest);
    let config = format!(
        "lxc.include = /usr/share/lxc/config/common.conf\nlxc.arch = linux64\nlxc.rootfs.path = dir:/var/lib/lxc/w/rootfs\n\
         lxc.uts.name = {}\nlxc.net.0.type = veth\nlxc.net.0.link = lxcbr0\nlxc.net.0.flags = up\n\
         lxc.net.0.hwaddr = 00:16:3e:00:00:07\nlxc.cgroup2.memory.max = 256M\nlxc.cap.drop = sys_time\n\
         lxc.mount.entry = /root data none bind,create=dir 0 0\nlxc.signal.halt = SIGUSR2\nlxc.hook.pre-start = /bin/false\n",
        guest.name
    );
    fixture(&shelf, &[("w/config", &config)], "w/rootfs");
    for (file, directory, from) in [("lxc.tar.xz", "c/w", "."), ("below.tar", "c", "w")] {
        let file = shelf.path(file);
        let pack = "tar --numeric-owner -C \"$1\" -caf \"$2\" \"$3\"";
        sh(pack, [&shelf.path(directory), &file, from]).ok();
        let output = machinist(["import", &file, "--new-identity"]).ok();
        assert!(
            output.stderr.contains("Bridge=lxcbr0") && output.stderr.contains("Bind=/root:/data"),
            "{output:?}"
        );
        assert!(output.stderr.contains("lxc.hook.pre-start"), "{output:?}");
        assert_eq!(guest.property("MemoryMax"), (256 << 20).to_string());
        boots_and_stops(&guest);
        guest.start();
        let bounding = machinist(["exec", &guest.name, "--", "cat", "/proc/1/status"])
            .ok()
            .stdout;
        let bounding = bounding
            .lines()
            .find_map(|line| line.strip_prefix("CapBnd:\t"))
            .unwrap();
        // CAP_SYS_TIME is 25.
        assert_eq!(u64::from_str_radix(bounding, 16).unwrap() & (1 << 25), 0);
        machinist(["terminate", &guest.name]).ok();
        machinist(["remove", "-y", &guest.name]).ok();
        assert_eq!(traces(&guest.name), Vec::<String>::new());
    }
}

#[test]
fn what_lxc_makes_is_a_machine() {
    let _host = shared();
    let guest = Guest::new("exz");
    let (name, shelf) = (guest.name.as_str(), Shelf::new(&guest));
    let file = shelf.path("lxc.tar.gz");
    let make =
        "lxc-create -P \"$1\" -n \"$2\" -t busybox >&2 && tar --numeric-owner -C \"$1/$2\" -czf \"$3\" config rootfs";
    sh(make, [&shelf.path(""), name, &file]).ok();
    let output = machinist(["import", &file]).ok();
    // What its configuration mounts and systemd-nspawn does by itself is not told; the host's libraries are.
    assert!(!output.stderr.contains("lxc.mount.entry"), "{output:?}");
    assert!(output.stderr.contains("[Files] BindReadOnly=/lib:/lib"), "{output:?}");
    assert!(output.stderr.contains("no os-release file"), "{output:?}");
    agree(name, There::Stopped);
    assert!(read(guest.settings()).contains("KillSignal=SIGUSR1"));
    guest.start();
    machinist(["exec", name, "--", "sh", "-c", "echo it is $(hostname)"])
        .ok()
        .stdout_is(&format!("it is {name}\n"));
    machinist(["stop", name]).ok().quicker_than(Duration::from_secs(30));
    assert_eq!(guest.property("Result"), "success");
    // As it is on the disk, without an archive.
    let config = shelf.path(&format!("{name}/rootfs"));
    let other = Guest::new("exz2");
    machinist(["create", &other.name, &config]).ok();
    other.start();
}
