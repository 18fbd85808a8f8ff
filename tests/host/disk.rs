//! create from disk images: each kind of image and of filesystem becomes a machine that runs.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::sources::{Work, is_nowhere, sum_of};
use crate::support::{Guest, There, agree, machinist, make_busybox_image, run, sh, shared, wait_until};
use crate::web::{Page, Web};

/// What the scripts below have in common: `disk FILE SCRIPT PARTITION...` makes a disk with these partitions, of which each is a
/// file of at most 30 MiB or nothing.
const DISK: &str = r#"
    disk() {
        local file=$1 script=$2 at=1
        shift 2
        truncate -s 100M "$file"
        sfdisk -q "$file" <<<"$script"
        for part; do
            dd if="$part" of="$file" bs=1M seek="$at" conv=notrunc,sparse status=none
            at=$((at + 30))
        done
    }
    # What begins like a FAT filesystem: there is no driver for it here, and none is needed.
    fat() { truncate -s 30M "$1"; printf 'FAT32   ' | dd of="$1" bs=1 seek=82 conv=notrunc status=none; }
    ext4() { mke2fs -q -t ext4 -L "$3" -d "$1" "$2" 30M; }
    cd "$1"
"#;

/// A directory with a root filesystem in `tree` that has something of everything.
pub(crate) fn work_with_tree() -> Work {
    let work = Work::new("disk");
    let tree = work.0.join("tree");
    make_busybox_image(&tree);
    let exotic = "cd \"$1\"; mkdir -p opt/d srv; echo one >opt/one; ln opt/one opt/two; chown 1000:1001 opt/one opt/d
        ln -s ../../../../etc/passwd opt/passwd; mkfifo opt/fifo; chmod 1777 opt/d; touch -d @1000000000 opt/one
        cp bin/busybox opt/su; chmod 4755 opt/su; setfattr -n user.test -v value opt/one";
    sh(exotic, [tree.as_os_str()]).ok();
    work
}

/// Runs a script in the directory of a test.
#[track_caller]
pub(crate) fn make(work: &Work, script: &str) {
    sh(&format!("{DISK}\n{script}"), [work.0.as_os_str()]).ok();
}

/// Demands that what is in the image is what was in the tree.
#[track_caller]
fn is_the_tree(guest: &Guest, what: &str) {
    let script = "cd \"$1\" && find opt -printf '%p %y %m %U %G %n %s %l\\n' | sed 's/^\\(opt [^ ]* [^ ]* [^ ]* [^ ]* [^ ]*\\) .*/\\1/; \
                  s/^\\(opt.d .*\\) [0-9]* $/\\1/' | sort";
    let list = sh(script, [guest.image().as_os_str()]).ok().stdout;
    for line in [
        "opt/one f 644 1000 1001 2 4 ",
        "opt/fifo p 644 0 0 1 0 ",
        "opt/passwd l 777 0 0 1 22 ../../../../etc/passwd",
        "opt/d d 1777 1000 1001 2",
    ] {
        assert!(list.contains(line), "{what}: no {line:?} in\n{list}");
    }
    assert!(list.contains("opt/su f 4755 0 0 1"), "{what}: {list}");
    let file = fs::metadata(guest.image().join("opt/one")).unwrap();
    assert_eq!(file.mtime(), 1_000_000_000, "{what}");
}

#[track_caller]
fn attribute(guest: &Guest) -> String {
    let file = guest.image().join("opt/one");
    let words = ["-n", "user.test", "--only-values", "--absolute-names"].map(Path::new);
    run("getfattr", words.iter().copied().chain([file.as_path()]))
        .ok()
        .stdout
}

/// Creates a machine from an image, starts it, and goes in.
#[track_caller]
fn lives(file: &str, options: &[&str]) -> Guest {
    let guest = Guest::new("disk");
    machinist([&["create", &guest.name, file] as &[&str], options].concat()).ok();
    is_the_tree(&guest, file);
    agree(&guest.name, There::Stopped);
    guest.start();
    agree(&guest.name, There::Running);
    machinist(["exec", &guest.name, "--", "cat", "/opt/two"])
        .ok()
        .stdout_is("one\n");
    guest
}

/// No loop device is left of a file in the directory of a test.
#[track_caller]
pub(crate) fn no_loops(work: &Work) {
    wait_until("no loop device is left", || {
        let used = run("losetup", ["-n", "-l", "-O", "BACK-FILE"]).ok().stdout;
        !used.contains(&*work.0.to_string_lossy())
    });
}

/// A qcow2 image of a disk, with what is not zero.
pub(crate) fn qcow2(disk: &[u8]) -> Vec<u8> {
    const CLUSTER: usize = 64 << 10;
    let mut file = vec![0; 3 * CLUSTER];
    file[..8].copy_from_slice(b"QFI\xfb\0\0\0\x02");
    file[23] = 16;
    file[24..32].copy_from_slice(&(disk.len() as u64).to_be_bytes());
    file[39] = 1;
    file[40..48].copy_from_slice(&(CLUSTER as u64).to_be_bytes());
    file[CLUSTER..CLUSTER + 8].copy_from_slice(&(2 * CLUSTER as u64).to_be_bytes());
    for (at, cluster) in disk.chunks(CLUSTER).enumerate() {
        if cluster.iter().any(|byte| *byte != 0) {
            let entry = 2 * CLUSTER + 8 * at;
            let offset = file.len() as u64 | 1 << 63;
            file[entry..entry + 8].copy_from_slice(&offset.to_be_bytes());
            file.extend(cluster);
        }
    }
    file
}

