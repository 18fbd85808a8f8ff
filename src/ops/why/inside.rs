//! What the systemd of a machine says of itself.

use std::time::Duration;

use super::Facts;
pub(super) use crate::sys::enter::health::Health as Inside;
use crate::sys::enter::health::health;

/// How long it may take to say it.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks it; `None` without root, of a machine whose init is not systemd, and of one that does not answer.
pub(super) async fn ask(facts: &Facts<'_>) -> Option<Inside> {
    let leader = facts.leader.as_ref().filter(|_| super::is_root())?;
    let is_container = facts
        .registered
        .as_ref()
        .is_some_and(|registered| registered.class == "container");
    if !is_container || leader.command_name()? != "systemd" {
        return None;
    }
    tokio::time::timeout(PATIENCE, health(leader, &facts.unit))
        .await
        .ok()?
        .ok()
}
