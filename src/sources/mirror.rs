//! Asks a mirror for the Release file of a suite, within bounds of time and size.
//!
//! Nothing fetched here is trusted: it tells whether the mirror and the suite exist, and serves as the cache's key. The
//! bootstrapper fetches it again and checks its signature.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use sha2::{Digest, Sha256};
use ureq::tls::{RootCerts, TlsConfig};

use super::{Distro, SourceError};
use crate::machine::{Cancel, Cancelled};

/// Debian's public mirror.
const DEBIAN: &str = "http://deb.debian.org/debian";
/// Ubuntu's public mirror for amd64 and i386.
const UBUNTU: &str = "http://archive.ubuntu.com/ubuntu";
/// Ubuntu's public mirror for every other architecture.
const UBUNTU_PORTS: &str = "http://ports.ubuntu.com/ubuntu-ports";
/// The largest Release file taken, in bytes; Debian's are around 200 KB.
const RELEASE_MAX: u64 = 8 << 20;
/// How long a mirror may take to accept a connection, and to answer altogether.
const CONNECT: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(40);

/// A suite's Release file as a mirror has it at present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Release {
    /// SHA-256 of the whole file, in hexadecimal.
    pub(crate) hash: String,
    /// `Version:`, such as `13.1` or `24.04`; rolling suites have none.
    pub(crate) version: Option<String>,
}

impl Release {
    /// Stands for a Release file that nobody has fetched: that of a recent suite.
    pub(crate) fn unknown() -> Self {
        Self {
            hash: String::new(),
            version: None,
        }
    }
}

/// The public mirror of a distribution.
pub(crate) fn default_mirror(distro: Distro, arch: &str) -> &'static str {
    match (distro, arch) {
        (Distro::Debian, _) => DEBIAN,
        (Distro::Ubuntu, "amd64" | "i386") => UBUNTU,
        (Distro::Ubuntu, _) => UBUNTU_PORTS,
    }
}

/// The directory that a `file:` or `copy:` mirror is.
pub(crate) fn local_path(mirror: &str) -> Option<PathBuf> {
    let rest = mirror.strip_prefix("file:").or_else(|| mirror.strip_prefix("copy:"))?;
    let path = rest.strip_prefix("//").unwrap_or(rest);
    Some(PathBuf::from(path))
}

/// A URL as it may be shown: without a password.
pub(crate) fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let host = authority.rsplit('@').next().unwrap_or_default();
    format!("{scheme}://{host}{path}")
}

/// Fetches `MIRROR/dists/SUITE/InRelease`, or `Release` where there is none.
pub(crate) fn fetch_release(
    distro: Distro,
    suite: &str,
    mirror: &str,
    proxy: Option<&str>,
    cancel: &Cancel,
) -> Result<Release, SourceError> {
    let shown = without_password(mirror);
    let unreachable = |reason: String| SourceError::Unreachable {
        mirror: shown.clone(),
        reason,
    };
    for name in ["InRelease", "Release"] {
        let url = format!("{}/dists/{suite}/{name}", mirror.trim_end_matches('/'));
        let answer = match local_path(mirror) {
            Some(root) => read_local(&root.join("dists").join(suite).join(name)),
            None => get(url.clone(), proxy.map(str::to_owned), cancel)?,
        };
        match answer {
            Answer::Found(bytes) => {
                return parse(&bytes).ok_or_else(|| SourceError::NoRelease {
                    distro,
                    url: without_password(&url),
                    mirror: shown.clone(),
                });
            }
            Answer::Missing => {}
            Answer::Failed(reason) => return Err(unreachable(reason)),
        }
    }
    if let Some(root) = local_path(mirror).filter(|root| !root.join("dists").is_dir()) {
        return Err(unreachable(format!("'{}' has no directory 'dists'", root.display())));
    }
    Err(SourceError::UnknownSuite {
        distro,
        suite: suite.to_owned(),
        mirror: shown,
    })
}

enum Answer {
    Found(Vec<u8>),
    Missing,
    Failed(String),
}

fn read_local(path: &Path) -> Answer {
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?.take(RELEASE_MAX).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) => Answer::Found(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Answer::Missing,
        Err(error) => Answer::Failed(format!("cannot read '{}': {error}", path.display())),
    }
}

/// Asks on a thread of its own, which is left to its timeouts when the caller gives up.
fn get(url: String, proxy: Option<String>, cancel: &Cancel) -> Result<Answer, Cancelled> {
    let (sender, answers) = channel();
    std::thread::spawn(move || {
        let _ = sender.send(get_blocking(&url, proxy.as_deref()));
    });
    loop {
        cancel.check()?;
        match answers.recv_timeout(Duration::from_millis(50)) {
            Ok(answer) => return Ok(answer),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(Answer::Failed("the request was lost".to_owned())),
        }
    }
}

