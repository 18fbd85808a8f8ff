//! A clone that lies on what its source was.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::rest::{Rest, Source, rest};
use super::{LinkUnits, Units, edits_for};
use crate::machine::{Cancel, MachineName, Report};
use crate::nspawn::edit::Edit;
use crate::ops::carry::Plan;
use crate::ops::run::scratch::free_users;
use crate::ops::transaction::{Staging, Step, Transaction};
use crate::ops::{OpError, Places};
use crate::storage::layers::Layers;
use crate::storage::overlay::shift_to;
use crate::sys::lock_file::LockFile;
use crate::sys::overlay::see;

/// All that makes the clone a machine.
pub(in crate::ops) struct Link {
    /// The changes of the settings that it is given.
    pub(in crate::ops) edits: Vec<Edit>,
    units: LinkUnits,
    upper: PathBuf,
    work: PathBuf,
    /// Until its settings say that they are its own.
    _users: Option<LockFile>,
}

impl Link {
    /// Has the source rest on a layer, and makes one for the clone on top of that. Whoever calls has locked the layers, and
    /// removes those that nobody needs if the clone comes to nothing.
    pub(in crate::ops) fn prepare(
        source: &Source<'_>,
        name: &MachineName,
        places: &Places,
        units: &dyn Units,
        report: &dyn Report,
        cancel: &Cancel,
    ) -> Result<Self, OpError> {
        let layers = Layers::at(places.layers());
        let Rest { layer, users } = rest(source, places, units, report, cancel)?;
        let (users, lock) = match users {
            Some(_) => {
                let (range, lock) = free_users(source.systemd, places)?;
                (Some(range), Some(lock))
            }
            None => (None, None),
        };
        let top = layers.create(name.as_str(), Some(&layer))?;
        // As the source is seen.
        let shift = users.map_or(Ok(None), |users| shift_to(users, source.image));
        let shift = shift.map_err(|error| OpError::Option {
            message: format!("machine '{name}' cannot lie on layers: {error}"),
            hint: "clone it with --full".to_owned(),
        })?;
        layers.begin(&top, source.image, shift)?;
        Ok(Self {
            edits: users.map(edits_for).unwrap_or_default(),
            units: LinkUnits::of(name, &top, users, places)?,
            upper: layers.tree(&top),
            work: layers.work(&top),
            _users: lock,
        })
    }

    /// Has its units written with its other files.
    pub(in crate::ops) fn add_to(&self, plan: &mut Plan) {
        self.units.add_to(plan);
    }

    /// Whether a file is one of its units, or the link to one.
    pub(in crate::ops) fn has(&self, path: &Path) -> bool {
        path == self.units.wants.0 || self.units.files.iter().any(|(file, _)| file == path)
    }

    /// The names of its units.
    pub(in crate::ops) fn names(&self) -> Vec<String> {
        self.units.names()
    }

    /// Makes the directory that it is mounted on, where a copy would be.
    pub(in crate::ops) fn make_place(staging: &Staging) -> Result<(), OpError> {
        let place = staging.tree();
        let made = DirBuilder::new().mode(0o755).create(&place);
        made.map_err(OpError::path("create", &place))
    }

    /// The step that mounts the layers below with its users.
    pub(in crate::ops) fn shift<'a>(&'a self, steps: &mut Transaction<'a>, units: &'a dyn Units) {
        let shifts = &self.units.shifts;
        if shifts.is_empty() {
            return;
        }
        let shift = Step::new("mount its layers with its users", move || units.start_units(shifts));
        steps.step(shift.undo(move || units.stop_units(shifts)));
    }

    /// Does something with its files, before anybody else sees them, at a place of a directory to mount on.
    pub(in crate::ops) fn seen<T: Send>(&self, place: &Path, job: impl FnOnce() -> T + Send) -> Result<T, OpError> {
        let lowers: Vec<&Path> = self.units.lowers.iter().map(PathBuf::as_path).collect();
        see(place, &lowers, &self.upper, &self.work, job).map_err(OpError::path("mount an overlay on", place))
    }

    /// The step that mounts it where it is visible. It is a machine by then, and systemd would do that when it starts.
    pub(in crate::ops) fn mount<'a>(
        &'a self,
        steps: &mut Transaction<'a>,
        units: &'a dyn Units,
        report: &'a dyn Report,
    ) {
        let overlay = std::slice::from_ref(&self.units.overlay);
        steps.step(Step::new(format!("start unit {}", self.units.overlay), move || {
            if let Err(error) = units.start_units(overlay) {
                report.warn(&error.to_string());
            }
            Ok(())
        }));
    }
}

/// Takes down what a killed clone mounted: the units of that name that are among what it wrote.
pub(in crate::ops) fn unmount<'a>(
    files: impl Iterator<Item = &'a Path>,
    places: &Places,
    units: &dyn Units,
) -> Result<(), OpError> {
    let is_unit = |path: &&Path| path.parent() == Some(&places.units) && fs::symlink_metadata(path).is_ok();
    let names = files.filter(is_unit).filter_map(|path| path.file_name()?.to_str());
    let mounted: Vec<String> = names
        .filter(|name| name.ends_with(".mount") || (name.ends_with(".service") && !name.contains('@')))
        .map(str::to_owned)
        .collect();
    if mounted.is_empty() {
        Ok(())
    } else {
        units.stop_units(&mounted)
    }
}

/// What stands for the steps of a linked clone in a plan: its layers have no names before they are made.
pub(in crate::ops) fn describe(source: &MachineName, name: &MachineName) -> String {
    format!("make a layer of what '{source}' is now, that it and '{name}' lie on")
}
