//! console: what a machine shows on its console, from before and as it comes.

use std::fs;
use std::time::Duration;

use crate::logs::{Follower, entries, field};
use crate::support::{Guest, alone, create_debian, machinist, run, sh, shared, wait_until};
use crate::terminal::Terminal;

/// A busybox that speaks when it starts and when it stops.
fn speaker(stem: &str) -> Guest {
    let guest = Guest::busybox(stem);
    let inittab = "::sysinit:/bin/sh -c 'printf \"\\033[2Jfirst \\033[31m%d\\033[0m words\\n\" $((40+2))'\n\
                   ::shutdown:/bin/sh -c 'echo last words'\n";
    fs::write(guest.image().join("etc/inittab"), inittab).unwrap();
    guest
}

/// Something said on the console.
#[track_caller]
fn say(guest: &Guest, text: &str) {
    let script = format!("echo {text} >/dev/console");
    machinist(["exec", &guest.name, "--", "sh", "-c", &script]).ok();
}

/// What the journal has of the console in a run of a unit, by journalctl.
fn by_journalctl(invocation: &str) -> Vec<String> {
    run("journalctl", ["--sync"]).ok();
    let invocation = format!("_SYSTEMD_INVOCATION_ID={invocation}");
    let shown = run(
        "journalctl",
        [
            "-q",
            "-a",
            "-o",
            "json",
            "_TRANSPORT=stdout",
            "SYSLOG_IDENTIFIER=systemd-nspawn",
            &invocation,
        ],
    );
    let cursor = |entry: &serde_json::Value| field(entry, "__CURSOR").to_owned();
    entries(&shown.ok().stdout).iter().map(cursor).collect()
}

#[test]
fn it_shows_the_last_run_and_what_follows() {
    let _host = shared();
    let guest = speaker("conr");
    let other = Guest::busybox("conr");
    let name = guest.name.as_str();
    machinist(["console", name]).status(1).fails_with(
        &format!("machine '{name}' is not running, and the journal has nothing of its console"),
        &format!("machinist start {name}"),
    );
    machinist(["console", "nosuch-machine"]).status(3);
    machinist(["console", "nosuch-*"]).status(3);
    machinist(["console", "conr-*"])
        .status(2)
        .stderr_has("matches several machines")
        .stderr_has(&other.name);
    machinist(["console", name, "-n", "few"]).status(2);

    guest.start();
    let mut terminal = Terminal::machinist(["console", &name.replace("conr", "con[r]")]);
    terminal.sees("read only").sees("\\u{1b}[2Jfirst 42 words");
    wait_until("keys are not shown", || !terminal.echoes());
    say(&guest, "live-1");
    terminal.sees("live-1");
    // What is typed goes nowhere; a reboot is no end.
    terminal.types("nothing\n");
    machinist(["restart", "--inside", name]).ok();
    terminal.sees("first 42 words");
    say(&guest, "live-2");
    terminal.sees("live-2").types("\x1d\x1d\x1d");
    assert_eq!(terminal.ends(), 0);
    terminal.sees(&format!("left {name}"));
    assert!(terminal.echoes());
    assert!(!terminal.shown().contains("nothing"), "{}", terminal.shown());
    // Ctrl-C.
    let mut terminal = Terminal::machinist(["console", name, "-n", "0"]);
    wait_until("keys are not shown", || !terminal.echoes());
    say(&guest, "live-3");
    terminal.sees("live-3").types("\x03");
    assert_eq!(terminal.ends(), 130);
    assert!(terminal.echoes());
    assert!(!terminal.shown().contains("live-2"), "{}", terminal.shown());

    // Nobody at a terminal: each entry once, as the journal has them, to the last one.
    let follower = Follower::of(&["machinist", "console", name, "--json"]);
    follower.shows("live-3");
    say(&guest, "live-4");
    follower.shows("live-4");
    let invocation = guest.property("InvocationID");
    machinist(["stop", name]).ok();
    let shown = follower.ends();
    let cursors: Vec<String> = entries(&shown)
        .iter()
        .map(|entry| field(entry, "__CURSOR").to_owned())
        .collect();
    assert_eq!(cursors, by_journalctl(&invocation));
    assert!(shown.contains("last words") && !shown.contains("live-1"), "{shown}");
    machinist(["console", name])
        .ok()
        .stdout_has("last words\n")
        .stderr_has("is not running: that was its last run");
    let last = machinist(["console", name, "-n", "1", "--quiet"]).ok().stderr_is("");
    assert_eq!(last.stdout.lines().count(), 1, "{last:?}");

    // The next run has a console of its own.
    guest.start();
    let first = || machinist(["console", "--no-follow", name]).ok();
    wait_until("it has spoken", || first().stdout.contains("first"));
    first().lacks("last words").lacks("live");
    let pipe = "machinist console -q \"$1\" 2>/root/\"$1\".err | head -n 1 >/dev/null; test \"${PIPESTATUS[0]}\" = 141 && \
                test ! -s /root/\"$1\".err; rm -f /root/\"$1\".err";
    sh(pipe, [name]).within(Duration::from_secs(60)).ok();
    sh("machinist console --no-follow \"$1\" >/dev/full", [name]).status(1);
    sh("machinist console --no-follow \"$1\" <&-", [name])
        .ok()
        .stdout_has("words");

    // Killed in the middle; the terminal gone in the middle.
    let follower = Follower::of(&["machinist", "console", name]);
    follower.shows("first");
    run("systemctl", ["kill", "-s", "KILL", &guest.unit()]).ok();
    follower.ends();
    let who = "runuser -u nobody -- machinist --no-ask-password console \"$1\"";
    sh(who, [name]).status(4).stderr_has("is not for you");
}

