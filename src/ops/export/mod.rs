//! A machine as one archive: its tree, and what is said of it besides.
//!
//! [`settings`] collects what is said, [`output`] is the file, [`layout`] an image beside others. The tree is packed as `cp` packs one: with the numbers of users that
//! the machine sees, so that it can be taken in anywhere. Nothing but the machine decides about its bytes: names are in order, and
//! there is no time of its making and no host in it.

mod disk;
mod gpt;
mod image;
pub mod layout;
pub mod output;
mod raw;
pub(super) mod settings;

use std::collections::BTreeMap;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;

use serde::Serialize;

use self::output::{Format, Output, Target, part_of};
use super::clone::Systemd;
use super::config::settle;
use super::cp::header::BLOCK;
use super::cp::ids::{Ids, Translation};
use super::cp::pack::{Pack, member};
use super::cp::side::{Side, find};
use super::cp::{self, Copied, Tree};
use super::lock::Lock;
use super::transaction::{Record, Staging, Verb};
use super::{OpError, Places, linked};
use crate::machine::manifest::{ABOUT, About, FORMAT, MANIFEST, Manifest, TREE};
use crate::machine::{Cancel, Location, MachineName, Report};
use crate::storage;
use crate::sys::files::{Root, shown, sync_filesystem};
use crate::sys::image_lock::{ImageLock, ImageLockError, Sharing};

/// Bytes that are handed on to the compressor at once.
const PIECE: usize = 64 << 10;

/// What is to be exported.
#[derive(Clone, Debug)]
pub struct Request {
    /// The machine.
    pub name: MachineName,
    /// Its image.
    pub image: PathBuf,
    /// Where to.
    pub target: Target,
    /// How it is compressed.
    pub format: Format,
    /// Whether what is said of it goes along.
    pub settings: bool,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Exported {
    /// What is in the tree.
    #[serde(flatten)]
    pub tree: Copied,
    /// The members that are no part of the tree.
    pub settings: Vec<String>,
    /// The sum of the tree, as it stands in the manifest.
    pub sha256: String,
    /// By which an image in a layout is known.
    pub digest: Option<String>,
    /// Whether it is a disk that was copied as it is: the sum is that of the file then, and nobody has counted what is in it.
    #[serde(skip)]
    pub is_disk: bool,
}

impl Request {
    /// Refuses what cannot be exported; whether the image is a disk.
    fn check(&self) -> Result<bool, OpError> {
        let is_disk = raw::is_disk(&self.image);
        if is_disk {
            raw::check(self)?;
        }
        self.target.check()?;
        if matches!(self.target, Target::Disk(..)) && !self.is_copy(is_disk) {
            disk::check()?;
        }
        Ok(is_disk)
    }

    /// Whether the disk is copied as it is: what is said of the machine has no place there.
    fn is_copy(&self, is_disk: bool) -> bool {
        is_disk && !self.settings && matches!(self.target, Target::Disk(..))
    }

