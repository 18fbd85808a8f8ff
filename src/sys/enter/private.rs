//! A D-Bus connection to a machine's systemd at its private socket, see the D-Bus Specification.
//!
//! systemd signs what it sends there as `org.freedesktop.systemd1`. zbus takes only the names that a bus gives out, so that
//! the first letter of the signature is replaced by a colon before zbus sees it.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::num::NonZeroUsize;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::io::Interest;
use tokio::net::UnixStream;
use zbus::Connection;
use zbus::connection::socket::{ReadHalf, Socket, Split, WriteHalf};
use zbus::export::async_trait::async_trait;

/// How long one call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(25);
/// The longest message that is read, in bytes; the specification allows 128 MiB.
const MESSAGE_MAX: usize = 16 << 20;
/// How many messages wait to be looked at.
const QUEUE_MAX: NonZeroUsize = NonZeroUsize::new(8192).unwrap();
/// The longest answer to our introduction, in bytes.
const GREETING_MAX: usize = 256;
/// What comes before the header's fields: byte order, type, flags, version, length of the body, serial, length of the fields.
const FIXED: usize = 16;
/// The code of the header field SENDER.
const SENDER: u8 = 7;
const SYSTEMD: &[u8] = b"org.freedesktop.systemd1";
/// As user 0, with descriptors.
const INTRODUCTION: &[u8] = b"\0AUTH EXTERNAL 30\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n";

/// Begins the conversation on a socket that is connected to systemd. It is non-blocking.
pub(super) async fn converse(socket: OwnedFd) -> zbus::Result<Connection> {
    let stream = UnixStream::from_std(socket.into())?;
    let introduced = tokio::time::timeout(CALL_TIMEOUT, introduce(&stream)).await;
    let guid = introduced.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    zbus::connection::Builder::authenticated_socket(Stream(Arc::new(stream)), guid)
        .p2p()
        // systemd tells everything on this socket, and what nobody takes holds up the answers behind it.
        .max_queued(QUEUE_MAX)
        .method_timeout(CALL_TIMEOUT)
        .build()
        .await
}

/// Introduces us as the machine's root; returns the id that systemd gives itself.
async fn introduce(stream: &UnixStream) -> zbus::Result<zbus::OwnedGuid> {
    let mut left = INTRODUCTION;
    while !left.is_empty() {
        let sent = stream.async_io(Interest::WRITABLE, || stream.try_write(left)).await?;
        left = &left[sent..];
    }
    // Byte by byte: what follows the two lines are messages already.
    let mut answer = Vec::new();
    while answer.split(|byte| *byte == b'\n').count() <= 2 {
        let mut byte = [0];
        fill(stream, &mut byte).await?;
        answer.extend(byte);
        if answer.len() > GREETING_MAX {
            return Err(strange());
        }
    }
    let answer = String::from_utf8(answer).map_err(|_| strange())?;
    let guid = answer
        .strip_prefix("OK ")
        .and_then(|answer| answer.strip_suffix("\r\nAGREE_UNIX_FD\r\n"))
        .ok_or_else(strange)?;
    Ok(zbus::Guid::try_from(guid)?.to_owned().into())
}

fn strange() -> zbus::Error {
    zbus::Error::Handshake("it does not speak as systemd does".into())
}

