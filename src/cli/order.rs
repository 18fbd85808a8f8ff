//! `machinist order`

use serde_json::json;

use super::complete;
use super::config::change::{self, How};
use super::context::Ctx;
use super::error::CliError;
use super::names::{Pool, resolve};
use crate::machine::MachineName;
use crate::nspawn::number::time_span;
use crate::ops::OpError;
use crate::ops::config::Change;
use crate::ops::lock::Lock;
use crate::ops::order::{Place, Placed, changes, graph, lock, placed, proposed, refuse_circle};
use crate::output::table::{Column, TableArgs, View};
use crate::sys::autostart::Autostart;
use crate::unit::order::Graph;

/// Order the start of machines, and show the order
///
/// At boot a machine starts after those that --after names, as far as they start, too, and after all with a higher
/// --priority. At shutdown machines stop the other way round. All of it stands in drop-ins of the machines' units, and is
/// systemd's to do. A machine counts as started when its init runs; with `config set NAME Exec.NotifyReady=yes`, when
/// it has booted. An empty value takes a setting back.
///
/// Without a name, or without a change, the order that results is shown. Machines with the same position start at the
/// same time.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist order web --after db --delay 5s      Start it 5 seconds after the database
  machinist order db --priority 10               Before all with a lower priority, as in Incus
  machinist order 'web*' --group shop            For `start --group shop` and `stop --group shop`
  machinist order web db --priority 5             Several: all of them change, or none
  machinist order web --after '' --delay ''      As it was
  machinist order                                Show the order of all machines

Columns: position, name, after, priority, group, delay, enabled.")]
pub(super) struct Args {
    /// Machines, or patterns of image names
    #[arg(value_name = "NAME", add = complete::images())]
    names: Vec<String>,
    /// Start after this machine, too; may be repeated
    #[arg(long, value_name = "OTHER", requires = "names", value_parser = other, add = complete::images())]
    after: Vec<Given<MachineName>>,
    /// Wait so long before each start, such as 5s or 1min
    #[arg(long, value_name = "TIME", requires = "names", value_parser = delay)]
    delay: Option<Given<u64>>,
    /// Start after all machines with a higher number
    #[arg(long, value_name = "N", requires = "names", value_parser = priority, allow_hyphen_values = true)]
    priority: Option<Given<i64>>,
    /// Put it into this group, too; may be repeated
    #[arg(long, value_name = "GROUP", requires = "names", value_parser = group)]
    group: Vec<Given<String>>,
    /// Show what would be done, and do nothing
    #[arg(long, requires = "names")]
    dry_run: bool,
    #[command(flatten)]
    table: TableArgs,
}

/// A value, or nothing, which takes a setting back.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Given<T>(Option<T>);

fn other(text: &str) -> Result<Given<MachineName>, String> {
    some(text, |text| {
        text.parse()
            .map_err(|error: crate::machine::NameError| error.to_string())
    })
}

fn priority(text: &str) -> Result<Given<i64>, String> {
    some(text, |text| text.parse().map_err(|_| "a number is expected".to_owned()))
}

fn delay(text: &str) -> Result<Given<u64>, String> {
    const HOUR: u64 = 3_600_000_000;
    some(text, |text| match time_span(text, 1_000_000) {
        Some(micros) if micros <= HOUR => Ok(micros),
        Some(_) => Err("an hour is the most".to_owned()),
        None => Err("a time span is expected, such as 5s or 1min".to_owned()),
    })
    .map(|delay| Given(delay.0.filter(|micros| *micros > 0)))
}

fn group(text: &str) -> Result<Given<String>, String> {
    some(text, |text| {
        let sound = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if text.bytes().all(sound) && text.len() <= 100 {
            Ok(text.to_owned())
        } else {
            Err("letters, digits, '.', '_' and '-' are allowed".to_owned())
        }
    })
}

fn some<T>(text: &str, read: impl FnOnce(&str) -> Result<T, String>) -> Result<Given<T>, String> {
    let text = text.trim();
    if text.is_empty() {
        Ok(Given(None))
    } else {
        read(text).map(|value| Given(Some(value)))
    }
}

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let place = Place {
        after_none: args.after.contains(&Given(None)),
        after: args.after.into_iter().filter_map(|given| given.0).collect(),
        delay: args.delay.map(|given| given.0),
        priority: args.priority.map(|given| given.0),
        group_none: args.group.contains(&Given(None)),
        groups: args.group.into_iter().filter_map(|given| given.0).collect(),
    };
    if place != Place::default() {
        change(ctx, &args.names, &place, args.dry_run).await
    } else if args.dry_run {
        Err(CliError::usage("there is nothing to change"))
    } else {
        show(ctx, &args.names, &args.table).await
    }
}

async fn change(ctx: &Ctx, names: &[String], place: &Place, dry_run: bool) -> Result<u8, CliError> {
    let names = resolve(ctx, names, Pool::Images).await?;
    for machine in names.iter().chain(&place.after) {
        super::config::find(ctx, machine).await?;
    }
    if !dry_run {
        ctx.need_root("order")?;
    }
    let _lock = hold(ctx, dry_run).await?;
    let systemd = ctx.bus().await?.systemd_version().await?;
    let what = format!("order {}", describe(place));
    let changes = changes(&names, place, &what, systemd, &ctx.places);
    refuse_circles(ctx, &changes).await?;
    change::run_together(ctx, "order", names, changes, How::dry(dry_run)).await
}

