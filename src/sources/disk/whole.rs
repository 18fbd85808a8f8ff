//! The disk image of a machine that does not run, as one tree: its root filesystem, if systemd-nspawn would mount nothing else with it.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::fs::{Dir, Mode, OFlags, openat};

use super::image::Image;
use super::{DiskError, root, table};
use crate::machine::{Cancel, Report};
use crate::sources::SourceError;
use crate::sys::files::shown;

/// What systemd-nspawn mounts besides the root, by the type of its partition: see the Discoverable Partitions Specification.
const MOUNTED: &[(u128, &str)] = &[
    (0x933a_c7e1_2eb4_4f13_b844_0e14_e2ae_f915, "/home"),
    (0x3b8f_8425_20e0_4f3b_907f_1a25_a76f_98e8, "/srv"),
    (0x4d21_b016_b534_45c2_a9fb_5c16_e091_fd2d, "/var"),
    (0x7ec6_f557_3bc5_4aca_b293_16ef_5df6_39d1, "/var/tmp"),
    // Of x86-64 and of AArch64; another is noticed as an empty /usr.
    (0x8484_680c_9521_48c6_9c11_b072_0656_f69e, "/usr"),
    (0xb0e0_1050_ee5f_4390_949a_9101_b171_04e9, "/usr"),
];
/// What it mounts, too, and no container needs: what boot loaders read.
const OF_BOOT_LOADERS: [u128; 2] = [
    0xc12a_7328_f81f_11d2_ba4b_00a0_c93e_c93b,
    0xbc13_c2ff_59e6_4262_a352_b275_fd6f_7172,
];
/// How the hashes of dm-verity begin, see veritysetup(8).
const VERITY: &[u8; 8] = b"verity\0\0";
/// The files beside an image that have systemd-nspawn check it by dm-verity.
const HASHES: [&str; 2] = ["roothash", "usrhash"];

/// Mounts the root filesystem of a machine's image where nobody sees it, to be read, and returns its root directory. What its journal
/// still has is put in its place in a copy, which `place` has room for: the image stays as it is.
///
/// # Errors
/// [`DiskError::NotWhole`] if the machine has more than is in its root, or of it what was not checked.
pub fn open(
    file: File,
    path: &Path,
    place: &Path,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<OwnedFd, SourceError> {
    let refused = |what: String| {
        let image = path.to_owned();
        SourceError::from(DiskError::NotWhole { image, what })
    };
    if let Some(hash) = HASHES
        .map(|ending| path.with_extension(ending))
        .iter()
        .find(|it| it.exists())
    {
        return Err(refused(format!("'{}' asks for dm-verity", shown(hash))));
    }
    let mut image = Image::borrowed(file, path, place, None)?;
    let partitions = table::read(&image.file, image.size).map_err(|error| error.of(path))?;
    for partition in partitions.iter().flatten() {
        let number = partition.number;
        let mounted = MOUNTED.iter().find(|(kind, _)| partition.kind == Some(*kind));
        if let Some((_, place)) = mounted {
            return Err(refused(format!("partition {number} has its {place}")));
        }
        if partition.kind.is_some_and(|kind| OF_BOOT_LOADERS.contains(&kind)) {
            report.warn(&format!("partition {number}, which is for boot loaders, is left out"));
        }
        let mut first = [0; VERITY.len()];
        // A shorter one has none.
        if image.file.read_exact_at(&mut first, partition.range.start).is_ok() && first == *VERITY {
            return Err(refused(format!("partition {number} has hashes of dm-verity")));
        }
    }
    let root = root::open(&mut image, None, cancel)?;
    if !has_files(&root, "usr") {
        return Err(refused("its root filesystem has no /usr, or nothing in it".to_owned()));
    }
    Ok(root)
}

/// Whether there is anything in a directory of a root.
fn has_files(root: &OwnedFd, name: &str) -> bool {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let entries = openat(root, name, flags, Mode::empty()).and_then(Dir::new);
    entries.is_ok_and(|entries| {
        entries
            .filter_map(Result::ok)
            .any(|entry| !matches!(entry.file_name().to_bytes(), b"." | b".."))
    })
}
