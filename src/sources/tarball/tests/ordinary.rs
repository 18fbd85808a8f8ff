//! What real root filesystems have, and where it ends up.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use tar::{EntryType, Header};

use super::*;

#[test]
fn links_within_the_machine_are_followed_as_a_guest_would() {
    let scene = Scene::new();
    let archive = Archive::default()
        .directory("usr")
        .directory("usr/lib")
        .symlink("lib", "usr/lib")
        .file("lib/foo", "merged")
        .symlink("abs", "/usr/lib")
        .file("abs/bar", "absolute")
        .directory("var")
        .symlink("var/up", "../usr")
        .file("var/up/lib/baz", "relative")
        .hard_link("abs/hard", "lib/foo")
        .end();
    assert_eq!(scene.extract(&archive).unwrap().entries, 10);
    assert_eq!(scene.read("usr/lib/foo"), "merged");
    assert_eq!(scene.read("usr/lib/bar"), "absolute");
    assert_eq!(scene.read("usr/lib/baz"), "relative");
    assert_eq!(scene.read("usr/lib/hard"), "merged");
    assert_eq!(fs::read_link(scene.target.join("abs")).unwrap(), Path::new("/usr/lib"));
}

#[test]
fn a_link_changed_later_leads_to_its_new_place() {
    let scene = Scene::new();
    let archive = Archive::default()
        .directory("one")
        .directory("two")
        .symlink("way", "one")
        .file("way/a", "")
        .symlink("way", "two")
        .file("way/b", "")
        .end();
    scene.extract(&archive).unwrap();
    assert!(scene.target.join("one/a").exists());
    assert!(scene.target.join("two/b").exists());
}

