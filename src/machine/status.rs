//! One machine in full, as `status` shows it; also its JSON schema.

use std::net::IpAddr;

use serde::Serialize;

use super::{OsRelease, Seen, State};

/// Everything that `status` knows. What does not apply, or may not be read, is `None`.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// Where it is in its life.
    pub state: State,
    /// "container" or "vm".
    pub class: Option<String>,
    /// What registered it.
    pub service: Option<String>,
    /// When it was registered, RFC 3339.
    pub since: Option<String>,
    /// PID of its leader on the host.
    pub leader: Option<u32>,
    /// What the leader runs.
    pub leader_command: Option<String>,
    /// The unit it runs in, or would run in.
    pub unit: String,
    /// How the unit's last run ended, where it failed.
    pub result: Option<String>,
    /// What its own system manager last said: "Ready."
    pub status_text: Option<String>,
    /// Whether it starts at boot.
    pub enabled: bool,
    /// What its os-release says.
    pub os: Seen<OsRelease>,
    /// Its addresses.
    pub addresses: Seen<Vec<IpAddr>>,
    /// Whether it has a network namespace of its own.
    pub private_network: Option<bool>,
    /// First uid on the host, and how many: where its uid 0 lies.
    pub uid_shift: Option<UidShift>,
    /// Namespaces that it shares with the host, and that are its own; only on request.
    pub namespaces: Option<Vec<Namespace>>,
    /// Where its image lies.
    pub image: Option<String>,
    /// The settings file that is in force.
    pub settings: Option<String>,
    /// Drop-ins of its unit.
    pub drop_ins: Vec<String>,
    /// Memory, in bytes.
    pub memory: Usage,
    /// Tasks.
    pub tasks: Usage,
    /// CPU time, in ns; the limit is the quota in µs per second.
    pub cpu: Usage,
    /// What its image takes of the disk, in bytes, where the filesystem counts that.
    pub disk: Usage,
    /// Its control group.
    pub control_group: Option<String>,
    /// Its processes.
    pub processes: Vec<Process>,
    /// The last lines of its unit's journal, oldest first.
    pub journal: Vec<JournalLine>,
}

/// A private-users mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct UidShift {
    /// The host's uid of its root.
    pub base: u32,
    /// How many uids it has.
    pub count: u32,
}

/// One kind of namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Namespace {
    /// "mnt", "net", "pid", "user" …
    pub kind: String,
    /// The inode number that `lsns` shows.
    pub id: String,
    /// Whether it is the host's.
    pub shared: bool,
}

/// What is used of what is allowed; `limit` is `None` where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Used now.
    pub current: Option<u64>,
    /// The most that was used, where the kernel counts it.
    pub peak: Option<u64>,
    /// The most that may be used.
    pub limit: Option<u64>,
}

/// A process of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Process {
    /// Its control group, relative to the unit's.
    pub control_group: String,
    /// Its PID on the host.
    pub pid: u32,
    /// Its command line.
    pub command: String,
}

/// A line of the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct JournalLine {
    /// When, RFC 3339.
    pub time: String,
    /// Who said it.
    pub identifier: String,
    /// What.
    pub message: String,
}
