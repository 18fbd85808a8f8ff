//! An image in a registry, see the distribution specification of the OCI: manifests by tag or digest, the rest by digest.
//!
//! Nothing is believed but what adds up to a digest that was known before; a tag is believed of a registry that has proved
//! who it is, or that is on this host. Credentials go to the registry and to where it says that tokens are had, over https.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::fs::File;

use serde::Deserialize;

use super::auth::{self, Challenge, Login};
use super::blobs::{Blobs, bad, check};
use super::error::OciError;
use super::manifest::{ACCEPTED, Descriptor, MAX_DOCUMENT};
use super::reference::Reference;
use crate::machine::{Cancel, Report};
use crate::sources::digest::Digest;
use crate::sources::download::{Asked, Blob, BlobError, Guard, ask, forget_blob, pins_of};
use crate::sources::source::shown;
use crate::sources::sum::Sum;
use crate::sources::url::Url;
use crate::sources::{CacheUse, Places, SourceError};

/// The longest answer of who gives tokens, in bytes.
const MAX_TOKEN: u64 = 1 << 20;

/// How often it is asked who we are.
const TRIES: u32 = 2;

/// How an image is fetched.
#[derive(Clone, Copy)]
pub(super) struct Way<'a> {
    pub(super) proxy: Option<&'a str>,
    pub(super) cache: CacheUse,
    /// `--tls-verify`
    pub(super) verify: bool,
    pub(super) places: &'a Places,
    pub(super) report: &'a dyn Report,
    pub(super) cancel: &'a Cancel,
}

/// A registry that was asked for an image.
pub(super) struct Registry<'a> {
    reference: &'a Reference,
    image: String,
    way: Way<'a>,
    /// `https://quay.io`
    base: Url,
    login: Option<Login>,
    /// The value of `Authorization`, once it is asked for, and what asks for it.
    authorization: RefCell<Option<String>>,
    challenge: RefCell<Option<String>>,
}

#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
}

impl<'a> Registry<'a> {
    /// Finds the registry, and the credentials for it.
    pub(super) fn open(reference: &'a Reference, way: Way<'a>) -> Result<Self, SourceError> {
        let image = reference.to_string();
        let base: Url = format!("https://{}", reference.server())
            .parse()
            .map_err(|reason| OciError::Reference {
                given: image.clone(),
                reason,
            })?;
        if let Some(pin) = pins_of(&base, way.places)?.first() {
            return Err(OciError::Pinned {
                given: image,
                pin: pin.clone(),
            }
            .into());
        }
        if !way.verify && !base.is_loopback() {
            return Err(OciError::Insecure {
                host: reference.host().to_owned(),
            }
            .into());
        }
        let login = auth::find(reference, way.report, way.cancel)?;
        let mut registry = Self {
            reference,
            image,
            way,
            base,
            login,
            authorization: RefCell::default(),
            challenge: RefCell::default(),
        };
        if !way.verify && !registry.speaks_tls()? {
            let plain = format!("http://{}", reference.server());
            registry.base = plain
                .parse()
                .map_err(|reason: &str| registry.fails(reason.to_owned(), None))?;
        }
        Ok(registry)
    }

    /// What the tag, or the digest, of the image stands for; its bytes are there already.
    pub(super) fn manifest(&self) -> Result<(Descriptor, Vec<u8>), SourceError> {
        self.way.report.phase(&format!("asking for {}", self.image));
        let asked = self.get(&format!("manifests/{}", self.reference.version()), "the image")?;
        let kind = asked
            .kind
            .as_deref()
            .and_then(|kind| kind.split(';').next())
            .unwrap_or_default();
        let found = Digest::Sha256(Sum::of(&asked.bytes));
        let descriptor = Descriptor {
            // A type that says nothing is no type.
            media_type: if kind.starts_with("application/vnd.") {
                kind.to_owned()
            } else {
                String::new()
            },
            digest: self.reference.digest().unwrap_or(found).to_string(),
            ..Descriptor::default()
        };
        check(&asked.bytes, &descriptor, &self.image, "the manifest")?;
        Ok((descriptor, asked.bytes))
    }

