//! Archives that lie, climb, are cut or damaged.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::FileTypeExt as _;
use std::time::Duration;

use proptest::prelude::*;
use tar::EntryType;

use super::*;

#[test]
fn names_that_lead_outside_are_refused() {
    let empty = Archive::default;
    for name in ["../etc/passwd", "a/../../etc/passwd", "..", "a/.."] {
        let expected = format!("archive entry '{name}' leads outside of the machine");
        assert_eq!(refused(empty().file(name, "bad")), expected);
        assert_eq!(refused(empty().directory(name)), expected);
        assert_eq!(refused(empty().symlink(name, "x")), expected);
        assert_eq!(
            refused(empty().pax(&[("path", name.as_bytes())]).file("harmless", "bad")),
            expected
        );
    }
    assert_eq!(
        refused(empty().file("/etc/passwd", "")),
        "archive entry '/etc/passwd' has an absolute path"
    );
    // The root itself, as umoci names it, leads nowhere else.
    for root in ["/", "//", "/./"] {
        let scene = Scene::new();
        assert_eq!(
            scene
                .extract(&empty().directory(root).file("f", "").end())
                .unwrap()
                .entries,
            2
        );
        assert!(scene.target.join("f").is_file());
    }
    assert_eq!(refused(empty().file("", "")), "archive entry '' has no name");
    assert_eq!(refused(empty().file(".", "")), "archive entry '.' has no name");
    let nul = empty().pax(&[("path", b"a\0b")]).file("a", "");
    assert_eq!(refused(nul), "archive entry 'a\\u{0}b' has a NUL byte in its name");
    assert_eq!(
        refused(empty().file("a\x1b[2J/../..", "")),
        "archive entry 'a\\u{1b}[2J/../..' leads outside of the machine"
    );
}

#[test]
fn endless_names_are_refused_and_deep_ones_are_made() {
    let pax = |name: &str| Archive::default().pax(&[("path", name.as_bytes())]);
    let error = refused(pax(&"a/".repeat(20_000)).file("f", ""));
    assert_eq!(
        error,
        format!("archive entry '{}…' has a name of 40000 bytes", "a/".repeat(100))
    );
    let error = refused(pax(&"a/".repeat(2000)).directory("d"));
    assert!(error.ends_with("…' lies 2000 directories deep"), "{error}");
    let target = "b/".repeat(20_000);
    let link = pax("l").pax(&[("linkpath", target.as_bytes())]).hard_link("l", "x");
    assert!(refused(link).len() < 1000);
    // Longer than the kernel takes at once.
    let long = format!("{}/", "n".repeat(200)).repeat(60);
    let scene = Scene::new();
    let archive = pax(&format!("{long}f"))
        .file("f", "")
        .pax(&[("path", format!("{long}g").as_bytes())]);
    assert_eq!(scene.extract(&archive.file("g", "").end()).unwrap().entries, 2);
    // Through links, of which one is made by the way.
    let archive = Archive::default()
        .directory("usr")
        .symlink("lib", "usr")
        .file("lib/a/b/c", "x");
    scene.extract(&archive.end()).unwrap();
    assert_eq!(scene.read("usr/a/b/c"), "x");
    crate::sys::files::remove_tree(&scene.target).unwrap();
}

#[test]
fn extended_headers_take_bounded_memory() {
    let many: Vec<(String, Vec<u8>)> = (0..40).map(|i| (format!("key{i}"), vec![b'x'; 60_000])).collect();
    let many: Vec<(&str, &[u8])> = many.iter().map(|(key, value)| (key.as_str(), &value[..])).collect();
    let records = "archive entry 'pax' has too many records in its extended headers";
    let global = many
        .iter()
        .fold(Archive::default(), |archive, record| archive.global(&[*record]));
    assert_eq!(refused(global.file("f", "")), records);
    let tiny = b"5 a=\n".repeat(1 << 20);
    let own = |data: &[u8]| Archive::default().add("pax", EntryType::XHeader, data);
    assert_eq!(refused(own(&tiny).file("f", "")), records);
    let several = (0..5).fold(Archive::default(), |archive, _| archive.pax(&many));
    assert_eq!(refused(several.file("f", "")), records);
    // A later value takes the place of the former.
    let same = (0..40).fold(Archive::default(), |archive, _| archive.global(&many[..1]));
    Scene::new().extract(&same.file("f", "").end()).unwrap();
    let huge = vec![b'x'; 65_537];
    let huge = Archive::default().pax(&[("SCHILY.xattr.user.a", &huge)]).file("f", "");
    assert_eq!(
        refused(huge),
        "archive entry 'pax' has an extended attribute of 65537 bytes"
    );
}

