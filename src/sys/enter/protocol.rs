//! What is said between the caller and its helper, over a socket of packets.

use std::io::{self, IoSlice, IoSliceMut, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags, SeekFrom, memfd_create, seek};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The most descriptors that go with one packet: order, leader, three streams.
const FDS_MAX: usize = 5;
/// The longest packet, in bytes; the order is longer and goes as a file.
const PACKET_MAX: usize = 16 << 10;

/// What the helper is to do. Byte strings hold no NUL.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    /// PID of the leader; the pidfd that comes along is what counts.
    pub(super) leader: i32,
    /// The machine's unit: the leader must be in a control group of that name, or below it.
    pub(super) unit: String,
    pub(super) task: Task,
}

/// What to do inside.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Task {
    /// Run a program.
    Run(Run),
    /// Connect to a socket by its path inside, and open a terminal of this size there.
    Connect {
        path: String,
        terminal: Option<Size>,
        /// What is said on the socket when the caller is gone.
        last_words: Option<Vec<u8>>,
    },
}

/// Of a terminal: rows and columns.
pub(super) type Size = (u16, u16);

/// A program to run inside.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Run {
    /// Where the program may be, in the order they are tried.
    pub(super) candidates: Vec<Vec<u8>>,
    pub(super) args: Vec<Vec<u8>>,
    /// `NAME=VALUE`
    pub(super) env: Vec<Vec<u8>>,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
    /// Tried in their order; the last must be there. Never empty.
    pub(super) directories: Vec<Vec<u8>>,
    /// A terminal of the guest of this size instead of the three streams.
    pub(super) terminal: Option<Size>,
    /// Goes on when the caller is gone.
    pub(super) detached: bool,
}

impl Run {
    /// What the program was called.
    pub(super) fn name(&self) -> String {
        String::from_utf8_lossy(self.args.first().map_or(&[], Vec::as_slice)).into_owned()
    }
}

/// What the helper, or the program it became, answers.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    /// The program's process is there: its pidfd comes along, and the terminal's master if there is one. If nothing follows
    /// until the socket closes, the program runs.
    Started,
    /// A copy of the helper goes on in its stead: its pidfd comes along.
    Moved,
    /// The master and slave of the terminal that was wanted come along.
    Terminal,
    /// A socket comes along. Whether it is connected can be seen from it. The last words, if any, will be said.
    Tried,
    /// The same privileges as PID 1 has cannot be had; nothing was done.
    Refused(String),
    /// Something failed before the program could run.
    Failed(String),
    /// The program was not found in any place.
    NotFound,
    /// The program is there and cannot be executed: an errno.
    NotExecutable(i32),
}

/// Sends one packet with descriptors.
pub(super) fn send(socket: impl AsFd, packet: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = serde_json::to_vec(packet)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one packet with its descriptors, closed on exec; `None` at the end. What comes may be a guest's.
pub(super) fn receive<T: DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; PACKET_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut fds = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = part {
            fds.extend(received);
        }
    }
    if message.bytes == 0 {
        return Ok(None);
    }
    if message.flags.contains(ReturnFlags::TRUNC) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(Some((serde_json::from_slice(&bytes[..message.bytes])?, fds)))
}

/// A file in memory that holds a value, for what is too long for a packet.
pub(super) fn as_file(value: &impl Serialize) -> io::Result<OwnedFd> {
    let fd = memfd_create("machinist-order", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = std::fs::File::from(fd);
    file.write_all(&serde_json::to_vec(value)?)?;
    seal(&file)?;
    seek(&file, SeekFrom::Start(0))?;
    Ok(file.into())
}

/// Makes a file in memory what it is for good.
pub(super) fn seal(file: impl AsFd) -> io::Result<()> {
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    Ok(rustix::fs::fcntl_add_seals(file, seals)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
    }

    #[test]
    fn packets_carry_descriptors() {
        let (ours, theirs) = pair();
        let file = as_file(&vec![b"a\xff".to_vec()]).unwrap();
        send(&ours, &Reply::Started, &[file.as_fd()]).unwrap();
        let (reply, fds) = receive::<Reply>(&theirs).unwrap().unwrap();
        assert!(matches!(reply, Reply::Started));
        let held: Vec<Vec<u8>> = serde_json::from_reader(std::fs::File::from(fds.into_iter().next().unwrap())).unwrap();
        assert_eq!(held, [b"a\xff"]);
        drop(ours);
        assert!(receive::<Reply>(&theirs).unwrap().is_none());
    }

    #[test]
    fn strange_packets_are_errors() {
        let (ours, theirs) = pair();
        rustix::io::write(&ours, b"{\"What\":1}").unwrap();
        assert!(receive::<Reply>(&theirs).is_err());
        rustix::io::write(&ours, &vec![b' '; PACKET_MAX + 1]).unwrap();
        assert!(receive::<Reply>(&theirs).is_err());
    }

    #[test]
    fn what_is_sealed_stays() {
        let file = as_file(&1).unwrap();
        assert!(rustix::io::write(&file, b"2").is_err());
    }
}
