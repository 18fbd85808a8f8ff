//! Having a machine rest on a layer that another one can lie on, too.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::{LinkUnits, Units, edits_for, make_link, private_users, remove_file, users_of};
use crate::machine::{Cancel, MachineName, Report};
use crate::nspawn::users::{PrivateUsers, UserRange};
use crate::ops::config::{Change, Wanted, change_locked};
use crate::ops::create::sync_directory;
use crate::ops::run::scratch;
use crate::ops::transaction::{Step, Transaction, hold};
use crate::ops::{OpError, Places, owned};
use crate::storage::layers::Layers;
use crate::storage::overlay::shift_to;
use crate::sys::files::{make_read_only, make_writable, shown};
use crate::sys::lock_file::LockFile;

/// A machine that is to rest on a layer.
pub(in crate::ops) struct Source<'a> {
    pub(in crate::ops) name: &'a MachineName,
    /// Its image, which is locked.
    pub(in crate::ops) image: &'a Path,
    /// The version of the systemd that runs it.
    pub(in crate::ops) systemd: u32,
}

/// What another machine can lie on.
pub(in crate::ops) struct Rest {
    /// The layer.
    pub(in crate::ops) layer: String,
    /// The users of the machine that rests on it; `None` for the host's.
    pub(in crate::ops) users: Option<UserRange>,
}

