//! One request, on a thread of its own: whoever waits for it can stop waiting.

use std::io::{self, Read as _};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use ureq::http::Response;
use ureq::http::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, LAST_MODIFIED};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};

use crate::machine::{Cancel, Cancelled};
use crate::sources::mirror::without_password;
use crate::sources::url::Url;

/// Bytes that are handed over at once, and how many pieces the thread may be ahead.
const PIECE: usize = 256 << 10;
const AHEAD: usize = 4;

/// How long a server may take to accept a connection, to begin its answer, and between two pieces of it.
const CONNECT: Duration = Duration::from_secs(10);
const BEGIN: Duration = Duration::from_secs(60);
const STALL: Duration = Duration::from_secs(30);

/// How often it is asked whether to go on.
const CANCEL_POLL: Duration = Duration::from_millis(50);

/// What a server calls the present contents of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Validators {
    /// `ETag`.
    pub(super) etag: Option<String>,
    /// `Last-Modified`.
    pub(super) modified: Option<String>,
}

impl Validators {
    /// What a server is told, so that it goes on with the same contents only; see RFC 9110, section 13.1.5.
    pub(super) fn strong(&self) -> Option<&str> {
        let etag = self.etag.as_deref().filter(|etag| !etag.starts_with("W/"));
        etag.or(self.modified.as_deref())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.etag.is_none() && self.modified.is_none()
    }
}

/// The beginning of an answer.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) status: u16,
    pub(super) validators: Validators,
    /// Bytes that follow, if the server says so.
    pub(super) length: Option<u64>,
    /// Where they belong, and the size of the whole: of `Content-Range`.
    pub(super) range: Option<(u64, Option<u64>)>,
}

/// Why there is no answer, or no more of it.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) reason: String,
    /// Whether it may be another time.
    pub(super) passes: bool,
    /// Whether the server could not show who it is.
    pub(super) tls: bool,
}

impl Failure {
    fn new(reason: impl Into<String>, passes: bool) -> Self {
        Self {
            reason: reason.into(),
            passes,
            tls: false,
        }
    }
}

/// A request.
pub(super) struct Request<'a> {
    pub(super) url: &'a Url,
    pub(super) proxy: Option<&'a str>,
    pub(super) headers: Vec<(&'static str, String)>,
}

enum Message {
    Head(Box<Head>),
    Piece(Vec<u8>),
    End,
    Failed(Failure),
}

/// An answer that arrives.
pub(super) struct Answer<'a> {
    messages: Receiver<Message>,
    cancel: &'a Cancel,
}

/// What came of waiting.
pub(super) enum Waited {
    Failed(Failure),
    Cancelled(Cancelled),
}

impl From<Cancelled> for Waited {
    fn from(cancelled: Cancelled) -> Self {
        Self::Cancelled(cancelled)
    }
}

impl<'a> Answer<'a> {
    /// Asks, and waits for the beginning of the answer.
    pub(super) fn wait(request: &Request<'_>, cancel: &'a Cancel) -> Result<(Head, Self), Waited> {
        let (sender, messages) = sync_channel(AHEAD);
        let agent = agent(request).map_err(Waited::Failed)?;
        let (url, headers) = (request.url.as_str().to_owned(), request.headers.clone());
        // Left to its timeouts when the caller gives up.
        std::thread::spawn(move || {
            if let Err(failure) = answer(&agent, &url, &headers, &sender) {
                let _ = sender.send(Message::Failed(failure));
            }
        });
        let mut answer = Self { messages, cancel };
        match answer.next()? {
            Message::Head(head) => Ok((*head, answer)),
            Message::Failed(failure) => Err(Waited::Failed(failure)),
            _ => Err(lost()),
        }
    }

    /// The next piece; `None` at the end.
    pub(super) fn piece(&mut self) -> Result<Option<Vec<u8>>, Waited> {
        match self.next()? {
            Message::Piece(piece) => Ok(Some(piece)),
            Message::End => Ok(None),
            Message::Failed(failure) => Err(Waited::Failed(failure)),
            Message::Head(_) => Err(lost()),
        }
    }

    fn next(&mut self) -> Result<Message, Waited> {
        loop {
            self.cancel.check()?;
            match self.messages.recv_timeout(CANCEL_POLL) {
                Ok(message) => return Ok(message),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(lost()),
            }
        }
    }
}

fn lost() -> Waited {
    Waited::Failed(Failure::new("the request was lost", true))
}

