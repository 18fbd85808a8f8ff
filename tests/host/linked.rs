//! clone --linked and --flatten: machines that lie on layers, as systemd mounts them.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::clone::{Clone, read, swept};
use crate::support::{Guest, There, agree, machinist, run, sh, shared, unit_property, wait_until};

pub(crate) const LAYERS: &str = "/var/lib/machinist/layers";

/// What systemd has mounted where an image is: the type of the filesystem.
pub(crate) fn mounted_on(image: &Path) -> String {
    let found = run("findmnt", ["-no", "FSTYPE", "--mountpoint", &image.to_string_lossy()]).any();
    found.stdout.trim().to_owned()
}

/// The unit that systemd has for an image, by its own escaping.
pub(crate) fn mount_unit(guest: &Guest) -> String {
    let image = guest.image().to_string_lossy().into_owned();
    let unit = run("systemd-escape", ["--path", "--suffix=mount", &image]).ok().stdout;
    unit.trim().to_owned()
}

/// The layers of machines whose names begin so.
pub(crate) fn layers(stem: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(LAYERS).into_iter().flatten().flatten();
    let of_stem = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(stem));
    of_stem.map(|entry| entry.path()).collect()
}

/// Everything that there is of a name in systemd's places, and mounted.
pub(crate) fn traces(name: &str) -> String {
    // Others' come and go meanwhile.
    let look = "find /etc/systemd/system -name \"*$(systemd-escape -- \"$1\")*\" 2>/dev/null || :
                ls -A /var/lib/machines | grep -v '[.]lck$' | grep -F \"$1\" || :
                cut -d' ' -f5 /proc/self/mountinfo | grep -F \"/$1\" || :";
    sh(look, [name]).ok().stdout
}

#[test]
fn a_clone_and_its_source_go_their_own_ways() {
    let _host = shared();
    let source = Guest::busybox("lka");
    let name = source.name.as_str();
    fs::write(source.image().join("etc/both"), "first\n").unwrap();
    fs::write(source.image().join("etc/hostname"), format!("{name}\n")).unwrap();
    fs::write(source.image().join("etc/machine-id"), format!("{:032x}\n", 7)).unwrap();
    let clone = Clone::of("lkb");
    let clone = &clone.0;
    let other = clone.name.as_str();
    machinist(["clone", "--linked", name, other, "--dry-run"])
        .ok()
        .stdout_has("make a layer of what");
    assert!(layers(name).is_empty() && traces(other).is_empty());
    let row = machinist(["clone", "--linked", name, other, "--json"]).ok().json();
    assert_eq!(row[0]["storage"], "overlay");
    agree(other, There::Stopped);
    assert_eq!(fs::metadata(LAYERS).unwrap().mode() & 0o777, 0o700);
    for guest in [&source, clone] {
        assert_eq!(mounted_on(&guest.image()), "overlay");
        let unit = mount_unit(guest);
        assert_eq!(unit_property(&unit, "ActiveState"), "active");
        assert_eq!(unit_property(&unit, "UnitFileState"), "enabled");
        assert_eq!(read(guest.image().join("etc/both")), "first\n");
    }
    assert_eq!(read(clone.image().join("etc/hostname")), format!("{other}\n"));
    assert_eq!(read(source.image().join("etc/hostname")), format!("{name}\n"));
    assert_ne!(
        read(source.image().join("etc/machine-id")),
        read(clone.image().join("etc/machine-id"))
    );

    // Nor does machined take a layer for an image, and clean it up.
    let images = run("machinectl", ["list-images", "--all", "--no-legend"]).ok().stdout;
    assert!(!images.contains("layers") && !images.contains("machinist"), "{images}");
    // systemd alone mounts what a machine lies on.
    for guest in [&source, clone] {
        // Busy for as long as somebody looks at it.
        wait_until("it is unmounted", || {
            run("systemctl", ["stop", &mount_unit(guest)]).any().status == 0
        });
        assert_eq!(mounted_on(&guest.image()), "");
        run("machinectl", ["start", &guest.name]).ok();
        wait_until("it runs", || guest.property("ActiveState") == "active");
    }
    let maps = [&source, clone].map(|guest| {
        machinist(["exec", &guest.name, "--", "cat", "/proc/self/uid_map"])
            .ok()
            .stdout
    });
    assert!(maps[0] != maps[1], "they have the same users: {maps:?}");
    let said = machinist([
        "exec",
        other,
        "--",
        "sh",
        "-c",
        "stat -c %u:%g / /etc /etc/both; echo second >/etc/both; mv /var /moved",
    ])
    .ok();
    said.stdout_is("0:0\n0:0\n0:0\n");
    machinist([
        "exec",
        name,
        "--",
        "sh",
        "-c",
        "cat /etc/both; echo third >/etc/both; ls -d /var",
    ])
    .ok()
    .stdout_is("first\n/var\n");
    assert_eq!(read(clone.image().join("etc/both")), "second\n");

    // Running, it is copied.
    let next = Clone::of("lkc");
    let next = &next.0;
    machinist(["clone", other, &next.name]).ok();
    assert_eq!(
        (mounted_on(&next.image()), read(next.image().join("etc/both"))),
        (String::new(), "second\n".into())
    );
    assert!(
        read(next.settings()).contains("PrivateUsers=pick"),
        "{}",
        read(next.settings())
    );
    next.start();
    machinist(["exec", &next.name, "--", "busybox", "stat", "-c", "%u", "/etc/both"])
        .ok()
        .stdout_is("0\n");

    // The source goes; what the clone lies on stays, and goes with it.
    machinist(["stop", name, other]).ok();
    machinist(["remove", "-y", name]).ok();
    agree(name, There::Nowhere);
    assert_eq!(traces(name), "");
    assert_eq!(layers(name).len(), 1, "the base is the clone's, too");
    machinist(["start", other]).ok();
    machinist(["exec", other, "--", "cat", "/etc/both"])
        .ok()
        .stdout_is("second\n");
    machinist(["stop", other]).ok();
    machinist(["remove", "-y", other]).ok();
    assert_eq!(
        (traces(other), layers(name), layers(other)),
        (String::new(), vec![], vec![])
    );
}

