//! clone: another machine like the first, and not the first one twice.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;

use crate::create::traces;
use crate::support::{
    Guest, There, agree, machine_property, machinist, newest_entry, run, sh, shared, unit_property, wait_until,
    with_priorities, write_program,
};

/// A name for a clone, with what there is of its secrets.
pub(crate) struct Clone(pub(crate) Guest);

impl Clone {
    pub(crate) fn of(stem: &str) -> Self {
        Self(Guest::new(stem))
    }
}

impl Drop for Clone {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(Path::new("/var/lib/machinist/secrets").join(&self.0.name));
    }
}

pub(crate) fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path.as_ref()).unwrap_or_else(|error| panic!("{}: {error}", path.as_ref().display()))
}

/// Has what a killed call left swept: another test's sweep may be at it, which ours passes over.
pub(crate) fn swept(name: &str) {
    let is_of = |entry: &fs::DirEntry| {
        let entry = entry.file_name().to_string_lossy().into_owned();
        entry.starts_with(".#machinist-") && entry.contains(&format!("-{name}-"))
    };
    wait_until("it is swept", || {
        machinist(["clean"]).ok();
        !fs::read_dir("/var/lib/machines")
            .unwrap()
            .flatten()
            .any(|entry| is_of(&entry))
    });
}

/// The file of the freezer of a machine's processes.
pub(crate) fn freezer(guest: &Guest) -> PathBuf {
    PathBuf::from(format!(
        "/sys/fs/cgroup/machine.slice/{}/payload/cgroup.freeze",
        guest.unit()
    ))
}

#[test]
fn a_clone_runs_beside_its_source_as_somebody_else() {
    let _host = shared();
    let guest = Guest::debian("cl");
    let name = guest.name.as_str();
    // No ssh in a minimal Debian: what would make its keys is asked to, by the unit that clone adds.
    let image = guest.image();
    write_program(&image.join("usr/sbin/sshd"), "#!/bin/sh\n");
    write_program(
        &image.join("usr/bin/ssh-keygen"),
        "#!/bin/sh\necho new >/etc/ssh/ssh_host_rsa_key\n",
    );
    fs::create_dir_all(image.join("etc/ssh")).unwrap();
    fs::write(image.join("etc/ssh/ssh_host_rsa_key"), "secret\n").unwrap();
    machinist(["start", name, "--wait"]).ok();
    fs::write(image.join("root/note"), "kept\n").unwrap();

    let clone = Clone::of("cl2");
    let clone = &clone.0;
    let other = clone.name.as_str();
    let output = machinist(["clone", name, other, "--json"]).ok();
    let row = &output.json()[0];
    assert_eq!((&row["machine"], &row["result"]), (&other.into(), &"cloned".into()));
    assert_eq!(
        (&row["source"], &row["path"]),
        (&name.into(), &clone.image().to_str().unwrap().into())
    );
    assert_eq!(read(freezer(&guest)), "0\n", "the source is left frozen");
    agree(name, There::Running);
    agree(other, There::Stopped);
    assert_eq!(read(clone.image().join("root/note")), "kept\n");
    assert_eq!(read(clone.image().join("etc/machine-id")), "");
    assert_eq!(read(clone.image().join("etc/hostname")), format!("{other}\n"));
    assert!(read(clone.image().join("etc/hosts")).contains(&format!("\t{other}\n")));
    assert!(!clone.image().join("etc/ssh/ssh_host_rsa_key").exists());

    machinist(["start", other, "--wait"]).ok();
    assert_eq!(clone.inside(["hostname"]).ok().stdout, format!("{other}\n"));
    assert_eq!(guest.inside(["hostname"]).ok().stdout, format!("{name}\n"));
    let ids = [&guest, clone].map(|guest| guest.inside(["cat", "/etc/machine-id"]).ok().stdout);
    assert!(ids[0] != ids[1] && ids[1].len() == 33, "{ids:?}");
    let machined = [name, other].map(|name| machine_property(name, "Id").unwrap());
    assert_ne!(machined[0], machined[1]);
    wait_until("the clone has made its keys", || {
        fs::read_to_string(clone.image().join("etc/ssh/ssh_host_rsa_key")).is_ok_and(|key| key == "new\n")
    });
    assert_eq!(read(image.join("etc/ssh/ssh_host_rsa_key")), "secret\n");
    let links = [&guest, clone].map(|guest| guest.inside(["cat", "/sys/class/net/host0/address"]).ok().stdout);
    assert_ne!(links[0], links[1]);
    let failed = clone
        .inside(["systemctl", "--failed", "--no-legend", "--plain"])
        .ok()
        .stdout;
    assert_eq!(failed, "");
    let entry = newest_entry(&[format!("MACHINE={other}"), "MACHINIST_VERB=clone".to_owned()]).unwrap();
    assert_eq!(entry["MACHINIST_RESULT"], "done", "{entry}");
}

