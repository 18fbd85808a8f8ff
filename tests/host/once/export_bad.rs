//! export and import with bad input, hostile archives, full disks and kills.

use std::fs;
use std::path::Path;

use crate::clone::swept;
use crate::create::traces;
use crate::export::Shelf;
use crate::support::{Guest, There, agree, machinist, run, sh, shared};

/// Writes an archive: entries of (name, type, text or link), in the words of Python's tarfile.
const PACK: &str = r"
import io, json, sys, tarfile
tar = tarfile.open(sys.argv[1], 'w', format=tarfile.PAX_FORMAT)
for name, kind, text in json.loads(sys.argv[2]):
    entry = tarfile.TarInfo(name)
    entry.type = {'f': tarfile.REGTYPE, 'd': tarfile.DIRTYPE, 'l': tarfile.SYMTYPE, 'h': tarfile.LNKTYPE, 'c': tarfile.CHRTYPE}[kind]
    entry.mode = 0o755
    if kind == 'f': entry.size = len(text)
    else: entry.linkname = text
    tar.addfile(entry, io.BytesIO(text.encode()) if kind == 'f' else None)
tar.close()";

type Entry<'a> = (&'a str, &'a str, &'a str);

const ABOUT: Entry<'_> = (
    "machinist/export.json",
    "f",
    r#"{"format":1,"machinist":"0.1.0","name":"web"}"#,
);

