//! `exec` from a unit of this host, which is filtered as every unit of a container is: it cannot see the filters of
//! others, so that the machine's own systemd has to start the command.

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::exec::COMPARE;
use crate::support::{
    Guest, Run, holds_within, machinist, run, sh, shared, systemd_version, unique, unit_property, wait_until,
};

/// A Debian that runs.
fn debian(stem: &str) -> Guest {
    let guest = Guest::debian(stem);
    machinist(["start", "--wait", &guest.name]).ok();
    guest
}

/// `machinist exec` of a shell script, from a unit that systemd-run makes with these options.
fn from_unit(unit: &[&str], guest: &Guest, options: &[&str], script: &str) -> Run {
    from_unit_argv(unit, guest, options, &["sh", "-c", script])
}

/// The same of any command. In a file: the host's systemd takes a `$` in a command for a variable, and a doubled one for
/// another after a reload.
fn from_unit_argv(unit: &[&str], guest: &Guest, options: &[&str], command: &[&str]) -> Run {
    let words = [&["machinist", "exec", &guest.name], options, &["--"], command].concat();
    let file = format!("/run/{}.sh", unique("unit"));
    fs::write(&file, format!("exec {}\n", shell_words::join(words))).expect("a script");
    run("systemd-run", [&["-q", "--wait"], unit, &["sh", &file]].concat())
}

fn piped(guest: &Guest, options: &[&str], script: &str) -> Run {
    from_unit(&["--pipe", "-E", "LANG=C.UTF-8"], guest, options, script)
}

/// Nothing of ours is left in the guest, and no helper on the host.
fn is_clean(guest: &Guest) {
    let units = [
        "systemctl",
        "list-units",
        "--all",
        "--plain",
        "--no-legend",
        "machinist-exec-*",
    ];
    wait_until("its units are gone", || guest.inside(units).ok().stdout.is_empty());
    let group = fs::read_to_string(format!("/proc/{}/cgroup", guest.leader())).expect("its control group");
    let group = group
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .expect("the unified one");
    let is_helper =
        |pid: &str| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"machinist: "));
    wait_until("no helper is left in its control group", || {
        let processes = fs::read_to_string(format!("/sys/fs/cgroup{group}/cgroup.procs")).expect("its processes");
        assert!(
            processes.lines().any(|pid| pid == guest.leader().to_string()),
            "{processes}"
        );
        !processes.lines().any(is_helper)
    });
}

#[test]
fn a_unit_that_is_killed_for_tracing_runs_commands() {
    let _host = shared();
    let guest = debian("notrace");
    let filter = ["--pipe", "-p", "SystemCallFilter=~@debug"];
    // Killed, systemd-run(1) calls that.
    let traced = [&["-q", "--wait"], &filter[..], &["strace", "true"]].concat();
    run("systemd-run", traced).status(255);
    from_unit(&filter, &guest, &[], "echo in; exit 5")
        .status(5)
        .stdout_is("in\n");
}

