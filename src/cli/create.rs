//! `machinist create`

mod guest;
mod machine;
mod options;

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::runtime::Handle;

use self::guest::GuestArgs;
use self::options::SourceArgs;
pub(super) use self::options::{ImageArgs, usual_options};
use super::complete;
use super::context::Ctx;
use super::error::{CliError, Kind};
use super::sweep;
use crate::machine::MachineName;
use crate::machine::text::printable;
use crate::nspawn::assignment::{Assignment, AssignmentError, parse_assignment};
use crate::ops::create::script::{Hear, Runner};
use crate::ops::create::{Network, Request, create, plan};
use crate::ops::enable::enable;
use crate::ops::start::{StartOptions, start};
use crate::ops::{OpError, Places};
use crate::sources::guest::GuestOptions;
use crate::sources::{Source, SourceError};
use crate::sys::bus::{Bus, BusError};
use crate::sys::config::Config;
use crate::sys::journal::audit;

/// Make a machine from a root filesystem
///
/// The machine becomes visible when all is done; after an error or Ctrl-C nothing is left. It gets private users and a
/// network link of its own, as the unit systemd-nspawn@.service has it. Root is locked unless a password is given.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist create web debian:trixie --start             Bootstrap Debian 13 and start it
  machinist create web debian:trixie --include nginx,curl --enable
  machinist create db rootfs.tar.zst --ssh-key ~/.ssh/id_ed25519.pub
  machinist create db - --strip 1 <backup.tar.xz         Its files lie below one directory
  machinist create db ./rootfs                           A directory, as debootstrap makes it
  machinist create pi disk.img.xz --extract              The root filesystem of a disk image
  machinist create db disk.img.xz --start                The same, kept as a disk image
  machinist create app oci:./images:app                  An image of a container, and what it starts
  machinist create web-2 machine:web --start             A copy, started at once
  machinist create web debian:trixie --copy ./site:/srv/www --run setup.sh
  machinist create web debian:trixie --user alice --timezone=UTC --dns 9.9.9.9
  machinist create web https://example.org/rootfs.tar.xz --verify checksum --dry-run
  machinist create web images:debian/13 --dry-run        Of the catalogue: `images --remote`
  machinist create web debian:trixie --network bridge=br0 --set Exec.Timezone=copy
  machinist create t template:busybox --dry-run          See what would be done")]
pub(super) struct Args {
    /// The new machine's name
    name: String,
    /// What it is made from
    ///
    /// debian:SUITE, ubuntu:SUITE   bootstrapped; the second time a copy of the first
    /// FILE.tar[.gz|.xz|.zst|.bz2]  unpacked; `-` is an archive from standard input
    /// FILE.img, .raw, .qcow2       a disk image: kept as one, or with --extract unpacked
    /// FILE.squashfs, .iso, .cpio   unpacked; of an ISO image that of its live system
    /// https://…, http://…          any of these files, downloaded, checked and kept
    /// images:DISTRO/RELEASE        an image of a catalogue, see `images --remote`
    /// oci:DIR[:TAG]                an image of a container, in a directory; oci-archive:FILE, docker-archive:FILE
    /// docker://[HOST/]NAME[:TAG]   the same, from a registry; its layers are kept
    /// DIR/, ./DIR                  a directory, copied; it is known by its slash
    /// machine:OTHER                a copy of a machine with its settings and a new identity, as `clone --full` makes it
    /// template:busybox             a tiny guest of the host's busybox
    #[arg(verbatim_doc_comment, add = complete::sources())]
    source: String,
    // Before the groups: a heading holds for all that follows.
    /// Start it when it is made
    #[arg(long)]
    start: bool,
    /// Start it at boot
    #[arg(long)]
    enable: bool,
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    guest: GuestArgs,
    #[command(flatten)]
    tree: SourceArgs,
}