#[test]
fn attributes_that_directories_wait_for_take_bounded_memory() {
    let value = vec![b'x'; 60_000];
    let records: Vec<_> = (0..15).map(|i| format!("SCHILY.xattr.user.{i}")).collect();
    let records: Vec<_> = records.iter().map(|key| (key.as_str(), &value[..])).collect();
    let archive = (0..200).fold(Archive::default().global(&records), |archive, i| {
        archive.directory(&format!("d{i}"))
    });
    let error = refused(archive);
    assert!(
        error.ends_with("takes names and extended attributes of all directories over 134217728 bytes"),
        "{error}"
    );
    // Time and again the same directory is only one.
    let twice = (0..200).fold(Archive::default().global(&records), |archive, _| archive.directory("d"));
    let twice = twice
        .global(&records.iter().map(|(key, _)| (*key, &b"x"[..])).collect::<Vec<_>>())
        .directory("d");
    Scene::new().extract(&twice.end()).unwrap();
}

#[test]
fn a_fifo_is_waited_for_until_it_is_cancelled() {
    let scene = Scene::new();
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("fifo.tar");
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let archive = Archive::default().file("a", "fed").end();
    // Nobody feeds it; somebody does, and stops in the middle; somebody does, slowly.
    for fed in [0, 700, archive.len()] {
        let cancel = Cancel::default();
        thread::scope(|scope| {
            let extracting = scope.spawn(|| extract(&path, &scene.target, &Wanted::default(), &(), &cancel));
            thread::sleep(Duration::from_millis(100));
            let mut writer = (fed > 0).then(|| fs::File::options().write(true).open(&path).unwrap());
            for piece in archive[..fed].chunks(400) {
                writer.as_mut().unwrap().write_all(piece).unwrap();
                thread::sleep(Duration::from_millis(20));
            }
            assert!(!extracting.is_finished(), "{fed}");
            if fed == archive.len() {
                drop(writer);
                assert_eq!(extracting.join().unwrap().unwrap().entries, 1);
                assert_eq!(scene.read("a"), "fed");
            } else {
                cancel.cancel();
                let result = extracting.join().unwrap();
                assert!(matches!(result, Err(TarballError::Cancelled(_))), "{fed}: {result:?}");
            }
        });
    }
}

#[test]
fn links_on_the_way_stay_inside() {
    let through = "archive entry 'out/etc/passwd' goes through a symbolic link that leads outside of the machine";
    for target in ["..", "../..", "a/../../..", "/..", "/../.."] {
        let archive = Archive::default()
            .directory("a")
            .symlink("out", target)
            .file("out/etc/passwd", "bad");
        assert_eq!(refused(archive), through, "{target}");
    }
    let looped = Archive::default()
        .symlink("a", "b")
        .symlink("b", "a")
        .file("a/x", "bad");
    assert!(refused(looped).starts_with("cannot open directory '"));
    let dangling = Archive::default().symlink("a", "nowhere").file("a/x", "bad");
    assert_eq!(
        refused(dangling),
        "archive entry 'a/x' lies inside of something that is not a directory"
    );
    let file = Archive::default().file("a", "").file("a/x", "bad");
    assert_eq!(
        refused(file),
        "archive entry 'a/x' lies inside of something that is not a directory"
    );
}

#[test]
fn hard_links_stay_inside() {
    for target in ["../etc/passwd", "/etc/passwd", "a/../../etc/passwd"] {
        let expected = format!("archive entry 'x' is a hard link to '{target}', which leads outside of the machine");
        assert_eq!(refused(Archive::default().hard_link("x", target)), expected);
    }
    let through = Archive::default().symlink("out", "..").hard_link("x", "out/etc/passwd");
    assert!(refused(through).ends_with("which leads outside of the machine"));
    // linkat(2) takes the link itself.
    let scene = Scene::new();
    let archive = Archive::default()
        .symlink("l", "../etc/passwd")
        .hard_link("x", "l")
        .end();
    scene.extract(&archive).unwrap();
    assert!(scene.target.join("x").symlink_metadata().unwrap().is_symlink());
    let missing = "archive entry 'x' is a hard link to 'y', which no earlier entry has made";
    assert_eq!(refused(Archive::default().hard_link("x", "y")), missing);
    assert_eq!(
        refused(Archive::default().hard_link("x", "x")),
        missing.replace("'y'", "'x'")
    );
    let directory = Archive::default().directory("d").hard_link("x", "d");
    assert_eq!(
        refused(directory),
        "archive entry 'x' is a hard link to 'd', which is a directory"
    );
    let scene = Scene::new();
    scene
        .extract(&Archive::default().file("x", "kept").hard_link("x", "x").end())
        .unwrap();
    assert_eq!(scene.read("x"), "kept");
}

