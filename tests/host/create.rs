//! create: what comes out is a guest that systemd knows, and that is usable at once.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::support::{
    Guest, MACHINES, PATIENCE, There, agree, create_debian, guest_suite, holds_within, machine_property, machinist,
    make_busybox_image, run, sh, shared, unique, wait_until,
};

const PASSWORD: &str = "correct horse battery staple 7";

/// What there is of a name, hidden files included: what a call that changes nothing must leave as it is.
pub(crate) fn traces(name: &str) -> Vec<String> {
    let mut found = Vec::new();
    for directory in [
        "/var/lib/machines",
        "/etc/systemd/nspawn",
        "/run/systemd/nspawn",
        "/etc/systemd/system",
        "/etc/systemd/system/machines.target.wants",
        "/run/systemd/nspawn/unix-export",
        "/var/lib/machinist/trash",
    ] {
        let Ok(entries) = fs::read_dir(directory) else { continue };
        let ours = entries.flatten().map(|entry| entry.path()).filter(|path| {
            let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            // The lock is systemd-nspawn's own.
            file.contains(name) && !file.ends_with(".lck")
        });
        found.extend(ours.map(|path| path.display().to_string()));
    }
    let mounts = fs::read_to_string("/proc/self/mounts").expect("reading mounts");
    found.extend(mounts.lines().filter(|line| line.contains(name)).map(str::to_owned));
    found.sort();
    found
}

/// The hidden directory that a create of this name works in.
pub(crate) fn hidden(name: &str) -> Option<PathBuf> {
    let prefix = format!(".#machinist-create-{name}-");
    let entries = fs::read_dir(MACHINES).expect("reading /var/lib/machines").flatten();
    entries.map(|entry| entry.path()).find(|path| {
        path.file_name()
            .is_some_and(|f| f.to_string_lossy().starts_with(&prefix))
    })
}

/// Waits for an IPv4 address on host0, and returns it.
fn address_of_host0(guest: &Guest) -> String {
    let mut address = None;
    wait_until("host0 has an address", || {
        let leader = guest.leader().to_string();
        let links = run(
            "nsenter",
            ["-t", &leader, "-n", "ip", "-j", "-4", "addr", "show", "dev", "host0"],
        )
        .ok()
        .json();
        let infos = links[0]["addr_info"].as_array().cloned().unwrap_or_default();
        address = infos
            .iter()
            .find(|info| info["scope"] == "global")
            .and_then(|info| info["local"].as_str().map(str::to_owned));
        address.is_some()
    });
    address.expect("an address")
}

fn shadow_of_root(image: &Path) -> String {
    let shadow = fs::read_to_string(image.join("etc/shadow")).expect("reading shadow");
    let line = shadow
        .lines()
        .find(|line| line.starts_with("root:"))
        .expect("a line of root's");
    line.split(':').nth(1).expect("a hash").to_owned()
}

fn is_hash_of(hash: &str, password: &str) -> bool {
    let computed = run("perl", ["-e", "print crypt($ARGV[0], $ARGV[1])", password, hash])
        .ok()
        .stdout;
    hash.starts_with('$') && computed == hash
}

#[test]
fn busybox_is_made_from_a_template() {
    let _host = shared();
    let guest = Guest::new("tpl");
    let name = &guest.name;
    machinist(["create", name, "template:busybox"])
        .ok()
        .stdout_is("")
        .stderr_has(&format!("created {name}\n"))
        .stderr_has(&format!("start it with `machinist start {name}`"));
    agree(name, There::Stopped);
    let meta = fs::metadata(guest.image()).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (0, 0, 0o755));
    assert!(
        shadow_of_root(&guest.image()).starts_with(['!', '*']),
        "root is not locked"
    );
    assert_eq!(
        fs::read_to_string(guest.image().join("etc/hostname")).unwrap(),
        format!("{name}\n")
    );
    let all = traces(name);
    assert_eq!(
        all,
        [
            format!("/etc/systemd/nspawn/{name}.nspawn"),
            format!("/var/lib/machines/{name}")
        ]
    );
    let settings = fs::read_to_string(guest.settings()).unwrap();
    assert!(settings.contains("[Exec]\nKillSignal=SIGUSR2\n"), "{settings}");

    guest.start();
    address_of_host0(&guest);
    let hostname = run("nsenter", ["-t", &guest.leader().to_string(), "-u", "hostname"])
        .ok()
        .stdout;
    assert_eq!(hostname, format!("{name}\n"));
    // A user namespace of its own.
    let map = fs::read_to_string(format!("/proc/{}/uid_map", guest.leader())).unwrap();
    assert_ne!(map.split_whitespace().nth(1), Some("0"), "{map}");
    machinist(["stop", name]).ok().quicker_than(Duration::from_secs(20));
    guest.is_down();
}

