//! The order in which machines start and stop: read from systemd, written as drop-ins.
//!
//! systemd orders units that start at the same time by `After=`, and stops them the other way round. It knows no numbers: what
//! starts before a machine by its priority stands in a drop-in of its own, which is written anew whenever a priority changes.

use std::collections::{BTreeMap, BTreeSet};

use super::config::drop_ins::{DropIns, with_topic};
use super::config::history::{FOLLOWING, FileKey, History};
use super::config::{Change, Wanted, preview};
use super::lock::Lock;
use super::{OpError, Places};
use crate::machine::{Cancel, MachineName, Report};
use crate::nspawn::edit::Edit;
use crate::sys::bus::{Bus, BusError};
use crate::unit::OWN_SECTION;
use crate::unit::order::Graph;
use crate::unit::topic::Topic;

/// The lock of whoever changes the order: two changes at once could make a circle.
const LOCK: &str = ".order";
/// What the delay of a machine is, up to the seconds.
pub const SLEEP: &str = "/usr/bin/sleep ";

/// What of a machine's place is to change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// It no longer starts after any of those that were named.
    pub after_none: bool,
    /// It starts after these.
    pub after: Vec<MachineName>,
    /// It waits so many microseconds before it starts; `Some(None)` for not at all.
    pub delay: Option<Option<u64>>,
    /// Higher ones start first; `Some(None)` for without.
    pub priority: Option<Option<i64>>,
    /// It is in no group any more but in those that follow.
    pub group_none: bool,
    /// It is in these groups.
    pub groups: Vec<String>,
}

/// What drop-ins say about the place of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placed {
    /// Its groups.
    pub groups: Vec<String>,
    /// Its priority.
    pub priority: Option<i64>,
    /// How long it waits before it starts, in µs.
    pub delay: Option<u64>,
}

/// Reads what the drop-ins of a machine say.
#[must_use]
pub fn placed(name: &MachineName, places: &Places) -> Placed {
    let drop_ins = DropIns::of(name, places);
    let delays = drop_ins.values("Service", "ExecStartPre", true);
    let delay = delays.iter().find_map(|value| {
        let seconds = value.value.strip_prefix(SLEEP)?;
        crate::nspawn::number::time_span(seconds, 1_000_000)
    });
    Placed {
        groups: drop_ins.own("Group"),
        priority: priority(&drop_ins),
        delay,
    }
}

/// The machines of a group.
#[must_use]
pub fn members(group: &str, places: &Places) -> Vec<MachineName> {
    let mut names = with_topic(Topic::Order, places);
    names.retain(|name| placed(name, places).groups.iter().any(|of| of == group));
    names
}

/// Which of these machines start after which others, by systemd's own account.
pub async fn graph(bus: &Bus, names: &[MachineName]) -> Result<Graph, BusError> {
    let mut graph = Graph::default();
    for name in names {
        let unit = bus.unit_properties(&name.unit(), "Unit", &["After"]).await?;
        for other in unit
            .strings("After")
            .iter()
            .filter_map(|unit| MachineName::of_unit(unit))
        {
            graph.add(name, &other);
        }
    }
    Ok(graph)
}

/// Takes the lock of the order. Blocks.
pub fn lock(places: &Places, report: &dyn Report, cancel: &Cancel) -> Result<Lock, OpError> {
    Lock::wait_saying_why(&places.runtime, LOCK, "changes the order of machines", report, cancel)
}

/// The changes that bring machines to a place, and have others follow their priority: in the order in which they are to be
/// made, so that there is no circle after any of them. `what` is for the list of changes.
#[must_use]
pub fn changes(names: &[MachineName], place: &Place, what: &str, systemd: u32, places: &Places) -> Vec<Change> {
    let mut priorities = priorities(places);
    let former = |name: &MachineName| priorities.get(name).copied();
    let (raised, lowered): (Vec<_>, Vec<_>) = names
        .iter()
        .cloned()
        .partition(|name| place.priority.is_some_and(|new| former(name) < new));
    if let Some(new) = place.priority {
        for name in names {
            set_priority(&mut priorities, name, new);
        }
    }
    let edits = edits(place, &priorities);
    let own = |name: MachineName| of_drop_ins(name, edits.clone(), what, systemd);
    let following = if place.priority.is_some() {
        following(names, &priorities, systemd)
    } else {
        Vec::new()
    };
    let raised = raised.into_iter().map(own);
    let lowered = lowered.into_iter().map(own);
    raised.chain(following).chain(lowered).collect()
}

