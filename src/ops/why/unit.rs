//! A machine that does not run: what systemd says of its unit.

use super::ended;
use super::story::{End, Story, condition_in};
use super::{Facts, clock, diagnosed, error, note, stamped, warning};
use crate::machine::text::printable;
use crate::machine::trouble::{Severity, Trouble};
use crate::ops::OpError;
use crate::ops::doctor::services;
use crate::ops::needed::why_not_started;
use crate::sys::bus::BusError;

/// How many of the units that it comes after are asked for their jobs.
const UNITS_MAX: usize = 64;

/// Why it is not running, the cause first.
pub(super) async fn not_running(facts: &Facts<'_>) -> Result<Vec<Trouble>, OpError> {
    if let Some(trouble) = unloadable(facts).await? {
        return Ok(vec![trouble]);
    }
    if let Some(trouble) = under_way(facts).await? {
        return Ok(vec![trouble]);
    }
    if facts.state.unit.string("ActiveState") == "active" {
        return Ok(Vec::new());
    }
    if facts.state.unit.string("ActiveState") == "failed" {
        return ended::failed(facts).await;
    }
    if let Some(trouble) = super::image::missing(facts) {
        return Ok(vec![trouble]);
    }
    if let Some(needed) = why_not_started(facts.bus, &facts.unit, "dependency").await? {
        return Ok(vec![diagnosed(needed)]);
    }
    let story = Story::of(facts.unit.clone()).await;
    let mut troubles = vec![down(facts, &story).await?];
    if facts.enabled {
        troubles.extend(services::at_boot(facts.bus).await?);
    }
    Ok(troubles)
}

/// Units that systemd does not load do not start.
async fn unloadable(facts: &Facts<'_>) -> Result<Option<Trouble>, BusError> {
    let unit = &facts.unit;
    let load = facts.state.unit.string("LoadState");
    Ok(match load.as_str() {
        "loaded" | "stub" | "merged" | "" => None,
        "masked" => {
            let template = services::template(facts.bus).await;
            Some(
                template
                    .filter(|trouble| trouble.code == "template-masked")
                    .unwrap_or_else(|| {
                        error("unit-masked", "its unit is masked: nobody can start it")
                            .seen(format!("{unit} leads to /dev/null"))
                            .hint(format!(
                                "`systemctl unmask {unit}`, and `machinist start {}`",
                                facts.name
                            ))
                    }),
            )
        }
        "not-found" => services::template(facts.bus).await,
        other => Some(bad(facts, other).await),
    })
}

/// What systemd says as it reads a unit that it cannot use.
async fn bad(facts: &Facts<'_>, load: &str) -> Trouble {
    let mut trouble = error("unit-bad", "systemd cannot use its unit");
    let story = Story::of(facts.unit.clone()).await;
    trouble = match story.refusal() {
        Some(line) => trouble.seen(stamped(line)),
        None => trouble.seen(format!("{} has LoadState={}", facts.unit, printable(load))),
    };
    trouble = facts.drop_ins().iter().fold(trouble, |trouble, path| {
        trouble.seen(format!("read from {}", printable(path)))
    });
    trouble.hint(format!(
        "mend what `systemctl cat {unit}` shows, or `systemctl revert {unit}`; then `systemctl daemon-reload`",
        unit = facts.unit
    ))
}

/// On its way up or down, or with a job that is to bring it there.
async fn under_way(facts: &Facts<'_>) -> Result<Option<Trouble>, BusError> {
    let unit = &facts.state.unit;
    let (active, sub) = (unit.string("ActiveState"), unit.string("SubState"));
    let seen = format!("{} is {active} ({sub})", facts.unit);
    if sub.starts_with("auto-restart") {
        let restarts = facts.state.detail.number("NRestarts").unwrap_or(0);
        let trouble = warning("restarting", "it has ended, and systemd starts it again").seen(seen);
        return Ok(Some(
            trouble
                .seen(format!("that is restart {} of this unit", restarts + 1))
                .hint(format!("see `machinist logs {}` for why it ends", facts.name)),
        ));
    }
    let is_closing = facts
        .registered
        .as_ref()
        .is_some_and(|registered| registered.state == "closing");
    Ok(match active.as_str() {
        _ if active == "deactivating" || is_closing => {
            let trouble = note("stopping", "it is being stopped").seen(since(facts, seen));
            Some(trouble.hint(format!(
                "`machinist wait --for stopped {name}`, or `machinist terminate {name}` if it hangs",
                name = facts.name
            )))
        }
        "activating" if sub == "start-pre" => {
            let trouble = warning(
                "starting",
                "a command that its unit runs before the start has not ended yet",
            );
            let hint = format!("see `machinist config get {} before-start`", facts.name);
            Some(trouble.seen(since(facts, seen)).hint(hint))
        }
        "active" if facts.machined => {
            let trouble = error(
                "not-registered",
                "its unit runs, and systemd-machined does not know of it",
            );
            Some(
                trouble
                    .seen(since(facts, seen))
                    .hint(format!("`machinist restart {}`", facts.name)),
            )
        }
        "active" => None,
        "activating" | "reloading" => {
            let trouble = note("starting", "it is being started").seen(since(facts, seen));
            Some(trouble.hint(format!("`machinist wait {}`", facts.name)))
        }
        _ if unit.begins_with_number("Job") => Some(waiting(facts).await?),
        _ => None,
    })
}

