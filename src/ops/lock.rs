//! One verb at a time on a name: an exclusive flock(2) on `/run/machinist/NAME.lock`.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::OpError;
use crate::machine::{Cancel, Report};

/// How often a taken lock is tried again.
const INTERVAL: Duration = Duration::from_millis(50);

/// How long the lock that verbs on all names share may be taken before that is worth a word.
const MOMENT: Duration = Duration::from_secs(3);

/// A held lock; released when dropped, or by the kernel when we die.
#[derive(Debug)]
pub struct Lock {
    /// The file stays: removing it would let two verbs lock two files of one name.
    _file: Flock<File>,
}

impl Lock {
    /// Locks `name`, waiting for whoever has it, and saying so. Blocks.
    pub fn wait(directory: &Path, name: &str, report: &dyn Report, cancel: &Cancel) -> Result<Self, OpError> {
        Self::wait_saying(directory, name, Duration::ZERO, "works on it", report, cancel)
    }

    /// Locks what verbs on all names share. Each has it for a moment, of which nothing is said; a sweep of much may take
    /// longer. Blocks.
    pub fn wait_for_all(directory: &Path, name: &str, report: &dyn Report, cancel: &Cancel) -> Result<Self, OpError> {
        let doing = "removes what an interrupted call left";
        Self::wait_saying(directory, name, MOMENT, doing, report, cancel)
    }

    /// Locks what the order of machines depends on; says what whoever has it does. Blocks.
    pub fn wait_saying_why(
        directory: &Path,
        name: &str,
        doing: &str,
        report: &dyn Report,
        cancel: &Cancel,
    ) -> Result<Self, OpError> {
        Self::wait_saying(directory, name, MOMENT, doing, report, cancel)
    }

    fn wait_saying(
        directory: &Path,
        name: &str,
        patience: Duration,
        doing: &str,
        report: &dyn Report,
        cancel: &Cancel,
    ) -> Result<Self, OpError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(OpError::path("create", directory))?;
        let path = directory.join(format!("{name}.lock"));
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(OpError::path("open", &path))?;
        let mut said = false;
        let begun = Instant::now();
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(mut locked) => {
                    // Who has it, for those who wait; a failure here costs only that word.
                    let _ = locked.set_len(0);
                    let _ = locked.rewind();
                    let _ = write!(&mut *locked, "{}", std::process::id());
                    return Ok(Self { _file: locked });
                }
                Err((unlocked, Errno::EWOULDBLOCK)) => file = unlocked,
                Err((_, errno)) => return Err(OpError::path("lock", &path)(errno.into())),
            }
            if !said && begun.elapsed() >= patience {
                let mut holder = String::new();
                let _ = (&file).take(16).read_to_string(&mut holder);
                report.phase(&format!(
                    "waiting for another machinist (PID {}) that {doing}",
                    holder.trim()
                ));
                said = true;
            }
            cancel.check()?;
            std::thread::sleep(INTERVAL);
        }
    }

    /// Locks `name` if nobody has it.
    #[cfg(test)]
    fn try_take(directory: &Path, name: &str) -> Option<Self> {
        let path = directory.join(format!("{name}.lock"));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .ok()?;
        Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .ok()
            .map(|file| Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Phases(Mutex<Vec<String>>);

    impl Report for Phases {
        fn phase(&self, what: &str) {
            self.0.lock().unwrap().push(what.to_owned());
        }

        fn progress(&self, _: u64, _: Option<u64>) {}

        fn warn(&self, _: &str) {}
    }

    #[test]
    fn only_who_works_on_the_name_is_worth_a_word_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let wait_while_held = |wait: &(dyn Fn(&Phases) -> Result<Lock, OpError> + Sync)| {
            let phases = Phases::default();
            let held = Lock::try_take(dir.path(), "web").unwrap();
            std::thread::scope(|scope| {
                let waiting = scope.spawn(|| wait(&phases).map(drop));
                std::thread::sleep(INTERVAL * 4);
                drop(held);
                waiting.join().unwrap().unwrap();
            });
            phases.0.into_inner().unwrap()
        };
        let cancel = Cancel::default();
        let said = wait_while_held(&|phases| Lock::wait(dir.path(), "web", phases, &cancel));
        assert!(said[0].starts_with("waiting for another machinist"), "{said:?}");
        let said = wait_while_held(&|phases| Lock::wait_for_all(dir.path(), "web", phases, &cancel));
        assert_eq!(said, [""; 0]);
    }

    #[test]
    fn a_name_is_locked_once() {
        let dir = tempfile::tempdir().unwrap();
        let held = Lock::wait(dir.path(), "web", &(), &Cancel::default()).unwrap();
        assert!(Lock::try_take(dir.path(), "web").is_none());
        assert!(Lock::try_take(dir.path(), "db").is_some());
        let cancelled = Cancel::default();
        cancelled.cancel();
        assert!(matches!(
            Lock::wait(dir.path(), "web", &(), &cancelled),
            Err(OpError::Cancelled(_))
        ));
        drop(held);
        assert!(Lock::try_take(dir.path(), "web").is_some());
    }
}
