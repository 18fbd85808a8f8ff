//! Directories with a hidden name beside the images: their lock, and their end.
//!
//! What they are for is said in [`crate::ops::transaction`]. Here is what has to go on without machinist: a unit holds the
//! lock of the directory that its machine runs in ([`hold`]), and has it removed when the machine has ended
//! ([`vanish`]). Both are jobs of the helper.

use std::env;
use std::ffi::{CString, OsString};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::fcntl::{FcntlArg, FdFlag, Flock, FlockArg, fcntl};

use super::files::{FileError, remove_tree};
use super::image_lock::{ImageLock, Sharing};

/// The record among its papers; locked as long as its owner lives.
pub const RECORD: &str = "record.json";
/// The tree inside of the directory.
pub const TREE: &str = "tree";

/// What the helper is called, as argument 0, when it holds a lock.
pub(super) const HOLD: &str = "machinist: hold";
/// When it removes the directory.
pub(super) const VANISH: &str = "machinist: vanish";

/// What systemd-nspawn ends with when its machine reboots, see systemd-nspawn(1).
pub const REBOOT: i32 = 133;

/// Removes such a directory, and then its papers, the record last: until then a sweep can find its way. Of a link that served as
/// an image the link is removed. What is gone already is gone.
pub fn discard(directory: &Path, papers: &Path) -> Result<(), FileError> {
    if fs::symlink_metadata(directory).is_ok() {
        remove_tree(directory)?;
    }
    let all = match fs::read_dir(papers) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        all => all.map_err(FileError::io("read", papers))?,
    };
    for entry in all.flatten().filter(|entry| entry.file_name() != RECORD) {
        remove_tree(&entry.path())?;
    }
    let _ = fs::remove_file(papers.join(RECORD));
    fs::remove_dir(papers).map_err(FileError::io("remove", papers))
}

/// The argument vector of the helper, argument 0 first, that shares the lock of papers, and becomes `program` (a
/// path, and its argument vector), which has the lock as long as it lives.
#[must_use]
pub fn hold_words(papers: &Path, program: &Path, arguments: Vec<String>) -> Vec<String> {
    let record = papers.join(RECORD).display().to_string();
    let mut words = vec![HOLD.to_owned(), record, program.display().to_string()];
    words.extend(arguments);
    words
}

/// The argument vector of the helper that removes the directory unless somebody has it, or the machine reboots: for
/// `ExecStopPost=`. `locks` is where locks of images are.
#[must_use]
pub fn vanish_words(directory: &Path, papers: &Path, locks: &Path) -> Vec<String> {
    let paths = [directory, papers, locks].map(|path| path.display().to_string());
    [vec![VANISH.to_owned()], paths.to_vec()].concat()
}

/// Does the helper's work for [`hold_words`].
pub(super) fn hold(words: impl Iterator<Item = OsString>) -> ExitCode {
    let words: Result<Vec<CString>, _> = words.map(|word| CString::new(word.into_vec())).collect();
    let failed = |what: String| {
        let _ = writeln!(io::stderr(), "{what}");
        ExitCode::FAILURE
    };
    let Ok([record, program, arguments @ ..]) = words.as_deref() else {
        return failed("cannot read the order".into());
    };
    let record = PathBuf::from(OsString::from_vec(record.to_bytes().to_vec()));
    if let Err(error) = share(&record) {
        return failed(format!("cannot lock '{}': {error}", record.display()));
    }
    let Err(errno) = nix::unistd::execv(program, arguments);
    failed(format!("cannot execute {}: {errno}", program.to_string_lossy()))
}

/// Locks it together with whoever shares it, over execve(2).
fn share(record: &Path) -> io::Result<()> {
    let lock = Flock::lock(File::open(record)?, FlockArg::LockShared).map_err(|(_, errno)| errno)?;
    fcntl(&*lock, FcntlArg::F_SETFD(FdFlag::empty()))?;
    std::mem::forget(lock);
    Ok(())
}

/// Does the helper's work for [`vanish_words`]. What it cannot do the next sweep does: no reason why the unit should fail.
pub(super) fn vanish(mut words: impl Iterator<Item = OsString>) -> ExitCode {
    let (Some(directory), Some(papers), Some(locks)) = (words.next(), words.next(), words.next()) else {
        return ExitCode::FAILURE;
    };
    // See systemd.exec(5): what the main process ended with.
    let reboots = env::var("EXIT_STATUS").is_ok_and(|status| status == REBOOT.to_string());
    let (directory, papers) = (Path::new(&directory), Path::new(&papers));
    if reboots {
        return ExitCode::SUCCESS;
    }
    // Whoever has it removes it.
    let Ok(record) = File::open(papers.join(RECORD)) else {
        return ExitCode::SUCCESS;
    };
    let Ok(_lock) = Flock::lock(record, FlockArg::LockExclusiveNonblock) else {
        return ExitCode::SUCCESS;
    };
    let tree = directory.join(TREE);
    let image = tree
        .is_dir()
        .then(|| ImageLock::take(&tree, Path::new(&locks), Sharing::Exclusive));
    if let Some(Err(error)) = &image {
        let _ = writeln!(io::stderr(), "{error}");
        return ExitCode::SUCCESS;
    }
    if let Err(error) = discard(directory, papers) {
        let _ = writeln!(io::stderr(), "{error}");
    }
    ExitCode::SUCCESS
}
