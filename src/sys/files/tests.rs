//! Hostile trees, and the host's files.
#![allow(clippy::print_stderr, reason = "a skipped test says so")]

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use rustix::fs::{CWD, FileType, IFlags, Mode, OFlags};
use rustix::process::geteuid;
use tempfile::TempDir;

use super::*;
use crate::machine::Cancel;

/// A root with something valuable beside it.
struct Scene {
    place: TempDir,
    root: Root,
    path: PathBuf,
}

fn scene() -> Scene {
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join("valuable"), "host").unwrap();
    let path = place.path().join("root");
    fs::create_dir_all(path.join("usr/lib")).unwrap();
    fs::create_dir(path.join("etc")).unwrap();
    fs::write(path.join("usr/lib/os-release"), "ID=guest\n").unwrap();
    Scene {
        root: Root::open(&path).unwrap(),
        place,
        path,
    }
}

fn names(path: &Path) -> Vec<std::ffi::OsString> {
    let mut names: Vec<_> = fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    names
}

#[test]
fn links_end_inside_of_the_root() {
    let Scene { root, path, place } = scene();
    for target in [
        "../usr/lib/os-release",
        "/usr/lib/os-release",
        "/../../usr/lib/os-release",
        "../../../usr/lib/os-release",
    ] {
        root.symlink(target, "etc/os-release").unwrap();
        assert_eq!(
            root.read_to_string("/etc/os-release", 100).unwrap(),
            "ID=guest\n",
            "{target}"
        );
        assert_eq!(root.resolve("etc/os-release").unwrap(), Path::new("usr/lib/os-release"));
    }
    let out = place.path().join("valuable");
    for target in [
        out.as_os_str(),
        "../../valuable".as_ref(),
        "/proc/self/root/etc/passwd".as_ref(),
    ] {
        root.symlink(target, "etc/out").unwrap();
        assert!(root.read("etc/out", 100).unwrap_err().is_not_found());
        assert!(root.resolve("etc/out").unwrap_err().is_not_found());
        assert!(root.chmod("etc/out", 0o777).unwrap_err().is_not_found());
    }
    assert!(root.read("../valuable", 100).unwrap_err().is_not_found());
    symlink("..", path.join("up")).unwrap();
    assert!(root.read("up/valuable", 100).unwrap_err().is_not_found());
    root.write("up/mine", b"x", 0o600).unwrap();
    assert_eq!(names(place.path()), ["root", "valuable"]);
    assert!(path.join("mine").exists());
}

#[test]
fn links_without_end_are_an_error() {
    let Scene {
        root, place: _place, ..
    } = scene();
    root.symlink("b", "a").unwrap();
    root.symlink("a", "b").unwrap();
    let error = root.resolve("a").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(40));
    for i in 0..41 {
        root.symlink(format!("link{i}"), format!("link{}", i + 1)).unwrap();
    }
    root.write("link0", b"", 0o644).unwrap();
    assert_eq!(root.resolve("link40").unwrap(), Path::new("link0"));
    assert_eq!(root.resolve("link41").unwrap_err().raw_os_error(), Some(40));
    assert_eq!(root.resolve("/").unwrap(), Path::new(""));
    assert_eq!(root.resolve("usr/../../etc/.").unwrap(), Path::new("etc"));
}

#[test]
fn only_regular_files_are_read_and_only_so_much() {
    let Scene {
        root,
        path,
        place: _place,
    } = scene();
    rustix::fs::mknodat(CWD, path.join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o666), 0).unwrap();
    symlink("fifo", path.join("link")).unwrap();
    let expected = format!(
        "cannot read '{}': it is a fifo, not a regular file",
        path.join("link").display()
    );
    assert_eq!(root.read("link", 100).unwrap_err().to_string(), expected);
    assert!(matches!(
        root.read("usr", 100),
        Err(FileError::NotRegular {
            kind: Kind::Directory,
            ..
        })
    ));
    assert!(matches!(
        root.read("usr/lib/os-release", 8),
        Err(FileError::TooLarge { cap: 8, .. })
    ));
    assert_eq!(root.read("usr/lib/os-release", 9).unwrap().len(), 9);
    root.write("latin", b"caf\xe9", 0o644).unwrap();
    assert!(matches!(
        root.read_to_string("latin", 9),
        Err(FileError::NotUtf8 { .. })
    ));
    if geteuid().is_root() {
        rustix::fs::mknodat(
            CWD,
            path.join("zero"),
            FileType::CharacterDevice,
            Mode::from_raw_mode(0o666),
            rustix::fs::makedev(1, 5),
        )
        .unwrap();
        assert!(matches!(
            root.read("zero", 1),
            Err(FileError::NotRegular {
                kind: Kind::CharDevice,
                ..
            })
        ));
    }
}

