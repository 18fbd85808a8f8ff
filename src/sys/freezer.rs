//! The freezer of control groups, see Documentation/admin-guide/cgroup-v2.rst: a machine's processes without systemd-nspawn's.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

/// Where control groups are.
const ROOT: &str = "/sys/fs/cgroup";
/// The group that systemd-nspawn itself is in.
const SUPERVISOR: &str = "supervisor";

/// A control group that can be frozen.
#[derive(Debug)]
pub struct Group {
    freeze: PathBuf,
    /// Kept open: of a group that was removed, and perhaps made again, it can no longer be read.
    events: File,
}

impl Group {
    fn open(directory: &Path) -> Option<Self> {
        let freeze = directory.join("cgroup.freeze");
        let events = File::open(directory.join("cgroup.events")).ok()?;
        freeze.exists().then_some(Self { freeze, events })
    }

    /// The file by which it is frozen and thawed.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.freeze
    }

    /// Whether it was asked to be frozen: by itself, not by a group above.
    #[must_use]
    pub fn is_held(&self) -> bool {
        fs::read_to_string(&self.freeze).is_ok_and(|text| text.trim() == "1")
    }

    /// Whether all its processes stand still.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        let mut text = String::new();
        let mut events = &self.events;
        let read = events.rewind().and_then(|()| events.read_to_string(&mut text));
        read.is_ok() && text.lines().any(|line| line == "frozen 1")
    }

    /// Asks it to be frozen, or thaws it.
    pub fn set(&self, frozen: bool) -> io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).open(&self.freeze)?;
        file.write_all(if frozen { b"1" } else { b"0" })
    }
}

/// The control group above that of a container's processes, if systemd-nspawn has made it.
#[must_use]
pub fn directory_of(leader: u32) -> Option<PathBuf> {
    let groups = fs::read_to_string(format!("/proc/{leader}/cgroup")).ok()?;
    let unit = Path::new(ROOT).join(above_payload(&groups)?);
    unit.join("payload/cgroup.freeze").exists().then_some(unit)
}

/// What stands before the first `payload`: inside of that the machine may call its groups what it likes.
fn above_payload(groups: &str) -> Option<String> {
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let path = format!("{path}/");
    let (above, _) = path.split_once("/payload/")?;
    Some(above.to_owned())
}

/// All groups in there but that of systemd-nspawn.
pub fn groups_in(directory: &Path) -> io::Result<Vec<Group>> {
    Ok(fs::read_dir(directory)?
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()) && entry.file_name() != SUPERVISOR)
        .filter_map(|entry| Group::open(&entry.path()))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::above_payload;

    #[test]
    fn the_machine_does_not_choose_its_group() {
        let of = |groups: &str| above_payload(groups);
        let unit = "machine.slice/systemd-nspawn@web.service";
        assert_eq!(
            of(&format!("1:name=systemd:/x\n0::/{unit}/payload\n")).as_deref(),
            Some(unit)
        );
        assert_eq!(of(&format!("0::/{unit}/payload/a/payload/b\n")).as_deref(), Some(unit));
        assert_eq!(of("0::/user.slice/session-1.scope\n"), None);
        assert_eq!(of("0::/payload-1/x\n"), None);
    }
}
