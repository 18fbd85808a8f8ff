//! How the last run of a machine ended: the unit's result, what its main process ended with, and who had it done.

use super::story::{Story, TOO_OFTEN};
use super::{Facts, clock, diagnosed, error, stamped};
use crate::machine::Cancel;
use crate::machine::text::printable;
use crate::machine::trouble::{Severity, Trouble};
use crate::ops::OpError;
use crate::ops::diagnose::{self, SUPERVISOR_FAILED, UNIT_FAILED, failed_job, last_lines};
use crate::ops::secret;
use crate::sys::history::{self, Deed};
use crate::sys::image_lock::user_of;

/// How a process can end, see waitid(2).
const CLD_EXITED: i32 = 1;
/// What systemd-nspawn ends with if the machine wants to be booted again.
const REBOOT: i32 = 133;
/// The word for it, whichever of its processes it was.
const OUT_OF_MEMORY: &str = "out-of-memory";
/// How long after the end of a machine its end may be written down, in µs.
const LATE: u64 = 30_000_000;
/// How many of the last deeds are looked at.
const DEEDS: u32 = 20;
/// Verbs that end a machine.
const ENDING: [&str; 5] = ["stop", "terminate", "restart", "kill", "remove"];

/// Why a unit has failed.
pub(super) async fn failed(facts: &Facts<'_>) -> Result<Vec<Trouble>, OpError> {
    let detail = &facts.state.detail;
    let story = Story::of(facts.unit.clone()).await;
    let result = if story.is_over_limit() {
        "start-limit-hit".to_owned()
    } else {
        detail.string("Result")
    };
    let said = format!("unit {} failed ({result})", facts.unit);
    let name = facts.name;
    let status = detail.integer("ExecMainStatus").unwrap_or(0);
    let exited = detail.integer("ExecMainCode") == Some(CLD_EXITED);
    let with_line = |trouble: Trouble, words: &[&str]| match story.last_with(words) {
        Some(line) => trouble.seen(stamped(line)).seen(said.clone()),
        None => trouble.seen(said.clone()),
    };
    let trouble = match result.as_str() {
        "start-limit-hit" if exited && status == REBOOT => with_line(
            error(
                "reboot-loop",
                "it rebooted again and again, until systemd had enough of it",
            ),
            &[TOO_OFTEN],
        )
        .hint(format!("see `machinist logs {name}` for why it reboots"))
        .hint(again(facts)),
        "start-limit-hit" => return Ok(too_often(facts, &story).await),
        "oom-kill" => with_line(
            error(OUT_OF_MEMORY, "the kernel killed it, for want of memory"),
            &["OOM", "oom-kill"],
        )
        .hint(more_memory(facts)),
        "watchdog" => with_line(
            error(
                "watchdog",
                "systemd-nspawn did not answer in time, and systemd's watchdog killed it",
            ),
            &["Watchdog timeout"],
        )
        .hint(again(facts))
        .hint("a host without enough CPU, or a machine that stood still for long, has it come to that"),
        "timeout" => timed_out(facts, &story, &said),
        "signal" | "core-dump" => {
            let signal = status;
            let by = nix::sys::signal::Signal::try_from(signal)
                .map_or_else(|_| signal.to_string(), |signal| signal.to_string());
            with_line(
                error("supervisor-killed", format!("its systemd-nspawn was killed by {by}")),
                &["Main process exited"],
            )
            .hint(again(facts))
            .hint("see `journalctl --dmesg` for whether the kernel did it")
        }
        _ => {
            let diagnosis = failed_job(facts.bus, name.as_str(), &facts.unit, "failed", None).await;
            let unknown = [SUPERVISOR_FAILED, UNIT_FAILED].contains(&diagnosis.code);
            // systemd-nspawn's own failures have status 1, and say so before it is ready.
            let says_so = diagnosis.line.as_ref().is_some_and(|line| line.priority <= 3);
            let was_up = was_up(facts);
            if unknown && exited && (status > 1 || was_up && !says_so) {
                payload(facts, status, &said).await
            } else {
                for_memory(facts, &story, with_user(facts, diagnosed(diagnosis)))
            }
        }
    };
    Ok(vec![with_secrets(facts, trouble).await])
}

/// Whether it had said that it is ready, in this run.
fn was_up(facts: &Facts<'_>) -> bool {
    let time = |properties: &crate::sys::bus::Properties, name| properties.number(name).unwrap_or(0);
    let started = time(&facts.state.detail, "ExecMainStartTimestamp");
    started > 0 && time(&facts.state.unit, "ActiveEnterTimestamp") >= started
}

fn again(facts: &Facts<'_>) -> String {
    format!(
        "`systemctl reset-failed {}`, and `machinist start {}`",
        facts.unit, facts.name
    )
}

/// Why it was that often, too.
async fn too_often(facts: &Facts<'_>, story: &Story) -> Vec<Trouble> {
    let mut trouble = error(diagnose::START_LIMIT, "it was started too often in a short time");
    if let Some(line) = story.last_with(&[TOO_OFTEN]) {
        trouble = trouble.seen(stamped(line));
    }
    trouble = trouble
        .seen(format!("unit {} failed (start-limit-hit)", facts.unit))
        .hint(again(facts));
    let lines = last_lines(&facts.unit, &facts.state).await;
    let before = diagnose::explain(facts.name.as_str(), &facts.unit, "start-limit-hit", &lines);
    if before.code == UNIT_FAILED {
        return vec![trouble];
    }
    let mut before = diagnosed(before);
    before.cause = format!("before that: {}", before.cause);
    vec![trouble, before]
}