#[test]
fn a_later_entry_wins_but_never_over_a_directory() {
    let scene = Scene::new();
    let archive = Archive::default()
        .symlink("passwd", "../etc/passwd")
        .file("passwd", "mine")
        .file("twice", "one, longer")
        .file("twice", "two")
        .symlink("d", "../etc")
        .directory("d")
        .file("d/new", "")
        .end();
    scene.extract(&archive).unwrap();
    assert_eq!(scene.read("passwd"), "mine");
    assert_eq!(scene.read("twice"), "two");
    assert!(scene.target.join("d").symlink_metadata().unwrap().is_dir());
    let replaced = Archive::default()
        .directory("d")
        .symlink("d", "../etc")
        .file("d/passwd", "");
    assert_eq!(
        refused(replaced),
        "archive entry 'd' would replace a directory by a symbolic link"
    );
    let replaced = Archive::default().file("d/x", "").file("d", "");
    assert_eq!(
        refused(replaced),
        "archive entry 'd' would replace a directory by a regular file"
    );
}

#[test]
fn devices_and_sockets_are_left_out_where_that_is_harmless() {
    let mut socket = header("run/sock", EntryType::Regular, 0);
    socket.set_mode(0o140_755);
    socket.set_cksum();
    let scene = Scene::new();
    let archive = Archive::default()
        .add("./dev/null", EntryType::Char, b"")
        .add("dev/pts/0", EntryType::Char, b"")
        .add("dev/sda", EntryType::Block, b"")
        .raw(&socket, b"")
        .add("fifo", EntryType::Fifo, b"")
        .end();
    let extracted = scene.extract(&archive).unwrap();
    assert_eq!(
        (extracted.entries, extracted.skipped_devices, extracted.skipped_sockets),
        (1, 3, 1)
    );
    assert!(
        fs::symlink_metadata(scene.target.join("fifo"))
            .unwrap()
            .file_type()
            .is_fifo()
    );
    for name in ["root/sda", "devices/sda", "dev"] {
        let expected = format!("archive entry '{name}' is a device node outside of dev/");
        assert_eq!(refused(Archive::default().add(name, EntryType::Block, b"")), expected);
    }
    let unknown = Archive::default().add("x", EntryType::new(b'M'), b"");
    assert_eq!(refused(unknown), "archive entry 'x' has the unsupported type 'M'");
}

#[test]
fn a_cut_archive_is_truncated_wherever_it_is_cut() {
    let whole = Archive::default()
        .pax(&[("mtime", b"1")])
        .file("a", &"x".repeat(1500))
        .directory("d")
        .end();
    let content = whole.len() - 1024;
    for cut in (1..=content)
        .step_by(37)
        .chain([511, 512, 513, 1024, content - 1, content])
    {
        let error = Scene::new().extract(&whole[..cut]).unwrap_err();
        let first_header = cut < 512;
        assert!(
            matches!(error, TarballError::Truncated { .. })
                || first_header && matches!(error, TarballError::NotTar { .. }),
            "{cut}: {error}"
        );
    }
    // One block of zeros is enough, as it is for GNU tar.
    Scene::new().extract(&whole[..content + 512]).unwrap();
    Scene::new().extract(&gzip(&whole)).unwrap();
    let error = Scene::new().extract(&gzip(&whole)[..60]).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("is truncated: it ends inside of its compressed data"),
        "{error}"
    );
}

