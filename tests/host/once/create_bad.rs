//! create with bad input: each has an error of its own, and leaves nothing.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};

use crate::create::traces;
use crate::support::{
    Guest, MACHINES, Output, SETTINGS, There, agree, guest_suite, machine_property, machinist, make_busybox_image, run,
    sh, shared, suite, unique, wait_until,
};

/// Runs `create NAME SOURCE …`, demands this status, and that everything of that name is as before.
#[track_caller]
fn refused(status: i32, guest: &Guest, source: &str, options: &[&str]) -> Output {
    let before = traces(&guest.name);
    let words = ["create", "--", &guest.name, source];
    let words = words[..1].iter().chain(options).chain(&words[1..]);
    let output = machinist(words).status(status);
    assert_eq!(traces(&guest.name), before, "something changed\n{output:?}");
    output
}

#[test]
fn names_that_machined_refuses() {
    let _host = shared();
    let long = "a".repeat(65);
    for (name, reason) in [
        ("", "cannot be empty"),
        ("web_1", "contains '_'"),
        ("web-", "must not begin or end with '-' or '.'"),
        ("-web", "must not begin or end with '-' or '.'"),
        ("a..b", "must not begin or end with '-' or '.'"),
        (".host", "must not begin or end with '-' or '.'"),
        ("a@b", "contains '@'"),
        ("a/b", "contains '/'"),
        ("../b", "contains '/'"),
        ("a b", "contains ' '"),
        ("grün", "contains 'ü'"),
        ("web.raw", "ends in '.raw'"),
        ("web.v", "ends in '.v'"),
        (&long, "65 bytes long"),
    ] {
        let output = machinist(["create", "--", name, "template:busybox"]).status(2);
        assert!(output.stderr.contains(reason), "{name:?}: no {reason:?}\n{output:?}");
        output.stderr_has("hint: a machine name is like a host name");
        assert!(
            name.is_empty() || !Path::new(MACHINES).join(name).exists(),
            "{name:?} was made"
        );
    }
}

#[test]
fn a_name_in_use_is_refused_and_says_by_what() {
    let _host = shared();
    let guest = Guest::busybox("used");
    let name = &guest.name;
    let message = format!("cannot create machine '{name}': image '/var/lib/machines/{name}' exists already");
    refused(1, &guest, "template:busybox", &[]).fails_with(&message, &format!("machinist remove {name}"));
    guest.start();
    refused(1, &guest, "template:busybox", &[])
        .stderr_has("a running machine of that name (unit ")
        .stderr_has(&format!("machinist remove --force {name}"));

    let raw = Guest::new("used");
    fs::write(raw.image().with_file_name(format!("{}.raw", raw.name)), vec![0; 4096]).unwrap();
    refused(1, &raw, "template:busybox", &[])
        .stderr_has(&format!("image '/var/lib/machines/{}.raw' exists already", raw.name));

    let settings = Guest::new("used");
    settings.write_settings("[Exec]\n");
    let message = format!(
        "cannot create machine '{}': settings file '{SETTINGS}/{}.nspawn' exists already",
        settings.name, settings.name
    );
    refused(1, &settings, "template:busybox", &[]).fails_with(&message, "move it away");

    let drop_in = Guest::new("used");
    drop_in.write_drop_in("[Service]\nNice=5\n");
    refused(1, &drop_in, "template:busybox", &[])
        .stderr_has(&format!(
            "unit drop-in '{}/50-test.conf' exists already",
            drop_in.drop_ins().display()
        ))
        .stderr_has(&format!(
            "hint: move it away with `mv {} /root/",
            drop_in.drop_ins().display()
        ));

    let runtime = Guest::new("used");
    let file = format!("/run/systemd/nspawn/{}.nspawn", runtime.name);
    fs::write(&file, "[Exec]\n").unwrap();
    refused(1, &runtime, "template:busybox", &[]).stderr_has(&format!("settings file '{file}' exists already"));
    fs::remove_file(&file).unwrap();
}

#[test]
fn a_name_of_a_running_machine_is_refused() {
    let _host = shared();
    let guest = Guest::new("taken");
    let name = &guest.name;
    let tree = format!("/root/{name}");
    make_busybox_image(Path::new(&tree));
    let unit = format!("test-{name}.service");
    run(
        "systemd-run",
        [
            "-q",
            "--unit",
            &unit,
            "systemd-nspawn",
            "-q",
            "-b",
            "-D",
            &tree,
            "-M",
            name,
        ],
    )
    .ok();
    wait_until("it is registered", || {
        machine_property(name, "State").as_deref() == Some("running")
    });
    agree(name, There::WithoutImage);
    refused(1, &guest, "template:busybox", &[])
        .stderr_has("a running machine of that name (unit ")
        .stderr_has(&format!("machinist terminate {name}"));
    machinist(["terminate", name]).ok();
    agree(name, There::Nowhere);
    run("systemctl", ["stop", &unit]).any();
    run("systemctl", ["reset-failed", &unit]).any();
    fs::remove_dir_all(tree).unwrap();
}

