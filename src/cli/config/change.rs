//! What `set`, `add`, `unset` and `undo` have in common: the change, and from when on it holds.

use std::os::unix::fs::MetadataExt as _;

use crate::cli::context::Ctx;
use crate::cli::each::{Outcome, each, plan_each};
use crate::cli::error::CliError;
use crate::cli::names::{Pool, resolve};
use crate::cli::restart::restart;
use crate::machine::MachineName;
use crate::ops::config::{Change, Changed, Wanted, change, plan};
use crate::ops::start::StartOptions;
use crate::ops::stop::StopOptions;
use crate::sys::bus::{Bus, BusError};

/// What every change takes.
#[derive(Debug, clap::Args)]
pub(super) struct How {
    /// Restart machines that run, so that the change holds at once
    #[arg(long)]
    restart: bool,
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// From when on the settings of a machine hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holds {
    /// It was started with them.
    Now,
    /// It does not run.
    NextStart,
    /// It runs, and was started before they were written.
    AfterRestart,
}

/// Changes the settings of machines. `verb` is the one that is logged, `what` stands in the list of changes.
pub(super) async fn run(
    ctx: &Ctx,
    verb: &'static str,
    names: &[String],
    what: String,
    wanted: Wanted,
    how: How,
) -> Result<u8, CliError> {
    let names = resolve(ctx, names, Pool::Images).await?;
    let bus = ctx.bus().await?;
    let systemd = bus.systemd_version().await?;
    let change_of = |name: &MachineName| Change {
        name: name.clone(),
        wanted: wanted.clone(),
        what: what.clone(),
        systemd,
    };
    if how.dry_run {
        return plan_each(ctx, &names, async |name| {
            super::find(ctx, &name).await?;
            let mut steps = plan(&change_of(&name), &ctx.places)?;
            if how.restart && is_running(bus, &name).await? {
                steps.push(format!("restart unit {}", name.unit()));
            }
            Ok(steps)
        })
        .await;
    }
    ctx.need_root(verb)?;
    let jobs = if how.restart { Some(ctx.jobs().await?) } else { None };
    each(ctx, verb, names, async |name| {
        super::find(ctx, &name).await?;
        let (change_of, places) = (change_of(&name), ctx.places.clone());
        let (progress, cancel) = (ctx.progress(name.as_str()), ctx.cancel.clone());
        let changed = ctx
            .blocking(move || change(&change_of, &places, &progress, &cancel))
            .await?;
        for note in &changed.notes {
            ctx.voice.status(&format!("{name}: {note}"));
        }
        for warning in &changed.warnings {
            ctx.voice.warning(&format!("{name}: {}", warning.message));
        }
        let mut holds = holds(bus, &name, &changed).await?;
        let (result, mut line) = match changed.number {
            Some(_) => ("changed", format!("changed {name}")),
            None => ("unchanged", format!("{name} has these settings already")),
        };
        line += match (holds, &jobs) {
            (Holds::AfterRestart, Some(jobs)) => {
                restart(bus, jobs, &name, StopOptions::default(), StartOptions::default()).await?;
                holds = Holds::Now;
                ", and restarted it"
            }
            (Holds::AfterRestart, None) => "; it runs with the former ones until it is restarted",
            (Holds::NextStart, _) => "; holds from its next start",
            (Holds::Now, _) => "",
        };
        let holds = match holds {
            Holds::Now => "now",
            Holds::NextStart => "next-start",
            Holds::AfterRestart => "after-restart",
        };
        Ok(Outcome::new(result, line)
            .with("file", changed.file.to_string_lossy())
            .with("change", changed.number)
            .with("holds", holds))
    })
    .await
}

async fn is_running(bus: &Bus, name: &MachineName) -> Result<bool, CliError> {
    match bus.registered(name.as_str()).await {
        Ok(_) => Ok(true),
        // On its way up it is not registered yet.
        Err(BusError::NoSuchMachine(_)) => Ok(bus.unit_state(&name.unit()).await?.is_up()),
        Err(error) => Err(error.into()),
    }
}

async fn holds(bus: &Bus, name: &MachineName, changed: &Changed) -> Result<Holds, CliError> {
    if !is_running(bus, name).await? {
        return Ok(Holds::NextStart);
    }
    let started = bus.unit_state(&name.unit()).await?.unit.number("InactiveExitTimestamp");
    let written = std::fs::metadata(&changed.file).ok().and_then(|found| {
        let seconds = u64::try_from(found.mtime()).ok()?;
        Some(seconds * 1_000_000 + u64::try_from(found.mtime_nsec()).ok()? / 1000)
    });
    let read_them = written.is_none_or(|written| started.is_some_and(|started| written < started));
    Ok(if changed.number.is_none() && read_them {
        Holds::Now
    } else {
        Holds::AfterRestart
    })
}
