//! The .nspawn file of systemd.nspawn(5): a lossless document, its schema, edits as values. No I/O.
//!
//! | module | owns |
//! | --- | --- |
//! | [`mod@line`] | physical lines and their endings |
//! | [`document`] | the file byte for byte, and the assignments systemd sees in it |
//! | [`schema`] | the one table of keys, with types and versions |
//! | [`value`] | what each type of value may be |
//! | [`settings`] | what is in force, and which lines are ignored and why |
//! | [`check`] | what is wrong with a file, with place and hint |
//! | [`users`] | ranges of user numbers, and who has them |
//! | [`assignment`] | `Section.Key=Value` of the command line |
//! | [`edit`] | changes that touch only the lines they must |
//! | [`reach`] | which settings reach beyond the machine |
//! | [`switches`] | the command line of systemd-nspawn |
//! | [`merge`] | that and the files merged, each value with its origin |

pub mod assignment;
pub mod check;
pub mod document;
pub mod edit;
#[cfg(test)]
mod examples;
mod forms;
mod ignored;
mod limit;
pub mod line;
pub mod merge;
pub(crate) mod names;
pub(crate) mod number;
mod patch;
pub mod reach;
pub mod schema;
pub mod settings;
mod suggest;
pub mod switches;
#[cfg(test)]
mod tests;
pub mod users;
pub mod value;
mod words;
