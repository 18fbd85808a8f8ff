//! A machine of the moment while it runs: with a command, left alone, or booted.

use std::cell::Cell;
use std::ffi::OsString;
use std::path::PathBuf;

use serde_json::json;

use super::Args;
use crate::cli::context::Ctx;
use crate::cli::error::{CliError, Kind};
use crate::cli::exec;
use crate::cli::exec::signals::Signals;
use crate::ops::OpError;
use crate::ops::run::{Ended, Own, Request, arrive, end, launch, power_off, take_down, wait_for_end};
use crate::ops::stop::Stopped;
use crate::sys::journal::audit;

/// What is run in the machine, and as whom.
#[derive(Debug)]
pub(super) struct Command {
    words: Vec<OsString>,
    user: Option<String>,
    directory: Option<PathBuf>,
    environment: Vec<(OsString, OsString)>,
    terminal: bool,
    no_terminal: bool,
}

impl Command {
    pub(super) fn of(args: &mut Args) -> Self {
        Self {
            words: std::mem::take(&mut args.command),
            user: args.user.take(),
            directory: args.cwd.take(),
            environment: std::mem::take(&mut args.env),
            terminal: args.terminal,
            no_terminal: args.no_terminal,
        }
    }

    /// As `exec` takes it, where the machine's settings say nothing else.
    fn for_exec(self, own: Own, request: &Request) -> exec::Args {
        exec::Args {
            names: vec![request.name.to_string()],
            command: self.words,
            user: self.user.or(own.user).unwrap_or_else(|| "root".to_owned()),
            cwd: self.directory.or(own.directory),
            env: own.environment.into_iter().chain(self.environment).collect(),
            terminal: self.terminal,
            no_terminal: self.no_terminal,
            detach: false,
        }
    }
}

fn interrupted() -> CliError {
    CliError::new(Kind::Interrupted, "interrupted")
}

/// Runs the command as `exec` does, in a machine that waits until we are done.
pub(super) async fn attached(ctx: &Ctx, command: Command, request: &Request) -> Result<u8, CliError> {
    let (bus, jobs, name) = (ctx.bus().await?, ctx.jobs().await?, &request.name);
    let (reader, writer) = std::io::pipe()?;
    let _busy = ctx.hold();
    let launched = launch(bus, request, Some(reader.into()), &ctx.places).await?;
    let status = match arrive(bus, &jobs, request, launched).await {
        Err(error) => Err(error.into()),
        Ok(_) if ctx.cancel.is_cancelled() => Err(interrupted()),
        Ok(own) => exec::run_one(ctx, &command.for_exec(own, request), name).await,
    };
    drop(writer);
    // The command's status is what was asked for.
    if let Err(error) = end(bus, &jobs, name).await {
        ctx.voice.warning(&format!("machine '{name}' does not end: {error}"));
    }
    status
}

/// Starts the command in a machine that ends with it, and goes. `is_ours` is set once there is a unit.
pub(super) async fn left(ctx: &Ctx, command: Command, request: &Request, is_ours: &Cell<bool>) -> Result<u8, CliError> {
    let (bus, jobs, name) = (ctx.bus().await?, ctx.jobs().await?, &request.name);
    let (reader, writer) = std::io::pipe()?;
    let _busy = ctx.hold();
    let launched = launch(bus, request, Some(reader.into()), &ctx.places).await?;
    is_ours.set(true);
    let started = match arrive(bus, &jobs, request, launched).await {
        Ok(own) if !ctx.cancel.is_cancelled() => {
            exec::leave_one(ctx, &command.for_exec(own, request), name, writer.into()).await
        }
        other => {
            drop(writer);
            other.map_err(CliError::from).and(Err(interrupted()))
        }
    };
    if let Err(error) = started {
        // Nobody has the pipe open any more.
        if let Err(error) = end(bus, &jobs, name).await {
            ctx.voice.warning(&format!("machine '{name}' does not end: {error}"));
        }
        return Err(error);
    }
    is_up(ctx, request, "its command runs; stop it with", "stop")?;
    Ok(0)
}

