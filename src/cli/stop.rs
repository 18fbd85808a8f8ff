//! `machinist stop`

use std::time::Duration;

use super::complete;
use super::context::Ctx;
use super::each::{Outcome, each, plan_each};
use super::error::CliError;
use super::group::Sequence;
use super::names::Pool;
use crate::ops::stop::{StopOptions, Stopped, plan_stop, stop};

/// Power machines off cleanly
///
/// Asks the guest to power off and waits until nothing of it is left. A unit with Restart=always stays down. Stopping a
/// machine that does not run is no error.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist stop web                       Power it off, and wait for that
  machinist stop '*' --timeout 20 --force  All of them; after 20 seconds without asking
  machinist stop web db                    Two at the same time
  machinist stop --group shop              The machines of a group, the last one first")]
pub(super) struct Args {
    /// Machines, or patterns of running machines' names
    #[arg(required_unless_present = "group", value_name = "NAME", add = complete::running())]
    names: Vec<String>,
    /// Seconds the guest may take to power off
    ///
    /// 90, or as many as the machine's own stop-timeout if that is longer.
    #[arg(long, value_name = "SECONDS", value_parser = super::seconds)]
    timeout: Option<Duration>,
    /// Take it down if it has not powered off in time
    #[arg(long)]
    force: bool,
    /// The machines of this group, the other way round than they start
    #[arg(long, value_name = "GROUP", conflicts_with = "names")]
    group: Option<String>,
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let group = args.group.as_deref();
    let (names, sequence) = Sequence::of(ctx, &args.names, group, Pool::Running, true).await?;
    let bus = ctx.bus().await?;
    let options = StopOptions {
        timeout: args.timeout,
        force: args.force,
    };
    if args.dry_run {
        let force = if args.force { ", then take it down" } else { "" };
        return plan_each(ctx, &names, async |name| {
            Ok(vec![match plan_stop(bus, &name, options).await? {
                Some((unit, Some(patience))) => {
                    format!("stop unit {unit}, wait up to {} s{force}", patience.as_secs_f64())
                }
                Some((unit, None)) => format!("stop unit {unit}, wait as long as it takes"),
                None => format!("nothing: {name} is not running"),
            }])
        })
        .await;
    }
    let jobs = ctx.jobs().await?;
    each(ctx, "stop", names, async |name| {
        let _turn = sequence.turn(&name).await;
        Ok(match stop(bus, &jobs, &name, options).await? {
            Stopped::Cleanly => Outcome::new("stopped", format!("stopped {name}")),
            Stopped::Forced => Outcome::new("forced", format!("{name} did not power off in time and was taken down")),
            Stopped::Already => Outcome::new("already-stopped", format!("{name} is not running")),
        })
    })
    .await
}