/// The changes that take a change of a machine back, and have others follow if that was its priority; `None` if it has
/// nothing to do with the order.
pub fn undo(
    name: &MachineName,
    number: Option<u32>,
    what: &str,
    systemd: u32,
    places: &Places,
) -> Result<Option<Vec<Change>>, OpError> {
    let history = History::of(name, places);
    let entry = history.choose(name, number)?;
    let is_about = |topic| entry.files().any(|file| file == FileKey::DropIn(topic));
    if !is_about(Topic::Order) && !is_about(Topic::Priority) {
        return Ok(None);
    }
    let mut undo = Change {
        name: name.clone(),
        wanted: Wanted::Undo {
            number: Some(entry.number),
            then: Vec::new(),
        },
        what: what.to_owned(),
        systemd,
    };
    if !is_about(Topic::Priority) {
        return Ok(Some(vec![undo]));
    }
    let mut priorities = priorities(places);
    let before = priorities.get(name).copied();
    let text = history.former(entry.number, &FileKey::DropIn(Topic::Priority))?;
    let file = DropIns::path(name, Topic::Priority, places);
    let new = priority(&DropIns::of(name, places).with(&file, text.as_deref()));
    set_priority(&mut priorities, name, new);
    if let (Some(new), Wanted::Undo { then, .. }) = (new, &mut undo.wanted) {
        *then = after_higher(new, &priorities);
    }
    let mut changes = following(std::slice::from_ref(name), &priorities, systemd);
    let at = if before < new { 0 } else { changes.len() };
    changes.insert(at, undo);
    Ok(Some(changes))
}

/// The priorities that machines have.
type Priorities = BTreeMap<MachineName, i64>;

fn priorities(places: &Places) -> Priorities {
    let names = with_topic(Topic::Priority, places).into_iter();
    names
        .filter_map(|name| {
            let priority = priority(&DropIns::of(&name, places))?;
            Some((name, priority))
        })
        .collect()
}

fn priority(drop_ins: &DropIns) -> Option<i64> {
    drop_ins.own("Priority").last().and_then(|text| text.parse().ok())
}

fn set_priority(priorities: &mut Priorities, name: &MachineName, new: Option<i64>) {
    match new {
        Some(new) => priorities.insert(name.clone(), new),
        None => priorities.remove(name),
    };
}

fn of_drop_ins(name: MachineName, drop_ins: Vec<(Topic, Edit)>, what: &str, systemd: u32) -> Change {
    Change {
        wanted: Wanted::Edits {
            settings: Vec::new(),
            drop_ins,
        },
        what: what.to_owned(),
        name,
        systemd,
    }
}

/// The changes that have all machines with a priority but these start after those with a higher one.
fn following(but: &[MachineName], priorities: &Priorities, systemd: u32) -> Vec<Change> {
    let others = priorities.iter().filter(|(name, _)| !but.contains(name));
    let follow = |(name, priority): (&MachineName, &i64)| {
        of_drop_ins(name.clone(), after_higher(*priority, priorities), FOLLOWING, systemd)
    };
    others.map(follow).collect()
}

