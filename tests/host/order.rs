//! The order of machines, and their labels: systemd's own answers, and when it starts and stops what.

use std::fs;

use crate::support::{
    Guest, machinist, newest_entry, run, shared, unit_of, unit_property, wait_until, with_priorities,
};

/// When a unit became active, in µs.
fn active_since(guest: &Guest) -> u64 {
    guest.property("ActiveEnterTimestampMonotonic").parse().unwrap()
}

/// When systemd said so of a unit that it may have forgotten since, in µs.
fn said(guest: &Guest, message: &str) -> u64 {
    let entry = newest_entry(&[format!("UNIT={}", guest.unit()), format!("MESSAGE_ID={message}")]).unwrap();
    entry["__MONOTONIC_TIMESTAMP"].as_str().unwrap().parse().unwrap()
}

fn stopping_since(guest: &Guest) -> u64 {
    said(guest, "de5b426a63be47a7b6ac3eaac82e2f6f")
}

fn stopped_since(guest: &Guest) -> u64 {
    said(guest, "9d1aaa27d60140bd96365438aad20286")
}

fn after(guest: &Guest, other: &Guest) -> bool {
    guest.property("After").split(' ').any(|unit| unit == other.unit())
}

#[test]
fn machines_start_and_stop_in_their_order() {
    let _host = shared();
    // By their names they would start the other way round.
    let [a, b, c] = ["ord-a", "ord-b", "ord-c"].map(Guest::busybox);
    let names = [&a, &b, &c].map(|guest| guest.name.as_str());
    machinist(["order", names[0], "--after", names[1], "--delay", "1.5s", "--dry-run"])
        .ok()
        .stdout_has("50-machinist-order.conf'");
    assert!(!a.drop_ins().exists());
    machinist(["order", names[0], "--after", names[1], "--delay", "1.5s"])
        .ok()
        .stderr_is(&format!("changed {}; holds from its next start\n", names[0]));
    machinist(["order", names[1], "--after", names[2]]).ok();
    machinist(["order", names[1], "--after", names[2]])
        .ok()
        .stderr_has("has these settings already");
    assert!(after(&a, &b) && after(&b, &c) && !after(&c, &a));

    // In one go, as at boot: several calls may be far enough apart for the first one's job to be done before the next.
    let units = [&a, &b, &c].map(Guest::unit).join(" ");
    let target = format!("{}.target", names[0]);
    let file = format!("/run/systemd/system/{target}");
    fs::write(&file, format!("[Unit]\nWants={units}\nPropagatesStopTo={units}\n")).unwrap();
    run("systemctl", ["daemon-reload"]).ok();
    run("systemctl", ["start", &target]).ok();
    wait_until("all are up", || {
        [&a, &b, &c]
            .iter()
            .all(|guest| guest.property("ActiveState") == "active")
    });
    assert!(active_since(&c) < active_since(&b) && active_since(&b) < active_since(&a));
    let began: u64 = a.property("InactiveExitTimestampMonotonic").parse().unwrap();
    assert!(began >= active_since(&b), "it waits for the one before");
    assert!(active_since(&a) - began >= 1_500_000, "and then for its delay");
    // In one go, as at shutdown.
    run("systemctl", ["stop", &target]).ok();
    wait_until("all are down", || {
        [&a, &b, &c]
            .iter()
            .all(|guest| guest.property("ActiveState") == "inactive")
    });
    fs::remove_file(&file).unwrap();
    assert!(stopped_since(&a) < stopping_since(&b) && stopped_since(&b) < stopping_since(&c));

    let rows = machinist(["order", "--json"]).ok().json();
    let row = |name: &str| {
        rows.as_array()
            .unwrap()
            .iter()
            .find(|row| row["name"] == name)
            .unwrap()
            .clone()
    };
    let (first, second, third) = (row(names[2]), row(names[1]), row(names[0]));
    assert_eq!(first["position"], 1);
    assert_eq!(
        (&second["position"], &second["after"]),
        (&2.into(), &serde_json::json!([names[2]]))
    );
    assert_eq!((&third["position"], &third["delay"]), (&3.into(), &1_500_000.into()));
    machinist(["order", names[0]])
        .ok()
        .stdout_has("1.5s")
        .stdout_has("1 machine listed.");
}