#[test]
fn modes_do_not_depend_on_the_callers_umask() {
    let _host = shared();
    for umask in ["077", "000"] {
        let guest = Guest::new("umask");
        let script = "umask $1; machinist create \"$2\" template:busybox";
        sh(script, [umask, &guest.name]).ok();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        for directory in ["", "etc", "usr", "usr/share", "var"] {
            let path = guest.image().join(directory);
            assert_eq!(mode(&path), 0o755, "{umask}: {}", path.display());
        }
        assert_eq!(mode(Path::new("/etc/systemd/nspawn")), 0o755, "{umask}");
        assert_eq!(mode(Path::new("/run/machinist")), 0o700, "{umask}");
    }
}

#[test]
fn start_and_enable_can_be_had_at_once() {
    let _host = shared();
    let guest = Guest::new("once");
    let name = &guest.name;
    let output = machinist(["create", name, "template:busybox", "--start", "--enable", "--json"]).ok();
    let rows = output.json();
    assert_eq!(
        (&rows[0]["machine"], &rows[0]["result"]),
        (&name.as_str().into(), &"created".into())
    );
    assert_eq!((&rows[0]["enabled"], &rows[0]["started"]), (&true.into(), &true.into()));
    assert_eq!(run("systemctl", ["is-enabled", &guest.unit()]).ok().stdout, "enabled\n");
    agree(name, There::Running);
}

#[test]
fn what_is_created_but_cannot_start_stays_and_says_so() {
    let _host = shared();
    let guest = Guest::new("stays");
    let name = &guest.name;
    machinist([
        "create",
        name,
        "template:busybox",
        "--network",
        "bridge=nosuchbr3",
        "--start",
    ])
    .status(1)
    .stderr_has("bridge 'nosuchbr3' does not exist")
    .stderr_has(&format!(
        "the image of '{name}' was created and stays; `machinist remove {name}` removes it"
    ));
    agree(name, There::Stopped);
}

#[test]
fn a_dry_run_of_create_touches_nothing() {
    let _host = shared();
    let guest = Guest::new("plan");
    let name = &guest.name;
    for source in ["template:busybox".to_owned(), format!("debian:{}", guest_suite())] {
        let plan = machinist(["create", name, &source, "--start", "--enable", "--dry-run"]).ok();
        assert!(
            plan.stdout
                .contains(&format!("rename it to '/var/lib/machines/{name}'")),
            "{plan:?}"
        );
        assert!(
            plan.stdout.contains(&format!("enable unit {}", guest.unit())),
            "{plan:?}"
        );
        assert!(
            plan.stdout.contains(&format!("start unit {}", guest.unit())),
            "{plan:?}"
        );
        assert_eq!(traces(name), Vec::<String>::new());
        let steps = machinist(["create", name, &source, "--dry-run", "--json"]).ok().json();
        assert!(
            steps["steps"].as_array().is_some_and(|steps| steps.len() > 4),
            "{steps}"
        );
    }
    agree(name, There::Nowhere);
}

#[test]
fn each_kind_of_network_is_real() {
    let _host = shared();
    let bridge = unique("b");
    run("ip", ["link", "add", &bridge, "type", "bridge"]).ok();
    let zone = unique("z");
    let links_in = |guest: &Guest| {
        let rows = run("nsenter", ["-t", &guest.leader().to_string(), "-n", "ip", "-j", "link"])
            .ok()
            .json();
        let names = rows
            .as_array()
            .unwrap()
            .iter()
            .map(|row| row["ifname"].as_str().unwrap().to_owned());
        names.collect::<Vec<_>>()
    };
    let master_of = |link: &str| run("ip", ["-j", "link", "show", "dev", link]).ok().json()[0]["master"].clone();
    for network in [
        "veth".to_owned(),
        "host".into(),
        "none".into(),
        format!("bridge={bridge}"),
        format!("zone={zone}"),
    ] {
        let guest = Guest::new("n");
        let name = &guest.name;
        machinist(["create", name, "template:busybox", "--network", &network, "--start"]).ok();
        match network.split('=').next().unwrap() {
            "host" => {
                let ours = fs::read_link("/proc/1/ns/net").unwrap();
                assert_eq!(fs::read_link(format!("/proc/{}/ns/net", guest.leader())).unwrap(), ours);
            }
            "none" => assert_eq!(links_in(&guest), ["lo"]),
            "bridge" => {
                assert_eq!(links_in(&guest), ["lo", "host0"]);
                assert_eq!(master_of(&format!("vb-{name}")), bridge.as_str());
            }
            "zone" => {
                assert_eq!(links_in(&guest), ["lo", "host0"]);
                assert_eq!(master_of(&format!("vb-{name}")), format!("vz-{zone}"));
            }
            _ => {
                assert_eq!(links_in(&guest), ["lo", "host0"]);
                run("ip", ["link", "show", "dev", &format!("ve-{name}")]).ok();
            }
        }
    }
    run("ip", ["link", "delete", &bridge]).ok();
}

