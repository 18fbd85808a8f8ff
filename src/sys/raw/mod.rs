//! System calls for which neither rustix nor nix has a safe wrapper.
//!
//! The only place with unsafe code: nothing here but the calls, the layout of their arguments, and why each is sound.
#![allow(unsafe_code)]

pub(crate) mod btrfs;
pub(crate) mod confine;
pub(crate) mod enter;
pub(crate) mod loop_device;
pub(crate) mod memory;
pub(crate) mod mount;
pub(crate) mod passed;
pub(crate) mod quota;