#[test]
fn what_is_no_sound_archive_says_so() {
    let extract = |bytes: &[u8]| Scene::new().extract(bytes).unwrap_err().to_string();
    assert!(extract(b"").ends_with("' is empty"));
    assert!(extract(b"PK\x03\x04").ends_with("is not a tar archive: it looks like a zip archive"));
    assert!(extract(&[7; 4096]).ends_with("is not a tar archive"));
    let good = Archive::default().file("a", "x");
    let mut damaged = good.clone().file("b", "").end();
    damaged[1024] ^= 1;
    assert!(extract(&damaged).ends_with("is damaged: no valid header at byte 1024"));
    let mut trailing = good.clone().end();
    trailing.resize(8192, 0);
    Scene::new().extract(&trailing).unwrap();
    trailing[5000] = b'!';
    assert!(extract(&trailing).ends_with("goes on after its end marker, at byte 5000"));
    // A header that promises more than there is.
    let lies = header("big", EntryType::Regular, 8 << 30);
    assert!(extract(&Archive::default().raw(&lies, b"x").end()).ends_with("it ends inside of entry 'big'"));
    let negative = Archive::default()
        .pax(&[("size", b"18446744073709551615")])
        .file("n", "");
    assert_eq!(refused(negative), "archive entry 'n' has an invalid size");
    let owner = Archive::default().pax(&[("uid", b"4294967295")]).file("n", "");
    assert_eq!(refused(owner), "archive entry 'n' has an invalid uid");
}

#[test]
fn a_cancelled_run_stops() {
    let scene = Scene::new();
    let path = scene.outside.path().join("archive");
    fs::write(&path, Archive::default().file("a", "x").end()).unwrap();
    let cancel = Cancel::default();
    cancel.cancel();
    assert!(matches!(
        extract(&path, &scene.target, &Wanted::default(), &(), &cancel),
        Err(TarballError::Cancelled(_))
    ));
}

/// Names that meet each other, climb and lead through links.
fn any_name() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec!["a", "b", "c", "..", ".", "etc", "passwd", "target"]);
    (any::<bool>(), prop::collection::vec(part, 1..4))
        .prop_map(|(absolute, parts)| format!("{}{}", if absolute { "/" } else { "" }, parts.join("/")))
}

fn inside_name() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec!["a", "b", "c", "etc", "passwd"]);
    prop::collection::vec(part, 1..4).prop_map(|parts| parts.join("/"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn no_sequence_of_entries_touches_anything_outside(
        entries in prop::collection::vec((0..4_u8, inside_name(), any_name()), 1..12),
    ) {
        let mut archive = Archive::default();
        for (kind, name, target) in &entries {
            archive = match kind {
                0 => archive.file(name, "bad"),
                1 => archive.directory(name),
                2 => archive.symlink(name, target),
                _ => archive.hard_link(name, target),
            };
        }
        // Most sequences fail somewhere; extract() looks at the outside after each.
        let _ = Scene::new().extract(&archive.end());
    }

    #[test]
    fn no_damage_makes_it_panic(at in 0..4000_usize, value in any::<u8>()) {
        let mut bytes = Archive::default()
            .pax(&[("mtime", b"1.5"), ("SCHILY.xattr.user.a", b"b")])
            .file("a/b", "contents")
            .symlink("l", "a")
            .hard_link("l/c", "a/b")
            .end();
        let at = at % bytes.len();
        bytes[at] = value;
        let _ = Scene::new().extract(&bytes);
    }
}

#[test]
fn it_takes_no_more_than_it_may() {
    let limited = |max_size| Wanted {
        max_size: Some(max_size),
        ..Wanted::default()
    };
    let large = "x".repeat(100_000);
    let archive = Archive::default().file("a", &large).file("b", &large).end();
    let error = Scene::new().extract_part(&archive, &limited(150_000)).unwrap_err();
    assert!(error.to_string().ends_with("takes more than 146.4K"), "{error}");
    Scene::new().extract_part(&archive, &limited(300_000)).unwrap();
    // Nothing but names.
    let many = (0..1000).fold(Archive::default(), |archive, number| {
        archive.file(&format!("{number}"), "")
    });
    let error = Scene::new().extract_part(&many.end(), &limited(100_000)).unwrap_err();
    assert!(matches!(error, TarballError::TooLarge { .. }), "{error}");
    // Directories that nothing but a name tells of, and attributes.
    let deep = Archive::default().file(&format!("{}f", "d/".repeat(45)), "");
    assert!(Scene::new().extract_part(&deep.end(), &limited(100_000)).is_err());
    let value = "v".repeat(30_000);
    let attributes = (0..5).fold(Archive::default(), |archive, number| {
        let archive = archive.pax(&[("SCHILY.xattr.user.a", value.as_bytes())]);
        archive.file(&format!("{number}"), "")
    });
    let error = Scene::new()
        .extract_part(&attributes.end(), &limited(20_000))
        .unwrap_err();
    assert!(matches!(error, TarballError::TooLarge { .. }), "{error}");
}
