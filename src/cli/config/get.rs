//! `machinist config get`

use serde_json::{Map, Value, json};

use super::setting::Name;
use crate::cli::complete;
use crate::cli::context::Ctx;
use crate::cli::error::{CliError, Kind};
use crate::machine::MachineName;
use crate::machine::text::printable;
use crate::nspawn::document::Document;
use crate::nspawn::schema::NEWEST_SYSTEMD;
use crate::nspawn::settings::Settings;
use crate::ops::OpError;
use crate::ops::config::drop_ins::DropIns;
use crate::ops::config::files::of_machine;
use crate::output::data;

/// Show single settings, for scripts
///
/// Prints what systemd takes of the machine's settings file, and of the drop-ins of its unit: one line for each value. A setting that the file does not
/// make, or that systemd ignores, is an error: exit status 1, or null with --json.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist config get web Exec.KillSignal
  machinist config get web Files.Bind Network.Port restart --json")]
pub(in crate::cli) struct Args {
    /// Machine
    #[arg(value_name = "NAME", add = complete::images())]
    name: MachineName,
    /// Settings, see systemd.nspawn(5) and `machinist config --help`
    #[arg(required = true, value_name = "SECTION.KEY", value_parser = Name::parse)]
    keys: Vec<Name>,
}

/// What systemd takes of a machine's settings file; nothing if it has none.
pub(in crate::cli) async fn settings_of(ctx: &Ctx, name: &MachineName) -> Result<Settings, CliError> {
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
    let drop_ins = DropIns::of(name, &ctx.places);
    let values = |key: &Name| -> Vec<String> {
        match key {
            Name::Nspawn(key) => {
                let found = settings.values(key.section, key.name);
                found.iter().map(|value| value.value.clone()).collect()
            }
            Name::Unit(key) => {
                let found = drop_ins.values(key.section, key.key, key.is_list());
                let of_another_topic = |file: &std::path::Path| {
                    let file = file.file_name().unwrap_or_default().to_string_lossy();
                    file.starts_with("50-machinist-") && file != key.topic.file_name()
                };
                found
                    .iter()
                    .filter(|value| !of_another_topic(&value.file))
                    .map(|value| key.decode(&value.value))
                    .collect()
            }
        }
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
                (key.text(), value)
            })
            .collect();
        ctx.voice.json(&all)?;
        return Ok(0);
    }
    for key in &args.keys {
        let values = values(key);
        if values.is_empty() {
            let message = format!("machine '{name}' does not set {}=", key.text());
            return Err(CliError::new(Kind::Failed, message).hint(format!("see `machinist config cat {name}`")));
        }
        for value in values {
            data(&format!("{}\n", printable(&value)))?;
        }
    }
    Ok(0)
}
