//! `machinist clone`

use std::path::PathBuf;

use tokio::runtime::Handle;

use super::complete;
use super::context::Ctx;
use super::create::check_name;
use super::error::CliError;
use super::sweep::{self, ThroughSystemd};
use crate::machine::MachineName;
use crate::ops::OpError;
use crate::ops::clone::{Cloned, Request, clone, plan};
use crate::sys::bus::{Bus, BusError};
use crate::sys::journal::audit;

/// Make a machine that is a copy of another
///
/// The clone has the settings, limits, order, labels and secrets of the machine, and an identity of its own: machine ID, ssh
/// host keys, leases and hardware addresses are made anew, and so is the host name if it was the machine's. It does
/// not start at boot, and is not protected. On btrfs it is a snapshot; elsewhere files are copied. A running machine stands
/// still meanwhile.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist clone web web-2                  Copy a machine, running or not
  machinist clone web spare --keep-identity  As a spare that takes its place
  machinist clone web web-3 --dry-run        See what would be done")]
pub(super) struct Args {
    /// The machine to copy
    #[arg(value_name = "SRC", add = complete::images())]
    source: MachineName,
    /// The new machine's name
    #[arg(value_name = "DST")]
    name: MachineName,
    /// A copy that needs nothing of the machine: what is made without this, too
    #[arg(long)]
    full: bool,
    /// Keep machine ID, keys, leases, addresses and host name
    #[arg(long)]
    keep_identity: bool,
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let (source, name) = (args.source, args.name);
    name.check_new()?;
    if source == name {
        return Err(CliError::usage(format!("machine '{name}' cannot be a clone of itself")));
    }
    let bus = ctx.bus().await?.clone();
    let image = bus.find_image_path(source.as_str()).await?;
    let image = PathBuf::from(image.ok_or_else(|| OpError::NoImage {
        name: source.to_string(),
    })?);
    check_name(&bus, &name).await?;
    let request = Request {
        source,
        image,
        name,
        keep_identity: args.keep_identity,
    };
    if args.dry_run {
        let running = is_running(&bus, &request.source).await?;
        let (steps, warnings) = plan(&request, running, &ctx.places)?;
        for warning in warnings {
            ctx.voice.warning(&warning);
        }
        return ctx.show_plan(&steps).map(|()| 0);
    }
    ctx.need_root("clone")?;
    sweep::run(ctx).await?;
    let result = make(ctx, &bus, request.clone()).await;
    let outcome = result.as_ref().map(|_| ()).map_err(|error| error.message.as_str());
    audit(request.name.as_str(), "clone", outcome);
    let cloned = result?;
    let (source, name) = (&request.source, &request.name);
    ctx.voice.status(&format!("cloned {source} to {name}"));
    ctx.voice.status(&format!("start it with `machinist start {name}`"));
    if ctx.voice.json {
        ctx.voice.json(&[serde_json::json!({
            "machine": name,
            "result": "cloned",
            "source": source,
            "path": cloned.path,
            "storage": cloned.storage,
            "files": cloned.files,
        })])?;
    }
    Ok(0)
}

/// Whether machined has it.
pub(super) async fn is_running(bus: &Bus, name: &MachineName) -> Result<bool, OpError> {
    match bus.registered(name.as_str()).await {
        Ok(_) => Ok(true),
        Err(BusError::NoSuchMachine(_)) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The transaction, on a thread of its own; D-Bus is asked from there through the runtime of this one.
async fn make(ctx: &Ctx, bus: &Bus, request: Request) -> Result<Cloned, CliError> {
    let (places, cancel, progress) = (
        ctx.places.clone(),
        ctx.cancel.clone(),
        ctx.progress(request.name.as_str()),
    );
    let systemd = ThroughSystemd {
        bus: bus.clone(),
        handle: Handle::current(),
    };
    ctx.blocking(move || clone(&request, &places, &systemd, &progress, &cancel))
        .await
}
