//! `machinist cp`

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use super::complete;
use super::context::Ctx;
use super::error::{CliError, Kind};
use crate::machine::location::LocationError;
use crate::machine::text::bytes;
use crate::machine::{Location, MachineName};
use crate::ops::cp::{Copied, Options, Order, Tree, copy, plan};
use crate::ops::{OpError, linked};
use crate::sys::bus::BusError;
use crate::sys::guest::Leader;
use crate::sys::journal::audit;

/// Copy files between the host and machines
///
/// SRC and DST are paths of the host or NAME:PATH, a path in a machine, which starts at its root; at least one of them is in a
/// machine, or both. The machine may run or not. What has a colon in its name on the host is written ./a:b.
///
/// A copy goes into DST if that is a directory, and else gets its name; DIR/. means what is in DIR. A file that is there is
/// replaced, a directory that is there is filled. A new file or directory appears whole or not at all: it is made under a
/// hidden name beside its place first.
///
/// Without -r and -a only a file is copied, and a link is followed. With -r directories are, and links stay links; what is
/// copied has the mode of what it was, but for set-user-ID and set-group-ID; it belongs to the root of the machine that it is
/// copied to, or to who copies it to the host, and is new: of times, extended attributes, ACLs and hard links nothing is kept.
/// Holes in files are. With -a all of these are kept: uid 0 of one side is uid 0 of the other, whatever numbers a machine with
/// private users has on the host; whoever is nobody in the machine is nobody in the copy.
///
/// Links that a machine has never lead out of it. Sockets, what is on the kernel's own filesystems such as /proc, and device
/// nodes are left out. On the way to the host set-user-ID, set-group-ID and file capabilities are taken off, too; with
/// --keep-special they, and device nodes, are copied.
///
/// If SRC is - a tar archive is read from standard input, compressed or not, and unpacked in DST, a directory; if DST is - SRC is
/// written to standard output as one, with the machine's own numbers of users. What is unpacked belongs to the machine's root
/// unless -a is given.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist cp /etc/hosts web:/etc/               A file into a machine
  machinist cp web:/etc/os-release .              And out of one
  machinist cp -r web:/etc ./web-etc              A directory, under another name
  machinist cp -a web:/etc db:/root/              From machine to machine, with owners and times
  machinist cp -r ./man/. web:/srv                What is in a directory
  machinist cp web:/etc - | tar -t                As a tar stream
  tar -c man | machinist cp - web:/root           And from one
  machinist cp --dry-run /etc/hosts web:/root     What would be done")]
pub(super) struct Args {
    /// What is copied: PATH, NAME:PATH, or - for a tar archive on standard input
    #[arg(value_name = "SRC", add = complete::locations())]
    source: OsString,
    /// Where to: PATH, NAME:PATH, or - for a tar archive on standard output
    #[arg(value_name = "DST", add = complete::locations())]
    target: OsString,
    /// Directories with all that is in them; links stay links
    #[arg(short, long)]
    recursive: bool,
    /// The same, with owners, times, extended attributes, ACLs and hard links
    #[arg(short, long)]
    archive: bool,
    /// Copy device nodes, and let programs keep set-user-ID, set-group-ID and capabilities on the host
    #[arg(long)]
    keep_special: bool,
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let source = Location::parse(&args.source).map_err(|error| location_error(&error))?;
    let target = Location::parse(&args.target).map_err(|error| location_error(&error))?;
    check(ctx, &source, &target)?;
    ctx.need_root("cp")?;
    let order = Order {
        source_tree: tree(ctx, &source).await?,
        target_tree: tree(ctx, &target).await?,
        options: Options {
            recursive: args.recursive || args.archive,
            archive: args.archive,
            keep_special: args.keep_special,
        },
        source: source.clone(),
        target: target.clone(),
    };
    let subject = target.machine().or(source.machine()).map_or("cp", MachineName::as_str);
    let (places, cancel, progress) = (ctx.places.clone(), ctx.cancel.clone(), ctx.progress(subject));
    if args.dry_run {
        let steps = ctx.blocking(move || plan(order, &places, &progress, &cancel)).await?;
        return ctx.show_plan(&steps).map(|()| 0);
    }
    let result = ctx.blocking(move || copy(order, &places, &progress, &cancel)).await;
    if let Some(name) = target.machine() {
        let outcome = result.as_ref().map(|_| ()).map_err(|error| error.message.as_str());
        audit(name.as_str(), "cp", outcome);
    }
    let copied = result.map_err(|error| closed_pipe(error, &target))?;
    tell(ctx, &copied, &source, &target)?;
    Ok(0)
}

fn location_error(error: &LocationError) -> CliError {
    let hint = match error {
        LocationError::Empty => "a path, NAME:PATH, or -",
        LocationError::NoMachine(_) => "a path of the host with a colon in it is written ./a:b",
        LocationError::NoPath(_) => "the whole of it is NAME:/",
    };
    CliError::usage(error.to_string()).hint(hint)
}

