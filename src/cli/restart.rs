//! `machinist restart`

use std::time::{Duration, Instant};

use super::complete;
use super::context::Ctx;
use super::each::{Outcome, each, plan_each};
use super::error::CliError;
use super::names::{Pool, resolve};
use crate::machine::MachineName;
use crate::ops::OpError;
use crate::ops::boot::wait_for_boot;
use crate::ops::start::{StartOptions, find_image_or_drop_in, start};
use crate::ops::stop::{PATIENCE, StopOptions, reboot_inside, stop, unit_to_stop};
use crate::sys::bus::Bus;
use crate::sys::bus::jobs::Jobs;

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
    ///
    /// 90; going down as many as the machine's own stop-timeout if that is longer.
    #[arg(long, value_name = "SECONDS", value_parser = super::seconds)]
    timeout: Option<Duration>,
    /// Take it down if it has not powered off in time
    #[arg(long, conflicts_with = "inside")]
    force: bool,
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let names = resolve(ctx, &args.names, Pool::Running).await?;
    let bus = ctx.bus().await?;
    if args.dry_run {
        return plan_each(ctx, &names, async |name| {
            if args.inside {
                return Ok(match unit_to_stop(bus, &name).await? {
                    Some(_) => vec![format!(
                        "ask the init of '{name}' to reboot and wait for its next invocation"
                    )],
                    None => return Err(OpError::NotRunning { name: name.to_string() }.into()),
                });
            }
            let stop = unit_to_restart(bus, &name)
                .await?
                .map(|unit| format!("stop unit {unit}"));
            Ok(stop
                .into_iter()
                .chain([format!("start unit {}", name.unit())])
                .collect())
        })
        .await;
    }
    let jobs = ctx.jobs().await?;
    let limit = args.timeout.unwrap_or(PATIENCE);
    each(ctx, "restart", names, async |name| {
        if args.inside {
            let begun = Instant::now();
            reboot_inside(bus, &name, limit).await?;
            if args.wait {
                let left = limit.saturating_sub(begun.elapsed());
                tokio::time::timeout(left, wait_for_boot(bus, &name))
                    .await
                    .map_err(|_| timed_out(&name, limit))??;
            }
            return Ok(Outcome::new("rebooted", format!("rebooted {name}")));
        }
        restart(
            bus,
            &jobs,
            &name,
            StopOptions {
                timeout: args.timeout,
                force: args.force,
            },
            StartOptions {
                wait: args.wait,
                timeout: limit,
            },
        )
        .await?;
        Ok(Outcome::new("restarted", format!("restarted {name}")))
    })
    .await
}

/// Stops a machine and starts it again; one that does not run is started.
pub(super) async fn restart(
    bus: &Bus,
    jobs: &Jobs,
    name: &MachineName,
    going_down: StopOptions,
    coming_up: StartOptions,
) -> Result<(), OpError> {
    unit_to_restart(bus, name).await?;
    stop(bus, jobs, name, going_down).await?;
    start(bus, jobs, name, coming_up).await?;
    Ok(())
}

/// The unit that is stopped first, if it runs. What could not be started again is not stopped.
async fn unit_to_restart(bus: &Bus, name: &MachineName) -> Result<Option<String>, OpError> {
    let unit = unit_to_stop(bus, name).await?;
    if let Some(unit) = unit.as_ref().filter(|unit| **unit != name.unit()) {
        let (name, unit) = (name.to_string(), unit.clone());
        return Err(OpError::Elsewhere { name, unit });
    }
    find_image_or_drop_in(bus, name).await?;
    Ok(unit)
}

fn timed_out(name: &MachineName, after: Duration) -> OpError {
    OpError::TimedOut {
        name: name.to_string(),
        state: "has not finished booting",
        after,
        hint: format!("see `machinist status {name}`"),
    }
}
