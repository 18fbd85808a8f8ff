//! events: what happens to machines, as systemd, machined and the kernel tell it.

use std::time::Duration;

use serde_json::Value;

use crate::logs::{Follower, entries, field, resident};
use crate::support::{Guest, alone, machinist, run, sh, shared, stays, unique, unit_of, unit_property, wait_until};

/// `events` of some machines, or of all, by a command that the names are added to; it listens.
#[track_caller]
fn listening(command: &[&str], names: &[&str]) -> Follower {
    let probe = unique("probe");
    let probed = if names.is_empty() {
        [].as_slice()
    } else {
        &[probe.as_str()]
    };
    let follower = Follower::of(&[command, names, probed].concat());
    // There is no such machine: a job to start it, again and again, is told as soon as anybody listens.
    let unit = unit_of(&probe);
    wait_until("it listens", || {
        run("systemctl", ["start", "--no-block", &unit]).any();
        run("systemctl", ["reset-failed", &unit]).any();
        follower.shown().contains(&probe)
    });
    wait_until("the probe is over", || {
        unit_property(&unit, "ActiveState") != "activating"
    });
    run("systemctl", ["reset-failed", &unit]).any();
    follower
}

#[track_caller]
fn events(names: &[&str]) -> Follower {
    listening(&["machinist", "events", "--json"], names)
}

/// What was told of a machine: "appeared", "state running", "job start done" …
fn told(follower: &Follower, name: &str) -> Vec<String> {
    let whole = follower.shown();
    let whole = &whole[..whole.rfind('\n').map_or(0, |at| at + 1)];
    let of_machine = entries(whole).into_iter().filter(|event| event["machine"] == name);
    of_machine
        .map(|event| {
            let words = ["event", "state", "job", "result"].map(|key| field(&event, key).to_owned());
            let more = match (field(&event, "address"), event["added"].as_bool()) {
                ("", _) => String::new(),
                (address, added) => format!("{} {address}", if added == Some(true) { "+" } else { "-" }),
            };
            let words = words.into_iter().chain([more]).filter(|word| !word.is_empty());
            words.collect::<Vec<_>>().join(" ")
        })
        .collect()
}

#[track_caller]
fn tells(follower: &Follower, name: &str, what: &str) {
    wait_until(&format!("'{what}' is told"), || {
        told(follower, name).iter().any(|event| event == what)
    });
}

/// Brings its link up, which gives it an address.
#[track_caller]
fn up(guest: &Guest) {
    guest.inside(["/bin/ip", "link", "set", "host0", "up"]).ok();
}

#[test]
fn a_life_is_told() {
    let _host = shared();
    let guest = Guest::busybox("evt");
    let other = Guest::busybox("evo");
    let name = guest.name.as_str();
    let follower = events(&[&format!("{}*", &name[..name.len() - 1]), name]);
    other.start();
    guest.start();
    tells(&follower, name, "job start done");
    let leader = guest.leader();
    up(&guest);
    wait_until("its address is told", || {
        told(&follower, name)
            .iter()
            .any(|event| event.starts_with("address + fe80::"))
    });
    let shown = entries(&follower.shown());
    let appeared: Vec<&Value> = shown
        .iter()
        .filter(|event| event["event"] == "appeared" && event["machine"] == name)
        .collect();
    assert_eq!(appeared.len(), 1);
    assert_eq!(appeared[0]["leader"], leader);
    assert_eq!(appeared[0]["unit"], guest.unit());
    let keys: Vec<&String> = appeared[0].as_object().unwrap().keys().collect();
    assert_eq!(keys.len(), 10, "{keys:?}");

    for (verb, wanted) in [("add", "address + 10.1.2.3"), ("del", "address - 10.1.2.3")] {
        guest
            .inside(["/bin/ip", "addr", verb, "10.1.2.3/24", "dev", "host0"])
            .ok();
        tells(&follower, name, wanted);
    }
    run("systemctl", ["freeze", &guest.unit()]).ok();
    tells(&follower, name, "state frozen");
    run("systemctl", ["thaw", &guest.unit()]).ok();
    wait_until("it is thawed", || {
        told(&follower, name)
            .iter()
            .filter(|event| *event == "state running")
            .count()
            == 2
    });
    // systemd hears nothing of what is frozen inside.
    let freeze =
        "cd /sys/fs/cgroup/unified 2>/dev/null || cd /sys/fs/cgroup; echo $2 >machine.slice/$1/payload/cgroup.freeze";
    for (word, state) in [("1", "state frozen"), ("0", "state running")] {
        let before = told(&follower, name).iter().filter(|event| *event == state).count();
        sh(freeze, [guest.unit().as_str(), word]).ok();
        wait_until(&format!("'{state}' is told again"), || {
            told(&follower, name).iter().filter(|event| *event == state).count() > before
        });
    }
    run("systemctl", ["kill", "-s", "KILL", &guest.unit()]).ok();
    tells(&follower, name, "state failed signal");
    tells(&follower, name, "gone");
    assert_eq!(guest.property("Result"), "signal");
    guest.start();
    machinist(["stop", name]).ok();
    tells(&follower, name, "job stop done");
    tells(&follower, name, "state stopped");

    let all = told(&follower, name);
    let of_jobs = |word: &str| all.iter().filter(|event| *event == word).count();
    assert_eq!((of_jobs("job start"), of_jobs("job start done")), (2, 2), "{all:?}");
    let begin: Vec<&String> = all
        .iter()
        .filter(|event| !event.starts_with("address"))
        .take(5)
        .collect();
    assert_eq!(begin[..2], ["job start", "state opening"], "{all:?}");
    assert!(
        begin.contains(&&"appeared".to_owned()) && begin.contains(&&"state running".to_owned()),
        "{all:?}"
    );
    let shown = follower.end();
    let others = entries(&shown)
        .into_iter()
        .any(|event| event["machine"] == other.name.as_str());
    assert!(!others || other.name.starts_with(&name[..name.len() - 1]), "{shown}");
}

