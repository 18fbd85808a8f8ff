//! All or nothing: after kill -9, Ctrl-C and two at once there is the old state or the new one.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::create::{hidden, traces};
use crate::support::{
    Guest, PATIENCE, There, agree, alone, bootstrap_options, guest_suite, holds_within, images_of_machined, machinist,
    make_busybox_image, run, sh, shared, unique,
};

/// What may never be left of a name: mounts, and anything that machinectl shows.
#[track_caller]
fn is_invisible(name: &str) {
    agree(name, There::Nowhere);
    let mounts = fs::read_to_string("/proc/self/mounts").expect("reading mounts");
    assert!(!mounts.contains(name), "a mount is left:\n{mounts}");
    let listed = run("machinectl", ["list-images", "--all", "--no-legend"]).ok().stdout;
    assert!(!listed.contains(name), "machinectl shows it:\n{listed}");
}

/// A tarball that takes a moment to unpack.
fn tarball(directory: &Path) -> String {
    make_busybox_image(&directory.join("tree"));
    let script =
        "cd \"$1\"; for i in $(seq 400); do head -c 40K /dev/urandom >tree/usr/lib/$i; done; tar -C tree -cf a.tar .";
    sh(script, [directory.as_os_str()]).ok();
    directory.join("a.tar").to_string_lossy().into_owned()
}

#[test]
fn create_killed_before_each_step_leaves_nothing_visible() {
    let _host = shared();
    let guest = Guest::new("die");
    let name = &guest.name;
    let create = ["create", name, "template:busybox", "--set", "Exec.Hostname=x"];
    let steps = machinist(create.iter().chain(&["--dry-run", "--json"])).ok().json()["steps"]
        .as_array()
        .unwrap()
        .len();
    let mut died = 0;
    loop {
        let output = machinist(create).env("MACHINIST_DIE_AT_STEP", died.to_string()).any();
        if output.status == 0 {
            break;
        }
        assert_eq!(output.status, 128 + 9, "step {died}\n{output:?}");
        is_invisible(name);
        died += 1;
    }
    assert!(died >= 6 && died <= steps, "{died} steps were tried of {steps}");
    agree(name, There::Stopped);
    // What the kills left was swept by the calls after them, and what is there now is complete.
    let left = traces(name);
    assert_eq!(
        left,
        [
            format!("/etc/systemd/nspawn/{name}.nspawn"),
            format!("/var/lib/machines/{name}")
        ]
    );
    guest.start();
}

#[test]
fn create_killed_at_ten_random_moments_leaves_nothing_visible() {
    let _host = shared();
    let work = PathBuf::from(format!("/root/{}", unique("rnd")));
    let archive = tarball(&work);
    let guest = Guest::new("rnd");
    let name = &guest.name;
    let whole = machinist(["create", name, &archive]).ok().took;
    machinist(["remove", "-y", name]).ok();
    let mut killed = 0;
    for _ in 0..10 {
        let random = fs::read("/proc/sys/kernel/random/uuid").unwrap();
        let share = random[..8]
            .iter()
            .fold(0_u32, |sum, byte| sum * 7 % 1009 + u32::from(*byte))
            % 1000;
        let running = machinist(["create", name, &archive]).spawn();
        std::thread::sleep(whole * share / 1000);
        running.signal(Signal::SIGKILL);
        let status = running.wait().status;
        if images_of_machined().contains(name) {
            // The rename was done: then all of it is there.
            agree(name, There::Stopped);
            assert!(guest.image().join("usr/lib/400").exists(), "a part of it is visible");
            machinist(["remove", "-y", name]).ok();
        } else {
            assert_eq!(status, 128 + 9);
            is_invisible(name);
            killed += 1;
        }
    }
    assert!(killed > 0, "none of the kills came in time");
    machinist(["create", name, &archive]).ok();
    agree(name, There::Stopped);
    assert_eq!(
        traces(name).len(),
        1 + usize::from(guest.settings().exists()),
        "{:?}",
        traces(name)
    );
    fs::remove_dir_all(work).unwrap();
}

#[test]
fn remove_killed_before_each_step_is_done_or_not() {
    let _host = shared();
    let guest = Guest::new("rmdie");
    let name = &guest.name;
    for step in 0..12 {
        machinist(["create", name, "template:busybox"]).ok();
        machinist(["enable", name]).ok();
        let output = machinist(["remove", "-y", name])
            .env("MACHINIST_DIE_AT_STEP", step.to_string())
            .any();
        if output.status == 0 {
            assert!(step >= 4, "only {step} steps");
            is_invisible(name);
            assert_eq!(traces(name), Vec::<String>::new());
            return;
        }
        assert_eq!(output.status, 128 + 9, "{output:?}");
        if guest.image().exists() {
            // The old state: all of it.
            agree(name, There::Stopped);
            assert_eq!(
                run("systemctl", ["is-enabled", &guest.unit()]).any().stdout,
                "enabled\n"
            );
            assert!(guest.settings().exists(), "a part of it was removed");
            guest.start();
            machinist(["remove", "-y", "--force", name]).ok();
        } else {
            // The new state: nothing that can be seen, and the next call of anybody finishes it.
            is_invisible(name);
            let other = Guest::new("rmdie");
            machinist(["create", &other.name, "template:busybox"]).ok();
        }
        assert_eq!(traces(name), Vec::<String>::new(), "killed before step {step}");
        assert_ne!(
            run("systemctl", ["is-enabled", &guest.unit()]).any().stdout,
            "enabled\n"
        );
    }
    panic!("remove has more steps than expected");
}

