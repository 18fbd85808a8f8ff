//! run without a command, and without us.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::run::{copies, is_gone, unit, unit_property};
use crate::support::{
    Guest, Running, There, agree, holds_within, machine_property, machinist, newest_entry, run, sh, shared, stays,
    unique, wait_until,
};

/// Boots one, and waits until its init runs.
#[track_caller]
pub(crate) fn boot(words: &[&str]) -> Running {
    let mut running = machinist(words.iter().copied()).spawn();
    // From then on the first signal asks it to power off; before, it takes it down.
    let says = if words.contains(&"--json") {
        "\"started\""
    } else {
        "is up: "
    };
    let in_time = holds_within(Duration::from_secs(90), || {
        running.has_said(says) || running.has_ended()
    });
    assert!(
        in_time && !running.has_ended(),
        "it does not boot: {:?}",
        running.wait()
    );
    running
}

pub(crate) fn init_of(name: &str) -> String {
    let leader = machine_property(name, "Leader").unwrap_or_default();
    fs::read_to_string(format!("/proc/{leader}/comm")).unwrap_or_default()
}

/// How many processes of our helper keep a machine up.
fn keepers() -> usize {
    let found = run("pgrep", ["-cxf", "machinist: enter"]).any();
    found.stdout.trim().parse().unwrap_or(0)
}

/// The copy goes without us, a moment after its machine.
#[track_caller]
pub(crate) fn copy_goes(of: &str) {
    wait_until("the copy has gone", || copies(of).is_empty());
}

#[test]
fn a_machine_boots_in_place_until_it_is_told_to_end() {
    let _host = shared();
    let guest = Guest::busybox("rbplace");
    let name = guest.name.as_str();
    machinist(["limit", name, "tasks=77"]).ok();
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let running = boot(&["run", name, "--memory", "64M"]);
        assert_eq!(init_of(name), "init\n");
        assert_eq!(machine_property(name, "Unit"), Some(unit(name)));
        for (property, value) in [
            ("ActiveState", "active"),
            ("Slice", "machine.slice"),
            ("Delegate", "yes"),
            ("Type", "notify"),
            ("KillMode", "mixed"),
            ("DevicePolicy", "closed"),
            ("RestartForceExitStatus", "133"),
            ("SuccessExitStatus", "133"),
            ("TasksMax", "77"),
            ("MemoryMax", "67108864"),
        ] {
            assert_eq!(unit_property(name, property), value, "{property}");
        }
        agree(name, There::Running);
        // systemd can read what it has written of the unit, and knows its end.
        run("systemctl", ["daemon-reload"]).ok();
        assert_eq!(unit_property(name, "ActiveState"), "active");
        machinist(["run", name]).status(125).stderr_has("is running");
        running.signal(signal);
        let ran = running.wait();
        assert_eq!((ran.status, ran.stdout.as_str()), (0, ""), "{ran:?}");
        let hint = format!("`machinist exec {name} -- sh`");
        ran.stderr_has(&hint).stderr_has("has powered off");
        is_gone(name);
        agree(name, There::Stopped);
    }
    let said = newest_entry(&[format!("MACHINE={name}"), "MACHINIST_VERB=run".to_owned()]).unwrap();
    assert_eq!(said["MACHINIST_RESULT"], "failed", "the last was refused: {said}");
    // Its own end, and that of another who stops it.
    let running = boot(&["run", name, "--json"]);
    machinist(["exec", name, "--", "/bin/busybox", "poweroff"]).ok();
    let ran = running.wait();
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""), "{ran:?}");
    let row = &ran.json()[0];
    assert_eq!((&row["machine"], &row["result"]), (&name.into(), &"started".into()));
    assert_eq!((&row["unit"], &row["ephemeral"]), (&unit(name).into(), &false.into()));
    let running = boot(&["run", name]);
    machinist(["stop", name]).ok();
    assert_eq!(running.wait().status, 0);
    is_gone(name);
    // Its own unit has nothing to do with it.
    guest.start();
    machinist(["stop", name]).ok();
}

