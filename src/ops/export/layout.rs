//! A machine as an image in an OCI layout, beside others that are there: see image-layout.md of the image specification.
//!
//! What any tool takes for an image is one: a layer, a configuration, a manifest. What is said of the machine besides is a
//! second manifest that refers to the first, which other tools pass over. Every blob is there whole before `index.json` names it,
//! and that is replaced at once: whenever this ends, the layout is what it was, or has the image. It may be anybody's: nothing of it
//! is reached but through its root.

use std::cell::Cell;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, OFlags, RenameFlags, linkat, renameat, renameat_with, unlinkat};
use rustix::io::Errno;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::output::{Format, Hidden, directory_of, part_of};
use crate::machine::manifest::{ARTIFACT, ARTIFACT_LAYER, Part};
use crate::machine::{Cancel, Report};
use crate::ops::create::sync_directory;
use crate::ops::lock::Lock;
use crate::ops::{OpError, Places};
use crate::sources::oci::{is_tag, split_layout};
use crate::sources::sum::Sum;
use crate::sys::files::{Root, magic_link, shown, temporary_name};

/// The longest document in bytes, as registries have it.
const MAX_DOCUMENT: u64 = 4 << 20;
/// Where blobs are.
const BLOBS: &str = "blobs/sha256";
const VERSION: &str = "oci-layout";
const INDEX: &str = "index.json";
/// Blobs have what only root may read; the rest is for all who can reach it.
const BLOB_MODE: u32 = 0o600;
const MODE: u32 = 0o644;
/// The annotation that has an image's tag.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The annotation that makes images differ whose settings do: each has its own.
const SETTINGS: &str = "machinist.settings";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
/// What stands for a configuration where there is none.
const EMPTY: (&str, &[u8]) = ("application/vnd.oci.empty.v1+json", b"{}");
/// How much is looked at of what others say that we have made: so many manifests, of so many bytes at most.
const ARTIFACTS_MAX: usize = 1000;
const ARTIFACT_MAX: u64 = 64 << 10;
/// How what is not ready yet is called.
const HIDDEN: &str = ".#machinist-";
/// Bytes that are added up at once.
const PIECE: usize = 256 << 10;

/// An image in a layout: `oci:DIR[:TAG]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The directory.
    pub directory: PathBuf,
    /// What the image is called in it.
    pub tag: String,
    /// Whether another image of that name gives way.
    pub replaces: bool,
}

/// What an image is made of.
pub(super) struct Parts {
    /// The tree, compressed, and how.
    pub(super) layer: (Hidden, Format),
    /// The sum of the tree before.
    pub(super) difference: String,
    /// What it starts.
    pub(super) config: Value,
    /// What is said of the machine besides, as a tar.
    pub(super) members: Vec<u8>,
}

fn refused(message: String, hint: &str) -> OpError {
    let hint = hint.to_owned();
    OpError::Option { message, hint }
}

