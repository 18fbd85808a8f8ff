//! `machinist run`

mod live;
mod settings;
mod target;

use std::cell::Cell;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use tokio::runtime::Handle;

use self::live::Command;
use self::settings::SettingArgs;
use self::target::{Target, has_shell, is_free, no_directory};
use super::clone::{self, is_running};
use super::complete;
use super::context::Ctx;
use super::create::{self, ImageArgs, check_name, usual_options};
use super::env_file;
use super::error::{CliError, Kind};
use super::exec;
use super::sweep::{self, ThroughSystemd};
use crate::machine::MachineName;
use crate::ops::create::Network;
use crate::ops::linked;
use crate::ops::run::scratch::{Original, Scratch};
use crate::ops::run::{Request, plan, private_users};
use crate::ops::start::find_image;
use crate::ops::{OpError, clone as cloning, create as creating};
use crate::sources::guest::GuestOptions;
use crate::sources::{self, Options, Source};
use crate::sys::bus::Bus;
use crate::sys::journal::audit;

/// Run a machine, or a command in it, for this one time
///
/// With a command the machine does not boot: the command runs as `exec` runs commands, with its own exit status and streams;
/// when it ends, so does the machine, and also when machinist is killed. Without one the machine boots, and machinist waits
/// for its end; Ctrl-C powers it off, a second one takes it down. With --detach it goes on without machinist, until it powers off or the command ends.
///
/// It has the settings and limits of the machine, and what is asked for here besides; what belongs to its own unit's
/// start, as secrets and commands before and after it, it has not. It runs in a transient unit, and machinectl, `list`, `exec` and `stop`
/// know it meanwhile.
///
/// With --ephemeral it is a copy of the image, which is removed at the end. Where the filesystem shares nothing between
/// files, and a copy would take long, it is an overlay over the image, which is made at once; the machine itself cannot be
/// started as long as it is used. What is mounted from the host is no copy. What is made from a source is removed at the end,
/// too. With --keep either stays, as `clone` and `create` make it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist run web -- cat /etc/os-release        In place, without booting it
  machinist run -x web -- rm -r /var              In a copy that is gone afterwards
  machinist run -x web --network none --memory 512M -- env
  machinist run template:busybox -- uname -a      In a new machine that is gone afterwards
  machinist run oci:./images:app -- env           In an image of a container, as it says
  machinist run -d template:busybox --name try    Boot one; `machinist stop try` ends it
  machinist run -x web --keep --name trial -- true

With a command the image needs /bin/sh, which keeps the machine up while the command runs.")]
pub(super) struct Args {
    /// Machine whose image is run, or what an image is made from, as `create` takes it
    #[arg(value_name = "NAME|SOURCE", add = complete::images())]
    target: String,
    /// The command and its arguments; without one the machine boots
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
    /// Run a copy, and remove it at the end
    #[arg(short = 'x', long)]
    ephemeral: bool,
    /// Keep the copy, or what is made from a source, as a machine
    #[arg(long)]
    keep: bool,
    /// The name of the copy, or of what is made from a source
    #[arg(long, value_name = "NAME")]
    name: Option<MachineName>,
    /// Return when the machine is up, or the command started, and let it go on
    ///
    /// `machinist console NAME` is then at the console of a machine that has booted.
    /// The command has nothing to read or write.
    #[arg(short, long, conflicts_with = "terminal")]
    detach: bool,
    /// Run the command as this user of the machine, and in this group
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Run the command in this directory of the machine
    #[arg(long, value_name = "DIR")]
    cwd: Option<PathBuf>,
    /// Set a variable for the command
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = exec::variable)]
    env: Vec<(OsString, OsString)>,
    /// Set the variables of a file: lines of NAME=VALUE, as they are; --env comes after them
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Give the command a terminal
    #[arg(short, long, overrides_with = "no_terminal")]
    terminal: bool,
    /// Give the command no terminal
    #[arg(short = 'T', long)]
    no_terminal: bool,
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    settings: SettingArgs,
    #[command(flatten)]
    image: ImageArgs,
}

