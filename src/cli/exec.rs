//! `machinist exec`

use std::ffi::OsString;
use std::io::{IsTerminal as _, stderr, stdin, stdout};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::Duration;

use futures_util::StreamExt as _;
use rustix::process::Signal;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::broadcast::Receiver;

use super::complete;
use super::context::{Ctx, is_root};
use super::error::{CliError, Kind};
use super::names::{Pool, resolve};
use crate::machine::MachineName;
use crate::ops::OpError;
use crate::ops::start::find_machine;
use crate::output::{Stream, write_line};
use crate::sys::bus::{Bus, BusError};
use crate::sys::enter::relay::{Ended, carry_input, carry_output, read_lines};
use crate::sys::enter::{self, Ends, Exit, Program, RawTerminal, Running, Streams, copy_size};
use crate::sys::guest::Leader;
use crate::sys::journal::audit;

/// How much of each output is kept for JSON, in bytes.
const KEPT_MAX: usize = 16 << 20;
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
  machinist exec 'web-*' -- uptime              In several, each line with the machine's name")]
pub(super) struct Args {
    /// Machines, or patterns of running machines' names
    #[arg(required = true, value_name = "NAME", add = complete::running())]
    names: Vec<String>,
    /// The command and its arguments
    #[arg(required = true, last = true, value_name = "CMD")]
    command: Vec<OsString>,
    /// Run it as this user of the machine, and in this group; names or numbers
    #[arg(
        short,
        long,
        value_name = "USER[:GROUP]",
        default_value = "root",
        hide_default_value = true
    )]
    user: String,
    /// Run it in this directory of the machine; the user's home otherwise
    #[arg(long, value_name = "DIR")]
    cwd: Option<PathBuf>,
    /// Set a variable for it
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(OsString, OsString)>,
    /// Give it a terminal
    #[arg(short, long, overrides_with = "no_terminal")]
    terminal: bool,
    /// Give it no terminal
    #[arg(short = 'T', long)]
    no_terminal: bool,
    /// Leave it running, with nothing to read or write, and do not wait for it
    #[arg(short, long, conflicts_with = "terminal")]
    detach: bool,
}

fn variable(text: &str) -> Result<(OsString, OsString), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.into(), value.into())),
        _ => Err("NAME=VALUE is expected".to_owned()),
    }
}

pub(super) async fn run(ctx: &Ctx, args: Args) -> Result<u8, CliError> {
    let names = resolve(ctx, &args.names, Pool::Running).await?;
    if !is_root() {
        return Err(OpError::NeedsRoot { verb: "exec" }.into());
    }
    // From here on signals are the command's.
    let _busy = ctx.hold();
    match names.as_slice() {
        [name] if !ctx.voice.json => run_one(ctx, &args, name).await,
        _ if args.terminal => Err(CliError::usage("a terminal is for one machine, and not for --json")),
        _ => run_many(ctx, &args, names).await,
    }
}

/// A running machine.
struct Target {
    leader: Leader,
    unit: String,
}

async fn find(bus: &Bus, name: &MachineName) -> Result<Target, CliError> {
    let registered = match bus.registered(name.as_str()).await {
        Err(BusError::NoSuchMachine(_)) => {
            find_machine(bus, name).await?;
            return Err(OpError::NotRunning { name: name.to_string() }.into());
        }
        registered => registered?,
    };
    if registered.class != "container" {
        let (verb, name) = ("enter", name.to_string());
        return Err(OpError::NotContainer { verb, name }.into());
    }
    let stopped = || OpError::NotRunning { name: name.to_string() };
    let leader = Leader::open(registered.leader).ok_or_else(stopped)?;
    if leader.is_frozen() {
        let hint = format!("thaw it with `systemctl thaw {}`", registered.unit);
        return Err(CliError::new(Kind::NotRun, format!("machine '{name}' is frozen")).hint(hint));
    }
    Ok(Target {
        leader,
        unit: registered.unit,
    })
}

