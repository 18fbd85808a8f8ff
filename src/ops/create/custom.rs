//! What a new machine is given besides: files of the host, and what scripts make of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::Request;
use super::script::Script;
use crate::machine::{Cancel, Location, MachineName, Report};
use crate::ops::transaction::{Step, Transaction};
use crate::ops::{OpError, Places, cp};
use crate::sys::files::{Root, shown};

/// `--copy SRC:DST`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileCopy {
    /// A file or directory of the host.
    pub source: PathBuf,
    /// Where it comes to lie in the machine, from its root; directories above it are made.
    pub target: PathBuf,
}

impl FromStr for FileCopy {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let (source, target) = text.rsplit_once(':').ok_or("expected SRC:DST")?;
        if source.is_empty() || !target.starts_with('/') {
            return Err("expected SRC:DST, with a DST that begins with a slash");
        }
        Ok(Self {
            source: source.into(),
            target: target.into(),
        })
    }
}

impl FileCopy {
    /// Copies it, for root of the machine.
    fn make(&self, name: &MachineName, tree: &Path, places: &Places, cancel: &Cancel) -> Result<(), OpError> {
        let parent = if self.target.as_os_str().as_encoded_bytes().ends_with(b"/") {
            Some(self.target.as_path())
        } else {
            self.target.parent()
        };
        if let Some(parent) = parent.and_then(|parent| parent.strip_prefix("/").ok()) {
            Root::open(tree)?.create_dir_all(parent, 0o755)?;
        }
        let order = cp::Order {
            source: Location::Host(self.source.clone()),
            target: Location::Machine(name.clone(), self.target.clone()),
            options: cp::Options {
                recursive: true,
                ..cp::Options::default()
            },
            source_tree: None,
            target_tree: Some(cp::Tree::Hidden(tree.to_owned())),
        };
        cp::copy(order, places, &(), cancel).map(drop)
    }
}

/// Adds the steps that give it both. `run` runs the scripts in its `tree`.
pub(super) fn steps<'a>(
    steps: &mut Transaction<'a>,
    request: &'a Request,
    places: &'a Places,
    run: &'a (dyn Fn(&Path) -> Result<(), OpError> + Sync),
    tree: impl Fn() -> Result<PathBuf, OpError> + Copy + Send + 'a,
    report: &'a dyn Report,
    cancel: &'a Cancel,
) -> Result<(), OpError> {
    let name = &request.name;
    for file in &request.files {
        let source = shown(&file.source);
        // Told before minutes of work.
        fs::symlink_metadata(&file.source).map_err(OpError::path("copy", &file.source))?;
        let described = format!("copy '{source}' to '{}' of the machine", shown(&file.target));
        steps.step(Step::new(described, move || {
            report.phase(&format!("copying {source}"));
            file.make(name, &directory(tree()?)?, places, cancel)
        }));
    }
    if !request.scripts.is_empty() {
        let of_scripts = |script: &Script| format!("run the script '{}' in it", script.name());
        let described: Vec<String> = request.scripts.iter().map(of_scripts).collect();
        steps.step(Step::new(described.join("\n"), move || {
            report.phase("running scripts in it");
            run(&directory(tree()?)?)
        }));
    }
    Ok(())
}

/// The tree, if it is one.
fn directory(tree: PathBuf) -> Result<PathBuf, OpError> {
    if tree.is_dir() {
        return Ok(tree);
    }
    Err(OpError::Option {
        message: "files are copied, and scripts run, in a directory, and this is to be a disk image".to_owned(),
        hint: "have it unpacked with `--extract`".to_owned(),
    })
}
