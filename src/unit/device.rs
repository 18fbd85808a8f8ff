//! Devices of the host that a machine may use: a mount in its settings, and leave of its unit.

use super::topic::Topic;
use crate::nspawn::edit::Edit;

/// A device that many machines want, by a name of its own.
#[derive(Debug, PartialEq, Eq)]
pub struct Bundle {
    /// The name, behind `@`.
    pub name: &'static str,
    /// What is mounted: a device, or a directory of devices.
    path: &'static str,
    /// What `DeviceAllow=` names.
    allow: &'static str,
    /// What the machine gets to, for whoever adds it.
    pub exposes: &'static str,
}

/// All of them.
pub const BUNDLES: &[Bundle] = &[
    Bundle {
        name: "fuse",
        path: "/dev/fuse",
        allow: "/dev/fuse",
        exposes: "filesystems in user space: the host's kernel reads what programs of the machine make up",
    },
    Bundle {
        name: "gpu",
        path: "/dev/dri",
        allow: "char-drm",
        exposes: "graphics: the drivers of the host's cards, and the memory that all of their users share",
    },
    Bundle {
        name: "kvm",
        path: "/dev/kvm",
        allow: "/dev/kvm",
        exposes: "virtual machines: all of the host kernel's KVM",
    },
    Bundle {
        name: "tun",
        path: "/dev/net/tun",
        allow: "/dev/net/tun",
        exposes: "tun and tap interfaces, in the machine's own network",
    },
];

/// What systemd-nspawn makes in every machine's /dev, and its unit permits: see `copy_devnodes()` there.
const OF_EVERY_MACHINE: [&str; 7] = [
    "/dev/full",
    "/dev/net/tun",
    "/dev/null",
    "/dev/random",
    "/dev/tty",
    "/dev/urandom",
    "/dev/zero",
];

/// A device, as `device add` takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its path on the host, and in the machine.
    pub path: String,
    /// The name that it was given by.
    pub bundle: Option<&'static Bundle>,
}

impl Device {
    /// Whether every machine has it, and keeps it.
    #[must_use]
    pub fn is_of_every_machine(&self) -> bool {
        OF_EVERY_MACHINE.contains(&self.path.as_str())
    }

    /// Reads `/dev/X`, or `@BUNDLE`.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(name) = text.strip_prefix('@') {
            let bundle = BUNDLES.iter().find(|bundle| bundle.name == name).ok_or_else(|| {
                let names: Vec<String> = BUNDLES.iter().map(|bundle| format!("@{}", bundle.name)).collect();
                format!("there is no '@{}': there are {}", name.escape_debug(), names.join(", "))
            })?;
            let path = bundle.path.to_owned();
            let bundle = Some(bundle);
            return Ok(Self { path, bundle });
        }
        let parts = text
            .strip_prefix("/dev/")
            .map(|rest| rest.split('/').collect::<Vec<_>>());
        let plain = |part: &&str| {
            let sound = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'@' | b'+');
            !matches!(*part, "" | "." | "..") && part.bytes().all(sound)
        };
        if parts.is_some_and(|parts| parts.iter().all(plain)) {
            Ok(Self {
                path: text.to_owned(),
                bundle: None,
            })
        } else {
            Err(format!(
                "'{}' is no device: a plain path such as /dev/ttyUSB0 is expected, or @fuse, @gpu, @kvm, @tun",
                text.escape_debug()
            ))
        }
    }

    fn allow(&self) -> &str {
        self.bundle.map_or(&self.path, |bundle| bundle.allow)
    }

    /// The edits of the machine's settings, and those of its unit.
    #[must_use]
    pub fn add(&self, read_only: bool) -> (Vec<Edit>, Vec<(Topic, Edit)>) {
        let (bind, other, access, other_access) = if read_only {
            ("BindReadOnly", "Bind", "r", "rw")
        } else {
            ("Bind", "BindReadOnly", "rw", "r")
        };
        let settings = vec![self.bind(other, false), self.bind(bind, true)];
        let drop_ins = vec![
            (Topic::Device, self.device_allow(other_access, false)),
            (Topic::Device, self.device_allow(access, true)),
        ];
        (settings, drop_ins)
    }

    /// The edits that take it away.
    #[must_use]
    pub fn remove(&self) -> (Vec<Edit>, Vec<(Topic, Edit)>) {
        let settings = vec![self.bind("Bind", false), self.bind("BindReadOnly", false)];
        let drop_ins = ["rw", "r"].map(|access| (Topic::Device, self.device_allow(access, false)));
        (settings, drop_ins.into())
    }

    fn bind(&self, key: &str, add: bool) -> Edit {
        let (section, key, value) = ("Files".to_owned(), key.to_owned(), self.path.clone());
        if add {
            Edit::Add { section, key, value }
        } else {
            let value = Some(value);
            Edit::Remove { section, key, value }
        }
    }

    fn device_allow(&self, access: &str, add: bool) -> Edit {
        let (section, key) = ("Service".to_owned(), "DeviceAllow".to_owned());
        let value = format!("{} {access}", self.allow());
        if add {
            Edit::Append { section, key, value }
        } else {
            let value = Some(value);
            Edit::Remove { section, key, value }
        }
    }

    /// Whether a value of `DeviceAllow=` names it, and what it permits.
    #[must_use]
    pub fn allowed_by<'a>(&self, value: &'a str) -> Option<&'a str> {
        let (name, access) = value.split_once([' ', '\t']).unwrap_or((value, "rwm"));
        (name == self.allow()).then_some(access.trim())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_plain_paths_or_bundles() {
        assert_eq!(Device::parse("@tun").unwrap().path, "/dev/net/tun");
        assert_eq!(Device::parse("@gpu").unwrap().allowed_by("char-drm rw"), Some("rw"));
        assert_eq!(
            Device::parse("/dev/ttyUSB0").unwrap().allowed_by("/dev/ttyUSB0"),
            Some("rwm")
        );
        assert_eq!(
            Device::parse("/dev/ttyUSB0").unwrap().allowed_by("/dev/ttyUSB1 rw"),
            None
        );
        for text in [
            "",
            "@",
            "@nothing",
            "/dev",
            "/dev/",
            "/dev/../etc",
            "/etc/passwd",
            "/dev/a b",
            "/dev/a:b",
            "ttyS0",
            "/dev//x",
        ] {
            assert!(Device::parse(text).is_err(), "{text}");
        }
    }
}
