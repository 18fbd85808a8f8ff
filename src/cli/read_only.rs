//! `machinist read-only`

use super::complete;
use super::context::Ctx;
use super::each::{Outcome, each, plan_each};
use super::error::CliError;
use super::names::{Pool, resolve};
use super::on_off::OnOff;
use super::remove::refuse_running;
use crate::ops::OpError;

/// Make images read-only, or writable again
///
/// systemd-nspawn starts a machine with a read-only image as with --read-only. A subvolume of btrfs becomes read-only as
/// a whole, of a directory only the top (chattr +i), a file loses its right to be written: as by `machinectl read-only`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist read-only web on     The next start cannot change it
  machinist read-only web off    It can again")]
pub(super) struct Args {
    /// Machines, or patterns of image names
    #[arg(required = true, value_name = "NAME", add = complete::images())]
    names: Vec<String>,
    /// Whether they are to be
    #[arg(required = true)]
    state: OnOff,
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let names = resolve(ctx, &args.names, Pool::Images).await?;
    let bus = ctx.bus().await?;
    let wanted = args.state.is_on();
    let word = if wanted { "read-only" } else { "writable" };
    let is_so = async |name: &str| {
        let is_read_only = bus.image_is_read_only(name).await?;
        is_read_only.ok_or_else(|| OpError::NoImage { name: name.to_owned() })
    };
    if args.dry_run {
        return plan_each(ctx, &names, async |name| {
            let differs = is_so(name.as_str()).await? != wanted;
            if differs {
                refuse_running(bus, &name).await?;
            }
            Ok(Vec::from_iter(differs.then(|| format!("make image '{name}' {word}"))))
        })
        .await;
    }
    each(ctx, "read-only", names, async |name| {
        if is_so(name.as_str()).await? == wanted {
            return Ok(Outcome::new("unchanged", format!("{name} is {word} already")));
        }
        // machined would make it so under the running machine.
        refuse_running(bus, &name).await?;
        bus.mark_image_read_only(name.as_str(), wanted).await?;
        Ok(Outcome::new("changed", format!("{name} is {word}")))
    })
    .await
}
