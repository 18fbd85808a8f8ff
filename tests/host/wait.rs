//! wait: it ends when systemd says that the condition is met, not before and not much later, and never for nothing.

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    Guest, Running, There, agree, holds_within, machine_property, machinist, run, sh, shared, stays, unit_property,
    wait_until, write_program,
};

/// How soon a wait ends after that: the machine under the host may be slow.
const SOON: Duration = Duration::from_secs(10);
/// How long a wait is watched that is not to end.
const WHILE: Duration = Duration::from_secs(1);

/// `machinist wait` in the background, as soon as it waits.
pub(crate) fn waiting(words: &[&str]) -> Running {
    let client = machinist([&["wait"], words].concat()).spawn();
    let waits = || {
        let path = format!("/proc/{}/wchan", client.pid());
        fs::read_to_string(path).is_ok_and(|place| place.contains("poll"))
    };
    wait_until("the client waits", waits);
    client
}

#[track_caller]
pub(crate) fn still_waits(client: &mut Running) {
    stays("it waits", WHILE, || !client.has_ended());
}

#[track_caller]
pub(crate) fn ends(mut client: Running, status: i32) -> crate::support::Output {
    assert!(holds_within(SOON, || client.has_ended()), "it still waits");
    let output = client.wait();
    assert_eq!(output.status, status, "{output:?}");
    output
}

/// Whether it sleeps for two seconds on end. What is said of other machines may reach it, and wake it.
fn is_quiet(client: &Running) -> bool {
    let switches = || {
        let threads = fs::read_dir(format!("/proc/{}/task", client.pid())).unwrap();
        let count = |thread: fs::DirEntry| {
            let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            line.map_or(0, |count| count.trim().parse::<u64>().unwrap())
        };
        threads.map(|thread| count(thread.unwrap())).sum::<u64>()
    };
    holds_within(Duration::from_secs(20), || {
        let before = switches();
        std::thread::sleep(Duration::from_secs(2));
        switches() - before <= 4
    })
}

#[test]
fn a_start_ends_the_wait_for_it() {
    let _host = shared();
    let guest = Guest::busybox("come");
    let name = guest.name.as_str();
    let mut client = waiting(&[name]);
    still_waits(&mut client);
    run("systemctl", ["start", &guest.unit()]).ok();
    ends(client, 0).stdout_is("").stderr_is(&format!("{name} is running\n"));
    let init = fs::read_to_string(format!("/proc/{}/comm", guest.leader())).unwrap();
    assert_eq!(init, "init\n");
    machinist(["wait", name]).ok().quicker_than(SOON);
    machinist(["wait", "--for", "booted", name])
        .ok()
        .stderr_is(&format!("{name} has booted\n"));
    let report = machinist(["wait", "--json", name]).ok().json();
    assert!(report[0]["after_us"].is_u64(), "{report}");
    let of = |key: &str| report[0][key].clone();
    assert_eq!(
        (of("machine"), of("for"), of("result"), of("addresses"), of("error")),
        (json!(name), json!("running"), json!("met"), Value::Null, Value::Null)
    );
    // Everybody may look.
    run("runuser", ["-u", "nobody", "--", "machinist", "wait", name]).ok();
}

#[test]
fn only_an_end_ends_the_wait_for_it() {
    let _host = shared();
    let guest = Guest::busybox("leave");
    let name = guest.name.as_str();
    machinist(["wait", "--for", "stopped", name]).ok().quicker_than(SOON);
    guest.start();
    let mut client = waiting(&["--for", "stopped", name]);
    machinist(["restart", "--inside", name]).ok();
    still_waits(&mut client);
    run("systemctl", ["restart", &guest.unit()]).ok();
    still_waits(&mut client);
    machinist(["freeze", name]).ok();
    still_waits(&mut client);
    machinist(["thaw", name]).ok();
    machinist(["kill", "-s", "KILL", name]).ok();
    ends(client, 0).stderr_is(&format!("{name} has stopped\n"));
    assert_eq!(machine_property(name, "State"), None);
    assert_eq!(guest.property("ActiveState"), "failed");
}