#[test]
fn attributes_are_kept_by_number() {
    let mut file = header("su", EntryType::Regular, 2);
    file.set_mode(0o6755);
    if is_root() {
        file.set_uid(33);
        file.set_gid(1234);
    }
    file.set_cksum();
    let mut directory = header("d", EntryType::Directory, 0);
    directory.set_mode(0o1500);
    directory.set_cksum();
    let archive = Archive::default()
        .directory("./")
        .raw(&directory, b"")
        .pax(&[("mtime", b"-1.25")])
        .raw(&file, b"hi")
        .file("d/inside", "made after its directory")
        .symlink("l", "d")
        .hard_link("d/su", "su")
        .end();
    let scene = Scene::new();
    scene.extract(&archive).unwrap();
    let su = fs::symlink_metadata(scene.target.join("su")).unwrap();
    assert_eq!(su.mode() & 0o7777, 0o6755);
    assert_eq!((su.mtime(), su.mtime_nsec(), su.nlink()), (-2, 750_000_000, 2));
    if is_root() {
        assert_eq!((su.uid(), su.gid()), (33, 1234));
    }
    let d = fs::symlink_metadata(scene.target.join("d")).unwrap();
    assert_eq!((d.mode() & 0o7777, d.mtime()), (0o1500, 1_600_000_000));
    assert_eq!(fs::symlink_metadata(&scene.target).unwrap().mtime(), 1_600_000_000);
    assert_eq!(
        fs::symlink_metadata(scene.target.join("l")).unwrap().mtime(),
        1_600_000_000
    );
    fs::set_permissions(scene.target.join("d"), fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn parents_that_no_entry_describes_are_made() {
    let scene = Scene::new();
    scene
        .extract(&Archive::default().file("a/b//./c/f", "x").end())
        .unwrap();
    assert_eq!(scene.read("a/b/c/f"), "x");
    assert_eq!(fs::metadata(scene.target.join("a/b")).unwrap().mode() & 0o7777, 0o755);
}

#[test]
#[allow(clippy::print_stderr, reason = "a skipped test says so")]
fn only_harmless_extended_attributes_are_kept() {
    if !is_root() {
        eprintln!("SKIPPED only_harmless_extended_attributes_are_kept: needs root");
        return;
    }
    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let archive = Archive::default()
        .pax(&[
            ("SCHILY.xattr.user.note", b"two\nlines"),
            ("SCHILY.xattr.security.capability", capability),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.security.selinux", b"unconfined"),
            ("SCHILY.acl.access", b"user::rw-"),
        ])
        .file("f", "data")
        .end();
    let scene = Scene::new();
    assert_eq!(scene.extract(&archive).unwrap().skipped_xattrs, 2);
    let value = |name: &str| {
        let mut buffer = [0; 256];
        rustix::fs::getxattr(scene.target.join("f"), name, &mut buffer[..]).map(|n| buffer[..n].to_vec())
    };
    assert_eq!(value("user.note").unwrap(), b"two\nlines");
    assert_eq!(value("security.capability").unwrap(), capability);
    assert!(value("trusted.overlay.redirect").is_err());
}

#[test]
fn long_names_come_in_both_ways() {
    let long = "d/".repeat(200) + "name";
    let scene = Scene::new();
    let gnu = Archive::default().add("././@LongLink", EntryType::GNULongName, format!("{long}\0").as_bytes());
    let archive = gnu
        .file("short", "gnu")
        .pax(&[("path", (long.clone() + "2").as_bytes())])
        .file("short", "pax")
        .end();
    scene.extract(&archive).unwrap();
    assert_eq!(scene.read(&long), "gnu");
    assert_eq!(scene.read(&(long + "2")), "pax");
    let huge = header("././@LongLink", EntryType::GNULongName, 1 << 30);
    let error = refused(Archive::default().raw(&huge, b""));
    assert_eq!(
        error,
        "archive entry '././@LongLink' has an extended header of 1073741824 bytes"
    );
}

#[test]
fn sparse_files_of_all_formats_have_their_holes() {
    let expected = |scene: &Scene, name: &str| {
        let bytes = fs::read(scene.target.join(name)).unwrap();
        assert_eq!(bytes.len(), 3 << 20, "{name}");
        assert_eq!(&bytes[1 << 20..(1 << 20) + 600], &[b'x'; 600], "{name}");
        assert_eq!(bytes.iter().filter(|byte| **byte != 0).count(), 600, "{name}");
        assert!(
            fs::metadata(scene.target.join(name)).unwrap().blocks() * 512 < 1 << 20,
            "{name}"
        );
    };
    let data = [b'x'; 600];
    let mut map = b"1\n1048576\n600\n".to_vec();
    map.resize(512, 0);
    map.extend(data);
    let mut old = Header::new_gnu();
    old.as_old_mut().name[..3].copy_from_slice(b"old");
    old.set_entry_type(EntryType::GNUSparse);
    old.set_size(600);
    old.set_mode(0o644);
    old.set_mtime(0);
    old.set_uid(geteuid().as_raw().into());
    old.set_gid(getegid().as_raw().into());
    let gnu = old.as_gnu_mut().unwrap();
    gnu.sparse[0].set_offset(1 << 20);
    gnu.sparse[0].set_length(600);
    gnu.set_real_size(3 << 20);
    old.set_cksum();
    let archive = Archive::default()
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"one"),
            ("GNU.sparse.realsize", b"3145728"),
        ])
        .add("GNUSparseFile.0/one", EntryType::Regular, &map)
        .pax(&[
            ("GNU.sparse.name", b"zero"),
            ("GNU.sparse.size", b"3145728"),
            ("GNU.sparse.map", b"1048576,600"),
        ])
        .add("GNUSparseFile.0/zero", EntryType::Regular, &data)
        .raw(&old, &data)
        .file("after", "aligned")
        .end();
    let scene = Scene::new();
    assert_eq!(scene.extract(&archive).unwrap().bytes, 1807);
    for name in ["one", "zero", "old"] {
        expected(&scene, name);
    }
    assert_eq!(scene.read("after"), "aligned");
    let lies = [("GNU.sparse.size", &b"100"[..]), ("GNU.sparse.map", b"1048576,600")];
    let error = refused(Archive::default().pax(&lies).add("s", EntryType::Regular, &data));
    assert_eq!(error, "archive entry 's' has an invalid list of sparse pieces");
}

#[test]
fn large_files_and_many_small_ones_arrive_whole() {
    let mut archive = Archive::default();
    let large: Vec<u8> = (0..5_000_000_u32)
        .map(|i| i.to_le_bytes()[0] ^ i.to_le_bytes()[1])
        .collect();
    for i in 0..600 {
        archive = archive.file(&format!("dir{}/file{i}", i % 200), &format!("contents of {i}"));
    }
    let archive = archive.add("large", EntryType::Regular, &large).end();
    let scene = Scene::new();
    assert_eq!(scene.extract(&archive).unwrap().entries, 601);
    assert!(fs::read(scene.target.join("large")).unwrap() == large);
    for i in 0..600 {
        assert_eq!(
            scene.read(&format!("dir{}/file{i}", i % 200)),
            format!("contents of {i}")
        );
    }
}

#[test]
fn names_that_are_not_utf8_are_kept() {
    let mut header = header("x", EntryType::Regular, 0);
    header.as_old_mut().name[..4].copy_from_slice(b"a\xff\n\x1b");
    header.set_cksum();
    let scene = Scene::new();
    scene.extract(&Archive::default().raw(&header, b"").end()).unwrap();
    assert!(scene.target.join(OsStr::from_bytes(b"a\xff\n\x1b")).exists());
}