    fn guard(&self) -> Guard {
        Guard {
            verify: self.way.verify,
        }
    }

    fn url(&self, rest: &str) -> Result<Url, SourceError> {
        let text = format!("{}/v2/{}/{rest}", self.base, self.reference.name());
        text.parse().map_err(|reason: &str| self.fails(reason.to_owned(), None))
    }

    fn fails(&self, reason: String, hint: Option<String>) -> SourceError {
        OciError::Registry {
            image: self.image.clone(),
            reason,
            hint,
        }
        .into()
    }

    fn speaks_tls(&self) -> Result<bool, SourceError> {
        let way = self.way;
        let url: Url = format!("{}/v2/", self.base)
            .parse()
            .map_err(|reason: &str| self.fails(reason.to_owned(), None))?;
        let asked = ask(&url, &[], self.guard(), way.proxy, MAX_DOCUMENT, way.cancel);
        way.cancel.check()?;
        Ok(asked.is_ok())
    }

    fn headers(&self) -> Vec<(&'static str, String)> {
        let authorization = self.authorization.borrow().clone();
        authorization
            .map(|value| ("Authorization", value))
            .into_iter()
            .collect()
    }

    fn get(&self, rest: &str, what: &str) -> Result<Asked, SourceError> {
        let (url, way) = (self.url(rest)?, self.way);
        for tries in 1.. {
            let mut headers = self.headers();
            headers.push(("Accept", format!("{ACCEPTED}, */*")));
            let asked = ask(&url, &headers, self.guard(), way.proxy, MAX_DOCUMENT, way.cancel);
            let asked = asked.map_err(|error| self.explain(error))?;
            match asked.status {
                200 => return Ok(asked),
                401 if tries < TRIES => {
                    *self.challenge.borrow_mut() = asked.challenge;
                    self.log_in()?;
                }
                status => return Err(self.refused(status, what)),
            }
        }
        Err(self.refused(401, what))
    }

    /// What the way to the registry is to people.
    fn explain(&self, error: SourceError) -> SourceError {
        match error {
            SourceError::Download { reason, tls: true, .. } if self.base.is_loopback() && self.way.verify => self
                .fails(
                    reason,
                    Some("if it is to be trusted as it is on this host: `--tls-verify=no`".to_owned()),
                ),
            error => error,
        }
    }

    fn refused(&self, status: u16, what: &str) -> SourceError {
        let host = self.reference.host();
        let reason = match status {
            404 => format!("it has not {what} (HTTP status 404)"),
            401 | 403 => format!("it does not give {what} to us (HTTP status {status})"),
            429 => "it was asked too often by now (HTTP status 429)".to_owned(),
            status => format!("it answers with HTTP status {status}"),
        };
        let hint = match (status, &self.login) {
            // Docker's answers so for a name that there is not, too.
            (401 | 403 | 429, None) => {
                format!("check the name, or log in with `podman login {host}` or `skopeo login {host}`")
            }
            (401 | 403, Some(_)) => format!("check the name, and the credentials that are kept for '{host}'"),
            (404, _) => "check the name and the tag".to_owned(),
            _ => "try again in a while".to_owned(),
        };
        self.fails(reason, Some(hint))
    }

    /// Does what the registry asks for.
    fn log_in(&self) -> Result<(), SourceError> {
        let challenge = self.challenge.borrow().as_deref().and_then(Challenge::parse);
        let authorization = match challenge {
            None => return Err(self.refused(401, "the image")),
            Some(Challenge::Basic) => match &self.login {
                Some(login) if self.base.is_https() || self.base.is_loopback() => login.basic(),
                _ => return Err(self.refused(401, "the image")),
            },
            Some(Challenge::Bearer { realm, service, scope }) => {
                self.token(&realm, service.as_deref(), scope.as_deref())?
            }
        };
        *self.authorization.borrow_mut() = Some(authorization);
        Ok(())
    }

