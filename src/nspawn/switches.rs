//! The command line of systemd-nspawn(1): its switches, and which keys of a .nspawn file say the same.

use std::collections::HashSet;

use super::merge::Group;
use super::names::boolean;
use super::schema::{self, find};
use super::settings::Settings;

/// Whether a switch takes an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Argument {
    No,
    Required,
    /// Only behind `=`.
    Optional,
}

/// What a switch says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    /// Its argument is the value of that key; "yes" stands for none.
    Key(&'static str, &'static str),
    /// The same with several values, separated by commas.
    Commas(&'static str, &'static str),
    /// These keys and values.
    Is(&'static [(&'static str, &'static str, &'static str)]),
    /// `NAME=VALUE` of a resource limit.
    Rlimit,
    /// What .nspawn files have no key for.
    Other,
    /// The same, and what stands behind the `:` is nobody's business.
    Secret,
}

use Argument::{No, Optional, Required};
use Meaning::{Commas, Is, Key, Other, Rlimit, Secret};

type Switch = (&'static str, Option<char>, Argument, Meaning);

/// Every switch of 252, 257 and 262.
#[rustfmt::skip]
const SWITCHES: &[Switch] = &[
    ("help", Some('h'), No, Other),
    ("version", None, No, Other),
    ("quiet", Some('q'), No, Other),
    ("no-pager", None, No, Other),
    ("no-ask-password", None, No, Other),
    ("system", None, No, Other),
    ("cleanup", None, No, Other),
    ("settings", None, Required, Other),
    ("directory", Some('D'), Required, Other),
    ("template", None, Required, Other),
    ("ephemeral", Some('x'), No, Key("Exec", "Ephemeral")),
    ("image", Some('i'), Required, Other),
    ("image-policy", None, Required, Other),
    ("mstack", None, Required, Other),
    ("oci-bundle", None, Required, Other),
    ("read-only", None, No, Key("Files", "ReadOnly")),
    ("volatile", None, Optional, Key("Files", "Volatile")),
    ("root-hash", None, Required, Other),
    ("root-hash-sig", None, Required, Other),
    ("verity-data", None, Required, Other),
    ("pivot-root", None, Required, Key("Exec", "PivotRoot")),
    ("as-pid2", Some('a'), No, Key("Exec", "ProcessTwo")),
    ("boot", Some('b'), No, Key("Exec", "Boot")),
    ("chdir", None, Required, Key("Exec", "WorkingDirectory")),
    ("setenv", Some('E'), Required, Key("Exec", "Environment")),
    ("user", Some('u'), Required, Key("Exec", "User")),
    ("uid", None, Required, Key("Exec", "User")),
    ("kill-signal", None, Required, Key("Exec", "KillSignal")),
    ("notify-ready", None, Required, Key("Exec", "NotifyReady")),
    ("suppress-sync", None, Required, Key("Exec", "SuppressSync")),
    ("machine", Some('M'), Required, Other),
    ("hostname", None, Required, Key("Exec", "Hostname")),
    ("uuid", None, Required, Key("Exec", "MachineID")),
    ("slice", Some('S'), Required, Other),
    ("property", None, Required, Other),
    ("register", None, Required, Other),
    ("keep-unit", None, No, Other),
    ("share-system", None, No, Other),
    ("private-users", None, Optional, Key("Exec", "PrivateUsers")),
    ("private-users-chown", None, No, Is(&[("Files", "PrivateUsersOwnership", "chown")])),
    ("private-users-ownership", None, Required, Key("Files", "PrivateUsersOwnership")),
    ("private-users-delegate", None, Required, Key("Exec", "PrivateUsersDelegate")),
    ("", Some('U'), No, Is(&[("Exec", "PrivateUsers", "pick"), ("Files", "PrivateUsersOwnership", "auto")])),
    ("private-network", None, No, Key("Network", "Private")),
    ("network-interface", None, Required, Key("Network", "Interface")),
    ("network-macvlan", None, Required, Key("Network", "MACVLAN")),
    ("network-ipvlan", None, Required, Key("Network", "IPVLAN")),
    ("network-veth", Some('n'), No, Key("Network", "VirtualEthernet")),
    ("network-veth-extra", None, Required, Key("Network", "VirtualEthernetExtra")),
    ("network-bridge", None, Required, Key("Network", "Bridge")),
    ("network-zone", None, Required, Key("Network", "Zone")),
    ("network-namespace-path", None, Required, Key("Network", "NamespacePath")),
    ("port", Some('p'), Required, Key("Network", "Port")),
    ("capability", None, Required, Commas("Exec", "Capability")),
    ("drop-capability", None, Required, Commas("Exec", "DropCapability")),
    ("ambient-capability", None, Required, Commas("Exec", "AmbientCapability")),
    ("no-new-privileges", None, Required, Key("Exec", "NoNewPrivileges")),
    ("system-call-filter", None, Required, Key("Exec", "SystemCallFilter")),
    ("restrict-address-families", None, Required, Key("Exec", "RestrictAddressFamilies")),
    ("selinux-context", Some('Z'), Required, Other),
    ("selinux-apifs-context", Some('L'), Required, Other),
    ("rlimit", None, Required, Rlimit),
    ("oom-score-adjust", None, Required, Key("Exec", "OOMScoreAdjust")),
    ("cpu-affinity", None, Required, Key("Exec", "CPUAffinity")),
    ("personality", None, Required, Key("Exec", "Personality")),
    ("resolv-conf", None, Required, Key("Exec", "ResolvConf")),
    ("timezone", None, Required, Key("Exec", "Timezone")),
    ("link-journal", None, Required, Key("Exec", "LinkJournal")),
    ("", Some('j'), No, Is(&[("Exec", "LinkJournal", "try-guest")])),
    ("forward-journal", None, Required, Other),
    ("forward-journal-max-use", None, Required, Other),
    ("forward-journal-keep-free", None, Required, Other),
    ("forward-journal-max-file-size", None, Required, Other),
    ("forward-journal-max-files", None, Required, Other),
    ("bind", None, Required, Key("Files", "Bind")),
    ("bind-ro", None, Required, Key("Files", "BindReadOnly")),
    ("inaccessible", None, Required, Key("Files", "Inaccessible")),
    ("tmpfs", None, Required, Key("Files", "TemporaryFileSystem")),
    ("overlay", None, Required, Key("Files", "Overlay")),
    ("overlay-ro", None, Required, Key("Files", "OverlayReadOnly")),
    ("bind-user", None, Required, Key("Files", "BindUser")),
    ("bind-user-shell", None, Required, Key("Files", "BindUserShell")),
    ("bind-user-group", None, Required, Other),
    ("console", None, Required, Other),
    ("pipe", Some('P'), No, Other),
    ("background", None, Required, Other),
    ("set-credential", None, Required, Secret),
    ("load-credential", None, Required, Other),
];

/// How systemd-nspawn goes about .nspawn files: `--settings=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obey {
    /// They are not read.
    No,
    /// The command line wins; a file beside the image is not trusted.
    Yes,
    /// The file wins; one beside the image is not trusted. The template unit has this.
    Override,
    /// The command line wins; every file is trusted.
    Trusted,
}

