use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use super::*;

struct Tree(tempfile::TempDir);

impl Tree {
    /// A tree with a systemd, unit files as Debian's, and files that name a former life.
    fn systemd() -> Self {
        let tree = Self(tempfile::tempdir().unwrap());
        let units = "usr/lib/systemd/system";
        tree.file("usr/lib/systemd/systemd", "");
        tree.file("usr/lib/os-release", "ID=debian\n");
        tree.file("usr/lib/systemd/network/80-container-host0.network", "");
        tree.file(
            &format!("{units}/systemd-networkd.service"),
            "[Install]\nWantedBy=multi-user.target\nAlso=systemd-networkd.socket\nAlias=dbus-org.freedesktop.network1.service\n",
        );
        tree.file(
            &format!("{units}/systemd-networkd.socket"),
            "[Install]\nWantedBy=sockets.target\n",
        );
        tree.file(
            &format!("{units}/systemd-resolved.service"),
            "[Install]\nWantedBy=sysinit.target\nAlias=dbus-org.freedesktop.resolve1.service\n",
        );
        tree.file("etc/passwd", "root::0:0:root:/root:/bin/bash\nbin:x:2:2::/:/x\n");
        tree.file("etc/shadow", "root:$6$known:1:0:99999:7:::\nbin:*:1:0:99999:7:::\n");
        tree.file("etc/hostname", "old\n");
        tree.file("etc/hosts", "127.0.0.1 localhost\n127.0.1.1 old.example old\n");
        tree.file("etc/machine-id", "0123456789abcdef0123456789abcdef\n");
        tree.file("var/lib/dbus/machine-id", "0123456789abcdef0123456789abcdef\n");
        tree.file("var/lib/systemd/random-seed", "seed");
        tree.file("usr/sbin/sshd", "");
        tree.file("etc/ssh/ssh_host_rsa_key", "key");
        tree.file("etc/ssh/ssh_host_rsa_key.pub", "key");
        tree.file("etc/ssh/ssh_config", "keep");
        tree
    }

    fn file(&self, path: &str, content: &str) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.0.path().join(path)).unwrap()
    }

    fn link(&self, path: &str) -> String {
        fs::read_link(self.0.path().join(path)).unwrap().display().to_string()
    }

    fn has(&self, path: &str) -> bool {
        self.0.path().join(path).symlink_metadata().is_ok()
    }

    fn mode(&self, path: &str) -> u32 {
        self.0.path().join(path).metadata().unwrap().permissions().mode() & 0o7777
    }

    fn prepare(&self, options: &GuestOptions) -> Result<Guest, GuestError> {
        self.prepare_in(GuestNetwork::Link, options)
    }

    fn prepare_in(&self, network: GuestNetwork, options: &GuestOptions) -> Result<Guest, GuestError> {
        prepare(&Root::open(self.0.path()).unwrap(), "web", network, options)
    }
}

fn options() -> GuestOptions {
    GuestOptions::default()
}

#[test]
fn a_systemd_tree_becomes_a_guest_with_an_identity_of_its_own() {
    let tree = Tree::systemd();
    let guest = tree.prepare(&options()).unwrap();
    assert_eq!(
        guest,
        Guest {
            init: Init::Systemd,
            notes: Vec::new()
        }
    );
    assert_eq!(guest.init.kill_signal(), None);
    assert_eq!(tree.read("etc/hostname"), "web\n");
    assert_eq!(tree.read("etc/hosts"), "127.0.0.1 localhost\n127.0.1.1\tweb\n");
    assert_eq!(tree.read("etc/machine-id"), "");
    assert_eq!(tree.mode("etc/machine-id"), 0o444);
    assert_eq!(tree.link("var/lib/dbus/machine-id"), "/etc/machine-id");
    assert_eq!(tree.link("etc/resolv.conf"), STUB_LINK);
    assert_eq!(tree.read("etc/shadow"), "root:*:1:0:99999:7:::\nbin:*:1:0:99999:7:::\n");
    assert!(tree.read("etc/passwd").starts_with("root:x:0:0:"));
    for gone in [
        "var/lib/systemd/random-seed",
        "etc/ssh/ssh_host_rsa_key",
        "etc/ssh/ssh_host_rsa_key.pub",
    ] {
        assert!(!tree.has(gone), "{gone}");
    }
    assert_eq!(tree.read("etc/ssh/ssh_config"), "keep");
    let etc = "etc/systemd/system";
    for (link, unit) in [
        (
            "multi-user.target.wants/systemd-networkd.service",
            "systemd-networkd.service",
        ),
        (
            "sockets.target.wants/systemd-networkd.socket",
            "systemd-networkd.socket",
        ),
        ("dbus-org.freedesktop.network1.service", "systemd-networkd.service"),
        (
            "sysinit.target.wants/systemd-resolved.service",
            "systemd-resolved.service",
        ),
        ("dbus-org.freedesktop.resolve1.service", "systemd-resolved.service"),
    ] {
        assert_eq!(
            tree.link(&format!("{etc}/{link}")),
            format!("/usr/lib/systemd/system/{unit}")
        );
    }
    assert!(tree.has("etc/systemd/system/multi-user.target.wants/machinist-ssh-keys.service"));
    assert_eq!(tree.prepare(&options()).unwrap(), guest, "not idempotent");
}