#[test]
fn circles_and_typos_are_refused() {
    let _host = with_priorities();
    let [a, b] = ["orc-a", "orc-b"].map(Guest::busybox);
    let (one, two) = (a.name.as_str(), b.name.as_str());
    machinist(["order", one, "--after", two]).ok();
    machinist(["order", two, "--after", one]).status(1).fails_with(
        &format!(
            "the order of machine '{two}' is not changed: it would be a circle: '{two}' after '{one}' after '{two}'"
        ),
        "machinist order",
    );
    assert!(!b.drop_ins().exists());
    machinist(["order", two, "--after", two]).status(1).stderr_has("circle");
    // By a priority, too, and by what an administrator wrote.
    machinist(["order", one, "--priority", "1"]).ok();
    machinist(["order", two, "--priority", "0"])
        .status(1)
        .stderr_has("circle");
    machinist(["order", one, "--after", ""]).ok();
    assert!(!after(&a, &b));
    a.write_drop_in(&format!("[Unit]\nAfter={}\n", b.unit()));
    machinist(["order", two, "--after", one]).status(1).stderr_has("circle");
    for (words, status) in [
        (&["order", one, "--after", "no-such-machine"][..], 3),
        (&["order", "no-such-machine", "--delay", "1s"], 3),
        (&["order", "no-such-machine"], 3),
        (&["order", one, "--delay", "soon"], 2),
        (&["order", one, "--delay", "2h"], 2),
        (&["order", one, "--priority", "high"], 2),
        (&["order", one, "--group", "a b"], 2),
        (&["order", "--delay", "1s"], 2),
        (&["start", "--group", "no-such-group"], 3),
    ] {
        machinist(words).status(status);
    }
    let user = ["--reuid=1000", "--regid=1000", "--clear-groups", "machinist"];
    run("setpriv", user.iter().chain(&["order", one, "--delay", "1s"]))
        .status(4)
        .stderr_has("needs root");
    run("setpriv", user.iter().chain(&["order"])).ok().stdout_has(one);
}

#[test]
fn higher_priorities_start_first() {
    let _host = with_priorities();
    let [a, b, c] = ["orp-a", "orp-b", "orp-c"].map(Guest::busybox);
    let names = [&a, &b, &c].map(|guest| guest.name.as_str());
    machinist(["order", names[0], "--priority", "-5"]).ok();
    machinist(["order", names[1], "--priority", "10"])
        .ok()
        .stderr_has(&format!("changed {}, which follows", names[0]));
    machinist(["order", names[2], "--priority", "10"]).ok();
    assert!(after(&a, &b) && after(&a, &c) && !after(&b, &c) && !after(&c, &b));
    machinist(["order", names[1], "--priority", "-6"]).ok();
    assert!(after(&b, &a) && after(&b, &c) && after(&a, &c) && !after(&a, &b));
    machinist(["config", "undo", names[1]]).ok();
    assert!(after(&a, &b) && !after(&b, &a), "{}", b.property("After"));
    machinist(["order", names[2], "--priority", ""]).ok();
    assert!(after(&a, &b) && !after(&a, &c));
    assert!(!c.drop_ins().exists());
    let two: Vec<_> = [("1", names[0]), ("2", names[1])]
        .map(|(number, name)| machinist(["order", name, "--priority", number]).spawn())
        .into();
    for call in two {
        let output = call.wait();
        assert_eq!(output.status, 0, "{output:?}");
    }
    assert!(after(&a, &b) && !after(&b, &a));
}

/// The drop-ins of guests, as they are now.
fn drop_ins(guests: &[&Guest]) -> Vec<Option<String>> {
    let files = guests.iter().flat_map(|guest| {
        ["order", "priority"].map(|topic| guest.drop_ins().join(format!("50-machinist-{topic}.conf")))
    });
    files.map(|file| fs::read_to_string(file).ok()).collect()
}

