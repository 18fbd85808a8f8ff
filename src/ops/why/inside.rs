//! What the systemd of a machine says of itself.

use std::time::Duration;

use super::Facts;
pub(super) use crate::sys::enter::health::Health as Inside;
use crate::sys::enter::health::health;

/// How long it may take to say it.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// What came of asking it.
#[derive(Debug)]
pub(super) enum Asked {
    /// This.
    Said(Inside),
    /// It listens, and says nothing.
    Silent,
    /// Nobody was asked: without root, where the init is not systemd, or does not listen yet.
    Nobody,
}

impl Asked {
    pub(super) fn said(&self) -> Option<&Inside> {
        match self {
            Self::Said(inside) => Some(inside),
            _ => None,
        }
    }
}

/// Asks it.
pub(super) async fn ask(facts: &Facts<'_>) -> Asked {
    let Some(leader) = facts.leader.as_ref().filter(|_| super::is_root()) else {
        return Asked::Nobody;
    };
    let is_container = facts
        .registered
        .as_ref()
        .is_some_and(|registered| registered.class == "container");
    if !is_container || leader.command_name().as_deref() != Some("systemd") {
        return Asked::Nobody;
    }
    match tokio::time::timeout(PATIENCE, health(leader, &facts.unit)).await {
        Ok(Ok(inside)) => Asked::Said(inside),
        Ok(Err(_)) => Asked::Nobody,
        Err(_) => Asked::Silent,
    }
}
