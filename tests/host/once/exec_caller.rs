//! `exec`: what the caller has, and the command is not to have, and what the caller does with the streams.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::time::Duration;

use crate::support::{Guest, machinist, run, sh, shared, wait_until};

/// A guest with all of busybox's programs.
fn running(stem: &str, settings: &str) -> Guest {
    let guest = Guest::new(stem);
    machinist(["create", &guest.name, "template:busybox"]).ok();
    if !settings.is_empty() {
        guest.write_settings(settings);
    }
    guest.start();
    guest
}

#[test]
fn the_callers_terminal_is_out_of_reach() {
    let _host = shared();
    let guest = running("ctty", "");
    // The session of script's shell has a terminal, and the command none of its own.
    let exec = format!(
        "machinist exec -T {} -- sh -c ': </dev/tty'; echo \"status $?\"",
        guest.name
    );
    let output = sh("script -qec \"$1\" /dev/null", [&exec]).ok().stdout;
    assert!(output.contains("status 1") || output.contains("status 2"), "{output:?}");
    assert!(output.contains("/dev/tty"), "{output:?}");
}

#[test]
fn scheduling_is_that_of_pid1() {
    let _host = shared();
    let guest = running("sched", "");
    let leader = guest.leader().to_string();
    run("taskset", ["-pc", "0", &leader]).ok();
    run("renice", ["-n", "3", "-p", &leader]).ok();
    run("ionice", ["-c", "2", "-n", "6", "-p", &leader]).ok();
    // As proc_pid_stat(5) has it: niceness, real-time priority, policy.
    let look = "cut -d' ' -f19,40,41 /proc/$1/stat; grep Cpus_allowed_list /proc/$1/status; ionice -p $1";
    let of = |before: &[&str], pid: &str| {
        let exec = ["machinist", "exec", &guest.name, "--", "sh", "-c", look, "sh", pid];
        run(before[0], before[1..].iter().chain(&exec)).ok().stdout
    };
    let pid1 = of(&["env"], "1");
    assert!(pid1.starts_with("3 0 0\nCpus_allowed_list:\t0\n"), "{pid1}");
    // `self` of ionice would be ionice's own.
    let own = |before: &[&str]| {
        let look = look.replace("$1", "$$");
        let exec = ["machinist", "exec", &guest.name, "--", "sh", "-c", &look];
        run(before[0], before[1..].iter().chain(&exec)).ok().stdout
    };
    for before in [
        &["env"] as &[&str],
        &["nice", "-n", "-9"],
        &["chrt", "-f", "5"],
        &["ionice", "-c", "3"],
    ] {
        assert_eq!(own(before), pid1, "{before:?}");
    }
}

#[test]
fn a_detached_command_has_the_guests_own_null() {
    let _host = shared();
    let guest = running("null", "[Exec]\nPrivateUsers=no\n");
    let device = |path: &str| {
        let stat = fs::metadata(path).expect("a device");
        (stat.permissions().mode() & 0o7777, stat.uid())
    };
    let before = device("/dev/null");
    let script = "chmod 642 /proc/self/fd/0; chown 33 /proc/self/fd/1; touch /done";
    machinist(["exec", "-d", &guest.name, "--", "sh", "-c", script]).ok();
    wait_until("it has run", || guest.image().join("done").exists());
    assert_eq!(device("/dev/null"), before);
    assert_eq!(device(&format!("/proc/{}/root/dev/null", guest.leader())), (0o642, 33));
    // Something else there is not taken for it.
    guest.inside(["sh", "-c", "rm /dev/null; mkfifo /dev/null"]).ok();
    machinist(["exec", "-d", &guest.name, "--", "true"])
        .status(125)
        .quicker_than(Duration::from_secs(20))
        .stderr_has("/dev/null");
}

#[test]
fn who_ignores_his_children_gets_their_statuses() {
    let _host = shared();
    let guest = running("sigchld", "");
    let ignore = [
        "-e",
        "$SIG{CHLD} = 'IGNORE'; exec @ARGV or die",
        "machinist",
        "exec",
        &guest.name,
        "--",
    ];
    run("perl", ignore.iter().chain(&["sh", "-c", "exit 7"])).status(7);
}

#[test]
fn output_that_is_lost_is_no_success() {
    let _host = shared();
    let guest = running("full", "");
    for name in [guest.name.clone(), format!("{}*", guest.name)] {
        let lost = sh("machinist exec \"$1\" -- echo hi >/dev/full", [&name]).status(125);
        lost.stderr_has("cannot pass on what the command wrote")
            .stderr_has("No space left on device");
    }
    let other = running("full", "");
    let closed = "timeout 20 machinist exec \"$1\" \"$2\" -- yes | head -n 1 | wc -l";
    sh(closed, [&guest.name, &other.name])
        .ok()
        .quicker_than(Duration::from_secs(20))
        .stdout_is("1\n");
}

#[test]
fn output_that_nobody_reads_can_be_given_up() {
    let _host = shared();
    let guest = running("stuck", "");
    // It fits into the pipes, so that the command ends, and what it wrote does not get through.
    let script = "cd \"$(mktemp -d)\"; mkfifo out; sleep 60 <out & \
                  timeout -s TERM 3 machinist exec \"$1\" -- head -c 1900000 /dev/zero >out || echo $?; kill %1";
    let output = sh(script, [&guest.name]).ok().quicker_than(Duration::from_secs(30));
    output.stdout_is("124\n");
}
