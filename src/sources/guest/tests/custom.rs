//! What is asked for besides: users, time zone, units.

use super::*;

#[test]
fn a_user_is_made_with_a_home() {
    let tree = Tree::systemd();
    tree.file("etc/group", "root:x:0:\nsudo:x:27:\nkeys:x:1000:\n");
    tree.file("etc/gshadow", "root:*::\nsudo:*::\n");
    // Of somebody who is gone: it would come first.
    tree.file("etc/shadow", "root:*:1::::::\nalice::1::::::\n");
    tree.file("etc/skel/.profile", "greeting");
    tree.file("bin/bash", "");
    let options = GuestOptions {
        user: Some("alice".parse().unwrap()),
        ssh_key: Some(AuthorizedKeys::parse("ssh-ed25519 AAAAC3 me", "k").unwrap()),
        ..options()
    };
    tree.prepare(&options).unwrap();
    // 1000 is a group already.
    assert!(
        tree.read("etc/passwd")
            .ends_with("\nalice:x:1001:1001::/home/alice:/bin/bash\n")
    );
    assert_eq!(
        tree.read("etc/group"),
        "root:x:0:\nsudo:x:27:alice\nkeys:x:1000:\nalice:x:1001:\n"
    );
    assert_eq!(tree.read("etc/gshadow"), "root:*::\nsudo:*::alice\nalice:!::\n");
    let shadow = tree.read("etc/shadow");
    assert!(shadow.contains("\nalice:*:") && !shadow.contains("alice::"), "{shadow}");
    assert_eq!(tree.mode("home/alice"), 0o700);
    assert_eq!(tree.read("home/alice/.profile"), "greeting");
    assert_eq!(tree.read("home/alice/.ssh/authorized_keys"), "ssh-ed25519 AAAAC3 me\n");
    assert_eq!(tree.read("root/.ssh/authorized_keys"), "ssh-ed25519 AAAAC3 me\n");
    if nix::unistd::geteuid().is_root() {
        use std::os::unix::fs::MetadataExt as _;
        for path in ["home/alice", "home/alice/.profile", "home/alice/.ssh/authorized_keys"] {
            let found = tree.0.path().join(path).metadata().unwrap();
            assert_eq!((found.uid(), found.gid()), (1001, 1001), "{path}");
        }
    }
    assert!(matches!(tree.prepare(&options), Err(GuestError::UserExists { .. })));
}