    /// The image, if a copy of it beside the others is made at once.
    fn shared(&self, places: &Places) -> Result<Option<PathBuf>, OpError> {
        let image = self.image.canonicalize();
        let image = image.map_err(OpError::path("look at", &self.image))?;
        let is_beside = image.parent() == places.machines.canonicalize().ok().as_deref();
        let is_shared = is_beside
            && linked::top(&self.name, places).is_none()
            && storage::for_directory(&places.machines)?.shares();
        Ok(is_shared.then_some(image))
    }
}

/// What [`export`] would do, one line per step; touches nothing.
pub fn plan(request: &Request, running: bool, places: &Places) -> Result<Vec<String>, OpError> {
    let is_disk = request.check()?;
    let (name, mut steps) = (&request.name, Vec::new());
    if is_disk {
        raw::check_stopped(request, running)?;
        steps.push(format!("lock the name '{name}'"));
        if let Target::Disk(path, _) = &request.target
            && request.is_copy(is_disk)
        {
            raw::steps(request, &mut steps, Some(path));
            return Ok(steps);
        }
        raw::steps(request, &mut steps, None);
    }
    let shares = !is_disk && request.shared(places)?.is_some();
    let tree = format!("write the files of '{}'", shown(&request.image));
    let still = (
        format!("hold machine '{name}' still"),
        format!("let machine '{name}' go on"),
    );
    if !is_disk {
        steps.push(format!("lock the name '{name}'"));
    }
    match (running, shares) {
        (true, true) => steps.extend([still.0, "copy its files at one moment".to_owned(), still.1, tree]),
        (true, false) => steps.extend([still.0, tree, still.1]),
        (false, _) => steps.push(tree),
    }
    if request.settings {
        let members = settings::collect(name, (&request.image, &request.image), places, &())?;
        steps.extend(members.iter().map(|(path, _)| format!("write '{path}'")));
    }
    steps.push("write the sums of all parts".to_owned());
    match &request.target {
        Target::Stdout => {}
        Target::File(path, _) => steps.push(format!("name the archive '{}'", shown(path))),
        Target::Disk(path, _) => {
            steps.push("make an ext4 filesystem of the files, in a partition".to_owned());
            steps.push(format!("name the disk image '{}'", shown(path)));
        }
        Target::Layout(layout) => steps.push(format!(
            "name the image '{}' in '{}'",
            layout.tag,
            shown(&layout.directory)
        )),
    }
    Ok(steps)
}

/// Writes the archive; a file is there when it is whole, or not at all. Blocks.
pub fn export(
    request: &Request,
    places: &Places,
    systemd: &dyn Systemd,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Exported, OpError> {
    let name = &request.name;
    let _lock = Lock::wait(&places.runtime, name.as_str(), report, cancel)?;
    let is_disk = request.check()?;
    // A change of settings that was killed is no part of them.
    if settle(name, places)? {
        systemd.reload()?;
    }
    linked::make_visible(name, places, systemd)?;
    if is_disk {
        raw::check_stopped(request, systemd.is_running(name)?)?;
    }
    // Held until all is written: it is not to be started meanwhile. A running one is locked by systemd-nspawn.
    let image_lock = match ImageLock::take(&request.image, &places.image_locks(), Sharing::Exclusive) {
        Err(ImageLockError::InUse { .. }) if !is_disk && systemd.is_running(name)? => None,
        lock => Some(lock?),
    };
    let mounted = match &request.target {
        Target::Disk(path, replaces) if request.is_copy(is_disk) => {
            return raw::copy(request, (path, *replaces), report, cancel);
        }
        _ if is_disk => Some(raw::Mounted::open(request, places, report, cancel)?),
        _ => None,
    };
    let tree = mounted
        .as_ref()
        .map_or_else(|| request.image.clone(), raw::Mounted::path);
    let members = if request.settings {
        settings::collect(name, (&request.image, &tree), places, report)?
    } else {
        Vec::new()
    };
    let mut output = Output::create(&request.target, request.format)?;
    let write = |output: &mut Output, image: &Path| write(request, &members, image, output, places, report, cancel);
    let written = if image_lock.is_some() {
        write(&mut output, &tree)?
    } else {
        report.phase(&format!("holding {name} still"));
        let still = systemd.hold_still(name, &request.image)?;
        // What it has written up to now.
        sync_filesystem(&request.image)?;
        if let Some(image) = request.shared(places)? {
            let mut staging = Staging::create(places, &record(name), report, cancel)?;
            storage::for_directory(&places.machines)?.copy(&image, &staging.tree(), report, cancel)?;
            still.end(name)?;
            let written = write(&mut output, &staging.tree())?;
            staging.discard()?;
            written
        } else {
            let written = write(&mut output, &request.image)?;
            still.end(name)?;
            written
        }
    };
    // What follows is of the copy.
    drop((mounted, image_lock));
    report.phase("writing to disk");
    let difference = output.sum();
    let file = output.finish()?;
    let mut exported = written.exported;
    match &request.target {
        Target::Layout(layout) => {
            let parts = layout::Parts {
                layer: (file, request.format),
                difference: difference.sha256,
                config: written.config,
                members: written.beside.end()?,
            };
            exported.digest = Some(layout::add(layout, parts, places, report, cancel)?);
        }
        Target::Disk(path, replaces) => {
            let mut staging = Staging::create(places, &record(name), report, cancel)?;
            let part = disk::write((path, *replaces), file, written.beside, &staging.tree(), report, cancel)?;
            // The image is there, whatever becomes of what it was made of: the next call sweeps that.
            if let Err(error) = staging.discard() {
                report.warn(&error.to_string());
            }
            exported.sha256 = part.sha256;
        }
        Target::Stdout | Target::File(..) => {}
    }
    Ok(exported)
}

/// What goes beside the tree, where that is no part of the same archive.
struct Beside {
    /// The members, as a tar without its end.
    members: Vec<u8>,
    manifest: Manifest,
    /// When the tree was changed last, in seconds.
    newest: i64,
}

impl Beside {
    /// The whole tar, the manifest at its end.
    fn end(mut self) -> Result<Vec<u8>, OpError> {
        self.members.extend(member(MANIFEST, &json(&self.manifest)?));
        self.members.extend([0; 2 * BLOCK]);
        Ok(self.members)
    }
}

/// What is known when the tree is written.
struct Written {
    exported: Exported,
    /// Of an image: what it starts.
    config: serde_json::Value,
    beside: Beside,
}

/// The copy that is made to be read, and then removed.
fn record(name: &MachineName) -> Record {
    Record {
        verb: Verb::Survey,
        name: name.to_string(),
        settings: None,
        unit: None,
    }
}

fn write(
    request: &Request,
    members: &[settings::Member],
    image: &Path,
    output: &mut Output,
    places: &Places,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Written, OpError> {
    report.phase(&format!("exporting {}", request.name));
    let is_layer = matches!(request.target, Target::Layout(_));
    let is_apart = is_layer || matches!(request.target, Target::Disk(..));
    let copied = AtomicU64::new(0);
    cp::deep(&copied, &|| true, report, cancel, |cancel| {
        cp::raise_descriptors();
        let tree = Tree::Stopped(image.to_owned());
        let side = Side::machine(&request.name, tree, false, places, report, cancel)?;
        let found = find(&side, &Location::Machine(request.name.clone(), "/.".into()), true)?;
        let ids = Translation {
            from: side.ids.clone(),
            to: Ids::host(),
            capabilities: true,
        };
        let options = cp::Options {
            recursive: true,
            archive: true,
            keep_special: true,
        };
        let label = request.target.label();
        let out = BufWriter::with_capacity(PIECE, output);
        let mut pack = Pack::new((out, label), options, ids, cancel, &|| Ok(()), &copied);
        // systemd-nspawn makes those that a machine may have.
        pack.keeps_devices = false;
        pack.is_layer = is_layer;
        let flushed = |pack: &mut Pack<'_, BufWriter<&mut Output>>| {
            std::io::Write::flush(&mut pack.out).map_err(OpError::path("write", label))
        };
        let about = About {
            format: FORMAT,
            machinist: env!("CARGO_PKG_VERSION").to_owned(),
            name: request.name.to_string(),
        };
        let mut parts = BTreeMap::new();
        let first = (ABOUT.to_owned(), json(&about)?);
        let mut beside = Vec::new();
        for (path, bytes) in std::iter::once(&first).chain(members) {
            if is_apart {
                beside.extend(member(path, bytes));
            } else {
                pack.member(path, bytes)?;
            }
            parts.insert(path.clone(), part_of(bytes));
        }
        flushed(&mut pack)?;
        pack.out.get_mut().begin_sum();
        pack.tree(&found, if is_apart { b"." } else { TREE.as_bytes() })?;
        flushed(&mut pack)?;
        let tree = pack.out.get_ref().sum();
        let sha256 = tree.sha256.clone();
        parts.insert(TREE.to_owned(), tree);
        let manifest = Manifest { about, parts };
        let mut config = serde_json::Value::Null;
        if is_layer {
            config = image::config(&Root::open(image)?, members);
        }
        if !is_apart {
            pack.member(MANIFEST, &json(&manifest)?)?;
        }
        pack.end()?;
        let newest = pack.newest;
        let exported = Exported {
            tree: pack.done,
            settings: members.iter().map(|(path, _)| path.clone()).collect(),
            sha256,
            digest: None,
            is_disk: false,
        };
        Ok(Written {
            exported,
            config,
            beside: Beside {
                members: beside,
                manifest,
                newest,
            },
        })
    })
}

/// JSON that a person can read, too.
fn json(value: &impl Serialize) -> Result<Vec<u8>, OpError> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|error| OpError::path("write", MANIFEST)(error.into()))?;
    text.push(b'\n');
    Ok(text)
}
