//! What a transient service is given, so that it is as a program that was joined in: see systemd.exec(5) and
//! systemd.service(5).

use std::fs;

use zbus::Variant;

use super::EnterError;
use super::protocol::Run;
use crate::machine::text::printable;
use crate::sys::guest::Leader;

/// Resource limits as `/proc/PID/limits` names them, and the properties that set them.
const LIMITS: [(&str, &str); 16] = [
    ("Max cpu time", "LimitCPU"),
    ("Max file size", "LimitFSIZE"),
    ("Max data size", "LimitDATA"),
    ("Max stack size", "LimitSTACK"),
    ("Max core file size", "LimitCORE"),
    ("Max resident set", "LimitRSS"),
    ("Max processes", "LimitNPROC"),
    ("Max open files", "LimitNOFILE"),
    ("Max locked memory", "LimitMEMLOCK"),
    ("Max address space", "LimitAS"),
    ("Max file locks", "LimitLOCKS"),
    ("Max pending signals", "LimitSIGPENDING"),
    ("Max msgqueue size", "LimitMSGQUEUE"),
    ("Max nice priority", "LimitNICE"),
    ("Max realtime priority", "LimitRTPRIO"),
    ("Max realtime timeout", "LimitRTTIME"),
];

pub(super) fn text(bytes: &[u8], what: &str) -> Result<String, EnterError> {
    String::from_utf8(bytes.to_vec())
        .map_err(|_| EnterError::Refused(format!("it takes UTF-8 only, and {what} is something else")))
}

pub(super) fn texts(list: &[Vec<u8>], what: &str) -> Result<Vec<String>, EnterError> {
    list.iter().map(|bytes| text(bytes, what)).collect()
}

pub(super) type Property = (String, Variant<'static>);

pub(super) fn property(name: impl Into<String>, value: impl Into<Variant<'static>>) -> Property {
    (name.into(), value.into())
}

/// As whom and where it is to run.
pub(super) fn properties_of(run: &Run) -> Result<Vec<Property>, EnterError> {
    let mut list = vec![
        property("Description", "Command run by machinist"),
        // It counts as started when the program is executed, and is forgotten when that has ended.
        property("Type", "exec"),
        property("CollectMode", "inactive-or-failed"),
        property("DefaultDependencies", false),
        // What the program leaves running goes on, as it does without systemd.
        property("KillMode", "process"),
        property("IgnoreSIGPIPE", false),
        property("Environment", texts(&run.env, "a variable")?),
        property("WorkingDirectory", working_directory(run)?),
    ];
    if (run.uid, run.gid, run.groups.as_slice()) != (0, 0, &[]) {
        let groups: Vec<String> = run.groups.iter().map(u32::to_string).collect();
        list.extend([
            property("User", run.uid.to_string()),
            property("Group", run.gid.to_string()),
            property("SupplementaryGroups", groups),
        ]);
    }
    Ok(list)
}

/// With `-` it may be missing: then it is `/`.
fn working_directory(run: &Run) -> Result<String, EnterError> {
    let optional = if run.directories.len() > 1 { "-" } else { "" };
    let directory = text(&run.directories[0], "the directory")?;
    // systemd does not take these.
    if !directory.split('/').any(|part| [".", ".."].contains(&part)) {
        Ok(format!("{optional}/{}", directory.trim_matches('/')))
    } else if optional.is_empty() {
        let directory = printable(&directory);
        Err(EnterError::Failed(format!(
            "its systemd takes no '.' or '..' in directory '{directory}'"
        )))
    } else {
        Ok("/".to_owned())
    }
}

/// What a service is not given by itself as PID 1 has it: resource limits, umask, OOM score. `None` if it is gone.
pub(super) fn attributes_of(leader: &Leader) -> Option<Vec<Property>> {
    let read = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", leader.pid())).ok();
    let (limits, status, score) = (read("limits")?, read("status")?, read("oom_score_adj")?);
    let umask = status.lines().find_map(|line| line.strip_prefix("Umask:"))?.trim();
    let mut list = limits_in(&limits)?;
    list.push(property("UMask", u32::from_str_radix(umask, 8).ok()?));
    list.push(property("OOMScoreAdjust", score.trim().parse::<i32>().ok()?));
    leader.is_alive().then_some(list)
}

/// All limits of a `/proc/PID/limits`, soft and hard.
fn limits_in(text: &str) -> Option<Vec<Property>> {
    let number = |word: &str| match word {
        "unlimited" => Some(u64::MAX),
        word => word.parse().ok(),
    };
    let mut list = Vec::new();
    for (name, property_name) in LIMITS {
        let values = text.lines().find_map(|line| line.strip_prefix(name))?;
        let mut values = values.split_whitespace();
        list.push(property(format!("{property_name}Soft"), number(values.next()?)?));
        list.push(property(property_name, number(values.next()?)?));
    }
    Some(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_is_found_or_none_is() {
        let line = |(name, _): (&str, &str)| format!("{name:<25} 1024 unlimited files\n");
        let text: String = LIMITS.map(line).concat();
        let list = limits_in(&text).unwrap();
        assert_eq!(list.len(), 2 * LIMITS.len());
        assert!(list.contains(&property("LimitNOFILESoft", 1024_u64)));
        assert!(list.contains(&property("LimitNOFILE", u64::MAX)));
        assert!(limits_in(text.trim_start_matches("Max cpu time")).is_none());
    }
}