fn program(args: &Args, target: &Target, streams: Streams) -> Result<Program, CliError> {
    let inherited = ["LANG", "TERM"]
        .iter()
        .filter(|name| **name != "TERM" || streams == Streams::Terminal)
        .filter_map(|name| Some((OsString::from(name), std::env::var_os(name)?)));
    Ok(Program {
        command: args.command.clone(),
        env: inherited.chain(args.env.clone()).collect(),
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
    let started: Result<_, CliError> = started.await;
    let result = started.as_ref().map(drop).map_err(|error| error.message.as_str());
    audit(name.as_str(), "exec", result);
    // What keeps a command from being run is not the command's failure.
    started.map_err(|error| match error.kind {
        Kind::Failed => CliError {
            kind: Kind::NotRun,
            ..error
        },
        _ => error,
    })
}

async fn run_one(ctx: &Ctx, args: &Args, name: &MachineName) -> Result<u8, CliError> {
    let at_terminal = stdin().is_terminal() && stdout().is_terminal();
    let streams = match args.detach {
        true => Streams::Detached,
        false if args.terminal || (at_terminal && !args.no_terminal) => Streams::Terminal,
        false => Streams::Pipes,
    };
    let mut signals = Signals::listen()?;
    let (target, mut running) = tokio::select! {
        started = start(ctx, args, name, streams) => started?,
        () = signals.interruption() => return Err(interrupted()),
    };
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
            let at_end: &[u8] = if stdin().is_terminal() { b"" } else { b"\x04" };
            raw = stdin().is_terminal().then(|| RawTerminal::new(stdin())).transpose()?;
            carry_input(copy(stdin())?, copy(&terminal)?, at_end);
            relays.push(carry_output(copy(&terminal)?, copy(stdout())?, ended.try_clone()?));
            master = Some(terminal);
        }
    }
    let exit = {
        let mut exit = std::pin::pin!(running.wait());
        loop {
            tokio::select! {
                exit = &mut exit => break exit?,
                event = signals.next() => match (event, &master) {
                    (Event::Signal(signal), _) => running.signal(signal),
                    // A terminal that has gone has no size.
                    (Event::Resized, Some(master)) => drop(copy_size(stdin(), master)),
                    (Event::Resized, None) => {}
                },
            }
        }
    };
    finish(relays, &ended).await;
    drop(raw);
    // The kernel kills all processes of a machine before its PID 1 is gone.
    if exit == Exit::Signal(9) && target.leader.ends_within(GRACE) {
        ctx.voice
            .warning(&format!("machine '{name}' stopped while the command ran"));
    }
    Ok(exit.code())
}

fn copy(fd: impl AsFd) -> std::io::Result<OwnedFd> {
    fd.as_fd().try_clone_to_owned()
}

fn interrupted() -> CliError {
    CliError::new(Kind::Interrupted, "interrupted")
}

/// Waits until all that was written is carried.
async fn finish(relays: Vec<JoinHandle<()>>, ended: &Ended) {
    ended.set();
    let _ = tokio::task::spawn_blocking(|| relays.into_iter().try_for_each(JoinHandle::join)).await;
}

/// What our own signals ask for. What the terminal sends with a key reaches only us: the command has a session of its own.
#[derive(Clone)]
enum Event {
    /// To be passed on.
    Signal(Signal),
    /// The terminal has another size.
    Resized,
}

/// Our own signals, from the moment of listening.
struct Signals(Vec<(tokio::signal::unix::Signal, Event)>);

impl Signals {
    fn listen() -> std::io::Result<Self> {
        let passed_on = [
            (SignalKind::interrupt(), Signal::INT),
            (SignalKind::terminate(), Signal::TERM),
            (SignalKind::hangup(), Signal::HUP),
            (SignalKind::quit(), Signal::QUIT),
            (SignalKind::user_defined1(), Signal::USR1),
            (SignalKind::user_defined2(), Signal::USR2),
        ];
        let mut all = vec![(signal(SignalKind::window_change())?, Event::Resized)];
        for (kind, number) in passed_on {
            all.push((signal(kind)?, Event::Signal(number)));
        }
        Ok(Self(all))
    }

