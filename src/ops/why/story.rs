//! What systemd itself said of a unit, as far as the journal has it: how its last run came to its end.
//!
//! Only lines of PID 1 are read: nobody else can write them, and a machine's console does not crowd them out. Their wording
//! is that of 252 to 262.

use crate::machine::Cancel;
use crate::sys::journal::{self, Line};

/// How a run that did not fail has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// There was none: a condition was not met.
    Skipped,
    /// There was none: what it needs did not start.
    Needed,
    /// A job has stopped it.
    Stopped,
    /// By itself.
    Ended,
}

/// What precedes the condition: "… was skipped because of an unmet condition check (A=b)." on 252, "… skipped, unmet condition check
/// A=b" since.
const SKIPPED: &str = "unmet condition check ";

/// What it says as it does not start it once more.
pub(super) const TOO_OFTEN: &str = "Start request repeated too quickly";

/// The condition that a line says was not met: "ConditionPathExists=/x".
pub(super) fn condition_in(message: &str) -> Option<&str> {
    let (_, condition) = message.split_once(SKIPPED)?;
    let condition = condition.trim_end();
    let bare = condition
        .strip_prefix('(')
        .and_then(|rest| rest.strip_suffix(").").or_else(|| rest.strip_suffix(')')));
    Some(bare.unwrap_or(condition))
}

/// The lines, oldest first.
#[derive(Debug, Default)]
pub(super) struct Story(Vec<Line>);

impl Story {
    /// Reads them; nothing without the right to it.
    pub(super) async fn of(unit: String) -> Self {
        let read = move || journal::about_unit(&unit, &Cancel::default());
        let lines = tokio::task::spawn_blocking(read).await.ok().and_then(Result::ok);
        Self(lines.unwrap_or_default())
    }

    pub(super) fn newest(&self) -> Option<&Line> {
        self.0.last()
    }

    /// How the last run ended, and the line that says so.
    pub(super) fn end(&self) -> Option<(End, &Line)> {
        let mut ended = None;
        for line in self.0.iter().rev() {
            let message = line.message.as_str();
            if message.contains(SKIPPED) {
                return ended.or(Some((End::Skipped, line)));
            }
            if message.starts_with("Dependency failed for ") {
                return ended.or(Some((End::Needed, line)));
            }
            if message.starts_with("Stopping ") {
                return Some((End::Stopped, line));
            }
            if message.starts_with("Starting ") {
                return ended;
            }
            if message.contains(": Deactivated successfully") && ended.is_none() {
                ended = Some((End::Ended, line));
            }
        }
        ended
    }

    /// The last line with one of these in it.
    pub(super) fn last_with(&self, words: &[&str]) -> Option<&Line> {
        self.0
            .iter()
            .rev()
            .find(|line| words.iter().any(|word| line.message.contains(word)))
    }

    /// Whether the last start was refused because there were too many: 252 keeps the result of the one before then.
    pub(super) fn is_over_limit(&self) -> bool {
        self.of_last_run(TOO_OFTEN).is_some()
    }

    /// The last line since the last start with this in it.
    pub(super) fn of_last_run(&self, words: &str) -> Option<&Line> {
        let mut since = self
            .0
            .iter()
            .rev()
            .take_while(|line| !line.message.starts_with("Starting "));
        since.find(|line| line.message.contains(words))
    }

    /// What systemd said as it refused the unit's files.
    pub(super) fn refusal(&self) -> Option<&Line> {
        self.last_with(&["Refusing", "refusing", "bad unit file", "lacks", "Failed to parse"])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn story(messages: &[&str]) -> Story {
        let line = |message: &&str| Line {
            time: 1,
            identifier: "systemd".to_owned(),
            transport: "journal".to_owned(),
            priority: 6,
            pid: 1,
            unit: "init.scope".to_owned(),
            message: (*message).to_owned(),
        };
        Story(messages.iter().map(line).collect())
    }

    #[test]
    fn the_last_run_counts() {
        const DOWN: &str = "systemd-nspawn@web.service: Deactivated successfully.";
        let end = |messages: &[&str]| story(messages).end().map(|(end, _)| end);
        let run = ["Starting Container web...", "Started Container web.", DOWN];
        assert_eq!(end(&run), Some(End::Ended));
        let stopped = [
            "Starting Container web...",
            "Stopping Container web...",
            DOWN,
            "Stopped Container web.",
        ];
        assert_eq!(end(&stopped), Some(End::Stopped));
        assert_eq!(end(&[stopped.as_slice(), run.as_slice()].concat()), Some(End::Ended));
        let skipped = "Container web was skipped because of an unmet condition check (ConditionPathExists=/x).";
        assert_eq!(end(&[run.as_slice(), &[skipped]].concat()), Some(End::Skipped));
        assert_eq!(end(&[skipped, DOWN]), Some(End::Ended));
        let too_often = "web.service: Start request repeated too quickly.";
        assert!(story(&[run.as_slice(), &[too_often, "Failed to start web."]].concat()).is_over_limit());
        assert!(!story(&[[too_often].as_slice(), &run].concat()).is_over_limit());
        let since = "web.service - Container web skipped, unmet condition check ConditionPathExists=/x";
        assert_eq!(end(&[run.as_slice(), &[since]].concat()), Some(End::Skipped));
        assert_eq!([skipped, since].map(condition_in), [Some("ConditionPathExists=/x"); 2]);
        assert_eq!(condition_in(DOWN), None);
        assert_eq!(end(&["Dependency failed for Container web."]), Some(End::Needed));
        assert_eq!(end(&[]), None);
    }
}
