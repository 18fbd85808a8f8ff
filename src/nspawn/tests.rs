//! Properties of documents and edits.

use proptest::prelude::*;

use super::assignment::parse_assignment;
use super::document::Document;
use super::edit::{Edit, EditError};
use super::schema::{KEYS, Key, NEWEST_SYSTEMD, OLDEST_SYSTEMD};
use super::settings::Settings;

/// A value that systemd takes, for every type of key.
fn good_values(key: &Key) -> Vec<&'static str> {
    use super::value::{Limit, ValueType as V};
    match key.value {
        V::AddressFamilies => vec!["AF_INET AF_INET6", "~AF_PACKET", "none"],
        V::Bind => vec!["/srv", "/srv:/data:idmap", "+/a:/b", ":/scratch"],
        V::Boolean | V::Tristate => vec!["yes", "no", "off"],
        V::Capabilities => vec!["CAP_NET_ADMIN", "CAP_CHOWN cap_kill", "all"],
        V::CpuSet => vec!["0-3", "1,2", "5"],
        V::Environment => vec!["A=b", "A=b 'C=d e'"],
        V::Hostname => vec!["web", "a.b-c"],
        V::Id128 => vec!["0123456789abcdef0123456789abcdef"],
        V::Inaccessible | V::Path => vec!["/srv/a", "/b"],
        V::Interface => vec!["br0", "br1"],
        V::InterfacePairs => vec!["eth1", "eth1 eth2:lan"],
        V::LinkJournal => vec!["no", "try-guest"],
        V::OomScoreAdjust => vec!["-500", "10"],
        V::Overlay => vec!["/a:/b", "/a:/b:/c", "/a::/c"],
        V::Ownership => vec!["map", "chown"],
        V::Personality => vec![],
        V::PivotRoot => vec!["/new:/old", "/new"],
        V::Port => vec!["80", "tcp:80", "udp:53:5353", "tcp:8080:80"],
        V::PrivateUsers => vec!["pick", "524288:65536", "no"],
        V::ResolvConf => vec!["copy-host", "off"],
        V::Rlimit(Limit::Nice) => vec!["+5", "10:20"],
        V::Rlimit(_) => vec!["100", "10:20", "infinity"],
        V::Signal => vec!["SIGUSR2", "SIGRTMIN+3"],
        V::SyscallFilter => vec!["@mount", "~mount bpf"],
        V::Timezone => vec!["copy", "off"],
        V::Tmpfs => vec!["/tmp:size=10M", "/var/tmp"],
        V::Unsigned => vec!["2", "0"],
        V::UserName => vec!["www", "0"],
        V::UserNames => vec!["alice", "alice bob"],
        V::UserShell => vec!["/bin/sh", "yes"],
        V::VethExtra => vec!["ve-a", "ve-a:lan"],
        V::Volatile => vec!["state", "yes"],
        V::Words => vec!["/bin/sh -c 'echo hi'", "a"],
        V::Zone => vec!["lab", "x"],
    }
}

fn any_key() -> impl Strategy<Value = &'static Key> {
    // Keys that work on each other come up more often.
    let near = [
        "Boot",
        "ProcessTwo",
        "PrivateUsersChown",
        "PrivateUsersOwnership",
        "Port",
        "Bind",
        "Capability",
    ];
    prop_oneof![
        (0..KEYS.len()).prop_map(|at| &KEYS[at]),
        (0..near.len()).prop_map(move |at| KEYS.iter().find(|key| key.name == near[at]).unwrap()),
    ]
}

fn any_good_value() -> impl Strategy<Value = (&'static Key, &'static str)> {
    any_key()
        .prop_filter("no value on this architecture", |key| !good_values(key).is_empty())
        .prop_flat_map(|key| {
            let values = good_values(key);
            (Just(key), (0..values.len()).prop_map(move |at| values[at]))
        })
}

