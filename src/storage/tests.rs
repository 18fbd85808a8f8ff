//! Copies compare equal; each backend on its own filesystem, made on a loop device.
#![allow(clippy::print_stderr, reason = "a skipped test says so")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, IFlags, Mode, Timespec, Timestamps, XattrFlags};
use rustix::process::geteuid;
use tempfile::TempDir;

use super::*;
use crate::sys::files::{Root, remove_tree, tree_size};

/// Everything that stat(2), readlink(2), getxattr(2) and read(2) tell of one file.
#[derive(Debug, PartialEq, Eq)]
struct Facts {
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    atime: (i64, i64),
    device: u64,
    links: u64,
    size: u64,
    text: Option<PathBuf>,
    contents: Option<Vec<u8>>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    locked: bool,
}

fn facts(path: &Path) -> Facts {
    let found = fs::symlink_metadata(path).unwrap();
    let plain = found.is_file() || found.is_dir();
    let flags = plain.then(|| rustix::fs::ioctl_getflags(fs::File::open(path).unwrap()).unwrap_or(IFlags::empty()));
    let mut names = vec![0; 4096];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap_or(0);
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let value = |name: &[u8]| {
        let mut value = vec![0; 4096];
        let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
        value.truncate(length);
        value
    };
    Facts {
        mode: found.mode(),
        owner: (found.uid(), found.gid()),
        mtime: (found.mtime(), found.mtime_nsec()),
        // Looking at a link, a directory or another name of the same file changes it.
        atime: if found.is_file() && found.nlink() == 1 {
            (found.atime(), found.atime_nsec())
        } else {
            (0, 0)
        },
        device: found.rdev(),
        links: if found.is_dir() { 0 } else { found.nlink() },
        size: if found.is_dir() { 0 } else { found.size() },
        text: found.is_symlink().then(|| fs::read_link(path).unwrap()),
        contents: found.is_file().then(|| fs::read(path).unwrap()),
        xattrs: names.map(|name| (name.to_vec(), value(name))).collect(),
        locked: flags.is_some_and(|flags| flags.intersects(IFlags::IMMUTABLE | IFlags::APPEND)),
    }
}

