//! A terminal of a machine, and ours: what `shell` and `login` sit at.

use std::io::{IsTerminal as _, Write as _, stdin, stdout};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::context::Ctx;
use super::error::CliError;
use super::exec::shell::status_of;
use super::exec::signals::{Event, Signals, start_between};
use super::exec::{audited, copy, find_registered, no_session};
use crate::machine::MachineName;
use crate::ops::OpError;
use crate::sys::bus::{Bus, BusError};
use crate::sys::enter::relay::{carry_input, carry_session, carry_typed};
use crate::sys::enter::{RawTerminal, copy_size};
use crate::sys::guest::Leader;

/// What a session may have left behind, taken back: colours, a hidden cursor, the other screen, pasting in brackets, the mouse.
const RESET: &[u8] = b"\x1b[?1049l\x1b[?2004l\x1b[?1000l\x1b[?1006l\x1b[?25h\x1b[!p\x1b[0m";
/// How long a session may take to show anything, once nobody has its terminal open any more.
const START: Duration = Duration::from_secs(10);
/// How long a PID 1 may take to go after its children were killed with it.
const GRACE: Duration = Duration::from_millis(200);
/// `--json` has nothing to show here.
const NO_JSON: &str = "has a terminal, and nothing that JSON could show: `machinist exec --json` has";

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
        return Err(CliError::usage(format!("`{verb}` {NO_JSON}")));
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
        let master = open(bus).await.map_err(|error| no_session(name, error))?;
        Ok((leader, master))
    };
    let opened = async { audited(verb, name, opened.await) };
    let ((leader, master), early) = start_between(opened, async || signals.next_to_pass().await).await?;
    if let Some(signal) = early.first() {
        return Ok(status_of(*signal));
    }
    let is_terminal = stdin().is_terminal();
    if is_terminal {
        ctx.voice.status(&format!(
            "connected to {name}; press ^] three times within a second to leave"
        ));
    }
    // It may be a pipe that has no size.
    let _ = copy_size(stdin(), &master);
    let raw = is_terminal.then(|| RawTerminal::new(stdin())).transpose()?;
    let (leave, mut left) = oneshot::channel();
    // Held here as well where nobody can leave: a dropped one would say that somebody has.
    let mut kept = None;
    if is_terminal {
        carry_typed(copy(stdin())?, copy(&master)?, leave);
    } else {
        kept = Some(leave);
        carry_input(copy(stdin())?, copy(&master)?, b"\x04");
    }
    let (began, leader) = (Instant::now(), Arc::new(leader));
    let its = Arc::clone(&leader);
    let goes_on = move |shown: bool| {
        let starts = !shown && began.elapsed() < START;
        !its.is_ending() && (starts || lasts == Lasts::Always)
    };
    let mut output = carry_session(copy(&master)?, copy(stdout())?, goes_on);
    let status = loop {
        tokio::select! {
            ended = &mut output => {
                ended.unwrap_or(Ok(()))?;
                break 0;
            }
            Ok(()) = &mut left => break 0,
            event = signals.next() => match event {
                Event::Resized => drop(copy_size(stdin(), &master)),
                Event::Signal(signal) => break status_of(signal),
            },
        }
    };
    drop((raw, kept));
    if stdout().is_terminal() {
        let _ = stdout().write_all(RESET).and_then(|()| stdout().flush());
    }
    // With the last of its masters the session gets SIGHUP.
    drop(master);
    if leader.is_ending() || leader.ends_within(GRACE) {
        let error = OpError::NotRunning { name: name.to_string() };
        ctx.voice.warning(&format!("{error} any more"));
    } else {
        ctx.voice.status(&format!("left {name}"));
    }
    Ok(status)
}