#[test]
fn disks_with_partitions_become_machines() {
    let _host = shared();
    let work = work_with_tree();
    make(
        &work,
        "fat boot; ext4 tree root.ext4 ''
        truncate -s 120M root.btrfs; mkfs.btrfs -q --rootdir tree root.btrfs
        # By its type, though there is another.
        cp -a tree other; rm -r other/opt; ext4 other other.ext4 rootfs
        disk gpt.raw $'label: gpt\\nstart=1MiB,size=30MiB,type=uefi\\nstart=31MiB,size=30MiB,type=linux\\n\
         start=61MiB,size=30MiB,type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709' boot other.ext4 root.ext4
        # As a Raspberry Pi has it.
        disk pi.img $'label: dos\\nstart=1MiB,size=30MiB,type=c\\nstart=31MiB,size=30MiB,type=83' boot root.ext4
        xz -0 -k pi.img
        # A logical partition, and btrfs.
        truncate -s 200M logical.img
        sfdisk -q logical.img <<<$'label: dos\\nstart=1MiB,size=180MiB,type=5\\nstart=2MiB,size=120MiB,type=83'
        dd if=root.btrfs of=logical.img bs=1M seek=2 conv=notrunc,sparse status=none; gzip -1 logical.img",
    );
    let gpt = work.file("gpt.raw");
    let before = sum_of(&gpt);
    let guest = lives(&gpt, &["--extract"]);
    assert_eq!(attribute(&guest), "value");
    lives(
        &work.file("pi.img.xz"),
        &["--extract", "--sha256", &sum_of(&work.file("pi.img.xz"))],
    );
    lives(&work.file("logical.img.gz"), &["--extract", "--partition", "5"]);
    let disk = fs::read(work.file("pi.img")).unwrap();
    fs::write(work.file("pi.qcow2"), qcow2(&disk)).unwrap();
    lives(&work.file("pi.qcow2"), &["--extract"]);
    assert_eq!(sum_of(&gpt), before, "the image has changed");
    no_loops(&work);
    let bad = Guest::new("disk");
    machinist(["create", &bad.name, &gpt, "--extract", "--partition", "2"]).ok();
    assert!(!bad.image().join("opt").exists());
}

/// Where a machine's image lies that is a disk.
pub(crate) fn raw(guest: &Guest) -> PathBuf {
    guest.image().with_file_name(format!("{}.raw", guest.name))
}

#[test]
fn disk_images_are_kept_and_run() {
    let _host = shared();
    let work = work_with_tree();
    make(
        &work,
        "fat boot; ext4 tree root.img 'some label'; mkdir mnt
        disk pi.img $'label: dos\nstart=1MiB,size=30MiB,type=c\nstart=31MiB,size=30MiB,type=83' boot root.img
        disk typed.raw $'label: gpt\nstart=1MiB,size=30MiB,type=uefi\nstart=31MiB,size=30MiB,\
         type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709' boot root.img
        debugfs -w -R 'feature needs_recovery' root.img >/dev/null 2>&1; zstd -q root.img -o dirty.img.zst",
    );
    let disk = fs::read(work.file("pi.img")).unwrap();
    fs::write(work.file("pi.qcow2"), qcow2(&disk)).unwrap();
    // Of a disk whose root systemd-nspawn would not find, that alone.
    for file in ["dirty.img.zst", "pi.img", "pi.qcow2"] {
        let guest = Guest::new("raw");
        let name = guest.name.as_str();
        let made = machinist([
            "create",
            name,
            &work.file(file),
            "--json",
            "--set",
            "Exec.KillSignal=SIGUSR2",
        ]);
        assert_eq!(made.ok().json()[0]["path"], *raw(&guest).to_string_lossy(), "{file}");
        let found = fs::metadata(raw(&guest)).unwrap();
        assert_eq!((found.len(), found.mode() & 0o777), (30 << 20, 0o600), "{file}");
        assert!(found.blocks() * 512 < 20 << 20, "{file}: {} blocks", found.blocks());
        agree(name, There::Stopped);
        run("e2fsck", [Path::new("-fn"), &raw(&guest)]).ok();
        guest.start();
        agree(name, There::Running);
        machinist(["exec", name, "--", "cat", "/opt/two", "/etc/hostname"])
            .ok()
            .stdout_is(&format!("one\n{name}\n"));
        machinist(["status", name]).ok().stdout_has(name);
        machinist(["create", name, &work.file(file)]).status(1);
        if file == "pi.img" {
            machinist(["stop", name]).ok();
            machinist(["start", name]).ok();
            machinist(["terminate", name]).ok();
            machinist(["remove", "--yes", name]).ok();
            is_nowhere(&guest);
        }
    }
    // Else all of it: its own partitions are systemd-nspawn's to find.
    let guest = Guest::new("raw");
    machinist(["create", &guest.name, &work.file("typed.raw"), "--dry-run"])
        .ok()
        .stdout_has(&format!("rename it to '{}'", raw(&guest).display()));
    machinist(["create", &guest.name, &work.file("typed.raw")]).ok();
    agree(&guest.name, There::Stopped);
    assert_eq!(fs::metadata(raw(&guest)).unwrap().len(), 100 << 20);
    let read = "cd \"$1\"; mount -o loop,ro,offset=$((31 << 20)) \"$2\" mnt; cat mnt/etc/hostname; umount mnt";
    sh(read, [work.0.as_os_str(), raw(&guest).as_os_str()])
        .ok()
        .stdout_is(&format!("{}\n", guest.name));
    run("sfdisk", [Path::new("--verify"), &raw(&guest)]).ok();
    no_loops(&work);
}

