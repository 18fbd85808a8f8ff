//! `machinist console`

use std::io::{IsTerminal as _, stdin};

use rustix::process::getpgrp;
use rustix::termios::tcgetpgrp;

use super::complete;
use super::context::{Ctx, is_root};
use super::error::{CliError, Kind};
use super::logs::{Lines, lines};
use super::names::{Pool, resolve};
use crate::machine::MachineName;
use crate::machine::text::printable;
use crate::ops::OpError;
use crate::ops::start::find_machine;
use crate::sys::bus::{Bus, BusError};
use crate::sys::console::{Console, sits_at};

mod journal;
mod typed;

/// How much of what was shown before is shown first.
const HISTORY: usize = 1000;

/// Sit at the console of a machine, or see what it shows
///
/// The last 1000 lines since its last start, and what follows, also through reboots, until the machine stops. Press ^] three times
/// within a second to leave. Of a machine that is not running, the console of its last run.
///
/// The console of a machine has nothing to read, unless it is given a terminal: `machinist config set NAME console=interactive`, from
/// its next start. Then root can type into it, several may at once, and whoever leaves comes back to it later. What was shown
/// before comes as plain text. The terminal is kept by machinist-console@NAME.service, which starts and stops with the
/// machine: that ends the machine when it is stopped; when it is restarted or killed, the machine notices nothing. If
/// machinist is removed from the host, such a machine does not start until the setting is taken back. What `machinist run` boots has
/// such a console.
///
/// Any other console can only be read; Ctrl-C leaves it, too. What is shown comes from the host's journal, line by line, as `machinist
/// logs --from console` has it: on a terminal with nothing in it that could steer that, elsewhere as the machine wrote it. On
/// systemd 252 what systemd-nspawn itself says is among it. With --json each line is an object as `journalctl -o json` has it. Without
/// root it is what the caller may read of the journal.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist console web                       What it has shown, and what it shows next
  machinist console web -n 0                  Only what it shows next
  machinist config set web console=interactive --restart
  machinist console web --no-follow -n all    All of its last run, for a file or a pager")]
pub(super) struct Args {
    /// The machine, or a pattern that one machine has
    #[arg(value_name = "NAME", add = complete::running())]
    name: String,
    /// Begin with the last N lines of its run, or with "all"
    #[arg(short = 'n', long, value_name = "N", value_parser = lines)]
    lines: Option<Lines>,
    /// End with what there is now
    #[arg(long)]
    no_follow: bool,
}

/// A machine, and where its console is.
struct Target {
    name: MachineName,
    unit: String,
    runs: bool,
}

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let name = one(ctx, &args.name).await?;
    let target = find(ctx.bus().await?, name).await?;
    let lines = args.lines.map_or(Some(HISTORY), |Lines(lines)| lines);
    if target.runs
        && !args.no_follow
        && !ctx.voice.json
        && is_root()
        && has_terminal()
        && has_terminal_of_its_own(ctx.bus().await?, &target).await?
        && let Some(console) = connect(&target.name)?
    {
        return typed::attach(ctx, &target, console, lines).await;
    }
    let wish = journal::Wish {
        lines,
        follow: target.runs && !args.no_follow,
    };
    journal::run(ctx, &target, wish).await
}

/// Whether there is somebody at a terminal, who may use it: what runs in the background may not.
pub(super) fn has_terminal() -> bool {
    stdin().is_terminal() && tcgetpgrp(stdin()).ok() == Some(getpgrp())
}

/// Whether a machine is at the terminal that is kept for it: one may still be kept that it had in a run before. On its way
/// up it may not be there yet.
async fn has_terminal_of_its_own(bus: &Bus, target: &Target) -> Result<bool, CliError> {
    let state = bus.unit_properties(&target.unit, "Unit", &["ActiveState"]).await?;
    if state.string("ActiveState") == "activating" {
        return Ok(true);
    }
    let service = bus.unit_properties(&target.unit, "Service", &["MainPID"]).await?;
    let pid = service.number("MainPID").filter(|pid| *pid > 0);
    Ok(pid.is_some_and(|pid| sits_at(pid, &target.name)))
}

/// The console of a machine, if it is one that can be typed into.
fn connect(name: &MachineName) -> Result<Option<Console>, CliError> {
    Console::connect(name).map_err(|error| {
        let message = format!("cannot reach the console of machine '{name}': {error}");
        let hint = format!("see `journalctl --unit machinist-console@{name}`");
        CliError::new(Kind::Failed, message).hint(hint)
    })
}

/// The one machine that is meant.
async fn one(ctx: &Ctx, word: &str) -> Result<MachineName, CliError> {
    let names = resolve(ctx, &[word.to_owned()], Pool::All).await?;
    match names.as_slice() {
        [name] => Ok(name.clone()),
        several => {
            let several: Vec<&str> = several.iter().map(MachineName::as_str).collect();
            let message = format!("'{}' matches several machines: {}", printable(word), several.join(", "));
            Err(CliError::usage(message)
                .hint("there is one console at a time; of several: `machinist logs --from console`"))
        }
    }
}

/// Where the console of a machine is: that of its unit, if systemd-nspawn runs it in one.
async fn find(bus: &Bus, name: MachineName) -> Result<Target, CliError> {
    let registered = match bus.registered(name.as_str()).await {
        Err(BusError::NoSuchMachine(_)) => {
            find_machine(bus, &name).await?;
            let unit = name.unit();
            // On its way up it is not registered yet.
            let runs = bus.unit_state(&unit).await?.is_up();
            return Ok(Target { name, unit, runs });
        }
        registered => registered?,
    };
    if registered.class != "container" {
        let (verb, name) = ("show the console of", name.to_string());
        return Err(OpError::NotContainer { verb, name }.into());
    }
    let unit = registered.unit;
    if registered.service != "systemd-nspawn" || !is_service(&unit) {
        let message = format!(
            "the console of machine '{name}' is with what has started it, in '{}'",
            printable(&unit)
        );
        let hint = format!("a shell in it: `machinist exec -t {name} -- sh`");
        return Err(CliError::new(Kind::Failed, message).hint(hint));
    }
    Ok(Target { name, unit, runs: true })
}

fn is_service(unit: &str) -> bool {
    std::path::Path::new(unit)
        .extension()
        .is_some_and(|kind| kind == "service")
}
