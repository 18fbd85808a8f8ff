//! `machinist device`: the verbs on devices, one file each.

mod change;
mod list;

use super::context::Ctx;
use super::error::CliError;

/// Devices of the host that machines may use
///
/// A device is mounted into the machine by Bind= of its settings, and permitted by DeviceAllow= in a drop-in of its unit;
/// either alone is of no use. It is there at once if the machine runs, and at each start from then on. Some have names of
/// their own: @fuse, @gpu, @kvm and @tun. A device with which a machine starts must be there when it does.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist device add web @fuse            A device that many want
  machinist device add web /dev/full --ro   Any device, to be read only
  machinist device list web
  machinist device remove web @fuse")]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Let machines use a device
    ///
    /// Says what that exposes, and to whom. What users of a machine with private users may do with it depends on its
    /// mode, as they are nobody to the host.
    #[command(after_help = "Examples:
  machinist device add web @tun
  machinist device add web db @fuse --dry-run
  machinist device add 'ci-*' @fuse")]
    Add(change::AddArgs),
    /// Take a device away from machines
    ///
    /// What has it open keeps it until it is closed.
    #[command(after_help = "Examples:
  machinist device remove web @tun
  machinist device remove 'ci-*' @fuse --dry-run")]
    Remove(change::RemoveArgs),
    List(list::Args),
}

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    match args.verb {
        Verb::Add(args) => change::add(ctx, args).await,
        Verb::Remove(args) => change::remove(ctx, args).await,
        Verb::List(args) => list::run(ctx, args).await,
    }
}
