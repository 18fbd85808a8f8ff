//! The address of a download, as far as it has to be understood here.

use std::fmt;
use std::str::FromStr;

/// The longest that is taken, in bytes: servers refuse longer ones.
const MAX_LENGTH: usize = 8192;

/// An address that begins with `http://` or `https://`.
#[derive(Clone, PartialEq, Eq)]
pub struct Url {
    /// Without user and password.
    text: String,
    /// `USER:PASSWORD`, decoded.
    login: Option<Vec<u8>>,
}

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
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let (login, host) = match authority.rsplit_once('@') {
            Some((login, host)) => (Some(login), host),
            None => (None, authority),
        };
        if host.is_empty() {
            return Err("it names no host");
        }
        // What comes behind '#' is for the one who asks.
        let sent = path.split('#').next().unwrap_or_default();
        Ok(Self {
            text: format!("{}://{host}{sent}", scheme.to_ascii_lowercase()),
            login: login.map(decoded).transpose()?,
        })
    }
}

impl Url {
    /// As it is asked for: without user and password.
    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    /// What the server is told of the user and the password in it: the value of `Authorization`.
    pub(super) fn authorization(&self) -> Option<String> {
        let login = self.login.as_deref()?;
        Some(format!("Basic {}", base64(login)))
    }

    /// Whether the server has to prove who it is.
    pub(super) fn is_https(&self) -> bool {
        self.text.starts_with("https://")
    }

    /// Scheme, host and port, in lower case.
    pub(super) fn origin(&self) -> String {
        let start = self.text.find("://").map_or(0, |at| at + 3);
        let end = self.text[start..]
            .find(['/', '?'])
            .map_or(self.text.len(), |at| start + at);
        self.text[..end].to_ascii_lowercase()
    }

    /// Whether it is on this host.
    pub(super) fn is_loopback(&self) -> bool {
        let origin = self.origin();
        let host = origin.split_once("://").map_or("", |(_, host)| host);
        let name = match host.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or_default(),
            None => host.split(':').next().unwrap_or_default(),
        };
        name == "localhost"
            || name
                .parse()
                .is_ok_and(|address: std::net::IpAddr| address.is_loopback())
    }

    /// Where `Location: there` leads from here. The user and password of this one do not go along.
    pub(super) fn joined(&self, there: &str) -> Result<Self, &'static str> {
        let origin = self.origin();
        let scheme = origin.split("://").next().unwrap_or_default();
        if there
            .split(['/', '?', '#'])
            .next()
            .is_some_and(|first| first.contains(':'))
        {
            return there.parse();
        }
        if there.starts_with("//") {
            return format!("{scheme}:{there}").parse();
        }
        if there.starts_with('/') {
            return format!("{origin}{there}").parse();
        }
        let path = self.path();
        let directory = path
            .get(origin.len()..)
            .and_then(|path| path.rfind('/'))
            .map_or("", |end| &path[origin.len()..origin.len() + end]);
        format!("{origin}{directory}/{there}").parse()
    }

    /// The last name of its path; the host, if there is none.
    #[must_use]
    pub fn file_name(&self) -> &str {
        let path = self.path();
        path.trim_end_matches('/').rsplit('/').next().unwrap_or_default()
    }

    /// The same as its server's files are called: without `%XX`.
    pub(super) fn plain_file_name(&self) -> String {
        String::from_utf8_lossy(&unescaped(self.file_name())).into_owned()
    }

    /// The file `name` in the same directory.
    pub(super) fn beside(&self, name: &str) -> Self {
        let path = self.path();
        let start = "https://".len();
        let directory = match path.get(start..).and_then(|rest| rest.rfind('/')) {
            Some(end) => &path[..start + end],
            None => path,
        };
        self.on_its_server(format!("{directory}/{name}"))
    }

    /// Its path with an ending more.
    pub(super) fn with_ending(&self, ending: &str) -> Self {
        self.on_its_server(format!("{}{ending}", self.path()))
    }

    /// What is at a path below it; `None` for one that leads elsewhere, or that is none.
    pub(super) fn below(&self, path: &str) -> Option<Self> {
        let is_plain = path
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#'));
        // Also as some servers read it.
        let leads_up = unescaped(path).split(|byte| *byte == b'/').any(|name| name == b"..");
        let base = self.path().trim_end_matches('/');
        (is_plain && !leads_up).then(|| self.on_its_server(format!("{base}/{}", path.trim_start_matches('/'))))
    }

    fn on_its_server(&self, text: String) -> Self {
        Self {
            text,
            login: self.login.clone(),
        }
    }

    /// Without what is asked of the file.
    fn path(&self) -> &str {
        self.text.split('?').next().unwrap_or_default()
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

// A password must not get into a message by way of what has the address.
impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

/// User and password as they are meant: `%40` is `@`. A `%` that begins no such thing stands for itself.
fn decoded(login: &str) -> Result<Vec<u8>, &'static str> {
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    let mut bytes = unescaped(user);
    if bytes.contains(&b':') {
        return Err("a user's name cannot have a colon");
    }
    bytes.push(b':');
    bytes.extend(unescaped(password));
    Ok(bytes)
}

