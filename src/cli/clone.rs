//! `machinist clone`

use std::path::PathBuf;

use tokio::runtime::Handle;

use super::complete;
use super::context::Ctx;
use super::create::check_name;
use super::error::CliError;
use super::rename::check_stopped;
use super::sweep::{self, ThroughSystemd};
use crate::machine::MachineName;
use crate::ops::OpError;
use crate::ops::clone::{Cloned, Request, clone, plan};
use crate::ops::linked::flatten;
use crate::ops::start::find_image;
use crate::sys::bus::{Bus, BusError};
use crate::sys::journal::audit;

/// Make a machine that is a copy of another
///
/// The clone has the settings, limits, order, labels and secrets of the machine, and an identity of its own: machine ID, ssh
/// host keys, leases and hardware addresses are made anew, and so is the host name if it was the machine's. It does
/// not start at boot, and is not protected. On btrfs it is a snapshot; elsewhere files are copied. A running machine stands
/// still meanwhile. A disk image is copied as it is, with --keep-identity and while its machine does not run.
///
/// With --linked nothing is copied on any filesystem: what the machine is becomes a layer that never changes again, and the
/// machine and its clone go on in layers of their own on top of it. systemd mounts them, by units in /etc/systemd/system; no
/// machinist is needed for that where mount(8) can shift owners (util-linux 2.39). Either of them can be changed, renamed and
/// removed as it likes. The machine is stopped for the moment that it takes, and with private users both keep
/// the users that they are given then. `machinectl remove` does not know the layers: use `machinist remove`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist clone web web-2                  Copy a machine, running or not
  machinist clone web spare --keep-identity  As a spare that takes its place
  machinist clone --linked db db-2           At once, sharing what neither changes
  machinist clone --flatten db-2             Have it share nothing any more
  machinist clone web web-3 --dry-run        See what would be done")]
pub(super) struct Args {
    /// The machine to copy
    #[arg(value_name = "SRC", add = complete::images())]
    source: MachineName,
    /// The new machine's name
    #[arg(value_name = "DST", required_unless_present = "flatten")]
    name: Option<MachineName>,
    /// Share the files that neither changes, on a filesystem where copies share nothing: at once, and with no space taken
    #[arg(long, conflicts_with = "full")]
    linked: bool,
    /// A copy that shares nothing by layers: what is made without this, too
    #[arg(long)]
    full: bool,
    /// Make a linked machine independent: SRC is one, and there is no DST
    #[arg(long, conflicts_with_all = ["name", "linked", "full", "keep_identity"])]
    flatten: bool,
    /// Keep machine ID, keys, leases, addresses and host name
    #[arg(long)]
    keep_identity: bool,
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let source = args.source;
    let Some(name) = args.name else {
        return independent(ctx, source, args.dry_run).await;
    };
    name.check_new()?;
    if source == name {
        return Err(CliError::usage(format!("machine '{name}' cannot be a clone of itself")));
    }
    let bus = ctx.bus().await?.clone();
    let request = Request {
        keep_identity: args.keep_identity,
        linked: args.linked,
        ..request(&bus, source, name.clone()).await?
    };
    check_name(&bus, &name).await?;
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

/// A full copy with an identity of its own.
pub(super) async fn request(bus: &Bus, source: MachineName, name: MachineName) -> Result<Request, CliError> {
    let image = bus.find_image_state(source.as_str()).await?;
    let image = image.ok_or_else(|| OpError::NoImage {
        name: source.to_string(),
    })?;
    Ok(Request {
        source,
        image: PathBuf::from(image.path),
        limit: image.limit.filter(|_| image.kind == "subvolume"),
        name,
        keep_identity: false,
        linked: false,
        systemd: bus.systemd_version().await?,
    })
}

/// `clone --flatten`
async fn independent(ctx: &Ctx, name: MachineName, dry_run: bool) -> Result<u8, CliError> {
    let bus = ctx.bus().await?.clone();
    find_image(&bus, &name).await?;
    check_stopped(&bus, &name).await?;
    if dry_run {
        return ctx.show_plan(&flatten::plan(&name, &ctx.places)).map(|()| 0);
    }
    ctx.need_root("clone")?;
    sweep::run(ctx).await?;
    let (places, cancel, progress) = (ctx.places.clone(), ctx.cancel.clone(), ctx.progress(name.as_str()));
    let systemd = ThroughSystemd {
        bus,
        handle: Handle::current(),
    };
    let machine = name.clone();
    let result = ctx
        .blocking(move || flatten::flatten(&machine, &places, &systemd, &progress, &cancel))
        .await;
    let outcome = result.as_ref().map(|_| ()).map_err(|error| error.message.as_str());
    audit(name.as_str(), "flatten", outcome);
    let what = if result? {
        ctx.voice.status(&format!("{name} lies on no layers any more"));
        "flattened"
    } else {
        ctx.voice.status(&format!("{name} lies on no layers"));
        "unchanged"
    };
    if ctx.voice.json {
        ctx.voice
            .json(&[serde_json::json!({ "machine": name, "result": what })])?;
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
pub(super) async fn make(ctx: &Ctx, bus: &Bus, request: Request) -> Result<Cloned, CliError> {
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
