//! Whether a name can be given to a new machine, as far as the disk knows.

use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use crate::machine::MachineName;
use crate::ops::{OpError, Places};
use crate::sys::files::shown;

/// Whether anything on disk has the name.
pub(crate) fn is_free(name: &MachineName, places: &Places) -> Result<(), OpError> {
    let in_use = |what: &str, path: &Path, hint: String| OpError::InUse {
        name: name.to_string(),
        by: format!("{what} '{}'", shown(path)),
        hint,
    };
    for image in [places.image(name), places.disk_image(name)] {
        if fs::symlink_metadata(&image).is_ok() && !is_image(&image) {
            let hint = format!(
                "it is no image: move it away with `{}`, or choose another name",
                mv(&image)
            );
            return Err(in_use("file", &image, hint));
        }
        if fs::symlink_metadata(&image).is_ok() {
            return Err(in_use(
                "image",
                &image,
                format!("remove it with `machinist remove {name}`, or choose another name"),
            ));
        }
    }
    // Where systemd-nspawn looks, the last of them beside the image.
    for directory in [&places.settings, &places.runtime_settings, &places.machines] {
        let file = directory.join(format!("{name}.nspawn"));
        if fs::symlink_metadata(&file).is_ok() {
            let hint = "move it away: a new machine does not take over settings it was not made with".to_owned();
            return Err(in_use("settings file", &file, hint));
        }
    }
    for directory in places.all_drop_ins(name) {
        // An empty one, as `systemctl edit` leaves it, sets nothing.
        let first = fs::read_dir(&directory).ok().and_then(|mut entries| entries.next());
        if let Some(Ok(entry)) = first {
            let hint = format!(
                "move it away with `{} && systemctl daemon-reload`: a new machine does not take over settings it was not \
                 made with",
                mv(&directory)
            );
            return Err(in_use("unit drop-in", &entry.path(), hint));
        }
    }
    Ok(())
}

/// Whether machined takes what has an image's place for one: a link that leads nowhere it does not.
fn is_image(path: &Path) -> bool {
    let is_raw = path.extension().is_some_and(|ending| ending == "raw");
    fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device() || found.is_dir() != is_raw)
}

/// The command that moves `path` out of the way.
fn mv(path: &Path) -> String {
    format!("mv {} /root/", shell_words::quote(&path.to_string_lossy()))
}
