//! The tests that need a real systemd: run by `tests/host/run` inside of a disposable host, as root.
//!
//! Each test has machines of its own and asks systemd itself what came of them. `support` owns everything that touches
//! the host; the other modules are one area each.

#![allow(
    clippy::disallowed_methods,
    reason = "tests run programs, and are no part of the product"
)]
#![allow(
    clippy::unwrap_used,
    clippy::items_after_statements,
    clippy::needless_for_each,
    reason = "a test may panic, and reads from top to bottom"
)]
#![allow(clippy::print_stderr, reason = "what a failed test has to say")]

mod support;

mod agree;
mod clean;
mod config;
mod create;
mod create_bad;
mod exec;
mod exec_caller;
mod exec_faults;
mod exec_service;
mod failures;
mod images;
mod kill;
mod life;
mod list;
mod many;
mod oracle;
mod others;
mod quirks;
mod remove;
mod users;
