//! `machinist freeze`

use super::context::Ctx;
use super::each::{Outcome, each, plan_each};
use super::error::CliError;
use super::names::RunningMachines;
use crate::ops::freeze::{Change, freeze, plan_freeze};

/// Hold machines still, until they are thawed
///
/// Their processes stay in memory and get no time; nothing is lost, and nothing answers. systemd freezes the unit. Where
/// that is not safe, only the machine's own control groups are frozen, which needs root: systemd 252 kills a frozen unit
/// that has a watchdog, as those of machines do. Of such a freeze `systemctl thaw` and `systemctl stop` know nothing.
///
/// `machinist stop`, `terminate` and `restart` thaw a machine first. Freezing a frozen machine is no error.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist freeze web               Hold it still
  machinist freeze 'web-*' db        Several at the same time
  machinist freeze web --dry-run     See how it would be frozen

`machinist thaw` has them go on.")]
pub(super) struct Args {
    #[command(flatten)]
    machines: RunningMachines,
}

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let names = args.machines.resolve(ctx).await?;
    let bus = ctx.bus().await?;
    if args.machines.dry_run {
        return plan_each(ctx, &names, async |name| {
            let step = plan_freeze(bus, &name).await?;
            Ok(vec![
                step.unwrap_or_else(|| format!("nothing: {name} is frozen already")),
            ])
        })
        .await;
    }
    ctx.authorize().await;
    each(ctx, "freeze", names, async |name| {
        Ok(match freeze(bus, &name).await? {
            Change::Now => Outcome::new("frozen", format!("froze {name}")),
            Change::Already => Outcome::new("already-frozen", format!("{name} is frozen already")),
        })
    })
    .await
}