#[test]
fn settings_are_written_and_in_force() {
    let _host = shared();
    let guest = Guest::new("set");
    let name = &guest.name;
    let words = [
        "--set",
        "Exec.Environment=GREETING=hello",
        "--set",
        "Files.TemporaryFileSystem=/mnt",
        "--hostname",
        "other",
    ];
    machinist(["create", name, "template:busybox"].into_iter().chain(words)).ok();
    guest.start();
    let environment = fs::read_to_string(format!("/proc/{}/environ", guest.leader())).unwrap();
    assert!(environment.contains("GREETING=hello"), "{environment:?}");
    let mounts = fs::read_to_string(format!("/proc/{}/mounts", guest.leader())).unwrap();
    assert!(mounts.contains("tmpfs /mnt tmpfs"), "{mounts}");
    assert_eq!(
        fs::read_to_string(guest.image().join("etc/hostname")).unwrap(),
        "other\n"
    );
    wait_until("the guest has its name", || {
        run("nsenter", ["-t", &guest.leader().to_string(), "-u", "hostname"])
            .ok()
            .stdout
            == "other\n"
    });
}

#[test]
fn a_root_password_works_and_comes_from_a_file_or_stdin() {
    let _host = shared();
    let guest = Guest::new("pw");
    let file = PathBuf::from(format!("/root/{}.password", guest.name));
    fs::write(&file, format!("{PASSWORD}\n")).unwrap();
    machinist([
        "create",
        &guest.name,
        "template:busybox",
        "--root-password-file",
        &file.to_string_lossy(),
    ])
    .ok()
    .lacks(PASSWORD);
    fs::remove_file(&file).unwrap();
    let hash = shadow_of_root(&guest.image());
    assert!(is_hash_of(&hash, PASSWORD), "{hash}");
    assert!(!is_hash_of(&hash, "another"), "{hash}");
    let mode = fs::metadata(guest.image().join("etc/shadow"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o7007, 0, "shadow is readable by others: {mode:o}");

    let other = Guest::new("pw");
    let create = ["create", &other.name, "template:busybox", "--root-password-file", "-"];
    machinist(create).stdin("zweites Paßwort").ok();
    assert!(is_hash_of(&shadow_of_root(&other.image()), "zweites Paßwort"));
    let empty = Guest::new("pw");
    let create = ["create", &empty.name, "template:busybox", "--root-password-file", "-"];
    machinist(create)
        .stdin("\n")
        .status(1)
        .fails_with("the root password in 'standard input' is empty", "--root-password-file");
    agree(&empty.name, There::Nowhere);
}

#[test]
fn an_ssh_key_is_installed_for_root_alone() {
    let _host = shared();
    let guest = Guest::new("key");
    let file = format!("/root/{}.pub", guest.name);
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHJkc5yQ2Q0fTn2hVf0mXq2a8m3kQ7m8m0bJ4y8vZ0Zt me@here\n";
    fs::write(&file, key).unwrap();
    machinist(["create", &guest.name, "template:busybox", "--ssh-key", &file]).ok();
    let installed = guest.image().join("root/.ssh/authorized_keys");
    assert_eq!(fs::read_to_string(&installed).unwrap(), key);
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!((mode(&installed), mode(installed.parent().unwrap())), (0o600, 0o700));
    let other = Guest::new("key");
    fs::write(&file, "-----BEGIN OPENSSH PRIVATE KEY-----\n").unwrap();
    machinist(["create", &other.name, "template:busybox", "--ssh-key", &file])
        .status(1)
        .fails_with(&format!("'{file}' has no ssh public key: it is a private key"), ".pub");
    fs::remove_file(&file).unwrap();
    agree(&other.name, There::Nowhere);
}

#[test]
fn what_the_guest_is_given_holds_inside() {
    let _host = shared();
    let guest = Guest::new("given");
    let name = guest.name.as_str();
    let seed = PathBuf::from(format!("/root/{name}.seed"));
    fs::create_dir(&seed).unwrap();
    machinist([
        "create",
        name,
        "template:busybox",
        "--cloud-init",
        &seed.to_string_lossy(),
    ])
    .status(1)
    .fails_with(
        &format!(
            "'{}' has nothing for cloud-init: neither user-data nor meta-data",
            seed.display()
        ),
        "NoCloud",
    );
    agree(name, There::Nowhere);
    fs::write(seed.join("user-data"), "#cloud-config\n").unwrap();
    let options = [
        "--user=alice",
        "--timezone=Etc/GMT-7",
        "--locale=C.UTF-8",
        "--dns=192.0.2.53",
        "--disable-unit=systemd-timesyncd",
        "--mask-unit=apt-daily.timer",
        &format!("--cloud-init={}", seed.display()),
    ];
    create_debian(name, &options);
    fs::remove_dir_all(&seed).unwrap();
    machinist(["start", name, "--wait"]).ok();
    let says = |command: &[&str], wanted: &str| {
        let words = [&["exec", "-u", "alice", name, "--"], command].concat();
        machinist(&words).any().stdout_has(wanted);
    };
    says(
        &[
            "/bin/sh",
            "-c",
            "id; echo ~; cat ~/.profile >/dev/null && touch ~/own && echo written",
        ],
        "written",
    );
    says(&["id"], "uid=1000(alice) gid=1000(alice) groups=1000(alice),27(sudo)");
    // The host's own zone would be there otherwise, by systemd-nspawn.
    says(&["readlink", "/etc/localtime"], "../usr/share/zoneinfo/Etc/GMT-7\n");
    says(&["cat", "/etc/locale.conf"], "LANG=C.UTF-8\n");
    says(&["systemctl", "is-enabled", "apt-daily.timer"], "masked\n");
    if guest.image().join("usr/lib/systemd/systemd-resolved").exists() {
        wait_until("its resolver knows the server", || {
            let resolver = guest.inside(["/usr/bin/resolvectl", "dns"]).any().stdout;
            resolver
                .lines()
                .any(|line| line.starts_with("Global:") && line.contains("192.0.2.53"))
        });
    } else {
        says(&["cat", "/etc/resolv.conf"], "nameserver 192.0.2.53\n");
    }
    let seed = guest.image().join("var/lib/cloud/seed/nocloud");
    assert_eq!(fs::read_to_string(seed.join("user-data")).unwrap(), "#cloud-config\n");
    let settings = fs::read_to_string(guest.settings()).unwrap();
    assert!(settings.contains("Timezone=off"), "{settings}");
}

#[test]
fn an_identity_is_kept_or_renewed() {
    let _host = shared();
    let original = Guest::busybox("whole");
    let id = "0123456789abcdef0123456789abcdef\n";
    fs::write(original.image().join("etc/hostname"), "chosen\n").unwrap();
    fs::write(original.image().join("etc/machine-id"), id).unwrap();
    let archive = format!("/root/{}.tar", original.name);
    run("tar", ["-C", &original.image().to_string_lossy(), "-cf", &archive, "."]).ok();
    let (kept, renewed) = (Guest::new("kept"), Guest::new("renewed"));
    machinist(["create", &kept.name, &archive, "--keep-identity", "--user=bob"]).ok();
    machinist(["create", &renewed.name, &archive]).ok();
    fs::remove_file(&archive).unwrap();
    let of = |guest: &Guest, path: &str| fs::read_to_string(guest.image().join(path)).unwrap();
    assert_eq!(
        (of(&kept, "etc/hostname"), of(&kept, "etc/machine-id")),
        ("chosen\n".into(), id.into())
    );
    assert_eq!(
        (of(&renewed, "etc/hostname"), of(&renewed, "etc/machine-id")),
        (format!("{}\n", renewed.name), String::new())
    );
    kept.start();
    machinist(["exec", "-u", "bob", &kept.name, "--", "/bin/busybox", "id", "-u"])
        .ok()
        .stdout_is("1000\n");
}

/// Looks at every process for as long as it lives, and says whether one had the password in its arguments.
fn watch_for_password(stop: &AtomicBool) -> Option<String> {
    let mut seen = None;
    while !stop.load(Ordering::SeqCst) {
        for entry in fs::read_dir("/proc").expect("reading /proc").flatten() {
            for file in ["cmdline", "environ"] {
                let bytes = fs::read(entry.path().join(file)).unwrap_or_default();
                if String::from_utf8_lossy(&bytes).replace('\0', " ").contains(PASSWORD) {
                    seen = Some(format!(
                        "{}: {}",
                        entry.path().display(),
                        String::from_utf8_lossy(&bytes)
                    ));
                }
            }
        }
        thread::sleep(Duration::from_millis(5));
    }
    seen
}

/// Tells the watcher to stop, also when what it watches has failed: the scope waits for it.
struct Watched<'a>(&'a AtomicBool);

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn debian_is_usable_at_once() {
    let _host = shared();
    let guest = Guest::new("web");
    let name = &guest.name;
    let secret = format!("/root/{name}.password");
    fs::write(&secret, PASSWORD).unwrap();
    let stop = AtomicBool::new(false);
    let seen = thread::scope(|scope| {
        let watcher = scope.spawn(|| watch_for_password(&stop));
        let watched = Watched(&stop);
        create_debian(name, &["--root-password-file", &secret, "--start"]).lacks(PASSWORD);
        drop(watched);
        watcher.join().expect("the watcher")
    });
    assert_eq!(seen, None, "the password was in a command line or environment");
    fs::remove_file(&secret).unwrap();
    sh(
        "! grep -rqF \"$1\" /var/log/machinist /var/cache/machinist --include='*.log' --include='*.json'",
        [PASSWORD],
    )
    .ok();
    sh("! journalctl -q --no-pager -o cat | grep -qF \"$1\"", [PASSWORD]).ok();
    assert!(is_hash_of(&shadow_of_root(&guest.image()), PASSWORD));

    machinist(["start", name, "--wait"]).ok();
    wait_until("all its jobs are done", || {
        ["running", "degraded"].contains(&run("systemctl", ["-M", name, "is-system-running"]).any().stdout.trim())
    });
    let failed = run("systemctl", ["-M", name, "--failed", "--no-legend", "--plain"])
        .ok()
        .stdout;
    assert_eq!(failed, "", "units failed in the guest");
    let address = address_of_host0(&guest);
    let by_machined = run("machinectl", ["list", "--no-legend", "--max-addresses=all"])
        .ok()
        .stdout;
    assert!(by_machined.contains(&address), "{by_machined}");
    let networkd = guest
        .inside(["networkctl", "status", "host0", "--no-pager"])
        .any()
        .stdout;
    assert!(networkd.contains("(DHCP"), "not by DHCP:\n{networkd}");
    assert_eq!(guest.inside(["hostname"]).any().stdout.trim(), name.as_str());
    let resolved = holds_within(PATIENCE, || {
        guest.inside(["getent", "ahostsv4", "deb.debian.org"]).any().status == 0
    });
    assert!(
        resolved,
        "names do not resolve: {:?}",
        guest.inside(["resolvectl", "status", "--no-pager"]).any()
    );
    guest
        .inside(["apt-get", "-q", "update", "-o", "Acquire::Check-Valid-Until=false"])
        .ok()
        .lacks("Err:");
    machinist(["stop", name]).ok();
    guest.is_down();
}

