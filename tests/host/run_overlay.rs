//! run -x where a copy would take long: an overlay, which leaves the image as it is and nothing behind.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::run::{copies, is_gone, unit, unit_property, until_it_runs};
use crate::support::{
    Disk, Guest, MACHINES, Running, alone, machine_property, machinist, make_busybox_image, newest_entry, run, sh,
    shared, unique, wait_until,
};

/// What the overlay of ours is called in a table of mounts.
const ROOT: &str = "machinist / overlay ";

/// Everything that is to be seen of a tree: names, owners, modes, times, links, contents.
fn everything(tree: &Path) -> String {
    let script = "cd \"$1\"; find . -printf '%p %y %m %U %G %s %T@ %C@ %n %l\\n' | sort; \
                  find . -type f -print0 | sort -z | xargs -0 sha256sum";
    sh(script, [tree]).ok().stdout
}

/// An image with files of its own.
fn image(stem: &str) -> Guest {
    let guest = Guest::busybox(stem);
    let script = "cd \"$1\"; mkdir -p data/sub; echo first >data/sub/file; chown 1000:1001 data/sub/file; \
                  ln data/sub/file data/hard; echo second >data/setuid; chmod 4755 data/setuid; chmod 1777 tmp; chmod 711 .";
    sh(script, [guest.image()]).ok();
    guest
}

/// A copy of an image that runs a command until it is told to end.
fn spawn(name: &str, copy: &str, options: &[&str], seconds: &str) -> Running {
    let words = ["run", "-x", name, "--name", copy]
        .into_iter()
        .chain(options.iter().copied());
    let running = machinist(words.chain(["--", "sleep", seconds])).spawn();
    until_it_runs(running, &format!("sleep {seconds}"))
}

/// Where the users of a machine begin on the host.
fn first_user(name: &str) -> u32 {
    let leader = machine_property(name, "Leader").unwrap();
    let map = fs::read_to_string(format!("/proc/{leader}/uid_map")).unwrap();
    let fields: Vec<u32> = map.split_whitespace().map(|field| field.parse().unwrap()).collect();
    assert_eq!((fields[0], fields[2]), (0, 65536), "{map}");
    fields[1]
}

#[track_caller]
fn ends(running: &Running) {
    running.signal(Signal::SIGTERM);
}

#[test]
fn an_overlay_shows_the_image_and_leaves_it_as_it_is() {
    let _host = shared();
    let guest = image("ovl");
    let name = guest.name.as_str();
    let script = r#"grep -q "^machinist / overlay " /proc/mounts && echo overlay
stat -c '%n %u:%g %a %h' / /data/sub /data/sub/file /data/setuid /tmp /bin/busybox
before=$(stat -c %i /data/sub); mv /data/sub /data/moved; test "$before" = "$(stat -c %i /data/moved)" && echo renamed
echo changed >>/data/hard; cat /data/moved/file
ln /data/setuid /data/linked; stat -c '%h' /data/linked; chown 5:6 /data/linked; stat -c '%u:%g' /data/setuid
rm -r /data/moved; ls /data; mkdir /data/sub; ls -A /data/sub; chmod 700 /; touch /new; stat -c '%u' /new"#;
    let seen = "overlay
/ 0:0 711 STAR
/data/sub 0:0 755 2
/data/sub/file 1000:1001 644 2
/data/setuid 0:0 4755 1
/tmp 0:0 1777 STAR
/bin/busybox 0:0 755 1
renamed
first
changed
2
5:6
hard
linked
setuid
0
";
    // How many directories are in it is not told alike by all kernels.
    let without_count = |text: &str| {
        let lines = text.lines().map(|line| match line.split(' ').next() {
            Some("/" | "/tmp") => line.rsplit_once(' ').unwrap().0,
            _ => line,
        });
        lines.collect::<Vec<_>>().join("\n")
    };
    // Files as they are made; as systemd-nspawn leaves them on filesystems that do not map owners.
    for (shift, options) in [
        (0, &[] as &[&str]),
        (0, &["--private-users=1879179264:65536"]),
        (0, &["--private-users=no"]),
        (0, &["--private-users=identity"]),
        (0x000e_0000, &[]),
        (0x000e_0000, &["--private-users=917504:65536"]),
    ] {
        if shift != 0 {
            let shifted = "find \"$1\" -printf '%p\\0%U\\0%G\\0' | while IFS= read -r -d '' p && read -r -d '' u && read -r -d '' g; do \
                           (( u >= $2 )) || { m=$(stat -c %a \"$p\"); chown -h $((u + $2)):$((g + $2)) \"$p\"; \
                           [[ -L $p ]] || chmod \"$m\" \"$p\"; }; done";
            sh(
                shifted,
                [guest.image().to_string_lossy().into_owned(), shift.to_string()],
            )
            .ok();
        }
        let before = everything(&guest.image());
        let words = ["run", "-x", name].into_iter().chain(options.iter().copied());
        let ran = machinist(words.chain(["--", "sh", "-c", script])).ok();
        assert_eq!(
            without_count(&ran.stdout),
            without_count(seen),
            "{shift} {options:?}: {ran:?}"
        );
        assert_eq!(everything(&guest.image()), before, "{shift} {options:?}");
        assert!(copies(name).is_empty());
    }
    assert!(
        !Path::new("/run/systemd/nspawn/locks")
            .join(lock_of(&guest.image()))
            .exists()
    );
}

