//! One request, on a thread of its own: whoever waits for it can stop waiting.

use std::io::{self, Read as _};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use ureq::http::Response;
use ureq::http::header::{
    CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, LAST_MODIFIED, LOCATION, WWW_AUTHENTICATE,
};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::guard::Guard;
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

/// The least that has to come in that time: a server that trickles is as one that stalls.
const PACE: (u64, Duration) = (64 << 10, Duration::from_secs(60));

/// How often it is asked whether to go on.
const CANCEL_POLL: Duration = Duration::from_millis(50);

/// What a server calls the present contents of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Validators {
    /// `ETag`.
    pub(super) etag: Option<String>,
    /// `Last-Modified`.
    pub(super) modified: Option<String>,
    /// Bytes of the whole.
    #[serde(default)]
    pub(super) size: Option<u64>,
}

impl Validators {
    /// What a server is told, so that it goes on with the same contents only; see RFC 9110, section 13.1.5: of a file with
    /// a weak `ETag`, the time says nothing more.
    pub(super) fn strong(&self) -> Option<&str> {
        match self.etag.as_deref() {
            Some(etag) => Some(etag).filter(|etag| !etag.starts_with("W/")),
            None => self.modified.as_deref(),
        }
    }

    /// Whether `other` cannot be of the same contents. Servers and proxies that know ranges may not know `If-Range`.
    pub(super) fn contradicts(&self, other: &Self) -> bool {
        let size = self.size.is_some() && other.size.is_some() && self.size != other.size;
        let named = match (&self.etag, &other.etag, &self.modified, &other.modified) {
            (Some(one), Some(other), ..) | (_, _, Some(one), Some(other)) => one != other,
            _ => false,
        };
        size || named
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
    /// Where they belong: of `Content-Range`. The size of the whole is among the validators.
    pub(super) first: Option<u64>,
    /// Of a registry.
    pub(super) said: Said,
}

/// What matters in the answers of registries only.
#[derive(Clone, Debug, Default)]
pub(super) struct Said {
    /// `Content-Type`
    pub(super) kind: Option<String>,
    /// `Location`
    pub(super) location: Option<String>,
    /// `WWW-Authenticate`
    pub(super) challenge: Option<String>,
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
    pub(super) fn new(reason: impl Into<String>, passes: bool) -> Self {
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
    /// When the whole answer has to be there.
    pub(super) deadline: Option<Instant>,
    /// Whether it goes elsewhere over https only, or within this host, and without credentials.
    pub(super) guard: Option<Guard>,
}

enum Message {
    Head(Box<Head>),
    Piece(Vec<u8>),
    End,
    Failed(Failure),
}

impl Message {
    /// Bytes of the file that it has.
    fn bytes(&self) -> usize {
        match self {
            Self::Piece(piece) => piece.len(),
            _ => 0,
        }
    }
}

/// An answer that arrives.
pub(super) struct Answer<'a> {
    messages: Receiver<Message>,
    cancel: &'a Cancel,
    deadline: Option<Instant>,
    pace: Pace,
}

/// How much has come of late.
#[derive(Default)]
struct Pace {
    /// Without the time in which nobody waited: files are slow at times, too.
    waited: Duration,
    bytes: u64,
}

impl Pace {
    /// Counts what has come after a while; whether that is too little by now.
    fn is_trickle(&mut self, bytes: usize, waited: Duration) -> bool {
        let (least, time) = PACE;
        self.bytes += bytes as u64;
        self.waited += waited;
        if self.waited < time {
            return false;
        }
        std::mem::take(self).bytes < least
    }
}

/// What came of waiting.
pub(super) enum Waited {
    Failed(Failure),
    Cancelled(Cancelled),
}

impl Waited {
    /// An answer that is larger than it may be.
    pub(super) fn too_long(most: u64) -> Self {
        Self::Failed(Failure::new(format!("it has more than {most} bytes"), false))
    }

