//! cp: what is copied is the same on both sides, whose files they are included, and no machine leads out of itself.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::{Guest, machinist, run, sh, shared, unique, wait_until};

/// A directory of the host that is gone with the test.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        let path = PathBuf::from(format!("/root/{}", unique("cp")));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.0.join(name).to_string_lossy().into_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Hidden names that a copy is made under.
#[track_caller]
pub(crate) fn leaves_nothing(directory: &Path) {
    let left = run(
        "find",
        [
            directory.as_os_str(),
            "-xdev".as_ref(),
            "-name".as_ref(),
            ".#machinist-*".as_ref(),
        ],
    )
    .ok();
    assert_eq!(left.stdout, "", "something half-made is left");
}

fn set_attribute(path: &str, name: &str, value: &[u8]) {
    rustix::fs::setxattr(path, name, value, rustix::fs::XattrFlags::empty()).unwrap();
}

/// The value of an extended attribute; nothing if there is none.
fn attribute(path: &str, name: &str) -> Vec<u8> {
    let mut value = vec![0; 1024];
    let length = rustix::fs::getxattr(path, name, &mut value[..]).unwrap_or(0);
    value.truncate(length);
    value
}

/// An ACL that lets one more user read and write, see <linux/posix_acl_xattr.h>.
fn acl(user: u32) -> Vec<u8> {
    let entries: [(u16, u16, u32); 5] = [
        (0x01, 7, u32::MAX),
        (0x02, 6, user),
        (0x04, 5, u32::MAX),
        (0x10, 7, u32::MAX),
        (0x20, 5, u32::MAX),
    ];
    let mut acl = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        acl.extend([tag.to_le_bytes(), permissions.to_le_bytes()].concat());
        acl.extend(id.to_le_bytes());
    }
    acl
}

/// Kind, mode, owner, size, number of names, link and time of all that is in a directory, and the sums of files.
#[track_caller]
fn description(directory: &str) -> String {
    let script = "cd \"$1\"; find . -printf '%y %m %U:%G %n %l %T@ %s %P\\0' | LC_ALL=C sort -z | \
                  sed -z '/^d/ s/ [0-9]* \\([^ ]*\\)$/ \\1/' | tr '\\0' '\\n'; \
                  find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum";
    sh(script, [directory]).ok().stdout
}

/// A tree with everything that a file can be.
fn make_tree(at: &Path) {
    fs::create_dir_all(at.join("d/e")).unwrap();
    fs::write(at.join("plain"), "plain\n").unwrap();
    fs::set_permissions(at.join("plain"), fs::Permissions::from_mode(0o640)).unwrap();
    chown(at.join("plain"), Some(33), Some(34)).unwrap();
    fs::write(at.join("set"), "#!/bin/sh\n").unwrap();
    chown(at.join("set"), Some(1000), Some(1000)).unwrap();
    fs::set_permissions(at.join("set"), fs::Permissions::from_mode(0o6755)).unwrap();
    fs::hard_link(at.join("plain"), at.join("d/again")).unwrap();
    symlink("/etc/shadow", at.join("d/absolute")).unwrap();
    symlink("../plain", at.join("d/relative")).unwrap();
    chown(at.join("d/e"), Some(7), Some(8)).unwrap();
    fs::set_permissions(at.join("d/e"), fs::Permissions::from_mode(0o2750)).unwrap();
    let odd = [
        OsStr::from_bytes(b"new\nline"),
        OsStr::from_bytes(b"caf\xe9"),
        OsStr::from_bytes(b"-n ame"),
    ];
    for name in odd {
        fs::write(at.join(name), name.as_bytes()).unwrap();
    }
    sh("truncate -s 64M \"$1\"", [at.join("sparse")]).ok();
    sh(
        "printf end >>\"$1\"; mkfifo \"$2\"",
        [at.join("sparse"), at.join("fifo")],
    )
    .ok();
    sh("touch -h -d @1600000000.5 \"$1\"/* \"$1\"/d/* \"$1\"", [at]).ok();
}

