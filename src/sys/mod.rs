//! Adapters to the system, each with its own error enum: D-Bus, netlink, child processes, files, journal.

pub mod files;
pub(crate) mod ioctl;
pub mod process;
