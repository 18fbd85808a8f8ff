//! why: a machine that runs, is well and can be reached; and each thing that keeps it from being so.

use std::fs;

use serde_json::json;

use crate::support::{Guest, alone, machinist, run, sh, shared, wait_until};
use crate::why::{answer, has, is_told, is_told_too};

/// In the network of the guest, with the host's program.
fn in_network(guest: &Guest, command: &[&str]) {
    let leader = guest.leader().to_string();
    run("nsenter", [&["-t", &leader, "-n", "--"], command].concat()).ok();
}

#[track_caller]
fn is_well(guest: &Guest) {
    let name = guest.name.as_str();
    for condition in ["booted", "address"] {
        machinist(["wait", "--for", condition, name]).ok();
    }
    let found = answer(name);
    assert_eq!(found["troubles"], json!([]), "{found}");
    assert_eq!(found["state"], "running", "{found}");
    let address = found["addresses"][0].as_str().expect("an address");
    let output = machinist(["why", name]).ok();
    output.stdout_has(&format!(
        "{name} (running)\n\nNothing is wrong. It can be reached at {address}.\n"
    ));
}

#[test]
fn a_machine_of_busybox_that_is_well_has_nothing() {
    let _host = shared();
    let guest = Guest::new("whyw");
    let name = guest.name.as_str();
    machinist(["create", name, "template:busybox", "--start"]).ok();
    is_well(&guest);
    machinist(["stop", name]).ok();
    // A network of its own without a link.
    sh("printf '[Network]\\nPrivate=yes\\n' >>\"$1\"", [guest.settings()]).ok();
    guest.start();
    let told = is_told(
        name,
        "no-link",
        "error",
        &format!("machinist config set {name} Network.VirtualEthernet=yes"),
    );
    has(&told, &format!("{}:", guest.settings().display()));
    machinist(["stop", name]).ok();
    machinist(["config", "unset", name, "Network.Private"]).ok();
    // That of the host.
    machinist(["config", "set", name, "Network.Private=no"]).ok();
    machinist(["start", name]).ok();
    let found = answer(name);
    assert_eq!(
        (&found["troubles"], &found["addresses"]),
        (&json!([]), &json!([])),
        "{found}"
    );
}

#[test]
fn what_fails_in_a_machine_of_systemd_is_told() {
    let _host = shared();
    let (guest, silent) = (Guest::debian("whys"), Guest::busybox("whyt"));
    let name = guest.name.as_str();
    silent.start();
    let young = is_told(&silent.name, "no-address-yet", "note", "machinist wait --for address");
    has(&young, "it has ");
    guest.start();
    is_well(&guest);
    guest.inside(["systemd-run", "-q", "--unit=broken", "false"]).any();
    wait_until("it has failed", || {
        let state = guest
            .inside(["systemctl", "show", "--value", "-p", "ActiveState", "broken"])
            .any();
        state.stdout == "failed\n"
    });
    let told = is_told(name, "guest-degraded", "warning", "systemctl restart broken.service");
    assert!(told["cause"].as_str().unwrap().contains("broken.service"), "{told}");
    guest.inside(["systemctl", "reset-failed", "broken"]).ok();
    assert_eq!(answer(name)["troubles"], json!([]));
    let leader = guest.leader().to_string();
    run("kill", ["-STOP", &leader]).ok();
    let told = std::panic::catch_unwind(|| {
        let told = is_told(name, "init-silent", "error", &format!("kill -CONT {leader}"));
        has(&told, "T (stopped)");
    });
    run("kill", ["-CONT", &leader]).ok();
    told.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    assert_eq!(answer(name)["troubles"], json!([]));
    let off = "systemctl stop $(cd /usr/lib/systemd/system && ls systemd-networkd*.socket) systemd-networkd.service";
    guest.inside(["sh", "-c", off]).ok();
    in_network(&guest, &["ip", "addr", "flush", "dev", "host0", "scope", "global"]);
    is_told(
        name,
        "guest-network-off",
        "error",
        "systemctl enable --now systemd-networkd",
    );
    // It hangs as it boots.
    machinist(["stop", name]).ok();
    let units = guest.image().join("etc/systemd/system");
    let text =
        "[Unit]\nDefaultDependencies=no\n[Service]\nType=oneshot\nExecStart=sleep infinity\nTimeoutStartSec=infinity\n";
    fs::write(units.join("hang.service"), text).unwrap();
    let wants = units.join("multi-user.target.wants");
    fs::create_dir_all(&wants).unwrap();
    std::os::unix::fs::symlink("../hang.service", wants.join("hang.service")).unwrap();
    guest.start();
    let hint = format!("machinist exec {name} -- systemctl status hang.service");
    wait_until("it hangs", || {
        let cause = answer(name)["troubles"][0].clone();
        cause["code"] == "booting" && cause["severity"] == "note" && cause["hints"].to_string().contains(&hint)
    });
    wait_until("it has waited for long enough", || {
        answer(&silent.name)["troubles"][0]["code"] == "no-address"
    });
    is_told(
        &silent.name,
        "no-address",
        "error",
        &format!("machinist exec {} -- ip addr", silent.name),
    );
    // Nobody has answered.
    in_network(&silent, &["ip", "link", "set", "host0", "up"]);
    in_network(
        &silent,
        &["ip", "addr", "add", "169.254.7.7/16", "dev", "host0", "scope", "link"],
    );
    let told = is_told(&silent.name, "link-local-only", "warning", "DHCP");
    has(&told, "169.254.7.7");
}

