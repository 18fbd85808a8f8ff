//! why: each thing that keeps a machine from running is made so, and is the first that is told; nothing of one that is well.

use std::fs;

use serde_json::Value;

use crate::support::{Guest, alone, machinist, newest_entry, run, sh, shared, unique, unit_property, wait_until};

/// What is said of a machine.
#[track_caller]
pub(crate) fn answer(name: &str) -> Value {
    let answers = machinist(["why", name, "--json"]).any().json();
    assert_eq!(answers[0]["name"], name, "{answers}");
    answers[0].clone()
}

/// The cause: whether it is that, how bad it is, and whether what mends it is told.
#[track_caller]
pub(crate) fn is_told(name: &str, code: &str, severity: &str, hint: &str) -> Value {
    let answer = answer(name);
    let cause = answer["troubles"][0].clone();
    assert_eq!(cause["code"], code, "{answer}");
    assert_eq!(cause["severity"], severity, "{answer}");
    assert_eq!(cause["machine"], name, "{answer}");
    assert!(cause["hints"].to_string().contains(hint), "{hint}: {answer}");
    let errors = answer["troubles"].as_array().unwrap().iter();
    let is_wrong = errors.filter(|trouble| trouble["severity"] == "error").count() > 0;
    machinist(["why", name]).status(i32::from(is_wrong));
    cause
}

/// What is told besides.
#[track_caller]
pub(crate) fn is_told_too(name: &str, code: &str) -> Value {
    let answer = answer(name);
    let mut all = answer["troubles"].as_array().unwrap().iter();
    let found = all.find(|trouble| trouble["code"] == code);
    found
        .unwrap_or_else(|| panic!("'{code}' is not told: {answer}"))
        .clone()
}

#[track_caller]
pub(crate) fn has(trouble: &Value, text: &str) {
    assert!(trouble["evidence"].to_string().contains(text), "{text}: {trouble}");
}

/// Waits until the cause has that in its evidence: what a program writes takes its time to the journal. The program has to live
/// until then: of whom a line of one was that is gone systemd 252 cannot tell.
#[track_caller]
pub(crate) fn comes_to_have(name: &str, text: &str) {
    wait_until("the journal has it", || {
        answer(name)["troubles"][0]["evidence"].to_string().contains(text)
    });
}

/// Whether it begins with a time, as journalctl prints it, and is in the journal of the unit.
#[track_caller]
fn is_of_the_journal(guest: &Guest, trouble: &Value) {
    let line = trouble["evidence"][0].as_str().unwrap();
    let message = line.splitn(3, ": ").last().unwrap();
    let time = run("journalctl", ["-q", "-o", "short", "-u", &guest.unit(), "-n", "500"])
        .ok()
        .stdout;
    let stamp = &line[..15];
    assert!(
        time.lines().any(|entry| entry.starts_with(stamp)),
        "{stamp}: {trouble}\n{time}"
    );
    assert!(!message.is_empty(), "{trouble}");
}

