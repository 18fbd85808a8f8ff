//! clone with bad input, odd images and full disks, and two at once.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

use crate::clone::{freezer, read};
use crate::create::traces;
use crate::support::{
    Guest, There, agree, machine_property, machinist, make_busybox_image, run, sh, shared, wait_until,
};

#[test]
fn a_full_disk_leaves_nothing() {
    let _host = shared();
    let (guest, clone) = (Guest::new("cfull"), Guest::new("cfull2"));
    // Elsewhere than where the clone is to be.
    let image = Path::new("/usr/local/lib/machines").join(&guest.name);
    make_busybox_image(&image);
    sh("head -c 12M /dev/urandom >\"$1/usr/lib/large\"", [&image]).ok();
    let script = "mount -t tmpfs -o size=6m,mode=700 tmpfs /var/lib/machines; set +e
        machinist clone \"$1\" \"$2\"; status=$?; ls -A /var/lib/machines; exit $status";
    run(
        "unshare",
        ["-m", "--", "bash", "-euc", script, "bash", &guest.name, &clone.name],
    )
    .status(1)
    .stderr_has("No space left on device")
    .stderr_has("hint: ")
    .stdout_is("");
    assert_eq!(traces(&clone.name), Vec::<String>::new());
    machinist(["clone", &guest.name, &clone.name]).ok();
    agree(&clone.name, There::Stopped);
    fs::remove_dir_all(image).unwrap();
}

#[test]
fn what_cannot_be_cloned_is_refused() {
    let _host = shared();
    let (guest, clone) = (Guest::busybox("cbad"), Guest::new("cbad2"));
    let (name, other) = (guest.name.as_str(), clone.name.as_str());
    let refused = |status: i32, from: &str, to: &str| {
        let output = machinist(["clone", "--", from, to]).status(status);
        assert!(!clone.image().exists() && output.stdout.is_empty(), "{output:?}");
        output
    };
    refused(2, name, name).stderr_has(&format!("machine '{name}' cannot be a clone of itself"));
    refused(2, name, "a_b").stderr_has("contains '_'");
    refused(2, name, "../x").stderr_has("contains '/'");
    refused(3, "no-such-machine", other).fails_with("no machine or image 'no-such-machine'", "machinist images");
    let there = Guest::busybox("cbad3");
    refused(1, name, &there.name).stderr_has(&format!("image '/var/lib/machines/{}' exists already", there.name));
    clone.write_settings("[Exec]\n");
    refused(1, name, other).stderr_has(&format!(
        "settings file '/etc/systemd/nspawn/{other}.nspawn' exists already"
    ));
    fs::remove_file(clone.settings()).unwrap();
    clone.write_drop_in("[Service]\nNice=5\n");
    refused(1, name, other).stderr_has("unit drop-in '");
    fs::remove_dir_all(clone.drop_ins()).unwrap();
    let raw = Guest::new("cbad4");
    fs::write(raw.image().with_file_name(format!("{}.raw", raw.name)), vec![0; 4096]).unwrap();
    refused(1, &raw.name, other)
        .stderr_has("is a disk image: it is copied as it is")
        .stderr_has("--keep-identity");
    machinist(["clone", "--linked", &raw.name, other])
        .status(1)
        .stderr_has("only directories can lie on layers");
    let error = machinist(["clone", name, name, "--json"]).status(2).json_error();
    assert_eq!(error["kind"], "usage");
    // Whoever is no root is told so.
    let nobody = ["-u", "nobody", "--", "machinist", "clone", name, other];
    run("runuser", nobody).status(4).fails_with("clone needs root", "sudo");
    // An image that another machine runs on cannot be held still by name.
    let unit = format!("run-{other}.service");
    let image = guest.image();
    let image = image.to_string_lossy();
    let nspawn = [
        "systemd-nspawn",
        "-q",
        "-b",
        "--private-network",
        "--settings=no",
        "-D",
        &image,
        "-M",
        &there.name,
    ];
    run("systemd-run", ["-q", "--unit", &unit].iter().chain(&nspawn)).ok();
    wait_until("it is registered", || {
        machine_property(&there.name, "State").as_deref() == Some("running")
    });
    refused(1, name, other).stderr_has("is in use by systemd-nspawn");
    machinist(["terminate", &there.name]).ok();
    run("systemctl", ["stop", &unit]).any();
    run("systemctl", ["reset-failed", &unit]).any();
}

