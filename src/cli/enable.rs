//! `machinist enable`

use std::sync::{Mutex, PoisonError};

use super::complete;
use super::context::Ctx;
use super::each::{Outcome, each};
use super::error::CliError;
use super::names::{Pool, resolve};
use crate::ops::enable::{Changed, enable};
use crate::ops::start::{StartOptions, start};

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
    if args.dry_run {
        let mut steps: Vec<_> = names
            .iter()
            .map(|name| format!("enable unit {}", name.unit()))
            .collect();
        steps.push("enable machines.target if it is not".to_owned());
        steps.extend(
            names
                .iter()
                .filter(|_| args.now)
                .map(|name| format!("start unit {}", name.unit())),
        );
        return ctx.show_plan(&steps).map(|()| 0);
    }
    let bus = ctx.bus().await?;
    let jobs = ctx.jobs().await?;
    let outcomes = Mutex::new(enable(bus, &names).await?);
    each(ctx, "enable", names, async |name| {
        let outcome = outcomes.lock().unwrap_or_else(PoisonError::into_inner).remove(&name);
        let changed = outcome.unwrap_or(Ok(Changed::No))?;
        if args.now {
            start(bus, &jobs, &name, StartOptions::default()).await?;
        }
        Ok(match changed {
            Changed::Yes => Outcome::new("enabled", format!("{name} starts at boot")),
            Changed::No => Outcome::new("already-enabled", format!("{name} starts at boot already")),
        })
    })
    .await
}