#[test]
fn who_has_stopped_it_is_told() {
    let _host = shared();
    let guest = Guest::busybox("whya");
    let name = guest.name.as_str();
    let start = format!("machinist start {name}");
    is_told(name, "never-started", "note", &start);
    guest.start();
    machinist(["stop", name]).ok();
    let cause = is_told(name, "stopped", "note", &start);
    has(&cause, "machinist stop, by root");
    guest.start();
    run("systemctl", ["stop", &guest.unit()]).ok();
    let cause = is_told(name, "stopped", "note", &start);
    assert!(cause["cause"].as_str().unwrap().contains("not by machinist"), "{cause}");
    has(&cause, "Stopping ");
    is_of_the_journal(&guest, &cause);
    guest.start();
    guest.inside(["busybox", "poweroff"]).any();
    wait_until("it is off", || guest.property("ActiveState") == "inactive");
    let cause = is_told(name, "powered-off", "note", &start);
    has(&cause, "Deactivated successfully");
    machinist(["why", name])
        .ok()
        .stdout_has(&format!("{name} (stopped)\n\nnote: it powered itself off"));

    // Frozen by us, and by systemd.
    guest.start();
    machinist(["freeze", name]).ok();
    let cause = is_told(name, "frozen", "error", &format!("machinist thaw {name}"));
    has(&cause, "machinist freeze, by root");
    assert_eq!(answer(name)["state"], "frozen");
    machinist(["thaw", name]).ok();
    assert_ne!(answer(name)["troubles"][0]["code"], "frozen");

    let leader = guest.leader().to_string();
    run("kill", ["-KILL", &leader]).ok();
    wait_until("it has failed", || guest.property("ActiveState") == "failed");
    let cause = is_told(name, "init-killed", "error", &format!("machinist logs {name}"));
    has(&cause, "terminated by signal KILL");
    guest.start();
    run("systemctl", ["kill", "-s", "KILL", "--kill-whom=main", &guest.unit()]).ok();
    wait_until("it has failed", || guest.property("ActiveState") == "failed");
    assert_eq!(guest.property("Result"), "signal");
    let cause = is_told(name, "supervisor-killed", "error", &start);
    assert!(
        cause["cause"].as_str().unwrap().ends_with("killed by SIGKILL"),
        "{cause}"
    );
    is_of_the_journal(&guest, &cause);
}

/// Starts it by systemd, which fails.
#[track_caller]
pub(crate) fn fails(guest: &Guest) {
    run("systemctl", ["reset-failed", &guest.unit()]).any();
    // What a supervisor that was killed has left.
    run(
        "umount",
        ["-l", &format!("/run/systemd/nspawn/unix-export/{}", guest.name)],
    )
    .any();
    run("systemctl", ["start", &guest.unit()]).any();
    wait_until("it has failed", || guest.property("ActiveState") == "failed");
}

#[test]
fn settings_that_keep_it_from_starting_are_told_with_their_line() {
    let _host = shared();
    let guest = Guest::busybox("whyb");
    let name = guest.name.as_str();
    let file = guest.settings().display().to_string();
    for (settings, code, line, hint) in [
        (
            "[Network]\nBridge=nosuchbr8\n",
            "missing-bridge",
            2,
            "ip link add nosuchbr8 type bridge",
        ),
        (
            "[Exec]\nBoot=yes\n[Network]\nMACVLAN=nosucheth8\n",
            "missing-interface",
            4,
            "ip link",
        ),
        ("[Files]\nBind=/no/such/place8:/mnt\n", "missing-source", 2, "Bind="),
        (
            "[Exec]\nBoot=yes\n[Network\n",
            "settings-refused",
            3,
            "mend the named line",
        ),
        (
            "[Network]\nPrivate=no\nPort=tcp:8088:80\n",
            "conflict",
            3,
            "VirtualEthernet=yes",
        ),
    ] {
        guest.write_settings(settings);
        fails(&guest);
        let cause = is_told(name, code, "error", hint);
        has(&cause, &format!("{file}:{line}: "));
        has(&cause, &format!("unit {} failed (exit-code)", guest.unit()));
        is_of_the_journal(&guest, &cause);
        // What is mended by now is not looked for again.
        guest.write_settings("[Exec]\nKillSignal=SIGUSR2\n");
        let cause = is_told(name, code, "error", &format!("mended by now: `machinist start {name}`"));
        assert_eq!(cause["hints"].as_array().unwrap().len(), 1, "{cause}");
    }
    run("systemctl", ["reset-failed", &guest.unit()]).ok();
    // Before it is started, too; the cause is why it does not run.
    guest.write_settings("[Exec]\nNoSuchKey=1\n[Network]\nBridge=nosuchbr8\n");
    has(&is_told_too(name, "missing-bridge"), &format!("{file}:4: "));
    has(&is_told_too(name, "settings-wrong"), &format!("{file}:2: "));
    let text = machinist(["why", name]).status(1).stdout;
    assert!(
        text.contains("\nalso, error: it does not start with its settings: "),
        "{text}"
    );
    guest.write_settings("[Exec]\nKillSignal=SIGUSR2\n");

    // A link of that name is somebody else's.
    let link = format!("ve-{name}");
    run(
        "ip",
        [
            "link",
            "add",
            &link,
            "type",
            "veth",
            "peer",
            "name",
            &format!("vp-{name}"),
        ],
    )
    .ok();
    fails(&guest);
    let told = std::panic::catch_unwind(|| is_told(name, "link-taken", "error", &format!("ip link delete {link}")));
    run("ip", ["link", "delete", &link]).ok();
    told.unwrap_or_else(|panic| std::panic::resume_unwind(panic));

    // A secret that is gone.
    machinist(["secret", "set", name, "key"]).stdin("hush").ok();
    fs::remove_file(format!("/var/lib/machinist/secrets/{name}/key")).unwrap();
    fails(&guest);
    let cause = is_told(
        name,
        "secret-missing",
        "error",
        &format!("machinist secret set {name} key"),
    );
    has(&cause, "243/CREDENTIALS");
    machinist(["secret", "remove", name, "key"]).ok();
}

