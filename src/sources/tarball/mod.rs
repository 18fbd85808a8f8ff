//! A tar archive unpacked into the root of a machine.
//!
//! The archive is hostile. `entry` parses headers, `pax` their extensions, `place` makes names inside the target and
//! nowhere else, `writer` fills files in threads of its own. The order of all that touches names is the order of the
//! archive; only contents and attributes of files are written concurrently.

use std::fs::File;
use std::path::Path;
use std::thread;

use crate::machine::{Cancel, Report};
use crate::sys::files::shown;

use super::archive::{self, Contents, FileSum, Position};
use super::sum::Sum;
use blocks::Blocks;
pub(super) use cpio::Cpio;
use entry::{Content, Entry};
use error::shortened;
pub use error::{Problem, TarballError};
pub use layer::Depth;
use layer::{Made, Marker};
pub use part::{Part, Subtree};
use place::Place;
pub use room::Room;
pub use sieve::{Attribute, Manner};
use sieve::{Ordinary, Sieve, Way};
use writer::Writer;

mod blocks;
pub mod bundle;
mod cpio;
mod entry;
mod error;
mod layer;
mod names;
mod part;
mod pax;
mod place;
mod room;
mod sieve;
#[cfg(test)]
mod tests;
mod writer;

/// Compressed bytes between two reports of the progress.
const REPORT_EVERY: u64 = 1 << 20;

/// What was unpacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extracted {
    /// Entries of the archive that were made.
    pub entries: u64,
    /// Directories among them.
    pub directories: u64,
    /// Symbolic links among them.
    pub links: u64,
    /// Bytes of file contents, holes not counted.
    pub bytes: u64,
    /// Sockets left out: only who listens on one can make it.
    pub skipped_sockets: u64,
    /// Device nodes under `dev/` left out: systemd-nspawn mounts its own.
    pub skipped_devices: u64,
    /// Extended attributes left out because they mean something to this host (`trusted.*`, `security.*` other than
    /// file capabilities) or are unknown.
    pub skipped_xattrs: u64,
}

/// What is wanted of an archive; all of it, if nothing is said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// What is unpacked.
    pub part: Part,
    /// The sum that the archive, compressed as it is, must have.
    pub sum: Option<Sum>,
    /// How many bytes of the disk it may take; almost all that is free if `None`.
    pub max_size: Option<u64>,
}