#[test]
fn statuses_and_streams_are_the_commands_from_a_unit() {
    let _host = shared();
    let guest = debian("unit");
    let output = piped(
        &guest,
        &[],
        "grep -o 'machinist-exec.*service' /proc/self/cgroup; echo err >&2; exit 7",
    )
    .status(7);
    assert!(output.stdout.starts_with("machinist-exec-"), "{output:?}");
    output.stderr_is("err\n");
    piped(&guest, &[], "cat").stdin("a\0b\n").ok().stdout_is("a\0b\n");
    piped(&guest, &[], "kill -KILL $$").status(137);
    piped(&guest, &[], "sleep 1; exit 203").status(203);
    piped(&guest, &[], "echo '$HOME %n' \"$HOME\"")
        .ok()
        .stdout_is("$HOME %n /root\n");
    from_unit_argv(&["--pipe"], &guest, &[], &["echo", "$HOME", "${HOME}", "$$", "a$b"])
        .ok()
        .stdout_is("$HOME ${HOME} $$ a$b\n");
    // The guest's systemd can read what it has written of the unit.
    let reload = "unit=$(grep -o 'machinist-exec.*service' /proc/self/cgroup); systemctl daemon-reload; \
                  systemctl show -p LoadState --value \"$unit\"";
    piped(&guest, &[], reload).ok().stdout_is("loaded\n");
    // Nor does it take a `$` for another then. The file of 252 keeps none.
    if systemd_version() >= 257 {
        let reload = "unit=$(grep -o 'machinist-exec.*service' /proc/self/cgroup); systemctl daemon-reload; \
                      systemctl show -p ExecStart --value \"$unit\"";
        piped(&guest, &[], reload).ok().stdout_has(" unit=$(grep").lacks("$$");
    }
    let exec = |command: &str| {
        run(
            "systemd-run",
            [
                "-q",
                "--pipe",
                "--wait",
                "machinist",
                "exec",
                &guest.name,
                "--",
                command,
            ],
        )
    };
    exec("nosuch").status(127).stderr_has("there is no program 'nosuch'");
    exec("/no/such").status(127);
    exec("/etc/passwd")
        .status(126)
        .stderr_has("cannot execute '/etc/passwd'");
    fs::write(guest.image().join("usr/bin/odd"), "#!/no/such\n").expect("writing into the image");
    guest.inside(["chmod", "755", "/usr/bin/odd"]).ok();
    exec("odd").status(126).stderr_has("cannot execute 'odd'");

    piped(&guest, &["-u", "nobody"], "id -un").ok().stdout_is("nobody\n");
    piped(&guest, &["-u", "nobody:adm"], "id -gn").ok().stdout_is("adm\n");
    piped(&guest, &["-u", "4711"], "id")
        .status(125)
        .stderr_has("knows no user 4711");
    piped(&guest, &["--cwd", "/etc"], "pwd").ok().stdout_is("/etc\n");
    piped(&guest, &["--cwd", "/no/such"], "pwd")
        .status(125)
        .stderr_has("'/no/such'");
    let environment = piped(
        &guest,
        &["-e", "A=b=c", "-e", "HOME=/tmp"],
        "env | grep -v ^PWD= | sort",
    )
    .ok();
    environment.stdout_is(
        "A=b=c\nHOME=/tmp\nLANG=C.UTF-8\nLOGNAME=root\nPATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n\
         SHELL=/bin/bash\nUSER=root\ncontainer=systemd-nspawn\n",
    );
    let terminal = piped(
        &guest,
        &["-t"],
        "tty; stty size; test -t 0 && test -t 1 && test -t 2; echo $?",
    )
    .ok();
    assert!(
        terminal.stdout.starts_with("/dev/pts/") && terminal.stdout.ends_with("24 80\r\n0\r\n"),
        "{terminal:?}"
    );
    let mark = format!("55{}", std::process::id());
    piped(&guest, &[], &format!("sleep {mark} & echo done"))
        .ok()
        .quicker_than(Duration::from_secs(20))
        .stdout_is("done\n");
    run("pkill", ["-f", &format!("^sleep {mark}$")]).ok();
    let much = "systemd-run -q --wait --pipe machinist exec \"$1\" -- head -c 300M /dev/zero | wc -c";
    sh(much, [&guest.name]).ok().stdout_is("314572800\n");
    piped(&guest, &["-u", "nobody"], "echo err >/dev/stderr")
        .ok()
        .stderr_is("err\n");
    is_clean(&guest);
}

#[test]
fn ends_are_passed_on_from_a_unit() {
    let _host = shared();
    let guest = debian("unitend");
    let up = guest.image().join("up");
    let client = |script: &str| {
        let _ = fs::remove_file(&up);
        let unit = unique("client");
        let running = from_unit(&["-u", &unit], &guest, &[], script).spawn();
        wait_until("it runs", || up.exists());
        (unit, running)
    };
    let sleeps = |mark: &str| !run("pgrep", ["-f", &format!("^sleep {mark}$")]).any().stdout.is_empty();

    let (unit, running) = client("trap 'exit 42' TERM; touch /up; while :; do sleep 0.1; done");
    run("systemctl", ["kill", "--kill-whom=main", "-s", "TERM", &unit]).ok();
    assert_eq!(running.wait().status, 42);

    let mark = format!("66{}", std::process::id());
    let (unit, running) = client(&format!("touch /up; exec sleep {mark}"));
    wait_until("the shell has become sleep", || sleeps(&mark));
    let pid = unit_property(&unit, "MainPID").parse().expect("a process number");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).expect("it runs");
    running.wait();
    assert!(
        holds_within(Duration::from_secs(10), || !sleeps(&mark)),
        "it goes on without its client"
    );
    is_clean(&guest);

    piped(&guest, &["-d"], &format!("exec sleep 1{mark}")).ok();
    wait_until("the shell has become sleep", || sleeps(&format!("1{mark}")));
    let (unit, running) = client("trap '' TERM; touch /up; sleep 1000");
    machinist(["terminate", &guest.name]).ok();
    assert_eq!(running.wait().status, 137);
    assert!(!sleeps(&format!("1{mark}")));
    let words = run("journalctl", ["-o", "cat", "-u", &unit]).ok();
    words.stdout_has("stopped while the command ran");
}

