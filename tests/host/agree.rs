//! machinectl and machinist agree on all that exists, after every step of a machine's life.

use std::collections::BTreeSet;

use crate::support::{Guest, alone, machinist, names_of_machinist, run};

/// The first column of a table of machinectl's.
fn by_machinectl(verb: &str) -> BTreeSet<String> {
    let table = run("machinectl", [verb, "--no-legend", "--no-pager"]).ok().stdout;
    table
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .filter(|name| name != ".host")
        .collect()
}

#[track_caller]
fn all_agree(step: &str) {
    let (machines, images) = (by_machinectl("list"), by_machinectl("list-images"));
    assert_eq!(
        names_of_machinist(["list", "--json"]),
        machines,
        "machines after {step}"
    );
    assert_eq!(names_of_machinist(["images", "--json"]), images, "images after {step}");
    let all = names_of_machinist(["list", "-a", "--json"]);
    let known: BTreeSet<String> = machines.union(&images).cloned().collect();
    assert!(
        all.is_superset(&known),
        "list -a after {step}: {all:?}, but there are {known:?}"
    );
}

#[test]
fn after_every_step_of_a_life() {
    let _host = alone();
    let (one, two) = (Guest::new("life"), Guest::new("life"));
    let (a, b) = (one.name.as_str(), two.name.as_str());
    all_agree("nothing");
    for (words, status) in [
        (vec!["create", a, "template:busybox"], 0),
        (vec!["create", a, "template:busybox"], 1),
        (vec!["create", b, "template:busybox", "--start", "--enable"], 0),
        (vec!["start", a], 0),
        (vec!["start", a, b], 0),
        (vec!["restart", a], 0),
        (vec!["restart", "--inside", b, "--wait"], 0),
        (vec!["remove", "-y", b], 1),
        (vec!["stop", a], 0),
        (vec!["terminate", b], 0),
        (vec!["enable", a, "--now"], 0),
        (vec!["remove", "-y", "--force", a, b], 0),
        (vec!["start", a], 3),
    ] {
        machinist(&words).status(status);
        all_agree(&words.join(" "));
    }
    assert!(!by_machinectl("list-images").contains(a));
}
