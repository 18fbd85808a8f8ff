//! Noticing that a layer which machines lie on was changed by hand.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::top;
use crate::machine::{Cancel, MachineName};
use crate::ops::Places;
use crate::storage::layers::Layers;

/// A layer that is not what it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// Those that lie on it, of the machines that were asked for.
    pub machines: Vec<MachineName>,
    /// Something in it that was changed.
    pub path: PathBuf,
    /// What says since when nothing was to change.
    pub seal: PathBuf,
}

/// Looks whether layers that these machines lie on were changed. Of what cannot be read nothing is said: the start does, if
/// it is needed. Blocks, for as long as it takes to look at each file once.
#[must_use]
pub fn changed(machines: &[MachineName], places: &Places, cancel: &Cancel) -> Vec<Changed> {
    let layers = Layers::at(places.layers());
    let mut resting: BTreeMap<String, Vec<MachineName>> = BTreeMap::new();
    for machine in machines {
        let known = top(machine, places).and_then(|top| layers.known_below(&top).ok());
        for id in known.map(|(below, _)| below).unwrap_or_default() {
            resting.entry(id).or_default().push(machine.clone());
        }
    }
    let look = |(id, machines): (String, Vec<MachineName>)| {
        let path = layers.changed(&id, cancel).ok().flatten()?;
        let seal = layers.seal_of(&id);
        Some(Changed { machines, path, seal })
    };
    resting.into_iter().filter_map(look).collect()
}
