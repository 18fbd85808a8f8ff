//! What a machine's image takes of the disk, and how much it may; also the JSON schema.

use serde::Serialize;

/// Who keeps the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keeper {
    /// btrfs, by a quota group of the subvolume.
    Btrfs,
    /// ext4, XFS and others, by a project that all files of the image are in.
    Project,
}

/// The quota of one machine. What does not apply, or may not be read, is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Quota {
    /// The machine's name.
    pub machine: String,
    /// The most bytes that it may take; `None` if there is no limit.
    pub limit: Option<u64>,
    /// The bytes that it takes; `None` where they are not counted.
    pub used: Option<u64>,
    /// Who keeps it; `None` where a limit is not possible as things are.
    pub kept_by: Option<Keeper>,
    /// The number of its project.
    pub project: Option<u32>,
    /// Where the image lies.
    pub path: String,
    /// Why a limit is not possible.
    pub reason: Option<String>,
}
