//! An overlay over an image, in a mount namespace that goes with the process it is made for.
//!
//! A helper ([`super::helper`]) makes the namespace, the mounts, and becomes the program that was
//! asked for: whatever is killed, no mount is left. The layers lie in a directory that is ours alone: `lower`, where the
//! image is attached, with its owners shifted by an idmapped mount; `upper`, `work`; and `tree`, which the program sees. See
//! the kernel's Documentation/filesystems/overlayfs.rst, mount_setattr(2).

mod helper;
mod view;

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

pub(super) use helper::{helper_main, shift_main};
pub use view::see;

use super::helper::program as helper_program;
use super::process::{ProcessError, Program};
use crate::machine::Cancel;
use crate::nspawn::users::UserRange;

/// Where systemd finds the helper; `None` if it sees nothing there, or another file.
#[must_use]
pub fn mounter() -> Option<PathBuf> {
    let path = helper_program().ok()?;
    let identity = |path: &Path| fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
    let for_systemd = Path::new("/proc/1/root").join(path.strip_prefix("/").ok()?);
    (identity(&for_systemd)? == identity(&path)?).then_some(path)
}

/// Whether mount(8) of this host knows `X-mount.idmap=`, as util-linux has from 2.39 on: libmount says what it can.
pub fn can_shift() -> Result<bool, ProcessError> {
    let said = Program::new("mount").arg("--version").run(&Cancel::default())?;
    Ok(String::from_utf8_lossy(&said.stdout).contains("idmapping"))
}

/// What the helper is called, as argument 0.
pub(super) const JOB: &str = "machinist: overlay";

/// The directories of an overlay in that of its layers.
pub const LOWER: &str = "lower";
/// What is changed.
pub const UPPER: &str = "upper";
/// The kernel's own.
pub const WORK: &str = "work";
/// Where both are seen as one.
pub const TREE: &str = "tree";

/// An overlay that can be mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// Where the layers are, only for root.
    pub layers: PathBuf,
    /// The image below.
    pub image: PathBuf,
    /// Who owns its files instead, if others do.
    pub shift: Option<Shift>,
}

/// Owners of files that are shown as others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shift {
    /// The first number on the disk.
    pub from: u32,
    /// The numbers that are shown.
    pub to: UserRange,
}

/// As a line of uid_map, with colons, see user_namespaces(7).
impl fmt::Display for Shift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.from, self.to)
    }
}

/// Whose the files on the disk are that systemd-nspawn makes where it maps owners: the host's root.
const MAPPED_ROOT: u32 = 0x7FFF_FFFE;

impl Shift {
    /// All of it, each as `FROM:TO:COUNT`: what systemd-nspawn has made there, such as places to mount on, is the host's.
    #[must_use]
    pub fn maps(&self) -> [String; 2] {
        let host = if self.from == 0 { MAPPED_ROOT } else { 0 };
        [self.to_string(), format!("{host}:0:1")]
    }

    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split(':').map(|number| number.parse::<u32>().ok());
        let mut next = || numbers.next().flatten();
        let (from, first, count) = (next()?, next()?, next()?);
        let to = UserRange::new(first, count)?;
        UserRange::new(from, count).map(|_| Self { from, to })
    }
}

impl Overlay {
    /// Where it is mounted.
    #[must_use]
    pub fn tree(&self) -> PathBuf {
        self.layers.join(TREE)
    }

    /// The argument vector of the helper, argument 0 first: it mounts the overlay, and becomes `program` (a path, and its
    /// argument vector). `locks` is where locks of images are; it holds that of the image, shared, as long as the program
    /// has it open.
    #[must_use]
    pub fn words(&self, locks: &Path, program: &str, arguments: Vec<String>) -> Vec<String> {
        let mut words = vec![JOB.to_owned()];
        words.extend([&self.layers, &self.image].map(|path| path.display().to_string()));
        words.push(self.shift.map_or_else(String::new, |shift| shift.to_string()));
        words.extend([locks.display().to_string(), program.to_owned()]);
        words.extend(arguments);
        words
    }

    /// Tries it out, where nobody sees it: the reason why not, if it cannot be. What it leaves in `work` has to be removed
    /// before it can be mounted again.
    pub fn try_out(&self) -> io::Result<()> {
        #[expect(
            clippy::disallowed_methods,
            reason = "no program of the system but our own, which says at once how it went"
        )]
        let mut command = std::process::Command::new(helper_program()?);
        let shift = self.shift.map_or_else(String::new, |shift| shift.to_string());
        let output = command
            .arg0(JOB)
            .args([self.layers.as_os_str(), self.image.as_os_str(), shift.as_ref()])
            .env_clear()
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::null())
            .output()?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        match said.trim() {
            "" => Err(io::Error::other(format!("the helper ended with {}", output.status))),
            said => Err(io::Error::other(said.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shift_is_read_as_it_is_written() {
        let shift = Shift {
            from: 0,
            to: UserRange::parse("524288:65536").unwrap(),
        };
        assert_eq!(shift.to_string(), "0:524288:65536");
        assert_eq!(Shift::parse("0:524288:65536"), Some(shift));
        assert_eq!(shift.maps(), ["0:524288:65536", "2147483646:0:1"]);
        assert_eq!(Shift { from: 655_360, ..shift }.maps()[1], "0:0:1");
        for bad in ["", "0:1", "0:1:0", "4294967295:0:1", "x:1:1", "0:-1:1"] {
            assert_eq!(Shift::parse(bad), None, "{bad}");
        }
    }
}
