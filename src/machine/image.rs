//! Images as systemd-machined lists them.

use serde::Serialize;

/// An image in one of machined's search paths, see machinectl(1) "Files and directories".
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Image {
    /// The image's name: its file name without `.raw`.
    pub name: String,
    /// "directory", "subvolume", "raw" or "block".
    #[serde(rename = "type")]
    pub kind: String,
    /// How it lies on its filesystem, and is copied: "btrfs", "reflink" or "copy"; "overlay" if it lies on layers. `None` for a
    /// disk image, and where that could not be tried.
    pub storage: Option<&'static str>,
    /// Whether it is marked read-only.
    pub read_only: bool,
    /// Bytes on disk; unknown without root, or when counting took too long.
    pub size: super::Seen<u64>,
    /// The most bytes that it may take; `None` if there is no limit, or if it may not be read.
    pub limit: Option<u64>,
    /// When it was made, µs since 1970; `None` where the filesystem does not tell.
    pub created: Option<u64>,
    /// When it was last changed, µs since 1970.
    pub modified: Option<u64>,
    /// The running machine that uses it.
    pub used_by: Option<String>,
    /// Where it lies.
    pub path: String,
}
