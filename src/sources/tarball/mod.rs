//! A tar archive unpacked into the root of a machine.
//!
//! The archive is hostile. `entry` parses headers, `pax` their extensions, `place` makes names inside the target and
//! nowhere else, `writer` fills files in threads of its own. The order of all that touches names is the order of the
//! archive; only contents and attributes of files are written concurrently.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::thread;

use crate::machine::{Cancel, Cancelled, Report};
use crate::sys::files::{FileError, Kind, shown};

use super::archive::{self, Contents};
use blocks::Blocks;
use entry::{Attributes, Content, Entry};
use place::Place;
use writer::Writer;

mod blocks;
mod entry;
mod names;
mod pax;
mod place;
#[cfg(test)]
mod tests;
mod writer;

/// Compressed bytes between two reports of the progress.
const REPORT_EVERY: u64 = 1 << 20;

/// Bytes of a name that a message shows.
const SHOWN_NAME: usize = 200;

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

/// Why an archive could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum TarballError {
    /// A file of the target could not be made.
    #[error("cannot {action} '{}'", shown(path))]
    Io {
        /// What was attempted, as a verb.
        action: &'static str,
        /// The path in the target.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The archive could not be read or decompressed.
    #[error("cannot read archive '{}'", shown(archive))]
    Read {
        /// The archive.
        archive: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The archive ends too early.
    #[error("archive '{}' is truncated: it ends {place}", shown(archive))]
    Truncated {
        /// The archive.
        archive: PathBuf,
        /// Where it ends: "inside of entry 'usr/bin/true'".
        place: String,
    },
    /// No bytes at all.
    #[error("archive '{}' is empty", shown(archive))]
    Empty {
        /// The archive.
        archive: PathBuf,
    },
    /// It begins with something that is no tar header.
    #[error("'{}' is not a tar archive{}", shown(archive), looks_like.map(|what| format!(": it looks like {what}")).unwrap_or_default())]
    NotTar {
        /// The archive.
        archive: PathBuf,
        /// What its first bytes tell, if anything: "a zip archive".
        looks_like: Option<&'static str>,
    },
    /// A later header is damaged.
    #[error("archive '{}' is damaged: no valid header at byte {offset}", shown(archive))]
    Damaged {
        /// The archive.
        archive: PathBuf,
        /// Where the header should be, in bytes of the uncompressed archive.
        offset: u64,
    },
    /// Something follows the end marker.
    #[error("archive '{}' goes on after its end marker, at byte {offset}", shown(archive))]
    TrailingBytes {
        /// The archive.
        archive: PathBuf,
        /// The first byte after the end that is not zero, in bytes of the uncompressed archive.
        offset: u64,
    },
    /// An entry is hostile, damaged or of an unknown kind.
    #[error("archive entry '{}' {problem}", shown(entry))]
    Entry {
        /// The name as it stands in the archive.
        entry: OsString,
        /// What is wrong with it.
        problem: Problem,
    },
    /// The target could not be opened.
    #[error(transparent)]
    Target(#[from] FileError),
    /// The caller asked to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// What is wrong with an entry of an archive; completes the sentence "archive entry 'NAME' …".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// `..` in the name.
    #[error("leads outside of the machine")]
    LeadsOutside,
    /// A leading `/`.
    #[error("has an absolute path")]
    Absolute,
    /// A NUL byte, which only a pax header can smuggle in.
    #[error("has a NUL byte in its name")]
    NulByte,
    /// A name that is longer than any real one.
    #[error("has a name of {0} bytes")]
    LongName(usize),
    /// A name with more directories than any real one.
    #[error("lies {0} directories deep")]
    Deep(usize),
    /// No name, or one that names the root where only a directory can be.
    #[error("has no name")]
    NoName,
    /// A directory of the name is a symbolic link of the archive that leads out.
    #[error("goes through a symbolic link that leads outside of the machine")]
    LinkLeadsOutside,
    /// A directory of the name is something else.
    #[error("lies inside of something that is not a directory")]
    NotInDirectory,
    /// A hard link out of the machine.
    #[error("is a hard link to '{}', which leads outside of the machine", shown(target))]
    HardLinkOutside {
        /// Its target as it stands in the archive.
        target: OsString,
    },
    /// A hard link to nothing.
    #[error("is a hard link to '{}', which no earlier entry has made", shown(target))]
    HardLinkMissing {
        /// Its target as it stands in the archive.
        target: OsString,
    },
    /// A hard link to a directory.
    #[error("is a hard link to '{}', which is a directory", shown(target))]
    HardLinkDirectory {
        /// Its target as it stands in the archive.
        target: OsString,
    },
    /// A directory would be lost.
    #[error("would replace a directory by a {0}")]
    ReplacesDirectory(Kind),
    /// A device node that systemd-nspawn would not cover.
    #[error("is a device node outside of dev/")]
    Device,
    /// An entry type that POSIX and GNU tar do not define, or that needs more than one archive.
    #[error("has the unsupported type {0:?}")]
    Unsupported(char),
    /// A header field without a valid number.
    #[error("has an invalid {0}")]
    BadField(&'static str),
    /// A header extension that no real archive has.
    #[error("has an extended header of {0} bytes")]
    HugeExtension(u64),
    /// Extended headers that no real archive has so many of.
    #[error("has too many records in its extended headers")]
    ManyRecords,
    /// An extended attribute that no filesystem would take.
    #[error("has an extended attribute of {0} bytes")]
    HugeXattr(usize),
    /// Directories that have more to be remembered than memory should be spent on.
    #[error("takes names and extended attributes of all directories over {0} bytes")]
    ManyAttributes(usize),
    /// A list of pieces that contradicts itself or the size.
    #[error("has an invalid list of sparse pieces")]
    SparseMap,
    /// A later entry changed a link on the way to this directory.
    #[error("is a directory that a later entry moved away")]
    Moved,
}

impl TarballError {
    fn io<E: Into<io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> Self + use<E> {
        let path = path.to_path_buf();
        move |source| Self::Io {
            action,
            path,
            source: source.into(),
        }
    }

    fn entry(name: &[u8], problem: Problem) -> Self {
        Self::Entry {
            entry: shortened(name),
            problem,
        }
    }
}

/// A name as far as a message needs it: an archive may have names of megabytes.
fn shortened(name: &[u8]) -> OsString {
    let mut short = name[..name.len().min(SHOWN_NAME)].to_vec();
    if short.len() < name.len() {
        short.extend_from_slice("…".as_bytes());
    }
    OsString::from_vec(short)
}

/// Unpacks the archive `name` (tar, plain or compressed with gzip, xz, zstd or bzip2; a fifo will do) into `target`, a
/// directory that should be empty.
///
/// Nothing is made or changed outside of `target`, whatever the archive says. Owners are taken by number. On an error what
/// was unpacked so far is left for the caller to remove. Nothing is synced to disk.
pub fn extract(name: &Path, target: &Path, report: &dyn Report, cancel: &Cancel) -> Result<Extracted, TarballError> {
    let file = archive::open(name).map_err(|source| TarballError::Read {
        archive: name.to_path_buf(),
        source,
    })?;
    extract_file(file, name, target, report, cancel)
}

/// Like [`extract`], from an open file, whose `name` is for messages.
pub fn extract_file(
    file: File,
    name: &Path,
    target: &Path,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Extracted, TarballError> {
    extract_in_manner(file, name, target, None, report, cancel)
}

/// The value that an extended attribute gets, by its name and value; `None` leaves it out.
pub type Attribute<'a> = dyn Fn(&[u8], &[u8]) -> Option<Vec<u8>> + 'a;

/// What becomes of what an archive says of its entries, where they are not for a machine of its own.
#[derive(Clone, Copy)]
pub struct Manner<'a> {
    /// The owner that an entry gets, by its user's and its group's number.
    pub owner: &'a dyn Fn(u32, u32) -> (u32, u32),
    /// The value that an extended attribute gets, by its name and value; `None` leaves it out.
    pub attribute: &'a Attribute<'a>,
    /// Bits of the mode that are kept.
    pub mode: u32,
}

impl Manner<'_> {
    fn apply(&self, attributes: &mut Attributes) {
        (attributes.uid, attributes.gid) = (self.owner)(attributes.uid, attributes.gid);
        attributes.mode &= self.mode;
        attributes
            .xattrs
            .retain_mut(|(name, value)| match (self.attribute)(name, value) {
                Some(new) => {
                    *value = new;
                    true
                }
                None => false,
            });
    }
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
    extract_in_manner(file, name, target, Some(manner), report, cancel)
}

fn extract_in_manner(
    file: File,
    name: &Path,
    target: &Path,
    manner: Option<&Manner<'_>>,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Extracted, TarballError> {
    unpack(file, name, target, manner, report, cancel).map_err(|error| match cancel.check() {
        // Whatever a decompressor made of it.
        Err(cancelled) => cancelled.into(),
        Ok(()) => error,
    })
}

fn unpack(
    file: File,
    name: &Path,
    target: &Path,
    manner: Option<&Manner<'_>>,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Extracted, TarballError> {
    report.phase(&format!(
        "unpacking {}",
        shown(name.file_name().unwrap_or(name.as_os_str()))
    ));
    let contents = Contents::from_file(file, cancel).map_err(|source| TarballError::Read {
        archive: name.to_path_buf(),
        source,
    })?;
    let position = contents.position();
    let mut blocks = Blocks::new(contents, name);
    let place = Place::open(target)?;
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
            manner,
            cancel,
            done: Extracted::default(),
            warned: false,
        };
        let mut reported = 0;
        while let Some(mut entry) = blocks.next()? {
            if let Some(manner) = manner {
                manner.apply(&mut entry.attributes);
            }
            unpacking.unpack(&entry, &mut blocks, report)?;
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
    manner: Option<&'a Manner<'a>>,
    cancel: &'a Cancel,
    done: Extracted,
    warned: bool,
}

impl Unpacking<'_> {
    fn unpack(&mut self, entry: &Entry, blocks: &mut Blocks, report: &dyn Report) -> Result<(), TarballError> {
        self.cancel.check()?;
        self.done.skipped_xattrs += entry.skipped_xattrs;
        if entry.acl_text && !std::mem::replace(&mut self.warned, true) {
            report.warn("the archive has access control lists as text, which are left out");
        }
        match &entry.content {
            Content::Socket => {
                self.done.skipped_sockets += 1;
                return Ok(());
            }
            Content::Device if self.manner.is_some() || entry.is_below(b"dev") => {
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
            self.done.bytes += data.len() as u64;
            self.writer.write(&made, offset, data)?;
        }
        self.writer.finish(made)
    }
}
