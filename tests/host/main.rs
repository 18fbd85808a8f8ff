//! The tests that need a real systemd: run by `tests/host/run` inside of a disposable host, as root.
//!
//! Each test has machines of its own and asks systemd itself what came of them. `support` owns everything that touches
//! the host; the other modules are one area each, and run on each of systemd's versions; those in `once` on one of them.

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
mod allow;
mod backends;
mod bind;
mod catalogue;
mod clone;
mod config;
mod config_show;
mod console;
mod cp;
mod cp_hostile;
mod create;
mod device;
mod disk;
mod doctor;
mod download;
mod drop_ins;
mod events;
mod exec;
mod exec_service;
mod export;
mod export_disk;
mod export_foreign;
mod export_oci;
mod export_raw;
mod failures;
mod freeze;
mod history;
mod kill;
mod life;
mod limit;
mod limit_others;
mod linked;
mod list;
mod logs;
mod marks;
mod nspawn_examples;
mod oci;
mod once;
mod oracle;
mod order;
mod others;
mod quirks;
mod quota;
mod register;
mod remove;
mod rename;
mod run;
mod run_boot;
mod run_overlay;
mod run_source;
mod script;
mod secret;
mod shell;
mod sources;
mod terminal;
mod top;
mod trust;
mod unit;
mod wait;
mod web;
mod why;
mod why_image;
mod why_network;
