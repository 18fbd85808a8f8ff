//! create with bad disk images: each has an error of its own, and leaves nothing.

use std::fs;

use nix::sys::signal::Signal;

use crate::disk::{make, qcow2, work_with_tree};
use crate::sources::{ANOTHER, Work, is_nowhere, sum_of};
use crate::support::{Guest, machinist, run, sh, shared, wait_until};

/// Two partitions of Linux.
const TWO: &str = r"$'label: gpt\nstart=1MiB,size=30MiB,type=linux\nstart=31MiB,size=30MiB,type=linux'";

/// A file, options, and what the error and the hint have to say.
type Case = (&'static str, &'static [&'static str], &'static str, &'static str);

/// What is wrong with disks.
const DISKS: &[Case] = &[
    (
        "two.img",
        &[],
        "has more than one root filesystem: partition 1 is ext4, partition 2 is ext4",
        "--partition N",
    ),
    (
        "two.img",
        &["--partition", "3"],
        "has no partition 3: partition 1 is ext4, partition 2 is ext4",
        "",
    ),
    (
        "sum.img",
        &[],
        "is damaged: the checksum of its GPT's header is wrong",
        "gdisk -l",
    ),
    (
        "cut.img",
        &[],
        "is truncated: partition 2 ends at byte 63963136, and the image at byte 41943040",
        "fetch it again",
    ),
    ("luks.img", &[], "partition 2 of '", "give the directory"),
    (
        "luks.img",
        &["--partition", "2"],
        "is encrypted (LUKS): that cannot be unpacked",
        "mount it",
    ),
    (
        "luks.img",
        &["--partition", "1"],
        "is a FAT filesystem: that cannot be unpacked",
        "",
    ),
    (
        "lvm.img",
        &[],
        "is a physical volume of LVM: that cannot be unpacked",
        "mount it",
    ),
    (
        "fat.img",
        &[],
        "has no root filesystem: partition 1 is a FAT filesystem, partition 2",
        "--partition N",
    ),
    (
        "one.img",
        &["--partition", "1"],
        "is no root filesystem: it has no directory 'usr'",
        "",
    ),
    ("none.img", &[], "is no disk image", ""),
    (
        "journal.img",
        &[],
        "is an ext4 filesystem whose journal is on another disk",
        "",
    ),
    (
        "root.img",
        &["--partition", "1"],
        "has no partition 1: all of it is ext4",
        "",
    ),
    (
        "two.img",
        &["--sha256", ANOTHER],
        "is not what was asked for: its SHA-256 sum is",
        "nothing was made",
    ),
    ("missing.img", &[], "cannot open '", ""),
];

/// What is wrong with other files.
const FILES: &[Case] = &[
    ("zeros.img", &[], "is no disk image", ""),
    ("nothing.img", &[], "is no disk image: it looks like an empty file", ""),
    (
        "cut.img.gz",
        &[],
        "is truncated: it ends inside of its compressed data",
        "fetch it again",
    ),
    (
        "short.img",
        &[],
        "is truncated: ext4 of all has 31457280 bytes, of which 10485760 are there",
        "fetch it again",
    ),
    ("page.img.gz", &[], "is no disk image: it looks like a web page", ""),
    (
        "tar.img",
        &[],
        "is no disk image: it looks like a tar archive",
        "machinist create NAME - <",
    ),
    ("vhd.img", &[], "is no disk image: it looks like a VHD image", ""),
    (
        "cd.iso",
        &[],
        "has no root filesystem: it is an ISO image without live/*.squashfs, casper/*.squashfs or LiveOS/squashfs.img",
        "",
    ),
    (
        "layers.iso",
        &[],
        "is in several layers, which are not put together here: 'casper/minimal.en.squashfs', 'casper/minimal.squashfs'",
        "xorriso -osirrox on -indev",
    ),
    ("link.squashfs", &[], "is no root filesystem: it has no directory", ""),
    ("tar.squashfs", &[], "'LiveOS/rootfs.img' in all of '", ""),
    (
        "old.cpio",
        &[],
        "is a cpio archive of an old form: only newc is known",
        "",
    ),
    ("cut.cpio", &[], "is truncated", ""),
    ("backed.qcow2", &[], "it has a backing file", "qemu-img convert"),
    ("cut.qcow2", &[], "is truncated: it refers to byte", "fetch it again"),
];

/// Demands that nothing is made of a file, and that it says why.
#[track_caller]
fn refused(work: &Work, guest: &Guest, (file, words, message, hint): Case) {
    let path = work.file(file);
    let words = [&["create", &guest.name, &path, "--extract"] as &[&str], words].concat();
    let output = machinist(words).status(1);
    assert!(output.stderr.contains(message), "{file}: no {message:?}\n{output:?}");
    assert!(output.stderr.contains(hint), "{file}: no {hint:?}\n{output:?}");
    is_nowhere(guest);
}

#[test]
fn bad_disks_say_what_is_wrong() {
    let _host = shared();
    let work = work_with_tree();
    make(
        &work,
        &format!(
            "fat boot; ext4 tree root.img ''; mkdir empty; ext4 empty empty.img ''
            put() {{ printf \"$2\" | dd of=\"$1\" bs=1 seek=\"$3\" conv=notrunc status=none; }}
            disk two.img {TWO} root.img root.img
            disk one.img {TWO} empty.img root.img
            cp --sparse=always two.img sum.img; put sum.img x 560
            head -c 40M two.img >cut.img
            truncate -s 30M luks lvm; put luks 'LUKS\\xba\\xbe' 0; put lvm LABELONE 512; put lvm 'LVM2 001' 536
            disk luks.img {TWO} boot luks; disk lvm.img {TWO} lvm boot; disk fat.img {TWO} boot boot
            disk none.img 'label: dos'
            cp root.img journal.img; debugfs -w -R 'ssv journal_inum 0' journal.img 2>/dev/null"
        ),
    );
    let guest = Guest::new("bad");
    for case in DISKS {
        refused(&work, &guest, *case);
    }
    for (words, message) in [
        (
            &["a.tar", "--partition", "1"][..],
            "--partition is for disk images, not for 'a.tar'",
        ),
        (&["two.img", "--extract", "--partition", "0"], "--partition"),
        (
            &["two.img", "--extract", "--strip", "1"],
            "--strip is for tar archives, not for 'two.img'",
        ),
        (&["a.tar", "--extract"], "--extract is for disk images, not for 'a.tar'"),
        (&["template:busybox", "--extract"], "--extract is for disk images"),
    ] {
        machinist([&["create", guest.name.as_str()] as &[&str], words].concat())
            .status(2)
            .stderr_has(message);
        is_nowhere(&guest);
    }
    // What cannot be a machine as it is says how it could be.
    make(
        &work,
        &format!(
            "truncate -s 120M btrfs; mkfs.btrfs -q btrfs; mkdir mnt; mount -o loop btrfs mnt; btrfs -q subvolume create mnt/@
            cp -a tree/. mnt/@; umount mnt; cp btrfs subvolume.img
            mksquashfs tree squashfs -quiet -no-progress >/dev/null; truncate -s 30M squashfs
            disk squashfs.img {TWO} boot squashfs"
        ),
    );
    for (file, message) in [
        ("subvolume.img", "all is a filesystem without a root at its top"),
        ("squashfs.img", "partition 2 is squashfs, which cannot be written to"),
    ] {
        let path = work.file(file);
        machinist(["create", &guest.name, &path])
            .status(1)
            .fails_with(&format!("'{path}' cannot be kept as an image: {message}"), "--extract");
        is_nowhere(&guest);
        let good = Guest::new("disk");
        machinist(["create", &good.name, &path, "--extract"]).ok();
        assert!(good.image().join("opt/one").exists());
    }
    // The right one of two, and the only one that has a root filesystem.
    for words in [&["two.img", "--partition", "2"][..], &["one.img"]] {
        let good = Guest::new("disk");
        let file = work.file(words[0]);
        machinist([&["create", &good.name, &file, "--extract"], &words[1..]].concat()).ok();
        assert!(good.image().join("opt/one").exists());
    }
}

#[test]
fn what_is_no_disk_says_what_it_is() {
    let _host = shared();
    let work = work_with_tree();
    make(
        &work,
        "ext4 tree root.img ''; truncate -s 20M zeros.img; : >nothing.img
        gzip -1 <root.img | head -c 100000 >cut.img.gz
        head -c 10M root.img >short.img
        echo '<html><body>404' | gzip >page.img.gz; tar -cf tar.img tree
        printf 'conectixxx' >vhd.img
        xorriso -as mkisofs -quiet -R -o cd.iso tree/etc 2>/dev/null
        mkdir -p cd/casper; for layer in minimal minimal.standard minimal.en; do
            mksquashfs tree/etc cd/casper/$layer.squashfs -quiet -no-progress >/dev/null; done
        xorriso -as mkisofs -quiet -R -o layers.iso cd 2>/dev/null
        # What lies in an image is followed nowhere, and has to be an image.
        mkdir -p fedora/LiveOS; ln -s $PWD/root.img fedora/LiveOS/rootfs.img
        mksquashfs fedora link.squashfs -quiet -no-progress >/dev/null
        rm fedora/LiveOS/rootfs.img; tar -cf fedora/LiveOS/rootfs.img tree/etc
        mksquashfs fedora tar.squashfs -quiet -no-progress >/dev/null
        echo 070707000000 >old.cpio; (cd tree; find . | busybox cpio -o -H newc) >new.cpio 2>/dev/null
        head -c 5000 new.cpio >cut.cpio",
    );
    let disk = qcow2(&fs::read(work.file("root.img")).unwrap());
    let mut backed = disk.clone();
    backed[15] = 1;
    fs::write(work.file("backed.qcow2"), backed).unwrap();
    fs::write(work.file("cut.qcow2"), &disk[..disk.len() / 2]).unwrap();
    let guest = Guest::new("bad");
    for case in FILES {
        refused(&work, &guest, *case);
    }
}

#[test]
fn a_hostile_disk_gets_nothing_of_the_host() {
    let _host = shared();
    let work = work_with_tree();
    make(
        &work,
        "mkdir -p tree/dev tree/srv/over; mknod tree/dev/sda b 8 0; mknod tree/srv/sda b 8 0; mknod tree/srv/over/gone c 0 0
        setfattr -n trusted.overlay.redirect -v /etc tree/srv; setfattr -n security.evil -v x tree/srv
        setfattr -n user.good -v x tree/srv; ln -s /etc tree/srv/etc
        ext4 tree root.img ''
        # Not cleanly unmounted; and what is to happen at the next error.
        tune2fs -e panic root.img >/dev/null; debugfs -w -R 'feature needs_recovery' root.img >/dev/null 2>&1",
    );
    let file = work.file("root.img");
    let before = sum_of(&file);
    let guest = Guest::new("disk");
    machinist(["create", &guest.name, &file, "--extract"])
        .ok()
        .stderr_has("1 device nodes outside of /dev are left out");
    assert_eq!(sum_of(&file), before, "the image has changed");
    let srv = guest.image().join("srv");
    let list = sh("find \"$1\" -printf '%P %y\\n' | sort", [&srv]).ok().stdout;
    assert_eq!(list, " d\netc l\nover d\nover/gone c\n");
    let attributes = sh("getfattr -d -m - --absolute-names \"$1\"", [&srv]).ok().stdout;
    assert!(
        attributes.contains("user.good") && !attributes.contains("trusted.") && !attributes.contains("security.evil"),
        "{attributes}"
    );
    assert!(!guest.image().join("dev/sda").exists());
}

#[test]
fn an_image_takes_no_more_than_it_may() {
    let _host = shared();
    let work = work_with_tree();
    // A few kilobytes of one file again and again; the same on a disc, compressed, and as an archive.
    make(
        &work,
        "mkdir tree/bombs; yes | head -c 8M >tree/bombs/1; for i in $(seq 2 12); do cp tree/bombs/1 tree/bombs/$i; done
        mkdir -p cd/live; mksquashfs tree cd/live/filesystem.squashfs -quiet -no-progress >/dev/null
        cp cd/live/filesystem.squashfs bomb.squashfs; gzip -1 -k bomb.squashfs
        xorriso -as mkisofs -quiet -R -o bomb.iso cd 2>/dev/null
        (cd tree; find . | busybox cpio -o -H newc 2>/dev/null) | gzip -1 >bomb.cpio.gz
        truncate -s 200M bomb.img
        mke2fs -q -F -t ext4 -d tree bomb.img; zstd -q bomb.img -o bomb.img.zst",
    );
    assert!(fs::metadata(work.file("bomb.squashfs")).unwrap().len() < 8 << 20);
    let guest = Guest::new("bomb");
    for (file, words) in [
        ("bomb.squashfs", &[][..]),
        ("bomb.squashfs.gz", &[]),
        ("bomb.iso", &[]),
        ("bomb.cpio.gz", &[]),
        ("bomb.img", &["--extract"]),
        ("bomb.img", &[]),
        ("bomb.img.zst", &[]),
    ] {
        let path = work.file(file);
        let words = [&["create", &guest.name, &path, "--max-size", "50M"] as &[&str], words].concat();
        let refused = machinist(words).status(1);
        let said = [
            format!("disk image '{path}' takes more than 50.0M"),
            format!("archive '{path}' takes more than 50.0M"),
        ];
        assert!(
            said.iter().any(|said| refused.stderr.contains(said)),
            "{file}: {refused:?}"
        );
        assert!(refused.stderr.contains("a larger `--max-size`"), "{file}: {refused:?}");
        is_nowhere(&guest);
    }
    machinist(["create", &guest.name, &work.file("bomb.squashfs"), "--max-size", "200M"]).ok();
    assert_eq!(fs::metadata(guest.image().join("bombs/12")).unwrap().len(), 8 << 20);
}

#[test]
fn an_image_that_never_ends_is_given_up() {
    let _host = shared();
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let guest = Guest::new("disk");
        let feed = "(head -c 3M /dev/urandom; exec sleep 1000) | exec machinist create \"$1\" - --extract";
        let running = sh(feed, [&guest.name]).spawn();
        wait_until("it reads", || running.has_said("reading standard input"));
        let find = || {
            let said = run("pgrep", ["-f", &format!("^machinist create {} ", guest.name)]).any();
            said.stdout.trim().parse::<i32>().ok()
        };
        let pid = find().expect("it runs");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
        wait_until("it has ended", || find().is_none());
        running.signal(Signal::SIGKILL);
        run("pkill", ["-P", &running.pid().to_string()]).any();
        if signal == Signal::SIGKILL {
            machinist(["clean"]).ok();
        }
        is_nowhere(&guest);
    }
}