#[test]
fn all_of_a_tree_goes_into_a_machine_and_back() {
    let _host = shared();
    let guest = Guest::busybox("cpall");
    let name = guest.name.as_str();
    guest.start();
    let scratch = Scratch::new();
    make_tree(&scratch.0.join("tree"));
    let tree = scratch.path("tree");
    set_attribute(&format!("{tree}/plain"), "user.colour", b"red");
    set_attribute(&format!("{tree}/d"), "system.posix_acl_access", &acl(1000));

    let copied = machinist(["cp", "--json", "-a", &tree, &format!("{name}:/root/tree")])
        .ok()
        .json();
    assert_eq!((&copied["files"], &copied["links"]), (&8.into(), &2.into()), "{copied}");
    assert_eq!(copied["stripped"], 0);
    // What the machine sees.
    let seen = |path: &str| {
        let format = "%F %a %u:%g %h";
        let words = ["/bin/busybox", "stat", "-c", format, path];
        guest.inside(words).ok().stdout.trim_end().to_owned()
    };
    assert_eq!(seen("/root/tree/plain"), "regular file 640 33:34 2");
    assert_eq!(seen("/root/tree/set"), "regular file 6755 1000:1000 1");
    assert_eq!(seen("/root/tree/d/e"), "directory 2750 7:8 2");
    assert_eq!(seen("/root/tree/fifo"), "fifo 644 0:0 1");
    assert_eq!(seen("/root/tree/d/absolute"), "symbolic link 777 0:0 1");
    let blocks = guest
        .inside(["/bin/busybox", "stat", "-c", "%b", "/root/tree/sparse"])
        .ok()
        .stdout;
    assert!(
        blocks.trim_end().parse::<u64>().unwrap() < 1000,
        "holes are filled: {blocks}"
    );

    // Private users: what the host sees is shifted, and the ACL with it.
    let map = fs::read_to_string(format!("/proc/{}/uid_map", guest.leader())).unwrap();
    let first: u32 = map.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert_ne!(first, 0, "the machine has no private users");
    let theirs = format!("/proc/{}/root/root/tree", guest.leader());
    assert_eq!(fs::metadata(format!("{theirs}/plain")).unwrap().uid(), first + 33);
    assert_eq!(
        attribute(&format!("{theirs}/d"), "system.posix_acl_access"),
        acl(first + 1000)
    );

    // The other way, and nothing has changed.
    machinist([
        "cp",
        "-a",
        "--keep-special",
        &format!("{name}:/root/tree"),
        &scratch.path("back"),
    ])
    .ok();
    assert_eq!(description(&scratch.path("back")), description(&tree));
    let back = scratch.path("back");
    assert_eq!(attribute(&format!("{back}/plain"), "user.colour"), b"red");
    assert_eq!(attribute(&format!("{back}/d"), "system.posix_acl_access"), acl(1000));
    // Without leave no program runs as another on the host.
    machinist(["cp", "-a", &format!("{name}:/root/tree/set"), &scratch.path("set")])
        .ok()
        .stderr_has("1 programs lost set-user-ID");
    let set = fs::metadata(scratch.path("set")).unwrap();
    assert_eq!((set.mode() & 0o7777, set.uid()), (0o755, 1000));
    // A stopped machine is the same.
    machinist(["terminate", name]).ok();
    machinist([
        "cp",
        "-a",
        "--keep-special",
        &format!("{name}:/root/tree"),
        &scratch.path("still"),
    ])
    .ok();
    assert_eq!(description(&scratch.path("still")), description(&tree));
    machinist(["cp", "-a", &tree, &format!("{name}:/root/two")]).ok();
    machinist([
        "cp",
        "-a",
        "--keep-special",
        &format!("{name}:root/two/."),
        &scratch.path("two"),
    ])
    .ok();
    assert_eq!(description(&scratch.path("two")), description(&tree));
    guest.start();
    assert_eq!(seen("/root/two/plain"), "regular file 640 33:34 2");
    // Without -a it is the root's, and its mode is what it was.
    machinist(["cp", "-r", &tree, &format!("{name}:/root/mine")]).ok();
    assert_eq!(seen("/root/mine/plain"), "regular file 640 0:0 1");
    assert_eq!(seen("/root/mine/set"), "regular file 755 0:0 1");
    assert_eq!(seen("/root/mine/d/relative"), "symbolic link 777 0:0 1");
    leaves_nothing(&guest.image());
    leaves_nothing(&scratch.0);
}

