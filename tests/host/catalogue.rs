//! Images of a catalogue in linuxcontainers.org's layout, from a server on loopback.

use std::fs;

use serde_json::{Value, json};

use crate::disk::{make, work_with_tree};
use crate::download::{archive, served};
use crate::sources::{ANOTHER, is_nowhere, sum_of};
use crate::support::{Guest, There, agree, machinist, run, sh, shared};
use crate::trust::Keys;
use crate::web::{Page, Web};

/// Debian's name of this host's processor.
fn arch() -> String {
    run("dpkg", ["--print-architecture"]).ok().stdout.trim().to_owned()
}

/// A product, whose newest version has no archive yet.
fn product(names: &str, release: &str, arch: &str, sum: &str) -> (String, Value) {
    let path = format!("images/{release}/{arch}");
    let item = |version: &str, ftype: &str, name: &str| json!({ "ftype": ftype, "path": format!("{path}/{version}/{name}"), "sha256": sum, "size": 4711 });
    let versions = json!({
        "20240101_05:24": { "items": { "root.tar.xz": item("20240101_05:24", "root.tar.xz", "old.tar.xz") } },
        "20240102_05:24": { "items": {
            "incus.tar.xz": item("20240102_05:24", "incus.tar.xz", "incus.tar.xz"),
            "root.squashfs": item("20240102_05:24", "squashfs", "rootfs.squashfs"),
            "root.tar.xz": item("20240102_05:24", "root.tar.xz", "rootfs.tar.xz"),
        } },
    });
    let (os, _) = names.split_once('/').unwrap();
    let product = json!({
        "aliases": names, "arch": arch, "os": os, "release": release, "release_title": release,
        "requirements": {}, "variant": "default", "versions": versions,
    });
    (format!("{os}:{release}:{arch}:default"), product)
}

/// Index and list, as they are.
fn documents(products: &[(String, Value)]) -> (String, String) {
    let products: serde_json::Map<String, Value> = products.iter().cloned().collect();
    let entry = json!({
        "datatype": "image-downloads", "path": "streams/v1/images.json", "format": "products:1.0",
        "products": products.keys().collect::<Vec<_>>(),
    });
    let index = json!({ "format": "index:1.0", "index": { "images": entry } });
    let list = json!({ "content_id": "images", "datatype": "image-downloads", "format": "products:1.0", "products": products });
    (index.to_string(), list.to_string())
}

fn put(web: &Web, path: &str, body: impl Into<Vec<u8>>) {
    web.put(&format!("/root/{path}"), Page::new(body));
}