pub(super) fn network(text: &str) -> Result<Network, String> {
    // The name is checked as that of the setting which it becomes.
    let checked = |setting: &str, name: &str| match parse_assignment(&format!("{setting}={name}")) {
        Ok(assignment) if assignment.value == name && !name.is_empty() => Ok(name.to_owned()),
        Err(AssignmentError::Value { source, .. }) => Err(source.to_string()),
        _ => Err(format!("{name:?} is no name")),
    };
    match text.split_once('=') {
        None if text == "veth" => Ok(Network::Veth),
        None if text == "host" => Ok(Network::Host),
        None if text == "none" => Ok(Network::None),
        Some(("bridge", name)) => checked("Network.Bridge", name).map(Network::Bridge),
        Some(("zone", name)) => checked("Network.Zone", name).map(Network::Zone),
        _ => Err("expected veth, host, none, bridge=NAME or zone=NAME".to_owned()),
    }
}

fn assignment(text: &str) -> Result<Assignment, String> {
    parse_assignment(text).map_err(|error| error.to_string())
}

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let mut request = request(&args, &ctx.config()?)?;
    if let Source::Machine(other) = request.source {
        return machine::run(ctx, &args, request.name, other).await;
    }
    let given = args.guest.clone();
    (request.guest, request.scripts) = ctx
        .wait_for_user(move || {
            let scripts = given.scripts()?;
            Ok((given.read()?, scripts))
        })
        .await?;
    let name = request.name.clone();
    if args.dry_run {
        let steps = plan(&request, &ctx.places)?;
        return show_plan(ctx, &args, &name, steps);
    }
    ctx.need_root("create")?;
    if request.source == Source::Stdin && std::io::stdin().is_terminal() {
        return Err(
            CliError::usage("standard input is a terminal, and no archive").hint(format!(
                "pipe one into it, as in `ssh HOST cat a.tar.zst | machinist create {} -`",
                request.name
            )),
        );
    }
    let bus = ctx.bus().await?.clone();
    // A name that is taken is told before minutes of work, and asked again under the lock.
    check_name(&bus, &name).await?;
    sweep::run(ctx).await?;
    let result = make(ctx, &bus, request).await;
    let outcome = result.as_ref().copied().map_err(|error| error.message.as_str());
    audit(name.as_str(), "create", outcome);
    result?;
    let disk = ctx.places.disk_image(&name);
    let path = if disk.exists() { disk } else { ctx.places.image(&name) };
    begin(ctx, &bus, &args, Made { name, path }).await
}

/// A machine that is there.
struct Made {
    name: MachineName,
    path: PathBuf,
}

/// Shows what would be done, with what comes after the machine is there.
fn show_plan(ctx: &Ctx, args: &Args, name: &MachineName, mut steps: Vec<String>) -> Result<u8, CliError> {
    steps.extend(args.enable.then(|| format!("enable unit {}", name.unit())));
    let start = || format!("start unit {} and wait for its job", name.unit());
    steps.extend(args.start.then(start));
    let steps: Vec<String> = steps.iter().flat_map(|step| step.lines()).map(str::to_owned).collect();
    ctx.show_plan(&steps).map(|()| 0)
}

/// Enables and starts it as was asked for, and says that it was made.
async fn begin(ctx: &Ctx, bus: &Bus, args: &Args, made: Made) -> Result<u8, CliError> {
    let Made { name, path } = made;
    ctx.voice.status(&format!("created {name}"));
    // The machine is there: what fails from here on says so, and leaves it.
    if args.enable {
        let outcomes = enable(bus, std::slice::from_ref(&name))
            .await
            .map_err(|error| created_but(&name, error))?;
        outcomes
            .into_values()
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| created_but(&name, error))?;
        ctx.voice.status(&format!("{name} starts at boot"));
    }
    if args.start {
        let jobs = ctx.jobs().await?;
        start(bus, &jobs, &name, StartOptions::default())
            .await
            .map_err(|error| created_but(&name, error))?;
        ctx.voice.status(&format!("started {name}"));
    } else {
        ctx.voice.status(&format!("start it with `machinist start {name}`"));
    }
    if ctx.voice.json {
        let row = serde_json::json!({
            "machine": name,
            "result": "created",
            "path": path,
            "enabled": args.enable,
            "started": args.start,
        });
        ctx.voice.json(&[row])?;
    }
    Ok(0)
}