/// What a command line of systemd-nspawn says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandLine {
    /// `--settings=`
    pub obey: Obey,
    /// `--machine=`
    pub machine: Option<String>,
    /// `--directory=` or `--image=`
    pub root: Option<String>,
    /// Section, key and value of what a .nspawn file could say, too.
    pub settings: Vec<(&'static str, String, String)>,
    /// The other switches, without dashes, and their arguments.
    pub others: Vec<(String, Option<String>)>,
}

impl CommandLine {
    /// Reads the words of a command line, the program first; `None` if that is not systemd-nspawn.
    #[must_use]
    pub fn parse(words: &[String]) -> Option<Self> {
        let (program, words) = words.split_first()?;
        if program.rsplit('/').next() != Some("systemd-nspawn") {
            return None;
        }
        let mut line = Self {
            obey: Obey::Yes,
            machine: None,
            root: None,
            settings: Vec::new(),
            others: Vec::new(),
        };
        let mut words = words.iter().map(String::as_str);
        while let Some(word) = words.next() {
            if word == "--" {
                line.parameters(words);
                break;
            }
            if let Some(long) = word.strip_prefix("--") {
                let (name, value) = long.split_once('=').map_or((long, None), |(n, v)| (n, Some(v)));
                match by_name(name) {
                    Some(switch) => {
                        let value = match switch.2 {
                            Required => value.or_else(|| words.next()),
                            _ => value,
                        };
                        line.take(switch, switch.0, value);
                    }
                    None => line.others.push((name.to_owned(), value.map(str::to_owned))),
                }
            } else if let Some(letters) = word.strip_prefix('-').filter(|letters| !letters.is_empty()) {
                for (at, letter) in letters.char_indices() {
                    let rest = &letters[at + letter.len_utf8()..];
                    match SWITCHES.iter().find(|switch| switch.1 == Some(letter)) {
                        Some(switch) if switch.2 == Required => {
                            let value = if rest.is_empty() { words.next() } else { Some(rest) };
                            line.take(switch, switch.0, value);
                            break;
                        }
                        Some(switch) => line.take(switch, switch.0, None),
                        None => line.others.push((letter.to_string(), None)),
                    }
                }
            } else {
                line.parameters(std::iter::once(word).chain(words));
                break;
            }
        }
        Some(line)
    }

