//! `machinist storage show`

use serde_json::json;

use crate::cli::context::Ctx;
use crate::cli::error::CliError;
use crate::machine::text;
use crate::ops::survey::{Survey, survey};
use crate::output::table::{Column, TableArgs, View};

/// Show how machines are copied
///
/// `storage` is how `create` and `clone` copy a tree: "btrfs" as a snapshot, "reflink" file by file, sharing what is in them,
/// both at once and without room of their own; "copy" with all that is in them. `ephemeral` is how `run -x` has a copy: the same, or
/// "overlay", which is made at once on any filesystem. What works is tried, and not read from a list: this needs root.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist storage show
  machinist storage show --json

Columns: path, filesystem, storage, ephemeral, free, size; and device, reason (why there is no overlay).")]
pub(super) struct Args {
    #[command(flatten)]
    table: TableArgs,
}

const COLUMNS: &[Column<Survey>] = &[
    Column {
        key: "path",
        shown: true,
        value: |row| json!(row.path.to_string_lossy()),
        text: None,
    },
    Column {
        key: "filesystem",
        shown: true,
        value: |row| json!(row.filesystem),
        text: None,
    },
    Column {
        key: "storage",
        shown: true,
        value: |row| json!(row.storage),
        text: None,
    },
    Column {
        key: "ephemeral",
        shown: true,
        value: |row| json!(row.ephemeral),
        text: None,
    },
    Column {
        key: "free",
        shown: true,
        value: |row| json!(row.free),
        text: Some(|row| text::bytes(row.free)),
    },
    Column {
        key: "size",
        shown: true,
        value: |row| json!(row.size),
        text: Some(|row| text::bytes(row.size)),
    },
    Column {
        key: "device",
        shown: false,
        value: |row| json!(row.device),
        text: None,
    },
    Column {
        key: "reason",
        shown: false,
        value: |row| json!(row.reason),
        text: None,
    },
];

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let view = View::new(COLUMNS, &args.table, ctx.voice)?;
    ctx.need_root("storage show")?;
    let (places, cancel) = (ctx.places.clone(), ctx.cancel.clone());
    let found = ctx.blocking(move || survey(&places, &cancel)).await?;
    view.print(vec![found], "directory", ctx.voice)?;
    Ok(0)
}