#[test]
fn a_home_that_leads_away_stays_inside() {
    let (tree, outside) = (Tree::systemd(), tempfile::tempdir().unwrap());
    symlink(outside.path(), tree.0.path().join("home")).unwrap();
    let options = GuestOptions {
        user: Some("alice".parse().unwrap()),
        ..options()
    };
    let _ = tree.prepare(&options);
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn time_zone_language_and_name_servers_are_set() {
    let tree = Tree::systemd();
    tree.file("usr/share/zoneinfo/Europe/Berlin", "");
    tree.file("etc/timezone", "Etc/UTC\n");
    tree.file("etc/default/locale", "");
    let options = GuestOptions {
        timezone: Some("Europe/Berlin".parse().unwrap()),
        locale: Some("C.UTF-8".parse().unwrap()),
        dns: vec!["9.9.9.9".parse().unwrap(), "2620:fe::fe".parse().unwrap()],
        ..options()
    };
    assert_eq!(tree.prepare(&options).unwrap().notes, Vec::<String>::new());
    assert_eq!(tree.link("etc/localtime"), "../usr/share/zoneinfo/Europe/Berlin");
    assert_eq!(tree.read("etc/timezone"), "Europe/Berlin\n");
    assert_eq!(tree.read("etc/locale.conf"), "LANG=C.UTF-8\n");
    assert_eq!(tree.read("etc/default/locale"), "LANG=C.UTF-8\n");
    assert_eq!(
        tree.read("etc/systemd/resolved.conf.d/machinist.conf"),
        "[Resolve]\nDNS=9.9.9.9 2620:fe::fe\nDomains=~.\n"
    );
    // In the host's network there is no resolver of its own.
    tree.prepare_in(GuestNetwork::Host, &options).unwrap();
    assert_eq!(
        tree.read("etc/resolv.conf"),
        "nameserver 9.9.9.9\nnameserver 2620:fe::fe\n"
    );
    let unknown = GuestOptions {
        timezone: Some("Mars/Base".parse().unwrap()),
        locale: Some("de_DE.UTF-8".parse().unwrap()),
        ..self::options()
    };
    let notes = tree.prepare(&unknown).unwrap().notes;
    assert_eq!(
        notes,
        [
            "it knows no time zone 'Mars/Base': it keeps UTC",
            "it has no locale 'de_DE.UTF-8': install what has it, in Debian the package locales-all"
        ]
    );
}

#[test]
fn units_are_disabled_and_masked() {
    let tree = Tree::systemd();
    let options = GuestOptions {
        disabled_units: vec!["systemd-resolved".parse().unwrap(), "lost.timer".parse().unwrap()],
        masked_units: vec!["apt-daily.timer".parse().unwrap()],
        ..options()
    };
    let notes = tree.prepare(&options).unwrap().notes;
    assert_eq!(notes, ["it has no unit 'lost.timer' to disable"]);
    assert!(!tree.has("etc/systemd/system/sysinit.target.wants/systemd-resolved.service"));
    assert_eq!(tree.link("etc/systemd/system/apt-daily.timer"), "/dev/null");
    // An instance has no file of its own, only the link that starts it.
    let getty = "etc/systemd/system/getty.target.wants/getty@tty1.service";
    fs::create_dir_all(tree.0.path().join("etc/systemd/system/getty.target.wants")).unwrap();
    symlink("/usr/lib/systemd/system/getty@.service", tree.0.path().join(getty)).unwrap();
    let instance = GuestOptions {
        disabled_units: vec!["getty@tty1".parse().unwrap()],
        ..self::options()
    };
    assert!(tree.prepare(&instance).unwrap().notes.is_empty() && !tree.has(getty));
    for bad in ["a/b", "", ".service", "a b.service", "../x.service"] {
        assert!(bad.parse::<UnitName>().is_err(), "{bad}");
    }
}

#[test]
fn an_identity_is_kept_if_asked_for() {
    let tree = Tree::systemd();
    tree.file("var/lib/dhcp/dhclient.leases", "");
    let kept = GuestOptions {
        keep_identity: true,
        ..options()
    };
    tree.prepare(&kept).unwrap();
    assert_eq!(tree.read("etc/hostname"), "old\n");
    assert_eq!(tree.read("etc/machine-id"), "0123456789abcdef0123456789abcdef\n");
    assert!(tree.has("etc/ssh/ssh_host_rsa_key") && tree.has("var/lib/dhcp/dhclient.leases"));
    tree.prepare(&options()).unwrap();
    assert!(!tree.has("var/lib/dhcp/dhclient.leases"));
}

#[test]
fn cloud_init_gets_its_seed() {
    let (tree, from) = (Tree::systemd(), tempfile::tempdir().unwrap());
    assert!(matches!(Seed::read(from.path()), Err(GuestError::NoSeed { .. })));
    fs::write(from.path().join("user-data"), "#cloud-config\nssh_pwauth: true\n").unwrap();
    let options = GuestOptions {
        cloud_init: Some(Seed::read(from.path()).unwrap()),
        ..options()
    };
    let notes = tree.prepare(&options).unwrap().notes;
    assert_eq!(notes.len(), 1, "{notes:?}");
    let place = "var/lib/cloud/seed/nocloud";
    assert_eq!(
        tree.read(&format!("{place}/user-data")),
        "#cloud-config\nssh_pwauth: true\n"
    );
    assert_eq!(
        tree.read(&format!("{place}/meta-data")),
        "instance-id: web\nlocal-hostname: web\n"
    );
    assert_eq!(
        (tree.mode(place), tree.mode(&format!("{place}/user-data"))),
        (0o700, 0o600)
    );
}

#[test]
fn what_does_not_boot_here_is_told() {
    let tree = Tree::systemd();
    tree.file("usr/lib/os-release", "ID=debian\nVERSION_ID=8\n");
    let mut program = vec![0_u8; 64];
    program[..6].copy_from_slice(b"\x7fELF\x02\x01");
    // A processor that no emulator is registered for: the AVR.
    program[18] = 83;
    fs::write(tree.0.path().join("usr/lib/systemd/systemd"), program).unwrap();
    let notes = tree.prepare(&options()).unwrap().notes;
    assert!(
        notes[0].starts_with("it does not boot here: the systemd of debian 8 knows nothing"),
        "{notes:?}"
    );
    assert!(
        notes[1].starts_with("it does not start here: its programs are for processors of ELF's number 83"),
        "{notes:?}"
    );
}
