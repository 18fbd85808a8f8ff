//! What containers of other tools ask for, as settings of systemd's: whatever it is, it is judged as all others are.

use super::names::Names;
use super::settings::{ASKED_MAX, Place, Wishes};
use crate::machine::MachineName;
use crate::nspawn::document::Document;
use crate::nspawn::edit::Edit;
use crate::unit::topic::Topic;

/// What others call the first link of a container, if nobody says.
pub(super) const FIRST_LINK: &str = "eth0";

/// `IFNAMSIZ` of Linux, with the NUL at its end.
const LINK_MAX: usize = 16;

/// Settings of another tool, as they are translated.
#[derive(Debug, Default)]
pub(super) struct Foreign {
    /// What it was called.
    pub(super) name: Option<String>,
    /// Whether it started with its host.
    pub(super) starts_at_boot: bool,
    /// What its first link was called inside: systemd-nspawn makes one.
    pub(super) link: Option<String>,
    /// Where its root filesystem lies, if that is not in the archive.
    pub(super) elsewhere: Option<String>,
    assignments: Vec<(Place, &'static str, String, String)>,
    /// Settings that have no counterpart.
    untold: Names,
}

impl Foreign {
    /// A setting of systemd.nspawn(5).
    pub(super) fn nspawn(&mut self, section: &'static str, key: &str, value: impl Into<String>) {
        self.put(Place::Nspawn, section, key, value.into());
    }

    /// A limit of systemd.resource-control(5).
    pub(super) fn limit(&mut self, key: &str, value: impl Into<String>) {
        let place = Place::Limit(format!("50-{key}.conf"));
        self.put(place, "Service", key, value.into());
    }

    /// The hardware address of its first link.
    pub(super) fn address(&mut self, address: &str) {
        let place = Place::DropIn("50-imported.conf".to_owned());
        self.put(
            place,
            "Service",
            "Environment",
            format!("SYSTEMD_NSPAWN_NETWORK_MAC={address}"),
        );
    }

    /// The name of its first link: one that Linux takes, or none.
    pub(super) fn first_link(&mut self, name: &str) {
        let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "_-.".contains(letter);
        if self.link.is_none() && (1..LINK_MAX).contains(&name.len()) && name.chars().all(is_plain) {
            self.link = Some(name.to_owned());
        }
    }

    /// A group of machines.
    pub(super) fn group(&mut self, group: &str) {
        let place = Place::DropIn(Topic::Order.file_name());
        self.put(place, crate::unit::OWN_SECTION, "Group", group.to_owned());
    }

    fn put(&mut self, place: Place, section: &'static str, key: &str, value: String) {
        if self.assignments.len() < ASKED_MAX {
            self.assignments.push((place, section, key.to_owned(), value));
        } else {
            self.untold(key);
        }
    }

    /// Notes that a setting has no counterpart.
    pub(super) fn untold(&mut self, key: &str) {
        self.untold.note(key);
    }

    /// The keys that have no counterpart.
    pub(super) fn left(&self) -> &Names {
        &self.untold
    }

    /// The name, if a machine can have it.
    pub(super) fn machine_name(&self) -> Option<MachineName> {
        self.name.as_ref().and_then(|name| name.parse().ok())
    }

    /// What that asks for.
    pub(super) fn wishes(&self, systemd: u32) -> Wishes {
        let mut wishes = Wishes::default();
        let mut documents: Vec<(&Place, Document)> = Vec::new();
        for (place, section, key, value) in &self.assignments {
            let at = documents.iter().position(|(other, _)| *other == place);
            let at = at.unwrap_or_else(|| {
                documents.push((place, Document::parse(b"")));
                documents.len() - 1
            });
            if documents[at]
                .1
                .apply(&Edit::append(section, key, value.clone()))
                .is_err()
            {
                wishes.ignored.note(&format!("[{section}] {key}="));
            }
        }
        for (place, document) in &documents {
            wishes.add(place, document, systemd);
        }
        wishes
    }
}

/// A share of the processors, as `CPUQuota=` takes it: so much time of so much.
pub(super) fn quota(time: u64, of: u64) -> Option<String> {
    let percent = time.checked_mul(100)?.checked_div(of)?;
    Some(format!("{}%", percent.max(1)))
}