#[test]
fn a_clone_has_every_kind_of_file_and_leads_nobody_out() {
    let _host = shared();
    let (guest, clone) = (Guest::busybox("kinds"), Guest::new("kinds2"));
    let image = guest.image();
    let script = r#"cd "$1"; mkdir k; cd k
        echo data >one; ln one two; mkfifo fifo; mknod null c 1 3; truncate -s 20M sparse; echo >>sparse
        python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("socket")' || mknod socket p
        cp /bin/busybox cap; setcap cap_net_raw+ep cap
        setfattr -n user.note -v hi one
        setfacl -m u:1000:r one; mkdir d; setfacl -d -m g:1001:rwx d
        touch fixed; chattr +i fixed; chmod 4750 two; chown 1000:1001 null
        printf x >"$(printf 'b\377d')""#;
    sh(script, [&image]).ok();
    // Each of these leads out, and would be written or removed on the host.
    let host = PathBuf::from(format!("/root/{}", guest.name));
    fs::create_dir_all(host.join("ssh")).unwrap();
    for file in ["id", "hostname", "hosts", "ssh/ssh_host_rsa_key", "x.lease", "x.link"] {
        fs::write(host.join(file), format!("{}\n", guest.name)).unwrap();
    }
    fs::create_dir_all(image.join("var/lib")).unwrap();
    fs::create_dir_all(image.join("etc/systemd")).unwrap();
    fs::create_dir_all(image.join("usr/sbin")).unwrap();
    fs::write(image.join("usr/sbin/sshd"), "").unwrap();
    for (link, target) in [
        ("etc/machine-id", "id"),
        ("etc/hostname", "hostname"),
        ("etc/hosts", "hosts"),
        ("etc/ssh", "ssh"),
        ("var/lib/dhcp", ""),
        ("etc/systemd/network", ""),
        ("var/lib/systemd", ""),
    ] {
        symlink(host.join(target), image.join(link)).unwrap();
    }
    machinist(["clone", &guest.name, &clone.name]).ok();
    for file in ["id", "hostname", "hosts", "ssh/ssh_host_rsa_key", "x.lease", "x.link"] {
        assert_eq!(read(host.join(file)), format!("{}\n", guest.name), "{file}");
    }
    let listing = "cd \"$1/k\"; ls -l --time-style=full-iso | cut -d' ' -f1-8; getfattr -d -m - . * 2>/dev/null | sort
        getcap * 2>/dev/null; lsattr 2>/dev/null; cat one";
    let said = [&guest, &clone].map(|guest| sh(listing, [guest.image()]).ok().stdout);
    assert_eq!(said[0], said[1]);
    for kept in [
        "data\n",
        "system.posix_acl_access",
        "system.posix_acl_default",
        "user.note",
        "cap_net_raw",
    ] {
        assert!(said[0].contains(kept), "no {kept}: {}", said[0]);
    }
    let at = |file: &str| fs::metadata(clone.image().join("k").join(file)).unwrap();
    assert_eq!(at("one").ino(), at("two").ino());
    assert!(at("sparse").blocks() < 1000, "{}", at("sparse").blocks());
    // It is a copy: what is written here is not seen there.
    fs::write(clone.image().join("k/one"), "other\n").unwrap();
    assert_eq!(read(image.join("k/one")), "data\n");
    fs::remove_dir_all(host).unwrap();
}

#[test]
fn a_read_only_image_makes_a_clone_that_can_be_changed() {
    let _host = shared();
    let (guest, clone) = (Guest::busybox("cro"), Guest::new("cro2"));
    run("chattr", ["+i", &guest.image().to_string_lossy()]).ok();
    machinist(["clone", &guest.name, &clone.name]).ok();
    fs::write(clone.image().join("new"), "").unwrap();
    clone.start();
    run("chattr", ["-i", &guest.image().to_string_lossy()]).ok();
}

#[test]
fn on_btrfs_a_clone_is_a_snapshot_with_what_is_inside() {
    let _host = shared();
    // Where machined looks, too: the others keep their disk.
    let directory = Path::new("/usr/local/lib/machines");
    let (guest, clone) = (Guest::new("cbtr"), Guest::new("cbtr2"));
    fs::create_dir_all(directory).unwrap();
    let script = "set -e; fs=$(mktemp -d); truncate -s 300M $fs.img; mkfs.btrfs -q $fs.img; mount -o loop $fs.img $fs
        mount --bind $fs /var/lib/machines; cd /var/lib/machines
        btrfs -q subvolume create s; cp -a \"$0\"/. s; btrfs -q subvolume create s/inner; echo deep >s/inner/file
        mount --bind s \"$0\"
        machinist clone \"$1\" \"$2\" --json; btrfs subvolume list . | sed 's/.* path //'; cat \"$2/inner/file\"
        cd /; umount \"$0\"; umount /var/lib/machines; umount $fs; rm $fs.img";
    let image = directory.join(&guest.name);
    make_busybox_image(&image);
    let image = image.to_string_lossy();
    let output = run(
        "unshare",
        ["-m", "--", "bash", "-c", script, &image, &guest.name, &clone.name],
    )
    .ok();
    assert!(output.stdout.contains("\"storage\":\"btrfs\""), "{output:?}");
    assert!(
        output.stdout.contains(&format!("\n{}/inner\ndeep\n", clone.name)),
        "{output:?}"
    );
    fs::remove_dir_all(&*image).unwrap();
}

