//! `machinist secret list`

use serde_json::json;

use crate::cli::complete;
use crate::cli::context::Ctx;
use crate::cli::error::CliError;
use crate::machine::{MachineName, text};
use crate::ops::secret::{Secret, list};
use crate::output::table::{Column, TableArgs, View};
use crate::output::time;

/// Show the secrets of a machine
///
/// Their names, how large the encrypted files are, and when they were written; never what they are. Only root sees more than
/// the names.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist secret list web
  machinist secret list web --json

Columns: key, size, changed; and file.")]
pub(super) struct Args {
    /// Machine
    #[arg(value_name = "NAME", add = complete::images())]
    name: MachineName,
    #[command(flatten)]
    table: TableArgs,
}

const COLUMNS: &[Column<Secret>] = &[
    Column {
        key: "key",
        shown: true,
        value: |row| json!(row.key.as_str()),
        text: None,
    },
    Column {
        key: "size",
        shown: true,
        value: |row| json!(row.size),
        text: Some(|row| row.size.map_or_else(|| "-".to_owned(), text::bytes)),
    },
    Column {
        key: "changed",
        shown: true,
        value: |row| json!(changed(row).map(time::rfc3339)),
        text: Some(|row| changed(row).map_or_else(|| "-".to_owned(), time::local)),
    },
    Column {
        key: "file",
        shown: false,
        value: |row| json!(row.path.to_string_lossy()),
        text: None,
    },
];

/// In µs since 1970.
fn changed(row: &Secret) -> Option<u64> {
    let since = row.changed?.duration_since(std::time::UNIX_EPOCH).ok()?;
    u64::try_from(since.as_micros()).ok()
}

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let view = View::new(COLUMNS, &args.table, ctx.voice)?;
    crate::cli::config::find(ctx, &args.name).await?;
    view.print(list(&args.name, &ctx.places)?, "secret", ctx.voice)?;
    Ok(0)
}
