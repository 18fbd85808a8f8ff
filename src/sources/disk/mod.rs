//! Disk images: their root filesystem, found and unpacked.
//!
//! Or kept as it is, for systemd-nspawn to mount (`kept`).
//!
//! The image is hostile. What it is, and where its root is, is read here (`content`, `table`, `qcow2`, `iso`); its filesystem
//! by the kernel, mounted where nobody sees it ([`crate::sys::loop_mount`]), and copied as a tree from elsewhere.

mod content;
mod error;
pub mod exported;
mod image;
mod iso;
mod kept;
mod qcow2;
mod root;
mod table;
pub mod whole;

use std::fs::File;
use std::io::BufRead as _;
use std::os::fd::AsFd as _;
use std::path::Path;

pub use error::{DiskError, MountError, Qcow2Problem};
pub use kept::Kept;
pub(crate) use table::native_root;

use image::{Image, unreadable};

use super::SourceError;
use super::archive::{Compression, Contents};
use super::tarball::{self, Cpio, Wanted};
use crate::machine::{Cancel, Report};
use crate::storage::{self, StorageError};
use crate::sys::files::{magic_link, shown};

/// Endings of disk images, and of what is unpacked as they are; a compression may follow.
pub(super) const ENDINGS: &[&str] = &[".raw", ".img", ".qcow2", ".iso", ".squashfs", ".erofs", ".cpio"];

/// Endings of compressed files.
const COMPRESSIONS: &[&str] = &[".gz", ".xz", ".zst", ".bz2"];

/// What becomes of a disk image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskOptions {
    /// Whether its root filesystem is unpacked into a directory, and not kept as an image.
    pub extract: bool,
    /// The number of the partition that is its root; it is looked for if `None`.
    pub partition: Option<u32>,
}

/// Whether a file of that name in lower case is a disk image.
pub(super) fn is_name(lower: &str) -> bool {
    let plain = COMPRESSIONS.iter().find_map(|ending| lower.strip_suffix(ending));
    let plain = plain.unwrap_or(lower);
    ENDINGS
        .iter()
        .any(|ending| plain.ends_with(ending) && plain.len() > ending.len())
}

/// Whether a file of that name in lower case has no disk but a single tree, of which nothing else can be made than a directory.
pub(super) fn is_tree_name(lower: &str) -> bool {
    let plain = COMPRESSIONS.iter().find_map(|ending| lower.strip_suffix(ending));
    let plain = plain.unwrap_or(lower);
    [".iso", ".squashfs", ".erofs", ".cpio"]
        .iter()
        .any(|ending| plain.ends_with(ending))
}

/// What [`fill`] would do; whether it would keep an image.
pub(super) fn describe(image: &str, partition: Option<u32>, stays: bool) -> String {
    let act = if stays { "copy" } else { "unpack" };
    match partition {
        None => format!("{act} the root filesystem of {image}"),
        Some(number) => format!("{act} partition {number} of {image}"),
    }
}

