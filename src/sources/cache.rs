//! Bootstrapped trees, kept so that the second machine of a suite is only a copy.
//!
//! `CACHE/bootstrap/INPUTS-RELEASE/` has the tree in `root` and a description in `entry.json`. INPUTS is a hash over all that
//! shapes the tree, RELEASE one over the mirror's Release file. What begins with a dot is a lock or half-made:
//!
//! - `.INPUTS.lock`: held shared while a tree is copied, exclusively while one is built or removed (flock(2), so the kernel
//!   releases it however its holder ends). Locks are never removed: another process may be waiting on one.
//! - `.INPUTS.build`, `.INPUTS-RELEASE.old`: being made, being removed. Whoever gets the lock may sweep them.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::bootstrap::{self, Recipe};
use super::mirror::{self, Release};
use super::shelf::{make_private, names, open_lock, wait_for};
use super::{CacheUse, Places, SourceError};
use crate::machine::{Cancel, Report};
use crate::storage;
use crate::sys::files::{self, sync_filesystem, write_atomic};

/// Part of every key: to be raised when the way a tree is made changes.
const FORMAT: u32 = 2;
/// How the temporary directories of builds without cache begin.
const SCRATCH: &str = ".scratch-";

/// A cached tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CacheEntry {
    /// Its directory.
    pub path: PathBuf,
    /// What it is, in a few words: "debian:trixie amd64 minbase".
    pub description: String,
    /// When it was made.
    pub created: jiff::Timestamp,
    /// Bytes on disk.
    pub bytes: u64,
}

#[derive(Serialize, Deserialize)]
struct Description {
    description: String,
    created: jiff::Timestamp,
}

/// The cache of the trees that one recipe makes.
struct Shelf<'a> {
    recipe: &'a Recipe,
    places: &'a Places,
    dir: PathBuf,
    inputs: String,
}

/// Fills `target` with what `recipe` makes, from the cache where it may be used.
pub(crate) fn fill(
    recipe: &Recipe,
    usage: CacheUse,
    places: &Places,
    target: &Path,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<(), SourceError> {
    sweep(places)?;
    report.phase(&format!("asking the mirror for {} {}", recipe.distro, recipe.suite));
    let release = mirror::fetch_release(
        recipe.distro,
        &recipe.suite,
        &recipe.mirror,
        recipe.proxy.as_deref(),
        cancel,
    );
    if usage == CacheUse::Skip {
        return build_uncached(recipe, &release?, places, target, report, cancel);
    }
    let shelf = Shelf::open(recipe, places)?;
    let release = match release {
        Err(error @ SourceError::Unreachable { .. }) if usage == CacheUse::Use => {
            return shelf.copy_stale(error, target, report, cancel);
        }
        other => other?,
    };
    let entry = shelf.entry(&release);
    let mut refresh = usage == CacheUse::Refresh;
    loop {
        let shared = shelf.lock(Lock::Shared, report, cancel)?;
        if !refresh && is_complete(&entry) {
            return copy(&entry, target, report, cancel);
        }
        drop(shared);
        let _exclusive = shelf.lock(Lock::Exclusive, report, cancel)?;
        // Somebody may have made it while we waited.
        if refresh || !is_complete(&entry) {
            shelf.build(&release, &entry, report, cancel)?;
        }
        refresh = false;
        // The lock is given back and taken again shared: others then copy at the same time.
    }
}

/// The cached trees, newest first. None of them is looked into beyond its size; half-made ones are left out.
pub fn entries(places: &Places, cancel: &Cancel) -> Result<Vec<CacheEntry>, SourceError> {
    let dir = places.cache.join("bootstrap");
    let mut found = Vec::new();
    for name in names(&dir)? {
        let path = dir.join(&name);
        if name.starts_with('.') || !is_complete(&path) {
            continue;
        }
        let Some(description) = read_description(&path) else {
            continue;
        };
        found.push(CacheEntry {
            bytes: files::tree_size(&path, cancel)?,
            description: description.description,
            created: description.created,
            path,
        });
    }
    found.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.path.cmp(&b.path)));
    Ok(found)
}