#[test]
fn frozen_and_running_are_told_apart() {
    let _host = shared();
    let guest = Guest::busybox("icewait");
    let name = guest.name.as_str();
    guest.start();
    for way in ["machinist", "systemctl"] {
        let unit = guest.unit();
        let of_way = |verb: &str| {
            let whom = if way == "systemctl" { &unit } else { name };
            run(way, [verb, whom])
        };
        let mut client = waiting(&["--for", "frozen", name]);
        still_waits(&mut client);
        of_way("freeze").ok();
        ends(client, 0).stderr_is(&format!("{name} is frozen\n"));
        let mut client = waiting(&[name]);
        still_waits(&mut client);
        of_way("thaw").ok();
        ends(client, 0);
    }
}

#[test]
fn who_waits_does_not_look_again_and_again() {
    let _host = shared();
    let guest = Guest::busybox("quiet");
    let idle = Guest::busybox("idle");
    guest.start();
    let (name, other) = (guest.name.as_str(), idle.name.as_str());
    for words in [
        ["--for", "running", other],
        ["--for", "stopped", name],
        ["--for", "frozen", name],
        ["--for", "address", name],
    ] {
        let client = waiting(&words);
        assert!(is_quiet(&client), "{words:?}");
        client.signal(nix::sys::signal::Signal::SIGTERM);
        assert_eq!(client.wait().status, 130);
    }
}

#[test]
fn time_is_up_with_status_124() {
    let _host = shared();
    let (guest, other) = (Guest::busybox("late"), Guest::busybox("late"));
    let name = guest.name.as_str();
    guest.start();
    machinist(["wait", "--timeout", "0.5", &other.name])
        .status(124)
        .quicker_than(SOON)
        .fails_with(
            &format!("machine '{}' does not run after 0.5 s", other.name),
            "wait longer with --timeout",
        );
    for condition in ["stopped", "frozen", "port=4711"] {
        machinist(["wait", "--timeout", "0.5", "--for", condition, name])
            .status(124)
            .quicker_than(SOON);
    }
    let output = machinist([
        "wait",
        "--timeout",
        "0.5",
        "--json",
        "--for",
        "stopped",
        name,
        &other.name,
    ])
    .status(124);
    let report = output.json();
    assert_eq!(
        (&report[0]["result"], &report[1]["result"]),
        (&json!("timed-out"), &json!("met"))
    );
    assert_eq!(report[0]["error"]["kind"], "timed-out");
    assert_eq!(output.json_error()["kind"], "timed-out");
}

#[test]
fn several_are_waited_for_at_the_same_time() {
    let _host = shared();
    let (a, b) = (Guest::busybox("both"), Guest::busybox("both"));
    let mut client = waiting(&[&a.name, "nosuch", &b.name, "--json"]);
    b.start();
    still_waits(&mut client);
    a.start();
    let output = ends(client, 3);
    let report = output.json();
    let of = |row: usize| (report[row]["machine"].clone(), report[row]["result"].clone());
    assert_eq!(of(0), (json!(a.name), json!("met")));
    assert_eq!(of(1), (json!("nosuch"), json!("failed")));
    assert_eq!(of(2), (json!(b.name), json!("met")));
    machinist(["wait", "--for", "stopped", "--timeout", "0.5", "nosuch", &a.name]).status(1);
}

#[test]
fn what_cannot_be_waited_for_is_told_at_once() {
    let _host = shared();
    let guest = Guest::busybox("never");
    let name = guest.name.as_str();
    let told = |words: &[&str], status: i32, error: &str| {
        machinist([&["wait"], words].concat())
            .status(status)
            .quicker_than(SOON)
            .stderr_has(error);
    };
    told(&["nosuch"], 3, "no machine or image 'nosuch'");
    told(&["--for", "boot", name], 2, "did you mean booted?");
    told(&["--for", "port=http", name], 2, "1 to 65535");
    told(&["--for", "unit=a/b", name], 2, "no name of a unit");
    guest.write_settings("[Exec]\nKillSignal=SIGUSR2\n[Network]\nPrivate=no\nVirtualEthernet=no\n");
    guest.start();
    told(&["--for", "unit=nginx", name], 1, "its init is not systemd");
    told(&["--for", "address", name], 1, "it has the host's network");
    let nobody = |condition| {
        let words = ["-u", "nobody", "--", "machinist", "wait", name, "--for", condition];
        run("runuser", words).within(SOON)
    };
    nobody("port=80").status(4);
    nobody("unit=nginx").status(4);
    nobody("address").status(1).stderr_has("it has the host's network");
}

