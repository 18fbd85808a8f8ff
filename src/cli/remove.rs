//! `machinist remove`

use std::io::IsTerminal as _;
use std::path::Path;

use tokio::runtime::Handle;

use super::complete;
use super::context::Ctx;
use super::each::{Outcome, each};
use super::error::{CliError, Kind};
use super::names::{Pool, resolve};
use super::sweep::{self, ThroughSystemd};
use crate::machine::MachineName;
use crate::ops::enable::is_enabled;
use crate::ops::protect::refuse_protected;
use crate::ops::remove::{Target, plan, remove};
use crate::ops::{OpError, Places, stop};
use crate::output::confirm;
use crate::sys::bus::jobs::Jobs;
use crate::sys::bus::{Bus, BusError};

/// Remove machines: image, autostart, journal link and settings
///
/// A running machine is refused unless --force is given, a protected one always. What an administrator wrote for it, a .nspawn file or drop-ins
/// of its unit, is moved to /var/lib/machinist/trash and named.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist remove web                Ask, then remove it
  machinist remove 'ci-*' -y --force  Without asking, running or not
  machinist remove web --dry-run      See what would be removed")]
pub(super) struct Args {
    /// Machines, or patterns of image names
    #[arg(required = true, value_name = "NAME", add = complete::images())]
    names: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Take it down first if it runs
    #[arg(long)]
    force: bool,
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let names = resolve(ctx, &args.names, Pool::Images).await?;
    if args.dry_run {
        let mut steps = Vec::new();
        for name in &names {
            let target = look(ctx.bus().await?, &ctx.places, name, args.force).await?;
            steps.extend(plan(&target, &ctx.places));
        }
        return ctx.show_plan(&steps).map(|()| 0);
    }
    ctx.need_root("remove")?;
    if !args.yes && std::io::stdin().is_terminal() {
        let list = names
            .iter()
            .map(|name| format!("'{name}'"))
            .collect::<Vec<_>>()
            .join(", ");
        let question = format!("Remove {list} with everything in it?");
        if !ctx.wait_for_user(move || Ok(confirm(&question)?)).await? {
            return Err(CliError::new(Kind::Failed, "nothing was removed"));
        }
    }
    sweep::run(ctx).await?;
    let bus = ctx.bus().await?;
    let jobs = ctx.jobs().await?;
    each(ctx, "remove", names, async |name| {
        let kept = remove_one(ctx, bus, &jobs, &name, args.force).await?;
        for path in kept {
            ctx.voice
                .status(&format!("kept what was not machinist's: {}", path.display()));
        }
        Ok(Outcome::new("removed", format!("removed {name}")))
    })
    .await
}

async fn remove_one(
    ctx: &Ctx,
    bus: &Bus,
    jobs: &Jobs,
    name: &MachineName,
    force: bool,
) -> Result<Vec<std::path::PathBuf>, CliError> {
    let target = look(bus, &ctx.places, name, force).await?;
    if force {
        stop::terminate(bus, jobs, name).await?;
    }
    let (places, cancel, progress) = (ctx.places.clone(), ctx.cancel.clone(), ctx.progress(name.as_str()));
    let (bus, handle) = (bus.clone(), Handle::current());
    let removed = ctx
        .blocking(move || {
            let still_free = || {
                refuse_protected(&target.name, &places)?;
                handle.block_on(refuse_running(&bus, &target.name))
            };
            let systemd = ThroughSystemd {
                bus: bus.clone(),
                handle: handle.clone(),
            };
            remove(&target, &places, &systemd, &still_free, &progress, &cancel)
        })
        .await?;
    Ok(removed.kept)
}

/// Finds what there is to remove.
async fn look(bus: &Bus, places: &Places, name: &MachineName, force: bool) -> Result<Target, OpError> {
    let Some(image) = bus.find_image_path(name.as_str()).await? else {
        return Err(OpError::NoImage { name: name.to_string() });
    };
    refuse_system(&image)?;
    refuse_protected(name, places)?;
    if !force {
        refuse_running(bus, name).await?;
    }
    let enabled = is_enabled(&bus.unit_file_state(&name.unit()).await.unwrap_or_default());
    Ok(Target {
        name: name.clone(),
        image: Some(places.image_entry(name, Path::new(&image))),
        enabled,
    })
}

/// systemd treats what lies below /usr as read-only, too: packages bring it, and would bring it again.
pub(super) fn refuse_system(image: &str) -> Result<(), OpError> {
    if image.starts_with("/usr/") {
        return Err(OpError::NotRemovable {
            path: image.into(),
            reason: "what lies below /usr belongs to the system".to_owned(),
        });
    }
    Ok(())
}

pub(super) async fn refuse_running(bus: &Bus, name: &MachineName) -> Result<(), OpError> {
    let registered = match bus.registered(name.as_str()).await {
        Ok(_) => true,
        Err(BusError::NoSuchMachine(_)) => false,
        Err(error) => return Err(error.into()),
    };
    // On its way up it is not registered yet.
    if registered || bus.unit_state(&name.unit()).await?.is_up() {
        return Err(OpError::Running { name: name.to_string() });
    }
    Ok(())
}
