//! Consoles that can be typed into: who keeps their terminals, and how one gets to them.
//!
//! The keeper is `machinist-console@NAME.service`: a process of its own that has the other end of the terminal which a
//! machine's systemd-nspawn is connected to, remembers what was shown last, and serves whoever connects to its socket. Several
//! may; all see the same.
//!
//! What is said on the socket are packets. To the keeper: [`KEYS`] and what was typed, or [`SIZE`] and the rows and columns. From
//! it: [`HISTORY`] and what was shown before, then [`LIVE`], and [`SHOWN`] with what is shown from then on; [`RESIZED`] when the
//! terminal has the size that was told.

mod gate;
mod keeper;
mod ring;

use std::fs::metadata;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect as connect_to, recv, send,
    socket_with,
};
use rustix::termios::tcgetwinsize;

pub(in crate::sys) use keeper::keep;

use crate::machine::MachineName;
use crate::unit::console::{socket, terminal};

const KEYS: u8 = b'K';
const SIZE: u8 = b'S';
const HISTORY: u8 = b'H';
const LIVE: u8 = b'L';
const SHOWN: u8 = b'O';
const RESIZED: u8 = b'R';
/// How long to wait for a machine that reads slowly, before what is typed is lost.
const PATIENCE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
/// The longest packet, in bytes.
const PACKET_MAX: usize = 16 << 10;

/// What comes from a console.
#[derive(Debug, PartialEq, Eq)]
pub enum Told<'a> {
    /// What was shown before: some of it.
    History(&'a [u8]),
    /// That was all of it.
    Live,
    /// What is shown now.
    Shown(&'a [u8]),
    /// The terminal has the size that was told.
    Resized,
}

/// Whether a process sits at the terminal that is kept for a machine now.
#[must_use]
pub fn sits_at(pid: u64, name: &MachineName) -> bool {
    let here = metadata(format!("/proc/{pid}/fd/0")).map(|found| (found.dev(), found.ino()));
    let kept = metadata(terminal(name)).map(|found| (found.dev(), found.ino()));
    // /dev/null is nobody's.
    socket(name).exists() && matches!((here, kept), (Ok(here), Ok(kept)) if here == kept)
}

/// A connection to a console.
#[derive(Debug)]
pub struct Console(OwnedFd);

impl Console {
    /// Connects to the console of a machine; `None` if it has none that can be typed into.
    ///
    /// # Errors
    /// `PermissionDenied` for everybody but root.
    pub fn connect(name: &MachineName) -> io::Result<Option<Self>> {
        let socket_fd = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        match connect_to(&socket_fd, &SocketAddrUnix::new(socket(name))?) {
            Ok(()) => Ok(Some(Self(socket_fd))),
            Err(Errno::NOENT | Errno::CONNREFUSED) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The same connection once more.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// Types something. Waits a second, if `waits`, where the machine does not read what is typed.
    ///
    /// # Errors
    /// `WouldBlock` if it does not: the rest is lost.
    pub fn types(&self, keys: &[u8], waits: bool) -> io::Result<()> {
        for keys in keys.chunks(PACKET_MAX - 1) {
            let packet = [&[KEYS], keys].concat();
            match self.send(&packet) {
                Err(error) if waits && error.kind() == io::ErrorKind::WouldBlock => {
                    let _ = poll(&mut [PollFd::new(&self.0, PollFlags::OUT)], Some(&PATIENCE));
                    self.send(&packet)?;
                }
                sent => sent?,
            }
        }
        Ok(())
    }

    /// Tells how large the terminal is. Never waits.
    pub fn has_size_of(&self, terminal: impl AsFd) -> io::Result<()> {
        let size = tcgetwinsize(terminal)?;
        let [a, b] = size.ws_row.to_le_bytes();
        let [c, d] = size.ws_col.to_le_bytes();
        self.send(&[SIZE, a, b, c, d])
    }

    fn send(&self, packet: &[u8]) -> io::Result<()> {
        loop {
            match send(&self.0, packet, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Err(Errno::INTR) => {}
                sent => return Ok(sent.map(drop)?),
            }
        }
    }

    /// Hands on all that is told, until the keeper has gone, or it is not taken. Blocks.
    pub fn listen<E>(&self, mut take: impl FnMut(Told<'_>) -> Result<(), E>) -> Result<(), E> {
        let mut buffer = vec![0; PACKET_MAX];
        loop {
            let count = match recv(&self.0, buffer.as_mut_slice(), RecvFlags::empty()) {
                Err(Errno::INTR) => continue,
                Ok((_, count @ 1..)) => count,
                _ => return Ok(()),
            };
            let text = buffer.get(1..count).unwrap_or_default();
            match buffer[0] {
                HISTORY => take(Told::History(text))?,
                LIVE => take(Told::Live)?,
                SHOWN => take(Told::Shown(text))?,
                RESIZED => take(Told::Resized)?,
                _ => {}
            }
        }
    }

    /// Ends the connection for all who have it.
    pub fn close(&self) {
        let _ = rustix::net::shutdown(&self.0, rustix::net::Shutdown::Both);
    }
}