#[test]
fn what_is_wrong_with_its_unit_is_told() {
    let _host = shared();
    let guest = Guest::busybox("whyc");
    let name = guest.name.as_str();
    let unit = guest.unit();
    let start = |words: &[&str]| {
        run("systemctl", ["reset-failed", &unit]).any();
        // What a supervisor that was killed has left.
        run("umount", ["-l", &format!("/run/systemd/nspawn/unix-export/{name}")]).any();
        run("systemctl", [words, &[&unit]].concat()).any()
    };
    run("systemctl", ["mask", "--runtime", &unit]).ok();
    is_told(name, "unit-masked", "error", &format!("systemctl unmask {unit}"));
    run("systemctl", ["unmask", "--runtime", &unit]).ok();

    guest.write_drop_in("[Service]\nExecStart=\n");
    start(&["start"]);
    let cause = is_told(name, "unit-bad", "error", "systemctl daemon-reload");
    has(&cause, &guest.drop_ins().join("50-test.conf").display().to_string());

    guest.write_drop_in("[Unit]\nConditionPathExists=/no/such/place9\n");
    start(&["start"]);
    let cause = is_told(name, "condition-failed", "error", &format!("machinist start {name}"));
    assert!(
        cause["cause"]
            .as_str()
            .unwrap()
            .contains("ConditionPathExists=/no/such/place9"),
        "{cause}"
    );
    is_of_the_journal(&guest, &cause);

    let other = format!("{}.service", unique("test"));
    let path = format!("/run/systemd/system/{other}");
    fs::write(
        &path,
        "[Service]\nType=oneshot\nExecStart=sh -c 'echo no such luck; journalctl --sync; exit 3'\n",
    )
    .unwrap();
    guest.write_drop_in(&format!("[Unit]\nRequires={other}\nAfter={other}\n"));
    start(&["start"]);
    is_told(
        name,
        "dependency-failed",
        "error",
        &format!("systemctl status '{other}'"),
    );
    comes_to_have(name, "no such luck");
    fs::write(&path, "[Service]\nType=oneshot\nExecStart=sleep infinity\n").unwrap();
    run("systemctl", ["daemon-reload"]).ok();
    run("systemctl", ["reset-failed", &other]).any();
    start(&["start", "--no-block"]);
    wait_until("it waits for that alone", || {
        unit_property(&other, "ActiveState") == "activating" && answer(name)["troubles"][0]["evidence"][1].is_null()
    });
    let cause = is_told(name, "waiting", "warning", "systemctl list-jobs");
    has(&cause, &format!("{other} is activating"));
    run("systemctl", ["stop", &unit, &other]).any();
    fs::remove_file(&path).unwrap();

    guest.write_drop_in("[Service]\nExecStartPre=sh -c 'echo not today; journalctl --sync; exit 9'\n");
    start(&["start"]);
    is_told(name, "hook-failed", "error", "before-start");
    comes_to_have(name, "not today");

    guest.write_drop_in("[Service]\nExecStartPre=sleep infinity\nTimeoutStartSec=3\n");
    start(&["start", "--no-block"]);
    wait_until("it runs the command", || guest.property("SubState") == "start-pre");
    is_told(name, "starting", "warning", "before-start");
    wait_until("it has failed", || guest.property("ActiveState") == "failed");
    let cause = is_told(name, "start-timeout", "error", "TimeoutStartSec=");
    has(&cause, "timed out");

    guest.write_drop_in("[Service]\nWatchdogSec=1\n");
    start(&["start"]);
    run("kill", ["-STOP", &guest.property("MainPID")]).ok();
    wait_until("it has failed", || guest.property("ActiveState") == "failed");
    let cause = is_told(name, "watchdog", "error", &format!("systemctl reset-failed {unit}"));
    has(&cause, "Watchdog timeout");

    guest.write_drop_in("[Service]\nTimeoutStopSec=1\n");
    guest.write_settings("[Exec]\nBoot=yes\n");
    start(&["start"]);
    run("systemctl", ["stop", &unit]).any();
    let cause = is_told(name, "stop-timeout", "error", "Exec.KillSignal=SIGUSR2");
    has(&cause, "timed out");

    guest.write_drop_in("[Service]\nSlice=machine.slice\n");
    guest.write_settings("[Exec]\nBoot=no\nProcessTwo=yes\nParameters=/bin/sh -c 'echo broken by hand; exit 7'\n");
    fails(&guest);
    let cause = is_told(name, "payload-failed", "error", &format!("machinist logs {name}"));
    assert!(cause["cause"].as_str().unwrap().ends_with("with status 7"), "{cause}");
    has(&cause, "broken by hand");

    guest.write_drop_in("[Unit]\nStartLimitIntervalSec=1h\nStartLimitBurst=1\n");
    guest.write_settings("[Network]\nBridge=nosuchbr9\n");
    start(&["start"]);
    run("systemctl", ["start", &unit]).any();
    is_told(name, "start-limit", "error", &format!("systemctl reset-failed {unit}"));
    let before = is_told_too(name, "missing-bridge");
    has(&before, &guest.settings().display().to_string());
}

