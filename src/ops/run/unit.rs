//! The transient unit of a run: the words of systemd-nspawn, and what makes it a machine's unit.

use std::os::fd::OwnedFd;
use std::path::Path;

use zbus::Fd;

use super::Request;
use crate::limit;
use crate::machine::MachineName;
use crate::nspawn::names::boolean;
use crate::nspawn::settings::Settings;
use crate::nspawn::switches::switches_of;
use crate::nspawn::users::PrivateUsers;
use crate::ops::Places;
use crate::sys::bus::systemd1::{Property, Setting, UnitState, command, exec_start};
use crate::sys::staging::{REBOOT, hold_words, vanish_words};
use crate::unit::console;

/// What runs a machine.
const NSPAWN: &str = "/usr/bin/systemd-nspawn";

/// What keeps the machine up while other processes enter it: a shell that reads until its input ends.
const IDLE: [&str; 3] = ["/bin/sh", "-c", "read -r line || :"];

/// What a program is told at its start: who enters the machine is told otherwise.
const OF_PAYLOADS: [&str; 6] = [
    "--user=",
    "--chdir=",
    "--setenv=",
    "--kill-signal=",
    "--notify-ready=",
    "--link-journal=",
];

/// The words of systemd-nspawn: what the template unit's say, but that the settings are among them and no file is read. An
/// image of its own it finds by the name, and heeds that it is read-only.
pub(super) fn command_line(request: &Request, settings: &Settings) -> Vec<String> {
    let mut words = ["systemd-nspawn", "--quiet", "--keep-unit", "--settings=no"]
        .map(str::to_owned)
        .to_vec();
    let (mode, payload) = if request.boots {
        started(settings)
    } else {
        let mode = vec!["--as-pid2".to_owned(), "--console=pipe".to_owned()];
        (mode, IDLE.map(str::to_owned).to_vec())
    };
    words.extend(mode);
    // What is gone at the end has no journal to be read afterwards.
    if !request.boots || request.copy.is_some() {
        words.push("--link-journal=no".to_owned());
    } else if settings.value("Exec", "LinkJournal").is_none() {
        words.push("--link-journal=try-guest".to_owned());
    }
    words.push(format!("--machine={}", request.name));
    words.extend(
        request
            .copy
            .iter()
            .map(|copy| format!("--directory={}", copy.display())),
    );
    let is_left_out = |word: &String| {
        let is_said = request.boots && (request.copy.is_none() || !word.starts_with("--link-journal="));
        !is_said && OF_PAYLOADS.iter().any(|switch| word.starts_with(switch))
    };
    let users = request.view.as_ref().and_then(|view| view.users);
    let is_others = |word: &String| users.is_some() && PrivateUsers::is_switch(word);
    let switches = switches_of(settings).into_iter();
    words.extend(switches.filter(|word| !is_left_out(word) && !is_others(word)));
    words.extend(users.into_iter().flat_map(PrivateUsers::switches_for));
    if !payload.is_empty() {
        words.push("--".to_owned());
    }
    words.extend(payload);
    words
}

/// What its own unit starts: its init, or the program that the settings say instead.
fn started(settings: &Settings) -> (Vec<String>, Vec<String>) {
    let is = |key: &str| settings.value("Exec", key).and_then(boolean);
    let parameters = settings.values("Exec", "Parameters").iter();
    let mode = match (is("Boot"), is("ProcessTwo")) {
        (_, Some(true)) => vec!["--as-pid2".to_owned()],
        (Some(false), _) => Vec::new(),
        _ => vec!["--boot".to_owned()],
    };
    (mode, parameters.map(|value| value.value.clone()).collect())
}

/// What systemd executes: systemd-nspawn, by way of the helper where that mounts something or holds a lock.
fn program(request: &Request, words: Vec<String>, places: &Places) -> (String, Vec<String>) {
    let (program, words) = match &request.view {
        None => (NSPAWN.to_owned(), words),
        Some(view) => (
            view.mounter.display().to_string(),
            view.overlay.words(&places.image_locks(), NSPAWN, words),
        ),
    };
    match &request.vanishes {
        None => (program, words),
        Some(vanishes) => (
            vanishes.helper.display().to_string(),
            hold_words(&vanishes.papers, Path::new(&program), words),
        ),
    }
}

/// What the machine's own unit has: the template's device policy of this systemd, the slice, limits, who may be talked to.
/// Not what belongs to its start: commands before and after it, credentials.
pub(super) fn inherited(machine: &UnitState) -> Vec<Property> {
    let names = [
        "Slice",
        "DevicePolicy",
        "DeviceAllow",
        "TasksMax",
        "DelegateSubgroup",
        "IPAddressAllow",
        "IPAddressDeny",
        "Nice",
        "OOMScoreAdjust",
        "ManagedOOMSwap",
        "ManagedOOMMemoryPressure",
    ];
    let limits = limit::KEYS.iter().filter(|key| key.is_property());
    let is_set = |name: &str| match machine.detail.setting(name) {
        // Nothing is protected unless somebody says so; saying 0 would hide what the slice says.
        Some(Setting::Number(0)) => name.ends_with("Max") || name.ends_with("High"),
        Some(Setting::Number(number)) => number != u64::MAX,
        Some(Setting::Bytes(bytes)) => !bytes.is_empty(),
        Some(Setting::Pairs(pairs)) => !pairs.is_empty(),
        setting => setting.is_some(),
    };
    let limits = limits.map(limit::Key::property).filter(|name| is_set(name));
    let mut properties: Vec<Property> = names
        .into_iter()
        .chain(limits)
        .filter_map(|name| Some((name.to_owned(), machine.detail.get(name)?)))
        .collect();
    properties.sort_by(|a, b| a.0.cmp(&b.0));
    properties.dedup_by(|a, b| a.0 == b.0);
    properties
}

