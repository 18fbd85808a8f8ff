//! Use cases that change something: observe, plan, act, undo on failure.

pub mod boot;
pub mod clean;
pub mod config;
pub mod create;
pub mod diagnose;
pub mod enable;
pub mod error;
pub mod lock;
mod owned;
pub mod places;
pub mod remove;
pub mod start;
pub mod stop;
pub mod transaction;

pub use error::OpError;
pub use places::Places;
