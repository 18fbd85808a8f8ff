//! A machine that runs: whether it stands still, still boots, has units of its own that failed, and can be reached.

use super::inside::{self, Asked, Inside, PATIENCE};
use super::settings::Checked;
use super::{Facts, clock, ended, error, image, network, note, warning};
use crate::machine::State;
use crate::machine::text::printable;
use crate::machine::trouble::Trouble;
use crate::ops::OpError;
use crate::ops::boot::is_preparing;
use crate::sys::cgroup::Cgroup;
use crate::sys::guest::Leader;

/// How long a boot may take before it counts as one that hangs, in µs.
const LONG: u64 = 90_000_000;
/// How many units are named.
const NAMED: usize = 10;

/// What is wrong, the cause first; and the addresses that others can reach it at.
pub(super) async fn look(facts: &Facts<'_>, state: State) -> Result<(Vec<Trouble>, Option<Vec<String>>), OpError> {
    let addresses = network::addresses(facts).await;
    let reachable = addresses.clone().map(network::Addresses::reachable);
    if state == State::Frozen {
        return Ok((vec![frozen(facts).await], reachable));
    }
    let is_stopped = |leader: &&Leader| leader.scheduling().is_some_and(|state| state.starts_with('T'));
    if let Some(leader) = facts.leader.as_ref().filter(is_stopped) {
        return Ok((vec![silent(facts, leader, "")], reachable));
    }
    let asked = inside::ask(facts).await;
    let inside = asked.said();
    if let (Asked::Silent, Some(leader)) = (&asked, &facts.leader) {
        let seen = format!("its systemd was asked, and said nothing for {} s", PATIENCE.as_secs());
        return Ok((vec![silent(facts, leader, &seen)], reachable));
    }
    let mut troubles: Vec<Trouble> = booting(facts, inside).into_iter().collect();
    if troubles.is_empty() {
        troubles.extend(network::look(facts, addresses.as_ref(), inside).await?);
    }
    troubles.extend(degraded(facts, inside));
    troubles.extend(image::over_quota(facts).await);
    troubles.extend(out_of_memory(facts));
    if let Some(checked) = Checked::of(facts).await {
        troubles.extend(checked.troubles(facts, false));
    }
    Ok((super::joined(Vec::new(), troubles), reachable))
}

/// It answers nobody.
async fn frozen(facts: &Facts<'_>) -> Trouble {
    let trouble = error("frozen", "it is frozen: it stands still, and answers nobody");
    let trouble = match ended::last_deed(facts, &["freeze"]).await {
        Some(seen) => trouble.seen(seen),
        None => trouble.seen(format!(
            "{} has FreezerState={}",
            facts.unit,
            printable(&facts.state.unit.string("FreezerState"))
        )),
    };
    trouble.hint(format!("`machinist thaw {}`", facts.name))
}

/// Its PID 1 does nothing: it was stopped by a signal, or has our question and does not answer.
fn silent(facts: &Facts<'_>, leader: &Leader, asked: &str) -> Trouble {
    let state = leader.scheduling().unwrap_or_default();
    let is_stopped = state.starts_with('T');
    let pid = leader.pid();
    let cause = if is_stopped {
        "its init was stopped by a signal, and does nothing"
    } else {
        "its init does not answer"
    };
    let seen = format!("process {pid}, its init, is in state {}", printable(&state));
    let mut trouble = error("init-silent", cause).seen(seen);
    if is_stopped {
        trouble = trouble.hint(format!("`kill -CONT {pid}`"));
    } else {
        trouble = trouble.seen(asked);
    }
    trouble.hint(format!(
        "`machinist terminate {name}`, and `machinist start {name}`",
        name = facts.name
    ))
}

/// PID 1 is not there yet, or has not done with what it starts.
fn booting(facts: &Facts<'_>, inside: Option<&Inside>) -> Option<Trouble> {
    let name = facts.name;
    let since = facts.registered.as_ref().and_then(|registered| registered.since);
    let seen = since.map(|since| format!("it runs since {}", clock(since)));
    let wait = format!("`machinist wait --for booted {name}`");
    let command = facts.leader.as_ref()?.command_name()?;
    if is_preparing(&command) {
        let trouble = note("starting", "systemd-nspawn still prepares it");
        return Some(seen.into_iter().fold(trouble, Trouble::seen).hint(wait));
    }
    let inside = inside.filter(|inside| ["initializing", "starting"].contains(&inside.state.as_str()))?;
    let is_long = since.is_some_and(|since| super::now().saturating_sub(since) > LONG);
    let waits = inside.running.first().map(|unit| printable(unit));
    let cause = match &waits {
        Some(unit) => format!("it is still booting, and waits for its unit {unit}"),
        None => "it is still booting".to_owned(),
    };
    let trouble = if is_long {
        warning("booting", cause)
    } else {
        note("booting", cause)
    };
    let trouble = seen.into_iter().fold(trouble, Trouble::seen);
    let trouble = inside.running.iter().take(NAMED).fold(trouble, |trouble, unit| {
        trouble.seen(format!("a job of its unit {} runs", printable(unit)))
    });
    let trouble = trouble.hint(wait);
    // Whoever types it is not to run what the machine has put into a name.
    Some(match waits.as_deref().map(shell_words::quote) {
        Some(unit) => trouble.hint(format!("`machinist exec {name} -- systemctl status {unit}`")),
        None => trouble,
    })
}

/// Where the kernel counts it.
fn out_of_memory(facts: &Facts<'_>) -> Option<Trouble> {
    let group = Cgroup::of(&facts.state.detail.string("ControlGroup"))?;
    let killed = group.value("memory.events", "oom_kill").filter(|killed| *killed > 0)?;
    let name = facts.name;
    Some(
        warning(
            "out-of-memory",
            "the kernel has killed processes in it since it was started, for want of memory",
        )
        .seen(format!(
            "{}/memory.events: oom_kill {killed}",
            group.directory().display()
        ))
        .hint(format!(
            "see `machinist limit {name}`, and allow it more: `machinist limit {name} memory=2G`"
        )),
    )
}

/// Units of its own that failed.
fn degraded(facts: &Facts<'_>, inside: Option<&Inside>) -> Option<Trouble> {
    let failed = &inside?.failed;
    let first = printable(failed.first()?);
    let name = facts.name;
    let cause = match failed.len() {
        1 => format!("a unit of its own has failed: {first}"),
        count => format!("{count} units of its own have failed"),
    };
    let trouble = failed
        .iter()
        .take(NAMED)
        .fold(warning("guest-degraded", cause), |trouble, unit| {
            trouble.seen(format!("its systemd says that {} has failed", printable(unit)))
        });
    let quoted = shell_words::quote(&first);
    Some(trouble.hint(format!(
        "`machinist exec {name} -- systemctl status {quoted}`, and `machinist exec {name} -- systemctl restart {quoted}`"
    )))
}
