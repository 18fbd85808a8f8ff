//! export of machines whose image is a disk.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use crate::disk::{make, raw, work_with_tree};
use crate::export::{Shelf, listing};
use crate::sources::{is_nowhere, sum_of};
use crate::support::{Guest, There, agree, machinist, run, sh, shared, wait_until};

#[test]
fn a_machine_in_a_disk_gives_its_files_or_the_disk() {
    let _host = shared();
    let work = work_with_tree();
    make(
        &work,
        "setcap cap_net_raw+ep tree/opt/one; ext4 tree root.img 'some label'; mkdir out",
    );
    let (guest, other) = (Guest::new("exr"), Guest::new("exr2"));
    let (name, shelf, disk) = (guest.name.as_str(), Shelf::new(&guest), raw(&guest));
    let set = ["--set", "Exec.KillSignal=SIGUSR2"];
    machinist(["create", name, &work.file("root.img")].iter().chain(&set)).ok();
    machinist(["limit", name, "tasks=77"]).ok();
    guest.start();
    machinist(["exec", name, "--", "sh", "-c", "echo new >/opt/new"]).ok();
    // While it runs, its kernel writes to it.
    let running = format!("machine '{name}' runs on a disk image, which it is writing to");
    let [archive, copy] = ["a.tar.zst", "a.raw"].map(|file| shelf.path(file));
    for words in [
        &[archive.as_str()] as &[&str],
        &[&copy, "--no-settings"],
        &[&archive, "--dry-run"],
    ] {
        machinist([&["export", name] as &[&str], words].concat())
            .status(1)
            .fails_with(&running, &format!("machinist stop {name}"));
    }
    assert_eq!(shelf.names(), Vec::<String>::new());
    machinist(["stop", name]).ok();
    // A journal that nobody has replayed: what is read is a copy.
    sh("debugfs -w -R 'feature needs_recovery' \"$1\" >/dev/null 2>&1", [&disk]).ok();
    let before = sum_of(&disk.to_string_lossy());

    machinist(["export", name, &archive, "--dry-run"])
        .ok()
        .stdout_has(&format!("mount the root filesystem of '{}'", disk.display()));
    machinist(["export", name, &archive]).ok();
    let again = shelf.path("again.tar.zst");
    machinist(["export", name, &again]).ok();
    run("cmp", [&archive, &again]).ok();
    machinist(["export", name, &format!("oci:{}:web", shelf.path("layout"))]).ok();
    assert_eq!(sum_of(&disk.to_string_lossy()), before, "the disk has changed");
    wait_until("no loop device is left", || {
        let used = run("losetup", ["-n", "-l", "-O", "BACK-FILE"]).ok().stdout;
        !used.contains(name) && !used.contains("machines/#")
    });

    // With its settings it is another disk.
    let whole = shelf.path("whole.raw");
    machinist(["export", name, &whole, "--dry-run"])
        .ok()
        .stdout_has("make an ext4 filesystem of the files");
    machinist(["export", name, &whole]).ok();
    let row = machinist(["export", name, &copy, "--no-settings", "--json"])
        .ok()
        .json()[0]
        .clone();
    assert_eq!(row["sha256"], before.as_str());
    run("cmp", [&copy, &disk.to_string_lossy().into_owned()]).ok();
    let found = fs::metadata(&copy).unwrap();
    assert!(
        found.blocks() * 512 < found.len() * 2 / 3,
        "it is not sparse: {found:?}"
    );
    assert_eq!(found.mode() & 0o777, 0o600);
    assert_eq!(
        shelf.names(),
        ["a.raw", "a.tar.zst", "again.tar.zst", "layout", "whole.raw"]
    );

    // The machine as it was, in a directory; of the layout the same.
    machinist(["create", &other.name, &copy, "--extract", "--keep-identity"]).ok();
    let files = listing(&other.image());
    machinist(["remove", "-y", &other.name]).ok();
    machinist(["remove", "-y", name]).ok();
    is_nowhere(&guest);
    machinist(["import", &archive]).ok();
    agree(name, There::Stopped);
    assert_eq!(listing(&guest.image()), files);
    assert_eq!(guest.property("TasksMax"), "77");
    guest.start();
    machinist(["exec", name, "--", "cat", "/opt/two", "/opt/new"])
        .ok()
        .stdout_is("one\nnew\n");
    machinist(["import", &format!("oci:{}:web", shelf.path("layout")), &other.name]).ok();
    assert_eq!(fs::read_to_string(other.image().join("opt/new")).unwrap(), "new\n");
    machinist(["remove", "-y", "--force", &other.name, name]).ok();
    machinist(["import", &whole]).ok();
    assert_eq!(guest.property("TasksMax"), "77");
    guest.start();
    machinist(["exec", name, "--", "cat", "/opt/two", "/opt/new"])
        .ok()
        .stdout_is("one\nnew\n");
}
