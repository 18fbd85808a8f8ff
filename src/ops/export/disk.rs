//! A machine as a disk image: its tree in a partition that systemd finds by its type, and beside it what is said of the machine in
//! one that nobody else looks at. See the Discoverable Partitions Specification.
//!
//! The tree is unpacked beside the images, with the users that the machine sees, and mke2fs makes a filesystem of that.

use std::fs::File;
use std::io::Seek as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::Beside;
use super::gpt::{Partition, SECTOR, TAIL, table};
use super::output::{Hidden, directory_of, hidden};
use crate::machine::manifest::{PARTITION, Part, TREE};
use crate::machine::{Cancel, Report};
use crate::ops::OpError;
use crate::ops::import::image::Layer;
use crate::sources::SourceError;
use crate::sources::disk::exported::sum_of;
use crate::sources::disk::native_root;
use crate::sources::tarball::Extracted;
use crate::sources::tarball::bundle;
use crate::storage;
use crate::sys::process::{Program, require_program};

/// Where the first partition begins, and to what the sizes are rounded: as all tools have it.
const ALIGNED: u64 = 1 << 20;
/// Bytes of a block of the filesystem.
const BLOCK: u64 = 4096;
/// What ext4 takes for itself besides: its journal, and its tables.
const OWN: u64 = 32 << 20;
/// Bytes of an inode, and how many are there besides those of the tree.
const INODE: u64 = 256;
const SPARE_INODES: u64 = 4096;
/// The number of the root directory's inode, and of the first that is not ext4's own: lost+found's.
const ROOT_INODE: u64 = 2;
const FIRST_INODE: u64 = 11;

/// Refuses what cannot be done here.
pub(super) fn check() -> Result<(), OpError> {
    require_program("mke2fs")?;
    Ok(require_program("debugfs")?)
}

/// Writes the image of a tree, which comes as a tar; `tree` is where it is unpacked meanwhile. Tells the sum of the filesystem.
pub(super) fn write(
    (path, replaces): (&Path, bool),
    tar: Hidden,
    mut beside: Beside,
    tree: &Path,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Part, OpError> {
    let failed = |action| OpError::path(action, path);
    let parent = tree.parent().unwrap_or(Path::new("/"));
    storage::for_directory(parent)?.create(tree)?;
    let mut file = tar.file().try_clone().map_err(failed("read"))?;
    file.rewind().map_err(failed("read"))?;
    let unpacked = bundle::read(file, path, Some(tree), &mut Layer::new(), report, cancel);
    let unpacked = unpacked.map_err(|error| SourceError::from(error).full_at(parent))?;
    drop(tar);
    report.phase("making a filesystem");
    let image = hidden(directory_of(path)).map_err(failed("write"))?;
    // Of the same tree it is the same disk.
    let seed = beside.manifest.parts.get(TREE).map(|part| part.sha256.clone());
    let id = |what: &str| id(seed.as_deref().unwrap_or_default(), what);
    let root = ALIGNED..ALIGNED + size(&unpacked.extracted);
    image.file().set_len(root.end).map_err(failed("write"))?;
    make_filesystem(
        image.file(),
        tree,
        &root,
        &unpacked.extracted,
        (id("filesystem"), beside.newest),
        cancel,
    )?;
    report.phase("adding up the filesystem");
    let (sum, bytes) = sum_of(image.file(), &root, cancel).map_err(|error| match cancel.check() {
        Err(cancelled) => cancelled.into(),
        Ok(()) => failed("read")(error),
    })?;
    let part = Part {
        sha256: sum.to_string(),
        size: bytes,
    };
    beside.manifest.parts.insert(TREE.to_owned(), part.clone());
    let settings = beside.end()?;
    let settings_end = root.end + (settings.len() as u64).next_multiple_of(ALIGNED);
    let whole = settings_end + (TAIL * SECTOR).next_multiple_of(ALIGNED);
    let partition = |kind, name, range: &std::ops::Range<u64>| Partition {
        kind,
        id: id(name),
        first: range.start / SECTOR,
        last: range.end / SECTOR - 1,
        name,
    };
    let no_type = || OpError::Option {
        message: "disk images have no type of partition for this processor".to_owned(),
        hint: "export the machine to FILE.tar.zst, or to oci:DIR".to_owned(),
    };
    let partitions = [
        partition(native_root().ok_or_else(no_type)?, "root", &root),
        partition(PARTITION, "machinist", &(root.end..settings_end)),
    ];
    let (head, tail) = table(id("disk"), &partitions, whole / SECTOR);
    let written = image.file().set_len(whole).and_then(|()| {
        image.file().write_all_at(&settings, root.end)?;
        image.file().write_all_at(&head, 0)?;
        image.file().write_all_at(&tail, whole - TAIL * SECTOR)
    });
    written.map_err(failed("write"))?;
    report.phase("writing to disk");
    image.show(path, replaces)?;
    Ok(part)
}

/// How large the filesystem is: its contents and a fifth, and what it takes for itself.
fn size(unpacked: &Extracted) -> u64 {
    let contents = unpacked.bytes + (unpacked.entries + 1) * BLOCK;
    let all = contents + contents / 5 + inodes(unpacked) * INODE + OWN;
    all.next_multiple_of(ALIGNED)
}

fn inodes(unpacked: &Extracted) -> u64 {
    unpacked.entries + unpacked.entries / 5 + SPARE_INODES
}

/// A number as a random UUID has it, out of what is the same each time.
fn id(seed: &str, what: &str) -> u128 {
    let sum: [u8; 32] = Sha256::new().chain_update(seed).chain_update(what).finalize().into();
    let number = sum[..16].iter().fold(0, |number, byte| number << 8 | u128::from(*byte));
    // Version 4, variant 1.
    number & !(0xf << 76) & !(0x3 << 62) | 0x4 << 76 | 0x2 << 62
}

/// As it is written down.
fn uuid(id: u128) -> String {
    let text = format!("{id:032x}");
    [&text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..]].join("-")
}

