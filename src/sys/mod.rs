//! Adapters to the system, each with its own error enum: D-Bus, netlink, child processes, files, journal.

pub mod agent;
pub mod autostart;
pub mod bounded;
pub mod bus;
pub mod config;
pub mod enter;
pub mod files;
pub mod guest;
pub mod image_lock;
pub mod inspect;
pub mod journal;
pub mod machines;
pub mod netlink;
pub mod process;
pub mod quirks;
pub(crate) mod raw;
