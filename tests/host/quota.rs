//! quota on btrfs, where systemd-machined limits: what btrfs and the machine itself say. Projects are for `tests/host/vm`.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::{Disk, Guest, MACHINES, alone, machinist, run, sh, wait_until};

const MIB: u64 = 1 << 20;

/// What btrfs says of the subvolumes and groups that are limited: number and limit.
fn limits_of_btrfs() -> Vec<(String, u64)> {
    let table = run("btrfs", ["qgroup", "show", "-r", "--raw", "--sync", MACHINES])
        .ok()
        .stdout;
    let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let limits = rows.filter_map(|row| Some(((*row.first()?).to_owned(), row.get(3)?.parse().ok()?)));
    limits.collect()
}

fn number_of(guest: &Guest) -> String {
    let said = run("btrfs", ["subvolume", "show", &guest.image().to_string_lossy()])
        .ok()
        .stdout;
    let line = said.lines().find_map(|line| line.trim().strip_prefix("Subvolume ID:"));
    line.expect("a number").trim().to_owned()
}

/// What machined says of the image's limit, and of what is used.
fn of_machined(guest: &Guest, property: &str) -> String {
    let said = run("machinectl", ["show-image", &guest.name, "-p", property, "--value"]).ok();
    said.stdout.trim_end().to_owned()
}

/// machined keeps what it has looked at until it has nothing else to do.
#[track_caller]
fn has_limit(guest: &Guest, limit: &str) {
    wait_until(&format!("machined says that the limit is {limit}"), || {
        of_machined(guest, "Limit") == limit
    });
}

/// Turns quotas on. machined says nothing of any as long as they are counted.
fn count() {
    run("btrfs", ["quota", "enable", MACHINES]).ok();
    run("btrfs", ["quota", "rescan", "-w", MACHINES]).ok();
}

fn shown(name: &str) -> Value {
    sh("sync -f \"$1\"", [MACHINES]).ok();
    machinist(["quota", name, "--json"]).ok().json()[0].clone()
}

/// Writes as many MiB in the running machine as it may; what it is told beyond.
fn fill(guest: &Guest, file: &str) -> String {
    let dd = ["/bin/busybox", "dd", "if=/dev/zero", "bs=1M", "count=90"];
    let into = format!("of={file}");
    let command = [dd[0], dd[1], dd[2], into.as_str(), dd[3], dd[4]];
    guest.inside(command).any().stderr
}

#[test]
fn a_machine_on_btrfs_takes_no_more_than_it_may() {
    let _host = alone();
    let _disk = Disk::btrfs(Path::new(MACHINES));
    let guest = Guest::new("quota");
    let name = guest.name.as_str();
    machinist(["create", name, "template:busybox", "--network", "host"]).ok();
    // Nothing is turned on for all of the filesystem that nobody asked for.
    machinist(["quota", name, "20M"]).status(1).fails_with(
        &format!(
            "cannot limit the image of machine '{name}': quotas are off on btrfs on {}, or are being counted anew",
            device()
        ),
        &format!("`btrfs quota enable {MACHINES}`"),
    );
    machinist(["quota", name, "none"]).ok();
    count();

    machinist(["quota", name, "20M", "--dry-run"])
        .ok()
        .stdout_is(&format!("have systemd-machined limit image '{name}' to 20.0M\n"));
    has_limit(&guest, "infinity");
    guest.start();
    // While it runs.
    machinist(["quota", name, "20M"])
        .ok()
        .stdout_is("")
        .stderr_has(&format!("limited {name} to 20.0M; it takes "));
    has_limit(&guest, &(20 * MIB).to_string());
    let number = number_of(&guest);
    assert_eq!(
        limits_of_btrfs(),
        [(format!("0/{number}"), 20 * MIB), (format!("255/{number}"), 20 * MIB)]
    );
    machinist(["quota", name, "20M"])
        .ok()
        .stderr_has(&format!("{name} is limited to 20.0M already"));
    let refused = fill(&guest, "/root/big");
    assert!(refused.contains("Disk quota exceeded"), "{refused}");
    let row = shown(name);
    assert_eq!((&row["limit"], &row["kept_by"]), (&json!(20 * MIB), &json!("btrfs")));
    // btrfs counts when it writes, which may be between the two.
    let of_machined_now: u64 = of_machined(&guest, "Usage").parse().unwrap();
    let used = row["used"].as_u64().unwrap();
    assert!(used.abs_diff(of_machined_now) < MIB, "{row}, {of_machined_now}");
    assert!(used > 15 * MIB, "{row}");
    machinist(["status", name, "-n0"]).ok().stdout_has("(limit 20.0M)");
    let images = machinist(["images", "--json"]).ok().json();
    assert_eq!(images[0]["limit"], json!(20 * MIB));
    let list = machinist(["list", "--columns", "disk,disk_limit", "--json"])
        .ok()
        .json();
    assert_eq!(list[0]["disk_limit"], json!(20 * MIB));
    assert!(list[0]["disk"].as_u64().expect("a number") > 15 * MIB, "{list}");

    // More is let go at once.
    let more = machinist(["quota", name, "40M", "--json"]).ok().json();
    assert_eq!(
        (&more[0]["result"], &more[0]["limit"]),
        (&json!("limited"), &json!(40 * MIB))
    );
    let refused = fill(&guest, "/root/more");
    assert!(refused.contains("Disk quota exceeded"), "{refused}");
    // What machinectl does is seen.
    run("machinectl", ["set-limit", name, "60M"]).ok();
    has_limit(&guest, &(60 * MIB).to_string());
    assert_eq!(shown(name)["limit"], json!(60 * MIB));
    machinist(["quota", name, "none"]).ok();
    has_limit(&guest, "infinity");
    assert_eq!(limits_of_btrfs(), []);
    assert_eq!(shown(name)["limit"], Value::Null);
    machinist(["stop", name]).ok();
}

