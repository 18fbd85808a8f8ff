//! What differs between systemd's versions, in one table. There are no version numbers elsewhere.
//!
//! Each quirk was observed; the host test named with it fails when it goes away, or comes to another version.

/// Something that some versions of systemd do, or cannot do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quirk {
    /// After SIGKILL of the supervisor `/run/systemd/nspawn/unix-export/NAME` stays mounted and the next start is
    /// refused: "Mount point … exists already".
    StaleUnixExport,
    /// systemd-nspawn's own errors reach the journal as console output: `_TRANSPORT=stdout`, priority 6.
    ErrorsLookLikeConsole,
    /// `GetMachineOSRelease` wants authentication.
    OsReleaseNeedsAuth,
    /// A stop while frozen is refused; before that, systemd thaws the unit by itself.
    StopRefusedWhileFrozen,
    /// A service with `WatchdogSec=` that is frozen is killed, as it does not say that it lives.
    WatchdogKillsFrozen,
}

/// A quirk, the versions that have it (first and last, inclusive), and the host test that watches it.
#[derive(Debug)]
pub struct Entry {
    /// Which.
    pub quirk: Quirk,
    /// The first version seen with it.
    pub first: u32,
    /// The last version seen with it; `u32::MAX` if the newest still has it.
    pub last: u32,
    /// The test in `tests/host/` that notices a change.
    pub watched_by: &'static str,
}

/// All of them. Between two versions that were tried, the bounds lean to the careful side.
pub const TABLE: &[Entry] = &[
    Entry {
        quirk: Quirk::StaleUnixExport,
        first: 253,
        last: 261,
        watched_by: "quirk_stale_unix_export",
    },
    Entry {
        quirk: Quirk::ErrorsLookLikeConsole,
        first: 0,
        last: 256,
        watched_by: "quirk_errors_look_like_console",
    },
    Entry {
        quirk: Quirk::OsReleaseNeedsAuth,
        first: 258,
        last: u32::MAX,
        watched_by: "quirk_os_release_needs_auth",
    },
    Entry {
        quirk: Quirk::StopRefusedWhileFrozen,
        first: 253,
        last: u32::MAX,
        watched_by: "quirk_stop_while_frozen",
    },
    Entry {
        quirk: Quirk::WatchdogKillsFrozen,
        first: 0,
        last: 256,
        watched_by: "quirk_watchdog_kills_frozen",
    },
];

/// Whether systemd `version` has `quirk`.
#[must_use]
pub fn has(version: u32, quirk: Quirk) -> bool {
    TABLE
        .iter()
        .any(|entry| entry.quirk == quirk && (entry.first..=entry.last).contains(&version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_versions_of_the_table_have_it() {
        assert_eq!(
            [252, 257, 262].map(|v| has(v, Quirk::StaleUnixExport)),
            [false, true, false]
        );
        assert_eq!(
            [252, 257, 262].map(|v| has(v, Quirk::OsReleaseNeedsAuth)),
            [false, false, true]
        );
    }
}
