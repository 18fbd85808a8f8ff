//! `machinist bind`

use std::path::{Path, PathBuf};

use super::complete;
use super::config::change::make;
use super::context::Ctx;
use super::cp::leader;
use super::each::{Outcome, each, plan_each};
use super::error::{CliError, Kind};
use crate::machine::MachineName;
use crate::ops::OpError;
use crate::ops::bind::{Lasting, edits, will_have_private_users};
use crate::ops::config::{Change, Wanted, plan};
use crate::ops::start::find_image;
use crate::sys::files::shown;
use crate::sys::guest::Leader;
use crate::sys::live_mount::{Bind, LiveMountError, Unbound, bind, has_private_users, unbind};

/// Show a directory or file of the host in a machine that runs
///
/// SRC of the host is mounted on DST in the machine, at once, with what is mounted in it; DST is the same path if it is not
/// given, and is made if it is missing. Where a machine has private users, the files are shown as theirs: what is root's on the
/// host is root's in the machine, and what root of the machine makes there belongs to root of the host. Have a directory for
/// it that no user of the host gets to, or --ro.
///
/// The mount is gone when the machine stops; with --persist it is written to the machine's settings as well, as Bind= or
/// BindReadOnly=, and a machine that does not run gets it with its next start. --remove unmounts what is on DST, and takes it
/// out of the settings.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "machinist bind [OPTIONS] <NAME> <SRC> [DST]\n       machinist bind --remove <NAME> <DST>",
    after_help = "Examples:
  machinist bind web /srv /srv/host                 A directory of the host, until web stops
  machinist bind web /usr/share/doc --ro --persist  To be read only, and after a restart, too
  machinist bind web /etc/hosts /root/hosts         A file
  machinist bind --remove web /srv/host             Away with it
  machinist bind web /srv --dry-run                 What would be done"
)]
pub(super) struct Args {
    /// Machine
    #[arg(value_name = "NAME", add = complete::all())]
    name: MachineName,
    /// On the host; with --remove, in the machine
    #[arg(value_name = "SRC", value_hint = clap::ValueHint::AnyPath)]
    source: PathBuf,
    /// In the machine; the same path unless given
    #[arg(value_name = "DST", conflicts_with = "remove")]
    place: Option<PathBuf>,
    /// The machine only reads it
    #[arg(long, conflicts_with = "remove")]
    ro: bool,
    /// Write it to the machine's settings, too
    #[arg(long, conflicts_with = "remove")]
    persist: bool,
    /// Unmount what is on DST, and take it out of the settings
    #[arg(long)]
    remove: bool,
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// What is to be done.
#[derive(Clone, Debug)]
struct Order {
    bind: Bind,
    persist: bool,
    remove: bool,
}

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let order = order(&args)?;
    let names = vec![args.name];
    if args.dry_run {
        return plan_each(ctx, &names, async |name| steps(ctx, &name, &order).await).await;
    }
    ctx.need_root("bind")?;
    each(ctx, "bind", names, async |name| {
        if order.remove {
            remove(ctx, &name, &order).await
        } else {
            add(ctx, &name, &order).await
        }
    })
    .await
}

fn order(args: &Args) -> Result<Order, CliError> {
    let source = if args.remove {
        args.source.clone()
    } else {
        // By its own path, whatever links lead to it: settings are read from elsewhere, and later.
        let found = args.source.canonicalize();
        found.map_err(|error| {
            CliError::new(Kind::Failed, format!("cannot find '{}'", shown(&args.source))).causes([error.to_string()])
        })?
    };
    let place = match &args.place {
        Some(place) => place.clone(),
        None if args.remove => args.source.clone(),
        None => source.clone(),
    };
    if !place.is_absolute() {
        let message = format!("'{}' is no absolute path", shown(&place));
        return Err(CliError::usage(message).hint("paths in a machine start with /"));
    }
    if place.file_name().is_none() {
        let message = format!("nothing can be mounted on '{}'", shown(&place));
        return Err(CliError::usage(message).hint("name a directory or file in the machine"));
    }
    Ok(Order {
        bind: Bind {
            source,
            place,
            read_only: args.ro,
        },
        persist: args.persist,
        remove: args.remove,
    })
}

/// The leader, if it runs; an error where there is no such machine, or nothing could be done.
async fn find(ctx: &Ctx, name: &MachineName, order: &Order) -> Result<Option<Leader>, CliError> {
    let found = leader(ctx, name, "mount something in").await?;
    if found.is_none() {
        find_image(ctx.bus().await?, name).await?;
        if !order.persist && !order.remove {
            let error = CliError::from(OpError::NotRunning { name: name.to_string() });
            return Err(error.hint("or have it from its next start on: --persist"));
        }
    }
    Ok(found)
}

/// The change of the settings.
async fn change(ctx: &Ctx, name: &MachineName, order: &Order, running: Option<&Leader>) -> Result<Change, CliError> {
    let systemd = ctx.bus().await?.systemd_version().await?;
    let Bind {
        source,
        place,
        read_only,
    } = &order.bind;
    let (what, lasting) = if order.remove {
        (format!("bind --remove {}", shown(place)), None)
    } else {
        let mapped = match running {
            Some(leader) => has_private_users(leader),
            None => will_have_private_users(name, systemd, &ctx.places)?,
        };
        let what = format!("bind {} {}", shown(source), shown(place));
        (what, Some(Lasting::new(source, place, *read_only, mapped)?))
    };
    let settings = edits(name, place, lasting.as_ref(), systemd, &ctx.places)?;
    Ok(Change {
        name: name.clone(),
        wanted: Wanted::Edits {
            settings,
            drop_ins: Vec::new(),
        },
        what,
        systemd,
    })
}

