//! `machinist config add`

use super::change::{self, How};
use super::set::{assignment, words};
use crate::cli::complete;
use crate::cli::context::Ctx;
use crate::cli::error::CliError;
use crate::nspawn::assignment::Assignment;
use crate::nspawn::edit::Edit;
use crate::ops::config::Wanted;

/// Add to lists among the settings of machines
///
/// What is in the list already is left as it is. A port of the host that is forwarded already is forwarded anew.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist config add web Network.Port=tcp:8080:80
  machinist config add web Files.BindReadOnly=/usr/share:/mnt --restart")]
pub(in crate::cli) struct Args {
    /// Machine, or a pattern of image names
    #[arg(value_name = "NAME", add = complete::images())]
    name: String,
    /// Settings that are lists, see systemd.nspawn(5)
    #[arg(required = true, value_name = "SECTION.KEY=VALUE", value_parser = list)]
    settings: Vec<Assignment>,
    #[command(flatten)]
    how: How,
}

fn list(text: &str) -> Result<Assignment, String> {
    let setting = assignment(text)?;
    let path = setting.key.path();
    if !setting.key.is_list() {
        Err(format!("{path}= is no list: `machinist config set` changes it"))
    } else if setting.value.is_empty() {
        Err(format!("there is nothing to add to {path}="))
    } else {
        Ok(setting)
    }
}

pub(in crate::cli) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let what = format!("add {}", words(&args.settings));
    let edits: Vec<Edit> = args.settings.into_iter().map(Assignment::into_edit).collect();
    change::run(ctx, "config add", &[args.name], what, Wanted::Edits(edits), args.how).await
}
