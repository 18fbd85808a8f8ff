//! A machine whose image is a disk: its root filesystem read as a tree, or the disk as it is.
//!
//! Only of one that does not run. To hold its processes still is not enough: its filesystem is the kernel's to write, and a copy of the
//! file below a mounted one is torn; to freeze that filesystem would freeze whoever writes to it, us and the host's journal among them,
//! and a death of ours would leave it so.

use std::fs::{self, File};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::output::{directory_of, hidden};
use super::{Exported, Request};
use crate::machine::{Cancel, Report};
use crate::ops::cp::Copied;
use crate::ops::{OpError, Places};
use crate::sources::SourceError;
use crate::sources::disk::exported::sum_of;
use crate::sources::disk::{DiskError, whole};
use crate::storage::data::{self, BUFFER, Data};
use crate::sys::files::{magic_link, shown};
use crate::sys::loop_users::writer_of;

/// How long the loop device of a machine that has stopped may take to go: udev may look at it.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often it is looked again.
const INTERVAL: Duration = Duration::from_millis(20);

/// A root filesystem that is mounted where nobody sees it, as long as this is there.
#[derive(Debug)]
pub(super) struct Mounted(OwnedFd);

impl Mounted {
    /// Of a machine that does not run, and whose image is locked.
    pub(super) fn open(
        request: &Request,
        places: &Places,
        report: &dyn Report,
        cancel: &Cancel,
    ) -> Result<Self, OpError> {
        let file = open(&request.image, cancel)?;
        let root = whole::open(file, &request.image, &places.machines, report, cancel);
        root.map(Self).map_err(|error| no_tree(error, request))
    }

    /// The path of its root directory, for this process.
    pub(super) fn path(&self) -> PathBuf {
        magic_link(self.0.as_fd()).into()
    }
}

/// Whether a machine's image is a disk, or something else than a directory.
pub(super) fn is_disk(image: &Path) -> bool {
    !fs::metadata(image).is_ok_and(|found| found.is_dir())
}

/// Refuses a disk that cannot be exported so.
pub(super) fn check(request: &Request) -> Result<(), OpError> {
    let (name, image) = (&request.name, shown(&request.image));
    if !fs::metadata(&request.image).is_ok_and(|found| found.is_file()) {
        return Err(OpError::Option {
            message: format!(
                "the image '{image}' of machine '{name}' is a device, and only directories and files are exported"
            ),
            hint: "copy the device itself while the machine does not run".to_owned(),
        });
    }
    Ok(())
}

/// Refuses a machine that runs.
pub(super) fn check_stopped(request: &Request, running: bool) -> Result<(), OpError> {
    if !running {
        return Ok(());
    }
    let name = &request.name;
    Err(OpError::Option {
        message: format!("machine '{name}' runs on a disk image, which it is writing to"),
        hint: format!("`machinist stop {name}` for the time that it takes"),
    })
}

/// What would be done.
pub(super) fn steps(request: &Request, steps: &mut Vec<String>, to: Option<&Path>) {
    let image = shown(&request.image);
    match to {
        None => steps.push(format!(
            "mount the root filesystem of '{image}' read-only, where nobody sees it"
        )),
        Some(path) => {
            steps.push(format!("copy the disk image '{image}' as it is"));
            steps.push(format!("name the disk image '{}'", shown(path)));
        }
    }
}

/// Copies the disk as it is, byte for byte and with its holes. The sum is that of the file.
pub(super) fn copy(
    request: &Request,
    (path, replaces): (&Path, bool),
    report: &dyn Report,
    cancel: &Cancel,
) -> Result<Exported, OpError> {
    let source = open(&request.image, cancel)?;
    let size = source
        .metadata()
        .map_err(OpError::path("look at", &request.image))?
        .len();
    report.phase("copying the disk image");
    let target = hidden(directory_of(path)).map_err(OpError::path("write", path))?;
    let file = data::File {
        source: source.as_fd(),
        target: target.file().as_fd(),
        size,
        copied: None,
        room: None,
    };
    let copied = data::copy(&file, true, Data::Share, &mut vec![0; BUFFER], cancel);
    cancel.check()?;
    copied.map_err(|errno| OpError::path("copy the disk image to", path)(errno.into()))?;
    report.phase("adding up the disk image");
    let sum = sum_of(target.file(), &(0..size), cancel);
    cancel.check()?;
    let (sum, bytes) = sum.map_err(OpError::path("read", path))?;
    report.phase("writing to disk");
    target.show(path, replaces)?;
    Ok(Exported {
        tree: Copied {
            bytes,
            ..Copied::default()
        },
        settings: Vec::new(),
        sha256: sum.to_string(),
        digest: None,
        is_disk: true,
    })
}

/// Opens an image that nothing writes to.
fn open(image: &Path, cancel: &Cancel) -> Result<File, OpError> {
    let file = File::open(image).map_err(OpError::path("open", image))?;
    let begun = Instant::now();
    while let Some(device) = writer_of(&file) {
        if begun.elapsed() > PATIENCE {
            let device = shown(&device);
            return Err(OpError::Option {
                message: format!("'{device}' may write to the disk image '{}'", shown(image)),
                hint: format!("see what it is for with `lsblk {device}`, unmount that, and `losetup -d {device}`"),
            });
        }
        cancel.check()?;
        thread::sleep(INTERVAL);
    }
    Ok(file)
}

/// What can be done about a disk that is no tree: the hints of `create` name options that are not ours.
fn no_tree(error: SourceError, request: &Request) -> OpError {
    let is_ours = matches!(
        &error,
        SourceError::Disk(
            DiskError::NotWhole { .. }
                | DiskError::SeveralRoots { .. }
                | DiskError::NoRoot { .. }
                | DiskError::NotDisk { .. }
                | DiskError::Unusable { .. }
        )
    );
    if !is_ours {
        return error.into();
    }
    OpError::Option {
        message: error.to_string(),
        hint: format!(
            "copy the disk as it is: `machinist export {} FILE.raw --no-settings`",
            request.name
        ),
    }
}