/// How systemd calls the lock of an image.
fn lock_of(image: &Path) -> String {
    let found = fs::metadata(image).unwrap();
    format!("inode-{}:{}", found.dev(), found.ino())
}

#[test]
fn several_at_once_are_machines_of_their_own() {
    let _host = shared();
    let guest = image("ovltwo");
    let name = guest.name.as_str();
    let before = everything(&guest.image());
    let both = [unique("ovlone"), unique("ovlother")];
    // Nobody waits for the other before it picks its users.
    let start =
        |copy: &str, seconds: &str| machinist(["run", "-x", name, "--name", copy, "--", "sleep", seconds]).spawn();
    let [one, other] = [start(&both[0], "6101"), start(&both[1], "6102")];
    let running = [until_it_runs(one, "sleep 6101"), until_it_runs(other, "sleep 6102")];
    let users = [first_user(&both[0]), first_user(&both[1])];
    assert_ne!(users[0], users[1]);
    assert!(users.iter().all(|first| *first >= 0x8_0000), "private users: {users:?}");
    for copy in &both {
        let tree = copies(name).into_iter().find(|directory| {
            machine_property(copy, "RootDirectory").unwrap() == directory.join("tree").to_string_lossy()
        });
        // What it is mounted on is seen outside, and nothing else.
        assert_eq!(fs::read_dir(tree.unwrap().join("tree")).unwrap().count(), 0);
        assert_eq!(machine_property(copy, "Unit"), Some(unit(copy)));
        let row = &machinist(["list", "--json", "--filter", &format!("name={copy}")])
            .ok()
            .json()[0];
        assert_eq!(
            (&row["name"], &row["state"]),
            (&copy.as_str().into(), &"running".into())
        );
        let status = machinist(["status", copy, "--json"]).ok().json();
        assert_eq!(
            status[0]["leader"].to_string(),
            machine_property(copy, "Leader").unwrap()
        );
        run("machinectl", ["status", "--no-pager", copy])
            .ok()
            .stdout_has("OS: BusyBox 1.0");
        machinist(["exec", copy, "--", "sh", "-c", "hostname; touch /seen; cat /data/hard"])
            .ok()
            .stdout_is(&format!("{copy}\nfirst\n"));
        let said = newest_entry(&[format!("UNIT={}", unit(copy))]).unwrap();
        assert_eq!(said["JOB_RESULT"], "done", "{said}");
    }
    assert!(
        !fs::read_to_string("/proc/self/mountinfo")
            .unwrap()
            .contains(" machinist ")
    );
    // systemd-nspawn has the image locked, also when we are killed; nothing in the machine has that file open.
    let lock = Path::new("/run/systemd/nspawn/locks").join(lock_of(&guest.image()));
    let has_it = |pid: &str| {
        let mut open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        open.any(|fd| fs::read_link(fd.path()).is_ok_and(|path| path == lock))
    };
    assert!(has_it(&unit_property(&both[0], "MainPID")));
    assert!(!has_it(&machine_property(&both[0], "Leader").unwrap()));
    let payload = run("pgrep", ["-xf", "sleep 6101"]).ok().stdout;
    assert!(!has_it(payload.trim()));
    // The image is theirs for that time.
    machinist(["start", name]).status(1).stderr_has("its image is in use");
    machinist(["remove", "-y", name]).status(1).stderr_has("is in use by");
    running.iter().for_each(ends);
    for running in running {
        assert_eq!(running.wait().status, 143);
    }
    both.iter().for_each(|copy| is_gone(copy));
    assert_eq!(everything(&guest.image()), before);
    run("systemctl", ["reset-failed", &guest.unit()]).any();
    guest.start();
    // One that runs changes: then it is a copy.
    let ran = machinist(["run", "-x", name, "--", "cat", "/proc/mounts"]).ok();
    assert!(!ran.stdout.contains(ROOT), "{ran:?}");
    assert!(copies(name).is_empty());
}