const STUB_LINK: &str = "../run/systemd/resolve/stub-resolv.conf";

#[test]
fn a_password_and_a_key_let_root_in() {
    let tree = Tree::systemd();
    let hash = PasswordHash::read(&mut &b"secret"[..], "-").unwrap();
    let key = AuthorizedKeys::parse("ssh-ed25519 AAAAC3 me", "k").unwrap();
    let options = GuestOptions {
        root_password_hash: Some(hash.clone()),
        ssh_key: Some(key),
        ..options()
    };
    tree.file("root/.ssh/authorized_keys", "ssh-rsa AAAAB3 other");
    tree.prepare(&options).unwrap();
    tree.prepare(&options).unwrap();
    assert!(tree.read("etc/shadow").starts_with(&format!("root:{}:", hash.as_str())));
    assert_eq!(tree.mode("etc/shadow"), 0o640);
    assert_eq!(
        tree.read("root/.ssh/authorized_keys"),
        "ssh-rsa AAAAB3 other\nssh-ed25519 AAAAC3 me\n"
    );
    assert_eq!(tree.mode("root/.ssh"), 0o700);
    assert_eq!(tree.mode("root/.ssh/authorized_keys"), 0o600);
}

#[test]
fn in_the_hosts_network_the_guest_configures_nothing() {
    let tree = Tree::systemd();
    tree.prepare(&options()).unwrap();
    tree.prepare_in(GuestNetwork::Host, &options()).unwrap();
    assert!(!tree.has("etc/resolv.conf"));
    assert!(!tree.has("etc/systemd/system/sysinit.target.wants/systemd-resolved.service"));
    assert!(!tree.has("etc/systemd/system/multi-user.target.wants/systemd-networkd.service"));
}

#[test]
fn a_masked_unit_stays_masked() {
    let tree = Tree::systemd();
    fs::create_dir_all(tree.0.path().join("etc/systemd/system")).unwrap();
    symlink(
        "/dev/null",
        tree.0.path().join("etc/systemd/system/systemd-resolved.service"),
    )
    .unwrap();
    tree.prepare(&options()).unwrap();
    assert!(!tree.has("etc/systemd/system/sysinit.target.wants/systemd-resolved.service"));
    assert!(!tree.has("etc/resolv.conf"));
}

#[test]
fn a_tree_that_cannot_boot_is_refused() {
    let tree = Tree(tempfile::tempdir().unwrap());
    assert!(matches!(
        tree.prepare(&options()),
        Err(GuestError::NoUsr { only: None, .. })
    ));
    fs::create_dir_all(tree.0.path().join("rootfs/usr")).unwrap();
    assert!(matches!(tree.prepare(&options()), Err(GuestError::NoUsr { only: Some(only), .. }) if only == "rootfs"));
    fs::remove_dir_all(tree.0.path().join("rootfs")).unwrap();
    tree.file("usr/bin/true", "");
    assert!(matches!(tree.prepare(&options()), Err(GuestError::NoInit { .. })));
    // A link that only resolves on the host is none.
    fs::create_dir_all(tree.0.path().join("sbin")).unwrap();
    symlink("/proc/1/exe", tree.0.path().join("sbin/init")).unwrap();
    assert!(matches!(tree.prepare(&options()), Err(GuestError::NoInit { .. })));
}

#[test]
fn other_inits_are_told_apart() {
    let tree = Tree(tempfile::tempdir().unwrap());
    tree.file("usr/bin/busybox", "");
    fs::create_dir_all(tree.0.path().join("sbin")).unwrap();
    symlink("/usr/bin/busybox", tree.0.path().join("sbin/init")).unwrap();
    let guest = tree.prepare(&options()).unwrap();
    assert_eq!(
        (guest.init.clone(), guest.init.kill_signal()),
        (Init::Busybox, Some("SIGUSR2"))
    );
    fs::remove_file(tree.0.path().join("sbin/init")).unwrap();
    tree.file("sbin/init", "");
    tree.file("sbin/shutdown", "");
    assert_eq!(
        tree.prepare(&options()).unwrap().init,
        Init::Other("/sbin/init".to_owned())
    );
    tree.file(
        "etc/inittab",
        "pf::powerwait:/etc/init.d/powerfail start\nx::powerfail:/no/such thing",
    );
    let guest = tree.prepare(&options()).unwrap();
    assert_eq!(
        (guest.init.clone(), guest.init.kill_signal()),
        (Init::Sysvinit, Some("SIGPWR"))
    );
    tree.prepare(&options()).unwrap();
    assert_eq!(
        tree.read("etc/inittab").matches("mc::powerfail:/sbin/shutdown").count(),
        1
    );
}

