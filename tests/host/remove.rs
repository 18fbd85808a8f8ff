//! remove: what goes, what is kept, and what is refused.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::create::traces;
use crate::support::{
    Disk, Guest, PATIENCE, There, agree, holds_within, machines_of_machined, machinist, make_busybox_image, run, sh,
    shared, unit_property,
};

/// The machine's directories in the trash.
fn trash(name: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir("/var/lib/machinist/trash") else {
        return Vec::new();
    };
    let ours = entries.flatten().map(|entry| entry.path());
    ours.filter(|path| {
        path.file_name()
            .unwrap()
            .to_string_lossy()
            .starts_with(&format!("{name}-"))
    })
    .collect()
}

#[test]
fn a_running_machine_is_refused_unless_forced() {
    let _host = shared();
    let guest = Guest::new("rmrun");
    let name = &guest.name;
    machinist(["create", name, "template:busybox", "--start", "--enable"]).ok();
    machinist(["remove", "-y", name]).status(1).fails_with(
        &format!("machine '{name}' is running"),
        &format!("machinist stop {name}"),
    );
    agree(name, There::Running);
    machinist(["remove", "-y", "--force", name])
        .ok()
        .stderr_has(&format!("removed {name}\n"));
    guest.is_down();
    agree(name, There::Nowhere);
    assert_eq!(
        traces(name),
        Vec::<String>::new(),
        "image, settings, autostart: all of ours goes"
    );
    let enabled = run("systemctl", ["is-enabled", &guest.unit()]).any().stdout;
    assert_ne!(enabled, "enabled\n");
    machinist(["remove", "-y", name])
        .status(3)
        .fails_with(&format!("no machine or image '{name}'"), "machinist images");
}

#[test]
fn an_image_in_use_under_another_name_is_refused() {
    let _host = shared();
    let (image, other) = (Guest::busybox("rmuse"), Guest::new("rmother"));
    let unit = format!("run-{}.service", other.name);
    let path = image.image();
    let (path, name) = (path.to_string_lossy(), &image.name);
    let nspawn = ["systemd-nspawn", "-q", "--boot", "--private-network", "--settings=no"];
    let options = ["-q", "--unit", &unit, "-p", "KillMode=mixed"];
    let place = ["-D", &path, "-M", &other.name];
    run("systemd-run", options.iter().chain(&nspawn).chain(&place)).ok();
    assert!(holds_within(PATIENCE, || machines_of_machined().contains(&other.name)));
    for options in [&["-y"][..], &["-y", "--force"]] {
        let pid = unit_property(&unit, "MainPID");
        machinist(["remove", name].iter().chain(options)).status(1).fails_with(
            &format!("image '{path}' is in use by systemd-nspawn (PID {pid})"),
            "machinectl list",
        );
    }
    assert!(image.image().join("bin/busybox").exists());
    agree(name, There::Stopped);
    run("systemctl", ["kill", "-s", "KILL", &unit]).ok();
    let ended = || machinist(["remove", "-y", name]).any().status == 0;
    assert!(holds_within(PATIENCE, ended));
    let lock = image.image().with_file_name(format!(".#{name}.lck"));
    assert!(!lock.exists(), "its lock is left");
    trash(name)
        .iter()
        .for_each(|directory| fs::remove_dir_all(directory).unwrap());
}

#[test]
fn what_cannot_be_removed_still_starts_at_boot() {
    let _host = shared();
    let guest = Guest::busybox("rmfail");
    let name = &guest.name;
    machinist(["enable", name]).ok();
    // The last of what can fail: by then the image is out of sight and autostart is off.
    run("chattr", ["+i", &guest.settings().to_string_lossy()]).ok();
    machinist(["remove", "-y", name])
        .status(1)
        .stderr_has("cannot move")
        .lacks("cannot undo");
    run("chattr", ["-i", &guest.settings().to_string_lossy()]).ok();
    agree(name, There::Stopped);
    assert_eq!(
        run("systemctl", ["is-enabled", &guest.unit()]).any().stdout,
        "enabled\n"
    );
    machinist(["remove", "-y", name]).ok();
    trash(name)
        .iter()
        .for_each(|directory| fs::remove_dir_all(directory).unwrap());
}

