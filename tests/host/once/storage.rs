//! storage show: what it says of filesystems is so.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::{Disk, alone, machinist, run, sh};

const MACHINES: &str = "/var/lib/machines";

fn shown() -> Value {
    let before = fs::read_dir(MACHINES).unwrap().count();
    let rows = machinist(["storage", "show", "--json"]).ok().json();
    assert_eq!(fs::read_dir(MACHINES).unwrap().count(), before, "something is left");
    assert_eq!(rows.as_array().map(Vec::len), Some(1), "{rows}");
    rows[0].clone()
}

/// What others say of the filesystem: type, device, and its size.
fn is_that_of_df(row: &Value) {
    let found = run("findmnt", ["-nbo", "FSTYPE,SOURCE,SIZE", "-T", MACHINES])
        .ok()
        .stdout;
    let words: Vec<&str> = found.split_whitespace().collect();
    // findmnt adds the subvolume to a device.
    let device = words[1].split('[').next().unwrap();
    assert_eq!(
        (row["filesystem"].as_str(), row["device"].as_str()),
        (Some(words[0]), Some(device)),
        "{row}"
    );
    assert_eq!(row["size"].to_string(), words[2], "{row}");
    assert!(row["free"].as_u64() <= row["size"].as_u64(), "{row}");
    assert_eq!(row["path"], MACHINES);
}

#[test]
fn each_filesystem_is_tried() {
    let _host = alone();
    {
        let _ext4 = Disk::ext4(Path::new(MACHINES), "24M");
        let row = shown();
        is_that_of_df(&row);
        assert_eq!(
            (&row["storage"], &row["ephemeral"]),
            (&"copy".into(), &"overlay".into())
        );
        assert_eq!(row["reason"], Value::Null);
        machinist([
            "storage",
            "show",
            "--columns",
            "filesystem,storage,ephemeral",
            "--format",
            "csv",
        ])
        .ok()
        .stdout_has("ext4,copy,overlay");
        // Nowhere to try it.
        run("mount", ["-o", "remount,ro", MACHINES]).ok();
        machinist(["storage", "show"])
            .status(1)
            .stderr_has("Read-only file system");
    }
    {
        let _btrfs = Disk::btrfs(Path::new(MACHINES));
        let row = shown();
        is_that_of_df(&row);
        assert_eq!((&row["storage"], &row["ephemeral"]), (&"btrfs".into(), &"btrfs".into()));
    }
    // An overlay takes no other below with its owners shifted.
    let over = "mkdir -p /root/show/upper /root/show/work; \
                mount -t overlay overlay -o lowerdir=\"$1\",upperdir=/root/show/upper,workdir=/root/show/work \"$1\"";
    sh(over, [MACHINES]).ok();
    let row = shown();
    sh("umount \"$1\"; rm -rf /root/show", [MACHINES]).ok();
    assert_eq!(
        (&row["filesystem"], &row["storage"]),
        (&"overlay".into(), &"copy".into())
    );
    assert_eq!(row["ephemeral"], "copy");
    assert!(row["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{row}");
}