#[test]
fn kinds_are_those_of_links_themselves() {
    let Scene {
        root, place: _place, ..
    } = scene();
    root.symlink("/nowhere", "dangling").unwrap();
    assert_eq!(root.kind("dangling").unwrap(), Some(Kind::Symlink));
    assert_eq!(root.kind("usr").unwrap(), Some(Kind::Directory));
    assert_eq!(root.kind("/").unwrap(), Some(Kind::Directory));
    assert_eq!(root.kind("usr/lib/os-release").unwrap(), Some(Kind::File));
    assert_eq!(root.kind("usr/lib/os-release/x").unwrap(), None);
    assert_eq!(root.kind("none/x").unwrap(), None);
}

#[test]
fn writing_replaces_a_link_and_leaves_nothing_else() {
    let Scene { root, path, place } = scene();
    symlink(place.path().join("valuable"), path.join("etc/hostname")).unwrap();
    root.write("etc/hostname", b"web\n", 0o644).unwrap();
    assert_eq!(fs::read(place.path().join("valuable")).unwrap(), b"host");
    assert!(path.join("etc/hostname").symlink_metadata().unwrap().is_file());
    root.write("etc/hostname", b"db\n", 0o4711).unwrap();
    let found = path.join("etc/hostname").metadata().unwrap();
    assert_eq!((found.mode() & 0o7777, found.len()), (0o4711, 3));
    assert_eq!(names(&path.join("etc")), ["hostname"]);
    assert!(root.write("usr", b"", 0o644).is_err());
    assert_eq!(names(&path), ["etc", "usr"]);
    for name in ["", "/", "..", "etc/..", "etc/."] {
        assert!(
            matches!(root.write(name, b"", 0o644), Err(FileError::NoName { .. })),
            "{name}"
        );
    }
    assert!(root.write("none/x", b"", 0o644).unwrap_err().is_not_found());
}

#[test]
fn what_is_new_belongs_to_the_guests_root() {
    if !geteuid().is_root() {
        eprintln!("SKIPPED what_is_new_belongs_to_the_guests_root: needs root");
        return;
    }
    let Scene {
        root,
        path,
        place: _place,
    } = scene();
    // Shifted by 8 × 65536; whose `/` it is within the guest tells nothing.
    std::os::unix::fs::chown(&path, Some(524_288 + 1000), Some(524_288 + 100)).unwrap();
    std::os::unix::fs::chown(path.join("usr/lib/os-release"), Some(5), Some(6)).unwrap();
    root.create_dir_all("var/lib/new", 0o750).unwrap();
    root.write("var/file", b"", 0o644).unwrap();
    root.symlink("x", "var/link").unwrap();
    root.write("usr/lib/os-release", b"", 0o644).unwrap();
    let owner = |name: &str| {
        path.join(name)
            .symlink_metadata()
            .map(|found| (found.uid(), found.gid()))
            .unwrap()
    };
    for name in ["var", "var/lib", "var/lib/new", "var/file", "var/link"] {
        assert_eq!(owner(name), (524_288, 524_288), "{name}");
    }
    assert_eq!(owner("usr/lib/os-release"), (5, 6));
    assert_eq!(path.join("var/lib/new").metadata().unwrap().mode() & 0o7777, 0o750);
    // As an archive has it whose `./` was packed by a user.
    std::os::unix::fs::chown(&path, Some(1000), Some(1000)).unwrap();
    root.write("etc/shadow", b"", 0o600).unwrap();
    assert_eq!(owner("etc/shadow"), (0, 0));
}

