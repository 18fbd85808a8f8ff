//! Files that belong to others: opened by openat2(2) inside a root, read with a cap, written atomically.
//!
//! Whatever lies inside a guest's tree is hostile: links that lead out, fifos that block, devices, names made of
//! control characters, directories ten thousand levels deep. [`Root`] is the way in; the host's own files are written by
//! [`write_atomic`]; whole trees go through [`remove_tree`] and [`tree_size`]. Imports `machine` only.

mod changes;
mod error;
mod host;
mod project;
mod replace;
mod root;
#[cfg(test)]
mod tests;
mod tree;
pub(crate) mod xattr;

pub use changes::{ChangeTime, change_time, changed_since};
pub use error::{FileError, Kind, shown};
pub(crate) use host::temporary_name;
pub use host::{Attributes, changed_at, identity_of, read_regular, sync_filesystem, write_atomic, write_atomic_as};
pub(in crate::sys) use project::inherited_project;
pub use project::{enter_project, mark_tree};
pub use root::Root;
pub(crate) use root::magic_link;
pub(crate) use tree::remove_at;
pub use tree::{ReadOnly, make_read_only, make_writable, remove_tree, tree_size};
