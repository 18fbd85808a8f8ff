//! What `set`, `add`, `unset` and `undo` have in common: the change, and from when on it holds.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Value, json};
use tokio::runtime::Handle;

use crate::cli::context::Ctx;
use crate::cli::each::{Outcome, each, plan_each};
use crate::cli::error::CliError;
use crate::cli::names::{Pool, resolve};
use crate::cli::restart::restart;
use crate::machine::MachineName;
use crate::nspawn::edit::Edit;
use crate::ops::config::{Change, Changed, Wanted, change_all, plan};
use crate::ops::console::need_keeper;
use crate::ops::enable::reload;
use crate::ops::start::StartOptions;
use crate::ops::stop::StopOptions;
use crate::sys::bus::jobs::Jobs;
use crate::sys::bus::{Bus, BusError};
use crate::sys::files::changed_at;
use crate::sys::journal::audit;
use crate::unit::console::TERMINAL;

/// What every change takes.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct How {
    /// Restart machines that run, so that the change holds at once
    #[arg(long)]
    pub(in crate::cli) restart: bool,
    /// Show what would be done, and do nothing
    #[arg(long)]
    pub(in crate::cli) dry_run: bool,
}

impl How {
    /// Whether nothing is to be done.
    pub(in crate::cli) fn is_dry(&self) -> bool {
        self.dry_run
    }

    /// For what holds without a restart, or has to wait for a start in any case.
    pub(in crate::cli) fn dry(dry_run: bool) -> Self {
        Self {
            restart: false,
            dry_run,
        }
    }
}

/// What was written, or was there already.
#[derive(Clone, Copy)]
pub(in crate::cli) struct Written<'a> {
    /// The files.
    pub(in crate::cli) files: &'a [PathBuf],
    /// Whether any was written just now.
    pub(in crate::cli) is_new: bool,
    /// Whether it counts for a running machine as soon as systemd has read it.
    pub(in crate::cli) at_once: bool,
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
pub(in crate::cli) async fn run(
    ctx: &Ctx,
    verb: &'static str,
    names: &[String],
    what: String,
    wanted: Wanted,
    how: How,
) -> Result<u8, CliError> {
    let names = resolve(ctx, names, Pool::Images).await?;
    let bus = ctx.bus().await?;
    if gives_terminal(&wanted) {
        need_keeper(bus).await?;
    }
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
            let mut steps = plan(&[change_of(&name)], &ctx.places)?;
            steps.extend(restart_of(bus, &name, &how).await?);
            Ok(steps)
        })
        .await;
    }
    ctx.need_root(verb)?;
    let jobs = jobs(ctx, &how).await?;
    each(ctx, verb, names, async |name| {
        super::find(ctx, &name).await?;
        let changed = make(ctx, bus, change_of(&name)).await?;
        outcome(bus, jobs.as_ref(), &name, &changed).await
    })
    .await
}

/// Whether it connects a machine to a terminal that somebody has to keep.
fn gives_terminal(wanted: &Wanted) -> bool {
    let is_terminal = |edit: &Edit| matches!(edit, Edit::Set { value, .. } if value == TERMINAL);
    matches!(wanted, Wanted::Edits { drop_ins, .. } if drop_ins.iter().any(|(_, edit)| is_terminal(edit)))
}

/// Restarts a machine where that is wanted and needed; words for people, and one for scripts, that say from when on it holds.
pub(in crate::cli) async fn bring_into_force(
    bus: &Bus,
    jobs: Option<&Jobs>,
    name: &MachineName,
    written: Written<'_>,
) -> Result<(&'static str, &'static str), CliError> {
    Ok(match (holds(bus, name, written).await?, jobs) {
        (Holds::AfterRestart, Some(jobs)) => {
            restart(bus, jobs, name, StopOptions::default(), StartOptions::default()).await?;
            (", and restarted it", "now")
        }
        (Holds::AfterRestart, None) => ("; it runs with the former ones until it is restarted", "after-restart"),
        (Holds::NextStart, _) => ("; holds from its next start", "next-start"),
        (Holds::Now, _) => ("", "now"),
    })
}

/// Makes changes of several machines, all of them or none. What `names` were changed to is said and logged; the others follow.
pub(in crate::cli) async fn run_together(
    ctx: &Ctx,
    verb: &'static str,
    names: Vec<MachineName>,
    changes: Vec<Change>,
    how: How,
) -> Result<u8, CliError> {
    let bus = ctx.bus().await?;
    if how.dry_run {
        let mut steps = plan(&changes, &ctx.places)?;
        for name in &names {
            steps.extend(restart_of(bus, name, &how).await?);
        }
        ctx.show_plan(&steps)?;
        return Ok(0);
    }
    let jobs = jobs(ctx, &how).await?;
    let of: Vec<MachineName> = changes.iter().map(|change| change.name.clone()).collect();
    let changed: BTreeMap<MachineName, Changed> = match make_all(ctx, bus, changes).await {
        Ok(changed) => of.into_iter().zip(changed).collect(),
        Err(error) => {
            for name in &names {
                audit(name.as_str(), verb, Err(&error.message));
            }
            return Err(error);
        }
    };
    let status = each(ctx, verb, names.clone(), async |name| {
        outcome(bus, jobs.as_ref(), &name, &changed[&name]).await
    })
    .await?;
    for (name, _) in changed.iter().filter(|(_, changed)| changed.number.is_some()) {
        if !names.contains(name) {
            ctx.voice.status(&format!("changed {name}, which follows"));
        }
    }
    Ok(status)
}