#[test]
fn directories_are_made_listed_and_removed_inside() {
    let Scene { root, path, place } = scene();
    root.create_dir_all("/a/b/../c", 0o700).unwrap();
    root.create_dir_all("a/b", 0o755).unwrap();
    assert_eq!(path.join("a/b").metadata().unwrap().mode() & 0o7777, 0o700);
    symlink("nowhere", path.join("dangling")).unwrap();
    assert!(root.create_dir_all("dangling/x", 0o755).is_err());
    root.write("usr/lib/os-release/../B", b"", 0o644).unwrap_err();
    for name in ["b", "a", "Z"] {
        root.write(format!("a/b/{name}"), b"", 0o644).unwrap();
    }
    assert_eq!(root.list("a/b").unwrap(), ["Z", "a", "b"]);
    symlink(place.path(), path.join("a/out")).unwrap();
    symlink("/usr", path.join("a/usr")).unwrap();
    root.chmod("a/usr/lib", 0o711).unwrap();
    assert_eq!(path.join("usr/lib").metadata().unwrap().mode() & 0o7777, 0o711);
    root.remove_dir_all("a").unwrap();
    assert_eq!(names(place.path()), ["root", "valuable"]);
    assert!(path.join("usr/lib/os-release").exists());
    root.remove_file("dangling").unwrap();
    assert!(root.remove_file("dangling").unwrap_err().is_not_found());
    assert_eq!(root.list("/").unwrap(), ["etc", "usr"]);
}

#[test]
fn host_files_keep_mode_owner_and_place() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("web.nspawn");
    write_atomic(&file, b"one", 0o666).unwrap();
    assert_eq!(file.metadata().unwrap().mode() & 0o7777, 0o666);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    if geteuid().is_root() {
        std::os::unix::fs::chown(&file, Some(1), Some(2)).unwrap();
    }
    let link = place.path().join("link");
    symlink("web.nspawn", &link).unwrap();
    write_atomic(&link, b"two", 0o600).unwrap();
    let found = file.metadata().unwrap();
    assert_eq!(
        (found.mode() & 0o7777, fs::read(&file).unwrap()),
        (0o640, b"two".to_vec())
    );
    if geteuid().is_root() {
        assert_eq!((found.uid(), found.gid()), (1, 2));
    }
    assert!(link.symlink_metadata().unwrap().is_symlink());
    symlink("/dev/null", place.path().join("masked")).unwrap();
    let masked = write_atomic(&place.path().join("masked"), b"", 0o600).unwrap_err();
    assert!(matches!(
        masked,
        FileError::NotRegular {
            kind: Kind::CharDevice,
            ..
        }
    ));
    assert!(
        write_atomic(&place.path().join("none/x"), b"", 0o600)
            .unwrap_err()
            .is_not_found()
    );
    assert_eq!(names(place.path()), ["link", "masked", "web.nspawn"]);
    sync_filesystem(place.path()).unwrap();
}

#[test]
fn a_tree_deeper_than_any_path_is_measured_and_removed() {
    let place = tempfile::tempdir().unwrap();
    let top = place.path().join("top");
    fs::create_dir(&top).unwrap();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut here = rustix::fs::openat(CWD, &top, flags, Mode::empty()).unwrap();
    let name = "d".repeat(200);
    // More levels than a process may have files open.
    for level in 0..1200 {
        rustix::fs::mkdirat(&here, &name, Mode::from_raw_mode(0o700)).unwrap();
        if level % 10 == 0 {
            rustix::fs::mkdirat(&here, "beside", Mode::from_raw_mode(0o700)).unwrap();
        }
        here = rustix::fs::openat(&here, &name, flags, Mode::empty()).unwrap();
    }
    drop(here);
    tree_size(&top, &Cancel::default()).unwrap();
    remove_tree(&top).unwrap();
    assert!(!top.exists());
}

