//! create from whatever has a root filesystem: what is taken of it, what is checked, and what bad input leaves.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::create::traces;
use crate::support::{Guest, There, agree, machinist, make_busybox_image, run, sh, shared, unique};

const ANOTHER: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// A directory of files for one test.
struct Work(PathBuf);

impl Work {
    fn new(stem: &str) -> Self {
        let path = PathBuf::from(format!("/root/{}", unique(stem)));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).to_string_lossy().into_owned()
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn sum_of(file: &str) -> String {
    let said = run("sha256sum", [file]).ok().stdout;
    said[..64].to_owned()
}

/// Demands that nothing is left of a machine that was not made.
#[track_caller]
fn is_nowhere(guest: &Guest) {
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
