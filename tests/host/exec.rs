//! `exec`: exact statuses and streams, and never more than the machine's PID 1 may do.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::{Guest, holds_within, machinist, run, sh, shared, wait_until};

/// A guest with all of busybox's programs.
pub(crate) fn running(stem: &str) -> Guest {
    let guest = Guest::new(stem);
    machinist(["create", &guest.name, "template:busybox"]).ok();
    guest.start();
    guest
}

/// Runs a shell script inside, as root.
pub(crate) fn inside(guest: &Guest, script: &str) -> crate::support::Run {
    machinist(["exec", &guest.name, "--", "sh", "-c", script])
}

#[test]
fn statuses_and_streams_are_the_commands() {
    let _host = shared();
    let guest = running("exec");
    let output = inside(&guest, "echo out; echo err >&2; exit 7").status(7);
    assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("out\n", "err\n"));
    inside(&guest, "cat").stdin("a\0b\n").ok().stdout_is("a\0b\n");
    // Streams can be opened again, by whoever the command runs as.
    inside(&guest, "echo err >/dev/stderr; cat /dev/stdin")
        .stdin("in")
        .ok()
        .stdout_is("in")
        .stderr_is("err\n");
    machinist([
        "exec",
        &guest.name,
        "-u",
        "4711",
        "--",
        "sh",
        "-c",
        "echo out >/dev/stdout",
    ])
    .ok()
    .stdout_is("out\n");
    inside(&guest, "kill -KILL $$").status(137);
    inside(&guest, "exit 255").status(255);
    let exec = |word: &str| machinist(["exec", &guest.name, "--", word]);
    exec("nosuch").status(127).stderr_has("there is no program 'nosuch'");
    exec("/no/such").status(127);
    exec("/etc/passwd")
        .status(126)
        .stderr_has("cannot execute '/etc/passwd'");
    // What is left running does not hold us up, nor is what it wrote before lost.
    inside(&guest, "sleep 1000 & echo done")
        .ok()
        .quicker_than(Duration::from_secs(20))
        .stdout_is("done\n");
}

#[test]
fn large_arguments_and_much_data_pass() {
    let _host = shared();
    let guest = running("large");
    let long = "x".repeat(100_000);
    let words: Vec<&str> = std::iter::repeat_n(long.as_str(), 15).collect();
    let command = ["exec", &guest.name, "--", "sh", "-c", "echo $#; echo ${#15}", "sh"];
    machinist(command.iter().copied().chain(words))
        .ok()
        .stdout_is("15\n100000\n");
    let script = "head -c 300M /dev/zero | machinist exec \"$1\" -- cat | wc -c";
    sh(script, [&guest.name]).ok().stdout_is("314572800\n");
    let closed = "{ machinist exec \"$1\" -- yes || echo $? >&2; } | head -n 1";
    sh(closed, [&guest.name]).ok().stderr_is("141\n");
    sh("machinist exec \"$1\" -- cat <&-", [&guest.name]).ok().stdout_is("");
}

#[test]
fn nothing_of_the_callers_environment_goes_along() {
    let _host = shared();
    let guest = running("env");
    let output = machinist(["exec", &guest.name, "-e", "A=b=c", "-e", "HOME=/tmp", "--", "env"])
        .env("SECRET", "s")
        .env("LANG", "C.UTF-8")
        .env("TERM", "dumb")
        .ok();
    let mut lines: Vec<&str> = output
        .stdout
        .lines()
        .filter(|line| !line.starts_with("PATH="))
        .collect();
    lines.sort_unstable();
    let wanted = [
        "A=b=c",
        "HOME=/tmp",
        "LANG=C.UTF-8",
        "LOGNAME=root",
        "SHELL=/bin/sh",
        "USER=root",
        "container=systemd-nspawn",
    ];
    assert_eq!(lines, wanted);
}

