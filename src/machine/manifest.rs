//! What an exported machine is made of: the members of its archive, and their sums.
//!
//! The archive is written in one pass, so that it can go down a pipe: what it is comes first, the sums of all parts last.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The version of the form; a reader takes no later one.
pub const FORMAT: u32 = 1;
/// The directory of all members but the tree.
pub const DIRECTORY: &str = "machinist";
/// Says what the archive is: the first member.
pub const ABOUT: &str = "machinist/export.json";
/// How the members begin that are settings.
pub const SETTINGS: &str = "machinist/settings/";
/// The tree.
pub const TREE: &str = "rootfs";
/// What says in an OCI layout which machine an image is: a manifest of this type, and in it a tar of all members but the tree.
pub const ARTIFACT: &str = "application/vnd.machinist.machine.v1";
/// The type of that tar.
pub const ARTIFACT_LAYER: &str = "application/vnd.machinist.machine.v1.tar";
/// The type of the partition that has that tar in a disk image: ours, and no other tool's.
pub const PARTITION: u128 = 0x5b0d_2c1e_8f4a_4c7b_9d36_2e1f_7a60_c4d8;
/// Has the sum of each part: the last member.
pub const MANIFEST: &str = "machinist/manifest.json";

/// What stands in [`ABOUT`]. No time and no host: the same machine makes the same bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// [`FORMAT`]
    pub format: u32,
    /// The version of machinist that wrote it.
    pub machinist: String,
    /// The machine's name.
    pub name: String,
}

/// What stands in [`MANIFEST`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// What stands in [`ABOUT`], too.
    #[serde(flatten)]
    pub about: About,
    /// All other members by their paths, and the tree.
    pub parts: BTreeMap<String, Part>,
}

/// A part of the archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// SHA-256 in hexadecimal digits: of a member its contents, of the tree its bytes in the archive, headers included.
    pub sha256: String,
    /// The number of these bytes.
    pub size: u64,
}

/// Why an archive is not what its manifest says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// It was cut off, or never finished.
    #[error("it has no '{0}'")]
    Missing(&'static str),
    /// No JSON, or not of the form.
    #[error("its '{member}' cannot be read: {reason}")]
    Unreadable {
        /// The member.
        member: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A later version made it.
    #[error("it was made by machinist {machinist}, whose form {format} this version does not know")]
    TooNew {
        /// That version.
        machinist: String,
        /// The form.
        format: u32,
    },
    /// The first and the last member speak of different machines.
    #[error("its manifest is that of another archive")]
    OfAnother,
    /// A part that the manifest has not, or the other way round.
    #[error("its manifest does not fit: '{0}' is only in one of the two")]
    Uneven(String),
    /// Other bytes.
    #[error("its manifest does not fit: the sum of '{part}' is {found}, not {wanted}")]
    Sum {
        /// The part.
        part: String,
        /// What it should be.
        wanted: String,
        /// What it is.
        found: String,
    },
}

impl About {
    /// Reads it out of its member.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        /// Of a later form these two are there at least.
        #[derive(Deserialize)]
        struct Version {
            format: u32,
            machinist: String,
        }
        let unreadable = |error: serde_json::Error| ManifestError::Unreadable {
            member: ABOUT,
            reason: error.to_string(),
        };
        let Version { format, machinist } = serde_json::from_slice(bytes).map_err(unreadable)?;
        if format != FORMAT {
            return Err(ManifestError::TooNew { machinist, format });
        }
        serde_json::from_slice(bytes).map_err(unreadable)
    }
}

impl Manifest {
    /// Reads it out of its member.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        serde_json::from_slice(bytes).map_err(|error| ManifestError::Unreadable {
            member: MANIFEST,
            reason: error.to_string(),
        })
    }

    /// Compares it with what was found.
    pub fn check(&self, about: &About, found: &BTreeMap<String, Part>) -> Result<(), ManifestError> {
        if self.about != *about {
            return Err(ManifestError::OfAnother);
        }
        let mut names = self.parts.keys().chain(found.keys());
        if let Some(name) = names.find(|name| !self.parts.contains_key(*name) || !found.contains_key(*name)) {
            return Err(ManifestError::Uneven(name.clone()));
        }
        let mut pairs = self.parts.iter().zip(found.values());
        match pairs.find(|((_, wanted), found)| wanted != found) {
            Some(((name, wanted), found)) => Err(ManifestError::Sum {
                part: name.clone(),
                wanted: wanted.sha256.clone(),
                found: found.sha256.clone(),
            }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(digit: char) -> Part {
        Part {
            sha256: digit.to_string().repeat(64),
            size: 1,
        }
    }

    #[test]
    fn a_manifest_fits_its_archive_only() {
        let about = About::parse(br#"{"format":1,"machinist":"0.1.0","name":"web","later":true}"#).unwrap();
        let manifest = Manifest {
            about: about.clone(),
            parts: BTreeMap::from([("rootfs".to_owned(), part('a')), ("x".to_owned(), part('b'))]),
        };
        let text = serde_json::to_vec(&manifest).unwrap();
        assert_eq!(Manifest::parse(&text), Ok(manifest.clone()));
        let check = |parts: &[(&str, char)]| {
            let found = parts.iter().map(|(name, digit)| ((*name).to_owned(), part(*digit)));
            manifest.check(&about, &found.collect())
        };
        assert_eq!(check(&[("rootfs", 'a'), ("x", 'b')]), Ok(()));
        assert_eq!(check(&[("rootfs", 'a')]), Err(ManifestError::Uneven("x".into())));
        let more = [("rootfs", 'a'), ("x", 'b'), ("y", 'c')];
        assert_eq!(check(&more), Err(ManifestError::Uneven("y".into())));
        assert!(
            matches!(check(&[("rootfs", 'c'), ("x", 'b')]), Err(ManifestError::Sum { part, .. }) if part == "rootfs")
        );
        let other = About {
            name: "db".to_owned(),
            ..about
        };
        assert_eq!(manifest.check(&other, &manifest.parts), Err(ManifestError::OfAnother));
    }

    #[test]
    fn what_a_later_version_made_is_told() {
        let later = br#"{"format":2,"machinist":"9.0","who":1}"#;
        assert!(matches!(
            About::parse(later),
            Err(ManifestError::TooNew { format: 2, .. })
        ));
        assert!(About::parse(br#"{"format":1,"machinist":"0.1","name":7}"#).is_err());
        assert!(About::parse(b"[").is_err());
    }
}
