//! Machines that are not to be removed.

use super::config::drop_ins::DropIns;
use super::{OpError, Places};
use crate::machine::MachineName;
use crate::nspawn::names::boolean;

/// The key in [`OWN_SECTION`](crate::unit::OWN_SECTION) of a drop-in: a boolean, see systemd.syntax(7).
pub const KEY: &str = "Protected";

/// Whether the machine is protected. What is no boolean protects, too.
#[must_use]
pub fn is_protected(name: &MachineName, places: &Places) -> bool {
    let value = DropIns::of(name, places).own(KEY).pop();
    value.is_some_and(|value| boolean(&value).unwrap_or(true))
}

/// Refuses what a protected machine is protected from.
///
/// # Errors
/// [`OpError::Protected`]
pub fn refuse_protected(name: &MachineName, places: &Places) -> Result<(), OpError> {
    if is_protected(name, places) {
        return Err(OpError::Protected { name: name.to_string() });
    }
    Ok(())
}