#[test]
fn a_destination_is_what_cp_takes_it_for() {
    let _host = shared();
    let guest = Guest::busybox("cpdst");
    let name = guest.name.as_str();
    guest.start();
    let scratch = Scratch::new();
    let file = scratch.path("file");
    fs::write(&file, "one\n").unwrap();
    let to = |path: &str| format!("{name}:{path}");
    let reads = |path: &str| guest.inside(["/bin/cat", path]).ok().stdout;
    // Into a directory, under a name, over a file, through a link to either.
    machinist(["cp", &file, &to("/root")])
        .ok()
        .stderr_has("1 files, 0 directories, 0 links, 4B");
    assert_eq!(reads("/root/file"), "one\n");
    fs::write(&file, "two\n").unwrap();
    machinist(["cp", &file, &to("root/file")]).ok();
    assert_eq!(reads("/root/file"), "two\n");
    guest.inside(["/bin/busybox", "ln", "-s", "/root", "/tmp/dir"]).ok();
    guest
        .inside(["/bin/busybox", "ln", "-s", "../root/file", "/tmp/link"])
        .ok();
    fs::write(&file, "three\n").unwrap();
    machinist(["cp", &file, &to("/tmp/dir/other")]).ok();
    machinist(["cp", &file, &to("/tmp/link")]).ok();
    assert_eq!(reads("/root/other") + &reads("/root/file"), "three\nthree\n");
    machinist(["cp", &to("/tmp/link"), &scratch.path("followed")]).ok();
    assert!(fs::symlink_metadata(scratch.path("followed")).unwrap().is_file());
    machinist(["cp", "-r", &to("/tmp/link"), &scratch.path("kept")]).ok();
    assert_eq!(fs::read_link(scratch.path("kept")).unwrap(), Path::new("../root/file"));
    // A directory that is there is filled, and keeps what it has.
    fs::create_dir_all(scratch.0.join("d/sub")).unwrap();
    fs::write(scratch.path("d/sub/x"), "x").unwrap();
    machinist(["cp", "-r", &scratch.path("d"), &to("/root/d")]).ok();
    fs::rename(scratch.path("d/sub/x"), scratch.path("d/sub/y")).unwrap();
    machinist(["cp", "-r", &format!("{}/.", scratch.path("d")), &to("/root/d")]).ok();
    machinist(["cp", "-r", &scratch.path("d"), &to("/root")]).ok();
    assert_eq!(
        guest.inside(["/bin/busybox", "ls", "/root/d/sub"]).ok().stdout,
        "x\ny\n"
    );
    // From machine to machine.
    machinist(["cp", "-r", &to("/root/d"), &to("/tmp/e")]).ok();
    assert_eq!(guest.inside(["/bin/busybox", "ls", "/tmp/e/sub"]).ok().stdout, "x\ny\n");
    // A filesystem that was mounted in the machine knows its own users only.
    guest.inside(["/bin/busybox", "mkdir", "/mnt"]).ok();
    guest
        .inside(["/bin/busybox", "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/mnt"])
        .ok();
    machinist(["cp", "-a", &scratch.path("d"), &to("/mnt")]).ok();
    assert_eq!(guest.inside(["/bin/busybox", "ls", "/mnt/d/sub"]).ok().stdout, "y\n");
    // And when it is full nothing half-made is left.
    run("truncate", ["-s", "0", &file]).ok();
    sh("head -c 3000000 /dev/urandom >\"$1\"", [&file]).ok();
    machinist(["cp", &file, &to("/mnt/large")])
        .status(1)
        .fails_with(&format!("cannot write '{name}:/mnt/large'"), "free some space");
    machinist(["cp", "-r", &scratch.path(""), &to("/mnt/whole")]).status(1);
    assert_eq!(guest.inside(["/bin/busybox", "ls", "-A", "/mnt"]).ok().stdout, "d\n");

    machinist(["cp", "--dry-run", &file, &to("/root")])
        .ok()
        .stdout_is(&format!("copy '{file}' to '{name}:/root/file'\n"));
    assert_eq!(reads("/root/file"), "three\n");
    let dry = machinist(["cp", "--dry-run", "--json", "-r", &to("/root"), "."])
        .ok()
        .json();
    assert_eq!(dry["steps"].as_array().unwrap().len(), 1);
}

