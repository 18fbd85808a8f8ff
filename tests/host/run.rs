//! run: a machine of the moment, in place or as a copy, and what is left of it.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;

use crate::support::{
    Guest, PATIENCE, Running, holds_within, machine_property, machinist, run, sh, shared, unique, wait_until,
};

const MACHINES: &str = "/var/lib/machines";

pub(crate) fn unit(name: &str) -> String {
    format!("machinist-run-{name}.service")
}

pub(crate) fn unit_property(name: &str, property: &str) -> String {
    let shown = run("systemctl", ["show", &unit(name), "-p", property, "--value"]).ok();
    shown.stdout.trim_end().to_owned()
}

/// The copies of a machine's image that there are.
pub(crate) fn copies(of: &str) -> Vec<PathBuf> {
    let prefix = format!(".#machinist-run-{of}-");
    let entries = fs::read_dir(MACHINES).unwrap().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(&prefix))
        .collect()
}

/// Waits until the command itself runs: before that a signal is ours.
#[track_caller]
pub(crate) fn until_it_runs(mut running: Running, command: &str) -> Running {
    let runs = || run("pgrep", ["-xf", command]).any().status == 0;
    let in_time = holds_within(PATIENCE, || runs() || running.has_ended());
    if !in_time || running.has_ended() {
        let seen = sh(
            "systemctl list-jobs; ps axfo pid,stat,wchan:20,args; journalctl -n 60",
            [""; 0],
        )
        .any();
        running.signal(Signal::SIGTERM);
        panic!("the command does not run\n{:?}\n{}", running.wait(), seen.stdout);
    }
    running
}

/// Nothing runs under that name, and systemd knows no unit for it.
#[track_caller]
pub(crate) fn is_gone(name: &str) {
    assert_eq!(machine_property(name, "State"), None);
    assert_eq!(unit_property(name, "LoadState"), "not-found");
}

#[test]
fn a_command_runs_in_place_as_exec_runs_it() {
    let _host = shared();
    let guest = Guest::busybox("runin");
    let name = guest.name.as_str();
    guest.write_settings(
        "[Exec]\nBoot=yes\nKillSignal=SIGUSR2\nEnvironment=A=of-settings B=both\nWorkingDirectory=/etc\n",
    );
    let script = "cat; pwd; echo $A $B; echo wrong >&2; touch /root/kept; exit 7";
    let ran = machinist(["run", name, "-e", "B=ours", "--", "sh", "-c", script])
        .stdin("in\n")
        .status(7);
    ran.stdout_is("in\n/etc\nof-settings ours\n").stderr_is("wrong\n");
    assert!(guest.image().join("root/kept").exists());
    is_gone(name);
    let file = Path::new("/root/run.env");
    fs::write(file, "# ours\nB=of the file\nC=\"x\"\nD=file\n").unwrap();
    let words = [
        "run",
        name,
        "--env-file",
        "/root/run.env",
        "-e",
        "D=ours",
        "--",
        "sh",
        "-c",
        "echo $A,$B,$C,$D",
    ];
    machinist(words).ok().stdout_is("of-settings,of the file,\"x\",ours\n");
    fs::write(file, "A=1\nexport B=2\n").unwrap();
    machinist(words)
        .status(2)
        .fails_with("/root/run.env:2: NAME=VALUE is expected", "without quotes");
    fs::remove_file(file).unwrap();
    // What a killed supervisor leaves does not keep the next one from starting.
    let killed = until_it_runs(machinist(["run", name, "--", "sleep", "6010"]).spawn(), "sleep 6010");
    // systemd can read what it has written of the unit.
    run("systemctl", ["daemon-reload"]).ok();
    assert_eq!(unit_property(name, "LoadState"), "loaded");
    assert!(unit_property(name, "ExecStart").contains("systemd-nspawn"));
    run("systemctl", ["kill", "-s", "KILL", "--kill-whom=main", &unit(name)]).ok();
    assert_ne!(killed.wait().status, 0);
    for (script, status) in [("kill -9 $$", 137), ("kill -TERM $$", 143), ("true", 0)] {
        machinist(["run", name, "--", "sh", "-c", script]).status(status);
    }
    machinist(["run", name, "--", "no-such-program"]).status(127);
    machinist(["run", name, "--", "/etc"]).status(126);
    machinist(["run", name, "-u", "no-such-user", "--", "true"]).status(125);
    machinist(["run", name, "-u", "4711", "--cwd", "/", "--", "sh", "-c", "id -u; pwd"])
        .ok()
        .stdout_is("4711\n/\n");
    is_gone(name);
    // Its own unit has nothing to do with it, and starts as ever.
    guest.start();
    machinist(["run", name, "--", "true"])
        .status(125)
        .stderr_has(&format!("`machinist exec {name} -- …`"));
    machinist(["stop", name]).ok();
    machinist(["exec", name, "--", "true"])
        .status(125)
        .stderr_has(&format!("`machinist run {name} -- …`"));
}