#[test]
fn a_debian_boots_on_it() {
    let _host = shared();
    let guest = Guest::new("cond");
    create_debian(&guest.name, &[]);
    let name = guest.name.as_str();
    machinist(["start", "--wait", name]).ok();
    let shown = machinist(["console", "--no-follow", "-n", "all", "--json", name]).ok();
    let cursors: Vec<String> = entries(&shown.stdout)
        .iter()
        .map(|entry| field(entry, "__CURSOR").to_owned())
        .collect();
    let all = by_journalctl(&guest.property("InvocationID"));
    assert!(cursors.len() > 5 && all.starts_with(&cursors), "{cursors:?}\n{all:?}");
    let mut terminal = Terminal::machinist(["console", name]);
    terminal.sees("Welcome to ").sees("Reached target");
    machinist(["stop", name]).ok();
    assert_eq!(terminal.ends(), 0);
    terminal.sees(&format!("machine '{name}' has stopped"));
    assert!(terminal.echoes());
}

#[test]
fn a_flood_takes_no_memory() {
    let _host = shared();
    let guest = speaker("conf");
    let name = guest.name.as_str();
    guest.start();
    let follower = Follower::to_nowhere(&["machinist", "console", name]);
    wait_until("it follows", || follower.said().contains("read only"));
    let yes = "exec timeout 4 yes 0123456789012345678901234567890123456789 >/dev/console";
    let _ = machinist(["exec", name, "--", "/bin/busybox", "sh", "-c", yes]).any();
    let peak = peak_memory(follower.pid());
    assert!(peak > 0 && peak < 40 << 10, "{peak} KiB");
    machinist(["terminate", name]).ok();
    follower.ends();
}

/// The most memory that a process has had, in KiB.
fn peak_memory(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let words = peak.and_then(|peak| peak.split_whitespace().next());
    words.and_then(|word| word.parse().ok()).unwrap_or(0)
}

#[test]
fn it_outlives_the_bus() {
    let _host = alone();
    let guest = speaker("conb");
    let name = guest.name.as_str();
    guest.start();
    let follower = Follower::of(&["machinist", "console", name]);
    follower.shows("first");
    run("systemctl", ["restart", "systemd-machined"]).ok();
    run("systemctl", ["restart", "dbus"]).ok();
    wait_until("machined answers", || {
        machinist(["exec", name, "--", "sh", "-c", "echo live >/dev/console"])
            .any()
            .status
            == 0
    });
    follower.shows("live");
    run("systemctl", ["stop", &guest.unit()]).ok();
    assert!(follower.ends().contains("last words"));
}
