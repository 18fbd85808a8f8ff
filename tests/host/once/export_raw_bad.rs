//! export of disks that are no tree, and of those that something else writes to.

use std::fs;
use std::path::{Path, PathBuf};

use crate::disk::{make, raw, work_with_tree};
use crate::export::Shelf;
use crate::support::{Guest, Output, machinist, run, sh, shared, wait_until};

/// A machine of a disk, which is taken as it is.
fn machine(disk: &str) -> (Guest, PathBuf) {
    let guest = Guest::new("exrb");
    let path = raw(&guest);
    fs::copy(disk, &path).unwrap();
    (guest, path)
}

/// Takes off a loop device. losetup may fail where another looks at the device meanwhile, of which it is rid all the same.
fn detach(device: &str, image: &Path) {
    run("losetup", ["-d", device]).any();
    wait_until("the loop device is gone", || {
        let used = run("losetup", ["-n", "-l", "-O", "BACK-FILE"]).ok().stdout;
        !used.contains(&*image.to_string_lossy())
    });
}

#[test]
fn disks_that_are_no_tree_are_refused_and_nothing_is_left() {
    let _host = shared();
    let work = work_with_tree();
    make(
        &work,
        "ext4 tree root ''; mkdir none; mkdir none/usr none/etc; ext4 none empty ''
        truncate -s 30M luks verity; printf 'LUKS\\xba\\xbe\\0\\2' | dd of=luks conv=notrunc status=none
        printf 'verity\\0\\0' | dd of=verity conv=notrunc status=none
        table() { echo 'label: gpt'; at=1; for kind; do echo \"start=${at}MiB,size=30MiB,type=$kind\"; at=$((at + 30)); done; }
        root=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709
        disk home.raw \"$(table $root 933AC7E1-2EB4-4F13-B844-0E14E2AEF915)\" root root
        disk luks.raw \"$(table $root)\" luks
        disk verity.raw \"$(table $root 2C7357ED-EBD2-46D9-AEC1-23D437EC2BF5)\" root verity
        disk empty.raw \"$(table $root)\" empty
        disk good.raw \"$(table $root uefi)\" root verity; dd if=/dev/zero of=good.raw bs=1M seek=31 count=1 conv=notrunc status=none",
    );
    let probe = Guest::new("exrb");
    let shelf = Shelf::new(&probe);
    let archive = shelf.path("a.tar");
    let plain = |output: Output, reason: String, name: &str| {
        output.fails_with(&reason, &format!("`machinist export {name} FILE.raw --no-settings`"));
    };
    for (file, what) in [
        ("home.raw", "partition 2 has its /home"),
        ("verity.raw", "partition 2 has hashes of dm-verity"),
        ("empty.raw", "its root filesystem has no /usr, or nothing in it"),
    ] {
        let (guest, path) = machine(&work.file(file));
        let reason = format!("disk image '{}' is not to be read as one tree: {what}", path.display());
        plain(
            machinist(["export", &guest.name, &archive]).status(1),
            reason,
            &guest.name,
        );
    }
    let (guest, path) = machine(&work.file("luks.raw"));
    let reason = format!(
        "partition 1 of '{}' is encrypted (LUKS): that cannot be unpacked",
        path.display()
    );
    plain(
        machinist(["export", &guest.name, &archive]).status(1),
        reason,
        &guest.name,
    );
    assert_eq!(shelf.names(), Vec::<String>::new());
    // But the disk as it is.
    let copy = shelf.path("luks.raw");
    machinist(["export", &guest.name, &copy, "--no-settings"]).ok();
    run("cmp", [copy, work.file("luks.raw")]).ok();

    let (guest, path) = machine(&work.file("good.raw"));
    let (name, image) = (guest.name.as_str(), path.display());
    let hash = path.with_extension("roothash");
    fs::write(&hash, "00").unwrap();
    let reason = format!(
        "disk image '{image}' is not to be read as one tree: '{}' asks for dm-verity",
        hash.display()
    );
    plain(machinist(["export", name, &archive]).status(1), reason, name);
    fs::remove_file(&hash).unwrap();
    // Mounted by somebody, it changes.
    let device = run("losetup", ["-f", "--show", &image.to_string()]).ok().stdout;
    let device = device.trim();
    let asked = machinist(["export", name, &archive]).any();
    detach(device, &path);
    let reason = format!("'{device}' may write to the disk image '{image}'");
    asked.fails_with(&reason, &format!("`losetup -d {device}`"));
    assert_eq!(shelf.names(), ["luks.raw"]);
    // One that only reads harms nobody.
    let device = run("losetup", ["-r", "-f", "--show", &image.to_string()]).ok().stdout;
    let exported = machinist(["export", name, &archive]).any();
    detach(device.trim(), &path);
    assert_eq!(exported.status, 0, "{exported:?}");
    let exported = exported.stderr_has("partition 2, which is for boot loaders, is left out");
    assert!(exported.stderr.contains(" files, "), "{exported:?}");
    let listed = sh("tar -tf \"$1\"", [&archive]).ok().stdout;
    assert!(listed.contains("/opt/two\n"), "{listed}");
}