impl Layout {
    /// Reads what stands behind `oci:`.
    ///
    /// # Errors
    /// If it names no directory, or a tag that no tool would take.
    pub fn parse(text: &str, replaces: bool) -> Result<Self, &'static str> {
        let (directory, tag) = split_layout(text);
        let tag = tag.unwrap_or_else(|| "latest".to_owned());
        if directory.as_os_str().is_empty() {
            return Err("it names no directory");
        }
        if !is_tag(&tag) {
            return Err("a tag has letters, digits, '.', '_' and '-', and at most 128 of them");
        }
        Ok(Self {
            directory,
            tag,
            replaces,
        })
    }

    /// Where files without a name are made that are to be in it.
    pub(super) fn room(&self) -> &Path {
        if self.directory.is_dir() {
            &self.directory
        } else {
            self.parent()
        }
    }

    fn parent(&self) -> &Path {
        directory_of(&self.directory)
    }

    /// Refuses what is no layout, and a tag that is taken.
    pub(super) fn check(&self) -> Result<(), OpError> {
        match fs::metadata(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => match self.directory.symlink_metadata() {
                Ok(_) => Err(refused(
                    format!("'{}' is a link to nothing", shown(&self.directory)),
                    "choose another name for the layout",
                )),
                Err(_) => Ok(()),
            },
            Err(error) => Err(OpError::path("look at", &self.directory)(error)),
            Ok(found) if !found.is_dir() => Err(refused(
                format!("'{}' exists already, and is no directory", shown(&self.directory)),
                "choose another name for the layout",
            )),
            Ok(_) => {
                let index = self.read(&Root::open(&self.directory)?)?;
                self.take_tag(index, &|_| false).map(drop)
            }
        }
    }

    /// The images that it has.
    fn read(&self, root: &Root) -> Result<Value, OpError> {
        let no_layout = |reason: &str| {
            refused(
                format!("'{}' is no OCI layout: {reason}", shown(&self.directory)),
                "choose a layout, an empty directory, or a name that nothing has",
            )
        };
        let version = match root.read(VERSION, MAX_DOCUMENT) {
            Err(error) if error.is_not_found() => {
                // A directory that is being made one, or is empty.
                let is_ours = |name: &std::ffi::OsString| name.as_encoded_bytes().starts_with(HIDDEN.as_bytes());
                if !root.list("")?.iter().all(|name| name == "blobs" || is_ours(name)) {
                    return Err(no_layout("it has no file 'oci-layout', and is not empty"));
                }
                return Ok(json!({"schemaVersion": 2, "manifests": []}));
            }
            read => serde_json::from_slice::<Value>(&read?).unwrap_or_default(),
        };
        if !version["imageLayoutVersion"]
            .as_str()
            .is_some_and(|version| version.starts_with("1."))
        {
            return Err(no_layout("its file 'oci-layout' does not tell a known version"));
        }
        let index: Value = match root.read(INDEX, MAX_DOCUMENT) {
            Err(error) if error.is_not_found() => json!({"schemaVersion": 2, "manifests": []}),
            read => serde_json::from_slice(&read?).unwrap_or_default(),
        };
        if !index["manifests"].is_array() {
            return Err(no_layout("its file 'index.json' cannot be understood"));
        }
        Ok(index)
    }

    /// Takes away the image that has the tag, and what `refers` to it by its digest.
    fn take_tag(&self, mut index: Value, refers: &dyn Fn(&Value) -> bool) -> Result<Value, OpError> {
        let Some(manifests) = index["manifests"].as_array_mut() else {
            return Ok(index);
        };
        let has_tag = |one: &Value| one["annotations"][REF_NAME] == self.tag.as_str();
        if manifests.iter().any(has_tag) && !self.replaces {
            return Err(refused(
                format!("'{}' has an image '{}' already", shown(&self.directory), self.tag),
                "replace it with --force, or choose another tag, as in `oci:DIR:TAG`",
            ));
        }
        manifests.retain(|one| !has_tag(one));
        // What is said of an image goes with its last name.
        manifests.retain(|one| one["artifactType"] != ARTIFACT || !refers(one));
        Ok(index)
    }

    /// The digest of the image that something of ours speaks of.
    fn subject(root: &Root, artifact: &Value) -> Option<Value> {
        let digest: Sum = artifact["digest"].as_str()?.strip_prefix("sha256:")?.parse().ok()?;
        let bytes = root.read(format!("{BLOBS}/{digest}"), ARTIFACT_MAX).ok()?;
        let manifest: Value = serde_json::from_slice(&bytes).ok()?;
        Some(manifest["subject"]["digest"].clone())
    }

    /// The index with the image in it, in place of another of that name.
    fn with_image(&self, root: &Root, image: &Value, artifact: &Value, cancel: &Cancel) -> Result<Value, OpError> {
        let former = self.read(root)?;
        let all = former["manifests"].as_array().cloned().unwrap_or_default();
        let kept = |digest: &Value| {
            all.iter()
                .any(|one| one["digest"] == *digest && one["annotations"][REF_NAME] != self.tag.as_str())
        };
        // Without its image it says nothing; of one that stays so does what is said.
        let looked_at = Cell::new(0);
        let is_orphan = |one: &Value| {
            looked_at.set(looked_at.get() + 1);
            looked_at.get() <= ARTIFACTS_MAX
                && !cancel.is_cancelled()
                && Self::subject(root, one).is_some_and(|subject| !kept(&subject))
        };
        let mut index = self.take_tag(former, &is_orphan)?;
        cancel.check()?;
        if let Some(manifests) = index["manifests"].as_array_mut() {
            manifests.push(image.clone());
            manifests.retain(|one| one["digest"] != artifact["digest"]);
            manifests.push(artifact.clone());
        }
        Ok(index)
    }
}

/// What points at a blob.
fn descriptor(kind: &str, part: &Part) -> Value {
    json!({"mediaType": kind, "digest": format!("sha256:{}", part.sha256), "size": part.size})
}