fn tree(root: &Path) -> BTreeMap<PathBuf, Facts> {
    let mut out = BTreeMap::new();
    let mut todo = vec![root.to_path_buf()];
    while let Some(path) = todo.pop() {
        let facts = facts(&path);
        if FileType::from_raw_mode(facts.mode) == FileType::Directory {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        out.insert(path.strip_prefix(root).unwrap().to_path_buf(), facts);
    }
    out
}

fn assert_equal(a: &Path, b: &Path) {
    let (a, b) = (tree(a), tree(b));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (path, facts) in &a {
        assert_eq!(facts, &b[path], "{path:?}");
    }
}

fn set_times(path: &Path) {
    let time = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
    let times = Timestamps {
        last_access: time(1_000_000_000, 1),
        last_modification: time(-5, 123_456_789),
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// A tree with everything that a user who is not root can make.
fn ordinary(root: &Path) {
    fs::create_dir(root).unwrap();
    fs::create_dir_all(root.join("a/b/c")).unwrap();
    fs::write(root.join("a/file"), "contents").unwrap();
    fs::write(root.join("empty"), "").unwrap();
    fs::write(root.join("large"), vec![7; 3_000_000]).unwrap();
    fs::hard_link(root.join("a/file"), root.join("a/b/same")).unwrap();
    fs::hard_link(root.join("a/file"), root.join("same")).unwrap();
    std::os::unix::fs::symlink("../outside", root.join("a/link")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", root.join("absolute")).unwrap();
    fs::write(root.join(OsStr::from_bytes(b"caf\xe9\n\x1b[31m")), "odd").unwrap();
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.write_all_at(b"middle", 3 << 20).unwrap();
    sparse.set_len(5 << 20).unwrap();
    fs::File::create(root.join("hole")).unwrap().set_len(16 << 20).unwrap();
    let _socket = UnixListener::bind(root.join("socket")).unwrap();
    rustix::fs::mknodat(CWD, root.join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
    for (name, mode) in [("a/file", 0o4751), ("a/b", 0o2770), ("a/b/c", 0o1777), ("large", 0o400)] {
        fs::set_permissions(root.join(name), Permissions::from_mode(mode)).unwrap();
    }
    for i in 0..300 {
        fs::create_dir(root.join(format!("d{i}"))).unwrap();
        fs::write(root.join(format!("d{i}/f")), i.to_string()).unwrap();
    }
    for name in ["a/file", "a/link", "fifo", "a/b", "sparse", ""] {
        set_times(&root.join(name));
    }
}

/// What only root can make.
fn special(root: &Path) {
    let xattr = |name: &str, key: &str, value: &[u8]| {
        rustix::fs::lsetxattr(root.join(name), key, value, XattrFlags::empty()).unwrap();
    };
    for (name, kind, device) in [
        ("null", FileType::CharacterDevice, (1, 3)),
        ("loop", FileType::BlockDevice, (7, 0)),
    ] {
        let device = rustix::fs::makedev(device.0, device.1);
        rustix::fs::mknodat(CWD, root.join(name), kind, Mode::from_raw_mode(0o660), device).unwrap();
    }
    for (name, uid, gid) in [("same", 33, 44), ("absolute", 1000, 1001), ("fifo", 5, 6), ("d1", 7, 8)] {
        std::os::unix::fs::lchown(root.join(name), Some(uid), Some(gid)).unwrap();
    }
    fs::set_permissions(root.join("same"), Permissions::from_mode(0o6755)).unwrap();
    xattr(
        "same",
        "security.capability",
        b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
    );
    xattr("empty", "user.note", b"a\0b\nc");
    xattr("d2", "trusted.opaque", b"y");
    xattr("absolute", "trusted.link", b"z");
    let acl = b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff\x02\0\x07\0\xe8\x03\0\0\x04\0\x05\0\xff\xff\xff\xff\x10\0\x07\0\xff\xff\xff\xff\x20\0\x05\0\xff\xff\xff\xff";
    xattr("d3", "system.posix_acl_default", acl);
    xattr("d3/f", "system.posix_acl_access", acl);
    set_times(&root.join("same"));
}

fn lock(path: &Path) {
    let file = fs::File::open(path).unwrap();
    let flags = rustix::fs::ioctl_getflags(&file).unwrap();
    rustix::fs::ioctl_setflags(&file, flags | IFlags::IMMUTABLE).unwrap();
}

/// A filesystem of its own in a file, or why there is none.
struct Filesystem {
    place: TempDir,
    mount: PathBuf,
}

impl Filesystem {
    fn new(test: &str, kind: &str) -> Option<Self> {
        let skip = |why: &str| {
            eprintln!("SKIPPED {test}: {why}");
            None
        };
        if !geteuid().is_root() {
            return skip("needs root");
        }
        let place = tempfile::tempdir().unwrap();
        let (image, mount) = (place.path().join("image"), place.path().join("mount"));
        fs::File::create(&image).unwrap().set_len(600 << 20).unwrap();
        fs::create_dir(&mount).unwrap();
        if !run(&format!("mkfs.{kind}"), &[OsStr::new("-q"), image.as_os_str()]) {
            return skip(&format!("mkfs.{kind} does not work here"));
        }
        if !run(
            "mount",
            &["-o".as_ref(), "loop".as_ref(), image.as_os_str(), mount.as_os_str()],
        ) {
            return skip(&format!("cannot mount {kind} from a loop device here"));
        }
        Some(Self { place, mount })
    }
}

impl Drop for Filesystem {
    fn drop(&mut self) {
        assert!(
            run("umount", &[self.mount.as_os_str()]),
            "{:?} stays mounted",
            self.place
        );
    }
}

#[allow(clippy::disallowed_methods, reason = "the tests' own set-up")]
fn run(program: &str, args: &[&OsStr]) -> bool {
    let done = std::process::Command::new(program).args(args).output();
    done.is_ok_and(|done| done.status.success())
}

#[test]
fn a_full_copy_compares_equal() {
    let place = tempfile::tempdir().unwrap();
    let (source, target) = (place.path().join("source"), place.path().join("target"));
    ordinary(&source);
    if geteuid().is_root() {
        special(&source);
        for name in ["same", "d4", "d4/f"] {
            lock(&source.join(name));
        }
    } else {
        eprintln!("SKIPPED half of a_full_copy_compares_equal: needs root for devices, owners and trusted attributes");
    }
    copy::Copy.copy(&source, &target, &(), &Cancel::default()).unwrap();
    assert_equal(&source, &target);
    let allocated = |name: &str| fs::metadata(target.join(name)).unwrap().blocks() * 512;
    assert!(allocated("sparse") < 1 << 20 && allocated("hole") < 1 << 20);
    let size = tree_size(&target, &Cancel::default()).unwrap();
    assert!((3_000_000..8_000_000).contains(&size), "{size}");
    let again = copy::Copy.copy(&source, &target, &(), &Cancel::default()).unwrap_err();
    assert!(matches!(again, StorageError::Exists { .. }));
    copy::Copy.remove(&target).unwrap();
    remove_tree(&source).unwrap();
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
}

#[test]
fn a_failed_copy_leaves_nothing() {
    let place = tempfile::tempdir().unwrap();
    let (source, target) = (place.path().join("source"), place.path().join("target"));
    ordinary(&source);
    let cancel = Cancel::default();
    cancel.cancel();
    assert!(matches!(
        copy::Copy.copy(&source, &target, &(), &cancel),
        Err(StorageError::Cancelled(_))
    ));
    assert!(!target.exists());
    let inside = source.join("a/b/copy");
    let error = copy::Copy.copy(&source, &inside, &(), &Cancel::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("cannot copy a machine into itself, to '{}'", inside.display())
    );
    assert!(!inside.exists());
}

#[test]
fn xfs_shares_contents() {
    let Some(filesystem) = Filesystem::new("xfs_shares_contents", "xfs") else {
        return;
    };
    let storage = for_directory(&filesystem.mount).unwrap();
    assert_eq!(storage.name(), "reflink");
    let (source, target) = (filesystem.mount.join("source"), filesystem.mount.join("target"));
    ordinary(&source);
    special(&source);
    let free = || rustix::fs::statvfs(&filesystem.mount).unwrap().f_bavail * 4096;
    crate::sys::files::sync_filesystem(&filesystem.mount).unwrap();
    let before = free();
    storage.copy(&source, &target, &(), &Cancel::default()).unwrap();
    assert_equal(&source, &target);
    crate::sys::files::sync_filesystem(&filesystem.mount).unwrap();
    assert!(before - free() < 2_500_000, "the large file takes no room twice");
    fs::write(target.join("empty"), "changed").unwrap();
    assert_eq!(fs::read(source.join("empty")).unwrap(), b"");
    storage.remove(&target).unwrap();
}

#[test]
fn btrfs_takes_snapshots_with_all_subvolumes_inside() {
    let test = "btrfs_takes_snapshots_with_all_subvolumes_inside";
    let Some(filesystem) = Filesystem::new(test, "btrfs") else {
        return;
    };
    let storage = for_directory(&filesystem.mount).unwrap();
    assert_eq!(storage.name(), "btrfs");
    let (source, target) = (filesystem.mount.join("source"), filesystem.mount.join("target"));
    storage.create(&source).unwrap();
    assert!(matches!(storage.create(&source), Err(StorageError::Exists { .. })));
    let found = fs::metadata(&source).unwrap();
    assert_eq!((found.mode() & 0o7777, found.ino()), (0o755, 256));
    ordinary(&source.join("files"));
    special(&source.join("files"));
    storage.create(&source.join("files/d1/inner")).unwrap();
    storage.create(&source.join("files/d1/inner/innermost")).unwrap();
    storage.create(&source.join("top")).unwrap();
    fs::write(source.join("files/d1/inner/innermost/deep"), "deep").unwrap();
    set_times(&source.join("files/d1"));
    storage.copy(&source, &target, &(), &Cancel::default()).unwrap();
    assert_equal(&source, &target);
    assert_eq!(
        fs::metadata(target.join("files/d1/inner/innermost")).unwrap().ino(),
        256
    );
    fs::write(target.join("files/d1/inner/innermost/deep"), "changed").unwrap();
    assert_eq!(fs::read(source.join("files/d1/inner/innermost/deep")).unwrap(), b"deep");
    assert!(matches!(
        storage.copy(&source, &target, &(), &Cancel::default()),
        Err(StorageError::Exists { .. })
    ));

    // Read-only subvolumes and immutable files do not stop a removal.
    let inner = fs::File::open(target.join("files/d1/inner")).unwrap();
    crate::sys::raw::btrfs::subvolume_set_read_only(&inner, true).unwrap();
    drop(inner);
    lock(&target.join("files/d2/f"));
    storage.remove(&target).unwrap();
    assert!(!target.exists());

    // From another filesystem: file by file, into a subvolume.
    let elsewhere = tempfile::tempdir().unwrap();
    ordinary(&elsewhere.path().join("root"));
    storage
        .copy(&elsewhere.path().join("root"), &target, &(), &Cancel::default())
        .unwrap();
    assert_equal(&elsewhere.path().join("root"), &target);
    assert_eq!(fs::metadata(&target).unwrap().ino(), 256);
    storage.remove(&target).unwrap();
    storage.remove(&source).unwrap();
    assert_eq!(fs::read_dir(&filesystem.mount).unwrap().count(), 0);
}

#[test]
fn a_btrfs_subvolume_is_removed_at_once() {
    let Some(filesystem) = Filesystem::new("a_btrfs_subvolume_is_removed_at_once", "btrfs") else {
        return;
    };
    let storage = for_directory(&filesystem.mount).unwrap();
    let path = filesystem.mount.join("root");
    let by_path = || remove_tree(&path);
    let by_root = || Root::open(&filesystem.mount).unwrap().remove_dir_all("root");
    for remove in [&by_path as &dyn Fn() -> _, &by_root] {
        storage.create(&path).unwrap();
        fs::write(path.join("file"), "x").unwrap();
        let file = fs::File::open(path.join("file")).unwrap();
        remove().unwrap();
        assert!(!path.exists());
        // Unlinked by itself it would have no name left.
        assert_eq!(file.metadata().unwrap().nlink(), 1);
    }
}

#[test]
fn what_is_mounted_in_a_tree_is_neither_copied_nor_removed() {
    let Some(filesystem) = Filesystem::new("what_is_mounted_…", "ext4") else {
        return;
    };
    let (source, target) = (filesystem.mount.join("source"), filesystem.mount.join("target"));
    fs::create_dir_all(source.join("a/mounted")).unwrap();
    fs::create_dir(filesystem.mount.join("home")).unwrap();
    fs::write(filesystem.mount.join("home/valuable"), "kept").unwrap();
    // The same filesystem: st_dev tells nothing.
    let (from, to) = (filesystem.mount.join("home"), source.join("a/mounted"));
    assert!(run("mount", &["--bind".as_ref(), from.as_os_str(), to.as_os_str()]));
    let copied = copy::Copy.copy(&source, &target, &(), &Cancel::default());
    let removed = remove_tree(&source);
    assert!(run("umount", &[to.as_os_str()]));
    copied.unwrap();
    assert_eq!(fs::read_dir(target.join("a/mounted")).unwrap().count(), 0);
    let message = format!("cannot remove '{}': something is mounted on it", to.display());
    assert_eq!(removed.unwrap_err().to_string(), message);
    assert_eq!(fs::read(from.join("valuable")).unwrap(), b"kept");
    remove_tree(&source).unwrap();
}

#[test]
fn a_sealed_layer_tells_what_was_changed() {
    let scratch = TempDir::new().unwrap();
    let layers = super::layers::Layers::at(scratch.path().join("layers"));
    let id = layers.create("web", None).unwrap();
    let (tree, cancel) = (layers.tree(&id), Cancel::default());
    fs::create_dir_all(tree.join("a/b")).unwrap();
    fs::write(tree.join("a/b/c"), "c").unwrap();
    fs::write(tree.join("d"), "d").unwrap();
    let changed = || layers.changed(&id, &cancel).unwrap();
    assert_eq!(changed(), None, "it is not sealed");
    layers.seal(&id).unwrap();
    assert_eq!(changed(), None);
    // What is said once holds.
    let later = || std::thread::sleep(std::time::Duration::from_millis(20));
    later();
    fs::write(tree.join("a/b/c"), "C").unwrap();
    layers.seal(&id).unwrap();
    assert_eq!(changed(), Some(tree.canonicalize().unwrap().join("a/b/c")));
    let anew = || {
        fs::remove_file(layers.seal_of(&id)).unwrap();
        layers.seal(&id).unwrap();
        later();
    };
    anew();
    assert_eq!(changed(), None);
    fs::remove_file(tree.join("a/b/c")).unwrap();
    assert_eq!(changed(), Some(tree.canonicalize().unwrap().join("a/b")));
    anew();
    // Its times can be set, and its change not be hidden.
    let before = fs::metadata(tree.join("d")).unwrap().modified().unwrap();
    fs::write(tree.join("d"), "D").unwrap();
    fs::File::options()
        .write(true)
        .open(tree.join("d"))
        .unwrap()
        .set_modified(before)
        .unwrap();
    assert_eq!(changed(), Some(tree.canonicalize().unwrap().join("d")));
    // Another tree in its place is none that anything was said of.
    let other = scratch.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::rename(&tree, scratch.path().join("former")).unwrap();
    fs::rename(&other, &tree).unwrap();
    assert_eq!(changed(), None);
    layers.seal(&id).unwrap();
    later();
    fs::write(tree.join("new"), "").unwrap();
    assert_eq!(changed(), Some(tree.clone()));
}

#[test]
fn what_comes_from_elsewhere_takes_no_more_than_it_may() {
    let scratch = TempDir::new().unwrap();
    let (source, target) = (scratch.path().join("source"), scratch.path().join("target"));
    let copy = |max_size: Option<u64>| {
        let copied = copy_foreign(&source, &target, max_size, &(), &Cancel::default());
        let size = fs::metadata(target.join("large")).map_or(0, |found| found.len());
        fs::remove_dir_all(&target).unwrap();
        copied.map(|()| size)
    };
    fs::create_dir(&source).unwrap();
    fs::write(source.join("large"), vec![7; 1_000_000]).unwrap();
    // A hole takes nothing.
    fs::File::create(source.join("hole"))
        .unwrap()
        .set_len(10 << 40)
        .unwrap();
    assert_eq!(copy(Some(1_100_000)).unwrap(), 1_000_000);
    copy(None).unwrap();
    let error = copy(Some(900_000)).unwrap_err();
    assert!(matches!(error, StorageError::TooLarge { max: 900_000, .. }), "{error}");
    // Nothing but names.
    fs::remove_file(source.join("large")).unwrap();
    (0..1000).for_each(|number| fs::write(source.join(number.to_string()), "").unwrap());
    assert!(matches!(copy(Some(100_000)), Err(StorageError::TooLarge { .. })));
    copy(Some(300_000)).unwrap();
}