#[test]
fn a_priority_and_all_that_follows_it_are_one_change() {
    let _host = with_priorities();
    let guests = ["ort-a", "ort-b", "ort-c"].map(Guest::busybox);
    let [a, b, c] = &guests;
    let all: Vec<&Guest> = guests.iter().collect();
    let names = [a, b, c].map(|guest| guest.name.as_str());
    machinist(["order", names[0], "--priority", "1"]).ok();
    machinist(["order", names[1], "--priority", "2"]).ok();
    machinist(["order", names[2], "--priority", "3"]).ok();
    let before = drop_ins(&all);

    // What is shown is what is done, of all machines.
    let up = ["order", names[0], "--priority", "9"];
    let steps = machinist(up).args(["--dry-run"]).ok().stdout;
    for guest in &guests {
        let file = guest.drop_ins().join("50-machinist-priority.conf");
        assert!(steps.contains(&format!("write '{}'", file.display())), "{steps}");
    }
    assert_eq!(
        steps.matches("have systemd read its unit files anew").count(),
        1,
        "{steps}"
    );
    assert_eq!(drop_ins(&all), before);

    // One that cannot be written, and nobody's is.
    let directory = c.drop_ins();
    let script = "mount --bind \"$0\" \"$0\"; mount -o remount,bind,ro \"$0\"; shift 0; exec machinist \"$@\"";
    let words = ["-m", "--", "bash", "-euc", script, directory.to_str().unwrap()];
    run("unshare", words.into_iter().chain(up))
        .status(1)
        .stderr_has("Read-only file system");
    assert_eq!(drop_ins(&all), before);
    assert!(after(a, b) && after(a, c) && after(b, c) && !after(b, a));

    // Killed at any time there is no circle, and the next call makes it whole. Up and down again.
    let count = steps.lines().count();
    for (step, priority) in (0..count).flat_map(|step| [(step, "9"), (step, "1")]) {
        let words = ["order", names[0], "--priority", priority];
        machinist(words).env("MACHINIST_DIE_AT_STEP", step.to_string()).any();
        run("systemctl", ["daemon-reload"]).ok();
        machinist(["order"]).ok().lacks("circle");
        machinist(words).ok();
        let first = priority == "9";
        assert_eq!((after(a, b), after(a, c)), (!first, !first), "step {step}");
        assert_eq!((after(b, a), after(c, a)), (first, first), "step {step}");
        assert!(after(b, c));
    }
    // Several names, too.
    machinist(["order", names[0], names[1], "--group", "both", "--priority", "7"]).ok();
    assert!(after(c, a) && after(c, b) && !after(a, b) && !after(b, a));
    let rows = machinist(["order", names[0], names[1], "--json"]).ok().json();
    for at in 0..2 {
        assert_eq!(
            (&rows[at]["group"], &rows[at]["priority"]),
            (&serde_json::json!(["both"]), &7.into()),
            "{rows}"
        );
    }
}

#[test]
fn undo_refuses_what_order_refuses() {
    let _host = with_priorities();
    let guests = ["oru-a", "oru-b"].map(Guest::busybox);
    let [a, b] = &guests;
    let all = [a, b];
    let (one, two) = (a.name.as_str(), b.name.as_str());
    machinist(["order", one, "--after", two]).ok();
    machinist(["order", one, "--after", ""]).ok();
    machinist(["order", two, "--after", one]).ok();
    let before = drop_ins(&all);
    let message = format!(
        "the order of machine '{one}' is not changed: it would be a circle: '{one}' after '{two}' after '{one}'"
    );
    machinist(["config", "undo", one])
        .status(1)
        .fails_with(&message, "machinist order");
    machinist(["config", "undo", one, "--dry-run"])
        .status(1)
        .fails_with(&message, "machinist order");
    assert_eq!(drop_ins(&all), before);
    assert!(!after(a, b) && after(b, a));
    // By a priority, too.
    machinist(["order", two, "--after", ""]).ok();
    machinist(["order", one, "--priority", "1"]).ok();
    machinist(["order", two, "--priority", "2"]).ok();
    machinist(["order", one, "--priority", ""]).ok();
    machinist(["order", two, "--after", one]).ok();
    machinist(["config", "undo", one]).status(1).stderr_has("circle");
    // What it waits for is what the rest of the machines wait for.
    let lock = "exec 9>>/run/machinist/.order.lock; flock 9; machinist config undo \"$0\" & sleep 2; echo done waiting; flock -u 9; wait $!";
    machinist(["order", two, "--after", ""]).ok();
    let said = run("bash", ["-c", lock, one]).ok();
    let waited = said.stdout.contains("done waiting") && said.stderr.contains(&format!("changed {one}"));
    assert!(waited, "{said:?}");
    assert!(after(a, b) && !after(b, a));
    // Those that follow are shown, and written with it.
    machinist(["config", "undo", two, "--dry-run"]).any();
    machinist(["order", two, "--priority", "0"]).ok();
    assert!(after(b, a) && !after(a, b));
    machinist(["config", "undo", two, "--dry-run"])
        .ok()
        .stdout_has(&a.drop_ins().join("50-machinist-priority.conf").to_string_lossy());
    machinist(["config", "undo", two])
        .ok()
        .stderr_has(&format!("changed {one}, which follows"));
    assert!(after(a, b) && !after(b, a));
}