fn bytes_of(document: &Value) -> Vec<u8> {
    document.to_string().into_bytes()
}

/// Adds the image to the layout, and tells its digest.
pub(super) fn add(
    layout: &Layout,
    parts: Parts,
    places: &Places,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<String, OpError> {
    let (layer, format) = parts.layer;
    report.phase("adding up the layer");
    let whole = sum_of(layer.file(), cancel).map_err(|error| match cancel.check() {
        Err(cancelled) => cancelled.into(),
        Ok(()) => OpError::path("read", &layout.directory)(error),
    })?;
    let layer_type = match format {
        Format::Tar | Format::Xz => "application/vnd.oci.image.layer.v1.tar",
        Format::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
        Format::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
    };
    let mut config = parts.config;
    config["rootfs"] = json!({"type": "layers", "diff_ids": [format!("sha256:{}", parts.difference)]});
    let (config, members) = (bytes_of(&config), parts.members);
    let settings = descriptor(ARTIFACT_LAYER, &part_of(&members));
    let image = bytes_of(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": descriptor(CONFIG_TYPE, &part_of(&config)),
        "layers": [descriptor(layer_type, &whole)],
        "annotations": {SETTINGS: settings["digest"]},
    }));
    let subject = descriptor(MANIFEST_TYPE, &part_of(&image));
    let artifact = bytes_of(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": ARTIFACT,
        "config": descriptor(EMPTY.0, &part_of(EMPTY.1)),
        "layers": [settings],
        "subject": subject,
    }));
    let platform: Value = {
        let config: Value = serde_json::from_slice(&config).unwrap_or_default();
        let keys = ["architecture", "os", "variant"].into_iter();
        keys.filter_map(|key| Some((key.to_owned(), config.get(key)?.clone())))
            .collect()
    };
    let mut named = subject.clone();
    named["annotations"] = json!({REF_NAME: layout.tag});
    named["platform"] = platform;
    let mut referrer = descriptor(MANIFEST_TYPE, &part_of(&artifact));
    referrer["artifactType"] = ARTIFACT.into();
    let blobs = [EMPTY.1, &config, &members, &image, &artifact];
    report.phase("writing the image");
    let parent = layout.parent();
    let lock = |directory: &Path| lock(directory, places, report, cancel);
    // Of two that would make it the later one adds to it.
    let _making = (!layout.directory.is_dir()).then(|| lock(parent)).transpose()?;
    if layout.directory.is_dir() {
        let _adding = lock(&layout.directory)?;
        let root = Root::open(&layout.directory)?.owned_by(0, 0);
        fill(layout, &root, (layer, &whole), &blobs, (&named, &referrer), cancel)?;
    } else {
        let staged = tempfile::Builder::new().prefix(HIDDEN).tempdir_in(parent);
        let staged = staged.map_err(OpError::path("create a directory in", parent))?;
        let root = Root::open(staged.path())?.owned_by(0, 0);
        fill(layout, &root, (layer, &whole), &blobs, (&named, &referrer), cancel)?;
        renameat_with(CWD, staged.path(), CWD, &layout.directory, RenameFlags::NOREPLACE)
            .map_err(|errno| OpError::path("create", &layout.directory)(errno.into()))?;
        // It has another name by now: there is nothing left to be removed.
        let _ = staged.keep();
        sync_directory(parent)?;
    }
    Ok(subject["digest"].as_str().unwrap_or_default().to_owned())
}

/// Adds up a file from its beginning.
fn sum_of(file: &File, cancel: &Cancel) -> io::Result<Part> {
    let (mut sum, mut size, mut buffer) = (Sha256::new(), 0, vec![0; PIECE]);
    loop {
        cancel.check().map_err(io::Error::other)?;
        let read = file.read_at(&mut buffer, size)?;
        if read == 0 {
            let sha256 = Sum::from_digest(sum).to_string();
            return Ok(Part { sha256, size });
        }
        sum.update(&buffer[..read]);
        size += read as u64;
    }
}

/// Holds off others of us: what `index.json` says is read and written. A lock in the directory itself anybody could take who may
/// read it.
fn lock(directory: &Path, places: &Places, report: &dyn Report, cancel: &Cancel) -> Result<Lock, OpError> {
    let found = fs::metadata(directory).map_err(OpError::path("look at", directory))?;
    // No machine is called so.
    let name = format!(".layout-{:x}-{:x}", found.dev(), found.ino());
    Lock::wait_saying_why(&places.runtime, &name, "writes an image there", report, cancel)
}

