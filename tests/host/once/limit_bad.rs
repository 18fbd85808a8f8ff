//! Limits that are refused, that may not be set, and that fail in the middle: then all is as it was.

use std::fs;

use crate::limit::{limit, row};
use crate::once::users::Rule;
use crate::support::{Guest, alone, machinist, run, sh, shared, systemd_version, wait_until};

/// What systemd and the settings say of a guest's limits.
fn state(guest: &Guest) -> Vec<String> {
    let mut all: Vec<String> = [
        "MemoryMax",
        "TasksMax",
        "CPUWeight",
        "IOReadBandwidthMax",
        "NeedDaemonReload",
    ]
    .map(|property| guest.property(property))
    .into();
    all.push(fs::read_to_string(guest.settings()).unwrap_or_default());
    for directory in guest.limits() {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let mut files: Vec<String> = entries
            .map(|entry| {
                format!(
                    "{}: {}",
                    entry.file_name().display(),
                    fs::read_to_string(entry.path()).unwrap()
                )
            })
            .collect();
        files.sort();
        all.extend(files);
    }
    all
}

#[test]
fn what_cannot_be_set_changes_nothing() {
    let _host = shared();
    let guest = Guest::busybox("limbad");
    let name = guest.name.as_str();
    guest.start();
    limit(name, &["memory=512M"]).ok();
    let before = state(&guest);
    for (word, status, said) in [
        ("memroy=1G", 2, "did you mean 'memory'?"),
        ("MemoryMaxx=1G", 2, "did you mean 'MemoryMax'?"),
        (
            "memory=much",
            2,
            "memory=much cannot be set: expected bytes such as 512M or 2G",
        ),
        ("memory=-1", 2, "it cannot be negative"),
        ("memory=0", 2, "zero would leave nothing"),
        ("memory=16E", 2, "cannot be set"),
        ("memory=99999999999999999999999", 2, "it is too big"),
        ("memory=101%", 2, "it is too big: at most 100%"),
        ("cpus=0.001", 2, "at least 0.01 CPUs"),
        ("cpus=100000", 2, "at most 8192 CPUs"),
        ("tasks=0", 2, "zero would leave nothing"),
        ("cpu-weight=10001", 2, "a number from 1 to 10000"),
        ("cpuset=500", 1, "this host has CPUs "),
        ("io-read=/dev/no-such:1M", 1, "there is no device '/dev/no-such'"),
        ("io-read=/dev/null:1M", 1, "'/dev/null' is no block device"),
        ("io-read=1M", 2, "it is a limit of one device, such as /dev/sda:10M"),
        ("nofile=perhaps", 2, "nofile=perhaps cannot be set"),
        ("nofile=20:10", 2, "the soft limit is above the hard one"),
        ("oom-score=1001", 2, "from -1000"),
        ("nice=20", 2, "from -20"),
        ("Delegate=no", 2, "Delegate= is no limit"),
        ("memory=1\u{1b}[2J", 2, "memory=1\\u{1b}[2J cannot be set"),
    ] {
        // What is right beside it is not set either.
        limit(name, &["tasks-max-is-no-key=1"]).status(2);
        limit(name, &["cpu-weight=50", word]).any();
        limit(name, &[word]).status(status).stderr_has(said);
        assert_eq!(state(&guest), before, "{word}");
    }
    limit(name, &["memory=1G", "MemoryMax=2G"])
        .status(2)
        .stderr_has("'memory=1G' and 'MemoryMax=2G' limit the same thing");
    if systemd_version() < 253 {
        limit(name, &["zswap=1G"]).status(1).stderr_has("it needs systemd 253");
    } else {
        limit(name, &["zswap=1G"]).ok();
        // Nothing is a limit, too, and is shown.
        limit(name, &["zswap=0"]).ok();
        assert_eq!(guest.property("MemoryZSwapMax"), "0");
        assert_eq!(row(name, "zswap")["limit"], 0);
        limit(name, &["zswap="]).ok();
    }
    limit("no-such-machine", &["memory=1G"])
        .status(3)
        .stderr_has("no machine or image 'no-such-machine'");
    limit("no-such-machine", &[]).status(3);
    machinist(["limit", "memory=1G"])
        .status(2)
        .stderr_has("no machine is named");
    limit(name, &["memory"])
        .status(2)
        .stderr_has("limit 'memory' has no value");
    let error = limit(name, &["memory=x", "--json"]).status(2).json_error();
    assert_eq!(error["kind"], "usage");
    assert_eq!(state(&guest), before);
    // Nobody answers at the system bus.
    run(
        "unshare",
        [
            "-m",
            "bash",
            "-euc",
            "mount -t tmpfs tmpfs /run/dbus; exec machinist limit \"$0\" memory=1G",
            name,
        ],
    )
    .status(5);
}

#[test]
fn a_failure_in_the_middle_takes_back_what_was_set() {
    let _host = shared();
    let guest = Guest::busybox("limundo");
    let name = guest.name.as_str();
    limit(name, &["memory=512M", "io-read=/dev/loop0:1M"]).ok();
    limit(name, &["memory=300M", "--runtime"]).ok();
    for is_running in [false, true] {
        if is_running {
            guest.start();
        }
        let before = state(&guest);
        // The settings cannot be written: the unit was limited by then.
        let words = [
            "memory=1G",
            "cpu-weight=50",
            "io-read=/dev/loop1:2M",
            "tasks=",
            "nice=4",
            "nofile=100",
        ];
        let script = "mount --bind /etc/systemd/nspawn /etc/systemd/nspawn
            mount -o remount,bind,ro /etc/systemd/nspawn; exec machinist limit \"$@\"";
        let mut all = vec!["-m", "--", "bash", "-euc", script, "bash", name];
        all.extend(words);
        run("unshare", all).status(1).stderr_has("Read-only file system");
        assert_eq!(state(&guest), before);
        // A wrong setting is seen before anything is done.
        limit(name, &["memory=1G", "LimitNICE=+50"]).status(2);
        assert_eq!(state(&guest), before);
    }
    let history = format!("/var/lib/machinist/history/{name}");
    assert!(fs::read_dir(history).map_or(0, Iterator::count) == 0);
}