#[test]
fn removal_follows_no_link_and_stops_at_no_name() {
    let Scene { path, place, .. } = scene();
    symlink(place.path(), path.join("out")).unwrap();
    symlink("../../valuable", path.join("etc/out")).unwrap();
    for name in [&b"\xff\xfe"[..], b"a\nb", b"\x1b[2J", b"...", b"-rf", b" "] {
        fs::create_dir(path.join(OsStr::from_bytes(name))).unwrap();
        fs::write(path.join(OsStr::from_bytes(name)).join("x"), "").unwrap();
    }
    for i in 0..2000 {
        fs::write(path.join(format!("usr/file{i}")), "").unwrap();
    }
    fs::hard_link(place.path().join("valuable"), path.join("hard")).unwrap();
    if geteuid().is_root() {
        for (name, flag) in [
            ("etc", IFlags::IMMUTABLE),
            ("usr/lib/os-release", IFlags::APPEND),
            ("usr/lib", IFlags::IMMUTABLE),
        ] {
            let file = fs::File::open(path.join(name)).unwrap();
            match rustix::fs::ioctl_getflags(&file) {
                Ok(flags) => rustix::fs::ioctl_setflags(&file, flags | flag).unwrap(),
                Err(_) => eprintln!("SKIPPED immutable files: this filesystem has no flags"),
            }
        }
    }
    fs::set_permissions(place.path().join("valuable"), fs::Permissions::from_mode(0o604)).unwrap();
    remove_tree(&path).unwrap();
    assert_eq!(names(place.path()), ["valuable"]);
    assert_eq!(place.path().join("valuable").metadata().unwrap().mode() & 0o7777, 0o604);
    let link = place.path().join("link");
    symlink("valuable", &link).unwrap();
    remove_tree(&link).unwrap();
    assert_eq!(names(place.path()), ["valuable"]);
    let error = remove_tree(&link).unwrap_err();
    assert!(matches!(&error, FileError::Io { source, .. } if source.kind() == ErrorKind::NotFound));
}

#[test]
fn a_size_counts_hard_links_once_and_holes_not_at_all() {
    let place = tempfile::tempdir().unwrap();
    let size = || tree_size(place.path(), &Cancel::default()).unwrap();
    fs::write(place.path().join("a"), vec![1; 1 << 20]).unwrap();
    sync_filesystem(place.path()).unwrap();
    let one = size();
    assert!((1 << 20..(1 << 20) + 65536).contains(&one), "{one}");
    fs::hard_link(place.path().join("a"), place.path().join("b")).unwrap();
    symlink("/", place.path().join("c")).unwrap();
    fs::File::create(place.path().join("d"))
        .unwrap()
        .set_len(1 << 40)
        .unwrap();
    assert!(size() - one < 65536);
    let cancel = Cancel::default();
    cancel.cancel();
    assert!(matches!(tree_size(place.path(), &cancel), Err(FileError::Cancelled(_))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn resolving_agrees_with_the_kernel(
        links in prop::collection::vec(("[abc]", "(/|)(\\.\\./|\\./|[abcd]/){0,3}[abcd.]"), 0..6),
        path in "(/|)(\\.\\./|[abcd]/){0,4}[abcd]",
    ) {
        let place = tempfile::tempdir().unwrap();
        fs::create_dir_all(place.path().join("d/d/d")).unwrap();
        fs::create_dir_all(place.path().join("c")).unwrap();
        let root = Root::open(place.path()).unwrap();
        for (i, (name, target)) in links.iter().enumerate() {
            let folder = ["", "d/", "d/d/"][i % 3];
            let _ = symlink(target, place.path().join(format!("{folder}{name}")));
        }
        let found = root.open_at(Path::new(&path), OFlags::PATH).and_then(|fd| rustix::fs::fstat(&fd));
        match (root.resolve(&path), found) {
            (Ok(resolved), Ok(stat)) => {
                let there = place.path().join(resolved).symlink_metadata().unwrap();
                prop_assert_eq!(there.ino(), stat.st_ino);
            }
            (Err(ours), Err(theirs)) => prop_assert_eq!(ours.raw_os_error(), Some(theirs.raw_os_error())),
            (ours, theirs) => prop_assert!(false, "{ours:?} {theirs:?}"),
        }
    }

    #[test]
    fn what_is_shown_has_no_control_characters(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        prop_assert!(!shown(OsStr::from_bytes(&bytes)).chars().any(char::is_control));
    }
}
