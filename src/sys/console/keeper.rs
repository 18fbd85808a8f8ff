//! The keeper of a terminal: a process of one thread.
//!
//! systemd keeps the master, too: when the keeper is killed, the next one takes it from there, and the machine notices nothing.
//! What is kept in memory is bounded, however much the machine shows and however slow those are who look: these miss something.

use std::ffi::OsString;
use std::io::{self, IoSlice, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::ExitCode;
use std::{env, fs};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags, fcntl_setfl};
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType, accept_with, bind, listen, recv, send, sendmsg_addr, socket_with,
};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, Winsize, tcgetattr, tcsetattr, tcsetwinsize};

use super::gate::Gate;
use super::ring::Ring;
use super::{HISTORY, KEYS, LIVE, PACKET_MAX, RESIZED, SHOWN, SIZE};
use crate::machine::MachineName;
use crate::sys::raw::passed::passed;
use crate::unit::console::{socket, terminal};

/// How many may look at once.
const CLIENTS_MAX: usize = 32;
/// How much that was typed may wait for the machine to read it.
const WAITING_MAX: usize = 64 << 10;
/// How often a terminal is read at most once we are to end.
const LAST_READS: usize = 256;
/// The first descriptor that systemd passes, see `sd_listen_fds(3)`.
const FIRST_PASSED: i32 = 3;

