//! export and import: the same machine again, and those of other tools.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;

use crate::clone::{freezer, make_it_count, read};
use crate::create::traces;
use crate::support::{Guest, There, agree, machinist, newest_entry, run, sh, shared, unit_property, wait_until};

/// A directory for archives, that goes with the test.
pub(crate) struct Shelf(pub(crate) PathBuf);

impl Shelf {
    pub(crate) fn new(guest: &Guest) -> Self {
        let directory = PathBuf::from(format!("/root/shelf-{}", guest.name));
        fs::create_dir_all(&directory).unwrap();
        Self(directory)
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.0.join(name).to_string_lossy().into_owned()
    }

    /// What is on it.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap().flatten();
        let mut names: Vec<String> = entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

impl Drop for Shelf {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Everything of a tree that a tar can have.
pub(crate) fn listing(image: &Path) -> String {
    let script = "cd \"$1\"; find . -printf '%p %M %n %U:%G %s %t %l\\n' | sort
        find . -type f -exec sha256sum {} + | sort -k2; getfattr -R -d -m - . 2>/dev/null | sort; getcap -r . 2>/dev/null";
    sh(script, [image]).ok().stdout
}

#[test]
fn a_machine_comes_back_as_it_was() {
    let _host = shared();
    let guest = Guest::busybox("exa");
    let name = guest.name.as_str();
    let shelf = Shelf::new(&guest);
    guest.write_settings(&format!(
        "# mine\n[Exec]\nKillSignal=SIGUSR2\nHostname={name}\nMachineID=0123456789abcdef0123456789abcdef\n"
    ));
    guest.write_drop_in("[Service]\nNice=5\nEnvironment=SYSTEMD_NSPAWN_NETWORK_MAC=02:00:00:00:00:07\n");
    machinist(["limit", name, "memory=123M", "tasks=77"]).ok();
    machinist(["order", name, "--delay", "1s", "--group", "shop"]).ok();
    machinist(["label", name, "role=web"]).ok();
    machinist(["protect", name, "on"]).ok();
    machinist(["secret", "set", name, "token"]).stdin("s3cret").ok();
    let kinds = r#"cd "$1"; mkdir k; cd k; echo data >one; ln one two; mkfifo fifo; truncate -s 20M sparse; echo >>sparse
        ln -s /etc/shadow link; cp /bin/busybox cap; setcap cap_net_raw+ep cap; setfattr -n user.b -v hi one; setfattr -n user.a -v ho one
        setfacl -m u:1000:r one; mkdir d; chmod 2775 d; chown 7:8 d; chmod 4750 two; touch -d '2001-02-03 04:05:06' one d
        printf x >"$(printf 'b\377d')"; touch "$(head -c 150 /dev/zero | tr '\0' n)""#;
    sh(kinds, [guest.image()]).ok();
    let before = listing(&guest.image());
    let file = shelf.path("a.tar.zst");
    let steps = machinist(["export", name, &file, "--dry-run"]).ok();
    assert!(steps.stdout.contains("write 'machinist/settings/machine.nspawn'") && shelf.names().is_empty());
    let output = machinist(["export", name, &file, "--json"]).ok();
    let row = output.json()[0].clone();
    assert_eq!(
        (&row["result"], &row["path"]),
        (&"exported".into(), &file.as_str().into())
    );
    assert!(output.stderr.contains("1 secrets are not exported"), "{output:?}");
    // The same machine makes the same bytes, and tar reads them.
    machinist(["export", name, &shelf.path("b.tar.zst")]).ok();
    run("cmp", [&file, &shelf.path("b.tar.zst")]).ok();
    sh(
        "zstd -dc \"$1\" | tar -t >/dev/null; test \"$(stat -c %a \"$1\")\" = 600",
        [&file],
    )
    .ok();
    assert_eq!(shelf.names(), ["a.tar.zst", "b.tar.zst"]);

    machinist(["protect", name, "off"]).ok();
    machinist(["secret", "remove", name, "token"]).ok();
    machinist(["remove", "-y", name]).ok();
    sh(
        "rm -rf /var/lib/machinist/trash/\"$1\"-* /etc/systemd/system/systemd-nspawn@\"$1\".service.d",
        [name],
    )
    .ok();
    fs::remove_file(guest.settings()).ok();
    run("systemctl", ["daemon-reload"]).ok();
    agree(name, There::Nowhere);
    machinist(["import", &file, "--dry-run"])
        .ok()
        .stdout_has("rename it to");
    assert_eq!(traces(name), Vec::<String>::new());
    let output = machinist(["import", &file, "--json"]).ok();
    let row = &output.json()[0];
    assert_eq!((&row["machine"], &row["kind"]), (&name.into(), &"machinist".into()));
    assert_eq!(row["reaching"], serde_json::json!([]), "{output:?}");
    agree(name, There::Stopped);
    assert_eq!(listing(&guest.image()), before);
    // systemd has what it had.
    let limits = ["MemoryMax", "TasksMax", "Nice", "NeedDaemonReload"].map(|key| guest.property(key));
    assert_eq!(limits, [&(123 << 20).to_string(), "77", "5", "no"]);
    assert!(guest.property("Environment").contains("02:00:00:00:00:07"));
    assert!(guest.property("ExecStartPre").contains("sleep 1"));
    machinist(["label", name]).ok().stdout_has("web");
    machinist(["remove", "-y", name]).status(1).stderr_has("is protected");
    assert_eq!(
        machinist(["order", name, "--json"]).ok().json()[0]["group"],
        serde_json::json!(["shop"])
    );
    assert!(read(guest.settings()).contains("MachineID=0123"));
    // What it is now makes the same archive, but for comments; and again.
    let tree = |file: &str| machinist(["export", name, file, "--json"]).ok().json()[0]["sha256"].clone();
    let first = machinist(["export", name, &shelf.path("c.tar"), "--json"]).ok().json()[0]["sha256"].clone();
    assert_eq!(first, tree(&shelf.path("d.tar.xz")));
    let sum = sh("zstd -dc \"$1\" | tar -xO machinist/manifest.json", [&file])
        .ok()
        .stdout;
    assert!(sum.contains(first.as_str().unwrap()), "{sum}\n{first}");
    guest.start();
    assert_eq!(
        machinist(["exec", name, "--", "hostname"]).ok().stdout,
        format!("{name}\n")
    );
    assert_eq!(machinist(["exec", name, "--", "cat", "/k/two"]).ok().stdout, "data\n");
    let entry = newest_entry(&[format!("MACHINE={name}"), "MACHINIST_VERB=import".to_owned()]).unwrap();
    assert_eq!(entry["MACHINIST_RESULT"], "done", "{entry}");
    goes_down_a_pipe(&guest);
    machinist(["protect", name, "off"]).ok();
}

/// Of a running machine comes another one.
fn goes_down_a_pipe(guest: &Guest) {
    let (name, other) = (guest.name.as_str(), Guest::new("exa2"));
    let pipe = "set -o pipefail; machinist export \"$1\" - | machinist import - \"$2\" --new-identity";
    sh(pipe, [name, &other.name]).ok();
    machinist(["protect", &other.name, "off"]).ok();
    assert_eq!(read(freezer(guest)), "0\n");
    let settings = read(other.settings());
    assert!(
        settings.contains(&format!("Hostname={}", other.name)) && !settings.contains("MachineID"),
        "{settings}"
    );
    assert_eq!(other.property("TasksMax"), "77");
    assert_eq!(other.property("Environment"), "");
    other.start();
    assert_eq!(
        machinist(["exec", &other.name, "--", "hostname"]).ok().stdout,
        format!("{}\n", other.name)
    );
}

#[test]
fn a_strangers_archive_gets_no_power_over_the_host() {
    let _host = shared();
    let guest = Guest::busybox("exs");
    let (name, mark) = (guest.name.as_str(), format!("/root/mark-{}", guest.name));
    let shelf = Shelf::new(&guest);
    guest.write_settings(
        "[Exec]\nKillSignal=SIGUSR2\nPrivateUsers=no\nCapability=all\n[Files]\nBind=/root:/host\nPrivateUsersOwnership=off\n\
         [Network]\nVirtualEthernet=no\n",
    );
    guest.write_drop_in(&format!(
        "[Service]\nExecStartPre=/usr/bin/touch {mark}\nDeviceAllow=block-* rwm\nRestart=no\n[Install]\nWantedBy=x.target\n"
    ));
    let file = shelf.path("web.tar");
    machinist(["export", name, &file]).ok();
    let other = Guest::new("exs2");
    let output = machinist(["import", &file, &other.name]).ok();
    for line in [
        "[Exec] PrivateUsers=no",
        "[Exec] Capability=all",
        "[Files] Bind=/root:/host",
        "[Files] PrivateUsersOwnership=off",
        "[Network] VirtualEthernet=no",
        "[Service] DeviceAllow=block-* rwm",
    ] {
        assert!(output.stderr.contains(line), "no {line} in {output:?}");
    }
    assert!(output.stderr.contains("--trust-settings"), "{output:?}");
    assert_eq!(
        read(other.settings())
            .lines()
            .filter(|line| line.contains('='))
            .collect::<Vec<_>>(),
        ["KillSignal=SIGUSR2"]
    );
    assert_eq!(other.property("ExecStartPre"), "");
    assert_eq!(other.property("Restart"), "no");
    other.start();
    assert!(!Path::new(&mark).exists());
    // Its root is not the host's.
    let users = read(format!("/proc/{}/uid_map", other.leader()));
    assert_ne!(users.split_whitespace().nth(1), Some("0"), "{users}");
    assert_ne!(
        fs::read_link(format!("/proc/{}/ns/net", other.leader())).unwrap(),
        fs::read_link("/proc/self/ns/net").unwrap()
    );
    machinist(["exec", &other.name, "--", "busybox", "test", "-e", "/host"]).status(1);
    // Said out loud, it gets all of it; shown before.
    let third = Guest::new("exs3");
    let words = ["import", "--trust-settings", &file, &third.name];
    let shown = machinist(words).args(["--dry-run"]).ok();
    assert!(shown.stderr.contains("[Files] Bind=/root:/host"), "{shown:?}");
    assert!(!third.settings().exists());
    let output = machinist(words).ok();
    assert!(output.stderr.contains("[Files] Bind=/root:/host"), "{output:?}");
    assert!(read(third.settings()).contains("Bind=/root:/host"));
    assert!(third.property("ExecStartPre").contains(&mark));
    let unit = read(third.drop_ins().join("50-test.conf"));
    assert!(!unit.contains("Install"), "{unit}");
}

#[test]
fn a_running_machine_is_exported_at_one_moment() {
    let _host = shared();
    let guest = Guest::busybox("ext");
    let (name, image) = (guest.name.as_str(), guest.image());
    let shelf = Shelf::new(&guest);
    make_it_count(&image);
    guest.start();
    let now = || {
        fs::read_to_string(image.join("z/count"))
            .ok()?
            .trim()
            .parse::<u64>()
            .ok()
    };
    wait_until("it counts", || now().is_some_and(|number| number > 100));
    for _ in 0..3 {
        let file = shelf.path("t.tar");
        machinist(["export", "--force", name, &file]).ok();
        let counted = sh("tar -xOf \"$1\" rootfs/a/count rootfs/z/count", [&file]).ok().stdout;
        let counts: Vec<u64> = counted.lines().map(|line| line.parse().unwrap()).collect();
        // The shell may stand between emptying and writing a file.
        if let [a, z] = counts[..] {
            assert!(a == z || a == z + 1, "torn: {a} and {z}");
        }
    }
    let then = now();
    wait_until("it goes on", || now().is_some_and(|number| Some(number) != then));
    // Killed while it is held, it goes on, and nothing is on the shelf.
    let file = shelf.path("killed.tar.xz");
    let hold = |_| {
        let mut exporting = machinist(["export", name, &file]).spawn();
        while read(freezer(&guest)) == "0\n" && !exporting.has_ended() {}
        exporting.signal(Signal::SIGKILL);
        let killed = exporting.wait().status != 0;
        let _ = fs::remove_file(if killed {
            Path::new("/nowhere")
        } else {
            Path::new(&file)
        });
        killed.then_some(())
    };
    (0..20).find_map(hold).expect("an export that is killed");
    wait_until("it is thawed", || read(freezer(&guest)) == "0\n");
    assert_eq!(shelf.names(), ["t.tar"]);
    wait_until("the guard is gone", || {
        unit_property(&format!("machinist-thaw-{name}.service"), "ActiveState") == "inactive"
    });
}

#[test]
fn a_linked_clone_is_exported_whole() {
    let _host = shared();
    let (guest, clone) = (Guest::busybox("exl"), Guest::new("exl2"));
    let shelf = Shelf::new(&guest);
    fs::write(guest.image().join("etc/both"), "first\n").unwrap();
    machinist(["clone", "--linked", &guest.name, &clone.name]).ok();
    fs::write(clone.image().join("etc/own"), "own\n").unwrap();
    fs::remove_file(clone.image().join("sbin/init")).unwrap();
    std::os::unix::fs::symlink("/bin/busybox", clone.image().join("sbin/init")).unwrap();
    let file = shelf.path("linked.tar.gz");
    machinist(["export", &clone.name, &file]).ok();
    machinist(["remove", "-y", &clone.name]).ok();
    machinist(["import", &file]).ok();
    let image = clone.image();
    assert_eq!(
        (read(image.join("etc/both")), read(image.join("etc/own"))),
        ("first\n".into(), "own\n".into())
    );
    let settings = read(clone.settings());
    assert!(!settings.contains("PrivateUsersOwnership"), "{settings}");
    clone.start();
    machinist(["exec", &clone.name, "--", "cat", "/etc/own"])
        .ok()
        .stdout_is("own\n");
    machinist(["remove", "-y", "--force", &clone.name, &guest.name]).ok();
}

#[test]
fn what_machinectl_exports_is_a_machine_again() {
    let _host = shared();
    let (guest, other) = (Guest::busybox("exm"), Guest::new("exm2"));
    let shelf = Shelf::new(&guest);
    // As it is on the disk of a machine that has run.
    guest.start();
    machinist(["stop", &guest.name]).ok();
    let file = shelf.path("web.tar.gz");
    run("machinectl", ["export-tar", &guest.name, &file]).ok();
    machinist(["import", &file, &other.name]).ok();
    agree(&other.name, There::Stopped);
    other.write_settings("[Exec]\nKillSignal=SIGUSR2\n");
    other.start();
    machinist(["exec", &other.name, "--", "cat", "/etc/os-release"])
        .ok()
        .stdout_has("ID=busybox");
}
