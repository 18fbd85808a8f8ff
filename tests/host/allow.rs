//! `config set --allow`: what a machine may do before and after.

use std::fs;

use crate::support::{Guest, machinist, run, shared, systemd_version, unit_property};

/// What a system call of a process in the machine comes to: "ok", or the kernel's reason.
const CALLS: &str = r#"
my %calls = (keyctl => [250, 0, -3, 0, 0, 0], add_key => [248, "user", "probe", "x", 1, -3]);
for my $name (sort keys %calls) {
    my ($number, @arguments) = @{$calls{$name}};
    $! = 0;
    my $result = syscall($number, @arguments);
    printf "%s %s\n", $name, $result < 0 ? $! : "ok";
}
"#;

/// A container with a process namespace, mounts and a session keyring of its own.
const CONTAINER: &str = "cd /root/bundle && rm -f config.json && runc spec
sed -i 's/\"terminal\": true/\"terminal\": false/; s#\"sh\"#\"/bin/busybox\",\"sh\",\"-c\",\"echo I am $$; cat /proc/self/comm\"#' config.json
runc run probe 2>&1";

fn container(guest: &Guest) -> crate::support::Output {
    machinist(["exec", &guest.name, "--", "/bin/bash", "-c", CONTAINER]).any()
}

#[test]
fn containers_run_inside_once_they_are_allowed() {
    let _host = shared();
    let guest = Guest::debian("aldock");
    let name = guest.name.as_str();
    let image = guest.image().to_string_lossy().into_owned();
    let install =
        "apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends runc";
    let words = [
        "-q",
        "--pipe",
        "--register=no",
        "--settings=no",
        "--resolv-conf=replace-host",
        "-D",
        &image,
        "/bin/sh",
        "-c",
        install,
    ];
    run("systemd-nspawn", words).ok();
    let root = guest.image().join("root/bundle/rootfs/bin");
    fs::create_dir_all(&root).unwrap();
    fs::copy("/bin/busybox", root.join("busybox")).unwrap();
    machinist(["start", name, "--wait"]).ok();
    // 262 gives every machine the keyrings.
    let has_keyrings = systemd_version() >= 262;
    let before_that = if has_keyrings {
        "add_key ok\nkeyctl ok\n"
    } else {
        "add_key Operation not permitted\nkeyctl Operation not permitted\n"
    };
    let calls = || machinist(["exec", name, "--", "/usr/bin/perl", "-e", CALLS]).ok();
    calls().stdout_is(before_that);
    let refused = container(&guest);
    assert!(
        has_keyrings || (refused.status != 0 && refused.stdout.contains("session key")),
        "{refused:?}"
    );

    let before = fs::read(guest.settings()).ok();
    let allow = ["config", "set", name, "--allow", "docker"];
    let plan = machinist(allow).args(["--dry-run"]).ok();
    plan.stdout_has("50-machinist-device.conf'")
        .stdout_has(&format!("write '{}'", guest.settings().display()))
        .stderr_has("docker is [Exec] SystemCallFilter=add_key keyctl bpf, [Files] Bind=/dev/fuse, [Service] DeviceAllow=/dev/fuse rw")
        .stderr_has("docker exposes the kernel's keyrings");
    assert_eq!(fs::read(guest.settings()).ok(), before);
    let done = machinist(allow).args(["--restart", "--json"]).ok().json();
    assert_eq!(
        (&done[0]["result"], &done[0]["holds"]),
        (&"changed".into(), &"now".into())
    );
    calls().stdout_is("add_key ok\nkeyctl ok\n");
    let runs = container(&guest);
    assert_eq!((runs.status, runs.stdout.as_str()), (0, "I am 1\ncat\n"), "{runs:?}");
    machinist([
        "exec",
        name,
        "--",
        "/bin/bash",
        "-c",
        "exec 3<>/dev/fuse && test -c /dev/fuse",
    ])
    .ok();
    assert!(
        unit_property(&guest.unit(), "DeviceAllow")
            .lines()
            .any(|line| line == "/dev/fuse rw")
    );
    assert_eq!(unit_property(&guest.unit(), "NeedDaemonReload"), "no",);

    // The same again is no change; and all of it goes in one.
    let written = fs::read(guest.settings()).unwrap();
    machinist(allow).ok().stderr_has("has these settings already");
    assert_eq!(fs::read(guest.settings()).unwrap(), written);
    machinist(["config", "undo", name]).ok();
    assert_eq!(fs::read(guest.settings()).ok(), before);
    assert!(!guest.drop_ins().exists());
    machinist(allow).ok();
    machinist(["config", "unset", name, "--allow", "docker", "--restart"]).ok();
    let left = String::from_utf8(fs::read(guest.settings()).unwrap()).unwrap();
    assert!(!left.contains("SystemCallFilter") && !left.contains("fuse"), "{left}");
    assert!(!guest.drop_ins().exists());
    calls().stdout_is(before_that);
    machinist(["config", "unset", name, "--allow", "docker"])
        .ok()
        .stderr_has("has these settings already");
}

#[test]
fn what_cannot_be_allowed_is_refused() {
    let _host = shared();
    let guest = Guest::busybox("albad");
    let name = guest.name.as_str();
    let before = fs::read_to_string(guest.settings()).unwrap();
    for verb in ["set", "unset"] {
        machinist(["config", verb, name, "--allow", "everything"])
            .status(2)
            .stderr_has("[possible values: docker]");
        machinist(["config", verb, name]).status(2);
        machinist(["config", verb, "no-such-machine", "--allow", "docker"]).status(3);
        let user = [
            "--reuid=1000",
            "--regid=1000",
            "--clear-groups",
            "machinist",
            "config",
            verb,
            name,
            "--allow",
            "docker",
        ];
        run("setpriv", user).status(4).stderr_has("needs root");
    }
    // The machine would not start with a device that is not there.
    let script = "mount -t tmpfs tmpfs /dev && exec machinist config set \"$0\" --allow docker </proc/self/status";
    run("unshare", ["-m", "--", "bash", "-euc", script, name])
        .status(1)
        .stderr_has("there is no device '/dev/fuse' on this host");
    assert_eq!(fs::read_to_string(guest.settings()).unwrap(), before);
    assert!(!guest.drop_ins().exists());
    // With settings beside it, and what was there is kept.
    guest.write_settings("[Exec]\n# mine\nSystemCallFilter=perf_event_open\nKillSignal=SIGUSR2\n");
    machinist(["config", "set", name, "Exec.Hostname=engine", "--allow", "docker"]).ok();
    assert_eq!(
        fs::read_to_string(guest.settings()).unwrap(),
        "[Exec]\n# mine\nSystemCallFilter=perf_event_open\nSystemCallFilter=add_key keyctl bpf\nKillSignal=SIGUSR2\nHostname=engine\n\
         \n[Files]\nBind=/dev/fuse\n"
    );
    machinist(["config", "undo", name, "--list"])
        .ok()
        .stdout_has("set Exec.Hostname=engine --allow docker");
    guest.start();
}
