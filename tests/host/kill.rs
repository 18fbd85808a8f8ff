//! kill: a signal to the leader or to all, as machinectl sends it.

use std::fs;
use std::time::Duration;

use serde_json::json;

use crate::support::{Guest, machinist, run, shared, stays, wait_until, write_program};

/// A guest whose init, and a child of it, write down the signals that they hear.
fn listening(stem: &str) -> Guest {
    let guest = Guest::deaf(stem);
    let program = "#!/bin/sh\nhear() { for s in HUP USR1 TERM RTMIN+4; do trap \"echo $1-$s >>/heard\" $s; done; }\n\
                   (hear child; echo child >>/ready; while :; do sleep 0.1; done) &\n\
                   hear init; echo init >>/ready; while :; do sleep 0.1; done\n";
    // Busybox knows signals of real time by their number only.
    let program = program.replace("RTMIN+4", "38");
    let init = guest.image().join("sbin/init");
    fs::remove_file(&init).unwrap();
    write_program(&init, &program);
    guest.start();
    wait_until("both listen", || lines(&guest, "ready") == ["child", "init"]);
    guest
}

/// The sorted lines of a file of the machine.
fn lines(guest: &Guest, file: &str) -> Vec<String> {
    let text = fs::read_to_string(guest.image().join(file)).unwrap_or_default();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[test]
fn the_leader_or_all_hear_a_signal() {
    let _host = shared();
    let guest = listening("hear");
    let name = guest.name.as_str();
    let heard = |wanted: &[&str]| {
        wait_until("it is heard", || lines(&guest, "heard") == wanted);
        stays("nobody else hears it", Duration::from_millis(500), || {
            lines(&guest, "heard") == wanted
        });
        fs::remove_file(guest.image().join("heard")).unwrap();
    };
    machinist(["kill", "-s", "USR1", "--whom", "leader", name])
        .ok()
        .stdout_is("")
        .stderr_is(&format!("sent SIGUSR1 to {name}\n"));
    heard(&["init-USR1"]);
    for signal in ["USR1", "SIGUSR1", "usr1", "10"] {
        machinist(["kill", "--signal", signal, "--whom", "leader", name]).ok();
        heard(&["init-USR1"]);
    }
    machinist(["kill", "-s", "RTMIN+4", "--whom=leader", name])
        .ok()
        .stderr_is(&format!("sent SIGRTMIN+4 to {name}\n"));
    heard(&["init-38"]);
    let sent = machinist(["kill", "--json", "-s", "1", "--kill-whom", "leader", name])
        .ok()
        .json();
    let wanted = json!([{ "machine": name, "result": "signalled", "signal": "SIGHUP", "whom": "leader" }]);
    assert_eq!(sent, wanted);
    heard(&["init-HUP"]);
    machinist(["kill", "--dry-run", name])
        .ok()
        .stdout_is(&format!("send SIGTERM to all processes of unit {}\n", guest.unit()));
    stays("a dry run sends nothing", Duration::from_millis(500), || {
        lines(&guest, "heard").is_empty()
    });
    // As machinectl's: SIGTERM, to all.
    machinist(["kill", name])
        .ok()
        .stderr_is(&format!("sent SIGTERM to {name}\n"));
    wait_until("both hear it", || {
        lines(&guest, "heard").starts_with(&["child-TERM".into(), "init-TERM".into()])
    });
    machinist(["kill", "-s", "KILL", name]).ok();
    wait_until("its unit has failed", || guest.property("ActiveState") == "failed");
    // By the signal, or because its guest was killed, whichever systemd-nspawn came to first.
    assert_ne!(guest.property("Result"), "success");
}

#[test]
fn a_frozen_machine_hears_it_when_it_is_thawed() {
    let _host = shared();
    let guest = listening("icehear");
    let name = guest.name.as_str();
    machinist(["freeze", name]).ok();
    machinist(["kill", "-s", "HUP", "--whom", "leader", name])
        .ok()
        .stderr_has("which is frozen and hears of it when it is thawed");
    stays("it hears nothing", Duration::from_millis(500), || {
        lines(&guest, "heard").is_empty()
    });
    machinist(["thaw", name]).ok();
    wait_until("it hears it", || lines(&guest, "heard") == ["init-HUP"]);
    machinist(["freeze", name]).ok();
    machinist(["kill", "-s", "KILL", "--whom", "leader", name])
        .ok()
        .stderr_is(&format!("sent SIGKILL to {name}\n"));
    // Where systemd froze all of the unit, systemd-nspawn stands still yet, and hears nothing of it.
    if guest.property("FreezerState") == "frozen" {
        machinist(["thaw", name]).ok().stderr_is(&format!("thawed {name}\n"));
    }
    wait_until("it is down", || {
        guest.property("ActiveState") == "failed" || guest.property("ActiveState") == "inactive"
    });
}

#[test]
fn what_cannot_be_sent_is_told() {
    let _host = shared();
    let guest = Guest::busybox("unsent");
    let name = guest.name.as_str();
    for (signal, hint) in [
        ("TREM", "did you mean TERM?"),
        ("0", "1 to 64"),
        ("65", "1 to 64"),
        ("-1", "1 to 64"),
        ("RTMIN+31", "RTMIN+30"),
    ] {
        machinist(["kill", "-s", signal, name]).status(2).stderr_has(hint);
    }
    machinist(["kill", "--whom", "main", name])
        .status(2)
        .stderr_has("leader");
    machinist(["kill"]).status(2);
    machinist(["kill", name]).status(1).stderr_has("is not running");
    machinist(["kill", "nosuch"]).status(3);
    guest.start();
    let leader = guest.leader();
    run("runuser", ["-u", "nobody", "--", "machinist", "kill", name]).status(4);
    machinist(["kill", "nosuch", name, "-s", "WINCH", "--whom", "leader"]).status(1);
    assert_eq!(guest.leader(), leader);
}

#[test]
fn a_debian_powers_off_when_its_systemd_is_told_to() {
    let _host = shared();
    let guest = Guest::debian("rt");
    machinist(["start", "--wait", &guest.name]).ok();
    machinist(["kill", "-s", "RTMIN+4", "--whom", "leader", &guest.name]).ok();
    wait_until("it is down", || guest.property("ActiveState") == "inactive");
    assert_eq!(guest.property("Result"), "success");
}
