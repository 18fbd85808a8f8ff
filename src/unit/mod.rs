//! A machine's unit, systemd-nspawn@NAME.service: what its files and systemd's memory say, and what machinist writes into
//! drop-ins of it, see systemd.unit(5). No I/O.
//!
//! | module | owns |
//! | --- | --- |
//! | [`keys`] | the one table of keys of [Unit] and [Service], with types and versions |
//! | [`value`] | whether a value in a file is the one that systemd has |
//! | [`merge`] | fragment, drop-ins and properties merged, each value with its origin |
//! | [`topic`] | the files that machinist writes: one drop-in for each topic |
//! | [`key`] | the settings that have names of their own: `restart`, `before-start` … |
//! | [`command`] | command lines as `ExecStartPre=` and its kin read them |
//! | [`console`] | consoles that can be typed into |
//! | [`device`] | devices of the host, and bundles of them |
//! | [`allow`] | bundles of settings that allow a machine one thing |
//! | [`label`] | labels: `key=value` for people and their scripts |
//! | [`layers`] | the units that mount a machine which lies on layers |
//! | [`order`] | which machine starts after which |
//! | [`reach`] | which settings reach beyond the machine |
//! | [`secret`] | credentials that the command line of systemd-nspawn hands on |
//! | [`drop_in`] | which assignments of several drop-ins are in force |

pub mod allow;
pub mod command;
pub mod console;
pub mod device;
pub mod drop_in;
pub mod key;
pub mod keys;
pub mod label;
pub mod layers;
pub mod merge;
pub mod order;
pub mod reach;
pub mod secret;
pub mod topic;
pub mod value;

/// The section for what systemd has no word for: it ignores sections that begin with `X-`.
pub const OWN_SECTION: &str = "X-Machinist";
