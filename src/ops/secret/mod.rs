//! Secrets of machines: encrypted at rest, decrypted by systemd when the unit starts, handed on by systemd-nspawn.
//!
//! A secret is a file in `/var/lib/machinist/secrets/NAME/` (mode 0700) that systemd-creds encrypted, and a drop-in of the
//! machine's unit that loads it. The drop-in says which there are. Neither is kept in the history of settings: what is
//! replaced or removed is gone.

mod findings;
mod unit;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::SystemTime;

use zeroize::Zeroizing;

pub use findings::{Checked, check};

use self::unit::{DropIn, loaded, template};
use super::config::plan::read_or_none;
use super::config::{Reload, sweep_temporaries};
use super::lock::Lock;
use super::transaction::{Step, Transaction, hold};
use super::{OpError, Places, owned};
use crate::machine::{Cancel, MachineName, Report};
use crate::sys::credentials::{decrypt, encrypt};
use crate::sys::files::shown;
use crate::unit::secret::Key;

/// The longest value. systemd 252 reads 1.1 MiB of base64, and no version has more than 1 MiB for all of a unit's.
pub const VALUE_MAX: usize = 768 << 10;

/// What the credentials of a unit lie in, from 257 on: a tmpfs of so many pages.
const PAGES: u64 = 256;
const PAGE: u64 = 4096;

/// A secret of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secret {
    /// Its name.
    pub key: Key,
    /// Where it lies, encrypted.
    pub path: PathBuf,
    /// How large that file is; `None` if it cannot be seen.
    pub size: Option<u64>,
    /// When it was written.
    pub changed: Option<SystemTime>,
}

/// The secrets of a machine.
pub fn list(name: &MachineName, places: &Places) -> Result<Vec<Secret>, OpError> {
    let drop_in = DropIn::read(name, places)?;
    let secret = |key: Key| {
        let path = places.secrets(name).join(key.as_str());
        let found = fs::metadata(&path).ok();
        Secret {
            key,
            size: found.as_ref().map(fs::Metadata::len),
            changed: found.and_then(|found| found.modified().ok()),
            path,
        }
    };
    Ok(drop_in.keys.into_iter().map(secret).collect())
}

/// What is to become of a machine's secrets.
#[derive(Clone)]
pub enum Wanted {
    /// This one has this value; `None` where it is only to be said what would be done.
    Set(Key, Option<Zeroizing<Vec<u8>>>),
    /// These are gone.
    Remove(Vec<Key>),
    /// They are handed on by the command line that the unit has now.
    Refresh,
}

/// What came of it.
#[derive(Debug)]
pub struct Changed {
    /// Whether anything was done.
    pub is_new: bool,
    /// The secrets that it was done to.
    pub keys: Vec<Key>,
    /// Whether systemd was told of it.
    pub reloaded: bool,
    /// The files that it was about.
    pub files: Vec<PathBuf>,
}

/// Who works, and for whom.
#[derive(Clone, Copy)]
pub struct Work<'a> {
    /// The machine.
    pub name: &'a MachineName,
    /// Where things lie.
    pub places: &'a Places,
    /// Has systemd read its unit files anew.
    pub reload: Reload<'a>,
    /// What is told meanwhile.
    pub report: &'a dyn Report,
    /// Set by Ctrl-C.
    pub cancel: &'a Cancel,
}

