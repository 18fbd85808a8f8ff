//! Making a machine: a tree from a source, prepared as a guest, with its settings, visible in one rename.

mod custom;
mod free;
pub mod script;

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{CWD, RenameFlags, renameat_with};

pub use self::custom::FileCopy;
pub(crate) use self::free::is_free;
use self::script::Script;
use super::lock::Lock;
use super::run::unit_of;
use super::transaction::{Record, Staging, Step, TREE, Transaction, Verb, is_staging};
use super::{OpError, Places, owned};
use crate::machine::{Cancel, MachineName, Report};
use crate::nspawn::assignment::Assignment;
use crate::nspawn::document::Document;
use crate::nspawn::edit::Edit;
use crate::sources::disk::Kept;
use crate::sources::guest::{Guest, GuestError, GuestNetwork, GuestOptions, prepare};
use crate::sources::oci::{Runs, Settled};
use crate::sources::{self, Filled, Options, Source};
use crate::sys::files::{Root, shown, sync_filesystem, write_atomic};

/// How a machine is connected, as `--network` says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Network {
    /// A virtual Ethernet link of its own: what the template unit does.
    Veth,
    /// The host's own network.
    Host,
    /// Loopback only.
    None,
    /// A link in a bridge of the host.
    Bridge(String),
    /// A link in a zone, see systemd.nspawn(5).
    Zone(String),
}

impl Network {
    /// The settings that make it so. The network keys of systemd.nspawn(5) act as one group, so that all of them are said.
    #[must_use]
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Veth => Vec::new(),
            Self::Host => vec![("Private", "no".into()), ("VirtualEthernet", "no".into())],
            Self::None => vec![("Private", "yes".into()), ("VirtualEthernet", "no".into())],
            Self::Bridge(name) => vec![("Bridge", name.clone())],
            Self::Zone(name) => vec![("Zone", name.clone())],
        }
    }

    /// How that looks from inside.
    #[must_use]
    pub fn inside(&self) -> GuestNetwork {
        match self {
            Self::Veth | Self::Bridge(_) | Self::Zone(_) => GuestNetwork::Link,
            Self::Host => GuestNetwork::Host,
            Self::None => GuestNetwork::None,
        }
    }
}

/// What is to be made.
#[derive(Clone, Debug)]
pub struct Request {
    /// The machine's name.
    pub name: MachineName,
    /// What it is made from.
    pub source: Source,
    /// What shapes its tree.
    pub options: Options,
    /// What its guest is to be.
    pub guest: GuestOptions,
    /// How it is connected.
    pub network: Network,
    /// `--set Section.Key=Value`, in their order.
    pub settings: Vec<Assignment>,
    /// Files of the host that it gets.
    pub files: Vec<FileCopy>,
    /// What is run in it before anybody sees it.
    pub scripts: Vec<Script>,
    /// Whether that has the host's network.
    pub scripts_have_network: bool,
}

/// What the steps hand on to each other.
#[derive(Default)]
struct Slots {
    lock: Option<Lock>,
    staging: Option<Staging>,
    filled: Filled,
    settings: Vec<u8>,
}

impl Slots {
    fn staging(&self) -> Result<&Staging, OpError> {
        // Steps run in their order: the staging directory is there.
        self.staging
            .as_ref()
            .ok_or_else(|| OpError::Setting("internal error: no staging directory".into()))
    }
}