#[test]
fn what_cannot_become_a_layer_is_refused() {
    let _host = shared();
    let source = Guest::busybox("lkn");
    let name = source.name.as_str();
    let clone = Clone::of("lko");
    let other = clone.0.name.as_str();
    let refused = |why: &str| {
        machinist(["clone", "--linked", name, other])
            .status(1)
            .stderr_has(why)
            .stderr_has("--full");
        assert_eq!((layers(name), traces(other)), (vec![], String::new()));
    };
    machinist(["read-only", name, "on"]).ok();
    refused("is read-only");
    machinist(["read-only", name, "off"]).ok();
    source.start();
    refused("runs, and what a linked clone lies on does not change");
    machinist(["stop", name]).ok();
}

#[test]
fn clones_of_clones_and_the_middle_removed() {
    let _host = shared();
    let source = Guest::busybox("chain");
    let clones: Vec<Clone> = (0..10).map(|_| Clone::of("chainc")).collect();
    let mut last = source.name.clone();
    for (at, clone) in clones.iter().enumerate() {
        let next = clone.0.name.as_str();
        machinist(["clone", "--linked", &last, next]).ok();
        let file = clone.0.image().join(format!("etc/of-{at}"));
        fs::write(&file, next).unwrap();
        sh("chown --reference \"$1\" \"$2\"", [&clone.0.image(), &file]).ok();
        last = next.to_owned();
    }
    machinist(["remove", "-y", &clones[4].0.name, &source.name]).ok();
    let bottom = &clones[9].0;
    for (at, clone) in clones.iter().enumerate() {
        assert_eq!(read(bottom.image().join(format!("etc/of-{at}"))), clone.0.name);
    }
    bottom.start();
    let count = machinist([
        "exec",
        &bottom.name,
        "--",
        "sh",
        "-c",
        "ls /etc/of-* | wc -l; stat -c %u /etc/of-* | sort -u",
    ]);
    count.ok().stdout_is("10\n0\n");
    machinist(["stop", &bottom.name]).ok();

    // On its own: nothing of the others is needed any more.
    machinist(["clone", "--flatten", &bottom.name])
        .ok()
        .stderr_has("lies on no layers any more");
    assert_eq!(mounted_on(&bottom.image()), "");
    machinist(["clone", "--flatten", &bottom.name])
        .ok()
        .stderr_has("lies on no layers");
    for clone in clones[..9].iter().filter(|clone| clone.0.name != clones[4].0.name) {
        machinist(["remove", "-y", &clone.0.name]).ok();
    }
    assert_eq!(layers("chain"), Vec::<PathBuf>::new());
    bottom.start();
    machinist([
        "exec",
        &bottom.name,
        "--",
        "sh",
        "-c",
        "ls /etc/of-* | wc -l; stat -c %u /etc/of-0",
    ])
    .ok()
    .stdout_is("10\n0\n");
    machinist(["stop", &bottom.name]).ok();
    machinist(["remove", "-y", &bottom.name]).ok();
}