#[test]
fn a_machine_that_boots_for_ever_is_told() {
    let _host = shared();
    let guest = Guest::busybox("whyd");
    let name = guest.name.as_str();
    fs::write(guest.image().join("etc/inittab"), "::sysinit:/bin/busybox reboot -f\n").unwrap();
    guest.write_drop_in("[Unit]\nStartLimitIntervalSec=1h\nStartLimitBurst=2\n");
    run("systemctl", ["start", &guest.unit()]).any();
    wait_until("systemd has enough of it", || {
        guest.property("Result") == "start-limit-hit"
    });
    let cause = is_told(name, "reboot-loop", "error", &format!("machinist logs {name}"));
    has(&cause, "repeated too quickly");
    // Between two of them.
    guest.write_drop_in("[Service]\nRestartSec=1h\n");
    run("systemctl", ["reset-failed", &guest.unit()]).ok();
    run("systemctl", ["start", "--no-block", &guest.unit()]).any();
    wait_until("it waits", || guest.property("SubState").starts_with("auto-restart"));
    is_told(name, "restarting", "warning", &format!("machinist logs {name}"));
    run("systemctl", ["stop", &guest.unit()]).ok();
}

#[test]
fn what_is_off_on_the_host_is_told() {
    struct Masked;
    impl Drop for Masked {
        fn drop(&mut self) {
            run("systemctl", ["unmask", "--runtime", "systemd-machined.service"]).any();
            run("systemctl", ["start", "systemd-machined.service"]).any();
            run("systemctl", ["enable", "machines.target"]).any();
        }
    }
    let _host = alone();
    let guest = Guest::busybox("whyh");
    let name = guest.name.as_str();
    guest.start();
    machinist(["enable", name]).ok();
    let _masked = Masked;
    // It comes again when it is asked.
    run("systemctl", ["restart", "systemd-machined"]).ok();
    assert_eq!(answer(name)["state"], "running");
    let manager = [
        "org.freedesktop.machine1",
        "/org/freedesktop/machine1",
        "org.freedesktop.machine1.Manager",
    ];
    run(
        "busctl",
        [&["call"], manager.as_slice(), &["UnregisterMachine", "s", name]].concat(),
    )
    .ok();
    let cause = is_told(name, "not-registered", "error", &format!("machinist restart {name}"));
    has(&cause, &format!("{} is active (running)", guest.unit()));
    run("systemctl", ["stop", &guest.unit()]).ok();
    run("systemctl", ["mask", "--runtime", "systemd-nspawn@.service"]).ok();
    let told = std::panic::catch_unwind(|| {
        is_told(
            name,
            "template-masked",
            "error",
            "systemctl unmask systemd-nspawn@.service",
        );
    });
    run("systemctl", ["unmask", "--runtime", "systemd-nspawn@.service"]).ok();
    told.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    run("systemctl", ["disable", "machines.target"]).ok();
    is_told(name, "stopped", "note", "machinist start");
    is_told_too(name, "machines-target-off");
    run("systemctl", ["enable", "machines.target"]).ok();
    run("systemctl", ["mask", "--runtime", "systemd-machined.service"]).ok();
    sh("systemctl stop systemd-machined.service systemd-machined.socket 2>/dev/null || systemctl stop systemd-machined.service", [""]).ok();
    let cause = is_told(name, "machined-masked", "error", "systemctl unmask systemd-machined");
    assert!(!cause["evidence"].as_array().unwrap().is_empty(), "{cause}");
}

