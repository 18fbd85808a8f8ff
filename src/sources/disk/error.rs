//! Why nothing could be made of a disk image.

use std::io;
use std::path::{Path, PathBuf};

use crate::machine::text::bytes;
use crate::sys::files::shown;
use crate::sys::loop_mount::LoopError;

/// Why nothing could be made of a disk image.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The image could not be read or decompressed.
    #[error("cannot read disk image '{}'", shown(image))]
    Read {
        /// The image.
        image: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It ends too early.
    #[error("disk image '{}' is truncated: {what}", shown(image))]
    Truncated {
        /// The image.
        image: PathBuf,
        /// How that shows: "partition 2 ends at byte 4096, and the image at byte 512".
        what: String,
    },
    /// It is something else.
    #[error("'{}' is no disk image{}", shown(image), looks_like.map(|what| format!(": it looks like {what}")).unwrap_or_default())]
    NotDisk {
        /// The image.
        image: PathBuf,
        /// What its first bytes tell, if anything: "a web page".
        looks_like: Option<&'static str>,
    },
    /// A disk image that is no exported machine.
    #[error(
        "disk image '{}' is no machine that `machinist export` wrote: nothing in it says what machine it was",
        shown(image)
    )]
    NotExported {
        /// The image.
        image: PathBuf,
    },
    /// Its partition table cannot be believed.
    #[error("the partition table of '{}' is damaged: {what}", shown(image))]
    Table {
        /// The image.
        image: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// There is no partition of the number that was asked for.
    #[error("disk image '{}' has no partition {number}: {there}", shown(image))]
    NoPartition {
        /// The image.
        image: PathBuf,
        /// What was asked for.
        number: u32,
        /// What there is: "partition 1 is ext4", "it has no partitions".
        there: String,
    },
    /// Several partitions look alike.
    #[error("disk image '{}' has more than one root filesystem: {there}", shown(image))]
    SeveralRoots {
        /// The image.
        image: PathBuf,
        /// Which.
        there: String,
    },
    /// A live system of which one part is laid over another.
    #[error(
        "the system on '{}' is in several layers, which are not put together here: {there}",
        shown(image)
    )]
    Layered {
        /// The image.
        image: PathBuf,
        /// Which.
        there: String,
    },
    /// No partition looks like one.
    #[error("disk image '{}' has no root filesystem: {there}", shown(image))]
    NoRoot {
        /// The image.
        image: PathBuf,
        /// What there is instead.
        there: String,
    },
    /// What is asked for cannot be read: encrypted, LVM, another filesystem.
    #[error("{place} of '{}' is {what}: that cannot be unpacked", shown(image))]
    Unusable {
        /// The image.
        image: PathBuf,
        /// Where: "partition 2".
        place: String,
        /// What it is.
        what: String,
    },
    /// A qcow2 image that is not taken.
    #[error("cannot use qcow2 image '{}': {problem}", shown(image))]
    Qcow2 {
        /// The image.
        image: PathBuf,
        /// What is wrong with it.
        problem: Qcow2Problem,
    },
    /// It takes more of the disk than it may.
    #[error("disk image '{}' takes more than {}", shown(image), bytes(*max))]
    TooLarge {
        /// The image.
        image: PathBuf,
        /// What it may take, in bytes.
        max: u64,
    },
    /// A filesystem that could not be mounted.
    #[error("cannot mount {place} of '{}'", shown(image))]
    Mount {
        /// The image.
        image: PathBuf,
        /// Where: "partition 2".
        place: String,
        /// Why not.
        source: MountError,
    },
    /// A machine has more than its root filesystem, or would not be read as systemd-nspawn reads it.
    #[error("disk image '{}' is not to be read as one tree: {what}", shown(image))]
    NotWhole {
        /// The image.
        image: PathBuf,
        /// Why not.
        what: String,
    },
    /// systemd-nspawn could make no machine of it as it is.
    #[error("'{}' cannot be kept as an image: {what}", shown(image))]
    NotKept {
        /// The image.
        image: PathBuf,
        /// Why not.
        what: String,
    },
}

/// Why a filesystem of an image could not be mounted.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct MountError(pub(super) LoopError);

