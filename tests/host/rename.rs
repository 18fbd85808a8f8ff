//! rename: everything that was said of one name is said of the other, or nothing is.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::create::traces;
use crate::support::{Guest, There, agree, machinist, make_busybox_image, newest_entry, run, shared};

pub(crate) fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path.as_ref()).unwrap_or_else(|error| panic!("{}: {error}", path.as_ref().display()))
}

fn secrets(guest: &Guest) -> PathBuf {
    Path::new("/var/lib/machinist/secrets").join(&guest.name)
}

fn is_enabled(guest: &Guest) -> bool {
    run("systemctl", ["is-enabled", &guest.unit()]).any().stdout == "enabled\n"
}

/// A machine of which everything is said, and one that starts after it.
pub(crate) fn known(stem: &str) -> (Guest, Guest) {
    let (guest, after) = (Guest::busybox(stem), Guest::busybox(&format!("{stem}o")));
    let name = guest.name.as_str();
    fs::write(guest.image().join("etc/hostname"), format!("{name}\n")).unwrap();
    guest.write_drop_in("[Service]\nNice=5\n");
    machinist(["limit", name, "tasks=77"]).ok();
    machinist(["label", name, "role=web"]).ok();
    machinist(["config", "set", name, "Exec.User=root"]).ok();
    machinist(["order", &after.name, "--after", name]).ok();
    machinist(["secret", "set", name, "token"]).stdin("s3cret").ok();
    machinist(["enable", name]).ok();
    (guest, after)
}

/// Asserts that all of it is said of this machine, and nothing of the other.
#[track_caller]
pub(crate) fn is_all_of(guest: &Guest, not: &Guest, after: &Guest) {
    agree(&guest.name, There::Stopped);
    agree(&not.name, There::Nowhere);
    assert_eq!(traces(&not.name), Vec::<String>::new());
    assert!(!not.limits()[0].exists() && !secrets(not).exists());
    assert!(is_enabled(guest) && !is_enabled(not));
    assert_eq!(
        (guest.property("TasksMax"), guest.property("Nice")),
        ("77".into(), "5".into())
    );
    assert_ne!(not.property("TasksMax"), "77");
    assert_eq!(guest.property("NeedDaemonReload"), "no");
    assert!(read(guest.settings()).contains("User=root"));
    assert_eq!(read(guest.image().join("etc/hostname")), format!("{}\n", guest.name));
    let order = after.property("After");
    assert!(order.contains(&guest.unit()) && !order.contains(&not.unit()), "{order}");
    assert!(secrets(guest).join("token").exists());
    let own = read(guest.drop_ins().join("50-machinist-secret.conf"));
    assert!(
        own.contains(&format!("/var/lib/machinist/secrets/{}/token", guest.name)),
        "{own}"
    );
}

pub(crate) fn forget(guests: &[&Guest]) {
    for guest in guests {
        let _ = fs::remove_dir_all(secrets(guest));
        let _ = fs::remove_dir_all(Path::new("/var/lib/machinist/history").join(&guest.name));
    }
}

#[test]
fn everything_goes_along() {
    let _host = shared();
    let (guest, after) = known("ren");
    let new = Guest::new("ren2");
    let (name, other) = (guest.name.as_str(), new.name.as_str());
    let steps = machinist(["rename", name, other, "--dry-run"]).ok();
    let rename = format!("rename '/var/lib/machines/{name}' to '/var/lib/machines/{other}'\n");
    assert!(steps.stdout.contains(&rename), "{steps:?}");
    is_all_of(&guest, &new, &after);
    let inode = |guest: &Guest| std::os::unix::fs::MetadataExt::ino(&fs::metadata(guest.image()).unwrap());
    let before = inode(&guest);
    let output = machinist(["rename", name, other, "--json"]).ok();
    let image = format!("/var/lib/machines/{other}");
    let expected = serde_json::json!([{"machine": other, "result": "renamed", "former": name, "path": image}]);
    assert_eq!(output.json(), expected);
    is_all_of(&new, &guest, &after);
    assert_eq!(inode(&new), before, "it is the same image");
    let entry = newest_entry(&[format!("MACHINE={name}"), "MACHINIST_VERB=rename".to_owned()]).unwrap();
    assert_eq!(entry["MACHINIST_RESULT"], "done", "{entry}");
    new.start();
    assert_eq!(new.inside(["cat", "/run/host/credentials/token"]).ok().stdout, "s3cret");
    machinist(["stop", other]).ok();
    machinist(["label", other]).ok().stdout_has("web");
    // What was changed under the old name can be taken back under the new one.
    machinist(["config", "undo", other]).ok();
    assert!(!read(new.settings()).contains("User=root"));
    machinist(["rename", name, other]).status(3);
    forget(&[&guest, &new]);
}

#[test]
fn images_of_every_kind() {
    let _host = shared();
    // A disk image keeps its ending.
    let (raw, raw2) = (Guest::new("rraw"), Guest::new("rraw2"));
    let file = |guest: &Guest| guest.image().with_file_name(format!("{}.raw", guest.name));
    fs::write(file(&raw), vec![0; 1 << 16]).unwrap();
    machinist(["rename", &raw.name, &raw2.name]).ok();
    assert!(file(&raw2).exists() && !file(&raw).exists());
    agree(&raw2.name, There::Stopped);
    // Of a link the link is renamed.
    let (link, link2) = (Guest::new("rlnk"), Guest::new("rlnk2"));
    let tree = PathBuf::from(format!("/root/{}", link.name));
    make_busybox_image(&tree);
    fs::write(tree.join("etc/hostname"), format!("{}\n", link.name)).unwrap();
    symlink(&tree, link.image()).unwrap();
    machinist(["rename", &link.name, &link2.name]).ok();
    assert_eq!(fs::read_link(link2.image()).unwrap(), tree);
    assert_eq!(
        read(tree.join("etc/hostname")),
        format!("{}\n", link.name),
        "what it leads to may be anybody's"
    );
    fs::remove_file(link2.image()).unwrap();
    fs::remove_dir_all(tree).unwrap();
    // Read-only stays so, and settings beside the image stay beside it.
    let (fixed, fixed2) = (Guest::busybox("rro"), Guest::new("rro2"));
    fs::write(fixed.image().join("etc/hostname"), format!("{}\n", fixed.name)).unwrap();
    let beside = |guest: &Guest| guest.image().with_file_name(format!("{}.nspawn", guest.name));
    fs::rename(fixed.settings(), beside(&fixed)).unwrap();
    run("chattr", ["+i", &fixed.image().to_string_lossy()]).ok();
    let read_only = |guest: &Guest| {
        let rows = machinist(["images", "--json"]).ok().json();
        let row = rows
            .as_array()
            .unwrap()
            .iter()
            .find(|row| row["name"] == guest.name.as_str())
            .cloned();
        row.unwrap()["ro"].as_bool().unwrap()
    };
    assert!(read_only(&fixed));
    machinist(["rename", &fixed.name, &fixed2.name]).ok();
    assert!(read_only(&fixed2));
    assert_eq!(read(fixed2.image().join("etc/hostname")), format!("{}\n", fixed2.name));
    assert!(beside(&fixed2).exists() && !beside(&fixed).exists() && !fixed2.settings().exists());
    fs::remove_file(beside(&fixed2)).unwrap();
    run("chattr", ["-i", &fixed2.image().to_string_lossy()]).ok();
}