fn since(facts: &Facts<'_>, seen: String) -> String {
    match facts.state.unit.number("StateChangeTimestamp").filter(|time| *time > 0) {
        Some(time) => format!("{seen} since {}", clock(time)),
        None => seen,
    }
}

/// Its job waits for those of units that it comes after.
async fn waiting(facts: &Facts<'_>) -> Result<Trouble, BusError> {
    let mut others = Vec::new();
    for unit in facts.state.unit.strings("After").into_iter().take(UNITS_MAX) {
        let state = facts
            .bus
            .unit_properties(&unit, "Unit", &["Job", "ActiveState"])
            .await?;
        if state.begins_with_number("Job") {
            others.push((unit, state.string("ActiveState")));
        }
    }
    // What is at it now holds up the rest.
    others.sort_by_key(|(_, active)| active != "activating");
    let Some((first, _)) = others.first() else {
        return Ok(note("starting", "its start is queued").hint(format!("`machinist wait {}`", facts.name)));
    };
    let first = printable(first);
    let mut trouble = warning("waiting", format!("its start waits for unit {first}"));
    for (unit, active) in &others {
        trouble = trouble.seen(format!(
            "{} is {active}, and {} comes after it",
            printable(unit),
            facts.unit
        ));
    }
    Ok(trouble.hint(format!(
        "see `systemctl status '{first}'`; `systemctl list-jobs` shows all that is waited for"
    )))
}

/// Nothing has failed, and nothing runs.
async fn down(facts: &Facts<'_>, story: &Story) -> Result<Trouble, OpError> {
    let start = format!("`machinist start {}`", facts.name);
    let enable = format!("`machinist enable --now {}` for every boot, too", facts.name);
    let booted = facts.bus.booted_at().await?;
    let Some(newest) = story.newest() else {
        if !super::is_root() {
            let trouble = note(
                "stopped",
                "it does not run; why is in the journal, which you may not read",
            );
            return Ok(trouble.hint(format!("`sudo machinist why {}`", facts.name)));
        }
        let trouble = note("never-started", "it was not started yet").seen("the journal has nothing of its unit");
        return Ok(with_boot(facts, trouble.hint(start), enable));
    };
    if newest.time < booted {
        let trouble = if facts.enabled {
            warning(
                "not-started-at-boot",
                "it is to start at boot, and nobody has started it since the last one",
            )
        } else {
            note(
                "not-enabled",
                "the host has booted since it last ran, and it is not to start at boot",
            )
        };
        let trouble = trouble
            .seen(format!("the host has booted {}", clock(booted)))
            .seen(stamped(newest));
        return Ok(with_boot(facts, trouble.hint(start), enable));
    }
    Ok(match story.end() {
        Some((End::Skipped, line)) => condition(facts, line),
        Some((End::Needed, line)) => error("dependency-failed", "a unit that it needs did not start")
            .seen(stamped(line))
            .hint(format!("it may be mended by now: {start}"))
            .hint(format!("see `systemctl list-dependencies {}`", facts.unit)),
        Some((End::Stopped, line)) => stopped(facts, line).await.hint(start),
        Some((End::Ended, line)) => match ended::by_whom(facts, line.time).await {
            Some(seen) => note("stopped", "it was stopped")
                .seen(seen)
                .seen(stamped(line))
                .hint(start),
            None => note("powered-off", "it powered itself off, or what it runs was done")
                .seen(stamped(line))
                .hint(start)
                .hint(format!("see `machinist logs {}` for what it did", facts.name)),
        },
        None => note("stopped", "it does not run").seen(stamped(newest)).hint(start),
    })
}

fn with_boot(facts: &Facts<'_>, trouble: Trouble, enable: String) -> Trouble {
    if facts.enabled { trouble } else { trouble.hint(enable) }
}

/// systemd was asked to: by us, which our history has, or by somebody else.
async fn stopped(facts: &Facts<'_>, line: &crate::sys::journal::Line) -> Trouble {
    match ended::by_whom(facts, line.time).await {
        Some(seen) => note("stopped", "it was stopped").seen(seen),
        None => note(
            "stopped",
            "it was stopped, and not by machinist: by systemctl, machinectl or another unit",
        ),
    }
    .seen(stamped(line))
}

/// systemd names what was not met; the job has ended well all the same.
fn condition(facts: &Facts<'_>, line: &crate::sys::journal::Line) -> Trouble {
    let named = condition_in(&line.message).map(printable);
    let cause = match &named {
        Some(condition) => format!("a condition of its unit was not met: {condition}"),
        None => "a condition of its unit was not met".to_owned(),
    };
    let mut trouble = Trouble::new(Severity::Error, "condition-failed", cause).seen(stamped(line));
    for path in facts.drop_ins() {
        trouble = trouble.seen(format!("see {}", printable(&path)));
    }
    trouble
        .hint(format!(
            "see to it that it is met, and `machinist start {}`",
            facts.name
        ))
        .hint(format!("see `systemctl cat {}` for where it stands", facts.unit))
}
