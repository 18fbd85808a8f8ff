//! clean: what it sweeps, and what it says about it.

use std::fs;
use std::path::Path;

use crate::create::hidden;
use crate::support::{Disk, Guest, alone, machinist, run, sh};

#[test]
fn leftovers_and_old_trash_and_logs_go_and_are_counted() {
    // Any other create would sweep the leftovers first.
    let _host = alone();
    let guest = Guest::busybox("clean");
    let leftover = format!("/var/lib/machines/.#machinist-create-{}-0", guest.name);
    fs::create_dir_all(format!("{leftover}/tree/usr")).unwrap();
    fs::write(format!("{leftover}/tree/usr/data"), vec![7; 3 << 20]).unwrap();
    let papers = format!("/var/lib/machinist/staging/create-{}-0", guest.name);
    fs::create_dir_all(&papers).unwrap();
    fs::write(
        format!("{papers}/record.json"),
        format!(r#"{{"verb":"create","name":"{}","settings":null}}"#, guest.name),
    )
    .unwrap();
    let trash = format!("/var/lib/machinist/trash/{}", guest.name);
    let log = format!("/var/log/machinist/bootstrap-{}.log", guest.name);
    fs::create_dir_all(format!("{trash}-0")).unwrap();
    fs::create_dir_all(format!("{trash}-1")).unwrap();
    fs::create_dir_all("/var/log/machinist").unwrap();
    fs::write(format!("{trash}-0/old.nspawn"), "[Exec]\n").unwrap();
    fs::write(format!("{trash}-1/new.nspawn"), "[Exec]\n").unwrap();
    fs::write(&log, "old").unwrap();
    run("touch", ["-d", "100 days ago", &format!("{trash}-0"), &log]).ok();

    let planned = machinist(["clean", "--dry-run"]).ok();
    for path in [&leftover, &format!("{trash}-0"), &log] {
        assert!(
            planned.stdout.contains(path.as_str()),
            "{path} is not planned\n{planned:?}"
        );
        assert!(Path::new(path).exists(), "a dry run removed {path}");
    }
    let planned = planned.lacks(&format!("{trash}-1")).stderr_has("would free ");
    assert!(
        planned
            .stdout
            .contains(&format!("leftover of machine '{}'", guest.name)),
        "{planned:?}"
    );

    let cleaned = machinist(["clean", "--json"]).ok().json();
    let bytes = cleaned["bytes"].as_u64().expect("bytes");
    assert!(bytes >= 3 << 20, "freed {bytes} bytes only");
    let item = cleaned["items"]
        .as_array()
        .unwrap()
        .iter()
        .find(|item| item["path"] == leftover.as_str())
        .expect("the leftover");
    assert!(
        item["bytes"]
            .as_u64()
            .is_some_and(|bytes| (3 << 20..5 << 20).contains(&bytes)),
        "{item}"
    );
    for path in [&leftover, &format!("{trash}-0"), &log] {
        assert!(!Path::new(path).exists(), "{path} is still there");
    }
    assert!(Path::new(&format!("{trash}-1")).exists(), "recent trash was removed");
    assert!(guest.image().join("bin/busybox").exists(), "a machine was touched");
    let again = machinist(["clean", "--json"]).ok().json();
    assert_eq!(
        (&again["bytes"], again["items"].as_array().map(Vec::len)),
        (&0.into(), Some(0))
    );
    fs::remove_dir_all(format!("{trash}-1")).unwrap();
}

#[test]
fn what_a_live_create_works_on_is_left_alone() {
    let _host = alone();
    let guest = Guest::new("live");
    let pipe = format!("/root/{}.tar", guest.name);
    run("mkfifo", [&pipe]).ok();
    // Nobody writes: it waits for its archive with its staging directory made.
    let running = machinist(["create", &guest.name, &pipe]).spawn();
    let writer = crate::support::sh("exec 9<>\"$1\"; exec sleep 60", [&pipe]).spawn();
    crate::support::wait_until("the staging directory is there", || {
        hidden(&guest.name).is_some_and(|directory| directory.join("tree").exists())
    });
    machinist(["clean"]).ok().lacks(&guest.name);
    assert!(
        hidden(&guest.name).is_some_and(|directory| directory.exists()),
        "clean took what is in use"
    );
    running.signal(nix::sys::signal::Signal::SIGTERM);
    writer.signal(nix::sys::signal::Signal::SIGKILL);
    assert_ne!(running.wait().status, 0);
    writer.wait();
    assert_eq!(hidden(&guest.name), None, "an interrupted create left its directory");
    fs::remove_file(pipe).unwrap();
}

#[test]
fn a_purge_removes_cached_subvolumes() {
    let _host = alone();
    let _btrfs = Disk::btrfs(Path::new("/var/cache"));
    let cache = Path::new("/var/cache/machinist");
    for entry in ["0123-4567", ".0123.build"] {
        let script = "mkdir -p \"$1\" && btrfs -q subvolume create \"$1/root\" && mkdir \"$1/root/etc\"";
        sh(script, [cache.join("bootstrap").join(entry)]).ok();
    }
    // What a linked machine lies on.
    let layer = Path::new("/run/machinist/layers/purged/0");
    fs::create_dir_all(layer).unwrap();
    run("mount", ["-t", "tmpfs", "tmpfs", &layer.to_string_lossy()]).ok();
    run("sh", ["/opt/machinist/src/units/debian/postrm", "purge"]).ok();
    assert!(!cache.exists());
    run("umount", [layer]).ok();
    fs::remove_dir_all("/run/machinist/layers/purged").unwrap();
    run("sh", ["/opt/machinist/src/units/debian/postrm", "purge"]).ok();
}
