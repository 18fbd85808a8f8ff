//! The journal: what machinist did goes in, what a unit said comes out.

use log::{Level, Log as _, Record, kv};
use serde::Deserialize;
use systemd_journal_logger::JournalLog;

use super::process::{ProcessError, Program};
use crate::machine::Cancel;
use crate::unit::console::unit_beside;

/// How many of the last lines of an invocation are read.
const LINES: &str = "200";

/// One line of the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// µs since 1970.
    pub time: u64,
    /// `SYSLOG_IDENTIFIER`: "systemd", "systemd-nspawn" …
    pub identifier: String,
    /// `_TRANSPORT`: "journal", "stdout" …
    pub transport: String,
    /// `PRIORITY`, 0 (emerg) to 7 (debug); 6 if missing.
    pub priority: u8,
    /// `_PID`; 0 if missing.
    pub pid: u32,
    /// `_SYSTEMD_UNIT`; empty if journald could not learn it any more.
    pub unit: String,
    /// `MESSAGE`, lossily as text. It may come from a guest.
    pub message: String,
}

/// The main process of an invocation. Times are µs since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MainProcess {
    /// Its number.
    pub pid: u64,
    /// When it was started.
    pub started: u64,
    /// When it ended.
    pub ended: u64,
}

/// A value of `journalctl -o json`: text, or bytes where it is not printable, or null where it is too large.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Field {
    Text(String),
    Bytes(Vec<u8>),
    Other(serde::de::IgnoredAny),
}

#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "__REALTIME_TIMESTAMP")]
    time: Option<String>,
    #[serde(rename = "SYSLOG_IDENTIFIER")]
    identifier: Option<Field>,
    #[serde(rename = "_TRANSPORT")]
    transport: Option<Field>,
    #[serde(rename = "PRIORITY")]
    priority: Option<Field>,
    #[serde(rename = "_PID")]
    pid: Option<Field>,
    #[serde(rename = "_SYSTEMD_UNIT")]
    unit: Option<Field>,
    #[serde(rename = "MESSAGE")]
    message: Option<Field>,
}

pub(super) fn text(field: Option<Field>) -> String {
    match field {
        Some(Field::Text(text)) => text,
        Some(Field::Bytes(bytes)) => String::from_utf8_lossy(&bytes).into_owned(),
        Some(Field::Other(_)) | None => String::new(),
    }
}

/// Reads the lines of `journalctl -o json`; what is no such line is passed over.
fn parse(json: &[u8]) -> Vec<Line> {
    json.split(|byte| *byte == b'\n')
        .filter_map(|line| serde_json::from_slice::<Raw>(line).ok())
        .map(|raw| Line {
            time: raw.time.and_then(|t| t.parse().ok()).unwrap_or(0),
            identifier: text(raw.identifier),
            transport: text(raw.transport),
            priority: text(raw.priority).parse().unwrap_or(6),
            pid: text(raw.pid).parse().unwrap_or(0),
            unit: text(raw.unit),
            message: text(raw.message),
        })
        .collect()
}

/// The last lines of one invocation of a unit, oldest first: its own and what systemd said about it.
///
/// If none of them is telling, and its main process has ended, the words that journald could not file are looked for.
///
/// Blocks. Without the right to read the journal the list is empty.
pub fn of_invocation(
    unit: &str,
    invocation: &str,
    main: Option<MainProcess>,
    is_telling: impl Fn(&Line) -> bool,
    cancel: &Cancel,
) -> Result<Vec<Line>, ProcessError> {
    // What the unit wrote last may still be on its way; without root this is refused, and then we see what we see.
    let _ = Program::new("journalctl").arg("--sync").run(cancel);
    let matches = [
        format!("_SYSTEMD_INVOCATION_ID={invocation}"),
        "+".into(),
        format!("INVOCATION_ID={invocation}"),
    ];
    let mut lines = query(matches, LINES, cancel)?;
    // A console that can be typed into is passed on by who keeps it.
    if let (Some(main), Some(beside)) = (main, unit_beside(unit)) {
        let matches = [
            format!("--since=@{}", main.started / 1_000_000),
            format!("_SYSTEMD_UNIT={beside}"),
        ];
        let shown = query(matches, LINES, cancel)?.into_iter();
        lines.extend(shown.filter(|line| (main.started..=main.ended + LATE).contains(&line.time)));
        lines.sort_by_key(|line| line.time);
    }
    let Some(main) = main.filter(|_| !lines.iter().any(&is_telling)) else {
        return Ok(lines);
    };
    let matches = [
        format!("--since=@{}", main.started / 1_000_000),
        format!("SYSLOG_IDENTIFIER={SUPERVISOR}"),
    ];
    lines.extend(last_words(query(matches, LINES, cancel)?, unit, main, is_telling));
    lines.sort_by_key(|line| line.time);
    Ok(lines)
}

/// What systemd-nspawn and its children are called.
pub const SUPERVISOR: &str = "systemd-nspawn";
/// Children of systemd-nspawn have numbers soon after its own.
const CHILDREN: u64 = 64;
/// How much later than it was said a line may reach journald, in µs.
const LATE: u64 = 1_000_000;

