//! `machinist restart`

use std::time::{Duration, Instant};

use super::complete;
use super::context::Ctx;
use super::each::{Outcome, each};
use super::error::CliError;
use super::names::{Pool, resolve};
use crate::ops::boot::wait_for_boot;
use crate::ops::start::{StartOptions, start};
use crate::ops::stop::{StopOptions, reboot_inside, stop};

/// Stop and start machines, or reboot them from inside
///
/// A machine that does not run is started. With --inside its init is asked to reboot, and the unit is not stopped:
/// what depends on it keeps running.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist restart web             Power it off and start it again: new settings apply
  machinist restart web --inside    Reboot the guest in its unit
  machinist restart 'web-*' --wait  Several, until they have booted")]
pub(super) struct Args {
    /// Machines, or patterns of running machines' names
    #[arg(required = true, value_name = "NAME", add = complete::all())]
    names: Vec<String>,
    /// Let the guest reboot itself
    #[arg(long)]
    inside: bool,
    /// Also wait for the guest's own boot to finish
    #[arg(long)]
    wait: bool,
    /// Seconds that each half, going down and coming up, may take
    #[arg(long, value_name = "SECONDS", default_value = "90", value_parser = super::seconds)]
    timeout: Duration,
    /// Take it down if it has not powered off in time
    #[arg(long, conflicts_with = "inside")]
    force: bool,
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let names = resolve(ctx, &args.names, Pool::Running).await?;
    if args.dry_run {
        let steps: Vec<_> = names
            .iter()
            .flat_map(|name| {
                if args.inside {
                    vec![format!(
                        "ask the init of '{name}' to reboot and wait for its next invocation"
                    )]
                } else {
                    vec![
                        format!("stop unit {}", name.unit()),
                        format!("start unit {}", name.unit()),
                    ]
                }
            })
            .collect();
        return ctx.show_plan(&steps).map(|()| 0);
    }
    let bus = ctx.bus().await?;
    let jobs = ctx.jobs().await?;
    each(ctx, "restart", names, async |name| {
        if args.inside {
            let begun = Instant::now();
            reboot_inside(bus, &name, args.timeout).await?;
            if args.wait {
                let left = args.timeout.saturating_sub(begun.elapsed());
                tokio::time::timeout(left, wait_for_boot(bus, &name))
                    .await
                    .map_err(|_| timed_out(&name, args.timeout))??;
            }
            return Ok(Outcome::new("rebooted", format!("rebooted {name}")));
        }
        stop(
            bus,
            &jobs,
            &name,
            StopOptions {
                timeout: args.timeout,
                force: args.force,
            },
        )
        .await?;
        start(
            bus,
            &jobs,
            &name,
            StartOptions {
                wait: args.wait,
                timeout: args.timeout,
            },
        )
        .await?;
        Ok(Outcome::new("restarted", format!("restarted {name}")))
    })
    .await
}

fn timed_out(name: &crate::machine::MachineName, after: Duration) -> crate::ops::OpError {
    crate::ops::OpError::TimedOut {
        name: name.to_string(),
        state: "has not finished booting",
        after,
        hint: format!("see `machinist status {name}`"),
    }
}