#[test]
fn a_machine_that_goes_ends_every_other_wait() {
    let _host = shared();
    let guest = Guest::busybox("gone");
    let name = guest.name.as_str();
    for condition in ["port=81", "address", "frozen"] {
        guest.start();
        let mut client = waiting(&["--for", condition, name]);
        machinist(["restart", "--inside", name]).ok();
        still_waits(&mut client);
        machinist(["terminate", name]).ok();
        ends(client, 1).fails_with(
            &format!("machine '{name}' stopped while it was waited for"),
            "machinist status",
        );
    }
    // And one that never boots.
    write_program(
        &guest.image().join("usr/lib/systemd/systemd"),
        "#!/bin/sh\nwhile :; do sleep 1; done\n",
    );
    guest.start();
    let mut client = waiting(&["--for", "booted", name]);
    still_waits(&mut client);
    machinist(["terminate", name]).ok();
    ends(client, 1).stderr_has("stopped while it was waited for");
}

#[test]
fn a_start_that_fails_ends_the_wait_with_its_cause() {
    let _host = shared();
    let guest = Guest::busybox("fails");
    guest.write_settings("[Network]\nBridge=nosuchbr7\n");
    let mut client = waiting(&[&guest.name]);
    still_waits(&mut client);
    run("systemctl", ["start", &guest.unit()]).status(1);
    ends(client, 1).stderr_has("bridge 'nosuchbr7' does not exist");
    // Also if it is over before the client can look: it stands still meanwhile.
    let mut client = waiting(&[&guest.name]);
    still_waits(&mut client);
    client.signal(nix::sys::signal::Signal::SIGSTOP);
    run("systemctl", ["start", &guest.unit()]).status(1);
    client.signal(nix::sys::signal::Signal::SIGCONT);
    ends(client, 1).stderr_has("bridge 'nosuchbr7' does not exist");
}

#[test]
fn a_port_is_tried_inside() {
    let _host = shared();
    let guest = crate::exec::running("port");
    let name = guest.name.as_str();
    // On its loopback only: nobody outside could tell.
    let mut client = waiting(&["--for", "port=8080", name]);
    still_waits(&mut client);
    machinist(["exec", "-d", name, "--", "httpd", "-f", "-p", "127.0.0.1:8080"]).ok();
    ends(client, 0).stderr_is(&format!("{name} accepts connections at port 8080\n"));
    // The host's own ports are none of its.
    let listening = sh("ss -Hltn | awk '{print $4}' | grep -o '[0-9]*$' | sort -u", [""]).any();
    for port in listening.stdout.lines().take(3) {
        let condition = format!("port={port}");
        machinist(["wait", "--timeout", "0.3", "--for", &condition, name]).status(124);
    }
}

#[test]
fn a_machine_in_a_scope_is_waited_for() {
    let _host = shared();
    let guest = Guest::busybox("scopewait");
    let (name, image) = (guest.name.as_str(), guest.image());
    let (unit, image) = (format!("test-{name}.service"), image.to_string_lossy().into_owned());
    let client = waiting(&[name]);
    let nspawn = ["systemd-nspawn", "-q", "-b", "-D", &image, "-M", name];
    run("systemd-run", ["-q", "--unit", &unit].iter().chain(&nspawn)).ok();
    ends(client, 0);
    agree(name, There::Running);
    let mut client = waiting(&["--for", "stopped", name]);
    still_waits(&mut client);
    let scope = machine_property(name, "Unit").unwrap();
    machinist(["terminate", name]).ok();
    ends(client, 0);
    assert!(["inactive", "failed"].contains(&unit_property(&scope, "ActiveState").as_str()));
    run("systemctl", ["stop", &unit]).any();
    run("systemctl", ["reset-failed", &unit]).any();
}

