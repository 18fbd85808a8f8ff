//! Terminals: one of the guest's own for the program, the caller's own made raw meanwhile.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{set_hook, take_hook};
use std::thread::panicking;

use super::protocol::Size;
use crate::sys::raw::enter::watch;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, fcntl_setfl, fstat, fstatfs, major, minor, openat};
use rustix::io::Errno;
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{
    LocalModes, OptionalActions, Termios, Winsize, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize,
};
use tokio::io::unix::AsyncFd;

/// `DEVPTS_SUPER_MAGIC`, see statfs(2).
const DEVPTS: rustix::fs::FsWord = 0x1cd1;

/// A pseudo terminal of the guest's own devpts, see pts(4).
#[derive(Debug)]
pub(super) struct Inside {
    pub(super) master: OwnedFd,
    pub(super) slave: OwnedFd,
}

/// The path, inside, of the slave of a master that [`open_inside`] opened there.
pub(super) fn path_inside(master: impl AsFd) -> io::Result<String> {
    let path = rustix::pty::ptsname(master, Vec::new())?;
    path.into_string().map_err(io::Error::other)
}

/// Opens a new pseudo terminal; to be called inside of the guest. What lies at its path is not trusted.
pub(super) fn open_inside((rows, columns): Size) -> io::Result<Inside> {
    // Non-blocking: a fifo there would hold us up for ever.
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let master = openat(CWD, "/dev/pts/ptmx", flags, Mode::empty())?;
    let device = fstat(&master)?.st_rdev;
    let is_devpts = fstatfs(&master)?.f_type == DEVPTS;
    if !is_devpts || (major(device), minor(device)) != (5, 2) {
        return Err(io::Error::other("/dev/pts/ptmx is no pseudo terminal"));
    }
    fcntl_setfl(&master, OFlags::RDWR)?;
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&master, size)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    // By the master, not by a path.
    let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    Ok(Inside { master, slave })
}

impl Inside {
    /// Makes it the controlling terminal of the calling process, a session leader, and the user's; returns it three times.
    pub(super) fn into_streams(self, uid: u32) -> io::Result<[OwnedFd; 3]> {
        drop(self.master);
        rustix::process::ioctl_tiocsctty(&self.slave)?;
        // Without CAP_CHOWN in the guest it stays root's, and still works.
        let _ = rustix::fs::fchown(&self.slave, Some(rustix::fs::Uid::from_raw(uid)), None);
        Ok([self.slave.try_clone()?, self.slave.try_clone()?, self.slave])
    }
}

/// The caller's terminal, raw until this is dropped.
#[derive(Debug)]
pub struct RawTerminal {
    terminal: OwnedFd,
    before: Termios,
}

impl RawTerminal {
    /// Makes a terminal raw: each key goes to the program, Ctrl-C too.
    pub fn new(terminal: impl AsFd) -> io::Result<Self> {
        let terminal = terminal.as_fd().try_clone_to_owned()?;
        let before = tcgetattr(&terminal)?;
        let mut raw = before.clone();
        raw.make_raw();
        // A panic ends the program without dropping anything, and what it says is to be read.
        let (of_panic, modes) = (terminal.try_clone()?, before.clone());
        let others = take_hook();
        set_hook(Box::new(move |panic| {
            let _ = tcsetattr(&of_panic, OptionalActions::Now, &modes);
            others(panic);
        }));
        tcsetattr(&terminal, OptionalActions::Drain, &raw)?;
        Ok(Self { terminal, before })
    }

    /// Has a terminal give each key at once, and show none; Ctrl-C still interrupts.
    pub fn for_keys(terminal: impl AsFd) -> io::Result<Self> {
        let terminal = terminal.as_fd().try_clone_to_owned()?;
        let before = tcgetattr(&terminal)?;
        let mut keys = before.clone();
        keys.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
        tcsetattr(&terminal, OptionalActions::Drain, &keys)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // In a panic the hook has done so, and cannot be taken back.
        if panicking() {
            return;
        }
        let _ = take_hook();
        let _ = tcsetattr(&self.terminal, OptionalActions::Drain, &self.before);
    }
}

/// What is typed at the caller's terminal. It stays a blocking one: others have it open, too.
#[derive(Debug)]
pub struct Keyboard(AsyncFd<OwnedFd>);

impl Keyboard {
    /// To be called in a runtime.
    pub fn new(terminal: impl AsFd) -> io::Result<Self> {
        Ok(Self(watch(terminal.as_fd().try_clone_to_owned()?)?))
    }

    /// Waits for what is typed; nothing if the terminal is gone.
    pub async fn read(&self) -> io::Result<Vec<u8>> {
        loop {
            let mut ready = self.0.readable().await?;
            let read = ready.try_io(|terminal| {
                let mut fds = [PollFd::new(terminal, PollFlags::IN)];
                if poll(&mut fds, Some(&Timespec::default()))? == 0 {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                let mut bytes = [0; 256];
                let count = rustix::io::read(terminal, &mut bytes)?;
                Ok(bytes[..count].to_vec())
            });
            match read {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                // One that was hung up says so.
                Ok(Err(error)) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => return Ok(Vec::new()),
                Ok(read) => return read,
                // It was read already.
                Err(_) => {}
            }
        }
    }
}

/// The size of a terminal; what a terminal has that never said, where it is none.
pub(super) fn size_of(terminal: impl AsFd) -> Size {
    tcgetwinsize(terminal).map_or((24, 80), |size| (size.ws_row, size.ws_col))
}

/// Gives one terminal the size of another.
pub fn copy_size(from: impl AsFd, to: impl AsFd) -> io::Result<()> {
    Ok(tcsetwinsize(to, tcgetwinsize(from)?)?)
}
