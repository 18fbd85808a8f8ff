//! top: what machines use, against what the kernel counts; on a terminal and for scripts.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

use crate::logs::Follower;
use crate::support::{Guest, Output, machinist, run, sh, shared, unique, wait_until};
use crate::terminal::Terminal;

/// What a terminal is told when it is left.
const LEFT: &str = "\x1b[?1049l";

/// The only row of `top NAME --once --json`.
#[track_caller]
fn row(name: &str) -> Value {
    let rows = machinist(["top", name, "--once", "--json"]).ok().json();
    assert_eq!(rows.as_array().unwrap().len(), 1, "{rows}");
    rows[0].clone()
}

/// A file of the guest's control group; `None` where there is no such controller.
fn file(guest: &Guest, name: &str) -> Option<String> {
    fs::read_to_string(format!("/sys/fs/cgroup{}/{name}", guest.property("ControlGroup"))).ok()
}

fn cpu_time(guest: &Guest) -> u64 {
    let text = file(guest, "cpu.stat").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("usage_usec ")).unwrap();
    line.parse().unwrap()
}

/// Whether a command runs on the host.
fn runs(command: &str) -> bool {
    run("pgrep", ["-xf", command]).any().status == 0
}

#[test]
fn it_shows_what_the_kernel_counts() {
    let _host = shared();
    let guest = Guest::busybox("top");
    let name = guest.name.as_str();
    machinist(["top", name, "--once"]).status(3).fails_with(
        &format!("machine '{name}' is not running"),
        &format!("machinist start {name}"),
    );
    machinist(["top", "nosuch-*", "--once"])
        .status(3)
        .fails_with("no running machine matches 'nosuch-*'", "machinist list");
    guest.start();

    // It spins for as long as it is looked at.
    let spins = machinist(["exec", name, "--", "sh", "-c", "while :; do :; done"]).spawn();
    wait_until("it spins", || row(name)["cpu"].as_u64() > Some(50_000));
    let before = cpu_time(&guest);
    let shown = row(name);
    let after = cpu_time(&guest);
    spins.signal(nix::sys::signal::Signal::SIGTERM);
    spins.wait();
    let total = shown["cpu_total"].as_u64().unwrap();
    assert!(before <= total && total <= after, "{before} {total} {after}");
    assert!(shown["cpu"].as_u64() < Some(2_000_000), "{shown}");

    let keys: BTreeSet<&str> = shown.as_object().unwrap().keys().map(String::as_str).collect();
    let wanted =
        "cpu cpu_limit cpu_total io_read io_write memory memory_limit name net_rx net_tx tasks tasks_limit time";
    assert_eq!(keys, wanted.split(' ').collect());
    assert_eq!(shown["name"], name);
    for (key, value) in shown.as_object().unwrap() {
        let is_right = match key.as_str() {
            "name" | "time" => value.is_string(),
            _ => value.is_null() || value.is_u64(),
        };
        assert!(is_right, "{key}: {value}");
    }
    // Which controllers there are is the host's to say.
    for (key, counted) in [
        ("memory", "memory.current"),
        ("tasks", "pids.current"),
        ("io_read", "io.stat"),
    ] {
        assert_eq!(shown[key].is_null(), file(&guest, counted).is_none(), "{key}");
    }
    let table = machinist(["top", name, "--once"]).ok().stdout;
    let lines: Vec<&str> = table.lines().collect();
    let header = "NAME CPU MEMORY TASKS IO READ IO WRITE NET RX NET TX";
    assert_eq!(lines[0].split_whitespace().collect::<Vec<_>>().join(" "), header);
    assert_eq!(lines[1].split_whitespace().count(), 8, "{table}");
    assert_eq!(lines[3], "1 machine listed.");
    machinist([
        "top",
        "--once",
        "--filter",
        &format!("name={name}"),
        "--columns",
        "name,time",
        "--no-legend",
    ])
    .ok()
    .stdout_has(name);
    machinist(["top", name, "--once", "--format", "csv", "--columns", "name"])
        .ok()
        .stdout_is(&format!("name\r\n{name}\r\n"));

    // Whoever may not change anything may look.
    let words = ["-u", "nobody", "--", "machinist", "top", name, "--once", "--json"];
    let shown = run("runuser", words).ok().json();
    assert!(shown[0]["cpu_total"].as_u64() >= Some(total), "{shown}");
}

#[test]
fn traffic_is_as_the_machine_sees_it() {
    let _host = shared();
    let guest = Guest::busybox("toprx");
    let name = guest.name.as_str();
    guest.start();
    guest.inside(["/bin/ip", "link", "set", "host0", "up"]).ok();
    // To all in the link, who are the guest: nobody answers.
    let link = format!("ve-{name}");
    let send = "ip link set \"$1\" up; while :; do
        head -c 1000 /dev/zero 2>/dev/null >\"/dev/udp/ff02::1%$1/9\" || true; sleep 0.02; done";
    let sends = sh(send, [&link]).spawn();
    wait_until("it receives much, and sends little", || {
        let shown = row(name);
        let (received, sent) = (shown["net_rx"].as_u64(), shown["net_tx"].as_u64());
        received > Some(5_000) && sent.is_some() && sent < received.map(|count| count / 2)
    });
    sends.signal(nix::sys::signal::Signal::SIGKILL);
    sends.wait();

    // The host's network is nobody's own.
    let other = Guest::busybox("tophost");
    other.write_settings("[Exec]\nKillSignal=SIGUSR2\n[Network]\nPrivate=no\nVirtualEthernet=no\n");
    other.start();
    assert!(row(&other.name)["net_rx"].is_null());
}