/// Finds the words of a supervisor that ended at once, or of a child of it, among all lines of supervisors: journald asks
/// the kernel about who spoke, and when that one is gone it learns no unit, or (252, where they come by the standard output
/// of the unit) no invocation. Nothing if they may be another machine's.
fn last_words(lines: Vec<Line>, unit: &str, main: MainProcess, is_telling: impl Fn(&Line) -> bool) -> Vec<Line> {
    let may_be_its = |line: &Line| {
        let near = (main.pid..=main.pid + CHILDREN).contains(&u64::from(line.pid));
        (line.unit == unit || line.unit.is_empty() && near) && (main.started..=main.ended + LATE).contains(&line.time)
    };
    let found: Vec<Line> = lines
        .into_iter()
        .filter(|line| may_be_its(line) && is_telling(line))
        .collect();
    // The supervisor's own words are surely its; a child's are if there is but one child.
    let is_own = |line: &Line| line.unit == unit || u64::from(line.pid) == main.pid;
    if found.iter().any(is_own) {
        return found.into_iter().filter(is_own).collect();
    }
    let of_one = found.windows(2).all(|pair| pair[0].pid == pair[1].pid);
    if of_one { found } else { Vec::new() }
}

/// The last `lines` lines of a unit, all its invocations, oldest first. Blocks.
pub fn of_unit(unit: &str, lines: &str, cancel: &Cancel) -> Result<Vec<Line>, ProcessError> {
    query([format!("--unit={unit}")], lines, cancel)
}

/// The last lines that systemd itself said of a unit, all its invocations, oldest first: nobody else can, and whatever the
/// machine's console shows is not among them. Blocks.
pub fn about_unit(unit: &str, cancel: &Cancel) -> Result<Vec<Line>, ProcessError> {
    // What was said just now may still be on its way; without root this is refused, and then we see what we see.
    let _ = Program::new("journalctl").arg("--sync").run(cancel);
    query(["_PID=1".to_owned(), format!("UNIT={unit}")], LINES, cancel)
}

fn query<const N: usize>(matches: [String; N], lines: &str, cancel: &Cancel) -> Result<Vec<Line>, ProcessError> {
    let output = Program::new("journalctl")
        .args(["--output=json", "--no-pager", "--quiet", "--all", "--lines", lines])
        .args(matches)
        .run(cancel)?;
    Ok(parse(&output.stdout))
}

/// Logs to the journal what a verb did to a machine, with the fields `MACHINE=`, `MACHINIST_VERB=` and
/// `MACHINIST_RESULT=`. Where there is no journal, nothing is logged.
pub fn audit(machine: &str, verb: &str, result: Result<(), &str>) {
    let Ok(journal) = JournalLog::new() else { return };
    let journal = journal.with_syslog_identifier("machinist".to_owned());
    let (level, outcome, message) = match result {
        Ok(()) => (Level::Info, "done", format!("{verb} {machine}: done")),
        Err(error) => (Level::Warn, "failed", format!("{verb} {machine}: {error}")),
    };
    let caller = caller_uid();
    let fields: [(&str, kv::Value<'_>); 4] = [
        ("MACHINE", machine.into()),
        ("MACHINIST_VERB", verb.into()),
        ("MACHINIST_RESULT", outcome.into()),
        ("MACHINIST_UID", caller.into()),
    ];
    let fields: &[(&str, kv::Value<'_>)] = &fields;
    let arguments = format_args!("{message}");
    journal.log(
        &Record::builder()
            .level(level)
            .target("machinist")
            .args(arguments)
            .key_values(&fields)
            .build(),
    );
}

/// Who really calls: behind sudo or pkexec that is not root.
fn caller_uid() -> u32 {
    ["SUDO_UID", "PKEXEC_UID"]
        .iter()
        .find_map(|name| std::env::var(name).ok()?.parse().ok())
        .unwrap_or_else(|| nix::unistd::getuid().as_raw())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_may_be_text_bytes_or_too_large() {
        let json = concat!(
            r#"{"__REALTIME_TIMESTAMP":"7","MESSAGE":"a","PRIORITY":"3","_PID":"12","_TRANSPORT":"journal"}"#,
            "\n",
            r#"{"MESSAGE":[27,91],"SYSLOG_IDENTIFIER":"systemd-nspawn"}"#,
            "\n",
            r#"{"MESSAGE":null}"#,
            "\nnot json\n",
        );
        let lines = parse(json.as_bytes());
        assert_eq!(lines.len(), 3);
        assert_eq!((lines[0].time, lines[0].priority, lines[0].pid), (7, 3, 12));
        assert_eq!(lines[1].message, "\x1b[");
        assert_eq!(lines[2].message, "");
    }

    #[test]
    fn last_words_are_its_own_or_an_only_childs() {
        let line = |pid: u32, time: u64, unit: &str| Line {
            time,
            identifier: SUPERVISOR.into(),
            transport: "journal".into(),
            priority: 3,
            pid,
            unit: unit.into(),
            message: format!("{pid}"),
        };
        let main = MainProcess {
            pid: 100,
            started: 5_000_000,
            ended: 6_000_000,
        };
        let is_telling = |line: &Line| line.message != "100: a note";
        let pids = |lines: Vec<Line>| {
            last_words(lines, "own.service", main, is_telling)
                .iter()
                .map(|line| line.pid)
                .collect::<Vec<_>>()
        };
        let (child, own) = (line(103, 5_500_000, ""), line(100, 5_600_000, ""));
        assert_eq!(pids(vec![child.clone()]), [103]);
        assert_eq!(pids(vec![child.clone(), own.clone()]), [100]);
        assert_eq!(pids(vec![child.clone(), line(300, 5_500_000, "own.service")]), [300]);
        let note = Line {
            message: "100: a note".into(),
            ..own
        };
        assert_eq!(pids(vec![child.clone(), note]), [103]);
        assert_eq!(pids(vec![child.clone(), line(110, 5_500_000, "")]), Vec::<u32>::new());
        let others = [
            line(90, 5_500_000, ""),
            line(103, 1, ""),
            line(103, 9_000_000, ""),
            line(105, 5_500_000, "x.service"),
        ];
        assert_eq!(pids(others.to_vec()), Vec::<u32>::new());
    }
}
