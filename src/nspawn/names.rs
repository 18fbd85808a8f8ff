//! Names that systemd and the kernel give to signals, capabilities, modes, users and interfaces.

use super::number::integer;

/// `PrivateUsers=managed` and `PrivateUsersOwnership=foreign`.
pub(super) const MANAGED_USERS_SINCE: u32 = 258;
/// `HOST:CONTAINER` names in `Interface=`, `MACVLAN=` and `IPVLAN=`; before it systemd did not look at the words.
pub(super) const INTERFACE_PAIRS_SINCE: u32 = 254;

/// A word of `CPUAffinity=` that cannot be read is ignored; before it the whole file was refused.
pub(super) const CPU_SET_FORGIVING_SINCE: u32 = 258;

pub(super) const RESOLV_CONF_MODES: [&str; 15] = [
    "off",
    "copy-host",
    "copy-static",
    "copy-uplink",
    "copy-stub",
    "replace-host",
    "replace-static",
    "replace-uplink",
    "replace-stub",
    "bind-host",
    "bind-static",
    "bind-uplink",
    "bind-stub",
    "delete",
    "auto",
];
pub(super) const LINK_JOURNAL_MODES: [&str; 5] = ["auto", "guest", "host", "try-guest", "try-host"];
pub(super) const TIMEZONE_MODES: [&str; 6] = ["off", "copy", "bind", "symlink", "delete", "auto"];

const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];

const CAPABILITIES: [&str; 41] = [
    "chown",
    "dac_override",
    "dac_read_search",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setpcap",
    "linux_immutable",
    "net_bind_service",
    "net_broadcast",
    "net_admin",
    "net_raw",
    "ipc_lock",
    "ipc_owner",
    "sys_module",
    "sys_rawio",
    "sys_chroot",
    "sys_ptrace",
    "sys_pacct",
    "sys_admin",
    "sys_boot",
    "sys_nice",
    "sys_resource",
    "sys_time",
    "sys_tty_config",
    "mknod",
    "lease",
    "audit_write",
    "audit_control",
    "setfcap",
    "mac_override",
    "mac_admin",
    "syslog",
    "wake_alarm",
    "block_suspend",
    "audit_read",
    "perfmon",
    "bpf",
    "checkpoint_restore",
];

const ADDRESS_FAMILIES: [&str; 48] = [
    "ALG",
    "APPLETALK",
    "ASH",
    "ATMPVC",
    "ATMSVC",
    "AX25",
    "BLUETOOTH",
    "BRIDGE",
    "CAIF",
    "CAN",
    "DECnet",
    "ECONET",
    "FILE",
    "IB",
    "IEEE802154",
    "INET",
    "INET6",
    "IPX",
    "IRDA",
    "ISDN",
    "IUCV",
    "KCM",
    "KEY",
    "LLC",
    "LOCAL",
    "MCTP",
    "MPLS",
    "NETBEUI",
    "NETLINK",
    "NETROM",
    "NFC",
    "PACKET",
    "PHONET",
    "PPPOX",
    "QIPCRTR",
    "RDS",
    "ROSE",
    "ROUTE",
    "RXRPC",
    "SECURITY",
    "SMC",
    "SNA",
    "TIPC",
    "UNIX",
    "VSOCK",
    "WANPIPE",
    "X25",
    "XDP",
];

/// Whether the value means yes or no, case aside.
pub(crate) fn boolean(value: &str) -> Option<bool> {
    match value.to_ascii_lowercase().as_str() {
        "1" | "yes" | "y" | "true" | "t" | "on" => Some(true),
        "0" | "no" | "n" | "false" | "f" | "off" => Some(false),
        _ => None,
    }
}

/// A name with or without `SIG`, `RTMIN+N`, `RTMAX-N`, or a number from 1 to 64.
pub(super) fn is_signal(value: &str) -> bool {
    if let Some(number) = integer(value) {
        return (1..=64).contains(&number);
    }
    let name = value.strip_prefix("SIG").unwrap_or(value);
    let offset = |text: &str, sign| text.starts_with(sign) && integer(text).is_some_and(|n| n.abs() <= 30);
    SIGNALS.contains(&name)
        || name
            .strip_prefix("RTMIN")
            .is_some_and(|rest| rest.is_empty() || offset(rest, '+'))
        || name
            .strip_prefix("RTMAX")
            .is_some_and(|rest| rest.is_empty() || offset(rest, '-'))
}

/// `all`, a name with `CAP_` in either case, or a number.
pub(super) fn is_capability(word: &str, systemd: u32) -> bool {
    if let Some(number) = integer(word) {
        return (0..=if systemd >= 254 { 62 } else { 63 }).contains(&number);
    }
    let lower = word.to_ascii_lowercase();
    word == "all"
        || lower
            .strip_prefix("cap_")
            .is_some_and(|name| CAPABILITIES.contains(&name))
}

/// `AF_…` as the kernel's headers spell it, case aside.
pub(super) fn is_address_family(word: &str) -> bool {
    let upper = word.to_ascii_uppercase();
    let is_named = |name: &str| ADDRESS_FAMILIES.iter().any(|known| known.eq_ignore_ascii_case(name));
    upper.strip_prefix("AF_").is_some_and(is_named)
}

/// The architecture of this machine, or the 32-bit one it can run beside it.
pub(super) fn is_personality(value: &str) -> bool {
    match std::env::consts::ARCH {
        "x86_64" => matches!(value, "x86-64" | "x86"),
        "aarch64" => matches!(value, "arm64" | "arm"),
        "s390x" => matches!(value, "s390x" | "s390"),
        "powerpc64" => matches!(value, "ppc64" | "ppc" | "ppc64-le" | "ppc-le"),
        "riscv64" => value == "riscv64",
        "loongarch64" => value == "loongarch64",
        arch => value == arch,
    }
}

/// A user name in the strict sense of systemd's "User/Group Name Syntax".
pub(super) fn is_user_name(word: &str) -> bool {
    let starts_well = word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    starts_well
        && word.len() <= 31
        && word
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

/// Labels of letters, digits and `-`, at most 63 bytes each and 64 together.
pub(super) fn is_host_name(value: &str) -> bool {
    let is_label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    value.len() <= 64 && value.split('.').all(is_label)
}

/// A name the kernel takes for a network interface, and that is not a number.
pub(super) fn is_interface(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && !matches!(name, "." | ".." | "all" | "default")
        && name
            .bytes()
            .all(|b| (33..127).contains(&b) && !matches!(b, b':' | b'/' | b'%'))
        && !name.bytes().all(|b| b.is_ascii_digit())
        && integer(name).is_none_or(|index| !(1..=i128::from(i32::MAX)).contains(&index))
}
