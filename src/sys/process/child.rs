//! A running child: what it prints, its end, and its death when the caller gives up.

use std::io::{self, PipeReader, Read};
use std::process::ExitStatus;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use super::ProcessError;
use crate::machine::Cancel;

/// How often a running child's caller is asked whether it was cancelled.
const POLL: Duration = Duration::from_millis(50);
/// How long a child may take to end after SIGTERM before SIGKILL follows.
const GRACE: Duration = Duration::from_secs(3);

/// One of the two outputs.
#[derive(Clone, Copy)]
pub(super) enum Stream {
    Out,
    Err,
}

/// Bytes as they came, and from where.
pub(super) type Chunk = (Stream, Vec<u8>);

/// Sends what comes through a pipe, until it is closed.
pub(super) fn forward(mut pipe: PipeReader, stream: Stream, sender: Sender<Chunk>) {
    std::thread::spawn(move || {
        let mut buffer = vec![0; 16 << 10];
        while let Ok(count @ 1..) = pipe.read(&mut buffer) {
            if sender.send((stream, buffer[..count].to_vec())).is_err() {
                return;
            }
        }
    });
}

/// A running program, which ends with this value.
pub(super) struct Child {
    pub(super) handle: duct::Handle,
    pub(super) contained: bool,
    pub(super) ended: bool,
}

impl Child {
    /// Feeds what the child prints to `take` until it has ended and its pipes are closed.
    pub(super) fn wait(
        mut self,
        cancel: &Cancel,
        chunks: &Receiver<Chunk>,
        take: &mut dyn FnMut(Chunk),
    ) -> Result<io::Result<ExitStatus>, ProcessError> {
        let mut closed = false;
        let mut until = None;
        loop {
            if cancel.is_cancelled() {
                self.end();
                return Err(crate::machine::Cancelled.into());
            }
            if closed {
                std::thread::sleep(POLL.min(Duration::from_millis(5)));
            } else {
                match chunks.recv_timeout(POLL) {
                    Ok(chunk) => {
                        take(chunk);
                        continue;
                    }
                    Err(RecvTimeoutError::Disconnected) => closed = true,
                    Err(RecvTimeoutError::Timeout) => {}
                }
            }
            let status = match self.handle.try_wait() {
                Ok(None) => continue,
                Ok(Some(output)) => Ok(output.status),
                Err(error) => Err(error),
            };
            // A daemon that the child left behind may hold the pipes for ever: a second is enough for what is in them.
            let until = *until.get_or_insert_with(|| Instant::now() + Duration::from_secs(1));
            if closed || Instant::now() >= until {
                self.ended = true;
                return Ok(status);
            }
        }
    }

    /// Kills the child with everything it started, and waits until it is gone.
    fn end(&mut self) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        for pid in self.handle.pids() {
            let Ok(raw) = i32::try_from(pid) else { continue };
            // unshare waits for PID 1 of the namespace, which the kernel reaps last: when unshare has ended by itself, nothing
            // is left that could still write into the tree. Killing unshare first would lose that.
            let inner = if self.contained { children_of(raw) } else { Vec::new() };
            if inner.is_empty() {
                let _ = killpg(Pid::from_raw(raw), Signal::SIGTERM);
            }
            for pid in inner {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            if matches!(self.handle.wait_timeout(GRACE), Ok(None)) {
                let _ = killpg(Pid::from_raw(raw), Signal::SIGKILL);
            } else if !self.contained {
                // The leader went politely; whoever of its group did not, goes now.
                let _ = killpg(Pid::from_raw(raw), Signal::SIGKILL);
            }
        }
        let _ = self.handle.wait();
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.end();
    }
}

/// The direct children of a process.
fn children_of(pid: i32) -> Vec<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_ascii_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect()
}