#[test]
fn an_image_of_a_catalogue_becomes_a_machine() {
    let _host = shared();
    let (_work, web, file) = served();
    let (arch, sum, server) = (arch(), sum_of(&file), web.url("/root"));
    let (index, list) = documents(&[
        product("tiny/two/default,tiny/two,tiny/2/default,tiny/2", "two", &arch, &sum),
        product("tiny/one/default,tiny/one,tiny/1/default,tiny/1", "one", &arch, ANOTHER),
        product("tiny/three/default,tiny/three,tiny/3", "three", "riscv64", &sum),
    ]);
    put(&web, "streams/v1/index.json", index.clone());
    put(&web, "streams/v1/images.json", list.clone());
    let path = format!("/root/images/two/{arch}/20240102_05:24/rootfs.tar.xz");
    web.put(&path, archive(&file));
    web.put(
        &format!("/root/images/one/{arch}/20240102_05:24/rootfs.tar.xz"),
        archive(&file),
    );
    let remote = |words: &[&str]| machinist([&["images", "--remote", "--server", &server], words].concat());
    let names = |words: &[&str]| {
        let rows = remote(&[words, &["--json"]].concat()).ok().json();
        rows.as_array()
            .unwrap()
            .iter()
            .map(|row| row["name"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&[]), ["tiny/1", "tiny/2"]);
    assert_eq!(names(&["two"]), ["tiny/2"]);
    assert_eq!(names(&["*/3", "--arch=all"]), ["tiny/3"]);
    remote(&["tiny/2"])
        .ok()
        .stdout_has("tiny/2")
        .stdout_has("20240102_05:24")
        .stdout_has("root.tar.xz")
        .stdout_has("4.6K");
    // Everybody may look.
    let nobody = "exec setpriv --reuid=65534 --clear-groups machinist images --remote --server \"$1\" --no-legend";
    sh(nobody, [&server]).ok().stdout_has("tiny/1");
    let guest = Guest::new("img");
    let create = |name: &str, words: &[&str]| {
        let source = format!("images:{name}");
        machinist([&["create", &guest.name, &source, "--server", &server], words].concat())
    };
    create("tiny/2", &["--dry-run"])
        .ok()
        .stdout_has(&format!("ask catalogue '{server}' for image 'tiny/2' for {arch}"));
    // What is wrong leaves nothing, and says what would be right.
    create("tiny/4", &[]).status(1).fails_with(
        &format!("catalogue '{server}' has no image 'tiny/4' for {arch}"),
        "like it are tiny/1, tiny/2",
    );
    create("tiny/3", &[])
        .status(1)
        .stderr_has("it is there for riscv64: `--arch riscv64`");
    create("tiny/1", &[])
        .status(1)
        .stderr_has(&format!("/streams/v1/images.json' says {ANOTHER}"));
    create("tiny/2", &["--sha256", ANOTHER])
        .status(1)
        .stderr_has(&format!("and --sha256 says {ANOTHER}"));
    create("tiny/2", &["--verify=no"])
        .status(2)
        .stderr_has("always compared");
    create("tiny/../2", &[]).status(2).stderr_has("does not name an image");
    machinist(["create", &guest.name, "template:busybox", "--server", &server]).status(2);
    is_nowhere(&guest);
    create("tiny", &["--start"])
        .ok()
        .stderr_has("found tiny/2 of 20240102_05:24")
        .stderr_has("its SHA-256 sum is the one of 'http://127.0.0.1:")
        .stderr_has("anybody on the way may have changed both");
    agree(&guest.name, There::Running);
    // The second time its file is there, and is not asked for.
    web.asked();
    let second = Guest::new("img");
    machinist(["create", &second.name, "images:TINY/two", "--server", &server])
        .ok()
        .stderr_has("using the download of rootfs.tar.xz that is kept");
    agree(&second.name, There::Stopped);
    assert!(!web.asked().iter().any(|asked| asked.starts_with(&path)));
    is_signed_if_it_has_to_be(&web, &server, &index, &list);
}

#[test]
fn a_squashfs_image_of_a_catalogue_becomes_a_machine() {
    let _host = shared();
    let (work, web) = (work_with_tree(), Web::new());
    make(
        &work,
        "mksquashfs tree rootfs.squashfs -quiet -no-progress -comp gzip >/dev/null",
    );
    let (arch, file, server) = (arch(), work.file("rootfs.squashfs"), web.url("/root"));
    let bare = |name: &str, sum: &str| {
        let (id, mut product) = product(&format!("{name},{name}/default"), "one", &arch, sum);
        let items = &mut product["versions"]["20240102_05:24"]["items"];
        let mut delta = items.as_object_mut().unwrap().remove("root.tar.xz").unwrap();
        delta["ftype"] = json!("squashfs.vcdiff");
        items["delta-20240101_05:24.vcdiff"] = delta;
        (format!("{id}{name}"), product)
    };
    let (index, list) = documents(&[bare("tiny/1", &sum_of(&file)), bare("tiny/2", ANOTHER)]);
    put(&web, "streams/v1/index.json", index);
    put(&web, "streams/v1/images.json", list);
    let body = fs::read(&file).unwrap();
    put(&web, &format!("images/one/{arch}/20240102_05:24/rootfs.squashfs"), body);
    machinist(["images", "--remote", "--server", &server, "tiny/1", "--no-legend"])
        .ok()
        .stdout_has("squashfs")
        .stdout_has("20240102_05:24");
    let guest = Guest::new("img");
    let create = |name: &str, words: &[&str]| {
        let source = format!("images:{name}");
        machinist([&["create", &guest.name, &source, "--server", &server], words].concat())
    };
    create("tiny/2", &[]).status(1).stderr_has(&format!("says {ANOTHER}"));
    create("tiny/1", &["--subtree", "opt"])
        .status(1)
        .stderr_has("--strip and --subtree are for tar archives");
    create("tiny/1", &["--max-size", "1M"])
        .status(1)
        .stderr_has("disk image 'rootfs.squashfs' takes more than 1.0M");
    is_nowhere(&guest);
    create("tiny/1", &["--start"])
        .ok()
        .stderr_has("its SHA-256 sum is the one of 'http://127.0.0.1:");
    agree(&guest.name, There::Running);
    assert!(guest.image().join("opt/one").is_file());
}

/// A key for the server: the catalogue has to be signed, as Ubuntu's is.
fn is_signed_if_it_has_to_be(web: &Web, server: &str, index: &str, list: &str) {
    let (keys, guest) = (Keys::new(), Guest::new("img"));
    let alice = keys.make("alice", &[]);
    let create = || {
        machinist([
            "create",
            &guest.name,
            "images:tiny/2",
            "--server",
            server,
            "--keyring",
            &alice,
        ])
    };
    create().status(1).stderr_has("streams/v1/index.sjson', and a key of");
    is_nowhere(&guest);
    let document = keys.work.file("document");
    for (path, text) in [("index", index), ("images", list)] {
        fs::write(&document, text).unwrap();
        put(
            web,
            &format!("streams/v1/{path}.sjson"),
            keys.sign("alice", &["--clear-sign"], &document),
        );
    }
    create()
        .ok()
        .stderr_has("images.sjson', signed by alice <alice@example.org> (")
        .lacks("anybody on the way");
    agree(&guest.name, There::Stopped);
}