#[test]
fn a_limit_goes_along_with_clone_and_rename_and_not_beyond_remove() {
    let _host = alone();
    let _disk = Disk::btrfs(Path::new(MACHINES));
    count();
    let (guest, clone, renamed) = (Guest::new("qa"), Guest::new("qb"), Guest::new("qc"));
    let name = guest.name.as_str();
    machinist(["create", name, "template:busybox", "--network", "host"]).ok();
    machinist(["quota", name, "15M"]).ok();
    // A machine that takes all it may can be cloned.
    sh(
        "dd if=/dev/zero of=\"$1/root/big\" bs=1M count=50 2>/dev/null || sync -f \"$1\"",
        [guest.image()],
    )
    .ok();
    machinist(["clone", name, &clone.name, "--dry-run"])
        .ok()
        .stdout_has("limit what it takes of the disk to 15.0M\n");
    machinist(["clone", name, &clone.name]).ok();
    has_limit(&clone, &(15 * MIB).to_string());
    let of_clone = format!("0/{}", number_of(&clone));
    assert!(limits_of_btrfs().contains(&(of_clone.clone(), 15 * MIB)));
    // Each counts for itself.
    machinist(["quota", &clone.name, "18M"]).ok();
    has_limit(&guest, &(15 * MIB).to_string());
    clone.start();
    let refused = fill(&clone, "/root/more");
    assert!(refused.contains("Disk quota exceeded"), "{refused}");
    machinist(["terminate", &clone.name]).ok();
    // Its host name is to be written; nothing is left of the attempt.
    machinist(["rename", &clone.name, &renamed.name])
        .status(1)
        .stderr_has("Disk quota exceeded")
        .stderr_has("hint: a machine takes all of the disk that it may: see `machinist quota`");
    assert!(!renamed.image().exists() && clone.image().exists());
    fs::remove_file(clone.image().join("root/big")).unwrap();
    sh("sync -f \"$1\"", [MACHINES]).ok();
    machinist(["rename", &clone.name, &renamed.name]).ok();
    has_limit(&renamed, &(18 * MIB).to_string());

    machinist(["remove", "--yes", &renamed.name, name]).ok();
    // Older kernels keep the groups of subvolumes that are still being deleted.
    run("btrfs", ["subvolume", "sync", MACHINES]).ok();
    let left = limits_of_btrfs();
    assert!(!left.iter().any(|(group, _)| group.starts_with("255/")), "{left:?}");
}

#[test]
fn what_is_no_subvolume_or_lies_in_one_is_told_of() {
    let _host = alone();
    let _disk = Disk::btrfs(Path::new(MACHINES));
    count();
    let (plain, outer) = (Guest::busybox("qplain"), Guest::new("qouter"));
    machinist(["quota", &plain.name, "20M"]).status(1).fails_with(
        &format!(
            "cannot limit the image of machine '{}': its image on btrfs is a directory, and only subvolumes have quotas there",
            plain.name
        ),
        &format!("`machinist clone {} NEW`", plain.name),
    );
    // The hint is right.
    machinist(["clone", &plain.name, &outer.name]).ok();
    machinist(["quota", &outer.name, "20M"]).ok().lacks("warning");
    run(
        "btrfs",
        [
            "-q",
            "subvolume",
            "create",
            &outer.image().join("inner").to_string_lossy(),
        ],
    )
    .ok();
    machinist(["quota", &outer.name, "30M"])
        .ok()
        .stderr_has("what is in subvolumes inside of it is not counted: inner\n");
    // Several at once: one that cannot be does not keep the other from it.
    machinist(["quota", &plain.name, &outer.name, "40M"]).status(1);
    has_limit(&outer, &(40 * MIB).to_string());
    let rows = machinist(["quota", "--json"]).ok().json();
    let rows = rows.as_array().expect("rows");
    assert_eq!(rows.len(), 2);
    let of = |guest: &Guest| {
        rows.iter()
            .find(|row| row["machine"] == guest.name.as_str())
            .expect("a row")
    };
    assert_eq!(of(&outer)["limit"], json!(40 * MIB));
    assert_eq!(
        (&of(&plain)["limit"], &of(&plain)["kept_by"]),
        (&Value::Null, &Value::Null)
    );
    assert!(of(&plain)["reason"].is_string());
}

/// What is mounted on the directory of machines.
fn device() -> String {
    let said = run("findmnt", ["-no", "SOURCE", MACHINES]).ok().stdout;
    said.trim_end().to_owned()
}
