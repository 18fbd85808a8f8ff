//! What the settings of a machine say that keeps it from starting, or that systemd does not heed.

use super::{Facts, error, warning};
use crate::machine::text::printable;
use crate::machine::trouble::Trouble;
use crate::nspawn::check::{Finding, Severity};
use crate::nspawn::document::Document;
use crate::nspawn::settings::Settings;
use crate::ops::config::files::of_machine;
use crate::ops::config::findings::{Viewpoint, findings};
use crate::ops::config::users::HostUsers;
use crate::ops::doctor::settings::place;
use crate::ops::secret;

/// With these a machine does not start, though systemd reads the file: by [`Finding::code`].
const KEEPS_FROM_STARTING: [&str; 6] = [
    "missing-source",
    "missing-bridge",
    "no-bridge",
    "missing-interface",
    "conflict",
    "oom-score-private-users",
];
/// How many lines are told that systemd does not heed.
const IGNORED_MAX: usize = 3;
/// What systemd refuses a whole file for, however it says it.
const REFUSED: &str = "settings-refused";

/// What is found in the file that is read for a machine, and what it sets.
pub(super) struct Checked {
    pub(super) settings: Settings,
    file: std::path::PathBuf,
    findings: Vec<Finding>,
}

impl Checked {
    /// Reads the file that systemd-nspawn reads; `None` if there is none, or if it may not be read.
    pub(super) async fn of(facts: &Facts<'_>) -> Option<Self> {
        let (name, places, systemd) = (facts.name.clone(), facts.places.clone(), facts.systemd);
        let check = move || {
            let file = of_machine(&name, &places).into_iter().next()?;
            let document = Document::from_bytes(file.read().ok()?);
            let view = Viewpoint {
                systemd,
                trusted: file.trusted,
                machine: Some(&name),
                on_this_host: Some(&HostUsers::default()),
            };
            Some(Self {
                findings: findings(&document, view, &places),
                settings: Settings::effective(&document, systemd, file.trusted),
                file: file.path,
            })
        };
        tokio::task::spawn_blocking(check).await.ok().flatten()
    }

    /// Where a finding of this kind is, and what it says.
    pub(super) fn seen(&self, code: &str) -> Option<String> {
        let finding = self.findings.iter().find(|finding| finding.code == code)?;
        Some(place(&self.file, finding))
    }

    /// Lines that systemd does not heed, and with `all` also what keeps the machine from starting.
    pub(super) fn troubles(&self, facts: &Facts<'_>, all: bool) -> Vec<Trouble> {
        let refused = self.settings.fatal().map(|fatal| fatal.reason.code());
        let mut ignored = 0;
        let mut found = Vec::new();
        for finding in &self.findings {
            let keeps = KEEPS_FROM_STARTING.contains(&finding.code) || refused == Some(finding.code);
            let trouble = if keeps && all {
                let code = if refused == Some(finding.code) {
                    REFUSED
                } else {
                    finding.code
                };
                error(
                    code,
                    format!("it does not start with its settings: {}", printable(&finding.message)),
                )
            } else if !keeps && finding.severity == Severity::Error && ignored < IGNORED_MAX {
                ignored += 1;
                warning(
                    "settings-wrong",
                    format!(
                        "systemd does not heed a line of its settings: {}",
                        printable(&finding.message)
                    ),
                )
            } else {
                continue;
            };
            let trouble = trouble.seen(place(&self.file, finding));
            let trouble = finding
                .hint
                .iter()
                .fold(trouble, |trouble, hint| trouble.hint(printable(hint)));
            found.push(trouble.hint(format!(
                "`machinist config edit {name}`, and `machinist config check {name}`",
                name = facts.name
            )));
        }
        found
    }
}

/// What would keep it from starting again.
pub(super) async fn look(facts: &Facts<'_>, checked: Option<Checked>) -> Vec<Trouble> {
    let mut found = checked.map_or_else(Vec::new, |checked| checked.troubles(facts, true));
    found.extend(secrets(facts).await);
    found
}

async fn secrets(facts: &Facts<'_>) -> Vec<Trouble> {
    if !super::is_root() {
        return Vec::new();
    }
    let (name, places) = (facts.name.clone(), facts.places.clone());
    let checked = tokio::task::spawn_blocking(move || secret::check(&name, &places)).await;
    let Some(checked) = checked.ok().and_then(Result::ok).flatten() else {
        return Vec::new();
    };
    let errors = checked
        .findings
        .iter()
        .filter(|finding| finding.severity == Severity::Error);
    let told = errors.map(|finding| {
        let trouble = error(finding.code, printable(&finding.message)).seen(place(&checked.path, finding));
        finding
            .hint
            .iter()
            .fold(trouble, |trouble, hint| trouble.hint(printable(hint)))
    });
    told.collect()
}

/// Says so if what a start has failed for is not there any more: it is in the settings, and those are checked.
pub(super) fn mended(troubles: &mut [Trouble], found: &[Trouble], facts: &Facts<'_>) {
    let Some(first) = troubles.first_mut() else { return };
    let is_checked = KEEPS_FROM_STARTING.contains(&first.code) || first.code == REFUSED;
    if is_checked && !found.iter().any(|trouble| trouble.code == first.code) {
        first
            .hints
            .insert(0, format!("that is mended by now: `machinist start {}`", facts.name));
        first.hints.truncate(1);
    }
}
