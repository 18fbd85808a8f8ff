//! A program that a helper has brought into the machine: a child of this process.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_send_signal, waitid};
use tokio::io::unix::AsyncFd;

use super::caller::Helper;
use super::protocol::{Reply, Run, Task};
use super::{EnterError, Exit, failed};
use crate::machine::text::printable;
use crate::sys::guest::Leader;
use crate::sys::raw::enter as raw;

/// The program's process.
#[derive(Debug)]
pub(super) struct Joined(AsyncFd<OwnedFd>);

/// Has a helper start the program with these streams, or with a terminal, whose master is returned.
pub(super) async fn start(
    leader: &Leader,
    unit: &str,
    run: &Run,
    streams: &[OwnedFd],
) -> Result<(Joined, Option<OwnedFd>), EnterError> {
    let mut helper = Helper::start(leader, unit, Task::Run(run.clone()), streams)?;
    listen(&mut helper, run).await
}

/// The same with neither streams nor terminal; the helper goes on until the program ends, and has `life` open meanwhile.
pub(super) async fn start_and_leave(leader: &Leader, unit: &str, run: &Run, life: OwnedFd) -> Result<(), EnterError> {
    let mut helper = Helper::start(leader, unit, Task::Run(run.clone()), &[life])?;
    listen(&mut helper, run).await?;
    helper.leave();
    Ok(())
}

async fn listen(helper: &mut Helper, run: &Run) -> Result<(Joined, Option<OwnedFd>), EnterError> {
    let (reply, fds) = helper
        .reply()
        .await?
        .ok_or_else(|| EnterError::Failed("the helper died".into()))?;
    let Reply::Started = reply else {
        return Err(explain(reply, run));
    };
    let mut fds = fds.into_iter();
    let pidfd = fds
        .next()
        .ok_or_else(|| EnterError::Failed("the helper sent nothing".into()))?;
    let joined = Joined(raw::watch(pidfd).map_err(failed("watch the program"))?);
    // The socket is closed by execve(2): then the program runs. A word instead is the reason why it does not.
    match helper.reply().await? {
        None => Ok((joined, fds.next())),
        Some((reply, _)) => {
            joined.wait().await?;
            Err(explain(reply, run))
        }
    }
}

fn explain(reply: Reply, run: &Run) -> EnterError {
    match reply {
        Reply::Refused(reason) => EnterError::Refused(printable(&reason)),
        Reply::Failed(reason) => EnterError::Failed(printable(&reason)),
        Reply::NotFound => EnterError::NotFound(run.name()),
        Reply::NotExecutable(errno) => EnterError::NotExecutable(run.name(), io::Error::from_raw_os_error(errno)),
        Reply::Started | Reply::Terminal | Reply::Tried | Reply::Moved => {
            EnterError::Failed("the helper answered strangely".into())
        }
    }
}

impl Joined {
    /// Waits for its end.
    pub(super) async fn wait(&self) -> Result<Exit, EnterError> {
        let _ = self.0.readable().await.map_err(failed("watch the program"))?;
        let status = loop {
            match waitid(WaitId::PidFd(self.0.get_ref().as_fd()), WaitIdOptions::EXITED) {
                Err(Errno::INTR) => {}
                other => break other.map_err(failed("wait for the program"))?,
            }
        };
        let status = status.ok_or_else(|| EnterError::Failed("the program has no status".into()))?;
        let byte = |number: Option<i32>| number.and_then(|number| u8::try_from(number & 0xff).ok());
        Ok(match (byte(status.exit_status()), byte(status.terminating_signal())) {
            (Some(status), _) => Exit::Status(status),
            (None, Some(number)) => Exit::Signal(number),
            (None, None) => return Err(EnterError::Failed("the program has no status".into())),
        })
    }

    /// Sends a signal to its process group.
    pub(super) fn signal(&self, signal: Signal) {
        // It is a session leader and our child, not yet waited for: its number is nobody else's.
        if let Some(pid) = pid_of(self.0.get_ref().as_fd())
            && kill_process_group(pid, signal).is_ok()
        {
            return;
        }
        let _ = pidfd_send_signal(self.0.get_ref(), signal);
    }
}

/// The number behind a pidfd.
fn pid_of(pidfd: BorrowedFd<'_>) -> Option<Pid> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).ok()?;
    let number = info.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim();
    // -1 is a process that is gone.
    Pid::from_raw(number.parse().ok().filter(|number| *number > 1)?)
}
