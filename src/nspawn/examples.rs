//! The files in nspawn-examples/ mean something, whole, to every systemd that they are for.

use super::assignment::parse_assignment;
use super::document::Document;
use super::schema::{NEWEST_SYSTEMD, OLDEST_SYSTEMD};
use super::settings::Settings;

macro_rules! examples {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_bytes!(concat!("../../nspawn-examples/", $name, ".nspawn")).as_slice())),*]
    };
}

/// The systemd that an example says it needs: `# Minimum systemd: N`.
fn minimum_version(text: &str) -> u32 {
    let stated = text.lines().find_map(|line| line.strip_prefix("# Minimum systemd: "));
    stated.map_or(OLDEST_SYSTEMD, |version| version.parse().expect("a version number"))
}

#[test]
fn every_example_is_understood_whole() {
    let examples = examples![
        "bridge",
        "busybox",
        "ci-runner",
        "containers-inside",
        "desktop-app",
        "gpu",
        "host-network",
        "macvlan",
        "managed-users",
        "nested-nspawn",
        "own-uid-range",
        "private-service",
        "read-only-appliance",
        "zone",
    ];
    for (name, bytes) in examples {
        let minimum = minimum_version(std::str::from_utf8(bytes).unwrap());
        let document = Document::parse(bytes);
        for version in OLDEST_SYSTEMD..=NEWEST_SYSTEMD {
            let settings = Settings::effective(&document, version, true);
            let understood = settings.ignored().is_empty() && !settings.settings().is_empty();
            assert_eq!(
                understood,
                version >= minimum,
                "{name} on systemd {version}: {:?}",
                settings.ignored()
            );
        }
        for entry in document.entries() {
            let text = format!("{}.{}={}", entry.section.unwrap(), entry.key, entry.value);
            assert!(parse_assignment(&text).is_ok(), "{name}: {text}");
        }
        assert!(bytes.starts_with(b"# "), "{name} does not say what it is for");
    }
}
