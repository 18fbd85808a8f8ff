//! `exec` in several machines, or for JSON.

use std::io::{self, stdin};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt as _;
use rustix::process::Signal;
use serde::Serialize;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use super::signals::{Event, Signals, ends, start_between, wait_passing_on};
use super::{Args, copy, finish, start};
use crate::cli::context::Ctx;
use crate::cli::error::{CliError, Kind};
use crate::machine::MachineName;
use crate::output::{Stream, write_line};
use crate::sys::enter::relay::{Ended, carry_input, read_lines};
use crate::sys::enter::{Ends, Streams};

/// How much of each output is kept for JSON, in bytes.
const KEPT_MAX: usize = 16 << 20;
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

pub(super) async fn run(ctx: &Ctx, args: &Args, names: Vec<MachineName>) -> Result<u8, CliError> {
    let (parallel, only) = (ctx.config()?.parallel, names.len() == 1);
    let mut signals = Signals::listen()?;
    // Each run hears of every signal: it passes it on, or does not begin.
    let (announce, _) = tokio::sync::broadcast::channel(16);
    let runs: Vec<_> = names
        .into_iter()
        .map(|name| run_watched(ctx, args, name, announce.subscribe(), only))
        .collect();
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
    while let Ok(signal) = heard.try_recv() {
        if ends(signal) {
            return Err(CliError::new(Kind::Interrupted, "interrupted"));
        }
    }
    let started = start(ctx, args, &name, streams);
    let ((_, mut running), early) = start_between(started, async || next(&mut heard).await).await?;
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
    let exit = wait_passing_on(&running, early, async || next(&mut heard).await).await?;
    let interruption = async { while !ends(next(&mut heard).await) {} };
    finish(relays, &ended, interruption).await?;
    report.status = exit.code();
    (report.stdout, report.stderr) = (kept_output.text(), kept_errors.text());
    report.truncated = kept_output.is_cut() || kept_errors.is_cut();
    Ok(report)
}

/// The next signal; some are lost if many come at once.
async fn next(heard: &mut Receiver<Signal>) -> Signal {
    loop {
        match heard.recv().await {
            Ok(signal) => return signal,
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
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
fn line_taker(
    ctx: &Ctx,
    name: &MachineName,
    stream: Stream,
) -> (impl FnMut(&[u8]) -> io::Result<()> + Send + use<>, Kept) {
    let kept = Kept::default();
    let (json, name, keeper) = (ctx.voice.json, name.clone(), kept.clone());
    let take = move |line: &[u8]| {
        if json {
            keeper.add(line);
            return Ok(());
        }
        write_line(stream, name.as_str(), line)
    };
    (take, kept)
}
