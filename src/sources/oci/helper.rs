//! Programs that keep credentials, as `docker-credential-pass` and those of clouds do, see docker-credential-helpers.
//!
//! One is asked with `get` as its only argument, and the registry on its standard input. It is started without a shell, from
//! the system's directories; what it answers gets neither into an argument, nor into a message or a log.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::auth::Login;
use crate::machine::{Cancel, Cancelled};
use crate::sys::process::{Program, describe};

/// How long one may take: it may have to ask over the network, or a person.
const TIME: Duration = Duration::from_secs(60);

/// How often it is looked whether it has to end.
const POLL: Duration = Duration::from_millis(20);

/// The longest name.
const NAME_MAX: usize = 64;

/// What they say of what they have not, each in these words.
const UNKNOWN: &str = "credentials not found in native keychain";

/// The user of a token that is no password, but good for one.
const TOKEN: &str = "<token>";

/// What of our environment they may need, by the beginnings of names: where the keys are, who asks a person for them, and how
/// to reach the cloud.
const ENVIRONMENT: [&str; 21] = [
    "HOME",
    "USER",
    "LOGNAME",
    "XDG_",
    "DBUS_SESSION_BUS_ADDRESS",
    "DISPLAY",
    "WAYLAND_DISPLAY",
    "XAUTHORITY",
    "GNUPGHOME",
    "GPG_TTY",
    "PASSWORD_STORE_",
    "DOCKER_CONFIG",
    "AWS_",
    "AZURE_",
    "GOOGLE_",
    "CLOUDSDK_",
    "http_proxy",
    "https_proxy",
    "HTTPS_PROXY",
    "NO_PROXY",
    "no_proxy",
];

/// Why there is nothing.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Nothing {
    /// It has none for this registry.
    Unknown,
    /// It could not be asked, or gave no sensible answer: why, for people.
    Failed(String),
    /// The caller gave up.
    Cancelled(Cancelled),
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

/// Asks `docker-credential-NAME` for the credentials of a registry.
pub(super) fn ask(name: &str, server: &str, cancel: &Cancel) -> Result<Login, Nothing> {
    let is_name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if name.is_empty() || name.len() > NAME_MAX || !name.bytes().all(is_name) {
        let reason = "a helper's name has small letters, digits and '-' only";
        return Err(Nothing::Failed(reason.to_owned()));
    }
    run(OsStr::new(&program(name)), server, TIME, cancel)
}

/// What it is called as a program.
pub(super) fn program(name: &str) -> String {
    format!("docker-credential-{name}")
}

fn run(program: &OsStr, server: &str, time: Duration, cancel: &Cancel) -> Result<Login, Nothing> {
    let mut command = Program::new(program).arg("get").stdin(server);
    for (name, value) in std::env::vars_os() {
        let is_needed = |beginning: &str| {
            name.as_encoded_bytes().starts_with(beginning.as_bytes())
                && (beginning.ends_with('_') || name.len() == beginning.len())
        };
        if ENVIRONMENT.iter().any(|beginning| is_needed(beginning)) {
            command = command.env(name, value);
        }
    }
    let (limit, ended) = (Cancel::default(), AtomicBool::new(false));
    let output = thread::scope(|scope| {
        scope.spawn(|| {
            let end = Instant::now() + time;
            while !ended.load(Ordering::Relaxed) {
                if cancel.is_cancelled() || Instant::now() >= end {
                    return limit.cancel();
                }
                thread::sleep(POLL);
            }
        });
        let output = command.run_any(&limit, &mut |_| {});
        ended.store(true, Ordering::Relaxed);
        output
    });
    cancel.check().map_err(Nothing::Cancelled)?;
    if limit.is_cancelled() {
        let reason = format!("it has not answered within {} seconds", time.as_secs());
        return Err(Nothing::Failed(reason));
    }
    // What it has printed is not shown: it may be the secret.
    let output = output.map_err(|error| Nothing::Failed(error.to_string()))?;
    if output.status.success() {
        return login(&output.stdout).map_err(|reason| Nothing::Failed(reason.to_owned()));
    }
    if output.stdout.trim_ascii() == UNKNOWN.as_bytes() {
        return Err(Nothing::Unknown);
    }
    let called = Path::new(program).file_name().unwrap_or(program).to_string_lossy();
    Err(Nothing::Failed(format!("'{called}' {}", describe(output.status))))
}