/// What cannot be meant.
fn check(ctx: &Ctx, source: &Location, target: &Location) -> Result<(), CliError> {
    match (source, target) {
        (Location::Machine(..), _) | (_, Location::Machine(..)) => {}
        _ => {
            return Err(CliError::usage("neither of the two is in a machine")
                .hint("a path in a machine is NAME:PATH, as in `machinist cp web:/etc/hosts .`"));
        }
    }
    if *target == Location::Stream && ctx.voice.json {
        return Err(
            CliError::usage("the archive goes to standard output, where JSON cannot go").hint("leave out --json"),
        );
    }
    Ok(())
}

/// Who reads the archive may have had enough: that is told by the status alone.
fn closed_pipe(error: CliError, target: &Location) -> CliError {
    let broken = rustix::io::Errno::PIPE.to_string();
    let is_closed = *target == Location::Stream
        && error
            .causes
            .iter()
            .any(|cause| cause.starts_with(&broken) || cause.starts_with("Broken pipe"));
    if is_closed {
        CliError::new(Kind::ClosedPipe, error.message)
    } else {
        error
    }
}

/// Where the files of a machine are; `None` for what is in none.
async fn tree(ctx: &Ctx, location: &Location) -> Result<Option<Tree>, CliError> {
    let Location::Machine(name, _) = location else {
        return Ok(None);
    };
    match leader(ctx, name, "copy files of").await? {
        Some(leader) => Ok(Some(Tree::Running(Arc::new(leader)))),
        None => stopped(ctx, name).await.map(Some),
    }
}

/// The leader of a machine with files of its own; `None` if no machine of that name runs. `doing` is for messages.
pub(super) async fn leader(ctx: &Ctx, name: &MachineName, doing: &'static str) -> Result<Option<Leader>, CliError> {
    let machine = match ctx.bus().await?.registered(name.as_str()).await {
        Ok(machine) => machine,
        Err(BusError::NoSuchMachine(_)) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if machine.class != "container" {
        let (verb, name) = (doing, name.to_string());
        return Err(OpError::NotContainer { verb, name }.into());
    }
    let leader = Leader::open(machine.leader).ok_or_else(|| OpError::NotRunning { name: name.to_string() })?;
    // The number may have become another's before it was held.
    if !matches!(ctx.bus().await?.registered(name.as_str()).await, Ok(again) if again.leader == machine.leader) {
        return Err(OpError::NotRunning { name: name.to_string() }.into());
    }
    if leader.shares("mnt") == Some(true) {
        let message = format!("machine '{name}' has no files of its own, but the host's");
        return Err(CliError::new(Kind::Failed, message).hint("use the host's paths"));
    }
    Ok(Some(leader))
}

async fn stopped(ctx: &Ctx, name: &MachineName) -> Result<Tree, CliError> {
    let bus = ctx.bus().await?;
    let image = bus.find_image_state(name.as_str()).await?;
    let image = image.ok_or_else(|| OpError::NoImage { name: name.to_string() })?;
    if matches!(image.kind.as_str(), "raw" | "block") {
        let message = format!("the files of machine '{name}' are in a disk image, and can be reached while it runs");
        return Err(CliError::new(Kind::Failed, message).hint(format!("start it with `machinist start {name}`")));
    }
    // Of a linked machine nothing may be mounted yet.
    linked::show(bus, name, &ctx.places).await?;
    Ok(Tree::Stopped(PathBuf::from(image.path)))
}

/// What came of it, for people or scripts.
fn tell(ctx: &Ctx, copied: &Copied, source: &Location, target: &Location) -> Result<(), CliError> {
    let skipped = &copied.skipped;
    let left_out: Vec<String> = [
        (skipped.devices, "device nodes"),
        (skipped.sockets, "sockets"),
        (skipped.kernel, "places that are the kernel's"),
        (skipped.xattrs, "extended attributes"),
    ]
    .into_iter()
    .filter(|(count, _)| *count > 0)
    .map(|(count, what)| format!("{count} {what}"))
    .collect();
    if !left_out.is_empty() {
        ctx.voice.warning(&format!("left out: {}", left_out.join(", ")));
    }
    if copied.stripped > 0 {
        ctx.voice.warning(&format!(
            "{} programs lost set-user-ID, set-group-ID or capabilities, which --keep-special keeps",
            copied.stripped
        ));
    }
    ctx.voice.status(&format!(
        "copied {source} to {target}: {} files, {} directories, {} links, {}",
        copied.files,
        copied.directories,
        copied.links,
        bytes(copied.bytes)
    ));
    if ctx.voice.json {
        let mut fields = serde_json::to_value(copied).unwrap_or_default();
        fields["source"] = source.to_string().into();
        fields["destination"] = target.to_string().into();
        ctx.voice.json(&fields)?;
    }
    Ok(())
}
