//! Why an image could not be had.

use std::path::PathBuf;

use super::Digest;
use crate::sys::files::shown;

/// Why an image could not be had. What was given or found is escaped for a terminal.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// A name that no image of a registry can have.
    #[error("'{given}' names no image: {reason}")]
    Reference {
        /// As given.
        given: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A directory that is no layout.
    #[error("'{image}' is no OCI layout: {reason}")]
    NoLayout {
        /// The directory.
        image: String,
        /// What it lacks.
        reason: String,
    },
    /// An archive without an image in it.
    #[error("'{image}' is no archive of an image: it has neither 'index.json' nor 'manifest.json'")]
    NoArchive {
        /// The archive.
        image: String,
    },
    /// An image that is no exported machine.
    #[error("'{image}' is no machine that `machinist export` wrote: {reason}")]
    NotExported {
        /// The image.
        image: String,
        /// What it lacks.
        reason: &'static str,
    },
    /// Several images, and none was named; or one that is not there.
    #[error("'{image}' has {}: it has {}", tag.as_ref().map_or_else(|| "several images".to_owned(), |tag| format!("no image '{tag}'")), list(has))]
    Tag {
        /// The image.
        image: String,
        /// The one that was named.
        tag: Option<String>,
        /// Those that there are.
        has: Vec<String>,
    },
    /// It is for other machines.
    #[error("'{image}' is not for {wanted}: it is for {}", list(has))]
    Platform {
        /// The image.
        image: String,
        /// As `linux/amd64`.
        wanted: String,
        /// What it is for.
        has: Vec<String>,
    },
    /// A document that cannot be understood.
    #[error("{what} of '{image}' {reason}")]
    Document {
        /// The image.
        image: String,
        /// Which: "the manifest".
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Something of it is not there.
    #[error("{what} of '{image}' is missing: there is no {digest}")]
    Missing {
        /// The image.
        image: String,
        /// Which: "layer 1 of 3".
        what: String,
        /// Its digest.
        digest: String,
    },
    /// Something of it has another length than its manifest says.
    #[error("{what} of '{image}' has {found} bytes, and not the {wanted} that stand in the image")]
    Length {
        /// The image.
        image: String,
        /// Which: "layer 1 of 3".
        what: String,
        /// Bytes that it should have.
        wanted: u64,
        /// Bytes that it has.
        found: u64,
    },
    /// Something of it is something else.
    #[error("{what} of '{image}' is not what it should be: its {} sum is {}, not {}", wanted.called(), found.hex(), wanted.hex())]
    Digest {
        /// The image.
        image: String,
        /// Which: "layer 1 of 3".
        what: String,
        /// The sum that it should have.
        wanted: Box<Digest>,
        /// The sum that it has.
        found: Box<Digest>,
    },
    /// The layers leave nothing.
    #[error("'{image}' is empty: its layers leave no files")]
    Empty {
        /// The image.
        image: String,
    },
    /// It neither boots nor says what to start.
    #[error("'{image}' has nothing to start: neither an init nor a program of its own")]
    NoProgram {
        /// The image.
        image: String,
    },
    /// A program that no .nspawn file and no script can name.
    #[error("the program of '{image}' cannot be started: {reason}")]
    Program {
        /// The image.
        image: String,
        /// Why not.
        reason: &'static str,
    },
    /// The registry, or the way to it.
    #[error("cannot get '{image}' from its registry: {reason}")]
    Registry {
        /// The image.
        image: String,
        /// What it said.
        reason: String,
        /// What may help.
        hint: Option<String>,
    },
    /// `--tls-verify=no` of a registry that others can be in the place of.
    #[error("'{host}' is not on this host: --tls-verify=no is for registries at 127.0.0.1, ::1 and localhost")]
    Insecure {
        /// The registry.
        host: String,
    },
    /// What comes from there has to be signed by a key, which images of registries are not.
    #[error("'{given}' cannot be checked: a key is pinned for its registry, in '{}'", shown(pin))]
    Pinned {
        /// As given.
        given: String,
        /// The pin's file.
        pin: PathBuf,
    },
    /// A file with credentials that cannot be read.
    #[error("the credentials in '{path}' cannot be read: {reason}")]
    Credentials {
        /// The file.
        path: String,
        /// Why not.
        reason: String,
    },
}

impl OciError {
    /// Commands and options that mend it.
    #[must_use]
    pub fn hints(&self) -> Vec<String> {
        match self {
            Self::Reference { .. } => {
                vec!["for example `docker://debian:trixie`, `docker://quay.io/fedora/fedora:42` or `docker://HOST:PORT/NAME@sha256:HEX`".to_owned()]
            }
            Self::NoLayout { .. } => {
                vec!["a layout is a directory with 'oci-layout', 'index.json' and 'blobs', as `skopeo copy docker://… oci:DIR:TAG` makes it".to_owned()]
            }
            Self::NoArchive { .. } => {
                vec!["an archive is what `skopeo copy … oci-archive:FILE` or `docker save` makes; unpack another with FILE.tar".to_owned()]
            }
            Self::NotExported { image, .. } => {
                vec![format!("of an image that others made, `machinist create NAME {image}` makes a machine")]
            }
            Self::Tag { .. } => vec!["name one behind a colon, as in `oci:DIR:TAG`".to_owned()],
            Self::Platform { .. } => vec!["choose another with `--arch`, as Debian calls it".to_owned()],
            Self::Missing { .. } | Self::Length { .. } | Self::Digest { .. } => {
                vec!["nothing was made of it: copy the image anew".to_owned()]
            }
            Self::NoProgram { .. } => {
                vec!["say what it starts, as in `--set Exec.ProcessTwo=yes --set 'Exec.Parameters=/bin/PROGRAM'`, or `machinist run SOURCE -- CMD`".to_owned()]
            }
            Self::Registry { hint, .. } => hint.iter().cloned().collect(),
            Self::Pinned { .. } => vec![
                "OpenPGP keys vouch for files; if the registry is to be trusted all the same: `machinist trust remove URL-PREFIX`".to_owned(),
            ],
            Self::Insecure { .. } => {
                vec!["have the host trust the registry's certificate, see update-ca-certificates(8)".to_owned()]
            }
            Self::Document { .. } | Self::Empty { .. } | Self::Program { .. } | Self::Credentials { .. } => Vec::new(),
        }
    }
}

/// `a`, `a and b`, `a, b and c`; not more than there is room for.
fn list(all: &[String]) -> String {
    const SHOWN: usize = 8;
    match all {
        [] => "none".to_owned(),
        [one] => format!("'{one}'"),
        all if all.len() > SHOWN => format!("'{}' and {} more", all[..SHOWN].join("', '"), all.len() - SHOWN),
        [most @ .., last] => format!("'{}' and '{last}'", most.join("', '")),
    }
}
