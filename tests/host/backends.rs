//! The whole life of a machine on each kind of filesystem that machines may lie on.

use std::fs;
use std::path::{Path, PathBuf};

use crate::linked::{layers, mounted_on};
use crate::support::{Disk, Guest, There, agree, alone, machinist, run, wait_until};

pub(crate) const MACHINES: &str = "/var/lib/machines";

/// Names of images that belong to nobody, and what is hidden.
fn all_there_is() -> Vec<String> {
    let entries = fs::read_dir(MACHINES).unwrap().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names
        .filter(|name| name != "lost+found" && !name.ends_with(".lck"))
        .collect()
}

fn exec(guest: &Guest, script: &str) -> String {
    machinist(["exec", &guest.name, "--", "sh", "-c", script]).ok().stdout
}

/// Makes a machine, uses it, copies it in every way, renames and removes it. `storage` is how copies are made there, `linked`
/// how linked ones are, if they are.
pub(crate) fn live(storage: &str, linked: Option<&str>) {
    let before = all_there_is();
    let [guest, clone, other, new] = ["bla", "blb", "blc", "bld"].map(Guest::new);
    let (name, copy) = (guest.name.as_str(), clone.name.as_str());
    machinist(["create", name, "template:busybox", "--start"]).ok();
    agree(name, There::Running);
    let image = machinist(["images", "--json", "--filter", &format!("name={name}")])
        .ok()
        .json();
    assert_eq!(image[0]["storage"], storage);
    assert_eq!(
        exec(&guest, "echo one >/root/mine; sync; stat -c %u:%g /root /root/mine"),
        "0:0\n0:0\n"
    );

    // While it runs, and both run.
    let row = machinist(["clone", name, copy, "--json"]).ok().json();
    assert_eq!(row[0]["storage"], storage);
    machinist(["start", copy]).ok();
    assert_eq!(
        exec(&clone, "cat /root/mine; echo two >/root/mine; hostname"),
        format!("one\n{copy}\n")
    );
    assert_eq!(exec(&guest, "cat /root/mine"), "one\n");
    // As it is at one moment, in an archive.
    let file = format!("/root/{name}.tar.zst");
    machinist(["export", name, &file]).ok();
    machinist(["stop", name, copy]).ok();
    machinist(["import", &file, &other.name]).ok();
    assert_eq!(fs::read_to_string(other.image().join("root/mine")).unwrap(), "one\n");
    machinist(["remove", "-y", &other.name]).ok();
    fs::remove_file(&file).unwrap();

    // A copy that is gone at the end, and leaves what it is of as it was.
    machinist([
        "run",
        "-x",
        copy,
        "--",
        "sh",
        "-c",
        "cat /root/mine; echo three >/root/mine",
    ])
    .ok()
    .stdout_is("two\n");
    machinist(["run", copy, "--", "cat", "/root/mine"])
        .ok()
        .stdout_is("two\n");

    match linked {
        Some(linked) => {
            let row = machinist(["clone", "--linked", copy, &other.name, "--json"])
                .ok()
                .json();
            assert_eq!(row[0]["storage"], linked);
            other.start();
            assert_eq!(exec(&other, "cat /root/mine; stat -c %u /root/mine"), "two\n0\n");
            machinist(["stop", &other.name]).ok();
            machinist(["clone", "--flatten", &other.name]).ok();
            wait_until("it is unmounted", || mounted_on(&other.image()).is_empty());
            machinist(["remove", "-y", &other.name]).ok();
            assert_eq!(layers(&other.name), Vec::<PathBuf>::new());
        }
        None => {
            let refused = machinist(["clone", "--linked", copy, &other.name]).status(1);
            refused.stderr_has("hint: ").stderr_has("--full");
            agree(&other.name, There::Nowhere);
        }
    }

    machinist(["rename", copy, &new.name]).ok();
    agree(copy, There::Nowhere);
    new.start();
    assert_eq!(exec(&new, "cat /root/mine; hostname"), format!("two\n{}\n", new.name));
    machinist(["stop", &new.name]).ok();
    machinist(["read-only", &new.name, "on"]).ok();
    machinist(["read-only", &new.name, "off"]).ok();
    machinist(["remove", "-y", name, &new.name]).ok();
    for guest in [&guest, &clone, &other, &new] {
        agree(&guest.name, There::Nowhere);
    }
    assert_eq!(all_there_is(), before);
}

#[test]
fn a_life_on_btrfs() {
    let _host = alone();
    let _disk = Disk::btrfs(Path::new(MACHINES));
    live("btrfs", Some("btrfs"));
    let left = run("btrfs", ["subvolume", "list", MACHINES]).ok().stdout;
    assert_eq!(left, "");
}

#[test]
fn a_life_on_xfs() {
    let _host = alone();
    let _disk = Disk::xfs(Path::new(MACHINES));
    live("reflink", Some("reflink"));
}

#[test]
fn a_life_on_ext4() {
    let _host = alone();
    live("copy", Some("overlay"));
}
