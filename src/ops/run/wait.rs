//! The end of a machine that booted in a transient unit.

use std::time::Duration;

use futures_util::StreamExt as _;

use super::unit_of;
use crate::machine::MachineName;
use crate::ops::OpError;
use crate::ops::diagnose::{Diagnosis, failed_job};
use crate::sys::bus::Bus;

/// How often the unit is looked at where no signal comes: it may be gone before we listen.
const LOOK: Duration = Duration::from_secs(5);

/// How a machine ended.
#[derive(Debug)]
pub enum Ended {
    /// It powered off, by itself or because it was asked to.
    Cleanly,
    /// Its time was over.
    TimedOut,
    /// Another way.
    Failed(Box<Diagnosis>),
}

/// Waits until the machine's unit is down. A reboot is no end.
pub async fn wait_for_end(bus: &Bus, name: &MachineName) -> Result<Ended, OpError> {
    let unit = unit_of(name);
    let mut changes = bus.unit_changes(&unit).await?;
    while !bus.is_unit_over(&unit).await? {
        let change = tokio::time::timeout(LOOK, changes.next()).await;
        if matches!(change, Ok(None)) {
            tokio::time::sleep(LOOK).await;
        }
    }
    let result = bus.unit_properties(&unit, "Service", &["Result"]).await?;
    Ok(match result.string("Result").as_str() {
        "success" => Ended::Cleanly,
        "timeout" => Ended::TimedOut,
        _ => Ended::Failed(Box::new(failed_job(bus, name.as_str(), &unit, "failed", None).await)),
    })
}
