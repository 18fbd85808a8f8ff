//! shell and login: sessions that systemd-machined opens, at a terminal.

use crate::support::{Guest, create_debian, machinist, run, sh, shared, wait_until};
use crate::terminal::Terminal;

/// A Debian with D-Bus, which sessions need, running.
fn debian(stem: &str) -> Guest {
    let guest = Guest::new(stem);
    create_debian(&guest.name, &[]);
    machinist(["start", "--wait", &guest.name]).ok();
    guest
}

/// Seen from the host.
fn sleeps(seconds: &str) -> bool {
    run("pgrep", ["-xf", &format!("sleep {seconds}")]).any().status == 0
}

#[test]
fn sessions_have_pam_a_terminal_and_an_end() {
    let _host = shared();
    let guest = debian("shell");
    let name = guest.name.as_str();
    guest.inside(["useradd", "-m", "-s", "/bin/bash", "alice"]).ok();

    // A shell of the machine's own, in a session of its own.
    let mut terminal = Terminal::machinist(["shell", name]);
    terminal.resize(33, 99).sees("press ^] three times").sees("# ");
    assert!(!terminal.echoes(), "keys are not passed on as they come");
    terminal.types("stty size; tty; id -un; echo session:$XDG_SESSION_ID:\n");
    terminal.sees("33 99").sees("/dev/pts/").sees("root").sees("session:");
    terminal.resize(44, 111).types_until("stty size\n", "44 111");
    let sessions = guest.inside(["loginctl", "--no-legend", "list-sessions"]).ok().stdout;
    assert!(sessions.contains("root"), "{sessions:?}");
    // Ctrl-C is the machine's.
    terminal.types("sleep 6301\n");
    wait_until("it sleeps", || sleeps("6301"));
    terminal.types("\x03");
    wait_until("it was interrupted", || !sleeps("6301"));
    terminal.types("exit\n");
    assert_eq!(terminal.ends(), 0);
    assert!(terminal.echoes(), "the terminal stays raw");
    terminal.sees(&format!("left {name}"));

    // As another user, with a variable; left by the escape, what runs in it ends.
    let mut terminal = Terminal::machinist(["shell", "-e", "A=from-host", &format!("alice@{name}")]);
    terminal
        .sees("$ ")
        .types("echo $A $USER; sleep 6302\n")
        .sees("from-host alice");
    wait_until("it sleeps", || sleeps("6302"));
    terminal.types("\x1d\x1d\x1d");
    assert_eq!(terminal.ends(), 0);
    assert!(terminal.echoes());
    wait_until("it has ended", || !sleeps("6302"));

    // Nobody of that name.
    let mut terminal = Terminal::machinist(["shell", &format!("nosuch@{name}")]);
    assert_eq!(terminal.ends(), 125);
    terminal.sees("hint: ");
    // For scripts there is another verb.
    machinist(["shell", name]).status(2).stderr_has("machinist exec");

    // A command: its own status, and dashes are its own.
    let mut terminal = Terminal::machinist(["shell", name, "sh", "-c", "echo said; exit 42"]);
    assert_eq!(terminal.ends(), 42);
    terminal.sees("said");
    machinist(["shell", &format!("alice@{name}"), "id", "-un"])
        .ok()
        .stdout_has("alice");

    // The machine goes in the middle.
    let mut terminal = Terminal::machinist(["shell", name]);
    terminal.sees("# ");
    machinist(["terminate", name]).ok();
    terminal.ends();
    terminal.sees(&format!("machine '{name}' is not running any more"));
    assert!(terminal.echoes());
    let logged = run(
        "journalctl",
        [
            "-o",
            "cat",
            "-t",
            "machinist",
            &format!("MACHINE={name}"),
            "MACHINIST_VERB=shell",
        ],
    )
    .ok();
    assert!(logged.stdout.contains("done"), "{logged:?}");
}

#[test]
fn a_login_asks_who_it_is() {
    let _host = shared();
    let guest = debian("login");
    let name = guest.name.as_str();
    sh("echo root:secret | chroot \"$1\" chpasswd", [guest.image()]).ok();
    let mut terminal = Terminal::machinist(["login", name]);
    terminal
        .sees("login: ")
        .types("root\n")
        .sees("Password: ")
        .types("wrong\n")
        .sees("incorrect");
    terminal
        .sees("login: ")
        .types("root\n")
        .sees("Password: ")
        .types("secret\n")
        .sees("# ");
    terminal.types("id -un; logout\n").sees("root");
    // The machine asks for the next one, as long as it runs.
    terminal.sees("login: ");
    machinist(["terminate", name]).ok();
    terminal.ends();
    terminal.sees("is not running any more");
    assert!(terminal.echoes());
    // It is left as a shell is.
    machinist(["start", "--wait", name]).ok();
    let mut terminal = Terminal::machinist(["login", name]);
    terminal.sees("login: ").types("\x1d\x1d\x1d");
    assert_eq!(terminal.ends(), 0);
    terminal.sees(&format!("left {name}"));
}

#[test]
fn where_there_are_no_sessions_it_is_said() {
    let _host = shared();
    let guest = Guest::busybox("nosess");
    let name = guest.name.as_str();
    for verb in ["shell", "login"] {
        machinist([verb, name])
            .status(125)
            .stderr_has("is not running")
            .stderr_has("machinist start");
        machinist([verb, "nosuch"]).status(3);
        machinist([verb, "--json", name]).status(2);
    }
    guest.start();
    let hint = format!("machinist exec -t {name} -- sh");
    for verb in ["shell", "login"] {
        let mut terminal = Terminal::machinist([verb, name]);
        assert_eq!(terminal.ends(), 125);
        terminal.sees("sessions need systemd and D-Bus").sees(&hint);
    }
    machinist(["shell", name, "true"])
        .status(125)
        .stderr_has("sessions need systemd and D-Bus")
        .stderr_has(&hint);
    machinist(["shell", &format!("@{name}")]).status(2);
    // Whoever may not is told so.
    run(
        "runuser",
        [
            "-u",
            "nobody",
            "--",
            "machinist",
            "--no-ask-password",
            "shell",
            name,
            "true",
        ],
    )
    .status(4)
    .stderr_has("not permitted");
}
