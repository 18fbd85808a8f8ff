//! `machinist stop`

use std::time::Duration;

use super::complete;
use super::context::Ctx;
use super::each::{Outcome, each, plan_each};
use super::error::CliError;
use super::names::{Pool, resolve};
use crate::ops::stop::{StopOptions, Stopped, stop, unit_to_stop};

/// Power machines off cleanly
///
/// Asks the guest to power off and waits until nothing of it is left. A unit with Restart=always stays down. Stopping a
/// machine that does not run is no error.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist stop web                       Power it off, wait up to 90 seconds
  machinist stop '*' --timeout 20 --force  All of them; after 20 seconds without asking
  machinist stop web db                    Two at the same time")]
pub(super) struct Args {
    /// Machines, or patterns of running machines' names
    #[arg(required = true, value_name = "NAME", add = complete::running())]
    names: Vec<String>,
    /// Seconds the guest may take to power off
    #[arg(long, value_name = "SECONDS", default_value = "90", value_parser = super::seconds)]
    timeout: Duration,
    /// Take it down if it has not powered off in time
    #[arg(long)]
    force: bool,
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let names = resolve(ctx, &args.names, Pool::Running).await?;
    let bus = ctx.bus().await?;
    if args.dry_run {
        let force = if args.force { ", then take it down" } else { "" };
        let seconds = args.timeout.as_secs_f64();
        return plan_each(ctx, &names, async |name| {
            Ok(vec![match unit_to_stop(bus, &name).await? {
                Some(unit) => format!("stop unit {unit}, wait up to {seconds} s{force}"),
                None => format!("nothing: {name} is not running"),
            }])
        })
        .await;
    }
    let jobs = ctx.jobs().await?;
    let options = StopOptions {
        timeout: args.timeout,
        force: args.force,
    };
    each(ctx, "stop", names, async |name| {
        Ok(match stop(bus, &jobs, &name, options).await? {
            Stopped::Cleanly => Outcome::new("stopped", format!("stopped {name}")),
            Stopped::Forced => Outcome::new("forced", format!("{name} did not power off in time and was taken down")),
            Stopped::Already => Outcome::new("already-stopped", format!("{name} is not running")),
        })
    })
    .await
}
