//! `machinist storage`: where machines lie.

mod show;

use super::context::Ctx;
use super::error::CliError;

/// The filesystem that machines lie on
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist storage show           How machines are copied here
  machinist storage show --json    For scripts, with the reasons")]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    Show(show::Args),
}

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    match args.verb {
        Verb::Show(args) => show::run(ctx, args).await,
    }
}
