//! The modules of machinist that do no I/O.

#![allow(dead_code, unreachable_pub, reason = "the rest of machinist is not here")]

#[path = "../../src/machine/mod.rs"]
pub mod machine;
#[path = "../../src/nspawn/mod.rs"]
pub mod nspawn;
#[path = "../../src/unit/mod.rs"]
pub mod unit;
