//! Machines that stop and start while they are followed.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::StreamExt as _;

use super::super::context::{Ctx, is_root};
use super::{Target, Wish, look_up};
use crate::sys::bus::Bus;
use crate::sys::logs::{Query, Sources};

/// How long to wait until the bus is tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// What is asked of a machine that starts.
pub(super) struct Begins {
    pub(super) wish: Wish,
    pub(super) query: Query,
}

/// Listens to machined, for good, and adds what a machine has to say that starts.
pub(super) async fn machines(ctx: &Ctx, targets: Vec<Target>, sources: &Sources, begins: &Begins) {
    let mut known: Vec<Known> = targets.into_iter().map(Known::from).collect();
    let mut bus = ctx.bus().await.ok().cloned();
    loop {
        if let Some(bus) = &bus
            && let Ok(signals) = bus.comings_and_goings().await
        {
            let mut signals = std::pin::pin!(signals);
            // It may have happened before we listened.
            for (number, machine) in known.iter_mut().enumerate() {
                machine.look(bus, number, sources, begins).await;
            }
            while let Some((name, _)) = signals.next().await {
                let ours = known.iter_mut().enumerate();
                for (number, machine) in ours.filter(|(_, machine)| machine.target.name.as_str() == name) {
                    machine.look(bus, number, sources, begins).await;
                }
            }
            ctx.voice
                .warning("the system bus has gone: machines that start are not noticed until it is back");
        }
        tokio::time::sleep(PAUSE).await;
        bus = Bus::system(false).await.ok();
    }
}

/// A machine that is followed.
struct Known {
    target: Target,
    /// Its units that are followed.
    units: BTreeSet<String>,
}

impl From<Target> for Known {
    fn from(target: Target) -> Self {
        let units = BTreeSet::from([target.unit.clone()]);
        Self { target, units }
    }
}

impl Known {
    /// Looks whether it runs, and since when: the signals of several changes may come at once.
    async fn look(&mut self, bus: &Bus, number: usize, sources: &Sources, begins: &Begins) {
        let name = self.target.name.clone();
        let Ok(now) = look_up(bus, &name).await else {
            if self.target.leader.take().is_some() {
                sources.tell_news(number, format!("machine '{name}' has gone"));
            }
            return;
        };
        let former = std::mem::replace(&mut self.target, now).leader;
        if self.target.leader == former {
            return;
        }
        if former.is_some() {
            sources.tell_news(number, format!("machine '{name}' has stopped"));
        }
        if self.target.leader.is_none() {
            return;
        }
        sources.tell_news(number, format!("machine '{name}' has started"));
        let since = bus
            .registered(name.as_str())
            .await
            .ok()
            .and_then(|machine| machine.since);
        let query = Query {
            since,
            until: None,
            lines: None,
            ..begins.query.clone()
        };
        if self.units.insert(self.target.unit.clone())
            && let Some(unit) = begins.wish.unit(self.target.unit.clone())
        {
            sources.join_unit(number, unit, query.clone());
        }
        if begins.wish.guest
            && is_root()
            && let Ok(guest) = self.target.guest.clone().map(super::Place::guest)
        {
            sources.join_guest(number, guest, &query);
        }
    }
}
