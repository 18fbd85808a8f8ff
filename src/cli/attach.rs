//! A terminal of a machine, and ours: what `shell` and `login` sit at.

use std::io::{IsTerminal as _, Write as _, stdin, stdout};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use rustix::termios::{QueueSelector, tcflush};
use tokio::sync::oneshot;

use super::context::Ctx;
use super::error::{CliError, Kind};
use super::exec::shell::status_of;
use super::exec::signals::{Event, Signals, start_between};
use super::exec::{audited, copy, find_registered, no_session};
use crate::machine::MachineName;
use crate::ops::OpError;
use crate::sys::bus::{Bus, BusError};
use crate::sys::enter::relay::{Ended, carry_session, carry_typed};
use crate::sys::enter::{RawTerminal, copy_size};
use crate::sys::guest::Leader;

/// What a session may have left behind, taken back: colours, a hidden cursor, the other screen, pasting in brackets, the mouse.
pub(super) const RESET: &[u8] =
    b"\x1b[?1047l\x1b[?2004l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1004l\x1b[?1006l\x1b[?25h\x1b[!p\x1b[0m";
/// How long a session may take to show anything, once nobody has its terminal open any more.
const START: Duration = Duration::from_secs(10);
/// How long nobody may have it open after that: systemd resets it between its opening and the session's own.
const BETWEEN: Duration = Duration::from_millis(250);
/// How long a PID 1 may take to go after its children were killed with it.
const GRACE: Duration = Duration::from_millis(200);
/// Why not.
pub(super) const NO_JSON: &str =
    "a session at a terminal has nothing that JSON could show: use `machinist exec --json`";

/// When a session is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lasts {
    /// With its first program.
    Once,
    /// As long as its machine: after one program comes another.
    Always,
}

/// Sits at the terminal that `open` opens in a machine until its session ends, or is left.
pub(super) async fn attach(
    ctx: &Ctx,
    verb: &'static str,
    name: &MachineName,
    lasts: Lasts,
    open: impl AsyncFnOnce(&Bus) -> Result<OwnedFd, BusError>,
) -> Result<u8, CliError> {
    if ctx.voice.json {
        return Err(CliError::usage(NO_JSON));
    }
    // From here on signals end the session.
    let _busy = ctx.hold();
    let mut signals = Signals::listen()?;
    let opened = async {
        ctx.authorize().await;
        let bus = ctx.bus().await?;
        let registered = find_registered(bus, name).await?;
        let leader = Leader::open(registered.leader);
        let leader = leader.ok_or_else(|| OpError::NotRunning { name: name.to_string() })?;
        if !stdin().is_terminal() {
            let message = format!("`{verb}` is for somebody at a terminal, and standard input is none");
            let hint = format!("for scripts: `machinist exec {name} -- sh`");
            return Err(CliError::usage(message).hint(hint));
        }
        let master = open(bus).await.map_err(|error| no_session(name, error))?;
        Ok((leader, master))
    };
    let opened = async { audited(verb, name, opened.await) };
    let ((leader, master), early) = start_between(opened, async || signals.next_to_pass().await).await?;
    if let Some(signal) = early.first() {
        return Ok(status_of(*signal));
    }
    ctx.voice.status(&format!(
        "connected to {name}; press ^] three times within a second to leave"
    ));
    let _ = copy_size(stdin(), &master);
    let raw = RawTerminal::new(stdin())?;
    let leader = Arc::new(leader);
    let (its, has_shown) = (Arc::clone(&leader), Arc::new(AtomicBool::new(false)));
    let shown = Arc::clone(&has_shown);
    let goes_on = move |closed: Duration| {
        let patience = if shown.load(Ordering::Relaxed) { BETWEEN } else { START };
        !its.is_ending() && (closed < patience || lasts == Lasts::Always)
    };
    let ended = Ended::new()?;
    let (first, begun) = oneshot::channel();
    let mut begun = begun.fuse();
    let mut output = carry_session(copy(&master)?, copy(stdout())?, ended.try_clone()?, first, goes_on);
    let (leave, left) = oneshot::channel();
    let (mut leave, mut left) = (Some(leave), left.fuse());
    let mut is_over = false;
    let status = loop {
        tokio::select! {
            result = &mut output => {
                is_over = true;
                result.unwrap_or(Ok(()))?;
                break 0;
            }
            // What is typed before is lost: systemd empties the terminal.
            Ok(()) = &mut begun => {
                has_shown.store(true, Ordering::Relaxed);
                if let Some(leave) = leave.take() {
                    carry_typed(copy(stdin())?, copy(&master)?, leave);
                }
            }
            Ok(()) = &mut left => break 0,
            event = signals.next() => match event {
                Event::Resized => drop(copy_size(stdin(), &master)),
                Event::Signal(signal) => break status_of(signal),
            },
        }
    };
    // Nothing more of the machine's comes to the terminal, which gets its ways back after that.
    ended.set();
    if !is_over {
        let _ = output.await;
    }
    if stdout().is_terminal() {
        let _ = stdout().write_all(RESET).and_then(|()| stdout().flush());
    }
    // What a terminal answers to questions of the machine is not for the shell here.
    let _ = tcflush(stdin(), QueueSelector::IFlush);
    drop(raw);
    // With the last of its masters the session gets SIGHUP.
    drop(master);
    if leader.is_ending() || leader.ends_within(GRACE) {
        let error = OpError::NotRunning { name: name.to_string() };
        ctx.voice.warning(&format!("{error} any more"));
        return Ok(status);
    }
    if is_over && !has_shown.load(Ordering::Relaxed) {
        let message = format!("the session in machine '{name}' has ended without a word");
        let hint = format!("`journalctl -M {name}` has the machine's own words; is there such a user, with a shell?");
        return Err(CliError::new(Kind::NotRun, message).hint(hint));
    }
    ctx.voice.status(&format!("left {name}"));
    Ok(status)
}