/// A removal that died when the image was out of sight, and nothing else was done yet.
fn half_removed(stem: &str) -> Guest {
    let guest = Guest::new(stem);
    machinist(["create", &guest.name, "template:busybox"]).ok();
    machinist(["enable", &guest.name]).ok();
    machinist(["remove", "-y", &guest.name])
        .env("MACHINIST_DIE_AT_STEP", "2")
        .status(128 + 9);
    is_invisible(&guest.name);
    guest
}

fn is_enabled(guest: &Guest) -> bool {
    run("systemctl", ["is-enabled", &guest.unit()]).any().stdout == "enabled\n"
}

#[test]
fn finishing_a_killed_remove_may_be_killed_or_fail() {
    // Whoever sweeps first finishes it.
    let _host = alone();
    let guest = half_removed("rmtwice");
    for step in ["1", "2"] {
        machinist(["clean"]).env("MACHINIST_DIE_AT_STEP", step).status(128 + 9);
        assert!(guest.settings().exists(), "killed before step {step}");
    }
    // Another verb warns, and goes on.
    run("chattr", ["+i", &guest.settings().to_string_lossy()]).ok();
    let other = Guest::new("rmtwice");
    machinist(["create", &other.name, "template:busybox"])
        .ok()
        .stderr_has(&format!("cannot sweep half-removed machine '{}'", guest.name));
    run("chattr", ["-i", &guest.settings().to_string_lossy()]).ok();
    machinist(["clean"]).ok();
    assert_eq!(traces(&guest.name), Vec::<String>::new());
    assert!(!is_enabled(&guest));
}

#[test]
fn an_image_made_after_a_killed_remove_keeps_its_settings() {
    let _host = alone();
    let guest = half_removed("rmraw");
    let raw = guest.image().with_file_name(format!("{}.raw", guest.name));
    fs::write(&raw, vec![0; 1 << 16]).unwrap();
    machinist(["clean"]).ok();
    assert!(guest.settings().exists() && is_enabled(&guest));
    machinist(["remove", "-y", &guest.name]).ok();
    assert_eq!(traces(&guest.name), Vec::<String>::new());
}

#[test]
fn ctrl_c_during_a_bootstrap_leaves_nothing_and_ends_at_once() {
    let _host = shared();
    let guest = Guest::new("int");
    let name = &guest.name;
    let source = format!("debian:{}", guest_suite());
    let mut words = vec!["create".to_owned(), name.clone(), source, "--no-cache".into()];
    words.extend(bootstrap_options());
    let marker = format!("machinist-create-{name}-");
    let children = || {
        let all = run("ps", ["-e", "-o", "pid=,args="]).ok().stdout;
        all.lines()
            .filter(|line| line.contains(&marker))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let running = machinist(&words).spawn();
    // In the middle: packages are being unpacked.
    let unpacks = || hidden(name).is_some_and(|hidden| hidden.join("tree/usr/bin").exists()) && !children().is_empty();
    // Packages come over the network first.
    assert!(
        holds_within(PATIENCE * 5, unpacks),
        "no packages were unpacked: {:?}",
        children()
    );
    let began = Instant::now();
    running.signal(Signal::SIGINT);
    let output = running.wait();
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "it took {:?}\n{output:?}",
        began.elapsed()
    );
    assert_ne!(output.status, 0, "{output:?}");
    assert!(output.status < 128 || output.status == 130, "{output:?}");
    assert_eq!(children(), Vec::<String>::new(), "children are left");
    is_invisible(name);
    assert_eq!(traces(name), Vec::<String>::new());
}

#[test]
fn of_two_creates_of_one_name_exactly_one_succeeds() {
    let _host = shared();
    for _ in 0..3 {
        let guest = Guest::new("two");
        let name = &guest.name;
        let create = || machinist(["create", name, "template:busybox"]).spawn();
        let (one, two) = (create(), create());
        let mut outputs = [one.wait(), two.wait()];
        outputs.sort_by_key(|output| output.status);
        assert_eq!((outputs[0].status, outputs[1].status), (0, 1), "{outputs:?}");
        assert!(
            outputs[1].stderr.contains(&format!("cannot create machine '{name}': ")),
            "{:?}",
            outputs[1]
        );
        assert!(outputs[1].stderr.contains("exists already"), "{:?}", outputs[1]);
        agree(name, There::Stopped);
        assert_eq!(traces(name).len(), 2, "{:?}", traces(name));
        guest.start();
    }
}

#[test]
fn two_creates_of_one_suite_at_once_both_succeed() {
    let _host = shared();
    let (one, two) = (Guest::new("suite"), Guest::new("suite"));
    let create = |guest: &Guest| {
        let mut words = vec![
            "create".to_owned(),
            guest.name.clone(),
            format!("debian:{}", guest_suite()),
        ];
        words.extend(bootstrap_options());
        machinist(&words).spawn()
    };
    let (first, second) = (create(&one), create(&two));
    for (guest, running) in [(&one, first), (&two, second)] {
        let output = running.wait();
        assert_eq!(output.status, 0, "{output:?}");
        agree(&guest.name, There::Stopped);
        assert!(guest.image().join("usr/bin/apt-get").exists());
    }
    let busy = || {
        fs::read_dir("/var/cache/machinist/bootstrap")
            .unwrap()
            .flatten()
            .any(|entry| entry.file_name().to_string_lossy().ends_with(".build"))
    };
    assert!(
        holds_within(Duration::from_secs(1), || !busy()),
        "a half-made tree is left in the cache"
    );
}
