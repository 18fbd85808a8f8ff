//! Which of the units that a unit needs did not start, and why.

use std::collections::HashSet;
use std::path::Path;

use super::diagnose::Diagnosis;
use crate::machine::Cancel;
use crate::machine::text::printable;
use crate::sys::bus::properties::Properties;
use crate::sys::bus::{Bus, BusError};
use crate::sys::journal;

/// How many units are looked at: a chain of mounts is not longer.
const UNITS_MAX: usize = 100;

/// See [`Diagnosis::code`].
const CODE: &str = "dependency-failed";

/// Why a unit did not start whose job ended as `dependency`, `assert` or `failed`: the first that is down for a reason of its
/// own, of it and all that it needs; `None` if there is none any more.
pub(in crate::ops) async fn why_not_started(
    bus: &Bus,
    root: &str,
    job_result: &str,
) -> Result<Option<Diagnosis>, BusError> {
    let is_dependency = job_result == "dependency";
    let (mut queue, mut seen) = (vec![root.to_owned()], HashSet::new());
    while let Some(unit) = queue.pop() {
        if seen.len() >= UNITS_MAX || !seen.insert(unit.clone()) {
            continue;
        }
        let wanted = [
            "ActiveState",
            "LoadState",
            "Asserts",
            "InvocationID",
            "Requires",
            "BindsTo",
        ];
        let state = bus.unit_properties(&unit, "Unit", &wanted).await?;
        match state.string("ActiveState").as_str() {
            // Its own failure is that of a former start, if what it needs kept this one from beginning.
            "failed" if unit != root || !is_dependency => {
                return Ok(Some(failed(&unit, &state).await));
            }
            "inactive" | "failed" => {
                if let Some((assertion, value, _)) = state.assertions().into_iter().find(is_not_met) {
                    return Ok(Some(not_asserted(&unit, &assertion, &value)));
                }
            }
            // Whatever it needs is up.
            _ => continue,
        }
        if state.string("LoadState") == "not-found" {
            return Ok(Some(Diagnosis {
                code: CODE,
                cause: format!("there is no unit {}, which it needs", printable(&unit)),
                hints: vec![see(&unit)],
                ..Diagnosis::default()
            }));
        }
        queue.extend(state.strings("Requires"));
        queue.extend(state.strings("BindsTo"));
    }
    Ok(None)
}

const IS_DIRECTORY: &str = "AssertPathIsDirectory";

/// Whether an assertion was not met. systemd may have forgotten by now how it came out.
fn is_not_met((assertion, value, result): &(String, String, i32)) -> bool {
    *result < 0 || (*result == 0 && assertion == IS_DIRECTORY && !value.starts_with('!') && !Path::new(value).is_dir())
}

fn see(unit: &str) -> String {
    format!("see `systemctl status '{}'`", printable(unit))
}

fn not_asserted(unit: &str, assertion: &str, value: &str) -> Diagnosis {
    let said = printable(&format!("{unit}: {assertion}={value} was not met"));
    if assertion == IS_DIRECTORY {
        return Diagnosis {
            code: "layer-lost",
            cause: format!("directory '{}' is missing", printable(value)),
            evidence: vec![said],
            hints: vec!["bring it back from a backup: the machine lies on it".to_owned()],
            line: None,
        };
    }
    Diagnosis {
        code: CODE,
        cause: said,
        hints: vec![see(unit)],
        ..Diagnosis::default()
    }
}

async fn failed(unit: &str, state: &Properties) -> Diagnosis {
    let invocation = state.hex("InvocationID");
    let its = unit.to_owned();
    let read = move || journal::of_invocation(&its, &invocation, None, |_| true, &Cancel::default());
    let lines = tokio::task::spawn_blocking(read).await.ok().and_then(Result::ok);
    // What it said itself, not what systemd says of it.
    let said = lines.into_iter().flatten().rfind(|line| line.identifier != "systemd");
    Diagnosis {
        code: CODE,
        cause: format!("unit {}, which it needs, failed", printable(unit)),
        evidence: said
            .iter()
            .map(|line| format!("{}: {}", printable(&line.identifier), printable(line.message.trim())))
            .collect(),
        hints: vec![see(unit)],
        line: said,
    }
}
