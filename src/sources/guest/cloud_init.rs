//! What cloud-init is to do at the first boot: its data source `NoCloud`, as files in the tree.

use std::path::Path;

use super::{FILE_MAX, GuestError, exists};
use crate::sys::files::{FileError, Root, read_regular};

/// Where cloud-init looks for it.
const PLACE: &str = "var/lib/cloud/seed/nocloud";

/// Both have to be there for cloud-init to take the directory for a seed.
const NEEDED: [&str; 2] = ["user-data", "meta-data"];
/// These may be.
const OPTIONAL: [&str; 2] = ["vendor-data", "network-config"];

/// The files of a directory that cloud-init is given: passwords may be in them.
#[derive(Clone)]
pub struct Seed(Vec<(&'static str, Vec<u8>)>);

impl std::fmt::Debug for Seed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

impl Seed {
    /// Reads those of a directory of this host.
    pub fn read(directory: &Path) -> Result<Self, GuestError> {
        let mut files = Vec::new();
        for name in NEEDED.into_iter().chain(OPTIONAL) {
            match read_regular(&directory.join(name), FILE_MAX) {
                Ok(bytes) => files.push((name, bytes)),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error.into()),
            }
        }
        if files.iter().any(|(name, _)| NEEDED.contains(name)) {
            return Ok(Self(files));
        }
        Err(GuestError::NoSeed {
            path: directory.to_owned(),
        })
    }
}

/// Gives the tree its seed, readable by root only.
pub(super) fn plant(
    root: &Root,
    seed: &Seed,
    id: &str,
    hostname: Option<&str>,
    notes: &mut Vec<String>,
) -> Result<(), FileError> {
    root.create_dir_all("var/lib/cloud/seed", 0o755)?;
    // What is there already may be another's, or open to others.
    if root.kind(PLACE)?.is_some() {
        root.remove_dir_all(PLACE)?;
    }
    root.create_dir_all(PLACE, 0o700)?;
    let write = |file: &str, bytes: &[u8]| root.write(format!("{PLACE}/{file}"), bytes, 0o600);
    write("user-data", b"#cloud-config\n{}\n")?;
    let hostname = hostname.map_or_else(String::new, |name| format!("local-hostname: {name}\n"));
    write("meta-data", format!("instance-id: {id}\n{hostname}").as_bytes())?;
    for (file, bytes) in &seed.0 {
        write(file, bytes)?;
    }
    if !["usr/bin/cloud-init", "bin/cloud-init"]
        .iter()
        .any(|program| exists(root, program))
    {
        notes.push("it has no cloud-init: what --cloud-init gave it waits until that is installed".to_owned());
    }
    Ok(())
}