/// Makes a layer of what a machine is, that does not run, and has it go on in a new one on top. A machine that has not changed
/// since that was done is left alone. Whoever calls has locked the machine's name, its image, and the layers. Blocks.
pub(in crate::ops) fn rest(
    source: &Source<'_>,
    places: &Places,
    units: &dyn Units,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Rest, OpError> {
    let rest = match super::top(source.name, places) {
        Some(top) => on_top(source, &top, places, units, report, cancel),
        None => {
            refuse_others(source, places)?;
            first(source, places, units, report, cancel)
        }
    }?;
    Layers::at(places.layers()).seal(&rest.layer)?;
    Ok(rest)
}

/// Refuses images that cannot become a layer, or where nothing can be mounted.
fn refuse_others(source: &Source<'_>, places: &Places) -> Result<(), OpError> {
    let (image, layers) = (source.image, places.layers());
    let refused = |message: String| OpError::Option {
        message,
        hint: "clone it with --full".to_owned(),
    };
    if let Some(how) = make_writable(image) {
        make_read_only(image, how);
        return Err(refused(format!(
            "machine '{}' is read-only, and cannot be moved to lie on a layer (`machinist read-only {0} off`)",
            source.name
        )));
    }
    if !Layers::at(layers.clone()).is_on_mount_of(&places.machines)? {
        return Err(refused(format!(
            "'{}' and '{}' are not on one mount, and a machine becomes a layer by a rename",
            shown(&places.machines),
            shown(&layers)
        )));
    }
    refuse_links(image, places)
}

/// systemd mounts nothing where a link leads to, and looks nowhere else for the image.
fn refuse_links(image: &Path, places: &Places) -> Result<(), OpError> {
    let real = image.canonicalize().map_err(OpError::path("look at", image))?;
    if real == image && real.parent() == Some(&places.machines) {
        return Ok(());
    }
    Err(OpError::Option {
        message: format!(
            "'{}' is not in '{}' itself, and systemd mounts nothing where a link leads to",
            shown(image),
            shown(&places.machines)
        ),
        hint: "clone it with --full".to_owned(),
    })
}

/// One that lies on layers already: what it has changed becomes a layer.
fn on_top(
    source: &Source<'_>,
    top: &str,
    places: &Places,
    units: &dyn Units,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Rest, OpError> {
    let layers = Layers::at(places.layers());
    let (users, is_said) = users_of(source.name, top, source.systemd, places)?;
    let change = Mutex::new(None);
    if let Some(users) = users.filter(|_| !is_said) {
        let mut steps = Transaction::default();
        settings_step(&mut steps, source, users, places, units, report, cancel, &change);
        steps.run(report, cancel)?;
    }
    if layers.is_empty(top)?
        && let Some(layer) = layers.below(top)?.into_iter().next()
    {
        return Ok(Rest { layer, users });
    }
    let new = layers.create(source.name.as_str(), Some(top))?;
    layers.begin(&new, &layers.tree(top), None)?;
    let written = LinkUnits::of(source.name, &new, users, places)?;
    let former = LinkUnits::existing(source.name, places);
    let former = former.map(|former| former.files).unwrap_or_default();
    let mut steps = Transaction::default();
    let mount = std::slice::from_ref(&written.overlay);
    let unmount = Step::new(format!("unmount '{}'", shown(source.image)), move || {
        units.stop_units(mount)
    });
    steps.step(unmount.undo(move || units.start_units(mount)));
    write_units(&mut steps, &written, &former, units);
    let start = Step::new(
        format!("mount '{}' again, on a new layer", shown(source.image)),
        move || units.start_units(mount),
    );
    steps.step(start.undo(move || units.stop_units(mount)));
    steps.run(report, cancel)?;
    Ok(Rest {
        layer: top.to_owned(),
        users,
    })
}

/// Adds the steps that write units in the place of others.
fn write_units<'a>(
    steps: &mut Transaction<'a>,
    written: &'a LinkUnits,
    former: &[(PathBuf, String)],
    units: &'a dyn Units,
) {
    // When everything that follows is undone.
    steps.step(Step::new("change its units", || Ok(())).undo(move || units.reload()));
    for (path, text) in &written.files {
        let before = former
            .iter()
            .find(|(known, _)| known == path)
            .map(|(_, text)| text.clone());
        if before.as_ref() == Some(text) {
            continue;
        }
        let write = Step::new(format!("write '{}'", shown(path)), move || {
            owned::write(path, text.as_bytes())
        });
        steps.step(write.undo(move || match &before {
            Some(before) => owned::write(path, before.as_bytes()),
            None => owned::take_back(path, text.as_bytes()),
        }));
    }
    let (link, leads_to) = &written.wants;
    if fs::symlink_metadata(link).is_err() {
        let enable = Step::new(format!("link '{}'", shown(link)), move || make_link(link, leads_to));
        steps.step(enable.undo(move || remove_file(link)));
    }
    let (names, is_new) = (written.names(), former.is_empty());
    steps.step(Step::new("have systemd read its unit files", move || {
        if is_new { units.read_new(&names) } else { units.reload() }
    }));
}

/// The users that a machine is going to have, and the lock of those that were picked.
pub(in crate::ops) type Users = (Option<UserRange>, Option<LockFile>);

/// Free users for a linked machine.
pub(in crate::ops) fn free_users(systemd: u32, places: &Places) -> Result<Users, OpError> {
    let (range, lock) = scratch::free_users(systemd, places)?;
    Ok((Some(range), Some(lock)))
}

/// Those of a machine that lies on no layers yet.
fn users_for(source: &Source<'_>, places: &Places) -> Result<Users, OpError> {
    match private_users(source.name, source.systemd, places)? {
        PrivateUsers::No => Ok((None, None)),
        PrivateUsers::Mapped(range) | PrivateUsers::Plain(range) => Ok((Some(range), None)),
        PrivateUsers::Pick => free_users(source.systemd, places),
        PrivateUsers::Other => Err(OpError::Option {
            message: format!(
                "whose the files of machine '{}' are only systemd-nspawn knows",
                source.name
            ),
            hint: format!(
                "`machinist config set {} Exec.PrivateUsers=pick`, or clone it with --full",
                source.name
            ),
        }),
    }
}

/// One that is a plain directory: that becomes the first layer. It changes its place with the directory to mount on in one
/// go, and only there is the mount made: until then it is the plain machine, and from then on the linked one.
fn first(
    source: &Source<'_>,
    places: &Places,
    units: &dyn Units,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Rest, OpError> {
    let layers = Layers::at(places.layers());
    let (users, _lock) = users_for(source, places)?;
    let base = layers.create(source.name.as_str(), None)?;
    let top = layers.create(source.name.as_str(), Some(&base))?;
    let shift = users.map_or(Ok(None), |users| shift_to(users, source.image));
    let shift = shift.map_err(|error| OpError::Option {
        message: format!("machine '{}' cannot lie on layers: {error}", source.name),
        hint: "clone it with --full".to_owned(),
    })?;
    layers.begin(&top, source.image, shift)?;
    // What is below is that machine, and not the directory that has its place for now.
    let written = LinkUnits::with(source.name, &top, places, |_| Ok(shift))?;
    let mut steps = Transaction::default();
    write_units(&mut steps, &written, &[], units);
    let (image, tree) = (source.image, layers.tree(&base));
    let (there, back) = (tree.clone(), tree);
    let exchange = Step::new(format!("make '{}' the first layer", shown(image)), move || {
        swap(image, &there)
    });
    steps.step(exchange.undo(move || if is_place(image) { swap(image, &back) } else { Ok(()) }));
    let change = Mutex::new(None);
    if let Some(users) = users {
        settings_step(&mut steps, source, users, places, units, report, cancel, &change);
    }
    let mount = std::slice::from_ref(&written.overlay);
    let start = Step::new(format!("mount '{}' on it", shown(image)), move || {
        units.start_units(mount)
    });
    let all = written.names();
    steps.step(start.undo(move || units.stop_units(&all)));
    steps.run(report, cancel)?;
    Ok(Rest { layer: base, users })
}

#[expect(clippy::too_many_arguments, reason = "all that a change of settings takes")]
fn settings_step<'a>(
    steps: &mut Transaction<'a>,
    source: &'a Source<'_>,
    users: UserRange,
    places: &'a Places,
    units: &'a dyn Units,
    report: &'a dyn Report,
    cancel: &'a Cancel,
    change: &'a Mutex<Option<u32>>,
) {
    let apply = move |wanted: Wanted| {
        let what = "lie on layers".to_owned();
        let (name, systemd) = (source.name.clone(), source.systemd);
        let changes = [Change {
            name,
            wanted,
            what,
            systemd,
        }];
        let changed = change_locked(&changes, places, &|| units.reload(), report, cancel)?;
        Ok::<_, OpError>(changed.first().and_then(|changed| changed.number))
    };
    let describe = format!("give machine '{}' the users {users} for good", source.name);
    let step = Step::new(describe, move || {
        let edits = Wanted::Edits {
            settings: edits_for(users),
            drop_ins: Vec::new(),
        };
        *hold(change) = apply(edits)?;
        Ok(())
    });
    steps.step(step.undo(move || {
        let number = hold(change).take();
        let undo = Wanted::Undo {
            number,
            then: Vec::new(),
        };
        number.map_or(Ok(()), |_| apply(undo).map(drop))
    }));
}

/// Whether a directory is one to mount a linked machine on, and nothing is: it is empty.
pub(in crate::ops) fn is_place(directory: &Path) -> bool {
    fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none())
}

/// Two directories change their places.
pub(in crate::ops) fn swap(one: &Path, other: &Path) -> Result<(), OpError> {
    renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)
        .map_err(|errno| OpError::path("move", one)(errno.into()))?;
    for path in [one, other] {
        sync_directory(path.parent().unwrap_or(Path::new("/")))?;
    }
    Ok(())
}
