//! Adapters to the system, each with its own error enum: D-Bus, netlink, child processes, files, journal.

pub mod agent;
pub mod assigned;
pub mod autostart;
pub mod bounded;
pub mod bus;
pub mod cgroup;
pub mod config;
pub mod credentials;
pub mod drop_ins;
pub mod enter;
pub mod files;
pub mod guest;
pub mod helper;
pub mod image_lock;
pub mod inspect;
pub mod journal;
pub mod limits;
pub mod lock_file;
pub mod machines;
pub mod netlink;
pub mod overlay;
pub mod process;
pub mod quirks;
pub(crate) mod raw;
pub mod staging;
pub mod unit_files;