fn make_filesystem(
    file: &File,
    tree: &Path,
    range: &std::ops::Range<u64>,
    unpacked: &Extracted,
    (id, newest): (u128, i64),
    cancel: &Cancel,
) -> Result<(), OpError> {
    let newest = newest.max(1).to_string();
    let uuid = uuid(id);
    // The file has no name; ours are the descriptors that stay open.
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    let options = format!("offset={},nodiscard,hash_seed={uuid}", range.start);
    let blocks = (range.end - range.start) / BLOCK;
    let program = Program::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-m", "0", "-L", "root"])
        .args(["-b".to_owned(), BLOCK.to_string()])
        .args(["-I".to_owned(), INODE.to_string()])
        .args(["-N".to_owned(), inodes(unpacked).to_string()])
        .args(["-U", &uuid, "-E", &options, "-d"])
        .arg(tree)
        .args([path.clone(), blocks.to_string()])
        // No time of a file is later; 1.47.0 knows the first of the two only, and for its own times.
        .env("E2FSPROGS_FAKE_TIME", &newest)
        .env("SOURCE_DATE_EPOCH", &newest);
    program.run(cancel)?;
    let changed = tree.metadata().map_err(OpError::path("look at", tree))?.mtime().max(0);
    let changes = Program::new("debugfs")
        .args(["-w", "-f", "/dev/stdin"])
        .arg(format!("{path}?offset={}", range.start))
        .stdin(times(&newest, changed, unpacked))
        .env("E2FSPROGS_FAKE_TIME", &newest);
    changes.run(cancel)?;
    Ok(())
}

/// For debugfs: when the inodes were changed, and read. Of the tree's that is when it was unpacked here, which says nothing of the
/// machine; mke2fs knows no better before 1.47.1. And when something was added to the root directory, which mke2fs does itself.
fn times(newest: &str, root: i64, unpacked: &Extracted) -> String {
    let of = |inode, time, value: &str| {
        format!("set_inode_field <{inode}> {time} @{value}\nset_inode_field <{inode}> {time}_extra 0\n")
    };
    // The root's, and those of the tree, one after the other; hard links have fewer.
    std::iter::once(ROOT_INODE)
        .chain(FIRST_INODE..=FIRST_INODE + unpacked.entries)
        .flat_map(|inode| ["ctime", "atime"].map(|time| of(inode, time, newest)))
        .chain([of(ROOT_INODE, "mtime", &root.to_string())])
        .collect()
}