/// Reads until the buffer is full.
async fn fill(stream: &UnixStream, buffer: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while filled < buffer.len() {
        stream.readable().await?;
        match stream.try_read(&mut buffer[filled..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The connected socket.
struct Stream(Arc<UnixStream>);

impl Socket for Stream {
    type ReadHalf = Reader;
    type WriteHalf = Writer;

    fn split(self) -> Split<Reader, Writer> {
        let reader = Reader {
            stream: Arc::clone(&self.0),
            message: Vec::new(),
            taken: 0,
        };
        Split::new(reader, Writer(self.0))
    }
}

#[derive(Debug)]
struct Reader {
    stream: Arc<UnixStream>,
    /// One whole message, of which so much was handed on.
    message: Vec<u8>,
    taken: usize,
}

#[async_trait]
impl ReadHalf for Reader {
    async fn recvmsg(&mut self, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        if self.taken == self.message.len() {
            self.message = next_message(&self.stream).await?;
            self.taken = 0;
        }
        let left = &self.message[self.taken..];
        let count = left.len().min(buffer.len());
        buffer[..count].copy_from_slice(&left[..count]);
        self.taken += count;
        // No descriptors are taken from a machine.
        Ok((count, Vec::new()))
    }

    fn can_pass_unix_fd(&self) -> bool {
        true
    }
}

/// Reads one message and makes its sender's name one that zbus takes.
async fn next_message(stream: &UnixStream) -> io::Result<Vec<u8>> {
    let mut message = vec![0; FIXED];
    fill(stream, &mut message).await?;
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let (body, fields) = (
        number(&message, 4).ok_or_else(invalid)?,
        number(&message, 12).ok_or_else(invalid)?,
    );
    let length = aligned(FIXED.saturating_add(fields), 8).saturating_add(body);
    if length > MESSAGE_MAX {
        return Err(invalid());
    }
    message.resize(length, 0);
    fill(stream, &mut message[FIXED..]).await?;
    if let Some(place) = systemd_as_sender(&message, FIXED + fields) {
        message[place] = b':';
    }
    Ok(message)
}

/// A number of 32 bits, in the byte order that the message has.
fn number(message: &[u8], at: usize) -> Option<usize> {
    let bytes = message.get(at..)?.first_chunk()?;
    let number = match message.first()? {
        b'l' => u32::from_le_bytes(*bytes),
        b'B' => u32::from_be_bytes(*bytes),
        _ => return None,
    };
    usize::try_from(number).ok()
}

fn aligned(offset: usize, to: usize) -> usize {
    offset.div_ceil(to).saturating_mul(to)
}

/// Where systemd's name begins, if it is the sender. The header's fields are structures of a code and a variant, which holds
/// a string (`s`, `o`), a signature (`g`) or a number (`u`).
fn systemd_as_sender(message: &[u8], end: usize) -> Option<usize> {
    let mut at = FIXED;
    while at < end {
        at = aligned(at, 8);
        let [code, 1, kind, 0] = *message.get(at..)?.first_chunk()? else {
            return None;
        };
        at += 4;
        match kind {
            b's' | b'o' => {
                let length = number(message, at)?;
                at += 4;
                if code == SENDER && message.get(at..at.checked_add(length)?)? == SYSTEMD {
                    return Some(at);
                }
                at = at.checked_add(length)?.checked_add(1)?;
            }
            b'g' => at += usize::from(*message.get(at)?) + 2,
            b'u' => at += 4,
            _ => return None,
        }
    }
    None
}

#[derive(Debug)]
struct Writer(Arc<UnixStream>);

#[async_trait]
impl WriteHalf for Writer {
    async fn sendmsg(&mut self, buffer: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
        /// The most descriptors that go with one message of ours.
        const FDS_MAX: usize = 3;
        let send = || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            Ok(sendmsg(
                &self.0,
                &[IoSlice::new(buffer)],
                &mut control,
                SendFlags::NOSIGNAL,
            )?)
        };
        self.0.async_io(Interest::WRITABLE, send).await
    }

    async fn close(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn can_pass_unix_fd(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(sender: Option<&str>) -> Vec<u8> {
        let signal = zbus::Message::signal("/a/path", "org.example.Interface", "Member");
        let signal = match sender {
            Some(sender) => signal.sender(sender.to_owned()),
            None => signal,
        };
        signal.build(&("body", 1_u32)).unwrap().data().bytes().to_vec()
    }

    fn place(message: &[u8]) -> Option<usize> {
        systemd_as_sender(message, FIXED + number(message, 12).unwrap())
    }

    #[test]
    fn only_systemds_name_is_replaced() {
        // As systemd would send it: one that zbus does not make itself.
        let mut bytes = message(Some(":rg.freedesktop.systemd1"));
        let at = bytes.windows(4).position(|window| window == b":rg.").unwrap();
        assert_eq!(place(&bytes), None);
        bytes[at] = b'o';
        assert_eq!(place(&bytes), Some(at));
        assert_eq!(place(&message(Some(":1.5"))), None);
        assert_eq!(place(&message(None)), None);
    }

    #[test]
    fn broken_messages_have_no_place() {
        let mut whole = message(Some(":rg.freedesktop.systemd1"));
        let end = FIXED + number(&whole, 12).unwrap();
        for length in 0..whole.len() {
            let _ = systemd_as_sender(&whole[..length], end);
            let _ = systemd_as_sender(&whole[..length], usize::MAX);
        }
        for place in 0..whole.len() {
            let before = std::mem::replace(&mut whole[place], 0xff);
            let _ = systemd_as_sender(&whole, end);
            whole[place] = before;
        }
        assert_eq!(number(b"x\0\0\0\0\0\0\0", 4), None);
        assert_eq!(number(b"B\0\0\0\0\0\x01\0", 4), Some(256));
    }

    #[tokio::test]
    async fn who_is_not_systemd_is_told_apart() {
        for answer in [
            "OK 0123\r\nAGREE_UNIX_FD\r\n",
            "REJECTED EXTERNAL\r\nERROR\r\n",
            &"x".repeat(1000),
        ] {
            let (ours, theirs) = UnixStream::pair().unwrap();
            theirs.writable().await.unwrap();
            theirs.try_write(answer.as_bytes()).unwrap();
            assert!(converse(ours.into_std().unwrap().into()).await.is_err(), "{answer}");
        }
    }
}
