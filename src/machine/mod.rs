//! What a machine is: names, states, images, and what a long operation reports. No I/O.

pub mod name;
pub mod report;

pub use name::{MachineName, NameError};
pub use report::{Cancel, Cancelled, Report};