#[test]
fn a_debian_is_waited_for_until_it_is_of_use() {
    let _host = shared();
    let guest = Guest::debian("use");
    let name = guest.name.as_str();
    let units = guest.image().join("etc/systemd/system");
    let write = |unit: &str, text: &str| fs::write(units.join(unit), text).unwrap();
    write(
        "late.service",
        "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/sh -c 'while ! test -e /go; do sleep 0.1; done'\n",
    );
    write("bad.service", "[Service]\nType=oneshot\nExecStart=/bin/false\n");
    let all = ["booted", "address", "unit=multi-user.target"];
    let clients = all.map(|condition| waiting(&["--for", condition, "--timeout", "120", name]));
    run("systemctl", ["start", &guest.unit()]).ok();
    let [booted, address, unit] = clients.map(Running::wait);
    assert_eq!(
        (booted.status, address.status, unit.status),
        (0, 0, 0),
        "{booted:?}{address:?}{unit:?}"
    );
    let state = run("systemctl", ["-M", name, "is-system-running"]).any().stdout;
    assert_eq!(state, "running\n");
    unit.stderr_is(&format!("multi-user.target of {name} is active\n"));
    // What machinectl shows, too.
    let report = machinist(["wait", "--json", "--for", "address", name]).ok().json();
    let found = report[0]["addresses"]
        .as_array()
        .unwrap()
        .iter()
        .map(|address| address.as_str().unwrap());
    let found: Vec<&str> = found.filter(|address| !address.starts_with("fe80")).collect();
    let shown = run("machinectl", ["status", name]).ok().stdout;
    assert!(
        !found.is_empty() && found.iter().all(|address| shown.contains(address)),
        "{found:?}\n{shown}"
    );

    let systemctl = |words: &[&str]| run("systemctl", [&["-M", name], words].concat());
    let mut client = waiting(&["--for", "unit=late", name]);
    still_waits(&mut client);
    systemctl(&["start", "--no-block", "late"]).ok();
    still_waits(&mut client);
    assert!(is_quiet(&client));
    // It stands still with it, and nobody waits in it.
    machinist(["freeze", name]).ok();
    still_waits(&mut client);
    let frozen = waiting(&["--for", "unit=late", "--timeout", "1", name]);
    ends(frozen, 124);
    machinist(["thaw", name]).ok();
    // Its systemd may be replaced meanwhile.
    systemctl(&["daemon-reexec"]).ok();
    still_waits(&mut client);
    fs::write(guest.image().join("go"), "").unwrap();
    ends(client, 0);
    assert_eq!(systemctl(&["is-active", "late"]).ok().stdout, "active\n");
    systemctl(&["start", "bad"]).status(1);
    let told = |unit: &str, error: &str| {
        machinist(["wait", "--for", &format!("unit={unit}"), name])
            .status(1)
            .quicker_than(SOON)
            .stderr_has(error);
    };
    told("bad", &format!("unit bad.service of machine '{name}' failed"));
    told("nosuch.target", "it is not found");
    // By another of its names: the signals come by the first.
    systemctl(&["stop", "late"]).ok();
    fs::remove_file(guest.image().join("go")).unwrap();
    std::os::unix::fs::symlink("late.service", units.join("other.service")).unwrap();
    systemctl(&["daemon-reload"]).ok();
    let mut client = waiting(&["--for", "unit=other", name]);
    systemctl(&["start", "--no-block", "late"]).ok();
    still_waits(&mut client);
    fs::write(guest.image().join("go"), "").unwrap();
    ends(client, 0);
    systemctl(&["stop", "late"]).ok();
    let mut client = waiting(&["--for", "unit=late", name]);
    still_waits(&mut client);
    machinist(["stop", name]).ok();
    ends(client, 1).stderr_has("stopped while it was waited for");
}