/// Makes the machine, or leaves everything as it was. Blocks.
///
/// `in_use` asks machined whether it knows the name, as a running machine or an image anywhere; `run` runs the request's
/// scripts in its tree, see [`script::Runner`].
pub fn create(
    request: &Request,
    places: &Places,
    in_use: &(dyn Fn() -> Result<(), OpError> + Sync),
    run: &(dyn Fn(&Path) -> Result<(), OpError> + Sync),
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<(), OpError> {
    let slots = Mutex::default();
    let steps = transaction(request, places, in_use, run, report, cancel, &slots)?;
    steps
        .run(report, cancel)
        .map_err(|error| in_users_words(error, &request.source, &places.machines))
}

/// The hidden directory is gone when the user looks: of it the directory of all machines is told, of a path in the tree
/// the rest, and of a tree that is unfit what it was made from.
pub(super) fn in_users_words(mut error: OpError, source: &Source, machines: &Path) -> OpError {
    if let OpError::Guest(GuestError::NoUsr { path, .. } | GuestError::NoInit { path }) = &mut error {
        *path = source.to_string().into();
    }
    // That is told of archives, of which a part can be taken.
    if let (OpError::Guest(GuestError::NoUsr { only, .. }), Source::Directory(_)) = (&mut error, source) {
        *only = None;
    }
    with_visible_path(error, machines)
}

/// The same for an error of any verb that works in a staging directory.
pub(super) fn with_visible_path(mut error: OpError, machines: &Path) -> OpError {
    if let Some(path) = error.path_mut()
        && let Some(visible) = visible_path(path, machines)
    {
        *path = visible;
    }
    error
}

/// What the user knows of a path in a staging directory.
fn visible_path(path: &Path, machines: &Path) -> Option<PathBuf> {
    let mut parts = path.strip_prefix(machines).ok()?.components();
    if !is_staging(Path::new(parts.next()?.as_os_str())) {
        return None;
    }
    let in_tree = parts.next().is_some_and(|part| part.as_os_str() == TREE);
    let rest = parts.as_path();
    let visible = if in_tree && rest != Path::new("") {
        rest
    } else {
        machines
    };
    Some(visible.to_owned())
}

/// What [`create`] would do, one line per step; checks what can be checked without touching anything.
pub fn plan(request: &Request, places: &Places) -> Result<Vec<String>, OpError> {
    is_free(&request.name, places)?;
    let slots = Mutex::default();
    let cancel = Cancel::default();
    Ok(transaction(request, places, &|| Ok(()), &|_| Ok(()), &(), &cancel, &slots)?.describe())
}

fn transaction<'a>(
    request: &'a Request,
    places: &'a Places,
    in_use: &'a (dyn Fn() -> Result<(), OpError> + Sync),
    run: &'a (dyn Fn(&Path) -> Result<(), OpError> + Sync),
    report: &'a dyn Report,
    cancel: &'a Cancel,
    slots: &'a Mutex<Slots>,
) -> Result<Transaction<'a>, OpError> {
    let name = &request.name;
    let likely = if request.source.stays_image() && !request.options.disk.extract {
        places.disk_image(name)
    } else {
        places.image(name)
    };
    let settings_file = places.settings_file(name);
    let source_places = places.for_sources();
    let source_plan = sources::plan(&request.source, &request.options, &source_places)?;
    let hold = move || slots.lock().unwrap_or_else(PoisonError::into_inner);
    let mut steps = Transaction::default();

    steps.step(Step::new(
        format!("lock the name '{name}' and check that it is free"),
        move || {
            make_machines_directory(&places.machines)?;
            hold().lock = Some(Lock::wait(&places.runtime, name.as_str(), report, cancel)?);
            is_free(name, places)?;
            in_use()
        },
    ));

    let record = Record {
        verb: Verb::Create,
        name: name.to_string(),
        settings: Some(settings_file.clone()),
        unit: (!request.scripts.is_empty()).then(|| unit_of(name)),
    };
    steps.step(
        Step::new(
            format!("make a hidden directory in '{}'", shown(&places.machines)),
            move || {
                hold().staging = Some(Staging::create(places, &record, report, cancel)?);
                Ok(())
            },
        )
        .undo(move || hold().staging.take().map_or(Ok(()), |mut staging| staging.discard())),
    );

    steps.step(Step::new(source_plan.join("\n"), move || {
        let tree = hold().staging()?.tree();
        let (source, options) = (&request.source, &request.options);
        let filled = sources::fill(source, options, &source_places, &tree, report, cancel)?;
        hold().filled = filled;
        Ok(())
    }));

    steps.step(Step::new(describe_guest(request), move || {
        report.phase("preparing the guest");
        let mut slots = hold();
        let tree = slots.staging()?.tree();
        let (guest, settled) = prepare_in(&tree, request, &slots.filled, cancel)?;
        for note in guest.notes.iter().chain(&settled.notes) {
            report.warn(note);
        }
        slots.settings = settings(request, guest.init.kill_signal(), &settled)?;
        let staged = slots.staging()?.paper("settings");
        Ok(write_atomic(&staged, &slots.settings, 0o644)?)
    }));

    let tree = move || Ok::<_, OpError>(hold().staging()?.tree());
    custom::steps(&mut steps, request, places, run, tree, report, cancel)?;

    let machines = places.machines.clone();
    steps.step(Step::new("write everything to disk", move || {
        report.phase("writing to disk");
        Ok(sync_filesystem(&machines)?)
    }));

    let written = settings_file.clone();
    steps.step(
        Step::new(describe_settings(request, &settings_file), move || {
            let slots = hold();
            if slots.settings.is_empty() {
                Ok(())
            } else {
                owned::write(&settings_file, &slots.settings)
            }
        })
        .undo(move || owned::take_back(&written, &hold().settings)),
    );

    steps.step(Step::new(format!("rename it to '{}'", shown(&likely)), move || {
        let mut slots = hold();
        let tree = slots.staging()?.tree();
        let visible = if tree.is_file() {
            places.disk_image(name)
        } else {
            places.image(name)
        };
        renameat_with(CWD, &tree, CWD, &visible, RenameFlags::NOREPLACE)
            .map_err(|errno| OpError::path("rename the new image to", &visible)(errno.into()))?;
        // The machine exists from here on: what follows must not fail the verb.
        if let Err(error) = sync_directory(&places.machines) {
            report.warn(&error.to_string());
        }
        if let Some(Err(error)) = slots.staging.take().map(|mut staging| staging.discard()) {
            report.warn(&error.to_string());
        }
        Ok(())
    }));
    Ok(steps)
}