#[test]
fn what_is_no_data_is_refused_or_left_out() {
    let _host = shared();
    let guest = Guest::busybox("cpbad");
    let name = guest.name.as_str();
    guest.start();
    let scratch = Scratch::new();
    let from = |path: &str| format!("{name}:{path}");
    let here = scratch.path("");
    let fails = |words: &[&str], status: i32, message: &str, hint: &str| {
        let words = [&["cp"], words].concat();
        let limit = Duration::from_secs(60);
        machinist(words).within(limit).status(status).fails_with(message, hint);
    };
    fails(
        &[&from("/etc"), &here],
        1,
        &format!("'{name}:/etc' is a directory"),
        "cp -r",
    );
    let kernels = "it is the kernel's, and no data";
    for path in ["/proc/version", "/proc/1/mem"] {
        fails(
            &[&from(path), &here],
            1,
            &format!("cannot copy '{name}:{path}': {kernels}"),
            "machinist exec",
        );
    }
    fails(
        &["-r", &from("/proc"), &here],
        1,
        &format!("cannot copy '{name}:/proc': {kernels}"),
        "exec",
    );
    fails(
        &["-r", &from("/dev/zero"), &here],
        1,
        &format!("cannot copy '{name}:/dev/zero': it is a character device"),
        "",
    );
    guest.inside(["/bin/busybox", "mkfifo", "/root/fifo"]).ok();
    machinist(["cp", &from("/root/fifo"), &here])
        .within(Duration::from_secs(60))
        .status(1)
        .stderr_has(&format!(
            "cannot copy '{name}:/root/fifo': it is a fifo, not a regular file"
        ));
    machinist(["cp", &from("/no/such"), &here])
        .status(1)
        .stderr_has(&format!("cannot copy '{name}:/no/such'"))
        .stderr_has("No such file or directory");
    machinist(["cp", "/no-such", &from("/")])
        .status(1)
        .stderr_has("cannot copy '/no-such'");
    fails(
        &["/etc/hostname", &from("/no/")],
        1,
        &format!("there is no directory '{name}:/no/'"),
        "make it first",
    );
    let gone = unique("gone");
    fails(
        &["/etc/hostname", &format!("{gone}:/")],
        3,
        &format!("no machine or image '{gone}'"),
        "machinist images",
    );
    fails(
        &["/etc/hostname", "/tmp"],
        2,
        "neither of the two is in a machine",
        "NAME:PATH",
    );
    fails(
        &["/etc/hostname", "x_y:/tmp"],
        2,
        "'x_y' is no name of a machine",
        "./a:b",
    );
    machinist(["cp", "--json", &from("/etc"), "-"]).status(2);
    run(
        "setpriv",
        ["--reuid=65534", "machinist", "cp", "/etc/hostname", &from("/")],
    )
    .status(4);

    // All of a running machine: what is not data is left out, and nothing hangs.
    let copied = machinist(["cp", "--json", "-a", &from("/"), &scratch.path("all")])
        .within(Duration::from_secs(60))
        .ok()
        .json();
    assert!(copied["skipped"]["kernel"].as_u64().unwrap() >= 2, "{copied}");
    assert!(copied["skipped"]["devices"].as_u64().unwrap() >= 5, "{copied}");
    let all = scratch.0.join("all");
    assert_eq!(fs::read_dir(all.join("proc")).unwrap().count(), 0);
    assert!(all.join("bin/busybox").is_file());
    assert!(
        fs::symlink_metadata(all.join("dev/null")).is_err(),
        "a device is on the host"
    );
    assert_eq!(fs::metadata(all.join("etc")).unwrap().uid(), 0);
}