async fn jobs(ctx: &Ctx, how: &How) -> Result<Option<Jobs>, CliError> {
    Ok(if how.restart { Some(ctx.jobs().await?) } else { None })
}

/// The step of a dry run, if there is to be a restart.
async fn restart_of(bus: &Bus, name: &MachineName, how: &How) -> Result<Option<String>, CliError> {
    let restarts = how.restart && is_running(bus, name).await?;
    Ok(restarts.then(|| format!("restart unit {}", name.unit())))
}

/// What came of a change: from when on it holds.
async fn outcome(bus: &Bus, jobs: Option<&Jobs>, name: &MachineName, changed: &Changed) -> Result<Outcome, CliError> {
    let (result, mut line) = match changed.number {
        Some(_) => ("changed", format!("changed {name}")),
        None => ("unchanged", format!("{name} has these settings already")),
    };
    let holds = if changed.in_vain {
        line += "; it has no effect";
        None
    } else {
        let written = Written {
            files: &changed.files,
            is_new: changed.number.is_some(),
            at_once: changed.at_once,
        };
        let (words, holds) = bring_into_force(bus, jobs, name, written).await?;
        line += words;
        Some(holds)
    };
    let overridden: Vec<Value> = changed
        .overridden
        .iter()
        .map(|other| json!({ "key": other.key, "file": other.file, "by": other.by }))
        .collect();
    let file = changed.files.first().map(|file| file.to_string_lossy().into_owned());
    Ok(Outcome::new(result, line)
        .with("file", file)
        .with("change", changed.number)
        .with("holds", holds)
        .with("overridden", overridden))
}

/// Makes a change of one machine, and says what there is to say about it.
pub(in crate::cli) async fn make(ctx: &Ctx, bus: &Bus, wanted: Change) -> Result<Changed, CliError> {
    let mut made = make_all(ctx, bus, vec![wanted]).await?;
    Ok(made.remove(0))
}

/// The same of several, all or none.
async fn make_all(ctx: &Ctx, bus: &Bus, wanted: Vec<Change>) -> Result<Vec<Changed>, CliError> {
    let names: Vec<MachineName> = wanted.iter().map(|change| change.name.clone()).collect();
    let places = ctx.places.clone();
    let (progress, cancel) = (ctx.progress(names[0].as_str()), ctx.cancel.clone());
    let (bus_of, handle) = (bus.clone(), Handle::current());
    let made = ctx
        .blocking(move || {
            let reload = || handle.block_on(reload(&bus_of));
            change_all(&wanted, &places, &reload, &progress, &cancel)
        })
        .await?;
    let was_read = made.iter().any(|changed| changed.number.is_some());
    for (name, changed) in names.iter().zip(&made) {
        let has_drop_ins = changed
            .files
            .iter()
            .any(|file| file.extension().is_some_and(|ending| ending == "conf"));
        // Whoever wrote it was killed before systemd read it.
        if !was_read && has_drop_ins && bus.unit_state(&name.unit()).await?.unit.boolean("NeedDaemonReload") {
            reload(bus).await?;
        }
        for note in &changed.notes {
            ctx.voice.status(&format!("{name}: {note}"));
        }
        for warning in &changed.warnings {
            ctx.voice.warning(&format!("{name}: {}", warning.message));
            if let Some(hint) = &warning.hint {
                ctx.voice.status(&format!("hint: {hint}"));
            }
        }
    }
    Ok(made)
}

/// Whether there is a machine of that name now, or will be in a moment.
pub(in crate::cli) async fn is_running(bus: &Bus, name: &MachineName) -> Result<bool, CliError> {
    match bus.registered(name.as_str()).await {
        Ok(_) => Ok(true),
        // On its way up it is not registered yet.
        Err(BusError::NoSuchMachine(_)) => Ok(bus.unit_state(&name.unit()).await?.is_up()),
        Err(error) => Err(error.into()),
    }
}

async fn holds(bus: &Bus, name: &MachineName, written: Written<'_>) -> Result<Holds, CliError> {
    if written.at_once {
        return Ok(Holds::Now);
    }
    if !is_running(bus, name).await? {
        return Ok(Holds::NextStart);
    }
    let started = bus.unit_state(&name.unit()).await?.unit.number("InactiveExitTimestamp");
    let last = written.files.iter().filter_map(|file| changed_at(file)).max();
    let read_them = last.is_none_or(|last| started.is_some_and(|started| last < started));
    Ok(if !written.is_new && read_them {
        Holds::Now
    } else {
        Holds::AfterRestart
    })
}
