//! What a file says about the host, compared with the host as it is.

use super::place::Part;
use super::{Finding, Severity};
use crate::nspawn::document::Document;
use crate::nspawn::forms::sources_of;
use crate::nspawn::names::boolean;
use crate::nspawn::settings::Settings;
use crate::nspawn::users::{Taken, UserRange};
use crate::nspawn::value::{ValueType, quoted};
use crate::nspawn::words::split_field;

/// A network interface of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// A bridge.
    Bridge,
    /// Any other.
    Other,
}

/// What the host says when it is asked.
#[derive(Clone, Copy)]
pub struct Host<'a> {
    /// Whether anything is at this absolute path.
    pub has_path: &'a dyn Fn(&str) -> bool,
    /// The network interface of that name.
    pub link: &'a dyn Fn(&str) -> Option<Link>,
    /// User numbers that are others'. Asked only if the file wants numbers of its own.
    pub taken_users: &'a dyn Fn() -> Vec<Taken>,
    /// What /etc/hostname in the image says, where there is an image and it says anything.
    pub image_hostname: Option<&'a str>,
}

impl std::fmt::Debug for Host<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host")
            .field("image_hostname", &self.image_hostname)
            .finish_non_exhaustive()
    }
}

/// Everything that is not there, or not as the file wants it.
pub(super) fn find(document: &Document, settings: &Settings, host: &Host<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for setting in settings.settings() {
        for value in &setting.values {
            let mut tell = |code, message: String, hint: String| {
                findings.push(Finding {
                    place: Some(document.place(value.index, Part::Value)),
                    severity: Severity::Warning,
                    code,
                    message,
                    hint: Some(hint),
                });
            };
            let interface = |name: &str| {
                (
                    format!("there is no network interface {} on this host now", quoted(name)),
                    "the machine does not start without it: see `networkctl list`".to_owned(),
                )
            };
            match setting.key.value {
                ValueType::Bind | ValueType::Overlay => {
                    for path in sources_of(setting.key.value, &value.value) {
                        if !(host.has_path)(&path) {
                            let message = format!("there is nothing at {} on this host now", quoted(&path));
                            tell("missing-source", message, missing_path(&path));
                        }
                    }
                }
                ValueType::Path if setting.key.name == "NamespacePath" && !(host.has_path)(&value.value) => {
                    let message = format!("there is nothing at {} on this host now", quoted(&value.value));
                    tell("missing-source", message, missing_path(&value.value));
                }
                ValueType::Interface => match (host.link)(&value.value) {
                    Some(Link::Bridge) => {}
                    Some(Link::Other) => tell(
                        "no-bridge",
                        format!("{} is no bridge", quoted(&value.value)),
                        "the machine does not start with it: see `networkctl list`".to_owned(),
                    ),
                    None => tell(
                        "missing-bridge",
                        format!("there is no bridge {} on this host now", quoted(&value.value)),
                        format!(
                            "the machine does not start without it: make it with systemd-networkd, or `ip link add {} type \
                             bridge`",
                            value.value
                        ),
                    ),
                },
                ValueType::InterfacePairs => {
                    let outside = split_field(&value.value)
                        .map(|(outside, _)| outside)
                        .unwrap_or_default();
                    if (host.link)(&outside).is_none() {
                        let (message, hint) = interface(&outside);
                        tell("missing-interface", message, hint);
                    }
                }
                ValueType::Hostname => {
                    // A command is started with the name that nspawn has set; an init system sets its own.
                    let boots = settings.value("Exec", "ProcessTwo").and_then(boolean) != Some(true);
                    if let Some(other) = host.image_hostname.filter(|other| boots && *other != value.value) {
                        tell(
                            "hostname-shadowed",
                            format!(
                                "Hostname= has no effect: /etc/hostname in the image says {}",
                                quoted(other)
                            ),
                            "change it in the image, or remove the file there".to_owned(),
                        );
                    }
                }
                ValueType::PrivateUsers => {
                    if let Some((message, hint)) = shared_users(&value.value, host) {
                        tell("shared-users", message, hint);
                    }
                }
                _ => {}
            }
        }
    }
    findings
}

/// A process of one machine that breaks out of it has rights over what belongs to the same numbers elsewhere.
fn shared_users(value: &str, host: &Host<'_>) -> Option<(String, String)> {
    // From 0 on the machine's users are those of the host, as whoever writes it knows.
    let range = UserRange::parse(value).filter(|range| range.first != 0)?;
    let taken = (host.taken_users)();
    let mut others = taken.iter().filter(|taken| taken.range.overlaps(range));
    let first = others.next()?;
    let more = match others.count() {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    let message = format!(
        "users {} to {} are not the machine's alone: {} to {} are those of {}{more}",
        range.first,
        range.last(),
        first.range.first,
        first.range.last(),
        first.by
    );
    let hint = match UserRange::free(range.count, &taken) {
        Some(free) => format!("write PrivateUsers={free}, which is free"),
        None => "choose another range, or a smaller one".to_owned(),
    };
    Some((message, hint))
}

fn missing_path(path: &str) -> String {
    if path.starts_with("/dev/") {
        "the machine does not start without it: load the driver, or remove the line".to_owned()
    } else {
        "the machine does not start without it: make it, or remove the line".to_owned()
    }
}