impl Args {
    fn boots(&self) -> bool {
        self.command.is_empty()
    }

    /// Refuses options that would be ignored.
    fn check(&self, target: &Target) -> Result<(), CliError> {
        let of_commands = [
            ("--user", self.user.is_some()),
            ("--cwd", self.cwd.is_some()),
            ("--env", !self.env.is_empty()),
            ("--env-file", !self.env_file.is_empty()),
            ("--terminal", self.terminal),
            ("--no-terminal", self.no_terminal),
        ];
        let given = of_commands.iter().find(|(_, given)| *given && self.boots());
        if let Some((option, _)) = given {
            let error = CliError::usage(format!("{option} is for a command, and there is none"));
            return Err(error.hint("give it after `--`"));
        }
        self.image.check(target.source())?;
        let in_place = matches!(target, Target::Machine(_)) && !self.ephemeral;
        let of_copies = [("--name", self.name.is_some()), ("--keep", self.keep)];
        if let Some((option, _)) = of_copies.iter().find(|(_, given)| *given && in_place) {
            let error = CliError::usage(format!("{option} is for a copy or a new machine"));
            return Err(error.hint("run a copy with --ephemeral"));
        }
        Ok(())
    }
}

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let target = args.target.clone();
    let result = find_and_run(ctx, args).await;
    if let Err(error) = &result {
        audit(&target, "run", Err(error.message.as_str()));
    }
    result.map_err(|error| match error.kind {
        Kind::Failed => CliError {
            kind: Kind::NotRun,
            ..error
        },
        _ => error,
    })
}

/// What is run where, once it is known.
struct Work {
    target: Target,
    /// The image that is run or copied; `None` if it is yet to be made.
    image: Option<PathBuf>,
    /// How it is connected; as its settings say if `None`.
    network: Option<Network>,
    /// How a registry is asked.
    registry: ImageArgs,
    request: Request,
}

impl Work {
    /// What shapes the tree of a source.
    fn options(&self, ctx: &Ctx, source: &Source) -> Result<Options, CliError> {
        let mut options = usual_options(source, &ctx.config()?);
        options.image.is_trusted = self.registry.is_trusted();
        Ok(options)
    }

    /// Whether the image, or copy, is gone at the end.
    fn is_scratch(&self, args: &Args) -> bool {
        !args.keep && (args.ephemeral || self.image.is_none())
    }
}

async fn find_and_run(ctx: &Ctx, mut args: Args) -> Result<u8, CliError> {
    let target = Target::parse(&args.target)?;
    args.check(&target)?;
    args.env.splice(..0, env_file::read_all(&args.env_file)?);
    let bus = ctx.bus().await?;
    let mut work = find(ctx, bus, &mut args, target).await?;
    if args.dry_run {
        let steps = steps(ctx, bus, &args, &mut work).await?;
        let steps: Vec<String> = steps.iter().flat_map(|step| step.lines()).map(str::to_owned).collect();
        return ctx.show_plan(&steps).map(|()| 0);
    }
    ctx.need_root("run")?;
    sweep::run(ctx).await?;
    ctx.cancel.check().map_err(OpError::from)?;
    if args.keep {
        let name = work.request.name.clone();
        keep(ctx, bus, &mut work).await?;
        return live(ctx, &mut args, &work.request, &Cell::default())
            .await
            .map_err(|error| {
                error.hint(format!(
                    "the image of '{name}' was made and stays; `machinist remove {name}` removes it"
                ))
            });
    }
    if !work.is_scratch(&args) {
        return live(ctx, &mut args, &work.request, &Cell::default()).await;
    }
    // Until the copy is removed an interruption is the command's, or is seen by what is done.
    let _busy = ctx.hold();
    let scratch = scratch(ctx, bus, &mut work).await?;
    let mut request = work.request;
    request.copy = Some(scratch.tree());
    request.view = scratch.view().cloned();
    request.vanishes = (args.detach || request.boots).then(|| scratch.vanishes()).flatten();
    let is_ours = Cell::new(false);
    let status = live(ctx, &mut args, &request, &is_ours).await;
    // Not under what runs.
    if is_ours.get() && !bus.is_unit_over(&request.unit()).await.unwrap_or(false) {
        scratch.leave();
        return status;
    }
    if let Err(error) = ctx.blocking(move || scratch.discard()).await {
        ctx.voice.warning(&format!("cannot remove the copy: {}", error.message));
    }
    status
}

