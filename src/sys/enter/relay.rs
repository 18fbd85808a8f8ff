//! Carries bytes between the caller's streams and a program's, so that no descriptor of the caller enters the guest.

use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, splice};

/// The most bytes that are moved at once; a pipe of this size is asked for.
const CHUNK: usize = 1 << 20;
/// What a copy through memory takes at once.
const BUFFER: usize = 64 << 10;

/// Tells output relays that the program has ended: what is still in the pipe is carried, and nothing is waited for. What
/// the program left running may hold the pipe for ever.
#[derive(Debug)]
pub struct Ended(OwnedFd);

impl Ended {
    /// Not yet.
    pub fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC)?))
    }

    /// Now.
    pub fn set(&self) {
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// For one more relay.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }
}

/// A pipe with room for [`CHUNK`] bytes where the kernel allows: (reader, writer).
pub(super) fn wide_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = io::pipe()?;
    let _ = rustix::pipe::fcntl_setpipe_size(&writer, CHUNK);
    Ok((reader.into(), writer.into()))
}

/// Carries the caller's input to the program until either ends. The thread is not waited for: it may sit in a read.
pub fn carry_input(from: OwnedFd, to: OwnedFd, at_end: &'static [u8]) {
    std::thread::spawn(move || {
        while let Ok(1..) = move_some(from.as_fd(), to.as_fd()) {}
        // A terminal has no end of its own: the program is told by Ctrl-D.
        let _ = write_all(to.as_fd(), at_end);
    });
}

/// Carries the program's output to the caller until it ends, or is empty after the program's end. If the caller's side is
/// closed, the program's becomes so, too.
#[must_use]
pub fn carry_output(from: OwnedFd, to: OwnedFd, ended: Ended) -> JoinHandle<()> {
    std::thread::spawn(move || {
        while has_more(from.as_fd(), &ended) {
            if !matches!(move_some(from.as_fd(), to.as_fd()), Ok(1..)) {
                return;
            }
        }
    })
}

/// Hands each line of the program's output to `take`, with its newline if it has one; longer lines come in pieces.
pub fn read_lines(from: OwnedFd, ended: Ended, mut take: impl FnMut(&[u8]) + Send + 'static) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut file = std::fs::File::from(from);
        let mut buffer = vec![0; BUFFER];
        let mut line: Vec<u8> = Vec::new();
        while has_more(file.as_fd(), &ended) {
            let Ok(count @ 1..) = file.read(&mut buffer) else { break };
            for byte in &buffer[..count] {
                line.push(*byte);
                if *byte == b'\n' || line.len() >= BUFFER {
                    take(&line);
                    line.clear();
                }
            }
        }
        if !line.is_empty() {
            take(&line);
        }
    })
}

/// Waits for something to read. Before the program's end that may take for ever; after it, only what is there counts.
fn has_more(from: BorrowedFd<'_>, ended: &Ended) -> bool {
    let mut fds = [PollFd::new(&from, PollFlags::IN), PollFd::new(&ended.0, PollFlags::IN)];
    loop {
        match poll(&mut fds, None) {
            Err(Errno::INTR) => {}
            Err(_) => return false,
            Ok(_) if !fds[0].revents().is_empty() => return true,
            Ok(_) => {
                // The end was seen first: what was written before it is there now.
                let mut fds = [PollFd::new(&from, PollFlags::IN)];
                let now = Timespec { tv_sec: 0, tv_nsec: 0 };
                return matches!(poll(&mut fds, Some(&now)), Ok(1..));
            }
        }
    }
}

/// Moves bytes, by splice(2) where the kernel can; 0 at the end.
fn move_some(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<usize> {
    loop {
        match splice(from, None, to, None, CHUNK, SpliceFlags::MOVE) {
            Err(Errno::INTR) => {}
            // Neither side is a pipe, one is a terminal, or the target is only appended to.
            Err(Errno::INVAL) => return copy_some(from, to),
            Err(Errno::AGAIN) => wait_for(from, to)?,
            other => return Ok(other?),
        }
    }
}

fn copy_some(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<usize> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match rustix::io::read(from, &mut buffer) {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait_until(from, PollFlags::IN)?,
            // A terminal whose other side is closed.
            Err(Errno::IO) => return Ok(0),
            Err(error) => return Err(error.into()),
            Ok(count) => {
                write_all(to, &buffer[..count])?;
                return Ok(count);
            }
        }
    }
}

fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait_until(to, PollFlags::OUT)?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Somebody made one of the caller's streams non-blocking.
fn wait_for(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    wait_until(from, PollFlags::IN)?;
    wait_until(to, PollFlags::OUT)
}

fn wait_until(fd: BorrowedFd<'_>, what: PollFlags) -> io::Result<()> {
    loop {
        match poll(&mut [PollFd::new(&fd, what)], None) {
            Err(Errno::INTR) => {}
            other => return Ok(other.map(drop)?),
        }
    }
}