#[test]
fn names_output_and_those_who_may_not_look() {
    let _host = shared();
    let guest = Guest::busybox("whyn");
    let name = guest.name.as_str();
    machinist(["why", "no-such-machine"])
        .status(3)
        .stderr_has("no machine or image 'no-such-machine'");
    machinist(["why", "no-such-*"]).status(3);
    machinist(["why"]).status(2);
    machinist(["why", "_bad"]).status(2).stderr_has("_bad");
    let error = machinist(["why", "no-such-machine", "--json"]).status(3).json_error();
    assert_eq!(error["kind"], "not-found");
    // Those that are there are shown all the same.
    let both = machinist(["why", name, "no-such-machine"]).status(1);
    both.stdout_has(&format!("{name} (stopped)"))
        .stderr_has("no-such-machine");
    let several = machinist(["why", &format!("{name}*"), name, "--json"]).ok().json();
    assert_eq!(several.as_array().unwrap().len(), 1, "{several}");
    // A pipe that nobody reads.
    let quiet = sh("machinist why \"$1\" | true; echo ${PIPESTATUS[0]}", [name]).ok();
    assert_eq!(quiet.stderr, "", "{quiet:?}");
    // Without root.
    let user = [
        "--reuid=1000",
        "--regid=1000",
        "--clear-groups",
        "machinist",
        "why",
        name,
    ];
    run("setpriv", user).ok().stdout_has("sudo machinist why");
    guest.start();
    let before = newest_entry(&[format!("MACHINE={name}")]);
    run("setpriv", user).ok().stdout_has(&format!("{name} (running)"));
    // Nothing is done, and nothing is written down.
    assert_eq!(newest_entry(&[format!("MACHINE={name}")]), before);
}
