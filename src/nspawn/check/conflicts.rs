//! Settings that do not go together: what systemd-nspawn refuses, and what it silently drops.
//!
//! systemd-nspawn compares settings after it has read the file and merged it with its command line, here the template
//! unit's: see `verify_arguments()` and `merge_settings()` of its source.

use super::place::Part;
use super::{Finding, Severity};
use crate::nspawn::document::Document;
use crate::nspawn::names::boolean;
use crate::nspawn::settings::{EffectiveValue, Settings};

/// The keys that stand in for the template's network together as soon as one of them is set; `Port=` is none of them.
const NETWORK: [&str; 9] = [
    "Private",
    "VirtualEthernet",
    "VirtualEthernetExtra",
    "Interface",
    "MACVLAN",
    "IPVLAN",
    "Bridge",
    "Zone",
    "NamespacePath",
];

/// The first systemd seen to map the owners of files where it can with `PrivateUsers=pick`, and to take `BindUser=` without
/// private users. Before it `pick` alone means that owners are changed on the disk.
const MAPS_USERS_SINCE: u32 = 262;

/// Everything that does not go together to that systemd.
pub(super) fn find(document: &Document, settings: &Settings, systemd: u32) -> Vec<Finding> {
    let mut finder = Finder {
        systemd,
        document,
        settings,
        findings: Vec::new(),
    };
    finder.network();
    finder.private_users();
    finder.users_and_files();
    finder.start_mode();
    finder.findings
}

struct Finder<'a> {
    systemd: u32,
    document: &'a Document,
    settings: &'a Settings,
    findings: Vec<Finding>,
}

