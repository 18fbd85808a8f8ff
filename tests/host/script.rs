//! create --copy and --run: what a machine is given before anybody sees it.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::run::unit_property;
use crate::sources::{Work, is_nowhere};
use crate::support::{
    Guest, There, agree, machine_property, machinist, make_busybox_image, run, sh, shared, wait_until,
};

/// Creates it of the host's busybox.
fn create<'a>(guest: &'a Guest, options: &[&'a str]) -> crate::support::Run {
    let words = [
        &["create", guest.name.as_str(), "template:busybox", "--network=none"],
        options,
    ]
    .concat();
    machinist(words)
}

#[test]
fn files_and_what_scripts_make_of_them_are_there_at_once() {
    let _host = shared();
    let work = Work::new("scripts");
    let guest = Guest::new("script");
    let site = work.0.join("site");
    fs::create_dir(&site).unwrap();
    fs::write(site.join("index"), "hello\n").unwrap();
    fs::set_permissions(site.join("index"), fs::Permissions::from_mode(0o640)).unwrap();
    run("chown", ["1:1", &work.file("site/index")]).ok();
    fs::write(
        work.file("first"),
        "#!/bin/sh -eu\ncat /srv/www/index\ngrep -c ^ /proc/self/uid_map; cat /proc/self/uid_map >/uid_map\n\
         ls /sys/class/net >/links; [ -z \"${SECRET-}\" ]; printf 'a\\033[2Jb\\n' >&2; id -u >/who\n\
         mkdir -p /srv/own; chown 7:7 /srv/own; ls -A / >/names; pwd >/where\nread line || echo nothing to read\n",
    )
    .unwrap();
    fs::write(work.file("second"), "cat /who >/second; ls /srv/own\n").unwrap();
    let copies = [
        format!("--copy={}:/srv/www", work.file("site")),
        format!("--copy={}:/opt/deep/er/", work.file("first")),
    ];
    let scripts = [
        format!("--run={}", work.file("first")),
        format!("--run={}", work.file("second")),
    ];
    let words: Vec<&str> = copies.iter().chain(&scripts).map(String::as_str).collect();
    create(&guest, &[&words[..], &["--dry-run"]].concat())
        .ok()
        .stdout_has(&format!("copy '{}' to '/srv/www' of the machine\n", work.file("site")))
        .stdout_has(&format!("run the script '{}' in it\n", work.file("second")));
    is_nowhere(&guest);
    let made = create(&guest, &words).env("SECRET", "x").ok();
    for line in ["hello", "nothing to read", "a\\u{1b}[2Jb"] {
        let line = format!("{}: {line}\n", guest.name);
        assert!(made.stderr.contains(&line), "no {line:?}: {made:?}");
    }
    let image = guest.image();
    let read = |name: &str| fs::read_to_string(image.join(name)).unwrap();
    assert_eq!(
        (read("who"), read("second"), read("where")),
        ("0\n".into(), "0\n".into(), "/\n".into())
    );
    assert_eq!(read("links"), "lo\n");
    // As root of the machine, which is nobody on the host.
    let shift: u64 = read("uid_map").split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(shift >= 524_288, "{shift}");
    let index = fs::metadata(image.join("srv/www/index")).unwrap();
    let root = fs::metadata(&image).unwrap();
    assert_eq!((index.uid(), index.mode() & 0o777), (root.uid(), 0o640));
    let own = fs::metadata(image.join("srv/own")).unwrap();
    assert_eq!((own.uid(), own.gid()), (root.uid() + 7, root.gid() + 7));
    assert_eq!(fs::metadata(image.join("opt/deep/er/first")).unwrap().uid(), root.uid());
    assert!(!image.join(".machinist-script").exists());
    assert!(read("names").contains(".machinist-script"));
    // Nothing of it goes on, and it starts as any other.
    wait_until("its unit is gone", || {
        unit_property(&guest.name, "LoadState") == "not-found"
    });
    agree(&guest.name, There::Stopped);
    guest.start();
    machinist([
        "exec",
        &guest.name,
        "--",
        "stat",
        "-c",
        "%u",
        "/srv/own",
        "/srv/www/index",
    ])
    .ok()
    .stdout_is("7\n0\n");
}