#[test]
fn privileges_are_those_of_systemd_as_pid1_from_a_unit() {
    let _host = shared();
    let guest = Guest::debian("unitequal");
    for settings in [
        "",
        "[Exec]\nPrivateUsers=no\n",
        "[Exec]\nPrivateUsers=no\nDropCapability=CAP_SYS_PTRACE\nCapability=CAP_SYS_TIME\nSystemCallFilter=@clock\n",
        "[Exec]\nNoNewPrivileges=yes\nLimitNOFILE=3333:4444\nLimitCORE=0\n",
    ] {
        guest.write_settings(settings);
        machinist(["start", "--wait", &guest.name]).ok();
        let of = |pid: &str| {
            let script = format!("set {pid}; {COMPARE}");
            let lines = piped(&guest, &[], &script).ok().stdout;
            // Within the machine's, a group of its own; see above for v1.
            let lines = lines
                .lines()
                .filter(|line| !line.starts_with("0::/") && !line.contains(":name=systemd:"));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        let (mut own, pid1) = (of("self"), of("1"));
        // Some versions leave a service nothing to inherit, whatever PID 1 has: that is less, and all that differs.
        for line in &mut own {
            if line == "CapInh:\t0000000000000000" {
                line.clone_from(pid1.iter().find(|line| line.starts_with("CapInh:")).expect("its set"));
            }
        }
        assert!(pid1.iter().any(|line| line.starts_with("CapBnd:")), "{pid1:#?}");
        assert_eq!(own, pid1, "{settings}");
        machinist(["stop", &guest.name]).ok();
    }
}

#[test]
fn who_accepts_gets_no_socket_of_the_hosts_network() {
    let _host = shared();
    let guest = debian("accept");
    // SIOCGIFFLAGS asks about an interface of the namespace that the socket is of.
    let fake = "use Socket; my $path = '/run/systemd/private'; unlink $path;
        socket(S, PF_UNIX, SOCK_STREAM, 0) && bind(S, sockaddr_un($path)) && listen(S, 1) or die;
        open(R, '>', '/ready'); close(R); accept(C, S) or die;
        for (@ARGV) { my $ask = pack('a16 x24', $_); print qq($_\\n) if ioctl(C, 0x8913, $ask) }";
    let outside = format!("ve-{}", guest.name);
    run("ip", ["link", "show", &outside]).ok();
    let fake = guest.inside(["perl", "-e", fake, "lo", "host0", &outside]).spawn();
    wait_until("it listens", || guest.image().join("ready").exists());
    let _output = from_unit(&["--pipe"], &guest, &[], "true").status(125);
    let heard = fake.wait();
    assert_eq!((heard.status, heard.stdout.as_str()), (0, "lo\nhost0\n"), "{heard:?}");
}

#[test]
fn without_a_systemd_inside_nothing_is_run_from_a_unit() {
    let _host = shared();
    let guest = Guest::busybox("unitno");
    guest.start();
    piped(&guest, &[], "touch /ran")
        .status(125)
        .stderr_has("more privileges than its PID 1")
        .stderr_has("nobody listens");
    assert!(!guest.image().join("ran").exists());
    // Whoever listens there instead is believed nothing.
    guest
        .inside(["sh", "-c", "mkdir -p /run/systemd; mkfifo /run/systemd/private"])
        .ok();
    piped(&guest, &[], "touch /ran")
        .status(125)
        .quicker_than(Duration::from_secs(20));
}