/// Removes cached trees made longer than `older_than` ago (all if `None`) and what killed builds left, except what is in use
/// by another process right now. Returns the paths of the trees that were removed.
pub fn clear(places: &Places, older_than: Option<Duration>, cancel: &Cancel) -> Result<Vec<PathBuf>, SourceError> {
    let dir = places.cache.join("bootstrap");
    sweep_scratch(places)?;
    let mut removed = Vec::new();
    let now = jiff::Timestamp::now();
    for name in names(&dir)? {
        cancel.check()?;
        let Some(inputs) = inputs_of(&name) else { continue };
        let path = dir.join(&name);
        let keep = older_than.is_some_and(|age| {
            let created = read_description(&path).map(|description| description.created);
            created.is_some_and(|created| now.duration_since(created).unsigned_abs() < age)
        });
        if keep && !name.starts_with('.') {
            continue;
        }
        let lock = open_lock(&dir, inputs)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => continue,
            Err(TryLockError::Error(error)) => return Err(SourceError::io("lock", &path, error)),
        }
        // Somebody else may have removed it before it was locked.
        if path.exists() {
            remove_entry(&path)?;
            removed.push(path);
        }
    }
    Ok(removed)
}

/// Whether any tree made from the same inputs is there, whatever its age; for `--dry-run`.
pub(crate) fn has_any(recipe: &Recipe, places: &Places) -> bool {
    let dir = places.cache.join("bootstrap");
    let Ok(inputs) = inputs_hash(recipe) else { return false };
    names(&dir).is_ok_and(|names| {
        names
            .iter()
            .any(|name| is_entry_of(name, &inputs) && is_complete(&dir.join(name)))
    })
}