/// Boots it, and waits for its end, unless it is to be left alone. `is_ours` is set once there is a unit.
pub(super) async fn booted(ctx: &Ctx, request: &Request, detach: bool, is_ours: &Cell<bool>) -> Result<u8, CliError> {
    let (bus, jobs, name) = (ctx.bus().await?, ctx.jobs().await?, &request.name);
    let _busy = ctx.hold();
    let mut signals = Signals::listen()?;
    let launched = launch(bus, request, None, &ctx.places).await?;
    is_ours.set(true);
    let arrived = tokio::select! {
        arrived = arrive(bus, &jobs, request, launched) => arrived.map_err(CliError::from),
        // It may hang on its way up.
        () = signals.ending() => Err(interrupted()),
    };
    let arrived = arrived.and_then(|_| {
        if ctx.cancel.is_cancelled() {
            Err(interrupted())
        } else {
            Ok(())
        }
    });
    if let Err(error) = arrived {
        take_down(bus, &jobs, name).await?;
        return Err(error);
    }
    if detach {
        is_up(ctx, request, "stop it with", "stop")?;
        return Ok(0);
    }
    is_up(ctx, request, "Ctrl-C stops it; enter it with", "exec")?;

    let mut ended = std::pin::pin!(wait_for_end(bus, name));
    tokio::select! {
        ended = &mut ended => return outcome(ctx, request, ended?),
        () = signals.ending() => {}
    }
    ctx.voice
        .status(&format!("{name} is to power off; once more takes it down at once"));
    let stopped = tokio::select! {
        stopped = power_off(bus, &jobs, name) => stopped,
        () = signals.ending() => {
            take_down(bus, &jobs, name).await?;
            ended.await?;
            return Err(CliError::new(Kind::Interrupted, format!("machine '{name}' was taken down")));
        }
    };
    match stopped {
        Ok(Stopped::Cleanly | Stopped::Already) => outcome(ctx, request, ended.await?),
        Ok(Stopped::Forced) | Err(OpError::TimedOut { .. }) => {
            take_down(bus, &jobs, name).await?;
            ended.await?;
            let message = format!("machine '{name}' did not power off in time, and was taken down");
            Err(CliError::new(Kind::TimedOut, message).hint("set [Exec] KillSignal= to the signal that its init heeds"))
        }
        Err(error) => Err(error.into()),
    }
}

/// Says so, to people and to scripts, and in the journal.
fn is_up(ctx: &Ctx, request: &Request, what: &str, verb: &str) -> Result<(), CliError> {
    let name = &request.name;
    audit(name.as_str(), "run", Ok(()));
    let command = match verb {
        "exec" => format!("machinist exec {name} -- sh"),
        verb => format!("machinist {verb} {name}"),
    };
    ctx.voice.status(&format!("{name} is up: {what} `{command}`"));
    if ctx.voice.json {
        ctx.voice.json(&[json!({
            "machine": name,
            "result": "started",
            "unit": request.unit(),
            "ephemeral": request.copy.is_some(),
        })])?;
    }
    Ok(())
}

/// What its end means to who waited for it.
fn outcome(ctx: &Ctx, request: &Request, ended: Ended) -> Result<u8, CliError> {
    let name = &request.name;
    match ended {
        Ended::Cleanly => {
            ctx.voice.status(&format!("{name} has powered off"));
            Ok(0)
        }
        Ended::TimedOut => {
            let message = format!("machine '{name}' was stopped: its time was over");
            Err(CliError::new(Kind::TimedOut, message))
        }
        Ended::Failed(diagnosis) => {
            let (verb, name) = ("run", name.to_string());
            let error = CliError::from(OpError::Job { verb, name, diagnosis });
            // It has run: this is no failure of ours.
            error.show(ctx.voice);
            Ok(1)
        }
    }
}
