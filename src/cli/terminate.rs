//! `machinist terminate`

use super::context::Ctx;
use super::each::{Outcome, each, plan_each};
use super::error::CliError;
use super::names::RunningMachines;
use crate::ops::stop::{Stopped, terminate, unit_to_stop};

/// Take machines down at once, without asking the guest
///
/// Like pulling the plug: the guest's processes are killed, its mounts and network are cleaned up, and its unit stays
/// down even with Restart=always. What the guest had not written to disk is lost.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist terminate web        Take it down now
  machinist terminate 'ci-*'     All whose name matches")]
pub(super) struct Args {
    #[command(flatten)]
    machines: RunningMachines,
}

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let names = args.machines.resolve(ctx).await?;
    let bus = ctx.bus().await?;
    if args.machines.dry_run {
        return plan_each(ctx, &names, async |name| {
            Ok(vec![match unit_to_stop(bus, &name).await? {
                Some(unit) => format!("take unit {unit} down at once"),
                None => format!("nothing: {name} is not running"),
            }])
        })
        .await;
    }
    let jobs = ctx.jobs().await?;
    each(ctx, "terminate", names, async |name| {
        Ok(match terminate(bus, &jobs, &name).await? {
            Stopped::Already => Outcome::new("already-stopped", format!("{name} is not running")),
            Stopped::Cleanly | Stopped::Forced => Outcome::new("terminated", format!("terminated {name}")),
        })
    })
    .await
}