#[test]
fn scripts_have_the_network_that_was_asked_for() {
    let _host = shared();
    let work = Work::new("scriptnet");
    let guest = Guest::new("scriptnet");
    fs::write(
        work.file("script"),
        "ls /sys/class/net >/links; cat /etc/resolv.conf >/resolver; [ ! -L /etc/resolv.conf ]\n",
    )
    .unwrap();
    let tree = work.0.join("tree");
    make_busybox_image(&tree);
    symlink("../nowhere/resolv.conf", tree.join("etc/resolv.conf")).unwrap();
    let script = format!("--run={}", work.file("script"));
    let source = format!("{}/", tree.display());
    machinist([
        "create",
        &guest.name,
        &source,
        "--network=none",
        &script,
        "--run-network",
    ])
    .ok();
    let read = |name: &str| fs::read_to_string(guest.image().join(name)).unwrap();
    let host = sh("ls /sys/class/net; cat /etc/resolv.conf >&2", [""; 0]).ok();
    assert!(read("links").contains("lo\n"));
    assert!(
        read("links").lines().count() >= host.stdout.lines().count().min(2),
        "{}",
        read("links")
    );
    assert_eq!(read("resolver"), host.stderr);
    // The host's is not the machine's.
    let link = fs::read_link(guest.image().join("etc/resolv.conf")).unwrap();
    assert_eq!(link, Path::new("../nowhere/resolv.conf"));
}

#[test]
fn what_fails_leaves_nothing() {
    let _host = shared();
    let work = Work::new("scriptbad");
    let guest = Guest::new("scriptbad");
    fs::write(work.file("fails"), "echo before >&2\nexit 3\n").unwrap();
    fs::write(work.file("interpreter"), "#!/no/such\n").unwrap();
    fs::write(work.file("sleeps"), "echo asleep\nsleep 600\n").unwrap();
    let option = |name: &str| format!("--run={}", work.file(name));
    create(&guest, &[&option("fails")])
        .status(1)
        .stderr_has(&format!("{}: before\n", guest.name))
        .fails_with(
            &format!("script '{}' ended with status 3", work.file("fails")),
            "mend the script",
        );
    // systemd-machined of 262 unmounts a moment after the machine's end.
    let is_gone = || wait_until("nothing is left", || crate::create::traces(&guest.name).is_empty());
    is_gone();
    is_nowhere(&guest);
    create(&guest, &[&option("interpreter")])
        .status(1)
        .stderr_has("cannot run the script");
    is_gone();
    is_nowhere(&guest);
    create(&guest, &[&option("missing")])
        .status(1)
        .stderr_has("No such file");
    let copy = format!("--copy={}:/x", work.file("missing"));
    create(&guest, &[&copy]).status(1).stderr_has("No such file");
    create(&guest, &["--copy=/etc/passwd:relative"])
        .status(2)
        .stderr_has("slash");
    create(&guest, &["--run-network"]).status(2);
    is_nowhere(&guest);
    // A link of the tree that leads out of it leads nowhere out.
    let tree = work.0.join("tree");
    make_busybox_image(&tree);
    symlink("/root", tree.join("out")).unwrap();
    let source = format!("{}/", tree.display());
    let copy = format!("--copy={}:/out/stays/in", work.file("fails"));
    machinist(["create", &guest.name, &source, "--network=none", &copy]).ok();
    assert!(guest.image().join("root/stays/in").exists());
    assert!(!Path::new("/root/stays").exists());
    machinist(["remove", "--yes", &guest.name]).ok();
    // Stopped in the middle, by a word and without one.
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let running = create(&guest, &[&option("sleeps")]).spawn();
        wait_until("it sleeps", || running.has_said("asleep"));
        assert_eq!(machine_property(&guest.name, "Class").as_deref(), Some("container"));
        kill(Pid::from_raw(running.pid()), signal).unwrap();
        let ended = running.wait();
        assert_eq!(
            ended.status,
            if signal == Signal::SIGTERM { 130 } else { 137 },
            "{ended:?}"
        );
        wait_until("its machine is gone", || {
            machine_property(&guest.name, "Class").is_none()
        });
        wait_until("nothing is left", || {
            machinist(["clean"]).ok();
            crate::create::traces(&guest.name).is_empty()
        });
        is_nowhere(&guest);
    }
}
