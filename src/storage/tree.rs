//! The walk that copies a tree, shared by all backends: directories are the pieces of work of a few threads.
//!
//! The source is hostile but not changing: nothing in it runs. Everything is reached by directory descriptors, no link is
//! followed, no mount is entered, no device or fifo is opened.

use std::collections::HashMap;
use std::collections::hash_map::Entry as MapEntry;
use std::ffi::{CStr, OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{self, AtFlags, CWD, FileType, IFlags, Mode, OFlags, RawDir, ResolveFlags, Statx, StatxFlags};
use rustix::io::Errno;

use super::data::{self, Data};
use super::room::{Exceeded, Room};
use super::{StorageError, attributes};
use crate::machine::{Cancel, Report};
use crate::sys::files::{shown, xattr};

/// How often the progress is reported.
const REPORT_EVERY: Duration = Duration::from_millis(200);

/// Threads at most: beyond, the filesystem's journal is what everybody waits for.
const MAX_THREADS: usize = 8;

/// Copies what is in the directory `source`, and its own attributes, to the empty directory `target`.
pub(super) fn fill(
    source: &Path,
    target: &Path,
    how: Data,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<(), StorageError> {
    copy(Copier::new(source, target, how, cancel)?, report)
}

/// The same of a tree from elsewhere: without devices, without extended attributes that mean something to this host, and
/// without flags that keep files from being changed; as far as there is room for it.
pub(super) fn fill_foreign(
    source: &Path,
    target: &Path,
    room: Room,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<(), StorageError> {
    let copier = Copier {
        foreign: true,
        room: Some(room),
        ..Copier::new(source, target, Data::Copy, cancel)?
    };
    copy(copier, report)
}

fn copy(copier: Copier<'_>, report: &dyn Report) -> Result<(), StorageError> {
    let threads = thread::available_parallelism()
        .map_or(1, usize::from)
        .clamp(2, MAX_THREADS);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| copier.work());
        }
        let mut reported = Instant::now();
        let mut state = copier.lock();
        while state.busy > 0 || !state.jobs.is_empty() {
            let waited = copier.changed.wait_timeout(state, REPORT_EVERY);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            if reported.elapsed() >= REPORT_EVERY {
                reported = Instant::now();
                report.progress(copier.copied.load(Ordering::Relaxed), None);
            }
        }
    });
    copier.finish(report)
}

/// A directory to be copied: its copy exists and is empty.
struct Job {
    source_parent: Arc<OwnedFd>,
    target_parent: Arc<OwnedFd>,
    name: OsString,
    /// Relative to the root, for messages and hard links.
    path: PathBuf,
    stat: Statx,
}

#[derive(Default)]
struct State {
    /// The last first: depth first keeps few directories open.
    jobs: Vec<Job>,
    /// Threads that may still add jobs.
    busy: usize,
    error: Option<StorageError>,
    /// Immutable and append-only files are made so at the end: before, they could get no second name.
    locked: Vec<(PathBuf, IFlags)>,
    mounts: Vec<PathBuf>,
    /// Devices of a foreign tree that were left out; those of `/dev` are none that would be missed.
    devices: u64,
}

impl State {
    /// What came of a directory: others to be copied, unless one has failed. Nobody would do them any more, and their end would be
    /// waited for.
    fn note(&mut self, result: Result<Vec<Job>, StorageError>) {
        match result {
            Ok(found) if self.error.is_none() => self.jobs.extend(found),
            Ok(_) => {}
            Err(error) => {
                self.error.get_or_insert(error);
                self.jobs.clear();
            }
        }
    }
}

struct Copier<'a> {
    source: &'a Path,
    target: &'a Path,
    target_root: Arc<OwnedFd>,
    target_inode: (u64, u64),
    how: Data,
    foreign: bool,
    /// What may be taken of the disk, if that has a bound.
    room: Option<Room>,
    cancel: &'a Cancel,
    copied: AtomicU64,
    state: Mutex<State>,
    changed: Condvar,
    /// Where the first name of a file with several names was made.
    links: Mutex<HashMap<(u64, u64), PathBuf>>,
}