#[test]
fn filesystems_and_archives_become_machines() {
    let _host = shared();
    let work = work_with_tree();
    make(
        &work,
        "mksquashfs tree root.squashfs -quiet -no-progress -comp gzip >/dev/null
        mkfs.erofs --quiet root.erofs tree 2>/dev/null || mkfs.erofs root.erofs tree >/dev/null
        zstd -q root.erofs -o erofs.img.zst
        (cd tree; find . | busybox cpio -o -H newc 2>/dev/null) | gzip -1 >root.cpio.gz
        mkdir -p cd/live; cp root.squashfs cd/live/filesystem.squashfs; echo x >cd/live/vmlinuz
        xorriso -as mkisofs -quiet -R -o live.iso cd 2>/dev/null
        mkdir -p fedora/LiveOS; ext4 tree fedora/LiveOS/rootfs.img ''; mkdir cd2 cd2/LiveOS
        mksquashfs fedora cd2/LiveOS/squashfs.img -quiet -no-progress >/dev/null
        xorriso -as mkisofs -quiet -R -o fedora.iso cd2 2>/dev/null
        mkdir -p cd3/casper cd4/LiveOS; cp root.squashfs cd3/casper/filesystem.squashfs; cp root.erofs cd4/LiveOS/squashfs.img
        xorriso -as mkisofs -quiet -R -o ubuntu.iso cd3 2>/dev/null; xorriso -as mkisofs -quiet -R -o erofs.iso cd4 2>/dev/null
        truncate -s 320M root.xfs.img; mkfs.xfs -q root.xfs.img; mkdir mnt; mount -o loop root.xfs.img mnt
        cp -a tree/. mnt; umount mnt",
    );
    let guest = lives(&work.file("root.squashfs"), &[]);
    assert_eq!(attribute(&guest), "value");
    lives(&work.file("erofs.img.zst"), &["--extract"]);
    lives(&work.file("live.iso"), &[]);
    lives(&work.file("root.cpio.gz"), &[]);
    // Those of other distributions: Fedora's has an image in its image.
    lives(&work.file("fedora.iso"), &[]);
    for file in ["ubuntu.iso", "erofs.iso"] {
        let guest = Guest::new("disk");
        machinist(["create", &guest.name, &work.file(file)]).ok();
        is_the_tree(&guest, file);
    }
    // As a stream; an XFS whose other copy is mounted meanwhile.
    let guest = Guest::new("disk");
    let feed = "cd \"$1\"; mount -o loop,ro root.xfs.img mnt; cat root.xfs.img | machinist create \"$2\" - --extract; umount mnt";
    sh(feed, [work.0.as_os_str(), guest.name.as_ref()]).ok();
    is_the_tree(&guest, "xfs");
    no_loops(&work);
    machinist(["run", &work.file("root.squashfs"), "--", "cat", "/opt/one"])
        .ok()
        .stdout_is("one\n");
}

#[test]
fn disk_images_are_downloaded() {
    let _host = shared();
    let (work, web) = (work_with_tree(), Web::new());
    make(&work, "ext4 tree root.img ''; zstd -q root.img");
    web.put("/root.img.zst", Page::new(fs::read(work.file("root.img.zst")).unwrap()));
    let url = web.url("/root.img.zst");
    let guest = Guest::new("disk");
    machinist(["create", &guest.name, &url, "--extract", "--dry-run"])
        .ok()
        .stdout_has("unpack the root filesystem of 'root.img.zst'");
    machinist(["create", &guest.name, &url, "--extract"]).ok();
    is_the_tree(&guest, "download");
    // What is no image is not kept.
    let bad = Guest::new("disk");
    web.put("/page.img.gz", Page::new("<!DOCTYPE html>\n<title>Log in</title>"));
    machinist(["create", &bad.name, &web.url("/page.img.gz"), "--extract"])
        .status(1)
        .stderr_has("error: 'page.img.gz' is no disk image: it looks like a web page");
    is_nowhere(&bad);
    let kept = machinist(["clean", "--all", "--dry-run"]).ok().stdout;
    assert!(!kept.contains("page.img.gz"), "{kept}");
}