/// Lines as people and machines write them, wild ones among them.
fn any_line() -> impl Strategy<Value = Vec<u8>> {
    let text = prop_oneof![
        6 => any_good_value().prop_map(|(key, value)| format!("{}={value}", key.name)),
        2 => any_key().prop_map(|key| format!("  {} = nonsense \\", key.name)),
        2 => any_key().prop_map(|key| format!("{}=", key.name)),
        5 => (0..3usize).prop_map(|at| format!("[{}]", super::schema::SECTIONS[at])),
        1 => Just("[X-Ours]".to_owned()),
        2 => Just("# a comment \\".to_owned()),
        1 => Just("\t; another".to_owned()),
        3 => Just(String::new()),
        1 => Just("\u{feff}".to_owned()),
        1 => Just("\u{feff}# not a comment".to_owned()),
        1 => Just("no equals sign".to_owned()),
        1 => Just("=no key".to_owned()),
        1 => Just("Bo\\".to_owned()),
        1 => Just("   \\".to_owned()),
        1 => Just("x\\\\".to_owned()),
    ];
    let ending = prop_oneof![8 => Just("\n"), 2 => Just("\r\n"), 1 => Just("\r"), 1 => Just("\\\n"), 1 => Just("\0")];
    (text, ending).prop_map(|(text, ending)| format!("{text}{ending}").into_bytes())
}

fn any_file() -> impl Strategy<Value = Vec<u8>> {
    (prop::collection::vec(any_line(), 0..14), any::<bool>(), any::<bool>()).prop_map(|(lines, bom, cut)| {
        let mut bytes = if bom { b"\xEF\xBB\xBF".to_vec() } else { Vec::new() };
        bytes.extend(lines.concat());
        if cut {
            bytes.pop();
        }
        bytes
    })
}

fn any_edit() -> impl Strategy<Value = (&'static Key, Edit)> {
    (any_good_value(), 0..5u8).prop_map(|((known, value), kind)| {
        let (section, key, value) = (known.section.to_owned(), known.name.to_owned(), value.to_owned());
        let edit = match kind {
            0 | 1 => Edit::Set { section, key, value },
            2 => Edit::Add { section, key, value },
            3 => Edit::Remove {
                section,
                key,
                value: Some(value),
            },
            _ => Edit::Reset { section, key },
        };
        (known, edit)
    })
}

/// Every assignment but those of the key and of what it may take along.
fn others(document: &Document, key: &Key) -> Vec<(Option<String>, String, String)> {
    let related = key.related().map(|other| other.name);
    document
        .entries()
        .filter(|entry| entry.section != Some(key.section) || (entry.key != key.name && related != Some(entry.key)))
        .map(|entry| {
            (
                entry.section.map(str::to_owned),
                entry.key.to_owned(),
                entry.value.to_owned(),
            )
        })
        .collect()
}

fn comments(document: &Document) -> Vec<Vec<u8>> {
    document
        .lines()
        .filter(super::line::Line::is_comment)
        .map(|line| line.content.to_vec())
        .collect()
}