/// What a thread uses again and again.
struct Scratch {
    data: Vec<u8>,
    xattr: xattr::Scratch,
}

/// One directory at work.
struct Place<'a> {
    source: &'a OwnedFd,
    target: &'a OwnedFd,
    path: &'a Path,
}

impl<'a> Copier<'a> {
    fn new(source: &'a Path, target: &'a Path, how: Data, cancel: &'a Cancel) -> Result<Self, StorageError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let from = fs::openat(CWD, source, flags, Mode::empty()).map_err(StorageError::io("open", source))?;
        let to = fs::openat(CWD, target, flags, Mode::empty()).map_err(StorageError::io("open", target))?;
        let stat = stat_fd(&from).map_err(StorageError::io("look at", source))?;
        let target_inode = inode(&stat_fd(&to).map_err(StorageError::io("look at", target))?);
        let to = Arc::new(to);
        let root = Job {
            source_parent: Arc::new(from),
            target_parent: Arc::clone(&to),
            name: ".".into(),
            path: PathBuf::new(),
            stat,
        };
        let state = State {
            jobs: vec![root],
            ..State::default()
        };
        Ok(Self {
            source,
            target,
            target_root: to,
            target_inode,
            how,
            foreign: false,
            room: None,
            cancel,
            copied: AtomicU64::new(0),
            state: Mutex::new(state),
            changed: Condvar::new(),
            links: Mutex::default(),
        })
    }

    fn work(&self) {
        let mut scratch = Scratch {
            data: vec![0; data::BUFFER],
            xattr: if self.foreign {
                xattr::Scratch::foreign()
            } else {
                xattr::Scratch::default()
            },
        };
        let mut entries = vec![MaybeUninit::uninit(); 32 << 10];
        while let Some(job) = self.next() {
            // Counts the thread as idle on every way out, a panic included.
            let _idle = Idle(self);
            let result = self.directory(&job, &mut scratch, &mut entries);
            self.lock().note(result);
        }
    }