/// The edits that bring machines to a place, when all have these priorities.
fn edits(place: &Place, priorities: &Priorities) -> Vec<(Topic, Edit)> {
    let mut edits = Vec::new();
    let mut order = |edit| edits.push((Topic::Order, edit));
    if place.after_none {
        order(Edit::remove("Unit", "After", None));
    }
    for other in &place.after {
        order(Edit::append("Unit", "After", other.unit()));
    }
    if place.group_none {
        order(Edit::remove(OWN_SECTION, "Group", None));
    }
    for group in &place.groups {
        order(Edit::append(OWN_SECTION, "Group", group.clone()));
    }
    match place.delay {
        None => {}
        Some(None) => {
            order(Edit::remove("Service", "ExecStartPre", None));
            order(Edit::remove("Service", "TimeoutStartSec", None));
        }
        Some(Some(delay)) => {
            let seconds = seconds(delay);
            order(Edit::set("Service", "ExecStartPre", format!("{SLEEP}{seconds}")));
            // Waiting counts: systemd gives a start 90 s, or two minutes.
            order(if delay >= 60_000_000 {
                Edit::set("Service", "TimeoutStartSec", format!("{}s", delay / 1_000_000 + 120))
            } else {
                Edit::remove("Service", "TimeoutStartSec", None)
            });
        }
    }
    match place.priority {
        None => {}
        Some(None) => {
            edits.push((Topic::Priority, Edit::remove(OWN_SECTION, "Priority", None)));
            edits.push((Topic::Priority, Edit::remove("Unit", "After", None)));
        }
        Some(Some(priority)) => {
            edits.push((
                Topic::Priority,
                Edit::set(OWN_SECTION, "Priority", priority.to_string()),
            ));
            edits.extend(after_higher(priority, priorities));
        }
    }
    edits
}

/// The edits that make a machine start after all others with a higher priority.
fn after_higher(priority: i64, priorities: &Priorities) -> Vec<(Topic, Edit)> {
    let higher = priorities.iter().filter(|(_, other)| **other > priority);
    let after = higher.map(|(other, _)| Edit::append("Unit", "After", other.unit()));
    std::iter::once(Edit::remove("Unit", "After", None))
        .chain(after)
        .map(|edit| (Topic::Priority, edit))
        .collect()
}

/// Seconds as sleep(1) takes them.
fn seconds(micros: u64) -> String {
    let (whole, rest) = (micros / 1_000_000, micros % 1_000_000);
    if rest == 0 {
        whole.to_string()
    } else {
        format!("{whole}.{rest:06}").trim_end_matches('0').to_owned()
    }
}

/// The graph as it would be with these changes.
pub fn proposed(graph: &Graph, changes: &[Change], places: &Places) -> Result<Graph, OpError> {
    let mut graph = graph.clone();
    for change in changes {
        let name = &change.name;
        let now = DropIns::of(name, places);
        let before = after(&now);
        let previews = preview(change, places)?;
        let planned = previews
            .iter()
            .fold(now, |all, (file, text)| all.with(file, text.as_deref()));
        let then = after(&planned);
        for other in before.difference(&then) {
            graph.remove(name, other);
        }
        for other in &then {
            graph.add(name, other);
        }
    }
    Ok(graph)
}

/// The machines that one starts after by its drop-ins.
fn after(drop_ins: &DropIns) -> BTreeSet<MachineName> {
    let values = drop_ins.values("Unit", "After", true);
    let units = values.iter().flat_map(|value| value.value.split_whitespace());
    units.filter_map(MachineName::of_unit).collect()
}

/// Refuses a circle: systemd would break it by not starting one of the machines.
pub fn refuse_circle(graph: &Graph, name: &MachineName) -> Result<(), OpError> {
    let Some(circle) = graph.circle(name) else {
        return Ok(());
    };
    let names: Vec<String> = circle.iter().map(|name| format!("'{name}'")).collect();
    Err(OpError::Option {
        message: format!(
            "the order of machine '{name}' is not changed: it would be a circle: {}",
            names.join(" after ")
        ),
        hint: "see `machinist order`; `machinist order NAME --after ''` takes away what NAME starts after".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_those_of_sleep() {
        for (micros, text) in [(5_000_000, "5"), (1_500_000, "1.5"), (250_000, "0.25"), (1, "0.000001")] {
            assert_eq!(seconds(micros), text);
        }
    }
}
