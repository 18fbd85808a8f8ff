//! `machinist config set`

use super::allow;
use super::change::{self, How};
use super::setting::{Edits, Name, Setting, words};
use crate::cli::complete;
use crate::cli::context::Ctx;
use crate::cli::error::CliError;

/// Change settings of machines
///
/// Every value is checked before anything is written, and so is what the file says then. Settings that lie beside the
/// image, or in /run, are copied to /etc/systemd/nspawn first. The former file is kept: see `machinist config undo`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist config set web Network.Bridge=br0
  machinist config set web Exec.Environment=A=1 --restart  So that it holds at once
  machinist config set web Files.Bind=/srv Files.Bind=/x   The whole list, of two
  machinist config set 'ci-*' Exec.Ephemeral=yes --dry-run
  machinist config set web restart=on-failure stop-timeout=2min slice=shop description='The shop'
  machinist config set web --allow docker --dry-run        What containers inside it take
  machinist config set web before-start='/usr/bin/logger %i starts'")]
pub(in crate::cli) struct Args {
    /// Machine, or a pattern of image names
    #[arg(value_name = "NAME", add = complete::images())]
    name: String,
    /// Settings, see systemd.nspawn(5) and `machinist config --help`; an empty value brings systemd's default back
    #[arg(required_unless_present = "allow", value_name = "SECTION.KEY=VALUE", value_parser = Setting::parse)]
    settings: Vec<Setting>,
    /// Allow a thing that takes several settings, of the unit as well; says what it writes and exposes
    #[arg(long, value_name = "BUNDLE", value_parser = allow::names())]
    allow: Vec<String>,
    #[command(flatten)]
    how: How,
}

pub(in crate::cli) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let what = allow::typed("set", &words(&args.settings), &args.allow);
    let mut edits = Edits::default();
    let mut seen: Vec<Name> = Vec::new();
    for setting in args.settings {
        let name = setting.name();
        if seen.contains(&name) {
            edits.add(setting);
        } else {
            edits.set(setting);
        }
        seen.push(name);
    }
    allow::allow(ctx, &args.allow, &mut edits)?;
    change::run(ctx, "config set", &[args.name], what, edits.into(), args.how).await
}
