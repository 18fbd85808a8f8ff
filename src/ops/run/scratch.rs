//! What a machine runs in that is gone at its end: a copy of an image, or an overlay over it where a copy takes long.

use std::path::{Path, PathBuf};

use super::Request;
use crate::machine::{Cancel, Report};
use crate::nspawn::assignment::Assignment;
use crate::nspawn::edit::Edit;
use crate::nspawn::users::{PrivateUsers, Taken, UserRange};
use crate::ops::clone::Systemd;
use crate::ops::config::users::HostUsers;
use crate::ops::create::{in_users_words, make_machines_directory, settle};
use crate::ops::transaction::{Record, Staging, Verb};
use crate::ops::{OpError, Places};
use crate::sources::guest::{GuestError, GuestNetwork, GuestOptions, prepare};
use crate::sources::oci::Runs;
use crate::sources::{self, Options, Source};
use crate::storage::overlay::{self, OverlayError};
use crate::storage::{self, Storage};
use crate::sys::files::{FileError, Root, sync_filesystem};
use crate::sys::image_lock::{ImageLock, ImageLockError, Sharing};
use crate::sys::lock_file::LockFile;
use crate::sys::overlay::{Overlay, mounter};

/// How often free users are looked for when others take them meanwhile.
const TRIES: usize = 100;

/// A copy of an image, or what is seen as one. Hidden, and swept if we are killed.
#[derive(Debug)]
pub struct Scratch {
    staging: Staging,
    view: Option<View>,
    _locks: Option<Locks>,
}

/// What an overlay needs as long as it is there: that the image below does not change, and that its users are nobody else's.
type Locks = (ImageLock, Option<LockFile>);

/// How what a machine runs in goes without us: its unit holds the lock of the directory, and has it removed at its end.
#[derive(Clone, Debug)]
pub struct Vanishes {
    /// The directory.
    pub directory: PathBuf,
    /// Its papers.
    pub papers: PathBuf,
    /// What does both: this program's helper, where systemd finds it.
    pub helper: PathBuf,
}

/// An overlay that a machine runs in.
#[derive(Clone, Debug)]
pub struct View {
    /// It.
    pub overlay: Overlay,
    /// What mounts it: this program, where systemd finds it.
    pub mounter: PathBuf,
    /// To whom its files belong, if not as the settings say.
    pub users: Option<UserRange>,
}

/// The machine that it is a copy of.
#[derive(Clone, Copy)]
pub struct Original<'a> {
    /// Where it lies.
    pub image: &'a Path,
    /// What its settings say of private users.
    pub users: PrivateUsers,
    /// The version of systemd.
    pub systemd: u32,
    /// What holds it still where it runs.
    pub host: &'a dyn Systemd,
}

impl Scratch {
    /// Makes it. Blocks.
    pub fn make(
        request: &Request,
        original: Original<'_>,
        places: &Places,
        report: &dyn Report,
        cancel: &Cancel,
    ) -> Result<Self, OpError> {
        let staging = stage(request, places, report, cancel)?;
        let storage = storage::for_directory(&places.machines)?;
        let laid = if storage.shares() {
            Err(Refusal::Reason(format!("{} copies at once", storage.name())))
        } else {
            lay(&staging, original, places)
        };
        let (view, locks) = match laid {
            Ok((view, locks)) => (Some(view), Some(locks)),
            Err(Refusal::Reason(reason)) => {
                log::debug!("no overlay over '{}': {reason}", original.image.display());
                copy(request, original, &*storage, &staging.tree(), places, report, cancel)?;
                (None, None)
            }
            Err(Refusal::Error(error)) => return Err(error),
        };
        Ok(Self {
            staging,
            view,
            _locks: locks,
        })
    }

    /// Makes a new one for a machine of that name, and returns what has to be set for what it runs. Blocks.
    pub fn from_source(
        request: &Request,
        source: &Source,
        options: &Options,
        network: GuestNetwork,
        places: &Places,
        report: &dyn Report,
        cancel: &Cancel,
    ) -> Result<(Self, Vec<Edit>), OpError> {
        make_machines_directory(&places.machines)?;
        let staging = stage(request, places, report, cancel)?;
        let made = fill(
            &staging.tree(),
            request,
            source,
            options,
            network,
            places,
            report,
            cancel,
        );
        let edits = made.map_err(|error| in_users_words(error, source, &places.machines))?;
        let scratch = Self {
            staging,
            view: None,
            _locks: None,
        };
        Ok((scratch, edits))
    }

    /// How it goes without us; `None` if systemd does not find our helper. Then the next sweep removes it.
    #[must_use]
    pub fn vanishes(&self) -> Option<Vanishes> {
        let (directory, papers) = (self.staging.directory().to_owned(), self.staging.papers().to_owned());
        mounter().map(|helper| Vanishes {
            directory,
            papers,
            helper,
        })
    }

    /// Leaves it to the unit that runs in it.
    pub fn leave(self) {
        self.staging.leave();
    }

    /// Where it is.
    #[must_use]
    pub fn tree(&self) -> PathBuf {
        self.staging.tree()
    }

    /// How it is mounted; `None` for a copy.
    #[must_use]
    pub fn view(&self) -> Option<&View> {
        self.view.as_ref()
    }

    /// Removes it.
    pub fn discard(mut self) -> Result<(), OpError> {
        self.staging.discard()
    }
}

/// A hidden directory for it.
fn stage(request: &Request, places: &Places, report: &dyn Report, cancel: &Cancel) -> Result<Staging, OpError> {
    let record = Record {
        verb: Verb::Run,
        name: request.like.to_string(),
        settings: None,
        unit: Some(request.unit()),
    };
    Staging::create(places, &record, report, cancel)
}