#[test]
fn a_group_starts_and_stops_in_its_order() {
    let _host = shared();
    let [a, b, c] = ["org-a", "org-b", "org-c"].map(Guest::busybox);
    let names = [&a, &b, &c].map(|guest| guest.name.as_str());
    let group = format!("g{}", a.name);
    machinist(["order", names[0], "--after", names[1], "--group", &group]).ok();
    machinist(["order", names[1], "--group", &group, "--group", "other"]).ok();
    machinist(["start", "--group", &group, "--dry-run"])
        .ok()
        .stdout_is(&format!(
            "start unit {} and wait for its job\nstart unit {} and wait for its job\n",
            b.unit(),
            a.unit()
        ));
    machinist(["start", "--group", &group])
        .ok()
        .stderr_is(&format!("started {}\nstarted {}\n", names[1], names[0]));
    assert!(active_since(&b) < a.property("InactiveExitTimestampMonotonic").parse().unwrap());
    assert_eq!(c.property("ActiveState"), "inactive");
    machinist(["stop", "--group", &group])
        .ok()
        .stderr_is(&format!("stopped {}\nstopped {}\n", names[0], names[1]));
    assert!(stopped_since(&a) < stopping_since(&b));
    // One that fails does not keep the others from their turn.
    machinist(["config", "set", names[1], "before-start=/bin/false"]).ok();
    let rows = machinist(["start", "--group", &group, "--json"]).status(1).json();
    assert_eq!(rows[0]["result"], "started", "{rows}");
    assert_eq!(rows[1]["result"], "failed", "{rows}");
    machinist(["order", names[0], "--group", ""]).ok();
    machinist(["order", names[0], "--json", "--columns", "group"])
        .ok()
        .stdout_has("[]");
}

#[test]
fn labels_are_kept_and_found() {
    let _host = shared();
    let guest = Guest::busybox("lab");
    let name = guest.name.as_str();
    machinist(["label", name, "role=shop", "example.org/tier=front end"])
        .ok()
        .stderr_is(&format!("changed {name}\n"));
    machinist(["label", name, "role=shop"])
        .ok()
        .stderr_is(&format!("{name} has these settings already\n"));
    machinist(["config", "set", name, "description=The shop"]).ok();
    let file = guest.drop_ins().join("50-machinist-label.conf");
    let text = fs::read_to_string(&file).unwrap();
    assert!(
        text.contains("[X-Machinist]\nLabel=role=shop\nLabel=example.org/tier=front end\n"),
        "{text}"
    );
    assert!(text.contains("[Unit]\nDescription=The shop\n"), "{text}");
    assert_eq!(unit_property(&unit_of(name), "Description"), "The shop");
    run("journalctl", ["--sync"]).ok();
    let said = run("journalctl", ["-q", "-o", "cat", "_PID=1", "--grep", "X-Machinist"])
        .any()
        .stdout;
    assert_eq!(said, "");
    run("systemd-analyze", ["verify", &guest.unit()])
        .any()
        .lacks("X-Machinist");
    machinist(["label", name, "--json"]).ok().stdout_is(&format!(
        "[{{\"key\":\"example.org/tier\",\"machine\":\"{name}\",\"value\":\"front end\"}},{{\"key\":\"role\",\
         \"machine\":\"{name}\",\"value\":\"shop\"}}]\n"
    ));
    machinist([
        "list",
        "-a",
        "--filter",
        &format!("name={name}"),
        "--filter",
        "labels=*role=shop*",
        "--json",
    ])
    .ok()
    .stdout_has("\"labels\":{\"example.org/tier\":\"front end\",\"role\":\"shop\"}");
    machinist(["list", "-a", "--filter", "labels=*role=nothing*"])
        .ok()
        .lacks(name);
    machinist(["label", name, "role="]).ok();
    machinist(["label", name])
        .ok()
        .lacks("role")
        .stdout_has("1 label listed.");
    machinist(["label", name, "ro le=x"]).status(2);
    machinist(["label", "role=x"]).status(2).stderr_has("NAME");
    // Several machines, and one that there is not.
    let other = Guest::busybox("lab2");
    machinist(["label", name, &other.name, "floor=2", "role=both"])
        .ok()
        .stderr_has(&format!("changed {}\n", other.name));
    for guest in [&guest, &other] {
        let text = fs::read_to_string(guest.drop_ins().join("50-machinist-label.conf")).unwrap();
        assert!(text.contains("Label=floor=2\n"), "{text}");
    }
    machinist(["label", "no-such-machine", name, "floor=3"]).status(1);
    machinist(["label", name, &other.name, "--json", "--filter", "key=floor"])
        .ok()
        .stdout_has("\"value\":\"3\"")
        .stdout_has("\"value\":\"2\"");
    machinist(["label", name, "floor=", "role="]).ok();
    machinist(["label", "no-such-machine", "a=b"]).status(3);
    machinist(["label", "no-such-machine"]).status(3);
    // An editor's work is seen.
    fs::write(&file, "[X-Machinist]\nLabel=mine=1\n").unwrap();
    machinist(["label", name, "--columns", "key", "--no-legend"])
        .ok()
        .stdout_is("mine\n");
    wait_until("it is gone", || machinist(["remove", "--yes", name]).any().status == 0);
}
