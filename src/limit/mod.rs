//! What of a machine can be limited: every key of `limit`, in one table. No I/O.
//!
//! Most keys are those of systemd.resource-control(5) and are set on the unit; resource limits are keys of systemd.nspawn(5)
//! and stand in the machine's settings.

mod amount;
mod assignment;
mod disk;
mod row;

pub use amount::{Amount, Permyriad, ValueError, Wanted, cpus_of};
pub use assignment::{Assignment, LimitError, find, parse, parse_all};
pub use disk::{DiskLimit, read_disk_limit};
pub use row::{Row, Unit};

/// What a key counts, and how systemd is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Bytes or a percentage of the host's memory; at least this many.
    Bytes(u64),
    /// Bytes that are protected and not limited: `none` is 0.
    Protected,
    /// Bytes, of which systemd takes no percentage.
    PlainBytes,
    /// A number of tasks, or a percentage of the host's.
    Tasks,
    /// A number of CPUs, such as 1.5; as `CPUQuota=` only a percentage of one.
    Cpus,
    /// A time span.
    Span,
    /// From 1 to 10000; with `true` also `idle`, which is 0 on the wire.
    Weight(bool),
    /// CPUs of the host, as `0-3,7`.
    Cpuset,
    /// NUMA nodes of the host.
    Nodes,
    /// Bytes a second, for a device.
    Bandwidth,
    /// Operations a second, for a device.
    Iops,
    /// A time span, for a device.
    Latency,
    /// From 1 to 10000, for a device.
    DeviceWeight,
    /// Yes or no.
    Boolean,
    /// One of these.
    Word(&'static [&'static str]),
    /// A percentage.
    Percentage,
    /// What processes are started with, from and to: not to be set on a unit that is loaded, so it stands in a drop-in. The
    /// OOM score is one of these: `OOMScoreAdjust=` of systemd.nspawn(5) keeps machines with private users from starting.
    Process(i32, i32),
    /// A key of `[Exec]` in the machine's settings.
    Exec,
}

impl Kind {
    /// Whether a value belongs to a device.
    #[must_use]
    pub fn per_device(self) -> bool {
        matches!(self, Self::Bandwidth | Self::Iops | Self::Latency | Self::DeviceWeight)
    }
}

/// One key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// The short name, such as `memory`; empty if there is only systemd's.
    pub name: &'static str,
    /// The directive as it stands in files, such as `MemoryMax`.
    pub directive: &'static str,
    /// The property on the bus, where it is not called so.
    renamed: &'static str,
    /// What it counts.
    pub kind: Kind,
    /// The first systemd that has it.
    pub since: u32,
}

impl Key {
    /// The name that is shown: the short one, or systemd's.
    #[must_use]
    pub fn shown(&self) -> &'static str {
        if self.name.is_empty() {
            self.directive
        } else {
            self.name
        }
    }

    /// The property on the bus.
    #[must_use]
    pub fn property(&self) -> &'static str {
        if self.renamed.is_empty() {
            self.directive
        } else {
            self.renamed
        }
    }

    /// The property that takes a percentage of what the host has.
    #[must_use]
    pub fn scale(&self) -> Option<&'static str> {
        Some(match self.directive {
            "MemoryMax" => "MemoryMaxScale",
            "MemoryHigh" => "MemoryHighScale",
            "MemoryLow" => "MemoryLowScale",
            "MemoryMin" => "MemoryMinScale",
            "MemorySwapMax" => "MemorySwapMaxScale",
            "TasksMax" => "TasksMaxScale",
            _ => return None,
        })
    }

    /// Whether it is set on the unit, on the bus.
    #[must_use]
    pub fn is_property(&self) -> bool {
        !matches!(self.kind, Kind::Exec | Kind::Process(..))
    }
}

const fn key(name: &'static str, directive: &'static str, kind: Kind) -> Key {
    Key {
        name,
        directive,
        renamed: "",
        kind,
        since: 0,
    }
}

const fn plain(directive: &'static str, kind: Kind) -> Key {
    key("", directive, kind)
}

const fn since(version: u32, key: Key) -> Key {
    Key { since: version, ..key }
}

const fn on_bus(property: &'static str, key: Key) -> Key {
    Key {
        renamed: property,
        ..key
    }
}

use Kind as K;

/// How systemd-oomd is told to act.
const AUTO_KILL: Kind = K::Word(&["auto", "kill"]);