#[test]
fn a_copy_is_gone_at_the_end() {
    let _host = shared();
    let guest = Guest::busybox("runx");
    let name = guest.name.as_str();
    let copy = unique("runcopy");
    let ran = machinist([
        "run",
        "-x",
        name,
        "--name",
        &copy,
        "--",
        "sh",
        "-c",
        "touch /root/here; hostname; ls /root",
    ])
    .ok();
    assert_eq!(ran.stdout, format!("{copy}\nhere\n"), "{ran:?}");
    assert!(!guest.image().join("root/here").exists());
    assert!(copies(name).is_empty());
    is_gone(&copy);
    // Whoever kills us takes the machine down: nothing else holds its input open.
    let running = until_it_runs(
        machinist(["run", "-x", name, "--name", &copy, "--", "sleep", "6003"]).spawn(),
        "sleep 6003",
    );
    assert_eq!(copies(name).len(), 1);
    running.signal(Signal::SIGKILL);
    running.wait();
    wait_until("it is gone with us", || machine_property(&copy, "State").is_none());
    wait_until("the sweep has it", || {
        machinist(["clean"]).ok();
        copies(name).is_empty()
    });
    is_gone(&copy);
}

#[test]
fn what_is_asked_for_holds_for_this_run() {
    let _host = shared();
    let guest = Guest::busybox("runset");
    let name = guest.name.as_str();
    machinist(["limit", name, "tasks=77"]).ok();
    let before = fs::read_to_string(guest.settings()).unwrap();
    let outside = format!("/root/{name}.d");
    fs::create_dir(&outside).unwrap();
    fs::write(Path::new(&outside).join("file"), "from outside\n").unwrap();
    // A place that is there: in a read-only image none can be made.
    let bind = format!("{outside}:/root");
    let copy = unique("runlim");
    let script = "cat /root/file; grep -q ' /tmp tmpfs' /proc/mounts && echo yes; grep CapBnd /proc/self/status; ip -o link | wc -l; \
                  touch /x 2>/dev/null || echo read-only; grep NoNewPrivs /proc/self/status; cat /proc/self/uid_map; sleep 600";
    let options = [
        "--memory=64M",
        "--cpus=0.5",
        "--bind",
        &bind,
        "--tmpfs=/tmp",
        "--network=none",
        "--read-only",
        "--cap-drop=CAP_SYS_CHROOT",
        "--no-new-privs",
        "--private-users=1879179264:65536",
        "--timeout=4",
        "--set=Exec.Hostname=asked",
    ];
    let words = ["run", "-x", name, "--name", &copy]
        .into_iter()
        .chain(options)
        .chain(["--", "sh", "-c", script]);
    let running = machinist(words).spawn();
    wait_until("it runs", || unit_property(&copy, "ActiveState") == "active");

    let unit_is = |property: &str, value: &str| assert_eq!(unit_property(&copy, property), value, "{property}");
    unit_is("MemoryMax", "67108864");
    unit_is("CPUQuotaPerSecUSec", "500ms");
    unit_is("TasksMax", "77");
    unit_is("Delegate", "yes");
    unit_is("Slice", "machine.slice");
    unit_is("Type", "notify");
    unit_is("DevicePolicy", "closed");
    let devices = |unit: &str| {
        let shown = run("systemctl", ["show", unit, "-p", "DeviceAllow"]).ok().stdout;
        let mut lines: Vec<String> = shown.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(devices(&unit(&copy)), devices(&guest.unit()));
    assert_eq!(machine_property(&copy, "Unit"), Some(unit(&copy)));
    // The timeout ends it, and the command with it.
    let ran = running.wait();
    assert_eq!(ran.status, 137, "{ran:?}");
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert_eq!(
        (lines[0], lines[1], lines[3], lines[4]),
        ("from outside", "yes", "1", "read-only"),
        "{ran:?}"
    );
    let bounding = u64::from_str_radix(lines[2].split_whitespace().nth(1).unwrap(), 16).unwrap();
    assert_eq!(bounding & (1 << 18), 0, "CAP_SYS_CHROOT: {ran:?}");
    assert_eq!(lines[5], "NoNewPrivs:\t1");
    assert_eq!(
        lines[6].split_whitespace().collect::<Vec<_>>(),
        ["0", "1879179264", "65536"]
    );
    is_gone(&copy);
    assert!(copies(name).is_empty());
    assert_eq!(fs::read_to_string(guest.settings()).unwrap(), before);
}

#[test]
fn an_image_has_no_more_than_it_would_have_at_its_start() {
    let _host = shared();
    let guest = Guest::busybox("runsafe");
    let name = guest.name.as_str();
    // Not trusted there; what a later line hides is not to come back when that one is left out.
    fs::remove_file(guest.settings()).unwrap();
    let beside = Path::new(MACHINES).join(format!("{name}.nspawn"));
    let hostile =
        "[Exec]\nPrivateUsers=no\nPrivateUsers=yes\nEnvironment=A=${PATH} B=$$\n[Network]\nPrivate=no\nPrivate=yes\n";
    fs::write(&beside, hostile).unwrap();
    let script = "cat /proc/self/uid_map; ip -o link show host0 | wc -l; echo \"$A $B\"";
    let ran = machinist(["run", name, "--", "sh", "-c", script]).ok();
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert_ne!(
        lines[0].split_whitespace().nth(1),
        Some("0"),
        "the host's users: {ran:?}"
    );
    // Nothing is expanded on the way.
    assert_eq!(lines[1..], ["1", "${PATH} $$"], "{ran:?}");
    fs::remove_file(&beside).unwrap();
    // What is marked read-only is so here, too.
    run("machinectl", ["read-only", name, "true"]).ok();
    let refused = machinist(["run", name, "--", "touch", "/root/written"]).any();
    run("machinectl", ["read-only", name, "false"]).ok();
    assert_ne!(refused.status, 0, "{refused:?}");
    assert!(!guest.image().join("root/written").exists());
    // Who may be talked to belongs to the machine.
    guest.write_drop_in("[Service]\nIPAddressDeny=any\nOOMScoreAdjust=77\n");
    run("systemctl", ["daemon-reload"]).ok();
    let running = until_it_runs(machinist(["run", name, "--", "sleep", "6001"]).spawn(), "sleep 6001");
    assert_eq!(unit_property(name, "OOMScoreAdjust"), "77");
    let denied = unit_property(name, "IPAddressDeny");
    assert!(denied.contains("::/0") && denied.contains("0.0.0.0/0"), "{denied}");
    running.signal(Signal::SIGTERM);
    assert_eq!(running.wait().status, 143);
}

#[test]
fn its_end_is_not_that_of_another_of_the_name() {
    let _host = shared();
    let guest = Guest::busybox("runend");
    let name = guest.name.as_str();
    // Nobody reads what the command wrote: machinist is not done when the machine is.
    let script = "machinist run \"$1\" --timeout 2 -- sh -c 'while echo yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy; do :; done' | \
                  { head -n 1 >/dev/null; sleep 8; cat >/dev/null; }";
    let slow = crate::support::sh(script, [name]).spawn();
    wait_until("it runs", || unit_property(name, "ActiveState") == "active");
    wait_until("its time is over", || machine_property(name, "State").is_none());
    guest.start();
    let leader = guest.leader();
    slow.wait();
    assert_eq!(guest.leader(), leader);
    assert_eq!(guest.property("ActiveState"), "active");
}

#[test]
fn an_interruption_leaves_nothing_at_any_time() {
    let _host = shared();
    let guest = Guest::busybox("runint");
    let name = guest.name.as_str();
    for after in [10, 40, 80, 120, 160, 200, 300] {
        let copy = unique("runcut");
        let running = machinist(["run", "-x", name, "--name", &copy, "--", "sleep", "600"]).spawn();
        std::thread::sleep(std::time::Duration::from_millis(after));
        running.signal(Signal::SIGINT);
        let ran = running.wait();
        assert!([130, 125].contains(&ran.status), "{ran:?}");
        assert!(copies(name).is_empty(), "after {after} ms: {ran:?}");
        is_gone(&copy);
    }
}

#[test]
fn what_cannot_run_says_why_and_leaves_nothing() {
    let _host = shared();
    let guest = Guest::busybox("runbad");
    let name = guest.name.as_str();
    machinist(["run", "no-such-machine", "--", "true"]).status(3);
    machinist(["run", name, "--memory", "much", "--", "true"]).status(2);
    machinist(["run", name, "--bind", "relative", "--", "true"]).status(2);
    machinist(["run", name, "--set", "Exec.Bot=yes", "--", "true"]).status(2);
    machinist(["run", name, "--name", "other", "--", "true"]).status(2);
    let user = [
        "--reuid=1000",
        "--regid=1000",
        "--clear-groups",
        "machinist",
        "run",
        name,
        "--",
        "true",
    ];
    run("setpriv", user).status(4);
    let plan = machinist([
        "run",
        "-x",
        name,
        "--cap-drop",
        "CAP_SYS_TIME",
        "--dry-run",
        "--",
        "true",
    ])
    .ok()
    .stdout;
    assert!(
        plan.contains("--drop-capability=CAP_SYS_TIME") && plan.contains("remove the copy"),
        "{plan}"
    );
    // systemd-nspawn itself refuses: its own words.
    let refused = machinist(["run", "-x", name, "--bind", "/no/such/place", "--", "true"]).status(125);
    refused.stderr_has("/no/such/place");
    assert!(copies(name).is_empty());
    is_gone(name);
    let other = Guest::busybox("runbad2");
    machinist(["run", "-x", name, "--name", &other.name, "--", "true"])
        .status(125)
        .stderr_has("another machine");
    // One at a time: the image is locked.
    let first = until_it_runs(machinist(["run", name, "--", "sleep", "6002"]).spawn(), "sleep 6002");
    machinist(["run", name, "--", "true"])
        .status(125)
        .stderr_has("is running");
    machinist(["start", name]).ok().stderr_has("is running already");
    first.signal(Signal::SIGTERM);
    let first = first.wait();
    assert_eq!(first.status, 143, "{first:?}");
    is_gone(name);
    fs::remove_file(guest.image().join("bin/sh")).unwrap();
    machinist(["run", name, "--", "true"])
        .status(125)
        .stderr_has("there is no /bin/sh");
    assert!(Path::new(MACHINES).join(name).is_dir());
}
