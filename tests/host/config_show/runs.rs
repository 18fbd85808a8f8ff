//! What runs, and by whom, against what the files say.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::{command_line, holds, host_network, origin, said, settings};
use crate::support::{
    Guest, alone, machine_property, machinist, run, shared, systemd_version, unit_property, wait_until,
};
use serde_json::Value;

#[test]
fn what_is_newer_than_what_runs_is_pending() {
    // Nobody else may have systemd read its files meanwhile.
    let _host = alone();
    let guest = Guest::busybox("shpend");
    let name = guest.name.as_str();
    guest.start();
    assert!(settings(name).iter().all(|row| row["state"] != "pending"));
    let memory = |rows: &[Value]| said(rows, "Service.MemoryMax");
    let unit = guest.unit();
    run("systemctl", ["set-property", "--runtime", &unit, "MemoryMax=100M"]).ok();
    let rows = settings(name);
    assert_eq!(memory(&rows), ["104857600 in_force"]);
    assert_eq!(origin(&rows, "Service.MemoryMax")["kind"], "property");
    assert_eq!(guest.property("MemoryMax"), (100 << 20).to_string());

    // A new drop-in, which systemd has not read.
    fs::create_dir_all(guest.drop_ins()).unwrap();
    let drop_in = guest.drop_ins().join("99-test.conf");
    fs::write(
        &drop_in,
        "[Service]\nMemoryMax=200M\nDeviceAllow=\nMemoryMx=1\nCPUWeight=77\n[Service\nCPUWeight=88\n",
    )
    .unwrap();
    // 252 does not see directories that are new.
    if systemd_version() > 252 {
        assert_eq!(guest.property("NeedDaemonReload"), "yes");
    }
    let rows = settings(name);
    assert_eq!(memory(&rows), ["104857600 in_force", "200M pending needs-reload"]);
    assert_eq!(guest.property("MemoryMax"), (100 << 20).to_string());
    assert!(
        said(&rows, "Service.DeviceAllow")
            .iter()
            .all(|row| row.ends_with("in_force"))
    );
    machinist(["config", "show", name])
        .ok()
        .stderr_has("run `systemctl daemon-reload`");
    run("systemctl", ["daemon-reload"]).ok();
    let rows = settings(name);
    assert_eq!(memory(&rows), ["200M in_force", "104857600 ignored overridden"]);
    assert_eq!(guest.property("MemoryMax"), (200 << 20).to_string());
    // The list was taken back; what stands after a broken header is not read, what stands before it is.
    let devices = said(&rows, "Service.DeviceAllow");
    assert!(
        !devices.is_empty() && devices.iter().all(|row| row.ends_with("ignored overridden")),
        "{devices:?}"
    );
    assert_eq!(guest.property("DeviceAllow"), "");
    assert_eq!(
        said(&rows, "Service.CPUWeight"),
        ["77 in_force", "88 ignored file-refused"]
    );
    assert_eq!(guest.property("CPUWeight"), "77");
    assert_eq!(said(&rows, "Service.MemoryMx"), ["1 ignored unknown-key"]);

    // The same file with another value.
    fs::write(&drop_in, "[Service]\nMemoryMax=300M\n").unwrap();
    assert_eq!(
        memory(&settings(name)),
        [
            "200M in_force",
            "104857600 ignored overridden",
            "300M pending needs-reload"
        ]
    );
    fs::remove_file(&drop_in).unwrap();
    assert_eq!(
        memory(&settings(name)),
        ["200M in_force", "104857600 pending needs-reload"]
    );
    run("systemctl", ["daemon-reload"]).ok();
    assert_eq!(memory(&settings(name)), ["104857600 in_force"]);
    assert_eq!(guest.property("MemoryMax"), (100 << 20).to_string());

    // A namesake that nobody reads.
    let hidden = Path::new("/run/systemd/system").join(format!("{unit}.d/50-test.conf"));
    fs::create_dir_all(hidden.parent().unwrap()).unwrap();
    fs::write(&hidden, "[Service]\nCPUWeight=11\n").unwrap();
    guest.write_drop_in("[Service]\nCPUWeight=12\n");
    assert_eq!(
        said(&settings(name), "Service.CPUWeight"),
        ["12 in_force", "11 ignored shadowed"]
    );
    assert_eq!(guest.property("CPUWeight"), "12");
    fs::remove_dir_all(hidden.parent().unwrap()).unwrap();
    machinist(["stop", name]).ok();
    run("systemctl", ["revert", &unit]).any();
}

