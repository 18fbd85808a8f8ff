//! Sweeping: what killed verbs left, cached bootstraps and downloads, old trash, old logs.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::transaction::{Record, is_staging, leftovers, sweep};
use super::{OpError, Places, linked};
use crate::machine::{Cancel, Report};
use crate::sources::{cache, download};
use crate::sys::files::{remove_tree, tree_size};

/// How long a bootstrap's log is kept.
const LOG_AGE: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// What `clean` is to remove.
#[derive(Clone, Copy, Debug)]
pub struct CleanOptions {
    /// Cached bootstraps and downloads that were made longer ago than this; none if `None`.
    pub cache_age: Option<Duration>,
    /// Trash that was put there longer ago than this.
    pub trash_age: Duration,
}

/// One thing that was, or would be, removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cleaned {
    /// What it is: "half-made machine 'web'", "cached bootstrap debian:trixie amd64".
    pub what: String,
    /// Where it lies; `None` if it is many things.
    pub path: Option<PathBuf>,
    /// Bytes on disk.
    pub bytes: u64,
}

/// What [`clean`] would remove. Touches nothing. Blocks.
pub fn plan(places: &Places, options: CleanOptions, cancel: &Cancel) -> Result<Vec<Cleaned>, OpError> {
    let size = |path: &Path| tree_size(path, cancel).unwrap_or(0);
    let mut found: Vec<Cleaned> = leftovers(places)
        .into_iter()
        .map(|left| {
            let what = left.record.as_ref().map_or_else(
                || "leftover".to_owned(),
                |record| format!("leftover of machine '{}'", record.name),
            );
            // At boot systemd-tmpfiles may have removed it.
            let path = if left.directory.exists() {
                left.directory
            } else {
                left.papers
            };
            Cleaned {
                what,
                bytes: size(&path),
                path: Some(path),
            }
        })
        .collect();
    found.extend(linked::unused(places)?.into_iter().map(|path| Cleaned {
        what: "layer that no machine needs".to_owned(),
        bytes: size(&path),
        path: Some(path),
    }));
    if let Some(age) = options.cache_age {
        let entries = cache::entries(&places.for_sources(), cancel)?;
        found.extend(
            entries
                .into_iter()
                .filter(|entry| is_older(entry.created.into(), age))
                .map(|entry| Cleaned {
                    what: format!("cached bootstrap {}", entry.description),
                    path: Some(entry.path),
                    bytes: entry.bytes,
                }),
        );
        let downloads = download::entries(&places.for_sources())?.into_iter();
        let old = downloads.filter(|entry| is_older(entry.created.into(), age));
        found.extend(old.map(|entry| Cleaned {
            what: entry.what,
            path: Some(entry.path),
            bytes: entry.bytes,
        }));
    }
    for (what, directory, age) in [
        ("trash", places.trash(), options.trash_age),
        ("log", places.logs.clone(), LOG_AGE),
    ] {
        let old = old_entries(&directory, age).into_iter();
        found.extend(old.map(|path| Cleaned {
            what: what.to_owned(),
            bytes: size(&path),
            path: Some(path),
        }));
    }
    Ok(found)
}

