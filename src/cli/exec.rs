//! `machinist exec`

mod many;
pub(super) mod shell;
pub(super) mod signals;

use std::ffi::OsString;
use std::io::{IsTerminal as _, stderr, stdin, stdout};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use self::signals::{Event, Signals, start_between, wait_passing_on};
use super::complete;
use super::context::{Ctx, is_root};
use super::error::{CliError, Kind};
use super::names::{Pool, resolve};
use crate::machine::MachineName;
use crate::ops::OpError;
use crate::ops::start::find_machine;
use crate::sys::bus::machine1::Registered;
use crate::sys::bus::{Bus, BusError};
use crate::sys::enter::relay::{Ended, Relay, carry_input, carry_output};
use crate::sys::enter::{self, Ends, Exit, Program, RawTerminal, Running, Streams, copy_size};
use crate::sys::guest::Leader;
use crate::sys::journal::audit;

/// How long a PID 1 may take to go after its children were killed with it.
const GRACE: Duration = Duration::from_millis(200);

/// Run a command in running machines
///
/// The command gets its own standard streams, or a terminal of the guest's if standard input and output are one, and
/// what the machine's PID 1 may do, never more. Of the caller's environment it sees TERM and LANG only. It ends when
/// machinist does, unless --detach is given.
///
/// The exit status is the command's own; 128 and the signal's number if a signal ended it; 125 if machinist could not run
/// it, 126 if it cannot be executed, 127 if there is no such command.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  machinist exec web -- uname -a                Its output, its exit status
  machinist exec web -u nobody -- id            As another user of the machine
  machinist exec web --cwd /etc -- ls           In a directory of the machine
  machinist exec 'web-*' -- uptime              In several, each line with the machine's name

What it guarantees, and what it does not: `machinist help security`.")]
pub(super) struct Args {
    /// Machines, or patterns of running machines' names
    #[arg(required = true, value_name = "NAME", add = complete::running())]
    pub(super) names: Vec<String>,
    /// The command and its arguments
    #[arg(required = true, last = true, value_name = "CMD")]
    pub(super) command: Vec<OsString>,
    /// Run it as this user of the machine, and in this group; names or numbers
    #[arg(
        short,
        long,
        value_name = "USER[:GROUP]",
        default_value = "root",
        hide_default_value = true
    )]
    pub(super) user: String,
    /// Run it in this directory of the machine; the user's home otherwise
    #[arg(long, value_name = "DIR")]
    pub(super) cwd: Option<PathBuf>,
    /// Set a variable for it
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = variable)]
    pub(super) env: Vec<(OsString, OsString)>,
    /// Give it a terminal
    #[arg(short, long, overrides_with = "no_terminal")]
    pub(super) terminal: bool,
    /// Give it no terminal
    #[arg(short = 'T', long)]
    pub(super) no_terminal: bool,
    /// Leave it running, with nothing to read or write, and do not wait for it
    #[arg(short, long, conflicts_with = "terminal")]
    pub(super) detach: bool,
}

pub(super) fn variable(text: &str) -> Result<(OsString, OsString), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.into(), value.into())),
        _ => Err("NAME=VALUE is expected".to_owned()),
    }
}

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let names = resolve(ctx, &args.names, Pool::Running).await?;
    // From here on signals are the command's.
    let _busy = ctx.hold();
    // What a pattern shows does not depend on how many it matches.
    let is_one = matches!((names.as_slice(), args.names.as_slice()), ([name], [given]) if name.as_str() == given);
    match names.as_slice() {
        [name] if !is_root() => shell::run(ctx, &args, name).await,
        _ if !is_root() => Err(OpError::NeedsRoot { verb: "exec" }.into()),
        [name] if is_one && !ctx.voice.json => run_one(ctx, &args, name).await,
        _ if args.terminal => Err(CliError::usage("a terminal is for one machine, and not for --json")),
        _ => many::run(ctx, &args, names).await,
    }
}

/// A running machine.
struct Target {
    leader: Leader,
    unit: String,
}

async fn find(bus: &Bus, name: &MachineName) -> Result<Target, CliError> {
    let registered = find_registered(bus, name).await?;
    let stopped = || OpError::NotRunning { name: name.to_string() };
    let leader = Leader::open(registered.leader).ok_or_else(stopped)?;
    Ok(Target {
        leader,
        unit: registered.unit,
    })
}

/// What machined knows of a container that runs.
pub(super) async fn find_registered(bus: &Bus, name: &MachineName) -> Result<Registered, CliError> {
    let registered = match bus.registered(name.as_str()).await {
        Err(BusError::NoSuchMachine(_)) => {
            find_machine(bus, name).await?;
            let error = CliError::from(OpError::NotRunning { name: name.to_string() });
            return Err(error.hint(format!(
                "or run the command in it without booting it: `machinist run {name} -- …`"
            )));
        }
        registered => registered?,
    };
    if registered.class != "container" {
        let (verb, name) = ("enter", name.to_string());
        return Err(OpError::NotContainer { verb, name }.into());
    }
    // Whoever enters it would stand still with it.
    if Leader::open(registered.leader).is_some_and(|leader| leader.is_frozen()) {
        let hint = format!("thaw it with `machinist thaw {name}`");
        return Err(CliError::new(Kind::NotRun, format!("machine '{name}' is frozen")).hint(hint));
    }
    Ok(registered)
}

/// What keeps machined from opening a session, and what there is instead.
pub(super) fn no_session(name: &MachineName, error: BusError) -> CliError {
    let is_failure = matches!(error, BusError::Failed { .. });
    let error = CliError::from(error);
    if !is_failure {
        return error;
    }
    error.hint(format!(
        "sessions need systemd and D-Bus in the machine; without: `machinist exec -t {name} -- sh`"
    ))
}