#[test]
fn a_reboot_is_no_end_and_a_copy_outlives_it() {
    let _host = shared();
    let guest = Guest::busybox("rbreboot");
    let name = guest.name.as_str();
    let copy = unique("rbcopy");
    let mut running = boot(&["run", "-x", name, "--name", &copy]);
    machinist(["exec", &copy, "--", "sh", "-c", "echo kept >/seen"]).ok();
    for _ in 0..2 {
        let before = unit_property(&copy, "InvocationID");
        machinist(["exec", &copy, "--", "/bin/busybox", "reboot"]).ok();
        wait_until("it is up again", || {
            // Nobody takes the copy meanwhile.
            machinist(["clean"]).ok();
            unit_property(&copy, "InvocationID") != before && init_of(&copy) == "init\n"
        });
        machinist(["exec", &copy, "--", "cat", "/seen"])
            .ok()
            .stdout_is("kept\n");
    }
    assert!(!running.has_ended());
    assert_eq!(copies(name).len(), 1);
    assert!(!guest.image().join("seen").exists());
    running.signal(Signal::SIGINT);
    assert_eq!(running.wait().status, 0);
    is_gone(&copy);
    assert!(copies(name).is_empty());
}

#[test]
fn what_ends_badly_says_so() {
    let _host = shared();
    let guest = Guest::deaf("rbdeaf");
    let name = guest.name.as_str();
    // The second signal does not ask.
    let running = boot(&["run", name]);
    running.signal(Signal::SIGINT);
    wait_until("it is asked", || unit_property(name, "ActiveState") == "deactivating");
    running.signal(Signal::SIGINT);
    let ran = running.wait();
    assert_eq!(ran.status, 130, "{ran:?}");
    ran.stderr_has("was taken down").quicker_than(Duration::from_secs(20));
    is_gone(name);
    // Killed from outside.
    let running = boot(&["run", name]);
    run("systemctl", ["kill", "-s", "KILL", "--kill-whom=main", &unit(name)]).ok();
    let ran = running.wait();
    assert_eq!(ran.status, 1, "{ran:?}");
    ran.stderr_has(&format!("cannot run machine '{name}'"));
    is_gone(name);
    // Its time is over.
    guest.write_settings("[Exec]\nKillSignal=SIGUSR2\n");
    let copy = unique("rbtime");
    let ran = machinist(["run", "-x", name, "--name", &copy, "--timeout", "2"]).status(124);
    ran.stderr_has("its time was over");
    assert!(copies(name).is_empty());
    is_gone(&copy);
    // No init.
    fs::remove_file(guest.image().join("sbin/init")).unwrap();
    let ran = machinist(["run", name]).status(125);
    ran.stderr_has("there is no init in its image");
    is_gone(name);
    // A unit of that name is another's, and stays as it is.
    let other = unit("rbother");
    run("systemd-run", ["-q", "--unit", &other, "sleep", "600"]).ok();
    for words in [
        &["run", "-x", name, "--name", "rbother"] as &[&str],
        &["run", "-d", "-x", name, "--name", "rbother", "--", "true"],
        &["run", "-x", name, "--name", "rbother", "--", "true"],
    ] {
        machinist(words.iter().copied()).status(125).stderr_has(&other);
        assert_eq!(unit_property("rbother", "ActiveState"), "active");
        assert!(copies(name).is_empty());
    }
    run("systemctl", ["stop", &other]).ok();
    for words in [
        &["run", name, "-u", "root"] as &[&str],
        &["run", name, "-t"],
        &["run", name, "-e", "A=1"],
        &["run", name, "--keep"],
        &["run", name, "--name", "other"],
        &["run", name, "-d", "-t", "--", "true"],
        &["run", "debian:"],
        &["run", "a b"],
    ] {
        machinist(words.iter().copied()).status(2);
    }
}