#[test]
fn a_linked_machine_has_another_name() {
    let _host = shared();
    let source = Guest::busybox("lkr");
    // One with the host's users: nothing is shifted.
    source.write_settings("[Exec]\nPrivateUsers=no\nKillSignal=SIGUSR2\n");
    fs::write(source.image().join("etc/hostname"), format!("{}\n", source.name)).unwrap();
    let clone = Clone::of("lks");
    let new = Guest::new("lkt");
    let name = clone.0.name.as_str();
    machinist(["clone", "--linked", &source.name, name]).ok();
    machinist(["quota", name, "1G"])
        .status(1)
        .stderr_has("lies on layers")
        .stderr_has(&format!("machinist clone --flatten {name}"));
    let listed = machinist(["images", "--json", "--filter", &format!("name={name}")]).ok();
    assert_eq!(listed.json()[0]["storage"], "overlay");
    machinist(["rename", name, &new.name]).ok();
    assert_eq!(traces(&clone.0.name), "");
    assert_eq!(mounted_on(&new.image()), "overlay");
    assert_eq!(read(new.image().join("etc/hostname")), format!("{}\n", new.name));
    wait_until("it is unmounted", || {
        run("systemctl", ["stop", &mount_unit(&new)]).any().status == 0
    });
    new.start();
    machinist(["exec", &new.name, "--", "busybox", "stat", "-c", "%u", "/etc/hostname"])
        .ok()
        .stdout_is("0\n");
    machinist(["stop", &new.name]).ok();
    // In place and in an overlay over it.
    machinist(["run", &new.name, "--", "cat", "/etc/hostname"])
        .ok()
        .stdout_is(&format!("{}\n", new.name));
    machinist(["run", "-x", &new.name, "--", "sh", "-c", "echo x >/etc/hostname"]).ok();
    assert_eq!(read(new.image().join("etc/hostname")), format!("{}\n", new.name));
    machinist(["remove", "-y", &new.name, &source.name]).ok();
    assert_eq!((layers(&source.name), layers(&clone.0.name)), (vec![], vec![]));
}

#[test]
fn a_renaming_of_a_linked_machine_killed_before_each_step_is_done_or_not() {
    let _host = shared();
    let source = Guest::busybox("lki");
    let (clone, new) = (Clone::of("lkj"), Guest::new("lkl"));
    let (name, other) = (clone.0.name.as_str(), new.name.as_str());
    machinist(["clone", "--linked", &source.name, name]).ok();
    let (mut undone, mut finished) = (0, 0);
    loop {
        let output = machinist(["rename", name, other])
            .env("MACHINIST_DIE_AT_STEP", (undone + finished).to_string())
            .any();
        if output.status == 0 {
            break;
        }
        assert_eq!(output.status, 128 + 9, "{output:?}");
        swept(name);
        let (is, is_not) = if new.image().exists() {
            finished += 1;
            (other, name)
        } else {
            undone += 1;
            (name, other)
        };
        assert_eq!(traces(is_not), "", "step {}", undone + finished);
        machinist(["run", is, "--", "true"]).ok();
        if is == other {
            machinist(["rename", other, name]).ok();
        }
    }
    assert!(undone >= 5 && finished >= 3, "{undone} and {finished} steps");
    machinist(["remove", "-y", other, &source.name]).ok();
    assert_eq!((layers(&source.name), layers(name)), (vec![], vec![]));
}