/// Unpacks the root filesystem of an image to `target`, which must not exist; its parent has room for a copy of the image. If
/// it is not to be extracted, `target` becomes a file: an image that systemd-nspawn takes. Of what is wanted of archives, the sum
/// and the largest size count.
pub(super) fn fill(
    file: File,
    name: &Path,
    options: DiskOptions,
    wanted: &Wanted,
    target: &Path,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<(), SourceError> {
    let short = shown(name.file_name().unwrap_or(name.as_os_str()));
    report.phase(&format!("reading {short}"));
    let Some(mut image) = open(file, name, wanted, target, report, cancel)? else {
        return Ok(());
    };
    if qcow2::is_qcow2(&image.file, image.size).map_err(|error| image.unreadable(error))? {
        report.phase(&format!("converting {short}"));
        image = qcow2::convert(&image, report, cancel)?;
    }
    if !options.extract && !root::is_tree(&image)? {
        return kept::keep(&mut image, options.partition, target, report, cancel);
    }
    let root = root::open(&mut image, options.partition, cancel)?;
    let source = magic_link(root.as_fd());
    let source = Path::new(&source);
    storage::copy_foreign(source, target, wanted.max_size, report, cancel).map_err(|error| match error {
        StorageError::TooLarge { max, .. } => {
            let image = name.to_owned();
            DiskError::TooLarge { image, max }.into()
        }
        error => in_image(error.into(), source),
    })
}

/// An image that can be read at any place; `None` if it was an archive, and is unpacked already.
fn open(
    file: File,
    name: &Path,
    wanted: &Wanted,
    target: &Path,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Option<Image>, SourceError> {
    let place = target.parent().unwrap_or(Path::new("."));
    let Wanted { sum, max_size, .. } = *wanted;
    let found = file.metadata().map_err(|error| unreadable(name, error))?;
    if found.is_file() && sum.is_none() {
        let first = content::first(&file, &(0..found.len()), 512).map_err(|error| unreadable(name, error))?;
        if Compression::detect(&first) == Compression::None && !Cpio::is(&first) && !first.is_empty() {
            return Image::borrowed(file, name, place, max_size).map(Some);
        }
    }
    let failed = |error| {
        // Whatever a decompressor made of it.
        cancel
            .check()
            .map_or_else(SourceError::from, |()| unreadable(name, error))
    };
    let (mut contents, sums) = match sum {
        None => (Contents::from_file(file, cancel).map_err(failed)?, None),
        Some(sum) => {
            let (contents, found) = Contents::summed(file, cancel).map_err(failed)?;
            (contents, Some((sum, found)))
        }
    };
    let position = contents.position();
    let first = contents.fill_buf().map_err(failed)?.to_vec();
    // What is wrong with another file than the one that was asked for is of no interest.
    let checked = |result: Result<Option<Image>, SourceError>| {
        cancel.check()?;
        if let Some((sum, found)) = &sums {
            tarball::check_sum(name, *sum, found)?;
        }
        result
    };
    if Cpio::is(&first) {
        storage::for_directory(place)?.create(target)?;
        let unpacked = tarball::extract_cpio(contents, name, target, max_size, report, cancel);
        return checked(unpacked.map(|_| None).map_err(SourceError::from));
    }
    let looks_like = content::looks_like(&first);
    if first.is_empty() || looks_like.is_some() {
        let looks_like = looks_like.or(Some("an empty file"));
        let image = name.to_owned();
        return checked(Err(DiskError::NotDisk { image, looks_like }.into()));
    }
    let mut image = Image::new(name, place, max_size)?;
    let filled = image.fill(&mut contents, &position, report, cancel);
    checked(filled.map(|()| Some(image)))
}

/// A path in a mount that is nowhere, as it is in the image.
fn in_image(mut error: SourceError, mount: &Path) -> SourceError {
    if let Some(path) = error.path_mut()
        && let Ok(inside) = path.strip_prefix(mount)
    {
        *path = Path::new("/").join(inside);
    }
    error
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever stands there, it is an answer or an error.
        #[test]
        fn nonsense_is_no_panic(
            magic in prop::sample::select(vec![
                (0, &b"QFI\xfb\0\0\0\x03"[..]), (510, &b"\x55\xaa"[..]), (512, &b"EFI PART"[..]), (0x8001, &b"CD001"[..]),
            ]),
            bytes in prop::collection::vec((0_usize..2048, any::<u8>()), 0..200),
            sector in prop::sample::select(vec![0_usize, 16, 18]),
        ) {
            let mut image = vec![0; 40 << 10];
            for (at, byte) in bytes {
                image[sector * 2048 + at] = byte;
            }
            image[magic.0..magic.0 + magic.1.len()].copy_from_slice(magic.1);
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&image).unwrap();
            let size = image.len() as u64;
            let _ = content::Content::from_first(&image).describe();
            let _ = table::read(&file, size);
            let _ = iso::find(&file, size);
            let _ = qcow2::Header::parse(&image);
        }
    }

    #[test]
    fn names_of_disk_images_may_have_a_compression() {
        for name in [
            "a.raw",
            "a.img.xz",
            "/x/a.b.qcow2",
            "a.iso",
            "a.cpio.gz",
            "a.squashfs",
            "a.img.bz2",
        ] {
            assert!(is_name(name), "{name}");
        }
        for name in [".raw", "raw", "a.tar.xz", "a.xz", "a.img.zip", ".img.xz", "a.raw/"] {
            assert!(!is_name(name), "{name}");
        }
    }
}
