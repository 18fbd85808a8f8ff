//! `machinist disable`

use std::sync::{Mutex, PoisonError};

use super::complete;
use super::context::Ctx;
use super::each::{Outcome, each};
use super::error::CliError;
use super::names::{Pool, resolve};
use crate::ops::enable::{Changed, disable};
use crate::ops::stop::{StopOptions, stop};

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
    if args.dry_run {
        let mut steps: Vec<_> = names
            .iter()
            .map(|name| format!("disable unit {}", name.unit()))
            .collect();
        steps.extend(
            names
                .iter()
                .filter(|_| args.now)
                .map(|name| format!("stop unit {}", name.unit())),
        );
        return ctx.show_plan(&steps).map(|()| 0);
    }
    let bus = ctx.bus().await?;
    let jobs = ctx.jobs().await?;
    let outcomes = Mutex::new(disable(bus, &names).await?);
    each(ctx, "disable", names, async |name| {
        let outcome = outcomes.lock().unwrap_or_else(PoisonError::into_inner).remove(&name);
        let changed = outcome.unwrap_or(Ok(Changed::No))?;
        if args.now {
            stop(bus, &jobs, &name, StopOptions::default()).await?;
        }
        Ok(match changed {
            Changed::Yes => Outcome::new("disabled", format!("{name} no longer starts at boot")),
            Changed::No => Outcome::new("already-disabled", format!("{name} does not start at boot")),
        })
    })
    .await
}
