//! console: what a machine shows on its console, from before and as it comes.

use std::fs;
use std::time::Duration;

use crate::logs::{Follower, entries, field};
use crate::support::{
    Guest, alone, create_debian, machine_property, machinist, run, sh, shared, unit_property, wait_until,
};
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

// With a terminal.

/// The unit that keeps the terminal.
fn keeper(name: &str) -> String {
    format!("machinist-console@{name}.service")
}

/// A busybox with a shell on its console.
fn with_shell(stem: &str) -> Guest {
    let guest = Guest::busybox(stem);
    fs::write(guest.image().join("etc/inittab"), "::respawn:-/bin/sh\n").unwrap();
    for applet in ["stty", "yes", "touch", "tty"] {
        std::os::unix::fs::symlink("busybox", guest.image().join("bin").join(applet)).unwrap();
    }
    guest
}

#[track_caller]
fn keeper_runs(name: &str) {
    let state = unit_property(&keeper(name), "ActiveState");
    assert_eq!(state, "active", "the keeper of '{name}'");
}

/// Where the link leads that systemd connects a machine to.
fn link_of(name: &str) -> Option<std::path::PathBuf> {
    fs::read_link(format!("/run/machinist/console/{name}.tty")).ok()
}

/// Its console, with somebody at it.
#[track_caller]
fn sits_at(name: &str) -> Terminal {
    let mut terminal = Terminal::machinist(["console", name]);
    terminal.sees(&format!("connected to the console of {name}"));
    wait_until("keys are passed on", || !terminal.echoes());
    terminal
}

#[test]
fn an_interactive_console_is_typed_into_left_and_come_back_to() {
    let _host = shared();
    let guest = with_shell("coni");
    let name = guest.name.as_str();
    machinist(["config", "set", name, "console=interactive"]).ok();
    machinist(["config", "get", name, "console"])
        .ok()
        .stdout_is("interactive\n");
    guest.start();
    assert_eq!(guest.property("StandardInput"), "file");
    keeper_runs(name);
    let mut first = Terminal::machinist(["console", name]);
    first.resize(33, 99).sees("connected to the console").sees("# ");
    first.types("echo sum $((40+2))\n").sees("sum 42");
    first.types("stty size\n").sees("33 99");
    first.resize(44, 111);
    wait_until("the size is passed on", || {
        first.types("stty size\n");
        std::thread::sleep(Duration::from_millis(100));
        first.shown().contains("44 111")
    });
    // Another one sees the same.
    let mut second = sits_at(name);
    second
        .sees("sum 42")
        .types("echo of the $((1+1))nd\n")
        .sees("of the 2nd");
    first.sees("of the 2nd").types("\x1d\x1d\x1d");
    assert_eq!(first.ends(), 0);
    first.sees(&format!("left {name}, whose console goes on"));
    assert!(first.echoes(), "the terminal stays raw");
    second.types("echo still $((2+1))\n").sees("still 3");
    // Its terminal goes: the machine does not notice.
    drop(second);

    // Back, with what was shown; the escape of systemd-nspawn itself never gets there.
    let mut third = sits_at(name);
    third.sees("sum 42").sees("still 3");
    for _ in 0..3 {
        third.types("\x1d\x1da");
    }
    third.types("\x03\necho lives $((3+1))\n").sees("lives 4");
    assert_eq!(machine_property(name, "State").as_deref(), Some("running"));
    // Nobody at a terminal reads the journal, which has it, too.
    wait_until("the journal has it", || {
        run("journalctl", ["--sync"]).ok();
        let shown = machinist(["console", name, "--no-follow"]).ok();
        shown.stdout.contains("sum 42") && shown.stdout.contains("lives 4")
    });
    assert!(
        machinist(["logs", name, "--from", "console"])
            .ok()
            .stdout
            .contains("lives 4")
    );
    let socket = format!("/run/machinist/console/{name}.socket");
    let mode = run("stat", ["-c", "%a %U", &socket]).ok().stdout;
    assert_eq!(mode, "600 root\n");

    // The keeper is killed: systemd starts it again, with the same terminal.
    let leader = guest.leader();
    run("systemctl", ["kill", "-s", "KILL", &keeper(name)]).ok();
    wait_until("it is kept again", || unit_property(&keeper(name), "NRestarts") != "0");
    wait_until("it can be typed into again", || {
        third.types("echo again $((4+1))\n");
        std::thread::sleep(Duration::from_millis(200));
        third.shown().contains("again 5")
    });
    run("systemctl", ["restart", &keeper(name)]).ok();
    wait_until("it can be typed into again", || {
        third.types("echo anew $((5+1))\n");
        std::thread::sleep(Duration::from_millis(200));
        third.shown().contains("anew 6")
    });
    assert_eq!(guest.leader(), leader);
    // A reboot is no end; the stop is.
    machinist(["restart", "--inside", name]).ok();
    wait_until("it can be typed into again", || {
        third.types("echo once more $((6+1))\n");
        std::thread::sleep(Duration::from_millis(200));
        third.shown().contains("once more 7")
    });
    third.types("\x1d\x1d\x1d");
    assert_eq!(third.ends(), 0);
    machinist(["restart", name]).ok();
    let mut fourth = sits_at(name);
    fourth.types("\necho restarted $((7+1))\n").sees("restarted 8");
    machinist(["terminate", name]).ok();
    assert_eq!(fourth.ends(), 0);
    fourth.sees(&format!("machine '{name}' has stopped"));
    assert!(fourth.echoes());
    wait_until("the keeper stops with it", || {
        unit_property(&keeper(name), "ActiveState") == "inactive"
    });
    assert!(!std::path::Path::new(&socket).exists());
    // Without the link systemd would make a file there if nobody kept the terminal.
    assert_eq!(link_of(name), Some("/dev/null".into()));

    // Taken back.
    machinist(["config", "unset", name, "console"]).ok();
    assert!(!guest.drop_ins().join("50-machinist-console.conf").exists());
    guest.start();
    assert_eq!(guest.property("StandardInput"), "null");
    let mut terminal = Terminal::machinist(["console", name]);
    terminal.sees("read only").types("\x03");
    assert_eq!(terminal.ends(), 130);
}