/// What makes it a machine's unit, as systemd-nspawn@.service is; nothing in its command line is expanded.
pub(super) fn of_unit(
    request: &Request,
    words: Vec<String>,
    pipe: Option<OwnedFd>,
    systemd: u32,
    places: &Places,
) -> Vec<Property> {
    let description = format!("Container {}, by machinist run", request.name);
    let (program, words) = program(request, words, places);
    let mut properties: Vec<Property> = vec![
        ("Description".to_owned(), description.into()),
        ("Type".to_owned(), "notify".into()),
        ("KillMode".to_owned(), "mixed".into()),
        ("Delegate".to_owned(), true.into()),
        // It is forgotten at its end, and not before we have seen why it failed.
        ("CollectMode".to_owned(), "inactive-or-failed".into()),
        ("AddRef".to_owned(), true.into()),
        exec_start(&program, &words, systemd),
        // What systemd-nspawn has to say. Nothing of the host's that the machine could change.
        ("StandardOutput".to_owned(), "journal".into()),
        ("StandardError".to_owned(), "journal".into()),
        // Also where it is started by way of us.
        ("SyslogIdentifier".to_owned(), "systemd-nspawn".into()),
    ];
    properties.extend(pipe.map(|pipe| ("StandardInputFileDescriptor".to_owned(), Fd::from(pipe).into())));
    // At the host's shutdown it goes before what it lies on.
    let image = vec![places.image(&request.like).display().to_string()];
    properties.push(("RequiresMountsFor".to_owned(), image.into()));
    if request.boots {
        // A reboot is a new start of the unit, and no failure.
        for name in ["RestartForceExitStatus", "SuccessExitStatus"] {
            let statuses = (vec![REBOOT], Vec::<i32>::new());
            properties.push((name.to_owned(), statuses.into()));
        }
    }
    if let Some(vanishes) = &request.vanishes {
        let words = vanish_words(&vanishes.directory, &vanishes.papers, &places.image_locks());
        let helper = vanishes.helper.display().to_string();
        properties.push(("ExecStopPost".to_owned(), command(&helper, &words)));
    }
    properties.extend(request.at_most.map(|span| ("RuntimeMaxUSec".to_owned(), span.into())));
    properties
}

/// What gives a machine a console that can be typed into.
pub(super) fn with_console(name: &MachineName) -> Vec<Property> {
    let terminal = console::terminal(name).display().to_string();
    let keeper = || vec![console::unit(name)];
    vec![
        ("StandardInputFile".to_owned(), terminal.clone().into()),
        ("StandardOutputFile".to_owned(), terminal.into()),
        ("Wants".to_owned(), keeper().into()),
        ("After".to_owned(), keeper().into()),
        // The other way round systemd would remember this unit until the keeper has stopped, and refuse another of the name.
        ("PropagatesStopTo".to_owned(), keeper().into()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nspawn::document::Document;

    fn words(boots: bool, copy: bool, text: &str) -> String {
        let request = Request {
            name: "try".parse().unwrap(),
            like: "web".parse().unwrap(),
            copy: copy.then(|| "/copy".into()),
            view: None,
            vanishes: None,
            boots,
            edits: Vec::new(),
            limits: Vec::new(),
            at_most: None,
        };
        let settings = Settings::effective(&Document::parse(text.as_bytes()), 257, true);
        let words = command_line(&request, &settings).join(" ");
        let words = words.strip_prefix("systemd-nspawn --quiet --keep-unit --settings=no ");
        words.unwrap().to_owned()
    }

    #[test]
    fn it_boots_as_its_own_unit_does() {
        let text = "[Exec]\nKillSignal=SIGUSR2\nLinkJournal=host\nParameters=a b\n";
        assert_eq!(
            words(true, false, ""),
            "--boot --link-journal=try-guest --machine=try -U --network-veth"
        );
        assert_eq!(
            words(true, false, &format!("{text}Boot=yes\n")),
            "--boot --machine=try -U --network-veth --kill-signal=SIGUSR2 --link-journal=host -- a b"
        );
        assert_eq!(
            words(true, false, &format!("{text}Boot=no\n")),
            "--machine=try -U --network-veth --kill-signal=SIGUSR2 --link-journal=host -- a b"
        );
        assert!(words(true, false, &format!("{text}ProcessTwo=yes\n")).starts_with("--as-pid2 --machine=try "));
        // A copy leaves nothing on the host.
        assert_eq!(
            words(true, true, "[Exec]\nKillSignal=SIGUSR2\nLinkJournal=host\n"),
            "--boot --link-journal=no --machine=try --directory=/copy -U --network-veth --kill-signal=SIGUSR2"
        );
    }

    #[test]
    fn for_a_command_it_waits() {
        assert_eq!(
            words(
                false,
                false,
                "[Exec]\nBoot=yes\nUser=me\nKillSignal=SIGUSR2\nCapability=CAP_SYS_TIME\n"
            ),
            "--as-pid2 --console=pipe --link-journal=no --machine=try -U --network-veth --capability=CAP_SYS_TIME -- /bin/sh \
             -c read -r line || :"
        );
    }
}
