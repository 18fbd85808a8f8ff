//! images: they agree with machined and with du.

use std::fs;

use serde_json::Value;

use crate::support::{Guest, machinist, run, shared};

#[track_caller]
fn row(name: &str) -> Value {
    let rows = machinist(["images", "--json", "--filter", &format!("name={name}")])
        .ok()
        .json();
    assert_eq!(rows.as_array().map(Vec::len), Some(1), "{rows}");
    rows[0].clone()
}

fn image_property(name: &str, property: &str) -> String {
    run("machinectl", ["show-image", name, "-p", property, "--value"])
        .ok()
        .stdout
        .trim_end()
        .to_owned()
}

#[test]
fn directories_and_files_are_as_machined_says() {
    let _host = shared();
    let guest = Guest::busybox("img");
    let raw = Guest::new("img");
    fs::write(
        raw.image().with_file_name(format!("{}.raw", raw.name)),
        vec![1; 1 << 20],
    )
    .unwrap();
    // What was tried of all of them by its own verb; a disk image is nothing of the kind.
    let storage = machinist(["storage", "show", "--json"]).ok().json()[0]["storage"].clone();
    for (guest, kind, storage) in [(&guest, "directory", storage), (&raw, "raw", Value::Null)] {
        let row = row(&guest.name);
        let name = &guest.name;
        assert_eq!(
            (row["type"].as_str(), image_property(name, "Type").as_str()),
            (Some(kind), kind)
        );
        assert_eq!(row["storage"], storage);
        assert_eq!(row["ro"], image_property(name, "ReadOnly") == "yes");
        assert_eq!(row["path"], image_property(name, "Path"));
        assert_eq!(row["used_by"], Value::Null);
        let keys: Vec<_> = row.as_object().unwrap().keys().map(String::as_str).collect();
        for key in ["name", "type", "ro", "size", "created", "used_by", "modified", "path"] {
            assert!(keys.contains(&key), "no key {key}: {row}");
        }
    }
    let listed = run("machinectl", ["list-images", "--no-legend"]).ok().stdout;
    assert!(listed.contains(&guest.name) && listed.contains(&raw.name), "{listed}");
    guest.start();
    assert_eq!(row(&guest.name)["used_by"], guest.name.as_str());
}

#[test]
fn a_directory_counts_what_du_counts() {
    let _host = shared();
    let guest = Guest::busybox("size");
    let lib = guest.image().join("usr/lib");
    fs::write(lib.join("data"), vec![7; 5 << 20]).unwrap();
    // Counted once, and as what it takes on disk.
    fs::hard_link(lib.join("data"), lib.join("again")).unwrap();
    fs::File::create(lib.join("sparse")).unwrap().set_len(1 << 30).unwrap();
    run("sync", ["-f", &lib.to_string_lossy()]).ok();
    let image = guest.image();
    let du = run("du", ["-s", "-B1", &image.to_string_lossy()]).ok().stdout;
    let du: u64 = du.split_whitespace().next().unwrap().parse().unwrap();
    assert_eq!(row(&guest.name)["size"].as_u64(), Some(du));
    let table = machinist([
        "images",
        "--filter",
        &format!("name={}", guest.name),
        "--columns",
        "name,size",
    ])
    .ok();
    let tenths = (du * 10) >> 20;
    table
        .stdout_has(&format!("{}.{}M", tenths / 10, tenths % 10))
        .stdout_has("1 image listed.");
}

#[test]
fn read_only_is_shown() {
    let _host = shared();
    let guest = Guest::busybox("roimg");
    assert_eq!(row(&guest.name)["ro"], false);
    run("machinectl", ["read-only", &guest.name, "yes"]).ok();
    assert_eq!(row(&guest.name)["ro"], true);
    run("machinectl", ["read-only", &guest.name, "no"]).ok();
    assert_eq!(row(&guest.name)["ro"], false);
}
