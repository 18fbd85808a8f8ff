//! Why an archive could not be unpacked.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use super::Part;
use crate::machine::Cancelled;
use crate::machine::text::bytes;
use crate::sources::sum::Sum;
use crate::sys::files::{FileError, Kind, shown};

/// Bytes of a name that a message shows.
const SHOWN_NAME: usize = 200;

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
    /// A cpio archive of a form that has no place for the numbers of today.
    #[error("'{}' is a cpio archive of an old form: only newc is known", shown(archive))]
    OldCpio {
        /// The archive.
        archive: PathBuf,
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
    /// It takes more of the disk than it may.
    #[error("archive '{}' takes more than {}", shown(archive), bytes(*max))]
    TooLarge {
        /// The archive.
        archive: PathBuf,
        /// What it may take, in bytes.
        max: u64,
    },
    /// It has nothing in the part that was asked for.
    #[error("archive '{}' has nothing below {part}", shown(archive))]
    NothingLeft {
        /// The archive.
        archive: PathBuf,
        /// The part.
        part: Part,
    },
    /// It is another file than the one that was asked for.
    #[error(
        "archive '{}' is not what was asked for: its SHA-256 sum is {found}, not {wanted}",
        shown(archive)
    )]
    WrongSum {
        /// The archive.
        archive: PathBuf,
        /// The sum that it should have.
        wanted: Sum,
        /// The sum that it has.
        found: Sum,
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

impl TarballError {
    /// Whether the bytes are no whole archive, or others than they should be.
    pub(crate) fn is_of_bytes(&self) -> bool {
        matches!(
            self,
            Self::Read { .. }
                | Self::Truncated { .. }
                | Self::Empty { .. }
                | Self::NotTar { .. }
                | Self::Damaged { .. }
                | Self::TrailingBytes { .. }
                | Self::WrongSum { .. }
        )
    }
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
    /// A hard link to what is left out.
    #[error(
        "is a hard link to '{}', which is in the part of the archive that is left out",
        shown(target)
    )]
    HardLinkLeftOut {
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
    /// One of more hard links than memory should be spent on.
    #[error("is one of too many hard links")]
    ManyLinks,
    /// An extended attribute that no filesystem would take.
    #[error("has an extended attribute of {0} bytes")]
    HugeXattr(usize),
    /// Directories that have more to be remembered than memory should be spent on.
    #[error("takes names and extended attributes of all directories over {0} bytes")]
    ManyAttributes(usize),
    /// A list of pieces that contradicts itself or the size.
    #[error("has an invalid list of sparse pieces")]
    SparseMap,
    /// A name that came before: which of the two is meant, nobody knows.
    #[error("is in it twice")]
    Twice,
    /// An exported machine has nothing of that name.
    #[error("is nothing that an exported machine has")]
    Stranger,
    /// The tree is one piece, or its sum says nothing.
    #[error("is of the tree, which had ended before")]
    ScatteredTree,
    /// A link or a device where a small file is expected.
    #[error("is not a plain file")]
    NotPlain,
    /// More than settings can be.
    #[error("is too large, or one too many, for settings of a machine: {0} bytes")]
    HugeMember(u64),
    /// A marker that hides nothing that can be named, or everything; or something that lies in a marker.
    #[error("is no valid whiteout: it names no file of a layer below")]
    Whiteout,
    /// A layer that has more to be remembered than memory should be spent on.
    #[error("is one too many: a layer may have {0} files")]
    ManyNames(usize),
    /// A later entry changed a link on the way to this directory.
    #[error("is a directory that a later entry moved away")]
    Moved,
}

impl TarballError {
    pub(super) fn io<E: Into<io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> Self + use<E> {
        let path = path.to_path_buf();
        move |source| Self::Io {
            action,
            path,
            source: source.into(),
        }
    }

    pub(crate) fn entry(name: &[u8], problem: Problem) -> Self {
        Self::Entry {
            entry: shortened(name),
            problem,
        }
    }
}

/// A name as far as a message needs it: an archive may have names of megabytes.
pub(super) fn shortened(name: &[u8]) -> OsString {
    let mut short = name[..name.len().min(SHOWN_NAME)].to_vec();
    if short.len() < name.len() {
        short.extend_from_slice("…".as_bytes());
    }
    OsString::from_vec(short)
}