#[test]
fn an_unknown_suite_is_told_from_an_unreachable_mirror() {
    let _host = shared();
    let guest = Guest::new("suite");
    let mirror = std::env::var("MACHINIST_TEST_MIRROR").unwrap_or_else(|_| "http://deb.debian.org/debian".to_owned());
    refused(1, &guest, "debian:nosuchsuite", &["--mirror", &mirror]).fails_with(
        &format!("mirror '{mirror}' has no suite 'nosuchsuite'"),
        "Debian's suites are",
    );
    let output = refused(
        1,
        &guest,
        "debian:stable",
        &["--mirror", "http://127.0.0.1:1/", "--variant", "essential"],
    );
    output
        .stderr_has("error: mirror 'http://127.0.0.1:1' cannot be reached: ")
        .stderr_has("--mirror URL");
    let nowhere = [
        "--mirror",
        "http://no-such-host.invalid/debian",
        "--variant",
        "essential",
    ];
    refused(1, &guest, "debian:stable", &nowhere)
        .stderr_has("mirror 'http://no-such-host.invalid/debian' cannot be reached: ");
    agree(&guest.name, There::Nowhere);
}

#[test]
fn a_wrong_keyring_is_told() {
    let _host = shared();
    let guest = Guest::new("keys");
    let find = "ls /usr/share/keyrings/debian-archive-removed-keys.* | head -n 1";
    let keyring = sh(find, [""]).ok().stdout.trim().to_owned();
    let source = format!("debian:{}", guest_suite());
    let tools: &[&str] = if suite() == "trixie" {
        &["mmdebstrap", "debootstrap"]
    } else {
        &["mmdebstrap"]
    };
    for tool in tools {
        let options = ["--keyring", &keyring, "--no-cache", "--bootstrapper", tool];
        refused(1, &guest, &source, &options)
            .stderr_has(&format!("is not signed by a key of '{keyring}'"))
            .stderr_has("hint: update the keyring's package")
            .stderr_has("the whole output is kept in '/var/log/machinist/");
    }
    refused(1, &guest, &source, &["--keyring", "/no/such.gpg"]).stderr_has("keyring '/no/such.gpg' does not exist");
}

#[test]
fn a_missing_package_is_named() {
    let _host = shared();
    if suite() != "trixie" {
        // It costs a download of the package lists; the bootstrapper is the same everywhere.
        return assert_ne!(guest_suite(), "forky");
    }
    let guest = Guest::new("pkg");
    let source = format!("debian:{}", guest_suite());
    refused(
        1,
        &guest,
        &source,
        &[
            "--include",
            "no-such-package-here",
            "--no-cache",
            "--bootstrapper",
            "debootstrap",
        ],
    )
    .stderr_has("has no package 'no-such-package-here'");
}

/// Runs `machinist create` in a mount namespace of its own, after `prepare`; `after` lists what is left.
fn in_namespace(prepare: &str, after: &str, words: &[&str]) -> crate::support::Run {
    let script = format!("{prepare}\nset +e; machinist \"$@\"; status=$?; {after}; exit $status");
    let mut all = vec!["-m", "--", "bash", "-euc", &script, "bash"];
    all.extend(words);
    run("unshare", all)
}

#[test]
fn a_full_disk_is_told() {
    let _host = shared();
    let guest = Guest::new("full");
    let name = &guest.name;
    let work = PathBuf::from(format!("/root/{name}"));
    make_busybox_image(&work.join("tree"));
    let script = "cd \"$1\"; head -c 12M /dev/urandom >tree/usr/lib/large; tar -C tree -cf full.tar .";
    sh(script, [work.as_os_str()]).ok();
    let archive = work.join("full.tar").to_string_lossy().into_owned();
    let prepare = "mount -t tmpfs -o size=6m,mode=700 tmpfs /var/lib/machines";
    let output = in_namespace(prepare, "ls -A /var/lib/machines", &["create", name, &archive]).status(1);
    let told = output.stderr.contains("No space left on device") || output.stderr.contains("no space left");
    assert!(told, "{output:?}");
    output.stderr_has("hint: ").stdout_is("");
    assert_eq!(traces(name), Vec::<String>::new());
    // And while the archive fits but the template does not.
    let prepare = "mount -t tmpfs -o size=1m,mode=700 tmpfs /var/lib/machines";
    in_namespace(
        prepare,
        "ls -A /var/lib/machines",
        &["create", name, "template:busybox"],
    )
    .status(1)
    .stderr_has("no space left")
    .stdout_is("");
    fs::remove_dir_all(work).unwrap();
    agree(name, There::Nowhere);
}

