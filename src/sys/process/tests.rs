use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use nix::sys::signal::kill;
use nix::unistd::Pid;

use super::output::TAIL_LINES;
use super::*;

fn sh(script: &str) -> Program {
    Program::new("sh").args(["-c", script])
}

#[test]
fn captures_both_streams_and_input() {
    let program = sh("cat; echo err >&2; echo $FOO $PATH").env("FOO", "bar").stdin("in\n");
    let output = program.run(&Cancel::default()).unwrap();
    assert_eq!(output.stdout, format!("in\nbar {PATH}\n").as_bytes());
    assert_eq!(output.stderr, b"err\n");
}

#[test]
fn environment_is_not_inherited() {
    let output = Program::new("env").run(&Cancel::default()).unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 3);
}

#[test]
fn a_missing_program_is_named_with_its_package() {
    let error = Program::new("no-such-program").run(&Cancel::default()).unwrap_err();
    assert_eq!(error.to_string(), "program 'no-such-program' is not installed");
    assert!(error.hints().is_empty());
    let error = Program::new("/nowhere/debootstrap")
        .run(&Cancel::default())
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "program 'debootstrap' is not installed (Debian package 'debootstrap')"
    );
    assert_eq!(error.hints(), ["install it with `apt install debootstrap`"]);
}

#[test]
fn failure_carries_status_and_escaped_tail() {
    let script =
        "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14; do echo line $i >&2; done; printf '\\033[31mred\\n' >&2; exit 7";
    let error = sh(script).run(&Cancel::default()).unwrap_err();
    assert_eq!(error.to_string(), "'sh' failed with exit status 7");
    let ProcessError::Failed {
        tail: Some(Tail(tail)), ..
    } = error
    else {
        panic!("{error:?}")
    };
    assert_eq!(tail.len(), TAIL_LINES);
    assert_eq!(tail[0], "line 4");
    assert_eq!(tail[11], "\\u{1b}[31mred");
    let error = sh("kill -9 $$").run(&Cancel::default()).unwrap_err();
    assert_eq!(error.to_string(), "'sh' was killed by SIGKILL");
}

#[test]
fn a_log_gets_both_streams_in_order_and_lines_are_watched() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let mut seen = Vec::new();
    let program = sh("echo one; echo two >&2; printf three; exit 1").log_to(&log);
    let error = program
        .run_watched(&Cancel::default(), &mut |line| seen.push(line.to_owned()))
        .unwrap_err();
    assert_eq!(seen, ["one", "two", "three"]);
    assert_eq!(std::fs::read(&log).unwrap(), b"one\ntwo\nthree");
    assert_eq!(log.metadata().unwrap().permissions().mode() & 0o777, 0o640);
    assert_eq!(
        error.hints(),
        [format!("its whole output is kept in '{}'", log.display())]
    );
}

#[test]
fn cancelling_kills_the_whole_group() {
    let cancel = Cancel::default();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pid");
    let script = format!(
        "trap '' TERM; sleep 1000 & echo $! > {}; wait; wait; sleep 1000",
        file.display()
    );
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let handle = scope.spawn(|| sh(&script).run(&cancel));
        while std::fs::read_to_string(&file).unwrap_or_default().is_empty() {
            std::thread::sleep(Duration::from_millis(10));
        }
        cancel.cancel();
        assert!(matches!(handle.join().unwrap(), Err(ProcessError::Cancelled(_))));
    });
    assert!(begun.elapsed() < Duration::from_secs(6));
    let pid: i32 = std::fs::read_to_string(&file).unwrap().trim().parse().unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert!(kill(Pid::from_raw(pid), None).is_err() || is_zombie(pid));
}

fn is_zombie(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|text| text.contains(") Z "))
}

#[test]
fn a_daemon_holding_the_pipe_does_not_hold_us() {
    let begun = Instant::now();
    let output = sh("sleep 30 & echo done").run(&Cancel::default()).unwrap();
    assert_eq!(output.stdout, b"done\n");
    assert!(begun.elapsed() < Duration::from_secs(5));
}
