//! `exec` without root, and `shell` with a command: systemd-machined has the machine's systemd start the command, if polkit permits it.
//!
//! All that comes with it is a terminal, see OpenMachineShell() in org.freedesktop.machine1(5): a shell inside says, after
//! a word that nothing else writes, how the command ended.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{stdin, stdout};
use std::os::fd::OwnedFd;
use std::path::Path;

use futures_util::FutureExt as _;
use rustix::process::Signal;
use tokio::sync::oneshot;

use super::signals::{Event, Signals, start_between};
use super::{Args, audited, carry_keys, copy, find_registered, inherited, no_session};
use crate::cli::context::Ctx;
use crate::cli::error::{CliError, Kind};
use crate::machine::MachineName;
use crate::ops::OpError;
use crate::sys::enter::relay::carry_between;
use crate::sys::enter::{Exit, copy_size};

/// Says `$1`, runs the rest of its arguments in directory `$2` unless that is empty, and says `$1` and the status. Ctrl-C is
/// the command's.
const SCRIPT: &str = r#"m=$1 d=$2; shift 2; trap : INT QUIT; printf '%s\n' "$m"
if [ -z "$d" ] || cd -- "$d"; then (exec "$@"); else (exit 125); fi
printf '%s%d\n' "$m" "$?""#;

/// What is run.
pub(in crate::cli) struct Session<'a> {
    /// "exec", "shell".
    pub(in crate::cli) verb: &'static str,
    pub(in crate::cli) user: &'a str,
    pub(in crate::cli) cwd: Option<&'a Path>,
    pub(in crate::cli) env: &'a [(OsString, OsString)],
    pub(in crate::cli) command: &'a [OsString],
}

pub(super) async fn run(ctx: &Ctx, args: &Args, name: &MachineName) -> Result<u8, CliError> {
    if !args.wants_terminal() || ctx.voice.json {
        let message = "without root a command gets a terminal, and no streams of its own";
        let hint = "add --terminal, or run it as root: `sudo machinist …`";
        return Err(CliError::new(Kind::Denied, message).hint(hint));
    }
    if args.user.contains(':') {
        return Err(OpError::NeedsRoot {
            verb: "exec with a group",
        }
        .into());
    }
    let session = Session {
        verb: "exec",
        user: &args.user,
        cwd: args.cwd.as_deref(),
        env: &args.env,
        command: &args.command,
    };
    run_session(ctx, &session, name).await
}

/// Runs a command on a terminal in a session that machined opens: its exit status.
pub(in crate::cli) async fn run_session(ctx: &Ctx, session: &Session<'_>, name: &MachineName) -> Result<u8, CliError> {
    let mut signals = Signals::listen()?;
    let id = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    let mark = format!("\x1e{}:", id.trim());
    let opened = async { audited(session.verb, name, open(ctx, session, name, &mark).await) };
    let (master, early) = start_between(opened, async || signals.next_to_pass().await).await?;
    if let Some(signal) = early.first() {
        return Ok(status_of(*signal));
    }
    // It may be a pipe that has no size.
    let _ = copy_size(stdin(), &master);
    let (begin, begun) = oneshot::channel();
    let mut begun = begun.fuse();
    let output = carry_between(copy(&master)?, copy(stdout())?, mark.into_bytes(), begin);
    let mut ended = tokio::task::spawn_blocking(|| output.join());
    // What is typed before is lost: systemd empties the terminal.
    let mut raw = None;
    let status = loop {
        tokio::select! {
            Ok(()) = &mut begun, if raw.is_none() => raw = Some(carry_keys(&master)?),
            ended = &mut ended => break ended.ok().and_then(Result::ok).flatten(),
            event = signals.next() => match event {
                Event::Resized => drop(copy_size(stdin(), &master)),
                // The terminal goes with us, and its end is all that the command can be told.
                Event::Signal(signal) => {
                    drop(raw);
                    return Ok(status_of(signal));
                }
            },
        }
    };
    drop(raw);
    status.ok_or_else(|| {
        let message = format!("machine '{name}' did not say how the command ended");
        let hint = format!(
            "`journalctl -M {name}` has the machine's own words; has it a user '{}'?",
            session.user
        );
        CliError::new(Kind::NotRun, message).hint(hint)
    })
}

/// As shells tell that a signal has ended a program.
pub(in crate::cli) fn status_of(signal: Signal) -> u8 {
    Exit::Signal(signal.as_raw().to_le_bytes()[0]).code()
}

/// Has machined open the terminal; returns its master.
async fn open(ctx: &Ctx, session: &Session<'_>, name: &MachineName, mark: &str) -> Result<OwnedFd, CliError> {
    let text = |word: &OsStr| {
        let message = format!("all words of a command that `{}` runs have to be UTF-8", session.verb);
        word.to_str().map(str::to_owned).ok_or_else(|| CliError::usage(message))
    };
    ctx.authorize().await;
    let bus = ctx.bus().await?;
    find_registered(bus, name).await?;
    let directory = session.cwd.map_or(Ok(String::new()), |path| text(path.as_os_str()))?;
    let mut words = vec![
        "sh".to_owned(),
        "-c".to_owned(),
        SCRIPT.to_owned(),
        "sh".to_owned(),
        mark.to_owned(),
        directory,
    ];
    for word in session.command {
        words.push(text(word)?);
    }
    // The machine's systemd replaces variables in a service's command.
    let words: Vec<String> = words.iter().map(|word| word.replace('$', "$$")).collect();
    let mut env = Vec::new();
    for (name, value) in inherited(true).chain(session.env.iter().cloned()) {
        env.push(format!("{}={}", text(&name)?, text(&value)?));
    }
    bus.open_machine_shell(name.as_str(), session.user, "/bin/sh", &words, &env)
        .await
        .map_err(|error| no_session(name, error))
}
