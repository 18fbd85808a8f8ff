//! Which settings of a .nspawn file reach beyond the machine: those that a stranger's archive must not bring without a word.
//!
//! A list of what may be, and not of what may not: a key that is not known here reaches.

use std::collections::HashSet;

use super::document::Document;
use super::names::boolean;
use super::number::integer;
use super::settings::Settings;

/// An assignment that is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assigned {
    /// The section, without brackets.
    pub section: &'static str,
    /// The key.
    pub key: &'static str,
    /// The value, as it stands there.
    pub value: String,
    /// Whether it reaches beyond the machine.
    pub reaches: bool,
}

/// What is in force of a file, in the order of the file; and which lines are not, as `[Section] Key=`.
///
/// Comments, and what systemd would ignore, are no part of it.
#[must_use]
pub fn assigned(document: &Document, systemd: u32) -> (Vec<Assigned>, Vec<String>) {
    let settings = Settings::effective(document, systemd, true);
    let mut lines = HashSet::new();
    for setting in settings.settings() {
        lines.extend(setting.values.iter().map(|value| value.first_line));
    }
    let (mut found, mut ignored) = (Vec::new(), Vec::new());
    for entry in document.entries() {
        let key = entry
            .section
            .and_then(|section| super::schema::find(section, entry.key));
        match key.filter(|_| lines.contains(&entry.first_line)) {
            Some(key) => found.push(Assigned {
                section: key.section,
                key: key.name,
                value: entry.value.to_owned(),
                reaches: reaches(key.section, key.name, entry.value),
            }),
            // One without a value takes back what came before it, which is not here.
            None if entry.value.is_empty() => {}
            None => ignored.push(format!("[{}] {}=", entry.section.unwrap_or_default(), entry.key)),
        }
    }
    mark_groups(&mut found);
    (found, ignored)
}

/// Whether a value of a key reaches beyond the machine, whatever else is set.
fn reaches(section: &str, key: &str, value: &str) -> bool {
    let is = |wanted: bool| boolean(value) == Some(wanted);
    let is_free = match (section, key) {
        (
            "Exec",
            "Boot"
            | "Ephemeral"
            | "ProcessTwo"
            | "Parameters"
            | "Environment"
            | "User"
            | "DropCapability"
            | "KillSignal"
            | "Personality"
            | "MachineID"
            | "WorkingDirectory"
            | "PivotRoot"
            | "NotifyReady"
            | "LimitCPU"
            | "LimitFSIZE"
            | "LimitDATA"
            | "LimitSTACK"
            | "LimitCORE"
            | "LimitRSS"
            | "LimitNOFILE"
            | "LimitAS"
            | "LimitNPROC"
            | "LimitLOCKS"
            | "LimitSIGPENDING"
            | "LimitMSGQUEUE"
            | "Hostname"
            | "NoNewPrivileges"
            | "CPUAffinity"
            | "ResolvConf"
            | "Timezone"
            | "SuppressSync"
            | "RestrictAddressFamilies",
        )
        | ("Files", "ReadOnly" | "Volatile" | "TemporaryFileSystem" | "Inaccessible")
        | ("Network", "VirtualEthernet") => true,
        // What is taken away gives nobody anything.
        ("Exec", "SystemCallFilter") => value.starts_with('~'),
        ("Exec", "OOMScoreAdjust") => integer(value).is_some_and(|score| score >= 0),
        // Whoever has "host" writes to the host's disk, and so does "auto" where there is a directory already.
        ("Exec", "LinkJournal") => matches!(value, "no" | "guest" | "try-guest"),
        // "yes" takes the users from whom the tree belongs to, who may be the host's own.
        ("Exec", "PrivateUsers") => value == "pick",
        ("Files", "PrivateUsersOwnership") => matches!(value, "auto" | "map" | "chown"),
        ("Files", "PrivateUsersChown") | ("Network", "Private") => is(true),
        _ => false,
    };
    !is_free
}

