//! Why a source could not fill a tree, and what mends it.

mod full;

use std::io;
use std::path::{Path, PathBuf};

pub(crate) use full::is_full;

use super::digest::Digest;
use super::disk::DiskError;
use super::oci::OciError;
use super::source::TAR_ENDINGS;
use super::tarball::{Problem, TarballError};
use super::{Distro, catalogue::CatalogueError, trust::TrustError};
use crate::machine::{MachineName, NameError, text};
use crate::storage::StorageError;
use crate::sys::files::{FileError, shown};
use crate::sys::process::{ProcessError, Tail};
use crate::sys::processor::PACKAGES;

/// The forms that there are.
const SOURCES: &str = "a source is debian:SUITE, ubuntu:SUITE, FILE.tar[.gz|.xz|.zst|.bz2], FILE.img[.xz|…], -, \
                       https://…, images:DISTRO/RELEASE, DIR/, oci:DIR[:TAG], docker://NAME[:TAG], machine:NAME or \
                       template:busybox";

/// Everything that can go wrong between a source string and a filled tree.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The string has none of the known forms.
    #[error("'{given}' does not look like a source")]
    NoSource {
        /// What was given, escaped.
        given: String,
    },
    /// A form that a later version will know.
    #[error("cannot create from '{given}': this version does not know {kind} yet")]
    Unsupported {
        /// What was given, escaped.
        given: String,
        /// What it would be.
        kind: &'static str,
    },
    /// An address that cannot be one.
    #[error("'{given}' is no address of a download: {reason}")]
    BadUrl {
        /// What was given, escaped, without a password.
        given: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A download that failed.
    #[error("cannot download '{url}': {reason}")]
    Download {
        /// The address, without a password.
        url: String,
        /// What the server or the network said.
        reason: String,
        /// Whether the server could not show who it is.
        tls: bool,
    },
    /// A download of which nobody says what it has to be.
    #[error("nothing tells the sum of '{url}': it has neither .sha256 nor SHA256SUMS beside it, nor those of SHA-512")]
    NoChecksum {
        /// The address, without a password.
        url: String,
    },
    /// A list of checksums that everybody on the way can write.
    #[error("no list of checksums vouches for '{url}': anybody on the way may change both, as it is not https")]
    UnsafeChecksum {
        /// The address, without a password.
        url: String,
    },
    /// A download that would fill the disk.
    #[error("cannot download '{url}': {} for it on the filesystem of '{}'", too_large(*size, *room), .path.display())]
    NoRoom {
        /// The address, without a password.
        url: String,
        /// Bytes that were to come, if known.
        size: Option<u64>,
        /// Bytes that there is room for.
        room: u64,
        /// Where it is kept.
        path: PathBuf,
    },
    /// A download that is another file than it should be.
    #[error("'{url}' is not what it should be: its {} sum is {}, and {by} says {}", found.called(), found.hex(), wanted.hex())]
    WrongSum {
        /// The address, without a password.
        url: String,
        /// The digest that it should have.
        wanted: Box<Digest>,
        /// Who says so.
        by: String,
        /// The digest that it has.
        found: Box<Digest>,
    },
    /// A name that no machine can have.
    #[error("cannot copy a machine: {error}")]
    BadMachine {
        /// Why not.
        error: NameError,
    },
    /// A machine, where a tree is to be filled.
    #[error("'machine:{name}' is a machine already")]
    IsMachine {
        /// Its name.
        name: MachineName,
    },
    /// Something else than a directory.
    #[error("'{}' is no directory", shown(path))]
    NoDirectory {
        /// What it is instead, as given.
        path: PathBuf,
    },
    /// A directory that is a machine's.
    #[error("'{}' {}", shown(path), of_machine(machine.as_deref(), *is_image))]
    OfMachine {
        /// The directory as given.
        path: PathBuf,
        /// The machine's name; `None` for that of all machines.
        machine: Option<String>,
        /// Whether it is the machine's root.
        is_image: bool,
    },
    /// `template:` with another name than there are.
    #[error("there is no template '{given}'")]
    UnknownTemplate {
        /// What was given, escaped.
        given: String,
    },
    /// A suite's name that cannot be one.
    #[error("'{given}' does not name a suite of {distro}: letters, digits, '-', '.', '_' and '+' are allowed")]
    BadSuite {
        /// The distribution.
        distro: Distro,
        /// The whole source as given, escaped.
        given: String,
    },
    /// Nothing behind the colon.
    #[error("the suite is missing in '{distro}:'")]
    NoSuite {
        /// The distribution.
        distro: Distro,
    },
    /// An option's value that cannot be right.
    #[error("invalid {option} '{given}': {reason}")]
    BadOption {
        /// As on the command line, without dashes.
        option: &'static str,
        /// What was given, escaped.
        given: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The mirror is there and has no such suite.
    #[error("mirror '{mirror}' has no suite '{suite}'")]
    UnknownSuite {
        /// The distribution.
        distro: Distro,
        /// The suite.
        suite: String,
        /// The mirror's URL.
        mirror: String,
    },
    /// The mirror does not answer, or not as a mirror does.
    #[error("mirror '{mirror}' cannot be reached: {reason}")]
    Unreachable {
        /// The mirror's URL.
        mirror: String,
        /// What the network said.
        reason: String,
    },
    /// Something answers in the mirror's place: a login page, a web site.
    #[error("'{url}' is no Release file: is '{mirror}' a mirror of {distro}?")]
    NoRelease {
        /// The distribution.
        distro: Distro,
        /// What was fetched.
        url: String,
        /// The mirror's URL.
        mirror: String,
    },
    /// The keys to check the mirror with are not on this host.
    #[error("keyring '{}' does not exist", .path.display())]
    NoKeyring {
        /// The distribution whose default it is; `None` if the user named it.
        distro: Option<Distro>,
        /// Where it should be.
        path: PathBuf,
    },
    /// The mirror's signature was made by none of the keys.
    #[error("mirror '{mirror}' is not signed by a key of '{}'", .keyring.display())]
    BadSignature {
        /// The mirror's URL.
        mirror: String,
        /// The keys tried.
        keyring: PathBuf,
        /// What the program printed last.
        #[source]
        tail: Option<Tail>,
        /// The whole of it.
        log: PathBuf,
    },
    /// The mirror's Release file is past its date.
    #[error("the Release file of '{suite}' on mirror '{mirror}' has expired: the mirror lags behind")]
    Expired {
        /// The suite.
        suite: String,
        /// The mirror's URL.
        mirror: String,
        /// What the program printed last.
        #[source]
        tail: Option<Tail>,
    },
    /// A package that the suite does not have.
    #[error("'{suite}' has no package '{package}'")]
    NoPackage {
        /// The package's name.
        package: String,
        /// The suite.
        suite: String,
        /// The whole output.
        log: PathBuf,
    },
    /// No space left.
    #[error("no space left on the filesystem of '{}'", .path.display())]
    DiskFull {
        /// What was being written.
        path: PathBuf,
    },
    /// A filesystem that no guest can live on.
    #[error("'{}' is on a filesystem mounted {flag}: a guest's programs would not work there", .path.display())]
    MountFlag {
        /// The directory looked at.
        path: PathBuf,
        /// `nosuid`, `nodev` or `noexec`.
        flag: &'static str,
    },
    /// Programs of that architecture do not run here.
    #[error("programs for '{arch}' do not run on this host ({host})")]
    ForeignArch {
        /// What was asked for, in Debian's words.
        arch: String,
        /// What this host is.
        host: &'static str,
    },
    /// The bootstrapper failed for a reason that is in its output.
    #[error("bootstrapping '{suite}' failed")]
    Bootstrap {
        /// The suite.
        suite: String,
        /// The program's status and last words.
        #[source]
        source: ProcessError,
    },
    /// A child program could not be run or failed.
    #[error(transparent)]
    Process(ProcessError),
    /// The busybox found needs libraries.
    #[error("'{}' is {what}: a template needs a static one", .path.display())]
    NotStatic {
        /// The program.
        path: PathBuf,
        /// What it is instead.
        what: &'static str,
    },
    /// A file of the tree.
    #[error(transparent)]
    File(FileError),
    /// The tree could not be made or copied.
    #[error(transparent)]
    Storage(StorageError),
    /// The archive could not be unpacked.
    #[error(transparent)]
    Tarball(TarballError),
    /// Nothing could be made of the disk image.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The image could not be had.
    #[error(transparent)]
    Oci(#[from] OciError),
    /// A file of ours or of the host.
    #[error("cannot {action} '{}'", .path.display())]
    Io {
        /// What was tried: "read", "create".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// There is no such image in the catalogue.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// Nobody who is trusted vouches for it.
    #[error(transparent)]
    Trust(TrustError),
    /// The caller gave up.
    #[error(transparent)]
    Cancelled(#[from] crate::machine::Cancelled),
}

impl SourceError {
    /// An error about a file, with a full disk told apart.
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        if is_full(&source) {
            Self::DiskFull { path }
        } else {
            Self::Io { action, path, source }
        }
    }

    /// Whether it is about the bytes of a file, and another of that name may be better.
    pub(super) fn is_of_bytes(&self) -> bool {
        match self {
            Self::Tarball(error) => error.is_of_bytes(),
            Self::Disk(error) => error.is_of_bytes(),
            _ => false,
        }
    }

    /// The path in or above the tree that it is about.
    pub(crate) fn path_mut(&mut self) -> Option<&mut PathBuf> {
        match self {
            Self::DiskFull { path }
            | Self::MountFlag { path, .. }
            | Self::Io { path, .. }
            | Self::Tarball(TarballError::Io { path, .. }) => Some(path),
            Self::File(error) | Self::Tarball(TarballError::Target(error)) => error.path_mut(),
            Self::Storage(error) => error.path_mut(),
            _ => None,
        }
    }

    /// With a full disk told of a directory that is still there when the user looks.
    pub(crate) fn full_at(self, directory: &Path) -> Self {
        match self {
            Self::DiskFull { .. } => Self::DiskFull {
                path: directory.to_owned(),
            },
            other => other,
        }
    }

    /// Commands and options that mend it.
    #[must_use]
    pub fn hints(&self) -> Vec<String> {
        match self {
            Self::NoSource { .. } | Self::NoDirectory { .. } => vec![SOURCES.to_owned(), file_endings()],
            Self::Unsupported { .. } => vec![SOURCES.to_owned()],
            Self::NoSuite { distro } => vec![format!("for example `{distro}:{}`", distro.example())],
            Self::Download { tls: true, .. } => vec![
                "the host trusts those of the package ca-certificates: `apt install ca-certificates`, and \
                 update-ca-certificates(8) for one of your own"
                    .to_owned(),
            ],
            Self::Download { .. } => {
                vec!["behind a proxy: `--proxy URL`, or set http_proxy and https_proxy; what has come so far is gone on with".to_owned()]
            }
            Self::NoChecksum { .. } => {
                vec!["give it with `--sha256 HEX`, or trust the server with `--verify=no`".to_owned()]
            }
            Self::UnsafeChecksum { .. } => {
                vec!["give its sum with `--sha256 HEX`, or its address with https".to_owned()]
            }
            Self::WrongSum { .. } => {
                vec!["nothing was made of it: try again in a while, and tell the publisher if it stays so".to_owned()]
            }
            Self::IsMachine { name } => vec![format!("copy it with `machinist clone {name} NEW`")],
            Self::OfMachine {
                machine: Some(machine),
                is_image: true,
                ..
            } => vec![format!(
                "copy it as what it is, with a new identity: `machinist create NAME machine:{machine}`"
            )],
            Self::OfMachine { machine: Some(_), .. } => {
                vec!["copy it out first, as the machine sees it: `machinist cp -a MACHINE:PATH .`".to_owned()]
            }
            Self::OfMachine { machine: None, .. } => {
                vec!["copy one of them with `machinist create NAME machine:NAME`".to_owned()]
            }
            Self::UnknownTemplate { .. } => vec!["there is template:busybox".to_owned()],
            Self::UnknownSuite { distro, .. } => distro.suite_hints(),
            Self::Unreachable { .. } => vec![
                "check the network and the name, or choose another mirror with `--mirror URL`".to_owned(),
                "behind a proxy: `--proxy URL`, or set http_proxy".to_owned(),
            ],
            Self::NoRelease { .. } => vec!["give the mirror's root, above its 'dists', with `--mirror URL`".to_owned()],
            Self::NoKeyring {
                distro: Some(Distro::Ubuntu),
                ..
            } => vec![
                "install it with `apt install ubuntu-keyring` (older Debian: ubuntu-archive-keyring)".to_owned(),
                "or name a file that has the keys with `--keyring FILE`".to_owned(),
            ],
            Self::NoKeyring {
                distro: Some(Distro::Debian),
                ..
            } => vec!["install it with `apt install debian-archive-keyring`".to_owned()],
            Self::BadSignature { log, .. } => vec![
                "update the keyring's package, or name the mirror's own keys with `--keyring FILE`".to_owned(),
                format!("the whole output is kept in '{}'", log.display()),
            ],
            Self::Expired { .. } => vec![
                "choose a mirror that is up to date with `--mirror URL`".to_owned(),
                "if an old copy will do: `--bootstrapper debootstrap` checks the signature and not the date".to_owned(),
            ],
            Self::NoPackage { log, .. } => vec![
                "check `--include`, and `--components` if it is in another one than main".to_owned(),
                format!("the whole output is kept in '{}'", log.display()),
            ],
            Self::DiskFull { path } | Self::NoRoom { path, .. } => vec![
                format!("see `df -h {}`", shell_words::quote(&path.to_string_lossy())),
                "free the cache with `machinist clean`".to_owned(),
            ],
            Self::MountFlag { path, flag } => {
                let option = flag.trim_start_matches("no");
                let path = path.to_string_lossy();
                vec![format!(
                    "allow it with `mount -o remount,{option} $(findmnt -no TARGET -T {})`",
                    shell_words::quote(&path)
                )]
            }
            Self::ForeignArch { .. } => vec![format!("install an emulator: {PACKAGES}")],
            Self::Bootstrap { source, .. } | Self::Process(source) => source.hints(),
            Self::Tarball(TarballError::NothingLeft { .. }) => {
                vec!["see what it has with `tar -tvf FILE | less`".to_owned()]
            }
            Self::Tarball(TarballError::TooLarge { .. }) => {
                vec!["nothing is left of it; have it take more with a larger `--max-size`".to_owned()]
            }
            Self::Tarball(TarballError::WrongSum { .. }) => {
                vec!["nothing was made of it: fetch it again (a download with `--refresh`), and compare its sum with the publisher's".to_owned()]
            }
            Self::Tarball(TarballError::Entry {
                problem: Problem::HardLinkLeftOut { .. },
                ..
            }) => vec!["name a directory that both lie in, or have the archive packed anew".to_owned()],
            Self::Trust(error) => error.hints(),
            Self::Catalogue(error) => error.hints(),
            Self::Disk(error) => error.hints(),
            Self::Oci(error) => error.hints(),
            Self::NotStatic { .. } => vec!["install it with `apt install busybox-static`".to_owned()],
            _ => Vec::new(),
        }
    }
}

impl From<ProcessError> for SourceError {
    fn from(error: ProcessError) -> Self {
        match error {
            ProcessError::Cancelled(cancelled) => cancelled.into(),
            other => Self::Process(other),
        }
    }
}

fn too_large(size: Option<u64>, room: u64) -> String {
    let room = text::bytes(room);
    size.map_or_else(
        || "there is no more room".to_owned(),
        |size| format!("{} are to come, and there is room for {room}", text::bytes(size)),
    )
}

fn of_machine(machine: Option<&str>, is_image: bool) -> String {
    match machine {
        Some(name) if is_image => format!("is the image of machine '{name}'"),
        Some(name) => format!("lies in the image of machine '{name}'"),
        None => "is where the images of all machines are".to_owned(),
    }
}

fn file_endings() -> String {
    let mut endings = TAR_ENDINGS.to_vec();
    endings.sort_unstable();
    let disks = super::disk::ENDINGS.join(", ");
    format!(
        "the name of a file must end in {}, or in {disks}, which may be compressed",
        endings.join(", ")
    )
}