#[test]
fn what_is_said_of_a_machine_holds_for_its_clone() {
    let _host = with_priorities();
    let (guest, before) = (Guest::busybox("set"), Guest::busybox("setb"));
    let name = guest.name.as_str();
    guest.write_settings(&format!(
        "# mine\n[Exec]\nKillSignal=SIGUSR2\nHostname={name}\nMachineID=0123456789abcdef0123456789abcdef\n\
         [Network]\nPort=tcp:18080:80\n"
    ));
    guest.write_drop_in("[Service]\nNice=5\nEnvironment=SYSTEMD_NSPAWN_NETWORK_MAC=02:00:00:00:00:07\n");
    machinist(["limit", name, "memory=123M", "tasks=77"]).ok();
    machinist([
        "order",
        name,
        "--after",
        &before.name,
        "--delay",
        "1s",
        "--group",
        "shop",
    ])
    .ok();
    let later = Guest::busybox("setl");
    machinist(["order", name, "--priority", "20"]).ok();
    machinist(["order", &later.name, "--priority", "10"]).ok();
    machinist(["label", name, "role=web"]).ok();
    machinist(["secret", "set", name, "token"]).stdin("s3cret").ok();
    machinist(["enable", name]).ok();
    machinist(["protect", name, "on"]).ok();

    let clone = Clone::of("setc");
    let clone = &clone.0;
    let other = clone.name.as_str();
    let steps = machinist(["clone", name, other, "--dry-run"]).ok();
    assert!(
        steps.stdout.contains("give it an identity of its own") && traces(other).is_empty(),
        "{steps:?}"
    );
    machinist(["clone", name, other])
        .ok()
        .stdout_is("")
        .stderr_has(&format!("cloned {name} to {other}\n"))
        .stderr_has(&format!(
            "'{name}' and '{other}' both forward the same port of the host: Port=tcp:18080:80; "
        ));
    assert_eq!(
        read(clone.settings()),
        format!("# mine\n[Exec]\nKillSignal=SIGUSR2\nHostname={other}\n[Network]\nPort=tcp:18080:80\n")
    );
    // systemd has it.
    assert_eq!(clone.property("MemoryMax"), (123 << 20).to_string());
    assert_eq!(clone.property("TasksMax"), "77");
    assert_eq!(clone.property("Nice"), "5");
    assert_eq!(clone.property("Environment"), "");
    assert_eq!(clone.property("NeedDaemonReload"), "no");
    assert!(clone.property("After").contains(&before.unit()));
    let follows = later.property("After");
    assert!(
        follows.contains(&guest.unit()) && follows.contains(&clone.unit()),
        "{follows}"
    );
    assert!(clone.property("ExecStartPre").contains("sleep 1"));
    let files = clone.property("DropInPaths");
    assert!(
        !files.contains(name) && files.contains("/etc/systemd/system.control/"),
        "{files}"
    );
    assert_ne!(
        run("systemctl", ["is-enabled", &clone.unit()]).any().stdout,
        "enabled\n"
    );
    machinist(["label", other]).ok().stdout_has("web");
    let orders = machinist(["order", other, "--json"]).ok().json();
    assert_eq!(orders[0]["group"], serde_json::json!(["shop"]));
    let own = read(clone.drop_ins().join("50-machinist-secret.conf"));
    assert!(
        own.contains(&format!("/var/lib/machinist/secrets/{other}/token")) && !own.contains(name),
        "{own}"
    );
    clone.start();
    let given = format!("/proc/{}/root/run/host/credentials/token", clone.leader());
    assert_eq!(read(given), "s3cret");
    // The original is what it was, and neither knows the other: what is changed of one stays there.
    assert!(read(guest.settings()).contains("MachineID=0123"));
    machinist(["limit", other, "tasks=88"]).ok();
    assert_eq!(
        (guest.property("TasksMax"), clone.property("TasksMax")),
        ("77".into(), "88".into())
    );
    machinist(["stop", other]).ok();
    // All of it is machinist's to remove, but for what an administrator wrote.
    machinist(["remove", "-y", other])
        .ok()
        .stderr_has("kept what was not machinist's");
    assert!(!clone.drop_ins().exists() && !clone.limits()[0].exists());
    assert!(!Path::new("/var/lib/machinist/secrets").join(other).exists());
    let trash = "rm -rf /var/lib/machinist/trash/\"$1\"-*";
    sh(trash, [other]).ok();

    let exact = Clone::of("sete");
    machinist(["clone", name, &exact.0.name, "--keep-identity", "--full"]).ok();
    assert!(read(exact.0.settings()).contains("MachineID=0123"));
    assert!(exact.0.property("Environment").contains("02:00:00:00:00:07"));
    machinist(["secret", "remove", name, "token"]).ok();
}

