//! Several machines one after the other: `start --group` and `stop --group`.

use std::collections::BTreeMap;

use tokio::sync::watch;

use super::context::Ctx;
use super::error::{CliError, Kind};
use super::names::{Pool, resolve};
use crate::machine::MachineName;
use crate::machine::text::printable;
use crate::ops::order::{graph, members};
use crate::unit::order::Graph;

/// Who waits for whom.
#[derive(Debug, Default)]
pub(super) struct Sequence {
    waits_for: BTreeMap<MachineName, Vec<watch::Receiver<bool>>>,
    done: BTreeMap<MachineName, watch::Sender<bool>>,
}

/// Tells those that wait, whatever came of it.
pub(super) struct Turn<'a>(Option<&'a watch::Sender<bool>>);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(done) = self.0 {
            done.send_replace(true);
        }
    }
}

impl Sequence {
    /// The machines meant, first those that nobody has to wait for: of a group, in its order or the other way round; otherwise
    /// those that are named, all at once.
    pub(super) async fn of(
        ctx: &Ctx,
        names: &[String],
        group: Option<&str>,
        pool: Pool,
        reversed: bool,
    ) -> Result<(Vec<MachineName>, Self), CliError> {
        let Some(group) = group else {
            return Ok((resolve(ctx, names, pool).await?, Self::default()));
        };
        let names = members(group, &ctx.places);
        if names.is_empty() {
            let message = format!("no machine is in group '{}'", printable(group));
            return Err(CliError::new(Kind::NotFound, message).hint("see `machinist order`"));
        }
        let order = graph(ctx.bus().await?, &names).await?;
        let order = if reversed { order.reversed() } else { order };
        Ok(Self::in_turns(&names, &order))
    }

    fn in_turns(names: &[MachineName], order: &Graph) -> (Vec<MachineName>, Self) {
        let mut sequence = Self::default();
        let turns = order.turns(names);
        for turn in &turns {
            for name in turn {
                // Only for who had a turn before: in a circle nobody would ever begin.
                let senders = order.before(name).filter_map(|before| sequence.done.get(before));
                let receivers = senders.map(watch::Sender::subscribe).collect();
                sequence.waits_for.insert(name.clone(), receivers);
            }
            for name in turn {
                sequence.done.insert(name.clone(), watch::Sender::new(false));
            }
        }
        (turns.concat(), sequence)
    }

    /// Waits until all are done that come before `name`.
    pub(super) async fn turn(&self, name: &MachineName) -> Turn<'_> {
        for before in self.waits_for.get(name).into_iter().flatten() {
            // Gone is done.
            let _ = before.clone().wait_for(|done| *done).await;
        }
        Turn(self.done.get(name))
    }
}
