//! What systemd says of itself, and of a unit, in as few calls as can be: see org.freedesktop.systemd1(5).

use std::fmt::Write as _;

use super::systemd1::{NAME, SERVICE, UnitState};
use super::{Bus, BusError, classify};

/// What systemd says of itself.
#[derive(Clone, Debug)]
pub struct ManagerState {
    /// Its major version, such as 257.
    pub version: u32,
    /// The directories of unit files, what overrides first.
    pub unit_path: Vec<String>,
    /// When it last read all units, in µs since 1970.
    pub loaded_at: u64,
}

/// The leading number of "257.13-1~deb13u1", "v258", "262~rc1".
pub(in crate::sys) fn major_version(text: &str) -> Result<u32, BusError> {
    let digits: String = text
        .trim_start_matches('v')
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    digits.parse().map_err(|_| BusError::Failed {
        doing: "read systemd's version".to_owned(),
        name: String::new(),
        message: format!("it says '{}'", text.escape_debug()),
    })
}

/// The object path of a unit, as systemd makes it of its name.
pub(in crate::sys) fn unit_path(name: &str) -> String {
    let mut path = "/org/freedesktop/systemd1/unit/".to_owned();
    for (at, byte) in name.bytes().enumerate() {
        if byte.is_ascii_alphabetic() || (at > 0 && byte.is_ascii_digit()) {
            path.push(char::from(byte));
        } else {
            let _ = write!(path, "_{byte:02x}");
        }
    }
    path
}

impl Bus {
    /// As [`Bus::unit_state`], with a call less: systemd loads a unit for whoever asks for its path.
    pub async fn unit_state_by_path(&self, name: &str) -> Result<UnitState, BusError> {
        let path = unit_path(name);
        let kind = if name.ends_with(".scope") { "Scope" } else { "Service" };
        let interfaces = [format!("{NAME}.Unit"), format!("{NAME}.{kind}")];
        let (unit, detail) = futures_util::future::try_join(
            self.properties((NAME, SERVICE), &path, &interfaces[0], name),
            self.properties((NAME, SERVICE), &path, &interfaces[1], name),
        )
        .await?;
        Ok(UnitState { unit, detail })
    }

    /// Has systemd send signals: without a subscriber it sends none at all.
    pub async fn subscribe(&self) -> Result<(), BusError> {
        match self.manager().await?.subscribe().await {
            Ok(()) => Ok(()),
            // A second time is refused: harmless.
            Err(zbus::Error::MethodError(name, ..)) if name.as_str().ends_with("AlreadySubscribed") => Ok(()),
            Err(error) => Err(classify(&error, SERVICE, "subscribe to systemd's signals", "")),
        }
    }

    /// When systemd began to start the host's units, in µs since 1970.
    pub(crate) async fn booted_at(&self) -> Result<u64, BusError> {
        let interface = format!("{NAME}.Manager");
        let path = "/org/freedesktop/systemd1";
        let names = ["UserspaceTimestamp"];
        let found = self
            .some_properties((NAME, SERVICE), path, &interface, &names, "systemd")
            .await?;
        Ok(found.number(names[0]).unwrap_or_default())
    }

    /// What systemd says of itself: its version, where it looks for unit files, and when it last read them.
    pub(crate) async fn manager_state(&self) -> Result<ManagerState, BusError> {
        let names = ["Version", "UnitPath", "UnitsLoadTimestamp", "UnitsLoadFinishTimestamp"];
        let interface = format!("{NAME}.Manager");
        let found = self
            .some_properties(
                (NAME, SERVICE),
                "/org/freedesktop/systemd1",
                &interface,
                &names,
                "systemd",
            )
            .await?;
        let times = [
            found.number("UnitsLoadTimestamp"),
            found.number("UnitsLoadFinishTimestamp"),
        ];
        Ok(ManagerState {
            version: major_version(&found.string("Version"))?,
            unit_path: found.strings("UnitPath"),
            // 252 has the first only after a reload.
            loaded_at: times.into_iter().flatten().max().unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_paths_and_versions_numbers() {
        assert_eq!(
            unit_path("systemd-nspawn@web.service"),
            "/org/freedesktop/systemd1/unit/systemd_2dnspawn_40web_2eservice"
        );
        assert_eq!(unit_path("0a1.scope"), "/org/freedesktop/systemd1/unit/_30a1_2escope");
        let versions = ["257.13-1~deb13u1", "v258", "262~rc1"].map(|text| major_version(text).unwrap());
        assert_eq!(versions, [257, 258, 262]);
        assert!(major_version("x").is_err());
    }
}
