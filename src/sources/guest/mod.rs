//! Makes any tree a usable guest, offline and without running anything of it.
//!
//! The tree is hostile: everything here goes through [`Root`], reads with a cap, and replaces links instead of following them.

mod accounts;
mod enable;
mod identity;
mod init;
mod network;

use std::ffi::OsString;
use std::path::PathBuf;

pub use accounts::AuthorizedKeys;
pub(crate) use identity::forget_identity;
pub use init::{Init, detect_init};

use super::apt::{self, AptSources};
use super::password::PasswordHash;
use crate::sys::files::{FileError, Kind, Root, shown};

/// The largest file of a guest that is read to be changed, in bytes.
pub(super) const FILE_MAX: u64 = 1 << 20;

/// How the guest is connected, as seen from inside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GuestNetwork {
    /// A link `host0` (veth, bridge or zone) that gets its address by DHCP.
    #[default]
    Link,
    /// The host's own network: the guest must configure nothing.
    Host,
    /// Nothing but loopback.
    None,
}

/// What a guest is to become.
#[derive(Clone, Debug)]
pub struct GuestOptions {
    /// Its host name.
    pub hostname: String,
    /// Root's password; root is locked if `None`.
    pub root_password_hash: Option<PasswordHash>,
    /// Keys that may log in as root by ssh, added to those in the tree.
    pub ssh_key: Option<AuthorizedKeys>,
    /// How it is connected.
    pub network: GuestNetwork,
    /// Its apt sources; left as they are if `None`. A bootstrapped tree has them already.
    pub apt: Option<AptSources>,
}

/// What the tree turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    /// Its PID 1.
    pub init: Init,
    /// What does not work in it, in the user's words; for `Report::warn`.
    pub notes: Vec<String>,
}

/// Why a tree cannot become a guest.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// Not the root of a system.
    #[error("'{}' is no root filesystem: it has no directory 'usr'", shown(path))]
    NoUsr {
        /// The tree.
        path: PathBuf,
        /// The only thing in it, if that is a directory.
        only: Option<OsString>,
    },
    /// Nothing to boot.
    #[error("'{}' has no init: neither systemd nor '/sbin/init'", shown(path))]
    NoInit {
        /// The tree.
        path: PathBuf,
    },
    /// `--ssh-key` without a public key in it.
    #[error("'{from}' has no ssh public key: {reason}")]
    BadSshKey {
        /// The file's name.
        from: String,
        /// What it has instead.
        reason: &'static str,
    },
    /// A file of the tree.
    #[error(transparent)]
    File(#[from] FileError),
}

impl GuestError {
    /// The path that it is about.
    pub(crate) fn path_mut(&mut self) -> Option<&mut PathBuf> {
        match self {
            Self::NoUsr { path, .. } | Self::NoInit { path } => Some(path),
            Self::File(error) => error.path_mut(),
            Self::BadSshKey { .. } => None,
        }
    }

    /// Commands that mend it.
    #[must_use]
    pub fn hints(&self) -> Vec<String> {
        match self {
            Self::NoUsr { only: Some(only), .. } => {
                let quoted = shell_words::quote(&shown(only)).into_owned();
                vec![format!(
                    "its files lie below '{}/': name it with `--subtree {quoted}`",
                    shown(only)
                )]
            }
            Self::NoUsr { .. } => vec!["the archive must have the root directory's contents at its top".to_owned()],
            Self::NoInit { .. } => {
                vec!["application images have no init: install one in it, or use an image made to boot".to_owned()]
            }
            Self::BadSshKey { .. } => vec!["give the file that ends in .pub".to_owned()],
            Self::File(_) => Vec::new(),
        }
    }
}

/// Gives the tree its name, an identity of its own, its network and its accounts. Done twice, it changes nothing more.
pub fn prepare(root: &Root, options: &GuestOptions) -> Result<Guest, GuestError> {
    if root.list("usr").is_err() {
        let only = match root.list("").as_deref() {
            Ok([only]) if root.list(only).is_ok() => Some(only.clone()),
            _ => None,
        };
        return Err(GuestError::NoUsr {
            path: root.path().to_owned(),
            only,
        });
    }
    let init = detect_init(root)?;
    if init == Init::None {
        return Err(GuestError::NoInit {
            path: root.path().to_owned(),
        });
    }
    let mut notes = Vec::new();
    root.create_dir_all("etc", 0o755)?;
    identity::name_guest(root, &options.hostname)?;
    forget_identity(root)?;
    identity::renew_ssh_keys(root, &init, &mut notes)?;
    init::make_bootable(root, &init, &mut notes)?;
    let password = options.root_password_hash.as_ref().map(|hash| match init {
        Init::Busybox => hash.for_busybox(),
        _ => hash.as_str(),
    });
    accounts::set_root_password(root, password)?;
    if let Some(keys) = &options.ssh_key {
        accounts::authorize(root, keys)?;
    }
    network::configure(root, &init, options.network, &mut notes)?;
    if let Some(sources) = &options.apt {
        apt::write(root, sources)?;
    }
    Ok(Guest { init, notes })
}

/// Gives a copy of the machine `former` an identity of its own: machine ID, keys, leases, hardware addresses, and the host
/// name, if that was the machine's. What does not work in it is the result, in the user's words.
pub fn renew_identity(root: &Root, former: &str, name: &str) -> Result<Vec<String>, GuestError> {
    let mut notes = Vec::new();
    identity::rename_guest(root, former, name)?;
    forget_identity(root)?;
    identity::forget_leases(root)?;
    network::forget_addresses(root, &mut notes)?;
    identity::renew_ssh_keys(root, &detect_init(root)?, &mut notes)?;
    Ok(notes)
}

/// Gives a machine that has another name from now on that host name, if its host name was the former one.
pub fn rename(root: &Root, former: &str, name: &str) -> Result<(), GuestError> {
    Ok(identity::rename_guest(root, former, name)?)
}

/// Whether `rel` leads to something inside the root.
pub(super) fn exists(root: &Root, rel: &str) -> bool {
    root.resolve(rel).is_ok()
}

/// The text of a file; `None` if there is none. Bytes that are not UTF-8 are an error: such a file is not to be rewritten.
pub(super) fn text(root: &Root, rel: &str) -> Result<Option<String>, FileError> {
    match root.read_to_string(rel, FILE_MAX) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.is_not_found() => Ok(None),
        // A link that leads nowhere in the root reads as "not found" too; one in a circle does not.
        Err(error) => match root.kind(rel)? {
            Some(Kind::Symlink) => Ok(None),
            _ => Err(error),
        },
    }
}

/// Removes a file or link if it is there; a directory of that name stays.
pub(super) fn remove(root: &Root, rel: &str) -> Result<(), FileError> {
    match root.kind(rel)? {
        None | Some(Kind::Directory) => Ok(()),
        Some(_) => root.remove_file(rel),
    }
}

#[cfg(test)]
mod tests;