/// Unpacks the archive `name` (tar, plain or compressed with gzip, xz, zstd or bzip2; a fifo will do) into `target`, a
/// directory that should be empty.
///
/// Nothing is made or changed outside of `target`, whatever the archive says. Owners are taken by number. On an error what
/// was unpacked so far is left for the caller to remove. Nothing is synced to disk.
pub fn extract(
    name: &Path,
    target: &Path,
    wanted: &Wanted,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Extracted, TarballError> {
    let file = archive::open(name).map_err(|source| TarballError::Read {
        archive: name.to_path_buf(),
        source,
    })?;
    extract_file(file, name, target, wanted, report, cancel)
}

/// Like [`extract`], from an open file, whose `name` is for messages.
pub fn extract_file(
    file: File,
    name: &Path,
    target: &Path,
    wanted: &Wanted,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Extracted, TarballError> {
    extract_in_manner(file, name, target, wanted, Way::Machine, report, cancel)
}

/// Like [`extract_file`], for a layer of an image: what it says to hide of the layers below, which are in `target`, is
/// removed, and what it has takes the place of whatever they have.
pub fn extract_layer(
    file: File,
    name: &Path,
    target: &Path,
    wanted: &Wanted,
    (depth, room): (Depth, &Room),
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Extracted, TarballError> {
    extract_in_manner(file, name, target, wanted, Way::Layer(depth, room), report, cancel)
}

/// Like [`extract_file`], into a tree that a guest may change meanwhile; devices are left out wherever they are.
pub fn extract_stream(
    file: File,
    name: &Path,
    target: &Path,
    manner: &Manner<'_>,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Extracted, TarballError> {
    extract_in_manner(
        file,
        name,
        target,
        &Wanted::default(),
        Way::Guest(manner),
        report,
        cancel,
    )
}

fn extract_in_manner(
    file: File,
    name: &Path,
    target: &Path,
    wanted: &Wanted,
    way: Way<'_>,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Extracted, TarballError> {
    extract_checked(file, name, target, wanted, way, report, cancel).map_err(|error| match cancel.check() {
        // Whatever a decompressor made of it.
        Err(cancelled) => cancelled.into(),
        Ok(()) => error,
    })
}

fn extract_checked(
    file: File,
    name: &Path,
    target: &Path,
    wanted: &Wanted,
    way: Way<'_>,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Extracted, TarballError> {
    let short = shown(name.file_name().unwrap_or(name.as_os_str()));
    report.phase(&format!("unpacking {short}"));
    let unreadable = |source| TarballError::Read {
        archive: name.to_path_buf(),
        source,
    };
    let Some(sum) = wanted.sum else {
        let contents = Contents::from_file(file, cancel).map_err(unreadable)?;
        return unpack(tar(contents, name), name, target, wanted, way, report, cancel);
    };
    let (contents, found) = Contents::summed(file, cancel).map_err(unreadable)?;
    let unpacked = unpack(tar(contents, name), name, target, wanted, way, report, cancel);
    cancel.check()?;
    // Whatever is wrong with it: that it is another archive than the one that was asked for is to be told first.
    check_sum(name, sum, &found).and(unpacked)
}

/// Unpacks a cpio archive as [`extract_file`] does one of tar: all of it.
pub(super) fn extract_cpio(
    contents: Contents,
    name: &Path,
    target: &Path,
    max_size: Option<u64>,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Extracted, TarballError> {
    let position = contents.position();
    let members = Members::Cpio(Box::new(Cpio::new(Blocks::new(contents, name))));
    let wanted = Wanted {
        max_size,
        ..Wanted::default()
    };
    let unpacked = unpack((members, position), name, target, &wanted, Way::Machine, report, cancel);
    unpacked.map_err(|error| cancel.check().map_or_else(TarballError::from, |()| error))
}

/// What has entries.
enum Members {
    Tar(Box<Blocks>),
    Cpio(Box<Cpio>),
}

impl Members {
    fn next(&mut self) -> Result<Option<Entry>, TarballError> {
        match self {
            Self::Tar(blocks) => blocks.next(),
            Self::Cpio(cpio) => cpio.next(),
        }
    }

    /// The contents of the last entry.
    fn blocks(&mut self) -> &mut Blocks {
        match self {
            Self::Tar(blocks) => blocks,
            Self::Cpio(cpio) => &mut cpio.blocks,
        }
    }
}

fn tar(contents: Contents, name: &Path) -> (Members, Position) {
    let position = contents.position();
    (Members::Tar(Box::new(Blocks::new(contents, name))), position)
}

/// Compares the sum of an archive with the one that it should have; reads what nobody has read of it.
pub(super) fn check_sum(name: &Path, wanted: Sum, found: &FileSum) -> Result<(), TarballError> {
    let archive = name.to_path_buf();
    match found.finish() {
        Ok(found) if found == wanted => Ok(()),
        Ok(found) => Err(TarballError::WrongSum { archive, wanted, found }),
        Err(source) => Err(TarballError::Read { archive, source }),
    }
}

fn unpack(
    members: (Members, Position),
    name: &Path,
    target: &Path,
    wanted: &Wanted,
    way: Way<'_>,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Extracted, TarballError> {
    let part = &wanted.part;
    // What goes into a machine that there is, its owner bounds.
    let own;
    let room = match way {
        Way::Guest(_) => None,
        Way::Machine => {
            own = Room::new(wanted.max_size, target)?;
            Some(&own)
        }
        Way::Layer(_, room) => Some(room),
    };
    let mut sieve = Ordinary { part, way };
    let extracted = unpack_sifted(members, name, target, &mut sieve, room, report, cancel)?;
    if extracted.entries == 0 && !part.is_all() {
        return Err(TarballError::NothingLeft {
            archive: name.to_path_buf(),
            part: part.clone(),
        });
    }
    Ok(extracted)
}

fn unpack_sifted(
    (mut members, position): (Members, Position),
    name: &Path,
    target: &Path,
    sieve: &mut dyn Sieve,
    room: Option<&Room>,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Extracted, TarballError> {
    members.blocks().may_just_end = sieve.depth().is_some();
    let mut place = Place::open(target)?;
    place.made = (sieve.depth() == Some(Depth::Upper)).then(Made::default);
    let writer = Writer::default();
    let workers = thread::available_parallelism().map_or(1, usize::from).clamp(1, 4);
    let (mut place, extracted) = thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| writer.work(target));
        }
        // Lets the threads go on every way out, a panic included.
        let closing = writer.close_on_drop();
        let mut unpacking = Unpacking {
            place,
            writer: &writer,
            is_layer: sieve.depth().is_some(),
            leaves_devices: sieve.leaves_devices(),
            room,
            archive: name,
            target,
            cancel,
            done: Extracted::default(),
            warned: false,
        };
        let (mut reported, mut sifted) = (0, Vec::new());
        loop {
            sieve.before(members.blocks())?;
            let entry = members.next()?;
            let ended = entry.is_none();
            match entry {
                Some(entry) => sieve.sift(entry, members.blocks(), &mut sifted)?,
                None => sieve.end(&mut sifted)?,
            }
            for entry in sifted.drain(..) {
                unpacking.unpack(&entry, members.blocks(), report)?;
            }
            if ended {
                break;
            }
            if position.read() >= reported + REPORT_EVERY {
                reported = position.read();
                report.progress(reported, position.size());
            }
        }
        drop(closing);
        Ok::<_, TarballError>((unpacking.place, unpacking.done))
    })?;
    writer.into_result()?;
    place.finish()?;
    report.progress(position.read(), position.size());
    Ok(extracted)
}

/// The state of one run over an archive.
struct Unpacking<'a> {
    place: Place,
    writer: &'a Writer,
    is_layer: bool,
    leaves_devices: bool,
    room: Option<&'a Room>,
    archive: &'a Path,
    target: &'a Path,
    cancel: &'a Cancel,
    done: Extracted,
    warned: bool,
}

