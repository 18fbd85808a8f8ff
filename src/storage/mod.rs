//! Copies of a root filesystem: one trait, one backend per kind of filesystem.
