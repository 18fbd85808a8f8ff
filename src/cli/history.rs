//! `machinist history`

use serde_json::{Value, json};

use super::complete;
use super::context::Ctx;
use super::each::look_at_each;
use super::error::{CliError, Kind, chain};
use super::names::{Pool, resolve};
use crate::machine::{Cancel, MachineName};
use crate::ops::start::find_machine;
use crate::output::table::{Column, TableArgs, View};
use crate::output::time;
use crate::sys::history::{Deed, of_machine};
use crate::sys::process::ProcessError;

/// Show what machinist did to machines, who had it done, and when
///
/// As it stands in the journal of this host, the oldest first, of several machines together; also of machines that were
/// removed, but by their names only: a pattern is for those that there are. Behind sudo it is the
/// user who called. Without the right to read the system's journal only what you did yourself is shown, see journalctl(1).
/// What machinectl and systemctl did is in the journal of its unit.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist history web                           All of it
  machinist history web -n 5                      The last five
  machinist history web --since yesterday --json  Since a time of systemd.time(7), for scripts
  machinist history web --filter result=failed    What did not work
  machinist history 'web-*' db -n 20              The last twenty of several

Columns: time, user, verb, result, message, of several machines also machine; and uid.")]
pub(super) struct Args {
    /// Machines, or patterns of their names
    #[arg(required = true, value_name = "NAME", add = complete::all())]
    names: Vec<String>,
    /// How many of the last actions to show; all otherwise
    #[arg(short = 'n', long, value_name = "N")]
    lines: Option<u32>,
    /// Show what was done since then: `yesterday`, `-2h`, `2026-11-23 08:00`
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    since: Option<String>,
    #[command(flatten)]
    table: TableArgs,
}

/// A deed, and who its user is.
struct Row {
    deed: Deed,
    user: Option<String>,
}

fn columns(several: bool) -> [Column<Row>; 7] {
    [
        Column {
            key: "time",
            shown: true,
            value: |row| json!(time::rfc3339(row.deed.time)),
            text: Some(|row| time::local(row.deed.time)),
        },
        Column {
            key: "user",
            shown: true,
            value: |row| json!(row.user),
            text: Some(|row| match (&row.user, row.deed.uid) {
                (Some(user), _) => user.clone(),
                (None, Some(uid)) => uid.to_string(),
                (None, None) => "-".to_owned(),
            }),
        },
        Column {
            key: "machine",
            shown: several,
            value: |row| json!(row.deed.machine),
            text: None,
        },
        Column {
            key: "verb",
            shown: true,
            value: |row| json!(row.deed.verb),
            text: None,
        },
        Column {
            key: "result",
            shown: true,
            value: |row| json!(row.deed.result),
            text: None,
        },
        Column {
            key: "message",
            shown: true,
            value: |row| json!(row.deed.message),
            text: None,
        },
        Column {
            key: "uid",
            shown: false,
            value: |row| row.deed.uid.map_or(Value::Null, Value::from),
            text: None,
        },
    ]
}

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let names = resolve(ctx, &args.names, Pool::All).await?;
    let columns = columns(names.len() > 1);
    let view = View::new(&columns, &args.table, ctx.voice)?;
    let read = async |name| of_one(ctx, name, args.lines, args.since.clone()).await;
    let (deeds, status) = match names.as_slice() {
        [name] => (vec![read(name.clone()).await?], 0),
        names => look_at_each(ctx, names, read).await,
    };
    let mut deeds: Vec<Deed> = deeds.into_iter().flatten().collect();
    deeds.sort_by_key(|deed| deed.time);
    let last = args.lines.and_then(|lines| usize::try_from(lines).ok());
    let first = last.map_or(0, |last| deeds.len().saturating_sub(last));
    let rows = deeds.into_iter().skip(first).map(|deed| Row {
        user: deed.uid.and_then(user_name),
        deed,
    });
    view.print(rows.collect(), "action", ctx.voice)?;
    Ok(status)
}

async fn of_one(
    ctx: &Ctx,
    name: MachineName,
    lines: Option<u32>,
    since: Option<String>,
) -> Result<Vec<Deed>, CliError> {
    let machine = name.clone();
    let read = move || {
        of_machine(machine.as_str(), lines, since.as_deref(), &Cancel::default()).map_err(|error| unreadable(&error))
    };
    let deeds = ctx.wait_for_user(read).await?;
    if deeds.is_empty() {
        // Where there was nothing to do, there is nothing to find.
        find_machine(ctx.bus().await?, &name).await?;
    }
    Ok(deeds)
}

fn user_name(uid: u32) -> Option<String> {
    let user = nix::unistd::User::from_uid(uid.into()).ok().flatten();
    user.map(|user| user.name)
}

fn unreadable(error: &ProcessError) -> CliError {
    let kind = match error {
        ProcessError::NotFound { .. } => Kind::Unavailable,
        _ => Kind::Failed,
    };
    CliError::new(kind, format!("cannot read the journal: {error}"))
        .causes(chain(error))
        .hint("times are those of systemd.time(7), such as `yesterday` or `-2h`")
}
