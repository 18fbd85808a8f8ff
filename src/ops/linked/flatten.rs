//! Making a linked machine independent.

use std::sync::Mutex;

use super::{LinkUnits, NoUnits, Units, top};
use crate::machine::{Cancel, MachineName, Report};
use crate::ops::create::sync_directory;
use crate::ops::linked::rest::{is_place, swap};
use crate::ops::lock::Lock;
use crate::ops::transaction::{Record, Staging, Step, Transaction, Verb, hold};
use crate::ops::{OpError, Places, linked};
use crate::storage;
use crate::sys::files::{shown, sync_filesystem};
use crate::sys::image_lock::{ImageLock, Sharing};

/// Copies what a linked machine is seen as to a directory of its own, which takes the place of the mount: whether there was
/// anything to do. The machine does not run. Its users stay what they are. Blocks.
///
/// # Errors
/// Everything stays as it was, but for files that a killed one left, which the next call removes.
pub fn flatten(
    name: &MachineName,
    places: &Places,
    units: &dyn Units,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<bool, OpError> {
    let _name = Lock::wait(&places.runtime, name.as_str(), report, cancel)?;
    let Some(written) = LinkUnits::existing(name, places) else {
        return Ok(false);
    };
    if top(name, places).is_none() {
        // One that was killed after its image had become a directory of its own.
        forget(&written, units)?;
    } else {
        linked::make_visible(name, places, units)?;
        let image = places.image(name);
        let _image = ImageLock::take(&image, &places.image_locks(), Sharing::Exclusive)?;
        let staging = Mutex::new(None);
        steps(name, &written, &staging, places, units, report, cancel).run(report, cancel)?;
    }
    let _layers = linked::lock(places, report, cancel)?;
    linked::sweep(places, report)?;
    Ok(true)
}

/// What [`flatten`] would do, one line per step; nothing for a machine that lies on no layers.
#[must_use]
pub fn plan(name: &MachineName, places: &Places) -> Vec<String> {
    let Some(written) = LinkUnits::existing(name, places) else {
        return Vec::new();
    };
    let (staging, cancel) = (Mutex::new(None), Cancel::default());
    let mut lines = steps(name, &written, &staging, places, &NoUnits, &(), &cancel).describe();
    lines.push("remove the layers that no machine needs".to_owned());
    lines
}

fn steps<'a>(
    name: &'a MachineName,
    written: &'a LinkUnits,
    staging: &'a Mutex<Option<Staging>>,
    places: &'a Places,
    units: &'a dyn Units,
    report: &'a dyn Report,
    cancel: &'a Cancel,
) -> Transaction<'a> {
    let image = places.image(name);
    let tree = move || {
        let tree = hold(staging).as_ref().map(Staging::tree);
        tree.ok_or_else(|| OpError::Setting("internal error: no staging directory".into()))
    };
    let mut steps = Transaction::default();
    let source = image.clone();
    let copy = Step::new(
        format!("copy '{}' to a directory of its own", shown(&image)),
        move || {
            let record = Record {
                verb: Verb::Survey,
                name: name.to_string(),
                settings: None,
                unit: None,
            };
            *hold(staging) = Some(Staging::create(places, &record, report, cancel)?);
            storage::for_directory(&places.machines)?.copy(&source, &tree()?, report, cancel)?;
            report.phase("writing to disk");
            Ok(sync_filesystem(&places.machines)?)
        },
    );
    steps.step(copy.undo(move || hold(staging).take().map_or(Ok(()), |mut staging| staging.discard())));
    let overlay = std::slice::from_ref(&written.overlay);
    let unmount = Step::new(format!("unmount '{}'", shown(&image)), move || {
        units.stop_units(overlay)
    });
    steps.step(unmount.undo(move || units.start_units(overlay)));
    let (there, back) = (image.clone(), image.clone());
    let show = Step::new(format!("put the copy at '{}'", shown(&image)), move || {
        swap(&there, &tree()?)?;
        sync_directory(&places.machines)
    });
    steps.step(show.undo(move || if is_place(&back) { Ok(()) } else { swap(&back, &tree()?) }));
    // From here on nothing is mounted there any more, whatever the files say.
    steps.step(Step::new("remove the units that mounted it", move || {
        forget(written, units)
    }));
    steps.step(Step::new("remove the hidden directory", move || {
        if let Some(Err(error)) = hold(staging).take().map(|mut staging| staging.discard()) {
            report.warn(&error.to_string());
        }
        Ok(())
    }));
    steps
}

fn forget(written: &LinkUnits, units: &dyn Units) -> Result<(), OpError> {
    units.stop_units(&written.names())?;
    written.remove()?;
    units.reload()
}