fn concatenated(document: &Document) -> Vec<u8> {
    document
        .lines()
        .flat_map(|line| [line.content, line.ending].concat())
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_come_back(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let document = Document::parse(&bytes);
        prop_assert_eq!(document.as_bytes(), &bytes[..]);
        prop_assert_eq!(concatenated(&document), bytes);
        for version in [252, 257, 262] {
            let _ = Settings::effective(&document, version, false);
        }
    }

    #[test]
    fn any_text_is_an_assignment_or_an_error(text in any::<String>(), value in any::<String>(), at in 0..KEYS.len()) {
        let _ = parse_assignment(&text);
        let _ = parse_assignment(&format!("{}={value}", KEYS[at].path()));
        for version in [252, 262] {
            let _ = KEYS[at].value.keep(&value, version);
        }
    }

    #[test]
    fn an_edit_changes_only_what_it_must(bytes in any_file(), (key, edit) in any_edit()) {
        let before = Document::parse(&bytes);
        prop_assert_eq!(&concatenated(&before), &bytes);
        let mut after = before.clone();
        match after.apply(&edit) {
            Err(error) => {
                let broken = matches!(error, EditError::Broken { .. });
                prop_assert!(broken, "{}", error);
                prop_assert_eq!(after.as_bytes(), &bytes[..]);
            }
            Ok(changed) => {
                prop_assert_eq!(changed, after.as_bytes() != &bytes[..]);
                prop_assert_eq!(others(&after, key), others(&before, key));
                prop_assert_eq!(comments(&after), comments(&before));
                prop_assert_eq!(after.as_bytes().starts_with(b"\xEF\xBB\xBF"), bytes.starts_with(b"\xEF\xBB\xBF"));
                let again = after.clone();
                prop_assert!(!after.apply(&edit).unwrap(), "not idempotent");
                prop_assert_eq!(again, after);
            }
        }
    }

    #[test]
    fn a_value_that_was_set_reads_back(bytes in any_file(), (key, value) in any_good_value()) {
        let mut document = Document::parse(&bytes);
        let edit = Edit::Set { section: key.section.to_owned(), key: key.name.to_owned(), value: value.to_owned() };
        if document.apply(&edit).is_ok() {
            let settings = Settings::effective(&document, NEWEST_SYSTEMD, true);
            let lone = key.name == "Parameters";
            if settings.fatal().is_none() && !lone {
                let values: Vec<&str> = settings.values(key.section, key.name).iter().map(|v| v.value.as_str()).collect();
                let wanted = key.value.keep(value, NEWEST_SYSTEMD).0;
                prop_assert_eq!(values, wanted);
            }
        }
    }

    #[test]
    fn a_key_that_was_reset_is_gone(bytes in any_file(), key in any_key()) {
        let mut document = Document::parse(&bytes);
        if document.apply(&Edit::Reset { section: key.section.to_owned(), key: key.name.to_owned() }).is_ok() {
            prop_assert_eq!(document.entries_of(key.section, key.name).count(), 0);
        }
    }
}

#[test]
fn long_runs_of_anything_are_read() {
    // Were any of these read in quadratic time, the test would not come to its end.
    for unit in [
        &b"a=b\n"[..],
        b"\n",
        b"[Exec]\n",
        b"[Files]\nBind=/a\\\n",
        b"# c\n",
        b"\0",
        b"\\\n",
        b"=\r",
    ] {
        let bytes = unit.repeat(1024 * 1024 / unit.len());
        assert_eq!(Document::parse(&bytes).as_bytes().len(), bytes.len());
    }
}

fn edited(text: &str, edits: &[Edit]) -> String {
    let mut document = Document::parse(text.as_bytes());
    for edit in edits {
        document.apply(edit).unwrap();
    }
    String::from_utf8(document.as_bytes().to_vec()).unwrap()
}

fn set(section: &str, key: &str, value: &str) -> Edit {
    Edit::Set {
        section: section.to_owned(),
        key: key.to_owned(),
        value: value.to_owned(),
    }
}

fn add(section: &str, key: &str, value: &str) -> Edit {
    Edit::Add {
        section: section.to_owned(),
        key: key.to_owned(),
        value: value.to_owned(),
    }
}

fn remove(section: &str, key: &str, value: Option<&str>) -> Edit {
    Edit::Remove {
        section: section.to_owned(),
        key: key.to_owned(),
        value: value.map(str::to_owned),
    }
}

#[test]
fn a_port_of_the_host_is_forwarded_once() {
    let before = "[Network]\nPort=80\nPort=udp:80\n";
    for (value, after) in [
        ("80", before),
        ("tcp:80:8080", "[Network]\nPort=tcp:80:8080\nPort=udp:80\n"),
        ("81", "[Network]\nPort=80\nPort=udp:80\nPort=81\n"),
    ] {
        assert_eq!(edited(before, &[add("Network", "Port", value)]), after);
    }
}

