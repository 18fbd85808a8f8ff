//! Limits of slices and of machines in scopes, and files of control groups as they are.

use std::fs;
use std::path::PathBuf;

use serde_json::json;

use crate::limit::{drop_in, limit, reload, row};
use crate::support::{Guest, machine_property, machinist, nspawn_in, run, shared, unique, unit_property, wait_until};

#[test]
fn a_slice_has_limits_before_it_has_machines() {
    let _host = shared();
    let guest = Guest::busybox("limslice");
    let slice = unique("lim").replace('-', "");
    let unit = format!("machine-{slice}.slice");
    let directory = PathBuf::from(format!("/etc/systemd/system.control/{unit}.d"));
    limit("--slice", &[&slice, "memory=2G", "tasks=50"])
        .ok()
        .stderr_is(&format!(
            "limited {unit}: memory=2G tasks=50; holds as soon as a machine runs in it\n"
        ));
    reload();
    assert_eq!(unit_property(&unit, "MemoryMax"), (2_u64 << 30).to_string());
    drop_in(&guest, "slice.conf", &format!("[Service]\nSlice={unit}\n"));
    guest.start();
    assert_eq!(
        guest.property("ControlGroup"),
        format!("/machine.slice/{unit}/{}", guest.unit())
    );
    assert_eq!(unit_property(&unit, "MemoryMax"), (2_u64 << 30).to_string());
    limit("--slice", &[&unit, "memory=1G"])
        .ok()
        .stderr_is(&format!("limited {unit}: memory=1G\n"));
    assert_eq!(unit_property(&unit, "MemoryMax"), (1_u64 << 30).to_string());
    let rows = limit("--slice", &[&slice, "--json"]).ok().json();
    assert_eq!(
        (&rows[0]["machine"], &rows[0]["limit"]),
        (&json!(unit), &json!(1 << 30))
    );
    let done = limit("--slice", &[&slice, "memory=", "tasks=", "--json"]).ok().json();
    assert_eq!(
        (&done[0]["slice"], &done[0]["result"]),
        (&json!(unit), &json!("limited"))
    );
    assert_eq!(unit_property(&unit, "MemoryMax"), "infinity");
    // No limit of tasks of its own leaves none of ours behind.
    assert!(!directory.exists());
    limit("--slice", &["a--b", "memory=1G"])
        .status(2)
        .stderr_has("'a--b' is no name of a slice");
    limit("--slice", &[&slice, "nofile=5"])
        .status(2)
        .stderr_has("nofile is no limit of a slice");
    limit("--slice", &[&slice, &guest.name, "memory=1G"]).status(2);
}

#[test]
fn files_of_the_control_group_are_read_and_written() {
    let _host = shared();
    let guest = Guest::busybox("limraw");
    let name = guest.name.as_str();
    let raw = |words: &[&str]| limit(name, words);
    raw(&["--raw", "cgroup.max.depth"]).status(1).fails_with(
        &format!("machine '{name}' is not running"),
        &format!("machinist start {name}"),
    );
    guest.start();
    let file = PathBuf::from(format!(
        "/sys/fs/cgroup{}/cgroup.max.depth",
        guest.property("ControlGroup")
    ));
    raw(&["--raw", "cgroup.max.depth"]).ok().stdout_is("max\n");
    raw(&["--raw", "cgroup.max.depth=7", "--dry-run"])
        .ok()
        .stdout_is(&format!("write '7' to '{}'\n", file.display()));
    assert_eq!(fs::read_to_string(&file).unwrap(), "max\n");
    raw(&["--raw", "cgroup.max.depth=7"]).ok().stderr_is(&format!(
        "wrote cgroup.max.depth=7 of {name}; systemd does not know, and may write it again\n"
    ));
    assert_eq!(fs::read_to_string(&file).unwrap(), "7\n");
    let rows = raw(&["--raw", "cgroup.max.depth", "--json"]).ok().json();
    assert_eq!(
        rows,
        json!([{ "machine": name, "file": "cgroup.max.depth", "value": "7" }])
    );
    raw(&["--raw", "cgroup.max.depth", "--raw", "cgroup.max.descendants"])
        .ok()
        .stdout_is(&format!(
            "# {name} cgroup.max.depth\n7\n# {name} cgroup.max.descendants\nmax\n"
        ));
    // All or nothing, and what the kernel says.
    raw(&["--raw", "cgroup.max.depth=9", "--raw", "cgroup.max.descendants=many"])
        .status(1)
        .stderr_has("cgroup.max.descendants'")
        .stderr_has("Invalid argument");
    assert_eq!(fs::read_to_string(&file).unwrap(), "7\n");
    raw(&["--raw", "memory.nothing"])
        .status(1)
        .stderr_has("there is no 'memory.nothing' in control group");
    for (word, said) in [
        ("cgroup.procs=1", "'cgroup.procs' is no limit"),
        ("cgroup.subtree_control=-memory", "'cgroup.subtree_control' is no limit"),
        ("../cgroup.max.depth", "is not the name of a file"),
        ("memory", "is not the name of a file"),
    ] {
        raw(&["--raw", word]).status(2).stderr_has(said);
    }
    raw(&["--raw", "cgroup.max.depth", "--raw", "cgroup.max.depth=1"]).status(2);
    let user = [
        "--reuid=1000",
        "--regid=1000",
        "--clear-groups",
        "machinist",
        "limit",
        name,
        "--raw",
    ];
    run("setpriv", user.iter().chain(&["cgroup.max.depth"]))
        .ok()
        .stdout_is("7\n");
    run("setpriv", user.iter().chain(&["cgroup.max.depth=1"])).status(4);
}

#[test]
fn a_machine_in_a_scope_is_limited_as_long_as_it_runs() {
    let _host = shared();
    let guest = Guest::busybox("limscope");
    let (name, image) = (guest.name.as_str(), guest.image());
    let unit = format!("test-{name}.service");
    nspawn_in(&unit, &image, name, &[]);
    let registered = || machine_property(name, "State").as_deref() == Some("running");
    wait_until("it is registered", registered);
    let scope = machine_property(name, "Unit").unwrap();
    limit(name, &["memory=64M"]).status(1).fails_with(
        &format!("machine '{name}' runs in {scope}, which is gone when it stops: nothing lasts there"),
        "--runtime",
    );
    limit(name, &["memory=64M", "--runtime"]).ok();
    assert_eq!(unit_property(&scope, "MemoryMax"), (64 << 20).to_string());
    assert_eq!(row(name, "memory")["limit"], 64 << 20);
    limit(name, &["memory=", "--runtime"]).ok();
    assert_eq!(unit_property(&scope, "MemoryMax"), "infinity");
    machinist(["terminate", name]).ok();
    run("systemctl", ["stop", &unit]).any();
    run("systemctl", ["reset-failed", &unit]).any();
}
