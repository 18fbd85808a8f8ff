//! An image as a file that can be read at any place: the user's own if that will do, else a copy without a name.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::DiskError;
use crate::machine::{Cancel, Report};
use crate::sources::SourceError;
use crate::sources::archive::Position;
use crate::storage::data::{self, BUFFER, Data};
use crate::storage::room::{Exceeded, Room};

/// Zeros of that many bytes become a hole.
const HOLE: usize = 4096;

/// Bytes between two reports of the progress.
const REPORT_EVERY: u64 = 8 << 20;

/// A file of which a loop device can be made: whole blocks of any size that one may have.
const ALIGNED: u64 = 4096;

/// An image that is being taken apart.
#[derive(Debug)]
pub(super) struct Image {
    /// What it is called, for messages.
    pub(super) name: PathBuf,
    pub(super) file: File,
    pub(super) size: u64,
    /// Whether nobody else has it, and it may be written to.
    ours: bool,
    /// Where copies are made.
    place: PathBuf,
    /// How many bytes of the disk each copy may take; almost all that is free if `None`.
    pub(super) max_size: Option<u64>,
    /// What a new one may take of the disk.
    room: Option<Room>,
}

impl Image {
    /// The user's own file, which is only read.
    pub(super) fn borrowed(file: File, name: &Path, place: &Path, max_size: Option<u64>) -> Result<Self, SourceError> {
        let failed = |error| SourceError::io("look at", name, error);
        let size = file.metadata().map_err(failed)?.len();
        let image = Self {
            name: name.to_owned(),
            file,
            size,
            ours: false,
            place: place.to_owned(),
            max_size,
            room: None,
        };
        Ok(image)
    }

    /// A file in it that is an image, too.
    pub(super) fn inside(&self, file: File) -> Result<Self, SourceError> {
        Self::borrowed(file, &self.name, &self.place, self.max_size)
    }

    /// A new one, empty still: no name leads to it, so that nothing is left of it.
    pub(super) fn new(name: &Path, place: &Path, max_size: Option<u64>) -> Result<Self, SourceError> {
        Ok(Self {
            name: name.to_owned(),
            file: tempfile::tempfile_in(place).map_err(|error| SourceError::io("create a file in", place, error))?,
            size: 0,
            ours: true,
            place: place.to_owned(),
            max_size,
            room: Some(room(max_size, place)?),
        })
    }

    /// A new one that stays, for a part of another one; empty still.
    pub(super) fn create(path: &Path, of: &Self) -> Result<Self, SourceError> {
        let mut options = File::options();
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(path);
        Ok(Self {
            name: of.name.clone(),
            file: file.map_err(|error| SourceError::io("create", path, error))?,
            size: 0,
            ours: true,
            place: path.to_owned(),
            max_size: of.max_size,
            room: Some(room(of.max_size, path.parent().unwrap_or(Path::new("/")))?),
        })
    }

    /// Opens one of those again.
    pub(super) fn open(path: &Path) -> Result<Self, SourceError> {
        let failed = |error| SourceError::io("open", path, error);
        let file = File::options().read(true).write(true).open(path).map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        Ok(Self {
            name: path.to_owned(),
            file,
            size,
            ours: true,
            place: path.to_owned(),
            max_size: None,
            room: None,
        })
    }

