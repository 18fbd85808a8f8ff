use super::context::Ctx; use super::error::CliError;
/// x
#[derive(Debug, clap::Args)]
pub struct Args {}
pub(super) async fn run(_: &Ctx, _: Args) -> Result<u8, CliError> { Ok(0) }