/// Removes it. What cannot be removed is reported, and does not stop the rest; `finish` is as [`sweep`] wants it. Blocks.
pub fn clean(
    places: &Places,
    options: CleanOptions,
    finish: &dyn Fn(&Record, &Path) -> Result<(), OpError>,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Vec<Cleaned>, OpError> {
    let planned = plan(places, options, cancel)?;
    sweep(places, finish, report, cancel)?;
    let cleared = match options.cache_age {
        Some(age) => {
            let mut cleared = cache::clear(&places.for_sources(), Some(age), cancel)?;
            cleared.extend(download::clear(&places.for_sources(), age, cancel)?);
            cleared
        }
        None => Vec::new(),
    };
    let _layers = linked::lock(places, report, cancel)?;
    linked::sweep(places, report)?;
    remove(planned, &cleared, places, report, cancel)
}

/// Removes what was planned, but for what has been swept by now; what was is the result.
fn remove(
    planned: Vec<Cleaned>,
    cleared: &[PathBuf],
    places: &Places,
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Vec<Cleaned>, OpError> {
    let mut cleaned = Vec::new();
    for item in planned {
        cancel.check()?;
        let Some(path) = &item.path else { continue };
        if path.starts_with(&places.cache) {
            // What is still there is locked: a machine is being made of it.
            if cleared.contains(path) {
                cleaned.push(item);
            }
            continue;
        }
        if fs::symlink_metadata(path).is_ok() {
            // Swept before if it was a leftover; what is there still could not be, or belongs to somebody by now.
            let is_swept = is_staging(path) || path.starts_with(places.papers()) || path.starts_with(places.layers());
            if is_swept {
                continue;
            }
            let removed = if path.is_dir() {
                remove_tree(path).map_err(OpError::from)
            } else {
                fs::remove_file(path).map_err(OpError::path("remove", path))
            };
            if let Err(error) = removed {
                report.warn(&error.to_string());
                continue;
            }
        }
        cleaned.push(item);
    }
    Ok(cleaned)
}

fn is_older(time: SystemTime, age: Duration) -> bool {
    // A time in the future is not old.
    time.elapsed().is_ok_and(|elapsed| elapsed >= age)
}

fn old_entries(directory: &Path, age: Duration) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| {
            entry
                .metadata()
                .and_then(|meta| meta.modified())
                .is_ok_and(|time| is_older(time, age))
        })
        .map(|entry| entry.path())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::transaction::{Staging, Verb};

    #[test]
    fn what_began_meanwhile_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let places = Places {
            machines: at("machines"),
            state: at("state"),
            runtime: at("run"),
            ..Places::default()
        };
        fs::create_dir_all(&places.machines).unwrap();
        let record = Record {
            verb: Verb::Create,
            name: "web".into(),
            settings: None,
            unit: None,
        };
        let staging = Staging::create(&places, &record, &(), &Cancel::default()).unwrap();
        // Both were seen before they were locked.
        for path in [staging.papers(), staging.directory()] {
            let planned = Cleaned {
                what: "leftover".into(),
                path: Some(path.to_owned()),
                bytes: 0,
            };
            let removed = remove(vec![planned], &[], &places, &(), &Cancel::default()).unwrap();
            assert_eq!((removed, path.exists()), (vec![], true), "{path:?}");
        }
    }

    #[test]
    fn a_cached_tree_that_somebody_copies_is_not_removed() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let places = Places {
            machines: at("machines"),
            state: at("state"),
            cache: at("cache"),
            logs: at("logs"),
            runtime: at("run"),
            ..Places::default()
        };
        let shelf = at("cache/bootstrap");
        let (used, idle) = ("0".repeat(32), "1".repeat(32));
        let entries = [&used, &idle].map(|inputs| shelf.join(format!("{inputs}-release")));
        for entry in &entries {
            fs::create_dir_all(entry.join("root/etc")).unwrap();
            let description = r#"{"description":"debian:sid","created":"2020-01-01T00:00:00Z"}"#;
            fs::write(entry.join("entry.json"), description).unwrap();
        }
        let lock = fs::File::create(shelf.join(format!(".{used}.lock"))).unwrap();
        lock.lock_shared().unwrap();
        let options = CleanOptions {
            cache_age: Some(Duration::ZERO),
            trash_age: Duration::ZERO,
        };
        let cleaned = || {
            let cleaned = clean(&places, options, &|_, _| Ok(()), &(), &Cancel::default()).unwrap();
            cleaned.into_iter().filter_map(|item| item.path).collect::<Vec<_>>()
        };
        assert_eq!(cleaned(), [entries[1].clone()]);
        assert!(entries[0].join("root/etc").exists() && !entries[1].exists());
        drop(lock);
        assert_eq!(cleaned(), [entries[0].clone()]);
        assert!(!entries[0].exists());
    }
}
