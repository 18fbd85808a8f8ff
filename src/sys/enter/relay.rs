//! Carries bytes between the caller's streams and a program's, so that no descriptor of the caller enters the guest.

use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, splice};
use tokio::sync::oneshot;

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
    widen(&writer);
    Ok((reader.into(), writer.into()))
}

/// Gives a pipe room for [`CHUNK`] bytes where it is one and the kernel allows: each switch between processes carries more.
fn widen(pipe: impl AsFd) {
    if fcntl_getpipe_size(&pipe).is_ok_and(|size| size < CHUNK) {
        let _ = fcntl_setpipe_size(pipe, CHUNK);
    }
}

/// Carries the caller's input to the program until either ends. The thread is not waited for: it may sit in a read.
pub fn carry_input(from: OwnedFd, to: OwnedFd, at_end: &'static [u8]) {
    widen(&from);
    std::thread::spawn(move || {
        while let Ok(1..) = move_some(from.as_fd(), to.as_fd()) {}
        // A terminal has no end of its own: the program is told by Ctrl-D.
        let _ = write_all(to.as_fd(), at_end);
    });
}

/// How long a terminal that nobody has open is left alone: there is no event for somebody opening it.
const PAUSE: Duration = Duration::from_millis(50);

/// `^]`, which leaves a session when it comes [`ESCAPES`] times within [`ESCAPE_TIME`], as in machinectl(1).
const ESCAPE: u8 = 0x1d;
const ESCAPES: usize = 3;
const ESCAPE_TIME: Duration = Duration::from_secs(1);

/// Carries what is typed to a session. Whoever waits for `left` learns that it is to be left; it is just dropped at the end of
/// the input.
pub fn carry_typed(from: OwnedFd, to: OwnedFd, left: oneshot::Sender<()>) {
    read_typed(from, left, move |typed| write_all(to.as_fd(), typed).is_ok());
}

/// As [`carry_typed`]; `take` says whether there is more to be typed.
pub fn read_typed(from: OwnedFd, left: oneshot::Sender<()>, mut take: impl FnMut(&[u8]) -> bool + Send + 'static) {
    std::thread::spawn(move || {
        let (mut buffer, mut escapes) = (vec![0; BUFFER], Escapes::default());
        loop {
            let count = match rustix::io::read(&from, &mut buffer) {
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) if wait_until(from.as_fd(), PollFlags::IN).is_ok() => continue,
                Ok(count @ 1..) => count,
                _ => return,
            };
            let typed = &buffer[..count];
            if typed.iter().any(|key| escapes.is_last(*key, Instant::now())) {
                let _ = left.send(());
                return;
            }
            if !take(typed) {
                return;
            }
        }
    });
}

/// The escapes that came one after the other.
#[derive(Default)]
struct Escapes {
    count: usize,
    first: Option<Instant>,
}

impl Escapes {
    fn is_last(&mut self, key: u8, now: Instant) -> bool {
        if key != ESCAPE {
            *self = Self::default();
            return false;
        }
        match self.first {
            Some(first) if now.duration_since(first) <= ESCAPE_TIME => self.count += 1,
            _ => (self.count, self.first) = (1, Some(now)),
        }
        self.count >= ESCAPES
    }
}

/// A relay's end, and what was wrong with the caller's side. That its reader has gone is nothing wrong.
pub type Relay = oneshot::Receiver<io::Result<()>>;

/// Runs a relay on a thread of its own: what it reads and writes may block.
fn relay(carry: impl FnOnce() -> io::Result<()> + Send + 'static) -> Relay {
    let (tell, told) = oneshot::channel();
    std::thread::spawn(move || {
        let result = carry();
        let _ = tell.send(match result {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            result => result,
        });
    });
    told
}

/// Carries the program's output to the caller until it ends, or is empty after the program's end. If the caller's side is
/// closed, the program's becomes so, too.
#[must_use]
pub fn carry_output(from: OwnedFd, to: OwnedFd, ended: Ended) -> Relay {
    widen(&to);
    relay(move || {
        while has_more(from.as_fd(), &ended) {
            if move_some(from.as_fd(), to.as_fd())? == 0 {
                break;
            }
        }
        Ok(())
    })
}

