//! list and show: they agree with systemd and the kernel, and no guest can hold them up or speak to the terminal.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use serde_json::Value;

use crate::support::{Guest, There, agree, alone, machine_property, machinist, run, sh, shared, wait_until};

/// The row of one machine.
#[track_caller]
fn row(name: &str) -> Value {
    let filter = format!("name={name}");
    let rows = machinist(["list", "-a", "--json", "--filter", &filter])
        .ok()
        .quicker_than(Duration::from_secs(10))
        .json();
    assert_eq!(rows.as_array().map(Vec::len), Some(1), "{rows}");
    rows[0].clone()
}

#[test]
fn columns_filters_sorting_and_formats() {
    let _host = shared();
    let (a, b) = (Guest::busybox("cols"), Guest::busybox("cols"));
    b.start();
    let filter = format!("name={}*", a.name.split('-').next().unwrap());
    let table = machinist(["list", "-a", "--filter", &filter]).ok().stdout;
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        lines[0],
        ["NAME", "STATE", "CLASS", "OS", "VERSION", "ADDRESSES", "ENABLED"]
    );
    assert_eq!(lines[1], [&a.name, "stopped", "-", "busybox", "1.0", "-", "no"]);
    assert_eq!(lines[2][..5], [&b.name, "running", "container", "busybox", "1.0"]);
    assert_eq!(table.lines().last(), Some("2 machines listed."));
    assert!(!table.contains('\x1b'), "colours without a terminal: {table:?}");

    let only = [
        "list",
        "-a",
        "--filter",
        &filter,
        "--columns",
        "name,state",
        "--sort",
        "-name",
        "--no-legend",
    ];
    let rows = machinist(only).ok().stdout;
    let rows: Vec<Vec<&str>> = rows.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows, [[b.name.as_str(), "running"], [a.name.as_str(), "stopped"]]);
    machinist([
        "list",
        "-a",
        "--filter",
        &filter,
        "--filter",
        "state!=running",
        "--columns",
        "name",
        "--no-legend",
    ])
    .ok()
    .stdout_is(&format!("{}\n", a.name));
    machinist([
        "list",
        "-a",
        "--filter",
        &filter,
        "--columns",
        "name,state",
        "--format",
        "csv",
    ])
    .ok()
    .stdout_is(&format!("name,state\r\n{},stopped\r\n{},running\r\n", a.name, b.name));
    machinist(["list", "--columns", "nonsense"])
        .status(2)
        .stderr_has("no column 'nonsense': there are name, state, class");
    machinist(["list", "--filter", "nonsense"])
        .status(2)
        .stderr_has("is not of the form COLUMN=PATTERN");
}

#[test]
fn the_json_schema_is_stable() {
    let _host = shared();
    let guest = Guest::busybox("json");
    let keys = |row: &Value| row.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    let wanted: BTreeSet<String> = [
        "name",
        "state",
        "class",
        "os",
        "version",
        "addresses",
        "enabled",
        "service",
        "unit",
        "leader",
        "since",
        "disk",
        "disk_limit",
        "labels",
    ]
    .map(str::to_owned)
    .into();
    let stopped = row(&guest.name);
    assert!(keys(&stopped).is_superset(&wanted), "{stopped}");
    assert_eq!(
        (&stopped["state"], &stopped["leader"], &stopped["since"]),
        (&"stopped".into(), &Value::Null, &Value::Null)
    );
    guest.start();
    let running = row(&guest.name);
    assert_eq!(keys(&running), keys(&stopped), "keys come and go");
    assert_eq!(running["leader"], guest.leader());
    assert_eq!(running["unit"], guest.unit());
    assert_eq!(running["service"], "systemd-nspawn");
    assert_eq!(running["enabled"], false);
    let micros: i64 = machine_property(&guest.name, "TimestampMonotonic")
        .unwrap()
        .parse()
        .unwrap();
    assert!(micros > 0);
    let since = running["since"].as_str().expect("a time");
    let seconds = run("date", ["-d", since, "+%s"]).ok().stdout;
    let by_systemd = guest.property("ActiveEnterTimestamp");
    let by_systemd = run("date", ["-d", &by_systemd, "+%s"]).ok().stdout;
    let [ours, theirs] = [seconds, by_systemd].map(|text| text.trim().parse::<i64>().unwrap());
    assert!((ours - theirs).abs() <= 2, "since {since}, systemd says {theirs}");
}

#[test]
fn addresses_agree_with_the_kernel_and_machined() {
    let _host = shared();
    let guest = Guest::new("addr");
    let name = &guest.name;
    machinist(["create", name, "template:busybox", "--start"]).ok();
    let leader = guest.leader().to_string();
    let by_kernel = || -> BTreeSet<String> {
        let links = run("nsenter", ["-t", &leader, "-n", "ip", "-j", "addr"]).ok().json();
        let infos = links
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|link| link["addr_info"].as_array().cloned().unwrap_or_default());
        infos
            .filter(|info| info["scope"] != "host")
            .filter_map(|info| info["local"].as_str().map(str::to_owned))
            .collect()
    };
    wait_until("it has an IPv4 and an IPv6 address", || {
        let all = by_kernel();
        all.iter().any(|address| address.contains('.')) && all.iter().any(|address| address.contains(':'))
    });
    let listed: BTreeSet<String> = row(name)["addresses"]
        .as_array()
        .unwrap()
        .iter()
        .map(|a| a.as_str().unwrap().to_owned())
        .collect();
    assert_eq!(listed, by_kernel());
    let by_machined = run("machinectl", ["status", name, "--no-pager", "-n", "0", "-l"])
        .any()
        .stdout;
    let v4 = listed.iter().find(|address| address.contains('.')).unwrap();
    assert!(by_machined.contains(v4.as_str()), "{by_machined}");
}

