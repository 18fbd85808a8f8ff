//! doctor: each thing that can be wrong with a host is made so, and found; and nothing on a host that is well.

use std::fs;

use serde_json::Value;

use crate::clone::Clone;
use crate::linked::layers;
use crate::support::{Guest, MACHINES, alone, machinist, run, sh, shared, systemd_version, wait_until};

/// Everything that is found.
fn found() -> Vec<Value> {
    let checkup = machinist(["doctor", "--json"]).any().json();
    checkup["troubles"].as_array().expect("a list").clone()
}

/// What is found of that kind, and about that machine if there is a name.
fn find(code: &str, machine: Option<&str>) -> Option<Value> {
    let of_kind = |trouble: &Value| trouble["code"] == code && machine.is_none_or(|name| trouble["machine"] == name);
    found().into_iter().find(of_kind)
}

#[track_caller]
fn is_told(code: &str, machine: Option<&str>, severity: &str, hint: &str) {
    let trouble = find(code, machine).unwrap_or_else(|| panic!("'{code}' is not found: {:?}", found()));
    assert_eq!(trouble["severity"], severity, "{trouble}");
    let hints = trouble["hints"].to_string();
    assert!(hints.contains(hint), "{hint}: {trouble}");
}

#[track_caller]
fn is_over(code: &str, machine: Option<&str>) {
    assert_eq!(find(code, machine), None);
}

/// Does something, sees it told, and undoes it.
#[track_caller]
fn tells(code: &str, severity: &str, hint: &str, make: &str, undo: &str) {
    is_over(code, None);
    sh(make, [""; 0]).ok();
    let told = std::panic::catch_unwind(|| is_told(code, None, severity, hint));
    sh(undo, [""; 0]).ok();
    if let Err(panic) = told {
        std::panic::resume_unwind(panic);
    }
    is_over(code, None);
}

#[test]
fn a_host_that_is_well_has_nothing() {
    let _host = alone();
    let guest = Guest::debian("docw");
    machinist(["start", "--wait", &guest.name]).ok();
    let wrong: Vec<Value> = found()
        .into_iter()
        .filter(|trouble| trouble["severity"] != "note")
        .collect();
    assert_eq!(wrong, Vec::<Value>::new());
    let output = machinist(["doctor"]).ok();
    assert!(
        output
            .stdout
            .starts_with(&format!("systemd {}, kernel ", systemd_version())),
        "{output:?}"
    );
    output.stdout_has("images on ").stdout_has("Nothing is wrong.");
    // Without root nothing is told that is not so either.
    let user = ["--reuid=1000", "--regid=1000", "--clear-groups", "machinist", "doctor"];
    run("setpriv", user).ok().stdout_has("Nothing is wrong.");
}

#[test]
fn services_that_are_off_are_told() {
    let _host = alone();
    let guest = Guest::busybox("docs");
    let name = guest.name.as_str();
    let mask = |unit: &str| {
        (
            format!("systemctl mask --runtime {unit}"),
            format!("systemctl unmask --runtime {unit}"),
        )
    };
    let (make, undo) = mask("systemd-machined.service");
    tells(
        "machined-masked",
        "error",
        "systemctl unmask systemd-machined",
        &make,
        &undo,
    );
    let (make, undo) = mask("systemd-nspawn@.service");
    tells(
        "template-masked",
        "error",
        "systemctl unmask systemd-nspawn@",
        &make,
        &undo,
    );
    let sockets = "$(cd /usr/lib/systemd/system && ls systemd-networkd*.socket)";
    let stop = format!("systemctl stop systemd-networkd.service {sockets}");
    let start = format!("systemctl start {sockets} systemd-networkd.service");
    tells(
        "networkd-off",
        "warning",
        "systemctl enable --now systemd-networkd",
        &stop,
        &start,
    );
    let link = "/run/systemd/network/80-container-ve.network";
    tells(
        "network-file-off",
        "warning",
        &format!("rm {link}"),
        &format!("mkdir -p /run/systemd/network && ln -s /dev/null {link}"),
        &format!("rm {link}"),
    );
    machinist(["enable", name]).ok();
    tells(
        "machines-target-off",
        "error",
        "systemctl enable machines.target",
        "systemctl disable machines.target",
        "systemctl enable machines.target",
    );
    let unit = "/run/systemd/system/firewalld.service";
    tells(
        "firewalld",
        "warning",
        "firewall-cmd",
        &format!(
            "printf '[Service]\\nType=oneshot\\nRemainAfterExit=yes\\nExecStart=true\\n' >{unit} && systemctl start firewalld"
        ),
        &format!("systemctl stop firewalld && rm {unit} && systemctl daemon-reload"),
    );
}

#[test]
fn a_network_that_leads_nowhere_is_told() {
    let _host = alone();
    let guest = Guest::busybox("docn");
    guest.start();
    let forward = "/proc/sys/net/ipv4/ip_forward";
    wait_until("systemd-networkd has turned it on", || {
        sh(&format!("echo 1 >{forward}"), [""; 0]).ok();
        find("forwarding-off", None).is_none()
    });
    tells(
        "forwarding-off",
        "warning",
        "sysctl net.ipv4.ip_forward=1",
        &format!("echo 0 >{forward}"),
        &format!("echo 1 >{forward}"),
    );
    tells(
        "forward-drop",
        "warning",
        "DOCKER-USER",
        "nft add table ip filter && nft 'add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }'",
        "nft delete table ip filter",
    );
    let table =
        "nft add table inet own && nft 'add chain inet own way { type filter hook forward priority 0; policy drop; }'";
    tells(
        "forward-drop",
        "warning",
        "nft insert rule inet own way",
        table,
        "nft delete table inet own",
    );
}

