//! Catalogues on a server that lies, and one that does not.

use tempfile::TempDir;

use super::*;
use crate::sources::trust::Keyring;
use crate::sources::trust::write_pin;
use crate::sources::web::{Page, Web};

/// Of "data\n".
const SUM: &str = "6667b2d1aab6a00caa5aee5af8ad9f1465e567abf1c209d15727d57b3e8f6e5f";
const INDEX: &str = r#"{"index": {"images": {"datatype": "image-downloads", "path": "streams/v1/images.json"}}}"#;

struct Scene {
    dir: TempDir,
    web: Web,
    places: Places,
    options: Options,
}

fn list(path: &str) -> String {
    list_of(path, &["root.tar.xz"])
}

/// The same with files of these kinds.
fn list_of(path: &str, kinds: &[&str]) -> String {
    let item =
        |kind: &&str| format!(r#""{kind}": {{"ftype": "{kind}", "path": "{path}", "sha256": "{SUM}", "size": 5}}"#);
    let items: Vec<String> = kinds.iter().map(item).collect();
    let version = format!(r#"{{"items": {{{}}}}}"#, items.join(","));
    let product = format!(
        r#"{{"aliases": "debian/13,debian/trixie", "os": "Debian", "arch": "{}", "versions": {{"2024": {version}}}}}"#,
        bootstrap::host_arch()
    );
    format!(r#"{{"products": {{"x": {product}}}}}"#)
}

impl Scene {
    fn new() -> Self {
        let (dir, web) = (tempfile::tempdir().unwrap(), Web::new());
        let scene = Self {
            places: Places {
                cache: dir.path().join("cache"),
                keys: dir.path().join("keys"),
                ..Places::default()
            },
            options: Options {
                catalogue: CatalogueOptions {
                    server: Some(web.url("/root/")),
                    arch: None,
                },
                ..Options::default()
            },
            dir,
            web,
        };
        scene.put("streams/v1/index.json", INDEX);
        scene.put("streams/v1/images.json", &list("images/a.tar.xz"));
        scene
    }

    fn put(&self, path: &str, body: &str) {
        self.web.put(&format!("/root/{path}"), Page::new(body));
    }

    fn find(&self, name: &str) -> Result<Found, String> {
        let name: ImageName = name.parse().unwrap();
        find(&name, &self.options, &self.places, &(), &Cancel::default()).map_err(|error| error.to_string())
    }

    fn refused(&self) -> String {
        self.find("debian/13").map(|found| found.url).unwrap_err()
    }
}

#[test]
fn an_image_is_found_with_its_sum() {
    let scene = Scene::new();
    let found = scene.find("debian/trixie").unwrap();
    assert_eq!(found.url.to_string(), scene.web.url("/root/images/a.tar.xz"));
    let demand = found.demand;
    assert_eq!(
        (demand.digest.hex().as_str(), demand.safe, demand.signed),
        (SUM, false, false)
    );
    assert!(demand.by.ends_with("/root/streams/v1/images.json'"), "{}", demand.by);
    assert!(
        scene
            .find("debian/12")
            .map(drop)
            .unwrap_err()
            .contains("has no image 'debian/12' for")
    );
    let steps = plan(&"debian/13".parse().unwrap(), &scene.options, &scene.places).unwrap();
    assert!(steps[0].starts_with("ask catalogue 'http://127.0.0.1"), "{steps:?}");
}

#[test]
fn a_squashfs_image_is_taken_where_there_is_no_archive() {
    let mut scene = Scene::new();
    for (kinds, taken) in [
        (&["lxd.tar.xz", "squashfs"][..], Some(true)),
        (&["root.squashfs", "squashfs.vcdiff"], Some(true)),
        (&["squashfs", "root.tar.xz", "disk-kvm.img"], Some(false)),
        (&["root.tar.xz", "squashfs"], Some(false)),
        (&["squashfs.vcdiff", "disk-kvm.img", "lxd.tar.xz"], None),
    ] {
        scene.put("streams/v1/images.json", &list_of("images/a", kinds));
        let found = scene.find("debian/13");
        assert_eq!(found.as_ref().ok().map(|found| found.is_squashfs), taken, "{kinds:?}");
        if let Err(error) = found {
            assert!(
                error.contains("it has squashfs.vcdiff, disk-kvm.img, lxd.tar.xz"),
                "{error}"
            );
        }
    }
    scene.put("streams/v1/images.json", &list_of("images/a", &["squashfs"]));
    scene.options.archive.part.strip = 1;
    assert!(scene.refused().contains("--strip and --subtree are for tar archives"));
}

#[test]
fn a_catalogue_that_lies_leads_nowhere() {
    let scene = Scene::new();
    for path in ["../a.tar", "images/../../a", "a b", "a?b", "a#b", "ü", "//h/a/../b"] {
        scene.put("streams/v1/images.json", &list(path));
        assert!(scene.refused().contains("is no path below it"), "{path}");
    }
    // It is another server's only in its own words.
    for path in [
        "https://evil.example/a.tar",
        "//evil.example/a.tar",
        "@evil.example/a.tar",
    ] {
        scene.put("streams/v1/images.json", &list(path));
        let url = scene.find("debian/13").unwrap().url.to_string();
        assert!(url.starts_with(&scene.web.url("/root/")), "{url}");
    }
    scene.put("streams/v1/images.json", "<html>");
    assert!(
        scene
            .refused()
            .contains("images.json' is no catalogue of images: expected value")
    );
    let page = Page::new(vec![b' '; usize::try_from(LIST_MAX).unwrap() + 1]);
    scene.web.put("/root/streams/v1/images.json", page);
    assert!(scene.refused().contains("it has more than"));
    scene.put("streams/v1/index.json", "{}");
    assert!(
        scene
            .refused()
            .contains("index.json' is no catalogue of images: missing field")
    );
    let page = Page {
        status: Some(404),
        ..Page::default()
    };
    scene.web.put("/root/streams/v1/index.json", page);
    assert!(scene.refused().contains("is it a catalogue"));
}

#[test]
fn a_catalogue_that_should_be_signed_is() {
    let scene = Scene::new();
    std::fs::create_dir(&scene.places.keys).unwrap();
    let alice = Keyring::read(std::path::Path::new("src/sources/trust/fixtures/alice.asc")).unwrap();
    write_pin(&scene.places.keys, &scene.web.url("/").parse().unwrap(), &alice, None).unwrap();
    let refused = scene.refused();
    assert!(
        refused.contains("there is no 'http") && refused.contains("index.sjson'"),
        "{refused}"
    );
    scene.put("streams/v1/index.sjson", INDEX);
    assert!(
        scene
            .refused()
            .contains("index.sjson' is no signature: it is not signed")
    );
    let list = include_str!("../trust/fixtures/list.clear");
    scene.put("streams/v1/index.sjson", &list.replace("three", "four"));
    assert!(scene.refused().contains("was made over something else"));
    // Signed, and something else.
    scene.put("streams/v1/index.sjson", list);
    assert!(scene.refused().contains("index.sjson' is no catalogue of images"));
    drop(scene.dir);
}