fn login(answer: &[u8]) -> Result<Login, &'static str> {
    let answer: Answer =
        serde_json::from_slice(answer).map_err(|_| "its answer is no JSON with a user and a secret")?;
    if answer.username == TOKEN {
        return Err("it keeps a token that has to be exchanged for another: log in with a user and a password");
    }
    Login::new(&answer.username, &answer.secret).ok_or("its answer has no user and password")
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use tempfile::TempDir;

    use super::*;

    /// A helper that does what the script says. Another process writes it: one that is open for writing cannot be run.
    fn helper(dir: &TempDir, script: &str) -> PathBuf {
        let path = dir.path().join("docker-credential-test");
        let write = "printf '#!/bin/sh\\n%s\\n' \"$1\" >\"$2\" && chmod 700 \"$2\"";
        let program = Program::new("sh").args(["-c", write, "sh", script]).arg(&path);
        program.run(&Cancel::default()).unwrap();
        path
    }

    fn said(script: &str) -> Result<Login, Nothing> {
        let dir = tempfile::tempdir().unwrap();
        let path = helper(&dir, script);
        run(path.as_os_str(), "quay.io", Duration::from_secs(30), &Cancel::default())
    }

    #[test]
    fn it_is_asked_for_a_registry_and_answers() {
        let script = r#"[ "$*" = get ] && [ "$(cat)" = quay.io ] && echo '{"ServerURL":"quay.io","Username":"u","Secret":"p:w"}'"#;
        assert_eq!(said(script), Ok(Login::new("u", "p:w").unwrap()));
        let none = "echo credentials not found in native keychain; exit 1";
        assert_eq!(said(none), Err(Nothing::Unknown));
    }

    #[test]
    fn what_is_no_answer_is_told_without_it() {
        for (script, reason) in [
            (
                "echo hunter2; echo hunter2 >&2; exit 3",
                "'docker-credential-test' failed with exit status 3",
            ),
            ("kill -9 $$", "was killed by SIGKILL"),
            ("echo hunter2", "its answer is no JSON"),
            ("echo '[]'", "its answer has no user and password"),
            (
                r#"echo '{"Username":"<token>","Secret":"hunter2"}'"#,
                "token that has to be exchanged",
            ),
            (r#"echo '{"Username":"u"}'"#, "no user and password"),
            (
                r#"echo '{"Username":"u:hunter2","Secret":"x"}'"#,
                "no user and password",
            ),
            (
                r#"echo '{"Username":"u","Secret":"hunter2\nX: y"}' | sed 's/$/ /'"#,
                "its answer is no JSON",
            ),
            (
                r#"printf '{"Username":"u","Secret":"hunter2\\u000aX"}'"#,
                "no user and password",
            ),
            ("head -c 10M /dev/zero", "its answer is no JSON"),
        ] {
            let Err(Nothing::Failed(told)) = said(script) else {
                panic!("{script}")
            };
            assert!(told.contains(reason) && !told.contains("hunter2"), "{script}: {told}");
        }
    }

    #[test]
    fn it_has_to_answer_in_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = helper(&dir, "exec sleep 1000");
        let time = Duration::from_millis(50);
        let late = run(path.as_os_str(), "quay.io", time, &Cancel::default());
        assert!(matches!(late, Err(Nothing::Failed(reason)) if reason.contains("has not answered")));
        let cancel = Cancel::default();
        cancel.cancel();
        assert!(matches!(
            run(path.as_os_str(), "quay.io", TIME, &cancel),
            Err(Nothing::Cancelled(_))
        ));
    }

    #[test]
    fn its_name_leads_nowhere_else() {
        for name in ["", "../x", "a/b", "A", "a b", "a.exe", "a\0", &"a".repeat(65)] {
            let asked = ask(name, "quay.io", &Cancel::default());
            assert!(
                matches!(asked, Err(Nothing::Failed(reason)) if reason.contains("small letters")),
                "{name}"
            );
        }
        let missing = ask("there-is-none", "quay.io", &Cancel::default());
        assert!(
            matches!(missing, Err(Nothing::Failed(reason)) if reason.contains("'docker-credential-there-is-none' is not installed"))
        );
    }
}
