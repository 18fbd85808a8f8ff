//! `machinist run`

use std::ffi::OsString;
use std::path::PathBuf;

use super::complete;
use super::context::Ctx;
use super::env_file;
use super::error::{CliError, Kind};
use super::exec;
use super::sweep;
use crate::cli::create::network;
use crate::limit;
use crate::machine::MachineName;
use crate::nspawn::assignment::{Assignment, parse_assignment};
use crate::nspawn::edit::Edit;
use crate::nspawn::schema::KEYS;
use crate::ops::OpError;
use crate::ops::create::Network;
use crate::ops::linked;
use crate::ops::run::scratch::Scratch;
use crate::ops::run::{Request, end, plan, private_users, start};
use crate::ops::start::find_image;
use crate::sys::bus::{Bus, BusError};
use crate::sys::files::Root;
use crate::sys::journal::audit;

/// Run a command in a machine that is not running, or in a copy of it
///
/// The machine does not boot. It has its settings and limits, and what is asked for here besides, for this one time; what
/// belongs to its start, as secrets and commands before and after it, it has not. It runs in a transient unit, and
/// machinectl, `list` and `exec` know it meanwhile. The command runs as `exec` runs commands, with its own exit status and
/// streams; when it ends, so does the machine, and also when machinist is killed.
///
/// With --ephemeral it is a copy of the image, which is removed at the end. Where the filesystem shares nothing between
/// files, and a copy would take long, it is an overlay over the image, which is made at once; the machine itself cannot be
/// started as long as it is used. What is mounted from the host is no copy.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist run web -- cat /etc/os-release        In place, without booting it
  machinist run -x web -- rm -r /var              In a copy that is gone afterwards
  machinist run -x web --network none --memory 512M -- env

The image needs /bin/sh, which keeps the machine up while the command runs.")]
pub(super) struct Args {
    /// Machine whose image is run
    #[arg(value_name = "NAME", add = complete::images())]
    machine: MachineName,
    /// The command and its arguments
    #[arg(required = true, last = true, value_name = "CMD")]
    command: Vec<OsString>,
    /// Run a copy, and remove it at the end
    #[arg(short = 'x', long)]
    ephemeral: bool,
    /// The name that the copy is known by meanwhile
    #[arg(long, value_name = "NAME", requires = "ephemeral")]
    name: Option<MachineName>,
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
}

#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Settings of this run")]
struct SettingArgs {
    /// How much memory it may use, such as 512M
    #[arg(long, value_name = "BYTES", value_parser = limit_of("memory"))]
    memory: Option<limit::Assignment>,
    /// How many CPUs, such as 1.5
    #[arg(long, value_name = "NUMBER", value_parser = limit_of("cpus"))]
    cpus: Option<limit::Assignment>,
    /// How many processes and threads
    #[arg(long, value_name = "NUMBER", value_parser = limit_of("tasks"))]
    tasks: Option<limit::Assignment>,
    /// Stop it after so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = super::seconds)]
    timeout: Option<std::time::Duration>,
    /// Mount a file or directory of the host: SOURCE[:PLACE[:OPTIONS]]
    #[arg(long, value_name = "SOURCE:PLACE", value_parser = setting_of("Files.Bind"))]
    bind: Vec<Assignment>,
    /// Mount an empty directory in memory
    #[arg(long, value_name = "PLACE", value_parser = setting_of("Files.TemporaryFileSystem"))]
    tmpfs: Vec<Assignment>,
    /// Forward a port of the host: [tcp:|udp:]HOST[:MACHINE]
    #[arg(long, value_name = "PORT", value_parser = setting_of("Network.Port"))]
    port: Vec<Assignment>,
    /// veth, host, none, bridge=NAME or zone=NAME
    #[arg(long, value_name = "NETWORK", value_parser = network)]
    network: Option<Network>,
    /// Mount the image read-only
    #[arg(long)]
    read_only: bool,
    /// Give it a capability, such as CAP_SYS_TIME
    #[arg(long, value_name = "CAP", value_parser = setting_of("Exec.Capability"))]
    cap_add: Vec<Assignment>,
    /// Take a capability from it
    #[arg(long, value_name = "CAP", value_parser = setting_of("Exec.DropCapability"))]
    cap_drop: Vec<Assignment>,
    /// Its processes cannot get new privileges, as by setuid programs
    #[arg(long)]
    no_new_privs: bool,
    /// Its users: pick, no, or FIRST:COUNT of the host
    #[arg(long, value_name = "USERS", value_parser = setting_of("Exec.PrivateUsers"))]
    private_users: Option<Assignment>,
    /// Any setting, see systemd.nspawn(5); may be given again
    #[arg(long, value_name = "SECTION.KEY=VALUE", value_parser = assignment)]
    set: Vec<Assignment>,
}