    fn parameters<'a>(&mut self, words: impl Iterator<Item = &'a str>) {
        self.settings
            .extend(words.map(|word| ("Exec", "Parameters".to_owned(), word.to_owned())));
    }

    fn take(&mut self, switch: &Switch, name: &str, value: Option<&str>) {
        let text = value.unwrap_or("yes");
        match switch.3 {
            Key(section, key) => self.settings.push((section, key.to_owned(), text.to_owned())),
            Commas(section, key) => {
                let words = text.split(',').map(|word| (section, key.to_owned(), word.to_owned()));
                self.settings.extend(words);
            }
            Is(all) => {
                let owned = |(section, key, value): &(&'static str, &str, &str)| {
                    (*section, (*key).to_owned(), (*value).to_owned())
                };
                self.settings.extend(all.iter().map(owned));
            }
            Rlimit => {
                let (limit, value) = text.split_once('=').unwrap_or((text, ""));
                let limit = limit.strip_prefix("RLIMIT_").unwrap_or(limit);
                self.settings.push(("Exec", format!("Limit{limit}"), value.to_owned()));
            }
            Secret => {
                let id = text.split(':').next().unwrap_or_default();
                self.others.push((name.to_owned(), Some(format!("{id}:…"))));
            }
            Other => {
                let owned = value.map(str::to_owned);
                match (name, text) {
                    ("settings", "override") => self.obey = Obey::Override,
                    ("settings", "trusted") => self.obey = Obey::Trusted,
                    ("settings", _) => {
                        let no = boolean(text) == Some(false);
                        self.obey = if no { Obey::No } else { Obey::Yes };
                    }
                    ("oci-bundle", _) => self.obey = Obey::No,
                    ("machine", _) => self.machine.clone_from(&owned),
                    ("directory" | "image", _) => self.root.clone_from(&owned),
                    _ => {}
                }
                self.others.push((name.to_owned(), owned));
            }
        }
    }
}

/// What the template unit says that a file does not: private users, a link of its own.
const DEFAULTS: [(&str, &str, &str); 2] = [
    ("-U", "Exec", "PrivateUsers"),
    ("--network-veth", "Network", "VirtualEthernet"),
];

