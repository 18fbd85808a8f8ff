//! Completion of machine and image names, asked of the live system, and of what there is help for.
//!
//! A completer must never print, nor fail: what cannot be found out is not offered.

use std::time::Duration;

use clap::CommandFactory as _;
use clap::builder::StyledStr;
use clap_complete::CompletionCandidate;
use clap_complete::engine::{ArgValueCompleter, PathCompleter, ValueCompleter as _};

use crate::help::TOPICS;
use crate::machine::condition::Condition;
use crate::machine::signal::Signal;
use crate::ops::Places;
use crate::ops::secret::list;
use crate::sys::bus::Bus;

/// A shell waits for us at every press of the tab key.
const PATIENCE: Duration = Duration::from_millis(500);

/// Completes names of registered machines.
#[must_use]
pub fn running() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &std::ffi::OsStr| candidates(current, false, true))
}

/// Completes names of images.
#[must_use]
pub fn images() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &std::ffi::OsStr| candidates(current, true, false))
}

/// Completes names of images and of registered machines.
#[must_use]
pub fn all() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &std::ffi::OsStr| candidates(current, true, true))
}

/// Completes what is copied, or where to: paths of the host, and names of machines with a colon.
#[must_use]
pub fn locations() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &std::ffi::OsStr| {
        let machines = candidates(current, true, true).into_iter();
        let named = machines.map(|name| {
            let word = format!("{}:", name.get_value().to_string_lossy());
            CompletionCandidate::new(word)
        });
        named.chain(PathCompleter::any().complete(current)).collect()
    })
}

/// Completes what a machine is made from: paths of the host, and the forms that are no paths.
#[must_use]
pub fn sources() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &std::ffi::OsStr| {
        let typed = current.to_string_lossy();
        if let Some(name) = typed.strip_prefix("machine:") {
            let machines = candidates(name.as_ref(), true, false).into_iter();
            let named = machines.map(|name| format!("machine:{}", name.get_value().to_string_lossy()));
            return named.map(CompletionCandidate::new).collect();
        }
        let forms = [
            "debian:",
            "ubuntu:",
            "images:",
            "machine:",
            "oci:",
            "docker://",
            "template:busybox",
        ];
        let named = forms.iter().filter(|form| form.starts_with(&*typed));
        named
            .map(CompletionCandidate::new)
            .chain(PathCompleter::any().complete(current))
            .collect()
    })
}

/// Completes names of secrets: of the machine that is named before them.
#[must_use]
pub fn secrets() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &std::ffi::OsStr| {
        let words: Vec<String> = std::env::args_os()
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        let at = words.iter().position(|word| word == "secret");
        let named = words[at.map_or(words.len(), |at| at + 1)..]
            .iter()
            .filter(|word| !word.starts_with('-'))
            .nth(1);
        let secrets = named
            .and_then(|name| name.parse().ok())
            .and_then(|name| list(&name, &Places::default()).ok())
            .unwrap_or_default();
        let typed = current.to_string_lossy();
        secrets
            .into_iter()
            .map(|secret| secret.key.to_string())
            .filter(|key| key.starts_with(&*typed) && !words.contains(key))
            .map(CompletionCandidate::new)
            .collect()
    })
}

/// Completes addresses that keys are pinned to.
#[must_use]
pub fn pins() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &std::ffi::OsStr| {
        let typed = current.to_string_lossy();
        let pinned = crate::sources::trust::pins(&Places::default().keys).unwrap_or_default();
        let addresses = pinned.into_iter().map(|pin| pin.prefix.to_string());
        addresses
            .filter(|address| address.starts_with(&*typed))
            .map(CompletionCandidate::new)
            .collect()
    })
}

/// Completes names of signals, as kill(1) has them.
#[must_use]
pub fn signals() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &std::ffi::OsStr| words(current, Signal::names()))
}

/// Completes what can be waited for.
#[must_use]
pub fn conditions() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &std::ffi::OsStr| words(current, Condition::words()))
}

/// Those of some words that begin as typed.
fn words(current: &std::ffi::OsStr, all: impl Iterator<Item = &'static str>) -> Vec<CompletionCandidate> {
    let typed = current.to_string_lossy();
    all.filter(|word| word.starts_with(&*typed))
        .map(CompletionCandidate::new)
        .collect()
}

/// Completes what there is help for: verbs and topics.
#[must_use]
pub fn help() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &std::ffi::OsStr| {
        let typed = current.to_string_lossy();
        let topics = TOPICS
            .iter()
            .map(|topic| (topic.name.to_owned(), Some(StyledStr::from(topic.about()))));
        verbs()
            .chain(topics)
            .filter(|(name, _)| name.starts_with(&*typed))
            .map(|(name, about)| CompletionCandidate::new(name).help(about))
            .collect()
    })
}

/// All verbs, and what each does.
pub(super) fn verbs() -> impl Iterator<Item = (String, Option<StyledStr>)> {
    let verbs: Vec<_> = super::Cli::command()
        .get_subcommands()
        .map(|verb| (verb.get_name().to_owned(), verb.get_about().cloned()))
        .collect();
    verbs.into_iter()
}

fn candidates(current: &std::ffi::OsStr, images: bool, machines: bool) -> Vec<CompletionCandidate> {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return Vec::new();
    };
    let names = runtime.block_on(async {
        tokio::time::timeout(PATIENCE, names(images, machines))
            .await
            .unwrap_or_default()
    });
    let typed = current.to_string_lossy();
    names
        .into_iter()
        .filter(|name| name.starts_with(&*typed))
        .map(CompletionCandidate::new)
        .collect()
}

async fn names(images: bool, machines: bool) -> Vec<String> {
    let Ok(bus) = Bus::system(false).await else {
        return Vec::new();
    };
    let mut names = Vec::new();
    if images {
        names.extend(bus.images().await.unwrap_or_default().into_iter().map(|row| row.0));
    }
    if machines {
        names.extend(bus.machines().await.unwrap_or_default().into_iter().map(|row| row.0));
    }
    names.sort();
    names.dedup();
    names
}