/// Looks for the image, and for whatever is in the way.
async fn find(ctx: &Ctx, bus: &Bus, args: &mut Args, target: Target) -> Result<Work, CliError> {
    let mut image = None;
    if let Target::Machine(name) = &target {
        find_image(bus, name).await?;
        if !args.dry_run {
            linked::show(bus, name, &ctx.places).await?;
        }
        let path = bus.find_image_path(name.as_str()).await?;
        image = Some(PathBuf::from(
            path.ok_or_else(|| OpError::NoImage { name: name.to_string() })?,
        ));
    }
    let name = match (args.name.take(), &target) {
        (Some(name), _) => name,
        (None, Target::Machine(name)) if !args.ephemeral => name.clone(),
        (None, target) => target.new_name()?,
    };
    name.check_new()?;
    let like = match &target {
        Target::Machine(like) => like.clone(),
        Target::Source(_) => name.clone(),
    };
    if image.is_none() || args.keep {
        check_name(bus, &name).await?;
        crate::ops::create::is_free(&name, &ctx.places)?;
    } else {
        is_free(bus, &name, &like, args.boots()).await?;
    }
    match &image {
        Some(image) if !image.is_dir() && args.ephemeral => return Err(no_directory(image)),
        Some(image) if image.is_dir() && !args.dry_run && !args.boots() => {
            has_shell(image, &image.display().to_string())?;
        }
        _ => {}
    }
    let at_most = args
        .settings
        .timeout
        .and_then(|limit| u64::try_from(limit.as_micros()).ok());
    let network = args.settings.network.clone();
    let (edits, limits) = std::mem::take(&mut args.settings).into_changes();
    let request = Request {
        name,
        like,
        copy: None,
        view: None,
        vanishes: None,
        boots: args.boots(),
        edits,
        limits,
        at_most,
    };
    Ok(Work {
        target,
        image,
        network,
        registry: args.image,
        request,
    })
}

/// Runs it, in the way that was asked for. `is_ours` tells then whether there may be a unit that goes on.
async fn live(ctx: &Ctx, args: &mut Args, request: &Request, is_ours: &Cell<bool>) -> Result<u8, CliError> {
    if request.boots {
        return live::booted(ctx, request, args.detach, is_ours).await;
    }
    let command = Command::of(args);
    if args.detach {
        live::left(ctx, command, request, is_ours).await
    } else {
        live::attached(ctx, command, request).await
    }
}

/// A copy of the image, or a new one, that is gone at the end.
async fn scratch(ctx: &Ctx, bus: &Bus, work: &mut Work) -> Result<Scratch, CliError> {
    let (request, places, cancel) = (&work.request, ctx.places.clone(), ctx.cancel.clone());
    let progress = ctx.progress(request.name.as_str());
    let request = request.clone();
    if let (Some(image), Target::Machine(_)) = (work.image.clone(), &work.target) {
        let systemd = bus.systemd_version().await?;
        let users = private_users(&request, systemd, &ctx.places)?;
        let host = ThroughSystemd {
            bus: bus.clone(),
            handle: Handle::current(),
        };
        let make = move || {
            let original = Original {
                image: &image,
                users,
                systemd,
                host: &host,
            };
            Scratch::make(&request, original, &places, &progress, &cancel)
        };
        return ctx.blocking(make).await;
    }
    let Target::Source(source) = work.target.clone() else {
        return Err(OpError::NoImage {
            name: request.like.to_string(),
        }
        .into());
    };
    let called = source.to_string();
    let options = work.options(ctx, &source)?;
    let network = work.network.clone().unwrap_or(Network::Veth).inside();
    let made = ctx
        .blocking(move || Scratch::from_source(&request, &source, &options, network, &places, &progress, &cancel))
        .await;
    let (scratch, edits) = made?;
    if !work.request.boots {
        has_shell(&scratch.tree(), &called)?;
    }
    work.request.edits.splice(..0, edits);
    Ok(scratch)
}