/// Settings of private users, and of the network, act as one group: one of them says for all that the others are off.
fn mark_groups(found: &mut [Assigned]) {
    let is_free = |assigned: &Assigned, key: &str, wanted: &dyn Fn(&str) -> bool| {
        assigned.key == key && !assigned.reaches && wanted(&assigned.value)
    };
    let on = |value: &str| boolean(value) == Some(true);
    let last = |found: &[Assigned], key: &str, wanted: &dyn Fn(&str) -> bool| {
        let last = found.iter().rfind(|assigned| assigned.key == key && !assigned.reaches);
        last.is_some_and(|assigned| is_free(assigned, key, wanted))
    };
    let has_users = last(found, "PrivateUsers", &|value| value == "pick");
    // Without either the machine would have the host's network.
    let has_network = last(found, "Private", &on) || last(found, "VirtualEthernet", &on);
    for assigned in found {
        assigned.reaches |= match (assigned.section, assigned.key) {
            ("Files", "PrivateUsersOwnership" | "PrivateUsersChown") => !has_users,
            ("Network", "Private" | "VirtualEthernet") => !has_network,
            _ => false,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nspawn::schema::{KEYS, NEWEST_SYSTEMD};

    fn judged(text: &str) -> Vec<(String, bool)> {
        let (found, _) = assigned(&Document::parse(text.as_bytes()), NEWEST_SYSTEMD);
        let shown = |assigned: &Assigned| format!("{}={}", assigned.key, assigned.value);
        found
            .iter()
            .map(|assigned| (shown(assigned), assigned.reaches))
            .collect()
    }

    /// The settings of the text that reach.
    fn reaching(text: &str) -> Vec<String> {
        judged(text)
            .into_iter()
            .filter(|(_, reaches)| *reaches)
            .map(|(text, _)| text)
            .collect()
    }

    #[test]
    fn what_gives_power_over_the_host_reaches() {
        for line in [
            "[Files]\nBind=/:/host",
            "[Files]\nBindReadOnly=/etc",
            "[Files]\nOverlay=/a:/b:/c",
            "[Files]\nBindUser=root",
            "[Files]\nPrivateUsersOwnership=off",
            "[Files]\nPrivateUsersChown=no",
            "[Exec]\nCapability=all",
            "[Exec]\nAmbientCapability=CAP_SYS_ADMIN",
            "[Exec]\nSystemCallFilter=@mount",
            "[Exec]\nPrivateUsers=no",
            "[Exec]\nPrivateUsers=yes",
            "[Exec]\nPrivateUsers=0:65536",
            "[Exec]\nPrivateUsers=identity",
            "[Exec]\nOOMScoreAdjust=-1000",
            "[Exec]\nLinkJournal=host",
            "[Exec]\nLimitRTPRIO=99",
            "[Network]\nPrivate=no",
            "[Network]\nVirtualEthernet=no",
            "[Network]\nVirtualEthernet=yes\nVirtualEthernet=no",
            "[Network]\nInterface=eth0",
            "[Network]\nMACVLAN=eth0",
            "[Network]\nBridge=br0",
            "[Network]\nPort=tcp:22:22",
        ] {
            assert!(!reaching(line).is_empty(), "{line}");
        }
    }

    #[test]
    fn what_stays_inside_does_not() {
        for line in [
            "[Exec]\nKillSignal=SIGUSR2\nBoot=no\nParameters=/bin/sh\nEnvironment=A=b\nHostname=x\nPrivateUsers=pick",
            "[Exec]\nSystemCallFilter=~@mount\nOOMScoreAdjust=100\nLimitNOFILE=1024",
            "[Exec]\nPrivateUsers=pick\n[Files]\nPrivateUsersOwnership=chown",
            "[Network]\nPrivate=yes\nVirtualEthernet=no",
            "[Network]\nVirtualEthernet=yes",
            "[Files]\nReadOnly=yes\nInaccessible=/boot",
        ] {
            assert_eq!(reaching(line), Vec::<String>::new(), "{line}");
            assert!(!judged(line).is_empty(), "{line}");
        }
    }

    #[test]
    fn one_of_a_group_must_not_switch_the_others_off() {
        // Either would be as if -U, or --network-veth, were not given.
        assert_eq!(
            reaching("[Files]\nPrivateUsersOwnership=auto\n"),
            ["PrivateUsersOwnership=auto"]
        );
        let later = "[Exec]\nPrivateUsers=pick\nPrivateUsers=no\n[Files]\nPrivateUsersOwnership=map\n";
        assert_eq!(reaching(later), ["PrivateUsers=no", "PrivateUsersOwnership=map"]);
        assert_eq!(
            reaching("[Network]\nPrivate=yes\nPrivate=no\nVirtualEthernet=no\n"),
            ["Private=no", "VirtualEthernet=no"]
        );
    }

    #[test]
    fn what_systemd_ignores_is_left_out() {
        let text = "[Exec]\nNo=such\nKillSignal=SIGNOTHING\nUser=a\nUser=b\nnothing\n[Other]\nBind=/\n";
        let (found, ignored) = assigned(&Document::parse(text.as_bytes()), NEWEST_SYSTEMD);
        assert_eq!(found.len(), 1);
        assert_eq!(
            ignored,
            ["[Exec] No=", "[Exec] KillSignal=", "[Exec] User=", "[Other] Bind="]
        );
        assert_eq!(judged("[Exec]\nBoot=yes\n[Exec\n"), []);
    }

    #[test]
    fn every_key_that_only_trusted_files_may_set_was_thought_of() {
        // Free although systemd would not take them from beside an image: each is harmless where a machine is made of it.
        let free: Vec<&str> = KEYS
            .iter()
            .filter(|key| key.trust == crate::nspawn::schema::Trust::TrustedFile)
            .filter(|key| {
                ["yes", "0", "1", "a", "/a"]
                    .iter()
                    .any(|value| !reaches(key.section, key.name, value))
            })
            .map(|key| key.name)
            .filter(|name| !name.starts_with("Limit"))
            .collect();
        assert_eq!(
            free,
            [
                "Ephemeral",
                "MachineID",
                "OOMScoreAdjust",
                "CPUAffinity",
                "TemporaryFileSystem",
                "Inaccessible",
                "PrivateUsersChown",
                "Private",
                "VirtualEthernet"
            ]
        );
    }
}
