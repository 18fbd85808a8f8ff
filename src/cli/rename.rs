//! `machinist rename`

use std::path::Path;

use tokio::runtime::Handle;

use super::complete;
use super::context::Ctx;
use super::create::check_name;
use super::error::CliError;
use super::remove::{refuse_running, refuse_system};
use super::sweep::{self, ThroughSystemd};
use crate::machine::MachineName;
use crate::ops::OpError;
use crate::ops::protect::refuse_protected;
use crate::ops::rename::{Request, plan, rename};
use crate::sys::bus::Bus;
use crate::sys::files::shown;
use crate::sys::journal::audit;

/// Give a machine another name
///
/// Its image, settings, limits, secrets, labels, history and autostart go along, and drop-ins of other machines that order
/// them by it. The host name in it follows if it was the machine's. The machine must not run.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist rename web shop               Everything that was web is shop
  machinist rename db db-old --dry-run    See what would be done")]
pub(super) struct Args {
    /// The machine
    #[arg(value_name = "OLD", add = complete::images())]
    from: MachineName,
    /// Its new name
    #[arg(value_name = "NEW")]
    to: MachineName,
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let (from, to) = (args.from, args.to);
    to.check_new()?;
    if from == to {
        return Err(CliError::usage(format!("machine '{to}' has that name already")));
    }
    let bus = ctx.bus().await?.clone();
    let image = bus.find_image_path(from.as_str()).await?;
    let image = image.ok_or_else(|| OpError::NoImage { name: from.to_string() })?;
    if let Err(OpError::NotRemovable { path, reason }) = refuse_system(&image) {
        return Err(OpError::Option {
            message: format!("cannot rename image '{}': {reason}", shown(&path)),
            hint: format!("clone it: `machinist clone {from} {to}`"),
        }
        .into());
    }
    check_name(&bus, &to).await?;
    refuse_protected(&from, &ctx.places)?;
    check_stopped(&bus, &from).await?;
    let request = Request {
        image: ctx.places.image_entry(&from, Path::new(&image)),
        from,
        to,
        systemd: bus.systemd_version().await?,
    };
    if args.dry_run {
        return ctx.show_plan(&plan(&request, &ctx.places)?).map(|()| 0);
    }
    ctx.need_root("rename")?;
    sweep::run(ctx).await?;
    let (from, to, path) = (request.from.clone(), request.to.clone(), request.target());
    let (places, cancel, progress) = (ctx.places.clone(), ctx.cancel.clone(), ctx.progress(from.as_str()));
    let handle = Handle::current();
    let renamed = ctx
        .blocking(move || rename(&request, &places, &ThroughSystemd { bus, handle }, &progress, &cancel))
        .await;
    audit(
        from.as_str(),
        "rename",
        renamed.as_ref().copied().map_err(|error| error.message.as_str()),
    );
    renamed?;
    ctx.voice.status(&format!("renamed {from} to {to}"));
    if ctx.voice.json {
        ctx.voice.json(&[serde_json::json!({
            "machine": to,
            "result": "renamed",
            "former": from,
            "path": path,
        })])?;
    }
    Ok(0)
}

/// Refuses a machine that runs: its name is in its cgroup, its registration and its links.
pub(super) async fn check_stopped(bus: &Bus, name: &MachineName) -> Result<(), OpError> {
    match refuse_running(bus, name).await {
        Err(OpError::Running { name }) => Err(OpError::Option {
            message: format!("machine '{name}' is running"),
            hint: format!("stop it first: `machinist stop {name}`"),
        }),
        other => other,
    }
}