#[test]
fn people_read_lines() {
    let _host = shared();
    let guest = Guest::busybox("evl");
    let name = guest.name.as_str();
    let follower = listening(&["machinist", "events"], &[name]);
    guest.start();
    up(&guest);
    for line in [
        format!(" {name} job start: queued\n"),
        format!(" {name} has appeared, leader {}\n", guest.leader()),
        format!(" {name} is running\n"),
        format!(" {name} has address fe80::"),
    ] {
        follower.shows(&line);
    }
    follower.end();
    machinist(["events", "not_a_name"]).status(2);
    machinist(["events", "a[b"]).status(2).stderr_has("is not valid");
}

#[test]
fn without_root_all_but_addresses_is_told() {
    let _host = shared();
    let guest = Guest::busybox("evu");
    let name = guest.name.as_str();
    let start = [
        "setpriv",
        "--reuid=1000",
        "--regid=1000",
        "--clear-groups",
        "--reset-env",
    ];
    let command = [start.as_slice(), &["machinist", "events", "--json"]].concat();
    let follower = listening(&command, &[name]);
    guest.start();
    tells(&follower, name, "job start done");
    tells(&follower, name, "state running");
    tells(&follower, name, "appeared");
    stays("no address is told", Duration::from_secs(1), || {
        !told(&follower, name).iter().any(|event| event.starts_with("address"))
    });
    follower.end();
}

#[test]
fn the_bus_and_machined_may_go_and_come_back() {
    // A machine whose start meets a machined that goes fails.
    let _host = alone();
    let guest = Guest::busybox("evb");
    let name = guest.name.as_str();
    // A bus that can go without the host's.
    let script = "exec python3 - \"$1\" <<'END'
import os, socket, sys, threading
path = sys.argv[1]
if os.path.exists(path): os.unlink(path)
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen()
def carry(a, b):
    while data := a.recv(65536):
        b.sendall(data)
    b.shutdown(socket.SHUT_RDWR)
while True:
    near, _ = listener.accept()
    far = socket.socket(socket.AF_UNIX)
    far.connect('/run/dbus/system_bus_socket')
    for pair in ((near, far), (far, near)):
        threading.Thread(target=carry, args=pair, daemon=True).start()
END";
    let socket = format!("/root/{name}.socket");
    let bus = || sh(script, [&socket]).spawn();
    let first = bus();
    wait_until("the bus is there", || std::path::Path::new(&socket).exists());
    let address = format!("DBUS_SYSTEM_BUS_ADDRESS=unix:path={socket}");
    let follower = Follower::of(&["env", &address, "machinist", "events", "--json", name]);
    guest.start();
    // It may have come before anybody listened: then it is not told.
    wait_until("it listens", || {
        run("systemctl", ["restart", "systemd-machined"]).ok();
        follower.said().contains("systemd-machined has started") || follower.shown().contains("job")
    });
    first.signal(nix::sys::signal::Signal::SIGKILL);
    first.wait();
    wait_until("that is said", || follower.said().contains("the system bus has gone"));
    machinist(["stop", name]).ok();
    let second = bus();
    tells(&follower, name, "gone");
    tells(&follower, name, "state stopped");
    guest.start();
    tells(&follower, name, "job start done");
    follower.end();
    second.signal(nix::sys::signal::Signal::SIGKILL);
    second.wait();
    let _ = std::fs::remove_file(socket);
}

