//! Which settings of a machine's unit reach beyond the machine: those that a stranger's archive must not bring without a word.
//!
//! A list of what may be, each with the values that it may have, and not of what may not.

use super::keys;
use super::label::Label;
use super::{OWN_SECTION, console, key};
use crate::limit;
use crate::machine::MachineName;
use crate::nspawn::edit::check_value;
use crate::nspawn::names::boolean;
use crate::nspawn::number::{integer_in, time_span};

/// The beginning of the environment variable that gives systemd-nspawn a hardware address.
const MAC: &str = "SYSTEMD_NSPAWN_NETWORK_MAC=";
/// The longest stop, in µs.
const STOP_MAX: u64 = 600_000_000;
/// The most tasks: what `systemd-nspawn@.service` has.
const TASKS_MAX: u64 = 16_384;
/// How a delay begins.
const SLEEP: &str = "/usr/bin/sleep ";

/// What an assignment may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// It is about the machine and nothing else.
    Inside,
    /// It is one of systemd's, and may reach beyond the machine: it runs programs on the host, allows devices, starts units.
    Beyond,
    /// Nobody knows it, or it is none of a machine's.
    Unknown,
}

/// What an assignment of a drop-in may do.
#[must_use]
pub fn reach(section: &str, name: &str, value: &str) -> Reach {
    if check_value(value).is_err() {
        return Reach::Unknown;
    }
    let is_inside = match section {
        OWN_SECTION => return own(name, value),
        "Unit" => unit(name, value),
        "Service" => service(name, value),
        _ => return Reach::Unknown,
    };
    if is_inside {
        Reach::Inside
    } else if keys::find(section, name).is_some() {
        Reach::Beyond
    } else {
        Reach::Unknown
    }
}

/// systemd ignores that section; machinist reads these keys of it.
fn own(name: &str, value: &str) -> Reach {
    let is_sound = match name {
        "Label" => Label::parse(value).is_ok(),
        "Group" => !value.is_empty() && value.len() <= 100 && value.bytes().all(|b| b.is_ascii_graphic()),
        "Priority" => value.parse::<i64>().is_ok(),
        "Protected" => boolean(value).is_some(),
        _ => false,
    };
    if is_sound { Reach::Inside } else { Reach::Unknown }
}

fn unit(name: &str, value: &str) -> bool {
    match name {
        // A percent sign has systemd put in what the host is called, and the like.
        "Description" => !value.contains('%'),
        // Before others it could keep them from starting.
        "After" => {
            let is_machine = |unit: &str| MachineName::of_unit(unit).is_some();
            is_console(name, value) || (!value.is_empty() && value.split_whitespace().all(is_machine))
        }
        "Wants" => is_console(name, value),
        "StartLimitIntervalSec" => is_span(value),
        "StartLimitBurst" => integer_in(value, 0, 10_000).is_some(),
        _ => false,
    }
}

fn service(name: &str, value: &str) -> bool {
    match name {
        "Restart" => key::RESTART.contains(&value),
        "RestartSec" | "TimeoutStartSec" | "RuntimeMaxSec" => value == "infinity" || is_span(value),
        // The host's shutdown waits for it.
        "TimeoutStopSec" => time_span(value, 1_000_000).is_some_and(|span| span <= STOP_MAX),
        // What the template unit allows.
        "TasksMax" => value.parse::<u64>().is_ok_and(|tasks| tasks <= TASKS_MAX),
        "ExecStartPre" => value
            .strip_prefix(SLEEP)
            .is_some_and(|seconds| !seconds.is_empty() && seconds.bytes().all(|b| b.is_ascii_digit() || b == b'.')),
        // What a restart needs, to the letter.
        "ExecStopPost" => value == key::FORGET_KILLED,
        "StandardInput" => value == console::NOTHING || value == console::TERMINAL,
        "StandardOutput" | "StandardError" => is_console(name, value),
        "Environment" => value.strip_prefix(MAC).is_some_and(is_address),
        // A place before all others, or one that the kernel spares, is at their cost.
        "Nice" | "OOMScoreAdjust" => integer_in(value, 0, 1000).is_some(),
        "ManagedOOMPreference" => value == "none",
        _ => match limit::find(name) {
            Some((key, true)) if key.is_property() => {
                // In files a device is told from its value by a blank.
                let value = if key.kind.per_device() && value.starts_with('/') {
                    value.replacen(' ', ":", 1)
                } else {
                    value.to_owned()
                };
                limit::parse(&format!("{name}={value}")).is_ok()
            }
            _ => false,
        },
    }
}

