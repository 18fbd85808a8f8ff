//! Fifty machines at once.

use std::collections::BTreeSet;

use crate::support::{Guest, alone, images_of_machined, machines_of_machined, machinist, names_of_machinist, unique};

#[test]
fn fifty_machines_are_created_started_listed_and_stopped() {
    // The others would wait too long beside it.
    let _host = alone();
    let stem = unique("m");
    let guests: Vec<Guest> = (0..50)
        .map(|number| Guest::named(format!("{stem}.{number:02}")))
        .collect();
    let wanted: BTreeSet<String> = guests.iter().map(|guest| guest.name.clone()).collect();
    for ten in guests.chunks(10) {
        let running: Vec<_> = ten
            .iter()
            .map(|guest| machinist(["create", &guest.name, "template:busybox"]).spawn())
            .collect();
        for create in running {
            let output = create.wait();
            assert_eq!(output.status, 0, "{output:?}");
        }
    }
    let ours = |all: BTreeSet<String>| {
        all.into_iter()
            .filter(|name| name.starts_with(&stem))
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(ours(images_of_machined()), wanted);
    assert_eq!(ours(names_of_machinist(["images", "--json"])), wanted);
    let pattern = format!("{stem}.*");
    let started = machinist(["start", &pattern, "--json"]).ok().json();
    assert_eq!(started.as_array().map(Vec::len), Some(50));
    assert!(
        started.as_array().unwrap().iter().all(|row| row["result"] == "started"),
        "{started}"
    );
    assert_eq!(ours(machines_of_machined()), wanted);
    assert_eq!(ours(names_of_machinist(["list", "--json"])), wanted);
    let rows = machinist(["list", "--json", "--filter", &format!("name={pattern}")])
        .ok()
        .json();
    let rows = rows.as_array().unwrap();
    assert!(
        rows.iter()
            .all(|row| row["os"] == "busybox" && row["state"] == "running"),
        "{rows:?}"
    );
    let stopped = machinist(["stop", &pattern, "--json"]).ok().json();
    assert!(
        stopped.as_array().unwrap().iter().all(|row| row["result"] == "stopped"),
        "{stopped}"
    );
    assert_eq!(ours(machines_of_machined()), BTreeSet::new());
    assert_eq!(ours(names_of_machinist(["list", "--json"])), BTreeSet::new());
    assert_eq!(ours(names_of_machinist(["list", "-a", "--json"])), wanted);
    for guest in &guests {
        guest.is_down();
    }
    machinist(["remove", "-y", &pattern]).ok();
    assert_eq!(ours(images_of_machined()), BTreeSet::new());
}