#[test]
fn systemd_that_cannot_write_a_limit_is_noticed() {
    let _host = shared();
    let guest = Guest::busybox("limfull");
    let name = guest.name.as_str();
    guest.start();
    let [lasting, _] = guest.limits();
    fs::create_dir_all(&lasting).unwrap();
    // Where PID 1 sees it: for this one unit.
    for options in ["ro", "size=4k,nr_inodes=1"] {
        run(
            "mount",
            ["-t", "tmpfs", "-o", options, "tmpfs", lasting.to_str().unwrap()],
        )
        .ok();
        let before = state(&guest);
        let output = limit(name, &["memory=512M"]).any();
        let after = state(&guest);
        run("umount", [&lasting]).ok();
        assert_eq!(output.status, 1, "{output:?}");
        let said = format!("systemd could not write the limit memory to '{}'", lasting.display());
        output.fails_with(&said, "is the file system full, or read-only?");
        assert_eq!(after, before);
    }
}

#[test]
fn limits_at_once_all_land() {
    let _host = shared();
    let guest = Guest::busybox("limtwo");
    let name = guest.name.as_str();
    guest.start();
    let calls: Vec<_> = [
        "memory=64M",
        "tasks=77",
        "cpu-weight=33",
        "nofile=999",
        "memory-high=32M",
        "swap=none",
        "nice=2",
    ]
    .iter()
    .map(|word| limit(name, &[word]).spawn())
    .collect();
    for call in calls {
        let output = call.wait();
        assert_eq!(output.status, 0, "{output:?}");
    }
    for (property, value) in [
        ("MemoryMax", "67108864"),
        ("TasksMax", "77"),
        ("CPUWeight", "33"),
        ("MemoryHigh", "33554432"),
        ("Nice", "2"),
    ] {
        assert_eq!(guest.property(property), value, "{property}");
    }
    assert!(
        fs::read_to_string(guest.settings())
            .unwrap()
            .contains("LimitNOFILE=999")
    );
    let calls: Vec<_> = (1..9)
        .map(|number| limit(name, &[&format!("memory={number}G")]).spawn())
        .collect();
    calls.into_iter().for_each(|call| drop(call.wait()));
    let before = guest.property("MemoryMax");
    run("systemctl", ["daemon-reload"]).ok();
    assert_eq!(guest.property("MemoryMax"), before);
}

#[test]
fn a_killed_call_can_be_made_again() {
    let _host = shared();
    let guest = Guest::busybox("limkill");
    let name = guest.name.as_str();
    guest.start();
    let before = state(&guest);
    let words = ["memory=512M", "tasks=", "nofile=100"];
    limit(name, &words).env("MACHINIST_DIE_AT_STEP", "0").status(128 + 9);
    assert_eq!(state(&guest), before);
    for step in 1..5 {
        limit(name, &words)
            .env("MACHINIST_DIE_AT_STEP", step.to_string())
            .status(128 + 9);
        limit(name, &["tasks=100"]).ok();
    }
    limit(name, &words).ok();
    assert_eq!(guest.property("MemoryMax"), (512 << 20).to_string());
    assert!(
        fs::read_to_string(guest.settings())
            .unwrap()
            .contains("LimitNOFILE=100")
    );
}

#[test]
fn polkit_decides_for_ordinary_users() {
    let _host = alone();
    let guest = Guest::busybox("limuser");
    let name = guest.name.as_str();
    guest.start();
    let user = [
        "--reuid=1000",
        "--regid=1000",
        "--clear-groups",
        "machinist",
        "limit",
        name,
    ];
    let as_user = |words: &[&str]| run("setpriv", user.iter().chain(words));
    as_user(&["memory=512M"]).status(4).fails_with(
        &format!("not permitted to set limits of unit '{}'", guest.unit()),
        "run it as root",
    );
    as_user(&[]).ok().stdout_has("memory ");
    as_user(&["memory=512M", "--dry-run"])
        .ok()
        .stdout_is(&format!("set memory=512M of unit {}\n", guest.unit()));
    for word in ["nofile=100", "nice=3", "memory="] {
        as_user(&[word]).status(4).stderr_has("limit needs root");
    }
    assert_eq!(guest.property("MemoryMax"), "infinity");
    let _rule = Rule::new(
        "polkit.addRule(function(action, subject) {\n\
         if (action.id == \"org.freedesktop.systemd1.manage-units\" && subject.user == \"tester\") return polkit.Result.YES;\n});\n",
    );
    wait_until("polkit permits", || as_user(&["memory=512M"]).any().status == 0);
    assert_eq!(guest.property("MemoryMax"), (512 << 20).to_string());
    as_user(&["memory=none"]).ok();
    assert_eq!(guest.property("MemoryMax"), "infinity");
    sh("test -e \"$1\"", [guest.limits()[0].join("50-MemoryMax.conf")]).ok();
}
