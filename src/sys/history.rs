//! What machinist did to a machine, as [`super::journal::audit`] wrote it down.

use serde::Deserialize;

use super::journal::{Field, text};
use super::process::{ProcessError, Program};
use crate::machine::Cancel;

/// One thing that was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deed {
    /// When, µs since 1970.
    pub time: u64,
    /// To which machine.
    pub machine: String,
    /// "start", "config set" …
    pub verb: String,
    /// "done" or "failed".
    pub result: String,
    /// Who: behind sudo or pkexec the user who called it. `None` if the journal does not tell.
    pub uid: Option<u32>,
    /// What was written down about it.
    pub message: String,
}

/// An entry of `journalctl -o json`. What is no text is passed over.
#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "__REALTIME_TIMESTAMP")]
    time: String,
    #[serde(rename = "MACHINE")]
    machine: String,
    #[serde(rename = "MACHINIST_VERB")]
    verb: String,
    #[serde(rename = "MACHINIST_RESULT")]
    result: String,
    #[serde(rename = "MACHINIST_UID")]
    claimed: Option<String>,
    #[serde(rename = "_UID")]
    real: Option<String>,
    #[serde(rename = "MESSAGE")]
    message: Option<Field>,
}

/// The last deeds, oldest first; `since` as systemd.time(7) has times. Blocks.
///
/// # Errors
/// [`ProcessError::Failed`] if that is no time.
pub fn of_machine(
    machine: &str,
    last: Option<u32>,
    since: Option<&str>,
    cancel: &Cancel,
) -> Result<Vec<Deed>, ProcessError> {
    // What was done just now may still be on its way; without root this is refused, and then we see what we see.
    let _ = Program::new("journalctl").arg("--sync").run(cancel);
    let mut program = Program::new("journalctl").args(["--output=json", "--no-pager", "--quiet", "--all"]);
    program = match (since, last) {
        // 252 takes the first lines since then, and not the last.
        (Some(since), _) => program.arg(format!("--since={since}")),
        (None, Some(last)) => program.arg(format!("--lines={last}")),
        (None, None) => program,
    };
    let output = program
        .args([format!("MACHINE={machine}"), "SYSLOG_IDENTIFIER=machinist".to_owned()])
        .run(cancel)?;
    let mut deeds = parse(&output.stdout);
    let first = last.and_then(|last| deeds.len().checked_sub(usize::try_from(last).ok()?));
    deeds.drain(..first.unwrap_or(0));
    Ok(deeds)
}

fn parse(json: &[u8]) -> Vec<Deed> {
    let entries = json
        .split(|byte| *byte == b'\n')
        .filter_map(|line| serde_json::from_slice::<Raw>(line).ok());
    entries.map(deed).collect()
}

/// Everybody may write to the journal, which vouches only for who did. Of root it is believed for whom it was.
fn deed(raw: Raw) -> Deed {
    let number = |text: Option<String>| text.and_then(|text| text.parse().ok());
    let uid = match number(raw.real) {
        Some(0) => number(raw.claimed).or(Some(0)),
        real => real,
    };
    Deed {
        time: raw.time.parse().unwrap_or_default(),
        machine: raw.machine,
        verb: raw.verb,
        result: raw.result,
        uid,
        message: text(raw.message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_did_it_is_whom_the_journal_vouches_for() {
        let entry = |claimed: &str, real: &str| {
            format!(
                r#"{{"__REALTIME_TIMESTAMP":"7","MACHINE":"web","MACHINIST_VERB":"start","MACHINIST_RESULT":"done"{claimed}{real},"MESSAGE":"m"}}"#
            )
        };
        let (claimed, none) = (r#","MACHINIST_UID":"1000""#, "");
        let uid = |claimed: &str, real: &str| parse(entry(claimed, real).as_bytes())[0].uid;
        assert_eq!(uid(claimed, r#","_UID":"0""#), Some(1000), "by sudo");
        assert_eq!(uid(none, r#","_UID":"0""#), Some(0));
        assert_eq!(uid(r#","MACHINIST_UID":"0""#, r#","_UID":"1001""#), Some(1001), "a lie");
        assert_eq!(uid(claimed, none), None);
        let others = [br#"{"MACHINE":"web","MESSAGE":"no verb"}"#.as_slice(), b"no json", b""].join(&b'\n');
        assert_eq!(parse(&others), []);
    }
}