/// Keeps the terminal of the machine that the only word names.
pub(in crate::sys) fn keep(mut words: impl Iterator<Item = OsString>) -> ExitCode {
    let name = words.next().and_then(|word| word.to_str()?.parse().ok());
    let kept = match name {
        Some(name) => Keeper::new(&name).and_then(|mut keeper| keeper.run()),
        None => Err(io::ErrorKind::InvalidInput.into()),
    };
    match kept {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "cannot keep the console: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Who looks.
struct Client {
    connection: OwnedFd,
    /// The number of the next byte that he is to get.
    at: u64,
    /// Up to here it was shown before he came.
    history: u64,
    told_live: bool,
    /// He has told a size, and was not told yet that it was taken.
    resized: bool,
}

struct Keeper {
    master: OwnedFd,
    /// Never read: as long as somebody has this end open, the other one has no end.
    _slave: OwnedFd,
    listener: OwnedFd,
    /// Tells of SIGTERM.
    end: SignalFd,
    clients: Vec<Client>,
    ring: Ring,
    gate: Gate,
    /// What was typed, and not yet taken.
    waiting: Vec<u8>,
}

impl Keeper {
    fn new(name: &MachineName) -> io::Result<Self> {
        let stored = env::var("LISTEN_FDS").is_ok_and(|count| count != "0");
        let master = if stored { passed(FIRST_PASSED)? } else { open()? };
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave = ioctl_tiocgptpeer(&master, flags)?;
        if !stored {
            // Nothing is echoed while no systemd-nspawn has it.
            let mut modes = tcgetattr(&slave)?;
            modes.make_raw();
            tcsetattr(&slave, OptionalActions::Now, &modes)?;
            resize(&master, 24, 80)?;
            notify(b"FDSTORE=1\nFDNAME=console\nFDPOLL=0", Some(&master))?;
        }
        fcntl_setfl(&master, OFlags::RDWR | OFlags::NONBLOCK)?;
        let path = ptsname(&master, Vec::new())?;
        link(Path::new(path.to_str().map_err(io::Error::other)?), &terminal(name))?;
        let listener = listen_at(&socket(name))?;
        let mut ending = SigSet::empty();
        ending.add(Signal::SIGTERM);
        ending.thread_block()?;
        let end = SignalFd::with_flags(&ending, SfdFlags::SFD_CLOEXEC)?;
        notify(b"READY=1", None)?;
        Ok(Self {
            master,
            _slave: slave,
            listener,
            end,
            clients: Vec::new(),
            ring: Ring::new(),
            gate: Gate::default(),
            waiting: Vec::new(),
        })
    }

    fn run(&mut self) -> io::Result<()> {
        loop {
            let ready = self.wait()?;
            let [master, listener, end, clients @ ..] = ready.as_slice() else {
                continue;
            };
            if end.contains(PollFlags::IN) {
                self.finish();
                return Ok(());
            }
            if master.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
                self.read()?;
            }
            let mut here = clients.iter();
            let (gate, waiting, terminal) = (&mut self.gate, &mut self.waiting, &self.master);
            self.clients.retain_mut(|client| {
                let speaks = here
                    .next()
                    .is_some_and(|ready| !ready.difference(PollFlags::OUT).is_empty());
                !speaks || hear(client, gate, waiting, terminal.as_fd())
            });
            self.write()?;
            let ring = &self.ring;
            self.clients.retain_mut(|client| tell(client, ring));
            if listener.contains(PollFlags::IN) {
                self.accept();
            }
        }
    }

    /// Takes the last words of the machine: it has stopped before us, unless somebody stops us alone.
    fn finish(&mut self) {
        for _ in 0..LAST_READS {
            if !self.read().unwrap_or(false) {
                break;
            }
        }
        let ring = &self.ring;
        self.clients.retain_mut(|client| tell(client, ring));
    }

    /// Waits for something to do: what is ready of the master, the listener, SIGTERM and each client.
    fn wait(&self) -> io::Result<Vec<PollFlags>> {
        let wants = |wants: bool, flag| if wants { flag } else { PollFlags::empty() };
        let writes = wants(!self.waiting.is_empty(), PollFlags::OUT);
        let hears = wants(self.waiting.len() < WAITING_MAX, PollFlags::IN);
        let mut fds = vec![
            PollFd::new(&self.master, PollFlags::IN | writes),
            PollFd::new(&self.listener, PollFlags::IN),
            PollFd::new(&self.end, PollFlags::IN),
        ];
        fds.extend(self.clients.iter().map(|client| {
            let is_behind = client.at < self.ring.end() || !client.told_live || client.resized;
            PollFd::new(&client.connection, hears | wants(is_behind, PollFlags::OUT))
        }));
        match poll(&mut fds, None) {
            Err(Errno::INTR) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
            Ok(_) => Ok(fds.iter().map(PollFd::revents).collect()),
        }
    }

    /// Takes what the machine shows. The journal gets it as well, as far as it can take it: nothing waits for that. False if
    /// there is nothing.
    fn read(&mut self) -> io::Result<bool> {
        let mut buffer = [0; PACKET_MAX];
        match rustix::io::read(&self.master, &mut buffer) {
            Ok(count) => {
                let shown = &buffer[..count];
                self.ring.push(shown);
                let _ = send(
                    rustix::stdio::stdout(),
                    shown,
                    SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
                );
                Ok(count > 0)
            }
            Err(Errno::INTR) => Ok(true),
            Err(Errno::AGAIN) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives the machine what was typed.
    fn write(&mut self) -> io::Result<()> {
        while !self.waiting.is_empty() {
            match rustix::io::write(&self.master, &self.waiting) {
                Ok(count) => drop(self.waiting.drain(..count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let Ok(connection) = accept_with(&self.listener, flags) else {
            return;
        };
        // The socket is root's alone; whoever got hold of it in another way is not heard.
        let is_root = socket_peercred(&connection).is_ok_and(|peer| peer.uid.is_root());
        if is_root && self.clients.len() < CLIENTS_MAX {
            self.clients.push(Client {
                connection,
                at: self.ring.start(),
                history: self.ring.end(),
                told_live: false,
                resized: false,
            });
        }
    }
}

/// Takes what a client says; false if he has gone.
fn hear(client: &mut Client, gate: &mut Gate, waiting: &mut Vec<u8>, master: BorrowedFd<'_>) -> bool {
    let mut buffer = [0; PACKET_MAX];
    match recv(&client.connection, buffer.as_mut_slice(), RecvFlags::empty()) {
        Err(Errno::INTR | Errno::AGAIN) => true,
        Ok((_, count @ 1..)) => {
            match (buffer[0], &buffer[1..count]) {
                (KEYS, keys) => gate.pass(keys, waiting),
                (SIZE, [a, b, c, d]) => {
                    let (rows, columns) = (u16::from_le_bytes([*a, *b]), u16::from_le_bytes([*c, *d]));
                    client.resized = resize(master, rows, columns).is_ok();
                }
                _ => {}
            }
            true
        }
        _ => false,
    }
}

/// Gives a client what he has not seen yet, as much as he takes; false if he has gone.
fn tell(client: &mut Client, ring: &Ring) -> bool {
    let mut packet = Vec::with_capacity(PACKET_MAX);
    loop {
        // What he was too slow for is lost to him.
        client.at = client.at.max(ring.start());
        packet.clear();
        let is_history = client.at < client.history;
        if client.resized {
            packet.push(RESIZED);
        } else if is_history {
            let left = usize::try_from(client.history - client.at).unwrap_or(usize::MAX);
            packet.push(HISTORY);
            packet.extend_from_slice(ring.from(client.at, left.min(PACKET_MAX - 1)));
        } else if !client.told_live {
            packet.push(LIVE);
        } else if client.at < ring.end() {
            packet.push(SHOWN);
            packet.extend_from_slice(ring.from(client.at, PACKET_MAX - 1));
        } else {
            return true;
        }
        match send(&client.connection, &packet, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(_) => {
                client.at += (packet.len() - 1) as u64;
                client.told_live |= packet[0] == LIVE;
                client.resized &= packet[0] != RESIZED;
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN | Errno::NOBUFS) => return true,
            Err(_) => return false,
        }
    }
}

/// A new terminal.
fn open() -> io::Result<OwnedFd> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    Ok(master)
}

fn resize(terminal: impl std::os::fd::AsFd, rows: u16, columns: u16) -> io::Result<()> {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(tcsetwinsize(terminal, size)?)
}

/// Has a link lead there, at once.
fn link(target: &Path, place: &Path) -> io::Result<()> {
    let new = place.with_extension("new");
    let _ = fs::remove_file(&new);
    symlink(target, &new)?;
    fs::rename(&new, place)
}

/// A socket that is root's alone.
fn listen_at(path: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let _ = fs::remove_file(path);
    let before = rustix::process::umask(Mode::from_raw_mode(0o177));
    let bound = bind(&listener, &SocketAddrUnix::new(path)?);
    rustix::process::umask(before);
    bound?;
    listen(&listener, 16)?;
    Ok(listener)
}

/// Tells systemd something, see `sd_notify(3)`.
fn notify(text: &[u8], descriptor: Option<&OwnedFd>) -> io::Result<()> {
    let Some(path) = env::var_os("NOTIFY_SOCKET").and_then(|path| path.into_string().ok()) else {
        return Ok(());
    };
    let address = match path.strip_prefix('@') {
        Some(name) => SocketAddrUnix::new_abstract_name(name.as_bytes())?,
        None => SocketAddrUnix::new(path.as_str())?,
    };
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<BorrowedFd<'_>> = descriptor.iter().map(|descriptor| descriptor.as_fd()).collect();
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    sendmsg_addr(
        &socket,
        &address,
        &[IoSlice::new(text)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}
