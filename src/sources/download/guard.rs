//! Requests with which credentials may go: sent elsewhere with care only.

use super::answer::{Answer, Failure, Head, Request, Waited};
use crate::machine::Cancel;
use crate::sources::mirror::without_password;
use crate::sources::source::shown;

/// How a server is asked to which credentials are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sources) struct Guard {
    /// Whether it has to prove who it is.
    pub(in crate::sources) verify: bool,
}

/// How often a guarded request is sent elsewhere.
const REDIRECTIONS: usize = 8;

impl<'a> Answer<'a> {
    /// Asks, and waits for the beginning of the answer.
    pub(super) fn wait(request: &Request<'_>, cancel: &'a Cancel) -> Result<(Head, Self), Waited> {
        if request.guard.is_none() {
            return Self::ask(request, cancel);
        }
        let fails = |reason: String| Err(Waited::Failed(Failure::new(reason, false)));
        let (mut url, mut headers) = (request.url.clone(), request.headers.clone());
        for _ in 0..REDIRECTIONS {
            let now = Request {
                url: &url,
                headers: headers.clone(),
                ..*request
            };
            let (head, answer) = Self::ask(&now, cancel)?;
            let elsewhere = head
                .said
                .location
                .as_deref()
                .filter(|_| matches!(head.status, 301..=303 | 307 | 308));
            let Some(there) = elsewhere else {
                return Ok((head, answer));
            };
            let shown = without_password(&shown(there));
            let next = match url.joined(there) {
                Ok(next) => next,
                Err(reason) => return fails(format!("it redirects to '{shown}': {reason}")),
            };
            let stays_here = next.is_loopback() && !url.is_https();
            if !next.is_https() && !stays_here {
                return fails(format!("it redirects to '{shown}', which is not https"));
            }
            if next.origin() != url.origin() {
                headers.retain(|(name, _)| *name != "Authorization");
            }
            url = next;
        }
        fails("it redirects in a circle".to_owned())
    }
}
