//! The name of an image in a registry: `docker://[HOST[:PORT]/]NAME[:TAG][@sha256:HEX]`, or `@sha512:HEX`,
//! as Docker and skopeo read it.

use std::fmt;
use std::str::FromStr;

use super::error::OciError;
use crate::sources::digest::Digest;
use crate::sources::source::shown;

/// Docker's own registry: what it is called, and where it is.
const DOCKER: (&str, &str) = ("docker.io", "registry-1.docker.io");

/// The longest name of an image, as Docker has it.
const MAX_NAME: usize = 255;

/// The name of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// As it is called: `docker.io`, `localhost:5000`.
    host: String,
    /// `library/debian`
    name: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// What credentials are kept for.
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// Where it is asked for.
    pub(super) fn server(&self) -> &str {
        if self.host == DOCKER.0 { DOCKER.1 } else { &self.host }
    }

    /// `library/debian`
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// What it must add up to, if that is said.
    pub(super) fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// What the registry is asked for: a digest, or a tag.
    pub(super) fn version(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.as_deref().unwrap_or("latest").to_owned(),
        }
    }

    /// The last part of its name.
    #[must_use]
    pub fn stem(&self) -> &str {
        self.name.rsplit('/').next().unwrap_or_default()
    }
}

impl FromStr for Reference {
    type Err = OciError;

    /// Reads what comes behind `docker://`.
    fn from_str(text: &str) -> Result<Self, OciError> {
        let bad = |reason| OciError::Reference {
            given: shown(text),
            reason,
        };
        let (rest, digest) = match text.split_once('@') {
            None => (text, None),
            Some((rest, digest)) => {
                let digest = Digest::parse(digest);
                (
                    rest,
                    Some(digest.map_err(|_| bad("behind '@' is no sha256:HEX, nor sha512:HEX"))?),
                )
            }
        };
        let (host, rest) = match rest.split_once('/') {
            Some((host, rest)) if host.contains(['.', ':', '[']) || host == "localhost" => {
                (host.to_ascii_lowercase(), rest)
            }
            _ => (DOCKER.0.to_owned(), rest),
        };
        let host = if host == "index.docker.io" {
            DOCKER.0.to_owned()
        } else {
            host
        };
        if !is_host(&host) {
            return Err(bad("its registry is no HOST or HOST:PORT"));
        }
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) => (name, Some(tag)),
            None => (rest, None),
        };
        if !is_name(name) {
            return Err(bad(
                "a name has small letters and digits, and between them '.', '_', '-' and '/'",
            ));
        }
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(bad(
                "a tag has letters, digits, '.', '_' and '-', and at most 128 of them",
            ));
        }
        let is_official = host == DOCKER.0 && !name.contains('/');
        Ok(Self {
            name: if is_official {
                format!("library/{name}")
            } else {
                name.to_owned()
            },
            host,
            tag: tag.map(str::to_owned),
            digest,
        })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.host == DOCKER.0, self.name.strip_prefix("library/")) {
            (true, Some(name)) => write!(f, "docker://{name}")?,
            (true, None) => write!(f, "docker://{}", self.name)?,
            (false, _) => write!(f, "docker://{}/{}", self.host, self.name)?,
        }
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

fn is_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port)) if address.parse::<std::net::Ipv6Addr>().is_ok() => ("v6", port),
            _ => return false,
        },
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    let is_port = port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
    let sound = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'.';
    is_port && !name.is_empty() && name.len() < 254 && name.bytes().all(sound) && !name.contains("..")
}

fn is_name(name: &str) -> bool {
    let is_end = |c: Option<u8>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let is_part = |part: &str| {
        is_end(part.bytes().next())
            && is_end(part.bytes().last())
            && part.bytes().all(|c| is_end(Some(c)) || matches!(c, b'.' | b'_' | b'-'))
            && !part.contains("..")
    };
    name.len() <= MAX_NAME && name.split('/').all(is_part)
}

/// Whether images can have that tag.
pub(crate) fn is_tag(tag: &str) -> bool {
    let sound = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
    (1..=128).contains(&tag.len()) && tag.bytes().all(sound) && !tag.starts_with(['.', '-'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_docker_reads_them() {
        let hex = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        for (text, server, name, version, shown) in [
            ("debian", "registry-1.docker.io", "library/debian", "latest", "debian"),
            (
                "docker.io/library/debian:trixie",
                "registry-1.docker.io",
                "library/debian",
                "trixie",
                "debian:trixie",
            ),
            (
                "grafana/grafana:12",
                "registry-1.docker.io",
                "grafana/grafana",
                "12",
                "grafana/grafana:12",
            ),
            ("quay.io/a/b/c", "quay.io", "a/b/c", "latest", "quay.io/a/b/c"),
            ("localhost/x:1", "localhost", "x", "1", "localhost/x:1"),
            ("127.0.0.1:5000/x", "127.0.0.1:5000", "x", "latest", "127.0.0.1:5000/x"),
            ("[::1]:5000/x:y", "[::1]:5000", "x", "y", "[::1]:5000/x:y"),
            (
                "Index.Docker.io/busybox",
                "registry-1.docker.io",
                "library/busybox",
                "latest",
                "busybox",
            ),
        ] {
            let reference: Reference = text.parse().unwrap();
            let seen = (reference.server(), reference.name(), reference.version());
            assert_eq!(seen, (server, name, version.to_owned()), "{text}");
            assert_eq!(reference.to_string(), format!("docker://{shown}"));
        }
        let pinned: Reference = format!("quay.io/a:1@sha256:{hex}").parse().unwrap();
        assert_eq!(pinned.version(), format!("sha256:{hex}"));
        assert_eq!(
            (pinned.to_string(), pinned.stem()),
            (format!("docker://quay.io/a:1@sha256:{hex}"), "a")
        );
    }

    #[test]
    fn a_digest_of_either_kind_pins() {
        let hex = "0f".repeat(64);
        let pinned: Reference = format!("quay.io/a@sha512:{hex}").parse().unwrap();
        assert_eq!(pinned.version(), format!("sha512:{hex}"));
        assert_eq!(pinned.to_string(), format!("docker://quay.io/a@sha512:{hex}"));
    }

    #[test]
    fn others_are_refused() {
        for bad in [
            "",
            "/",
            "A/b",
            "a//b",
            "a/../b",
            "a:",
            "a:b:c",
            "a@sha256:1",
            "a@md5:x",
            "x.y:port/a",
            "host..x/a",
            "a b",
            "quay.io/",
            "u@h/x",
            "quay.io/-a",
            "[::g]/x",
            "quay.io/a\n",
            "http://x/y",
            "x.y:70000/a",
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?}");
        }
    }
}
