//! Showing limits: what is allowed, what is used, and who says so.

use serde_json::json;

use super::unit_of;
use crate::cli::context::Ctx;
use crate::cli::each::look_at_each;
use crate::cli::error::CliError;
use crate::limit::Row;
use crate::machine::MachineName;
use crate::nspawn::document::Document;
use crate::nspawn::settings::Settings;
use crate::ops::config::files::of_machine;
use crate::output::table::{Column, TableArgs, View};
use crate::sys::limits::{of_settings, of_unit};

/// `-` for nothing.
fn dash(text: String) -> String {
    if text.is_empty() { "-".to_owned() } else { text }
}

const COLUMNS: &[Column<Row>] = &[
    Column {
        key: "machine",
        shown: true,
        value: |row| json!(row.machine),
        text: None,
    },
    Column {
        key: "key",
        shown: true,
        value: |row| json!(row.key),
        text: None,
    },
    Column {
        key: "directive",
        shown: false,
        value: |row| json!(row.directive),
        text: None,
    },
    Column {
        key: "device",
        shown: true,
        value: |row| json!(row.device),
        text: None,
    },
    Column {
        key: "limit",
        shown: true,
        value: |row| row.limit.clone(),
        text: Some(|row| dash(row.limit_text())),
    },
    Column {
        key: "use",
        shown: true,
        value: |row| json!(row.used),
        text: Some(|row| dash(row.used_text())),
    },
    Column {
        key: "peak",
        shown: true,
        value: |row| json!(row.peak),
        text: Some(|row| dash(row.peak_text())),
    },
    Column {
        key: "unit",
        shown: false,
        value: |row| json!(row.unit),
        text: None,
    },
    Column {
        key: "from",
        shown: true,
        value: |row| json!(row.origin),
        text: None,
    },
];

/// The columns that tell these rows apart: one machine needs no name, and few limits have a device.
fn columns(table: &TableArgs, rows: &[Row]) -> TableArgs {
    let mut table = table.clone();
    let is_table = matches!(table.format, None | Some(crate::output::table::Format::Table));
    if is_table && table.columns.is_empty() {
        let several = rows.iter().any(|row| row.machine != rows[0].machine);
        let devices = rows.iter().any(|row| row.device.is_some());
        table.columns = COLUMNS
            .iter()
            .filter(|column| column.shown)
            .map(|column| column.key)
            .filter(|key| (several || *key != "machine") && (devices || *key != "device"))
            .map(str::to_owned)
            .collect();
    }
    table
}

fn print(ctx: &Ctx, table: &TableArgs, rows: Vec<Row>) -> Result<(), CliError> {
    let table = if ctx.voice.json {
        table.clone()
    } else {
        columns(table, &rows)
    };
    View::new(COLUMNS, &table, ctx.voice)?.print(rows, "limit", ctx.voice)?;
    Ok(())
}

/// The limits of machines.
pub(super) async fn machines(ctx: &Ctx, names: &[MachineName], table: &TableArgs) -> Result<u8, CliError> {
    // What is wrong with the columns is said before anything is looked up.
    View::new(COLUMNS, table, ctx.voice)?;
    let bus = ctx.bus().await?;
    let systemd = bus.systemd_version().await?;
    let (all, status) = look_at_each(ctx, names, async |name| {
        let unit = unit_of(bus, &name).await?;
        let mut rows = of_unit(name.as_str(), &bus.unit_state(&unit).await?);
        if let Some(file) = of_machine(&name, &ctx.places).into_iter().next() {
            match file.read() {
                Ok(bytes) => {
                    let settings = Settings::effective(&Document::from_bytes(bytes), systemd, file.trusted);
                    let own = of_settings(name.as_str(), &settings, &file.path);
                    // The payload is given what the settings say, whatever its supervisor has.
                    rows.retain(|row| !own.iter().any(|other| other.key == row.key));
                    rows.extend(own);
                }
                Err(error) => ctx.voice.warning(&format!("{name}: {error}")),
            }
        }
        Ok(rows)
    })
    .await;
    if !all.is_empty() || ctx.voice.json {
        print(ctx, table, all.concat())?;
    }
    Ok(status)
}

/// The limits of a slice.
pub(super) async fn slice(ctx: &Ctx, unit: &str, table: &TableArgs) -> Result<u8, CliError> {
    View::new(COLUMNS, table, ctx.voice)?;
    let state = ctx.bus().await?.unit_state(unit).await?;
    print(ctx, table, of_unit(unit, &state))?;
    Ok(0)
}
