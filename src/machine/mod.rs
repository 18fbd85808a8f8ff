//! What a machine is: names, states, images, and what a long operation reports. No I/O.

pub mod condition;
pub mod image;
pub mod load;
pub mod location;
pub mod manifest;
pub mod name;
pub mod os_release;
pub mod quota;
pub mod report;
pub mod setting;
pub mod signal;
pub mod state;
pub mod status;
pub mod text;
pub mod trouble;
pub mod users;

pub use image::Image;
pub use location::Location;
pub use name::{MachineName, NameError};
pub use os_release::OsRelease;
pub use report::{Cancel, Cancelled, Report};
pub use state::{Machine, Seen, State};