/// What a command sees of the caller's environment, before what was asked for.
pub(super) fn inherited(terminal: bool) -> impl Iterator<Item = (OsString, OsString)> {
    ["LANG", "TERM"]
        .into_iter()
        .filter(move |name| *name != "TERM" || terminal)
        .filter_map(|name| Some((OsString::from(name), std::env::var_os(name)?)))
}

fn program(args: &Args, target: &Target, streams: Streams) -> Result<Program, CliError> {
    Ok(Program {
        command: args.command.clone(),
        env: inherited(streams == Streams::Terminal)
            .chain(args.env.clone())
            .collect(),
        user: enter::user_of(&target.leader, &args.user)?,
        directory: args.cwd.clone(),
        streams,
    })
}

async fn start(ctx: &Ctx, args: &Args, name: &MachineName, streams: Streams) -> Result<(Target, Running), CliError> {
    let started = async {
        let target = find(ctx.bus().await?, name).await?;
        let program = program(args, &target, streams)?;
        let running = enter::start(&target.leader, &target.unit, &program).await?;
        Ok((target, running))
    };
    audited("exec", name, started.await)
}

/// Writes down what came of the start. What keeps a command from being run is not the command's failure.
pub(super) fn audited<T>(verb: &'static str, name: &MachineName, started: Result<T, CliError>) -> Result<T, CliError> {
    let result = started.as_ref().map(drop).map_err(|error| error.message.as_str());
    audit(name.as_str(), verb, result);
    started.map_err(|error| match error.kind {
        Kind::Failed => CliError {
            kind: Kind::NotRun,
            ..error
        },
        _ => error,
    })
}

impl Args {
    /// Whether the command gets a terminal.
    fn wants_terminal(&self) -> bool {
        let at_terminal = stdin().is_terminal() && stdout().is_terminal();
        !self.detach && (self.terminal || (at_terminal && !self.no_terminal))
    }
}

pub(super) async fn run_one(ctx: &Ctx, args: &Args, name: &MachineName) -> Result<u8, CliError> {
    let streams = match args.detach {
        true => Streams::Detached,
        false if args.wants_terminal() => Streams::Terminal,
        false => Streams::Pipes,
    };
    let mut signals = Signals::listen()?;
    let started = start(ctx, args, name, streams);
    let ((target, mut running), early) = start_between(started, async || signals.next_to_pass().await).await?;
    let ended = Ended::new()?;
    let mut relays = Vec::new();
    let mut raw = None;
    let mut master = None;
    match running.take_ends() {
        Ends::Detached => return Ok(0),
        Ends::Pipes {
            stdin: input,
            stdout: output,
            stderr: errors,
        } => {
            carry_input(copy(stdin())?, input, b"");
            relays.push(carry_output(output, copy(stdout())?, ended.try_clone()?));
            relays.push(carry_output(errors, copy(stderr())?, ended.try_clone()?));
        }
        Ends::Terminal(terminal) => {
            raw = carry_keys(&terminal)?;
            relays.push(carry_output(copy(&terminal)?, copy(stdout())?, ended.try_clone()?));
            master = Some(terminal);
        }
    }
    let next = async || loop {
        match (signals.next().await, &master) {
            (Event::Signal(signal), _) => return signal,
            // A terminal that has gone has no size.
            (Event::Resized, Some(master)) => drop(copy_size(stdin(), master)),
            (Event::Resized, None) => {}
        }
    };
    let exit = wait_passing_on(&running, early, next).await?;
    let written = finish(relays, &ended, signals.ending()).await;
    drop(raw);
    written?;
    // The kernel kills all processes of a machine before its PID 1 is gone.
    if exit == Exit::Signal(9) && (target.leader.is_ending() || target.leader.ends_within(GRACE)) {
        ctx.voice
            .warning(&format!("machine '{name}' stopped while the command ran"));
    }
    Ok(exit.code())
}

/// Starts a command in a machine that ends with it, and leaves it running.
pub(super) async fn leave_one(ctx: &Ctx, args: &Args, name: &MachineName, life: OwnedFd) -> Result<(), CliError> {
    let started = async {
        let target = find(ctx.bus().await?, name).await?;
        let program = program(args, &target, Streams::Detached)?;
        Ok(enter::start_and_leave(&target.leader, &target.unit, &program, life).await?)
    };
    audited("exec", name, started.await)
}

/// Carries our input to a terminal of the guest; ours is raw as long as the result lives.
fn carry_keys(master: &OwnedFd) -> std::io::Result<Option<RawTerminal>> {
    let at_end: &[u8] = if stdin().is_terminal() { b"" } else { b"\x04" };
    let raw = stdin().is_terminal().then(|| RawTerminal::new(stdin())).transpose()?;
    carry_input(copy(stdin())?, copy(master)?, at_end);
    Ok(raw)
}

pub(super) fn copy(fd: impl AsFd) -> std::io::Result<OwnedFd> {
    fd.as_fd().try_clone_to_owned()
}

/// Waits until all that the command wrote is carried, or until we are to end: who reads it may have stopped to.
async fn finish(relays: Vec<Relay>, ended: &Ended, interruption: impl Future<Output = ()>) -> Result<(), CliError> {
    ended.set();
    let results = tokio::select! {
        results = futures_util::future::join_all(relays) => results,
        () = interruption => return Err(CliError::new(Kind::Interrupted, "interrupted")),
    };
    for result in results.into_iter().flatten() {
        let lost = |error: std::io::Error| {
            CliError::new(Kind::NotRun, "cannot pass on what the command wrote").causes([error.to_string()])
        };
        result.map_err(lost)?;
    }
    Ok(())
}