#[test]
fn a_missing_bootstrapper_names_its_package() {
    let _host = shared();
    let guest = Guest::new("notool");
    let hide = |tools: &str| {
        format!(
            "none=$(mktemp); chmod 000 $none
            for tool in {tools}; do for dir in /usr/sbin /usr/bin; do
                [ ! -e $dir/$tool ] || mount --bind $none $dir/$tool
            done; done"
        )
    };
    let source = format!("debian:{}", guest_suite());
    let create = ["create", &guest.name, &source];
    in_namespace(&hide("mmdebstrap debootstrap"), "true", &create)
        .status(1)
        .fails_with(
            "program 'debootstrap' is not installed (Debian package 'debootstrap')",
            "apt install debootstrap",
        );
    in_namespace(
        &hide("mmdebstrap"),
        "true",
        &["create", &guest.name, &source, "--bootstrapper", "mmdebstrap"],
    )
    .status(1)
    .fails_with(
        "program 'mmdebstrap' is not installed (Debian package 'mmdebstrap')",
        "apt install mmdebstrap",
    );
    in_namespace(&hide("busybox"), "true", &["create", &guest.name, "template:busybox"])
        .status(1)
        .stderr_has("busybox");
    assert_eq!(traces(&guest.name), Vec::<String>::new());
    agree(&guest.name, There::Nowhere);
}

#[test]
fn a_target_that_no_guest_could_live_on_is_refused() {
    let _host = shared();
    let guest = Guest::new("flags");
    for flag in ["nosuid", "nodev", "noexec"] {
        let prepare =
            format!("mount --bind /var/lib/machines /var/lib/machines; mount -o remount,bind,{flag} /var/lib/machines");
        let output = in_namespace(&prepare, "true", &["create", &guest.name, "template:busybox"]).status(1);
        output
            .stderr_has(&format!(
                "'/var/lib/machines' is on a filesystem mounted {flag}: a guest's programs would not work there"
            ))
            .stderr_has("hint: allow it with `mount -o remount,")
            .lacks(".#machinist");
        assert_eq!(traces(&guest.name), Vec::<String>::new());
    }
}

#[test]
fn strings_that_are_no_source() {
    let _host = shared();
    let guest = Guest::new("nosrc");
    for source in ["", "web", "fedora:42", "debian", ".tar", "a\nb"] {
        refused(2, &guest, source, &[])
            .stderr_has("does not look like a source")
            .stderr_has("hint: a source is debian:SUITE");
    }
    refused(2, &guest, "debian:", &[]).fails_with("the suite is missing in 'debian:'", "debian:trixie");
    for source in ["debian:../x", "ubuntu:a b"] {
        refused(2, &guest, source, &[]).stderr_has("does not name a suite of");
    }
    refused(2, &guest, "template:nosuch", &[]).fails_with("there is no template 'nosuch'", "template:busybox");
    refused(1, &guest, "/no/such/file.tar.gz", &[]).stderr_has("'/no/such/file.tar.gz'");
    for (option, value) in [
        ("--network", "vlan=3"),
        ("--set", "nonsense"),
        ("--set", "Exec.NoSuchKey=1"),
        ("--bootstrapper", "x"),
    ] {
        refused(2, &guest, "template:busybox", &[option, value]).stderr_has(value.split('.').next_back().unwrap());
    }
    agree(&guest.name, There::Nowhere);
}

/// An entry whose name stands in the header as it is.
fn entry(builder: &mut Builder<Vec<u8>>, kind: EntryType, name: &str, link: &str, data: &[u8]) {
    let mut header = Header::new_ustar();
    let raw = header.as_old_mut();
    raw.name[..name.len()].copy_from_slice(name.as_bytes());
    raw.linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(data.len() as u64);
    if kind.is_block_special() || kind.is_character_special() {
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
    }
    header.set_cksum();
    builder.append(&header, data).unwrap();
}

