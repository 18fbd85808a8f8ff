//! export and import of disk images: for systemd's own tools, and the same machine again.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use crate::create::traces;
use crate::export::Shelf;
use crate::support::{Guest, There, agree, machinist, run, sh, shared};

/// What a machine may have in its tree.
const KINDS: &str = r#"cd "$1"; mkdir k; cd k; echo data >one; ln one two; mkfifo fifo; truncate -s 4M sparse; echo >>sparse
    ln -s /etc/shadow link; cp /bin/busybox cap; setcap cap_net_raw+ep cap; setfattr -n user.a -v ho one
    mkdir d; chmod 2775 d; chown 7:8 d; chmod 4750 two; touch -d '2001-02-03 04:05:06' one d .."#;

/// A tree, but for what every filesystem has of its own.
fn listing(guest: &Guest) -> String {
    let script = "cd \"$1\"; find . -path ./lost+found -prune -o -printf '%p %M %n %U:%G %T@ %l\\n' | sed 's/[.][0-9][0-9]* / /' | sort
        find . -type f -exec sha256sum {} + | sort -k2; getcap -r .; getfattr -R -d . | sort";
    sh(script, [guest.image()]).ok().stdout
}

#[test]
fn a_machine_in_a_disk_image_is_started_and_the_same_machine() {
    let _host = shared();
    let (guest, other) = (Guest::busybox("exd"), Guest::new("exd2"));
    let (name, shelf) = (guest.name.as_str(), Shelf::new(&guest));
    guest.write_settings("[Exec]\nKillSignal=SIGUSR2\n[Files]\nBind=/root:/host\n");
    machinist(["limit", name, "tasks=77"]).ok();
    sh(KINDS, [guest.image()]).ok();
    let before = listing(&guest);
    let file = shelf.path("a.raw");
    let steps = machinist(["export", name, &file, "--dry-run"]).ok();
    assert!(
        steps.stdout.contains("name the disk image") && shelf.names().is_empty(),
        "{steps:?}"
    );
    let row = machinist(["export", name, &file, "--json"]).ok().json()[0].clone();
    assert_eq!(
        (&row["path"], &row["result"]),
        (&file.as_str().into(), &"exported".into())
    );
    // The same machine makes the same image, and one that nothing is wrong with.
    let again = shelf.path("again.raw");
    machinist(["export", name, &again]).ok();
    run("cmp", [&file, &again]).ok();
    sh(
        "dd if=\"$1\" of=\"$1.root\" bs=1M skip=1 conv=sparse && e2fsck -fn \"$1.root\"",
        [&again],
    )
    .ok();
    sh("rm \"$1\" \"$1.root\"", [&again]).ok();
    let found = fs::metadata(&file).unwrap();
    assert!(found.blocks() * 512 < found.len() / 2, "it is not sparse: {found:?}");
    assert_eq!((shelf.names(), found.mode() & 0o777), (vec!["a.raw".to_owned()], 0o600));
    let table = run("sfdisk", ["--dump", &file]).ok();
    assert!(
        table.stdout.contains("name=\"root\"") && table.stderr.is_empty(),
        "{table:?}"
    );
    let kind = "type=5B0D2C1E-8F4A-4C7B-9D36-2E1F7A60C4D8";
    assert!(table.stdout.contains(kind), "{table:?}");
    // Others take it; here no partition of it can be mounted, as there is no udev.
    run("machinectl", ["import-raw", &file, &other.name]).ok();
    run("cmp", [&file, &format!("/var/lib/machines/{}.raw", other.name)]).ok();
    machinist(["remove", "-y", &other.name]).ok();
    machinist(["create", &other.name, &file, "--extract"]).ok();
    agree(&other.name, There::Stopped);
    other.start();
    machinist(["exec", &other.name, "--", "cat", "/k/two"])
        .ok()
        .stdout_is("data\n");
    machinist(["remove", "-y", "--force", &other.name]).ok();
    // Of a running one comes another one.
    fs::write(guest.settings(), "[Exec]\nKillSignal=SIGUSR2\n").unwrap();
    guest.start();
    let second = shelf.path("b.raw");
    machinist(["export", name, &second]).ok();
    machinist(["import", &second, &other.name, "--new-identity"]).ok();
    other.start();
    machinist(["exec", &other.name, "--", "cat", "/k/two"])
        .ok()
        .stdout_is("data\n");

    machinist(["remove", "-y", "--force", name]).ok();
    sh("rm -rf /var/lib/machinist/trash/\"$1\"-*", [name]).ok();
    machinist(["import", &file, "--dry-run"])
        .ok()
        .stdout_has("rename it to");
    assert_eq!(traces(name), Vec::<String>::new());
    let output = machinist(["import", &file]).ok();
    assert!(output.stderr.contains("[Files] Bind=/root:/host"), "{output:?}");
    agree(name, There::Stopped);
    assert_eq!(listing(&guest), before);
    assert_eq!(guest.property("TasksMax"), "77");
    guest.start();
}