/// The transaction, on a thread of its own; D-Bus is asked from there through the runtime of this one.
pub(super) async fn make(ctx: &Ctx, bus: &Bus, request: Request) -> Result<(), CliError> {
    let (bus, handle, cancel) = (bus.clone(), Handle::current(), ctx.cancel.clone());
    let (places, progress): (Places, _) = (ctx.places.clone(), ctx.progress(request.name.as_str()));
    let jobs = ctx.jobs().await?;
    let hear = hear(&request.name);
    ctx.blocking(move || {
        let in_use = || handle.block_on(check_name(&bus, &request.name));
        let run = |tree: &Path| {
            let runner = Runner {
                bus: &bus,
                jobs: &jobs,
                places: &places,
                hear: hear.clone(),
                cancel: &cancel,
            };
            handle.block_on(runner.run(&request, tree))
        };
        create(&request, &places, &in_use, &run, &progress, &cancel)
    })
    .await
}

/// Shows what a script says: what runs it is of the image, and steers no terminal.
fn hear(name: &MachineName) -> Hear {
    let name = name.clone();
    Arc::new(move |line: &[u8]| {
        let line = String::from_utf8_lossy(line);
        // Whoever does not read it has the script go on nevertheless.
        let _ = writeln!(std::io::stderr(), "{name}: {}", printable(line.trim_end()));
    })
}

/// Whether machined knows the name already.
pub(super) async fn check_name(bus: &Bus, name: &MachineName) -> Result<(), OpError> {
    let in_use = |by: String, hint: String| {
        Err(OpError::InUse {
            name: name.to_string(),
            by,
            hint,
        })
    };
    match bus.registered(name.as_str()).await {
        Ok(registered) => {
            // To power it off would free the name only if that is all there is of it.
            let has_image = bus.find_image_path(name.as_str()).await?.is_some();
            let verb = if has_image { "remove --force" } else { "terminate" };
            let hint = format!("choose another name, or `machinist {verb} {name}`");
            return in_use(
                format!("a running machine of that name (unit {})", registered.unit),
                hint,
            );
        }
        Err(BusError::NoSuchMachine(_)) => {}
        Err(error) => return Err(error.into()),
    }
    match bus.find_image_path(name.as_str()).await? {
        Some(path) => in_use(
            format!("image '{path}'"),
            format!("remove it with `machinist remove {name}`, or choose another name"),
        ),
        None => Ok(()),
    }
}

fn created_but(name: &MachineName, error: OpError) -> CliError {
    let mut error = CliError::from(error);
    error.hints.push(format!(
        "the image of '{name}' was created and stays; `machinist remove {name}` removes it"
    ));
    error
}

/// What is asked for, but for the guest's options, of which some are files that may have to be waited for.
fn request(args: &Args, config: &Config) -> Result<Request, CliError> {
    let source: Source = args.source.parse().map_err(|error: SourceError| CliError {
        kind: Kind::Usage,
        ..CliError::from(OpError::Source(error))
    })?;
    let name: MachineName = args.name.parse()?;
    name.check_new()?;
    args.tree.check(&source)?;
    if source == Source::Stdin && args.guest.password_is_from_stdin() {
        let message = "standard input is either the archive or root's password";
        return Err(CliError::usage(message).hint("give the password in a file"));
    }
    Ok(Request {
        options: args.tree.options(&source, config),
        guest: GuestOptions::default(),
        network: args.guest.network.clone().unwrap_or(Network::Veth),
        settings: args.guest.set.clone(),
        files: args.guest.copy.clone(),
        scripts: Vec::new(),
        scripts_have_network: args.guest.run_network,
        source,
        name,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_checked() {
        assert_eq!(network("bridge=br0"), Ok(Network::Bridge("br0".into())));
        assert_eq!(network("zone=lan"), Ok(Network::Zone("lan".into())));
        for bad in [
            "",
            "bridge",
            "bridge=",
            "bridge=a/b",
            "bridge= br0",
            "bridge=x\n[Exec]",
            "bridge=x y",
            "zone=",
            "zone=thirteenchars",
            "vlan=3",
        ] {
            assert!(network(bad).is_err(), "{bad}");
        }
    }
}