#[expect(clippy::too_many_arguments, reason = "what a source takes, and whom it is for")]
fn fill(
    tree: &Path,
    request: &Request,
    source: &Source,
    options: &Options,
    network: GuestNetwork,
    places: &Places,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Vec<Edit>, OpError> {
    let source_places = places.for_sources();
    let filled = sources::fill(source, options, &source_places, tree, report, cancel)?;
    report.phase("preparing the guest");
    let (root, none) = (Root::open(tree)?, GuestOptions::default());
    let is_named = request
        .edits
        .iter()
        .any(|edit| matches!(edit, Edit::Set { key, .. } | Edit::Add { key, .. } if key == "Parameters"));
    let (settled, options) = match &filled.program {
        Some(program) if !request.boots => {
            let application = GuestOptions {
                application: true,
                ..none
            };
            (program.settle(&root, Runs::Command)?, application)
        }
        _ => settle(&root, &filled, is_named, &none)?,
    };
    let guest = match prepare(&root, request.name.as_str(), network, &options) {
        // A command needs none.
        Err(GuestError::NoInit { .. }) if !request.boots => return Ok(Vec::new()),
        guest => guest?,
    };
    let tells = request.boots || options.application;
    for note in guest.notes.iter().filter(|_| tells).chain(&settled.notes) {
        report.warn(note);
    }
    let mut edits: Vec<Edit> = settled.settings.into_iter().map(Assignment::into_edit).collect();
    edits.extend(
        guest
            .init
            .kill_signal()
            .map(|signal| Edit::set("Exec", "KillSignal", signal.to_owned())),
    );
    Ok(edits)
}

/// Copies the image, which does not change meanwhile: a machine that runs on it stands still.
fn copy(
    request: &Request,
    original: Original<'_>,
    storage: &dyn Storage,
    tree: &Path,
    places: &Places,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<(), OpError> {
    let (image, name) = (original.image, &request.like);
    let (_lock, still) = match ImageLock::take(image, &places.image_locks(), Sharing::Shared) {
        Err(ImageLockError::InUse { .. }) if original.host.is_running(name)? => {
            report.phase(&format!("holding {name} still"));
            (None, Some(original.host.hold_still(name, image)?))
        }
        lock => (Some(lock?), None),
    };
    if still.is_some() {
        sync_filesystem(image)?;
    }
    storage.copy(image, tree, report, cancel)?;
    still.map_or(Ok(()), |still| still.end(name))
}

fn lay(staging: &Staging, original: Original<'_>, places: &Places) -> Result<(View, Locks), Refusal> {
    let (image, systemd) = (original.image, original.systemd);
    let mounter = mounter();
    let mounter = mounter.ok_or_else(|| Refusal::Reason("systemd does not find machinist-helper".into()))?;
    let lock = ImageLock::take(image, &places.image_locks(), Sharing::Shared).map_err(|error| match error {
        // It runs, and changes.
        ImageLockError::InUse { .. } => Refusal::Reason(error.to_string()),
        error @ ImageLockError::File(_) => Refusal::Error(error.into()),
    })?;
    let (users, lock_of_users) = match original.users {
        PrivateUsers::No | PrivateUsers::Plain(_) => (None, None),
        PrivateUsers::Mapped(range) => (Some(range), None),
        PrivateUsers::Pick => pick(systemd, places).map(|(range, lock)| (Some(range), Some(lock)))?,
        PrivateUsers::Other => return Err(Refusal::Reason("its users are systemd-nspawn's to set up".into())),
    };
    let overlay = overlay::prepare(image, staging.directory(), users).map_err(|error| match error {
        OverlayError::Impossible(reason) => Refusal::Reason(reason),
        OverlayError::Storage(error) => Refusal::Error(error.into()),
    })?;
    let view = View {
        overlay,
        mounter,
        users,
    };
    Ok((view, (lock, lock_of_users)))
}

/// Why there is no overlay.
enum Refusal {
    /// A copy will do.
    Reason(String),
    /// Neither will a copy.
    Error(OpError),
}

/// Users of the host that nobody has, and their lock.
pub(in crate::ops) fn free_users(systemd: u32, places: &Places) -> Result<(UserRange, LockFile), OpError> {
    pick(systemd, places).map_err(|refusal| match refusal {
        Refusal::Error(error) => error,
        Refusal::Reason(reason) => OpError::Option {
            message: reason,
            hint: "`machinist config check` tells whose they are".to_owned(),
        },
    })
}

/// Users of the host that nobody has, locked as systemd-nspawn locks those that it picks.
fn pick(systemd: u32, places: &Places) -> Result<(UserRange, LockFile), Refusal> {
    let directory = places.user_locks();
    let made = std::fs::create_dir_all(&directory).map_err(FileError::io("create directory", &directory));
    made.map_err(|error| Refusal::Error(error.into()))?;
    let (mut taken, mut locked) = (Vec::new(), Vec::new());
    for _ in 0..TRIES {
        let Some(range) = UserRange::free(UserRange::USUAL_COUNT, &[taken, locked.clone()].concat()) else {
            break;
        };
        let lock = LockFile::take(&directory.join(range.first.to_string()), Sharing::Exclusive);
        let lock = lock.map_err(|error| Refusal::Error(error.into()))?;
        // After that: systemd-nspawn gives its lock back as soon as its machine has them.
        taken = HostUsers::default().besides(None, systemd, places);
        match lock {
            Some(lock) if !taken.iter().any(|taken| taken.range.overlaps(range)) => return Ok((range, lock)),
            Some(_) => {}
            None => locked.push(Taken {
                range,
                by: "whoever has locked them".to_owned(),
            }),
        }
    }
    Err(Refusal::Reason("no users of the host are free".into()))
}