fn pack(file: &str, entries: &[Entry<'_>]) {
    let entries = serde_json::to_string(entries).unwrap();
    run("python3", ["-c", PACK, file, &entries]).ok();
}

#[test]
fn hostile_archives_are_refused_and_leave_nothing() {
    let _host = shared();
    let guest = Guest::new("ebad");
    let shelf = Shelf::new(&guest);
    let file = shelf.path("x.tar");
    let root = [ABOUT, ("rootfs/", "d", ""), ("rootfs/usr/", "d", "")];
    let later = (
        "machinist/export.json",
        "f",
        r#"{"format":2,"machinist":"9.9","name":"web"}"#,
    );
    let cases: Vec<(Vec<Entry<'_>>, &str)> = vec![
        (
            [&root[..], &[("rootfs/../../x", "f", "x")]].concat(),
            "leads outside of the machine",
        ),
        (vec![("../x", "f", "x")], "leads outside of the machine"),
        ([&root[..], &[("/etc/x", "f", "x")]].concat(), "has an absolute path"),
        (
            [
                &root[..],
                &[("rootfs/a", "l", "/etc"), ("rootfs/b", "h", "../../etc/passwd")],
            ]
            .concat(),
            "hard link",
        ),
        (
            [&root[..], &[("rootfs/h", "h", "machinist/export.json")]].concat(),
            "hard link",
        ),
        (
            [&root[..], &[("rootfs/a", "f", "1"), ("rootfs/a", "f", "2")]].concat(),
            "is in it twice",
        ),
        ([&root[..], &[ABOUT]].concat(), "is in it twice"),
        (
            [&root[..], &[("other", "f", "1")]].concat(),
            "is nothing that an exported machine has",
        ),
        (
            [&root[..], &[("machinist/settings/x", "f", ""), ("rootfs/b", "f", "")]].concat(),
            "is of the tree, which had ended before",
        ),
        (
            [&root[..], &[("machinist/settings/unit/x.conf", "l", "/etc/shadow")]].concat(),
            "is not a plain file",
        ),
        (root.to_vec(), "it has no 'machinist/manifest.json'"),
        (
            vec![("machinist/", "d", ""), root[1]],
            "it has no 'machinist/export.json'",
        ),
        (vec![later, root[1]], "machinist 9.9"),
        (vec![("etc/", "d", ""), ("etc/x", "f", "")], "has no root filesystem"),
        (
            vec![("config", "f", "lxc.uts.name=a"), ("log", "f", "")],
            "has no root filesystem",
        ),
        (
            vec![
                ("backup/index.yaml", "f", "name: a\n"),
                ("backup/container.bin", "f", ""),
            ],
            "--optimized-storage",
        ),
    ];
    for (entries, message) in &cases {
        pack(&file, entries);
        let output = machinist(["import", &file, &guest.name]).status(1);
        assert!(
            output.stderr.contains(message),
            "{entries:?}: no {message:?} in {output:?}"
        );
        assert_eq!(traces(&guest.name), Vec::<String>::new(), "{entries:?}");
    }
    assert!(!Path::new("/var/lib/machines/x").exists() && !Path::new("/var/lib/x").exists());
    // What is no archive at all.
    fs::write(&file, "no archive").unwrap();
    machinist(["import", &file, &guest.name])
        .status(1)
        .stderr_has("is not a tar archive");
    machinist(["import", &shelf.path("none.tar"), &guest.name])
        .status(1)
        .stderr_has("none.tar");
    machinist(["import", "-"])
        .stdin("")
        .status(2)
        .fails_with("an archive from standard input needs a name", "- NAME");
    machinist(["import", &file, "a_b"]).status(2);
    run(
        "runuser",
        ["-u", "nobody", "--", "machinist", "import", "/x.tar", "web"],
    )
    .status(4)
    .fails_with("import needs root", "sudo");
}

/// An archive without one of its members.
fn without(archive: &[u8], member: &str) -> Vec<u8> {
    const BLOCK: usize = 512;
    let name = format!("{member}\0");
    let is_header = |at: &usize| archive[*at..].starts_with(name.as_bytes());
    let at = (0..archive.len()).step_by(BLOCK).find(is_header).unwrap();
    let size = str::from_utf8(&archive[at + 124..at + 135]).unwrap();
    let size = usize::from_str_radix(size, 8).unwrap().next_multiple_of(BLOCK);
    [&archive[..at], &archive[at + BLOCK + size..]].concat()
}

#[test]
fn a_damaged_export_is_refused_and_leaves_nothing() {
    let _host = shared();
    let (guest, other) = (Guest::busybox("edam"), Guest::new("edam2"));
    let shelf = Shelf::new(&guest);
    machinist(["limit", &guest.name, "tasks=77"]).ok();
    let whole = shelf.path("w.tar");
    machinist(["export", &guest.name, &whole]).ok();
    machinist(["export", &guest.name, &shelf.path("w.tar.zst")]).ok();
    let refused = |file: &str, message: &str| {
        let output = machinist(["import", file, &other.name]).status(1);
        assert!(
            output.stderr.contains(message) && output.stdout.is_empty(),
            "{message}: {output:?}"
        );
        assert_eq!(traces(&other.name), Vec::<String>::new(), "{message}");
    };
    // A byte of the tree, and one of the settings, are others.
    let bytes = fs::read(&whole).unwrap();
    let changed = shelf.path("c.tar");
    for (former, new, message) in [
        (
            "PRETTY_NAME=\"BusyBox",
            "PRETTY_NAME=\"BusyBux",
            "the sum of 'rootfs' is",
        ),
        (
            "TasksMax=77",
            "TasksMax=78",
            "the sum of 'machinist/settings/limits/50-TasksMax.conf' is",
        ),
    ] {
        let at = bytes
            .windows(former.len())
            .position(|window| window == former.as_bytes())
            .unwrap();
        let mut bytes = bytes.clone();
        bytes[at..at + new.len()].copy_from_slice(new.as_bytes());
        fs::write(&changed, bytes).unwrap();
        refused(&changed, message);
    }
    // Members of another archive.
    fs::write(&changed, without(&bytes, "machinist/settings/limits/50-TasksMax.conf")).unwrap();
    refused(&changed, "is only in one of the two");
    fs::write(&changed, without(&bytes, "machinist/manifest.json")).unwrap();
    refused(&changed, "it has no 'machinist/manifest.json'");
    for (file, part) in [("w.tar", 3), ("w.tar.zst", 2)] {
        let bytes = fs::read(shelf.path(file)).unwrap();
        fs::write(&changed, &bytes[..bytes.len() * (part - 1) / part]).unwrap();
        refused(&changed, "is truncated");
    }
    // Neither does a full disk leave anything, nor a kill.
    let script = "mount -t tmpfs -o size=600k,mode=700 tmpfs /var/lib/machines; set +e
        machinist import \"$1\" \"$2\"; status=$?; ls -A /var/lib/machines; exit $status";
    run(
        "unshare",
        ["-m", "--", "bash", "-euc", script, "bash", &whole, &other.name],
    )
    .status(1)
    .stderr_has("no space left on the filesystem")
    .stdout_is("");
    assert_eq!(traces(&other.name), Vec::<String>::new());
    for step in 0..20 {
        let dying = machinist(["import", &whole, &other.name]).env("MACHINIST_DIE_AT_STEP", step.to_string());
        let output = dying.any();
        if output.status == 0 {
            assert!(step > 5, "{step} steps");
            break;
        }
        assert_eq!(output.status, 128 + 9, "{output:?}");
        swept(&other.name);
        agree(&other.name, There::Nowhere);
        assert_eq!(other.property("TasksMax"), Guest::new("none").property("TasksMax"));
    }
    agree(&other.name, There::Stopped);
    assert_eq!(other.property("TasksMax"), "77");
    machinist(["import", &whole, &other.name])
        .status(1)
        .stderr_has("exists already");
}

#[test]
fn what_cannot_be_exported_is_refused() {
    let _host = shared();
    let (guest, raw) = (Guest::busybox("eref"), Guest::new("eref2"));
    let (name, shelf) = (guest.name.as_str(), Shelf::new(&guest));
    let file = shelf.path("a.tar");
    machinist(["export", "no-such-machine", &file])
        .status(3)
        .stderr_has("no machine or image");
    machinist(["export", name, &shelf.path("a.zip")])
        .status(2)
        .stderr_has("its name does not say");
    machinist(["export", name, &shelf.path("none/a.tar")])
        .status(1)
        .stderr_has("No such file");
    machinist(["export", name, "-", "--json"])
        .status(2)
        .stderr_has("where JSON cannot go");
    fs::write(&file, "mine").unwrap();
    machinist(["export", name, &file])
        .status(1)
        .stderr_has("exists already")
        .stderr_has("--force");
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
    machinist(["export", "--force", name, &file]).ok();
    fs::write(raw.image().with_file_name(format!("{}.raw", raw.name)), vec![0; 4096]).unwrap();
    machinist(["export", &raw.name, &shelf.path("b.tar")])
        .status(1)
        .stderr_has("is no disk image");
    run(
        "runuser",
        ["-u", "nobody", "--", "machinist", "export", name, "/tmp/x.tar"],
    )
    .status(4)
    .fails_with("export needs root", "sudo");
    // A full disk, and a reader that goes away.
    let script = "mount -t tmpfs -o size=400k tmpfs \"$2\"; set +e
        machinist export \"$1\" \"$2/a.tar\"; status=$?; ls -A \"$2\"; exit $status";
    run(
        "unshare",
        ["-m", "--", "bash", "-euc", script, "bash", name, &shelf.path("")],
    )
    .status(1)
    .stderr_has("No space left on device")
    .stdout_is("");
    sh(
        "machinist export \"$1\" - | head -c 100 >/dev/null; test ${PIPESTATUS[0]} = 141",
        [name],
    )
    .ok()
    .lacks("panicked");
    assert_eq!(shelf.names(), ["a.tar"]);
}