#[test]
fn nobody_else_can_tell() {
    let _host = shared();
    let guest = Guest::busybox("evf");
    let follower = events(&[]);
    let pid = follower.pid().to_string();
    let connections = run("busctl", ["list", "--unique", "--no-legend"]).ok().stdout;
    let ours: Vec<&str> = connections
        .lines()
        .filter(|line| line.split_whitespace().nth(1) == Some(&pid))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert_eq!(ours.len(), 2, "{connections}");
    let forge = |interface: &str, member: &str, words: &[&str]| {
        for to in &ours {
            let to = format!("--destination={to}");
            let emit = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "busctl"];
            let words = [
                &emit[1..],
                &["emit", &to, "/org/freedesktop/machine1", interface, member],
                words,
            ]
            .concat();
            run(emit[0], words).any();
        }
    };
    forge(
        "org.freedesktop.machine1.Manager",
        "MachineNew",
        &["so", "forged", "/a"],
    );
    forge(
        "org.freedesktop.systemd1.Manager",
        "JobRemoved",
        &["uoss", "1", "/a", "systemd-nspawn@forged.service", "done"],
    );
    forge(
        "org.freedesktop.DBus",
        "NameOwnerChanged",
        &["sss", "org.freedesktop.machine1", "", ":1.1"],
    );
    guest.start();
    tells(&follower, &guest.name, "job start done");
    assert!(!follower.said().contains("systemd-machined"), "{}", follower.said());
    let shown = follower.end();
    assert!(!shown.contains("forged"), "{shown}");
}

#[test]
fn floods_and_closed_pipes_end_well() {
    let _host = shared();
    let guest = Guest::busybox("evp");
    let name = guest.name.as_str();
    guest.start();
    let follower = events(&[name]);
    // Addresses come and go as quickly as the machine can.
    let flood = "while :; do ip addr add 10.2.3.4/24 dev lo; ip addr del 10.2.3.4/24 dev lo; ip addr add 10.2.3.5/24 dev host0; \
                 ip addr del 10.2.3.5/24 dev host0; done";
    machinist(["exec", "--detach", name, "--", "sh", "-c", flood]).ok();
    wait_until("much is told", || told(&follower, name).len() > 20);
    for (what, kib) in resident("machinist events") {
        assert!(kib < 64 << 10, "{what} takes {kib} KiB");
    }
    let pipe = "machinist events \"$1\" | head -n 1; test \"${PIPESTATUS[0]}\" = 141";
    sh(pipe, [name])
        .within(Duration::from_secs(30))
        .ok()
        .stdout_has("address");
    machinist(["terminate", name]).ok();
    tells(&follower, name, "gone");
    follower.end();
    // Nothing happens, and it ends with who reads.
    sh(
        "machinist events nothing-of-the-kind | true; test \"${PIPESTATUS[0]}\" = 141",
        [""; 0],
    )
    .within(Duration::from_secs(30))
    .ok();
}

#[test]
fn systemd_may_be_executed_anew() {
    let _host = alone();
    let guest = Guest::busybox("evr");
    let name = guest.name.as_str();
    let follower = events(&[name]);
    // systemd speaks of each when it is executed anew: more than a connection's queue holds.
    let many = "mkdir -p /run/systemd/system && printf '[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=true\n' \
                >/run/systemd/system/evr@.service && systemctl start $(seq -f 'evr@%g' 200)";
    sh(many, [""; 0]).ok();
    run("systemctl", ["daemon-reexec"]).ok();
    // It is asked again a moment later.
    wait_until("the start is told", || {
        guest.start();
        let told = told(&follower, name).iter().any(|event| event == "job start done");
        machinist(["terminate", name]).ok();
        told
    });
    assert!(!follower.said().contains("warning"), "{}", follower.said());
    follower.end();
    sh(
        "systemctl stop 'evr@*' && rm /run/systemd/system/evr@.service && systemctl daemon-reload",
        [""; 0],
    )
    .ok();
}
