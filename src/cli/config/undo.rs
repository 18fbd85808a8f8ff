//! `machinist config undo`

use serde_json::json;

use super::change::{self, How};
use crate::cli::complete;
use crate::cli::context::Ctx;
use crate::cli::error::CliError;
use crate::cli::order::{hold, refuse_circles};
use crate::machine::MachineName;
use crate::ops::config::history::{Entry, History};
use crate::ops::config::{Change, Wanted};
use crate::ops::order::undo;
use crate::output::table::{Column, TableArgs, View};
use crate::output::time;

/// Take a change of settings back
///
/// The settings become what they were before the change: the last one that was not taken back, or the one with this
/// number. What the file says now is kept in turn, whoever wrote it. The last 100 changes are kept.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist config undo web          Take back the last change
  machinist config undo web --list   See which there were
  machinist config undo web 3        As it was before change 3

Columns of --list: change, time, what, undone; and undoes, former_file.")]
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
    #[command(flatten)]
    table: TableArgs,
}

pub(in crate::cli) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    if args.list {
        ctx.need_root("config undo --list")?;
        return list(ctx, &args.name, &args.table);
    }
    let what = args
        .number
        .map_or_else(|| "undo".to_owned(), |number| format!("undo {number}"));
    crate::cli::config::find(ctx, &args.name).await?;
    let dry_run = args.how.is_dry();
    if !dry_run {
        ctx.need_root("config undo")?;
    }
    // What it takes back may be a change of the order.
    let _lock = hold(ctx, dry_run).await?;
    let systemd = ctx.bus().await?.systemd_version().await?;
    let changes = match undo(&args.name, args.number, &what, systemd, &ctx.places)? {
        Some(changes) => {
            refuse_circles(ctx, &changes).await?;
            changes
        }
        None => vec![Change {
            name: args.name.clone(),
            wanted: Wanted::Undo {
                number: args.number,
                then: Vec::new(),
            },
            what,
            systemd,
        }],
    };
    change::run_together(ctx, "config undo", vec![args.name], changes, args.how).await
}

/// A change, and where the settings before it lie.
struct Row {
    entry: Entry,
    former: Option<String>,
}

const COLUMNS: &[Column<Row>] = &[
    Column {
        key: "change",
        shown: true,
        value: |row| json!(row.entry.number),
        text: None,
    },
    Column {
        key: "time",
        shown: true,
        value: |row| json!(row.entry.time),
        text: Some(|row| time::local(u64::try_from(row.entry.time.as_microsecond()).unwrap_or_default())),
    },
    Column {
        key: "what",
        shown: true,
        value: |row| json!(row.entry.what),
        text: None,
    },
    Column {
        key: "undone",
        shown: true,
        value: |row| json!(row.entry.undone),
        text: None,
    },
    Column {
        key: "undoes",
        shown: false,
        value: |row| json!(row.entry.undoes),
        text: None,
    },
    Column {
        key: "former_file",
        shown: false,
        value: |row| json!(row.former),
        text: None,
    },
];

fn list(ctx: &Ctx, name: &MachineName, table: &TableArgs) -> Result<u8, CliError> {
    let view = View::new(COLUMNS, table, ctx.voice)?;
    let history = History::of(name, &ctx.places);
    let rows = history.entries()?.into_iter().map(|entry| {
        let former = history
            .kept(&entry)
            .next()
            .map(|path| path.to_string_lossy().into_owned());
        Row { entry, former }
    });
    view.print(rows.collect(), "change", ctx.voice)?;
    Ok(0)
}
