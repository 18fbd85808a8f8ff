//! `wait` while services are replaced around it.

use crate::support::{Guest, alone, machinist, run, unit_property};
use crate::wait::{ends, still_waits, waiting};

#[test]
fn services_that_die_do_not_end_a_wait() {
    // Others need these services all the time.
    let _host = alone();
    let (guest, other) = (Guest::busybox("dies"), Guest::busybox("dies"));
    guest.start();
    let (name, comes) = (guest.name.as_str(), other.name.as_str());
    let mut clients = [
        waiting(&[comes]),
        waiting(&["--for", "stopped", name]),
        waiting(&["--for", "frozen", name]),
        waiting(&["--for", "port=99", "--timeout", "60", name]),
    ];
    let main = || unit_property("systemd-machined.service", "MainPID");
    for command in [
        &["kill", "--signal=KILL", "systemd-machined.service"] as &[&str],
        &["restart", "systemd-machined.service"],
        &["daemon-reload"],
        &["daemon-reexec"],
        &["reload", "dbus.service"],
    ] {
        let before = main();
        run("systemctl", command).ok();
        clients.iter_mut().for_each(still_waits);
        machinist(["list"]).ok();
        assert!(
            !command.contains(&"systemd-machined.service") || main() != before,
            "it was not replaced"
        );
    }
    let [running, stopped, frozen, port] = clients;
    other.start();
    ends(running, 0);
    machinist(["freeze", name]).ok();
    ends(frozen, 0);
    machinist(["stop", name]).ok();
    ends(stopped, 0);
    ends(port, 1).stderr_has("stopped while it was waited for");
}
