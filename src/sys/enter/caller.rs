//! The caller's side of a [`helper`]: starts it and hears it.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, shutdown, socketpair};
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use tokio::io::unix::AsyncFd;

use super::copy::sealed_copy;
use super::events::is_readable_within;
use super::protocol::{Order, Reply, Task, as_file, receive, send};
use super::{EnterError, failed, helper};
use crate::sys::guest::Leader;
use crate::sys::raw::enter as raw;

/// How long a helper may take to say the last words.
const GRACE: Duration = Duration::from_secs(1);

/// The helper process, which is gone when this is dropped. What it has made stays: that is our child, not its.
#[derive(Debug)]
pub(super) struct Helper {
    child: Child,
    /// The copy that goes on in its stead: our child, too.
    moved: Option<OwnedFd>,
    control: AsyncFd<OwnedFd>,
}

impl Helper {
    pub(super) fn start(leader: &Leader, unit: &str, task: Task, streams: &[OwnedFd]) -> Result<Self, EnterError> {
        let order = Order {
            leader: i32::try_from(leader.pid()).map_err(|_| EnterError::Failed("no leader".into()))?,
            unit: unit.to_owned(),
            task,
        };
        let order = as_file(&order).map_err(failed("write the order"))?;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(failed("make a socket"))?;
        let mut fds = vec![order.as_fd(), leader.pidfd()];
        fds.extend(streams.iter().map(AsFd::as_fd));
        send(&ours, &(), &fds).map_err(failed("send the order"))?;
        rustix::io::ioctl_fionbio(&ours, true).map_err(failed("make a socket"))?;

        let program = sealed_copy().map_err(failed("copy the helper into memory"))?;
        #[expect(
            clippy::disallowed_methods,
            reason = "no program of the system but our own, with a socket as input"
        )]
        let mut command = std::process::Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()));
        let child = command
            .arg0(helper::JOB)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed("start the helper"))?;
        Ok(Self {
            child,
            moved: None,
            control: raw::watch(ours).map_err(failed("watch the helper"))?,
        })
    }

    /// The next word of the helper; `None` when nobody on its side is left.
    pub(super) async fn reply(&mut self) -> Result<Option<(Reply, Vec<OwnedFd>)>, EnterError> {
        loop {
            let mut ready = self.control.readable().await.map_err(failed("listen to the helper"))?;
            match ready.try_io(|control| receive(control.get_ref())) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Ok(Ok(Some((Reply::Moved, mut fds)))) => self.moved = fds.pop(),
                Ok(reply) => return reply.map_err(failed("understand the helper")),
                Err(_would_block) => {}
            }
        }
    }
}

impl Helper {
    /// Lets it go on without us.
    pub(super) fn leave(self) {
        // Dropped, it would be killed.
        std::mem::forget(self);
    }

    /// Tells it that we are done, and gives it a moment. What goes on after that ends by itself: a machine may hold it up, and
    /// is not to hold us up.
    pub(super) fn finish(mut self) {
        let _ = shutdown(self.control.get_ref(), Shutdown::Both);
        let end = Instant::now() + GRACE;
        // Without a copy that goes on in its stead it is the child itself that speaks.
        while self.moved.is_none() && matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > end {
                // Dropped, it would be killed.
                return std::mem::forget(self);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        if let Some(moved) = self.moved.take()
            && is_readable_within(&moved, GRACE)
        {
            let _ = waitid(WaitId::PidFd(moved.as_fd()), WaitIdOptions::EXITED);
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // It says that there is a copy before it ends.
        while self.moved.is_none()
            && let Ok(Some((reply, mut fds))) = receive(self.control.get_ref())
        {
            self.moved = fds.pop().filter(|_| matches!(reply, Reply::Moved));
        }
        if let Some(moved) = self.moved.take() {
            let _ = pidfd_send_signal(&moved, Signal::KILL);
            let _ = waitid(WaitId::PidFd(moved.as_fd()), WaitIdOptions::EXITED);
        }
    }
}