#[test]
fn nothing_is_left_of_a_failed_machine() {
    let _host = shared();
    let guest = Guest::busybox("rmbad");
    let name = &guest.name;
    fs::remove_file(guest.image().join("sbin/init")).unwrap();
    machinist(["start", name]).status(1);
    assert_eq!(guest.property("ActiveState"), "failed");
    machinist(["remove", "-y", name]).ok();
    assert_eq!(guest.property("ActiveState"), "inactive");
    agree(name, There::Nowhere);
    machinist(["status", name]).status(3);
    trash(name)
        .iter()
        .for_each(|directory| fs::remove_dir_all(directory).unwrap());
}

#[test]
fn it_asks_on_a_terminal_only() {
    let _host = shared();
    let guest = Guest::new("rmask");
    let name = &guest.name;
    machinist(["create", name, "template:busybox"]).ok();
    let ask = |answer: &str, options: &str| {
        let command = format!("machinist remove {options} {name}");
        sh("echo \"$1\" | script -qec \"$2\" /dev/null", [answer, &command])
    };
    ask("n", "")
        .status(1)
        .stdout_has(&format!("Remove '{name}' with everything in it? [y/N]"))
        .stdout_has("nothing was removed");
    agree(name, There::Stopped);
    ask("", "").status(1);
    agree(name, There::Stopped);
    ask("y", "").ok().stdout_has(&format!("removed {name}"));
    agree(name, There::Nowhere);
    machinist(["create", name, "template:busybox"]).ok();
    ask("n", "-y").ok().lacks("[y/N]");
    agree(name, There::Nowhere);
    // Nobody is there to ask.
    machinist(["create", name, "template:busybox"]).ok();
    machinist(["remove", name]).ok().lacks("[y/N]");
    agree(name, There::Nowhere);
}

#[test]
fn what_an_administrator_wrote_goes_to_the_trash_and_is_named() {
    let _host = shared();
    let guest = Guest::busybox("rmadm");
    let name = &guest.name;
    let settings = fs::read_to_string(guest.settings()).unwrap();
    guest.write_drop_in("[Service]\nNice=5\n");
    let output = machinist(["remove", "-y", name]).ok();
    let kept = trash(name);
    let find = |path: &str| {
        kept.iter()
            .map(|directory| directory.join(path))
            .find(|path| path.exists())
    };
    let file = find(&format!("{name}.nspawn")).unwrap_or_else(|| panic!("no settings in {kept:?}"));
    assert_eq!(fs::read_to_string(&file).unwrap(), settings);
    let drop_in = find(&format!("{}.d/50-test.conf", guest.unit())).unwrap_or_else(|| panic!("no drop-in in {kept:?}"));
    assert_eq!(fs::read_to_string(drop_in).unwrap(), "[Service]\nNice=5\n");
    output
        .stderr_has(&file.to_string_lossy())
        .stderr_has(&format!("{}.d", guest.unit()));
    agree(name, There::Nowhere);
    assert!(!guest.settings().exists() && !guest.drop_ins().exists());
    kept.iter().for_each(|directory| fs::remove_dir_all(directory).unwrap());
}

#[test]
fn our_own_settings_go_unless_an_administrator_changed_them() {
    let _host = shared();
    let guest = Guest::new("rmown");
    let name = &guest.name;
    machinist(["create", name, "template:busybox"]).ok();
    assert!(guest.settings().exists());
    machinist(["remove", "-y", name]).ok();
    assert!(!guest.settings().exists());
    assert_eq!(trash(name), Vec::<PathBuf>::new());

    machinist(["create", name, "template:busybox"]).ok();
    sh("echo '# mine' >>\"$1\"", [guest.settings()]).ok();
    machinist(["remove", "-y", name])
        .ok()
        .stderr_has("kept what was not machinist's");
    let kept = trash(name);
    assert!(
        fs::read_to_string(kept[0].join(format!("{name}.nspawn")))
            .unwrap()
            .ends_with("# mine\n")
    );
    fs::remove_dir_all(&kept[0]).unwrap();
}

#[test]
fn the_journal_link_goes() {
    let _host = shared();
    let guest = Guest::new("rmlog");
    let name = &guest.name;
    machinist(["create", name, "template:busybox"]).ok();
    let id = run("systemd-id128", ["new"]).ok().stdout.trim().to_owned();
    fs::write(guest.image().join("etc/machine-id"), format!("{id}\n")).unwrap();
    let link = Path::new("/var/log/journal").join(&id);
    symlink(guest.image().join("var/log/journal").join(&id), &link).unwrap();
    machinist(["remove", "-y", name]).ok();
    assert!(fs::symlink_metadata(&link).is_err(), "the link is still there");
    agree(name, There::Nowhere);
}

