//! Who a registry is told that we are: credentials as `podman login` and `docker login` keep them, and what a registry asks
//! for. Programs that keep credentials are asked where a file says so ([`super::helper`]).

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;

use super::error::OciError;
use super::helper::{self, Nothing};
use super::reference::Reference;
use crate::machine::text::printable;
use crate::machine::{Cancel, Report};
use crate::sources::SourceError;
use crate::sources::url::base64;
use crate::sys::files::{read_regular, shown};

/// The largest file of credentials in bytes.
const MAX: u64 = 1 << 20;

/// What the files call Docker's own registry.
const DOCKER: [&str; 4] = [
    "docker.io",
    "index.docker.io",
    "https://index.docker.io/v1/",
    "registry-1.docker.io",
];

/// A user and a password.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Login(String);

impl Login {
    /// `None` if they cannot be sent.
    pub(super) fn new(user: &str, password: &str) -> Option<Self> {
        let is_one = !user.is_empty() && !user.contains(':') && !password.is_empty();
        let login = format!("{user}:{password}");
        Some(Self(login)).filter(|login| is_one && !login.0.contains(char::is_control))
    }

    /// The value of `Authorization`.
    pub(super) fn basic(&self) -> String {
        format!("Basic {}", base64(self.0.as_bytes()))
    }
}

// A password must not get into a message.
impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login")
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AuthFile {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    #[serde(default)]
    creds_store: Option<String>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    auth: Option<String>,
}

/// The files that may have credentials, as containers-auth.json(5) has them. One that is named has to be there.
fn files() -> (Vec<PathBuf>, bool) {
    let variable = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(file) = variable("REGISTRY_AUTH_FILE") {
        return (vec![file], true);
    }
    let mut files = Vec::new();
    files.extend(variable("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json")));
    files.push(format!("/run/containers/{}/auth.json", rustix::process::getuid().as_raw()).into());
    let home = variable("HOME");
    files.extend(
        variable("XDG_CONFIG_HOME")
            .or(home.as_ref().map(|home| home.join(".config")))
            .map(|dir| dir.join("containers/auth.json")),
    );
    files.extend(
        variable("DOCKER_CONFIG")
            .or(home.map(|home| home.join(".docker")))
            .map(|dir| dir.join("config.json")),
    );
    (files, false)
}

/// The credentials for an image: of the first file that has some, or that names a program that has.
pub(super) fn find(reference: &Reference, report: &dyn Report, cancel: &Cancel) -> Result<Option<Login>, SourceError> {
    let (files, is_named) = files();
    find_in(&files, is_named, reference, &mut |name, server| {
        report.phase(&format!("asking {} for credentials", printable(&helper::program(name))));
        match helper::ask(name, server, cancel) {
            Ok(login) => Ok(Some(login)),
            Err(Nothing::Unknown) => Ok(None),
            // What is public is to be had all the same.
            Err(Nothing::Failed(reason)) => {
                let program = printable(&helper::program(name));
                report.warn(&format!("{program} gives no credentials for '{server}': {reason}"));
                Ok(None)
            }
            Err(Nothing::Cancelled(cancelled)) => Err(cancelled.into()),
        }
    })
}

/// Asks a program, by its name, for the credentials of a registry.
type Ask<'a> = dyn FnMut(&str, &str) -> Result<Option<Login>, SourceError> + 'a;

fn find_in(
    files: &[PathBuf],
    is_named: bool,
    reference: &Reference,
    ask: &mut Ask<'_>,
) -> Result<Option<Login>, SourceError> {
    for file in files {
        let bad = |reason: String| OciError::Credentials {
            path: shown(file),
            reason,
        };
        let bytes = match read_regular(file, MAX) {
            Err(error) if error.is_not_found() && !is_named => continue,
            read => read.map_err(|error| bad(error.to_string()))?,
        };
        // Not what it says: the line may have a password in it.
        let parsed: AuthFile =
            serde_json::from_slice(&bytes).map_err(|error| bad(format!("no JSON at line {}", error.line())))?;
        let keys = keys(reference);
        // As Docker asks for its own.
        let server = if DOCKER.contains(&reference.host()) {
            "https://index.docker.io/v1/"
        } else {
            reference.host()
        };
        // The one that is for this registry, then what stands there, then the one that is for all.
        let own = keys.iter().find_map(|key| parsed.cred_helpers.get(key));
        if let Some(name) = own.filter(|name| !name.is_empty())
            && let Some(login) = ask(name, server)?
        {
            return Ok(Some(login));
        }
        let entry = keys
            .iter()
            .find_map(|key| parsed.auths.get(key)?.auth.as_deref().filter(|auth| !auth.is_empty()));
        if let Some(auth) = entry {
            let decoded = decode(auth.trim()).and_then(|bytes| String::from_utf8(bytes).ok());
            let login = decoded.filter(|login| login.contains(':') && !login.contains(char::is_control));
            let login =
                login.ok_or_else(|| bad(format!("'auth' of '{}' is no user and password", reference.host())))?;
            return Ok(Some(Login(login)));
        }
        // Empty, it says that there is none.
        if let Some(name) = parsed.creds_store.filter(|name| own.is_none() && !name.is_empty())
            && let Some(login) = ask(&name, server)?
        {
            return Ok(Some(login));
        }
    }
    Ok(None)
}