fn build_uncached(
    recipe: &Recipe,
    release: &Release,
    places: &Places,
    target: &Path,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<(), SourceError> {
    let parent = target.parent().unwrap_or(Path::new("/"));
    storage::for_directory(parent)?.create(target)?;
    let (scratch, _lock) = make_scratch(places)?;
    let built = bootstrap::build(recipe, release, places, target, scratch.path(), report, cancel);
    built.map_err(|error| error.full_at(parent))
}

impl<'a> Shelf<'a> {
    fn open(recipe: &'a Recipe, places: &'a Places) -> Result<Self, SourceError> {
        make_private(&places.cache)?;
        let dir = places.cache.join("bootstrap");
        make_private(&dir)?;
        Ok(Self {
            recipe,
            places,
            dir,
            inputs: inputs_hash(recipe)?,
        })
    }

    fn entry(&self, release: &Release) -> PathBuf {
        self.dir.join(format!("{}-{}", self.inputs, &release.hash[..16]))
    }

    /// Makes the tree under a hidden name, and visible in one rename once it is on disk. Needs the exclusive lock.
    fn build(&self, release: &Release, entry: &Path, report: &dyn Report, cancel: &Cancel) -> Result<(), SourceError> {
        bootstrap::check_mount_flags(&self.dir)?;
        let hidden = self.dir.join(format!(".{}.build", self.inputs));
        // What a killed build left, if it came to be after the sweep at the beginning.
        remove_now(&hidden)?;
        if let Err(error) = self.build_hidden(release, &hidden, report, cancel) {
            // The first error is the one to tell; what cannot be removed now is swept by the next build.
            let _ = remove_now(&hidden);
            return Err(error.full_at(&self.dir));
        }
        if entry.exists() {
            remove_entry(entry)?;
        }
        std::fs::rename(&hidden, entry).map_err(|error| SourceError::io("rename", &hidden, error))?;
        sync_filesystem(&self.dir)?;
        for name in names(&self.dir)? {
            let path = self.dir.join(&name);
            if is_entry_of(&name, &self.inputs) && path != entry {
                remove_entry(&path)?;
            }
        }
        Ok(())
    }

    fn build_hidden(
        &self,
        release: &Release,
        hidden: &Path,
        report: &dyn Report,
        cancel: &Cancel,
    ) -> Result<(), SourceError> {
        make_private(hidden)?;
        let scratch = hidden.join("scratch");
        make_private(&scratch)?;
        let root = hidden.join("root");
        storage::for_directory(hidden)?.create(&root)?;
        bootstrap::build(self.recipe, release, self.places, &root, &scratch, report, cancel)?;
        files::remove_tree(&scratch)?;
        let description = Description {
            description: self.recipe.describe(),
            created: jiff::Timestamp::now(),
        };
        let path = hidden.join("entry.json");
        let json = serde_json::to_vec(&description).map_err(|error| SourceError::io("write", &path, error.into()))?;
        write_atomic(&path, &json, 0o600)?;
        report.phase("writing to disk");
        Ok(sync_filesystem(hidden)?)
    }

    /// Copies the newest tree there is when the mirror does not answer, or fails with the mirror's `error`.
    fn copy_stale(
        &self,
        error: SourceError,
        target: &Path,
        report: &dyn Report,
        cancel: &Cancel,
    ) -> Result<(), SourceError> {
        let _shared = self.lock(Lock::Shared, report, cancel)?;
        let newest = names(&self.dir)?
            .iter()
            .filter(|name| is_entry_of(name, &self.inputs))
            .map(|name| self.dir.join(name))
            .filter(|path| is_complete(path))
            .filter_map(|path| Some((read_description(&path)?.created, path)))
            .max();
        let Some((created, path)) = newest else {
            return Err(error);
        };
        let age = jiff::Timestamp::now().duration_since(created).unsigned_abs();
        report.warn(&format!("{error}; using the cached tree made {} ago", in_words(age)));
        copy(&path, target, report, cancel)
    }

    fn lock(&self, kind: Lock, report: &dyn Report, cancel: &Cancel) -> Result<File, SourceError> {
        let file = open_lock(&self.dir, &self.inputs)?;
        let lock = || match kind {
            Lock::Shared => file.try_lock_shared(),
            Lock::Exclusive => file.try_lock(),
        };
        let whom = || format!("bootstrap of {} {}", self.recipe.distro, self.recipe.suite);
        wait_for(&self.dir, lock, &whom, report, cancel)?;
        Ok(file)
    }
}

#[derive(Clone, Copy)]
enum Lock {
    Shared,
    Exclusive,
}

fn copy(entry: &Path, target: &Path, report: &dyn Report, cancel: &Cancel) -> Result<(), SourceError> {
    let parent = target.parent().unwrap_or(Path::new("/"));
    let copied = storage::for_directory(parent)?.copy(&entry.join("root"), target, report, cancel);
    copied.map_err(|error| SourceError::from(error).full_at(parent))
}

/// A directory for temporary files of a build without cache, locked so that nobody sweeps it.
fn make_scratch(places: &Places) -> Result<(tempfile::TempDir, File), SourceError> {
    make_private(&places.cache)?;
    let failed = |error| SourceError::io("create", &places.cache, error);
    loop {
        let scratch = tempfile::Builder::new()
            .prefix(SCRATCH)
            .tempdir_in(&places.cache)
            .map_err(failed)?;
        // Somebody may sweep it before it is locked.
        let Ok(lock) = File::open(scratch.path()) else { continue };
        if lock.try_lock().is_ok() && scratch.path().is_dir() {
            return Ok((scratch, lock));
        }
    }
}

/// Removes what killed builds left, whatever they built, except what some process has locked.
fn sweep(places: &Places) -> Result<(), SourceError> {
    let dir = places.cache.join("bootstrap");
    for name in names(&dir)?.iter().filter(|name| name.starts_with('.')) {
        let Some(inputs) = inputs_of(name) else { continue };
        let lock = open_lock(&dir, inputs)?;
        if lock.try_lock().is_ok() {
            remove_now(&dir.join(name))?;
        }
    }
    sweep_scratch(places)
}

/// The part of [`sweep`] that builds without cache leave.
fn sweep_scratch(places: &Places) -> Result<(), SourceError> {
    for name in names(&places.cache)?.iter().filter(|name| name.starts_with(SCRATCH)) {
        let path = places.cache.join(name);
        // Held until it is removed.
        let Ok(scratch) = File::open(&path) else { continue };
        if scratch.try_lock().is_ok() {
            remove_now(&path)?;
        }
    }
    Ok(())
}

/// Renaming first: an entry is whole or gone, also after a power cut in the middle of removing it.
fn remove_entry(path: &Path) -> Result<(), SourceError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if name.starts_with('.') {
        return remove_now(path);
    }
    let hidden = path.with_file_name(format!(".{name}.old"));
    if hidden.exists() {
        remove_now(&hidden)?;
    }
    std::fs::rename(path, &hidden).map_err(|error| SourceError::io("rename", path, error))?;
    remove_now(&hidden)
}