/// Removes what one of us that was killed had not given a name yet. To be called with the lock, under which alone such files are made;
/// those that are made without it have shorter names.
fn sweep(root: &Root) -> Result<(), OpError> {
    let length = temporary_name(VERSION.as_ref()).len();
    for directory in ["", BLOBS] {
        for name in root.list(directory)? {
            if name.len() == length && name.as_encoded_bytes().starts_with(HIDDEN.as_bytes()) {
                root.remove_file(Path::new(directory).join(name))?;
            }
        }
    }
    Ok(())
}

/// Writes the blobs, and then the index; takes the blobs back if that fails.
fn fill(
    layout: &Layout,
    root: &Root,
    layer: (Hidden, &Part),
    blobs: &[&[u8]],
    (named, referrer): (&Value, &Value),
    cancel: &Cancel,
) -> Result<(), OpError> {
    // Again: somebody may have been faster.
    layout.with_image(root, named, referrer, cancel)?;
    root.create_dir_all(BLOBS, 0o755)?;
    sweep(root)?;
    let directory = root.open_at(Path::new(BLOBS), OFlags::RDONLY | OFlags::DIRECTORY);
    let directory = directory.map_err(|errno| OpError::path("open", layout.directory.join(BLOBS))(errno.into()))?;
    let mut made = Vec::new();
    let write = || -> Result<Vec<u8>, OpError> {
        for bytes in blobs {
            let name = part_of(bytes).sha256;
            let path = format!("{BLOBS}/{name}");
            // Others may have it too, as that of `{}`: it stays as it is.
            if root.read(&path, bytes.len() as u64).is_ok_and(|found| found == *bytes) {
                continue;
            }
            let is_new = root.kind(&path)?.is_none();
            let mode = if *bytes == EMPTY.1 { MODE } else { BLOB_MODE };
            root.write(&path, bytes, mode)?;
            if is_new {
                made.push(name);
            }
        }
        let (file, part) = layer;
        let failed = OpError::path("write", layout.directory.join(BLOBS).join(&part.sha256));
        if place(file, &directory, &part.sha256).map_err(failed)? {
            made.push(part.sha256.clone());
        }
        rustix::fs::fsync(&directory)
            .map_err(|errno| OpError::path("write", layout.directory.join(BLOBS))(errno.into()))?;
        let index = bytes_of(&layout.with_image(root, named, referrer, cancel)?);
        if root.kind(VERSION)?.is_none() {
            root.write(VERSION, br#"{"imageLayoutVersion":"1.0.0"}"#, MODE)?;
        }
        Ok(index)
    };
    let written = write().and_then(|index| {
        root.write(INDEX, &index, MODE).or_else(|error| {
            // It is named, whatever became of it after.
            let is_there = root.read(INDEX, MAX_DOCUMENT).is_ok_and(|found| found == index);
            if is_there { Ok(()) } else { Err(error.into()) }
        })
    });
    if written.is_err() {
        for name in made {
            let _ = unlinkat(&directory, name, AtFlags::empty());
        }
    }
    written
}

/// Gives the layer its name, and tells whether nothing had it.
fn place(file: Hidden, directory: &OwnedFd, name: &str) -> io::Result<bool> {
    file.file().sync_all()?;
    let temporary = temporary_name(name.as_ref());
    match file {
        Hidden::Unnamed(file) | Hidden::Stdout(file) => {
            let source = magic_link(file.as_fd());
            let link = |name: &std::ffi::OsStr| linkat(CWD, &source, directory, name, AtFlags::SYMLINK_FOLLOW);
            match link(name.as_ref()) {
                // What is there may be damaged.
                Err(Errno::EXIST) => {
                    link(&temporary)?;
                    renameat(directory, &temporary, directory, name).inspect_err(|_| {
                        let _ = unlinkat(directory, &temporary, AtFlags::empty());
                    })?;
                    Ok(false)
                }
                linked => Ok(linked.map(|()| true)?),
            }
        }
        Hidden::Named(file) => {
            let is_new = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).is_err();
            renameat(CWD, file.path(), directory, name)?;
            // It has another name by now.
            file.keep().map_err(|error| error.error)?;
            Ok(is_new)
        }
    }
}