#[test]
fn it_goes_on_without_us_and_its_copy_goes_with_it() {
    let _host = shared();
    let guest = Guest::busybox("rbleft");
    let name = guest.name.as_str();
    let copy = unique("rbgo");
    let ran = machinist(["run", "-d", "-x", name, "--name", &copy, "--json"]).ok();
    assert_eq!(ran.json()[0]["unit"], unit(&copy).as_str());
    assert_eq!(ran.json()[0]["ephemeral"], true);
    assert_eq!(init_of(&copy), "init\n");
    agree(&copy, There::WithoutImage);
    // No sweep takes it.
    for _ in 0..3 {
        machinist(["clean"]).ok().stdout_has("");
        assert_eq!(copies(name).len(), 1);
    }
    let would = machinist(["clean", "--dry-run"]).ok();
    assert!(!would.stdout.contains(name), "{would:?}");
    run("systemctl", ["daemon-reload"]).ok();
    machinist(["stop", &copy]).ok();
    is_gone(&copy);
    copy_goes(name);
    // The whole unit is killed, the helper among it: by the next sweep at the latest.
    machinist(["run", "-d", "-x", name, "--name", &copy]).ok();
    run("systemctl", ["kill", "-s", "KILL", &unit(&copy)]).ok();
    wait_until("its unit is gone", || unit_property(&copy, "LoadState") == "not-found");
    is_gone(&copy);
    copy_goes(name);
    // As after a power cut: neither has been asked, and a record says whose it was.
    machinist(["run", "-d", "-x", name, "--name", &copy]).ok();
    let directory = copies(name).remove(0);
    let saved = format!("/root/{copy}.record");
    let name_of = directory.file_name().unwrap().to_string_lossy();
    let papers = Path::new("/var/lib/machinist/staging").join(name_of.trim_start_matches(".#machinist-"));
    sh("cp -r \"$1\" \"$2\"", [papers.as_os_str(), saved.as_ref()]).ok();
    machinist(["stop", &copy]).ok();
    copy_goes(name);
    sh(
        "mkdir -p \"$1\"/tree/etc; mv \"$2\" \"$3\"",
        [directory.as_os_str(), saved.as_ref(), papers.as_os_str()],
    )
    .ok();
    machinist(["clean"]).ok();
    assert!(copies(name).is_empty());
    // We are killed while it boots: the machine goes on, or there is nothing.
    for after in [5, 20, 40, 60, 90, 120] {
        let copy = unique("rbkill");
        let running = machinist(["run", "-d", "-x", name, "--name", &copy]).spawn();
        thread::sleep(Duration::from_millis(after));
        running.signal(Signal::SIGKILL);
        running.wait();
        // systemd may have heard of it, and not begun.
        wait_until("it runs, or nothing is left of it", || {
            machinist(["clean"]).ok();
            match unit_property(&copy, "ActiveState").as_str() {
                "active" => copies(name).len() == 1,
                "inactive" => copies(name).is_empty(),
                _ => false,
            }
        });
        if unit_property(&copy, "ActiveState") == "active" {
            machinist(["stop", &copy]).ok();
        }
        copy_goes(name);
        wait_until("its unit is gone", || unit_property(&copy, "LoadState") == "not-found");
        is_gone(&copy);
    }
    // The foreground's own death is no reason for a machine to end.
    let running = boot(&["run", "-x", name, "--name", &copy]);
    running.signal(Signal::SIGKILL);
    running.wait();
    stays("it runs", Duration::from_millis(500), || init_of(&copy) == "init\n");
    assert_eq!(copies(name).len(), 1);
    machinist(["stop", &copy]).ok();
    copy_goes(name);
}