#[test]
fn machines_come_and_go() {
    let _host = shared();
    let guest = Guest::busybox("topgo");
    let other = Guest::busybox("topgo");
    other.start();
    let pattern = "topgo-*";
    let follower = Follower::of(&["machinist", "top", pattern, "--json", "--interval", "0.2"]);
    let last = || -> Vec<String> {
        let shown = follower.shown();
        let whole = &shown[..shown.rfind('\n').map_or(0, |at| at + 1)];
        let rows: Value = serde_json::from_str(whole.lines().last().unwrap_or("[]")).unwrap();
        let rows = rows.as_array().unwrap().iter();
        rows.map(|row| row["name"].as_str().unwrap().to_owned()).collect()
    };
    wait_until("the one that runs is shown", || last() == [other.name.as_str()]);
    guest.start();
    wait_until("the other one is shown, too", || {
        last().iter().collect::<BTreeSet<_>>() == BTreeSet::from([&guest.name, &other.name])
    });
    machinist(["terminate", &other.name]).ok();
    wait_until("the first one is not shown", || last() == [guest.name.as_str()]);
    // It runs anew, and is read anew.
    let leader = guest.leader();
    machinist(["restart", &guest.name]).ok();
    assert_ne!(guest.leader(), leader);
    wait_until("it uses less than before", || {
        let shown = follower.shown();
        let whole = &shown[..shown.rfind('\n').map_or(0, |at| at + 1)];
        let rows: Value = serde_json::from_str(whole.lines().last().unwrap_or("[]")).unwrap();
        rows[0]["name"] == guest.name.as_str()
            && rows[0]["cpu_total"]
                .as_u64()
                .is_some_and(|total| total <= cpu_time(&guest))
            && rows[0]["cpu"].is_u64()
    });
    machinist(["terminate", &guest.name]).ok();
    wait_until("nobody is shown", || last().is_empty());
    follower.end();
}

#[test]
fn a_terminal_is_filled_and_left_as_it_was() {
    let _host = shared();
    let guest = Guest::busybox("topscr");
    let name = guest.name.as_str();
    guest.start();
    let mut terminal = Terminal::machinist(["top", name, "--interval", "0.3"]);
    terminal
        .resize(10, 120)
        .sees("\x1b[?1049h")
        .sees("machinist top: 1 machine")
        .sees(name);
    assert!(!terminal.echoes(), "keys are not taken as they come");
    for (key, order) in [
        ("m", "memory"),
        ("t", "tasks"),
        ("i", "IO"),
        ("n", "network"),
        ("N", "name"),
        ("c", "CPU"),
    ] {
        terminal.types(key).sees(&format!("sorted by {order}")).sees(name);
    }
    terminal.types("r").sees("sorted by CPU, reversed").sees("%");
    terminal.types("\x1b[B\x1b[A\x1b[5~\x1b[6~");
    // Of three lines one is the machine's, or none.
    terminal.resize(3, 20).sees("machinist top: 1 mac\x1b[K");
    terminal.resize(10, 120).sees("q quit");
    terminal.types("q");
    assert_eq!(terminal.ends(), 0);
    assert!(terminal.echoes(), "the terminal stays raw");
    terminal.sees(LEFT);

    let mut terminal = Terminal::machinist(["top", "--sort", "-memory"]);
    terminal.sees("every 1 s").types("\x03");
    assert_eq!(terminal.ends(), 0);
    terminal.sees(LEFT);
    assert!(terminal.echoes());

    let command = format!("machinist top --interval 0.7 {name}");
    let mut terminal = Terminal::machinist(["top", "--interval", "0.7", name]);
    terminal.sees(name);
    run("pkill", ["-TERM", "-xf", &command]).ok();
    assert_eq!(terminal.ends(), 130);
    terminal.sees(LEFT).sees("interrupted");
    assert!(terminal.echoes());

    // A terminal that is gone.
    let command = format!("machinist top --interval 0.8 {name}");
    let script = run("script", ["-qfc", &command, "/dev/null"]).spawn();
    wait_until("it is there", || runs(&command));
    script.signal(nix::sys::signal::Signal::SIGKILL);
    script.wait();
    wait_until("it has ended with its terminal", || !runs(&command));
}

#[test]
fn what_it_cannot_do_is_said() {
    let _host = shared();
    machinist(["top"])
        .status(2)
        .stderr_has("no terminal")
        .stderr_has("--once");
    for interval in ["0", "0.05", "-1", "x"] {
        machinist(["top", "--once", &format!("--interval={interval}")]).status(2);
    }
    machinist(["top", "--once", "--columns", "nosuch"]).status(2);
    machinist(["top", "a_b", "--once"]).status(2);
    // Whoever reads it has seen enough.
    let quiet = |output: Output| {
        assert_eq!((output.stdout.trim_end(), output.stderr.as_str()), ("141", ""));
    };
    let name = unique("none");
    let script = "machinist top --json --interval 0.1 --filter name=$1 | head -n 2 >/dev/null; echo ${PIPESTATUS[0]}";
    quiet(sh(script, [&name]).ok());
    let slow = "machinist top --json --interval 600 | true; echo ${PIPESTATUS[0]}";
    quiet(sh(slow, [""; 0]).ok());
}
