//! `machinist config diff`

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::json;

use super::get::settings_of;
use crate::cli::complete;
use crate::cli::context::Ctx;
use crate::cli::error::CliError;
use crate::machine::MachineName;
use crate::machine::text::printable;
use crate::nspawn::settings::Settings;
use crate::output::data;

/// Compare settings of a machine with the defaults, or with those of another one
///
/// What the settings file makes different is shown: a line with '-' for what only the first machine sets, with '+' for what
/// only the second one does. Without a second machine, all that the file sets. The order of lines and comments do not
/// matter; what systemd ignores is left out.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist config diff web             All that it sets
  machinist config diff web db          What is different in db
  machinist config diff web db --json   For scripts")]
pub(in crate::cli) struct Args {
    /// Machine
    #[arg(value_name = "NAME", add = complete::images())]
    name: MachineName,
    /// Another machine
    #[arg(value_name = "OTHER", add = complete::images())]
    other: Option<MachineName>,
}

/// The values of every key that is set, by `Section.Key`.
type Values = BTreeMap<String, Vec<String>>;

fn values(settings: &Settings) -> Values {
    let values = settings.settings().iter().map(|setting| {
        let values = setting.values.iter().map(|value| value.value.clone());
        (setting.key.path(), values.collect())
    });
    values.collect()
}

pub(in crate::cli) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let first = values(&settings_of(ctx, &args.name).await?);
    let (from, to) = match &args.other {
        Some(other) => (first, values(&settings_of(ctx, other).await?)),
        None => (Values::new(), first),
    };
    let keys: Vec<&String> = from
        .keys()
        .chain(to.keys().filter(|key| !from.contains_key(*key)))
        .collect();
    let mut different: Vec<&String> = keys.into_iter().filter(|key| from.get(*key) != to.get(*key)).collect();
    different.sort();
    if ctx.voice.json {
        let all: Vec<_> = different
            .iter()
            .map(|key| json!({ "setting": key, "from": from.get(*key), "to": to.get(*key) }))
            .collect();
        ctx.voice.json(&all)?;
        return Ok(0);
    }
    let mut text = String::new();
    for key in different {
        let (old, new) = (from.get(key), to.get(key));
        let (old, new) = (old.map_or(&[][..], Vec::as_slice), new.map_or(&[][..], Vec::as_slice));
        // What both lists have is no difference, unless it is only their order.
        let same_words = old.len() == new.len() && old.iter().all(|value| new.contains(value));
        for (sign, values, others) in [('-', old, new), ('+', new, old)] {
            for value in values.iter().filter(|value| same_words || !others.contains(value)) {
                let _ = writeln!(text, "{sign}{key}={}", printable(value));
            }
        }
    }
    data(&text)?;
    Ok(0)
}