    /// Fills it with a part of another one.
    pub(super) fn fill_from(
        &mut self,
        other: &Self,
        range: &Range<u64>,
        report: &dyn Report,
        cancel: &Cancel,
    ) -> Result<(), SourceError> {
        let mut buffer = vec![0; BUFFER];
        let (mut at, mut reported) = (range.start, range.start);
        while at < range.end {
            cancel.check()?;
            // What is a hole there is one here; files without any say that all is data.
            at = match seek(&other.file, SeekFrom::Data(at)) {
                Ok(data) if data < range.end => data,
                Ok(_) | Err(Errno::NXIO) => break,
                Err(errno) => return Err(other.unreadable(errno.into())),
            };
            let wanted = usize::try_from(range.end - at).unwrap_or(BUFFER).min(BUFFER);
            let read = match other.file.read_at(&mut buffer[..wanted], at) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(other.unreadable(error)),
            };
            self.write(&buffer[..read], at - range.start)?;
            at += read as u64;
            if at >= reported + REPORT_EVERY {
                reported = at;
                report.progress(at - range.start, Some(range.end - range.start));
            }
        }
        self.finish(range.end - range.start)
    }

    /// Another one beside it, empty still.
    pub(super) fn another(&self) -> Result<Self, SourceError> {
        Self::new(&self.name, &self.place, self.max_size)
    }

    /// Writes some of it, of which zeros stay holes.
    pub(super) fn write(&self, bytes: &[u8], mut at: u64) -> Result<(), SourceError> {
        for piece in bytes.chunks(HOLE) {
            if piece.iter().any(|byte| *byte != 0) {
                if let Some(room) = &self.room {
                    room.contents(piece.len() as u64)
                        .map_err(|Exceeded(given)| self.exceeded(given))?;
                }
                self.file
                    .write_all_at(piece, at)
                    .map_err(|error| SourceError::io("write to", &self.place, error))?;
            }
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Ends it, with a hole behind what was written.
    pub(super) fn finish(&mut self, size: u64) -> Result<(), SourceError> {
        let failed = |error| SourceError::io("write to", &self.place, error);
        self.size = size;
        let aligned = size.checked_next_multiple_of(ALIGNED).unwrap_or(size);
        self.file.set_len(aligned).map_err(failed)
    }

    /// Fills it with all that comes.
    pub(super) fn fill(
        &mut self,
        contents: &mut dyn Read,
        position: &Position,
        report: &dyn Report,
        cancel: &Cancel,
    ) -> Result<(), SourceError> {
        let mut buffer = vec![0; BUFFER];
        let (mut at, mut reported) = (0, 0);
        loop {
            cancel.check()?;
            let read = match contents.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    // Whatever a decompressor made of it.
                    cancel.check()?;
                    return Err(self.unreadable(error));
                }
            };
            self.write(&buffer[..read], at)?;
            at += read as u64;
            if at >= reported + REPORT_EVERY {
                reported = at;
                report.progress(position.read(), position.size());
            }
        }
        report.progress(position.read(), position.size());
        self.finish(at)
    }

    /// Makes it one that may be written to, and whose size a loop device can have.
    pub(super) fn own(&mut self, cancel: &Cancel) -> Result<(), SourceError> {
        if self.ours {
            return Ok(());
        }
        let mut copy = self.another()?;
        let file = data::File {
            source: self.file.as_fd(),
            target: copy.file.as_fd(),
            size: self.size,
            copied: None,
            room: copy.room.as_ref(),
        };
        let copied = data::copy(&file, true, Data::Share, &mut vec![0; BUFFER], cancel);
        cancel.check()?;
        if let Some(max) = copy.room.as_ref().and_then(Room::too_small) {
            return Err(self.exceeded(Some(max)));
        }
        copied.map_err(|errno| SourceError::io("copy the image to", &self.place, errno.into()))?;
        copy.finish(self.size)?;
        *self = copy;
        Ok(())
    }

    /// A range as a loop device can have it: in whole sectors. What ends with the file may end in the middle of one.
    pub(super) fn sectors(&mut self, range: &Range<u64>, cancel: &Cancel) -> Result<Range<u64>, SourceError> {
        let whole = range.start..range.end.next_multiple_of(512);
        if whole.end > self.size && !self.size.is_multiple_of(512) {
            self.own(cancel)?;
        }
        Ok(whole)
    }

    /// An error of what it, or a copy of it, takes of the disk.
    fn exceeded(&self, given: Option<u64>) -> SourceError {
        let image = self.name.clone();
        match given {
            Some(max) => DiskError::TooLarge { image, max }.into(),
            None => SourceError::DiskFull {
                path: self.place.clone(),
            },
        }
    }

    /// An error of reading it.
    pub(super) fn unreadable(&self, source: io::Error) -> SourceError {
        unreadable(&self.name, source)
    }
}

fn room(max_size: Option<u64>, place: &Path) -> Result<Room, SourceError> {
    Room::new(max_size, place).map_err(|error| SourceError::io("open", place, error))
}

/// An error of reading an image.
pub(super) fn unreadable(name: &Path, source: io::Error) -> SourceError {
    let image = name.to_owned();
    if source.kind() == io::ErrorKind::UnexpectedEof {
        let what = "it ends inside of its compressed data".to_owned();
        return DiskError::Truncated { image, what }.into();
    }
    DiskError::Read { image, source }.into()
}
