//! read-only and protect: what a machine may not have done to it.

use std::fs;

use serde_json::json;

use crate::support::{Guest, There, agree, machinist, run, shared};

fn is_read_only(name: &str) -> bool {
    let said = run("machinectl", ["show-image", name, "-p", "ReadOnly", "--value"]).ok();
    said.stdout == "yes\n"
}

#[test]
fn a_read_only_image_cannot_be_changed_until_it_is_writable() {
    let _host = shared();
    let guest = Guest::new("ro");
    machinist(["create", &guest.name, "template:busybox"]).ok();
    let raw = Guest::new("ro");
    let file = raw.image().with_file_name(format!("{}.raw", raw.name));
    fs::write(&file, vec![1; 1 << 20]).unwrap();
    let (name, raw) = (guest.name.as_str(), raw.name.as_str());
    machinist(["read-only", name, raw, "on", "--dry-run"])
        .ok()
        .stdout_is(&format!(
            "make image '{name}' read-only\nmake image '{raw}' read-only\n"
        ));
    assert!(!is_read_only(name) && !is_read_only(raw));
    machinist(["read-only", name, raw, "on"])
        .ok()
        .stderr_has(&format!("{name} is read-only\n"))
        .stderr_has(&format!("{raw} is read-only\n"));
    assert!(is_read_only(name) && is_read_only(raw));
    let again = machinist(["read-only", name, "on", "--json"]).ok().json();
    assert_eq!(again, json!([{ "machine": name, "result": "unchanged" }]));

    guest.start();
    guest
        .inside(["touch", "/file"])
        .status(1)
        .stderr_has("Read-only file system");
    machinist(["read-only", name, "off"]).status(1).fails_with(
        &format!("machine '{name}' is running"),
        &format!("machinist stop {name}"),
    );
    assert!(is_read_only(name));
    machinist(["terminate", name]).ok();
    machinist(["read-only", name, raw, "off"])
        .ok()
        .stderr_has(&format!("{name} is writable\n"));
    assert!(!is_read_only(name) && !is_read_only(raw));
    guest.start();
    guest.inside(["touch", "/file"]).ok();
    fs::remove_file(file).unwrap();
}

#[test]
fn what_is_not_there_cannot_be_read_only() {
    let _host = shared();
    let guest = Guest::new("rono");
    let name = guest.name.as_str();
    machinist(["read-only", name, "on"])
        .status(3)
        .fails_with(&format!("no machine or image '{name}'"), "machinist images");
    machinist(["protect", name, "on"])
        .status(3)
        .fails_with(&format!("no machine or image '{name}'"), "machinist images");
    for words in [["read-only", name, "maybe"], ["protect", name, "maybe"]] {
        machinist(words).status(2).stderr_has("possible values: on, off");
    }
}

#[test]
fn a_protected_machine_is_not_removed() {
    let _host = shared();
    let guest = Guest::busybox("prot");
    let name = guest.name.as_str();
    machinist(["protect", name, "on", "--dry-run"])
        .ok()
        .stdout_has("50-machinist-protect.conf");
    assert!(!guest.drop_ins().exists());
    machinist(["protect", name, "on"])
        .ok()
        .stderr_is(&format!("changed {name}\n"));
    assert_eq!(guest.property("NeedDaemonReload"), "no");
    guest.start();
    let refused = format!("machine '{name}' is protected");
    let hint = format!("machinist protect {name} off");
    for words in [
        &["remove", "-y", name][..],
        &["remove", "-y", "--force", name],
        &["remove", "--dry-run", name],
        &["rename", name, "other-name"],
        &["rename", "--dry-run", name, "other-name"],
    ] {
        machinist(words).status(1).fails_with(&refused, &hint);
        agree(name, There::Running);
    }
    machinist(["protect", name, "on"])
        .ok()
        .stderr_is(&format!("{name} has these settings already\n"));
    machinist(["protect", name, "off"]).ok();
    assert!(!guest.drop_ins().exists(), "nothing is left of it");

    // By hand it is a boolean of systemd's; what is none protects.
    for (value, protects) in [("off", false), ("true", true), ("perhaps", true)] {
        guest.write_drop_in(&format!("[X-Machinist]\nProtected={value}\n"));
        let plan = machinist(["remove", "--force", "--dry-run", name]).any();
        assert_eq!(plan.status, i32::from(protects), "{value}: {plan:?}");
    }
    guest.write_drop_in("[X-Machinist]\nProtected=no\n");
    machinist(["remove", "-y", "--force", name]).ok();
    agree(name, There::Nowhere);
}
