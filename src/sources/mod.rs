//! Where root filesystems come from: bootstrappers, archives, templates.

pub mod archive;
pub mod tarball;