#[test]
fn users_and_directories_are_the_machines() {
    let _host = shared();
    let guest = running("user");
    let exec = |options: &[&str], script: &str| {
        let words = [&["exec", guest.name.as_str()], options, &["--", "sh", "-c", script]];
        machinist(words.concat())
    };
    exec(
        &["-u", "4711:815"],
        "id -u; id -g; id -G; grep CapEff /proc/self/status",
    )
    .ok()
    .stdout_is("4711\n815\n815\nCapEff:\t0000000000000000\n");
    exec(&["-u", "nosuch"], "id")
        .status(125)
        .stderr_has("there is no user 'nosuch' in the machine");
    exec(&["--cwd", "/etc"], "pwd").ok().stdout_is("/etc\n");
    exec(&["--cwd", "/no/such"], "pwd").status(125).stderr_has("'/no/such'");
    // A link leads nowhere else than inside.
    inside(&guest, "ln -s ../../../../../../../etc /out; echo inside >/etc/mark").ok();
    exec(&["--cwd", "/out"], "cat mark").ok().stdout_is("inside\n");
    // Whatever we hold open is no way out.
    for number in 0..16 {
        exec(&["--cwd", &format!("/proc/self/fd/{number}/../../..")], "pwd").status(125);
    }
    // Files of accounts that never end, or block, keep nobody out who needs none.
    inside(
        &guest,
        "rm /etc/passwd; mkfifo /etc/passwd; ln -sf /dev/zero /etc/group",
    )
    .ok();
    exec(&[], "echo in")
        .ok()
        .quicker_than(Duration::from_secs(20))
        .stdout_is("in\n");
}

/// What a process is to have as PID 1 has it.
pub(crate) const COMPARE: &str = "p=$1; grep -E '^(Uid|Gid|Groups|Cap...|NoNewPrivs|Seccomp|Seccomp_filters|Umask|Speculation_Store_Bypass):' \
     /proc/$p/status; cat /proc/$p/uid_map /proc/$p/gid_map /proc/$p/cgroup /proc/$p/limits /proc/$p/oom_score_adj \
     /proc/$p/personality; cat /proc/$p/attr/current 2>/dev/null; for n in cgroup ipc mnt net pid user uts; do \
     readlink /proc/$p/ns/$n; done; readlink /proc/$p/root";

