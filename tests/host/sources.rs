//! create from whatever has a root filesystem: what is taken of it, what is checked, and what bad input leaves.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::create::traces;
use crate::support::{Guest, There, agree, machinist, make_busybox_image, run, sh, shared, unique};

pub(crate) const ANOTHER: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// A directory of files for one test.
pub(crate) struct Work(pub(crate) PathBuf);

impl Work {
    pub(crate) fn new(stem: &str) -> Self {
        let path = PathBuf::from(format!("/root/{}", unique(stem)));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn file(&self, name: &str) -> String {
        self.0.join(name).to_string_lossy().into_owned()
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn sum_of(file: &str) -> String {
    let said = run("sha256sum", [file]).ok().stdout;
    said[..64].to_owned()
}

/// Demands that nothing is left of a machine that was not made.
#[track_caller]
pub(crate) fn is_nowhere(guest: &Guest) {
    agree(&guest.name, There::Nowhere);
    assert_eq!(traces(&guest.name), Vec::<String>::new());
}

/// Archives whose root filesystem lies in `img/rootfs`, by the program that compresses them, and one that is cut off.
fn nested_archives() -> Work {
    let work = Work::new("part");
    make_busybox_image(&work.0.join("img/rootfs"));
    let pack = "cd \"$1\"; ln img/rootfs/bin/busybox img/rootfs/bin/twin; echo hello >img/README
        tar -cf a.tar img; for zip in gzip 'xz -0' zstd bzip2; do $zip -qc a.tar >\"a.${zip%% *}\"; done
        head -c 20000 a.gzip >cut";
    sh(pack, [work.0.as_os_str()]).ok();
    work
}

#[test]
fn archives_are_taken_from_standard_input_in_part_and_by_their_sum() {
    let _host = shared();
    let work = nested_archives();
    // As a file, whatever its name says, and as a pipe.
    for (file, part) in [
        ("a.tar", ["--subtree", "img/rootfs"]),
        ("a.gzip", ["--subtree", "./img/rootfs/"]),
        ("a.xz", ["--strip", "2"]),
        ("a.zstd", ["--strip", "2"]),
        ("a.bzip2", ["--subtree", "img/rootfs"]),
    ] {
        let guest = Guest::new("part");
        let (name, path) = (guest.name.as_str(), work.file(file));
        let feed = if file == "a.xz" {
            "cat \"$2\" | machinist create \"$1\" - \"${@:3}\""
        } else {
            "machinist create \"$1\" - \"${@:3}\" <\"$2\""
        };
        let sum = sum_of(&path).to_uppercase();
        let words = [name, &path, part[0], part[1], "--sha256", &sum];
        sh(feed, words).ok().stderr_has("unpacking standard input");
        let busybox = fs::metadata(guest.image().join("bin/twin")).unwrap();
        assert_eq!((busybox.nlink() > 1, busybox.uid()), (true, 0), "{file}");
        assert!(!guest.image().join("README").exists() && !guest.image().join("img").exists());
        if file == "a.zstd" {
            guest.start();
            agree(name, There::Running);
        } else {
            agree(name, There::Stopped);
        }
    }
}

#[test]
fn of_another_archive_than_asked_for_nothing_is_made() {
    let _host = shared();
    let work = nested_archives();
    let guest = Guest::new("part");
    let name = guest.name.as_str();
    let (tar, cut) = (work.file("a.tar"), work.file("cut"));
    let feed = "machinist create \"$1\" - \"${@:3}\" <\"$2\"";
    for (file, words, status, message, hint) in [
        (
            &tar,
            &["--subtree", "rootfs"] as &[&str],
            1,
            "archive 'standard input' has nothing below 'rootfs'",
            "tar -tvf",
        ),
        (
            &tar,
            &[],
            1,
            "'-' is no root filesystem: it has no directory 'usr'",
            "--subtree img",
        ),
        (&cut, &["--strip", "2"], 1, "archive 'standard input' is truncated", ""),
        (
            &tar,
            &["--strip", "two"],
            2,
            "invalid value 'two' for '--strip <N>'",
            "",
        ),
        (&"/dev/null".to_owned(), &[], 1, "archive 'standard input' is empty", ""),
    ] {
        let output = sh(feed, [&[name, file.as_str()], words].concat()).status(status);
        assert!(output.stderr.contains(&format!("error: {message}")), "{output:?}");
        assert!(output.stderr.contains(hint), "{output:?}");
        is_nowhere(&guest);
    }
    for words in [
        &["create", name, &tar, "--strip", "2", "--sha256", ANOTHER] as &[&str],
        // Even what would be refused for something else.
        &["create", name, &tar, "--sha256", ANOTHER],
    ] {
        machinist(words.iter().copied())
            .status(1)
            .stderr_has(&format!("its SHA-256 sum is {}, not {ANOTHER}", sum_of(&tar)));
        is_nowhere(&guest);
    }
    let error = sh(
        "machinist --json create \"$1\" - --sha256 \"$3\" <\"$2\"",
        [name, &cut, ANOTHER],
    )
    .status(1);
    let message = error.json_error()["message"].as_str().unwrap_or_default().to_owned();
    assert!(
        message.contains(&sum_of(&cut)) && message.contains(ANOTHER),
        "{message}"
    );
    is_nowhere(&guest);
    // A plan reads nothing.
    let plan = machinist([
        "create",
        name,
        "-",
        "--subtree",
        "img/rootfs",
        "--sha256",
        ANOTHER,
        "--dry-run",
    ])
    .ok();
    plan.stdout_has("unpack what standard input has below 'img/rootfs'\n")
        .stdout_has(&format!("check that its SHA-256 sum is {ANOTHER}\n"));
    is_nowhere(&guest);
    assert!(Path::new(&tar).exists());
}

#[test]
fn a_directory_is_copied_as_it_is_and_nothing_else() {
    let _host = shared();
    let work = Work::new("dir");
    let tree = work.0.join("tree");
    make_busybox_image(&tree);
    let exotic = "cd \"$1\"; mkdir -p opt/d; echo one >opt/one; ln opt/one opt/two; chown 1000:1001 opt/one opt/d
        ln -s /etc opt/outside; ln -s ../../../../etc/passwd opt/passwd; mkfifo opt/fifo; chmod 1777 opt/d
        cp bin/busybox opt/su; chmod 4755 opt/su; setfattr -n user.test -v value opt/one; mkdir opt/mounted
        mount -t tmpfs none opt/mounted; echo >opt/mounted/other";
    sh(exotic, [tree.as_os_str()]).ok();
    let list = |root: &Path| {
        let script =
            "cd \"$1\" && find bin opt -xdev -path opt/mounted -prune -o -printf '%p %y %m %U %G %n %s %l %T@\\n' |
            sort; getfattr -R -P -h -d -m '^user' opt";
        sh(script, [root.as_os_str()]).ok().stdout
    };
    let wanted = list(&tree);
    assert!(wanted.contains("opt/one f 644 1000 1001 2"), "{wanted}");
    let all = "find \"$1\" -printf '%p %T@\\n' | sort";
    let before = sh(all, [tree.as_os_str()]).ok().stdout;
    let guest = Guest::new("dir");
    machinist(["create", &guest.name, &tree.to_string_lossy()])
        .ok()
        .stderr_has(&format!(
            "what is mounted on '{}/opt/mounted' is not copied",
            tree.display()
        ));
    run("umount", [tree.join("opt/mounted")]).ok();
    assert_eq!(list(&guest.image()), wanted);
    assert_eq!(fs::read_dir(guest.image().join("opt/mounted")).unwrap().count(), 0);
    let after = sh(all, [tree.as_os_str()]).ok().stdout;
    assert_eq!(
        after.lines().count() + 1,
        before.lines().count(),
        "the source has changed"
    );
    agree(&guest.name, There::Stopped);
    guest.start();
    agree(&guest.name, There::Running);
    // By a relative path; of a user, and closed.
    sh("chown 1000 \"$1\"; chmod 700 \"$1\"", [tree.as_os_str()]).ok();
    let other = Guest::new("dir");
    let real = fs::canonicalize(&tree).unwrap();
    sh(
        "cd \"$1\"; machinist create \"$2\" tree/",
        [work.0.as_os_str(), other.name.as_ref()],
    )
    .ok()
    .stderr_has(&format!("'{}' belongs to user 1000", real.display()))
    .stderr_has("has mode 0700");
    assert_eq!(fs::metadata(other.image()).unwrap().uid(), 1000);
    sh(
        "cd \"$1\"; machinist run ./tree -- sh -c 'cat /opt/two'",
        [work.0.as_os_str()],
    )
    .ok()
    .stdout_is("one\n");
}

#[test]
fn what_is_a_machines_is_no_directory_like_others() {
    let _host = shared();
    let work = Work::new("bad");
    let (guest, bad) = (Guest::busybox("dir"), Guest::new("dir"));
    std::os::unix::fs::symlink("/etc", guest.image().join("outside")).unwrap();
    std::os::unix::fs::symlink(guest.image(), work.0.join("link")).unwrap();
    fs::write(work.0.join("file"), "").unwrap();
    let image = guest.image().to_string_lossy().into_owned();
    for (source, message, hint) in [
        (
            image.as_str(),
            format!("'{image}' is the image of machine '{}'", guest.name),
            "machine:",
        ),
        (
            &work.file("link"),
            format!("is the image of machine '{}'", guest.name),
            "machine:",
        ),
        (
            &format!("{image}/outside"),
            format!("lies in the image of machine '{}'", guest.name),
            "machinist cp -a",
        ),
        (
            &work.file("file"),
            format!("'{}' is no directory", work.file("file")),
            "DIR/",
        ),
        (&work.file("none"), format!("cannot open '{}'", work.file("none")), ""),
        (
            &work.file(""),
            format!("'{}' is no root filesystem", work.file("")),
            "at its top",
        ),
    ] {
        let output = machinist(["create", &bad.name, source]).status(1);
        assert!(
            output.stderr.contains(&message) && output.stderr.contains(hint),
            "{output:?}"
        );
        is_nowhere(&bad);
    }
    let tree = work.0.join("tree/");
    make_busybox_image(&tree);
    let plan = machinist(["create", &bad.name, &tree.to_string_lossy(), "--dry-run"]).ok();
    plan.stdout_has(&format!("copy directory '{}'\n", work.file("tree")));
    machinist(["create", &bad.name, "./tree", "--strip", "1"])
        .status(2)
        .stderr_has("--strip is for tar archives, not for './tree'");
    is_nowhere(&bad);
}

#[test]
fn a_machine_is_copied_with_its_settings_and_a_new_identity() {
    let _host = shared();
    let guest = Guest::busybox("of");
    let name = guest.name.as_str();
    machinist(["limit", name, "tasks=67"]).ok();
    fs::write(guest.image().join("etc/hostname"), format!("{name}\n")).unwrap();
    guest.start();
    let source = format!("machine:{name}");
    let copy = Guest::new("ofcopy");
    machinist(["create", &copy.name, &source, "--dry-run", "--start"])
        .ok()
        .stdout_has(&format!("hold machine '{name}' still\n"))
        .stdout_has(&format!("start unit {}", copy.unit()));
    is_nowhere(&copy);
    let rows = machinist(["create", &copy.name, &source, "--start", "--enable", "--json"])
        .ok()
        .json();
    assert_eq!(
        (&rows[0]["result"], &rows[0]["started"]),
        (&"created".into(), &true.into())
    );
    assert_eq!(rows[0]["path"], copy.image().to_string_lossy().as_ref());
    agree(name, There::Running);
    agree(&copy.name, There::Running);
    assert_eq!(copy.property("TasksMax"), "67");
    assert_eq!(run("systemctl", ["is-enabled", &copy.unit()]).ok().stdout, "enabled\n");
    let hostname = fs::read_to_string(copy.image().join("etc/hostname")).unwrap();
    assert_eq!(hostname, format!("{}\n", copy.name));
    let bad = Guest::new("ofbad");
    let other = bad.name.as_str();
    for (words, status, message) in [
        (
            ["create", other, &source, "--hostname=x"],
            2,
            format!("--hostname is not for '{source}'"),
        ),
        (["create", other, &source, "--sha256=0"], 2, "--sha256".to_owned()),
        (
            ["create", other, "machine:a b", "--start"],
            2,
            "cannot copy a machine".to_owned(),
        ),
        (
            ["create", other, &format!("machine:{other}"), "--start"],
            2,
            "cannot be made of itself".to_owned(),
        ),
        (
            ["create", other, "machine:no-such-one", "--start"],
            3,
            "no-such-one".to_owned(),
        ),
        (
            ["create", name, &format!("machine:{}", copy.name), "--start"],
            1,
            "exists already".to_owned(),
        ),
        (["run", &source, "--", "true"], 2, format!("machinist run -x {name}")),
    ] {
        machinist(words).status(status).stderr_has(&message);
        is_nowhere(&bad);
    }
}
