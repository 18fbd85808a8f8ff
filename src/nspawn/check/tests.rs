//! What is found, where, and how bad it is.

use super::*;
use crate::nspawn::users::{Taken, UserRange};

/// `line:column severity code` of everything that is found on a host with the bridge br0, the card eth0 and /srv.
fn found(text: &str, trusted: bool) -> Vec<String> {
    let host = Host {
        has_path: &|path| matches!(path, "/srv" | "/dev/fuse"),
        link: &|name| match name {
            "br0" => Some(Link::Bridge),
            "eth0" => Some(Link::Other),
            _ => None,
        },
        taken_users: &|| {
            let taken = |text: &str, by: &str| Taken {
                range: UserRange::parse(text).unwrap(),
                by: by.to_owned(),
            };
            vec![taken("1000:1", "user 'me'"), taken("600000:65536", "machine 'db'")]
        },
        image_hostname: Some("inside"),
    };
    let reader = Reader {
        systemd: 257,
        trusted,
        host: Some(host),
    };
    check(&Document::parse(text.as_bytes()), &reader)
        .into_iter()
        .map(|finding| {
            let place = finding.place.map_or_else(String::new, |place| {
                let meant = &text[place.bytes];
                format!("{}:{} '{meant}' ", place.line, place.column)
            });
            format!("{place}{} {}", finding.severity.as_str(), finding.code)
        })
        .collect()
}

#[test]
fn findings_point_at_what_is_meant() {
    assert_eq!(
        found(
            "\u{feff}[Exec]\n  Boot = perhaps \nHostnam=a\nUser=a \\\n  b\nnothing\nUser=b\n[Fils]\n=x\n",
            true
        ),
        [
            "2:10 'perhaps' error bad-value",
            "3:1 'Hostnam' error unknown-key",
            "4:1 'User=a \\' warning repeated-key",
            "6:1 'nothing' error missing-equals",
            "8:1 '[Fils]' error unknown-section",
        ]
    );
    assert_eq!(
        found("[Exec]\nBoot=x\n\n[Files\nä=b\n", true).last().unwrap(),
        "4:1 '[Files' error unclosed-header"
    );
    assert_eq!(found("", true), [""; 0]);
}

#[test]
fn user_numbers_of_others_are_told() {
    for value in ["yes", "pick", "0:4294967294", "665536:65536", "534464:65536"] {
        assert_eq!(
            found(&format!("[Exec]\nPrivateUsers={value}\n"), true),
            [""; 0],
            "{value}"
        );
    }
    for value in ["665535:1", "524288:131072", "1000"] {
        assert_eq!(
            found(&format!("[Exec]\nPrivateUsers={value}\n"), true),
            [format!("2:14 '{value}' warning shared-users")]
        );
    }
}

#[test]
fn a_file_beside_the_image_is_not_trusted() {
    let text = "[Exec]\nBoot=yes\nCapability=all\n[Network]\nBridge=nosuch\n";
    assert_eq!(
        found(text, false),
        [
            "3:1 'Capability=all' error not-trusted",
            "5:1 'Bridge=nosuch' error not-trusted"
        ]
    );
    assert_eq!(found(text, true), ["5:8 'nosuch' warning missing-bridge"]);
}

#[test]
fn the_network_keys_act_as_one_group() {
    for (keys, code) in [
        ("", None),
        ("Port=80", None),
        ("Private=yes", Some("host0-dropped")),
        ("MACVLAN=eth0", Some("host0-dropped")),
        ("Interface=eth0", Some("host0-dropped")),
        ("VirtualEthernetExtra=ve-a", Some("host0-dropped")),
        ("MACVLAN=eth0\nVirtualEthernet=yes", None),
        ("MACVLAN=eth0\nVirtualEthernet=no", None),
        ("Private=yes\nBridge=br0", None),
        ("Private=yes\nZone=lab", None),
        ("Private=no", None),
        ("VirtualEthernet=yes\nPort=80", None),
        ("Private=no\nPort=80", Some("conflict")),
        ("VirtualEthernet=no\nPort=80", Some("conflict")),
        ("Bridge=br0\nZone=lab", Some("conflict")),
        ("Private=no\nBridge=br0", Some("network-contradiction")),
        ("VirtualEthernet=no\nZone=lab", Some("network-contradiction")),
        ("Bridge=eth0", Some("no-bridge")),
        ("VirtualEthernet=yes\nIPVLAN=eth7", Some("missing-interface")),
    ] {
        let found = found(&format!("[Network]\n{keys}\n"), true);
        let codes: Vec<&str> = found.iter().filter_map(|line| line.rsplit(' ').next()).collect();
        assert_eq!(codes, code.into_iter().collect::<Vec<_>>(), "{keys}");
    }
}

