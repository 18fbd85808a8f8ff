//! What an image of a machine says that it starts: the way back from what `sources::oci` makes of images.

use serde_json::{Map, Value, json};

use super::settings::{Member, NSPAWN};
use crate::machine::manifest::SETTINGS;
use crate::nspawn::document::Document;
use crate::nspawn::names::boolean;
use crate::nspawn::schema::NEWEST_SYSTEMD;
use crate::nspawn::settings::Settings;
use crate::sources::guest::{Init, detect_init};
use crate::sources::oci::{POWER_OFF, SHIELD, architecture};
use crate::sys::files::Root;
use crate::sys::processor::Program;

/// What is looked at to learn for what processor a tree is.
const PROGRAMS: [&str; 6] = [
    "sbin/init",
    "bin/sh",
    "usr/bin/env",
    "bin/busybox",
    "usr/lib/systemd/systemd",
    "bin/true",
];
/// What a booting machine is told to power off by, where its settings do not say: see systemd-nspawn(1).
const BOOT_STOP: &str = "SIGRTMIN+3";

/// The configuration of the image, but for its layer: see config.md of the image specification. No time is in it.
pub(super) fn config(root: &Root, members: &[Member]) -> Value {
    let path = format!("{SETTINGS}{NSPAWN}");
    let document = members.iter().find(|(found, _)| *found == path);
    let document = Document::parse(document.map_or(b"", |(_, bytes)| bytes));
    let settings = Settings::effective(&document, NEWEST_SYSTEMD, true);
    let processor = PROGRAMS.iter().find_map(|program| {
        let path = root.resolve(program).ok()?;
        match Program::of(root.open_file(path).ok()?).ok()? {
            Program::For(processor) => Some(processor.to_string()),
            Program::Script | Program::Other => None,
        }
    });
    let (architecture, variant) = architecture(processor.as_deref());
    let has_init = !matches!(detect_init(root), Ok(Init::None) | Err(_));
    let mut config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": execution(&settings, has_init),
        "history": [{"created_by": "machinist export"}],
    });
    if let Some(variant) = variant {
        config["variant"] = variant.into();
    }
    config
}

/// What is started, by what user and where.
fn execution(settings: &Settings, has_init: bool) -> Value {
    let mut said = Map::new();
    let mut put = |key: &str, value: Value| {
        said.insert(key.to_owned(), value);
    };
    let one = |key: &str| settings.value("Exec", key);
    let list = |key: &str| -> Vec<String> {
        let values = settings.values("Exec", key);
        values.iter().map(|found| found.value.clone()).collect()
    };
    let is_yes = |key: &str| one(key).and_then(boolean);
    let is_second = is_yes("ProcessTwo") == Some(true);
    let boots = !is_second && is_yes("Boot") != Some(false) && has_init;
    let mut words = list("Parameters");
    let signal = one("KillSignal").map(str::to_owned);
    if boots {
        put("Entrypoint", json!(["/sbin/init"]));
        if !words.is_empty() {
            put("Cmd", words.into());
        }
        put("StopSignal", signal.unwrap_or_else(|| BOOT_STOP.to_owned()).into());
    } else {
        if words.starts_with(&SHIELD.map(str::to_owned)) {
            words.drain(..SHIELD.len());
        }
        if words.is_empty() {
            // As systemd-nspawn does.
            put("Cmd", json!(["/bin/sh"]));
        } else {
            put("Entrypoint", words.into());
        }
        // What systemd-nspawn's own PID 1 is told, its program is told as SIGTERM.
        if let Some(signal) = signal.filter(|signal| !is_second && signal != POWER_OFF) {
            put("StopSignal", signal.into());
        }
    }
    let variables = list("Environment");
    if !variables.is_empty() {
        put("Env", variables.into());
    }
    for (key, name) in [("User", "User"), ("WorkingDirectory", "WorkingDir")] {
        if let Some(value) = one(key).filter(|value| !value.is_empty()) {
            put(name, value.into());
        }
    }
    let ports = settings.values("Network", "Port").iter();
    let ports: Map<String, Value> = ports.map(|found| (port(&found.value), json!({}))).collect();
    if !ports.is_empty() {
        put("ExposedPorts", ports.into());
    }
    said.into()
}

/// `80/tcp` of `tcp:8080:80`: where the program listens.
fn port(value: &str) -> String {
    let (protocol, ports) = match value.split_once(':') {
        Some((protocol @ ("tcp" | "udp"), ports)) => (protocol, ports),
        _ => ("tcp", value),
    };
    let inside = ports.rsplit(':').next().unwrap_or(ports);
    format!("{inside}/{protocol}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str, has_init: bool) -> Value {
        let settings = Settings::effective(&Document::parse(text.as_bytes()), NEWEST_SYSTEMD, true);
        execution(&settings, has_init)
    }

    #[test]
    fn a_machine_that_boots_starts_its_init() {
        assert_eq!(
            of("", true),
            json!({"Entrypoint": ["/sbin/init"], "StopSignal": "SIGRTMIN+3"})
        );
        let text = "[Exec]\nBoot=yes\nKillSignal=SIGUSR2\nParameters=a 'b c'\n[Network]\nPort=tcp:8080:80\nPort=53\nPort=udp:5:6\n";
        assert_eq!(
            of(text, true),
            json!({
                "Entrypoint": ["/sbin/init"], "Cmd": ["a", "b c"], "StopSignal": "SIGUSR2",
                "ExposedPorts": {"80/tcp": {}, "53/tcp": {}, "6/udp": {}},
            })
        );
        assert_eq!(of("", false), json!({"Cmd": ["/bin/sh"]}));
    }

    #[test]
    fn a_program_is_what_the_image_had() {
        let text = r#"[Exec]
ProcessTwo=yes
KillSignal=SIGRTMIN+4
Parameters=/bin/sh -c "trap '' HUP; exec "'"$@"' sh /usr/bin/app "a b" "it's"
Environment="GREETING=hi there"
User=www
WorkingDirectory=/srv/app
"#;
        let image = json!({
            "Entrypoint": ["/usr/bin/app", "a b", "it's"], "Env": ["GREETING=hi there"], "User": "www",
            "WorkingDir": "/srv/app",
        });
        assert_eq!(of(text, true), image);
        let text = "[Exec]\nBoot=no\nKillSignal=SIGQUIT\nParameters=/app\n";
        assert_eq!(of(text, true), json!({"Entrypoint": ["/app"], "StopSignal": "SIGQUIT"}));
    }
}
