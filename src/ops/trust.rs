//! Pinning keys to addresses, and taking them back.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{OpError, Places};
use crate::machine::{Cancel, Report};
use crate::sources::trust::{Key, Keyring, Pin, TrustError, pins, same_place, write_pin};
use crate::sources::{SourceError, Url};
use crate::sys::files::{FileError, shown};

/// How often a lock held by another call is tried again.
const LOCK_POLL: Duration = Duration::from_millis(50);

/// A key that is to be pinned.
#[derive(Clone, Debug)]
pub struct Request {
    /// What has to be signed: what is at this address, or below it.
    pub prefix: Url,
    /// By one of these.
    pub keyring: Keyring,
    /// Also if others are pinned there.
    pub replace: bool,
}

/// What pinning comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// Nothing was pinned there.
    Added,
    /// The same keys are pinned there, as they are.
    Unchanged,
    /// The same keys, with other names or another time to live.
    Refreshed,
    /// Others were pinned there.
    Replaced,
}

/// A pin as it is, or would be.
#[derive(Clone, Debug)]
pub struct Pinned {
    /// What was done, or would be.
    pub change: Change,
    /// The keys.
    pub keys: Vec<Key>,
    /// Its file; none of its own yet where it was only to be said what would be done.
    pub path: Option<PathBuf>,
}

/// What [`add`] would do.
pub fn plan(request: &Request, places: &Places) -> Result<Pinned, OpError> {
    let found = at(&request.prefix, places)?;
    let change = decide(request, &found)?;
    Ok(Pinned {
        change,
        keys: request.keyring.keys.clone(),
        path: found.into_iter().next().map(|pin| pin.path),
    })
}

/// Pins a key, or leaves everything as it was. Blocks.
pub fn add(request: &Request, places: &Places, report: &dyn Report, cancel: &Cancel) -> Result<Pinned, OpError> {
    let dir = &places.keys;
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(dir)
        .map_err(failed("create", dir))?;
    let _lock = lock(dir, report, cancel)?;
    let mut pinned = plan(request, places)?;
    if pinned.change == Change::Unchanged {
        return Ok(pinned);
    }
    let path = write_pin(dir, &request.prefix, &request.keyring, pinned.path.as_deref()).map_err(SourceError::from)?;
    // Keys of the same address in other files count, too: those go last, when the new one holds.
    for other in at(&request.prefix, places)? {
        if other.path != path {
            std::fs::remove_file(&other.path).map_err(failed("remove", &other.path))?;
        }
    }
    pinned.path = Some(path);
    Ok(pinned)
}

/// The pins that `pattern` means: those of this address, or of all that match it.
pub fn matching(pattern: &str, places: &Places) -> Result<Vec<Pin>, OpError> {
    let all = pins(&places.keys).map_err(SourceError::from)?;
    let none = || {
        SourceError::from(TrustError::NoPin {
            prefix: crate::machine::text::printable(pattern),
        })
    };
    let address = pattern.parse::<Url>().ok();
    let glob = glob::Pattern::new(pattern).ok();
    let matches = |pin: &Pin| {
        address.as_ref().is_some_and(|address| same_place(address, &pin.prefix))
            || glob.as_ref().is_some_and(|glob| glob.matches(&pin.prefix.to_string()))
    };
    let found: Vec<Pin> = all.into_iter().filter(matches).collect();
    if found.is_empty() {
        Err(none().into())
    } else {
        Ok(found)
    }
}

/// Takes back what [`matching`] finds. Blocks.
pub fn remove(pattern: &str, places: &Places, report: &dyn Report, cancel: &Cancel) -> Result<Vec<Pin>, OpError> {
    matching(pattern, places)?;
    let _lock = lock(&places.keys, report, cancel)?;
    let found = matching(pattern, places)?;
    for pin in &found {
        std::fs::remove_file(&pin.path).map_err(failed("remove", &pin.path))?;
    }
    Ok(found)
}

/// The pins of an address; all of their keys count.
fn at(prefix: &Url, places: &Places) -> Result<Vec<Pin>, OpError> {
    let mut all = pins(&places.keys).map_err(SourceError::from)?;
    all.retain(|pin| same_place(&pin.prefix, prefix));
    Ok(all)
}