#[test]
fn what_the_host_does_not_do_for_its_network_is_told() {
    let _host = alone();
    let guest = Guest::busybox("whyu");
    let name = guest.name.as_str();
    let link = format!("ve-{name}");
    let file = "/run/systemd/network/10-why.network";
    fs::create_dir_all("/run/systemd/network").unwrap();
    fs::write(file, format!("[Match]\nName={link}\n[Link]\nUnmanaged=yes\n")).unwrap();
    run("networkctl", ["reload"]).ok();
    guest.start();
    let told = std::panic::catch_unwind(|| {
        wait_until("networkd has seen it", || {
            answer(name)["troubles"][0]["code"] == "link-unmanaged"
        });
        let told = is_told(name, "link-unmanaged", "error", &format!("networkctl status {link}"));
        has(&told, "ADMIN_STATE=unmanaged");
    });
    fs::remove_file(file).unwrap();
    run("networkctl", ["reload"]).ok();
    told.unwrap_or_else(|panic| std::panic::resume_unwind(panic));

    let masked = "/run/systemd/network/80-container-ve.network";
    std::os::unix::fs::symlink("/dev/null", masked).unwrap();
    let told = std::panic::catch_unwind(|| is_told(name, "network-file-off", "error", &format!("rm {masked}")));
    fs::remove_file(masked).unwrap();
    told.unwrap_or_else(|panic| std::panic::resume_unwind(panic));

    let sockets = "$(cd /usr/lib/systemd/system && ls systemd-networkd*.socket)";
    sh(&format!("systemctl stop systemd-networkd.service {sockets}"), [""; 0]).ok();
    let told = std::panic::catch_unwind(|| {
        let told = is_told(name, "networkd-off", "error", "systemctl enable --now systemd-networkd");
        has(&told, "systemd-networkd.service is inactive");
    });
    sh(&format!("systemctl start {sockets} systemd-networkd.service"), [""; 0]).ok();
    told.unwrap_or_else(|panic| std::panic::resume_unwind(panic));

    // It can be reached, and reaches nobody.
    in_network(&guest, &["ip", "addr", "add", "10.99.7.2/24", "dev", "host0"]);
    let forward = "/proc/sys/net/ipv4/ip_forward";
    let former = fs::read_to_string(forward).unwrap();
    fs::write(forward, "0\n").unwrap();
    let told = std::panic::catch_unwind(|| is_told_too(name, "forwarding-off"));
    fs::write(forward, former).unwrap();
    told.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}