fn get_blocking(url: &str, proxy: Option<&str>) -> Answer {
    let mut config = ureq::Agent::config_builder()
        .tls_config(TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build())
        .timeout_connect(Some(CONNECT))
        .timeout_global(Some(ANSWER))
        .user_agent(concat!("machinist/", env!("CARGO_PKG_VERSION")));
    if let Some(proxy) = proxy {
        match ureq::Proxy::new(proxy) {
            Ok(proxy) => config = config.proxy(Some(proxy)),
            Err(error) => return Answer::Failed(format!("proxy '{}': {error}", without_password(proxy))),
        }
    }
    let answer = ureq::Agent::new_with_config(config.build())
        .get(url)
        .call()
        .and_then(|mut response| response.body_mut().with_config().limit(RELEASE_MAX).read_to_vec());
    match answer {
        Ok(bytes) => Answer::Found(bytes),
        Err(ureq::Error::StatusCode(404 | 410)) => Answer::Missing,
        Err(ureq::Error::StatusCode(code)) => Answer::Failed(format!("it answers with HTTP status {code}")),
        Err(ureq::Error::HostNotFound) => Answer::Failed("its name does not resolve".to_owned()),
        Err(ureq::Error::Timeout(_)) => Answer::Failed("it did not answer in time".to_owned()),
        Err(ureq::Error::Io(error)) => Answer::Failed(error.to_string()),
        Err(error) => Answer::Failed(error.to_string()),
    }
}

/// `None` if the file has not the fields that every Release file has, see `DebianRepository/Format`.
fn parse(bytes: &[u8]) -> Option<Release> {
    let text = String::from_utf8_lossy(bytes);
    let field = |name: &str| {
        text.lines()
            .take(200)
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(|value| value.trim().to_owned())
    };
    let named = field("Suite").or_else(|| field("Codename")).is_some();
    (named && field("Architectures").is_some()).then(|| Release {
        hash: hex(&Sha256::digest(bytes)),
        version: field("Version").filter(|version| version.starts_with(|c: char| c.is_ascii_digit())),
    })
}

/// Bytes in lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;

    use super::*;

    const RELEASE: &str = "Origin: Test\nSuite: stable\nVersion: 13.1\nCodename: trixie\nArchitectures: amd64\n";

    /// Answers each request with what `answer` makes of its path.
    fn serve(answer: fn(&str) -> (u16, &'static str)) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/debian", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let path = lines.next().unwrap().unwrap().split(' ').nth(1).unwrap().to_owned();
                while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
                let (code, body) = answer(&path);
                let _ = write!(
                    stream,
                    "HTTP/1.1 {code} x\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                    body.len()
                );
            }
        });
        url
    }

    fn fetch(mirror: &str, suite: &str) -> Result<Release, SourceError> {
        fetch_release(Distro::Debian, suite, mirror, None, &Cancel::default())
    }

    #[test]
    fn tells_what_is_wrong_with_a_mirror() {
        let mirror = serve(|path| match path {
            "/debian/dists/trixie/InRelease" | "/debian/dists/old/Release" => (200, RELEASE),
            "/debian/dists/portal/InRelease" => (200, "<html>please log in</html>"),
            "/debian/dists/broken/InRelease" => (503, ""),
            _ => (404, ""),
        });
        let release = fetch(&mirror, "trixie").unwrap();
        assert_eq!(release.version.as_deref(), Some("13.1"));
        assert_eq!(release.hash.len(), 64);
        assert_eq!(fetch(&mirror, "old").unwrap(), release);
        assert!(matches!(
            fetch(&mirror, "nosuch"),
            Err(SourceError::UnknownSuite { .. })
        ));
        assert!(matches!(fetch(&mirror, "portal"), Err(SourceError::NoRelease { .. })));
        let error = fetch(&mirror, "broken").unwrap_err();
        assert!(
            error.to_string().ends_with("it answers with HTTP status 503"),
            "{error}"
        );
    }

    #[test]
    fn nobody_listening_is_unreachable() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let error = fetch(&format!("http://user:secret@127.0.0.1:{port}"), "sid").unwrap_err();
        assert!(matches!(error, SourceError::Unreachable { .. }), "{error}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }

    #[test]
    fn local_mirrors_are_read_directly() {
        let dir = tempfile::tempdir().unwrap();
        let mirror = format!("file://{}", dir.path().display());
        assert!(matches!(fetch(&mirror, "sid"), Err(SourceError::Unreachable { .. })));
        std::fs::create_dir_all(dir.path().join("dists/sid")).unwrap();
        assert!(matches!(fetch(&mirror, "sid"), Err(SourceError::UnknownSuite { .. })));
        std::fs::write(dir.path().join("dists/sid/Release"), RELEASE).unwrap();
        assert!(fetch(&mirror, "sid").is_ok());
    }
}
