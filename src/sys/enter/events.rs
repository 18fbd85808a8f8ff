//! What is waited for, or looked at, on a descriptor: see poll(2).

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// Whether something can be read; of a pidfd: whether its process has ended.
pub(super) fn is_readable(fd: impl AsFd) -> bool {
    has_event(fd, PollFlags::IN)
}

/// Whether the other side of a socket is closed.
pub(super) fn is_hung_up(fd: impl AsFd) -> bool {
    has_event(fd, PollFlags::HUP)
}

/// Whether something can be read in that time.
pub(super) fn is_readable_within(fd: impl AsFd, limit: Duration) -> bool {
    has_event_within(fd, PollFlags::IN, limit)
}

/// Whether something can be written in that time.
pub(super) fn is_writable_within(fd: impl AsFd, limit: Duration) -> bool {
    has_event_within(fd, PollFlags::OUT, limit)
}

fn has_event(fd: impl AsFd, event: PollFlags) -> bool {
    has_event_within(fd, event, Duration::ZERO)
}

fn has_event_within(fd: impl AsFd, event: PollFlags, limit: Duration) -> bool {
    let mut fds = [PollFd::new(&fd, event)];
    let limit = Timespec {
        tv_sec: limit.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    };
    matches!(poll(&mut fds, Some(&limit)), Ok(1..)) && fds[0].revents().intersects(event)
}

/// Waits until a process has ended.
pub(super) fn wait_for_end(pidfd: impl AsFd) -> io::Result<()> {
    let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
    loop {
        match poll(&mut fds, None) {
            Err(Errno::INTR) => {}
            other => return Ok(other.map(drop)?),
        }
    }
}

/// Waits until the other side of a socket is closed or a process has ended.
pub(super) fn wait_for_either(socket: impl AsFd, pidfd: impl AsFd) -> io::Result<()> {
    // A socket's end is always told.
    let mut fds = [
        PollFd::new(&socket, PollFlags::empty()),
        PollFd::new(&pidfd, PollFlags::IN),
    ];
    loop {
        match poll(&mut fds, None) {
            Err(Errno::INTR) => {}
            other => return Ok(other.map(drop)?),
        }
    }
}