/// systemd has the same result for both.
fn timed_out(facts: &Facts<'_>, story: &Story, said: &str) -> Trouble {
    let line = story.last_with(&["timed out"]);
    let name = facts.name;
    let at_stop =
        line.is_some_and(|line| line.message.contains("State 'stop") || line.message.contains("State 'final"));
    let mut trouble = if at_stop {
        error("stop-timeout", "it did not power off in time when it was stopped, and was killed")
            .hint(format!("`machinist start {name}`"))
            .hint(format!(
                "where its init heeds another signal than SIGRTMIN+3: `machinist config set {name} Exec.KillSignal=SIGUSR2` is \
                 busybox's"
            ))
    } else {
        error("start-timeout", "it did not start in time")
            .hint(format!("see `machinist logs {name}` for how far it came"))
            .hint(format!(
                "`systemctl edit {}` can give it more: [Service] TimeoutStartSec=5min",
                facts.unit
            ))
    };
    if let Some(line) = line {
        trouble = trouble.seen(stamped(line));
    }
    trouble.seen(said)
}

/// systemd-nspawn ends with the status of the machine's PID 1.
async fn payload(facts: &Facts<'_>, status: i32, said: &str) -> Trouble {
    let name = facts.name;
    let mut trouble = error(
        "payload-failed",
        format!("what it runs as PID 1 ended with status {status}"),
    );
    let lines = last_lines(&facts.unit, &facts.state).await;
    let console = |line: &&crate::sys::journal::Line| line.transport == "stdout" && !line.message.trim().is_empty();
    if let Some(line) = lines.iter().rfind(console) {
        trouble = trouble.seen(stamped(line));
    }
    trouble
        .seen(said)
        .seen(format!("{} has ExecMainStatus={status}", facts.unit))
        .hint(format!(
            "see `machinist logs {name}` for what it said, and `machinist start {name}`"
        ))
}

/// Who has the image, if that is what was in the way.
fn with_user(facts: &Facts<'_>, trouble: Trouble) -> Trouble {
    let image = facts.image.as_deref().filter(|_| trouble.code == "image-busy");
    match image.and_then(|image| user_of(image, &facts.places.image_locks())) {
        Some(user) => trouble.seen(format!("{} has it now", printable(&user))),
        None => trouble,
    }
}

/// Whether it was the kernel that killed its init, for want of memory: systemd says so.
fn for_memory(facts: &Facts<'_>, story: &Story, mut trouble: Trouble) -> Trouble {
    let line = story
        .of_last_run("OOM killer")
        .filter(|_| trouble.code == "init-killed");
    if let Some(line) = line {
        trouble.code = OUT_OF_MEMORY;
        trouble.cause = String::from("the kernel killed its init, for want of memory");
        trouble.evidence.insert(0, stamped(line));
        trouble.hints = vec![more_memory(facts)];
    }
    trouble
}

fn more_memory(facts: &Facts<'_>) -> String {
    let name = facts.name;
    format!(
        "see `machinist limit {name}`, and allow it more: `machinist limit {name} memory=2G`; then `machinist start {name}`"
    )
}

/// Which of the secrets it is that cannot be loaded.
async fn with_secrets(facts: &Facts<'_>, mut trouble: Trouble) -> Trouble {
    if trouble.code != "secrets-unreadable" || !super::is_root() {
        return trouble;
    }
    let (name, places) = (facts.name.clone(), facts.places.clone());
    let checked = tokio::task::spawn_blocking(move || secret::check(&name, &places)).await;
    let findings = checked
        .ok()
        .and_then(Result::ok)
        .flatten()
        .map(|checked| checked.findings);
    let missing: Vec<_> = findings
        .into_iter()
        .flatten()
        .filter(|finding| finding.code == "secret-missing")
        .collect();
    if let Some(first) = missing.first() {
        trouble.code = "secret-missing";
        trouble.severity = Severity::Error;
        trouble.cause = printable(&first.message);
        trouble.hints = missing.iter().filter_map(|finding| finding.hint.clone()).collect();
    }
    trouble
}

/// What our history has of who ended a machine that was down at this time, in µs since 1970.
pub(super) async fn by_whom(facts: &Facts<'_>, down: u64) -> Option<String> {
    let is_it = |deed: &Deed| ENDING.contains(&deed.verb.as_str()) && (down..=down + LATE).contains(&deed.time);
    deeds(facts).await.iter().find(|deed| is_it(deed)).map(told)
}

/// The last time that we did one of these to it.
pub(super) async fn last_deed(facts: &Facts<'_>, verbs: &[&str]) -> Option<String> {
    let deeds = deeds(facts).await;
    deeds.iter().rfind(|deed| verbs.contains(&deed.verb.as_str())).map(told)
}

/// What we did to it last, and did not fail.
async fn deeds(facts: &Facts<'_>) -> Vec<Deed> {
    let name = facts.name.to_string();
    let read = move || history::of_machine(&name, Some(DEEDS), None, &Cancel::default());
    let read = tokio::task::spawn_blocking(read).await.ok().and_then(Result::ok);
    let mut deeds = read.unwrap_or_default();
    deeds.retain(|deed| deed.result == "done");
    deeds
}

fn told(deed: &Deed) -> String {
    format!(
        "{} machinist {}, by {}",
        clock(deed.time),
        printable(&deed.verb),
        user(deed.uid)
    )
}

fn user(uid: Option<u32>) -> String {
    let Some(uid) = uid else { return "somebody".to_owned() };
    let found = nix::unistd::User::from_uid(uid.into()).ok().flatten();
    found.map_or_else(|| format!("user {uid}"), |user| printable(&user.name))
}
