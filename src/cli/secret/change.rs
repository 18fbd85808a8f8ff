//! `machinist secret set` and `machinist secret remove`

use std::fs::File;
use std::io::{IsTerminal as _, Read};
use std::path::{Path, PathBuf};

use tokio::runtime::Handle;
use zeroize::Zeroizing;

use crate::cli::complete;
use crate::cli::config::change::{How, Written, bring_into_force, is_running};
use crate::cli::config::find;
use crate::cli::context::Ctx;
use crate::cli::each::{Outcome, each, plan_each};
use crate::cli::error::{CliError, Kind};
use crate::cli::names::{Pool, resolve};
use crate::machine::{Cancel, MachineName};
use crate::ops::enable::reload;
use crate::ops::secret::{Changed, VALUE_MAX, Wanted, Work, check};
use crate::sys::bus::Bus;
use crate::unit::secret::Key;

#[derive(Debug, clap::Args)]
pub(super) struct SetArgs {
    /// Machine, or a pattern of image names
    #[arg(value_name = "NAME", add = complete::images())]
    name: String,
    /// Name of the secret, as the machine knows it
    #[arg(value_name = "KEY", required_unless_present = "refresh", add = complete::secrets())]
    key: Option<Key>,
    /// The value is what this file has, `-` for standard input
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Change no secret: hand on those that are there by the command line that the unit has now
    #[arg(long, conflicts_with_all = ["key", "file"])]
    refresh: bool,
    #[command(flatten)]
    how: How,
}

#[derive(Debug, clap::Args)]
pub(super) struct RemoveArgs {
    /// Machine, or a pattern of image names
    #[arg(value_name = "NAME", add = complete::images())]
    name: String,
    /// Names of secrets
    #[arg(required = true, value_name = "KEY", add = complete::secrets())]
    keys: Vec<Key>,
    #[command(flatten)]
    how: How,
}

pub(super) async fn set(ctx: &Ctx, args: SetArgs) -> Result<u8, CliError> {
    let wanted = match args.key {
        None => Wanted::Refresh,
        Some(key) if args.how.dry_run => Wanted::Set(key, None),
        Some(key) => {
            ctx.need_root("secret set")?;
            let value = ctx.wait_for_user(move || read(args.file.as_deref())).await?;
            Wanted::Set(key, Some(value))
        }
    };
    change(ctx, "secret set", &args.name, wanted, &args.how).await
}

pub(super) async fn remove(ctx: &Ctx, args: RemoveArgs) -> Result<u8, CliError> {
    change(ctx, "secret remove", &args.name, Wanted::Remove(args.keys), &args.how).await
}

/// Reads a value of any bytes, and a byte more than a value may have.
fn read(file: Option<&Path>) -> Result<Zeroizing<Vec<u8>>, CliError> {
    let file = file.filter(|file| *file != Path::new("-"));
    let failed = |error: std::io::Error| {
        let from = file.map_or("standard input".to_owned(), |file| format!("'{}'", file.display()));
        CliError::new(Kind::Failed, format!("cannot read the value from {from}")).causes([error.to_string()])
    };
    let mut source: Box<dyn Read> = match file {
        Some(file) => Box::new(File::open(file).map_err(failed)?),
        None if std::io::stdin().is_terminal() => {
            return Err(
                CliError::usage("the value is read from standard input, which is a terminal")
                    .hint("give it by a pipe, or by --file: on a terminal everybody could read it"),
            );
        }
        None => Box::new(std::io::stdin().lock()),
    };
    // Filled to its capacity and no further: a vector that grows leaves copies of the value behind.
    let mut value = Zeroizing::new(vec![0; VALUE_MAX + 1]);
    let mut length = 0;
    while length < value.len() {
        match source.read(&mut value[length..]) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
    value.truncate(length);
    Ok(value)
}

async fn change(ctx: &Ctx, verb: &'static str, name: &str, wanted: Wanted, how: &How) -> Result<u8, CliError> {
    let names = resolve(ctx, &[name.to_owned()], Pool::Images).await?;
    let bus = ctx.bus().await?;
    if how.dry_run {
        return plan_each(ctx, &names, async |name| {
            find(ctx, &name).await?;
            let work = Work {
                name: &name,
                places: &ctx.places,
                reload: &|| Ok(()),
                report: &(),
                cancel: &Cancel::default(),
            };
            let mut steps = work.plan(&wanted)?;
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
        find(ctx, &name).await?;
        let changed = make(ctx, bus, &name, wanted.clone()).await?;
        let keys = match &wanted {
            // Those that it never was given.
            Wanted::Remove(keys) if !changed.is_new => keys,
            _ => &changed.keys,
        };
        let what = keys.iter().map(Key::as_str).collect::<Vec<_>>().join(", ");
        let (result, mut line) = match (&wanted, changed.is_new) {
            (Wanted::Set(..), true) => ("set", format!("{name} gets {what}")),
            (Wanted::Set(..), false) => ("unchanged", format!("{name} has this {what} already")),
            (Wanted::Remove(_), true) => ("removed", format!("{name} no longer gets {what}")),
            (Wanted::Remove(_), false) => ("unchanged", format!("{name} was not given {what}")),
            (Wanted::Refresh, true) => (
                "refreshed",
                format!("{name} gets its secrets by the unit's command line"),
            ),
            (Wanted::Refresh, false) => ("unchanged", format!("{name} has the unit's command line already")),
        };
        let written = Written {
            files: &changed.files,
            is_new: changed.is_new,
            at_once: false,
        };
        let (words, holds) = bring_into_force(bus, jobs.as_ref(), &name, written).await?;
        line += words;
        if let Some(checked) = check(&name, &ctx.places)? {
            for finding in checked.findings {
                ctx.voice.warning(&format!("{name}: {}", finding.message));
            }
        }
        Ok(Outcome::new(result, line)
            .with("keys", keys.iter().map(Key::as_str).collect::<Vec<_>>())
            .with("holds", holds))
    })
    .await
}

async fn make(ctx: &Ctx, bus: &Bus, name: &MachineName, wanted: Wanted) -> Result<Changed, CliError> {
    let (of, places) = (name.clone(), ctx.places.clone());
    let (progress, cancel) = (ctx.progress(name.as_str()), ctx.cancel.clone());
    let (bus_of, handle) = (bus.clone(), Handle::current());
    let changed = ctx
        .blocking(move || {
            let work = Work {
                name: &of,
                places: &places,
                reload: &|| handle.block_on(reload(&bus_of)),
                report: &progress,
                cancel: &cancel,
            };
            work.change(&wanted)
        })
        .await?;
    // Whoever wrote it was killed before systemd read it.
    if !changed.reloaded && bus.unit_state(&name.unit()).await?.unit.boolean("NeedDaemonReload") {
        reload(bus).await?;
    }
    Ok(changed)
}