fn limit_of(key: &'static str) -> impl Fn(&str) -> Result<limit::Assignment, String> + Clone {
    move |value| limit::parse(&format!("{key}={value}")).map_err(|error| error.to_string())
}

fn setting_of(key: &'static str) -> impl Fn(&str) -> Result<Assignment, String> + Clone {
    move |value| assignment(&format!("{key}={value}"))
}

fn assignment(text: &str) -> Result<Assignment, String> {
    parse_assignment(text).map_err(|error| error.to_string())
}

impl SettingArgs {
    /// What they change in the machine's settings, and its limits.
    fn into_changes(self) -> (Vec<Edit>, Vec<limit::Assignment>) {
        let set = |section: &str, key: &str, value: &str| Edit::Set {
            section: section.to_owned(),
            key: key.to_owned(),
            value: value.to_owned(),
        };
        let mut edits = Vec::new();
        if let Some(network) = &self.network {
            // They act as one group: what the machine has of them goes.
            let keys = KEYS.iter().filter(|key| key.section == "Network" && key.name != "Port");
            edits.extend(keys.map(|key| Edit::Reset {
                section: key.section.to_owned(),
                key: key.name.to_owned(),
            }));
            let settings = network.settings();
            edits.extend(settings.iter().map(|(key, value)| set("Network", key, value)));
        }
        if let Some(users) = &self.private_users {
            edits.push(set("Exec", "PrivateUsers", &users.value));
            edits.push(set("Files", "PrivateUsersOwnership", "auto"));
        }
        edits.extend(self.read_only.then(|| set("Files", "ReadOnly", "yes")));
        edits.extend(self.no_new_privs.then(|| set("Exec", "NoNewPrivileges", "yes")));
        // What is not to be had cannot be given back otherwise.
        edits.extend(self.cap_add.iter().map(|cap| Edit::Remove {
            section: "Exec".to_owned(),
            key: "DropCapability".to_owned(),
            value: Some(cap.value.clone()),
        }));
        let lists = [self.bind, self.tmpfs, self.port, self.cap_add, self.cap_drop];
        edits.extend(lists.into_iter().flatten().chain(self.set).map(Assignment::into_edit));
        let limits = [self.memory, self.cpus, self.tasks];
        (edits, limits.into_iter().flatten().collect())
    }
}

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let like = args.machine.clone();
    let result = find_and_run(ctx, args).await;
    if let Err(error) = &result {
        audit(like.as_str(), "run", Err(error.message.as_str()));
    }
    result.map_err(|error| match error.kind {
        Kind::Failed => CliError {
            kind: Kind::NotRun,
            ..error
        },
        _ => error,
    })
}

async fn find_and_run(ctx: &Ctx, mut args: Args) -> Result<u8, CliError> {
    let like = args.machine.clone();
    args.env.splice(..0, env_file::read_all(&args.env_file)?);
    let bus = ctx.bus().await?;
    find_image(bus, &like).await?;
    if !args.dry_run {
        linked::show(bus, &like, &ctx.places).await?;
    }
    let image = bus.find_image_path(like.as_str()).await?;
    let image = PathBuf::from(image.ok_or_else(|| OpError::NoImage { name: like.to_string() })?);
    let name = match (args.name.take(), args.ephemeral) {
        (Some(name), _) => name,
        (None, false) => like.clone(),
        (None, true) => random_name(&like)?,
    };
    name.check_new()?;
    is_free(bus, &name, &like).await?;
    match image.is_dir() {
        true if !args.dry_run => has_shell(&image)?,
        false if args.ephemeral => return Err(no_directory(&image)),
        _ => {}
    }
    let at_most = args
        .settings
        .timeout
        .and_then(|limit| u64::try_from(limit.as_micros()).ok());
    let (edits, limits) = std::mem::take(&mut args.settings).into_changes();
    let mut request = Request {
        name,
        copy: None,
        view: None,
        edits,
        limits,
        at_most,
        like,
    };
    if args.dry_run {
        let copy = ctx
            .places
            .machines
            .join(format!(".#machinist-run-{}-…/tree", request.like));
        request.copy = args.ephemeral.then_some(copy);
        let steps = plan(bus, &request, &ctx.places).await?;
        return ctx.show_plan(&steps).map(|()| 0);
    }
    ctx.need_root("run")?;
    sweep::run(ctx).await?;
    ctx.cancel.check().map_err(OpError::from)?;
    if !args.ephemeral {
        return attached(ctx, args, &request).await;
    }
    let systemd = bus.systemd_version().await?;
    let users = private_users(&request, systemd, &ctx.places)?;
    let (like, places, cancel) = (request.like.clone(), ctx.places.clone(), ctx.cancel.clone());
    let progress = ctx.progress(request.name.as_str());
    // Until the copy is removed an interruption is the command's, or is seen by what is done.
    let _busy = ctx.hold();
    let scratch = ctx
        .blocking(move || Scratch::make(&like, &image, users, systemd, &places, &progress, &cancel))
        .await?;
    request.copy = Some(scratch.tree());
    request.view = scratch.view().cloned();
    let status = attached(ctx, args, &request).await;
    if let Err(error) = ctx.blocking(move || scratch.discard()).await {
        ctx.voice.warning(&format!("cannot remove the copy: {}", error.message));
    }
    status
}

