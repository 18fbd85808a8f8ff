//! `machinist disable`

use std::sync::{Mutex, PoisonError};

use super::complete;
use super::context::Ctx;
use super::each::{Outcome, each, plan_each};
use super::error::CliError;
use super::names::{Pool, resolve};
use crate::ops::enable::{Changed, disable};
use crate::ops::start::find_machine;
use crate::ops::stop::{StopOptions, Stopped, stop, unit_to_stop};

/// Do not start machines at boot
///
/// Disables systemd-nspawn@NAME.service. A running machine keeps running, unless --now is given.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist disable web          No longer start it at boot
  machinist disable web --now    And power it off right now")]
pub(super) struct Args {
    /// Machines, or patterns of image names
    #[arg(required = true, value_name = "NAME", add = complete::images())]
    names: Vec<String>,
    /// Stop it as well
    #[arg(long)]
    now: bool,
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let names = resolve(ctx, &args.names, Pool::Images).await?;
    let bus = ctx.bus().await?;
    if args.dry_run {
        return plan_each(ctx, &names, async |name| {
            find_machine(bus, &name).await?;
            let mut steps = vec![format!("disable unit {}", name.unit())];
            if args.now {
                steps.extend(unit_to_stop(bus, &name).await?.map(|unit| format!("stop unit {unit}")));
            }
            Ok(steps)
        })
        .await;
    }
    let jobs = ctx.jobs().await?;
    let outcomes = Mutex::new(disable(bus, &names).await?);
    each(ctx, "disable", names, async |name| {
        let outcome = outcomes.lock().unwrap_or_else(PoisonError::into_inner).remove(&name);
        let changed = outcome.unwrap_or(Ok(Changed::No))?;
        let (result, said) = match changed {
            Changed::Yes => ("disabled", format!("{name} no longer starts at boot")),
            Changed::No => ("already-disabled", format!("{name} does not start at boot")),
        };
        if !args.now {
            return Ok(Outcome::new(result, said));
        }
        let now = match stop(bus, &jobs, &name, StopOptions::default()).await? {
            Stopped::Cleanly | Stopped::Forced => "was stopped",
            Stopped::Already => "is not running",
        };
        Ok(Outcome::new(result, format!("{said}, and {now}")))
    })
    .await
}