/// Removes an entry's directory; its root by the storage that made it, which may be a subvolume.
fn remove_now(path: &Path) -> Result<(), SourceError> {
    let root = path.join("root");
    if root.symlink_metadata().is_ok() {
        storage::for_directory(path)?.remove(&root)?;
    }
    match files::remove_tree(path) {
        Err(error) if !error.is_not_found() => Err(error.into()),
        _ => Ok(()),
    }
}

fn is_complete(entry: &Path) -> bool {
    entry.join("entry.json").is_file() && entry.join("root").is_dir()
}

fn read_description(entry: &Path) -> Option<Description> {
    serde_json::from_slice(&std::fs::read(entry.join("entry.json")).ok()?).ok()
}

fn is_entry_of(name: &str, inputs: &str) -> bool {
    name.strip_prefix(inputs).is_some_and(|rest| rest.starts_with('-'))
}

/// The inputs that a name in the cache belongs to; `None` for locks and what is not ours.
fn inputs_of(name: &str) -> Option<&str> {
    let plain = name.strip_prefix('.').unwrap_or(name);
    if plain.split_once('.').is_some_and(|(_, ending)| ending == "lock") {
        return None;
    }
    let inputs = plain.split(['-', '.']).next()?;
    (inputs.len() == 32 && inputs.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(inputs)
}

/// 32 hexadecimal digits over everything that shapes the tree, except the Release file.
fn inputs_hash(recipe: &Recipe) -> Result<String, SourceError> {
    let keyring = std::fs::read(&recipe.keyring).map_err(|error| SourceError::io("read", &recipe.keyring, error))?;
    let mut hash = Sha256::new();
    let mut add = |bytes: &[u8]| {
        // Lengths keep ["ab", "c"] and ["a", "bc"] apart.
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    add(&FORMAT.to_le_bytes());
    for word in [
        recipe.distro.as_str(),
        &recipe.suite,
        &recipe.arch,
        &recipe.variant,
        &recipe.mirror,
        recipe.tool.name(),
    ] {
        add(word.as_bytes());
    }
    for list in [&recipe.components, &recipe.guest_components(), &recipe.include] {
        add(&list.len().to_le_bytes());
        for word in list {
            add(word.as_bytes());
        }
    }
    add(&keyring);
    Ok(mirror::hex(&hash.finalize()[..16]))
}

fn in_words(age: Duration) -> String {
    let minutes = age.as_secs() / 60;
    let (count, unit) = match minutes {
        0 => return "less than a minute".to_owned(),
        1..60 => (minutes, "minute"),
        60..1440 => (minutes / 60, "hour"),
        _ => (minutes / 1440, "day"),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests;