#[test]
fn edits_look_as_a_person_would_make_them() {
    assert_eq!(edited("", &[set("Exec", "Boot", "yes")]), "[Exec]\nBoot=yes\n");
    assert_eq!(
        edited(
            "[Exec]\nBoot=yes\n\n[Network]\nZone=a\n",
            &[set("Exec", "KillSignal", "SIGTERM")]
        ),
        "[Exec]\nBoot=yes\nKillSignal=SIGTERM\n\n[Network]\nZone=a\n"
    );
    assert_eq!(
        edited("[Exec]\nBoot=yes", &[set("Network", "Bridge", "br0")]),
        "[Exec]\nBoot=yes\n\n[Network]\nBridge=br0\n"
    );
    assert_eq!(
        edited(
            "[Exec]\r\n# why\r\n  Hostname = a  \r\n",
            &[set("Exec", "Hostname", "b")]
        ),
        "[Exec]\r\n# why\r\n  Hostname = b  \r\n"
    );
    assert_eq!(
        edited(
            "[Exec]\nParameters=a \\\n# kept\n  b\nBoot=no\n",
            &[set("Exec", "Parameters", "c")]
        ),
        "[Exec]\nParameters=c\n# kept\nBoot=no\n"
    );
    assert_eq!(
        edited(
            "[Files]\nBind=/a\n# b\nBind=/b\n",
            &[add("Files", "Bind", "/c"), add("Files", "Bind", "/a")]
        ),
        "[Files]\nBind=/a\n# b\nBind=/b\nBind=/c\n"
    );
    assert_eq!(
        edited(
            "[Exec]\nCapability=CAP_KILL CAP_CHOWN\n",
            &[remove("Exec", "Capability", Some("CAP_KILL"))]
        ),
        "[Exec]\nCapability=CAP_CHOWN\n"
    );
    assert_eq!(
        edited("[Exec]\nBoot=yes\nProcessTwo=no\n", &[set("Exec", "ProcessTwo", "yes")]),
        "[Exec]\nProcessTwo=yes\n"
    );
    assert_eq!(
        edited("[Exec]\nBoot=no\n# about\n[Files]\n", &[set("Exec", "User", "a")]),
        "[Exec]\nBoot=no\nUser=a\n# about\n[Files]\n"
    );
    assert_eq!(
        edited(
            "[Exec]\nBoot=no\n#KillSignal=\n\n[Files]\n",
            &[set("Exec", "User", "a")]
        ),
        "[Exec]\nBoot=no\n#KillSignal=\nUser=a\n\n[Files]\n"
    );
    assert_eq!(
        edited("[Exec]\nUser=a \\\n", &[set("Files", "ReadOnly", "yes")]),
        "[Exec]\nUser=a \\\n\n[Files]\nReadOnly=yes\n"
    );
    assert_eq!(
        edited(
            "[Network]\nPort=80\n",
            &[add("Network", "Port", ""), add("Exec", "Environment", "")]
        ),
        "[Network]\nPort=80\n"
    );
    assert_eq!(
        edited("[Exec]\nUser=a\n", &[set("Exec", "X-Note", "b")]),
        "[Exec]\nUser=a\nX-Note=b\n"
    );
}

#[test]
fn what_cannot_be_written_is_refused() {
    let mut document = Document::parse(b"[Exec]\n");
    for value in ["a\nb", "a\rb", "\0", "\u{1b}[2J", "C:\\"] {
        assert!(document.apply(&set("Exec", "User", value)).is_err(), "{value:?}");
    }
    assert!(document.apply(&set("Exec", "A=B", "c")).is_err());
    assert!(document.apply(&set("Ex]ec", "A", "c")).is_err());
    assert!(document.apply(&set("Exec", "Boot", "perhaps")).is_err());
    assert_eq!(document.as_bytes(), b"[Exec]\n");
    assert!(matches!(
        Document::parse(b"[Exec\n").apply(&set("Exec", "Boot", "no")),
        Err(EditError::Broken { line: 1, .. })
    ));
}