/// What follows from an image of a container: settings, and whether it is no guest that boots. `is_named` tells that the
/// user says what it starts.
pub(super) fn settle(
    root: &Root,
    filled: &Filled,
    is_named: bool,
    guest: &GuestOptions,
) -> Result<(Settled, GuestOptions), OpError> {
    let Some(program) = &filled.program else {
        return Ok((Settled::default(), guest.clone()));
    };
    let runs = match program.runs(root)? {
        Runs::Program if is_named => Runs::Other,
        runs => runs,
    };
    let guest = GuestOptions {
        application: runs != Runs::Init,
        ..guest.clone()
    };
    Ok((program.settle(root, runs)?, guest))
}

/// Makes what the source had a guest: a directory, or the root filesystem of a disk image.
fn prepare_in(tree: &Path, request: &Request, filled: &Filled, cancel: &Cancel) -> Result<(Guest, Settled), OpError> {
    let (name, network) = (request.name.as_str(), request.network.inside());
    if tree.is_file() {
        let kept = Kept::open(tree, cancel)?;
        let guest = prepare(&kept.root, name, network, &request.guest)?;
        kept.finish()?;
        return Ok((guest, Settled::default()));
    }
    let root = Root::open(tree)?;
    let is_named = request.settings.iter().any(|one| one.key.path() == "Exec.Parameters");
    let (settled, guest) = settle(&root, filled, is_named, &request.guest)?;
    Ok((prepare(&root, name, network, &guest)?, settled))
}