#[test]
fn a_frozen_machine_is_left_and_lives_on() {
    let _host = shared();
    let guest = with_shell("conz");
    let name = guest.name.as_str();
    machinist(["config", "set", name, "console=interactive"]).ok();
    guest.start();
    let leader = guest.leader();
    let mut terminal = sits_at(name);
    terminal.types("\necho sum $((40+2))\n").sees("sum 42");
    machinist(["freeze", name]).ok();
    // systemd-nspawn reads what comes through at once when it is thawed.
    for _ in 0..4 {
        terminal.types("\x1d\x1d\x1d");
        assert_eq!(terminal.ends(), 0);
        terminal = sits_at(name);
    }
    // More than anybody keeps for it.
    terminal.types(&"a".repeat(300 << 10)).types("\x1d\x1d\x1d");
    assert_eq!(terminal.ends(), 0);
    machinist(["thaw", name]).ok();
    let mut terminal = sits_at(name);
    wait_until("it can be typed into again", || {
        terminal.types("\x03\necho still $((40+3))\n");
        std::thread::sleep(Duration::from_millis(200));
        terminal.shown().contains("still 43")
    });
    assert_eq!(guest.leader(), leader);
    machinist(["terminate", name]).ok();
}

#[test]
fn a_console_is_taken_back() {
    let _host = shared();
    let guest = with_shell("cony");
    let name = guest.name.as_str();
    let set = |value: &str, options: &[&str]| {
        let setting = format!("console={value}");
        machinist(["config", "set", name, &setting].iter().chain(options)).ok()
    };
    let reads_only = || {
        let mut terminal = Terminal::machinist(["console", name]);
        terminal.sees("read only").types("\x03");
        assert_eq!(terminal.ends(), 130);
    };
    set("interactive", &[]);
    guest.start();
    keeper_runs(name);
    set("read-only", &["--restart"]);
    assert_eq!(guest.property("Result"), "success");
    assert_eq!(guest.property("StandardInput"), "null");
    wait_until("nobody keeps a terminal", || {
        unit_property(&keeper(name), "ActiveState") == "inactive"
    });
    reads_only();

    // Without a restart it has its terminal as long as it runs, even when the keeper is killed. Whoever restarts it otherwise may
    // leave the keeper behind.
    set("interactive", &["--restart"]);
    keeper_runs(name);
    let leader = guest.leader();
    set("read-only", &[]);
    run("systemctl", ["kill", "-s", "KILL", &keeper(name)]).ok();
    wait_until("it is kept again", || {
        unit_property(&keeper(name), "NRestarts") != "0" && unit_property(&keeper(name), "ActiveState") == "active"
    });
    let mut terminal = sits_at(name);
    terminal.types("\necho sum $((40+2))\n").sees("sum 42");
    terminal.types("\x1d\x1d\x1d");
    assert_eq!(terminal.ends(), 0);
    assert_eq!(guest.leader(), leader);
    run("systemctl", ["restart", &guest.unit()]).ok();
    wait_until("it runs", || machine_property(name, "State").is_some());
    reads_only();
    machinist(["stop", name]).ok();
    wait_until("nobody keeps a terminal", || {
        unit_property(&keeper(name), "ActiveState") == "inactive"
    });
    // Nothing stays of what was ours.
    machinist(["remove", "-y", name]).ok().lacks("service.d");
    assert!(!guest.drop_ins().exists());
    assert_eq!(link_of(name), None);
}