/// What the credentials may be kept for, what fits best first: a name, those above it, the registry.
fn keys(reference: &Reference) -> Vec<String> {
    let mut keys = Vec::new();
    let mut name = format!("{}/{}", reference.host(), reference.name());
    loop {
        keys.push(name.clone());
        match name.rfind('/') {
            Some(end) => name.truncate(end),
            None => break,
        }
    }
    let host = reference.host();
    if DOCKER.contains(&host) {
        keys.extend(DOCKER.map(str::to_owned));
    }
    // As Docker has written them.
    for scheme in ["https", "http"] {
        for ending in ["", "/", "/v1/", "/v2/"] {
            keys.push(format!("{scheme}://{host}{ending}"));
        }
    }
    keys
}

/// See RFC 4648, section 4.
fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let (mut bits, mut count) = (0_u32, 0);
    for c in text.trim_end_matches('=').bytes() {
        let digit = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(digit);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from(bits >> count & 0xff).ok()?);
        }
    }
    Some(bytes)
}

/// What a registry asks for before it gives something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User and password with each request.
    Basic,
    /// A token, which is had there.
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

impl Challenge {
    /// Reads `WWW-Authenticate`, see RFC 9110, section 11.6.1.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let mut values = parameters(rest);
        Some(Self::Bearer {
            realm: values.remove("realm")?,
            service: values.remove("service"),
            scope: values.remove("scope"),
        })
    }
}

/// `key="value",key=value`
fn parameters(text: &str) -> BTreeMap<String, String> {
    let mut values = BTreeMap::new();
    let mut rest = text.trim_start_matches([',', ' ']);
    while let Some((key, after)) = rest.split_once('=') {
        let mut value = String::new();
        let mut chars = after.chars();
        if after.starts_with('"') {
            chars.next();
            while let Some(c) = chars.next() {
                match c {
                    '"' => break,
                    '\\' => value.extend(chars.next()),
                    c => value.push(c),
                }
            }
        } else {
            after
                .split([',', ' '])
                .next()
                .unwrap_or_default()
                .clone_into(&mut value);
            chars = after[value.len()..].chars();
        }
        values.entry(key.trim().to_ascii_lowercase()).or_insert(value);
        rest = chars.as_str().trim_start_matches([',', ' ']);
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let docker = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/a:pull,push""#;
        assert_eq!(
            Challenge::parse(docker),
            Some(Challenge::Bearer {
                realm: "https://auth.docker.io/token".into(),
                service: Some("registry.docker.io".into()),
                scope: Some("repository:library/a:pull,push".into()),
            })
        );
        assert_eq!(Challenge::parse("basic realm=\"x\""), Some(Challenge::Basic));
        let bare = Challenge::parse(r"bearer Realm=https://x/y, service=a\b");
        assert!(matches!(bare, Some(Challenge::Bearer { realm, .. }) if realm == "https://x/y"));
        for bad in ["", "Bearer", "Bearer realm", "Negotiate x", "Bearer scope=\"x\""] {
            assert_eq!(Challenge::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn who_is_asked_first() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.json");
        let asked = |text: &str, image: &str, has: &str| {
            std::fs::write(&file, text).unwrap();
            let reference: Reference = image.parse().unwrap();
            let mut asked = Vec::new();
            let found = find_in(std::slice::from_ref(&file), true, &reference, &mut |name, server| {
                asked.push(format!("{name} {server}"));
                Ok(Login::new(name, "x").filter(|_| has == name))
            });
            (asked, found.unwrap().map(|login| login.0))
        };
        let both = r#"{"auths": {"quay.io": {"auth": "dTpw"}, "other.io": {}}, "credsStore": "all",
            "credHelpers": {"own.io": "own", "quay.io": "own", "none.io": ""}}"#;
        assert_eq!(
            asked(both, "own.io/a", "own"),
            (vec!["own own.io".to_owned()], Some("own:x".to_owned()))
        );
        assert_eq!(asked(both, "quay.io/a", "own").1.as_deref(), Some("own:x"));
        // One that has none leaves it to what stands there; the one for all is asked where there is no other.
        let (who, found) = asked(both, "quay.io/a", "");
        assert_eq!((who, found.as_deref()), (vec!["own quay.io".to_owned()], Some("u:p")));
        assert_eq!(asked(both, "own.io/a", "").0, ["own own.io"]);
        assert_eq!(asked(both, "other.io/a", "all").0, ["all other.io"]);
        assert_eq!(asked(both, "none.io/a", "all").0, [""; 0]);
        assert_eq!(asked(both, "debian", "all").0, ["all https://index.docker.io/v1/"]);
        assert_eq!(asked(r#"{"credsStore": ""}"#, "quay.io/a", "").0, [""; 0]);
        assert_eq!(Login::new("u:", "p"), None);
    }

    #[test]
    fn credentials_are_decoded_and_not_shown() {
        assert_eq!(decode("dGVzdDpwYTpzcw==").as_deref(), Some(&b"test:pa:ss"[..]));
        assert_eq!(decode("YWI6Yw").as_deref(), Some(&b"ab:c"[..]));
        assert_eq!(decode("a b"), None);
        assert_eq!(format!("{:?}", Login("u:p".into())), "Login");
        assert_eq!(
            Login("Aladdin:open sesame".into()).basic(),
            "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="
        );
        let reference: Reference = "quay.io/a/b:1".parse().unwrap();
        assert_eq!(
            keys(&reference)[..4],
            ["quay.io/a/b", "quay.io/a", "quay.io", "https://quay.io"]
        );
        let docker: Reference = "debian".parse().unwrap();
        assert!(keys(&docker).contains(&"https://index.docker.io/v1/".to_owned()));
    }
}
