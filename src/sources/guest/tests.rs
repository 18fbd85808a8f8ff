use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use super::*;

mod custom;

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
    fs::remove_file(tree.0.path().join("sbin/init")).unwrap();
    symlink("/usr/bin", tree.0.path().join("bin")).unwrap();
    fs::hard_link(tree.0.path().join("usr/bin/busybox"), tree.0.path().join("sbin/init")).unwrap();
    assert_eq!(tree.prepare(&options()).unwrap().init, Init::Busybox);
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