/// The switches that say what these settings do to a systemd-nspawn that reads no file, and what the template unit says where
/// they say nothing. Without those of the start mode, and `Ephemeral=`: that is said by who starts it.
#[must_use]
pub fn switches_of(settings: &Settings) -> Vec<String> {
    let groups: HashSet<Group> = settings
        .settings()
        .iter()
        .map(|setting| Group::of(setting.key))
        .collect();
    let defaults = DEFAULTS
        .iter()
        .filter(|(_, section, key)| find(section, key).is_some_and(|key| !groups.contains(&Group::of(key))))
        .map(|(switch, ..)| (*switch).to_owned());
    let said = settings
        .settings()
        .iter()
        .filter(|setting| Group::of(setting.key) != Group::StartMode && setting.key.name != "Ephemeral")
        .flat_map(|setting| {
            let values = setting.values.iter().map(|value| value.value.as_str());
            // Lines of a file are united; of the switches the last one counts.
            let values: Vec<String> = if setting.key.name == "CPUAffinity" {
                vec![values.collect::<Vec<_>>().join(",")]
            } else {
                values.map(str::to_owned).collect()
            };
            let switches = values.into_iter().filter_map(|value| switch_of(setting.key, &value));
            switches.collect::<Vec<_>>()
        });
    defaults.chain(said).collect()
}

/// The switch that says a value of a key; `None` if it is what systemd-nspawn does without.
fn switch_of(key: &schema::Key, value: &str) -> Option<String> {
    if let Some(limit) = key.name.strip_prefix("Limit") {
        return Some(format!("--rlimit={limit}={value}"));
    }
    let is_it = |switch: &&Switch| {
        let names = !switch.0.is_empty();
        names
            && matches!(switch.3, Key(section, name) | Commas(section, name) if section == key.section && name == key.name)
    };
    match SWITCHES.iter().find(is_it) {
        Some((name, _, No, _)) => (boolean(value) == Some(true)).then(|| format!("--{name}")),
        Some((name, ..)) => Some(format!("--{name}={value}")),
        None if key.name == "PrivateUsersChown" => {
            (boolean(value) == Some(true)).then(|| "--private-users-ownership=chown".to_owned())
        }
        None => None,
    }
}

