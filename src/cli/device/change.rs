//! `machinist device add` and `machinist device remove`

use crate::cli::complete;
use crate::cli::config::change::make;
use crate::cli::context::Ctx;
use crate::cli::each::{Outcome, each, plan_each};
use crate::cli::error::CliError;
use crate::cli::names::{Pool, resolve};
use crate::ops::config::{Change, Wanted, plan};
use crate::ops::device::{Node, enforce, hide, show};
use crate::sys::bus::BusError;
use crate::unit::device::Device;

#[derive(Debug, clap::Args)]
pub(super) struct AddArgs {
    /// Machines, or patterns of image names
    #[arg(required = true, value_name = "NAME", add = complete::images())]
    names: Vec<String>,
    /// Device: /dev/X, @fuse, @gpu, @kvm or @tun
    #[arg(value_name = "DEVICE", value_parser = Device::parse)]
    device: Device,
    /// To be read only
    #[arg(long)]
    ro: bool,
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct RemoveArgs {
    /// Machines, or patterns of image names
    #[arg(required = true, value_name = "NAME", add = complete::images())]
    names: Vec<String>,
    /// Device: /dev/X, @fuse, @gpu, @kvm or @tun
    #[arg(value_name = "DEVICE", value_parser = Device::parse)]
    device: Device,
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn add(ctx: &Ctx, args: AddArgs) -> Result<u8, CliError> {
    let node = Node::of(&args.device)?;
    let path = &args.device.path;
    if let Some(bundle) = args.device.bundle {
        ctx.voice.status(&format!("{path} exposes {}", bundle.exposes));
    }
    if node.is_some_and(|node| !node.is_for_everybody()) {
        ctx.voice.warning(&format!(
            "{path} is not for everybody on the host: a machine with private users cannot open it, see `ls -l {path}`"
        ));
    }
    let (settings, drop_ins) = args.device.add(args.ro);
    let wanted = Wanted::Edits { settings, drop_ins };
    let ro = if args.ro { " --ro" } else { "" };
    let what = format!("device add {path}{ro}");
    let live = Live::Show(node);
    change(
        ctx,
        "device add",
        &args.names,
        &args.device,
        (what, wanted),
        live,
        args.dry_run,
    )
    .await
}

pub(super) async fn remove(ctx: &Ctx, args: RemoveArgs) -> Result<u8, CliError> {
    let (settings, drop_ins) = args.device.remove();
    let wanted = Wanted::Edits { settings, drop_ins };
    let what = format!("device remove {}", args.device.path);
    let device = &args.device;
    change(
        ctx,
        "device remove",
        &args.names,
        device,
        (what, wanted),
        Live::Hide,
        args.dry_run,
    )
    .await
}

/// What is done in a running machine.
#[derive(Clone, Copy)]
enum Live {
    /// Nothing for a directory of devices.
    Show(Option<Node>),
    Hide,
}

async fn change(
    ctx: &Ctx,
    verb: &'static str,
    names: &[String],
    device: &Device,
    (what, wanted): (String, Wanted),
    live: Live,
    dry_run: bool,
) -> Result<u8, CliError> {
    let names = resolve(ctx, names, Pool::Images).await?;
    let bus = ctx.bus().await?;
    let systemd = bus.systemd_version().await?;
    let change_of = |name| Change {
        name,
        wanted: wanted.clone(),
        what: what.clone(),
        systemd,
    };
    let is_single = !matches!(live, Live::Show(None)) && device.path != "/dev/dri";
    let leader_of = async |name: &str| match bus.registered(name).await {
        Ok(registered) => Ok(Some(registered.leader)),
        Err(BusError::NoSuchMachine(_)) => Ok(None),
        Err(error) => Err(CliError::from(error)),
    };
    if dry_run {
        return plan_each(ctx, &names, async |name| {
            crate::cli::config::find(ctx, &name).await?;
            let mut steps = plan(&[change_of(name.clone())], &ctx.places)?;
            if is_single && leader_of(name.as_str()).await?.is_some() {
                let path = &device.path;
                steps.push(match live {
                    Live::Show(_) => format!("make '{path}' in the running machine '{name}'"),
                    Live::Hide => format!("remove '{path}' in the running machine '{name}'"),
                });
            }
            Ok(steps)
        })
        .await;
    }
    ctx.need_root(verb)?;
    each(ctx, verb, names, async |name| {
        crate::cli::config::find(ctx, &name).await?;
        let changed = make(ctx, bus, change_of(name.clone())).await?;
        let leader = leader_of(name.as_str()).await?;
        if leader.is_some() && bus.is_unit_up(&name.unit()).await? {
            enforce(bus, &name, &ctx.places).await?;
        }
        let at_once = match leader.filter(|_| is_single) {
            Some(leader) => {
                let device = device.clone();
                let done = ctx.blocking(move || match live {
                    Live::Show(Some(node)) => show(leader, &device, node),
                    // What the machine has without us stays.
                    Live::Hide if changed.number.is_some() && !device.is_of_every_machine() => hide(leader, &device),
                    _ => Ok(()),
                });
                // The settings are changed: what the machine makes of its /dev does not take that back.
                let done = done.await;
                if let Err(error) = &done {
                    ctx.voice.warning(&format!(
                        "{name}: its /dev cannot be changed while it runs: {}",
                        error.message
                    ));
                }
                done.is_ok()
            }
            None => false,
        };
        let path = &device.path;
        let (result, mut line) = match (changed.number, live) {
            (Some(_), Live::Show(_)) => ("added", format!("{name} may use {path}")),
            (Some(_), Live::Hide) if device.is_of_every_machine() => (
                "removed",
                format!("{name} has {path} from systemd-nspawn only, as every machine"),
            ),
            (Some(_), Live::Hide) => ("removed", format!("{name} may no longer use {path}")),
            (None, Live::Show(_)) => ("unchanged", format!("{name} may use {path} already")),
            (None, Live::Hide) => ("unchanged", format!("{name} was not given {path}")),
        };
        let holds = match (leader, at_once) {
            (Some(_), true) => "now",
            (Some(_), false) => "after-restart",
            (None, _) => "next-start",
        };
        line += match holds {
            "after-restart" if changed.number.is_some() => "; there it is seen after a restart",
            _ => "",
        };
        Ok(Outcome::new(result, line)
            .with("device", path.as_str())
            .with("change", changed.number)
            .with("holds", holds))
    })
    .await
}