    fn token(&self, realm: &str, service: Option<&str>, scope: Option<&str>) -> Result<String, SourceError> {
        let pull = format!("repository:{}:pull", self.reference.name());
        let mut query = format!("scope={}", escaped(scope.unwrap_or(&pull)));
        if let Some(service) = service {
            query = format!("service={}&{query}", escaped(service));
        }
        let joint = if realm.contains('?') { '&' } else { '?' };
        let url: Result<Url, _> = format!("{realm}{joint}{query}").parse();
        // Only a registry on this host may have tokens given by http, on this host.
        let is_safe = |url: &Url| url.is_https() || (url.is_loopback() && !self.base.is_https());
        let Some(url) = url.ok().filter(is_safe) else {
            let reason = format!(
                "it wants credentials to be sent to '{}', which is not https",
                shown(realm)
            );
            return Err(self.fails(reason, None));
        };
        let login = self.login.as_ref().map(|login| ("Authorization", login.basic()));
        let headers: Vec<_> = login.into_iter().collect();
        let way = self.way;
        let asked = ask(&url, &headers, self.guard(), way.proxy, MAX_TOKEN, way.cancel)?;
        if asked.status != 200 {
            return Err(self.refused(asked.status, "a token"));
        }
        let token: Option<Token> = serde_json::from_slice(&asked.bytes).ok();
        let token = token.and_then(|token| token.token.or(token.access_token));
        let token = token.filter(|token| !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()));
        let token = token.ok_or_else(|| self.fails("who gives its tokens has given none".to_owned(), None))?;
        Ok(format!("Bearer {token}"))
    }
}

impl Blobs for Registry<'_> {
    fn image(&self) -> &str {
        &self.image
    }

    fn document(&self, descriptor: &Descriptor, what: &str, is_config: bool) -> Result<Vec<u8>, SourceError> {
        let digest = descriptor.sum().map_err(|reason| bad(&self.image, what, reason))?;
        let place = if is_config { "blobs" } else { "manifests" };
        Ok(self.get(&format!("{place}/{digest}"), what)?.bytes)
    }

    fn layer(&self, descriptor: &Descriptor, what: &str) -> Result<(File, Digest), SourceError> {
        let digest = descriptor.sum().map_err(|reason| bad(&self.image, what, reason))?;
        let (url, way) = (self.url(&format!("blobs/{digest}"))?, self.way);
        // What is kept is known by its SHA-256 sum.
        let sum = match digest {
            Digest::Sha256(sum) => Some(sum),
            Digest::Sha512(_) => None,
        };
        for tries in 1..=TRIES {
            let blob = Blob {
                url: &url,
                headers: &self.headers(),
                guard: self.guard(),
                proxy: way.proxy,
                sum,
                size: descriptor.size,
                called: what,
            };
            match blob.fetch(way.cache, way.places, way.report, way.cancel) {
                Ok(file) => return Ok((file, digest)),
                // Tokens are good for some minutes.
                Err(BlobError::Status(401)) if tries < TRIES && self.challenge.borrow().is_some() => self.log_in()?,
                Err(BlobError::Status(404)) => {
                    return Err(OciError::Missing {
                        image: self.image.clone(),
                        what: what.to_owned(),
                        digest: shown(&descriptor.digest),
                    }
                    .into());
                }
                Err(BlobError::Status(status)) => return Err(self.refused(status, what)),
                Err(BlobError::Other(found)) => {
                    return Err(OciError::Digest {
                        image: self.image.clone(),
                        what: what.to_owned(),
                        wanted: Box::new(digest),
                        found: Box::new(Digest::Sha256(found)),
                    }
                    .into());
                }
                Err(BlobError::Source(error)) => return Err(self.explain(error)),
            }
        }
        Err(self.refused(401, what))
    }

    fn forget(&self, descriptor: &Descriptor) {
        if let Ok(Digest::Sha256(sum)) = descriptor.sum()
            && self.way.cache != CacheUse::Skip
        {
            forget_blob(sum, self.way.places, self.way.report, self.way.cancel);
        }
    }
}

/// As a part of what comes behind `?` in an address.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}
