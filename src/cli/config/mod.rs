//! `machinist config`: the verbs on settings, one file each.

mod check;

use super::context::Ctx;
use super::error::CliError;

/// Settings of machines: check .nspawn files
///
/// The settings of a machine are those of systemd.nspawn(5), in /etc/systemd/nspawn/NAME.nspawn.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist config check        All settings of all machines
  machinist help config check   All about one verb")]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    Check(check::Args),
}

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    match args.verb {
        Verb::Check(args) => check::run(ctx, args).await,
    }
}