#[test]
fn hostile_archives_are_refused_and_write_nothing_outside() {
    let _host = shared();
    let guest = Guest::new("evil");
    let outside = format!("/tmp/out-{}", guest.name);
    fs::create_dir(&outside).unwrap();
    fs::write(format!("{outside}/victim"), "untouched").unwrap();
    let archive = format!("/root/{}.tar", guest.name);
    let file = EntryType::Regular;
    let absolute = format!("{outside}/evil");
    let up = format!("../../../..{outside}/evil");
    type Fill<'a> = &'a dyn Fn(&mut Builder<Vec<u8>>);
    let cases: &[(&str, Fill<'_>)] = &[
        ("leads outside of the machine", &|b| entry(b, file, &up, "", b"x")),
        ("leads outside of the machine", &|b| {
            entry(b, file, "usr/../../evil", "", b"x");
        }),
        ("has an absolute path", &|b| entry(b, file, &absolute, "", b"x")),
        ("goes through a symbolic link that leads outside of the machine", &|b| {
            entry(b, EntryType::Symlink, "way", &format!("../../../..{outside}"), b"");
            entry(b, file, "way/evil", "", b"x");
        }),
        ("which leads outside of the machine", &|b| {
            entry(b, EntryType::Link, "hard", &format!("../../../..{outside}/victim"), b"");
        }),
        ("is a device node outside of dev/", &|b| {
            entry(b, EntryType::Block, "usr/disk", "", b"");
        }),
        ("is a device node outside of dev/", &|b| {
            entry(b, EntryType::Char, "null", "", b"");
        }),
        ("which no earlier entry has made", &|b| {
            entry(b, EntryType::Link, "hard", "etc/nothing", b"");
        }),
        ("has the unsupported type", &|b| {
            entry(b, EntryType::new(b'M'), "more", "", b"");
        }),
    ];
    for (problem, fill) in cases {
        let mut builder = Builder::new(Vec::new());
        entry(&mut builder, EntryType::Directory, "usr/", "", b"");
        fill(&mut builder);
        fs::write(&archive, builder.into_inner().unwrap()).unwrap();
        refused(1, &guest, &archive, &[])
            .stderr_has("error: archive entry '")
            .stderr_has(problem);
        assert!(!Path::new(&absolute).exists(), "{problem}: a file was written outside");
    }
    // An absolute link is the guest's own business; what is written through it stays inside.
    let mut builder = Builder::new(Vec::new());
    entry(&mut builder, EntryType::Directory, "usr/", "", b"");
    entry(
        &mut builder,
        EntryType::Directory,
        format!("{}/", &outside[1..]).as_str(),
        "",
        b"",
    );
    entry(&mut builder, EntryType::Symlink, "way", &outside, b"");
    entry(&mut builder, file, "way/evil", "", b"x");
    fs::write(&archive, builder.into_inner().unwrap()).unwrap();
    machinist(["create", &guest.name, &archive]).any();
    assert!(
        !Path::new(&absolute).exists(),
        "a file was written outside, through an absolute link"
    );
    assert_eq!(fs::read_to_string(format!("{outside}/victim")).unwrap(), "untouched");
    fs::remove_dir_all(&outside).unwrap();
    fs::remove_file(&archive).unwrap();
}

#[test]
fn damaged_archives_are_refused() {
    let _host = shared();
    let guest = Guest::new("torn");
    let work = PathBuf::from(format!("/root/{}", guest.name));
    make_busybox_image(&work.join("tree"));
    let script = "cd \"$1\"; tar -C tree -czf whole.tar.gz .; tar -C tree -cf whole.tar .
        head -c 300K whole.tar.gz >torn.tar.gz; head -c 700K whole.tar >torn.tar; : >empty.tar; cp bin zip.tar 2>/dev/null || printf 'PK\\3\\4zip' >zip.tar
        head -c 100K /dev/urandom >noise.tar; mkdir t2; echo x >t2/x; tar -C t2 -cf nosystem.tar x
        mkdir -p t3/usr; tar -C t3 -cf noinit.tar usr; tar -cf below.tar tree; (cat whole.tar.gz; echo more) >more.tar.gz";
    sh(script, [work.as_os_str()]).ok();
    for (file, problem) in [
        ("torn.tar.gz", ""),
        ("torn.tar", "is truncated: it ends"),
        ("empty.tar", "is empty"),
        ("zip.tar", "is not a tar archive"),
        ("noise.tar", "is not a tar archive"),
        (
            "nosystem.tar",
            "nosystem.tar' is no root filesystem: it has no directory 'usr'",
        ),
        ("noinit.tar", "noinit.tar' has no init"),
        ("below.tar", "its files lie below 'tree/'"),
        ("more.tar.gz", "has other data after its compressed data"),
    ] {
        let path = work.join(file);
        let output = refused(1, &guest, &path.to_string_lossy(), &[]);
        assert!(output.stderr.contains(problem), "{file}: no {problem:?}\n{output:?}");
        assert!(output.stderr.contains("error: "), "{output:?}");
        output.lacks(".#machinist");
    }
    // A directory, a link in a circle, and a file that may not be there.
    symlink("loop.tar", work.join("loop.tar")).unwrap();
    fs::create_dir(work.join("dir.tar")).unwrap();
    for file in ["loop.tar", "dir.tar"] {
        refused(1, &guest, &work.join(file).to_string_lossy(), &[]).stderr_has(file);
    }
    let left = unique("torn");
    agree(&left, There::Nowhere);
    agree(&guest.name, There::Nowhere);
    fs::remove_dir_all(work).unwrap();
}
