//! quota: bad input, and filesystems that keep no quotas. What keeps them is in `quota.rs` and `tests/host/vm`.

use std::fs::{self, File};
use std::path::Path;

use serde_json::Value;

use crate::support::{Disk, Guest, MACHINES, alone, machinist, run, shared};

#[test]
fn what_is_no_size_is_refused() {
    let _host = shared();
    let guest = Guest::busybox("qbad");
    let name = guest.name.as_str();
    for (size, why) in [
        ("0", "zero would leave nothing to run with; `none` is no limit"),
        ("10X", "expected bytes such as 10G, or none"),
        ("50%", "expected bytes such as 10G, or none"),
        ("100K", "it is too small: at least 1M"),
        ("9E", "it is too big: at most 8191P"),
        ("", "expected bytes such as 10G, or none"),
    ] {
        machinist(["quota", name, size]).status(2).fails_with(
            &format!("'{size}' is no size: {why}"),
            "if it is a machine, name it first",
        );
    }
    machinist(["quota", name, "--dry-run"]).status(2);
    machinist(["quota", name, "--columns", "nothing"]).status(2);
    // The only word is a name, and so is what is none of a size.
    machinist(["quota", "10G"]).status(3);
    machinist(["quota", "nobody-here", "10G"]).status(3);
    machinist(["quota", "nobody-*", "10G"]).status(3);
    machinist(["quota", name, "nobody-here"]).status(1);
}

#[test]
fn a_filesystem_without_quotas_says_what_it_needs() {
    let _host = alone();
    let guest = Guest::new("qoff");
    let name = guest.name.as_str();
    let cannot = |why: &str| format!("cannot limit the image of machine '{name}': {why}");
    {
        let _ext4 = Disk::ext4(Path::new(MACHINES), "40M");
        machinist(["create", name, "template:busybox"]).ok();
        let device = run("findmnt", ["-no", "SOURCE", MACHINES]).ok().stdout;
        let device = device.trim_end();
        machinist(["quota", name, "20M"]).status(1).fails_with(
            &cannot(&format!("ext4 on {device} keeps no quotas of projects")),
            &format!("`tune2fs -O project,quota -Q prjquota {device}`"),
        );
        machinist(["quota", name, "20M", "--dry-run"]).status(1);
        // Nothing was put into a project.
        let listed = run("lsattr", ["-pd", &guest.image().to_string_lossy()]).ok();
        listed.stdout_has("    0 ").lacks("P-");
        machinist(["quota", name, "none"])
            .ok()
            .stderr_has(&format!("{name} has no limit\n"));
        let row = machinist(["quota", name, "--json"]).ok();
        let row = row.stderr_has("keeps no quotas of projects").json()[0].clone();
        assert_eq!(
            (&row["limit"], &row["used"], &row["kept_by"]),
            (&Value::Null, &Value::Null, &Value::Null)
        );
        machinist(["quota"]).ok().stderr_is("");
        // As systemd makes that directory.
        run("chmod", ["0700", MACHINES]).ok();
        for words in [vec!["quota", name], vec!["quota", name, "20M"]] {
            let mut call = vec!["-u", "tester", "machinist"];
            call.extend(words);
            run("runuser", call).status(4).stderr_has("quota needs root");
        }
        machinist(["remove", "--yes", name]).ok();
    }
    {
        run("mount", ["-t", "tmpfs", "tmpfs", MACHINES]).ok();
        machinist(["create", name, "template:busybox"]).ok();
        let refused = machinist(["quota", name, "20M"]).any();
        machinist(["remove", "--yes", name]).ok();
        run("umount", [MACHINES]).ok();
        refused.fails_with(
            &cannot("tmpfs on tmpfs keeps no quotas of projects"),
            "on btrfs with quotas",
        );
    }
}

#[test]
fn a_disk_image_has_its_size() {
    let _host = shared();
    let guest = Guest::new("qraw");
    let file = Path::new(MACHINES).join(format!("{}.raw", guest.name));
    let image = File::create(&file).and_then(|image| image.set_len(8 << 20));
    image.unwrap();
    machinist(["quota", &guest.name, "20M"]).status(1).fails_with(
        &format!(
            "cannot limit the image of machine '{}': a disk image takes no more than its own size",
            guest.name
        ),
        "systemd-repart(8)",
    );
    let row = machinist(["quota", &guest.name, "--json"]).ok().json();
    assert_eq!(row[0]["limit"], 8 << 20);
    fs::remove_file(file).unwrap();
}