#[test]
fn streams_are_tar_archives() {
    let _host = shared();
    let guest = Guest::busybox("cptar");
    let name = guest.name.as_str();
    guest.start();
    let scratch = Scratch::new();
    make_tree(&scratch.0.join("tree"));
    let (tree, out) = (scratch.path("tree"), scratch.path("out"));
    let script = "tar --xattrs --acls --sparse -C \"$1\" -c tree | zstd -q | machinist cp -a - \"$2:/root\"; \
                  mkdir \"$3\"; machinist cp --keep-special \"$2:/root/tree\" - | tar --xattrs -C \"$3\" -xp";
    sh(script, [scratch.0.as_os_str(), name.as_ref(), out.as_ref()]).ok();
    let stat = guest
        .inside(["/bin/busybox", "stat", "-c", "%a %u:%g", "/root/tree/set"])
        .ok()
        .stdout;
    assert_eq!(stat, "6755 1000:1000\n");
    // A stream has whole seconds.
    sh("find \"$1\" \"$2\" -exec touch -hd @1 {} +", [&tree, &out]).ok();
    assert_eq!(description(&format!("{out}/tree")), description(&tree));
    let blocks = fs::metadata(format!("{out}/tree/sparse")).unwrap().blocks();
    assert!(blocks < 1000, "holes are filled: {blocks}");
    // Whose it is is not the archive's to say, without leave; what is there stays there.
    sh(
        "tar -C \"$1\" -c tree | machinist cp - \"$2:/tmp\"; tar -C \"$1\" -c tree/d | machinist cp - \"$2:/tmp\"",
        [scratch.0.as_os_str(), name.as_ref()],
    )
    .ok();
    let stat = guest
        .inside([
            "/bin/busybox",
            "stat",
            "-c",
            "%a %u:%g",
            "/tmp/tree/set",
            "/tmp/tree/plain",
        ])
        .ok();
    assert_eq!(stat.stdout, "755 0:0\n640 0:0\n");
    machinist(["cp", "-", &format!("{name}:/root")])
        .stdin("no archive")
        .status(1)
        .stderr_has("'standard input' is not a tar archive");
    // What cannot go to its place is told before anything does.
    guest
        .inside([
            "/bin/sh",
            "-c",
            "b=/bin/busybox; $b mkdir -p /root/half/m /root/half/f; $b mount -t tmpfs none /root/half/m",
        ])
        .ok();
    fs::create_dir_all(scratch.0.join("half/m")).unwrap();
    for (file, why) in [
        ("m/x", "/root/half/m': it is a filesystem of its own"),
        ("f", "/root/half/f'\n  caused by: Is a directory"),
    ] {
        fs::write(scratch.0.join("half").join(file), "").unwrap();
        let script = "tar -C \"$1\" -c half/a \"half/$3\" | machinist cp - \"$2:/root\"";
        fs::write(scratch.0.join("half/a"), "").unwrap();
        sh(script, [scratch.0.as_os_str(), name.as_ref(), file.as_ref()])
            .status(1)
            .stderr_has(why);
        guest.inside(["/bin/busybox", "test", "-e", "/root/half/a"]).status(1);
    }
    // Who has seen enough of it may go.
    sh(
        "set -o pipefail; machinist cp \"$1:/\" - | head -c 1000 >/dev/null; echo ${PIPESTATUS[0]}",
        [name],
    )
    .any()
    .lacks("error:");
    leaves_nothing(&guest.image());
}