#[test]
fn whatever_is_killed_no_mount_is_left() {
    let _host = shared();
    let guest = image("ovlkill");
    let name = guest.name.as_str();
    let before = everything(&guest.image());
    let nothing_left = |copy: &str| {
        wait_until("its unit is gone", || unit_property(copy, "LoadState") == "not-found");
        is_gone(copy);
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(
            !mounts.contains("machinist-run") && !mounts.contains(" machinist "),
            "{mounts}"
        );
        wait_until("the sweep has it", || {
            machinist(["clean"]).ok();
            copies(name).is_empty()
        });
        assert_eq!(everything(&guest.image()), before);
    };
    let copy = unique("ovlkilled");
    let running = spawn(name, &copy, &[], "6111");
    running.signal(Signal::SIGKILL);
    running.wait();
    nothing_left(&copy);
    let running = spawn(name, &copy, &[], "6112");
    let main: i32 = unit_property(&copy, "MainPID").parse().unwrap();
    kill(Pid::from_raw(main), Signal::SIGKILL).unwrap();
    assert_ne!(running.wait().status, 0);
    nothing_left(&copy);
    // At any time, the helper's among them.
    for after in [5, 15, 25, 40, 60, 90] {
        let running = machinist(["run", "-x", name, "--name", &copy, "--", "sleep", "6113"]).spawn();
        wait_until("its unit begins", || {
            unit_property(&copy, "MainPID").parse::<i32>().is_ok_and(|pid| pid > 0)
        });
        thread::sleep(Duration::from_millis(after - 5));
        run("systemctl", ["kill", "-s", "KILL", &unit(&copy)]).any();
        let ran = running.wait();
        assert_ne!(ran.status, 0, "{ran:?}");
        nothing_left(&copy);
    }
}

#[test]
fn a_hostile_image_leads_nowhere() {
    let _host = shared();
    let guest = image("ovlevil");
    let name = guest.name.as_str();
    let outside = format!("/root/{name}.d");
    fs::create_dir(&outside).unwrap();
    let tree = guest.image();
    for place in [
        "run", "tmp", "proc", "sys", "dev", "root", "lower", "upper", "work", "tree",
    ] {
        let place = tree.join(place);
        let _ = fs::remove_dir(&place);
        symlink(&outside, &place).unwrap();
    }
    // What an overlay would say of itself.
    let script = "cd \"$1\"; mkdir evil; setfattr -n trusted.overlay.redirect -v /etc evil; \
                  setfattr -n trusted.overlay.metacopy data/setuid; setfattr -n trusted.overlay.redirect -v /bin/busybox data/setuid";
    sh(script, [&tree]).ok();
    let before = everything(&tree);
    let script =
        "ls -A /evil; cat /data/setuid; touch /run/in /tmp/in /root/in /tree/in /upper/in; echo >/etc/in; true";
    for options in [&[] as &[&str], &["--private-users=no"]] {
        let words = ["run", "-x", name].into_iter().chain(options.iter().copied());
        let ran = machinist(words.chain(["--", "sh", "-c", script])).any();
        assert!([0, 125].contains(&ran.status), "{ran:?}");
        assert!(ran.status != 0 || ran.stdout == "second\n", "{ran:?}");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        assert_eq!(everything(&tree), before);
        assert!(copies(name).is_empty());
    }
    fs::remove_dir(&outside).unwrap();
}

#[test]
fn what_else_machines_lie_on() {
    let _host = alone();
    // Full in the middle of the command, and before it.
    {
        let disk = Disk::ext4(Path::new(MACHINES), "24M");
        let guest = Guest::new("ovlfull");
        let name = guest.name.as_str();
        make_busybox_image(&guest.image());
        let before = everything(&guest.image());
        let script = "grep -c '^machinist / overlay ' /proc/mounts; dd if=/dev/zero of=/fill bs=1M 2>&1 | grep -o 'No space left.*'";
        let ran = machinist(["run", "-x", name, "--", "sh", "-c", script]).ok();
        assert_eq!(ran.stdout, "1\nNo space left on device\n", "{ran:?}");
        assert!(copies(name).is_empty());
        run("dd", ["if=/dev/zero", &format!("of={MACHINES}/fill"), "bs=4k"]).status(1);
        let ran = machinist(["run", "-x", name, "--", "true"]).status(125);
        ran.stderr_has("No space left on device").stderr_has("machinist clean");
        assert!(copies(name).is_empty());
        fs::remove_file(Path::new(MACHINES).join("fill")).unwrap();
        assert_eq!(everything(&guest.image()), before);
        drop(guest);
        drop(disk);
    }
    // An overlay takes no other below with its owners shifted: there it is a copy.
    let over = "mkdir -p /root/ovl/upper /root/ovl/work; \
                mount -t overlay overlay -o lowerdir=\"$1\",upperdir=/root/ovl/upper,workdir=/root/ovl/work \"$1\"";
    sh(over, [MACHINES]).ok();
    let guest = Guest::busybox("ovlover");
    let ran = machinist(["run", "-x", &guest.name, "--", "cat", "/proc/mounts"]).any();
    let left = copies(&guest.name);
    drop(guest);
    sh("umount \"$1\"; rm -rf /root/ovl", [MACHINES]).ok();
    assert_eq!(ran.status, 0, "{ran:?}");
    assert!(!ran.stdout.contains(ROOT), "{ran:?}");
    assert!(left.is_empty());
}