fn equals_pid1(guest: &Guest) {
    let look = |pid: &str| {
        // v1 hierarchies that nobody uses show where the helper's caller is.
        let output = machinist(["exec", &guest.name, "--", "sh", "-c", COMPARE, "sh", pid])
            .ok()
            .stdout;
        output
            .lines()
            .filter(|line| !line.contains(":name=systemd:"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let (own, pid1) = (look("self"), look("1"));
    assert!(pid1.iter().any(|line| line.starts_with("CapBnd:")), "{pid1:#?}");
    assert_eq!(own, pid1);
}

#[test]
fn privileges_are_those_of_pid1() {
    let _host = shared();
    for settings in [
        "",
        "[Exec]\nPrivateUsers=no\n",
        "[Exec]\nDropCapability=CAP_SYS_ADMIN CAP_NET_RAW\nSystemCallFilter=~@swap mount_setattr\n",
        "[Exec]\nPrivateUsers=no\nDropCapability=CAP_SYS_PTRACE\nCapability=CAP_SYS_TIME\nSystemCallFilter=@clock\n",
        "[Exec]\nNoNewPrivileges=yes\nLimitNOFILE=333:444\nLimitCORE=0\n",
    ] {
        let guest = Guest::busybox("equal");
        guest.write_settings(settings);
        guest.start();
        equals_pid1(&guest);
    }
}

#[test]
fn privileges_are_those_of_systemd_as_pid1() {
    let _host = shared();
    let guest = Guest::debian("equald");
    machinist(["start", "--wait", &guest.name]).ok();
    equals_pid1(&guest);
    let script = "echo \"$(systemctl is-system-running) $(id -un)\"";
    inside(&guest, script).ok().stdout_has("root");
}

#[test]
fn the_program_itself_cannot_be_reached_from_inside() {
    let _host = shared();
    let guest = running("exe");
    let sum = || {
        run("sha256sum", ["/usr/bin/machinist", "/usr/libexec/machinist-helper"])
            .ok()
            .stdout
    };
    let before = sum();
    let attack = "while :; do for p in /proc/[0-9]*; do echo x 2>/dev/null >$p/exe; done 2>/dev/null; done";
    let attacker = inside(&guest, attack).spawn();
    for _ in 0..10 {
        inside(&guest, "true").ok();
    }
    // An interpreter that is "this very program" gets the copy.
    inside(&guest, "printf '#!/proc/self/exe\\n' >/bin/me; chmod +x /bin/me").ok();
    machinist(["exec", &guest.name, "--", "/bin/me"]).any();
    attacker.signal(Signal::SIGTERM);
    attacker.wait();
    assert_eq!(sum(), before);
}

#[test]
fn a_terminal_is_one_of_the_guests() {
    let _host = shared();
    let guest = running("tty");
    let name = &guest.name;
    let command =
        format!("machinist exec {name} -- sh -c 'tty; stty size; test -t 0 && test -t 1 && test -t 2; echo $?'");
    let script = "script -qec \"stty rows 33 cols 99; $1\" /dev/null";
    let output = sh(script, [&command]).ok().stdout;
    assert!(
        output.contains("/dev/pts/") && output.contains("33 99") && output.contains("0\r\n"),
        "{output:?}"
    );
    let ended = machinist(["exec", "-t", name, "--", "cat"])
        .stdin("hello\n")
        .ok()
        .stdout;
    assert!(ended.contains("hello"), "{ended:?}");
    machinist(["exec", "-T", name, "--", "tty"])
        .status(1)
        .stdout_is("not a tty\n");
    // The path of the terminal is the guest's word.
    inside(&guest, "mount -t tmpfs none /dev/pts && mkfifo /dev/pts/ptmx").ok();
    machinist(["exec", "-t", name, "--", "true"])
        .status(125)
        .quicker_than(Duration::from_secs(20))
        .stderr_has("/dev/pts/ptmx");
}

#[test]
fn signals_and_ends_are_passed_on() {
    let _host = shared();
    let guest = running("signal");
    let pids = |mark: &str| {
        let found = run("pgrep", ["-f", &format!("^sleep {mark}$")]).any();
        found.stdout.lines().count()
    };
    for (signal, name) in [
        (Signal::SIGTERM, "TERM"),
        (Signal::SIGINT, "INT"),
        (Signal::SIGUSR1, "USR1"),
    ] {
        let script = format!("trap 'exit 42' {name}; touch /up-{name}; while :; do sleep 0.1; done");
        let client = inside(&guest, &script).spawn();
        wait_until("it runs", || guest.image().join(format!("up-{name}")).exists());
        client.signal(signal);
        assert_eq!(client.wait().status, 42, "{name}");
    }
    let mark = format!("77{}", std::process::id());
    let client = machinist(["exec", &guest.name, "--", "sleep", &mark]).spawn();
    wait_until("it runs", || pids(&mark) == 1);
    client.signal(Signal::SIGKILL);
    client.wait();
    assert!(
        holds_within(Duration::from_secs(10), || pids(&mark) == 0),
        "it goes on without its client"
    );

    let mark = format!("88{}", std::process::id());
    machinist(["exec", "-d", &guest.name, "--", "sleep", &mark])
        .ok()
        .quicker_than(Duration::from_secs(20));
    assert_eq!(pids(&mark), 1);
    // A guest that shuts down asks its processes to end; the kernel kills the rest.
    let client = inside(&guest, "trap '' TERM; touch /up; sleep 1000").spawn();
    wait_until("it runs", || guest.image().join("up").exists());
    machinist(["terminate", &guest.name]).ok();
    let output = client.wait();
    assert_eq!(output.status, 137);
    output.stderr_has("stopped while the command ran");
    assert_eq!(pids(&mark), 0);
}

#[test]
fn what_cannot_be_entered_is_told() {
    let _host = shared();
    let guest = Guest::busybox("down");
    let name = &guest.name;
    machinist(["exec", name, "--", "true"])
        .status(125)
        .stderr_has("is not running")
        .stderr_has("machinist start");
    machinist(["exec", "nosuch", "--", "true"]).status(3);
    machinist(["exec", name]).status(2);
    guest.start();
    run("systemctl", ["freeze", &guest.unit()]).ok();
    let frozen = machinist(["exec", name, "--", "true"]).any();
    run("systemctl", ["thaw", &guest.unit()]).ok();
    assert_eq!(frozen.status, 125);
    frozen
        .quicker_than(Duration::from_secs(20))
        .stderr_has("is frozen")
        .stderr_has(&format!("machinist thaw {name}"));
    let user = ["-u", "nobody", "--", "machinist", "exec", name, "--", "true"];
    run("runuser", user).status(4);
}

#[test]
fn several_machines_answer_at_once() {
    let _host = shared();
    let (a, b) = (running("many-a"), running("many-b"));
    let mut names = [a.name.as_str(), b.name.as_str()];
    names.sort_unstable();
    let exec = |options: &[&str], script: &str| {
        machinist([&["exec"], &names as &[&str], options, &["--", "sh", "-c", script]].concat())
    };
    let output = exec(&[], "echo one; echo two >&2; exit 0").ok();
    let mut lines: Vec<&str> = output.stdout.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, names.map(|name| format!("{name}: one")));
    output.stderr_has(&format!("{}: two\n", names[0]));
    let failed = format!("test \"$(hostname)\" != {} || exit 9", names[1]);
    let report = exec(&["--json"], &failed).status(1).json();
    let of = |name: &str, status: u8| json!({ "machine": name, "status": status, "stdout": "", "stderr": "", "truncated": false });
    assert_eq!(report, json!([of(names[0], 0), of(names[1], 9)]));
    // A pattern shows the same for one machine.
    let pattern = format!("{}*", a.name);
    machinist(["exec", &pattern, "--", "echo", "one"])
        .ok()
        .stdout_is(&format!("{}: one\n", a.name));
}

#[test]
fn nothing_of_the_guests_is_loaded_on_the_way_in() {
    let _host = shared();
    let guest = running("load");
    inside(
        &guest,
        "mkdir -p /lib/x86_64-linux-gnu; echo 'passwd: evil' >/etc/nsswitch.conf; : >/etc/ld.so.preload",
    )
    .ok();
    let log = format!("/run/{}.strace", guest.name);
    let options = ["-f", "-o", &log, "-e", "trace=setns,execve,open,openat,openat2"];
    let command = ["machinist", "exec", guest.name.as_str(), "-u", "nobody", "--", "true"];
    run("strace", options.iter().chain(&command)).ok();
    let log = std::fs::read_to_string(&log).expect("what strace wrote");
    // Where another process comes between, strace writes a call in two lines.
    let joined = log.lines().find(|line| line.contains(" setns(")).expect("the join");
    let pid = joined.split_whitespace().next().expect("a process");
    let helper: Vec<&str> = log
        .lines()
        .skip_while(|line| *line != joined)
        .filter(|line| line.starts_with(pid))
        .collect();
    assert!(!helper.is_empty());
    for line in &helper {
        assert!(
            !line.contains(".so") && !line.contains("nsswitch") && !line.contains("/etc/"),
            "{line}"
        );
    }
    // What it became opened nothing, either, before it was the program.
    let child: Vec<&str> = log
        .lines()
        .skip_while(|line| *line != joined)
        .filter(|line| !line.starts_with(pid))
        .take_while(|line| !line.contains("execve("))
        .collect();
    assert!(
        !child
            .iter()
            .any(|line| line.contains(".so") || line.contains("nsswitch")),
        "{child:#?}"
    );
}