/// Has an image count in two files, which differ by one at most if nothing is torn; many others lie between them.
pub(crate) fn make_it_count(image: &Path) {
    let script = "#!/bin/sh\ni=0\nwhile :; do i=$((i+1)); echo $i >/a/count; echo $i >/z/count; done\n";
    write_program(&image.join("bin/counts"), script);
    fs::write(image.join("etc/inittab"), "::respawn:/bin/counts\n").unwrap();
    for directory in ["a", "z", "m"] {
        fs::create_dir(image.join(directory)).unwrap();
    }
    let many = "cd \"$1/m\"; for i in $(seq 60); do mkdir $i; for j in $(seq 40); do echo $i >$i/$j; done; done";
    sh(many, [image]).ok();
}

#[test]
fn a_running_machine_is_copied_at_one_moment() {
    let _host = shared();
    let guest = Guest::busybox("torn");
    let name = guest.name.as_str();
    let image = guest.image();
    make_it_count(&image);
    guest.start();
    // There is nothing before the machine's first round.
    let count = |image: &Path, directory: &str| -> Option<u64> {
        let count = fs::read_to_string(image.join(directory).join("count")).ok()?;
        count.trim().parse().ok()
    };
    wait_until("it counts", || count(&image, "z").is_some_and(|number| number > 100));
    for _ in 0..3 {
        let clone = Clone::of("torn2");
        machinist(["clone", name, &clone.0.name]).ok();
        // The shell may stand between emptying and writing a file.
        let both = (count(&clone.0.image(), "a"), count(&clone.0.image(), "z"));
        if let (Some(a), Some(z)) = both {
            assert!(a == z || a == z + 1, "torn: {a} and {z}");
        } else {
            assert_ne!(both, (None, None), "both files are being written at once");
        }
    }
    // So it is for a copy to throw away.
    for _ in 0..3 {
        let said = machinist(["run", "-x", name, "--", "sh", "-c", "cat /a/count /z/count"]).ok();
        let counts: Vec<u64> = said.stdout.lines().map(|line| line.parse().unwrap()).collect();
        match counts[..] {
            [a, z] => assert!(a == z || a == z + 1, "torn: {a} and {z}"),
            _ => assert_eq!(counts.len(), 1, "{said:?}"),
        }
    }
    let now = count(&image, "a");
    wait_until("the source goes on", || count(&image, "a") != now);
    assert_eq!(guest.property("ActiveState"), "active");
    wait_until("the guard is gone", || {
        unit_property(&format!("machinist-thaw-{name}.service"), "ActiveState") == "inactive"
    });
    // It thaws also as systemd has read it again, which 252 does not do to the letter.
    let clone = Clone::of("torn3");
    let hold = |_| {
        let mut cloning = machinist(["clone", name, &clone.0.name]).spawn();
        while read(freezer(&guest)) == "0\n" && !cloning.has_ended() {}
        cloning.signal(Signal::SIGSTOP);
        if read(freezer(&guest)) == "1\n" {
            return Some(cloning);
        }
        // Over before it was looked at.
        cloning.signal(Signal::SIGCONT);
        cloning.wait();
        machinist(["remove", "--yes", &clone.0.name]).ok();
        None
    };
    let held = (0..20).find_map(hold).expect("a source that is held still");
    run("systemctl", ["daemon-reload"]).ok();
    held.signal(Signal::SIGKILL);
    held.wait();
    wait_until("the source is thawed", || read(freezer(&guest)) == "0\n");
}