#[test]
fn of_two_clones_of_one_name_exactly_one_succeeds() {
    let _host = shared();
    let (guest, clone) = (Guest::busybox("ctwo"), Guest::new("ctwo2"));
    guest.start();
    let begin = || machinist(["clone", &guest.name, &clone.name]).spawn();
    let (one, two) = (begin(), begin());
    let mut outputs = [one.wait(), two.wait()];
    outputs.sort_by_key(|output| output.status);
    assert_eq!((outputs[0].status, outputs[1].status), (0, 1), "{outputs:?}");
    assert!(outputs[1].stderr.contains("exists already"), "{:?}", outputs[1]);
    agree(&clone.name, There::Stopped);
    // Of one machine to two names, at once: each holds it still after the other.
    let others = [Guest::new("ctwo3"), Guest::new("ctwo4")];
    let running = [&others[0], &others[1]].map(|other| machinist(["clone", &guest.name, &other.name]).spawn());
    for (running, other) in running.into_iter().zip(&others) {
        let output = running.wait();
        assert_eq!(output.status, 0, "{output:?}");
        agree(&other.name, There::Stopped);
    }
    assert_eq!(read(freezer(&guest)), "0\n");
}

#[test]
fn a_disk_image_is_copied_as_it_is() {
    let _host = shared();
    let (guest, clone) = (Guest::new("craw"), Guest::new("craw2"));
    let raw = |guest: &Guest| guest.image().with_file_name(format!("{}.raw", guest.name));
    let tree = Guest::busybox("crawtree");
    let make = "truncate -s 64M \"$1\" && mkfs.ext4 -q -d \"$2\" \"$1\" && chmod 444 \"$1\"";
    sh(make, [raw(&guest), tree.image()]).ok();
    guest.write_settings("[Exec]\nKillSignal=SIGUSR2\n");
    machinist(["limit", &guest.name, "tasks=77"]).ok();
    let words = ["clone", "--keep-identity", &guest.name, &clone.name];
    machinist(words)
        .args(["--dry-run"])
        .ok()
        .stdout_has(&format!("{}.raw", clone.name));
    assert!(!raw(&clone).exists());
    machinist(words).ok();
    run("cmp", [raw(&guest), raw(&clone)]).ok();
    let found = fs::metadata(raw(&clone)).unwrap();
    assert!(
        found.blocks() * 512 < 48 << 20,
        "its holes are filled: {} blocks",
        found.blocks()
    );
    assert_eq!(found.mode() & 0o777, 0o644);
    agree(&clone.name, There::Stopped);
    assert_eq!(clone.property("TasksMax"), "77");
    assert_eq!(read(clone.settings()), "[Exec]\nKillSignal=SIGUSR2\n");
    machinist(["remove", "-y", &clone.name]).ok();
    assert!(!raw(&clone).exists());
    // Killed before each step it is there or not.
    for step in 0..20 {
        let output = machinist(words).env("MACHINIST_DIE_AT_STEP", step.to_string()).any();
        if output.status == 0 {
            assert!(step > 3, "{step} steps");
            break;
        }
        assert_eq!(output.status, 128 + 9, "{output:?}");
        crate::clone::swept(&clone.name);
        agree(&clone.name, There::Nowhere);
    }
    machinist(["remove", "-y", &clone.name, &guest.name]).ok();
}

#[test]
fn a_large_machine_is_copied_whole() {
    let _host = shared();
    let (guest, clone) = (Guest::busybox("cmany"), Guest::new("cmany2"));
    let make = "import os, sys
for i in range(100):
    os.mkdir(f'{sys.argv[1]}/many-{i}')
    for j in range(1000):
        with open(f'{sys.argv[1]}/many-{i}/{j}', 'w') as file: file.write(str(j) if j % 7 == 0 else '')";
    run("python3", ["-c", make, &guest.image().to_string_lossy()]).ok();
    let told = |guest: &Guest| {
        let list = "cd \"$1\"; find many-* -type d -printf '%p %M %U:%G %T@\\n' -o -printf '%p %M %U:%G %s %T@\\n' | sort | sha256sum; find many-* -type f | wc -l";
        sh(list, [guest.image()]).ok().stdout
    };
    machinist(["clone", &guest.name, &clone.name]).ok();
    let said = told(&clone);
    assert_eq!(said, told(&guest));
    assert!(said.ends_with("\n100000\n"), "{said}");
    machinist(["remove", "-y", &guest.name, &clone.name]).ok();
}