impl Unpacking<'_> {
    fn unpack(&mut self, entry: &Entry, blocks: &mut Blocks, report: &dyn Report) -> Result<(), TarballError> {
        self.cancel.check()?;
        if self.is_layer {
            let marker = Marker::of(&entry.name)?;
            if marker != Marker::None {
                return self.place.heed(&marker, &entry.name);
            }
        }
        self.done.skipped_xattrs += entry.skipped_xattrs;
        if let Some(room) = self.room {
            let block = match &entry.content {
                Content::Directory => 1,
                // Shorter ones lie in the inode.
                Content::Symlink(target) if target.len() > 59 => target.len(),
                _ => 0,
            };
            room.file(block + entry.attributes.xattr_bytes(), self.archive, self.target)?;
        }
        if entry.acl_text && !std::mem::replace(&mut self.warned, true) {
            report.warn("the archive has access control lists as text, which are left out");
        }
        match &entry.content {
            Content::Socket => {
                self.done.skipped_sockets += 1;
                return Ok(());
            }
            Content::Device if self.leaves_devices || entry.is_below(b"dev") => {
                self.done.skipped_devices += 1;
                return Ok(());
            }
            Content::Device => return Err(TarballError::entry(&entry.name, Problem::Device)),
            Content::Directory => self.place.directory(entry)?,
            Content::Symlink(target) => self.place.symlink(entry, target)?,
            Content::HardLink(target) => self.place.hard_link(entry, target)?,
            Content::Fifo => self.place.fifo(entry)?,
            Content::File { .. } => self.file(entry, blocks)?,
        }
        for _ in 0..std::mem::take(&mut self.place.implied) {
            if let Some(room) = self.room {
                room.directory(self.archive, self.target)?;
            }
        }
        self.place.note(&entry.name)?;
        self.done.directories += u64::from(entry.content == Content::Directory);
        self.done.links += u64::from(matches!(entry.content, Content::Symlink(_)));
        self.done.entries += 1;
        Ok(())
    }

    fn file(&mut self, entry: &Entry, blocks: &mut Blocks) -> Result<(), TarballError> {
        let made = self.place.file(entry)?;
        while let Some(offset) = blocks.next_piece() {
            self.cancel.check()?;
            let mut data = self.writer.buffer();
            blocks.read_piece(&mut data)?;
            if let Some(room) = self.room {
                room.contents(data.len(), self.archive, self.target)?;
            }
            self.done.bytes += data.len() as u64;
            self.writer.write(&made, offset, data)?;
        }
        self.writer.finish(made)
    }
}
