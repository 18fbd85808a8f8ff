//! Use cases that change something: observe, plan, act, undo on failure.

pub mod boot;
mod carry;
pub mod clean;
pub mod clone;
pub mod config;
pub mod create;
pub mod device;
pub mod diagnose;
pub mod doctor;
pub mod enable;
pub mod error;
pub mod freeze;
pub mod hold_still;
pub mod kill;
pub mod limit;
pub mod linked;
pub mod lock;
mod needed;
pub mod order;
mod others;
mod owned;
pub mod places;
pub mod protect;
pub mod quota;
pub mod register;
pub mod remove;
pub mod rename;
pub mod run;
pub mod secret;
pub mod start;
pub mod stop;
pub mod survey;
pub mod transaction;
pub mod wait;

pub use error::OpError;
pub use places::Places;