#[test]
fn a_machine_that_is_killed_leaves_nothing_half_made() {
    let _host = shared();
    let guest = Guest::busybox("cpkill");
    let name = guest.name.as_str();
    guest.start();
    let scratch = Scratch::new();
    fs::write(scratch.path("file"), vec![b'x'; 300_000]).unwrap();
    let archive = Command::new("tar")
        .args(["-C", &scratch.path(""), "-c", "file"])
        .output()
        .unwrap()
        .stdout;
    let mut copy = Command::new("machinist")
        .args(["cp", "-", &format!("{name}:/root")])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Half of it, and no end.
    let mut pipe = copy.stdin.take().unwrap();
    pipe.write_all(&archive[..150_000]).unwrap();
    let root = guest.image().join("root");
    wait_until("it is unpacked", || fs::read_dir(&root).unwrap().count() == 1);
    machinist(["terminate", name]).ok();
    wait_until("it gives up", || copy.try_wait().unwrap().is_some());
    assert_eq!(copy.wait().unwrap().code(), Some(1));
    let mut said = String::new();
    copy.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("stopped while it was copied"), "{said}");
    assert_eq!(fs::read_dir(&root).unwrap().count(), 0, "something is left");
    drop(pipe);
}

#[test]
fn linked_and_debian_machines_are_copied_to() {
    let _host = shared();
    let (source, clone) = (Guest::debian("cpdeb"), Guest::new("cplnk"));
    let name = clone.name.as_str();
    machinist(["clone", "--linked", &source.name, name]).ok();
    let scratch = Scratch::new();
    fs::write(scratch.path("f"), "f\n").unwrap();
    chown(scratch.path("f"), Some(1), Some(2)).unwrap();
    // While it does not run.
    machinist(["cp", "-a", &scratch.path("f"), &format!("{name}:/srv/still")]).ok();
    machinist(["cp", &format!("{name}:/etc/debian_version"), &scratch.path("version")]).ok();
    machinist(["start", "--wait", name]).ok();
    machinist(["cp", "-a", &scratch.path("f"), &format!("{name}:/srv/runs")]).ok();
    // A filesystem that the machine's own systemd has mounted.
    machinist(["cp", "-a", &scratch.path("f"), &format!("{name}:/run/mounted")]).ok();
    let stat = clone
        .inside(["stat", "-c", "%u:%g", "/srv/still", "/srv/runs", "/run/mounted"])
        .ok();
    stat.stdout_is("1:2\n1:2\n1:2\n");
    machinist(["cp", "-a", &format!("{name}:/etc"), &scratch.path("etc")]).ok();
    let inside = clone
        .inside(["stat", "-c", "%a %u:%g", "/etc/shadow", "/etc/passwd", "/etc"])
        .ok()
        .stdout;
    let words = [
        "-c",
        "%a %u:%g",
        &scratch.path("etc/shadow"),
        &scratch.path("etc/passwd"),
        &scratch.path("etc"),
    ];
    run("stat", words).ok().stdout_is(&inside);
    // File capabilities hold for the machine's root, and on the host only with leave.
    let cat = scratch.path("cat");
    fs::copy("/bin/cat", &cat).unwrap();
    const NET_RAW: u32 = 1 << 13;
    let capability = [0x0200_0001, NET_RAW, 0, 0, 0].map(u32::to_le_bytes).concat();
    set_attribute(&cat, "security.capability", &capability);
    machinist(["cp", "-a", &cat, &format!("{name}:/srv/cat")]).ok();
    let user = [
        "setpriv",
        "--reuid=1000",
        "--clear-groups",
        "/srv/cat",
        "/proc/self/status",
    ];
    clone.inside(user).ok().stdout_has("\nCapEff:\t0000000000002000\n");
    machinist(["cp", "-a", &format!("{name}:/srv/cat"), &scratch.path("plain")])
        .ok()
        .stderr_has("capabilities");
    assert_eq!(attribute(&scratch.path("plain"), "security.capability"), b"");
    machinist([
        "cp",
        "-a",
        "--keep-special",
        &format!("{name}:/srv/cat"),
        &scratch.path("special"),
    ])
    .ok();
    assert_eq!(attribute(&scratch.path("special"), "security.capability"), capability);
    assert!(!source.image().join("srv/still").exists(), "it is in the source, too");
}
