//! A machine that `export` wrote as a disk image: its filesystem, and a partition of our own type that says what machine it was.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::ops::Range;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::fs::{MemfdFlags, memfd_create};
use sha2::{Digest as _, Sha256};

use super::image::Image;
use super::{DiskError, in_image, is_name, root, table};
use crate::machine::manifest::PARTITION;
use crate::machine::{Cancel, Report};
use crate::sources::SourceError;
use crate::sources::sum::Sum;
use crate::storage;
use crate::sys::files::magic_link;

/// The longest partition of settings in bytes.
const SETTINGS_MAX: u64 = 16 << 20;
/// Bytes that are added up at once.
const PIECE: usize = 256 << 10;

/// Such a machine.
#[derive(Debug)]
pub struct Exported {
    /// What is said of it: a tar.
    pub settings: File,
    image: Image,
    /// The partition of its filesystem.
    number: u32,
    range: Range<u64>,
}

/// Adds up a part of a file.
pub(crate) fn sum_of(file: &File, range: &Range<u64>, cancel: &Cancel) -> io::Result<(Sum, u64)> {
    let (mut sum, mut at, mut buffer) = (Sha256::new(), range.start, vec![0; PIECE]);
    while at < range.end {
        cancel.check().map_err(io::Error::other)?;
        let wanted = usize::try_from(range.end - at).unwrap_or(PIECE).min(PIECE);
        let read = file.read_at(&mut buffer[..wanted], at)?;
        if read == 0 {
            break;
        }
        sum.update(&buffer[..read]);
        at += read as u64;
    }
    Ok((Sum::from_digest(sum), at - range.start))
}

impl Exported {
    /// Finds it in a file; `None` if that is no disk image. `place` has room for what is to be copied.
    ///
    /// # Errors
    /// [`DiskError::NotExported`] if it is any other disk image.
    pub fn open(file: File, path: &Path, place: &Path) -> Result<Option<Self>, SourceError> {
        if !file.metadata().is_ok_and(|found| found.is_file()) {
            return Ok(None);
        }
        let image = Image::borrowed(file, path, place, None)?;
        let not_exported = || DiskError::NotExported { image: path.to_owned() };
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .to_ascii_lowercase();
        let partitions = match table::read(&image.file, image.size).map_err(|error| error.of(path))? {
            None if is_name(&name) => return Err(not_exported().into()),
            None => return Ok(None),
            Some(partitions) => partitions,
        };
        let ours = partitions.iter().find(|one| one.kind == Some(PARTITION));
        let root = partitions.iter().find(|one| one.is_root);
        let Some((ours, root)) = ours.zip(root) else {
            return Err(not_exported().into());
        };
        let settings = settings(&image.file, &ours.range).map_err(|error| image.unreadable(error))?;
        Ok(Some(Self {
            settings,
            number: root.number,
            range: root.range.clone(),
            image,
        }))
    }

    /// The sum of its filesystem, and its bytes.
    pub fn sum(&self, cancel: &Cancel) -> Result<(Sum, u64), SourceError> {
        let sum = sum_of(&self.image.file, &self.range, cancel);
        cancel.check()?;
        sum.map_err(|error| self.image.unreadable(error))
    }

    /// Copies its tree to `target`, which must not exist.
    pub fn extract(&mut self, target: &Path, report: &dyn Report, cancel: &Cancel) -> Result<(), SourceError> {
        let root = root::open(&mut self.image, Some(self.number), cancel)?;
        let source = magic_link(root.as_fd());
        let source = Path::new(&source);
        storage::copy_foreign(source, target, None, report, cancel).map_err(|error| in_image(error.into(), source))?;
        without_lost_and_found(target).map_err(|error| SourceError::io("change", target, error))
    }
}

/// Takes off what mke2fs has added, if nothing is in it, and leaves no trace of that.
fn without_lost_and_found(target: &Path) -> io::Result<()> {
    let top = File::open(target)?;
    let modified = top.metadata()?.modified()?;
    match std::fs::remove_dir(target.join("lost+found")) {
        Ok(()) => top.set_modified(modified),
        // It is not there, or is somebody's.
        Err(_) => Ok(()),
    }
}

/// A file of the partition, which nobody changes while it is read.
fn settings(image: &File, range: &Range<u64>) -> io::Result<File> {
    let mut image = image.try_clone()?;
    image.seek(io::SeekFrom::Start(range.start))?;
    let mut bytes = Vec::new();
    image
        .take((range.end - range.start).min(SETTINGS_MAX))
        .read_to_end(&mut bytes)?;
    let mut file = File::from(memfd_create("machinist-settings", MemfdFlags::CLOEXEC)?);
    file.write_all(&bytes)?;
    file.rewind()?;
    Ok(file)
}
