//! machinist: a machine manager for system containers on plain systemd.
//!
//! A verb comes in at the top, becomes a plan, touches systemd at the bottom, and a value comes back up to be shown.
//!
//! | module | owns | may import |
//! | --- | --- | --- |
//! | [`cli`] | one file per verb: arguments and `run` | everything below |
//! | [`help`] | longer documents, as text and as manual pages; no I/O | nothing |
//! | [`output`] | tables, JSON, progress; the only place that prints | `machine` |
//! | [`ops`] | use cases that change something: observe, plan, act, undo | `sources`, `storage`, `sys`, `limit`, `machine`, `nspawn`, `unit` |
//! | [`sources`] | where root filesystems come from | `storage`, `sys`, `machine`, `nspawn` |
//! | [`storage`] | instant or full copies of a tree, by filesystem, and overlays | `sys`, `machine`, `nspawn` |
//! | [`sys`] | adapters: D-Bus, netlink, processes, files, journal | `limit`, `machine`, `nspawn`, `unit` |
//! | [`machine`] | names, states, images, the JSON schema; no I/O | nothing |
//! | [`limit`] | what of a machine can be limited: keys and values; no I/O | `nspawn` |
//! | [`nspawn`] | the .nspawn file as a lossless document and as settings; no I/O | `machine` |
//! | [`unit`] | what unit files say of a machine, and what machinist writes into them; no I/O | `machine`, `nspawn` |

pub mod cli;
pub mod help;
pub mod limit;
pub mod machine;
pub mod nspawn;
pub mod ops;
pub mod output;
pub mod sources;
pub mod storage;
pub mod sys;
pub mod unit;
