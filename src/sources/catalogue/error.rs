//! Why there is no such image, and what there is.

/// Why an image of a catalogue cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    /// A name that no image can have.
    #[error("'{given}' does not name an image: that is DISTRO/RELEASE, or DISTRO/RELEASE/VARIANT")]
    BadName {
        /// What was given, escaped.
        given: String,
    },
    /// Another answer than that of a catalogue.
    #[error("'{url}' is no catalogue of images: {reason}")]
    NoCatalogue {
        /// What was read, without a password.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no such image.
    #[error("catalogue '{server}' has no image '{name}' for {arch}")]
    Unknown {
        /// The server, without a password.
        server: String,
        /// What was asked for.
        name: String,
        /// For which processor.
        arch: String,
        /// Names that are like it.
        near: Vec<String>,
        /// For which processors it is there.
        others: Vec<String>,
    },
    /// It is there in forms that are not known.
    #[error("image '{name}' is neither a tar archive nor a squashfs image in catalogue '{server}': it has {has}")]
    NoArchive {
        /// The server, without a password.
        server: String,
        /// What was asked for.
        name: String,
        /// What there is, escaped.
        has: String,
    },
    /// A part of it was asked for, and it has none.
    #[error("image '{name}' is a squashfs image in catalogue '{server}': --strip and --subtree are for tar archives")]
    NoPart {
        /// The server, without a password.
        server: String,
        /// What was asked for.
        name: String,
    },
}

impl CatalogueError {
    /// Commands and options that mend it.
    #[must_use]
    pub fn hints(&self) -> Vec<String> {
        let browse = "`machinist images --remote` shows all that there are";
        match self {
            Self::BadName { .. } => vec![format!("for example `images:debian/13`; {browse}")],
            Self::NoCatalogue { .. } => vec![
                "give the server's root, above its 'streams', with `--server URL`: it has to be one of simplestreams, as \
                 https://images.linuxcontainers.org is"
                    .to_owned(),
            ],
            Self::Unknown { near, others, .. } => {
                let mut hints = Vec::new();
                if !others.is_empty() {
                    hints.push(format!("it is there for {}: `--arch {}`", others.join(", "), others[0]));
                }
                if !near.is_empty() {
                    hints.push(format!("like it are {}", near.join(", ")));
                }
                hints.push(browse.to_owned());
                hints
            }
            Self::NoArchive { .. } => vec![browse.to_owned()],
            Self::NoPart { .. } => Vec::new(),
        }
    }
}
