//! The address of a download, as far as it has to be understood here.

use std::fmt;
use std::str::FromStr;

use super::mirror::without_password;

/// The longest that is taken, in bytes: servers refuse longer ones.
const MAX_LENGTH: usize = 8192;

/// An address that begins with `http://` or `https://`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url(String);

impl FromStr for Url {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let (scheme, rest) = text.split_once("://").ok_or("it has no scheme")?;
        if !["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
            return Err("only http and https are known");
        }
        if text.len() > MAX_LENGTH {
            return Err("it is too long");
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("it has characters that have to be written as %XX");
        }
        let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
        if host.rsplit('@').next().unwrap_or_default().is_empty() {
            return Err("it names no host");
        }
        // What comes behind '#' is for the one who asks.
        let sent = rest.split('#').next().unwrap_or_default();
        Ok(Self(format!("{}://{sent}", scheme.to_ascii_lowercase())))
    }
}

impl Url {
    /// As it is asked for.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the server has to prove who it is.
    pub(super) fn is_https(&self) -> bool {
        self.0.starts_with("https://")
    }

    /// The last name of its path; the host, if there is none.
    #[must_use]
    pub fn file_name(&self) -> &str {
        let path = self.path();
        let name = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        name.rsplit('@').next().unwrap_or_default()
    }

    /// The file `name` in the same directory.
    pub(super) fn beside(&self, name: &str) -> Self {
        let path = self.path();
        let start = "https://".len();
        let directory = match path.get(start..).and_then(|rest| rest.rfind('/')) {
            Some(end) => &path[..start + end],
            None => path,
        };
        Self(format!("{directory}/{name}"))
    }

    /// Its path with an ending more.
    pub(super) fn with_ending(&self, ending: &str) -> Self {
        Self(format!("{}{ending}", self.path()))
    }

    /// Without what is asked of the file.
    fn path(&self) -> &str {
        self.0.split('?').next().unwrap_or_default()
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&without_password(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_found() {
        let url: Url = "HTTPS://user:secret@example.org:8443/a/b.tar.xz?x=/1#top"
            .parse()
            .unwrap();
        assert_eq!(url.to_string(), "https://example.org:8443/a/b.tar.xz?x=/1");
        assert_eq!(url.file_name(), "b.tar.xz");
        assert_eq!(
            url.beside("SHA256SUMS").to_string(),
            "https://example.org:8443/a/SHA256SUMS"
        );
        assert_eq!(
            url.with_ending(".sha256").to_string(),
            "https://example.org:8443/a/b.tar.xz.sha256"
        );
        let bare: Url = "http://user:secret@host".parse().unwrap();
        assert_eq!(
            (bare.file_name(), bare.beside("x").to_string()),
            ("host", "http://host/x".into())
        );
        assert!(!bare.is_https());
    }

    #[test]
    fn others_are_refused() {
        for bad in [
            "http://",
            "https:///x",
            "ftp://x/y",
            "file:///etc/passwd",
            "http://a b/",
            "http://ü/",
            "x",
            "http://u@/x",
        ] {
            assert!(bad.parse::<Url>().is_err(), "{bad}");
        }
        assert!(format!("http://x/{}", "a".repeat(9000)).parse::<Url>().is_err());
    }
}