/// Carries to the caller what a terminal of a session shows, until `ended` is set. A terminal that nobody has open gives an
/// error, which may be its end, or a moment between two programs: `goes_on` is asked, and told for how long it has been so.
/// `first` learns that something was shown.
#[must_use]
pub fn carry_session(
    from: OwnedFd,
    to: OwnedFd,
    ended: Ended,
    first: oneshot::Sender<()>,
    mut goes_on: impl FnMut(Duration) -> bool + Send + 'static,
) -> Relay {
    relay(move || {
        let (mut first, mut closed) = (Some(first), None);
        // What is there when the end is seen is left there.
        while !is_set(&ended) && has_more(from.as_fd(), &ended) && !is_set(&ended) {
            if copy_some(from.as_fd(), to.as_fd())? > 0 {
                closed = None;
                first.take().map(|first| first.send(()));
                continue;
            }
            let since = *closed.get_or_insert_with(Instant::now);
            if !goes_on(since.elapsed()) {
                break;
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    })
}

fn is_set(ended: &Ended) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(poll(&mut [PollFd::new(&ended.0, PollFlags::IN)], Some(&now)), Ok(1..))
}

/// Hands each line of the program's output to `take`, with its newline if it has one; longer lines come in pieces. If it is
/// not taken, the program's side is closed.
#[must_use]
pub fn read_lines(
    from: OwnedFd,
    ended: Ended,
    mut take: impl FnMut(&[u8]) -> io::Result<()> + Send + 'static,
) -> Relay {
    relay(move || {
        let mut file = std::fs::File::from(from);
        let mut buffer = vec![0; BUFFER];
        let mut line: Vec<u8> = Vec::new();
        while has_more(file.as_fd(), &ended) {
            let Ok(count @ 1..) = file.read(&mut buffer) else { break };
            for byte in &buffer[..count] {
                line.push(*byte);
                if *byte == b'\n' || line.len() >= BUFFER {
                    take(&line)?;
                    line.clear();
                }
            }
        }
        if !line.is_empty() {
            take(&line)?;
        }
        Ok(())
    })
}

/// Carries to the caller what a terminal shows between two lines that begin with `mark`, and returns the number in the
/// second. At the first, `begin` is told.
#[must_use]
pub fn carry_between(from: OwnedFd, to: OwnedFd, mark: Vec<u8>, begin: oneshot::Sender<()>) -> JoinHandle<Option<u8>> {
    let mut begin = Some(begin);
    std::thread::spawn(move || {
        let mut from = std::fs::File::from(from);
        let mut buffer = vec![0; BUFFER];
        // What was not carried yet: a mark may be incomplete.
        let mut held: Vec<u8> = Vec::new();
        // A terminal whose other side is closed gives an error.
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            held.extend_from_slice(&buffer[..count]);
            let mut marked = held.windows(mark.len()).position(|window| window == mark);
            while let Some(place) = marked {
                let word = &held[place + mark.len()..];
                let Some(length) = word.iter().position(|byte| *byte == b'\n') else {
                    break;
                };
                let Some(begin) = begin.take() else {
                    let _ = write_all(to.as_fd(), &held[..place]);
                    return std::str::from_utf8(&word[..length]).ok()?.trim_end().parse().ok();
                };
                let _ = begin.send(());
                held.drain(..=place + mark.len() + length);
                marked = held.windows(mark.len()).position(|window| window == mark);
            }
            if marked.is_some() && held.len() < 2 * BUFFER {
                continue;
            }
            let sure = held.len() - overlap(&held, &mark);
            if begin.is_none() {
                let _ = write_all(to.as_fd(), &held[..sure]);
            }
            held.drain(..sure);
        }
        if begin.is_none() {
            let _ = write_all(to.as_fd(), &held);
        }
        None
    })
}

/// How many bytes at the end of `text` begin `mark`.
fn overlap(text: &[u8], mark: &[u8]) -> usize {
    (0..=mark.len().min(text.len()))
        .rev()
        .find(|count| text.ends_with(&mark[..*count]))
        .unwrap_or(0)
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
            // A terminal whose other side is closed.
            Err(Errno::IO) if rustix::termios::isatty(from) => return Ok(0),
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
            Err(Errno::IO) if rustix::termios::isatty(from) => return Ok(0),
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn carried(pieces: &[&str]) -> (String, Option<u8>) {
        let (from, mut input) = io::pipe().unwrap();
        let (mut output, to) = io::pipe().unwrap();
        let (begin, _begun) = oneshot::channel();
        let carrier = carry_between(from.into(), to.into(), b"\x1ex:".to_vec(), begin);
        // More than a pipe holds may come out.
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            output.read_to_string(&mut text).unwrap();
            text
        });
        for piece in pieces {
            let _ = input.write_all(piece.as_bytes());
            // So that pieces come one by one, most of the time; it must not matter.
            std::thread::yield_now();
        }
        drop(input);
        let (status, text) = (carrier.join().unwrap(), reader.join().unwrap());
        (text, status)
    }

    #[test]
    fn what_is_between_the_marks_is_shown() {
        assert_eq!(carried(&["reset\x1ex:\r\nout\x1ex:7\r\n"]), ("out".into(), Some(7)));
        let pieces = ["re\x1e", "set\x1ex", ":\r", "\nout\x1e", "x", ":25", "5\r\n", "more"];
        assert_eq!(carried(&pieces), ("out".into(), Some(255)));
        assert_eq!(carried(&["\x1ex:\n", "\x1e", "y\x1ex"]), ("\x1ey\x1ex".into(), None));
        assert_eq!(carried(&["\x1ex:\n\x1ex:", "300\n"]), (String::new(), None));
        assert_eq!(carried(&["never begun"]), (String::new(), None));
    }

    #[test]
    fn a_mark_without_an_end_is_not_held_for_ever() {
        let long = "1".repeat(300_000);
        let (text, status) = carried(&["\x1ex:\n", "\x1ex:", &long]);
        assert_eq!((text.len(), status), (long.len() + 3, None));
    }

    #[test]
    fn three_escapes_within_a_second_leave() {
        let (mut escapes, now) = (Escapes::default(), Instant::now());
        let later = now + Duration::from_millis(1100);
        let keys = [
            (ESCAPE, now, false),
            (ESCAPE, now, false),
            (b'a', now, false),
            (ESCAPE, now, false),
            (ESCAPE, now, false),
            // Too late for the first one.
            (ESCAPE, later, false),
            (ESCAPE, later, false),
            (ESCAPE, later, true),
        ];
        for (at, (key, time, leaves)) in keys.into_iter().enumerate() {
            assert_eq!(escapes.is_last(key, time), leaves, "key {at}");
        }
    }

    #[test]
    fn what_may_begin_the_mark_is_held() {
        assert_eq!(overlap(b"ab", b"bc"), 1);
        assert_eq!(overlap(b"abc", b"bcd"), 2);
        assert_eq!(overlap(b"", b"bc"), 0);
        assert_eq!(overlap(b"bb", b"bbc"), 2);
    }
}
