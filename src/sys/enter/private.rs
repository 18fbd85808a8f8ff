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
/// The longest answer that is read, in bytes; the specification allows 128 MiB.
const ANSWER_MAX: usize = 1 << 20;
/// The longest signal.
const SIGNAL_MAX: usize = 32 << 10;
/// How many messages wait to be looked at.
const QUEUE_MAX: NonZeroUsize = NonZeroUsize::new(1024).unwrap();
/// The longest answer to our introduction, in bytes.
const GREETING_MAX: usize = 256;
/// What comes before the header's fields: byte order, type, flags, version, length of the body, serial, length of the fields.
const FIXED: usize = 16;
/// The type of message that is a signal.
const SIGNAL: u8 = 4;
/// Codes of header fields.
const PATH: u8 = 1;
const MEMBER: u8 = 3;
const SENDER: u8 = 7;
const SYSTEMD: &[u8] = b"org.freedesktop.systemd1";
/// As user 0, with descriptors.
const INTRODUCTION: &[u8] = b"\0AUTH EXTERNAL 30\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n";

/// Begins the conversation on a socket that is connected to systemd. It is non-blocking. Of all that systemd tells, only
/// what is about jobs and about the unit at this path gets through.
pub(super) async fn converse(socket: OwnedFd, unit: &str) -> zbus::Result<Connection> {
    let stream = UnixStream::from_std(socket.into())?;
    let introduced = tokio::time::timeout(CALL_TIMEOUT, introduce(&stream)).await;
    let guid = introduced.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    zbus::connection::Builder::authenticated_socket(Stream(Arc::new(stream), unit.to_owned()), guid)
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
struct Stream(Arc<UnixStream>, String);

impl Socket for Stream {
    type ReadHalf = Reader;
    type WriteHalf = Writer;

    fn split(self) -> Split<Reader, Writer> {
        let reader = Reader {
            stream: Arc::clone(&self.0),
            unit: self.1,
            message: Vec::new(),
            taken: 0,
        };
        Split::new(reader, Writer(self.0))
    }
}

#[derive(Debug)]
struct Reader {
    stream: Arc<UnixStream>,
    /// The path of the unit that matters.
    unit: String,
    /// One whole message, of which so much was handed on.
    message: Vec<u8>,
    taken: usize,
}

#[async_trait]
impl ReadHalf for Reader {
    async fn recvmsg(&mut self, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        if self.taken == self.message.len() {
            self.message = next_message(&self.stream, &self.unit).await?;
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

/// Reads up to the next message that matters, and makes its sender's name one that zbus takes.
async fn next_message(stream: &UnixStream, unit: &str) -> io::Result<Vec<u8>> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    loop {
        let mut message = vec![0; FIXED];
        fill(stream, &mut message).await?;
        let (body, fields) = (
            number(&message, 4).ok_or_else(invalid)?,
            number(&message, 12).ok_or_else(invalid)?,
        );
        let length = aligned(FIXED.saturating_add(fields), 8).saturating_add(body);
        let is_signal = message[1] == SIGNAL;
        if is_signal && length > SIGNAL_MAX {
            skip(stream, length - FIXED).await?;
            continue;
        }
        if length > ANSWER_MAX {
            return Err(invalid());
        }
        message.resize(length, 0);
        fill(stream, &mut message[FIXED..]).await?;
        let header = Header::of(&message, FIXED + fields).ok_or_else(invalid)?;
        let matters = header.path == Some(unit.as_bytes()) || header.member == Some(b"JobRemoved");
        let place = header.systemd_as_sender;
        if is_signal && !matters {
            continue;
        }
        if let Some(place) = place {
            message[place] = b':';
        }
        return Ok(message);
    }
}

/// Reads what nobody looks at.
async fn skip(stream: &UnixStream, mut count: usize) -> io::Result<()> {
    let mut buffer = vec![0; SIGNAL_MAX];
    while count > 0 {
        let part = count.min(buffer.len());
        fill(stream, &mut buffer[..part]).await?;
        count -= part;
    }
    Ok(())
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

/// What counts of a message's header.
#[derive(Debug, Default, PartialEq, Eq)]
struct Header<'a> {
    path: Option<&'a [u8]>,
    member: Option<&'a [u8]>,
    /// Where systemd's name begins, if it is the sender.
    systemd_as_sender: Option<usize>,
}

impl<'a> Header<'a> {
    /// Reads the fields, which end there; `None` if they are broken. They are structures of a code and a variant, which
    /// holds a string (`s`, `o`), a signature (`g`) or a number (`u`).
    fn of(message: &'a [u8], end: usize) -> Option<Self> {
        let mut header = Self::default();
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
                    let text = message.get(at..at.checked_add(length)?)?;
                    match code {
                        PATH => header.path = Some(text),
                        MEMBER => header.member = Some(text),
                        SENDER if text == SYSTEMD => header.systemd_as_sender = Some(at),
                        _ => {}
                    }
                    at += length + 1;
                }
                b'g' => at += usize::from(*message.get(at)?) + 2,
                b'u' => at += 4,
                _ => return None,
            }
        }
        Some(header)
    }
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

    fn header(message: &[u8]) -> Option<Header<'_>> {
        Header::of(message, FIXED + number(message, 12).unwrap())
    }

    fn place(message: &[u8]) -> Option<usize> {
        header(message).unwrap().systemd_as_sender
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
        let bytes = message(None);
        let header = header(&bytes).unwrap();
        assert_eq!(
            (header.path, header.member),
            (Some(&b"/a/path"[..]), Some(&b"Member"[..]))
        );
    }

    #[test]
    fn broken_messages_have_no_place() {
        let mut whole = message(Some(":rg.freedesktop.systemd1"));
        let end = FIXED + number(&whole, 12).unwrap();
        for length in 0..whole.len() {
            let _ = Header::of(&whole[..length], end);
            assert_eq!(Header::of(&whole[..length], usize::MAX), None);
        }
        for place in 0..whole.len() {
            let before = std::mem::replace(&mut whole[place], 0xff);
            let _ = Header::of(&whole, end);
            whole[place] = before;
        }
        assert_eq!(number(b"x\0\0\0\0\0\0\0", 4), None);
        assert_eq!(number(b"B\0\0\0\0\0\x01\0", 4), Some(256));
    }

    #[tokio::test]
    async fn what_nobody_waits_for_is_not_kept() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let signal = |path: &str, member: &str, body: &str| {
            let signal = zbus::Message::signal(path.to_owned(), "org.example.Interface", member.to_owned());
            signal.build(&body).unwrap().data().bytes().to_vec()
        };
        let wanted = [
            signal("/m", "JobRemoved", "j"),
            signal("/unit", "PropertiesChanged", "p"),
        ];
        let long = "x".repeat(SIGNAL_MAX);
        let all = [
            signal("/m", "UnitNew", "u"),
            wanted[0].clone(),
            signal("/unit", "PropertiesChanged", &long),
            wanted[1].clone(),
        ]
        .concat();
        let write = async {
            let mut left = all.as_slice();
            while !left.is_empty() {
                let sent = theirs
                    .async_io(Interest::WRITABLE, || theirs.try_write(left))
                    .await
                    .unwrap();
                left = &left[sent..];
            }
        };
        let read = async {
            for wanted in &wanted {
                assert_eq!(&next_message(&ours, "/unit").await.unwrap(), wanted);
            }
        };
        tokio::join!(write, read);
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
            assert!(
                converse(ours.into_std().unwrap().into(), "/unit").await.is_err(),
                "{answer}"
            );
        }
    }
}