#[test]
fn a_guest_on_the_hosts_network_has_no_addresses_of_its_own() {
    let _host = shared();
    let guest = Guest::busybox("hostnet");
    guest.write_settings("[Exec]\nKillSignal=SIGUSR2\n[Network]\nVirtualEthernet=no\n");
    guest.start();
    let addresses = &row(&guest.name)["addresses"];
    assert!(
        addresses.is_null() || addresses.as_array().is_some_and(Vec::is_empty),
        "{addresses}"
    );
}

#[test]
fn a_fifo_as_os_release_blocks_nobody() {
    // machinectl would hang on it for ever, in all other tests, too.
    let _host = alone();
    let guest = Guest::busybox("fifo");
    let file = guest.image().join("usr/lib/os-release");
    fs::remove_file(&file).unwrap();
    run("mkfifo", [file.as_os_str()]).ok();
    guest.start();
    for words in [vec!["list"], vec!["list", "-a"], vec!["list", "--json"]] {
        let output = machinist(&words)
            .within(Duration::from_secs(20))
            .ok()
            .quicker_than(Duration::from_secs(3));
        assert!(output.stdout.contains(&guest.name), "{output:?}");
    }
    assert_eq!(row(&guest.name)["os"], Value::Null);
    machinist(["stop", &guest.name]).ok();
    assert_eq!(row(&guest.name)["os"], Value::Null);
}

#[test]
fn hostile_os_releases_show_nothing_of_the_host() {
    let _host = shared();
    let secret = "/etc/machinist-test-secret";
    fs::write(secret, "ID=secret-of-the-host\n").unwrap();
    let links = [
        secret,
        "../../../../../../etc/machinist-test-secret",
        "/proc/1/environ",
        "/dev/zero",
        "os-release",
    ];
    for target in links {
        let guest = Guest::busybox("evil");
        // It has one to start with: systemd-nspawn wants that. A guest can change it at any time.
        guest.start();
        for running in [true, false] {
            if running {
                fs::remove_file(guest.image().join("usr/lib/os-release")).unwrap();
                symlink(target, guest.image().join("usr/lib/os-release")).unwrap();
            } else {
                machinist(["stop", &guest.name]).ok();
            }
            let row = row(&guest.name);
            assert!(!row.to_string().contains("secret-of-the-host"), "{target}: {row}");
            assert!(!row.to_string().contains("PATH="), "{target}: {row}");
        }
    }
    fs::remove_file(secret).unwrap();
}

#[test]
fn a_huge_os_release_is_not_read() {
    let _host = shared();
    let guest = Guest::busybox("huge");
    let file = guest.image().join("usr/lib/os-release");
    sh("truncate -s 1G \"$1\"", [file.as_os_str()]).ok();
    guest.start();
    machinist(["list"])
        .ok()
        .quicker_than(Duration::from_secs(3))
        .stdout_has(&guest.name);
    assert_eq!(row(&guest.name)["os"], Value::Null);
}

#[test]
fn escape_sequences_never_reach_the_terminal() {
    let _host = shared();
    let guest = Guest::busybox("esc");
    let file = guest.image().join("usr/lib/os-release");
    fs::write(file, "ID='evil\x1b[2J\x1b]0;title\x07'\nVERSION_ID=\"1\r\u{202e}2\"\n").unwrap();
    guest.start();
    for words in [
        vec!["list"],
        vec!["list", "--format", "csv"],
        vec!["list", "--json"],
        vec!["show", &guest.name],
    ] {
        let output = machinist(&words).ok();
        // JSON escapes what is a control character; what turns text round is one of its letters.
        let turned = (!words.contains(&"--json")).then_some('\u{202e}');
        for bad in ['\x1b', '\x07'].into_iter().chain(turned) {
            assert!(!output.stdout.contains(bad), "{bad:?} on stdout\n{:?}", output.stdout);
        }
        assert!(output.stdout.contains(&guest.name), "{output:?}");
    }
}

#[test]
fn show_has_systemds_own_names_and_values() {
    let _host = shared();
    let guest = Guest::busybox("show");
    let name = &guest.name;
    let stopped = machinist(["show", name, "-p", "ActiveState,Unit", "--value"]).ok();
    stopped.stdout_is(&format!("inactive\n{}\n", guest.unit()));
    guest.start();
    let leader = machine_property(name, "Leader").unwrap();
    machinist(["show", name, "-p", "Leader", "--value"])
        .ok()
        .stdout_is(&format!("{leader}\n"));
    machinist(["show", name, "-p", "Leader"])
        .ok()
        .stdout_is(&format!("Leader={leader}\n"));
    let json = machinist(["show", name, "-p", "MainPID", "-p", "InvocationID", "--json"])
        .ok()
        .json();
    assert_eq!(json[0]["MainPID"].to_string(), guest.property("MainPID"));
    let all = machinist(["show", name]).ok().stdout;
    for (key, value) in [
        ("State", machine_property(name, "State").unwrap()),
        ("RootDirectory", guest.image().display().to_string()),
        ("ActiveState", guest.property("ActiveState")),
        ("MainPID", guest.property("MainPID")),
        ("InvocationID", guest.property("InvocationID")),
        ("Class", "container".to_owned()),
    ] {
        assert!(
            all.lines().any(|line| line == format!("{key}={value}")),
            "no {key}={value} in\n{all}"
        );
    }
    machinist(["show", name, "-p", "NoSuchProperty"])
        .any()
        .lacks("panicked");
    machinist(["show", "no-such-machine"])
        .status(3)
        .stderr_has("no machine or image 'no-such-machine'");
    agree(name, There::Running);
}