fn to_create(ctx: &Ctx, work: &Work, source: &Source) -> Result<creating::Request, CliError> {
    Ok(creating::Request {
        name: work.request.name.clone(),
        options: work.options(ctx, source)?,
        source: source.clone(),
        guest: GuestOptions::default(),
        network: work.network.clone().unwrap_or(Network::Veth),
        settings: Vec::new(),
        files: Vec::new(),
        scripts: Vec::new(),
        scripts_have_network: false,
    })
}

fn to_clone(work: &Work, systemd: u32) -> Option<cloning::Request> {
    Some(cloning::Request {
        source: work.request.like.clone(),
        image: work.image.clone()?,
        name: work.request.name.clone(),
        limit: None,
        keep_identity: false,
        linked: false,
        systemd,
    })
}

/// Makes the machine that stays, and has it run in place.
async fn keep(ctx: &Ctx, bus: &Bus, work: &mut Work) -> Result<(), CliError> {
    let name = work.request.name.clone();
    let verb = match (&work.target, to_clone(work, bus.systemd_version().await?)) {
        (Target::Source(source), _) => {
            create::make(ctx, bus, to_create(ctx, work, source)?).await?;
            "create"
        }
        (Target::Machine(_), Some(request)) => {
            clone::make(ctx, bus, request).await?;
            "clone"
        }
        (Target::Machine(name), None) => return Err(OpError::NoImage { name: name.to_string() }.into()),
    };
    audit(name.as_str(), verb, Ok(()));
    ctx.voice.status(&format!("created {name}"));
    work.request.like = name;
    Ok(())
}

/// What would be done, one line per step.
async fn steps(ctx: &Ctx, bus: &Bus, args: &Args, work: &mut Work) -> Result<Vec<String>, CliError> {
    let mut steps = Vec::new();
    let is_scratch = work.is_scratch(args);
    let tree = hidden(ctx, &work.request.like);
    match (&work.target, to_clone(work, bus.systemd_version().await?)) {
        (Target::Source(source), _) if args.keep => {
            let create = to_create(ctx, work, source)?;
            steps.extend(creating::plan(&create, &ctx.places)?);
        }
        (Target::Source(source), _) => {
            let places = ctx.places.for_sources();
            let made = sources::plan(source, &work.options(ctx, source)?, &places);
            steps.extend(made.map_err(OpError::from)?);
        }
        (Target::Machine(like), Some(request)) if args.keep => {
            let running = is_running(bus, like).await?;
            steps.extend(cloning::plan(&request, running, &ctx.places)?.0);
        }
        (Target::Machine(like), _) if is_scratch => steps.push(format!(
            "copy the image of '{like}' to '{}', or lay an overlay over it where a copy takes long",
            tree.display()
        )),
        _ => {}
    }
    work.request.copy = is_scratch.then_some(tree);
    steps.push(plan(bus, &work.request, &ctx.places).await?);
    let name = &work.request.name;
    match (work.request.boots, args.detach) {
        (true, false) => steps.push(format!("wait until machine '{name}' powers off")),
        (true, true) => {}
        (false, true) => steps.push(format!("start the command in machine '{name}', which ends with it")),
        (false, false) => {
            steps.push(format!("run the command in machine '{name}'"));
            steps.push("stop the unit".to_owned());
        }
    }
    if is_scratch {
        let when = if args.detach { "when the unit ends: " } else { "" };
        steps.push(format!("{when}remove the copy"));
    }
    Ok(steps)
}

/// Where a copy would lie.
fn hidden(ctx: &Ctx, like: &MachineName) -> PathBuf {
    ctx.places
        .machines
        .join(Path::new(&format!(".#machinist-run-{like}-…/tree")))
}
