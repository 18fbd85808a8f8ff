//! `machinist show`

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Map, Value};

use super::complete;
use super::context::Ctx;
use super::each::look_at_each;
use super::error::{CliError, Kind};
use super::names::{Pool, resolve};
use crate::machine::MachineName;
use crate::machine::text::printable;
use crate::output::data;
use crate::sys::bus::{Bus, BusError};

/// Show properties of machines, for scripts
///
/// Prints the properties that systemd-machined has of a running machine, and those of its unit, as NAME=VALUE; of a
/// machine that does not run, those of its unit. Names and values are systemd's own.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist show web                              All properties
  machinist show web -p Leader --value            Just the PID of its leader
  machinist show web -p ActiveState,MainPID --json")]
pub(super) struct Args {
    /// Machines, or patterns of names
    #[arg(required = true, value_name = "NAME", add = complete::all())]
    names: Vec<String>,
    /// Only these properties
    #[arg(short, long, value_name = "PROP,…", value_delimiter = ',')]
    property: Vec<String>,
    /// Print values without names
    #[arg(long)]
    value: bool,
}

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let names = resolve(ctx, &args.names, Pool::All).await?;
    let bus = ctx.bus().await?;
    let (all, status): (Vec<Vec<(String, Value)>>, u8) = look_at_each(ctx, &names, async |name| {
        let all = properties(bus, &name).await?;
        if args.property.is_empty() {
            return Ok(all.into_iter().collect());
        }
        args.property.iter().map(|key| property(&all, &name, key)).collect()
    })
    .await;
    if ctx.voice.json {
        let objects: Vec<Map<_, _>> = all.into_iter().map(|one| one.into_iter().collect()).collect();
        ctx.voice.json(&objects)?;
    } else {
        let texts: Vec<String> = all.iter().map(|one| text(one, args.value)).collect();
        data(&texts.join("\n"))?;
    }
    Ok(status)
}

fn property(all: &BTreeMap<String, Value>, name: &MachineName, key: &str) -> Result<(String, Value), CliError> {
    let value = all.get(key).cloned();
    value.map(|value| (key.to_owned(), value)).ok_or_else(|| {
        let message = format!("machine '{name}' has no property '{}'", printable(key));
        CliError::new(Kind::Failed, message).hint(format!("see `machinist show {name}` for those it has"))
    })
}

/// One line a property.
fn text(properties: &[(String, Value)], only_values: bool) -> String {
    let mut text = String::new();
    for (key, value) in properties {
        let shown = printable(&plain(value));
        let _ = if only_values {
            writeln!(text, "{shown}")
        } else {
            writeln!(text, "{key}={shown}")
        };
    }
    text
}

/// machined's properties over those of the unit: where both have a name, machined's counts.
async fn properties(bus: &Bus, name: &MachineName) -> Result<BTreeMap<String, Value>, CliError> {
    let (unit, machine) = match bus.registered_properties(name.as_str()).await {
        Ok(machine) => (machine.string("Unit"), Some(machine)),
        Err(BusError::NoSuchMachine(_)) => {
            crate::ops::start::find_image(bus, name).await?;
            (name.unit(), None)
        }
        Err(error) => return Err(error.into()),
    };
    let state = bus.unit_state(&unit).await?;
    let mut all = state.unit.printable();
    all.extend(state.detail.printable());
    all.insert("Unit".to_owned(), Value::from(unit));
    match machine {
        Some(machine) => all.extend(machine.printable()),
        None => {
            // A script may ask for these whatever the machine does: they are there, empty, and never the unit's.
            let empty = [
                "Class",
                "Id",
                "Leader",
                "RootDirectory",
                "Service",
                "State",
                "Timestamp",
            ];
            all.extend(empty.map(|key| (key.to_owned(), Value::Null)));
            all.insert("Name".to_owned(), Value::from(name.as_str()));
        }
    }
    Ok(all)
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Bool(flag) => if *flag { "yes" } else { "no" }.to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.iter().all(|item| !item.is_array()) => {
            items.iter().map(plain).collect::<Vec<_>>().join(" ")
        }
        other => other.to_string(),
    }
}