#[test]
fn what_a_machine_was_not_started_with_is_pending() {
    let _host = shared();
    let guest = Guest::busybox("shlate");
    let name = guest.name.as_str();
    guest.start();
    guest.write_settings("[Exec]\nKillSignal=SIGUSR2\nEnvironment=A=1\n");
    let rows = settings(name);
    assert_eq!(said(&rows, "Exec.Environment"), ["A=1 pending changed-since-start"]);
    let text = machinist(["config", "show", name]).ok();
    assert!(text.stderr.contains("was changed after"), "{text:?}");
    machinist(["restart", name]).ok();
    assert_eq!(said(&settings(name), "Exec.Environment"), ["A=1 in_force"]);
    guest.write_drop_in(
        "[Service]\nExecStart=\nExecStart=systemd-nspawn --keep-unit --boot --settings=override --machine=%i --hostname=other\n",
    );
    let rows = settings(name);
    assert_eq!(holds(&rows, "Network.VirtualEthernet"), "yes");
    assert_eq!(origin(&rows, "Network.VirtualEthernet")["kind"], "process");
    assert_eq!(
        said(&rows, "Exec.Hostname"),
        [format!("{name} in_force"), "other pending after-restart".to_owned()]
    );
    assert!(!command_line(&guest).contains(&"--hostname=other".to_owned()));
    machinist(["restart", name]).ok();
    let rows = settings(name);
    assert_eq!(said(&rows, "Exec.Hostname"), ["other in_force"]);
    assert_eq!(origin(&rows, "Exec.Hostname")["kind"], "drop-in");
    assert!(command_line(&guest).contains(&"--hostname=other".to_owned()));
    assert!(host_network(&guest));
    machinist(["stop", name]).ok();
}

#[test]
fn machines_of_others_are_shown_by_what_runs_them() {
    let _host = shared();
    let guest = Guest::busybox("shother");
    let name = guest.name.as_str();
    let image = guest.image();
    let unit = format!("test-{name}.service");
    let words = [
        "-q",
        "--unit",
        &unit,
        "systemd-nspawn",
        "-q",
        "-b",
        "-D",
        image.to_str().unwrap(),
        "-M",
        name,
    ];
    run("systemd-run", words).ok();
    wait_until("it is registered", || {
        machine_property(name, "State").as_deref() == Some("running")
    });
    let rows = settings(name);
    assert_eq!(holds(&rows, "Exec.Boot"), "yes");
    let process = origin(&rows, "Exec.Boot")["file"].as_str().unwrap().to_owned();
    assert_eq!(process, format!("/proc/{}/cmdline", unit_property(&unit, "MainPID")));
    assert_eq!(holds(&rows, "Exec.KillSignal"), "SIGUSR2");
    assert_eq!(holds(&rows, "Network.Private"), "no");
    assert!(host_network(&guest));
    let scope = machine_property(name, "Unit").unwrap();
    assert_eq!(holds(&rows, "Scope.Slice"), unit_property(&scope, "Slice"));
    machinist(["terminate", name]).ok();
    run("systemctl", ["stop", &unit]).any();
    run("systemctl", ["reset-failed", &unit]).any();

    // What no systemd-nspawn runs.
    let other = Guest::new("shvm");
    let name = other.name.as_str();
    let unit = format!("test-{name}.service");
    run(
        "systemd-run",
        ["-q", "--unit", &unit, "-p", "TasksMax=50", "sleep", "1000"],
    )
    .ok();
    let pid = unit_property(&unit, "MainPID");
    let register = [
        "call",
        "org.freedesktop.machine1",
        "/org/freedesktop/machine1",
        "org.freedesktop.machine1.Manager",
    ];
    let arguments = ["RegisterMachine", "sayssus", name, "0", "test", "vm", &pid, ""];
    run("busctl", register.iter().chain(&arguments)).ok();
    machinist(["config", "show", name])
        .ok()
        .stderr_has("is not run by systemd-nspawn")
        .stdout_has("Service.TasksMax")
        .lacks("Exec.Boot");
    let rows = settings(name);
    assert_eq!(holds(&rows, "Service.TasksMax"), unit_property(&unit, "TasksMax"));
    assert_eq!(origin(&rows, "Service.TasksMax")["kind"], "transient");
    run("systemctl", ["stop", &unit]).any();
}

#[test]
fn an_ordinary_user_is_told_what_is_missing() {
    let _host = shared();
    let guest = Guest::busybox("shuser");
    let name = guest.name.as_str();
    let as_user = || {
        let user = ["--reuid=1000", "--regid=1000", "--clear-groups", "machinist"];
        run("setpriv", user.iter().chain(&["config", "show", name]))
    };
    guest.start();
    as_user()
        .ok()
        .stdout_has("Exec.Boot ")
        .stdout_has("SIGUSR2")
        .stdout_has("Service.KillMode")
        .stderr_is("");
    fs::set_permissions(guest.settings(), fs::Permissions::from_mode(0o600)).unwrap();
    as_user()
        .ok()
        .stdout_has("Service.KillMode")
        .stderr_has("; its settings are missing here")
        .lacks("SIGUSR2");
    machinist(["stop", name]).ok();
    fs::remove_file(guest.settings()).unwrap();
    as_user()
        .ok()
        .stdout_has("Exec.Boot ")
        .stderr_has(&format!("{name}.nspawn"));
    machinist(["config", "show", name])
        .ok()
        .stdout_has("Exec.Boot ")
        .stderr_is("");
}