/// A switch by its name, or by the beginning of it where that is unique, see getopt_long(3).
fn by_name(name: &str) -> Option<&'static Switch> {
    let named = |switch: &&Switch| !switch.0.is_empty();
    if let Some(exact) = SWITCHES.iter().filter(named).find(|switch| switch.0 == name) {
        return Some(exact);
    }
    let mut all = SWITCHES
        .iter()
        .filter(named)
        .filter(|switch| switch.0.starts_with(name));
    all.next().filter(|_| all.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> CommandLine {
        let words: Vec<String> = text.split(' ').map(str::to_owned).collect();
        CommandLine::parse(&words).unwrap()
    }

    fn settings(text: &str) -> Vec<String> {
        let all = parse(text).settings;
        all.iter().map(|(s, k, v)| format!("{s}.{k}={v}")).collect()
    }

    #[test]
    fn the_template_is_understood() {
        let text = "systemd-nspawn --quiet --keep-unit --boot --link-journal=try-guest --network-veth -U --settings=override --machine=web";
        assert_eq!(
            settings(text),
            [
                "Exec.Boot=yes",
                "Exec.LinkJournal=try-guest",
                "Network.VirtualEthernet=yes",
                "Exec.PrivateUsers=pick",
                "Files.PrivateUsersOwnership=auto",
            ]
        );
        let line = parse(text);
        assert_eq!((line.obey, line.machine.as_deref()), (Obey::Override, Some("web")));
        let others: Vec<&str> = line.others.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(others, ["quiet", "keep-unit", "settings", "machine"]);
    }

    #[test]
    fn words_are_read_as_getopt_reads_them() {
        assert_eq!(
            settings("/usr/bin/systemd-nspawn -bqD/srv/x -E A=1 --bind-ro /a --rlimit=RLIMIT_NOFILE=5 --priv -- -x"),
            [
                "Exec.Boot=yes",
                "Exec.Environment=A=1",
                "Files.BindReadOnly=/a",
                "Exec.LimitNOFILE=5",
                "Exec.Parameters=-x"
            ]
        );
        assert_eq!(
            settings("systemd-nspawn --volat -M a sh -x"),
            ["Files.Volatile=yes", "Exec.Parameters=sh", "Exec.Parameters=-x"]
        );
        assert_eq!(
            parse("systemd-nspawn --set-credential=passwd:secret").others,
            [("set-credential".to_owned(), Some("passwd:…".to_owned()))]
        );
        assert_eq!(parse("systemd-nspawn -D /srv/x").root.as_deref(), Some("/srv/x"));
        assert_eq!(parse("systemd-nspawn --settings=0").obey, Obey::No);
        assert_eq!(parse("systemd-nspawn -b").obey, Obey::Yes);
        assert_eq!(CommandLine::parse(&["bash".to_owned()]), None);
        assert_eq!(
            settings("systemd-nspawn --capability=CAP_A,CAP_B"),
            ["Exec.Capability=CAP_A", "Exec.Capability=CAP_B"]
        );
    }

    #[test]
    fn settings_become_switches_that_say_the_same() {
        let said = |text: &str| {
            let document = super::super::document::Document::parse(text.as_bytes());
            switches_of(&Settings::effective(&document, 262, true))
        };
        assert_eq!(said(""), ["-U", "--network-veth"]);
        assert_eq!(
            said("[Exec]\nBoot=yes\nEphemeral=yes\nPrivateUsers=no\n[Network]\nPrivate=no\n"),
            ["--private-users=no"]
        );
        let text = "[Exec]\nEnvironment=A=1 B=\nCapability=CAP_NET_ADMIN\nLimitNOFILE=5:6\nCPUAffinity=0-1\nCPUAffinity=3\nSystemCallFilter=@mount ~bpf\n\
                    [Files]\nPrivateUsersChown=yes\nBind=/a:/b:idmap\nReadOnly=yes\n[Network]\nInterface=a:b c\nPort=tcp:80:8080\n";
        let words = said(text);
        assert_eq!(
            words,
            [
                "--setenv=A=1",
                "--setenv=B=",
                "--capability=CAP_NET_ADMIN",
                "--system-call-filter=@mount ~bpf",
                "--rlimit=NOFILE=5:6",
                "--cpu-affinity=0-1,3",
                "--read-only",
                "--bind=/a:/b:idmap",
                "--private-users-ownership=chown",
                "--network-interface=a:b",
                "--network-interface=c",
                "--port=tcp:80:8080",
            ]
        );
        let line = CommandLine::parse(&[&["systemd-nspawn".to_owned()], &words[..]].concat()).unwrap();
        assert!(line.others.is_empty(), "{line:?}");
        assert_eq!(line.settings.len(), words.len());
    }

    #[test]
    fn every_key_has_a_switch_or_is_said_otherwise() {
        let unsaid = ["Boot", "ProcessTwo", "Parameters", "Ephemeral"];
        for key in schema::KEYS.iter().filter(|key| !unsaid.contains(&key.name)) {
            assert!(switch_of(key, "yes").is_some(), "{}", key.name);
        }
    }

    #[test]
    fn every_switch_says_what_the_schema_knows() {
        for switch in SWITCHES {
            let known = match switch.3 {
                Key(section, key) | Commas(section, key) => super::super::schema::find(section, key).is_some(),
                Is(all) => all.iter().all(|(s, k, _)| super::super::schema::find(s, k).is_some()),
                _ => true,
            };
            assert!(known, "{switch:?}");
        }
    }
}