/// The table, in the order in which limits are shown.
pub static KEYS: [Key; 55] = [
    key("memory", "MemoryMax", K::Bytes(1)),
    key("memory-high", "MemoryHigh", K::Bytes(1)),
    key("memory-low", "MemoryLow", K::Protected),
    key("memory-min", "MemoryMin", K::Protected),
    key("swap", "MemorySwapMax", K::Bytes(0)),
    since(253, key("zswap", "MemoryZSwapMax", K::PlainBytes)),
    on_bus("CPUQuotaPerSecUSec", key("cpus", "CPUQuota", K::Cpus)),
    key("cpu-weight", "CPUWeight", K::Weight(true)),
    key("cpuset", "AllowedCPUs", K::Cpuset),
    key("memory-nodes", "AllowedMemoryNodes", K::Nodes),
    key("tasks", "TasksMax", K::Tasks),
    key("io-weight", "IOWeight", K::Weight(false)),
    key("io-read", "IOReadBandwidthMax", K::Bandwidth),
    key("io-write", "IOWriteBandwidthMax", K::Bandwidth),
    key("io-read-iops", "IOReadIOPSMax", K::Iops),
    key("io-write-iops", "IOWriteIOPSMax", K::Iops),
    on_bus(
        "IODeviceLatencyTargetUSec",
        key("io-latency", "IODeviceLatencyTargetSec", K::Latency),
    ),
    plain("IODeviceWeight", K::DeviceWeight),
    on_bus("CPUQuotaPeriodUSec", plain("CPUQuotaPeriodSec", K::Span)),
    since(253, plain("StartupMemoryLow", K::PlainBytes)),
    since(253, plain("StartupMemoryHigh", K::PlainBytes)),
    since(253, plain("StartupMemoryMax", K::PlainBytes)),
    since(253, plain("StartupMemorySwapMax", K::PlainBytes)),
    since(253, plain("StartupMemoryZSwapMax", K::PlainBytes)),
    plain("StartupCPUWeight", K::Weight(true)),
    plain("StartupIOWeight", K::Weight(false)),
    plain("StartupAllowedCPUs", K::Cpuset),
    plain("StartupAllowedMemoryNodes", K::Nodes),
    plain("MemoryAccounting", K::Boolean),
    plain("TasksAccounting", K::Boolean),
    plain("IOAccounting", K::Boolean),
    plain("IPAccounting", K::Boolean),
    since(256, plain("MemoryZSwapWriteback", K::Boolean)),
    plain("ManagedOOMSwap", AUTO_KILL),
    plain("ManagedOOMMemoryPressure", AUTO_KILL),
    plain("ManagedOOMMemoryPressureLimit", K::Percentage),
    plain("ManagedOOMPreference", K::Word(&["none", "avoid", "omit"])),
    key("nice", "Nice", K::Process(-20, 19)),
    key("oom-score", "OOMScoreAdjust", K::Process(-1000, 1000)),
    key("nofile", "LimitNOFILE", K::Exec),
    key("nproc", "LimitNPROC", K::Exec),
    key("cpu-time", "LimitCPU", K::Exec),
    key("fsize", "LimitFSIZE", K::Exec),
    key("data", "LimitDATA", K::Exec),
    key("stack", "LimitSTACK", K::Exec),
    key("core", "LimitCORE", K::Exec),
    key("rss", "LimitRSS", K::Exec),
    key("as", "LimitAS", K::Exec),
    key("memlock", "LimitMEMLOCK", K::Exec),
    key("locks", "LimitLOCKS", K::Exec),
    key("sigpending", "LimitSIGPENDING", K::Exec),
    key("msgqueue", "LimitMSGQUEUE", K::Exec),
    key("rtprio", "LimitRTPRIO", K::Exec),
    key("rttime", "LimitRTTIME", K::Exec),
    plain("LimitNICE", K::Exec),
];

/// Directives of systemd.resource-control(5) that say something else than how much a machine may use.
pub(crate) const OTHERS: &[&str] = &[
    "BPFProgram",
    "CPUAccounting",
    "CoredumpReceive",
    "DefaultMemoryLow",
    "DefaultMemoryMin",
    "Delegate",
    "DelegateSubgroup",
    "DeviceAllow",
    "DevicePolicy",
    "DisableControllers",
    "IPAddressAllow",
    "IPAddressDeny",
    "IPEgressFilterPath",
    "IPIngressFilterPath",
    "MemoryPressureThresholdSec",
    "NFTSet",
    "RestrictNetworkInterfaces",
    "Slice",
    "SocketBindAllow",
    "SocketBindDeny",
];