fn describe_guest(request: &Request) -> String {
    let guest = &request.guest;
    let hostname = guest.hostname.as_deref().unwrap_or(request.name.as_str());
    let mut parts = vec![match (guest.keep_identity, &guest.hostname) {
        (true, None) => "it keeps its identity".to_owned(),
        (true, Some(_)) => format!("host name '{hostname}', else it keeps its identity"),
        (false, _) => format!("host name '{hostname}', a new identity at first boot"),
    }];
    let has_password = guest.root_password_hash.is_some();
    parts.push(
        if has_password {
            "root has the given password"
        } else {
            "root is locked"
        }
        .to_owned(),
    );
    let others = [
        ("the ssh key is installed", guest.ssh_key.is_some()),
        ("another user", guest.user.is_some()),
        ("a time zone", guest.timezone.is_some()),
        ("a locale", guest.locale.is_some()),
        ("name servers", !guest.dns.is_empty()),
        ("disabled units", !guest.disabled_units.is_empty()),
        ("masked units", !guest.masked_units.is_empty()),
        ("a seed for cloud-init", guest.cloud_init.is_some()),
    ];
    parts.extend(
        others
            .into_iter()
            .filter(|(_, is)| *is)
            .map(|(part, _)| part.to_owned()),
    );
    format!("prepare the guest: {}", parts.join(", "))
}

/// Whether there will be a .nspawn file, as far as that is known before the tree and its init are there.
fn describe_settings(request: &Request, file: &Path) -> String {
    let asked_for =
        !request.settings.is_empty() || !request.network.settings().is_empty() || !kept_from_host(request).is_empty();
    match &request.source {
        Source::Bootstrap { .. } if !asked_for => {
            "write no .nspawn file: nothing differs from the template unit".into()
        }
        Source::Tarball(_)
        | Source::Disk(_)
        | Source::Stdin
        | Source::Url(_)
        | Source::Catalogue(_)
        | Source::Image(_)
        | Source::Directory(_)
            if !asked_for =>
        {
            format!("write '{}' unless its init is systemd", shown(file))
        }
        _ => format!("write '{}'", shown(file)),
    }
}

/// What systemd-nspawn would set at each start in place of what the guest was given.
fn kept_from_host(request: &Request) -> Vec<(&'static str, &'static str)> {
    let mut settings = Vec::new();
    settings.extend(request.guest.timezone.is_some().then_some(("Timezone", "off")));
    // With a network of its own it is left alone anyway.
    let copies_resolv_conf = request.network == Network::Host && !request.guest.dns.is_empty();
    settings.extend(copies_resolv_conf.then_some(("ResolvConf", "off")));
    settings
}

/// The text of the .nspawn file; empty if the template's defaults do.
fn settings(request: &Request, kill_signal: Option<&str>, settled: &Settled) -> Result<Vec<u8>, OpError> {
    let set = |section: &str, key: &str, value: &str| Edit::Set {
        section: section.to_owned(),
        key: key.to_owned(),
        value: value.to_owned(),
    };
    let mut edits: Vec<Edit> = Vec::new();
    // Without this the guest ignores the request to power off, and is killed after the unit's timeout.
    edits.extend(kill_signal.map(|signal| set("Exec", "KillSignal", signal)));
    edits.extend(settled.settings.iter().cloned().map(Assignment::into_edit));
    edits.extend(
        kept_from_host(request)
            .into_iter()
            .map(|(key, value)| set("Exec", key, value)),
    );
    edits.extend(
        request
            .network
            .settings()
            .iter()
            .map(|(key, value)| set("Network", key, value)),
    );
    edits.extend(request.settings.iter().cloned().map(Assignment::into_edit));
    if edits.is_empty() && settled.comments.is_empty() {
        return Ok(Vec::new());
    }
    let mut head = format!("# Settings of machine '{}', see systemd.nspawn(5).\n", request.name);
    head.extend(settled.comments.iter().map(|comment| format!("# {comment}\n")));
    let mut document = Document::parse(head.as_bytes());
    for edit in &edits {
        document
            .apply(edit)
            .map_err(|error| OpError::Setting(error.to_string()))?;
    }
    Ok(document.as_bytes().to_vec())
}

/// `/var/lib/machines` is closed to everybody but root: images hold setuid programs and secrets.
pub(super) fn make_machines_directory(directory: &Path) -> Result<(), OpError> {
    if directory.exists() {
        return Ok(());
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(OpError::path("create", directory))
}

pub(super) fn sync_directory(directory: &Path) -> Result<(), OpError> {
    fs::File::open(directory)
        .and_then(|file| file.sync_all())
        .map_err(OpError::path("write to disk", directory))
}

#[cfg(test)]
mod tests;
