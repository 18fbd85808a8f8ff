//! `machinist version`

use serde_json::json;

use super::context::Ctx;
use super::error::CliError;
use crate::output::data;

/// Show machinist's version and systemd's
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist version          For people
  machinist version --json   For scripts")]
pub(super) struct Args {}

pub(super) async fn run(ctx: &Ctx, _: Args) -> Result<u8, CliError> {
    let own = env!("CARGO_PKG_VERSION");
    // The version is worth showing where systemd does not answer, too.
    let systemd = match ctx.bus().await {
        Ok(bus) => bus.systemd_version().await.ok(),
        Err(_) => None,
    };
    if ctx.voice.json {
        ctx.voice.json(&json!({ "machinist": own, "systemd": systemd }))?;
    } else {
        let systemd = systemd.map_or_else(|| "not available".to_owned(), |version| version.to_string());
        data(&format!("machinist {own}\nsystemd {systemd}\n"))?;
    }
    Ok(0)
}