    /// One that ended early.
    pub(super) fn cut() -> Self {
        Self::Failed(Failure::new("the connection ended in the middle", true))
    }
}

impl From<Cancelled> for Waited {
    fn from(cancelled: Cancelled) -> Self {
        Self::Cancelled(cancelled)
    }
}

impl<'a> Answer<'a> {
    /// Asks once, and waits for the beginning of the answer.
    pub(super) fn ask(request: &Request<'_>, cancel: &'a Cancel) -> Result<(Head, Self), Waited> {
        let (sender, messages) = sync_channel(AHEAD);
        let agent = agent(request).map_err(Waited::Failed)?;
        let (url, headers) = (request.url.as_str().to_owned(), request.headers.clone());
        // Left to its timeouts when the caller gives up.
        std::thread::spawn(move || {
            if let Err(failure) = answer(&agent, &url, &headers, &sender) {
                let _ = sender.send(Message::Failed(failure));
            }
        });
        let mut answer = Self {
            messages,
            cancel,
            deadline: request.deadline,
            pace: Pace::default(),
        };
        match answer.next()? {
            Message::Head(head) => {
                answer.pace = Pace::default();
                Ok((*head, answer))
            }
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
            let before = Instant::now();
            let message = match self.messages.recv_timeout(CANCEL_POLL) {
                Ok(message) => Some(message),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return Err(lost()),
            };
            let (now, came) = (Instant::now(), message.as_ref().map_or(0, Message::bytes));
            // Whoever was stopped meanwhile did not wait longer than that.
            let waited = now.saturating_duration_since(before).min(CANCEL_POLL * 2);
            if matches!(message, None | Some(Message::Piece(_))) {
                if self.deadline.is_some_and(|deadline| now >= deadline) {
                    return Err(Waited::Failed(Failure::new("it did not answer in time", false)));
                }
                if self.pace.is_trickle(came, waited) {
                    let reason = format!("less than {} KiB came in {} s", PACE.0 >> 10, PACE.1.as_secs());
                    return Err(Waited::Failed(Failure::new(reason, true)));
                }
            }
            if let Some(message) = message {
                return Ok(message);
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
        .tls_config(
            TlsConfig::builder()
                .root_certs(RootCerts::PlatformVerifier)
                .disable_verification(
                    request
                        .guard
                        .is_some_and(|guard| !guard.verify && request.url.is_loopback()),
                )
                .build(),
        )
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
    if request.guard.is_some() {
        config = config.max_redirects(0);
        if request.url.is_loopback() {
            // What is for this host is no proxy's business.
            config = config.proxy(None);
        }
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
    let status = response.status().as_u16();
    let length = text(CONTENT_LENGTH).and_then(|length| length.parse().ok());
    let range = text(CONTENT_RANGE).and_then(|range| content_range(&range));
    Head {
        status,
        validators: Validators {
            etag: text(ETAG),
            modified: text(LAST_MODIFIED),
            // What follows is a part of it where there is a range.
            size: if status == 206 {
                range.and_then(|(_, size)| size)
            } else {
                length
            },
        },
        length,
        first: range.map(|(first, _)| first),
        said: Said {
            kind: text(CONTENT_TYPE),
            location: text(LOCATION),
            challenge: text(WWW_AUTHENTICATE),
        },
    }
}

/// First byte and size of the whole: `bytes 100-199/200`, `bytes 100-199/*`.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, size) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let size = if size == "*" { None } else { Some(size.parse().ok()?) };
    (first <= last && size.is_none_or(|size| last < size)).then_some((first, size))
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
            "bytes 5-4/10",
            "bytes 5-10/10",
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
            size: None,
        };
        assert_eq!(validators(Some("\"a\""), Some("Mon")).strong(), Some("\"a\""));
        assert_eq!(validators(None, Some("Mon")).strong(), Some("Mon"));
        assert_eq!(validators(Some("W/\"a\""), Some("Mon")).strong(), None);
        assert_eq!(validators(Some("W/\"a\""), None).strong(), None);
        let contradict = |one: &Validators, other: &Validators| one.contradicts(other);
        let one = validators(Some("\"a\""), Some("Mon"));
        assert!(contradict(&one, &validators(Some("\"b\""), Some("Mon"))));
        assert!(contradict(&one, &validators(None, Some("Tue"))));
        assert!(!contradict(&one, &validators(None, None)));
        let sized = |size| Validators {
            size: Some(size),
            ..one.clone()
        };
        assert!(contradict(&sized(1), &sized(2)) && !contradict(&sized(1), &one));
    }

    #[test]
    fn a_trickle_is_told_from_a_slow_line() {
        let mut pace = Pace::default();
        let (least, half) = (usize::try_from(PACE.0).unwrap(), PACE.1 / 2);
        assert!(!pace.is_trickle(1, half));
        assert!(!pace.is_trickle(least, half));
        assert!(!pace.is_trickle(0, half));
        assert!(pace.is_trickle(least - 1, half));
    }

    #[test]
    fn an_answer_has_a_deadline() {
        let nobody_accepts = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", nobody_accepts.local_addr().unwrap());
        let request = Request {
            url: &url.parse().unwrap(),
            proxy: None,
            headers: Vec::new(),
            deadline: Some(Instant::now()),
            guard: None,
        };
        let waited = Answer::wait(&request, &Cancel::default()).map(drop);
        assert!(matches!(waited, Err(Waited::Failed(Failure { passes: false, .. }))));
    }
}
