//! Adapters to the system, each with its own error enum: D-Bus, netlink, child processes, files, journal.

pub mod bus;
pub mod files;
pub mod process;
