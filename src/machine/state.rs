//! The states of a machine, and the machine as tables and JSON show it.

use std::net::IpAddr;

use serde::{Serialize, Serializer};

/// Where a machine is in its life. `Opening`, `Running` and `Closing` are machined's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Registered or about to be, its payload not yet running.
    Opening,
    /// Its leader runs.
    Running,
    /// The freezer holds it.
    Frozen,
    /// On its way down.
    Closing,
    /// There is an image, nothing runs.
    Stopped,
    /// Nothing runs, and the unit's last run failed.
    Failed,
}

impl State {
    /// The word in tables and JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Running => "running",
            Self::Frozen => "frozen",
            Self::Closing => "closing",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }
}

/// A value that another party owes us, and may not deliver in time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Seen<T> {
    /// Here it is.
    Value(T),
    /// There is none, or it may not be read: `-` in tables, `null` in JSON.
    #[default]
    None,
    /// No answer in time: `?` in tables, `null` in JSON.
    TimedOut,
}

impl<T> Seen<T> {
    /// The value, if there is one.
    pub fn value(&self) -> Option<&T> {
        if let Self::Value(value) = self {
            Some(value)
        } else {
            None
        }
    }

    /// Turns the value into another.
    pub fn map<U>(self, convert: impl FnOnce(T) -> U) -> Seen<U> {
        match self {
            Self::Value(value) => Seen::Value(convert(value)),
            Self::None => Seen::None,
            Self::TimedOut => Seen::TimedOut,
        }
    }
}

impl<T> From<Option<T>> for Seen<T> {
    fn from(option: Option<T>) -> Self {
        option.map_or(Self::None, Self::Value)
    }
}

impl<T: Serialize> Serialize for Seen<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.value().serialize(serializer)
    }
}

/// A machine as `list` shows it. Fields that were not asked for are `None`.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// Where it is in its life.
    pub state: State,
    /// "container" or "vm"; `None` while it does not run.
    pub class: Option<String>,
    /// What registered it: "systemd-nspawn", "libvirt-qemu" …
    pub service: Option<String>,
    /// The unit it runs in, or would run in.
    pub unit: Option<String>,
    /// PID of its leader on the host.
    pub leader: Option<u32>,
    /// When it was registered, µs since 1970.
    pub since: Option<u64>,
    /// `ID` and version of its os-release.
    pub os: Seen<super::OsRelease>,
    /// Addresses of its own network namespace but loopback's, IPv4 first.
    pub addresses: Seen<Vec<IpAddr>>,
    /// Whether it starts at boot.
    pub enabled: Option<bool>,
    /// Bytes that its image takes of the disk, where the filesystem counts them, and may.
    pub disk: super::status::Usage,
    /// Its labels.
    pub labels: std::collections::BTreeMap<String, String>,
}
