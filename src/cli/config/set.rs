//! `machinist config set`

use super::change::{self, How};
use crate::cli::complete;
use crate::cli::context::Ctx;
use crate::cli::error::CliError;
use crate::nspawn::assignment::{Assignment, parse_assignment};
use crate::nspawn::edit::Edit;
use crate::ops::config::Wanted;

/// Change settings of machines
///
/// Every value is checked before anything is written, and so is what the file says then. Settings that lie beside the
/// image, or in /run, are copied to /etc/systemd/nspawn first. The former file is kept: see `machinist config undo`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist config set web Network.Bridge=br0
  machinist config set web Exec.Environment=A=1 --restart  So that it holds at once
  machinist config set web Files.Bind=/srv Files.Bind=/x   The whole list, of two
  machinist config set 'ci-*' Exec.Ephemeral=yes --dry-run")]
pub(in crate::cli) struct Args {
    /// Machine, or a pattern of image names
    #[arg(value_name = "NAME", add = complete::images())]
    name: String,
    /// Settings, see systemd.nspawn(5); an empty value brings systemd's default back
    #[arg(required = true, value_name = "SECTION.KEY=VALUE", value_parser = assignment)]
    settings: Vec<Assignment>,
    #[command(flatten)]
    how: How,
}

pub(super) fn assignment(text: &str) -> Result<Assignment, String> {
    parse_assignment(text).map_err(|error| error.to_string())
}

/// The settings as they were typed, for the list of changes.
pub(super) fn words(settings: &[Assignment]) -> String {
    let words: Vec<String> = settings
        .iter()
        .map(|setting| format!("{}={}", setting.key.path(), setting.value))
        .collect();
    words.join(" ")
}

pub(in crate::cli) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let what = format!("set {}", words(&args.settings));
    let mut edits: Vec<Edit> = Vec::new();
    let mut seen: Vec<String> = Vec::new();
    for setting in args.settings {
        let path = setting.key.path();
        edits.push(if seen.contains(&path) {
            setting.into_edit()
        } else {
            Edit::Set {
                section: setting.key.section.to_owned(),
                key: setting.key.name.to_owned(),
                value: setting.value,
            }
        });
        seen.push(path);
    }
    change::run(ctx, "config set", &[args.name], what, Wanted::Edits(edits), args.how).await
}
