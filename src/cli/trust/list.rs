//! `machinist trust list`

use serde_json::json;

use crate::cli::context::Ctx;
use crate::cli::error::CliError;
use crate::machine::text::printable;
use crate::output::table::{Column, TableArgs, View};
use crate::sources::SourceError;
use crate::sources::trust::pins;

/// Show the keys that are pinned
///
/// A row for each key: several at one address are as good as each other.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist trust list
  machinist trust list --json

Columns: prefix, fingerprint, user; and file.")]
pub(super) struct Args {
    #[command(flatten)]
    table: TableArgs,
}

struct Row {
    prefix: String,
    fingerprint: String,
    user: Option<String>,
    file: String,
}

const COLUMNS: &[Column<Row>] = &[
    Column {
        key: "prefix",
        shown: true,
        value: |row| json!(row.prefix),
        text: None,
    },
    Column {
        key: "fingerprint",
        shown: true,
        value: |row| json!(row.fingerprint),
        text: None,
    },
    Column {
        key: "user",
        shown: true,
        value: |row| json!(row.user),
        text: None,
    },
    Column {
        key: "file",
        shown: false,
        value: |row| json!(row.file),
        text: None,
    },
];

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let view = View::new(COLUMNS, &args.table, ctx.voice)?;
    let dir = ctx.places.keys.clone();
    let pins = ctx.blocking(move || Ok(pins(&dir).map_err(SourceError::from)?)).await?;
    let mut rows = Vec::new();
    for pin in pins {
        for key in pin.keyring.keys {
            rows.push(Row {
                prefix: pin.prefix.to_string(),
                fingerprint: key.fingerprint,
                // Whoever made the key wrote that.
                user: key.users.first().map(|user| printable(user)),
                file: pin.path.to_string_lossy().into_owned(),
            });
        }
    }
    rows.sort_by(|one, other| (&one.prefix, &one.fingerprint).cmp(&(&other.prefix, &other.fingerprint)));
    view.print(rows, "key", ctx.voice)?;
    Ok(0)
}
