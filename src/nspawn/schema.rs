//! Every key of systemd.nspawn(5), in one table.

use super::value::{Empty, Limit, ValueType};

/// The oldest systemd whose behaviour the table describes.
pub const OLDEST_SYSTEMD: u32 = 252;
/// The newest systemd whose parser the table was compared with.
pub const NEWEST_SYSTEMD: u32 = 262;

/// What systemd does when a key stands more than once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// The last valid assignment wins.
    Single,
    /// Assignments add up.
    List,
}

/// Which files may set a key; see "Privileged settings" in systemd.nspawn(5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Any file.
    AnyFile,
    /// Only /etc/systemd/nspawn and /run/systemd/nspawn; ignored in a file beside the image.
    TrustedFile,
    /// As `TrustedFile`, but a value that begins with `~`, and so only takes away, is accepted from any file.
    TrustedUnlessNegated,
}

/// One key.
#[derive(Debug, PartialEq, Eq)]
pub struct Key {
    /// `Exec`, `Files` or `Network`.
    pub section: &'static str,
    /// The key as it is spelled; case matters.
    pub name: &'static str,
    /// What values it takes.
    pub value: ValueType,
    /// What several assignments mean.
    pub repeat: Repeat,
    /// Which files may set it.
    pub trust: Trust,
    /// The first systemd that knows it.
    pub since: u32,
    /// The key that took over its job, where it is only understood for old files.
    pub replaced_by: Option<&'static str>,
}

impl Key {
    /// `Section.Key`, as `config get` and `--set` take it.
    #[must_use]
    pub fn path(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }

    /// Whether that systemd reads the key.
    #[must_use]
    pub fn known_to(&self, systemd: u32) -> bool {
        systemd >= self.since
    }

    /// Whether several assignments add up.
    #[must_use]
    pub fn is_list(&self) -> bool {
        self.repeat == Repeat::List
    }

    /// Whether a file beside the image may set it to this value.
    #[must_use]
    pub fn needs_trust(&self, value: &str) -> bool {
        match self.trust {
            Trust::AnyFile => false,
            Trust::TrustedFile => true,
            Trust::TrustedUnlessNegated => !value.starts_with('~'),
        }
    }

    /// The other name of the same thing, older or newer.
    #[must_use]
    pub fn renamed(&self) -> Option<&'static Key> {
        KEYS.iter().find(|other| {
            other.section == self.section
                && (self.replaced_by == Some(other.name) || other.replaced_by == Some(self.name))
        })
    }

    /// The key whose lines can undo this one's: another name of it, or the other half of the start mode.
    pub(super) fn related(&self) -> Option<&'static Key> {
        match (self.section, self.name) {
            ("Exec", "Boot") => find("Exec", "ProcessTwo"),
            ("Exec", "ProcessTwo") => find("Exec", "Boot"),
            _ => self.renamed(),
        }
    }

    /// What `Key=` with nothing behind it does.
    #[must_use]
    pub fn empty(&self, systemd: u32) -> Empty {
        self.value.empty(systemd)
    }
}

/// The sections, in the order of the manual.
pub const SECTIONS: [&str; 3] = ["Exec", "Files", "Network"];

/// The key of that name in that section.
#[must_use]
pub fn find(section: &str, name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.section == section && key.name == name)
}

const fn key(section: &'static str, name: &'static str, value: ValueType, repeat: Repeat, since: u32) -> Key {
    Key {
        section,
        name,
        value,
        repeat,
        trust: Trust::AnyFile,
        since,
        replaced_by: None,
    }
}

const fn trusted(section: &'static str, name: &'static str, value: ValueType, repeat: Repeat, since: u32) -> Key {
    Key {
        section,
        name,
        value,
        repeat,
        trust: Trust::TrustedFile,
        since,
        replaced_by: None,
    }
}

const fn limit(name: &'static str, kind: Limit) -> Key {
    trusted("Exec", name, ValueType::Rlimit(kind), Repeat::Single, 239)
}

use Repeat::{List, Single};
use ValueType as V;