/// Runs the command as `exec` does, in a machine that waits until we are done.
async fn attached(ctx: &Ctx, args: Args, request: &Request) -> Result<u8, CliError> {
    let (bus, jobs, name) = (ctx.bus().await?, ctx.jobs().await?, &request.name);
    let (reader, writer) = std::io::pipe()?;
    let _busy = ctx.hold();
    let status = match start(bus, &jobs, request, reader.into(), &ctx.places).await {
        Err(error) => Err(error.into()),
        Ok(_) if ctx.cancel.is_cancelled() => Err(CliError::new(Kind::Interrupted, "interrupted")),
        Ok(own) => {
            let exec = exec::Args {
                names: vec![name.to_string()],
                command: args.command,
                user: args.user.or(own.user).unwrap_or_else(|| "root".to_owned()),
                cwd: args.cwd.or(own.directory),
                env: own.environment.into_iter().chain(args.env).collect(),
                terminal: args.terminal,
                no_terminal: args.no_terminal,
                detach: false,
            };
            exec::run_one(ctx, &exec, name).await
        }
    };
    drop(writer);
    // The command's status is what was asked for.
    if let Err(error) = end(bus, &jobs, name).await {
        ctx.voice.warning(&format!("machine '{name}' does not end: {error}"));
    }
    status
}

fn no_directory(image: &std::path::Path) -> CliError {
    let message = format!(
        "'{}' is no directory, and cannot be copied for one run",
        image.display()
    );
    CliError::new(Kind::NotRun, message).hint("run it in place, without --ephemeral")
}

/// A name that nobody has given: that of the machine and four letters.
fn random_name(like: &MachineName) -> Result<MachineName, CliError> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    let stem: String = like.as_str().chars().take(58).collect();
    Ok(format!("{stem}-{}", id.get(..5).unwrap_or("00000"))
        .trim_end_matches('-')
        .parse()?)
}

/// A machine of that name must not run; nor may another than the one whose image it is have it.
async fn is_free(bus: &Bus, name: &MachineName, like: &MachineName) -> Result<(), CliError> {
    match bus.registered(name.as_str()).await {
        Err(BusError::NoSuchMachine(_)) => {}
        Err(error) => return Err(error.into()),
        Ok(_) => {
            let error = CliError::new(Kind::NotRun, format!("machine '{name}' is running"));
            let hint = format!("run the command in it with `machinist exec {name} -- …`, or in a copy with `run -x`");
            return Err(error.hint(hint));
        }
    }
    if name != like && bus.find_image_path(name.as_str()).await?.is_some() {
        let error = CliError::new(
            Kind::NotRun,
            format!("there is an image '{name}', which is another machine"),
        );
        return Err(error.hint("choose another --name".to_owned()));
    }
    Ok(())
}

fn has_shell(image: &std::path::Path) -> Result<(), CliError> {
    if Root::open(image).map_err(OpError::from)?.is_executable("bin/sh") == Some(true) {
        return Ok(());
    }
    let error = CliError::new(Kind::NotRun, format!("there is no /bin/sh in '{}'", image.display()));
    Err(error.hint("boot the machine with `machinist start`, and enter it with `machinist exec`"))
}
