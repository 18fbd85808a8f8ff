//! Consoles that can be typed into: whether there can be any here.

use super::OpError;
use crate::sys::bus::{Bus, BusError};

/// Any of the units that keep a terminal.
const KEEPER: &str = "machinist-console@machinist.service";

/// Whether the unit is installed that keeps the terminal of such a console.
pub(super) async fn is_kept(bus: &Bus) -> Result<bool, BusError> {
    Ok(bus.unit_state(KEEPER).await?.unit.string("LoadState") == "loaded")
}

/// Refuses what needs that unit where there is none.
///
/// # Errors
/// [`OpError::Option`] if there is none.
pub async fn need_keeper(bus: &Bus) -> Result<(), OpError> {
    if is_kept(bus).await? {
        return Ok(());
    }
    Err(OpError::Option {
        message: "a console that can be typed into needs machinist-console@.service, which is not installed".to_owned(),
        hint: "install machinist with its units: its package, or `make install`".to_owned(),
    })
}