/// Why a qcow2 image is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Qcow2Problem {
    /// A version that nobody has written for ten years, or nobody yet.
    #[error("its version is {0}, and 2 and 3 are known")]
    Version(u32),
    /// What it does not have is in another file, of the host.
    #[error("it has a backing file")]
    BackingFile,
    /// The same for all of its data.
    #[error("its data is in another file")]
    DataFile,
    /// What it has is encrypted.
    #[error("it is encrypted")]
    Encrypted,
    /// It says so itself.
    #[error("it is marked as corrupt")]
    Corrupt,
    /// Subclusters, or what is to come.
    #[error("it uses features that are not known here ({0:#x})")]
    Features(u64),
    /// Numbers in it contradict each other.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
}

/// What is wrong with a partition table.
#[derive(Debug, thiserror::Error)]
pub(super) enum TableError {
    #[error(transparent)]
    Read(io::Error),
    #[error("{0}")]
    Damaged(String),
    #[error("partition {number} ends at byte {end}, and the image at byte {size}")]
    Truncated { number: u32, end: u64, size: u64 },
}

impl TableError {
    pub(super) fn of(self, image: &Path) -> DiskError {
        let what = self.to_string();
        let image = image.to_owned();
        match self {
            Self::Read(source) => DiskError::Read { image, source },
            Self::Damaged(_) => DiskError::Table { image, what },
            Self::Truncated { .. } => DiskError::Truncated { image, what },
        }
    }
}

impl DiskError {
    /// Whether another file of the same name may be better: it is about the bytes, and about nothing else.
    pub(crate) fn is_of_bytes(&self) -> bool {
        match self {
            Self::Read { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput
            ),
            Self::Truncated { .. } | Self::NotDisk { .. } | Self::Table { .. } => true,
            Self::Qcow2 { problem, .. } => matches!(problem, Qcow2Problem::Damaged(_) | Qcow2Problem::Corrupt),
            Self::Mount { source, .. } => matches!(source.0, LoopError::Refused { .. }),
            _ => false,
        }
    }

    /// Commands and options that mend it.
    pub(crate) fn hints(&self) -> Vec<String> {
        let file = |image: &Path| shell_words::quote(&image.to_string_lossy()).into_owned();
        match self {
            Self::SeveralRoots { .. } | Self::NoRoot { .. } => vec!["choose one with `--partition N`".to_owned()],
            Self::Layered { image, .. } => vec![format!(
                "take out the one that is a system by itself, the lowest: \
                 `xorriso -osirrox on -indev {} -extract /casper/NAME NAME`, and give it as the source: `NAME`",
                file(image)
            )],
            Self::TooLarge { .. } => {
                vec!["nothing is left of it; have it take more with a larger `--max-size`".to_owned()]
            }
            Self::NotExported { image } => vec![format!(
                "of an image that others made, `machinist create NAME {}` makes a machine",
                file(image)
            )],
            Self::NotKept { .. } => vec!["unpack it into a directory: `--extract`".to_owned()],
            Self::NotDisk {
                image,
                looks_like: Some("a tar archive"),
            } => vec![format!(
                "give it as a stream: `machinist create NAME - <{}`",
                file(image)
            )],
            Self::Truncated { .. } => vec!["fetch it again, and compare its sum with the publisher's".to_owned()],
            Self::Table { image, .. } => vec![format!("see what gdisk(8) makes of it: `gdisk -l {}`", file(image))],
            Self::Qcow2 {
                image,
                problem: Qcow2Problem::BackingFile | Qcow2Problem::DataFile | Qcow2Problem::Features(_),
            } => vec![format!(
                "make one file of it, where you trust it: `qemu-img convert -O qcow2 {} NEW.qcow2`",
                file(image)
            )],
            Self::Unusable { what, .. } if what.starts_with("encrypted") || what.contains("LVM") => {
                vec!["open it yourself, mount it, and give the directory as the source: `./DIR`".to_owned()]
            }
            Self::Mount { source, .. } => match &source.0 {
                LoopError::Device { .. } => vec!["load the driver with `modprobe loop`".to_owned()],
                LoopError::NoFilesystem(kind) => vec![format!("load its driver with `modprobe {}`", kind.as_str())],
                LoopError::Refused { .. } => vec!["the kernel's own words may be in `journalctl -k -n 20`".to_owned()],
                LoopError::Dirty => Vec::new(),
            },
            _ => Vec::new(),
        }
    }
}
