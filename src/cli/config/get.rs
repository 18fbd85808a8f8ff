//! `machinist config get`

use serde_json::{Map, Value, json};

use crate::cli::complete;
use crate::cli::context::Ctx;
use crate::cli::error::{CliError, Kind};
use crate::machine::MachineName;
use crate::machine::text::printable;
use crate::nspawn::assignment::parse_key;
use crate::nspawn::document::Document;
use crate::nspawn::schema::{Key, NEWEST_SYSTEMD};
use crate::nspawn::settings::Settings;
use crate::ops::OpError;
use crate::ops::config::files::of_machine;
use crate::output::data;

/// Show single settings, for scripts
///
/// Prints what systemd takes of the machine's settings file: one line for each value. A setting that the file does not
/// make, or that systemd ignores, is an error: exit status 1, or null with --json.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist config get web Exec.KillSignal
  machinist config get web Files.Bind Network.Port --json")]
pub(in crate::cli) struct Args {
    /// Machine
    #[arg(value_name = "NAME", add = complete::images())]
    name: MachineName,
    /// Settings, see systemd.nspawn(5)
    #[arg(required = true, value_name = "SECTION.KEY", value_parser = key)]
    keys: Vec<&'static Key>,
}

fn key(text: &str) -> Result<&'static Key, String> {
    parse_key(text).map_err(|error| error.to_string())
}

/// What systemd takes of a machine's settings file; nothing if it has none.
pub(super) async fn settings_of(ctx: &Ctx, name: &MachineName) -> Result<Settings, CliError> {
    super::find(ctx, name).await?;
    let systemd = match ctx.bus().await {
        Ok(bus) => bus.systemd_version().await?,
        Err(_) => NEWEST_SYSTEMD,
    };
    let Some(file) = of_machine(name, &ctx.places).into_iter().next() else {
        return Ok(Settings::default());
    };
    let document = Document::from_bytes(file.read().map_err(OpError::from)?);
    Ok(Settings::effective(&document, systemd, file.trusted))
}

pub(in crate::cli) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let name = &args.name;
    let settings = settings_of(ctx, name).await?;
    let values = |key: &Key| -> Vec<&str> {
        let found = settings.values(key.section, key.name);
        found.iter().map(|value| value.value.as_str()).collect()
    };
    if ctx.voice.json {
        let all: Map<String, Value> = args
            .keys
            .iter()
            .map(|key| {
                let values = values(key);
                let value = match values.last() {
                    None => Value::Null,
                    Some(_) if key.is_list() => json!(values),
                    Some(last) => json!(last),
                };
                (key.path(), value)
            })
            .collect();
        ctx.voice.json(&all)?;
        return Ok(0);
    }
    for key in &args.keys {
        let values = values(key);
        if values.is_empty() {
            let message = format!("machine '{name}' does not set {}=", key.path());
            return Err(CliError::new(Kind::Failed, message).hint(format!("see `machinist config cat {name}`")));
        }
        for value in values {
            data(&format!("{}\n", printable(value)))?;
        }
    }
    Ok(0)
}
