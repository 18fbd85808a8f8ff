//! Limits: what systemd says of them, at once, after a reload, after a restart, and when they are taken back. That they are
//! enforced is seen in a virtual machine: here are no controllers.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::{Guest, Run, alone, machinist, run, shared, systemd_version, unique};

/// `machinist limit NAME …`.
pub(crate) fn limit(name: &str, words: &[&str]) -> Run {
    machinist(["limit", name].iter().chain(words))
}

/// The names of the drop-ins that hold a guest's limits, sorted.
fn files(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

pub(crate) fn reload() {
    run("systemctl", ["daemon-reload"]).ok();
}

/// The rows of `limit NAME --json` by key.
pub(crate) fn row(name: &str, key: &str) -> Value {
    let rows = limit(name, &["--json"]).ok().json();
    let found = rows.as_array().unwrap().iter().find(|row| row["key"] == key);
    found.cloned().unwrap_or_else(|| panic!("no limit '{key}' in {rows}"))
}

/// A drop-in of the administrator's.
pub(crate) fn drop_in(guest: &Guest, name: &str, text: &str) -> PathBuf {
    fs::create_dir_all(guest.drop_ins()).unwrap();
    let file = guest.drop_ins().join(name);
    fs::write(&file, text).unwrap();
    reload();
    file
}

#[test]
fn limits_hold_at_once_and_last() {
    let _host = shared();
    let guest = Guest::busybox("limit");
    let name = guest.name.as_str();
    guest.start();
    let words = [
        "memory=512M",
        "memory-high=400M",
        "swap=0",
        "cpus=1.5",
        "CPUWeight=200",
        "tasks=100",
        "io-weight=300",
        "io-read=/dev/loop0:10M",
        "io-read=/dev/loop1:5M",
        "IOWriteIOPSMax=/dev/loop0 500",
        "cpuset=0",
    ];
    let said = format!("limited {name}: {}\n", words.join(" "));
    limit(name, &words).ok().stdout_is("").stderr_is(&said);
    let holds = || {
        for (property, value) in [
            ("MemoryMax", "536870912"),
            ("MemoryHigh", "419430400"),
            ("MemorySwapMax", "0"),
            ("CPUQuotaPerSecUSec", "1.500000s"),
            ("CPUWeight", "200"),
            ("TasksMax", "100"),
            ("IOWeight", "300"),
            ("AllowedCPUs", "0"),
            ("IOWriteIOPSMax", "/dev/loop0 500"),
            ("Delegate", "yes"),
        ] {
            assert_eq!(guest.property(property), value, "{property}");
        }
        // 252 wants a reload whenever a property was set.
        assert!(systemd_version() < 253 || guest.property("NeedDaemonReload") == "no");
        let reads = guest.property("IOReadBandwidthMax");
        for device in ["/dev/loop0 10000000", "/dev/loop1 5000000"] {
            assert!(reads.lines().any(|line| line == device), "{reads}");
        }
    };
    holds();
    reload();
    holds();
    machinist(["restart", name]).ok();
    holds();
    // The same again is no change, and no error.
    limit(name, &words)
        .ok()
        .stderr_is(&format!("{name} is so limited already: {}\n", words.join(" ")));
    let [lasting, _] = guest.limits();
    let file = lasting.join("50-MemoryMax.conf");
    let memory = row(name, "memory");
    assert_eq!(memory["limit"], 512 << 20);
    assert_eq!(memory["unit"], "bytes");
    assert_eq!(memory["from"], file.to_str().unwrap());
    assert_eq!(memory["directive"], "MemoryMax");
    assert_eq!(row(name, "cpus")["limit"], 1_500_000);
    assert_eq!(row(name, "cpuset")["limit"], "0");
    assert_eq!(row(name, "swap")["limit"], 0);
    let status = machinist(["status", name, "--json"]).ok().json();
    assert_eq!(status[0]["memory"]["limit"], memory["limit"]);
    assert_eq!(status[0]["tasks"]["limit"], row(name, "tasks")["limit"]);
    assert_eq!(status[0]["cpu"]["limit"], row(name, "cpus")["limit"]);
    let table = limit(name, &[])
        .ok()
        .stdout_has("KEY ")
        .stdout_has("11 limits listed.")
        .stdout;
    let line = |start: &str| {
        let found = table.lines().find(|line| line.starts_with(start)).unwrap();
        found.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(line("memory ")[2], "512.0M");
    assert_eq!(line("cpus ")[2], "1.5");
    assert_eq!(line("memory ").last().unwrap(), file.to_str().unwrap());
    assert!(table.contains("/dev/loop1 5.0M"), "{table}");
    machinist(["stop", name]).ok();
    // On a machine that does not run it holds from its next start.
    let done = limit(name, &["memory=256M", "--json"]).ok().json();
    let expected = json!([{
        "machine": name, "result": "limited", "unit": guest.unit(), "overridden": [], "file": null, "change": null,
        "limits": [{ "key": "memory", "directive": "MemoryMax", "value": "256M", "holds": "next-start" }],
    }]);
    assert_eq!(done, expected);
    guest.start();
    assert_eq!(guest.property("MemoryMax"), (256 << 20).to_string());
}

#[test]
fn no_limit_and_no_limit_any_more() {
    let _host = shared();
    let guest = Guest::busybox("limnone");
    let name = guest.name.as_str();
    let [lasting, _] = guest.limits();
    let template = guest.property("TasksMax");
    for is_running in [false, true] {
        if is_running {
            guest.start();
        }
        limit(
            name,
            &[
                "memory=1G",
                "cpus=2",
                "tasks=50",
                "io-read=/dev/loop0:1M",
                "io-read=/dev/loop1:1M",
                "cpuset=0",
            ],
        )
        .ok();
        // One device of two, then the other one.
        limit(name, &["io-read=/dev/loop0:none"]).ok();
        assert_eq!(guest.property("IOReadBandwidthMax"), "/dev/loop1 1000000");
        limit(
            name,
            &[
                "memory=none",
                "cpus=infinity",
                "io-read=none",
                "cpuset=none",
                "tasks=none",
            ],
        )
        .ok();
        for (property, value) in [
            ("MemoryMax", "infinity"),
            ("CPUQuotaPerSecUSec", "infinity"),
            ("IOReadBandwidthMax", ""),
            ("AllowedCPUs", ""),
            ("TasksMax", "infinity"),
            ("NeedDaemonReload", "no"),
        ] {
            assert_eq!(guest.property(property), value, "{property}");
        }
        // Only what the template would say otherwise needs a file.
        assert_eq!(files(&lasting), ["50-TasksMax.conf"]);
        reload();
        assert_eq!(guest.property("TasksMax"), "infinity");
        limit(name, &["tasks="]).ok();
        assert_eq!(guest.property("TasksMax"), template);
        assert!(!lasting.exists());
        // A limit of the administrator's that counts less: no limit is none, and nothing said is theirs.
        let file = drop_in(&guest, "10-mine.conf", "[Service]\nMemoryMax=300M\n");
        limit(name, &["memory=none"]).ok().lacks("warning");
        assert_eq!(guest.property("MemoryMax"), "infinity");
        reload();
        assert_eq!(guest.property("MemoryMax"), "infinity");
        limit(name, &["memory="]).ok();
        assert_eq!(guest.property("MemoryMax"), (300 << 20).to_string());
        assert_eq!(row(name, "memory")["from"], file.to_str().unwrap());
        assert_eq!(fs::read_to_string(&file).unwrap(), "[Service]\nMemoryMax=300M\n");
        fs::remove_file(&file).unwrap();
        reload();
    }
    // 252 writes whole percents.
    let rounded = limit(name, &["cpus=0.125"])
        .ok()
        .stderr
        .contains("50-CPUQuota.conf' says CPUQuota=1");
    assert_eq!(rounded, systemd_version() < 253);
    reload();
    assert_eq!(
        guest.property("CPUQuotaPerSecUSec") == "125ms",
        systemd_version() >= 253
    );
    limit(name, &["memory-low=100M", "cpus="]).ok().lacks("warning");
    limit(name, &["memory-low=none"]).ok();
    assert_eq!(guest.property("MemoryLow"), "0");
    limit(name, &["cpu-weight=none", "memory="]).ok();
    assert_eq!(guest.property("CPUWeight"), "[not set]");
    assert_eq!(guest.property("Delegate"), "yes");
}

#[test]
fn time_spans_are_shown_as_such() {
    let _host = shared();
    let guest = Guest::busybox("limspan");
    let name = guest.name.as_str();
    limit(name, &["io-latency=/dev/loop0:25ms", "CPUQuotaPeriodSec=50ms"]).ok();
    assert_eq!(guest.property("IODeviceLatencyTargetUSec"), "/dev/loop0 25ms");
    for (key, micros) in [("io-latency", 25_000), ("CPUQuotaPeriodSec", 50_000)] {
        let row = row(name, key);
        assert_eq!(
            (&row["limit"], &row["unit"]),
            (&json!(micros), &json!("time-span")),
            "{row}"
        );
    }
    let shown = limit(name, &[]).ok();
    let line = |key: &str| shown.stdout.lines().find(|line| line.starts_with(key)).unwrap();
    assert!(
        line("io-latency").contains(" 25ms ") && line("CPUQuotaPeriodSec").contains(" 50ms "),
        "{shown:?}"
    );
    // Whoever runs it has no controller here; systemd has none of it in its list any more.
    guest.start();
    limit(name, &["io-latency=none", "IODeviceWeight=/dev/loop0:200"]).ok();
    limit(name, &["IODeviceWeight=none"]).ok();
    reload();
    assert_eq!(guest.property("IODeviceLatencyTargetUSec"), "");
    assert_eq!(guest.property("IODeviceWeight"), "");
    assert!(
        guest
            .limits()
            .iter()
            .all(|place| files(place).iter().all(|file| !file.contains("IO")))
    );
}

#[test]
fn a_percentage_does_not_outlive_a_number() {
    let _host = shared();
    let guest = Guest::busybox("limpart");
    let name = guest.name.as_str();
    limit(name, &["memory=50%", "tasks=10%"]).ok();
    let half: u64 = guest.property("MemoryMax").parse().unwrap();
    let total = fs::read_to_string("/proc/meminfo").unwrap();
    let total: u64 = total.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(half.abs_diff(total * 512) < total * 10, "{half} of {total} KiB");
    for text in ["1G", "25%", "infinity", "25%", "2G"] {
        limit(name, &[&format!("MemoryMax={text}")]).ok().lacks("warning");
        reload();
        let now = guest.property("MemoryMax");
        let right = match text {
            "1G" => now == (1_u64 << 30).to_string(),
            "2G" => now == (2_u64 << 30).to_string(),
            "infinity" => now == "infinity",
            _ => now.parse::<u64>().unwrap().abs_diff(half / 2) < 1 << 20,
        };
        assert!(right, "{text}: {now}");
    }
}

#[test]
fn an_administrators_drop_in_wins_and_is_named() {
    // No other test may have systemd read its files meanwhile.
    let _host = alone();
    let guest = Guest::busybox("limwins");
    let name = guest.name.as_str();
    guest.start();
    let file = drop_in(&guest, "99-mine.conf", "[Service]\nMemoryMax=300M\nCPUWeight=5\n");
    let shown = file.display();
    limit(name, &["memory=700M"]).ok().stderr_has(&format!(
        "warning: {name}: '{shown}' says MemoryMax=300M, which wins over this limit when systemd reads its files again\n"
    ));
    // So it is.
    assert_eq!(guest.property("MemoryMax"), (700 << 20).to_string());
    reload();
    assert_eq!(guest.property("MemoryMax"), (300 << 20).to_string());
    assert_eq!(row(name, "memory")["from"], file.to_str().unwrap());
    let done = limit(name, &["memory=none", "cpu-weight=7", "--json"]).ok().json();
    let expected = json!([
        { "key": "memory", "file": file, "says": "MemoryMax=300M" },
        { "key": "cpu-weight", "file": file, "says": "CPUWeight=5" },
    ]);
    assert_eq!(done[0]["overridden"], expected);
    // What says the same is in nobody's way, and what is the administrator's stays as it is.
    limit(name, &["memory=300M"]).ok().lacks("warning");
    assert!(fs::read_to_string(&file).unwrap().contains("MemoryMax=300M"));
}

#[test]
fn limits_of_this_boot_go_above_those_that_last() {
    let _host = shared();
    let guest = Guest::busybox("limboot");
    let name = guest.name.as_str();
    guest.start();
    let [lasting, runtime] = guest.limits();
    limit(name, &["memory=100M", "--runtime"])
        .ok()
        .stderr_is(&format!("limited {name}: memory=100M, until the next boot\n"));
    assert!(!lasting.exists());
    assert_eq!(files(&runtime), ["50-MemoryMax.conf"]);
    // A limit that lasts takes its place.
    limit(name, &["memory=200M"]).ok();
    assert_eq!((files(&lasting).len(), runtime.exists()), (1, false));
    // And is there again when that of this boot has gone.
    for text in ["300M", "400M", "none"] {
        limit(name, &[&format!("memory={text}"), "--runtime"])
            .ok()
            .lacks("warning");
        reload();
        let now = guest.property("MemoryMax");
        match text {
            "none" => assert_eq!(now, "infinity"),
            _ => assert_eq!(now, (text[..3].parse::<u64>().unwrap() << 20).to_string()),
        }
        assert!(lasting.join("50-MemoryMax.conf").exists());
    }
    limit(name, &["memory=", "--runtime"]).ok();
    assert_eq!(guest.property("MemoryMax"), (200 << 20).to_string());
    assert!(!runtime.exists());
    limit(name, &["memory="]).ok();
    assert_eq!(guest.property("MemoryMax"), "infinity");
    limit(name, &["nofile=100", "--runtime"])
        .status(2)
        .stderr_has("nofile stands in the machine's settings, which last");
}

#[test]
fn limits_of_processes_hold_from_the_next_start() {
    let _host = shared();
    let guest = Guest::busybox("limexec");
    let name = guest.name.as_str();
    guest.start();
    let words = ["nofile=4096", "core=none", "nice=5", "oom-score=200", "memory=512M"];
    limit(name, &words).ok().stderr_is(&format!(
        "limited {name}: {}; nofile=4096 core=none nice=5 oom-score=200 when it is restarted\n",
        words.join(" ")
    ));
    assert_eq!(
        fs::read_to_string(guest.settings()).unwrap(),
        "[Exec]\nKillSignal=SIGUSR2\nLimitNOFILE=4096\nLimitCORE=infinity\n"
    );
    machinist(["restart", name]).ok();
    let read = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", guest.leader())).unwrap();
    let limits = read("limits");
    let files_line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(
        files_line.split_whitespace().skip(3).take(2).collect::<Vec<_>>(),
        ["4096", "4096"]
    );
    assert_eq!(read("oom_score_adj"), "200\n");
    let nice = read("stat")
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .nth(16)
        .unwrap()
        .to_owned();
    assert_eq!(nice, "5");
    for (key, value, file) in [
        ("nofile", json!(4096), guest.settings()),
        ("core", Value::Null, guest.settings()),
        ("nice", json!(5), guest.limits()[0].join("50-Nice.conf")),
        (
            "oom-score",
            json!(200),
            guest.limits()[0].join("50-OOMScoreAdjust.conf"),
        ),
    ] {
        let row = row(name, key);
        assert_eq!(
            (&row["limit"], row["from"].as_str().unwrap()),
            (&value, file.to_str().unwrap()),
            "{key}"
        );
    }
    limit(name, &["nofile=", "core=", "nice=none", "oom-score=", "memory="]).ok();
    assert!(!guest.limits()[0].exists());
    assert_eq!(
        fs::read_to_string(guest.settings()).unwrap(),
        "[Exec]\nKillSignal=SIGUSR2\n"
    );
    machinist(["config", "undo", name]).ok();
    assert!(
        fs::read_to_string(guest.settings())
            .unwrap()
            .contains("LimitNOFILE=4096")
    );
    // Why the score is no setting: systemd-nspawn cannot give it to a machine with private users.
    guest.write_settings("[Exec]\nKillSignal=SIGUSR2\nOOMScoreAdjust=300\n");
    machinist(["restart", name])
        .status(1)
        .stderr_has("Failed to adjust OOM score: Permission denied");
    // Without them it counts more than ours.
    guest.write_settings("[Exec]\nKillSignal=SIGUSR2\nPrivateUsers=no\nOOMScoreAdjust=300\n");
    limit(name, &["oom-score=100"])
        .ok()
        .stderr_has(&format!("'{}' says OOMScoreAdjust=300", guest.settings().display()));
    guest.start();
    assert_eq!(read("oom_score_adj"), "300\n");
    assert_eq!(row(name, "oom-score")["limit"], 300);
}

#[test]
fn a_removed_machine_leaves_no_limits_to_the_next() {
    let _host = shared();
    let guest = Guest::busybox("limgone");
    let name = guest.name.as_str();
    limit(name, &["memory=300M", "nice=3"]).ok();
    limit(name, &["cpus=1", "--runtime"]).ok();
    let [lasting, runtime] = guest.limits();
    // Another one that an administrator set by systemctl is theirs.
    let removed = machinist(["remove", "-y", name]).ok();
    assert!(!lasting.exists() && !runtime.exists(), "{removed:?}");
    assert!(!removed.stderr.contains("system.control"), "{removed:?}");
    assert!(!removed.stderr.contains(".service.d"), "{removed:?}");
    machinist(["create", name, "template:busybox", "--network=host"]).ok();
    assert_eq!(guest.property("MemoryMax"), "infinity");
    assert_eq!(guest.property("Nice"), "0");
    run("systemctl", ["set-property", &guest.unit(), "MemoryHigh=200M"]).ok();
    limit(name, &["memory=300M"]).ok();
    let removed = machinist(["remove", "-y", name]).ok();
    assert!(!lasting.exists(), "{removed:?}");
    let kept = removed
        .stderr
        .lines()
        .find_map(|line| line.strip_prefix("kept what was not machinist's: "));
    assert_eq!(files(Path::new(kept.unwrap())), ["50-MemoryHigh.conf"]);
    run("systemctl", ["reset-failed", &guest.unit()]).any();
}

#[test]
fn several_machines_and_patterns() {
    let _host = shared();
    let stem = unique("limmany");
    let guests = ["a", "b", "c"].map(|letter| {
        let guest = Guest::named(format!("{stem}-{letter}"));
        crate::support::make_busybox_image(&guest.image());
        guest
    });
    let pattern = format!("{stem}-*");
    limit(&pattern, &["memory=64M", "--dry-run"]).ok().stdout_is(
        &guests
            .each_ref()
            .map(|guest| format!("set memory=64M of unit {}\n", guest.unit()))
            .concat(),
    );
    assert!(guests.iter().all(|guest| !guest.limits()[0].exists()));
    limit("no-such-machine", &[&pattern, "memory=64M"])
        .status(1)
        .stderr_has("no machine or image 'no-such-machine'");
    for guest in &guests {
        assert_eq!(guest.property("MemoryMax"), (64 << 20).to_string());
    }
    limit(
        &pattern,
        &["--columns", "machine,limit", "--filter", "key=memory", "--no-legend"],
    )
    .ok()
    .stdout_is(
        &guests
            .each_ref()
            .map(|guest| format!("{} 64.0M\n", guest.name))
            .concat(),
    );
    limit(&pattern, &[]).ok().stdout_has("MACHINE ");
}
