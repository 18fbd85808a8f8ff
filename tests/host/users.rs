//! Without root: reading works, changing is refused with status 4.

use crate::create::traces;
use crate::support::{Guest, Run, There, agree, run, shared};

/// machinist as an ordinary user, without any terminal.
fn as_tester(words: &[&str]) -> Run {
    let start = [
        "--reuid=1000",
        "--regid=1000",
        "--clear-groups",
        "--reset-env",
        "machinist",
    ];
    run("setpriv", start.iter().chain(words))
}

#[test]
fn an_ordinary_user_may_look() {
    let _host = shared();
    let guest = Guest::new("user");
    let name = &guest.name;
    crate::support::machinist(["create", name, "template:busybox", "--start"]).ok();
    let filter = format!("name={name}");
    let rows = as_tester(&["list", "--json", "--filter", &filter]).ok().json();
    assert_eq!(
        (&rows[0]["name"], &rows[0]["state"]),
        (&name.as_str().into(), &"running".into())
    );
    assert_eq!(rows[0]["leader"], guest.leader());
    crate::support::wait_until("its address is shown", || {
        let rows = as_tester(&["list", "--json", "--filter", &filter]).ok().json();
        rows[0]["addresses"]
            .as_array()
            .is_some_and(|all| all.iter().any(|address| address.as_str().unwrap().contains('.')))
    });
    let listed = as_tester(&["list", "-a"]).ok().stdout;
    assert!(listed.contains(name.as_str()), "{listed}");
    let images = as_tester(&["images", "--json", "--filter", &filter]).ok().json();
    assert_eq!(
        (&images[0]["type"], &images[0]["used_by"]),
        (&"directory".into(), &name.as_str().into())
    );
    as_tester(&["show", name, "-p", "Leader", "--value"])
        .ok()
        .stdout_is(&format!("{}\n", guest.leader()));
    as_tester(&["status", name]).ok().stdout_has(name);
}

#[test]
fn an_ordinary_user_may_not_change_anything() {
    let _host = shared();
    let guest = Guest::busybox("deny");
    let name = &guest.name;
    let before = traces(name);
    for words in [vec!["start", name], vec!["enable", name], vec!["restart", name]] {
        as_tester(&words)
            .status(4)
            .stderr_has("error: not permitted to")
            .stderr_has("hint: run it as root: `sudo machinist …`");
        agree(name, There::Stopped);
    }
    guest.start();
    for words in [
        vec!["stop", name],
        vec!["terminate", name],
        vec!["restart", "--inside", name],
    ] {
        as_tester(&words)
            .status(4)
            .stderr_has("error: not permitted to")
            .stderr_has("sudo machinist");
        agree(name, There::Running);
    }
    let other = Guest::new("deny");
    for (words, message) in [
        (vec!["create", &other.name, "template:busybox"], "create needs root"),
        (vec!["remove", "-y", name], "remove needs root"),
        (vec!["clean"], "clean needs root"),
    ] {
        as_tester(&words).status(4).fails_with(message, "sudo machinist");
    }
    let error = as_tester(&["stop", name, "--json"]).status(4).json_error();
    assert_eq!(error["kind"], "denied");
    agree(name, There::Running);
    agree(&other.name, There::Nowhere);
    // What systemd-nspawn has of a running machine under /run is its own.
    let left: Vec<String> = traces(name)
        .into_iter()
        .filter(|path| !path.contains("/run/systemd/"))
        .collect();
    assert_eq!(left, before);
}
