//! `machinist thaw`

use super::context::Ctx;
use super::each::{Outcome, each, plan_each};
use super::error::CliError;
use super::names::RunningMachines;
use crate::ops::freeze::{Change, plan_thaw, thaw};

/// Have frozen machines go on
///
/// Whether machinist froze them or systemctl. Thawing a machine that is not frozen is no error.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist thaw web       Have it go on
  machinist thaw 'web-*'   All whose name matches")]
pub(super) struct Args {
    #[command(flatten)]
    machines: RunningMachines,
}

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let names = args.machines.resolve(ctx).await?;
    let bus = ctx.bus().await?;
    if args.machines.dry_run {
        return plan_each(ctx, &names, async |name| {
            let step = plan_thaw(bus, &name).await?;
            Ok(vec![step.unwrap_or_else(|| format!("nothing: {name} is not frozen"))])
        })
        .await;
    }
    ctx.authorize().await;
    each(ctx, "thaw", names, async |name| {
        Ok(match thaw(bus, &name).await? {
            Change::Now => Outcome::new("thawed", format!("thawed {name}")),
            Change::Already => Outcome::new("not-frozen", format!("{name} is not frozen")),
        })
    })
    .await
}