/// In a mount namespace where something is other than on the host, which others see as it is.
#[track_caller]
fn is_told_where(make: &str, code: &str, status: i32) {
    let script = format!("mount --make-rprivate / && {make} && exec machinist doctor --json");
    let output = run("unshare", ["--mount", "sh", "-ec", &script]).status(status);
    let checkup = output.json();
    let found = checkup["troubles"].as_array().unwrap();
    let of_kind = found.iter().find(|trouble| trouble["code"] == code);
    let trouble = of_kind.unwrap_or_else(|| panic!("'{code}' is not found: {checkup}"));
    assert!(!trouble["hints"].as_array().unwrap().is_empty(), "{trouble}");
    assert_eq!(trouble["severity"] == "error", status == 1, "{checkup}");
}

#[test]
fn what_the_kernel_does_not_allow_is_told() {
    let _host = shared();
    let over = |text: &str, file: &str| {
        format!("echo {text} >/run/over.$$ && mount --bind /run/over.$$ {file} && rm /run/over.$$")
    };
    is_told_where(
        &over("0", "/proc/sys/user/max_user_namespaces"),
        "no-user-namespaces",
        1,
    );
    is_told_where("mount -t tmpfs none /sys/fs/cgroup", "cgroup-v1", 1);
    let old = run("setarch", ["--uname-2.6", "machinist", "doctor"]).any();
    old.stdout_has("the kernel cannot shift owners")
        .stdout_has("seen: 2.6.");
}

#[test]
fn a_place_where_machines_do_not_work_is_told() {
    let _host = shared();
    let again =
        |option: &str| format!("mount --bind {MACHINES} {MACHINES} && mount -o remount,bind,{option} {MACHINES}");
    is_told_where(&again("noexec"), "images-noexec", 1);
    is_told_where(&again("ro"), "images-read-only", 1);
    let small = |options: &str| format!("mount -t tmpfs -o mode=700,{options} none {MACHINES}");
    is_told_where(&small("size=20M"), "disk-full", 1);
    let full = format!(
        "{} && touch {MACHINES}/$(seq -s \" {MACHINES}/\" 96)",
        small("nr_inodes=100,size=500M")
    );
    is_told_where(&full, "inodes-almost-gone", 0);
    is_told_where(&small("size=500M,mode=755"), "images-open", 0);
    let names = format!(
        "{} && mkdir {MACHINES}/a_b {MACHINES}/twice && touch {MACHINES}/twice.raw",
        small("size=500M")
    );
    is_told_where(&names, "name-not-valid", 0);
    is_told_where(&names, "two-images", 0);
    is_told_where("mount -t tmpfs none /var/log", "journal-volatile", 0);
}

#[test]
fn machines_that_do_not_work_are_told() {
    let _host = shared();
    let guest = Guest::busybox("docm");
    let name = guest.name.as_str();
    for code in [
        "machine-failed",
        "guest-too-old",
        "settings-wrong",
        "settings-untrusted",
    ] {
        is_over(code, Some(name));
    }
    let release = guest.image().join("etc/os-release");
    let former = fs::read(&release).ok();
    fs::write(&release, "ID=debian\nVERSION_ID=\"8\"\n").unwrap();
    is_told("guest-too-old", Some(name), "warning", "machinist run");
    match former {
        Some(former) => fs::write(&release, former).unwrap(),
        None => fs::remove_file(&release).unwrap(),
    }
    is_over("guest-too-old", Some(name));

    let check = format!("machinist config check {name}");
    guest.write_settings("[Exec]\nNoSuchKey=1\nBoot=perhaps\n");
    is_told("settings-wrong", Some(name), "warning", &check);
    let beside = guest.image().with_extension("nspawn");
    fs::write(&beside, "[Exec]\nCapability=all\n").unwrap();
    is_told("settings-hidden", Some(name), "warning", "remove one of the two");
    fs::remove_file(guest.settings()).unwrap();
    is_told("settings-untrusted", Some(name), "warning", &check);
    fs::remove_file(beside).unwrap();
    is_over("settings-untrusted", Some(name));

    guest.write_settings("[Network]\nBridge=nosuchbr7\n");
    machinist(["start", name]).status(1);
    is_told(
        "machine-failed",
        Some(name),
        "warning",
        &format!("machinist why {name}"),
    );
    run("systemctl", ["reset-failed", &guest.unit()]).ok();
    is_over("machine-failed", Some(name));
}

#[test]
fn layers_and_leftovers_are_told() {
    let _host = alone();
    let (source, clone) = (Guest::busybox("docl"), Clone::of("docc"));
    let (name, other) = (source.name.as_str(), clone.0.name.as_str());
    fs::write(source.image().join("etc/both"), "first\n").unwrap();
    machinist(["clone", "--linked", name, other]).ok();
    let sealed = layers(name).into_iter().find(|layer| layer.join("sealed").is_symlink());
    let base = sealed.expect("a layer");
    is_over("layer-changed", None);
    sh("echo more >>\"$1\"", [base.join("tree/etc/both")]).ok();
    is_told("layer-changed", None, "warning", "sealed");
    let hidden = base.with_extension("hidden");
    fs::rename(&base, &hidden).unwrap();
    is_told("layer-lost", Some(name), "error", "backup");
    is_told("layer-lost", Some(other), "error", "backup");
    machinist(["doctor"]).status(1);
    fs::rename(&hidden, &base).unwrap();
    is_over("layer-lost", None);

    let papers = "/var/lib/machinist/staging/doctor";
    tells(
        "left-over",
        "note",
        "machinist clean",
        &format!("mkdir -p {papers}"),
        &format!("rmdir {papers}"),
    );
}