#[test]
fn what_is_ignored_is_named_with_its_line() {
    let text = b"stray\n[Exec]\nBoot=perhaps\nHostnam=a\nnothing\n\nParameters=x \\\n# c\n y\n[Exce]\nBoot=yes\n[X-Ours]\na=b\n[Network]\nPort=80\nPort=80:90\nBridge=br0\n[Exec]\nRestrictAddressFamilies=AF_UNIX\nBoot=yes\nProcessTwo=yes\n";
    let document = Document::parse(text);
    let settings = Settings::effective(&document, OLDEST_SYSTEMD, false);
    let found: Vec<String> = settings
        .ignored()
        .iter()
        .map(|ignored| format!("{}: {}", ignored.line, ignored.reason))
        .collect();
    assert_eq!(
        found,
        [
            "1: the line stands before the first section",
            "3: Exec.Boot=: 'perhaps' is not valid here: expected yes or no",
            "4: unknown key 'Hostnam' in section [Exec]",
            "5: there is no '=' in the line",
            "10: unknown section [Exce]",
            "15: Network.Port= is ignored in a file beside the image: it is heeded in /etc/systemd/nspawn only",
            "16: host port '80:90' is forwarded already",
            "17: Network.Bridge= is ignored in a file beside the image: it is heeded in /etc/systemd/nspawn only",
            "19: Exec.RestrictAddressFamilies= needs systemd 261, this is 252",
            "21: Exec.ProcessTwo= contradicts an earlier Boot= or ProcessTwo=, which stays in force",
        ]
    );
    assert_eq!(settings.value("Exec", "Boot"), Some("yes"));
    assert_eq!(settings.values("Exec", "Parameters")[0].line, 9);
}

#[test]
fn what_is_fatal_leaves_nothing_in_force() {
    for text in [
        &b"[Exec]\nBoot=yes\n[Files\n"[..],
        b"[Exec]\nBoot=yes\nUser=\xff\n",
        b"[Exec]\nCPUAffinity=x\n",
    ] {
        let settings = Settings::effective(&Document::parse(text), OLDEST_SYSTEMD, true);
        assert!(settings.fatal().is_some());
        assert!(settings.settings().is_empty());
    }
}

#[test]
fn what_was_not_heeded_becomes_a_comment() {
    let mut document = Document::parse(
        b"\xef\xbb\xbf[Exec]\nBoot=yes\nCapability=CAP_SYS_ADMIN \\\n# why\n  CAP_SYS_RAWIO\n[Network]\n Private=no\n",
    );
    assert_eq!(document.comment_out_untrusted(), 2);
    assert_eq!(
        document.as_bytes(),
        b"\xef\xbb\xbf[Exec]\nBoot=yes\n#Capability=CAP_SYS_ADMIN \\\n# why\n#  CAP_SYS_RAWIO\n[Network]\n# Private=no\n"
    );
    assert_eq!(document.comment_out_untrusted(), 0);
}

#[test]
fn what_a_later_line_hides_becomes_a_comment_too() {
    let mut document = Document::parse(
        b"[Exec]\nPrivateUsers=no\nPrivateUsers=yes\nSystemCallFilter=~a\nSystemCallFilter=b\n[Network]\nPrivate=no\nPrivate=yes\nPort=22\nPort=22\n",
    );
    assert_eq!(document.comment_out_untrusted(), 7);
    let settings = Settings::effective(&document, NEWEST_SYSTEMD, true);
    let said: Vec<&str> = settings.settings().iter().map(|setting| setting.key.name).collect();
    assert_eq!(said, ["SystemCallFilter"]);
}