#[test]
fn a_command_goes_on_without_us() {
    let _host = shared();
    let guest = Guest::busybox("rbcmd");
    let name = guest.name.as_str();
    guest.write_settings("[Exec]\nKillSignal=SIGUSR2\nEnvironment=A=of-settings\n");
    // Whoever reads our output is not kept waiting, nor is anything in the command's words expanded on the way.
    let script = "echo \"$A $B $$\" >/root/said; exec 0<&- 1>&- 2>&-; sleep 6201; echo `true`; :";
    let words = [
        "run", "-d", name, "-e", "B=ours", "-u", "root", "--", "sh", "-c", script,
    ];
    machinist(words).ok().quicker_than(Duration::from_secs(20));
    wait_until("it runs", || run("pgrep", ["-xf", "sleep 6201"]).any().status == 0);
    let said = fs::read_to_string(guest.image().join("root/said")).unwrap();
    assert!(said.starts_with("of-settings ours "), "{said}");
    assert_eq!(machine_property(name, "Unit"), Some(unit(name)));
    run("systemctl", ["daemon-reload"]).ok();
    stays("it runs", Duration::from_millis(500), || {
        unit_property(name, "ActiveState") == "active"
    });
    // What keeps it up is in the machine's group, has no file of ours open, and is not seen inside.
    let pid = run("pgrep", ["-xf", "machinist: enter"]).ok().stdout;
    for pid in pid.split_whitespace() {
        let group = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        assert!(group.contains("machinist-run-"), "{group}");
        assert_eq!(fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(), 2);
    }
    let inside = machinist(["exec", name, "--", "/bin/busybox", "ps"]).ok();
    assert!(!inside.stdout.contains("machinist"), "{inside:?}");
    // The machine ends with the command.
    run("pkill", ["-xf", "sleep 6201"]).ok();
    wait_until("it ends", || machine_property(name, "State").is_none());
    wait_until("its unit is gone", || unit_property(name, "LoadState") == "not-found");
    // One that ends at once, in a copy.
    machinist(["run", "-d", "-x", name, "--", "true"]).ok();
    copy_goes(name);
    // `stop` takes it and the command.
    let copy = unique("rbstop");
    machinist(["run", "-d", "-x", name, "--name", &copy, "--", "sleep", "6202"]).ok();
    assert_eq!(copies(name).len(), 1);
    machinist(["stop", &copy]).ok();
    assert_ne!(run("pgrep", ["-xf", "sleep 6202"]).any().status, 0);
    is_gone(&copy);
    copy_goes(name);
    wait_until("nothing of ours runs", || keepers() == 0);
    // As for any other command.
    machinist(["run", "-d", name, "--", "no-such-program"]).status(127);
    machinist(["run", "-d", name, "--", "/etc"]).status(126);
    machinist(["run", "-d", "-x", name, "-u", "nobody-there", "--", "true"]).status(125);
    assert!(copies(name).is_empty());
    is_gone(name);
    // Its time is over.
    machinist(["run", "-d", name, "--timeout", "1", "--", "sleep", "6203"]).ok();
    wait_until("its time is over", || machine_property(name, "State").is_none());
    // The keeper is killed: the machine ends, too.
    machinist(["run", "-d", name, "--", "sleep", "6204"]).ok();
    let keeper = run("pgrep", ["-nxf", "machinist: enter"]).ok().stdout;
    kill(Pid::from_raw(keeper.trim().parse().unwrap()), Signal::SIGKILL).unwrap();
    wait_until("it ends", || machine_property(name, "State").is_none());
    wait_until("its unit is gone", || unit_property(name, "LoadState") == "not-found");
}

/// A system that systemd boots, on an overlay, and its reboot.
#[test]
fn a_debian_boots_in_a_copy() {
    let _host = shared();
    let guest = Guest::debian("rbdeb");
    let name = guest.name.as_str();
    let copy = unique("rbdebx");
    machinist(["run", "-d", "-x", name, "--name", &copy]).ok();
    let is_up = || {
        let asked = ["exec", &copy, "--", "systemctl", "is-system-running", "--wait"];
        let state = machinist(asked).any().stdout;
        ["running\n", "degraded\n"].contains(&state.as_str())
    };
    wait_until("it has booted", is_up);
    machinist(["exec", &copy, "--", "touch", "/etc/seen"]).ok();
    let before = unit_property(&copy, "InvocationID");
    machinist(["exec", &copy, "--", "systemctl", "reboot"]).any();
    wait_until("it is up again", || {
        unit_property(&copy, "InvocationID") != before && init_of(&copy) == "systemd\n"
    });
    wait_until("it has booted again", is_up);
    machinist(["exec", &copy, "--", "test", "-e", "/etc/seen"]).ok();
    assert!(!guest.image().join("etc/seen").exists());
    machinist(["stop", &copy]).ok();
    is_gone(&copy);
    copy_goes(name);
}