#[test]
fn a_debian_is_logged_in_to_at_its_console() {
    let _host = shared();
    let guest = Guest::new("conl");
    create_debian(&guest.name, &[]);
    let name = guest.name.as_str();
    sh("echo root:secret | chroot \"$1\" chpasswd", [guest.image()]).ok();
    machinist(["config", "set", name, "console=interactive"]).ok();
    machinist(["start", name]).ok();
    let mut terminal = Terminal::machinist(["console", name]);
    terminal.sees("login: ").types("root\n").sees("Password: ");
    terminal.types("secret\n").sees("# ");
    terminal.types("echo $((40+2)) as $(id -un)\n").sees("42 as root");
    terminal.types("\x1d\x1d\x1d");
    assert_eq!(terminal.ends(), 0);
    let mut terminal = Terminal::machinist(["console", "-n", "5", name]);
    terminal.sees("42 as root").types("echo $((40+3))\n").sees("43");
    // Killed in the middle.
    run("systemctl", ["kill", "-s", "KILL", &guest.unit()]).ok();
    assert_eq!(terminal.ends(), 0);
    terminal.sees("has stopped");
    wait_until("the keeper stops with it", || {
        unit_property(&keeper(name), "ActiveState") == "inactive"
    });
}

#[test]
fn what_run_boots_has_a_console() {
    let _host = shared();
    let guest = with_shell("conu");
    let name = guest.name.as_str();
    let copy = Guest::new("conx");
    // What is made by us has a shell there, after a key.
    let made = Guest::new("cont");
    machinist([
        "run",
        "-d",
        "template:busybox",
        "--network",
        "none",
        "--name",
        &made.name,
    ])
    .ok();
    let mut terminal = sits_at(&made.name);
    terminal.sees("press Enter").types("\n").sees("# ");
    terminal.types("echo sum $((40+2))\n").sees("sum 42");
    machinist(["terminate", &made.name]).ok();
    assert_eq!(terminal.ends(), 0);
    machinist(["run", "-d", "-x", name, "--name", &copy.name]).ok();
    let mut terminal = sits_at(&copy.name);
    terminal.types("\necho sum $((40+2))\n").sees("sum 42");
    terminal.types("\x1d\x1d\x1d");
    assert_eq!(terminal.ends(), 0);
    let mut terminal = sits_at(&copy.name);
    terminal.sees("sum 42");
    machinist(["terminate", &copy.name]).ok();
    assert_eq!(terminal.ends(), 0);
    terminal.sees("has stopped");
    wait_until("the keeper stops with it", || {
        unit_property(&keeper(&copy.name), "ActiveState") == "inactive"
    });
}

#[test]
fn a_flood_of_an_interactive_console_takes_no_memory() {
    let _host = shared();
    let guest = with_shell("cong");
    let name = guest.name.as_str();
    machinist(["config", "set", name, "console=interactive"]).ok();
    guest.start();
    let mut terminal = sits_at(name);
    terminal.types("\n").sees("# ");
    let client = terminal.pid();
    terminal.forgets();
    terminal.types("yes 0123456789012345678901234567890123456789\n");
    wait_until("it floods", || terminal.forgotten() > 20 << 20);
    let kept: i32 = unit_property(&keeper(name), "MainPID").parse().unwrap();
    for pid in [client, kept] {
        let peak = peak_memory(pid);
        assert!(peak > 0 && peak < 30 << 10, "{peak} KiB");
    }
    // It is still listened to.
    terminal.types("\x1d\x1d\x1d");
    assert_eq!(terminal.ends(), 0);
    machinist(["terminate", name]).ok();
}

#[test]
fn without_the_helper_the_machine_starts() {
    let _host = alone();
    let guest = with_shell("conh");
    let name = guest.name.as_str();
    let set = || machinist(["config", "set", name, "console=interactive"]);
    run(
        "systemctl",
        ["mask", "--runtime", "machinist-console@machinist.service"],
    )
    .ok();
    let refused = set().any();
    run(
        "systemctl",
        ["unmask", "--runtime", "machinist-console@machinist.service"],
    )
    .ok();
    assert_eq!(refused.status, 1, "{refused:?}");
    refused
        .stderr_has("needs machinist-console@.service")
        .stderr_has("make install");
    set().ok();
    let helper = "/usr/libexec/machinist-helper";
    let away = "/usr/libexec/machinist-helper.away";
    fs::rename(helper, away).unwrap();
    let started = run("systemctl", ["start", &guest.unit()]).any();
    fs::rename(away, helper).unwrap();
    assert_eq!(started.status, 0, "{started:?}");
    assert!(machine_property(name, "State").is_some());
    // It has none until its next start.
    let mut terminal = Terminal::machinist(["console", name]);
    terminal.sees("read only").types("\x03");
    assert_eq!(terminal.ends(), 130);
    machinist(["terminate", name]).ok();
    guest.start();
    let mut terminal = sits_at(name);
    terminal.types("\x1d\x1d\x1d");
    assert_eq!(terminal.ends(), 0);
    // A clone has the setting, and a console of its own.
    let clone = Guest::new("conk");
    machinist(["clone", name, &clone.name]).ok();
    clone.start();
    let mut terminal = sits_at(&clone.name);
    terminal.types("\nhostname; echo sum $((40+2))\n").sees("sum 42");
    keeper_runs(&clone.name);
    run("systemctl", ["reset-failed", &keeper(name)]).any();
}
