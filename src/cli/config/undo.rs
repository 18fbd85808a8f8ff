//! `machinist config undo`

use std::fmt::Write as _;

use serde_json::json;

use super::change::{self, How};
use crate::cli::complete;
use crate::cli::context::Ctx;
use crate::cli::error::CliError;
use crate::machine::MachineName;
use crate::machine::text::printable;
use crate::ops::config::Wanted;
use crate::ops::config::history::History;
use crate::output::data;

/// Take a change of settings back
///
/// The settings become what they were before the change: the last one that was not taken back, or the one with this
/// number. What the file says now is kept in turn, whoever wrote it. The last 100 changes are kept.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist config undo web          Take back the last change
  machinist config undo web --list   See which there were
  machinist config undo web 3        As it was before change 3")]
pub(in crate::cli) struct Args {
    /// Machine
    #[arg(value_name = "NAME", add = complete::images())]
    name: MachineName,
    /// The number of a change
    #[arg(value_name = "CHANGE")]
    number: Option<u32>,
    /// Show the changes, and do nothing
    #[arg(long, conflicts_with_all = ["number", "restart", "dry_run"])]
    list: bool,
    #[command(flatten)]
    how: How,
}

pub(in crate::cli) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    if args.list {
        ctx.need_root("config undo --list")?;
        return list(ctx, &args.name);
    }
    let what = args
        .number
        .map_or_else(|| "undo".to_owned(), |number| format!("undo {number}"));
    let wanted = Wanted::Undo(args.number);
    change::run(ctx, "config undo", &[args.name.to_string()], what, wanted, args.how).await
}

fn list(ctx: &Ctx, name: &MachineName) -> Result<u8, CliError> {
    let history = History::of(name, &ctx.places);
    let entries = history.entries()?;
    if ctx.voice.json {
        let all: Vec<_> = entries
            .iter()
            .map(|entry| {
                let former = history.path_of(entry.number);
                json!({
                    "change": entry.number,
                    "time": entry.time,
                    "what": entry.what,
                    "undone": entry.undone,
                    "undoes": entry.undoes,
                    "former_file": former.exists().then(|| former.to_string_lossy().into_owned()),
                })
            })
            .collect();
        ctx.voice.json(&all)?;
        return Ok(0);
    }
    let mut text = String::new();
    for entry in &entries {
        let undone = if entry.undone { " (taken back)" } else { "" };
        let _ = writeln!(
            text,
            "{:>4} {} {}{undone}",
            entry.number,
            entry.time.strftime("%F %T %Z"),
            printable(&entry.what)
        );
    }
    let _ = writeln!(text, "\n{} changes listed.", entries.len());
    data(&text)?;
    Ok(0)
}