#[test]
fn what_systemd_refuses_to_combine_is_an_error() {
    for text in [
        "[Files]\nReadOnly=yes\nPrivateUsersOwnership=chown",
        "[Files]\nVolatile=state\nPrivateUsersChown=yes",
        "[Exec]\nPrivateUsers=pick\n[Files]\nReadOnly=yes",
        "[Exec]\nProcessTwo=yes\nAmbientCapability=all",
        "[Exec]\nPrivateUsers=no\n[Files]\nBindUser=me",
        "[Exec]\nEphemeral=yes\nLinkJournal=host",
        "[Exec]\nAmbientCapability=CAP_CHOWN",
    ] {
        assert!(
            found(text, true).iter().any(|line| line.ends_with("error conflict")),
            "{text}"
        );
    }
    for text in [
        "[Exec]\nPrivateUsers=pick\n[Files]\nVolatile=no\nPrivateUsersOwnership=chown",
        "[Exec]\nEphemeral=yes\nLinkJournal=try-host",
        "[Exec]\nProcessTwo=yes\nAmbientCapability=CAP_CHOWN",
    ] {
        assert_eq!(found(text, true), [""; 0], "{text}");
    }
}

#[test]
fn the_host_is_asked() {
    assert_eq!(
        found(
            "[Exec]\nHostname=web\n[Files]\nBind=/srv\nBind=/no:/srv\nBind=+/no\nBind=:/tmp\nOverlay=/srv:/none:/mnt\n",
            true
        ),
        [
            "2:10 'web' warning hostname-shadowed",
            "5:6 '/no:/srv' warning missing-source",
            "8:9 '/srv:/none:/mnt' warning missing-source",
        ]
    );
    assert_eq!(found("[Exec]\nHostname=inside\n", true), [""; 0]);
    assert_eq!(found("[Exec]\nProcessTwo=yes\nHostname=web\n", true), [""; 0]);
}

#[test]
fn a_flood_is_cut() {
    let text = format!("[Exec]\n{}", "nonsense\n".repeat(MAX_FINDINGS + 10));
    let found = found(&text, true);
    assert_eq!(found.len(), MAX_FINDINGS + 1);
    assert_eq!(found.last().unwrap(), "error more");
    let text = format!("[Files]\n{}", "Bind=/srv\n".repeat(10_000));
    assert_eq!(self::found(&text, true), [""; 0]);
}

#[test]
fn private_users_and_what_goes_with_them() {
    let (dropped, score) = ("private-users-dropped", "oom-score-private-users");
    for (text, wanted) in [
        ("[Files]\nPrivateUsersOwnership=auto\n", &[dropped][..]),
        ("[Files]\nPrivateUsersChown=no\n", &[dropped]),
        ("[Exec]\nPrivateUsers=pick\n[Files]\nPrivateUsersOwnership=auto\n", &[]),
        ("[Exec]\nPrivateUsers=no\n[Files]\nPrivateUsersOwnership=auto\n", &[]),
        ("[Exec]\nOOMScoreAdjust=5\n", &[score]),
        ("[Exec]\nPrivateUsers=yes\nOOMScoreAdjust=-5\n", &[score]),
        ("[Exec]\nOOMScoreAdjust=0\n", &[]),
        ("[Exec]\nPrivateUsers=no\nOOMScoreAdjust=5\n", &[]),
        ("[Exec]\nPrivateUsers=identity\nOOMScoreAdjust=5\n", &[]),
        (
            "[Exec]\nOOMScoreAdjust=5\n[Files]\nPrivateUsersOwnership=auto\n",
            &[dropped],
        ),
    ] {
        let found = found(text, true);
        assert!(found.iter().all(|line| line.contains("warning")), "{found:?}");
        let codes: Vec<&str> = found.iter().filter_map(|line| line.rsplit(' ').next()).collect();
        assert_eq!(codes, wanted, "{text}");
    }
}
