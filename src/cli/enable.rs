//! `machinist enable`

use std::sync::{Mutex, PoisonError};

use super::complete;
use super::context::Ctx;
use super::each::{Outcome, each, plan_each};
use super::error::CliError;
use super::names::{Pool, resolve};
use crate::ops::enable::{Changed, enable};
use crate::ops::start::{StartOptions, Started, find_image, is_to_start, start};

/// Start machines at boot
///
/// Enables systemd-nspawn@NAME.service, and machines.target if it is not. The machine starts at boot without machinist.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist enable web           Start it at every boot
  machinist enable web --now     And start it right now
  machinist enable 'web-*'       All images whose name matches")]
pub(super) struct Args {
    /// Machines, or patterns of image names
    #[arg(required = true, value_name = "NAME", add = complete::images())]
    names: Vec<String>,
    /// Start it as well
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
            find_image(bus, &name).await?;
            let mut steps = vec![format!("enable unit {}, and machines.target if it is not", name.unit())];
            if args.now && is_to_start(bus, &name).await? {
                steps.push(format!("start unit {}", name.unit()));
            }
            Ok(steps)
        })
        .await;
    }
    let jobs = ctx.jobs().await?;
    let outcomes = Mutex::new(enable(bus, &names).await?);
    each(ctx, "enable", names, async |name| {
        let outcome = outcomes.lock().unwrap_or_else(PoisonError::into_inner).remove(&name);
        let changed = outcome.unwrap_or(Ok(Changed::No))?;
        let (result, said) = match changed {
            Changed::Yes => ("enabled", format!("{name} starts at boot")),
            Changed::No => ("already-enabled", format!("{name} starts at boot already")),
        };
        if !args.now {
            return Ok(Outcome::new(result, said));
        }
        let now = match start(bus, &jobs, &name, StartOptions::default()).await? {
            Started::Now => "was started",
            Started::Already => "is running already",
        };
        Ok(Outcome::new(result, format!("{said}, and {now}")))
    })
    .await
}