/// The table.
pub static KEYS: [Key; 65] = [
    key("Exec", "Boot", V::Boolean, Single, 226),
    trusted("Exec", "Ephemeral", V::Tristate, Single, 240),
    key("Exec", "ProcessTwo", V::Boolean, Single, 229),
    key("Exec", "Parameters", V::Words, List, 226),
    key("Exec", "Environment", V::Environment, List, 226),
    key("Exec", "User", V::UserName, Single, 226),
    trusted("Exec", "Capability", V::Capabilities, List, 226),
    trusted("Exec", "AmbientCapability", V::Capabilities, List, 248),
    key("Exec", "DropCapability", V::Capabilities, List, 226),
    key("Exec", "KillSignal", V::Signal, Single, 230),
    key("Exec", "Personality", V::Personality, Single, 226),
    trusted("Exec", "MachineID", V::Id128, Single, 226),
    key("Exec", "WorkingDirectory", V::Path, Single, 229),
    key("Exec", "PivotRoot", V::PivotRoot, Single, 233),
    trusted("Exec", "PrivateUsers", V::PrivateUsers, Single, 230),
    trusted("Exec", "PrivateUsersDelegate", V::Unsigned, Single, 260),
    key("Exec", "NotifyReady", V::Tristate, Single, 231),
    Key {
        trust: Trust::TrustedUnlessNegated,
        ..key("Exec", "SystemCallFilter", V::SyscallFilter, List, 235)
    },
    limit("LimitCPU", Limit::Seconds),
    limit("LimitFSIZE", Limit::Size),
    limit("LimitDATA", Limit::Size),
    limit("LimitSTACK", Limit::Size),
    limit("LimitCORE", Limit::Size),
    limit("LimitRSS", Limit::Size),
    limit("LimitNOFILE", Limit::Number),
    limit("LimitAS", Limit::Size),
    limit("LimitNPROC", Limit::Number),
    limit("LimitMEMLOCK", Limit::Size),
    limit("LimitLOCKS", Limit::Number),
    limit("LimitSIGPENDING", Limit::Number),
    limit("LimitMSGQUEUE", Limit::Size),
    limit("LimitNICE", Limit::Nice),
    limit("LimitRTPRIO", Limit::Number),
    limit("LimitRTTIME", Limit::Microseconds),
    key("Exec", "Hostname", V::Hostname, Single, 239),
    key("Exec", "NoNewPrivileges", V::Tristate, Single, 239),
    trusted("Exec", "OOMScoreAdjust", V::OomScoreAdjust, Single, 239),
    trusted("Exec", "CPUAffinity", V::CpuSet, List, 239),
    key("Exec", "ResolvConf", V::ResolvConf, Single, 239),
    trusted("Exec", "LinkJournal", V::LinkJournal, Single, 239),
    key("Exec", "Timezone", V::Timezone, Single, 239),
    key("Exec", "SuppressSync", V::Tristate, Single, 250),
    key("Exec", "RestrictAddressFamilies", V::AddressFamilies, List, 261),
    key("Files", "ReadOnly", V::Tristate, Single, 226),
    key("Files", "Volatile", V::Volatile, Single, 226),
    trusted("Files", "Bind", V::Bind, List, 226),
    trusted("Files", "BindReadOnly", V::Bind, List, 226),
    trusted("Files", "TemporaryFileSystem", V::Tmpfs, List, 226),
    trusted("Files", "Inaccessible", V::Inaccessible, List, 242),
    trusted("Files", "Overlay", V::Overlay, List, 233),
    trusted("Files", "OverlayReadOnly", V::Overlay, List, 233),
    Key {
        replaced_by: Some("PrivateUsersOwnership"),
        ..trusted("Files", "PrivateUsersChown", V::Boolean, Single, 230)
    },
    trusted("Files", "PrivateUsersOwnership", V::Ownership, Single, 249),
    trusted("Files", "BindUser", V::UserNames, List, 249),
    trusted("Files", "BindUserShell", V::UserShell, Single, 258),
    trusted("Network", "Private", V::Tristate, Single, 226),
    trusted("Network", "NamespacePath", V::Path, Single, 259),
    trusted("Network", "Interface", V::InterfacePairs, List, 226),
    trusted("Network", "MACVLAN", V::InterfacePairs, List, 226),
    trusted("Network", "IPVLAN", V::InterfacePairs, List, 226),
    trusted("Network", "VirtualEthernet", V::Tristate, Single, 226),
    trusted("Network", "VirtualEthernetExtra", V::VethExtra, List, 228),
    trusted("Network", "Bridge", V::Interface, Single, 226),
    trusted("Network", "Zone", V::Zone, Single, 230),
    trusted("Network", "Port", V::Port, List, 226),
];