#[test]
fn ifupdown_without_networkd_gets_host0() {
    let tree = Tree::systemd();
    fs::remove_file(tree.0.path().join("usr/lib/systemd/system/systemd-networkd.service")).unwrap();
    tree.file("sbin/ifup", "");
    tree.file("sbin/dhclient", "");
    tree.file("etc/network/interfaces", "source /etc/network/interfaces.d/*");
    for _ in 0..2 {
        assert!(tree.prepare(&options()).unwrap().notes.is_empty());
    }
    assert_eq!(
        tree.read("etc/network/interfaces"),
        "source /etc/network/interfaces.d/*\n\nauto host0\niface host0 inet dhcp\n"
    );
}

#[test]
fn nothing_outside_of_a_hostile_tree_is_touched() {
    let outside = tempfile::tempdir().unwrap();
    let victim = outside.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    let tree = Tree::systemd();
    let at = |path: &str| tree.0.path().join(path);
    for file in [
        "etc/hostname",
        "etc/hosts",
        "etc/machine-id",
        "etc/shadow",
        "etc/passwd",
        "var/lib/dbus/machine-id",
    ] {
        fs::remove_file(at(file)).unwrap();
        symlink(&victim, at(file)).unwrap();
    }
    for dir in ["etc/systemd", "root", "etc/network"] {
        let _ = fs::remove_dir_all(at(dir));
        symlink(outside.path(), at(dir)).unwrap();
    }
    fs::remove_dir_all(at("etc/ssh")).unwrap();
    symlink("/etc/ssh", at("etc/ssh")).unwrap();
    let mut options = options();
    options.ssh_key = Some(AuthorizedKeys::parse("ssh-ed25519 AAAAC3 me", "k").unwrap());
    let _ = tree.prepare(&options);
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    assert!(Path::new("/etc/ssh").symlink_metadata().is_err() || fs::read_dir("/etc/ssh").is_ok());
}

#[test]
fn a_fifo_where_a_file_should_be_does_not_block() {
    let tree = Tree::systemd();
    fs::remove_file(tree.0.path().join("etc/shadow")).unwrap();
    nix::unistd::mkfifo(&tree.0.path().join("etc/shadow"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(matches!(tree.prepare(&options()), Err(GuestError::File(_))));
}

#[test]
fn a_copy_is_somebody_else() {
    let tree = Tree::systemd();
    tree.file("var/lib/dhcp/dhclient.host0.leases", "lease {}\n");
    tree.file("var/lib/dhcpcd/duid", "00:01");
    tree.file("var/lib/dhcp/notes", "keep");
    tree.file(
        "etc/systemd/network/10-a.link",
        "# mine\n[Match]\nMACAddress=02:00:00:00:00:01\n[Link]\nMTUBytes=1400\nMACAddress=02:00:00:00:00:02\n",
    );
    tree.file(
        "etc/systemd/network/20-b.network",
        "[Match]\nName=host0\n[Network]\nAddress=192.0.2.7/24\n",
    );
    tree.file(
        "etc/network/interfaces",
        "iface host0 inet static\n  address 192.0.2.7\n  hwaddress ether 02:00:00:00:00:03\n",
    );
    let root = Root::open(tree.0.path()).unwrap();
    let notes = renew_identity(&root, "old", "new").unwrap();
    assert_eq!(
        (tree.read("etc/hostname").as_str(), tree.read("etc/machine-id").as_str()),
        ("new\n", "")
    );
    for gone in [
        "var/lib/dhcp/dhclient.host0.leases",
        "var/lib/dhcpcd/duid",
        "var/lib/systemd/random-seed",
        "etc/ssh/ssh_host_rsa_key",
    ] {
        assert!(!tree.has(gone), "{gone}");
    }
    assert!(tree.has("var/lib/dhcp/notes") && tree.has("etc/systemd/system/machinist-ssh-keys.service"));
    assert_eq!(
        tree.read("etc/systemd/network/10-a.link"),
        "# mine\n[Match]\nMACAddress=02:00:00:00:00:01\n[Link]\nMTUBytes=1400\n"
    );
    assert_eq!(
        tree.read("etc/network/interfaces"),
        "iface host0 inet static\n  address 192.0.2.7\n"
    );
    assert_eq!(
        notes,
        ["/etc/systemd/network/20-b.network", "/etc/network/interfaces"]
            .map(|file| format!("both have the static address in '{file}': change one of them"))
    );
    // A host name that was chosen stays.
    renew_identity(&root, "old", "other").unwrap();
    assert_eq!(tree.read("etc/hostname"), "new\n");
    assert!(!tree.read("etc/hosts").contains("other"));
}

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