async fn steps(ctx: &Ctx, name: &MachineName, order: &Order) -> Result<Vec<String>, CliError> {
    let running = find(ctx, name, order).await?;
    let mut steps = Vec::new();
    let (source, place) = (shown(&order.bind.source), shown(&order.bind.place));
    if running.is_some() {
        steps.push(if order.remove {
            format!("unmount '{place}' in the running machine '{name}'")
        } else {
            let ro = if order.bind.read_only { ", read-only" } else { "" };
            format!("mount '{source}' on '{place}' in the running machine '{name}'{ro}")
        });
    }
    if order.persist || order.remove {
        steps.extend(plan(&[change(ctx, name, order, running.as_ref()).await?], &ctx.places)?);
    }
    Ok(steps)
}

async fn add(ctx: &Ctx, name: &MachineName, order: &Order) -> Result<Outcome, CliError> {
    let running = find(ctx, name, order).await?;
    // Refused before anything is done.
    let change = if order.persist {
        Some(change(ctx, name, order, running.as_ref()).await?)
    } else {
        None
    };
    let is_running = running.is_some();
    let mounted = match running {
        Some(leader) => {
            let machine = name.clone();
            live(ctx, name, order, move |order| bind(&leader, machine.as_str(), &order)).await?
        }
        None => false,
    };
    let written = match change {
        Some(change) => match make(ctx, ctx.bus().await?, change).await {
            Ok(changed) => changed.number,
            Err(error) => {
                if mounted && let Some(leader) = leader(ctx, name, "mount something in").await? {
                    // The first error is the one to be told.
                    let _ = live(ctx, name, order, move |order| unbind(&leader, &order.place)).await;
                }
                return Err(error);
            }
        },
        None => None,
    };
    let (source, place) = (shown(&order.bind.source), shown(&order.bind.place));
    let (result, line) = match (mounted || written.is_some(), is_running) {
        (true, true) => ("bound", format!("{name} has {source} on {place}")),
        (true, false) => (
            "bound",
            format!("{name} has {source} on {place} from its next start on"),
        ),
        (false, _) => ("unchanged", format!("{name} has {source} on {place} already")),
    };
    Ok(outcome(result, line, order)
        .with("source", source)
        .with("persistent", order.persist)
        .with("change", written))
}

async fn remove(ctx: &Ctx, name: &MachineName, order: &Order) -> Result<Outcome, CliError> {
    let running = find(ctx, name, order).await?;
    let change = change(ctx, name, order, running.as_ref()).await?;
    let unmounted = match running {
        Some(leader) => live(ctx, name, order, move |order| unbind(&leader, &order.place)).await?,
        None => Unbound::Nothing,
    };
    let written = make(ctx, ctx.bus().await?, change).await?.number;
    let place = shown(&order.bind.place);
    let (result, line) = match (unmounted, written) {
        (Unbound::Locked, Some(_)) => (
            "removed",
            format!(
                "{name} has nothing of the host on {place} after a restart: until then systemd-nspawn's mount is there"
            ),
        ),
        (Unbound::Locked, None) => {
            let message = format!("cannot unmount '{place}' in machine '{name}': systemd-nspawn mounted it");
            let hint = format!("if it is not in the settings any more, restart it: `machinist restart {name}`");
            return Err(CliError::new(Kind::Failed, message).hint(hint));
        }
        (Unbound::Nothing, None) => ("unchanged", format!("{name} has nothing of the host on {place}")),
        _ => ("removed", format!("{name} has nothing of the host on {place} any more")),
    };
    Ok(outcome(result, line, order).with("change", written))
}

fn outcome(result: &'static str, line: String, order: &Order) -> Outcome {
    Outcome::new(result, line)
        .with("destination", shown(&order.bind.place))
        .with("read_only", order.bind.read_only)
}

/// Does something in the running machine.
async fn live<T: Send + 'static>(
    ctx: &Ctx,
    name: &MachineName,
    order: &Order,
    work: impl FnOnce(Bind) -> Result<T, LiveMountError> + Send + 'static,
) -> Result<T, CliError> {
    let bind = order.bind.clone();
    let done = ctx.blocking(move || Ok(work(bind))).await?;
    done.map_err(|error| explain(&error, name, &order.bind.source))
}

fn explain(error: &LiveMountError, name: &MachineName, source: &Path) -> CliError {
    let causes = std::iter::successors(std::error::Error::source(error), |error| error.source());
    let causes: Vec<String> = causes.map(ToString::to_string).collect();
    let shown_error = match error {
        // Its own sentence is that of the file.
        LiveMountError::File(inner) => inner.to_string(),
        other => other.to_string(),
    };
    let message = format!("cannot mount in machine '{name}': {shown_error}");
    let hint = match error {
        LiveMountError::Stopped => return OpError::NotRunning { name: name.to_string() }.into(),
        LiveMountError::NoMapping { .. } => format!(
            "have it on ext4, btrfs, XFS or tmpfs, or copy it: `machinist cp -a {} {name}:…`",
            shown(source)
        ),
        _ => format!("see what is mounted: `machinist exec {name} -- cat /proc/mounts`"),
    };
    CliError::new(Kind::Failed, message).causes(causes).hint(hint)
}
