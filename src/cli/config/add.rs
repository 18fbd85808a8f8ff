//! `machinist config add`

use super::change::{self, How};
use super::setting::{Edits, Setting, words};
use crate::cli::complete;
use crate::cli::context::Ctx;
use crate::cli::error::CliError;

/// Add to lists among the settings of machines
///
/// What is in the list already is left as it is. A port of the host that is forwarded already is forwarded anew.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist config add web Network.Port=tcp:8080:80
  machinist config add web Files.BindReadOnly=/usr/share:/mnt --restart
  machinist config add web after-stop=/usr/bin/sync")]
pub(in crate::cli) struct Args {
    /// Machine, or a pattern of image names
    #[arg(value_name = "NAME", add = complete::images())]
    name: String,
    /// Settings that are lists, see systemd.nspawn(5); also before-start, after-start, after-stop
    #[arg(required = true, value_name = "SECTION.KEY=VALUE", value_parser = list)]
    settings: Vec<Setting>,
    #[command(flatten)]
    how: How,
}

fn list(text: &str) -> Result<Setting, String> {
    let setting = Setting::parse(text)?;
    let name = setting.name().text();
    if !setting.name().is_list() {
        Err(format!("{name}= is no list: `machinist config set` changes it"))
    } else if setting.value().is_empty() {
        Err(format!("there is nothing to add to {name}="))
    } else {
        Ok(setting)
    }
}

pub(in crate::cli) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let what = format!("add {}", words(&args.settings));
    let mut edits = Edits::default();
    for setting in args.settings {
        edits.add(setting);
    }
    change::run(ctx, "config add", &[args.name], what, edits.into(), args.how).await
}