fn decide(request: &Request, found: &[Pin]) -> Result<Change, OpError> {
    let Some(first) = found.first() else {
        return Ok(Change::Added);
    };
    let mut pinned: Vec<&str> = found.iter().flat_map(|pin| pin.keyring.fingerprints()).collect();
    pinned.sort_unstable();
    pinned.dedup();
    let given = request.keyring.fingerprints();
    if pinned == given {
        let is_same = found.len() == 1 && first.keyring.is_same(&request.keyring);
        return Ok(if is_same { Change::Unchanged } else { Change::Refreshed });
    }
    if request.replace {
        return Ok(Change::Replaced);
    }
    let error = TrustError::OtherKey {
        prefix: request.prefix.to_string(),
        pinned: pinned.join(", "),
        path: first.path.clone(),
        given: given.join(", "),
    };
    Err(SourceError::from(error).into())
}

/// The lock of all pins: that of their directory.
fn lock(dir: &Path, report: &dyn Report, cancel: &Cancel) -> Result<File, OpError> {
    let file = File::open(dir).map_err(failed("open", dir))?;
    let mut told = false;
    loop {
        cancel.check().map_err(SourceError::from)?;
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(std::fs::TryLockError::WouldBlock) => {}
            Err(std::fs::TryLockError::Error(error)) => return Err(failed("lock", dir)(error)),
        }
        if !std::mem::replace(&mut told, true) {
            report.phase(&format!("waiting for another call that works in '{}'", shown(dir)));
        }
        std::thread::sleep(LOCK_POLL);
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpError {
    let path = path.to_owned();
    move |error| FileError::io(action, &path)(error).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: &str = include_str!("../sources/trust/fixtures/alice.asc");
    const MALLORY: &str = include_str!("../sources/trust/fixtures/mallory.asc");

    fn request(prefix: &str, key: &str, replace: bool) -> Request {
        Request {
            prefix: prefix.parse().unwrap(),
            keyring: Keyring::parse(key.as_bytes(), Path::new("key.asc")).unwrap(),
            replace,
        }
    }

    #[test]
    fn another_key_takes_a_word() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places {
            keys: dir.path().join("machinist/keys.d"),
            ..Places::default()
        };
        let add =
            |prefix: &str, key: &str, replace| add(&request(prefix, key, replace), &places, &(), &Cancel::default());
        let change = |prefix: &str, key: &str, replace| add(prefix, key, replace).unwrap().change;
        assert_eq!(
            plan(&request("https://h/a", ALICE, false), &places).unwrap().change,
            Change::Added
        );
        assert!(!places.keys.exists());
        assert_eq!(change("https://h/a", ALICE, false), Change::Added);
        assert_eq!(change("http://H:80/a/", ALICE, false), Change::Unchanged);
        let error = add("https://h/a", MALLORY, false).unwrap_err().to_string();
        assert!(
            error.contains("another key is pinned for 'https://h/a' already: 444F1465"),
            "{error}"
        );
        assert!(
            error.ends_with("and this is 21C887CBC3B54E61DCEE25889A9D64D9560F65E5"),
            "{error}"
        );
        assert_eq!(change("https://h/a/b", MALLORY, false), Change::Added);
        // By hand, for the same address: both count, and go together.
        std::fs::write(places.keys.join("mine.asc"), format!("URL: https://h/a\n{MALLORY}")).unwrap();
        assert!(add("https://h/a", ALICE, false).is_err());
        assert_eq!(
            change("https://h/a", &format!("{MALLORY}{ALICE}"), false),
            Change::Refreshed
        );
        assert_eq!(pins(&places.keys).unwrap().len(), 2);
        assert_eq!(change("https://h/a", MALLORY, true), Change::Replaced);
        let found = matching("https://h/a", &places).unwrap();
        assert_eq!(
            found[0].keyring.fingerprints(),
            ["21C887CBC3B54E61DCEE25889A9D64D9560F65E5"]
        );
        let remove = |pattern: &str| remove(pattern, &places, &(), &Cancel::default());
        assert!(
            remove("https://h/c")
                .unwrap_err()
                .to_string()
                .contains("no key is pinned for 'https://h/c'")
        );
        assert_eq!(remove("https://h/*").unwrap().len(), 2);
        assert!(pins(&places.keys).unwrap().is_empty());
    }

    #[test]
    fn two_calls_do_not_pin_two_keys() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places {
            keys: dir.path().to_owned(),
            ..Places::default()
        };
        let add = |key: &'static str| {
            let places = places.clone();
            std::thread::spawn(move || add(&request("https://h", key, false), &places, &(), &Cancel::default()).is_ok())
        };
        let both = [add(ALICE), add(MALLORY)].map(|thread| thread.join().unwrap());
        assert_eq!(both.iter().filter(|added| **added).count(), 1);
        assert_eq!(pins(dir.path()).unwrap().len(), 1);
    }
}
