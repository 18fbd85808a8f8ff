//! history: what the journal has of what was done to a machine, and who the journal says did it.

use serde_json::{Value, json};

use crate::support::{Guest, machinist, run, sh, shared, unique, wait_until};

fn history(words: &[&str]) -> Vec<Value> {
    let rows = machinist([&["history", "--json"], words].concat()).ok().json();
    rows.as_array().unwrap().clone()
}

#[test]
fn what_was_done_is_told_with_who_and_when() {
    let _host = shared();
    let guest = Guest::busybox("told");
    let name = guest.name.as_str();
    // It is there, and nothing was done to it.
    machinist(["history", name]).ok().stdout_is("No actions.\n");
    machinist(["start", name]).ok();
    machinist(["list"]).ok();
    machinist(["stop", name]).env("SUDO_UID", "65534").ok();
    guest.write_settings("[Network]\nBridge=nosuchbr6\n");
    machinist(["start", name]).status(1);
    let rows = history(&[name]);
    let of = |row: &Value| json!([row["verb"], row["result"], row["uid"], row["user"], row["machine"]]);
    let shown: Vec<Value> = rows.iter().map(of).collect();
    let wanted = [
        json!(["start", "done", 0, "root", name]),
        json!(["stop", "done", 65534, "nobody", name]),
        json!(["start", "failed", 0, "root", name]),
    ];
    assert_eq!(shown, wanted);
    assert!(
        rows[2]["message"]
            .as_str()
            .unwrap()
            .contains("bridge 'nosuchbr6' does not exist")
    );
    // As the journal has it.
    let matches = ["-q", "-o", "json", &format!("MACHINE={name}")];
    let journal = run("journalctl", matches).ok().stdout;
    let entries = journal.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let micros: Vec<i64> = entries
        .map(|entry| entry["__REALTIME_TIMESTAMP"].as_str().unwrap().parse().unwrap())
        .collect();
    let times = rows
        .iter()
        .map(|row| row["time"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap());
    assert_eq!(times.map(jiff::Timestamp::as_microsecond).collect::<Vec<_>>(), micros);
    assert_eq!(history(&[name, "-n", "1"]), rows[2..]);
    assert_eq!(history(&[name, "--since", "-1h"]), rows);
    assert_eq!(history(&[name, "--since=-1h", "-n2"]), rows[1..]);
    assert_eq!(history(&[name, "--since", "2099-01-01"]), Vec::<Value>::new());
    assert_eq!(history(&[name, "--filter", "user=nobody"]), rows[1..2]);
    machinist(["history", name]).ok().stdout_has("3 actions listed.");
    machinist(["remove", "-y", name]).ok();
    let after = history(&[name]);
    assert_eq!((after.len(), &after[3]["verb"]), (4, &json!("remove")));
}

#[test]
fn several_machines_are_told_together() {
    let _host = shared();
    let stem = unique("both");
    let (one, two) = (
        Guest::busybox(&format!("{stem}-a")),
        Guest::busybox(&format!("{stem}-b")),
    );
    for name in [&one.name, &two.name, &one.name] {
        machinist(["start", name]).ok();
        machinist(["terminate", name]).ok();
    }
    let names = |rows: &[Value]| rows.iter().map(|row| row["machine"].clone()).collect::<Vec<_>>();
    let wanted = [&one, &one, &two, &two, &one, &one].map(|guest| json!(guest.name));
    let rows = history(&[&one.name, &two.name]);
    assert_eq!(names(&rows), wanted);
    let verbs = rows.iter().map(|row| row["verb"].as_str().unwrap()).collect::<Vec<_>>();
    assert_eq!(verbs, ["start", "terminate"].repeat(3));
    let pattern = format!("*{stem}-[ab]*");
    assert_eq!(history(&[&pattern]), rows);
    assert_eq!(history(&[&pattern, "-n", "3"]), rows[3..]);
    assert_eq!(history(&[&pattern, "--since=-1h", "-n3"]), rows[3..]);
    machinist(["history", &pattern]).ok().stdout_has("MACHINE");
    machinist(["history", &one.name]).ok().lacks("MACHINE");
    // One that is not there does not keep the others from being told.
    machinist(["history", &one.name, "nosuch-machine"])
        .status(1)
        .stdout_has("4 actions listed.")
        .stderr_has("no machine or image 'nosuch-machine'");
}

#[test]
fn nobody_can_say_that_root_did_it() {
    let _host = shared();
    let guest = Guest::busybox("lie");
    let name = guest.name.as_str();
    let entry = format!(
        "MESSAGE=start {name}: done\x1b[31m\nMACHINE={name}\nSYSLOG_IDENTIFIER=machinist\nMACHINIST_VERB=start\n\
         MACHINIST_RESULT=done\nMACHINIST_UID=0\n"
    );
    sh("runuser -u nobody -- logger --journald", [""]).stdin(entry).ok();
    wait_until("it is in the journal", || !history(&[name]).is_empty());
    let rows = history(&[name]);
    assert_eq!((&rows[0]["uid"], &rows[0]["user"]), (&json!(65534), &json!("nobody")));
    machinist(["history", name]).ok().lacks("\x1b");
}

#[test]
fn what_has_no_history_is_told() {
    let _host = shared();
    let guest = Guest::busybox("blank");
    machinist(["history", "nosuch-machine"])
        .status(3)
        .stderr_has("no machine or image 'nosuch-machine'");
    machinist(["history", &guest.name, "--since", "no time"])
        .status(1)
        .stderr_has("systemd.time(7)");
    machinist(["history"]).status(2);
}
