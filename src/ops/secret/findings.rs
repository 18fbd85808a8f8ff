//! What is wrong with the secrets of a machine, for `config check`.

use std::fs;
use std::io;
use std::path::PathBuf;

use super::unit::{DropIn, Unfit, is_read, template};
use crate::machine::MachineName;
use crate::nspawn::check::{Finding, Severity};
use crate::ops::{OpError, Places};
use crate::sys::files::shown;

/// The drop-in of a machine's secrets, and what there is to say about it.
#[derive(Clone, Debug)]
pub struct Checked {
    /// The drop-in.
    pub path: PathBuf,
    /// What it says.
    pub bytes: Vec<u8>,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// Checks the secrets of a machine; `None` if it has none.
pub fn check(name: &MachineName, places: &Places) -> Result<Option<Checked>, OpError> {
    let drop_in = DropIn::read(name, places)?;
    if !drop_in.exists() {
        return Ok(None);
    }
    let findings = if is_read(&drop_in.file.path, name, places) {
        let missing = drop_in.keys.iter().filter_map(|key| {
            let path = places.secrets(name).join(key.as_str());
            let is_gone = matches!(fs::metadata(&path), Err(error) if error.kind() == io::ErrorKind::NotFound);
            let message = format!(
                "secret '{key}' is not there, and the machine does not start: '{}'",
                shown(&path)
            );
            let hint = format!("`machinist secret set {name} {key}`, or `machinist secret remove {name} {key}`");
            is_gone.then(|| Finding::of_file(Severity::Error, "secret-missing", message).hint(hint))
        });
        missing.chain(of_command(&drop_in, name, places)).collect()
    } else {
        let message = "the file is not read: systemd finds another of its name first";
        vec![Finding::of_file(Severity::Warning, "hidden-file", message).hint("remove one of the two files")]
    };
    Ok(Some(Checked {
        path: drop_in.file.path.clone(),
        bytes: drop_in.bytes().to_vec(),
        findings,
    }))
}

fn of_command(drop_in: &DropIn, name: &MachineName, places: &Places) -> Option<Finding> {
    let warn = |code, message: String| Some(Finding::of_file(Severity::Warning, code, message));
    if drop_in.keys.is_empty() && drop_in.from.is_none() {
        return None;
    }
    match template(name, places) {
        Err(unfit @ Unfit::Later(_)) => {
            let message = format!("secrets are not handed on: {}", unfit.message(name));
            warn("secret-overruled", message).map(|finding| finding.hint(unfit.hint()))
        }
        Ok(_) if !drop_in.is_sound() => warn(
            "secret-edited",
            "the ExecStart= is not what machinist wrote, and is left alone".to_owned(),
        ),
        Ok(template) if drop_in.from.as_ref() != Some(&template.command) => {
            let message = format!(
                "the machine is started with a former command line: '{}' has another ExecStart= by now",
                shown(&template.file)
            );
            let hint = format!("take the new one: `machinist secret set {name} --refresh`");
            warn("template-changed", message).map(|finding| finding.hint(hint))
        }
        // Of a unit that has none or several whoever starts it is told by systemd.
        Ok(_) | Err(_) => None,
    }
}
