//! Makes any tree a usable guest, offline and without running anything of it.
//!
//! The tree is hostile: everything here goes through [`Root`], reads with a cap, and replaces links instead of following them.

mod accounts;
mod adopt;
mod cloud_init;
mod enable;
mod fit;
mod identity;
mod init;
mod network;
mod place;
mod user;

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;

pub use accounts::AuthorizedKeys;
pub use adopt::adopt;
pub use cloud_init::Seed;
pub use enable::UnitName;
pub(crate) use identity::forget_identity;
pub use init::{Init, detect_init};
pub use place::{Locale, Timezone};
pub use user::UserName;

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
#[derive(Clone, Debug, Default)]
pub struct GuestOptions {
    /// Its host name, if not the machine's name.
    pub hostname: Option<String>,
    /// It keeps what it is known by: machine ID, ssh host keys, leases, and its host name unless one is given.
    pub keep_identity: bool,
    /// Root's password; root is locked if `None`.
    pub root_password_hash: Option<PasswordHash>,
    /// An account besides root's.
    pub user: Option<UserName>,
    /// Keys that may log in by ssh as root and as that user, added to those in the tree.
    pub ssh_key: Option<AuthorizedKeys>,
    /// Its time zone; what the tree has if `None`, and then the host's, by systemd-nspawn.
    pub timezone: Option<Timezone>,
    /// Its language.
    pub locale: Option<Locale>,
    /// Whom it asks for names; those of DHCP, or the host's, if empty.
    pub dns: Vec<IpAddr>,
    /// Units that do not start at boot.
    pub disabled_units: Vec<UnitName>,
    /// Units that nothing starts.
    pub masked_units: Vec<UnitName>,
    /// What its cloud-init does.
    pub cloud_init: Option<Seed>,
    /// It runs a program, and no init: none is asked for, nor made to do anything.
    pub application: bool,
}

impl GuestOptions {
    /// Its host name from now on; `None` if it keeps the one it has.
    fn new_hostname<'a>(&'a self, machine: &'a str) -> Option<&'a str> {
        let hostname = self.hostname.as_deref();
        hostname.or((!self.keep_identity).then_some(machine))
    }
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
    /// `--user` of one whom the tree has.
    #[error("there is a user '{name}' in it already")]
    UserExists {
        /// The user.
        name: String,
    },
    /// All numbers for users are taken.
    #[error("there is no number left in it for another user")]
    NoUserNumber,
    /// `--cloud-init` of a directory without anything for cloud-init.
    #[error("'{}' has nothing for cloud-init: neither user-data nor meta-data", shown(path))]
    NoSeed {
        /// The directory.
        path: PathBuf,
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
            Self::BadSshKey { .. } | Self::UserExists { .. } | Self::NoUserNumber | Self::NoSeed { .. } => None,
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
            Self::NoUsr { .. } => {
                vec!["what it is made from must have the root directory's contents at its top".to_owned()]
            }
            Self::NoInit { .. } => {
                vec!["application images have no init: install one in it, or use an image made to boot".to_owned()]
            }
            Self::BadSshKey { .. } => vec!["give the file that ends in .pub".to_owned()],
            Self::UserExists { .. } => vec!["leave `--user` out, or choose another name".to_owned()],
            Self::NoSeed { .. } => vec!["see cloud-init's documentation of its data source NoCloud".to_owned()],
            Self::File(_) | Self::NoUserNumber => Vec::new(),
        }
    }
}

/// Gives the tree the machine's name, an identity of its own, its network and its accounts. Done twice, it changes nothing more,
/// but for a user who is there then.
pub fn prepare(root: &Root, name: &str, network: GuestNetwork, options: &GuestOptions) -> Result<Guest, GuestError> {
    if options.application && root.kind("usr")?.is_none() {
        // systemd-nspawn takes no tree without one.
        root.create_dir_all("usr", 0o755)?;
    }
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
    let init = if options.application {
        Init::None
    } else {
        detect_init(root)?
    };
    if init == Init::None && !options.application {
        return Err(GuestError::NoInit {
            path: root.path().to_owned(),
        });
    }
    let mut notes = if options.application {
        Vec::new()
    } else {
        fit::misfits(root, &init)
    };
    root.create_dir_all("etc", 0o755)?;
    if let Some(hostname) = options.new_hostname(name) {
        identity::name_guest(root, hostname)?;
    }
    if !options.keep_identity {
        forget_identity(root)?;
        identity::forget_leases(root)?;
        identity::renew_ssh_keys(root, &init, &mut notes)?;
    }
    if !options.application {
        init::make_bootable(root, &init, &mut notes)?;
    }
    let password = options.root_password_hash.as_ref().map(|hash| match init {
        Init::Busybox => hash.for_busybox(),
        _ => hash.as_str(),
    });
    accounts::set_root_password(root, password)?;
    if let Some(keys) = &options.ssh_key {
        accounts::authorize(root, keys, "root")?;
    }
    match network {
        GuestNetwork::Link if options.application => notes.push(
            "nothing in it asks for an address, and so it has no network: `--network host` gives it the host's"
                .to_owned(),
        ),
        network => network::configure(root, &init, network, &mut notes)?,
    }
    if !options.dns.is_empty() {
        network::name_servers(root, &init, network, &options.dns, &mut notes)?;
    }
    customize(root, name, &init, options, &mut notes)?;
    Ok(Guest { init, notes })
}

/// What was asked for besides.
fn customize(
    root: &Root,
    name: &str,
    init: &Init,
    options: &GuestOptions,
    notes: &mut Vec<String>,
) -> Result<(), GuestError> {
    if let Some(user) = &options.user {
        user::add(root, user, options.ssh_key.as_ref())?;
    }
    if let Some(zone) = &options.timezone {
        place::set_timezone(root, zone, notes)?;
    }
    if let Some(locale) = &options.locale {
        place::set_locale(root, locale, notes)?;
    }
    for unit in &options.disabled_units {
        if !enable::disable_all(root, unit)? {
            notes.push(format!("it has no unit '{}' to disable", unit.as_ref()));
        }
    }
    for unit in &options.masked_units {
        enable::mask(root, unit)?;
    }
    let units = !options.disabled_units.is_empty() || !options.masked_units.is_empty();
    if units && *init != Init::Systemd {
        notes.push("it has no systemd: no unit of it was disabled or masked".to_owned());
    }
    if let Some(seed) = &options.cloud_init {
        cloud_init::plant(root, seed, name, options.new_hostname(name), notes)?;
    }
    Ok(())
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