#[test]
fn a_linked_clone_killed_before_each_step_leaves_nothing() {
    let _host = shared();
    let source = Guest::busybox("lkd");
    let name = source.name.as_str();
    fs::write(source.image().join("etc/mine"), "mine\n").unwrap();
    let clone = Clone::of("lke");
    let (clone, mut died) = (&clone.0, 0);
    let other = clone.name.as_str();
    loop {
        let output = machinist(["clone", "--linked", name, other])
            .env("MACHINIST_DIE_AT_STEP", died.to_string())
            .any();
        if output.status == 0 {
            break;
        }
        assert_eq!(output.status, 128 + 9, "step {died}\n{output:?}");
        // Whatever it was, it is the machine that it was.
        machinist(["run", name, "--", "cat", "/etc/mine"])
            .ok()
            .stdout_is("mine\n");
        swept(other);
        if clone.image().exists() {
            // All was done but to mount it, which systemd does when it starts.
            clone.start();
            machinist(["stop", other]).ok();
            machinist(["remove", "-y", other]).ok();
        }
        agree(other, There::Nowhere);
        assert_eq!((traces(other), layers(other)), (String::new(), vec![]), "step {died}");
        died += 1;
    }
    assert!(died >= 10, "only {died} steps");
    agree(other, There::Stopped);
    // What has changed of a linked machine becomes a layer itself, and that may be killed as well.
    fs::write(source.image().join("etc/mine"), "changed\n").unwrap();
    let second = Clone::of("lkf");
    let (second, mut died) = (&second.0, 0);
    while machinist(["clone", "--linked", name, &second.name])
        .env("MACHINIST_DIE_AT_STEP", died.to_string())
        .any()
        .status
        != 0
    {
        machinist(["run", name, "--", "cat", "/etc/mine"])
            .ok()
            .stdout_is("changed\n");
        swept(&second.name);
        if second.image().exists() {
            machinist(["remove", "-y", &second.name]).ok();
        }
        assert_eq!(traces(&second.name), "", "step {died}");
        died += 1;
    }
    assert_eq!(read(second.image().join("etc/mine")), "changed\n");
    assert_eq!(read(clone.image().join("etc/mine")), "mine\n");
    machinist(["clone", "--flatten", name])
        .env("MACHINIST_DIE_AT_STEP", "last")
        .status(128 + 9);
    swept(name);
    machinist(["clone", "--flatten", name]).any();
    assert_eq!(
        (mounted_on(&source.image()), read(source.image().join("etc/mine"))),
        (String::new(), "changed\n".into())
    );
    machinist(["remove", "-y", name, other, &second.name]).ok();
    for name in [name, other, &second.name] {
        assert_eq!(layers(name), Vec::<PathBuf>::new());
    }
}

#[test]
fn a_layer_that_was_changed_by_hand_is_told() {
    let _host = shared();
    let (source, clone) = (Guest::busybox("lkt"), Clone::of("lku"));
    let (name, other) = (source.name.as_str(), clone.0.name.as_str());
    fs::write(source.image().join("etc/both"), "first\n").unwrap();
    machinist(["clone", "--linked", name, other]).ok();
    let sealed: Vec<PathBuf> = layers(name)
        .into_iter()
        .filter(|layer| layer.join("sealed").is_symlink())
        .collect();
    let [base] = &sealed[..] else {
        panic!("one layer never changes again: {sealed:?}")
    };
    // Both write to it as they see it, and it stays what it is.
    let start = || machinist(["start", name, other]).ok().stderr;
    let stop = || machinist(["stop", name, other]).ok();
    let said = start();
    machinist([
        "exec",
        name,
        other,
        "--",
        "sh",
        "-c",
        "echo new >>/etc/both; rm -r /root; mv /etc /moved",
    ])
    .ok();
    stop();
    assert!(!said.contains("warning"), "{said}");
    let said = start();
    stop();
    assert!(!said.contains("warning"), "{said}");
    let file = base.join("tree/etc/both");
    sh("echo more >>\"$1\"", [file.to_str().unwrap()]).ok();
    let said = start();
    stop();
    assert_eq!(said.matches("warning").count(), 1, "{said}");
    assert!(said.contains(&format!("'{}' was changed", file.display())), "{said}");
    let both = [format!("{name}, {other}:"), format!("{other}, {name}:")];
    assert!(both.iter().any(|both| said.contains(both)), "{said}");
    let seal = base.join("sealed");
    assert!(said.contains(&format!("remove '{}'", seal.display())), "{said}");
    fs::remove_file(seal).unwrap();
    let said = start();
    assert!(!said.contains("warning"), "{said}");
}
