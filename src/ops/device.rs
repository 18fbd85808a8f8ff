//! Devices of the host in a running machine: nodes in its /dev, until its settings bring them at the next start.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use super::enable::reload;
use super::{OpError, Places};
use crate::machine::MachineName;
use crate::sys::bus::Bus;
use crate::sys::bus::systemd1::Setting;
use crate::sys::files::Kind;
use crate::sys::guest::Leader;
use crate::unit::device::Device;

/// A device as it is on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    kind: Kind,
    number: u64,
    mode: u32,
}

impl Node {
    /// Looks at the device; `None` for a directory of devices.
    ///
    /// # Errors
    /// [`OpError::Option`] if there is no such device: the machine would not start with it.
    pub fn of(device: &Device) -> Result<Option<Self>, OpError> {
        let refuse = |message: String| OpError::Option {
            message,
            hint: "load its driver, or plug it in; see `ls -l /dev`".to_owned(),
        };
        let path = Path::new(&device.path);
        let found = match fs::symlink_metadata(path) {
            Ok(found) => found,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(refuse(format!("there is no device '{}' on this host", device.path)));
            }
            Err(error) => return Err(OpError::path("look at", path)(error)),
        };
        let kind = match found.file_type() {
            kind if kind.is_char_device() => Kind::CharDevice,
            kind if kind.is_block_device() => Kind::BlockDevice,
            kind if kind.is_dir() && device.bundle.is_some() => return Ok(None),
            kind if kind.is_symlink() => {
                return Err(refuse(format!(
                    "'{}' is a link: name the device that it leads to",
                    device.path
                )));
            }
            _ => return Err(refuse(format!("'{}' is no device", device.path))),
        };
        Ok(Some(Self {
            kind,
            number: found.rdev(),
            mode: found.permissions().mode() & 0o7777,
        }))
    }

    /// Whether the users of a machine can open it, who are nobody to the host.
    #[must_use]
    pub fn is_for_everybody(self) -> bool {
        self.mode & 0o006 == 0o006
    }
}

/// Has the kernel heed `DeviceAllow=` as systemd has read it last: of a unit that runs it keeps what was, until a property of
/// devices is set. The file that systemd writes for that says nothing new, and goes.
pub async fn enforce(bus: &Bus, name: &MachineName, places: &Places) -> Result<(), OpError> {
    let unit = name.unit();
    let policy = bus.unit_properties(&unit, "Service", &["DevicePolicy"]).await?;
    let policy = policy.string("DevicePolicy");
    let directory = places.runtime_control.join(format!("{unit}.d"));
    let file = directory.join("50-DevicePolicy.conf");
    let is_theirs = file.symlink_metadata().is_ok();
    let settings = [("DevicePolicy", Setting::Text(policy))];
    bus.set_unit_properties(&unit, true, &settings).await?;
    if !is_theirs {
        fs::remove_file(&file).map_err(OpError::path("remove", &file))?;
        // Others may have files there.
        let _ = fs::remove_dir(&directory);
        reload(bus).await?;
    }
    Ok(())
}

/// Makes the device appear in a running machine, unless it is there. Blocks.
pub fn show(leader: u32, device: &Device, node: Node) -> Result<(), OpError> {
    let Some(root) = Leader::open(leader).and_then(|leader| leader.root()) else {
        return Ok(());
    };
    let path = device.path.trim_start_matches('/');
    if root.device(path)? == Some((node.kind, node.number)) {
        return Ok(());
    }
    if let Some(parent) = Path::new(path).parent() {
        root.create_dir_all(parent, 0o755)?;
    }
    Ok(root.make_device(path, node.kind, node.mode, node.number)?)
}

/// Makes the device vanish from a running machine, if it is there. Blocks.
pub fn hide(leader: u32, device: &Device) -> Result<(), OpError> {
    let Some(root) = Leader::open(leader).and_then(|leader| leader.root()) else {
        return Ok(());
    };
    let path = device.path.trim_start_matches('/');
    if root.device(path)?.is_some() {
        root.remove_file(path)?;
    }
    Ok(())
}