#[test]
fn the_second_create_is_a_copy_with_an_identity_of_its_own() {
    let _host = shared();
    let (one, two) = (Guest::debian("id"), Guest::new("id"));
    // Other tests bootstrap and sweep meanwhile: nothing but its own words tell what this one did.
    let said = create_debian(&two.name, &[]).stderr;
    assert!(said.contains("preparing the guest"), "{said}");
    for phase in ["downloading", "unpacking", "configuring"] {
        assert!(!said.contains(phase), "it was bootstrapped again: {said}");
    }
    let mode = fs::metadata("/var/cache/machinist").unwrap().mode() & 0o7777;
    assert_eq!(mode, 0o700, "the cache is open: {mode:o}");
    for guest in [&one, &two] {
        let id = fs::read_to_string(guest.image().join("etc/machine-id")).unwrap();
        assert!(["", "uninitialized\n"].contains(&id.as_str()), "machine-id is {id:?}");
        assert!(
            shadow_of_root(&guest.image()).starts_with(['!', '*']),
            "root is not locked"
        );
        assert_eq!(
            fs::read_to_string(guest.image().join("etc/hostname")).unwrap(),
            format!("{}\n", guest.name)
        );
    }
    // Owners, modes and links as in the cached tree, and as dpkg wants them.
    let list = |guest: &Guest| {
        let image = guest.image();
        let script = "cd \"$1\" && find . -xdev -printf '%p %y %m %U %G %n %l\\n' | sort";
        sh(script, [image.as_os_str()]).ok().stdout
    };
    assert!(list(&one) == list(&two), "two copies of one tree differ");
    let su = fs::metadata(one.image().join("usr/bin/su")).unwrap();
    assert_eq!(
        (su.mode() & 0o7777, su.uid()),
        (0o4755, 0),
        "su is not what it should be"
    );
    let shadow = fs::metadata(one.image().join("etc/shadow")).unwrap();
    assert_eq!((shadow.mode() & 0o7777, shadow.gid()), (0o640, 42));

    machinist(["start", &one.name, &two.name, "--wait"]).ok();
    let id = |guest: &Guest| guest.inside(["cat", "/etc/machine-id"]).ok().stdout;
    assert_eq!(id(&one).trim().len(), 32);
    assert_ne!(id(&one), id(&two));
    assert!(machine_property(&one.name, "State").is_some());
}