pub(super) fn unescaped(text: &str) -> Vec<u8> {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((&first, others)) = rest.split_first() {
        let digit = |at: usize| char::from(*others.get(at)?).to_digit(16);
        let byte = match (first, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => u8::try_from(high << 4 | low).ok(),
            _ => None,
        };
        bytes.push(byte.unwrap_or(first));
        rest = if byte.is_some() { &others[2..] } else { others };
    }
    bytes
}

/// See RFC 4648, section 4.
pub(super) fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let byte = |at: usize| usize::from(three.get(at).copied().unwrap_or_default());
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for at in 0..4 {
            let digit = char::from(DIGITS[bits >> (18 - 6 * at) & 63]);
            text.push(if at <= three.len() { digit } else { '=' });
        }
    }
    text
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
        let at: Url = "http://host?x=a@b".parse().unwrap();
        assert_eq!(
            (at.to_string().as_str(), at.authorization()),
            ("http://host?x=a@b", None)
        );
        let at: Url = "http://host/a@b.tar".parse().unwrap();
        assert_eq!((at.file_name(), at.authorization()), ("a@b.tar", None));
    }

    #[test]
    fn passwords_are_decoded_and_not_shown() {
        let url: Url = "https://me:p%40s%3a%zz@x@host/a.tar".parse().unwrap();
        assert_eq!(url.login.as_deref(), Some(&b"me:p@s:%zz@x"[..]));
        assert_eq!(format!("{url} {url:?}"), "https://host/a.tar \"https://host/a.tar\"");
        assert_eq!(url.beside("x").authorization(), url.authorization());
        let of = |login: &str| format!("http://{login}@h").parse::<Url>().unwrap().authorization();
        // As RFC 7617 has it.
        assert_eq!(
            of("Aladdin:open%20sesame").unwrap(),
            "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="
        );
        assert_eq!(of("test:123%C2%A3").unwrap(), "Basic dGVzdDoxMjPCow==");
        assert_eq!(of("ab").unwrap(), "Basic YWI6");
        assert!("http://a%3Ab:c@h".parse::<Url>().is_err());
    }

    #[test]
    fn redirections_lead_where_they_say() {
        let url: Url = "https://u:p@Example.org:5000/v2/a/blobs/x?y=/z".parse().unwrap();
        assert_eq!(url.origin(), "https://example.org:5000");
        for (there, wanted) in [
            ("/b?c=d", "https://example.org:5000/b?c=d"),
            ("z", "https://example.org:5000/v2/a/blobs/z"),
            ("//cdn/x", "https://cdn/x"),
            ("http://cdn/x", "http://cdn/x"),
        ] {
            let joined = url.joined(there).unwrap();
            assert_eq!(
                (joined.to_string().as_str(), joined.authorization()),
                (wanted, None),
                "{there}"
            );
        }
        for bad in ["file:///etc/passwd", "javascript:x", "http://", "a b"] {
            assert!(url.joined(bad).is_err(), "{bad}");
        }
        let is_loopback = |text: &str| text.parse::<Url>().unwrap().is_loopback();
        for here in [
            "http://localhost:5000/x",
            "http://127.3.2.1",
            "https://[::1]:5000/",
            "http://LOCALHOST",
        ] {
            assert!(is_loopback(here), "{here}");
        }
        for other in [
            "http://localhost.example.org",
            "http://10.0.0.1",
            "http://127.0.0.1.example.org",
            "http://[::2]/",
        ] {
            assert!(!is_loopback(other), "{other}");
        }
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