    fn next(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if state.error.is_some() {
                return None;
            }
            if let Some(job) = state.jobs.pop() {
                state.busy += 1;
                return Some(job);
            }
            if state.busy == 0 {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Copies what is in a directory, except for what is in its subdirectories: those are the result.
    fn directory(
        &self,
        job: &Job,
        scratch: &mut Scratch,
        entries: &mut [MaybeUninit<u8>],
    ) -> Result<Vec<Job>, StorageError> {
        let failed = |errno| self.failed("copy", &job.path, errno);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let here = fs::openat(&job.target_parent, &job.name, flags, Mode::empty()).map_err(failed)?;
        let how = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let source = match fs::openat2(
            &job.source_parent,
            &job.name,
            flags | OFlags::NOATIME,
            Mode::empty(),
            how,
        ) {
            Err(Errno::XDEV) => {
                self.lock().mounts.push(job.path.clone());
                return Ok(Vec::new());
            }
            result => result.map_err(failed)?,
        };
        let (source, target) = (Arc::new(source), Arc::new(here));
        let place = Place {
            source: &source,
            target: &target,
            path: &job.path,
        };
        let mut found = Vec::new();
        let mut listing = RawDir::new(&*source, entries);
        while let Some(entry) = listing.next() {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            if self.cancel.is_cancelled() {
                return Err(crate::machine::Cancelled.into());
            }
            let path = || job.path.join(OsStr::from_bytes(name.to_bytes()));
            let block = usize::from(entry.file_type() == FileType::Directory);
            self.take(|room| room.file(block))
                .map_err(|errno| self.failed("copy", &path(), errno))?;
            match self.entry(&place, name, entry.file_type(), scratch) {
                Ok(None) => {}
                Ok(Some(stat)) if inode(&stat) == self.target_inode => {
                    return Err(StorageError::IntoItself {
                        path: self.target.to_path_buf(),
                    });
                }
                Ok(Some(stat)) => found.push(Job {
                    source_parent: Arc::clone(&source),
                    target_parent: Arc::clone(&target),
                    name: OsStr::from_bytes(name.to_bytes()).to_owned(),
                    path: path(),
                    stat,
                }),
                Err(errno) => return Err(self.failed("copy", &path(), errno)),
            }
            let attributes = scratch.xattr.take_copied();
            self.take(|room| room.contents(attributes))
                .map_err(|errno| self.failed("copy", &path(), errno))?;
        }
        attributes::copy(&source, &target, &job.stat, &mut scratch.xattr).map_err(failed)?;
        self.remember_locked(&job.stat, || job.path.clone());
        Ok(found)
    }

    /// Copies one name. A directory is only made: then its attributes are the result.
    fn entry(
        &self,
        place: &Place<'_>,
        name: &CStr,
        kind: FileType,
        scratch: &mut Scratch,
    ) -> Result<Option<Statx>, Errno> {
        if kind == FileType::RegularFile {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
            let file = fs::openat(
                place.source,
                name,
                flags | OFlags::NOATIME | OFlags::CLOEXEC,
                Mode::empty(),
            )?;
            let stat = stat_fd(&file)?;
            self.linked(place, name, &stat, || self.file(place, name, &file, &stat, scratch))?;
            return Ok(None);
        }
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        let stat = fs::statx(place.source, name, flags, StatxFlags::BASIC_STATS)?;
        match FileType::from_raw_mode(stat.stx_mode.into()) {
            FileType::Directory => {
                fs::mkdirat(place.target, name, Mode::from_raw_mode(0o700))?;
                return Ok(Some(stat));
            }
            // The filesystem does not tell kinds in its directories.
            FileType::RegularFile => return self.entry(place, name, FileType::RegularFile, scratch),
            FileType::Symlink => self.linked(place, name, &stat, || {
                let text = fs::readlinkat(place.source, name, Vec::new())?;
                // Shorter ones lie in the inode.
                if text.as_bytes().len() > 59 {
                    self.take(|room| room.contents(text.as_bytes().len() as u64))?;
                }
                fs::symlinkat(text, place.target, name)?;
                attributes::copy_by_name(place.source, place.target, name, &stat, &mut scratch.xattr)
            })?,
            FileType::CharacterDevice | FileType::BlockDevice if self.foreign && !is_whiteout(&stat) => {
                self.lock().devices += u64::from(!place.path.starts_with("dev"));
            }
            kind => self.linked(place, name, &stat, || {
                let device = fs::makedev(stat.stx_rdev_major, stat.stx_rdev_minor);
                fs::mknodat(place.target, name, kind, Mode::from_raw_mode(0o600), device)?;
                attributes::copy_by_name(place.source, place.target, name, &stat, &mut scratch.xattr)
            })?,
        }
        Ok(None)
    }

    /// Makes a file by `make`, or a further name of one that was made before.
    fn linked(
        &self,
        place: &Place<'_>,
        name: &CStr,
        stat: &Statx,
        make: impl FnOnce() -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let path = || place.path.join(OsStr::from_bytes(name.to_bytes()));
        if stat.stx_nlink > 1 {
            // Held while the file is made: whoever finds the entry finds the file.
            let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
            match links.entry(inode(stat)) {
                MapEntry::Occupied(first) => {
                    return fs::linkat(&self.target_root, first.get(), place.target, name, AtFlags::empty());
                }
                MapEntry::Vacant(vacant) => {
                    make()?;
                    vacant.insert(path());
                }
            }
        } else {
            make()?;
        }
        self.remember_locked(stat, path);
        Ok(())
    }

    fn file(
        &self,
        place: &Place<'_>,
        name: &CStr,
        source: &OwnedFd,
        stat: &Statx,
        scratch: &mut Scratch,
    ) -> Result<(), Errno> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // set-user-ID comes with the owner, once the contents are there.
        let mode = Mode::from_raw_mode(u32::from(stat.stx_mode) & 0o777);
        let target = fs::openat(place.target, name, flags, mode)?;
        let file = data::File {
            source: source.as_fd(),
            target: target.as_fd(),
            size: stat.stx_size,
            copied: None,
            room: self.room.as_ref(),
        };
        let sparse = stat.stx_blocks.saturating_mul(512) < stat.stx_size;
        data::copy(&file, sparse, self.how, &mut scratch.data, self.cancel)?;
        self.copied.fetch_add(stat.stx_size, Ordering::Relaxed);
        attributes::copy(source, &target, stat, &mut scratch.xattr)
    }

    fn remember_locked(&self, stat: &Statx, path: impl FnOnce() -> PathBuf) {
        let locked = attributes::locked(stat);
        // EROFS says of all that it has that it cannot be changed.
        if !locked.is_empty() && !self.foreign {
            self.lock().locked.push((path(), locked));
        }
    }

    /// What could not be done before everything else was.
    fn finish(self, report: &dyn Report) -> Result<(), StorageError> {
        let state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = state.error {
            return Err(error);
        }
        for mount in state.mounts {
            let mount = self.source.join(mount);
            report.warn(&format!("what is mounted on '{}' is not copied", shown(&mount)));
        }
        if state.devices > 0 {
            report.warn(&format!("{} device nodes outside of /dev are left out", state.devices));
        }
        for (path, locked) in state.locked {
            attributes::lock(&self.target_root, &path, locked)
                .map_err(StorageError::io("set the flags of", &self.target.join(&path)))?;
        }
        Ok(())
    }

    /// Takes something of what may be taken of the disk.
    fn take(&self, take: impl FnOnce(&Room) -> Result<(), Exceeded>) -> Result<(), Errno> {
        self.room.as_ref().map_or(Ok(()), take).map_err(|_| Errno::NOSPC)
    }

    fn failed(&self, action: &'static str, path: &Path, errno: Errno) -> StorageError {
        if errno == Errno::NOSPC
            && let Some(max) = self.room.as_ref().and_then(Room::too_small)
        {
            let path = self.source.join(path);
            return StorageError::TooLarge { path, max };
        }
        // The only sign that data::copy() was interrupted.
        if errno == Errno::CANCELED {
            return crate::machine::Cancelled.into();
        }
        StorageError::io(action, &self.source.join(path))(errno)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread at work; dropped when it has done its job.
struct Idle<'a, 'b>(&'a Copier<'b>);

impl Drop for Idle<'_, '_> {
    fn drop(&mut self) {
        self.0.lock().busy -= 1;
        self.0.changed.notify_all();
    }
}

fn stat_fd(fd: &OwnedFd) -> Result<Statx, Errno> {
    fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)
}

/// What an overlay has in place of a file that was removed: no device, and part of what containers in the tree are made of.
fn is_whiteout(stat: &Statx) -> bool {
    FileType::from_raw_mode(stat.stx_mode.into()) == FileType::CharacterDevice
        && (stat.stx_rdev_major, stat.stx_rdev_minor) == (0, 0)
}

fn inode(stat: &Statx) -> (u64, u64) {
    (fs::makedev(stat.stx_dev_major, stat.stx_dev_minor), stat.stx_ino)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Cancelled;

    #[test]
    fn nothing_is_to_be_done_after_a_failure() {
        let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let cancel = Cancel::default();
        let root = || {
            let copier = Copier::new(source.path(), target.path(), Data::Copy, &cancel).unwrap();
            copier.lock().jobs.pop().unwrap()
        };
        let mut state = State::default();
        state.note(Ok(vec![root()]));
        assert_eq!(state.jobs.len(), 1);
        state.note(Err(Cancelled.into()));
        assert!(state.jobs.is_empty());
        // Another thread was in the middle of a directory.
        state.note(Ok(vec![root()]));
        assert!(state.jobs.is_empty() && state.error.is_some());
    }
}