#[test]
fn tarballs_of_all_kinds_are_unpacked_as_tar_does() {
    let _host = shared();
    let work = PathBuf::from(format!("/root/{}", unique("tar")));
    let tree = work.join("tree");
    make_busybox_image(&tree);
    let exotic = r#"cd "$1/tree"
        mkdir -p opt/d/e "opt/a name with spaces" opt/$(printf 'x%.0s' $(seq 120))/$(printf 'y%.0s' $(seq 120))
        echo deep >opt/$(printf 'x%.0s' $(seq 120))/$(printf 'y%.0s' $(seq 120))/file
        echo one >opt/d/one; ln opt/d/one opt/d/two; ln -s /etc/passwd opt/d/absolute; ln -s ../../.. opt/d/up
        install -m 4755 bin/busybox opt/d/suid; mkfifo opt/d/fifo; chmod 1777 tmp
        echo owned >opt/d/owned; chown 1000:1001 opt/d/owned; chown -h 1000:1001 opt/d/absolute
        truncate -s 10M opt/d/sparse; printf end >>opt/d/sparse; : >opt/d/empty; chmod 000 opt/d/empty
        setcap cap_net_raw+ep opt/d/suid; setfattr -n user.test -v value opt/d/owned
        touch -d '2001-02-03 04:05:06.789' opt/d/one opt/d/e
        cd .. && tar --xattrs --xattrs-include='*' --format=pax -S -C tree -cf plain.tar .
        gzip -k -c plain.tar >a.tar.gz; xz -0 -k -c plain.tar >a.tar.xz; zstd -q -c plain.tar >a.tar.zst; bzip2 -k -c plain.tar >a.tar.bz2
        mkdir by-tar; tar --xattrs --xattrs-include='*' -C by-tar -xpf plain.tar"#;
    sh(exotic, [work.as_os_str()]).ok();
    let list = |root: &Path| {
        let script = "cd \"$1\" && find . -path ./etc -prune -o -printf '%p %y %m %U %G %n %s %l %T@\\n' |
            grep -vE '^\\./(usr|usr/lib|root|var|var/log|)? ?d |^\\. ' | sort
            getfattr -R -P -h -d -m '^(user|security.capability)' opt | sort
            find opt -type f -exec sha256sum {} + | sort";
        sh(script, [root.as_os_str()]).ok().stdout
    };
    let wanted = list(&work.join("by-tar"));
    assert!(wanted.contains("cap") && wanted.contains("./opt/d/fifo p"), "{wanted}");
    for file in ["plain.tar", "a.tar.gz", "a.tar.xz", "a.tar.zst", "a.tar.bz2"] {
        let guest = Guest::new("tar");
        machinist(["create", &guest.name, &work.join(file).to_string_lossy()]).ok();
        let ours = list(&guest.image());
        if ours != wanted {
            fs::write("/root/ours", &ours).unwrap();
            fs::write("/root/wanted", &wanted).unwrap();
            panic!(
                "{file} is not as tar unpacks it:\n{}",
                run("diff", ["/root/wanted", "/root/ours"]).any().stdout
            );
        }
        if file == "a.tar.zst" {
            guest.start();
            agree(&guest.name, There::Running);
        } else {
            agree(&guest.name, There::Stopped);
        }
    }
    fs::remove_dir_all(work).unwrap();
}