    async fn next(&mut self) -> Event {
        std::future::poll_fn(|context| {
            for (stream, event) in &mut self.0 {
                if stream.poll_recv(context).is_ready() {
                    return Poll::Ready(event.clone());
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Returns when somebody wants us to end.
    async fn interruption(&mut self) {
        while !matches!(
            self.next().await,
            Event::Signal(Signal::INT | Signal::TERM | Signal::HUP | Signal::QUIT)
        ) {}
    }
}

/// What came of the command in one machine, as JSON.
#[derive(Debug, Serialize)]
struct Report {
    machine: MachineName,
    /// The exit status.
    status: u8,
    stdout: String,
    stderr: String,
    /// Whether more was written than is kept.
    truncated: bool,
}

async fn run_many(ctx: &Ctx, args: &Args, names: Vec<MachineName>) -> Result<u8, CliError> {
    let (parallel, only) = (ctx.config()?.parallel, names.len() == 1);
    let mut signals = Signals::listen()?;
    // Each run hears of every signal: it passes it on, or does not begin.
    let (announce, _) = tokio::sync::broadcast::channel(16);
    let runs = names.into_iter().map(|name| {
        let heard = announce.subscribe();
        async move { run_watched(ctx, args, name, heard, only).await }
    });
    let mut runs = std::pin::pin!(futures_util::stream::iter(runs).buffer_unordered(parallel));
    let (mut status, mut reports) = (0, Vec::new());
    loop {
        let report = tokio::select! {
            report = runs.next() => report,
            event = signals.next() => {
                if let Event::Signal(signal) = event {
                    let _ = announce.send(signal);
                }
                continue;
            }
        };
        match report {
            None => break,
            Some(Ok(report)) => {
                if report.status != 0 {
                    status = if only { report.status } else { 1 };
                }
                reports.push(report);
            }
            Some(Err(error)) => {
                status = if only { error.kind.exit_status() } else { 1 };
                error.show(ctx.voice);
            }
        }
    }
    if ctx.voice.json {
        reports.sort_by(|a, b| a.machine.cmp(&b.machine));
        ctx.voice.json(&reports)?;
    }
    Ok(status)
}

/// Runs the command in one of several machines, its lines shown with the machine's name, or kept for JSON.
async fn run_watched(
    ctx: &Ctx,
    args: &Args,
    name: MachineName,
    mut heard: Receiver<Signal>,
    only: bool,
) -> Result<Report, CliError> {
    let streams = if args.detach { Streams::Detached } else { Streams::Pipes };
    let (_, mut running) = tokio::select! {
        biased;
        _ = heard.recv() => return Err(interrupted()),
        started = start(ctx, args, &name, streams) => started?,
    };
    let mut report = Report {
        machine: name,
        status: 0,
        stdout: String::new(),
        stderr: String::new(),
        truncated: false,
    };
    let Ends::Pipes {
        stdin: input,
        stdout: output,
        stderr: errors,
    } = running.take_ends()
    else {
        return Ok(report);
    };
    if only {
        carry_input(copy(stdin())?, input, b"");
    }
    let ended = Ended::new()?;
    let (of_output, kept_output) = line_taker(ctx, &report.machine, Stream::Out);
    let (of_errors, kept_errors) = line_taker(ctx, &report.machine, Stream::Err);
    let relays = vec![
        read_lines(output, ended.try_clone()?, of_output),
        read_lines(errors, ended.try_clone()?, of_errors),
    ];
    let exit = {
        let mut exit = std::pin::pin!(running.wait());
        loop {
            tokio::select! {
                exit = &mut exit => break exit?,
                Ok(signal) = heard.recv() => running.signal(signal),
            }
        }
    };
    finish(relays, &ended).await;
    report.status = exit.code();
    (report.stdout, report.stderr) = (kept_output.text(), kept_errors.text());
    report.truncated = kept_output.is_cut() || kept_errors.is_cut();
    Ok(report)
}

/// What a command wrote, as far as it is kept.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<(Vec<u8>, bool)>>);

impl Kept {
    fn add(&self, line: &[u8]) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = KEPT_MAX - kept.0.len();
        kept.0.extend_from_slice(&line[..line.len().min(room)]);
        kept.1 |= line.len() > room;
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner).0).into_owned()
    }

    fn is_cut(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1
    }
}

/// What is done with each line: shown at once, or kept for JSON.
fn line_taker(ctx: &Ctx, name: &MachineName, stream: Stream) -> (impl FnMut(&[u8]) + Send + use<>, Kept) {
    let kept = Kept::default();
    let (json, name, keeper) = (ctx.voice.json, name.clone(), kept.clone());
    let take = move |line: &[u8]| {
        if json {
            keeper.add(line);
        } else {
            write_line(stream, name.as_str(), line);
        }
    };
    (take, kept)
}