impl Work<'_> {
    /// Changes the secrets of the machine, or leaves everything as it was. Blocks.
    pub fn change(&self, wanted: &Wanted) -> Result<Changed, OpError> {
        let _lock = Lock::wait(&self.places.runtime, self.name.as_str(), self.report, self.cancel)?;
        sweep_temporaries(&self.places.drop_ins(self.name));
        sweep_temporaries(&self.places.secrets(self.name));
        let plan = Plan::make(self, wanted)?;
        let transaction = plan.steps(self);
        let is_new = !transaction.describe().is_empty();
        transaction.run(self.report, self.cancel)?;
        self.sweep();
        let files = plan.files(self);
        Ok(Changed {
            is_new,
            keys: plan.about,
            reloaded: plan.drop_in.file.changes(),
            files,
        })
    }

    /// What [`Work::change`] would do, one line per step; touches nothing.
    pub fn plan(&self, wanted: &Wanted) -> Result<Vec<String>, OpError> {
        Ok(Plan::make(self, wanted)?.steps(self).describe())
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.places.secrets(self.name).join(key.as_str())
    }

    /// Removes secrets whose drop-in was never written, as whoever was about to was killed.
    ///
    /// What our drop-in names stays, whether systemd reads that now or not: there is no other copy.
    fn sweep(&self) {
        let Ok(drop_in) = DropIn::read(self.name, self.places) else {
            return;
        };
        let mut loaded = loaded(self.name, self.places);
        loaded.extend(drop_in.keys.iter().map(|key| self.path(key)));
        let directory = self.places.secrets(self.name);
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if !loaded.contains(&path) && owned::is_ours(&path) {
                let _ = fs::remove_file(path);
            }
        }
        let _ = fs::remove_dir(directory);
    }

    /// What is left of the room for the values of all secrets; each counts whole pages.
    fn check_room(&self, key: &Key, length: usize, drop_in: &DropIn) -> Result<(), OpError> {
        let refuse = |message: String| {
            Err(OpError::Option {
                message,
                hint: "bind a file into the machine instead: `machinist config add NAME Files.BindReadOnly=…`"
                    .to_owned(),
            })
        };
        if length > VALUE_MAX {
            return refuse(format!("secret '{key}' is larger than {} KiB", VALUE_MAX >> 10));
        }
        let pages = |bytes: u64| bytes.div_ceil(PAGE).max(1);
        let others = drop_in.keys.iter().filter(|other| *other != key);
        // Of the others the size is known as it is encrypted, in lines of base64, which is a little more.
        let others: u64 = others
            .filter_map(|other| fs::read(self.path(other)).ok())
            .map(|bytes| bytes.iter().filter(|byte| !byte.is_ascii_whitespace()).count() as u64)
            .map(|base64| pages((base64 / 4 * 3).saturating_sub(64)))
            .sum();
        if others + pages(length as u64) > PAGES {
            return refuse(format!(
                "secret '{key}' is too large: systemd has 1 MiB for all secrets of a machine, in pages of 4 KiB"
            ));
        }
        Ok(())
    }
}

/// What is to be done.
struct Plan<'a> {
    drop_in: DropIn,
    /// The secret to be written, if it is not there already.
    write: Option<(&'a Key, &'a [u8])>,
    /// The files to be removed.
    remove: Vec<PathBuf>,
    /// The secrets that all of this is about.
    about: Vec<Key>,
    encrypted: Mutex<Vec<u8>>,
    /// What the files said before.
    former: Mutex<BTreeMap<PathBuf, Option<Vec<u8>>>>,
}

impl<'a> Plan<'a> {
    fn make(work: &Work<'_>, wanted: &'a Wanted) -> Result<Self, OpError> {
        let mut drop_in = DropIn::read(work.name, work.places)?;
        let found = template(work.name, work.places);
        let mut keys = drop_in.keys.clone();
        let (mut write, mut remove) = (None, Vec::new());
        let mut about = keys.clone();
        match wanted {
            Wanted::Set(key, value) => {
                if let Some(value) = value {
                    work.check_room(key, value.len(), &drop_in)?;
                }
                let value = value.as_ref().map(|value| value.as_slice());
                if !is_there(work, key, value)? || !keys.contains(key) {
                    write = Some((key, value.unwrap_or_default()));
                }
                keys.push(key.clone());
                about = vec![key.clone()];
            }
            Wanted::Remove(gone) => {
                keys.retain(|key| !gone.contains(key));
                about.retain(|key| gone.contains(key));
                remove = about
                    .iter()
                    .map(|key| work.path(key))
                    .filter(|path| path.exists())
                    .collect();
            }
            Wanted::Refresh => {}
        }
        keys.sort();
        keys.dedup();
        let command = match (found, wanted, &drop_in.from) {
            (Ok(template), ..) => template.command,
            // What is to go goes, whatever else is wrong.
            (Err(_), Wanted::Remove(_), Some(from)) => from.clone(),
            (Err(_), ..) if keys.is_empty() => String::new(),
            (Err(unfit), ..) => {
                return Err(OpError::Option {
                    message: format!(
                        "secrets cannot be handed to machine '{}': {}",
                        work.name,
                        unfit.message(work.name)
                    ),
                    hint: unfit.hint(),
                });
            }
        };
        // What is not there need not be removed from a drop-in that says nothing of it.
        if !(matches!(wanted, Wanted::Remove(_)) && keys == drop_in.keys) {
            match (drop_in.hand_on(&keys, &command), wanted, drop_in.from.clone()) {
                (Err(_), Wanted::Remove(_), Some(from)) => drop_in.hand_on(&keys, &from)?,
                (handed_on, ..) => handed_on?,
            }
        }
        Ok(Self {
            drop_in,
            write,
            remove,
            about,
            encrypted: Mutex::default(),
            former: Mutex::default(),
        })
    }

