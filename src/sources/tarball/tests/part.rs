//! A part of an archive as a root, and sums.

use super::*;

const ANOTHER: &str = "0000000000000000000000000000000000000000000000000000000000000000";

fn wanted(strip: usize, subtree: Option<&str>) -> Wanted {
    let subtree = subtree.map(|text| text.parse().unwrap());
    Wanted {
        part: Part { strip, subtree },
        ..Wanted::default()
    }
}

fn nested() -> Archive {
    Archive::default()
        .file("README", "left out")
        .directory("img/")
        .add_with_mode("img/rootfs/", 0o751)
        .file("img/rootfs/etc/hostname", "web")
        .hard_link("img/rootfs/etc/twin", "./img/rootfs//etc/hostname")
        .symlink("img/rootfs/etc/link", "../etc/hostname")
        .file("img/rootfs-old/etc/hostname", "old")
        .file("img/meta", "left out")
}

#[test]
fn a_part_becomes_the_root() {
    for wanted in [wanted(0, Some("img/rootfs")), wanted(1, Some("/rootfs/"))] {
        let scene = Scene::new();
        let done = scene.extract_part(&nested().end(), &wanted).unwrap();
        assert_eq!(done.entries, 4, "{wanted:?}");
        assert_eq!(
            (scene.read("etc/twin"), scene.read("etc/link")),
            ("web".into(), "web".into())
        );
        assert_eq!(fs::metadata(scene.target.join("etc/twin")).unwrap().nlink(), 2);
        assert_eq!(fs::metadata(&scene.target).unwrap().mode() & 0o777, 0o751);
        assert_eq!(fs::read_dir(&scene.target).unwrap().count(), 1);
    }
    let scene = Scene::new();
    scene.extract_part(&nested().end(), &wanted(1, None)).unwrap();
    assert_eq!(scene.read("rootfs/etc/twin"), "web");
    assert!(!scene.target.join("README").exists() && scene.target.join("meta").exists());
    // Directories of several archives in one: all of them, as tar does.
    let scene = Scene::new();
    scene.extract_part(&nested().end(), &wanted(2, None)).unwrap();
    assert_eq!(scene.read("etc/hostname"), "old");
}

#[test]
fn what_is_taken_off_a_name_does_not_hide_where_it_leads() {
    let refused = |archive: Archive, wanted: &Wanted| {
        let error = Scene::new().extract_part(&archive.end(), wanted).unwrap_err();
        error.to_string()
    };
    let strip = wanted(1, None);
    for name in [
        "../etc/passwd",
        "a/../../etc/passwd",
        "/a/etc/passwd",
        "img/../x/../../etc",
    ] {
        let said = refused(Archive::default().file(name, "bad"), &strip);
        assert!(said.contains("outside") || said.contains("absolute"), "{name}: {said}");
        // Also where it would have been left out.
        refused(
            Archive::default().file("b/x", "").file(name, "bad"),
            &wanted(0, Some("b")),
        );
    }
    let out = Archive::default()
        .symlink("a/etc", "../../outside")
        .file("a/etc/passwd", "bad");
    assert!(refused(out, &strip).contains("symbolic link"));
    let link = |target: &str| {
        Archive::default()
            .file("x/f", "")
            .file("a/f", "")
            .hard_link("a/g", target)
    };
    for target in ["../f", "/a/f", "a/../../f"] {
        assert!(refused(link(target), &strip).contains("leads outside"), "{target}");
    }
    let said = refused(link("x/f"), &wanted(0, Some("a")));
    assert_eq!(
        said,
        "archive entry 'a/g' is a hard link to 'x/f', which is in the part of the archive that is left out"
    );
    refused(Archive::default().file("f", "").hard_link("a/g", "f"), &strip);
    // The target of a symbolic link is as it was: it is the guest's.
    let scene = Scene::new();
    let archive = Archive::default().symlink("a/l", "/a/f").end();
    scene.extract_part(&archive, &strip).unwrap();
    assert_eq!(fs::read_link(scene.target.join("l")).unwrap().to_str(), Some("/a/f"));
}

#[test]
fn a_part_that_is_not_there_is_told() {
    for (wanted, part) in [
        (wanted(0, Some("rootfs")), "'rootfs'"),
        (wanted(9, None), "the first 9 directories"),
        // A file is no root.
        (wanted(0, Some("README")), "'README'"),
    ] {
        let error = Scene::new().extract_part(&nested().end(), &wanted).unwrap_err();
        let said = error.to_string();
        assert!(said.ends_with(&format!("has nothing below {part}")), "{said}");
    }
}

#[test]
fn another_archive_is_refused_whatever_it_is() {
    use sha2::Digest as _;
    let archive = nested().end();
    let sum = |bytes: &[u8]| crate::sources::mirror::hex(&sha2::Sha256::digest(bytes));
    let zipped = gzip(&archive);
    for bytes in [
        &archive,
        &zipped,
        &b"<html>".to_vec(),
        &zipped[..zipped.len() - 5].to_vec(),
    ] {
        let demand = |text: &str| Wanted {
            sum: Some(text.parse().unwrap()),
            ..Wanted::default()
        };
        let error = Scene::new()
            .extract_part(bytes, &demand(ANOTHER))
            .unwrap_err()
            .to_string();
        let told = format!("its SHA-256 sum is {}, not {ANOTHER}", sum(bytes));
        assert!(error.contains(&told), "{error}");
        let result = Scene::new().extract_part(bytes, &demand(&sum(bytes)));
        assert_eq!(
            result.is_ok(),
            bytes.len() > 100 && bytes[..] != zipped[..zipped.len() - 5]
        );
    }
}