fn agent(request: &Request<'_>) -> Result<Agent, Failure> {
    let mut config = Agent::config_builder()
        .http_status_as_error(false)
        // Also of those that it redirects to.
        .https_only(request.url.is_https())
        // The authorities that the host trusts, not those that were known when this was built.
        .tls_config(TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build())
        .timeout_connect(Some(CONNECT))
        .timeout_recv_response(Some(BEGIN))
        .timeout_per_read(Some(STALL))
        .user_agent(concat!("machinist/", env!("CARGO_PKG_VERSION")));
    if let Some(proxy) = request.proxy {
        let given = ureq::Proxy::new(proxy);
        let given =
            given.map_err(|error| Failure::new(format!("proxy '{}': {error}", without_password(proxy)), false))?;
        config = config.proxy(Some(given));
    }
    Ok(Agent::new_with_config(config.build()))
}

fn answer(
    agent: &Agent,
    url: &str,
    headers: &[(&'static str, String)],
    sender: &SyncSender<Message>,
) -> Result<(), Failure> {
    let mut request = agent.get(url);
    for (name, value) in headers {
        request = request.header(*name, value);
    }
    let response = request.call().map_err(failure)?;
    // Nobody may be waiting any more: then nobody needs the rest.
    if sender.send(Message::Head(Box::new(head(&response)))).is_err() {
        return Ok(());
    }
    let mut body = response.into_body().into_with_config().limit(u64::MAX).reader();
    loop {
        let mut piece = vec![0; PIECE];
        let read = match body.read(&mut piece) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failure(error.into())),
        };
        piece.truncate(read);
        let message = if read == 0 { Message::End } else { Message::Piece(piece) };
        if sender.send(message).is_err() || read == 0 {
            return Ok(());
        }
    }
}

fn head(response: &Response<Body>) -> Head {
    let text = |name| {
        let value = response.headers().get(name)?;
        Some(value.to_str().ok()?.trim().to_owned())
    };
    Head {
        status: response.status().as_u16(),
        validators: Validators {
            etag: text(ETAG),
            modified: text(LAST_MODIFIED),
        },
        length: text(CONTENT_LENGTH).and_then(|length| length.parse().ok()),
        range: text(CONTENT_RANGE).and_then(|range| content_range(&range)),
    }
}

/// `bytes 100-199/200`, `bytes 100-199/*`.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, size) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, _) = range.split_once('-')?;
    let size = if size == "*" { None } else { Some(size.parse().ok()?) };
    Some((first.parse().ok()?, size))
}

fn failure(error: ureq::Error) -> Failure {
    match error {
        ureq::Error::HostNotFound => Failure::new("its name does not resolve", false),
        ureq::Error::Timeout(ureq::Timeout::PerRead) => {
            Failure::new(format!("nothing came for {} s", STALL.as_secs()), true)
        }
        ureq::Error::Timeout(_) => Failure::new("it did not answer in time", true),
        ureq::Error::RequireHttpsOnly(to) => {
            let to = without_password(&to);
            Failure::new(format!("it redirects to '{to}', which is not https"), false)
        }
        ureq::Error::TooManyRedirects => Failure::new("it redirects in a circle", false),
        ureq::Error::Io(error) => match error.kind() {
            io::ErrorKind::UnexpectedEof => Failure::new("the connection ended in the middle", true),
            io::ErrorKind::ConnectionRefused => Failure::new(error.to_string(), false),
            // What TLS says of the other side.
            io::ErrorKind::InvalidData => Failure {
                tls: true,
                ..Failure::new(error.to_string(), false)
            },
            _ => Failure::new(error.to_string(), true),
        },
        error @ (ureq::Error::Rustls(_) | ureq::Error::Tls(_)) => Failure {
            tls: true,
            ..Failure::new(error.to_string(), false)
        },
        error @ ureq::Error::Protocol(_) => Failure::new(error.to_string(), true),
        error => Failure::new(error.to_string(), false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(content_range("bytes 5-9/*"), Some((5, None)));
        for bad in [
            "",
            "bytes */10",
            "bytes 5-9",
            "items 5-9/10",
            "bytes x-9/10",
            "bytes 5-9/x",
        ] {
            assert_eq!(content_range(bad), None, "{bad}");
        }
    }

    #[test]
    fn only_strong_validators_are_for_resuming() {
        let validators = |etag: Option<&str>, modified: Option<&str>| Validators {
            etag: etag.map(str::to_owned),
            modified: modified.map(str::to_owned),
        };
        assert_eq!(validators(Some("\"a\""), Some("Mon")).strong(), Some("\"a\""));
        assert_eq!(validators(Some("W/\"a\""), Some("Mon")).strong(), Some("Mon"));
        assert_eq!(validators(Some("W/\"a\""), None).strong(), None);
    }
}