#[test]
fn images_elsewhere_are_removed_where_they_lie() {
    let _host = shared();
    let guest = Guest::new("rmelse");
    let image = Path::new("/run/machines").join(&guest.name);
    make_busybox_image(&image);
    agree(&guest.name, There::Stopped);
    machinist(["remove", "-y", &guest.name]).ok();
    assert!(!image.exists());
    assert_eq!(
        fs::read_dir("/run/machines")
            .unwrap()
            .flatten()
            .filter(|e| e.file_name().to_string_lossy().contains(&guest.name))
            .count(),
        0
    );
    agree(&guest.name, There::Nowhere);

    let raw = Guest::new("rmraw");
    fs::write(
        raw.image().with_file_name(format!("{}.raw", raw.name)),
        vec![0; 1 << 16],
    )
    .unwrap();
    agree(&raw.name, There::Stopped);
    machinist(["remove", "-y", &raw.name]).ok();
    agree(&raw.name, There::Nowhere);
    assert_eq!(traces(&raw.name), Vec::<String>::new());
}

#[test]
fn of_an_image_that_is_a_link_only_the_link_goes() {
    let _host = shared();
    let guest = Guest::new("rmlink");
    let real = PathBuf::from(format!("/root/{}.tree", guest.name));
    make_busybox_image(&real);
    symlink(&real, guest.image()).unwrap();
    agree(&guest.name, There::Stopped);
    machinist(["remove", "-y", &guest.name]).ok();
    agree(&guest.name, There::Nowhere);
    assert!(real.join("bin/busybox").exists(), "what the link led to was removed");
    assert_eq!(traces(&guest.name), Vec::<String>::new());
    fs::remove_dir_all(real).unwrap();
}

#[test]
fn immutable_files_inside_are_no_obstacle() {
    let _host = shared();
    let guest = Guest::busybox("rmimm");
    let file = guest.image().join("usr/lib/fixed");
    fs::write(&file, "x").unwrap();
    run("chattr", ["+i", &file.to_string_lossy()]).ok();
    let read_only = Guest::busybox("rmro");
    run("machinectl", ["read-only", &read_only.name, "yes"]).ok();
    for guest in [&guest, &read_only] {
        machinist(["remove", "-y", &guest.name]).ok();
        agree(&guest.name, There::Nowhere);
        assert!(!guest.image().exists());
        let left: Vec<String> = traces(&guest.name)
            .into_iter()
            .filter(|path| !path.contains("/trash/"))
            .collect();
        assert_eq!(left, Vec::<String>::new());
    }
}

#[test]
fn read_only_subvolumes_are_removed_as_machinectl_does() {
    let _host = shared();
    // Where other tests have no images.
    let directory = Path::new("/etc/machines");
    let _btrfs = Disk::btrfs(directory);
    let guest = Guest::new("rmsub");
    let name = &guest.name;
    let image = directory.join(name);
    run("btrfs", ["-q", "subvolume", "create", &image.to_string_lossy()]).ok();
    make_busybox_image(&image);
    run("machinectl", ["read-only", name, "yes"]).ok();
    let read_only = || {
        run("btrfs", ["property", "get", &image.to_string_lossy(), "ro"])
            .ok()
            .stdout
    };
    assert_eq!(read_only(), "ro=true\n");
    // A failure leaves it as it was.
    guest.write_settings("");
    run("chattr", ["+i", &guest.settings().to_string_lossy()]).ok();
    machinist(["remove", "-y", name]).status(1).stderr_has("cannot move");
    run("chattr", ["-i", &guest.settings().to_string_lossy()]).ok();
    assert_eq!(read_only(), "ro=true\n");
    machinist(["remove", "-y", name]).ok();
    agree(name, There::Nowhere);
    assert_eq!(fs::read_dir(directory).unwrap().count(), 0);
    trash(name)
        .iter()
        .for_each(|directory| fs::remove_dir_all(directory).unwrap());
}

#[test]
fn a_dry_run_of_remove_touches_nothing() {
    let _host = shared();
    let guest = Guest::busybox("rmdry");
    let before = traces(&guest.name);
    machinist(["remove", &guest.name, "--dry-run"])
        .ok()
        .stdout_has(&format!("take image '/var/lib/machines/{}' out of sight", guest.name))
        .stdout_has(&format!("move '{}' to the trash", guest.settings().display()));
    assert_eq!(traces(&guest.name), before);
    agree(&guest.name, There::Stopped);
}