#[test]
fn a_clone_killed_before_each_step_leaves_nothing_and_nobody_frozen() {
    let _host = with_priorities();
    let guest = Guest::busybox("cdie");
    let name = guest.name.as_str();
    machinist(["limit", name, "tasks=77"]).ok();
    machinist(["secret", "set", name, "token"]).stdin("s3cret").ok();
    let later = Guest::busybox("cdiel");
    machinist(["order", name, "--priority", "20"]).ok();
    machinist(["order", &later.name, "--priority", "10"]).ok();
    guest.start();
    let clone = Clone::of("cdie2");
    let (clone, mut died) = (&clone.0, 0);
    let other = clone.name.as_str();
    loop {
        let output = machinist(["clone", name, other])
            .env("MACHINIST_DIE_AT_STEP", died.to_string())
            .any();
        if output.status == 0 {
            break;
        }
        assert_eq!(output.status, 128 + 9, "step {died}\n{output:?}");
        agree(other, There::Nowhere);
        wait_until("the source is thawed", || read(freezer(&guest)) == "0\n");
        died += 1;
    }
    assert!(died >= 10, "only {died} steps");
    agree(other, There::Stopped);
    assert_eq!(clone.property("TasksMax"), "77");
    // Killed when all was written but the image: a sweep takes that back, and systemd forgets it.
    let last = Clone::of("cdie3");
    let last = &last.0;
    machinist(["clone", name, &last.name])
        .env("MACHINIST_DIE_AT_STEP", "last")
        .status(128 + 9);
    assert!(last.drop_ins().exists() && last.settings().exists() && last.limits()[0].exists());
    fs::write(last.settings(), "# mine\n").unwrap();
    swept(&last.name);
    assert_eq!(
        traces(&last.name),
        [format!("/etc/systemd/nspawn/{}.nspawn", last.name)]
    );
    assert_eq!(
        read(last.settings()),
        "# mine\n",
        "what was changed since is an administrator's"
    );
    assert!(!last.limits()[0].exists() && !Path::new("/var/lib/machinist/secrets").join(&last.name).exists());
    assert_ne!(last.property("TasksMax"), "77");
    let follows = later.property("After");
    assert!(
        follows.contains(&clone.unit()) && !follows.contains(&last.unit()),
        "{follows}"
    );
    machinist(["stop", name]).ok();
    machinist(["secret", "remove", name, "token"]).ok();
}