impl Finder<'_> {
    fn last(&self, section: &str, key: &str) -> Option<&EffectiveValue> {
        self.settings.values(section, key).last()
    }

    fn is_set(&self, section: &str, key: &str) -> bool {
        self.last(section, key).is_some()
    }

    /// A yes or no; `None` if it is neither, or not set.
    fn flag(&self, section: &str, key: &str) -> Option<bool> {
        self.last(section, key).and_then(|value| boolean(&value.value))
    }

    /// Tells something at the line of a setting.
    fn tell(
        &mut self,
        severity: Severity,
        code: &'static str,
        (section, key): (&str, &str),
        message: &str,
        hint: &str,
    ) {
        let place = self
            .last(section, key)
            .map(|value| self.document.place(value.index, Part::Line));
        self.findings.push(Finding {
            place,
            severity,
            code,
            message: message.to_owned(),
            hint: Some(hint.to_owned()),
        });
    }

    fn refused(&mut self, setting: (&str, &str), message: &str, hint: &str) {
        let message = format!("{message}: the machine does not start");
        self.tell(Severity::Error, "conflict", setting, &message, hint);
    }

    fn network(&mut self) {
        let set: Vec<&str> = NETWORK.into_iter().filter(|key| self.is_set("Network", key)).collect();
        let private = self.flag("Network", "Private");
        let link = self.flag("Network", "VirtualEthernet");
        let bridge_or_zone = ["Bridge", "Zone"].into_iter().find(|key| set.contains(key));
        if set.contains(&"Bridge") && set.contains(&"Zone") {
            self.refused(
                ("Network", "Zone"),
                "Bridge= and Zone= cannot be combined",
                "a zone makes a bridge of its own: keep one of the two",
            );
        }
        let others = [
            "Interface",
            "MACVLAN",
            "IPVLAN",
            "VirtualEthernetExtra",
            "Bridge",
            "Zone",
        ];
        let other = others.into_iter().find(|key| set.contains(key));
        let other = other.or((link == Some(true)).then_some("VirtualEthernet"));
        if let (true, Some(other)) = (set.contains(&"NamespacePath"), other) {
            self.refused(
                ("Network", "NamespacePath"),
                &format!("NamespacePath= and {other}= cannot be combined"),
                "what is in the namespace is all the network there is: keep one of the two",
            );
        }
        // As `settings_private_network()` has it.
        let is_private = private == Some(true) || other.is_some();
        if self.is_set("Network", "Port") && !set.is_empty() && !is_private && !set.contains(&"NamespacePath") {
            self.refused(
                ("Network", "Port"),
                "Port= needs a network of the machine's own",
                "add VirtualEthernet=yes, or remove Port=: on the host's network every port is open already",
            );
        }
        if let (Some(false), Some(other)) = (private, other) {
            self.tell(
                Severity::Warning,
                "network-contradiction",
                ("Network", "Private"),
                &format!("Private=no has no effect beside {other}=, which makes the network private"),
                "keep one of the two",
            );
        }
        if let (Some(false), Some(other)) = (link, bridge_or_zone) {
            self.tell(
                Severity::Warning,
                "network-contradiction",
                ("Network", "VirtualEthernet"),
                &format!("VirtualEthernet=no has no effect beside {other}=, which needs the link"),
                "keep one of the two",
            );
        }
        let keeps_link = link == Some(true) || bridge_or_zone.is_some();
        // Who writes either of these knows that there is no link.
        let meant = link == Some(false) || private == Some(false) || set.contains(&"NamespacePath");
        if let (false, false, Some(first)) = (keeps_link, meant, set.first()) {
            let names: Vec<String> = set.iter().map(|key| format!("{key}=")).collect();
            self.tell(
                Severity::Warning,
                "host0-dropped",
                ("Network", first),
                &format!(
                    "{} alone {} the link 'host0' of the machine away: network keys replace those of the unit together",
                    names.join(" and "),
                    if names.len() == 1 { "takes" } else { "take" }
                ),
                "add VirtualEthernet=yes to keep the link, or VirtualEthernet=no to say that it is not wanted",
            );
        }
    }

    /// systemd-nspawn of the template runs with `-U`, seen on 252, 257 and 262.
    fn private_users(&mut self) {
        let owner = ["PrivateUsersOwnership", "PrivateUsersChown"]
            .into_iter()
            .find(|key| self.is_set("Files", key));
        let users = self.last("Exec", "PrivateUsers").map(|value| value.value.clone());
        if let (Some(owner), None) = (owner, &users) {
            self.tell(
                Severity::Warning,
                "private-users-dropped",
                ("Files", owner),
                &format!("{owner}= alone takes the private users of the machine away: its root is root of the host"),
                "add PrivateUsers=pick to section [Exec], or PrivateUsers=no to say that this is meant",
            );
        }
        let has_users = match &users {
            None => owner.is_none(),
            Some(text) => text != "identity" && boolean(text) != Some(false),
        };
        let score = self.last("Exec", "OOMScoreAdjust");
        let score = score.and_then(|value| value.value.parse::<i32>().ok());
        if has_users && score.is_some_and(|score| score != 0) {
            self.tell(
                Severity::Warning,
                "oom-score-private-users",
                ("Exec", "OOMScoreAdjust"),
                "OOMScoreAdjust= may not be set by a machine with private users: it does not start",
                "remove it, and use `machinist limit NAME oom-score=N`, which has systemd set it",
            );
        }
    }

    fn users_and_files(&mut self) {
        let owner = ["PrivateUsersOwnership", "PrivateUsersChown"]
            .into_iter()
            .find(|key| self.is_set("Files", key));
        let picked = self
            .last("Exec", "PrivateUsers")
            .is_some_and(|value| value.value == "pick");
        let chown = match owner {
            Some(key @ "PrivateUsersChown") => (self.flag("Files", key) == Some(true)).then_some(("Files", key)),
            Some(key) => self
                .last("Files", key)
                .is_some_and(|value| value.value == "chown")
                .then_some(("Files", key)),
            None => (picked && self.systemd < MAPS_USERS_SINCE).then_some(("Exec", "PrivateUsers")),
        };
        let volatile = self
            .last("Files", "Volatile")
            .is_some_and(|value| boolean(&value.value) != Some(false));
        let read_only = volatile || self.flag("Files", "ReadOnly") == Some(true);
        if let (Some(chown), true) = (chown, read_only) {
            let other = if volatile { "Volatile=" } else { "ReadOnly=yes" };
            self.refused(
                chown,
                &format!(
                    "with {other} the owners of files cannot be changed, as {}= does",
                    chown.1
                ),
                "write PrivateUsersOwnership=map into section [Files]",
            );
        }
        let shared_users = self.flag("Exec", "PrivateUsers") == Some(false);
        if self.is_set("Files", "BindUser") && shared_users && self.systemd < MAPS_USERS_SINCE {
            self.refused(
                ("Files", "BindUser"),
                "BindUser= needs private users",
                "write PrivateUsers=pick",
            );
        }
        let journal = self
            .last("Exec", "LinkJournal")
            .is_some_and(|value| matches!(value.value.as_str(), "host" | "guest"));
        if journal && self.flag("Exec", "Ephemeral") == Some(true) {
            self.refused(
                ("Exec", "LinkJournal"),
                "the journal of an ephemeral machine cannot be linked",
                "write LinkJournal=try-guest or LinkJournal=no",
            );
        }
    }

    fn start_mode(&mut self) {
        let boots = self.flag("Exec", "ProcessTwo") != Some(true) && self.flag("Exec", "Boot") != Some(false);
        if boots && self.is_set("Exec", "AmbientCapability") {
            self.refused(
                ("Exec", "AmbientCapability"),
                "AmbientCapability= is not for machines that boot",
                "write Capability=, or ProcessTwo=yes for a single command",
            );
        } else if self
            .settings
            .values("Exec", "AmbientCapability")
            .iter()
            .any(|value| value.value == "all")
        {
            self.refused(
                ("Exec", "AmbientCapability"),
                "AmbientCapability= does not take all",
                "name the capabilities",
            );
        }
    }
}