/// Whether it is what goes along with a console that can be typed into.
fn is_console(name: &str, value: &str) -> bool {
    console::BESIDE
        .iter()
        .any(|(_, key, wanted)| *key == name && *wanted == value)
}

fn is_span(value: &str) -> bool {
    time_span(value, 1_000_000).is_some()
}

/// Six bytes in hexadecimal digits; not one that stands for several.
fn is_address(text: &str) -> bool {
    let bytes: Vec<Option<u8>> = text
        .split(':')
        .map(|byte| {
            u8::from_str_radix(byte, 16)
                .ok()
                .filter(|_| byte.len() == 2 && !byte.starts_with('+'))
        })
        .collect();
    bytes.len() == 6 && bytes.iter().all(Option::is_some) && bytes[0].is_some_and(|first| first & 1 == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Reach {
        let (section, rest) = text.split_once('.').unwrap();
        let (key, value) = rest.split_once('=').unwrap();
        reach(section, key, value)
    }

    #[test]
    fn limits_order_and_labels_stay_inside() {
        for text in [
            "Service.MemoryMax=1073741824",
            "Service.MemoryMax=50%",
            "Service.MemoryMax=",
            "Service.CPUQuota=150%",
            "Service.AllowedCPUs=0-1",
            "Service.TasksMax=77",
            "Service.IOReadBandwidthMax=/dev/sda 10M",
            "Service.Nice=5",
            "Service.OOMScoreAdjust=100",
            "Service.Restart=always",
            "Service.RestartSec=5s",
            "Service.ExecStartPre=/usr/bin/sleep 1.5",
            "Service.StandardInput=file:/run/machinist/console/%i.tty",
            "Service.Environment=SYSTEMD_NSPAWN_NETWORK_MAC=02:00:00:00:00:07",
            "Unit.After=systemd-nspawn@db.service",
            "Unit.Wants=machinist-console@%i.service",
            "Unit.Description=The web",
            "X-Machinist.Label=role=web",
            "X-Machinist.Priority=-10",
            "X-Machinist.Protected=yes",
        ] {
            assert_eq!(of(text), Reach::Inside, "{text}");
        }
        assert_eq!(reach("Service", "ExecStopPost", key::FORGET_KILLED), Reach::Inside);
    }

    #[test]
    fn what_gives_power_over_the_host_reaches() {
        for text in [
            "Service.ExecStart=/bin/sh",
            "Service.ExecStart=",
            "Service.ExecStartPre=/bin/sh -c id",
            "Service.ExecStartPre=/usr/bin/sleep 1 ; /bin/sh",
            "Service.ExecStopPost=+/bin/sh",
            "Service.Environment=LD_PRELOAD=/x",
            "Service.Environment=SYSTEMD_NSPAWN_NETWORK_MAC=02:00:00:00:00:07 SYSTEMD_NSPAWN_USE_CGNS=0",
            "Service.Environment=SYSTEMD_NSPAWN_NETWORK_MAC=01:00:00:00:00:07",
            "Service.EnvironmentFile=/etc/shadow",
            "Service.DeviceAllow=block-* rwm",
            "Service.DevicePolicy=auto",
            "Service.Slice=system.slice",
            "Service.LoadCredential=a:/etc/shadow",
            "Service.StandardOutput=file:/etc/passwd",
            "Service.User=root",
            "Service.Nice=-20",
            "Service.OOMScoreAdjust=-1000",
            "Service.LimitNOFILE=1",
            "Unit.OnFailure=reboot.target",
            "Unit.Wants=rescue.target",
            "Unit.After=network.target",
            "Unit.FailureAction=reboot",
            "Unit.Description=%H",
        ] {
            assert_eq!(of(text), Reach::Beyond, "{text}");
        }
        for text in [
            "Service.NoSuch=1",
            "Install.WantedBy=x.target",
            "X-Machinist.CommandLine=a",
            "Unit.After=a\u{7}",
        ] {
            assert_eq!(of(text), Reach::Unknown, "{text}");
        }
    }
}
