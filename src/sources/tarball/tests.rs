//! Hostile and ordinary archives, built header by header.

use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use rustix::process::{getegid, geteuid};
use tar::{EntryType, Header};
use tempfile::TempDir;

use super::*;

/// An archive in the making.
#[derive(Clone, Default)]
struct Archive(Vec<u8>);

impl Archive {
    fn raw(mut self, header: &Header, data: &[u8]) -> Self {
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn add(self, name: &str, kind: EntryType, data: &[u8]) -> Self {
        self.raw(&header(name, kind, data.len()), data)
    }

    fn file(self, name: &str, data: &str) -> Self {
        self.add(name, EntryType::Regular, data.as_bytes())
    }

    fn directory(self, name: &str) -> Self {
        self.add(name, EntryType::Directory, b"")
    }

    fn link(self, name: &str, kind: EntryType, target: &str) -> Self {
        let mut header = header(name, kind, 0);
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        self.raw(&header, b"")
    }

    fn symlink(self, name: &str, target: &str) -> Self {
        self.link(name, EntryType::Symlink, target)
    }

    fn hard_link(self, name: &str, target: &str) -> Self {
        self.link(name, EntryType::Link, target)
    }

    fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let body = key.len() + value.len() + 3;
            let length = (1..8)
                .map(|digits| body + digits)
                .find(|n| n.to_string().len() + body == *n)
                .unwrap();
            data.extend(format!("{length} {key}=").into_bytes());
            data.extend(*value);
            data.push(b'\n');
        }
        self.add("pax", EntryType::XHeader, &data)
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// A header with the name's bytes as they are; the owner is whoever runs the test.
fn header(name: &str, kind: EntryType, size: usize) -> Header {
    let mut header = Header::new_ustar();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_size(size as u64);
    header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
    header.set_uid(geteuid().as_raw().into());
    header.set_gid(getegid().as_raw().into());
    header.set_mtime(1_600_000_000);
    header.set_cksum();
    header
}

/// A target with something valuable beside it.
struct Scene {
    outside: TempDir,
    target: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let outside = tempfile::tempdir().unwrap();
        fs::create_dir(outside.path().join("etc")).unwrap();
        fs::write(outside.path().join("etc/passwd"), "valuable").unwrap();
        let target = outside.path().join("target");
        fs::create_dir(&target).unwrap();
        Self { outside, target }
    }

    fn extract(&self, archive: &[u8]) -> Result<Extracted, TarballError> {
        let path = self.outside.path().join("archive");
        fs::File::create(&path).unwrap().write_all(archive).unwrap();
        let result = extract(&path, &self.target, &(), &Cancel::default());
        fs::remove_file(&path).unwrap();
        self.assert_untouched();
        result
    }

    fn assert_untouched(&self) {
        let mut names: Vec<_> = self
            .outside
            .path()
            .read_dir()
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["etc", "target"]);
        let inside: Vec<_> = self
            .outside
            .path()
            .join("etc")
            .read_dir()
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(inside, ["passwd"]);
        let passwd = self.outside.path().join("etc/passwd");
        assert_eq!(fs::read_to_string(&passwd).unwrap(), "valuable");
        assert_eq!(fs::metadata(&passwd).unwrap().nlink(), 1);
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.target.join(name)).unwrap()
    }
}

fn refused(archive: Archive) -> String {
    Scene::new().extract(&archive.end()).unwrap_err().to_string()
}

fn is_root() -> bool {
    geteuid().is_root()
}

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
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
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
fn a_cancelled_run_stops() {
    let scene = Scene::new();
    let path = scene.outside.path().join("archive");
    fs::write(&path, Archive::default().file("a", "x").end()).unwrap();
    let cancel = Cancel::default();
    cancel.cancel();
    assert!(matches!(
        extract(&path, &scene.target, &(), &cancel),
        Err(TarballError::Cancelled(_))
    ));
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