    fn files(&self, work: &Work<'_>) -> Vec<PathBuf> {
        let secrets = self.drop_in.keys.iter().map(|key| work.path(key));
        let written = self.write.iter().map(|(key, _)| work.path(key));
        std::iter::once(self.drop_in.file.path.clone())
            .chain(secrets)
            .chain(written)
            .collect()
    }

    fn steps<'b>(&'b self, work: &'b Work<'_>) -> Transaction<'b> {
        let mut steps = Transaction::default();
        if let Some((key, value)) = self.write {
            let describe = format!("encrypt the value by `systemd-creds encrypt --name={key} - -`");
            steps.step(Step::new(describe, move || {
                let encrypted = encrypt(key.as_str(), value, work.cancel);
                *hold(&self.encrypted) = encrypted.map_err(|source| OpError::Encrypt {
                    key: key.to_string(),
                    source,
                })?;
                Ok(())
            }));
            let path = work.path(key);
            let back = path.clone();
            let describe = format!("write '{}', which only root can read", shown(&path));
            let write = Step::new(describe, move || {
                self.keep(&path)?;
                owned::write_private(&path, &hold(&self.encrypted))
            });
            steps.step(write.undo(move || self.put_back(&back)));
        }
        if self.drop_in.file.changes() {
            let verb = if self.drop_in.file.new.is_some() {
                "write"
            } else {
                "remove"
            };
            let describe = format!("{verb} '{}'", shown(&self.drop_in.file.path));
            let step = Step::new(describe, || self.drop_in.file.write());
            steps.step(step.undo(|| self.drop_in.file.take_back().and_then(|()| (work.reload)())));
            steps.step(Step::new("have systemd read its unit files anew", work.reload));
        }
        // Last: until then systemd may start the machine with it.
        for path in &self.remove {
            let remove = Step::new(format!("remove '{}'", shown(path)), move || {
                self.keep(path)?;
                fs::remove_file(path).map_err(OpError::path("remove", path))
            });
            steps.step(remove.undo(move || self.put_back(path)));
        }
        steps
    }

    fn keep(&self, path: &Path) -> Result<(), OpError> {
        let former = read_or_none(path)?;
        hold(&self.former).insert(path.to_owned(), former);
        Ok(())
    }

    fn put_back(&self, path: &Path) -> Result<(), OpError> {
        let former = hold(&self.former).remove(path);
        match former {
            Some(Some(bytes)) => owned::write_private(path, &bytes),
            Some(None) if path.exists() => {
                fs::remove_file(path).map_err(OpError::path("remove", path))?;
                // Made for this one file, perhaps.
                let _ = path.parent().map(fs::remove_dir);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// Whether a secret has this value already.
fn is_there(work: &Work<'_>, key: &Key, value: Option<&[u8]>) -> Result<bool, OpError> {
    let Some(value) = value else { return Ok(false) };
    let Some(encrypted) = read_or_none(&work.path(key))? else {
        return Ok(false);
    };
    let has = decrypt(key.as_str(), &encrypted, work.cancel);
    Ok(has.is_some_and(|has| has.as_slice() == value))
}
