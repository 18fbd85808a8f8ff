//! `machinist config show`

use serde_json::Value;

use crate::cli::complete;
use crate::cli::context::Ctx;
use crate::cli::each::look_at_each;
use crate::cli::error::CliError;
use crate::cli::names::{Pool, resolve};
use crate::machine::MachineName;
use crate::machine::setting::{Setting, State};
use crate::ops::config::in_force::{in_force, observe};
use crate::output::table::{Column, TableArgs, View};

/// Show the settings in force, and where each comes from
///
/// Merges the command line of systemd-nspawn, the .nspawn file, the unit with its drop-ins and what was set at run time, in
/// the way systemd does. Each value is shown with the file and line that it comes from; 'template' is the unit that systemd
/// ships. What has no effect is shown as well, with the reason: a later line or file, a key that this systemd does not know,
/// a file that it does not trust or does not read. What was changed after the machine was started, or before systemd has read
/// it, is pending.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist config show web
  machinist config show web --all                       And what is left at its default
  machinist config show web --filter state=ignored      Only what has no effect
  machinist config show web --filter 'setting=Network.*'
  machinist config show web --json                      For scripts

JSON: an array of objects with machine, section, key, setting, value, origin, state, code, reason.
origin has kind, file and line; kind is nspawn, template, unit, drop-in, property, transient,
process, manager or default. state is in_force, ignored or pending; code tells why in one word.")]
pub(in crate::cli) struct Args {
    /// Machines, or patterns of names
    #[arg(required = true, value_name = "NAME", add = complete::all())]
    names: Vec<String>,
    /// Also show what nobody has set
    #[arg(short, long)]
    all: bool,
    #[command(flatten)]
    table: TableArgs,
}

struct Row {
    machine: MachineName,
    setting: Setting,
}

pub(in crate::cli) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let names = resolve(ctx, &args.names, Pool::All).await?;
    let columns = columns(names.len() > 1);
    let view = View::new(&columns, &args.table, ctx.voice)?;
    let bus = ctx.bus().await?;
    let (found, status) = look_at_each(ctx, &names, async |name| {
        let observed = observe(bus, &name).await?;
        if !observed.is_registered() {
            super::find(ctx, &name).await?;
        }
        let found = in_force(&name, &observed, &ctx.places, args.all);
        Ok((name, found))
    })
    .await;
    let mut rows = Vec::new();
    for (name, found) in found {
        for text in found.missing {
            ctx.voice.warning(&text);
        }
        for text in found.notes {
            ctx.voice.status(&text);
        }
        rows.extend(found.settings.into_iter().map(|setting| Row {
            machine: name.clone(),
            setting,
        }));
    }
    view.print(rows, "setting", ctx.voice)?;
    Ok(status)
}

fn columns(several: bool) -> [Column<Row>; 9] {
    [
        column("machine", several, |row| Value::from(row.machine.as_str()), None),
        column("section", false, |row| Value::from(row.setting.section.as_str()), None),
        column("key", false, |row| Value::from(row.setting.key.clone()), None),
        column("setting", true, |row| Value::from(row.setting.path()), None),
        column("value", true, |row| Value::from(row.setting.value.as_str()), None),
        column(
            "origin",
            true,
            |row| serde_json::to_value(&row.setting.origin).unwrap_or_default(),
            Some(|row| row.setting.origin.text()),
        ),
        column("state", false, |row| Value::from(row.setting.state.as_str()), None),
        column("code", false, |row| Value::from(row.setting.code), None),
        column(
            "reason",
            true,
            |row| Value::from(row.setting.reason.clone()),
            Some(|row| {
                let reason = row.setting.reason.as_deref().unwrap_or("-");
                match row.setting.state {
                    State::InForce => reason.to_owned(),
                    State::Ignored => format!("ignored: {reason}"),
                    State::Pending => format!("pending: {reason}"),
                }
            }),
        ),
    ]
}

const fn column(
    key: &'static str,
    shown: bool,
    value: fn(&Row) -> Value,
    text: Option<fn(&Row) -> String>,
) -> Column<Row> {
    Column {
        key,
        shown,
        value,
        text,
    }
}