/// Takes the lock of the order, unless nothing is going to change.
pub(super) async fn hold(ctx: &Ctx, dry_run: bool) -> Result<Option<Lock>, CliError> {
    if dry_run {
        return Ok(None);
    }
    let (places, progress, cancel) = (ctx.places.clone(), ctx.progress("order"), ctx.cancel.clone());
    Ok(Some(ctx.blocking(move || lock(&places, &progress, &cancel)).await?))
}

/// Refuses changes that would be a circle.
pub(super) async fn refuse_circles(ctx: &Ctx, changes: &[Change]) -> Result<(), CliError> {
    let all = known(ctx).await?;
    let order = proposed(&graph(ctx.bus().await?, &all).await?, changes, &ctx.places)?;
    for change in changes {
        refuse_circle(&order, &change.name)?;
    }
    Ok(())
}

/// The change as it was typed.
fn describe(place: &Place) -> String {
    let mut words = Vec::new();
    let nothing = |option: &str| format!("--{option} ''");
    words.extend(place.after_none.then(|| nothing("after")));
    words.extend(place.after.iter().map(|other| format!("--after {other}")));
    words.extend(
        place
            .delay
            .map(|delay| delay.map_or_else(|| nothing("delay"), |delay| format!("--delay {delay}us"))),
    );
    let priority = |number: i64| format!("--priority {number}");
    words.extend(
        place
            .priority
            .map(|number| number.map_or_else(|| nothing("priority"), priority)),
    );
    words.extend(place.group_none.then(|| nothing("group")));
    words.extend(place.groups.iter().map(|group| format!("--group {group}")));
    words.join(" ")
}

/// All machines that there are images of.
async fn known(ctx: &Ctx) -> Result<Vec<MachineName>, CliError> {
    let rows = ctx.bus().await?.images().await?;
    let mut names: Vec<MachineName> = rows.into_iter().filter_map(|row| row.0.parse().ok()).collect();
    names.sort();
    Ok(names)
}

struct Row {
    position: usize,
    name: MachineName,
    after: Vec<MachineName>,
    placed: Placed,
    enabled: bool,
}

const COLUMNS: &[Column<Row>] = &[
    Column {
        key: "position",
        shown: true,
        value: |row| json!(row.position),
        text: None,
    },
    Column {
        key: "name",
        shown: true,
        value: |row| json!(row.name),
        text: None,
    },
    Column {
        key: "after",
        shown: true,
        value: |row| json!(row.after),
        text: Some(|row| list(row.after.iter().map(MachineName::as_str))),
    },
    Column {
        key: "priority",
        shown: true,
        value: |row| json!(row.placed.priority),
        text: None,
    },
    Column {
        key: "group",
        shown: true,
        value: |row| json!(row.placed.groups),
        text: Some(|row| list(row.placed.groups.iter().map(String::as_str))),
    },
    Column {
        key: "delay",
        shown: true,
        // Microseconds.
        value: |row| json!(row.placed.delay),
        text: Some(|row| {
            let seconds = row.placed.delay.map(std::time::Duration::from_micros);
            seconds.map_or_else(|| "-".to_owned(), |delay| format!("{}s", delay.as_secs_f64()))
        }),
    },
    Column {
        key: "enabled",
        shown: true,
        value: |row| json!(row.enabled),
        text: None,
    },
];

fn list<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let words: Vec<&str> = words.collect();
    if words.is_empty() {
        "-".to_owned()
    } else {
        words.join(" ")
    }
}

async fn show(ctx: &Ctx, only: &[String], table: &TableArgs) -> Result<u8, CliError> {
    let view = View::new(COLUMNS, table, ctx.voice)?;
    let bus = ctx.bus().await?;
    let all = known(ctx).await?;
    let wanted = match only {
        [] => all.clone(),
        names => resolve(ctx, names, Pool::Images).await?,
    };
    if let Some(name) = wanted.iter().find(|name| !all.contains(name)) {
        return Err(OpError::NoImage { name: name.to_string() }.into());
    }
    let order = graph(bus, &all).await?;
    let autostart = Autostart::read(&bus.unit_search_path().await?);
    let row = |position: usize, name: &MachineName| Row {
        position,
        name: name.clone(),
        after: after(&order, name),
        placed: placed(name, &ctx.places),
        enabled: autostart.is_enabled(&name.unit()),
    };
    let turns = order.turns(&all);
    let rows = turns.iter().enumerate().flat_map(|(turn, names)| {
        let wanted = names.iter().filter(|name| wanted.contains(name));
        wanted.map(|name| row(turn + 1, name)).collect::<Vec<_>>()
    });
    view.print(rows.collect(), "machine", ctx.voice)?;
    if let Some(circle) = all.iter().find_map(|name| order.circle(name)) {
        let names: Vec<String> = circle.iter().map(ToString::to_string).collect();
        let message = format!(
            "there is a circle: {}; systemd breaks it somewhere",
            names.join(" after ")
        );
        ctx.voice.warning(&message);
    }
    Ok(0)
}

fn after(order: &Graph, name: &MachineName) -> Vec<MachineName> {
    order.before(name).cloned().collect()
}
