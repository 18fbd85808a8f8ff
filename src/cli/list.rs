//! `machinist list`

use serde_json::{Value, json};

use super::context::Ctx;
use super::error::CliError;
use crate::machine::text::{self, printable};
use crate::machine::{Machine, Seen};
use crate::ops::config::drop_ins::{DropIns, with_topic};
use crate::output::table::{Column, TableArgs, View};
use crate::output::time;
use crate::sys::machines::{Wanted, machines};
use crate::unit::label;
use crate::unit::topic::Topic;

/// List machines
///
/// Shows what systemd-machined has registered; with --all also images that do not run, and units that failed. Only the
/// columns shown are fetched, and no guest can hold the list up: what does not answer in 200 ms is shown as `?`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist list                               What runs
  machinist list -a --sort state               Also what does not
  machinist list --columns name,addresses      Just these columns
  machinist list --filter os=debian --json     For scripts
  machinist list --filter 'labels=*role=web*'  By a label

Columns: name, state, class, os, version, addresses, enabled; and service, unit, leader, since, labels; disk and disk_limit where the
filesystem counts, see `machinist quota --help`.")]
pub(super) struct Args {
    /// Also what is not running
    #[arg(short, long)]
    all: bool,
    #[command(flatten)]
    table: TableArgs,
}

/// `?` for what did not answer, otherwise the text, or `-`.
fn seen<T>(value: &Seen<T>, text: impl FnOnce(&T) -> String) -> String {
    match value {
        Seen::Value(value) => Some(text(value))
            .filter(|t| !t.is_empty())
            .unwrap_or_else(|| "-".to_owned()),
        Seen::None => "-".to_owned(),
        Seen::TimedOut => "?".to_owned(),
    }
}

pub(super) fn addresses_text(addresses: &[std::net::IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn bytes_text(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "-".to_owned(), text::bytes)
}

const COLUMNS: &[Column<Machine>] = &[
    Column {
        key: "name",
        shown: true,
        value: |m| json!(m.name),
        text: None,
    },
    Column {
        key: "state",
        shown: true,
        value: |m| json!(m.state),
        text: None,
    },
    Column {
        key: "class",
        shown: true,
        value: |m| json!(m.class),
        text: None,
    },
    Column {
        key: "os",
        shown: true,
        value: |m| m.os.value().map_or(Value::Null, |os| json!(os.id)),
        text: Some(|m| seen(&m.os, |os| printable(&os.id))),
    },
    Column {
        key: "version",
        shown: true,
        value: |m| m.os.value().map_or(Value::Null, |os| json!(os.version())),
        text: Some(|m| seen(&m.os, |os| printable(os.version().unwrap_or_default()))),
    },
    Column {
        key: "addresses",
        shown: true,
        value: |m| json!(m.addresses),
        text: Some(|m| seen(&m.addresses, |list| addresses_text(list))),
    },
    Column {
        key: "enabled",
        shown: true,
        value: |m| json!(m.enabled),
        text: None,
    },
    Column {
        key: "service",
        shown: false,
        value: |m| json!(m.service),
        text: None,
    },
    Column {
        key: "unit",
        shown: false,
        value: |m| json!(m.unit),
        text: None,
    },
    Column {
        key: "leader",
        shown: false,
        value: |m| json!(m.leader),
        text: None,
    },
    Column {
        key: "since",
        shown: false,
        value: |m| json!(m.since.map(time::rfc3339)),
        text: Some(|m| m.since.map_or_else(|| "-".to_owned(), time::local)),
    },
    Column {
        key: "disk",
        shown: false,
        value: |m| json!(m.disk.current),
        text: Some(|m| bytes_text(m.disk.current)),
    },
    Column {
        key: "disk_limit",
        shown: false,
        value: |m| json!(m.disk.limit),
        text: Some(|m| bytes_text(m.disk.limit)),
    },
    Column {
        key: "labels",
        shown: false,
        value: |m| json!(m.labels),
        text: Some(|m| {
            let labels: Vec<String> = m.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            Some(labels.join(" "))
                .filter(|text| !text.is_empty())
                .unwrap_or_else(|| "-".to_owned())
        }),
    },
];

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let view = View::new(COLUMNS, &args.table, ctx.voice)?;
    let wanted = Wanted {
        os: view.needs("os") || view.needs("version"),
        addresses: view.needs("addresses"),
        enabled: view.needs("enabled"),
        disk: view.needs("disk") || view.needs("disk_limit"),
        state: ["state", "unit", "leader", "since"].iter().any(|key| view.needs(key)),
    };
    let mut machines = machines(ctx.bus().await?, wanted, args.all).await?;
    if view.needs("labels") {
        let labelled = with_topic(Topic::Label, &ctx.places);
        for name in labelled {
            for machine in machines.iter_mut().filter(|machine| machine.name == name.as_str()) {
                machine.labels = label::read(&DropIns::of(&name, &ctx.places).own(label::KEY));
            }
        }
    }
    view.print(machines, "machine", ctx.voice)?;
    Ok(0)
}
